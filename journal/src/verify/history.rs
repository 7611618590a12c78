//! What has to hold across portions: each reaches up to where the next finer one begins, orders go on,
//! volumes have the size that they were given last, and no window calls complete what a gap is in.

use super::front::Front;
use super::{portions, Report};
use layout::entry::{flags, EntryHeader, Gap, GapReason, Kind, Resize};
use layout::journal_file::{SUPERBLOCK_OFFSETS, TABLES_OFFSET};
use std::collections::BTreeMap;
use zerocopy::FromBytes;

/// A gap that makes sense: the stamps behind which, and up to which, entries are missing.
pub(super) fn gap(stamp: u64, payload: &[u8]) -> Option<(u64, u64)> {
    let (gap, rest) = Gap::read_from_prefix(payload).ok()?;
    let sound = rest.is_empty()
        && gap.from_timestamp.get() <= stamp
        && GapReason::from_word(gap.reason.get()).is_ok()
        && gap.reserved.get() == 0;
    sound.then_some((gap.from_timestamp.get(), stamp))
}

/// Time for which windows say that a port's entries are complete.
struct Complete {
    begin: u64,
    end: u64,
    /// Where the first of these windows says so.
    offset: u64,
}

/// What a merged portion turned out to hold, of what still is part of it.
#[derive(Default)]
pub(super) struct Reach {
    pub index: usize,
    /// First and last order.
    pub orders: Option<(u64, u64)>,
    /// Largest stamp.
    pub timestamp: u64,
    /// Something of it can't be read.
    pub damaged: bool,
}

/// Gathered from the oldest portion to the received one.
#[derive(Default)]
pub(super) struct History {
    gaps: BTreeMap<u8, Vec<(u64, u64)>>,
    /// By port, rising. What is adjacent is one.
    complete: BTreeMap<u8, Vec<Complete>>,
    /// Every size of the volumes that were resized, the first one first.
    sizes: BTreeMap<u16, Vec<u64>>,
    reaches: Vec<Reach>,
}

impl History {
    /// A record of the received portion. `order`: of the last entry, itself included. What is wrong with it.
    pub fn received(
        &mut self,
        record: &EntryHeader,
        kind: Kind,
        payload: &[u8],
        order: u64,
        front: &Front,
        report: &mut Report,
    ) -> Vec<String> {
        let portion = &front.superblock.portions[0];
        let stamp = record.timestamp.get();
        let merged = stamp <= portion.after_timestamp.get();
        match kind {
            Kind::After | Kind::Before | Kind::Both | Kind::Resync => {
                let (from, after) = (portion.from_order.get(), portion.after_timestamp.get());
                report.entries += u64::from(order >= from);
                if merged != (order < from) {
                    return vec![format!(
                        "order:{order} is stamped {stamp}: the portion has the entries from order:{from} on, and those behind {after}"
                    )];
                }
            }
            Kind::Gap | Kind::Marker if !merged => return self.outside(record, kind, payload, report),
            _ => {}
        }
        Vec::new()
    }

    /// A gap or marker that is part of a portion. What is wrong with it.
    pub fn outside(
        &mut self,
        record: &EntryHeader,
        kind: Kind,
        payload: &[u8],
        report: &mut Report,
    ) -> Vec<String> {
        if kind == Kind::Gap {
            report.gaps += 1;
            // That it makes sense is checked with the other rules of its portion. An empty one misses nothing.
            let missing = gap(record.timestamp.get(), payload).filter(|(from, to)| from < to);
            self.gaps.entry(record.port).or_default().extend(missing);
            return Vec::new();
        }
        if kind == Kind::Completion {
            report.completions += 1;
            return Vec::new();
        }
        report.markers += 1;
        if record.flags.get() & flags::RESIZED == 0 {
            return Vec::new();
        }
        let Ok((resize, _)) = Resize::read_from_prefix(payload) else { return Vec::new() };
        let (volume, before, after) = (record.volume.get(), resize.before.get(), resize.after.get());
        let sizes = self.sizes.entry(volume).or_default();
        // The first of them is held against the row once all are known.
        let fits = sizes.last().is_none_or(|known| *known == before);
        if sizes.is_empty() {
            sizes.push(before);
        }
        sizes.push(after);
        match fits {
            true => Vec::new(),
            false => vec![format!("volume {volume} is resized from {before} sectors, which it never had")],
        }
    }

    /// The row says what the volume has where history begins. It goes ahead of markers that are about to be given up.
    fn rows(&self, front: &Front, report: &mut Report) {
        for (volume, sizes) in &self.sizes {
            let row = front.tables.volumes.get(volume).map(|row| row.sectors.get());
            if row.is_none_or(|row| !sizes.contains(&row)) {
                let before = sizes.first().copied().unwrap_or_default();
                let what = format!("volume {volume} is resized from {before} sectors, which it never had");
                report.finding(TABLES_OFFSET, format!("tables: {what}"));
            }
        }
    }

    /// A window whose entries of `port` are said to be complete.
    pub fn complete(&mut self, port: u8, begin: u64, end: u64, offset: u64) {
        let spans = self.complete.entry(port).or_default();
        match spans.last_mut() {
            Some(last) if last.end == begin => last.end = end,
            _ => spans.push(Complete { begin, end, offset }),
        }
    }

    /// A merged portion has been read.
    pub fn reached(&mut self, reach: Reach) {
        self.reaches.push(reach);
    }

    /// What has to hold once everything has been read.
    pub fn finish(&self, front: &Front, report: &mut Report) {
        self.rows(front, report);
        for (port, gaps) in &self.gaps {
            let spans = self.complete.get(port).map_or(&[][..], Vec::as_slice);
            for (from, to) in gaps {
                let first = spans.partition_point(|span| span.end <= *from);
                if let Some(span) = spans.get(first).filter(|span| span.begin < *to) {
                    report.finding(
                        span.offset,
                        format!("a window says that port {port} is complete, and a gap of it from {from} to {to} touches it"),
                    );
                }
            }
        }
        let merged = portions::merged_oldest_first(&front.superblock);
        for (place, reach) in self.reaches.iter().enumerate() {
            let finer = merged.get(place + 1).map_or(0, |(index, _)| *index);
            self.fits(reach, finer, front, report);
        }
    }

    /// Does a portion reach up to where the next finer one begins?
    fn fits(&self, reach: &Reach, finer: usize, front: &Front, report: &mut Report) {
        let (Some(own), Some(next)) =
            (front.superblock.portions.get(reach.index), front.superblock.portions.get(finer))
        else {
            return;
        };
        if reach.damaged {
            return;
        }
        let index = reach.index;
        let mut wrong = |what: String| {
            report.finding(SUPERBLOCK_OFFSETS[0], format!("superblock: portion {index}: {what}"));
        };
        if reach.timestamp > next.after_timestamp.get() {
            wrong(format!(
                "it reaches up to {}, and portion {finer} begins behind {}",
                reach.timestamp, next.after_timestamp
            ));
        }
        let from = next.from_order.get();
        match reach.orders {
            Some((first, last)) => {
                if last.checked_add(1) != Some(from) {
                    wrong(format!("its last order is {last}, and portion {finer} begins with order {from}"));
                }
                if first != own.from_order.get() {
                    wrong(format!("its first order is {first}, and its row says {}", own.from_order));
                }
            }
            None if own.from_order.get().max(1) != from.max(1) => {
                wrong(format!(
                    "it has no window from order {} on, and portion {finer} begins with order {from}",
                    own.from_order
                ));
            }
            None => {}
        }
    }
}
