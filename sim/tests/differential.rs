//! The simulated card against the reference model (`engine::reference`): random frames, good and bad, at
//! all ports; every record of every ring and every frame at the uplink must be what the model says, bit
//! for bit, given the card's own choices of order, stamp and slot. The same with a target that loses
//! requests and answers, and answers late, too late, or after the quarantine.
//!
//! `CHRONO_SEED=n` runs one seed; `CHRONO_SEEDS=n` runs that many. Most seeds are run by the Verilated card; that
//! it does what RustHDL's kernel does is tested here too, output by output after every event.

use driver::Card;
use driver::{BringUp, Driver};
use engine::frame::{PortRules, VolumeTable};
use engine::reference::{check, Trace, Uplink};
use engine::switch::Images;
use layout::aoe::{self, Ata};
use layout::entry::{flags, Kind, Updated};
use layout::registers::{self, Counter};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sim::co_check::Trace as Wires;
use sim::target::{request, Image, Target, TargetVolume, VbladeModel};
use sim::verilator::default_cache;
use sim::{CardOptions, SimulatedCard, Simulator, UplinkFrame, PORTS};
use std::collections::BTreeSet;
use std::time::Duration;
use zerocopy::IntoBytes;

const VOLUMES: [(u16, u8); 3] = [(1, 0), (1, 1), (7, 3)];
const SECTORS: u64 = 96;
const FRAMES_PER_PORT: usize = 60;
/// Cycles after which a lossy target may still answer: beyond the quarantine.
const LATEST: u64 = 14_000;

/// What came up in a run: completions with an unknown status for want of an answer, late ones, gaps, copies,
/// writes dropped at a location in quarantine.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    silent: u64,
    late: u64,
    gaps: u64,
    copies: u64,
    quarantined: u64,
    before: u64,
    both: u64,
    unread: u64,
    dropped_copies: u64,
}

impl Seen {
    fn add(&mut self, other: &Self) {
        self.silent += other.silent;
        self.late += other.late;
        self.gaps += other.gaps;
        self.copies += other.copies;
        self.quarantined += other.quarantined;
        self.before += other.before;
        self.both += other.both;
        self.unread += other.unread;
        self.dropped_copies += other.dropped_copies;
    }
}

/// What runs a card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum How {
    RustHdl,
    #[default]
    Verilated,
    /// RustHDL's kernel, with Verilator beside it.
    CoChecked,
}

fn verilated() -> Simulator {
    Simulator::Verilator { cache: default_cache() }
}

/// What a run gave: everything that has to be the same by either simulator.
#[derive(PartialEq, Eq)]
struct Given {
    records: Vec<Vec<Vec<u8>>>,
    uplink: Vec<UplinkFrame>,
    returned: Vec<Vec<Vec<u8>>>,
    cycles: u64,
}

/// What a run is like.
#[derive(Clone, Copy, Debug, Default)]
struct World {
    /// Requests and answers are lost, and answers come late.
    lossy: bool,
    /// Volumes have before-images, or both, and any acknowledge policy.
    before: bool,
    /// What runs the card.
    how: How,
}

/// Answers as the model does, after a random while, so that answers overtake each other.
struct Shuffling {
    model: VbladeModel,
    random: ChaCha8Rng,
    lossy: bool,
    slowest: u64,
}

impl Target for Shuffling {
    fn frame(&mut self, frame: &[u8], cycle: u64, answers: &mut Vec<(u64, Vec<u8>)>) {
        self.model.frame(frame, cycle, answers);
        for (delay, _) in answers.iter_mut() {
            *delay = self.random.random_range(50..self.slowest);
        }
        if self.lossy {
            answers.retain(|_| self.random.random_bool(0.9));
            for (delay, _) in answers.iter_mut() {
                if self.random.random_bool(0.2) {
                    *delay = self.random.random_range(2000..LATEST);
                }
            }
        }
    }
}

fn ata(command: u8, lba: u64, sectors: u8) -> Ata {
    Ata {
        flags: 0x41,
        error_feature: 0,
        sectors,
        command_status: command,
        lba: lba.to_le_bytes()[..6].try_into().unwrap(),
        reserved: [0; 2],
    }
}

