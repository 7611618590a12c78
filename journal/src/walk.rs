//! Walks the received portion batch by batch, and tells a torn tail from damage.
//!
//! The chain: batches have consecutive sequences, each names the CRC of the header before it, and
//! the session changes only where a batch says that one begins. What doesn't continue the chain is
//! either the end, or a torn tail, or damage. It is damage if anything intact claims that the
//! missing batch was durable: a durability note, a later batch's or segment's `durable_up_to`.

use crate::batch::{self, Batch, Found, Use};
use crate::block::{self, Block};
use crate::error::Error;
use crate::head::Head;
use crate::reader::TornTail;
use crate::storage::{self, Storage};
use layout::crc;
use layout::journal_file::{
    batch_flags, magic, role, BatchHeader, SealHeader, SegmentHeader, BATCH_HEADER_BYTES, BLOCK_BYTES,
    MAXIMUM_SEGMENT_BYTES, PORTIONS,
};
use zerocopy::FromBytes;

/// A segment of a portion.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub slot: u32,
    pub sequence: u64,
    /// `None`: the header is damaged, and the segment was told by its seal or its first batch.
    pub header: Option<SegmentHeader>,
}

/// The segments of the portions in the order of their chains, and the others.
#[derive(Clone, Debug, Default)]
pub(crate) struct Directory {
    /// Of the received portion.
    pub places: Vec<Place>,
    /// Of the merged portions, by index; the first is empty.
    pub merged: [Vec<Place>; PORTIONS],
    pub free: Vec<u32>,
    /// Of those, segments that a merge was writing which never came to its end.
    pub unfinished: Vec<u32>,
    /// Duplicates: neither free nor part of a chain.
    pub other: Vec<u32>,
}

impl Directory {
    /// Reads the header of every segment.
    pub fn load(storage: &dyn Storage, head: &Head) -> Result<Self, Error> {
        let mut directory = Directory::default();
        let mut unknown = Vec::new();
        let mut block = Block::ZERO;
        for slot in 0..head.geometry.segment_count {
            match read_header(storage, head, slot, &mut block)? {
                Ok(header) => directory.classify(head, slot, header),
                Err(_) => unknown.push(slot),
            }
        }
        directory.settle(storage, head, unknown)?;
        Ok(directory)
    }

    /// Puts a segment with an intact header where it belongs.
    fn classify(&mut self, head: &Head, slot: u32, header: SegmentHeader) {
        if header.journal_id != head.journal_id() || header.slot.get() != slot || header.role == role::FREE {
            self.free.push(slot);
        } else if header.role != role::RECEIVED || header.portion != 0 {
            self.merged_segment(head, slot, header);
        } else if header.sequence.get() < head.first_sequence() {
            self.free.push(slot);
        } else {
            self.places.push(Place { slot, sequence: header.sequence.get(), header: Some(header) });
        }
    }

    /// A merged segment belongs to its portion if the superblock says so; else nobody ever relied on it.
    fn merged_segment(&mut self, head: &Head, slot: u32, header: SegmentHeader) {
        let (portion, sequence) = (usize::from(header.portion), header.sequence.get());
        if header.role == role::MERGED && head.is_merged(portion, sequence) {
            self.merged[portion].push(Place { slot, sequence, header: Some(header) });
        } else {
            self.free.push(slot);
            self.unfinished.push(slot);
        }
    }

    /// A segment without an intact header is free, unless the chain lacks one and it tells by its
    /// seal or its first batch that it is that.
    fn settle(&mut self, storage: &dyn Storage, head: &Head, unknown: Vec<u32>) -> Result<(), Error> {
        let mut block = Block::ZERO;
        let mut headless = Vec::new();
        for slot in unknown {
            match told_by_content(storage, head, slot)? {
                None => self.free.push(slot),
                // The owner may have taken it into use since its header was read, and begun to fill it.
                Some(told) => match read_header(storage, head, slot, &mut block)? {
                    Ok(header) => self.classify(head, slot, header),
                    Err(_) => headless.push((slot, told)),
                },
            }
        }
        self.places.sort_by_key(|place| (place.sequence, place.header.map(|h| h.session.get())));
        self.merged.iter_mut().for_each(|places| places.sort_by_key(|place| place.sequence));
        for (slot, told) in headless {
            match told {
                (portion @ 1.., sequence) if head.is_merged(usize::from(portion), sequence) => {
                    let places = &mut self.merged[usize::from(portion)];
                    let at = places.partition_point(|place| place.sequence < sequence);
                    match places.get(at).is_some_and(|place| place.sequence == sequence) {
                        true => self.free.push(slot),
                        false => places.insert(at, Place { slot, sequence, header: None }),
                    }
                }
                (0, sequence)
                    if sequence >= head.first_sequence()
                        && self.places.iter().all(|place| place.sequence != sequence) =>
                {
                    let at = self.places.partition_point(|place| place.sequence < sequence);
                    self.places.insert(at, Place { slot, sequence, header: None });
                }
                _ => self.free.push(slot),
            }
        }
        // Two headers with one sequence: only the later session's can be right.
        for index in (1..self.places.len()).rev() {
            if self.places[index].sequence == self.places[index - 1].sequence {
                self.other.push(self.places.remove(index - 1).slot);
            }
        }
        self.free.sort_unstable();
        Ok(())
    }
}

