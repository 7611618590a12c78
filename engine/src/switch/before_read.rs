//! Reads of old data, which the switch sends to the target in the name of the source (DESIGN §3,
//! invariant 5).
//!
//! The tag is bit 31, the port in bits 30:28, the scoreboard slot in bits 27:20, and in bits 19:0 which read
//! it is. Initiators don't set bit 31 and ignore answers with it; frames from sources that have it are
//! dropped. An answer counts only if volume, LBA and length are those of the read, too. `vblade` counts the
//! answer's sector field down to 0, so the length is that of the data; the field may be 0 or echo the read's.

use crate::answer::Answer;
use crate::frame::{Write, LBA48_MASK};
use layout::aoe::{self, AtaFrame};
use layout::entry::Updated;
use layout::SECTOR_BYTES;
use zerocopy::FromBytes;

/// Reads that are sent for one write before it is dropped.
pub const TRIES: u32 = 4;

const GENERATION_BITS: u32 = 20;
const GENERATION_MASK: u32 = (1 << GENERATION_BITS) - 1;
const SLOT_BITS: u32 = 8;
const SLOT_MASK: u32 = (1 << SLOT_BITS) - 1;
const PORT_MASK: u32 = 7;
/// Bit of AFlags: 48-bit addresses.
const AFLAG_EXTENDED: u8 = 0x40;

/// Where a read's data go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Port.
    pub port: usize,
    /// Scoreboard slot.
    pub slot: usize,
    /// Which read it is; 20 bits of it count.
    pub generation: u32,
}

impl Tag {
    /// As it stands in a frame.
    pub fn value(&self) -> u32 {
        let (port, slot) = (self.port as u32, self.slot as u32);
        assert!(port <= PORT_MASK && slot <= SLOT_MASK);
        aoe::TAG_SWITCH_OWN
            | port << (SLOT_BITS + GENERATION_BITS)
            | slot << GENERATION_BITS
            | self.generation & GENERATION_MASK
    }

    /// The place that a tag names, if it is one of the switch's.
    pub fn decode(tag: u32) -> Option<Self> {
        (tag & aoe::TAG_SWITCH_OWN != 0).then_some(Self {
            port: (tag >> (SLOT_BITS + GENERATION_BITS) & PORT_MASK) as usize,
            slot: (tag >> GENERATION_BITS & SLOT_MASK) as usize,
            generation: tag & GENERATION_MASK,
        })
    }
}

/// The frame that reads what the write in `held` will overwrite. It goes to the same target, from the same
/// source, so that the target's lists of initiators hold.
pub fn request(held: &[u8], write: &Write, tag: Tag) -> Vec<u8> {
    let mut frame = vec![0; aoe::MINIMUM_FRAME_BYTES];
    frame[..aoe::WRITE_HEADER_BYTES].copy_from_slice(&held[..aoe::WRITE_HEADER_BYTES]);
    if let Ok((request, _)) = AtaFrame::mut_from_prefix(&mut frame) {
        request.header.tag = tag.value().into();
        let extended = write.lba_mask == LBA48_MASK;
        request.ata.command_status = if extended { aoe::ATA_READ_EXT } else { aoe::ATA_READ };
        request.ata.flags = if extended { AFLAG_EXTENDED } else { 0 };
        request.ata.error_feature = 0;
        request.ata.lba.copy_from_slice(&write.lba.to_le_bytes()[..6]);
        request.ata.reserved = [0; 2];
        assert_eq!(u16::from(request.ata.sectors), write.sectors);
    }
    frame
}

/// The old data in `frame`, an answer to the read for `write`; `None` if it isn't a whole, good one.
pub fn data<'a>(frame: &'a [u8], answer: &Answer, write: &Write) -> Option<&'a [u8]> {
    let (head, data) = AtaFrame::ref_from_prefix(frame).ok()?;
    let sectors = u16::from(head.ata.sectors);
    let echoes = (answer.destination, answer.shelf, answer.slot) == (write.source, write.shelf, write.slot)
        && answer.lba & write.lba_mask == write.lba
        && (sectors == 0 || sectors == write.sectors);
    let whole = data.len() == usize::from(write.sectors) * SECTOR_BYTES;
    (echoes && whole && answer.updated() == Updated::Updated).then_some(data)
}

/// Sets the tag of an AoE frame.
pub(super) fn set_tag(frame: &mut [u8], tag: u32) {
    if let Ok((header, _)) = aoe::Header::mut_from_prefix(frame) {
        header.tag = tag.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_go_there_and_back() {
        for (port, slot, generation) in [(0, 0, 0), (7, 255, 0xF_FFFF), (3, 15, 77)] {
            let tag = Tag { port, slot, generation };
            assert_eq!(Tag::decode(tag.value()), Some(tag));
        }
        assert_eq!(Tag::decode(0x7FFF_FFFF), None);
    }
}
