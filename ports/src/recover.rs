//! Before volumes are served again: what an unclean stop left uneven between journal and primary is made even.
//!
//! After a **kill** the page cache lives on: primary has all that was answered, the journal lacks what was still in partial
//! journals. After a **power cut** either may lack anything that wasn't synced. So:
//!
//! 1. In another boot (or where primary could not be synced) the journal is the redo log: what it has behind primary's
//!    checkpoint is written to primary again, in order. In the same boot that would put older data over newer.
//! 2. Dirty regions are compared, and what primary has and the journal doesn't is journaled as *resync* entries. The gap that
//!    the stop left ends there.
//! 3. Primary is durable up to the journal's end: its new checkpoint.

use crate::dirty_log::Found;
use crate::primary::Primary;
use journal::resync::Resynced;
use journal::{Entry, Journal, JournalReader, PreviousEnd};
use layout::entry::{Encoding, Kind, Updated};
use layout::journal_file::technique;
use layout::SECTOR_BYTES;
use std::io;
use std::path::Path;

/// A volume that is going to be served.
pub struct ToRecover<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where its data are.
    pub primary: &'a dyn Primary,
    /// Its base: what it holds needn't be journaled where the journal has nothing.
    pub base: Option<&'a Path>,
}

/// What was done for a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Its name.
    pub name: String,
    /// Entries that were written to primary again, and their bytes.
    pub replayed: (u64, u64),
    /// What was compared; `None`: nothing had to be.
    pub resynced: Option<Resynced>,
    /// Writes that had been let through and not answered, and were settled.
    pub settled: u64,
    /// Before-images alone, and the machine went down: moments from this stamp on up to now aren't known.
    pub lost_since: Option<u64>,
    /// Everything was compared, for this reason.
    pub whole: Option<String>,
}

/// Why a volume could not be recovered. Nothing is lost: try again when the reason is gone.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The journal.
    #[error("volume {volume}: {source}")]
    Journal {
        /// The volume.
        volume: String,
        /// Why.
        source: journal::Error,
    },
    /// Primary storage.
    #[error("{file}: {action}: {source}")]
    Primary {
        /// Its name.
        file: String,
        /// What was tried.
        action: String,
        /// What the system said.
        source: io::Error,
    },
}

/// The identity of this boot of the kernel; zero: it isn't told, and none is the same.
pub fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: Vec<u8> =
        text.bytes().filter_map(|byte| char::from(byte).to_digit(16)).map(|d| d as u8).collect();
    let mut id = [0; 16];
    if digits.len() == 32 {
        id.iter_mut().zip(digits.chunks(2)).for_each(|(byte, pair)| *byte = pair[0] << 4 | pair[1]);
    }
    id
}