/// The header of a segment. The owner may be writing it just now: what is not whole is looked at again.
fn read_header(
    storage: &dyn Storage,
    head: &Head,
    slot: u32,
    block: &mut Block,
) -> Result<Result<SegmentHeader, block::Fault>, Error> {
    let mut attempts = 0;
    loop {
        storage::read_exact(storage, &mut block.0, head.geometry.segment_offset(slot))?;
        let decoded = block::decode::<SegmentHeader>(block, magic::SEGMENT);
        attempts += 1;
        // Without its magic nothing of the kind was ever here.
        if decoded.is_ok() || decoded == Err(block::Fault::Magic) || attempts == HEADER_ATTEMPTS {
            return Ok(decoded);
        }
        std::thread::yield_now();
    }
}

/// How often a segment's header that is not whole is read: writing one takes microseconds.
const HEADER_ATTEMPTS: u32 = 4;

/// Portion and sequence of a segment, by its seal or its first batch.
fn told_by_content(storage: &dyn Storage, head: &Head, slot: u32) -> Result<Option<(u8, u64)>, Error> {
    if let Some(seal) = read_any_seal(storage, head, slot)? {
        return Ok(Some((seal.portion, seal.sequence.get())));
    }
    let mut bytes = [0; BATCH_HEADER_BYTES];
    storage::read_exact(storage, &mut bytes, head.geometry.segment_offset(slot) + BLOCK_BYTES as u64)?;
    if block::check(&bytes, magic::BATCH).is_err() {
        return Ok(None);
    }
    Ok(BatchHeader::read_from_bytes(&bytes)
        .ok()
        .filter(|header| header.journal_id == head.journal_id())
        .map(|header| (header.portion, header.segment_sequence.get())))
}

/// The seal of a segment of the received portion, if there is an intact one of this journal in its place.
pub(crate) fn read_seal(storage: &dyn Storage, head: &Head, slot: u32) -> Result<Option<SealHeader>, Error> {
    Ok(read_any_seal(storage, head, slot)?.filter(|seal| seal.portion == 0))
}

/// The same of any portion.
pub(crate) fn read_any_seal(
    storage: &dyn Storage,
    head: &Head,
    slot: u32,
) -> Result<Option<SealHeader>, Error> {
    let mut block = Block::ZERO;
    storage::read_exact(storage, &mut block.0, head.geometry.seal_offset(slot))?;
    Ok(block::decode::<SealHeader>(&block, magic::SEAL)
        .ok()
        .filter(|seal| seal.journal_id == head.journal_id() && seal.slot.get() == slot))
}

/// Are the index and the copy of the tables there that belong to a seal?
fn seal_is_whole(storage: &dyn Storage, start: u64, seal: &SealHeader) -> Result<bool, Error> {
    let (index, tables) = (u64::from(seal.index_offset.get()), u64::from(seal.tables_offset.get()));
    let end = tables + u64::from(seal.tables_bytes.get());
    if index > tables || end > MAXIMUM_SEGMENT_BYTES {
        return Ok(false);
    }
    let mut body = vec![0; (end - index) as usize];
    storage::read_exact(storage, &mut body, start + index)?;
    let (index, tables) = body.split_at((tables - index) as usize);
    Ok(crc::crc32c(index) == seal.index_crc.get() && block::check(tables, magic::TABLES).is_ok())
}

