//! What an image is made over: primary, or a base and its label.

use super::super::source::{see, Seen};
use super::facts::VolumeFacts;
use crate::error::Error;
use crate::image::Backing;
use layout::journal_file::{magic, BaseLabel, BLOCK_BYTES};
use layout::SECTOR_BYTES;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use zerocopy::FromBytes;

/// What a base is named with `.chronoswitch` added is its label.
const LABEL_SUFFIX: &str = ".chronoswitch";

/// A backing that is open.
pub(super) struct Opened {
    file: File,
    name: String,
    /// What it has of the volume.
    bytes: u64,
    /// A base holds every entry up to the first, and may hold some up to the second.
    pub position: (u64, u64),
}

impl Opened {
    /// `primary_sectors`: what primary has to have now; `entered`: what a base from before the first write has.
    pub fn open(
        backing: Backing<'_>,
        volume: &VolumeFacts,
        journal_id: [u8; 16],
        primary_sectors: u64,
        entered: u64,
    ) -> Result<Self, Error> {
        let name = backing.path().display().to_string();
        let mut file = File::open(backing.path()).map_err(|e| Error::io(&name, "opening", e))?;
        // A block device tells its size by its end alone.
        let bytes = file.seek(SeekFrom::End(0)).map_err(|e| Error::io(&name, "asking for its size", e))?;
        let (sectors, position) = match backing {
            Backing::Primary(_) => (primary_sectors, (0, 0)),
            Backing::Base(path) => match label(path)? {
                Some(label) => (label.sectors.get(), check_label(&name, &label, volume, journal_id)?),
                None => (entered, without_label(&name, volume)?),
            },
        };
        let wanted = sectors.saturating_mul(SECTOR_BYTES as u64);
        // A rolling that was interrupted may have given the base more than its label says so far.
        let growing = position.0 < volume.row.rolling_order.get() && volume.row.base_id != [0; 16];
        if bytes != wanted && !(growing && bytes > wanted) {
            let what =
                format!("it has {bytes} bytes, and should have {sectors} sectors of volume {}", volume.name);
            return Err(Error::Base { file: name, what });
        }
        Ok(Self { file, name, bytes: wanted, position })
    }

    /// Reads. What lies behind its end are sectors that the volume gained since: zeroes.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        let there = self.bytes.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (part, rest) = buffer.split_at_mut(there);
        rest.fill(0);
        let action = || format!("reading {there} bytes at offset {offset}");
        self.file.read_exact_at(part, offset).map_err(|e| Error::io(&self.name, action(), e))
    }
}

/// The label beside a base, if there is one.
fn label(base: &Path) -> Result<Option<BaseLabel>, Error> {
    let mut path = base.as_os_str().to_owned();
    path.push(LABEL_SUFFIX);
    let path = PathBuf::from(path);
    let name = path.display().to_string();
    let mut block = Vec::new();
    match File::open(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(&name, "opening the label of the base", e)),
        Ok(file) => file
            .take(BLOCK_BYTES as u64 + 1)
            .read_to_end(&mut block)
            .map_err(|e| Error::io(&name, "reading the label of the base", e))?,
    };
    let wrong = |what: String| Error::Corrupt { file: name.clone(), offset: 0, what };
    if block.len() != BLOCK_BYTES {
        return Err(wrong(format!("the label of a base has {BLOCK_BYTES} bytes")));
    }
    match see(&block, magic::BASE) {
        Seen::Intact => {}
        seen => return Err(wrong(format!("label: {}", seen.fault().unwrap_or_default()))),
    }
    match BaseLabel::read_from_prefix(&block) {
        Ok((label, rest)) if rest.iter().all(|byte| *byte == 0) => Ok(Some(label)),
        _ => Err(wrong("label: the rest of its block is not zero".into())),
    }
}

/// Is it the label of this volume's base, as far as this journal knows? Its position.
fn check_label(
    name: &str,
    label: &BaseLabel,
    volume: &VolumeFacts,
    journal_id: [u8; 16],
) -> Result<(u64, u64), Error> {
    let row = &volume.row;
    let (order, rolling) = (label.order.get(), label.rolling_order.get());
    let end = label.volume.iter().position(|byte| *byte == 0).unwrap_or(label.volume.len());
    let rules = [
        (label.journal_id == journal_id, "a base of another journal".to_owned()),
        (label.volume[..end] == *volume.name.as_bytes(), format!("not a base of volume {}", volume.name)),
        (label.base_id == row.base_id, "another base than the one that the journal knows".to_owned()),
        (
            order >= row.base_order.get(),
            format!(
                "one left behind: it holds entries up to order:{order}, and those up to order:{} may be gone",
                row.base_order
            ),
        ),
        (
            order <= rolling && order <= row.rolling_order.get() && rolling <= row.rolling_order.get(),
            format!(
                "one that went further than this journal knows, which is up to order:{}",
                row.rolling_order
            ),
        ),
    ];
    match rules.into_iter().find(|(holds, _)| !holds) {
        Some((_, what)) => Err(Error::Base { file: name.to_owned(), what }),
        None => Ok((order, rolling)),
    }
}

/// The position of a base that says nothing of itself.
fn without_label(name: &str, volume: &VolumeFacts) -> Result<(u64, u64), Error> {
    if volume.row.base_id != [0; 16] {
        let what = format!(
            "it has no label ({LABEL_SUFFIX}), and the journal knows the base of volume {}",
            volume.name
        );
        return Err(Error::Base { file: name.to_owned(), what });
    }
    Ok((volume.row.base_order.get(), volume.row.rolling_order.get()))
}
