//! The port engine for block requests: what [`crate::switch`] does with frames, done with writes that come as an
//! offset and data, as over NBD.
//!
//! One arbiter, many ports; each port has its own partial journal in memory. A write goes through four calls:
//!
//! 1. [`BlockPorts::hold`]: room for entry and completion is reserved, and nothing in flight overlaps (the interlock);
//! 2. [`BlockPorts::commit`]: the entry is stamped, numbered and in its port's partial journal;
//! 3. the caller writes primary storage;
//! 4. [`BlockPorts::answer`]: what became of it; the interlock ends.
//!
//! [`BlockPorts::drain`] takes records out, all ports' in stamp order. An entry that was answered by then carries its
//! status; one that wasn't goes down pending if it is asked for by number, and its completion follows.
//!
//! Nothing here waits, reads a clock or does I/O: who gets [`NotNow`] tries again when something has been answered,
//! drained or taken.

mod flights;
mod partial_journal;

use crate::hybrid_clock::{Exhausted, HybridClock};
use flights::{Flight, Flights};
pub use flights::{Place, MOST_FLIGHTS};
use layout::entry::{flags, record_bytes, Encoding, EntryHeader, ErrorBound, Journaled, Kind, Updated};
use partial_journal::{PartialJournal, Waiting};
use std::sync::Arc;

/// A port's clock at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Nanoseconds since the Unix epoch.
    pub nanoseconds: u64,
    /// How wrong that may be, in ns; `None`: nobody knows.
    pub error: Option<u64>,
}

/// Why a write can't enter yet. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotNow {
    /// The partial journal has no room: it has to be drained, and the journal to take what was.
    Room,
    /// It overlaps a write that is not yet answered, or as many are in flight as can be.
    InFlight,
    /// Ports are closed for writes ([`BlockPorts::close`]).
    Closed,
}

/// Interlock and room, held for a write. Every one has to be committed or given up.
#[must_use]
#[derive(Debug)]
pub struct Hold {
    slot: u8,
    port: u8,
    place: Place,
    bytes: usize,
}

/// What is journaled of a write.
#[derive(Debug)]
pub struct Content {
    /// After, before or both.
    pub kind: Kind,
    /// Of the payload.
    pub encoding: Encoding,
    /// The images. Shared, so that who writes them to primary needs no copy.
    pub payload: Arc<Vec<u8>>,
    /// CRC32C of `payload`, made where it came in.
    pub crc: u32,
}

/// A write that is in its partial journal and not answered. Every one has to be answered.
#[must_use]
#[derive(Debug)]
pub struct Ticket {
    slot: u8,
    port: u8,
    sequence: u64,
    volume: u16,
    /// The arbiter's number of the entry.
    pub number: u64,
}

/// A record on its way to the primary journal.
#[derive(Debug)]
pub struct Drained {
    /// Sealed by [`Drained::seal`].
    pub header: EntryHeader,
    /// The payload.
    pub payload: Arc<Vec<u8>>,
}

impl Drained {
    /// Gives the header its CRC. Not done while draining, which others wait for.
    pub fn seal(&mut self) {
        self.header.header_crc = self.header.computed_crc().into();
    }
}

/// What was drained.
#[derive(Debug, Default)]
pub struct Batch {
    /// In stamp order.
    pub records: Vec<Drained>,
    /// Of every port nothing at or below this stamp is still to come.
    pub delivered: u64,
    /// Last entry in it, or what was the last before.
    pub number: u64,
    /// Something stays behind that could have been drained: the batch was full.
    pub more: bool,
}

/// The arbiter and its ports. See the module.
#[derive(Debug)]
pub struct BlockPorts {
    clock: HybridClock,
    /// Last number given.
    number: u64,
    /// Last number drained.
    drained: u64,
    /// Stamp of the last record.
    last_record: u64,
    ports: Vec<PartialJournal>,
    flights: Flights,
    closed: bool,
    /// Bytes that a port's partial journal may take, drained ones that the journal hasn't taken yet included.
    limit: usize,
}

