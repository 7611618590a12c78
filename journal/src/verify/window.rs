//! Windows of a merged portion: what has to hold from batch to batch, and in them.

use super::batch::{is_entry, Parts};
use super::front::Front;
use super::history::{self, History, Reach};
use super::tables::Tables;
use super::Report;
use layout::entry::{flags, Encoding, EntryHeader, Journaled, Kind, Updated, NO_INDEX};
use layout::journal_file::{port_flags, BatchHeader, MergedWindow, PortState, Portion};
use std::collections::BTreeSet;
use zerocopy::{FromBytes, IntoBytes};

/// Where windows of a segment may end.
pub(super) struct Ends {
    lengths: Vec<u64>,
    /// Stamps of moments that have, or had, a name.
    named: BTreeSet<u64>,
}

impl Ends {
    /// By the tables as they are, and as they were when the segment was sealed: names may be gone since, and the
    /// schedule may be another.
    pub fn new(index: usize, portion: &Portion, now: &Tables, then: Option<&Tables>) -> Self {
        let mut lengths = vec![portion.window.get()];
        lengths.extend(then.and_then(|tables| tables.windows.get(index)).filter(|length| **length > 0));
        let named = now.named.iter().chain(then.iter().flat_map(|tables| &tables.named)).copied().collect();
        Self { lengths, named }
    }

    fn allow(&self, end: u64) -> bool {
        self.named.contains(&end)
            || self.lengths.iter().any(|length| *length > 0 && end.is_multiple_of(*length))
    }
}

/// The window that batches belong to.
struct Window {
    begin: u64,
    end: u64,
    last_order: u64,
    /// Volume and end of the entry before.
    at: (u16, u64),
    ports: Vec<PortState>,
}

/// State after the batches so far of a merged portion.
pub(super) struct Windows {
    index: usize,
    portion: Portion,
    /// The last order that a batch named; `None`: not known.
    named: Option<u64>,
    /// End of the last window.
    end: u64,
    timestamp: u64,
    current: Option<Window>,
    session: u64,
    /// What comes before isn't there: what follows may belong to a window that began in it.
    unsure: bool,
    pub reach: Reach,
}

impl Windows {
    pub fn new(index: usize, portion: Portion) -> Self {
        // The segment that comes first may begin in the midst of a window that was given up.
        let unsure = portion.first_sequence.get() > 1;
        Self {
            index,
            portion,
            named: None,
            end: 0,
            timestamp: 0,
            current: None,
            session: 0,
            unsure,
            reach: Reach { index, ..Reach::default() },
        }
    }

    /// A batch can't be read.
    pub fn lose(&mut self) {
        (self.named, self.current, self.unsure, self.reach.damaged) = (None, None, true, true);
    }

    /// Checks a batch against those before it, and becomes the state after it.
    #[allow(clippy::too_many_arguments)]
    pub fn batch(
        &mut self,
        offset: u64,
        header: &BatchHeader,
        parts: &Parts,
        ends: &Ends,
        front: &Front,
        history: &mut History,
        report: &mut Report,
    ) {
        let mut wrong = self.frame(header, parts, front);
        let outside = parts
            .records
            .iter()
            .all(|(_, kind, _)| matches!(kind, Kind::Gap | Kind::Marker | Kind::Completion));
        if outside {
            self.outside(header, parts, front, history, report, &mut wrong);
        } else {
            self.inside(offset, header, parts, ends, front, history, report, &mut wrong);
        }
        self.unsure = false;
        for what in wrong {
            report.finding(offset, format!("batch {} of portion {}: {what}", header.sequence, self.index));
        }
    }

