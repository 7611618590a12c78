//! The segments of the received portion in their order, and the batches in theirs.

use super::batch::{look, take_apart, Owner, Parts, Place};
use super::front::Front;
use super::history::History;
use super::seal::{self, Expected};
use super::slots::Segments;
use super::source::Source;
use super::state::State;
use super::{Finding, Report, Visit};
use crate::error::Error;
use layout::journal_file::{
    batch_flags, BatchHeader, SealHeader, SegmentHeader, BATCH_HEADER_BYTES, BLOCK_BYTES,
};
use zerocopy::FromZeros;

const BLOCK: u64 = BLOCK_BYTES as u64;

struct Checker<'a> {
    source: &'a Source<'a>,
    front: &'a Front,
    segments: Segments,
    state: State,
    history: &'a mut History,
    visit: &'a mut Visit<'a>,
    /// Sequence of the batch that comes next.
    next: u64,
    /// CRC of the batch before it; `None` after damage.
    previous_crc: Option<u32>,
    /// Digest of the segment before; `None` after damage.
    previous_digest: Option<[u8; 32]>,
    done: bool,
}

/// `segments`: those of the received portion.
pub(super) fn check<'a>(
    source: &'a Source<'a>,
    front: &'a Front,
    segments: Segments,
    history: &'a mut History,
    report: &mut Report,
    progress: &mut dyn FnMut(u64),
    visit: &'a mut Visit<'a>,
) -> Result<(), Error> {
    let mut checker = Checker {
        source,
        front,
        segments,
        state: State::default(),
        history,
        visit,
        next: 1,
        previous_crc: Some(0),
        previous_digest: Some([0; 32]),
        done: false,
    };
    let first = front.superblock.portions[0].first_sequence.get();
    if first > 1 {
        // What came before was merged away.
        checker.state.begin_in_the_middle();
        (checker.next, checker.previous_crc, checker.previous_digest) = (0, None, None);
    }
    let mut sequence = first;
    while !checker.done {
        sequence = checker.segment(sequence, report)?;
        progress(report.segments * front.segment_bytes());
    }
    checker.finish(report);
    Ok(())
}

