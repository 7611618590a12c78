//! What a frame from the uplink comes to.

use super::before_read::{self, Tag};
use super::scoreboard::{Request, State};
use super::settings::Acknowledge;
use super::{Now, Output, Switch};
use crate::answer::Answer;
use crate::entry;
use crate::frame::Write;
use layout::entry::Updated;
use layout::registers::Counter;

impl Switch {
    /// Takes a whole, good frame that came in from the uplink.
    pub fn uplink(&mut self, frame: &[u8], now: &Now) {
        let Some(answer) = Answer::decode(frame) else { return self.send_back(frame.to_vec(), now) };
        if let Some(tag) = Tag::decode(answer.tag) {
            // The switch's own: nobody else has asked.
            self.take_before(tag, frame, &answer, now);
            return;
        }
        if self.settle(frame, &answer, now) {
            self.admit_waiting(now);
            return;
        }
        self.take_late(&answer, now);
        for port in self.ports_of(answer.destination, now) {
            self.count(port, Counter::Unmatched);
        }
        self.send_back(frame.to_vec(), now);
    }

    /// The old data for a held write have come, or something that isn't them; then time goes on.
    fn take_before(&mut self, tag: Tag, frame: &[u8], answer: &Answer, now: &Now) {
        let Some(of_port) = self.ports.get_mut(tag.port) else { return };
        let Some(slot) = of_port.scoreboard.slot_mut(tag.slot) else { return };
        let reading = slot.requests.last().is_some_and(|request| match request.state {
            State::Reading { generation, .. } => Tag { generation, ..tag }.value() == answer.tag,
            _ => false,
        });
        if !reading {
            return;
        }
        let Some(before) = before_read::data(frame, answer, &slot.write) else { return };
        let Some(Request { tag: current, state: State::Reading { frame, .. }, .. }) = slot.requests.pop()
        else {
            unreachable!("it was looked at above")
        };
        let write = Write { tag: current, ..slot.write.clone() };
        self.journal(tag.port, tag.slot, frame, &write, before, false, now);
    }

    /// Settles the write that `answer` answers. `false`: there is none.
    fn settle(&mut self, frame: &[u8], answer: &Answer, now: &Now) -> bool {
        let found = self.ports.iter().enumerate().filter_map(|(port, of_port)| {
            let (place, number) = of_port.scoreboard.answered(answer)?;
            Some((number, port, place))
        });
        let Some((number, port, (slot, index))) = found.min() else { return false };
        let of_port = &mut self.ports[port];
        let Some(occupied) = of_port.scoreboard.slot_mut(slot) else { return false };
        let volume = occupied.write.volume;
        let request = occupied.requests.remove(index);
        let late = matches!(request.state, State::Unanswered { unknown: true, .. });
        let make = |commit: &entry::Commit| entry::completion(commit, slot as u8, answer, late);
        match late {
            true => of_port.commit_late(&mut self.arbiter, now, number, make),
            false => {
                of_port.commit(&mut self.arbiter, now, Some(number), make);
                of_port.count(match answer.updated() {
                    Updated::Updated => Counter::Updated,
                    Updated::Refused => Counter::Refused,
                    _ => Counter::Unknown,
                });
            }
        }
        let durable = self.ports[port].durable;
        if self.acknowledge(volume) == Acknowledge::Journal && number > durable {
            let state = State::AnswerHeld { frame: frame.to_vec() };
            if let Some(occupied) = self.ports[port].scoreboard.slot_mut(slot) {
                occupied.requests.push(Request { state, ..request });
            }
        } else {
            self.send_back(frame.to_vec(), now);
        }
        self.let_go(port, slot);
        true
    }

    /// An answer to a write whose quarantine is over.
    fn take_late(&mut self, answer: &Answer, now: &Now) {
        for of_port in &mut self.ports {
            if let Some((slot, number)) = of_port.scoreboard.take_remembered(answer) {
                let make = |commit: &entry::Commit| entry::completion(commit, slot as u8, answer, true);
                of_port.commit_late(&mut self.arbiter, now, number, make);
                return;
            }
        }
    }

    /// Ends the interlock of a slot that the target can no longer execute anything of, and frees it when
    /// nothing is held in it either.
    pub(super) fn let_go(&mut self, port: usize, slot: usize) {
        let Some(occupied) = self.ports[port].scoreboard.slot(slot) else { return };
        let (open, empty) = (occupied.open(), occupied.requests.is_empty());
        if open == 0 {
            self.interlock.unlock(port, slot);
        }
        if empty {
            self.ports[port].scoreboard.free_slot(slot);
        }
    }

    /// Sends a frame to the port of its destination, or to all.
    pub(super) fn send_back(&mut self, frame: Vec<u8>, now: &Now) {
        let destination = frame.get(..6).and_then(|mac| <[u8; 6]>::try_from(mac).ok());
        let Some(destination) = destination else { return };
        for port in self.ports_of(destination, now) {
            self.count(port, Counter::Returned);
            self.outputs.push_back(Output::Port(port, frame.clone()));
        }
    }

    fn ports_of(&self, destination: [u8; 6], now: &Now) -> std::ops::Range<usize> {
        match self.return_path.port(destination, now.elapsed) {
            Some(port) => port..port + 1,
            None => 0..self.ports.len(),
        }
    }
}
