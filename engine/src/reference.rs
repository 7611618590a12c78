//! What the card must have done: its ring records and forwarded frames, derived from what came in.
//!
//! Some of what a card does is its own choice: which port is served first, when a write is admitted,
//! in which slot, with which stamp. [`Trace`] holds these choices (they stand in the headers that the
//! card wrote) beside everything that entered the card. [`expected`] takes only the choices from the
//! card's records and makes everything else anew from the frames, so that a comparison bit for bit
//! proves all the rest; choices that break a rule are a [`Mismatch`].
//!
//! The uplink's log is in wire order, which decides what was unanswered when: a write that leaves
//! while an overlapping one has no answer *on the wire* breaks the interlock, whatever the card thinks.
//! When a quarantine ended is not in the trace; that a status had been declared unknown before is, and
//! only then may a location be written again. A gap tells of late answers that found no room; it is taken
//! as it stands, but for its place and number.
//!
//! Copies may share their original's slot (DESIGN §3, invariant 7) or have slots of their own. What a
//! location held before a write is what the target answered to the card's own read, which stands in the
//! uplink's log; before a copy it held the write itself. A port's entries are forwarded in their order.

use crate::answer::Answer;
use crate::entry::{self, Admitted, Commit, CLOCK_FLAGS};
use crate::frame::{classify, Decision, PortRules, Write};
use crate::switch::before_read::{self, Tag};
use crate::switch::Images;
use layout::aoe;
use layout::entry::{flags, EntryHeader, ErrorBound, Gap, GapReason, Kind, Updated, HEADER_BYTES, NO_INDEX};
use layout::registers::{Counter, SOURCES};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use zerocopy::FromBytes;

/// A frame at the uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Uplink {
    /// Left the card towards the target.
    Forwarded(Vec<u8>),
    /// Came from the target.
    Answer(Vec<u8>),
}

/// What entered a card, what it chose, and what it wrote.
#[derive(Clone, Copy, Debug)]
pub struct Trace<'a> {
    /// What each port goes by; the same all the time.
    pub rules: &'a [PortRules],
    /// By volume: what is journaled of its writes; those that have no place here are after-image.
    pub images: &'a [Images],
    /// Floor of the numbers as set at bring-up.
    pub number_floor: u64,
    /// Floor of the stamps as set at bring-up.
    pub stamp_floor: u64,
    /// By port: the frames that sources sent, in order.
    pub frames: &'a [Vec<Vec<u8>>],
    /// The uplink in wire order.
    pub uplink: &'a [Uplink],
    /// By port: the records of its ring, header, payload and padding, in order.
    pub records: &'a [Vec<Vec<u8>>],
}

/// What a card with that trace must have written and counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// By port: the records of its ring.
    pub records: Vec<Vec<Vec<u8>>>,
    /// By port: frames by what [`classify`] says of them (admission isn't its to say).
    pub counters: Vec<BTreeMap<Counter, u64>>,
    /// By port: writes of `frames` that never left by the uplink: held too long, dropped for want of
    /// room, or copies whose answer was still held.
    pub unadmitted: Vec<usize>,
    /// By port: frames of `frames` that pass, but never left by the uplink.
    pub unpassed: Vec<usize>,
}

