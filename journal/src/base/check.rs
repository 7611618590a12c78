//! Does a base belong to a journal, and which moments can be made from it?

use super::{at, label};
use crate::error::Error;
use crate::head::Head;
use crate::image::open_base;
use crate::moment::{rfc3339, Moment};
use crate::reader::JournalReader;
use crate::sizes::Sizes;
use crate::tables::Volume;
use layout::journal_file::BaseLabel;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// How far a base has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Position {
    /// It holds every entry up to this order, stamped so: what counts over it is behind that.
    pub order: (u64, u64),
    /// It may hold entries up to this order, stamped so: moments from there on can be made from it.
    pub rolling: (u64, u64),
}

impl Position {
    /// Refuses moments that can't be made from the base any more.
    pub(crate) fn check(&self, volume: &Volume, moment: Moment) -> Result<(), Error> {
        if reaches(moment, self.rolling) {
            return Ok(());
        }
        Err(Error::NoMoment(format!(
            "{moment}; the base of volume {} may hold writes up to {}, and moments from then on can be made from it",
            volume.name(),
            at(self.rolling)
        )))
    }
}

/// Is that entry at or before the moment?
fn reaches(moment: Moment, (order, timestamp): (u64, u64)) -> bool {
    match moment {
        Moment::End => true,
        Moment::Order(last) => order <= last,
        Moment::Timestamp(last) => order == 0 || timestamp <= last,
    }
}

/// Checks a base and says where it stands; `None`: the journal knows of no base of this volume, and takes any
/// image from before the first write.
pub fn look(reader: &JournalReader, volume: &str, base: &Path) -> Result<Option<Position>, Error> {
    let volume = reader.tables().volume(volume)?;
    let entered = reader.sizes()?.get(&volume.index).map_or(volume.sectors, Sizes::first);
    open_base(base, volume, entered)?;
    let (position, watch) = match position(reader, volume, base) {
        Err(Error::BaseMoved { .. }) => {
            let reader = JournalReader::open_on(reader.shared_storage())?;
            self::position(&reader, reader.tables().volume(&volume.name())?, base)?
        }
        found => found?,
    };
    Ok(watch.map(|_| position))
}

/// Checks a base of the right size. The watch is for one that has a label.
pub(crate) fn position(
    reader: &JournalReader,
    volume: &Volume,
    base: &Path,
) -> Result<(Position, Option<Watch>), Error> {
    let checked = check(reader.summary().journal_id, volume, base);
    if matches!(checked, Err(Error::Base { .. })) {
        // The owner may have changed row and label after this reader had read the row.
        let now = Head::load(reader.storage())?.tables;
        let changed = now.volume_at(volume.index).filter(|row| *row != volume);
        if changed.is_some_and(|row| check(reader.summary().journal_id, row, base).is_ok()) {
            return Err(Error::BaseMoved { file: base.display().to_string() });
        }
    }
    checked
}

pub(super) fn check(
    journal_id: [u8; 16],
    volume: &Volume,
    base: &Path,
) -> Result<(Position, Option<Watch>), Error> {
    let path = label::path_of(base)?;
    let found = label::read(&path);
    if volume.base_id == [0; 16] {
        // Without a label it is what it always was: an image from before the first write, by the word of
        // whoever gives it. With one it says itself that it isn't, or isn't this journal's.
        return match found? {
            None => Ok((Position { order: volume.base, rolling: volume.rolling.max(volume.base) }, None)),
            Some((found, _)) => Err(wrong(base, unknown(&found, journal_id, volume))),
        };
    }
    let Some((found, file)) = found? else {
        let what = format!(
            "wrong base: no label {} lies beside it, and the base of volume {} that this journal knows has one; \
             give that base, with its label, or make a new one (base create --replace)",
            path.display(),
            volume.name()
        );
        return Err(wrong(base, what));
    };
    if let Some(what) = misfit(&found, journal_id, volume) {
        return Err(wrong(base, what));
    }
    let rolling = label::rolling(&found).max(volume.rolling);
    let position = Position { order: label::order(&found), rolling };
    Ok((position, Some(Watch::new(base, path, &found, file))))
}

