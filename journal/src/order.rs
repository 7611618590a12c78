//! k-way merge of the ports' records into stamp order, up to the smallest delivered watermark.
//!
//! A record of a port says two things: itself, and that nothing of that port at or below its stamp is
//! still to come. A watermark record says the second alone. What every port has delivered can go
//! on; neither an idle port (it sends watermarks) nor a slow target (it delays completions, not
//! delivery) holds the others back.

use crate::record::{Delivered, OwnedRecord, Record};
use layout::entry::{EntryHeader, Kind};
use std::collections::{BTreeMap, VecDeque};

/// What can be put in order: anything that has a record's header.
pub trait Stamped {
    /// The record's header.
    fn header(&self) -> &EntryHeader;
}

impl Stamped for OwnedRecord {
    fn header(&self) -> &EntryHeader {
        &self.header
    }
}

impl Stamped for Record<'_> {
    fn header(&self) -> &EntryHeader {
        &self.header
    }
}

/// Why a record was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// The port is not one of those that are merged.
    #[error("port {0} is not among the ports that are merged")]
    UnknownPort(u8),
    /// Stamps of a port have to rise.
    #[error("port {port}: stamp {stamp} after {delivered} had been delivered")]
    StampFell {
        /// Port.
        port: u8,
        /// The record's stamp, ns.
        stamp: u64,
        /// The port's delivered watermark, ns.
        delivered: u64,
    },
    /// Records of a port are missing: they are lost, a gap.
    #[error("port {port}: record {found} follows record {last}: {} records are missing", found.wrapping_sub(*last).wrapping_sub(1))]
    Hole {
        /// Port.
        port: u8,
        /// Sequence of the last record taken.
        last: u64,
        /// Sequence of this one.
        found: u64,
    },
    /// The port's buffer is full: take what is ready, or wait for the other ports' watermarks.
    #[error("port {port}: {bytes} bytes wait for the other ports' watermarks, the limit")]
    Full {
        /// Port.
        port: u8,
        /// Bytes that wait.
        bytes: usize,
    },
}

#[derive(Debug)]
struct Lane<T> {
    waiting: VecDeque<T>,
    waiting_bytes: usize,
    delivered: u64,
    last_sequence: Option<u64>,
}

/// Merges records of several ports.
///
/// Each port holds at most `limit` bytes (counted as in the ring, padding included), and always at
/// least one record. At the limit [`Order::push`] refuses, and the caller leaves the record where it
/// is: in the port's ring, whose fill level is the back-pressure on the card.
#[derive(Debug)]
pub struct Order<T> {
    lanes: BTreeMap<u8, Lane<T>>,
    limit: usize,
}

impl<T: Stamped> Order<T> {
    /// Merges these ports, with at most `limit` bytes waiting in each.
    pub fn new(ports: impl IntoIterator<Item = u8>, limit: usize) -> Self {
        let lane = || Lane { waiting: VecDeque::new(), waiting_bytes: 0, delivered: 0, last_sequence: None };
        Self { lanes: ports.into_iter().map(|port| (port, lane())).collect(), limit }
    }

    /// Takes a port's next record, in ring order. A refused record is handed back.
    pub fn push(&mut self, record: T) -> Result<(), (T, OrderError)> {
        let header = *record.header();
        let (port, stamp, sequence) = (header.port, header.timestamp.get(), header.sequence.get());
        let Some(lane) = self.lanes.get_mut(&port) else {
            return Err((record, OrderError::UnknownPort(port)));
        };
        if let Some(last) = lane.last_sequence {
            if sequence != last.wrapping_add(1) {
                return Err((record, OrderError::Hole { port, last, found: sequence }));
            }
        }
        if stamp < lane.delivered || (stamp == lane.delivered && lane.last_sequence.is_some()) {
            return Err((record, OrderError::StampFell { port, stamp, delivered: lane.delivered }));
        }
        let watermark = header.kind == Kind::Watermark as u8;
        let bytes = header.record_bytes();
        if !watermark && !lane.waiting.is_empty() && lane.waiting_bytes + bytes > self.limit {
            return Err((record, OrderError::Full { port, bytes: lane.waiting_bytes }));
        }
        lane.delivered = stamp;
        lane.last_sequence = Some(sequence);
        if !watermark {
            lane.waiting_bytes += bytes;
            lane.waiting.push_back(record);
        }
        Ok(())
    }

    /// Stamp up to which every port has delivered everything.
    pub fn bound(&self) -> u64 {
        self.lanes.values().map(|lane| lane.delivered).min().unwrap_or(0)
    }

    /// The next record in stamp order, if it is certain that none comes before it. Equal stamps (of
    /// different arbiters) go by port.
    pub fn pop(&mut self) -> Option<T> {
        let bound = self.bound();
        let next = self
            .lanes
            .iter()
            .filter_map(|(port, lane)| Some((lane.waiting.front()?.header().timestamp.get(), *port)))
            .min()?;
        if next.0 > bound {
            return None;
        }
        let lane = self.lanes.get_mut(&next.1)?;
        let record = lane.waiting.pop_front()?;
        lane.waiting_bytes -= record.header().record_bytes();
        Some(record)
    }

    /// Every record that is certain, in stamp order.
    pub fn drain_ready(&mut self) -> Vec<T> {
        std::iter::from_fn(|| self.pop()).collect()
    }

    /// The ports' delivered watermarks as far as everything up to them has been taken: what
    /// [`crate::Journal::append`] wants along with the records. All are [`Order::bound`] or, where
    /// less has been taken, just below the oldest record that waits.
    pub fn delivered(&self) -> Vec<Delivered> {
        let bound = self.bound();
        self.lanes
            .iter()
            .map(|(port, lane)| Delivered {
                port: *port,
                timestamp: match lane.waiting.front() {
                    Some(record) => bound.min(record.header().timestamp.get().saturating_sub(1)),
                    None => bound,
                },
            })
            .collect()
    }

    /// Bytes that wait in a port's buffer.
    pub fn waiting_bytes(&self, port: u8) -> usize {
        self.lanes.get(&port).map_or(0, |lane| lane.waiting_bytes)
    }

    /// Forgets a port's place in its sequence, after a gap of that port has been recorded.
    pub fn resume_after_gap(&mut self, port: u8) {
        if let Some(lane) = self.lanes.get_mut(&port) {
            lane.last_sequence = None;
        }
    }
}
