//! What happened to a volume: every entry of the history, from the segments' indexes where they are sealed, from the
//! batches' descriptors where they are not.
//!
//! | file | job |
//! |---|---|
//! | `sources` | which segments hold it |
//! | `part` | what one of them has |
//! | `gather` | part by part: the writes, and what became of them; `late`: what late answers leave doubtful |
//! | `unsettled` | entries that awaited their answers for long |

mod gather;
mod part;
mod sources;
mod unsettled;

pub(crate) use part::{merged_batches, Part, PartSource};
pub use sources::SegmentSpan;

use crate::error::Error;
use crate::moment::Moment;
use crate::payloads::Payloads;
use crate::reader::JournalReader;
use crate::sizes::Sizes;
use crate::tables::Volume;
use gather::Gather;
use layout::entry::Rollback;
use layout::journal_file::PAYLOAD_ALIGN;

/// A write to the volume, small enough that ten million of them fit in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Write {
    /// First sector << 16 | sectors.
    extent: u64,
    /// Order << 8 | bits of [`mark`].
    rank: u64,
    /// Port << 56 | file offset of the payload in units of [`PAYLOAD_ALIGN`].
    payload: u64,
}

const _: () = assert!(size_of::<Write>() == 24);

/// Bits that a [`Write`] carries.
pub(crate) mod mark {
    /// Nobody knows whether the target executed it.
    pub const DOUBTFUL: u8 = 1 << 0;
    /// The image is all zeroes, and has no payload.
    pub const ZERO: u8 = 1 << 1;
    /// The image is the second one of the payload.
    pub const SECOND: u8 = 1 << 2;
    /// It was not executed.
    pub const DROPPED: u8 = 1 << 3;
    /// It doesn't hold the image that is wanted.
    pub const NO_IMAGE: u8 = 1 << 4;
    /// With [`super::Wanted::Any`]: a rollback wrote it.
    pub const ROLLBACK: u8 = 1 << 5;
    /// With [`super::Wanted::Each`]: it holds the image before.
    pub const HAS_BEFORE: u8 = 1 << 6;
    /// With [`super::Wanted::Each`]: it holds the image after.
    pub const HAS_AFTER: u8 = 1 << 7;
    /// With [`super::Wanted::Each`]: nothing was written, it was only read back.
    pub const READ_BACK: u8 = SECOND;
}

impl Write {
    pub fn lba(&self) -> u64 {
        self.extent >> 16
    }

    pub fn end(&self) -> u64 {
        self.lba() + (self.extent & 0xFFFF)
    }

    pub fn order(&self) -> u64 {
        self.rank >> 8
    }

    pub fn marks(&self) -> u8 {
        self.rank as u8
    }

    pub fn port(&self) -> u8 {
        (self.payload >> 56) as u8
    }

    /// File offset of the payload.
    pub fn place(&self) -> u64 {
        (self.payload & ((1 << 56) - 1)) * PAYLOAD_ALIGN as u64
    }

    /// A write made up for a test.
    #[cfg(test)]
    pub fn made(lba: u64, sectors: u64, order: u64, marks: u8, port: u8, place: u64) -> Self {
        let payload = u64::from(port) << 56 | place;
        Self { extent: lba << 16 | sectors, rank: order << 8 | u64::from(marks), payload }
    }

    /// The same write with other marks.
    pub fn marked(&self, marks: u8) -> Self {
        Self { rank: self.rank & !0xFF | u64::from(marks), ..*self }
    }

    fn set(&mut self, mark: u8) {
        self.rank |= u64::from(mark);
    }

    fn clear(&mut self, mark: u8) {
        self.rank &= !u64::from(mark);
    }
}

/// Which image of the entries is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    After,
    Before,
    /// None: it matters only that there was a write.
    Any,
    /// Each that there is; the marks say which.
    Each,
}

/// Which entries are wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    /// Those behind this moment.
    pub after: Option<Moment>,
    /// Those at or before this one.
    pub until: Moment,
    pub wanted: Wanted,
}

