//! The part of the history that lies in one segment: from its index, or from its batches.

use crate::batch::{Batch, Use};
use crate::error::Error;
use crate::reader::JournalReader;
use crate::segment::{Indexed, OpenSegment};
use crate::walk::{Place, Step, Walk};
use crate::{batch, storage, walk};
use layout::crc;
use layout::entry::{flags, Kind};
use layout::journal_file::{IndexRow, NoteRow, SealHeader, SegmentHeader, BATCH_HEADER_BYTES, BLOCK_BYTES};
use zerocopy::{FromZeros, IntoBytes};

/// The part of the history that lies in one segment.
pub(crate) struct Part {
    /// Segment of the file.
    pub slot: u32,
    /// Index of the portion.
    pub portion: usize,
    pub first_order: u64,
    /// Stamp of its last record.
    pub last_timestamp: u64,
    pub rows: Vec<IndexRow>,
    pub notes: Vec<NoteRow>,
    /// Entries that have been merged, and were answered late in this segment: what else it holds may be doubtful for that.
    pub late_merged: Vec<IndexRow>,
    /// The last order in this segment, merged or not.
    pub last_of_segment: u64,
}

impl Part {
    /// Of its last entry; without any, the one before.
    pub fn last_order(&self) -> u64 {
        self.last_order_before(u64::MAX).unwrap_or(self.first_order.saturating_sub(1))
    }

    /// Of its last entry stamped at or before `stamp`; `None`: it has none.
    pub fn last_order_before(&self, stamp: u64) -> Option<u64> {
        let rows = self.rows.iter().filter(|row| row.timestamp.get() <= stamp);
        let entries = rows.map(|row| self.first_order + u64::from(row.order.get()));
        // A window may have nothing to show, and has a last order all the same.
        let notes = self.notes.iter().filter(|note| note.timestamp.get() <= stamp);
        let windows = notes.filter(|note| note.kind == Kind::Merged as u8).map(|note| note.number.get());
        entries.chain(windows).max()
    }
}

/// A segment that holds a part of the history.
pub(crate) struct PartSource {
    /// Index of the portion.
    pub portion: usize,
    /// Index in the directory's places of that portion.
    pub(super) index: usize,
    pub place: Place,
    /// Entries with a lower order are no longer part of it; counts for the received portion.
    pub(super) from_order: u64,
    /// Gaps and markers, and in merged portions everything, stamped at or below this are no longer part of it.
    pub(super) after_timestamp: u64,
}

impl PartSource {
    /// What is stamped at or below this is no longer part of it.
    pub fn after_timestamp(&self) -> u64 {
        self.after_timestamp
    }

    /// From its index if it is sealed and the index is whole, else from its batches. What is no longer part of
    /// the history is left out.
    pub fn load(&self, reader: &JournalReader) -> Result<Part, Error> {
        let mut part = self.load_all(reader)?;
        let (from_order, after) = (self.from_order, self.after_timestamp);
        if self.portion > 0 {
            part.rows.retain(|row| row.timestamp.get() > after);
        } else if part.first_order < from_order {
            let gone = from_order - part.first_order;
            let merged = |row: &&IndexRow| u64::from(row.order.get()) < gone;
            let late = part.rows.iter().filter(merged).filter(|row| row.flags.get() & flags::LATE != 0);
            part.late_merged = late.copied().collect();
            part.last_of_segment = part.last_order();
            part.rows.retain(|row| u64::from(row.order.get()) >= gone);
        }
        if after > 0 {
            // Completions stay: their entries may be of any time before. Late ones went with what was merged.
            let is_answer = |note: &NoteRow| {
                self.portion == 0
                    && note.kind == Kind::Completion as u8
                    && note.flags.get() & flags::LATE == 0
            };
            part.notes.retain(|note| note.timestamp.get() > after || is_answer(note));
        }
        Ok(part)
    }

    /// With what is no longer part of the history.
    pub(super) fn load_all(&self, reader: &JournalReader) -> Result<Part, Error> {
        let indexed = match self.seal(reader)? {
            Some(seal) => from_index(reader, &self.place, &seal)?,
            None => None,
        };
        let mut part = match indexed {
            Some(part) => part,
            None if self.portion > 0 => from_merged_batches(reader, self)?,
            None => from_batches(reader, self.index, &self.place)?,
        };
        part.portion = self.portion;
        Ok(part)
    }

    /// The seal, if everything that it speaks of belongs to the journal as the reader knows it.
    pub fn seal(&self, reader: &JournalReader) -> Result<Option<SealHeader>, Error> {
        match self.portion {
            0 => reader.seal_of(&self.place),
            portion => Ok(walk::read_any_seal(reader.storage(), reader.head(), self.place.slot)?
                .filter(|seal| usize::from(seal.portion) == portion && is_of_this_use(seal, &self.place))),
        }
    }
}

/// Does the seal belong to the segment as it is used now? A tail that was cut may have filled it with the same sequence; its
/// seal is older than the session that took the segment into use anew.
pub(super) fn is_of_this_use(seal: &SealHeader, place: &Place) -> bool {
    let sealed_since = |header: &SegmentHeader| seal.session.get() >= header.session.get();
    seal.sequence.get() == place.sequence && place.header.as_ref().is_none_or(sealed_since)
}

