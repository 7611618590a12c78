//! The whole way of a write, its crash, and what is made of it: power cuts and kills at any write or sync of any of the disks
//! (journal, dirty-region log, primaries), several times one after the other, against a naive model.
//!
//! After each: no flushed write is lost; after a kill no answered one; the journal has what was written, in order and without a
//! hole; every moment is what the model says, or refused; the end is what primary has.
//!
//! `CHRONO_SEED` names a seed, `CHRONO_SEEDS` how many are tried.

mod machine;

use engine::block_port::Reading;
use journal::image::{Backing, Image};
use journal::{
    Address, CreateOptions, Delivered, Error, Journal, JournalReader, Moment, Port, PortKind, PreviousEnd,
    Storage, Volume,
};
use layout::entry::{Encoding, Kind};
use machine::{Disk, Machine};
use ports::clock::Clock;
use ports::dirty_log::{self, DirtyLog, ToServe};
use ports::export::FIRST_PORT;
use ports::owner::{append_to, Commit, Handed, Outcome, Owner};
use ports::path::{floor, Durability, Images, Settings, SoftwarePorts};
use ports::recover::{recover, ToRecover};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

const SECTOR: usize = 512;
const VOLUMES: usize = 2;
const VOLUME_BYTES: usize = 64 << 10;
const JOURNAL_BYTES: usize = 4 << 20;
const SEGMENT_BYTES: u64 = 128 << 10;
/// Small, so that a volume has several.
const REGION_SHIFT: u8 = 13;
const ARBITER: u16 = 1;
const PORTS: u8 = 3;

fn number_of(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

struct JournalAtHand(Mutex<Option<Journal>>);

impl Owner for JournalAtHand {
    fn append(&self, handed: Handed) -> Outcome {
        append_to(self.0.lock().unwrap().as_mut().unwrap(), handed)
    }

    fn set_primary_checkpoint(&self, volumes: &[u16], at: (u64, u64)) -> Result<(), Error> {
        self.0.lock().unwrap().as_mut().unwrap().set_primary_checkpoint(volumes, at)
    }
}

/// Goes on by itself, and jumps back now and then.
struct Ticking(AtomicU64);

impl Clock for Ticking {
    fn read(&self) -> Reading {
        let count = self.0.fetch_add(7, Ordering::Relaxed);
        Reading { nanoseconds: if count.is_multiple_of(50) { count / 2 } else { count }, error: Some(1000) }
    }
}

/// One write, as the model has it.
#[derive(Clone, Debug)]
struct Write {
    volume: usize,
    offset: usize,
    data: Vec<u8>,
    zero: bool,
}

/// What is certain of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Certain {
    Nothing,
    Answered,
    Flushed,
}

struct Disks {
    machine: Arc<Machine>,
    journal: Arc<Disk>,
    log: Arc<Disk>,
    primaries: Vec<Arc<Disk>>,
}

impl Disks {
    fn new(images: Vec<Vec<u8>>) -> Self {
        let machine = Arc::new(Machine::default());
        let mut disks = images.into_iter().enumerate().map(|(index, image)| {
            Disk::new(&machine, ["journal", "log", "primary 0", "primary 1"][index], image)
        });
        let (journal, log) = (disks.next().unwrap(), disks.next().unwrap());
        let primaries = disks.collect();
        Self { machine, journal, log, primaries }
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Disk>> {
        [&self.journal, &self.log].into_iter().chain(&self.primaries)
    }
}

struct World {
    random: ChaCha8Rng,
    settings: Settings,
    disks: Disks,
    boot: [u8; 16],
    base: tempfile::NamedTempFile,
    /// What the journal has from earlier sessions, by order.
    before: Vec<Write>,
    /// What was written in this one.
    written: Vec<(Write, Certain)>,
    /// What the volumes held when it began.
    began: Vec<Vec<u8>>,
    stamp: u64,
    next: u64,
    /// Orders that lie in what was given to the journal by resyncs, whose moments may be refused.
    uncertain: Vec<std::ops::RangeInclusive<u64>>,
    met: Met,
}

/// What a run came across: a test that meets nothing proves nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Met {
    crashes: u64,
    in_recovery: u64,
    replayed: u64,
    resynced: u64,
    lost: u64,
    refused: u64,
    moments: u64,
    uncertain_logs: u64,
}

