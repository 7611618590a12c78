//! One step: what is due is read, combined window by window, and written.

use super::combine::{most_sectors, Combined, Half, Piece};
use super::due::{due, Due};
use super::final_watermark::final_watermark;
use super::give_up::{give_up, roll, GiveUp};
use super::output::{ChainEnd, Identity, Output};
use super::pass::{apply_gaps, pass, Grid, Limits, Pass, Window};
use super::{Change, MergeOptions, MergeOutcome, MergeStep, Merged, Target};
use crate::base::Rolling;
use crate::error::Error;
use crate::history::{self, PartSource, Span, Wanted, Write};
use crate::moment::Moment;
use crate::payloads::Payloads;
use crate::reader::JournalReader;
use crate::record::{OwnedRecord, Record};
use crate::tables::{Tables, Volume};
use crate::walk;
use layout::entry::{flags, Encoding, EntryHeader, Journaled, Kind, Updated};
use layout::journal_file::{
    port_flags, MergedWindow, NoteRow, PortState, SealHeader, BLOCK_BYTES, PAYLOAD_ALIGN,
};
use layout::SECTOR_BYTES;
use std::sync::Arc;
use zerocopy::{FromZeros, IntoBytes};

/// Most entries of a step: they are in memory with 24 bytes each, twice.
const STEP_ENTRIES: u64 = 4 << 20;
/// Of the room that a step has, how much its input may take: what is made of it may have more headers.
const INPUT_OF_ROOM: (u64, u64) = (2, 3);

impl MergeStep {
    /// Does it. Takes as long as reading and writing takes; the owner goes on meanwhile.
    pub fn run(self) -> MergeOutcome {
        let MergeStep { storage, session, slots, options, rolling, halvings } = self;
        let mut work = Work {
            taken: Vec::new(),
            spare: slots,
            session,
            roll: None,
            rolled: Vec::new(),
            halvings,
            windows: 0,
        };
        let mut named = Vec::new();
        let done = JournalReader::open_on(Arc::clone(&storage)).and_then(|reader| {
            named = named_moments(reader.tables());
            if !rolling.is_empty() {
                return roll(&reader, rolling, &mut work.rolled).map(|merged| (merged, None, Vec::new()));
            }
            let (merged, change) = work.run(&reader, &options)?;
            let gives_up = change.as_ref().filter(|change| change.target.is_none());
            let stamp = gives_up.map(|change| change.after_timestamp);
            let first_sizes = stamp.map_or(Ok(Vec::new()), |stamp| reader.sizes_behind(stamp))?;
            Ok((merged, change, first_sizes))
        });
        let Work { taken, spare, roll, rolled, windows, .. } = work;
        let (change, first_sizes, result) = match done {
            Ok((merged, change, first_sizes)) => (change, first_sizes, Ok(merged)),
            Err(error) => (None, Vec::new(), Err(error)),
        };
        MergeOutcome { change, roll, rolled, taken, spare, first_sizes, named, windows, result }
    }
}

struct Work {
    taken: Vec<u32>,
    spare: Vec<u32>,
    session: u64,
    roll: Option<(u64, u64)>,
    rolled: Vec<(Rolling, u64)>,
    /// How often the input is halved, because what was made of it didn't fit.
    halvings: u32,
    /// Windows that were tried.
    windows: usize,
}

impl Work {
    fn run(
        &mut self,
        reader: &JournalReader,
        options: &MergeOptions,
    ) -> Result<(Merged, Option<Change>), Error> {
        let schedule = &reader.tables().schedule;
        let settled = final_watermark(reader)?;
        let mut held_back = Vec::new();
        for due in due(reader, schedule, options.short, settled) {
            let done = match due.target {
                Some(target) => self.merge(reader, &due, target, options)?,
                None => match give_up(reader, &due, options, &mut held_back)? {
                    GiveUp::Nothing => None,
                    GiveUp::Change(merged, change) => Some((merged, change)),
                    GiveUp::Roll(to) => {
                        self.roll = Some(to);
                        return Ok((Merged { steps: 1, held_back, ..Merged::default() }, None));
                    }
                },
            };
            if let Some((merged, change)) = done {
                return Ok((Merged { steps: 1, held_back, ..merged }, Some(change)));
            }
        }
        Ok((Merged { held_back, ..Merged::default() }, None))
    }

