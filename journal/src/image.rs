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
use crate::sizes;
use crate::tables::Volume;
use crate::windows;
use layout::entry::{Encoding, Kind};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// Times that a read begins anew because primary was given another size under it.
const ATTEMPTS: usize = 3;

/// Times that an image is opened while its base goes on: the steps of merging that roll it lie apart.
const OPENINGS: usize = 16;

/// An image. Reading it is possible from several threads.
pub struct Image {
    /// With the size that it had at the moment.
    volume: Volume,
    map: PitMap,
    /// Sectors, in order and disjoint, where a late answer leaves doubtful what has no entry in the map to say so.
    late: Vec<(u64, u64)>,
    /// What came to the journal since: in the direction over primary.
    since: RwLock<BTreeMap<u64, Extent>>,
    follower: Option<Mutex<Follower>>,
    payloads: Payloads,
    backing: File,
    backing_name: String,
    /// What the backing has of the volume, and had when the image was opened; behind that there are zeroes.
    backing_bytes: u64,
    /// Sectors that the volume has now, as far as `since` goes.
    sectors_now: AtomicU64,
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
        Self::open_over(reader, volume, at, Some(backing), allow_gaps, progress)
    }

    /// What the journal alone knows of the volume at its end: over nothing, which reads as zeroes. For what isn't known
    /// [`Image::runs`] says [`Origin::Backing`].
    pub fn open_known(reader: JournalReader, volume: &str) -> Result<Self, Error> {
        Self::open_over(reader, volume, Moment::End, None, true, &mut |_, _| {})
    }

    /// As often as the owner, merging beside it, rolls the base on under it: what was read of the journal is from before.
    fn open_over(
        mut reader: JournalReader,
        volume: &str,
        at: Moment,
        backing: Option<Backing<'_>>,
        allow_gaps: bool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, Error> {
        for _ in 1..OPENINGS {
            let storage = reader.shared_storage();
            match Self::open_once(reader, volume, at, backing, allow_gaps, progress) {
                Err(Error::BaseMoved { .. }) => reader = JournalReader::open_on(storage)?,
                other => return other,
            }
        }
        Self::open_once(reader, volume, at, backing, allow_gaps, progress)
    }

    fn open_once(
        reader: JournalReader,
        volume: &str,
        at: Moment,
        backing: Option<Backing<'_>>,
        allow_gaps: bool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, Error> {
        let volume = reader.tables().volume(volume)?.clone();
        let (backing_name, file) = match backing {
            Some(backing) => open_file(backing)?,
            None => open_nothing()?,
        };
        let asked = at;
        let at = windows::locate(&reader, at)?;
        let payloads = Payloads::new(&reader);
        let generation = reader.head().superblock.generation.get();
        let (span, prefer) = match backing {
            Some(Backing::Primary(_)) => {
                (Span { after: Some(at), until: Moment::End, wanted: Wanted::Before }, Prefer::First)
            }
            Some(Backing::Base(_)) | None => {
                (Span { after: None, until: at, wanted: Wanted::After }, Prefer::Last)
            }
        };
        if let Some(Backing::Base(path)) = backing {
            // Also before what takes long.
            base::position(&reader, &volume, path)?;
        }
        let mut found = history::read(&reader, &payloads, &volume, span, progress)?;
        let ((mut order, mut timestamp), last_entry) = match prefer {
            Prefer::First => (found.after, found.after_written),
            Prefer::Last => (found.until, found.until_written),
        };
        let sectors = found.sizes.at(asked, last_entry);
        // Sectors that the backing has to have, and whether it may have more.
        let (mut has, mut growing, mut watch) = (found.sizes.now(), false, None);
        // Up to which order the backing is a base's.
        let (mut newer_than, mut held) = (0, 0);
        if let Some(Backing::Base(path)) = backing {
            let (position, found_watch) = base::position(&reader, &volume, path)?;
            position.check(&volume, at)?;
            check_not_left_behind(&reader, &backing_name, position.order.0)?;
            // What the base has already: no matter whether the journal has it too, and in which form.
            if position.order.0 > 0 {
                found.writes.retain(|write| write.order() > position.order.0);
            }
            if found.without_image.is_some() {
                let without = found.writes.iter().filter(|write| write.marks() & mark::NO_IMAGE != 0);
                found.without_image = without.map(history::Write::order).min();
            }
            (order, timestamp) = (order, timestamp).max(position.rolling);
            (held, newer_than) = position.order;
            watch = found_watch;
            // What holds nothing of the journal has the size that the volume was entered with.
            has = watch.as_ref().map_or(found.sizes.first(), base::Watch::sectors);
            growing = volume.rolling.0 > position.order.0;
        }
        if let Some(backing) = backing {
            check_size(&file, &backing_name, backing, &volume, has, growing)?;
        }
        let gaps = check_gaps(&found, at, timestamp, prefer, newer_than, allow_gaps)?;
        if let Some(order) = found.without_image {
            return Err(without_image(order, prefer));
        }
        let entries = found.writes.len() as u64;
        let map = PitMap::build(std::mem::take(&mut found.writes), prefer);
        if prefer == Prefer::Last {
            // What lies behind the base's position has writes to say so: only what the base holds may be the one or the other.
            found.late.retain(|late| held > 0 && (late.orders.0..=late.orders.1).contains(&held));
        }
        let mut late = history::disjoint(found.late.iter().map(|late| late.sectors).collect());
        if prefer == Prefer::Last {
            // What is mapped speaks for itself.
            late.retain(|(from, to)| {
                map.within(*from, (*to).min(sectors)).map(|e| u64::from(e.sectors)).sum::<u64>()
                    < (*to).min(sectors).saturating_sub(*from)
            });
        }
        let mapped = map.extents().map(|extent| u64::from(extent.sectors)).sum::<u64>();
        let facts = ImageFacts {
            order,
            timestamp,
            entries,
            skipped: found.skipped,
            // Primary has what it has: only in a base's future one has to guess, and between a write and its late answer.
            doubtful: late.len() as u64 + if prefer == Prefer::Last { map.doubtful } else { 0 },
            extents: map.len() as u64,
            mapped_bytes: mapped * u64::from(volume.sector_bytes),
            gaps,
        };
        let sectors_now = AtomicU64::new(found.sizes.now());
        let backing_bytes = has.saturating_mul(u64::from(volume.sector_bytes));
        let volume = Volume { sectors, ..volume };
        let follower = (prefer == Prefer::First).then(|| Mutex::new(Follower::new(reader)));
        let since = RwLock::new(BTreeMap::new());
        Ok(Self {
            volume,
            map,
            late,
            since,
            follower,
            payloads,
            backing: file,
            backing_name,
            backing_bytes,
            sectors_now,
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

    /// The volume, with the size that it had at the moment.
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
        for _ in 1..ATTEMPTS {
            match self.try_read(buffer, offset, end) {
                // Primary shrinks only after the journal has what it loses: by now that is known.
                Err(Error::Base { .. }) if self.follower.is_some() => {}
                done => return done,
            }
        }
        self.try_read(buffer, offset, end)
    }

    fn try_read(&self, buffer: &mut [u8], offset: u64, end: u64) -> Result<(), Error> {
        let mut backed = Vec::new();
        let mut failed = Ok(());
        for piece in self.pieces(offset, end) {
            match piece.extent {
                Some(extent) => self.read_extent(&extent, piece.range(offset), buffer, offset)?,
                None => {
                    let read = self.read_backing(&mut buffer[piece.range(offset)], piece.from);
                    failed = failed.and(read);
                    backed.push(piece);
                }
            }
        }
        if backed.is_empty() {
            return Ok(());
        }
        if failed.is_ok() {
            self.confirm()?;
        }
        if !self.follow()? {
            return failed;
        }
        failed?;
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

    /// Sectors behind the backing's end are zeroes: the volume had not, or no longer, had them.
    fn read_backing(&self, part: &mut [u8], from: u64) -> Result<(), Error> {
        let there = self.backing_bytes.saturating_sub(from).min(part.len() as u64) as usize;
        let (part, behind) = part.split_at_mut(there);
        behind.fill(0);
        if part.is_empty() {
            return Ok(());
        }
        backing::read(&self.backing, &self.backing_name, part, from)
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
            let origin = match piece.extent {
                None => Origin::Backing,
                Some(extent) if extent.marks & mark::ZERO != 0 => Origin::Zero,
                Some(_) => Origin::Journal,
            };
            for (from, to, late) in self.divide_by_late(piece.from, piece.to) {
                let doubtful = match piece.extent {
                    // Over primary whatever is there now, or was when it was written next.
                    _ if self.follower.is_some() => late,
                    Some(extent) => extent.marks & mark::DOUBTFUL != 0,
                    None => late,
                };
                match runs.last_mut() {
                    Some(last) if last.origin == origin && last.doubtful == doubtful => {
                        last.bytes += to - from
                    }
                    _ => runs.push(Run { offset: from, bytes: to - from, origin, doubtful }),
                }
            }
        }
        Ok(runs)
    }

    /// A range of bytes in parts that a late answer leaves doubtful, or doesn't.
    fn divide_by_late(&self, from: u64, to: u64) -> Vec<(u64, u64, bool)> {
        let sector = self.sector_bytes();
        let (mut at, mut parts) = (from, Vec::new());
        let first = self.late.partition_point(|(_, end)| end.saturating_mul(sector) <= from);
        for (begin, end) in &self.late[first..] {
            let (begin, end) = ((begin * sector).max(at), end.saturating_mul(sector).min(to));
            if begin >= to {
                break;
            }
            if at < begin {
                parts.push((at, begin, false));
            }
            parts.push((begin, end, true));
            at = end;
        }
        if at < to {
            parts.push((at, to, false));
        }
        parts
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
            if record.header.volume.get() == self.volume.index {
                let resize = sizes::resize_of(&self.backing_name, &record, || self.payloads.whole(&record))?;
                if let Some((_, after)) = resize {
                    self.sectors_now.store(after, Ordering::Relaxed);
                }
            }
            let Some(order) = record.order.filter(|_| takes_order(record.kind)) else { continue };
            let header = &record.header;
            let (lba, end) = (header.lba(), header.lba() + u64::from(header.sectors.get()));
            // Past the end nothing can have been executed.
            let outside = end > self.sectors_now.load(Ordering::Relaxed);
            if header.volume.get() != self.volume.index || outside || record.kind == Kind::Resync {
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
            // Of after-images nothing is missing there.
            Prefer::Last => !gap.bounded && gap.from < moment && gap.to > base && !closed(gap),
            Prefer::First if gap.bounded => gap.from < moment && gap.to > moment,
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

/// Opens primary or base, which has to have so many sectors.
pub(crate) fn open_backing(
    backing: Backing<'_>,
    volume: &Volume,
    sectors: u64,
) -> Result<(String, File), Error> {
    let (name, file) = open_file(backing)?;
    check_size(&file, &name, backing, volume, sectors, false)?;
    Ok((name, file))
}

/// The same of a base, whose label says how many sectors it has; without one, `sectors`.
pub(crate) fn open_base(path: &Path, volume: &Volume, sectors: u64) -> Result<(String, File, u64), Error> {
    let label = base::label_of(path)?;
    let sectors = label.as_ref().map_or(sectors, |label| label.sectors.get());
    let growing = label.is_some_and(|label| volume.rolling.0 > label.order.get());
    let (name, file) = open_file(Backing::Base(path))?;
    check_size(&file, &name, Backing::Base(path), volume, sectors, growing)?;
    Ok((name, file, sectors))
}

fn what_it_is(backing: Backing<'_>) -> &'static str {
    match backing {
        Backing::Primary(_) => "primary",
        Backing::Base(_) => "base",
    }
}

/// What reads as zeroes, wherever.
fn open_nothing() -> Result<(String, File), Error> {
    let name = "/dev/zero";
    let file = File::open(name).map_err(|e| Error::io(name, "opening", e))?;
    Ok((name.to_owned(), file))
}

fn open_file(backing: Backing<'_>) -> Result<(String, File), Error> {
    let file = backing::open(backing.path(), what_it_is(backing))?;
    Ok((backing.path().display().to_string(), file))
}

/// `growing`: a base whose rolling was interrupted may have been given more than its label says so far.
fn check_size(
    file: &File,
    name: &str,
    backing: Backing<'_>,
    volume: &Volume,
    sectors: u64,
    growing: bool,
) -> Result<(), Error> {
    let what = what_it_is(backing);
    let bytes =
        backing::size(file).map_err(|e| Error::io(name, format!("asking for the {what}'s size"), e))?;
    let expected = sectors.saturating_mul(u64::from(volume.sector_bytes));
    if bytes == expected || growing && bytes > expected {
        return Ok(());
    }
    let resize = match backing {
        Backing::Primary(_) => {
            ". If the volume was given another size, the journal has to know first: host-agent volume resize"
        }
        Backing::Base(_) => "",
    };
    Err(Error::Base {
        file: name.to_owned(),
        what: format!(
            "it has {bytes} bytes, and volume {} has {expected} ({sectors} sectors of {}): not its {what}{resize}",
            volume.name(),
            volume.sector_bytes
        ),
    })
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
        let total = self.bytes();
        let there = self.backing_bytes.min(total);
        if at >= there {
            // Behind the backing's end there is nothing but zeroes.
            return Ok((total, total));
        }
        let (from, to) = next_data(&self.backing, at, there).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                backing::cut_short(&self.backing, &self.backing_name, "looking for data")
            }
            _ => Error::io(&self.backing_name, "looking for data", e),
        })?;
        Ok(if from < there { (from, to) } else { (total, total) })
    }

    /// After leaving holes out: was the backing whole all the time, and has a base not gone on?
    pub(crate) fn confirm_whole(&self) -> Result<(), Error> {
        if self.is_still() {
            backing::check_size(&self.backing, &self.backing_name, self.backing_bytes)?;
        }
        self.confirm()
    }

    /// What the image is, down to the last bit: two images with the same identity have the same bytes. `None`:
    /// that can't be told, of a primary that changes, or a device.
    pub(crate) fn identity(&self) -> Result<Option<String>, Error> {
        use std::os::unix::fs::MetadataExt;
        let metadata =
            self.backing.metadata().map_err(|e| Error::io(&self.backing_name, "looking at it", e))?;
        if !self.is_still() || !metadata.is_file() {
            return Ok(None);
        }
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let (facts, volume) = (&self.facts, &self.volume);
        Ok(Some(format!(
            "journal {}\nvolume {}\norder {} {}\nbytes {}\nbase {} {} {} {}.{} {}.{} {}\nmap {}",
            hex(&self.payloads.journal_id()),
            volume.name().escape_debug(),
            facts.order,
            facts.timestamp,
            self.bytes(),
            metadata.dev(),
            metadata.ino(),
            metadata.size(),
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.ctime(),
            metadata.ctime_nsec(),
            hex(&volume.base_id),
            hex(&self.map.digest()),
        )))
    }

    /// Does the backing stay as it is?
    pub(crate) fn is_still(&self) -> bool {
        self.follower.is_none()
    }
}
