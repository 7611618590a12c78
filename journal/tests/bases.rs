//! Bases: made from a primary in use, checked, rolled on, with a crash between any two steps.
//!
//! CHRONO_SEED is the first seed, CHRONO_SEEDS how many there are.

mod faulty_storage;

use faulty_storage::FaultyStorage;
use journal::base::{look, BaseOptions, Position, Rolling};
use journal::image::{Backing, Image};
use journal::merge::MergeOptions;
use journal::{
    CreateOptions, Delivered, Error, Journal, JournalReader, Moment, OwnedRecord, Port, PortKind, Storage,
    Volume,
};
use layout::entry::{flags, EntryHeader, Journaled, Kind, Updated};
use layout::journal_file::technique;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const SECTORS: u64 = 128;
const NAME: &str = "3.0";
const PORTS: u8 = 2;

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
    volume: u16,
    lba: u64,
    data: Vec<u8>,
    status: Updated,
    executed: bool,
}

/// A journal with after-images, the primary of its first volume, and what was written.
struct World {
    rng: ChaCha8Rng,
    storage: Arc<FaultyStorage>,
    journal: Option<Journal>,
    folder: tempfile::TempDir,
    primary: File,
    start: Vec<u8>,
    stamp: u64,
    number: u64,
    sequence: [u64; PORTS as usize],
    writes: Vec<Write>,
    unanswered: Vec<(u8, u64, usize)>,
}

fn shared(storage: &Arc<FaultyStorage>) -> Arc<dyn Storage> {
    storage.clone()
}

