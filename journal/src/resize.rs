//! A volume gets another size: a marker says so, behind everything that the journal has.
//!
//! Before a volume shrinks, the sectors that it loses are journaled as written with zeroes. So a sector that comes
//! back later holds zeroes by what the journal itself says, in either direction, and every earlier moment can be made
//! over the smaller primary: what the lost sectors held stands in those entries, or over a base in earlier ones.
//!
//! The order is: the entries, pending; the marker; durable; that the entries were executed. A crash before the marker
//! is durable leaves a volume of the old size and entries that nobody knows the fate of (primary still has the data);
//! resizing again journals them anew. Primary is cut, or extended, only once the marker is durable.

use crate::backing;
use crate::error::Error;
use crate::image::{next_data, open_backing, Backing};
use crate::reader::JournalReader;
use crate::record::OwnedRecord;
use crate::rollback::entry_kind;
use crate::sizes::{Sizes, MOST_SECTORS};
use crate::tables::Volume;
use crate::writer::Journal;
use layout::entry::{flags, Encoding, EntryHeader, Journaled, Kind, Resize, Updated, NO_INDEX};
use layout::journal_file::technique;
use layout::SECTOR_BYTES;
use std::fs::{File, OpenOptions};
use std::path::Path;
use std::sync::Arc;
use zerocopy::IntoBytes;

/// Most sectors of an entry without payload.
const LARGEST_ZERO: u64 = u16::MAX as u64;

/// What a resize did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resized {
    /// Sectors before.
    pub before: u64,
    /// Sectors from here on. The same as before: nothing was done.
    pub after: u64,
    /// Entries that say that the lost sectors were written with zeroes.
    pub entries: u64,
}

impl Journal {
    /// Journals that a volume has another size from here on. Nothing may write to it meanwhile. Durable on return.
    ///
    /// Primary is not changed: cut it, or extend it, afterwards ([`fit_primary`] does that for a file). A volume with
    /// before-images that shrinks needs `primary`, as large as before: what it loses is read there.
    pub fn resize(&mut self, volume: &str, sectors: u64, primary: Option<&Path>) -> Result<Resized, Error> {
        self.resize_flagged(volume, sectors, primary, 0)
    }

    /// As a part of a rollback.
    pub(crate) fn resize_for_rollback(
        &mut self,
        volume: &str,
        sectors: u64,
        primary: &Path,
    ) -> Result<Resized, Error> {
        self.resize_flagged(volume, sectors, Some(primary), flags::ROLLBACK)
    }

    fn resize_flagged(
        &mut self,
        volume: &str,
        sectors: u64,
        primary: Option<&Path>,
        entry_flags: u16,
    ) -> Result<Resized, Error> {
        let volume = self.tables().volume(volume)?.clone();
        if sectors == 0 || sectors > MOST_SECTORS {
            return Err(Error::Invalid(format!("a volume has 1 to {MOST_SECTORS} sectors, not {sectors}")));
        }
        self.sync()?;
        self.settle_what_was_left(&volume)?;
        let before = sizes(self, &volume)?.now();
        let mut resized = Resized { before, after: sectors, entries: 0 };
        if sectors == before {
            return Ok(resized);
        }
        let port = self.own_port(&volume)?;
        let mut written = Vec::new();
        if sectors < before {
            let lost = Lost { from: sectors, to: before, entry_flags };
            written = self.zero_what_is_lost(&volume, lost, primary)?;
        }
        resized.entries = written.len() as u64;
        let payload = Resize { before: before.into(), after: sectors.into() };
        let mut marker = self.next_header(Kind::Marker, port, volume.index);
        marker.flags = flags::RESIZED.into();
        marker.seal(payload.as_bytes());
        self.append_own(&OwnedRecord { header: marker, payload: payload.as_bytes().to_vec() })?;
        // 1. From here on the volume has its new size.
        self.sync()?;
        // 2. Whatever primary does with the lost sectors, they are zeroes to everyone. A crash before this leaves
        //    zeroes that are called doubtful, where nothing is any more.
        for entry in written {
            self.append_answer(&entry, Updated::Updated)?;
        }
        self.sync()?;
        Ok(resized)
    }

    /// What an interrupted resize, or rollback, of the volume left pending nobody answers any more: it is unknown from
    /// here on, or nothing behind it would ever be merged. The owner's own entries are known by having no source.
    fn settle_what_was_left(&mut self, volume: &Volume) -> Result<(), Error> {
        if !self.ports_closed {
            return Ok(());
        }
        for record in self.pending(volume.index)? {
            let own = record.header.source.get() == NO_INDEX && record.session < self.chain.session;
            if own {
                self.append_answer(&record.header, Updated::Unknown)?;
            }
        }
        self.sync()?;
        Ok(())
    }

