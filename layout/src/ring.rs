//! A port's ring in host memory, and the mailbox beside it.
//!
//! The ring is a power of two of bytes, at least [`MINIMUM_RING_BYTES`]. Records ([`crate::entry`])
//! lie in it back to back; a record may run over the ring's end and go on at its start, a header
//! never does, since everything is a multiple of 64 bytes. *Produced* and *consumed* count bytes from
//! bring-up and never wrap (u64); the place in the ring is the count modulo the ring's size.
//! The card writes the data, then the mailbox, then sends the interrupt, in that order on PCIe.

use zerocopy::byteorder::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Smallest host ring that the card takes.
pub const MINIMUM_RING_BYTES: usize = 64 * 1024;
/// Largest host ring that the card takes.
pub const MAXIMUM_RING_BYTES: usize = 1 << 30;

/// What the card writes for one port, in one aligned 64-bit write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Mailbox {
    /// Bytes of whole records written into the ring since bring-up.
    pub produced: U64,
}

/// Distance of two ports' mailboxes, a cache line each.
pub const MAILBOX_STRIDE: usize = 64;
