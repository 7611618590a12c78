//! What becomes of a frame from a source: the allow-list (DESIGN §3, invariants 7 and 11).
//!
//! The checks, in the order in which they decide. The first that applies wins; the gateware follows
//! the same list. "Byte *n*" counts from the Ethernet destination.
//!
//!  1. Shorter than 14 or longer than 9014 bytes: [`Counter::DroppedBad`].
//!  2. EtherType (bytes 12–13) is a VLAN tag, 0x8100 or 0x88A8: the type at bytes 16–17 counts, and
//!     where that is a tag again, the one at 20–21. AoE there, or a third tag: [`Counter::DroppedVlan`]
//!     (a Linux target strips any number of priority tags, so what stands behind a third could be a
//!     write). Anything else, and a frame that ends before: passes.
//!  3. Any other EtherType than AoE's passes.
//!  4. Shorter than 24 bytes: [`Counter::DroppedShort`].
//!  5. Response flag (byte 14, 0x08): [`Counter::DroppedResponse`]. A source doesn't answer. That an
//!     answer of the target carries the written data, and so looks like a write, can't matter here:
//!     answers come by the uplink.
//!  6. Header version (byte 14, high nibble) other than 1: [`Counter::DroppedVersion`].
//!  7. Tag bit 31 (byte 20, 0x80), the switch's own: [`Counter::DroppedResponse`].
//!  8. Command (byte 19):
//!     * 0, ATA: on to 9.
//!     * 1, config: shorter than 32 bytes: [`Counter::DroppedShort`]. Low nibble of byte 29: read and
//!       the two tests (0, 1, 2) pass, for they change nothing; setting the string (3, 4) and
//!       anything else: [`Counter::DroppedAoe`].
//!     * 3, reserve: shorter than 26 bytes: [`Counter::DroppedShort`]; else passes.
//!     * 2, MAC mask (reading it included), and anything else: [`Counter::DroppedAoe`].
//!  9. ATA: shorter than 36 bytes: [`Counter::DroppedShort`].
//! 10. ATA command (byte 27), and nothing else, says what it is; AFlags don't count:
//!     * IDENTIFY 0xEC, READ 0x20 and 0x24, FLUSH 0xE7 and 0xEA pass, whatever data are attached
//!       (path probes are reads with a payload). vblade refuses 0xEA; it writes nothing anywhere.
//!     * WRITE 0x30 and 0x34: on to 11.
//!     * anything else: [`Counter::DroppedCommand`].
//! 11. A write of no sectors (byte 26): [`Counter::DroppedEmpty`].
//! 12. More than 17 sectors, or fewer than 36 + 512 · sectors bytes: [`Counter::DroppedShort`].
//! 13. Shelf 0xFFFF or slot 0xFF: [`Counter::DroppedBroadcast`].
//! 14. The volume isn't in the table, or not allowed on this port: [`Counter::DroppedVolume`].
//! 15. Writes are closed: [`Counter::DroppedClosed`].
//! 16. Otherwise it is a write: data are the 512 · sectors bytes from byte 36, whatever follows is not;
//!     the LBA is 28 bits of bytes 28–31 for 0x30, 48 bits of bytes 28–33 for 0x34.

use layout::aoe::{self, AtaFrame, Header};
use layout::registers::{Counter, VOLUMES};
use layout::{crc, SECTOR_BYTES};
use std::mem::size_of;
use std::ops::Range;
use zerocopy::FromBytes;

/// Bytes of Ethernet header: a frame shorter than that is none.
pub const ETHERNET_HEADER_BYTES: usize = 14;
/// Bytes of a config query's header; the string follows.
pub const CONFIG_HEADER_BYTES: usize = 32;
/// Byte with the config command in its low nibble.
pub const CONFIG_COMMAND_BYTE: usize = 29;
/// The last config command that changes nothing: read 0, test 1, test prefix 2.
pub const CONFIG_LAST_HARMLESS: u8 = 2;
/// Bytes of a reserve command's header; MACs follow.
pub const RESERVE_HEADER_BYTES: usize = 26;
/// 48 bits of address, what the EXT commands have.
pub const LBA48_MASK: u64 = (1 << 48) - 1;
/// Distance from one EtherType to the one behind a VLAN tag.
const VLAN_TAG_BYTES: usize = 4;
/// VLAN tags that are looked through.
const VLAN_TAGS: usize = 2;

