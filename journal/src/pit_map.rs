//! The map of pointers that is a point-in-time image (claim 27): for every sector of a volume, whether
//! it is where it always was (primary, or a base), or in which entry of the journal.

use crate::history::{mark, Write};
use sha2::{Digest, Sha256};
use std::collections::{BinaryHeap, HashSet};

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

    /// Does the same write go on in `next`, without a hole?
    fn is_continued_by(&self, next: &Extent) -> bool {
        self.end() == next.lba
            && (self.place, self.marks) == (next.place, next.marks)
            && u64::from(self.skip) + u64::from(self.sectors) == u64::from(next.skip)
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

/// From so many on they are divided by location first, and swept in two halves, on two cores.
const DIVIDED: usize = 1 << 18;
/// Writes of a part: sorting them stays in a core's cache.
const PART: usize = 4096;
/// One in so many is looked at to find the middle.
const SAMPLED: usize = 64;

/// Writes from a location on, divided into parts by it, each sorted when the sweep comes to it, while caches hold it.
struct Parts {
    writes: Vec<Write>,
    /// Writes that begin before the location and reach over it, in no order; they count as the first ones.
    reaching: Vec<Write>,
    from: u64,
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
    fn divide(all: &[Write], from: u64, to: u64) -> Self {
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
        let mut writes = vec![Write::default(); count];
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
        Self { writes, reaching, from, shift, ends: nexts, sorted: (0, 0), scratch: Vec::new(), counts: Vec::new() }
    }

    fn len(&self) -> usize {
        self.reaching.len() + self.writes.len()
    }

    /// The writes in order of location, behind those that reach over its begin.
    fn get(&mut self, index: usize) -> Option<Write> {
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

impl PitMap {
    /// Builds the map: one sweep over the writes in order of location.
    pub fn build(writes: Vec<Write>, prefer: Prefer) -> Self {
        if writes.len() >= DIVIDED {
            return Self::build_in_halves(writes, prefer);
        }
        let mut map = Self::sweep(Parts::divide(&writes, 0, u64::MAX), prefer, u64::MAX).0;
        map.extents.shrink_to_fit();
        map
    }

    fn build_in_halves(writes: Vec<Write>, prefer: Prefer) -> Self {
        let mut sample: Vec<u64> = writes.iter().step_by(SAMPLED).map(Write::lba).collect();
        let middle = sample.len() / 2;
        let border = *sample.select_nth_unstable(middle).1;
        let ((mut map, below), (behind, above)) = std::thread::scope(|scope| {
            let behind = scope
                .spawn(|| Self::sweep(Parts::divide(&writes, border, u64::MAX), prefer, u64::MAX));
            let map = Self::sweep(Parts::divide(&writes, 0, border), prefer, border);
            (map, behind.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        // A write that shows on both sides of the border is one.
        map.doubtful += behind.doubtful - below.intersection(&above).count() as u64;
        let mut rest = &behind.extents[..];
        if let ([.., last], [next, ..]) = (&mut map.extents[..], rest) {
            if last.is_continued_by(next) {
                last.sectors += next.sectors;
                rest = &rest[1..];
            }
        }
        map.extents.reserve_exact(rest.len());
        map.extents.extend_from_slice(rest);
        map
    }

    /// What the writes show below `limit`. Also the doubtful ones that show and reach over an end of what is swept.
    fn sweep(mut writes: Parts, prefer: Prefer, limit: u64) -> (Self, HashSet<Write>) {
        let key = |write: &Write| match prefer {
            Prefer::Last => write.order(),
            Prefer::First => u64::MAX - write.order(),
        };
        let mut map = PitMap { extents: Vec::with_capacity(writes.writes.len()), doubtful: 0 };
        // Of doubtful ones; pages that none lies in are never touched.
        let mut shown = vec![false; writes.len()];
        let mut over_border = HashSet::new();
        // What outlives the writes that win over it.
        let mut over: BinaryHeap<Candidate> = BinaryHeap::new();
        for (index, write) in writes.reaching.iter().enumerate() {
            over.push(Candidate { key: key(write), index });
        }
        let (mut at, mut next) = (writes.from, writes.reaching.len());
        let mut winner = None;
        loop {
            let Some((won, index)) = winner.take().or_else(|| {
                while let Some(Candidate { index, .. }) = over.pop() {
                    if let Some(write) = writes.get(index).filter(|write| write.end().min(limit) > at) {
                        return Some((write, index));
                    }
                }
                let write = writes.get(next)?;
                at = at.max(write.lba());
                next += 1;
                Some((write, next - 1))
            }) else {
                break;
            };
            let end = won.end().min(limit);
            let mut stop = end;
            // What begins below the winner matters only where it outlives it.
            while let Some(write) = writes.get(next).filter(|write| write.lba() < end) {
                let candidate = Candidate { key: key(&write), index: next };
                next += 1;
                if candidate.key > key(&won) {
                    stop = write.lba();
                    if end > write.end() {
                        over.push(Candidate { key: key(&won), index });
                    }
                    winner = Some((write, candidate.index));
                    break;
                }
                if write.end() > end {
                    over.push(candidate);
                }
            }
            if stop > at {
                if won.marks() & mark::DOUBTFUL != 0 && !std::mem::replace(&mut shown[index], true) {
                    map.doubtful += 1;
                    if won.end() > limit || won.lba() < writes.from {
                        over_border.insert(won);
                    }
                }
                map.point(&won, at, stop);
                at = stop;
            }
        }
        (map, over_border)
    }

    fn point(&mut self, write: &Write, from: u64, to: u64) {
        let next = Extent {
            lba: from,
            place: write.place(),
            sectors: (to - from) as u32,
            skip: (from - write.lba()) as u16,
            marks: write.marks(),
            port: write.port(),
        };
        if let Some(last) = self.extents.last_mut() {
            assert!(last.end() <= from, "the sweep goes one way");
            // The same write on both sides of one that lost after all.
            if last.is_continued_by(&next) {
                last.sectors += next.sectors;
                return;
            }
        }
        self.extents.push(next);
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

    /// SHA-256 of what it says.
    pub fn digest(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        for extent in &self.extents {
            let mut row = [0; size_of::<Extent>()];
            row[..8].copy_from_slice(&extent.lba.to_le_bytes());
            row[8..16].copy_from_slice(&extent.place.to_le_bytes());
            row[16..20].copy_from_slice(&extent.sectors.to_le_bytes());
            row[20..22].copy_from_slice(&extent.skip.to_le_bytes());
            row[22] = extent.marks;
            row[23] = extent.port;
            digest.update(row);
        }
        digest.finalize().into()
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

    /// In halves and parts, and at once: the same map. Short and long writes, doubtful ones, few places and many.
    #[test]
    fn many_are_mapped_as_few_are() {
        use rand::{Rng, SeedableRng};
        let worlds = [(1 << 20, 16), (1 << 44, 16), (3, 8), (100, 8), (20_000, 5_000), (1 << 16, 65_535)];
        for (seed, (places, longest)) in worlds.into_iter().cycle().take(60).enumerate() {
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed as u64);
            let count = rng.random_range(1..3 * PART as u64);
            let write = |order| {
                let (lba, sectors) = (rng.random_range(0..places), rng.random_range(1..=longest));
                let marks = if rng.random_ratio(1, 3) { mark::DOUBTFUL } else { 0 };
                Write::made(lba, sectors, order, marks, 0, order)
            };
            let made: Vec<Write> = (1..=count).map(write).collect();
            for prefer in [Prefer::Last, Prefer::First] {
                let (halves, whole) =
                    (PitMap::build_in_halves(made.clone(), prefer), PitMap::build(made.clone(), prefer));
                assert!(halves.extents == whole.extents, "seed {seed}, {prefer:?}");
                assert_eq!(halves.doubtful, whole.doubtful, "seed {seed}, {prefer:?}");
            }
        }
    }

    #[test]
    fn no_sectors_touch_nothing() {
        let map = PitMap::build(vec![Write::made(8, 8, 1, 0, 0, 0)], Prefer::Last);
        for at in 0..20 {
            assert_eq!(map.within(at, at).count(), 0, "{at}");
        }
        assert_eq!(map.within(9, 10).count(), 1);
    }
}
