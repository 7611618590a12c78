//! What the registers tell the rest of the card.

use super::register_map::{global_word, port_word};
use crate::prelude::*;
use layout::registers::{global, port};
use std::array;

// The kernel takes the word of the volume table from bits of the word address.
const _: () = assert!(global::VOLUME_TABLE == 0x100 && layout::registers::VOLUMES == 16);

logic_block! {
    /// Live copies of registers of `P` ports, and strobes for those that act when they are written.
    pub struct Controls<const P: usize> {
        /// Clock.
        pub clock: Signal<In, Clock>,
        /// See `RegisterFile`.
        pub set_write: Signal<In, bool>,
        /// See `RegisterFile`.
        pub set_word: Signal<In, Bits<9>>,
        /// See `RegisterFile`.
        pub set_data: Signal<In, Bits<32>>,
        /// See `RegisterFile`.
        pub set_high: Signal<In, Bits<32>>,
        /// See `RegisterFile`.
        pub set_by_host: Signal<In, bool>,
        /// CONTROL: bit 0 writes open, bit 1 time base enabled.
        pub control: Signal<Out, Bits<2>>,
        /// What the strobes `time_set`, `stamp_floor_set`, `number_floor_set` and `volume_write` set.
        pub value: Signal<Out, Bits<64>>,
        /// TIME_SET.
        pub time_set: Signal<Out, bool>,
        /// STAMP_FLOOR.
        pub stamp_floor_set: Signal<Out, bool>,
        /// NUMBER_FLOOR.
        pub number_floor_set: Signal<Out, bool>,
        /// VOLUME_TABLE.
        pub volume_write: Signal<Out, bool>,
        /// Which word of it.
        pub volume_write_index: Signal<Out, Bits<4>>,
        /// HOLD.
        pub hold: Signal<Out, Bits<32>>,
        /// RETRY.
        pub retry: Signal<Out, Bits<32>>,
        /// UNKNOWN.
        pub unknown: Signal<Out, Bits<32>>,
        /// QUARANTINE.
        pub quarantine: Signal<Out, Bits<32>>,
        /// VOLUMES.
        pub port_volumes: [Signal<Out, Bits<16>>; P],
        /// DURABLE.
        pub durable_number: [Signal<Out, Bits<64>>; P],

        control_bits: Dff<Bits<2>>,
        hold_time: Dff<Bits<32>>,
        retry_time: Dff<Bits<32>>,
        unknown_time: Dff<Bits<32>>,
        quarantine_time: Dff<Bits<32>>,
        new_value: Dff<Bits<64>>,
        new_index: Dff<Bits<4>>,
        // time_set, stamp_floor_set, number_floor_set, volume_write.
        strobes: Dff<Bits<4>>,
        volumes: [Dff<Bits<16>>; P],
        durable: [Dff<Bits<64>>; P],

        whole: Signal<Local, Bits<64>>,
        set_port: Signal<Local, Bits<3>>,
        word_control: Constant<Bits<9>>,
        word_time_set: Constant<Bits<9>>,
        word_stamp_floor: Constant<Bits<9>>,
        word_number_floor: Constant<Bits<9>>,
        word_hold: Constant<Bits<9>>,
        word_retry: Constant<Bits<9>>,
        word_unknown: Constant<Bits<9>>,
        word_quarantine: Constant<Bits<9>>,
        port_word_volumes: Constant<Bits<4>>,
        port_word_durable: Constant<Bits<4>>,
    }
}

impl<const P: usize> Controls<P> {
    /// Everything zero; the walk after power-up brings the reset values.
    pub fn new() -> Self {
        let word = |offset| Constant::new(bits(global_word(offset) as u64));
        let port_word = |offset| Constant::new(bits(port_word(offset) as u64 % 16));
        Self {
            clock: Default::default(),
            set_write: Default::default(),
            set_word: Default::default(),
            set_data: Default::default(),
            set_high: Default::default(),
            set_by_host: Default::default(),
            control: Default::default(),
            value: Default::default(),
            time_set: Default::default(),
            stamp_floor_set: Default::default(),
            number_floor_set: Default::default(),
            volume_write: Default::default(),
            volume_write_index: Default::default(),
            hold: Default::default(),
            retry: Default::default(),
            unknown: Default::default(),
            quarantine: Default::default(),
            port_volumes: array::from_fn(|_| Default::default()),
            durable_number: array::from_fn(|_| Default::default()),
            control_bits: Default::default(),
            hold_time: Default::default(),
            retry_time: Default::default(),
            unknown_time: Default::default(),
            quarantine_time: Default::default(),
            new_value: Default::default(),
            new_index: Default::default(),
            strobes: Default::default(),
            volumes: array::from_fn(|_| Default::default()),
            durable: array::from_fn(|_| Default::default()),
            whole: Default::default(),
            set_port: Default::default(),
            word_control: word(global::CONTROL),
            word_time_set: word(global::TIME_SET),
            word_stamp_floor: word(global::STAMP_FLOOR),
            word_number_floor: word(global::NUMBER_FLOOR),
            word_hold: word(global::HOLD),
            word_retry: word(global::RETRY),
            word_unknown: word(global::UNKNOWN),
            word_quarantine: word(global::QUARANTINE),
            port_word_volumes: port_word(port::VOLUMES),
            port_word_durable: port_word(port::DURABLE),
            settled: Default::default(),
        }
    }
}

