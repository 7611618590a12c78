//! `host-agent bookmark`: named moments.

use crate::arguments::OwnerArguments;
use crate::daemon::{self, Bookmarked, Reached};
use crate::error::Error;
use crate::output::Output;
use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use journal::{rfc3339, Journal, JournalReader, Moment, When};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// `bookmark`.
#[derive(Debug, Subcommand)]
pub enum Bookmark {
    /// Name a moment
    ///
    /// Durable when the command ends. `end` is the last entry that the journal has. To have a moment at which a file system is at rest:
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
    /// Control socket of the daemon that holds the journal; JOURNAL.sock if not given
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,
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
    /// Control socket of the daemon that holds the journal; JOURNAL.sock if not given
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,
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
        Bookmark::Remove(arguments) => remove(arguments),
    }
}

fn add(arguments: &Add) -> Result<(), Error> {
    let reader = JournalReader::open(&arguments.journal)?;
    if reader.tables().bookmark(&arguments.name).is_ok() {
        let what = format!("there is a bookmark {} already; remove it first", arguments.name);
        return Err(Error::Journal(journal::Error::Invalid(what)));
    }
    let moment = arguments.at.resolve(reader.tables())?;
    drop(reader);
    let place = place(&arguments.journal, moment)?;
    let name = arguments.name.clone();
    let Bookmarked { order, timestamp } = match reach(&arguments.journal, &arguments.control)? {
        Reached::Own(mut journal) => {
            let added = add_to(&mut journal, &name, place)?;
            journal.close()?;
            added
        }
        Reached::Daemon(mut asking) => {
            let command = daemon::Command::BookmarkAdd { name, at: moment.to_string() };
            asking.ask(command, &ProgressBar::hidden())?
        }
    };
    let mut output = Output::new();
    output.line(format!("{}: just after order:{order} ({})", arguments.name, rfc3339(timestamp)))?;
    output.finish()
}

fn remove(arguments: &Remove) -> Result<(), Error> {
    // Looked for first: opening the journal for nothing would leave a session in it.
    JournalReader::open(&arguments.journal)?.tables().bookmark(&arguments.name)?;
    let name = arguments.name.clone();
    match reach(&arguments.journal, &arguments.control)? {
        Reached::Own(mut journal) => {
            remove_from(&mut journal, &name)?;
            journal.close()?;
            Ok(())
        }
        Reached::Daemon(mut asking) => {
            asking.ask(daemon::Command::BookmarkRemove { name }, &ProgressBar::hidden())
        }
    }
}

fn reach(journal: &Path, control: &Option<PathBuf>) -> Result<Reached, Error> {
    daemon::reach(journal, &OwnerArguments { control: control.clone(), wait: false }, WRITER)
}

/// Where a moment lies, read beside the owner. `None`: at the end, which is the owner's to say.
pub fn place(journal: &Path, moment: Moment) -> Result<Option<Bookmarked>, Error> {
    if moment == Moment::End {
        return Ok(None);
    }
    let (order, timestamp) = JournalReader::open(journal)?.entry_at(moment)?;
    Ok(Some(Bookmarked { order, timestamp }))
}

/// Names it, durably.
pub fn add_to(journal: &mut Journal, name: &str, place: Option<Bookmarked>) -> Result<Bookmarked, Error> {
    // What it names first: a bookmark of entries that a crash takes would name others later.
    journal.sync()?;
    let end = journal.end();
    let added = place.unwrap_or(Bookmarked { order: end.order, timestamp: end.timestamp });
    journal.add_bookmark(name, added.order, added.timestamp)?;
    Ok(added)
}

/// Forgets it, durably.
pub fn remove_from(journal: &mut Journal, name: &str) -> Result<(), Error> {
    Ok(journal.remove_bookmark(name)?)
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
