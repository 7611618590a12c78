//! The one arbiter of an uplink: numbers, and stamps that strictly increase along them.

use super::settings::MAXIMUM_STAMP;
use super::Now;
use crate::entry::Commit;
use crate::hybrid_clock::HybridClock;
use layout::entry::flags;

/// Gives every record its stamp, and every entry its number.
#[derive(Clone, Debug)]
pub struct Arbiter {
    clock: HybridClock,
    number: u64,
}

impl Arbiter {
    /// All stamps and numbers will be above these floors.
    pub fn new(stamp_floor: u64, number_floor: u64) -> Self {
        assert!(stamp_floor < MAXIMUM_STAMP && number_floor < MAXIMUM_STAMP);
        Self { clock: HybridClock::new(stamp_floor), number: number_floor }
    }

    /// The last number given, or the floor.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The last stamp given, or the floor.
    pub fn stamp(&self) -> u64 {
        self.clock.last()
    }

    /// A new entry of `port`.
    pub fn entry(&mut self, port: usize, sequence: u64, now: &Now) -> Commit {
        self.number += 1;
        self.record(port, sequence, self.number, now)
    }

    /// Any other record of `port`, with the number that its kind wants.
    pub fn record(&mut self, port: usize, sequence: u64, number: u64, now: &Now) -> Commit {
        let before = self.clock.last();
        let leaf = now.clock.nanoseconds.min(MAXIMUM_STAMP);
        // One a nanosecond from 2^63 on lasts for 292 years.
        let stamp = self.clock.stamp(leaf).unwrap_or_else(|_| unreachable!("stamps begin below 2^63"));
        assert!(stamp.nanoseconds > before);
        let logical = if stamp.logical { flags::STAMP_LOGICAL } else { 0 };
        Commit {
            port: port as u8,
            sequence,
            timestamp: stamp.nanoseconds,
            number,
            clock_flags: now.clock.flags & (flags::CLOCK_LOCKED | flags::CLOCK_HOLDOVER) | logical,
            clock_error: now.clock.error,
        }
    }
}
