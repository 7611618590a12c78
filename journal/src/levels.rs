//! How far back each level of merging reaches, and what it costs.

use crate::error::Error;
use crate::history::{Part, PartSource};
use crate::reader::JournalReader;
use crate::windows;
use layout::entry::{Encoding, EntryHeader, Kind};
use layout::journal_file::{IndexRow, BLOCK_BYTES};
use layout::SECTOR_BYTES;
use std::collections::BTreeMap;

/// A level of the history: every write, or windows of one length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LevelReach {
    /// 0: every write; merged levels from 1 on.
    pub level: usize,
    /// Length of its windows, ns; 0: every write.
    pub window: u64,
    /// Stamp behind which it begins, and up to which it goes, where the finer level begins. Equal: there is nothing.
    pub from: u64,
    /// See `from`.
    pub to: u64,
    /// Orders in it: writes, as they came.
    pub writes: u64,
    /// Windows.
    pub windows: u64,
    /// Segments that it takes.
    pub segments: u64,
    /// Bytes that what it holds takes in them.
    pub bytes: u64,
}

impl JournalReader {
    /// Every level that there is, from every write to the longest windows. Reads the indexes of all segments.
    pub fn levels(&self) -> Result<Vec<LevelReach>, Error> {
        let sources = self.sources()?;
        let portions: Vec<_> = self.head().portions().collect();
        let mut levels = Vec::new();
        for (at, (index, portion)) in portions.iter().enumerate() {
            let finer = portions.get(at + 1).map(|(_, finer)| finer);
            let next_order = finer.map_or(self.summary().order + 1, |finer| finer.from_order.get());
            let mut reach = LevelReach {
                level: *index,
                window: portion.window.get(),
                from: portion.after_timestamp.get(),
                to: finer.map_or(self.summary().timestamp, |finer| finer.after_timestamp.get()),
                writes: next_order.saturating_sub(portion.from_order.get().max(1)),
                ..LevelReach::default()
            };
            for source in sources.iter().filter(|source| source.portion == *index) {
                self.add(source, &mut reach)?;
            }
            if *index == 0 {
                reach.bytes = self.growth()?.iter().map(|span| span.bytes).sum();
            }
            reach.to = reach.to.max(reach.from);
            levels.push(reach);
        }
        levels.reverse();
        Ok(levels)
    }

    fn add(&self, source: &PartSource, reach: &mut LevelReach) -> Result<(), Error> {
        let part = source.load(self)?;
        reach.segments += 1;
        if reach.from == 0 {
            // Nothing was given up yet: it begins with what came first.
            let first = part.rows.iter().map(|row| row.timestamp.get()).min();
            reach.from = first.map_or(0, |first| first.saturating_sub(reach.window).max(1));
        }
        let windows = part.notes.iter().filter(|note| note.kind == Kind::Merged as u8).count() as u64;
        reach.windows += windows;
        reach.bytes += windows * BLOCK_BYTES as u64 + part.rows.iter().map(row_bytes).sum::<u64>();
        Ok(())
    }

    /// How many writes have been merged, of those that history still has, and up to which stamp. Reads nothing.
    pub fn merged(&self) -> (u64, u64) {
        let received = &self.head().superblock.portions[0];
        let last = received.from_order.get().saturating_sub(1);
        (last.saturating_sub(self.head().history_begins().0), received.after_timestamp.get())
    }

    /// How much the newest writes would become if they were merged in windows of this length: bytes then and bytes
    /// now, as they lie in segments. Looks at `most` entries or a few more; of those in the segment that is being
    /// filled, too.
    pub fn overlap(&self, window: u64, most: u64) -> Result<(u64, u64), Error> {
        let mut parts: Vec<Part> = Vec::new();
        let mut entries = 0;
        for source in self.sources()?.iter().rev().filter(|source| source.portion == 0) {
            if entries >= most {
                break;
            }
            let part = source.load(self)?;
            entries += part.rows.len() as u64;
            parts.push(part);
        }
        Ok(combined(parts.iter().flat_map(|part| &part.rows), window.max(1)))
    }

    /// Is what lies at this moment still there, so that an image of it can be made? [`Error::Merged`] and
    /// [`Error::NoMoment`] say why not.
    pub fn has_moment(&self, at: crate::Moment) -> Result<(), Error> {
        windows::locate(self, at).map(drop)
    }
}

/// What a row's entry takes, with its image or images, header and index row.
fn row_bytes(row: &IndexRow) -> u64 {
    let images = match Kind::from_byte(row.kind) {
        _ if row.encoding == Encoding::Zero as u8 => 0,
        Ok(Kind::Both) => 2,
        _ => 1,
    };
    let payload = images * u64::from(row.sectors.get()) * SECTOR_BYTES as u64;
    payload + HEADERS
}

/// First sector, end, bytes of a sector.
type Extent = (u64, u64, u64);

const HEADERS: u64 = (size_of::<EntryHeader>() + size_of::<IndexRow>()) as u64;

/// Bytes when merged, and bytes as they are.
fn combined<'a>(rows: impl Iterator<Item = &'a IndexRow>, window: u64) -> (u64, u64) {
    let mut now = 0;
    // By window and volume.
    let mut places: BTreeMap<(u64, u16), Vec<Extent>> = BTreeMap::new();
    for row in rows {
        let bytes = row_bytes(row);
        now += bytes;
        let lba = crate::segment::lba(row);
        let sectors = u64::from(row.sectors.get());
        let each = (bytes - HEADERS).checked_div(sectors).unwrap_or(0);
        let key = (row.timestamp.get().div_ceil(window), row.volume.get());
        places.entry(key).or_default().push((lba, lba + sectors, each));
    }
    let mut then = 0;
    let mut last_window = None;
    for ((window, _), mut extents) in places {
        if last_window.replace(window) != Some(window) {
            then += BLOCK_BYTES as u64;
        }
        extents.sort_unstable();
        let mut end = 0;
        for (from, to, each) in extents {
            if from > end || end == 0 {
                then += HEADERS;
            }
            then += to.saturating_sub(from.max(end)) * each;
            end = end.max(to);
        }
    }
    (then, now)
}