/// Where the card and the rules part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// A trace that isn't one: it lacks a port, or a record has no header.
    #[error("the trace is malformed: {0}")]
    Trace(String),
    /// A frame left by the uplink that is none of those that entered, or left twice, or should have
    /// been dropped.
    #[error("uplink frame {index}: {reason}")]
    Forwarded {
        /// Index in [`Trace::uplink`].
        index: usize,
        /// What is wrong.
        reason: String,
    },
    /// A record that no rule allows at its place.
    #[error("port {port}, record {index} ({kind}): {reason}")]
    Record {
        /// Port.
        port: usize,
        /// Index among the port's records.
        index: usize,
        /// Name of its kind.
        kind: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// A write that left by the uplink.
struct Forwarded {
    port: usize,
    frame: usize,
    uplink: usize,
    write: Write,
    /// An equal write of the port had no answer on the wire when this one left.
    copy: bool,
    /// Number of its entry.
    number: Option<u64>,
    /// What its location held before, as the card read it.
    before: Option<Vec<u8>>,
    slot: u8,
    completions: usize,
}

/// A read of old data that left, and what came back.
struct OwnRead {
    tag: Tag,
    write: Write,
    data: Option<Vec<u8>>,
    /// Something that overlaps was forwarded since.
    stale: bool,
}

impl Forwarded {
    fn is_answered_by(&self, answer: &Answer) -> bool {
        let write = &self.write;
        (answer.destination, answer.shelf, answer.slot, answer.tag)
            == (write.source, write.shelf, write.slot, write.tag)
            && answer.lba & write.lba_mask == write.lba
    }

    /// The rule by which a copy is recognised (DESIGN §3, invariant 7).
    fn is_copied_by(&self, port: usize, other: &Write) -> bool {
        self.port == port && self.write.equals(other)
    }
}

/// A frame of a port that may leave by the uplink.
struct Candidate {
    frame: usize,
    write: Option<Write>,
}

/// The target's answers, each with its index in [`Trace::uplink`].
type Answers = Vec<(usize, Answer)>;

/// Most unanswered copies of one write, itself included (DESIGN §3, invariant 7).
const COPIES: usize = 4;

/// Everything that a card with `trace` must have written, or the first place where what it did can't
/// be right. Whether the records are those of the trace is the caller's to compare, or [`check`]'s.
pub fn expected(trace: &Trace<'_>) -> Result<Expected, Mismatch> {
    let ports = trace.rules.len();
    if trace.frames.len() != ports || trace.records.len() != ports {
        return Err(Mismatch::Trace(format!("{ports} ports have rules, frames or records are of others")));
    }
    let mut result = Expected { records: vec![Vec::new(); ports], ..Expected::default() };
    let mut candidates = sort_frames(trace, &mut result);
    let (forwarded, answers) = follow_uplink(trace, &mut candidates)?;
    for port in candidates {
        result.unadmitted.push(port.iter().filter(|c| c.write.is_some()).count());
        result.unpassed.push(port.iter().filter(|c| c.write.is_none()).count());
    }
    Records::new(trace, forwarded, answers).make(&mut result)?;
    Ok(result)
}

/// [`expected`], and that the card's records are those, bit for bit.
pub fn check(trace: &Trace<'_>) -> Result<Expected, Mismatch> {
    let result = expected(trace)?;
    for (port, (card, model)) in trace.records.iter().zip(&result.records).enumerate() {
        for (index, (card, model)) in card.iter().zip(model).enumerate() {
            if card == model {
                continue;
            }
            let at = card.iter().zip(model).position(|(c, m)| c != m).unwrap_or(card.len().min(model.len()));
            let kind = header_of(model).map_or("no header", |h| kind_name(&h));
            let reason = format!("byte {at} is {:02x?}, expected {:02x?}", card.get(at), model.get(at));
            return Err(Mismatch::Record { port, index, kind, reason });
        }
    }
    Ok(result)
}

/// The frames that may leave by the uplink, by port; the others are counted.
fn sort_frames(trace: &Trace<'_>, result: &mut Expected) -> Vec<VecDeque<Candidate>> {
    let mut all = Vec::new();
    for (frames, rules) in trace.frames.iter().zip(trace.rules) {
        let mut counters = BTreeMap::new();
        let mut candidates = VecDeque::new();
        for (frame, bytes) in frames.iter().enumerate() {
            match classify(bytes, rules) {
                Decision::Pass => {
                    *counters.entry(Counter::Passed).or_default() += 1;
                    candidates.push_back(Candidate { frame, write: None });
                }
                Decision::Write(write) => candidates.push_back(Candidate { frame, write: Some(write) }),
                Decision::Drop(counter) => *counters.entry(counter).or_default() += 1,
            }
        }
        result.counters.push(counters);
        all.push(candidates);
    }
    all
}

/// Matches what left with what entered, each frame once, and holds the interlock against the wire.
/// Takes what left out of `candidates`; returns the writes in order, and the answers.
fn follow_uplink(
    trace: &Trace<'_>,
    candidates: &mut [VecDeque<Candidate>],
) -> Result<(Vec<Forwarded>, Answers), Mismatch> {
    let mut writes: Vec<Forwarded> = Vec::new();
    let mut unanswered: Vec<usize> = Vec::new();
    let mut entries = entries_by_port(trace);
    let mut reads: Vec<OwnRead> = Vec::new();
    let expiry = Expiry::new(trace);
    let mut answers = Vec::new();
    for (index, event) in trace.uplink.iter().enumerate() {
        let wrong = |reason: String| Mismatch::Forwarded { index, reason };
        let bytes = match event {
            Uplink::Forwarded(bytes) => bytes,
            Uplink::Answer(bytes) => {
                let Some(answer) = Answer::decode(bytes) else { continue };
                if let Some(tag) = Tag::decode(answer.tag) {
                    let asked = reads.iter_mut().find(|read| read.tag == tag && read.data.is_none());
                    if let Some(read) = asked {
                        read.data = before_read::data(bytes, &answer, &read.write).map(<[u8]>::to_vec);
                    }
                    continue;
                }
                if let Some(at) = unanswered.iter().position(|&w| writes[w].is_answered_by(&answer)) {
                    unanswered.remove(at);
                }
                answers.push((index, answer));
                continue;
            }
        };
        if let Some(tag) = own_tag(bytes) {
            let write = read_for(trace, candidates, bytes, tag)
                .ok_or_else(|| wrong("a read for no write that is held".into()))?;
            let open = |&&w: &&usize| {
                let other: &Forwarded = &writes[w];
                other.write.overlaps(&write) && !expiry.is_declared(other.number)
            };
            if let Some(&w) = unanswered.iter().find(open) {
                let other = writes[w].uplink;
                return Err(wrong(format!("reads what uplink frame {other} writes, which has no answer")));
            }
            if !reads.iter().any(|read| read.tag == tag) {
                reads.retain(|read| (read.tag.port, read.tag.slot) != (tag.port, tag.slot));
                reads.push(OwnRead { tag, write, data: None, stale: false });
            }
            continue;
        }
        let (port, candidate) = take(trace, candidates, bytes, &entries)
            .ok_or_else(|| wrong("no frame that may pass came in like this, or it left before".into()))?;
        let Some(write) = candidate.write else { continue };
        let number = entries[port].pop_front().map(|header| header.number.get());
        let open = |w: &&usize| {
            let other = &writes[**w];
            other.write.overlaps(&write)
                && !other.is_copied_by(port, &write)
                && !expiry.is_before(other.number, number)
        };
        if let Some(&w) = unanswered.iter().find(open) {
            let other = &writes[w];
            let reason = format!(
                "write of {} sectors at LBA {} from port {port} overlaps uplink frame {}, which has no answer",
                write.sectors, write.lba, other.uplink
            );
            return Err(wrong(reason));
        }
        let is_original = |&&w: &&usize| {
            writes[w].is_copied_by(port, &write) && !expiry.is_before(writes[w].number, number)
        };
        let copy = unanswered.iter().any(|w| is_original(&w));
        let mut before = None;
        let own = |read: &OwnRead| read.tag.port == port && read.write.equals(&write);
        if let Some(at) = reads.iter().rposition(own) {
            let read = reads.remove(at);
            if read.stale {
                return Err(wrong("something overlapping was forwarded after its old data were read".into()));
            }
            before = read.data;
        }
        for read in reads.iter_mut().filter(|read| read.write.overlaps(&write)) {
            read.stale = true;
        }
        unanswered.push(writes.len());
        let frame = candidate.frame;
        let (slot, completions) = (0, 0);
        writes.push(Forwarded { port, frame, uplink: index, write, copy, number, before, slot, completions });
    }
    Ok((writes, answers))
}

/// When statuses were declared unknown because no answer came, and when entries were stamped: by entry.
struct Expiry {
    entries: BTreeMap<u64, u64>,
    declared: BTreeMap<u64, u64>,
}

impl Expiry {
    fn new(trace: &Trace<'_>) -> Self {
        let (mut entries, mut declared) = (BTreeMap::new(), BTreeMap::new());
        for header in trace.records.iter().flatten().filter_map(|record| header_of(record)) {
            let (number, stamp) = (header.number.get(), header.timestamp.get());
            if is_entry(&header) {
                entries.insert(number, stamp);
            } else if header.kind == Kind::Completion as u8 && is_time_out(&header) {
                declared.insert(number, stamp);
            }
        }
        Self { entries, declared }
    }

    /// Had entry `old` been declared unknown when entry `new` was made? Its quarantine may be over.
    fn is_before(&self, old: Option<u64>, new: Option<u64>) -> bool {
        match (old.and_then(|n| self.declared.get(&n)), new.and_then(|n| self.entries.get(&n))) {
            (Some(declared), Some(entered)) => declared < entered,
            _ => false,
        }
    }

    /// Was the entry declared unknown at any time?
    fn is_declared(&self, number: Option<u64>) -> bool {
        number.is_some_and(|number| self.declared.contains_key(&number))
    }
}

fn is_entry(header: &EntryHeader) -> bool {
    matches!(Kind::from_byte(header.kind), Ok(Kind::After | Kind::Before | Kind::Both))
}

/// The headers of each port's entries.
fn entries_by_port(trace: &Trace<'_>) -> Vec<VecDeque<EntryHeader>> {
    let of_port = |records: &Vec<Vec<u8>>| {
        records.iter().filter_map(|record| header_of(record)).filter(is_entry).collect()
    };
    trace.records.iter().map(of_port).collect()
}

/// The tag of a read that the card itself sent.
fn own_tag(bytes: &[u8]) -> Option<Tag> {
    let (header, _) = aoe::Header::ref_from_prefix(bytes).ok()?;
    (header.ethertype.get() == aoe::ETHERTYPE).then(|| Tag::decode(header.tag.get())).flatten()
}

/// The write for which the card's read is, and whose read it is in every byte.
fn read_for(trace: &Trace<'_>, candidates: &[VecDeque<Candidate>], bytes: &[u8], tag: Tag) -> Option<Write> {
    let asks = |candidate: &&Candidate| {
        candidate.write.as_ref().is_some_and(|write| {
            before_read::request(&trace.frames[tag.port][candidate.frame], write, tag) == bytes
        })
    };
    candidates.get(tag.port)?.iter().find(asks)?.write.clone()
}

/// Takes the earliest candidate whose frame is `bytes`. Equal frames may have come in at two ports: then of
/// that port whose next entry is for it, and has the lowest number; nothing is taken for granted by it.
fn take(
    trace: &Trace<'_>,
    candidates: &mut [VecDeque<Candidate>],
    bytes: &[u8],
    entries: &[VecDeque<EntryHeader>],
) -> Option<(usize, Candidate)> {
    let found = candidates.iter().enumerate().filter_map(|(port, waiting)| {
        let at = waiting.iter().position(|c| trace.frames[port][c.frame] == bytes)?;
        let next = entries[port].front().filter(|header| {
            waiting[at].write.as_ref().is_some_and(|write| {
                (header.lba(), header.sectors.get(), header.volume.get())
                    == (write.lba, write.sectors, write.volume)
            })
        });
        Some((next.map_or(u64::MAX, |header| header.number.get()), port, at))
    });
    let (_, port, at) = found.min()?;
    candidates[port].remove(at).map(|candidate| (port, candidate))
}

/// The card declared the status unknown because no answer came in time: when, is its choice. An answer
/// with these registers would be a success.
fn is_time_out(header: &EntryHeader) -> bool {
    header.updated() == Ok(Updated::Unknown)
        && header.flags.get() & flags::AOE_ERROR == 0
        && (header.answer_status, header.answer_error) == (0, 0)
}

/// The stamp up to which a port's records lack nothing.
fn first_loss(records: &[Vec<u8>]) -> u64 {
    let gaps = records.iter().filter(|r| header_of(r).is_some_and(|header| header.kind == Kind::Gap as u8));
    let from = gaps.filter_map(|record| Gap::read_from_prefix(record.get(HEADER_BYTES..)?).ok());
    from.map(|(gap, _)| gap.from_timestamp.get()).min().unwrap_or(u64::MAX)
}

/// How many different MACs sent writes.
fn sources_seen(frames: &[Vec<u8>], rules: &PortRules) -> usize {
    let macs = frames.iter().filter_map(|frame| match classify(frame, rules) {
        Decision::Write(write) => Some(write.source),
        _ => None,
    });
    macs.collect::<BTreeSet<_>>().len()
}

fn header_of(record: &[u8]) -> Option<EntryHeader> {
    EntryHeader::read_from_prefix(record).ok().map(|(header, _)| header)
}

fn kind_name(header: &EntryHeader) -> &'static str {
    Kind::from_byte(header.kind).map_or("unknown kind", Kind::name)
}

