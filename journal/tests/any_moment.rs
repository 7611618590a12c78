//! The image at any moment, over primary and over a base, against a naive model: a list of writes.
//!
//! CHRONO_SEED is the first seed, CHRONO_SEEDS how many there are.

// A volume's number is the index of several arrays at once.
#![allow(clippy::needless_range_loop)]

mod faulty_storage;

use faulty_storage::FaultyStorage;
use journal::image::{Backing, Image, Origin};
use journal::rollback::{RollbackOptions, Target};
use journal::verify::verify_on;
use journal::{
    CreateOptions, Delivered, Error, Journal, JournalReader, Moment, OwnedRecord, Port, PortKind, Volume,
};
use layout::entry::{flags, Encoding, EntryHeader, Journaled, Kind, Updated};
use layout::journal_file::technique;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

const SECTORS: [u64; 2] = [96, 64];
const NAMES: [&str; 2] = ["3.0", "3.1"];
const PORTS: u8 = 3;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn each_seed(offset: u64, count: u64, test: impl Fn(u64)) {
    let first = number("CHRONO_SEED", 1 + offset);
    let count = if std::env::var("CHRONO_SEED").is_ok() { 1 } else { number("CHRONO_SEEDS", count) };
    println!("CHRONO_SEED={first}, {count} seeds");
    for seed in first..first + count {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(seed)));
        if let Err(panic) = result {
            println!("failed with CHRONO_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

struct Write {
    volume: usize,
    lba: u64,
    data: Vec<u8>,
    stamp: u64,
    status: Updated,
    /// Did primary take it?
    executed: bool,
}

struct World {
    rng: ChaCha8Rng,
    kind: Kind,
    /// Every answer says what became of the write.
    certain: bool,
    journal: Option<Journal>,
    storage: Arc<FaultyStorage>,
    stamp: u64,
    number: u64,
    sequence: [u64; PORTS as usize],
    bases: [Vec<u8>; 2],
    /// What primary has now, and the files that have the same.
    primary: [Vec<u8>; 2],
    files: [(PathBuf, File); 2],
    base_files: [PathBuf; 2],
    /// In order: entry N is at N − 1.
    writes: Vec<Write>,
    /// Port, arbiter's number, index in `writes`.
    unanswered: Vec<(u8, u64, usize)>,
    _directory: tempfile::TempDir,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let kind = *[Kind::After, Kind::Before, Kind::Both].choose(&mut rng).unwrap();
        Self::of_kind(rng, kind)
    }

    fn of_kind(mut rng: ChaCha8Rng, kind: Kind) -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let bases = SECTORS.map(|sectors| {
            let mut base = vec![0u8; sectors as usize * 512];
            let half = base.len() / 2;
            rng.fill(&mut base[..half]);
            base
        });
        let path = |name: String| directory.path().join(name);
        let files = [0, 1].map(|index| {
            let path = path(format!("primary{index}"));
            let mut file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
            file.write_all(&bases[index]).unwrap();
            (path, file)
        });
        let base_files = [0, 1].map(|index| {
            let path = path(format!("base{index}"));
            std::fs::write(&path, &bases[index]).unwrap();
            path
        });
        let storage = Arc::new(FaultyStorage::new(4 << 20));
        let technique = match kind {
            Kind::After => technique::AFTER,
            Kind::Before => technique::BEFORE,
            _ => technique::AFTER | technique::BEFORE,
        };
        let options = CreateOptions {
            bytes: None,
            segment_bytes: Some(64 * 1024),
            volumes: (0..2)
                .map(|i| Volume { technique, ..Volume::aoe(i, 3, i as u8, SECTORS[usize::from(i)]) })
                .collect(),
            ports: (0..PORTS)
                .map(|port| Port { port, kind: PortKind::Card, arbiter: 0, name: format!("port {port}") })
                .collect(),
            writer: "any moment".into(),
        };
        let shared: Arc<dyn journal::Storage> = storage.clone();
        let journal = Some(Journal::create_on(shared, &options).unwrap());
        Self {
            rng,
            kind,
            certain: false,
            journal,
            storage,
            stamp: 1_700_000_000_000_000_000,
            number: 0,
            sequence: [0; PORTS as usize],
            primary: bases.clone(),
            bases,
            files,
            base_files,
            writes: Vec::new(),
            unanswered: Vec::new(),
            _directory: directory,
        }
    }

    fn journal(&mut self) -> &mut Journal {
        self.journal.as_mut().unwrap()
    }

    fn header(&mut self, kind: Kind, port: u8, number: u64) -> EntryHeader {
        self.stamp += self.rng.random_range(1..3000);
        let mut header = EntryHeader::new(kind);
        header.timestamp = self.stamp.into();
        header.number = number.into();
        header.port = port;
        header.sequence = self.sequence[usize::from(port)].into();
        header.flags = flags::CLOCK_LOCKED.into();
        self.sequence[usize::from(port)] += 1;
        header
    }

    fn append(&mut self, header: EntryHeader, payload: Vec<u8>) {
        let record = OwnedRecord { header, payload };
        let delivered: Vec<_> = (0..PORTS).map(|port| Delivered { port, timestamp: self.stamp }).collect();
        self.journal().append(&[record.as_record()], &delivered).unwrap();
    }

    /// One write, or one answer, or a moment of the owner's.
    fn step(&mut self) {
        match self.rng.random_range(0..10) {
            0 => self.journal().flush().unwrap(),
            1 => drop(self.journal().sync().unwrap()),
            2..=5 if !self.unanswered.is_empty() => self.answer(),
            _ => self.write(),
        }
    }

    fn write(&mut self) {
        let volume = self.rng.random_range(0..2);
        let sectors = self.rng.random_range(1..=17u64);
        let lba = self.rng.random_range(0..SECTORS[volume] - sectors + 1);
        let overlaps = |write: &Write| {
            let end = write.lba + write.data.len() as u64 / 512;
            write.volume == volume && write.lba < lba + sectors && lba < end
        };
        // The interlock: nothing overlaps what has no answer.
        if self.unanswered.iter().any(|(_, _, index)| overlaps(&self.writes[*index])) {
            return self.answer();
        }
        self.number += 1;
        let port = self.rng.random_range(0..PORTS);
        let mut header = self.header(self.kind, port, self.number);
        header.volume = (volume as u16).into();
        header.sectors = (sectors as u16).into();
        header.set_lba(lba);
        header.set_status(Journaled::Port, Updated::Pending);
        let range = lba as usize * 512..(lba + sectors) as usize * 512;
        let before = self.primary[volume][range].to_vec();
        let mut data = vec![0; before.len()];
        if self.rng.random_bool(0.8) {
            self.rng.fill(&mut data[..]);
        }
        let mut payload = match self.kind {
            Kind::Before => before.clone(),
            Kind::After => data.clone(),
            _ => [before.clone(), data.clone()].concat(),
        };
        if payload.iter().all(|byte| *byte == 0) && self.rng.random_bool(0.8) {
            header.encoding = Encoding::Zero as u8;
            payload.clear();
        }
        header.seal(&payload);
        self.append(header, payload);
        self.unanswered.push((port, self.number, self.writes.len()));
        let (stamp, status, executed) = (self.stamp, Updated::Pending, false);
        self.writes.push(Write { volume, lba, data, stamp, status, executed });
        if self.kind != Kind::After {
            // Policy `journal`: durable before it is forwarded.
            self.journal().sync().unwrap();
        }
        // The target may execute it long before it answers.
        if self.rng.random_bool(0.5) {
            self.execute(self.writes.len() - 1);
        }
    }

    fn execute(&mut self, index: usize) {
        let write = &mut self.writes[index];
        write.executed = true;
        let at = write.lba as usize * 512;
        self.primary[write.volume][at..at + write.data.len()].copy_from_slice(&write.data);
        self.files[write.volume].1.write_all_at(&write.data, at as u64).unwrap();
    }

    fn answer(&mut self) {
        let at = self.rng.random_range(0..self.unanswered.len());
        let (port, number, index) = self.unanswered.swap_remove(at);
        let mut header = self.header(Kind::Completion, port, number);
        let executed = self.writes[index].executed;
        let status = match self.rng.random_range(0..8) {
            0 if !executed => Updated::Refused,
            1 if !executed => Updated::Cancelled,
            2 if !self.certain => Updated::Unknown,
            _ => Updated::Updated,
        };
        if !executed && status == Updated::Updated {
            self.execute(index);
        }
        self.writes[index].status = status;
        header.set_status(Journaled::Pending, status);
        header.seal(&[]);
        self.append(header, Vec::new());
    }

    /// The volume after the first `count` entries, made of those that `counts`.
    fn model(&self, volume: usize, count: usize, counts: impl Fn(&Write) -> bool) -> Vec<u8> {
        let mut image = self.bases[volume].clone();
        for write in self.writes[..count].iter().filter(|write| write.volume == volume && counts(write)) {
            let at = write.lba as usize * 512;
            image[at..at + write.data.len()].copy_from_slice(&write.data);
        }
        image
    }

    /// What primary had.
    fn truth(&self, volume: usize, count: usize) -> Vec<u8> {
        self.model(volume, count, |write| write.executed)
    }

    /// What can be told from after-images.
    fn assumed(&self, volume: usize, count: usize) -> Vec<u8> {
        self.model(volume, count, |write| !matches!(write.status, Updated::Refused | Updated::Cancelled))
    }

    fn doubtful(&self, volume: usize, count: usize) -> Vec<bool> {
        let mut doubtful = vec![false; SECTORS[volume] as usize];
        for write in self.writes[..count].iter().filter(|write| write.volume == volume) {
            let sectors = write.lba as usize..write.lba as usize + write.data.len() / 512;
            match write.status {
                Updated::Refused | Updated::Cancelled => {}
                status => doubtful[sectors].fill(status != Updated::Updated),
            }
        }
        doubtful
    }

    fn open(&self, volume: usize, at: Moment, over_primary: bool) -> Result<Image, Error> {
        let shared: Arc<dyn journal::Storage> = self.storage.clone();
        let reader = JournalReader::open_on(shared)?;
        let backing = match over_primary {
            true => Backing::Primary(&self.files[volume].0),
            false => Backing::Base(&self.base_files[volume]),
        };
        Image::open(reader, NAMES[volume], at, backing, false, &mut |_, _| {})
    }

    /// A way to name the moment after `count` entries.
    fn moment(&mut self, count: usize) -> Moment {
        match self.rng.random_range(0..3) {
            0 if count > 0 => {
                let next = self.writes.get(count).map_or(self.stamp + 1, |write| write.stamp);
                Moment::Timestamp(self.rng.random_range(self.writes[count - 1].stamp..next))
            }
            1 if count == self.writes.len() => Moment::End,
            _ => Moment::Order(count as u64),
        }
    }

    fn check(&mut self, image: &Image, expected: &[u8]) {
        assert_eq!(image.bytes(), expected.len() as u64);
        let mut read = vec![0xEE; expected.len()];
        image.read_at(&mut read, 0).unwrap();
        if let Some(at) = (0..read.len()).find(|at| read[*at] != expected[*at]) {
            panic!("{:?}: byte {at} (sector {}) differs", self.kind, at / 512);
        }
        for _ in 0..4 {
            let from = self.rng.random_range(0..expected.len());
            let to = self.rng.random_range(from..=expected.len());
            let mut part = vec![0xEE; to - from];
            image.read_at(&mut part, from as u64).unwrap();
            assert!(part == expected[from..to], "{from}..{to}");
        }
    }
}