impl World {
    fn new(seed: u64, durability: Durability) -> Self {
        let random = ChaCha8Rng::seed_from_u64(seed);
        let mut images = vec![vec![0; JOURNAL_BYTES], vec![0; dirty_log::FILE_BYTES as usize]];
        images.extend(vec![vec![0; VOLUME_BYTES]; VOLUMES]);
        let disks = Disks::new(images);
        let volume = |index: u16| Volume {
            address: Address::Nbd(format!("disk{index}")),
            arbiter: ARBITER,
            ..Volume::aoe(index, 0, 0, (VOLUME_BYTES / SECTOR) as u64)
        };
        let port = |index: u8| Port {
            port: FIRST_PORT + index,
            kind: PortKind::Software,
            arbiter: ARBITER,
            name: format!("nbd{index}"),
        };
        let options = CreateOptions {
            bytes: Some(JOURNAL_BYTES as u64),
            segment_bytes: Some(SEGMENT_BYTES),
            volumes: (0..VOLUMES as u16).map(volume).collect(),
            ports: (0..PORTS).map(port).collect(),
            writer: "power cut".into(),
        };
        Journal::create_on(disks.journal.clone(), &options).unwrap().close().unwrap();
        let base = tempfile::NamedTempFile::new().unwrap();
        base.as_file().set_len(VOLUME_BYTES as u64).unwrap();
        let settings =
            Settings { partial_bytes: 64 << 10, ..Settings::new(Images::After, durability, SEGMENT_BYTES) };
        Self {
            random,
            settings,
            disks,
            boot: [1; 16],
            base,
            before: Vec::new(),
            written: Vec::new(),
            began: vec![vec![0; VOLUME_BYTES]; VOLUMES],
            stamp: 1_000_000,
            next: 1,
            uncertain: Vec::new(),
            met: Met::default(),
        }
    }

    /// Opens everything and makes it even, as a server does. Fails if the machine does.
    fn start(&mut self) -> Result<Arc<SoftwarePorts>, String> {
        let said = |error: &dyn std::fmt::Display| error.to_string();
        let storage: Arc<dyn Storage> = self.disks.journal.clone();
        let mut journal =
            Journal::open_ports_closed_on(Arc::clone(&storage), "recovery").map_err(|e| said(&e))?;
        let id = JournalReader::open_on(Arc::clone(&storage)).map_err(|e| said(&e))?.summary().journal_id;
        let found = dirty_log::load(&*self.disks.log, id).map_err(|e| said(&e))?;
        self.met.uncertain_logs += u64::from(found.uncertain.is_some());
        let names: Vec<String> = (0..VOLUMES).map(|index| format!("disk{index}")).collect();
        let with_base = self.random.random_bool(0.5);
        let to_recover: Vec<ToRecover<'_>> = names
            .iter()
            .zip(&self.disks.primaries)
            .map(|(name, primary)| ToRecover {
                name,
                primary: &**primary,
                base: with_base.then_some(self.base.path()),
            })
            .collect();
        let recovered = recover(&mut journal, &found, self.boot, &to_recover).map_err(|e| said(&e))?;
        for volume in &recovered {
            self.met.replayed += volume.replayed.0;
            self.met.resynced += volume.resynced.map_or(0, |resynced| resynced.entries);
        }
        let bytes = VOLUME_BYTES as u64;
        let served: Vec<ToServe> =
            (0..VOLUMES as u16).map(|volume| ToServe { volume, bytes, ..ToServe::default() }).collect();
        let log = DirtyLog::begin(self.disks.log.clone(), id, self.boot, None, &found, &served, REGION_SHIFT);
        let log = log.map_err(|e| said(&e))?;
        journal.close().map_err(|e| said(&e))?;
        let journal = match self.settings.writes_ahead() {
            true => Journal::open_writing_ahead_on(storage, "power cut"),
            false => Journal::open_on(storage, "power cut"),
        };
        let journal = journal.map_err(|e| said(&e))?;
        assert_ne!(journal.opened().previous, PreviousEnd::Unclean);
        let floor = floor(&journal.end(), ARBITER);
        self.stamp = self.stamp.max(floor.0);
        let volumes = (0..VOLUMES).map(|index| ports::path::Volume {
            index: index as u16,
            name: format!("disk{index}"),
            primary: self.disks.primaries[index].clone(),
        });
        let owner = Arc::new(JournalAtHand(Mutex::new(Some(journal))));
        let clock = Arc::new(Ticking(AtomicU64::new(self.stamp)));
        let ports = SoftwarePorts::new(self.settings, volumes.collect(), owner, clock, log, floor);
        (0..PORTS).for_each(|port| ports.open_port(FIRST_PORT + port, u16::from(port)));
        Ok(Arc::new(ports))
    }