/// Makes the ports' records in the order of their stamps.
struct Records<'a> {
    trace: &'a Trace<'a>,
    forwarded: Vec<Forwarded>,
    answers: Answers,
    entries: usize,
    last_stamp: u64,
    /// By port: the MAC of each source index.
    sources: Vec<[Option<[u8; 6]>; SOURCES]>,
    /// By port: how many sources sent writes.
    seen: Vec<usize>,
    /// Entries without an answer, by port and slot.
    slots: BTreeMap<(usize, u8), Vec<usize>>,
    /// Of those, the ones whose status was declared unknown: their quarantine may be over.
    expired: BTreeSet<usize>,
    /// By port: the stamp after which its gaps may hide late answers; `u64::MAX`: it has none.
    lossy_after: Vec<u64>,
}

impl<'a> Records<'a> {
    fn new(trace: &'a Trace<'a>, forwarded: Vec<Forwarded>, answers: Answers) -> Self {
        let sources = vec![[None; SOURCES]; trace.rules.len()];
        let seen =
            trace.frames.iter().zip(trace.rules).map(|(frames, rules)| sources_seen(frames, rules)).collect();
        Self {
            trace,
            forwarded,
            answers,
            entries: 0,
            last_stamp: trace.stamp_floor,
            sources,
            seen,
            slots: BTreeMap::new(),
            expired: BTreeSet::new(),
            lossy_after: trace.records.iter().map(|records| first_loss(records)).collect(),
        }
    }