    fn append_answer(&mut self, entry: &EntryHeader, updated: Updated) -> Result<(), Error> {
        let mut header = self.next_header(Kind::Completion, entry.port, entry.volume.get());
        header.number = entry.number;
        header.lba = entry.lba;
        header.sectors = entry.sectors;
        header.set_status(Journaled::Pending, updated);
        header.seal(&[]);
        self.append_own(&OwnedRecord { header, payload: Vec::new() })
    }

    fn zero_what_is_lost(
        &mut self,
        volume: &Volume,
        lost: Lost,
        primary: Option<&Path>,
    ) -> Result<Vec<EntryHeader>, Error> {
        let with_before = volume.technique & technique::BEFORE != 0;
        let mut written = Vec::new();
        let mut zeroes = Zeroes { at: lost.from, end: lost.from, entry_flags: lost.entry_flags };
        if !with_before {
            self.check_resize_room((0, 0, 0), lost.sectors())?;
            zeroes.end = lost.to;
            self.append_zeroes(volume, &mut zeroes, &mut written)?;
            return Ok(written);
        }
        let Some(primary) = primary else {
            return Err(Error::Invalid(format!(
                "volume {} is journaled with before-images: what the {} sectors that it loses hold has to be read from primary first (--primary)",
                volume.name(),
                lost.sectors()
            )));
        };
        let (name, file) = open_whole(primary, volume, lost.to)?;
        let piece = self.piece_bytes(volume) as u64;
        let sector = SECTOR_BYTES as u64;
        let (from, to) = (lost.from * sector, lost.to * sector);
        let looking = |e| Error::io(&name, "looking for data", e);
        let mut data = (0, 0);
        let mut at = from;
        while at < to {
            let (start, end) = next_data(&file, at, to).map_err(looking)?;
            data = (data.0 + end - start, data.1 + (end - start).div_ceil(piece));
            at = end.max(at + 1);
        }
        let images = if volume.technique & technique::AFTER != 0 { 2 } else { 1 };
        self.check_resize_room((data.0 * images, data.1, images * piece), lost.sectors())?;
        let mut buffer = vec![0; piece as usize];
        let mut at = from;
        while at < to {
            let (start, end) = next_data(&file, at, to).map_err(looking)?;
            // Holes of a file may begin anywhere; sectors are whole.
            let (start, end) = (start / sector * sector, end.next_multiple_of(sector).min(to));
            zeroes.end = start.max(at) / sector;
            at = start.max(at);
            while at < end {
                let part = &mut buffer[..piece.min(end - at) as usize];
                backing::read(&file, &name, part, at)?;
                let next = (at + part.len() as u64) / sector;
                if part.iter().all(|byte| *byte == 0) {
                    zeroes.end = next;
                } else {
                    self.append_zeroes(volume, &mut zeroes, &mut written)?;
                    written.push(self.append_lost(volume, at / sector, part.to_vec(), lost.entry_flags)?);
                    zeroes = Zeroes { at: next, end: next, ..zeroes };
                }
                at = next * sector;
            }
            if start >= to {
                at = to;
            }
        }
        zeroes.end = lost.to;
        self.append_zeroes(volume, &mut zeroes, &mut written)?;
        Ok(written)
    }

    /// Sectors that held zeroes, or whose data nobody needs from here: entries without payload.
    fn append_zeroes(
        &mut self,
        volume: &Volume,
        zeroes: &mut Zeroes,
        written: &mut Vec<EntryHeader>,
    ) -> Result<(), Error> {
        while zeroes.at < zeroes.end {
            let sectors = LARGEST_ZERO.min(zeroes.end - zeroes.at);
            let extent = (zeroes.at, sectors);
            written.push(self.append_zeroing(
                volume,
                extent,
                Encoding::Zero,
                Vec::new(),
                zeroes.entry_flags,
            )?);
            zeroes.at += sectors;
        }
        Ok(())
    }

    /// Sectors that held something.
    fn append_lost(
        &mut self,
        volume: &Volume,
        lba: u64,
        before: Vec<u8>,
        entry_flags: u16,
    ) -> Result<EntryHeader, Error> {
        let sectors = (before.len() / SECTOR_BYTES) as u64;
        let mut payload = before;
        if entry_kind(volume) == Kind::Both {
            payload.resize(2 * payload.len(), 0);
        }
        self.append_zeroing(volume, (lba, sectors), Encoding::Raw, payload, entry_flags)
    }

