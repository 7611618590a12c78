//! What has to hold from batch to batch: orders, stamps, watermarks, numbers, sessions, gaps.

use super::batch::{is_entry, Parts};
use super::front::Front;
use super::history::{self, History};
use super::Report;
use layout::entry::{flags, EntryHeader, Kind, Updated};
use layout::journal_file::{batch_flags, previous_end, BatchHeader, PortState, SessionStart};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// State after the batches so far.
#[derive(Default)]
pub(super) struct State {
    pub session: u64,
    ended: bool,
    pub order: u64,
    pub timestamp: u64,
    ports: BTreeMap<u8, PortState>,
    numbers: BTreeMap<u16, u64>,
    /// Order of each entry without an answer.
    pending: HashMap<(u16, u64), u64>,
    /// By arbiter: entries up to this number may have been merged away. `None`: nothing was.
    gone: Option<BTreeMap<u16, u64>>,
    /// Ports that had a gap: completions may name entries that were lost.
    gapped: BTreeSet<u8>,
    /// Ports that have to show a gap before anything else of the session.
    owed: BTreeSet<u8>,
    /// Batches were skipped: what follows can't be held against what was there before.
    pub unsure: bool,
}

impl State {
    /// The chain begins somewhere in the middle: what came before was merged away.
    pub fn begin_in_the_middle(&mut self) {
        self.unsure = true;
        self.gone = Some(BTreeMap::new());
    }

    /// Entries without an answer, of those that are still there.
    pub fn pending(&self, front: &Front) -> u64 {
        let from = front.superblock.portions[0].from_order.get();
        self.pending.values().filter(|order| **order >= from).count() as u64
    }

    pub fn ended(&self) -> bool {
        self.ended || self.session == 0
    }

    /// Checks a batch against everything before it, and becomes the state after it.
    pub fn batch(
        &mut self,
        offset: u64,
        header: &BatchHeader,
        parts: &Parts,
        front: &Front,
        history: &mut History,
        report: &mut Report,
    ) {
        let Parts { start, ports, records, .. } = parts;
        let mut wrong = |what: String| report.finding(offset, format!("batch {}: {what}", header.sequence));
        for what in self.session_rules(header, start.as_ref(), front) {
            wrong(what);
        }
        if !self.unsure && header.first_order.get() != self.order + 1 {
            wrong(format!("its first order is {}, after {}", header.first_order, self.order));
        }
        let before = std::mem::take(&mut self.ports);
        self.note_what_is_gone(parts, front);
        self.order = header.first_order.get() - 1;
        let mut last: BTreeMap<u8, PortState> = before.clone();
        for (record, kind, payload) in records {
            for what in self.record(record, *kind, payload, &mut last, front, report) {
                report.finding(offset, format!("batch {}: {what}", header.sequence));
            }
            for what in history.received(record, *kind, payload, self.order, front, report) {
                report.finding(offset, format!("batch {}: {what}", header.sequence));
            }
        }
        self.timestamps(offset, header, records, report);
        self.port_table(offset, header, ports, &last, front, report);
        let flags = header.flags.get();
        if start.is_some() && flags & batch_flags::GAP_PENDING != 0 && records.is_empty() {
            // Also a port that was entered in the table behind the last batch of the session before.
            self.owed.extend(self.ports.keys());
        }
        self.ended = flags & (batch_flags::SESSION_END | batch_flags::PORTS_CLOSED) != 0;
        if flags & batch_flags::SESSION_END != 0
            && (header.flags.get() & batch_flags::GAP_PENDING != 0) == self.owed.is_empty()
            && !self.ports.is_empty()
        {
            report.finding(offset, format!("batch {}: its flag of a pending gap is wrong", header.sequence));
        }
        if self.unsure && flags & batch_flags::GAP_PENDING != 0 && records.is_empty() && start.is_none() {
            // The session began in what was merged away.
            self.owed = self.ports.keys().copied().collect();
        }
        self.unsure = false;
    }

    /// Entries with lower numbers than the first that are there may be named by completions.
    fn note_what_is_gone(&mut self, parts: &Parts, front: &Front) {
        let Some(gone) = self.gone.as_mut().filter(|_| self.unsure) else { return };
        let arbiter = |port: u8| front.tables.ports.get(&port).copied().unwrap_or(0);
        for state in &parts.ports {
            let known = gone.entry(state.arbiter.get()).or_insert(0);
            *known = state.last_number.get().max(*known);
        }
        for (record, kind, _) in parts.records.iter().rev() {
            if is_entry(*kind) {
                gone.insert(arbiter(record.port), record.number.get().saturating_sub(1));
            }
        }
    }

    fn session_rules(
        &mut self,
        header: &BatchHeader,
        start: Option<&SessionStart>,
        front: &Front,
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        let session = header.session.get();
        if session > front.superblock.session.get() {
            wrong.push(format!("session {session}, and the superblock knows {}", front.superblock.session));
        }
        let Some(start) = start else {
            let over = self.ended() && header.flags.get() & batch_flags::PORTS_CLOSED == 0;
            if !self.unsure && (over || session != self.session) {
                wrong.push(format!("of session {session} without its start, after session {}", self.session));
            }
            self.session = session;
            return wrong;
        };
        let pending = header.flags.get() & batch_flags::GAP_PENDING != 0;
        if !self.unsure {
            let expected = match (self.session, self.ended) {
                (0, _) => previous_end::FIRST,
                (_, true) => previous_end::CLEAN,
                (_, false) => previous_end::UNCLEAN,
            };
            if start.previous_end.get() != expected || start.previous_session.get() != self.session {
                wrong.push(format!(
                    "session {session} says that session {} ended as {}, and session {} ended as {expected}",
                    start.previous_session, start.previous_end, self.session
                ));
            }
            if session <= self.session || start.continues_after.get() + 1 != header.sequence.get() {
                wrong.push(format!("session {session} doesn't follow session {}", self.session));
            }
            if expected == previous_end::UNCLEAN && !pending {
                wrong.push("after an unclean stop no gap is pending".into());
            }
            if expected == previous_end::CLEAN && pending == self.owed.is_empty() && !self.ports.is_empty() {
                wrong.push("its flag of a pending gap is wrong".into());
            }
        }
        // A gap is never papered over: every known port owes one after an unclean stop.
        self.owed = if pending { self.ports.keys().copied().collect() } else { BTreeSet::new() };
        self.session = session;
        wrong
    }