    fn make(mut self, result: &mut Expected) -> Result<(), Mismatch> {
        let mut order = Vec::new();
        for (port, records) in self.trace.records.iter().enumerate() {
            for (index, record) in records.iter().enumerate() {
                let header = header_of(record).ok_or_else(|| {
                    Mismatch::Trace(format!("port {port}, record {index} is shorter than a header"))
                })?;
                order.push((header.timestamp.get(), port, index, header));
            }
        }
        // A stable sort: records of one port whose stamps run backwards come out of order, and show.
        order.sort_by_key(|&(stamp, ..)| stamp);
        for (_, port, index, header) in order {
            let record = self
                .next(port, &header, result.records[port].len())
                .and_then(|record| match index == result.records[port].len() {
                    true => Ok(record),
                    false => Err("the port's stamps run backwards".into()),
                })
                .map_err(|reason| Mismatch::Record { port, index, kind: kind_name(&header), reason })?;
            result.records[port].push(record);
        }
        let last = self.trace.number_floor + self.entries as u64;
        match self.forwarded.iter().find(|write| write.number.is_none_or(|number| number > last)) {
            None => Ok(()),
            Some(write) => Err(Mismatch::Forwarded {
                index: write.uplink,
                reason: format!(
                    "frame {} of port {} was forwarded without an entry",
                    write.frame, write.port
                ),
            }),
        }
    }

