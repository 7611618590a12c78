//! What a frame from a source comes to.

use super::before_read::{self, Tag};
use super::hold_queue::Held;
use super::interlock::Conflict;
use super::port::{Port, COMPLETION_BYTES};
use super::scoreboard::{Request, State, COPIES};
use super::settings::{Acknowledge, Images};
use super::{Now, Output, Switch};
use crate::entry::{self, Admitted};
use crate::frame::{classify, Decision, Write};
use layout::registers::Counter;

/// What came of trying to admit a waiting write.
enum Attempt {
    /// It is in, or it was dropped.
    Settled,
    /// Something that overlaps it is in flight, or its region isn't marked; what comes behind it may go on.
    Waits,
    /// There is no room; what comes behind it waits too, or a large write would never get any.
    Full,
}

impl Switch {
    /// Takes a whole, good frame that came in at `port`.
    ///
    /// # Panics
    /// There is no such port.
    pub fn frame(&mut self, port: usize, frame: &[u8], now: &Now) {
        let source = frame.get(6..12).and_then(|mac| <[u8; 6]>::try_from(mac).ok());
        if let Some(source) = source {
            if !self.ports[port].allows(source) {
                self.count(port, Counter::DroppedSource);
                return;
            }
            self.return_path.learn(source, port, now.elapsed);
        }
        match classify(frame, &self.ports[port].rules) {
            Decision::Pass => {
                self.count(port, Counter::Passed);
                self.outputs.push_back(Output::Uplink(frame.to_vec()));
            }
            Decision::Drop(counter) => self.count(port, counter),
            Decision::Write(write) => {
                if self.ports[port].queue.take_tag(&write) {
                    self.count(port, Counter::DroppedCopy);
                    return;
                }
                let held = Held { write, frame: frame.to_vec(), arrived: now.elapsed };
                match self.ports[port].queue.push(held) {
                    true => self.admit_port(port, now),
                    false => self.count(port, Counter::DroppedBuffer),
                }
            }
        }
    }

    /// Admits whatever can be, at every port, each being the first in its turn.
    pub(super) fn admit_waiting(&mut self, now: &Now) {
        let ports = self.ports.len();
        self.first_port = (self.first_port + 1) % ports;
        for offset in 0..ports {
            let port = (self.first_port + offset) % ports;
            if !self.ports[port].queue.is_empty() {
                self.admit_port(port, now);
            }
        }
    }

    fn admit_port(&mut self, port: usize, now: &Now) {
        let mut place = 0;
        while self.ports[port].queue.get(place).is_some() {
            if self.ports[port].queue.is_behind_overlap(place) {
                place += 1;
                continue;
            }
            match self.try_admit(port, place, now) {
                Attempt::Settled => {}
                Attempt::Waits => place += 1,
                Attempt::Full => break,
            }
        }
    }

    fn try_admit(&mut self, port: usize, place: usize, now: &Now) -> Attempt {
        let Some(held) = self.ports[port].queue.get(place) else { return Attempt::Full };
        let write = held.write.clone();
        // Before it has a number: what is dropped here was never journaled.
        if !self.is_marked(&write) {
            return Attempt::Waits;
        }
        if let Some(slot) = self.ports[port].scoreboard.original(&write) {
            return self.try_copy(port, place, slot, &write, now);
        }
        match self.interlock.conflict(&write) {
            Some(Conflict::Quarantined) => return self.drop_held(port, place, Counter::DroppedQuarantine),
            Some(Conflict::Unanswered) => return Attempt::Waits,
            None => {}
        }
        let Some(slot) = self.ports[port].scoreboard.free() else { return Attempt::Full };
        let room = self.room(&write);
        if !self.ports[port].ring.reserve(room) {
            return Attempt::Full;
        }
        let Some(held) = self.ports[port].queue.remove(place) else { return Attempt::Full };
        self.interlock.lock(port, slot, &write);
        self.ports[port].scoreboard.occupy(slot, write);
        match self.images(held.write.volume).has_before() {
            true => self.read_before(port, slot, held, now),
            false => self.journal(port, slot, held.frame, &held.write, &[], false, now),
        }
        Attempt::Settled
    }

