//! The primary journal: one preallocated file or block device.
//!
//! ```text
//! 0        superblock, first copy          4096
//! 4096     durability note 0               4096
//! 8192     superblock, second copy         4096
//! 12288    durability note 1               4096
//! 16384    tables, first copy              table_bytes
//!          tables, second copy             table_bytes
//!          segments                        segment_count × segment_bytes
//! ```
//!
//! A segment is a header block, batches back to back, and, once it is sealed, its index and a copy of
//! the tables right after the batches and a seal in its last block. `docs/formats.md` says what the
//! parts mean and in which order they are written.
//!
//! Everything begins on a multiple of [`BLOCK_BYTES`], so that no write ever touches a block that
//! holds something acknowledged, and direct I/O works on any device.

use zerocopy::byteorder::little_endian::{I32, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Unit of placement and of every write.
pub const BLOCK_BYTES: usize = 4096;
/// Alignment of a payload in its batch.
pub const PAYLOAD_ALIGN: usize = 512;
/// Most bytes of an image that one CRC covers.
pub const CRC_BLOCK_BYTES: usize = 4096;
/// Version of every structure in the file.
pub const VERSION: u32 = 1;

/// Where the superblock's copies lie.
pub const SUPERBLOCK_OFFSETS: [u64; 2] = [0, 8192];
/// Where the durability notes lie.
pub const NOTE_OFFSETS: [u64; 2] = [4096, 12288];
/// Where the first copy of the tables lies; the second follows at once.
pub const TABLES_OFFSET: u64 = 16384;

/// Smallest segment.
pub const MINIMUM_SEGMENT_BYTES: u64 = 64 * 1024;
/// Largest segment.
pub const MAXIMUM_SEGMENT_BYTES: u64 = 1 << 30;
/// Fewest segments of a journal.
pub const MINIMUM_SEGMENTS: u32 = 8;
/// Largest payload of a record.
pub const MAXIMUM_PAYLOAD_BYTES: usize = 1 << 20;
/// Most descriptors in a batch.
pub const MAXIMUM_DESCRIPTORS: usize = 16384;
/// Most ports of a journal, and rows of a batch's port table.
pub const MAXIMUM_PORTS: usize = 256;
/// Portions that a superblock has place for.
pub const PORTIONS: usize = 8;
/// Bytes of a digest (SHA-256).
pub const DIGEST_BYTES: usize = 32;
/// Bytes of a volume's name.
pub const NAME_BYTES: usize = 128;

/// What every structure of the file begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Prefix {
    /// Which structure it is: a constant of [`magic`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: U32,
    /// CRC32C with this field zero. What it covers stands at the structure.
    pub crc: U32,
}

/// Where [`Prefix::crc`] lies.
pub const PREFIX_CRC_OFFSET: usize = core::mem::offset_of!(Prefix, crc);

/// Bits of [`Superblock::features_read`] and [`Superblock::features_write`].
pub mod features {
    /// There is a merged portion: without it what the journal says of a moment is not whole.
    pub const MERGED: u64 = 1 << 0;
}

/// First bytes of the structures.
pub mod magic {
    /// A [`super::Superblock`].
    pub const SUPERBLOCK: [u8; 8] = *b"CHRONOSW";
    /// A [`super::Note`].
    pub const NOTE: [u8; 8] = *b"CSW-NOTE";
    /// A [`super::TablesHeader`].
    pub const TABLES: [u8; 8] = *b"CSW-TABL";
    /// A [`super::SegmentHeader`].
    pub const SEGMENT: [u8; 8] = *b"CSW-SEGM";
    /// A [`super::BatchHeader`].
    pub const BATCH: [u8; 8] = *b"CSW-BTCH";
    /// A [`super::SealHeader`].
    pub const SEAL: [u8; 8] = *b"CSW-SEAL";
    /// A [`super::BaseLabel`].
    pub const BASE: [u8; 8] = *b"CSW-BASE";
}

/// What a portion, and a segment of it, is for.
pub mod role {
    /// The portion is not in use; the segment is free.
    pub const FREE: u8 = 0;
    /// Records as they were delivered, in stamp order.
    pub const RECEIVED: u8 = 1;
    /// Merged entries, in order of stamp, then location.
    pub const MERGED: u8 = 2;
}

