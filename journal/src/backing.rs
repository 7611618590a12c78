//! Opening and reading what isn't the journal's own: primary, bases.

use crate::error::Error;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Opens a regular file or block device for reading. Anything else is refused, and nothing is waited for: the
/// opening of a FIFO would wait for its writer for ever.
pub(crate) fn open(path: &Path, what: &str) -> Result<File, Error> {
    let name = path.display().to_string();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|e| Error::io(&name, format!("opening the {what}"), e))?;
    let metadata = file.metadata().map_err(|e| Error::io(&name, "looking at it", e))?;
    let kind = metadata.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let is = if kind.is_dir() { "it is a directory" } else { "it is a pipe, socket or character device" };
        return Err(Error::Base {
            file: name,
            what: format!("{is}: the {what} has to be a regular file or a block device"),
        });
    }
    Ok(file)
}

/// The size of a file or device. Seeking finds a block device's end too.
pub(crate) fn size(file: &File) -> io::Result<u64> {
    rustix::fs::seek(file, rustix::fs::SeekFrom::End(0)).map_err(io::Error::from)
}

/// Fills the buffer. A file that ends before it was cut while it was open: its size had been checked.
pub(crate) fn read(file: &File, name: &str, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
    file.read_exact_at(buffer, offset).map_err(|e| {
        let action = format!("reading {} bytes at offset {offset}", buffer.len());
        match e.kind() {
            io::ErrorKind::UnexpectedEof => cut_short(file, name, &action),
            _ => Error::io(name, action, e),
        }
    })
}

/// Still of that size? Where nothing is read, as in holes, a file that was cut wouldn't show.
pub(crate) fn check_size(file: &File, name: &str, bytes: u64) -> Result<(), Error> {
    let now = size(file).map_err(|e| Error::io(name, "asking for its size", e))?;
    match now < bytes {
        true => Err(cut_short(file, name, &format!("reading it up to offset {bytes}"))),
        false => Ok(()),
    }
}

/// What was being done when a file turned out to be shorter than it had been.
pub(crate) fn cut_short(file: &File, name: &str, action: &str) -> Error {
    let ends = size(file).map_or_else(|_| "earlier".to_owned(), |bytes| format!("at {bytes}"));
    Error::Base {
        file: name.to_owned(),
        what: format!(
            "{action}: the file ends {ends}: it was cut short while it was open. Put it back as it was, and open it anew"
        ),
    }
}
