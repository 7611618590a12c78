//! `host-agent base`: the images that after-images are applied to.

use crate::arguments::OwnerArguments;
use crate::daemon::{self, absolute_name, BasedResult, Reached};
use crate::error::Error;
use crate::output::{bytes, Output};
use crate::progress::{bar, Unit};
use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use journal::base::{look, BaseOptions, Based, Position};
use journal::{rfc3339, JournalReader, Volume};
use layout::journal_file::technique;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// `base`.
#[derive(Debug, Subcommand)]
pub enum Base {
    /// Make a base from primary
    ///
    /// A sparse copy of primary as it is now, which the journal knows from then on: what it is a base of, and
    /// which moments can be made from it. Those from the end of the copy on can; earlier ones can't.
    /// Beside it lies its label (BASE.chronoswitch): keep the two together.
    #[command(after_long_help = EXAMPLES)]
    Create(Create),
    /// Take over an image from before the first write as the base
    ///
    /// Puts a label beside it, and from then on no other image is taken for the volume's base. Finishes a
    /// base create that was interrupted, too.
    Adopt(Adopt),
    /// Say which base each volume has, and which moments can be made from it
    Info(Info),
}

const EXAMPLES: &str = "\
Examples:
  cp --sparse=always disk.img base.img         before the first write, and then
  host-agent base adopt j --volume 1.0 --base base.img
  host-agent base create j --volume 1.0 --primary disk.img --to base.img
  host-agent base create j --volume 1.0 --primary disk.img --to base2.img --replace
  host-agent base info j --volume 1.0 --base base2.img";

/// `base create`.
#[derive(Debug, Args)]
pub struct Create {
    /// The journal
    #[arg(value_name = "JOURNAL")]
    pub journal: PathBuf,
    /// The volume, shelf.slot
    #[arg(long, value_name = "VOLUME")]
    pub volume: String,
    /// The volume's primary storage; it is only read
    #[arg(long, value_name = "IMG")]
    pub primary: PathBuf,
    /// The base to make: a regular file, which must not exist
    #[arg(long, value_name = "BASE")]
    pub to: PathBuf,
    /// The volume has a base already: give it up, and the moments from before the new one with it
    #[arg(long)]
    pub replace: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub owner: OwnerArguments,
}

/// `base adopt`.
#[derive(Debug, Args)]
pub struct Adopt {
    /// The journal
    #[arg(value_name = "JOURNAL")]
    pub journal: PathBuf,
    /// The volume, shelf.slot
    #[arg(long, value_name = "VOLUME")]
    pub volume: String,
    /// The volume's image from before the first write; only its label is written, beside it
    #[arg(long, value_name = "BASE")]
    pub base: PathBuf,
    /// The volume has another base already: give it up
    #[arg(long)]
    pub replace: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
    /// Control socket of the daemon that holds the journal; JOURNAL.sock if not given
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,
}

/// `base info`.
#[derive(Debug, Args)]
pub struct Info {
    /// The journal
    #[arg(value_name = "JOURNAL")]
    pub journal: PathBuf,
    /// Only this volume
    #[arg(long, value_name = "VOLUME")]
    pub volume: Option<String>,
    /// Is this the volume's base?
    #[arg(long, value_name = "BASE", requires = "volume")]
    pub base: Option<PathBuf>,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// A base, as `--json` prints it. The field names are an interface: add, don't change.
#[derive(Serialize)]
struct Printed<'a> {
    volume: &'a str,
    /// `null`: none is known.
    base_id: Option<String>,
    /// It holds every entry up to this one.
    order: u64,
    timestamp: u64,
    /// Moments from this one on can be made.
    first_order: u64,
    first_timestamp: u64,
    /// Entries in it of which nobody knows whether they were executed.
    doubtful: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
}

const WRITER: &str = concat!("host-agent ", env!("CARGO_PKG_VERSION"), " base");

/// Runs the command.
pub fn run(command: &Base) -> Result<(), Error> {
    match command {
        Base::Create(arguments) => create(arguments),
        Base::Adopt(arguments) => adopt(arguments),
        Base::Info(arguments) => info(arguments),
    }
}

fn create(arguments: &Create) -> Result<(), Error> {
    let Create { journal, volume, primary, to, replace, json, owner } = arguments;
    // What can't be meant is refused before the journal is opened for writing.
    JournalReader::open(journal)?.tables().volume(volume)?;
    let reached = daemon::reach(journal, owner, WRITER)?;
    let progress = bar("copying", Unit::Bytes);
    let made = match reached {
        Reached::Own(mut owned) => {
            let options = BaseOptions { volume, primary, base: to, replace: *replace };
            let made = owned.create_base(&options, &mut |done, total| {
                progress.set_length(total);
                progress.set_position(done);
            });
            progress.finish_and_clear();
            let made = made.map_err(explained);
            // In order whatever came of it: nothing of the journal's depends on a copy that failed.
            let closed = owned.close();
            let made = made?;
            closed?;
            made
        }
        Reached::Daemon(mut asking) => {
            let (volume, replace) = (volume.clone(), *replace);
            let (primary, base) = (absolute_name(primary)?, absolute_name(to)?);
            let command = daemon::Command::BaseCreate { volume, primary, base, replace };
            asking.ask::<BasedResult>(command, &progress)?.0
        }
    };
    report(volume, to, &made, *json)
}

