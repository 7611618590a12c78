//! A volume as it was at a moment, without a copy of it: a map of pointers over primary storage or
//! over a base (claims 26 and 27).
//!
//! **Over primary** every entry behind the moment counts, whatever became of it, and the first one of
//! a location gives its before-image. Primary goes on changing meanwhile: with before-images an entry is
//! durable in the journal before the write is forwarded, so after a read of primary one look at the
//! journal's end tells whether what was read is still from before.
//!
//! **Over a base** every entry up to the moment counts that may have been executed, and the last one of
//! a location gives its after-image.

use crate::backing;
use crate::base;
use crate::batch::Batch;
use crate::error::Error;
use crate::follow::Follower;
use crate::head;
use crate::history::{self, mark, MissingSpan, Span, Wanted};
use crate::moment::{rfc3339, Moment};
use crate::payloads::Payloads;
use crate::pit_map::{Extent, PitMap, Prefer};
use crate::reader::JournalReader;
use crate::record::takes_order;
use crate::tables::Volume;
use crate::windows;
use layout::entry::{Encoding, Kind};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::{Mutex, PoisonError, RwLock};

/// What an image's map leads to where the journal has nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing<'a> {
    /// The volume's primary storage, as it is now; it may be in use.
    Primary(&'a Path),
    /// An image from before the first entry, or that the journal knows the position of.
    Base(&'a Path),
}

impl<'a> Backing<'a> {
    /// The file or device.
    pub fn path(&self) -> &'a Path {
        match self {
            Backing::Primary(path) | Backing::Base(path) => path,
        }
    }
}

/// Where bytes of an image come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Primary or base: the same as there.
    Backing,
    /// An entry of the journal.
    Journal,
    /// An entry that says that they are zero.
    Zero,
}

/// A run of bytes of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Byte offset.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
    /// Where they come from.
    pub origin: Origin,
    /// Nobody knows whether the target executed the write that they come from.
    pub doubtful: bool,
}

/// What an image is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageFacts {
    /// Order of the last entry of the journal at or before the moment; 0: none.
    pub order: u64,
    /// Its stamp, ns.
    pub timestamp: u64,
    /// Entries of the volume that the map was built from.
    pub entries: u64,
    /// Entries of the volume that were left out, because they were not executed.
    pub skipped: u64,
    /// Entries that are seen in the image though nobody knows whether the target executed them.
    pub doubtful: u64,
    /// Extents of the map.
    pub extents: u64,
    /// Bytes of the image that come from the journal.
    pub mapped_bytes: u64,
    /// Gaps that the image crosses (only if they were allowed).
    pub gaps: Vec<MissingSpan>,
}

/// An image. Reading it is possible from several threads.
pub struct Image {
    volume: Volume,
    map: PitMap,
    /// What came to the journal since: in the direction over primary.
    since: RwLock<BTreeMap<u64, Extent>>,
    follower: Option<Mutex<Follower>>,
    payloads: Payloads,
    backing: File,
    backing_name: String,
    /// Sees a base go on under the image.
    watch: Option<base::Watch>,
    facts: ImageFacts,
    /// Of the superblock, when it was opened.
    generation: u64,
}

