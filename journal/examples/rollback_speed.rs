//! Rolling a volume back in place, journaled and undoable, against plainly writing the same extents in the same run.
//!
//! `cargo run --release -p journal --example rollback_speed -- DIRECTORY [MIB]`
//!
//! Every block of the volume was written once, in random order, by entries of 16 KiB with after-images; it goes back to
//! the moment before the first. The plain side writes as many bytes, in the same extents, into a file that is there, and
//! makes them durable.

mod cpu_time;

use cpu_time::cpu_time;
use journal::rollback::{RollbackOptions, Target};
use journal::{CreateOptions, Delivered, Journal, Moment, Port, PortKind, Record, Volume};
use layout::entry::{flags, EntryHeader, Journaled, Kind, Updated};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

const ENTRY_BYTES: usize = 16 * 1024;
const ENTRIES_A_CALL: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().unwrap_or_else(|| ".".into());
    let directory = Path::new(&directory);
    let mib: usize = arguments.next().map_or(Ok(1024), |text| text.parse())?;
    let (base, primary) = (directory.join("rollback_speed.base"), directory.join("rollback_speed.primary"));
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let mut ratios = Vec::new();
    for turn in 0..3 {
        fill(&base, mib, &mut rng)?;
        let mut journal = make(directory, mib)?;
        write(&mut journal, &primary, mib, &mut rng)?;
        let (plain, plain_cpu) = rewrite(&directory.join("rollback_speed.plain"), mib, &mut rng)?;
        let options = RollbackOptions {
            volume: "1.1",
            primary: &primary,
            base: Some(&base),
            to: Target::Moment(Moment::Order(0)),
            allow_gaps: false,
        };
        let (begin, cpu) = (Instant::now(), cpu_time());
        let done = journal.roll_back(&options, &mut |_, _| {})?;
        let (time, cpu) = (begin.elapsed(), cpu_time() - cpu);
        journal.close()?;
        let rate = |time: Duration| mib as f64 / time.as_secs_f64();
        let a_gib = |time: Duration| time.as_secs_f64() * 1024.0 / mib as f64;
        let ratio = rate(time) / rate(plain);
        println!(
            "turn {turn}: {} MiB rolled back in {} entries, {:.0} MiB/s, CPU s/GiB {:.3}; plain {:.0} MiB/s, {:.3}; \
             ratio {ratio:.2}",
            done.written >> 20,
            done.entries,
            rate(time),
            a_gib(cpu),
            rate(plain),
            a_gib(plain_cpu),
        );
        ratios.push(ratio);
    }
    for name in ["base", "primary", "plain", "journal"] {
        std::fs::remove_file(directory.join(format!("rollback_speed.{name}")))?;
    }
    ratios.sort_by(f64::total_cmp);
    println!(
        "rollback / plain writing of the same extents: median {:.2} of {} turns",
        ratios[1],
        ratios.len()
    );
    Ok(())
}

fn fill(path: &Path, mib: usize, rng: &mut impl Rng) -> Result<(), Box<dyn Error>> {
    let mut file = File::create(path)?;
    let mut data = vec![0; 1 << 20];
    rng.fill(&mut data[..]);
    for piece in 0..mib as u64 {
        data[..8].copy_from_slice(&piece.to_le_bytes());
        file.write_all(&data)?;
    }
    file.sync_data()?;
    Ok(())
}

fn make(directory: &Path, mib: usize) -> Result<Journal, Box<dyn Error>> {
    let path = directory.join("rollback_speed.journal");
    let _ = std::fs::remove_file(&path);
    let options = CreateOptions {
        bytes: Some((mib as u64) << 21 | 256 << 20),
        segment_bytes: None,
        volumes: vec![Volume::aoe(0, 1, 1, (mib as u64) << 11)],
        ports: vec![Port { port: 0, kind: PortKind::Card, arbiter: 0, name: "port 0".into() }],
        writer: "rollback_speed".into(),
    };
    Ok(Journal::create(&path, &options)?)
}

/// Every block once, into journal and primary.
fn write(
    journal: &mut Journal,
    primary: &Path,
    mib: usize,
    rng: &mut impl Rng,
) -> Result<(), Box<dyn Error>> {
    let file = File::create(primary)?;
    let mut order: Vec<u64> = (0..(mib << 20) as u64 / ENTRY_BYTES as u64).collect();
    order.shuffle(rng);
    let mut data = vec![0; ENTRY_BYTES * ENTRIES_A_CALL];
    let (mut number, mut stamp) = (0, 1_700_000_000_000_000_000);
    for blocks in order.chunks(ENTRIES_A_CALL) {
        rng.fill(&mut data[..]);
        let mut records = Vec::new();
        for (block, payload) in blocks.iter().zip(data.chunks(ENTRY_BYTES)) {
            number += 1;
            stamp += 1000;
            let mut header = EntryHeader::new(Kind::After);
            header.timestamp = stamp.into();
            header.number = number.into();
            header.flags = flags::CLOCK_LOCKED.into();
            header.volume = 0.into();
            header.sectors = ((ENTRY_BYTES / 512) as u16).into();
            header.set_lba(block * (ENTRY_BYTES as u64 / 512));
            header.set_status(Journaled::Port, Updated::Updated);
            header.seal(payload);
            records.push(Record::new(header, payload));
            file.write_all_at(payload, block * ENTRY_BYTES as u64)?;
        }
        journal.append(&records, &[Delivered { port: 0, timestamp: stamp }])?;
    }
    journal.sync()?;
    file.sync_data()?;
    Ok(())
}

/// As many bytes, in pieces of a rollback's size, over what is there.
fn rewrite(path: &Path, mib: usize, rng: &mut impl Rng) -> Result<(Duration, Duration), Box<dyn Error>> {
    fill(path, mib, rng)?;
    let file = File::options().write(true).open(path)?;
    let mut data = vec![0; 128 * 1024];
    rng.fill(&mut data[..]);
    let (begin, cpu) = (Instant::now(), cpu_time());
    for piece in 0..(mib as u64) << 20 >> 17 {
        file.write_all_at(&data, piece << 17)?;
    }
    file.sync_data()?;
    Ok((begin.elapsed(), cpu_time() - cpu))
}
