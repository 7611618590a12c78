//! A switch between sources that send again, a network that loses, repeats and reorders, a target in memory
//! that executes what arrives, and a host that drains and reports when it likes. Time is a number.
#![allow(dead_code)] // each test takes what it needs

use super::made::{answer_frame, write_frame};
use engine::reference::Uplink;
use engine::switch::{Acknowledge, Clock, Images, Now, Output, Settings, Switch, Timeouts, Volume};
use layout::entry::{flags, EntryHeader, ErrorBound};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use zerocopy::FromBytes;

pub const PORTS: usize = 3;
pub const VOLUME_SECTORS: u64 = 64;
/// Events happen at multiples of this, so that a stamp tells its event, logical stamps included.
pub const STEP: u64 = 10_000;
pub const EPOCH: u64 = 1_700_000_000_000_000_000;
const MICROSECOND: u64 = 1_000;
pub const TIMEOUTS: Timeouts = Timeouts {
    hold: 4_000 * MICROSECOND,
    retry: 1_000 * MICROSECOND,
    unknown: 20_000 * MICROSECOND,
    quarantine: 60_000 * MICROSECOND,
};

/// How unkind the world is, in tenths of a percent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trouble {
    pub lost: u32,
    pub repeated: u32,
    /// The target is away for a while, now and then.
    pub outages: bool,
    /// The host drains and reports late.
    pub slow_host: bool,
}

#[derive(Clone, Debug)]
enum Event {
    Source(usize, Vec<u8>, u32),
    /// Nothing has come: the source of this write sends again.
    Alarm(usize, u32),
    Target(Vec<u8>),
    Answer(Vec<u8>),
    Drain(usize),
    Durable(usize, u64),
    Host,
}

/// A write as its source knows it.
#[derive(Clone, Debug)]
struct Wanted {
    port: usize,
    source: [u8; 6],
    slot: u8,
    lba: u64,
    data: Vec<u8>,
    done: bool,
    tag: u32,
}

/// What the target executed: when, on which volume, where, what.
pub type Executed = (u64, u8, u64, Vec<u8>);

pub struct World {
    pub switch: Switch,
    pub random: ChaCha8Rng,
    pub trouble: Trouble,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    payloads: HashMap<u64, Event>,
    next_event: u64,
    pub now: u64,
    pub base: [Vec<u8>; 2],
    pub memory: [Vec<u8>; 2],
    pub executed: Vec<Executed>,
    wanted: Vec<Wanted>,
    tags: HashMap<u32, (usize, u64)>,
    next_tag: u32,
    away_until: u64,
    pub records: Vec<Vec<Vec<u8>>>,
    pub frames: Vec<Vec<Vec<u8>>>,
    pub uplink: Vec<Uplink>,
    durable: [u64; PORTS],
    /// Forwarded writes: when, tag, volume slot, LBA, data, port.
    pub forwarded: Vec<(u64, u32, u8, u64, Vec<u8>)>,
    answered: HashMap<u32, u64>,
    pub worst_wait: u64,
    pub reads_of_switch: u64,
    pub largest_ring: usize,
}

