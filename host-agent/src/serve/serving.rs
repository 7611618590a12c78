//! A session with its ports open: begins, steps aside for who needs the journal's ports closed, ends.

use super::exports::{self, Export, ARBITER};
use super::owner::DeskOwner;
use super::Serve;
use crate::daemon::{say, Desk, Held, Lodger};
use crate::dirty_log_file;
use crate::error::Error;
use crate::network::uris;
use crate::output::{bytes, count, Output};
use journal::{Journal, JournalReader, Volume};
use layout::dirty_log::SMALLEST_REGION_SHIFT;
use ports::clock::HostClock;
use ports::dirty_log::{self, DirtyLog, Found, ToServe};
use ports::export::Devices;
use ports::path::{floor, Settings, SoftwarePorts};
use ports::primary::Primary;
use ports::recover::{boot_id, recover, Recovered, ToRecover};
use std::path::Path;
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

/// See the module.
pub struct Serving {
    desk: Arc<Desk>,
    ports: Arc<SoftwarePorts>,
    devices: Arc<Devices>,
    volumes: Vec<Volume>,
    writes_ahead: bool,
    shutdown: nbd::Shutdown,
    /// The session is open: nobody else has its turn.
    open: Mutex<bool>,
    wanted_back: AtomicBool,
    served: AtomicBool,
}

/// Makes journal and primaries even, opens the ports, and lets clients in.
pub fn begin(
    arguments: &Serve,
    exports: Vec<Export>,
    log_path: &Path,
    listeners: Vec<nbd::Listener>,
    desk: &Arc<Desk>,
    held: &mut Held,
    output: &mut Output,
) -> Result<(), Error> {
    let settings = Settings {
        partial_bytes: usize::try_from(arguments.memory.0).unwrap_or(usize::MAX / 2),
        ..Settings::new(
            arguments.images.into(),
            arguments.durability.into(),
            held.journal()?.space().segment_bytes,
        )
    };
    let storage = dirty_log_file::open(log_path, arguments.create)?;
    let reader = JournalReader::open(&arguments.journal)?;
    let id = reader.summary().journal_id;
    let sectors = reader.sectors_now()?;
    drop(reader);
    let tables = held.journal()?.tables().clone();
    let (volumes, indexes) =
        exports::volumes(&exports, settings.images, &tables, &sectors, &arguments.journal)?;
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
    make_even(arguments, &exports, &found, held.journal()?, output)?;
    // Nothing is dirty from here on, and in this boot.
    let served = indexes.iter().zip(&exports).map(|(index, export)| ToServe {
        volume: *index,
        bytes: export.primary.bytes(),
        doubtful: Vec::new(),
    });
    let served: Vec<ToServe> = served.collect();
    let dirty = DirtyLog::begin(storage, id, boot_id(), None, &found, &served, SMALLEST_REGION_SHIFT);
    let dirty = dirty.map_err(failed("writing it"))?;
    let journal = held.begin_ingest(&volumes, &[], settings.writes_ahead())?;
    let session = journal.opened().session;
    let owner = Arc::new(DeskOwner::new(desk));
    let served = indexes.iter().zip(&exports).map(|(index, export)| ports::path::Volume {
        index: *index,
        name: export.name.clone(),
        primary: Arc::clone(&export.primary) as Arc<dyn Primary>,
    });
    let ports = Arc::new(SoftwarePorts::new(
        settings,
        served.collect(),
        Arc::clone(&owner) as Arc<_>,
        Arc::new(HostClock::default()),
        dirty,
        floor(&journal.end(), ARBITER),
    ));
    let starting = |e| Error::Failed(format!("starting to serve: {e}"));
    SoftwarePorts::keep_draining(&ports).map_err(starting)?;
    let serving = Arc::new(Serving {
        desk: Arc::clone(desk),
        devices: Arc::new(Devices::new(Arc::clone(&ports), owner, session)),
        ports,
        volumes,
        writes_ahead: settings.writes_ahead(),
        shutdown: nbd::Shutdown::new().map_err(starting)?,
        open: Mutex::new(true),
        wanted_back: AtomicBool::new(false),
        served: AtomicBool::new(false),
    });
    desk.activity.set_lodger(Some(Arc::clone(&serving) as Arc<dyn Lodger>));
    let uris: Vec<String> = exports.iter().map(|export| uris(&listeners, &export.name)).collect();
    serving.start(listeners).map_err(starting)?;
    for (export, uris) in exports.iter().zip(uris) {
        let (size, primary) = (bytes(export.primary.bytes()), export.primary.name());
        output.line(format!("serving {}: {size} of {primary}, {uris}", export.name))?;
    }
    Ok(())
}

/// What a stop that was not in order left is made even, and said.
fn make_even(
    arguments: &Serve,
    exports: &[Export],
    found: &Found,
    journal: &mut Journal,
    output: &mut Output,
) -> Result<(), Error> {
    let base_of = |name: &str| {
        let base = arguments.base.iter().find(|base| base.name == name)?;
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
        self.desk.activity.set_lodger(None);
        self.desk.wake();
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
            return;
        }
        *open = false;
        let name = self.desk.name.display();
        self.ports.stop_waiting();
        let whole = self.ports.pause(PATIENCE).and_then(|()| self.ports.checkpoint(true));
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
                    "{name}: not ended in order: {error}; the next start makes journal and primary even"
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
        let ended = self.desk.call_between(|held| held.end_ingest(true).map(drop));
        ended.and_then(|ended| ended)
    }

    fn come_back(&self) {
        self.wanted_back.store(true, Ordering::Release);
        self.desk.activity.notify();
    }

    fn drain(&self) -> Result<u64, Error> {
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
