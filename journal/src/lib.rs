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
//! | [`image`] | a volume as it was at a moment: a map of pointers over primary or a base, no copy |
//! | [`base`] | images that after-images are applied to: made, checked, rolled on |
//! | [`diff`] | what was written between two moments |
//! | [`resync`] | after an unclean stop: journals what primary has and the journal doesn't know of |
//! | [`beside`] | records of the owner's own while ports are open |
//! | [`resize`] | a volume gets another size |
//! | [`rollback`] | brings primary back in place, journaled, so that it can be undone |
//! | [`merge`] | windows become one entry per location; what is no longer kept is given up |
//! | [`restore`] | writes such an image into a file or a device |
//!
//! The file's format is in `docs/formats.md`, its structs in [`layout::journal_file`]. Why it is so:
//! `docs/decisions/0010-*` and following.

mod backing;
pub mod base;
mod batch;
pub mod beside;
mod block;
mod checkpoint;
pub mod diff;
mod error;
mod follow;
mod gather;
mod geometry;
mod head;
mod history;
pub mod image;
mod large_memory;
mod levels;
pub mod merge;
mod moment;
mod never_written;
mod open;
mod open_gaps;
pub mod order;
mod payloads;
mod pending;
mod pin;
mod pit_map;
mod reader;
mod record;
mod record_check;
pub mod resize;
pub mod restore;
pub mod resync;
pub mod rollback;
mod schedule;
mod segment;
mod sizes;
mod sparse;
mod storage;
mod table_changes;
mod tables;
pub mod verify;
mod walk;
mod warm;
mod window_list;
mod windows;
mod writer;

pub use error::Error;
pub use history::{MissingSpan, SegmentSpan};
pub use levels::LevelReach;
pub use moment::{rfc3339, span_nanoseconds, span_text, Moment, When};
pub use reader::{Entries, JournalReader, Records, Summary, TornTail};
pub use record::{takes_order, Delivered, Entry, Location, OwnedRecord, Record, StoredRecord};
pub use schedule::{Level, Schedule};
pub use storage::{FileStorage, Io, Storage};
pub use tables::{Address, Bookmark, NamedImage, Port, PortKind, Source, SourceIdentity, Tables, Volume};
pub use window_list::{ListedWindow, ListedWindows};
pub use writer::{ArbiterEnd, CreateOptions, Durable, End, Journal, Opened, PreviousEnd, Space};
