//! What came of a replay, for people and for programs.

use super::engine::Measured;
use super::run::{Outcome, PortTotals};
use crate::arguments::{EngineKind, ImagesKind, Replay};
use crate::error::Error;
use crate::output::{count, grouped, Output};
use driver::Counters;
use journal::rfc3339;
use layout::registers::{Counter, CORE_HZ};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::IsTerminal;

/// A port, as `--json` prints it.
#[derive(Serialize)]
struct Port {
    port: usize,
    #[serde(flatten)]
    totals: PortTotals,
    passed: u64,
    journaled: u64,
    duplicates: u64,
    updated: u64,
    refused: u64,
    unknown: u64,
    /// By reason; only those that happened.
    dropped: BTreeMap<&'static str, u64>,
    /// Its clock follows the time base; the software engine's is the time base.
    locked: bool,
}

#[derive(Serialize)]
struct Printed<'a> {
    ports: &'a [Port],
    ignored: u64,
    entries: u64,
    lost: u64,
    first_order: u64,
    last_order: u64,
    first_timestamp: Option<u64>,
    last_timestamp: u64,
    engine: &'static str,
    /// These three are of the card.
    cycles: Option<u64>,
    cycles_per_second: Option<u64>,
    worst_skew_ns: Option<f64>,
    /// Simulated time, from power-up or the beginning.
    simulated_ns: u64,
    writes_per_second: u64,
}

/// Prints it.
pub fn print(arguments: &Replay, outcome: &Outcome, output: &mut Output) -> Result<(), Error> {
    let ports: Vec<Port> = (0..outcome.ports.len()).map(|port| port_of(outcome, port)).collect();
    let recorded = &outcome.recorded;
    let speed = Speed::of(outcome);
    if recorded.lost > 0 {
        output.note(format!(
            "{}: {} didn't fit it before the end, and primary has them: a gap. Make room, then resync each volume",
            arguments.journal.display(),
            count(recorded.lost, "write", "writes")
        ));
    }
    if arguments.json {
        let (cycles, worst_skew_ns) = match outcome.measured {
            Measured::Card { worst_skew_ns, .. } => (Some(outcome.time.end), Some(worst_skew_ns)),
            Measured::Software => (None, None),
        };
        return output.json(&Printed {
            ports: &ports,
            ignored: outcome.ignored,
            entries: recorded.entries,
            lost: recorded.lost,
            first_order: recorded.first_order,
            last_order: recorded.last_order,
            first_timestamp: recorded.first_timestamp,
            last_timestamp: recorded.last_timestamp,
            engine: match arguments.engine {
                EngineKind::Card => "card",
                EngineKind::Verilated => "verilated",
                EngineKind::Soft => "soft",
            },
            cycles,
            cycles_per_second: cycles.map(|_| speed.time_per_second),
            worst_skew_ns,
            simulated_ns: outcome.time.end * cycles.map_or(1, |_| 1_000_000_000 / CORE_HZ),
            writes_per_second: speed.writes_per_second,
        });
    }
    output
        .line("port  frames  writes  journaled  updated  refused  duplicates  offered again  leaf clock")?;
    for port in ports.iter().filter(|port| port.totals.frames > 0) {
        output.line(row(port))?;
    }
    for port in &ports {
        for (reason, number) in &port.dropped {
            output.line(format!("port {}: {} {reason}", port.port, grouped(*number)))?;
        }
    }
    output.line(format!(
        "{} journaled, every one final and durable in {}; {} by targets were not replayed",
        count(recorded.entries, "write", "writes"),
        arguments.journal.display(),
        count(outcome.ignored, "frame", "frames"),
    ))?;
    if let Some(first) = recorded.first_timestamp {
        let (from, to) = (recorded.first_order, recorded.last_order);
        output.line(format!(
            "order:{from} to order:{to}, {} to {}",
            rfc3339(first),
            rfc3339(recorded.last_timestamp)
        ))?;
    }
    output.line(match &outcome.measured {
        Measured::Card { locked, worst_skew_ns } => format!(
            "{} cycles simulated, {} a second; {} of {} leaf clocks locked, worst skew {worst_skew_ns:.3} ns",
            grouped(outcome.time.end),
            grouped(speed.time_per_second),
            locked.iter().filter(|locked| **locked).count(),
            locked.len(),
        ),
        Measured::Software => format!(
            "the software engine: {} ns simulated, {} writes a second",
            grouped(outcome.time.end),
            grouped(speed.writes_per_second),
        ),
    })?;
    hint(arguments, outcome);
    Ok(())
}

/// By the host's clock.
struct Speed {
    /// Of the engine's time.
    time_per_second: u64,
    writes_per_second: u64,
}

impl Speed {
    fn of(outcome: &Outcome) -> Self {
        let rate = |number: u64| (number as f64 / outcome.seconds) as u64;
        let time = outcome.time.end - outcome.time.start;
        Self { time_per_second: rate(time), writes_per_second: rate(outcome.recorded.entries) }
    }
}

fn row(port: &Port) -> String {
    format!(
        "{:>4}  {:>6}  {:>6}  {:>9}  {:>7}  {:>7}  {:>10}  {:>13}  {}",
        port.port,
        port.totals.frames,
        port.totals.writes,
        port.journaled,
        port.updated,
        port.refused,
        port.duplicates,
        port.totals.offered_again,
        if port.locked { "locked" } else { "not locked" },
    )
}

fn port_of(outcome: &Outcome, port: usize) -> Port {
    let counters = &outcome.counters[port];
    let get = |counter| counters.get(counter);
    Port {
        port,
        totals: outcome.ports[port],
        passed: get(Counter::Passed),
        journaled: get(Counter::Journaled),
        duplicates: get(Counter::Duplicate),
        updated: get(Counter::Updated),
        refused: get(Counter::Refused),
        unknown: get(Counter::Unknown),
        dropped: dropped(counters),
        locked: match &outcome.measured {
            Measured::Card { locked, .. } => locked[port],
            Measured::Software => true,
        },
    }
}

fn dropped(counters: &Counters) -> BTreeMap<&'static str, u64> {
    counters
        .iter()
        .filter(|(counter, number)| counter.name().starts_with("dropped-") && *number > 0)
        .map(|(counter, number)| (counter.name(), number))
        .collect()
}

/// What one may want to do next; for people in front of a terminal only.
fn hint(arguments: &Replay, outcome: &Outcome) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    let journal = arguments.journal.display();
    let order = (outcome.recorded.first_order + outcome.recorded.last_order) / 2;
    let volume = arguments.primary.first().map_or_else(String::new, |p| format!("{}.{}", p.shelf, p.slot));
    eprintln!("\nnext:  host-agent log {journal}");
    eprintln!("       host-agent verify {journal}");
    let backing = match arguments.images {
        ImagesKind::After => "--base BASE".to_owned(),
        _ => {
            let file = arguments.primary.first().map_or_else(String::new, |p| p.file.display().to_string());
            format!("--primary {file}")
        }
    };
    eprintln!("       host-agent restore {journal} --volume {volume} {backing} --at order:{order} --to OUT");
}
