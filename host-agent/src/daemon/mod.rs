//! `host-agent daemon`: holds a journal, ingests, and does for other commands what only its owner can.
//!
//! | file | job |
//! |---|---|
//! | `owner` | the journal's thread: the journal, and the sessions that it is held in |
//! | `desk` | where threads leave work for it, and what it last saw |
//! | `activity` | ingest, resync and rollback exclude each other |
//! | `ingest` | a replay, on a thread of its own |
//! | `lease` | the journal as an ingest reaches it |
//! | `merging` | merging beside ingest, on a thread of its own |
//! | `control` | the socket and the signals |
//! | `connection` | one client |
//! | `protocol` | what goes over the socket |
//! | `ask` | the client's end |
//!
//! Why the threads are so: `docs/decisions/0060-one-owner.md`.

mod activity;
mod ask;
mod connection;
mod control;
mod desk;
mod ingest;
mod lease;
mod merging;
mod owner;
mod protocol;

pub use activity::Lodger;
pub use ask::{absolute_name, daemon_of, reach, replay, status, Reached};
pub use desk::{say, Desk};
pub use ingest::Listener;
pub use lease::{Begun, Lease};
pub use owner::Held;
pub use protocol::{
    BasedResult, Bookmarked, Command, MergeResult, ResizeResult, ResyncResult, RollBackResult,
};

use crate::arguments::{Arguments, Replay, Size, VolumeFile};
use crate::error::Error;
use crate::output::{count, Output};
use crate::replay::tell_what_was_found;
use clap::{Args, Parser};
use journal::{CreateOptions, Journal, JournalReader};
use merging::Merging;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// `daemon`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Daemon {
    /// The journal
    #[arg(value_name = "JOURNAL")]
    pub journal: PathBuf,
    /// The Unix socket to be asked on; only this user and root may. JOURNAL.sock if not given
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,
    /// Make the journal; it must not exist
    #[arg(long)]
    pub create: bool,
    /// Size of the journal that is made, all of it allocated at once: 64M, 1G
    #[arg(long, value_name = "SIZE", default_value = "256M", requires = "create")]
    pub size: Size,
    /// A volume's base: what the schedule keeps no longer is rolled into it
    #[arg(long, value_name = "VOLUME=FILE")]
    pub base: Vec<VolumeFile>,
    /// What to ingest at once: arguments of `replay`, but --journal, --create and --size
    #[arg(value_name = "REPLAY'S ARGUMENTS", trailing_var_arg = true, allow_hyphen_values = true)]
    pub replay: Vec<OsString>,
}

const EXAMPLES: &str = "\
Examples:
  host-agent daemon j --create --size 256M --capture 0=port0.pcap.gz --primary 1.0=disk.img
  host-agent daemon j                  holds it, and waits to be asked
  host-agent replay --journal j …      runs in the daemon, and prints here
  host-agent daemon j --base 1.0=base.img
                                       and rolls into the base what the schedule keeps no longer
  host-agent status j

It ends at SIGINT or SIGTERM: what is under way is settled, and everything is durable.";

/// Runs the command.
pub fn run(arguments: &Daemon) -> Result<(), Error> {
    let replay = replay_of(arguments)?;
    let bases =
        arguments.base.iter().map(|base| (format!("{}.{}", base.shelf, base.slot), base.file.clone()));
    let holding = Holding {
        journal: &arguments.journal,
        control: arguments.control.as_deref(),
        create: arguments.create.then_some(arguments.size.0),
        bases: bases.collect(),
        recovers: false,
    };
    hold(&holding, |desk, _, output| {
        output.flush()?;
        let Some(replay) = replay else { return Ok(()) };
        let turn = desk.begin(&connection::replaying(&replay));
        let turn = turn.map_err(|_| Error::Failed("the daemon was told to end at once".into()))?;
        ingest::start(desk, turn, replay, Listener::Daemon)
    })
}

