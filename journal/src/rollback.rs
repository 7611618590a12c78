//! Brings primary back in place to what it was at a moment, journaled like any write, so that it can be
//! undone.
//!
//! Markers stand around it. Between them, for each piece: the entry is durable, then primary is written; after
//! a batch of pieces primary is made durable, and completions say so. Interrupted anywhere, it can be begun
//! again (what is right already isn't written) or undone: the moment before it is a moment like any other.

use crate::backing;
use crate::diff::diff;
use crate::error::Error;
use crate::image::{open_backing, Backing, Image};
use crate::moment::Moment;
use crate::reader::JournalReader;
use crate::record::OwnedRecord;
use crate::resize::{fit_primary, sizes};
use crate::tables::Volume;
use crate::writer::Journal;
use layout::entry::{flags, Kind, Rollback};
use layout::journal_file::{technique, BLOCK_BYTES};
use layout::SECTOR_BYTES;
use std::fs::{File, OpenOptions};
use std::path::Path;
use std::sync::Arc;
use zerocopy::IntoBytes;

mod buffers;
mod plan;
mod undo;
mod work;

pub use plan::Plan;

use work::{Work, SYNC_BYTES};

/// Largest piece: what one entry brings back, in sectors.
const LARGEST_PIECE: usize = 256;

/// What is to be brought back.
#[derive(Clone, Copy, Debug)]
pub struct RollbackOptions<'a> {
    /// Name of the volume.
    pub volume: &'a str,
    /// Its primary storage, which is written. Nobody else may write it meanwhile.
    pub primary: &'a Path,
    /// Makes the image from after-images over this base, not from before-images over primary.
    pub base: Option<&'a Path>,
    /// What it is brought back to.
    pub to: Target,
    /// Cross gaps, though the result may be wrong.
    pub allow_gaps: bool,
}

impl RollbackOptions<'_> {
    fn is_undo(&self) -> bool {
        matches!(self.to, Target::Undo { .. })
    }
}

/// What primary is brought back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A moment.
    Moment(Moment),
    /// What it was before the last rollback; an undo that was interrupted is finished. Writes of others that came after
    /// that rollback, or since it was interrupted, are lost to primary (not to the journal); unless `discard`, there must
    /// be none.
    Undo {
        /// Discard them.
        discard: bool,
    },
}

/// What a rollback did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RolledBack {
    /// Order and stamp of the last entry at or before the moment that primary was brought back to.
    pub target: (u64, u64),
    /// Last order from before the rollback: the moment that brings back what it replaced.
    pub before: u64,
    /// Last order of the rollback.
    pub last: u64,
    /// Bytes that were compared.
    pub compared: u64,
    /// Bytes of primary that were written.
    pub written: u64,
    /// Entries that were journaled for that.
    pub entries: u64,
    /// Sectors that the volume had before the rollback, and has now, if that is not the same.
    pub resized: Option<(u64, u64)>,
    /// Writes after the last rollback that an undo discarded.
    pub discarded: u64,
}

impl Journal {
    /// Brings a volume back in place. Everything is durable on return.
    pub fn roll_back(
        &mut self,
        options: &RollbackOptions<'_>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<RolledBack, Error> {
        self.sync()?;
        // A resize that was interrupted between the journal and primary.
        if sizes(self, self.tables().volume(options.volume)?)?.last_change().is_some() {
            let reader = JournalReader::open_on(Arc::clone(&self.storage))?;
            fit_primary(&reader, options.volume, options.primary)?;
        }
        self.read_back_doubtful(options)?;
        self.sync()?;
        let (at, discarded) = target(options, &JournalReader::open_on(Arc::clone(&self.storage))?)?;
        let mut done = RolledBack { before: self.end().order, discarded, ..RolledBack::default() };
        self.resize_to(options, at, &mut done)?;
        let reader = || JournalReader::open_on(Arc::clone(&self.storage));
        let extents = changed_since(&reader()?, options, at)?;
        let backing = match options.base {
            Some(base) => Backing::Base(base),
            None => Backing::Primary(options.primary),
        };
        let image = Image::open(reader()?, options.volume, at, backing, options.allow_gaps, &mut |_, _| {})?;
        let primary = open_primary(options.primary, image.volume())?;
        self.check_room(image.volume(), &extents)?;
        let facts = image.facts();
        done.target = (facts.order, facts.timestamp);
        if done.resized.is_none() {
            self.mark_rollback(image.volume(), &done, options.is_undo())?;
        }
        Work::new(self, &image, primary).run(&extents, &mut done, progress)?;
        done.last = self.end().order.max(1);
        self.mark_rollback(image.volume(), &done, options.is_undo())?;
        self.sync()?;
        Ok(done)
    }

