//! A session with its ports open: begins, steps aside for who needs the journal's ports closed, ends.

use super::dirty::{DirtyFile, Doubt};
use super::handover::{Bell, Handover, Taken};
use super::recovery;
use super::report::{Report, SwitchStatus};
use super::target::Target;
use super::traffic::{Command, Traffic};
use super::volumes::Volumes;
use super::Switching;
use crate::arguments::address;
use crate::daemon::{say, Begun, Desk, Held, Lease, Listener, Lodger};
use crate::error::Error;
use crate::output::{count, Output};
use crate::replay::{Anything, Recorder, ARBITER};
use engine::switch::{Settings, Switch};
use journal::{Journal, Port, PortKind, Volume};
use layout::journal_file::technique;
use ports::dirty_log::Found;
use ports::interface::Interface;
use ports::marking::Marking;
use ports::path::floor;
use std::collections::BTreeMap;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, sync_channel, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long writes that are under way may take to be final, beyond the end of a quarantine.
const PATIENCE: Duration = Duration::from_secs(10);
/// After this long a session that can't be begun again is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(500);
/// The journal's thread looks at the clock so often while something waits to be made durable.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// And so often otherwise.
const LOOK_IDLE: Duration = Duration::from_millis(500);

/// The interfaces of a switch.
pub struct Interfaces {
    /// Where sources are.
    pub ports: Vec<Interface>,
    /// Where targets are.
    pub uplink: Interface,
    /// Wakes their thread.
    pub bell: Arc<Bell>,
}

/// Writing the journal, in one session.
struct Recording {
    thread: JoinHandle<Result<Ended, Error>>,
    handover: Arc<Handover>,
    marking: Option<(Arc<Marking>, JoinHandle<()>)>,
    /// The session is open in the journal.
    is_open: Arc<AtomicBool>,
}

/// How a session ended that ended in order.
struct Ended {
    /// The journal has everything that was let through.
    whole: bool,
}

/// See the module.
pub struct Session {
    desk: Arc<Desk>,
    commands: Sender<Command>,
    bell: Arc<Bell>,
    report: Arc<Report>,
    settings: Settings,
    volumes: Volumes,
    dirty: Option<DirtyFile>,
    ports: Vec<Port>,
    patience: Duration,
    open: Mutex<Option<Recording>>,
    wanted_back: AtomicBool,
    /// Why nothing goes on.
    failed: AtomicBool,
}

