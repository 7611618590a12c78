//! The PCIe side of the gateware from outside: a root on its packets, models of the ports' rings behind it.
//!
//! A run prints its seed; `CHRONO_SEED` replays one.

use hdl::host::Host;
use hdl::prelude::*;
use layout::registers::{command, control, global, port, Access, PORT_BASE, PORT_STRIDE, TICK_CYCLES};
use layout::registers::{PORT_DRAIN, PORT_FLUSH};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sim::co_check::CoCheck;
use sim::pcie_root::{beats, Beat, Event, Read, Refused, Region, Root, RootError};
use sim::verilator::{default_cache, lint};
use std::collections::VecDeque;

const CARD_ID: u16 = 0x05 << 8 | 0x03 << 3 | 0x01;

fn seed() -> u64 {
    let seed = std::env::var("CHRONO_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    println!("seed {seed} (CHRONO_SEED={seed} replays)");
    seed
}

const fn at(index: usize, offset: u32) -> u32 {
    PORT_BASE + index as u32 * PORT_STRIDE + offset
}

/// A port's ring, and what has been committed to it since power-up.
struct Ring {
    words: Vec<u64>,
    /// Every line ever committed.
    lines: Vec<[u64; 8]>,
    /// Where records end, in lines from the start.
    ends: Vec<usize>,
    /// Lines drained.
    tail: usize,
    /// Cycles until the watermark asked for is there.
    watermark_in: Option<u32>,
    watermarks: usize,
}

impl Ring {
    fn new(words: usize) -> Self {
        Self {
            words: vec![0; words],
            lines: vec![],
            ends: vec![],
            tail: 0,
            watermark_in: None,
            watermarks: 0,
        }
    }
    fn capacity(&self) -> usize {
        self.words.len() / 8
    }
    fn room(&self) -> usize {
        self.capacity() - (self.lines.len() - self.tail)
    }
    fn commit(&mut self, lines: usize, random: &mut ChaCha8Rng) {
        assert!(lines <= self.room());
        for _ in 0..lines {
            let line: [u64; 8] = std::array::from_fn(|_| random.random());
            let start = self.lines.len() % self.capacity() * 8;
            self.words[start..start + 8].copy_from_slice(&line);
            self.lines.push(line);
        }
        self.ends.push(self.lines.len());
    }
}

/// What the host knows of a port.
struct HostPort {
    ring: Region,
    mailbox: u64,
    size: usize,
    /// Line of the port's ring at which the session began.
    base: usize,
    /// Bytes written by the card, announced by it, given back by the host.
    written: u64,
    announced: u64,
    consumed: u64,
    /// Announced when the last message came.
    at_message: u64,
    messages: usize,
}

struct Bench<const P: usize, const A: usize, const H: usize> {
    host: Box<Host<P, A, H>>,
    root: Root,
    rings: Vec<Ring>,
    /// What the rings held before a card reset: a TLP that was on its way then may still arrive.
    before_reset: Option<Vec<Ring>>,
    ports: Vec<HostPort>,
    mailboxes: Region,
    random: ChaCha8Rng,
    /// Ring addresses of the last cycles.
    addresses: [usize; 2],
    ready_chance: f64,
    offer_chance: f64,
    offered: Option<Beat>,
    shown: Option<Beat>,
    cycles: u64,
    commit: bool,
    done: Vec<bool>,
    messages: Vec<(usize, u64)>,
    errors: Vec<RootError>,
    tx_beats: u64,
    writes: u64,
    strobes: Vec<(&'static str, u64)>,
    /// DMA must not happen now.
    silent: bool,
    /// The host takes what is announced.
    consuming: bool,
    twin: Option<CoCheck>,
}

impl<const P: usize, const A: usize, const H: usize> Bench<P, A, H> {
    fn new(seed: u64, max_payload: u8) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut host = Box::new(Host::new());
        host.connect_all();
        host.pci_bus.next = bits(5);
        host.pci_device.next = bits(3);
        host.pci_function.next = bits(1);
        host.max_payload.next = bits(max_payload as u64);
        host.bus_master_enable.next = true;
        host.msix_enable.next = true;
        let bar = if random.random_bool(0.5) { 0xE000_0000 } else { 0x40_0000_0000 };
        let mut root = Root::new(bar, CARD_ID, max_payload);
        let mailboxes = if random.random_bool(0.5) { root.map_low(4096) } else { root.map_high(4096) };
        for _ in 0..P {
            root.add_message();
        }
        let ports = (0..P)
            .map(|index| {
                let size = 65536 << random.random_range(0..2);
                let ring = if random.random_bool(0.5) { root.map_low(size) } else { root.map_high(size) };
                HostPort {
                    ring,
                    mailbox: mailboxes.address + index as u64 * 64,
                    size,
                    base: 0,
                    written: 0,
                    announced: 0,
                    consumed: 0,
                    at_message: 0,
                    messages: 0,
                }
            })
            .collect();
        Self {
            host,
            root,
            rings: (0..P).map(|_| Ring::new(1 << A)).collect(),
            before_reset: None,
            ports,
            mailboxes,
            random,
            addresses: [0; 2],
            ready_chance: 1.0,
            offer_chance: 1.0,
            offered: None,
            shown: None,
            cycles: 0,
            commit: false,
            done: vec![false; P],
            messages: vec![],
            errors: vec![],
            tx_beats: 0,
            writes: 0,
            strobes: vec![],
            silent: false,
            consuming: false,
            twin: None,
        }
    }

    fn inputs(&mut self) {
        let offer = self.offered.is_some() || self.random.random_bool(self.offer_chance);
        self.offered = if offer { self.root.rx_beat() } else { None };
        let beat = self.offered.unwrap_or(Beat { data: self.random.random(), keep: 0, last: false });
        let host = &mut self.host;
        host.rx_valid.next = self.offered.is_some();
        host.rx_data.next = bits(beat.data);
        host.rx_keep.next = bits(beat.keep as u64);
        host.rx_last.next = beat.last;
        host.tx_ready.next = self.random.random_bool(self.ready_chance);
        for (index, ring) in self.rings.iter_mut().enumerate() {
            // The word that was there a cycle after its address: BRAM, then its output register.
            host.ring_read_data[index].next = bits(ring.words[self.addresses[1]]);
            self.done[index] = false;
            if let Some(left) = ring.watermark_in {
                ring.watermark_in = Some(left.saturating_sub(1));
                if left == 0 && ring.room() > 0 {
                    ring.commit(1, &mut self.random);
                    ring.watermark_in = None;
                    ring.watermarks += 1;
                    self.done[index] = true;
                }
            }
            host.watermark_done[index].next = self.done[index];
            host.ring_head[index].next = bits((ring.lines.len() % (2 * ring.capacity())) as u64);
            host.leaf_time[index].next = twice(self.cycles + index as u64);
            host.leaf_phase[index].next = bits(0xFFFF_0000 + index as u64);
            host.leaf_locked[index].next = index % 2 == 0;
            host.leaf_holdover[index].next = index % 2 == 1;
            host.in_flight[index].next = bits(3 + index as u64);
        }
        host.commit.next = std::mem::take(&mut self.commit);
        host.tick.next = self.cycles % TICK_CYCLES as u64 == TICK_CYCLES as u64 - 1;
        host.time_now.next = twice(self.cycles);
        host.last_stamp.next = twice(self.cycles * 3);
        host.last_number.next = twice(self.cycles * 5);
    }

    /// One clock cycle.
    fn step(&mut self) {
        self.inputs();
        self.host.clock.next = false.into();
        settle(self.host.as_mut());
        self.look_at_twin();
        let rx_taken = self.offered.is_some() && self.host.rx_ready.val();
        let beat = self.host.tx_valid.val().then(|| Beat {
            data: self.host.tx_data.val().to_u64(),
            keep: self.host.tx_keep.val().to_u64() as u8,
            last: self.host.tx_last.val(),
        });
        if let Some(shown) = self.shown {
            assert_eq!(
                beat,
                Some(shown),
                "cycle {}: a beat not yet taken was withdrawn or changed",
                self.cycles
            );
        }
        let tx_taken = beat.is_some() && self.host.tx_ready.val();
        self.shown = if tx_taken { None } else { beat };
        self.addresses = [self.host.ring_read_address.val().index(), self.addresses[0]];
        for index in 0..P {
            let ring = &mut self.rings[index];
            if self.host.watermark_request[index].val() && ring.watermark_in.is_none() && !self.done[index] {
                ring.watermark_in = Some(self.random.random_range(0..40));
            }
            let modulus = 2 * ring.capacity();
            let tail = self.host.ring_tail[index].val().to_u64() as usize;
            ring.tail += (tail + modulus - ring.tail % modulus) % modulus;
            assert!(ring.tail <= ring.lines.len(), "the tail passed the head");
        }
        for (name, strobe, value) in [
            ("time", self.host.time_set.val(), self.host.time_set_value.val().to_u64()),
            ("stamp", self.host.stamp_floor_set.val(), self.host.stamp_floor.val().to_u64()),
            ("number", self.host.number_floor_set.val(), self.host.number_floor.val().to_u64()),
            ("function", self.host.function_reset.val(), 0),
            ("card", self.host.card_reset.val(), 0),
            (
                "volume",
                self.host.volume_write.val(),
                self.host.volume_write_index.val().to_u64() << 32
                    | self.host.volume_write_word.val().to_u64(),
            ),
        ] {
            if strobe {
                self.strobes.push((name, value));
            }
        }
        self.host.clock.next = true.into();
        settle(self.host.as_mut());
        self.look_at_twin();
        if rx_taken {
            self.root.rx_taken();
            self.offered = None;
        }
        if let (Some(beat), true) = (beat, tx_taken) {
            self.tx_beats += 1;
            match self.root.take_tx(beat) {
                Ok(Some(event)) => self.happened(event),
                Ok(None) => {}
                Err(error) => self.errors.push(error),
            }
        }
        self.cycles += 1;
    }

    fn look_at_twin(&mut self) {
        if let Some(twin) = &mut self.twin {
            twin.event(self.host.as_ref()).unwrap_or_else(|mismatch| panic!("{mismatch}"));
        }
    }

    fn happened(&mut self, event: Event) {
        match event {
            Event::Completion(_) => {}
            Event::Message(index) => {
                assert!(!self.silent, "a message while there must be no DMA");
                let port = &mut self.ports[index];
                assert!(port.announced > port.at_message, "a message of port {index} with nothing new");
                port.at_message = port.announced;
                port.messages += 1;
                self.messages.push((index, self.cycles));
            }
            Event::Write { address, bytes } => {
                assert!(!self.silent, "a write while there must be no DMA");
                self.writes += 1;
                if let Some(index) = self.ports.iter().position(|port| port.mailbox == address) {
                    assert_eq!(bytes, 8);
                    self.announced(index);
                    return;
                }
                let end = address + bytes as u64;
                let index = self.ports.iter().position(|port| {
                    (port.ring.address..port.ring.address + port.size as u64).contains(&address)
                });
                let port = &mut self.ports[index.expect("a write outside the rings")];
                let place = port.ring.address + port.written % port.size as u64;
                assert_eq!(address, place, "data go where the last ones ended");
                assert!(end <= port.ring.address + port.size as u64, "beyond the ring's end");
                port.written += bytes as u64;
                assert!(port.written <= port.consumed + port.size as u64, "over what the host has not taken");
            }
        }
    }

    /// The mailbox was written: everything up to what it says must be there, and be whole records.
    fn announced(&mut self, index: usize) {
        let port = &mut self.ports[index];
        let offset = (port.mailbox - self.mailboxes.address) as usize;
        let produced = self.root.load(&self.mailboxes, offset).unwrap();
        assert_eq!(produced, port.written, "the mailbox says what was written");
        assert!(produced > port.announced, "an announcement of nothing");
        let ring = &self.before_reset.as_ref().unwrap_or(&self.rings)[index];
        let line_of = |bytes: u64| port.base + bytes as usize / 64;
        assert!(ring.ends.binary_search(&line_of(produced)).is_ok(), "not at a record's end");
        let memory = self.root.memory(&port.ring);
        for line in line_of(port.announced)..line_of(produced) {
            let place = (line - port.base) * 64 % port.size;
            let expected: Vec<u8> = ring.lines[line].iter().flat_map(|word| word.to_le_bytes()).collect();
            assert_eq!(memory[place..place + 64], expected, "line {line} of port {index}");
        }
        port.announced = produced;
    }

    fn run(&mut self, cycles: u64) {
        for _ in 0..cycles {
            self.step();
        }
    }

    fn finish_read(&mut self, read: Read) -> Result<u64, Refused> {
        for _ in 0..20_000 {
            if let Some(result) = self.root.completion_double(read) {
                return result;
            }
            self.step();
        }
        panic!("the read is not answered");
    }

    fn read(&mut self, offset: u32) -> u32 {
        let read = self.root.queue_read(offset);
        self.finish_read(read).unwrap() as u32
    }

    fn read_double(&mut self, offset: u32) -> u64 {
        let read = self.root.queue_reads(offset, 2);
        self.finish_read(read).unwrap()
    }

    fn write64(&mut self, offset: u32, value: u64) {
        if self.random.random_bool(0.5) {
            self.root.queue_write_double(offset, value);
        } else {
            self.root.queue_write(offset + 4, (value >> 32) as u32);
            self.root.queue_write(offset, value as u32);
        }
    }

    /// Everything queued has arrived and taken effect.
    fn flush(&mut self) {
        self.read(global::IDENTITY);
    }

    /// Tells the card its rings, mailboxes and vectors, and begins a session.
    fn bring_up(&mut self, flush_level: u32) {
        for index in 0..P {
            let (address, data) = (0xFEE0_0000 + index as u32 * 16, 0x4000 + index as u32);
            let entry = layout::pcie::MSIX_TABLE_OFFSET as u32 + index as u32 * 16;
            self.root.queue_write(entry, address);
            self.root.queue_write(entry + 4, 0);
            self.root.queue_write(entry + 8, data);
            self.root.queue_write(entry + 12, 0);
            let (ring, size, mailbox) =
                (self.ports[index].ring.address, self.ports[index].size, self.ports[index].mailbox);
            self.write64(at(index, port::RING_ADDRESS), ring);
            self.write64(at(index, port::MAILBOX_ADDRESS), mailbox);
            self.root.queue_write(at(index, port::RING_SIZE), size.ilog2());
            self.root.queue_write(at(index, port::FLUSH_LEVEL), flush_level);
            self.root.queue_write(at(index, port::CONTROL), PORT_DRAIN);
            let port = &mut self.ports[index];
            (port.written, port.announced, port.consumed, port.at_message) = (0, 0, 0, 0);
            port.base = self.rings[index].tail;
        }
        (self.silent, self.consuming) = (false, true);
        self.flush();
    }

    /// Random traffic on the rings and the host's side for `cycles`.
    fn traffic(&mut self, cycles: u64, rate: f64) {
        for _ in 0..cycles {
            for index in 0..P {
                if self.random.random_bool(rate) {
                    let lines = self.random.random_range(1..12);
                    if self.rings[index].room() > lines {
                        let Self { rings, random, .. } = self;
                        rings[index].commit(lines, random);
                        self.commit = true;
                    }
                }
                if self.consuming && self.random.random_bool(0.002) {
                    self.consume(index);
                }
            }
            self.step();
        }
    }

    fn consume(&mut self, index: usize) {
        let announced = self.ports[index].announced;
        let consumed = self.ports[index].consumed;
        if announced > consumed {
            let all = self.random.random_bool(0.7);
            let taken = if all { announced } else { consumed + (announced - consumed) / 128 * 64 };
            self.ports[index].consumed = taken;
            self.write64(at(index, port::CONSUMED), taken);
        }
    }

    /// Asks for a last drain and waits until everything committed is in host memory.
    fn drain_all(&mut self) {
        for index in 0..P {
            self.root.queue_write(at(index, port::COMMAND), PORT_FLUSH);
        }
        for _ in 0..200_000 {
            if (0..P).all(|index| {
                self.rings[index].tail == self.rings[index].lines.len()
                    && self.rings[index].watermark_in.is_none()
                    && !self.host.watermark_request[index].val()
            }) && self.root.is_quiet()
            {
                self.run(200);
                assert!(self.errors.is_empty(), "{:?}", self.errors);
                return;
            }
            for index in 0..P {
                self.consume(index);
            }
            self.step();
        }
        let state: Vec<_> = self.rings.iter().map(|ring| (ring.tail, ring.lines.len())).collect();
        panic!("not drained: tail and head {state:?}");
    }
}

/// A time whose halves are equal, so that a torn one shows.
fn twice(value: u64) -> Bits<64> {
    let low = value & 0xFFFF_FFFF;
    bits(low | low << 32)
}

#[test]
fn registers_reset_read_and_write() {
    let seed = seed();
    let mut bench = Bench::<4, 9, 7>::new(seed, 1);
    bench.ready_chance = 0.6;
    bench.offer_chance = 0.6;
    assert_eq!(bench.read(global::GEOMETRY), 4 | 16 << 8 | 12 << 16 | 16 << 24);
    let mut model = std::collections::BTreeMap::new();
    let mut written = Vec::new();
    let ports = (0..4).flat_map(|index| port::REGISTERS.iter().map(move |register| (at(index, 0), register)));
    for (base, register) in global::REGISTERS.iter().map(|register| (0, register)).chain(ports) {
        // Those that change by themselves have their own test.
        let by_itself = base == 0
            && [global::STATUS, global::TIME_NOW, global::LAST_STAMP, global::LAST_NUMBER, global::GEOMETRY]
                .contains(&register.offset)
            || base != 0 && register.access == Access::Ro && register.offset != port::PRODUCED;
        if by_itself {
            continue;
        }
        let count = if base == 0 && register.offset == global::VOLUME_TABLE { 16 } else { 1 };
        for word in 0..count {
            let offset = base + register.offset + word * 4;
            model.insert(offset, register.reset as u32);
            if register.bits == 64 {
                model.insert(offset + 4, (register.reset >> 32) as u32);
            }
            // Commands, and what would start a drain, are left alone here.
            if register.access == Access::Rw && !(base != 0 && register.offset == port::CONTROL) {
                written.push((offset, register.bits));
            }
        }
    }
    for round in 0..600 {
        for (&offset, &value) in &model {
            if round == 0 || bench.random.random_bool(0.01) {
                assert_eq!(bench.read(offset), value, "register {offset:#06x} in round {round}");
            }
        }
        let (offset, width) = written[bench.random.random_range(0..written.len())];
        let value: u64 = bench.random.random();
        if width == 64 {
            let way = bench.random.random_range(0..3);
            if way == 0 {
                // The upper half alone changes nothing yet.
                bench.root.queue_write(offset + 4, (value >> 32) as u32);
                assert_eq!(bench.read(offset + 4), model[&(offset + 4)], "before the lower half");
                bench.root.queue_write(offset, value as u32);
            } else {
                bench.write64(offset, value);
            }
            model.insert(offset, value as u32);
            model.insert(offset + 4, (value >> 32) as u32);
            assert_eq!(bench.read_double(offset), value);
        } else {
            bench.root.queue_write(offset, value as u32);
            model.insert(offset, value as u32);
        }
    }
    // What is read only stays.
    for offset in [global::IDENTITY, global::MAP_VERSION, global::GEOMETRY, at(1, port::PRODUCED)] {
        let before = bench.read(offset);
        bench.root.queue_write(offset, 0x5555_5555);
        assert_eq!(bench.read(offset), before);
    }
    assert_eq!(bench.read(0x7000), 0, "there is nothing");
    assert!(bench.errors.is_empty(), "{:?}", bench.errors);
}

#[test]
fn status_and_control_reach_the_card() {
    let mut bench = Bench::<4, 9, 7>::new(seed(), 1);
    bench.flush();
    for index in 0..4 {
        let locked = if index % 2 == 0 { 1 } else { 2 };
        assert_eq!(bench.read(at(index, port::STATUS)), locked | (3 + index as u32) << 16);
        assert_eq!(bench.read(at(index, port::LEAF_PHASE)), 0xFFFF_0000 + index as u32);
        let Bench { rings, random, .. } = &mut bench;
        rings[index].commit(index + 5, random);
        bench.step();
        assert_eq!(bench.read(at(index, port::RING_LEVEL)), index as u32 + 5);
        bench.root.queue_write(at(index, port::VOLUMES), 0x1_2340 + index as u32);
        bench.write64(at(index, port::DURABLE), 0x1122_3344_5566_7780 + index as u64);
        bench.flush();
        assert_eq!(bench.host.port_volumes[index].val(), bits(0x2340 + index as u64));
        assert_eq!(bench.host.durable_number[index].val(), bits(0x1122_3344_5566_7780 + index as u64));
    }
    for offset in [global::TIME_NOW, global::LAST_STAMP, global::LAST_NUMBER, at(2, port::LEAF_TIME)] {
        let (low, high) = (bench.read(offset), bench.read(offset + 4));
        assert_eq!(low, high, "the upper half is latched with the lower: {offset:#x}");
        bench.run(10);
        assert_ne!(bench.read(offset + 4), high, "the latch is for the next read only");
        let both = bench.read_double(offset);
        assert_eq!(both as u32, (both >> 32) as u32);
        let low = bench.read(offset);
        bench.read(global::IDENTITY);
        bench.run(10);
        assert_ne!(bench.read(offset + 4), low, "another read came between");
    }

    bench.strobes.clear();
    bench.write64(global::TIME_SET, 0x1111_2222_3333_4444);
    bench.root.queue_write(global::CONTROL, control::WRITES_OPEN | control::TIME_ENABLED);
    bench.flush();
    assert!(bench.host.writes_open.val() && bench.host.time_enable.val());
    assert_eq!(bench.read(global::STATUS), 3);
    bench.write64(global::TIME_SET, 5);
    bench.write64(global::STAMP_FLOOR, 0x9999_0000_0000_0007);
    bench.write64(global::NUMBER_FLOOR, 0x8888_0000_0000_0006);
    bench.root.queue_write(global::VOLUME_TABLE + 4 * 11, 0x8000_00FF);
    bench.root.queue_write(global::HOLD, 77);
    bench.flush();
    assert_eq!(bench.host.hold.val(), bits(77));
    assert_eq!(bench.host.quarantine.val(), bits(layout::registers::ticks(10_000_000) as u64));
    let expected = [
        ("time", 0x1111_2222_3333_4444),
        ("stamp", 0x9999_0000_0000_0007),
        ("number", 0x8888_0000_0000_0006),
        ("volume", 11 << 32 | 0x8000_00FF),
    ];
    assert_eq!(bench.strobes, expected, "and no time while the time base runs");
    let read = bench.root.queue_reads(at(1, port::SOURCE_TABLE), 2);
    assert!(bench.finish_read(read).is_ok());
    assert!(bench.errors.is_empty(), "{:?}", bench.errors);
}

#[test]
fn counters_and_sources_come_two_cycles_after_their_address() {
    let mut bench = Bench::<4, 9, 7>::new(seed(), 1);
    for index in 0..4 {
        for entry in 0..32 {
            let read = bench.root.queue_read(at(index, port::COUNTERS + entry * 4));
            let mut seen = [0; 2];
            let value = loop {
                if let Some(result) = bench.root.completion(read) {
                    break result.unwrap();
                }
                // The memory behind the address, with its two registers.
                let now = bench.host.counter_address.val().to_u64();
                let counter = seen[1];
                seen = [now, seen[0]];
                bench.step_with(|host| host.counter_data[index].next = bits(counter * 3 + 1000));
            };
            assert_eq!(value, entry * 3 + 1000);
        }
        for entry in 0..8u32 {
            let read = bench.root.queue_reads(at(index, port::SOURCE_TABLE + entry * 8), 2);
            let mut seen = [0; 2];
            let value = loop {
                if let Some(result) = bench.root.completion_double(read) {
                    break result.unwrap();
                }
                let now = bench.host.source_address.val().to_u64();
                let source = seen[1];
                seen = [now, seen[0]];
                bench.step_with(|host| host.source_data[index].next = bits(source | 1 << 48));
            };
            assert_eq!(value, entry as u64 | 1 << 48);
        }
    }
}

impl<const P: usize, const A: usize, const H: usize> Bench<P, A, H> {
    /// A step with further inputs set. The address shown after the last edge is this cycle's.
    fn step_with(&mut self, set: impl FnOnce(&mut Host<P, A, H>)) {
        set(&mut self.host);
        self.step();
    }
}

#[test]
fn malformed_and_foreign_requests() {
    let mut bench = Bench::<4, 9, 7>::new(seed(), 1);
    bench.root.queue_write(global::RETRY, 1234);
    bench.flush();
    assert_eq!(bench.read(global::STATUS), 0);
    // Partial byte enables and wrong lengths are ignored and noted.
    let write = layout::pcie::fmt_type::MEMORY_WRITE_32;
    for (enables, data) in
        [(0x07, vec![9]), (0x00, vec![9]), (0x1F, vec![9]), (0x7F, vec![9; 2]), (0xFF, vec![9; 3])]
    {
        let packet = bench.root.request(write, global::RETRY, 0, enables, &data);
        bench.root.queue_packet(packet);
        assert_eq!(bench.read(global::RETRY), 1234, "{enables:#x} {data:?}");
        assert_eq!(bench.read(global::STATUS), 4);
        bench.root.queue_write(global::COMMAND, command::CARD_RESET);
        assert_eq!(bench.read(global::STATUS), 0, "card reset clears it");
        bench.root.queue_write(global::RETRY, 1234);
    }
    // Long reads, and reads beyond the end of the BAR.
    for (offset, dws) in [(0, 3), (0x1000, 64), (0xFFFC, 2)] {
        let read = bench.root.queue_reads(offset, dws);
        assert_eq!(bench.finish_read(read), Err(Refused { status: 1 }));
    }
    let read = bench.root.queue_reads(0xFFF8, 2);
    assert_eq!(bench.finish_read(read), Ok(0));
    // Messages and stray completions are swallowed; I/O and atomics are refused.
    for packet in [
        vec![0x3400_0000, 0x0008_0000 | 0x50, 0, 0],
        vec![0x7400_0001, 0x0008_0000 | 0x50, 0, 0, 0x1234],
        vec![0x4A00_0001, 0x0008_0004, 0x0500_0000, 7],
        vec![0x0A00_0000, 0x0008_0004, 0x0500_0000],
    ] {
        bench.root.queue_packet(packet);
        bench.flush();
        assert!(bench.errors.is_empty(), "{:?}", bench.errors);
    }
    for (packet, tag) in [
        (vec![0x0200_0001, 0x0008_700F, 0x0000_1000], 0x70),
        (vec![0x4200_0001, 0x0008_710F, 0x0000_1000, 5], 0x71),
        (vec![0x4C00_0001, 0x0008_720F, 0x0000_1000, 5], 0x72),
        (vec![0x6E00_0004, 0x0008_730F, 1, 0x0000_1000, 5, 6, 7, 8], 0x73),
        (vec![0x0100_0001, 0x0008_740F, 0x0000_1000], 0x74),
    ] {
        bench.root.queue_packet(packet.clone());
        bench.flush();
        // The root has no such read outstanding, and shows the packet.
        match bench.errors.pop() {
            Some(RootError::Malformed { dws, .. }) => {
                assert_eq!(dws, [0x0A00_0000, (CARD_ID as u32) << 16 | 1 << 13 | 4, 0x0008_0000 | tag << 8]);
            }
            other => panic!("{packet:x?}: {other:?}"),
        }
    }
    // Byte enables of a read show in byte count and lower address (PCIe 2.3.1.1), and traffic class and
    // attributes come back.
    let read = layout::pcie::fmt_type::MEMORY_READ_32;
    for (enables, dws, lower, count) in [
        (0x01, 1, 0, 1),
        (0x08, 1, 3, 1),
        (0x06, 1, 1, 2),
        (0x0E, 1, 1, 3),
        (0x09, 1, 0, 4),
        (0x00, 1, 0, 1),
        (0x3C, 2, 2, 4),
        (0x1F, 2, 0, 5),
        (0xF8, 2, 3, 5),
    ] {
        let mut packet = bench.root.request(read, 0, 0x55, enables, &[]);
        packet[0] |= dws | 5 << 20 | 1 << 12;
        bench.root.queue_packet(packet);
        bench.flush();
        match bench.errors.pop() {
            Some(RootError::Malformed { dws: answer, .. }) => {
                assert_eq!(answer[0], 0x4A00_0000 | dws | 5 << 20 | 1 << 12);
                assert_eq!(answer[1], (CARD_ID as u32) << 16 | count, "enables {enables:#x}");
                assert_eq!(answer[2], 0x0008_5500 | lower, "enables {enables:#x}");
                assert_eq!(answer.len() as u32, 3 + dws);
            }
            other => panic!("{other:?}"),
        }
    }
    // A packet that ends early, and a poisoned one.
    let whole = bench.root.request(write, global::RETRY & !7, 0, 0xFF, &[9, 9]);
    for length in 2..whole.len() {
        bench.root.queue_write(global::COMMAND, command::CARD_RESET);
        bench.root.queue_packet(whole[..length].to_vec());
        assert_eq!(
            bench.read(global::RETRY),
            layout::registers::ticks(10_000),
            "{length} DWs of {}",
            whole.len()
        );
        assert_eq!(bench.read(global::STATUS), 4);
    }
    bench.root.queue_write(global::RETRY, 1234);
    let mut poisoned = bench.root.request(write, global::RETRY, 0, 0x0F, &[9]);
    poisoned[0] |= 1 << 14;
    bench.root.queue_packet(poisoned);
    assert_eq!(bench.read(global::RETRY), 1234);
    assert_eq!(beats(&[1, 2, 3]).len(), 2);
    assert!(bench.errors.is_empty(), "{:?}", bench.errors);
}

fn random_drains<const P: usize, const A: usize, const H: usize>(seed: u64, twin: bool) {
    let mut random = ChaCha8Rng::seed_from_u64(seed ^ 0x5EED);
    let max_payload = random.random_range(0..4);
    let mut bench = Bench::<P, A, H>::new(seed, max_payload);
    if twin {
        bench.twin = Some(CoCheck::new(bench.host.as_ref(), &default_cache()).unwrap());
    }
    bench.ready_chance = [1.0, 0.9, 0.5][random.random_range(0..3)];
    bench.offer_chance = [1.0, 0.3][random.random_range(0..2)];
    bench.root.queue_write(global::FLUSH_PERIOD, random.random_range(0..12));
    bench.root.queue_write(global::INTERRUPT_PERIOD, random.random_range(0..4));
    let level = random.random_range(0..1 << (A - 3));
    bench.bring_up(level);
    let rate = [0.03, 0.01, 0.001][random.random_range(0..3)];
    for _ in 0..4 {
        bench.traffic(6000, rate);
        let index = bench.random.random_range(0..P);
        match bench.random.random_range(0..4) {
            0 => bench.root.queue_write(at(index, port::COMMAND), PORT_FLUSH),
            1 => bench.root.queue_write(at(index, port::CONTROL), 0),
            2 => bench.host.bus_master_enable.next = false,
            _ => {}
        }
        bench.traffic(1500, rate);
        bench.root.queue_write(at(index, port::CONTROL), PORT_DRAIN);
        bench.host.bus_master_enable.next = true;
    }
    bench.drain_all();
    for index in 0..P {
        let port = &bench.ports[index];
        assert_eq!(port.written as usize / 64, bench.rings[index].lines.len(), "every line arrived");
        let (announced, consumed) = (port.announced, port.consumed);
        assert_eq!(bench.read_double(at(index, port::PRODUCED)), announced);
        assert_eq!(bench.read_double(at(index, port::CONSUMED)), consumed);
        assert_eq!(bench.read(at(index, port::RING_LEVEL)), 0);
    }
    if let Some(twin) = bench.twin.take() {
        let (events, edges) = twin.finish().unwrap_or_else(|mismatch| panic!("{mismatch}"));
        println!("{events} events, {edges} cycles are the same in RustHDL and Verilator");
    }
}

#[test]
fn random_drains_are_exact() {
    let seed = seed();
    for round in 0..12 {
        random_drains::<4, 9, 7>(seed.wrapping_add(round), false);
        random_drains::<1, 7, 5>(seed.wrapping_add(round), false);
        random_drains::<3, 12, 10>(seed.wrapping_add(round), false);
    }
    random_drains::<8, 8, 6>(seed, false);
    // As large as the smallest ring of the host.
    random_drains::<1, 13, 11>(seed, false);
}

#[test]
fn verilog_is_clean_and_does_the_same() {
    let mut host = Host::<3, 12, 10>::new();
    host.connect_all();
    // Latches and combinational loops are among the warnings.
    lint(&generate_verilog(&host), &default_cache()).unwrap();
    random_drains::<3, 12, 10>(seed(), true);
}

#[test]
fn a_full_host_ring_stops_only_its_port() {
    let mut bench = Bench::<3, 12, 10>::new(seed(), 1);
    bench.bring_up(16);
    // The host takes nothing from port 0: it gets a ring full at most, and port 1 goes on, of two that are busy.
    let size = bench.ports[0].size;
    for _ in 0..40_000 {
        for index in 0..2 {
            if bench.rings[index].room() > 9 {
                let Bench { rings, random, .. } = &mut bench;
                rings[index].commit(8, random);
            }
        }
        if bench.random.random_bool(0.01) {
            bench.consume(1);
        }
        bench.step();
    }
    assert!(bench.ports[0].written as usize <= size);
    assert!(bench.ports[0].written as usize > size - 32768, "{}", bench.ports[0].written);
    assert!(bench.ports[1].written > 3 * 40_000, "{} bytes in 40,000 cycles", bench.ports[1].written);
    bench.drain_all();
}

#[test]
fn bus_master_off_loses_nothing() {
    let mut bench = Bench::<4, 9, 7>::new(seed(), 0);
    bench.bring_up(4);
    bench.traffic(5000, 0.02);
    for _ in 0..20 {
        bench.host.bus_master_enable.next = false;
        // What is in the output register was begun before.
        bench.run(40);
        bench.silent = true;
        bench.traffic(300, 0.02);
        assert_eq!(bench.read(global::IDENTITY), layout::registers::IDENTITY_VALUE, "completions go on");
        bench.silent = false;
        bench.host.bus_master_enable.next = true;
        let cycles = bench.random.random_range(1..200);
        bench.traffic(cycles, 0.02);
    }
    bench.drain_all();
}

#[test]
fn interrupts_mask_pend_and_are_moderated() {
    let mut bench = Bench::<4, 9, 7>::new(seed(), 1);
    let table = layout::pcie::MSIX_TABLE_OFFSET as u32;
    let pending = layout::pcie::MSIX_PENDING_OFFSET as u32;
    for vector in 0..4 {
        assert_eq!(bench.read(table + vector * 16 + 12), 1, "masked after reset");
        assert_eq!(bench.read(table + vector * 16), 0);
    }
    bench.root.queue_write(global::INTERRUPT_PERIOD, 0);
    bench.root.queue_write(global::FLUSH_PERIOD, 0);
    bench.bring_up(1);
    assert_eq!(bench.read(table + 2 * 16 + 8), 0x4002);
    let commit = |bench: &mut Bench<4, 9, 7>, index: usize| {
        let Bench { rings, random, .. } = bench;
        rings[index].commit(1, random);
        bench.run(200);
        assert_eq!(bench.ports[index].announced as usize / 64, bench.rings[index].lines.len());
    };
    commit(&mut bench, 2);
    assert_eq!(bench.ports[2].messages, 1);

    // Masked vector: pending, and sent when it is unmasked.
    bench.root.queue_write(table + 2 * 16 + 12, 1);
    commit(&mut bench, 2);
    commit(&mut bench, 1);
    assert_eq!((bench.ports[1].messages, bench.ports[2].messages), (1, 1));
    assert_eq!(bench.read(pending), 1 << 2);
    bench.root.queue_write(table + 2 * 16 + 12, 0);
    bench.run(200);
    assert_eq!(bench.ports[2].messages, 2);
    assert_eq!(bench.read(pending), 0);

    // The whole function masked, then disabled.
    bench.host.msix_mask.next = true;
    commit(&mut bench, 0);
    commit(&mut bench, 3);
    assert_eq!(bench.read(pending), 1 | 1 << 3);
    bench.host.msix_mask.next = false;
    bench.run(200);
    assert_eq!((bench.ports[0].messages, bench.ports[3].messages), (1, 1));
    bench.host.msix_enable.next = false;
    commit(&mut bench, 0);
    assert_eq!(bench.ports[0].messages, 1);
    bench.host.msix_enable.next = true;
    bench.run(200);
    assert_eq!(bench.ports[0].messages, 2);

    // What the host has taken meanwhile needs no interrupt any more.
    bench.root.queue_write(table + 12, 1);
    commit(&mut bench, 0);
    bench.ports[0].consumed = bench.ports[0].announced;
    let consumed = bench.ports[0].consumed;
    bench.write64(at(0, port::CONSUMED), consumed);
    assert_eq!(bench.read(pending), 0);
    bench.root.queue_write(table + 12, 0);
    bench.run(200);
    assert_eq!(bench.ports[0].messages, 2);

    // Moderation.
    let period = 5;
    bench.root.queue_write(global::INTERRUPT_PERIOD, period);
    bench.flush();
    bench.messages.clear();
    for _ in 0..60 {
        commit(&mut bench, 0);
        commit(&mut bench, 3);
        let level = bench.ports[0].announced;
        bench.ports[0].consumed = level - 64;
        bench.write64(at(0, port::CONSUMED), level - 64);
    }
    for vector in [0, 3] {
        let times: Vec<u64> =
            bench.messages.iter().filter(|message| message.0 == vector).map(|m| m.1).collect();
        assert!(times.len() > 20, "{} messages", times.len());
        for pair in times.windows(2) {
            let gap = pair[1] - pair[0];
            assert!(gap + 8 >= (period * TICK_CYCLES) as u64, "{gap} cycles between interrupts");
            assert!(gap <= ((period + 1) * TICK_CYCLES) as u64 + 450, "{gap} cycles between interrupts");
        }
    }
    assert!(bench.errors.is_empty(), "{:?}", bench.errors);
}

#[test]
fn watermarks_come_with_the_period_where_anything_was_committed_anywhere() {
    let mut bench = Bench::<3, 12, 10>::new(seed(), 1);
    let ticks = 8;
    bench.root.queue_write(global::FLUSH_PERIOD, ticks);
    bench.bring_up(1000);
    bench.root.queue_write(at(2, port::CONTROL), 0);
    let period = (ticks * TICK_CYCLES) as u64;
    bench.run(3 * period);
    assert!(bench.rings.iter().all(|ring| ring.watermarks == 0), "nothing was committed");
    let Bench { rings, random, .. } = &mut bench;
    rings[1].commit(3, random);
    bench.commit = true;
    bench.run(5 * period);
    let marks: Vec<_> = bench.rings.iter().map(|ring| ring.watermarks).collect();
    assert_eq!(marks, [1, 1, 0], "one on each enabled port, idle or not");
    assert_eq!(bench.ports[0].announced, 64);
    assert_eq!(bench.ports[1].announced, 4 * 64);
    // On request, whether anything was committed or not.
    bench.root.queue_write(at(0, port::COMMAND), PORT_FLUSH);
    bench.root.queue_write(at(2, port::COMMAND), PORT_FLUSH);
    bench.run(period / 2);
    let marks: Vec<_> = bench.rings.iter().map(|ring| ring.watermarks).collect();
    assert_eq!(marks, [2, 1, 0], "and not on a port that isn't drained");
    assert_eq!(bench.ports[0].announced, 128);
}

#[test]
fn function_reset_at_any_cycle() {
    let seed = seed();
    for round in 0..40 {
        let mut bench = Bench::<4, 9, 7>::new(seed.wrapping_add(round), round as u8 % 2);
        bench.ready_chance = [1.0, 0.4][round as usize / 2 % 2];
        bench.root.queue_write(global::FLUSH_PERIOD, 4);
        bench.write64(global::SESSION, 0xAAAA_BBBB_CCCC_DDDD);
        bench.root.queue_write(global::RETRY, 4711);
        bench.root.queue_write(global::CONTROL, 3);
        for session in 0..3 {
            bench.bring_up(4);
            let cycles = bench.random.random_range(200..1500);
            bench.traffic(cycles, 0.03);
            // The host closes the session: nothing that it did before is of interest any more.
            bench.consuming = false;
            bench.root.queue_write(global::COMMAND, command::FUNCTION_RESET);
            let read = bench.root.queue_read(global::STATUS);
            while bench.root.completion(read).is_none_or(|status| {
                assert_eq!(status, Ok(control::TIME_ENABLED), "writes are closed, the time base goes on");
                false
            }) {
                bench.traffic(1, 0.03);
            }
            bench.silent = true;
            assert_eq!(bench.read_double(global::SESSION), 0xAAAA_BBBB_CCCC_DDDD);
            assert_eq!(bench.read(global::RETRY), 4711);
            for index in 0..4 {
                for offset in [port::RING_ADDRESS, port::MAILBOX_ADDRESS, port::CONSUMED, port::PRODUCED] {
                    assert_eq!(bench.read_double(at(index, offset)), 0, "{offset:#x}");
                }
                assert_eq!(bench.read(at(index, port::CONTROL)), 0);
                assert_eq!(bench.read(at(index, port::FLUSH_LEVEL)), 128);
                let entry = layout::pcie::MSIX_TABLE_OFFSET as u32 + index as u32 * 16;
                assert_eq!((bench.read(entry), bench.read(entry + 12)), (0, 1));
            }
            bench.traffic(1000, 0.03);
            assert_eq!(bench.strobes.iter().filter(|strobe| strobe.0 == "function").count(), session + 1);
            bench.root.queue_write(global::CONTROL, 3);
        }
        // What was announced is gone from the card, everything else comes in the next session.
        bench.bring_up(4);
        bench.drain_all();
    }
}

#[test]
fn card_reset_is_as_power_up() {
    let mut bench = Bench::<4, 9, 7>::new(seed(), 1);
    bench.bring_up(4);
    bench.root.queue_write(global::RETRY, 1);
    bench.write64(global::SESSION, 99);
    bench.traffic(3000, 0.02);
    bench.consuming = false;
    bench.root.queue_write(global::COMMAND, command::CARD_RESET);
    while !bench.strobes.iter().any(|strobe| strobe.0 == "card") {
        bench.step();
    }
    let empty = (0..4).map(|_| Ring::new(1 << 9)).collect();
    bench.before_reset = Some(std::mem::replace(&mut bench.rings, empty));
    assert_eq!(bench.read_double(global::SESSION), 0);
    bench.before_reset = None;
    bench.silent = true;
    assert_eq!(bench.read(global::RETRY), layout::registers::ticks(10_000));
    assert!(bench.host.ring_tail.iter().all(|tail| tail.val() == bits(0)));
    bench.run(500);
    bench.bring_up(4);
    bench.traffic(3000, 0.02);
    bench.drain_all();
}

#[test]
fn a_long_drain_fills_the_link() {
    for (max_payload, high) in [(0, false), (0, true), (1, false), (1, true)] {
        let mut bench = Bench::<3, 12, 10>::new(1, max_payload);
        for port in &mut bench.ports {
            let size = 65536;
            port.size = size;
            port.ring = if high { bench.root.map_high(size) } else { bench.root.map_low(size) };
        }
        let Bench { rings, random, .. } = &mut bench;
        for ring in rings {
            ring.commit(512, random);
        }
        bench.step();
        bench.bring_up(0);
        // Past the beginning, and before the end.
        while bench.writes < 20 {
            bench.step();
        }
        let (beats, bytes) = (bench.tx_beats, bench.ports.iter().map(|port| port.written).sum::<u64>());
        bench.run(4000);
        let used = (bench.tx_beats - beats) as f64 / 4000.0;
        let rate = (bench.ports.iter().map(|port| port.written).sum::<u64>() - bytes) as f64 / 4000.0;
        println!(
            "payload {} bytes, {} DWs of header: {:.1} % of the cycles carry a beat, {rate:.3} bytes a cycle",
            128 << max_payload,
            3 + high as u32,
            used * 100.0
        );
        assert!(used >= 0.9, "{used}");
        bench.drain_all();
    }
}

#[test]
fn ports_are_drained_in_turn() {
    let mut bench = Bench::<3, 12, 10>::new(seed(), 0);
    let Bench { rings, random, .. } = &mut bench;
    for ring in rings {
        ring.commit(512, random);
    }
    bench.step();
    bench.bring_up(0);
    let mut order = VecDeque::new();
    let mut before: Vec<u64> = bench.ports.iter().map(|port| port.written).collect();
    for _ in 0..6000 {
        bench.step();
        for (index, port) in bench.ports.iter().enumerate() {
            if port.written != before[index] {
                before[index] = port.written;
                order.push_back(index);
            }
        }
    }
    assert!(order.len() > 200, "{} writes", order.len());
    let order: Vec<_> = order.into_iter().skip(10).take(180).collect();
    for three in order.chunks_exact(3) {
        let mut sorted = three.to_vec();
        sorted.sort_unstable();
        assert_eq!(sorted, [0, 1, 2], "{order:?}");
    }
}

#[test]
#[ignore = "prints figures; run with --release --ignored --nocapture"]
fn speed() {
    let mut bench = Bench::<4, 9, 7>::new(1, 1);
    bench.bring_up(16);
    bench.run(2000);
    let cycles = |name: &str, host: &mut Host<4, 9, 7>, data: bool| {
        let start = std::time::Instant::now();
        let count = 200_000u64;
        for cycle in 0..count {
            // The card samples its time base once a tick.
            host.time_now.next = bits(cycle / TICK_CYCLES as u64);
            if data {
                for index in 0..4 {
                    host.ring_head[index].next = bits(cycle / 8 % 128);
                }
            }
            host.clock.next = false.into();
            settle(host);
            host.clock.next = true.into();
            settle(host);
        }
        println!("{name}: {:.0} cycles/s", count as f64 / start.elapsed().as_secs_f64());
    };
    bench.host.rx_valid.next = false;
    bench.host.tx_ready.next = true;
    cycles("idle", &mut bench.host, false);
    cycles("all ports committing a line every 8 cycles", &mut bench.host, true);
}
