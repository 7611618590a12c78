//! One reading of the journal: where the moment is, what became of the entries, gaps, sizes.

use super::super::batch::{is_entry, Parts};
use super::super::front::Front;
use super::super::history::gap;
use super::super::portions;
use crate::error::Error;
use crate::image::Backing;
use crate::moment::{rfc3339, Moment};
use layout::entry::{flags, EntryHeader, Gap, GapReason, Kind, Resize, Updated};
use layout::journal_file::{volume_kind, BatchHeader, MergedWindow, VolumeRow};
use std::collections::{BTreeMap, HashMap, HashSet};
use zerocopy::FromBytes;

/// A volume, as it is asked for.
#[derive(Clone)]
pub(super) struct VolumeFacts {
    pub row: VolumeRow,
    pub name: String,
}

impl VolumeFacts {
    /// The volume of that name.
    pub fn find(front: &Front, name: &str) -> Result<Self, Error> {
        let named = |row: &VolumeRow| match row.kind {
            volume_kind::AOE => format!("{}.{}", row.shelf, row.slot),
            _ => {
                let end = row.name.iter().position(|byte| *byte == 0).unwrap_or(row.name.len());
                String::from_utf8_lossy(&row.name[..end]).into_owned()
            }
        };
        let rows = || front.tables.volumes.values();
        match rows().find(|row| named(row) == name) {
            Some(row) => Ok(Self { row: *row, name: name.to_owned() }),
            None => {
                let known = rows().map(named).collect::<Vec<_>>().join(", ");
                Err(Error::NoVolume { name: name.to_owned(), known })
            }
        }
    }
}

/// What one entry, or all of a window, is to the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// At or before it.
    Reached,
    /// Behind it.
    Behind,
    /// It lies in the midst of them.
    Inside,
}

/// Where a stretch of entries lies: the first and the last of them, by order and stamp.
pub(super) fn side(at: Moment, first: (u64, u64), last: (u64, u64)) -> Side {
    let (reached, behind) = match at {
        Moment::End => (true, false),
        Moment::Order(order) => (last.0 <= order, first.0 > order),
        Moment::Timestamp(stamp) => (last.1 <= stamp, first.1 > stamp),
    };
    match (reached, behind) {
        (true, _) => Side::Reached,
        (_, true) => Side::Behind,
        _ => Side::Inside,
    }
}

struct Missing {
    port: u8,
    from: u64,
    to: u64,
    reason: u32,
}

/// What a late answer makes doubtful: from its entry on, everything written there up to this order.
type LateUntil = u64;

/// See the module.
pub(super) struct Facts {
    at: Moment,
    volume: u16,
    /// By portion: stamp behind which its records count, and first order of the received one.
    after: Vec<u64>,
    from_order: u64,
    /// Last order of the journal.
    pub end: u64,
    /// Largest stamp, and up to where every port has delivered.
    timestamp: u64,
    delivered: u64,
    /// Sequence of the last batch of the received portion.
    pub last_batch: u64,
    /// The last entry at or before the moment: order and stamp.
    pub last: (u64, u64),
    /// Stamp of the first one behind it.
    next: Option<u64>,
    /// A window that the moment lies in: its orders.
    inside: Option<(u64, u64)>,
    gaps: Vec<Missing>,
    /// Stamps at which the volume was compared with primary in full.
    resynced: Vec<u64>,
    /// Stamp, sectors before, sectors after.
    resizes: Vec<(u64, u64, u64)>,
    /// By arbiter and number: entries without an answer.
    pending: HashSet<(u16, u64)>,
    /// The others that are not simply updated.
    settled: HashMap<(u16, u64), Updated>,
    pub late: HashMap<(u16, u64), LateUntil>,
    pub arbiters: BTreeMap<u8, u16>,
}

impl Facts {
    pub fn new(front: &Front, volume: u16, at: Moment) -> Self {
        let oldest = portions::oldest(&front.superblock);
        // What has been given up ends with this order; its stamp isn't known, but it is at most that.
        let gone = oldest.from_order.get().saturating_sub(1);
        let before = if gone > 0 { (gone, oldest.after_timestamp.get()) } else { (0, 0) };
        Self {
            at,
            volume,
            after: front.superblock.portions.iter().map(|p| p.after_timestamp.get()).collect(),
            from_order: front.superblock.portions[0].from_order.get(),
            end: gone,
            timestamp: 0,
            delivered: 0,
            last_batch: 0,
            last: before,
            next: None,
            inside: None,
            gaps: Vec::new(),
            resynced: Vec::new(),
            resizes: Vec::new(),
            pending: HashSet::new(),
            settled: HashMap::new(),
            late: HashMap::new(),
            arbiters: front.tables.ports.clone(),
        }
    }

