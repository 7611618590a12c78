//! One pass over what is to be merged: which windows there are, who was complete in them, and what is kept as it is.

use crate::batch::Batch;
use crate::error::Error;
use crate::history::{self, PartSource};
use crate::reader::JournalReader;
use crate::record::{OwnedRecord, StoredRecord};
use layout::entry::{flags, EntryHeader, Journaled, Kind, Updated};
use layout::journal_file::{port_flags, MergedWindow, BLOCK_BYTES};
use std::collections::{BTreeSet, HashSet};
use zerocopy::FromBytes;

/// A window to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Window {
    /// Stamp behind which it begins, and that of its end.
    pub from: u64,
    pub to: u64,
    pub first_order: u64,
    pub last_order: u64,
    /// Stamps of the entries with those orders.
    pub first_timestamp: u64,
    pub last_timestamp: u64,
    /// Ports whose entries are not known to be complete.
    pub incomplete: BTreeSet<u8>,
}

/// What a pass may take.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    /// Nothing stamped above this.
    pub until: u64,
    /// No further window once there is so much: bytes of payload and headers, entries.
    pub bytes: u64,
    pub entries: u64,
}

/// What is to be merged.
#[derive(Default)]
pub(super) struct Pass {
    pub windows: Vec<Window>,
    /// Gaps, markers and late answers up to where everything was taken, in order of their stamps.
    pub kept: Vec<OwnedRecord>,
    /// Stamp up to which everything was taken.
    pub until: u64,
    /// Last order up to there.
    pub last_order: u64,
    pub entries: u64,
    pub bytes: u64,
    /// What the heads of the windows' batches may take.
    batches: u64,
}

/// Divides stamps into windows.
pub(super) struct Grid<'a> {
    /// Length of a window, ns.
    pub length: u64,
    /// Orders after which a window has to end: moments with a name, rising.
    pub cuts: &'a [u64],
}

impl Grid<'_> {
    /// End of the window that a stamp lies in.
    fn end(&self, stamp: u64) -> u64 {
        stamp.div_ceil(self.length).saturating_mul(self.length)
    }
}

/// Goes over a portion from its beginning.
pub(super) fn pass(
    reader: &JournalReader,
    portion: usize,
    grid: &Grid<'_>,
    limits: &Limits,
) -> Result<Pass, Error> {
    let begins = reader.head().superblock.portions[portion].after_timestamp.get();
    let mut taking = Taking {
        reader,
        grid,
        limits,
        pass: Pass::default(),
        open: None,
        counted: (0, 0),
        begins,
        ended: begins,
        full: false,
    };
    match portion {
        0 => taking.received()?,
        merged => taking.merged(merged)?,
    }
    let mut pass = taking.finish();
    if portion == 0 {
        place_late_answers(reader, &mut pass.kept)?;
    }
    Ok(pass)
}

/// A late answer has its entry's number, which means nothing any more once that is merged. It is kept with the entry's order
/// and place, and the last order from before it.
fn place_late_answers(reader: &JournalReader, kept: &mut [OwnedRecord]) -> Result<(), Error> {
    let is_answer = |record: &&mut OwnedRecord| record.header.kind == Kind::Completion as u8;
    let key = |header: &EntryHeader| (reader.arbiter(header.port), header.number.get());
    let keys: HashSet<(u16, u64)> =
        kept.iter_mut().filter(is_answer).map(|record| key(&record.header)).collect();
    if keys.is_empty() {
        return Ok(());
    }
    let entries = reader.unsettled_entries(&keys)?;
    for record in kept.iter_mut().filter(is_answer) {
        let answer = record.header;
        let mut header = EntryHeader::new(Kind::Completion);
        header.flags = flags::LATE.into();
        header.set_status(Journaled::Durable, Updated::Unknown);
        (header.timestamp, header.port, header.sequence) = (answer.timestamp, answer.port, answer.sequence);
        match entries.get(&key(&answer)) {
            Some(entry) => {
                header.number = entry.order.into();
                entry.place(&mut header);
            }
            // An entry that was merged before its answer came is not known any more.
            None if answer.sectors.get() > 0 => {
                (header.volume, header.lba, header.sectors) = (answer.volume, answer.lba, answer.sectors);
            }
            None => {}
        }
        header.seal(&[]);
        record.header = header;
    }
    Ok(())
}

struct Taking<'a> {
    reader: &'a JournalReader,
    grid: &'a Grid<'a>,
    limits: &'a Limits,
    pass: Pass,
    /// The window that is being filled; its end is that of the grid, unless a named moment ends it before.
    open: Option<Window>,
    /// Entries and bytes of the window that is being filled.
    counted: (u64, u64),
    /// Everything up to this stamp has been taken before.
    begins: u64,
    /// End of the window before.
    ended: u64,
    full: bool,
}

