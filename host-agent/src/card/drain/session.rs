//! One thread has the card: it brings it up, drains it into the journal that the daemon holds, and does between two batches
//! what others ask. A session ends in order when somebody needs the journal's ports closed, or the daemon ends; behind a reset
//! of the card the next one begins with a gap.

use super::software::Software;
use super::written::Written;
use crate::daemon::{say, Desk, Lease, Listener, Lodger};
use crate::error::Error;
use crate::output::count;
use crate::replay::{beginning, Beside, Ledger, Recorder, ARBITER};
use crate::through_card::{Extents, Settled, Way, Work};
use driver::registers::card as words;
use driver::{identify, BringUp, Card, CardError, Driver, Geometry};
use journal::{Address, Journal, Port, PortKind, Volume};
use layout::registers::{ticks, VOLUMES};
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

/// While clients of software ports wait for the card's watermarks, and so long after the last that did.
const LOOK_WHILE_WANTED: Duration = Duration::from_micros(200);
const LOOK_WHILE_USED: Duration = Duration::from_micros(500);
const USED_FOR: Duration = Duration::from_millis(100);
/// A simulated card goes at least so far in a look, in its own time.
const LEAST_LOOK: Duration = Duration::from_micros(1);
/// Watermarks that were asked for and didn't come are asked for again then, in the card's time.
const ASK_AGAIN: Duration = Duration::from_millis(1);
/// How long software ports wait for a card whose watermarks stand still: so long, and so many of its periods.
pub const STALLED_FOR: Duration = Duration::from_secs(10);
const STALLED_PERIODS: u32 = 5;
/// A card's time that is read goes as the host's does, and this beside. What doesn't wasn't told by a card that is there.
const TIME_JUMP: Duration = Duration::from_millis(10);

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
    /// How long software ports wait for a card whose watermarks stand still.
    pub stalled_for: Duration,
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
    start_with(desk, settings, None, |draining| Arc::clone(draining) as Arc<dyn Lodger>, make)
}

/// The same with ports that share its session, and end first; the daemon's lodger is what `lodger` gives.
pub fn start_with<C: Backend>(
    desk: &Arc<Desk>,
    settings: Settings,
    software: Option<Arc<Software>>,
    lodger: impl FnOnce(&Arc<Draining>) -> Arc<dyn Lodger>,
    make: impl FnOnce() -> Result<C, Error> + Send + 'static,
) -> Result<Arc<Draining>, Error> {
    let (ask, asked) = sync_channel(ASKING);
    let draining = Arc::new(Draining {
        ask,
        names: behind_card(&settings.volumes).map(Volume::name).collect(),
        host_port: settings.host_port,
        quarantine: settings.wall(settings.unknown_after + settings.quarantine),
    });
    // Before the thread may be over.
    desk.activity.set_lodger(Some(lodger(&draining)));
    let desk = Arc::clone(desk);
    let work = move || {
        let (session, resets) = (Arc::default(), Vec::new());
        let mut thread = Thread { desk: &desk, settings, software, asked, session, resets, sessions: 0 };
        // A daemon whose card nobody drains any more has to end, and to say why.
        let inside = AssertUnwindSafe(|| make().and_then(|card| thread.run(card)));
        let ended = catch_unwind(inside).unwrap_or_else(|_| {
            Err(Error::Failed(
                "draining the card: an error in the program itself; standard error says where".into(),
            ))
        });
        let why = ended.as_ref().err().map(Error::to_string);
        if let Err(error) = ended {
            desk.end_with(error);
        }
        if let (Some(why), Some(software)) = (why, &thread.software) {
            software.give_up(&why);
        }
        if thread.session.load(Ordering::Acquire) {
            // If that fails, the daemon says so.
            let _ = desk.call_between(crate::daemon::Held::abandon_ingest);
        }
        desk.end();
        desk.activity.set_lodger(None);
        desk.wake();
    };
    let started = std::thread::Builder::new().name("card".into()).spawn(work);
    started.map_err(|e| Error::Failed(format!("starting to drain: {e}")))?;
    Ok(draining)
}