/// A portion of the journal: a chain of segments with consecutive sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Portion {
    /// A constant of [`role`].
    pub role: u8,
    /// Merged portions: 1 for the finest windows, rising.
    pub level: u8,
    /// Zero.
    pub reserved: [u8; 6],
    /// Merged portions: length of a window in ns.
    pub window: U64,
    /// Sequence of the oldest segment in use. Whatever else claims to belong to the portion with a
    /// lower sequence is free.
    pub first_sequence: U64,
    /// One above the last segment in use; zero: the end is found by following the chain.
    pub end_sequence: U64,
    /// Entries with a lower order are no longer part of the portion. Zero: all are.
    pub from_order: U64,
    /// Records stamped at or below this are no longer part of the portion. Zero: all are.
    pub after_timestamp: U64,
}

/// The superblock. Its CRC covers its whole block, whose rest is zero.
///
/// Both copies are written at every change, one after the other is durable: a copy that is intact
/// never says less than what was confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Superblock {
    /// [`magic::SUPERBLOCK`].
    pub prefix: Prefix,
    /// Rises with every change.
    pub generation: U64,
    /// Chosen at random when the journal is made; stands in every structure of it.
    pub journal_id: [u8; 16],
    /// When it was made, ns since the Unix epoch.
    pub created: U64,
    /// Bits that a reader has to know to read the file. Unknown ones: refuse it.
    pub features_read: U64,
    /// Bits that a writer has to know to write the file. Unknown ones: read only.
    pub features_write: U64,
    /// Bytes of the file or device that the journal uses.
    pub file_bytes: U64,
    /// Bytes of one copy of the tables.
    pub table_bytes: U64,
    /// Where the first segment begins.
    pub segments_offset: U64,
    /// Bytes of a segment.
    pub segment_bytes: U64,
    /// Segments.
    pub segment_count: U32,
    /// Segments that only completions, gaps and the ends of sessions may take.
    pub reserved_completions: U32,
    /// Segments that only merging may take.
    pub reserved_merge: U32,
    /// Segments that only a rollback may take.
    pub reserved_rollback: U32,
    /// The highest session number that was ever begun.
    pub session: U64,
    /// The tables are at least of this generation.
    pub table_generation: U64,
    /// Portions; the first is the received one.
    pub portions: [Portion; PORTIONS],
}

const _: () = assert!(core::mem::size_of::<Superblock>() <= BLOCK_BYTES);

/// A durability note: what had been durable when it was written. Its CRC covers its whole block,
/// whose rest is zero; what is not zero fits one 512-byte sector.
///
/// The two notes are written in turn, each durably, after the batches that it speaks of are durable
/// and before anyone is told so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Note {
    /// [`magic::NOTE`].
    pub prefix: Prefix,
    /// Of the journal.
    pub journal_id: [u8; 16],
    /// Rises with every note; the note lies at [`NOTE_OFFSETS`]`[generation % 2]`.
    pub generation: U64,
    /// Session that wrote it.
    pub session: U64,
    /// The last durable batch of the received portion; zero: none.
    pub batch: U64,
    /// Where that batch begins.
    pub batch_offset: U64,
    /// CRC of that batch's header.
    pub batch_crc: U32,
    /// Zero.
    pub reserved: U32,
    /// The last order number given up to that batch.
    pub order: U64,
    /// The last stamp up to that batch.
    pub timestamp: U64,
}

const _: () = assert!(core::mem::size_of::<Note>() <= 512);

/// Head of the tables. The CRC covers the header and all that follows, `bytes` in all, padding included.
///
/// Sections follow: a [`SectionHeader`] and its rows each. A section of an unknown kind is skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TablesHeader {
    /// [`magic::TABLES`].
    pub prefix: Prefix,
    /// Of the journal.
    pub journal_id: [u8; 16],
    /// Rises with every change.
    pub generation: U64,
    /// Header, sections and zeroes up to a multiple of [`BLOCK_BYTES`].
    pub bytes: U32,
    /// Sections.
    pub sections: U32,
}

/// Head of a section of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SectionHeader {
    /// A constant of [`section`].
    pub kind: U32,
    /// Bytes of a row.
    pub row_bytes: U32,
    /// Rows.
    pub rows: U32,
    /// Zero.
    pub reserved: U32,
}

