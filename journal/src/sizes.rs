//! How large a volume was, and is: markers flagged *resized* change the size that its row names.
//!
//! An entry belongs to the size that the last marker before it gave. A moment does, too: just after `order:N` no
//! marker behind entry N has been reached yet, at a stamp every one up to that stamp has.

use crate::error::Error;
use crate::history::PartSource;
use crate::moment::Moment;
use crate::payloads::Payloads;
use crate::reader::JournalReader;
use crate::record::StoredRecord;
use layout::entry::{flags, Kind, Resize};
use std::collections::BTreeMap;
use zerocopy::FromBytes;

/// No volume has more sectors: 48 bits address them.
pub(crate) const MOST_SECTORS: u64 = 1 << 48;

/// A change of the size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// Stamp of its marker.
    pub stamp: u64,
    /// The last order before it.
    pub order: u64,
    pub before: u64,
    pub after: u64,
}

/// Every size that a volume had, in sectors, from where history begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// What its row says: counts only while there is no change.
    row: u64,
    changes: Vec<Change>,
}

impl Sizes {
    /// Of a volume that was never resized.
    pub fn of(row: u64) -> Self {
        Self { row, changes: Vec::new() }
    }

    /// Was it ever resized?
    pub fn changed(&self) -> bool {
        !self.changes.is_empty()
    }

    /// The next change.
    pub fn push(&mut self, change: Change) {
        self.changes.push(change);
    }

    /// Now.
    pub fn now(&self) -> u64 {
        self.changes.last().map_or(self.row, |last| last.after)
    }

    /// Where history begins. A row goes ahead of markers that are about to be given up; what they say counts as long
    /// as they are there.
    pub fn first(&self) -> u64 {
        self.changes.first().map_or(self.row, |first| first.before)
    }

    /// The last change.
    pub fn last_change(&self) -> Option<&Change> {
        self.changes.last()
    }

    fn before(&self, index: usize) -> u64 {
        self.changes.get(index).map_or(self.now(), |change| change.before)
    }

    /// Once everything stamped up to `stamp` had happened.
    pub fn at_stamp(&self, stamp: u64) -> u64 {
        self.before(self.changes.partition_point(|change| change.stamp <= stamp))
    }

    /// When the entry with this order was written.
    pub fn at_order(&self, order: u64) -> u64 {
        self.before(self.changes.partition_point(|change| change.order < order))
    }

    /// At a moment whose last entry is stamped so.
    pub fn at(&self, moment: Moment, last_entry: u64) -> u64 {
        match moment {
            Moment::End => self.now(),
            Moment::Timestamp(stamp) => self.at_stamp(stamp),
            Moment::Order(_) => self.at_stamp(last_entry),
        }
    }

    /// The smallest that it ever was.
    pub fn smallest(&self) -> u64 {
        let ever = self.changes.iter().map(|change| change.before.min(change.after)).min();
        ever.unwrap_or(self.row)
    }

    /// The largest that it ever was.
    pub fn largest(&self) -> u64 {
        let ever = self.changes.iter().map(|change| change.before.max(change.after)).max();
        ever.unwrap_or(self.row)
    }
}

/// What a marker says of its volume's size; `None`: nothing.
pub(crate) fn resize_of(
    file: &str,
    record: &StoredRecord,
    payload: impl FnOnce() -> Result<Vec<u8>, Error>,
) -> Result<Option<(u64, u64)>, Error> {
    if record.kind != Kind::Marker || record.header.flags.get() & flags::RESIZED == 0 {
        return Ok(None);
    }
    let payload = payload()?;
    match Resize::read_from_prefix(&payload) {
        Ok((resize, _)) if resize.before.get().max(resize.after.get()) <= MOST_SECTORS => {
            Ok(Some((resize.before.get(), resize.after.get())))
        }
        _ => {
            let what = format!("the resize of volume {} makes no sense", record.header.volume);
            Err(Error::corrupt(file, record.location.payload, what))
        }
    }
}

impl JournalReader {
    /// Sectors that each volume has now, by its index in entries: what its row says, unless it was resized.
    pub fn sectors_now(&self) -> Result<BTreeMap<u16, u64>, Error> {
        Ok(self.sizes()?.into_iter().map(|(index, sizes)| (index, sizes.now())).collect())
    }

    /// Every size of every volume. Reads the indexes.
    pub(crate) fn sizes(&self) -> Result<BTreeMap<u16, Sizes>, Error> {
        self.sizes_within(|_| true)
    }

    /// The size that the volumes have where history would begin behind a stamp, of those that were resized before.
    pub(crate) fn sizes_behind(&self, stamp: u64) -> Result<Vec<(u16, u64)>, Error> {
        let sizes = self.sizes_within(|begins| begins <= stamp)?;
        let resized = |sizes: &Sizes| sizes.changes.first().is_some_and(|first| first.stamp <= stamp);
        Ok(sizes.iter().filter(|(_, s)| resized(s)).map(|(i, s)| (*i, s.at_stamp(stamp))).collect())
    }

    fn sizes_within(&self, wanted: impl Fn(u64) -> bool) -> Result<BTreeMap<u16, Sizes>, Error> {
        let rows = self.tables().volumes.iter();
        let mut sizes: BTreeMap<u16, Sizes> = rows.map(|row| (row.index, Sizes::of(row.sectors))).collect();
        let payloads = Payloads::new(self);
        let mut last_order = 0;
        for source in self.sources()? {
            let part = PartSource::load(&source, self)?;
            let stamps = part.rows.iter().map(|row| row.timestamp.get());
            let begins = stamps.chain(part.notes.iter().map(|note| note.timestamp.get())).min();
            if begins.is_some_and(|begins| !wanted(begins)) {
                break;
            }
            for note in part
                .notes
                .iter()
                .filter(|note| note.kind == Kind::Marker as u8 && note.flags.get() & flags::RESIZED != 0)
            {
                let record = payloads.record(part.slot, u64::from(note.descriptor.get()))?;
                let resize = resize_of(&self.file_name(), &record, || payloads.whole(&record))?;
                let known = sizes.get_mut(&record.header.volume.get());
                if let (Some((before, after)), Some(sizes)) = (resize, known) {
                    let order = part.last_order_before(note.timestamp.get()).unwrap_or(last_order);
                    sizes.push(Change { stamp: note.timestamp.get(), order, before, after });
                }
            }
            last_order = last_order.max(part.last_order());
        }
        Ok(sizes)
    }
}
