//! A volume's image at a moment: base, then every after-image up to the moment, in order.

use crate::error::Error;
use crate::moment::{rfc3339, Moment};
use crate::open::sync_directory;
use crate::reader::JournalReader;
use crate::record::{Entry, StoredRecord};
use crate::sparse::SparseImage;
use crate::tables::Volume;
use layout::entry::{Encoding, Gap, GapReason, Kind, Updated};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use zerocopy::FromBytes;

/// What is to be restored.
#[derive(Clone, Debug)]
pub struct RestoreOptions<'a> {
    /// Name of the volume.
    pub volume: &'a str,
    /// The image from before the first write; opened for reading only.
    pub base: &'a Path,
    /// The moment.
    pub at: Moment,
    /// The image to make.
    pub out: &'a Path,
    /// Replace `out` if it exists.
    pub force: bool,
    /// Restore across gaps in the journal, though the image may be wrong.
    pub allow_gaps: bool,
}

/// What a restore is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Reading the journal's descriptors; counted in entries.
    Reading,
    /// Copying the base; counted in bytes.
    Copying,
    /// Applying after-images; counted in entries.
    Applying,
}

/// How far a restore is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What it is doing.
    pub stage: Stage,
    /// How much of it is done.
    pub done: u64,
    /// How much there is to do.
    pub total: u64,
}

/// What a restore did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Order number of the last entry of the journal that lies at or before the moment; 0: none.
    pub order: u64,
    /// Its stamp, ns.
    pub timestamp: u64,
    /// Entries of the volume that were applied.
    pub applied: u64,
    /// Entries of the volume that were not, because they were refused or cancelled.
    pub skipped: u64,
    /// Entries of the volume that were applied though nobody knows whether the target executed
    /// them, and that no later known write covers in full.
    pub doubtful: u64,
    /// Bytes of after-images applied.
    pub bytes: u64,
    /// Ports with gaps that the image crosses (only with `allow_gaps`).
    pub gaps: Vec<u8>,
}

/// Makes the image. On any error nothing stands under `out`'s name that wasn't there before.
pub fn restore(
    reader: &JournalReader,
    options: &RestoreOptions<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Restored, Error> {
    let volume = reader.tables().volume(options.volume)?.clone();
    let base = open_base(options.base, &volume)?;
    let (until, mut restored) = find_moment(reader, options, progress)?;
    check_against_base(&volume, &restored)?;
    let out = Unfinished::new(options)?;
    let mut image = SparseImage::new(&out.file, &out.name, volume.bytes())?;
    copy_base(&base, &options.base.display().to_string(), &mut image, progress)?;
    apply(reader, &volume, until, &mut image, &mut restored, progress)?;
    out.publish(options)?;
    Ok(restored)
}

/// Where the stream of records is to be cut: the entries up to this order are in the image.
fn find_moment(
    reader: &JournalReader,
    options: &RestoreOptions<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<(u64, Restored), Error> {
    let summary = reader.summary();
    match options.at {
        Moment::Order(order) if order > summary.order => {
            return Err(Error::NoMoment(format!(
                "order:{order}; the journal's last entry is order:{}",
                summary.order
            )));
        }
        Moment::Timestamp(at) if at > summary.delivered.max(summary.timestamp) => {
            let known = rfc3339(summary.delivered.max(summary.timestamp));
            return Err(Error::NoMoment(format!(
                "{}; the journal knows of nothing after {known}; `end` is its last state",
                options.at
            )));
        }
        _ => {}
    }
    let mut restored = Restored::default();
    let mut gaps: Vec<(StoredRecord, Gap)> = Vec::new();
    for record in reader.records() {
        let record = record?;
        if record.kind == Kind::Gap {
            let payload = reader.payload(&record)?;
            if let Ok((gap, _)) = Gap::read_from_prefix(&payload) {
                gaps.push((record, gap));
            }
        }
        let Some(order) = record.order else { continue };
        let within = match options.at {
            Moment::End => true,
            Moment::Order(last) => order <= last,
            Moment::Timestamp(last) => record.header.timestamp.get() <= last,
        };
        if within {
            restored.order = order;
            restored.timestamp = record.header.timestamp.get();
        }
        if order % 4096 == 0 {
            progress(Progress { stage: Stage::Reading, done: order, total: summary.order });
        }
    }
    progress(Progress { stage: Stage::Reading, done: summary.order, total: summary.order });
    let moment = match options.at {
        Moment::End => u64::MAX,
        Moment::Order(_) => restored.timestamp,
        Moment::Timestamp(at) => at,
    };
    for (record, gap) in gaps.iter().filter(|(_, gap)| gap.from_timestamp.get() < moment) {
        if !options.allow_gaps {
            return Err(gap_error(record, gap));
        }
        restored.gaps.push(record.header.port);
    }
    restored.gaps.sort_unstable();
    restored.gaps.dedup();
    Ok((restored.order, restored))
}

fn gap_error(record: &StoredRecord, gap: &Gap) -> Error {
    let reason = match GapReason::from_word(gap.reason.get()) {
        Ok(GapReason::Lost) => "records were lost".to_owned(),
        Ok(GapReason::UncleanStop) => "the writer stopped without ending its session".to_owned(),
        Ok(GapReason::ClockUnlocked) => "the port's clock was unlocked".to_owned(),
        Ok(GapReason::TimeJump) => "the time base jumped".to_owned(),
        Err(word) => format!("reason {word}"),
    };
    let (from, to) = (gap.from_timestamp.get(), record.header.timestamp.get());
    Error::Gap { port: record.header.port, from, to, reason }
}

/// The base holds every entry up to its position: an earlier moment can't be made from it.
fn check_against_base(volume: &Volume, restored: &Restored) -> Result<(), Error> {
    let (order, timestamp) = volume.base;
    if restored.order < order {
        return Err(Error::NoMoment(format!(
            "the base of volume {} stands at order:{order} ({}), after the moment",
            volume.name(),
            rfc3339(timestamp)
        )));
    }
    Ok(())
}

fn open_base(path: &Path, volume: &Volume) -> Result<File, Error> {
    let name = path.display().to_string();
    let file = File::open(path).map_err(|e| Error::io(&name, "opening the base", e))?;
    // Seeking finds a block device's end too.
    let bytes = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))
        .map_err(|e| Error::io(&name, "asking for the base's size", e.into()))?;
    if bytes != volume.bytes() {
        return Err(Error::Base {
            file: name,
            what: format!(
                "it has {bytes} bytes, and volume {} has {} ({} sectors of {}): not its base",
                volume.name(),
                volume.bytes(),
                volume.sectors,
                volume.sector_bytes
            ),
        });
    }
    Ok(file)
}

