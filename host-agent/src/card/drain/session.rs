//! One thread has the card: it brings it up, drains it into the journal that the daemon holds, and does between two batches
//! what others ask. A session ends in order when somebody needs the journal's ports closed, or the daemon ends; behind a reset
//! of the card the next one begins with a gap.

use super::written::Written;
use crate::daemon::{say, Desk, Lease, Listener, Lodger};
use crate::error::Error;
use crate::output::count;
use crate::replay::{beginning, card_table, Ledger, Recorder, ARBITER};
use crate::through_card::{Extents, Settled, Way, Work};
use driver::registers::card as words;
use driver::{identify, BringUp, Card, CardError, Driver, Geometry};
use journal::{Journal, Port, PortKind, Volume};
use layout::registers::ticks;
use std::io::Write;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, RecvTimeoutError, SyncSender};
use std::sync::Arc;
use std::time::{Duration, Instant};

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
/// Resets behind the agent's back that it goes on after, and in which time: a card that is reset oftener than every other
/// second isn't up long enough to be of use.
const MOST_RESETS: usize = 30;
const RESETS_WITHIN: Duration = Duration::from_secs(60);
/// How long a card may be out of reach when it is reset. A function has 100 ms for that, and may ask for more until a second
/// is over (PCI Express Base Specification 4.0, section 6.6.1); the kernel puts back what it had saved only then.
const BACK_WITHIN: Duration = Duration::from_secs(3);
/// What others may ask at once: each client of the daemon asks one thing at a time.
const ASKING: usize = 64;
/// While there is no session, whether the daemon ends is looked at so often.
const LOOK_ASIDE: Duration = Duration::from_millis(500);
/// Flushes of a card that has nothing to say, in which it has to say that.
const FLUSH_AGAIN: Duration = Duration::from_millis(200);

/// A card, and what only a real one has to say.
pub trait Backend: Card {
    /// What the operator should know.
    fn take_notes(&mut self) -> Vec<String> {
        Vec::new()
    }
    /// The host wants it back.
    fn is_release_requested(&self) -> bool {
        false
    }
}

impl Backend for driver::vfio::VfioCard {
    fn take_notes(&mut self) -> Vec<String> {
        self.take_notes()
    }

    fn is_release_requested(&self) -> bool {
        self.is_release_requested()
    }
}

/// How a card is drained.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The journal's volumes, all of them.
    pub volumes: Vec<Volume>,
    /// This host's port of the card.
    pub host_port: Option<u8>,
    /// µs of the card's time.
    pub flush_period: u64,
    /// µs of the card's time.
    pub unknown_after: u64,
    /// µs of the card's time.
    pub quarantine: u64,
    /// How much slower than a real card's its clock is.
    pub slower: u32,
    /// Print what has become durable.
    pub progress_durable: bool,
    /// The journal has a gap from before, and knows.
    pub behind_gap: bool,
}

impl Settings {
    /// So long by the wall clock.
    fn wall(&self, microseconds: u64) -> Duration {
        Duration::from_micros(microseconds).saturating_mul(self.slower)
    }
}

/// What the card's thread is asked.
enum Ask {
    Watch(u16, SyncSender<Extents>),
    Unsettled(u16, SyncSender<Extents>),
    Settle(Work),
    Fence(u16, bool, SyncSender<Result<(), Error>>),
    StepAside(SyncSender<Result<(), Error>>),
    ComeBack,
}

/// The others' end.
pub struct Draining {
    ask: SyncSender<Ask>,
    names: Vec<String>,
    host_port: Option<u8>,
    quarantine: Duration,
}

/// Drains the card that `make` gives on a thread of its own, until the daemon ends.
pub fn start<C: Backend>(
    desk: &Arc<Desk>,
    settings: Settings,
    make: impl FnOnce() -> Result<C, Error> + Send + 'static,
) -> Result<Arc<Draining>, Error> {
    let (ask, asked) = sync_channel(ASKING);
    let draining = Arc::new(Draining {
        ask,
        names: settings.volumes.iter().map(Volume::name).collect(),
        host_port: settings.host_port,
        quarantine: settings.wall(settings.unknown_after + settings.quarantine),
    });
    desk.activity.set_lodger(Some(Arc::clone(&draining) as Arc<dyn Lodger>));
    let desk = Arc::clone(desk);
    let work = move || {
        let mut thread = Thread { desk: &desk, settings, asked, session: Arc::default(), resets: Vec::new() };
        // A daemon whose card nobody drains any more has to end, and to say why.
        let inside = AssertUnwindSafe(|| make().and_then(|card| thread.run(card)));
        let ended = catch_unwind(inside).unwrap_or_else(|_| {
            Err(Error::Failed(
                "draining the card: an error in the program itself; standard error says where".into(),
            ))
        });
        if thread.session.load(Ordering::Acquire) {
            // If that fails, the daemon says so.
            let _ = desk.call_between(crate::daemon::Held::abandon_ingest);
        }
        if let Err(error) = ended {
            desk.end_with(error);
        }
        desk.end();
        desk.activity.set_lodger(None);
        desk.wake();
    };
    let started = std::thread::Builder::new().name("card".into()).spawn(work);
    started.map_err(|e| Error::Failed(format!("starting to drain: {e}")))?;
    Ok(draining)
}

