//! Carries out requests on the registers of `layout::registers`.

use super::receiver::REPLY_BITS;
use super::register_map::{global_word, port_word, RegisterMap, NOTHING};
use crate::fifo::Fifo;
use crate::prelude::*;
use layout::registers::{global, port, PORT_BASE, PORT_STRIDE};
use std::array;
use step::Step;

mod step {
    #![allow(missing_docs)]
    use rust_hdl::prelude::*;
    /// What the register file does.
    #[derive(LogicState, Copy, Clone, Debug, PartialEq)]
    pub enum Step {
        Reset,
        Idle,
        Look,
        Wait,
        Gather,
        Choose,
        Answer,
    }
}

/// Bits of a completion to send: data in 63:0, then the reply, then the number of DWs in 113:112, then
/// "unsupported request".
pub const COMPLETION_BITS: usize = 64 + REPLY_BITS + 3;

// The kernel takes these places from bits of the offset.
const _: () = assert!(PORT_BASE == 0x1000 && PORT_STRIDE == 0x400);
const _: () = assert!(NOTHING == 0x13F);
const _: () = assert!(port::COUNTERS == 0x80 && port::SOURCE_TABLE == 0x100);
const _: () =
    assert!(layout::pcie::MSIX_TABLE_OFFSET == 0x8000 && layout::pcie::MSIX_PENDING_OFFSET == 0x9000);

