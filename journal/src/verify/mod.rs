//! Proves a journal file from nothing but itself: reads everything, trusts nothing.
//!
//! Written against `docs/formats.md`; shares nothing with the writer but [`layout`] (and the trait by
//! which bytes are read).

mod batch;
mod chain;
mod front;
mod history;
mod image;
mod merged;
mod portions;
mod seal;
mod slots;
mod source;
mod state;
mod tables;
mod window;

use crate::error::Error;
use crate::storage::{FileStorage, Storage};
use batch::Parts;
pub use image::{compare, image, image_on, ImageReport, Naive, Source as SectorSource};
use layout::journal_file::BatchHeader;
use std::path::Path;

/// Where and how a file is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Byte offset of what is broken.
    pub offset: u64,
    /// What, and how that shows.
    pub what: String,
}

/// What was checked, and what was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Everything that is broken, in order of discovery; empty: the file is proved. At most
    /// [`MAXIMUM_FINDINGS`].
    pub findings: Vec<Finding>,
    /// Findings beyond those.
    pub more_findings: u64,
    /// Segments in use.
    pub segments: u64,
    /// Of those, sealed.
    pub sealed: u64,
    /// Batches.
    pub batches: u64,
    /// Sessions.
    pub sessions: u64,
    /// Sessions that did not end in order (the last one aside).
    pub unclean_sessions: u64,
    /// Entries that are kept one by one.
    pub entries: u64,
    /// Completions.
    pub completions: u64,
    /// Gaps.
    pub gaps: u64,
    /// Markers.
    pub markers: u64,
    /// Windows whose entries were merged.
    pub windows: u64,
    /// Merged entries in them.
    pub merged_entries: u64,
    /// Bytes of their payload.
    pub merged_bytes: u64,
    /// The first order that is kept as an entry of its own, or the one that comes next.
    pub first_order: u64,
    /// Moments before this stamp no longer exist; 0: all do, from before the first entry on.
    pub history_from: u64,
    /// Bytes of payload whose CRCs were checked.
    pub payload_bytes: u64,
    /// Entries without a completion.
    pub pending: u64,
    /// Last order number; 0: none.
    pub order: u64,
    /// Last order number that was reported durable.
    pub durable_order: u64,
    /// Did the last session end in order?
    pub ended: bool,
    /// Where the journal ends in a batch that was being written and was never reported durable:
    /// offset and what is there. This is no damage; the next owner cuts it off.
    pub torn_tail: Option<Finding>,
    /// Bytes in use, every one of them checked.
    pub bytes_checked: u64,
}

impl Report {
    /// Notes that something at `offset` is broken.
    fn finding(&mut self, offset: u64, what: impl Into<String>) {
        if self.findings.len() < MAXIMUM_FINDINGS {
            self.findings.push(Finding { offset, what: what.into() });
        } else {
            self.more_findings += 1;
        }
    }

    /// Nothing is broken.
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }
}

/// Findings that a report holds at most.
pub const MAXIMUM_FINDINGS: usize = 1000;

/// Verifies the journal at `path`. `progress` is told bytes done and in all.
///
/// An error is what kept it from being read at all (no such file, an I/O error, not a journal, an
/// unknown version, truncated); damage stands in the report. Beside an owner who is writing, what
/// is being written at that moment may look like a torn tail.
pub fn verify(path: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Report, Error> {
    verify_on(&FileStorage::open_read_only(path)?, progress)
}

/// Verifies the journal in `storage`.
pub fn verify_on(storage: &dyn Storage, progress: &mut dyn FnMut(u64, u64)) -> Result<Report, Error> {
    prove(storage, progress, &mut |_, _, _| {})
}

/// Hears of every batch that is whole, from the oldest portion to the received one: its offset, header and parts.
type Visit<'a> = dyn FnMut(u64, &BatchHeader, &Parts) + 'a;

fn prove(
    storage: &dyn Storage,
    progress: &mut dyn FnMut(u64, u64),
    visit: &mut Visit<'_>,
) -> Result<Report, Error> {
    let mut report = Report::default();
    let source = source::Source::new(storage);
    let Some(front) = front::check(&source, &mut report)? else {
        return Ok(report);
    };
    let mut segments = slots::find(&source, &front, &mut report)?;
    let total = segments.iter().map(|portion| portion.len() as u64).sum::<u64>() * front.segment_bytes();
    let mut progress = |done: u64| progress(done.min(total), total);
    let mut history = history::History::default();
    for (index, _) in portions::merged_oldest_first(&front.superblock) {
        let segments = std::mem::take(&mut segments[index]);
        merged::check(&source, &front, index, &segments, &mut history, &mut report, &mut progress, visit)?;
    }
    let received = std::mem::take(&mut segments[0]);
    chain::check(&source, &front, received, &mut history, &mut report, &mut progress, visit)?;
    history.finish(&front, &mut report);
    report.history_from = portions::oldest(&front.superblock).after_timestamp.get();
    Ok(report)
}