/// Makes journal and primary even. The journal has been opened, with its ports closed, and nothing was appended since.
pub fn recover(
    journal: &mut Journal,
    found: &Found,
    boot_id: [u8; 16],
    volumes: &[ToRecover<'_>],
) -> Result<Vec<Recovered>, RecoverError> {
    // A recovery that was interrupted leaves a gap that stands in the journal, and the log as it was.
    let unclean = journal.opened().previous == PreviousEnd::Unclean
        || journal.gap_is_pending()
        || found.clean == Some(false);
    let of = |volume: &str| {
        let volume = volume.to_owned();
        move |source| RecoverError::Journal { volume, source }
    };
    // Another kernel has started since, or nobody knows.
    let rebooted = boot_id == [0; 16] || boot_id != found.boot_id;
    let mut recovered = Vec::new();
    for volume in volumes {
        let mut done = Recovered { name: volume.name.to_owned(), ..Recovered::default() };
        let Ok(row) = journal.tables().volume(volume.name).cloned() else {
            // It is new.
            continue;
        };
        let (redo, ahead) = (row.technique & technique::AFTER != 0, row.technique == technique::AFTER);
        // An error of writing back that nobody has heard of yet shows here.
        let synced = volume.primary.sync();
        let lags = journal.end().order > row.primary.0;
        if lags && redo && (rebooted || found.replay || synced.is_err()) {
            done.replayed =
                replay(journal, row.index, row.primary.0, volume).map_err(|error| match error {
                    Failed::Journal(source) => of(volume.name)(source),
                    Failed::Primary(action, source) => primary_error(volume, action, source),
                })?;
            volume.primary.sync().map_err(|e| primary_error(volume, "making it durable", e))?;
        } else {
            synced.map_err(|e| primary_error(volume, "making it durable", e))?;
        }
        if !redo && rebooted && lags && unclean {
            // The journal has what was there before, and not what came after: what isn't in primary any more is nowhere.
            journal.note_lost_writes(volume.name, row.primary.1).map_err(of(volume.name))?;
            done.lost_since = Some(row.primary.1);
        }
        if unclean {
            done.settled = settle(journal, row.index, redo.then_some(row.primary.0), volume).map_err(
                |error| match error {
                    Failed::Journal(source) => of(volume.name)(source),
                    Failed::Primary(action, source) => primary_error(volume, action, source),
                },
            )?;
            volume.primary.sync().map_err(|e| primary_error(volume, "making it durable", e))?;
        }
        let regions = match found.regions(row.index) {
            _ if !ahead => Vec::new(),
            Some(regions) => regions,
            None if !unclean => Vec::new(),
            None => {
                done.whole.clone_from(&found.uncertain);
                std::iter::once(0..volume.primary.bytes()).collect()
            }
        };
        if unclean || !regions.is_empty() {
            let mut read = |buffer: &mut [u8], offset| volume.primary.read_at(buffer, offset);
            let resynced = journal.resync_regions(volume.name, &regions, volume.base, &mut read);
            done.resynced = Some(resynced.map_err(of(volume.name))?);
        }
        let end = journal.end();
        if end.order > row.primary.0 {
            journal
                .set_primary_checkpoint(&[row.index], (end.order, end.timestamp))
                .map_err(of(volume.name))?;
        }
        if done.replayed.0 > 0 || done.resynced.is_some() || done.lost_since.is_some() {
            recovered.push(done);
        }
    }
    Ok(recovered)
}

enum Failed {
    Journal(journal::Error),
    Primary(String, io::Error),
}

impl From<journal::Error> for Failed {
    fn from(error: journal::Error) -> Self {
        Failed::Journal(error)
    }
}

fn primary_error(volume: &ToRecover<'_>, action: impl Into<String>, source: io::Error) -> RecoverError {
    RecoverError::Primary { file: volume.primary.name().to_owned(), action: action.into(), source }
}

/// Writes to primary what the journal has behind `after`. How many entries and bytes that were.
fn replay(journal: &Journal, volume: u16, after: u64, to: &ToRecover<'_>) -> Result<(u64, u64), Failed> {
    let reader = JournalReader::open_on(journal.storage())?;
    let (mut entries, mut bytes) = (0, 0);
    for entry in reader.entries()? {
        let entry = entry?;
        let executed = !matches!(entry.updated, Updated::Refused | Updated::Cancelled);
        let of_volume = entry.record.header.volume.get() == volume;
        if entry.order > after && of_volume && executed && entry.record.kind != Kind::Before {
            bytes += execute(&reader, &entry, to)?;
            entries += 1;
        }
    }
    Ok((entries, bytes))
}

/// Entries that were durable and not answered when their session ended: with after-images they are executed now (nothing that
/// overlaps came behind them, if they lie behind the checkpoint `after`), else nobody will ever know. How many there were.
fn settle(journal: &mut Journal, volume: u16, after: Option<u64>, to: &ToRecover<'_>) -> Result<u64, Failed> {
    let reader = JournalReader::open_on(journal.storage())?;
    let mut pending = Vec::new();
    for entry in reader.entries()? {
        let entry = entry?;
        if entry.record.header.volume.get() == volume && entry.updated == Updated::Pending {
            pending.push(entry);
        }
    }
    for entry in &pending {
        let executed = after.is_some_and(|after| entry.order > after);
        if executed {
            execute(&reader, entry, to)?;
        }
        journal.settle(&entry.record, if executed { Updated::Updated } else { Updated::Unknown })?;
    }
    Ok(pending.len() as u64)
}

/// Writes an entry's data to primary. How many bytes that were.
fn execute(reader: &JournalReader, entry: &Entry, to: &ToRecover<'_>) -> Result<u64, Failed> {
    let header = &entry.record.header;
    let (offset, length) =
        (header.lba() * SECTOR_BYTES as u64, u64::from(header.sectors.get()) * SECTOR_BYTES as u64);
    // What lies past the end that the volume has now is gone for good.
    if offset + length > to.primary.bytes() {
        return Ok(0);
    }
    let written = if header.encoding == Encoding::Zero as u8 {
        to.primary.zero_at(offset, length, true)
    } else {
        let payload = reader.payload(&entry.record)?;
        // Of both images the second is the one after.
        to.primary.write_at(&payload[payload.len() - length as usize..], offset)
    };
    written.map_err(|e| Failed::Primary(format!("replaying order:{} at offset {offset}", entry.order), e))?;
    Ok(length)
}
