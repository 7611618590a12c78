//! From the thread that switches frames to the one that writes the journal: records one way, "durable" the other.
//!
//! The frames' thread never waits for the disk. What it has drained and nobody has taken yet is bounded; beyond that it leaves
//! records in the ports' rings, and a port whose ring is full admits nothing.

use crate::error::Error;
use crate::replay::Rings;
use driver::{Record, Stream};
use rustix::event::{eventfd, EventfdFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Most bytes of a port's records that wait here; as much may wait again, checked, for the other ports.
pub const PORT_BYTES: usize = 4 << 20;

/// Wakes the thread that switches frames.
pub struct Bell(OwnedFd);

impl Bell {
    /// A new one.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Rings.
    pub fn ring(&self) {
        // Full: it has been rung often enough.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// It has been heard.
    pub fn hush(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// See the module; of one session.
pub struct Handover {
    state: Mutex<State>,
    changed: Condvar,
    /// Everything up to this number is durable.
    durable: AtomicU64,
    /// The last number that was given to an entry before frames left.
    last_number: AtomicU64,
    /// The journal's side waits for records.
    is_hungry: AtomicBool,
    bell: Arc<Bell>,
}

#[derive(Default)]
struct State {
    ports: Vec<Drained>,
    /// Somebody waits until everything up to this number is durable.
    wanted: u64,
    /// Nothing comes any more.
    over: bool,
    /// Nothing is taken any more.
    failed: bool,
}

#[derive(Clone, Default)]
struct Drained {
    bytes: Vec<u8>,
    sources: Vec<[u8; 6]>,
}

impl Handover {
    /// For `ports` ports, whose numbers are above `number`.
    pub fn new(ports: usize, number: u64, bell: &Arc<Bell>) -> Self {
        Self {
            state: Mutex::new(State { ports: vec![Drained::default(); ports], ..State::default() }),
            changed: Condvar::new(),
            durable: AtomicU64::new(number),
            last_number: AtomicU64::new(number),
            is_hungry: AtomicBool::new(false),
            bell: Arc::clone(bell),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is there room for `bytes` more of `port`?
    pub fn has_room(&self, port: usize, bytes: usize) -> bool {
        self.state().ports[port].bytes.len() + bytes <= PORT_BYTES
    }

    /// Hands over records of `port`, and who its sources are.
    pub fn give(&self, port: usize, records: &[u8], sources: &[[u8; 6]]) {
        let mut state = self.state();
        let of_port = &mut state.ports[port];
        of_port.bytes.extend_from_slice(records);
        of_port.sources.extend_from_slice(&sources[of_port.sources.len()..]);
        drop(state);
        self.changed.notify_all();
    }

    /// Nothing comes any more.
    pub fn end(&self) {
        self.state().over = true;
        self.changed.notify_all();
    }

    /// The journal's side waits for records.
    pub fn is_hungry(&self) -> bool {
        self.is_hungry.load(Ordering::Acquire)
    }

    /// Everything up to this number is durable.
    pub fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Frames that leave from now on belong to numbers up to this one.
    pub fn set_last_number(&self, number: u64) {
        self.last_number.store(number, Ordering::Release);
    }

    /// The last of those.
    pub fn last_number(&self) -> u64 {
        self.last_number.load(Ordering::Acquire)
    }

    /// Waits until everything up to `number` is durable, `limit` at most. Says whether it is.
    pub fn wait_durable(&self, number: u64, limit: Duration) -> bool {
        let mut state = self.state();
        state.wanted = state.wanted.max(number);
        self.changed.notify_all();
        let not_yet = |state: &mut State| self.durable() < number && !state.failed;
        drop(self.changed.wait_timeout_while(state, limit, not_yet));
        self.durable() >= number
    }

    /// Waits until there are records, or nothing comes any more, or somebody waits for what was taken.
    pub fn wait(&self, limit: Duration) {
        let state = self.state();
        let nothing = |state: &mut State| {
            state.ports.iter().all(|port| port.bytes.is_empty())
                && !state.over
                && state.wanted <= self.durable()
        };
        if state.ports.iter().all(|port| port.bytes.is_empty()) {
            self.is_hungry.store(true, Ordering::Release);
            self.bell.ring();
        }
        drop(self.changed.wait_timeout_while(state, limit, nothing));
        self.is_hungry.store(false, Ordering::Release);
    }

    /// Does somebody wait for what isn't durable?
    pub fn is_waited_for(&self) -> bool {
        self.state().wanted > self.durable()
    }

    /// Nothing comes any more, and nothing is left here.
    pub fn is_over(&self) -> bool {
        let state = self.state();
        state.over && state.ports.iter().all(|port| port.bytes.is_empty())
    }

    /// Nothing is taken any more.
    pub fn has_failed(&self) -> bool {
        self.state().failed
    }

    /// How many ports there are.
    pub fn ports(&self) -> usize {
        self.state().ports.len()
    }

    /// The journal takes nothing any more.
    pub fn fail(&self) {
        self.state().failed = true;
        self.changed.notify_all();
    }
}

/// The journal's side: the ports' rings, as the recorder takes from them.
pub struct Taken {
    handover: Arc<Handover>,
    streams: Vec<Stream>,
    sources: Vec<Vec<[u8; 6]>>,
}

impl Taken {
    /// Of ports whose stamps and numbers are above the floors.
    pub fn new(handover: &Arc<Handover>, ports: usize, (stamp, number): (u64, u64)) -> Self {
        Self {
            handover: Arc::clone(handover),
            streams: (0..ports).map(|port| Stream::new(port, stamp, number)).collect(),
            sources: vec![Vec::new(); ports],
        }
    }
}

impl Taken {
    /// Bytes of records that were taken from the handover, and not yet into the journal.
    pub fn held_bytes(&self) -> usize {
        self.streams.iter().map(Stream::held_bytes).sum()
    }
}

impl Rings for Taken {
    const NAME: &'static str = "the software switch";

    fn ports(&self) -> usize {
        self.streams.len()
    }

    fn poll(&mut self) -> Result<(), Error> {
        for (port, stream) in self.streams.iter_mut().enumerate() {
            if stream.held_bytes() >= PORT_BYTES {
                continue;
            }
            let mut state = self.handover.state();
            let bytes = std::mem::take(&mut state.ports[port].bytes);
            self.sources[port].clone_from(&state.ports[port].sources);
            drop(state);
            stream.take(&bytes).map_err(|e| Error::Failed(format!("the software switch: {e}")))?;
        }
        Ok(())
    }

    fn records(&self, port: usize) -> impl Iterator<Item = Record<'_>> {
        self.streams[port].records()
    }

    fn consume(&mut self, port: usize, records: usize) -> Result<(), Error> {
        self.streams[port].consume(records);
        Ok(())
    }

    fn sources(&mut self, port: usize) -> Result<Vec<[u8; 6]>, Error> {
        Ok(self.sources[port].clone())
    }

    fn durable(&mut self, number: u64) -> Result<(), Error> {
        let _state = self.handover.state();
        self.handover.durable.fetch_max(number, Ordering::AcqRel);
        drop(_state);
        self.handover.changed.notify_all();
        self.handover.bell.ring();
        Ok(())
    }
}
