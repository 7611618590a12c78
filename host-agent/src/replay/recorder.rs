//! From the ports' rings into the journal: order, append, make durable, report back.

use super::backlog::{self, Backlog};
use super::engine::Rings;
use super::flight::Flight;
use super::ledger::Ledger;
use super::ARBITER;
use crate::error::Error;
use driver::{Completions, Record};
use journal::order::{Order, OrderError};
use journal::{takes_order, Delivered, End, OwnedRecord, Source, SourceIdentity};
use layout::entry::{EntryHeader, Kind, NO_INDEX};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a port that may wait for the other ports' watermarks; beyond, its ring fills.
const WAITING_BYTES: usize = 4 << 20;
/// Most that is appended without being made durable.
const COMMIT_BYTES: usize = 1 << 20;
/// Longest that something appended waits for being made durable, by the engine's commit clock.
const COMMIT_AFTER: Duration = Duration::from_millis(10);

/// What has become durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DurableNow {
    /// Last order number that is durable.
    pub order: u64,
    /// Entries of this replay that are durable.
    pub entries: u64,
}

/// What entries are expected, if anyone knows.
pub trait Expected {
    /// An entry came out of a port's ring. Says whether it can be.
    fn entry(&mut self, record: &Record<'_>) -> bool;
    /// Anything came out of a port's ring.
    fn seen(&mut self, record: &Record<'_>) {
        let _ = record;
    }
}

/// Nobody knows what sources write: whatever comes is right.
pub struct Anything;

impl Expected for Anything {
    fn entry(&mut self, _record: &Record<'_>) -> bool {
        true
    }
}

impl Expected for Flight {
    fn entry(&mut self, record: &Record<'_>) -> bool {
        Flight::entry(self, record)
    }
}

/// Ports of another arbiter in the same session. They hold nobody back: their records are at hand whenever they are asked for.
pub trait Beside: Send + Sync {
    /// The records stamped up to `bound`, in stamp order; none that comes later is.
    fn take_to(&self, bound: u64) -> Vec<OwnedRecord>;
    /// Their watermarks behind that.
    fn delivered(&self, bound: u64) -> Vec<Delivered>;
    /// The journal has taken these records, of whichever port, has all of theirs stamped up to `up_to`, and ends at `end`.
    fn appended(&self, records: &[EntryHeader], up_to: u64, end: &End);
    /// What was appended is durable.
    fn durable(&self);
    /// The journal had to end without records that had no room.
    fn lost(&self);
}

/// Takes records out of the rings into the journal.
pub struct Recorder {
    journal: Box<dyn Ledger>,
    order: Order<OwnedRecord>,
    beside: Option<Arc<dyn Beside>>,
    /// Up to here every record of every port has been taken.
    bound: u64,
    /// The rings lost what they had, of which the journal doesn't know yet: everything behind this stamp and number.
    missing: Option<(u64, u64)>,
    /// The same of what came too late, by port.
    late: BTreeMap<u8, (u64, u64)>,
    /// What the journal had or had promised at the beginning: nothing that is stamped so can be put into its order any more.
    floor: u64,
    /// Records that were stamped so.
    too_old: u64,
    /// Gaps of the rings' ports were appended.
    gapped: bool,
    ports: usize,
    backlog: Backlog,
    completions: Completions,
    noted: HashSet<(u8, u16)>,
    /// Order of the journal's last entry when the replay began.
    first_order: u64,
    first_timestamp: Option<u64>,
    last_timestamp: u64,
    /// Stamp of the last record that was appended.
    last_appended: u64,
    entries: u64,
    durable: DurableNow,
    uncommitted_bytes: usize,
    /// Something was appended since the last commit, and when that was first seen.
    is_waiting: bool,
    waiting_since: Option<Duration>,
}

impl Recorder {
    /// Appends to `journal` what `ports` ports deliver.
    pub fn new(journal: Box<dyn Ledger>, ports: usize) -> Self {
        let end = journal.end();
        let first_order = end.order;
        let promised = end.arbiters.iter().map(|arbiter| arbiter.timestamp).max().unwrap_or(0);
        Self {
            journal,
            order: order_of(ports),
            beside: None,
            bound: 0,
            missing: None,
            late: BTreeMap::new(),
            floor: end.timestamp.max(promised),
            too_old: 0,
            gapped: false,
            ports,
            backlog: Backlog::default(),
            completions: Completions::new(ports),
            noted: HashSet::new(),
            first_order,
            first_timestamp: None,
            last_timestamp: 0,
            last_appended: 0,
            entries: 0,
            durable: DurableNow { order: first_order, entries: 0 },
            uncommitted_bytes: 0,
            waiting_since: None,
            is_waiting: false,
        }
    }