impl BlockPorts {
    /// An arbiter whose stamps and numbers are above those, with `limit` bytes for each partial journal. One record always
    /// has room, however large.
    pub fn new(stamp: u64, number: u64, limit: usize) -> Self {
        Self {
            clock: HybridClock::new(stamp),
            number,
            drained: number,
            last_record: 0,
            ports: Vec::new(),
            flights: Flights::default(),
            closed: false,
            limit,
        }
    }

    /// Opens a port, or gives one that is free again to another source. It has to be drained.
    pub fn open_port(&mut self, port: u8, source: u16) {
        match self.ports.iter_mut().find(|known| known.port == port) {
            Some(known) => known.source = source,
            None => self.ports.push(PartialJournal::new(port, source)),
        }
    }

    /// No write enters any more, until [`BlockPorts::reopen`].
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Writes enter again, after all.
    pub fn open_again(&mut self) {
        self.closed = false;
    }

    /// Writes enter again, with stamps and numbers above those.
    pub fn reopen(&mut self, stamp: u64, number: u64) {
        assert!(self.is_idle(), "what is in flight has its number");
        self.clock.raise_floor(stamp);
        self.number = self.number.max(number);
        self.drained = self.number;
        self.closed = false;
    }

    /// Reserves room and the interlock. `payload`: bytes that the entry will have, at most.
    pub fn hold(&mut self, port: u8, place: Place, payload: usize) -> Result<Hold, NotNow> {
        if self.closed {
            return Err(NotNow::Closed);
        }
        let bytes = record_bytes(payload) + record_bytes(0);
        let limit = self.limit;
        let journal = self.port(port);
        if journal.bytes > 0 && journal.bytes + bytes > limit {
            return Err(NotNow::Room);
        }
        let slot = self.flights.enter(place).ok_or(NotNow::InFlight)?;
        self.port(port).bytes += bytes;
        Ok(Hold { slot, port, place, bytes })
    }

    /// Could a write of so many bytes enter that port?
    pub fn has_room(&self, port: u8, payload: usize) -> bool {
        let bytes = record_bytes(payload) + record_bytes(0);
        let known = self.ports.iter().find(|known| known.port == port);
        !self.closed && known.is_some_and(|journal| journal.bytes == 0 || journal.bytes + bytes <= self.limit)
    }

    /// Nothing comes of it.
    pub fn give_up(&mut self, hold: Hold) {
        self.port(hold.port).bytes -= hold.bytes;
        self.flights.leave(hold.slot);
    }

    /// Stamps and numbers the entry and puts it into the partial journal.
    pub fn commit(&mut self, hold: Hold, reading: Reading, content: Content) -> Result<Ticket, Exhausted> {
        let stamp = match self.clock.stamp(reading.nanoseconds) {
            Ok(stamp) => stamp,
            Err(exhausted) => {
                self.give_up(hold);
                return Err(exhausted);
            }
        };
        let Hold { slot, port, place, bytes } = hold;
        let entry = record_bytes(content.payload.len());
        let needed = entry + record_bytes(0);
        assert!(needed <= bytes, "an entry of {needed} bytes where {bytes} were held");
        self.number += 1;
        self.last_record = stamp.nanoseconds;
        let number = self.number;
        self.flights.number(slot, number);
        let journal = self.port(port);
        // What was held and isn't needed.
        journal.bytes -= bytes - needed;
        let sequence = journal.next_sequence();
        let mut header = EntryHeader::new(content.kind);
        clock_fields(&mut header, reading, stamp.nanoseconds, stamp.logical);
        header.encoding = content.encoding as u8;
        header.number = number.into();
        header.sequence = sequence.into();
        header.set_lba(place.lba);
        header.sectors = place.sectors.into();
        header.port = port;
        header.slot = slot;
        header.volume = place.volume.into();
        header.source = journal.source.into();
        header.payload_bytes = (content.payload.len() as u32).into();
        header.payload_crc = content.crc.into();
        header.set_status(Journaled::Port, Updated::Pending);
        journal.waiting.push_back(Waiting { header, payload: content.payload, settled: false });
        journal.waiting_bytes += entry;
        Ok(Ticket { slot, port, sequence, volume: place.volume, number })
    }