    fn merge(
        &mut self,
        reader: &JournalReader,
        due: &Due,
        target: usize,
        options: &MergeOptions,
    ) -> Result<Option<(Merged, Change)>, Error> {
        let room = self.spare.len() as u64 * reader.segment_bytes();
        let limits = limits(due, room >> self.halvings);
        let Some(plan) = plan(reader, due, &limits, options.freeing_only)? else { return Ok(None) };
        if options.freeing_only && !plan.frees_room() {
            return Ok(None);
        }
        let Plan { taken, first_sequence, freed, by_window, payloads, .. } = plan;
        let mut merged = Merged {
            windows: taken.windows.len() as u64,
            entries_in: taken.entries,
            bytes_in: taken.bytes,
            segments_freed: freed.len() as u64,
            ..Merged::default()
        };
        self.windows = taken.windows.len();
        let end_sequence = self.write(reader, target, &taken, by_window, &payloads, &mut merged)?;
        let change = Change {
            source: due.source,
            first_sequence,
            from_order: taken.last_order + 1,
            after_timestamp: taken.until,
            target: Some(Target { portion: target, window: due.window, end_sequence }),
            freed,
        };
        Ok(Some((merged, change)))
    }

    fn write(
        &mut self,
        reader: &JournalReader,
        target: usize,
        taken: &Pass,
        writes: Vec<ByWindow>,
        payloads: &Payloads,
        merged: &mut Merged,
    ) -> Result<u64, Error> {
        let head = reader.head();
        let identity = Identity {
            journal_id: head.journal_id(),
            geometry: head.geometry,
            portion: target as u8,
            session: self.session,
        };
        let tables = head.encode_tables(&head.tables, head.table_generation)?;
        let end = chain_end(reader, target)?;
        let slots = std::mem::take(&mut self.spare);
        // Whatever happens, each of them may have been written.
        self.taken.clone_from(&slots);
        let output = Output::new(reader.storage(), identity, tables, slots, end);
        let mut writing = Writing {
            reader,
            payloads,
            volumes: &reader.tables().volumes,
            windows: &taken.windows,
            writes,
            output,
            merged,
        };
        writing.all(taken)?;
        let written = writing.output.finish()?;
        self.taken = written.taken;
        self.spare = written.spare;
        merged.segments_written = self.taken.len() as u64;
        Ok(written.end.next_segment)
    }
}

/// What a step may take that has so much room to write in.
pub(super) fn limits(due: &Due, room: u64) -> Limits {
    let bytes = room / INPUT_OF_ROOM.1 * INPUT_OF_ROOM.0;
    Limits { until: due.until, bytes, entries: STEP_ENTRIES }
}

/// What a step is going to do, before anything is written.
pub(super) struct Plan {
    pub taken: Pass,
    /// The oldest segment that the source keeps.
    first_sequence: u64,
    /// Segments that it gives up.
    pub freed: Vec<u32>,
    /// Segments that are written, at most.
    pub needed: u64,
    by_window: Vec<ByWindow>,
    payloads: Payloads,
}

impl Plan {
    /// Is there more room afterwards than before?
    pub fn frees_room(&self) -> bool {
        self.freed.len() as u64 > self.needed
    }
}

/// Plans a step; `None`: there is no window to make. `freeing_only`: nor if no segment would become free.
pub(super) fn plan(
    reader: &JournalReader,
    due: &Due,
    limits: &Limits,
    freeing_only: bool,
) -> Result<Option<Plan>, Error> {
    let cuts = named_moments(reader.tables());
    let grid = Grid { length: due.window, cuts: &cuts };
    let mut taken = pass(reader, due.source, &grid, limits)?;
    let Some(first) = taken.windows.first() else { return Ok(None) };
    let first_order = first.first_order;
    let (first_sequence, freed) = segments_given_up(reader, due.source, taken.until, taken.last_order)?;
    if freeing_only && freed.is_empty() {
        return Ok(None);
    }
    let payloads = Payloads::new(reader);
    let span = Span {
        after: Some(Moment::Order(first_order.saturating_sub(1))),
        until: Moment::Order(taken.last_order),
        wanted: Wanted::Each,
    };
    let found = history::read_each(reader, &payloads, &reader.tables().volumes, span, &mut |_, _| {})?;
    if let Some(any) = found.first() {
        apply_gaps(&mut taken.windows, &any.gaps);
    }
    let by_window: Vec<ByWindow> =
        found.into_iter().map(|found| ByWindow::of(found.writes, &taken.windows)).collect();
    let needed = segments_needed(reader, &taken, &by_window);
    Ok(Some(Plan { taken, first_sequence, freed, needed, by_window, payloads }))
}

/// Orders of moments with a name, rising: merging keeps them.
pub(super) fn named_moments(tables: &Tables) -> Vec<u64> {
    let bookmarks = tables.bookmarks.iter().map(|bookmark| bookmark.order);
    let mut orders: Vec<u64> = bookmarks.chain(tables.images.iter().map(|image| image.order)).collect();
    orders.sort_unstable();
    orders.dedup();
    orders
}

