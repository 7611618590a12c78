//! How fast the simulated four-port card steps, by RustHDL's kernel and by Verilator: `make bench`.
//!
//! Stimulus: writes of two sectors back to back at 1 Gbit/s line rate on all four ports, a target that
//! answers after 50 µs, the driver draining; and the same machine with nothing to do. Both run it in turns, so that
//! the ratio holds on a busy machine; cycles per second are of wall-clock time.

use driver::{BringUp, Driver};
use layout::aoe::{self, Ata};
use layout::registers::CORE_HZ;
use sim::target::{request, Image, TargetVolume, VbladeModel, MEASURED_ANSWER_CYCLES};
use sim::verilator::default_cache;
use sim::{CardOptions, SimulatedCard, Simulator, PORTS};
use std::time::{Duration, Instant};

/// A word every 8 cycles is 1 Gbit/s.
const CYCLES_PER_WORD: u64 = 8;
const SECTORS: u64 = 65_536;

fn set_up(simulator: Simulator) -> Driver<SimulatedCard> {
    let image = Image::Memory(vec![0; SECTORS as usize * 512]);
    let target = VbladeModel::new(vec![TargetVolume::new(1, 0, SECTORS, image)])
        .with_answer_cycles(MEASURED_ANSWER_CYCLES);
    let options = CardOptions { cycles_per_word: CYCLES_PER_WORD, simulator, ..CardOptions::default() };
    let card = SimulatedCard::new(options, Box::new(target)).expect("Verilator builds the card");
    let mut settings = BringUp::new(1, 1_790_000_000_000_000_000, PORTS);
    settings.volumes = vec![Some((1, 0))];
    settings.ports.iter_mut().for_each(|port| port.volumes = 1);
    Driver::bring_up(card, &settings).expect("a simulated card comes up")
}

/// Writes at line rate for some cycles; gives the seconds that took and the writes journaled.
fn run(driver: &mut Driver<SimulatedCard>, cycles: u64) -> (f64, u64) {
    let words = (aoe::WRITE_HEADER_BYTES as u64 + 1024).div_ceil(8) + 3;
    let frames = cycles / CYCLES_PER_WORD / words;
    let before = driver.last_number().expect("the card answers");
    for frame in 0..frames {
        for port in 0..PORTS {
            let place = frame * PORTS as u64 + port as u64;
            let lba = (place * 2 % SECTORS).to_le_bytes();
            let ata = Ata {
                flags: 0x41,
                error_feature: 0,
                sectors: 2,
                command_status: aoe::ATA_WRITE_EXT,
                lba: [lba[0], lba[1], lba[2], lba[3], lba[4], lba[5]],
                reserved: [0; 2],
            };
            let data: Vec<u8> = (0..1024u64).map(|i| (place.wrapping_mul(0x9E37) + i * 31) as u8).collect();
            let frame = request([2, 0, 0, 0, 0, port as u8], (1, 0), place as u32, ata, &data);
            driver.card_mut().offer(port, frame);
        }
    }
    let end = driver.card().cycles() + cycles;
    let start = Instant::now();
    while driver.card().cycles() < end {
        let left = end - driver.card().cycles();
        driver.wait(Duration::from_nanos(left.min(12_500) * 1_000_000_000 / CORE_HZ)).expect("the card runs");
        driver.poll().expect("the rings are right");
        for port in 0..PORTS {
            let count = driver.batch(port).len();
            driver.consume(port, count).expect("the card answers");
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    (seconds, driver.last_number().expect("the card answers") - before)
}

fn main() {
    let simulators = [
        ("RustHDL's kernel", Simulator::RustHdl, 100_000),
        ("Verilator", Simulator::Verilator { cache: default_cache() }, 1_000_000),
    ];
    println!("simulated four-port card, all ports at 1 Gbit/s; then idle");
    let mut rates = [Vec::new(), Vec::new()];
    for turn in 1..=3 {
        for ((name, simulator, cycles), rates) in simulators.iter().zip(&mut rates) {
            let mut driver = set_up(simulator.clone());
            let (seconds, writes) = run(&mut driver, *cycles);
            let start = Instant::now();
            driver.card_mut().run(*cycles);
            let idle = *cycles as f64 / start.elapsed().as_secs_f64();
            let busy = *cycles as f64 / seconds;
            println!("turn {turn}: {name} {busy:.0} cycles/s ({writes} writes journaled), idle {idle:.0}");
            rates.push(busy);
        }
    }
    for ((name, ..), rates) in simulators.iter().zip(&mut rates) {
        rates.sort_by(f64::total_cmp);
        println!("{name}: median {:.0} cycles/s", rates[rates.len() / 2]);
    }
}
