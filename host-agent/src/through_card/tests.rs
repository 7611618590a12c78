//! The whole way, in this process: the gateware, a model of the target behind its uplink, the daemon that drains it, another
//! source that writes, and this host's initiator behind a port of its own.

use super::{Device, Extents, Through, Way, Work};
use crate::card::drain::{start, Backend, DrainSettings, Draining};
use crate::daemon::{hold, Desk, Holding, Lodger};
use crate::error::Error;
use driver::{Card, CardError, DmaRegion, Interrupts};
use indicatif::ProgressBar;
use journal::image::{Backing, Image};
use journal::rollback::Target as To;
use journal::{JournalReader, Moment, Volume};
use layout::aoe::{self, Ata};
use layout::registers::{command, global};
use layout::SECTOR_BYTES;
use sim::target::{request, Image as TargetImage, Target, TargetVolume, VbladeModel};
use sim::vfio_user::Link;
use sim::{CardOptions, SimulatedCard};
use std::fs::{read, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::mpsc::channel;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const SHELF_SLOT: (u16, u8) = (1, 0);
const VOLUME: &str = "1.0";
const SECTORS: u64 = 96;
const BYTES: usize = SECTORS as usize * SECTOR_BYTES;
/// Where another source is, and this host.
const OTHER: usize = 0;
const HOST: usize = 3;
/// 125 MHz over some 20,000 cycles/s.
const SLOWER: u32 = 6_000;
/// Initiators send again then.
const RESEND: Duration = Duration::from_secs(2);
/// How long a function that is reset answers nothing.
const AWAY: Duration = Duration::from_millis(300);
/// Nothing here takes so long.
const LIMIT: Duration = Duration::from_secs(120);

/// What the target does with writes.
const WELL: u8 = 0;
const SILENT: u8 = 1;
const DEAD: u8 = 2;

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

/// The simulated card with wires at its ports.
struct Wired {
    card: SimulatedCard,
    links: Vec<Link>,
    reset: Arc<AtomicBool>,
    /// While its function is reset: until when, and what its registers read.
    away: Option<(Instant, u32)>,
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
        self.card.dma_load(region, offset)
    }

    fn msix_message(&mut self, vector: usize) -> Option<(u64, u32)> {
        self.card.msix_message(vector)
    }

    fn wait(&mut self, timeout: Duration) -> Result<Interrupts, CardError> {
        if self.reset.swap(false, Ordering::SeqCst) {
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
struct Initiator {
    socket: UnixDatagram,
    port: PathBuf,
    mac: [u8; 6],
    tag: u32,
}

impl Initiator {
    fn new(folder: &Path, port: usize) -> Self {
        let socket = UnixDatagram::bind(folder.join(format!("peer{port}"))).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("its time-out");
        Self {
            socket,
            port: folder.join(format!("port{port}")),
            mac: [2, 0, 0, 0, 0, port as u8 + 1],
            tag: 0,
        }
    }

    fn send(&mut self, command_status: u8, lba: u64, sectors: usize, data: &[u8]) -> (u32, Vec<u8>) {
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

    fn ask(&mut self, command: u8, lba: u64, sectors: usize, data: &[u8]) -> Vec<u8> {
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
            if sent.elapsed() > RESEND {
                self.socket.send_to(&frame, &self.port).expect("sent");
                sent = Instant::now();
            }
        }
    }

    fn write(&mut self, lba: u64, data: &[u8]) {
        self.ask(aoe::ATA_WRITE_EXT, lba, data.len() / SECTOR_BYTES, data);
    }
}

/// As Linux's device does it.
impl Device for Initiator {
    fn name(&self) -> String {
        "the host's device".into()
    }

    fn bytes(&self) -> u64 {
        BYTES as u64
    }

    fn read(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        for (index, part) in buffer.chunks_mut(16 * SECTOR_BYTES).enumerate() {
            let lba = offset / SECTOR_BYTES as u64 + index as u64 * 16;
            let answer = self.ask(aoe::ATA_READ_EXT, lba, part.len() / SECTOR_BYTES, &[]);
            part.copy_from_slice(&answer[36..36 + part.len()]);
        }
        Ok(())
    }

    fn write(&mut self, data: &[u8], offset: u64) -> io::Result<()> {
        for (index, part) in data.chunks(16 * SECTOR_BYTES).enumerate() {
            Initiator::write(self, offset / SECTOR_BYTES as u64 + index as u64 * 16, part);
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A device that fails at its first write but so many.
struct Failing<'a> {
    host: &'a mut Initiator,
    writes: usize,
}

impl Device for Failing<'_> {
    fn name(&self) -> String {
        self.host.name()
    }

    fn bytes(&self) -> u64 {
        self.host.bytes()
    }

    fn read(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.host.read(buffer, offset)
    }

    fn write(&mut self, data: &[u8], offset: u64) -> io::Result<()> {
        self.writes = self.writes.checked_sub(1).ok_or(io::ErrorKind::BrokenPipe)?;
        Device::write(self.host, data, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.host.sync()
    }
}

/// The card is reset when everything has been compared, and nothing has been said of it yet.
struct ResetBehindAPass<'a> {
    world: &'a World,
    watches: AtomicU8,
}

impl Way for ResetBehindAPass<'_> {
    fn watch(&self, volume: u16) -> Result<Extents, Error> {
        if self.watches.fetch_add(1, Ordering::SeqCst) == 1 {
            self.world.reset_and_wait();
        }
        self.world.card.watch(volume)
    }

    fn unsettled(&self, volume: u16) -> Result<Extents, Error> {
        self.world.card.unsettled(volume)
    }

    fn settle(&self, work: Work) -> Result<(), Error> {
        self.world.card.settle(work)
    }

    fn fence(&self, volume: u16, fenced: bool) -> Result<(), Error> {
        self.world.card.fence(volume, fenced)
    }

    fn port(&self) -> Option<u8> {
        self.world.card.port()
    }

    fn quarantine(&self) -> Duration {
        self.world.card.quarantine()
    }
}

struct World {
    folder: tempfile::TempDir,
    desk: Arc<Desk>,
    card: Arc<Draining>,
    daemon: JoinHandle<Result<(), Error>>,
    mood: Arc<AtomicU8>,
    heard: Arc<AtomicU8>,
    reset: Arc<AtomicBool>,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        for image in ["primary", "base"] {
            File::create(at(image)).and_then(|file| file.set_len(BYTES as u64)).expect("an image");
        }
        let (mood, heard, reset) = (Arc::<AtomicU8>::default(), Arc::<AtomicU8>::default(), Arc::default());
        let (of_mood, of_heard, of_reset) = (Arc::clone(&mood), Arc::clone(&heard), Arc::clone(&reset));
        let (journal, primary, root) = (at("j"), at("primary"), folder.path().to_owned());
        let (tell, told) = channel();
        let daemon = thread::spawn(move || {
            let holding = Holding {
                journal: &journal,
                control: None,
                create: Some(16 << 20),
                bases: Vec::new(),
                recovers: false,
            };
            let settings = DrainSettings {
                volumes: vec![Volume::aoe(0, SHELF_SLOT.0, SHELF_SLOT.1, SECTORS)],
                host_port: Some(HOST as u8),
                flush_period: 100,
                unknown_after: 200,
                quarantine: 400,
                slower: SLOWER,
                progress_durable: false,
                behind_gap: false,
            };
            let make = move || {
                let file = OpenOptions::new().read(true).write(true).open(&primary).expect("primary");
                let volume = TargetVolume::new(SHELF_SLOT.0, SHELF_SLOT.1, SECTORS, TargetImage::File(file));
                let model = VbladeModel::new(vec![volume]);
                let target = MoodyTarget { model, mood: of_mood, heard: of_heard };
                let card = SimulatedCard::new(CardOptions::default(), Box::new(target)).expect("a card");
                let link = |port| {
                    let (local, peer) = (root.join(format!("port{port}")), root.join(format!("peer{port}")));
                    Link::new(port, &local, peer).expect("a wire")
                };
                Ok(Wired { card, links: [OTHER, HOST].map(link).into(), reset: of_reset, away: None })
            };
            hold(&holding, |desk, _, _| {
                let card = start(desk, settings, make)?;
                tell.send((Arc::clone(desk), card)).expect("somebody waits");
                Ok(())
            })
        });
        let (desk, card) = told.recv().expect("it holds the journal");
        let began = Instant::now();
        while !folder.path().join("port3").exists() {
            assert!(began.elapsed() < LIMIT, "no card");
            thread::sleep(Duration::from_millis(20));
        }
        Self { folder, desk, card, daemon, mood, heard, reset }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn primary(&self) -> Vec<u8> {
        read(self.at("primary")).expect("primary")
    }

    fn through<T>(&self, host: &mut Initiator, work: impl FnOnce(&mut Through<'_>) -> Result<T, Error>) -> T {
        self.by(&*self.card, host, work).expect("done")
    }

    fn by<T>(
        &self,
        way: &dyn Way,
        device: &mut dyn Device,
        work: impl FnOnce(&mut Through<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let bar = ProgressBar::hidden();
        work(&mut Through::new(&self.desk, way, VOLUME, device, &bar).expect("a way"))
    }

    /// The card is reset behind the agent's back. Returns when it is up again.
    fn reset_and_wait(&self) {
        let session = self.desk.status().session;
        self.reset.store(true, Ordering::SeqCst);
        let began = Instant::now();
        while self.desk.status().session < session + 2 {
            assert!(began.elapsed() < LIMIT, "it wasn't brought up again");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The image at a moment, and whether all of it is certain.
    fn image(&self, at: Moment, allow_gaps: bool) -> Result<(Vec<u8>, bool), journal::Error> {
        self.card.drain().expect("drained");
        let synced = self.desk.call(|held| held.journal().and_then(|journal| Ok(journal.sync()?)));
        synced.expect("a journal").expect("durable");
        let base = self.at("base");
        let reader = JournalReader::open(&self.at("j"))?;
        let image = Image::open(reader, VOLUME, at, Backing::Base(&base), allow_gaps, &mut |_, _| {})?;
        let mut bytes = vec![0; BYTES];
        image.read_at(&mut bytes, 0)?;
        Ok((bytes, image.facts().doubtful == 0))
    }

    fn order(&self) -> u64 {
        self.card.drain().expect("drained");
        self.desk
            .call(|held| held.journal().map(|journal| journal.end().order))
            .expect("a journal")
            .expect("one")
    }

    /// A write that the target treats so.
    fn write_to(&self, source: &mut Initiator, mood: u8, lba: u64, data: &[u8]) {
        let heard = self.heard.load(Ordering::SeqCst);
        self.mood.store(mood, Ordering::SeqCst);
        source.send(aoe::ATA_WRITE_EXT, lba, data.len() / SECTOR_BYTES, data);
        let began = Instant::now();
        while self.heard.load(Ordering::SeqCst) == heard {
            assert!(began.elapsed() < LIMIT, "it never reached the target");
            thread::sleep(Duration::from_millis(5));
        }
        self.mood.store(WELL, Ordering::SeqCst);
    }
}

fn data(sectors: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut byte = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as u8
    };
    (0..sectors * SECTOR_BYTES).map(|_| byte()).collect()
}

/// Writes again and again, until it is told to stop.
fn busy(mut source: Initiator, stop: &Arc<AtomicBool>) -> JoinHandle<(Initiator, u64)> {
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        let mut writes = 0u64;
        while !stop.load(Ordering::SeqCst) {
            let sectors = 1 + writes as usize % 3;
            let lba = writes.wrapping_mul(7) % (SECTORS - 3);
            source.write(lba, &data(sectors, 1000 + writes));
            writes += 1;
        }
        (source, writes)
    })
}

#[test]
fn the_host_reaches_primary_as_a_source_on_a_port() {
    let world = World::new();
    let mut other = Initiator::new(world.folder.path(), OTHER);
    let mut host = Initiator::new(world.folder.path(), HOST);
    (0..8).for_each(|write| other.write(write * 9, &data(2, write)));

    // Read-back: nobody knows of two writes; the target has executed one of them.
    world.write_to(&mut other, DEAD, 9, &data(2, 20));
    world.write_to(&mut other, SILENT, 40, &data(1, 21));
    assert!(!world.image(Moment::End, false).expect("an image").1);
    let back = world.through(&mut host, |through| through.read_back());
    assert_eq!((back.differed, back.entries), (3 * SECTOR_BYTES as u64, 2));
    let known = world.image(Moment::End, false).expect("an image");
    assert!(known.1 && known.0 == world.primary(), "what was read back is what primary has");

    // Resync: the journal doesn't know of something, and others go on writing.
    let behind = OpenOptions::new().write(true).open(world.at("primary")).expect("primary");
    for lba in [3, 30, 31, 32, 60, 77] {
        behind.write_all_at(&data(1, 500 + lba), lba * SECTOR_BYTES as u64).expect("written");
    }
    let stop = Arc::<AtomicBool>::default();
    let writing = busy(other, &stop);
    let resynced = world.through(&mut host, |through| through.resync(&world.at("base")));
    stop.store(true, Ordering::SeqCst);
    let (mut other, writes) = writing.join().expect("it wrote");
    assert!(writes > 0 && resynced.compared == BYTES as u64);
    let known = world.image(Moment::End, false).expect("an image");
    assert!(known.1 && known.0 == world.primary(), "{writes} writes beside it; the newest image is primary");

    // Rollback: the card journals it, once; another source has to wait.
    let (moment, then) = (world.order(), world.primary());
    (0..6).for_each(|write| other.write(write * 15, &data(3, 700 + write)));
    let before = world.primary();
    let late = data(1, 800);
    let waiting = {
        let late = late.clone();
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(300));
            other.write(95, &late);
            other
        })
    };
    let base = world.at("base");
    let done = world
        .through(&mut host, |through| through.roll_back(&base, To::Moment(Moment::Order(moment)), false));
    let other = waiting.join().expect("it wrote");
    assert!(done.written > 0 && done.entries > 0);
    let mut expected = then.clone();
    let end = expected.len() - SECTOR_BYTES;
    // It had to wait, or came before and was brought back too.
    let now = world.primary();
    assert_eq!(now[..end], expected[..end], "primary is what it was");
    if now[end..] == late[..] {
        expected[end..].copy_from_slice(&late);
    }
    assert_eq!(now, expected);
    for (at, wanted) in [(moment, &then), (done.last, &then)] {
        assert_eq!(&world.image(Moment::Order(at), false).expect("an image").0, wanted, "order:{at}");
    }
    let image = world.image(Moment::End, false).expect("an image");
    assert!(image.1 && image.0 == now);
    let undone =
        world.through(&mut host, |through| through.roll_back(&base, To::Undo { discard: true }, false));
    assert_eq!(undone.target.0, done.before);
    assert_eq!(world.primary(), world.image(Moment::Order(done.before), false).expect("an image").0);
    assert_eq!(world.primary()[..end], before[..end], "and back");

    // A rollback that its device fails in the middle of; then others write. To undo it takes what they wrote along.
    let mut other = other;
    let state = world.primary();
    let broken = world.by(&*world.card, &mut Failing { host: &mut host, writes: 1 }, |through| {
        through.roll_back(&base, To::Moment(Moment::Order(0)), false)
    });
    assert!(broken.expect_err("it failed").to_string().contains("--undo takes it back"));
    other.write(20, &data(1, 810));
    let base = &base;
    let undo =
        |discard| move |through: &mut Through<'_>| through.roll_back(base, To::Undo { discard }, false);
    let unasked = world.by(&*world.card, &mut host, undo(false)).expect_err("they would be lost");
    assert!(unasked.to_string().contains("write"), "{unasked}");
    assert!(world.primary() != state);
    world.through(&mut host, undo(true));
    assert!(world.primary() == state, "what was there before the rollback");

    // The card is reset between the last comparison and the mark that says so: the gap that makes is not closed by it.
    let way = ResetBehindAPass { world: &world, watches: AtomicU8::new(0) };
    let failed = world.by(&way, &mut host, |through| through.resync(&world.at("base")));
    let failed = failed.expect_err("what was compared may be another by now").to_string();
    assert!(failed.contains("brought up anew"), "{failed}");
    // The journal has it before the first entry behind it.
    other.write(30, &data(1, 820));
    assert!(world.image(Moment::End, false).is_err(), "a gap");

    // And in the middle of writes: it goes on, behind a gap.
    stop.store(false, Ordering::SeqCst);
    let writing = busy(other, &stop);
    world.reset_and_wait();
    thread::sleep(Duration::from_secs(1));
    let resynced = world.through(&mut host, |through| through.resync(&world.at("base")));
    stop.store(true, Ordering::SeqCst);
    let (mut other, _) = writing.join().expect("it wrote");
    assert!(resynced.closed > 0, "a gap of each port");
    let known = world.image(Moment::End, false).expect("the gap is closed");
    assert!(known.0 == world.primary());

    // Somebody needs the ports closed for a while.
    world.card.step_aside().expect("aside");
    world.card.come_back();
    other.write(50, &data(2, 900));
    let known = world.image(Moment::End, false).expect("an image");
    assert!(known.1 && known.0 == world.primary());

    world.desk.end();
    world.daemon.join().expect("it ends").expect("in order");
    let verified =
        journal::verify::verify(&world.folder.path().join("j"), &mut |_, _| {}).expect("a journal");
    assert!(verified.findings.is_empty(), "{:?}", verified.findings);
}
