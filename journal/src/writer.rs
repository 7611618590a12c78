//! The owner of a journal: makes it, opens it, appends, makes durable.

use crate::error::Error;
use crate::reader::TornTail;
use crate::record::{Delivered, Record};
use crate::storage::Storage;
use crate::tables::{Port, Source, Tables, Volume};
use std::path::Path;
use std::sync::Arc;

/// How a journal is made.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Bytes of the file, preallocated. A block device is used up to this, or whole if it is `None`.
    pub bytes: Option<u64>,
    /// Bytes of a segment, a power of two; `None`: by the size of the file.
    pub segment_bytes: Option<u64>,
    /// The volumes.
    pub volumes: Vec<Volume>,
    /// The ports.
    pub ports: Vec<Port>,
    /// Name and version of the program, for the session's record.
    pub writer: String,
}

/// How the session before ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreviousEnd {
    /// There was none.
    First,
    /// In order.
    Clean,
    /// Without saying so: primary may be ahead of the journal.
    Unclean,
}

/// What opening a journal found and did.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Number of this session.
    pub session: u64,
    /// How the one before ended. After an unclean end a gap of every known port is put before the
    /// first record that is appended.
    pub previous: PreviousEnd,
    /// A torn tail that was cut off; nothing of it had been reported durable.
    pub cut: Option<TornTail>,
    /// Damaged copies of superblock or tables that were written anew from the intact copy.
    pub repaired: Vec<String>,
}

/// What is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Durable {
    /// Last order number; 0: none.
    pub order: u64,
    /// Last stamp, ns.
    pub timestamp: u64,
    /// Per port that was ever seen: port, and the last number of its arbiter that is durable on it.
    pub numbers: Vec<(u8, u64)>,
}

/// Where an arbiter has to go on: the floors for the card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArbiterEnd {
    /// Arbiter.
    pub arbiter: u16,
    /// Its stamps have to be above this, ns.
    pub timestamp: u64,
    /// Its numbers have to be above this.
    pub number: u64,
}

/// Where the journal ends, durable or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Last order number; 0: none.
    pub order: u64,
    /// Largest stamp; no record may be stamped below.
    pub timestamp: u64,
    /// Per arbiter of the known ports.
    pub arbiters: Vec<ArbiterEnd>,
}

/// Room in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Segments.
    pub segments: u32,
    /// Segments that hold nothing.
    pub free: u32,
    /// Of those, segments that entries may not take.
    pub reserved: u32,
    /// Bytes left in the segment that is being filled.
    pub open_bytes: u64,
}

/// A journal, open for writing. There is one owner at a time.
///
/// Dropping it without [`Journal::close`] is an unclean stop.
pub struct Journal {
    _storage: Arc<dyn Storage>,
}

impl Journal {
    /// Makes a journal at `path`, which must not exist unless it is a block device, and opens it.
    ///
    /// The whole size is allocated; the name appears only once the journal is complete.
    pub fn create(_path: &Path, _options: &CreateOptions) -> Result<Self, Error> {
        todo!()
    }

    /// Makes a journal in `storage`, overwriting what is there.
    pub fn create_on(_storage: Arc<dyn Storage>, _options: &CreateOptions) -> Result<Self, Error> {
        todo!()
    }

    /// Opens the journal at `path`: locks it, finds its end, cuts a torn tail, begins a session.
    pub fn open(_path: &Path, _writer: &str) -> Result<Self, Error> {
        todo!()
    }

    /// Opens the journal in `storage`.
    pub fn open_on(_storage: Arc<dyn Storage>, _writer: &str) -> Result<Self, Error> {
        todo!()
    }

    /// What opening found.
    pub fn opened(&self) -> &Opened {
        todo!()
    }

    /// Volumes, ports and sources.
    pub fn tables(&self) -> &Tables {
        todo!()
    }

    /// Adds or changes volumes, durably. An index that is in use keeps its name.
    pub fn set_volumes(&mut self, _volumes: &[Volume]) -> Result<(), Error> {
        todo!()
    }

    /// Adds or changes ports, durably. Do this before a port's writes are opened: an unclean stop
    /// makes a gap for the ports that are known.
    pub fn set_ports(&mut self, _ports: &[Port]) -> Result<(), Error> {
        todo!()
    }

    /// Notes who a port's source index stands for, from the next entry on. Durable on return.
    /// Noting what is known already does nothing.
    pub fn note_source(&mut self, _source: Source) -> Result<(), Error> {
        todo!()
    }

    /// Appends records, which must be in stamp order, and the ports' delivered watermarks after them
    /// (see [`crate::order::Order::delivered`]). Header and payload CRCs are checked; watermark
    /// records are refused.
    ///
    /// Records are gathered into batches in memory and written when a batch is large enough, and by
    /// [`Journal::flush`] and [`Journal::sync`]. Returns the end of the journal's orders.
    pub fn append(&mut self, _records: &[Record<'_>], _delivered: &[Delivered]) -> Result<u64, Error> {
        todo!()
    }

    /// Writes what is gathered, without making it durable.
    pub fn flush(&mut self) -> Result<(), Error> {
        todo!()
    }

    /// Makes everything appended durable: one sync for all that came since the last (group commit),
    /// and one small write. What it returns may be acknowledged: damage to it will be reported, never
    /// mistaken for a torn tail.
    pub fn sync(&mut self) -> Result<Durable, Error> {
        todo!()
    }

    /// What is durable.
    pub fn durable(&self) -> &Durable {
        todo!()
    }

    /// Where the journal ends.
    pub fn end(&self) -> End {
        todo!()
    }

    /// Room.
    pub fn space(&self) -> Space {
        todo!()
    }

    /// Ends the session in order; everything is durable on return.
    pub fn close(self) -> Result<Durable, Error> {
        todo!()
    }
}
