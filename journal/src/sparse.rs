//! An image that is written sparsely.

use crate::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Zeroes are looked for in pieces of this size, what file systems allocate by.
const PIECE: usize = 4096;

/// A file of a fixed size that begins as one hole.
pub(crate) struct SparseImage<'a> {
    file: &'a File,
    name: &'a str,
    bytes: u64,
    /// The file system can't make holes: zeroes are written.
    no_holes: bool,
}

impl<'a> SparseImage<'a> {
    /// `file` is new and empty; `name` is for messages.
    pub fn new(file: &'a File, name: &'a str, bytes: u64) -> Result<Self, Error> {
        file.set_len(bytes).map_err(|e| Error::io(name, format!("giving it {bytes} bytes"), e))?;
        Ok(Self { file, name, bytes, no_holes: false })
    }

    /// A device that holds anything; it has to be large enough.
    pub fn over_device(file: &'a File, name: &'a str, bytes: u64) -> Result<Self, Error> {
        let has = rustix::fs::seek(file, rustix::fs::SeekFrom::End(0))
            .map_err(|e| Error::io(name, "asking for its size", e.into()))?;
        if has < bytes {
            return Err(Error::Invalid(format!("{name}: has {has} bytes, and the image {bytes}")));
        }
        Ok(Self { file, name, bytes, no_holes: false })
    }

    /// A file of that size that holds anything.
    pub fn over_file(file: &'a File, name: &'a str, bytes: u64) -> Self {
        Self { file, name, bytes, no_holes: false }
    }

    /// Writes where nothing was written before: zeroes are left out.
    pub fn fill(&mut self, bytes: &[u8], at: u64) -> Result<(), Error> {
        for (zero, range) in runs(bytes, at) {
            if !zero {
                self.put(&bytes[range.clone()], at + range.start as u64)?;
            }
        }
        Ok(())
    }

    /// Writes over what may be there: zeroes become holes.
    pub fn write(&mut self, bytes: &[u8], at: u64) -> Result<(), Error> {
        for (zero, range) in runs(bytes, at) {
            let start = at + range.start as u64;
            if zero {
                self.zero(start, range.len() as u64)?;
            } else {
                self.put(&bytes[range], start)?;
            }
        }
        Ok(())
    }

    /// Makes a range read as zeroes.
    pub fn zero(&mut self, at: u64, bytes: u64) -> Result<(), Error> {
        use rustix::fs::{fallocate, FallocateFlags};
        assert!(at + bytes <= self.bytes, "the caller bounds every write by the volume");
        if !self.no_holes && bytes > 0 {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match fallocate(self.file, flags, at, bytes) {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => self.no_holes = true,
                Err(e) => {
                    return Err(Error::io(
                        self.name,
                        format!("making a hole of {bytes} bytes at {at}"),
                        e.into(),
                    ))
                }
            }
        }
        let zeroes = vec![0; (1 << 20).min(bytes as usize)];
        let mut done = 0;
        while done < bytes {
            let length = zeroes.len().min((bytes - done) as usize);
            self.put(&zeroes[..length], at + done)?;
            done += length as u64;
        }
        Ok(())
    }

    fn put(&self, bytes: &[u8], at: u64) -> Result<(), Error> {
        assert!(at + bytes.len() as u64 <= self.bytes, "the caller bounds every write by the volume");
        self.file
            .write_all_at(bytes, at)
            .map_err(|e| Error::io(self.name, format!("writing {} bytes at offset {at}", bytes.len()), e))
    }
}

/// Divides bytes into runs that are all zero and runs that aren't, at multiples of [`PIECE`] of the file.
fn runs(bytes: &[u8], at: u64) -> Vec<(bool, std::ops::Range<usize>)> {
    let mut runs: Vec<(bool, std::ops::Range<usize>)> = Vec::new();
    let mut start = 0;
    while start < bytes.len() {
        let in_piece = ((at + start as u64) % PIECE as u64) as usize;
        let end = (start + PIECE - in_piece).min(bytes.len());
        // Less than a piece can't become a hole.
        let zero = end - start == PIECE && bytes[start..end].iter().all(|b| *b == 0);
        match runs.last_mut() {
            Some((kind, range)) if *kind == zero => range.end = end,
            _ => runs.push((zero, start..end)),
        }
        start = end;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_zeroes_take_no_space() {
        use std::os::unix::fs::MetadataExt;
        let file = tempfile::tempfile().unwrap();
        let mut image = SparseImage::new(&file, "image", 1 << 20).unwrap();
        let mut model = vec![0u8; 1 << 20];
        image.fill(&vec![0; 1 << 20], 0).unwrap();
        assert_eq!(file.metadata().unwrap().blocks(), 0);
        let mut write = |bytes: &[u8], at: usize| {
            image.write(bytes, at as u64).unwrap();
            model[at..at + bytes.len()].copy_from_slice(bytes);
        };
        write(&[7; 20_000], 1000);
        write(&[0; 9000], 3000);
        write(&[0; 100], 4100);
        write(&[1; 512], 8192 - 512);
        let mut read = vec![0; 1 << 20];
        file.read_exact_at(&mut read, 0).unwrap();
        assert!(read == model);
        image.zero(0, 1 << 20).unwrap();
        assert_eq!(file.metadata().unwrap().blocks(), 0);
    }
}