/// Kinds of sections in the tables.
pub mod section {
    /// Rows are [`super::VolumeRow`]s.
    pub const VOLUMES: u32 = 1;
    /// Rows are [`super::PortRow`]s.
    pub const PORTS: u32 = 2;
    /// Rows are [`super::SourceRow`]s.
    pub const SOURCES: u32 = 3;
    /// Rows are [`super::BookmarkRow`]s.
    pub const BOOKMARKS: u32 = 4;
    /// Rows are [`super::ScheduleRow`]s.
    pub const SCHEDULE: u32 = 5;
    /// Rows are [`super::ImageRow`]s.
    pub const IMAGES: u32 = 6;
}

/// How a volume is addressed.
pub mod volume_kind {
    /// By AoE shelf and slot; the name is `shelf.slot`.
    pub const AOE: u8 = 1;
    /// By the name of an NBD export.
    pub const NBD: u8 = 2;
}

/// What the entries of a volume hold: bits.
pub mod technique {
    /// The data after the write.
    pub const AFTER: u8 = 1;
    /// The data before the write.
    pub const BEFORE: u8 = 2;
}

/// A volume. Entries name it by `index`; an index is never given to another volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct VolumeRow {
    /// Name, UTF-8, padded with zeroes.
    pub name: [u8; NAME_BYTES],
    /// Index in entries.
    pub index: U16,
    /// A constant of [`volume_kind`].
    pub kind: u8,
    /// Bits of [`technique`].
    pub technique: u8,
    /// AoE shelf.
    pub shelf: U16,
    /// AoE slot.
    pub slot: u8,
    /// Zero.
    pub reserved: u8,
    /// Bytes of a sector.
    pub sector_bytes: U32,
    /// The arbiter that admits its writes.
    pub arbiter: U16,
    /// Zero.
    pub reserved2: U16,
    /// Sectors when the volume was entered; markers flagged *resized* change them.
    pub sectors: U64,
    /// Identity of the base; zero: none is known.
    pub base_id: [u8; 16],
    /// The base holds every entry up to this order. Zero: it is from before the first.
    pub base_order: U64,
    /// Stamp of that entry.
    pub base_timestamp: U64,
    /// Primary was made durable up to this order.
    pub primary_order: U64,
    /// Stamp of that entry.
    pub primary_timestamp: U64,
    /// The base may hold entries up to this order; it is at least `base_order`.
    pub rolling_order: U64,
    /// Stamp of that entry.
    pub rolling_timestamp: U64,
    /// Entries that were rolled into the base though nobody knows whether the target executed them.
    pub base_doubtful: U64,
    /// Zero.
    pub reserved3: [u8; 32],
}

const _: () = assert!(core::mem::size_of::<VolumeRow>() == 256);

/// What makes a port's entries.
pub mod port_kind {
    /// A port of a card.
    pub const CARD: u8 = 1;
    /// A software port.
    pub const SOFTWARE: u8 = 2;
}

/// A port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PortRow {
    /// Index in entries.
    pub port: u8,
    /// A constant of [`port_kind`].
    pub kind: u8,
    /// The arbiter that numbers its entries.
    pub arbiter: U16,
    /// Zero.
    pub reserved: [u8; 4],
    /// Name, UTF-8, padded with zeroes.
    pub name: [u8; 56],
}

const _: () = assert!(core::mem::size_of::<PortRow>() == 64);

/// What a source's identity is.
pub mod source_kind {
    /// A MAC address, first byte in bits 7:0.
    pub const MAC: u8 = 1;
    /// A number given by a software port.
    pub const NUMBER: u8 = 2;
}

/// A source. A port's index may be given to another source later: the row with the highest
/// `since_order` not above an entry's order is the entry's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SourceRow {
    /// Port.
    pub port: u8,
    /// A constant of [`source_kind`].
    pub kind: u8,
    /// Index in the port's entries.
    pub index: U16,
    /// Zero.
    pub reserved: U32,
    /// MAC address or number.
    pub identity: U64,
    /// First order number that can be this source's.
    pub since_order: U64,
    /// Zero.
    pub reserved2: U64,
}

const _: () = assert!(core::mem::size_of::<SourceRow>() == 32);

/// Bytes of a bookmark's name.
pub const BOOKMARK_NAME_BYTES: usize = 64;

/// A named moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BookmarkRow {
    /// Name, UTF-8, padded with zeroes; no two bookmarks have the same.
    pub name: [u8; BOOKMARK_NAME_BYTES],
    /// The moment is just after the entry with this order; zero: before the first.
    pub order: U64,
    /// Stamp of that entry.
    pub timestamp: U64,
    /// When it was made, by the host's clock, ns since the Unix epoch.
    pub created: U64,
    /// Zero.
    pub reserved: U64,
}