/// Copies what the base has, leaving holes and zeroes out.
fn copy_base(
    base: &File,
    name: &str,
    image: &mut SparseImage<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), Error> {
    use std::os::unix::fs::FileExt;
    let total = image.bytes();
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < total {
        let (start, end) =
            next_data(base, at, total).map_err(|e| Error::io(name, "looking for data in the base", e))?;
        at = start;
        while at < end {
            let length = buffer.len().min((end - at) as usize);
            base.read_exact_at(&mut buffer[..length], at).map_err(|e| {
                Error::io(name, format!("reading {length} bytes of the base at offset {at}"), e)
            })?;
            image.fill(&buffer[..length], at)?;
            at += length as u64;
            progress(Progress { stage: Stage::Copying, done: at, total });
        }
    }
    progress(Progress { stage: Stage::Copying, done: total, total });
    Ok(())
}

/// The next range that is not a hole; empty at the end. A file system that can't tell has no holes.
fn next_data(file: &File, at: u64, total: u64) -> io::Result<(u64, u64)> {
    use rustix::fs::{seek, SeekFrom};
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start.min(total),
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

fn apply(
    reader: &JournalReader,
    volume: &Volume,
    until: u64,
    image: &mut SparseImage<'_>,
    restored: &mut Restored,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), Error> {
    let mut doubtful = Doubtful::default();
    for entry in reader.entries()? {
        let entry = entry?;
        if entry.order > until {
            break;
        }
        if entry.order % 1024 == 0 {
            progress(Progress { stage: Stage::Applying, done: entry.order, total: until });
        }
        let known = entry.order <= volume.base.0;
        if entry.record.header.volume.get() != volume.index || known {
            continue;
        }
        apply_entry(reader, volume, &entry, image, restored, &mut doubtful)?;
    }
    restored.doubtful = doubtful.entries();
    progress(Progress { stage: Stage::Applying, done: until, total: until });
    Ok(())
}

fn apply_entry(
    reader: &JournalReader,
    volume: &Volume,
    entry: &Entry,
    image: &mut SparseImage<'_>,
    restored: &mut Restored,
    doubtful: &mut Doubtful,
) -> Result<(), Error> {
    let header = &entry.record.header;
    let (first, sectors) = (header.lba(), u64::from(header.sectors.get()));
    if matches!(entry.updated, Updated::Refused | Updated::Cancelled) {
        // Nothing was executed. The payload is proved all the same: a damaged entry is not passed over.
        reader.payload(&entry.record)?;
        restored.skipped += 1;
        return Ok(());
    }
    if first + sectors > volume.sectors {
        if entry.updated == Updated::Updated {
            let what = format!(
                "order:{} updated sectors {first} to {} of volume {}, which has {}",
                entry.order,
                first + sectors,
                volume.name(),
                volume.sectors
            );
            return Err(Error::corrupt(&reader.file_name(), entry.record.location.descriptor, what));
        }
        // Past the end nothing can have been executed, whatever became of the answer.
        restored.skipped += 1;
        return Ok(());
    }
    let payload = reader.payload(&entry.record)?;
    let at = first * u64::from(volume.sector_bytes);
    let bytes = sectors * u64::from(volume.sector_bytes);
    match (entry.record.kind, Encoding::from_byte(header.encoding)) {
        (Kind::Before, _) => {
            return Err(Error::Invalid(format!(
                "order:{} holds no after-image: this volume's moments are made from primary, not from a base",
                entry.order
            )));
        }
        (_, Ok(Encoding::Zero)) => image.zero(at, bytes)?,
        (kind, Ok(Encoding::Raw)) => {
            // With both images, the one after the write comes second.
            let after = if kind == Kind::Both { payload.len() / 2 } else { 0 };
            if (payload.len() - after) as u64 != bytes {
                let what = format!("order:{} has {} bytes for {sectors} sectors", entry.order, payload.len());
                return Err(Error::corrupt(&reader.file_name(), entry.record.location.descriptor, what));
            }
            image.write(&payload[after..], at)?;
        }
        (_, Err(encoding)) => {
            return Err(Error::Version {
                file: reader.file_name(),
                what: format!("order:{} is encoded as {encoding}, which is unknown", entry.order),
            });
        }
    }
    restored.applied += 1;
    restored.bytes += bytes;
    match entry.updated {
        Updated::Updated => doubtful.cover(first, first + sectors),
        _ => doubtful.add(first, first + sectors),
    }
    Ok(())
}

/// Sectors of which nobody knows whether primary has what the image has.
#[derive(Default)]
struct Doubtful {
    /// Start to (end, serial of the entry). Ranges don't overlap.
    ranges: BTreeMap<u64, (u64, u64)>,
    serial: u64,
}

impl Doubtful {
    fn add(&mut self, start: u64, end: u64) {
        self.cover(start, end);
        self.serial += 1;
        self.ranges.insert(start, (end, self.serial));
    }

    /// A known write settles what it covers.
    fn cover(&mut self, start: u64, end: u64) {
        let touched: Vec<(u64, (u64, u64))> = self
            .ranges
            .range(..end)
            .rev()
            .take_while(|(_, (range_end, _))| *range_end > start)
            .map(|(s, v)| (*s, *v))
            .collect();
        for (s, (e, serial)) in touched {
            self.ranges.remove(&s);
            if s < start {
                self.ranges.insert(s, (start, serial));
            }
            if e > end {
                self.ranges.insert(end, (e, serial));
            }
        }
    }

    /// Entries that anything is left of.
    fn entries(&self) -> u64 {
        let mut serials: Vec<u64> = self.ranges.values().map(|(_, serial)| *serial).collect();
        serials.sort_unstable();
        serials.dedup();
        serials.len() as u64
    }
}

/// The image under a temporary name in the same directory, removed unless it is published.
struct Unfinished {
    file: File,
    path: PathBuf,
    name: String,
}

impl Unfinished {
    fn new(options: &RestoreOptions<'_>) -> Result<Self, Error> {
        let name = options.out.display().to_string();
        match std::fs::metadata(options.out) {
            Ok(metadata) if !metadata.is_file() => {
                return Err(Error::Invalid(format!("{name}: exists and is not a regular file")));
            }
            Ok(_) if !options.force => return Err(Error::Exists { file: name }),
            Ok(metadata) => refuse_same_file(&name, &metadata, options.base)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(&name, "looking for it", e)),
        }
        let last =
            options.out.file_name().ok_or_else(|| Error::Invalid(format!("{name}: not a file's name")))?;
        let temporary = format!(".{}.partial-{}", last.to_string_lossy(), std::process::id());
        let path = options.out.with_file_name(temporary);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|e| Error::io(&name, "creating it (under a temporary name)", e))?;
        Ok(Self { file, path, name })
    }

    /// Durable first, then the name: whoever sees the name sees the whole image.
    fn publish(self, options: &RestoreOptions<'_>) -> Result<(), Error> {
        use rustix::fs::{renameat_with, RenameFlags, CWD};
        self.file.sync_all().map_err(|e| Error::io(&self.name, "making it durable", e))?;
        let flags = if options.force { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        match renameat_with(CWD, &self.path, CWD, options.out, flags) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => return Err(Error::Exists { file: self.name.clone() }),
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) if !options.force => {
                std::fs::hard_link(&self.path, options.out)
                    .map_err(|e| Error::io(&self.name, "giving it its name", e))?;
            }
            Err(e) => return Err(Error::io(&self.name, "giving it its name", e.into())),
        }
        sync_directory(options.out)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Gone already if it was renamed.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn refuse_same_file(name: &str, out: &std::fs::Metadata, base: &Path) -> Result<(), Error> {
    use std::os::unix::fs::MetadataExt;
    let base = std::fs::metadata(base)
        .map_err(|e| Error::io(&base.display().to_string(), "looking at the base", e))?;
    if (base.dev(), base.ino()) == (out.dev(), out.ino()) {
        return Err(Error::Invalid(format!("{name}: is the base itself")));
    }
    Ok(())
}
