//! `host-agent resync`: after an unclean stop, journals what primary has and the journal doesn't know of.

use crate::arguments::OwnerArguments;
use crate::daemon::{self, absolute_name, Reached, ResyncResult};
use crate::error::Error;
use crate::output::{bytes, count, Output};
use crate::progress::{bar, Unit};
use clap::Args;
use journal::resync::{compare, Resynced};
use journal::JournalReader;
use serde::Serialize;
use std::path::PathBuf;

/// `resync`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Resync {
    /// The journal
    #[arg(value_name = "JOURNAL")]
    pub journal: PathBuf,
    /// The volume, shelf.slot
    #[arg(long, value_name = "VOLUME")]
    pub volume: String,
    /// The volume's primary storage, which nothing may write to meanwhile; it is only read
    #[arg(long, value_name = "IMG")]
    pub primary: PathBuf,
    /// The volume's image from before the first write; it is only read
    #[arg(long, value_name = "IMG", required_unless_present = "unknown")]
    pub base: Option<PathBuf>,
    /// Only say how much differs
    #[arg(long)]
    pub dry_run: bool,
    /// Primary is this host's device of the volume (/dev/etherd/e1.0), behind a port of the card that `card drain` drains
    /// into the journal. Sources go on writing meanwhile
    #[arg(long, conflicts_with = "dry_run")]
    pub through_card: bool,
    /// Only read back what nobody knows, because the target gave no answer, or a late one
    #[arg(long, requires = "through_card", conflicts_with = "base")]
    pub unknown: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub owner: OwnerArguments,
}

const EXAMPLES: &str = "\
Example:
  host-agent resync j --volume 1.0 --primary disk.img --base base.img --dry-run
  host-agent resync j --volume 1.0 --primary disk.img --base base.img
  host-agent resync j --volume 1.0 --primary /dev/etherd/e1.0 --base base.img --through-card

Once for each volume. Moments from before the stop stay as they were, moments from the resync on are good
again; in between nobody knows what primary had.";

/// The result, as `--json` prints it.
#[derive(Serialize)]
struct Printed<'a> {
    volume: &'a str,
    compared: u64,
    differed: u64,
    entries: u64,
    gaps: u64,
    dry_run: bool,
}

const WRITER: &str = concat!("host-agent ", env!("CARGO_PKG_VERSION"), " resync");

/// Runs the command.
pub fn run(arguments: &Resync) -> Result<(), Error> {
    let Resync { journal, volume, primary, dry_run, json, owner, .. } = arguments;
    let base = arguments.base.as_deref();
    let progress = bar("comparing", Unit::Bytes);
    let mut show = |done, total| {
        progress.set_length(total);
        progress.set_position(done);
    };
    let resynced = match dry_run {
        true => {
            let base = base.ok_or_else(needs_base)?;
            compare(JournalReader::open(journal)?, volume, primary, base, &mut show).map_err(Error::from)
        }
        false => {
            // What can't be meant is refused before the journal is opened for writing.
            JournalReader::open(journal)?.tables().volume(volume)?;
            match daemon::reach(journal, owner, WRITER)? {
                Reached::Own(_) if arguments.through_card => Err(Error::Misuse(format!(
                    "{}: no card drain holds it, so there is no way through a card",
                    journal.display()
                ))),
                Reached::Own(mut owned) => {
                    let base = base.ok_or_else(needs_base)?;
                    let done = owned.resync(volume, primary, base, &mut show);
                    // In order or not: what a resync that failed has journaled is true, and closes nothing.
                    Ok(done.and_then(|resynced| owned.close().map(|_| resynced))?)
                }
                Reached::Daemon(mut asking) => {
                    let (primary, base) = (absolute_name(primary)?, base.map(absolute_name).transpose()?);
                    let (through_card, unknown) = (arguments.through_card, arguments.unknown);
                    let command = daemon::Command::Resync {
                        volume: volume.clone(),
                        primary,
                        base,
                        through_card,
                        unknown,
                    };
                    asking.ask(command, &progress).map(|ResyncResult(resynced)| resynced)
                }
            }
        }
    };
    progress.finish_and_clear();
    let Resynced { compared, differed, entries, closed } = resynced?;
    let mut output = Output::new();
    if *json {
        let dry_run = *dry_run;
        output.json(&Printed { volume, compared, differed, entries, gaps: closed, dry_run })?;
        return output.finish();
    }
    if arguments.unknown {
        output.line(format!(
            "volume {volume}: {} that nobody knew read back, journaled as {}",
            bytes(differed),
            count(entries, "resync entry", "resync entries")
        ))?;
        return output.finish();
    }
    output.line(format!(
        "volume {volume}: {} compared, {} of primary {} from what the journal knows",
        bytes(compared),
        bytes(differed),
        if differed == 1 { "differs" } else { "differ" }
    ))?;
    if *dry_run {
        output.line("  nothing was changed (--dry-run)")?;
    } else {
        output.line(format!(
            "  {} journaled; {} closed: moments from now on are good",
            count(entries, "resync entry", "resync entries"),
            count(closed, "gap of a port", "gaps of ports")
        ))?;
    }
    output.finish()
}

fn needs_base() -> Error {
    Error::Misuse("a resync needs the volume's base".into())
}
