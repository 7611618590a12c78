//! `host-agent size`: how long a journal lasts, and how large one has to be.

use crate::error::Error;
use crate::need::{self, Need};
use crate::output::{bytes, Output};
use clap::Args;
use indicatif::HumanDuration;
use journal::{span_nanoseconds, JournalReader, SegmentSpan};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// `size`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Size {
    /// The journal
    #[arg(value_name = "JOURNAL")]
    pub journal: PathBuf,
    /// How far back every write is to be kept: 24h, 7d, 1d12h
    #[arg(long, value_name = "SPAN", value_parser = span_nanoseconds)]
    pub keep: Option<u64>,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
}

const EXAMPLES: &str = "\
Examples:
  host-agent size j                    how fast it grows, and how long it lasts at that rate
  host-agent size j --keep 7d          how large it has to be to keep every write of a week

With a schedule (merge --schedule) it says what that needs, level by level: from how much the windows that have been
merged took, or, before there are any, from how much the newest writes overlap.

The rate is that of what the journal holds: from its first entry to its last, time in which nothing was written
included. The busiest segment tells what it is at worst.";

/// The result, as `--json` prints it. The field names are an interface: add, don't change.
#[derive(Serialize)]
struct Measured {
    bytes: u64,
    used: u64,
    free: u64,
    entries: u64,
    first_timestamp: u64,
    last_timestamp: u64,
    /// `null`: less than two moments with entries.
    bytes_per_second: Option<f64>,
    busiest_bytes_per_second: Option<f64>,
    lasts_seconds: Option<f64>,
    /// With `--keep`: what a journal needs for that.
    needed: Option<u64>,
    needed_at_busiest: Option<u64>,
    /// What has been merged takes, in segments.
    merged: u64,
    /// `none`: nothing is merged.
    schedule: String,
    /// `null`: there is no schedule, or too little to tell.
    schedule_needs: Option<Need>,
    /// Less than a fifth of the segments that entries may take is free.
    short: bool,
}

/// Of the segments that entries may take so many have to be free: one in five.
const SHORT: u64 = 5;

/// Runs the command.
pub fn run(arguments: &Size) -> Result<(), Error> {
    let reader = JournalReader::open(&arguments.journal)?;
    let measured = measure(&reader, arguments.keep)?;
    let mut output = Output::new();
    match arguments.json {
        true => output.json(&measured)?,
        false => print(arguments, &measured, &mut output)?,
    }
    output.finish()
}

fn measure(reader: &JournalReader, keep: Option<u64>) -> Result<Measured, Error> {
    let summary = reader.summary();
    let spans = reader.growth()?;
    let used: u64 = spans.iter().map(|span| span.bytes).sum();
    let filled: Vec<&SegmentSpan> = spans.iter().filter(|span| span.entries > 0).collect();
    let first_timestamp = filled.first().map_or(0, |span| span.first_timestamp);
    let last_timestamp = filled.last().map_or(0, |span| span.last_timestamp);
    let rate = rate(used, first_timestamp, last_timestamp);
    // From one segment's first entry to the next one's: what filling it took.
    let busiest = filled
        .windows(2)
        .filter_map(|pair| self::rate(pair[0].bytes, pair[0].first_timestamp, pair[1].first_timestamp))
        .max_by(f64::total_cmp);
    let reserved = u64::from(reader.reserved_segments()) * summary.segment_bytes;
    let free = u64::from(summary.segments - summary.segments_used) * summary.segment_bytes;
    let usable = free.saturating_sub(reserved);
    let capacity = (u64::from(summary.segments) * summary.segment_bytes).saturating_sub(reserved);
    // Two more: the one that is being filled, and the oldest, of which only a part is still wanted.
    let fixed = reserved + 2 * summary.segment_bytes;
    let needed = |rate: Option<f64>| {
        keep.zip(rate).map(|(keep, rate)| (rate * keep as f64 / 1e9).ceil() as u64 + fixed)
    };
    let merged =
        reader.levels()?.iter().filter(|level| level.level > 0).map(|level| level.segments).sum::<u64>()
            * summary.segment_bytes;
    let schedule_needs = match rate {
        Some(rate) => need::need(reader, rate, 2 * summary.segment_bytes, capacity)?,
        None => None,
    };
    Ok(Measured {
        merged,
        schedule: reader.tables().schedule.to_string(),
        schedule_needs,
        short: usable * SHORT < capacity,
        bytes: summary.bytes,
        used,
        free: usable,
        entries: summary.order,
        first_timestamp,
        last_timestamp,
        bytes_per_second: rate,
        busiest_bytes_per_second: busiest,
        lasts_seconds: rate.map(|rate| usable as f64 / rate),
        needed: needed(rate),
        needed_at_busiest: needed(busiest),
    })
}

/// Bytes a second.
fn rate(bytes: u64, from: u64, to: u64) -> Option<f64> {
    (to > from).then(|| bytes as f64 * 1e9 / (to - from) as f64)
}

fn advice(measured: &Measured) -> &'static str {
    match measured.schedule == "none" {
        true => "without a schedule nothing is merged (merge --schedule)",
        false => "merge --short keeps only what the schedule keeps then",
    }
}

/// A span of time as people say it.
pub fn say(seconds: f64) -> String {
    match Duration::try_from_secs_f64(seconds) {
        Ok(short) if seconds < 60.0 => format!("{short:.1?}"),
        Ok(long) => HumanDuration(long).to_string(),
        Err(_) => "a time beyond reckoning".into(),
    }
}

fn print(arguments: &Size, measured: &Measured, output: &mut Output) -> Result<(), Error> {
    let merged = match measured.merged {
        0 => String::new(),
        merged => format!(", {} merged", bytes(merged)),
    };
    output.line(format!(
        "{}: {}, of that {} in use{merged} and {} free for entries",
        arguments.journal.display(),
        bytes(measured.bytes),
        bytes(measured.used),
        bytes(measured.free)
    ))?;
    if measured.short {
        output.line(format!(
            "  warning: less than a fifth of the room for entries is free; {}",
            advice(measured)
        ))?;
    }
    let (Some(rate), Some(lasts)) = (measured.bytes_per_second, measured.lasts_seconds) else {
        return output.line("  it holds too little to tell how fast it grows");
    };
    let span = (measured.last_timestamp - measured.first_timestamp) as f64 / 1e9;
    output.line(format!("  grows by {}/s over the {} that it holds", bytes(rate as u64), say(span)))?;
    if let Some(busiest) = measured.busiest_bytes_per_second {
        output.line(format!("  its busiest segment by {}/s", bytes(busiest as u64)))?;
    }
    output.line(format!("  full in {} at that rate", say(lasts)))?;
    if let Some(need) = &measured.schedule_needs {
        need::print(need, &measured.schedule, measured.bytes, output)?;
    }
    if let (Some(keep), Some(needed)) = (arguments.keep, measured.needed) {
        output.line(format!("  {} of every write need {}", say(keep as f64 / 1e9), bytes(needed)))?;
    }
    if let Some(needed) = measured.needed_at_busiest {
        output.line(format!("    and {} if all of it were like the busiest segment", bytes(needed)))?;
    }
    Ok(())
}
