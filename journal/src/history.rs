//! What happened to a volume: every entry of the received portion, from the segments' indexes where
//! they are sealed, from the batches' descriptors where they are not.

use crate::batch::Batch;
use crate::error::Error;
use crate::image::check_known;
use crate::moment::Moment;
use crate::payloads::Payloads;
use crate::reader::JournalReader;
use crate::segment::{is_unsettled, lba, Indexed, OpenSegment};
use crate::storage::{self};
use crate::tables::Volume;
use crate::walk::{self, Place, Step, Walk};
use layout::crc;
use layout::entry::{flags, Encoding, Gap, GapReason, Kind, Rollback, Updated};
use layout::journal_file::{IndexRow, NoteRow, SealHeader, PAYLOAD_ALIGN};
use std::collections::HashMap;
use zerocopy::FromBytes;

/// A write to the volume, small enough that ten million of them fit in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// It lies past the volume's end.
    pub const OUTSIDE: u8 = 1 << 5;
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
    pub rollbacks: Vec<Rollback>,
    /// Stamp of the first entry of the journal, of any volume, behind `until`.
    pub next: Option<u64>,
    /// The last entry of the journal, of any volume, at or before `until`, and at or before `after`.
    pub until: (u64, u64),
    pub after: (u64, u64),
}

/// Is an entry at or before a moment?
fn reached(moment: Moment, order: u64, timestamp: u64) -> bool {
    match moment {
        Moment::End => true,
        Moment::Order(last) => order <= last,
        Moment::Timestamp(last) => timestamp <= last,
    }
}

/// The part of the history that lies in one segment.
struct Part {
    /// Segment of the file.
    slot: u32,
    first_order: u64,
    rows: Vec<IndexRow>,
    notes: Vec<NoteRow>,
}

impl Part {
    /// Of its last entry; without any, the one before.
    fn last_order(&self) -> u64 {
        (self.first_order + self.rows.len() as u64).saturating_sub(1)
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
    let places = reader.places()?;
    let mut gather = Gather::new(reader, volume, span);
    for (index, place) in &places {
        let part = load(reader, *index, place)?;
        gather.part(&part, payloads)?;
        progress(gather.entries, reader.summary().order);
    }
    gather.finish()
}

struct Gather<'a> {
    reader: &'a JournalReader,
    volume: &'a Volume,
    span: Span,
    found: Found,
    entries: u64,
    /// Entries that may still be answered: by arbiter and number, their index in `found.writes`.
    unsettled: HashMap<(u16, u64), usize>,
    /// Late answers: the write, and the last order from before the answer.
    late: Vec<(usize, u64)>,
    /// The highest order seen.
    last_order: u64,
}

impl<'a> Gather<'a> {
    fn new(reader: &'a JournalReader, volume: &'a Volume, span: Span) -> Self {
        Self {
            reader,
            volume,
            span,
            found: Found::default(),
            entries: 0,
            unsettled: HashMap::new(),
            late: Vec::new(),
            last_order: 0,
        }
    }

    fn part(&mut self, part: &Part, payloads: &Payloads) -> Result<(), Error> {
        let mut open: HashMap<(u16, u64), usize> = HashMap::new();
        self.found.writes.reserve(part.rows.len());
        for row in &part.rows {
            self.row(row, part, &mut open)?;
        }
        self.entries += part.rows.len() as u64;
        for note in &part.notes {
            match Kind::from_byte(note.kind) {
                Ok(Kind::Completion) => self.completion(note, part),
                Ok(Kind::Gap) => {
                    let record = payloads.record(part.slot, u64::from(note.descriptor.get()))?;
                    self.gap(note, &payloads.whole(&record)?);
                }
                Ok(Kind::Marker) => self.marker(note, part, payloads)?,
                Ok(_) => {
                    let arbiter = self.reader.arbiter(note.port);
                    if let Some(index) = open.remove(&(arbiter, note.timestamp.get())) {
                        self.unsettled.insert((arbiter, note.number.get()), index);
                    }
                }
                Err(kind) => return Err(self.unknown(part, &format!("record of kind {kind}"))),
            }
        }
        self.last_order = self.last_order.max(part.last_order());
        Ok(())
    }

