//! `host-agent log --merged`: the windows that have been merged, and who was complete in them (claim 15).

use crate::error::Error;
use crate::log::{Place, Range};
use crate::output::{bytes, Output};
use journal::{rfc3339, span_text, JournalReader, ListedWindow};
use serde::Serialize;

/// One window, as `--json` prints it. The field names are an interface: add, don't change.
#[derive(Serialize)]
struct Line {
    level: usize,
    /// Length of the level's windows, ns.
    window: u64,
    /// Stamp behind which it begins, and that of its end.
    from: u64,
    from_time: String,
    to: u64,
    to_time: String,
    first_order: u64,
    /// `order:N` of it is the moment that is left.
    last_order: u64,
    first_timestamp: u64,
    last_timestamp: u64,
    /// Merged entries, and bytes of their images.
    entries: u64,
    bytes: u64,
    ports: Vec<Port>,
}

#[derive(Serialize)]
struct Port {
    port: u8,
    /// Up to the window's end.
    complete: bool,
}

const HEADING: &str =
    "  WINDOW           ORDERS  FROM                            TO                              ENTRIES        BYTES  COMPLETE";

/// Lists those that touch the range.
pub fn run(reader: &JournalReader, range: &Range, json: bool) -> Result<(), Error> {
    let mut output = Output::new();
    if !json {
        output.line(HEADING)?;
    }
    let mut listed = false;
    for window in reader.windows()? {
        let window = window?;
        if range.place(window.last_order, window.last_timestamp) == Place::Before {
            continue;
        }
        if range.place(window.first_order, window.first_timestamp) == Place::After {
            break;
        }
        listed = true;
        match json {
            true => output.json(&line(window))?,
            false => output.line(table_row(&window))?,
        }
    }
    output.finish()?;
    if !listed && !json {
        eprintln!("note: there are no merged windows there");
    }
    Ok(())
}

fn line(window: ListedWindow) -> Line {
    Line {
        level: window.level,
        window: window.length,
        from: window.from,
        from_time: rfc3339(window.from),
        to: window.to,
        to_time: rfc3339(window.to),
        first_order: window.first_order,
        last_order: window.last_order,
        first_timestamp: window.first_timestamp,
        last_timestamp: window.last_timestamp,
        entries: window.entries,
        bytes: window.bytes,
        ports: window.ports.into_iter().map(|(port, complete)| Port { port, complete }).collect(),
    }
}

fn table_row(window: &ListedWindow) -> String {
    let list = |complete: bool| {
        let ports = window.ports.iter().filter(|(_, is)| *is == complete).map(|(port, _)| port.to_string());
        ports.collect::<Vec<_>>().join(",")
    };
    let (complete, not) = (list(true), list(false));
    let validity = match (complete.as_str(), not.as_str()) {
        (complete, "") => complete.to_owned(),
        ("", not) => format!("none; not {not}"),
        (complete, not) => format!("{complete}; not {not}"),
    };
    format!(
        "{:>8}  {:>15}  {:<30}  {:<30}  {:>7}  {:>11}  {}",
        span_text(window.length),
        format!("{}-{}", window.first_order, window.last_order),
        rfc3339(window.from),
        rfc3339(window.to),
        window.entries,
        bytes(window.bytes),
        validity
    )
}
