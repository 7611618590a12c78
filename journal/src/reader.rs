//! Reading a journal, beside its owner if there is one.

use crate::batch::{block_crc_count, check_payload};
use crate::error::Error;
use crate::head::Head;
use crate::open::tail_segment;
use crate::pin;
use crate::record::{takes_order, Entry, StoredRecord};
use crate::storage::{self, FileStorage, Storage};
use crate::tables::Tables;
use crate::walk::{Directory, Position, Step, Walk};
use crate::writer::Chain;
use layout::entry::{flags, Kind, Updated};
use layout::journal_file::{batch_flags, Note};
use std::collections::{HashMap, HashSet, VecDeque};
use std::path::Path;
use std::sync::Arc;

/// How often a reader looks again while the owner changes the journal under it: it does so seconds apart.
const ATTEMPTS: u32 = 16;
/// How often a reader looks at what it takes for damage.
const LOOKS: u32 = 4;

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
    /// Damage that was met on the way to the end: the end is that of what can be read.
    pub damage: Option<String>,
}

/// A journal, open for reading: everything up to the end that it had when it was opened.
pub struct JournalReader {
    storage: Arc<dyn Storage>,
    head: Head,
    directory: Directory,
    summary: Summary,
    /// The last batch; `None`: it is damaged, and everything that can be found belongs to the journal.
    last_batch: Option<u64>,
    end: Position,
    /// Of each port: its arbiter, and its delivered watermark at the end.
    ports: Vec<(u8, u16, u64)>,
}

