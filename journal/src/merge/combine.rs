//! The result of all writes of a window: for every sector the data after the last one, and what had been there
//! before the first (claims 2 and 25).
//!
//! Both are maps of pointers, like an image's: the window's writes swept once with the last write winning, once with
//! the first. Where both agree on where they come from, sectors form one merged entry.

use crate::geometry::Geometry;
use crate::history::{mark, Write};
use crate::pit_map::{Extent, PitMap, Prefer};
use layout::entry::{EntryHeader, Kind};
use layout::journal_file::IndexRow;
use layout::SECTOR_BYTES;

/// Most sectors of a merged entry, where a segment has room for them: large enough that headers don't matter, small enough to be read as a whole.
const MOST_SECTORS: u64 = 128;

/// An image of a piece: where its bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Half {
    /// Extents of one write each, in order, back to back.
    first: usize,
    count: usize,
}

/// A merged entry: sectors that come to the same kind of end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub lba: u64,
    pub sectors: u64,
    /// After, Before, Both or Resync.
    pub kind: Kind,
    /// Neither image is known.
    pub no_image: bool,
    /// All of it is zeroes.
    pub zero: bool,
    /// Nobody knows whether the target executed what the image after it shows.
    pub doubtful: bool,
    /// Port of the last write.
    pub port: u8,
    pub before: Option<Half>,
    pub after: Option<Half>,
}

/// Sectors that a merged entry may have, so that with both images several fit a segment of this journal.
pub(super) fn most_sectors(geometry: &Geometry) -> u64 {
    MOST_SECTORS.min(geometry.largest_payload() as u64 / 4 / SECTOR_BYTES as u64)
}

/// The pieces of a window for one volume, in order of location.
pub(super) struct Combined {
    pub pieces: Vec<Piece>,
    extents: Vec<Extent>,
    /// Most sectors of a piece.
    most: u64,
}

impl Combined {
    /// The extents of a half.
    pub fn extents(&self, half: Half) -> &[Extent] {
        &self.extents[half.first..half.first + half.count]
    }

    /// Bytes that the pieces take as records and in the index, paddings included.
    pub fn bytes(&self) -> u64 {
        let each = |piece: &Piece| {
            let images = u64::from(piece.before.is_some()) + u64::from(piece.after.is_some());
            let payload = if piece.zero { 0 } else { images * piece.sectors * SECTOR_BYTES as u64 };
            payload + (size_of::<EntryHeader>() + size_of::<IndexRow>()) as u64 + payload / 1024
        };
        self.pieces.iter().map(each).sum()
    }

    /// Combines writes that were read with `Wanted::Each` into pieces of `most` sectors at most.
    pub fn of(writes: &[Write], most: u64) -> Self {
        let last = PitMap::build(writes.iter().map(as_after).collect(), Prefer::Last);
        let first = PitMap::build(writes.iter().filter_map(as_before).collect(), Prefer::First);
        let mut combined = Combined { pieces: Vec::new(), extents: Vec::new(), most };
        let mut before = first.extents().copied().peekable();
        for after in last.extents() {
            let mut at = after.lba;
            while at < after.end() {
                while before.peek().is_some_and(|extent| extent.end() <= at) {
                    before.next();
                }
                // What was only read back has nothing before it.
                let (over, end) = match before.peek() {
                    Some(extent) if extent.lba <= at => (Some(*extent), extent.end()),
                    Some(extent) => (None, extent.lba),
                    None => (None, u64::MAX),
                };
                let end = end.min(after.end()).min(at + most);
                combined.add(after.cut(at, end), over.map(|extent| extent.cut(at, end)));
                at = end;
            }
        }
        combined
    }

