//! How a replay reaches the journal: one that it opened itself, or one that a daemon holds.

use crate::error::Error;
use journal::{Delivered, Durable, End, Journal, Opened, OwnedRecord, Record, Source, Tables};

/// A journal for as long as a replay lasts: one session.
pub trait Ledger {
    /// What opening found.
    fn opened(&self) -> &Opened;

    /// Volumes, ports and sources, as of the beginning.
    fn tables(&self) -> &Tables;

    /// Where the journal ends, as of the last [`Ledger::append`].
    fn end(&self) -> End;

    /// Appends `records` with the ports' watermarks behind them, as [`Journal::append`] does. What was taken is
    /// gone from the front of `records`, whatever is returned.
    fn append(
        &mut self,
        records: &mut Vec<OwnedRecord>,
        delivered: &[Delivered],
    ) -> Result<(), journal::Error>;

    /// Notes who a source index stands for, durably.
    fn note_source(&mut self, source: Source) -> Result<(), Error>;

    /// Makes everything appended durable.
    fn sync(&mut self) -> Result<Durable, Error>;

    /// Ends the session in order.
    fn close(self: Box<Self>) -> Result<Durable, Error>;

    /// The journal has no room. An error ends the replay; otherwise it waits, and asks again.
    fn on_full(&mut self, full: journal::Error) -> Result<(), Error> {
        Err(explained(full))
    }

    /// After [`Ledger::on_full`]: there is room again.
    fn on_room(&mut self) {}

    /// Nothing more is to be begun: what is under way is settled, and the session ended.
    fn stop_requested(&self) -> bool {
        false
    }
}

impl Ledger for Journal {
    fn opened(&self) -> &Opened {
        Journal::opened(self)
    }

    fn tables(&self) -> &Tables {
        Journal::tables(self)
    }

    fn end(&self) -> End {
        Journal::end(self)
    }

    fn append(
        &mut self,
        records: &mut Vec<OwnedRecord>,
        delivered: &[Delivered],
    ) -> Result<(), journal::Error> {
        let views: Vec<Record<'_>> = records.iter().map(OwnedRecord::as_record).collect();
        let (taken, result) = match Journal::append(self, &views, delivered) {
            Ok(_) => (records.len(), Ok(())),
            Err(error) => {
                let taken = match &error {
                    journal::Error::Full { appended, .. } => *appended,
                    _ => 0,
                };
                (taken, Err(error))
            }
        };
        records.drain(..taken);
        result
    }

    fn note_source(&mut self, source: Source) -> Result<(), Error> {
        Ok(Journal::note_source(self, source)?)
    }

    fn sync(&mut self) -> Result<Durable, Error> {
        Journal::sync(self).map_err(explained)
    }

    fn close(self: Box<Self>) -> Result<Durable, Error> {
        Ok(Journal::close(*self)?)
    }
}

/// With what to do about it.
pub fn explained(error: journal::Error) -> Error {
    match error {
        journal::Error::Full { .. } => Error::JournalHint(
            error,
            "what came before is safe; make a larger journal (--create --size) and start from the base images",
        ),
        other => other.into(),
    }
}
