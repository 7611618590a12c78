//! `host-agent status`: how a journal is, and what its owner is doing.

use crate::daemon;
use crate::error::Error;
use crate::output::{bytes, count, grouped, Output};
use crate::switch::SwitchStatus;
use clap::Args;
use journal::merge::Merged;
use journal::{rfc3339, Delivered, FileStorage, JournalReader, Space};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// `status`.
#[derive(Debug, Args)]
pub struct StatusOf {
    /// The journal
    #[arg(value_name = "JOURNAL")]
    pub journal: PathBuf,
    /// Control socket of the daemon that holds it; JOURNAL.sock if not given
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Below this part of the segments that entries may take, room is short: in percent.
const LOW: u64 = 20;
/// And from this on it isn't any more.
const AMPLE: u64 = 25;

/// After a kill, or a power failure.
pub const UNCLEAN: &str =
    "the session before did not end in order: primary may be ahead of the journal; resync each volume";

/// How a journal is: what `--json` prints, and what a daemon tells. Add, don't change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Who has it open for writing.
    pub owner: Option<Owner>,
    /// The session that runs, or the last.
    pub session: u64,
    /// Last order.
    pub order: u64,
    /// Largest stamp, ns.
    pub timestamp: u64,
    /// Last order that is durable.
    pub durable_order: u64,
    /// Room.
    #[serde(flatten)]
    pub room: Room,
    /// Per port: nothing at or below this is still to come. Only a daemon tells.
    pub ports: Vec<PortStatus>,
    /// What is being done.
    pub doing: Option<Doing>,
    /// Merging; only a daemon tells.
    #[serde(default)]
    pub merging: Option<MergingStatus>,
    /// Interfaces, if it switches frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switch: Option<SwitchStatus>,
    /// What one should know.
    pub warnings: Vec<String>,
}

/// What a daemon merges.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MergingStatus {
    /// The schedule.
    pub schedule: String,
    /// A step is under way.
    pub running: bool,
    /// When the last step ended that did something, ns since 1970.
    pub last_ended: Option<u64>,
    /// What the steps did that came one behind the other up to then.
    pub last: MergedStatus,
    /// Since the daemon began: what was due only because room was short.
    pub earlier: MergedStatus,
    /// What is due and had to stay, and why.
    pub held_back: Vec<String>,
    /// Why the last step failed.
    pub trouble: Option<String>,
}

/// What merging did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MergedStatus {
    /// Steps.
    pub steps: u64,
    /// Windows that were made.
    pub windows: u64,
    /// Entries that went into them, and bytes of those.
    pub entries_in: u64,
    /// See `entries_in`.
    pub bytes_in: u64,
    /// Merged entries that were made of them, and bytes of those.
    pub entries_out: u64,
    /// See `entries_out`.
    pub bytes_out: u64,
    /// Segments that became free.
    pub segments_freed: u64,
    /// Segments that were written.
    pub segments_written: u64,
    /// Entries that were given up, and bytes that were rolled into bases before.
    pub given_up: u64,
    /// See `given_up`.
    pub bytes_rolled: u64,
    /// What is due and had to stay, and why.
    pub held_back: Vec<String>,
}

impl From<&Merged> for MergedStatus {
    fn from(merged: &Merged) -> Self {
        Self {
            steps: merged.steps,
            windows: merged.windows,
            entries_in: merged.entries_in,
            bytes_in: merged.bytes_in,
            entries_out: merged.entries_out,
            bytes_out: merged.bytes_out,
            segments_freed: merged.segments_freed,
            segments_written: merged.segments_written,
            given_up: merged.given_up,
            bytes_rolled: merged.bytes_rolled,
            held_back: merged.held_back.clone(),
        }
    }
}

impl std::fmt::Display for MergedStatus {
    /// As a sentence goes on.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = Vec::new();
        if self.windows > 0 {
            let entries = count(self.entries_in, "entry", "entries");
            let windows = count(self.windows, "window", "windows");
            let (from, to) = (bytes(self.bytes_in), bytes(self.bytes_out));
            parts.push(format!("{entries} merged into {windows} ({from} into {to})"));
        }
        if self.given_up > 0 {
            parts.push(format!("{} given up", count(self.given_up, "entry", "entries")));
        }
        if self.bytes_rolled > 0 {
            parts.push(format!("{} rolled into bases", bytes(self.bytes_rolled)));
        }
        let net = self.segments_freed.saturating_sub(self.segments_written);
        parts.push(format!("{} more free", count(net, "segment", "segments")));
        write!(f, "{}", parts.join(", "))
    }
}

/// Who has a journal open for writing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Owner {
    /// Its process.
    pub pid: u32,
    /// Where it listens, if it is a daemon.
    pub control: Option<PathBuf>,
}

/// A port's delivered watermark.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct PortStatus {
    /// Port.
    pub port: u8,
    /// Watermark, ns.
    pub delivered: u64,
}

impl From<&Delivered> for PortStatus {
    fn from(delivered: &Delivered) -> Self {
        Self { port: delivered.port, delivered: delivered.timestamp }
    }
}

/// What a daemon is doing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Doing {
    /// What.
    pub what: String,
    /// How far it is: frames of a replay, bytes.
    pub done: u64,
    /// Of so many.
    pub total: u64,
    /// The journal is full, and this goes on when there is room.
    pub waits_for_room: bool,
}

/// Room for entries: the segments that are kept for other things aren't counted.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Room {
    /// Segments that entries may take, free or not.
    pub segments: u32,
    /// Of those, free ones.
    pub free_segments: u32,
    /// Bytes of these.
    pub free_bytes: u64,
}