impl<const P: usize> Default for Controls<P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const P: usize> Logic for Controls<P> {
    #[hdl_gen]
    fn update(&mut self) {
        dff_setup!(
            self,
            clock,
            control_bits,
            hold_time,
            retry_time,
            unknown_time,
            quarantine_time,
            new_value,
            new_index,
            strobes
        );
        for i in 0..P {
            self.volumes[i].clock.next = self.clock.val();
            self.volumes[i].d.next = self.volumes[i].q.val();
            self.port_volumes[i].next = self.volumes[i].q.val();
            self.durable[i].clock.next = self.clock.val();
            self.durable[i].d.next = self.durable[i].q.val();
            self.durable_number[i].next = self.durable[i].q.val();
        }
        self.control.next = self.control_bits.q.val();
        self.hold.next = self.hold_time.q.val();
        self.retry.next = self.retry_time.q.val();
        self.unknown.next = self.unknown_time.q.val();
        self.quarantine.next = self.quarantine_time.q.val();
        self.value.next = self.new_value.q.val();
        self.volume_write_index.next = self.new_index.q.val();
        self.strobes.d.next = bits::<4>(0);
        self.time_set.next = self.strobes.q.val().get_bit(0);
        self.stamp_floor_set.next = self.strobes.q.val().get_bit(1);
        self.number_floor_set.next = self.strobes.q.val().get_bit(2);
        self.volume_write.next = self.strobes.q.val().get_bit(3);

        self.whole.next = bits::<64>(0);
        self.set_port.next = bits::<3>(0);
        if self.set_write.val() {
            self.whole.next =
                bit_cast::<64, 32>(self.set_data.val()) | (bit_cast::<64, 32>(self.set_high.val()) << 32);
            self.set_port.next = self.set_word.val().get_bits::<3>(4);
            if self.set_word.val() == self.word_control.val() {
                self.control_bits.d.next = self.set_data.val().get_bits::<2>(0);
            }
            if self.set_word.val() == self.word_hold.val() {
                self.hold_time.d.next = self.set_data.val();
            }
            if self.set_word.val() == self.word_retry.val() {
                self.retry_time.d.next = self.set_data.val();
            }
            if self.set_word.val() == self.word_unknown.val() {
                self.unknown_time.d.next = self.set_data.val();
            }
            if self.set_word.val() == self.word_quarantine.val() {
                self.quarantine_time.d.next = self.set_data.val();
            }
            for i in 0..P {
                if (self.set_word.val().get_bits::<2>(7) == 1) & (self.set_port.val() == i.to_bits::<3>()) {
                    if self.set_word.val().get_bits::<4>(0) == self.port_word_volumes.val() {
                        self.volumes[i].d.next = self.set_data.val().get_bits::<16>(0);
                    }
                    if self.set_word.val().get_bits::<4>(0) == self.port_word_durable.val() {
                        self.durable[i].d.next = self.whole.val();
                    }
                }
            }
        }
        if self.set_by_host.val() {
            self.new_value.d.next = self.whole.val();
            self.new_index.d.next = self.set_word.val().get_bits::<4>(0);
            // The time base can be set only while it stands.
            if (self.set_word.val() == self.word_time_set.val()) & !self.control_bits.q.val().get_bit(1) {
                self.strobes.d.next = bits::<4>(1);
            }
            if self.set_word.val() == self.word_stamp_floor.val() {
                self.strobes.d.next = bits::<4>(2);
            }
            if self.set_word.val() == self.word_number_floor.val() {
                self.strobes.d.next = bits::<4>(4);
            }
            if self.set_word.val().get_bits::<5>(4) == 4 {
                self.strobes.d.next = bits::<4>(8);
            }
        }
    }
}
