//! MSI-X: a vector for each port, moderated (PCI 3.0 §6.8).

use super::register_map::{global_word, TABLE_WORDS};
use crate::prelude::*;
use layout::registers::global;
use std::array;
use step::Step;

mod step {
    #![allow(missing_docs)]
    use rust_hdl::prelude::*;
    /// What the block does.
    #[derive(LogicState, Copy, Clone, Debug, PartialEq)]
    pub enum Step {
        Idle,
        Low,
        High,
        Data,
        Load,
        Ready,
        Sending,
    }
}

const _: () = assert!(TABLE_WORDS == 0x100);

logic_block! {
    /// A vector is pending from an announcement until its message is sent, or until the host has taken
    /// everything that was announced. Between two messages of one vector lies the interrupt period.
    pub struct Msix<const P: usize> {
        /// Clock.
        pub clock: Signal<In, Clock>,
        /// See `RegisterFile`.
        pub set_write: Signal<In, bool>,
        /// See `RegisterFile`.
        pub set_word: Signal<In, Bits<9>>,
        /// See `RegisterFile`.
        pub set_data: Signal<In, Bits<32>>,
        /// Unit of the interrupt period (strobe).
        pub tick: Signal<In, bool>,
        /// Forgets what is pending (level).
        pub clear: Signal<In, bool>,
        /// MSI-X is on.
        pub enable: Signal<In, bool>,
        /// Every vector is masked.
        pub mask: Signal<In, bool>,
        /// A mailbox was written (strobe).
        pub announced: Signal<In, bool>,
        /// Of this port.
        pub announced_port: Signal<In, Bits<3>>,
        /// The host has taken all that was announced (strobe).
        pub acknowledged: Signal<In, bool>,
        /// On this port.
        pub acknowledged_port: Signal<In, Bits<3>>,
        /// The pending bits: pending, and masked.
        pub pending: Signal<Out, Bits<P>>,
        /// A message waits. It may be withdrawn until it is begun.
        pub message: Signal<Out, bool>,
        /// Where to.
        pub message_address: Signal<Out, Bits<64>>,
        /// What.
        pub message_data: Signal<Out, Bits<32>>,
        /// It is begun (strobe).
        pub begun: Signal<In, bool>,
        /// It is sent (strobe).
        pub sent: Signal<In, bool>,

        table_words: Ram<32, 5>,
        step: Dff<Step>,
        vector: Dff<Bits<3>>,
        raised: Dff<Bits<P>>,
        masked: Dff<Bits<P>>,
        // Vectors whose timer runs.
        resting: Dff<Bits<P>>,
        timers: [Dff<Bits<32>>; P],
        period: Dff<Bits<32>>,
        target: Dff<Bits<64>>,
        data: Dff<Bits<32>>,

        ready: Signal<Local, Bits<P>>,
        pick: Signal<Local, Bits<3>>,
        entry_word: Signal<Local, Bits<2>>,
        mask_bit: Signal<Local, bool>,
        table_write: Signal<Local, bool>,
        raised_next: Signal<Local, Bits<P>>,
        masked_next: Signal<Local, Bits<P>>,
        resting_next: Signal<Local, Bits<P>>,
        after: Signal<Local, bool>,
        found: Signal<Local, bool>,
        found_after: Signal<Local, bool>,
        word_period: Constant<Bits<9>>,
    }
}

impl<const P: usize> Msix<P> {
    /// Nothing pending.
    pub fn new() -> Self {
        Self {
            clock: Default::default(),
            set_write: Default::default(),
            set_word: Default::default(),
            set_data: Default::default(),
            tick: Default::default(),
            clear: Default::default(),
            enable: Default::default(),
            mask: Default::default(),
            announced: Default::default(),
            announced_port: Default::default(),
            acknowledged: Default::default(),
            acknowledged_port: Default::default(),
            pending: Default::default(),
            message: Default::default(),
            message_address: Default::default(),
            message_data: Default::default(),
            begun: Default::default(),
            sent: Default::default(),
            table_words: Default::default(),
            step: Default::default(),
            vector: Default::default(),
            raised: Default::default(),
            masked: Default::default(),
            resting: Default::default(),
            timers: array::from_fn(|_| Default::default()),
            period: Default::default(),
            target: Default::default(),
            data: Default::default(),
            ready: Default::default(),
            pick: Default::default(),
            entry_word: Default::default(),
            mask_bit: Default::default(),
            table_write: Default::default(),
            raised_next: Default::default(),
            masked_next: Default::default(),
            resting_next: Default::default(),
            after: Default::default(),
            found: Default::default(),
            found_after: Default::default(),
            word_period: Constant::new(bits(global_word(global::INTERRUPT_PERIOD) as u64)),
            settled: Default::default(),
        }
    }
}