    fn add(&mut self, after: Extent, before: Option<Extent>) {
        let known = |extent: &Extent| extent.marks & mark::NO_IMAGE == 0;
        let has_after = known(&after);
        let has_before = before.as_ref().is_some_and(known);
        let kind = match (has_after, has_before) {
            (true, true) => Kind::Both,
            (true, false) if before.is_none() => Kind::Resync,
            (false, true) => Kind::Before,
            _ => Kind::After,
        };
        let halves = [has_before.then_some(before).flatten(), has_after.then_some(after)];
        let no_image = !has_after && !has_before;
        let piece = Piece {
            lba: after.lba,
            sectors: u64::from(after.sectors),
            kind,
            no_image,
            zero: halves.iter().flatten().all(|extent| extent.marks & mark::ZERO != 0),
            doubtful: after.marks & mark::DOUBTFUL != 0,
            port: after.port,
            before: None,
            after: None,
        };
        if !self.extends_last(&piece) {
            self.pieces.push(piece);
            self.start_halves(halves);
        } else if let Some(last) = self.pieces.last_mut() {
            last.sectors += piece.sectors;
            self.extend_halves(halves);
        }
    }

    fn extends_last(&self, piece: &Piece) -> bool {
        self.pieces.last().is_some_and(|last| {
            let same = |piece: &Piece| (piece.kind, piece.no_image, piece.zero, piece.doubtful, piece.port);
            last.lba + last.sectors == piece.lba
                && last.sectors + piece.sectors <= self.most
                && same(last) == same(piece)
        })
    }

    /// The extents of a piece's halves lie together: those before, then those after. While a piece grows, its
    /// extents are the last ones.
    fn start_halves(&mut self, halves: [Option<Extent>; 2]) {
        let mut placed = [None; 2];
        for (place, half) in placed.iter_mut().zip(halves) {
            *place = half.map(|extent| {
                self.extents.push(extent);
                Half { first: self.extents.len() - 1, count: 1 }
            });
        }
        if let Some(last) = self.pieces.last_mut() {
            (last.before, last.after) = (placed[0], placed[1]);
        }
    }

    fn extend_halves(&mut self, halves: [Option<Extent>; 2]) {
        let Some(last) = self.pieces.last_mut() else { return };
        let [before, after] = halves;
        if let (Some(half), Some(extent)) = (&mut last.before, before) {
            let end = half.first + half.count;
            let joins = join(&mut self.extents[end - 1], &extent);
            if !joins {
                self.extents.insert(end, extent);
                half.count += 1;
                if let Some(after) = &mut last.after {
                    after.first += 1;
                }
            }
        }
        if let (Some(half), Some(extent)) = (&mut last.after, after) {
            let end = half.first + half.count;
            if !join(&mut self.extents[end - 1], &extent) {
                self.extents.push(extent);
                half.count += 1;
            }
        }
    }
}

/// Makes one extent of two that are next to each other in the same payload.
fn join(first: &mut Extent, second: &Extent) -> bool {
    let skip = u64::from(first.skip) + u64::from(first.sectors);
    let joins = first.place == second.place
        && first.marks == second.marks
        && skip == u64::from(second.skip)
        && first.lba + u64::from(first.sectors) == second.lba;
    if joins {
        first.sectors += second.sectors;
    }
    joins
}

/// The write as the image after it has it.
fn as_after(write: &Write) -> Write {
    let marks = write.marks();
    let kept = marks & (mark::DOUBTFUL | mark::ZERO);
    let second = marks & (mark::HAS_BEFORE | mark::HAS_AFTER) == mark::HAS_BEFORE | mark::HAS_AFTER;
    write.marked(match marks & mark::HAS_AFTER {
        0 => mark::NO_IMAGE | marks & mark::DOUBTFUL,
        _ => kept | if second { mark::SECOND } else { 0 },
    })
}

