//! `host-agent image create`, `list` and `remove`: images with a name, whose moments merging keeps.

use crate::arguments::OwnerArguments;
use crate::bookmark::place;
use crate::daemon::{self, Bookmarked, Reached};
use crate::error::Error;
use crate::output::Output;
use clap::Args;
use indicatif::ProgressBar;
use journal::{rfc3339, Journal, JournalReader, Moment, When};
use serde::Serialize;
use std::path::PathBuf;

/// `image create`.
#[derive(Debug, Args)]
pub struct Create {
    /// The journal
    #[arg(value_name = "JOURNAL")]
    pub journal: PathBuf,
    /// The name, up to 64 bytes
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The volume, shelf.slot
    #[arg(long, value_name = "VOLUME")]
    pub volume: String,
    /// The moment: order:N, RFC 3339, -15m, bookmark:NAME, image:NAME, ns since 1970, end
    #[arg(long, value_name = "WHEN", default_value = "end", allow_hyphen_values = true)]
    pub at: When,
    /// Control socket of the daemon that holds the journal; JOURNAL.sock if not given
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,
}

/// `image list`.
#[derive(Debug, Args)]
pub struct List {
    /// The journal
    #[arg(value_name = "JOURNAL")]
    pub journal: PathBuf,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// `image remove`.
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

/// One image, as `--json` prints it. The field names are an interface: add, don't change.
#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    volume: String,
    order: u64,
    timestamp: u64,
    created: u64,
    /// Is its moment still there? The schedule may have given up all that old.
    there: bool,
}

const WRITER: &str = concat!("host-agent ", env!("CARGO_PKG_VERSION"), " image");

/// Runs `image create`.
pub fn create(arguments: &Create) -> Result<(), Error> {
    let Create { journal: path, name, volume, at, control } = arguments;
    // What can't be meant is refused before the journal is opened for writing: that would leave a session in it.
    let reader = JournalReader::open(path)?;
    if reader.tables().image(name).is_ok() {
        let what = format!("there is an image {name} already; remove it first");
        return Err(Error::Journal(journal::Error::Invalid(what)));
    }
    reader.tables().volume(volume)?;
    let moment = at.resolve(reader.tables())?;
    drop(reader);
    let place = place(path, moment)?;
    let Bookmarked { order, timestamp } =
        match daemon::reach(path, &OwnerArguments::at(control.as_ref()), WRITER)? {
            Reached::Own(mut owned) => {
                let made = add_to(&mut owned, name, volume, place);
                let closed = owned.close();
                let made = made?;
                closed?;
                made
            }
            Reached::Daemon(mut asking) => {
                let (name, volume, at) = (name.clone(), volume.clone(), moment.to_string());
                asking.ask(daemon::Command::ImageCreate { name, volume, at }, &ProgressBar::hidden())?
            }
        };
    let mut output = Output::new();
    output.line(format!("{name}: volume {volume} just after order:{order} ({})", rfc3339(timestamp)))?;
    output.finish()
}

/// Names it, durably. `None`: at the end, which is what the owner finds, not what a reader found before it.
pub fn add_to(
    journal: &mut Journal,
    name: &str,
    volume: &str,
    place: Option<Bookmarked>,
) -> Result<Bookmarked, Error> {
    // What it names first: an image of entries that a crash takes would be another later.
    journal.sync()?;
    let end = journal.end();
    let added = place.unwrap_or(Bookmarked { order: end.order, timestamp: end.timestamp });
    journal.add_image(name, volume, added.order, added.timestamp)?;
    Ok(added)
}

/// Runs `image list`.
pub fn list(arguments: &List) -> Result<(), Error> {
    let reader = JournalReader::open(&arguments.journal)?;
    let mut output = Output::new();
    for image in &reader.tables().images {
        let volume = reader.tables().volume_at(image.volume).map(|volume| volume.name());
        let volume = volume.unwrap_or_else(|| format!("#{}", image.volume));
        let there = reader.has_moment(Moment::Order(image.order)).is_ok();
        if arguments.json {
            let journal::NamedImage { name, order, timestamp, created, .. } = image;
            output.json(&Line {
                name,
                volume,
                order: *order,
                timestamp: *timestamp,
                created: *created,
                there,
            })?;
        } else {
            let order = format!("order:{}", image.order);
            let gone = if there { "" } else { "  (gone: older than the schedule keeps)" };
            output.line(format!(
                "{order:<16} {:<32} {volume:<10} {}{gone}",
                rfc3339(image.timestamp),
                image.name
            ))?;
        }
    }
    output.finish()
}

/// Runs `image remove`.
pub fn remove(arguments: &Remove) -> Result<(), Error> {
    let Remove { journal, name, control } = arguments;
    // Looked for first: opening the journal for nothing would leave a session in it.
    JournalReader::open(journal)?.tables().image(name)?;
    match daemon::reach(journal, &OwnerArguments::at(control.as_ref()), WRITER)? {
        Reached::Own(mut owned) => {
            owned.remove_image(name)?;
            owned.close()?;
            Ok(())
        }
        Reached::Daemon(mut asking) => {
            asking.ask(daemon::Command::ImageRemove { name: name.clone() }, &ProgressBar::hidden())
        }
    }
}