/// A frame that a source on `port` might send. Most are good writes; all that the allow-list tells apart
/// come up.
fn random_frame(random: &mut ChaCha8Rng, port: usize, tag: u32, before: &[Vec<u8>]) -> Vec<u8> {
    let source = [2, 0, 0, 0, port as u8, random.random_range(0..3)];
    let volume = VOLUMES[if random.random_bool(0.9) { random.random_range(0..2) } else { 2 }];
    let lba = random.random_range(0..SECTORS + 2);
    let sectors =
        if random.random_bool(0.8) { random.random_range(1..=3) } else { random.random_range(1..=17) };
    let command = if random.random_bool(0.2) { aoe::ATA_WRITE } else { aoe::ATA_WRITE_EXT };
    let mut data = vec![0; sectors as usize * 512];
    random.fill(&mut data[..]);
    match random.random_range(0..20) {
        0..=10 => request(source, volume, tag, ata(command, lba, sectors), &data),
        // A copy of something sent lately, with a new tag.
        11 | 12 => match before.len() {
            0 => request(source, volume, tag, ata(command, lba, sectors), &data),
            sent => {
                let mut copy = before[sent - 1 - random.random_range(0..sent.min(4))].clone();
                if copy.len() >= 24 {
                    copy[20..24].copy_from_slice(tag.as_bytes());
                    copy[20] &= 0x7F;
                }
                copy
            }
        },
        13 => request(source, volume, tag, ata(aoe::ATA_READ_EXT, lba, 1), &[]),
        14 => request(
            source,
            volume,
            tag,
            ata([0xEC, 0xE7, 0x20, 0xEA][random.random_range(0..4)], lba, 1),
            &data,
        ),
        15 => {
            // Any other EtherType, any length that Ethernet and jumbo frames have.
            let mut other = vec![0; random.random_range(14..400)];
            random.fill(&mut other[..]);
            other[..6].fill(0xFF);
            other[6..12].copy_from_slice(&source);
            other[12] = 0x08;
            other
        }
        _ => {
            // A write with one or two bytes of its headers changed, perhaps cut short.
            let mut frame = request(source, volume, tag, ata(command, lba, sectors), &data);
            for _ in 0..random.random_range(1..3) {
                let at = random.random_range(12..28);
                frame[at] = match random.random_range(0..4) {
                    0 => [0x81, 0x00, 0x88, 0xA8, 0xA2][random.random_range(0..5)],
                    1 => frame[at] ^ (1 << random.random_range(0..8)),
                    2 => 0xFF,
                    _ => random.random(),
                };
            }
            if random.random_bool(0.3) {
                frame.truncate(random.random_range(12..=frame.len()));
            }
            frame
        }
    }
}

fn run(seed: u64, world: World) -> Seen {
    run_recorded(seed, world, false).0
}

