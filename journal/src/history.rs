//! What happened to a volume: every entry of the received portion, from the segments' indexes where
//! they are sealed, from the batches' descriptors where they are not.

use crate::batch::{self, Batch, Use};
use crate::beside::HOST_PORT;
use crate::error::Error;
use crate::large_memory;
use crate::moment::Moment;
use crate::payloads::Payloads;
use crate::reader::JournalReader;
use crate::segment::{is_unsettled, lba, Indexed, OpenSegment};
use crate::sizes::{self, Change, Sizes};
use crate::storage::{self};
use crate::tables::Volume;
use crate::walk::{self, Place, Step, Walk};
use crate::windows;
use layout::crc;
use layout::entry::{flags, Encoding, Gap, GapReason, Kind, Rollback, Updated};
use layout::journal_file::{
    IndexRow, MergedWindow, NoteRow, Portion, SealHeader, SegmentHeader, BATCH_HEADER_BYTES, BLOCK_BYTES,
    PAYLOAD_ALIGN,
};
use std::collections::HashMap;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// A write to the volume, small enough that ten million of them fit in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
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
    /// With [`super::Wanted::Any`]: a rollback wrote it.
    pub const ROLLBACK: u8 = 1 << 5;
    /// With [`super::Wanted::Each`]: it holds the image before.
    pub const HAS_BEFORE: u8 = 1 << 6;
    /// With [`super::Wanted::Each`]: it holds the image after.
    pub const HAS_AFTER: u8 = 1 << 7;
    /// With [`super::Wanted::Each`]: nothing was written, it was only read back.
    pub const READ_BACK: u8 = SECOND;
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

    /// A write made up for a test.
    #[cfg(test)]
    pub fn made(lba: u64, sectors: u64, order: u64, marks: u8, port: u8, place: u64) -> Self {
        let payload = u64::from(port) << 56 | place;
        Self { extent: lba << 16 | sectors, rank: order << 8 | u64::from(marks), payload }
    }

    /// The same write with other marks.
    pub fn marked(&self, marks: u8) -> Self {
        Self { rank: self.rank & !0xFF | u64::from(marks), ..*self }
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
    /// Each that there is; the marks say which.
    Each,
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
    /// Only moments inside aren't known.
    pub bounded: bool,
}

/// Where a rollback begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RollbackMarker {
    pub stamp: u64,
    /// It undoes the rollback before it.
    pub undo: bool,
    /// It came through a port, as writes that nothing tells from others.
    pub through_port: bool,
    pub rollback: Rollback,
}

impl RollbackMarker {
    pub fn begins(&self) -> bool {
        self.rollback.last_order.get() == 0
    }
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
    pub rollbacks: Vec<RollbackMarker>,
    /// Sectors of entries that aren't of the span, or that were merged away, of which the span has a late answer: what
    /// was there until then is doubtful, without any write that could be marked.
    pub late: Vec<(u64, u64)>,
    /// Every size that the volume had.
    pub sizes: Sizes,
    /// Stamp of the first entry of the journal, of any volume, behind `until`.
    pub next: Option<u64>,
    /// The last entry of the journal, of any volume, at or before `until`, and at or before `after`.
    pub until: (u64, u64),
    pub after: (u64, u64),
    /// Stamps of those entries themselves, where `until` and `after` have the end of the window that they are in.
    pub until_written: u64,
    pub after_written: u64,
}

/// Is an entry at or before a moment?
pub(crate) fn reached(moment: Moment, order: u64, timestamp: u64) -> bool {
    match moment {
        Moment::End => true,
        Moment::Order(last) => order <= last,
        Moment::Timestamp(last) => timestamp <= last,
    }
}

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
}

impl Part {
    /// Of its last entry; without any, the one before.
    pub fn last_order(&self) -> u64 {
        let last = self.rows.iter().map(|row| u64::from(row.order.get())).max();
        last.map_or(self.first_order.saturating_sub(1), |last| self.first_order + last)
    }