/// The volumes that the card knows, by index: AoE shelf and slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeTable {
    addresses: [Option<(u16, u8)>; VOLUMES],
}

impl VolumeTable {
    /// A table with `addresses` (shelf, slot) at indexes 0, 1, …; `None` when there are more than
    /// the card's [`VOLUMES`].
    pub fn new(addresses: &[(u16, u8)]) -> Option<Self> {
        let mut table = Self::default();
        for (index, &address) in addresses.iter().enumerate() {
            *table.addresses.get_mut(index)? = Some(address);
        }
        Some(table)
    }

    /// The lowest index of `allowed` (a bit mask) that holds shelf and slot.
    pub fn find(&self, shelf: u16, slot: u8, allowed: u32) -> Option<u16> {
        let matches = |&index: &usize| {
            allowed >> index & 1 == 1 && self.addresses.get(index) == Some(&Some((shelf, slot)))
        };
        (0..VOLUMES).find(matches).map(|index| index as u16)
    }
}

/// What a port goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRules {
    /// The card's volumes.
    pub volumes: VolumeTable,
    /// Bit mask of the volumes that sources on this port may write.
    pub allowed: u32,
    /// Writes are admitted.
    pub writes_open: bool,
}

/// A write request as the port sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// MAC of the source.
    pub source: [u8; 6],
    /// Index into the volume table.
    pub volume: u16,
    /// AoE shelf (major address).
    pub shelf: u16,
    /// AoE slot (minor address).
    pub slot: u8,
    /// AoE tag.
    pub tag: u32,
    /// First sector.
    pub lba: u64,
    /// Bits of the frame's LBA that count: [`aoe::LBA28_MASK`] for 0x30, 48 bits for 0x34.
    pub lba_mask: u64,
    /// Sectors, 1 to 17.
    pub sectors: u16,
    /// Where the data lie in the frame.
    pub payload: Range<usize>,
    /// CRC32C of the data.
    pub payload_crc: u32,
}

impl Write {
    /// Do the two have sectors in common?
    pub fn overlaps(&self, other: &Write) -> bool {
        self.volume == other.volume
            && self.lba < other.lba + u64::from(other.sectors)
            && other.lba < self.lba + u64::from(self.sectors)
    }

    /// Would one be a copy (retransmission) of the other, if both came in at one port? By DESIGN §3,
    /// invariant 7, the tag doesn't matter.
    pub fn equals(&self, other: &Write) -> bool {
        (self.source, self.volume, self.lba, self.sectors, self.payload_crc)
            == (other.source, other.volume, other.lba, other.sectors, other.payload_crc)
    }
}

/// What becomes of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Goes to the uplink as it is.
    Pass,
    /// Is journaled and forwarded.
    Write(Write),
    /// Is dropped, and counted here.
    Drop(Counter),
}

/// Decides what becomes of `frame`, which begins with the Ethernet destination and has no FCS.
///
/// The list at the top of this module is what it does.
pub fn classify(frame: &[u8], rules: &PortRules) -> Decision {
    if !(ETHERNET_HEADER_BYTES..=aoe::MAXIMUM_FRAME_BYTES).contains(&frame.len()) {
        return Decision::Drop(Counter::DroppedBad);
    }
    match ethertype(frame, 12) {
        Some(aoe::ETHERTYPE) => classify_aoe(frame, rules).unwrap_or_else(Decision::Drop),
        Some(kind) if is_vlan(kind) => classify_vlan(frame),
        _ => Decision::Pass,
    }
}

