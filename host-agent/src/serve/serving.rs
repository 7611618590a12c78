//! A session with its ports open: begins, steps aside for who needs the journal's ports closed, ends.

use super::exports::{self, Export, ARBITER};
use super::owner::DeskOwner;
use super::{Opened, What};
use crate::card::drain::Software;
use crate::daemon::{say, Desk, Held, Lodger};
use crate::dirty_log_file;
use crate::error::Error;
use crate::network::uris;
use crate::output::{bytes, count, Output};
use journal::{Journal, JournalReader, Volume};
use layout::dirty_log::SMALLEST_REGION_SHIFT;
use layout::registers::VOLUMES;
use ports::clock::{CardClock, Clock, HostClock};
use ports::dirty_log::{self, DirtyLog, Found, ToServe};
use ports::export::Devices;
use ports::path::{floor, Settings, SoftwarePorts};
use ports::primary::Primary;
use ports::recover::{boot_id, recover, Recovered, ToRecover};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Primary is made durable so often: recovery after a power cut replays that much at most.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);
/// How long writes that are under way may take when something needs the journal's ports closed.
const PATIENCE: Duration = Duration::from_secs(30);
/// After this long a session that can't be begun again is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(500);
/// How long the end waits for room in a full journal.
const LAST_ROOM: Duration = Duration::from_secs(2);

const NOT_IN_ORDER: &str = "not ended in order";

/// See the module.
pub struct Serving {
    desk: Arc<Desk>,
    ports: Arc<SoftwarePorts>,
    devices: Arc<Devices>,
    volumes: Vec<Volume>,
    writes_ahead: bool,
    shutdown: nbd::Shutdown,
    /// The session is a card's too, whose thread begins and ends it.
    software: Option<Arc<Software>>,
    /// The session is open: nobody else has its turn.
    open: Mutex<bool>,
    wanted_back: AtomicBool,
    served: AtomicBool,
}

/// Makes journal and primaries even, opens the ports, and lets clients in.
pub fn begin(
    what: What<'_>,
    opened: Opened,
    desk: &Arc<Desk>,
    held: &mut Held,
    output: &mut Output,
) -> Result<(), Error> {
    let known = held.journal()?.tables().volumes.clone();
    let prepared = prepare(what, &opened, &known, 0, held, output)?;
    let journal = held.begin_ingest(&prepared.volumes, &[], prepared.settings.writes_ahead())?;
    let (session, floor) = (journal.opened().session, floor(&journal.end(), ARBITER));
    let clock = Arc::new(HostClock::default());
    let (ports, owner, volumes) = prepared.ports(&opened, desk, clock, floor);
    let ports = Arc::new(ports);
    SoftwarePorts::keep_draining(&ports).map_err(starting)?;
    let serving = Serving::new(desk, ports, owner, session, volumes, None)?;
    desk.activity.set_lodger(Some(Arc::clone(&serving) as Arc<dyn Lodger>));
    serving.let_clients_in(opened, output)
}

/// A card that exports share the session of.
pub struct OfCard<'a> {
    /// The volumes behind it.
    pub volumes: &'a [Volume],
    /// How much slower than a real card's its clock is.
    pub slower: u32,
}

/// The same in the session of a card, which its thread begins: until then no write is let in. `run` begins to drain the card
/// into a session with all these volumes.
pub fn begin_with_card(
    what: What<'_>,
    opened: Opened,
    card: OfCard<'_>,
    desk: &Arc<Desk>,
    held: &mut Held,
    output: &mut Output,
    run: impl FnOnce(&Arc<Serving>, &Arc<Software>, Vec<Volume>) -> Result<(), Error>,
) -> Result<(), Error> {
    // The card's have the first indexes.
    let prepared = prepare(what, &opened, card.volumes, VOLUMES as u16, held, output)?;
    let (session, clock) = (held.journal()?.opened().session, Arc::new(CardClock::new(card.slower)));
    let of_clock = Arc::clone(&clock) as Arc<dyn Clock>;
    let (ports, owner, volumes) = prepared.ports(&opened, desk, of_clock, (0, 0));
    let ports = Arc::new(ports.in_line());
    let software = Arc::new(Software::new(desk, Arc::clone(&ports), clock, ARBITER, &volumes));
    let of_card = Some(Arc::clone(&software));
    let serving = Serving::new(desk, ports, owner, session, volumes.clone(), of_card)?;
    run(&serving, &software, volumes)?;
    serving.let_clients_in(opened, output)
}