    /// The volume gets the size that it had at the moment, as the rollback's first step: behind the marker with which
    /// it begins, so that an undo takes it back. A file is cut or extended, anything else has to be given its size by
    /// whoever it belongs to.
    fn resize_to(
        &mut self,
        options: &RollbackOptions<'_>,
        at: Moment,
        done: &mut RolledBack,
    ) -> Result<(), Error> {
        let volume = self.tables().volume(options.volume)?.clone();
        let reader = || JournalReader::open_on(Arc::clone(&self.storage));
        let difference = diff(&reader()?, options.volume, at, Moment::End, &mut |_, _| {})?;
        let sector = u64::from(volume.sector_bytes);
        let (then, now) = (difference.sizes.0 / sector, difference.sizes.1 / sector);
        if then == now {
            return Ok(());
        }
        let name = options.primary.display().to_string();
        let metadata =
            std::fs::metadata(options.primary).map_err(|e| Error::io(&name, "looking at it", e))?;
        if !metadata.is_file() {
            return Err(Error::Invalid(format!(
                "volume {} had {then} sectors then, and has {now} now; {name} is no regular file, and has to be given \
                 {then} sectors first: host-agent volume resize --sectors {then}, and primary itself, the journal first",
                volume.name()
            )));
        }
        // The moment has to be there, and made from what is given, before anything is begun.
        let backing = match options.base {
            Some(base) => Backing::Base(base),
            None => Backing::Primary(options.primary),
        };
        let image = Image::open(reader()?, options.volume, at, backing, options.allow_gaps, &mut |_, _| {})?;
        done.target = (image.facts().order, image.facts().timestamp);
        drop(image);
        self.mark_rollback(&volume, done, options.is_undo())?;
        done.resized = Some((now, then));
        done.entries += self.resize_for_rollback(options.volume, then, options.primary)?.entries;
        fit_primary(&JournalReader::open_on(Arc::clone(&self.storage))?, options.volume, options.primary)?;
        Ok(())
    }

    /// Where a rollback begins, and where it ends.
    fn mark_rollback(&mut self, volume: &Volume, done: &RolledBack, undo: bool) -> Result<(), Error> {
        let payload = Rollback {
            target_order: done.target.0.into(),
            target_timestamp: done.target.1.into(),
            before_order: done.before.into(),
            last_order: done.last.into(),
        };
        let mut header = self.next_header(Kind::Marker, self.own_port(volume)?, volume.index);
        header.flags = (flags::ROLLBACK | if undo { flags::UNDO } else { 0 }).into();
        header.seal(payload.as_bytes());
        self.append_own(&OwnedRecord { header, payload: payload.as_bytes().to_vec() })
    }

    /// With after-images the moment before the rollback has to be certain, or an undo would bring back
    /// something else: what nobody knows of primary is read there and journaled.
    fn read_back_doubtful(&mut self, options: &RollbackOptions<'_>) -> Result<(), Error> {
        let Some(base) = options.base else { return Ok(()) };
        self.sync()?;
        let reader = JournalReader::open_on(Arc::clone(&self.storage))?;
        let allow = options.allow_gaps;
        let known =
            Image::open(reader, options.volume, Moment::End, Backing::Base(base), allow, &mut |_, _| {})?;
        if known.facts().doubtful == 0 {
            return Ok(());
        }
        let volume = known.volume().clone();
        let (name, primary) = open_backing(Backing::Primary(options.primary), &volume, volume.sectors)?;
        let largest = self.piece_bytes(&volume) as u64;
        for run in known.runs(0, known.bytes())?.into_iter().filter(|run| run.doubtful) {
            let mut at = run.offset;
            while at < run.offset + run.bytes {
                let length = largest.min(run.offset + run.bytes - at);
                let mut data = vec![0; length as usize];
                backing::read(&primary, &name, &mut data, at)?;
                self.append_read_back(&volume, at, data, flags::ROLLBACK)?;
                at += length;
            }
        }
        Ok(())
    }