fn ethertype(frame: &[u8], offset: usize) -> Option<u16> {
    let bytes = frame.get(offset..offset + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

fn is_vlan(ethertype: u16) -> bool {
    matches!(ethertype, aoe::ETHERTYPE_VLAN | aoe::ETHERTYPE_PROVIDER_VLAN)
}

fn classify_vlan(frame: &[u8]) -> Decision {
    for tag in 1..=VLAN_TAGS {
        match ethertype(frame, 12 + tag * VLAN_TAG_BYTES) {
            Some(aoe::ETHERTYPE) => return Decision::Drop(Counter::DroppedVlan),
            Some(kind) if is_vlan(kind) => {}
            _ => return Decision::Pass,
        }
    }
    Decision::Drop(Counter::DroppedVlan)
}

/// Checks 4 to 8. `Err` is the counter of a drop.
fn classify_aoe(frame: &[u8], rules: &PortRules) -> Result<Decision, Counter> {
    let (header, _) = Header::ref_from_prefix(frame).map_err(|_| Counter::DroppedShort)?;
    if header.version_flags & aoe::FLAG_RESPONSE != 0 {
        return Err(Counter::DroppedResponse);
    }
    if header.version_flags >> 4 != aoe::VERSION {
        return Err(Counter::DroppedVersion);
    }
    if header.tag.get() & aoe::TAG_SWITCH_OWN != 0 {
        return Err(Counter::DroppedResponse);
    }
    match header.command {
        aoe::COMMAND_ATA => classify_ata(frame, rules),
        aoe::COMMAND_CONFIG if frame.len() < CONFIG_HEADER_BYTES => Err(Counter::DroppedShort),
        aoe::COMMAND_CONFIG if frame[CONFIG_COMMAND_BYTE] & 0x0F <= CONFIG_LAST_HARMLESS => {
            Ok(Decision::Pass)
        }
        aoe::COMMAND_RESERVE if frame.len() < RESERVE_HEADER_BYTES => Err(Counter::DroppedShort),
        aoe::COMMAND_RESERVE => Ok(Decision::Pass),
        _ => Err(Counter::DroppedAoe),
    }
}

/// Checks 9 and 10.
fn classify_ata(frame: &[u8], rules: &PortRules) -> Result<Decision, Counter> {
    let (request, data) = AtaFrame::ref_from_prefix(frame).map_err(|_| Counter::DroppedShort)?;
    match request.ata.command_status {
        aoe::ATA_IDENTIFY | aoe::ATA_READ | aoe::ATA_READ_EXT | aoe::ATA_FLUSH | aoe::ATA_FLUSH_EXT => {
            Ok(Decision::Pass)
        }
        aoe::ATA_WRITE => classify_write(request, aoe::LBA28_MASK, data, rules),
        aoe::ATA_WRITE_EXT => classify_write(request, LBA48_MASK, data, rules),
        _ => Err(Counter::DroppedCommand),
    }
}

/// Checks 11 to 16.
fn classify_write(
    request: &AtaFrame,
    lba_mask: u64,
    data: &[u8],
    rules: &PortRules,
) -> Result<Decision, Counter> {
    let header = &request.header;
    let (shelf, slot) = (header.shelf.get(), header.slot);
    let sectors = usize::from(request.ata.sectors);
    if sectors == 0 {
        return Err(Counter::DroppedEmpty);
    }
    if sectors > aoe::MAXIMUM_SECTORS {
        return Err(Counter::DroppedShort);
    }
    let data = data.get(..sectors * SECTOR_BYTES).ok_or(Counter::DroppedShort)?;
    if shelf == aoe::SHELF_BROADCAST || slot == aoe::SLOT_BROADCAST {
        return Err(Counter::DroppedBroadcast);
    }
    let volume = rules.volumes.find(shelf, slot, rules.allowed).ok_or(Counter::DroppedVolume)?;
    if !rules.writes_open {
        return Err(Counter::DroppedClosed);
    }
    Ok(Decision::Write(Write {
        source: header.source,
        volume,
        shelf,
        slot,
        tag: header.tag.get(),
        lba: request.ata.lba48() & lba_mask,
        lba_mask,
        sectors: sectors as u16,
        payload: aoe::WRITE_HEADER_BYTES..aoe::WRITE_HEADER_BYTES + data.len(),
        payload_crc: crc::crc32c(data),
    }))
}

const _: () = assert!(size_of::<Header>() == 24 && size_of::<AtaFrame>() == 36);
const _: () = assert!(VOLUMES <= u32::BITS as usize);
