//! Where in the card's address space memory lies.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// What an IOMMU of a PC translates, where the kernel doesn't say: 39 bits, but for the window that messages
/// of interrupts go to (Intel VT-d 3.4 §3.14).
const USUAL: [RangeInclusive<u64>; 2] = [0..=0xFEDF_FFFF, 0xFEF0_0000..=(1 << 39) - 1];
/// Nothing lies below: a register that was never set must not point at memory.
const LOWEST: u64 = 1 << 20;
/// Pages of which everything is a multiple, if the kernel doesn't say.
const USUAL_GRANULE: u64 = 4096;

/// The card's address space: what may be mapped, and what is.
#[derive(Clone, Debug)]
pub struct Space {
    ranges: Vec<RangeInclusive<u64>>,
    granule: u64,
    /// First address and length.
    taken: BTreeMap<u64, u64>,
}

impl Space {
    /// Of an IOMMU that translates `ranges` in pages of the sizes whose bits are set in `page_sizes`; nothing
    /// said of either: what a PC usually has.
    pub fn new(ranges: &[RangeInclusive<u64>], page_sizes: u64) -> Self {
        let ranges = if ranges.is_empty() { USUAL.to_vec() } else { ranges.to_vec() };
        let granule = if page_sizes == 0 { USUAL_GRANULE } else { page_sizes & page_sizes.wrapping_neg() };
        Self { ranges, granule, taken: BTreeMap::new() }
    }

    /// Smallest page: everything is a multiple of it.
    pub fn granule(&self) -> u64 {
        self.granule
    }

    /// Takes `bytes`, a multiple of the granule, aligned to `alignment`, a power of two. Before and behind it at
    /// least a granule stays free, so that an access one too far is a fault and not a neighbour's damage.
    pub fn take(&mut self, bytes: u64, alignment: u64) -> Option<u64> {
        let address = self.ranges.iter().find_map(|range| self.find(range, bytes, alignment))?;
        self.taken.insert(address, bytes);
        Some(address)
    }

    /// It is free again.
    pub fn give_back(&mut self, address: u64) {
        self.taken.remove(&address);
    }

    fn find(&self, range: &RangeInclusive<u64>, bytes: u64, alignment: u64) -> Option<u64> {
        let mut address = (*range.start()).max(LOWEST).checked_next_multiple_of(alignment)?;
        loop {
            let last = address.checked_add(bytes)?.checked_sub(1)?;
            if last > *range.end() {
                return None;
            }
            let reach = last.saturating_add(self.granule);
            let neighbour = self.taken.range(..=reach).next_back();
            match neighbour.map(|(first, length)| first + length) {
                Some(end) if end + self.granule > address => {
                    address = (end + self.granule).checked_next_multiple_of(alignment)?;
                }
                _ => return Some(address),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    const PAGE: u64 = 4096;

    #[test]
    fn holes_and_the_ends_of_ranges_are_respected() {
        let mut space = Space::new(&[0..=LOWEST + 4 * PAGE - 1, 0x8000_0000..=0x8000_3FFF], PAGE);
        assert_eq!(space.take(4 * PAGE, PAGE), Some(LOWEST), "to the last byte of the range");
        assert_eq!(space.take(PAGE, PAGE), Some(0x8000_0000));
        assert_eq!(space.take(PAGE, PAGE), Some(0x8000_2000), "a page stays free in between");
        assert_eq!(space.take(PAGE, PAGE), None);
        space.give_back(0x8000_0000);
        assert_eq!(space.take(PAGE, PAGE), Some(0x8000_0000));
    }

    #[test]
    fn the_window_of_messages_is_left_out_where_nobody_says() {
        let mut space = Space::new(&[], 0);
        let mut above = 0;
        while let Some(address) = space.take(1 << 30, 2 << 20) {
            assert!(address + (1 << 30) <= 0xFEE0_0000 || address >= 0xFEF0_0000, "{address:#x}");
            above += u32::from(address >= 1 << 32);
        }
        assert!(above > 400, "39 bits hold 512 GiB");
    }

    #[test]
    fn no_two_overlap_and_each_is_aligned() {
        let seed =
            std::env::var("CHRONO_SEED").ok().map(|text| text.parse().expect("CHRONO_SEED is a number"));
        let seed = seed.unwrap_or_else(|| rand::rng().random());
        println!("CHRONO_SEED={seed}");
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        for granule in [PAGE, 16 * PAGE] {
            let mut space = Space::new(&[0..=(1 << 26) - 1, (1 << 27)..=(1 << 28) - 1], granule);
            let mut taken: Vec<(u64, u64)> = Vec::new();
            for _ in 0..2000 {
                if random.random_bool(0.4) && !taken.is_empty() {
                    let (address, _) = taken.swap_remove(random.random_range(0..taken.len()));
                    space.give_back(address);
                    continue;
                }
                let bytes = granule << random.random_range(0..8);
                let alignment = granule << random.random_range(0..6);
                let Some(address) = space.take(bytes, alignment) else { continue };
                assert!(address.is_multiple_of(alignment) && address >= LOWEST);
                let end = address + bytes;
                assert!(end <= 1 << 26 || address >= 1 << 27 && end <= 1 << 28);
                for (other, length) in &taken {
                    assert!(end + granule <= *other || other + length + granule <= address);
                }
                taken.push((address, bytes));
            }
        }
    }
}
