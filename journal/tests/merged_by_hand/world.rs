//! Random journals, and the naive model of what they say: a list of writes.

use crate::faulty_storage::FaultyStorage;
use journal::{CreateOptions, Delivered, Journal, OwnedRecord, Port, PortKind, Volume};
use layout::entry::{flags, Encoding, EntryHeader, Gap, Journaled, Kind, Resize, Updated};
use layout::journal_file::{technique, BaseLabel};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::PathBuf;
use std::sync::Arc;
use zerocopy::{FromZeros, IntoBytes};

/// Sectors of the volumes at first.
pub const SECTORS: [u64; 2] = [64, 48];
pub const NAMES: [&str; 2] = ["3.0", "3.1"];
/// Sectors that the second volume may gain.
pub const GAIN: u64 = 16;
const PORTS: u8 = 3;

/// Identity of a volume's base.
pub fn base_id(volume: u16) -> [u8; 16] {
    [volume as u8 + 1; 16]
}

pub struct Write {
    pub volume: usize,
    pub lba: u64,
    pub data: Vec<u8>,
    pub stamp: u64,
    pub status: Updated,
    /// Did primary take it?
    pub executed: bool,
    pub kind: Kind,
}

/// What a world may hold beside writes and answers.
#[derive(Clone, Copy, Default)]
pub struct Beside {
    pub resyncs: bool,
    pub resize: bool,
    pub gaps: bool,
    pub bookmarks: bool,
}

pub struct World {
    pub rng: ChaCha8Rng,
    pub kind: Kind,
    pub storage: Arc<FaultyStorage>,
    pub journal: Option<Journal>,
    pub writes: Vec<Write>,
    /// Stamps that have a name.
    pub named: Vec<u64>,
    /// Entries before the second volume grew.
    pub grown_after: Option<usize>,
    pub bases: [Vec<u8>; 2],
    pub primary: [Vec<u8>; 2],
    pub first_stamp: u64,
    pub stamp: u64,
    number: u64,
    sequence: [u64; PORTS as usize],
    unanswered: Vec<(u8, u64, usize)>,
    beside: Beside,
    pub directory: tempfile::TempDir,
}

