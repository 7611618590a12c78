//! A simulated card in this process for tests: wires at its ports, a target behind its uplink that can be silent, initiators.

use super::session::Backend;
use driver::{Card, CardError, DmaRegion, Interrupts};
use layout::aoe::{self, Ata};
use layout::registers::{command, global};
use layout::SECTOR_BYTES;
use sim::target::{request, Image, Target, TargetVolume, VbladeModel};
use sim::vfio_user::Link;
use sim::{CardOptions, SimulatedCard};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The volume behind the uplink.
pub const SHELF_SLOT: (u16, u8) = (1, 0);
/// 125 MHz over some 20,000 cycles/s.
pub const SLOWER: u32 = 6_000;
/// Initiators send again then, unless told otherwise.
const RESEND: Duration = Duration::from_secs(2);
/// How long a function that is reset answers nothing.
const AWAY: Duration = Duration::from_millis(300);
/// Nothing here takes so long.
pub const LIMIT: Duration = Duration::from_secs(120);

/// What the target does with writes.
pub const WELL: u8 = 0;
pub const SILENT: u8 = 1;
pub const DEAD: u8 = 2;

struct MoodyTarget {
    model: VbladeModel,
    mood: Arc<AtomicU8>,
    heard: Arc<AtomicU8>,
}