    /// One step. Fails if the machine does.
    fn step(&mut self, ports: &SoftwarePorts) -> io::Result<()> {
        match self.random.random_range(0..20) {
            0..14 => self.write(ports),
            14..16 => {
                let upto = self.written.len();
                ports.flush(self.random.random_range(0..VOLUMES))?;
                if self.settings.durability != Durability::Relaxed {
                    self.written[..upto].iter_mut().for_each(|(_, certain)| *certain = Certain::Flushed);
                }
                Ok(())
            }
            16..18 => ports.drain(),
            18 => ports.checkpoint(false).map(drop),
            _ => {
                let volume = self.random.random_range(0..VOLUMES);
                let mut there = vec![0; VOLUME_BYTES];
                ports.read(volume, &mut there, 0)?;
                assert!(there == self.state(volume, self.written.len()), "what is read is what was written");
                Ok(())
            }
        }
    }

    fn write(&mut self, ports: &SoftwarePorts) -> io::Result<()> {
        let port = FIRST_PORT + self.random.random_range(0..PORTS);
        let volume = self.random.random_range(0..VOLUMES);
        let sectors = self.random.random_range(1..=8);
        // Some places are written again and again.
        let span = if self.random.random_bool(0.5) { 24 } else { VOLUME_BYTES / SECTOR };
        let offset = self.random.random_range(0..=span - sectors) * SECTOR;
        let zero = self.random.random_bool(0.1);
        let mut data = vec![0; sectors * SECTOR];
        if !zero {
            for sector in data.chunks_mut(SECTOR) {
                sector[..8].copy_from_slice(&self.next.to_le_bytes());
                sector[504..].copy_from_slice(&self.next.to_le_bytes());
                self.next += 1;
            }
        }
        self.written.push((Write { volume, offset, data: data.clone(), zero }, Certain::Nothing));
        match zero {
            true => ports.zero(volume, port, offset as u64, data.len() as u64, true)?,
            false => ports.write(volume, port, &data, offset as u64)?,
        }
        let strict = self.settings.durability == Durability::Strict;
        self.written.last_mut().unwrap().1 = if strict { Certain::Flushed } else { Certain::Answered };
        Ok(())
    }

    /// What a volume holds after so many writes of this session.
    fn state(&self, volume: usize, count: usize) -> Vec<u8> {
        let mut state = self.began[volume].clone();
        for (write, _) in self.written[..count].iter().filter(|(write, _)| write.volume == volume) {
            state[write.offset..write.offset + write.data.len()].copy_from_slice(&write.data);
        }
        state
    }

    /// The machine fails, or the process is killed; then everything is opened again, which may be interrupted too.
    fn crash(&mut self) {
        self.met.crashes += 1;
        let mut killed = !self.disks.machine.has_crashed() && self.random.random_bool(0.5);
        loop {
            let images = self.images_after(killed);
            self.disks = Disks::new(images);
            if !killed {
                self.boot[0] += 1;
            }
            if self.random.random_bool(0.3) {
                self.disks.machine.crash_at(self.random.random_range(0..30));
            }
            match self.start() {
                Ok(ports) => {
                    // What comes next is not this machine's: the same disks without a failure before them.
                    drop(ports);
                    let images = self.disks.all().map(|disk| disk.current()).collect();
                    if self.disks.machine.has_crashed() {
                        self.met.in_recovery += 1;
                        killed = false;
                        continue;
                    }
                    // As it was, but not failing any more; and what was synced stays so.
                    self.disks = Disks::new(images);
                    break;
                }
                Err(why) => {
                    assert!(
                        self.disks.machine.has_crashed(),
                        "opening fails only if the machine does: {why}"
                    );
                    self.met.in_recovery += 1;
                    // Once it is down, a kill would be no different: all that was not synced is in doubt.
                    killed = false;
                }
            }
        }
    }

    fn images_after(&mut self, killed: bool) -> Vec<Vec<u8>> {
        let disks: Vec<Arc<Disk>> = self.disks.all().cloned().collect();
        disks
            .iter()
            .map(|disk| if killed { disk.current() } else { disk.after_power_cut(&mut self.random) })
            .collect()
    }

