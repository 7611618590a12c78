//! `host-agent verify`: proves a journal from nothing but itself.

use crate::arguments::Verify;
use crate::error::Error;
use crate::output::{bytes, count, Output};
use crate::progress::{bar, Unit};
use journal::verify::{verify, Finding, Report};
use serde::Serialize;

/// The report, as `--json` prints it.
#[derive(Serialize)]
struct Printed {
    sound: bool,
    entries: u64,
    completions: u64,
    gaps: u64,
    markers: u64,
    pending: u64,
    order: u64,
    durable_order: u64,
    batches: u64,
    segments: u64,
    sealed: u64,
    sessions: u64,
    unclean_sessions: u64,
    ended: bool,
    bytes_checked: u64,
    payload_bytes: u64,
    findings: Vec<Place>,
    more_findings: u64,
    torn_tail: Option<Place>,
}

#[derive(Serialize)]
struct Place {
    offset: u64,
    what: String,
}

impl From<&Finding> for Place {
    fn from(finding: &Finding) -> Self {
        Self { offset: finding.offset, what: finding.what.clone() }
    }
}

/// Runs the command.
pub fn run(arguments: &Verify) -> Result<(), Error> {
    let bar = bar("verifying", Unit::Bytes);
    let report = verify(&arguments.journal, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let report = report?;
    let name = arguments.journal.display().to_string();
    let mut output = Output::new();
    if arguments.json {
        output.json(&as_json(&report))?;
    } else {
        print(&name, &report, &mut output)?;
    }
    output.finish()?;
    match report.findings.first() {
        None => Ok(()),
        Some(first) => Err(Error::File {
            file: name,
            what: format!(
                "{}, the first at offset {}: {}",
                count(report.findings.len() as u64 + report.more_findings, "defect", "defects"),
                first.offset,
                first.what
            ),
        }),
    }
}

fn print(name: &str, report: &Report, output: &mut Output) -> Result<(), Error> {
    for finding in &report.findings {
        output.line(format!("{name}: offset {}: {}", finding.offset, finding.what))?;
    }
    if report.more_findings > 0 {
        output.line(format!("{name}: and {} more", report.more_findings))?;
    }
    if report.is_sound() {
        output.line(format!("{name}: sound"))?;
    }
    output.line(format!(
        "  checked   {} in use: {}, {} ({} sealed), {} (of those {} not ended in order)",
        bytes(report.bytes_checked),
        count(report.batches, "batch", "batches"),
        count(report.segments, "segment", "segments"),
        report.sealed,
        count(report.sessions, "session", "sessions"),
        report.unclean_sessions,
    ))?;
    output.line(format!(
        "  holds     {} (order 1 to {}), {}, {}, {} of payload, every CRC right",
        count(report.entries, "entry", "entries"),
        report.order,
        count(report.completions, "completion", "completions"),
        count(report.gaps, "gap", "gaps"),
        bytes(report.payload_bytes),
    ))?;
    output.line(format!(
        "  durable   up to order {}; {} without an answer; the last session {}",
        report.durable_order,
        count(report.pending, "entry", "entries"),
        if report.ended { "ended in order" } else { "has not ended in order" },
    ))?;
    if let Some(torn) = &report.torn_tail {
        output.line(format!(
            "  torn tail at offset {}: {}; it was never reported durable, and the next owner cuts it off",
            torn.offset, torn.what
        ))?;
    }
    Ok(())
}

fn as_json(report: &Report) -> Printed {
    Printed {
        sound: report.is_sound(),
        entries: report.entries,
        completions: report.completions,
        gaps: report.gaps,
        markers: report.markers,
        pending: report.pending,
        order: report.order,
        durable_order: report.durable_order,
        batches: report.batches,
        segments: report.segments,
        sealed: report.sealed,
        sessions: report.sessions,
        unclean_sessions: report.unclean_sessions,
        ended: report.ended,
        bytes_checked: report.bytes_checked,
        payload_bytes: report.payload_bytes,
        findings: report.findings.iter().map(Place::from).collect(),
        more_findings: report.more_findings,
        torn_tail: report.torn_tail.as_ref().map(Place::from),
    }
}