const _: () = assert!(core::mem::size_of::<BookmarkRow>() == 96);

/// A level of the schedule of merging: rows rise by `window`, and so do `keep` and `least`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ScheduleRow {
    /// Length of a window in ns; zero, in the first row: every write.
    pub window: U64,
    /// How far back moments of this level are kept, ns.
    pub keep: U64,
    /// How far back they are kept when room runs short, ns; at most `keep`.
    pub least: U64,
    /// Zero.
    pub reserved: U64,
}

const _: () = assert!(core::mem::size_of::<ScheduleRow>() == 32);

/// A named image: a moment of a volume that merging keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ImageRow {
    /// Name, UTF-8, padded with zeroes; no two images have the same.
    pub name: [u8; BOOKMARK_NAME_BYTES],
    /// Volume.
    pub volume: U16,
    /// Zero.
    pub reserved: [u8; 6],
    /// The moment is just after the entry with this order; zero: before the first.
    pub order: U64,
    /// Stamp of that entry.
    pub timestamp: U64,
    /// When it was made, by the host's clock, ns since the Unix epoch.
    pub created: U64,
}

const _: () = assert!(core::mem::size_of::<ImageRow>() == 96);

/// What stands beside a base, in a file of its own: of which volume it is, and where it stands. Its CRC
/// covers the block of [`BLOCK_BYTES`], whose rest is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BaseLabel {
    /// [`magic::BASE`].
    pub prefix: Prefix,
    /// Of the journal.
    pub journal_id: [u8; 16],
    /// Identity of the base, as in [`VolumeRow::base_id`].
    pub base_id: [u8; 16],
    /// Name of the volume, UTF-8, padded with zeroes.
    pub volume: [u8; NAME_BYTES],
    /// Sectors of the base.
    pub sectors: U64,
    /// It holds every entry up to this order.
    pub order: U64,
    /// Stamp of that entry.
    pub timestamp: U64,
    /// It may hold entries up to this order: moments before it can't be made from it.
    pub rolling_order: U64,
    /// Stamp of that entry.
    pub rolling_timestamp: U64,
    /// When it was made, by the host's clock, ns since the Unix epoch.
    pub created: U64,
}

const _: () = assert!(core::mem::size_of::<BaseLabel>() <= BLOCK_BYTES);

/// Payload of a record of kind *merged*, with which a window of a merged portion begins. The record's stamp is
/// the window's end, its number the last order in it, its sequence the stamp behind which the window begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct MergedWindow {
    /// The first order in it.
    pub first_order: U64,
    /// Stamp of the entry with that order.
    pub first_timestamp: U64,
    /// Stamp of the entry with the last order.
    pub last_timestamp: U64,
    /// Zero.
    pub reserved: U64,
}

const _: () = assert!(core::mem::size_of::<MergedWindow>() == 32);

/// Head of a segment, in its first block. Its CRC covers the whole block, whose rest is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SegmentHeader {
    /// [`magic::SEGMENT`].
    pub prefix: Prefix,
    /// Of the journal.
    pub journal_id: [u8; 16],
    /// Which segment of the file this is.
    pub slot: U32,
    /// Index of the portion in the superblock.
    pub portion: u8,
    /// A constant of [`role`].
    pub role: u8,
    /// Zero.
    pub reserved: U16,
    /// Place in the portion's chain, from 1.
    pub sequence: U64,
    /// Session that took the segment into use.
    pub session: U64,
    /// Bytes of the segment.
    pub segment_bytes: U64,
    /// Sequence of the batch that comes first in it.
    pub first_batch: U64,
    /// Order that the next entry gets; in a merged portion the order that its first batch names.
    pub first_order: U64,
    /// Batches of the portion known durable when this was written.
    pub durable_up_to: U64,
    /// CRC of the header of the batch before the first; zero before any.
    pub previous_batch_crc: U32,
    /// Zero.
    pub reserved2: U32,
    /// [`SealHeader::digest`] of the segment before; zero before any.
    pub previous_digest: [u8; DIGEST_BYTES],
}