    /// What became of a write. The interlock ends. The clock is read only if a completion has to be made.
    pub fn answer(
        &mut self,
        ticket: Ticket,
        updated: Updated,
        clock: impl FnOnce() -> Reading,
    ) -> Result<(), Exhausted> {
        let Ticket { slot, port, sequence, volume, number } = ticket;
        assert!(updated != Updated::Pending, "an answer says something");
        self.flights.leave(slot);
        let journal = self.port(port);
        if let Some(waiting) = journal.still_waiting(sequence) {
            waiting.header.set_status(Journaled::Port, updated);
            waiting.settled = true;
            // It needs no completion.
            journal.bytes -= record_bytes(0);
            return Ok(());
        }
        // The entry went down pending; the room for this was kept.
        let reading = clock();
        let stamp = self.clock.stamp(reading.nanoseconds)?;
        self.last_record = stamp.nanoseconds;
        let journal = self.port(port);
        let mut header = EntryHeader::new(Kind::Completion);
        clock_fields(&mut header, reading, stamp.nanoseconds, stamp.logical);
        header.number = number.into();
        header.sequence = journal.next_sequence().into();
        header.port = port;
        header.slot = slot;
        header.volume = volume.into();
        header.source = journal.source.into();
        header.set_status(Journaled::Port, updated);
        header.payload_crc = layout::crc::crc32c(&[]).into();
        journal.waiting.push_back(Waiting { header, payload: Arc::default(), settled: true });
        journal.waiting_bytes += record_bytes(0);
        Ok(())
    }

    /// Takes records out, in stamp order over all ports: everything up to the entry `needed`, answered or not; behind it
    /// what is answered, up to the first that isn't. At most about `most` bytes.
    pub fn drain(&mut self, needed: u64, most: usize) -> Batch {
        let mut batch = Batch { number: self.drained, ..Batch::default() };
        let mut bytes = 0;
        while let Some((first, second)) = self.next_ports() {
            // One after the other of this port, until another's is earlier.
            let journal = &mut self.ports[first];
            while let Some(next) = journal.waiting.front() {
                let stamp = next.header.timestamp.get();
                if stamp > second {
                    break;
                }
                let unanswered = !next.settled && next.header.number.get() > needed;
                if unanswered || bytes >= most {
                    batch.delivered = stamp - 1;
                    batch.more = !unanswered;
                    return self.drained_to(batch);
                }
                let Waiting { header, payload, .. } = journal.waiting.pop_front().expect("just seen");
                bytes += record_bytes(payload.len());
                journal.waiting_bytes -= record_bytes(payload.len());
                if header.kind != Kind::Completion as u8 {
                    batch.number = header.number.get();
                }
                batch.records.push(Drained { header, payload });
            }
        }
        batch.delivered = self.clock.last();
        self.drained_to(batch)
    }

    /// Takes everything out that is stamped up to `bound`, answered or not, in stamp order; stamps that are given later are
    /// above it. For who puts these ports' records into one order with others'.
    pub fn drain_to(&mut self, bound: u64) -> Batch {
        self.clock.raise_floor(bound);
        let mut batch = Batch { number: self.drained, delivered: bound, ..Batch::default() };
        while let Some((first, second)) = self.next_ports() {
            let (limit, before) = (second.min(bound), batch.records.len());
            let journal = &mut self.ports[first];
            while journal.waiting.front().is_some_and(|next| next.header.timestamp.get() <= limit) {
                let Waiting { header, payload, .. } = journal.waiting.pop_front().expect("just seen");
                journal.waiting_bytes -= record_bytes(payload.len());
                if header.kind != Kind::Completion as u8 {
                    batch.number = header.number.get();
                }
                batch.records.push(Drained { header, payload });
            }
            if batch.records.len() == before {
                break;
            }
        }
        self.drained_to(batch)
    }

