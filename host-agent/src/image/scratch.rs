//! What clients write over an image: blocks in a file without a name, gone with the server.

use crate::error::Error;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{PoisonError, RwLock};

/// What is copied from the image when a part of it is written: a page, what file systems write by.
const BLOCK: u64 = 4096;

/// See the module.
pub struct Scratch {
    file: File,
    bytes: u64,
    /// A bit for each block that is in the file. Whoever changes the file holds it for writing.
    written: RwLock<Vec<u64>>,
}

impl Scratch {
    /// In `folder`, for an image of `bytes`.
    pub fn new(folder: &Path, bytes: u64) -> Result<Self, Error> {
        use rustix::fs::{openat, Mode, OFlags, CWD};
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = openat(CWD, folder, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|e| Error::io(folder, "making the scratch file", e.into()))?;
        let file = File::from(file);
        file.set_len(bytes).map_err(|e| Error::io(folder, "sizing the scratch file", e))?;
        let words = bytes.div_ceil(BLOCK).div_ceil(64) as usize;
        Ok(Self { file, bytes, written: RwLock::new(vec![0; words]) })
    }

    /// Reads: what has been written from the file, the rest by `image`.
    pub fn read(
        &self,
        buffer: &mut [u8],
        offset: u64,
        image: impl Fn(&mut [u8], u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let written = self.written.read().unwrap_or_else(PoisonError::into_inner);
        for (over, range) in runs(&written, offset, buffer.len() as u64) {
            let part = &mut buffer[(range.start - offset) as usize..(range.end - offset) as usize];
            match over {
                true => self.file.read_exact_at(part, range.start)?,
                false => image(part, range.start)?,
            }
        }
        Ok(())
    }

    /// Writes into the file. A block of which only a part is written is filled from `image` first.
    pub fn write(
        &self,
        data: &[u8],
        offset: u64,
        image: impl Fn(&mut [u8], u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let end = offset + data.len() as u64;
        let mut written = self.written.write().unwrap_or_else(PoisonError::into_inner);
        for at in [offset, end - 1] {
            let block = at / BLOCK;
            let whole = block * BLOCK..((block + 1) * BLOCK).min(self.bytes);
            let covered = offset <= whole.start && whole.end <= end;
            if !covered && !is_set(&written, block) {
                let mut bytes = vec![0; (whole.end - whole.start) as usize];
                image(&mut bytes, whole.start)?;
                self.file.write_all_at(&bytes, whole.start)?;
                set(&mut written, block);
            }
        }
        self.file.write_all_at(data, offset)?;
        // Only now: had the file been full, the image would still be seen here.
        (offset / BLOCK..end.div_ceil(BLOCK)).for_each(|block| set(&mut written, block));
        Ok(())
    }

    /// Divides a range by whether it has been written.
    pub fn runs(&self, offset: u64, bytes: u64) -> Vec<(bool, Range<u64>)> {
        runs(&self.written.read().unwrap_or_else(PoisonError::into_inner), offset, bytes)
    }
}

fn is_set(written: &[u64], block: u64) -> bool {
    written[block as usize / 64] >> (block % 64) & 1 != 0
}

fn set(written: &mut [u64], block: u64) {
    written[block as usize / 64] |= 1 << (block % 64);
}

fn runs(written: &[u64], offset: u64, bytes: u64) -> Vec<(bool, Range<u64>)> {
    let end = offset + bytes;
    let mut runs: Vec<(bool, Range<u64>)> = Vec::new();
    let mut at = offset;
    while at < end {
        let next = ((at / BLOCK + 1) * BLOCK).min(end);
        let over = is_set(written, at / BLOCK);
        match runs.last_mut() {
            Some((last, range)) if *last == over => range.end = next,
            _ => runs.push((over, at..next)),
        }
        at = next;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_the_rest_is_the_image() {
        let folder = tempfile::tempdir().unwrap();
        let image: Vec<u8> = (0..100_000u32).map(|i| (i * 7 % 251) as u8).collect();
        let read_image = |buffer: &mut [u8], offset: u64| {
            buffer.copy_from_slice(&image[offset as usize..][..buffer.len()]);
            Ok(())
        };
        let scratch = Scratch::new(folder.path(), image.len() as u64).unwrap();
        let mut model = image.clone();
        let mut state = 1u64;
        for step in 0..2000u64 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let offset = (state >> 33) % image.len() as u64;
            let length = ((state >> 20) % 12_000).clamp(1, image.len() as u64 - offset);
            let range = offset as usize..(offset + length) as usize;
            if step % 3 == 0 {
                let data = vec![step as u8; length as usize];
                scratch.write(&data, offset, read_image).unwrap();
                model[range].copy_from_slice(&data);
            } else {
                let mut read = vec![0; length as usize];
                scratch.read(&mut read, offset, read_image).unwrap();
                assert!(read == model[range], "step {step}");
            }
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the file has no name");
    }
}