/// Those of the volumes that are behind a card.
pub fn behind_card(volumes: &[Volume]) -> impl Iterator<Item = &Volume> {
    volumes.iter().filter(|volume| matches!(volume.address, Address::Aoe { .. }))
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
    software: Option<Arc<Software>>,
    asked: Receiver<Ask>,
    /// A session is open, and hasn't been ended.
    session: Arc<AtomicBool>,
    /// When the card was reset.
    resets: Vec<Instant>,
    /// How often the card was brought up.
    sessions: u64,
}

impl Thread<'_> {
    fn run<C: Backend>(&mut self, mut card: C) -> Result<(), Error> {
        let mut entries = 0;
        let mut again = None;
        loop {
            let mut session = match again.take() {
                None => self.begin(card)?,
                Some(recorder) => self.begin_again(card, recorder)?,
            };
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
            let Session { driver, mut recorder, tell, .. } = session;
            card = driver.into_card();
            if let (Ended::Reset, true) = (&ended, self.software.is_some()) {
                // The software ports lack nothing, and go on in the journal's session.
                recorder.rings_were_lost();
                again = Some(recorder);
                continue;
            }
            if let Some(false) = self.software.as_ref().and_then(|software| software.ended()) {
                // It stays open in the journal.
                return Ok(());
            }
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
                if let Some(software) = &self.software {
                    software.ended_in_order();
                }
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
        let geometry = self.identify(&mut card)?;
        let unclean = unclean(&mut card)?;
        // The journal ended in order and the card didn't: it was drained into something else meanwhile, or killed
        // before the first append. What the journal lacks is a gap all the same.
        let makes_gap = unclean && !self.settings.behind_gap;
        let volumes = self.volumes()?;
        let lease = Lease::open(
            self.desk,
            volumes,
            ports(geometry.ports),
            makes_gap,
            &Listener::Daemon,
            &self.session,
        )?;
        let (driver, allowed) = match self.bring_up(card, &lease, &geometry) {
            Ok(brought_up) => brought_up,
            Err(error) => {
                // Writes were never open: nothing is missing in this session.
                Box::new(lease).close()?;
                return Err(error);
            }
        };
        let end = lease.end();
        let beside = self.software.clone().map(|software| software as Arc<dyn Beside>);
        let recorder = Recorder::new(Box::new(lease), geometry.ports).beside(beside);
        let mut session =
            self.session(driver, allowed, recorder, unclean, unclean || self.settings.behind_gap);
        session.follow(self)?;
        if let Some(software) = &self.software {
            software.begin(&end);
        }
        session.driver.card_mut().take_notes().into_iter().for_each(say);
        let (ports, name) = (count(geometry.ports as u64, "port", "ports"), self.desk.name.display());
        let beside = if self.software.is_some() { ", in one time line with what is exported" } else { "" };
        print(format_args!("draining {ports} into {name}{beside}"));
        Ok(session)
    }

    /// Behind a reset, in the journal's session that is open: other ports go on in it.
    fn begin_again<C: Backend>(&mut self, mut card: C, recorder: Recorder) -> Result<Session<C>, Error> {
        let geometry = self.identify(&mut card)?;
        let unclean = unclean(&mut card)?;
        let (driver, allowed) = self.bring_up(card, recorder.ledger(), &geometry)?;
        let mut session = self.session(driver, allowed, recorder, unclean, true);
        // The recorder tells when the gap is in the journal.
        session.unmarked = false;
        session.follow(self)?;
        session.driver.card_mut().take_notes().into_iter().for_each(say);
        Ok(session)
    }

    fn identify<C: Backend>(&self, card: &mut C) -> Result<Geometry, Error> {
        let geometry = identify(card)?;
        if self.settings.host_port.is_some_and(|port| usize::from(port) >= geometry.ports) {
            let what = format!("--host-port: the card has ports 0 to {}", geometry.ports - 1);
            return Err(Error::Misuse(what));
        }
        Ok(geometry)
    }

    /// `old`: behind a reset of the whole card its session is gone too, and so is what its ports had in flight.
    fn session<C: Backend>(
        &mut self,
        driver: Driver<C>,
        allowed: u32,
        recorder: Recorder,
        unclean: bool,
        old: bool,
    ) -> Session<C> {
        let Settings { unknown_after, quarantine, progress_durable, .. } = self.settings;
        self.sessions += 1;
        let now = Instant::now();
        Session {
            recorder,
            number: self.sessions,
            written: Written::new(Duration::from_micros(quarantine)),
            old: old.then(|| vec![true; driver.ports()]),
            ports_know: unclean,
            old_for: Duration::from_micros(unknown_after + quarantine),
            old_until: None,
            allowed,
            settle: Vec::new(),
            used: 0,
            tell: None,
            progress_durable,
            time: (0, now),
            unmarked: old,
            asked: None,
            wanted: None,
            risen: (0, now),
            driver,
        }
    }

    fn bring_up<C: Card>(
        &self,
        card: C,
        ledger: &dyn Ledger,
        geometry: &Geometry,
    ) -> Result<(Driver<C>, u32), Error> {
        let beginning = beginning(ledger);
        let table = table(&ledger.tables().volumes)?;
        // Nor does the time of software ports run backwards.
        let given = self.software.as_ref().map_or(0, |software| software.last_stamp());
        let time = beginning.time.max(given.saturating_add(1));
        let mut settings = BringUp::new(beginning.session, time, geometry.ports);
        settings.stamp_floor = beginning.stamp_floor;
        settings.number_floor = beginning.number_floor;
        settings.timeouts.flush_period = ticks(self.settings.flush_period);
        settings.timeouts.unknown = ticks(self.settings.unknown_after);
        settings.timeouts.quarantine = ticks(self.settings.quarantine);
        settings.lock_limit = LOCK_LIMIT;
        let places = table.iter().enumerate().filter(|(_, volume)| volume.is_some());
        let allowed = places.map(|(place, _)| 1 << place).sum();
        for port in &mut settings.ports {
            port.volumes = allowed;
            port.ring_bytes = RING_BYTES;
        }
        settings.volumes = table;
        Ok((Driver::bring_up(card, &settings)?, allowed))
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

/// Whether the card's last session didn't end in order; that is said.
fn unclean<C: Card>(card: &mut C) -> Result<bool, Error> {
    let session = words::SESSION.read(card)?;
    if session != 0 {
        say(format_args!(
            "the card's session {session} did not end in order: what it had delivered and no journal has is lost, \
             and primary may be ahead of the journal"
        ));
    }
    Ok(session != 0)
}

/// The card's volumes, each at the place of its index in the journal.
fn table(volumes: &[Volume]) -> Result<Vec<Option<(u16, u8)>>, Error> {
    let mut table = Vec::new();
    for volume in volumes {
        let Address::Aoe { shelf, slot } = volume.address else { continue };
        let place = usize::from(volume.index);
        if place >= VOLUMES {
            return Err(Error::Failed(format!(
                "volume {} has index {place} in the journal, and the card has place for indexes below {VOLUMES}: too many \
                 exports came before it; give it another journal",
                volume.name()
            )));
        }
        table.resize(table.len().max(place + 1), None);
        table[place] = Some((shelf, slot));
    }
    Ok(table)
}

/// A card that is up, and the journal's session that it is drained into.
struct Session<C> {
    driver: Driver<C>,
    recorder: Recorder,
    written: Written,
    /// Differs from that of any other in this process.
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
    /// The card's time as it was last read, and when; 0: never.
    time: (u64, Instant),
    /// The journal has a gap, and of the software ports' volumes it doesn't say that they lack nothing.
    unmarked: bool,
    /// Watermarks were asked for: when, and up to where they had come by then.
    asked: Option<(Instant, u64)>,
    /// When clients of software ports last waited.
    wanted: Option<Instant>,
    /// Up to where all ports have delivered, and since when that stands while somebody waits.
    risen: (u64, Instant),
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
        // `wait` takes time of the card; here it is the wall clock that counts.
        self.driver.wait((self.patience() / thread.settings.slower).max(LEAST_LOOK))?;
        self.follow(thread)?;
        self.recorder.take(&mut self.driver, &mut self.written)?;
        let late = self.recorder.take_too_old();
        if late > 0 {
            say(format_args!(
                "{} the card had kept from before, and the journal went on meanwhile: part of the gap",
                count(late, "record that", "records that")
            ));
        }
        self.mark_whole(thread)?;
        if self.hurry(thread)? || self.recorder.is_due(began.elapsed()) {
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
        let waits = thread.software.as_ref().is_some_and(|software| software.ended().is_none());
        if thread.desk.activity.is_ending() && thread.desk.activity.running().is_none() && !waits {
            let stopped = self.stop();
            stopped.map_err(|error| Error::Failed(format!("stopping the card: {error}")))?;
            return Ok(Some(Ended::Told));
        }
        Ok(None)
    }

    /// How long to wait for an interrupt.
    fn patience(&self) -> Duration {
        match self.wanted.map(|wanted| wanted.elapsed()) {
            Some(_) if self.asked.is_some() => LOOK_WHILE_WANTED,
            Some(ago) if ago < USED_FOR => LOOK_WHILE_USED,
            _ if self.recorder.is_waiting() => LOOK_BEFORE_COMMIT,
            _ => LOOK_EVERY,
        }
    }

    /// The software ports' clock follows the card's.
    fn follow(&mut self, thread: &Thread<'_>) -> Result<(), Error> {
        let Some(software) = &thread.software else { return Ok(()) };
        let asked = Instant::now();
        let time = self.driver.time_now()?;
        let (last, then) = self.time;
        let most = 2 * (asked - then) + TIME_JUMP;
        // A card that is out of reach tells anything; `wait` will say so.
        if last == 0 || (time >= last && u128::from(time - last) <= most.as_nanos()) {
            self.time = (time, asked);
            software.clock().follow(time, asked);
        }
        Ok(())
    }

    /// A gap of the card's ports is one of the journal's. The software ports lack nothing: behind it, that is said.
    fn mark_whole(&mut self, thread: &Thread<'_>) -> Result<(), Error> {
        let Some(software) = &thread.software else { return Ok(()) };
        self.unmarked |= self.recorder.take_gapped();
        if self.recorder.lost() > 0 {
            // What exports lack themselves no mark may close.
            return Ok(());
        }
        let Some(bound) = self.recorder.bound().filter(|bound| self.unmarked && *bound > self.used) else {
            return Ok(());
        };
        let (volumes, used) = (software.volumes().to_vec(), self.used);
        let marked = thread.desk.call(move |held| {
            let journal = held.journal()?;
            let marked = journal.stamps_beside(used, bound).and_then(|mut stamps| {
                let few = stamps.left() < volumes.len() as u64;
                // There are more behind the next watermark.
                if few {
                    return Ok(false);
                }
                volumes.iter().try_for_each(|volume| journal.resynced_beside(&mut stamps, volume))?;
                Ok(true)
            });
            match marked {
                // It is tried again.
                Err(journal::Error::Full { .. }) => Ok(false),
                other => other.map_err(|error| {
                    held.check();
                    Error::from(error)
                }),
            }
        })??;
        if marked {
            self.used = bound;
            self.unmarked = false;
        }
        Ok(())
    }

    /// While clients of software ports wait, the card is asked for its watermarks. Whether to make durable what there is.
    fn hurry(&mut self, thread: &Thread<'_>) -> Result<bool, Error> {
        let Some(software) = &thread.software else { return Ok(false) };
        let (now, bound, wanted) = (Instant::now(), self.recorder.taken_to(), software.wanted());
        let stamp = wanted.stamp().filter(|stamp| *stamp > bound);
        if wanted.stamp().is_some() {
            self.wanted = Some(now);
        }
        if bound > self.risen.0 || stamp.is_none() {
            self.risen = (bound, now);
        }
        let Some(stamp) = stamp else {
            self.asked = None;
            return Ok(software.waits_for_commit(&wanted));
        };
        let Settings { slower, flush_period, .. } = thread.settings;
        let limit = thread.settings.stalled_for.max(thread.settings.wall(flush_period) * STALLED_PERIODS);
        if now - self.risen.1 > limit {
            return Err(Error::Failed(format!(
                "the card is there, but its ports have delivered nothing for {} s, not even watermarks: what is exported \
                 can't be put into one order with it. Nothing more is written. Reset the card (host-agent card info), and \
                 start again; or serve without it: host-agent serve",
                limit.as_secs()
            )));
        }
        // Watermarks from before its time has come there would be for nothing.
        let again = |(then, had): (Instant, u64)| bound > had || now - then > ASK_AGAIN * slower;
        if self.time.0 >= stamp && self.asked.is_none_or(again) {
            self.driver.flush()?;
            self.asked = Some((now, bound));
        }
        Ok(software.waits_for_commit(&wanted))
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
    fn drain(&self, _volume: Option<&str>) -> Result<u64, Error> {
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