/// `None`: the index is damaged.
fn from_index(reader: &JournalReader, place: &Place, seal: &SealHeader) -> Result<Option<Part>, Error> {
    let (from, to) = (seal.index_offset.get() as usize, seal.tables_offset.get() as usize);
    let (rows, notes) = (seal.index_rows.get() as usize, seal.note_rows.get() as usize);
    let used = (rows + notes).checked_mul(size_of::<IndexRow>());
    if to as u64 > reader.segment_bytes() || used.is_none_or(|used| from + used > to) {
        return Ok(None);
    }
    // Read where they stay; what is behind them is only summed.
    let mut rows = vec![IndexRow::new_zeroed(); rows];
    let mut notes = vec![NoteRow::new_zeroed(); notes];
    let mut rest = vec![0; to - from - used.unwrap_or(0)];
    let (mut at, mut crc) = (reader.segment_offset(place.slot) + from as u64, crc::crc32c(&[]));
    for bytes in [rows.as_mut_bytes(), notes.as_mut_bytes(), &mut rest[..]] {
        storage::read_exact(reader.storage(), bytes, at)?;
        crc = crc::append(crc, bytes);
        at += bytes.len() as u64;
    }
    if crc != seal.index_crc.get() {
        return Ok(None);
    }
    let (first_order, last_timestamp) = (seal.first_order.get(), seal.last_timestamp.get());
    Ok(Some(Part {
        slot: place.slot,
        portion: 0,
        first_order,
        last_timestamp,
        rows,
        notes,
        late_merged: Vec::new(),
        last_of_segment: 0,
    }))
}

fn from_batches(reader: &JournalReader, index: usize, place: &Place) -> Result<Part, Error> {
    let Some(header) = place.header else { return Err(headless(reader, place)) };
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
    let (first_order, last_timestamp) = (header.first_order.get(), segment.last_timestamp);
    let (rows, notes) = segment.into_index();
    Ok(Part {
        slot: place.slot,
        portion: 0,
        first_order,
        last_timestamp,
        rows,
        notes,
        late_merged: Vec::new(),
        last_of_segment: 0,
    })
}

/// A merged segment whose index is damaged: all its batches are there, up to its seal.
fn from_merged_batches(reader: &JournalReader, source: &PartSource) -> Result<Part, Error> {
    let place = &source.place;
    let Some(header) = place.header else { return Err(headless(reader, place)) };
    let mut segment = OpenSegment::new(place.clone(), header);
    for batch in merged_batches(reader, source)? {
        add(&mut segment, &batch?, |port| reader.arbiter(port));
    }
    let (first_order, last_timestamp) = (header.first_order.get(), segment.last_timestamp);
    let (rows, notes) = segment.into_index();
    Ok(Part {
        slot: place.slot,
        portion: source.portion,
        first_order,
        last_timestamp,
        rows,
        notes,
        late_merged: Vec::new(),
        last_of_segment: 0,
    })
}

/// The batches of a merged segment, in order. Where the seal says that there are more, their lack is damage.
pub(crate) fn merged_batches<'a>(
    reader: &'a JournalReader,
    source: &PartSource,
) -> Result<impl Iterator<Item = Result<Batch, Error>> + 'a, Error> {
    let place = source.place.clone();
    let Some(header) = place.header else { return Err(headless(reader, &place)) };
    let start = reader.segment_offset(place.slot);
    let seal = source.seal(reader)?;
    let end = seal.map(|seal| start + u64::from(seal.batches_end.get()));
    let limit = start + reader.segment_bytes() - BLOCK_BYTES as u64;
    let used = Use {
        journal_id: reader.head().journal_id(),
        portion: header.portion,
        segment_sequence: place.sequence,
        session: header.session.get(),
    };
    let mut at = start + BLOCK_BYTES as u64;
    let mut finished = false;
    Ok(std::iter::from_fn(move || {
        if finished || end.is_some_and(|end| at >= end) || at + BLOCK_BYTES as u64 > limit {
            return None;
        }
        let batch = read_merged(reader, at, &used, limit - at);
        match &batch {
            Ok(batch) => at = batch.end(),
            // Without a seal nobody says where the batches end.
            Err(error) if end.is_none() && error.is_corruption() => return None,
            Err(_) => finished = true,
        }
        Some(batch)
    }))
}

fn read_merged(reader: &JournalReader, at: u64, used: &Use, room: u64) -> Result<Batch, Error> {
    let mut bytes = [0; BATCH_HEADER_BYTES];
    storage::read_exact(reader.storage(), &mut bytes, at)?;
    let wrong = |what: String| Error::corrupt(&reader.file_name(), at, what);
    match batch::look(&bytes, used, room) {
        batch::Found::Header(header) => Batch::read(reader.storage(), at, &header)?.map_err(wrong),
        batch::Found::Damaged(what) => Err(wrong(what)),
        batch::Found::Stale | batch::Found::Nothing => {
            Err(wrong(format!("a batch of merged segment {} is missing", used.segment_sequence)))
        }
    }
}

fn headless(reader: &JournalReader, place: &Place) -> Error {
    let what = format!("header of segment {} is damaged, and so is its index", place.sequence);
    Error::corrupt(&reader.file_name(), reader.segment_offset(place.slot), what)
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