/// The oldest segment that the source keeps, and the slots of those that it gives up once nothing at or below that
/// order and stamp is part of it.
pub(super) fn segments_given_up(
    reader: &JournalReader,
    source: usize,
    until: u64,
    last_order: u64,
) -> Result<(u64, Vec<u32>), Error> {
    let sources: Vec<PartSource> =
        reader.sources()?.into_iter().filter(|part| part.portion == source).collect();
    let mut freed = Vec::new();
    for (index, part) in sources.iter().enumerate() {
        // The received portion goes on in its last segment.
        if source == 0 && index + 1 == sources.len() {
            break;
        }
        let loaded = part.load(reader)?;
        let all_rows = loaded.rows.iter().all(|row| match source {
            0 => loaded.first_order + u64::from(row.order.get()) <= last_order,
            _ => row.timestamp.get() <= until,
        });
        // The answers in it are to entries that go with it, or that are gone. Late ones are kept, once it is their turn; when
        // one came to an entry of the same segment, the index doesn't say.
        let is_late = |flags: u16| flags & flags::LATE != 0;
        let late_rows = loaded.rows.iter().chain(&loaded.late_merged).any(|row| is_late(row.flags.get()));
        if late_rows && loaded.last_timestamp > until {
            break;
        }
        let answer = |note: &&NoteRow| note.kind == Kind::Completion as u8 && !is_late(note.flags.get());
        let mut kept = loaded.notes.iter().filter(|note| !answer(note));
        let entry = |kind| matches!(kind, Kind::After | Kind::Before | Kind::Both);
        let all_notes = kept.all(|note| match Kind::from_byte(note.kind) {
            Ok(kind) if entry(kind) => true,
            _ => note.timestamp.get() <= until,
        });
        if !all_rows || !all_notes {
            break;
        }
        freed.push(part.place.slot);
    }
    let portion = &reader.head().superblock.portions[source];
    Ok((portion.first_sequence.get() + freed.len() as u64, freed))
}

/// Segments that the merged windows will take, rounded up.
fn segments_needed(reader: &JournalReader, taken: &Pass, writes: &[ByWindow]) -> u64 {
    let block = BLOCK_BYTES as u64;
    let most = most_sectors(&reader.head().geometry);
    let window = |index: usize| -> u64 {
        let pieces: u64 = writes.iter().map(|writes| Combined::of(writes.window(index), most).bytes()).sum();
        // Head of a batch, port table, the window's record, and padding.
        (pieces + block).next_multiple_of(block)
    };
    let bytes: u64 = (0..taken.windows.len()).map(window).sum();
    // Each with its row of the index, together in a batch before each window and behind the last.
    let batches = taken.kept.len().min(taken.windows.len() + 1) * 2 * BLOCK_BYTES;
    let one = |record: &OwnedRecord| {
        record.payload.len().next_multiple_of(PAYLOAD_ALIGN) + size_of::<EntryHeader>() + size_of::<NoteRow>()
    };
    let kept = batches + taken.kept.iter().map(one).sum::<usize>();
    // The last entry that doesn't fit leaves as much as half of it unused.
    let tables = reader.head().encode_tables(reader.tables(), 0).map_or(0, |tables| tables.len() as u64);
    let overhead = 3 * block + tables + most * SECTOR_BYTES as u64;
    (bytes + kept as u64).div_ceil(reader.segment_bytes() - overhead)
}

/// Where the chain of a merged portion ends.
fn chain_end(reader: &JournalReader, portion: usize) -> Result<ChainEnd, Error> {
    let next_segment = reader.head().superblock.portions[portion].end_sequence.get().max(1);
    let last = reader.directory().merged[portion].last().map(|place| place.slot);
    let Some(slot) = last else {
        // Segments are never given up so far that a portion forgets where it was: its sequences go on.
        return Ok(ChainEnd { next_segment, ..ChainEnd::default() });
    };
    let seal = walk::read_any_seal(reader.storage(), reader.head(), slot)?;
    let seal: SealHeader = seal.ok_or_else(|| {
        let offset = reader.head().geometry.seal_offset(slot);
        Error::corrupt(
            &reader.file_name(),
            offset,
            format!("the seal of merged portion {portion} is damaged"),
        )
    })?;
    Ok(ChainEnd {
        next_segment,
        batch: seal.first_batch.get() + seal.batches.get() - 1,
        batch_crc: seal.last_batch_crc.get(),
        digest: seal.digest,
    })
}

/// Writes of a volume, those of a window together.
pub(super) struct ByWindow {
    writes: Vec<Write>,
    /// Where each window's begin, and the end of the last.
    starts: Vec<usize>,
}

impl ByWindow {
    fn of(mut writes: Vec<Write>, windows: &[Window]) -> Self {
        let window = |write: &Write| windows.partition_point(|window| window.last_order < write.order());
        writes.sort_by_cached_key(window);
        let starts = (0..=windows.len()).map(|index| writes.partition_point(|write| window(write) < index));
        Self { starts: starts.collect(), writes }
    }

