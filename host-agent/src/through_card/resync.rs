//! Resync and read-back beside writes that go on.

use super::{bytes_of, Extents, Patience, Settled, Through, BATCH, PIECE_BYTES};
use crate::error::Error;
use journal::image::{Backing, Image};
use journal::resync::Resynced;
use journal::Moment;
use layout::SECTOR_BYTES;
use std::ops::Range;
use std::path::Path;

/// Largest entry in sectors.
const LARGEST_ENTRY: u64 = 32;
const SECTOR: usize = SECTOR_BYTES;

/// Sectors as primary had them.
struct Found {
    sectors: Range<u64>,
    data: Vec<u8>,
}

impl Through<'_> {
    /// Journals what primary has and the journal, over `base`, doesn't know of. Durable on return.
    pub fn resync(&mut self, base: &Path) -> Result<Resynced, Error> {
        let all = Extents::from(0..self.volume.sectors);
        let mut resynced = Resynced { compared: self.volume.bytes(), ..Resynced::default() };
        let mut gaps = None;
        self.until_known(all, &mut resynced, |through| {
            let (reader, name) = (through.reader()?, through.volume.name());
            let image = Image::open(reader, &name, Moment::End, Backing::Base(base), true, &mut |_, _| {})?;
            gaps.get_or_insert(image.facts().gaps.len() as u64);
            Ok(Some(image))
        })?;
        resynced.closed = gaps.unwrap_or(0);
        let (volume, epoch) = (self.volume.clone(), self.epoch);
        self.settled(move |settled| {
            // The marker closes every gap before it: none may have come since the comparison began.
            settled.check(epoch)?;
            settled.with(move |journal, stamps| {
                journal.resynced_beside(stamps, &volume)?;
                journal.sync().map(drop)
            })
        })?;
        Ok(resynced)
    }

    /// Reads back what nobody knows: where the target gave no answer, or a late one. Durable on return.
    pub fn read_back(&mut self) -> Result<Resynced, Error> {
        let known = Image::open_known(self.reader()?, &self.volume.name())?;
        let mut doubtful = Extents::default();
        for run in known.runs(0, known.bytes())?.into_iter().filter(|run| run.doubtful) {
            doubtful.add(run.offset / SECTOR as u64..(run.offset + run.bytes) / SECTOR as u64);
        }
        drop(known);
        let mut resynced = Resynced { compared: doubtful.sectors() * SECTOR as u64, ..Resynced::default() };
        self.until_known(doubtful, &mut resynced, |_| Ok(None))?;
        self.reader()?;
        Ok(resynced)
    }

    /// Again and again, until everything in `remaining` was journaled, or is as the image says, or was written anew.
    /// Without an image everything is journaled.
    fn until_known(
        &mut self,
        mut remaining: Extents,
        resynced: &mut Resynced,
        mut image: impl FnMut(&Self) -> Result<Option<Image>, Error>,
    ) -> Result<(), Error> {
        let total = remaining.sectors();
        self.bar.set_length(total * SECTOR as u64);
        let mut patience = Patience::new(self.way);
        self.way.watch(self.volume.index)?;
        self.epoch = Some(self.settled(|settled| Ok(settled.epoch))?);
        while !remaining.is_empty() {
            let image = image(self)?;
            self.pass(&mut remaining, image.as_ref(), resynced)?;
            // What has been written since, and executed, the journal knows.
            remaining.remove_all(&self.way.watch(self.volume.index)?);
            self.bar.set_position((total - remaining.sectors()) * SECTOR as u64);
            if !remaining.is_empty() {
                patience.wait(&self.volume, &remaining)?;
            }
        }
        Ok(())
    }

    fn pass(
        &mut self,
        remaining: &mut Extents,
        image: Option<&Image>,
        resynced: &mut Resynced,
    ) -> Result<(), Error> {
        let total = self.bar.length().unwrap_or(0);
        let pieces: Vec<Range<u64>> = remaining.iter().flat_map(pieces).collect();
        for batch in pieces.chunks(BATCH) {
            let blocked = self.way.unsettled(self.volume.index)?;
            let mut same = Extents::default();
            let mut differs = Vec::new();
            for range in
                batch.iter().flat_map(|piece| blocked.gaps_in(piece.clone()).iter().collect::<Vec<_>>())
            {
                self.compare(range, image, &mut same, &mut differs)?;
            }
            if same.is_empty() && differs.is_empty() {
                continue;
            }
            let (volume, epoch) = (self.volume.clone(), self.epoch);
            let (known, entries, sectors) = self.settled(move |settled| {
                settled.check(epoch)?;
                journal_found(settled, &volume, same, differs)
            })?;
            remaining.remove_all(&known);
            resynced.entries += entries;
            resynced.differed += sectors * SECTOR as u64;
            self.bar.set_position(total.saturating_sub(remaining.sectors() * SECTOR as u64));
        }
        Ok(())
    }

    /// Reads, and puts aside what isn't as the journal says.
    fn compare(
        &mut self,
        range: Range<u64>,
        image: Option<&Image>,
        same: &mut Extents,
        differs: &mut Vec<Found>,
    ) -> Result<(), Error> {
        let bytes = bytes_of(&range);
        let length = (bytes.end - bytes.start) as usize;
        let mut there = vec![0; length];
        self.read(&mut there, bytes.start)?;
        let Some(image) = image else {
            differs.push(Found { sectors: range, data: there });
            return Ok(());
        };
        let mut known = vec![0; length];
        image.read_at(&mut known, bytes.start)?;
        let mut is_same: Vec<bool> =
            known.chunks(SECTOR).zip(there.chunks(SECTOR)).map(|(a, b)| a == b).collect();
        for run in image.runs(bytes.start, length as u64)?.into_iter().filter(|run| run.doubtful) {
            let first = (run.offset - bytes.start) as usize / SECTOR;
            is_same[first..first + run.bytes as usize / SECTOR].fill(false);
        }
        let mut at = 0;
        for run in is_same.chunk_by(|a, b| a == b) {
            let sectors = range.start + at as u64..range.start + (at + run.len()) as u64;
            match run[0] {
                true => same.add(sectors),
                false => {
                    let data = there[at * SECTOR..(at + run.len()) * SECTOR].to_vec();
                    differs.push(Found { sectors, data });
                }
            }
            at += run.len();
        }
        Ok(())
    }
}