impl Taking<'_> {
    fn received(&mut self) -> Result<(), Error> {
        let mut last_order = self.reader.head().superblock.portions[0].from_order.get().saturating_sub(1);
        for record in self.reader.records() {
            let record = record?;
            let stamp = record.header.timestamp.get();
            // What is stamped like the last window's end goes with it.
            if stamp > self.limits.until || (self.full && stamp > self.pass.until) {
                break;
            }
            match record.order {
                Some(order) => {
                    last_order = order;
                    let entry = Window {
                        to: stamp,
                        first_order: order,
                        last_order: order,
                        first_timestamp: stamp,
                        last_timestamp: stamp,
                        ..Window::default()
                    };
                    self.take(entry);
                    let bytes = record.header.payload_bytes.get();
                    let locked =
                        record.header.flags.get() & (flags::CLOCK_LOCKED | flags::CLOCK_HOLDOVER) != 0;
                    if let Some(open) = self.open.as_mut().filter(|_| !locked) {
                        open.incomplete.insert(record.header.port);
                    }
                    self.count(1, u64::from(bytes));
                    self.cut(order, stamp);
                }
                None if record.kind == Kind::Completion => {
                    // The others are in the statuses of their entries.
                    if record.header.flags.get() & flags::LATE != 0 && stamp > self.begins {
                        let header = EntryHeader { sequence: last_order.into(), ..record.header };
                        self.pass.kept.push(OwnedRecord { header, payload: Vec::new() });
                    }
                }
                None => self.keep(&record)?,
            }
        }
        Ok(())
    }

    fn merged(&mut self, portion: usize) -> Result<(), Error> {
        let sources: Vec<PartSource> =
            self.reader.sources()?.into_iter().filter(|source| source.portion == portion).collect();
        let mut current = None;
        for source in &sources {
            for batch in history::merged_batches(self.reader, source)? {
                if !self.merged_batch(&batch?, source, &mut current)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// False: nothing more is to be taken.
    fn merged_batch(
        &mut self,
        batch: &Batch,
        source: &PartSource,
        current: &mut Option<u64>,
    ) -> Result<bool, Error> {
        for record in batch.records() {
            let stamp = record.header.timestamp.get();
            if stamp <= source.after_timestamp() {
                continue;
            }
            // A window that has been begun is taken to its end.
            let goes_on = *current == Some(stamp);
            if stamp > self.limits.until || (self.full && !goes_on) {
                return Ok(false);
            }
            match record.kind {
                Kind::Merged => {
                    *current = Some(stamp);
                    self.take(self.window_of(&record)?);
                    let invalid = batch.ports.iter().filter(|state| state.flags & port_flags::VALID == 0);
                    if let Some(open) = &mut self.open {
                        open.incomplete.extend(invalid.map(|state| state.port));
                    }
                    self.cut(record.header.number.get(), stamp);
                }
                Kind::Gap | Kind::Marker | Kind::Completion => self.keep(&record)?,
                _ => self.count(1, u64::from(record.header.payload_bytes.get())),
            }
        }
        Ok(true)
    }

    fn window_of(&self, record: &StoredRecord) -> Result<Window, Error> {
        let payload = self.reader.payload(record)?;
        let (contents, _) = MergedWindow::read_from_prefix(&payload).map_err(|_| {
            let what = "the record of a merged window is too short";
            Error::corrupt(&self.reader.file_name(), record.location.payload, what)
        })?;
        Ok(Window {
            from: record.header.sequence.get(),
            to: record.header.timestamp.get(),
            first_order: contents.first_order.get(),
            last_order: record.header.number.get(),
            first_timestamp: contents.first_timestamp.get(),
            last_timestamp: contents.last_timestamp.get(),
            incomplete: BTreeSet::new(),
        })
    }

    /// Takes an entry, or a window of finer grain, into the window that it lies in.
    fn take(&mut self, entry: Window) {
        let end = self.grid.end(entry.to);
        if self.open.as_ref().is_some_and(|open| open.to != end) {
            self.close(None);
        }
        let (ended, length) = (self.ended, self.grid.length);
        let open = self.open.get_or_insert_with(|| Window {
            from: ended.max(end.saturating_sub(length)),
            to: end,
            first_order: entry.first_order,
            first_timestamp: entry.first_timestamp,
            ..Window::default()
        });
        (open.last_order, open.last_timestamp) = (entry.last_order, entry.last_timestamp);
    }

    /// A moment with a name ends the window that it lies in, at the stamp of its entry. `stamp` is that of what was taken
    /// last, which a window of finer grain has at its own end.
    fn cut(&mut self, order: u64, stamp: u64) {
        if self.grid.cuts.binary_search(&order).is_ok() {
            let named = self.open.as_ref().map(|open| open.last_timestamp);
            self.close(named);
            self.pass.until = self.pass.until.max(stamp);
        }
    }

    fn close(&mut self, to: Option<u64>) {
        if let Some(mut window) = self.open.take() {
            window.to = to.unwrap_or(window.to);
            self.ended = window.to;
            self.pass.until = window.to;
            self.pass.last_order = window.last_order;
            self.pass.windows.push(window);
            let (entries, bytes) = std::mem::take(&mut self.counted);
            self.pass.entries += entries;
            self.pass.bytes += bytes;
            // A window begins a batch.
            self.pass.batches += BLOCK_BYTES as u64;
            let bytes = self.pass.bytes + self.pass.batches;
            self.full |= bytes >= self.limits.bytes || self.pass.entries >= self.limits.entries;
        }
    }

    fn count(&mut self, entries: u64, payload: u64) {
        self.counted.0 += entries;
        self.counted.1 += payload + layout::entry::HEADER_BYTES as u64;
    }

    fn keep(&mut self, record: &StoredRecord) -> Result<(), Error> {
        if matches!(record.kind, Kind::Gap | Kind::Marker | Kind::Completion) {
            let payload = self.reader.payload(record)?;
            self.pass.kept.push(OwnedRecord { header: record.header, payload });
        }
        Ok(())
    }

    fn finish(mut self) -> Pass {
        // Everything up to the limit was seen, so the last window is whole; if there is one too many for this
        // pass, it is left for the next.
        if !self.full {
            self.close(None);
        }
        let until = self.pass.until;
        self.pass.kept.retain(|record| record.header.timestamp.get() <= until);
        self.pass
    }
}

/// A gap makes its port incomplete in every window that it touches, wherever its record lies.
pub(super) fn apply_gaps(windows: &mut [Window], gaps: &[history::MissingSpan]) {
    for window in windows {
        let touched = gaps.iter().filter(|gap| gap.from < window.to && gap.to > window.from);
        window.incomplete.extend(touched.map(|gap| gap.port));
    }
}
