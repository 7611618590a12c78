//! After a session that didn't end in order: what a target has and the journal doesn't is journaled, before the ports are opened.
//!
//! Targets may be ahead of the journal where only the data after a write are journaled: then what the log of dirty regions marks is
//! compared, or everything where it can't tell. Where data before a write are journaled, every entry was durable before its write was
//! let through; only what wasn't answered is read.

use super::dirty::{bytes_of, Doubt};
use super::target::Target;
use super::volumes::Volumes;
use super::Switching;
use crate::error::Error;
use crate::output::{bytes, count, Output};
use journal::{Journal, PreviousEnd, StoredRecord, Volume};
use layout::entry::{GapReason, Updated};
use layout::journal_file::technique;
use layout::SECTOR_BYTES;
use ports::dirty_log::Found;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

/// What a volume is to be looked at for.
struct Left {
    /// Where its target may be ahead of the journal.
    doubt: Doubt,
    /// Entries that were not answered when their session ended.
    pending: Vec<StoredRecord>,
}

impl Left {
    /// Of a volume that the journal may have.
    fn of(journal: &Journal, row: &Volume, log: Option<&Found>) -> Result<Option<Self>, Error> {
        if journal.tables().volume(&row.name()).is_err() {
            return Ok(None);
        }
        let stopped = journal.opened().previous == PreviousEnd::Unclean || journal.gap_is_pending();
        let pending = journal.pending(row.index)?;
        let doubt = match (row.technique, log) {
            (technique::AFTER, Some(log)) => Doubt::of(log, journal, row, !pending.is_empty())?,
            (technique::AFTER, None) if stopped => Doubt::Anywhere("there is none".into()),
            // Whatever it is compared for, that closes every gap.
            (BOTH, _) if (stopped || !pending.is_empty()) && not_of_a_stop(journal, row)? => {
                Doubt::Anywhere("the journal has a gap that is not of a stop".into())
            }
            // The stop's gap is closed; nothing is ahead.
            _ if stopped => Doubt::There(Vec::new()),
            _ => Doubt::Nowhere,
        };
        let left = Self { doubt, pending };
        Ok((left.doubt != Doubt::Nowhere || !left.pending.is_empty()).then_some(left))
    }

    /// Where the target may have something else than the journal says.
    fn regions(&self, row: &Volume, bytes: u64) -> Vec<Range<u64>> {
        // Nothing can be made of what is there now: the data before are what counts.
        if row.technique == technique::BEFORE {
            return Vec::new();
        }
        let unanswered = self.pending.iter().map(region);
        merged(unanswered.chain(self.doubt.regions(bytes)).collect())
    }
}

const BOTH: u8 = technique::AFTER | technique::BEFORE;

fn not_of_a_stop(journal: &Journal, row: &Volume) -> Result<bool, Error> {
    Ok(journal.open_gaps(row.index)?.iter().any(|reason| *reason != GapReason::UncleanStop))
}

fn region(entry: &StoredRecord) -> Range<u64> {
    let from = entry.header.lba() * SECTOR_BYTES as u64;
    from..from + u64::from(entry.header.sectors.get()) * SECTOR_BYTES as u64
}

/// Makes the journal know what targets have, if a session before did not end in order. Its ports are closed.
pub fn recover(
    arguments: &Switching,
    journal: &mut Journal,
    volumes: &Volumes,
    log: Option<&Found>,
    target: &mut Target<'_>,
    output: &mut Output,
) -> Result<(), Error> {
    let mut left = Vec::new();
    for (row, address) in volumes.each() {
        if let Some(of_volume) = Left::of(journal, row, log)? {
            left.push((row, address, of_volume));
        }
    }
    if left.is_empty() {
        return Ok(());
    }
    // What the session before had let through may be on its way for as long.
    std::thread::sleep(Duration::from_millis(arguments.quarantine));
    for (row, address, of_volume) in left {
        let name = row.name();
        let size = bytes_of(journal, row)?;
        let regions = of_volume.regions(row, size);
        if let Doubt::Anywhere(why) = &of_volume.doubt {
            output.note(format!(
                "volume {name}: where it was written last nobody can tell ({why}): everything is compared"
            ));
        }
        for entry in &of_volume.pending {
            journal.settle(entry, Updated::Unknown)?;
        }
        let of = |given: &[crate::arguments::VolumeFile]| {
            let given = given.iter().find(|given| (given.shelf, given.slot) == address);
            given.map(|given| given.file.clone())
        };
        let (base, primary) = (of(&arguments.base), of(&arguments.primary));
        let mut read = reader(&name, address, primary.as_deref(), target, !regions.is_empty())?;
        let resynced = journal.resync_regions(&name, &regions, base.as_deref(), &mut *read)?;
        output.note(format!(
            "volume {name}: the session before did not end in order: {} unanswered, {} of {} compared, {} journaled from \
             the target; moments from now on are certain",
            count(of_volume.pending.len() as u64, "write", "writes"),
            bytes(resynced.compared),
            bytes(size),
            bytes(resynced.differed)
        ));
    }
    Ok(())
}

type Read<'a> = Box<dyn FnMut(&mut [u8], u64) -> io::Result<()> + 'a>;

/// Reads what a volume holds: from the file that was named, or through the uplink.
fn reader<'a>(
    name: &str,
    address: (u16, u8),
    primary: Option<&Path>,
    target: &'a mut Target<'_>,
    is_needed: bool,
) -> Result<Read<'a>, Error> {
    if let Some(path) = primary {
        let file = File::open(path).map_err(|e| Error::io(path, "opening primary storage", e))?;
        return Ok(Box::new(move |buffer, offset| file.read_exact_at(buffer, offset)));
    }
    let found = target
        .sectors(address)
        .map_err(|e| Error::Failed(format!("volume {name}: asking its target: {e}")))?;
    if found.is_none() && is_needed {
        return Err(Error::Failed(format!(
            "volume {name}: the session before did not end in order, and its target doesn't answer: start it, give its \
             storage with --primary {name}=FILE, or put it off with --no-resync"
        )));
    }
    Ok(Box::new(move |buffer, offset| target.read(address, buffer, offset)))
}

/// Rising, without overlaps.
fn merged(mut regions: Vec<Range<u64>>) -> Vec<Range<u64>> {
    regions.sort_by_key(|region| region.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for region in regions {
        match merged.last_mut() {
            Some(last) if region.start <= last.end => last.end = last.end.max(region.end),
            _ => merged.push(region),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_rise_and_do_not_overlap() {
        assert_eq!(merged(vec![512..1024, 0..512, 4096..5120, 4608..4700]), [0..1024, 4096..5120]);
        assert_eq!(merged(Vec::new()), []);
    }
}
