//! The pipeline of a rollback: compare, journal, make durable, write.

use super::buffers::Buffers;
use super::{entry_kind, RolledBack};
use crate::backing;
use crate::error::Error;
use crate::image::Image;
use crate::record::{OwnedRecord, Record};
use crate::storage;
use crate::writer::{Commit, Journal};
use layout::crc;
use layout::entry::{flags, EntryHeader, Journaled, Kind, Updated};
use layout::SECTOR_BYTES;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{mpsc, Arc};
use std::thread::JoinHandle;

/// Pieces that are read ahead.
const READ_AHEAD: usize = 32;
/// Bytes of pieces between two syncs of the journal.
pub(super) const SYNC_BYTES: usize = 32 << 20;
/// Bytes of pieces between two syncs of primary: until then what is written there is not known to be.
const PRIMARY_SYNC_BYTES: usize = 1 << 30;

/// From the first to the last sector that differs.
fn differing(wanted: &[u8], there: &[u8]) -> Option<Range<usize>> {
    let differs = |(a, b): (&[u8], &[u8])| a != b;
    let mut sectors = wanted.chunks(SECTOR_BYTES).zip(there.chunks(SECTOR_BYTES));
    let first = sectors.position(differs)?;
    let mut later = wanted[(first + 1) * SECTOR_BYTES..]
        .chunks(SECTOR_BYTES)
        .zip(there[(first + 1) * SECTOR_BYTES..].chunks(SECTOR_BYTES));
    let last = later.rposition(differs).map_or(first, |after| first + 1 + after);
    Some(first * SECTOR_BYTES..((last + 1) * SECTOR_BYTES).min(wanted.len()))
}

/// A commit whose sync runs beside.
type Syncing = JoinHandle<(Commit, Result<(), Error>)>;

/// What primary has been given: entries, and bytes.
type Written = (Vec<EntryHeader>, usize);

/// What primary gets back.
struct Piece {
    entry: EntryHeader,
    offset: u64,
    data: Vec<u8>,
}

/// A rollback under way. Three things go on at once: pieces are read and compared ahead, the owner journals them, and
/// what is journaled is made durable and then given to primary.
pub(super) struct Work<'a> {
    journal: &'a mut Journal,
    image: &'a Image,
    primary: Arc<(String, File)>,
    piece_bytes: usize,
    buffers: Arc<Buffers>,
    /// Journaled and not yet written: entry, offset, data.
    waiting: Vec<Piece>,
    bytes: usize,
    /// Bytes of the journal that have been written since the last sync began, and where it was written up to.
    journaled: Vec<Range<u64>>,
    position: (u64, u64),
    /// What is being made durable in the journal, with its bytes there, and will be written then.
    syncing: Option<(Syncing, Vec<Piece>, Vec<Range<u64>>)>,
    /// What primary is being given: its entries and bytes, when it has them.
    writing: Option<JoinHandle<Result<Written, Error>>>,
    /// Written and not yet durable in primary: the entries, and bytes.
    written: Vec<EntryHeader>,
    unsynced: usize,
}

/// A piece that was compared: what there has to be, what there is, and where they differ.
struct Compared {
    offset: u64,
    wanted: Vec<u8>,
    /// Empty where entries don't hold it.
    there: Vec<u8>,
    differs: Option<Differs>,
}

/// From the first to the last sector that differs, and the CRC of what an entry of that holds: summed while it is in the cache
/// of the core that read it.
struct Differs {
    range: Range<usize>,
    crc: u32,
}

/// Gives primary what is durable in the journal, and lets the device begin with it.
fn write_pieces(
    (name, primary): &(String, File),
    pieces: Vec<Piece>,
    buffers: &Buffers,
) -> Result<Written, Error> {
    let (mut entries, mut bytes) = (Vec::with_capacity(pieces.len()), 0);
    let mut written: Option<Range<u64>> = None;
    for Piece { entry, offset, data } in pieces {
        primary
            .write_all_at(&data, offset)
            .map_err(|e| Error::io(name, format!("writing {} bytes at offset {offset}", data.len()), e))?;
        let (from, end) = (offset, offset + data.len() as u64);
        written = Some(written.map_or(from..end, |all| all.start.min(from)..all.end.max(end)));
        bytes += data.len();
        entries.push(entry);
        buffers.give_back(data);
    }
    if let Some(written) = written {
        storage::begin_writeback(primary, written.start, written.end - written.start);
    }
    Ok((entries, bytes))
}