/// How a journal is held.
pub struct Holding<'a> {
    /// The journal.
    pub journal: &'a Path,
    /// The control socket, if it isn't the journal's own.
    pub control: Option<&'a Path>,
    /// Make the journal, with so many bytes.
    pub create: Option<u64>,
    /// Bases by the names of their volumes.
    pub bases: Vec<(String, PathBuf)>,
    /// Whoever begins makes good what an unclean stop left.
    pub recovers: bool,
}

/// Holds a journal until it is told to end. `begin` is called when it is held, on the journal's thread.
pub fn hold(
    holding: &Holding<'_>,
    begin: impl FnOnce(&Arc<Desk>, &mut Held, &mut Output) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut output = Output::to(std::io::stdout(), |note| desk::say(note));
    let held = Arc::new(Mutex::new(open(holding, &mut output)?));
    let control = holding.control.map_or_else(|| ask::default_socket(holding.journal), Path::to_owned);
    let listener = nbd::Listener::unix(&control)?;
    let journal_id = JournalReader::open(holding.journal)?.summary().journal_id;
    let (desk, work) = Desk::new(holding.journal, hexadecimal(&journal_id), &control, &held);
    let mut begun = owner::lock(&held);
    let journal = begun.journal()?;
    desk.look_at(journal);
    let mut merging = Merging::start(&desk, holding.bases.clone())?;
    let clients = control::start(&listener, &desk)?;
    output.line(format!(
        "holding {}: session {}, {}; process {}, control socket {}",
        holding.journal.display(),
        journal.opened().session,
        count(journal.end().order, "entry", "entries"),
        std::process::id(),
        control.display()
    ))?;
    begin(&desk, &mut begun, &mut output)?;
    drop(begun);
    output.finish()?;
    owner::serve(&held, &work, &desk, &mut merging);
    // Whoever still waits for this thread hears that it doesn't work any more.
    drop(work);
    let ended = owner::lock(&held).close();
    clients.wait();
    // The socket goes before the journal is free for others: it would be taken for theirs.
    drop(listener);
    ended?;
    match desk.fatal() {
        Some(error) => Err(error),
        None => {
            desk::say(format_args!("{}: ended in order", holding.journal.display()));
            Ok(())
        }
    }
}

fn open(holding: &Holding<'_>, output: &mut Output) -> Result<Held, Error> {
    if let Some(bytes) = holding.create {
        let options = CreateOptions {
            bytes: Some(bytes),
            segment_bytes: None,
            volumes: Vec::new(),
            ports: Vec::new(),
            writer: concat!("host-agent ", env!("CARGO_PKG_VERSION"), " daemon").into(),
        };
        let made = Journal::create(holding.journal, &options).map_err(|error| match error {
            journal::Error::Exists { .. } => Error::JournalHint(error, "leave out --create to go on with it"),
            other => other.into(),
        })?;
        return Held::take_over(made);
    }
    let mut held = Held::open(holding.journal).map_err(|error| match error {
        Error::Journal(error @ journal::Error::Io { .. }) if !holding.journal.exists() => {
            Error::JournalHint(error, "--create makes it")
        }
        other => other,
    })?;
    tell_what_was_found(holding.journal, held.journal()?, holding.recovers, output);
    Ok(held)
}

/// The replay on the daemon's command line, if there is one.
fn replay_of(arguments: &Daemon) -> Result<Option<Replay>, Error> {
    if arguments.replay.is_empty() {
        return Ok(None);
    }
    let words = ["host-agent", "replay"].map(OsString::from).into_iter();
    let journal = [OsString::from("--journal"), arguments.journal.clone().into_os_string()];
    let parsed = Arguments::try_parse_from(words.chain(arguments.replay.iter().cloned()).chain(journal));
    // What clap says it says best itself, in the form and with the exit code of every command.
    match parsed.unwrap_or_else(|error| error.exit()).command {
        crate::arguments::Command::Replay(replay) if replay.create => {
            Err(Error::Misuse("give --create and --size before what is to be replayed".into()))
        }
        crate::arguments::Command::Replay(replay) => Ok(Some(replay)),
        _ => Ok(None),
    }
}

/// As identities are written.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
