//! The host's clock, and how wrong it may be by its own account (adjtimex).

use engine::block_port::Reading;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

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
