//! The map of pointers that is a point-in-time image (claim 27): for every sector of a volume, whether
//! it is where it always was (primary, or a base), or in which entry of the journal.

use crate::history::{mark, Write};
use std::collections::BinaryHeap;

/// Sectors whose bytes lie together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// First sector.
    pub lba: u64,
    /// The write's payload: file offset in bytes; the port in bits 63:56 is left out.
    pub place: u64,
    pub sectors: u32,
    /// Sectors of the write before this extent.
    pub skip: u16,
    /// Bits of [`mark`].
    pub marks: u8,
    pub port: u8,
}

// What ten million mapped extents may take is bounded by this.
const _: () = assert!(size_of::<Extent>() <= 32);

impl Extent {
    pub fn end(&self) -> u64 {
        self.lba + u64::from(self.sectors)
    }

    /// A part of it.
    pub fn cut(&self, from: u64, to: u64) -> Extent {
        assert!(self.lba <= from && from < to && to <= self.end(), "a part of an extent lies in it");
        Extent { lba: from, sectors: (to - from) as u32, skip: self.skip + (from - self.lba) as u16, ..*self }
    }
}

/// Which of the writes to a sector is pointed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prefer {
    /// The last: after-images over a base.
    Last,
    /// The first: before-images over primary.
    First,
}

/// Extents in order of location, disjoint. What none covers is in the backing.
#[derive(Clone, Debug, Default)]
pub(crate) struct PitMap {
    extents: Vec<Extent>,
    /// Writes that are pointed to and doubtful.
    pub doubtful: u64,
}

/// A write that reaches over the place that the sweep is at.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    key: u64,
    index: usize,
}

impl PitMap {
    /// Builds the map: one sweep over the writes in order of location.
    pub fn build(mut writes: Vec<Write>, prefer: Prefer) -> Self {
        // Each segment's index comes in order of location: runs, which this sort takes as they are.
        writes.sort_by_key(Write::lba);
        let key = |write: &Write| match prefer {
            Prefer::Last => write.order(),
            Prefer::First => u64::MAX - write.order(),
        };
        let mut map = PitMap { extents: Vec::with_capacity(writes.len()), doubtful: 0 };
        let mut over: BinaryHeap<Candidate> = BinaryHeap::new();
        let mut shown = vec![false; writes.len()];
        let (mut at, mut next) = (0, 0);
        loop {
            while over.peek().is_some_and(|top| writes[top.index].end() <= at) {
                over.pop();
            }
            let Some(top) = over.peek() else {
                let Some(write) = writes.get(next) else { break };
                at = write.lba();
                over.push(Candidate { key: key(write), index: next });
                next += 1;
                continue;
            };
            let (top_key, top_index) = (top.key, top.index);
            let end = writes[top_index].end();
            let mut stop = end;
            // What begins below the winner matters only where it outlives it.
            while let Some(write) = writes.get(next).filter(|write| write.lba() < end) {
                if key(write) > top_key {
                    stop = write.lba();
                    break;
                }
                if write.end() > end {
                    over.push(Candidate { key: key(write), index: next });
                }
                next += 1;
            }
            if stop > at {
                shown[top_index] = true;
                map.point(&writes[top_index], at, stop);
                at = stop;
            }
            if stop < end {
                over.push(Candidate { key: key(&writes[next]), index: next });
                next += 1;
            }
        }
        let doubtful = |write: &Write| write.marks() & mark::DOUBTFUL != 0;
        map.doubtful =
            writes.iter().zip(&shown).filter(|(write, shown)| **shown && doubtful(write)).count() as u64;
        map.extents.shrink_to_fit();
        map
    }

    fn point(&mut self, write: &Write, from: u64, to: u64) {
        let skip = (from - write.lba()) as u16;
        if let Some(last) = self.extents.last_mut() {
            assert!(last.end() <= from, "the sweep goes one way");
            // The same write on both sides of one that lost after all.
            let continues = last.end() == from && last.place == write.place() && last.marks == write.marks();
            if continues && u64::from(last.skip) + u64::from(last.sectors) == u64::from(skip) {
                last.sectors += (to - from) as u32;
                return;
            }
        }
        self.extents.push(Extent {
            lba: from,
            place: write.place(),
            sectors: (to - from) as u32,
            skip,
            marks: write.marks(),
            port: write.port(),
        });
    }

    /// Number of extents.
    pub fn len(&self) -> usize {
        self.extents.len()
    }

    /// Bytes of memory that the extents take.
    pub fn bytes(&self) -> usize {
        self.extents.capacity() * size_of::<Extent>()
    }

    /// All extents.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// The extents that touch these sectors, cut to them.
    pub fn within(&self, from: u64, to: u64) -> impl Iterator<Item = Extent> + '_ {
        let first = self.extents.partition_point(|extent| extent.end() <= from);
        self.extents[first..]
            .iter()
            // No sectors at all may lie inside an extent.
            .take_while(move |extent| from < to && extent.lba < to)
            .map(move |extent| extent.cut(extent.lba.max(from), extent.end().min(to)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_sectors_touch_nothing() {
        let map = PitMap::build(vec![Write::made(8, 8, 1, 0, 0, 0)], Prefer::Last);
        for at in 0..20 {
            assert_eq!(map.within(at, at).count(), 0, "{at}");
        }
        assert_eq!(map.within(9, 10).count(), 1);
    }
}
