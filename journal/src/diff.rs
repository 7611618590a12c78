//! What was written between two moments.

use crate::error::Error;
use crate::history::{self, MissingSpan, Span, Wanted};
use crate::moment::Moment;
use crate::payloads::Payloads;
use crate::pit_map::{PitMap, Prefer};
use crate::reader::JournalReader;
use crate::windows;
use std::collections::BTreeMap;

/// Bytes that were written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Byte offset in the volume.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
    /// Port of the last write there.
    pub port: u8,
}

/// What came through a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortChange {
    /// Writes.
    pub writes: u64,
    /// Bytes of those writes, each counted as often as it was written.
    pub bytes_written: u64,
}

/// What was written between two moments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Order and stamp of the last entry at or before the first moment; 0: none.
    pub from: (u64, u64),
    /// Of the second.
    pub to: (u64, u64),
    /// Where, in order of location. Whether other data were written there than there had been is not
    /// looked at.
    pub changed: Vec<Changed>,
    /// Bytes that the volume had at the first moment, and at the second.
    pub sizes: (u64, u64),
    /// By port.
    pub ports: BTreeMap<u8, PortChange>,
    /// Writes that were not executed.
    pub skipped: u64,
    /// Gaps in between: more may have been written.
    pub gaps: Vec<MissingSpan>,
}

/// What was written to `volume` behind `from` and up to `to`.
pub fn diff(
    reader: &JournalReader,
    volume: &str,
    from: Moment,
    to: Moment,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Difference, Error> {
    let volume = reader.tables().volume(volume)?.clone();
    let asked = (from, to);
    let (from, to) = (windows::locate(reader, from)?, windows::locate(reader, to)?);
    let payloads = Payloads::new(reader);
    let span = Span { after: Some(from), until: to, wanted: Wanted::Any };
    let found = history::read(reader, &payloads, &volume, span, progress)?;
    let (before, after) = (found.after, found.until);
    if before > after || matches!((from, to), (Moment::End, Moment::Order(_) | Moment::Timestamp(_))) {
        return Err(Error::Invalid(format!("{from} lies behind {to}: give the earlier moment first")));
    }
    let mut ports: BTreeMap<u8, PortChange> = BTreeMap::new();
    let sector = u64::from(volume.sector_bytes);
    for write in &found.writes {
        let port = ports.entry(write.port()).or_default();
        port.writes += 1;
        port.bytes_written += (write.end() - write.lba()) * sector;
    }
    let mut changed: Vec<Changed> = Vec::new();
    for extent in PitMap::build(found.writes, Prefer::Last).extents() {
        let (offset, bytes) = (extent.lba * sector, u64::from(extent.sectors) * sector);
        match changed.last_mut() {
            Some(last) if last.port == extent.port && last.offset + last.bytes == offset => {
                last.bytes += bytes
            }
            _ => changed.push(Changed { offset, bytes, port: extent.port }),
        }
    }
    let bytes = |at, last_entry| found.sizes.at(at, last_entry).saturating_mul(sector);
    let sizes = (bytes(asked.0, found.after_written), bytes(asked.1, found.until_written));
    let gaps = found.gaps.into_iter().filter(|gap| gap.to > before.1 && gap.from < after.1).collect();
    Ok(Difference { from: before, to: after, changed, sizes, ports, skipped: found.skipped, gaps })
}
