//! Scoreboard of a port: the writes that are at the target, and what the target answers to them.
//!
//! An answer belongs to a write when MAC, volume, tag and LBA are equal (DESIGN §3.7). Answers wait in
//! a FIFO and are compared with the slots one after the other, 18 cycles each, beside everything else.

use crate::prelude::*;
use layout::aoe;
use layout::entry::Updated;

/// Writes in flight that a port keeps apart.
pub const SLOTS: usize = 16;

/// Where an answer's fields lie in [`Scoreboard::answer_info`].
pub mod answer_info {
    /// ATA status register, 8 bits.
    pub const STATUS: usize = 0;
    /// ATA error register, 8 bits.
    pub const ERROR: usize = 8;
    /// AoE error code, 8 bits.
    pub const AOE_CODE: usize = 16;
    /// Shelf and slot as they stand in the frame, 24 bits.
    pub const ADDRESS: usize = 24;
    /// The AoE error flag.
    pub const AOE_ERROR: usize = 48;
    /// Bits in all.
    pub const BITS: usize = 49;
}

logic_block! {
    /// 16 slots.
    #[derive(Default)]
    pub struct Scoreboard {
        /// Clock.
        pub clock: Signal<In, Clock>,
        /// A free slot is at `slot`.
        pub slot_free: Signal<Out, bool>,
        /// The slot that the next admission takes.
        pub slot: Signal<Out, Bits<4>>,
        /// A write is admitted into `slot` (strobe).
        pub admit: Signal<In, bool>,
        /// Its MAC, tag and LBA: `ingress::write_key`.
        pub admit_key: Signal<In, Bits<128>>,
        /// Its shelf and slot as they stand in the frame.
        pub admit_address: Signal<In, Bits<24>>,
        /// Its LBA has 28 bits.
        pub admit_short: Signal<In, bool>,
        /// Its number.
        pub admit_number: Signal<In, Bits<64>>,
        /// An answer (strobe); the caller looks at `answers_full` first.
        pub answer: Signal<In, bool>,
        /// Destination MAC, tag and LBA of the answer, laid out as `ingress::write_key`.
        pub answer_key: Signal<In, Bits<128>>,
        /// The rest: [`answer_info`].
        pub answer_info: Signal<In, Bits<49>>,
        /// No room for an answer.
        pub answers_full: Signal<Out, bool>,
        /// An answer matched no write (strobe).
        pub unmatched: Signal<Out, bool>,
        /// An answer matched; stays until `take`.
        pub matched: Signal<Out, bool>,
        /// The slot.
        pub matched_slot: Signal<Out, Bits<4>>,
        /// The number of its write.
        pub matched_number: Signal<Out, Bits<64>>,
        /// What it means: a `layout::entry::Updated`.
        pub matched_updated: Signal<Out, Bits<4>>,
        /// ATA status register.
        pub matched_status: Signal<Out, Bits<8>>,
        /// ATA error register, or AoE error code.
        pub matched_error: Signal<Out, Bits<8>>,
        /// It is an AoE error code.
        pub matched_aoe: Signal<Out, bool>,
        /// The match has been seen to: frees the slot (strobe).
        pub take: Signal<In, bool>,
        /// Writes in flight.
        pub in_flight: Signal<Out, Bits<5>>,
        keys: Ram<128, 4>,
        infos: Ram<89, 4>,
        answer_keys: Fifo<128, 5>,
        answer_infos: Fifo<49, 5>,
        busy: Dff<Bits<16>>,
        pointer: Dff<Bits<4>>,
        flying: Dff<Bits<5>>,
        // Place of the scan: 0 idle; slots are read at 1–16 and compared one later; 31: matched.
        scan: Dff<Bits<5>>,
        hit_slot: Dff<Bits<4>>,
        hit_number: Dff<Bits<64>>,
        scan_next: Signal<Local, Bits<5>>,
        scan_slot: Signal<Local, Bits<5>>,
        read_slot: Signal<Local, Bits<5>>,
        pointer_next: Signal<Local, Bits<4>>,
        flying_more: Signal<Local, Bits<5>>,
        flying_less: Signal<Local, Bits<5>>,
        busy_at_pointer: Signal<Local, Bits<16>>,
        busy_at_scan: Signal<Local, Bits<16>>,
        pointer_bit: Signal<Local, Bits<16>>,
        slot_bit: Signal<Local, Bits<16>>,
        free: Signal<Local, bool>,
        key: Signal<Local, Bits<128>>,
        info: Signal<Local, Bits<49>>,
        slot_key: Signal<Local, Bits<128>>,
        slot_info: Signal<Local, Bits<89>>,
        equal: Signal<Local, bool>,
        done: Signal<Local, bool>,
        held: Fixed<5, 31>,
        updated: Fixed<4, { Updated::Updated as u64 }>,
        refused: Fixed<4, { Updated::Refused as u64 }>,
        unknown: Fixed<4, { Updated::Unknown as u64 }>,
        // Error, device fault, busy: with any of them the ATA status is no success.
        failure: Fixed<8, 0xA1>,
        ata_error: Fixed<8, { aoe::ATA_STATUS_ERROR as u64 }>,
        not_found: Fixed<8, { aoe::ATA_ERROR_NOT_FOUND as u64 }>,
        aoe_argument: Fixed<8, { aoe::ERROR_ARGUMENT as u64 }>,
    }
}