    /// Ports of another arbiter share the session.
    pub fn beside(mut self, beside: Option<Arc<dyn Beside>>) -> Self {
        self.beside = beside;
        self
    }

    /// Takes everything that the ports have delivered. Waits while the journal has no room for what was taken before.
    pub fn take<R: Rings>(&mut self, rings: &mut R, expected: &mut impl Expected) -> Result<(), Error> {
        self.wait_for_room()?;
        rings.poll()?;
        for port in 0..rings.ports() {
            let records = self.take_port(rings, port, expected)?;
            rings.consume(port, records)?;
        }
        let ready = self.order.drain_ready();
        if let Err(error) = self.note_sources(rings, &ready) {
            // They are out of the order, and nothing of others may come behind them as if they had been journaled.
            if !ready.is_empty() {
                self.missing.get_or_insert((self.bound.max(self.floor), self.last_number()));
            }
            return Err(error);
        }
        self.bound = self.bound.max(self.order.bound());
        self.append(ready)
    }

    /// Appends what the ports have delivered, and what others have up to there.
    fn append(&mut self, mut ready: Vec<OwnedRecord>) -> Result<(), Error> {
        if let Some(beside) = &self.beside {
            ready = in_order(ready, beside.take_to(self.bound));
        }
        // What is missing is known before anything that is stamped behind it.
        let mut gaps: Vec<OwnedRecord> = std::mem::take(&mut self.late)
            .into_iter()
            .map(|(port, from)| backlog::gap(port, from, self.floor))
            .collect();
        if let Some(first) = ready.first().map(|record| record.header.timestamp.get()) {
            gaps.extend(self.take_gaps(first.saturating_sub(1)));
        }
        if !gaps.is_empty() {
            gaps.append(&mut ready);
            ready = gaps;
        }
        let delivered = self.delivered();
        let appended = self.backlog.append(&mut *self.journal, ready, &delivered)?;
        self.count(&appended);
        Ok(())
    }

    /// The ports' watermarks as far as everything up to them has been taken.
    fn delivered(&self) -> Vec<Delivered> {
        let mut delivered = self.order.delivered();
        if let Some(beside) = &self.beside {
            delivered.extend(beside.delivered(self.bound));
        }
        delivered
    }

    /// What the rings had is lost, and they begin anew: a gap of each of their ports, from what was taken of all of them up to
    /// whatever comes next. The journal's session goes on.
    pub fn rings_were_lost(&mut self) {
        let from = (self.bound.max(self.floor), self.last_number());
        self.missing.get_or_insert(from);
        self.order = order_of(self.ports);
        self.completions = Completions::new(self.ports);
        self.noted.clear();
    }

    /// The last number of the rings' arbiter that the journal has.
    fn last_number(&self) -> u64 {
        let end = self.journal.end();
        end.arbiters.iter().find(|end| end.arbiter == ARBITER).map_or(0, |end| end.number)
    }

    /// A gap of each port up to `until`, if the rings lost something.
    fn take_gaps(&mut self, until: u64) -> Vec<OwnedRecord> {
        let Some(from) = self.missing.take() else { return Vec::new() };
        (0..self.ports).map(|port| backlog::gap(port as u8, from, until)).collect()
    }

    /// The journal has a gap of the rings' ports since this was asked last.
    pub fn take_gapped(&mut self) -> bool {
        std::mem::take(&mut self.gapped)
    }

    /// Records that the rings had kept from before and that couldn't be put into the journal's order any more, since this was
    /// asked last. They are part of a gap.
    pub fn take_too_old(&mut self) -> u64 {
        std::mem::take(&mut self.too_old)
    }

    fn wait_for_room(&mut self) -> Result<(), Error> {
        let delivered = self.delivered();
        let appended = self.backlog.wait_for_room(&mut *self.journal, &delivered)?;
        self.count(&appended);
        Ok(())
    }

