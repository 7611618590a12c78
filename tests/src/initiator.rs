//! A small AoE initiator, which sends as Linux's does: a window of writes, each sent again under a new tag until the answer to
//! the latest tag comes.

use layout::aoe::{
    Ata, AtaFrame, Header, ATA_STATUS_ERROR, ATA_WRITE_EXT, COMMAND_ATA, ETHERTYPE, FLAG_RESPONSE,
};
use ports::interface::{wait, Interface};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, IntoBytes};

/// Writes under way at a time.
const WINDOW: usize = 8;
/// Longer than the switch holds a write.
const RESEND: Duration = Duration::from_millis(90);
/// An answer must come by then, whatever gets lost.
const PATIENCE: Duration = Duration::from_secs(60);

/// What it does.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Shelf and slot.
    pub volume: (u16, u8),
    /// Sectors of the volume that are written to.
    pub sectors: u64,
    /// Most sectors of a write.
    pub most: u8,
    /// Writes in all.
    pub writes: usize,
    /// One answer in so many is lost, and the write sent again though it was answered.
    pub lose: u32,
}

/// A write that is under way.
struct UnderWay {
    tag: u32,
    lba: u64,
    data: Vec<u8>,
    sent: Instant,
    first: Instant,
}

/// An ATA write.
pub fn write_frame(source: [u8; 6], volume: (u16, u8), tag: u32, lba: u64, data: &[u8]) -> Vec<u8> {
    let header = Header {
        destination: [0xFF; 6],
        source,
        ethertype: ETHERTYPE.into(),
        version_flags: 0x10,
        error: 0,
        shelf: volume.0.into(),
        slot: volume.1,
        command: COMMAND_ATA,
        tag: tag.into(),
    };
    let mut bytes = [0; 6];
    bytes.copy_from_slice(&lba.to_le_bytes()[..6]);
    let sectors = (data.len() / 512) as u8;
    let ata = Ata {
        flags: 0x41,
        error_feature: 0,
        sectors,
        command_status: ATA_WRITE_EXT,
        lba: bytes,
        reserved: [0; 2],
    };
    [header.as_bytes(), ata.as_bytes(), data].concat()
}

/// What a frame writes, if it is an ATA write of a source: first sector, and the data.
pub fn written(frame: &[u8]) -> Option<(u64, &[u8])> {
    let (request, data) = AtaFrame::ref_from_prefix(frame).ok()?;
    let header = &request.header;
    let is_write = header.ethertype.get() == ETHERTYPE
        && header.version_flags & FLAG_RESPONSE == 0
        && header.command == COMMAND_ATA
        && [0x30, 0x34].contains(&request.ata.command_status);
    is_write.then(|| (request.ata.lba48(), &data[..usize::from(request.ata.sectors) * 512]))
}

/// Writes at random places until `plan` is done. How often it sent something again.
#[track_caller]
pub fn initiate(interface: &str, plan: Plan, random: &mut ChaCha8Rng) -> usize {
    let mut interface = Interface::open(interface).expect("the interface is there");
    let own = interface.mac();
    let (nobody, _keep) = UnixStream::pair().expect("a pair of sockets");
    let (mut begun, mut resent, mut next_tag) = (0, 0, random.random::<u16>() as u32);
    let mut under_way: Vec<UnderWay> = Vec::new();
    while begun < plan.writes || !under_way.is_empty() {
        while begun < plan.writes && under_way.len() < WINDOW {
            let sectors = random.random_range(1..=plan.most);
            let lba = random.random_range(0..=plan.sectors - u64::from(sectors));
            let data: Vec<u8> = (0..usize::from(sectors) * 512).map(|_| random.random()).collect();
            next_tag = (next_tag + 1) & 0x7FFF_FFFF;
            let now = Instant::now();
            interface.send(&write_frame(own, plan.volume, next_tag, lba, &data));
            under_way.push(UnderWay { tag: next_tag, lba, data, sent: now, first: now });
            begun += 1;
        }
        wait(&[&interface], nobody.as_fd(), 5_000_000).expect("it can be waited for");
        let mut answers = Vec::new();
        interface.receive(64, |frame| {
            if let Ok((answer, _)) = AtaFrame::ref_from_prefix(frame) {
                let header = &answer.header;
                let for_us = header.destination == own && header.ethertype.get() == ETHERTYPE;
                if for_us && header.version_flags & FLAG_RESPONSE != 0 && header.command == COMMAND_ATA {
                    answers.push((header.tag.get(), answer.ata.command_status));
                }
            }
        });
        for (tag, status) in answers {
            assert!(status & ATA_STATUS_ERROR == 0, "tag {tag:#x}: the target refuses a good write");
            let place = under_way.iter().position(|write| write.tag == tag);
            if let Some(place) = place.filter(|_| !random.random_ratio(1, plan.lose)) {
                under_way.swap_remove(place);
            }
        }
        for write in &mut under_way {
            assert!(write.first.elapsed() < PATIENCE, "LBA {}: no answer for {PATIENCE:?}", write.lba);
            if write.sent.elapsed() > RESEND {
                next_tag = (next_tag + 1) & 0x7FFF_FFFF;
                (write.tag, write.sent) = (next_tag, Instant::now());
                interface.send(&write_frame(own, plan.volume, write.tag, write.lba, &write.data));
                resent += 1;
            }
        }
    }
    resent
}
