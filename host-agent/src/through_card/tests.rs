//! The whole way, in this process: the gateware, a model of the target behind its uplink, the daemon that drains it, another
//! source that writes, and this host's initiator behind a port of its own.

use super::{Device, Extents, Through, Way, Work};
use crate::card::drain::wired::{
    data, Initiator, Knobs, Wired, DEAD, LIMIT, SHELF_SLOT, SILENT, SLOWER, WELL,
};
use crate::card::drain::{start, DrainSettings, Draining};
use crate::daemon::{hold, Desk, Holding, Lodger};
use crate::error::Error;
use indicatif::ProgressBar;
use journal::image::{Backing, Image};
use journal::rollback::Target as To;
use journal::{JournalReader, Moment, Volume};
use layout::aoe;
use layout::SECTOR_BYTES;
use std::fs::{read, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::mpsc::channel;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const VOLUME: &str = "1.0";
const SECTORS: u64 = 96;
const BYTES: usize = SECTORS as usize * SECTOR_BYTES;
/// Where another source is, and this host.
const OTHER: usize = 0;
const HOST: usize = 3;

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
    knobs: Knobs,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        for image in ["primary", "base"] {
            File::create(at(image)).and_then(|file| file.set_len(BYTES as u64)).expect("an image");
        }
        let knobs = Knobs::default();
        let of_card = knobs.clone();
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
                stalled_for: Duration::ZERO,
            };
            let make = move || Ok(Wired::new(&root, &primary, SECTORS, &[OTHER, HOST], of_card));
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
        Self { folder, desk, card, daemon, knobs }
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
        self.knobs.reset.store(true, Ordering::SeqCst);
        let began = Instant::now();
        while self.desk.status().session < session + 2 {
            assert!(began.elapsed() < LIMIT, "it wasn't brought up again");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The image at a moment, and whether all of it is certain.
    fn image(&self, at: Moment, allow_gaps: bool) -> Result<(Vec<u8>, bool), journal::Error> {
        self.card.drain(None).expect("drained");
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
        self.card.drain(None).expect("drained");
        self.desk
            .call(|held| held.journal().map(|journal| journal.end().order))
            .expect("a journal")
            .expect("one")
    }

    /// A write that the target treats so.
    fn write_to(&self, source: &mut Initiator, mood: u8, lba: u64, data: &[u8]) {
        let heard = self.knobs.heard.load(Ordering::SeqCst);
        self.knobs.mood.store(mood, Ordering::SeqCst);
        source.send(aoe::ATA_WRITE_EXT, lba, data.len() / SECTOR_BYTES, data);
        let began = Instant::now();
        while self.knobs.heard.load(Ordering::SeqCst) == heard {
            assert!(began.elapsed() < LIMIT, "it never reached the target");
            thread::sleep(Duration::from_millis(5));
        }
        self.knobs.mood.store(WELL, Ordering::SeqCst);
    }
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