impl<const P: usize> Default for Msix<P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const P: usize> Logic for Msix<P> {
    #[hdl_gen]
    fn update(&mut self) {
        dff_setup!(self, clock, step, vector, raised, masked, resting, period, target, data);
        self.table_words.read_clock.next = self.clock.val();
        self.table_words.write_clock.next = self.clock.val();
        self.table_words.write_enable.next = false;
        self.table_words.write_address.next = bits::<5>(0);
        self.table_words.write_data.next = bits::<32>(0);
        self.message_address.next = self.target.q.val();
        self.message_data.next = self.data.q.val();
        self.message.next = false;

        self.table_write.next = false;
        self.mask_bit.next = self.set_data.val().get_bit(0);
        self.raised_next.next = self.raised.q.val();
        self.masked_next.next = self.masked.q.val();
        self.resting_next.next = self.resting.q.val();
        if self.set_write.val() {
            if self.set_word.val() == self.word_period.val() {
                self.period.d.next = self.set_data.val();
            }
            if self.set_word.val().get_bits::<4>(5) == 8 {
                self.table_write.next = true;
                self.table_words.write_enable.next = true;
                self.table_words.write_address.next = self.set_word.val().get_bits::<5>(0);
                self.table_words.write_data.next = self.set_data.val();
            }
        }

        self.ready.next = bits::<P>(0);
        if self.enable.val() & !self.mask.val() {
            self.ready.next = self.raised.q.val() & !self.masked.q.val() & !self.resting.q.val();
        }
        self.pending.next = self.raised.q.val() & self.masked.q.val();
        if self.mask.val() {
            self.pending.next = self.raised.q.val();
        }
        self.pick.next = bits::<3>(0);
        self.after.next = false;
        self.found.next = false;
        self.found_after.next = false;
        self.entry_word.next = bits::<2>(0);
        match self.step.q.val() {
            Step::Idle => {
                if self.ready.val().any() {
                    // The first after the last one sent, or else the first.
                    for i in 0..P {
                        if self.ready.val().get_bit(i) {
                            if !self.found.val() | (self.after.val() & !self.found_after.val()) {
                                self.pick.next = i.to_bits::<3>();
                            }
                            self.found.next = true;
                            self.found_after.next = self.found_after.val() | self.after.val();
                        }
                        if self.vector.q.val() == i.to_bits::<3>() {
                            self.after.next = true;
                        }
                    }
                    self.vector.d.next = self.pick.val();
                    self.step.d.next = Step::Low;
                }
            }
            Step::Low => {
                self.step.d.next = Step::High;
            }
            Step::High => {
                self.entry_word.next = bits::<2>(1);
                self.target.d.next =
                    bit_cast::<64, 30>(self.table_words.read_data.val().get_bits::<30>(2)) << 2;
                self.step.d.next = Step::Data;
            }
            Step::Data => {
                self.entry_word.next = bits::<2>(2);
                self.target.d.next = bit_cast::<64, 32>(self.target.q.val().get_bits::<32>(0))
                    | (bit_cast::<64, 32>(self.table_words.read_data.val()) << 32);
                self.step.d.next = Step::Load;
            }
            Step::Load => {
                self.data.d.next = self.table_words.read_data.val();
                self.step.d.next = Step::Ready;
            }
            Step::Ready => {
                for i in 0..P {
                    if (self.vector.q.val() == i.to_bits::<3>()) & self.ready.val().get_bit(i) {
                        self.message.next = true;
                    }
                }
                if self.begun.val() {
                    self.step.d.next = Step::Sending;
                } else if !self.message.val() | self.table_write.val() {
                    // Masked meanwhile, or the entry changes under us: look again.
                    self.step.d.next = Step::Idle;
                }
            }
            Step::Sending => {
                if self.sent.val() {
                    self.step.d.next = Step::Idle;
                }
            }
        }
        self.table_words.read_address.next =
            (bit_cast::<5, 3>(self.vector.q.val()) << 2) | bit_cast::<5, 2>(self.entry_word.val());

        for i in 0..P {
            self.timers[i].clock.next = self.clock.val();
            self.timers[i].d.next = self.timers[i].q.val();
            if self.tick.val() & self.resting.q.val().get_bit(i) {
                self.timers[i].d.next = self.timers[i].q.val() - 1;
                if self.timers[i].q.val() == 0 {
                    self.resting_next.next = self.resting_next.val().replace_bit(i, false);
                }
            }
            if self.acknowledged.val() & (self.acknowledged_port.val() == i.to_bits::<3>()) {
                self.raised_next.next = self.raised_next.val().replace_bit(i, false);
            }
            if self.begun.val() & (self.vector.q.val() == i.to_bits::<3>()) {
                self.raised_next.next = self.raised_next.val().replace_bit(i, false);
                if self.period.q.val() != 0 {
                    self.timers[i].d.next = self.period.q.val();
                    self.resting_next.next = self.resting_next.val().replace_bit(i, true);
                }
            }
            if self.announced.val() & (self.announced_port.val() == i.to_bits::<3>()) {
                self.raised_next.next = self.raised_next.val().replace_bit(i, true);
            }
            if self.table_write.val()
                & (self.set_word.val().get_bits::<2>(0) == 3)
                & (self.set_word.val().get_bits::<3>(2) == i.to_bits::<3>())
            {
                self.masked_next.next = self.masked_next.val().replace_bit(i, self.mask_bit.val());
            }
        }
        self.raised.d.next = self.raised_next.val();
        self.masked.d.next = self.masked_next.val();
        self.resting.d.next = self.resting_next.val();
        if self.clear.val() {
            self.raised.d.next = bits::<P>(0);
            self.resting.d.next = bits::<P>(0);
        }
    }
}
