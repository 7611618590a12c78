//! Resync of parts of a volume: where primary may be ahead of the journal is known, because software ports keep a
//! durable log of it.
//!
//! A base isn't needed: sectors that the journal knows nothing of are journaled as primary has them.

use super::{Resynced, LARGEST_ENTRY};
use crate::error::Error;
use crate::image::{Backing, Image, Origin};
use crate::moment::Moment;
use crate::reader::JournalReader;
use crate::tables::Volume;
use crate::writer::Journal;
use layout::entry::{flags, Encoding, Journaled, Kind, Updated};
use layout::SECTOR_BYTES;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Bytes that are looked at at a time.
const PIECE_BYTES: u64 = 1 << 20;
/// Most sectors of an entry: its field has 16 bits.
const MOST_SECTORS: u64 = u16::MAX as u64;

/// Reads primary storage.
pub type ReadPrimary<'a> = dyn FnMut(&mut [u8], u64) -> io::Result<()> + 'a;

impl Journal {
    /// Journals what primary has in `regions` (bytes, in whole sectors, rising) and the journal doesn't know of, then that
    /// the whole volume is known: outside of them primary has what the journal says. Nothing may write to primary
    /// meanwhile. With a base what it holds counts as known. Durable on return.
    pub fn resync_regions(
        &mut self,
        volume: &str,
        regions: &[Range<u64>],
        base: Option<&Path>,
        primary: &mut ReadPrimary<'_>,
    ) -> Result<Resynced, Error> {
        self.sync()?;
        let row = self.tables().volume(volume)?.clone();
        let mut resynced = Resynced::default();
        if !regions.is_empty() {
            let reader = JournalReader::open_on(Arc::clone(&self.storage))?;
            let image = match base {
                Some(base) => {
                    Image::open(reader, volume, Moment::End, Backing::Base(base), true, &mut |_, _| {})?
                }
                None => Image::open_known(reader, volume)?,
            };
            resynced.closed = image.facts().gaps.len() as u64;
            for region in regions {
                let mut at = region.start;
                let end = region.end.min(image.bytes());
                while at < end {
                    let piece = at..end.min(at + PIECE_BYTES);
                    at = piece.end;
                    self.resync_piece(&row, &image, base.is_some(), piece, primary, &mut resynced)?;
                }
            }
        }
        self.append_resynced(&row)?;
        self.sync()?;
        Ok(resynced)
    }

    fn resync_piece(
        &mut self,
        volume: &Volume,
        image: &Image,
        has_base: bool,
        piece: Range<u64>,
        primary: &mut ReadPrimary<'_>,
        resynced: &mut Resynced,
    ) -> Result<(), Error> {
        let length = (piece.end - piece.start) as usize;
        let (mut known, mut there) = (vec![0; length], vec![0; length]);
        primary(&mut there, piece.start).map_err(|e| {
            let action = format!("reading {length} bytes of primary at offset {}", piece.start);
            Error::io(&volume.name(), action, e)
        })?;
        image.read_at(&mut known, piece.start)?;
        let sectors = length / SECTOR_BYTES;
        let mut differs: Vec<bool> = (0..sectors)
            .map(|sector| known[bytes_of(sector..sector + 1)] != there[bytes_of(sector..sector + 1)])
            .collect();
        for run in image.runs(piece.start, length as u64)? {
            // What nobody knows, and what isn't certain.
            if run.doubtful || (run.origin == Origin::Backing && !has_base) {
                let first = (run.offset - piece.start) as usize / SECTOR_BYTES;
                differs[first..first + run.bytes as usize / SECTOR_BYTES].fill(true);
            }
        }
        resynced.compared += length as u64;
        let mut sector = 0;
        while sector < sectors {
            let same = differs[sector..].iter().take_while(|differs| !**differs).count();
            let first = sector + same;
            let count = differs[first..].iter().take_while(|differs| **differs).count();
            sector = first + count;
            if count > 0 {
                let run = first..sector;
                resynced.differed += bytes_of(run.clone()).len() as u64;
                resynced.entries += self.journal_run(
                    volume,
                    piece.start + bytes_of(0..first).len() as u64,
                    &there[bytes_of(run)],
                )?;
            }
        }
        Ok(())
    }

    /// Journals a run that differs, zeroes as such. How many entries it took.
    fn journal_run(&mut self, volume: &Volume, offset: u64, data: &[u8]) -> Result<u64, Error> {
        let is_zero = |chunk: &[u8]| chunk.iter().all(|byte| *byte == 0);
        let (mut entries, mut zeroes, mut at) = (0, 0u64, offset);
        for chunk in data.chunks(LARGEST_ENTRY * SECTOR_BYTES) {
            let bytes = chunk.len() as u64;
            let zero = is_zero(chunk);
            if zeroes > 0 && (!zero || (zeroes + bytes) / SECTOR_BYTES as u64 > MOST_SECTORS) {
                self.append_resync_zeroes(volume, at - zeroes, zeroes)?;
                entries += 1;
                zeroes = 0;
            }
            if zero {
                zeroes += bytes;
            } else {
                self.append_resync(volume, at, chunk.to_vec())?;
                entries += 1;
            }
            at += bytes;
        }
        if zeroes > 0 {
            self.append_resync_zeroes(volume, at - zeroes, zeroes)?;
            entries += 1;
        }
        Ok(entries)
    }

    fn append_resync_zeroes(&mut self, volume: &Volume, offset: u64, bytes: u64) -> Result<(), Error> {
        let mut header = self.next_header(Kind::Resync, self.own_port(volume)?, volume.index);
        header.set_lba(offset / SECTOR_BYTES as u64);
        header.sectors = ((bytes / SECTOR_BYTES as u64) as u16).into();
        header.encoding = Encoding::Zero as u8;
        header.set_status(Journaled::Port, Updated::Updated);
        header.seal(&[]);
        self.append_own(&crate::record::OwnedRecord { header, payload: Vec::new() })
    }

    /// Says that primary has what the journal says: gaps up to here are closed for the volume.
    pub(super) fn append_resynced(&mut self, volume: &Volume) -> Result<(), Error> {
        let mut marker = self.next_header(Kind::Marker, self.own_port(volume)?, volume.index);
        marker.flags = flags::RESYNCED.into();
        marker.seal(&[]);
        self.append_own(&crate::record::OwnedRecord { header: marker, payload: Vec::new() })
    }
}

fn bytes_of(sectors: Range<usize>) -> Range<usize> {
    sectors.start * SECTOR_BYTES..sectors.end * SECTOR_BYTES
}
