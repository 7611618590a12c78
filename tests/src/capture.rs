//! Captures: the files in `tests/captures`, and crafted ones.

use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// A write as it stands in a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Shelf and slot, `shelf.slot`.
    pub volume: String,
    /// First sector, as the command decodes it.
    pub lba: u64,
    /// Sectors.
    pub sectors: u64,
    /// The data of those sectors.
    pub data: Vec<u8>,
}

/// Every frame of a pcap file with nanoseconds, little-endian, as `tests/captures` has them.
pub fn frames(path: &Path) -> Vec<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    MultiGzDecoder::new(file).read_to_end(&mut bytes).expect("a gzipped capture");
    assert_eq!(bytes[..4], 0xA1B2_3C4Du32.to_le_bytes());
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize;
    let mut frames = Vec::new();
    let mut at = 24;
    while at < bytes.len() {
        let (captured, original) = (word(at + 8), word(at + 12));
        assert_eq!(captured, original, "captures hold whole frames");
        frames.push(bytes[at + 16..at + 16 + captured].to_vec());
        at += 16 + captured;
    }
    frames
}

/// Every write of a capture in record order, retransmissions included: what `moments.json` counts.
pub fn writes(path: &Path) -> Vec<Write> {
    frames(path).iter().filter_map(|frame| write(frame)).collect()
}

/// The write that a frame is, if it is one.
pub fn write(frame: &[u8]) -> Option<Write> {
    let is_request = frame.len() >= 36 && frame[12..14] == [0x88, 0xA2] && frame[14] & 8 == 0;
    let wide = match frame.get(27)? {
        0x30 => false,
        0x34 => true,
        _ => return None,
    };
    if !is_request || frame[19] != 0 || frame[26] == 0 {
        return None;
    }
    let sectors = u64::from(frame[26]);
    let mut lba = [0; 8];
    lba[..6].copy_from_slice(&frame[28..34]);
    let lba = u64::from_le_bytes(lba) & if wide { (1 << 48) - 1 } else { (1 << 28) - 1 };
    let volume = format!("{}.{}", u16::from_be_bytes([frame[16], frame[17]]), frame[18]);
    let data = frame.get(36..36 + 512 * sectors as usize)?.to_vec();
    Some(Write { volume, lba, sectors, data })
}

/// Writes a pcap file of `frames`, 100 µs apart.
pub fn write_pcap(path: &Path, frames: &[Vec<u8>]) {
    let mut file = Vec::new();
    for word in [0xA1B2_3C4Du32, 0x0004_0002, 0, 0, 262_144, 1] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    for (place, frame) in frames.iter().enumerate() {
        let nanoseconds = place as u32 * 100_000;
        let (seconds, rest) = (1_700_000_000 + nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
        for word in [seconds, rest, frame.len() as u32, frame.len() as u32] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        file.extend_from_slice(frame);
    }
    std::fs::write(path, file).expect("the capture can be written");
}

/// A request as an initiator sends it; every field can be bent afterwards.
#[derive(Clone, Debug)]
pub struct Request {
    /// MAC of the source.
    pub source: [u8; 6],
    /// Shelf and slot.
    pub volume: (u16, u8),
    /// Tag.
    pub tag: u32,
    /// ATA command.
    pub command: u8,
    /// AFlags.
    pub flags: u8,
    /// LBA bytes, all six.
    pub lba: u64,
    /// Sector count.
    pub sectors: u8,
    /// What follows the header.
    pub data: Vec<u8>,
}

impl Request {
    /// WRITE EXT of `sectors` sectors full of `byte`.
    pub fn write(tag: u32, lba: u64, sectors: u8, byte: u8) -> Self {
        Self {
            source: [2, 0, 0, 0, 0, 0x51],
            volume: (1, 0),
            tag,
            command: 0x34,
            flags: 0x41,
            lba,
            sectors,
            data: vec![byte; 512 * usize::from(sectors)],
        }
    }

    /// The frame.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = vec![2, 0xC5, 1, 0, 1, 0];
        frame.extend_from_slice(&self.source);
        frame.extend_from_slice(&[0x88, 0xA2, 0x10, 0]);
        frame.extend_from_slice(&self.volume.0.to_be_bytes());
        frame.extend_from_slice(&[self.volume.1, 0]);
        frame.extend_from_slice(&self.tag.to_be_bytes());
        frame.extend_from_slice(&[self.flags, 0, self.sectors, self.command]);
        frame.extend_from_slice(&self.lba.to_le_bytes()[..6]);
        frame.extend_from_slice(&[0, 0]);
        frame.extend_from_slice(&self.data);
        frame
    }
}