    /// Looks at everything, after a crash that the machine came out of. `killed`: nothing answered may be missing.
    fn check(&mut self, killed: bool) {
        let storage: Arc<dyn Storage> = self.disks.journal.clone();
        let report = journal::verify::verify_on(&*storage, &mut |_, _| {}).unwrap();
        assert!(report.is_sound(), "the journal is sound: {:?}", report.findings);
        let reader = JournalReader::open_on(Arc::clone(&storage)).unwrap();
        let entries: Vec<_> = reader.entries().unwrap().map(Result::unwrap).collect();
        // Sessions before this one.
        for (entry, write) in entries.iter().zip(&self.before) {
            self.same(&reader, entry, write);
        }
        assert!(entries.len() >= self.before.len(), "what was there before is there");
        let new = &entries[self.before.len()..];
        let mine = new.iter().take_while(|entry| entry.record.kind != Kind::Resync).count();
        for (entry, (write, _)) in new[..mine].iter().zip(&self.written) {
            self.same(&reader, entry, write);
        }
        assert!(mine <= self.written.len(), "nothing is made up");
        let flushed =
            self.written.iter().rposition(|(_, certain)| *certain == Certain::Flushed).map_or(0, |at| at + 1);
        assert!(
            mine >= flushed,
            "{mine} of {} writes are in the journal, and {flushed} were flushed",
            self.written.len()
        );
        self.met.lost += (self.written.len() - mine) as u64;
        self.check_primaries(killed, flushed);
        let mut log = self.before.clone();
        log.extend(self.written[..mine].iter().map(|(write, _)| write.clone()));
        let first = log.len() as u64 + 1;
        for entry in &new[mine..] {
            assert_eq!(entry.record.kind, Kind::Resync, "only resync entries come after a stop");
            let header = &entry.record.header;
            let zero = header.encoding == Encoding::Zero as u8;
            let bytes = usize::from(header.sectors.get()) * SECTOR;
            let data = if zero { vec![0; bytes] } else { reader.payload(&entry.record).unwrap() };
            let offset = header.lba() as usize * SECTOR;
            log.push(Write { volume: usize::from(header.volume.get()), offset, data, zero });
        }
        // The last entry before the stop may be one that other ports' watermarks had not reached.
        self.uncertain.push(first - 1..=log.len() as u64);
        drop(reader);
        self.check_moments(&storage, &log);
        self.before = log;
        self.written.clear();
        self.began = self.disks.primaries.iter().map(|disk| disk.current()).collect();
    }

    fn same(&self, reader: &JournalReader, entry: &journal::Entry, write: &Write) {
        let header = &entry.record.header;
        assert_eq!(usize::from(header.volume.get()), write.volume, "order:{}", entry.order);
        assert_eq!(header.lba() as usize * SECTOR, write.offset, "order:{}", entry.order);
        assert_eq!(usize::from(header.sectors.get()) * SECTOR, write.data.len(), "order:{}", entry.order);
        let zero = header.encoding == Encoding::Zero as u8;
        assert_eq!(zero, write.zero, "zeroes are zero entries");
        if !zero {
            assert!(reader.payload(&entry.record).unwrap() == write.data, "order:{}", entry.order);
        }
    }

    /// Every sector has what was last written there, or, of what was not flushed, something that was written there since.
    fn check_primaries(&self, killed: bool, flushed: usize) {
        for volume in 0..VOLUMES {
            let there = self.disks.primaries[volume].current();
            let latest = self.state(volume, self.written.len());
            let least = self.state(volume, flushed);
            for (sector, has) in there.chunks(SECTOR).enumerate() {
                let range = sector * SECTOR..(sector + 1) * SECTOR;
                if *has == latest[range.clone()] {
                    continue;
                }
                let since = self.written[flushed..].iter().filter_map(|(write, certain)| {
                    let from = range.start.checked_sub(write.offset).filter(|_| write.volume == volume)?;
                    Some((write.data.get(from..from + SECTOR)?, *certain))
                });
                let candidates: Vec<(&[u8], Certain)> =
                    std::iter::once((&least[range.clone()], Certain::Flushed)).chain(since).collect();
                let which = candidates.iter().rposition(|(data, _)| *data == has);
                let which =
                    which.unwrap_or_else(|| panic!("volume {volume}, sector {sector}: what nobody wrote"));
                if killed {
                    let newer =
                        candidates[which + 1..].iter().any(|(_, certain)| *certain >= Certain::Answered);
                    assert!(
                        !newer,
                        "volume {volume}, sector {sector}: an answered write is gone after a kill"
                    );
                }
            }
        }
    }

