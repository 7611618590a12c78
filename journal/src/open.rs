//! Making a journal, and opening one after whatever happened to it.

use crate::block::{self, Block};
use crate::error::Error;
use crate::gather::Gather;
use crate::geometry::Geometry;
use crate::head::{self, Head};
use crate::pin;
use crate::record_check;
use crate::segment::{header_block, Indexed, OpenSegment};
use crate::storage::{self, FileStorage, Io, Storage};
use crate::tables::Tables;
use crate::walk::{self, Directory, Ending, Place, Step, Walk};
use crate::warm::Warm;
use crate::writer::{arbiter_of, now, Chain, Claim, CreateOptions, Durable, Journal, Opened, PreviousEnd};
use layout::journal_file::{
    batch_flags, magic, previous_end, role, Note, Portion, SegmentHeader, SessionStart, Superblock,
    BLOCK_BYTES, DIGEST_BYTES, NOTE_OFFSETS, PORTIONS, SUPERBLOCK_OFFSETS, TABLES_OFFSET, TAI_UNKNOWN,
};
use std::fs::OpenOptions;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zerocopy::FromZeros;

impl Journal {
    /// Makes a journal at `path`, which must not exist unless it is an empty block device, and opens it.
    ///
    /// The whole size is allocated; the name appears only once the journal is complete.
    pub fn create(path: &Path, options: &CreateOptions) -> Result<Self, Error> {
        Self::create_with(path, options, Io::default())
    }

