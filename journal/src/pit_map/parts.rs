//! Writes in order of location.

use crate::history::Write;
use crate::large_memory;

/// Writes of a part: sorting them stays in a core's cache.
pub(super) const PART: usize = 4096;
/// Writes from a location on, divided into parts by it, each sorted when the sweep comes to it, while caches hold it.
pub(super) struct Parts {
    pub writes: Vec<Write>,
    /// Writes that begin before the location and reach over it, in no order; they count as the first ones.
    pub reaching: Vec<Write>,
    pub from: u64,
    /// The part of a write is its location, less `from`, shifted by this.
    shift: u32,
    /// Where each part ends.
    ends: Vec<usize>,
    /// Parts that are sorted, and writes in them.
    sorted: (usize, usize),
    /// For sorting.
    scratch: Vec<Write>,
    counts: Vec<usize>,
}

impl Parts {
    /// Those of `all` that begin in `from..to`, or reach over `from`.
    pub fn divide(all: &[Write], from: u64, to: u64) -> Self {
        let inside = |write: &&Write| (from..to).contains(&write.lba());
        let (mut count, mut last) = (0, from);
        for write in all.iter().filter(inside) {
            count += 1;
            last = last.max(write.lba());
        }
        let parts: usize = (count / PART).max(1);
        let shift = (u64::BITS - (last - from).leading_zeros()).saturating_sub(parts.ilog2());
        let part_of = |write: &Write| ((write.lba() - from) >> shift) as usize;
        let mut nexts = vec![0; ((last - from) >> shift) as usize + 2];
        all.iter().filter(inside).for_each(|write| nexts[part_of(write) + 1] += 1);
        for part in 1..nexts.len() {
            nexts[part] += nexts[part - 1];
        }
        let mut writes = large_memory::with_capacity(count);
        writes.resize(count, Write::default());
        let mut reaching = Vec::new();
        for write in all {
            if (from..to).contains(&write.lba()) {
                let next = &mut nexts[part_of(write)];
                writes[*next] = *write;
                *next += 1;
            } else if write.lba() < from && write.end() > from {
                reaching.push(*write);
            }
        }
        // What was where a part begins is now where it ends; the last is that of a part behind all.
        nexts.pop();
        assert_eq!(nexts.last(), Some(&count), "every write has its part");
        Self {
            writes,
            reaching,
            from,
            shift,
            ends: nexts,
            sorted: (0, 0),
            scratch: Vec::new(),
            counts: Vec::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.reaching.len() + self.writes.len()
    }

    /// The writes in order of location, behind those that reach over its begin.
    pub fn get(&mut self, index: usize) -> Option<Write> {
        let Some(index) = index.checked_sub(self.reaching.len()) else { return Some(self.reaching[index]) };
        while index >= self.sorted.1 {
            if self.sorted.0 == self.ends.len() {
                return None;
            }
            self.sort_next();
        }
        Some(self.writes[index])
    }

    /// Divides the part once more, as finely as it has writes; what then is together is few, or at few places.
    fn sort_next(&mut self) {
        let (part, begin) = self.sorted;
        let end = self.ends[part];
        self.sorted = (part + 1, end);
        let part_begins = self.from + ((part as u64) << self.shift);
        let writes = &mut self.writes[begin..end];
        let Some(bits) = writes.len().checked_ilog2() else { return };
        let shift = self.shift.saturating_sub(bits);
        let piece_of = |write: &Write| ((write.lba() - part_begins) >> shift) as usize;
        self.counts.clear();
        self.counts.resize((1 << self.shift.min(bits)) + 1, 0);
        writes.iter().for_each(|write| self.counts[piece_of(write) + 1] += 1);
        for piece in 1..self.counts.len() {
            self.counts[piece] += self.counts[piece - 1];
        }
        self.scratch.clear();
        self.scratch.extend_from_slice(writes);
        for write in &self.scratch {
            let next = &mut self.counts[piece_of(write)];
            writes[*next] = *write;
            *next += 1;
        }
        let mut at = 0;
        for end in &self.counts[..self.counts.len() - 1] {
            if end - at > 1 {
                writes[at..*end].sort_unstable_by_key(Write::lba);
            }
            at = *end;
        }
    }
}
