//! Where the daemon's threads meet: they leave work for the journal's thread here, and read what it last saw.

use super::activity::{Activity, NoTurn, Turn};
use super::owner::{self, Held, Job, Tell, Work};
use crate::error::Error;
use crate::status::{self, Doing, MergingStatus, Owner, PortStatus, Room, Status};
use journal::{Journal, PreviousEnd};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Work that may wait for the journal's thread. Each client leaves one piece at a time.
const WAITING: usize = 64;

/// See the module.
pub struct Desk {
    work: SyncSender<Work>,
    held: Arc<Mutex<Held>>,
    /// What runs.
    pub activity: Activity,
    /// The journal's name, as the daemon was given it.
    pub name: PathBuf,
    /// Identity of the journal, in hexadecimal.
    pub journal_id: String,
    control: PathBuf,
    seen: Mutex<Seen>,
}

/// What the journal's thread last saw.
#[derive(Default)]
struct Seen {
    session: u64,
    order: u64,
    timestamp: u64,
    durable_order: u64,
    room: Room,
    ports: Vec<PortStatus>,
    /// It was said that room is short.
    warned: bool,
    /// What came of the last ingest, if it failed.
    failure: Option<String>,
    /// A session before this one had not ended in order, and nothing has been appended since.
    unclean: bool,
    /// Why the daemon ends, if not because it was told to.
    fatal: Option<Error>,
    merging: MergingStatus,
}