/// Reads and compares the pieces in order, until nobody wants them any more.
fn read_ahead(
    image: &Image,
    primary: (&str, &File),
    extents: &[(u64, u64)],
    piece_bytes: usize,
    buffers: &Buffers,
    sender: mpsc::SyncSender<Result<Compared, Error>>,
) {
    // What isn't journaled is read into the same place again and again, which the core's cache holds.
    let mut own = vec![0; piece_bytes];
    let kind = entry_kind(image.volume());
    for (offset, bytes) in extents {
        let mut at = *offset;
        while at < offset + bytes {
            let length = (piece_bytes as u64).min(offset + bytes - at) as usize;
            let compared = match kind {
                Kind::After => compare(image, primary, buffers, (at, kind), &mut own[..length])
                    .map(|(wanted, differs)| Compared { offset: at, wanted, there: Vec::new(), differs }),
                _ => {
                    let mut there = buffers.take(length);
                    compare(image, primary, buffers, (at, kind), &mut there)
                        .map(|(wanted, differs)| Compared { offset: at, wanted, there, differs })
                }
            };
            let failed = compared.is_err();
            if sender.send(compared).is_err() || failed {
                return;
            }
            at += length as u64;
        }
    }
}

/// What there has to be, and where what there is differs from it.
fn compare(
    image: &Image,
    primary: (&str, &File),
    buffers: &Buffers,
    (offset, kind): (u64, Kind),
    there: &mut [u8],
) -> Result<(Vec<u8>, Option<Differs>), Error> {
    let mut wanted = buffers.take(there.len());
    image.read_at(&mut wanted, offset)?;
    backing::read(primary.1, primary.0, there, offset)?;
    let differs = differing(&wanted, there).map(|range| {
        let payload = payload(kind, &there[range.clone()], &wanted[range.clone()]);
        Differs { crc: crc::append(crc::crc32c(payload[0]), payload[1]), range }
    });
    Ok((wanted, differs))
}

/// What an entry of this kind holds.
fn payload<'a>(kind: Kind, before: &'a [u8], after: &'a [u8]) -> [&'a [u8]; 2] {
    match kind {
        Kind::Before => [before, &[]],
        Kind::After => [after, &[]],
        _ => [before, after],
    }
}

impl<'a> Work<'a> {
    pub fn new(journal: &'a mut Journal, image: &'a Image, primary: (String, File)) -> Self {
        let piece_bytes = journal.piece_bytes(image.volume());
        Self {
            piece_bytes,
            position: journal.write_position(),
            journal,
            image,
            primary: Arc::new(primary),
            buffers: Arc::new(Buffers::new(piece_bytes)),
            waiting: Vec::new(),
            bytes: 0,
            journaled: Vec::new(),
            syncing: None,
            writing: None,
            written: Vec::new(),
            unsynced: 0,
        }
    }

    /// Brings primary back in these extents, in pieces. When it returns nothing goes on any more; with an error, some of it
    /// is done, and of some that nobody knows.
    pub fn run(
        mut self,
        extents: &[(u64, u64)],
        done: &mut RolledBack,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), Error> {
        let ended = self.bring_all_back(extents, done, progress).and_then(|()| self.finish());
        if ended.is_err() {
            self.end_threads();
        }
        ended
    }

    fn bring_all_back(
        &mut self,
        extents: &[(u64, u64)],
        done: &mut RolledBack,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), Error> {
        let total = extents.iter().map(|(_, bytes)| bytes).sum();
        let (image, piece_bytes) = (self.image, self.piece_bytes);
        let (primary, buffers) = (Arc::clone(&self.primary), Arc::clone(&self.buffers));
        let (name, file) = &*primary;
        std::thread::scope(|scope| {
            // No two pieces overlap, so that it doesn't matter which of those before are written already.
            let (sender, compared) = mpsc::sync_channel(READ_AHEAD);
            scope.spawn(move || read_ahead(image, (name, file), extents, piece_bytes, &buffers, sender));
            for piece in compared {
                self.piece(piece?, done)?;
                progress(done.compared, total);
            }
            Ok(())
        })
    }

    /// Journals a piece if it differs, from its first to its last sector that does.
    fn piece(&mut self, piece: Compared, done: &mut RolledBack) -> Result<(), Error> {
        done.compared += piece.wanted.len() as u64;
        match piece.differs {
            Some(differs) => {
                let at = piece.offset + differs.range.start as u64;
                self.bring_back(at, &piece.there, (piece.wanted, differs), done)?;
            }
            None => self.buffers.give_back(piece.wanted),
        }
        self.buffers.give_back(piece.there);
        if self.bytes >= SYNC_BYTES {
            self.write()?;
        }
        Ok(())
    }

