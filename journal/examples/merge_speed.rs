//! Merging, against a plain sequential copy of as many bytes in the same run.
//!
//! `cargo run --release -p journal --example merge_speed -- DIRECTORY [MIB]`
//!
//! Entries of 4 KiB at random places of a volume with a quarter as many blocks, merged into windows of a thirty-second
//! of the history: about what a busy database does to its hot blocks. The copy reads as much as merging reads, and writes
//! as much as its input has; both are made durable.

use journal::merge::{MergeOptions, Merged};
use journal::{CreateOptions, Delivered, Journal, Level, Port, PortKind, Record, Schedule, Volume};
use layout::entry::{flags, EntryHeader, Journaled, Kind, Updated};
use rand::{Rng, SeedableRng};
use std::error::Error;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

const ENTRY_BYTES: usize = 4096;
const ENTRIES_A_CALL: usize = 256;
/// Time between two entries, ns: 100,000 a second.
const STEP: u64 = 10_000;
const WINDOWS: u64 = 32;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().unwrap_or_else(|| ".".into());
    let directory = Path::new(&directory);
    let mib: u64 = arguments.next().map_or(Ok(1024), |text| text.parse())?;
    let mut ratios = Vec::new();
    for turn in 0..5 {
        let (merged, time) = merge(directory, mib)?;
        let copied = copy(directory, merged.bytes_in)?;
        let rate = |time: Duration| merged.bytes_in as f64 / (1 << 20) as f64 / time.as_secs_f64();
        let ratio = copied.as_secs_f64() / time.as_secs_f64();
        println!(
            "turn {turn}: merged {} entries in {} windows into {}, {:.0} MiB/s of input; copy {:.0} MiB/s; ratio {ratio:.2}",
            merged.entries_in,
            merged.windows,
            merged.entries_out,
            rate(time),
            rate(copied)
        );
        ratios.push(ratio);
    }
    ratios.sort_by(f64::total_cmp);
    println!("merge / sequential copy of its input: median {:.2} of {} turns", ratios[2], ratios.len());
    Ok(())
}

fn merge(directory: &Path, mib: u64) -> Result<(Merged, Duration), Box<dyn Error>> {
    let path = directory.join("merge_speed.journal");
    let _ = std::fs::remove_file(&path);
    let entries = (mib << 20) / ENTRY_BYTES as u64;
    let blocks = entries / 4;
    let options = CreateOptions {
        bytes: Some((mib << 20) * 5 / 2),
        segment_bytes: None,
        volumes: vec![Volume::aoe(0, 1, 1, blocks * (ENTRY_BYTES as u64 / 512))],
        ports: vec![Port { port: 0, kind: PortKind::Card, arbiter: 0, name: "port 0".into() }],
        writer: "merge_speed".into(),
    };
    let mut journal = Journal::create(&path, &options)?;
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let mut data = vec![0; ENTRY_BYTES * ENTRIES_A_CALL];
    let mut number = 0;
    while number < entries {
        rng.fill(&mut data[..]);
        let mut records = Vec::with_capacity(ENTRIES_A_CALL);
        for payload in data.chunks(ENTRY_BYTES) {
            number += 1;
            let mut header = EntryHeader::new(Kind::After);
            header.timestamp = (1_700_000_000_000_000_000 + number * STEP).into();
            header.number = number.into();
            header.flags = flags::CLOCK_LOCKED.into();
            header.volume = 0.into();
            header.sectors = ((ENTRY_BYTES / 512) as u16).into();
            header.set_lba(rng.random_range(0..blocks) * (ENTRY_BYTES as u64 / 512));
            header.set_status(Journaled::Port, Updated::Updated);
            header.seal(payload);
            records.push(Record::new(header, payload));
        }
        let delivered = Delivered { port: 0, timestamp: 1_700_000_000_000_000_000 + number * STEP };
        journal.append(&records, &[delivered])?;
    }
    journal.sync()?;
    let level = |window, keep| Level { window, keep, least: keep };
    let window = entries * STEP / WINDOWS;
    journal.set_schedule(&Schedule::new(vec![level(0, 1), level(window, u64::MAX >> 1)])?)?;
    let begin = Instant::now();
    let merged = journal.merge(&MergeOptions::default(), &mut |_| {})?;
    let time = begin.elapsed();
    journal.close()?;
    std::fs::remove_file(path)?;
    Ok((merged, time))
}

/// Copies a file of so many bytes in pieces of 1 MiB, and makes the copy durable.
fn copy(directory: &Path, bytes: u64) -> Result<Duration, Box<dyn Error>> {
    let (from, to) = (directory.join("merge_speed.from"), directory.join("merge_speed.to"));
    let mut buffer = vec![0x5A; 1 << 20];
    let mut file = File::create(&from)?;
    for _ in 0..bytes >> 20 {
        file.write_all(&buffer)?;
    }
    file.sync_data()?;
    let (mut input, mut output) = (File::open(&from)?, File::create(&to)?);
    rustix::fs::fallocate(&output, rustix::fs::FallocateFlags::empty(), 0, bytes)?;
    let begin = Instant::now();
    loop {
        let length = input.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        output.write_all(&buffer[..length])?;
    }
    output.sync_data()?;
    let time = begin.elapsed();
    std::fs::remove_file(from)?;
    std::fs::remove_file(to)?;
    Ok(time)
}
