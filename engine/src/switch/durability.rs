//! What waits for the host's disk.

use super::scoreboard::State;
use super::{Now, Output, Switch};
use crate::entry;
use layout::registers::Counter;

impl Switch {
    /// The host reports that everything of `port` up to `number` is durable in the primary journal. Held
    /// answers go to their sources, held writes to the target.
    pub fn durable(&mut self, port: usize, number: u64, now: &Now) {
        let number = number.min(self.arbiter.number());
        if number <= self.ports[port].durable {
            return;
        }
        self.ports[port].durable = number;
        for slot in 0..self.ports[port].scoreboard.len() {
            self.release(port, slot, number, now);
        }
        self.admit_waiting(now);
    }

    fn release(&mut self, port: usize, slot: usize, durable: u64, now: &Now) {
        let Some(occupied) = self.ports[port].scoreboard.slot_mut(slot) else { return };
        let mut answers = Vec::new();
        for request in &mut occupied.requests {
            let State::Undurable { frame } = &mut request.state else { continue };
            if request.number <= durable {
                self.outputs.push_back(Output::Uplink(std::mem::take(frame)));
                request.state = State::Unanswered { forwarded: now.elapsed, unknown: false };
            }
        }
        occupied.requests.retain_mut(|request| match &mut request.state {
            State::AnswerHeld { frame } if request.number <= durable => {
                answers.push(std::mem::take(frame));
                false
            }
            _ => true,
        });
        for answer in answers {
            self.send_back(answer, now);
        }
        self.let_go(port, slot);
    }

    /// Ends what waits for a host that is gone (a function reset): held writes are dropped or, where their
    /// entry is in the ring, cancelled; held answers are dropped. Sources send again.
    pub fn cancel_held(&mut self, now: &Now) {
        for port in 0..self.ports.len() {
            while self.ports[port].queue.remove(0).is_some() {
                self.count(port, Counter::DroppedClosed);
            }
            for slot in 0..self.ports[port].scoreboard.len() {
                self.cancel_slot(port, slot, now);
            }
        }
    }

    fn cancel_slot(&mut self, port: usize, slot: usize, now: &Now) {
        let Some(occupied) = self.ports[port].scoreboard.slot_mut(slot) else { return };
        let reads = |state: &State| matches!(state, State::Reading { .. });
        if occupied.requests.iter().any(|request| reads(&request.state)) {
            return self.give_up(port, slot, Counter::DroppedClosed);
        }
        let mut cancelled = Vec::new();
        occupied.requests.retain(|request| match request.state {
            State::Undurable { .. } => {
                cancelled.push(request.number);
                false
            }
            State::AnswerHeld { .. } => false,
            _ => true,
        });
        for number in cancelled {
            let make = |commit: &entry::Commit| entry::cancelled(commit, slot as u8);
            self.ports[port].commit(&mut self.arbiter, now, Some(number), make);
        }
        self.let_go(port, slot);
    }
}
