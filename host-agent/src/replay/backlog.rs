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
    /// Nothing is held.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

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
                    std::mem::take(&mut lost)
                        .into_iter()
                        .map(|(port, first)| gap(port, before(&first), until)),
                );
                records.push(record);
                answers.push(header);
                continue;
            }
            if kind(&header) == Some(Kind::Gap) {
                // It says more than that it is missing.
                let gaps = std::mem::take(&mut lost).into_iter();
                records.extend(gaps.map(|(port, first)| gap(port, before(&first), until)));
                records.push(record);
                answers.push(header);
                continue;
            }
            until = header.timestamp.get();
            lost.entry(header.port).or_insert(header);
            self.lost += u64::from(kind(&header).is_some_and(takes_order));
        }
        records.extend(lost.into_iter().map(|(port, first)| gap(port, before(&first), until)));
        ledger.append(&mut records, &[])?;
        Ok(answers)
    }
}

/// Records of `port` behind `from`, stamp and number, are missing up to `until`.
pub fn gap(port: u8, from: (u64, u64), until: u64) -> OwnedRecord {
    let gap = Gap {
        from_timestamp: from.0.into(),
        from_number: from.1.into(),
        reason: (GapReason::Lost as u32).into(),
        reserved: 0.into(),
    };
    let mut header = EntryHeader::new(Kind::Gap);
    header.port = port;
    header.timestamp = until.into();
    header.number = (from.1 + 1).into();
    header.seal(gap.as_bytes());
    OwnedRecord { header, payload: gap.as_bytes().to_vec() }
}

/// Where the gap begins that the record with this header is the first of.
fn before(first: &EntryHeader) -> (u64, u64) {
    (first.timestamp.get().saturating_sub(1), first.number.get().saturating_sub(1))
}

