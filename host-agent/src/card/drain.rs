//! `host-agent card drain`: the card's partial journals → the primary journal.

use super::{Pace, Which};
use crate::arguments::Size;
use crate::error::Error;
use crate::output::{count, Output};
use crate::replay::{beginning, tell_what_was_found, Anything, Ledger, Recorder, ARBITER};
use clap::Args;
use driver::registers::card as words;
use driver::vfio::VfioCard;
use driver::{identify, BringUp, Driver, Geometry};
use journal::{CreateOptions, Journal, Port, PortKind, PreviousEnd, Volume};
use layout::registers::{ticks, VOLUMES};
use layout::SECTOR_BYTES;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{signal, SignalKind};

/// Name and version, for the journal's session record.
const WRITER: &str = concat!("host-agent card drain ", env!("CARGO_PKG_VERSION"));
/// A port's ring in host memory: a huge page.
const RING_BYTES: usize = 2 << 20;
/// How long a wait for an interrupt lasts, by the wall clock; then the rings are looked at in any case.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The same while something waits to be made durable: the recorder's group commit.
const LOOK_BEFORE_COMMIT: Duration = Duration::from_millis(2);
/// How long the leaf clocks may take to lock, in time of the card.
const LOCK_LIMIT: Duration = Duration::from_millis(20);
/// How long the card may take to settle at the end, in its own time. Targets that answer late are waited for.
const STOP_LIMIT: Duration = Duration::from_secs(2);

pub const EXAMPLES: &str = "\
Examples:
  host-agent card drain --journal j --create --size 64G --volume 1.0=2T
  host-agent card drain 01:00.0 --journal j

Volumes that the journal has needn't be named again. Sources may write those alone; other writes are dropped and
counted. An unclean stop of the card or of the journal is a gap: moments from there on are refused until resync.";

/// `card drain`.
#[derive(Debug, Args)]
pub struct Drain {
    #[command(flatten)]
    pub which: Which,
    /// The journal; an existing one is continued
    #[arg(long, value_name = "FILE")]
    pub journal: PathBuf,
    /// Make the journal; it must not exist
    #[arg(long)]
    pub create: bool,
    /// Size of the journal that is made, all of it allocated at once: 64M, 1G
    #[arg(long, value_name = "SIZE", default_value = "256M", requires = "create")]
    pub size: Size,
    /// A volume (shelf.slot) behind the card's uplink, and its size
    #[arg(long, value_name = "VOLUME=SIZE")]
    pub volume: Vec<VolumeSize>,
    /// Print a line whenever more has become durable in the journal
    #[arg(long)]
    pub progress_durable: bool,
    /// Period of watermarks, µs of the card's time: how long an entry waits at most for the ports that are idle.
    /// Each wakes the host; at the default of 10 ms four ports do so 400 times a second
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(100..=1_000_000))]
    pub flush_period: u64,
    #[command(flatten)]
    pub pace: Pace,
}

/// `SHELF.SLOT=SIZE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSize {
    /// AoE shelf.
    pub shelf: u16,
    /// AoE slot.
    pub slot: u8,
    /// Its size in sectors.
    pub sectors: u64,
}

impl FromStr for VolumeSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let volume: crate::arguments::VolumeFile =
            text.parse().map_err(|_| format!("'{text}': give VOLUME=SIZE, such as 1.0=2T"))?;
        let size: Size = volume.file.to_string_lossy().parse()?;
        if size.0 == 0 || !size.0.is_multiple_of(SECTOR_BYTES as u64) {
            return Err(format!(
                "'{text}': a volume has whole sectors of {SECTOR_BYTES} bytes, and at least one"
            ));
        }
        Ok(Self { shelf: volume.shelf, slot: volume.slot, sectors: size.0 / SECTOR_BYTES as u64 })
    }
}

/// Runs the command.
pub fn run(drain: &Drain) -> Result<(), Error> {
    let mut output = Output::new();
    let stop = stop_flag()?;
    let mut card = drain.which.open(drain.pace.slower)?;
    let geometry = identify(&mut card)?;
    let unclean = Some(words::SESSION.read(&mut card)?).filter(|session| *session != 0);
    if let Some(session) = unclean {
        output.note(format!(
            "the card's session {session} did not end in order: what it had delivered and no journal has is lost, and \
             primary may be ahead of the journal"
        ));
    }
    let journal = open_journal(drain, &geometry, unclean.is_some(), &mut output)?;
    let driver = match bring_up(card, &journal, &geometry, drain.flush_period) {
        Ok(driver) => driver,
        Err(error) => {
            // Writes were never open: nothing is missing in this session.
            journal.close()?;
            return Err(error);
        }
    };
    let drained = Draining {
        drain,
        driver,
        recorder: Recorder::new(Box::new(journal), geometry.ports),
        output: &mut output,
    };
    drained.until(&stop)?;
    output.finish()
}