    /// The record that must stand where the card wrote one with `header`.
    fn next(&mut self, port: usize, header: &EntryHeader, sequence: usize) -> Result<Vec<u8>, String> {
        if header.timestamp.get() <= self.last_stamp {
            return Err(format!("stamp {} is not above {}", header.timestamp, self.last_stamp));
        }
        self.last_stamp = header.timestamp.get();
        let mut commit = Commit {
            port: port as u8,
            sequence: sequence as u64,
            timestamp: self.last_stamp,
            number: self.trace.number_floor + self.entries as u64,
            clock_flags: header.flags.get() & CLOCK_FLAGS,
            clock_error: ErrorBound(header.clock_error.get()),
        };
        match Kind::from_byte(header.kind) {
            Ok(Kind::After | Kind::Before | Kind::Both) => {
                commit.number += 1;
                self.admission(port, header, &commit)
            }
            Ok(Kind::Completion) => self.completion(port, header, &commit),
            Ok(Kind::Watermark) => Ok(entry::watermark(&commit)),
            Ok(Kind::Gap) => {
                commit.number += 1;
                self.gap(port, sequence, &commit)
            }
            _ => Err("a card doesn't write this".into()),
        }
    }

    /// Late answers were lost: which, nobody knows.
    fn gap(&self, port: usize, sequence: usize, commit: &Commit) -> Result<Vec<u8>, String> {
        let record = &self.trace.records[port][sequence];
        let payload = record.get(HEADER_BYTES..).and_then(|bytes| Gap::read_from_prefix(bytes).ok());
        let Some((gap, _)) = payload else { return Err("a gap without its payload".into()) };
        let (from_timestamp, from_number) = (gap.from_timestamp.get(), gap.from_number.get());
        if from_timestamp >= commit.timestamp || from_number >= commit.number {
            return Err("a gap that ends before it begins".into());
        }
        Ok(entry::gap(commit, from_timestamp, from_number, GapReason::Lost))
    }