#[test]
fn any_moment_of_random_journals_is_the_models() {
    each_seed(0, 1000, |seed| {
        let mut world = World::new(seed);
        let steps = world.rng.random_range(10..150);
        (0..steps).for_each(|_| world.step());
        if world.rng.random_bool(0.5) {
            world.journal.take().unwrap().close().unwrap();
        } else {
            world.journal().flush().unwrap();
        }
        let report = verify_on(&*world.storage, &mut |_, _| {}).unwrap();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        let mut counts: Vec<usize> = (0..6).map(|_| world.rng.random_range(0..=world.writes.len())).collect();
        counts.extend([0, world.writes.len()]);
        for count in counts {
            for volume in 0..2 {
                let at = world.moment(count);
                if world.kind != Kind::After {
                    let image = world.open(volume, at, true).unwrap();
                    assert_eq!(image.facts().order, count as u64, "{at:?}");
                    world.check(&image, &world.truth(volume, count));
                } else if world.writes[count..].iter().any(|write| write.volume == volume && write.executed) {
                    assert!(
                        matches!(world.open(volume, at, true), Err(Error::Invalid(_))),
                        "no before-images"
                    );
                }
                if world.kind != Kind::Before {
                    let image = world.open(volume, at, false).unwrap();
                    assert_eq!(image.facts().order, count as u64, "{at:?}");
                    world.check(&image, &world.assumed(volume, count));
                    check_runs(&world, &image, volume, count);
                }
            }
        }
    });
}