    /// A copy of the write in `slot`: it gives its tag to what is held, or goes the same way again.
    fn try_copy(&mut self, port: usize, place: usize, slot: usize, write: &Write, now: &Now) -> Attempt {
        let scoreboard = &mut self.ports[port].scoreboard;
        let Some(original) = scoreboard.slot_mut(slot) else { return Attempt::Full };
        // The latest of them: that is the one whose tag the source knows.
        if let Some(request) = original.requests.iter_mut().rev().find(|request| request.is_held()) {
            request.tag = write.tag;
            match &mut request.state {
                State::Reading { frame, .. } | State::Undurable { frame } | State::AnswerHeld { frame } => {
                    super::set_tag(frame, write.tag)
                }
                State::Unanswered { .. } => unreachable!("it is held"),
            }
            return self.drop_held(port, place, Counter::DroppedCopy);
        }
        if original.open() >= COPIES {
            return match self.interlock.conflict(write) {
                Some(Conflict::Quarantined) => self.drop_held(port, place, Counter::DroppedQuarantine),
                _ => Attempt::Waits,
            };
        }
        let room = self.room(write);
        if !self.ports[port].ring.reserve(room) {
            return Attempt::Full;
        }
        let Some(held) = self.ports[port].queue.remove(place) else { return Attempt::Full };
        // In the order of the journal the original comes first, so what the location held before its copy
        // is what both write. Reading it would be a race with the original.
        let before = held.frame[held.write.payload.clone()].to_vec();
        self.journal(port, slot, held.frame, &held.write, &before, true, now);
        Attempt::Settled
    }

    fn drop_held(&mut self, port: usize, place: usize, counter: Counter) -> Attempt {
        self.ports[port].queue.remove(place);
        self.count(port, counter);
        Attempt::Settled
    }

    /// Room for an entry and its completion.
    fn room(&self, write: &Write) -> usize {
        Port::entry_bytes(write.sectors, self.images(write.volume).count()) + COMPLETION_BYTES
    }

    pub(super) fn images(&self, volume: u16) -> Images {
        self.settings.volumes[usize::from(volume)].images
    }

    pub(super) fn acknowledge(&self, volume: u16) -> Acknowledge {
        self.settings.volumes[usize::from(volume)].acknowledge
    }

    /// Asks the target what the write will overwrite; the write is held meanwhile.
    fn read_before(&mut self, port: usize, slot: usize, held: Held, now: &Now) {
        let scoreboard = &mut self.ports[port].scoreboard;
        let generation = scoreboard.next_generation();
        let read = before_read::request(&held.frame, &held.write, Tag { port, slot, generation });
        let state = State::Reading { frame: held.frame, generation, tries: 1, sent: now.elapsed };
        if let Some(occupied) = scoreboard.slot_mut(slot) {
            occupied.requests.push(Request { tag: held.write.tag, number: 0, state });
        }
        self.outputs.push_back(Output::Uplink(read));
    }

    /// Drops a write whose old data nobody gives: it was never journaled and never forwarded.
    pub(super) fn give_up(&mut self, port: usize, slot: usize, counter: Counter) {
        let Some(write) = self.ports[port].scoreboard.slot(slot).map(|slot| slot.write.clone()) else {
            return;
        };
        let room = self.room(&write);
        self.ports[port].ring.release(room);
        self.ports[port].scoreboard.free_slot(slot);
        self.interlock.unlock(port, slot);
        self.count(port, counter);
    }

    /// Commits the entry of a write that has its slot and its room, and forwards it or, where its
    /// before-image has to be durable first, holds it.
    #[allow(clippy::too_many_arguments)] // all of them belong to the one write
    pub(super) fn journal(
        &mut self,
        port: usize,
        slot: usize,
        frame: Vec<u8>,
        write: &Write,
        before: &[u8],
        duplicate: bool,
        now: &Now,
    ) {
        let images = self.images(write.volume);
        let waits = images.has_before() && self.acknowledge(write.volume) == Acknowledge::Journal;
        let of_port = &mut self.ports[port];
        let source = of_port.source_index(write.source);
        let after = &frame[write.payload.clone()];
        let number = of_port.commit(&mut self.arbiter, now, None, |commit| {
            let admitted = Admitted { slot: slot as u8, source, duplicate, write };
            match images {
                Images::After => entry::after(commit, slot as u8, source, duplicate, write, after),
                Images::Before => entry::before(commit, &admitted, before),
                Images::Both => entry::both(commit, &admitted, before, after),
            }
        });
        of_port.count(Counter::Journaled);
        if duplicate {
            of_port.count(Counter::Duplicate);
        }
        self.touch(write, number);
        let state = match waits {
            true => State::Undurable { frame },
            false => {
                self.outputs.push_back(Output::Uplink(frame));
                State::Unanswered { forwarded: now.elapsed, unknown: false }
            }
        };
        if let Some(occupied) = self.ports[port].scoreboard.slot_mut(slot) {
            occupied.requests.push(Request { tag: write.tag, number, state });
        }
    }
}