fn options() -> CreateOptions {
    let volumes = [SECTORS, 64].into_iter().enumerate();
    CreateOptions {
        bytes: None,
        segment_bytes: Some(64 * 1024),
        volumes: volumes.map(|(i, sectors)| Volume::aoe(i as u16, 3, i as u8, sectors)).collect(),
        ports: (0..PORTS)
            .map(|port| Port { port, kind: PortKind::Card, arbiter: 0, name: format!("port {port}") })
            .collect(),
        writer: "bases".into(),
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        // Data and holes in turns, so that a copy takes several reads.
        let mut start = vec![0; SECTORS as usize * 512];
        for piece in start.chunks_mut(8192) {
            rng.fill(&mut piece[..4096]);
        }
        let primary = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(folder.path().join("primary"))
            .unwrap();
        primary.set_len(start.len() as u64).unwrap();
        for (index, piece) in start.chunks(8192).enumerate() {
            primary.write_all_at(&piece[..4096], index as u64 * 8192).unwrap();
        }
        let storage = Arc::new(FaultyStorage::new(2 << 20));
        let journal = Some(Journal::create_on(shared(&storage), &options()).unwrap());
        std::fs::write(folder.path().join("first"), &start).unwrap();
        Self {
            rng,
            storage,
            journal,
            folder,
            primary,
            start,
            stamp: 1_700_000_000_000_000_000,
            number: 0,
            sequence: [0; PORTS as usize],
            writes: Vec::new(),
            unanswered: Vec::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn journal(&mut self) -> &mut Journal {
        self.journal.as_mut().unwrap()
    }

    fn append(&mut self, mut header: EntryHeader, payload: Vec<u8>) {
        self.stamp += self.rng.random_range(1..3000);
        header.timestamp = self.stamp.into();
        let sequence = &mut self.sequence[usize::from(header.port)];
        header.sequence = (*sequence).into();
        *sequence += 1;
        header.flags = flags::CLOCK_LOCKED.into();
        header.seal(&payload);
        let delivered: Vec<_> = (0..PORTS).map(|port| Delivered { port, timestamp: self.stamp }).collect();
        let record = OwnedRecord { header, payload };
        self.journal().append(&[record.as_record()], &delivered).unwrap();
    }

    fn step(&mut self) {
        match self.rng.random_range(0..12) {
            0 => self.journal().flush().unwrap(),
            1 => drop(self.journal().sync().unwrap()),
            2..=6 if !self.unanswered.is_empty() => self.answer(),
            _ => self.write(),
        }
    }

    fn steps(&mut self, most: usize) {
        for _ in 0..self.rng.random_range(0..=most) {
            self.step();
        }
    }

    fn write(&mut self) {
        let volume = u16::from(self.rng.random_bool(0.2));
        let sectors = self.rng.random_range(1..=16u64);
        let lba = self.rng.random_range(0..(SECTORS >> volume) - sectors + 1);
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
        let mut header = EntryHeader::new(Kind::After);
        (header.port, header.number, header.volume) = (port, self.number.into(), volume.into());
        header.sectors = (sectors as u16).into();
        header.set_lba(lba);
        header.set_status(Journaled::Port, Updated::Pending);
        let mut data = vec![0; sectors as usize * 512];
        self.rng.fill(&mut data[..]);
        self.append(header, data.clone());
        self.unanswered.push((port, self.number, self.writes.len()));
        self.writes.push(Write { volume, lba, data, status: Updated::Pending, executed: false });
        if self.rng.random_bool(0.5) {
            self.execute(self.writes.len() - 1);
        }
    }

    fn execute(&mut self, index: usize) {
        let write = &mut self.writes[index];
        write.executed = true;
        if write.volume == 0 {
            self.primary.write_all_at(&write.data, write.lba * 512).unwrap();
        }
    }

    fn answer(&mut self) {
        let at = self.rng.random_range(0..self.unanswered.len());
        let (port, number, index) = self.unanswered.swap_remove(at);
        let executed = self.writes[index].executed;
        let status = match self.rng.random_range(0..8) {
            0 if !executed => Updated::Refused,
            1 if !executed => Updated::Cancelled,
            2 => Updated::Unknown,
            _ => Updated::Updated,
        };
        if !executed && status == Updated::Updated {
            self.execute(index);
        }
        self.writes[index].status = status;
        let mut header = EntryHeader::new(Kind::Completion);
        (header.port, header.number) = (port, number.into());
        header.set_status(Journaled::Pending, status);
        self.append(header, Vec::new());
    }

    /// What a base at `order` and the journal behind it say of the moment after `count` entries.
    fn expected(&self, order: u64, count: usize) -> Vec<u8> {
        let mut image = self.start.clone();
        for (index, write) in self.writes[..count].iter().enumerate().filter(|(_, w)| w.volume == 0) {
            let counts = match index < order as usize {
                true => write.executed,
                false => !matches!(write.status, Updated::Refused | Updated::Cancelled),
            };
            if counts {
                let at = write.lba as usize * 512;
                image[at..at + write.data.len()].copy_from_slice(&write.data);
            }
        }
        image
    }

    fn copy_options<'a>(&self, primary: &'a Path, base: &'a Path) -> BaseOptions<'a> {
        BaseOptions { volume: NAME, primary, base, replace: true }
    }
}

fn open(storage: &Arc<FaultyStorage>, base: &Path, at: Moment) -> Result<Image, Error> {
    let reader = JournalReader::open_on(shared(storage))?;
    Image::open(reader, NAME, at, Backing::Base(base), true, &mut |_, _| {})
}

fn read(image: &Image) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; image.bytes() as usize];
    image.read_at(&mut bytes, 0).map(|()| bytes)
}

fn message<T>(result: Result<T, Error>) -> String {
    result.err().expect("it is refused").to_string()
}