fn open_journal(
    drain: &Drain,
    geometry: &Geometry,
    card_is_unclean: bool,
    output: &mut Output,
) -> Result<Journal, Error> {
    let ports = ports(geometry.ports);
    if drain.create {
        let options = CreateOptions {
            bytes: Some(drain.size.0),
            segment_bytes: None,
            volumes: volumes(&[], &drain.volume)?,
            ports,
            writer: WRITER.into(),
        };
        return Journal::create(&drain.journal, &options).map_err(|error| match error {
            journal::Error::Exists { .. } => Error::JournalHint(error, "leave out --create to go on with it"),
            other => other.into(),
        });
    }
    let open = || {
        Journal::open(&drain.journal, WRITER).map_err(|error| match &error {
            journal::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Error::JournalHint(error, "--create makes it")
            }
            journal::Error::Locked { .. } => Error::JournalHint(
                error,
                "a card is drained by the journal's one owner: stop the other first",
            ),
            _ => error.into(),
        })
    };
    let mut journal = open()?;
    if card_is_unclean && journal.opened().previous == PreviousEnd::Clean {
        // The journal ended in order and the card didn't: it was drained into something else meanwhile, or killed
        // before the first append. What the journal lacks is a gap all the same, and a session that doesn't end in
        // order is how a journal says so.
        drop(journal);
        journal = open()?;
    }
    tell_what_was_found(&drain.journal, &journal, false, output);
    let volumes = volumes(&journal.tables().volumes, &drain.volume)?;
    journal.set_volumes(&volumes)?;
    journal.set_ports(&ports)?;
    Ok(journal)
}

/// The volumes that the journal has, and new ones behind them.
fn volumes(known: &[Volume], named: &[VolumeSize]) -> Result<Vec<Volume>, Error> {
    let mut volumes = known.to_vec();
    for VolumeSize { shelf, slot, sectors } in named {
        let index = volumes.iter().map(|volume| volume.index + 1).max().unwrap_or(0);
        let new = Volume::aoe(index, *shelf, *slot, *sectors);
        // One that is known may have another size by now: `volume resize` journals that, and this doesn't.
        if !volumes.iter().any(|volume| volume.name() == new.name()) {
            volumes.push(new);
        }
    }
    if volumes.is_empty() {
        return Err(Error::Misuse(
            "the journal has no volumes yet: name those behind the card with --volume".into(),
        ));
    }
    if volumes.len() > VOLUMES {
        return Err(Error::Misuse(format!("the card has place for {VOLUMES} volumes")));
    }
    Ok(volumes)
}

fn ports(ports: usize) -> Vec<Port> {
    let port = |port: usize| Port {
        port: port as u8,
        kind: PortKind::Card,
        arbiter: ARBITER,
        name: format!("card, port {port}"),
    };
    (0..ports).map(port).collect()
}

fn bring_up(
    card: VfioCard,
    journal: &Journal,
    geometry: &Geometry,
    flush_period: u64,
) -> Result<Driver<VfioCard>, Error> {
    let beginning = beginning(journal);
    let table = crate::replay::card_table(&Ledger::tables(journal).volumes)?;
    let mut settings = BringUp::new(beginning.session, beginning.time, geometry.ports);
    settings.stamp_floor = beginning.stamp_floor;
    settings.number_floor = beginning.number_floor;
    settings.timeouts.flush_period = ticks(flush_period);
    settings.lock_limit = LOCK_LIMIT;
    for port in &mut settings.ports {
        port.volumes = ((1u64 << table.len()) - 1) as u32;
        port.ring_bytes = RING_BYTES;
    }
    settings.volumes = table;
    Ok(Driver::bring_up(card, &settings)?)
}

struct Draining<'a> {
    drain: &'a Drain,
    driver: Driver<VfioCard>,
    recorder: Recorder,
    output: &'a mut Output,
}