impl World {
    pub fn new(seed: u64, bytes: usize, beside: Beside) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let kind = *[Kind::After, Kind::Before, Kind::Both].choose(&mut rng).unwrap();
        let bases = SECTORS.map(|sectors| {
            let mut base = vec![0u8; sectors as usize * 512];
            rng.fill(&mut base[..]);
            base
        });
        let technique = match kind {
            Kind::After => technique::AFTER,
            Kind::Before => technique::BEFORE,
            _ => technique::AFTER | technique::BEFORE,
        };
        let storage = Arc::new(FaultyStorage::new(bytes));
        let options = CreateOptions {
            bytes: None,
            segment_bytes: Some(64 * 1024),
            volumes: (0..2)
                .map(|i| Volume { technique, ..Volume::aoe(i, 3, i as u8, SECTORS[usize::from(i)]) })
                .collect(),
            ports: (0..PORTS)
                .map(|port| Port { port, kind: PortKind::Card, arbiter: 0, name: format!("port {port}") })
                .collect(),
            writer: "by hand".into(),
        };
        let shared: Arc<dyn journal::Storage> = storage.clone();
        let journal = Some(Journal::create_on(shared, &options).unwrap());
        let first_stamp = 1_700_000_000_000_000_000;
        Self {
            rng,
            kind,
            storage,
            journal,
            writes: Vec::new(),
            named: Vec::new(),
            grown_after: None,
            primary: bases.clone(),
            bases,
            first_stamp,
            stamp: first_stamp,
            number: 0,
            sequence: [0; PORTS as usize],
            unanswered: Vec::new(),
            beside,
            directory: tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap(),
        }
    }

    /// Runs some steps and closes the journal, or leaves it as it is.
    pub fn run(&mut self, steps: usize) {
        (0..steps).for_each(|_| self.step());
        if self.rng.random_bool(0.5) {
            self.journal.take().unwrap().close().unwrap();
        } else {
            self.journal.as_mut().unwrap().sync().unwrap();
        }
    }

    fn step(&mut self) {
        match self.rng.random_range(0..40) {
            0..=3 => self.journal.as_mut().unwrap().flush().unwrap(),
            4 if self.beside.resyncs && self.kind != Kind::Before => self.resync(),
            5 if self.beside.resize && self.grown_after.is_none() => self.grow(),
            6 if self.beside.gaps => self.gap(),
            7 if self.beside.bookmarks && !self.writes.is_empty() && self.named.len() < 5 => self.bookmark(),
            8 => self.marker(0, 0, Vec::new()),
            9..=22 if !self.unanswered.is_empty() => self.answer(),
            _ => self.write(),
        }
    }

    fn header(&mut self, kind: Kind, port: u8, number: u64) -> EntryHeader {
        self.stamp += self.rng.random_range(1..3000);
        let mut header = EntryHeader::new(kind);
        header.timestamp = self.stamp.into();
        header.number = number.into();
        header.port = port;
        header.sequence = self.sequence[usize::from(port)].into();
        header.flags = if self.rng.random_bool(0.98) { flags::CLOCK_LOCKED } else { 0 }.into();
        header.clock_error = 17.into();
        self.sequence[usize::from(port)] += 1;
        header
    }

    fn append(&mut self, mut header: EntryHeader, payload: Vec<u8>) {
        header.seal(&payload);
        let record = OwnedRecord { header, payload };
        let delivered: Vec<_> = (0..PORTS).map(|port| Delivered { port, timestamp: self.stamp }).collect();
        self.journal.as_mut().unwrap().append(&[record.as_record()], &delivered).unwrap();
    }

    fn marker(&mut self, flag: u16, volume: u16, payload: Vec<u8>) {
        let mut header = self.header(Kind::Marker, 0, self.number);
        (header.flags, header.volume) = (flag.into(), volume.into());
        self.append(header, payload);
    }

    fn grow(&mut self) {
        let (before, after) = (SECTORS[1], SECTORS[1] + GAIN);
        let resize = Resize { before: before.into(), after: after.into() };
        self.marker(flags::RESIZED, 1, resize.as_bytes().to_vec());
        self.primary[1].resize(after as usize * 512, 0);
        self.grown_after = Some(self.writes.len());
    }

    fn gap(&mut self) {
        let port = self.rng.random_range(0..PORTS);
        let from = self.stamp;
        let header = self.header(Kind::Gap, port, self.number + 1);
        let (from_number, reason) = (self.number.into(), 1.into());
        let gap = Gap { from_timestamp: from.into(), from_number, reason, reserved: 0.into() };
        self.append(header, gap.as_bytes().to_vec());
    }

    fn bookmark(&mut self) {
        let (order, stamp) = (self.writes.len(), self.writes.last().unwrap().stamp);
        if !self.named.contains(&stamp) {
            let name = format!("bookmark {order}");
            self.journal.as_mut().unwrap().add_bookmark(&name, order as u64, stamp).unwrap();
            self.named.push(stamp);
        }
    }

    /// A place that nothing unanswered touches.
    fn place(&mut self) -> Option<(usize, u64, u64)> {
        let volume = self.rng.random_range(0..2);
        let sectors = self.rng.random_range(1..=12u64);
        let size = self.primary[volume].len() as u64 / 512;
        let lba = self.rng.random_range(0..size - sectors + 1);
        let overlaps = |write: &Write| {
            let end = write.lba + write.data.len() as u64 / 512;
            write.volume == volume && write.lba < lba + sectors && lba < end
        };
        let taken = self.unanswered.iter().any(|(_, _, index)| overlaps(&self.writes[*index]));
        (!taken).then_some((volume, lba, sectors))
    }

    fn write(&mut self) {
        let Some((volume, lba, sectors)) = self.place() else { return self.answer() };
        let range = lba as usize * 512..(lba + sectors) as usize * 512;
        let before = self.primary[volume][range].to_vec();
        let mut data = vec![0; before.len()];
        if self.rng.random_bool(0.85) {
            self.rng.fill(&mut data[..]);
        }
        let payload = match self.kind {
            Kind::Before => before,
            Kind::After => data.clone(),
            _ => [before, data.clone()].concat(),
        };
        self.entry(self.kind, volume, lba, payload);
        let (stamp, status, executed) = (self.stamp, Updated::Pending, false);
        let port = self.writes.len() as u8 % PORTS;
        self.unanswered.push((port, self.number, self.writes.len()));
        self.writes.push(Write { volume, lba, data, stamp, status, executed, kind: self.kind });
        if self.rng.random_bool(0.5) {
            self.execute(self.writes.len() - 1);
        }
    }

    /// The ports take turns.
    fn entry(&mut self, kind: Kind, volume: usize, lba: u64, mut payload: Vec<u8>) {
        self.number += 1;
        let port = self.writes.len() as u8 % PORTS;
        let mut header = self.header(kind, port, self.number);
        header.volume = (volume as u16).into();
        let images = if kind == Kind::Both { 2 } else { 1 };
        header.sectors = ((payload.len() / images / 512) as u16).into();
        header.set_lba(lba);
        header.set_status(
            Journaled::Port,
            if kind == Kind::Resync { Updated::Updated } else { Updated::Pending },
        );
        if payload.iter().all(|byte| *byte == 0) && self.rng.random_bool(0.8) {
            header.encoding = Encoding::Zero as u8;
            payload.clear();
        }
        self.append(header, payload);
    }

    fn resync(&mut self) {
        let Some((volume, lba, sectors)) = self.place() else { return };
        let data = self.primary[volume][lba as usize * 512..(lba + sectors) as usize * 512].to_vec();
        self.entry(Kind::Resync, volume, lba, data.clone());
        let (stamp, status) = (self.stamp, Updated::Updated);
        self.writes.push(Write { volume, lba, data, stamp, status, executed: true, kind: Kind::Resync });
    }

    fn execute(&mut self, index: usize) {
        let write = &mut self.writes[index];
        write.executed = true;
        let at = write.lba as usize * 512;
        self.primary[write.volume][at..at + write.data.len()].copy_from_slice(&write.data);
    }

    fn answer(&mut self) {
        if self.unanswered.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.unanswered.len());
        let (port, number, index) = self.unanswered.swap_remove(at);
        let mut header = self.header(Kind::Completion, port, number);
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
        header.set_status(Journaled::Pending, status);
        self.append(header, Vec::new());
    }

    /// The volume just after the first `count` entries, by those that `counts`.
    fn model(&self, volume: usize, count: usize, counts: impl Fn(&Write) -> bool) -> Vec<u8> {
        let mut image = self.bases[volume].clone();
        if volume == 1 && self.grown_after.is_some_and(|grown| grown < count) {
            image.resize(image.len() + GAIN as usize * 512, 0);
        }
        for write in self.writes[..count].iter().filter(|write| write.volume == volume && counts(write)) {
            let at = write.lba as usize * 512;
            image[at..at + write.data.len()].copy_from_slice(&write.data);
        }
        image
    }

    /// What primary had: what an image over primary has to be.
    pub fn truth(&self, volume: usize, count: usize) -> Vec<u8> {
        self.model(volume, count, |write| write.executed)
    }

    /// What after-images tell: what an image over a base has to be.
    pub fn assumed(&self, volume: usize, count: usize) -> Vec<u8> {
        self.model(volume, count, |write| !matches!(write.status, Updated::Refused | Updated::Cancelled))
    }

    /// Writes a base, and its label, that holds the first `count` entries, and `rolling` in every other sector.
    pub fn base_at(&self, volume: usize, journal_id: [u8; 16], count: usize, rolling: usize) -> PathBuf {
        let (mut base, ahead) = (self.assumed(volume, count), self.assumed(volume, rolling));
        for sector in (0..base.len() / 512).step_by(2) {
            base[sector * 512..][..512].copy_from_slice(&ahead[sector * 512..][..512]);
        }
        let path = self.directory.path().join(format!("base{volume}"));
        std::fs::write(&path, &base).unwrap();
        let stamp = |count: usize| count.checked_sub(1).map_or(0, |index| self.writes[index].stamp).into();
        let mut label = BaseLabel::new_zeroed();
        label.prefix.magic = *b"CSW-BASE";
        label.prefix.version = 1.into();
        (label.journal_id, label.base_id) = (journal_id, base_id(volume as u16));
        label.volume[..NAMES[volume].len()].copy_from_slice(NAMES[volume].as_bytes());
        label.sectors = (base.len() as u64 / 512).into();
        (label.order, label.timestamp) = ((count as u64).into(), stamp(count));
        (label.rolling_order, label.rolling_timestamp) = ((rolling as u64).into(), stamp(rolling));
        let mut block = vec![0; 4096];
        block[..size_of::<BaseLabel>()].copy_from_slice(label.as_bytes());
        let sum = layout::crc::crc32c(&block);
        block[12..16].copy_from_slice(&sum.to_le_bytes());
        std::fs::write(self.directory.path().join(format!("base{volume}.chronoswitch")), block).unwrap();
        path
    }

    /// Writes base and primary into files, and gives their names.
    pub fn files(&self, volume: usize) -> (PathBuf, PathBuf) {
        let base = self.directory.path().join(format!("base{volume}"));
        let primary = self.directory.path().join(format!("primary{volume}"));
        std::fs::write(&base, &self.bases[volume]).unwrap();
        std::fs::write(&primary, &self.primary[volume]).unwrap();
        (base, primary)
    }
}
