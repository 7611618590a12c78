//! What merging would do next, for people: nothing is changed.

use super::due::due;
use super::final_watermark::final_watermark;
use super::give_up::{give_up, GiveUp};
use super::pass::{pass, Grid, Limits};
use super::step::{limits, named_moments, plan, segments_given_up};
use super::MergeOptions;
use crate::error::Error;
use crate::reader::JournalReader;
use crate::schedule::Schedule;

/// A part of the history that is due.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preview {
    /// The level that it is in; 0: every write.
    pub source: usize,
    /// Into windows of this length, ns; `None`: it is given up.
    pub window: Option<u64>,
    /// Everything stamped at or below this.
    pub until: u64,
    /// Windows that there will be, and entries and bytes that go into them.
    pub windows: u64,
    /// See `windows`; of what is given up, orders.
    pub entries: u64,
    /// See `windows`.
    pub bytes: u64,
    /// Segments that the next step frees, and that it writes at most.
    pub frees: u64,
    /// See `frees`.
    pub writes: u64,
    /// Why it has to stay.
    pub held_back: Vec<String>,
}

impl Preview {
    /// Can it be done, all or a part of it?
    pub fn can_be_done(&self) -> bool {
        self.entries > 0
    }

    /// Can it be done, and is there more room afterwards?
    pub fn frees_room(&self) -> bool {
        self.can_be_done() && self.frees > self.writes
    }
}

/// Everything that is due under a schedule, the journal's or another, the oldest first. What an earlier part's merging changes isn't foreseen: after a step
/// the rest may be due otherwise.
pub fn preview(
    reader: &JournalReader,
    schedule: &Schedule,
    options: &MergeOptions,
) -> Result<Vec<Preview>, Error> {
    let settled = final_watermark(reader)?;
    let cuts = named_moments(reader.tables());
    let mut all = Vec::new();
    for due in due(reader, schedule, options.short, settled) {
        let mut part = Preview { source: due.source, until: due.until, ..Preview::default() };
        if due.target.is_none() {
            let whatever = MergeOptions { freeing_only: false, ..options.clone() };
            let begins = reader.head().history_begins().0;
            match give_up(reader, &due, &whatever, &mut part.held_back)? {
                GiveUp::Nothing => {}
                GiveUp::Roll((order, stamp)) => {
                    part.entries = order.saturating_sub(begins);
                    part.frees = segments_given_up(reader, due.source, stamp, order)?.1.len() as u64;
                }
                GiveUp::Change(merged, _) => {
                    (part.entries, part.frees) = (merged.given_up, merged.segments_freed);
                }
            }
            if part.entries > 0 || !part.held_back.is_empty() {
                all.push(part);
            }
            continue;
        }
        part.window = Some(due.window);
        let grid = Grid { length: due.window, cuts: &cuts };
        let everything = Limits { until: due.until, bytes: u64::MAX, entries: u64::MAX };
        let taken = pass(reader, due.source, &grid, &everything)?;
        if taken.windows.is_empty() {
            continue;
        }
        (part.windows, part.entries, part.bytes) = (taken.windows.len() as u64, taken.entries, taken.bytes);
        // As far as a step would get, for that is what decides whether it is done.
        if let Some(plan) = plan(reader, &due, &limits(&due, room(reader)), false)? {
            (part.frees, part.writes) = (plan.freed.len() as u64, plan.needed);
        }
        all.push(part);
    }
    Ok(all)
}

/// What an owner would have free for a step.
fn room(reader: &JournalReader) -> u64 {
    let (summary, geometry) = (reader.summary(), &reader.head().geometry);
    let others = geometry.reserved_completions + geometry.reserved_rollback;
    let free = summary.segments.saturating_sub(summary.segments_used).saturating_sub(others);
    u64::from(free) * reader.segment_bytes()
}