impl Draining<'_> {
    /// Drains until `stop`, or until the host wants the card back; then stops card and journal in order.
    fn until(mut self, stop: &AtomicBool) -> Result<(), Error> {
        for note in self.driver.card_mut().take_notes() {
            self.output.note(note);
        }
        let ports = count(self.driver.ports() as u64, "port", "ports");
        self.output.line(format!("draining {ports} into {}", self.drain.journal.display()))?;
        self.output.flush()?;
        let drained = self.drain(stop);
        if drained.is_err() {
            // The rings are this process's memory: what lies there is good, whatever became of the card.
            let _ = self.recorder.take(&mut self.driver, &mut Anything);
        }
        // What was taken is made durable.
        let committed = self.commit();
        if drained.is_err() || committed.is_err() {
            self.output.note(
                "what the card had delivered and was not taken is lost; the session stays open in the journal and in the \
                 card, so that the next card drain begins behind a gap",
            );
        }
        drained?;
        committed?;
        let recorded = self.recorder.close()?;
        let entries = count(recorded.entries, "entry", "entries");
        self.output.line(format!("drained {entries}; the journal ends at order:{}", recorded.last_order))
    }

    fn drain(&mut self, stop: &AtomicBool) -> Result<(), Error> {
        let began = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            let look = if self.recorder.is_waiting() { LOOK_BEFORE_COMMIT } else { LOOK_EVERY };
            // `wait` takes time of the card; here it is the wall clock that counts.
            self.driver.wait(look / self.drain.pace.slower)?;
            self.recorder.take(&mut self.driver, &mut Anything)?;
            if self.recorder.is_due(began.elapsed()) {
                self.commit()?;
            }
            if self.driver.card().is_release_requested() {
                self.output.note("the host wants the card back: stopping");
                break;
            }
        }
        let recorder = &mut self.recorder;
        let stopped = self.driver.stop(STOP_LIMIT, |rings| recorder.take(rings, &mut Anything));
        stopped.map_err(|error| Error::Failed(format!("stopping the card: {error}")))
    }

    fn commit(&mut self) -> Result<(), Error> {
        let Some(durable) = self.recorder.commit(&mut self.driver)? else { return Ok(()) };
        if self.drain.progress_durable {
            self.output.line(format!("durable order:{} entries:{}", durable.order, durable.entries))?;
            self.output.flush()?;
        }
        Ok(())
    }
}

/// Set at the first SIGINT or SIGTERM.
fn stop_flag() -> Result<Arc<AtomicBool>, Error> {
    let failed = |error: std::io::Error| Error::Failed(format!("waiting for signals: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
    // Here and not in the thread: from the return on a signal must not kill.
    let guard = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    drop(guard);
    let flag = Arc::new(AtomicBool::new(false));
    let set = flag.clone();
    let wait = move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        set.store(true, Ordering::Relaxed);
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).map_err(failed)?;
    Ok(flag)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A card that didn't end in order has lost something, whatever the journal says of itself.
    #[test]
    fn an_unclean_card_is_a_gap_in_a_journal_that_ended_in_order() {
        let folder = tempfile::tempdir().expect("a folder");
        let drain = |create| Drain {
            which: Which { card: None, at: super::super::Place { root: "/".into() } },
            journal: folder.path().join("j"),
            create,
            size: Size(16 << 20),
            volume: vec!["1.0=1M".parse().expect("a volume")],
            progress_durable: false,
            flush_period: 10_000,
            pace: Pace { slower: 1 },
        };
        let geometry = Geometry { ports: 4, slots: 16, port_ring_bytes: 32768, volumes: 16 };
        let mut output = Output::to(std::io::sink(), |_| {});
        let mut open = |create, unclean| open_journal(&drain(create), &geometry, unclean, &mut output);
        open(true, false).expect("made").close().expect("closed");
        let clean = open(false, false).expect("opened");
        assert_eq!(clean.opened().previous, PreviousEnd::Clean);
        clean.close().expect("closed");
        let unclean = open(false, true).expect("opened");
        assert_eq!(unclean.opened().previous, PreviousEnd::Unclean);
        unclean.close().expect("closed");
        assert_eq!(open(false, false).expect("opened").opened().previous, PreviousEnd::Clean);
        let again = open(true, false).err().expect("it exists");
        assert!(again.to_string().contains("--create"), "{again}");
    }

    #[test]
    fn volumes_are_named_with_their_size() {
        let expected = VolumeSize { shelf: 1, slot: 0, sectors: 16384 };
        assert_eq!("1.0=8M".parse(), Ok(expected.clone()));
        for bad in ["1.0", "1.0=", "1.0=100", "1.0=0", "x=8M", "1.0=8X"] {
            assert!(bad.parse::<VolumeSize>().is_err(), "{bad}");
        }
        let known = volumes(&[], std::slice::from_ref(&expected)).expect("a volume");
        let more = volumes(&known, &[expected, "2.1=1M".parse().expect("a volume")]).expect("volumes");
        assert_eq!(
            more.iter().map(|volume| (volume.index, volume.name())).collect::<Vec<_>>(),
            [(0, "1.0".to_string()), (1, "2.1".to_string())]
        );
        assert!(volumes(&[], &[]).is_err());
    }
}
