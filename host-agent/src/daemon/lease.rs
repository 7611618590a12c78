//! The journal as an ingest reaches it while it is held: a session with its ports open, through the journal's thread.

use super::desk::{say, Desk};
use super::ingest::Listener;
use crate::error::Error;
use crate::replay::Ledger;
use journal::{Delivered, Durable, End, Journal, Opened, OwnedRecord, Port, Source, Tables, Volume};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A full journal is said to be only after so long: where merging makes room, ingest waits for it often and shortly.
const SAY_AFTER: Duration = Duration::from_millis(500);

/// The journal, for one ingest: a session with its ports open.
pub struct Lease {
    desk: Arc<Desk>,
    listener: Listener,
    begun: Begun,
    /// The journal has been full since then; and that was said.
    full: Option<(Instant, bool)>,
    /// The session is open, and hasn't been ended.
    session: Arc<AtomicBool>,
}

/// What a session begins with.
pub struct Begun {
    opened: Opened,
    tables: Tables,
    end: End,
}

impl Begun {
    /// Of a journal whose ports were just opened.
    pub fn of(journal: &Journal) -> Self {
        Self { opened: journal.opened().clone(), tables: journal.tables().clone(), end: journal.end() }
    }
}

impl Lease {
    /// The session that was begun so. `session` says whether it is open still.
    pub fn new(desk: &Arc<Desk>, begun: Begun, listener: Listener, session: &Arc<AtomicBool>) -> Self {
        let (desk, session) = (Arc::clone(desk), Arc::clone(session));
        Self { desk, listener, begun, full: None, session }
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
            Ok::<_, Error>(Begun::of(journal))
        })?;
        Ok(Self::new(desk, begun?, listener.clone(), session))
    }

    /// What befell the journal's thread, as the journal would say it.
    fn gone(&self) -> journal::Error {
        journal::Error::Stopped { file: self.desk.name.display().to_string() }
    }
}

impl Ledger for Lease {
    fn opened(&self) -> &Opened {
        &self.begun.opened
    }

    fn tables(&self) -> &Tables {
        &self.begun.tables
    }

    fn end(&self) -> End {
        self.begun.end.clone()
    }

    fn append(
        &mut self,
        records: &mut Vec<OwnedRecord>,
        delivered: &[Delivered],
    ) -> Result<(), journal::Error> {
        let (mut batch, delivered, gone) = (std::mem::take(records), delivered.to_vec(), self.gone());
        let appended = self.desk.call(move |held| {
            let (result, end) = match held.journal() {
                Ok(journal) => (Ledger::append(journal, &mut batch, &delivered), Some(journal.end())),
                Err(_) => (Err(gone), None),
            };
            match &result {
                Ok(()) => {}
                Err(journal::Error::Full { .. }) => held.no_room = true,
                Err(_) => held.check(),
            }
            (batch, result, end)
        });
        let (rest, result, end) = appended.map_err(|_| self.gone())?;
        *records = rest;
        self.begun.end = end.unwrap_or_else(|| self.begun.end.clone());
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