/// A step of the walk.
#[derive(Debug)]
pub(crate) enum Step {
    /// The next batch. With it, what is wrong with its payloads, if they were checked.
    Batch(Box<Batch>, Option<(u64, String)>),
    /// A segment was entered.
    Segment(Place),
    /// Something acknowledged is damaged or missing. The walk goes on behind it where it can.
    Damage(Error),
    /// The end.
    End(Ending),
}

/// Where the chain ends.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ending {
    /// Segment in which it ends; `None`: there is no segment at all.
    pub place: Option<Place>,
    /// That segment is sealed.
    pub sealed: bool,
    /// Something is there that was being written.
    pub torn: Option<TornTail>,
    /// Headers of batches in the same segment that don't belong to the chain and could be taken for
    /// its continuation.
    pub stale: Vec<u64>,
    /// Later segments, which don't belong to the chain.
    pub dropped: Vec<u32>,
}

/// Where a walk is, to go on from there later.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Position {
    /// Index in the directory's places.
    pub at: usize,
    pub entered: bool,
    pub offset: u64,
    /// Sequence of the batch that comes next; zero: not known.
    pub expected: u64,
    pub previous: Option<(u32, u64)>,
}

/// See the module.
pub(crate) struct Walk<'a> {
    storage: &'a dyn Storage,
    head: &'a Head,
    directory: &'a Directory,
    /// Index in `directory.places`.
    at: usize,
    entered: bool,
    offset: u64,
    /// What the next batch has to be; zero CRC and session: not known, after damage.
    expected: u64,
    previous: Option<(u32, u64)>,
    /// Check payloads of batches from this sequence on.
    check_from: u64,
    finished: bool,
}

impl<'a> Walk<'a> {
    /// From the start of the segment with that index in the directory. Payloads of the batches from
    /// `check_from` on are read and checked.
    pub fn new(
        storage: &'a dyn Storage,
        head: &'a Head,
        directory: &'a Directory,
        at: usize,
        check_from: u64,
    ) -> Self {
        Self {
            storage,
            head,
            directory,
            at,
            entered: false,
            offset: 0,
            expected: 0,
            previous: None,
            check_from,
            finished: false,
        }
    }

    /// Goes on from `position`.
    pub fn from_position(
        storage: &'a dyn Storage,
        head: &'a Head,
        directory: &'a Directory,
        position: Position,
    ) -> Self {
        let Position { at, entered, offset, expected, previous } = position;
        Self { entered, offset, expected, previous, ..Self::new(storage, head, directory, at, u64::MAX) }
    }

    /// Where it is.
    pub fn position(&self) -> Position {
        let Self { at, entered, offset, expected, previous, .. } = *self;
        Position { at, entered, offset, expected, previous }
    }

    /// The arbiter that numbers a port's entries.
    pub fn arbiter(&self, port: u8) -> u16 {
        self.head.tables.ports.iter().find(|known| known.port == port).map_or(0, |known| known.arbiter)
    }

    /// The next step; `None` after the end.
    pub fn step(&mut self) -> Result<Option<Step>, Error> {
        if self.finished {
            return Ok(None);
        }
        let Some(place) = self.directory.places.get(self.at).cloned() else {
            return Ok(Some(self.no_segment()));
        };
        if !self.entered {
            return Ok(Some(self.enter(place)));
        }
        self.batch(place).map(Some)
    }

    fn enter(&mut self, place: Place) -> Step {
        self.entered = true;
        self.offset = self.head.geometry.segment_offset(place.slot) + BLOCK_BYTES as u64;
        match &place.header {
            Some(header) => {
                if self.expected == 0 {
                    self.expected = header.first_batch.get();
                    self.previous = Some((header.previous_batch_crc.get(), 0));
                }
                Step::Segment(place)
            }
            None => {
                let offset = self.head.geometry.segment_offset(place.slot);
                let what = format!("header of segment {} is damaged", place.sequence);
                Step::Damage(Error::corrupt(self.storage.name(), offset, what))
            }
        }
    }

    fn batch(&mut self, place: Place) -> Result<Step, Error> {
        let what = match self.try_batch(&place)? {
            Ok((batch, None)) => return Ok(self.accept(batch, None)),
            Ok((batch, Some(fault))) => {
                // Whole but for a payload: damage if it was durable, or the torn end.
                if self.claimed(batch.header.sequence.get(), &place)?.is_some() {
                    return Ok(self.accept(batch, Some(fault)));
                }
                fault.1
            }
            Err(what) => what,
        };
        if self.is_sealed_here(&place)? {
            return self.leave(place);
        }
        self.conclude(place, what)
    }