    /// [`Journal::create`], and says how the file is written.
    pub fn create_with(path: &Path, options: &CreateOptions, io: Io) -> Result<Self, Error> {
        let name = path.display().to_string();
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.file_type().is_block_device() => {
                let storage = FileStorage::open_owned_with(path, io)?;
                check_device_is_blank(&storage)?;
                return Self::create_on(Arc::new(storage), options);
            }
            Ok(_) => return Err(Error::Exists { file: name }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(&name, "looking for it", e)),
        }
        let unfinished = Unfinished::new(path)?;
        let journal = unfinished.fill(options, io)?;
        unfinished.publish(path)?;
        Ok(journal)
    }

    /// Makes a journal in `storage`, overwriting what is there, and opens it.
    pub fn create_on(storage: Arc<dyn Storage>, options: &CreateOptions) -> Result<Self, Error> {
        let available = storage.bytes().map_err(|e| Error::io(storage.name(), "asking for its size", e))?;
        let bytes = options.bytes.unwrap_or(available);
        if bytes > available {
            return Err(Error::Invalid(format!("{}: has {available} bytes, not {bytes}", storage.name())));
        }
        format(&*storage, &Geometry::divide(bytes, options.segment_bytes)?, options)?;
        Self::open_on(storage, &options.writer)
    }

    /// Opens the journal at `path`: locks it, finds its end, cuts a torn tail, begins a session.
    ///
    /// `writer` is the name and version of the program, for the session's record.
    pub fn open(path: &Path, writer: &str) -> Result<Self, Error> {
        Self::open_on(Arc::new(FileStorage::open_owned(path)?), writer)
    }

    /// [`Journal::open`], and says how the file is written.
    pub fn open_with_io(path: &Path, writer: &str, io: Io) -> Result<Self, Error> {
        Self::open_on(Arc::new(FileStorage::open_owned_with(path, io)?), writer)
    }

    /// Opens the journal at `path` for work of the owner's own, with no port open: bookmarks, resync,
    /// rollback. If such a session is killed no write is missing, so it leaves no gap.
    pub fn open_ports_closed(path: &Path, writer: &str) -> Result<Self, Error> {
        Self::open_ports_closed_on(Arc::new(FileStorage::open_owned(path)?), writer)
    }

    /// Opens the journal in `storage` like [`Journal::open_ports_closed`].
    pub fn open_ports_closed_on(storage: Arc<dyn Storage>, writer: &str) -> Result<Self, Error> {
        Self::open_with(storage, writer, true, false)
    }

    /// Opens the journal in `storage`.
    pub fn open_on(storage: Arc<dyn Storage>, writer: &str) -> Result<Self, Error> {
        Self::open_with(storage, writer, false, false)
    }

    /// Opens the journal in `storage` for ports that let a write through only when its entry is durable: if such a session
    /// is killed no entry is missing, so it leaves no gap.
    pub fn open_writing_ahead_on(storage: Arc<dyn Storage>, writer: &str) -> Result<Self, Error> {
        Self::open_with(storage, writer, false, true)
    }

    fn open_with(
        storage: Arc<dyn Storage>,
        writer: &str,
        ports_closed: bool,
        writes_ahead: bool,
    ) -> Result<Self, Error> {
        // What a killed owner wrote may be in the page cache only, and would be taken for durable.
        storage::sync(&*storage)?;
        let mut head = Head::load(&*storage)?;
        if head.superblock.features_write.get() & !head::FEATURES != 0 {
            let what = format!("journal with features {:#x} for writing", head.superblock.features_write);
            return Err(Error::Version { file: storage.name().into(), what });
        }
        let directory = Directory::load(&*storage, &head)?;
        let found = find_end(&*storage, &head, &directory)?;
        let repaired = repair(&*storage, &mut head)?;
        cut(&*storage, &head, &found.ending, &directory.unfinished)?;
        let mut journal = Self::resume(storage, head, directory, found, repaired)?;
        (journal.ports_closed, journal.writes_ahead) = (ports_closed, writes_ahead);
        journal.begin_session(writer)
    }

    fn resume(
        storage: Arc<dyn Storage>,
        head: Head,
        directory: Directory,
        found: Found,
        repaired: Vec<String>,
    ) -> Result<Self, Error> {
        let table_bytes = head.encode_tables(&head.tables, head.table_generation)?;
        if let Some(segment) = found.segment.as_ref().filter(|_| found.next_after.is_none()) {
            let needed = segment.next + segment.seal_body_bytes(0, table_bytes.len()) + BLOCK_BYTES as u64;
            if needed > head.geometry.segment_bytes {
                let offset = head.geometry.segment_offset(segment.place.slot);
                return Err(Error::corrupt(storage.name(), offset, "the segment has no room for its seal"));
            }
        }
        let mut free = directory.free;
        free.extend_from_slice(&found.ending.dropped);
        free.sort_unstable();
        let (pinned, free) = free.into_iter().partition(|slot| pin::is_pinned(&*storage, &head, *slot));
        let previous = match (found.chain.batch, found.ended) {
            (0, _) => PreviousEnd::First,
            (_, true) => PreviousEnd::Clean,
            (_, false) => PreviousEnd::Unclean,
        };
        let nothing = Place { slot: u32::MAX, sequence: head.first_sequence() - 1, header: None };
        let opened =
            Opened { session: 0, previous, with_ports: found.with_ports, cut: found.ending.torn, repaired };
        let note_generation = head.note.generation.get();
        let mut journal = Self {
            storage,
            head,
            table_bytes,
            free,
            pinned,
            segment: found.segment.unwrap_or_else(|| OpenSegment::new(nothing, SegmentHeader::new_zeroed())),
            chain: found.chain,
            gather: Gather::default(),
            promised: Vec::new(),
            durable: Durable { order: 0, timestamp: 0, numbers: Vec::new() },
            durable_batch: 0,
            note_generation,
            warm: Warm::default(),
            note_is_behind: false,
            noted: std::time::Instant::now(),
            prepared: (u32::MAX, 0),
            opened,
            roll: None,
            merge_halvings: 0,
            ports_closed: false,
            writes_ahead: false,
            stopped: false,
            committing: false,
            lent: 0,
            kept_for_merging: 0,
        };
        // Everything that was found was synced before it was read.
        journal.durable_batch = journal.chain.batch;
        if let Some(previous_digest) = found.next_after {
            journal.revoke_if_short(Claim::Session);
            let (slot, sequence) = (journal.next_free(Claim::Session, 0)?, journal.segment.sequence() + 1);
            journal.take_segment(slot, sequence, previous_digest)?;
        }
        Ok(journal)
    }

    /// The first batch of a session. Until it is durable the journal is as the cut left it.
    fn begin_session(mut self, writer: &str) -> Result<Self, Error> {
        let previous_session = self.chain.session;
        // The number is used up before anything bears it, so that no two sessions ever share one.
        self.head.superblock.session = (self.head.superblock.session.get().max(previous_session) + 1).into();
        self.head.superblock.table_generation = self.head.table_generation.into();
        self.head.write_superblock(&*self.storage)?;
        self.chain.session = self.head.superblock.session.get();
        self.opened.session = self.chain.session;
        self.know_ports();
        let mut name = [0; 56];
        let length = writer.len().min(name.len());
        name[..length].copy_from_slice(&writer.as_bytes()[..length]);
        let start = SessionStart {
            opened: now().into(),
            tai_minus_utc: TAI_UNKNOWN.into(),
            previous_end: match self.opened.previous {
                PreviousEnd::First => previous_end::FIRST,
                PreviousEnd::Clean => previous_end::CLEAN,
                PreviousEnd::Unclean => previous_end::UNCLEAN,
            }
            .into(),
            previous_session: previous_session.into(),
            continues_after: self.chain.batch.into(),
            cut_bytes: self.opened.cut.map_or(0, |cut| cut.bytes).into(),
            writer: name,
            reserved: [0; 32],
        };
        self.room_for_session()?;
        let pending = if self.chain.gap_pending { batch_flags::GAP_PENDING } else { 0 };
        self.write_batch(batch_flags::SESSION_START | pending, Some(start))?;
        self.commit()?;
        Ok(self)
    }
}

