//! Proves an image: made once more, sector by sector, from every batch of the journal, and held against what
//! [`crate::image::Image`] gives, byte for byte.

mod backing;
mod facts;
mod naive;
mod sectors;

use super::{Finding, Report};
use crate::error::Error;
use crate::image::{Backing, Image, Origin};
use crate::moment::Moment;
use crate::reader::JournalReader;
use crate::storage::{FileStorage, Storage};
use layout::SECTOR_BYTES;
pub use naive::{Naive, Source};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;

/// What is compared at once.
const CHUNK_BYTES: u64 = 64 << 20;
/// Differing runs that a proof lists; more are counted.
const MAXIMUM_DIFFERENCES: usize = 100;

/// What was proved of an image, or where it is not what it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageReport {
    /// What the journal itself turned out to be. If it is damaged, nothing was compared.
    pub journal: Report,
    /// Where the images differ, by byte of the image.
    pub findings: Vec<Finding>,
    /// Differing runs of bytes beyond those.
    pub more_findings: u64,
    /// Order of the last entry of the moment; 0: before the first.
    pub order: u64,
    /// Bytes of the image, every one of them compared.
    pub bytes: u64,
    /// SHA-256 of the image.
    pub sha256: [u8; 32],
    /// Entries of the volume that the image was made from, merged ones among them.
    pub entries: u64,
    /// Sectors that come from an entry, not from the backing.
    pub mapped_sectors: u64,
    /// Sectors of which nobody knows whether the target executed the write that they come from.
    pub doubtful_sectors: u64,
}

impl ImageReport {
    /// The journal is sound, and the images are the same.
    pub fn is_sound(&self) -> bool {
        self.journal.is_sound() && self.findings.is_empty()
    }

    fn finding(&mut self, offset: u64, what: String) {
        if self.findings.len() < MAXIMUM_DIFFERENCES {
            self.findings.push(Finding { offset, what });
        } else {
            self.more_findings += 1;
        }
    }
}

/// Proves the image of `volume` at a moment, in the journal at `path`. `progress` is told bytes done and in all,
/// of the journal, and then of the image.
///
/// The journal may be in use over a base. Over primary neither journal nor primary may change meanwhile.
///
/// An error is what keeps the image from being made: no such moment, a gap, the wrong base.
pub fn image(
    path: &Path,
    volume: &str,
    at: Moment,
    backing: Backing<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<ImageReport, Error> {
    image_on(Arc::new(FileStorage::open_read_only(path)?), volume, at, backing, progress)
}

/// The same of the journal in `storage`.
pub fn image_on(
    storage: Arc<dyn Storage>,
    volume: &str,
    at: Moment,
    backing: Backing<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<ImageReport, Error> {
    let journal = super::verify_on(&*storage, progress)?;
    if !journal.is_sound() {
        return Ok(ImageReport { journal, ..ImageReport::default() });
    }
    let mut naive = Naive::open(&*storage, volume, at, backing, progress)?;
    let reader = JournalReader::open_on(Arc::clone(&storage))?;
    // `end` is where it was: over a base somebody may be writing.
    let fixed = naive.fixed();
    let fixed = if matches!(backing, Backing::Primary(_)) { at } else { fixed };
    let image = Image::open(reader, volume, fixed, backing, false, &mut |_, _| {})?;
    let mut report = compare(&mut naive, &image, progress)?;
    naive.check_still()?;
    report.journal = journal;
    Ok(report)
}

/// Holds an image against one made by hand.
pub fn compare(
    naive: &mut Naive<'_>,
    image: &Image,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<ImageReport, Error> {
    let mut report = ImageReport::default();
    let total = naive.bytes();
    report.order = naive.order();
    if image.facts().order != naive.order() {
        let (theirs, own) = (image.facts().order, naive.order());
        report
            .finding(0, format!("the image is of order:{theirs}, and the moment is just after order:{own}"));
    }
    if image.bytes() != total {
        let what = format!("the image has {} bytes, and the volume has {total} then", image.bytes());
        report.finding(total.min(image.bytes()), what);
        return Ok(report);
    }
    let mut hasher = Sha256::new();
    let length = CHUNK_BYTES.min(total) as usize;
    let (mut own, mut theirs) = (vec![0; length], vec![0; length]);
    let mut at = 0;
    while at < total {
        let length = CHUNK_BYTES.min(total - at) as usize;
        let (own, theirs) = (&mut own[..length], &mut theirs[..length]);
        naive.read_at(own, at)?;
        image.read_at(theirs, at)?;
        hasher.update(&*own);
        if own != theirs {
            differences(naive, image, own, theirs, at, &mut report)?;
        }
        at += length as u64;
        progress(at, total);
    }
    report.bytes = total;
    report.sha256 = hasher.finalize().into();
    report.entries = naive.entries();
    (report.mapped_sectors, report.doubtful_sectors) = naive.sectors_seen();
    Ok(report)
}

/// A finding for each run of sectors that differ, with where both sides have them from.
fn differences(
    naive: &mut Naive<'_>,
    image: &Image,
    own: &[u8],
    theirs: &[u8],
    at: u64,
    report: &mut ImageReport,
) -> Result<(), Error> {
    let mut before: Option<(Source, Option<Origin>)> = None;
    for (index, (a, b)) in own.chunks(SECTOR_BYTES).zip(theirs.chunks(SECTOR_BYTES)).enumerate() {
        let Some(byte) = a.iter().zip(b).position(|(a, b)| a != b) else {
            before = None;
            continue;
        };
        let offset = at + (index * SECTOR_BYTES) as u64;
        let source = naive.source(offset / SECTOR_BYTES as u64)?;
        let run = image.runs(offset, SECTOR_BYTES as u64)?.first().copied();
        let origins = Some((source, run.map(|run| run.origin)));
        if before == origins {
            continue;
        }
        before = origins;
        let theirs = match run.map(|run| run.origin) {
            Some(Origin::Backing) => "the backing",
            Some(Origin::Journal) => "an entry of the journal",
            Some(Origin::Zero) => "an entry that says it is zero",
            None => "nowhere",
        };
        report.finding(
            offset + byte as u64,
            format!("{:#04x} by {source}, and {:#04x} in the image, by {theirs}", a[byte], b[byte]),
        );
    }
    Ok(())
}