#[test]
fn every_moment_behind_a_fuzzy_copy_is_the_models() {
    let mut fuzzy = std::sync::atomic::AtomicU64::new(0);
    each_seed(0, 400, |seed| {
        let mut world = World::new(seed);
        world.steps(60);
        if world.rng.random_bool(0.3) {
            // The agent is killed: to some writes no answer comes any more.
            world.journal().sync().unwrap();
            drop(world.journal.take());
            world.unanswered.clear();
            world.journal = Some(Journal::open_on(shared(&world.storage), "after").unwrap());
            world.stamp += 1_000_000;
            world.number = world.journal().end().arbiters[0].number;
            if world.rng.random_bool(0.7) {
                world.steps(20);
            }
        }
        let (primary, base) = (world.path("primary"), world.path("base"));
        let options = world.copy_options(&primary, &base);
        let copy = world.journal().begin_base(&options).unwrap();
        world.steps(10);
        let copied = copy.copy(&mut |_, _| world.steps(6)).unwrap();
        world.steps(10);
        let last = world.number;
        let based = world.journal().finish_base(copied, last).unwrap();
        let Position { order, rolling } = based.position;
        assert_eq!(rolling.0, world.writes.len() as u64);
        let pending = world.unanswered.iter().map(|(_, _, index)| *index).min();
        assert!(pending.is_none_or(|first| order.0 <= first as u64), "{order:?} {pending:?}");
        fuzzy.fetch_add(u64::from(order.0 < rolling.0), std::sync::atomic::Ordering::Relaxed);
        world.steps(60);
        world.journal().flush().unwrap();
        let reader = JournalReader::open_on(shared(&world.storage)).unwrap();
        assert_eq!(look(&reader, NAME, &base).unwrap(), Some(based.position));
        for count in 0..=world.writes.len() {
            let image = open(&world.storage, &base, Moment::Order(count as u64));
            if (count as u64) < rolling.0 {
                let text = message(image);
                assert!(text.contains(&format!("order:{}", rolling.0)), "{text}");
                continue;
            }
            let image = image.unwrap();
            assert_eq!(image.facts().order, count as u64);
            assert!(read(&image).unwrap() == world.expected(order.0, count), "order:{count}");
        }
        let end = open(&world.storage, &base, Moment::End).unwrap();
        assert!(read(&end).unwrap() == world.expected(order.0, world.writes.len()));
    });
    assert!(
        *fuzzy.get_mut() > 0 || std::env::var("CHRONO_SEED").is_ok(),
        "some copies were of a primary in use"
    );
}

/// A copy of storage and base at some point, as a crash leaves them.
struct Crashed {
    storage: Arc<FaultyStorage>,
    folder: tempfile::TempDir,
}

impl Crashed {
    fn of(image: Vec<u8>, base: &Path) -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        std::fs::copy(base, folder.path().join("base")).unwrap();
        let label = base.with_file_name("base.chronoswitch");
        std::fs::copy(label, folder.path().join("base.chronoswitch")).unwrap();
        Self { storage: Arc::new(FaultyStorage::from_image(image)), folder }
    }

    fn base(&self) -> PathBuf {
        self.folder.path().join("base")
    }

    fn owner(&self) -> Result<Journal, Error> {
        Journal::open_ports_closed_on(shared(&self.storage), "rolling")
    }
}

/// Writes what `rolling` needs; with `part`, only some sectors of it.
fn write(world: &World, rolling: &Rolling, mut part: Option<&mut ChaCha8Rng>) {
    let orders = rolling.from().0 as usize..rolling.to().0.max(rolling.from().0) as usize;
    for write in &world.writes[orders] {
        if write.volume != 0 || matches!(write.status, Updated::Refused | Updated::Cancelled) {
            continue;
        }
        for (index, sector) in write.data.chunks(512).enumerate() {
            if part.as_mut().is_none_or(|rng| rng.random_bool(0.5)) {
                rolling.write((write.lba + index as u64) * 512, sector).unwrap();
            }
        }
    }
}

/// Every moment from `to` on is right; those before are right or refused.
fn check_all(world: &World, crashed: &Crashed, order: u64, to: u64, what: &str) {
    for count in 0..=world.writes.len() {
        match open(&crashed.storage, &crashed.base(), Moment::Order(count as u64)) {
            Ok(image) => {
                let right = read(&image).unwrap() == world.expected(order, count);
                assert!(right, "{what}: order:{count} of a base rolled to order:{to}");
            }
            Err(Error::NoMoment(_)) if (count as u64) < to => {}
            Err(error) => panic!("{what}: order:{count}: {error}"),
        }
    }
}

/// After a crash: everything is right as it is, can be rolled on to the same place or further, and is right then.
fn recover(world: &World, crashed: &Crashed, image: Vec<u8>, order: u64, to: (u64, u64), what: &str) {
    let again = Crashed::of(image, &crashed.base());
    check_all(world, &again, order, to.0, what);
    let mut journal = again.owner().unwrap_or_else(|error| panic!("{what}: {error}"));
    check_all(world, &again, order, to.0, what);
    let rolling = journal.begin_rolling(NAME, &again.base(), to).unwrap();
    write(world, &rolling, None);
    check_all(world, &again, order, to.0, what);
    rolling.finish(&mut journal, 0).unwrap();
    journal.close().unwrap();
    check_all(world, &again, order, to.0, what);
    let reader = JournalReader::open_on(shared(&again.storage)).unwrap();
    let row = reader.tables().volume(NAME).unwrap();
    assert!(row.base >= to && row.rolling >= row.base, "{what}: {row:?}");
    assert_eq!(look(&reader, NAME, &again.base()).unwrap().unwrap().order, row.base, "{what}");
    let first = open(&again.storage, &again.base(), Moment::Order(row.rolling.0)).unwrap();
    assert!(read(&first).unwrap() == world.expected(order, row.rolling.0 as usize), "{what}");
    if row.rolling.0 > 0 {
        let text = message(open(&again.storage, &again.base(), Moment::Order(row.rolling.0 - 1)));
        assert!(text.starts_with("no such moment"), "{what}: {text}");
    }
}