    /// These have reached the journal.
    fn count(&mut self, appended: &[EntryHeader]) {
        for header in appended {
            // Also those that the card itself has in its rings.
            self.gapped |= header.kind == Kind::Gap as u8 && usize::from(header.port) < self.ports;
            self.last_appended = header.timestamp.get();
            self.uncommitted_bytes += header.record_bytes();
            if is_entry(header) {
                self.entries += 1;
                self.last_timestamp = header.timestamp.get();
                self.first_timestamp.get_or_insert(self.last_timestamp);
            }
        }
        self.is_waiting |= !appended.is_empty();
        let Some(beside) = &self.beside else { return };
        if self.backlog.lost() > 0 {
            return beside.lost();
        }
        // Records of several arbiters may share a stamp.
        let up_to = if self.backlog.is_empty() { self.bound } else { self.last_appended.saturating_sub(1) };
        beside.appended(appended, up_to, &self.journal.end());
    }

    fn take_port<R: Rings>(
        &mut self,
        rings: &R,
        port: usize,
        expected: &mut impl Expected,
    ) -> Result<usize, Error> {
        let mut records = 0;
        for record in rings.records(port) {
            if record.made_by_driver {
                self.order.resume_after_gap(port as u8);
            }
            let (stamp, number) = (record.header.timestamp.get(), record.header.number.get());
            let pushed = if stamp <= self.floor {
                // Kept from before, and the journal went on meanwhile.
                if record.kind != Kind::Watermark {
                    self.late
                        .entry(port as u8)
                        .or_insert((stamp.saturating_sub(1), number.saturating_sub(1)));
                    self.too_old += 1;
                }
                Ok(())
            } else {
                let owned = OwnedRecord { header: *record.header, payload: record.payload.to_vec() };
                self.order.push(owned)
            };
            match pushed {
                Ok(()) => {}
                Err((_, OrderError::Full { .. })) => break,
                Err((_, error)) => {
                    return Err(Error::Failed(format!("ordering what {} delivered: {error}", R::NAME)))
                }
            }
            self.completions.take(&record).map_err(|e| Error::Failed(e.to_string()))?;
            expected.seen(&record);
            if takes_order(record.kind) && !expected.entry(&record) {
                let header = record.header;
                return Err(Error::Failed(format!(
                    "port {port}: {} delivered entry {} (LBA {}, {} sectors), and no write like that was offered",
                    R::NAME,
                    header.number,
                    header.lba(),
                    header.sectors
                )));
            }
            records += 1;
        }
        Ok(records)
    }

    /// The journal has to know who a source index stands for before its first entry.
    fn note_sources<R: Rings>(&mut self, rings: &mut R, ready: &[OwnedRecord]) -> Result<(), Error> {
        for header in ready.iter().map(|record| &record.header).filter(|header| is_entry(header)) {
            let (port, index) = (header.port, header.source.get());
            if index == NO_INDEX || !self.noted.insert((port, index)) {
                continue;
            }
            if let Some(mac) = rings.sources(port.into())?.get(usize::from(index)) {
                let identity = SourceIdentity::Mac(*mac);
                self.journal.note_source(Source { port, index, identity, since_order: 0 })?;
            }
        }
        Ok(())
    }

    /// Is what was appended to be made durable at `clock`?
    pub fn is_due(&mut self, clock: Duration) -> bool {
        if !self.is_waiting {
            return false;
        }
        let since = *self.waiting_since.get_or_insert(clock);
        self.uncommitted_bytes >= COMMIT_BYTES || clock.saturating_sub(since) >= COMMIT_AFTER
    }

    /// Up to here everything of every port is in the journal, and behind a [`Recorder::take`] nothing is appended that is
    /// stamped up to here. `None`: the journal had no room for something, or its last record is stamped so.
    pub fn bound(&self) -> Option<u64> {
        let bound = self.order.bound().min(self.bound);
        (self.backlog.is_empty() && bound > self.last_appended).then_some(bound)
    }

    /// Up to here everything of every port was taken.
    pub fn taken_to(&self) -> u64 {
        self.bound
    }

    /// Does something wait for other ports' watermarks, or for room in the journal?
    pub fn holds_back(&self) -> bool {
        !self.backlog.is_empty()
            || self.order.delivered().iter().any(|port| self.order.waiting_bytes(port.port) > 0)
    }