    fn admission(&mut self, port: usize, header: &EntryHeader, commit: &Commit) -> Result<Vec<u8>, String> {
        let Some(this) = self.forwarded.iter().position(|f| f.number == Some(commit.number)) else {
            return Err("an entry for which no write was forwarded".into());
        };
        let forwarded = &self.forwarded[this];
        if forwarded.port != port {
            return Err(format!("write {this} on the uplink came from port {}", forwarded.port));
        }
        let duplicate = header.flags.get() & flags::DUPLICATE != 0;
        self.check_slot(this, port, header.slot, duplicate)?;
        if !duplicate {
            self.end_quarantines(this, port, header.slot);
        }
        self.check_source(this, port, header.source.get())?;
        self.forwarded[this].slot = header.slot;
        self.slots.entry((port, header.slot)).or_default().push(this);
        self.entries += 1;
        let Forwarded { frame, write, before, .. } = &self.forwarded[this];
        let data = &self.trace.frames[port][*frame][write.payload.clone()];
        let admitted = Admitted { slot: header.slot, source: header.source.get(), duplicate, write };
        let images = self.trace.images.get(usize::from(write.volume)).copied().unwrap_or_default();
        // In the order of the journal the original comes first.
        let before = if duplicate { Some(data) } else { before.as_deref() };
        match (images, before) {
            (Images::After, _) => {
                Ok(entry::after(commit, admitted.slot, admitted.source, duplicate, write, data))
            }
            (Images::Before, Some(before)) => Ok(entry::before(commit, &admitted, before)),
            (Images::Both, Some(before)) => Ok(entry::both(commit, &admitted, before, data)),
            (_, None) => Err("the target never gave what the location held before".into()),
        }
    }

