//! What late answers leave doubtful (DESIGN §3.4): between a write and its late answer nobody knows what the target had there.

use super::Gather;
use crate::error::Error;
use crate::history::part::Part;
use crate::history::{disjoint, mark, LateSpan, Write};
use crate::moment::Moment;
use crate::segment::lba;
use crate::tables::Volume;
use layout::entry::EntryHeader;
use layout::journal_file::IndexRow;
use std::collections::{HashMap, HashSet};

/// Sectors where nobody knows what the target had.
#[derive(Clone, Copy)]
pub(super) struct Doubt {
    /// Index of the volume.
    which: usize,
    span: LateSpan,
}

/// A late answer that was merged, or one to an entry that was.
pub(super) struct Answer {
    /// With the place of its entry, if it says that.
    header: EntryHeader,
    /// Arbiter and number of its entry, which may still be found.
    key: Option<(u16, u64)>,
    /// See [`LateSpan`].
    orders: (u64, u64),
}

impl Answer {
    /// One that was merged: it says all that was known.
    pub fn kept(header: &EntryHeader) -> Self {
        Self { header: *header, key: None, orders: (header.number.get(), header.sequence.get()) }
    }

    /// One in the received portion. `last`: the last order from before it.
    pub fn to_merged(header: EntryHeader, key: (u16, u64), last: u64) -> Self {
        Self { header, key: Some(key), orders: (0, last) }
    }
}

impl Gather<'_> {
    pub(super) fn late_to_earlier(&mut self, which: usize, sectors: (u64, u64), orders: (u64, u64)) {
        let span = LateSpan { sectors, orders };
        self.found[which].late.push(span);
        self.doubts.push(Doubt { which, span });
    }

    pub(super) fn late_merged_row(&mut self, row: &IndexRow, part: &Part) {
        let which = self.volumes.iter().position(|volume| volume.index == row.volume.get());
        let last = part.last_of_segment;
        let in_span = self.span.after.is_none() || self.is_behind(last, part.last_timestamp);
        if let Some(which) = which.filter(|_| in_span) {
            let order = part.first_order + u64::from(row.order.get());
            self.late_to_earlier(which, (lba(row), lba(row) + u64::from(row.sectors.get())), (order, last));
        }
    }

    /// Where the entry of a late answer may have written: indexes of volumes, and sectors. The answer may say where. If it
    /// doesn't, that can be anywhere.
    fn answered(&self, header: &EntryHeader) -> Vec<(usize, (u64, u64))> {
        let (lba, sectors) = (header.lba(), u64::from(header.sectors.get()));
        let arbiter = self.reader.arbiter(header.port);
        let extent = |volume: &Volume| match sectors {
            0 => (volume.arbiter == arbiter).then_some(ANYWHERE),
            _ => (volume.index == header.volume.get()).then_some((lba, lba + sectors)),
        };
        let volumes = self.volumes.iter().enumerate();
        volumes.filter_map(|(which, volume)| Some((which, extent(volume)?))).collect()
    }

    /// Between entry and answer nobody knows what the target had: what was written there is doubtful, and so is the moment
    /// itself, if it lies there.
    pub(super) fn doubt_what_answers_to_merged_entries_say(&mut self) -> Result<(), Error> {
        let answers = std::mem::take(&mut self.answers);
        let keys: HashSet<(u16, u64)> = answers.iter().filter_map(|answer| answer.key).collect();
        let entries = match keys.is_empty() {
            true => HashMap::new(),
            false => self.reader.unsettled_entries(&keys)?,
        };
        for Answer { mut header, key, mut orders } in answers {
            if let Some(entry) = key.and_then(|key| entries.get(&key)) {
                entry.place(&mut header);
                orders.0 = entry.order;
            }
            let (moment, last) = match self.span.after {
                None => (self.span.until, self.until.0),
                Some(after) => (after, self.after.0),
            };
            let answered = self.span.after.is_some()
                && match moment {
                    Moment::End => true,
                    // Just after that entry.
                    Moment::Order(order) => orders.1 < order,
                    Moment::Timestamp(at) => header.timestamp.get() <= at,
                };
            let written = match moment {
                Moment::Order(order) => orders.0 <= order,
                Moment::End | Moment::Timestamp(_) => orders.0 <= last,
            };
            for (which, sectors) in self.answered(&header) {
                let span = LateSpan { sectors, orders };
                self.doubts.push(Doubt { which, span });
                if written && !answered {
                    self.found[which].late.push(span);
                }
            }
        }
        Ok(())
    }

    /// The target may have executed the write at any time up to its late answer: what was written to
    /// the same place in between is doubtful too (DESIGN §3.4).
    pub(super) fn doubt_what_a_late_answer_may_have_overwritten(&mut self) {
        let mut doubts = std::mem::take(&mut self.doubts);
        for ((which, late), until) in std::mem::take(&mut self.late) {
            let original = self.found[which].writes[late];
            let sectors = (original.lba(), original.end());
            doubts.push(Doubt { which, span: LateSpan { sectors, orders: (original.order(), until) } });
        }
        for (which, found) in self.found.iter_mut().enumerate() {
            let own = doubts.iter().filter(|doubt| doubt.which == which);
            let (anywhere, placed) = own.map(|doubt| doubt.span).partition(|span| span.sectors == ANYWHERE);
            doubt_anywhere(&mut found.writes, anywhere);
            doubt(&mut found.writes, placed);
        }
    }
}

/// All sectors.
const ANYWHERE: (u64, u64) = (0, u64::MAX);

/// What was written by entries of these orders is doubtful.
fn doubt_anywhere(writes: &mut [Write], spans: Vec<LateSpan>) {
    if spans.is_empty() {
        return;
    }
    let orders =
        disjoint(spans.iter().map(|span| (span.orders.0, span.orders.1.saturating_add(1))).collect());
    for write in writes {
        let behind = orders.partition_point(|(from, _)| *from <= write.order());
        if behind.checked_sub(1).is_some_and(|last| write.order() < orders[last].1) {
            write.set(mark::DOUBTFUL);
        }
    }
}

/// What was written to the sectors by entries of the orders is doubtful.
fn doubt(writes: &mut [Write], mut spans: Vec<LateSpan>) {
    if spans.is_empty() {
        return;
    }
    spans.sort_unstable_by_key(|span| span.sectors.0);
    // Up to where any of those up to each one reaches: a target that was away leaves thousands of them.
    let reach = spans.iter().scan(0, |reach, span| {
        *reach = span.sectors.1.max(*reach);
        Some(*reach)
    });
    let reach: Vec<u64> = reach.collect();
    for write in writes {
        let begun = spans.partition_point(|span| span.sectors.0 < write.end());
        let reaching =
            (0..begun).rev().take_while(|index| reach[*index] > write.lba()).map(|index| spans[index]);
        let mut overlapping = reaching.filter(|span| span.sectors.1 > write.lba());
        if overlapping.any(|span| (span.orders.0..=span.orders.1).contains(&write.order())) {
            write.set(mark::DOUBTFUL);
        }
    }
}
