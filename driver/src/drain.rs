//! From a port's ring to checked records.

use crate::bring_up::Found;
use crate::card::{Card, CardError, DmaRegion, Interrupts};
use crate::record::{check_header, check_payload, missing, Decoded, Defect, Progress, Record};
use crate::registers::{card, ports};
use crate::statistics::Wrapping;
use layout::entry::{EntryHeader, Gap, HEADER_BYTES};
use layout::ring::MAILBOX_STRIDE;
use std::collections::VecDeque;
use std::time::Duration;
use zerocopy::{FromBytes, IntoBytes};

/// Most records of a port that are held checked. [`Driver::poll`] goes on where it stopped as soon as
/// some are consumed.
pub const MAXIMUM_HELD_RECORDS: usize = 16 * 1024;

/// A card that has been brought up.
#[derive(Debug)]
pub struct Driver<C> {
    pub(crate) card: C,
    pub(crate) found: Found,
    pub(crate) rings: Vec<Ring>,
    pub(crate) mailboxes: DmaRegion,
    pub(crate) counters: Vec<Wrapping>,
    /// What CONTROL was last set to.
    pub(crate) control: u32,
}

/// A port's ring, as far as the host has come with it. Positions count bytes from bring-up.
#[derive(Debug)]
pub(crate) struct Ring {
    pub region: DmaRegion,
    /// Everything before was given back.
    pub consumed: u64,
    /// Everything before is checked; its records are in `held`.
    checked: u64,
    /// What the card last announced.
    produced: u64,
    held: VecDeque<Checked>,
    /// What the checked records say.
    pub progress: Progress,
    any: bool,
    /// The payload of the one held record that runs over the ring's end. There can't be two: they
    /// would be a whole ring apart.
    wrapped: Vec<u8>,
}

#[derive(Debug)]
struct Checked {
    header: EntryHeader,
    decoded: Decoded,
    payload: Place,
    /// Position after the record.
    end: u64,
}

#[derive(Debug)]
enum Place {
    Ring(usize),
    Wrapped,
    Made([u8; size_of::<Gap>()]),
}

/// Up to where a port's journal has been delivered: nothing at or below is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Delivered {
    /// Stamp of the port's last record.
    pub stamp: u64,
    /// The last number of the arbiter that the port has told of.
    pub number: u64,
}

/// A ring holds what can't be. Nothing of it from there on is handed out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The mailbox says something impossible.
    #[error(
        "port {port}: the mailbox announces {produced:#x} bytes, which {reason} (announced before: \
         {before:#x}, consumed: {consumed:#x}, ring: {ring_bytes:#x} bytes); reset the card"
    )]
    Producer {
        /// Port.
        port: usize,
        /// What the mailbox says.
        produced: u64,
        /// What it said before.
        before: u64,
        /// What the host has given back.
        consumed: u64,
        /// Size of the ring.
        ring_bytes: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A record can't be what a card writes.
    #[error(
        "port {port}, ring offset {offset:#x} (byte {position} since bring-up): {defect}; reset the card"
    )]
    Record {
        /// Port.
        port: usize,
        /// Where in the ring.
        offset: usize,
        /// Bytes from bring-up.
        position: u64,
        /// What is wrong with it.
        defect: Defect,
    },
}

impl Ring {
    pub fn new(region: DmaRegion, progress: Progress) -> Self {
        assert!(region.bytes.is_power_of_two(), "a ring is a power of two of bytes");
        Self {
            region,
            consumed: 0,
            checked: 0,
            produced: 0,
            held: VecDeque::new(),
            progress,
            any: false,
            wrapped: Vec::new(),
        }
    }