/// Why a session has ended.
enum Ended {
    /// In order, for the daemon ends.
    Told,
    /// In order, for somebody needs the ports closed.
    Aside,
    /// The card was reset behind its back.
    Reset,
}

struct Thread<'a> {
    desk: &'a Arc<Desk>,
    settings: Settings,
    asked: Receiver<Ask>,
    /// A session is open, and hasn't been ended.
    session: Arc<AtomicBool>,
    /// When the card was reset.
    resets: Vec<Instant>,
}

impl Thread<'_> {
    fn run<C: Backend>(&mut self, mut card: C) -> Result<(), Error> {
        let mut entries = 0;
        loop {
            let mut session = self.begin(card)?;
            let ended = session.drain(self);
            if ended.is_err() {
                // The rings are this process's memory: what lies there is good, whatever became of the card.
                let _ = session.recorder.take(&mut session.driver, &mut session.written);
            }
            // What was taken is made durable.
            let committed = session.commit();
            if ended.is_err() || committed.is_err() {
                say(
                    "what the card had delivered and was not taken is lost; the session stays open in the journal and in \
                     the card, so that the next one begins behind a gap",
                );
            }
            let ended = ended?;
            committed?;
            let Session { driver, recorder, tell, .. } = session;
            card = driver.into_card();
            if let Ended::Reset = ended {
                entries += recorder.entries();
                drop(recorder);
                self.session.store(false, Ordering::Release);
                self.desk.call_between(crate::daemon::Held::abandon_ingest)?;
                self.settings.behind_gap = true;
                continue;
            }
            self.settings.behind_gap = false;
            let recorded = recorder.close();
            if let Some(tell) = tell {
                let told = recorded.as_ref().map(drop).map_err(|error| Error::Failed(error.to_string()));
                let _ = tell.send(told);
            }
            let recorded = recorded?;
            entries += recorded.entries;
            if let Ended::Told = ended {
                let entries = count(entries, "entry", "entries");
                print(format_args!("drained {entries}; the journal ends at order:{}", recorded.last_order));
                return Ok(());
            }
            if !self.wait_aside() {
                return Ok(());
            }
        }
    }

    /// Whether to go on: not if the daemon ends.
    fn wait_aside(&self) -> bool {
        loop {
            match self.asked.recv_timeout(LOOK_ASIDE) {
                Ok(Ask::ComeBack) => return !self.desk.activity.is_ending(),
                Ok(Ask::StepAside(tell)) => drop(tell.send(Ok(()))),
                // Who asks for anything else hears that there is no session.
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
            }
            if self.desk.activity.is_ending() && self.desk.activity.running().is_none() {
                return false;
            }
        }
    }

    fn begin<C: Backend>(&mut self, mut card: C) -> Result<Session<C>, Error> {
        let geometry = identify(&mut card)?;
        if self.settings.host_port.is_some_and(|port| usize::from(port) >= geometry.ports) {
            let what = format!("--host-port: the card has ports 0 to {}", geometry.ports - 1);
            return Err(Error::Misuse(what));
        }
        let unclean = Some(words::SESSION.read(&mut card)?).filter(|session| *session != 0);
        if let Some(session) = unclean {
            say(format_args!(
                "the card's session {session} did not end in order: what it had delivered and no journal has is lost, \
                 and primary may be ahead of the journal"
            ));
        }
        // The journal ended in order and the card didn't: it was drained into something else meanwhile, or killed
        // before the first append. What the journal lacks is a gap all the same.
        let makes_gap = unclean.is_some() && !self.settings.behind_gap;
        // Behind a reset of the whole card its session is gone too, and so is what its ports had in flight.
        let old = unclean.is_some() || self.settings.behind_gap;
        let volumes = self.volumes()?;
        let lease = Lease::open(
            self.desk,
            volumes,
            ports(geometry.ports),
            makes_gap,
            &Listener::Daemon,
            &self.session,
        )?;
        let (driver, allowed) = match bring_up(card, &lease, &geometry, &self.settings) {
            Ok(brought_up) => brought_up,
            Err(error) => {
                // Writes were never open: nothing is missing in this session.
                Box::new(lease).close()?;
                return Err(error);
            }
        };
        let Settings { unknown_after, quarantine, .. } = self.settings;
        let number = lease.opened().session;
        let mut session = Session {
            recorder: Recorder::new(Box::new(lease), geometry.ports),
            number,
            written: Written::new(Duration::from_micros(quarantine)),
            old: old.then(|| vec![true; geometry.ports]),
            ports_know: unclean.is_some(),
            old_for: Duration::from_micros(unknown_after + quarantine),
            old_until: None,
            allowed,
            settle: Vec::new(),
            used: 0,
            tell: None,
            progress_durable: self.settings.progress_durable,
            driver,
        };
        session.driver.card_mut().take_notes().into_iter().for_each(say);
        print(format_args!(
            "draining {} into {}",
            count(geometry.ports as u64, "port", "ports"),
            self.desk.name.display()
        ));
        Ok(session)
    }

    /// As the journal has them now: a base may be another, or a size.
    fn volumes(&self) -> Result<Vec<Volume>, Error> {
        let known =
            self.desk.call(|held| held.journal().map(|journal| journal.tables().volumes.clone()))??;
        let volumes = self.settings.volumes.iter();
        Ok(volumes
            .map(|volume| known.iter().find(|row| row.index == volume.index).unwrap_or(volume).clone())
            .collect())
    }

    /// It was reset behind the agent's back. Whether to bring it up again.
    fn was_reset(&mut self, error: &CardError) -> bool {
        self.resets.retain(|at| at.elapsed() < RESETS_WITHIN);
        self.resets.push(Instant::now());
        say(error);
        self.resets.len() <= MOST_RESETS
    }
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

