//! `host-agent merge`: what is due is merged, what is no longer kept goes, and its room is free again.

use crate::arguments::OwnerArguments;
use crate::daemon::{self, absolute_name, MergeResult, Reached};
use crate::error::Error;
use crate::output::{bytes, count, grouped, Output};
use clap::Args;
use journal::merge::{preview, MergeOptions, Merged, Preview};
use journal::{rfc3339, span_text, Journal, JournalReader, LevelReach, Schedule};
use serde::Serialize;
use std::path::PathBuf;
use std::str::FromStr;

/// `merge`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Merge {
    /// The journal
    #[arg(value_name = "JOURNAL")]
    pub journal: PathBuf,
    /// Set the schedule, durably, and merge by it: `all:24h,1m:7d,1h:30d`; `none` stops merging
    #[arg(long, value_name = "SCHEDULE")]
    pub schedule: Option<Schedule>,
    /// A volume and its base (base create, base adopt), into which goes what is no longer kept
    #[arg(long, value_name = "VOLUME=FILE")]
    pub base: Vec<BaseFile>,
    /// Room is short: keep only what the schedule keeps then (all:24h/4h keeps 4 h)
    #[arg(long)]
    pub short: bool,
    /// Merge all that is due, also where no more segments become free than are written
    #[arg(long)]
    pub all: bool,
    /// Change nothing, say what is due
    #[arg(long)]
    pub dry_run: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
    /// Control socket of the daemon that holds the journal; JOURNAL.sock if not given
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  host-agent merge j --schedule all:24h/4h,1m:7d,1h:30d    from now on by this schedule
  host-agent merge j --base 1.0=base.img                   what is due, as often as you like
  host-agent merge j --short --base 1.0=base.img           room is short
  host-agent merge j --dry-run                             what would be done

A schedule: all:24h keeps every write for 24 h; 1m:7d keeps what is older as windows of a minute, a moment each, until
it is 7 days old; and so on. What is older than the last level is given up: with after-images it is rolled into the
volume's base first. all:24h/4h: 4 h are enough when room is short. Ages are counted by the journal's newest stamp.
Bookmarks and named images (image create) end a window, so that their moments are kept.";

/// `VOLUME=FILE`.
#[derive(Clone, Debug)]
pub struct BaseFile {
    /// Name of the volume.
    pub volume: String,
    /// Its base.
    pub file: PathBuf,
}

impl FromStr for BaseFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((volume, file)) if !volume.is_empty() && !file.is_empty() => {
                Ok(Self { volume: volume.to_owned(), file: file.into() })
            }
            _ => Err("give VOLUME=FILE, such as 1.0=base.img".into()),
        }
    }
}

/// The result, as `--json` prints it. The field names are an interface: add, don't change.
#[derive(Serialize)]
struct Printed {
    schedule: String,
    dry_run: bool,
    windows: u64,
    entries_in: u64,
    bytes_in: u64,
    entries_out: u64,
    bytes_out: u64,
    segments_freed: u64,
    segments_written: u64,
    /// Orders, from the oldest on.
    given_up: u64,
    rolled: Vec<Rolled>,
    held_back: Vec<String>,
    /// What is due now: before anything, with `--dry-run`; else what is left.
    due: Vec<Due>,
    levels: Vec<Level>,
}

