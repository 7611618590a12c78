//! Shows a file over NBD until killed; what the server's speed is measured with.
//!
//! `cargo run --release -p nbd --example serve_file -- FILE SOCKET [ro] [wait]`
//!
//! `wait`: as an export that says that it waits, so that every request goes to a worker.

use layout::nbd::allocation;
use nbd::{Export, Extent, Listener, Shutdown};
use rustix::fs::{fallocate, seek, FallocateFlags, SeekFrom};
use std::error::Error;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

struct FileExport {
    file: File,
    bytes: u64,
    read_only: bool,
    may_wait: bool,
    /// Seeking moves the position that all share.
    seeking: Mutex<()>,
}

impl Export for FileExport {
    fn name(&self) -> &str {
        "file"
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn may_wait(&self) -> bool {
        self.may_wait
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn zero(&self, offset: u64, bytes: u64, punch: bool, _fast: bool) -> io::Result<()> {
        let flags = if punch {
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE
        } else {
            FallocateFlags::ZERO_RANGE
        };
        Ok(fallocate(&self.file, flags, offset, bytes)?)
    }

    fn trim(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.zero(offset, bytes, true, true)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn extents(&self, offset: u64, bytes: u64) -> io::Result<Vec<Extent>> {
        let _turn = self.seeking.lock().map_err(|_| io::Error::other("a thread has panicked"))?;
        let end = offset + bytes;
        let mut extents = Vec::new();
        let mut at = offset;
        while at < end {
            let data = match seek(&self.file, SeekFrom::Data(at)) {
                Ok(data) => data.min(end),
                // No data up to the end of the file.
                Err(rustix::io::Errno::NXIO) => end,
                Err(error) => return Err(error.into()),
            };
            if data > at {
                extents.push(Extent { bytes: data - at, flags: allocation::HOLE | allocation::ZERO });
                at = data;
            }
            if at < end {
                let hole = seek(&self.file, SeekFrom::Hole(at))?.min(end);
                extents.push(Extent { bytes: hole - at, flags: 0 });
                at = hole;
            }
        }
        Ok(extents)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), Some(socket)) = (arguments.next(), arguments.next()) else {
        return Err("usage: serve_file FILE SOCKET [ro] [wait]".into());
    };
    let words: Vec<String> = arguments.collect();
    let has = |name: &str| words.iter().any(|word| word == name);
    let (read_only, may_wait) = (has("ro"), has("wait"));
    let file = File::options().read(true).write(!read_only).open(path)?;
    let bytes = file.metadata()?.len();
    let export = FileExport { file, bytes, read_only, may_wait, seeking: Mutex::new(()) };
    let exports: Vec<Arc<dyn Export>> = vec![Arc::new(export)];
    let listener = Listener::unix(Path::new(&socket))?;
    nbd::serve(&[listener], &exports, &Shutdown::new()?)?;
    Ok(())
}
