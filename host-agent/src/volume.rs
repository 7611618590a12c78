//! `host-agent volume`: the volumes of a journal, and another size for one.

use crate::arguments::{OwnerArguments, Size};
use crate::daemon::{self, absolute_name, Reached, ResizeResult};
use crate::error::Error;
use crate::output::{bytes, count, Output};
use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use journal::resize::{fit_primary, Resized};
use journal::JournalReader;
use layout::journal_file::technique;
use layout::SECTOR_BYTES;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// `volume`.
#[derive(Debug, Subcommand)]
pub enum Volume {
    /// List the volumes with the size that they have now
    List(List),
    /// Journal that a volume has another size from now on
    ///
    /// Nothing may write to the volume meanwhile. Before it shrinks, what it loses is journaled, so that every
    /// earlier moment can still be had. With --primary a regular file is cut or extended afterwards; anything else is
    /// given its size by hand, after this command.
    #[command(after_long_help = EXAMPLES)]
    Resize(Resize),
}

const EXAMPLES: &str = "\
Examples:
  host-agent volume resize j --volume 1.0 --size 20G --primary disk.img
  A logical volume that shrinks:
    host-agent volume resize j --volume 1.0 --size 10G --primary /dev/vg/disk && lvreduce -L 10G /dev/vg/disk";

/// `volume list`.
#[derive(Debug, Args)]
pub struct List {
    /// The journal
    #[arg(value_name = "JOURNAL")]
    pub journal: PathBuf,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// `volume resize`.
#[derive(Debug, Args)]
pub struct Resize {
    /// The journal
    #[arg(value_name = "JOURNAL")]
    pub journal: PathBuf,
    /// The volume, shelf.slot
    #[arg(long, value_name = "VOLUME")]
    pub volume: String,
    /// Its new size in sectors of 512 bytes
    #[arg(long, value_name = "N", required_unless_present = "size", conflicts_with = "size")]
    pub sectors: Option<u64>,
    /// Its new size: 512M, 20G
    #[arg(long, value_name = "SIZE")]
    pub size: Option<Size>,
    /// The volume's primary storage; a volume with before-images can't shrink without
    #[arg(long, value_name = "IMG")]
    pub primary: Option<PathBuf>,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub owner: OwnerArguments,
}

/// A volume, as `--json` prints it. The field names are an interface: add, don't change.
#[derive(Serialize)]
struct Line<'a> {
    volume: &'a str,
    sectors: u64,
    /// When it was entered, or where history begins.
    first_sectors: u64,
    after_images: bool,
    before_images: bool,
}

/// A resize, as `--json` prints it.
#[derive(Serialize)]
struct Printed<'a> {
    volume: &'a str,
    sectors_before: u64,
    sectors: u64,
    entries: u64,
    /// Primary was cut or extended.
    primary_fitted: bool,
}

const WRITER: &str = concat!("host-agent ", env!("CARGO_PKG_VERSION"), " volume");

/// Runs the command.
pub fn run(command: &Volume) -> Result<(), Error> {
    match command {
        Volume::List(arguments) => list(arguments),
        Volume::Resize(arguments) => resize(arguments),
    }
}

fn list(arguments: &List) -> Result<(), Error> {
    let reader = JournalReader::open(&arguments.journal)?;
    let sectors = reader.sectors_now()?;
    let mut output = Output::new();
    for volume in &reader.tables().volumes {
        let name = volume.name();
        let now = sectors.get(&volume.index).copied().unwrap_or(volume.sectors);
        let has = |bit| volume.technique & bit != 0;
        let (after_images, before_images) = (has(technique::AFTER), has(technique::BEFORE));
        if arguments.json {
            let first_sectors = volume.sectors;
            let volume = name.as_str();
            output.json(&Line { volume, sectors: now, first_sectors, after_images, before_images })?;
            continue;
        }
        let images = match (after_images, before_images) {
            (true, true) => "before- and after-images",
            (false, true) => "before-images",
            _ => "after-images",
        };
        let size = bytes(now.saturating_mul(SECTOR_BYTES as u64));
        output.line(format!("{name:<16} {now:>14} sectors {size:>12}  {images}"))?;
    }
    output.finish()
}