/// What a label says where the journal knows of no base.
fn unknown(found: &BaseLabel, journal_id: [u8; 16], volume: &Volume) -> String {
    if let Some(what) = stranger(found, journal_id, volume) {
        return what;
    }
    format!(
        "its label says that it holds writes up to {}, and the journal doesn't know of it: making it a base was \
         interrupted. base adopt finishes that",
        at(label::rolling(found))
    )
}

/// Is it the base of something else?
pub(super) fn stranger(found: &BaseLabel, journal_id: [u8; 16], volume: &Volume) -> Option<String> {
    if found.journal_id != journal_id {
        return Some(format!(
            "wrong base: by its label it belongs to journal {}, and this is {}",
            hex(&found.journal_id),
            hex(&journal_id)
        ));
    }
    let name = label::volume_name(found);
    if name != volume.name() {
        return Some(format!("wrong base: by its label it is of volume {name}, not {}", volume.name()));
    }
    None
}

/// What a label and the volume's row have against each other.
fn misfit(found: &BaseLabel, journal_id: [u8; 16], volume: &Volume) -> Option<String> {
    if let Some(what) = stranger(found, journal_id, volume) {
        return Some(what);
    }
    if found.base_id != volume.base_id {
        return Some(format!(
            "wrong base: another base of volume {}, made {}; the journal's is {}, this one {}",
            volume.name(),
            rfc3339(found.created.get()),
            hex(&volume.base_id),
            hex(&found.base_id)
        ));
    }
    let (order, rolling) = (label::order(found), label::rolling(found));
    if order.0 < volume.base.0 {
        return Some(format!(
            "left behind: it holds the writes up to {}, and the journal has rolled those up to {} into the base: \
             an older copy of it. Give the base itself, or make a new one (base create --replace)",
            at(order),
            at(volume.base)
        ));
    }
    if order.0 > volume.rolling.0 || rolling.0 > volume.rolling.0 {
        return Some(format!(
            "advanced: it may hold writes up to {}, and this journal knows it to hold those up to {} at most: \
             the journal is an older copy. Give the journal that the base went on with, or make a new base (base create --replace)",
            at(rolling),
            at(volume.rolling)
        ));
    }
    None
}

fn wrong(base: &Path, what: String) -> Error {
    Error::Base { file: base.display().to_string(), what }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Sees a base go on under an open image.
///
/// Rolling writes the label before it writes the base. So what was read from the base was right if the label
/// still allows the moment *after* the read.
pub(crate) struct Watch {
    base: String,
    path: PathBuf,
    base_id: [u8; 16],
    /// Sectors that the label said it has. A base never shrinks.
    sectors: u64,
    /// The label as it was read last. Kept open, so that its inode stays its own.
    label: Mutex<File>,
}

impl Watch {
    fn new(base: &Path, path: PathBuf, found: &BaseLabel, label: File) -> Self {
        let (base_id, sectors) = (found.base_id, found.sectors.get());
        Self { base: base.display().to_string(), path, base_id, sectors, label: Mutex::new(label) }
    }

    /// Sectors of the base.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Refuses what was read from the base if that has gone past the moment.
    pub fn check(&self, volume: &Volume, moment: Moment) -> Result<(), Error> {
        let failed = |e| Error::io(&self.path.display().to_string(), "looking at the base's label", e);
        let mut known = self.label.lock().unwrap_or_else(PoisonError::into_inner);
        let there = std::fs::metadata(&self.path).map_err(failed)?;
        let was = known.metadata().map_err(failed)?;
        if (there.dev(), there.ino()) == (was.dev(), was.ino()) {
            return Ok(());
        }
        let replaced = || wrong(Path::new(&self.base), "the base was replaced under the open image".into());
        let (found, file) = label::read(&self.path)?.ok_or_else(replaced)?;
        if found.base_id != self.base_id {
            return Err(replaced());
        }
        let rolling = label::rolling(&found);
        if !reaches(moment, rolling) {
            let what = format!(
                "what expired was rolled into it, and it may hold writes up to {} now: the open image of volume {} \
                 at {moment} is gone. Open a later moment",
                at(rolling),
                volume.name()
            );
            return Err(wrong(Path::new(&self.base), what));
        }
        *known = file;
        Ok(())
    }
}
