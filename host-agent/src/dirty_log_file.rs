//! Where the log of dirty regions lies, and its file.

use crate::error::Error;
use journal::{FileStorage, Storage};
use ports::dirty_log;
use std::fs::OpenOptions;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Beside the journal, under its name with `ending` added, unless another place is `given`.
pub fn place(journal: &Path, given: Option<&Path>, ending: &str) -> Result<PathBuf, Error> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    if std::fs::metadata(journal).is_ok_and(|metadata| metadata.file_type().is_block_device()) {
        let what = "--dirty-log: the journal is a device, so say where the log of dirty regions may lie";
        return Err(Error::Misuse(what.into()));
    }
    // By whatever name the journal goes, the log is found under its own.
    let mut name = journal.canonicalize().unwrap_or_else(|_| journal.to_owned()).into_os_string();
    name.push(ending);
    Ok(name.into())
}

/// Opens it, and makes it if there is none. `anew`: what is there is another journal's.
pub fn open(path: &Path, anew: bool) -> Result<Arc<dyn Storage>, Error> {
    let failed = |action| move |e| Error::io(path, action, e);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(anew).open(path);
    let file = file.map_err(failed("opening the log of dirty regions"))?;
    let length = file.metadata().map_err(failed("looking at it"))?.len();
    // All of it at once, also of a copy with holes: a first write to a region must not fail for want of room.
    let flags = rustix::fs::FallocateFlags::empty();
    match rustix::fs::fallocate(&file, flags, 0, dirty_log::FILE_BYTES) {
        Err(rustix::io::Errno::OPNOTSUPP) if length >= dirty_log::FILE_BYTES => {}
        Err(rustix::io::Errno::OPNOTSUPP) => {
            file.set_len(dirty_log::FILE_BYTES).map_err(failed("allocating it"))?
        }
        other => other.map_err(|e| failed("allocating it")(e.into()))?,
    }
    if length < dirty_log::FILE_BYTES {
        file.sync_all().map_err(failed("making it durable"))?;
        let folder = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
        let synced = std::fs::File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(failed("making its name durable"))?;
    }
    Ok(Arc::new(FileStorage::open_owned(path)?))
}