/// Runs a seed against the model; with `record` the wires' trace is taken down too.
fn run_recorded(seed: u64, world: World, record: bool) -> (Seen, Given, Option<Wires>) {
    let World { lossy, before, how } = world;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let volumes = VOLUMES[..2]
        .iter()
        .map(|&(shelf, slot)| {
            TargetVolume::new(shelf, slot, SECTORS, Image::Memory(vec![0; SECTORS as usize * 512]))
        })
        .collect();
    // A port holds one write at a time for its before-image: with slow answers a run would take long.
    let slowest = if before { 1200 } else { 4000 };
    let random_answers = ChaCha8Rng::seed_from_u64(!seed);
    let target = Shuffling { model: VbladeModel::new(volumes), random: random_answers, lossy, slowest };
    let options = CardOptions {
        cycles_per_word: random.random_range(1..=2),
        simulator: if how == How::Verilated { verilated() } else { Simulator::RustHdl },
        co_check: (how == How::CoChecked).then(default_cache),
        record,
        ..CardOptions::default()
    };
    let mut card = SimulatedCard::new(options, Box::new(target)).unwrap();
    card.log_uplink();
    let mut settings = BringUp::new(1, 1_790_000_000_000_000_000, PORTS);
    settings.volumes = VOLUMES[..2].iter().copied().map(Some).collect();
    let allowed = [3, 3, 1, 2];
    for (port, allowed) in settings.ports.iter_mut().zip(allowed) {
        port.volumes = allowed;
    }
    // Short, so that the end of a run is soon seen.
    settings.timeouts.flush_period = layout::registers::ticks(40);
    if lossy {
        settings.timeouts.hold = layout::registers::ticks(25);
        settings.timeouts.unknown = layout::registers::ticks(28);
        settings.timeouts.quarantine = layout::registers::ticks(70);
    }
    if before {
        settings.timeouts.retry = registers::ticks(30);
        if lossy {
            settings.timeouts.hold = registers::ticks(150);
        }
    }
    settings.number_floor = random.random_range(0..1 << 40);
    let mut images = vec![Images::After; 2];
    if before {
        for (volume, images) in images.iter_mut().enumerate() {
            let (word, chosen) = [
                (0, Images::After),
                (registers::VOLUME_BEFORE, Images::Before),
                (registers::VOLUME_BEFORE | registers::VOLUME_BOTH, Images::Both),
            ][if volume == 0 { random.random_range(1..3) } else { random.random_range(0..3) }];
            let wait = random.random_bool(0.7);
            let policy = if wait { registers::VOLUME_JOURNAL } else { 0 };
            settings.volume_modes.push(word | policy);
            *images = chosen;
        }
    }
    let mut driver = Driver::bring_up(card, &settings).unwrap();

    let mut frames: Vec<Vec<Vec<u8>>> = vec![Vec::new(); PORTS];
    let mut tag = 0u32;
    for _ in 0..if before { FRAMES_PER_PORT / 2 } else { FRAMES_PER_PORT } {
        for (port, sent) in frames.iter_mut().enumerate() {
            tag += 1;
            let frame = random_frame(&mut random, port, tag, sent);
            driver.card_mut().offer(port, frame.clone());
            sent.push(frame);
        }
    }

    let mut records: Vec<Vec<Vec<u8>>> = vec![Vec::new(); PORTS];
    let (mut entries, mut quiet) = (0, 0);
    let mut settled = BTreeSet::new();
    // What the host has, and up to where it has everything.
    let (mut received, mut durable) = (BTreeSet::new(), settings.number_floor);
    let mut seen = Seen::default();
    let mut statuses = [[0u64; 5]; PORTS];
    // Two flush periods without anything new, all sent and all answered: that's the end.
    while quiet < 3 {
        driver.wait(Duration::from_micros(60)).unwrap();
        driver.poll().unwrap();
        quiet += 1;
        for (port, records) in records.iter_mut().enumerate() {
            let batch = driver.batch(port);
            let count = batch.len();
            for record in batch.records() {
                assert!(!record.made_by_driver, "seed {seed}: port {port} lost records");
                if matches!(record.kind, Kind::After | Kind::Before | Kind::Both) {
                    entries += 1;
                    received.insert(record.header.number.get());
                    seen.before += u64::from(record.kind == Kind::Before);
                    seen.both += u64::from(record.kind == Kind::Both);
                }
                let flags = record.header.flags.get();
                seen.copies += u64::from(flags & flags::DUPLICATE != 0);
                seen.gaps += u64::from(record.kind == Kind::Gap);
                if record.kind == Kind::Completion {
                    settled.insert(record.header.number.get());
                    if flags & flags::LATE == 0 {
                        statuses[port][usize::from(record.header.status >> 4)] += 1;
                    }
                    seen.late += u64::from(flags & flags::LATE != 0);
                    let silent = record.header.updated() == Ok(Updated::Unknown);
                    seen.silent += u64::from(silent && record.header.answer_status == 0);
                }
                let mut bytes = [record.header.as_bytes(), record.payload].concat();
                bytes.resize(record.header.record_bytes(), 0);
                records.push(bytes);
                quiet = 0;
            }
            driver.consume(port, count).unwrap();
        }
        while received.remove(&(durable + 1)) {
            durable += 1;
        }
        driver.durable(durable).unwrap();
        let flying = |driver: &mut Driver<SimulatedCard>, port: usize| {
            let offset = registers::PORT_BASE + port as u32 * registers::PORT_STRIDE;
            driver.card_mut().read(offset + registers::port::STATUS).unwrap() >> 16 & 0xFF
        };
        if quiet == 3 && before && (0..PORTS).any(|port| flying(&mut driver, port) > 0) {
            quiet = 0;
        }
        if (0..PORTS).any(|port| driver.card().queued(port) > 0) || entries != settled.len() {
            quiet = 0;
        }
        assert!(
            driver.card().cycles() < 6_000_000,
            "seed {seed}: {entries} entries, {} with a status, and no end",
            settled.len()
        );
    }

    let table = VolumeTable::new(&VOLUMES[..2]).unwrap();
    let rules: Vec<PortRules> = allowed
        .iter()
        .map(|&allowed| PortRules { volumes: table.clone(), allowed, writes_open: true })
        .collect();
    let uplink: Vec<Uplink> = driver
        .card()
        .uplink_log()
        .iter()
        .map(|frame| match frame {
            UplinkFrame::Left(bytes) => Uplink::Forwarded(bytes.clone()),
            UplinkFrame::Came(bytes) => Uplink::Answer(bytes.clone()),
        })
        .collect();
    let trace = Trace {
        rules: &rules,
        images: &images,
        number_floor: settings.number_floor,
        stamp_floor: settings.stamp_floor,
        frames: &frames,
        uplink: &uplink,
        records: &records,
    };
    let expected = check(&trace).unwrap_or_else(|mismatch| panic!("seed {seed}: {mismatch}"));
    for (port, statuses) in statuses.iter().enumerate() {
        let counters = driver.counters(port).unwrap();
        // A frame that found no room was counted as that, whatever it was.
        let lost = counters.get(Counter::DroppedBuffer)
            + counters.get(Counter::DroppedHold)
            + counters.get(Counter::DroppedQuarantine)
            + counters.get(Counter::DroppedRead)
            + counters.get(Counter::DroppedCopy);
        seen.unread += counters.get(Counter::DroppedRead);
        seen.dropped_copies += counters.get(Counter::DroppedCopy);
        seen.quarantined += counters.get(Counter::DroppedQuarantine);
        let [_, updated, refused, _, unknown] = *statuses;
        let counted = [Counter::Updated, Counter::Refused, Counter::Unknown].map(|c| counters.get(c));
        assert_eq!(counted, [updated, refused, unknown], "seed {seed}: port {port}, statuses");
        let unforwarded = (expected.unadmitted[port] + expected.unpassed[port]) as u64;
        assert_eq!(lost, unforwarded, "seed {seed}: port {port}, frames without room");
        for (&counter, &count) in &expected.counters[port] {
            if counter != Counter::Passed && counter != Counter::Journaled {
                assert_eq!(counters.get(counter), count, "seed {seed}: port {port}, {}", counter.name());
            }
        }
    }
    println!("seed {seed}: {entries} entries, {} cycles, {seen:?}", driver.card().cycles());
    if let Some(result) = driver.card_mut().finish_co_check() {
        let (events, edges) = result.unwrap_or_else(|mismatch| panic!("seed {seed}: {mismatch}"));
        println!("seed {seed}: {events} events, {edges} clock edges, the Verilated card does the same");
    }
    let returned =
        (0..PORTS).map(|port| std::iter::from_fn(|| driver.card_mut().returned(port)).collect()).collect();
    let card = driver.card();
    let given = Given { uplink: card.uplink_log().to_vec(), returned, cycles: card.cycles(), records };
    (seen, given, card.trace().cloned())
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn runs(seeds: u64, world: World) -> Seen {
    let mut all = Seen::default();
    match number("CHRONO_SEED") {
        Some(seed) => all.add(&run(seed, world)),
        None => (0..number("CHRONO_SEEDS").unwrap_or(seeds)).for_each(|seed| all.add(&run(seed, world))),
    }
    println!("{world:?}: {all:?}");
    all
}

#[test]
fn the_card_does_what_the_reference_model_says() {
    runs(15, World::default());
}

#[test]
fn and_so_it_does_when_answers_are_lost_or_late() {
    let all = runs(15, World { lossy: true, ..World::default() });
    let Seen { silent, late, gaps, copies, quarantined, .. } = all;
    assert!([silent, late, gaps, copies, quarantined].iter().all(|&count| count > 0), "{all:?}");
}

#[test]
fn and_so_it_does_with_before_images() {
    let all = runs(6, World { before: true, ..World::default() });
    let Seen { before, both, dropped_copies, .. } = all;
    assert!([before, both, dropped_copies].iter().all(|&count| count > 0), "{all:?}");
}

#[test]
fn and_so_it_does_with_before_images_and_losses() {
    let all = runs(6, World { before: true, lossy: true, ..World::default() });
    let Seen { silent, late, before, both, unread, .. } = all;
    assert!([silent, late, before, both, unread].iter().all(|&count| count > 0), "{all:?}");
}

#[test]
fn rusthdls_kernel_does_what_the_reference_model_says() {
    for (seed, (lossy, before)) in [(2000, (false, false)), (2001, (true, false)), (2002, (true, true))] {
        let seed = number("CHRONO_SEED").unwrap_or(seed);
        run(seed, World { lossy, before, how: How::RustHdl });
    }
}

#[test]
fn the_verilated_card_does_the_same_in_every_cycle() {
    let world = |seed| World { lossy: seed % 2 == 1, before: seed >= 101, how: How::CoChecked };
    match number("CHRONO_SEED") {
        Some(seed) => _ = run(seed, world(seed)),
        None => (100..102).for_each(|seed| _ = run(seed, world(seed))),
    }
}

/// Not what is checked beside, but two cards on their own: the same traffic by either, and everything that they
/// give is the same: records, frames at the uplink and at the ports, and every wire after every event.
#[test]
fn both_simulators_give_the_same() {
    let seed = number("CHRONO_SEED").unwrap_or(101);
    let world = |how| World { how, ..World::default() };
    let (_, rust_hdl, first) = run_recorded(seed, world(How::RustHdl), true);
    let (_, verilated, second) = run_recorded(seed, world(How::Verilated), true);
    let (first, second) = (first.unwrap(), second.unwrap());
    println!(
        "seed {seed}: {} cycles, {} events, {} bytes of trace",
        rust_hdl.cycles,
        first.events,
        first.bytes.len()
    );
    assert_eq!(first.first_difference(&second), None, "seed {seed}");
    assert!(first.bytes == second.bytes, "seed {seed}");
    assert!(rust_hdl == verilated, "seed {seed}");
    // The comparison can fail: a bit that differs at the end is found there.
    let mut lie = second.clone();
    *lie.bytes.last_mut().unwrap() ^= 1;
    let difference = first.first_difference(&lie).unwrap();
    assert!(difference.event + 10 > first.events, "{difference:?}");
}