/// An error of a base's making, with what to do.
pub fn explained(error: journal::Error) -> Error {
    match error {
        journal::Error::Exists { .. } => {
            Error::JournalHint(error, "a base never takes the place of a file: give --to another name")
        }
        other => other.into(),
    }
}

fn adopt(arguments: &Adopt) -> Result<(), Error> {
    let Adopt { journal, volume, base, replace, json, control } = arguments;
    JournalReader::open(journal)?.tables().volume(volume)?;
    let adopted = match daemon::reach(journal, &OwnerArguments::at(control.as_ref()), WRITER)? {
        Reached::Own(mut owned) => {
            let adopted = owned.adopt_base(volume, base, *replace);
            let closed = owned.close();
            let adopted = adopted?;
            closed?;
            adopted
        }
        Reached::Daemon(mut asking) => {
            let (volume, base, replace) = (volume.clone(), absolute_name(base)?, *replace);
            let command = daemon::Command::BaseAdopt { volume, base, replace };
            asking.ask::<BasedResult>(command, &ProgressBar::hidden())?.0
        }
    };
    report(volume, base, &adopted, *json)
}

fn report(volume: &str, base: &Path, based: &Based, json: bool) -> Result<(), Error> {
    let mut output = Output::new();
    if json {
        output.json(&printed(volume, based.base_id, based.position, 0, Some(base)))?;
        return output.finish();
    }
    let what = if based.known { "is the base" } else { "is the base now" };
    output.line(format!("{}: {what} of volume {volume}", base.display()))?;
    output.line(format!("  {}", moments(based.position)))?;
    if let Some(replaced) = based.replaced.filter(|replaced| replaced.rolling.0 < based.position.rolling.0) {
        output.line(format!(
            "  moments from {} up to there went with the base that it replaces",
            moment(replaced.rolling)
        ))?;
    }
    output.finish()
}

fn info(arguments: &Info) -> Result<(), Error> {
    let reader = JournalReader::open(&arguments.journal)?;
    let mut output = Output::new();
    let volumes: Vec<Volume> = match &arguments.volume {
        Some(name) => vec![reader.tables().volume(name)?.clone()],
        None => reader.tables().volumes.clone(),
    };
    for volume in volumes {
        let name = volume.name();
        // Refused if it isn't.
        let looked = arguments.base.as_deref().map(|base| look(&reader, &name, base)).transpose()?;
        let row = Position { order: volume.base, rolling: volume.rolling };
        let position = looked.flatten().unwrap_or(row);
        if arguments.json {
            let base = arguments.base.as_deref();
            output.json(&printed(&name, volume.base_id, position, volume.base_doubtful, base))?;
            continue;
        }
        output.line(format!("volume {name} ({}): {}", bytes(volume.bytes()), describe(&volume)))?;
        if volume.base_id != [0; 16] {
            output.line(format!("  {}", moments(position)))?;
        }
        if let Some(base) = &arguments.base {
            let verdict = match volume.base_id == [0; 16] {
                true => "has its size; no more can be told",
                false => "is the base",
            };
            output.line(format!("  {} {verdict}", base.display()))?;
        }
    }
    output.finish()
}

fn describe(volume: &Volume) -> String {
    if volume.technique & technique::AFTER == 0 {
        return "before-images, moments are made from primary".to_owned();
    }
    if volume.base_id == [0; 16] {
        return "no base is known; any image from before the first write serves, by your word (base adopt)"
            .to_owned();
    }
    let doubtful = match volume.base_doubtful {
        0 => String::new(),
        count => format!(", with {count} writes of which nobody knows whether they were executed"),
    };
    format!("base {}{doubtful}", hex(&volume.base_id))
}

fn moments(position: Position) -> String {
    match position.rolling.0 {
        0 => "every moment of the journal can be made from it".to_owned(),
        _ => format!("moments from {} on can be made from it", moment(position.rolling)),
    }
}

fn moment((order, timestamp): (u64, u64)) -> String {
    match order {
        0 => "before the first write".to_owned(),
        _ => format!("order:{order} ({})", rfc3339(timestamp)),
    }
}

fn printed<'a>(
    volume: &'a str,
    base_id: [u8; 16],
    position: Position,
    doubtful: u64,
    file: Option<&Path>,
) -> Printed<'a> {
    Printed {
        volume,
        base_id: (base_id != [0; 16]).then(|| hex(&base_id)),
        order: position.order.0,
        timestamp: position.order.1,
        first_order: position.rolling.0,
        first_timestamp: position.rolling.1,
        doubtful,
        file: file.map(|file| file.display().to_string()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