/// Makes the journal know what targets have, opens the ports, and switches.
pub fn begin(
    arguments: &Switching,
    volumes: Volumes,
    settings: Settings,
    mut interfaces: Interfaces,
    desk: &Arc<Desk>,
    held: &mut Held,
    output: &mut Output,
) -> Result<(), Error> {
    let journal = held.journal()?;
    let dirty = DirtyFile::open(arguments, &volumes, journal)?;
    let found = dirty.as_ref().map(|file| file.read(journal)).transpose()?;
    // Put off, it is carried along.
    let in_doubt = match (&found, arguments.no_resync) {
        (Some(found), true) => doubts(found, journal, &volumes)?,
        _ => BTreeMap::new(),
    };
    if !arguments.no_resync {
        let mut target = Target::new(&mut interfaces.uplink, &interfaces.bell);
        recovery::recover(arguments, journal, &volumes, found.as_ref(), &mut target, output)?;
    }
    let ports: Vec<Port> =
        interfaces.ports.iter().enumerate().map(|(port, interface)| port_of(port, interface)).collect();
    let names: Vec<String> = interfaces.ports.iter().map(|port| port.name().to_owned()).collect();
    let line = format!(
        "switching {} from {} to {}",
        count(volumes.switched.len() as u64, "volume", "volumes"),
        names.join(", "),
        interfaces.uplink.name()
    );
    let starting = |e| Error::Failed(format!("starting to switch: {e}"));
    let (commands, obey) = channel();
    let report = Arc::new(Report::default());
    let closed = switch(&settings, (0, 0))?;
    let hurries = volumes.waits_for_disk();
    let Interfaces { ports: wires, uplink, bell } = interfaces;
    let traffic = Traffic::new(wires, uplink, closed, hurries, obey, &bell, &report);
    let quarantine = Duration::from_nanos(settings.timeouts.quarantine.max(settings.timeouts.unknown));
    let session = Arc::new(Session {
        desk: Arc::clone(desk),
        commands,
        bell,
        report,
        settings,
        volumes,
        dirty,
        ports,
        patience: quarantine + PATIENCE,
        open: Mutex::new(None),
        wanted_back: AtomicBool::new(false),
        failed: AtomicBool::new(false),
    });
    let begun = session.begin_in(held, session.volumes.rows.clone(), found, &in_doubt)?;
    let recording = session.record(begun).map_err(starting)?;
    *session.open() = Some(recording);
    let ending = Arc::clone(desk);
    let run = move || {
        if catch_unwind(AssertUnwindSafe(|| traffic.run())).is_err() {
            ending.end_with(Error::Failed(
                "switching: an error in the program itself; standard error says where. Nothing is let through any more".into(),
            ));
        }
    };
    thread::Builder::new().name("frames".into()).spawn(run).map_err(starting)?;
    desk.activity.set_lodger(Some(Arc::clone(&session) as Arc<dyn Lodger>));
    let standing_by = Arc::clone(&session);
    thread::Builder::new()
        .name("switching".into())
        .spawn(move || standing_by.stand_by())
        .map_err(starting)?;
    output.line(line)
}

fn port_of(port: usize, interface: &Interface) -> Port {
    let name = format!("{}, port {port}", interface.name());
    Port { port: port as u8, kind: PortKind::Software, arbiter: ARBITER, name }
}

fn switch(settings: &Settings, (stamp, number): (u64, u64)) -> Result<Switch, Error> {
    let settings = Settings { stamp_floor: stamp, number_floor: number, ..settings.clone() };
    Switch::new(settings).map_err(|e| Error::Failed(format!("making the switch: {e}")))
}

/// Where targets may be ahead of the journal as it is, by the volume's index. Its ports are closed.
fn doubts(found: &Found, journal: &Journal, volumes: &Volumes) -> Result<BTreeMap<u16, Doubt>, Error> {
    let known =
        |row: &Volume| row.technique == technique::AFTER && journal.tables().volume(&row.name()).is_ok();
    let rows = volumes.each().map(|(row, _)| row).filter(|row| known(row));
    // What is unanswered the journal knows itself, and the next start.
    rows.map(|row| Ok((row.index, Doubt::of(found, journal, row, false)?))).collect()
}

/// What a session begins with.
struct Beginning {
    begun: Begun,
    /// Its stamps and numbers are above these.
    floors: (u64, u64),
    marking: Option<Arc<Marking>>,
}

