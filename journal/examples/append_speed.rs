//! Appending 4 KiB entries, against a plain sequential write of as many bytes in the same run.
//!
//! Both ways of writing, through the page cache and past it (O_DIRECT), take turns; after that small commits.
//!
//! `cargo run --release -p journal --example append_speed -- DIRECTORY [MIB]`

mod cpu_time;

use cpu_time::cpu_time;
use journal::{CreateOptions, Delivered, Io, Journal, Port, PortKind, Record, Volume};
use layout::entry::{EntryHeader, Kind};
use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const ENTRY_BYTES: usize = 4096;
/// Small commits: what a few initiators that flush often make.
const ENTRIES_A_COMMIT: usize = 4;
const COMMITS: usize = 400;
/// Entries of one append: what a drain of a port brings.
const ENTRIES_A_CALL: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().unwrap_or_else(|| ".".into()));
    let mib: usize = arguments.next().map_or(Ok(512), |text| text.parse())?;
    let data: Vec<u8> = (0..1 << 22).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let ways = [(Io::Buffered, "append"), (Io::Direct, "direct append")];
    let (mut ratios, mut beyond) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for turn in 0..9 {
        let (plain, plain_cpu) = plain_write(&directory.join("append_speed.plain"), &data, mib)?;
        let a_gib = |time: Duration| time.as_secs_f64() / mib as f64 * 1024.0;
        let rate = |time: Duration| mib as f64 / time.as_secs_f64();
        print!("turn {turn}: plain {:.0} MiB/s, CPU s/GiB {:.3}", rate(plain), a_gib(plain_cpu));
        for (index, (io, name)) in ways.into_iter().enumerate() {
            let (journal, cpu) = append(&directory.join("append_speed.journal"), &data, mib, io)?;
            let ratio = rate(journal) / rate(plain);
            print!("; {name} {:.0} MiB/s, ratio {ratio:.2}, CPU s/GiB {:.3}", rate(journal), a_gib(cpu));
            ratios[index].push(ratio);
            beyond[index].push(a_gib(cpu) - a_gib(plain_cpu));
        }
        println!();
    }
    for (index, (_, name)) in ways.into_iter().enumerate() {
        println!(
            "{name} / plain sequential write: median {:.2} of {} turns, {:.3} CPU s/GiB beyond it",
            median(&mut ratios[index]),
            ratios[index].len(),
            median(&mut beyond[index])
        );
    }
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..9 {
        for (index, (io, _)) in ways.into_iter().enumerate() {
            rates[index].push(commits(&directory.join("append_speed.journal"), &data, io)?);
        }
    }
    let [buffered, direct] = rates.each_mut().map(|rates| median(rates));
    println!("commits of {ENTRIES_A_COMMIT} entries: {buffered:.0} a second buffered, {direct:.0} direct (medians)");
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A preallocated file, written from front to back in pieces of 1 MiB, then made durable.
fn plain_write(path: &Path, data: &[u8], mib: usize) -> Result<(Duration, Duration), Box<dyn Error>> {
    let _ = std::fs::remove_file(path);
    let mut file = File::create(path)?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, (mib as u64) << 20)?;
    let (begin, cpu) = (Instant::now(), cpu_time());
    for piece in 0..mib {
        let at = (piece << 20) % data.len();
        file.write_all(&data[at..at + (1 << 20)])?;
    }
    file.sync_data()?;
    let times = (begin.elapsed(), cpu_time() - cpu);
    std::fs::remove_file(path)?;
    Ok(times)
}

fn create(path: &Path, mib: usize, io: Io) -> Result<Journal, Box<dyn Error>> {
    let _ = std::fs::remove_file(path);
    let options = CreateOptions {
        bytes: Some(((mib * 5 / 4 + 64) as u64) << 20),
        segment_bytes: None,
        volumes: vec![Volume::aoe(0, 1, 1, 1 << 32)],
        ports: vec![Port { port: 0, kind: PortKind::Software, arbiter: 0, name: "bench".into() }],
        writer: "append_speed".into(),
    };
    Ok(Journal::create_with(path, &options, io)?)
}

/// Commits a second: few entries, then a sync, one after the other.
fn commits(path: &Path, data: &[u8], io: Io) -> Result<f64, Box<dyn Error>> {
    let mut journal = create(path, 64, io)?;
    let begin = Instant::now();
    for commit in 0..COMMITS {
        for index in (0..ENTRIES_A_COMMIT).map(|index| commit * ENTRIES_A_COMMIT + index) {
            let header = header(index, data);
            let delivered = [Delivered { port: 0, timestamp: header.timestamp.get() }];
            journal.append(&[Record::new(header, payload(index, data))], &delivered)?;
        }
        journal.sync()?;
    }
    let rate = COMMITS as f64 / begin.elapsed().as_secs_f64();
    journal.close()?;
    std::fs::remove_file(path)?;
    Ok(rate)
}

fn append(path: &Path, data: &[u8], mib: usize, io: Io) -> Result<(Duration, Duration), Box<dyn Error>> {
    let mut journal = create(path, mib, io)?;
    // Headers come sealed from the port: making them is not the journal's work.
    let entries = (mib << 20) / ENTRY_BYTES;
    let headers: Vec<EntryHeader> = (0..entries).map(|index| header(index, data)).collect();
    let (begin, cpu) = (Instant::now(), cpu_time());
    for (call, headers) in headers.chunks(ENTRIES_A_CALL).enumerate() {
        let records: Vec<Record<'_>> = headers
            .iter()
            .enumerate()
            .map(|(index, header)| Record::new(*header, payload(call * ENTRIES_A_CALL + index, data)))
            .collect();
        let timestamp = records.last().map_or(0, |record| record.header.timestamp.get());
        journal.append(&records, &[Delivered { port: 0, timestamp }])?;
    }
    journal.sync()?;
    let times = (begin.elapsed(), cpu_time() - cpu);
    journal.close()?;
    std::fs::remove_file(path)?;
    Ok(times)
}

fn payload(index: usize, data: &[u8]) -> &[u8] {
    let at = index * ENTRY_BYTES % data.len();
    &data[at..at + ENTRY_BYTES]
}

fn header(index: usize, data: &[u8]) -> EntryHeader {
    let mut header = EntryHeader::new(Kind::After);
    header.timestamp = (1_700_000_000_000_000_000 + 1000 * index as u64).into();
    header.number = (index as u64 + 1).into();
    header.sequence = (index as u64).into();
    header.volume = 0.into();
    header.sectors = ((ENTRY_BYTES / 512) as u16).into();
    header.set_lba(index as u64 * 8);
    header.seal(payload(index, data));
    header
}