    /// Was something appended that isn't durable?
    pub fn is_waiting(&self) -> bool {
        self.is_waiting
    }

    /// Was an entry appended that isn't durable? A write may wait for that; for a completion nobody does.
    pub fn has_undurable_entry(&self) -> bool {
        self.first_order + self.entries > self.durable.order
    }

    /// Entries that the journal had no room for when the replay had to end.
    pub fn lost(&self) -> u64 {
        self.backlog.lost()
    }

    /// Makes durable what was taken, and reports it to the ports. Waits while the journal has no room for it.
    /// Returns what is durable if that is more than before.
    pub fn commit<R: Rings>(&mut self, rings: &mut R) -> Result<Option<DurableNow>, Error> {
        self.wait_for_room()?;
        let durable = self.journal.sync()?;
        (self.is_waiting, self.waiting_since, self.uncommitted_bytes) = (false, None, 0);
        if let Some(beside) = self.beside.as_ref().filter(|_| self.backlog.lost() == 0) {
            beside.durable();
        }
        // One arbiter numbers all of these ports, and the journal holds its entries in the order of numbers. Other ports
        // that the journal knows have arbiters of their own, whose numbers say nothing here.
        let own = durable.numbers.iter().filter(|(port, _)| usize::from(*port) < rings.ports());
        if let Some(number) = own.map(|(_, number)| *number).max() {
            rings.durable(number)?;
        }
        if durable.order == self.durable.order {
            return Ok(None);
        }
        self.durable = DurableNow { order: durable.order, entries: durable.order - self.first_order };
        Ok(Some(self.durable))
    }

    /// Entries that the journal has taken.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Entries without an answer.
    pub fn open(&self, ports: usize) -> usize {
        (0..ports).map(|port| self.completions.open(port)).sum()
    }

    /// Is nothing more to be offered?
    pub fn stop_requested(&self) -> bool {
        self.journal.stop_requested()
    }

    /// The journal as it is.
    pub fn ledger(&self) -> &dyn Ledger {
        &*self.journal
    }

    /// Ends the session in order.
    pub fn close(mut self) -> Result<Recorded, Error> {
        let mut gaps = self.take_gaps(self.bound);
        if !gaps.is_empty() {
            self.journal.append(&mut gaps, &[])?;
        }
        let durable = self.journal.close()?;
        Ok(Recorded {
            entries: self.entries,
            lost: self.backlog.lost(),
            first_order: self.first_order + 1,
            last_order: durable.order,
            first_timestamp: self.first_timestamp,
            last_timestamp: self.last_timestamp,
        })
    }
}

/// What a replay has put into the journal.
#[derive(Clone, Copy, Debug)]
pub struct Recorded {
    /// Entries.
    pub entries: u64,
    /// Entries that it had no room for until the end: a gap.
    pub lost: u64,
    /// Order of the first, if there are any.
    pub first_order: u64,
    /// Order of the journal's last entry.
    pub last_order: u64,
    /// Stamp of the first entry, ns.
    pub first_timestamp: Option<u64>,
    /// Stamp of the last entry, ns.
    pub last_timestamp: u64,
}

fn order_of(ports: usize) -> Order<OwnedRecord> {
    Order::new((0..ports).map(|port| port as u8), WAITING_BYTES)
}

/// Two ranges of records in stamp order as one. Equal stamps, of different arbiters, go by port.
fn in_order(first: Vec<OwnedRecord>, second: Vec<OwnedRecord>) -> Vec<OwnedRecord> {
    if first.is_empty() || second.is_empty() {
        return if first.is_empty() { second } else { first };
    }
    let place = |record: &OwnedRecord| (record.header.timestamp.get(), record.header.port);
    let mut merged = Vec::with_capacity(first.len() + second.len());
    let (mut first, mut second) = (first.into_iter().peekable(), second.into_iter().peekable());
    while let (Some(one), Some(other)) = (first.peek(), second.peek()) {
        let next = if place(one) < place(other) { first.next() } else { second.next() };
        merged.extend(next);
    }
    merged.extend(first.chain(second));
    merged
}

fn is_entry(header: &EntryHeader) -> bool {
    layout::entry::Kind::from_byte(header.kind).is_ok_and(takes_order)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::Ledger;
    use journal::{Durable, Opened, Tables};
    use layout::entry::Gap;
    use std::sync::Mutex;
    use zerocopy::FromBytes;

    /// A journal that knows ports of other arbiters, too, whose numbers are far on.
    struct Shared;

    impl Ledger for Shared {
        fn opened(&self) -> &Opened {
            unreachable!("it is open")
        }

        fn tables(&self) -> &Tables {
            unreachable!("nobody asks for volumes")
        }

        fn end(&self) -> End {
            End { order: 0, timestamp: 0, arbiters: Vec::new() }
        }

        fn append(&mut self, _: &mut Vec<OwnedRecord>, _: &[Delivered]) -> Result<(), journal::Error> {
            Ok(())
        }

        fn note_source(&mut self, _: Source) -> Result<(), Error> {
            Ok(())
        }

        fn sync(&mut self) -> Result<Durable, Error> {
            let numbers = vec![(0, 3), (1, 7), (127, 500), (128, 1_000_000)];
            Ok(Durable { order: 7, timestamp: 9, numbers })
        }

        fn close(self: Box<Self>) -> Result<Durable, Error> {
            unreachable!("nobody closes it")
        }
    }

    struct Told(Vec<u64>);

    impl Rings for Told {
        const NAME: &'static str = "two ports";

        fn ports(&self) -> usize {
            2
        }

        fn poll(&mut self) -> Result<(), Error> {
            Ok(())
        }

        fn records(&self, _: usize) -> impl Iterator<Item = Record<'_>> {
            std::iter::empty()
        }

        fn consume(&mut self, _: usize, _: usize) -> Result<(), Error> {
            Ok(())
        }

        fn sources(&mut self, _: usize) -> Result<Vec<[u8; 6]>, Error> {
            Ok(Vec::new())
        }

        fn durable(&mut self, number: u64) -> Result<(), Error> {
            self.0.push(number);
            Ok(())
        }
    }