/// Head of a batch. Its CRC covers these [`BATCH_HEADER_BYTES`].
///
/// There follow, back to back: [`SessionStart`] (with [`batch_flags::SESSION_START`]), `ports` times
/// [`PortState`], `descriptors` times [`crate::entry::EntryHeader`], `block_crcs` times a CRC32C,
/// zeroes up to `head_bytes`; then the payloads, each on a multiple of [`PAYLOAD_ALIGN`] with zeroes
/// in between; zeroes up to `batch_bytes`.
///
/// A payload of one image and at most [`CRC_BLOCK_BYTES`] has the descriptor's CRC alone; any other
/// has one CRC in the list for each [`CRC_BLOCK_BYTES`] of each of its images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BatchHeader {
    /// [`magic::BATCH`].
    pub prefix: Prefix,
    /// Of the journal.
    pub journal_id: [u8; 16],
    /// Session that wrote it; not below that of the segment's header.
    pub session: U64,
    /// Place in the portion, from 1, consecutive over segments and sessions.
    pub sequence: U64,
    /// Sequence of the segment that it lies in.
    pub segment_sequence: U64,
    /// Batches of the portion known durable when this was written: up to this one, inclusive.
    pub durable_up_to: U64,
    /// Order of its first entry; without entries, the order that the next one gets. In a merged portion
    /// the last order of its window, which is that of all its entries.
    pub first_order: U64,
    /// Smallest stamp in it; without descriptors, the last one before.
    pub first_timestamp: U64,
    /// Largest stamp in it; without descriptors, the last one before.
    pub last_timestamp: U64,
    /// When it was written, by the host's clock, ns since the Unix epoch.
    pub written: U64,
    /// CRC of the previous batch's header; zero before any.
    pub previous_crc: U32,
    /// Bits of [`batch_flags`].
    pub flags: U32,
    /// CRC32C of what lies between this header and `head_bytes`.
    pub head_crc: U32,
    /// Bytes up to the first payload: a multiple of [`PAYLOAD_ALIGN`].
    pub head_bytes: U32,
    /// Bytes of the batch: a multiple of [`BLOCK_BYTES`].
    pub batch_bytes: U32,
    /// Descriptors.
    pub descriptors: U32,
    /// Descriptors of entries, which take an order number each.
    pub entries: U32,
    /// Rows of the port table.
    pub ports: U32,
    /// CRCs in the list.
    pub block_crcs: U32,
    /// Index of the portion in the superblock.
    pub portion: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// Zero.
    pub reserved2: [u8; 120],
}

/// Bytes of a [`BatchHeader`].
pub const BATCH_HEADER_BYTES: usize = 256;
const _: () = assert!(core::mem::size_of::<BatchHeader>() == BATCH_HEADER_BYTES);

/// Bits of [`BatchHeader::flags`].
pub mod batch_flags {
    /// A session begins here; a [`super::SessionStart`] follows the header.
    pub const SESSION_START: u32 = 1 << 0;
    /// The session ended in order here.
    pub const SESSION_END: u32 = 1 << 1;
    /// After an unclean stop no entry has come yet, so the gap's end isn't known yet.
    pub const GAP_PENDING: u32 = 1 << 2;
    /// No port was open in this session, or every entry was durable before its write was let through: it misses nothing if
    /// it doesn't end in order.
    pub const PORTS_CLOSED: u32 = 1 << 3;
}

/// What a session says of itself in its first batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SessionStart {
    /// When it began, by the host's clock, ns since the Unix epoch.
    pub opened: U64,
    /// TAI − UTC in seconds; [`TAI_UNKNOWN`]: not known.
    pub tai_minus_utc: I32,
    /// How the session before ended: a constant of [`previous_end`].
    pub previous_end: U32,
    /// The session before; zero: none.
    pub previous_session: U64,
    /// The last batch that was kept.
    pub continues_after: U64,
    /// Bytes of a torn tail that were cut off here.
    pub cut_bytes: U64,
    /// Program that wrote it, UTF-8, padded with zeroes.
    pub writer: [u8; 56],
    /// Zero.
    pub reserved: [u8; 32],
}

/// [`SessionStart::tai_minus_utc`]: not known.
pub const TAI_UNKNOWN: i32 = i32::MIN;

const _: () = assert!(core::mem::size_of::<SessionStart>() == 128);

/// How a session ended.
pub mod previous_end {
    /// There was none.
    pub const FIRST: u32 = 0;
    /// In order.
    pub const CLEAN: u32 = 1;
    /// Without saying so.
    pub const UNCLEAN: u32 = 2;
}