#[test]
fn rolling_can_crash_between_any_two_steps() {
    each_seed(500_000, 6, |seed| {
        let mut world = World::new(seed);
        world.steps(80);
        while !world.unanswered.is_empty() {
            world.answer();
        }
        // Half of them begin with a fuzzy base, half with one from before the first write.
        let (primary, mut base) = (world.path("primary"), world.path("base"));
        let order = if world.rng.random_bool(0.5) {
            let options = world.copy_options(&primary, &base);
            let copy = world.journal().begin_base(&options).unwrap();
            let copied = copy.copy(&mut |_, _| world.steps(3)).unwrap();
            world.steps(10);
            let last = world.number;
            world.journal().finish_base(copied, last).unwrap().position.order.0
        } else {
            base = world.path("first");
            std::fs::copy(&base, world.path("base")).unwrap();
            base = world.path("base");
            world.journal().adopt_base(NAME, &base, false).unwrap();
            0
        };
        world.steps(60);
        while !world.unanswered.is_empty() {
            world.answer();
        }
        world.journal.take().unwrap().close().unwrap();
        let reader = JournalReader::open_on(shared(&world.storage)).unwrap();
        let least = reader.tables().volume(NAME).unwrap().rolling.0;
        let to = world.rng.random_range(order..=world.writes.len() as u64);
        let to = reader.entry_at(Moment::Order(to)).unwrap();
        let reach = to.0.max(least);
        let start = world.storage.image();
        let mut rng = world.rng.clone();
        let fresh = || Crashed::of(start.clone(), &base);
        let both = |crashed: &Crashed, rng: &mut ChaCha8Rng, what: &str| {
            recover(&world, crashed, crashed.storage.image(), order, (reach, to.1.max(1)), what);
            let failed = crashed.storage.image_after_power_failure(rng);
            recover(&world, crashed, failed, order, (reach, to.1.max(1)), what);
        };

        // 1 and 2: in every write and sync of the journal while rolling begins.
        for at in 0.. {
            let crashed = fresh();
            let mut journal = crashed.owner().unwrap();
            crashed.storage.crash_at(crashed.storage.operations() + at);
            let began = journal.begin_rolling(NAME, &crashed.base(), to).is_ok();
            drop(journal);
            both(&crashed, &mut rng, &format!("row, operation {at}"));
            if began {
                break;
            }
        }
        // Between the row and the label.
        let crashed = fresh();
        let block = crashed.folder.path().join("base.chronoswitch.new");
        std::fs::create_dir(&block).unwrap();
        let mut journal = crashed.owner().unwrap();
        if let Err(error) = journal.begin_rolling(NAME, &crashed.base(), to) {
            assert!(error.to_string().contains("base.chronoswitch: writing the base's label"), "{error}");
        }
        drop(journal);
        both(&crashed, &mut rng, "between row and label");
        // With any part of the data written.
        for turn in 0..3 {
            let crashed = fresh();
            let mut journal = crashed.owner().unwrap();
            let rolling = journal.begin_rolling(NAME, &crashed.base(), to).unwrap();
            write(&world, &rolling, Some(&mut rng));
            drop((rolling, journal));
            both(&crashed, &mut rng, &format!("data in part, turn {turn}"));
        }
        // Between the data and the label.
        let crashed = fresh();
        let mut journal = crashed.owner().unwrap();
        let rolling = journal.begin_rolling(NAME, &crashed.base(), to).unwrap();
        write(&world, &rolling, None);
        std::fs::create_dir(crashed.folder.path().join("base.chronoswitch.new")).unwrap();
        let moved = rolling.from() < to;
        assert_eq!(rolling.finish(&mut journal, 0).is_err(), moved);
        drop(journal);
        both(&crashed, &mut rng, "between data and label");
        // Between the label and the row, and in every write and sync of the row.
        for at in 0.. {
            let crashed = fresh();
            let mut journal = crashed.owner().unwrap();
            let rolling = journal.begin_rolling(NAME, &crashed.base(), to).unwrap();
            write(&world, &rolling, None);
            crashed.storage.crash_at(crashed.storage.operations() + at);
            let finished = rolling.finish(&mut journal, 3).is_ok();
            drop(journal);
            both(&crashed, &mut rng, &format!("last row, operation {at}"));
            if finished {
                let reader = JournalReader::open_on(shared(&crashed.storage)).unwrap();
                assert_eq!(reader.tables().volume(NAME).unwrap().base_doubtful, 3);
                break;
            }
        }
    });
}