    #[test]
    fn ports_hear_of_their_own_arbiters_numbers_only() {
        let (mut recorder, mut rings) = (Recorder::new(Box::new(Shared), 2), Told(Vec::new()));
        recorder.commit(&mut rings).unwrap();
        assert_eq!(rings.0, [7]);
    }

    /// A journal that ends at stamp 100, and keeps what is appended.
    #[derive(Default)]
    struct Kept(Arc<Mutex<Vec<OwnedRecord>>>);

    impl Ledger for Kept {
        fn opened(&self) -> &Opened {
            unreachable!("it is open")
        }

        fn tables(&self) -> &Tables {
            unreachable!("nobody asks for volumes")
        }

        fn end(&self) -> End {
            let last = self.0.lock().unwrap().last().map_or(100, |record| record.header.timestamp.get());
            let arbiters = vec![journal::ArbiterEnd { arbiter: ARBITER, timestamp: 100, number: 5 }];
            End { order: 0, timestamp: last, arbiters }
        }

        fn append(&mut self, records: &mut Vec<OwnedRecord>, _: &[Delivered]) -> Result<(), journal::Error> {
            self.0.lock().unwrap().append(records);
            Ok(())
        }

        fn note_source(&mut self, _: Source) -> Result<(), Error> {
            Ok(())
        }

        fn sync(&mut self) -> Result<Durable, Error> {
            unreachable!("nobody asks for it")
        }

        fn close(self: Box<Self>) -> Result<Durable, Error> {
            unreachable!("nobody closes it")
        }
    }

    fn header(kind: Kind, port: u8, stamp: u64, number: u64, sequence: u64) -> EntryHeader {
        let mut header = EntryHeader::new(kind);
        (header.port, header.source) = (port, NO_INDEX.into());
        (header.timestamp, header.number, header.sequence) = (stamp.into(), number.into(), sequence.into());
        header
    }

    /// Port, stamp, and of a gap where it begins: stamp and number.
    type Seen = (u8, u64, Option<(u64, u64)>);

    /// Two ports, with what they have to give.
    struct Full(Vec<EntryHeader>);

    impl Rings for Full {
        const NAME: &'static str = "two ports";

        fn ports(&self) -> usize {
            2
        }

        fn poll(&mut self) -> Result<(), Error> {
            Ok(())
        }

