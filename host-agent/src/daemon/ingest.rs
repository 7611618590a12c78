//! Ingesting while the journal is held: a replay on a thread of its own, which reaches the journal through its thread.

use super::activity::Turn;
use super::desk::{say, Desk};
use super::owner::Held;
use super::protocol::Response;
use crate::arguments::Replay;
use crate::error::Error;
use crate::output::Output;
use crate::replay::{self, Ledger, Primary};
use journal::{Delivered, Durable, End, JournalReader, Opened, OwnedRecord, Port, Source, Tables, Volume};
use std::io::{self, Write};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// A full journal is said to be only after so long: where merging makes room, ingest waits for it often and shortly.
const SAY_AFTER: Duration = Duration::from_millis(500);

/// Who hears what an ingest says.
#[derive(Clone)]
pub enum Listener {
    /// The daemon's own standard output and standard error.
    Daemon,
    /// A client. One that doesn't listen is not waited for.
    Client(SyncSender<Response>),
}

impl Listener {
    fn data(&self, line: &str) {
        match self {
            // As for standard error: nobody may be reading any more.
            Listener::Daemon => drop(writeln!(io::stdout(), "{line}")),
            Listener::Client(client) => drop(client.try_send(Response::Data(line.to_owned()))),
        }
    }

    fn note(&self, line: &str) {
        match self {
            Listener::Daemon => say(line),
            Listener::Client(client) => drop(client.try_send(Response::Note(line.to_owned()))),
        }
    }

    fn ended(self, result: Result<(), Error>) {
        match (self, result) {
            (Listener::Client(client), result) => {
                let last = match result {
                    Ok(()) => Response::Result(serde_json::Value::Null),
                    Err(error) => error.into(),
                };
                // This one is waited for: there is nothing left that it could hold up.
                drop(client.send(last));
            }
            (Listener::Daemon, Err(error)) => say(format_args!("error: {error}")),
            (Listener::Daemon, Ok(())) => {}
        }
    }
}

/// Hands on what is written to it, line by line.
struct Lines {
    listener: Listener,
    begun: Vec<u8>,
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.begun.extend_from_slice(bytes);
        while let Some(end) = self.begun.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.begun.drain(..=end).collect();
            self.listener.data(&String::from_utf8_lossy(&line[..end]));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Begins a replay. It ends by itself, or when the daemon is told to end.
pub fn start(desk: &Arc<Desk>, turn: Turn, replay: Replay, listener: Listener) -> Result<(), Error> {
    let desk = Arc::clone(desk);
    let work = move || {
        let session = Arc::new(AtomicBool::new(false));
        let began = Arc::new(AtomicBool::new(false));
        let inside = AssertUnwindSafe(|| run(&desk, &turn, &replay, &listener, &session, &began));
        let result = catch_unwind(inside).unwrap_or_else(|_| {
            Err(Error::Failed("ingest: an error in the program itself; standard error says where".into()))
        });
        if session.load(Ordering::Acquire) {
            // The journal has ended if this fails, and the daemon says so.
            let _ = desk.call_between(Held::abandon_ingest);
        }
        desk.set_failure(result.as_ref().err().map(|error| format!("the last ingest failed: {error}")));
        match result {
            // The daemon was started for something that can't be done.
            Err(error) if matches!(listener, Listener::Daemon) && !began.load(Ordering::Acquire) => {
                desk.end_with(error);
            }
            result => {
                drop(turn);
                listener.ended(result);
            }
        }
    };
    let started = thread::Builder::new().name("ingest".into()).spawn(work);
    started.map(drop).map_err(|e| Error::Failed(format!("starting to ingest: {e}")))
}

fn run(
    desk: &Arc<Desk>,
    turn: &Turn,
    replay: &Replay,
    listener: &Listener,
    session: &Arc<AtomicBool>,
    began: &AtomicBool,
) -> Result<(), Error> {
    let notes = listener.clone();
    let lines = Lines { listener: listener.clone(), begun: Vec::new() };
    let mut output = Output::to(lines, move |note| notes.note(note));
    let open = |primaries: &[Primary], _: &mut Output| -> Result<Box<dyn Ledger>, Error> {
        let lease = Lease::begin(desk, replay, primaries, listener, session)?;
        began.store(true, Ordering::Release);
        Ok(Box::new(lease))
    };
    replay::into(replay, open, turn.bar.clone(), &mut output)
}

/// The journal, for one ingest: a session with its ports open.
pub struct Lease {
    desk: Arc<Desk>,
    listener: Listener,
    opened: Opened,
    tables: Tables,
    end: End,
    /// The journal has been full since then; and that was said.
    full: Option<(Instant, bool)>,
    /// The session is open, and hasn't been ended.
    session: Arc<AtomicBool>,
}

impl Lease {
    fn begin(
        desk: &Arc<Desk>,
        replay: &Replay,
        primaries: &[Primary],
        listener: &Listener,
        session: &Arc<AtomicBool>,
    ) -> Result<Self, Error> {
        // What can't be meant is refused before a session begins.
        let tables = desk.call(|held| held.journal().map(|journal| journal.tables().clone()))??;
        // By its own name for it: the command line's is relative to another folder.
        let sectors = JournalReader::open(&desk.name)?.sectors_now()?;
        let volumes = replay::volumes(replay, primaries, &tables, &sectors)?;
        Self::open(desk, volumes, replay::ports(replay), false, listener, session)
    }

