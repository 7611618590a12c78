//! A volume's image at a moment: base, then every after-image up to the moment, in order.

use crate::error::Error;
use crate::moment::Moment;
use crate::reader::JournalReader;
use std::path::Path;

/// What is to be restored.
#[derive(Clone, Debug)]
pub struct RestoreOptions<'a> {
    /// Name of the volume.
    pub volume: &'a str,
    /// The image from before the first write; opened for reading only.
    pub base: &'a Path,
    /// The moment.
    pub at: Moment,
    /// The image to make.
    pub out: &'a Path,
    /// Replace `out` if it exists.
    pub force: bool,
    /// Restore across gaps in the journal, though the image may be wrong.
    pub allow_gaps: bool,
}

/// What a restore is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Reading the journal's descriptors; counted in entries.
    Reading,
    /// Copying the base; counted in bytes.
    Copying,
    /// Applying after-images; counted in entries.
    Applying,
}

/// How far a restore is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What it is doing.
    pub stage: Stage,
    /// How much of it is done.
    pub done: u64,
    /// How much there is to do.
    pub total: u64,
}

/// What a restore did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Order number of the last entry of the journal that lies at or before the moment; 0: none.
    pub order: u64,
    /// Its stamp, ns.
    pub timestamp: u64,
    /// Entries of the volume that were applied.
    pub applied: u64,
    /// Entries of the volume that were not, because they were refused or cancelled.
    pub skipped: u64,
    /// Entries of the volume that were applied though nobody knows whether the target executed
    /// them, and that no later known write covers in full.
    pub doubtful: u64,
    /// Bytes of after-images applied.
    pub bytes: u64,
    /// Ports with gaps that the image crosses (only with `allow_gaps`).
    pub gaps: Vec<u8>,
}

/// Makes the image. On any error nothing stands under `out`'s name that wasn't there before.
pub fn restore(
    _reader: &JournalReader,
    _options: &RestoreOptions<'_>,
    _progress: &mut dyn FnMut(Progress),
) -> Result<Restored, Error> {
    todo!()
}