    fn drained_to(&mut self, batch: Batch) -> Batch {
        self.drained = batch.number;
        batch
    }

    /// The port whose next record is the earliest, and the stamp of the earliest of the others.
    fn next_ports(&self) -> Option<(usize, u64)> {
        let mut first: Option<(u64, usize)> = None;
        let mut second = u64::MAX;
        for (index, journal) in self.ports.iter().enumerate() {
            let Some(next) = journal.waiting.front() else { continue };
            let stamp = next.header.timestamp.get();
            match first {
                Some((earliest, _)) if earliest < stamp => second = second.min(stamp),
                _ => {
                    second = first.map_or(second, |(earliest, _)| earliest);
                    first = Some((stamp, index));
                }
            }
        }
        first.map(|(_, index)| (index, second))
    }

    /// The journal has these records, or nobody will have them: their room is free.
    pub fn taken(&mut self, records: &[Drained]) {
        records.iter().for_each(|record| self.taken_record(&record.header));
    }

    /// The same of one, by its header.
    pub fn taken_record(&mut self, header: &EntryHeader) {
        self.port(header.port).bytes -= record_bytes(header.payload_bytes.get() as usize);
    }

    /// Stamp of the last record that was made.
    pub fn last_record(&self) -> u64 {
        self.last_record
    }

    /// Last number given.
    pub fn last_number(&self) -> u64 {
        self.number
    }

    /// Last stamp given, or the floor.
    pub fn last_stamp(&self) -> u64 {
        self.clock.last()
    }

    /// Last number drained.
    pub fn last_drained(&self) -> u64 {
        self.drained
    }

    /// Every write up to this number has been answered.
    pub fn answered(&self) -> u64 {
        self.flights.lowest().map_or(self.number, |number| number - 1)
    }

    /// Nothing is held or in flight.
    pub fn is_idle(&self) -> bool {
        self.flights.is_empty()
    }

    /// Bytes of records that can be drained, in the fullest port.
    pub fn fill(&self) -> usize {
        self.ports.iter().map(|journal| journal.waiting_bytes).max().unwrap_or(0)
    }

    /// The same of one port.
    pub fn fill_of(&self, port: u8) -> usize {
        self.ports.iter().find(|known| known.port == port).map_or(0, |journal| journal.waiting_bytes)
    }

    /// Bytes that all partial journals take, and what was drained from them and not taken yet.
    pub fn bytes(&self) -> usize {
        self.ports.iter().map(|journal| journal.bytes).sum()
    }

    fn port(&mut self, port: u8) -> &mut PartialJournal {
        let known = self.ports.iter_mut().find(|known| known.port == port);
        known.expect("a port is opened before it is used")
    }
}

/// The stamp and what is known of it. Where it is later than the clock said, that is part of the error.
fn clock_fields(header: &mut EntryHeader, reading: Reading, stamp: u64, logical: bool) {
    header.timestamp = stamp.into();
    let ahead = stamp.saturating_sub(reading.nanoseconds);
    let bound = match reading.error {
        Some(error) => ErrorBound::from_sixteenths(error.saturating_add(ahead).saturating_mul(16)),
        None => ErrorBound::UNBOUNDED,
    };
    header.clock_error = bound.0.into();
    let locked = if reading.error.is_some() { flags::CLOCK_LOCKED } else { 0 };
    let logical = if logical { flags::STAMP_LOGICAL } else { 0 };
    header.flags = (locked | logical).into();
}

impl Flights {
    fn number(&mut self, slot: u8, number: u64) {
        self.at(slot).number = number;
    }
}

impl Flight {
    /// Until it is committed it holds back everything that isn't numbered yet, and nothing that is.
    const UNNUMBERED: u64 = u64::MAX;
}
