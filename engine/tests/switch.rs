//! The switch in an unkind world, held against a naive model of the volumes and of the wire.

mod made;
mod world;

use engine::frame::{PortRules, VolumeTable};
use engine::reference::{check, Trace};
use engine::switch::{Acknowledge, Images};
use layout::entry::{flags, EntryHeader, Kind, Updated};
use layout::registers::Counter;
use std::collections::HashMap;
use world::{Trouble, World, EPOCH, PORTS, STEP, TIMEOUTS};
use zerocopy::FromBytes;

const ALL: [(Images, Acknowledge); 6] = [
    (Images::After, Acknowledge::Port),
    (Images::After, Acknowledge::Journal),
    (Images::Before, Acknowledge::Port),
    (Images::Before, Acknowledge::Journal),
    (Images::Both, Acknowledge::Port),
    (Images::Both, Acknowledge::Journal),
];

/// `CHRONO_SEED` names one seed, `CHRONO_SEEDS` how many are tried.
fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    match number("CHRONO_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("CHRONO_SEEDS").unwrap_or(default),
    }
}

fn run(seed: u64, images: Images, acknowledge: Acknowledge, trouble: Trouble, writes: u64) -> World {
    println!("CHRONO_SEED={seed} {images:?} {acknowledge:?} {trouble:?}");
    let mut world = World::new(seed, images, acknowledge, trouble);
    for write in 0..writes {
        world.want(write * 40_000);
    }
    world.run();
    check_ends(&world);
    world
}

/// At the end nothing is left behind, and every frame has had one fate.
fn check_ends(world: &World) {
    assert!(world.switch.is_idle());
    for (port, of_port) in world.switch.ports().iter().enumerate() {
        let fates: u64 = Counter::ALL
            .iter()
            .filter(|counter| counter.name().starts_with("dropped-") || **counter == Counter::Journaled)
            .map(|counter| of_port.counter(*counter))
            .sum();
        assert_eq!(fates, world.frames[port].len() as u64, "port {port}: every frame has one fate");
        let count = |c| of_port.counter(c);
        let settled = count(Counter::Updated) + count(Counter::Refused) + count(Counter::Unknown);
        assert_eq!(settled, count(Counter::Journaled), "port {port}: every entry has one status");
        let headers = world.records[port].iter().map(|r| EntryHeader::read_from_prefix(r).unwrap().0);
        let mut last = 0;
        for (sequence, header) in headers.enumerate() {
            assert_eq!(header.sequence.get(), sequence as u64);
            assert!(header.timestamp.get() > last && header.computed_crc() == header.header_crc.get());
            last = header.timestamp.get();
        }
    }
    assert!(world.largest_ring <= engine::switch::MINIMUM_RING_BYTES, "a ring holds no more than it has");
}

/// Old data in an entry are what primary held when the entry was committed; in a copy's entry they are what
/// its original wrote.
fn check_before_images(world: &World, images: Images) {
    let mut last: HashMap<(u16, u64, u16), usize> = HashMap::new();
    let entries = world.entries();
    for (place, (header, payload)) in entries.iter().enumerate() {
        let (volume, lba, sectors) = (header.volume.get(), header.lba(), header.sectors.get());
        let length = usize::from(sectors) * 512;
        assert_eq!(payload.len(), images.count() * length);
        if header.flags.get() & flags::DUPLICATE == 0 {
            let moment = (header.timestamp.get() - EPOCH) / STEP * STEP;
            let held = world.held(volume as u8, lba, sectors.into(), moment);
            assert!(payload[..length] == held, "entry {}: LBA {lba} held something else", header.number);
        } else if images == Images::Both {
            assert_eq!(payload[..length], payload[length..], "a copy changes nothing");
        }
        last.insert((volume, lba, sectors), place);
    }
}

/// Walked back from the end by the old data, the volumes are what they were at the beginning.
fn check_undo(world: &World) {
    let mut memory = world.memory.clone();
    for (header, payload) in world.entries().iter().rev() {
        let start = header.lba() as usize * 512;
        let length = usize::from(header.sectors.get()) * 512;
        memory[usize::from(header.volume.get())][start..start + length].copy_from_slice(&payload[..length]);
    }
    assert!(memory == world.base, "undone from the end, the base is there again");
}

/// With every write executed once, each moment in both directions equals the naive model.
fn check_every_moment(world: &World, images: Images) {
    let entries = world.entries();
    let mut states = vec![world.base.clone()];
    // What an entry writes: in its after-image, or by the order in which the target saw the location.
    let mut written: HashMap<(u8, u64, usize), Vec<&Vec<u8>>> = HashMap::new();
    for (_, volume, lba, data) in world.executed.iter().rev() {
        written.entry((*volume, *lba, data.len())).or_default().push(data);
    }
    for (header, payload) in &entries {
        let (volume, lba) = (header.volume.get() as u8, header.lba());
        let length = usize::from(header.sectors.get()) * 512;
        let data = written.get_mut(&(volume, lba, length)).and_then(Vec::pop).expect("it was executed");
        let mut state = states.last().expect("the base").clone();
        let place = lba as usize * 512..lba as usize * 512 + length;
        if images != Images::Before {
            assert!(&payload[payload.len() - length..] == data, "the after-image is what was executed");
        }
        if images != Images::After {
            assert!(
                payload[..length] == state[usize::from(volume)][place.clone()],
                "entry {}",
                header.number
            );
        }
        state[usize::from(volume)][place].copy_from_slice(data);
        states.push(state);
    }
    assert!(states.last() == Some(&world.memory), "the end is what primary holds");
}