fn check_runs(world: &World, image: &Image, volume: usize, count: usize) {
    let doubtful = world.doubtful(volume, count);
    let mut at = 0;
    for run in image.runs(0, image.bytes()).unwrap() {
        assert_eq!(run.offset, at);
        at += run.bytes;
        for sector in run.offset / 512..at / 512 {
            assert_eq!(run.doubtful, doubtful[sector as usize], "sector {sector}");
            let written = world.writes[..count].iter().any(|write| {
                let sectors = write.lba..write.lba + write.data.len() as u64 / 512;
                let dropped = matches!(write.status, Updated::Refused | Updated::Cancelled);
                write.volume == volume && !dropped && sectors.contains(&sector)
            });
            assert_eq!(run.origin != Origin::Backing, written, "sector {sector}");
        }
    }
    assert_eq!(at, image.bytes());
}

/// Images over primary stay what they are while primary goes on changing.
#[test]
fn an_image_over_primary_stays_while_primary_changes() {
    each_seed(100_000, 200, |seed| {
        let kind = if seed % 2 == 0 { Kind::Before } else { Kind::Both };
        let mut world = World::of_kind(ChaCha8Rng::seed_from_u64(seed), kind);
        let mut images: Vec<(Image, usize, usize)> = Vec::new();
        for _ in 0..world.rng.random_range(40..160) {
            world.step();
            if images.len() < 4 && world.rng.random_bool(0.1) {
                let (volume, count) =
                    (world.rng.random_range(0..2), world.rng.random_range(0..=world.writes.len()));
                // What is appended and not yet written the reader doesn't know of.
                world.journal().flush().unwrap();
                images.push((world.open(volume, Moment::Order(count as u64), true).unwrap(), volume, count));
            }
            if !images.is_empty() && world.rng.random_bool(0.3) {
                let index = world.rng.random_range(0..images.len());
                let (image, volume, count) = images.swap_remove(index);
                // A write from before the moment that was unanswered at it belongs to it once it is executed.
                world.check(&image, &world.truth(volume, count));
                images.push((image, volume, count));
            }
        }
        for (image, volume, count) in images {
            world.check(&image, &world.truth(volume, count));
        }
    });
}

