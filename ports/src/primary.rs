//! Primary storage: a file, a block device, or a part of one.

use rustix::fs::{fallocate, seek, FallocateFlags, SeekFrom};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Where a volume's data are. Calls may block and come from several threads, never for ranges that overlap in flight if one of
/// them writes.
pub trait Primary: Send + Sync {
    /// For messages.
    fn name(&self) -> &str;
    /// Bytes.
    fn bytes(&self) -> u64;
    /// Fills the buffer.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of it. It needn't be durable.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Makes these bytes zeroes. `punch`: they may be left unallocated.
    fn zero_at(&self, offset: u64, bytes: u64, punch: bool) -> io::Result<()>;
    /// Is [`Primary::zero_at`] faster than writing zeroes?
    fn zeroes_fast(&self) -> bool {
        false
    }
    /// Makes everything durable that was written.
    fn sync(&self) -> io::Result<()>;
    /// Runs from `offset` on: bytes, and whether they are a hole. The first ends after it begins.
    fn extents(&self, offset: u64, bytes: u64) -> io::Result<Vec<(u64, bool)>> {
        let _ = offset;
        Ok(vec![(bytes, false)])
    }
}

/// Zeroes that are written where holes can't be punched.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// What files and devices are open, so that two exports of one file share it.
#[derive(Debug, Default)]
pub struct Opened {
    files: Vec<(u64, u64, Arc<Shared>)>,
    parts: Vec<(usize, u64, u64, PathBuf)>,
}

/// A file, opened once.
#[derive(Debug)]
struct Shared {
    file: File,
    /// Seeking moves the position that all share.
    seeking: Mutex<()>,
    /// It doesn't punch holes, or zero ranges.
    refuses: [AtomicBool; 2],
}

/// See the module.
#[derive(Debug)]
pub struct FilePrimary {
    shared: Arc<Shared>,
    name: String,
    first: u64,
    bytes: u64,
}

/// Why primary storage can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PrimaryError {
    /// The system refused.
    #[error("{file}: {action}: {source}")]
    Io {
        /// The file.
        file: String,
        /// What was tried.
        action: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// It can't be meant.
    #[error("{file}: {what}")]
    Unfit {
        /// The file.
        file: String,
        /// Why.
        what: String,
    },
}

impl Opened {
    /// Opens `path`, or `length` bytes of it from `offset` on. Nobody else may serve it meanwhile, nor a part of it twice.
    pub fn open(&mut self, path: &Path, part: Option<(u64, u64)>) -> Result<FilePrimary, PrimaryError> {
        let file = path.display().to_string();
        let failed = |action| {
            let file = file.clone();
            move |source| PrimaryError::Io { file, action, source }
        };
        let unfit = |what: String| PrimaryError::Unfit { file: file.clone(), what };
        // Without waiting: the opening of a FIFO would wait for its writer for ever.
        let mut options = OpenOptions::new();
        let opened = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path);
        let opened = opened.map_err(failed("opening it for writing"))?;
        let metadata = opened.metadata().map_err(failed("looking at it"))?;
        if !metadata.is_file() && !metadata.file_type().is_block_device() {
            return Err(unfit("primary storage is a regular file or a block device".into()));
        }
        let identity = match metadata.file_type().is_block_device() {
            true => (u64::MAX, metadata.rdev()),
            false => (metadata.dev(), metadata.ino()),
        };
        let known = self.files.iter().position(|(dev, ino, _)| (*dev, *ino) == identity);
        let index = match known {
            Some(index) => index,
            None => {
                match opened.try_lock() {
                    Ok(()) => {}
                    Err(TryLockError::WouldBlock) => {
                        return Err(unfit("another process serves it, or has it locked".into()))
                    }
                    Err(TryLockError::Error(e)) => return Err(failed("locking it")(e)),
                }
                let shared = Shared { file: opened, seeking: Mutex::default(), refuses: Default::default() };
                self.files.push((identity.0, identity.1, Arc::new(shared)));
                self.files.len() - 1
            }
        };
        let shared = Arc::clone(&self.files[index].2);
        let total =
            seek(&shared.file, SeekFrom::End(0)).map_err(|e| failed("asking for its size")(e.into()))?;
        let sector = layout::SECTOR_BYTES as u64;
        let (first, bytes) = part.unwrap_or((0, total));
        let end = first.checked_add(bytes).filter(|end| *end <= total);
        let Some(end) = end.filter(|_| bytes > 0) else {
            return Err(unfit(format!("it has {total} bytes; {bytes} from {first} on aren't in it")));
        };
        if !first.is_multiple_of(sector) || !bytes.is_multiple_of(sector) {
            return Err(unfit(format!(
                "{bytes} bytes from {first} on are no whole sectors of {sector} bytes"
            )));
        }
        let overlaps = |(other, from, to, _): &&(usize, u64, u64, PathBuf)| {
            *other == index && first < *to && *from < end
        };
        if let Some((_, from, to, _)) = self.parts.iter().find(overlaps) {
            return Err(unfit(format!("bytes {from} to {to} of it are another export's already")));
        }
        self.parts.push((index, first, end, path.to_owned()));
        Ok(FilePrimary { shared, name: file, first, bytes })
    }
}

impl FilePrimary {
    fn allocate(&self, which: usize, flags: FallocateFlags, offset: u64, bytes: u64) -> io::Result<bool> {
        if self.shared.refuses[which].load(Ordering::Relaxed) {
            return Ok(false);
        }
        match fallocate(&self.shared.file, flags, self.first + offset, bytes) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NODEV | rustix::io::Errno::INVAL) => {
                self.shared.refuses[which].store(true, Ordering::Relaxed);
                Ok(false)
            }
            Err(e) => Err(e.into()),
        }
    }
}

impl Primary for FilePrimary {
    fn name(&self) -> &str {
        &self.name
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.shared.file.read_exact_at(buffer, self.first + offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.shared.file.write_all_at(data, self.first + offset)
    }

    fn zero_at(&self, offset: u64, bytes: u64, punch: bool) -> io::Result<()> {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if punch && self.allocate(0, hole, offset, bytes)? {
            return Ok(());
        }
        if self.allocate(1, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, offset, bytes)? {
            return Ok(());
        }
        let mut done = 0;
        while done < bytes {
            let piece = (bytes - done).min(ZEROES.len() as u64);
            self.write_at(&ZEROES[..piece as usize], offset + done)?;
            done += piece;
        }
        Ok(())
    }

    fn zeroes_fast(&self) -> bool {
        !self.shared.refuses[1].load(Ordering::Relaxed)
    }

    fn sync(&self) -> io::Result<()> {
        self.shared.file.sync_data()
    }

    fn extents(&self, offset: u64, bytes: u64) -> io::Result<Vec<(u64, bool)>> {
        let file = &self.shared.file;
        let _turn = self.shared.seeking.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut at, end) = (self.first + offset, self.first + offset + bytes);
        let mut runs = Vec::new();
        while at < end {
            let data = match seek(file, SeekFrom::Data(at)) {
                Ok(data) => data.min(end),
                // No data up to the end of the file.
                Err(rustix::io::Errno::NXIO) => end,
                // It can't tell.
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => {
                    runs.push((end - at, false));
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            if data > at {
                runs.push((data - at, true));
                at = data;
            }
            if at < end {
                let hole = seek(file, SeekFrom::Hole(at)).unwrap_or(end).clamp(at + 1, end);
                runs.push((hole - at, false));
                at = hole;
            }
        }
        Ok(runs)
    }
}
