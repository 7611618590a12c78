//! The records that a port's journal holds, byte for byte as the gateware writes them.
//!
//! Fields that a kind doesn't use are zero (`volume` and `source`: [`NO_INDEX`]):
//!
//! | field | after, before, both | completion | watermark | gap |
//! |---|---|---|---|---|
//! | `flags` | clock, stamp, duplicate | clock, stamp, aoe-error, late | clock, stamp | clock, stamp |
//! | `status` | port / pending | port / what the answer says | 0 | 0 |
//! | `number` | its own | its entry's | last given | first after the gap |
//! | `lba`, `sectors`, `volume`, `source` | of the write | none | none | none |
//! | `slot` | scoreboard slot | the entry's | 0 | 0 |
//! | `answer_status`, `answer_error` | 0 | of the answer | 0 | 0 |
//! | payload | the data (both: before, then after) | none | none | [`Gap`] |
//!
//! [`NO_INDEX`]: layout::entry::NO_INDEX

use crate::answer::Answer;
use crate::frame::Write;
use layout::entry::{flags, EntryHeader, ErrorBound, Gap, GapReason, Journaled, Kind, Updated, HEADER_BYTES};
use zerocopy::IntoBytes;

/// The part of a record that its commit decides, whatever the kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Port whose ring the record goes to.
    pub port: u8,
    /// The record's place among the port's records.
    pub sequence: u64,
    /// Stamp, ns.
    pub timestamp: u64,
    /// As [`EntryHeader::number`] says for the kind.
    pub number: u64,
    /// Clock and stamp flags: the bits of [`CLOCK_FLAGS`].
    pub clock_flags: u16,
    /// Bound on the error of the stamp.
    pub clock_error: ErrorBound,
}

/// The flags that come with a stamp.
pub const CLOCK_FLAGS: u16 = flags::CLOCK_LOCKED | flags::CLOCK_HOLDOVER | flags::STAMP_LOGICAL;

/// What an entry says of its write, beside the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted<'a> {
    /// Scoreboard slot.
    pub slot: u8,
    /// Index of the source in its port's table.
    pub source: u16,
    /// A copy of a write that is still unanswered.
    pub duplicate: bool,
    /// The write.
    pub write: &'a Write,
}

/// The record of an admitted write, after-image. `data` are the frame's bytes at `write.payload`.
pub fn after(commit: &Commit, slot: u8, source: u16, duplicate: bool, write: &Write, data: &[u8]) -> Vec<u8> {
    written(Kind::After, commit, &Admitted { slot, source, duplicate, write }, data)
}

/// The record of an admitted write, before-image: `data` are what the location held.
pub fn before(commit: &Commit, admitted: &Admitted<'_>, data: &[u8]) -> Vec<u8> {
    written(Kind::Before, commit, admitted, data)
}

/// The record of an admitted write with both images: what the location held, and what is written.
pub fn both(commit: &Commit, admitted: &Admitted<'_>, before: &[u8], after: &[u8]) -> Vec<u8> {
    assert_eq!(before.len(), after.len(), "two images of one location");
    written(Kind::Both, commit, admitted, &[before, after].concat())
}

fn written(kind: Kind, commit: &Commit, admitted: &Admitted<'_>, payload: &[u8]) -> Vec<u8> {
    let write = admitted.write;
    let images = if kind == Kind::Both { 2 } else { 1 };
    assert_eq!(payload.len(), images * write.payload.len(), "data are not the write's");
    let mut header = committed(kind, commit);
    if admitted.duplicate {
        header.flags = (header.flags.get() | flags::DUPLICATE).into();
    }
    header.set_status(Journaled::Port, Updated::Pending);
    header.set_lba(write.lba);
    header.sectors = write.sectors.into();
    header.slot = admitted.slot;
    header.volume = write.volume.into();
    header.source = admitted.source.into();
    record(header, payload)
}

/// The record of a target's answer to the entry `commit.number`, which stands in scoreboard slot
/// `slot`; `late` when its status had been declared unknown before.
pub fn completion(commit: &Commit, slot: u8, answer: &Answer, late: bool) -> Vec<u8> {
    let mut header = committed(Kind::Completion, commit);
    let aoe_error = if answer.aoe_error { flags::AOE_ERROR } else { 0 };
    let late = if late { flags::LATE } else { 0 };
    header.flags = (header.flags.get() | aoe_error | late).into();
    header.set_status(Journaled::Port, answer.updated());
    header.slot = slot;
    header.answer_status = answer.ata_status;
    header.answer_error = answer.error;
    record(header, &[])
}

/// The record that declares the entry `commit.number` unknown, because no answer came in time.
pub fn unanswered(commit: &Commit, slot: u8) -> Vec<u8> {
    let mut header = committed(Kind::Completion, commit);
    header.set_status(Journaled::Port, Updated::Unknown);
    header.slot = slot;
    record(header, &[])
}

/// The record that the entry `commit.number` was journaled, but never forwarded.
pub fn cancelled(commit: &Commit, slot: u8) -> Vec<u8> {
    let mut header = committed(Kind::Completion, commit);
    header.set_status(Journaled::Port, Updated::Cancelled);
    header.slot = slot;
    record(header, &[])
}

/// A watermark: nothing of the port at or below `commit.timestamp` is still to come.
pub fn watermark(commit: &Commit) -> Vec<u8> {
    record(committed(Kind::Watermark, commit), &[])
}

/// A gap: entries of the port after `from_timestamp` and `from_number`, up to the commit's stamp and
/// below its number, are missing.
pub fn gap(commit: &Commit, from_timestamp: u64, from_number: u64, reason: GapReason) -> Vec<u8> {
    let payload = Gap {
        from_timestamp: from_timestamp.into(),
        from_number: from_number.into(),
        reason: (reason as u32).into(),
        reserved: 0.into(),
    };
    record(committed(Kind::Gap, commit), payload.as_bytes())
}

fn committed(kind: Kind, commit: &Commit) -> EntryHeader {
    assert_eq!(commit.clock_flags & !CLOCK_FLAGS, 0, "flags that don't come with a stamp");
    let mut header = EntryHeader::new(kind);
    header.port = commit.port;
    header.sequence = commit.sequence.into();
    header.timestamp = commit.timestamp.into();
    header.number = commit.number.into();
    header.flags = commit.clock_flags.into();
    header.clock_error = commit.clock_error.0.into();
    header
}

/// Seals header and payload and pads them as a ring holds them.
fn record(mut header: EntryHeader, payload: &[u8]) -> Vec<u8> {
    header.seal(payload);
    let mut bytes = Vec::with_capacity(header.record_bytes());
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(payload);
    bytes.resize(header.record_bytes(), 0);
    assert_eq!(bytes.len() % HEADER_BYTES, 0);
    bytes
}
