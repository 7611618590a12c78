//! Writes a volume's image at a moment into a new file, or over a device.

use crate::error::Error;
use crate::history::MissingSpan;
use crate::image::{Backing, Image, Origin};
use crate::moment::Moment;
use crate::open::sync_directory;
use crate::reader::JournalReader;
use crate::sparse::SparseImage;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// Bytes that are read from the image and written at a time.
const PIECE_BYTES: u64 = 1 << 20;

/// What is to be restored.
#[derive(Clone, Debug)]
pub struct RestoreOptions<'a> {
    /// Name of the volume.
    pub volume: &'a str,
    /// Primary or base; opened for reading only.
    pub backing: Backing<'a>,
    /// The moment.
    pub at: Moment,
    /// The image to make, or with `force` the device to write it on.
    pub out: &'a Path,
    /// Replace `out` if it exists.
    pub force: bool,
    /// Restore across gaps in the journal, though the image may be wrong.
    pub allow_gaps: bool,
}

/// What a restore is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Building the map; counted in entries.
    Reading,
    /// Writing the image; counted in bytes.
    Writing,
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
    /// Entries of the volume that the image was made from: over a base those up to the moment, over
    /// primary those behind it.
    pub entries: u64,
    /// Entries of the volume that were left out, because they were refused or cancelled.
    pub skipped: u64,
    /// Entries that are seen in the image though nobody knows whether the target executed them.
    pub doubtful: u64,
    /// Bytes of the image that came from the journal.
    pub bytes: u64,
    /// Gaps that the image crosses (only with `allow_gaps`).
    pub gaps: Vec<MissingSpan>,
}

/// Makes the image. On any error nothing stands under `out`'s name that wasn't there before; a
/// device may have been written in part.
pub fn restore(
    reader: JournalReader,
    options: &RestoreOptions<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Restored, Error> {
    let out = Out::open(options)?;
    let image = Image::open(
        reader,
        options.volume,
        options.at,
        options.backing,
        options.allow_gaps,
        &mut |done, total| progress(Progress { stage: Stage::Reading, done, total }),
    )?;
    match out {
        Out::Device(file, name) => {
            let mut device = SparseImage::over_device(&file, &name, image.bytes())?;
            write(&image, &mut device, false, progress)?;
            file.sync_all().map_err(|e| Error::io(&name, "making it durable", e))?;
        }
        Out::File => {
            let unfinished = Unfinished::new(options)?;
            let mut file = SparseImage::new(&unfinished.file, &unfinished.name, image.bytes())?;
            write(&image, &mut file, true, progress)?;
            unfinished.publish(options)?;
        }
    }
    let facts = image.facts();
    Ok(Restored {
        order: facts.order,
        timestamp: facts.timestamp,
        entries: facts.entries,
        skipped: facts.skipped,
        doubtful: facts.doubtful,
        bytes: facts.mapped_bytes,
        gaps: facts.gaps.clone(),
    })
}

/// Writes the whole image. `blank`: `out` is one hole, and what is zero need not be written.
fn write(
    image: &Image,
    out: &mut SparseImage<'_>,
    blank: bool,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), Error> {
    let total = image.bytes();
    let mut buffer = vec![0; PIECE_BYTES.min(total) as usize];
    let mut at = 0;
    while at < total {
        let length = PIECE_BYTES.min(total - at);
        for run in image.runs(at, length)? {
            let (mut from, end) = (run.offset, run.offset + run.bytes);
            if run.origin == Origin::Zero {
                if !blank {
                    out.zero(from, run.bytes)?;
                }
                continue;
            }
            // A base's holes are the image's. Primary may get data there at any moment.
            if blank && run.origin == Origin::Backing && image.is_still() {
                from = image.next_data(from)?.0.min(end);
            }
            if from == end {
                continue;
            }
            let part = &mut buffer[..(end - from) as usize];
            image.read_at(part, from)?;
            match blank {
                true => out.fill(part, from)?,
                false => out.write(part, from)?,
            }
        }
        at += length;
        progress(Progress { stage: Stage::Writing, done: at, total });
    }
    // Holes of a base were left out without reading them.
    image.confirm_whole()
}

/// Where the image goes.
enum Out {
    Device(File, String),
    File,
}

impl Out {
    fn open(options: &RestoreOptions<'_>) -> Result<Self, Error> {
        let name = options.out.display().to_string();
        match std::fs::metadata(options.out) {
            Ok(metadata) if metadata.file_type().is_block_device() => {
                refuse_same_file(&name, &metadata, options.backing)?;
                if !options.force {
                    return Err(Error::Exists { file: name });
                }
                let device = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(options.out)
                    .map_err(|e| Error::io(&name, "opening for writing", e))?;
                Ok(Out::Device(device, name))
            }
            Ok(metadata) if !metadata.is_file() => Err(Error::Invalid(format!(
                "{name}: exists and is neither a regular file nor a block device"
            ))),
            Ok(_) if !options.force => Err(Error::Exists { file: name }),
            Ok(metadata) => refuse_same_file(&name, &metadata, options.backing).map(|()| Out::File),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Out::File),
            Err(e) => Err(Error::io(&name, "looking for it", e)),
        }
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

fn refuse_same_file(name: &str, out: &std::fs::Metadata, backing_kind: Backing<'_>) -> Result<(), Error> {
    use std::os::unix::fs::MetadataExt;
    let backing = std::fs::metadata(backing_kind.path())
        .map_err(|e| Error::io(&backing_kind.path().display().to_string(), "looking at it", e))?;
    let same_device = out.file_type().is_block_device()
        && backing.file_type().is_block_device()
        && backing.rdev() == out.rdev();
    if same_device || (backing.dev(), backing.ino()) == (out.dev(), out.ino()) {
        let what = match backing_kind {
            Backing::Primary(_) => "primary",
            Backing::Base(_) => "the base",
        };
        return Err(Error::Invalid(format!("{name}: is {what} itself")));
    }
    Ok(())
}
