//! `host-agent diff`: what was written between two moments.

use crate::error::Error;
use crate::output::{bytes, count, Output};
use crate::progress::{bar, Unit};
use clap::Args;
use journal::diff::{diff, Difference};
use journal::{rfc3339, JournalReader, When};
use serde::Serialize;
use std::path::PathBuf;

/// `diff`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Diff {
    /// The journal
    #[arg(value_name = "JOURNAL")]
    pub journal: PathBuf,
    /// The volume, shelf.slot
    #[arg(long, value_name = "VOLUME")]
    pub volume: String,
    /// The earlier moment: order:N, RFC 3339, -15m, bookmark:NAME, image:NAME, ns since 1970
    #[arg(value_name = "A", allow_hyphen_values = true)]
    pub from: When,
    /// The later moment
    #[arg(value_name = "B", allow_hyphen_values = true, default_value = "end")]
    pub to: When,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

const EXAMPLES: &str = "\
Examples:
  host-agent diff j --volume 1.0 order:100 order:200
  host-agent diff j --volume 1.0 bookmark:before-migration end --json
  host-agent diff j --volume 1.0 -15m";

/// The result, as `--json` prints it. The field names are an interface: add, don't change.
#[derive(Serialize)]
struct Printed<'a> {
    volume: &'a str,
    from_order: u64,
    from_timestamp: u64,
    to_order: u64,
    to_timestamp: u64,
    from_bytes: u64,
    to_bytes: u64,
    changed_bytes: u64,
    extents: Vec<Extent>,
    ports: Vec<Port>,
    not_executed: u64,
    gaps: Vec<u8>,
}

#[derive(Serialize)]
struct Extent {
    offset: u64,
    bytes: u64,
    /// Of the last write there.
    port: u8,
}

#[derive(Serialize)]
struct Port {
    port: u8,
    writes: u64,
    bytes_written: u64,
}

/// Runs the command.
pub fn run(arguments: &Diff) -> Result<(), Error> {
    let reader = JournalReader::open(&arguments.journal)?;
    let (from, to) = (arguments.from.resolve(reader.tables())?, arguments.to.resolve(reader.tables())?);
    let progress = bar("reading", Unit::Of("entries"));
    let found = diff(&reader, &arguments.volume, from, to, &mut |done, total| {
        progress.set_length(total);
        progress.set_position(done.min(total));
    });
    progress.finish_and_clear();
    let found = found?;
    let changed: u64 = found.changed.iter().map(|changed| changed.bytes).sum();
    let mut output = Output::new();
    if arguments.json {
        output.json(&printed(arguments, &found, changed))?;
    } else {
        print(arguments, &found, changed, &mut output)?;
    }
    output.finish()
}

fn printed<'a>(arguments: &'a Diff, found: &Difference, changed_bytes: u64) -> Printed<'a> {
    let extents = found.changed.iter();
    let ports = found.ports.iter();
    Printed {
        volume: &arguments.volume,
        from_order: found.from.0,
        from_timestamp: found.from.1,
        to_order: found.to.0,
        to_timestamp: found.to.1,
        from_bytes: found.sizes.0,
        to_bytes: found.sizes.1,
        changed_bytes,
        extents: extents.map(|e| Extent { offset: e.offset, bytes: e.bytes, port: e.port }).collect(),
        ports: ports
            .map(|(port, p)| Port { port: *port, writes: p.writes, bytes_written: p.bytes_written })
            .collect(),
        not_executed: found.skipped,
        gaps: crate::restore::ports(&found.gaps),
    }
}

fn print(arguments: &Diff, found: &Difference, changed: u64, output: &mut Output) -> Result<(), Error> {
    let name = |(order, timestamp): (u64, u64)| match order {
        0 => "the beginning".to_owned(),
        order => format!("order:{order} ({})", rfc3339(timestamp)),
    };
    output.line(format!(
        "volume {}, from {} to {}: {} in {} written to",
        arguments.volume,
        name(found.from),
        name(found.to),
        bytes(changed),
        count(found.changed.len() as u64, "extent", "extents")
    ))?;
    if found.sizes.0 != found.sizes.1 {
        let (from, to) = (bytes(found.sizes.0), bytes(found.sizes.1));
        output.line(format!("  the volume had {from}, then {to}"))?;
    }
    for (port, change) in &found.ports {
        output.line(format!(
            "  port {port}: {}, {}",
            count(change.writes, "write", "writes"),
            bytes(change.bytes_written)
        ))?;
    }
    if !found.changed.is_empty() {
        output.line(format!("{:>16} {:>12} {:>5}", "OFFSET", "BYTES", "PORT"))?;
    }
    for extent in &found.changed {
        output.line(format!("{:>16} {:>12} {:>5}", extent.offset, extent.bytes, extent.port))?;
    }
    for gap in &found.gaps {
        output.line(format!(
            "warning: entries of port {} from {} to {} are missing ({}): more may have been written",
            gap.port,
            rfc3339(gap.from),
            rfc3339(gap.to),
            gap.reason
        ))?;
    }
    Ok(())
}
