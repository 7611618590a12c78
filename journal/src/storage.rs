//! Where a journal's bytes lie: a file or block device, or in tests a memory that fails on demand.

use crate::error::Error;
use crate::never_written::never_written;
use crate::pin;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

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
    /// Writes up to all bytes of the pieces, one behind the other.
    fn write_vectored_at(&self, pieces: &[io::IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let piece = pieces.iter().find(|piece| !piece.is_empty());
        piece.map_or(Ok(0), |piece| self.write_at(piece, offset))
    }
    /// Is it faster to copy bytes to where memory is aligned than to write them from where they lie?
    fn wants_aligned(&self) -> bool {
        false
    }
    /// Returns when everything written is durable.
    fn sync(&self) -> io::Result<()>;
    /// Hints that these bytes, written before, may start on their way to the device, so that a
    /// later [`Storage::sync`] finds less to do. Promises nothing, and can't fail.
    fn start_writeback(&self, _offset: u64, _bytes: u64) {}
    /// Hints that these bytes won't be read soon, so that memory is better used for others. What isn't on the device yet stays.
    fn forget(&self, _offset: u64, _bytes: u64) {}
    /// These bytes, which hold nothing that counts, are going to be written in small pieces with a sync behind each. Where
    /// the first write to a place costs more than later ones (blocks that are allocated and were never written), that may
    /// be done now for all of them. Promises nothing.
    fn prepare(&self, _offset: u64, _bytes: u64) {}
    /// Pins the segment that begins at `offset` for as long as this storage is open.
    fn pin(&self, _offset: u64) -> io::Result<()> {
        Ok(())
    }
    /// Has somebody else pinned the segment that begins at `offset`?
    fn is_pinned(&self, _offset: u64) -> bool {
        false
    }
    /// Writes, and returns when this write is durable. Says nothing of other writes.
    fn write_durable_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let written = self.write_at(bytes, offset)?;
        self.sync()?;
        Ok(written)
    }
}

/// How an owner writes its file. Readers use the page cache in any case, and see the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Io {
    /// Through the page cache. Why this is the default: `docs/decisions/0015-direct-io.md`.
    #[default]
    Buffered,
    /// Past the page cache (O_DIRECT), where the file system takes it and the write is aligned; all else goes
    /// through the page cache.
    Direct,
}

/// What O_DIRECT wants buffers, offsets and lengths to be multiples of: the largest that devices ask for.
const DIRECT_ALIGN: usize = 4096;

/// Pieces in one call; Linux takes 1024.
const MOST_PIECES: usize = 1024;

/// A file or a block device.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    name: String,
    /// The same file, opened for direct I/O.
    direct: Option<File>,
    /// The most bytes that it was seen to have. Writing into a file that was cut would make it longer again,
    /// with a hole where the rest had been.
    most_bytes: AtomicU64,
    /// The file system took the flag, and then refused a write: it isn't asked again.
    direct_refused: AtomicBool,
}

impl FileStorage {
    /// Opens `path` for reading.
    pub fn open_read_only(path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        // Without waiting: the opening of a FIFO would wait for its writer for ever.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(|e| Error::io(&name, "opening", e))?;
        Self::checked(file, name)
    }

    /// Opens `path` for writing and locks it, so that there is one owner.
    pub fn open_owned(path: &Path) -> Result<Self, Error> {
        Self::open_owned_with(path, Io::default())
    }

    /// The same, and says how it is written.
    pub fn open_owned_with(path: &Path, io: Io) -> Result<Self, Error> {
        let name = path.display().to_string();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(|e| Error::io(&name, "opening for writing", e))?;
        let storage = Self::checked(file, name)?;
        storage.lock()?;
        Ok(storage.with(io))
    }

