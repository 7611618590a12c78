//! The label of a base: one block in a file of its own beside it, replaced whole.

use crate::block::{self, Block};
use crate::error::Error;
use crate::open::sync_directory;
use crate::tables::Volume;
use crate::writer::now;
use layout::journal_file::{magic, BaseLabel, BLOCK_BYTES, NAME_BYTES};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What is added to the base's name.
const SUFFIX: &str = ".chronoswitch";

/// Where the label of a base lies: beside the file itself, whatever links lead to it.
pub fn path_of(base: &Path) -> Result<PathBuf, Error> {
    let name = base.display().to_string();
    let real = match std::fs::canonicalize(base) {
        Ok(real) => real,
        // It is still to be made.
        Err(e) if e.kind() == io::ErrorKind::NotFound => base.to_owned(),
        Err(e) => return Err(Error::io(&name, "looking for its label", e)),
    };
    let last = real.file_name().ok_or_else(|| Error::Invalid(format!("{name}: not a file's name")))?;
    let mut label = OsString::from(last);
    label.push(SUFFIX);
    Ok(real.with_file_name(label))
}

/// A label for a base of `volume`.
pub fn new(
    journal_id: [u8; 16],
    base_id: [u8; 16],
    volume: &Volume,
    order: (u64, u64),
    rolling: (u64, u64),
) -> Result<BaseLabel, Error> {
    let text = volume.name();
    if text.len() > NAME_BYTES {
        return Err(Error::Invalid(format!("the volume's name '{text}' is longer than {NAME_BYTES} bytes")));
    }
    let mut name = [0; NAME_BYTES];
    name[..text.len()].copy_from_slice(text.as_bytes());
    Ok(BaseLabel {
        prefix: block::prefix(magic::BASE),
        journal_id,
        base_id,
        volume: name,
        sectors: volume.sectors.into(),
        order: order.0.into(),
        timestamp: order.1.into(),
        rolling_order: rolling.0.into(),
        rolling_timestamp: rolling.1.into(),
        created: now().into(),
    })
}

/// The volume's name as the label has it.
pub fn volume_name(label: &BaseLabel) -> String {
    let end = label.volume.iter().position(|byte| *byte == 0).unwrap_or(NAME_BYTES);
    String::from_utf8_lossy(&label.volume[..end]).into_owned()
}

/// Position: it holds every entry up to this one.
pub fn order(label: &BaseLabel) -> (u64, u64) {
    (label.order.get(), label.timestamp.get())
}

/// It may hold entries up to this one.
pub fn rolling(label: &BaseLabel) -> (u64, u64) {
    (label.rolling_order.get(), label.rolling_timestamp.get())
}

/// Opens and reads the label at `path`; `None`: there is none. The file is handed out so that whoever keeps
/// it open can tell a label that has been replaced by its inode.
pub fn read(path: &Path) -> Result<Option<(BaseLabel, File)>, Error> {
    let name = path.display().to_string();
    // Without waiting, whatever it is.
    let mut file = match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(&name, "opening the base's label", e)),
    };
    // One byte more than it may have, so that a longer file shows. Whatever the file is, no more is read.
    let mut bytes = Vec::with_capacity(BLOCK_BYTES + 1);
    (&mut file)
        .take(BLOCK_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io(&name, format!("reading {BLOCK_BYTES} bytes at offset 0"), e))?;
    let damaged = |what: String| Error::corrupt(&name, 0, format!("the label of a base: {what}"));
    if bytes.len() != BLOCK_BYTES {
        let has = if bytes.len() > BLOCK_BYTES { "more".to_owned() } else { bytes.len().to_string() };
        return Err(damaged(format!("it has {BLOCK_BYTES} bytes when whole, this one {has}")));
    }
    let mut block = Block::ZERO;
    block.0.copy_from_slice(&bytes);
    let label: BaseLabel = match block::decode(&block, magic::BASE) {
        Ok(label) => label,
        Err(block::Fault::Version(version)) => {
            let what = format!("the label of a base is of version {version}");
            return Err(Error::Version { file: name, what });
        }
        Err(fault) => return Err(damaged(fault.to_string())),
    };
    if bytes[size_of::<BaseLabel>()..].iter().any(|byte| *byte != 0) {
        return Err(damaged("behind its fields something is not zero".into()));
    }
    if label.order > label.rolling_order {
        let what = format!("order {} behind rolling order {}", label.order, label.rolling_order);
        return Err(damaged(what));
    }
    Ok(Some((label, file)))
}

/// Replaces the label at `path`, durably: whenever it is looked at, there is the old one or the new one.
pub fn write(path: &Path, label: &BaseLabel) -> Result<(), Error> {
    let name = path.display().to_string();
    let mut temporary = OsString::from(path.as_os_str());
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let block = block::encode(label);
    let failed = |action: &'static str| {
        let name = name.clone();
        move |e: io::Error| Error::io(&name, action, e)
    };
    // 1. The block under another name, durable. A crash leaves that file, which the next write takes over.
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&temporary)
        .map_err(failed("writing the base's label (under a temporary name)"))?;
    file.write_all(&block.0).map_err(failed("writing the base's label (under a temporary name)"))?;
    file.sync_all().map_err(failed("making the base's label durable"))?;
    // 2. The name, durable.
    std::fs::rename(&temporary, path).map_err(failed("giving the base's label its name"))?;
    sync_directory(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_read_as_it_was_written_and_damage_shows() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().join("base");
        std::fs::write(&base, b"x").unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&base, &link).unwrap();
        let path = path_of(&base).unwrap();
        assert_eq!(path_of(&link).unwrap(), path, "the label is the file's, not the link's");
        assert!(read(&path).unwrap().is_none());
        let volume = Volume::aoe(3, 1, 2, 77);
        let label = new([1; 16], [2; 16], &volume, (5, 50), (9, 90)).unwrap();
        write(&path, &label).unwrap();
        let (found, _) = read(&path).unwrap().unwrap();
        assert_eq!((order(&found), rolling(&found)), ((5, 50), (9, 90)));
        assert_eq!((found.journal_id, found.base_id), ([1; 16], [2; 16]));
        assert_eq!((volume_name(&found).as_str(), found.sectors.get()), ("1.2", 77));
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            std::fs::write(&path, &bytes).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains("base.chronoswitch: corrupt at offset 0"), "byte {at}: {error}");
        }
        for length in [0, 1, 4095] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(read(&path).unwrap_err().to_string().contains("4096 bytes when whole"));
        }
        std::fs::write(&path, [whole.clone(), whole].concat()).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("more"));
    }
}
