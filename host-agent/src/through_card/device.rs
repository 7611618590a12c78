//! Primary as a source on a port has it.

use crate::error::Error;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// What direct I/O wants memory to be aligned to: the largest that devices ask for.
const ALIGNMENT: usize = 4096;

/// A volume's primary storage, by way of a port of the card. Offsets and lengths are whole sectors.
pub trait Device: Send {
    /// For messages.
    fn name(&self) -> String;
    /// Its size.
    fn bytes(&self) -> u64;
    /// Fills the buffer with what primary has now.
    fn read(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of it; the target has executed it on return.
    fn write(&mut self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Asks for what was written to be durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// A block device of this host's: an AoE initiator's, whose port the card has.
pub struct BlockDevice {
    file: File,
    name: String,
    bytes: u64,
    buffer: Vec<u8>,
}

impl BlockDevice {
    /// Opens it past the page cache, which doesn't hear of what other sources write.
    pub fn open(path: &Path, writes: bool) -> Result<Self, Error> {
        let name = path.display().to_string();
        let file = OpenOptions::new()
            .read(true)
            .write(writes)
            .custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32)
            .open(path)
            .map_err(|e| Error::io(path, "opening it for direct I/O", e))?;
        let kind = file.metadata().map_err(|e| Error::io(path, "looking at it", e))?.file_type();
        if !kind.is_block_device() {
            let what =
                "not a block device: give this host's device of the volume (/dev/etherd/eSHELF.SLOT), whose \
                        frames go through a port of the card";
            return Err(Error::File { file: name, what: what.into() });
        }
        let bytes = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))
            .map_err(|e| Error::io(path, "asking for its size", e.into()))?;
        Ok(Self { file, name, bytes, buffer: Vec::new() })
    }

    /// A part of the buffer that is aligned.
    fn aligned(&mut self, bytes: usize) -> std::ops::Range<usize> {
        if self.buffer.len() < bytes + ALIGNMENT {
            self.buffer = vec![0; bytes + ALIGNMENT];
        }
        let start = self.buffer.as_ptr().align_offset(ALIGNMENT);
        start..start + bytes
    }
}

impl Device for BlockDevice {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let range = self.aligned(buffer.len());
        self.file.read_exact_at(&mut self.buffer[range.clone()], offset)?;
        buffer.copy_from_slice(&self.buffer[range]);
        Ok(())
    }

    fn write(&mut self, data: &[u8], offset: u64) -> io::Result<()> {
        let range = self.aligned(data.len());
        self.buffer[range.clone()].copy_from_slice(data);
        self.file.write_all_at(&self.buffer[range], offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}
