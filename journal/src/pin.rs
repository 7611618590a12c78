//! Pins: who reads a journal beside its owner holds the segments that it needs.
//!
//! A pin is a shared lock of the file's on a segment's first byte, of the kind that belongs to the open file
//! (`F_OFD_SETLK`): it goes with the reader, however that ends, and is seen by every process. An owner who gives up a
//! segment that is pinned doesn't use its room until the pin is gone, unless writes would have to stop for it.

use crate::error::Error;
use crate::head::Head;
use crate::storage::Storage;
use crate::walk::Directory;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Pins every segment that belongs to a portion. A file system without such locks pins nothing.
pub(crate) fn all(storage: &dyn Storage, head: &Head, directory: &Directory) -> Result<(), Error> {
    for place in directory.places.iter().chain(directory.merged.iter().flatten()) {
        let offset = head.geometry.segment_offset(place.slot);
        storage
            .pin(offset)
            .map_err(|e| Error::io(storage.name(), format!("pinning the segment at offset {offset}"), e))?;
    }
    Ok(())
}

/// Does somebody else read the segment that begins at `offset`?
pub(crate) fn is_pinned(storage: &dyn Storage, head: &Head, slot: u32) -> bool {
    storage.is_pinned(head.geometry.segment_offset(slot))
}

fn lock(kind: libc::c_int, offset: u64) -> io::Result<libc::flock> {
    let start = i64::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // All zeroes but for what is set: OFD locks want `l_pid` zero.
    Ok(libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: 1,
        l_pid: 0,
    })
}

/// Takes a shared lock on a byte of `file`, for as long as it is open.
pub(crate) fn share(file: &File, offset: u64) -> io::Result<()> {
    let wanted = lock(libc::F_RDLCK, offset)?;
    // SAFETY: the descriptor is open as long as `file` lives, and the call only reads `wanted`, which outlives it.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &wanted) };
    match done {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            e if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOLCK | libc::EOPNOTSUPP)) => Ok(()),
            e => Err(e),
        },
    }
}

/// Has another open file a lock on that byte?
pub(crate) fn is_shared(file: &File, offset: u64) -> bool {
    let Ok(mut wanted) = lock(libc::F_WRLCK, offset) else { return false };
    // SAFETY: the descriptor is open as long as `file` lives, and the call writes only `wanted`, which is ours.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut wanted) };
    done == 0 && wanted.l_type != libc::F_UNLCK as libc::c_short
}
