//! Records as a card makes them, and a card that is up.
#![allow(dead_code)] // each test takes what it needs

use driver::fake::FakeCard;
use driver::{BringUp, Driver};
use engine::entry::{self, Commit};
use engine::frame::Write;
use layout::crc::crc32c;
use layout::entry::{flags, EntryHeader, ErrorBound, Updated, HEADER_BYTES};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use zerocopy::{FromBytes, IntoBytes};

/// Ring of the tests, the smallest there is, so that it wraps often.
pub const RING: usize = 64 * 1024;

/// A generator whose seed is printed when the test fails, and taken from CHRONO_SEED.
pub fn random() -> ChaCha8Rng {
    let seed = std::env::var("CHRONO_SEED").ok().map(|text| text.parse().expect("CHRONO_SEED is a number"));
    let seed = seed.unwrap_or_else(|| rand::rng().random());
    println!("CHRONO_SEED={seed}");
    ChaCha8Rng::seed_from_u64(seed)
}

pub fn settings(ports: usize) -> BringUp {
    let mut settings = BringUp::new(7, 1_800_000_000_000_000_000, ports);
    settings.volumes = vec![Some((1, 0)), Some((1, 1))];
    for port in &mut settings.ports {
        port.ring_bytes = RING;
        port.volumes = 0b11;
    }
    settings
}

pub fn up(ports: usize) -> Driver<FakeCard> {
    let driver = Driver::bring_up(FakeCard::new(ports), &settings(ports)).expect("bring-up");
    assert_eq!(driver.ports(), ports);
    driver
}

/// Makes the records of a card, in the order of its arbiter.
pub struct Card {
    pub stamp: u64,
    pub number: u64,
    pub sequences: Vec<u64>,
}

impl Card {
    pub fn new(ports: usize) -> Self {
        Self { stamp: 1_800_000_000_000_000_000, number: 0, sequences: vec![0; ports] }
    }

    pub fn commit(&mut self, port: usize, number: u64) -> Commit {
        self.stamp += 1000;
        let sequence = self.sequences[port];
        self.sequences[port] += 1;
        Commit {
            port: port as u8,
            sequence,
            timestamp: self.stamp,
            number,
            clock_flags: flags::CLOCK_LOCKED,
            clock_error: ErrorBound::from_sixteenths(400),
        }
    }

    pub fn write(&mut self, port: usize, lba: u64, data: &[u8]) -> Vec<u8> {
        self.number += 1;
        let commit = self.commit(port, self.number);
        let write = Write {
            source: [2, 0, 0, 0, 0, port as u8],
            volume: 0,
            shelf: 1,
            slot: 0,
            tag: 5,
            lba,
            lba_mask: engine::frame::LBA48_MASK,
            sectors: (data.len() / 512) as u16,
            payload: 36..36 + data.len(),
            payload_crc: crc32c(data),
        };
        entry::after(&commit, (self.number % 16) as u8, 0, false, &write, data)
    }

    pub fn watermark(&mut self, port: usize) -> Vec<u8> {
        let commit = self.commit(port, self.number);
        entry::watermark(&commit)
    }

    pub fn completion(&mut self, port: usize, number: u64, updated: Updated, late: bool) -> Vec<u8> {
        let commit = self.commit(port, number);
        let (ata_status, error) = match updated {
            Updated::Updated => (0x40, 0),
            Updated::Refused => (0x41, 0x10),
            Updated::Unknown => (0x41, 0x40),
            other => panic!("no answer says {other}"),
        };
        let answer = engine::answer::Answer {
            destination: [0; 6],
            shelf: 1,
            slot: 0,
            tag: 5,
            lba: 0,
            ata_status,
            error,
            aoe_error: false,
        };
        entry::completion(&commit, 0, &answer, late)
    }

    /// A card that has lost some records of `port`.
    pub fn lose(&mut self, port: usize, records: u64) {
        self.sequences[port] += records;
        self.stamp += 1000 * records;
        self.number += records;
    }
}

/// Changes a record's header and makes its CRC right again: a card that is wrong, not a damaged wire.
pub fn changed(record: &[u8], change: impl FnOnce(&mut EntryHeader)) -> Vec<u8> {
    let mut header = EntryHeader::read_from_bytes(&record[..HEADER_BYTES]).expect("a header");
    change(&mut header);
    header.header_crc = header.computed_crc().into();
    [header.as_bytes(), &record[HEADER_BYTES..]].concat()
}

pub fn data(random: &mut ChaCha8Rng, sectors: usize) -> Vec<u8> {
    let mut data = vec![0; sectors * 512];
    random.fill(&mut data[..]);
    data
}
