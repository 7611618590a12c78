//! The way of a write: interlock, entry, primary, answer.
//!
//! *Beside* (after-images): the entry goes into the partial journal, then primary is written, then it is answered; the journal
//! follows. What primary may be ahead of the journal by, the dirty-region log knows durably.
//! *Ahead* (before-images, and durability `strict`): the entry is durable before primary is written, so primary is never ahead.

use crate::clock::Clock;
use crate::dirty_log::DirtyLog;
use crate::drain::Turn;
use crate::line::Line;
use crate::owner::Owner;
use crate::primary::Primary;
use engine::block_port::{BlockPorts, Content, Hold, NotNow, Place, Ticket};
use journal::{Delivered, End};
use layout::crc::crc32c;
use layout::entry::{Encoding, Kind, Updated};
use layout::journal_file::{technique, MAXIMUM_PAYLOAD_BYTES};
use layout::SECTOR_BYTES;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// What is journaled of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Images {
    /// The data after it.
    After,
    /// The data before it.
    Before,
    /// Both.
    Both,
}

impl Images {
    /// As the journal's volume table has it.
    pub fn technique(self) -> u8 {
        match self {
            Images::After => technique::AFTER,
            Images::Before => technique::BEFORE,
            Images::Both => technique::AFTER | technique::BEFORE,
        }
    }
}

/// What an answer promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// A write is answered when its entry is durable.
    Strict,
    /// A FLUSH is answered when everything answered before it is durable.
    Flush,
    /// A FLUSH doesn't wait.
    Relaxed,
}

/// How ports work. Every memory bound stands here.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// What is journaled.
    pub images: Images,
    /// What answers promise.
    pub durability: Durability,
    /// Bytes that a port's partial journal may take, entries that the journal hasn't taken yet included. At least one
    /// write always has room.
    pub partial_bytes: usize,
    /// A partial journal that is filled so far is drained at once.
    pub fill_bytes: usize,
    /// And all are, this often.
    pub period: Duration,
    /// Bytes of a segment of the journal: they bound an entry.
    pub segment_bytes: u64,
}

/// A partial journal is handed over in pieces of about this much: the journal's batches are as large.
pub(crate) const BATCH_BYTES: usize = 1 << 20;
/// Sectors of a zero entry, at most: its field has 16 bits, and this is whole pages.
const ZERO_SECTORS: u64 = 65_528;
/// Buffers that are kept for the next payloads, in bytes: what a full partial journal gives back.
const KEPT_BYTES: usize = 8 << 20;

impl Settings {
    /// What is meant where nobody says otherwise.
    pub fn new(images: Images, durability: Durability, segment_bytes: u64) -> Self {
        Self {
            images,
            durability,
            partial_bytes: 8 << 20,
            fill_bytes: 512 << 10,
            period: Duration::from_millis(20),
            segment_bytes,
        }
    }

    /// Is an entry durable before primary is written?
    pub fn writes_ahead(&self) -> bool {
        self.images != Images::After || self.durability == Durability::Strict
    }

    /// Bytes of a write that one entry holds, at most.
    fn largest(&self) -> usize {
        let payload = MAXIMUM_PAYLOAD_BYTES.min(self.segment_bytes as usize / 2);
        let images = if self.images == Images::Both { 2 } else { 1 };
        payload / images / SECTOR_BYTES * SECTOR_BYTES
    }
}

/// A volume that is served.
pub struct Volume {
    /// Its index in the journal's table.
    pub index: u16,
    /// Its name.
    pub name: String,
    /// Where its data are.
    pub primary: Arc<dyn Primary>,
}

/// The ports, their arbiter, and what they write to. See the module.
pub struct SoftwarePorts {
    pub(crate) settings: Settings,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) owner: Arc<dyn Owner>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Where primary may be ahead of the journal: nowhere, if the journal is written ahead.
    pub(crate) dirty: DirtyLog,
    state: Mutex<State>,
    /// Something was answered, drained or taken, or nothing goes on.
    changed: Condvar,
    /// Something is to be drained.
    pub(crate) to_drain: Condvar,
    pub(crate) turn: Mutex<Turn>,
    /// Somebody makes entries durable, others' too.
    pub(crate) leading: Mutex<bool>,
    /// He has ended.
    pub(crate) led: Condvar,
    /// Every entry up to this number is durable in the journal.
    pub(crate) durable: AtomicU64,
    /// Why nothing is written any more.
    failed: OnceLock<String>,
    /// The journal's owner was slow the last time.
    pub(crate) slow: AtomicBool,
    /// Waiting for room in a journal that is full is over.
    pub(crate) stopping: AtomicBool,
    /// One at a time, and the number of the last.
    pub(crate) checkpoint: Mutex<u64>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// Nobody else has them.
    buffers: Vec<Arc<Vec<u8>>>,
    bytes: usize,
}

