//! The owner of a journal: makes it, opens it, appends, makes durable.

use crate::batch::head_bytes;
use crate::block;
use crate::error::Error;
use crate::gather::{Frame, Gather, STRAIGHT_PAYLOAD};
use crate::head::{self, Head};
use crate::pin;
use crate::reader::TornTail;
use crate::record::{takes_order, Delivered, OwnedRecord, Record};
use crate::record_check;
use crate::segment::{self, Indexed, OpenSegment};
use crate::storage::{self, Storage};
use crate::tables::{Port, Tables, Volume};
use crate::walk::Place;
use crate::warm::Warm;
use layout::entry::{EntryHeader, Gap, GapReason, Kind};
use layout::journal_file::{
    batch_flags, magic, role, technique, BatchHeader, Note, PortState, SegmentHeader, SessionStart,
    BLOCK_BYTES, PAYLOAD_ALIGN,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use zerocopy::IntoBytes;

/// How a journal is made.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Bytes of the file, preallocated. A block device is used up to this, or whole if it is `None`.
    pub bytes: Option<u64>,
    /// Bytes of a segment, a power of two; `None`: by the size of the file.
    pub segment_bytes: Option<u64>,
    /// The volumes.
    pub volumes: Vec<Volume>,
    /// The ports.
    pub ports: Vec<Port>,
    /// Name and version of the program, for the session's record.
    pub writer: String,
}

/// How the session before ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreviousEnd {
    /// There was none.
    First,
    /// In order.
    Clean,
    /// Without saying so: primary may be ahead of the journal.
    Unclean,
}

/// What opening a journal found and did.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Number of this session.
    pub session: u64,
    /// How the one before ended. After an unclean end a gap of every known port is put before the
    /// first record that is appended.
    pub previous: PreviousEnd,
    /// The last session before this one in which ports were open that may have run ahead of the journal, as far as the end of the
    /// journal tells; `None`: it was longer ago.
    pub with_ports: Option<u64>,
    /// A torn tail that was cut off; nothing of it had been reported durable.
    pub cut: Option<TornTail>,
    /// Damaged copies of superblock or tables that were written anew from the intact copy.
    pub repaired: Vec<String>,
}

/// What is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Durable {
    /// Last order number; 0: none.
    pub order: u64,
    /// Last stamp, ns.
    pub timestamp: u64,
    /// Per port that was ever seen: port, and the last number of its arbiter that is durable on it.
    pub numbers: Vec<(u8, u64)>,
}

/// Where an arbiter has to go on: the floors for the card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArbiterEnd {
    /// Arbiter.
    pub arbiter: u16,
    /// Its stamps have to be above this, ns.
    pub timestamp: u64,
    /// Its numbers have to be above this.
    pub number: u64,
}

/// Where the journal ends, durable or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Last order number; 0: none.
    pub order: u64,
    /// Largest stamp; no record may be stamped below.
    pub timestamp: u64,
    /// Per arbiter of the known ports.
    pub arbiters: Vec<ArbiterEnd>,
}

/// Room in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Segments.
    pub segments: u32,
    /// Segments that hold nothing.
    pub free: u32,
    /// Of those, segments that entries may not take.
    pub reserved: u32,
    /// Segments that merging may always have: part of the reserved ones.
    pub for_merging: u32,
    /// Bytes left in the segment that is being filled.
    pub open_bytes: u64,
}

