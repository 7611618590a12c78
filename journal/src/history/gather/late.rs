//! What late answers leave doubtful (DESIGN §3.4): between a write and its late answer nobody knows what the target had there.

use super::Gather;
use crate::error::Error;
use crate::history::part::Part;
use crate::history::{mark, Write};
use crate::moment::Moment;
use crate::payloads::Payloads;
use crate::segment::lba;
use crate::tables::Volume;
use layout::entry::EntryHeader;
use layout::journal_file::{IndexRow, NoteRow};

/// Sectors where nobody knows what the target had.
#[derive(Clone, Copy)]
pub(super) struct Doubt {
    /// Index of the volume.
    pub which: usize,
    pub sectors: (u64, u64),
    /// From which entry, zero if nobody knows any more, to which: the last one from before the late answer.
    pub orders: (u64, u64),
}

/// A late answer that has been merged: what it leaves doubtful, and its stamp.
pub(super) struct Kept {
    doubt: Doubt,
    stamp: u64,
}

impl Gather<'_> {
    pub(super) fn late_merged_row(&mut self, row: &IndexRow, part: &Part) {
        let which = self.volumes.iter().position(|volume| volume.index == row.volume.get());
        let last = part.last_of_segment;
        let in_span = self.span.after.is_none() || self.is_behind(last, part.last_timestamp);
        if let Some(which) = which.filter(|_| in_span) {
            let sectors = (lba(row), lba(row) + u64::from(row.sectors.get()));
            self.found[which].late.push(sectors);
            self.late_to_earlier.push(Doubt { which, sectors, orders: (0, last) });
        }
    }

    /// A late answer to an entry that may have been merged away, with its number.
    pub(super) fn late_to_merged(
        &mut self,
        note: &NoteRow,
        part: &Part,
        payloads: &Payloads,
        last: u64,
    ) -> Result<(), Error> {
        if self.span.after.is_some() && !self.is_behind(last, note.timestamp.get()) {
            return Ok(());
        }
        let header = payloads.record(part.slot, u64::from(note.descriptor.get()))?.header;
        for (which, sectors) in self.answered(&header) {
            self.late_to_earlier.push(Doubt { which, sectors, orders: (0, last) });
            self.found[which].late.push(sectors);
        }
        Ok(())
    }

    /// Where the entry of a late answer may have written: indexes of volumes, and sectors. The answer may say where. If it
    /// doesn't, that can be anywhere.
    pub(super) fn answered(&self, header: &EntryHeader) -> Vec<(usize, (u64, u64))> {
        let (lba, sectors) = (header.lba(), u64::from(header.sectors.get()));
        let arbiter = self.reader.arbiter(header.port);
        let extent = |volume: &Volume| match sectors {
            0 => (volume.arbiter == arbiter).then_some((0, u64::MAX)),
            _ => (volume.index == header.volume.get()).then_some((lba, lba + sectors)),
        };
        let volumes = self.volumes.iter().enumerate();
        volumes.filter_map(|(which, volume)| Some((which, extent(volume)?))).collect()
    }

    /// A late answer that was merged: it says where its entry wrote, and which orders lie between the two.
    pub(super) fn late_kept(
        &mut self,
        note: &NoteRow,
        part: &Part,
        payloads: &Payloads,
    ) -> Result<(), Error> {
        let header = payloads.record(part.slot, u64::from(note.descriptor.get()))?.header;
        let (orders, stamp) = ((header.number.get(), header.sequence.get()), note.timestamp.get());
        let answered = self.answered(&header).into_iter();
        self.kept
            .extend(answered.map(|(which, sectors)| Kept { doubt: Doubt { which, sectors, orders }, stamp }));
        Ok(())
    }

    /// Between entry and answer nobody knows what the target had: what was written there is doubtful, and so is the moment
    /// itself, if it lies there.
    pub(super) fn doubt_what_merged_answers_say(&mut self) {
        for Kept { doubt, stamp } in std::mem::take(&mut self.kept) {
            self.late_to_earlier.push(doubt);
            let Doubt { which, sectors, orders } = doubt;
            let (moment, last) = match self.span.after {
                None => (self.span.until, self.until.0),
                Some(after) => (after, self.after.0),
            };
            let answered = self.span.after.is_some()
                && match moment {
                    Moment::End => true,
                    // Just after that entry.
                    Moment::Order(order) => orders.1 < order,
                    Moment::Timestamp(at) => stamp <= at,
                };
            let written = match moment {
                Moment::Order(order) => orders.0 <= order,
                Moment::End | Moment::Timestamp(_) => orders.0 <= last,
            };
            if written && !answered {
                self.found[which].late.push(sectors);
            }
        }
    }

    /// The target may have executed the write at any time up to its late answer: what was written to
    /// the same place in between is doubtful too (DESIGN §3.4).
    pub(super) fn doubt_what_a_late_answer_may_have_overwritten(&mut self) {
        let mut doubts = std::mem::take(&mut self.late_to_earlier);
        for ((which, late), until) in std::mem::take(&mut self.late) {
            let original = self.found[which].writes[late];
            let sectors = (original.lba(), original.end());
            doubts.push(Doubt { which, sectors, orders: (original.order(), until) });
        }
        for (which, found) in self.found.iter_mut().enumerate() {
            let own = doubts.iter().filter(|doubt| doubt.which == which).copied().collect();
            doubt(&mut found.writes, own);
        }
    }
}

/// What was written to the sectors of a doubt by entries of its orders is doubtful.
fn doubt(writes: &mut [Write], mut doubts: Vec<Doubt>) {
    if doubts.is_empty() {
        return;
    }
    doubts.sort_unstable_by_key(|doubt| doubt.sectors.0);
    // Up to where any of the doubts up to each one reaches: a target that was away leaves thousands of them.
    let reach = doubts.iter().scan(0, |reach, doubt| {
        *reach = doubt.sectors.1.max(*reach);
        Some(*reach)
    });
    let reach: Vec<u64> = reach.collect();
    for write in writes {
        let begun = doubts.partition_point(|doubt| doubt.sectors.0 < write.end());
        let reaching =
            (0..begun).rev().take_while(|index| reach[*index] > write.lba()).map(|index| doubts[index]);
        let mut overlapping = reaching.filter(|doubt| doubt.sectors.1 > write.lba());
        if overlapping.any(|doubt| (doubt.orders.0..=doubt.orders.1).contains(&write.order())) {
            write.set(mark::DOUBTFUL);
        }
    }
}
