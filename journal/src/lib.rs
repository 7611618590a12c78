//! The primary journal: order, append, verify, restore.
//!
//! Data flows through the modules so:
//!
//! | module | job |
//! |---|---|
//! | [`order`] | merges the ports' records into one stream, up to the smallest delivered watermark |
//! | [`Journal`] | the owner: appends that stream, makes it durable, recovers after a crash |
//! | [`JournalReader`] | reads beside the owner |
//! | [`verify`] | proves a file from nothing but itself; shares no code with the owner but `layout` |
//! | [`restore`] | makes a volume's image at a moment, from a base and after-images |
//!
//! The file's format is in `docs/formats.md`, its structs in [`layout::journal_file`]. Why it is so:
//! `docs/decisions/0010-*` and following.

mod batch;
mod block;
mod error;
mod gather;
mod geometry;
mod head;
mod moment;
mod open;
pub mod order;
mod reader;
mod record;
mod record_check;
pub mod restore;
mod segment;
mod sparse;
mod storage;
mod table_changes;
mod tables;
pub mod verify;
mod walk;
mod writer;

pub use error::Error;
pub use moment::{rfc3339, Moment};
pub use reader::{Entries, JournalReader, Records, Summary, TornTail};
pub use record::{takes_order, Delivered, Entry, Location, OwnedRecord, Record, StoredRecord};
pub use storage::{FileStorage, Storage};
pub use tables::{Address, Port, PortKind, Source, SourceIdentity, Tables, Volume};
pub use writer::{ArbiterEnd, CreateOptions, Durable, End, Journal, Opened, PreviousEnd, Space};
