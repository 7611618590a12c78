//! Building the map of pointers of a large journal.
//!
//! `cargo run --release -p journal --example map_speed -- DIRECTORY [ENTRIES]`
//!
//! The journal is made by the owner as any other, with entries of 4 KiB at random places of a volume. Their
//! data are zeroes, which this program's storage leaves out of the file: 10 million entries would take 40 GB.

use journal::image::{Backing, Image};
use journal::{
    CreateOptions, Delivered, FileStorage, Journal, JournalReader, Moment, Port, PortKind, Record, Storage,
    Volume,
};
use layout::entry::{EntryHeader, Journaled, Kind, Updated};
use rand::{Rng, SeedableRng};
use std::error::Error;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

const ENTRY_BYTES: usize = 4096;
const ENTRIES_A_CALL: usize = 256;
/// Blocks of the volume for each entry: most are written once, some often.
const BLOCKS_AN_ENTRY: u64 = 2;

/// A sparse file that zeroes are not written to. Nothing in it is ever written twice but the front.
struct WithoutZeroes(FileStorage);

impl Storage for WithoutZeroes {
    fn name(&self) -> &str {
        self.0.name()
    }
    fn bytes(&self) -> io::Result<u64> {
        self.0.bytes()
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        if bytes.len() > 64 * 1024 && bytes.iter().all(|byte| *byte == 0) {
            return Ok(bytes.len());
        }
        self.0.write_at(bytes, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().unwrap_or_else(|| ".".into()));
    let entries: u64 = arguments.next().map_or(Ok(10_000_000), |text| text.parse())?;
    let (path, base) = (directory.join("map_speed.journal"), directory.join("map_speed.base"));
    let sectors = entries * BLOCKS_AN_ENTRY * (ENTRY_BYTES as u64 / 512);
    File::create(&base)?.set_len(sectors * 512)?;
    fill(&path, entries, sectors)?;
    println!("entries  segments  open+map s  ns/entry  extents  bytes/extent");
    for part in [10, 1] {
        for _ in 0..3 {
            let begin = Instant::now();
            let reader = JournalReader::open(&path)?;
            let segments = reader.summary().segments_used;
            let at = Moment::Order(entries / part);
            let image = Image::open(reader, "1.1", at, Backing::Base(&base), false, &mut |_, _| {})?;
            let time = begin.elapsed().as_secs_f64();
            println!(
                "{:>9}  {segments:>6}  {time:>9.3}  {:>8.1}  {:>9}  {}",
                entries / part,
                time * 1e9 / entries as f64,
                image.facts().extents,
                image.map_bytes() as u64 / image.facts().extents.max(1)
            );
        }
    }
    std::fs::remove_file(path)?;
    std::fs::remove_file(base)?;
    Ok(())
}

fn fill(path: &PathBuf, entries: u64, sectors: u64) -> Result<(), Box<dyn Error>> {
    let _ = std::fs::remove_file(path);
    let bytes = entries * (ENTRY_BYTES as u64 + 128) * 11 / 10 + (256 << 20);
    File::create(path)?.set_len(bytes)?;
    let storage = Arc::new(WithoutZeroes(FileStorage::open_owned(path)?));
    let options = CreateOptions {
        bytes: Some(bytes),
        segment_bytes: None,
        volumes: vec![Volume::aoe(0, 1, 1, sectors)],
        ports: vec![Port { port: 0, kind: PortKind::Software, arbiter: 0, name: "bench".into() }],
        writer: "map_speed".into(),
    };
    let mut journal = Journal::create_on(storage, &options)?;
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let data = vec![0; ENTRY_BYTES];
    let mut sum = EntryHeader::new(Kind::After);
    sum.seal(&data);
    let mut headers = Vec::new();
    for number in 1..=entries {
        let mut header = EntryHeader::new(Kind::After);
        header.timestamp = (1_700_000_000_000_000_000 + number * 1000).into();
        header.number = number.into();
        header.sequence = number.into();
        header.volume = 0.into();
        header.source = 0.into();
        header.set_lba(random.random_range(0..sectors / 8) * 8);
        header.sectors = 8.into();
        header.set_status(Journaled::Port, Updated::Updated);
        header.payload_bytes = sum.payload_bytes;
        header.payload_crc = sum.payload_crc;
        header.header_crc = header.computed_crc().into();
        headers.push(header);
        if headers.len() == ENTRIES_A_CALL || number == entries {
            let records: Vec<Record<'_>> = headers.iter().map(|header| Record::new(*header, &data)).collect();
            let delivered = [Delivered { port: 0, timestamp: header.timestamp.get() }];
            journal.append(&records, &delivered)?;
            headers.clear();
        }
    }
    journal.close()?;
    Ok(())
}
