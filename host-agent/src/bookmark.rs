//! `host-agent bookmark`: named moments.

use crate::error::Error;
use crate::output::Output;
use clap::{Args, Subcommand};
use journal::{rfc3339, Journal, JournalReader, Moment, When};
use serde::Serialize;
use std::path::PathBuf;

/// `bookmark`.
#[derive(Debug, Subcommand)]
pub enum Bookmark {
    /// Name a moment
    ///
    /// Durable when the command ends. To have a moment at which a file system is at rest:
    ///   fsfreeze -f /srv && host-agent bookmark add j before-migration; fsfreeze -u /srv
    Add(Add),
    /// List the bookmarks
    List(List),
    /// Forget a bookmark; the moment stays
    Remove(Remove),
}

/// `bookmark add`.
#[derive(Debug, Args)]
pub struct Add {
    /// The journal
    #[arg(value_name = "JOURNAL")]
    pub journal: PathBuf,
    /// The name, up to 64 bytes
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The moment: order:N, RFC 3339, -15m, ns since 1970, end
    #[arg(long, value_name = "WHEN", default_value = "end", allow_hyphen_values = true)]
    pub at: When,
}

/// `bookmark list`.
#[derive(Debug, Args)]
pub struct List {
    /// The journal
    #[arg(value_name = "JOURNAL")]
    pub journal: PathBuf,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// `bookmark remove`.
#[derive(Debug, Args)]
pub struct Remove {
    /// The journal
    #[arg(value_name = "JOURNAL")]
    pub journal: PathBuf,
    /// The name
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// One bookmark, as `--json` prints it.
#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    order: u64,
    timestamp: u64,
    created: u64,
}

const WRITER: &str = concat!("host-agent ", env!("CARGO_PKG_VERSION"), " bookmark");

/// Runs the command.
pub fn run(command: &Bookmark) -> Result<(), Error> {
    match command {
        Bookmark::Add(arguments) => add(arguments),
        Bookmark::List(arguments) => list(arguments),
        Bookmark::Remove(arguments) => {
            // Looked for first: opening the journal for nothing would leave a session in it.
            JournalReader::open(&arguments.journal)?.tables().bookmark(&arguments.name)?;
            let mut journal = Journal::open_ports_closed(&arguments.journal, WRITER)?;
            journal.remove_bookmark(&arguments.name)?;
            journal.close()?;
            Ok(())
        }
    }
}

fn add(arguments: &Add) -> Result<(), Error> {
    let reader = JournalReader::open(&arguments.journal)?;
    if reader.tables().bookmark(&arguments.name).is_ok() {
        let what = format!("there is a bookmark {} already; remove it first", arguments.name);
        return Err(Error::Journal(journal::Error::Invalid(what)));
    }
    let moment = arguments.at.resolve(reader.tables())?;
    let (order, timestamp) = reader.entry_at(moment)?;
    let mut journal = Journal::open_ports_closed(&arguments.journal, WRITER)?;
    // `end` is what the owner finds, not what the reader found before it.
    let (order, timestamp) = match moment {
        Moment::End => (journal.end().order, journal.end().timestamp),
        _ => (order, timestamp),
    };
    let added = journal.add_bookmark(&arguments.name, order, timestamp);
    let closed = journal.close();
    added?;
    closed?;
    let mut output = Output::new();
    output.line(format!("{}: just after order:{order} ({})", arguments.name, rfc3339(timestamp)))?;
    output.finish()
}

fn list(arguments: &List) -> Result<(), Error> {
    let reader = JournalReader::open(&arguments.journal)?;
    let mut output = Output::new();
    for bookmark in &reader.tables().bookmarks {
        if arguments.json {
            let journal::Bookmark { name, order, timestamp, created } = bookmark;
            output.json(&Line { name, order: *order, timestamp: *timestamp, created: *created })?;
        } else {
            let order = format!("order:{}", bookmark.order);
            output.line(format!("{order:<16} {:<32} {}", rfc3339(bookmark.timestamp), bookmark.name))?;
        }
    }
    output.finish()
}
