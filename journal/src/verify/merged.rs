//! A merged portion: its segments, all of which are there and sealed, and their batches.

use super::batch::{look, take_apart, Owner, Parts, Place};
use super::front::Front;
use super::history::History;
use super::seal::{self, Expected};
use super::slots::{Segment, Segments};
use super::source::Source;
use super::window::{Ends, Windows};
use super::{Report, Visit};
use crate::error::Error;
use layout::journal_file::{
    BatchHeader, Portion, SealHeader, SegmentHeader, BATCH_HEADER_BYTES, BLOCK_BYTES,
};
use zerocopy::FromZeros;

const BLOCK: u64 = BLOCK_BYTES as u64;

struct Checker<'a> {
    source: &'a Source<'a>,
    front: &'a Front,
    index: usize,
    portion: Portion,
    windows: Windows,
    history: &'a mut History,
    visit: &'a mut Visit<'a>,
    /// Sequence of the batch that comes next; `None`: not known.
    next: Option<u64>,
    /// CRC of the batch before it; `None`: not known.
    previous_crc: Option<u32>,
    /// Digest of the segment before; `None`: not known.
    previous_digest: Option<[u8; 32]>,
}

/// Checks the portion of that index, whose segments are given.
#[allow(clippy::too_many_arguments)]
pub(super) fn check<'a>(
    source: &'a Source<'a>,
    front: &'a Front,
    index: usize,
    segments: &Segments,
    history: &'a mut History,
    report: &mut Report,
    progress: &mut dyn FnMut(u64),
    visit: &'a mut Visit<'a>,
) -> Result<(), Error> {
    let Some(portion) = front.superblock.portions.get(index).copied() else { return Ok(()) };
    let (first, end) = (portion.first_sequence.get(), portion.end_sequence.get());
    // What came before the first was given up.
    let begins = first == 1;
    let mut checker = Checker {
        source,
        front,
        index,
        portion,
        windows: Windows::new(index, portion),
        history,
        visit,
        next: begins.then_some(1),
        previous_crc: begins.then_some(0),
        previous_digest: begins.then_some([0; 32]),
    };
    for sequence in first..end {
        match segments.get(&sequence) {
            Some(segment) => checker.segment(sequence, segment, report)?,
            None => {
                let what = format!("segment {sequence} of portion {index} is missing");
                report.finding(front.superblock.segments_offset.get(), what);
                checker.lose();
                checker.previous_digest = None;
            }
        }
        progress(report.segments * front.segment_bytes());
    }
    let Checker { windows, history, .. } = checker;
    history.reached(windows.reach);
    Ok(())
}