logic_block! {
    /// The registers of `P` ports, `H` bits in a count of ring lines.
    ///
    /// What is written is stored in a RAM and shown on `set_*`, where the other blocks pick up what
    /// concerns them; so a reset is a walk through the RAM. What changes by itself is read where it is.
    pub struct RegisterFile<const P: usize, const H: usize> {
        /// Clock.
        pub clock: Signal<In, Clock>,
        /// Request of the receiver.
        pub offer: Signal<In, bool>,
        /// See `Receiver`.
        pub write: Signal<In, bool>,
        /// See `Receiver`.
        pub refuse: Signal<In, bool>,
        /// See `Receiver`.
        pub malformed: Signal<In, bool>,
        /// See `Receiver`.
        pub address: Signal<In, Bits<16>>,
        /// See `Receiver`.
        pub double: Signal<In, bool>,
        /// See `Receiver`.
        pub words: Signal<In, Bits<64>>,
        /// See `Receiver`.
        pub reply: Signal<In, Bits<48>>,
        /// The request is done.
        pub taken: Signal<Out, bool>,
        /// Oldest completion ([`COMPLETION_BITS`]).
        pub completion: Signal<Out, Bits<115>>,
        /// It is there.
        pub completion_filled: Signal<Out, bool>,
        /// It is taken.
        pub completion_pop: Signal<In, bool>,
        /// A word takes effect (strobe).
        pub set_write: Signal<Out, bool>,
        /// Its word address (`register_map`).
        pub set_word: Signal<Out, Bits<9>>,
        /// The word, the lower half of a 64-bit register.
        pub set_data: Signal<Out, Bits<32>>,
        /// The upper half.
        pub set_high: Signal<Out, Bits<32>>,
        /// The host writes it, not a reset.
        pub set_by_host: Signal<Out, bool>,
        /// Registers are being reset.
        pub resetting: Signal<Out, bool>,
        /// A reset isn't over elsewhere.
        pub busy: Signal<In, bool>,
        /// A mailbox was written (strobe).
        pub announced: Signal<In, bool>,
        /// Of this port.
        pub announced_port: Signal<In, Bits<3>>,
        /// With this.
        pub announced_bytes: Signal<In, Bits<64>>,
        /// The host has taken all that was announced (strobe).
        pub acknowledged: Signal<Out, bool>,
        /// On this port.
        pub acknowledged_port: Signal<Out, Bits<3>>,

        /// COMMAND bit 0 (strobe).
        pub function_reset: Signal<Out, bool>,
        /// COMMAND bit 1 (strobe).
        pub card_reset: Signal<Out, bool>,
        /// CONTROL bits 1:0.
        pub control: Signal<In, Bits<2>>,
        /// Interrupts pending.
        pub pending: Signal<In, Bits<P>>,
        /// See `Host`.
        pub ring_head: [Signal<In, Bits<H>>; P],
        /// See `Host`.
        pub ring_tail: [Signal<In, Bits<H>>; P],
        /// See `Host`.
        pub time_now: Signal<In, Bits<64>>,
        /// See `Host`.
        pub last_stamp: Signal<In, Bits<64>>,
        /// See `Host`.
        pub last_number: Signal<In, Bits<64>>,
        /// See `Host`.
        pub leaf_time: [Signal<In, Bits<64>>; P],
        /// See `Host`.
        pub leaf_phase: [Signal<In, Bits<32>>; P],
        /// See `Host`.
        pub leaf_locked: [Signal<In, bool>; P],
        /// See `Host`.
        pub leaf_holdover: [Signal<In, bool>; P],
        /// See `Host`.
        pub in_flight: [Signal<In, Bits<8>>; P],
        /// See `Host`.
        pub counter_address: Signal<Out, Bits<5>>,
        /// See `Host`.
        pub counter_data: [Signal<In, Bits<32>>; P],
        /// See `Host`.
        pub source_address: Signal<Out, Bits<3>>,
        /// See `Host`.
        pub source_data: [Signal<In, Bits<49>>; P],
        /// The live inputs are looked at.
        pub gathering: Signal<Out, bool>,

        map: RegisterMap,
        store: Ram<32, 9>,
        produced: Ram<64, 3>,
        completions: Fifo<115, 5>,
        step: Dff<Step>,
        // Words walked through in a reset.
        count: Dff<Bits<10>>,
        // The reset is of the function only.
        partial: Dff<bool>,
        offset: Dff<Bits<16>>,
        // The second DW of two is being dealt with.
        again: Dff<bool>,
        high: Dff<Bits<32>>,
        live: Dff<Bits<64>>,
        live_wide: Dff<bool>,
        result: Dff<Bits<64>>,
        // Upper half latched by the read before; in bits 47:32 its offset, in bit 48 whether there is one.
        latch: Dff<Bits<49>>,
        malformed_seen: Dff<bool>,
        announced_before: Dff<bool>,
        // Function reset, card reset.
        strobes: Dff<Bits<2>>,

        port: Signal<Local, Bits<3>>,
        of_card: Signal<Local, bool>,
        of_port: Signal<Local, bool>,
        of_port_stored: Signal<Local, bool>,
        of_table: Signal<Local, bool>,
        of_pending: Signal<Local, bool>,
        word: Signal<Local, Bits<9>>,
        waiting: Signal<Local, Bits<9>>,
        walked: Signal<Local, Bits<9>>,
        walking: Signal<Local, Bits<9>>,
        count_before: Signal<Local, Bits<9>>,
        data: Signal<Local, Bits<32>>,
        whole: Signal<Local, Bits<64>>,
        stored: Signal<Local, bool>,
        writable: Signal<Local, bool>,
        low: Signal<Local, bool>,
        upper: Signal<Local, bool>,
        chosen: Signal<Local, Bits<32>>,
        level: Signal<Local, Bits<H>>,
        dws: Signal<Local, Bits<2>>,
        narrow: Signal<Local, Bits<32>>,
        wide: Signal<Local, Bits<64>>,
        is_wide: Signal<Local, bool>,
        there: Signal<Local, bool>,
        locked: Signal<Local, bool>,
        holdover: Signal<Local, bool>,
        flying: Signal<Local, Bits<8>>,
        leaf: Signal<Local, Bits<64>>,
        phase: Signal<Local, Bits<32>>,
        counter: Signal<Local, Bits<32>>,
        source: Signal<Local, Bits<49>>,
        last_word: Signal<Local, bool>,
        overflow: Signal<Local, bool>,

        word_control: Constant<Bits<9>>,
        word_command: Constant<Bits<9>>,
        port_word_consumed: Constant<Bits<4>>,
        at_status: Constant<Bits<9>>,
        at_time_now: Constant<Bits<9>>,
        at_last_stamp: Constant<Bits<9>>,
        at_last_number: Constant<Bits<9>>,
        at_port_status: Constant<Bits<10>>,
        at_produced: Constant<Bits<10>>,
        at_leaf_time: Constant<Bits<10>>,
        at_leaf_phase: Constant<Bits<10>>,
        at_ring_level: Constant<Bits<10>>,
        lines: Constant<Bits<H>>,
    }
}

