//! Part by part: which writes there are, what became of them, and what stands between them.

use super::part::Part;
use super::{mark, reached, Found, MissingSpan, RollbackMarker, Span, Wanted, Write};
use crate::beside::HOST_PORT;
use crate::error::Error;
use crate::moment::Moment;
use crate::payloads::Payloads;
use crate::reader::JournalReader;
use crate::segment::{is_unsettled, lba};
use crate::sizes::{Change, Sizes};
use crate::tables::Volume;
use crate::{large_memory, sizes};
use late::{Answer, Doubt};
use layout::entry::{flags, Encoding, Gap, GapReason, Kind, Rollback, Updated};
use layout::journal_file::{IndexRow, MergedWindow, NoteRow, PAYLOAD_ALIGN};
use std::collections::HashMap;
use zerocopy::FromBytes;

mod late;

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

/// What is read of the history.
pub(super) struct Gather<'a> {
    reader: &'a JournalReader,
    volumes: &'a [Volume],
    span: Span,
    /// Of each volume.
    found: Vec<Found>,
    pub entries: u64,
    /// Entries that may still be answered, by arbiter and number.
    unsettled: HashMap<(u16, u64), Unsettled>,
    /// Late answers: the write, and the last order from before the answer.
    late: Vec<((usize, usize), u64)>,
    /// What late answers to entries leave doubtful that came before the span, or have been merged away.
    doubts: Vec<Doubt>,
    /// Late answers that have been merged, or whose entries have.
    answers: Vec<Answer>,
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
    pub fn new(reader: &'a JournalReader, volumes: &'a [Volume], span: Span) -> Self {
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
            doubts: Vec::new(),
            answers: Vec::new(),
            last_order: 0,
            next: None,
            until: begins,
            after: begins,
            until_window: None,
            after_window: None,
            gaps: Vec::new(),
        }
    }

    pub fn part(&mut self, part: &Part, payloads: &Payloads) -> Result<(), Error> {
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
            self.late_to_earlier(which, sectors, (order, part.last_order()));
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
        if part.portion > 0 {
            let answer = Answer::kept(&payloads.record(part.slot, u64::from(note.descriptor.get()))?.header);
            self.answers.push(answer);
            return Ok(());
        }
        let place = match self.unsettled.get(&key).copied() {
            Some(Unsettled::Inside(which, index)) => (which, index),
            Some(Unsettled::Behind) => return Ok(()),
            Some(Unsettled::Before(which, sectors)) => {
                let last = last_before();
                if late && self.is_behind(last, note.timestamp.get()) {
                    self.late_to_earlier(which, sectors, (0, last));
                } else if !late && !Updated::from_byte(note.status >> 4).is_ok_and(is_unsettled) {
                    self.unsettled.remove(&key);
                }
                return Ok(());
            }
            None if late && self.reader.head().history_begins_received() > 0 => {
                let last = last_before();
                let header = payloads.record(part.slot, u64::from(note.descriptor.get()))?.header;
                self.answers.push(Answer::to_merged(header, key, last));
                return Ok(());
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

    pub fn finish(mut self, payloads: &Payloads) -> Result<Vec<Found>, Error> {
        self.doubt_what_answers_to_merged_entries_say()?;
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
