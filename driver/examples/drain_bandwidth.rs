//! How fast the drain is: records of 1 KiB from the rings of a fake card, every check and CRC included,
//! against a memory copy of the same rings. Both are timed in turn, so that a busy machine hits both.
//!
//! `cargo run --release -p driver --example drain_bandwidth`

use driver::fake::{FakeCard, Step};
use driver::{BringUp, Driver};
use engine::entry::{self, Commit};
use engine::frame::{Write, LBA48_MASK};
use layout::crc::crc32c;
use layout::entry::ErrorBound;
use std::hint::black_box;
use std::time::{Duration, Instant};

const PORTS: usize = 4;
const RING: usize = 1 << 20;
const ROUNDS: usize = 400;

fn records(port: usize, first: u64, data: &[u8]) -> (Vec<u8>, u64) {
    let mut bytes = Vec::new();
    let mut number = first;
    while bytes.len() + 64 + data.len() <= RING {
        number += 1;
        let commit = Commit {
            port: port as u8,
            sequence: number - 1,
            timestamp: 1_800_000_000_000_000_000 + number,
            number,
            clock_flags: 0,
            clock_error: ErrorBound(0),
        };
        let write = Write {
            source: [2; 6],
            volume: 0,
            shelf: 0,
            slot: 0,
            tag: 0,
            lba: number,
            lba_mask: LBA48_MASK,
            sectors: (data.len() / 512) as u16,
            payload: 36..36 + data.len(),
            payload_crc: crc32c(data),
        };
        bytes.extend(entry::after(&commit, 0, 0, false, &write, data));
    }
    (bytes, number)
}

fn copy_rings(driver: &Driver<FakeCard>, target: &mut [u8]) -> Duration {
    let start = Instant::now();
    for (port, target) in target.chunks_exact_mut(RING).enumerate() {
        target.copy_from_slice(black_box(driver.batch(port).ring_bytes()));
    }
    black_box(target);
    start.elapsed()
}

fn drain_rings(driver: &mut Driver<FakeCard>) -> Result<u64, Box<dyn std::error::Error>> {
    let mut count = 0;
    driver.poll()?;
    for port in 0..PORTS {
        let batch = driver.batch(port);
        let length = batch.len();
        for record in batch.records() {
            count += u64::from(black_box(record).payload.len() == 1024);
        }
        driver.consume(port, length)?;
    }
    Ok(count)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut settings = BringUp::new(1, 1_800_000_000_000_000_000, PORTS);
    for port in &mut settings.ports {
        port.ring_bytes = RING;
    }
    let mut driver = Driver::bring_up(FakeCard::new(PORTS), &settings)?;
    let data: Vec<u8> = (0..1024u32).map(|i| ((i * 167) >> 3) as u8).collect();
    let (mut drain, mut copy, mut bytes, mut count) = (Duration::ZERO, Duration::ZERO, 0u64, 0u64);
    let mut last = [0u64; PORTS];
    let mut target = vec![0u8; PORTS * RING];
    for round in 0..ROUNDS {
        for (port, last) in last.iter_mut().enumerate() {
            let (records, number) = records(port, *last, &data);
            bytes += records.len() as u64;
            *last = number;
            driver.card_mut().run(Step::Records { port, bytes: records });
        }
        // Whoever comes second finds the rings in the cache, so they take turns.
        if round % 2 == 0 {
            copy += copy_rings(&driver, &mut target);
        }
        let start = Instant::now();
        count += drain_rings(&mut driver)?;
        drain += start.elapsed();
        if round % 2 == 1 {
            copy += copy_rings(&driver, &mut target);
        }
    }
    assert_eq!(count * 1088, bytes, "every record came out");
    let rate = |bytes: u64, time: Duration| bytes as f64 / time.as_secs_f64() / 1e9;
    let copied = (ROUNDS * PORTS * RING) as u64;
    let (drained, copied) = (rate(bytes, drain), rate(copied, copy));
    println!("drain {drained:.2} GB/s, memcpy {copied:.2} GB/s, ratio {:.2}", drained / copied);
    println!("{count} records of 1 KiB, {:.0} ns each", drain.as_nanos() as f64 / count as f64);
    Ok(())
}