/// After an unclean stop primary has what the journal doesn't. A resync journals it; before that, moments
/// behind the stop are refused, after it they are as good as any.
#[test]
fn a_resync_closes_the_gap_of_an_unclean_stop() {
    each_seed(200_000, 200, |seed| {
        let kind = if seed % 2 == 0 { Kind::After } else { Kind::Both };
        let mut world = World::of_kind(ChaCha8Rng::seed_from_u64(seed), kind);
        for _ in 0..world.rng.random_range(5..60) {
            world.step();
        }
        world.journal().flush().unwrap();
        drop(world.journal.take());
        let before = world.writes.len();
        // Answers that nobody journaled any more, and writes that nobody journaled at all.
        for (_, _, index) in std::mem::take(&mut world.unanswered) {
            if world.rng.random_bool(0.5) {
                world.execute(index);
            }
        }
        for volume in 0..2 {
            let sectors = world.rng.random_range(0..20u64);
            let at = (world.rng.random_range(0..SECTORS[volume] - sectors) * 512) as usize;
            let mut data = vec![0; sectors as usize * 512];
            world.rng.fill(&mut data[..]);
            world.files[volume].1.write_all_at(&data, at as u64).unwrap();
            world.primary[volume][at..at + data.len()].copy_from_slice(&data);
        }
        let shared: Arc<dyn journal::Storage> = world.storage.clone();
        let mut journal = Journal::open_on(shared, "after").unwrap();
        let both = world.rng.random_bool(0.8);
        for volume in 0..if both { 2 } else { 1 } {
            let (primary, base) = (world.files[volume].0.clone(), world.base_files[volume].clone());
            journal.resync(NAMES[volume], &primary, &base, &mut |_, _| {}).unwrap();
            let again = journal.resync(NAMES[volume], &primary, &base, &mut |_, _| {}).unwrap();
            assert_eq!((again.differed, again.entries), (0, 0), "all of it was taken the first time");
        }
        let end = journal.end();
        (world.stamp, world.number) = (end.timestamp, end.arbiters[0].number);
        world.journal = Some(journal);
        let resynced = end.order as usize;
        // The model takes over what primary had.
        let at_resync = world.primary.clone();
        let stamp = world.stamp;
        for _ in before..resynced {
            let (volume, data) = (0, Vec::new());
            let (status, executed) = (Updated::Updated, true);
            world.writes.push(Write { volume, lba: 0, data, stamp, status, executed });
        }
        for _ in 0..world.rng.random_range(5..60) {
            world.step();
        }
        world.journal().flush().unwrap();
        let report = verify_on(&*world.storage, &mut |_, _| {}).unwrap();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        let total = world.writes.len();
        for volume in 0..2 {
            for count in [before, world.rng.random_range(0..=before)] {
                let image = world.open(volume, Moment::Order(count as u64), false).unwrap();
                world.check(&image, &world.assumed(volume, count));
            }
            if volume == 1 && !both {
                if total > before {
                    assert!(matches!(world.open(1, Moment::End, false), Err(Error::Gap { .. })));
                }
                continue;
            }
            for count in [resynced, world.rng.random_range(resynced..=total), total] {
                let mut expected = at_resync[volume].clone();
                let dropped = |write: &&Write| matches!(write.status, Updated::Refused | Updated::Cancelled);
                for write in
                    world.writes[resynced..count].iter().filter(|w| w.volume == volume && !dropped(w))
                {
                    let at = write.lba as usize * 512;
                    expected[at..at + write.data.len()].copy_from_slice(&write.data);
                }
                let image = world.open(volume, Moment::Order(count as u64), false).unwrap();
                world.check(&image, &expected);
            }
        }
    });
}