    /// What holds for any batch.
    fn frame(&mut self, header: &BatchHeader, parts: &Parts, front: &Front) -> Vec<String> {
        let mut wrong = Vec::new();
        let session = header.session.get();
        if header.flags.get() != 0 || parts.start.is_some() {
            wrong.push(format!("flags {:#x}", header.flags));
        }
        if session > front.superblock.session.get() || session < self.session {
            wrong.push(format!("session {session}, after {}", self.session));
        }
        self.session = session;
        if parts.records.is_empty() {
            wrong.push("there is no record in it".into());
        }
        let stamps = parts.records.iter().map(|(record, ..)| record.timestamp.get());
        let (first, last) = (stamps.clone().min().unwrap_or(0), stamps.max().unwrap_or(0));
        if (header.first_timestamp.get(), header.last_timestamp.get()) != (first, last) {
            wrong.push("its stamps are not those of its records".into());
        }
        let mut before = None;
        for state in &parts.ports {
            let sound = before < Some(state.port)
                && front.tables.ports.get(&state.port) == Some(&state.arbiter.get())
                && state.flags & !port_flags::VALID == 0
                && state.reserved.get() == 0
                && state.last_timestamp.get() == 0
                && state.last_number.get() == 0
                && state.last_sequence.get() == 0;
            if !sound {
                wrong.push(format!("its state of port {} makes no sense", state.port));
            }
            before = Some(state.port);
        }
        wrong
    }