    /// Is a record still part of its portion? `order` of an entry of the received one.
    pub fn is_part(&self, portion: u8, stamp: u64, order: Option<u64>) -> bool {
        match order.filter(|_| portion == 0) {
            Some(order) => order >= self.from_order,
            None => self.after.get(usize::from(portion)).is_some_and(|after| stamp > *after),
        }
    }

    pub fn key(&self, record: &EntryHeader) -> (u16, u64) {
        (self.arbiters.get(&record.port).copied().unwrap_or(0), record.number.get())
    }

    /// Takes in a batch.
    pub fn batch(&mut self, header: &BatchHeader, parts: &Parts) {
        let mut order = header.first_order.get();
        for (record, kind, payload) in &parts.records {
            let stamp = record.timestamp.get();
            match kind {
                Kind::Merged => self.window(header.portion, record, payload),
                // A late answer that was merged names an order, and what it leaves doubtful is in the windows.
                Kind::Completion if header.portion > 0 => {}
                Kind::Completion => self.completion(record, order.saturating_sub(1)),
                Kind::Gap | Kind::Marker if self.is_part(header.portion, stamp, None) => {
                    self.outside(record, *kind, payload)
                }
                kind if is_entry(*kind) && header.portion == 0 => {
                    if self.is_part(0, stamp, Some(order)) {
                        self.place((order, stamp), (order, stamp));
                        self.entry(record, *kind);
                    }
                    order += 1;
                }
                _ => {}
            }
            self.timestamp = self.timestamp.max(stamp);
        }
        if header.portion == 0 {
            self.last_batch = header.sequence.get();
            self.end = self.end.max(order.saturating_sub(1));
            self.timestamp = self.timestamp.max(header.last_timestamp.get());
            self.delivered = parts.ports.iter().map(|state| state.delivered.get()).min().unwrap_or(0);
        }
    }

    fn place(&mut self, first: (u64, u64), last: (u64, u64)) {
        match side(self.at, first, last) {
            Side::Reached => self.last = self.last.max(last),
            Side::Behind => self.next = self.next.or(Some(first.1)),
            Side::Inside => self.inside = Some((first.0, last.0)),
        }
        self.end = self.end.max(last.0);
    }

    fn window(&mut self, portion: u8, record: &EntryHeader, payload: &[u8]) {
        let Ok(window) = MergedWindow::read_from_bytes(payload) else { return };
        if self.is_part(portion, record.timestamp.get(), None) {
            let first = (window.first_order.get(), window.first_timestamp.get());
            self.place(first, (record.number.get(), window.last_timestamp.get()));
        }
    }

    fn entry(&mut self, record: &EntryHeader, kind: Kind) {
        match record.updated() {
            // What was read back from primary is what primary has.
            Ok(Updated::Updated) => {}
            Ok(Updated::Pending) if kind == Kind::Resync => {}
            Ok(Updated::Pending) => drop(self.pending.insert(self.key(record))),
            other => drop(self.settled.insert(self.key(record), other.unwrap_or(Updated::Unknown))),
        }
    }

    /// `order`: the last one before it.
    fn completion(&mut self, record: &EntryHeader, order: u64) {
        let key = self.key(record);
        let known = self.pending.remove(&key);
        let updated = record.updated().unwrap_or(Updated::Unknown);
        if record.flags.get() & flags::LATE != 0 {
            // The target may have executed it at any time up to now: it stays unknown.
            self.settled.insert(key, Updated::Unknown);
            let until = self.late.entry(key).or_insert(order);
            *until = order.max(*until);
        } else if known && updated != Updated::Updated {
            self.settled.insert(key, updated);
        }
    }

    /// What became of an entry.
    pub fn status(&self, record: &EntryHeader) -> Updated {
        let key = self.key(record);
        if self.pending.contains(&key) {
            return Updated::Pending;
        }
        self.settled.get(&key).copied().unwrap_or(Updated::Updated)
    }

    fn outside(&mut self, record: &EntryHeader, kind: Kind, payload: &[u8]) {
        let stamp = record.timestamp.get();
        if kind == Kind::Gap {
            let reason = Gap::read_from_prefix(payload).map_or(0, |(gap, _)| gap.reason.get());
            let missing = gap(stamp, payload);
            self.gaps.extend(missing.map(|(from, to)| Missing { port: record.port, from, to, reason }));
            return;
        }
        if record.volume.get() != self.volume {
            return;
        }
        if record.flags.get() & flags::RESYNCED != 0 {
            self.resynced.push(stamp);
        }
        if record.flags.get() & flags::RESIZED != 0 {
            if let Ok((resize, _)) = Resize::read_from_prefix(payload) {
                self.resizes.push((stamp, resize.before.get(), resize.after.get()));
            }
        }
    }

