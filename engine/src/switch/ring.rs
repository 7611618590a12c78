//! A port's partial journal: records in memory, bounded, with room reserved before a write is admitted.
//!
//! Room for one watermark, one gap and one late answer is always kept beside what entries and completions
//! share (DESIGN §3, invariant 1): so an answer that was waited for always has a place.

use layout::port_ring::STANDING_BYTES;
use std::collections::VecDeque;

/// What always has room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A watermark.
    Watermark = 0,
    /// A gap.
    Gap = 1,
    /// An answer after its entry's status had been declared unknown.
    Late = 2,
}

/// A ring.
#[derive(Clone, Debug)]
pub struct Ring {
    /// Bytes that entries and completions share.
    shared: usize,
    used: usize,
    reserved: usize,
    standing: [bool; 3],
    records: VecDeque<(Option<Standing>, Vec<u8>)>,
    bytes: usize,
}

impl Ring {
    /// An empty ring of `bytes` bytes.
    pub fn new(bytes: usize) -> Self {
        assert!(bytes > STANDING_BYTES);
        Self {
            shared: bytes - STANDING_BYTES,
            used: 0,
            reserved: 0,
            standing: [false; 3],
            records: VecDeque::new(),
            bytes: 0,
        }
    }

    /// Keeps `bytes` for what is to come, if there is room.
    pub fn reserve(&mut self, bytes: usize) -> bool {
        let fits = self.used + self.reserved + bytes <= self.shared;
        self.reserved += if fits { bytes } else { 0 };
        fits
    }

    /// Gives back a reservation.
    pub fn release(&mut self, bytes: usize) {
        assert!(bytes <= self.reserved, "released more than was reserved");
        self.reserved -= bytes;
    }

    /// Puts in a record that has a reservation.
    pub fn commit(&mut self, record: Vec<u8>) {
        self.release(record.len());
        self.used += record.len();
        assert!(self.used + self.reserved <= self.shared, "a ring overruns");
        self.bytes += record.len();
        self.records.push_back((None, record));
    }

    /// Is the room that is kept for this kind free?
    pub fn has_room_for(&self, kind: Standing) -> bool {
        !self.standing[kind as usize]
    }

    /// Puts in a record of a kind that room is kept for; it must be free.
    pub fn commit_standing(&mut self, kind: Standing, record: Vec<u8>) {
        assert!(self.has_room_for(kind), "the room of {kind:?} is taken");
        self.standing[kind as usize] = true;
        self.bytes += record.len();
        self.records.push_back((Some(kind), record));
    }

    /// Bytes of records that wait for the drain.
    pub fn level(&self) -> usize {
        self.bytes
    }

    /// Takes out whole records, the oldest first, `most` bytes at most, and adds them to `out`.
    pub fn drain(&mut self, most: usize, out: &mut Vec<u8>) {
        let mut left = most;
        while self.records.front().is_some_and(|(_, record)| record.len() <= left) {
            let Some((kind, record)) = self.records.pop_front() else { break };
            left -= record.len();
            self.bytes -= record.len();
            match kind {
                Some(kind) => self.standing[kind as usize] = false,
                None => self.used -= record.len(),
            }
            out.extend_from_slice(&record);
        }
    }

    /// Nothing is in it, and nothing reserved.
    pub fn is_idle(&self) -> bool {
        self.records.is_empty() && self.reserved == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_or_kept_always_has_room() {
        let mut ring = Ring::new(STANDING_BYTES + 256);
        assert!(ring.reserve(192) && !ring.reserve(128) && ring.reserve(64));
        ring.commit(vec![1; 128]);
        assert!(!ring.reserve(64), "what lies in the ring takes room too");
        for kind in [Standing::Watermark, Standing::Gap, Standing::Late] {
            ring.commit_standing(kind, vec![2; 64]);
            assert!(!ring.has_room_for(kind));
        }
        ring.commit(vec![3; 64]);
        ring.release(64);
        let mut out = Vec::new();
        ring.drain(200, &mut out);
        assert_eq!((out.len(), ring.level()), (192, 192), "whole records only");
        assert!(ring.has_room_for(Standing::Watermark) && !ring.has_room_for(Standing::Gap));
        assert!(ring.reserve(192) && !ring.reserve(1));
        ring.release(192);
        ring.drain(usize::MAX, &mut out);
        assert!(ring.is_idle() && out.len() == 384);
    }
}