    /// Writes so from now on. A file system that takes no direct I/O is written through the page cache.
    pub(crate) fn with(mut self, io: Io) -> Self {
        self.direct = match io {
            Io::Buffered => None,
            // By its descriptor: the name may mean another file by now, or not be given yet.
            Io::Direct => OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_DIRECT)
                .open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
                .ok(),
        };
        self
    }

    /// The descriptor for direct I/O, if these bytes can go that way.
    fn direct_for(&self, bytes: &[u8], offset: u64) -> Option<&File> {
        let align = DIRECT_ALIGN;
        let aligned = (bytes.as_ptr() as usize).is_multiple_of(align)
            && bytes.len().is_multiple_of(align)
            && offset.is_multiple_of(align as u64);
        let usable = aligned && !self.direct_refused.load(Ordering::Relaxed);
        self.direct.as_ref().filter(|_| usable)
    }

    /// Tries to write past the page cache; `None`: it has to go through it.
    fn write_direct(&self, bytes: &[u8], offset: u64, durable: bool) -> Option<io::Result<usize>> {
        let file = self.direct_for(bytes, offset)?;
        let flags = match durable {
            true => rustix::io::ReadWriteFlags::DSYNC,
            false => rustix::io::ReadWriteFlags::empty(),
        };
        match rustix::io::pwritev2(file, &[io::IoSlice::new(bytes)], offset, flags) {
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                self.direct_refused.store(true, Ordering::Relaxed);
                None
            }
            other => Some(other.map_err(io::Error::from)),
        }
    }

    /// A file that is already open; `name` is for messages.
    pub(crate) fn from_file(file: File, name: String) -> Self {
        Self {
            file,
            name,
            direct: None,
            most_bytes: AtomicU64::new(0),
            direct_refused: AtomicBool::new(false),
        }
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
            let is = if kind.is_dir() { "a directory" } else { "a pipe, socket or character device" };
            let reason = format!("it is {is}; a journal is a regular file or a block device");
            return Err(Error::Foreign { file: name, reason });
        }
        Ok(Self::from_file(file, name))
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
        // A block device's metadata say 0. And to look at a file's after each sync makes the kernel note the very moment of
        // the write behind it (multigrain timestamps): one more block for each sync.
        rustix::fs::seek(&self.file, rustix::fs::SeekFrom::End(0)).map_err(io::Error::from)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(&self.file, buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        match self.write_direct(bytes, offset, false) {
            Some(written) => written,
            None => FileExt::write_at(&self.file, bytes, offset),
        }
    }

    fn write_vectored_at(&self, pieces: &[io::IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let pieces = &pieces[..pieces.len().min(MOST_PIECES)];
        rustix::io::pwritev(&self.file, pieces, offset).map_err(io::Error::from)
    }

    fn wants_aligned(&self) -> bool {
        self.direct.is_some() && !self.direct_refused.load(Ordering::Relaxed)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()?;
        let now = self.bytes()?;
        let most = self.most_bytes.fetch_max(now, Ordering::Relaxed);
        if now < most {
            // Nothing more may be acknowledged: what was, may be gone.
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("the file was cut from {most} to {now} bytes while it was open; stop what did that, and verify it"),
            ));
        }
        Ok(())
    }

    fn start_writeback(&self, offset: u64, bytes: u64) {
        if self.wants_aligned() {
            // It is there already.
            return;
        }
        begin_writeback(&self.file, offset, bytes);
    }

    fn forget(&self, offset: u64, bytes: u64) {
        // No length would mean everything up to the file's end.
        let Some(bytes) = std::num::NonZeroU64::new(bytes) else { return };
        // A hint: a file system that doesn't take it keeps them.
        let _ = rustix::fs::fadvise(&self.file, offset, Some(bytes), rustix::fs::Advice::DontNeed);
    }

    fn prepare(&self, offset: u64, bytes: u64) {
        let range = offset..offset.saturating_add(bytes);
        let zeroes = vec![0; 1 << 20];
        for Range { start, end } in never_written(&self.file, range).unwrap_or_default() {
            let mut at = start;
            while at < end {
                let piece = (end - at).min(zeroes.len() as u64) as usize;
                match self.file.write_at(&zeroes[..piece], at) {
                    Ok(written) if written > 0 => at += written as u64,
                    // Whoever writes there in earnest hears of it.
                    _ => return,
                }
            }
        }
    }

    fn pin(&self, offset: u64) -> io::Result<()> {
        pin::share(&self.file, offset)
    }

    fn is_pinned(&self, offset: u64) -> bool {
        pin::is_shared(&self.file, offset)
    }

    fn write_durable_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        if let Some(written) = self.write_direct(bytes, offset, true) {
            return written;
        }
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

/// Hints that these bytes of a file may start on their way to the device.
pub(crate) fn begin_writeback(file: &File, offset: u64, bytes: u64) {
    let (Ok(offset), Ok(bytes)) = (i64::try_from(offset), i64::try_from(bytes)) else { return };
    // SAFETY: the descriptor is open as long as `file` lives, and the call touches no memory of ours. Its result is
    // of no use: an error of the device stays with the file until fdatasync.
    unsafe {
        libc::sync_file_range(file.as_raw_fd(), offset, bytes, libc::SYNC_FILE_RANGE_WRITE);
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
                    actual: storage.bytes().map_or(at, |bytes| bytes.min(at)),
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

/// Writes all of the pieces, one behind the other.
pub(crate) fn write_all_vectored(
    storage: &dyn Storage,
    mut pieces: &mut [io::IoSlice<'_>],
    mut offset: u64,
) -> Result<(), Error> {
    io::IoSlice::advance_slices(&mut pieces, 0);
    while !pieces.is_empty() {
        let left = pieces.iter().map(|piece| piece.len()).sum::<usize>();
        let failed =
            |error| Error::io(storage.name(), format!("writing {left} bytes at offset {offset}"), error);
        match storage.write_vectored_at(pieces, offset) {
            Ok(0) => return Err(failed(io::ErrorKind::WriteZero.into())),
            Ok(written) => {
                io::IoSlice::advance_slices(&mut pieces, written);
                offset += written as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(failed(e)),
        }
    }
    Ok(())
}

/// Writes all of `bytes`, durably.
pub(crate) fn write_all_durable(storage: &dyn Storage, bytes: &[u8], offset: u64) -> Result<(), Error> {
    write_with(storage, bytes, offset, |bytes, at| storage.write_durable_at(bytes, at))
}

/// Makes everything written durable.
pub(crate) fn sync(storage: &dyn Storage) -> Result<(), Error> {
    storage.sync().map_err(|e| Error::io(storage.name(), "making it durable (fdatasync)", e))
}
