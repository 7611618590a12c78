//! The map of pointers that is a point-in-time image (claim 27): for every sector of a volume, whether
//! it is where it always was (primary, or a base), or in which entry of the journal.

use crate::history::Write;
use sha2::{Digest, Sha256};

mod parts;
mod sweep;

use parts::Parts;
use sweep::sweep;

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
    /// Those behind the ones above: what another thread swept stays where it is, for copying it takes as long as making it.
    behind: Vec<Extent>,
    /// Writes that are pointed to and doubtful.
    pub doubtful: u64,
}

/// From so many on they are divided by location first, and swept in two halves, on two cores.
const DIVIDED: usize = 1 << 18;
/// One in so many is looked at to find the middle.
const SAMPLED: usize = 64;

impl PitMap {
    /// Builds the map: one sweep over the writes in order of location.
    pub fn build(writes: Vec<Write>, prefer: Prefer) -> Self {
        if writes.len() >= DIVIDED {
            return Self::build_in_halves(writes, prefer);
        }
        sweep(Parts::divide(&writes, 0, u64::MAX), prefer, u64::MAX).map
    }

    fn build_in_halves(writes: Vec<Write>, prefer: Prefer) -> Self {
        let mut sample: Vec<u64> = writes.iter().step_by(SAMPLED).map(Write::lba).collect();
        let middle = sample.len() / 2;
        let border = *sample.select_nth_unstable(middle).1;
        let (below, above) = std::thread::scope(|scope| {
            let above = scope.spawn(|| sweep(Parts::divide(&writes, border, u64::MAX), prefer, u64::MAX));
            let below = sweep(Parts::divide(&writes, 0, border), prefer, border);
            (below, above.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let (mut map, mut behind) = (below.map, above.map);
        // A write that shows on both sides of the border is one.
        map.doubtful += behind.doubtful - below.over_ends.intersection(&above.over_ends).count() as u64;
        if let ([.., last], [next, ..]) = (&mut map.extents[..], &behind.extents[..]) {
            if last.is_continued_by(next) {
                // Where it begins doesn't matter to what it is put together with: the one moves, not all behind it.
                behind.extents[0] = Extent { sectors: last.sectors + next.sectors, ..*last };
                map.extents.pop();
            }
        }
        map.behind = behind.extents;
        // To give back as much memory takes a tenth of the time that building took, and nobody waits for it.
        let _ = std::thread::Builder::new().spawn(move || drop((writes, below.writes, above.writes)));
        map
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
        self.extents.len() + self.behind.len()
    }

    /// Bytes of memory that the extents take.
    pub fn bytes(&self) -> usize {
        (self.extents.capacity() + self.behind.capacity()) * size_of::<Extent>()
    }

    /// All extents.
    pub fn extents(&self) -> impl Iterator<Item = &Extent> {
        self.extents.iter().chain(&self.behind)
    }

    /// SHA-256 of what it says.
    pub fn digest(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        for extent in self.extents() {
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
        let touching = |extents: &[Extent]| extents.partition_point(|extent| extent.end() <= from);
        self.extents[touching(&self.extents)..]
            .iter()
            .chain(&self.behind[touching(&self.behind)..])
            // No sectors at all may lie inside an extent.
            .take_while(move |extent| from < to && extent.lba < to)
            .map(move |extent| extent.cut(extent.lba.max(from), extent.end().min(to)))
    }
}

#[cfg(test)]
mod tests {
    use super::parts::PART;
    use super::*;
    use crate::history::mark;

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
                assert!(halves.extents().eq(whole.extents()), "seed {seed}, {prefer:?}");
                assert_eq!(halves.doubtful, whole.doubtful, "seed {seed}, {prefer:?}");
                for _ in 0..20 {
                    let from = rng.random_range(0..places);
                    let to = from + rng.random_range(0..=2 * longest);
                    assert!(
                        halves.within(from, to).eq(whole.within(from, to)),
                        "seed {seed}: {from} to {to}"
                    );
                }
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