    /// A slot holds one write, or also its copies, until all have their completions. A write that left
    /// after the original's answer had come may still be flagged: the card may not have seen it yet.
    fn check_slot(&self, this: usize, port: usize, slot: u8, duplicate: bool) -> Result<(), String> {
        let Forwarded { write, copy, .. } = &self.forwarded[this];
        let in_slot = self.slots.get(&(port, slot)).map_or(&[][..], Vec::as_slice);
        let equal = |&&entry: &&usize| self.forwarded[entry].is_copied_by(port, write);
        let of_port = self.slots.range((port, 0)..=(port, u8::MAX)).flat_map(|(_, entries)| entries);
        let equals: Vec<usize> = of_port.filter(equal).copied().collect();
        let originals = equals.len();
        // Behind a gap nobody knows which of the expired ones still have no answer.
        let lossy = self.lossy_after[port] < self.last_stamp;
        let certain = equals.iter().filter(|&entry| !(lossy && self.expired.contains(entry))).count();
        match duplicate {
            false if *copy => Err("a copy of an unanswered write that isn't flagged duplicate".into()),
            false if in_slot.iter().any(|entry| !self.expired.contains(entry)) => {
                Err(format!("slot {slot} is taken by an unanswered write"))
            }
            true if originals == 0 => Err("flagged duplicate, but no equal write is unanswered".into()),
            true if certain >= COPIES => Err(format!("the write has {COPIES} unanswered copies already")),
            true if !in_slot.iter().all(|entry| equal(&entry)) => {
                Err(format!("slot {slot} is taken by another write"))
            }
            _ => Ok(()),
        }
    }

    /// A write of its own in a slot, or at a location, ends the quarantine of what stood there.
    fn end_quarantines(&mut self, this: usize, port: usize, slot: u8) {
        let Self { slots, expired, forwarded, .. } = self;
        let write = &forwarded[this].write;
        for (&(of_port, of_slot), open) in slots.iter_mut() {
            let ends = |&&entry: &&usize| {
                expired.contains(&entry)
                    && ((of_port, of_slot) == (port, slot) || forwarded[entry].write.overlaps(write))
            };
            let ended: Vec<usize> = open.iter().filter(ends).copied().collect();
            open.retain(|entry| !ended.contains(entry));
        }
    }

    /// That the index which the card gave to the source of the next entry can be. Which source is seen
    /// first depends on which frames found room, so the index is a choice; but it is one for each MAC.
    fn check_source(&mut self, this: usize, port: usize, index: u16) -> Result<(), String> {
        let mac = self.forwarded[this].write.source;
        let table = &mut self.sources[port];
        let known = table.iter().position(|&known| known == Some(mac)).map(|known| known as u16);
        if let Some(known) = known {
            return (known == index).then_some(()).ok_or(format!("source {index}, but this MAC is {known}"));
        }
        if index == NO_INDEX {
            let full = self.seen[port] > SOURCES;
            return full.then_some(()).ok_or("no source index, but the table can't be full".into());
        }
        match table.get_mut(usize::from(index)) {
            Some(free @ None) => {
                *free = Some(mac);
                Ok(())
            }
            Some(_) => Err(format!("source {index} is another MAC")),
            None => Err(format!("source {index} is outside the table")),
        }
    }

    fn completion(&mut self, port: usize, header: &EntryHeader, commit: &Commit) -> Result<Vec<u8>, String> {
        let number = header.number.get();
        let given = number.saturating_sub(self.trace.number_floor) <= self.entries as u64;
        let index = self.forwarded.iter().position(|f| f.number == Some(number));
        let Some(index) = index.filter(|_| given) else {
            return Err(format!("completes number {number}, which was not given"));
        };
        let forwarded = &mut self.forwarded[index];
        if forwarded.port != port {
            return Err(format!("completes number {number}, an entry of port {}", forwarded.port));
        }
        let late = forwarded.completions > 0;
        forwarded.completions += 1;
        let (slot, uplink) = (forwarded.slot, forwarded.uplink);
        let commit = Commit { number, ..*commit };
        if !late && is_time_out(header) {
            self.expired.insert(index);
            return Ok(entry::unanswered(&commit, slot));
        }
        let forwarded = &self.forwarded[index];
        if let Some(open) = self.slots.get_mut(&(port, slot)) {
            open.retain(|&entry| entry != index);
        }
        let answered = self.answers.iter().position(|(at, a)| *at > uplink && forwarded.is_answered_by(a));
        match answered {
            Some(at) => Ok(entry::completion(&commit, slot, &self.answers.remove(at).1, late)),
            None if late => Err(format!("completes number {number} again without an answer")),
            None => Err(format!("completes number {number}, to which nobody answered")),
        }
    }
}