    fn row(
        &mut self,
        row: &IndexRow,
        part: &Part,
        open: &mut HashMap<(u16, u64), usize>,
    ) -> Result<(), Error> {
        let (order, stamp) = (part.first_order + u64::from(row.order.get()), row.timestamp.get());
        if self.span.after.is_some_and(|after| reached(after, order, stamp)) {
            self.found.after = self.found.after.max((order, stamp));
            self.found.until = self.found.until.max((order, stamp));
            return Ok(());
        }
        if !reached(self.span.until, order, stamp) {
            self.found.next = Some(self.found.next.map_or(stamp, |next| next.min(stamp)));
            return Ok(());
        }
        self.found.until = self.found.until.max((order, stamp));
        // What was read back from primary changed nothing there: there is nothing to undo.
        let read_back = row.kind == Kind::Resync as u8 && self.span.wanted == Wanted::Before;
        if row.volume.get() != self.volume.index || read_back {
            return Ok(());
        }
        let updated = match Updated::from_byte(row.status >> 4) {
            Ok(Updated::Pending) if row.kind == Kind::Resync as u8 => Updated::Updated,
            Ok(updated) => updated,
            Err(status) => return Err(self.unknown(part, &format!("order:{order} with status {status}"))),
        };
        if matches!(updated, Updated::Refused | Updated::Cancelled) {
            self.found.skipped += 1;
            return Ok(());
        }
        let mut marks = self.image(row, order, part)?;
        let end = lba(row) + u64::from(row.sectors.get());
        if end > self.volume.sectors {
            if updated == Updated::Updated {
                return Err(self.outside(order, part));
            }
            marks |= mark::OUTSIDE;
        }
        if is_unsettled(updated) {
            marks |= mark::DOUBTFUL;
            open.insert((self.reader.arbiter(row.port), stamp), self.found.writes.len());
        }
        if row.flags.get() & flags::LATE != 0 {
            // When the answer came the index doesn't say: at the segment's end at the latest.
            marks |= mark::DOUBTFUL;
            self.late.push((self.found.writes.len(), part.last_order()));
        }
        self.found.writes.push(Write {
            extent: lba(row) << 16 | u64::from(row.sectors.get()),
            rank: order << 8 | u64::from(marks),
            payload: u64::from(row.port) << 56 | self.place(row, part),
        });
        Ok(())
    }

    /// File offset of a payload in units of [`PAYLOAD_ALIGN`].
    fn place(&self, row: &IndexRow, part: &Part) -> u64 {
        self.reader.segment_offset(part.slot) / PAYLOAD_ALIGN as u64 + u64::from(row.payload.get())
    }

    /// How the entry has the image that is wanted.
    fn image(&self, row: &IndexRow, order: u64, part: &Part) -> Result<u8, Error> {
        let unknown = |what: String| Err(self.unknown(part, &format!("order:{order} {what}")));
        let kind = match Kind::from_byte(row.kind) {
            Ok(kind) => kind,
            Err(kind) => return unknown(format!("of kind {kind}")),
        };
        let zero = match Encoding::from_byte(row.encoding) {
            Ok(Encoding::Zero) => mark::ZERO,
            Ok(Encoding::Raw) => 0,
            Err(encoding) => return unknown(format!("encoded as {encoding}")),
        };
        Ok(match (self.span.wanted, kind) {
            (Wanted::After, Kind::After | Kind::Resync) | (Wanted::Before, Kind::Before | Kind::Both) => zero,
            (Wanted::After, Kind::Both) => zero | mark::SECOND,
            (Wanted::Any, Kind::After | Kind::Before | Kind::Both | Kind::Resync) => zero,
            (_, Kind::After | Kind::Before | Kind::Resync) => mark::NO_IMAGE,
            (_, kind) => return unknown(format!("is a {kind}, which is no entry")),
        })
    }

    fn completion(&mut self, note: &NoteRow, part: &Part) {
        let key = (self.reader.arbiter(note.port), note.number.get());
        let late = note.flags.get() & flags::LATE != 0;
        let Some(index) = self.unsettled.get(&key).copied() else { return };
        if late {
            let before = part.rows.iter().filter(|row| row.timestamp <= note.timestamp);
            let last = before.map(|row| part.first_order + u64::from(row.order.get())).max();
            self.late.push((index, last.unwrap_or(self.last_order)));
            return;
        }
        match Updated::from_byte(note.status >> 4) {
            Ok(Updated::Updated) => self.found.writes[index].clear(mark::DOUBTFUL),
            Ok(Updated::Refused | Updated::Cancelled) => self.found.writes[index].set(mark::DROPPED),
            _ => return,
        }
        self.unsettled.remove(&key);
    }

    fn marker(&mut self, note: &NoteRow, part: &Part, payloads: &Payloads) -> Result<(), Error> {
        let record = payloads.record(part.slot, u64::from(note.descriptor.get()))?;
        if record.header.volume.get() != self.volume.index {
            return Ok(());
        }
        if note.flags.get() & flags::RESYNCED != 0 {
            self.found.resynced.push(note.timestamp.get());
        }
        if note.flags.get() & flags::ROLLBACK != 0 {
            let payload = payloads.whole(&record)?;
            if let Ok((rollback, _)) = Rollback::read_from_prefix(&payload) {
                self.found.rollbacks.push(rollback);
            }
        }
        Ok(())
    }

