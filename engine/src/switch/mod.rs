//! The switch in software: frames in at ports, answers in from the uplink; frames out, records out.
//!
//! Time and input come in from outside, so the same calls give the same bytes. Nothing here waits: what has
//! to wait stands in a bounded queue, and [`Switch::deadline`] says when [`Switch::tick`] has something to do.
//!
//! | file | job |
//! |---|---|
//! | `settings` | volumes, ports, time-outs, sizes |
//! | `port` | a port: partial journal, writes in flight and waiting, lists, counters |
//! | `ring` | a partial journal in memory, with room reserved |
//! | `arbiter` | numbers and stamps |
//! | `interlock` | no two overlapping writes in flight |
//! | `scoreboard` | writes from admission to their last answer |
//! | `hold_queue` | writes that wait for admission |
//! | `dirty_regions` | where a write has to wait for a log outside |
//! | `admission` | what a frame from a source comes to |
//! | `before_read` | reads of old data |
//! | `answers` | what a frame from the uplink comes to |
//! | `return_path` | which port a source is on |
//! | `durability` | what waits for the host's disk |
//! | `time_outs` | what happens when nothing comes |
//!
//! What is decided is what `DESIGN.md` §3 says, invariants 1 to 8. Where the gateware decides otherwise
//! (`docs/decisions/0005` to `0007`) both keep them.

mod admission;
mod answers;
mod arbiter;
pub(crate) mod before_read;
mod dirty_regions;
mod durability;
mod hold_queue;
mod interlock;
mod port;
mod return_path;
mod ring;
mod scoreboard;
mod settings;
mod time_outs;

pub use before_read::TRIES as BEFORE_READ_TRIES;
pub use dirty_regions::DirtyRegions;
pub use port::{Port, COUNTERS};
pub use scoreboard::{COPIES, REMEMBERED};
pub use settings::{
    Acknowledge, Images, Port as PortSettings, Settings, SettingsError, Timeouts, Volume, MAXIMUM_SLOTS,
    MAXIMUM_STAMP, MINIMUM_RING_BYTES,
};

use arbiter::Arbiter;
use before_read::set_tag;
use interlock::Interlock;
use layout::entry::ErrorBound;
use layout::registers::Counter;
use return_path::ReturnPath;
use std::collections::VecDeque;
use std::sync::Arc;

/// A port's clock, read when something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Nanoseconds since the Unix epoch.
    pub nanoseconds: u64,
    /// `layout::entry::flags::CLOCK_LOCKED`, `CLOCK_HOLDOVER` or neither.
    pub flags: u16,
    /// Bound on its error.
    pub error: ErrorBound,
}

/// The time of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Nanoseconds of a clock that never jumps, from any beginning: time-outs go by it.
    pub elapsed: u64,
    /// The time of day: stamps go by it.
    pub clock: Clock,
}

/// A frame that leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Towards the target.
    Uplink(Vec<u8>),
    /// Towards the sources on a port.
    Port(usize, Vec<u8>),
}

/// The switch.
#[derive(Clone, Debug)]
pub struct Switch {
    settings: Settings,
    ports: Vec<Port>,
    arbiter: Arbiter,
    interlock: Interlock,
    return_path: ReturnPath,
    outputs: VecDeque<Output>,
    regions: Option<Arc<dyn DirtyRegions>>,
    /// The port whose waiting writes are looked at first.
    first_port: usize,
}

impl Switch {
    /// A switch that admits writes.
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        let volumes = settings.check()?;
        let ports = (0..settings.ports.len()).map(|port| Port::new(port, &settings, &volumes)).collect();
        Ok(Self {
            ports,
            arbiter: Arbiter::new(settings.stamp_floor, settings.number_floor),
            interlock: Interlock::default(),
            return_path: ReturnPath::default(),
            outputs: VecDeque::new(),
            regions: None,
            first_port: 0,
            settings,
        })
    }

    /// What it goes by.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The ports.
    pub fn ports(&self) -> &[Port] {
        &self.ports
    }

    /// The last number given to an entry, or the floor.
    pub fn last_number(&self) -> u64 {
        self.arbiter.number()
    }

    /// The last stamp given, or the floor, ns.
    pub fn last_stamp(&self) -> u64 {
        self.arbiter.stamp()
    }

    /// The next frame that leaves. Take them all after every call: they are not bounded here, but every call
    /// makes only a few.
    pub fn output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Opens for writes, or closes: then they are dropped and counted, reads pass.
    pub fn set_writes_open(&mut self, open: bool) {
        for port in &mut self.ports {
            port.rules.writes_open = open;
        }
    }

    /// A watermark into `port`'s ring: nothing of it at or below this stamp is still to come. Unless one
    /// waits there already.
    pub fn watermark(&mut self, port: usize, now: &Now) {
        self.ports[port].watermark(&mut self.arbiter, now);
    }

    /// Takes whole records out of `port`'s ring, `most` bytes at most, and adds them to `out`. The room lets
    /// waiting writes in.
    pub fn drain(&mut self, port: usize, most: usize, now: &Now, out: &mut Vec<u8>) {
        self.ports[port].ring.drain(most, out);
        self.ports[port].tell_loss(&mut self.arbiter, now);
        self.admit_waiting(now);
    }

    /// Nothing waits, nothing is in flight, and every ring is empty.
    pub fn is_idle(&self) -> bool {
        self.outputs.is_empty()
            && self.ports.iter().all(|p| p.queue.is_empty() && p.scoreboard.is_empty() && p.ring.is_idle())
    }

    fn count(&mut self, port: usize, counter: Counter) {
        self.ports[port].count(counter);
    }
}
