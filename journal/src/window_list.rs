//! The windows of the merged portions, one by one: what became of the writes in them, and who was complete (claim 15).

use crate::batch::Batch;
use crate::error::Error;
use crate::history::{self, PartSource};
use crate::reader::JournalReader;
use crate::record::StoredRecord;
use layout::entry::Kind;
use layout::journal_file::{port_flags, MergedWindow, PortState};
use zerocopy::FromBytes;

/// A merged window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedWindow {
    /// Which level of merging it belongs to, from 1 on.
    pub level: usize,
    /// How long windows of that level are, ns. Named moments cut them shorter.
    pub length: u64,
    /// Stamp behind which it begins, and that of its end.
    pub from: u64,
    /// See `from`.
    pub to: u64,
    /// First and last order in it: just after the last one is a moment.
    pub first_order: u64,
    /// See `first_order`.
    pub last_order: u64,
    /// Stamps of those two entries.
    pub first_timestamp: u64,
    /// See `first_timestamp`.
    pub last_timestamp: u64,
    /// Merged entries that were made of them.
    pub entries: u64,
    /// Bytes of their images.
    pub bytes: u64,
    /// By port: is what it wrote complete from the window's beginning to its end?
    pub ports: Vec<(u8, bool)>,
}

/// See [`JournalReader::windows`].
pub struct ListedWindows<'a> {
    reader: &'a JournalReader,
    sources: std::vec::IntoIter<PartSource>,
    batches: Option<Box<dyn Iterator<Item = Result<Batch, Error>> + 'a>>,
    /// What is no longer part of the segment that is being read.
    after: u64,
    level: usize,
    open: Option<ListedWindow>,
    failed: bool,
}

impl JournalReader {
    /// The windows of the merged portions, the oldest first. Reads the heads of their batches.
    pub fn windows(&self) -> Result<ListedWindows<'_>, Error> {
        let merged: Vec<PartSource> =
            self.sources()?.into_iter().filter(|source| source.portion > 0).collect();
        Ok(ListedWindows {
            reader: self,
            sources: merged.into_iter(),
            batches: None,
            after: 0,
            level: 0,
            open: None,
            failed: false,
        })
    }
}

impl Iterator for ListedWindows<'_> {
    type Item = Result<ListedWindow, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        match self.advance() {
            Ok(window) => window.map(Ok),
            Err(error) => {
                self.failed = true;
                Some(Err(error))
            }
        }
    }
}

impl ListedWindows<'_> {
    fn advance(&mut self) -> Result<Option<ListedWindow>, Error> {
        loop {
            let Some(batches) = &mut self.batches else {
                let Some(source) = self.sources.next() else { return Ok(self.open.take()) };
                (self.after, self.level) = (source.after_timestamp(), source.portion);
                self.batches = Some(Box::new(history::merged_batches(self.reader, &source)?));
                continue;
            };
            match batches.next() {
                None => self.batches = None,
                // A batch holds records of one window: at most one ends where it begins.
                Some(batch) => {
                    if let Some(ended) = self.take(&batch?)? {
                        return Ok(Some(ended));
                    }
                }
            }
        }
    }

    /// The window before, if another one begins in the batch.
    fn take(&mut self, batch: &Batch) -> Result<Option<ListedWindow>, Error> {
        let mut ended = None;
        for record in batch.records() {
            if record.header.timestamp.get() <= self.after {
                continue;
            }
            match (record.kind, &mut self.open) {
                (Kind::Merged, _) => {
                    let begun = self.begin(&record, &batch.ports)?;
                    ended = self.open.replace(begun).or(ended);
                }
                (Kind::Gap | Kind::Marker | Kind::Completion, _) | (_, None) => {}
                (_, Some(open)) => {
                    open.entries += 1;
                    open.bytes += u64::from(record.header.payload_bytes.get());
                }
            }
        }
        Ok(ended)
    }

    fn begin(&self, record: &StoredRecord, ports: &[PortState]) -> Result<ListedWindow, Error> {
        let payload = self.reader.payload(record)?;
        let (contents, _) = MergedWindow::read_from_prefix(&payload).map_err(|_| {
            let what = "the record of a merged window is too short";
            Error::corrupt(&self.reader.file_name(), record.location.payload, what)
        })?;
        Ok(ListedWindow {
            level: self.level,
            length: self.reader.head().superblock.portions[self.level].window.get(),
            from: record.header.sequence.get(),
            to: record.header.timestamp.get(),
            first_order: contents.first_order.get(),
            last_order: record.header.number.get(),
            first_timestamp: contents.first_timestamp.get(),
            last_timestamp: contents.last_timestamp.get(),
            entries: 0,
            bytes: 0,
            ports: ports.iter().map(|state| (state.port, state.flags & port_flags::VALID != 0)).collect(),
        })
    }
}