impl Session {
    fn open(&self) -> std::sync::MutexGuard<'_, Option<Recording>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, command: Command) {
        // The frames' thread ends only when it is told to.
        let _ = self.commands.send(command);
        self.bell.ring();
    }

    /// Opens the journal's ports, and begins the log of dirty regions anew: `found` was read before, and regions in doubt stay marked.
    fn begin_in(
        &self,
        held: &mut Held,
        rows: Vec<Volume>,
        found: Option<Found>,
        in_doubt: &BTreeMap<u16, Doubt>,
    ) -> Result<Beginning, Error> {
        let journal: &Journal = held.begin_ingest(&rows, &self.ports, self.volumes.writes_ahead())?;
        let (begun, floors) = (Begun::of(journal), floor(&journal.end(), ARBITER));
        let marking = match (&self.dirty, found) {
            (Some(file), Some(found)) => Some(file.begin(&found, journal, &self.volumes, in_doubt)),
            _ => None,
        };
        match marking.transpose() {
            Ok(marking) => Ok(Beginning { begun, floors, marking: marking.map(Arc::new) }),
            Err(error) => {
                // Nothing was let through, so nothing is missing.
                held.end_ingest(true)?;
                Err(error)
            }
        }
    }

    /// Lets writes in, and writes the journal on a thread of its own.
    fn record(self: &Arc<Self>, beginning: Beginning) -> std::io::Result<Recording> {
        let Beginning { begun, floors, marking } = beginning;
        let ports = self.ports.len();
        let handover = Arc::new(Handover::new(ports, floors.1, &self.bell));
        let is_open = Arc::new(AtomicBool::new(true));
        let lease = Lease::new(&self.desk, begun, Listener::Daemon, &is_open);
        let mut fresh = switch(&self.settings, floors).map_err(|e| std::io::Error::other(e.to_string()))?;
        let marking = marking.map(|marking| self.keep_marking(marking)).transpose()?;
        if let Some((marking, _)) = &marking {
            fresh.mark_in(Arc::clone(marking) as Arc<_>);
        }
        let hurries = self.volumes.waits_for_disk();
        let (this, taken) = (Arc::clone(self), Arc::clone(&handover));
        let work = move || {
            let inside = || record(Recorder::new(Box::new(lease), ports), &taken, floors, hurries);
            let result = catch_unwind(AssertUnwindSafe(inside)).unwrap_or_else(|_| {
                Err(Error::Failed(
                    "writing the journal: an error in the program itself; standard error says where".into(),
                ))
            });
            if let Err(error) = &result {
                // What targets have from now on would be missing.
                this.tell(Command::Abandon);
                taken.fail();
                this.failed.store(true, Ordering::Release);
                this.desk.end_with(Error::Failed(format!(
                    "{}: {error}; nothing more is let through",
                    this.desk.name.display()
                )));
            }
            result
        };
        let thread = thread::Builder::new().name("recorder".into()).spawn(work)?;
        let regions = marking.as_ref().map(|(marking, _)| Arc::clone(marking));
        self.tell(Command::Open(Box::new(fresh), Arc::clone(&handover), regions));
        Ok(Recording { thread, handover, marking, is_open })
    }

    /// Marks regions on a thread of its own.
    fn keep_marking(
        self: &Arc<Self>,
        marking: Arc<Marking>,
    ) -> std::io::Result<(Arc<Marking>, JoinHandle<()>)> {
        let (bell, desk) = (Arc::clone(&self.bell), Arc::clone(&self.desk));
        let failed = move |error| {
            desk.end_with(Error::Failed(format!(
                "{}: the log of dirty regions: {error}; no write goes any more where it marks nothing",
                desk.name.display()
            )));
        };
        let thread = Marking::keep_marking(&marking, move || bell.ring(), failed)?;
        Ok((marking, thread))
    }

    /// Until the daemon is told to end.
    fn stand_by(self: &Arc<Self>) {
        let mut said = false;
        while !self.desk.activity.is_ending() {
            self.desk.activity.wait_for_end(TRY_AGAIN);
            let closed = self.wanted_back.load(Ordering::Acquire) && !self.reopen();
            if closed && !said {
                say(format_args!("{}: writes can't go on yet; it is tried again", self.desk.name.display()));
            }
            said = closed;
        }
        if let Err(error) = self.close() {
            let name = self.desk.name.display();
            say(format_args!(
                "{name}: not ended in order: {error}; the next start compares targets with the journal"
            ));
        }
        self.tell(Command::End);
        self.desk.activity.set_lodger(None);
        self.desk.wake();
    }

    /// The session begins again, behind what was done meanwhile. Says whether it could.
    fn reopen(self: &Arc<Self>) -> bool {
        let mut open = self.open();
        if open.is_some() {
            return true;
        }
        let this = Arc::clone(self);
        let begun = self.desk.call_between(move |held| {
            // As it is now: its base may be another.
            let journal = held.journal()?;
            let rows = journal.tables().volumes.clone();
            let found = this.dirty.as_ref().map(|file| file.read(journal)).transpose()?;
            let in_doubt = found.as_ref().map(|found| doubts(found, journal, &this.volumes));
            this.begin_in(held, rows, found, &in_doubt.transpose()?.unwrap_or_default())
        });
        let Ok(Ok(begun)) = begun else { return false };
        let Ok(recording) = self.record(begun) else {
            let _ = self.desk.call_between(|held| {
                held.abandon_ingest();
                Ok::<_, Error>(())
            });
            return false;
        };
        *open = Some(recording);
        self.wanted_back.store(false, Ordering::Release);
        true
    }

    /// No more writes; what is under way becomes final and durable; the session ends in order.
    fn close(&self) -> Result<(), Error> {
        let mut open = self.open();
        let Some(recording) = open.take() else { return Ok(()) };
        let (answer, done) = sync_channel(1);
        self.tell(Command::Close(answer));
        let failed = self.failed.load(Ordering::Acquire);
        let is_ending = self.desk.activity.is_ending();
        if !failed && done.recv_timeout(self.patience).is_err() && !self.failed.load(Ordering::Acquire) {
            if !is_ending {
                self.tell(Command::Reopen);
                *open = Some(recording);
                return Err(Error::Failed("writes that are under way don't end".into()));
            }
            // What the switch still holds is lost with it: not in order.
            self.tell(Command::Abandon);
            recording.handover.fail();
            recording.handover.end();
            let _ = self.desk.call_between(|held| {
                held.abandon_ingest();
                Ok::<_, Error>(())
            });
            return Err(Error::Failed("writes that are under way don't end".into()));
        }
        let ended = recording.thread.join();
        let durable = recording.handover.durable();
        let marking = recording.marking.map(|(marking, thread)| {
            marking.stop();
            // An error in the program itself says so on standard error; then nothing was marked either.
            drop(thread.join());
            marking
        });
        if recording.is_open.load(Ordering::Acquire) {
            let _ = self.desk.call_between(|held| {
                held.abandon_ingest();
                Ok::<_, Error>(())
            });
        }
        let ended = ended.unwrap_or_else(|_| {
            Err(Error::Failed("writing the journal: an error in the program itself".into()))
        })?;
        if let Some(marking) = marking.filter(|_| ended.whole) {
            if let Err(error) = marking.end(durable) {
                let name = self.desk.name.display();
                say(format_args!(
                    "{name}: the log of dirty regions: {error}; the next start compares what it marks"
                ));
            }
        }
        Ok(())
    }
}