/// A journal, open for writing. There is one owner at a time.
///
/// Dropping it without [`Journal::close`] is an unclean stop.
pub struct Journal {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) head: Head,
    /// The tables as they stand in the file, for the seals.
    pub(crate) table_bytes: Vec<u8>,
    /// Slots that hold nothing, rising.
    pub(crate) free: Vec<u32>,
    /// Slots that are no longer part of the journal and that somebody still reads.
    pub(crate) pinned: Vec<u32>,
    pub(crate) segment: OpenSegment,
    pub(crate) chain: Chain,
    pub(crate) gather: Gather,
    /// Watermarks that hold once the records of the call under way are all taken.
    pub(crate) promised: Vec<Delivered>,
    pub(crate) durable: Durable,
    pub(crate) durable_batch: u64,
    pub(crate) note_generation: u64,
    /// Slot of a segment, and up to where in it places are ready for small writes.
    pub(crate) prepared: (u32, u64),
    /// What was written last, and may still be in the page cache.
    pub(crate) warm: Warm,
    /// The last note is written and perhaps not durable.
    pub(crate) note_is_behind: bool,
    /// When a note was written last.
    pub(crate) noted: Instant,
    pub(crate) opened: Opened,
    /// Bases have to be rolled on to this entry, order and stamp, before more is given up.
    pub(crate) roll: Option<(u64, u64)>,
    /// How often the input of a step of merging is halved: what was made of it had no room.
    pub(crate) merge_halvings: u32,
    /// Every entry is durable before its write is let through.
    pub(crate) writes_ahead: bool,
    /// No port is open: only the owner's own records are appended.
    pub(crate) ports_closed: bool,
    /// A write or sync failed: what is on the disk is not known.
    pub(crate) stopped: bool,
    /// A commit is under way.
    pub(crate) committing: bool,
    /// Segments that a step of merging has, which is under way.
    pub(crate) lent: u32,
    /// See [`Journal::keep_for_merging`].
    pub(crate) kept_for_merging: u32,
}

/// So much is got ready at once for small writes, and as soon as less than that is left.
const PREPARED: u64 = 4 << 20;
const PREPARED_LEAST: u64 = 256 << 10;

/// [`Journal::sync_batches`] writes the note this often: it lies elsewhere, and would double what a sync has to write.
const NOTE_EVERY: Duration = Duration::from_millis(20);

/// What becomes of the note of a commit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Noted {
    Durably,
    /// It is written, and durable with the next sync.
    Soon,
    /// The next commit's says it too.
    Later,
}

/// A commit under way: see [`Journal::begin_commit`].
pub(crate) struct Commit {
    storage: Arc<dyn Storage>,
    note: Note,
    noted: Noted,
    numbers: Vec<(u8, u64)>,
}

impl Commit {
    /// What takes long: two waits for the device.
    pub fn run(&self) -> Result<(), Error> {
        // 1. The batches. A crash before the sync returned may lose any of them: none was acknowledged.
        storage::sync(&*self.storage)?;
        // 2. The note that they are durable, itself durable. A crash before this returns leaves whole
        //    batches that nobody was told of. After it, whoever finds one of them damaged knows that
        //    it had been whole.
        match self.noted {
            Noted::Durably => head::write_note(&*self.storage, &self.note),
            Noted::Soon => head::write_note_soon(&*self.storage, &self.note),
            Noted::Later => Ok(()),
        }
    }
}

/// Where the chain of batches stands.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chain {
    pub session: u64,
    /// Sequence of the last batch; zero: none.
    pub batch: u64,
    pub batch_offset: u64,
    pub batch_crc: u32,
    /// Last order given.
    pub order: u64,
    pub timestamp: u64,
    pub ports: BTreeMap<u8, PortState>,
    /// Order and stamp as of the last batch written.
    pub written_order: u64,
    pub written_timestamp: u64,
    /// An unclean stop, and no record since.
    pub gap_pending: bool,
}

impl Chain {
    /// Takes over what a batch of the file says.
    pub fn follow(&mut self, offset: u64, header: &BatchHeader, ports: &[PortState]) {
        self.session = header.session.get();
        self.batch = header.sequence.get();
        self.batch_offset = offset;
        self.batch_crc = header.prefix.crc.get();
        self.order = header.first_order.get() + u64::from(header.entries.get()) - 1;
        self.timestamp = header.last_timestamp.get();
        self.written_order = self.order;
        self.written_timestamp = self.timestamp;
        self.ports = ports.iter().map(|state| (state.port, *state)).collect();
        let whole = header.flags.get() & (batch_flags::SESSION_END | batch_flags::PORTS_CLOSED) != 0;
        self.gap_pending = !whole || header.flags.get() & batch_flags::GAP_PENDING != 0;
    }
}

/// Who may take a reserved segment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Entries: none.
    Entry,
    /// Completions, gaps, names: those reserved for them.
    Settling,
    /// Beginnings and ends of sessions: all but those that merging needs to make room again.
    Session,
}

