//! The journal's owner, as software ports see it.

use engine::block_port::Drained;
use journal::{Delivered, Journal, Record};

/// Records on their way to the journal.
#[derive(Debug, Default)]
pub struct Handed {
    /// Sealed, in stamp order.
    pub records: Vec<Drained>,
    /// The ports' watermarks behind them.
    pub delivered: Vec<Delivered>,
    /// How much of it is to be durable on return.
    pub sync: Commit,
}

/// What is made durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Commit {
    /// Nothing.
    #[default]
    No,
    /// Everything appended ([`Journal::sync_batches`]).
    Batches,
    /// That, and the journal's note of it ([`Journal::sync`]).
    Whole,
}

/// What became of them.
#[derive(Debug)]
pub struct Outcome {
    /// The records that the journal has.
    pub taken: Vec<Drained>,
    /// The rest, from the first that it has not.
    pub rest: Vec<Drained>,
    /// Where the journal ends now, order and stamp; or why something was left.
    pub result: Result<(u64, u64), journal::Error>,
}

/// Who owns the journal. The calls block.
pub trait Owner: Send + Sync {
    /// Appends records, and makes everything durable if that is asked for.
    fn append(&self, handed: Handed) -> Outcome;

    /// [`Journal::set_primary_checkpoint`].
    fn set_primary_checkpoint(&self, volumes: &[u16], at: (u64, u64)) -> Result<(), journal::Error>;

    /// The journal has no room, since that long; `None`: it has again. For a log.
    fn full(&self, since: Option<std::time::Duration>) {
        let _ = since;
    }
}

/// Appends to a journal that is at hand.
pub fn append_to(journal: &mut Journal, handed: Handed) -> Outcome {
    let Handed { records: mut taken, delivered, sync } = handed;
    let appended = {
        let records: Vec<Record<'_>> =
            taken.iter().map(|drained| Record::new(drained.header, &drained.payload)).collect();
        match records.is_empty() {
            // Watermarks alone can wait for the next records; and the journal's ports may be closed.
            true => Ok(journal.end().order),
            false => journal.append(&records, &delivered),
        }
    };
    let (rest, result) = match appended {
        Ok(_) => {
            let synced = match sync {
                Commit::No => Ok(()),
                Commit::Batches => journal.sync_batches().map(drop),
                Commit::Whole => journal.sync().map(drop),
            };
            (Vec::new(), synced)
        }
        Err(error) => {
            let count = match &error {
                journal::Error::Full { appended, .. } => *appended,
                journal::Error::BadRecord { index, .. } => *index,
                _ => 0,
            };
            (taken.split_off(count), Err(error))
        }
    };
    let end = journal.end();
    Outcome { taken, rest, result: result.map(|()| (end.order, end.timestamp)) }
}
