//! Every byte format of Chronoswitch stands here, once.
//!
//! The gateware takes its offsets and constants from this crate, and so do the driver, the journal,
//! the host agent and the generated documents (`docs/registers.md`, `docs/formats.md`).
//! Nothing here does anything: it names bytes. All integers are little-endian unless a page says
//! otherwise (AoE, Ethernet and NBD are big-endian).
#![cfg_attr(not(feature = "std"), no_std)]

pub mod aoe;
pub mod crc;
pub mod dirty_log;
pub mod entry;
pub mod journal_file;
pub mod nbd;
pub mod pcie;
pub mod port_ring;
pub mod registers;
pub mod ring;

/// Bytes in a sector, the unit of every LBA and every count in a frame or an entry (ATA/ATAPI).
pub const SECTOR_BYTES: usize = 512;