impl Journal {
    /// What opening found.
    pub fn opened(&self) -> &Opened {
        &self.opened
    }

    /// Volumes, ports and sources.
    pub fn tables(&self) -> &Tables {
        &self.head.tables
    }

    /// Where it lies, and with it the owner's lock: whoever keeps this can end a session and begin the next,
    /// and nobody else becomes the owner in between.
    pub fn storage(&self) -> Arc<dyn Storage> {
        Arc::clone(&self.storage)
    }

    /// The ports' delivered watermarks.
    pub fn delivered(&self) -> Vec<Delivered> {
        let states = self.chain.ports.values();
        states.map(|state| Delivered { port: state.port, timestamp: state.delivered.get() }).collect()
    }

    /// Appends records, which must be in stamp order, and the ports' delivered watermarks after them
    /// (see [`crate::order::Order::delivered`]). Header and payload CRCs are checked; watermark
    /// records are refused.
    ///
    /// Records are gathered into batches in memory and written when a batch is large enough, and by
    /// [`Journal::flush`] and [`Journal::sync`]. Returns the last order number given.
    ///
    /// On [`Error::BadRecord`] and [`Error::Full`] the records before the one named were taken.
    pub fn append(&mut self, records: &[Record<'_>], delivered: &[Delivered]) -> Result<u64, Error> {
        if self.ports_closed {
            return Err(Error::Invalid("the journal was opened with its ports closed".into()));
        }
        self.append_any(records, &crate::beside::with_host(delivered))
    }

    /// Appends records of ports or of the owner.
    pub(crate) fn append_any(
        &mut self,
        records: &[Record<'_>],
        delivered: &[Delivered],
    ) -> Result<u64, Error> {
        self.check_running()?;
        self.promised = delivered.to_vec();
        let taken = match self.goes_straight(records) {
            true => self.take_straight(records),
            false => self.take_all(records, &mut None),
        };
        let promised = std::mem::take(&mut self.promised);
        taken?;
        self.deliver(&promised, u64::MAX);
        Ok(self.chain.order)
    }

    /// Are they enough, and such that their payloads can be written from where they lie?
    fn goes_straight(&self, records: &[Record<'_>]) -> bool {
        let even = |record: &Record<'_>| {
            record.payload[1].is_empty() && record.payload[0].len().is_multiple_of(PAYLOAD_ALIGN)
        };
        records.iter().map(|record| record.payload[0].len()).sum::<usize>() >= STRAIGHT_PAYLOAD
            && !self.chain.gap_pending
            && !self.storage.wants_aligned()
            && records.iter().all(even)
    }

    /// [`Journal::take_all`], and all of it is written.
    fn take_straight(&mut self, records: &[Record<'_>]) -> Result<(), Error> {
        self.flush()?;
        let mut outside = Some(Vec::with_capacity(records.len()));
        let taken = self.take_all(records, &mut outside);
        if self.stopped {
            return taken;
        }
        // Also before a record that isn't taken: those before it are.
        self.flush_with(&mut outside).and(taken)
    }

    /// `outside`: payloads aren't copied, but kept there until they are written.
    fn take_all<'a>(
        &mut self,
        records: &[Record<'a>],
        outside: &mut Option<Vec<&'a [u8]>>,
    ) -> Result<(), Error> {
        for (index, record) in records.iter().enumerate() {
            let bad = |what| Error::BadRecord { index, port: record.header.port, what };
            let kind = record_check::record(record, self).map_err(bad)?;
            if self.chain.gap_pending {
                self.record_unclean_stop(&record.header, index)?;
            }
            self.take(record, kind, index, outside)?;
        }
        Ok(())
    }

    /// Raises the ports' delivered watermarks, to `limit` at most.
    fn deliver(&mut self, delivered: &[Delivered], limit: u64) {
        for state in delivered {
            if let Some(port) = self.chain.ports.get_mut(&state.port) {
                port.delivered = port.delivered.get().max(state.timestamp.min(limit)).into();
            }
        }
    }

    fn take<'a>(
        &mut self,
        record: &Record<'a>,
        kind: Kind,
        index: usize,
        outside: &mut Option<Vec<&'a [u8]>>,
    ) -> Result<(), Error> {
        let claim = if takes_order(kind) { Claim::Entry } else { Claim::Settling };
        self.make_room(kind, record.header.payload_bytes.get() as usize, claim, index, outside)?;
        let bad = |what| Error::BadRecord { index, port: record.header.port, what };
        match outside {
            None => self.gather.push(record, kind).map_err(bad)?,
            Some(payloads) => {
                self.gather.push_outside(record, kind).map_err(bad)?;
                payloads.push(record.payload[0]);
            }
        }
        let stamp = record.header.timestamp;
        self.chain.order += u64::from(takes_order(kind));
        self.chain.timestamp = stamp.get();
        if let Some(port) = self.chain.ports.get_mut(&record.header.port) {
            port.last_timestamp = stamp;
            port.delivered = port.delivered.get().max(stamp.get()).into();
            if takes_order(kind) {
                port.last_number = record.header.number;
            }
            if kind != Kind::Gap {
                port.last_sequence = record.header.sequence;
            }
        }
        if self.gather.is_full() {
            self.flush_with(outside)?;
        }
        Ok(())
    }

    /// Room for one more record in the batch that is gathered, or in the next.
    fn make_room(
        &mut self,
        kind: Kind,
        payload_bytes: usize,
        claim: Claim,
        taken: usize,
        outside: &mut Option<Vec<&[u8]>>,
    ) -> Result<(), Error> {
        self.check_reserve(claim, taken)?;
        let ports = self.chain.ports.len();
        let with = |journal: &Self| journal.gather.bytes_with(kind, payload_bytes, ports);
        let more = |journal: &Self| journal.gather.descriptors().len() + 1;
        if self.fits(with(self), more(self), self.table_bytes.len()) {
            return Ok(());
        }
        self.flush_with(outside)?;
        if self.fits(with(self), more(self), self.table_bytes.len()) {
            return Ok(());
        }
        self.next_segment(claim, taken)?;
        assert!(self.fits(with(self), 1, self.table_bytes.len()), "an empty segment takes any record");
        Ok(())
    }

    /// What was taken out of the reserve of others stays theirs: in a segment that a completion took, no entry goes
    /// on, or a journal that is full would use up what is kept for answers and for ends of sessions.
    fn check_reserve(&mut self, claim: Claim, taken: usize) -> Result<(), Error> {
        if self.free.len() as u32 >= self.reserved(claim) {
            return Ok(());
        }
        self.revoke_if_short(claim);
        match self.free.len() as u32 >= self.reserved(claim) {
            true => Ok(()),
            false => Err(self.full(claim, taken)),
        }
    }

    /// Would a batch of `bytes` with `descriptors` leave room for the seal?
    pub(crate) fn fits(&self, bytes: u64, descriptors: usize, table_bytes: usize) -> bool {
        let seal = self.segment.seal_body_bytes(descriptors, table_bytes) + BLOCK_BYTES as u64;
        self.segment.next + bytes + seal <= self.head.geometry.segment_bytes
    }

    /// After an unclean stop what came before the first record is not known to be complete: a gap of
    /// every port, up to just before that record.
    fn record_unclean_stop(&mut self, first: &EntryHeader, index: usize) -> Result<(), Error> {
        let until = first.timestamp.get().saturating_sub(1).max(self.chain.timestamp);
        let states: Vec<PortState> = self.chain.ports.values().copied().collect();
        for state in states {
            let last = self.arbiter_end(state.arbiter.get()).number;
            let gap = Gap {
                from_timestamp: state.delivered.get().min(until).into(),
                from_number: last.into(),
                reason: (GapReason::UncleanStop as u32).into(),
                reserved: 0.into(),
            };
            let mut header = EntryHeader::new(Kind::Gap);
            header.port = state.port;
            header.timestamp = until.into();
            header.number = (last + 1).into();
            header.seal(gap.as_bytes());
            let record = OwnedRecord { header, payload: gap.as_bytes().to_vec() };
            self.take(&record.as_record(), Kind::Gap, index, &mut None)?;
        }
        self.chain.gap_pending = false;
        Ok(())
    }

    /// Writes what is gathered, without making it durable.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.flush_with(&mut None)
    }

    fn flush_with(&mut self, outside: &mut Option<Vec<&[u8]>>) -> Result<(), Error> {
        self.check_running()?;
        if self.gather.is_empty() {
            return Ok(());
        }
        self.write_batch_with(0, None, outside.as_deref().unwrap_or_default())?;
        outside.iter_mut().for_each(Vec::clear);
        Ok(())
    }

    /// Writes what is gathered as the next batch, for which there is room.
    pub(crate) fn write_batch(&mut self, flags: u32, start: Option<SessionStart>) -> Result<(), Error> {
        self.write_batch_with(flags, start, &[])
    }

    fn write_batch_with(
        &mut self,
        flags: u32,
        start: Option<SessionStart>,
        outside: &[&[u8]],
    ) -> Result<(), Error> {
        // In the middle of a call the promised watermarks hold for what has been taken; a record with
        // the same stamp may still follow, of another arbiter.
        let promised = std::mem::take(&mut self.promised);
        self.deliver(&promised, self.chain.timestamp.saturating_sub(1));
        self.promised = promised;
        let ports: Vec<PortState> = self.chain.ports.values().copied().collect();
        let frame = Frame { header: self.batch_header(flags), start, ports: &ports, outside };
        let offset = self.head.geometry.segment_offset(self.segment.place.slot) + self.segment.next;
        let written = self.gather.write(&*self.storage, offset, &frame);
        let header = self.stop_on_error(written)?;
        let indexed = Indexed {
            offset: self.segment.next,
            header: &header,
            head: self.gather.head(&header),
            starts_session: start.is_some(),
            descriptors: self.gather.descriptors(),
        };
        self.segment.add(&indexed, |port| arbiter_of(&self.chain.ports, port));
        self.gather.clear();
        self.warm.written(&*self.storage, offset..offset + u64::from(header.batch_bytes.get()));
        self.chain.batch = header.sequence.get();
        self.chain.batch_offset = offset;
        self.chain.batch_crc = header.prefix.crc.get();
        self.chain.written_order = self.chain.order;
        self.chain.written_timestamp = self.chain.timestamp;
        Ok(())
    }

    fn batch_header(&self, flags: u32) -> BatchHeader {
        BatchHeader {
            prefix: block::prefix(magic::BATCH),
            journal_id: self.head.journal_id(),
            session: self.chain.session.into(),
            sequence: (self.chain.batch + 1).into(),
            segment_sequence: self.segment.sequence().into(),
            durable_up_to: self.durable_batch.into(),
            first_order: (self.chain.order + 1 - u64::from(self.gather.entries())).into(),
            first_timestamp: self.chain.written_timestamp.into(),
            last_timestamp: self.chain.written_timestamp.into(),
            written: now().into(),
            previous_crc: self.chain.batch_crc.into(),
            flags: (flags
                | if self.ports_closed || self.writes_ahead { batch_flags::PORTS_CLOSED } else { 0 })
            .into(),
            head_crc: 0.into(),
            head_bytes: 0.into(),
            batch_bytes: 0.into(),
            descriptors: 0.into(),
            entries: 0.into(),
            ports: 0.into(),
            block_crcs: 0.into(),
            portion: 0,
            reserved: [0; 3],
            reserved2: [0; 120],
        }
    }

    /// Bytes of a batch without records.
    pub(crate) fn bare_batch_bytes(&self) -> u64 {
        head_bytes(true, self.chain.ports.len(), 0, 0).next_multiple_of(BLOCK_BYTES) as u64
    }

    /// Makes room for a batch without records.
    pub(crate) fn room_for_bare_batch(&mut self) -> Result<(), Error> {
        if self.fits(self.bare_batch_bytes(), 0, self.table_bytes.len()) {
            return Ok(());
        }
        self.next_segment(Claim::Session, 0)
    }

    /// Makes room for the beginning of a session. None is begun that couldn't be ended.
    pub(crate) fn room_for_session(&mut self) -> Result<(), Error> {
        self.room_for_bare_batch()?;
        if self.fits(2 * self.bare_batch_bytes(), 0, self.table_bytes.len()) {
            return Ok(());
        }
        self.revoke_if_short(Claim::Session);
        self.next_free(Claim::Session, 0).map(drop)
    }

    /// From here on entries leave so many segments to merging; as many as the journal was made with, at least. In
    /// little room a step takes in less than a segment, and frees none.
    pub fn keep_for_merging(&mut self, segments: u32) {
        self.kept_for_merging = segments;
    }

    /// Seals the segment and takes the next. Nothing is made durable here: if a crash loses the seal
    /// or the new header, what was written behind it is cut off with it, none of it acknowledged.
    pub(crate) fn next_segment(&mut self, claim: Claim, taken: usize) -> Result<(), Error> {
        assert!(self.gather.is_empty(), "what is gathered was checked against this segment");
        self.revoke_if_short(claim);
        let slot = self.next_free(claim, taken)?;
        let digest = self.seal()?;
        self.take_segment(slot, self.segment.sequence() + 1, digest)
    }

    fn seal(&mut self) -> Result<[u8; 32], Error> {
        let slot = self.segment.place.slot;
        let seal = self.segment.seal(self.chain.session, &self.table_bytes);
        let body = self.head.geometry.segment_offset(slot) + self.segment.next;
        assert!(
            body + seal.body.len() as u64 <= self.head.geometry.seal_offset(slot),
            "room was kept for the seal"
        );
        let written = storage::write_all(&*self.storage, &seal.body, body).and_then(|()| {
            storage::write_all(&*self.storage, &seal.block.0, self.head.geometry.seal_offset(slot))
        });
        self.stop_on_error(written)?;
        Ok(seal.digest)
    }

    /// Takes back what nobody reads any more.
    pub(crate) fn free_unpinned(&mut self) {
        let (storage, head) = (&*self.storage, &self.head);
        let (pinned, free): (Vec<u32>, Vec<u32>) =
            self.pinned.iter().partition(|slot| pin::is_pinned(storage, head, **slot));
        self.pinned = pinned;
        self.give_back(free);
    }

    /// Before writes would have to stop, what is still read is taken all the same: its readers find other bytes than
    /// their CRCs say, which is an error to them and never wrong data.
    pub(crate) fn revoke_if_short(&mut self, claim: Claim) {
        self.free_unpinned();
        if self.free.len() as u32 <= self.reserved(claim) {
            let revoked = std::mem::take(&mut self.pinned);
            self.give_back(revoked);
        }
    }

    /// Puts slots among the free ones.
    pub(crate) fn give_back(&mut self, slots: Vec<u32>) {
        self.free.extend(slots);
        self.free.sort_unstable();
    }

    /// The free segment to take next: in the order of the file, so that a device sees a sequential stream.
    pub(crate) fn next_free(&self, claim: Claim, taken: usize) -> Result<u32, Error> {
        if self.free.len() as u32 <= self.reserved(claim) {
            return Err(self.full(claim, taken));
        }
        let here = self.segment.place.slot;
        let at = self.free.partition_point(|slot| *slot <= here) % self.free.len();
        Ok(self.free[at])
    }

    fn full(&self, claim: Claim, taken: usize) -> Error {
        Error::Full {
            file: self.storage.name().to_owned(),
            free: self.free.len() as u32,
            total: self.head.geometry.segment_count,
            reserved: self.reserved(claim),
            appended: taken,
        }
    }

    /// Free segments that are kept for others. What merging has it need not be kept.
    fn reserved(&self, claim: Claim) -> u32 {
        self.reserved_beside(claim, self.lent)
    }

    fn reserved_beside(&self, claim: Claim, lent: u32) -> u32 {
        let g = &self.head.geometry;
        let merging = |kept: u32| kept.saturating_sub(lent);
        match claim {
            Claim::Entry => {
                let kept = g.reserved_merge.max(self.kept_for_merging);
                merging(kept) + g.reserved_rollback + g.reserved_completions
            }
            Claim::Settling => merging(g.reserved_merge) + g.reserved_rollback,
            Claim::Session => merging(g.reserved_merge),
        }
    }

    pub(crate) fn take_segment(
        &mut self,
        slot: u32,
        sequence: u64,
        previous_digest: [u8; 32],
    ) -> Result<(), Error> {
        let header = SegmentHeader {
            prefix: block::prefix(magic::SEGMENT),
            journal_id: self.head.journal_id(),
            slot: slot.into(),
            portion: 0,
            role: role::RECEIVED,
            reserved: 0.into(),
            sequence: sequence.into(),
            session: self.chain.session.into(),
            segment_bytes: self.head.geometry.segment_bytes.into(),
            first_batch: (self.chain.batch + 1).into(),
            first_order: (self.chain.order + 1).into(),
            durable_up_to: self.durable_batch.into(),
            previous_batch_crc: self.chain.batch_crc.into(),
            reserved2: 0.into(),
            previous_digest,
        };
        let block = segment::header_block(&header);
        let written = storage::write_all(&*self.storage, &block.0, self.head.geometry.segment_offset(slot));
        self.stop_on_error(written)?;
        self.free.retain(|free| *free != slot);
        self.segment = OpenSegment::new(Place { slot, sequence, header: Some(header) }, header);
        Ok(())
    }

    /// Makes everything appended durable: one sync for all that came since the last (group commit),
    /// and one small write. What it returns may be acknowledged: damage to it will be reported, never
    /// mistaken for a torn tail.
    pub fn sync(&mut self) -> Result<Durable, Error> {
        self.flush()?;
        if self.durable_batch < self.chain.batch || self.note_is_behind {
            self.commit()?;
        }
        Ok(self.durable.clone())
    }

    /// [`Journal::sync`] with one sync instead of two: everything appended is durable, and the note that says so is only
    /// written, now and then. The next sync of either kind makes that durable too; until then damage to the last batches would be taken
    /// for a torn tail, if the machine stops (`docs/decisions/0072-one-sync-a-flush.md`). Let a [`Journal::sync`] follow
    /// when nothing else does.
    pub fn sync_batches(&mut self) -> Result<Durable, Error> {
        self.prepare();
        self.flush()?;
        if self.durable_batch < self.chain.batch {
            // Images over primary read the journal's end by its note: with before-images it is there before primary is written.
            let by_note =
                self.tables().volumes.iter().any(|volume| volume.technique & technique::BEFORE != 0);
            let noted = if by_note || self.noted.elapsed() > NOTE_EVERY { Noted::Soon } else { Noted::Later };
            let begun = Commit { noted, ..self.begin_commit() };
            let ran = begun.run();
            self.finish_commit(begun, ran)?;
        }
        Ok(self.durable.clone())
    }

    /// Small batches, each with a sync, are going to come: what lies ahead in the segment is got ready for them.
    fn prepare(&mut self) {
        let (slot, next) = (self.segment.place.slot, self.segment.next);
        if self.prepared.0 == slot && next + PREPARED_LEAST <= self.prepared.1 {
            return;
        }
        // What was made ready, and isn't on the device yet, would be made ready once more.
        let from = if self.prepared.0 == slot { next.max(self.prepared.1) } else { next };
        let end = self.head.geometry.segment_bytes - BLOCK_BYTES as u64;
        let until = end.min(next + PREPARED);
        if from < until {
            self.storage.prepare(self.head.geometry.segment_offset(slot) + from, until - from);
        }
        // At the segment's end there is nothing more to be done.
        self.prepared = (slot, if until == end { u64::MAX } else { until });
    }

    /// A commit, from begin to end.
    pub(crate) fn commit(&mut self) -> Result<(), Error> {
        let begun = self.begin_commit();
        let ran = begun.run();
        self.finish_commit(begun, ran)
    }

    /// What a commit makes durable: everything written so far. It may run beside the owner, who goes on writing; there is
    /// one at a time.
    pub(crate) fn begin_commit(&mut self) -> Commit {
        assert!(!self.committing, "a commit ends before the next one begins");
        self.committing = true;
        Commit {
            storage: Arc::clone(&self.storage),
            noted: Noted::Durably,
            note: Note {
                prefix: block::prefix(magic::NOTE),
                journal_id: self.head.journal_id(),
                generation: (self.note_generation + 1).into(),
                session: self.chain.session.into(),
                batch: self.chain.batch.into(),
                batch_offset: self.chain.batch_offset.into(),
                batch_crc: self.chain.batch_crc.into(),
                reserved: 0.into(),
                order: self.chain.written_order.into(),
                timestamp: self.chain.written_timestamp.into(),
            },
            numbers: self.chain.ports.values().map(|state| (state.port, state.last_number.get())).collect(),
        }
    }

    /// Where the segment that is being filled begins, and where its next batch will: file offsets.
    pub(crate) fn write_position(&self) -> (u64, u64) {
        let begins = self.head.geometry.segment_offset(self.segment.place.slot);
        (begins, begins + self.segment.next)
    }

    /// Ends a commit that came to that.
    pub(crate) fn finish_commit(&mut self, begun: Commit, ran: Result<(), Error>) -> Result<(), Error> {
        assert!(std::mem::take(&mut self.committing), "a commit is ended once");
        self.stop_on_error(ran)?;
        let Commit { note, noted, numbers, .. } = begun;
        self.note_is_behind = noted != Noted::Durably;
        if noted != Noted::Later {
            self.note_generation = note.generation.get();
            self.noted = Instant::now();
        }
        assert!(self.durable_batch <= note.batch.get(), "what was durable stays so");
        self.durable_batch = note.batch.get();
        self.durable = Durable { order: note.order.get(), timestamp: note.timestamp.get(), numbers };
        Ok(())
    }

    /// What is durable.
    pub fn durable(&self) -> &Durable {
        &self.durable
    }

    /// Where the journal ends.
    pub fn end(&self) -> End {
        let mut arbiters: Vec<u16> = self.chain.ports.values().map(|state| state.arbiter.get()).collect();
        arbiters.sort_unstable();
        arbiters.dedup();
        End {
            order: self.chain.order,
            timestamp: self.chain.timestamp,
            arbiters: arbiters.into_iter().map(|arbiter| self.arbiter_end(arbiter)).collect(),
        }
    }

    /// Stamps have to rise over everything in the journal and everything a watermark has promised.
    fn arbiter_end(&self, arbiter: u16) -> ArbiterEnd {
        let mut end = ArbiterEnd { arbiter, timestamp: self.chain.timestamp, number: 0 };
        for state in self.chain.ports.values() {
            end.timestamp = end.timestamp.max(state.delivered.get());
            if state.arbiter.get() == arbiter {
                end.number = end.number.max(state.last_number.get());
            }
        }
        end
    }

    /// Room.
    pub fn space(&self) -> Space {
        // What merging has comes back, or more does.
        let free = self.free.len() as u32 + self.lent;
        let seal = self.segment.seal_body_bytes(self.gather.descriptors().len(), self.table_bytes.len());
        let used = self.segment.next + seal + BLOCK_BYTES as u64;
        Space {
            segment_bytes: self.head.geometry.segment_bytes,
            segments: self.head.geometry.segment_count,
            free,
            reserved: self.reserved_beside(Claim::Entry, 0).min(free),
            for_merging: self.head.geometry.reserved_merge.max(self.kept_for_merging),
            open_bytes: self.head.geometry.segment_bytes.saturating_sub(used),
        }
    }

    /// Ends the session in order; everything is durable on return.
    pub fn close(mut self) -> Result<Durable, Error> {
        self.flush()?;
        self.room_for_bare_batch()?;
        let pending = if self.chain.gap_pending { batch_flags::GAP_PENDING } else { 0 };
        self.write_batch(batch_flags::SESSION_END | pending, None)?;
        self.commit()?;
        Ok(self.durable.clone())
    }

    pub(crate) fn check_running(&self) -> Result<(), Error> {
        if self.stopped {
            return Err(Error::Stopped { file: self.storage.name().to_owned() });
        }
        Ok(())
    }

    /// After a failed write or sync nobody knows what the disk holds (a second fsync may report
    /// success for pages that the first one dropped): nothing more is written by this owner.
    pub(crate) fn stop_on_error<T>(&mut self, result: Result<T, Error>) -> Result<T, Error> {
        self.stopped |= result.is_err();
        result
    }
}

pub(crate) fn arbiter_of(ports: &BTreeMap<u8, PortState>, port: u8) -> u16 {
    ports.get(&port).map_or(0, |state| state.arbiter.get())
}

/// The host's clock, ns since the Unix epoch.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}
