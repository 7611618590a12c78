//! Which blocks of a file were allocated and never written.
//!
//! `SEEK_DATA` doesn't tell: what somebody has read there is in the page cache, and counts as data.

use rustix::ioctl::{ioctl, Opcode, Updater};
use std::fs::File;
use std::io;
use std::ops::Range;

/// `FS_IOC_FIEMAP`, `_IOWR('f', 11, struct fiemap)`: Linux's `include/uapi/linux/fs.h`.
const FS_IOC_FIEMAP: Opcode = 0xC020_660B;
/// Space is allocated, and reads as zeroes: `FIEMAP_EXTENT_UNWRITTEN` of `include/uapi/linux/fiemap.h`.
const UNWRITTEN: u32 = 0x0800;
/// Extents of one answer: what is asked for is a few MiB.
const EXTENTS: usize = 32;

/// `struct fiemap_extent`; bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved2: [u32; 3],
}

const _: () = assert!(size_of::<Extent>() == 56);

/// `struct fiemap` with room for extents.
#[repr(C)]
#[derive(Debug, Default)]
struct Query {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [Extent; EXTENTS],
}

/// Parts of `range` that were never written, rising. An error where the file system doesn't say, and for devices.
pub(crate) fn never_written(file: &File, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let length = range.end.saturating_sub(range.start);
    let mut query = Query { start: range.start, length, count: EXTENTS as u32, ..Query::default() };
    // SAFETY: FIEMAP reads the head of what it is given and writes that and `count` extents behind it at most, all of
    // them integers for which any bits are valid; `Query` is laid out so, and has room for `EXTENTS`.
    unsafe { ioctl(file, Updater::<FS_IOC_FIEMAP, Query>::new(&mut query))? };
    let mapped = query.extents.iter().take(query.mapped as usize);
    let unwritten = mapped.filter(|extent| extent.flags & UNWRITTEN != 0);
    let inside = unwritten.map(|extent| {
        let end = extent.logical.saturating_add(extent.length);
        extent.logical.max(range.start)..end.min(range.end)
    });
    Ok(inside.filter(|part| part.start < part.end).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn what_was_read_was_not_written() {
        let file = tempfile::tempfile().expect("a file");
        if rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 1 << 20).is_err()
            || never_written(&file, 0..1 << 20).is_err()
        {
            println!("this file system doesn't say");
            return;
        }
        file.read_exact_at(&mut vec![0; 1 << 20], 0).expect("zeroes");
        assert_eq!(never_written(&file, 4096..8192).expect("an answer"), std::slice::from_ref(&(4096..8192)));
        file.write_all_at(&[1; 8192], 16384).expect("written");
        file.sync_data().expect("on the device");
        assert_eq!(never_written(&file, 16384..24576).expect("an answer"), []);
        // What lies beside it may have been written with zeroes.
        let far = (1 << 19)..1 << 20;
        assert_eq!(never_written(&file, far.clone()).expect("an answer"), std::slice::from_ref(&far));
        assert_eq!(never_written(&file, 0..0).unwrap_or_default(), []);
    }
}
