//! The card at line rate: writes back to back on all four ports at 1 Gbit/s, and the drain of full rings.
//!
//! The Verilated card; `CHRONO_CYCLES` says how many core cycles are written (`make line-rate`: two million).

use driver::{BringUp, Counters, Driver};
use layout::aoe::{self, Ata};
use layout::entry::Kind;
use layout::registers::{Counter, CORE_HZ};
use sim::pcie_root::Event;
use sim::target::{request, Image, TargetVolume, VbladeModel, MEASURED_ANSWER_CYCLES};
use sim::verilator::default_cache;
use sim::{CardOptions, SimulatedCard, Simulator, PORTS};
use std::time::Duration;

/// A word every 8 cycles of 8 ns is 1 Gbit/s.
const CYCLES_PER_WORD: u64 = 8;
/// Sectors of each port's own part of the volume: no write overlaps one that is in flight.
const PART: u64 = 17 * 512;
/// Cycles between two looks of the driver: 20 µs.
const LOOK_CYCLES: u64 = 2_500;
/// Bytes of a port's ring.
const PORT_RING: usize = 64 << 10;
/// 256 bytes, what the simulated root allows.
const MAX_PAYLOAD: usize = 256;

fn cycles() -> u64 {
    std::env::var("CHRONO_CYCLES").ok().and_then(|text| text.parse().ok()).unwrap_or(200_000)
}

fn bring_up(answer_cycles: u64) -> Driver<SimulatedCard> {
    let sectors = PART * PORTS as u64;
    let image = Image::Memory(vec![0; sectors as usize * 512]);
    let target =
        VbladeModel::new(vec![TargetVolume::new(1, 0, sectors, image)]).with_answer_cycles(answer_cycles);
    let simulator = Simulator::Verilator { cache: default_cache() };
    let options = CardOptions { cycles_per_word: CYCLES_PER_WORD, simulator, ..CardOptions::default() };
    let card = SimulatedCard::new(options, Box::new(target)).unwrap();
    let mut settings = BringUp::new(1, 1_790_000_000_000_000_000, PORTS);
    settings.volumes = vec![Some((1, 0))];
    settings.ports.iter_mut().for_each(|port| port.volumes = 1);
    Driver::bring_up(card, &settings).unwrap()
}

/// The `number`th write of `port`, `sectors` long.
fn write(port: usize, number: u64, sectors: u64) -> Vec<u8> {
    let lba = port as u64 * PART + number * sectors % (PART - 17);
    let ata = Ata {
        flags: 0x41,
        error_feature: 0,
        sectors: sectors as u8,
        command_status: aoe::ATA_WRITE_EXT,
        lba: lba.to_le_bytes()[..6].try_into().unwrap(),
        reserved: [0; 2],
    };
    let data: Vec<u8> =
        (0..sectors * 512).map(|i| (number * 0x9E37 + port as u64 * 101 + i * 31) as u8).collect();
    request([2, 0, 0, 0, 0, port as u8], (1, 0), number as u32, ata, &data)
}

/// What a run did.
#[derive(Default)]
struct Totals {
    offered: [u64; PORTS],
    entries: [u64; PORTS],
    completions: [u64; PORTS],
}

/// Takes what the driver has.
fn take(driver: &mut Driver<SimulatedCard>, totals: &mut Totals) {
    driver.poll().unwrap();
    for port in 0..PORTS {
        let batch = driver.batch(port);
        let count = batch.len();
        for record in batch.records() {
            assert!(!record.made_by_driver, "port {port} lost records");
            totals.entries[port] += u64::from(record.kind == Kind::After);
            totals.completions[port] += u64::from(record.kind == Kind::Completion);
        }
        driver.consume(port, count).unwrap();
    }
}

fn duration(cycles: u64) -> Duration {
    Duration::from_nanos(cycles * 1_000_000_000 / CORE_HZ)
}

