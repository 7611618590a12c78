//! The journal's thread: it alone touches the journal, and does what others send it, one after the other.
//!
//! While something is ingested the session's ports are open; in between the journal rests in a session with its ports
//! closed, so that a daemon that is killed while it rests leaves no gap. Sessions change under one lock.

use super::desk::Desk;
use super::merging::{Asked, Merging};
use crate::error::Error;
use crate::replay;
use journal::merge::MergeOutcome;
use journal::{Durable, Journal, Port, Storage, Volume};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard};

/// Name and version, for the record of sessions in which the journal rests.
const WRITER: &str = concat!("host-agent ", env!("CARGO_PKG_VERSION"), " daemon");

/// Something to be done with the journal. Gives what tells whoever waits for it.
pub type Job = Box<dyn FnOnce(&mut Held) -> Tell + Send>;
/// See [`Job`].
pub type Tell = Box<dyn FnOnce()>;

/// What the journal's thread is sent.
pub enum Work {
    /// To be done.
    Do(Job),
    /// To be done while no step of merging is under way: a session's end would pull the journal from under it, and a
    /// moment that is to get a name must not be merged away meanwhile.
    Between(Job),
    /// To be merged.
    Merge(Asked),
    /// A step of merging has been done; `None`: an error in the program.
    Merged(Option<Box<MergeOutcome>>),
    /// Only to look around: something has ended, or is to end.
    Look,
}

/// The journal, held.
pub struct Held {
    /// `None`: ended, in order or not.
    journal: Option<Journal>,
    storage: Arc<dyn Storage>,
    /// Why nothing goes on here.
    failed: Option<Error>,
    /// Entries had no room.
    pub no_room: bool,
}

impl Held {
    /// Opens the journal at `path`.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let journal = Journal::open_ports_closed(path, WRITER)?;
        Ok(Self { storage: journal.storage(), journal: Some(journal), failed: None, no_room: false })
    }

    /// Takes over a journal that was just made.
    pub fn take_over(journal: Journal) -> Result<Self, Error> {
        let mut held =
            Self { storage: journal.storage(), journal: Some(journal), failed: None, no_room: false };
        held.rest()?;
        Ok(held)
    }

    /// The journal.
    pub fn journal(&mut self) -> Result<&mut Journal, Error> {
        self.journal.as_mut().ok_or_else(|| Error::Failed("the daemon is ending".into()))
    }

    /// The journal's thread has something to do though nobody has left work for it.
    pub fn wants_attention(&self) -> bool {
        self.no_room || self.failed.is_some()
    }

    /// Entries can take no segment any more.
    pub fn is_full(&self) -> bool {
        self.journal.as_ref().map(Journal::space).is_some_and(|space| space.free <= space.reserved)
    }

    /// Opens the ports: what is ingested belongs to a session of its own. Returns what a session begins with.
    /// `writes_ahead`: every entry is durable before its write is let through.
    pub fn begin_ingest(
        &mut self,
        volumes: &[Volume],
        ports: &[Port],
        writes_ahead: bool,
    ) -> Result<&mut Journal, Error> {
        // It would take room of what is kept for ending sessions in order.
        if self.is_full() {
            let what = format!(
                "{}: the journal is full; make room before anything is ingested",
                self.storage.name()
            );
            return Err(Error::Failed(what));
        }
        self.change(true, |storage| match writes_ahead {
            true => Journal::open_writing_ahead_on(storage, replay::WRITER),
            false => Journal::open_on(storage, replay::WRITER),
        })?;
        // Before a write is let in: should this session be killed, these are the ports that have a gap.
        let journal = self.journal()?;
        let set = journal.set_volumes(volumes).and_then(|()| journal.set_ports(ports));
        if let Err(error) = set {
            // No port is open yet, so nothing can be missing.
            self.check();
            self.rest()?;
            return Err(error.into());
        }
        self.journal()
    }

    /// What was ingested is whole: ends its session in order.
    pub fn end_ingest(&mut self, stay: bool) -> Result<Durable, Error> {
        if stay {
            return self.rest();
        }
        let journal = self.journal.take().ok_or_else(|| Error::Failed("the daemon is ending".into()))?;
        journal.close().map_err(|error| self.fail(error))
    }

    /// What was ingested may not be whole: as if its session had been killed, but what was appended is kept.
    pub fn abandon_ingest(&mut self) {
        // If it fails, the change below says so.
        let _ = self.journal().map(|journal| journal.sync());
        let _ = self.change(false, |storage| Journal::open_ports_closed_on(storage, WRITER));
    }

    /// What began to journal entries of its own behind `order` failed: in a later session they are known to be nobody's.
    pub fn give_up_own(&mut self, order: u64) {
        let has = self.journal.as_ref().is_some_and(|journal| journal.end().order > order);
        if has && !self.is_full() {
            // If it fails, the daemon ends and says so.
            let _ = self.rest();
        }
    }

    fn rest(&mut self) -> Result<Durable, Error> {
        self.change(true, |storage| Journal::open_ports_closed_on(storage, WRITER))
    }

    /// Ends the session and begins the next.
    fn change(
        &mut self,
        in_order: bool,
        open: impl FnOnce(Arc<dyn Storage>) -> Result<Journal, journal::Error>,
    ) -> Result<Durable, Error> {
        let journal = self.journal.take().ok_or_else(|| Error::Failed("the daemon is ending".into()))?;
        let durable = match in_order {
            true => journal.close(),
            false => Ok(journal.durable().clone()),
        };
        let durable = durable.map_err(|error| self.fail(error))?;
        self.journal = Some(open(Arc::clone(&self.storage)).map_err(|error| self.fail(error))?);
        Ok(durable)
    }

    /// Looks whether the journal still goes on, after something was done with it in vain.
    pub fn check(&mut self) {
        // It writes nothing that wouldn't be written anyway, and says whether there was an I/O error before.
        let stopped = self.journal.as_mut().and_then(|journal| journal.flush().err());
        if let Some(stopped) = stopped {
            self.journal = None;
            self.fail(stopped);
        }
    }

    /// Nothing goes on here after this error. Returns a word of it for the one who had asked.
    fn fail(&mut self, error: journal::Error) -> Error {
        let told = Error::Failed(format!("{error}; the daemon ends"));
        self.failed.get_or_insert(error.into());
        told
    }

    /// Ends in order what is still open.
    pub fn close(&mut self) -> Result<(), Error> {
        match (self.failed.take(), self.journal.take()) {
            (Some(failed), _) => Err(failed),
            (None, Some(journal)) => Ok(journal.close().map(drop)?),
            (None, None) => Ok(()),
        }
    }
}

