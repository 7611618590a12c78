//! `host-agent restore --in-place` and `--undo`: primary itself is brought back.

use super::hinted;
use crate::arguments::Restore;
use crate::daemon::{self, absolute_name, Reached, RollBackResult};
use crate::error::Error;
use crate::output::{bytes, count, Output};
use crate::progress::{bar, Unit};
use journal::rollback::{RollbackOptions, RolledBack, Target};
use journal::{rfc3339, Moment};
use serde::Serialize;

/// The result, as `--json` prints it. The field names are an interface: add, don't change.
#[derive(Serialize)]
struct Printed<'a> {
    volume: &'a str,
    target_order: u64,
    target_timestamp: u64,
    /// The moment that brings back what was there: `order:N`.
    before_order: u64,
    last_order: u64,
    compared: u64,
    written: u64,
    entries: u64,
    /// Sectors, if the volume got another size by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    resized: Option<(u64, u64)>,
    discarded: u64,
}

const INTERRUPTED: &str =
    "primary may be brought back in part: the same command again finishes it; --undo takes a rollback back";

/// Runs the command; `at`: `None` with `--undo`.
pub fn run(arguments: &Restore, at: Option<Moment>) -> Result<(), Error> {
    let Some(primary) = &arguments.backing.primary else {
        return Err(Error::Misuse("--in-place and --undo need --primary".into()));
    };
    let (volume, base) = (arguments.volume.as_str(), arguments.backing.base.as_deref());
    let allow_gaps = arguments.allow_gaps;
    let progress = bar("comparing", Unit::Bytes);
    let writer = concat!("host-agent ", env!("CARGO_PKG_VERSION"), " rollback");
    let done = match daemon::reach(&arguments.journal, &arguments.owner, writer)? {
        Reached::Own(_) if arguments.through_card => Err(Error::Misuse(format!(
            "{}: no card drain holds it, so there is no way through a card",
            arguments.journal.display()
        ))),
        Reached::Own(mut journal) => {
            let to = at.map_or(Target::Undo { discard: arguments.force }, Target::Moment);
            let options = RollbackOptions { volume, primary, base, to, allow_gaps };
            let done = journal.roll_back(&options, &mut |done, total| {
                progress.set_length(total);
                progress.set_position(done);
            });
            done.map_err(explained).and_then(|done| Ok(journal.close().map(|_| done)?))
        }
        Reached::Daemon(mut asking) => {
            let command = daemon::Command::RollBack {
                volume: volume.to_owned(),
                primary: absolute_name(primary)?,
                base: base.map(absolute_name).transpose()?,
                at: at.map(|at| at.to_string()),
                discard: arguments.force,
                allow_gaps,
                through_card: arguments.through_card,
            };
            asking.ask(command, &progress).map(|RollBackResult(done)| done)
        }
    };
    progress.finish_and_clear();
    let done = done?;
    let mut output = Output::new();
    match arguments.json {
        true => output.json(&printed(&arguments.volume, &done))?,
        false => print(arguments, &done, &mut output)?,
    }
    output.finish()
}

/// With what to do about it.
pub fn explained(error: journal::Error) -> Error {
    match error {
        journal::Error::Discards { .. } => Error::JournalHint(error, "--force does it all the same"),
        // Whatever failed on the way: nothing is lost, and both directions are open.
        journal::Error::Io { .. } | journal::Error::Corrupt { .. } | journal::Error::Stopped { .. } => {
            Error::JournalHint(error, INTERRUPTED)
        }
        other => hinted(other),
    }
}

fn printed<'a>(volume: &'a str, done: &RolledBack) -> Printed<'a> {
    Printed {
        volume,
        target_order: done.target.0,
        target_timestamp: done.target.1,
        before_order: done.before,
        last_order: done.last,
        compared: done.compared,
        written: done.written,
        entries: done.entries,
        resized: done.resized,
        discarded: done.discarded,
    }
}

fn print(arguments: &Restore, done: &RolledBack, output: &mut Output) -> Result<(), Error> {
    let moment = match done.target.0 {
        0 => "before the first write".to_owned(),
        order => format!("just after order:{order} ({})", rfc3339(done.target.1)),
    };
    output.line(format!("volume {}: primary is as it was {moment}", arguments.volume))?;
    output.line(format!(
        "  {} compared, {} written, journaled as {}",
        bytes(done.compared),
        bytes(done.written),
        count(done.entries, "entry", "entries")
    ))?;
    if let Some((before, after)) = done.resized {
        output.line(format!("  it had {before} sectors, and has {after} now, as it had then"))?;
    }
    if done.discarded > 0 {
        output
            .line(format!("  {} after the rollback discarded", count(done.discarded, "write", "writes")))?;
    }
    output.line(format!("  what was there before: --undo, or --at order:{}", done.before))
}