    /// Moments of all sessions, some of them, and the end.
    fn check_moments(&mut self, storage: &Arc<dyn Storage>, log: &[Write]) {
        let open = |volume: usize, at: Moment, base: &Path| {
            let reader = JournalReader::open_on(Arc::clone(storage)).unwrap();
            let image = Image::open(
                reader,
                &format!("disk{volume}"),
                at,
                Backing::Base(base),
                false,
                &mut |_, _| {},
            )?;
            let mut bytes = vec![0; VOLUME_BYTES];
            image.read_at(&mut bytes, 0)?;
            Ok::<_, Error>(bytes)
        };
        for volume in 0..VOLUMES {
            let end = open(volume, Moment::End, self.base.path()).expect("the end is certain after recovery");
            assert!(
                end == self.disks.primaries[volume].current(),
                "volume {volume}: the end is what primary has"
            );
        }
        for _ in 0..6 {
            let order = self.random.random_range(0..=log.len());
            let volume = self.random.random_range(0..VOLUMES);
            let mut state = vec![0; VOLUME_BYTES];
            for write in log[..order].iter().filter(|write| write.volume == volume) {
                state[write.offset..write.offset + write.data.len()].copy_from_slice(&write.data);
            }
            self.met.moments += 1;
            match open(volume, Moment::Order(order as u64), self.base.path()) {
                Ok(image) => assert!(image == state, "volume {volume} just after order:{order}"),
                Err(Error::Gap { .. }) => {
                    let may = self.uncertain.iter().any(|orders| orders.contains(&(order as u64)));
                    assert!(may, "order:{order} is refused, and nothing is missing there");
                    self.met.refused += 1;
                }
                Err(error) => panic!("order:{order}: {error}"),
            }
        }
    }
}

fn run(seed: u64, durability: Durability) -> Met {
    let mut world = World::new(seed, durability);
    for _ in 0..4 {
        let ports = match world.start() {
            Ok(ports) => ports,
            Err(why) => panic!("it starts on a machine that doesn't fail: {why}"),
        };
        if world.random.random_bool(0.7) {
            let ahead = world.random.random_range(0..120);
            world.disks.machine.crash_at(world.disks.machine.operations() + ahead);
        }
        let steps = world.random.random_range(5..120);
        for _ in 0..steps {
            if let Err(error) = world.step(&ports) {
                assert!(world.disks.machine.has_crashed(), "{error}");
                break;
            }
        }
        drop(ports);
        let down = world.disks.machine.has_crashed();
        let boot = world.boot;
        world.crash();
        world.check(!down && world.boot == boot);
    }
    world.met
}

fn runs(durability: Durability, seeds: u64) -> Met {
    let (first, seeds) = (number_of("CHRONO_SEED", 1), number_of("CHRONO_SEEDS", seeds));
    let mut all = Met::default();
    for seed in first..first + seeds {
        println!("CHRONO_SEED={seed}");
        let met = run(seed, durability);
        all.crashes += met.crashes;
        all.in_recovery += met.in_recovery;
        all.replayed += met.replayed;
        all.resynced += met.resynced;
        all.lost += met.lost;
        all.refused += met.refused;
        all.moments += met.moments;
        all.uncertain_logs += met.uncertain_logs;
    }
    println!("{all:?}");
    all
}

#[test]
fn a_crash_at_any_write_loses_nothing_that_was_flushed() {
    let met = runs(Durability::Flush, 150);
    assert!(met.replayed > 0 && met.resynced > 0 && met.lost > 0 && met.in_recovery > 0, "{met:?}");
    assert!(met.refused * 4 < met.moments, "refusing everything would prove nothing: {met:?}");
}

#[test]
fn what_is_strict_is_durable_when_it_is_answered() {
    let met = runs(Durability::Strict, 60);
    assert!(met.replayed > 0 && met.lost > 0, "{met:?}");
    assert_eq!(met.resynced, 0, "primary is never ahead of the journal: {met:?}");
}

#[test]
fn relaxed_may_lose_writes_and_never_history() {
    let met = runs(Durability::Relaxed, 60);
    assert!(met.resynced > 0 && met.lost > 0, "{met:?}");
}

/// Of what comes last before a stop.
#[test]
fn watermarks_alone_write_nothing() {
    let mut world = World::new(number_of("CHRONO_SEED", 1), Durability::Flush);
    let _ports = world.start().unwrap();
    let storage: Arc<dyn Storage> = world.disks.journal.clone();
    world.disks.machine.crash_at(usize::MAX);
    let before = world.disks.machine.operations();
    let owner = JournalAtHand(Mutex::new(Some(Journal::open_on(storage, "idle").unwrap())));
    let opened = world.disks.machine.operations();
    let delivered = vec![Delivered { port: FIRST_PORT, timestamp: 5 }];
    let outcome = owner.append(Handed { records: Vec::new(), delivered, sync: Commit::No });
    assert!(outcome.result.is_ok());
    assert!(world.disks.machine.operations() == opened && opened > before);
}
