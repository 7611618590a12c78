//! `host-agent replay`: captures → the simulated card, or the switch in software → the journal.
//!
//! | file | job |
//! |---|---|
//! | `events` | captures as one stream: what sources sent, and which writes had been answered |
//! | `primary` | the images, and their volumes in the journal |
//! | `flight` | what is under way in the engine; what has to be offered again |
//! | `engine` | what frames go through, as the loop sees it: a trait |
//! | `card` | the simulated card behind its driver as an engine |
//! | `software` | the switch in software as an engine: simulated time, wires, target |
//! | `run` | the loop: offer, let something happen, take answers and records |
//! | `recorder` | records → order → journal → durable |
//! | `backlog` | records that the journal has no room for |
//! | `ledger` | the journal, its own or a daemon's |
//! | `report` | what came of it |

mod backlog;
mod card;
mod engine;
mod events;
mod flight;
mod ledger;
mod primary;
mod recorder;
mod report;
mod run;
mod software;

use crate::arguments::{EngineKind, Replay};
use crate::daemon;
use crate::error::Error;
use crate::output::{count, Output};
use crate::progress::{bar, Unit};
use ::engine::frame::{PortRules, VolumeTable};
use ::engine::switch::Images;
use card::CardEngine;
pub use engine::Rings;
use events::Events;
use flight::{Flight, Limits, Served};
use indicatif::ProgressBar;
use journal::{CreateOptions, Journal, JournalReader, Port, PortKind, PreviousEnd, Tables, Volume};
pub use ledger::Ledger;
pub use primary::{open as primary_open, Primary};
pub use recorder::{Anything, Beside, Expected, Recorder};
use run::Run;
use sim::target::VbladeModel;
use software::SoftwareEngine;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Name and version, for the journal's session record.
pub const WRITER: &str = concat!("host-agent replay ", env!("CARGO_PKG_VERSION"));
/// Bytes of a port's store-and-forward buffer in the standard configuration (`hdl::card`), less a
/// margin for the word that is being read and the frame that is being checked.
const PORT_BUFFER_BYTES: usize = 16 * 1024 - 64;
/// The arbiter of either engine: a journal goes on with the other.
pub const ARBITER: u16 = 0;
/// Ports of either engine.
const PORTS: usize = sim::PORTS;

/// Where a session begins: everything that it stamps and numbers is above what the journal has.
pub struct Beginning {
    /// Number of the session.
    pub session: u64,
    /// Time of day, ns since the Unix epoch.
    pub time: u64,
    /// Stamps are above it.
    pub stamp_floor: u64,
    /// The arbiter's numbers are above it.
    pub number_floor: u64,
}

/// Runs the command.
pub fn run(arguments: &Replay) -> Result<(), Error> {
    let mut output = Output::new();
    let bar = bar("replaying", Unit::Of("frames"));
    let own = |primaries: &[Primary], output: &mut Output| -> Result<Box<dyn Ledger>, Error> {
        Ok(Box::new(open_journal(arguments, primaries, output)?))
    };
    match into(arguments, own, bar, &mut output) {
        Err(Error::Journal(locked @ journal::Error::Locked { .. })) => daemon::replay(arguments, locked),
        result => result,
    }
}

/// Replays into the journal that `open` gives for the images.
pub fn into(
    arguments: &Replay,
    open: impl FnOnce(&[Primary], &mut Output) -> Result<Box<dyn Ledger>, Error>,
    bar: ProgressBar,
    output: &mut Output,
) -> Result<(), Error> {
    check_ports(arguments)?;
    check_engine(arguments)?;
    let images = Images::from(arguments.images);
    // Everything that is read is looked at before anything is written.
    let survey = events::survey(&arguments.capture, |frames| bar.inc_length(frames))?;
    bar.set_length(survey.frames.iter().sum());
    let primaries = primary::open(&arguments.primary)?;
    let ledger = open(&primaries, output)?;
    let table = primary::card_table(&ledger.tables().volumes)?;
    let beginning = beginning(&*ledger);
    let served = primaries.iter().map(Primary::served).collect::<Result<Vec<_>, _>>()?;
    let target = VbladeModel::new(served).with_answer_cycles(arguments.answer_after);
    let limits = Limits {
        window: arguments.window.into(),
        buffer_bytes: (!arguments.burst).then_some(PORT_BUFFER_BYTES),
    };
    let volumes = VolumeTable::new(&table).unwrap_or_default();
    let allowed = primary::mask(&primaries, &table);
    let rules = PortRules { volumes, allowed, writes_open: true };
    let served = primaries.iter().map(|p| Served { shelf: p.shelf, slot: p.slot, sectors: p.sectors });
    let run = Run {
        flight: Flight::new(PORTS, limits, rules, served.collect(), images),
        recorder: Recorder::new(ledger, PORTS),
        events: Events::new(&arguments.capture, &survey)?,
        arguments,
        bar,
        output,
        totals: Default::default(),
    };
    let result = match arguments.engine {
        EngineKind::Card | EngineKind::Verilated => {
            run.until_settled(CardEngine::bring_up(arguments, target, images, &table, allowed, &beginning)?)
        }
        EngineKind::Soft => {
            run.until_settled(SoftwareEngine::new(target, images, &table, allowed, &beginning)?)
        }
    }?;
    for primary in &primaries {
        primary.file.sync_all().map_err(|e| Error::io(primary.name.as_ref(), "making it durable", e))?;
    }
    report::print(arguments, &result, output)?;
    output.flush()
}

