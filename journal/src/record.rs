//! Records on their way into the journal and out of it.

use layout::entry::{EntryHeader, Kind, Updated};

/// A record as it came from a port's ring: the header and the payload, which may lie in two parts
/// where it ran over the ring's end.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The header as it came.
    pub header: EntryHeader,
    /// The payload; the second part is empty where it lies in one piece.
    pub payload: [&'a [u8]; 2],
}

impl<'a> Record<'a> {
    /// A record whose payload lies in one piece.
    pub fn new(header: EntryHeader, payload: &'a [u8]) -> Self {
        Self { header, payload: [payload, &[]] }
    }
}

/// A record that owns its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedRecord {
    /// The header as it came.
    pub header: EntryHeader,
    /// The payload.
    pub payload: Vec<u8>,
}

impl OwnedRecord {
    /// Borrows it.
    pub fn as_record(&self) -> Record<'_> {
        Record::new(self.header, &self.payload)
    }
}

/// State of a port's delivery, which goes into the journal with every batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Delivered {
    /// Port.
    pub port: u8,
    /// Delivered watermark: nothing of the port at or below this stamp is still to come.
    pub timestamp: u64,
}

/// Does a record of this kind take an order number?
///
/// Every write request does, and what was read back from primary. Completions, watermarks, gaps and
/// markers don't: they lie between.
pub const fn takes_order(kind: Kind) -> bool {
    matches!(kind, Kind::After | Kind::Before | Kind::Both | Kind::Resync)
}

/// Where a record lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// Byte offset of the batch.
    pub batch: u64,
    /// Byte offset of the descriptor.
    pub descriptor: u64,
    /// Byte offset of the payload.
    pub payload: u64,
    /// Byte offset of the payload's first block CRC; zero: the descriptor's CRC is the only one.
    pub block_crcs: u64,
}

/// A record of the journal, without its payload: see [`crate::JournalReader::payload`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    /// The header as it came from the port.
    pub header: EntryHeader,
    /// What it is.
    pub kind: Kind,
    /// Its order number, if it takes one ([`takes_order`]).
    pub order: Option<u64>,
    /// The session that it was written in.
    pub session: u64,
    /// Where it lies.
    pub location: Location,
}

/// An entry joined with its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The record as it was delivered, with status pending.
    pub record: StoredRecord,
    /// Its order number.
    pub order: u64,
    /// What is known of primary storage, from all that the journal holds.
    pub updated: Updated,
    /// An answer came after the status had been declared unknown.
    pub late: bool,
}