    /// Is the segment sealed after the batches that have been read?
    fn is_sealed_here(&self, place: &Place) -> Result<bool, Error> {
        let Some(seal) = read_seal(self.storage, self.head, place.slot)? else {
            return Ok(false);
        };
        let start = self.head.geometry.segment_offset(place.slot);
        let here = start + u64::from(seal.batches_end.get()) == self.offset;
        let last = self.previous.is_none_or(|previous| previous.0 == seal.last_batch_crc.get());
        if seal.sequence.get() != place.sequence || !here || !last {
            return Ok(false);
        }
        // With something durable behind it the seal was durable too. Otherwise its block may have
        // reached the disk without its index: then the segment is not sealed yet.
        if self.head.note.batch.get() >= self.expected
            || self.claim_beyond(place.sequence, self.expected)?.is_some()
        {
            return Ok(true);
        }
        seal_is_whole(self.storage, start, &seal)
    }

    /// The segment is read to its seal: on to the next, if it continues the chain.
    fn leave(&mut self, place: Place) -> Result<Step, Error> {
        let next = self.directory.places.get(self.at + 1);
        let fits = next.map(|next| self.continues_in(&place, next));
        if let (Some(next), Some(Ok(()))) = (next, &fits) {
            self.at += 1;
            return Ok(self.enter(next.clone()));
        }
        let what = match fits {
            Some(Err(what)) => what,
            _ => format!("segment {} is missing", place.sequence + 1),
        };
        let note = self.head.note.batch.get();
        let claim = match note >= self.expected {
            true => Some(format!("batch {note} had been reported durable")),
            false => self.claim_beyond(place.sequence, self.expected)?,
        };
        if let Some(claim) = claim {
            if let Some(next) =
                next.filter(|next| next.header.is_none() && next.sequence == place.sequence + 1)
            {
                self.at += 1;
                return Ok(self.enter(next.clone()));
            }
            let offset = match next {
                Some(next) => self.head.geometry.segment_offset(next.slot),
                None => self.head.geometry.seal_offset(place.slot),
            };
            return self.skip_to_next(offset, format!("{what}; {claim}"));
        }
        self.finished = true;
        Ok(Step::End(Ending {
            sealed: true,
            torn: self.torn_tail(&place, &[], false)?,
            stale: Vec::new(),
            dropped: self.later_slots(place.sequence),
            place: Some(place),
        }))
    }

    /// Does the segment `next` follow `place`, whose batches have all been read?
    fn continues_in(&self, place: &Place, next: &Place) -> Result<(), String> {
        if next.sequence != place.sequence + 1 {
            return Err(format!("segment {} is missing", place.sequence + 1));
        }
        let Some(header) = &next.header else {
            return Err(format!("the header of segment {} is damaged", next.sequence));
        };
        let crc = self.previous.map_or(header.previous_batch_crc.get(), |previous| previous.0);
        if header.first_batch.get() != self.expected || header.previous_batch_crc.get() != crc {
            return Err(format!(
                "segment {} begins with batch {}, and batch {} comes next",
                next.sequence, header.first_batch, self.expected
            ));
        }
        Ok(())
    }

    fn accept(&mut self, batch: Box<Batch>, fault: Option<(u64, String)>) -> Step {
        self.offset = batch.end();
        self.expected = batch.header.sequence.get() + 1;
        self.previous = Some((batch.header.prefix.crc.get(), batch.header.session.get()));
        Step::Batch(batch, fault)
    }

    /// Tries to read the batch that comes next. The inner error says why it isn't there.
    #[allow(clippy::type_complexity)]
    fn try_batch(&self, place: &Place) -> Result<Result<(Box<Batch>, Option<(u64, String)>), String>, Error> {
        let room = self.room(place);
        if room < BLOCK_BYTES as u64 {
            return Ok(Err("the segment is full".into()));
        }
        let mut bytes = [0; BATCH_HEADER_BYTES];
        storage::read_exact(self.storage, &mut bytes, self.offset)?;
        let header = match batch::look(&bytes, &self.use_of(place), room) {
            Found::Header(header) => header,
            Found::Damaged(what) => return Ok(Err(what)),
            Found::Stale | Found::Nothing => return Ok(Err("no batch is there".into())),
        };
        if let Err(what) = self.continues(&header) {
            return Ok(Err(what));
        }
        let batch = match Batch::read(self.storage, self.offset, &header)? {
            Ok(batch) => batch,
            Err(what) => return Ok(Err(what)),
        };
        let mut fault = None;
        if header.sequence.get() >= self.check_from {
            fault = batch.check_payloads(self.storage)?.err();
        }
        Ok(Ok((Box::new(batch), fault)))
    }