impl World {
    pub fn new(seed: u64, images: Images, acknowledge: Acknowledge, trouble: Trouble) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let volume = |slot| Volume { acknowledge, ..Volume::new(1, slot, images) };
        let mut settings = Settings::new(vec![volume(0), volume(1)], PORTS);
        settings.timeouts = TIMEOUTS;
        settings.stamp_floor = EPOCH - 5;
        settings.number_floor = 1000;
        settings.ring_bytes = engine::switch::MINIMUM_RING_BYTES;
        let base: [Vec<u8>; 2] =
            std::array::from_fn(|_| (0..VOLUME_SECTORS * 512).map(|_| random.random()).collect());
        let mut world = Self {
            switch: Switch::new(settings).expect("settings"),
            random,
            trouble,
            events: BinaryHeap::new(),
            payloads: HashMap::new(),
            next_event: 0,
            now: 0,
            memory: base.clone(),
            base,
            executed: Vec::new(),
            wanted: Vec::new(),
            tags: HashMap::new(),
            next_tag: 1,
            away_until: 0,
            records: vec![Vec::new(); PORTS],
            frames: vec![Vec::new(); PORTS],
            uplink: Vec::new(),
            durable: [1000; PORTS],
            forwarded: Vec::new(),
            answered: HashMap::new(),
            worst_wait: 0,
            reads_of_switch: 0,
            largest_ring: 0,
        };
        world.at(0, Event::Host);
        world
    }

    fn at(&mut self, delay: u64, event: Event) {
        let time = self.now + delay.div_ceil(STEP) * STEP;
        self.events.push(Reverse((time, self.next_event)));
        self.payloads.insert(self.next_event, event);
        self.next_event += 1;
    }

    fn clock(&self) -> Now {
        let clock =
            Clock { nanoseconds: EPOCH + self.now, flags: flags::CLOCK_LOCKED, error: ErrorBound(33) };
        Now { elapsed: self.now, clock }
    }

    /// A source wants to write, some time from now.
    pub fn want(&mut self, delay: u64) {
        let port = self.random.random_range(0..PORTS);
        let source = [2, 0, 0, 0, port as u8, self.random.random_range(0..2)];
        let sectors = if self.random.random_range(0..8) == 0 { 17 } else { self.random.random_range(1..4) };
        let lba = self.random.random_range(0..VOLUME_SECTORS - sectors);
        let mut data = vec![0; sectors as usize * 512];
        // Few different contents, so that equal writes happen.
        data.fill(self.random.random_range(0..40));
        let slot = self.random.random_range(0..2);
        self.wanted.push(Wanted { port, source, slot, lba, data, done: false, tag: 0 });
        self.send(self.wanted.len() - 1, delay, 0);
    }

    fn send(&mut self, wanted: usize, delay: u64, tries: u32) {
        let tag = self.next_tag;
        self.next_tag += 1;
        let of = &mut self.wanted[wanted];
        of.tag = tag;
        let mut frame = write_frame(of.lba, &of.data, tag);
        frame[6..12].copy_from_slice(&of.source);
        frame[18] = of.slot;
        let port = of.port;
        self.tags.insert(tag, (wanted, 0));
        self.at(delay, Event::Source(port, frame, tries));
    }

    fn is_lost(&mut self) -> bool {
        self.random.random_range(0..1000) < self.trouble.lost
    }

    fn delay(&mut self) -> u64 {
        match self.random.random_range(0..50) {
            0 if self.trouble.lost > 0 => self.random.random_range(0..15_000) * MICROSECOND,
            _ => self.random.random_range(10..400) * MICROSECOND,
        }
    }

    /// Runs until nothing is left to happen. Panics if that doesn't come.
    pub fn run(&mut self) {
        for _ in 0..400_000 {
            let event = self.events.peek().map(|Reverse((time, _))| *time);
            // A time-out that falls between two steps is looked at with the next one.
            let deadline = self.switch.deadline().map(|at| at.div_ceil(STEP) * STEP);
            let Some(time) = event.into_iter().chain(deadline).min() else { return };
            // What became due by something else that happened is due at once.
            let time = time.max(self.now);
            self.now = time;
            if event == Some(time) {
                let Some(Reverse((_, id))) = self.events.pop() else { return };
                let event = self.payloads.remove(&id).expect("an event's payload");
                self.happen(event);
            } else {
                self.switch.tick(&self.clock());
            }
            self.take_outputs();
            for port in self.switch.ports() {
                self.largest_ring = self.largest_ring.max(port.level());
            }
        }
        panic!("it hangs: after 400,000 events something still waits");
    }

    fn happen(&mut self, event: Event) {
        let now = self.clock();
        match event {
            Event::Source(port, frame, tries) => {
                let tag = tag_of(&frame);
                let (wanted, _) = self.tags[&tag];
                self.tags.insert(tag, (wanted, self.now));
                if self.wanted[wanted].done || self.wanted[wanted].tag != tag {
                    return;
                }
                let rto = (self.random.random_range(3_000..20_000) * MICROSECOND) << tries;
                if tries < 4 {
                    self.at(rto, Event::Alarm(wanted, tries + 1));
                }
                let repeated = self.random.random_range(0..1000) < self.trouble.repeated;
                for _ in 0..1 + u32::from(repeated) {
                    self.frames[port].push(frame.clone());
                    self.switch.frame(port, &frame, &now);
                }
            }
            Event::Alarm(wanted, tries) => {
                if !self.wanted[wanted].done {
                    self.send(wanted, 0, tries);
                }
            }
            Event::Target(frame) => self.target(frame),
            Event::Answer(frame) => {
                self.answered.insert(tag_of(&frame), self.now);
                self.uplink.push(Uplink::Answer(frame.clone()));
                self.switch.uplink(&frame, &now);
            }
            Event::Drain(port) => self.drain(port),
            Event::Durable(port, number) => {
                self.durable[port] = self.durable[port].max(number);
                self.switch.durable(port, number, &now);
            }
            Event::Host => self.host(),
        }
    }

    fn host(&mut self) {
        for port in 0..PORTS {
            self.at(0, Event::Drain(port));
        }
        let idle = self.switch.is_idle() && self.events.len() <= PORTS;
        if !idle {
            let slow = self.trouble.slow_host && self.random.random_range(0..10) == 0;
            let pause = if slow { 30_000 } else { 200 };
            self.at(pause * MICROSECOND, Event::Host);
        }
    }

    fn drain(&mut self, port: usize) {
        let now = self.clock();
        let mut bytes = Vec::new();
        self.switch.drain(port, usize::MAX, &now, &mut bytes);
        let mut rest = &bytes[..];
        let mut last = None;
        while !rest.is_empty() {
            let (header, _) = EntryHeader::read_from_prefix(rest).expect("a header");
            let (record, others) = rest.split_at(header.record_bytes());
            self.records[port].push(record.to_vec());
            if (1..=3).contains(&header.kind) {
                last = Some(header.number.get());
            }
            rest = others;
        }
        if let Some(last) = last {
            let delay = self.random.random_range(50..500) * MICROSECOND;
            self.at(delay, Event::Durable(port, last));
        }
    }

    fn target(&mut self, frame: Vec<u8>) {
        let (slot, command, sectors) = (usize::from(frame[18]), frame[27], usize::from(frame[26]));
        let lba =
            u64::from_le_bytes([frame[28], frame[29], frame[30], frame[31], frame[32], frame[33], 0, 0]);
        let place = lba as usize * 512..(lba as usize + sectors) * 512;
        let answer = match command {
            0x24 => {
                self.reads_of_switch += 1;
                let mut answer = frame[..36].to_vec();
                answer.extend_from_slice(&self.memory[slot][place]);
                let (destination, source) = answer[..12].split_at_mut(6);
                destination.swap_with_slice(source);
                answer[14] |= 8;
                (answer[25], answer[26], answer[27]) = (0, 0, 0x40);
                answer
            }
            0x34 => {
                let data = frame[36..36 + sectors * 512].to_vec();
                self.memory[slot][place].copy_from_slice(&data);
                self.executed.push((self.now, slot as u8, lba, data));
                answer_frame(&frame, 0x40, 0)
            }
            other => panic!("the switch forwarded ATA command {other:#x}"),
        };
        let copies = 1 + u32::from(self.random.random_range(0..1000) < self.trouble.repeated);
        for _ in 0..copies {
            if !self.is_lost() {
                // An answer may come after its quarantine; a request that slow would be a stale overwrite.
                let very_late = self.trouble.lost > 0 && self.random.random_range(0..20) == 0;
                let more = if very_late { self.random.random_range(0..120_000) * MICROSECOND } else { 0 };
                let delay = self.delay() + more;
                self.at(delay, Event::Answer(answer.clone()));
            }
        }
    }

    fn take_outputs(&mut self) {
        while let Some(output) = self.switch.output() {
            match output {
                Output::Uplink(frame) => self.forward(frame),
                Output::Port(_, frame) => {
                    if let Some(&(wanted, _)) = self.tags.get(&tag_of(&frame)) {
                        let of = &mut self.wanted[wanted];
                        of.done |= of.tag == tag_of(&frame);
                    }
                }
            }
        }
        if self.trouble.outages && self.now > self.away_until && self.random.random_range(0..3000) == 0 {
            self.away_until = self.now + self.random.random_range(5_000..150_000) * MICROSECOND;
        }
    }

    fn forward(&mut self, frame: Vec<u8>) {
        let tag = tag_of(&frame);
        if tag >> 31 == 0 {
            self.uplink.push(Uplink::Forwarded(frame.clone()));
            self.check_wire(&frame);
            let (_, came) = self.tags[&tag];
            self.worst_wait = self.worst_wait.max(self.now - came);
        }
        // A write that the network repeats behind the switch may overwrite newer data, and nobody there knows:
        // only reads are repeated here, and writes on their way in.
        let repeated = self.random.random_range(0..1000) < self.trouble.repeated && tag >> 31 == 1;
        for _ in 0..1 + u32::from(repeated) {
            if !self.is_lost() && self.now >= self.away_until {
                let delay = self.delay();
                self.at(delay, Event::Target(frame.clone()));
            }
        }
    }

    /// Nothing overlapping is in flight: it was answered, or its quarantine is over, or this is its copy.
    fn check_wire(&mut self, frame: &[u8]) {
        let lba =
            u64::from_le_bytes([frame[28], frame[29], frame[30], frame[31], frame[32], frame[33], 0, 0]);
        let (slot, data) = (frame[18], frame[36..].to_vec());
        for (when, tag, other_slot, other_lba, other) in &self.forwarded {
            let overlaps = slot == *other_slot
                && lba < other_lba + other.len() as u64 / 512
                && *other_lba < lba + data.len() as u64 / 512;
            let equal = (lba, &data) == (*other_lba, other);
            let open = !self.answered.contains_key(tag) && when + TIMEOUTS.quarantine > self.now;
            assert!(!overlaps || equal || !open, "LBA {lba} is in flight since {when} with tag {tag}");
        }
        self.forwarded.push((self.now, tag_of(frame), slot, lba, data));
    }

    /// Entries of all ports by number.
    pub fn entries(&self) -> Vec<(EntryHeader, Vec<u8>)> {
        let mut entries: Vec<_> = self
            .records
            .iter()
            .flatten()
            .filter_map(|record| {
                let (header, payload) = EntryHeader::read_from_prefix(record).ok()?;
                let payload = payload[..header.payload_bytes.get() as usize].to_vec();
                (1..=3).contains(&header.kind).then_some((header, payload))
            })
            .collect();
        entries.sort_by_key(|(header, _)| header.number.get());
        entries
    }

    /// What a location held at a moment, by what the target executed.
    pub fn held(&self, volume: u8, lba: u64, sectors: u64, until: u64) -> Vec<u8> {
        let base = &self.base[usize::from(volume)];
        let mut bytes = base[lba as usize * 512..(lba + sectors) as usize * 512].to_vec();
        for (_, _, at, data) in self.executed.iter().filter(|e| e.0 <= until && e.1 == volume) {
            for (place, sector) in data.chunks(512).enumerate() {
                let sector_lba = at + place as u64;
                if (lba..lba + sectors).contains(&sector_lba) {
                    let offset = (sector_lba - lba) as usize * 512;
                    bytes[offset..offset + 512].copy_from_slice(sector);
                }
            }
        }
        bytes
    }
}

pub fn tag_of(frame: &[u8]) -> u32 {
    u32::from_be_bytes([frame[20], frame[21], frame[22], frame[23]])
}
