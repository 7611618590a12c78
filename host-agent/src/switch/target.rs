//! What the agent itself asks targets behind the uplink, before the ports are opened: who is there, how large volumes are, what
//! they hold. Tags have bit 31 set, which initiators leave alone.

use engine::answer::Answer;
use layout::aoe::{
    self, Ata, AtaFrame, Header, ATA_IDENTIFY, ATA_READ_EXT, COMMAND_ATA, COMMAND_CONFIG, FLAG_ERROR,
    FLAG_RESPONSE, MINIMUM_FRAME_BYTES, SHELF_BROADCAST, SLOT_BROADCAST, TAG_SWITCH_OWN, WRITE_HEADER_BYTES,
};
use layout::entry::Updated;
use layout::SECTOR_BYTES;
use ports::interface::{wait, Interface};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, IntoBytes};

/// A question that isn't answered is asked again after this long.
const RETRY: Duration = Duration::from_millis(100);
/// And given up after this long.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long everybody has to say that they are there.
const ROLL_CALL: Duration = Duration::from_millis(1000);
/// Reads under way: `vblade` takes 16.
const WINDOW: usize = 16;
/// Frames that are taken at a time.
const BATCH: usize = 64;
/// AFlags: the address has 48 bits.
const AFLAG_EXTENDED: u8 = 0x40;
const BROADCAST: [u8; 6] = [0xFF; 6];

/// Targets behind an uplink.
pub struct Target<'a> {
    uplink: &'a mut Interface,
    bell: &'a super::handover::Bell,
    next_tag: u32,
    macs: BTreeMap<(u16, u8), [u8; 6]>,
}

/// A read that is under way.
struct Asked {
    tag: u32,
    at: usize,
    bytes: usize,
    sent: Instant,
}

