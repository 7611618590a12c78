//! The final watermark: the stamp up to which every status is settled (DESIGN §3.3). Nothing beyond is merged; nor is what
//! primary storage of a software port may have to be replayed from (its checkpoint lies before it).

use crate::error::Error;
use crate::reader::JournalReader;
use crate::tables::Address;
use layout::entry::{Kind, Updated};
use layout::journal_file::technique;
use std::collections::HashMap;

/// Every entry stamped at or below this has all the answer that it will get, and is durable, and nothing at or
/// below is still to come from any port.
///
/// *Unknown* is settled. So is an entry that was pending when its session stopped without ending: a gap of its port
/// follows, and nobody will answer any more.
pub(crate) fn final_watermark(reader: &JournalReader) -> Result<u64, Error> {
    // By arbiter and number: port and stamp.
    let mut pending: HashMap<(u16, u64), (u8, u64)> = HashMap::new();
    let checkpoints = checkpoints(reader);
    let mut replayed = u64::MAX;
    for source in reader.sources()?.iter().filter(|source| source.portion == 0) {
        let part = source.load(reader)?;
        for row in part.rows.iter().filter(|_| !checkpoints.is_empty()) {
            let order = part.first_order + u64::from(row.order.get());
            if checkpoints.get(&row.volume.get()).is_some_and(|checkpoint| order > *checkpoint) {
                replayed = replayed.min(row.timestamp.get().saturating_sub(1));
            }
        }
        for note in &part.notes {
            let key = (reader.arbiter(note.port), note.number.get());
            match Kind::from_byte(note.kind) {
                Ok(Kind::Completion) => drop(pending.remove(&key)),
                Ok(Kind::Gap) => pending.retain(|_, (port, _)| *port != note.port),
                Ok(Kind::After | Kind::Before | Kind::Both) if note.status >> 4 == Updated::Pending as u8 => {
                    pending.insert(key, (note.port, note.timestamp.get()));
                }
                _ => {}
            }
        }
    }
    let settled = pending.values().map(|(_, stamp)| stamp.saturating_sub(1)).min();
    let summary = reader.summary();
    // A later batch may begin with the stamp that the durable one ends with.
    let durable = reader.head().note.timestamp.get().saturating_sub(1);
    Ok(settled.unwrap_or(u64::MAX).min(replayed).min(summary.delivered).min(durable))
}

/// Of the volumes whose primary may lag behind the journal, which is its redo log: up to which order it doesn't.
fn checkpoints(reader: &JournalReader) -> HashMap<u16, u64> {
    let volumes = reader.tables().volumes.iter();
    let lagging = volumes.filter(|volume| {
        matches!(volume.address, Address::Nbd(_)) && volume.technique & technique::AFTER != 0
    });
    lagging.map(|volume| (volume.index, volume.primary.0)).collect()
}
