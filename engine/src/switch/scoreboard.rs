//! A port's writes from admission to their last answer.
//!
//! A slot holds one write and its copies; each of them is a [`Request`] with a tag and an entry of its own.

use crate::answer::Answer;
use crate::frame::Write;
use std::collections::VecDeque;

/// Most unanswered requests of one write, itself included (DESIGN §3, invariant 7).
pub const COPIES: usize = 4;
/// Requests that are remembered after their quarantine has ended, so that a late answer finds its entry.
pub const REMEMBERED: usize = 64;

/// How far a request is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Its old data are being read; it has no entry yet.
    Reading {
        /// The frame that is held.
        frame: Vec<u8>,
        /// Which read of the slot it is: part of the read's tag.
        generation: u32,
        /// Reads sent.
        tries: u32,
        /// When the last was sent, ns.
        sent: u64,
    },
    /// Its entry is in the ring and must become durable before it is forwarded.
    Undurable {
        /// The frame that is held.
        frame: Vec<u8>,
    },
    /// It was forwarded.
    Unanswered {
        /// When, ns.
        forwarded: u64,
        /// Its status has been declared unknown.
        unknown: bool,
    },
    /// It has its answer, which waits until the entry is durable.
    AnswerHeld {
        /// The answer.
        frame: Vec<u8>,
    },
}

/// One forwarding of a write, or the wait for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The tag that the source knows it by.
    pub tag: u32,
    /// The arbiter's number of its entry; 0 while it is read.
    pub number: u64,
    /// How far it is.
    pub state: State,
}

impl Request {
    /// Is it, or its answer, held here?
    pub fn is_held(&self) -> bool {
        !matches!(self.state, State::Unanswered { .. })
    }

    /// May the target still execute it?
    pub fn is_open(&self) -> bool {
        !matches!(self.state, State::AnswerHeld { .. })
    }
}

/// A write in flight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The write.
    pub write: Write,
    /// Itself, then its copies.
    pub requests: Vec<Request>,
}

impl Slot {
    /// Requests that the target may still execute.
    pub fn open(&self) -> usize {
        self.requests.iter().filter(|request| request.is_open()).count()
    }
}

/// A request whose quarantine is over.
#[derive(Clone, Debug)]
struct Remembered {
    slot: usize,
    write: Write,
    tag: u32,
    number: u64,
}

/// A port's slots.
#[derive(Clone, Debug)]
pub struct Scoreboard {
    slots: Vec<Option<Slot>>,
    generation: u32,
    remembered: VecDeque<Remembered>,
}

/// Where a request stands: slot, and place in it.
pub type Place = (usize, usize);

impl Scoreboard {
    /// `slots` free slots.
    pub fn new(slots: usize) -> Self {
        Self { slots: vec![None; slots], generation: 0, remembered: VecDeque::new() }
    }

    /// A free slot.
    pub fn free(&self) -> Option<usize> {
        self.slots.iter().position(Option::is_none)
    }

    /// Puts a write into a free slot.
    pub fn occupy(&mut self, slot: usize, write: Write) {
        assert!(self.slots[slot].is_none(), "slot {slot} is taken");
        self.slots[slot] = Some(Slot { write, requests: Vec::with_capacity(1) });
    }

    /// Frees a slot.
    pub fn free_slot(&mut self, slot: usize) {
        assert!(self.slots[slot].take().is_some(), "slot {slot} is free");
    }

    /// The write in `slot`.
    pub fn slot(&self, slot: usize) -> Option<&Slot> {
        self.slots.get(slot)?.as_ref()
    }

    /// The write in `slot`.
    pub fn slot_mut(&mut self, slot: usize) -> Option<&mut Slot> {
        self.slots.get_mut(slot)?.as_mut()
    }

    /// The slots in use, with their places.
    pub fn used(&self) -> impl Iterator<Item = (usize, &Slot)> {
        self.slots.iter().enumerate().filter_map(|(place, slot)| Some((place, slot.as_ref()?)))
    }

    /// How many slots there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// None is in use.
    pub fn is_empty(&self) -> bool {
        self.slots.iter().all(Option::is_none)
    }

    /// The slot of the write that `write` would be a copy of.
    pub fn original(&self, write: &Write) -> Option<usize> {
        self.used().find(|(_, slot)| slot.write.equals(write)).map(|(place, _)| place)
    }

    /// A number for the next read of old data.
    pub fn next_generation(&mut self) -> u32 {
        self.generation = self.generation.wrapping_add(1);
        self.generation
    }

    /// The oldest forwarded request that `answer` answers, with its number.
    pub fn answered(&self, answer: &Answer) -> Option<(Place, u64)> {
        let mut found: Option<(Place, u64)> = None;
        for (place, slot) in self.used().filter(|(_, slot)| matches(&slot.write, answer)) {
            for (index, request) in slot.requests.iter().enumerate() {
                let forwarded = matches!(request.state, State::Unanswered { .. });
                let older = found.is_none_or(|(_, number)| request.number < number);
                if forwarded && request.tag == answer.tag && older {
                    found = Some(((place, index), request.number));
                }
            }
        }
        found
    }

    /// Remembers a request whose quarantine ends, for a late answer.
    pub fn remember(&mut self, slot: usize, write: &Write, request: &Request) {
        if self.remembered.len() == REMEMBERED {
            self.remembered.pop_front();
        }
        let (write, tag, number) = (write.clone(), request.tag, request.number);
        self.remembered.push_back(Remembered { slot, write, tag, number });
    }

    /// Takes the oldest remembered request that `answer` answers: its slot and number.
    pub fn take_remembered(&mut self, answer: &Answer) -> Option<(usize, u64)> {
        let mut all = self.remembered.iter();
        let place = all.position(|old| old.tag == answer.tag && matches(&old.write, answer))?;
        self.remembered.remove(place).map(|old| (old.slot, old.number))
    }
}

/// By source, volume and LBA; tags are the requests'.
fn matches(write: &Write, answer: &Answer) -> bool {
    (answer.destination, answer.shelf, answer.slot) == (write.source, write.shelf, write.slot)
        && answer.lba & write.lba_mask == write.lba
}