/// What ports share.
pub(crate) struct State {
    pub block: BlockPorts,
    /// Ports that were opened.
    pub ports: Vec<u8>,
    /// Threads that wait for `changed`.
    waiting: usize,
    /// The draining thread has been woken.
    pub woken: bool,
    /// Others share the session.
    pub line: Option<Line>,
}

impl State {
    /// The watermarks of all ports.
    pub fn delivered(&self, timestamp: u64) -> Vec<Delivered> {
        self.ports.iter().map(|port| Delivered { port: *port, timestamp }).collect()
    }
}

/// What is written.
enum Data<'a> {
    Zeroes,
    Bytes(&'a [u8]),
    /// May become the entry's payload.
    Owned(Arc<Vec<u8>>),
}

impl Data<'_> {
    fn bytes(&self) -> Option<&[u8]> {
        match self {
            Data::Zeroes => None,
            Data::Bytes(bytes) => Some(bytes),
            Data::Owned(bytes) => Some(bytes),
        }
    }
}

/// A failed write: what becomes of its entry, and what the client hears.
struct Failed {
    updated: Updated,
    error: io::Error,
}

impl SoftwarePorts {
    /// Ports of `arbiter` that go on where the journal ends.
    pub fn new(
        settings: Settings,
        volumes: Vec<Volume>,
        owner: Arc<dyn Owner>,
        clock: Arc<dyn Clock>,
        dirty: DirtyLog,
        floor: (u64, u64),
    ) -> Self {
        let state = State {
            block: BlockPorts::new(floor.0, floor.1, settings.partial_bytes),
            ports: Vec::new(),
            waiting: 0,
            woken: false,
            line: None,
        };
        Self {
            settings,
            volumes,
            owner,
            clock,
            dirty,
            state: Mutex::new(state),
            changed: Condvar::new(),
            to_drain: Condvar::new(),
            turn: Mutex::default(),
            leading: Mutex::new(false),
            led: Condvar::new(),
            durable: AtomicU64::new(floor.1),
            failed: OnceLock::new(),
            slow: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            checkpoint: Mutex::new(0),
            kept: Mutex::default(),
        }
    }

    /// The volumes.
    pub fn volumes(&self) -> &[Volume] {
        &self.volumes
    }

