//! The dirty-region log of software ports: where primary storage may be ahead of the journal.
//!
//! Two slots of [`SLOT_BYTES`] take turns, by generation. A slot is a [`Header`], with AoE ports a [`Position`], then for each volume a [`Row`] and a bit
//! a region, lowest bit of the first byte first, padded to 8 bytes; the whole padded with zeroes to [`BLOCK_BYTES`].
//! A region is marked durably before the first write to it reaches primary.

use crate::journal_file::Prefix;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What slots are written in.
pub const BLOCK_BYTES: usize = 4096;
/// Bytes of a slot; the file has two.
pub const SLOT_BYTES: usize = 512 << 10;
/// Regions of a volume, at most: a larger volume has larger ones.
pub const MOST_REGIONS: u64 = 1 << 15;
/// Smallest region, as a power of two: 4 MiB. A first write to a region costs a sync; comparing one, some 2 ms.
pub const SMALLEST_REGION_SHIFT: u8 = 22;
/// Magic of a slot.
pub const MAGIC: [u8; 8] = *b"CSW-DIRT";

/// Bits of [`Header::flags`].
pub mod dirty_flags {
    /// Primary could not be made durable: whatever the boot, it has to be replayed from its checkpoint.
    pub const REPLAY: u32 = 1 << 0;
    /// Everything ended in order: nothing has to be looked at.
    pub const CLEAN: u32 = 1 << 1;
    /// A [`super::Position`] follows the header, before the rows.
    pub const POSITION: u32 = 1 << 2;
}

/// Begins a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Magic, the journal file's version, CRC32C of `bytes` with this field zero.
    pub prefix: Prefix,
    /// Identity of the journal.
    pub journal_id: [u8; 16],
    /// Rises by one with each write; even ones are in the first slot.
    pub generation: U64,
    /// The kernel's boot identity when it was written: in another boot, what primary had in the page cache is gone.
    pub boot_id: [u8; 16],
    /// Bits of [`dirty_flags`].
    pub flags: U32,
    /// Rows that follow.
    pub rows: U32,
    /// Bytes of the slot that are used, a multiple of [`BLOCK_BYTES`].
    pub bytes: U32,
    /// Zero.
    pub reserved: U32,
}

/// Which state of the journal the log belongs to: with an older or a newer one it says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Position {
    /// The journal's session whose writes are marked.
    pub session: U64,
    /// Regions were cleared because the journal had the arbiter's entries up to this number, durably.
    pub number: U64,
}

/// A volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Row {
    /// Index in the journal's table.
    pub volume: U16,
    /// A region has 2 to the power of this bytes.
    pub region_shift: u8,
    /// Zero.
    pub reserved: u8,
    /// Regions; as many bits follow.
    pub regions: U32,
}
