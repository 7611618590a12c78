//! Where each sector of a stretch of the volume comes from.

use super::super::batch::{is_entry, Parts};
use super::facts::{side, Facts, Side};
use crate::moment::Moment;
use layout::entry::{flags, Encoding, EntryHeader, Kind, Updated};
use layout::journal_file::{BatchHeader, MergedWindow, VolumeRow};
use layout::SECTOR_BYTES;
use zerocopy::FromBytes;

/// Low bits of a slot's place: payloads lie on multiples of 512.
const ZERO: u64 = 1 << 0;
const NO_IMAGE: u64 = 1 << 1;
const DOUBTFUL: u64 = 1 << 2;
const MARKS: u64 = SECTOR_BYTES as u64 - 1;

/// What a sector is made from; all zeroes: the backing.
#[derive(Clone, Copy, Default)]
pub(super) struct Slot {
    /// Order of the entry, or last one of the window.
    pub order: u64,
    /// File offset of the sector's data, and marks.
    place: u64,
}

impl Slot {
    pub fn is_backing(&self) -> bool {
        self.order == 0
    }

    pub fn is_zero(&self) -> bool {
        self.place & ZERO != 0
    }

    pub fn lacks_image(&self) -> bool {
        self.place & NO_IMAGE != 0
    }

    pub fn is_doubtful(&self) -> bool {
        self.place & DOUBTFUL != 0
    }

    /// File offset of its data.
    pub fn offset(&self) -> u64 {
        self.place & !MARKS
    }
}

/// Which of the writes to a sector shows, and which of them count.
#[derive(Clone, Copy)]
pub(super) enum Direction {
    /// Over a base that holds every entry up to this order: the last one up to the moment.
    Last { behind: u64 },
    /// Over primary: the first one behind the moment.
    First,
}

/// First and last entry of a window: order and stamp of each.
type Stretch = ((u64, u64), (u64, u64));

/// Gathers the slots in one reading of the journal.
pub(super) struct Sectors<'a> {
    pub facts: &'a Facts,
    pub at: Moment,
    pub volume: VolumeRow,
    pub direction: Direction,
    /// The first sector of the stretch.
    pub from: u64,
    pub slots: Vec<Slot>,
    /// Entries of the volume that count, in any sector.
    pub entries: u64,
    window: Option<Stretch>,
    /// Sectors that a late answer is about, and up to which order it makes doubtful what is written there.
    late: Vec<(u64, u64, u64)>,
}

impl<'a> Sectors<'a> {
    pub fn new(
        facts: &'a Facts,
        at: Moment,
        volume: VolumeRow,
        direction: Direction,
        from: u64,
        sectors: usize,
    ) -> Self {
        let slots = vec![Slot::default(); sectors];
        Self { facts, at, volume, direction, from, slots, entries: 0, window: None, late: Vec::new() }
    }

    /// Takes in a batch that lies at `offset`.
    pub fn batch(&mut self, offset: u64, header: &BatchHeader, parts: &Parts) {
        if header.portion == 0 && header.sequence.get() > self.facts.last_batch {
            // It was written since.
            return;
        }
        let mut order = header.first_order.get();
        for ((record, kind, payload), (place, _)) in parts.records.iter().zip(&parts.places) {
            if *kind == Kind::Merged {
                self.window = MergedWindow::read_from_bytes(payload).ok().map(|window| {
                    let first = (window.first_order.get(), window.first_timestamp.get());
                    (first, (record.number.get(), window.last_timestamp.get()))
                });
            }
            if !is_entry(*kind) {
                continue;
            }
            let stamp = record.timestamp.get();
            let one = ((order, stamp), (order, stamp));
            let stretch = if header.portion == 0 { Some(one) } else { self.window };
            let part = self.facts.is_part(header.portion, stamp, Some(order));
            if let Some(stretch) = stretch.filter(|_| part && record.volume == self.volume.index) {
                self.entry(record, *kind, header.portion != 0, stretch, offset + place);
            }
            order += u64::from(header.portion == 0);
        }
    }

    fn entry(&mut self, d: &EntryHeader, kind: Kind, merged: bool, stretch: Stretch, payload: u64) {
        let status = if merged { d.updated().unwrap_or(Updated::Unknown) } else { self.facts.status(d) };
        if matches!(status, Updated::Refused | Updated::Cancelled) {
            return;
        }
        // Past the end that the volume had nothing can have been executed; what was merged was.
        let end = d.lba().saturating_add(d.sectors.get().into());
        if !merged && end > self.facts.size_at(&self.volume, d.timestamp.get()) {
            return;
        }
        let order = stretch.1 .0;
        let sectors = u64::from(d.sectors.get());
        let second = payload + sectors * SECTOR_BYTES as u64;
        let place = match (self.direction, kind, side(self.at, stretch.0, stretch.1)) {
            (Direction::Last { behind }, _, Side::Reached) if order > behind => match kind {
                Kind::After | Kind::Resync => Some(payload),
                Kind::Both => Some(second),
                _ => None,
            },
            // What was read back from primary changed nothing there.
            (Direction::First, Kind::Resync, _) => return,
            (Direction::First, _, Side::Behind) => match kind {
                Kind::Before | Kind::Both => Some(payload),
                _ => None,
            },
            _ => return,
        };
        self.entries += 1;
        let no_image = place.is_none() || d.flags.get() & flags::NO_IMAGE != 0;
        let zero = d.encoding == Encoding::Zero as u8;
        let marks = if no_image { NO_IMAGE } else { 0 } | if zero { ZERO } else { 0 };
        let base = place.filter(|_| !zero).unwrap_or(0);
        let lba = d.lba();
        if let Some(until) = self.facts.late.get(&self.facts.key(d)).filter(|_| !merged) {
            self.late.push((lba, end, *until));
        }
        let unsure = matches!(status, Updated::Pending | Updated::Unknown);
        for sector in lba.max(self.from)..end.min(self.from.saturating_add(self.slots.len() as u64)) {
            let late =
                |(from, to, until): &(u64, u64, u64)| (*from..*to).contains(&sector) && order <= *until;
            let Some(slot) = self.slots.get_mut((sector - self.from) as usize) else { break };
            let doubtful = match self.direction {
                Direction::Last { .. } if unsure || self.late.iter().any(late) => DOUBTFUL,
                // Primary has what it has: only in a base's future one has to guess.
                _ => 0,
            };
            let data = if base == 0 { 0 } else { base + (sector - lba) * SECTOR_BYTES as u64 };
            if matches!(self.direction, Direction::Last { .. }) || slot.is_backing() {
                *slot = Slot { order, place: data | marks | doubtful };
            }
        }
    }
}
