//! After an unclean stop primary may be ahead of the journal: what differs is journaled from primary, and
//! history goes on (DESIGN §3.6).
//!
//! Everything is compared, with the journal's last state over the base. A marker at the end says that the
//! volume was compared in full; without it, after a crash in between, nothing is closed, and the next
//! resync does it again.

mod regions;

pub use regions::ReadPrimary;

use crate::error::Error;
use crate::image::{Backing, Image};
use crate::moment::Moment;
use crate::reader::JournalReader;
use crate::record::{Delivered, OwnedRecord, Record};
use crate::tables::Volume;
use crate::writer::{now, Journal};
use layout::entry::{EntryHeader, Journaled, Kind, Updated};
use layout::SECTOR_BYTES;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// Bytes that are compared at a time.
const PIECE_BYTES: u64 = 1 << 20;
/// Largest resync entry in sectors.
const LARGEST_ENTRY: usize = 32;

/// What a resync found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resynced {
    /// Bytes that were compared.
    pub compared: u64,
    /// Bytes that differed, in whole sectors.
    pub differed: u64,
    /// Entries that were journaled.
    pub entries: u64,
    /// Ports whose gaps are closed for this volume.
    pub closed: u64,
}

/// What differs, without changing anything.
pub fn compare(
    reader: JournalReader,
    volume: &str,
    primary: &Path,
    base: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Resynced, Error> {
    let comparison = Comparison::open(reader, volume, primary, base)?;
    let mut resynced = comparison.start();
    comparison.each(progress, &mut |_, data| {
        resynced.differed += data.len() as u64;
        Ok(())
    })?;
    Ok(resynced)
}

impl Journal {
    /// Journals what `primary` has and the journal, over `base`, doesn't know of. Nothing may write to
    /// primary meanwhile. Durable on return.
    pub fn resync(
        &mut self,
        volume: &str,
        primary: &Path,
        base: &Path,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Resynced, Error> {
        self.sync()?;
        let reader = JournalReader::open_on(Arc::clone(&self.storage))?;
        let comparison = Comparison::open(reader, volume, primary, base)?;
        let mut resynced = comparison.start();
        let volume = comparison.image.volume().clone();
        let largest = LARGEST_ENTRY * SECTOR_BYTES;
        comparison.each(progress, &mut |offset, data| {
            resynced.differed += data.len() as u64;
            for (index, data) in data.chunks(largest).enumerate() {
                self.append_resync(&volume, offset + (index * largest) as u64, data.to_vec())?;
                resynced.entries += 1;
            }
            Ok(())
        })?;
        self.append_resynced(&volume)?;
        self.sync()?;
        Ok(resynced)
    }

    /// Journals what primary has at `offset`.
    pub(crate) fn append_resync(&mut self, volume: &Volume, offset: u64, data: Vec<u8>) -> Result<(), Error> {
        self.append_read_back(volume, offset, data, 0)
    }

    /// The same, as an entry with these flags.
    pub(crate) fn append_read_back(
        &mut self,
        volume: &Volume,
        offset: u64,
        data: Vec<u8>,
        entry_flags: u16,
    ) -> Result<(), Error> {
        let mut header = self.next_header(Kind::Resync, self.own_port(volume)?, volume.index);
        header.flags = entry_flags.into();
        header.set_lba(offset / SECTOR_BYTES as u64);
        header.sectors = ((data.len() / SECTOR_BYTES) as u16).into();
        header.set_status(Journaled::Port, Updated::Updated);
        header.seal(&data);
        self.append_own(&OwnedRecord { header, payload: data })
    }

    /// The port that the owner's own records of a volume stand under: one of its arbiter.
    pub(crate) fn own_port(&self, volume: &Volume) -> Result<u8, Error> {
        let port = self.tables().ports.iter().find(|port| port.arbiter == volume.arbiter);
        port.map(|port| port.port).ok_or_else(|| {
            Error::Invalid(format!(
                "volume {} has no port, so nothing of it was ever journaled",
                volume.name()
            ))
        })
    }

    /// The header of a record of the owner's own, stamped behind everything that the journal has or promised.
    pub(crate) fn next_header(&self, kind: Kind, port: u8, volume: u16) -> EntryHeader {
        let end = self.end();
        let last = end.arbiters.iter().map(|arbiter| arbiter.timestamp).max().unwrap_or(end.timestamp);
        let arbiter = self.tables().ports.iter().find(|known| known.port == port).map(|known| known.arbiter);
        let number = end.arbiters.iter().find(|known| Some(known.arbiter) == arbiter).map_or(0, |a| a.number);
        let mut header = EntryHeader::new(kind);
        header.port = port;
        header.volume = volume.into();
        header.timestamp = now().max(last + 1).into();
        header.number = (number + 1).into();
        header.sequence = self.chain.ports.get(&port).map_or(0, |state| state.last_sequence.get()).into();
        header
    }

    /// Appends it. Nothing of any port is still to come from before: ports begin behind the journal's end.
    pub(crate) fn append_own(&mut self, record: &OwnedRecord) -> Result<(), Error> {
        self.append_own_record(&record.as_record())
    }

    /// The same with the payload where it lies.
    pub(crate) fn append_own_record(&mut self, record: &Record<'_>) -> Result<(), Error> {
        let timestamp = record.header.timestamp.get();
        let delivered: Vec<Delivered> =
            self.tables().ports.iter().map(|port| Delivered { port: port.port, timestamp }).collect();
        self.append_any(&[*record], &delivered).map(drop)
    }
}

/// Called with the offset of what differs, and what primary has there.
type Differing<'a> = dyn FnMut(u64, &[u8]) -> Result<(), Error> + 'a;

/// Primary, and what the journal takes it to be.
struct Comparison {
    image: Image,
    primary: File,
    name: String,
}

impl Comparison {
    fn open(reader: JournalReader, volume: &str, primary: &Path, base: &Path) -> Result<Self, Error> {
        let image = Image::open(reader, volume, Moment::End, Backing::Base(base), true, &mut |_, _| {})?;
        let (name, primary) =
            crate::image::open_backing(Backing::Primary(primary), image.volume(), image.volume().sectors)?;
        Ok(Self { image, primary, name })
    }

    fn start(&self) -> Resynced {
        let closed = self.image.facts().gaps.len() as u64;
        Resynced { compared: self.image.bytes(), closed, ..Resynced::default() }
    }

    /// Calls `differing` for each run of sectors that differ, with what primary has.
    fn each(&self, progress: &mut dyn FnMut(u64, u64), differing: &mut Differing<'_>) -> Result<(), Error> {
        let total = self.image.bytes();
        let length = PIECE_BYTES.min(total) as usize;
        let (mut known, mut there) = (vec![0; length], vec![0; length]);
        let mut at = 0;
        while at < total {
            let length = PIECE_BYTES.min(total - at) as usize;
            let (known, there) = (&mut known[..length], &mut there[..length]);
            self.image.read_at(known, at)?;
            crate::backing::read(&self.primary, &self.name, there, at)?;
            let differs = |sector: usize| {
                let range = sector * SECTOR_BYTES..((sector + 1) * SECTOR_BYTES).min(length);
                known[range.clone()] != there[range]
            };
            let sectors = length.div_ceil(SECTOR_BYTES);
            let mut sector = 0;
            while sector < sectors {
                let first = sector;
                while sector < sectors && differs(sector) {
                    sector += 1;
                }
                if sector > first {
                    let range = first * SECTOR_BYTES..(sector * SECTOR_BYTES).min(length);
                    differing(at + range.start as u64, &there[range])?;
                } else {
                    sector += 1;
                }
            }
            at += length as u64;
            progress(at, total);
        }
        Ok(())
    }
}