fn check_ports(arguments: &Replay) -> Result<(), Error> {
    let mut ports = HashSet::new();
    match arguments.capture.iter().find(|capture| !ports.insert(capture.port)) {
        Some(twice) => Err(Error::Misuse(format!("--capture names port {} twice", twice.port))),
        None => Ok(()),
    }
}

fn check_engine(arguments: &Replay) -> Result<(), Error> {
    let wrong = |what: &str| Err(Error::Misuse(what.into()));
    match arguments.engine {
        EngineKind::Soft if arguments.vcd.is_some() => {
            wrong("--vcd needs --engine card: the software engine has no signals to write down")
        }
        EngineKind::Verilated if arguments.vcd.is_some() => {
            wrong("--vcd needs --engine card: the compiled card doesn't show its signals")
        }
        _ => Ok(()),
    }
}

/// The engine's ports, as the journal knows them.
pub fn ports(arguments: &Replay) -> Vec<Port> {
    let (kind, name) = match arguments.engine {
        EngineKind::Card | EngineKind::Verilated => (PortKind::Card, "simulated card"),
        EngineKind::Soft => (PortKind::Software, "software engine"),
    };
    let port = |port| Port { port, kind, arbiter: ARBITER, name: format!("{name}, port {port}") };
    (0..PORTS).map(|index| port(index as u8)).collect()
}

/// The journal's volumes for this replay, if it can go into a journal that has `tables`, and volumes of these sizes.
pub fn volumes(
    arguments: &Replay,
    primaries: &[Primary],
    tables: &Tables,
    sectors: &BTreeMap<u16, u64>,
) -> Result<Vec<Volume>, Error> {
    let volumes = primary::volumes(primaries, tables, sectors, &arguments.journal, arguments.images.into())?;
    primary::card_table(&volumes)?;
    Ok(volumes)
}

fn open_journal(arguments: &Replay, primaries: &[Primary], output: &mut Output) -> Result<Journal, Error> {
    if arguments.create {
        let options = CreateOptions {
            bytes: Some(arguments.size.0),
            segment_bytes: None,
            volumes: volumes(arguments, primaries, &Tables::default(), &BTreeMap::new())?,
            ports: ports(arguments),
            writer: WRITER.into(),
        };
        return Journal::create(&arguments.journal, &options).map_err(|error| match error {
            journal::Error::Exists { .. } => Error::JournalHint(error, "leave out --create to go on with it"),
            other => other.into(),
        });
    }
    // Looked at first: opening begins a session, and one that doesn't end in order leaves a gap.
    if let Ok(reader) = JournalReader::open(&arguments.journal) {
        volumes(arguments, primaries, reader.tables(), &reader.sectors_now()?)?;
    }
    let mut journal = Journal::open(&arguments.journal, WRITER).map_err(|error| match &error {
        journal::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Error::JournalHint(error, "--create makes it")
        }
        _ => error.into(),
    })?;
    tell_what_was_found(&arguments.journal, &journal, false, output);
    let sectors = JournalReader::open(&arguments.journal)?.sectors_now()?;
    let volumes = volumes(arguments, primaries, journal.tables(), &sectors)?;
    journal.set_volumes(&volumes)?;
    journal.set_ports(&ports(arguments))?;
    Ok(journal)
}

/// What opening found and did goes to the one who has to know: nothing of it is an error.
/// `recovers`: whoever asked makes good what an unclean stop left, and says so.
pub fn tell_what_was_found(name: &Path, journal: &Journal, recovers: bool, output: &mut Output) {
    let name = name.display();
    let opened = journal.opened();
    let end = journal.end();
    let entries = count(end.order, "entry", "entries");
    output.note(format!("{name}: session {} goes on after {entries}", opened.session));
    if let Some(cut) = opened.cut {
        output.note(format!(
            "{name}: cut off a torn tail of {} bytes at offset {}; nothing of it had been reported durable",
            cut.bytes, cut.offset
        ));
    }
    for repaired in &opened.repaired {
        output.note(format!("{name}: repaired from an intact copy: {repaired}"));
    }
    if opened.previous == PreviousEnd::Unclean && !recovers {
        output.note(format!(
            "{name}: the last session did not end in order. Primary may be ahead of the journal, so moments \
             from here on are made only with --allow-gaps"
        ));
    }
}

/// The floors are the journal's end, and the time of day is the host's, or just above the end where the host's
/// clock is behind.
pub fn beginning(ledger: &dyn Ledger) -> Beginning {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
    let end = ledger.end();
    let of_arbiter = end.arbiters.iter().find(|arbiter| arbiter.arbiter == ARBITER);
    let stamp_floor = of_arbiter.map_or(0, |arbiter| arbiter.timestamp).max(end.timestamp);
    Beginning {
        session: ledger.opened().session,
        time: now.max(stamp_floor.saturating_add(1)),
        stamp_floor,
        number_floor: of_arbiter.map_or(0, |arbiter| arbiter.number),
    }
}
