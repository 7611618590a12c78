//! What a card counts and measures.

use crate::card::{Card, CardError};
use crate::drain::Driver;
use crate::registers::{self, card, ports};
use layout::registers::{Counter, PORT_HOLDOVER, PORT_LOCKED, SOURCES};

/// What became of a port's frames since bring-up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters([u64; registers::COUNTERS]);

impl Counters {
    /// The count of `counter`.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    /// Every counter with its count.
    pub fn iter(&self) -> impl Iterator<Item = (Counter, u64)> + '_ {
        Counter::ALL.iter().map(|&counter| (counter, self.get(counter)))
    }
}

/// Counted elsewhere: what isn't named is 0.
impl FromIterator<(Counter, u64)> for Counters {
    fn from_iter<T: IntoIterator<Item = (Counter, u64)>>(counts: T) -> Self {
        let mut counters = Self([0; registers::COUNTERS]);
        for (counter, count) in counts {
            counters.0[counter as usize] = count;
        }
        counters
    }
}

/// The card's counters wrap at 32 bits; these don't, if they're read once in 2³² frames.
#[derive(Clone, Debug)]
pub(crate) struct Wrapping {
    last: [u32; registers::COUNTERS],
    sum: [u64; registers::COUNTERS],
}

impl Wrapping {
    /// Counts from what the card shows now.
    pub fn start<C: Card>(card: &mut C, port: usize) -> Result<Self, CardError> {
        Ok(Self { last: read(card, port)?, sum: [0; registers::COUNTERS] })
    }

    fn update(&mut self, now: [u32; registers::COUNTERS]) {
        for ((sum, last), now) in self.sum.iter_mut().zip(&self.last).zip(now) {
            *sum += u64::from(now.wrapping_sub(*last));
        }
        self.last = now;
    }
}

fn read<C: Card>(card: &mut C, port: usize) -> Result<[u32; registers::COUNTERS], CardError> {
    let mut counters = [0; registers::COUNTERS];
    for &counter in Counter::ALL {
        counters[counter as usize] = registers::counter(port, counter as usize).read(card)?;
    }
    Ok(counters)
}

/// A port's leaf clock.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LeafClock {
    /// Follows the time base.
    pub locked: bool,
    /// Goes on without hearing the time base.
    pub holdover: bool,
    /// Its time, ns since the Unix epoch.
    pub nanoseconds: u64,
    /// Filtered phase error, ns.
    pub phase: f64,
}

impl<C: Card> Driver<C> {
    /// What became of `port`'s frames since bring-up.
    pub fn counters(&mut self, port: usize) -> Result<Counters, CardError> {
        let now = read(&mut self.card, port)?;
        let counters = &mut self.counters[port];
        counters.update(now);
        Ok(Counters(counters.sum))
    }

    /// `port`'s leaf clock now.
    pub fn leaf_clock(&mut self, port: usize) -> Result<LeafClock, CardError> {
        let status = ports::STATUS.of(port).read(&mut self.card)?;
        Ok(LeafClock {
            locked: status & PORT_LOCKED != 0,
            holdover: status & PORT_HOLDOVER != 0,
            nanoseconds: ports::LEAF_TIME.of(port).read(&mut self.card)?,
            phase: f64::from(ports::LEAF_PHASE.of(port).read(&mut self.card)? as i32) / 65536.0,
        })
    }

    /// The time base now, ns since the Unix epoch.
    pub fn time_now(&mut self) -> Result<u64, CardError> {
        card::TIME_NOW.read(&mut self.card)
    }

    /// The last number that the arbiter has given to an entry.
    pub fn last_number(&mut self) -> Result<u64, CardError> {
        card::LAST_NUMBER.read(&mut self.card)
    }

    /// The last stamp that the arbiter has given.
    pub fn last_stamp(&mut self) -> Result<u64, CardError> {
        card::LAST_STAMP.read(&mut self.card)
    }

    /// The MACs of `port`'s sources, by the index that entries carry.
    pub fn sources(&mut self, port: usize) -> Result<Vec<[u8; 6]>, CardError> {
        let mut sources = Vec::new();
        for index in 0..SOURCES {
            let entry = registers::source(port, index).read(&mut self.card)?;
            if entry & SOURCE_VALID == 0 {
                break;
            }
            let b = entry.to_le_bytes();
            sources.push([b[0], b[1], b[2], b[3], b[4], b[5]]);
        }
        Ok(sources)
    }
}

/// Bit of an entry of the source table: it is valid (`layout::registers::port::SOURCE_TABLE`).
const SOURCE_VALID: u64 = 1 << 48;