impl JournalReader {
    /// Opens the journal at `path`.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::open_on(Arc::new(FileStorage::open_read_only(path)?))
    }

    /// Opens the journal in `storage`.
    pub fn open_on(storage: Arc<dyn Storage>) -> Result<Self, Error> {
        // Segments are looked at one after the other, while an owner takes the next ones into use anywhere in the
        // file: a hole, or a header that is half written, is damage only if it stays.
        for _ in 1..LOOKS {
            let reader = Self::look(&storage)?;
            if reader.summary.damage.is_none() {
                return Ok(reader);
            }
        }
        Self::look(&storage)
    }

    fn look(storage: &Arc<dyn Storage>) -> Result<Self, Error> {
        let storage = Arc::clone(storage);
        let (head, directory) = Self::snapshot(&*storage)?;
        let mut walk = Walk::new(
            &*storage,
            &head,
            &directory,
            tail_segment(&head, &directory),
            head.note.batch.get() + 1,
        );
        let mut chain = Chain::default();
        let merged: usize = directory.merged.iter().map(Vec::len).sum();
        let (mut ended, mut torn, mut damage) = (true, None, None);
        let mut used = directory.places.len() + merged;
        while let Some(step) = walk.step()? {
            match step {
                Step::Segment(_) => {}
                Step::Batch(batch, _) => {
                    chain.follow(batch.offset, &batch.header, &batch.ports);
                    ended = batch.header.flags.get() & batch_flags::SESSION_END != 0;
                }
                Step::Damage(error) => damage = damage.or(Some(error.to_string())),
                Step::End(ending) => {
                    used -= ending.dropped.len();
                    torn = ending.torn;
                }
            }
        }
        let end = walk.position();
        let last_batch = damage.is_none().then_some(chain.batch);
        let mut damaged_copies = head.damaged_copies.clone();
        damaged_copies
            .extend(head.note_damaged.iter().map(|(offset, what)| format!("{what} (offset {offset})")));
        let summary = Summary {
            journal_id: head.journal_id(),
            created: head.superblock.created.get(),
            bytes: head.geometry.file_bytes,
            segment_bytes: head.geometry.segment_bytes,
            segments: head.geometry.segment_count,
            segments_used: used as u32,
            session: chain.session,
            ended,
            order: chain.order,
            timestamp: chain.timestamp,
            delivered: chain.ports.values().map(|state| state.delivered.get()).min().unwrap_or(0),
            durable_order: head.note.order.get(),
            torn,
            damaged_copies,
            damage,
        };
        let ports = chain
            .ports
            .values()
            .map(|state| (state.port, state.arbiter.get(), state.delivered.get()))
            .collect();
        Ok(Self { storage, head, directory, summary, last_batch, end, ports })
    }

    /// What the journal consists of, pinned: merging by its owner takes nothing of it away any more.
    fn snapshot(storage: &dyn Storage) -> Result<(Head, Directory), Error> {
        let mut attempts = 0;
        loop {
            // The notes are read first: what they claim was there before anything that is read later.
            let head = Head::load(storage)?;
            let directory = Directory::load(storage, &head)?;
            pin::all(storage, &head, &directory)?;
            // Only what the owner gave up before the pins were there can be gone, and then the superblock says so.
            attempts += 1;
            if head.is_current(storage)? || attempts == ATTEMPTS {
                return Ok((head, directory));
            }
        }
    }

    /// What it says of itself.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    pub(crate) fn storage(&self) -> &dyn Storage {
        &*self.storage
    }

    pub(crate) fn shared_storage(&self) -> Arc<dyn Storage> {
        Arc::clone(&self.storage)
    }

    pub(crate) fn head(&self) -> &Head {
        &self.head
    }

    pub(crate) fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Where the reader found the end.
    pub(crate) fn end_position(&self) -> Position {
        self.end
    }

    /// Where the segment begins in which the reader found the end.
    pub(crate) fn last_segment_offset(&self) -> u64 {
        self.directory
            .places
            .get(self.end.at)
            .map_or(self.end.offset, |place| self.segment_offset(place.slot))
    }

    /// Of each port: its arbiter, and its delivered watermark, ns.
    pub fn port_states(&self) -> impl Iterator<Item = (u8, u16, u64)> + '_ {
        self.ports.iter().copied()
    }

    /// Segments that entries may not take.
    pub fn reserved_segments(&self) -> u32 {
        let geometry = &self.head.geometry;
        geometry.reserved_completions + geometry.reserved_merge + geometry.reserved_rollback
    }

    /// What has been noted as durable since.
    pub(crate) fn take_note(&mut self, note: Note, damaged: Option<(u64, String)>) {
        self.head.note = note;
        self.head.note_damaged = damaged;
    }

    /// Takes a newer directory, in which `position` is to mean the same place.
    pub(crate) fn replace_directory(
        &mut self,
        directory: Directory,
        position: &mut Position,
    ) -> Result<(), Error> {
        let here = self.directory.places.get(position.at).map(|place| place.sequence);
        let found = directory.places.iter().position(|place| Some(place.sequence) == here);
        match (here, found) {
            (Some(_), Some(at)) => position.at = at,
            // There was no segment yet.
            (None, _) if position.expected == 0 => {}
            _ => {
                let what = "the segment that was being read is gone: the journal has given it up";
                return Err(Error::corrupt(self.storage.name(), position.offset, what));
            }
        }
        self.directory = directory;
        Ok(())
    }

    /// Where the segment in a slot begins.
    pub(crate) fn segment_offset(&self, slot: u32) -> u64 {
        self.head.geometry.segment_offset(slot)
    }

    pub(crate) fn segment_bytes(&self) -> u64 {
        self.head.geometry.segment_bytes
    }

    /// Was that batch written after this reader had found the end?
    pub(crate) fn is_behind_end(&self, batch: u64) -> bool {
        self.last_batch.is_some_and(|last| batch > last)
    }

    /// The arbiter that numbers a port's entries.
    pub(crate) fn arbiter(&self, port: u8) -> u16 {
        self.head.tables.ports.iter().find(|known| known.port == port).map_or(0, |known| known.arbiter)
    }

    /// The file's name, for messages.
    pub(crate) fn file_name(&self) -> String {
        self.storage.name().to_owned()
    }

    /// Volumes, ports and sources.
    pub fn tables(&self) -> &Tables {
        &self.head.tables
    }

    /// Every record of the received portion in journal order: entries, completions, gaps, markers.
    ///
    /// Where a batch is damaged there is one error, and then what follows it.
    pub fn records(&self) -> Records<'_> {
        let walk = Walk::new(&*self.storage, &self.head, &self.directory, 0, u64::MAX);
        let received = &self.head.superblock.portions[0];
        Records {
            walk,
            begins: (received.from_order.get(), received.after_timestamp.get()),
            last_batch: self.last_batch,
            ready: VecDeque::new(),
            finished: self.last_batch == Some(0),
        }
    }

    /// Every entry in journal order, joined with its completion. Reads all descriptors once before
    /// the first; damage that it meets there is reported where the iteration comes to it.
    pub fn entries(&self) -> Result<Entries<'_>, Error> {
        Ok(Entries { statuses: Statuses::read(self)?, records: self.records() })
    }

    /// Reads a record's payload and checks it.
    pub fn payload(&self, record: &StoredRecord) -> Result<Vec<u8>, Error> {
        let length = record.header.payload_bytes.get() as usize;
        let mut payload = vec![0; length];
        storage::read_exact(&*self.storage, &mut payload, record.location.payload)?;
        let mut list = vec![0; 4 * block_crc_count(record.kind, length)];
        if !list.is_empty() {
            storage::read_exact(&*self.storage, &mut list, record.location.block_crcs)?;
        }
        let list: Vec<u32> =
            list.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        check_payload(record, &payload, &list)
            .map_err(|what| Error::corrupt(self.storage.name(), record.location.payload, what))?;
        Ok(payload)
    }
}