/// Takes what is handed over into the journal, until nothing comes any more; then ends the session in order.
fn record(
    mut recorder: Recorder,
    handover: &Arc<Handover>,
    floors: (u64, u64),
    hurries: bool,
) -> Result<Ended, Error> {
    let began = Instant::now();
    let mut rings = Taken::new(handover, handover.ports(), floors);
    while !handover.is_over() {
        handover.wait(if recorder.is_waiting() { LOOK_EVERY } else { LOOK_IDLE });
        recorder.take(&mut rings, &mut Anything)?;
        let asked = recorder.is_waiting() && handover.is_waited_for();
        let due = asked || (hurries && recorder.has_undurable_entry()) || recorder.is_due(began.elapsed());
        if due {
            recorder.commit(&mut rings)?;
        }
        if handover.has_failed() {
            return Ok(Ended { whole: false });
        }
    }
    // One round makes room for the next: a port's records may have waited for another's watermark.
    loop {
        let before = rings.held_bytes();
        recorder.take(&mut rings, &mut Anything)?;
        if rings.held_bytes() == 0 || rings.held_bytes() == before {
            break;
        }
    }
    recorder.commit(&mut rings)?;
    if rings.held_bytes() > 0 || recorder.holds_back() {
        return Err(Error::Failed(
            "something that the ports delivered didn't get into the journal: the session doesn't end in order, and the next \
             one begins behind a gap"
                .into(),
        ));
    }
    let recorded = recorder.close()?;
    if recorded.lost > 0 {
        let lost = count(recorded.lost, "write", "writes");
        say(format_args!(
            "warning: the journal had no room for {lost} that targets have: a gap, which resync closes"
        ));
    }
    Ok(Ended { whole: recorded.lost == 0 })
}

