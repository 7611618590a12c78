//! The time of an event: the host's clock for stamps, one that never jumps for time-outs.

use engine::switch::{Clock, Now};
use layout::entry::{flags, ErrorBound};
use ports::clock::{Clock as _, HostClock};
use std::time::Instant;

/// See the module.
#[derive(Debug)]
pub struct SwitchClock {
    began: Instant,
    host: HostClock,
}

impl Default for SwitchClock {
    fn default() -> Self {
        Self { began: Instant::now(), host: HostClock::default() }
    }
}

impl SwitchClock {
    /// ns since it was made.
    pub fn elapsed(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    /// Now, for a switch that has given the stamp `last`. Where the clock is behind that, stamps go on from there, and are
    /// wrong by so much more.
    pub fn now(&self, last: u64) -> Now {
        let reading = self.host.read();
        let ahead = last.saturating_sub(reading.nanoseconds);
        let error = match reading.error {
            Some(error) => ErrorBound::from_sixteenths(error.saturating_add(ahead).saturating_mul(16)),
            None => ErrorBound::UNBOUNDED,
        };
        let flags = if reading.error.is_some() { flags::CLOCK_LOCKED } else { 0 };
        Now { elapsed: self.elapsed(), clock: Clock { nanoseconds: reading.nanoseconds, flags, error } }
    }
}
