//! `host-agent replay`: captures → the simulated card → the journal.
//!
//! | file | job |
//! |---|---|
//! | `events` | captures as one stream: what sources sent, and which writes had been answered |
//! | `primary` | the images, and their volumes in the journal |
//! | `flight` | what is under way in the card; what has to be offered again |
//! | `run` | the loop: offer, step the card, take answers and records |
//! | `recorder` | records → order → journal → durable |
//! | `backlog` | records that the journal has no room for |
//! | `ledger` | the journal, its own or a daemon's |
//! | `report` | what came of it |

mod backlog;
mod events;
mod flight;
mod ledger;
pub mod primary;
mod recorder;
mod report;
mod run;

use crate::arguments::Replay;
use crate::daemon;
use crate::error::Error;
use crate::output::{count, Output};
use crate::progress::{bar, Unit};
use driver::{BringUp, Driver};
use engine::frame::{PortRules, VolumeTable};
use events::Events;
use flight::{Flight, Limits};
use indicatif::ProgressBar;
use journal::{CreateOptions, Journal, Port, PortKind, PreviousEnd, Tables};
use layout::registers::ticks;
pub use ledger::Ledger;
pub use primary::Primary;
use recorder::Recorder;
use run::Run;
use sim::target::VbladeModel;
use sim::{CardOptions, SimulatedCard};
use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Name and version, for the journal's session record.
pub const WRITER: &str = concat!("host-agent replay ", env!("CARGO_PKG_VERSION"));
/// Bytes of a port's store-and-forward buffer in the standard configuration (`hdl::card`), less a
/// margin for the word that is being read and the frame that is being checked.
const PORT_BUFFER_BYTES: usize = 16 * 1024 - 64;
/// Period of the card's watermarks. Short, for every cycle between two of them is simulated.
const FLUSH_MICROSECONDS: u64 = 100;

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
    // Everything that is read is looked at before anything is written.
    let survey = events::survey(&arguments.capture, |frames| bar.inc_length(frames))?;
    bar.set_length(survey.frames.iter().sum());
    let primaries = primary::open(&arguments.primary)?;
    let journal = open(&primaries, output)?;
    let table = primary::card_table(&journal.tables().volumes)?;
    let driver = bring_up(arguments, &primaries, &*journal, &table)?;
    let limits = Limits {
        window: arguments.window.into(),
        buffer_bytes: (!arguments.burst).then_some(PORT_BUFFER_BYTES),
    };
    let volumes = VolumeTable::new(&table).unwrap_or_default();
    let rules = PortRules { volumes, allowed: primary::mask(&primaries, &table), writes_open: true };
    let served = primaries.iter().map(|primary| (primary.shelf, primary.slot)).collect();
    let run = Run {
        flight: Flight::new(SimulatedCard::PORTS, limits, rules, served),
        recorder: Recorder::new(journal, SimulatedCard::PORTS),
        events: Events::new(&arguments.capture, &survey)?,
        arguments,
        bar,
        output,
        totals: Default::default(),
    };
    let result = run.until_settled(driver)?;
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

/// The card's ports, as the journal knows them.
pub fn ports() -> Vec<Port> {
    let port = |port| Port {
        port: port as u8,
        kind: PortKind::Card,
        arbiter: 0,
        name: format!("simulated card, port {port}"),
    };
    (0..SimulatedCard::PORTS).map(port).collect()
}

fn open_journal(arguments: &Replay, primaries: &[Primary], output: &mut Output) -> Result<Journal, Error> {
    if arguments.create {
        let options = CreateOptions {
            bytes: Some(arguments.size.0),
            segment_bytes: None,
            volumes: primary::volumes(primaries, &Tables::default())?,
            ports: ports(),
            writer: WRITER.into(),
        };
        return Journal::create(&arguments.journal, &options).map_err(|error| match error {
            journal::Error::Exists { .. } => Error::JournalHint(error, "leave out --create to go on with it"),
            other => other.into(),
        });
    }
    let mut journal = Journal::open(&arguments.journal, WRITER).map_err(|error| match &error {
        journal::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Error::JournalHint(error, "--create makes it")
        }
        _ => error.into(),
    })?;
    tell_what_was_found(&arguments.journal, &journal, output);
    let volumes = primary::volumes(primaries, journal.tables())?;
    journal.set_volumes(&volumes)?;
    journal.set_ports(&ports())?;
    Ok(journal)
}

/// What opening found and did goes to the one who has to know: nothing of it is an error.
pub fn tell_what_was_found(name: &Path, journal: &Journal, output: &mut Output) {
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
    if opened.previous == PreviousEnd::Unclean {
        output.note(format!(
            "{name}: the last session did not end in order. Primary may be ahead of the journal, so moments \
             from here on are made only with --allow-gaps"
        ));
    }
}

fn bring_up(
    arguments: &Replay,
    primaries: &[Primary],
    journal: &dyn Ledger,
    table: &[(u16, u8)],
) -> Result<Driver<SimulatedCard>, Error> {
    let served = primaries.iter().map(Primary::served).collect::<Result<Vec<_>, _>>()?;
    let target = VbladeModel::new(served).with_answer_cycles(arguments.answer_after);
    let options = CardOptions { vcd: arguments.vcd.clone(), ..CardOptions::default() };
    let card = SimulatedCard::new(options, Box::new(target)).map_err(|e| match &arguments.vcd {
        Some(path) => Error::io(path, "writing the waveform", e),
        None => Error::Failed(format!("making the simulated card: {e}")),
    })?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
    let end = journal.end();
    let (stamp, number) = end
        .arbiters
        .iter()
        .find(|arbiter| arbiter.arbiter == 0)
        .map_or((end.timestamp, 0), |arbiter| (arbiter.timestamp.max(end.timestamp), arbiter.number));
    let ports = SimulatedCard::PORTS;
    let mut settings = BringUp::new(journal.opened().session, now.max(stamp + 1), ports);
    settings.stamp_floor = stamp;
    settings.number_floor = number;
    settings.volumes = table.to_vec();
    settings.timeouts.flush_period = ticks(FLUSH_MICROSECONDS);
    settings.lock_limit = Duration::from_millis(20);
    for port in &mut settings.ports {
        port.volumes = primary::mask(primaries, table);
    }
    Ok(Driver::bring_up(card, &settings)?)
}