fn bring_up<C: Card>(
    card: C,
    ledger: &dyn Ledger,
    geometry: &Geometry,
    drain: &Settings,
) -> Result<(Driver<C>, u32), Error> {
    let beginning = beginning(ledger);
    let table = card_table(&ledger.tables().volumes)?;
    let mut settings = BringUp::new(beginning.session, beginning.time, geometry.ports);
    settings.stamp_floor = beginning.stamp_floor;
    settings.number_floor = beginning.number_floor;
    settings.timeouts.flush_period = ticks(drain.flush_period);
    settings.timeouts.unknown = ticks(drain.unknown_after);
    settings.timeouts.quarantine = ticks(drain.quarantine);
    settings.lock_limit = LOCK_LIMIT;
    let allowed = ((1u64 << table.len()) - 1) as u32;
    for port in &mut settings.ports {
        port.volumes = allowed;
        port.ring_bytes = RING_BYTES;
    }
    settings.volumes = table;
    Ok((Driver::bring_up(card, &settings)?, allowed))
}

/// A card that is up, and the journal's session that it is drained into.
struct Session<C> {
    driver: Driver<C>,
    recorder: Recorder,
    written: Written,
    /// The journal's number of it.
    number: u64,
    /// Ports of which something from before this session may be under way.
    old: Option<Vec<bool>>,
    /// The ports say themselves whether it is.
    ports_know: bool,
    /// For so long at most, in the card's time; and until that stamp.
    old_for: Duration,
    old_until: Option<u64>,
    /// The volumes that sources may write, a bit each.
    allowed: u32,
    /// What waits until the journal has everything up to a stamp.
    settle: Vec<Settle>,
    /// Stamps up to here may be taken.
    used: u64,
    /// Who wants to know that it has ended.
    tell: Option<SyncSender<Result<(), Error>>>,
    progress_durable: bool,
}

struct Settle {
    after: u64,
    flushed: Instant,
    work: Work,
}

