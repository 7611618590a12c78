//! The overlap interlock, across all ports: no write is admitted that overlaps one not yet answered
//! (DESIGN §3, invariant 2), for targets execute what is in flight together in any order.

use crate::frame::Write;

/// A location that a write in flight holds.
#[derive(Clone, Debug)]
struct Lock {
    port: usize,
    slot: usize,
    write: Write,
    quarantined: bool,
}

/// How a location is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// By a write that waits for its answer.
    Unanswered,
    /// By a write whose status has been declared unknown.
    Quarantined,
}

/// Every location that is held. At most the slots of all scoreboards.
#[derive(Clone, Debug, Default)]
pub struct Interlock {
    locks: Vec<Lock>,
}

impl Interlock {
    /// Holds the location of `write`, which stands in `slot` of `port`.
    pub fn lock(&mut self, port: usize, slot: usize, write: &Write) {
        assert!(self.conflict(write).is_none(), "two overlapping writes in flight");
        self.locks.push(Lock { port, slot, write: write.clone(), quarantined: false });
    }

    /// Lets go of it.
    pub fn unlock(&mut self, port: usize, slot: usize) {
        self.locks.retain(|lock| (lock.port, lock.slot) != (port, slot));
    }

    /// The write's status has been declared unknown.
    pub fn quarantine(&mut self, port: usize, slot: usize) {
        let lock = self.locks.iter_mut().find(|lock| (lock.port, lock.slot) == (port, slot));
        if let Some(lock) = lock {
            lock.quarantined = true;
        }
    }

    /// Is a location that `write` touches held? Quarantined counts before unanswered.
    pub fn conflict(&self, write: &Write) -> Option<Conflict> {
        let mut overlapping = self.locks.iter().filter(|lock| lock.write.overlaps(write)).peekable();
        overlapping.peek()?;
        Some(match overlapping.any(|lock| lock.quarantined) {
            true => Conflict::Quarantined,
            false => Conflict::Unanswered,
        })
    }
}