impl Room {
    /// As the owner sees it.
    pub fn of(space: &Space) -> Self {
        Self::new(space.segments, space.free, space.reserved, space.segment_bytes)
    }

    fn new(segments: u32, free: u32, reserved: u32, segment_bytes: u64) -> Self {
        let free_segments = free.saturating_sub(reserved);
        Self {
            segments: segments.saturating_sub(reserved),
            free_segments,
            free_bytes: u64::from(free_segments) * segment_bytes,
        }
    }

    fn is_below(&self, percent: u64) -> bool {
        u64::from(self.free_segments) * 100 < u64::from(self.segments) * percent
    }

    /// Is it short?
    pub fn is_low(&self) -> bool {
        self.is_below(LOW)
    }

    /// Is there clearly enough?
    pub fn is_ample(&self) -> bool {
        !self.is_below(AMPLE)
    }

    /// What there is to say about it.
    pub fn warning(&self) -> Option<String> {
        self.is_low().then(|| {
            format!(
                "room is short: {} of {} segments free for entries ({}); when none is left, no more is ingested",
                self.free_segments,
                self.segments,
                bytes(self.free_bytes)
            )
        })
    }
}

/// Runs the command.
pub fn run(arguments: &StatusOf) -> Result<(), Error> {
    let status = match daemon::status(&arguments.journal, arguments.control.as_deref())? {
        Some(status) => status,
        None => of_file(arguments)?,
    };
    let mut output = Output::new();
    match arguments.json {
        true => output.json(&status)?,
        false => print(arguments, &status, &mut output)?,
    }
    output.finish()
}

/// No daemon answers: what can be read.
fn of_file(arguments: &StatusOf) -> Result<Status, Error> {
    let owner = FileStorage::open_read_only(&arguments.journal)?.lock_owner();
    let reader = JournalReader::open(&arguments.journal)?;
    let summary = reader.summary();
    let free = summary.segments.saturating_sub(summary.segments_used);
    let room = Room::new(summary.segments, free, reader.reserved_segments().min(free), summary.segment_bytes);
    let mut warnings: Vec<String> = room.warning().into_iter().collect();
    if owner.is_none() && !summary.ended {
        warnings.push(UNCLEAN.into());
    }
    warnings.extend(summary.damage.clone());
    warnings.extend(summary.damaged_copies.iter().cloned());
    Ok(Status {
        owner: owner.map(|pid| Owner { pid, control: None }),
        session: summary.session,
        order: summary.order,
        timestamp: summary.timestamp,
        durable_order: summary.durable_order,
        room,
        ports: Vec::new(),
        doing: None,
        merging: None,
        switch: None,
        warnings,
    })
}

fn print(arguments: &StatusOf, status: &Status, output: &mut Output) -> Result<(), Error> {
    let name = arguments.journal.display();
    output.line(match &status.owner {
        None => format!("{name}: nobody has it open for writing"),
        Some(Owner { pid, control: None }) => {
            format!("{name}: held by process {pid}, which no control socket leads to")
        }
        Some(Owner { pid, control: Some(control) }) => {
            format!("{name}: held by process {pid}, a daemon; control socket {}", control.display())
        }
    })?;
    let at = match status.order {
        0 => "nothing yet".to_owned(),
        order => format!("up to order:{} ({})", grouped(order), rfc3339(status.timestamp)),
    };
    let durable = grouped(status.durable_order);
    output.line(format!("  holds    {at}, durable up to order:{durable}; session {}", status.session))?;
    let room = &status.room;
    output.line(format!(
        "  room     {} of {} segments free for entries, {}",
        room.free_segments,
        room.segments,
        bytes(room.free_bytes)
    ))?;
    for port in &status.ports {
        output.line(match port.delivered {
            0 => format!("  port {:<3} nothing delivered yet", port.port),
            delivered => format!("  port {:<3} delivered up to {}", port.port, rfc3339(delivered)),
        })?;
    }
    if let Some(switch) = &status.switch {
        switch.print(output)?;
    }
    match &status.doing {
        None => output.line("  doing    nothing")?,
        Some(Doing { what, done, total, waits_for_room }) => {
            let waits = if *waits_for_room { ", waits for room" } else { "" };
            output.line(format!("  doing    {what}: {} of {}{waits}", grouped(*done), grouped(*total)))?;
        }
    }
    if let Some(merging) = &status.merging {
        print_merging(merging, output)?;
    }
    for warning in &status.warnings {
        output.line(format!("warning: {warning}"))?;
    }
    Ok(())
}

fn print_merging(merging: &MergingStatus, output: &mut Output) -> Result<(), Error> {
    let running = if merging.running { "; a step is under way" } else { "" };
    output.line(format!("  schedule {}{running}", merging.schedule))?;
    if let Some(ended) = merging.last_ended {
        output.line(format!("  merged   {}, at {}", merging.last, rfc3339(ended)))?;
    }
    if merging.earlier.steps > 0 {
        output.line(format!("  earlier  than otherwise, for room was short: {}", merging.earlier))?;
    }
    for held_back in &merging.held_back {
        output.line(format!("  kept     {held_back}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_short_below_a_fifth_of_what_entries_may_take() {
        let room = |free| Room::new(103, free, 3.min(free), 64 << 10);
        assert!(!room(103).is_low() && room(103).warning().is_none());
        assert!(!room(23).is_low() && room(22).is_low() && !room(23).is_ample() && room(28).is_ample());
        assert!(room(0).is_low() && room(0).warning().unwrap().contains("0 of"));
        assert_eq!((room(23).free_segments, room(23).free_bytes), (20, 20 * (64 << 10)));
    }
}