/// A crash in any write or sync of the last step of making a base: the old one is the base as it was, or the new
/// one is; and if the new one is there without the journal knowing of it, it can be taken over.
#[test]
fn making_a_base_can_crash() {
    each_seed(600_000, 10, |seed| {
        let mut world = World::new(seed);
        world.steps(60);
        while !world.unanswered.is_empty() {
            world.answer();
        }
        let (primary, first) = (world.path("primary"), world.path("first"));
        world.journal().adopt_base(NAME, &first, false).unwrap();
        world.journal.take().unwrap().close().unwrap();
        let start = world.storage.image();
        let count = world.writes.len();
        let mut rng = world.rng.clone();
        for at in 0.. {
            let base = world.path(&format!("base{at}"));
            let storage = Arc::new(FaultyStorage::from_image(start.clone()));
            let mut journal = Journal::open_ports_closed_on(shared(&storage), "owner").unwrap();
            let copy = journal.begin_base(&world.copy_options(&primary, &base)).unwrap();
            let copied = copy.copy(&mut |_, _| {}).unwrap();
            storage.crash_at(storage.operations() + at);
            let made = journal.finish_base(copied, world.number).is_ok();
            drop(journal);
            for image in [storage.image(), storage.image_after_power_failure(&mut rng)] {
                let storage = Arc::new(FaultyStorage::from_image(image));
                let old = open(&storage, &first, Moment::Order(count as u64 / 2));
                let new = open(&storage, &base, Moment::End);
                assert!(old.is_ok() != new.is_ok(), "operation {at}: one of them is the base");
                match (old, new) {
                    (Ok(old), _) => assert!(read(&old).unwrap() == world.expected(0, count / 2)),
                    (_, new) => {
                        assert!(read(&new.unwrap()).unwrap() == world.expected(count as u64, count));
                    }
                }
                if base.exists() {
                    let mut journal = Journal::open_ports_closed_on(shared(&storage), "owner").unwrap();
                    journal.adopt_base(NAME, &base, true).unwrap();
                    let new = open(&storage, &base, Moment::End).unwrap();
                    assert!(read(&new).unwrap() == world.expected(count as u64, count));
                }
            }
            if made {
                break;
            }
        }
    });
}

#[test]
fn an_image_that_is_open_sees_its_base_go_on() {
    let mut world = World::new(number("CHRONO_SEED", 77));
    for _ in 0..80 {
        world.step();
    }
    while !world.unanswered.is_empty() {
        world.answer();
    }
    let base = world.path("first");
    world.journal().adopt_base(NAME, &base, false).unwrap();
    let half = world.writes.len() / 2;
    let reader = JournalReader::open_on(shared(&world.storage)).unwrap();
    let to = reader.entry_at(Moment::Order(half as u64)).unwrap();
    let before = open(&world.storage, &base, Moment::Order(half as u64 - 1)).unwrap();
    let (at, end) = (
        open(&world.storage, &base, Moment::Order(half as u64)).unwrap(),
        open(&world.storage, &base, Moment::End).unwrap(),
    );
    assert!(read(&before).unwrap() == world.expected(0, half - 1));
    let mut journal = world.journal.take().unwrap();
    let rolling = journal.begin_rolling(NAME, &base, to).unwrap();
    write(&world, &rolling, Some(&mut world.rng.clone()));
    for step in 0..2 {
        let text = message(read(&before));
        assert!(text.contains("first: what expired was rolled into it"), "{text}");
        assert!(read(&at).unwrap() == world.expected(0, half), "step {step}");
        assert!(read(&end).unwrap() == world.expected(0, world.writes.len()), "step {step}");
        if step == 0 {
            write(&world, &rolling, None);
        }
    }
    rolling.finish(&mut journal, 0).unwrap();
    assert!(read(&at).unwrap() == world.expected(0, half));
    assert!(read(&end).unwrap() == world.expected(0, world.writes.len()));
}

