//! One pass over writes in order of location: which of them shows where.

use super::{Parts, PitMap, Prefer};
use crate::history::{mark, Write};
use crate::large_memory;
use std::collections::{BinaryHeap, HashSet};

/// A write that an earlier one wins over, and that reaches further.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    key: u64,
    index: usize,
}

/// What a sweep came to.
pub(super) struct Swept {
    pub map: PitMap,
    /// The doubtful writes that show and reach over an end of what was swept.
    pub over_ends: HashSet<Write>,
    /// What was swept, for whoever has time to give its memory back.
    pub writes: Parts,
}

/// What the writes show below `limit`.
pub(super) fn sweep(writes: Parts, prefer: Prefer, limit: u64) -> Swept {
    let mut sweep = Sweep {
        map: PitMap { extents: large_memory::with_capacity(writes.writes.len()), ..PitMap::default() },
        shown: vec![false; writes.len()],
        over_ends: HashSet::new(),
        over: BinaryHeap::new(),
        at: writes.from,
        next: writes.reaching.len(),
        writes,
        prefer,
        limit,
    };
    for index in 0..sweep.next {
        let key = sweep.key(&sweep.writes.reaching[index]);
        sweep.over.push(Candidate { key, index });
    }
    let mut winner = sweep.begin();
    while let Some((write, index)) = winner {
        winner = sweep.show(write, index).or_else(|| sweep.begin());
    }
    sweep.map.extents.shrink_to_fit();
    Swept { map: sweep.map, over_ends: sweep.over_ends, writes: sweep.writes }
}

struct Sweep {
    writes: Parts,
    prefer: Prefer,
    limit: u64,
    map: PitMap,
    /// Of doubtful ones; pages that none lies in are never touched.
    shown: Vec<bool>,
    over_ends: HashSet<Write>,
    /// What outlives the writes that win over it.
    over: BinaryHeap<Candidate>,
    /// Up to where the map is known.
    at: u64,
    /// Index of the first write that hasn't been looked at.
    next: usize,
}

impl Sweep {
    /// Which of two writes to a location wins: the one with the greater key.
    fn key(&self, write: &Write) -> u64 {
        match self.prefer {
            Prefer::Last => write.order(),
            Prefer::First => u64::MAX - write.order(),
        }
    }

    /// The write that shows where the map ends, or, if none does, the next one.
    fn begin(&mut self) -> Option<(Write, usize)> {
        while let Some(Candidate { index, .. }) = self.over.pop() {
            if let Some(write) = self.writes.get(index).filter(|write| write.end().min(self.limit) > self.at)
            {
                return Some((write, index));
            }
        }
        let index = self.next;
        let write = self.writes.get(index)?;
        self.at = self.at.max(write.lba());
        self.next += 1;
        Some((write, index))
    }

    /// Points to a write from where the map ends up to where another wins over it, which is returned, or to its end.
    fn show(&mut self, won: Write, won_index: usize) -> Option<(Write, usize)> {
        let (end, won_key) = (won.end().min(self.limit), self.key(&won));
        let (mut stop, mut winner) = (end, None);
        // What begins below the winner matters only where it outlives it.
        while let Some(write) = self.writes.get(self.next).filter(|write| write.lba() < end) {
            let candidate = Candidate { key: self.key(&write), index: self.next };
            self.next += 1;
            if candidate.key > won_key {
                stop = write.lba();
                winner = Some((write, candidate.index));
                if end > write.end() {
                    self.over.push(Candidate { key: won_key, index: won_index });
                }
                break;
            }
            if write.end() > end {
                self.over.push(candidate);
            }
        }
        if stop > self.at {
            self.count_doubtful(&won, won_index);
            self.map.point(&won, self.at, stop);
            self.at = stop;
        }
        winner
    }

    fn count_doubtful(&mut self, write: &Write, index: usize) {
        if write.marks() & mark::DOUBTFUL == 0 || std::mem::replace(&mut self.shown[index], true) {
            return;
        }
        self.map.doubtful += 1;
        if write.end() > self.limit || write.lba() < self.writes.from {
            self.over_ends.insert(*write);
        }
    }
}
