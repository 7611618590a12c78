//! Random histories of two volumes with everything that belongs to them: journal, bases, primaries, and the naive
//! model, a list of writes.
#![allow(dead_code)]
// A volume's number is the index of several arrays at once.
#![allow(clippy::needless_range_loop)]

use crate::faulty_storage::FaultyStorage;
use journal::image::{Backing, Image};
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

pub const SECTORS: [u64; 2] = [96, 64];
pub const NAMES: [&str; 2] = ["3.0", "3.1"];
pub const PORTS: u8 = 3;

pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

pub fn each_seed(offset: u64, count: u64, test: impl Fn(u64)) {
    let first = number("CHRONO_SEED", 1 + offset);
    let count = number("CHRONO_SEEDS", if std::env::var("CHRONO_SEED").is_ok() { 1 } else { count });
    println!("CHRONO_SEED={first}, {count} seeds");
    for seed in first..first + count {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(seed)));
        if let Err(panic) = result {
            println!("failed with CHRONO_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

pub struct Write {
    pub volume: usize,
    pub lba: u64,
    pub data: Vec<u8>,
    pub stamp: u64,
    pub status: Updated,
    /// Did primary take it?
    pub executed: bool,
}

/// An answer to a write that had been declared unknown.
#[derive(Clone, Copy, Debug)]
pub struct Late {
    /// Index in `writes`.
    pub index: usize,
    /// Entries before it.
    pub count: usize,
    pub stamp: u64,
    /// The target executed the write just before.
    pub executed: bool,
}

/// A volume got another size.
#[derive(Clone, Copy, Debug)]
pub struct Resize {
    pub volume: usize,
    pub stamp: u64,
    /// Entries before its marker.
    pub count: usize,
    pub before: u64,
    pub after: u64,
}

pub struct World {
    pub rng: ChaCha8Rng,
    pub kind: Kind,
    /// Every answer says what became of the write.
    pub certain: bool,
    /// Every write is executed, and every answer says so.
    pub plain: bool,
    /// Volumes get other sizes, and there are writes past their ends.
    pub resizing: bool,
    pub resizes: Vec<Resize>,
    /// Some of what was declared unknown is answered after all.
    pub late_answers: bool,
    pub late: Vec<Late>,
    /// Port, arbiter's number and index in `writes` of what was declared unknown.
    pub unknown: Vec<(u8, u64, usize)>,
    /// Arbiters: each volume has one, and each port.
    pub arbiters: u16,
    pub journal: Option<Journal>,
    pub storage: Arc<FaultyStorage>,
    pub stamp: u64,
    /// The last of each arbiter.
    pub numbers: [u64; 2],
    pub sequence: [u64; PORTS as usize],
    pub bases: [Vec<u8>; 2],
    /// What primary has now, and the files that have the same.
    pub primary: [Vec<u8>; 2],
    pub files: [(PathBuf, File); 2],
    pub base_files: [PathBuf; 2],
    /// In order: entry N is at N − 1.
    pub writes: Vec<Write>,
    /// Port, arbiter's number, index in `writes`.
    pub unanswered: Vec<(u8, u64, usize)>,
    pub _directory: tempfile::TempDir,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let kind = *[Kind::After, Kind::Before, Kind::Both].choose(&mut rng).unwrap();
        Self::of_kind(rng, kind)
    }

    pub fn of_kind(mut rng: ChaCha8Rng, kind: Kind) -> Self {
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
        let storage = Arc::new(FaultyStorage::new(8 << 20));
        let arbiters = rng.random_range(1..=2);
        let technique = match kind {
            Kind::After => technique::AFTER,
            Kind::Before => technique::BEFORE,
            _ => technique::AFTER | technique::BEFORE,
        };
        let options = CreateOptions {
            bytes: None,
            segment_bytes: Some(64 * 1024),
            volumes: (0..2)
                .map(|i| Volume {
                    technique,
                    arbiter: i % arbiters,
                    ..Volume::aoe(i, 3, i as u8, SECTORS[usize::from(i)])
                })
                .collect(),
            ports: (0..PORTS)
                .map(|port| Port {
                    port,
                    kind: PortKind::Card,
                    arbiter: u16::from(port) % arbiters,
                    name: format!("port {port}"),
                })
                .collect(),
            writer: "any moment".into(),
        };
        let shared: Arc<dyn journal::Storage> = storage.clone();
        let journal = Some(Journal::create_on(shared, &options).unwrap());
        Self {
            rng,
            kind,
            certain: false,
            plain: false,
            resizing: false,
            resizes: Vec::new(),
            late_answers: false,
            late: Vec::new(),
            unknown: Vec::new(),
            arbiters,
            journal,
            storage,
            stamp: 1_700_000_000_000_000_000,
            numbers: [0; 2],
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

    pub fn journal(&mut self) -> &mut Journal {
        self.journal.as_mut().unwrap()
    }

    pub fn header(&mut self, kind: Kind, port: u8, number: u64) -> EntryHeader {
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

    pub fn append(&mut self, header: EntryHeader, payload: Vec<u8>) -> Result<(), Error> {
        let record = OwnedRecord { header, payload };
        let delivered: Vec<_> = (0..PORTS).map(|port| Delivered { port, timestamp: self.stamp }).collect();
        self.journal().append(&[record.as_record()], &delivered).map(drop)
    }

    /// One write, or one answer, or a moment of the owner's.
    pub fn step(&mut self) {
        self.try_step().unwrap();
    }

    pub fn try_step(&mut self) -> Result<(), Error> {
        if self.resizing && !self.writes.is_empty() && self.rng.random_bool(0.06) {
            return self.try_resize();
        }
        if !self.unknown.is_empty() && self.rng.random_bool(0.1) {
            return self.try_answer_late();
        }
        match self.rng.random_range(0..10) {
            0 => self.journal().flush(),
            1 => self.journal().sync().map(drop),
            2..=5 if !self.unanswered.is_empty() => self.try_answer(),
            _ => self.write(),
        }
    }

    /// A world whose volumes are resized. Its stamps lie ahead of the host's clock, so that seeds replay.
    pub fn resizing(seed: u64) -> Self {
        let mut world = Self::new(seed);
        world.resizing = true;
        world.stamp = 4_000_000_000_000_000_000;
        world
    }

    /// Sectors of a volume now.
    pub fn sectors(&self, volume: usize) -> u64 {
        self.primary[volume].len() as u64 / 512
    }

    pub fn try_resize(&mut self) -> Result<(), Error> {
        let volume = self.rng.random_range(0..2);
        let sectors = self.rng.random_range(20..=SECTORS[volume] * 3 / 2);
        self.try_resize_to(volume, sectors)
    }

    pub fn try_resize_to(&mut self, volume: usize, sectors: u64) -> Result<(), Error> {
        // Nothing is under way.
        while !self.unanswered.is_empty() {
            self.try_answer()?;
        }
        let before = self.sectors(volume);
        let primary = self.files[volume].0.clone();
        let done = self.journal().resize(NAMES[volume], sectors, Some(&primary));
        self.take_up_resize(volume, sectors)?;
        let done = done?;
        assert_eq!((done.before, done.after), (before, sectors));
        let shared: Arc<dyn journal::Storage> = self.storage.clone();
        let reader = JournalReader::open_on(shared)?;
        let fitted = journal::resize::fit_primary(&reader, NAMES[volume], &primary)?;
        assert_eq!(fitted, before != sectors);
        Ok(())
    }

    /// What a resize journaled, or, if it was interrupted, may have journaled.
    pub fn take_up_resize(&mut self, volume: usize, sectors: u64) -> Result<(), Error> {
        let before = self.sectors(volume);
        let shared: Arc<dyn journal::Storage> = self.storage.clone();
        let reader = JournalReader::open_on(shared)?;
        let now = reader.sectors_now()?[&(volume as u16)];
        let mut at = sectors;
        for entry in reader.entries()? {
            let entry = entry?;
            if entry.order as usize <= self.writes.len() {
                continue;
            }
            let header = &entry.record.header;
            let (lba, count) = (header.lba(), u64::from(header.sectors.get()));
            assert_eq!(
                (lba, header.volume.get() as usize),
                (at, volume),
                "what is lost, one after the other"
            );
            at += count;
            let data = vec![0; count as usize * 512];
            let (stamp, status) = (header.timestamp.get(), entry.updated);
            let executed = now == sectors;
            self.writes.push(Write { volume, lba, data, stamp, status, executed });
        }
        let end = self.journal().end();
        self.take_up_end();
        if before != sectors && now == sectors {
            assert_eq!(at, sectors.max(before), "all that is lost is written with zeroes");
            let stamp = self.writes.last().map_or(0, |write| write.stamp) + 1;
            let stamp = if before > sectors { stamp } else { end.timestamp };
            let count = self.writes.len();
            self.resizes.push(Resize { volume, stamp, count, before, after: sectors });
            self.primary[volume].resize(sectors as usize * 512, 0);
        }
        Ok(())
    }

    /// The owner has journaled something of its own.
    pub fn take_up_end(&mut self) {
        let end = self.journal().end();
        self.stamp = end.timestamp;
        for arbiter in end.arbiters {
            self.numbers[usize::from(arbiter.arbiter)] = arbiter.number;
        }
    }

    /// The target answers what had been declared unknown: it may have executed it at any time until now.
    fn try_answer_late(&mut self) -> Result<(), Error> {
        let at = self.rng.random_range(0..self.unknown.len());
        let (port, number, index) = self.unknown.swap_remove(at);
        let mut header = self.header(Kind::Completion, port, number);
        let write = &self.writes[index];
        let end = write.lba * 512 + write.data.len() as u64;
        let past = end > self.primary[write.volume].len() as u64;
        // Only while it overlaps nothing that is under way is the model's order the target's.
        let under_way = self.unanswered.iter().any(|(_, _, index)| {
            let other = &self.writes[*index];
            let other_end = other.lba * 512 + other.data.len() as u64;
            other.volume == write.volume && other.lba * 512 < end && write.lba * 512 < other_end
        });
        let executed = !write.executed && !past && !under_way && self.rng.random_bool(0.5);
        if executed {
            let (volume, lba, data) = (write.volume, write.lba, write.data.clone());
            self.put(volume, lba, &data);
        }
        self.late.push(Late { index, count: self.writes.len(), stamp: self.stamp, executed });
        header.flags = (header.flags.get() | flags::LATE).into();
        header.set_status(Journaled::Pending, Updated::Updated);
        header.seal(&[]);
        self.append(header, Vec::new())
    }

    fn put(&mut self, volume: usize, lba: u64, data: &[u8]) {
        let at = lba as usize * 512;
        self.primary[volume][at..at + data.len()].copy_from_slice(data);
        self.files[volume].1.write_all_at(data, at as u64).unwrap();
    }

    fn write(&mut self) -> Result<(), Error> {
        let volume = self.rng.random_range(0..2);
        let sectors = self.rng.random_range(1..=17u64);
        // Now and then past the end: the target doesn't execute it.
        let past = self.resizing && self.rng.random_bool(0.06);
        let end = self.sectors(volume) + if past { 16 } else { 0 };
        let lba = self.rng.random_range(0..end - sectors + 1);
        let past = lba + sectors > self.sectors(volume);
        let overlaps = |write: &Write| {
            let end = write.lba + write.data.len() as u64 / 512;
            write.volume == volume && write.lba < lba + sectors && lba < end
        };
        // The interlock: nothing overlaps what has no answer.
        if self.unanswered.iter().any(|(_, _, index)| overlaps(&self.writes[*index])) {
            return self.try_answer();
        }
        let arbiter = volume % usize::from(self.arbiters);
        self.numbers[arbiter] += 1;
        let number = self.numbers[arbiter];
        let port = loop {
            let port = self.rng.random_range(0..PORTS);
            if usize::from(port) % usize::from(self.arbiters) == arbiter {
                break port;
            }
        };
        let mut header = self.header(self.kind, port, number);
        header.volume = (volume as u16).into();
        header.sectors = (sectors as u16).into();
        header.set_lba(lba);
        header.set_status(Journaled::Port, Updated::Pending);
        let range = lba as usize * 512..(lba + sectors) as usize * 512;
        let mut before = self.primary[volume][range.start.min(self.primary[volume].len())..].to_vec();
        before.resize(range.len(), 0);
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
        self.unanswered.push((port, number, self.writes.len()));
        let (stamp, status, executed) = (self.stamp, Updated::Pending, false);
        self.writes.push(Write { volume, lba, data, stamp, status, executed });
        self.append(header, payload)?;
        if self.kind != Kind::After {
            // Policy `journal`: durable before it is forwarded.
            self.journal().sync()?;
        }
        // The target may execute it long before it answers.
        if !past && self.rng.random_bool(0.5) {
            self.execute(self.writes.len() - 1);
        }
        Ok(())
    }

    pub fn execute(&mut self, index: usize) {
        let write = &mut self.writes[index];
        write.executed = true;
        let (volume, lba, data) = (write.volume, write.lba, write.data.clone());
        self.put(volume, lba, &data);
    }

    pub fn answer(&mut self) {
        self.try_answer().unwrap();
    }

    fn try_answer(&mut self) -> Result<(), Error> {
        let at = self.rng.random_range(0..self.unanswered.len());
        let (port, number, index) = self.unanswered.swap_remove(at);
        let mut header = self.header(Kind::Completion, port, number);
        let executed = self.writes[index].executed;
        let write = &self.writes[index];
        let past = write.lba * 512 + write.data.len() as u64 > self.primary[write.volume].len() as u64;
        let status = match self.rng.random_range(0..8) {
            status if past => match (status, self.certain) {
                (0..3, false) => Updated::Unknown,
                (3..5, _) => Updated::Cancelled,
                _ => Updated::Refused,
            },
            _ if self.plain => Updated::Updated,
            0 if !executed => Updated::Refused,
            1 if !executed => Updated::Cancelled,
            2 if !self.certain => Updated::Unknown,
            _ => Updated::Updated,
        };
        if !executed && status == Updated::Updated {
            self.execute(index);
        }
        self.writes[index].status = status;
        if status == Updated::Unknown && self.late_answers {
            self.unknown.push((port, number, index));
        }
        header.set_status(Journaled::Pending, status);
        header.seal(&[]);
        self.append(header, Vec::new())
    }

    /// The volume after the first `count` entries and what was resized up to a stamp, made of the entries that
    /// `counts`; with each sector, whether it is doubtful.
    pub fn model_at(
        &self,
        volume: usize,
        count: usize,
        until: u64,
        counts: impl Fn(&Write) -> bool,
    ) -> (Vec<u8>, Vec<bool>) {
        let mut image = self.bases[volume].clone();
        let mut doubtful = vec![false; image.len() / 512];
        let mut resizes = self.resizes.iter().filter(|resize| resize.volume == volume).peekable();
        let mut resize = |until: u64, image: &mut Vec<u8>, doubtful: &mut Vec<bool>| {
            while let Some(next) = resizes.next_if(|resize| resize.stamp <= until) {
                assert_eq!(image.len() as u64, next.before * 512);
                image.resize(next.after as usize * 512, 0);
                doubtful.resize(next.after as usize, false);
            }
        };
        for write in self.writes[..count].iter().filter(|write| write.volume == volume) {
            resize(write.stamp, &mut image, &mut doubtful);
            let at = write.lba as usize * 512;
            let sectors = write.lba as usize..write.lba as usize + write.data.len() / 512;
            // Past the end nothing is executed.
            if sectors.end > doubtful.len() {
                assert!(!write.executed);
                continue;
            }
            if counts(write) {
                image[at..at + write.data.len()].copy_from_slice(&write.data);
            }
            if !matches!(write.status, Updated::Refused | Updated::Cancelled) {
                doubtful[sectors].fill(write.status != Updated::Updated);
            }
        }
        resize(until, &mut image, &mut doubtful);
        (image, doubtful)
    }

    /// Up to where resizes count at a moment after so many entries.
    pub fn until(&self, at: Moment, count: usize) -> u64 {
        match at {
            Moment::End => u64::MAX,
            Moment::Timestamp(stamp) => stamp,
            Moment::Order(_) => count.checked_sub(1).map_or(0, |last| self.writes[last].stamp),
        }
    }

    /// What primary had.
    pub fn truth(&self, volume: usize, count: usize) -> Vec<u8> {
        self.truth_at(volume, count, Moment::Order(count as u64))
    }

    pub fn truth_at(&self, volume: usize, count: usize, at: Moment) -> Vec<u8> {
        self.model_at(volume, count, self.until(at, count), |write| write.executed).0
    }

    /// Does the moment, after `count` entries, include the late answer?
    fn includes(&self, late: &Late, count: usize, at: Moment) -> bool {
        late.count < count || late.count == count && late.stamp <= self.until(at, count)
    }

    /// Of a world with late answers: what primary had, and where that can't be told, between a write and its late answer.
    pub fn truth_with_late(&self, volume: usize, count: usize, at: Moment) -> (Vec<u8>, Vec<bool>) {
        let mut image = self.bases[volume].clone();
        let mut doubtful = vec![false; image.len() / 512];
        let range = |write: &Write| write.lba as usize * 512..write.lba as usize * 512 + write.data.len();
        for index in 0..=count {
            for late in self.late.iter().filter(|late| late.count == index) {
                let write = &self.writes[late.index];
                if write.volume == volume && late.executed && self.includes(late, count, at) {
                    image[range(write)].copy_from_slice(&write.data);
                }
            }
            if let Some(write) = self.writes[..count].get(index).filter(|w| w.volume == volume && w.executed)
            {
                image[range(write)].copy_from_slice(&write.data);
            }
        }
        for late in self.late.iter().filter(|late| late.index < count && !self.includes(late, count, at)) {
            let write = &self.writes[late.index];
            if write.volume == volume {
                doubtful[write.lba as usize..write.lba as usize + write.data.len() / 512].fill(true);
            }
        }
        (image, doubtful)
    }

    /// Of a world with late answers, over a base: sectors that have to be doubtful, and those that may be.
    pub fn doubtful_with_late(&self, volume: usize, count: usize) -> (Vec<bool>, Vec<bool>) {
        let mut has_to = self.doubtful(volume, count);
        let mut may = has_to.clone();
        let sectors = |write: &Write| write.lba as usize..write.lba as usize + write.data.len() / 512;
        for late in self.late.iter().filter(|late| self.writes[late.index].volume == volume) {
            // A write is doubtful as a whole.
            let original = sectors(&self.writes[late.index]);
            for write in self.writes.iter().filter(|write| write.volume == volume) {
                let other = sectors(write);
                if other.start < original.end && original.start < other.end {
                    may[other].fill(true);
                }
            }
            for sector in sectors(&self.writes[late.index]) {
                let shows = self.writes[..count].iter().rposition(|write| {
                    let dropped = matches!(write.status, Updated::Refused | Updated::Cancelled);
                    write.volume == volume && !dropped && sectors(write).contains(&sector)
                });
                has_to[sector] |= shows.is_some_and(|shows| (late.index..late.count).contains(&shows));
            }
        }
        (has_to, may)
    }

    /// What can be told from after-images.
    pub fn assumed(&self, volume: usize, count: usize) -> Vec<u8> {
        self.assumed_at(volume, count, Moment::Order(count as u64))
    }

    pub fn assumed_at(&self, volume: usize, count: usize, at: Moment) -> Vec<u8> {
        let executed = |write: &Write| !matches!(write.status, Updated::Refused | Updated::Cancelled);
        self.model_at(volume, count, self.until(at, count), executed).0
    }

    pub fn doubtful(&self, volume: usize, count: usize) -> Vec<bool> {
        self.doubtful_at(volume, count, Moment::Order(count as u64))
    }

    pub fn doubtful_at(&self, volume: usize, count: usize, at: Moment) -> Vec<bool> {
        self.model_at(volume, count, self.until(at, count), |_| false).1
    }

    pub fn open(&self, volume: usize, at: Moment, over_primary: bool) -> Result<Image, Error> {
        let shared: Arc<dyn journal::Storage> = self.storage.clone();
        let reader = JournalReader::open_on(shared)?;
        let backing = match over_primary {
            true => Backing::Primary(&self.files[volume].0),
            false => Backing::Base(&self.base_files[volume]),
        };
        Image::open(reader, NAMES[volume], at, backing, false, &mut |_, _| {})
    }

    /// A way to name the moment after `count` entries.
    pub fn moment(&mut self, count: usize) -> Moment {
        match self.rng.random_range(0..3) {
            0 if count > 0 => {
                let next = self.writes.get(count).map_or(self.stamp + 1, |write| write.stamp);
                Moment::Timestamp(self.rng.random_range(self.writes[count - 1].stamp..next))
            }
            1 if count == self.writes.len() => Moment::End,
            _ => Moment::Order(count as u64),
        }
    }

    pub fn check(&mut self, image: &Image, expected: &[u8]) {
        assert_eq!(image.bytes(), expected.len() as u64);
        let mut read = vec![0xEE; expected.len()];
        image.read_at(&mut read, 0).unwrap();
        if let Some(at) = (0..read.len()).find(|at| read[*at] != expected[*at]) {
            tell(self, usize::from(image.volume().index), at as u64 / 512);
            panic!(
                "{:?}: byte {at} (sector {}) of volume {} differs at order:{}",
                self.kind,
                at / 512,
                image.volume().index,
                image.facts().order
            );
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

/// Prints the history of a sector.
pub fn tell(world: &World, volume: usize, sector: u64) {
    for (index, write) in world.writes.iter().enumerate() {
        if write.volume == volume && (write.lba..write.lba + write.data.len() as u64 / 512).contains(&sector)
        {
            println!(
                "order:{} stamp {} {:?} executed {}",
                index + 1,
                write.stamp,
                write.status,
                write.executed
            );
        }
    }
}
