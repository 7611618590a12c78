//! Bases: images that after-images are applied to, and how far each of them has gone.
//!
//! A base knows its volume and its position by a label beside it (`docs/formats.md`), and the volume's row in
//! the tables knows the base. Neither alone is believed: an older copy of the base, one that was rolled on
//! under an older copy of the journal, and another volume's base all have the right size.
//!
//! | module | job |
//! |---|---|
//! | `label` | the block beside the base |
//! | `check` | does this base belong to this journal, and which moments can be made from it |
//! | `create` | makes one from primary, in use or not; takes one over that is there |
//! | `rolling` | what expires goes into the base first |

mod check;
mod create;
mod label;
mod rolling;

pub use check::{look, Position};
pub use create::{BaseCopy, BaseOptions, Based, Copied};
pub use rolling::Rolling;

pub(crate) use check::{position, Watch};

use crate::error::Error;
use crate::moment::rfc3339;
use layout::journal_file::BaseLabel;
use std::fs::Metadata;
use std::path::Path;

/// The label beside a base, if there is one.
pub(crate) fn label_of(base: &Path) -> Result<Option<BaseLabel>, Error> {
    Ok(label::read(&label::path_of(base)?)?.map(|(found, _)| found))
}

/// An order with its stamp, as messages name it.
fn at((order, timestamp): (u64, u64)) -> String {
    match order {
        0 => "before the first write".to_owned(),
        _ => format!("order:{order} ({})", rfc3339(timestamp)),
    }
}

/// A base is a regular file: beside a device's node no label can be kept that goes with its contents.
fn refuse_special(base: &Path, metadata: &Metadata) -> Result<(), Error> {
    use std::os::unix::fs::FileTypeExt;
    if metadata.is_file() {
        return Ok(());
    }
    let what = match metadata.file_type().is_block_device() {
        true => {
            "it is a block device, and beside a device's node no label can lie that goes with what is on it; \
             a base has to be a regular file for now"
        }
        false => "it is no regular file, and a base has to be one",
    };
    Err(Error::Base { file: base.display().to_string(), what: what.to_owned() })
}