    fn gap(&mut self, note: &NoteRow, payload: &[u8]) {
        let Ok((gap, _)) = Gap::read_from_prefix(payload) else { return };
        let reason = match GapReason::from_word(gap.reason.get()) {
            Ok(GapReason::Lost) => "records were lost".to_owned(),
            Ok(GapReason::UncleanStop) => "the writer stopped without ending its session".to_owned(),
            Ok(GapReason::ClockUnlocked) => "the port's clock was unlocked".to_owned(),
            Ok(GapReason::TimeJump) => "the time base jumped".to_owned(),
            Err(word) => format!("reason {word}"),
        };
        let (from, to) = (gap.from_timestamp.get(), note.timestamp.get());
        self.found.gaps.push(MissingSpan { port: note.port, from, to, reason });
    }

    fn finish(mut self) -> Result<Found, Error> {
        self.doubt_what_a_late_answer_may_have_overwritten();
        for write in &self.found.writes {
            let marks = write.marks();
            if marks & mark::DROPPED != 0 {
                continue;
            }
            if marks & mark::OUTSIDE != 0 && marks & mark::DOUBTFUL == 0 {
                return Err(self.outside(write.order(), &NOWHERE));
            }
            if marks & (mark::NO_IMAGE | mark::OUTSIDE) == mark::NO_IMAGE {
                self.found.without_image.get_or_insert(write.order());
            }
        }
        let all = self.found.writes.len();
        // Past the end nothing can have been executed, whatever became of the answer.
        self.found.writes.retain(|write| write.marks() & (mark::DROPPED | mark::OUTSIDE) == 0);
        self.found.skipped += (all - self.found.writes.len()) as u64;
        self.found.gaps.sort_by_key(|gap| (gap.from, gap.port));
        Ok(self.found)
    }

    /// The target may have executed the write at any time up to its late answer: what was written to
    /// the same place in between is doubtful too (DESIGN §3.4).
    fn doubt_what_a_late_answer_may_have_overwritten(&mut self) {
        for (late, until) in std::mem::take(&mut self.late) {
            let original = self.found.writes[late];
            for write in &mut self.found.writes {
                let overlaps = write.lba() < original.end() && original.lba() < write.end();
                if overlaps && (original.order()..=until).contains(&write.order()) {
                    write.set(mark::DOUBTFUL);
                }
            }
        }
    }

    fn unknown(&self, part: &Part, what: &str) -> Error {
        Error::Version {
            file: self.reader.file_name(),
            what: format!("index at offset {}: {what}", self.reader.segment_offset(part.slot)),
        }
    }

    fn outside(&self, order: u64, part: &Part) -> Error {
        let what = format!(
            "order:{order} updated sectors past the end of volume {}, which has {}",
            self.volume.name(),
            self.volume.sectors
        );
        Error::corrupt(&self.reader.file_name(), self.reader.segment_offset(part.slot), what)
    }
}

const NOWHERE: Part = Part { slot: 0, first_order: 0, rows: Vec::new(), notes: Vec::new() };

/// A segment's part: from its index if it is sealed and the index is whole, else from its batches.
fn load(reader: &JournalReader, index: usize, place: &Place) -> Result<Part, Error> {
    if let Some(seal) = reader.seal_of(place)? {
        if let Some(part) = from_index(reader, place, &seal)? {
            return Ok(part);
        }
    }
    from_batches(reader, index, place)
}

/// `None`: the index is damaged.
fn from_index(reader: &JournalReader, place: &Place, seal: &SealHeader) -> Result<Option<Part>, Error> {
    let (from, to) = (seal.index_offset.get() as usize, seal.tables_offset.get() as usize);
    let (rows, notes) = (seal.index_rows.get() as usize, seal.note_rows.get() as usize);
    let used = (rows + notes).checked_mul(size_of::<IndexRow>());
    if to as u64 > reader.segment_bytes() || used.is_none_or(|used| from + used > to) {
        return Ok(None);
    }
    let mut bytes = vec![0; to - from];
    storage::read_exact(reader.storage(), &mut bytes, reader.segment_offset(place.slot) + from as u64)?;
    if crc::crc32c(&bytes) != seal.index_crc.get() {
        return Ok(None);
    }
    let Ok((rows, rest)) = <[IndexRow]>::ref_from_prefix_with_elems(&bytes, rows) else { return Ok(None) };
    let Ok((notes, _)) = <[NoteRow]>::ref_from_prefix_with_elems(rest, notes) else { return Ok(None) };
    Ok(Some(Part {
        slot: place.slot,
        first_order: seal.first_order.get(),
        rows: rows.to_vec(),
        notes: notes.to_vec(),
    }))
}

