//! `host-agent log`: the entries of a journal, in its order.

use crate::arguments::Log;
use crate::error::Error;
use crate::merged_log;
use crate::output::{count, Output};
use journal::{rfc3339, Entry, JournalReader, Moment, SourceIdentity, Tables, When};
use layout::entry::{flags, ErrorBound, Kind, Updated};
use serde::Serialize;
use std::collections::HashMap;

/// One entry, as `--json` prints it. The field names are an interface: add, don't change.
#[derive(Serialize)]
struct Line {
    order: u64,
    timestamp: u64,
    time: String,
    port: u8,
    seq: u64,
    number: u64,
    kind: &'static str,
    volume: String,
    lba: u64,
    sectors: u16,
    status: &'static str,
    /// Is it durable in this journal?
    durable: bool,
    flags: Vec<&'static str>,
    /// `null`: the clock was unlocked, there is no bound.
    clock_error_ns: Option<f64>,
    crc32c: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    /// What the target said, where that wasn't plain success.
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<Answer>,
}

#[derive(Clone, Copy, Serialize)]
struct Answer {
    /// ATA status register.
    status: u8,
    /// ATA error register, or AoE error code.
    error: u8,
    aoe_error: bool,
}

/// Runs the command.
pub fn run(arguments: &Log) -> Result<(), Error> {
    let reader = JournalReader::open(&arguments.journal)?;
    let resolve = |when: &Option<When>| when.as_ref().map(|when| when.resolve(reader.tables())).transpose();
    let range = Range { from: resolve(&arguments.from)?, to: resolve(&arguments.to)? };
    if arguments.merged {
        return merged_log::run(&reader, &range, arguments.json);
    }
    let answers = if arguments.json { bad_answers(&reader) } else { HashMap::new() };
    let durable_order = reader.summary().durable_order;
    let mut output = Output::new();
    if !arguments.json {
        output.line(HEADING)?;
    }
    let mut first_damage = None;
    for entry in reader.entries()? {
        let entry = match entry {
            Ok(entry) => entry,
            // What follows the damage can still be read; the exit code tells of it.
            Err(error) if error.is_corruption() => {
                first_damage = first_damage.or(Some(error));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        match range.place(entry.order, entry.record.header.timestamp.get()) {
            Place::Before => continue,
            Place::After => break,
            Place::Within => {}
        }
        if arguments.port.is_some_and(|port| port != entry.record.header.port) {
            continue;
        }
        let line = line(&entry, reader.tables(), durable_order, &answers);
        if arguments.json {
            output.json(&line)?;
        } else {
            output.line(table_row(&line))?;
        }
    }
    output.finish()?;
    let (merged, until) = reader.merged();
    if merged > 0 && !arguments.json {
        let writes = count(merged, "earlier write", "earlier writes");
        eprintln!("note: {writes} up to {} have been merged: --merged lists their windows", rfc3339(until));
    }
    let summary = reader.summary();
    if let (Some(torn), false) = (summary.torn, arguments.json) {
        eprintln!(
            "note: the journal ends in a batch that was being written (offset {}); nothing of it was reported durable",
            torn.offset
        );
    }
    match first_damage {
        Some(error) => Err(Error::JournalHint(error, "`host-agent verify` lists all damage")),
        None => Ok(()),
    }
}

/// The answers that weren't plain success, by port and number.
fn bad_answers(reader: &JournalReader) -> HashMap<(u8, u64), Answer> {
    let completions = reader
        .records()
        .flatten()
        .filter(|record| record.kind == Kind::Completion && record.header.updated() != Ok(Updated::Updated));
    completions
        .map(|record| {
            let header = record.header;
            let aoe_error = header.flags.get() & flags::AOE_ERROR != 0;
            let answer = Answer { status: header.answer_status, error: header.answer_error, aoe_error };
            ((header.port, header.number.get()), answer)
        })
        .collect()
}

/// What is to be listed. Both ends belong to it.
pub struct Range {
    from: Option<Moment>,
    to: Option<Moment>,
}

/// Where something lies with regard to a [`Range`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Before,
    Within,
    After,
}

impl Range {
    /// Of an entry.
    pub fn place(&self, order: u64, stamp: u64) -> Place {
        let before = match self.from {
            None => false,
            Some(Moment::Timestamp(from)) => stamp < from,
            Some(Moment::Order(from)) => order < from,
            Some(Moment::End) => true,
        };
        let after = match self.to {
            None | Some(Moment::End) => false,
            Some(Moment::Timestamp(to)) => stamp > to,
            Some(Moment::Order(to)) => order > to,
        };
        match (before, after) {
            (_, true) => Place::After,
            (true, _) => Place::Before,
            _ => Place::Within,
        }
    }
}

fn line(entry: &Entry, tables: &Tables, durable_order: u64, answers: &HashMap<(u8, u64), Answer>) -> Line {
    let header = &entry.record.header;
    let set = header.flags.get();
    let mut names: Vec<_> =
        flags::NAMES.iter().filter(|(bit, _)| set & bit != 0).map(|(_, name)| *name).collect();
    if entry.late {
        names.push("late");
    }
    let volume = tables.volume_at(header.volume.get()).map(|volume| volume.name());
    let source = tables.source_at(header.port, header.source.get(), entry.order);
    Line {
        order: entry.order,
        timestamp: header.timestamp.get(),
        time: rfc3339(header.timestamp.get()),
        port: header.port,
        seq: header.sequence.get(),
        number: header.number.get(),
        kind: entry.record.kind.name(),
        volume: volume.unwrap_or_else(|| format!("#{}", header.volume)),
        lba: header.lba(),
        sectors: header.sectors.get(),
        status: entry.updated.name(),
        durable: entry.order <= durable_order,
        flags: names,
        clock_error_ns: ErrorBound(header.clock_error.get()).nanoseconds(),
        crc32c: header.payload_crc.get(),
        source: source.map(|source| match source.identity {
            SourceIdentity::Mac(mac) => mac.map(|byte| format!("{byte:02x}")).join(":"),
            SourceIdentity::Number(number) => number.to_string(),
        }),
        answer: answers.get(&(header.port, header.number.get())).copied(),
    }
}

const HEADING: &str =
    "   ORDER  TIME                            PORT       SEQ  VOLUME           LBA  SECTORS  STATUS     CRC32C          ±NS  FLAGS";

fn table_row(line: &Line) -> String {
    let error = line.clock_error_ns.map_or("-".to_owned(), |error| format!("{error:.1}"));
    format!(
        "{:>8}  {:<30}  {:>4}  {:>8}  {:<7}  {:>11}  {:>7}  {:<9}  {:08x}  {:>9}  {}",
        line.order,
        line.time,
        line.port,
        line.seq,
        line.volume,
        line.lba,
        line.sectors,
        line.status,
        line.crc32c,
        error,
        line.flags.join(",")
    )
}