impl Desk {
    /// With what is left here for the journal's thread.
    pub fn new(
        name: &Path,
        journal_id: String,
        control: &Path,
        held: &Arc<Mutex<Held>>,
    ) -> (Arc<Self>, Receiver<Work>) {
        let (work, take) = sync_channel(WAITING);
        let desk = Self {
            work,
            held: Arc::clone(held),
            activity: Activity::default(),
            name: name.to_owned(),
            journal_id,
            control: control.to_owned(),
            seen: Mutex::default(),
        };
        (Arc::new(desk), take)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has something done on the journal's thread. What it gives comes out of the receiver.
    pub fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Held) -> T + Send + 'static,
    ) -> Result<Receiver<T>, Error> {
        let (job, take) = job(work);
        self.send(Work::Do(job))?;
        Ok(take)
    }

    /// [`Desk::ask`], for what can't be done while a step of merging is under way.
    pub fn ask_between<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Held) -> T + Send + 'static,
    ) -> Result<Receiver<T>, Error> {
        let (job, take) = job(work);
        self.send(Work::Between(job))?;
        Ok(take)
    }

    /// Leaves work.
    pub fn send(&self, work: Work) -> Result<(), Error> {
        self.work.send(work).map_err(|_| over())
    }

    /// What merging does.
    pub fn set_merging(&self, merging: &MergingStatus) {
        self.seen().merging.clone_from(merging);
    }

    /// [`Desk::ask`], and waits.
    pub fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Held) -> T + Send + 'static,
    ) -> Result<T, Error> {
        self.ask(work)?.recv().map_err(|_| over())
    }

    /// Has something done here and now, as soon as the journal's thread rests: without crossing to it and back.
    pub fn now<T>(&self, work: impl FnOnce(&mut Held) -> T) -> T {
        let mut held = owner::lock(&self.held);
        let done = work(&mut held);
        if let Ok(journal) = held.journal() {
            self.look_at(journal);
        }
        // Merging may have something to do, or everything is over.
        if held.wants_attention() {
            self.wake();
        }
        done
    }

    /// [`Desk::ask_between`], and waits.
    pub fn call_between<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Held) -> T + Send + 'static,
    ) -> Result<T, Error> {
        self.ask_between(work)?.recv().map_err(|_| over())
    }

    /// The turn for something that excludes others.
    pub fn begin(self: &Arc<Self>, what: &str) -> Result<Turn, NoTurn> {
        let (desk, lodgers) = (Arc::downgrade(self), self.activity.clone());
        let turn = self.activity.begin(what, move || {
            if let Some(desk) = desk.upgrade() {
                desk.wake();
            }
        })?;
        Ok(turn.before_the_next(move || {
            if let Some(lodger) = lodgers.lodger() {
                lodger.come_back();
            }
        }))
    }

    /// What is served hands over what it has answered, so that the journal's end is where its clients are. The last number
    /// of its arbiter, or of that volume's; 0: nothing is served.
    pub fn drain_served(&self, volume: Option<&str>) -> Result<u64, Error> {
        self.activity.lodger().map_or(Ok(0), |lodger| lodger.drain(volume))
    }

    /// Ends the daemon, in order. Says whether that is new.
    pub fn end(&self) -> bool {
        let new = self.activity.end();
        self.wake();
        new
    }

    /// Ends the daemon because of `error`.
    pub fn end_with(&self, error: Error) {
        self.seen().fatal.get_or_insert(error);
        self.end();
    }

    /// Why it ended, if not because it was told to.
    pub fn fatal(&self) -> Option<Error> {
        self.seen().fatal.take()
    }

    /// The journal's thread looks around. It does so anyway if there is so much work that no more can be left.
    pub fn wake(&self) {
        let _ = self.work.try_send(Work::Look);
    }

    /// What came of an ingest.
    pub fn set_failure(&self, failure: Option<String>) {
        self.seen().failure = failure;
    }

    /// Called by the journal's thread, behind each piece of work.
    pub fn look_at(&self, journal: &Journal) {
        let end = journal.end();
        let mut seen = self.seen();
        let opened = journal.opened();
        // It shows up as a gap as soon as something is appended.
        seen.unclean &= (seen.order, seen.timestamp) == (end.order, end.timestamp);
        if seen.session != opened.session {
            seen.unclean |= opened.previous == PreviousEnd::Unclean;
        }
        seen.session = opened.session;
        (seen.order, seen.timestamp) = (end.order, end.timestamp);
        seen.durable_order = journal.durable().order;
        seen.room = Room::of(&journal.space());
        seen.ports = journal.delivered().iter().map(PortStatus::from).collect();
        let low = seen.room.is_low();
        if low && !seen.warned {
            if let Some(warning) = seen.room.warning() {
                say(format_args!("warning: {}: {warning}", self.name.display()));
            }
        }
        // Said again only after there has been room in between.
        seen.warned = low || (seen.warned && !seen.room.is_ample());
    }

    /// For whoever asks.
    pub fn status(&self) -> Status {
        let running = self.activity.running();
        let seen = self.seen();
        let mut warnings: Vec<String> = seen.room.warning().into_iter().collect();
        if running.as_ref().is_some_and(|running| running.waits_for_room) {
            warnings.push("the journal is full: ingest takes no more until there is room".into());
        }
        if seen.unclean {
            warnings.push(status::UNCLEAN.into());
        }
        warnings.extend(seen.failure.clone());
        warnings.extend(seen.merging.trouble.clone());
        if seen.room.is_low() {
            warnings.extend(seen.merging.held_back.iter().cloned());
        }
        if self.activity.is_ending() {
            warnings.push("the daemon is ending".into());
        }
        Status {
            owner: Some(Owner { pid: std::process::id(), control: Some(self.control.clone()) }),
            session: seen.session,
            order: seen.order,
            timestamp: seen.timestamp,
            durable_order: seen.durable_order,
            room: seen.room,
            ports: seen.ports.clone(),
            doing: running.map(|running| Doing {
                what: running.what,
                done: running.bar.position(),
                total: running.bar.length().unwrap_or(0),
                waits_for_room: running.waits_for_room,
            }),
            merging: Some(seen.merging.clone()),
            switch: self.activity.lodger().and_then(|lodger| lodger.switch()),
            warnings,
        }
    }
}

fn job<T: Send + 'static>(work: impl FnOnce(&mut Held) -> T + Send + 'static) -> (Job, Receiver<T>) {
    let (give, take) = sync_channel(1);
    let job = move |held: &mut Held| -> Tell {
        let done = work(held);
        // Whoever asked may be gone by now.
        Box::new(move || drop(give.send(done)))
    };
    (Box::new(job), take)
}

fn over() -> Error {
    Error::Failed("the daemon is ending".into())
}

/// A line on standard error. A daemon goes on though nobody may read that any more.
pub fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