impl Checker<'_> {
    fn lose(&mut self) {
        self.windows.lose();
        (self.next, self.previous_crc) = (None, None);
    }

    fn segment(&mut self, sequence: u64, segment: &Segment, report: &mut Report) -> Result<(), Error> {
        let start = self.front.segment_offset(segment.slot);
        let place = start + self.front.segment_bytes() - BLOCK;
        let seal = self.seal_of(sequence, segment.slot)?;
        report.segments += 1;
        report.bytes_checked += BLOCK;
        let mut expected = match &segment.header {
            Some((header, block)) => {
                self.header(start, header, report);
                Expected::new(*header, block)
            }
            None => {
                let what = format!("header of segment {sequence} of portion {}: damaged", self.index);
                report.finding(start, what);
                // The batches tell where they belong.
                self.lose();
                let mut expected = Expected::new(SegmentHeader::new_zeroed(), &[]);
                expected.incomplete = true;
                expected
            }
        };
        let then = match &seal {
            Some(seal) => seal::tables_copy(self.source, self.front, seal)?,
            None => None,
        };
        let ends = Ends::new(self.index, &self.portion, &self.front.tables, then.as_ref());
        let end = self.batches(sequence, segment, seal.as_ref(), &ends, &mut expected, report)?;
        match seal {
            Some(seal) => {
                report.sealed += 1;
                let end = if expected.incomplete { u64::from(seal.batches_end.get()) } else { end };
                if segment.header.is_some() {
                    seal::check(self.source, self.front, &seal, &mut expected, end, report)?;
                }
                self.next = Some(seal.first_batch.get().saturating_add(seal.batches.get()));
                self.previous_crc = Some(seal.last_batch_crc.get());
                self.previous_digest = Some(seal.digest);
            }
            None => {
                let index = self.index;
                report.finding(
                    place,
                    format!("seal of segment {sequence} of portion {index}: damaged or missing"),
                );
                self.previous_digest = None;
            }
        }
        Ok(())
    }

    fn seal_of(&self, sequence: u64, slot: u32) -> Result<Option<SealHeader>, Error> {
        let index = self.index;
        let ours = |seal: &SealHeader| seal.sequence.get() == sequence && usize::from(seal.portion) == index;
        Ok(seal::find(self.source, self.front, slot)?.filter(ours))
    }

    fn header(&mut self, offset: u64, header: &SegmentHeader, report: &mut Report) {
        let first = header.first_batch.get();
        let rules = [
            (self.next.is_none_or(|next| next == first), "its first batch is not the one that comes next"),
            (
                self.previous_crc.is_none_or(|crc| crc == header.previous_batch_crc.get()),
                "it doesn't follow the batch before it",
            ),
            (
                self.previous_digest.is_none_or(|digest| digest == header.previous_digest),
                "it doesn't follow the seal before it",
            ),
            (
                first > 0 && header.durable_up_to.get() < first,
                "it knows batches to be durable that came later",
            ),
            (header.session.get() <= self.front.superblock.session.get(), "its session never was"),
        ];
        for (_, what) in rules.iter().filter(|(holds, _)| !holds) {
            let (sequence, index) = (header.sequence, self.index);
            report.finding(offset, format!("header of segment {sequence} of portion {index}: {what}"));
        }
        self.next = Some(first);
        self.previous_crc = Some(header.previous_batch_crc.get());
    }

    /// Checks the batches of a segment. Returns where they end, from its start.
    fn batches(
        &mut self,
        sequence: u64,
        segment: &Segment,
        seal: Option<&SealHeader>,
        ends: &Ends,
        expected: &mut Expected,
        report: &mut Report,
    ) -> Result<u64, Error> {
        let start = self.front.segment_offset(segment.slot);
        let limit = start + self.front.segment_bytes() - BLOCK;
        let owner = Owner {
            journal_id: self.front.superblock.journal_id,
            portion: self.index as u8,
            segment: sequence,
            since: segment.header.as_ref().map_or(0, |(header, _)| header.session.get()),
        };
        let mut at = start + BLOCK;
        let mut first = true;
        loop {
            if seal.is_some_and(|seal| start + u64::from(seal.batches_end.get()) == at) || at + BLOCK > limit
            {
                return Ok(at - start);
            }
            let fault = match look(&self.source.read(at, BATCH_HEADER_BYTES)?, owner, limit - at) {
                Place::Header(header) if self.follows(&header) => {
                    if let Some((known, _)) = segment.header.as_ref().filter(|_| first) {
                        if known.first_order != header.first_order {
                            let (named, known) = (header.first_order, known.first_order);
                            let what = format!("header of segment {sequence} of portion {}: it names order {known}, and its first batch {named}", self.index);
                            report.finding(start, what);
                        }
                    }
                    first = false;
                    self.batch(start, at, &header, ends, expected, report)?;
                    at += u64::from(header.batch_bytes.get());
                    continue;
                }
                Place::Header(header) => format!("batch {} is there and doesn't follow", header.sequence),
                Place::Broken(what, _) => format!("batch header: {what}"),
                // Without a seal nothing says that there should be another.
                Place::Other if seal.is_none() => return Ok(at - start),
                Place::Other => "no batch is there".to_owned(),
            };
            let index = self.index;
            report.finding(at, format!("segment {sequence} of portion {index}: {fault}"));
            first = false;
            expected.incomplete = true;
            self.lose();
            match self.later(at + BLOCK, limit, owner)? {
                Some(later) => at = later,
                None => return Ok(at - start),
            }
        }
    }

    fn follows(&self, header: &BatchHeader) -> bool {
        self.next.is_none_or(|next| header.sequence.get() == next)
            && self.previous_crc.is_none_or(|crc| crc == header.previous_crc.get())
    }

    /// The next place from `at` on where an intact header of the segment stands.
    fn later(&self, at: u64, limit: u64, owner: Owner) -> Result<Option<u64>, Error> {
        let mut at = at;
        while at + BLOCK <= limit {
            if let Place::Header(_) = look(&self.source.read(at, BATCH_HEADER_BYTES)?, owner, limit - at) {
                return Ok(Some(at));
            }
            at += BLOCK;
        }
        Ok(None)
    }

    fn batch(
        &mut self,
        start: u64,
        at: u64,
        header: &BatchHeader,
        ends: &Ends,
        expected: &mut Expected,
        report: &mut Report,
    ) -> Result<(), Error> {
        report.batches += 1;
        report.bytes_checked += u64::from(header.batch_bytes.get());
        let named = format!("batch {} of portion {}", header.sequence, self.index);
        match take_apart(self.source, at, header)? {
            Ok(parts) => self.contents(start, at, header, &parts, ends, expected, report),
            Err(what) => {
                report.finding(at, format!("{named}: {what}"));
                expected.incomplete = true;
                self.windows.lose();
            }
        }
        self.next = Some(header.sequence.get() + 1);
        self.previous_crc = Some(header.prefix.crc.get());
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn contents(
        &mut self,
        start: u64,
        at: u64,
        header: &BatchHeader,
        parts: &Parts,
        ends: &Ends,
        expected: &mut Expected,
        report: &mut Report,
    ) {
        for (place, what) in &parts.faults {
            report
                .finding(at + place, format!("batch {} of portion {}: {what}", header.sequence, self.index));
        }
        report.payload_bytes += parts.payload_bytes;
        self.windows.batch(at, header, parts, ends, self.front, self.history, report);
        expected.batch(at - start, header, parts, self.front);
        (self.visit)(at, header, parts);
    }
}