fn kind(header: &EntryHeader) -> Option<Kind> {
    Kind::from_byte(header.kind).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use journal::{Durable, End, Opened, Source, Tables};
    use layout::entry::Updated;
    use zerocopy::FromBytes;

    /// Takes so many entries at a time as there is room for, and gets room after having been asked a few times.
    #[derive(Default)]
    struct Scripted {
        room: usize,
        /// So much room is made when it has been full that often.
        more: Vec<(usize, usize)>,
        fulls: usize,
        stop: bool,
        taken: Vec<OwnedRecord>,
        said: Vec<&'static str>,
    }

    impl Ledger for Scripted {
        fn opened(&self) -> &Opened {
            unreachable!("it is open")
        }

        fn tables(&self) -> &Tables {
            unreachable!("nobody asks for volumes")
        }

        fn end(&self) -> End {
            unreachable!("nobody asks where it ended")
        }

        fn append(&mut self, records: &mut Vec<OwnedRecord>, _: &[Delivered]) -> Result<(), journal::Error> {
            while let Some(record) = records.first() {
                if kind(&record.header).is_some_and(takes_order) {
                    if self.room == 0 {
                        let file = "scripted".to_owned();
                        return Err(journal::Error::Full {
                            file,
                            free: 0,
                            total: 0,
                            reserved: 0,
                            appended: 0,
                        });
                    }
                    self.room -= 1;
                }
                self.taken.push(records.remove(0));
            }
            Ok(())
        }

        fn note_source(&mut self, _: Source) -> Result<(), Error> {
            Ok(())
        }

        fn sync(&mut self) -> Result<Durable, Error> {
            self.said.push("sync");
            Ok(Durable { order: 0, timestamp: 0, numbers: Vec::new() })
        }

        fn close(self: Box<Self>) -> Result<Durable, Error> {
            unreachable!("it stays open")
        }

        fn on_full(&mut self, _: journal::Error) -> Result<(), Error> {
            self.fulls += 1;
            self.said.push("full");
            let made = self.more.iter().filter(|(fulls, _)| *fulls == self.fulls).map(|(_, room)| room);
            self.room += made.sum::<usize>();
            Ok(())
        }

        fn on_room(&mut self) {
            self.said.push("room");
        }

        fn stop_requested(&self) -> bool {
            self.stop
        }
    }

    fn record(kind: Kind, port: u8, stamp: u64, number: u64) -> OwnedRecord {
        let mut header = EntryHeader::new(kind);
        header.port = port;
        header.timestamp = stamp.into();
        header.number = number.into();
        header.set_status(layout::entry::Journaled::Port, Updated::Pending);
        OwnedRecord { header, payload: Vec::new() }
    }

    fn stamps(records: &[OwnedRecord]) -> Vec<u64> {
        records.iter().map(|record| record.header.timestamp.get()).collect()
    }

    #[test]
    fn it_goes_on_where_it_stopped_when_there_is_room_again() {
        let mut backlog = Backlog::default();
        let mut ledger = Scripted { room: 2, more: vec![(2, 1), (4, 9)], ..Scripted::default() };
        let entries = (1..=6).map(|n| record(Kind::After, 0, n * 10, n)).collect();
        let taken = backlog.append(&mut ledger, entries, &[]).unwrap();
        assert_eq!((taken.len(), stamps(&ledger.taken)), (2, vec![10, 20]));
        let taken = backlog.wait_for_room(&mut ledger, &[]).unwrap();
        assert_eq!((taken.len(), stamps(&ledger.taken)), (4, vec![10, 20, 30, 40, 50, 60]));
        // Durable before it waits; room once, and only when everything is taken.
        assert_eq!(ledger.said, ["full", "sync", "full", "full", "full", "room"]);
        assert_eq!((backlog.wait_for_room(&mut ledger, &[]).unwrap().len(), backlog.lost()), (0, 0));
        backlog.append(&mut ledger, vec![record(Kind::After, 0, 70, 7)], &[]).unwrap();
        assert_eq!(ledger.taken.len(), 7);
    }

    #[test]
    fn what_has_no_room_until_the_end_becomes_gaps_before_anything_behind_it() {
        let mut backlog = Backlog::default();
        let mut ledger = Scripted { room: 1, stop: true, ..Scripted::default() };
        let records = vec![
            record(Kind::After, 0, 10, 1),
            record(Kind::After, 0, 20, 2),
            record(Kind::After, 1, 30, 3),
            record(Kind::Completion, 0, 40, 1),
            record(Kind::Completion, 0, 50, 2),
            record(Kind::After, 1, 60, 4),
        ];
        backlog.append(&mut ledger, records, &[]).unwrap();
        assert_eq!(ledger.taken.len(), 1);
        let taken = backlog.wait_for_room(&mut ledger, &[]).unwrap();
        assert_eq!(taken.len(), 1, "the answer to what the journal has");
        backlog.append(&mut ledger, vec![record(Kind::After, 0, 70, 5)], &[]).unwrap();
        assert_eq!(backlog.lost(), 4);
        let got: Vec<_> = ledger
            .taken
            .iter()
            .map(|record| {
                let from = Gap::read_from_bytes(&record.payload).map_or(0, |gap| gap.from_timestamp.get());
                (kind(&record.header).unwrap(), record.header.port, from, record.header.timestamp.get())
            })
            .collect();
        // The lost answer at 50 is in a gap too, as everything that isn't there.
        let expected = [
            (Kind::After, 0, 0, 10),
            (Kind::Gap, 0, 19, 30),
            (Kind::Gap, 1, 29, 30),
            (Kind::Completion, 0, 0, 40),
            (Kind::Gap, 0, 49, 60),
            (Kind::Gap, 1, 59, 60),
            (Kind::Gap, 0, 69, 70),
        ];
        assert_eq!(got, expected);
        let crc_fits = |record: &OwnedRecord| record.header.computed_crc() == record.header.header_crc.get();
        assert!(ledger.taken.iter().filter(|record| kind(&record.header) == Some(Kind::Gap)).all(crc_fits));
    }
}