    /// Journals that primary gets back what it had, to be written once that is durable.
    fn bring_back(
        &mut self,
        at: u64,
        there: &[u8],
        (wanted, Differs { range, crc }): (Vec<u8>, Differs),
        done: &mut RolledBack,
    ) -> Result<(), Error> {
        let kind = entry_kind(self.image.volume());
        // Not kept where entries don't hold it.
        let before = there.get(range.clone()).unwrap_or_default();
        let after = &wanted[range];
        let payload = payload(kind, before, after);
        let mut header = self.journal.next_header(
            kind,
            self.journal.own_port(self.image.volume())?,
            self.image.volume().index,
        );
        header.flags = flags::ROLLBACK.into();
        header.set_lba(at / SECTOR_BYTES as u64);
        header.sectors = ((after.len() / SECTOR_BYTES) as u16).into();
        header.set_status(Journaled::Port, Updated::Pending);
        header.payload_bytes = ((payload[0].len() + payload[1].len()) as u32).into();
        header.payload_crc = crc.into();
        header.header_crc = header.computed_crc().into();
        self.journal.append_own_record(&Record { header, payload })?;
        self.note_journaled();
        done.entries += 1;
        done.written += after.len() as u64;
        self.bytes += after.len();
        // What waits is bounded by its bytes: a piece that differs in one sector keeps no more than that.
        let data = if after.len() == wanted.len() {
            wanted
        } else {
            let part = after.to_vec();
            self.buffers.give_back(wanted);
            part
        };
        self.waiting.push(Piece { entry: header, offset: at, data });
        Ok(())
    }

    /// Notes which bytes of the journal have been written. A piece fits a segment several times, so no segment is passed over.
    fn note_journaled(&mut self) {
        let ((old_begins, old), (begins, now)) = (self.position, self.journal.write_position());
        let mut note = |range: Range<u64>| match self.journaled.last_mut() {
            _ if range.is_empty() => {}
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.journaled.push(range),
        };
        if begins == old_begins {
            note(old..now);
        } else {
            note(old..old_begins + self.journal.space().segment_bytes);
            note(begins..now);
        }
        self.position = (begins, now);
    }

    /// What is journaled begins to be made durable, beside what comes next; and what had begun before is written.
    fn write(&mut self) -> Result<(), Error> {
        self.write_journaled()?;
        self.journal.flush()?;
        let begun = self.journal.begin_commit();
        let syncing = std::thread::spawn(move || {
            let ran = begun.run();
            (begun, ran)
        });
        self.note_journaled();
        let waiting = std::mem::take(&mut self.waiting);
        self.syncing = Some((syncing, waiting, std::mem::take(&mut self.journaled)));
        self.bytes = 0;
        Ok(())
    }

    /// Waits for what runs beside, whatever else failed: if a sync fails too the owner has to know, for the next one
    /// may report success for what this one lost. And nobody may go on writing primary once this has returned.
    fn end_threads(&mut self) {
        // What is written and not known to be stays pending.
        drop(self.end_writing());
        let Some((syncing, ..)) = self.syncing.take() else { return };
        match syncing.join() {
            // A failure stops the owner; the error that ended the rollback is the one to tell.
            Ok((begun, ran)) => drop(self.journal.finish_commit(begun, ran)),
            Err(_) => self.journal.stopped = true,
        }
    }

    /// Waits until what began to be made durable is; primary is given it beside what comes next.
    fn write_journaled(&mut self) -> Result<(), Error> {
        let Some((syncing, pieces, journaled)) = self.syncing.take() else { return Ok(()) };
        let Ok((begun, ran)) = syncing.join() else {
            self.journal.stopped = true;
            return Err(Error::Invalid("the thread that makes the journal durable has panicked".into()));
        };
        self.journal.finish_commit(begun, ran)?;
        // As much again as primary gets went through the page cache, and only an undo will read it.
        for range in journaled {
            self.journal.storage.forget(range.start, range.end - range.start);
        }
        self.end_writing()?;
        let (primary, buffers) = (Arc::clone(&self.primary), Arc::clone(&self.buffers));
        self.writing = Some(std::thread::spawn(move || write_pieces(&primary, pieces, &buffers)));
        if self.unsynced >= PRIMARY_SYNC_BYTES {
            self.settle()?;
        }
        Ok(())
    }

    /// Waits until primary has been given what it was being given.
    fn end_writing(&mut self) -> Result<(), Error> {
        let Some(writing) = self.writing.take() else { return Ok(()) };
        let panicked = || Error::Invalid("the thread that writes primary has panicked".into());
        let (entries, bytes) = writing.join().unwrap_or_else(|_| Err(panicked()))?;
        self.written.extend(entries);
        self.unsynced += bytes;
        Ok(())
    }

    /// Everything is written, and known to be.
    fn finish(&mut self) -> Result<(), Error> {
        self.write()?;
        self.write_journaled()?;
        self.settle()
    }

    /// What is written is made durable there, and only then known to be.
    fn settle(&mut self) -> Result<(), Error> {
        self.end_writing()?;
        let (name, primary) = &*self.primary;
        primary.sync_data().map_err(|e| Error::io(name, "making primary durable (fdatasync)", e))?;
        for entry in std::mem::take(&mut self.written) {
            let mut header = self.journal.next_header(Kind::Completion, entry.port, entry.volume.get());
            header.number = entry.number;
            header.lba = entry.lba;
            header.sectors = entry.sectors;
            header.set_status(Journaled::Pending, Updated::Updated);
            header.seal(&[]);
            self.journal.append_own(&OwnedRecord { header, payload: Vec::new() })?;
        }
        self.unsynced = 0;
        Ok(())
    }
}
