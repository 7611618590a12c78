//! The host's clock, and how wrong it may be by its own account (adjtimex); and a card's, as the host follows it.

use engine::block_port::Reading;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Tells the time.
pub trait Clock: Send + Sync {
    /// Now.
    fn read(&self) -> Reading;
}

/// How often the kernel is asked how wrong the clock is, ns.
const ASK_EVERY: u64 = 1_000_000_000;
/// What its bound grows by meanwhile, ns: 500 ppm, as the kernel itself lets it grow between corrections.
const DRIFT: u64 = 500_000;
/// No bound is known.
const UNKNOWN: u64 = u64::MAX;

/// CLOCK_REALTIME.
#[derive(Debug)]
pub struct HostClock {
    /// When the kernel was last asked, by the clock itself, ns.
    asked: AtomicU64,
    /// The bound that it gave, ns, or [`UNKNOWN`].
    bound: AtomicU64,
}

impl Default for HostClock {
    fn default() -> Self {
        Self { asked: AtomicU64::new(now()), bound: AtomicU64::new(bound()) }
    }
}

impl Clock for HostClock {
    fn read(&self) -> Reading {
        let nanoseconds = now();
        // Also after a jump, either way.
        if nanoseconds.abs_diff(self.asked.load(Ordering::Relaxed)) > ASK_EVERY {
            self.asked.store(nanoseconds, Ordering::Relaxed);
            self.bound.store(bound(), Ordering::Relaxed);
        }
        let bound = self.bound.load(Ordering::Relaxed);
        Reading { nanoseconds, error: (bound != UNKNOWN).then(|| bound.saturating_add(DRIFT)) }
    }
}

/// A card's time may go faster than the host's monotonic clock by one part in so many: both are crystals of 100 ppm at worst,
/// and the host's is slewed by up to 500 ppm.
const FASTER: u64 = 1_000;

/// A card's time base, as it was last read. What this tells is never behind it: a write that comes when the card has answered
/// another one is stamped behind that.
#[derive(Debug)]
pub struct CardClock {
    /// What was read, and from when on it may have been so.
    read: Mutex<Option<(u64, Instant)>>,
    /// How much slower than the host's the card's time goes: 1, unless it is simulated.
    slower: u32,
    /// A reading took so long, ns.
    took: AtomicU64,
}

impl CardClock {
    /// Of a card whose time goes so much slower than the host's.
    pub fn new(slower: u32) -> Self {
        Self { read: Mutex::default(), slower: slower.max(1), took: AtomicU64::new(0) }
    }

    /// The card told this `time`, asked at `asked`, and the answer is here.
    pub fn follow(&self, time: u64, asked: Instant) {
        self.took.store(nanoseconds_since(asked), Ordering::Relaxed);
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) = Some((time, asked));
    }
}

impl Clock for CardClock {
    fn read(&self) -> Reading {
        let read = *self.read.lock().unwrap_or_else(PoisonError::into_inner);
        // Stamps come behind the floor then.
        let Some((time, asked)) = read else { return Reading { nanoseconds: 0, error: None } };
        let passed = nanoseconds_since(asked);
        let most = (passed + passed / FASTER) / u64::from(self.slower) + 1;
        // How a simulated one goes is a guess.
        let error = self.took.load(Ordering::Relaxed) + 2 * (passed / FASTER) + 1;
        Reading { nanoseconds: time.saturating_add(most), error: (self.slower == 1).then_some(error) }
    }
}

fn nanoseconds_since(then: Instant) -> u64 {
    u64::try_from(then.elapsed().as_nanos()).unwrap_or(u64::MAX / 2)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}

/// The kernel's bound in ns; [`UNKNOWN`] while nothing disciplines the clock.
fn bound() -> u64 {
    // SAFETY: all of `timex` is integers, for which zero is a value; with `modes` zero the call only fills it in.
    let (state, timex) = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&mut timex), timex)
    };
    if state < 0 || state == libc::TIME_ERROR || timex.status & libc::STA_UNSYNC != 0 {
        return UNKNOWN;
    }
    u64::try_from(timex.maxerror).map_or(UNKNOWN, |micros| micros.saturating_mul(1000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_followed_clock_is_never_behind() {
        let clock = CardClock::new(1);
        assert_eq!(clock.read(), Reading { nanoseconds: 0, error: None });
        let asked = Instant::now();
        std::thread::sleep(Duration::from_millis(2));
        clock.follow(1_000_000, asked);
        for _ in 0..100 {
            let (before, reading, after) = (asked.elapsed(), clock.read(), asked.elapsed());
            let ahead = u128::from(reading.nanoseconds - 1_000_000);
            assert!(before.as_nanos() <= ahead && ahead <= after.as_nanos() * 1001 / 1000 + 1);
            assert!(reading.error.is_some_and(|error| error >= 2_000_000), "the reading took so long");
        }
        let slow = CardClock::new(1_000);
        slow.follow(5, Instant::now() - Duration::from_secs(1));
        let reading = slow.read();
        assert!((1_000_000..2_000_000).contains(&reading.nanoseconds) && reading.error.is_none());
    }
}
