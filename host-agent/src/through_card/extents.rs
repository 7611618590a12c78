//! Sets of sectors.

use std::collections::BTreeMap;
use std::ops::Range;

/// Sectors, as disjoint ranges that don't touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extents(BTreeMap<u64, u64>);

impl From<Range<u64>> for Extents {
    fn from(range: Range<u64>) -> Self {
        let mut extents = Self::default();
        extents.add(range);
        extents
    }
}

impl Extents {
    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Ranges.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Sectors.
    pub fn sectors(&self) -> u64 {
        self.iter().map(|range| range.end - range.start).sum()
    }

    /// The ranges, rising.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.0.iter().map(|(start, end)| *start..*end)
    }

    /// Adds a range.
    pub fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        while let Some((known, known_end)) = self.0.range(..=end).next_back().map(|(a, b)| (*a, *b)) {
            if known_end < start {
                break;
            }
            self.0.remove(&known);
            (start, end) = (start.min(known), end.max(known_end));
        }
        self.0.insert(start, end);
    }

    /// Takes a range away.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        while let Some((known, known_end)) = self.0.range(..range.end).next_back().map(|(a, b)| (*a, *b)) {
            if known_end <= range.start {
                break;
            }
            self.0.remove(&known);
            if known < range.start {
                self.0.insert(known, range.start);
            }
            if known_end > range.end {
                self.0.insert(range.end, known_end);
            }
        }
    }

    /// Takes them all away.
    pub fn remove_all(&mut self, others: &Extents) {
        others.iter().for_each(|range| self.remove(range));
    }

    /// What of `range` isn't among them, rising.
    pub fn gaps_in(&self, range: Range<u64>) -> Extents {
        let mut rest = Extents::from(range.clone());
        if rest.is_empty() {
            return rest;
        }
        let first = self.0.range(..=range.start).next_back().map_or(range.start, |(start, _)| *start);
        for (start, end) in self.0.range(first..range.end) {
            rest.remove(*start..*end);
        }
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Against a set of numbers: whatever is added and taken away.
    #[test]
    fn they_are_what_a_plain_set_is() {
        let mut state = 7u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        let (mut extents, mut model) = (Extents::default(), BTreeSet::new());
        for _ in 0..5000 {
            let start = random(100);
            let range = start..start + random(12);
            match random(2) {
                0 => {
                    extents.add(range.clone());
                    model.extend(range);
                }
                _ => {
                    extents.remove(range.clone());
                    range.for_each(|sector| {
                        model.remove(&sector);
                    });
                }
            }
            let flat: Vec<u64> = extents.iter().flatten().collect();
            assert_eq!(flat, model.iter().copied().collect::<Vec<_>>());
            assert_eq!(extents.sectors(), model.len() as u64);
            let ranges: Vec<_> = extents.iter().collect();
            assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "{ranges:?}");
            let asked = random(100)..random(112);
            let gaps: Vec<u64> = extents.gaps_in(asked.clone()).iter().flatten().collect();
            assert_eq!(gaps, asked.filter(|sector| !model.contains(sector)).collect::<Vec<_>>());
        }
    }
}
