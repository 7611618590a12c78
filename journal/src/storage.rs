//! Where a journal's bytes lie: a file or block device, or in tests a memory that fails on demand.

use crate::error::Error;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

/// Positioned reads and writes, and durability.
///
/// `read_at` and `write_at` may do less than asked, like the system calls; the journal goes on.
pub trait Storage: Send + Sync {
    /// Name for messages.
    fn name(&self) -> &str;
    /// Bytes that there are.
    fn bytes(&self) -> io::Result<u64>;
    /// Reads up to `buffer.len()` bytes; 0 at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes up to `bytes.len()` bytes.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
    /// Returns when everything written is durable.
    fn sync(&self) -> io::Result<()>;
    /// Hints that these bytes, written before, may start on their way to the device, so that a
    /// later [`Storage::sync`] finds less to do. Promises nothing, and can't fail.
    fn start_writeback(&self, _offset: u64, _bytes: u64) {}
    /// Writes, and returns when this write is durable. Says nothing of other writes.
    fn write_durable_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let written = self.write_at(bytes, offset)?;
        self.sync()?;
        Ok(written)
    }
}

/// A file or a block device.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    name: String,
}

impl FileStorage {
    /// Opens `path` for reading.
    pub fn open_read_only(path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|e| Error::io(&name, "opening", e))?;
        Self::checked(file, name)
    }

    /// Opens `path` for writing and locks it, so that there is one owner.
    pub fn open_owned(path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|e| Error::io(&name, "opening for writing", e))?;
        let storage = Self::checked(file, name)?;
        storage.lock()?;
        Ok(storage)
    }

    /// A file that is already open; `name` is for messages.
    pub(crate) fn from_file(file: File, name: String) -> Self {
        Self { file, name }
    }

    /// Takes the owner's lock, which goes with the file when it is closed.
    pub(crate) fn lock(&self) -> Result<(), Error> {
        match self.file.try_lock() {
            Ok(()) => Ok(()),
            Err(TryLockError::WouldBlock) => {
                Err(Error::Locked { file: self.name.clone(), owner: self.lock_owner() })
            }
            Err(TryLockError::Error(e)) => Err(Error::io(&self.name, "locking", e)),
        }
    }

    fn checked(file: File, name: String) -> Result<Self, Error> {
        let kind = file.metadata().map_err(|e| Error::io(&name, "looking at it", e))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Error::Foreign { file: name, reason: "neither a file nor a block device".into() });
        }
        Ok(Self { file, name })
    }

    /// Who holds the lock, from the kernel's list: "3: FLOCK  ADVISORY  WRITE 5037 fd:01:1835015 0 EOF".
    pub fn lock_owner(&self) -> Option<u32> {
        let inode = self.file.metadata().ok()?.ino().to_string();
        let locks = std::fs::read_to_string("/proc/locks").ok()?;
        locks.lines().find_map(|line| {
            let mut words = line.split_whitespace().filter(|word| *word != "->").skip(1);
            let (kind, _, _, pid, place) =
                (words.next()?, words.next()?, words.next()?, words.next()?, words.next()?);
            (kind == "FLOCK" && place.rsplit(':').next() == Some(inode.as_str())).then(|| pid.parse().ok())?
        })
    }
}

impl Storage for FileStorage {
    fn name(&self) -> &str {
        &self.name
    }

    fn bytes(&self) -> io::Result<u64> {
        // A block device's metadata say 0: its end is found by seeking there.
        let metadata = self.file.metadata()?;
        if metadata.file_type().is_block_device() {
            return rustix::fs::seek(&self.file, rustix::fs::SeekFrom::End(0)).map_err(io::Error::from);
        }
        Ok(metadata.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(&self.file, buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(&self.file, bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn start_writeback(&self, offset: u64, bytes: u64) {
        let (Ok(offset), Ok(bytes)) = (i64::try_from(offset), i64::try_from(bytes)) else { return };
        // SAFETY: the descriptor is open as long as `self.file` lives, and the call touches no memory
        // of ours. Its result is of no use: an error of the device stays with the file until fdatasync.
        unsafe {
            libc::sync_file_range(self.file.as_raw_fd(), offset, bytes, libc::SYNC_FILE_RANGE_WRITE);
        }
    }

    fn write_durable_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let buffers = [io::IoSlice::new(bytes)];
        match rustix::io::pwritev2(&self.file, &buffers, offset, rustix::io::ReadWriteFlags::DSYNC) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                let written = self.write_at(bytes, offset)?;
                self.file.sync_data()?;
                Ok(written)
            }
            other => other.map_err(io::Error::from),
        }
    }
}

/// Reads exactly `buffer.len()` bytes.
pub(crate) fn read_exact(storage: &dyn Storage, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
    let mut done = 0;
    while done < buffer.len() {
        let at = offset + done as u64;
        match storage.read_at(&mut buffer[done..], at) {
            Ok(0) => {
                return Err(Error::Truncated {
                    file: storage.name().to_owned(),
                    expected: offset + buffer.len() as u64,
                    actual: at,
                })
            }
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => {
                let action = format!("reading {} bytes at offset {at}", buffer.len() - done);
                return Err(Error::io(storage.name(), action, e));
            }
        }
    }
    Ok(())
}

fn write_with(
    storage: &dyn Storage,
    bytes: &[u8],
    offset: u64,
    write: impl Fn(&[u8], u64) -> io::Result<usize>,
) -> Result<(), Error> {
    let mut done = 0;
    while done < bytes.len() {
        let at = offset + done as u64;
        let action = || format!("writing {} bytes at offset {at}", bytes.len() - done);
        match write(&bytes[done..], at) {
            Ok(0) => return Err(Error::io(storage.name(), action(), io::ErrorKind::WriteZero.into())),
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io(storage.name(), action(), e)),
        }
    }
    Ok(())
}

/// Writes all of `bytes`.
pub(crate) fn write_all(storage: &dyn Storage, bytes: &[u8], offset: u64) -> Result<(), Error> {
    write_with(storage, bytes, offset, |bytes, at| storage.write_at(bytes, at))
}

/// Writes all of `bytes`, durably.
pub(crate) fn write_all_durable(storage: &dyn Storage, bytes: &[u8], offset: u64) -> Result<(), Error> {
    write_with(storage, bytes, offset, |bytes, at| storage.write_durable_at(bytes, at))
}

/// Makes everything written durable.
pub(crate) fn sync(storage: &dyn Storage) -> Result<(), Error> {
    storage.sync().map_err(|e| Error::io(storage.name(), "making it durable (fdatasync)", e))
}
