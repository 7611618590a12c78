//! Writes of a port that wait for admission, in the order in which they came. Reads don't come here.

use crate::frame::Write;
use std::collections::VecDeque;

/// A write that waits.
#[derive(Clone, Debug)]
pub struct Held {
    /// The write.
    pub write: Write,
    /// Its frame.
    pub frame: Vec<u8>,
    /// When it came, ns.
    pub arrived: u64,
}

/// The queue, bounded in bytes.
#[derive(Clone, Debug)]
pub struct HoldQueue {
    held: VecDeque<Held>,
    bytes: usize,
    most: usize,
}

impl HoldQueue {
    /// At most `most` bytes of frames.
    pub fn new(most: usize) -> Self {
        Self { held: VecDeque::new(), bytes: 0, most }
    }

    /// Adds a write, if there is room. One alone always has it.
    pub fn push(&mut self, held: Held) -> bool {
        let bytes = self.bytes + held.frame.len();
        if !self.held.is_empty() && bytes > self.most {
            return false;
        }
        self.bytes = bytes;
        self.held.push_back(held);
        true
    }

    /// The write at `place`.
    pub fn get(&self, place: usize) -> Option<&Held> {
        self.held.get(place)
    }

    /// Takes out the write at `place`.
    pub fn remove(&mut self, place: usize) -> Option<Held> {
        let held = self.held.remove(place)?;
        self.bytes -= held.frame.len();
        Some(held)
    }

    /// Does an earlier write of the queue overlap the one at `place`? They must keep their order.
    pub fn is_behind_overlap(&self, place: usize) -> bool {
        let Some(this) = self.held.get(place) else { return false };
        self.held.iter().take(place).any(|earlier| earlier.write.overlaps(&this.write))
    }

    /// If `write` is a copy of one that waits here, that one takes its tag.
    pub fn take_tag(&mut self, write: &Write) -> bool {
        let Some(held) = self.held.iter_mut().find(|held| held.write.equals(write)) else { return false };
        held.write.tag = write.tag;
        super::set_tag(&mut held.frame, write.tag);
        true
    }

    /// When the oldest came, ns.
    pub fn oldest(&self) -> Option<u64> {
        self.held.front().map(|held| held.arrived)
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}