    /// Begins a session with these ports. `behind_gap`: they lack something from before, whatever the journal says of itself.
    /// `session` is set as long as it is open.
    pub fn open(
        desk: &Arc<Desk>,
        volumes: Vec<Volume>,
        ports: Vec<Port>,
        behind_gap: bool,
        listener: &Listener,
        session: &Arc<AtomicBool>,
    ) -> Result<Self, Error> {
        let open = Arc::clone(session);
        let begun = desk.call_between(move |held| {
            if behind_gap {
                // A session that doesn't end in order is how a journal says so.
                held.begin_ingest(&volumes, &ports, false)?;
                held.abandon_ingest();
            }
            let journal = held.begin_ingest(&volumes, &ports, false)?;
            open.store(true, Ordering::Release);
            Ok::<_, Error>((journal.opened().clone(), journal.tables().clone(), journal.end()))
        })?;
        let (opened, tables, end) = begun?;
        let (desk, listener, session) = (Arc::clone(desk), listener.clone(), Arc::clone(session));
        Ok(Self { desk, listener, opened, tables, end, full: None, session })
    }

    /// What befell the journal's thread, as the journal would say it.
    fn gone(&self) -> journal::Error {
        journal::Error::Stopped { file: self.desk.name.display().to_string() }
    }
}

impl Ledger for Lease {
    fn opened(&self) -> &Opened {
        &self.opened
    }

    fn tables(&self) -> &Tables {
        &self.tables
    }

    fn end(&self) -> End {
        self.end.clone()
    }

    fn append(
        &mut self,
        records: &mut Vec<OwnedRecord>,
        delivered: &[Delivered],
    ) -> Result<(), journal::Error> {
        let (mut batch, delivered, gone) = (std::mem::take(records), delivered.to_vec(), self.gone());
        let appended = self.desk.call(move |held| {
            let result = match held.journal() {
                Ok(journal) => Ledger::append(journal, &mut batch, &delivered),
                Err(_) => Err(gone),
            };
            match &result {
                Ok(()) => {}
                Err(journal::Error::Full { .. }) => held.no_room = true,
                Err(_) => held.check(),
            }
            (batch, result)
        });
        let (rest, result) = appended.map_err(|_| self.gone())?;
        *records = rest;
        result
    }

    fn note_source(&mut self, source: Source) -> Result<(), Error> {
        self.desk.call(move |held| {
            let noted = held.journal()?.note_source(source);
            noted.inspect_err(|_| held.check()).map_err(Error::from)
        })?
    }

    fn sync(&mut self) -> Result<Durable, Error> {
        self.desk.call(|held| {
            let synced = held.journal()?.sync();
            synced.inspect_err(|_| held.check()).map_err(Error::from)
        })?
    }

    fn close(self: Box<Self>) -> Result<Durable, Error> {
        let stay = !self.desk.activity.is_ending();
        self.session.store(false, Ordering::Release);
        self.desk.call_between(move |held| held.end_ingest(stay))?
    }

    fn on_full(&mut self, full: journal::Error) -> Result<(), Error> {
        let (since, said) = self.full.get_or_insert_with(|| {
            self.desk.activity.set_waits_for_room(true);
            (Instant::now(), false)
        });
        if since.elapsed() >= SAY_AFTER && !std::mem::replace(said, true) {
            let what = format!("{full}: ingest takes no more, and goes on when there is room");
            say(format_args!("warning: {what}"));
            if let Listener::Client(_) = self.listener {
                self.listener.note(&format!("warning: {what}"));
            }
        }
        Ok(())
    }

    fn on_room(&mut self) {
        let Some((_, said)) = self.full.take() else { return };
        self.desk.activity.set_waits_for_room(false);
        if said {
            let what = format!("{}: there is room again, and ingest goes on", self.desk.name.display());
            say(&what);
            if let Listener::Client(_) = self.listener {
                self.listener.note(&what);
            }
        }
    }

    fn stop_requested(&self) -> bool {
        self.desk.activity.is_ending()
    }
}