impl Logic for Scoreboard {
    #[hdl_gen]
    fn update(&mut self) {
        self.keys.read_clock.next = self.clock.val();
        self.keys.write_clock.next = self.clock.val();
        self.infos.read_clock.next = self.clock.val();
        self.infos.write_clock.next = self.clock.val();
        clock!(self, clock, answer_keys, answer_infos);
        dff_setup!(self, clock, busy, pointer, flying, scan, hit_slot, hit_number);

        // A free slot: the pointer walks on until it stands on one.
        self.busy_at_pointer.next = self.busy.q.val() >> self.pointer.q.val();
        self.free.next = !self.busy_at_pointer.val().get_bit(0);
        self.slot_free.next = self.free.val();
        self.slot.next = self.pointer.q.val();
        self.pointer_next.next = self.pointer.q.val() + 1;
        self.pointer_bit.next = bits::<16>(1) << self.pointer.q.val();
        self.slot_bit.next = bits::<16>(1) << self.hit_slot.q.val();
        self.flying_more.next = self.flying.q.val() + 1;
        self.flying_less.next = self.flying.q.val() - 1;
        if !self.free.val() & (self.flying.q.val() != 16) {
            self.pointer.d.next = self.pointer_next.val();
        }
        self.keys.write_address.next = self.pointer.q.val();
        self.keys.write_data.next = self.admit_key.val();
        self.keys.write_enable.next = self.admit.val();
        self.infos.write_address.next = self.pointer.q.val();
        self.infos.write_data.next = bit_cast::<89, 64>(self.admit_number.val())
            | (bit_cast::<89, 24>(self.admit_address.val()) << 64)
            | (bit_cast::<89, 1>(self.admit_short.val().into()) << 88);
        self.infos.write_enable.next = self.admit.val();
        if self.admit.val() & !self.take.val() {
            self.busy.d.next = self.busy.q.val() | self.pointer_bit.val();
            self.flying.d.next = self.flying_more.val();
        }
        if self.admit.val() & self.take.val() {
            self.busy.d.next = (self.busy.q.val() | self.pointer_bit.val()) & !self.slot_bit.val();
        }
        if self.take.val() & !self.admit.val() {
            self.busy.d.next = self.busy.q.val() & !self.slot_bit.val();
            self.flying.d.next = self.flying_less.val();
        }
        self.in_flight.next = self.flying.q.val();

        // Answers, one after the other.
        self.answer_keys.clear.next = false;
        self.answer_infos.clear.next = false;
        self.answer_keys.data.next = self.answer_key.val();
        self.answer_infos.data.next = self.answer_info.val();
        self.answer_keys.push.next = self.answer.val();
        self.answer_infos.push.next = self.answer.val();
        self.answers_full.next = self.answer_keys.full.val();
        self.key.next = self.answer_keys.front.val();
        self.info.next = self.answer_infos.front.val();
        self.scan_next.next = self.scan.q.val() + 1;
        self.scan_slot.next = self.scan.q.val() - 2;
        self.read_slot.next = self.scan.q.val() - 1;
        self.keys.read_address.next = self.read_slot.val().get_bits::<4>(0);
        self.infos.read_address.next = self.read_slot.val().get_bits::<4>(0);
        self.slot_key.next = self.keys.read_data.val();
        self.slot_info.next = self.infos.read_data.val();
        self.busy_at_scan.next = self.busy.q.val() >> self.scan_slot.val();
        // MAC and tag are bits 79:0, the LBA's 28 low bits 107:80.
        self.equal.next = self.busy_at_scan.val().get_bit(0)
            & (self.slot_key.val().get_bits::<108>(0) == self.key.val().get_bits::<108>(0))
            & (self.slot_info.val().get_bit(88)
                | (self.slot_key.val().get_bits::<20>(108) == self.key.val().get_bits::<20>(108)))
            & (self.slot_info.val().get_bits::<24>(64) == self.info.val().get_bits::<24>(24));
        self.done.next = false;
        self.unmatched.next = false;
        if self.scan.q.val() == 0 {
            if self.answer_keys.filled.val() & self.answer_infos.filled.val() {
                self.scan.d.next = bits::<5>(1);
            }
        } else if self.scan.q.val() == self.held.val() {
            if self.take.val() {
                self.scan.d.next = bits::<5>(0);
                self.done.next = true;
            }
        } else {
            self.scan.d.next = self.scan_next.val();
            if (self.scan.q.val() > 1) & self.equal.val() {
                self.hit_slot.d.next = self.scan_slot.val().get_bits::<4>(0);
                self.hit_number.d.next = self.slot_info.val().get_bits::<64>(0);
                self.scan.d.next = self.held.val();
            } else if self.scan.q.val() == 17 {
                self.scan.d.next = bits::<5>(0);
                self.done.next = true;
                self.unmatched.next = true;
            }
        }
        self.answer_keys.pop.next = self.done.val();
        self.answer_infos.pop.next = self.done.val();

        // What the answer says: `engine::answer` has the table with its reasons.
        self.matched.next = self.scan.q.val() == self.held.val();
        self.matched_slot.next = self.hit_slot.q.val();
        self.matched_number.next = self.hit_number.q.val();
        self.matched_status.next = self.info.val().get_bits::<8>(0);
        self.matched_error.next = self.info.val().get_bits::<8>(8);
        self.matched_aoe.next = self.info.val().get_bit(48);
        self.matched_updated.next = self.unknown.val();
        if self.info.val().get_bit(48) {
            self.matched_error.next = self.info.val().get_bits::<8>(16);
            if (self.info.val().get_bits::<8>(16) == 1)
                | (self.info.val().get_bits::<8>(16) == self.aoe_argument.val())
                | (self.info.val().get_bits::<8>(16) == 5)
                | (self.info.val().get_bits::<8>(16) == 6)
            {
                self.matched_updated.next = self.refused.val();
            }
        } else if (self.info.val().get_bits::<8>(0) & self.failure.val()) == 0 {
            self.matched_updated.next = self.updated.val();
        } else if ((self.info.val().get_bits::<8>(0) & self.failure.val()) == self.ata_error.val())
            & (self.info.val().get_bits::<8>(8) == self.not_found.val())
        {
            self.matched_updated.next = self.refused.val();
        }
    }
}