    /// Opens a port for a source; it may have been another's before.
    pub fn open_port(&self, port: u8, source: u16) {
        let mut state = self.lock();
        if !state.ports.contains(&port) {
            state.ports.push(port);
        }
        state.block.open_port(port, source);
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something has changed.
    pub(crate) fn wait<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        limit: Duration,
    ) -> MutexGuard<'a, State> {
        state.waiting += 1;
        state = self.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0;
        state.waiting -= 1;
        state
    }

    /// Wakes who waits.
    pub(crate) fn tell(&self, state: &State) {
        if state.waiting > 0 {
            self.changed.notify_all();
        }
    }

    /// Nothing is written any more. The first reason counts.
    pub(crate) fn fail(&self, why: String) {
        let _ = self.failed.set(why);
        self.tell(&self.lock());
    }

    /// Why nothing is written any more.
    pub fn failure(&self) -> Option<&str> {
        self.failed.get().map(String::as_str)
    }

    pub(crate) fn check(&self) -> io::Result<()> {
        match self.failure() {
            Some(why) => Err(io::Error::other(why.to_owned())),
            None => Ok(()),
        }
    }

    /// Is an entry durable before primary is written?
    pub fn writes_ahead(&self) -> bool {
        self.settings.writes_ahead()
    }

    /// Would a write of so many bytes through this port have to wait for room?
    pub fn has_room(&self, port: u8, bytes: usize) -> bool {
        self.lock().block.has_room(port, bytes)
    }

    /// Does a flush take no longer than a sync of the journal?
    pub fn flushes_at_once(&self) -> bool {
        !self.slow.load(Ordering::Relaxed)
    }

    /// The last number that the arbiter gave.
    pub fn last_number(&self) -> u64 {
        self.lock().block.last_number()
    }

    /// Bytes of all partial journals.
    pub fn bytes(&self) -> usize {
        self.lock().block.bytes()
    }

    /// Reads.
    pub fn read(&self, volume: usize, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.volumes[volume].primary.read_at(buffer, offset)
    }

    /// Writes; offset and length in whole sectors.
    pub fn write(&self, volume: usize, port: u8, data: &[u8], offset: u64) -> io::Result<()> {
        let mut at = offset;
        for piece in data.chunks(self.settings.largest()) {
            let range = at..at + piece.len() as u64;
            at = range.end;
            let primary = &self.volumes[volume].primary;
            let apply = || primary.write_at(piece, range.start);
            self.one(volume, port, range.clone(), Data::Bytes(piece), &apply)?;
        }
        Ok(())
    }

    /// The same of a buffer that becomes the entry's payload where it can, without a copy. From [`SoftwarePorts::buffer`].
    pub fn write_owned(&self, volume: usize, port: u8, data: Vec<u8>, offset: u64) -> io::Result<()> {
        let data = Arc::new(data);
        let written = match self.settings.images == Images::After && data.len() <= self.settings.largest() {
            true => {
                let primary = &self.volumes[volume].primary;
                let range = offset..offset + data.len() as u64;
                let apply = || primary.write_at(&data, offset);
                self.one(volume, port, range, Data::Owned(Arc::clone(&data)), &apply)
            }
            false => self.write(volume, port, &data, offset),
        };
        self.keep([data].into_iter());
        written
    }

    /// Makes bytes zeroes.
    pub fn zero(&self, volume: usize, port: u8, offset: u64, bytes: u64, punch: bool) -> io::Result<()> {
        let (mut at, end) = (offset, offset + bytes);
        while at < end {
            let range = at..self.end_of_zeroes(volume, at, end)?;
            at = range.end;
            let primary = &self.volumes[volume].primary;
            let apply = || primary.zero_at(range.start, range.end - range.start, punch);
            self.one(volume, port, range.clone(), Data::Zeroes, &apply)?;
        }
        Ok(())
    }

    /// How far one entry can go. Where the old data are journaled too, a hole is a zero entry, and data are in pieces.
    fn end_of_zeroes(&self, volume: usize, at: u64, end: u64) -> io::Result<u64> {
        let most = end.min(at + ZERO_SECTORS * SECTOR_BYTES as u64);
        if self.settings.images == Images::After {
            return Ok(most);
        }
        let run = self.volumes[volume].primary.extents(at, most - at)?.first().copied();
        let (length, hole) = run.unwrap_or((most - at, false));
        let piece = if hole { length } else { length.min(self.settings.largest() as u64) };
        Ok(most.min(at + piece.max(SECTOR_BYTES as u64)))
    }

    /// One entry's way.
    fn one(
        &self,
        volume: usize,
        port: u8,
        range: Range<u64>,
        data: Data<'_>,
        apply: &dyn Fn() -> io::Result<()>,
    ) -> io::Result<()> {
        let sector = SECTOR_BYTES as u64;
        let sectors =
            u16::try_from((range.end - range.start) / sector).expect("pieces are cut to what an entry holds");
        let place = Place { volume: self.volumes[volume].index, lba: range.start / sector, sectors };
        match self.settings.writes_ahead() {
            true => self.ahead(volume, port, place, range, data, apply),
            false => self.beside(volume, port, place, range, data, apply),
        }
    }

    fn beside(
        &self,
        volume: usize,
        port: u8,
        place: Place,
        range: Range<u64>,
        data: Data<'_>,
        apply: &dyn Fn() -> io::Result<()>,
    ) -> io::Result<()> {
        let content = self.after(data);
        let (mut state, hold) = self.admit(port, place, content.payload.len())?;
        let ticket = self.commit_entry(&mut state, hold, content)?;
        self.dirty.touch(volume, range.clone(), ticket.number);
        if state.block.fill_of(port) >= self.settings.fill_bytes {
            self.wake(&mut state);
        }
        drop(state);
        let marked = self.dirty.ensure(volume, range).map_err(|error| {
            self.fail(format!("the dirty-region log: {error}"));
            Failed { updated: Updated::Cancelled, error }
        });
        let done = marked.and_then(|()| apply().map_err(unknown));
        self.answered(ticket, done)
    }

    fn ahead(
        &self,
        volume: usize,
        port: u8,
        place: Place,
        range: Range<u64>,
        data: Data<'_>,
        apply: &dyn Fn() -> io::Result<()>,
    ) -> io::Result<()> {
        let length = (range.end - range.start) as usize;
        let most = match self.settings.images {
            Images::After => data.bytes().map_or(0, <[u8]>::len),
            // Only a hole is longer than an entry holds, and that needs none.
            Images::Before => length.min(self.settings.largest()),
            Images::Both => 2 * length.min(self.settings.largest()),
        };
        let (state, hold) = self.admit(port, place, most)?;
        drop(state);
        let content = match self.images(volume, &range, data) {
            Ok(content) => content,
            Err(error) => {
                let mut state = self.lock();
                state.block.give_up(hold);
                self.tell(&state);
                return Err(error);
            }
        };
        let ticket = self.commit_entry(&mut self.lock(), hold, content)?;
        let durable = self
            .commit_with_others(ticket.number)
            .map_err(|error| Failed { updated: Updated::Cancelled, error });
        let done = durable.and_then(|()| apply().map_err(unknown));
        self.answered(ticket, done)
    }

    /// What is journaled, with the data that are there now. Nothing that overlaps is in flight.
    fn images(&self, volume: usize, range: &Range<u64>, data: Data<'_>) -> io::Result<Content> {
        if self.settings.images == Images::After {
            return Ok(self.after(data));
        }
        let data = data.bytes();
        let length = range.end - range.start;
        let primary = &self.volumes[volume].primary;
        let mut old = Vec::new();
        let hole = length > self.settings.largest() as u64
            && primary
                .extents(range.start, length)?
                .first()
                .is_some_and(|(bytes, hole)| *hole && *bytes >= length);
        if !hole {
            old = vec![0; length as usize];
            primary.read_at(&mut old, range.start)?;
        }
        let old = if old.iter().all(|byte| *byte == 0) { None } else { Some(&old[..]) };
        Ok(match self.settings.images {
            Images::Before => self.content(Kind::Before, &[old]),
            _ if old.is_none() && data.is_none() => self.content(Kind::Both, &[None]),
            _ => {
                let zeroes = vec![0; if old.is_none() || data.is_none() { length as usize } else { 0 }];
                self.content(Kind::Both, &[Some(old.unwrap_or(&zeroes)), Some(data.unwrap_or(&zeroes))])
            }
        })
    }

    /// An entry of the data after a write.
    fn after(&self, data: Data<'_>) -> Content {
        match data {
            Data::Owned(payload) => {
                Content { kind: Kind::After, encoding: Encoding::Raw, crc: crc32c(&payload), payload }
            }
            data => self.content(Kind::After, &[data.bytes()]),
        }
    }

    /// An entry of these images; `None`: zeroes.
    fn content(&self, kind: Kind, images: &[Option<&[u8]>]) -> Content {
        let mut payload = self.kept();
        let bytes = Arc::get_mut(&mut payload).expect("nobody else has what is kept");
        bytes.clear();
        images.iter().flatten().for_each(|image| bytes.extend_from_slice(image));
        let encoding = if payload.is_empty() { Encoding::Zero } else { Encoding::Raw };
        Content { kind, encoding, crc: crc32c(&payload), payload }
    }

    /// Waits until the write may enter.
    fn admit(&self, port: u8, place: Place, payload: usize) -> io::Result<(MutexGuard<'_, State>, Hold)> {
        let mut state = self.lock();
        loop {
            self.check()?;
            match state.block.hold(port, place, payload) {
                Ok(hold) => return Ok((state, hold)),
                Err(_) if self.stopping.load(Ordering::Acquire) => {
                    return Err(io::Error::other("the server is ending"));
                }
                Err(why) => {
                    if why == NotNow::Room {
                        self.wake(&mut state);
                    }
                    state = self.wait(state, Duration::from_secs(1));
                }
            }
        }
    }

    fn commit_entry(&self, state: &mut State, hold: Hold, content: Content) -> io::Result<Ticket> {
        state.block.commit(hold, self.clock.read(), content).map_err(|exhausted| {
            self.tell(state);
            io::Error::other(exhausted)
        })
    }

    fn answered(&self, ticket: Ticket, done: Result<(), Failed>) -> io::Result<()> {
        let updated = match &done {
            Ok(()) => Updated::Updated,
            Err(failed) => failed.updated,
        };
        let mut state = self.lock();
        // Without a stamp for it the entry stays pending, and what follows can't be stamped either.
        let answered = state.block.answer(ticket, updated, || self.clock.read());
        self.tell(&state);
        drop(state);
        done.map_err(|failed| failed.error)?;
        answered.map_err(io::Error::other)
    }

    /// The draining thread has something to do.
    pub(crate) fn wake(&self, state: &mut State) {
        if !std::mem::replace(&mut state.woken, true) {
            self.to_drain.notify_one();
        }
    }

    /// What has been answered is durable, as far as that is promised.
    pub fn flush(&self, volume: usize) -> io::Result<()> {
        if self.settings.durability == Durability::Relaxed {
            return self.check();
        }
        if self.settings.images == Images::Before {
            // The journal can't give it back: primary has to have it.
            return self.check().and_then(|()| self.sync_primary(volume));
        }
        if self.settings.writes_ahead() {
            // It was durable before it was answered.
            return self.check();
        }
        self.check()?;
        let number = self.lock().block.last_number();
        self.commit(number, true)
    }

    /// Makes primary durable. If that fails, nobody knows what it has: it is replayed at the next start.
    pub(crate) fn sync_primary(&self, volume: usize) -> io::Result<()> {
        let primary = &self.volumes[volume].primary;
        primary.sync().map_err(|error| {
            let what = format!("{}: making it durable: {error}", primary.name());
            if let Err(error) = self.dirty.ask_for_replay() {
                self.fail(format!("{what}; and the dirty-region log: {error}"));
            }
            self.fail(what.clone());
            io::Error::other(what)
        })
    }

    /// Lets no more writes in, and waits until none is in flight and the journal has all of them, durably.
    pub fn pause(&self, patience: Duration) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        state.block.close();
        while !state.block.is_idle() {
            if Instant::now() > deadline {
                state.block.open_again();
                self.tell(&state);
                return Err(io::ErrorKind::TimedOut.into());
            }
            state = self.wait(state, Duration::from_millis(100));
        }
        drop(state);
        self.commit_all().inspect_err(|_| self.lock().block.open_again())
    }

    /// Lets writes in again, behind where the journal ends now.
    pub fn resume(&self, floor: (u64, u64)) {
        let mut state = self.lock();
        state.block.reopen(floor.0, floor.1);
        self.durable.fetch_max(state.block.last_number(), Ordering::AcqRel);
        self.tell(&state);
    }

    /// The session has ended in order, and everything is durable: the next start has nothing to make good.
    pub fn ended(&self) -> io::Result<()> {
        self.dirty.end()
    }

    /// Who waits for room waits no longer.
    pub fn stop_waiting(&self) {
        self.stopping.store(true, Ordering::Release);
        self.tell(&self.lock());
    }

    /// Memory for a write's data, of so many bytes; what it holds is not defined.
    pub fn buffer(&self, bytes: usize) -> Vec<u8> {
        let mut buffer = Arc::into_inner(self.kept()).unwrap_or_default();
        buffer.resize(bytes, 0);
        buffer
    }

    fn kept(&self) -> Arc<Vec<u8>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let buffer = kept.buffers.pop().unwrap_or_default();
        kept.bytes -= buffer.capacity();
        buffer
    }

    /// Buffers to be used again.
    pub(crate) fn keep(&self, buffers: impl Iterator<Item = Arc<Vec<u8>>>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        for mut buffer in buffers {
            // Who still writes it gives it back.
            let alone = Arc::get_mut(&mut buffer).is_some();
            if !alone || buffer.capacity() == 0 || kept.bytes + buffer.capacity() > KEPT_BYTES {
                continue;
            }
            kept.bytes += buffer.capacity();
            kept.buffers.push(buffer);
        }
    }
}

fn unknown(error: io::Error) -> Failed {
    Failed { updated: Updated::Unknown, error }
}

/// Above what an arbiter's stamps and numbers have to be.
pub fn floor(end: &End, arbiter: u16) -> (u64, u64) {
    let own = end.arbiters.iter().find(|known| known.arbiter == arbiter);
    let promised = end.arbiters.iter().map(|known| known.timestamp).max().unwrap_or(0);
    (promised.max(end.timestamp), own.map_or(0, |known| known.number))
}
