//! Frames as initiators and targets send them.
#![allow(dead_code)] // each test takes what it needs

use engine::frame::{PortRules, VolumeTable};
use layout::aoe::{self, Ata, AtaFrame, Header};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use zerocopy::IntoBytes;

pub const SOURCE: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const TARGET: [u8; 6] = [2, 0, 0, 0, 1, 1];

/// A generator whose seed is printed when the test fails, and taken from CHRONO_SEED.
pub fn random() -> ChaCha8Rng {
    let seed = std::env::var("CHRONO_SEED").ok().map(|text| text.parse().expect("CHRONO_SEED is a number"));
    let seed = seed.unwrap_or_else(|| rand::rng().random());
    println!("CHRONO_SEED={seed}");
    ChaCha8Rng::seed_from_u64(seed)
}

/// Volumes 1.0 and 1.1 allowed, 2.0 known but not allowed.
pub fn rules() -> PortRules {
    let volumes = VolumeTable::new(&[(1, 0), (1, 1), (2, 0)]).expect("room for three");
    PortRules { volumes, allowed: 0b011, writes_open: true }
}

/// An AoE frame to volume 1.0 with `command`; what follows the header is `rest`.
pub fn aoe_frame(command: u8, rest: &[u8]) -> Vec<u8> {
    let header = Header {
        destination: TARGET,
        source: SOURCE,
        ethertype: aoe::ETHERTYPE.into(),
        version_flags: aoe::VERSION << 4,
        error: 0,
        shelf: 1.into(),
        slot: 0,
        command,
        tag: 0x1234_5678.into(),
    };
    [header.as_bytes(), rest].concat()
}

pub fn ata_frame(command: u8, lba: u64, sectors: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = [0; 6];
    bytes.copy_from_slice(&lba.to_le_bytes()[..6]);
    let ata =
        Ata { flags: 0x41, error_feature: 0, sectors, command_status: command, lba: bytes, reserved: [0; 2] };
    aoe_frame(aoe::COMMAND_ATA, &[ata.as_bytes(), data].concat())
}

pub fn write_frame(lba: u64, data: &[u8], tag: u32) -> Vec<u8> {
    let mut frame = ata_frame(aoe::ATA_WRITE_EXT, lba, (data.len() / 512) as u8, data);
    frame[20..24].copy_from_slice(&tag.to_be_bytes());
    frame
}

/// The answer of a target to `request`, as vblade makes it: 60 bytes, header echoed.
pub fn answer_frame(request: &[u8], ata_status: u8, ata_error: u8) -> Vec<u8> {
    let mut frame = request.to_vec();
    frame.resize(request.len().max(aoe::MINIMUM_FRAME_BYTES), 0);
    frame.truncate(aoe::MINIMUM_FRAME_BYTES);
    let (destination, source) = frame[..12].split_at_mut(6);
    destination.swap_with_slice(source);
    frame[14] |= aoe::FLAG_RESPONSE;
    frame[25] = ata_error;
    frame[26] = 0;
    frame[27] = ata_status;
    frame
}

const _: () = assert!(std::mem::size_of::<AtaFrame>() == 36);