fn starting(error: std::io::Error) -> Error {
    Error::Failed(format!("starting to serve: {error}"))
}

/// Journal and primaries are even.
struct Prepared {
    settings: Settings,
    volumes: Vec<Volume>,
    indexes: Vec<u16>,
    dirty: DirtyLog,
}

fn prepare(
    what: What<'_>,
    opened: &Opened,
    known: &[Volume],
    first: u16,
    held: &mut Held,
    output: &mut Output,
) -> Result<Prepared, Error> {
    let (exports, log_path, journaling) = (&opened.exports, &opened.dirty_log, what.journaling);
    let settings = Settings {
        partial_bytes: usize::try_from(journaling.memory.0).unwrap_or(usize::MAX / 2),
        ..Settings::new(
            journaling.images.into(),
            journaling.durability.into(),
            held.journal()?.space().segment_bytes,
        )
    };
    let storage = dirty_log_file::open(log_path, what.create)?;
    let reader = JournalReader::open(what.journal)?;
    let id = reader.summary().journal_id;
    let sectors = reader.sectors_now()?;
    drop(reader);
    let tables = held.journal()?.tables().clone();
    let (volumes, indexes) =
        exports::volumes(exports, settings.images, known, first, &sectors, what.journal)?;
    let failed = |action| move |e| Error::io(log_path, action, e);
    let found = dirty_log::load(&*storage, id).map_err(failed("reading it"))?;
    if let Some(owed) = found.owed().find(|owed| !indexes.contains(owed)) {
        let name = tables.volume_at(owed).map_or_else(|| format!("number {owed}"), Volume::name);
        return Err(Error::Failed(format!(
            "volume {name} was served too when it stopped, and has not been made good since: give its --export as well. (If \
             it is gone for good, remove {}; then everything is compared)",
            log_path.display()
        )));
    }
    make_even(what.base, exports, &found, held.journal()?, output)?;
    // Nothing is dirty from here on, and in this boot.
    let served = indexes.iter().zip(exports).map(|(index, export)| ToServe {
        volume: *index,
        bytes: export.primary.bytes(),
        doubtful: Vec::new(),
    });
    let served: Vec<ToServe> = served.collect();
    let dirty = DirtyLog::begin(storage, id, boot_id(), None, &found, &served, SMALLEST_REGION_SHIFT);
    let dirty = dirty.map_err(failed("writing it"))?;
    Ok(Prepared { settings, volumes, indexes, dirty })
}

impl Prepared {
    fn ports(
        self,
        opened: &Opened,
        desk: &Arc<Desk>,
        clock: Arc<dyn Clock>,
        floor: (u64, u64),
    ) -> (SoftwarePorts, Arc<DeskOwner>, Vec<Volume>) {
        let owner = Arc::new(DeskOwner::new(desk));
        let served = self.indexes.iter().zip(&opened.exports).map(|(index, export)| ports::path::Volume {
            index: *index,
            name: export.name.clone(),
            primary: Arc::clone(&export.primary) as Arc<dyn Primary>,
        });
        let of_owner = Arc::clone(&owner) as Arc<_>;
        let ports = SoftwarePorts::new(self.settings, served.collect(), of_owner, clock, self.dirty, floor);
        (ports, owner, self.volumes)
    }
}

/// What a stop that was not in order left is made even, and said.
fn make_even(
    bases: &[super::BaseOf],
    exports: &[Export],
    found: &Found,
    journal: &mut Journal,
    output: &mut Output,
) -> Result<(), Error> {
    let base_of = |name: &str| {
        let base = bases.iter().find(|base| base.name == name)?;
        Some(base.file.as_path())
    };
    let to_recover: Vec<ToRecover<'_>> = exports
        .iter()
        .map(|export| ToRecover {
            name: &export.name,
            primary: &*export.primary,
            base: base_of(&export.name),
        })
        .collect();
    let recovered = recover(journal, found, boot_id(), &to_recover);
    for line in recovered.map_err(|error| Error::Failed(error.to_string()))?.iter().flat_map(lines) {
        output.note(line);
    }
    Ok(())
}