fn from_batches(reader: &JournalReader, index: usize, place: &Place) -> Result<Part, Error> {
    let Some(header) = place.header else {
        let what = format!("header of segment {} is damaged, and so is its index", place.sequence);
        return Err(Error::corrupt(&reader.file_name(), reader.segment_offset(place.slot), what));
    };
    let mut segment = OpenSegment::new(place.clone(), header);
    let mut walk = Walk::new(reader.storage(), reader.head(), reader.directory(), index, u64::MAX);
    while let Some(step) = walk.step()? {
        match step {
            Step::Segment(entered) if entered.sequence == place.sequence => {}
            Step::Segment(_) | Step::End(_) => break,
            Step::Damage(error) => return Err(error),
            Step::Batch(batch, _) => {
                if reader.is_behind_end(batch.header.sequence.get()) {
                    break;
                }
                add(&mut segment, &batch, |port| reader.arbiter(port));
            }
        }
    }
    let (rows, notes) = segment.into_index();
    Ok(Part { slot: place.slot, first_order: header.first_order.get(), rows, notes })
}

fn add(segment: &mut OpenSegment, batch: &Batch, arbiter_of: impl Fn(u8) -> u16) {
    let indexed = Indexed {
        offset: segment.next,
        header: &batch.header,
        head: &batch.head,
        starts_session: batch.start.is_some(),
        descriptors: &batch.descriptors,
    };
    segment.add(&indexed, arbiter_of);
}

/// What a segment of the received portion took in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentSpan {
    /// Bytes that it takes of the journal.
    pub bytes: u64,
    /// Entries.
    pub entries: u64,
    /// Stamps of its first and last entry, ns; zeroes without any.
    pub first_timestamp: u64,
    /// See `first_timestamp`.
    pub last_timestamp: u64,
}

impl JournalReader {
    /// What the segments in use took in, oldest first: how fast the journal grows.
    pub fn growth(&self) -> Result<Vec<SegmentSpan>, Error> {
        let mut spans = Vec::new();
        for (index, place) in self.places()? {
            let part = load(self, index, &place)?;
            let stamps = || part.rows.iter().map(|row| row.timestamp.get());
            spans.push(SegmentSpan {
                bytes: self.segment_bytes(),
                entries: part.rows.len() as u64,
                first_timestamp: stamps().min().unwrap_or(0),
                last_timestamp: stamps().max().unwrap_or(0),
            });
        }
        // The last one is still being filled.
        if let Some(last) = spans.last_mut() {
            last.bytes = self.end_position().offset.saturating_sub(self.last_segment_offset());
        }
        Ok(spans)
    }

    /// Order and stamp of the last entry, of any volume, at or before a moment; zeroes: none.
    pub fn entry_at(&self, moment: Moment) -> Result<(u64, u64), Error> {
        check_known(self, moment)?;
        let mut last = (0, 0);
        // From the back: the first segment that has any such entry has the last one.
        for (index, place) in self.places()?.iter().rev() {
            let part = load(self, *index, place)?;
            for row in &part.rows {
                let (order, stamp) = (part.first_order + u64::from(row.order.get()), row.timestamp.get());
                if reached(moment, order, stamp) {
                    last = last.max((order, stamp));
                }
            }
            if last.0 > 0 {
                break;
            }
        }
        Ok(last)
    }

    /// The segments up to the journal's end, with their index in the directory, without a hole.
    fn places(&self) -> Result<Vec<(usize, Place)>, Error> {
        let mut places: Vec<(usize, Place)> = Vec::new();
        for (index, place) in self.directory().places.iter().enumerate() {
            let first = match (&place.header, walk::read_seal(self.storage(), self.head(), place.slot)?) {
                (Some(header), _) => header.first_batch.get(),
                (None, Some(seal)) => seal.first_batch.get(),
                (None, None) => 0,
            };
            if self.is_behind_end(first) {
                break;
            }
            let expected = self.head().first_sequence() + places.len() as u64;
            if place.sequence != expected {
                let what = format!("segment {expected} is missing");
                return Err(Error::corrupt(&self.file_name(), self.segment_offset(place.slot), what));
            }
            places.push((index, place.clone()));
        }
        Ok(places)
    }

    /// The seal of a segment, if everything that it speaks of belongs to the journal.
    fn seal_of(&self, place: &Place) -> Result<Option<SealHeader>, Error> {
        let seal = walk::read_seal(self.storage(), self.head(), place.slot)?;
        Ok(seal.filter(|seal| {
            let last = (seal.first_batch.get() + seal.batches.get()).saturating_sub(1);
            seal.sequence.get() == place.sequence && !self.is_behind_end(last)
        }))
    }
}