    /// Gaps, markers and late answers, between windows.
    fn outside(
        &mut self,
        header: &BatchHeader,
        parts: &Parts,
        front: &Front,
        history: &mut History,
        report: &mut Report,
        wrong: &mut Vec<String>,
    ) {
        self.current = None;
        let named = header.first_order.get();
        if self.named.is_some_and(|known| known != named) {
            wrong.push(format!("it names order {named}, after {}", self.named.unwrap_or(0)));
        }
        self.named = Some(named);
        if parts.ports.iter().any(|state| state.flags != 0) {
            wrong.push("a port is complete, and there is no window".into());
        }
        for (record, kind, payload) in &parts.records {
            let stamp = record.timestamp.get();
            if stamp < self.timestamp || stamp <= self.end {
                wrong.push(format!("a {kind} stamped {stamp}, after {}", self.timestamp));
            }
            self.timestamp = self.timestamp.max(stamp);
            if !front.tables.ports.contains_key(&record.port) {
                wrong.push(format!("a {kind} of port {}, which is not in the table", record.port));
            }
            if *kind == Kind::Gap && history::gap(stamp, payload).is_none() {
                wrong.push(format!("the gap of port {} makes no sense", record.port));
            }
            if *kind == Kind::Completion {
                let is_volume = front.tables.volumes.contains_key(&record.volume.get());
                wrong.extend(late_answer(record, is_volume));
            }
            if stamp > self.portion.after_timestamp.get() {
                self.reach.timestamp = self.reach.timestamp.max(stamp);
                wrong.extend(history.outside(record, *kind, payload, report));
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn inside(
        &mut self,
        offset: u64,
        header: &BatchHeader,
        parts: &Parts,
        ends: &Ends,
        front: &Front,
        history: &mut History,
        report: &mut Report,
        wrong: &mut Vec<String>,
    ) {
        for (place, (record, kind, payload)) in parts.records.iter().enumerate() {
            match kind {
                Kind::Merged if place == 0 => {
                    self.begin(record, payload, ends, wrong);
                    self.take_ports(offset, parts, history, wrong);
                    report.windows += u64::from(self.is_part());
                }
                kind if is_entry(*kind) => {
                    if self.current.is_none() {
                        // Only where it began in what can't be read that isn't a fault of its own.
                        if !self.unsure && place == 0 {
                            wrong.push(format!("a {kind} outside of a window"));
                        }
                        self.take_up(header, parts);
                        if self.is_part() && !self.reach.damaged {
                            wrong.push("its window begins in a segment that was given up".into());
                        }
                    }
                    let part = self.is_part();
                    if let Some(window) = self.current.as_mut() {
                        wrong.extend(window.entry(record, *kind, front));
                    }
                    report.merged_entries += u64::from(part);
                    report.merged_bytes += u64::from(record.payload_bytes.get()) * u64::from(part);
                }
                kind => wrong.push(format!("a {kind} among the records of a window")),
            }
        }
        let Some(window) = &self.current else { return };
        if header.first_order.get() != window.last_order {
            let (named, last) = (header.first_order, window.last_order);
            wrong.push(format!("it names order {named}, and the last of its window is {last}"));
        }
        if parts.ports.as_bytes() != window.ports.as_bytes() {
            wrong.push("its states of ports are not those that its window began with".into());
        }
        self.named = Some(window.last_order);
        self.end = window.end;
        self.timestamp = self.timestamp.max(window.end);
    }

    /// Is the current window still part of the portion?
    fn is_part(&self) -> bool {
        self.current.as_ref().is_some_and(|window| window.end > self.portion.after_timestamp.get())
    }

    /// Takes a batch for one of a window whose beginning can't be read.
    fn take_up(&mut self, header: &BatchHeader, parts: &Parts) {
        let end = header.last_timestamp.get();
        self.current = Some(Window {
            begin: end,
            end,
            last_order: header.first_order.get(),
            at: (0, 0),
            ports: parts.ports.clone(),
        });
    }

    /// A window begins.
    fn begin(&mut self, record: &EntryHeader, payload: &[u8], ends: &Ends, wrong: &mut Vec<String>) {
        let (begin, end, last_order) = (record.sequence.get(), record.timestamp.get(), record.number.get());
        let Ok(window) = MergedWindow::read_from_bytes(payload) else {
            // That it has its length has been checked.
            wrong.push("its window can't be read".into());
            return;
        };
        let mut plain = EntryHeader::new(Kind::Merged);
        plain.timestamp = record.timestamp;
        plain.number = record.number;
        plain.sequence = record.sequence;
        plain.payload_bytes = record.payload_bytes;
        plain.payload_crc = record.payload_crc;
        plain.header_crc = record.header_crc;
        let (first_order, first, last) =
            (window.first_order.get(), window.first_timestamp.get(), window.last_timestamp.get());
        let after = self.portion.after_timestamp.get();
        let rules = [
            (*record == plain && window.reserved.get() == 0, "fields that should be zero"),
            (begin < end && end - begin < 1 << 56, "it ends before it begins, or is too long"),
            (begin < first && first <= last && last <= end, "its entries are not stamped in it"),
            (0 < first_order && first_order <= last_order, "its orders"),
            // Equal stamps have increasing orders, and one entry has one stamp.
            (first_order < last_order || first == last, "one entry with two stamps"),
            (begin >= self.end, "it begins before the one before has ended"),
            (
                end > self.timestamp || end == self.timestamp && self.end < end,
                "it stands behind what came later",
            ),
            (
                self.named.is_none_or(|named| named.checked_add(1) == Some(first_order)),
                "its orders don't follow those before",
            ),
            (ends.allow(end), "it ends neither at a multiple of its length nor at a moment that has a name"),
            (end <= after || begin >= after, "the portion begins in it"),
        ];
        for (_, what) in rules.iter().filter(|(holds, _)| !holds) {
            wrong.push(format!("the window up to {end}, order {first_order} to {last_order}: {what}"));
        }
        self.current = Some(Window { begin, end, last_order, at: (0, 0), ports: Vec::new() });
        if end > after {
            let first = self.reach.orders.map_or(first_order, |(first, _)| first);
            self.reach.orders = Some((first, last_order));
            self.reach.timestamp = self.reach.timestamp.max(end);
        }
    }

    /// What the first batch of a window says of the ports.
    fn take_ports(&mut self, offset: u64, parts: &Parts, history: &mut History, wrong: &mut Vec<String>) {
        let part = self.is_part();
        let Some(window) = self.current.as_mut() else { return };
        window.ports = parts.ports.clone();
        for state in parts.ports.iter().filter(|state| state.flags & port_flags::VALID != 0) {
            if state.delivered.get() < window.end {
                let (port, delivered) = (state.port, state.delivered);
                wrong.push(format!("port {port} is complete, and had delivered up to {delivered} only"));
            }
            if part && window.begin < window.end {
                history.complete(state.port, window.begin, window.end, offset);
            }
        }
    }
}

/// What is wrong with a late answer that was merged. `is_volume`: the table has the volume that it names.
fn late_answer(d: &EntryHeader, is_volume: bool) -> Option<String> {
    let mut plain = EntryHeader::new(Kind::Completion);
    (plain.timestamp, plain.number, plain.sequence) = (d.timestamp, d.number, d.sequence);
    (plain.lba, plain.sectors, plain.volume, plain.port) = (d.lba, d.sectors, d.volume, d.port);
    (plain.status, plain.payload_crc, plain.header_crc) = (d.status, d.payload_crc, d.header_crc);
    plain.flags = flags::LATE.into();
    let (order, last) = (d.number.get(), d.sequence.get());
    let (sectors, end) = (d.sectors.get(), d.lba() + u64::from(d.sectors.get()));
    let rules = [
        (*d == plain, "fields that should be zero, or it is not late"),
        ((d.journaled(), d.updated()) == (Ok(Journaled::Durable), Ok(Updated::Unknown)), "its status"),
        (order <= last, "it answers what came later"),
        (sectors == 0 || is_volume && end <= 1 << 48, "its sectors, or its volume"),
        (sectors > 0 || (d.lba(), d.volume.get()) == (0, NO_INDEX), "no sectors, and where they are"),
        (order == 0 || sectors > 0, "its entry is known, and not where it wrote"),
    ];
    let (_, what) = rules.iter().find(|(holds, _)| !holds)?;
    Some(format!("the late answer of port {} stamped {}: {what}", d.port, d.timestamp))
}

impl Window {
    /// Checks an entry of the window. What is wrong with it.
    fn entry(&mut self, d: &EntryHeader, kind: Kind, front: &Front) -> Vec<String> {
        let (volume, lba, end) = (d.volume.get(), d.lba(), d.lba() + u64::from(d.sectors.get()));
        let no_image = d.flags.get() & flags::NO_IMAGE != 0;
        let status = (d.journaled(), d.updated());
        let zero = d.sequence.get() == 0
            && d.slot == 0
            && d.clock_error.get() == 0
            && (d.answer_status, d.answer_error) == (0, 0)
            && d.source.get() == NO_INDEX;
        let rules = [
            (d.timestamp.get() == self.end, "its stamp is not the window's end"),
            (d.number.get() == self.last_order, "its number is not the window's last order"),
            (zero, "fields that should be zero"),
            (d.flags.get() & !flags::NO_IMAGE == 0, "flags"),
            (
                !no_image || kind == Kind::After && d.encoding == Encoding::Zero as u8,
                "without an image, and not so",
            ),
            (
                matches!(status, (Ok(Journaled::Durable), Ok(Updated::Updated | Updated::Unknown))),
                "its status is neither updated nor unknown",
            ),
            (end > lba && end <= 1 << 48, "its sectors"),
            (self.at <= (volume, lba), "it doesn't stand behind the one before"),
            (front.tables.volumes.contains_key(&volume), "its volume is not in the table"),
            (front.tables.ports.contains_key(&d.port), "its port is not in the table"),
        ];
        self.at = (volume, end);
        let broken = rules.iter().filter(|(holds, _)| !holds);
        broken.map(|(_, what)| format!("the {kind} of volume {volume} at sector {lba}: {what}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_answer_says_what_it_has_to_and_no_more() {
        let mut sound = EntryHeader::new(Kind::Completion);
        sound.flags = flags::LATE.into();
        sound.set_status(Journaled::Durable, Updated::Unknown);
        (sound.timestamp, sound.number, sound.sequence) = (1000.into(), 7.into(), 9.into());
        (sound.volume, sound.sectors, sound.port) = (0.into(), 8.into(), 1);
        sound.set_lba(64);
        let anywhere = EntryHeader {
            number: 0.into(),
            sectors: 0.into(),
            lba: [0; 6],
            volume: NO_INDEX.into(),
            ..sound
        };
        assert_eq!(late_answer(&sound, true), None);
        assert_eq!(late_answer(&anywhere, false), None);
        type Change = fn(&mut EntryHeader);
        let broken: [(&str, Change); 9] = [
            ("not late", |d| d.flags = 0.into()),
            ("not late", |d| d.flags = (flags::LATE | flags::DUPLICATE).into()),
            ("should be zero", |d| d.slot = 1),
            ("status", |d| d.set_status(Journaled::Durable, Updated::Updated)),
            ("came later", |d| d.number = 10.into()),
            ("its sectors", |d| d.set_lba((1 << 48) - 1)),
            ("and where they are", |d| d.sectors = 0.into()),
            ("not where it wrote", |d| (d.sectors, d.lba, d.volume) = (0.into(), [0; 6], NO_INDEX.into())),
            ("should be zero", |d| d.source = 3.into()),
        ];
        for (what, change) in broken {
            let mut header = sound;
            change(&mut header);
            let said = late_answer(&header, true).unwrap_or_default();
            assert!(said.contains(what), "{what}: {said}");
        }
        assert!(late_answer(&sound, false).is_some_and(|said| said.contains("or its volume")));
    }
}