fn check_reference(world: &World) {
    let volumes = VolumeTable::new(&[(1, 0), (1, 1)]).unwrap();
    let rules = PortRules { volumes, allowed: 0b11, writes_open: true };
    let rules: [PortRules; PORTS] = std::array::from_fn(|_| rules.clone());
    let trace = Trace {
        rules: &rules,
        images: &[],
        number_floor: 1000,
        stamp_floor: EPOCH - 5,
        frames: &world.frames,
        uplink: &world.uplink,
        records: &world.records,
    };
    let expected = check(&trace).unwrap_or_else(|mismatch| panic!("{mismatch}"));
    for (port, unadmitted) in expected.unadmitted.iter().enumerate() {
        let journaled = world.switch.ports()[port].counter(Counter::Journaled) as usize;
        assert_eq!(world.frames[port].len() - journaled, *unadmitted);
    }
}

#[test]
fn in_a_kind_world_every_moment_is_right() {
    let mut entries = 0;
    for seed in seeds(100) {
        for (images, acknowledge) in ALL {
            let world = run(seed, images, acknowledge, Trouble::default(), 60);
            if images == Images::After {
                check_reference(&world);
            } else {
                check_before_images(&world, images);
                check_undo(&world);
            }
            check_every_moment(&world, images);
            let unanswered: u64 = world.switch.ports().iter().map(|p| p.counter(Counter::Unknown)).sum();
            assert_eq!(unanswered, 0);
            entries += world.entries().len();
        }
    }
    println!("{entries} entries");
    assert!(entries > 0);
}

#[test]
fn in_an_unkind_world_nothing_is_wrong_and_nothing_hangs() {
    let (mut entries, mut copies, mut unknown, mut late, mut gaps, mut worst) = (0, 0, 0, 0, 0, [0u64; 2]);
    let mut dropped: HashMap<&str, u64> = HashMap::new();
    for seed in seeds(1000) {
        let trouble = Trouble {
            lost: [0, 30, 150, 400][seed as usize % 4],
            repeated: [0, 100][seed as usize / 4 % 2],
            outages: seed / 8 % 2 == 1,
            slow_host: seed / 16 % 2 == 1,
        };
        for (images, acknowledge) in ALL {
            let world = run(seed, images, acknowledge, trouble, 60);
            match images {
                Images::After => check_reference(&world),
                _ => {
                    check_before_images(&world, images);
                    check_undo(&world);
                }
            }
            for port in world.switch.ports() {
                copies += port.counter(Counter::Duplicate);
                unknown += port.counter(Counter::Unknown);
                for counter in Counter::ALL.iter().filter(|c| c.name().starts_with("dropped-")) {
                    *dropped.entry(counter.name()).or_default() += port.counter(*counter);
                }
            }
            for record in world.records.iter().flatten() {
                let header = EntryHeader::read_from_prefix(record).unwrap().0;
                late += u64::from(header.flags.get() & flags::LATE != 0);
                gaps += u64::from(header.kind == Kind::Gap as u8);
            }
            entries += world.entries().len();
            let waits_for_disk = usize::from(acknowledge == Acknowledge::Journal && images.has_before());
            worst[waits_for_disk] = worst[waits_for_disk].max(world.worst_wait);
        }
    }
    let [port, disk] = worst.map(|wait| wait / 1000);
    println!(
        "{entries} entries, {copies} copies, {unknown} unknown, {late} late answers, {gaps} gaps\n\
         dropped: {dropped:?}\n\
         worst wait of a frame that was forwarded: {port} µs; where the disk is waited for: {disk} µs"
    );
    // Hold, then the reads of old data, then nothing.
    let reads = u64::from(engine::switch::BEFORE_READ_TRIES) * TIMEOUTS.retry;
    assert!(worst[0] <= TIMEOUTS.hold + reads + STEP, "{port} µs");
    if std::env::var_os("CHRONO_SEED").is_none() {
        for reason in ["dropped-hold", "dropped-copy", "dropped-before-read", "dropped-quarantine"] {
            assert!(dropped[reason] > 0, "{reason} never happened");
        }
        assert!(copies > 100 && unknown > 100 && late > 100, "{copies} {unknown} {late}");
    }
}

/// Entries that no answer ever comes for end as unknown, and their locations are free again.
#[test]
fn a_dead_target_leaves_unknown_writes_and_free_locations() {
    for (images, acknowledge) in [ALL[0], ALL[1]] {
        let trouble = Trouble { lost: 1000, ..Trouble::default() };
        let world = run(1, images, acknowledge, trouble, 40);
        check_reference(&world);
        assert!(world.executed.is_empty());
        for port in world.switch.ports() {
            assert_eq!(port.counter(Counter::Unknown), port.counter(Counter::Journaled));
        }
        let statuses = world.records.iter().flatten().filter_map(|record| {
            let header = EntryHeader::read_from_prefix(record).ok()?.0;
            (header.kind == Kind::Completion as u8).then(|| header.updated())
        });
        assert!(statuses.into_iter().all(|status| status == Ok(Updated::Unknown)));
    }
}
