//! Entries that awaited their answers for long, by their numbers.

use super::part::Part;
use crate::error::Error;
use crate::reader::JournalReader;
use crate::segment::lba;
use layout::entry::{EntryHeader, Kind};
use layout::journal_file::IndexRow;
use std::collections::{HashMap, HashSet};

/// An entry that awaited its answer for long.
pub(crate) struct UnsettledEntry {
    pub order: u64,
    volume: u16,
    lba: u64,
    sectors: u16,
}

impl UnsettledEntry {
    /// Puts where it wrote into the header of its answer.
    pub fn place(&self, answer: &mut EntryHeader) {
        answer.volume = self.volume.into();
        answer.set_lba(self.lba);
        answer.sectors = self.sectors.into();
    }

    fn of(row: &IndexRow, part: &Part) -> Self {
        Self {
            order: part.first_order + u64::from(row.order.get()),
            volume: row.volume.get(),
            lba: lba(row),
            sectors: row.sectors.get(),
        }
    }
}

impl JournalReader {
    /// Entries of the received portion by arbiter and number, as far as they may still have been unanswered when their
    /// segments were sealed; also those that have been merged, as long as their segments are there.
    pub(crate) fn unsettled_entries(
        &self,
        wanted: &HashSet<(u16, u64)>,
    ) -> Result<HashMap<(u16, u64), UnsettledEntry>, Error> {
        let mut found = HashMap::new();
        for source in self.sources()?.iter().filter(|source| source.portion == 0) {
            if found.len() == wanted.len() {
                break;
            }
            let part = source.load_all(self)?;
            for note in &part.notes {
                let key = (self.arbiter(note.port), note.number.get());
                let is_entry =
                    matches!(Kind::from_byte(note.kind), Ok(Kind::After | Kind::Before | Kind::Both));
                if !is_entry || !wanted.contains(&key) {
                    continue;
                }
                let its = |row: &&IndexRow| (row.timestamp, row.port) == (note.timestamp, note.port);
                found.extend(part.rows.iter().find(its).map(|row| (key, UnsettledEntry::of(row, &part))));
            }
        }
        Ok(found)
    }
}
