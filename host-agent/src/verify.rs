//! `host-agent verify`: proves a journal from nothing but itself, and an image of it.

use crate::arguments::Verify;
use crate::error::Error;
use crate::output::{bytes, count, Output};
use crate::progress::{bar, Unit};
use journal::image::Backing;
use journal::verify::{image, verify, Finding, ImageReport, Report};
use journal::{JournalReader, When};
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
    windows: u64,
    merged_entries: u64,
    merged_bytes: u64,
    first_order: u64,
    history_from: u64,
    /// What was proved of an image, if one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<PrintedImage>,
}

/// The proof of an image, as `--json` prints it.
#[derive(Serialize)]
struct PrintedImage {
    volume: String,
    same: bool,
    order: u64,
    bytes: u64,
    sha256: String,
    entries: u64,
    mapped_sectors: u64,
    doubtful_sectors: u64,
    findings: Vec<Place>,
    more_findings: u64,
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
    let name = arguments.journal.display().to_string();
    let (report, proof) = match &arguments.image {
        None => (prove(arguments)?, None),
        Some(when) => {
            let proof = prove_image(arguments, when)?;
            (proof.journal.clone(), Some(proof))
        }
    };
    // Where the journal is damaged, nothing was compared.
    let proof = proof.filter(|_| report.is_sound());
    let mut output = Output::new();
    if arguments.json {
        let mut printed = as_json(&report);
        printed.image = proof.as_ref().map(|proof| image_as_json(arguments, proof));
        output.json(&printed)?;
    } else {
        print(&name, &report, &mut output)?;
        if let Some(proof) = &proof {
            print_image(arguments, proof, &mut output)?;
        }
    }
    output.finish()?;
    if let Some(first) = report.findings.first() {
        return Err(failed(name, first, report.findings.len() as u64 + report.more_findings));
    }
    match proof.as_ref().and_then(|proof| Some((proof, proof.findings.first()?))) {
        None => Ok(()),
        Some((proof, first)) => {
            let what = format!("the image of volume {}", arguments.volume.as_deref().unwrap_or_default());
            Err(failed(what, first, proof.findings.len() as u64 + proof.more_findings))
        }
    }
}

fn failed(file: String, first: &Finding, findings: u64) -> Error {
    let (many, offset) = (count(findings, "defect", "defects"), first.offset);
    Error::File { file, what: format!("{many}, the first at offset {offset}: {}", first.what) }
}

fn prove(arguments: &Verify) -> Result<Report, Error> {
    let bar = bar("verifying", Unit::Bytes);
    let report = verify(&arguments.journal, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    Ok(report?)
}

fn prove_image(arguments: &Verify, when: &When) -> Result<ImageReport, Error> {
    let backing = match (&arguments.base, &arguments.primary) {
        (Some(base), None) => Backing::Base(base),
        (None, Some(primary)) => Backing::Primary(primary),
        _ => return Err(Error::Misuse("an image is made over something: give --base or --primary".into())),
    };
    let Some(volume) = &arguments.volume else {
        return Err(Error::Misuse("an image is one of a volume: give --volume".into()));
    };
    let at = when.resolve(JournalReader::open(&arguments.journal)?.tables())?;
    let bar = bar("verifying", Unit::Bytes);
    let proof = image(&arguments.journal, volume, at, backing, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    Ok(proof?)
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
        "  holds     {} (order {} to {}), {}, {}, {} of payload, every CRC right",
        count(report.entries, "entry", "entries"),
        report.first_order.max(1),
        report.order,
        count(report.completions, "completion", "completions"),
        count(report.gaps, "gap", "gaps"),
        bytes(report.payload_bytes),
    ))?;
    if report.windows > 0 {
        output.line(format!(
            "  merged    {} in {}, {} of payload",
            count(report.merged_entries, "entry", "entries"),
            count(report.windows, "window", "windows"),
            bytes(report.merged_bytes),
        ))?;
    }
    if report.history_from > 0 {
        let from = journal::rfc3339(report.history_from);
        output.line(format!("  history   begins behind {from}; moments before that are gone"))?;
    }
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

fn print_image(arguments: &Verify, proof: &ImageReport, output: &mut Output) -> Result<(), Error> {
    let volume = arguments.volume.as_deref().unwrap_or_default();
    for finding in &proof.findings {
        output.line(format!("volume {volume}: byte {}: {}", finding.offset, finding.what))?;
    }
    if proof.more_findings > 0 {
        output.line(format!("volume {volume}: and {} more", proof.more_findings))?;
    }
    if proof.findings.is_empty() {
        output.line(format!("volume {volume} just after order:{}: proved", proof.order))?;
    }
    output.line(format!(
        "  compared  {}, every byte, with what was made from {}; {} from the journal",
        bytes(proof.bytes),
        count(proof.entries, "entry", "entries"),
        count(proof.mapped_sectors, "sector", "sectors"),
    ))?;
    output.line(format!("  sha256    {}", hex(&proof.sha256)))?;
    output.line(format!(
        "  doubtful  {}: nobody knows whether the target executed the write that they come from",
        count(proof.doubtful_sectors, "sector", "sectors"),
    ))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn places(findings: &[Finding]) -> Vec<Place> {
    findings.iter().map(Place::from).collect()
}

fn image_as_json(arguments: &Verify, proof: &ImageReport) -> PrintedImage {
    PrintedImage {
        volume: arguments.volume.clone().unwrap_or_default(),
        same: proof.findings.is_empty(),
        order: proof.order,
        bytes: proof.bytes,
        sha256: hex(&proof.sha256),
        entries: proof.entries,
        mapped_sectors: proof.mapped_sectors,
        doubtful_sectors: proof.doubtful_sectors,
        findings: places(&proof.findings),
        more_findings: proof.more_findings,
    }
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
        findings: places(&report.findings),
        more_findings: report.more_findings,
        torn_tail: report.torn_tail.as_ref().map(Place::from),
        windows: report.windows,
        merged_entries: report.merged_entries,
        merged_bytes: report.merged_bytes,
        first_order: report.first_order,
        history_from: report.history_from,
        image: None,
    }
}
