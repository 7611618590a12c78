//! `host-agent restore`: a volume's image as it was at a moment.

mod in_place;

use crate::arguments::Restore;
use crate::error::Error;
use crate::output::{bytes, count, grouped, Output};
use crate::progress::{bar, Unit};
pub use in_place::explained;
use journal::image::Backing;
use journal::restore::{restore, Progress, RestoreOptions, Restored, Stage};
use journal::{rfc3339, JournalReader, MissingSpan};
use serde::Serialize;

/// The result, as `--json` prints it.
#[derive(Serialize)]
struct Printed<'a> {
    volume: &'a str,
    out: String,
    order: u64,
    timestamp: u64,
    entries: u64,
    skipped: u64,
    doubtful: u64,
    bytes: u64,
    gaps: Vec<u8>,
    /// Bytes that an interrupted restore had made already.
    resumed: u64,
}

/// Runs the command.
pub fn run(arguments: &Restore) -> Result<(), Error> {
    let reader = JournalReader::open(&arguments.journal)?;
    let at = arguments.at.as_ref().map(|at| at.resolve(reader.tables())).transpose()?;
    let Some((at, out)) = at.zip(arguments.to.as_ref()) else {
        drop(reader);
        return in_place::run(arguments, at);
    };
    let options = RestoreOptions {
        volume: &arguments.volume,
        backing: arguments.backing.backing(&reader, &arguments.volume, at)?,
        at,
        out,
        force: arguments.force,
        allow_gaps: arguments.allow_gaps,
    };
    let restored = with_bars(|progress| restore(reader, &options, progress)).map_err(hinted)?;
    let mut output = Output::new();
    if arguments.json {
        let Restored { order, timestamp, entries, skipped, doubtful, bytes, ref gaps, resumed } = restored;
        let gaps = ports(gaps);
        let (volume, out) = (arguments.volume.as_str(), out.display().to_string());
        output.json(&Printed {
            volume,
            out,
            order,
            timestamp,
            entries,
            skipped,
            doubtful,
            bytes,
            gaps,
            resumed,
        })?;
    } else {
        print(&options, &restored, &mut output)?;
    }
    output.finish()
}

/// The ports that gaps are of.
pub fn ports(gaps: &[MissingSpan]) -> Vec<u8> {
    let mut ports: Vec<u8> = gaps.iter().map(|gap| gap.port).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// With what to do about it.
pub fn hinted(error: journal::Error) -> Error {
    match error {
        journal::Error::Exists { .. } => Error::JournalHint(error, "--force replaces it"),
        journal::Error::Gap { .. } => {
            Error::JournalHint(error, "--allow-gaps goes on all the same, and the image may be wrong")
        }
        other => other.into(),
    }
}

/// One bar for each stage.
fn with_bars<T>(work: impl FnOnce(&mut dyn FnMut(Progress)) -> T) -> T {
    let mut current: Option<(Stage, indicatif::ProgressBar)> = None;
    let result = work(&mut |progress| {
        if current.as_ref().is_none_or(|(stage, _)| *stage != progress.stage) {
            let (what, unit) = match progress.stage {
                Stage::Reading => ("reading", Unit::Of("entries")),
                Stage::Writing => ("writing", Unit::Bytes),
            };
            if let Some((_, old)) = current.replace((progress.stage, bar(what, unit))) {
                old.finish_and_clear();
            }
        }
        if let Some((_, bar)) = &current {
            bar.set_length(progress.total);
            bar.set_position(progress.done.min(progress.total));
        }
    });
    if let Some((_, bar)) = current {
        bar.finish_and_clear();
    }
    result
}

fn print(options: &RestoreOptions<'_>, restored: &Restored, output: &mut Output) -> Result<(), Error> {
    let moment = match restored.order {
        0 => "before the first write".to_owned(),
        order => format!("just after order:{order} ({})", rfc3339(restored.timestamp)),
    };
    output.line(format!("{}: volume {} as it was {moment}", options.out.display(), options.volume))?;
    let (entries, which) = match options.backing {
        Backing::Base(_) => (count(restored.entries, "write", "writes"), "up to the moment"),
        Backing::Primary(_) => (count(restored.entries, "write", "writes"), "after the moment undone"),
    };
    output.line(format!(
        "  {entries} of this volume {which}: {} from the journal, the rest from {}; {} not executed by the target",
        bytes(restored.bytes),
        options.backing.path().display(),
        grouped(restored.skipped)
    ))?;
    if restored.resumed > 0 {
        output.line(format!(
            "  went on at {}, where an interrupted restore had ended",
            bytes(restored.resumed)
        ))?;
    }
    if restored.doubtful > 0 {
        let entries = count(restored.doubtful, "write is", "writes are");
        output.line(format!(
            "  note: {entries} in the image though nobody knows whether the target executed them"
        ))?;
    }
    if !restored.gaps.is_empty() {
        let ports = ports(&restored.gaps).iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
        output.line(format!("  warning: the image crosses gaps of port {ports} and may be wrong"))?;
    }
    Ok(())
}