impl Checker<'_> {
    /// Checks a segment. Returns the sequence of the one to check next.
    fn segment(&mut self, sequence: u64, report: &mut Report) -> Result<u64, Error> {
        let Some((slot, header)) = self.segments.get(&sequence).map(|s| (s.slot, s.header.clone())) else {
            return self.missing_segment(sequence, report);
        };
        let start = self.front.segment_offset(slot);
        let mut expected = match &header {
            Some((header, block)) => {
                self.segment_header(start, header, report);
                Expected::new(*header, block)
            }
            None if self.claim(sequence, start + BLOCK)?.is_none() => {
                // It was being taken into use.
                self.done = true;
                return Ok(sequence);
            }
            None => {
                report.finding(start, format!("header of segment {sequence}: damaged"));
                let mut expected = Expected::new(SegmentHeader::new_zeroed(), &[]);
                expected.incomplete = true;
                expected
            }
        };
        report.segments += 1;
        report.bytes_checked += BLOCK;
        let end = self.batches(sequence, start, &mut expected, report)?;
        if !self.done {
            self.seal(sequence, slot, header.is_some(), end, &mut expected, report)?;
        }
        Ok(sequence + 1)
    }

    fn segment_header(&mut self, offset: u64, header: &SegmentHeader, report: &mut Report) {
        let mut wrong =
            |what: String| report.finding(offset, format!("header of segment {}: {what}", header.sequence));
        if self.next == 0 {
            self.next = header.first_batch.get();
        }
        if header.first_batch.get() != self.next {
            wrong(format!("its first batch is {}, and {} comes next", header.first_batch, self.next));
        }
        if self.previous_crc.is_some_and(|crc| crc != header.previous_batch_crc.get()) {
            wrong("it doesn't follow the batch before it".into());
        }
        if self.previous_digest.is_some_and(|digest| digest != header.previous_digest) {
            wrong("it doesn't follow the seal before it".into());
        }
        if !self.state.unsure && header.first_order.get() != self.state.order + 1 {
            wrong(format!("its first order is {}, after {}", header.first_order, self.state.order));
        }
        let first = &self.front.superblock.portions[0];
        let from = first.from_order.get().max(1);
        if header.sequence == first.first_sequence && header.first_order.get() > from {
            wrong(format!(
                "its first order is {}, and those from {from} on should be there",
                header.first_order
            ));
        }
        self.previous_crc = Some(header.previous_batch_crc.get());
    }

    /// A segment isn't there: the end of the chain, or damage?
    fn missing_segment(&mut self, sequence: u64, report: &mut Report) -> Result<u64, Error> {
        let later = self.segments.range(sequence..).next().map(|(sequence, _)| *sequence);
        let Some(claim) = self.claim_beyond(sequence)? else {
            self.done = true;
            if let Some(later) = later {
                let what =
                    format!("segment {later} was being written, and segment {sequence} never got there");
                let slot = self.segments[&later].slot;
                report.torn_tail = Some(Finding { offset: self.front.segment_offset(slot), what });
            }
            return Ok(sequence);
        };
        report.finding(
            self.front.superblock.segments_offset.get(),
            format!("segment {sequence} is missing: {claim}"),
        );
        (self.next, self.previous_crc, self.previous_digest) = (0, None, None);
        self.state.unsure = true;
        // Segments before the next that is there are missing too; one finding says it.
        self.done = later.is_none();
        Ok(later.unwrap_or(sequence))
    }

    /// Checks the batches of a segment. Returns where they end, from its start.
    fn batches(
        &mut self,
        sequence: u64,
        start: u64,
        expected: &mut Expected,
        report: &mut Report,
    ) -> Result<u64, Error> {
        let limit = start + self.front.segment_bytes() - BLOCK;
        let mut at = start + BLOCK;
        loop {
            let found = match limit.checked_sub(at) {
                Some(room) if room >= BLOCK => {
                    look(&self.source.read(at, BATCH_HEADER_BYTES)?, self.owner(sequence), room)
                }
                _ => return Ok(at - start),
            };
            let fault = match found {
                Place::Header(header) if self.follows(&header) => {
                    let end = at + u64::from(header.batch_bytes.get());
                    if !self.batch(sequence, start, at, &header, expected, report)? {
                        return Ok(at - start);
                    }
                    at = end;
                    continue;
                }
                Place::Header(header) => {
                    (format!("batch {} is there and doesn't follow", header.sequence), header.sequence.get())
                }
                Place::Broken(what, claimed) => (format!("batch header: {what}"), claimed),
                Place::Other => ("no batch is there".to_owned(), 0),
            };
            match self.resume(sequence, start, at, fault, expected, report)? {
                Some(next) => at = next,
                None => return Ok(at - start),
            }
        }
    }

    /// What the batches of a segment have to belong to.
    fn owner(&self, segment: u64) -> Owner {
        let header = self.segments.get(&segment).and_then(|segment| segment.header.as_ref());
        let since = header.map_or(0, |(header, _)| header.session.get());
        Owner { journal_id: self.front.superblock.journal_id, portion: 0, segment, since }
    }

    fn follows(&self, header: &BatchHeader) -> bool {
        (self.next == 0 || header.sequence.get() == self.next)
            && self.previous_crc.is_none_or(|crc| crc == header.previous_crc.get())
    }

    /// Checks one batch whose header is intact and follows. False: it is the torn end.
    fn batch(
        &mut self,
        sequence: u64,
        start: u64,
        at: u64,
        header: &BatchHeader,
        expected: &mut Expected,
        report: &mut Report,
    ) -> Result<bool, Error> {
        let parts = take_apart(self.source, at, header)?;
        let faults = match &parts {
            Ok(parts) => parts.faults.clone(),
            Err(what) => vec![(0, what.clone())],
        };
        self.next = header.sequence.get();
        if let Some((_, what)) = faults.first() {
            if self.claim(sequence, at)?.is_none() {
                self.torn(at, format!("batch {}: {what}", header.sequence), report);
                return Ok(false);
            }
        }
        for (place, what) in &faults {
            report.finding(at + place, format!("batch {}: {what}", header.sequence));
        }
        report.batches += 1;
        report.bytes_checked += u64::from(header.batch_bytes.get());
        self.check_notes(at, header, report);
        match parts {
            Ok(parts) => self.contents(start, at, header, &parts, expected, report),
            Err(_) => {
                self.state.unsure = true;
                expected.incomplete = true;
            }
        }
        self.next = header.sequence.get() + 1;
        self.previous_crc = Some(header.prefix.crc.get());
        Ok(true)
    }

    fn contents(
        &mut self,
        start: u64,
        at: u64,
        header: &BatchHeader,
        parts: &Parts,
        expected: &mut Expected,
        report: &mut Report,
    ) {
        report.payload_bytes += parts.payload_bytes;
        if let Some(session) = &parts.start {
            report.sessions += 1;
            let unclean = session.previous_end.get() == layout::journal_file::previous_end::UNCLEAN;
            report.unclean_sessions += u64::from(unclean);
        }
        self.state.batch(at, header, parts, self.front, self.history, report);
        expected.batch(at - start, header, parts, self.front);
        (self.visit)(at, header, parts);
        if header.flags.get() & batch_flags::SESSION_END != 0 && header.descriptors.get() != 0 {
            report.finding(at, format!("batch {}: records in the end of a session", header.sequence));
        }
    }

    /// The notes have to say of a batch what it is.
    fn check_notes(&self, at: u64, header: &BatchHeader, report: &mut Report) {
        for note in self.front.notes.iter().filter(|note| note.batch == header.sequence) {
            let order = header.first_order.get() + u64::from(header.entries.get()) - 1;
            let same = note.batch_offset.get() == at
                && note.batch_crc == header.prefix.crc
                && note.order.get() == order
                && note.timestamp == header.last_timestamp
                && note.session == header.session;
            if !same {
                report
                    .finding(at, format!("batch {}: the durability note tells of another", header.sequence));
            }
        }
        report.durable_order = self.front.notes.iter().map(|note| note.order.get()).max().unwrap_or(0);
    }

    /// No batch follows at `at`: the segment's end, the journal's end, or damage. Where to go on.
    fn resume(
        &mut self,
        sequence: u64,
        start: u64,
        at: u64,
        fault: (String, u64),
        expected: &mut Expected,
        report: &mut Report,
    ) -> Result<Option<u64>, Error> {
        let slot = self.segments[&sequence].slot;
        let sealed = self.seal_of(sequence, slot)?.is_some_and(|seal| {
            start + u64::from(seal.batches_end.get()) == at
                && self.previous_crc.is_none_or(|crc| crc == seal.last_batch_crc.get())
        });
        if sealed {
            return Ok(None);
        }
        if self.next_segment_follows(sequence) && self.claim_beyond(sequence + 1)?.is_some() {
            // The batches are complete, and the seal is damaged: `seal` says so.
            return Ok(None);
        }
        let later = self.later_headers(sequence, at)?;
        let Some(claim) = self.claim(sequence, at)? else {
            // A header that is broken is of this tail only if it says so; else it is a remnant.
            if fault.1 == self.next || !later.is_empty() {
                self.torn(at, format!("batch {}: {}", self.next, fault.0), report);
            }
            self.done = true;
            return Ok(None);
        };
        report.finding(at, format!("batch {}: {}; {claim}", self.next, fault.0));
        expected.incomplete = true;
        self.state.unsure = true;
        self.previous_crc = None;
        let next = later.into_iter().find(|(_, header)| header.sequence.get() > self.next);
        self.next = next.as_ref().map_or(0, |(_, header)| header.sequence.get());
        Ok(next.map(|(offset, _)| offset))
    }

    fn torn(&mut self, offset: u64, what: String, report: &mut Report) {
        self.done = true;
        if self.front.note_damaged {
            let what = format!(
                "{what}; whether it had been reported durable can't be told, a durability note is damaged"
            );
            report.finding(offset, what);
        } else {
            report.torn_tail = Some(Finding { offset, what });
        }
    }

    fn seal_of(&self, sequence: u64, slot: u32) -> Result<Option<SealHeader>, Error> {
        let ours = |seal: &SealHeader| seal.sequence.get() == sequence && seal.portion == 0;
        Ok(seal::find(self.source, self.front, slot)?.filter(ours))
    }

    fn next_segment_follows(&self, sequence: u64) -> bool {
        let next = self.segments.get(&(sequence + 1)).and_then(|segment| segment.header.as_ref());
        next.is_some_and(|(header, _)| {
            header.first_batch.get() == self.next
                && Some(header.previous_batch_crc.get()) == self.previous_crc
        })
    }

    fn seal(
        &mut self,
        sequence: u64,
        slot: u32,
        header_intact: bool,
        end: u64,
        expected: &mut Expected,
        report: &mut Report,
    ) -> Result<(), Error> {
        let place = self.front.segment_offset(slot) + self.front.segment_bytes() - BLOCK;
        match self.seal_of(sequence, slot)? {
            Some(seal) if self.is_half_written(&seal, sequence)? => {
                self.torn(place, format!("seal of segment {sequence}: its index is not there yet"), report);
            }
            Some(seal) => {
                report.sealed += 1;
                let end = if expected.incomplete { u64::from(seal.batches_end.get()) } else { end };
                if header_intact {
                    seal::check(self.source, self.front, &seal, expected, end, report)?;
                }
                if self.next == 0 {
                    self.next = seal.first_batch.get().saturating_add(seal.batches.get());
                    self.previous_crc = Some(seal.last_batch_crc.get());
                }
                self.previous_digest = Some(seal.digest);
            }
            // The last segment is not sealed yet.
            None if expected.incomplete && self.segments.range(sequence + 1..).next().is_none() => {
                self.done = true
            }
            None if !expected.incomplete && self.claim_beyond(sequence + 1)?.is_none() => self.done = true,
            None => {
                report.finding(place, format!("seal of segment {sequence}: damaged or missing"));
                self.previous_digest = None;
            }
        }
        Ok(())
    }

    /// Did the seal's block reach the disk without what lies before it, with nothing durable behind?
    fn is_half_written(&self, seal: &SealHeader, sequence: u64) -> Result<bool, Error> {
        if self.next == 0 || self.claim_beyond(sequence + 1)?.is_some() {
            return Ok(false);
        }
        Ok(!seal::is_whole(self.source, self.front, seal)?)
    }

    /// Intact headers of this segment from `at` on that could be of the chain.
    fn later_headers(&self, sequence: u64, at: u64) -> Result<Vec<(u64, BatchHeader)>, Error> {
        let slot = self.segments[&sequence].slot;
        let limit = self.front.segment_offset(slot) + self.front.segment_bytes() - BLOCK;
        let owner = self.owner(sequence);
        let mut found = Vec::new();
        let mut chunk = at;
        while chunk < limit {
            let length = (limit - chunk).min(1 << 20);
            let bytes = self.source.read(chunk, length as usize)?;
            for (index, block) in bytes.chunks(BLOCK_BYTES).enumerate() {
                let offset = chunk + index as u64 * BLOCK;
                let place = look(block, owner, limit - offset);
                if let Place::Header(header) = place {
                    if header.sequence.get() >= self.next {
                        found.push((offset, *header));
                    }
                }
            }
            chunk += length;
        }
        Ok(found)
    }

    /// Who says that the batch which comes next, missing at `at`, was durable?
    fn claim(&self, sequence: u64, at: u64) -> Result<Option<String>, Error> {
        let durable = self.front.durable_batch();
        if durable >= self.next {
            return Ok(Some(format!("batch {durable} had been reported durable")));
        }
        for (offset, header) in self.later_headers(sequence, at)? {
            if header.durable_up_to.get() >= self.next {
                let (batch, known) = (header.sequence, header.durable_up_to);
                return Ok(Some(format!(
                    "batch {batch} at offset {offset} knows batch {known} to be durable"
                )));
            }
        }
        self.claim_beyond(sequence + 1)
    }

    /// The same, asked of the segments from `sequence` on and the notes.
    fn claim_beyond(&self, sequence: u64) -> Result<Option<String>, Error> {
        let durable = self.front.durable_batch();
        if durable >= self.next {
            return Ok(Some(format!("batch {durable} had been reported durable")));
        }
        for (sequence, segment) in self.segments.range(sequence..) {
            let known = segment.header.as_ref().map_or(0, |(header, _)| header.durable_up_to.get());
            if known >= self.next {
                return Ok(Some(format!("segment {sequence} knows batch {known} to be durable")));
            }
            for (_, header) in
                self.later_headers(*sequence, self.front.segment_offset(segment.slot) + BLOCK)?
            {
                if header.durable_up_to.get() >= self.next {
                    let known = header.durable_up_to;
                    return Ok(Some(format!("batch {} knows batch {known} to be durable", header.sequence)));
                }
            }
        }
        Ok(None)
    }

    fn finish(&mut self, report: &mut Report) {
        report.order = self.state.order;
        report.first_order = self.front.superblock.portions[0].from_order.get().max(1);
        report.pending = self.state.pending(self.front);
        report.ended = self.state.ended();
    }
}