/// Entries of a port that are missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingSpan {
    /// Port.
    pub port: u8,
    /// Stamp up to which everything is there, ns.
    pub from: u64,
    /// Stamp from which on everything is there again, ns.
    pub to: u64,
    /// Why.
    pub reason: String,
    /// Only moments inside aren't known.
    pub bounded: bool,
}

/// Where a rollback begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RollbackMarker {
    pub stamp: u64,
    /// It undoes the rollback before it.
    pub undo: bool,
    /// It came through a port, as writes that nothing tells from others.
    pub through_port: bool,
    pub rollback: Rollback,
}

impl RollbackMarker {
    pub fn begins(&self) -> bool {
        self.rollback.last_order.get() == 0
    }
}

/// What lies between an entry and its late answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LateSpan {
    pub sectors: (u64, u64),
    /// From which entry, zero if nobody knows any more, to which: the last one from before the answer.
    pub orders: (u64, u64),
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// Writes of the span, in no order.
    pub writes: Vec<Write>,
    /// Entries of the volume in the span that were not executed.
    pub skipped: u64,
    /// An entry of the span that was executed and doesn't hold the image that is wanted.
    pub without_image: Option<u64>,
    /// Every gap of the journal.
    pub gaps: Vec<MissingSpan>,
    /// Stamps at which the volume had been compared with primary in full.
    pub resynced: Vec<u64>,
    /// Markers of rollbacks of the volume, in order.
    pub rollbacks: Vec<RollbackMarker>,
    /// Entries that aren't of the span, or that were merged away, of which the span has a late answer: what was there until
    /// then is doubtful, without any write that could be marked.
    pub late: Vec<LateSpan>,
    /// Every size that the volume had.
    pub sizes: Sizes,
    /// Stamp of the first entry of the journal, of any volume, behind `until`.
    pub next: Option<u64>,
    /// The last entry of the journal, of any volume, at or before `until`, and at or before `after`.
    pub until: (u64, u64),
    pub after: (u64, u64),
    /// Stamps of those entries themselves, where `until` and `after` have the end of the window that they are in.
    pub until_written: u64,
    pub after_written: u64,
}

/// Is an entry at or before a moment?
pub(crate) fn reached(moment: Moment, order: u64, timestamp: u64) -> bool {
    match moment {
        Moment::End => true,
        Moment::Order(last) => order <= last,
        Moment::Timestamp(last) => timestamp <= last,
    }
}

/// Reads the history of `volume`. `progress` hears of entries read, and how many there are.
pub(crate) fn read(
    reader: &JournalReader,
    payloads: &Payloads,
    volume: &Volume,
    span: Span,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Found, Error> {
    let mut found = read_each(reader, payloads, std::slice::from_ref(volume), span, progress)?;
    Ok(found.pop().unwrap_or_default())
}

/// Reads the history of several volumes in one go: one [`Found`] for each.
pub(crate) fn read_each(
    reader: &JournalReader,
    payloads: &Payloads,
    volumes: &[Volume],
    span: Span,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<Found>, Error> {
    let mut gather = Gather::new(reader, volumes, span);
    let mut take = |part: Part| {
        gather.part(&part, payloads)?;
        progress(gather.entries, reader.summary().order);
        Ok(())
    };
    let sources = reader.sources()?;
    let (at_once, ahead) = sources.split_at(sources.len().min(LOADED_AT_ONCE));
    at_once.iter().try_for_each(|source| take(source.load(reader)?))?;
    if !ahead.is_empty() {
        std::thread::scope(|scope| {
            let (send, parts) = std::sync::mpsc::sync_channel(PARTS_AHEAD);
            // Ends as soon as nobody wants more.
            let load =
                move || ahead.iter().map(|source| source.load(reader)).try_for_each(|part| send.send(part));
            scope.spawn(load);
            parts.into_iter().try_for_each(|part| take(part?))
        })?;
    }
    gather.finish(payloads)
}

/// Parts that a thread of their own isn't worth it for.
const LOADED_AT_ONCE: usize = 32;
/// Parts that are loaded before they are asked for: some 10 MiB of rows.
const PARTS_AHEAD: usize = 8;

/// Ranges in order, joined where they touch.
pub(crate) fn disjoint(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for (from, to) in ranges {
        match joined.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => joined.push((from, to)),
        }
    }
    joined
}
