//! Ports whose session others share: a card's, whose records go into the same journal (`docs/decisions/0086-one-time-line.md`).
//!
//! Then nobody here hands records over. Who puts both kinds into one order takes them ([`SoftwarePorts::take_to`]) up to the
//! stamp that the others have delivered to, and says what became of them; from then on stamps are above that. So these ports
//! hold nobody back, and whoever needs something in the journal says so ([`SoftwarePorts::wanted`]) and waits.

use crate::path::SoftwarePorts;
use engine::block_port::{Batch, Drained};
use journal::Delivered;
use layout::entry::EntryHeader;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::PoisonError;
use std::time::Duration;

/// Who waits looks again so often, whatever he is told.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How far the journal is, and what somebody waits for. All are stamps.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// The journal has everything up to here.
    appended: u64,
    /// Durably.
    durable: u64,
    wanted: u64,
    wanted_durable: u64,
    /// The last number that the journal has.
    number: u64,
}

/// What is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Everything up to this stamp in the journal.
    pub appended: Option<u64>,
    /// Durable there.
    pub durable: Option<u64>,
}

impl Wanted {
    /// The stamp that the journal has to come to.
    pub fn stamp(&self) -> Option<u64> {
        self.appended.max(self.durable)
    }
}

impl SoftwarePorts {
    /// Others share the session. No write is let in before [`SoftwarePorts::resume`].
    pub fn in_line(self) -> Self {
        {
            let mut state = self.lock();
            state.block.close();
            state.line = Some(Line::default());
        }
        // A flush waits for the others' watermarks.
        self.slow.store(true, Ordering::Relaxed);
        self
    }

    /// Waits until the journal has all records that there are. `None`: nobody else shares the session.
    pub(crate) fn wait_in_line(&self, durably: bool) -> Option<io::Result<()>> {
        let mut state = self.lock();
        let stamp = state.block.last_record();
        loop {
            let line = state.line.as_mut()?;
            if self.failure().is_some() {
                return Some(self.check());
            }
            if (if durably { line.durable } else { line.appended }) >= stamp {
                return Some(Ok(()));
            }
            let wanted = if durably { &mut line.wanted_durable } else { &mut line.wanted };
            *wanted = stamp.max(*wanted);
            state = self.wait(state, LOOK_AGAIN);
        }
    }

    /// What somebody waits for.
    pub fn wanted(&self) -> Wanted {
        let mut state = self.lock();
        let last = state.block.last_record();
        // A partial journal is filled to its level.
        let woken = std::mem::take(&mut state.woken);
        let Some(line) = state.line.as_mut() else { return Wanted::default() };
        if woken {
            line.wanted = line.wanted.max(last);
        }
        Wanted {
            appended: (line.wanted > line.appended).then_some(line.wanted),
            durable: (line.wanted_durable > line.durable).then_some(line.wanted_durable),
        }
    }

    /// The records stamped up to `bound`, and none that is made later is. To be told of by [`SoftwarePorts::appended`].
    pub fn take_to(&self, bound: u64) -> Vec<Drained> {
        let Batch { mut records, .. } = self.lock().block.drain_to(bound);
        records.iter_mut().for_each(Drained::seal);
        records
    }

    /// The watermarks of all ports, when everything up to `bound` was taken.
    pub fn delivered(&self, bound: u64) -> Vec<Delivered> {
        self.lock().delivered(bound)
    }

    /// The journal has these records, of which none is left before `up_to`, and ends at `end`, order and stamp.
    pub fn appended(&self, records: &[EntryHeader], number: Option<u64>, up_to: u64, end: (u64, u64)) {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.lock();
        records.iter().for_each(|header| state.block.taken_record(header));
        if let Some(line) = state.line.as_mut() {
            line.appended = line.appended.max(up_to);
            if let Some(number) = number {
                line.number = number;
                turn.appended = (number, end);
            }
        }
        self.tell(&state);
    }

    /// What the journal was said to have is durable.
    pub fn made_durable(&self) {
        let mut state = self.lock();
        if let Some(line) = state.line.as_mut() {
            line.durable = line.appended;
            self.durable.fetch_max(line.number, Ordering::AcqRel);
        }
        self.tell(&state);
    }

    /// Nothing is written any more: what was taken is lost. The first reason counts.
    pub fn give_up(&self, why: String) {
        self.fail(why);
    }

    /// The last stamp that was given or promised.
    pub fn last_stamp(&self) -> u64 {
        self.lock().block.last_stamp()
    }
}