    fn window(&self, index: usize) -> &[Write] {
        &self.writes[self.starts[index]..self.starts[index + 1]]
    }
}

struct Writing<'a, 'b> {
    reader: &'a JournalReader,
    payloads: &'a Payloads,
    volumes: &'a [Volume],
    windows: &'a [Window],
    writes: Vec<ByWindow>,
    output: Output<'a>,
    merged: &'b mut Merged,
}

impl Writing<'_, '_> {
    fn all(&mut self, taken: &Pass) -> Result<(), Error> {
        let mut kept = taken.kept.iter().peekable();
        let mut before = taken.windows.first().map_or(0, |first| first.first_order.saturating_sub(1));
        for index in 0..self.windows.len() {
            let window = &self.windows[index];
            if kept.peek().is_some_and(|record| record.header.timestamp.get() <= window.to) {
                self.output.begin(before, self.ports(None))?;
            }
            while let Some(record) = kept.next_if(|record| record.header.timestamp.get() <= window.to) {
                let kind = Kind::from_byte(record.header.kind).unwrap_or(Kind::Marker);
                self.output.push(&record.as_record(), kind)?;
            }
            self.window(index)?;
            before = window.last_order;
        }
        // Behind a window that a named moment ends before its time.
        if kept.peek().is_some() {
            self.output.begin(before, self.ports(None))?;
        }
        for record in kept {
            let kind = Kind::from_byte(record.header.kind).unwrap_or(Kind::Marker);
            self.output.push(&record.as_record(), kind)?;
        }
        Ok(())
    }

    fn ports(&self, window: Option<&Window>) -> Vec<PortState> {
        let valid = |port: u8| window.is_some_and(|window| !window.incomplete.contains(&port));
        self.reader
            .port_states()
            .map(|(port, arbiter, delivered)| PortState {
                port,
                flags: if valid(port) { port_flags::VALID } else { 0 },
                arbiter: arbiter.into(),
                delivered: delivered.into(),
                ..PortState::new_zeroed()
            })
            .collect()
    }

    fn window(&mut self, index: usize) -> Result<(), Error> {
        let window = &self.windows[index];
        self.output.begin(window.last_order, self.ports(Some(window)))?;
        let payload = MergedWindow {
            first_order: window.first_order.into(),
            first_timestamp: window.first_timestamp.into(),
            last_timestamp: window.last_timestamp.into(),
            reserved: 0.into(),
        };
        let mut header = EntryHeader::new(Kind::Merged);
        header.timestamp = window.to.into();
        header.number = window.last_order.into();
        header.sequence = window.from.into();
        header.seal(payload.as_bytes());
        self.output.push(&Record::new(header, payload.as_bytes()), Kind::Merged)?;
        let most = most_sectors(&self.reader.head().geometry);
        let mut buffer = Vec::new();
        for (which, volume) in self.volumes.iter().enumerate() {
            let combined = Combined::of(self.writes[which].window(index), most);
            for piece in &combined.pieces {
                self.piece(window, volume, &combined, piece, &mut buffer)?;
            }
        }
        Ok(())
    }

    fn piece(
        &mut self,
        window: &Window,
        volume: &Volume,
        combined: &Combined,
        piece: &Piece,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Error> {
        buffer.clear();
        if !piece.zero {
            for half in [piece.before, piece.after].into_iter().flatten() {
                self.read_half(combined, half, buffer)?;
            }
        }
        let mut header = EntryHeader::new(piece.kind);
        header.flags = if piece.no_image { flags::NO_IMAGE } else { 0 }.into();
        header.encoding = if piece.zero { Encoding::Zero } else { Encoding::Raw } as u8;
        header
            .set_status(Journaled::Durable, if piece.doubtful { Updated::Unknown } else { Updated::Updated });
        header.timestamp = window.to.into();
        header.number = window.last_order.into();
        header.set_lba(piece.lba);
        header.sectors = (piece.sectors as u16).into();
        header.port = piece.port;
        header.volume = volume.index.into();
        header.seal(buffer);
        self.merged.entries_out += 1;
        self.merged.bytes_out += (buffer.len() + size_of::<EntryHeader>()) as u64;
        self.output.push(&Record::new(header, buffer), piece.kind)
    }

    fn read_half(&self, combined: &Combined, half: Half, buffer: &mut Vec<u8>) -> Result<(), Error> {
        for extent in combined.extents(half) {
            let start = buffer.len();
            buffer.resize(start + extent.sectors as usize * SECTOR_BYTES, 0);
            if extent.marks & history::mark::ZERO == 0 {
                let second = extent.marks & history::mark::SECOND != 0;
                let skip = u64::from(extent.skip) * SECTOR_BYTES as u64;
                self.payloads.read(extent.place, second, skip, &mut buffer[start..])?;
            }
        }
        Ok(())
    }
}