    fn record(
        &mut self,
        record: &EntryHeader,
        kind: Kind,
        payload: &[u8],
        last: &mut BTreeMap<u8, PortState>,
        front: &Front,
        report: &mut Report,
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        let (port, stamp, number) = (record.port, record.timestamp.get(), record.number.get());
        let Some(arbiter) = front.tables.ports.get(&port).copied() else {
            return vec![format!("a {kind} of port {port}, which is not in the table")];
        };
        if kind == Kind::Gap {
            self.gap(port, stamp, payload, &mut wrong);
        } else if !self.owed.is_empty() && !self.unsure {
            wrong.push(format!("a {kind} of port {port} before the gaps that the unclean stop left"));
            self.owed.clear();
        }
        if let Some(state) = last.get_mut(&port).filter(|_| !self.unsure) {
            let delivered = state.delivered.get();
            if stamp < delivered || (stamp == delivered && kind != Kind::Gap) {
                wrong.push(format!(
                    "a {kind} of port {port} stamped {stamp}, after its watermark {delivered}"
                ));
            }
            state.delivered = delivered.max(stamp).into();
        }
        match kind {
            Kind::After | Kind::Before | Kind::Both | Kind::Resync => {
                self.order += 1;
                let known = self.numbers.entry(arbiter).or_insert(0);
                if number <= *known && !self.unsure {
                    wrong.push(format!("order:{} has number {number}, after {known}", self.order));
                }
                *known = number.max(*known);
                if kind != Kind::Resync && record.updated() == Ok(Updated::Pending) {
                    self.pending.insert((arbiter, number), self.order);
                }
                if !front.tables.volumes.contains_key(&record.volume.get()) {
                    wrong.push(format!(
                        "order:{} names volume {}, which is not in the table",
                        self.order, record.volume
                    ));
                }
            }
            Kind::Completion => {
                report.completions += 1;
                let late = record.flags.get() & flags::LATE != 0;
                let gone = self.gone.as_ref().and_then(|gone| gone.get(&arbiter)).copied().unwrap_or(0);
                let known = self.pending.remove(&(arbiter, number)).is_some() || number <= gone;
                if !known && !late && !self.unsure && !self.gapped.contains(&port) {
                    wrong.push(format!(
                        "a completion of number {number} of port {port}, which is not pending"
                    ));
                }
            }
            _ => {}
        }
        wrong
    }

    fn gap(&mut self, port: u8, stamp: u64, payload: &[u8], wrong: &mut Vec<String>) {
        self.owed.remove(&port);
        self.gapped.insert(port);
        let sound = history::gap(stamp, payload).is_some();
        if !sound {
            wrong.push(format!("the gap of port {port} makes no sense"));
        }
    }

    fn timestamps(
        &mut self,
        offset: u64,
        header: &BatchHeader,
        records: &[(EntryHeader, Kind, Vec<u8>)],
        report: &mut Report,
    ) {
        let (mut first, mut last) = (self.timestamp, self.timestamp);
        for (index, (record, ..)) in records.iter().enumerate() {
            let stamp = record.timestamp.get();
            if index == 0 {
                first = stamp;
            }
            if stamp < last && !self.unsure {
                report.finding(offset, format!("batch {}: stamp {stamp} after {last}", header.sequence));
            }
            last = stamp;
        }
        if records.is_empty() && self.unsure {
            (first, last) = (header.first_timestamp.get(), header.last_timestamp.get());
        }
        if (header.first_timestamp.get(), header.last_timestamp.get()) != (first, last) {
            report.finding(
                offset,
                format!("batch {}: its stamps are not those of its records", header.sequence),
            );
        }
        self.timestamp = last;
    }

    fn port_table(
        &mut self,
        offset: u64,
        header: &BatchHeader,
        ports: &[PortState],
        last: &BTreeMap<u8, PortState>,
        front: &Front,
        report: &mut Report,
    ) {
        let mut previous = None;
        for state in ports {
            let at_least = last.get(&state.port).map_or(0, |known| known.delivered.get());
            let sound = previous < Some(state.port)
                && front.tables.ports.get(&state.port) == Some(&state.arbiter.get())
                && state.reserved.get() == 0
                && state.flags == 0
                && state.delivered.get() >= at_least
                && state.delivered.get() >= state.last_timestamp.get();
            if !sound {
                let what = format!("batch {}: state of port {} makes no sense", header.sequence, state.port);
                report.finding(offset, what);
            }
            previous = Some(state.port);
        }
        if last.keys().any(|port| ports.iter().all(|state| state.port != *port)) {
            report.finding(offset, format!("batch {}: a port's state is missing", header.sequence));
        }
        self.ports = ports.iter().map(|state| (state.port, *state)).collect();
        for state in ports {
            let known = self.numbers.entry(state.arbiter.get()).or_insert(0);
            *known = state.last_number.get().max(*known);
        }
    }
}
