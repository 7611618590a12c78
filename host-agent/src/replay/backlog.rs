//! What was taken out of the rings and the journal had no room for.
//!
//! As long as there is such a thing, nothing more is taken out of the rings and nothing is offered: the rings fill,
//! and the card admits no more writes. Should the replay have to end in that state, what primary has and the journal
//! doesn't is a gap, and is journaled as one.

use super::ledger::Ledger;
use crate::error::Error;
use journal::{takes_order, Delivered, OwnedRecord};
use layout::entry::{EntryHeader, Gap, GapReason, Kind};
use std::collections::BTreeMap;
use std::time::Duration;
use zerocopy::IntoBytes;

/// How long to wait before the journal is asked for room again.
const ROOM_PAUSE: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Default)]
pub struct Backlog {
    held: Vec<OwnedRecord>,
    /// The journal is full and the replay has to end: entries are lost from here on.
    giving_up: bool,
    lost: u64,
    /// The last number that reached the journal.
    last_number: u64,
}

/// The first of a port's records that are lost, up to where its gap is recorded.
type Lost = BTreeMap<u8, EntryHeader>;

impl Backlog {
    /// Entries that didn't reach the journal.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Appends `records` behind what is held. Returns the headers of what the journal has taken; the rest is held.
    pub fn append(
        &mut self,
        ledger: &mut dyn Ledger,
        records: Vec<OwnedRecord>,
        delivered: &[Delivered],
    ) -> Result<Vec<EntryHeader>, Error> {
        self.held.extend(records);
        if self.giving_up {
            return self.lose_entries(ledger);
        }
        let headers: Vec<EntryHeader> = self.held.iter().map(|record| record.header).collect();
        let result = ledger.append(&mut self.held, delivered);
        let taken = self.taken(headers);
        match result {
            Ok(()) => {}
            Err(full @ journal::Error::Full { .. }) => ledger.on_full(full)?,
            Err(error) => return Err(error.into()),
        }
        Ok(taken)
    }

    /// The front of `headers`, of which the last are still held.
    fn taken(&mut self, mut headers: Vec<EntryHeader>) -> Vec<EntryHeader> {
        headers.truncate(headers.len() - self.held.len());
        let entries = headers.iter().filter(|header| kind(header).is_some_and(takes_order));
        self.last_number = entries.map(|header| header.number.get()).max().unwrap_or(self.last_number);
        headers
    }

    /// Returns when nothing is held any more: the journal has room again, or it is to be given up. Returns what the
    /// journal has taken.
    pub fn wait_for_room(
        &mut self,
        ledger: &mut dyn Ledger,
        delivered: &[Delivered],
    ) -> Result<Vec<EntryHeader>, Error> {
        let mut taken = Vec::new();
        if self.held.is_empty() {
            return Ok(taken);
        }
        // The wait may be long.
        ledger.sync()?;
        while !self.held.is_empty() {
            self.giving_up |= ledger.stop_requested();
            if !self.giving_up {
                std::thread::sleep(ROOM_PAUSE);
            }
            taken.extend(self.append(ledger, Vec::new(), delivered)?);
        }
        if !self.giving_up {
            ledger.on_room();
        }
        Ok(taken)
    }

    /// Nothing is held afterwards. Answers to entries that did reach the journal still do, for they take no
    /// room of entries; before each a gap says what is missing by then, so that a watermark never covers it up.
    fn lose_entries(&mut self, ledger: &mut dyn Ledger) -> Result<Vec<EntryHeader>, Error> {
        let (mut records, mut answers) = (Vec::new(), Vec::new());
        let (mut lost, mut until) = (Lost::new(), 0);
        for record in std::mem::take(&mut self.held) {
            let header = record.header;
            if kind(&header) == Some(Kind::Completion) && header.number.get() <= self.last_number {
                records.extend(
                    std::mem::take(&mut lost).into_iter().map(|(port, first)| gap(port, &first, until)),
                );
                records.push(record);
                answers.push(header);
                continue;
            }
            until = header.timestamp.get();
            lost.entry(header.port).or_insert(header);
            self.lost += u64::from(kind(&header).is_some_and(takes_order));
        }
        records.extend(lost.into_iter().map(|(port, first)| gap(port, &first, until)));
        ledger.append(&mut records, &[])?;
        Ok(answers)
    }
}

/// Records of `port` are missing from `first` on, up to `until`.
fn gap(port: u8, first: &EntryHeader, until: u64) -> OwnedRecord {
    let gap = Gap {
        from_timestamp: first.timestamp.get().saturating_sub(1).into(),
        from_number: first.number.get().saturating_sub(1).into(),
        reason: (GapReason::Lost as u32).into(),
        reserved: 0.into(),
    };
    let mut header = EntryHeader::new(Kind::Gap);
    header.port = port;
    header.timestamp = until.into();
    header.number = first.number;
    header.seal(gap.as_bytes());
    OwnedRecord { header, payload: gap.as_bytes().to_vec() }
}

fn kind(header: &EntryHeader) -> Option<Kind> {
    Kind::from_byte(header.kind).ok()
}