        fn records(&self, port: usize) -> impl Iterator<Item = Record<'_>> {
            let of_port = move |header: &&EntryHeader| usize::from(header.port) == port;
            self.0.iter().filter(of_port).map(|header| Record {
                header,
                kind: Kind::from_byte(header.kind).unwrap(),
                encoding: layout::entry::Encoding::Zero,
                updated: layout::entry::Updated::Updated,
                payload: &[],
                made_by_driver: false,
            })
        }

        fn consume(&mut self, port: usize, _: usize) -> Result<(), Error> {
            self.0.retain(|header| usize::from(header.port) != port);
            Ok(())
        }

        fn sources(&mut self, _: usize) -> Result<Vec<[u8; 6]>, Error> {
            Ok(Vec::new())
        }

        fn durable(&mut self, _: u64) -> Result<(), Error> {
            Ok(())
        }
    }

    /// Records of another arbiter, by stamp; and up to where the journal was said to have them.
    struct Others(Mutex<Vec<u64>>, Mutex<u64>);

    impl Beside for Others {
        fn take_to(&self, bound: u64) -> Vec<OwnedRecord> {
            let mut waiting = self.0.lock().unwrap();
            let (taken, rest) = waiting.iter().partition(|stamp| **stamp <= bound);
            *waiting = rest;
            let taken: Vec<u64> = taken;
            let record = |stamp: u64| OwnedRecord {
                header: header(Kind::After, 128, stamp, 1, 0),
                payload: Vec::new(),
            };
            taken.into_iter().map(record).collect()
        }

        fn delivered(&self, bound: u64) -> Vec<Delivered> {
            vec![Delivered { port: 128, timestamp: bound }]
        }

        fn appended(&self, _: &[EntryHeader], up_to: u64, _: &End) {
            *self.1.lock().unwrap() = up_to;
        }

        fn durable(&self) {}

        fn lost(&self) {
            panic!("there is room");
        }
    }

    #[test]
    fn others_records_stand_between_and_what_is_late_or_lost_is_a_gap() {
        let journal = Kept::default();
        let kept = Arc::clone(&journal.0);
        let others = Arc::new(Others(Mutex::new(vec![120, 180, 250]), Mutex::default()));
        let mut recorder = Recorder::new(Box::new(journal), 2).beside(Some(Arc::clone(&others) as Arc<_>));
        // What has come since the last look.
        let new = || -> Vec<Seen> {
            let records = std::mem::take(&mut *kept.lock().unwrap());
            let gap = |record: &OwnedRecord| {
                let gap = Gap::read_from_bytes(&record.payload[..]).ok()?;
                Some((gap.from_timestamp.get(), gap.from_number.get()))
            };
            records
                .iter()
                .map(|record| (record.header.port, record.header.timestamp.get(), gap(record)))
                .collect()
        };
        // The first was kept from before, and the journal is at 100 by now.
        let mut rings = Full(vec![
            header(Kind::After, 0, 90, 6, 1),
            header(Kind::After, 0, 150, 7, 2),
            header(Kind::Watermark, 0, 200, 7, 3),
        ]);
        recorder.take(&mut rings, &mut Anything).unwrap();
        assert_eq!(new(), [(0, 100, Some((89, 5)))], "the other port may have something before 150");
        assert_eq!((recorder.take_too_old(), *others.1.lock().unwrap()), (1, 0));
        rings.0.push(header(Kind::Watermark, 1, 210, 7, 9));
        recorder.take(&mut rings, &mut Anything).unwrap();
        assert_eq!(new(), [(128, 120, None), (0, 150, None), (128, 180, None)]);
        assert_eq!(*others.1.lock().unwrap(), 200);
        // The rings are lost. What others write is not before what a port may still hold from before that.
        recorder.rings_were_lost();
        rings.0.push(header(Kind::Watermark, 0, 300, 7, 20));
        recorder.take(&mut rings, &mut Anything).unwrap();
        assert_eq!(new(), []);
        rings.0.extend([header(Kind::After, 1, 290, 9, 30), header(Kind::Watermark, 1, 310, 9, 31)]);
        recorder.take(&mut rings, &mut Anything).unwrap();
        let gap = Some((200, 5));
        assert_eq!(new(), [(0, 249, gap), (1, 249, gap), (128, 250, None), (1, 290, None)]);
    }
}
