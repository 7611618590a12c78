//! ATA over Ethernet as it stands on the wire (AoEr11). Big-endian, except the LBA.
//!
//! The frame begins with the Ethernet destination; there is no preamble and no FCS.

use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// EtherType of AoE.
pub const ETHERTYPE: u16 = 0x88A2;
/// EtherTypes of a VLAN tag (802.1Q) and a provider tag (802.1ad): a target's kernel strips them.
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// See [`ETHERTYPE_VLAN`].
pub const ETHERTYPE_PROVIDER_VLAN: u16 = 0x88A8;
/// The header version that is spoken; in the high nibble of `version_flags`.
pub const VERSION: u8 = 1;
/// `version_flags`: the frame is an answer.
pub const FLAG_RESPONSE: u8 = 0x08;
/// `version_flags`: the answer is an error; `error` says which.
pub const FLAG_ERROR: u8 = 0x04;
/// Shelf that addresses every shelf.
pub const SHELF_BROADCAST: u16 = 0xFFFF;
/// Slot that addresses every slot.
pub const SLOT_BROADCAST: u8 = 0xFF;
/// Tag bit that marks a request of the switch's own: Linux ignores answers that have it set.
pub const TAG_SWITCH_OWN: u32 = 1 << 31;

/// AoE command: an ATA register set follows.
pub const COMMAND_ATA: u8 = 0;
/// AoE command: query or set the config string.
pub const COMMAND_CONFIG: u8 = 1;
/// AoE command: edit the list of MACs that a target answers.
pub const COMMAND_MAC_MASK: u8 = 2;
/// AoE command: reserve or release.
pub const COMMAND_RESERVE: u8 = 3;

/// ATA IDENTIFY DEVICE.
pub const ATA_IDENTIFY: u8 = 0xEC;
/// ATA READ SECTORS (28 bit).
pub const ATA_READ: u8 = 0x20;
/// ATA READ SECTORS EXT (48 bit).
pub const ATA_READ_EXT: u8 = 0x24;
/// ATA WRITE SECTORS (28 bit).
pub const ATA_WRITE: u8 = 0x30;
/// ATA WRITE SECTORS EXT (48 bit).
pub const ATA_WRITE_EXT: u8 = 0x34;
/// ATA FLUSH CACHE.
pub const ATA_FLUSH: u8 = 0xE7;
/// ATA FLUSH CACHE EXT.
pub const ATA_FLUSH_EXT: u8 = 0xEA;

/// ATA status in an answer: the drive is ready.
pub const ATA_STATUS_READY: u8 = 0x40;
/// ATA status bit in an answer: the command failed.
pub const ATA_STATUS_ERROR: u8 = 0x01;
/// ATA error register: the address is past the end.
pub const ATA_ERROR_NOT_FOUND: u8 = 0x10;
/// ATA error register: command aborted.
pub const ATA_ERROR_ABORT: u8 = 0x04;
/// AoE error code: bad argument.
pub const ERROR_ARGUMENT: u8 = 2;

/// Bytes of Ethernet, AoE and ATA header before a write's data.
pub const WRITE_HEADER_BYTES: usize = 36;
/// A frame on a real wire is padded to this length (without FCS).
pub const MINIMUM_FRAME_BYTES: usize = 60;
/// Most sectors in a frame: MTU 9000 (AoEr11: (MTU − 36) / 512).
pub const MAXIMUM_SECTORS: usize = 17;
/// Longest frame the ports take: a jumbo frame's payload and the Ethernet header.
pub const MAXIMUM_FRAME_BYTES: usize = 9014;

/// Ethernet and AoE header, followed by what the command needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Ethernet destination.
    pub destination: [u8; 6],
    /// Ethernet source.
    pub source: [u8; 6],
    /// [`ETHERTYPE`].
    pub ethertype: U16,
    /// High nibble: header version; low nibble: flags.
    pub version_flags: u8,
    /// Error code of an answer.
    pub error: u8,
    /// Shelf (major address).
    pub shelf: U16,
    /// Slot (minor address).
    pub slot: u8,
    /// What follows: [`COMMAND_ATA`], [`COMMAND_CONFIG`], …
    pub command: u8,
    /// Chosen by the initiator; echoed by the target.
    pub tag: U32,
}

/// The ATA part of a frame; data follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Ata {
    /// 0x40 48-bit, 0x10 device/head, 0x02 asynchronous, 0x01 write. Targets go by the command alone.
    pub flags: u8,
    /// Feature in a request, error register in an answer.
    pub error_feature: u8,
    /// Sector count.
    pub sectors: u8,
    /// Command in a request, status register in an answer.
    pub command_status: u8,
    /// Least significant byte first.
    pub lba: [u8; 6],
    /// Zero.
    pub reserved: [u8; 2],
}

/// A whole header of an ATA frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AtaFrame {
    /// Ethernet and AoE.
    pub header: Header,
    /// ATA.
    pub ata: Ata,
}

const _: () = assert!(core::mem::size_of::<AtaFrame>() == WRITE_HEADER_BYTES);

impl Ata {
    /// The LBA as the command decodes it: 28 bits for the short commands, 48 for the EXT ones,
    /// whatever the flags say (`notes/aoe.md`: targets decode by command).
    pub fn lba48(&self) -> u64 {
        let b = self.lba;
        u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], 0, 0])
    }
}

/// Low 28 bits: the address of a short ATA command.
pub const LBA28_MASK: u64 = (1 << 28) - 1;