#[derive(Serialize)]
struct Rolled {
    volume: String,
    /// The base holds every entry up to this one.
    order: u64,
    timestamp: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct Due {
    /// The level that it is in.
    level: usize,
    /// Into windows of this length, ns; `null`: it is given up.
    window: Option<u64>,
    until: u64,
    windows: u64,
    entries: u64,
    bytes: u64,
    /// Segments.
    frees: u64,
    writes: u64,
    held_back: Vec<String>,
}

/// A level, as `--json` prints it.
#[derive(Serialize)]
pub struct Level {
    level: usize,
    window: u64,
    from: u64,
    to: u64,
    writes: u64,
    windows: u64,
    segments: u64,
    bytes: u64,
}

const WRITER: &str = concat!("host-agent ", env!("CARGO_PKG_VERSION"), " merge");

/// Runs the command.
pub fn run(arguments: &Merge) -> Result<(), Error> {
    let reader = JournalReader::open(&arguments.journal)?;
    for base in &arguments.base {
        reader.tables().volume(&base.volume)?;
    }
    let schedule = arguments.schedule.as_ref().unwrap_or(&reader.tables().schedule).clone();
    let options = MergeOptions {
        short: arguments.short,
        freeing_only: !arguments.all,
        bases: arguments.base.iter().map(|base| (base.volume.clone(), base.file.clone())).collect(),
    };
    let due = preview(&reader, &schedule, &options)?;
    // Looked for first: opening the journal for nothing would leave a session in it.
    let has_work = due.iter().any(|part| part.frees_room() || (arguments.all && part.can_be_done()));
    let changes = arguments.schedule.is_some() && schedule != reader.tables().schedule;
    let owner = OwnerArguments::at(arguments.control.as_ref());
    // A daemon may know bases that the command line doesn't.
    let reached = match (arguments.dry_run, has_work || changes) {
        (true, _) => None,
        (false, true) => Some(daemon::reach(&arguments.journal, &owner, WRITER)?),
        (false, false) => daemon::daemon_of(&arguments.journal, &owner)?.map(Reached::Daemon),
    };
    let Some(reached) = reached else {
        let merged = Merged {
            held_back: due.iter().flat_map(|part| part.held_back.clone()).collect(),
            ..Merged::default()
        };
        return report(arguments, &reader, &schedule, &merged, due);
    };
    drop(reader);
    let merged = match reached {
        Reached::Own(mut journal) => {
            let done = work(&mut journal, arguments, &options);
            // In order whatever came of it: what was merged is merged, and the rest is as it was.
            let closed = journal.close();
            let merged = done?;
            closed?;
            merged
        }
        Reached::Daemon(mut asking) => {
            let whole = |base: &BaseFile| Ok((base.volume.clone(), absolute_name(&base.file)?));
            let command = daemon::Command::Merge {
                schedule: arguments.schedule.as_ref().map(Schedule::to_string),
                short: arguments.short,
                all: arguments.all,
                bases: arguments.base.iter().map(whole).collect::<Result<_, Error>>()?,
            };
            let bar = indicatif::ProgressBar::new_spinner().with_message("merging, in the daemon");
            asking.ask::<MergeResult>(command, &bar)?.into()
        }
    };
    let reader = JournalReader::open(&arguments.journal)?;
    let left = preview(&reader, &schedule, &options)?;
    report(arguments, &reader, &schedule, &merged, left)
}

fn work(journal: &mut Journal, arguments: &Merge, options: &MergeOptions) -> Result<Merged, Error> {
    if let Some(schedule) = &arguments.schedule {
        journal.set_schedule(schedule)?;
    }
    let bar = indicatif::ProgressBar::new_spinner();
    let merged = journal.merge(options, &mut |merged| {
        bar.set_message(format!("{}, {}", windows(merged.windows), bytes(merged.bytes_in)));
        bar.tick();
    });
    bar.finish_and_clear();
    Ok(merged?)
}

fn windows(number: u64) -> String {
    count(number, "window", "windows")
}

fn report(
    arguments: &Merge,
    reader: &JournalReader,
    schedule: &Schedule,
    merged: &Merged,
    due: Vec<Preview>,
) -> Result<(), Error> {
    let levels = reader.levels()?;
    let mut output = Output::new();
    if arguments.json {
        output.json(&printed(arguments, schedule, merged, due, &levels))?;
        return output.finish();
    }
    output.line(format!("{}: schedule {schedule}", arguments.journal.display()))?;
    print_done(reader, merged, &mut output)?;
    print_due(arguments, schedule, merged, &due, &mut output)?;
    print_levels(&levels, &mut output)?;
    output.finish()?;
    for line in &merged.held_back {
        eprintln!("warning: {line}");
    }
    Ok(())
}

fn print_done(reader: &JournalReader, merged: &Merged, output: &mut Output) -> Result<(), Error> {
    if merged.windows > 0 {
        output.line(format!(
            "  merged {} ({}) in {} into {} ({})",
            count(merged.entries_in, "entry", "entries"),
            bytes(merged.bytes_in),
            windows(merged.windows),
            count(merged.entries_out, "entry", "entries"),
            bytes(merged.bytes_out)
        ))?;
    }
    for base in &merged.rolled {
        output.line(format!(
            "  rolled {} into the base of volume {}: it stands at order:{} ({})",
            bytes(base.bytes),
            base.volume,
            base.to.0,
            rfc3339(base.to.1)
        ))?;
    }
    if merged.given_up > 0 {
        let begins = reader.levels()?.last().map_or(0, |oldest| oldest.from);
        output.line(format!(
            "  gave up {}: history begins at {}",
            count(merged.given_up, "write", "writes"),
            rfc3339(begins)
        ))?;
    }
    if merged.steps > 0 {
        output.line(format!(
            "  {} freed, {} written",
            count(merged.segments_freed, "segment", "segments"),
            grouped(merged.segments_written)
        ))?;
    }
    Ok(())
}

fn print_due(
    arguments: &Merge,
    schedule: &Schedule,
    merged: &Merged,
    due: &[Preview],
    output: &mut Output,
) -> Result<(), Error> {
    if schedule.is_empty() {
        return output.line("  without a schedule nothing is merged; --schedule sets one");
    }
    let mut said = false;
    for part in due.iter().filter(|part| part.can_be_done()) {
        let what = match part.window {
            Some(window) => format!(
                "{} ({}) up to {} become {} of {}",
                count(part.entries, "entry", "entries"),
                bytes(part.bytes),
                rfc3339(part.until),
                windows(part.windows),
                span_text(window)
            ),
            None => {
                format!(
                    "{} up to {} can be given up",
                    count(part.entries, "write", "writes"),
                    rfc3339(part.until)
                )
            }
        };
        let but = match (part.frees_room(), arguments.dry_run) {
            (false, _) => "; that would free nothing yet: --all does it all the same".to_owned(),
            (true, true) => format!(
                "; the first step frees {} and writes {} at most",
                count(part.frees, "segment", "segments"),
                grouped(part.writes)
            ),
            (true, false) if merged.steps == 0 => {
                "; with so little free room that would gain nothing: --all does it all the same".to_owned()
            }
            (true, false) => String::new(),
        };
        output.line(format!("  due: {what}{but}"))?;
        said = true;
    }
    if !said && merged.steps == 0 && merged.held_back.is_empty() {
        output.line("  nothing is due")?;
    }
    Ok(())
}

/// The levels with their reach, for people.
pub fn print_levels(levels: &[LevelReach], output: &mut Output) -> Result<(), Error> {
    output.line("   LEVEL  WINDOWS     WRITES  SEGMENTS        BYTES  FROM                            TO")?;
    for level in levels {
        let (name, windows) = match level.level {
            0 => ("all".to_owned(), "-".to_owned()),
            _ => (span_text(level.window), grouped(level.windows)),
        };
        let (from, to) = match level.from < level.to {
            true => (rfc3339(level.from), rfc3339(level.to)),
            false => ("nothing".to_owned(), String::new()),
        };
        let line = format!(
            "{name:>8}  {windows:>7}  {:>9}  {:>8}  {:>11}  {from:<30}  {to}",
            grouped(level.writes),
            grouped(level.segments),
            bytes(level.bytes)
        );
        output.line(line.trim_end())?;
    }
    Ok(())
}

fn printed(
    arguments: &Merge,
    schedule: &Schedule,
    merged: &Merged,
    due: Vec<Preview>,
    levels: &[LevelReach],
) -> Printed {
    let rolled = merged.rolled.iter().map(|base| Rolled {
        volume: base.volume.clone(),
        order: base.to.0,
        timestamp: base.to.1,
        bytes: base.bytes,
    });
    let due = due.into_iter().map(|part| Due {
        level: part.source,
        window: part.window,
        until: part.until,
        windows: part.windows,
        entries: part.entries,
        bytes: part.bytes,
        frees: part.frees,
        writes: part.writes,
        held_back: part.held_back,
    });
    Printed {
        schedule: schedule.to_string(),
        dry_run: arguments.dry_run,
        windows: merged.windows,
        entries_in: merged.entries_in,
        bytes_in: merged.bytes_in,
        entries_out: merged.entries_out,
        bytes_out: merged.bytes_out,
        segments_freed: merged.segments_freed,
        segments_written: merged.segments_written,
        given_up: merged.given_up,
        rolled: rolled.collect(),
        held_back: merged.held_back.clone(),
        due: due.collect(),
        levels: levels.iter().map(level).collect(),
    }
}

fn level(reach: &LevelReach) -> Level {
    let LevelReach { level, window, from, to, writes, windows, segments, bytes } = *reach;
    Level { level, window, from, to, writes, windows, segments, bytes }
}