    /// Everything that was announced is checked, and all of it given back.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty() && self.consumed == self.produced
    }

    /// Takes what the mailbox says, if it can be.
    fn announce(&mut self, port: usize, produced: u64) -> Result<(), RingError> {
        let (before, consumed, ring_bytes) = (self.produced, self.consumed, self.region.bytes);
        let reason = if produced < before {
            "goes back"
        } else if produced - consumed > ring_bytes as u64 {
            "is more than the ring holds"
        } else if !produced.is_multiple_of(HEADER_BYTES as u64) {
            "is not a multiple of 64"
        } else {
            self.produced = produced;
            return Ok(());
        };
        Err(RingError::Producer { port, produced, before, consumed, ring_bytes, reason })
    }

    /// Checks what is announced and not checked yet; `bytes` are the ring's. Returns how many records
    /// there are more.
    fn check(&mut self, port: usize, bytes: &[u8]) -> Result<usize, RingError> {
        let before = self.held.len();
        // A record may bring a gap with it.
        while self.checked < self.produced && self.held.len() + 2 <= MAXIMUM_HELD_RECORDS {
            let offset = self.offset(self.checked);
            self.check_record(port, offset, bytes).map_err(|defect| RingError::Record {
                port,
                offset,
                position: self.checked,
                defect,
            })?;
        }
        Ok(self.held.len() - before)
    }

    fn offset(&self, position: u64) -> usize {
        (position & (self.region.bytes as u64 - 1)) as usize
    }

    fn check_record(&mut self, port: usize, offset: usize, bytes: &[u8]) -> Result<(), Defect> {
        assert_eq!(bytes.len(), self.region.bytes);
        // Copied first: what is checked and what is used is the same, whatever the card does next.
        let header = EntryHeader::read_from_bytes(&bytes[offset..offset + HEADER_BYTES])
            .unwrap_or_else(|_| unreachable!("the slice is as long as a header"));
        let decoded = check_header(&header, port)?;
        let (record, announced) = (header.record_bytes(), (self.produced - self.checked) as usize);
        if record > announced {
            return Err(Defect::BeyondProducer { record, announced });
        }
        let start = self.offset(self.checked + HEADER_BYTES as u64);
        let length = header.payload_bytes.get() as usize;
        let first = length.min(bytes.len() - start);
        let parts = [&bytes[start..start + first], &bytes[..length - first]];
        check_payload(&header, decoded.kind, parts)?;
        let (progress, hole) = self.progress.after(&header, decoded.kind)?;
        if hole {
            self.hold_gap(&header, &decoded);
        }
        let payload = match parts[1] {
            [] => Place::Ring(start),
            _ => {
                self.wrapped.clear();
                self.wrapped.extend_from_slice(parts[0]);
                self.wrapped.extend_from_slice(parts[1]);
                Place::Wrapped
            }
        };
        self.checked += record as u64;
        self.progress = progress;
        self.any = true;
        self.held.push_back(Checked { header, decoded, payload, end: self.checked });
        Ok(())
    }

    /// Holds a gap for what is missing before the record with `next`. It takes no room in the ring.
    fn hold_gap(&mut self, next: &EntryHeader, decoded: &Decoded) {
        let (header, payload) = missing(&self.progress, next, decoded.kind);
        let mut bytes = [0; size_of::<Gap>()];
        bytes.copy_from_slice(payload.as_bytes());
        let decoded = check_header(&header, usize::from(next.port))
            .unwrap_or_else(|defect| unreachable!("a gap that the driver made: {defect}"));
        self.held.push_back(Checked { header, decoded, payload: Place::Made(bytes), end: self.checked });
    }
}

impl<C: Card> Driver<C> {
    /// The card's ports.
    pub fn ports(&self) -> usize {
        self.rings.len()
    }

    /// What bring-up found.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// The card itself.
    pub fn card(&self) -> &C {
        &self.card
    }

    /// The card itself. What is written there goes past the driver.
    pub fn card_mut(&mut self) -> &mut C {
        &mut self.card
    }

    /// Gives the card back. Without [`Driver::stop`] before, this is an unclean stop.
    pub fn into_card(self) -> C {
        self.card
    }

    /// Waits until a port announces something, `timeout` at most. A time-out checks that the card is
    /// still there and still up. Poll afterwards in any case: an interrupt may get lost, a mailbox doesn't.
    pub fn wait(&mut self, timeout: Duration) -> Result<Interrupts, CardError> {
        let interrupts = self.card.wait(timeout)?;
        if interrupts.0 == 0 {
            let control = card::CONTROL.read(&mut self.card)?;
            if control != self.control {
                return Err(CardError::WasReset { control });
            }
        }
        Ok(interrupts)
    }