    /// Of its last entry stamped at or before `stamp`; `None`: it has none.
    pub fn last_order_before(&self, stamp: u64) -> Option<u64> {
        let before = self.rows.iter().filter(|row| row.timestamp.get() <= stamp);
        before.map(|row| self.first_order + u64::from(row.order.get())).max()
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
    let mut found = read_each(reader, payloads, std::slice::from_ref(volume), span, progress)?;
    Ok(found.pop().unwrap_or_default())
}

/// Reads the history of several volumes in one go: one [`Found`] for each.
pub(crate) fn read_each(
    reader: &JournalReader,
    payloads: &Payloads,
    volumes: &[Volume],
    span: Span,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<Found>, Error> {
    let mut gather = Gather::new(reader, volumes, span);
    let mut take = |part: Part| {
        gather.part(&part, payloads)?;
        progress(gather.entries, reader.summary().order);
        Ok(())
    };
    let sources = reader.sources()?;
    let (at_once, ahead) = sources.split_at(sources.len().min(LOADED_AT_ONCE));
    at_once.iter().try_for_each(|source| take(source.load(reader)?))?;
    if !ahead.is_empty() {
        std::thread::scope(|scope| {
            let (send, parts) = std::sync::mpsc::sync_channel(PARTS_AHEAD);
            // Ends as soon as nobody wants more.
            let load =
                move || ahead.iter().map(|source| source.load(reader)).try_for_each(|part| send.send(part));
            scope.spawn(load);
            parts.into_iter().try_for_each(|part| take(part?))
        })?;
    }
    gather.finish(payloads)
}

/// A segment that holds a part of the history.
pub(crate) struct PartSource {
    /// Index of the portion.
    pub portion: usize,
    /// Index in the directory's places of that portion.
    index: usize,
    pub place: Place,
    /// Entries with a lower order are no longer part of it; counts for the received portion.
    from_order: u64,
    /// Gaps and markers, and in merged portions everything, stamped at or below this are no longer part of it.
    after_timestamp: u64,
}

impl PartSource {
    /// What is stamped at or below this is no longer part of it.
    pub fn after_timestamp(&self) -> u64 {
        self.after_timestamp
    }

    /// From its index if it is sealed and the index is whole, else from its batches. What is no longer part of
    /// the history is left out.
    pub fn load(&self, reader: &JournalReader) -> Result<Part, Error> {
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
        let (from_order, after) = (self.from_order, self.after_timestamp);
        if self.portion > 0 {
            part.rows.retain(|row| row.timestamp.get() > after);
        } else if part.first_order < from_order {
            let gone = from_order - part.first_order;
            let merged = |row: &&IndexRow| u64::from(row.order.get()) < gone;
            let late = part.rows.iter().filter(merged).filter(|row| row.flags.get() & flags::LATE != 0);
            part.late_merged = late.copied().collect();
            part.rows.retain(|row| u64::from(row.order.get()) >= gone);
        }
        if after > 0 {
            // Completions stay: their entries may be of any time before.
            part.notes.retain(|note| note.timestamp.get() > after || note.kind == Kind::Completion as u8);
        }
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

/// Parts that a thread of their own isn't worth it for.
const LOADED_AT_ONCE: usize = 32;
/// Parts that are loaded before they are asked for: some 10 MiB of rows.
const PARTS_AHEAD: usize = 8;

/// Does the seal belong to the segment as it is used now? A tail that was cut may have filled it with the same sequence; its
/// seal is older than the session that took the segment into use anew.
fn is_of_this_use(seal: &SealHeader, place: &Place) -> bool {
    let sealed_since = |header: &SegmentHeader| seal.session.get() >= header.session.get();
    seal.sequence.get() == place.sequence && place.header.as_ref().is_none_or(sealed_since)
}

/// Writes that room is reserved for at once.
const MOST_RESERVED: u64 = 1 << 26;

/// An entry that may still be answered.
#[derive(Clone, Copy)]
enum Unsettled {
    /// Index of its volume, and of it among that volume's writes.
    Inside(usize, usize),
    /// It came before the span: index of its volume, and its sectors.
    Before(usize, (u64, u64)),
    /// It came after the span.
    Behind,
}

struct Gather<'a> {
    reader: &'a JournalReader,
    volumes: &'a [Volume],
    span: Span,
    /// Of each volume.
    found: Vec<Found>,
    entries: u64,
    /// Entries that may still be answered, by arbiter and number.
    unsettled: HashMap<(u16, u64), Unsettled>,
    /// Late answers: the write, and the last order from before the answer.
    late: Vec<((usize, usize), u64)>,
    /// Late answers to entries from before the span, or that have been merged away: index of the volume, sectors, and the
    /// last order from before the answer.
    late_to_earlier: Vec<(usize, (u64, u64), u64)>,
    /// The highest order seen.
    last_order: u64,
    /// Stamp of the first entry of the journal, of any volume, behind the span.
    next: Option<u64>,
    until: (u64, u64),
    after: (u64, u64),
    /// The last windows that `until` and `after` reached: last order, and where the record lies.
    until_window: Option<(u64, u32, u64)>,
    after_window: Option<(u64, u32, u64)>,
    gaps: Vec<MissingSpan>,
}

impl<'a> Gather<'a> {
    fn new(reader: &'a JournalReader, volumes: &'a [Volume], span: Span) -> Self {
        let begins = reader.head().history_begins();
        Self {
            reader,
            volumes,
            span,
            found: volumes
                .iter()
                .map(|volume| Found { sizes: Sizes::of(volume.sectors), ..Found::default() })
                .collect(),
            entries: 0,
            unsettled: HashMap::new(),
            late: Vec::new(),
            late_to_earlier: Vec::new(),
            last_order: 0,
            next: None,
            until: begins,
            after: begins,
            until_window: None,
            after_window: None,
            gaps: Vec::new(),
        }
    }

    fn part(&mut self, part: &Part, payloads: &Payloads) -> Result<(), Error> {
        let mut open: HashMap<(u16, u64), Unsettled> = HashMap::new();
        if let [found] = &mut self.found[..] {
            // Most entries of a journal are of its largest volume; what isn't used is never touched.
            let all = self.reader.summary().order.min(MOST_RESERVED) as usize;
            let more = part.rows.len().max(all.saturating_sub(self.entries as usize));
            large_memory::reserve(&mut found.writes, more);
        }
        for row in &part.late_merged {
            self.late_merged_row(row, part);
        }
        for row in &part.rows {
            self.row(row, part, &mut open)?;
        }
        self.entries += part.rows.len() as u64;
        for note in &part.notes {
            match Kind::from_byte(note.kind) {
                Ok(Kind::Completion) => self.completion(note, part, payloads)?,
                Ok(Kind::Gap) => {
                    let record = payloads.record(part.slot, u64::from(note.descriptor.get()))?;
                    self.gap(note, &payloads.whole(&record)?);
                }
                Ok(Kind::Marker) => self.marker(note, part, payloads)?,
                // A window may have nothing to show: its last order is reached all the same.
                Ok(Kind::Merged) => self.window(note, part),
                Ok(_) => {
                    let arbiter = self.reader.arbiter(note.port);
                    if let Some(place) = open.remove(&(arbiter, note.timestamp.get())) {
                        self.unsettled.insert((arbiter, note.number.get()), place);
                    }
                }
                Err(kind) => return Err(self.unknown(part, &format!("record of kind {kind}"))),
            }
        }
        self.last_order = self.last_order.max(part.last_order());
        Ok(())
    }

    fn window(&mut self, note: &NoteRow, part: &Part) {
        let (order, stamp) = (note.number.get(), note.timestamp.get());
        let record = Some((order, part.slot, u64::from(note.descriptor.get())));
        self.reach(order, stamp);
        if reached(self.span.until, order, stamp) {
            self.until_window = record;
        }
        if self.span.after.is_some_and(|after| reached(after, order, stamp)) {
            self.after_window = record;
        }
    }

    /// Notes that there is such an entry. Does it lie in the span?
    fn reach(&mut self, order: u64, stamp: u64) -> bool {
        if self.span.after.is_some_and(|after| reached(after, order, stamp)) {
            self.after = self.after.max((order, stamp));
            self.until = self.until.max((order, stamp));
            return false;
        }
        if !reached(self.span.until, order, stamp) {
            self.next = Some(self.next.map_or(stamp, |next| next.min(stamp)));
            return false;
        }
        self.until = self.until.max((order, stamp));
        true
    }

    fn row(
        &mut self,
        row: &IndexRow,
        part: &Part,
        open: &mut HashMap<(u16, u64), Unsettled>,
    ) -> Result<(), Error> {
        let (order, stamp) = (part.first_order + u64::from(row.order.get()), row.timestamp.get());
        if !self.reach(order, stamp) {
            self.outside_row(row, part, open);
            return Ok(());
        }
        let Some(which) = self.volumes.iter().position(|volume| volume.index == row.volume.get()) else {
            return Ok(());
        };
        // What was read back from primary changed nothing there: there is nothing to undo.
        let read_back = row.kind == Kind::Resync as u8;
        if read_back && self.span.wanted == Wanted::Before {
            return Ok(());
        }
        let updated = match Updated::from_byte(row.status >> 4) {
            Ok(Updated::Pending) if read_back => Updated::Updated,
            Ok(updated) => updated,
            Err(status) => return Err(self.unknown(part, &format!("order:{order} with status {status}"))),
        };
        if matches!(updated, Updated::Refused | Updated::Cancelled) {
            self.found[which].skipped += 1;
            return Ok(());
        }
        let mut marks = self.image(row, order, part)?;
        let place = (which, self.found[which].writes.len());
        if is_unsettled(updated) {
            marks |= mark::DOUBTFUL;
            // What was merged awaits no answer.
            if part.portion == 0 {
                open.insert((self.reader.arbiter(row.port), stamp), Unsettled::Inside(place.0, place.1));
            }
        }
        if row.flags.get() & flags::LATE != 0 {
            // When the answer came the index doesn't say: at the segment's end at the latest.
            marks |= mark::DOUBTFUL;
            self.late.push((place, part.last_order()));
        }
        let payload = u64::from(row.port) << 56 | self.place(row, part);
        self.found[which].writes.push(Write {
            extent: lba(row) << 16 | u64::from(row.sectors.get()),
            rank: order << 8 | u64::from(marks),
            payload,
        });
        Ok(())
    }

    /// An entry that isn't of the span, of whose location a late answer may say something that is.
    fn outside_row(&mut self, row: &IndexRow, part: &Part, open: &mut HashMap<(u16, u64), Unsettled>) {
        let late = row.flags.get() & flags::LATE != 0;
        let unsettled = Updated::from_byte(row.status >> 4).is_ok_and(is_unsettled) && part.portion == 0;
        if !late && !unsettled {
            return;
        }
        let Some(which) = self.volumes.iter().position(|volume| volume.index == row.volume.get()) else {
            return;
        };
        let sectors = (lba(row), lba(row) + u64::from(row.sectors.get()));
        let (order, stamp) = (part.first_order + u64::from(row.order.get()), row.timestamp.get());
        let before = self.span.after.is_some_and(|after| reached(after, order, stamp));
        if unsettled {
            let kind = if before { Unsettled::Before(which, sectors) } else { Unsettled::Behind };
            open.insert((self.reader.arbiter(row.port), stamp), kind);
        }
        // When the answer came the index doesn't say: at the segment's end at the latest.
        if late && before && self.is_behind(part.last_order(), part.last_timestamp) {
            self.found[which].late.push(sectors);
            self.late_to_earlier.push((which, sectors, part.last_order()));
        }
    }

    fn late_merged_row(&mut self, row: &IndexRow, part: &Part) {
        let which = self.volumes.iter().position(|volume| volume.index == row.volume.get());
        let last = part.last_order();
        let in_span = self.span.after.is_none() || self.is_behind(last, part.last_timestamp);
        if let Some(which) = which.filter(|_| in_span) {
            let sectors = (lba(row), lba(row) + u64::from(row.sectors.get()));
            self.found[which].late.push(sectors);
            self.late_to_earlier.push((which, sectors, last));
        }
    }

    /// Does what came behind an entry, at a stamp, lie behind the beginning of the span?
    fn is_behind(&self, order: u64, stamp: u64) -> bool {
        match self.span.after {
            None | Some(Moment::End) => false,
            Some(Moment::Order(last)) => order >= last,
            Some(Moment::Timestamp(last)) => stamp > last,
        }
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
        if !matches!(kind, Kind::After | Kind::Before | Kind::Both | Kind::Resync) {
            return unknown(format!("is a {kind}, which is no entry"));
        }
        let none = part.portion > 0 && row.flags.get() & flags::NO_IMAGE != 0;
        Ok(match (self.span.wanted, kind) {
            (Wanted::Any, _) if row.flags.get() & flags::ROLLBACK != 0 => zero | mark::ROLLBACK,
            (Wanted::Any, _) => zero,
            (Wanted::Each, _) if none => 0,
            (Wanted::Each, Kind::After) => zero | mark::HAS_AFTER,
            (Wanted::Each, Kind::Resync) => zero | mark::HAS_AFTER | mark::READ_BACK,
            (Wanted::Each, Kind::Before) => zero | mark::HAS_BEFORE,
            (Wanted::Each, _) => zero | mark::HAS_AFTER | mark::HAS_BEFORE,
            _ if none => mark::NO_IMAGE,
            (Wanted::After, Kind::After | Kind::Resync) | (Wanted::Before, Kind::Before | Kind::Both) => zero,
            (Wanted::After, Kind::Both) => zero | mark::SECOND,
            (Wanted::After | Wanted::Before, _) => mark::NO_IMAGE,
        })
    }

    fn completion(&mut self, note: &NoteRow, part: &Part, payloads: &Payloads) -> Result<(), Error> {
        let key = (self.reader.arbiter(note.port), note.number.get());
        let late = note.flags.get() & flags::LATE != 0;
        let last_before = || part.last_order_before(note.timestamp.get()).unwrap_or(self.last_order);
        let place = match self.unsettled.get(&key).copied() {
            Some(Unsettled::Inside(which, index)) => (which, index),
            Some(Unsettled::Behind) => return Ok(()),
            Some(Unsettled::Before(which, sectors)) => {
                let last = last_before();
                if late && self.is_behind(last, note.timestamp.get()) {
                    self.found[which].late.push(sectors);
                    self.late_to_earlier.push((which, sectors, last));
                } else if !late && !Updated::from_byte(note.status >> 4).is_ok_and(is_unsettled) {
                    self.unsettled.remove(&key);
                }
                return Ok(());
            }
            None if late && self.reader.head().history_begins_received() > 0 => {
                return self.late_to_merged(note, part, payloads, last_before());
            }
            None => return Ok(()),
        };
        if late {
            let last = last_before();
            self.late.push((place, last));
            return Ok(());
        }
        let write = &mut self.found[place.0].writes[place.1];
        match Updated::from_byte(note.status >> 4) {
            Ok(Updated::Updated) => write.clear(mark::DOUBTFUL),
            Ok(Updated::Refused | Updated::Cancelled) => write.set(mark::DROPPED),
            _ => return Ok(()),
        }
        self.unsettled.remove(&key);
        Ok(())
    }

    /// A late answer to an entry that may have been merged away, with its number.
    fn late_to_merged(
        &mut self,
        note: &NoteRow,
        part: &Part,
        payloads: &Payloads,
        last: u64,
    ) -> Result<(), Error> {
        if self.span.after.is_some() && !self.is_behind(last, note.timestamp.get()) {
            return Ok(());
        }
        let header = payloads.record(part.slot, u64::from(note.descriptor.get()))?.header;
        let (lba, sectors) = (header.lba(), u64::from(header.sectors.get()));
        let arbiter = self.reader.arbiter(note.port);
        for (which, volume) in self.volumes.iter().enumerate() {
            // Where its entry wrote, the answer may say. If it doesn't, that can be anywhere.
            let extent = match sectors {
                0 if volume.arbiter == arbiter => (0, u64::MAX),
                0 => continue,
                _ if volume.index == header.volume.get() => (lba, lba + sectors),
                _ => continue,
            };
            self.late_to_earlier.push((which, extent, last));
            self.found[which].late.push(extent);
        }
        Ok(())
    }

    fn marker(&mut self, note: &NoteRow, part: &Part, payloads: &Payloads) -> Result<(), Error> {
        let record = payloads.record(part.slot, u64::from(note.descriptor.get()))?;
        let volume = record.header.volume.get();
        let Some(which) = self.volumes.iter().position(|known| known.index == volume) else {
            return Ok(());
        };
        if note.flags.get() & flags::RESYNCED != 0 {
            self.found[which].resynced.push(note.timestamp.get());
        }
        if note.flags.get() & flags::ROLLBACK != 0 {
            let payload = payloads.whole(&record)?;
            if let Ok((rollback, _)) = Rollback::read_from_prefix(&payload) {
                self.found[which].rollbacks.push(RollbackMarker {
                    stamp: note.timestamp.get(),
                    undo: note.flags.get() & flags::UNDO != 0,
                    through_port: note.port == HOST_PORT,
                    rollback,
                });
            }
        }
        let resize = sizes::resize_of(&self.reader.file_name(), &record, || payloads.whole(&record))?;
        if let Some((before, after)) = resize {
            let stamp = note.timestamp.get();
            let order = part.last_order_before(stamp).unwrap_or(self.last_order);
            self.found[which].sizes.push(Change { stamp, order, before, after });
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
            Ok(GapReason::WritesLost) => "primary lost writes that had not been flushed".to_owned(),
            Err(word) => format!("reason {word}"),
        };
        let (from, to) = (gap.from_timestamp.get(), note.timestamp.get());
        let bounded = gap.reason.get() == GapReason::WritesLost as u32;
        self.gaps.push(MissingSpan { port: note.port, from, to, reason, bounded });
    }

    fn finish(mut self, payloads: &Payloads) -> Result<Vec<Found>, Error> {
        self.doubt_what_a_late_answer_may_have_overwritten();
        let until_written = self.written(self.until, self.until_window, payloads)?;
        let after_written = self.written(self.after, self.after_window, payloads)?;
        self.gaps.sort_by_key(|gap| (gap.from, gap.port));
        let mut all = std::mem::take(&mut self.found);
        for (which, found) in all.iter_mut().enumerate() {
            let sizes = &found.sizes;
            let smallest = sizes.smallest();
            let single = matches!(self.span.wanted, Wanted::After | Wanted::Before);
            let (before, mut outside) = (found.writes.len(), None);
            // Past the end nothing can have been executed, whatever became of the answer.
            found.writes.retain_mut(|write| {
                if write.marks() & mark::DROPPED != 0 {
                    return false;
                }
                if write.end() > smallest && write.end() > self.size_for(write, sizes) {
                    if write.marks() & mark::DOUBTFUL == 0 {
                        outside.get_or_insert(*write);
                    }
                    return false;
                }
                if single && write.marks() & mark::NO_IMAGE != 0 {
                    found.without_image.get_or_insert(write.order());
                }
                true
            });
            if let Some(write) = outside {
                return Err(self.outside(which, &write, sizes));
            }
            found.skipped += (before - found.writes.len()) as u64;
            found.gaps.clone_from(&self.gaps);
            (found.next, found.until, found.after) = (self.next, self.until, self.after);
            (found.until_written, found.after_written) = (until_written, after_written);
        }
        Ok(all)
    }

    /// Stamp of the last entry up to a moment.
    fn written(
        &self,
        last: (u64, u64),
        window: Option<(u64, u32, u64)>,
        payloads: &Payloads,
    ) -> Result<u64, Error> {
        let Some((_, slot, descriptor)) = window.filter(|(order, ..)| *order == last.0) else {
            return Ok(last.1);
        };
        let payload = payloads.whole(&payloads.record(slot, descriptor)?)?;
        let window = MergedWindow::read_from_prefix(&payload);
        Ok(window.map_or(last.1, |(window, _)| window.last_timestamp.get()))
    }

    /// Sectors of the volume when it was written. What was merged was looked at when it was, and in its window the
    /// volume may have had several sizes.
    fn size_for(&self, write: &Write, sizes: &Sizes) -> u64 {
        match write.order() < self.reader.head().superblock.portions[0].from_order.get() {
            true => sizes.largest(),
            false => sizes.at_order(write.order()),
        }
    }

    /// The target may have executed the write at any time up to its late answer: what was written to
    /// the same place in between is doubtful too (DESIGN §3.4).
    fn doubt_what_a_late_answer_may_have_overwritten(&mut self) {
        for ((which, late), until) in std::mem::take(&mut self.late) {
            let original = self.found[which].writes[late];
            self.doubt(which, (original.lba(), original.end()), (original.order(), until));
        }
        for (which, sectors, until) in std::mem::take(&mut self.late_to_earlier) {
            self.doubt(which, sectors, (0, until));
        }
    }

    /// What was written to these sectors by entries from one order to another, both included, is doubtful.
    fn doubt(&mut self, which: usize, sectors: (u64, u64), orders: (u64, u64)) {
        for write in &mut self.found[which].writes {
            let overlaps = write.lba() < sectors.1 && sectors.0 < write.end();
            if overlaps && (orders.0..=orders.1).contains(&write.order()) {
                write.set(mark::DOUBTFUL);
            }
        }
    }

    fn unknown(&self, part: &Part, what: &str) -> Error {
        Error::Version {
            file: self.reader.file_name(),
            what: format!("index at offset {}: {what}", self.reader.segment_offset(part.slot)),
        }
    }

    fn outside(&self, which: usize, write: &Write, sizes: &Sizes) -> Error {
        let what = format!(
            "order:{} updated sectors past the end of volume {}, which had {}",
            write.order(),
            self.volumes[which].name(),
            self.size_for(write, sizes)
        );
        Error::corrupt(&self.reader.file_name(), write.place(), what)
    }
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
        for source in self.sources()?.iter().filter(|source| source.portion == 0) {
            let part = source.load(self)?;
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
        let moment = windows::locate(self, moment)?;
        // From the back: the first segment that has any such entry has the last one.
        for source in self.sources()?.iter().rev() {
            let part = source.load(self)?;
            let entries = part
                .rows
                .iter()
                .map(|row| (part.first_order + u64::from(row.order.get()), row.timestamp.get()));
            let windows = part.notes.iter().filter(|note| note.kind == Kind::Merged as u8);
            let all = entries.chain(windows.map(|note| (note.number.get(), note.timestamp.get())));
            if let Some(last) = all.filter(|(order, stamp)| reached(moment, *order, *stamp)).max() {
                return Ok(last);
            }
        }
        Ok(self.head().history_begins())
    }

    /// The segments that hold the history, its oldest part first, without a hole.
    pub(crate) fn sources(&self) -> Result<Vec<PartSource>, Error> {
        let mut sources = Vec::new();
        for (index, portion) in self.head().portions() {
            let bounds = (portion.from_order.get(), portion.after_timestamp.get());
            let places = match index {
                0 => self.places()?,
                merged => self.merged_places(merged, portion)?,
            };
            sources.extend(places.into_iter().map(|(at, place)| PartSource {
                portion: index,
                index: at,
                place,
                from_order: bounds.0,
                after_timestamp: bounds.1,
            }));
        }
        Ok(sources)
    }

    fn merged_places(&self, index: usize, portion: &Portion) -> Result<Vec<(usize, Place)>, Error> {
        let places = &self.directory().merged[index];
        for sequence in portion.first_sequence.get()..portion.end_sequence.get() {
            if places.iter().all(|place| place.sequence != sequence) {
                let what = format!("segment {sequence} of merged portion {index} is missing");
                return Err(Error::corrupt(&self.file_name(), self.head().geometry.segments_offset, what));
            }
        }
        Ok(places.iter().cloned().enumerate().collect())
    }

    /// The segments of the received portion up to the journal's end, with their index in the directory, without
    /// a hole.
    fn places(&self) -> Result<Vec<(usize, Place)>, Error> {
        let mut places: Vec<(usize, Place)> = Vec::new();
        for (index, place) in self.directory().places.iter().enumerate() {
            // Its owner may have been taking it into use, and its header half written.
            if self.is_behind_end(u64::MAX) && index > self.end_position().at {
                break;
            }
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
            is_of_this_use(seal, place) && !self.is_behind_end(last)
        }))
    }
}