/// Merging rolls a base on at any moment: also when a reader has just looked at the journal.
#[test]
fn a_base_that_goes_on_while_an_image_is_opened_is_looked_at_again() {
    let mut world = World::new(number("CHRONO_SEED", 78));
    for _ in 0..80 {
        world.step();
    }
    while !world.unanswered.is_empty() {
        world.answer();
    }
    let (base, count) = (world.path("first"), world.writes.len());
    let readers = || [0; 3].map(|_| JournalReader::open_on(shared(&world.storage)).unwrap());
    let [image_before, look_before, _] = readers();
    let mut journal = world.journal.take().unwrap();
    journal.adopt_base(NAME, &base, false).unwrap();
    let [image_between, look_between, early_between] = readers();
    let to = early_between.entry_at(Moment::Order(count as u64 / 2)).unwrap();
    let rolling = journal.begin_rolling(NAME, &base, to).unwrap();
    write(&world, &rolling, None);
    rolling.finish(&mut journal, 0).unwrap();
    for reader in [image_before, image_between] {
        let backing = Backing::Base(&base);
        let image = Image::open(reader, NAME, Moment::End, backing, false, &mut |_, _| {}).unwrap();
        assert!(read(&image).unwrap() == world.expected(0, count));
    }
    for reader in [look_before, look_between] {
        let position = look(&reader, NAME, &base).unwrap().expect("it is known by now");
        assert_eq!(position, Position { order: to, rolling: to });
    }
    // What it has gone past is refused as ever.
    let backing = Backing::Base(&base);
    let early = Image::open(early_between, NAME, Moment::Order(1), backing, false, &mut |_, _| {});
    let text = message(early.map(drop));
    assert!(
        text.starts_with("no such moment: order:1; the base of volume 3.0 may hold writes up to"),
        "{text}"
    );
}