impl Image {
    /// Opens the image of `volume` at a moment. Nothing is copied.
    pub fn open(
        reader: JournalReader,
        volume: &str,
        at: Moment,
        backing: Backing<'_>,
        allow_gaps: bool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, Error> {
        let volume = reader.tables().volume(volume)?.clone();
        let (backing_name, file) = open_backing(backing, &volume)?;
        let at = windows::locate(&reader, at)?;
        let payloads = Payloads::new(&reader);
        let generation = reader.head().superblock.generation.get();
        let (span, prefer) = match backing {
            Backing::Primary(_) => {
                (Span { after: Some(at), until: Moment::End, wanted: Wanted::Before }, Prefer::First)
            }
            Backing::Base(_) => (Span { after: None, until: at, wanted: Wanted::After }, Prefer::Last),
        };
        let mut found = history::read(&reader, &payloads, &volume, span, progress)?;
        let (order, timestamp) = match prefer {
            Prefer::First => found.after,
            Prefer::Last => found.until,
        };
        let (mut order, mut timestamp, mut watch) = (order, timestamp, None);
        let mut newer_than = 0;
        if prefer == Prefer::Last {
            let (position, found_watch) = base::position(&reader, &volume, backing.path())?;
            position.check(&volume, at)?;
            check_not_left_behind(&reader, &backing_name, position.order.0)?;
            // What the base has already: no matter whether the journal has it too, and in which form.
            found.writes.retain(|write| write.order() > position.order.0);
            let without = found.writes.iter().filter(|write| write.marks() & mark::NO_IMAGE != 0);
            found.without_image = without.map(history::Write::order).min();
            (order, timestamp) = (order, timestamp).max(position.rolling);
            newer_than = position.order.1;
            watch = found_watch;
        }
        let gaps = check_gaps(&found, at, timestamp, prefer, newer_than, allow_gaps)?;
        if let Some(order) = found.without_image {
            return Err(without_image(order, prefer));
        }
        let entries = found.writes.len() as u64;
        let map = PitMap::build(std::mem::take(&mut found.writes), prefer);
        let mapped = map.extents().iter().map(|extent| u64::from(extent.sectors)).sum::<u64>();
        let facts = ImageFacts {
            order,
            timestamp,
            entries,
            skipped: found.skipped,
            // Primary has what it has: only in a base's future one has to guess.
            doubtful: if prefer == Prefer::Last { map.doubtful } else { 0 },
            extents: map.len() as u64,
            mapped_bytes: mapped * u64::from(volume.sector_bytes),
            gaps,
        };
        let follower = (prefer == Prefer::First).then(|| Mutex::new(Follower::new(reader)));
        let since = RwLock::new(BTreeMap::new());
        Ok(Self {
            volume,
            map,
            since,
            follower,
            payloads,
            backing: file,
            backing_name,
            watch,
            facts,
            generation,
        })
    }

    /// Has nothing been merged or given up since the image was opened? If something has, the image still is what it
    /// was, but it keeps room from being used again: open it anew. One read of each superblock.
    pub fn is_current(&self) -> Result<bool, Error> {
        Ok(head::generation(self.payloads.storage())? == self.generation)
    }

    /// What it is made of, when it was opened.
    pub fn facts(&self) -> &ImageFacts {
        &self.facts
    }

    /// Bytes of memory that the map takes.
    pub fn map_bytes(&self) -> usize {
        self.map.bytes()
    }

    /// The volume.
    pub fn volume(&self) -> &Volume {
        &self.volume
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.volume.bytes()
    }

    /// Reads; the range has to lie in the image. Every byte from the journal is checked by its CRC.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.bytes());
        let Some(end) = end else {
            return Err(Error::Invalid(format!(
                "{} bytes at offset {offset} of an image of {}",
                buffer.len(),
                self.bytes()
            )));
        };
        let mut backed = Vec::new();
        for piece in self.pieces(offset, end) {
            match piece.extent {
                Some(extent) => self.read_extent(&extent, piece.range(offset), buffer, offset)?,
                None => {
                    let part = &mut buffer[piece.range(offset)];
                    backing::read(&self.backing, &self.backing_name, part, piece.from)?;
                    backed.push(piece);
                }
            }
        }
        if backed.is_empty() {
            return Ok(());
        }
        self.confirm()?;
        if !self.follow()? {
            return Ok(());
        }
        // What has been redirected since may have been read too late.
        for old in backed {
            for piece in self.pieces(old.from, old.to) {
                if let Some(extent) = piece.extent {
                    self.read_extent(&extent, piece.range(offset), buffer, offset)?;
                }
            }
        }
        Ok(())
    }

    /// Has everything that was read from the base so far been right?
    fn confirm(&self) -> Result<(), Error> {
        match &self.watch {
            Some(watch) => watch.check(&self.volume, Moment::Order(self.facts.order)),
            None => Ok(()),
        }
    }

    /// The runs that a range consists of, in order.
    pub fn runs(&self, offset: u64, bytes: u64) -> Result<Vec<Run>, Error> {
        self.follow()?;
        let end = offset.saturating_add(bytes).min(self.bytes());
        let mut runs: Vec<Run> = Vec::new();
        for piece in self.pieces(offset.min(end), end) {
            let (origin, doubtful) = match piece.extent {
                None => (Origin::Backing, false),
                Some(extent) => (
                    if extent.marks & mark::ZERO != 0 { Origin::Zero } else { Origin::Journal },
                    self.follower.is_none() && extent.marks & mark::DOUBTFUL != 0,
                ),
            };
            match runs.last_mut() {
                Some(last) if last.origin == origin && last.doubtful == doubtful => {
                    last.bytes += piece.to - piece.from;
                }
                _ => runs.push(Run { offset: piece.from, bytes: piece.to - piece.from, origin, doubtful }),
            }
        }
        Ok(runs)
    }

    fn sector_bytes(&self) -> u64 {
        u64::from(self.volume.sector_bytes)
    }

