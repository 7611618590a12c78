//! The journal's thread, as software ports see it: they leave their batches on the desk.

use super::exports::ARBITER;
use crate::daemon::{say, Desk};
use journal::{Journal, Port, PortKind, Source, SourceIdentity};
use layout::entry::NO_INDEX;
use ports::export::{Doorkeeper, FIRST_PORT};
use ports::owner::{append_to, Handed, Outcome, Owner};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

/// A full journal is said to be only after so long: where merging makes room, there is some again in a moment.
const SAY_AFTER: Duration = Duration::from_millis(500);
/// Sources that the journal's tables are given. Later ones aren't told apart: the tables are copied into every seal.
const MOST_SOURCES: usize = 1024;

/// See the module.
pub struct DeskOwner {
    desk: Arc<Desk>,
    said_full: AtomicBool,
}

impl DeskOwner {
    /// The owner behind that desk.
    pub fn new(desk: &Arc<Desk>) -> Self {
        Self { desk: Arc::clone(desk), said_full: AtomicBool::new(false) }
    }

    fn stopped(&self) -> journal::Error {
        journal::Error::Stopped { file: self.desk.name.display().to_string() }
    }
}

impl Owner for DeskOwner {
    fn append(&self, handed: Handed) -> Outcome {
        let stopped = self.stopped();
        self.desk.now(move |held| {
            let Ok(journal) = held.journal() else {
                return Outcome { taken: Vec::new(), rest: handed.records, result: Err(stopped) };
            };
            let outcome = append_to(journal, handed);
            match &outcome.result {
                Ok(_) => {}
                Err(journal::Error::Full { .. }) => held.no_room = true,
                Err(_) => held.check(),
            }
            outcome
        })
    }

    fn set_primary_checkpoint(&self, volumes: &[u16], at: (u64, u64)) -> Result<(), journal::Error> {
        let (volumes, stopped) = (volumes.to_vec(), self.stopped());
        let set = self.desk.call(move |held| {
            let Ok(journal) = held.journal() else { return Err(stopped) };
            let set = journal.set_primary_checkpoint(&volumes, at);
            match set {
                Err(ref error) if !matches!(error, journal::Error::Full { .. }) => held.check(),
                _ => {}
            }
            set
        });
        set.unwrap_or_else(|_| Err(self.stopped()))
    }

    fn full(&self, since: Option<Duration>) {
        let name = self.desk.name.display();
        match since {
            Some(since) => {
                self.desk.activity.set_waits_for_room(true);
                if since >= SAY_AFTER && !self.said_full.swap(true, Ordering::Relaxed) {
                    say(format_args!(
                        "warning: {name}: the journal is full: writes wait until there is room"
                    ));
                }
            }
            None => {
                self.desk.activity.set_waits_for_room(false);
                if self.said_full.swap(false, Ordering::Relaxed) {
                    say(format_args!("{name}: there is room again, and writes go on"));
                }
            }
        }
    }
}

impl Doorkeeper for DeskOwner {
    fn enter(&self, port: u8, source: u64) -> io::Result<u16> {
        let entered = self.desk.call(move |held| {
            let journal = held.journal()?;
            let entered = enter(journal, port, source);
            entered.inspect_err(|_| held.check()).map_err(crate::error::Error::from)
        });
        entered.and_then(|entered| entered).map_err(|error| io::Error::other(error.to_string()))
    }

    fn say(&self, line: &str) {
        say(format_args!("{}: {line}", self.desk.name.display()));
    }
}

/// Makes the port known before its first write, and whose it is.
fn enter(journal: &mut Journal, port: u8, source: u64) -> Result<u16, journal::Error> {
    if journal.tables().ports.iter().all(|known| known.port != port) {
        let name = format!("nbd {}", port - FIRST_PORT);
        journal.set_ports(&[Port { port, kind: PortKind::Software, arbiter: ARBITER, name }])?;
    }
    if journal.tables().sources.len() >= MOST_SOURCES {
        return Ok(NO_INDEX);
    }
    journal.note_source(Source {
        port,
        index: 0,
        identity: SourceIdentity::Number(source),
        since_order: 0,
    })?;
    Ok(0)
}