/// In plain words.
fn lines(recovered: &Recovered) -> Vec<String> {
    let name = &recovered.name;
    let mut lines = Vec::new();
    let (entries, replayed) = recovered.replayed;
    if entries > 0 {
        lines.push(format!(
            "{name}: the machine went down: {} ({}) of the journal written to primary again",
            count(entries, "entry", "entries"),
            bytes(replayed)
        ));
    }
    if let Some(since) = recovered.lost_since {
        lines.push(format!(
            "{name}: the machine went down: writes after {} that had not been flushed may be lost; moments from then up to \
             now are not known, earlier and later ones are",
            journal::rfc3339(since)
        ));
    }
    if let Some(why) = &recovered.whole {
        lines.push(format!("{name}: the log of dirty regions can't tell what was written last ({why}): everything was compared"));
    }
    if let Some(resynced) = &recovered.resynced {
        lines.push(format!(
            "{name}: it had not ended in order: {} compared, {} of primary journaled; moments from now on are certain",
            bytes(resynced.compared),
            bytes(resynced.differed)
        ));
    }
    lines
}

impl Serving {
    fn new(
        desk: &Arc<Desk>,
        ports: Arc<SoftwarePorts>,
        owner: Arc<DeskOwner>,
        session: u64,
        volumes: Vec<Volume>,
        software: Option<Arc<Software>>,
    ) -> Result<Arc<Self>, Error> {
        Ok(Arc::new(Self {
            desk: Arc::clone(desk),
            devices: Arc::new(Devices::new(Arc::clone(&ports), owner, session)),
            writes_ahead: ports.writes_ahead(),
            ports,
            volumes,
            shutdown: nbd::Shutdown::new().map_err(starting)?,
            software,
            open: Mutex::new(true),
            wanted_back: AtomicBool::new(false),
            served: AtomicBool::new(false),
        }))
    }

    fn let_clients_in(self: &Arc<Self>, opened: Opened, output: &mut Output) -> Result<(), Error> {
        let Opened { exports, listeners, .. } = opened;
        let uris: Vec<String> = exports.iter().map(|export| uris(&listeners, &export.name)).collect();
        self.start(listeners).map_err(starting)?;
        for (export, uris) in exports.iter().zip(uris) {
            let (size, primary) = (bytes(export.primary.bytes()), export.primary.name());
            output.line(format!("serving {}: {size} of {primary}, {uris}", export.name))?;
        }
        Ok(())
    }

    fn start(self: &Arc<Self>, listeners: Vec<nbd::Listener>) -> std::io::Result<()> {
        let serving = Arc::clone(self);
        let serve = move || {
            let served = nbd::serve(&listeners, &*serving.devices, &serving.shutdown);
            if let Err(error) = served {
                serving.desk.end_with(Error::Failed(format!("{}: serving: {error}", uris(&listeners, ""))));
            }
            serving.served.store(true, Ordering::Release);
            serving.desk.activity.notify();
        };
        thread::Builder::new().name("nbd".into()).spawn(serve)?;
        let serving = Arc::clone(self);
        thread::Builder::new().name("checkpoints".into()).spawn(move || serving.keep_checkpoints())?;
        let serving = Arc::clone(self);
        thread::Builder::new().name("serving".into()).spawn(move || serving.stand_by()).map(drop)
    }

    /// Until the daemon is told to end.
    fn stand_by(&self) {
        let mut said = false;
        loop {
            self.desk.activity.wait_for_end(TRY_AGAIN);
            if self.desk.activity.is_ending() {
                break;
            }
            if let Some(why) = self.ports.failure() {
                let why = format!("{}: {why}; nothing more is written", self.desk.name.display());
                self.desk.end_with(Error::Failed(why));
                break;
            }
            let closed = self.wanted_back.load(Ordering::Acquire) && !self.reopen();
            if closed && !std::mem::replace(&mut said, closed) {
                say(format_args!("{}: writes can't go on yet; it is tried again", self.desk.name.display()));
            }
            said = closed;
        }
        self.end();
        // Beside a card its thread has the last word.
        if self.software.is_none() {
            self.desk.activity.set_lodger(None);
            self.desk.wake();
        }
    }

    fn keep_checkpoints(&self) {
        let mut last = Instant::now();
        loop {
            self.desk.activity.wait_for_end(CHECKPOINT_EVERY.saturating_sub(last.elapsed()).max(TRY_AGAIN));
            if self.desk.activity.is_ending() || self.ports.failure().is_some() {
                return;
            }
            if last.elapsed() < CHECKPOINT_EVERY {
                continue;
            }
            last = Instant::now();
            // What fails here ends everything, or is tried again.
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            if *open {
                let _ = self.ports.checkpoint(false);
            }
        }
    }

