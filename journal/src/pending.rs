//! Entries that nobody has answered: while their session runs the answer may come, afterwards it never will.

use crate::error::Error;
use crate::payloads::Payloads;
use crate::reader::JournalReader;
use crate::record::StoredRecord;
use crate::writer::Journal;
use layout::entry::{Kind, Updated};
use std::collections::BTreeMap;
use std::sync::Arc;

impl Journal {
    /// The entries of a volume that have no answer, in the order of their numbers. Found by the indexes of segments, so it
    /// takes no reading of all batches.
    pub fn pending(&self, volume: u16) -> Result<Vec<StoredRecord>, Error> {
        let reader = JournalReader::open_on(Arc::clone(&self.storage))?;
        let payloads = Payloads::new(&reader);
        let mut pending: BTreeMap<(u16, u64), (u32, u64)> = BTreeMap::new();
        for source in reader.sources()?.iter().filter(|source| source.portion == 0) {
            let part = source.load(&reader)?;
            for note in &part.notes {
                let key = (reader.arbiter(note.port), note.number.get());
                match Kind::from_byte(note.kind) {
                    Ok(Kind::Completion) => drop(pending.remove(&key)),
                    Ok(Kind::After | Kind::Before | Kind::Both)
                        if note.status >> 4 == Updated::Pending as u8 =>
                    {
                        pending.insert(key, (part.slot, u64::from(note.descriptor.get())));
                    }
                    _ => {}
                }
            }
        }
        let mut records = Vec::new();
        for (slot, descriptor) in pending.into_values() {
            let record = payloads.record(slot, descriptor)?;
            if record.header.volume.get() == volume {
                records.push(record);
            }
        }
        Ok(records)
    }
}