    fn continues(&self, header: &BatchHeader) -> Result<(), String> {
        let (sequence, session) = (header.sequence.get(), header.session.get());
        if self.expected != 0 && sequence != self.expected {
            return Err(format!("batch {sequence} is there, and {} comes next", self.expected));
        }
        let Some((crc, previous_session)) = self.previous else {
            return Ok(());
        };
        if header.previous_crc.get() != crc {
            return Err(format!("batch {sequence} doesn't follow the batch before it (previous CRC)"));
        }
        let begins = header.flags.get() & batch_flags::SESSION_START != 0;
        let follows = if begins {
            session > previous_session
        } else {
            session == previous_session || previous_session == 0
        };
        if !follows {
            return Err(format!(
                "batch {sequence} is of session {session}, after session {previous_session}"
            ));
        }
        Ok(())
    }

    fn use_of(&self, place: &Place) -> Use {
        Use {
            journal_id: self.head.journal_id(),
            portion: 0,
            segment_sequence: place.sequence,
            session: place.header.map_or(0, |header| header.session.get()),
        }
    }

    /// Bytes between the walk's place and the seal.
    fn room(&self, place: &Place) -> u64 {
        self.head.geometry.seal_offset(place.slot).saturating_sub(self.offset)
    }

    /// The batch that should come next isn't there: is that the end, or damage?
    fn conclude(&mut self, here: Place, what: String) -> Result<Step, Error> {
        if let Some(claim) = self.claimed(self.expected, &here)? {
            // The owner may have written it since it was read: look again before crying wolf.
            if let Ok((batch, None)) = self.try_batch(&here)? {
                return Ok(self.accept(batch, None));
            }
            let text = format!("batch {}: {what}; {claim}", self.expected);
            return self.resume(here, text);
        }
        let later = self.later_in_segment(&here)?;
        let torn = self.torn_tail(&here, &later, true)?;
        self.finished = true;
        if let (Some(_), Some((offset, note))) = (&torn, &self.head.note_damaged) {
            let text = format!(
                "batch {} is not whole, and whether it had been reported durable can't be told: damaged at offset {offset}: {note}",
                self.expected
            );
            return Ok(Step::Damage(Error::corrupt(self.storage.name(), self.offset, text)));
        }
        Ok(Step::End(Ending {
            sealed: false,
            torn,
            stale: later.into_iter().map(|(offset, _)| offset).collect(),
            dropped: self.later_slots(here.sequence),
            place: Some(here),
        }))
    }

    fn no_segment(&mut self) -> Step {
        self.finished = true;
        if self.head.note.batch.get() > 0 {
            let what = format!(
                "no segment of the received portion is there, and batch {} was durable",
                self.head.note.batch
            );
            return Step::Damage(Error::corrupt(
                self.storage.name(),
                self.head.geometry.segments_offset,
                what,
            ));
        }
        Step::End(Ending::default())
    }

    /// After damage: to the next intact batch in the same segment, or to the next segment.
    fn resume(&mut self, place: Place, what: String) -> Result<Step, Error> {
        let offset = self.offset;
        let next = self.later_in_segment(&place)?.into_iter().find(|(_, h)| h.sequence.get() > self.expected);
        match next {
            Some((next, header)) => {
                self.offset = next;
                self.expected = header.sequence.get();
                self.previous = None;
                Ok(Step::Damage(Error::corrupt(self.storage.name(), offset, what)))
            }
            None => self.skip_to_next(offset, what),
        }
    }

    fn skip_to_next(&mut self, offset: u64, what: String) -> Result<Step, Error> {
        self.at += 1;
        self.entered = false;
        self.expected = 0;
        self.previous = None;
        self.finished = self.directory.places.get(self.at).is_none();
        Ok(Step::Damage(Error::corrupt(self.storage.name(), offset, what)))
    }