/// Journals what was found where nothing was written since. What is known by that, entries, and their sectors.
fn journal_found(
    settled: &Settled<'_>,
    volume: &journal::Volume,
    mut same: Extents,
    differs: Vec<Found>,
) -> Result<(Extents, u64, u64), Error> {
    let Some(written) = settled.written.clone() else {
        let why = "the card was brought up anew meanwhile, and what it had under way isn't known; try again";
        return Err(Error::Failed(why.into()));
    };
    same.remove_all(&written);
    if differs.is_empty() {
        return Ok((same, 0, 0));
    }
    let volume = volume.clone();
    settled.with(move |journal, stamps| {
        let (mut entries, mut sectors) = (0, 0);
        for Found { sectors: found, data } in differs {
            for range in written.gaps_in(found.clone()).iter() {
                let mut first = range.start;
                while first < range.end && stamps.left() > 0 {
                    let end = range.end.min(first + LARGEST_ENTRY);
                    let at = (first - found.start) as usize * SECTOR;
                    let part = data[at..at + (end - first) as usize * SECTOR].to_vec();
                    journal.resync_beside(stamps, &volume, first * SECTOR as u64, part)?;
                    same.add(first..end);
                    (entries, sectors) = (entries + 1, sectors + end - first);
                    first = end;
                }
            }
        }
        Ok((same, entries, sectors))
    })
}

fn pieces(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let most = PIECE_BYTES / SECTOR as u64;
    (range.start..range.end).step_by(most as usize).map(move |start| start..range.end.min(start + most))
}