/// The journal, for as long as nobody else needs it. Whoever panicked with it left it in a state that nobody knows: then the
/// process ends, as after a kill.
pub fn lock(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(|_| {
        super::say("error: an error in the program itself while it had the journal; standard error says where. It ends as if killed");
        std::process::abort()
    })
}

/// Does what is sent, and merges beside it, until the daemon is told to end and nothing is under way any more, or until
/// the journal fails. While it waits, others may have the journal.
pub fn serve(held: &Mutex<Held>, work: &Receiver<Work>, desk: &Desk, merging: &mut Merging) {
    let mut waiting = VecDeque::new();
    loop {
        let mut free = lock(held);
        merging.go_on(&mut free, desk);
        // What waits would wait for ever if nobody sent anything any more.
        let next = !waiting.is_empty() && merging.lets_others(&free);
        drop(free);
        let work = match merging.look_again() {
            _ if next => Ok(Work::Look),
            None => work.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(pause) => work.recv_timeout(pause),
        };
        let mut taken = lock(held);
        let held = &mut *taken;
        match work {
            Ok(Work::Do(job)) => run(job, held, desk),
            Ok(Work::Between(job)) => {
                merging.is_waited_for(held);
                waiting.push_back(job);
            }
            Ok(Work::Merge(asked)) => merging.ask(asked),
            Ok(Work::Merged(outcome)) => merging.finish(held, desk, outcome),
            Ok(Work::Look) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        // Before the next step is begun: they have waited for the last.
        while merging.lets_others(held) {
            let Some(job) = waiting.pop_front() else { break };
            run(job, held, desk);
        }
        if let Some(journal) = &held.journal {
            desk.look_at(journal);
        }
        // A step that is under way writes to the journal.
        if held.failed.is_some() || (desk.activity.is_over() && merging.rests()) {
            break;
        }
    }
    merging.end(desk);
}

fn run(job: Job, held: &mut Held, desk: &Desk) {
    let tell = job(held);
    // First: whoever is told finds it in the status.
    if let Some(journal) = &held.journal {
        desk.look_at(journal);
    }
    tell();
}