    fn append_zeroing(
        &mut self,
        volume: &Volume,
        (lba, sectors): (u64, u64),
        encoding: Encoding,
        payload: Vec<u8>,
        entry_flags: u16,
    ) -> Result<EntryHeader, Error> {
        assert!(0 < sectors && sectors <= LARGEST_ZERO, "an entry has 16 bits for its sectors");
        let mut header = self.next_header(entry_kind(volume), self.own_port(volume)?, volume.index);
        header.encoding = encoding as u8;
        header.flags = entry_flags.into();
        header.set_lba(lba);
        header.sectors = (sectors as u16).into();
        header.set_status(Journaled::Port, Updated::Pending);
        header.seal(&payload);
        self.append_own(&OwnedRecord { header, payload })?;
        Ok(header)
    }

    /// It has to fit before anything is begun.
    fn check_resize_room(
        &self,
        (bytes, pieces, largest): (u64, u64, u64),
        sectors: u64,
    ) -> Result<(), Error> {
        // Between any two pieces there may be zeroes.
        let entries = 2 * pieces + 1 + sectors / LARGEST_ZERO;
        match self.has_room(bytes, entries, largest) {
            Ok(()) => Ok(()),
            Err((needed, there)) => Err(Error::Invalid(format!(
                "what the volume loses takes up to {needed} bytes in the journal; it has {there} left"
            ))),
        }
    }
}

/// Sectors that a volume loses.
#[derive(Clone, Copy)]
struct Lost {
    from: u64,
    to: u64,
    /// Of the entries that say so.
    entry_flags: u16,
}

impl Lost {
    fn sectors(&self) -> u64 {
        self.to - self.from
    }
}

/// Sectors, of those lost, that hold zeroes and are not yet journaled.
struct Zeroes {
    at: u64,
    end: u64,
    entry_flags: u16,
}

fn open_whole(primary: &Path, volume: &Volume, sectors: u64) -> Result<(String, File), Error> {
    open_backing(Backing::Primary(primary), volume, sectors).map_err(|error| match error {
        Error::Base { file, .. } => Error::Base {
            file,
            what: format!(
                "primary has to have the {sectors} sectors of volume {} until the journal has what it loses; cut it afterwards",
                volume.name()
            ),
        },
        other => other,
    })
}

/// Every size of a volume.
pub(crate) fn sizes(journal: &Journal, volume: &Volume) -> Result<Sizes, Error> {
    let reader = JournalReader::open_on(Arc::clone(&journal.storage))?;
    Ok(reader.sizes()?.remove(&volume.index).unwrap_or_else(|| Sizes::of(volume.sectors)))
}

/// Gives primary the volume's size, durably, if it is a regular file that still has the one before. The journal has to
/// know of it already, so that nothing is lost by it. False: it has the size already.
pub fn fit_primary(reader: &JournalReader, volume: &str, primary: &Path) -> Result<bool, Error> {
    let volume = reader.tables().volume(volume)?;
    let sizes = reader.sizes()?.remove(&volume.index).unwrap_or_else(|| Sizes::of(volume.sectors));
    let file = backing::open(primary, "primary")?;
    let name = primary.display().to_string();
    let bytes = |sectors: u64| sectors.saturating_mul(u64::from(volume.sector_bytes));
    let has = backing::size(&file).map_err(|e| Error::io(&name, "asking for primary's size", e))?;
    let wanted = bytes(sizes.now());
    if has == wanted {
        return Ok(false);
    }
    let before = sizes.last_change().map(|change| bytes(change.before));
    let metadata = file.metadata().map_err(|e| Error::io(&name, "looking at it", e))?;
    if before != Some(has) || !metadata.is_file() {
        return Err(Error::Base {
            file: name,
            what: format!(
                "it has {has} bytes, and volume {} has {wanted} now ({} sectors): give primary that size",
                volume.name(),
                sizes.now()
            ),
        });
    }
    let file = OpenOptions::new()
        .write(true)
        .open(primary)
        .map_err(|e| Error::io(&name, "opening primary for writing", e))?;
    let fitted = file.set_len(wanted).and_then(|()| file.sync_all());
    fitted.map_err(|e| Error::io(&name, format!("giving it {wanted} bytes"), e))?;
    Ok(true)
}