impl<C: Backend> Session<C> {
    /// Drains until the daemon ends, somebody needs the ports closed, or the card was reset.
    fn drain(&mut self, thread: &mut Thread<'_>) -> Result<Ended, Error> {
        let began = Instant::now();
        loop {
            match self.look(began, thread) {
                Ok(None) => {}
                Ok(Some(ended)) => return Ok(ended),
                // While it is reset it may not answer at all, which looks as if it were gone.
                Err(Error::Card(error @ (CardError::WasReset { .. } | CardError::Gone(_))))
                    if thread.was_reset(&error) && self.comes_back() =>
                {
                    // What it had delivered lies in this process's memory.
                    self.recorder.take(&mut self.driver, &mut self.written)?;
                    say("it is brought up again; what it had delivered and was not taken is a gap");
                    return Ok(Ended::Reset);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits a while, takes what has come, and answers who asks.
    fn look(&mut self, began: Instant, thread: &mut Thread<'_>) -> Result<Option<Ended>, Error> {
        let look = if self.recorder.is_waiting() { LOOK_BEFORE_COMMIT } else { LOOK_EVERY };
        // `wait` takes time of the card; here it is the wall clock that counts.
        self.driver.wait(look / thread.settings.slower)?;
        self.recorder.take(&mut self.driver, &mut self.written)?;
        if self.recorder.is_due(began.elapsed()) {
            self.commit()?;
        }
        self.look_after_settling(thread.desk)?;
        while let Ok(ask) = thread.asked.try_recv() {
            if let Some(ended) = self.answer(ask, thread)? {
                return Ok(Some(ended));
            }
        }
        if self.driver.card().is_release_requested() && thread.desk.end() {
            say("the host wants the card back: stopping");
        }
        if thread.desk.activity.is_ending() && thread.desk.activity.running().is_none() {
            let stopped = self.stop();
            stopped.map_err(|error| Error::Failed(format!("stopping the card: {error}")))?;
            return Ok(Some(Ended::Told));
        }
        Ok(None)
    }

    /// Waits until the card answers again, whatever it has kept.
    fn comes_back(&mut self) -> bool {
        let began = Instant::now();
        while identify(self.driver.card_mut()).is_err() {
            if began.elapsed() > BACK_WITHIN {
                return false;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        true
    }

    fn stop(&mut self) -> Result<(), driver::StopError<Error>> {
        let (recorder, written) = (&mut self.recorder, &mut self.written);
        self.driver.stop(STOP_LIMIT, |rings| recorder.take(rings, written))
    }

    fn answer(&mut self, ask: Ask, thread: &Thread<'_>) -> Result<Option<Ended>, Error> {
        match ask {
            Ask::Watch(volume, tell) => {
                if self.has_old_writes()? {
                    self.written.forget_executed();
                }
                drop(tell.send(self.written.watch(volume)));
            }
            Ask::Unsettled(volume, tell) => {
                self.written.tell_time(self.driver.time_now()?);
                let old = self.has_old_writes()?;
                let unsettled = if old { (0..u64::MAX).into() } else { self.written.unsettled(volume) };
                drop(tell.send(unsettled));
            }
            Ask::Settle(work) => {
                let after = self.driver.last_stamp()?;
                // A card that gave stamps and knows of none was reset; `wait` will say so. Who asked hears that it is over.
                if after < self.written.last_entry() {
                    return Ok(None);
                }
                self.driver.flush()?;
                self.settle.push(Settle { after, flushed: Instant::now(), work });
            }
            Ask::Fence(volume, fenced, tell) => {
                let fenced = self.fence(volume, fenced, thread.settings.host_port);
                drop(tell.send(fenced.map_err(Error::from)));
            }
            Ask::StepAside(tell) => match self.stop() {
                Ok(()) => {
                    self.tell = Some(tell);
                    return Ok(Some(Ended::Aside));
                }
                Err(error @ driver::StopError::Unsettled { .. }) => {
                    self.driver.go_on(ticks(thread.settings.flush_period))?;
                    let why = format!("writes that are under way don't end: {error}");
                    drop(tell.send(Err(Error::Failed(why))));
                }
                Err(error) => return Err(Error::Failed(format!("stopping the card: {error}"))),
            },
            Ask::ComeBack => {}
        }
        Ok(None)
    }

    /// May something be under way from before this session, of which no entry tells?
    fn has_old_writes(&mut self) -> Result<bool, Error> {
        let Some(ports) = &mut self.old else { return Ok(false) };
        for (port, old) in ports.iter_mut().enumerate() {
            *old = *old && (!self.ports_know || self.driver.in_flight(port)? > 0);
        }
        let now = self.written.now();
        if self.old_until.is_none() && now > 0 {
            self.old_until = Some(now.saturating_add(self.old_for.as_nanos() as u64));
        }
        if self.old_until.is_some_and(|until| until < now) || !ports.contains(&true) {
            self.old = None;
            self.written.forget_executed();
        }
        Ok(self.old.is_some())
    }

    fn fence(&mut self, volume: u16, fenced: bool, host_port: Option<u8>) -> Result<(), CardError> {
        // The card's index of a volume is the journal's (`card_table`).
        let others = if fenced { self.allowed & !(1 << volume) } else { self.allowed };
        for port in 0..self.driver.ports() {
            let is_host = host_port.map(usize::from) == Some(port);
            self.driver.allow(port, if is_host { self.allowed } else { others })?;
        }
        Ok(())
    }

    /// Does what waited for the journal to have everything up to a stamp, if it has by now.
    fn look_after_settling(&mut self, desk: &Desk) -> Result<(), Error> {
        let mut waiting = Vec::new();
        for mut settle in std::mem::take(&mut self.settle) {
            match self.recorder.bound() {
                // Each has a bound of its own: what the one before appended may take all stamps up to it.
                Some(bound) if bound > settle.after.max(self.used) => {
                    let (after, written) = (settle.after, self.written.written());
                    let epoch = (self.number, self.written.gaps());
                    (settle.work)(&Settled { desk, after, bound, written, epoch });
                    self.used = bound;
                    continue;
                }
                _ if settle.flushed.elapsed() > FLUSH_AGAIN => {
                    self.driver.flush()?;
                    settle.flushed = Instant::now();
                }
                _ => {}
            }
            waiting.push(settle);
        }
        self.settle = waiting;
        Ok(())
    }

    fn commit(&mut self) -> Result<(), Error> {
        let Some(durable) = self.recorder.commit(&mut self.driver)? else { return Ok(()) };
        if self.progress_durable {
            print(format_args!("durable order:{} entries:{}", durable.order, durable.entries));
        }
        Ok(())
    }
}

/// A line on standard output, at once. Nobody may be reading any more, and draining goes on.
fn print(line: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn closed() -> Error {
    Error::Failed("the card isn't drained just now, or not any more; host-agent status tells".into())
}

impl Draining {
    fn ask<T>(&self, ask: impl FnOnce(SyncSender<T>) -> Ask) -> Result<T, Error> {
        let (tell, told) = sync_channel(1);
        self.ask.send(ask(tell)).map_err(|_| closed())?;
        told.recv().map_err(|_| closed())
    }
}

impl Way for Draining {
    fn watch(&self, volume: u16) -> Result<Extents, Error> {
        self.ask(|tell| Ask::Watch(volume, tell))
    }

    fn unsettled(&self, volume: u16) -> Result<Extents, Error> {
        self.ask(|tell| Ask::Unsettled(volume, tell))
    }

    fn settle(&self, work: Work) -> Result<(), Error> {
        self.ask.send(Ask::Settle(work)).map_err(|_| closed())
    }

    fn fence(&self, volume: u16, fenced: bool) -> Result<(), Error> {
        self.ask(|tell| Ask::Fence(volume, fenced, tell))?
    }

    fn port(&self) -> Option<u8> {
        self.host_port
    }

    fn quarantine(&self) -> Duration {
        self.quarantine
    }
}

impl Lodger for Draining {
    fn step_aside(&self) -> Result<(), Error> {
        self.ask(Ask::StepAside)?
    }

    fn come_back(&self) {
        let _ = self.ask.try_send(Ask::ComeBack);
    }

    /// Everything that the arbiter has given is in the journal.
    fn drain(&self) -> Result<u64, Error> {
        let (tell, told) = sync_channel(1);
        let number = move |journal: &Journal| {
            let end = journal.end().arbiters.into_iter().find(|end| end.arbiter == ARBITER);
            end.map_or(0, |end| end.number)
        };
        let sent = self.ask.send(Ask::Settle(Box::new(move |settled| {
            let found = settled.desk.call(move |held| held.journal().map(|journal| number(journal)));
            drop(tell.send(found.flatten()));
        })));
        match sent {
            Ok(()) => told.recv().unwrap_or(Ok(0)),
            // It stands aside: its ports are closed, and the journal has everything.
            Err(_) => Ok(0),
        }
    }

    /// Nobody knows who has the volume: sources of a card don't say goodbye.
    fn clients(&self, _volume: &str) -> usize {
        0
    }

    fn serves(&self, volume: &str) -> bool {
        self.names.iter().any(|name| name == volume)
    }

    fn way(&self) -> Option<&dyn Way> {
        Some(self)
    }
}