impl Lodger for Session {
    fn step_aside(&self) -> Result<(), Error> {
        self.close()
    }

    fn come_back(&self) {
        self.wanted_back.store(true, Ordering::Release);
        self.desk.activity.notify();
    }

    fn drain(&self, _volume: Option<&str>) -> Result<u64, Error> {
        let handover = self.open().as_ref().map(|recording| Arc::clone(&recording.handover));
        let Some(handover) = handover else { return Ok(0) };
        let number = handover.last_number();
        match handover.wait_durable(number, PATIENCE) {
            true => Ok(number),
            false => Err(Error::Failed("the journal doesn't take what was let through".into())),
        }
    }

    fn clients(&self, volume: &str) -> usize {
        address(volume).map_or(0, |volume| self.report.users(volume))
    }

    fn serves(&self, volume: &str) -> bool {
        self.volumes.each().any(|(row, _)| row.name() == volume)
    }

    fn switch(&self) -> Option<SwitchStatus> {
        Some(self.report.status())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::switch::{Clock, Images, Now, Volume as Switched};
    use journal::CreateOptions;
    use layout::aoe::{Ata, ATA_WRITE_EXT};
    use layout::entry::{flags, ErrorBound};
    use sim::target::request;

    /// A write at port 0, of whose entry is handed over what `told` lets port 1 say about it.
    fn record_a_write(told: bool) -> Result<Ended, Error> {
        let folder = tempfile::tempdir().unwrap();
        let options = CreateOptions {
            bytes: Some(16 << 20),
            segment_bytes: None,
            volumes: vec![Volume::aoe(0, 1, 0, 64)],
            ports: (0..2)
                .map(|port| Port {
                    port,
                    kind: PortKind::Software,
                    arbiter: ARBITER,
                    name: format!("port {port}"),
                })
                .collect(),
            writer: "test".into(),
        };
        let journal = Journal::create(&folder.path().join("j"), &options).unwrap();
        let mut switch = Switch::new(Settings::new(vec![Switched::new(1, 0, Images::After)], 2)).unwrap();
        let clock =
            Clock { nanoseconds: 1_000, flags: flags::CLOCK_LOCKED, error: ErrorBound::from_sixteenths(0) };
        let now = Now { elapsed: 0, clock };
        let (sectors, command_status) = (1, ATA_WRITE_EXT);
        let ata =
            Ata { flags: 0x41, error_feature: 0, sectors, command_status, lba: [0; 6], reserved: [0; 2] };
        switch.frame(0, &request([2, 0, 0, 0, 0, 1], (1, 0), 7, ata, &[5; 512]), &now);
        let handover = Arc::new(Handover::new(2, 0, &Arc::new(Bell::new().unwrap())));
        if told {
            switch.watermark(1, &now);
        }
        for port in 0..2 {
            let mut bytes = Vec::new();
            switch.drain(port, usize::MAX, &now, &mut bytes);
            handover.give(port, &bytes, switch.ports()[port].sources());
        }
        handover.end();
        record(Recorder::new(Box::new(journal), 2), &handover, (0, 0), false)
    }

    #[test]
    fn a_session_ends_in_order_only_if_nothing_is_left_outside_the_journal() {
        assert!(record_a_write(true).is_ok_and(|ended| ended.whole));
        let left = record_a_write(false).err().expect("something is left").to_string();
        assert!(left.contains("doesn't end in order"), "{left}");
    }
}