impl<'a> Target<'a> {
    /// Those behind `uplink`.
    pub fn new(uplink: &'a mut Interface, bell: &'a super::handover::Bell) -> Self {
        // Another beginning each time: answers to an earlier process aren't taken for ours.
        let began =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |t| t.as_millis());
        Self { uplink, bell, next_tag: began as u32 & !TAG_SWITCH_OWN, macs: BTreeMap::new() }
    }

    fn tag(&mut self) -> u32 {
        self.next_tag = self.next_tag.wrapping_add(1) & !TAG_SWITCH_OWN;
        self.next_tag | TAG_SWITCH_OWN
    }

    fn request(&self, to: [u8; 6], (shelf, slot): (u16, u8), tag: u32, command: u8) -> Vec<u8> {
        let header = Header {
            destination: to,
            source: self.uplink.mac(),
            ethertype: aoe::ETHERTYPE.into(),
            version_flags: aoe::VERSION << 4,
            error: 0,
            shelf: shelf.into(),
            slot,
            command,
            tag: tag.into(),
        };
        let mut frame = header.as_bytes().to_vec();
        frame.resize(MINIMUM_FRAME_BYTES, 0);
        frame
    }

    fn ata(&self, volume: (u16, u8), tag: u32, command: u8, lba: u64, sectors: u8) -> io::Result<Vec<u8>> {
        let Some(mac) = self.macs.get(&volume) else { return Err(io::ErrorKind::NotConnected.into()) };
        let mut frame = self.request(*mac, volume, tag, COMMAND_ATA);
        let mut bytes = [0; 6];
        bytes.copy_from_slice(&lba.to_le_bytes()[..6]);
        let ata = Ata {
            flags: AFLAG_EXTENDED,
            error_feature: 0,
            sectors,
            command_status: command,
            lba: bytes,
            reserved: [0; 2],
        };
        frame[WRITE_HEADER_BYTES - ata.as_bytes().len()..WRITE_HEADER_BYTES].copy_from_slice(ata.as_bytes());
        Ok(frame)
    }

    /// Takes answers to us for `limit` at most, or until `take` says that it is enough.
    fn listen(&mut self, limit: Duration, mut take: impl FnMut(&Header, &[u8]) -> bool) -> io::Result<()> {
        let until = Instant::now() + limit;
        let own = self.uplink.mac();
        let mut enough = false;
        while !enough {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            wait(&[&*self.uplink], self.bell.as_fd(), left.as_nanos() as u64)?;
            self.uplink.receive(BATCH, |frame| {
                let Ok((header, _)) = Header::ref_from_prefix(frame) else { return };
                let is_answer = header.destination == own
                    && header.ethertype.get() == aoe::ETHERTYPE
                    && header.version_flags & FLAG_RESPONSE != 0
                    && header.tag.get() & TAG_SWITCH_OWN != 0;
                enough |= is_answer && take(header, frame);
            });
        }
        Ok(())
    }

    /// Everybody that is there.
    pub fn discover(&mut self) -> io::Result<Vec<(u16, u8)>> {
        let tag = self.tag();
        let query = self.request(BROADCAST, (SHELF_BROADCAST, SLOT_BROADCAST), tag, COMMAND_CONFIG);
        let mut found = BTreeMap::new();
        for _ in 0..2 {
            self.uplink.send(&query);
            self.listen(ROLL_CALL / 2, |header, _| {
                if header.command == COMMAND_CONFIG && header.version_flags & FLAG_ERROR == 0 {
                    found.insert((header.shelf.get(), header.slot), header.source);
                }
                false
            })?;
        }
        self.macs.extend(&found);
        Ok(found.into_keys().collect())
    }

    /// Asks until an answer comes that `take` takes; `None`: nobody answers.
    fn ask<T>(
        &mut self,
        make: impl Fn(&Self, u32) -> io::Result<Vec<u8>>,
        mut take: impl FnMut(&Header, &[u8]) -> Option<T>,
    ) -> io::Result<Option<T>> {
        let began = Instant::now();
        let mut got = None;
        while got.is_none() && began.elapsed() < PATIENCE {
            let tag = self.tag();
            let frame = make(self, tag)?;
            self.uplink.send(&frame);
            self.listen(RETRY, |header, frame| {
                if header.tag.get() == tag && got.is_none() {
                    got = take(header, frame);
                }
                got.is_some()
            })?;
        }
        Ok(got)
    }

    /// How many sectors a volume has; `None`: nobody answers for it.
    pub fn sectors(&mut self, volume: (u16, u8)) -> io::Result<Option<u64>> {
        let Some(mac) = self.ask(
            |this, tag| Ok(this.request(BROADCAST, volume, tag, COMMAND_CONFIG)),
            |header, _| ((header.shelf.get(), header.slot) == volume).then_some(header.source),
        )?
        else {
            return Ok(None);
        };
        self.macs.insert(volume, mac);
        self.ask(
            |this, tag| this.ata(volume, tag, ATA_IDENTIFY, 0, 1),
            |_, frame| {
                let data = good(frame, volume)?.get(..SECTOR_BYTES)?;
                let word =
                    |index: usize| u64::from(u16::from_le_bytes([data[2 * index], data[2 * index + 1]]));
                // ATA-6, 8.15: words 100 to 103 with 48-bit addresses, 60 and 61 without.
                let long = word(100) | word(101) << 16 | word(102) << 32;
                let sectors = if long != 0 { long } else { word(60) | word(61) << 16 };
                (sectors != 0).then_some(sectors)
            },
        )
    }

    /// Reads what a volume holds from `offset` on, in whole sectors. [`Target::sectors`] has found it.
    pub fn read(&mut self, volume: (u16, u8), buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let most = ((self.uplink.mtu() - WRITE_HEADER_BYTES) / SECTOR_BYTES).min(aoe::MAXIMUM_SECTORS)
            * SECTOR_BYTES;
        if most == 0
            || !buffer.len().is_multiple_of(SECTOR_BYTES)
            || !offset.is_multiple_of(SECTOR_BYTES as u64)
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (mut next, mut under_way) = (0, Vec::<Asked>::new());
        let mut news = Instant::now();
        while next < buffer.len() || !under_way.is_empty() {
            while next < buffer.len() && under_way.len() < WINDOW {
                let bytes = most.min(buffer.len() - next);
                // No tag yet: it is due.
                under_way.push(Asked { tag: 0, at: next, bytes, sent: news });
                next += bytes;
            }
            for asked in &mut under_way {
                if asked.tag != 0 && asked.sent.elapsed() < RETRY {
                    continue;
                }
                (asked.tag, asked.sent) = (self.tag(), Instant::now());
                let lba = (offset + asked.at as u64) / SECTOR_BYTES as u64;
                let sectors = (asked.bytes / SECTOR_BYTES) as u8;
                let frame = self.ata(volume, asked.tag, ATA_READ_EXT, lba, sectors)?;
                self.uplink.send(&frame);
            }
            if news.elapsed() > PATIENCE {
                let what = format!("volume {}.{} doesn't answer any more", volume.0, volume.1);
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
            self.listen(RETRY, |header, frame| {
                let Some(place) = under_way.iter().position(|asked| asked.tag == header.tag.get()) else {
                    return false;
                };
                let asked = &under_way[place];
                let lba = (offset + asked.at as u64) / SECTOR_BYTES as u64;
                let echoes = Answer::decode(frame).is_some_and(|answer| answer.lba == lba);
                let Some(data) = good(frame, volume).and_then(|data| data.get(..asked.bytes)) else {
                    return false;
                };
                if !echoes {
                    return false;
                }
                buffer[asked.at..asked.at + asked.bytes].copy_from_slice(data);
                under_way.swap_remove(place);
                news = Instant::now();
                true
            })?;
        }
        Ok(())
    }
}

/// The data in an answer that says that all went well.
fn good(frame: &[u8], volume: (u16, u8)) -> Option<&[u8]> {
    let answer = Answer::decode(frame)?;
    let (_, data) = AtaFrame::ref_from_prefix(frame).ok()?;
    ((answer.shelf, answer.slot) == volume && answer.updated() == Updated::Updated).then_some(data)
}
