//! Joins entries with the answers that come after them, and knows the *final* watermark.

use crate::record::Record;
use layout::entry::{flags, Kind, Updated};
use std::collections::BTreeMap;

/// Most unanswered entries of a port: 255 scoreboard slots with four copies each. More is a defect of
/// the card.
pub const MAXIMUM_UNANSWERED: usize = 255 * 4;

/// What a record changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Joined {
    /// A new entry that has no answer yet.
    Open {
        /// The entry.
        number: u64,
    },
    /// The status of an entry is settled.
    Settled {
        /// The entry.
        number: u64,
        /// Its status.
        updated: Updated,
    },
    /// An answer after the entry's status had been settled as unknown: its location is doubtful again.
    Late {
        /// The entry.
        number: u64,
        /// What the answer says.
        updated: Updated,
    },
    /// An answer to an entry that this session hasn't seen, or that a gap swallowed.
    Orphan {
        /// The entry.
        number: u64,
        /// What the answer says.
        updated: Updated,
    },
    /// Records are missing. Answers may be among them, so every open entry of the port is unknown.
    Gap {
        /// The entries that are settled as unknown by it.
        unknown: Vec<u64>,
    },
    /// Nothing but the delivered watermark.
    Watermark,
}

/// A card that leaves more unanswered than it has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("port {port}: more than {MAXIMUM_UNANSWERED} entries without an answer, at number {number}; reset the card")]
pub struct CompletionsError {
    /// Port.
    pub port: usize,
    /// The entry that is one too many.
    pub number: u64,
}

/// The entries of a card that have no answer yet. Feed it every record once, port by port in order.
#[derive(Clone, Debug)]
pub struct Completions {
    ports: Vec<Port>,
}

#[derive(Clone, Debug, Default)]
struct Port {
    /// Stamps of the open entries, by number. Both increase together.
    open: BTreeMap<u64, u64>,
    delivered: Option<u64>,
}

impl Completions {
    /// For a card with `ports` ports.
    pub fn new(ports: usize) -> Self {
        Self { ports: vec![Port::default(); ports] }
    }

    /// Takes the next record of its port.
    ///
    /// # Panics
    /// The record is of a port that there isn't.
    pub fn take(&mut self, record: &Record<'_>) -> Result<Joined, CompletionsError> {
        let header = record.header;
        let index = usize::from(header.port);
        let port = &mut self.ports[index];
        let (number, updated) = (header.number.get(), record.updated);
        port.delivered = Some(header.timestamp.get());
        Ok(match record.kind {
            Kind::Completion => match port.open.remove(&number) {
                Some(_) => Joined::Settled { number, updated },
                None if header.flags.get() & flags::LATE != 0 => Joined::Late { number, updated },
                None => Joined::Orphan { number, updated },
            },
            Kind::Gap => Joined::Gap { unknown: std::mem::take(&mut port.open).into_keys().collect() },
            Kind::Watermark => Joined::Watermark,
            _ if updated != Updated::Pending => Joined::Settled { number, updated },
            _ if port.open.len() >= MAXIMUM_UNANSWERED => {
                return Err(CompletionsError { port: index, number });
            }
            _ => {
                port.open.insert(number, header.timestamp.get());
                Joined::Open { number }
            }
        })
    }

    /// Entries of `port` without an answer.
    pub fn open(&self, port: usize) -> usize {
        self.ports[port].open.len()
    }

    /// The number of `port`'s oldest entry without an answer.
    pub fn oldest_open(&self, port: usize) -> Option<u64> {
        self.ports[port].open.first_key_value().map(|(&number, _)| number)
    }

    /// The final watermark of `port`: every status at or below this stamp is settled. `None` before
    /// the port's first record.
    pub fn final_stamp(&self, port: usize) -> Option<u64> {
        let port = &self.ports[port];
        match port.open.first_key_value() {
            Some((_, stamp)) => Some(stamp - 1),
            None => port.delivered,
        }
    }

    /// The final watermark of all ports; `None` while one of them has no record.
    pub fn final_stamp_of_all(&self) -> Option<u64> {
        (0..self.ports.len()).map(|port| self.final_stamp(port)).min().flatten()
    }
}