/// What the walk to the end found.
struct Found {
    chain: Chain,
    ending: Ending,
    /// The segment in which the chain ends.
    segment: Option<OpenSegment>,
    /// A new segment has to be taken, after one with this digest.
    next_after: Option<[u8; DIGEST_BYTES]>,
    ended: bool,
    /// [`Opened::with_ports`].
    with_ports: Option<u64>,
}

/// Index in the directory of the segment that holds the last batch reported durable.
pub(crate) fn tail_segment(head: &Head, directory: &Directory) -> usize {
    let durable = head.note.batch.get().max(1);
    let at = directory
        .places
        .iter()
        .rposition(|place| place.header.is_some_and(|header| header.first_batch.get() <= durable));
    at.unwrap_or(0)
}

fn find_end(storage: &dyn Storage, head: &Head, directory: &Directory) -> Result<Found, Error> {
    let mut walk = Walk::new(storage, head, directory, tail_segment(head, directory), 0);
    let mut chain = Chain::default();
    let mut segment: Option<OpenSegment> = None;
    let (mut ended, mut with_ports) = (false, None);
    loop {
        match walk.step()? {
            Some(Step::Segment(place)) => {
                let header = place.header.unwrap_or_else(SegmentHeader::new_zeroed);
                segment = Some(OpenSegment::new(place, header));
            }
            Some(Step::Batch(_, Some((offset, what)))) => {
                return Err(Error::corrupt(storage.name(), offset, what))
            }
            Some(Step::Batch(batch, None)) => {
                chain.follow(batch.offset, &batch.header, &batch.ports);
                let whole = batch_flags::SESSION_END | batch_flags::PORTS_CLOSED;
                ended = batch.header.flags.get() & whole != 0;
                if batch.header.flags.get() & batch_flags::PORTS_CLOSED == 0 {
                    with_ports = Some(batch.header.session.get());
                }
                if let Some(segment) = &mut segment {
                    let indexed = Indexed {
                        offset: segment.next,
                        header: &batch.header,
                        head: &batch.head,
                        starts_session: batch.start.is_some(),
                        descriptors: &batch.descriptors,
                    };
                    segment.add(&indexed, |port| arbiter_of(&chain.ports, port));
                }
            }
            Some(Step::Damage(error)) => return Err(error),
            Some(Step::End(ending)) => {
                let next_after = match &ending.place {
                    None => Some([0; DIGEST_BYTES]),
                    Some(place) if ending.sealed => {
                        walk::read_seal(storage, head, place.slot)?.map(|seal| seal.digest)
                    }
                    Some(_) => None,
                };
                return Ok(Found { chain, ending, segment, next_after, ended, with_ports });
            }
            None => return Err(Error::corrupt(storage.name(), 0, "the journal has no end")),
        }
    }
}