    /// Reads the bytes `range` of the buffer, which begins at `offset` of the image.
    fn read_extent(
        &self,
        extent: &Extent,
        range: std::ops::Range<usize>,
        buffer: &mut [u8],
        offset: u64,
    ) -> Result<(), Error> {
        let from = offset + range.start as u64;
        let part = &mut buffer[range];
        if extent.marks & mark::ZERO != 0 {
            part.fill(0);
            return Ok(());
        }
        let skip = u64::from(extent.skip) * self.sector_bytes() + (from - extent.lba * self.sector_bytes());
        self.payloads.read(extent.place, extent.marks & mark::SECOND != 0, skip, part)
    }

    /// Divides a range of bytes by the map as it is now.
    fn pieces(&self, offset: u64, end: u64) -> Vec<Piece> {
        let sector = self.sector_bytes();
        let (first, last) = (offset / sector, end.div_ceil(sector));
        let since = self.since.read().unwrap_or_else(PoisonError::into_inner);
        let mut pieces = Vec::new();
        let mut add = |extent: Option<Extent>, from: u64, to: u64| {
            let (from, to) = ((from * sector).max(offset), (to * sector).min(end));
            if from < to {
                pieces.push(Piece { from, to, extent });
            }
        };
        let backing = |from: u64, to: u64, add: &mut dyn FnMut(Option<Extent>, u64, u64)| {
            let mut at = from;
            for extent in later_within(&since, from, to) {
                add(None, at, extent.lba);
                at = extent.end();
                add(Some(extent), extent.lba, at);
            }
            add(None, at, to);
        };
        let mut at = first;
        for extent in self.map.within(first, last) {
            backing(at, extent.lba, &mut add);
            at = extent.end();
            add(Some(extent), extent.lba, at);
        }
        backing(at, last, &mut add);
        pieces
    }

    /// Takes up what came to the journal since the last look. Was there anything?
    fn follow(&self) -> Result<bool, Error> {
        let Some(follower) = &self.follower else { return Ok(false) };
        // One at a time: whoever waits here finds what the other has taken up, and needs it too.
        let mut follower = follower.lock().unwrap_or_else(PoisonError::into_inner);
        let news = follower.batches(&self.payloads)?;
        let mut since = self.since.write().unwrap_or_else(PoisonError::into_inner);
        for batch in &news {
            self.take_up(batch, &mut since)?;
        }
        Ok(true)
    }

    fn take_up(&self, batch: &Batch, since: &mut BTreeMap<u64, Extent>) -> Result<(), Error> {
        for record in batch.records() {
            let Some(order) = record.order.filter(|_| takes_order(record.kind)) else { continue };
            let header = &record.header;
            let (lba, end) = (header.lba(), header.lba() + u64::from(header.sectors.get()));
            let elsewhere = header.volume.get() != self.volume.index || end > self.volume.sectors;
            if elsewhere || record.kind == Kind::Resync {
                continue;
            }
            if !matches!(record.kind, Kind::Before | Kind::Both) {
                return Err(without_image(order, Prefer::First));
            }
            let zero = header.encoding == Encoding::Zero as u8;
            let whole = Extent {
                lba,
                place: record.location.payload,
                sectors: u32::from(header.sectors.get()),
                skip: 0,
                marks: if zero { mark::ZERO } else { 0 },
                port: header.port,
            };
            // Only where nothing earlier redirects already.
            let mut at = lba;
            let mut free = Vec::new();
            for taken in later_within(since, lba, end) {
                free.push((at, taken.lba));
                at = taken.end();
            }
            free.push((at, end));
            for (from, to) in free.into_iter().filter(|(from, to)| from < to) {
                since.insert(from, whole.cut(from, to));
            }
        }
        Ok(())
    }
}

/// A part of a range: where it comes from; `None`: the backing.
#[derive(Clone, Copy)]
struct Piece {
    /// Byte offsets in the image.
    from: u64,
    to: u64,
    extent: Option<Extent>,
}

impl Piece {
    /// Its place in a buffer that begins at `offset`.
    fn range(&self, offset: u64) -> std::ops::Range<usize> {
        (self.from - offset) as usize..(self.to - offset) as usize
    }
}

/// The extents that touch these sectors, cut to them.
fn later_within(since: &BTreeMap<u64, Extent>, from: u64, to: u64) -> Vec<Extent> {
    let before = since.range(..from).next_back().map(|(_, extent)| *extent);
    let inside = since.range(from..to).map(|(_, extent)| *extent);
    before
        .into_iter()
        .chain(inside)
        .filter(|extent| from < to && extent.end() > from && extent.lba < to)
        .map(|extent| extent.cut(extent.lba.max(from), extent.end().min(to)))
        .collect()
}

fn without_image(order: u64, prefer: Prefer) -> Error {
    Error::Invalid(match prefer {
        Prefer::First => format!(
            "order:{order} holds no before-image: moments of this volume are made from a base, not from primary (--base)"
        ),
        Prefer::Last => format!(
            "order:{order} holds no after-image: moments of this volume are made from primary, not from a base (--primary)"
        ),
    })
}