    /// It has to fit before anything is begun.
    fn check_room(&self, volume: &Volume, extents: &[(u64, u64)]) -> Result<(), Error> {
        let bytes: u64 = extents.iter().map(|(_, bytes)| bytes).sum();
        let images = if entry_kind(volume) == Kind::Both { 2 } else { 1 };
        let piece = self.piece_bytes(volume) as u64;
        let pieces: u64 = extents.iter().map(|(_, bytes)| bytes.div_ceil(piece)).sum();
        match self.has_room(bytes * images, pieces, images * piece) {
            Ok(()) => Ok(()),
            Err((needed, there)) => Err(Error::Invalid(format!(
                "rolling back may write {bytes} bytes of primary, which takes up to {needed} in the journal; it has {there} left"
            ))),
        }
    }

    /// Is there room for so many bytes of payload in so many entries, each with `largest` at most, and their
    /// completions? If not: the bytes that they take, and those that there are.
    pub(crate) fn has_room(&self, bytes: u64, entries: u64, largest: u64) -> Result<(), (u64, u64)> {
        // An entry: descriptor, padding of the payload, completion, rows of the index. A batch: its head's padding.
        let batches = bytes / SYNC_BYTES as u64 + 4;
        let needed = bytes + entries * 1024 + batches * 4 * BLOCK_BYTES as u64;
        let space = self.space();
        // Less is left over at a segment's end than the largest entry takes.
        let usable = space.segment_bytes - 3 * BLOCK_BYTES as u64 - self.table_bytes.len() as u64 - largest;
        let there = u64::from(space.free.saturating_sub(space.reserved)) * usable + space.open_bytes;
        if needed > there {
            return Err((needed, there));
        }
        Ok(())
    }

    /// Bytes of a piece: what fits an entry of the journal.
    pub(crate) fn piece_bytes(&self, volume: &Volume) -> usize {
        let images = if entry_kind(volume) == Kind::Both { 2 } else { 1 };
        // A quarter of a segment at most, so that little is left over at a segment's end.
        let largest = self.head.geometry.largest_payload() / 2 / images / SECTOR_BYTES;
        largest.min(LARGEST_PIECE) * SECTOR_BYTES
    }
}

/// The moment, and how many writes an undo discards.
fn target(options: &RollbackOptions<'_>, reader: &JournalReader) -> Result<(Moment, u64), Error> {
    let discard = match options.to {
        Target::Moment(moment) => return Ok((moment, 0)),
        Target::Undo { discard } => discard,
    };
    let undone = undo::last_rollback(reader, options.volume)?;
    let later = undone.written_since(reader, options.volume)?;
    if later > 0 && !discard {
        return Err(Error::Discards { volume: options.volume.to_owned(), writes: later });
    }
    // Everything from before the marker, what changed the volume's size among it: a moment by its stamp. What the rollback
    // itself did is stamped later.
    Ok((Moment::Timestamp(undone.stamp), later))
}

/// What the entries of a rollback hold: what those of the volume hold.
pub(crate) fn entry_kind(volume: &Volume) -> Kind {
    match volume.technique & (technique::AFTER | technique::BEFORE) {
        technique::BEFORE => Kind::Before,
        technique::AFTER => Kind::After,
        _ => Kind::Both,
    }
}

/// Where something was written behind the moment: byte offsets and lengths, of what the volume had then.
fn changed_since(
    reader: &JournalReader,
    options: &RollbackOptions<'_>,
    at: Moment,
) -> Result<Vec<(u64, u64)>, Error> {
    let difference = diff(reader, options.volume, at, Moment::End, &mut |_, _| {})?;
    if !difference.gaps.is_empty() {
        // More may have been written than is known: everything is compared.
        return Ok(vec![(0, difference.sizes.0)]);
    }
    let end = difference.sizes.0;
    let mut extents: Vec<(u64, u64)> = Vec::new();
    for mut changed in difference.changed.into_iter().filter(|changed| changed.offset < end) {
        changed.bytes = changed.bytes.min(end - changed.offset);
        match extents.last_mut() {
            Some(last) if last.0 + last.1 == changed.offset => last.1 += changed.bytes,
            _ => extents.push((changed.offset, changed.bytes)),
        }
    }
    Ok(extents)
}

fn open_primary(path: &Path, volume: &Volume) -> Result<(String, File), Error> {
    let (name, _) = open_backing(Backing::Primary(path), volume, volume.sectors)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|e| Error::io(&name, "opening primary for writing", e))?;
    Ok((name, file))
}