impl<const P: usize, const H: usize> RegisterFile<P, H> {
    /// The registers of a card with rings of `2^H` · 32 bytes.
    pub fn new() -> Self {
        let word = |offset| Constant::new(bits(global_word(offset) as u64));
        let port_word = |offset| Constant::new(bits(port_word(offset) as u64 % 16));
        let at = |offset| Constant::new(bits(offset as u64));
        let port_at = |offset| Constant::new(bits(offset as u64));
        Self {
            clock: Default::default(),
            offer: Default::default(),
            write: Default::default(),
            refuse: Default::default(),
            malformed: Default::default(),
            address: Default::default(),
            double: Default::default(),
            words: Default::default(),
            reply: Default::default(),
            taken: Default::default(),
            completion: Default::default(),
            completion_filled: Default::default(),
            completion_pop: Default::default(),
            set_write: Default::default(),
            set_word: Default::default(),
            set_data: Default::default(),
            set_high: Default::default(),
            set_by_host: Default::default(),
            resetting: Default::default(),
            busy: Default::default(),
            announced: Default::default(),
            announced_port: Default::default(),
            announced_bytes: Default::default(),
            acknowledged: Default::default(),
            acknowledged_port: Default::default(),
            function_reset: Default::default(),
            card_reset: Default::default(),
            pending: Default::default(),
            ring_head: array::from_fn(|_| Default::default()),
            ring_tail: array::from_fn(|_| Default::default()),
            time_now: Default::default(),
            last_stamp: Default::default(),
            last_number: Default::default(),
            leaf_time: array::from_fn(|_| Default::default()),
            leaf_phase: array::from_fn(|_| Default::default()),
            leaf_locked: array::from_fn(|_| Default::default()),
            leaf_holdover: array::from_fn(|_| Default::default()),
            in_flight: array::from_fn(|_| Default::default()),
            counter_address: Default::default(),
            counter_data: array::from_fn(|_| Default::default()),
            source_address: Default::default(),
            source_data: array::from_fn(|_| Default::default()),
            gathering: Default::default(),
            store: Default::default(),
            produced: Default::default(),
            completions: Default::default(),
            step: Default::default(),
            count: Default::default(),
            partial: Default::default(),
            offset: Default::default(),
            again: Default::default(),
            high: Default::default(),
            live: Default::default(),
            live_wide: Default::default(),
            result: Default::default(),
            latch: Default::default(),
            malformed_seen: Default::default(),
            announced_before: Default::default(),
            control: Default::default(),
            strobes: Default::default(),
            port: Default::default(),
            of_card: Default::default(),
            of_port: Default::default(),
            of_port_stored: Default::default(),
            of_table: Default::default(),
            of_pending: Default::default(),
            word: Default::default(),
            waiting: Default::default(),
            walked: Default::default(),
            walking: Default::default(),
            count_before: Default::default(),
            data: Default::default(),
            whole: Default::default(),
            stored: Default::default(),
            writable: Default::default(),
            low: Default::default(),
            upper: Default::default(),
            chosen: Default::default(),
            level: Default::default(),
            dws: Default::default(),
            narrow: Default::default(),
            wide: Default::default(),
            is_wide: Default::default(),
            there: Default::default(),
            locked: Default::default(),
            holdover: Default::default(),
            flying: Default::default(),
            leaf: Default::default(),
            phase: Default::default(),
            counter: Default::default(),
            source: Default::default(),
            last_word: Default::default(),
            overflow: Default::default(),
            map: RegisterMap::new(P, H + 5),
            word_control: word(global::CONTROL),
            word_command: word(global::COMMAND),
            port_word_consumed: port_word(port::CONSUMED),
            at_status: at(global::STATUS),
            at_time_now: at(global::TIME_NOW),
            at_last_stamp: at(global::LAST_STAMP),
            at_last_number: at(global::LAST_NUMBER),
            at_port_status: port_at(port::STATUS),
            at_produced: port_at(port::PRODUCED),
            at_leaf_time: port_at(port::LEAF_TIME),
            at_leaf_phase: port_at(port::LEAF_PHASE),
            at_ring_level: port_at(port::RING_LEVEL),
            lines: Constant::new(bits(1 << (H - 1))),
            settled: Default::default(),
        }
    }
}