    /// Up to which stamp the moment lasts.
    fn lasts_until(&self) -> u64 {
        match self.at {
            Moment::End => u64::MAX,
            Moment::Timestamp(stamp) => stamp,
            Moment::Order(_) => self.next.map_or(u64::MAX, |next| next.saturating_sub(1)),
        }
    }

    /// Sectors of the volume at the moment, and now.
    pub fn sizes(&self, row: &VolumeRow) -> (u64, u64) {
        // A marker has no order: one stamped like the moment's last entry, or after it, still belongs to it.
        let until = match self.at {
            Moment::Order(_) => self.last.1,
            _ => self.lasts_until(),
        };
        (self.size_at(row, until), self.size_at(row, u64::MAX))
    }

    /// Sectors of the volume once everything stamped up to `stamp` had happened.
    pub fn size_at(&self, row: &VolumeRow, stamp: u64) -> u64 {
        // While there is a marker it counts, not the row, which goes ahead of those that are about to be given up.
        let behind = self.resizes.iter().find(|(at, ..)| *at > stamp);
        match (behind, self.resizes.last()) {
            (Some((_, before, _)), _) => *before,
            (None, Some((_, _, after))) => *after,
            (None, None) => row.sectors.get(),
        }
    }

    /// The same moment, if it is the end, by what can be told of a journal that goes on.
    pub fn fixed(&self, row: &VolumeRow) -> Moment {
        let (then, now) = (self.size_at(row, self.last.1), self.size_at(row, u64::MAX));
        match self.at {
            // A marker that stands behind the last entry has no order.
            Moment::End if then != now => Moment::Timestamp(self.timestamp.max(self.delivered)),
            Moment::End => Moment::Order(self.last.0),
            at => at,
        }
    }

    /// Does the moment exist?
    pub fn check_moment(&self, front: &Front) -> Result<(), Error> {
        let known = self.delivered.max(self.timestamp);
        let oldest = portions::oldest(&front.superblock);
        let (from, after) = (oldest.from_order.get().max(1), oldest.after_timestamp.get());
        let gone = |what: String| {
            Err(Error::NoMoment(format!(
                "{what}; history begins behind {} (order:{})",
                rfc3339(after),
                from - 1
            )))
        };
        match self.at {
            Moment::Order(order) if order > self.end => {
                let end = self.end;
                return Err(Error::NoMoment(format!(
                    "order:{order}; the journal's last entry is order:{end}"
                )));
            }
            Moment::Timestamp(stamp) if stamp > known => {
                let (at, known) = (self.at, rfc3339(known));
                return Err(Error::NoMoment(format!("{at}; the journal knows of nothing after {known}")));
            }
            Moment::Order(order) if order + 1 < from => return gone(format!("order:{order}")),
            Moment::Timestamp(stamp) if stamp < after => return gone(format!("{}", self.at)),
            _ => {}
        }
        if let Some((first, last)) = self.inside {
            let at = self.at;
            return Err(Error::NoMoment(format!(
                "{at} lies inside a window: order:{first} to order:{last} were merged; the moments around it are order:{} and order:{last}",
                first.saturating_sub(1)
            )));
        }
        Ok(())
    }

    /// Over a base a gap spoils what comes behind it until the volume is compared with primary; over primary it
    /// spoils what comes before.
    pub fn check_gaps(&self, backing: Backing<'_>) -> Result<(), Error> {
        let moment = match self.at {
            Moment::End => u64::MAX,
            Moment::Order(_) => self.last.1,
            Moment::Timestamp(stamp) => stamp,
        };
        let earlier = matches!(backing, Backing::Primary(_));
        let crossed = self.gaps.iter().find(|gap| match earlier {
            true if gap.reason == GapReason::WritesLost as u32 => gap.from < moment && gap.to > moment,
            true => gap.to > moment,
            false if gap.reason == GapReason::WritesLost as u32 => false,
            false => {
                let closed = |stamp: &u64| (gap.to..=self.lasts_until()).contains(stamp);
                gap.from < moment && !self.resynced.iter().any(closed)
            }
        });
        let Some(gap) = crossed else { return Ok(()) };
        let reason = match GapReason::from_word(gap.reason) {
            Ok(GapReason::Lost) => "records were lost".to_owned(),
            Ok(GapReason::UncleanStop) => "the writer stopped without ending its session".to_owned(),
            Ok(GapReason::ClockUnlocked) => "the port's clock was unlocked".to_owned(),
            Ok(GapReason::TimeJump) => "the time base jumped".to_owned(),
            Ok(GapReason::WritesLost) => "primary lost writes that had not been flushed".to_owned(),
            Err(word) => format!("reason {word}"),
        };
        Err(Error::Gap { port: gap.port, from: gap.from, to: gap.to, reason, earlier })
    }
}