fn resize(arguments: &Resize) -> Result<(), Error> {
    let sectors = sectors(arguments)?;
    let Resize { journal: path, volume, primary, json, owner, .. } = arguments;
    // What can't be meant is refused before the journal is opened for writing: that leaves a session in it.
    let reader = JournalReader::open(path)?;
    reader.tables().volume(volume)?;
    drop(reader);
    let (done, fitted) = match daemon::reach(path, owner, WRITER)? {
        Reached::Own(mut journal) => {
            let done = journal.resize(volume, sectors, primary.as_deref());
            let closed = journal.close();
            let done = done?;
            closed?;
            (done, fit(path, volume, primary.as_deref())?)
        }
        Reached::Daemon(mut asking) => {
            let primary = primary.as_deref().map(absolute_name).transpose()?;
            let command = daemon::Command::VolumeResize { volume: volume.clone(), sectors, primary };
            let ResizeResult { resized, primary } = asking.ask(command, &ProgressBar::hidden())?;
            (resized, primary)
        }
    };
    let mut output = Output::new();
    if *json {
        output.json(&Printed {
            volume,
            sectors_before: done.before,
            sectors: done.after,
            entries: done.entries,
            primary_fitted: fitted == Fitted::Now,
        })?;
        return output.finish();
    }
    print(volume, &done, fitted, &mut output)?;
    output.finish()
}

fn sectors(arguments: &Resize) -> Result<u64, Error> {
    let sector = SECTOR_BYTES as u64;
    match (arguments.sectors, arguments.size) {
        (Some(sectors), _) => Ok(sectors),
        (None, Some(Size(bytes))) if bytes % sector == 0 => Ok(bytes / sector),
        (None, size) => {
            let bytes = size.map_or(0, |size| size.0);
            Err(Error::Misuse(format!("a volume has whole sectors of {sector} bytes, not {bytes} bytes")))
        }
    }
}

/// What became of primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fitted {
    /// It was cut or extended.
    Now,
    /// It has the size already.
    Already,
    /// It is no regular file.
    ByHand,
    /// Nobody said where it is.
    NotGiven,
}

/// Gives primary the volume's new size, where that can be done.
pub fn fit(journal: &Path, volume: &str, primary: Option<&Path>) -> Result<Fitted, Error> {
    let Some(primary) = primary else { return Ok(Fitted::NotGiven) };
    let metadata = std::fs::metadata(primary).map_err(|e| Error::io(primary, "looking at it", e))?;
    if !metadata.is_file() {
        return Ok(Fitted::ByHand);
    }
    match fit_primary(&JournalReader::open(journal)?, volume, primary)? {
        true => Ok(Fitted::Now),
        false => Ok(Fitted::Already),
    }
}

fn print(volume: &str, done: &Resized, fitted: Fitted, output: &mut Output) -> Result<(), Error> {
    let size = |sectors: u64| bytes(sectors.saturating_mul(SECTOR_BYTES as u64));
    let Resized { before, after, entries } = *done;
    match before == after {
        true => output.line(format!("volume {volume} has {after} sectors ({}) already", size(after)))?,
        false => output.line(format!(
            "volume {volume}: {after} sectors ({}) from now on, {before} ({}) before",
            size(after),
            size(before)
        ))?,
    }
    if entries > 0 {
        let entries = count(entries, "entry", "entries");
        output.line(format!("  what it lost is zeroes by {entries}; earlier moments are what they were"))?;
    }
    output.line(match fitted {
        Fitted::Now => "  primary has that size now",
        Fitted::Already => "  primary has that size",
        Fitted::ByHand | Fitted::NotGiven => "  give primary that size before anything is written to it",
    })
}