#[test]
fn a_base_that_is_wrong_left_behind_or_advanced_is_refused() {
    let mut world = World::new(number("CHRONO_SEED", 78));
    for _ in 0..60 {
        world.step();
    }
    while !world.unanswered.is_empty() {
        world.answer();
    }
    let (primary, base, first) = (world.path("primary"), world.path("base"), world.path("first"));
    // Without a base in the row any image of the right size is taken, by the user's word.
    assert!(open(&world.storage, &first, Moment::Order(0)).is_ok());
    world.journal.take().unwrap().close().unwrap();
    let owner =
        |storage: &Arc<FaultyStorage>| Journal::open_ports_closed_on(shared(storage), "owner").unwrap();
    let mut journal = owner(&world.storage);
    let before_base = world.storage.image();
    let mut options = world.copy_options(&primary, &base);
    options.replace = false;
    let based = journal.create_base(&options, &mut |_, _| {}).unwrap();
    assert_eq!(
        (based.replaced, based.position.order),
        (None, based.position.rolling),
        "nothing was under way"
    );
    let label = world.path("base.chronoswitch");
    let sound = std::fs::read(&label).unwrap();
    let refused = |words: &[&str]| {
        let text = message(open(&world.storage, &base, Moment::End));
        assert!(words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
    };
    // Another file of the right size; the base of before; the label gone, damaged, another's.
    let text = message(open(&world.storage, &first, Moment::End));
    assert!(text.contains("first: wrong base: no label") && text.contains("--replace"), "{text}");
    std::fs::remove_file(&label).unwrap();
    refused(&["wrong base", "base.chronoswitch"]);
    let mut damaged = sound.clone();
    damaged[200] ^= 1;
    std::fs::write(&label, &damaged).unwrap();
    refused(&["base.chronoswitch: corrupt at offset 0"]);
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = sound.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed[12..16].fill(0);
        let sum = layout::crc::crc32c(&changed);
        changed[12..16].copy_from_slice(&sum.to_le_bytes());
        std::fs::write(&label, &changed).unwrap();
    };
    with(16, &[9; 16]);
    refused(&["wrong base", "journal 09090909"]);
    with(32, &[8; 16]);
    refused(&["wrong base", "another base of volume 3.0", "08080808"]);
    with(48, b"3.1");
    refused(&["wrong base", "volume 3.1, not 3.0"]);
    std::fs::write(&label, &sound).unwrap();
    let (order, end) = (based.position.order.0, world.writes.len() as u64);
    assert_eq!(order, end);
    let text = message(open(&world.storage, &base, Moment::Order(end - 1)));
    assert!(
        text.contains(&format!("no such moment: order:{}", end - 1)) && text.contains("can be made"),
        "{text}"
    );
    // A second one has to be asked for, and takes nothing that is there.
    options.base = &first;
    let text = message(journal.create_base(&options, &mut |_, _| {}));
    assert!(text.contains("has a base already") && text.contains("--replace"), "{text}");
    options.replace = true;
    assert!(message(journal.create_base(&options, &mut |_, _| {})).contains("first: exists already"));
    let null = Path::new("/dev/null");
    options.base = null;
    assert!(
        message(journal.create_base(&options, &mut |_, _| {})).contains("/dev/null: it is no regular file")
    );
    assert!(message(journal.adopt_base(NAME, null, true)).contains("/dev/null: it is no regular file"));
    drop(journal);

    // It is rolled on; then an older copy of it, and an older copy of the journal.
    let old_base = Crashed::of(world.storage.image(), &base);
    world.journal = Some(Journal::open_on(shared(&world.storage), "more").unwrap());
    world.stamp += 1_000_000;
    for _ in 0..40 {
        world.step();
    }
    while !world.unanswered.is_empty() {
        world.answer();
    }
    let mut journal = world.journal.take().unwrap();
    let end = journal.end();
    assert!(end.order > order);
    let rolling = journal.begin_rolling(NAME, &base, (end.order, end.timestamp)).unwrap();
    write(&world, &rolling, None);
    rolling.finish(&mut journal, 0).unwrap();
    assert!(read(&open(&world.storage, &base, Moment::End).unwrap()).is_ok());
    let text = message(open(&world.storage, &old_base.base(), Moment::End));
    assert!(text.contains("left behind") && text.contains(&format!("order:{order}")), "{text}");
    let text = message(open(&old_base.storage, &base, Moment::End));
    assert!(text.contains("advanced") && text.contains(&format!("order:{}", end.order)), "{text}");
    let text = message(journal.begin_rolling(NAME, &old_base.base(), (end.order, end.timestamp)));
    assert!(text.contains("left behind"), "{text}");
    let text = message(journal.begin_rolling(NAME, &base, (end.order + 1, u64::MAX)));
    assert!(text.contains("the journal ends at"), "{text}");
    // A journal from before it had a base doesn't take the base for one from before the first write.
    let old = Arc::new(FaultyStorage::from_image(before_base));
    let text = message(open(&old, &base, Moment::End));
    assert!(text.contains("the journal doesn't know of it"), "{text}");
    let text = message(owner(&old).adopt_base(NAME, &base, false));
    assert!(text.contains("advanced"), "{text}");
}