/// Writes anew what an interrupted change or damage left uneven. Returns what had been damaged.
fn repair(storage: &dyn Storage, head: &mut Head) -> Result<Vec<String>, Error> {
    let mut repaired = head.damaged_copies.clone();
    head.even_out(storage)?;
    if let Some((offset, what)) = &head.note_damaged {
        repaired.push(format!("{what} (offset {offset})"));
        // The intact note goes into the place of the damaged one, as the next generation.
        head.note.generation = (head.note.generation.get() + 1).into();
        head::write_note(storage, &head.note)?;
    }
    Ok(repaired)
}

/// Destroys what doesn't belong to the chain, durably, before anything is written after it: what was
/// cut off once can't be found again.
fn cut(storage: &dyn Storage, head: &Head, ending: &Ending, unfinished: &[u32]) -> Result<(), Error> {
    // From the back, so that a crash in between leaves no segment that seems to continue the chain.
    let slots: Vec<u32> = ending.dropped.iter().rev().chain(unfinished).copied().collect();
    scrub(storage, head, &slots)?;
    let mut remnants = ending.stale.clone();
    if let (Some(place), false) = (&ending.place, ending.sealed) {
        remnants.extend(ending.torn.map(|torn| torn.offset));
        // A seal that reached the disk before batches that didn't would end the segment wherever the
        // next batches happen to fill it that far.
        let seal = walk::read_seal(storage, head, place.slot)?;
        remnants.extend(
            seal.filter(|s| s.sequence.get() == place.sequence)
                .map(|_| head.geometry.seal_offset(place.slot)),
        );
    }
    for offset in &remnants {
        storage::write_all(storage, &Block::ZERO.0, *offset)?;
    }
    if ending.dropped.is_empty() && unfinished.is_empty() && remnants.is_empty() {
        return Ok(());
    }
    storage::sync(storage)
}

/// Makes segments free ones, in that order, without making it durable.
pub(crate) fn scrub(storage: &dyn Storage, head: &Head, slots: &[u32]) -> Result<(), Error> {
    for slot in slots {
        let free = SegmentHeader {
            prefix: block::prefix(magic::SEGMENT),
            journal_id: head.journal_id(),
            slot: (*slot).into(),
            role: role::FREE,
            ..SegmentHeader::new_zeroed()
        };
        storage::write_all(storage, &header_block(&free).0, head.geometry.segment_offset(*slot))?;
    }
    Ok(())
}

/// Writes an empty journal. The superblock comes last: without it there is no journal.
fn format(storage: &dyn Storage, geometry: &Geometry, options: &CreateOptions) -> Result<(), Error> {
    record_check::volumes(&options.volumes)?;
    for offset in SUPERBLOCK_OFFSETS {
        storage::write_all(storage, &Block::ZERO.0, offset)?;
    }
    storage::sync(storage)?;
    let mut journal_id = [0; 16];
    getrandom::fill(&mut journal_id)
        .map_err(|e| Error::Invalid(format!("{}: no random number for its identity: {e}", storage.name())))?;
    for (generation, offset) in NOTE_OFFSETS.into_iter().enumerate() {
        let note = Note {
            prefix: block::prefix(magic::NOTE),
            journal_id,
            generation: (generation as u64).into(),
            ..Note::new_zeroed()
        };
        storage::write_all(storage, &block::encode(&note).0, offset)?;
    }
    let mut tables =
        Tables { volumes: options.volumes.clone(), ports: options.ports.clone(), ..Tables::default() };
    tables.volumes.sort_by_key(|volume| volume.index);
    tables.ports.sort_by_key(|port| port.port);
    let bytes = tables.encode(journal_id, 1)?;
    if bytes.len() as u64 > geometry.table_bytes {
        return Err(Error::Invalid(format!(
            "volumes and ports take {} bytes, and the journal has room for {}",
            bytes.len(),
            geometry.table_bytes
        )));
    }
    for copy in 0..2 {
        storage::write_all(storage, &bytes, TABLES_OFFSET + copy * geometry.table_bytes)?;
    }
    storage::sync(storage)?;
    let block = block::encode(&superblock(geometry, journal_id));
    for offset in SUPERBLOCK_OFFSETS {
        storage::write_all(storage, &block.0, offset)?;
        storage::sync(storage)?;
    }
    Ok(())
}

