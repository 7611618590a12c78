//! AoE ports and their log of dirty regions, with the power cut at any moment and at any write of the log: wherever the target
//! may have something else than the journal says, the log that is found says so.
//!
//! `CHRONO_SEED` names a seed, `CHRONO_SEEDS` how many are tried.

mod machine;

use engine::switch::{Clock, DirtyRegions, Images, Now, Output, Settings, Switch, Timeouts, Volume};
use layout::aoe::{Ata, AtaFrame, Header, ATA_WRITE_EXT, COMMAND_ATA, ETHERTYPE, FLAG_RESPONSE};
use layout::entry::{flags, EntryHeader, ErrorBound, Kind, Updated};
use machine::{Disk, Machine};
use ports::dirty_log::{self, DirtyLog, Found, Position, ToServe};
use ports::marking::Marking;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use zerocopy::{FromBytes, IntoBytes};

const SECTORS: u64 = 192;
/// 4 KiB, so that the volume has many.
const REGION_SHIFT: u8 = 12;
const PORTS: usize = 2;
const FLOOR: u64 = 1000;
const JOURNAL: [u8; 16] = [7; 16];
const TIMEOUTS: Timeouts = Timeouts { hold: 40, retry: 10, unknown: 200, quarantine: 500 };

fn number_of(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// A write that was forwarded, and until when the target may execute it.
struct OnTheWire {
    frame: Vec<u8>,
    until: u64,
}

/// An entry in the journal.
#[derive(Clone)]
struct Entry {
    number: u64,
    lba: u64,
    data: Vec<u8>,
    updated: Updated,
}

struct World {
    random: ChaCha8Rng,
    now: u64,
    switch: Switch,
    marking: Arc<Marking>,
    disk: Arc<Disk>,
    target: Vec<u8>,
    wire: Vec<OnTheWire>,
    /// By place and length, when something was forwarded there last.
    last: HashMap<(u64, usize), u64>,
    answers: Vec<Vec<u8>>,
    recent: Vec<Vec<u8>>,
    /// Out of the rings, and not in order yet.
    delivered: Vec<(EntryHeader, Vec<u8>)>,
    /// In the journal, and how many of them are durable.
    records: Vec<(EntryHeader, Vec<u8>)>,
    durable: usize,
    durable_number: u64,
    settled: u64,
    tag: u32,
    forwarded: u64,
}

/// What seeds have met, all together.
#[derive(Debug, Default)]
struct Met {
    forwarded: u64,
    differing: u64,
    /// Regions of theirs that the target had been given writes for, and that the log doesn't mark any more.
    spared: u64,
    uncertain: u64,
    in_the_log: u64,
}

impl World {
    fn new(seed: u64) -> (Self, Arc<Machine>) {
        let machine = Arc::new(Machine::default());
        let disk = Disk::new(&machine, "log", vec![0; dirty_log::FILE_BYTES as usize]);
        // The large one's marks lie before those of the one that is written to, so that a slot can be torn.
        let large = ToServe { volume: 1, bytes: 8192 << REGION_SHIFT, ..ToServe::default() };
        let served = [large, ToServe { bytes: SECTORS * 512, ..ToServe::default() }];
        let position = Position { session: 3.into(), number: FLOOR.into() };
        let log = DirtyLog::begin(
            disk.clone(),
            JOURNAL,
            [1; 16],
            Some(position),
            &Found::default(),
            &served,
            REGION_SHIFT,
        );
        let marking = Arc::new(Marking::new(log.expect("the disk is fine"), &[1, 0]));
        let settings = Settings {
            timeouts: TIMEOUTS,
            number_floor: FLOOR,
            ..Settings::new(vec![Volume::new(1, 0, Images::After)], PORTS)
        };
        let mut switch = Switch::new(settings).expect("settings");
        switch.mark_in(Arc::clone(&marking) as Arc<dyn DirtyRegions>);
        let world = Self {
            random: ChaCha8Rng::seed_from_u64(seed),
            now: 0,
            switch,
            marking,
            disk,
            target: vec![0; SECTORS as usize * 512],
            wire: Vec::new(),
            last: HashMap::new(),
            answers: Vec::new(),
            recent: Vec::new(),
            delivered: Vec::new(),
            records: Vec::new(),
            durable: 0,
            durable_number: FLOOR,
            settled: FLOOR,
            tag: 0,
            forwarded: 0,
        };
        (world, machine)
    }

    fn clock(&self) -> Now {
        let clock =
            Clock { nanoseconds: 5_000 + self.now, flags: flags::CLOCK_LOCKED, error: ErrorBound(33) };
        Now { elapsed: self.now, clock }
    }

    /// Something happens. `false`: the power failed in it.
    fn step(&mut self) -> bool {
        let now = self.clock();
        match self.random.random_range(0..100) {
            0..30 => self.send(&now),
            // Rarely enough that writes wait for it, and are dropped for want of it.
            30..45 => match self.marking.work(Duration::ZERO) {
                Ok(_) => {
                    if self.marking.has_news() {
                        self.switch.go_on(&now);
                    }
                }
                Err(_) => return false,
            },
            45..62 => self.execute(),
            62..75 => {
                if !self.answers.is_empty() {
                    let place = self.random.random_range(0..self.answers.len());
                    let answer = self.answers.swap_remove(place);
                    self.switch.uplink(&answer, &now);
                }
            }
            75..82 => self.drain(&now),
            82..87 => self.sync(&now),
            // As the thread of the frames does it.
            87..92 => {
                self.marking.clear(self.settled);
                self.settled = self.switch.settled().min(self.durable_number);
            }
            _ => {
                self.now += if self.random.random_range(0..8) == 0 { 150 } else { 15 };
                let now = self.clock();
                self.switch.tick(&now);
                self.wire.retain(|on_the_wire| on_the_wire.until > now.elapsed);
            }
        }
        self.take_outputs();
        true
    }

    fn send(&mut self, now: &Now) {
        let port = self.random.random_range(0..PORTS);
        self.tag += 1;
        if self.random.random_range(0..4) == 0 && !self.recent.is_empty() {
            // Once more, under a new tag: at its own port, which its source tells.
            let place = self.random.random_range(0..self.recent.len());
            let mut frame = self.recent[place].clone();
            frame[20..24].copy_from_slice(&self.tag.to_be_bytes());
            return self.switch.frame(usize::from(frame[11]), &frame, now);
        }
        let sectors = self.random.random_range(1..6u64);
        let lba = self.random.random_range(0..=SECTORS - sectors);
        let data: Vec<u8> = (0..sectors * 512).map(|at| (u64::from(self.tag) + at / 512) as u8).collect();
        let header = Header {
            destination: [2, 0, 0, 0, 1, 1],
            source: [2, 0, 0, 0, 0, port as u8],
            ethertype: ETHERTYPE.into(),
            version_flags: 0x10,
            error: 0,
            shelf: 1.into(),
            slot: 0,
            command: COMMAND_ATA,
            tag: self.tag.into(),
        };
        let mut bytes = [0; 6];
        bytes.copy_from_slice(&lba.to_le_bytes()[..6]);
        let ata = Ata {
            flags: 0x41,
            error_feature: 0,
            sectors: sectors as u8,
            command_status: ATA_WRITE_EXT,
            lba: bytes,
            reserved: [0; 2],
        };
        let frame = [header.as_bytes(), ata.as_bytes(), &data].concat();
        self.switch.frame(port, &frame, now);
        self.recent.push(frame);
        if self.recent.len() > 6 {
            self.recent.remove(0);
        }
    }

    /// The target gets something that is under way, or it is lost; and so may its answer be.
    fn execute(&mut self) {
        if self.wire.is_empty() {
            return;
        }
        let place = self.random.random_range(0..self.wire.len());
        let frame = self.wire.swap_remove(place).frame;
        if self.random.random_range(0..8) == 0 {
            return;
        }
        apply(&mut self.target, &frame);
        if self.random.random_range(0..8) > 0 {
            let mut answer = frame;
            answer.truncate(60);
            let (destination, source) = answer[..12].split_at_mut(6);
            destination.swap_with_slice(source);
            answer[14] |= FLAG_RESPONSE;
            (answer[25], answer[26], answer[27]) = (0, 0, 0x40);
            self.answers.push(answer);
        }
    }

    fn drain(&mut self, now: &Now) {
        // Draining lets writes in; what they are stamped with is later than all that there is now.
        let bound = self.switch.last_stamp();
        for port in 0..PORTS {
            let mut bytes = Vec::new();
            self.switch.drain(port, usize::MAX, now, &mut bytes);
            let mut rest = &bytes[..];
            while let Ok((header, _)) = EntryHeader::read_from_prefix(rest) {
                let payload = &rest[64..64 + header.payload_bytes.get() as usize];
                self.delivered.push((header, payload.to_vec()));
                rest = &rest[header.record_bytes()..];
            }
        }
        self.delivered.sort_by_key(|(header, _)| header.timestamp.get());
        let whole = self.delivered.partition_point(|(header, _)| header.timestamp.get() <= bound);
        self.records.extend(self.delivered.drain(..whole));
    }

    fn sync(&mut self, now: &Now) {
        self.durable = self.records.len();
        let entries = self.records.iter().filter(|(header, _)| header.kind == Kind::After as u8);
        self.durable_number = entries.map(|(header, _)| header.number.get()).max().unwrap_or(FLOOR);
        (0..PORTS).for_each(|port| self.switch.durable(port, self.durable_number, now));
    }

    fn take_outputs(&mut self) {
        while let Some(output) = self.switch.output() {
            if let Output::Uplink(frame) = output {
                self.forwarded += 1;
                let (request, data) = AtaFrame::ref_from_prefix(&frame).expect("a write");
                self.last.insert((request.ata.lba48(), data.len()), self.now);
                self.wire.push(OnTheWire { frame, until: self.now + TIMEOUTS.quarantine });
            }
        }
    }

    /// The power has failed. What is under way the target may still get. Then the log is looked at.
    fn look(mut self, met: &mut Met) {
        for OnTheWire { frame, .. } in std::mem::take(&mut self.wire) {
            if self.random.random_bool(0.5) {
                apply(&mut self.target, &frame);
            }
        }
        let entries = entries(&self.records[..self.durable]);
        let mut known = vec![0; self.target.len()];
        // Where the journal itself knows that it isn't certain, and compares or says so whatever the log has.
        let mut uncertain = vec![false; SECTORS as usize];
        let mut given = vec![false; SECTORS as usize];
        for entry in &entries {
            let sectors = entry.lba as usize..entry.lba as usize + entry.data.len() / 512;
            known[sectors.start * 512..sectors.end * 512].copy_from_slice(&entry.data);
            let quarantined_until = self.last[&(entry.lba, entry.data.len())] + TIMEOUTS.quarantine;
            let is_uncertain = entry.updated == Updated::Pending
                || (entry.updated == Updated::Unknown && quarantined_until <= self.now);
            uncertain[sectors.clone()].fill(is_uncertain);
            given[sectors].fill(true);
        }
        let image = self.disk.after_power_cut(&mut self.random);
        let found = dirty_log::load(&*Disk::new(&Arc::new(Machine::default()), "log", image), JOURNAL);
        let found = found.expect("it can be read");
        met.forwarded += self.forwarded;
        let Some(regions) = found.regions(0) else {
            met.uncertain += 1;
            return;
        };
        let position = found.position.expect("it has one");
        assert_eq!(position.session.get(), 3);
        assert!((FLOOR..=self.durable_number).contains(&position.number.get()), "{position:?}");
        for sector in 0..SECTORS as usize {
            let bytes = sector * 512..(sector + 1) * 512;
            let is_marked = regions.iter().any(|region| region.contains(&(bytes.start as u64)));
            if self.target[bytes.clone()] != known[bytes] && !uncertain[sector] {
                met.differing += 1;
                assert!(is_marked, "sector {sector} differs, and its region isn't marked: {regions:?}");
            }
            met.spared += u64::from(given[sector] && !is_marked);
        }
    }
}

fn apply(target: &mut [u8], frame: &[u8]) {
    let (request, data) = AtaFrame::ref_from_prefix(frame).expect("a write");
    let at = request.ata.lba48() as usize * 512;
    let bytes = usize::from(request.ata.sectors) * 512;
    target[at..at + bytes].copy_from_slice(&data[..bytes]);
}

fn entries(records: &[(EntryHeader, Vec<u8>)]) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut places = HashMap::new();
    for (header, payload) in records {
        let number = header.number.get();
        if header.kind == Kind::After as u8 {
            places.insert(number, entries.len());
            let updated = Updated::Pending;
            entries.push(Entry { number, lba: header.lba(), data: payload.clone(), updated });
        } else if header.kind == Kind::Completion as u8 {
            entries[places[&number]].updated = header.updated().expect("a status");
        }
    }
    assert!(entries.is_sorted_by_key(|entry| entry.number));
    entries
}