    /// Sets CONTROL.
    pub(crate) fn set_control(&mut self, control: u32) -> Result<(), CardError> {
        self.control = control;
        card::CONTROL.write(&mut self.card, control)
    }

    /// Checks everything that has been announced since, and returns how many records there are more.
    ///
    /// Every port is looked at, also when one of them has an error; the first error is returned. What
    /// was checked before the error stays in the port's batch. A port in error stays in error.
    pub fn poll(&mut self) -> Result<usize, RingError> {
        let mut records = 0;
        let mut first_error = None;
        for (port, ring) in self.rings.iter_mut().enumerate() {
            let produced = self.card.dma_load(&self.mailboxes, port * MAILBOX_STRIDE);
            let bytes = self.card.dma_bytes(&ring.region);
            match ring.announce(port, produced).and_then(|()| ring.check(port, bytes)) {
                Ok(more) => records += more,
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        first_error.map_or(Ok(records), Err)
    }

    /// The checked records of `port` that aren't consumed yet.
    pub fn batch(&self, port: usize) -> PortBatch<'_> {
        let ring = &self.rings[port];
        PortBatch { port, ring, bytes: self.card.dma_bytes(&ring.region) }
    }

    /// Gives back the first `records` of `port`'s batch: the card may write over them.
    ///
    /// # Panics
    /// The batch holds fewer records.
    pub fn consume(&mut self, port: usize, records: usize) -> Result<(), CardError> {
        let ring = &mut self.rings[port];
        assert!(records <= ring.held.len(), "{records} records of a batch of {}", ring.held.len());
        let Some(end) = ring.held.drain(..records).next_back().map(|last| last.end) else { return Ok(()) };
        assert!(ring.consumed <= end && end <= ring.checked);
        if end == ring.consumed {
            return Ok(());
        }
        ring.consumed = end;
        ports::CONSUMED.of(port).write(&mut self.card, end)
    }

    /// Reports to every port that everything up to the arbiter's `number` is durable in the primary
    /// journal.
    pub fn durable(&mut self, number: u64) -> Result<(), CardError> {
        (0..self.ports()).try_for_each(|port| ports::DURABLE.of(port).write(&mut self.card, number))
    }
}

/// The checked records of one port, where they lie in its ring.
#[derive(Clone, Copy, Debug)]
pub struct PortBatch<'a> {
    port: usize,
    ring: &'a Ring,
    bytes: &'a [u8],
}

impl<'a> PortBatch<'a> {
    /// The port.
    pub fn port(&self) -> usize {
        self.port
    }

    /// All bytes of the ring that the records lie in.
    pub fn ring_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.ring.held.len()
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.ring.held.is_empty()
    }

    /// Up to where the port has delivered, consumed records included; `None` before the first.
    pub fn delivered(&self) -> Option<Delivered> {
        let Progress { stamp, number, .. } = self.ring.progress;
        self.ring.any.then_some(Delivered { stamp, number })
    }

    /// Record `index` of the batch.
    pub fn get(&self, index: usize) -> Option<Record<'a>> {
        self.ring.held.get(index).map(|checked| self.record(checked))
    }

    /// The records in order.
    pub fn records(self) -> impl ExactSizeIterator<Item = Record<'a>> {
        self.ring.held.iter().map(move |checked| self.record(checked))
    }

    fn record(&self, checked: &'a Checked) -> Record<'a> {
        let length = checked.header.payload_bytes.get() as usize;
        let payload = match &checked.payload {
            Place::Ring(start) => &self.bytes[*start..start + length],
            Place::Wrapped => &self.ring.wrapped[..],
            Place::Made(gap) => &gap[..],
        };
        assert_eq!(payload.len(), length);
        Record {
            header: &checked.header,
            kind: checked.decoded.kind,
            encoding: checked.decoded.encoding,
            updated: checked.decoded.updated,
            payload,
            made_by_driver: matches!(checked.payload, Place::Made(_)),
        }
    }
}
