//! Ingesting while the journal is held: a replay on a thread of its own, which reaches the journal through its thread.

use super::activity::Turn;
use super::desk::{say, Desk};
use super::lease::Lease;
use super::owner::Held;
use super::protocol::Response;
use crate::arguments::Replay;
use crate::error::Error;
use crate::output::Output;
use crate::replay::{self, Ledger, Primary};
use journal::JournalReader;
use std::io::{self, Write};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::Arc;
use std::thread;

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

    /// Something that isn't what was asked for.
    pub fn note(&self, line: &str) {
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
        let lease = begin(desk, replay, primaries, listener, session)?;
        began.store(true, Ordering::Release);
        Ok(Box::new(lease))
    };
    replay::into(replay, open, turn.bar.clone(), &mut output)
}

/// A session for a replay.
fn begin(
    desk: &Arc<Desk>,
    replay: &Replay,
    primaries: &[Primary],
    listener: &Listener,
    session: &Arc<AtomicBool>,
) -> Result<Lease, Error> {
    // What can't be meant is refused before a session begins.
    let tables = desk.call(|held| held.journal().map(|journal| journal.tables().clone()))??;
    // By its own name for it: the command line's is relative to another folder.
    let sectors = JournalReader::open(&desk.name)?.sectors_now()?;
    let volumes = replay::volumes(replay, primaries, &tables, &sectors)?;
    Lease::open(desk, volumes, replay::ports(replay), false, listener, session)
}
