//! Reading a journal, beside its owner if there is one.

use crate::error::Error;
use crate::record::{Entry, StoredRecord};
use crate::storage::Storage;
use crate::tables::Tables;
use std::path::Path;
use std::sync::Arc;

/// The end of a journal that was being written when the writer stopped. Nothing of it had been
/// reported durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// Byte offset at which the journal ends.
    pub offset: u64,
    /// Bytes from there that belong to batches that are not whole, or follow one that isn't.
    pub bytes: u64,
    /// Sequence of the batch that is missing.
    pub batch: u64,
}

/// What a journal says of itself.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Identity.
    pub journal_id: [u8; 16],
    /// When it was made, ns since the Unix epoch.
    pub created: u64,
    /// Bytes that it uses.
    pub bytes: u64,
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Segments.
    pub segments: u32,
    /// Segments in use.
    pub segments_used: u32,
    /// The last session.
    pub session: u64,
    /// Did it end in order? A session that still runs hasn't.
    pub ended: bool,
    /// Last order number; 0: none.
    pub order: u64,
    /// Largest stamp, ns.
    pub timestamp: u64,
    /// Smallest delivered watermark of the ports, ns: nothing at or below is still to come.
    pub delivered: u64,
    /// Last order number that was reported durable.
    pub durable_order: u64,
    /// A torn tail, which the next owner will cut off.
    pub torn: Option<TornTail>,
    /// Damaged copies of superblock or tables, and damaged durability notes.
    pub damaged_copies: Vec<String>,
}

/// A journal, open for reading: everything up to the end that it had when it was opened.
pub struct JournalReader {
    _storage: Arc<dyn Storage>,
}

impl JournalReader {
    /// Opens the journal at `path`.
    pub fn open(_path: &Path) -> Result<Self, Error> {
        todo!()
    }

    /// Opens the journal in `storage`.
    pub fn open_on(_storage: Arc<dyn Storage>) -> Result<Self, Error> {
        todo!()
    }

    /// What it says of itself.
    pub fn summary(&self) -> &Summary {
        todo!()
    }

    /// Volumes, ports and sources.
    pub fn tables(&self) -> &Tables {
        todo!()
    }

    /// Every record in journal order: entries, completions, gaps, markers.
    ///
    /// Where a batch is damaged there is one error, and then what follows it.
    pub fn records(&self) -> Records<'_> {
        todo!()
    }

    /// Every entry in journal order, joined with its completion. Reads all descriptors once before
    /// the first.
    pub fn entries(&self) -> Result<Entries<'_>, Error> {
        todo!()
    }

    /// Reads a record's payload and checks it.
    pub fn payload(&self, _record: &StoredRecord) -> Result<Vec<u8>, Error> {
        todo!()
    }
}

/// See [`JournalReader::records`].
pub struct Records<'a> {
    _reader: &'a JournalReader,
}

impl Iterator for Records<'_> {
    type Item = Result<StoredRecord, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        todo!()
    }
}

/// See [`JournalReader::entries`].
pub struct Entries<'a> {
    _records: Records<'a>,
}

impl Iterator for Entries<'_> {
    type Item = Result<Entry, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        todo!()
    }
}
