//! What happens when nothing comes: hold, retry, unknown, quarantine (DESIGN §3, invariant 8).

use super::before_read::{self, Tag, TRIES};
use super::scoreboard::State;
use super::{Now, Output, Switch};
use crate::entry;
use layout::registers::Counter;

impl Switch {
    /// Does what is due.
    pub fn tick(&mut self, now: &Now) {
        for port in 0..self.ports.len() {
            self.end_holds(port, now);
            for slot in 0..self.ports[port].scoreboard.len() {
                self.look_at_slot(port, slot, now);
            }
        }
        self.admit_waiting(now);
    }

    /// When [`Switch::tick`] has something to do next, in elapsed ns; `None`: not unless something comes.
    pub fn deadline(&self) -> Option<u64> {
        let times = &self.settings.timeouts;
        let mut next: Option<u64> = None;
        let mut due = |at: u64| next = Some(next.map_or(at, |next| next.min(at)));
        for port in &self.ports {
            if let Some(arrived) = port.queue.oldest() {
                due(arrived.saturating_add(times.hold));
            }
            for (_, slot) in port.scoreboard.used() {
                let mut last = None;
                for request in &slot.requests {
                    match request.state {
                        State::Reading { sent, .. } => due(sent.saturating_add(times.retry)),
                        State::Unanswered { forwarded, unknown } => {
                            last = last.max(Some(forwarded));
                            if !unknown {
                                due(forwarded.saturating_add(times.unknown));
                            }
                        }
                        State::Undurable { .. } | State::AnswerHeld { .. } => {}
                    }
                }
                let waits = slot.requests.iter().any(|r| matches!(r.state, State::Undurable { .. }));
                if let Some(last) = last.filter(|_| !waits) {
                    due(last.saturating_add(times.quarantine));
                }
            }
        }
        next
    }

    fn end_holds(&mut self, port: usize, now: &Now) {
        let hold = self.settings.timeouts.hold;
        let over = |arrived: u64| arrived.saturating_add(hold) <= now.elapsed;
        while self.ports[port].queue.oldest().is_some_and(over) {
            self.ports[port].queue.remove(0);
            self.count(port, Counter::DroppedHold);
        }
    }

    fn look_at_slot(&mut self, port: usize, slot: usize, now: &Now) {
        let times = self.settings.timeouts;
        let Some(occupied) = self.ports[port].scoreboard.slot_mut(slot) else { return };
        let mut unknown = Vec::new();
        for request in &mut occupied.requests {
            match &mut request.state {
                State::Reading { frame, generation, tries, sent }
                    if sent.saturating_add(times.retry) <= now.elapsed =>
                {
                    if *tries == TRIES {
                        return self.give_up(port, slot, Counter::DroppedRead);
                    }
                    (*tries, *sent) = (*tries + 1, now.elapsed);
                    // The same read: nothing can have changed what it reads, so the first answer counts.
                    let tag = Tag { port, slot, generation: *generation };
                    let read = before_read::request(frame, &occupied.write, tag);
                    self.outputs.push_back(Output::Uplink(read));
                }
                State::Unanswered { forwarded, unknown: declared } if !*declared => {
                    let patience = times.unknown.min(times.quarantine);
                    if forwarded.saturating_add(patience) <= now.elapsed {
                        *declared = true;
                        unknown.push(request.number);
                    }
                }
                _ => {}
            }
        }
        for number in unknown {
            self.interlock.quarantine(port, slot);
            let of_port = &mut self.ports[port];
            let make = |commit: &entry::Commit| entry::unanswered(commit, slot as u8);
            of_port.commit(&mut self.arbiter, now, Some(number), make);
            of_port.count(Counter::Unknown);
        }
        self.end_quarantine(port, slot, now);
    }

    /// So long after the last copy the location is free again, though nobody has answered.
    fn end_quarantine(&mut self, port: usize, slot: usize, now: &Now) {
        let quarantine = self.settings.timeouts.quarantine;
        let scoreboard = &mut self.ports[port].scoreboard;
        let Some(occupied) = scoreboard.slot_mut(slot) else { return };
        let mut last = None;
        for request in &occupied.requests {
            match request.state {
                State::Unanswered { forwarded, unknown: true } => last = last.max(Some(forwarded)),
                // Something is still to be forwarded, or to be declared: later.
                State::AnswerHeld { .. } => {}
                _ => return,
            }
        }
        if last.is_none_or(|last| last.saturating_add(quarantine) > now.elapsed) {
            return;
        }
        let write = occupied.write.clone();
        let (ended, held) = std::mem::take(&mut occupied.requests).into_iter().partition(|r| r.is_open());
        occupied.requests = held;
        let ended: Vec<_> = ended;
        for request in &ended {
            scoreboard.remember(slot, &write, request);
        }
        self.let_go(port, slot);
    }
}