/// What lies between a base and where history begins is nowhere.
fn check_not_left_behind(reader: &JournalReader, base: &str, order: u64) -> Result<(), Error> {
    let (begins, timestamp) = reader.head().history_begins();
    if order >= begins {
        return Ok(());
    }
    Err(Error::Base {
        file: base.to_owned(),
        what: format!(
            "left behind: it stands at order:{order}, and the schedule gave up what lies before {}: history begins just after order:{begins}",
            rfc3339(timestamp)
        ),
    })
}

/// Over a base a gap spoils what comes after it, until the volume has been compared with primary; over
/// primary it spoils what comes before (DESIGN §3.6).
fn check_gaps(
    found: &history::Found,
    at: Moment,
    timestamp: u64,
    prefer: Prefer,
    base: u64,
    allowed: bool,
) -> Result<Vec<MissingSpan>, Error> {
    let moment = match at {
        Moment::End => u64::MAX,
        Moment::Order(_) => timestamp,
        Moment::Timestamp(stamp) => stamp,
    };
    // The moment just after an entry lasts until the next one.
    let lasts_until = match at {
        Moment::Order(_) => found.next.map_or(u64::MAX, |next| next.saturating_sub(1)),
        _ => moment,
    };
    let closed = |gap: &MissingSpan| found.resynced.iter().any(|at| (gap.to..=lasts_until).contains(at));
    let crossed: Vec<MissingSpan> = found
        .gaps
        .iter()
        .filter(|gap| match prefer {
            // What the base is newer than it lacks nothing of.
            Prefer::Last => gap.from < moment && gap.to > base && !closed(gap),
            Prefer::First => gap.to > moment,
        })
        .cloned()
        .collect();
    match crossed.first() {
        Some(gap) if !allowed => Err(Error::Gap {
            port: gap.port,
            from: gap.from,
            to: gap.to,
            reason: gap.reason.clone(),
            earlier: prefer == Prefer::First,
        }),
        _ => Ok(crossed),
    }
}

/// Opens primary or base, which has to have the volume's size.
pub(crate) fn open_backing(backing: Backing<'_>, volume: &Volume) -> Result<(String, File), Error> {
    let name = backing.path().display().to_string();
    let what = match backing {
        Backing::Primary(_) => "primary",
        Backing::Base(_) => "base",
    };
    let file = backing::open(backing.path(), what)?;
    let bytes =
        backing::size(&file).map_err(|e| Error::io(&name, format!("asking for the {what}'s size"), e))?;
    if bytes != volume.bytes() {
        return Err(Error::Base {
            file: name,
            what: format!(
                "it has {bytes} bytes, and volume {} has {} ({} sectors of {}): not its {what}",
                volume.name(),
                volume.bytes(),
                volume.sectors,
                volume.sector_bytes
            ),
        });
    }
    Ok((name, file))
}

/// Is there a hole in the backing from here on, and to where? A file system that can't tell has none.
pub(crate) fn next_data(file: &File, at: u64, total: u64) -> std::io::Result<(u64, u64)> {
    use rustix::fs::{seek, SeekFrom};
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start.min(total),
        // Behind the last data, or behind the end of a file that was cut: that is no hole.
        Err(rustix::io::Errno::NXIO) if backing::size(file)? < total => {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Err(rustix::io::Errno::NXIO) => return Ok((total, total)),
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => return Ok((at, total)),
        Err(e) => return Err(e.into()),
    };
    match seek(file, SeekFrom::Hole(start)) {
        // A file that shrank meanwhile has no hole there; reading will say so.
        Ok(end) => Ok((start, end.clamp(start, total))),
        Err(rustix::io::Errno::NXIO) => Ok((total, total)),
        Err(e) => Err(e.into()),
    }
}

impl Image {
    /// The next range of the backing that is not a hole, from `at` on; empty at the end.
    pub(crate) fn next_data(&self, at: u64) -> Result<(u64, u64), Error> {
        next_data(&self.backing, at, self.bytes()).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                backing::cut_short(&self.backing, &self.backing_name, "looking for data")
            }
            _ => Error::io(&self.backing_name, "looking for data", e),
        })
    }

    /// After leaving holes out: was the backing whole all the time, and has a base not gone on?
    pub(crate) fn confirm_whole(&self) -> Result<(), Error> {
        backing::check_size(&self.backing, &self.backing_name, self.bytes())?;
        self.confirm()
    }

    /// Does the backing stay as it is?
    pub(crate) fn is_still(&self) -> bool {
        self.follower.is_none()
    }
}
