//! What a target's answer to a write says about the storage (DESIGN §3, invariant 4).
//!
//! *Refused* stands only for answers that guarantee that nothing was executed; whatever else isn't
//! plain success is *unknown*.
//!
//! | answer | status | why |
//! |---|---|---|
//! | no error flag, ATA status without bit 0 (ERR), bit 5 (DF) and bit 7 (BSY) | updated | the target says so |
//! | no error flag, ERR only, error register exactly 0x10 (address past the end) | refused | checked before anything is written |
//! | no error flag, any other ATA error, 0x04 (aborted) included | unknown | vblade answers a write that failed or stopped half-way with the very 0x41/0x04 that it gives to commands it doesn't know, and a write is a command it knows |
//! | error flag, AoE error 1 (command), 2 (argument), 5 (version), 6 (target reserved) | refused | the frame was turned away before its ATA part was run |
//! | error flag, AoE error 3 (device unavailable) | unknown | a device may go away in the middle |
//! | error flag, any other AoE error | unknown | a write doesn't produce it |

use layout::aoe::{self, AtaFrame};
use layout::entry::Updated;
use zerocopy::FromBytes;

/// AoE error code: unrecognised command.
pub const ERROR_COMMAND: u8 = 1;
/// AoE error code: unsupported version.
pub const ERROR_VERSION: u8 = 5;
/// AoE error code: the target is reserved by somebody else.
pub const ERROR_RESERVED: u8 = 6;
/// ATA status bit: device fault.
pub const ATA_STATUS_FAULT: u8 = 0x20;
/// ATA status bit: busy, the other bits mean nothing.
pub const ATA_STATUS_BUSY: u8 = 0x80;

/// An answer to an ATA request, as it came from the uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// MAC of the initiator it goes to.
    pub destination: [u8; 6],
    /// Shelf of the volume.
    pub shelf: u16,
    /// Slot of the volume.
    pub slot: u8,
    /// Tag of the request.
    pub tag: u32,
    /// The six LBA bytes of the request, echoed.
    pub lba: u64,
    /// ATA status register.
    pub ata_status: u8,
    /// ATA error register, or the AoE error code when `aoe_error`.
    pub error: u8,
    /// The AoE error flag is set.
    pub aoe_error: bool,
}

impl Answer {
    /// Decodes a frame from the uplink; `None` if it is not an answer to an ATA request.
    pub fn decode(frame: &[u8]) -> Option<Self> {
        let (answer, _) = AtaFrame::ref_from_prefix(frame).ok()?;
        let header = &answer.header;
        let version_flags = header.version_flags;
        if header.ethertype.get() != aoe::ETHERTYPE
            || version_flags >> 4 != aoe::VERSION
            || version_flags & aoe::FLAG_RESPONSE == 0
            || header.command != aoe::COMMAND_ATA
        {
            return None;
        }
        let aoe_error = version_flags & aoe::FLAG_ERROR != 0;
        Some(Self {
            destination: header.destination,
            shelf: header.shelf.get(),
            slot: header.slot,
            tag: header.tag.get(),
            lba: answer.ata.lba48(),
            ata_status: answer.ata.command_status,
            error: if aoe_error { header.error } else { answer.ata.error_feature },
            aoe_error,
        })
    }

    /// The status of the write that this answers, by the table at the top of this module.
    pub fn updated(&self) -> Updated {
        if self.aoe_error {
            return match self.error {
                ERROR_COMMAND | aoe::ERROR_ARGUMENT | ERROR_VERSION | ERROR_RESERVED => Updated::Refused,
                _ => Updated::Unknown,
            };
        }
        let failed = self.ata_status & (aoe::ATA_STATUS_ERROR | ATA_STATUS_FAULT | ATA_STATUS_BUSY);
        match (failed, self.error) {
            (0, _) => Updated::Updated,
            (aoe::ATA_STATUS_ERROR, aoe::ATA_ERROR_NOT_FOUND) => Updated::Refused,
            _ => Updated::Unknown,
        }
    }
}