/// A rollback brings primary to what it was, an undo brings it back, and both can be interrupted at any write
/// and sync, then finished or undone. All moments from before stay what they were.
#[test]
fn a_rollback_can_be_interrupted_finished_and_undone() {
    each_seed(300_000, 300, |seed| {
        let mut world = World::new(seed);
        world.certain = true;
        for _ in 0..world.rng.random_range(5..60) {
            world.step();
        }
        while !world.unanswered.is_empty() {
            world.answer();
        }
        world.journal.take().unwrap().close().unwrap();
        let entries = world.writes.len();
        let volume = world.rng.random_range(0..2);
        let count = world.rng.random_range(0..=entries);
        let over_base = world.kind == Kind::After || (world.kind == Kind::Both && world.rng.random_bool(0.5));
        let (primary, base) = (world.files[volume].0.clone(), world.base_files[volume].clone());
        let options = |to| RollbackOptions {
            volume: NAMES[volume],
            primary: &primary,
            base: over_base.then_some(base.as_path()),
            to,
            allow_gaps: false,
        };
        let to_moment = Target::Moment(Moment::Order(count as u64));
        let undo = Target::Undo { discard: false };
        let open = |storage: &Arc<FaultyStorage>| {
            let shared: Arc<dyn journal::Storage> = storage.clone();
            Journal::open_ports_closed_on(shared, "rollback").unwrap()
        };
        let then = world.truth(volume, count);
        let now = world.primary[volume].clone();
        let has = |expected: &[u8], what: &str| {
            assert!(std::fs::read(&primary).unwrap() == expected, "{what}: primary is not what it should be");
        };

        // Interrupted some times, each time by a failing write or sync, some of them by a loss of power.
        for _ in 0..world.rng.random_range(0..4) {
            let mut journal = open(&world.storage);
            let target = if world.rng.random_bool(0.7) { to_moment } else { undo };
            let fail = world.storage.operations() + world.rng.random_range(0..40);
            world.storage.fail_at(fail, 5);
            match journal.roll_back(&options(target), &mut |_, _| {}) {
                Ok(_) if target == to_moment => has(&then, "not interrupted"),
                Ok(_) => {}
                Err(Error::NoMoment(what)) => assert!(what.contains("never rolled back"), "{what}"),
                Err(error) => assert!(matches!(error, Error::Io { .. }), "{error}"),
            }
            drop(journal);
            let image = match world.rng.random_bool(0.5) {
                true => world.storage.image(),
                false => {
                    let mut rng = world.rng.clone();
                    world.storage.image_after_power_failure(&mut rng)
                }
            };
            world.storage = Arc::new(FaultyStorage::from_image(image));
        }
        let mut journal = open(&world.storage);
        let done = journal.roll_back(&options(to_moment), &mut |_, _| {}).unwrap();
        assert_eq!(done.target.0, count as u64);
        has(&then, "rolled back");
        let again = journal.roll_back(&options(to_moment), &mut |_, _| {}).unwrap();
        assert_eq!((again.entries, again.written), (0, 0), "there is nothing left to do");
        has(&then, "rolled back again");
        journal.close().unwrap();

        // What was before it is still there: the moment before each of them.
        let mut journal = open(&world.storage);
        let to_before = Target::Moment(Moment::Order(entries as u64));
        journal.roll_back(&options(to_before), &mut |_, _| {}).unwrap();
        has(&now, "brought back by its order");
        journal.roll_back(&options(undo), &mut |_, _| {}).unwrap();
        has(&then, "and that undone");
        journal.roll_back(&options(undo), &mut |_, _| {}).unwrap();
        has(&now, "and the undo undone");
        journal.close().unwrap();
        let report = verify_on(&*world.storage, &mut |_, _| {}).unwrap();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        assert_eq!(report.gaps, 0, "no port was open: nothing is missing");
        for _ in 0..3 {
            let count = world.rng.random_range(0..=entries);
            let image = world.open(volume, Moment::Order(count as u64), !over_base).unwrap();
            let expected = world.truth(volume, count);
            world.check(&image, &expected);
        }
    });
}