impl<const P: usize, const H: usize> Default for RegisterFile<P, H> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const P: usize, const H: usize> Logic for RegisterFile<P, H> {
    #[hdl_gen]
    fn update(&mut self) {
        dff_setup!(
            self,
            clock,
            step,
            count,
            partial,
            offset,
            again,
            high,
            live,
            live_wide,
            result,
            latch,
            malformed_seen,
            announced_before,
            strobes
        );
        self.map.clock.next = self.clock.val();
        self.store.read_clock.next = self.clock.val();
        self.store.write_clock.next = self.clock.val();
        self.produced.read_clock.next = self.clock.val();
        self.produced.write_clock.next = self.clock.val();
        self.completions.clock.next = self.clock.val();
        self.completions.clear.next = false;
        self.completions.pop.next = self.completion_pop.val();
        self.completions.push.next = false;
        self.completions.data.next = bits::<115>(0);
        self.completion.next = self.completions.front.val();
        self.completion_filled.next = self.completions.filled.val();
        self.strobes.d.next = bits::<2>(0);
        self.function_reset.next = self.strobes.q.val().get_bit(0);
        self.card_reset.next = self.strobes.q.val().get_bit(1);
        self.announced_before.d.next = self.announced.val();
        self.resetting.next = self.step.q.val() == Step::Reset;
        self.gathering.next = self.step.q.val() == Step::Gather;

        self.taken.next = false;
        self.set_write.next = false;
        self.set_word.next = bits::<9>(0);
        self.set_data.next = bits::<32>(0);
        self.set_high.next = bits::<32>(0);
        self.set_by_host.next = false;
        self.acknowledged.next = false;
        self.acknowledged_port.next = bits::<3>(0);
        self.store.write_enable.next = false;
        self.store.write_address.next = bits::<9>(0);
        self.store.write_data.next = bits::<32>(0);
        self.produced.write_enable.next = self.announced.val();
        self.produced.write_address.next = self.announced_port.val();
        self.produced.write_data.next = self.announced_bytes.val();

        // Where the offset points to.
        self.port.next = self.offset.q.val().get_bits::<3>(10) & 3;
        if self.offset.q.val().get_bit(13) {
            self.port.next = self.offset.q.val().get_bits::<3>(10) | 4;
        }
        self.of_card.next = self.offset.q.val().get_bits::<7>(9) == 0;
        self.of_port.next =
            (self.offset.q.val().get_bits::<4>(12) == 1) | (self.offset.q.val().get_bits::<4>(12) == 2);
        self.of_port_stored.next = self.of_port.val() & (self.offset.q.val().get_bits::<4>(6) == 0);
        self.of_table.next = self.offset.q.val().get_bits::<9>(7) == 0x100;
        self.of_pending.next = self.offset.q.val().get_bits::<13>(3) == 0x1200;
        // `register_map::NOTHING`.
        self.word.next = bits::<9>(0x13F);
        self.waiting.next = bits::<9>(0x13F);
        if self.of_card.val() {
            self.word.next = bit_cast::<9, 7>(self.offset.q.val().get_bits::<7>(2));
            self.waiting.next = bit_cast::<9, 7>(self.offset.q.val().get_bits::<7>(2)) | 0x141;
        }
        if self.of_port_stored.val() {
            self.word.next = (bit_cast::<9, 3>(self.port.val()) << 4)
                | bit_cast::<9, 4>(self.offset.q.val().get_bits::<4>(2))
                | 0x080;
            self.waiting.next = (bit_cast::<9, 3>(self.port.val()) << 4)
                | bit_cast::<9, 4>(self.offset.q.val().get_bits::<4>(2))
                | 0x181;
        }
        if self.of_table.val() {
            self.word.next = bit_cast::<9, 5>(self.offset.q.val().get_bits::<5>(2)) | 0x100;
        }
        self.map.address.next = self.word.val();
        self.store.read_address.next = self.word.val();
        if self.write.val() {
            self.store.read_address.next = self.waiting.val();
        }
        self.produced.read_address.next = self.port.val();
        self.counter_address.next = self.offset.q.val().get_bits::<5>(2);
        self.source_address.next = self.offset.q.val().get_bits::<3>(3);
        self.stored.next = self.map.word.val().get_bit(32);
        self.writable.next = self.map.word.val().get_bit(33);
        self.low.next = self.map.word.val().get_bit(34);
        self.upper.next = self.map.word.val().get_bit(35);
        self.last_word.next = !self.double.val() | self.again.q.val();
        // Of two DWs the second is written first: it may be the upper half of a register.
        self.data.next = self.words.val().get_bits::<32>(0);
        if self.double.val() & !self.again.q.val() {
            self.data.next = self.words.val().get_bits::<32>(32);
        }

        self.walked.next = bits::<9>(0);
        self.walking.next = bits::<9>(0);
        self.count_before.next = bits::<9>(0);
        self.whole.next = bits::<64>(0);
        self.dws.next = bits::<2>(0);
        self.narrow.next = bits::<32>(0);
        self.wide.next = bits::<64>(0);
        self.is_wide.next = false;
        self.chosen.next = bits::<32>(0);
        self.level.next = bits::<H>(0);
        self.overflow.next = false;
        self.there.next = false;
        self.locked.next = false;
        self.holdover.next = false;
        self.flying.next = bits::<8>(0);
        self.leaf.next = bits::<64>(0);
        self.phase.next = bits::<32>(0);
        self.counter.next = bits::<32>(0);
        self.source.next = bits::<49>(0);
        match self.step.q.val() {
            Step::Reset => {
                // Downwards, so that the upper half of a register is set before the lower.
                self.count_before.next = self.count.q.val().get_bits::<9>(0) - 1;
                self.walking.next = !self.count.q.val().get_bits::<9>(0);
                self.walked.next = !self.count_before.val();
                self.map.address.next = self.walking.val();
                self.produced.write_enable.next = true;
                self.produced.write_address.next = self.count.q.val().get_bits::<3>(0);
                self.produced.write_data.next = bits::<64>(0);
                self.chosen.next = self.map.word.val().get_bits::<32>(0);
                // The time base goes on over a function reset; writes are closed.
                if self.partial.q.val() & (self.walked.val() == self.word_control.val()) {
                    self.chosen.next = bit_cast::<32, 2>(self.control.val() & 2);
                }
                if (self.count.q.val() != 0)
                    & self.stored.val()
                    & (!self.partial.q.val() | self.map.word.val().get_bit(36))
                {
                    self.set_write.next = true;
                    self.set_word.next = self.walked.val();
                    self.set_data.next = self.chosen.val();
                    self.store.write_enable.next = true;
                    self.store.write_address.next = self.walked.val();
                    self.store.write_data.next = self.chosen.val();
                }
                self.count.d.next = self.count.q.val() + 1;
                self.latch.d.next = bits::<49>(0);
                if !self.partial.q.val() {
                    self.malformed_seen.d.next = false;
                }
                if self.busy.val() {
                    self.count.d.next = bits::<10>(0);
                } else if self.count.q.val() == 512 {
                    self.step.d.next = Step::Idle;
                }
            }
            Step::Idle => {
                self.again.d.next = false;
                self.offset.d.next = self.address.val();
                if self.offer.val() {
                    if self.malformed.val() {
                        self.malformed_seen.d.next = true;
                        self.taken.next = true;
                    } else if self.refuse.val() {
                        self.step.d.next = Step::Answer;
                    } else {
                        self.step.d.next = Step::Look;
                        if self.write.val() & self.double.val() {
                            self.offset.d.next = self.address.val() + 4;
                        }
                    }
                }
            }
            Step::Look => {
                self.step.d.next = Step::Wait;
            }
            Step::Wait => {
                self.step.d.next = Step::Gather;
                if self.write.val() & self.low.val() & self.writable.val() {
                    // The upper half that waits takes effect with the lower.
                    self.high.d.next = self.store.read_data.val();
                    self.store.write_enable.next = true;
                    self.store.write_address.next = self.word.val() | 1;
                    self.store.write_data.next = self.store.read_data.val();
                }
            }
            Step::Gather => {
                if self.write.val() {
                    self.latch.d.next = bits::<49>(0);
                    if self.writable.val() {
                        self.store.write_enable.next = self.stored.val();
                        self.store.write_address.next = self.word.val();
                        self.store.write_data.next = self.data.val();
                        if self.upper.val() {
                            self.store.write_address.next = self.waiting.val();
                        } else {
                            self.set_write.next = true;
                            self.set_by_host.next = true;
                            self.set_word.next = self.word.val();
                            self.set_data.next = self.data.val();
                            self.set_high.next = self.high.q.val();
                        }
                    }
                    self.again.d.next = true;
                    self.offset.d.next = self.address.val();
                    self.step.d.next = Step::Look;
                    if self.last_word.val() {
                        self.taken.next = true;
                        self.step.d.next = Step::Idle;
                    }
                } else {
                    self.step.d.next = Step::Choose;
                    // A 32-bit register is shown in both halves, wherever it stands.
                    if self.of_card.val() {
                        if (self.offset.q.val().get_bits::<9>(0)) == self.at_status.val() {
                            self.narrow.next = bit_cast::<32, 2>(self.control.val())
                                | (bit_cast::<32, 1>(self.malformed_seen.q.val().into()) << 2);
                        }
                        if (self.offset.q.val().get_bits::<9>(0) & 0x1F8) == self.at_time_now.val() {
                            self.wide.next = self.time_now.val();
                            self.is_wide.next = true;
                        }
                        if (self.offset.q.val().get_bits::<9>(0) & 0x1F8) == self.at_last_stamp.val() {
                            self.wide.next = self.last_stamp.val();
                            self.is_wide.next = true;
                        }
                        if (self.offset.q.val().get_bits::<9>(0) & 0x1F8) == self.at_last_number.val() {
                            self.wide.next = self.last_number.val();
                            self.is_wide.next = true;
                        }
                    }
                    if self.of_pending.val() {
                        self.wide.next = bit_cast::<64, P>(self.pending.val());
                        self.is_wide.next = true;
                    }
                    if self.of_port.val() {
                        for i in 0..P {
                            if self.port.val() == i.to_bits::<3>() {
                                self.level.next = self.ring_head[i].val() - self.ring_tail[i].val();
                                self.locked.next = self.leaf_locked[i].val();
                                self.holdover.next = self.leaf_holdover[i].val();
                                self.flying.next = self.in_flight[i].val();
                                self.leaf.next = self.leaf_time[i].val();
                                self.phase.next = self.leaf_phase[i].val();
                                self.counter.next = self.counter_data[i].val();
                                self.source.next = self.source_data[i].val();
                                self.there.next = true;
                            }
                        }
                    }
                    if self.there.val() {
                        self.overflow.next = self.level.val() > self.lines.val();
                        if self.offset.q.val().get_bits::<10>(0) == self.at_port_status.val() {
                            self.narrow.next = bit_cast::<32, 1>(self.locked.val().into())
                                | (bit_cast::<32, 1>(self.holdover.val().into()) << 1)
                                | (bit_cast::<32, 1>(self.overflow.val().into()) << 2)
                                | (bit_cast::<32, 8>(self.flying.val()) << 16);
                        }
                        if (self.offset.q.val().get_bits::<10>(0) & 0x3F8) == self.at_produced.val() {
                            self.wide.next = self.produced.read_data.val();
                            self.is_wide.next = true;
                        }
                        if (self.offset.q.val().get_bits::<10>(0) & 0x3F8) == self.at_leaf_time.val() {
                            self.wide.next = self.leaf.val();
                            self.is_wide.next = true;
                        }
                        if self.offset.q.val().get_bits::<10>(0) == self.at_leaf_phase.val() {
                            self.narrow.next = self.phase.val();
                        }
                        if self.offset.q.val().get_bits::<10>(0) == self.at_ring_level.val() {
                            self.narrow.next = bit_cast::<32, H>(self.level.val());
                        }
                        if self.offset.q.val().get_bits::<3>(7) == 1 {
                            self.narrow.next = self.counter.val();
                        }
                        if self.offset.q.val().get_bits::<4>(6) == 4 {
                            self.wide.next = bit_cast::<64, 49>(self.source.val());
                            self.is_wide.next = true;
                        }
                    }
                    self.live.d.next = self.wide.val();
                    if !self.is_wide.val() {
                        self.live.d.next = bit_cast::<64, 32>(self.narrow.val())
                            | (bit_cast::<64, 32>(self.narrow.val()) << 32);
                    }
                    self.live_wide.d.next = self.is_wide.val();
                }
            }
            Step::Choose => {
                self.chosen.next = self.live.q.val().get_bits::<32>(0);
                if self.offset.q.val().get_bit(2) {
                    self.chosen.next = self.live.q.val().get_bits::<32>(32);
                    if self.latch.q.val().get_bit(48)
                        & (self.latch.q.val().get_bits::<16>(32) == self.offset.q.val())
                    {
                        self.chosen.next = self.latch.q.val().get_bits::<32>(0);
                    }
                }
                if self.stored.val() {
                    self.chosen.next = self.store.read_data.val();
                }
                self.latch.d.next = bits::<49>(0);
                if self.live_wide.q.val() & (self.offset.q.val().get_bits::<1>(2) == 0) {
                    self.latch.d.next = bit_cast::<49, 32>(self.live.q.val().get_bits::<32>(32))
                        | (bit_cast::<49, 16>(self.offset.q.val()) << 32)
                        | (bits::<49>(4) << 32)
                        | (bit_cast::<49, 1>(self.live_wide.q.val().into()) << 48);
                }
                if self.again.q.val() {
                    self.result.d.next = bit_cast::<64, 32>(self.result.q.val().get_bits::<32>(0))
                        | (bit_cast::<64, 32>(self.chosen.val()) << 32);
                } else {
                    self.result.d.next = bit_cast::<64, 32>(self.chosen.val());
                }
                self.again.d.next = true;
                self.offset.d.next = self.offset.q.val() + 4;
                self.step.d.next = Step::Look;
                if self.last_word.val() {
                    self.step.d.next = Step::Answer;
                }
            }
            Step::Answer => {
                if !self.completions.full.val() {
                    self.completions.push.next = true;
                    self.taken.next = true;
                    self.step.d.next = Step::Idle;
                }
                self.dws.next = bits::<2>(1);
                if self.double.val() {
                    self.dws.next = bits::<2>(2);
                }
                if self.refuse.val() {
                    self.dws.next = bits::<2>(0);
                }
                self.completions.data.next = bit_cast::<115, 64>(self.result.q.val())
                    | (bit_cast::<115, 48>(self.reply.val()) << 64)
                    | (bit_cast::<115, 2>(self.dws.val()) << 112)
                    | (bit_cast::<115, 1>(self.refuse.val().into()) << 114);
            }
        }

        // What takes effect here.
        if self.set_by_host.val() {
            self.whole.next =
                bit_cast::<64, 32>(self.set_data.val()) | (bit_cast::<64, 32>(self.set_high.val()) << 32);
            // What was announced this very cycle or the one before isn't in `produced` yet.
            if (self.set_word.val().get_bits::<2>(7) == 1)
                & (self.set_word.val().get_bits::<4>(0) == self.port_word_consumed.val())
                & (self.produced.read_data.val() == self.whole.val())
                & !self.announced.val()
                & !self.announced_before.q.val()
            {
                self.acknowledged.next = true;
                self.acknowledged_port.next = self.port.val();
            }
            if self.set_word.val() == self.word_command.val() {
                if self.set_data.val().get_bits::<2>(0) != 0 {
                    self.taken.next = true;
                    self.step.d.next = Step::Reset;
                    self.count.d.next = bits::<10>(0);
                    self.partial.d.next = true;
                    self.strobes.d.next = bits::<2>(1);
                }
                if self.set_data.val().get_bit(1) {
                    self.partial.d.next = false;
                    self.strobes.d.next = bits::<2>(2);
                }
            }
        }
    }
}