impl Target for MoodyTarget {
    fn frame(&mut self, frame: &[u8], cycle: u64, answers: &mut Vec<(u64, Vec<u8>)>) {
        let is_write =
            frame.get(27).is_some_and(|command| [aoe::ATA_WRITE, aoe::ATA_WRITE_EXT].contains(command));
        let mood = if is_write { self.mood.load(Ordering::SeqCst) } else { WELL };
        if mood != DEAD {
            let before = answers.len();
            self.model.frame(frame, cycle, answers);
            answers.truncate(if mood == SILENT { before } else { usize::MAX });
        }
        if mood != WELL {
            self.heard.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// What tests turn while it runs.
#[derive(Clone, Default)]
pub struct Knobs {
    /// What the target does with writes.
    pub mood: Arc<AtomicU8>,
    /// Writes that it did something else with than answer.
    pub heard: Arc<AtomicU8>,
    /// The card's function is to be reset.
    pub reset: Arc<AtomicBool>,
    /// Nothing reaches host memory any more, though registers answer.
    pub stuck: Arc<AtomicBool>,
}

/// The simulated card with wires at its ports.
pub struct Wired {
    card: SimulatedCard,
    links: Vec<Link>,
    knobs: Knobs,
    /// While its function is reset: until when, and what its registers read.
    away: Option<(Instant, u32)>,
    /// What was last loaded from memory that the card writes.
    loaded: RefCell<BTreeMap<(usize, usize), u64>>,
}

impl Wired {
    /// With `primary` as the volume's, and wires to sockets in `folder` at those ports.
    pub fn new(folder: &Path, primary: &Path, sectors: u64, ports: &[usize], knobs: Knobs) -> Self {
        let file = OpenOptions::new().read(true).write(true).open(primary).expect("primary");
        let volume = TargetVolume::new(SHELF_SLOT.0, SHELF_SLOT.1, sectors, Image::File(file));
        let model = VbladeModel::new(vec![volume]);
        let target = MoodyTarget { model, mood: Arc::clone(&knobs.mood), heard: Arc::clone(&knobs.heard) };
        let card = SimulatedCard::new(CardOptions::default(), Box::new(target)).expect("a card");
        let link = |port: &usize| {
            let (local, peer) = (folder.join(format!("port{port}")), folder.join(format!("peer{port}")));
            Link::new(*port, &local, peer).expect("a wire")
        };
        Self { card, links: ports.iter().map(link).collect(), knobs, away: None, loaded: RefCell::default() }
    }
}

impl Backend for Wired {}

impl Card for Wired {
    fn read(&mut self, offset: u32) -> Result<u32, CardError> {
        match self.away {
            Some((until, reads)) if Instant::now() < until => Ok(reads),
            _ => self.card.read(offset),
        }
    }

    fn write(&mut self, offset: u32, value: u32) -> Result<(), CardError> {
        self.card.write(offset, value)
    }

    fn map_dma(&mut self, bytes: usize) -> Result<DmaRegion, CardError> {
        self.card.map_dma(bytes)
    }

    fn unmap_dma(&mut self, region: DmaRegion) -> Result<(), CardError> {
        self.card.unmap_dma(region)
    }

    fn dma_bytes(&self, region: &DmaRegion) -> &[u8] {
        self.card.dma_bytes(region)
    }

    fn dma_load(&self, region: &DmaRegion, offset: usize) -> u64 {
        let mut loaded = self.loaded.borrow_mut();
        let last = loaded.entry((region.id, offset)).or_default();
        if !self.knobs.stuck.load(Ordering::SeqCst) {
            *last = self.card.dma_load(region, offset);
        }
        *last
    }

    fn msix_message(&mut self, vector: usize) -> Option<(u64, u32)> {
        self.card.msix_message(vector)
    }

    fn wait(&mut self, timeout: Duration) -> Result<Interrupts, CardError> {
        if self.knobs.reset.swap(false, Ordering::SeqCst) {
            self.card.write(global::COMMAND, command::FUNCTION_RESET)?;
            // Bridges differ in what they make of a request that nobody answers.
            let reads = self.away.map_or(u32::MAX, |(_, last)| !last);
            self.away = Some((Instant::now() + AWAY, reads));
        }
        for link in &mut self.links {
            link.exchange(&mut self.card).map_err(|error| CardError::Bus(error.to_string()))?;
        }
        self.card.wait(timeout)
    }
}

/// An initiator behind a port: one request at a time, sent again until it is answered.
pub struct Initiator {
    socket: UnixDatagram,
    port: PathBuf,
    mac: [u8; 6],
    tag: u32,
    /// It sends again then.
    pub resend: Duration,
}

impl Initiator {
    /// The one at that port.
    pub fn new(folder: &Path, port: usize) -> Self {
        let socket = UnixDatagram::bind(folder.join(format!("peer{port}"))).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("its time-out");
        Self {
            socket,
            port: folder.join(format!("port{port}")),
            mac: [2, 0, 0, 0, 0, port as u8 + 1],
            tag: 0,
            resend: RESEND,
        }
    }

    /// Sends a request, and doesn't wait.
    pub fn send(&mut self, command_status: u8, lba: u64, sectors: usize, data: &[u8]) -> (u32, Vec<u8>) {
        self.tag += 1;
        let bytes = lba.to_le_bytes();
        let lba = [bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5]];
        let ata = Ata {
            flags: 0x40,
            error_feature: 0,
            sectors: sectors as u8,
            command_status,
            lba,
            reserved: [0; 2],
        };
        let frame = request(self.mac, SHELF_SLOT, self.tag, ata, data);
        self.socket.send_to(&frame, &self.port).expect("sent");
        (self.tag, frame)
    }

    /// Sends a request until it is answered.
    pub fn ask(&mut self, command: u8, lba: u64, sectors: usize, data: &[u8]) -> Vec<u8> {
        let (tag, frame) = self.send(command, lba, sectors, data);
        let (began, mut sent) = (Instant::now(), Instant::now());
        let mut answer = vec![0; 9216];
        loop {
            assert!(began.elapsed() < LIMIT, "no answer to {command:#x} at {lba}");
            if let Ok(bytes) = self.socket.recv(&mut answer) {
                if bytes >= 36 && answer[14] & aoe::FLAG_RESPONSE != 0 && answer[20..24] == tag.to_be_bytes()
                {
                    answer.truncate(bytes);
                    return answer;
                }
            }
            if sent.elapsed() > self.resend {
                self.socket.send_to(&frame, &self.port).expect("sent");
                sent = Instant::now();
            }
        }
    }

    /// Writes, and waits for the answer.
    pub fn write(&mut self, lba: u64, data: &[u8]) {
        self.ask(aoe::ATA_WRITE_EXT, lba, data.len() / SECTOR_BYTES, data);
    }
}

/// Bytes to write.
pub fn data(sectors: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut byte = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as u8
    };
    (0..sectors * SECTOR_BYTES).map(|_| byte()).collect()
}