fn superblock(geometry: &Geometry, journal_id: [u8; 16]) -> Superblock {
    let mut portions = [Portion::new_zeroed(); PORTIONS];
    portions[0].role = role::RECEIVED;
    portions[0].first_sequence = 1.into();
    Superblock {
        prefix: block::prefix(magic::SUPERBLOCK),
        generation: 1.into(),
        journal_id,
        created: now().into(),
        features_read: 0.into(),
        features_write: 0.into(),
        file_bytes: geometry.file_bytes.into(),
        table_bytes: geometry.table_bytes.into(),
        segments_offset: geometry.segments_offset.into(),
        segment_bytes: geometry.segment_bytes.into(),
        segment_count: geometry.segment_count.into(),
        reserved_completions: geometry.reserved_completions.into(),
        reserved_merge: geometry.reserved_merge.into(),
        reserved_rollback: geometry.reserved_rollback.into(),
        session: 0.into(),
        table_generation: 1.into(),
        portions,
    }
}

fn check_device_is_blank(storage: &FileStorage) -> Result<(), Error> {
    let mut bytes = vec![0; TABLES_OFFSET as usize + BLOCK_BYTES];
    storage::read_exact(storage, &mut bytes, 0)?;
    if bytes.iter().any(|b| *b != 0) {
        let what = format!(
            "{}: the device is not blank; clear its first {} bytes to use it",
            storage.name(),
            bytes.len()
        );
        return Err(Error::Invalid(what));
    }
    Ok(())
}

/// A journal under a temporary name, removed unless it is published.
struct Unfinished {
    file: std::fs::File,
    path: PathBuf,
    name: String,
}

impl Unfinished {
    fn new(path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        let last = path.file_name().ok_or_else(|| Error::Invalid(format!("{name}: not a file's name")))?;
        let temporary =
            path.with_file_name(format!(".{}.new-{}", last.to_string_lossy(), std::process::id()));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&temporary)
            .map_err(|e| Error::io(&name, "creating it", e))?;
        Ok(Self { file, path: temporary, name })
    }

    fn fill(&self, options: &CreateOptions, io: Io) -> Result<Journal, Error> {
        let bytes = options.bytes.ok_or_else(|| {
            Error::Invalid(format!("{}: the journal's size is needed to make it", self.name))
        })?;
        let geometry = Geometry::divide(bytes, options.segment_bytes)?;
        let file = self.file.try_clone().map_err(|e| Error::io(&self.name, "opening it twice", e))?;
        let storage = FileStorage::from_file(file, self.name.clone());
        storage.lock()?;
        preallocate(&storage, &self.file, geometry.file_bytes)?;
        // The same division again: a default segment size found from the rounded size could be another.
        let options = CreateOptions {
            bytes: Some(geometry.file_bytes),
            segment_bytes: Some(geometry.segment_bytes),
            ..options.clone()
        };
        Journal::create_on(Arc::new(storage.with(io)), &options)
    }

    fn publish(self, path: &Path) -> Result<(), Error> {
        use rustix::fs::{renameat_with, RenameFlags, CWD};
        let renamed = renameat_with(CWD, &self.path, CWD, path, RenameFlags::NOREPLACE);
        match renamed {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => return Err(Error::Exists { file: self.name.clone() }),
            // File systems without it: the link fails where the name is taken.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                std::fs::hard_link(&self.path, path)
                    .map_err(|e| Error::io(&self.name, "giving it its name", e))?;
            }
            Err(e) => return Err(Error::io(&self.name, "giving it its name", e.into())),
        }
        sync_directory(path)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Gone already if it was renamed.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Makes a new name in `path`'s directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<(), Error> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let synced = std::fs::File::open(parent).and_then(|directory| directory.sync_all());
    synced.map_err(|e| Error::io(&parent.display().to_string(), "making a new name in it durable", e))
}

/// Allocates every byte now: a journal that runs out of disk later would stop production.
fn preallocate(storage: &FileStorage, file: &std::fs::File, bytes: u64) -> Result<(), Error> {
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
        Ok(()) => return Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
        Err(e) => return Err(Error::io(storage.name(), format!("allocating {bytes} bytes"), e.into())),
    }
    let zeroes = vec![0; 1 << 20];
    let mut at = 0;
    while at < bytes {
        let length = zeroes.len().min((bytes - at) as usize);
        storage::write_all(storage, &zeroes[..length], at)?;
        at += length as u64;
    }
    Ok(())
}