    /// Intact headers behind the walk's place in this segment that could continue the chain.
    fn later_in_segment(&self, place: &Place) -> Result<Vec<(u64, BatchHeader)>, Error> {
        let mut found = Vec::new();
        let end = self.head.geometry.seal_offset(place.slot);
        let mut at = self.offset;
        if at < self.head.geometry.segment_offset(place.slot) || at > end {
            return Ok(found);
        }
        let mut bytes = vec![0; 1 << 20];
        while at < end {
            let length = bytes.len().min((end - at) as usize);
            storage::read_exact(self.storage, &mut bytes[..length], at)?;
            for (index, block) in bytes[..length].chunks(BLOCK_BYTES).enumerate() {
                let offset = at + (index * BLOCK_BYTES) as u64;
                if let Found::Header(header) = batch::look(block, &self.use_of(place), end - offset) {
                    if header.sequence.get() >= self.expected {
                        found.push((offset, *header));
                    }
                }
            }
            at += length as u64;
        }
        Ok(found)
    }

    /// Who says that batch `sequence` was durable?
    fn claimed(&self, sequence: u64, place: &Place) -> Result<Option<String>, Error> {
        let note = self.head.note.batch.get();
        if note >= sequence {
            return Ok(Some(format!("batch {note} had been reported durable")));
        }
        for (offset, header) in self.later_in_segment(place)? {
            if header.durable_up_to.get() >= sequence {
                return Ok(Some(format!(
                    "batch {} at offset {offset} knows batch {} to be durable",
                    header.sequence, header.durable_up_to
                )));
            }
        }
        self.claim_beyond(place.sequence, sequence)
    }

    /// Does anything in segments behind `segment` claim that batch `sequence` was durable?
    fn claim_beyond(&self, segment: u64, sequence: u64) -> Result<Option<String>, Error> {
        for place in self.directory.places.iter().filter(|place| place.sequence > segment) {
            let header_claim = place.header.map_or(0, |header| header.durable_up_to.get());
            if header_claim >= sequence {
                return Ok(Some(format!(
                    "segment {} knows batch {header_claim} to be durable",
                    place.sequence
                )));
            }
            let start = self.head.geometry.segment_offset(place.slot) + BLOCK_BYTES as u64;
            let inside = Walk { offset: start, expected: 0, ..self.shallow() };
            for (_, header) in inside.later_in_segment(place)? {
                if header.durable_up_to.get() >= sequence {
                    return Ok(Some(format!(
                        "batch {} knows batch {} to be durable",
                        header.sequence, header.durable_up_to
                    )));
                }
            }
        }
        Ok(None)
    }

    fn shallow(&self) -> Walk<'a> {
        Walk { previous: None, ..*self }
    }

    fn later_slots(&self, sequence: u64) -> Vec<u32> {
        self.directory
            .places
            .iter()
            .filter(|place| place.sequence > sequence)
            .map(|place| place.slot)
            .collect()
    }

    fn torn_tail(
        &self,
        here: &Place,
        later: &[(u64, BatchHeader)],
        open: bool,
    ) -> Result<Option<TornTail>, Error> {
        let mut bytes = 0;
        if open && self.room(here) >= BLOCK_BYTES as u64 {
            let mut first = [0; BATCH_HEADER_BYTES];
            storage::read_exact(self.storage, &mut first, self.offset)?;
            // A header that fails its CRC may be new or a remnant: only with the sequence that comes
            // next is it certainly of this tail.
            let parsed = BatchHeader::read_from_bytes(&first).ok();
            if parsed.is_some_and(|h| h.prefix.magic == magic::BATCH && h.sequence.get() == self.expected) {
                bytes = BLOCK_BYTES as u64;
            }
            for (offset, header) in later {
                bytes = bytes.max(offset + u64::from(header.batch_bytes.get()) - self.offset);
            }
        }
        for place in self.directory.places.iter().filter(|place| place.sequence > here.sequence) {
            let start = self.head.geometry.segment_offset(place.slot) + BLOCK_BYTES as u64;
            let inside = Walk { offset: start, expected: 0, ..self.shallow() };
            bytes += inside
                .later_in_segment(place)?
                .iter()
                .map(|(_, header)| u64::from(header.batch_bytes.get()))
                .sum::<u64>();
        }
        Ok((bytes > 0).then_some(TornTail { offset: self.offset, bytes, batch: self.expected }))
    }
}