    /// The session begins again, behind what was done meanwhile. Says whether it could.
    fn reopen(&self) -> bool {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if *open {
            return true;
        }
        let (volumes, writes_ahead) = (self.volumes.clone(), self.writes_ahead);
        let begun = self.desk.call_between(move |held| {
            // As it is now: its base may be another.
            let known = held.journal()?.tables().volumes.clone();
            let volumes: Vec<Volume> = volumes
                .into_iter()
                .map(|volume| known.iter().find(|row| row.index == volume.index).cloned().unwrap_or(volume))
                .collect();
            Ok::<_, Error>(floor(&held.begin_ingest(&volumes, &[], writes_ahead)?.end(), ARBITER))
        });
        let Ok(Ok(floor)) = begun else { return false };
        self.ports.resume(floor);
        *open = true;
        self.wanted_back.store(false, Ordering::Release);
        true
    }

    /// No more clients; what they wrote is durable; the session ends in order.
    fn end(&self) {
        self.shutdown.request();
        let asked = Instant::now();
        // Who waits for room in a journal that stays full would wait for ever.
        while !self.served.load(Ordering::Acquire) {
            if asked.elapsed() > LAST_ROOM {
                self.ports.stop_waiting();
            }
            self.desk.activity.wait_for(&self.served, TRY_AGAIN);
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if !*open {
            if let Some(software) = &self.software {
                software.end(true);
            }
            return;
        }
        *open = false;
        let name = self.desk.name.display();
        self.ports.stop_waiting();
        let whole = self.ports.pause(PATIENCE).and_then(|()| self.ports.checkpoint(true));
        if let Some(software) = &self.software {
            if let Err(error) = &whole {
                say(format_args!(
                    "{name}: {NOT_IN_ORDER}: {error}; the next start makes journal and primary even"
                ));
            }
            return software.end(whole.is_ok());
        }
        let ended = match whole {
            Ok(_) => {
                let ended = self.desk.call_between(|held| held.end_ingest(false).map(drop));
                if let (Ok(Ok(())), Err(error)) = (&ended, self.ports.ended()) {
                    say(format_args!(
                        "{name}: the log of dirty regions: {error}; the next start looks at everything"
                    ));
                }
                ended
            }
            Err(error) => {
                say(format_args!(
                    "{name}: {NOT_IN_ORDER}: {error}; the next start makes journal and primary even"
                ));
                self.desk.call_between(|held| {
                    held.abandon_ingest();
                    Ok(())
                })
            }
        };
        // If the journal failed, the daemon says so.
        drop(ended);
    }
}

impl Serving {
    /// As a client of an export.
    #[cfg(test)]
    pub fn client(&self, export: &str, connection: u64) -> Arc<dyn nbd::Export> {
        nbd::Exports::find(&*self.devices, export, connection).expect("it is exported")
    }

    /// The card's session goes on after all, in which this stepped aside.
    pub fn go_on(&self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut *open, true) {
            self.ports.resume((0, 0));
        }
    }
}

impl Lodger for Serving {
    fn step_aside(&self) -> Result<(), Error> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if !*open {
            return Ok(());
        }
        let waiting = |error| Error::Failed(format!("writes that are under way don't end: {error}"));
        self.ports.pause(PATIENCE).map_err(waiting)?;
        if let Err(error) = self.ports.checkpoint(true) {
            self.ports.resume((0, 0));
            return Err(waiting(error));
        }
        *open = false;
        if self.software.is_some() {
            // The card's thread ends the session.
            return Ok(());
        }
        let ended = self.desk.call_between(|held| held.end_ingest(true).map(drop));
        ended.and_then(|ended| ended)
    }

    fn come_back(&self) {
        if self.software.is_some() {
            // Writes are let in when the card's thread has begun a session.
            *self.open.lock().unwrap_or_else(PoisonError::into_inner) = true;
            return;
        }
        self.wanted_back.store(true, Ordering::Release);
        self.desk.activity.notify();
    }

    fn drain(&self, _volume: Option<&str>) -> Result<u64, Error> {
        self.ports.drain().map_err(|error| Error::Failed(error.to_string()))?;
        Ok(self.ports.last_number())
    }

    fn clients(&self, volume: &str) -> usize {
        self.devices.clients(volume)
    }

    fn serves(&self, volume: &str) -> bool {
        self.ports.volumes().iter().any(|served| served.name == volume)
    }
}
