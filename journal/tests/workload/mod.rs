//! Random journals, and the naive model of what they say.
#![allow(dead_code)]

use journal::{CreateOptions, Delivered, OwnedRecord, Port, PortKind, Record, Volume};
use layout::entry::{flags, Encoding, EntryHeader, Journaled, Kind, Updated};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Size of the first volume in sectors; the second has half.
pub const SECTORS: u64 = 256;

/// The seed of a test: CHRONO_SEED, or the one given. It is printed.
pub fn seed(default: u64) -> u64 {
    let seed = std::env::var("CHRONO_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    println!("CHRONO_SEED={seed}");
    seed
}

pub fn options(bytes: u64) -> CreateOptions {
    CreateOptions {
        bytes: Some(bytes),
        segment_bytes: Some(64 * 1024),
        volumes: vec![Volume::aoe(0, 7, 1, SECTORS), Volume::aoe(1, 7, 2, SECTORS / 2)],
        ports: (0..3)
            .map(|port| Port { port, kind: PortKind::Card, arbiter: 0, name: format!("port {port}") })
            .collect(),
        writer: "workload".into(),
    }
}

/// A write as the model sees it.
#[derive(Clone, Debug)]
pub struct Write {
    pub volume: u16,
    pub lba: u64,
    pub data: Vec<u8>,
    pub status: Updated,
}

/// Makes records in stamp order.
pub struct Workload {
    pub rng: ChaCha8Rng,
    pub stamp: u64,
    pub number: u64,
    sequence: [u64; 3],
    /// Unanswered: port, number, index in `writes`.
    unanswered: Vec<(u8, u64, usize)>,
    /// Every entry in order; entry N is at N − 1.
    pub writes: Vec<Write>,
    /// Largest write in sectors.
    pub largest: u16,
}

impl Workload {
    pub fn new(seed: u64) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            stamp: 1_700_000_000_000_000_000,
            number: 0,
            sequence: [0; 3],
            unanswered: Vec::new(),
            writes: Vec::new(),
            largest: 17,
        }
    }

    /// The next record: a write, or the answer to one.
    pub fn next(&mut self) -> OwnedRecord {
        self.stamp += self.rng.random_range(1..5000);
        if !self.unanswered.is_empty() && self.rng.random_bool(0.5) {
            let at = self.rng.random_range(0..self.unanswered.len());
            let (port, number, index) = self.unanswered.swap_remove(at);
            return self.answer(port, number, index);
        }
        self.write()
    }

    /// Answers all that is unanswered.
    pub fn settle(&mut self) -> Vec<OwnedRecord> {
        let unanswered = std::mem::take(&mut self.unanswered);
        unanswered
            .into_iter()
            .map(|(port, number, index)| {
                self.stamp += 1;
                self.answer(port, number, index)
            })
            .collect()
    }

    fn header(&mut self, kind: Kind, port: u8, number: u64) -> EntryHeader {
        let mut header = EntryHeader::new(kind);
        header.timestamp = self.stamp.into();
        header.number = number.into();
        header.port = port;
        header.sequence = self.sequence[port as usize].into();
        header.flags = flags::CLOCK_LOCKED.into();
        self.sequence[port as usize] += 1;
        header
    }

    fn write(&mut self) -> OwnedRecord {
        self.number += 1;
        let port = self.rng.random_range(0..3);
        let mut header = self.header(Kind::After, port, self.number);
        let volume = self.rng.random_range(0..2u16);
        let size = SECTORS >> volume;
        let sectors = self.rng.random_range(1..=self.largest);
        // Now and then past the end: the target refuses it.
        let margin = if self.rng.random_bool(0.9) { 16 } else { 0 };
        let lba = self.rng.random_range(0..size - margin);
        header.volume = volume.into();
        header.source = 0.into();
        header.sectors = sectors.into();
        header.set_lba(lba);
        header.set_status(Journaled::Port, Updated::Pending);
        let mut data = vec![0; usize::from(sectors) * 512];
        let mut payload = Vec::new();
        match self.rng.random_range(0..10) {
            0 => header.encoding = Encoding::Zero as u8,
            1 => payload.clone_from(&data),
            _ => {
                self.rng.fill(&mut data[..]);
                payload.clone_from(&data);
            }
        }
        header.seal(&payload);
        self.unanswered.push((port, self.number, self.writes.len()));
        self.writes.push(Write { volume, lba, data, status: Updated::Pending });
        OwnedRecord { header, payload }
    }

    fn answer(&mut self, port: u8, number: u64, index: usize) -> OwnedRecord {
        let mut header = self.header(Kind::Completion, port, number);
        let write = &self.writes[index];
        let past_end = write.lba * 512 + write.data.len() as u64 > (SECTORS >> write.volume) * 512;
        let status = match self.rng.random_range(0..20) {
            _ if past_end => Updated::Refused,
            0 => Updated::Refused,
            1 => Updated::Unknown,
            2 => Updated::Cancelled,
            _ => Updated::Updated,
        };
        self.writes[index].status = status;
        header.set_status(Journaled::Pending, status);
        header.seal(&[]);
        OwnedRecord { header, payload: Vec::new() }
    }

    /// Every port has delivered up to now.
    pub fn delivered(&self) -> Vec<Delivered> {
        (0..3).map(|port| Delivered { port, timestamp: self.stamp }).collect()
    }

    /// The image of a volume after the first `count` entries, by the naive model.
    pub fn image(&self, base: &[u8], volume: u16, count: usize) -> Vec<u8> {
        let mut image = base.to_vec();
        for write in self.writes[..count].iter().filter(|write| write.volume == volume) {
            let at = write.lba as usize * 512;
            let fits = at + write.data.len() <= image.len();
            if fits && !matches!(write.status, Updated::Refused | Updated::Cancelled) {
                image[at..at + write.data.len()].copy_from_slice(&write.data);
            }
        }
        image
    }
}

pub fn borrowed(records: &[OwnedRecord]) -> Vec<Record<'_>> {
    records.iter().map(OwnedRecord::as_record).collect()
}