/// State of a port at the end of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PortState {
    /// Port.
    pub port: u8,
    /// Bits of [`port_flags`].
    pub flags: u8,
    /// The arbiter that numbers its entries.
    pub arbiter: U16,
    /// Zero.
    pub reserved: U32,
    /// Delivered watermark: nothing of the port at or below this stamp is still to come.
    pub delivered: U64,
    /// Largest stamp of the port's records.
    pub last_timestamp: U64,
    /// Largest number of the port's entries.
    pub last_number: U64,
    /// Sequence of the port's last record.
    pub last_sequence: U64,
}

const _: () = assert!(core::mem::size_of::<PortState>() == 40);

/// Bits of [`PortState::flags`].
pub mod port_flags {
    /// In a merged batch, whose entries have one stamp: the port's entries are complete up to it.
    pub const VALID: u8 = 1 << 0;
}

/// Seal of a segment, in its last block. Its CRC covers the whole block, whose rest is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SealHeader {
    /// [`magic::SEAL`].
    pub prefix: Prefix,
    /// Of the journal.
    pub journal_id: [u8; 16],
    /// Which segment of the file this is.
    pub slot: U32,
    /// Index of the portion in the superblock.
    pub portion: u8,
    /// A constant of [`role`].
    pub role: u8,
    /// Zero.
    pub reserved: U16,
    /// Place in the portion's chain.
    pub sequence: U64,
    /// Session that sealed it.
    pub session: U64,
    /// First batch in it.
    pub first_batch: U64,
    /// Batches in it.
    pub batches: U64,
    /// CRC of the last batch's header.
    pub last_batch_crc: U32,
    /// Bytes from the segment's start to the end of its last batch.
    pub batches_end: U32,
    /// Order of its first entry.
    pub first_order: U64,
    /// Entries in it.
    pub entries: U64,
    /// Smallest stamp in it.
    pub first_timestamp: U64,
    /// Largest stamp in it.
    pub last_timestamp: U64,
    /// Where the index begins, from the segment's start.
    pub index_offset: U32,
    /// [`IndexRow`]s, in order of volume, first sector, order.
    pub index_rows: U32,
    /// [`NoteRow`]s right after them, in journal order.
    pub note_rows: U32,
    /// Where the copy of the tables begins, from the segment's start; the index is padded with
    /// zeroes up to it.
    pub tables_offset: U32,
    /// Bytes of the copy of the tables.
    pub tables_bytes: U32,
    /// CRC32C from `index_offset` to `tables_offset`.
    pub index_crc: U32,
    /// [`SealHeader::digest`] of the segment before; zero before any.
    pub previous_digest: [u8; DIGEST_BYTES],
    /// SHA-256 over `previous_digest`, the segment's header block, each batch's first `head_bytes`,
    /// the index with its padding, and the copy of the tables. Payloads enter by their CRCs.
    pub digest: [u8; DIGEST_BYTES],
}

const _: () = assert!(core::mem::size_of::<SealHeader>() <= BLOCK_BYTES);

/// An entry in a segment's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IndexRow {
    /// First sector.
    pub lba: [u8; 6],
    /// Sectors.
    pub sectors: U16,
    /// Stamp.
    pub timestamp: U64,
    /// Order, less the segment's first order.
    pub order: U32,
    /// Where the payload begins, from the segment's start, in units of [`PAYLOAD_ALIGN`].
    pub payload: U32,
    /// Volume.
    pub volume: U16,
    /// Flags of the entry, without the clock's.
    pub flags: U16,
    /// Kind.
    pub kind: u8,
    /// Status, joined with the completions in the same segment.
    pub status: u8,
    /// Port.
    pub port: u8,
    /// Encoding.
    pub encoding: u8,
}

const _: () = assert!(core::mem::size_of::<IndexRow>() == 32);

/// A record in a segment's index that is not an entry: gaps, markers, and completions of entries
/// that lie in an earlier segment. And an entry that is pending or unknown when the segment is
/// sealed, so that a later completion finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct NoteRow {
    /// The record's number: of a completion, that of its entry.
    pub number: U64,
    /// Stamp.
    pub timestamp: U64,
    /// Where its descriptor lies, from the segment's start, in bytes.
    pub descriptor: U32,
    /// Flags.
    pub flags: U16,
    /// Kind.
    pub kind: u8,
    /// Port.
    pub port: u8,
    /// Status.
    pub status: u8,
    /// Of a window: from its beginning to its end, ns; else zero.
    pub span: [u8; 7],
}

const _: () = assert!(core::mem::size_of::<NoteRow>() == 32);