/// The write as the image before it has it; `None`: nothing was written.
fn as_before(write: &Write) -> Option<Write> {
    let marks = write.marks();
    if marks & mark::READ_BACK != 0 {
        return None;
    }
    Some(write.marked(match marks & mark::HAS_BEFORE {
        0 => mark::NO_IMAGE,
        _ => marks & mark::ZERO,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// Random writes of any kinds: for every sector the pieces have what a walk over the writes has.
    #[test]
    fn pieces_have_the_last_after_and_the_first_before_of_every_sector() {
        const SECTORS: usize = 64;
        for seed in 0..3000 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let (mut last, mut first) = ([None::<Write>; SECTORS], [None::<Write>; SECTORS]);
            let mut read = [false; SECTORS];
            let mut writes = Vec::new();
            for order in 1..rng.random_range(1..20u64) {
                let marks = [
                    mark::HAS_AFTER,
                    mark::HAS_BEFORE,
                    mark::HAS_AFTER | mark::HAS_BEFORE,
                    mark::HAS_AFTER | mark::READ_BACK,
                    0,
                ][rng.random_range(0..5)]
                    | if rng.random_bool(0.2) { mark::ZERO } else { 0 }
                    | if rng.random_bool(0.2) { mark::DOUBTFUL } else { 0 };
                let sectors = rng.random_range(1..9u64);
                let lba = rng.random_range(0..SECTORS as u64 - sectors);
                let write = Write::made(lba, sectors, order, marks, rng.random_range(0..3), order * 64);
                writes.push(write);
                for sector in lba as usize..(lba + sectors) as usize {
                    last[sector] = Some(write);
                    read[sector] = true;
                    if marks & mark::READ_BACK == 0 {
                        first[sector].get_or_insert(write);
                    }
                }
            }
            let most = rng.random_range(1..=MOST_SECTORS);
            let combined = Combined::of(&writes, most);
            let mut covered = [false; SECTORS];
            let mut end = 0;
            for piece in &combined.pieces {
                assert!(piece.lba >= end && piece.sectors <= most, "seed {seed}");
                end = piece.lba + piece.sectors;
                let flat = |half: Option<Half>| -> Vec<(u64, u64, bool)> {
                    let extents = half.map_or(&[][..], |half| combined.extents(half));
                    let each = |e: &Extent| {
                        let (place, skip, second) = (e.place, u64::from(e.skip), e.marks & mark::SECOND != 0);
                        (0..u64::from(e.sectors)).map(move |n| (place, skip + n, second)).collect::<Vec<_>>()
                    };
                    extents.iter().flat_map(each).collect()
                };
                let (before, after) = (flat(piece.before), flat(piece.after));
                for n in 0..piece.sectors as usize {
                    let sector = piece.lba as usize + n;
                    covered[sector] = true;
                    let (l, f) = (last[sector].unwrap(), first[sector]);
                    let skip = |write: &Write| sector as u64 - write.lba();
                    let has_after = l.marks() & mark::HAS_AFTER != 0;
                    let has_before = f.is_some_and(|f| f.marks() & mark::HAS_BEFORE != 0);
                    let kind = match (has_after, has_before, f.is_some()) {
                        (true, true, _) => Kind::Both,
                        (true, false, true) => Kind::After,
                        (true, false, false) => Kind::Resync,
                        (false, true, _) => Kind::Before,
                        (false, false, _) => Kind::After,
                    };
                    assert_eq!(
                        (piece.kind, piece.no_image),
                        (kind, !has_after && !has_before),
                        "seed {seed}"
                    );
                    assert_eq!(piece.doubtful, l.marks() & mark::DOUBTFUL != 0, "seed {seed}");
                    assert_eq!(piece.port, l.port());
                    if has_after {
                        let second = l.marks() & mark::HAS_BEFORE != 0;
                        assert_eq!(after[n], (l.place(), skip(&l), second), "seed {seed}, sector {sector}");
                    }
                    if let Some(f) = f.filter(|_| has_before) {
                        assert_eq!(before[n], (f.place(), skip(&f), false), "seed {seed}, sector {sector}");
                    }
                }
            }
            assert_eq!(covered, read, "seed {seed}");
        }
    }
}