/// See [`JournalReader::records`].
pub struct Records<'a> {
    walk: Walk<'a>,
    /// First order, and the stamp behind which the received portion begins.
    begins: (u64, u64),
    last_batch: Option<u64>,
    ready: VecDeque<StoredRecord>,
    finished: bool,
}

impl Iterator for Records<'_> {
    type Item = Result<StoredRecord, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(record) = self.ready.pop_front() {
                return Some(Ok(record));
            }
            if self.finished {
                return None;
            }
            match self.walk.step() {
                Ok(Some(Step::Batch(batch, _))) => {
                    self.finished = self.last_batch.is_some_and(|last| batch.header.sequence.get() >= last);
                    let (from, after) = self.begins;
                    // What has been merged is no longer part of the received portion.
                    let is_part = |record: &StoredRecord| match record.order {
                        Some(order) => order >= from,
                        None => record.kind == Kind::Completion || record.header.timestamp.get() > after,
                    };
                    self.ready.extend(batch.records().into_iter().filter(is_part));
                }
                Ok(Some(Step::Damage(error))) => return Some(Err(error)),
                Ok(Some(Step::Segment(_))) => {}
                Ok(Some(Step::End(_)) | None) => self.finished = true,
                Err(error) => {
                    // Not damage but a failing read: going on would only repeat it.
                    self.finished = true;
                    return Some(Err(error));
                }
            }
        }
    }
}

/// What is known of the entries whose status is not simply "updated".
///
/// Keyed by arbiter and number. It grows with the entries that are refused, cancelled, unknown or
/// unanswered, 24 bytes or so each; those are few, or the volume is in trouble.
pub(crate) struct Statuses {
    pending: HashSet<(u16, u64)>,
    settled: HashMap<(u16, u64), (Updated, bool)>,
}

impl Statuses {
    fn read(reader: &JournalReader) -> Result<Self, Error> {
        let mut statuses = Self { pending: HashSet::new(), settled: HashMap::new() };
        let mut records = reader.records();
        while let Some(record) = records.next() {
            match record {
                Ok(record) => statuses.take(&record, records.walk.arbiter(record.header.port)),
                Err(error) if error.is_corruption() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(statuses)
    }

    fn take(&mut self, record: &StoredRecord, arbiter: u16) {
        let key = (arbiter, record.header.number.get());
        let updated = record.header.updated().unwrap_or(Updated::Unknown);
        if takes_order(record.kind) {
            match updated {
                Updated::Updated => {}
                // What was read back from primary is what primary has.
                Updated::Pending if record.kind == Kind::Resync => {}
                Updated::Pending => {
                    self.pending.insert(key);
                }
                other => {
                    self.settled.insert(key, (other, false));
                }
            }
        } else if record.kind == Kind::Completion {
            let known = self.pending.remove(&key);
            if record.header.flags.get() & flags::LATE != 0 {
                // The target may have executed it at any time until now: it stays unknown.
                self.settled.insert(key, (Updated::Unknown, true));
            } else if known && updated != Updated::Updated {
                self.settled.insert(key, (updated, false));
            }
        }
    }

    fn of(&self, key: (u16, u64)) -> (Updated, bool) {
        if self.pending.contains(&key) {
            return (Updated::Pending, false);
        }
        self.settled.get(&key).copied().unwrap_or((Updated::Updated, false))
    }
}

/// See [`JournalReader::entries`].
pub struct Entries<'a> {
    statuses: Statuses,
    records: Records<'a>,
}

impl Entries<'_> {
    /// The entry of a record, if it is one.
    fn join(&self, reader_arbiter: u16, record: StoredRecord) -> Option<Entry> {
        let order = record.order?;
        let (updated, late) = self.statuses.of((reader_arbiter, record.header.number.get()));
        Some(Entry { record, order, updated, late })
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<Entry, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.records.next()? {
                Ok(record) => {
                    let arbiter = self.records.walk.arbiter(record.header.port);
                    if let Some(entry) = self.join(arbiter, record) {
                        return Some(Ok(entry));
                    }
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