#[test]
fn a_base_is_taken_over_from_before_the_first_write_or_by_its_label() {
    let mut world = World::new(number("CHRONO_SEED", 79));
    for _ in 0..50 {
        world.step();
    }
    while !world.unanswered.is_empty() {
        world.answer();
    }
    let (primary, base, first) = (world.path("primary"), world.path("base"), world.path("first"));
    let order = world.writes.len();
    world.journal.take().unwrap().close().unwrap();
    let mut journal = Journal::open_ports_closed_on(shared(&world.storage), "owner").unwrap();
    let image = world.storage.image();
    let adopted = journal.adopt_base(NAME, &first, false).unwrap();
    assert_eq!((adopted.position, adopted.replaced, adopted.known), (Position::default(), None, false));
    assert!(journal.adopt_base(NAME, &first, false).unwrap().known, "once more does nothing");
    for count in [0, order / 2, order] {
        let image = open(&world.storage, &first, Moment::Order(count as u64)).unwrap();
        assert!(read(&image).unwrap() == world.expected(0, count));
    }
    std::fs::write(&base, vec![0; 512]).unwrap();
    assert!(message(journal.adopt_base(NAME, &base, true)).contains("512 bytes"));
    std::fs::remove_file(&base).unwrap();
    let based = journal.create_base(&world.copy_options(&primary, &base), &mut |_, _| {}).unwrap();
    assert_eq!(based.replaced, Some(Position::default()));
    drop(journal);

    // Interrupted before the journal knew of it: refused, until it is taken over.
    let storage = Arc::new(FaultyStorage::from_image(image));
    let text = message(open(&storage, &base, Moment::End));
    assert!(text.contains("base adopt finishes that"), "{text}");
    let mut journal = Journal::open_ports_closed_on(shared(&storage), "owner").unwrap();
    let adopted = journal.adopt_base(NAME, &base, false).unwrap();
    assert_eq!((adopted.base_id, adopted.position), (based.base_id, based.position));
    let end = open(&storage, &base, Moment::End).unwrap();
    assert!(read(&end).unwrap() == world.expected(order as u64, order));

    // A volume of before-images needs none.
    let mut volume = journal.tables().volume("3.1").unwrap().clone();
    volume.technique = technique::BEFORE;
    journal.set_volumes(&[volume]).unwrap();
    let other = world.path("other");
    std::fs::write(&other, vec![0; 64 * 512]).unwrap();
    let text = message(journal.adopt_base("3.1", &other, false));
    assert!(text.contains("3.1 needs no base"), "{text}");
    // With ports open nobody knows what is under way.
    drop(journal);
    let mut journal = Journal::open_on(shared(&storage), "ports open").unwrap();
    let options = world.copy_options(&primary, &other);
    assert!(message(journal.create_base(&options, &mut |_, _| {})).contains("ports are open"));
    let other = world.path("another");
    let copy = journal.begin_base(&world.copy_options(&primary, &other)).unwrap();
    let copied = copy.copy(&mut |_, _| {}).unwrap();
    let text = message(journal.finish_base(copied, world.number + 1));
    assert!(text.contains(&format!("number {}", world.number + 1)), "{text}");
    let names: Vec<_> = std::fs::read_dir(world.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("another"))
        .collect();
    assert!(names.is_empty(), "nothing is left: {names:?}");
}

#[test]
fn what_is_given_up_during_a_copy_is_missed() {
    let mut world = World::new(77);
    let settled = |world: &mut World, steps: usize| {
        (0..steps).for_each(|_| world.step());
        while !world.unanswered.is_empty() {
            world.answer();
        }
    };
    settled(&mut world, 100);
    let (primary, base) = (world.path("primary"), world.path("base"));
    let (first, second) = (world.path("first"), world.path("second"));
    std::fs::write(&second, vec![0; 64 * 512]).unwrap();
    world.journal().adopt_base(NAME, &first, false).unwrap();
    world.journal().adopt_base("3.1", &second, false).unwrap();
    let options = world.copy_options(&primary, &base);
    let mut copy = world.journal().begin_base(&options).unwrap();
    copy.settle().unwrap();
    settled(&mut world, 300);
    let journal = world.journal();
    journal.sync().unwrap();
    journal.set_schedule(&"all:100us".parse().unwrap()).unwrap();
    let bases = vec![(NAME.to_owned(), first), ("3.1".to_owned(), second)];
    let merging = MergeOptions { short: false, freeing_only: false, bases };
    let merged = journal.merge(&merging, &mut |_| {}).unwrap();
    assert!(merged.given_up > 100, "{merged:?}");
    let copied = copy.copy(&mut |_, _| {}).unwrap();
    let last = world.number;
    let text = message(world.journal().finish_base(copied, last));
    assert!(text.contains("was given up while volume 3.0 was copied"), "{text}");
    // Made again it is the base.
    let copied = world.journal().begin_base(&options).unwrap().copy(&mut |_, _| {}).unwrap();
    world.journal().finish_base(copied, last).unwrap();
    let end = open(&world.storage, &base, Moment::End).unwrap();
    assert!(read(&end).unwrap() == std::fs::read(&primary).unwrap());
}