/// Writes for `cycles` on all ports and takes what is journaled until there is no more.
fn run(sectors: u64, cycles: u64, answer_cycles: u64) -> (Totals, [Counters; PORTS]) {
    let mut driver = bring_up(answer_cycles);
    let mut totals = Totals::default();
    let start = driver.card().cycles();
    let end = start + cycles;
    let frame_cycles = aoe::WRITE_HEADER_BYTES as u64 + sectors * 512 + 24;
    while driver.card().cycles() < end {
        // Never an empty queue, so that nothing but the wire sets the pace.
        for port in 0..PORTS {
            while (driver.card().queued(port) as u64) < LOOK_CYCLES / frame_cycles + 3 {
                let frame = write(port, totals.offered[port], sectors);
                driver.card_mut().offer(port, frame);
                totals.offered[port] += 1;
            }
        }
        driver.wait(duration(LOOK_CYCLES)).unwrap();
        take(&mut driver, &mut totals);
    }
    // What is queued still comes, at line rate too; then the last answers.
    while (0..PORTS).any(|port| driver.card().queued(port) > 0) {
        driver.wait(duration(200)).unwrap();
        take(&mut driver, &mut totals);
    }
    let last_word = driver.card().cycles();
    let sent: u64 = totals.offered.iter().sum();
    let written = (last_word - start) as f64;
    let share = sent as f64 / PORTS as f64 * frame_cycles as f64 / written;
    println!("{sectors} sectors: {sent} writes in {written} cycles, {share:.4} of the wires' time");
    assert!(share > 0.99, "the wires weren't full");
    // All but the last answers are on their way; what lies in the rings below the drain's level is asked for.
    driver.card_mut().run(2 * answer_cycles);
    let mut counters: [Counters; PORTS];
    loop {
        counters = std::array::from_fn(|port| driver.counters(port).unwrap());
        let lost = |port: usize| counters[port].get(Counter::DroppedBuffer);
        if (0..PORTS).all(|port| totals.completions[port] + lost(port) == totals.offered[port])
            || driver.card().cycles() > last_word + 20 * answer_cycles + 60_000
        {
            break;
        }
        driver.flush().unwrap();
        driver.wait(duration(LOOK_CYCLES)).unwrap();
        take(&mut driver, &mut totals);
    }
    println!(
        "{sectors} sectors: all delivered {} cycles after the last word",
        driver.card().cycles() - last_word
    );
    assert_eq!(driver.card().uplink_drops(), 0);
    (totals, counters)
}

fn no_frame_is_lost(sectors: u64) {
    let (totals, counters) = run(sectors, cycles(), MEASURED_ANSWER_CYCLES);
    for (port, counters) in counters.iter().enumerate() {
        let told: Vec<_> = counters.iter().filter(|(_, count)| *count > 0).collect();
        println!("port {port}: {told:?}");
        for counter in [Counter::Journaled, Counter::Updated] {
            assert_eq!(counters.get(counter), totals.offered[port], "port {port}: {told:?}");
        }
    }
    assert_eq!(totals.entries, totals.offered);
    assert_eq!(totals.completions, totals.offered);
}

/// Sixteen writes in flight don't reach over 200 µs: then frames are lost, and this is seen.
#[test]
fn a_target_that_is_too_slow_costs_frames() {
    let (totals, counters) = run(1, 100_000, 4 * MEASURED_ANSWER_CYCLES);
    for (port, counters) in counters.iter().enumerate() {
        let (journaled, lost) = (counters.get(Counter::Journaled), counters.get(Counter::DroppedBuffer));
        assert!(lost > 0, "port {port}: {journaled} of {} journaled", totals.offered[port]);
        assert_eq!(journaled + lost, totals.offered[port], "port {port}");
        assert_eq!(totals.completions[port], journaled, "port {port}");
    }
}

#[test]
fn writes_of_one_sector_back_to_back() {
    no_frame_is_lost(1);
}

#[test]
fn writes_of_two_sectors_back_to_back() {
    no_frame_is_lost(2);
}

#[test]
fn writes_of_seventeen_sectors_back_to_back() {
    no_frame_is_lost(17);
}

/// Full rings are drained at what packets of the maximum payload allow, less a tenth.
#[test]
fn full_rings_drain_at_the_speed_of_the_link() {
    let mut driver = bring_up(MEASURED_ANSWER_CYCLES);
    driver.card_mut().set_bus_master(false);
    for port in 0..PORTS {
        // More than a ring takes: an entry of two sectors and its completion are 18 lines.
        for number in 0..PORT_RING as u64 / (18 * 64) + 12 {
            let frame = write(port, number, 2);
            driver.card_mut().offer(port, frame);
        }
    }
    driver.card_mut().run(200_000);
    driver.card_mut().log_packets();
    driver.card_mut().set_bus_master(true);
    driver.card_mut().run(30_000);
    // Three quarters of what the rings held: then one of them may be empty. Mailboxes and messages in between
    // take their time and count for nothing.
    let mut records = driver.card().packets().iter().filter_map(|packet| match packet.event {
        Event::Write { bytes, .. } if bytes > 8 => Some((packet, bytes)),
        _ => None,
    });
    let wanted = PORTS * PORT_RING * 3 / 4;
    let first = records.next().expect("something is drained");
    let (mut bytes, mut last) = (first.1, first.0);
    while bytes < wanted {
        let (packet, more) = records.next().expect("the rings were full");
        bytes += more;
        last = packet;
    }
    let taken = last.last + 1 - first.0.first;
    // A header of three or four DWs and the payload, two DWs a beat.
    let limit = MAX_PAYLOAD as f64 / (4 + MAX_PAYLOAD / 4).div_ceil(2) as f64;
    let rate = bytes as f64 / taken as f64;
    let share = rate / limit;
    println!(
        "{bytes} bytes in {taken} cycles: {rate:.3} bytes a cycle, {share:.4} of the limit of {limit:.3}"
    );
    assert!(rate >= 0.9 * limit);
}
