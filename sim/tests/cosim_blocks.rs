//! Blocks in RustHDL's simulation beside their Verilated Verilog, on random stimulus, event by event.
//!
//! A run prints its seed; `CHRONO_SEED` replays one.

#![allow(missing_docs)] // The tops here only rename the ports of the blocks inside.

use hdl::leaf_clock::{LeafClock, NOMINAL_INCREMENT};
use hdl::prelude::*;
use hdl::time_base::{TimeBase, TIME_INCREMENT};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sim::co_check::{replay, speed, CoCheck, Recorder};
use sim::verilator::{default_cache, lint, Model};

const CYCLES: u64 = 120_000;

fn random() -> ChaCha8Rng {
    let seed = std::env::var("CHRONO_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    println!("seed {seed} (CHRONO_SEED={seed} replays)");
    ChaCha8Rng::seed_from_u64(seed)
}

fn any_bits<const N: usize>(random: &mut ChaCha8Rng) -> Bits<N> {
    // All widths of numbers, so that upper halves are zero, one and anything.
    Bits::wrap(random.random::<u128>() >> random.random_range(0..128))
}

logic_block! {
    /// A RAM as a top.
    #[derive(Default)]
    pub struct RamTop {
        pub write_clock: Signal<In, Clock>,
        pub read_clock: Signal<In, Clock>,
        pub read_address: Signal<In, Bits<5>>,
        pub read_data: Signal<Out, Bits<72>>,
        pub write_address: Signal<In, Bits<5>>,
        pub write_data: Signal<In, Bits<72>>,
        pub write_enable: Signal<In, bool>,
        ram: Ram<72, 5>,
    }
}

impl Logic for RamTop {
    #[hdl_gen]
    fn update(&mut self) {
        self.ram.write_clock.next = self.write_clock.val();
        self.ram.read_clock.next = self.read_clock.val();
        self.ram.read_address.next = self.read_address.val();
        self.ram.write_address.next = self.write_address.val();
        self.ram.write_data.next = self.write_data.val();
        self.ram.write_enable.next = self.write_enable.val();
        self.read_data.next = self.ram.read_data.val();
    }
}

logic_block! {
    /// A running CRC as a top.
    #[derive(Default)]
    pub struct CrcTop {
        pub clock: Signal<In, Clock>,
        pub word: Signal<In, Bits<64>>,
        pub start: Signal<In, bool>,
        pub crc: Signal<Out, Bits<32>>,
        step: Crc32cStep,
        state: Dff<Bits<32>>,
    }
}

impl Logic for CrcTop {
    #[hdl_gen]
    fn update(&mut self) {
        dff_setup!(self, clock, state);
        self.step.word.next = self.word.val();
        self.step.state.next = self.state.q.val();
        if self.start.val() {
            self.step.state.next = bits::<32>(0xFFFF_FFFFu64);
        }
        self.state.d.next = self.step.result.val();
        self.crc.next = self.state.q.val();
    }
}

logic_block! {
    /// Time base and two leaves, each on its own clock.
    #[derive(Default)]
    pub struct Clocks {
        pub time_clock: Signal<In, Clock>,
        pub clock: [Signal<In, Clock>; 2],
        pub nominal: Signal<In, Bits<40>>,
        pub rate: Signal<In, Bits<40>>,
        pub enable: Signal<In, bool>,
        pub set_toggle: Signal<In, bool>,
        pub set_time: Signal<In, Bits<64>>,
        /// Keeps what is broadcast from leaf 1.
        pub mute: Signal<In, bool>,
        pub now_ns: Signal<Out, Bits<64>>,
        pub time_ns: [Signal<Out, Bits<64>>; 2],
        pub locked: [Signal<Out, bool>; 2],
        pub holdover: [Signal<Out, bool>; 2],
        pub jammed: [Signal<Out, bool>; 2],
        pub error_bound: [Signal<Out, Bits<16>>; 2],
        pub phase: [Signal<Out, Bits<32>>; 2],
        base: TimeBase,
        leaf: [LeafClock; 2],
    }
}

impl Logic for Clocks {
    #[hdl_gen]
    fn update(&mut self) {
        self.base.clock.next = self.time_clock.val();
        self.base.rate.next = self.rate.val();
        self.base.enable.next = self.enable.val();
        self.base.set_toggle.next = self.set_toggle.val();
        self.base.set_time.next = self.set_time.val();
        self.now_ns.next = self.base.now_ns.val();
        for i in 0..2 {
            self.leaf[i].clock.next = self.clock[i].val();
            self.leaf[i].nominal.next = self.nominal.val();
            self.leaf[i].broadcast_toggle.next = self.base.broadcast_toggle.val();
            self.leaf[i].broadcast_time.next = self.base.broadcast_time.val();
            self.leaf[i].broadcast_increment.next = self.base.broadcast_increment.val();
            self.leaf[i].broadcast_epoch.next = self.base.broadcast_epoch.val();
            self.time_ns[i].next = self.leaf[i].time_ns.val();
            self.locked[i].next = self.leaf[i].locked.val();
            self.holdover[i].next = self.leaf[i].holdover.val();
            self.jammed[i].next = self.leaf[i].jammed.val();
            self.error_bound[i].next = self.leaf[i].error_bound.val();
            self.phase[i].next = self.leaf[i].phase.val();
        }
        if self.mute.val() {
            self.leaf[1].broadcast_toggle.next = false;
        }
    }
}

/// Lints a block, runs it by `set` for some cycles with its twin beside it.
fn check<B: Block + hdl::block_ports::Ports>(
    block: &mut B,
    clock: impl Fn(&mut B) -> &mut Signal<In, Clock>,
    mut set: impl FnMut(&mut B),
) {
    block.connect_all();
    lint(&generate_verilog(block), &default_cache()).unwrap();
    let mut twin = CoCheck::new(block, &default_cache()).unwrap();
    settle(block);
    twin.event(block).unwrap();
    for _ in 0..CYCLES {
        set(block);
        for level in [false, true] {
            clock(block).next = level.into();
            settle(block);
            twin.event(block).unwrap();
        }
    }
    let (events, edges) = twin.finish().unwrap();
    println!("{events} events, {edges} cycles: no difference");
    assert_eq!(edges, CYCLES);
}

#[test]
fn fifo() {
    let mut random = random();
    let mut step = 0;
    check(
        &mut Fifo::<40, 4>::default(),
        |f| &mut f.clock,
        |fifo| {
            step += 1;
            fifo.data.next = any_bits(&mut random);
            fifo.push.next = random.random_bool(if step / 500 % 2 == 0 { 0.7 } else { 0.3 });
            fifo.pop.next = random.random_bool(0.5);
            fifo.clear.next = random.random_bool(0.001);
        },
    );
}

#[test]
fn ram() {
    let mut random = random();
    let mut block = RamTop::default();
    check(
        &mut block,
        |b| &mut b.write_clock,
        |b| {
            // The read clock's edges fall anywhere but on the write clock's: it is set with that one low.
            b.read_clock.next = random.random_bool(0.5).into();
            b.read_address.next = any_bits(&mut random);
            b.write_address.next = any_bits(&mut random);
            b.write_data.next = any_bits(&mut random);
            b.write_enable.next = random.random_bool(0.5);
        },
    );
}

#[test]
fn crc() {
    let mut random = random();
    check(
        &mut CrcTop::default(),
        |b| &mut b.clock,
        |b| {
            b.word.next = any_bits(&mut random);
            b.start.next = random.random_bool(0.1);
        },
    );
}

/// Runs the clocks, whose edges never coincide, for a number of time-clock cycles.
fn run_clocks(block: &mut Clocks, random: &mut ChaCha8Rng, cycles: u64, mut event: impl FnMut(&Clocks)) {
    // Half periods in ps: 8 · 64/63 ns, 8 ns + 200 ppm, 8 ns; phases that keep edges apart.
    const HALVES: [u64; 3] = [4063, 4001, 4000];
    let mut next = [1u64, 1002, 2003];
    let mut levels = [false; 3];
    let mut done = 0;
    block.rate.next = bits(TIME_INCREMENT);
    block.nominal.next = bits(NOMINAL_INCREMENT);
    settle(block);
    event(block);
    while done < cycles {
        let first = (0..3).min_by_key(|&i| next[i]).unwrap();
        next[first] += HALVES[first];
        levels[first] = !levels[first];
        match first {
            0 => block.time_clock.next = levels[0].into(),
            leaf => block.clock[leaf - 1].next = levels[leaf].into(),
        }
        if first == 0 && !levels[0] {
            done += 1;
            match done {
                100 => block.set_time.next = bits(random.random::<u64>() >> 3),
                110 => block.set_toggle.next = true,
                120 => block.enable.next = true,
                _ => {}
            }
            // Deaf for a while: for certain once they have locked, then at random. A new time; another rate.
            if done % 10_000 == 0 && done >= 40_000 {
                block.mute.next = done == 40_000 || random.random_bool(0.5);
            }
            if done % 50_000 == 0 {
                block.set_time.next = bits(random.random::<u64>() >> 3);
                block.set_toggle.next = !block.set_toggle.val();
                block.rate.next = bits(TIME_INCREMENT + random.random_range(0..1 << 20));
            }
        }
        settle(block);
        event(block);
    }
}

#[test]
fn time_base_and_leaf_clocks() {
    let mut random = random();
    let mut block = Clocks::default();
    block.connect_all();
    lint(&generate_verilog(&block), &default_cache()).unwrap();
    let mut twin = CoCheck::new(&block, &default_cache()).unwrap();
    let (mut locked, mut holdover) = (0u64, 0u64);
    run_clocks(&mut block, &mut random, CYCLES, |block| {
        locked += block.locked[0].val() as u64;
        holdover += block.holdover[1].val() as u64;
        twin.event(block).unwrap();
    });
    let (events, edges) = twin.finish().unwrap();
    println!("{events} events, {edges} cycles of the time clock: no difference");
    assert!(edges >= CYCLES - 1 && locked > 0 && holdover > 0, "{edges} {locked} {holdover}");
}

/// The check can fail: a trace with one output changed in one event is found out, at that event.
#[test]
fn a_difference_is_found_where_it_is() {
    let mut random = random();
    let mut block = Clocks::default();
    block.connect_all();
    let mut recorder = Recorder::new(&block);
    let mut count = 0;
    let mut lie_at = 0;
    run_clocks(&mut block, &mut random, 3000, |block| {
        recorder.event(block);
        count += 1;
        if count == 10_000 {
            lie_at = recorder.trace().bytes.len();
        }
    });
    let honest = recorder.trace().clone();
    let mut model = Model::of(&Clocks::default_connected(), &default_cache()).unwrap();
    assert_eq!(replay(&honest, &mut model), Ok(3000));
    let mut model = Model::of(&Clocks::default_connected(), &default_cache()).unwrap();
    println!("Verilator alone: {:.0} k cycles/s of the time clock", speed(&honest, &mut model) / 1e3);
    // From event 10,000 on, the first change of an output is one off.
    let mut lie = honest.clone();
    let mut at = lie_at;
    let port = loop {
        let count = u16::from_le_bytes([lie.bytes[at], lie.bytes[at + 1]]);
        at += 2;
        let mut found = None;
        for _ in 0..count {
            let number = u16::from_le_bytes([lie.bytes[at], lie.bytes[at + 1]]) as usize;
            at += 2;
            if found.is_none() && lie.ports[number].direction == hdl::block_ports::Direction::Out {
                lie.bytes[at] ^= 1;
                found = Some(lie.ports[number].name.clone());
            }
            at += lie.ports[number].bits.div_ceil(8);
        }
        if let Some(port) = found {
            break port;
        }
    };
    let mut model = Model::of(&Clocks::default_connected(), &default_cache()).unwrap();
    let mismatch = replay(&lie, &mut model).unwrap_err();
    println!("as it should be: {mismatch}");
    assert!(mismatch.event >= 10_000 && mismatch.event < 10_010, "{mismatch}");
    assert_eq!(mismatch.port, port);
    assert_eq!(mismatch.expected ^ 1, mismatch.found);
}

impl Clocks {
    fn default_connected() -> Self {
        let mut block = Self::default();
        block.connect_all();
        block
    }
}