#[test]
fn wherever_the_target_may_be_ahead_the_log_says_so() {
    let mut met = Met::default();
    let seeds = match std::env::var_os("CHRONO_SEED") {
        Some(_) => number_of("CHRONO_SEED", 0)..number_of("CHRONO_SEED", 0) + 1,
        None => 0..number_of("CHRONO_SEEDS", 600),
    };
    let all = seeds.end - seeds.start;
    for seed in seeds {
        println!("CHRONO_SEED={seed}");
        let (mut world, machine) = World::new(seed);
        let steps = world.random.random_range(1..600);
        if world.random.random_bool(0.5) {
            machine.crash_at(world.random.random_range(2..20));
        }
        for _ in 0..steps {
            if !world.step() {
                met.in_the_log += 1;
                break;
            }
        }
        world.look(&mut met);
    }
    println!("{all} power cuts: {met:?}");
    if all > 100 {
        assert!(met.differing > all && met.spared > all && met.in_the_log > all / 10 && met.uncertain > 0);
    }
}

/// What the journal lost for good stays marked, whatever is cleared; and a log is told from one of another state of the journal.
#[test]
fn doubtful_regions_stay_marked_and_the_position_is_kept() {
    let machine = Arc::new(Machine::default());
    let disk = Disk::new(&machine, "log", vec![0; dirty_log::FILE_BYTES as usize]);
    let region = 1 << REGION_SHIFT;
    let served = [
        ToServe { volume: 2, bytes: 8 * region, doubtful: vec![region..region + 1, 7 * region..9 * region] },
        ToServe { volume: 5, bytes: 100, doubtful: Vec::new() },
    ];
    let position = Position { session: 9.into(), number: 40.into() };
    let begun = DirtyLog::begin(
        disk.clone(),
        JOURNAL,
        [1; 16],
        Some(position),
        &Found::default(),
        &served,
        REGION_SHIFT,
    );
    let marking = Marking::new(begun.unwrap(), &[2, 5]);
    let found = || dirty_log::load(&*disk, JOURNAL).unwrap();
    assert_eq!(found().regions(2), Some(vec![region..2 * region, 7 * region..8 * region]));
    assert_eq!((found().regions(5), found().clean), (Some(vec![]), Some(false)));
    // Past the end of the volume, and of volumes without a row, nothing has to be marked.
    assert!(marking.are_marked(2, 8 * region..9 * region) && marking.are_marked(3, 0..1));
    assert!(marking.are_marked(2, region..2 * region));
    assert!(!marking.are_marked(5, 0..512));
    assert!(marking.work(Duration::ZERO).unwrap() && marking.are_marked(5, 0..512));
    marking.touch(2, region..region + 512, 41);
    marking.touch(5, 0..512, 42);
    marking.clear(41);
    marking.work(Duration::ZERO).unwrap();
    assert_eq!((found().regions(5), marking.count()), (Some(std::iter::once(0..region).collect()), 3));
    marking.clear(42);
    marking.work(Duration::ZERO).unwrap();
    assert_eq!((found().regions(5), marking.count()), (Some(vec![]), 2));
    assert_eq!((found().position.unwrap().number.get(), found().clean), (42, Some(false)));
    marking.end(43).unwrap();
    assert_eq!(found().position.unwrap().number.get(), 43);
    assert_eq!(found().regions(2), Some(vec![region..2 * region, 7 * region..8 * region]));
    assert_eq!((found().regions(5), found().clean), (Some(vec![]), Some(true)));
    assert!(found().knows(2) && found().knows(5) && !found().knows(3));
}
