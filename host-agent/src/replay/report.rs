//! What came of a replay, for people and for programs.

use super::run::{Outcome, PortTotals};
use crate::arguments::Replay;
use crate::error::Error;
use crate::output::{count, grouped, Output};
use driver::Counters;
use journal::rfc3339;
use layout::registers::Counter;
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
    cycles: u64,
    cycles_per_second: u64,
    worst_skew_ns: f64,
}

/// Prints it.
pub fn print(arguments: &Replay, outcome: &Outcome, output: &mut Output) -> Result<(), Error> {
    let ports: Vec<Port> = (0..outcome.ports.len()).map(|port| port_of(outcome, port)).collect();
    let recorded = &outcome.recorded;
    if recorded.lost > 0 {
        output.note(format!(
            "{}: {} didn't fit it before the end, and primary has them: a gap. Make room, then resync each volume",
            arguments.journal.display(),
            count(recorded.lost, "write", "writes")
        ));
    }
    if arguments.json {
        return output.json(&Printed {
            ports: &ports,
            ignored: outcome.ignored,
            entries: recorded.entries,
            lost: recorded.lost,
            first_order: recorded.first_order,
            last_order: recorded.last_order,
            first_timestamp: recorded.first_timestamp,
            last_timestamp: recorded.last_timestamp,
            cycles: outcome.cycles,
            cycles_per_second: outcome.cycles_per_second as u64,
            worst_skew_ns: outcome.worst_skew_ns,
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
    let locked = ports.iter().filter(|port| port.locked).count();
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
    output.line(format!(
        "{} cycles simulated, {} a second; {locked} of {} leaf clocks locked, worst skew {:.3} ns",
        grouped(outcome.cycles),
        grouped(outcome.cycles_per_second as u64),
        ports.len(),
        outcome.worst_skew_ns,
    ))?;
    hint(arguments, outcome);
    Ok(())
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
        locked: outcome.clocks[port].locked,
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
    eprintln!(
        "       host-agent restore {journal} --volume {volume} --base BASE --at order:{order} --to OUT"
    );
}
