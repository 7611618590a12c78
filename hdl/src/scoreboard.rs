//! Scoreboard of a port: the writes that are at the target, what the target answers to them, and what
//! happens when it doesn't (DESIGN §3.4, §3.7, §3.8).
//!
//! A slot holds a write and its copies, up to four requests with a tag, a number and a time of their own.
//! An answer belongs to a request when MAC, volume, tag and LBA are equal; of several the oldest. Answers
//! wait in a FIFO and are compared with the slots one after the other, 25 cycles each. Between two of
//! them, once a tick, the times of all requests are looked at.
//!
//! A write that is held *claims* its slot and is *launched* when it is forwarded; a port has one such.
//! A request whose answer waits for the disk is *parked* in its slot until the answer has left.

use crate::expired::Expired;
use crate::prelude::*;
use layout::aoe;
use layout::entry::Updated;

/// Writes in flight that a port keeps apart.
pub const SLOTS: usize = 16;
/// Unanswered requests of one write, itself included.
pub const COPIES: usize = 4;

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

mod states {
    #![allow(missing_docs)]
    use rust_hdl::prelude::*;

    #[derive(Copy, Clone, PartialEq, Debug, LogicState)]
    pub enum ScoreState {
        Idle,
        /// An answer is compared with the slots: read at 0–15, compared one later, decided two later.
        Slots,
        /// Of the requests of the slot that was hit the oldest is chosen: read at 0–3, decided two later.
        Requests,
        /// An answer is looked for among the requests whose quarantine is over.
        Recall,
        /// What was found waits until it has been journaled.
        Held,
        /// How long a request has waited is worked out.
        Age,
        /// Whether that is too long is decided.
        Decide,
        /// A slot's requests are taken out, for its quarantine is over: read at 0–3, taken one later.
        Expire,
    }
}
pub use states::ScoreState;

logic_block! {
    /// 16 slots of four requests.
    #[derive(Default)]
    pub struct Scoreboard {
        /// Clock.
        pub clock: Signal<In, Clock>,
        /// Ticks since power-up.
        pub ticks: Signal<In, Bits<32>>,
        /// Ticks without an answer after which a request's status is unknown.
        pub unknown: Signal<In, Bits<32>>,
        /// Ticks from the last copy until a slot is free again without an answer.
        pub quarantine: Signal<In, Bits<32>>,
        /// A free slot is at `slot`.
        pub slot_free: Signal<Out, bool>,
        /// The slot that the next admission takes, unless it is a copy.
        pub slot: Signal<Out, Bits<4>>,
        /// Slot of the write that the next admission is a copy of.
        pub copy_slot: Signal<In, Bits<4>>,
        /// That slot has room for one more request.
        pub copy_room: Signal<Out, bool>,
        /// A write is admitted and forwarded (strobe).
        pub admit: Signal<In, bool>,
        /// A write is admitted, but held (strobe).
        pub claim: Signal<In, bool>,
        /// The held one is forwarded (strobe).
        pub launch: Signal<In, bool>,
        /// The held one is dropped (strobe).
        pub abandon: Signal<In, bool>,
        /// With `admit` or `claim`: it is a copy of the one in `copy_slot`.
        pub admit_copy: Signal<In, bool>,
        /// Its MAC, tag and LBA: `ingress::write_key`.
        pub admit_key: Signal<In, Bits<128>>,
        /// Its shelf and slot as they stand in the frame.
        pub admit_address: Signal<In, Bits<24>>,
        /// Its LBA has 28 bits.
        pub admit_short: Signal<In, bool>,
        /// Its volume has the acknowledge policy `journal`.
        pub admit_journal: Signal<In, bool>,
        /// Its number; with `admit` or `launch`.
        pub admit_number: Signal<In, Bits<64>>,
        /// An answer (strobe); the caller looks at `answers_full` first.
        pub answer: Signal<In, bool>,
        /// Destination MAC, tag and LBA of the answer, laid out as `ingress::write_key`.
        pub answer_key: Signal<In, Bits<128>>,
        /// The rest: [`answer_info`].
        pub answer_info: Signal<In, Bits<49>>,
        /// Its frame is in the port's output buffer.
        pub answer_there: Signal<In, bool>,
        /// No room for an answer.
        pub answers_full: Signal<Out, bool>,
        /// The oldest answer whose frame is there has been seen to (strobe).
        pub verdict: Signal<Out, bool>,
        /// It may have to wait for the disk; its request is parked until `let_go`.
        pub verdict_hold: Signal<Out, bool>,
        /// Number of its entry.
        pub verdict_number: Signal<Out, Bits<64>>,
        /// Its place: request in bits 1:0, slot above.
        pub verdict_place: Signal<Out, Bits<6>>,
        /// A parked request's answer has left; until `release_take`.
        pub let_go: Signal<In, bool>,
        /// Its place.
        pub release_place: Signal<In, Bits<6>>,
        /// Seen.
        pub release_take: Signal<Out, bool>,
        /// A request is parked in `copy_slot`.
        pub copy_parked: Signal<Out, bool>,
        /// The place of the last of them.
        pub copy_place: Signal<Out, Bits<6>>,
        /// An answer matched no write in a slot (strobe).
        pub unmatched: Signal<Out, bool>,
        /// A status is to be journaled; stays until `take`.
        pub matched: Signal<Out, bool>,
        /// The status had been declared unknown before.
        pub matched_late: Signal<Out, bool>,
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
        /// It has been journaled (strobe).
        pub take: Signal<In, bool>,
        /// A slot's location is free again (strobe).
        pub free: Signal<Out, bool>,
        /// A slot's location is in quarantine from now on (strobe).
        pub declared: Signal<Out, bool>,
        /// The slot of `free` or `declared`.
        pub changed_slot: Signal<Out, Bits<4>>,
        /// Requests that the target may still execute, and one that is held.
        pub in_flight: Signal<Out, Bits<7>>,
        /// Of those, the ones that have no completion yet.
        pub reserved: Signal<Out, Bits<7>>,
        // As `expired::slot_key`, and above it the acknowledge policy.
        keys: Ram<122, 4>,
        tags: [Ram<32, 4>; 4],
        // Number, and above it the tick at which it was forwarded.
        requests: Ram<96, 6>,
        expired: Expired,
        answer_keys: Fifo<128, 5>,
        answer_infos: Fifo<50, 5>,
        open: [Dff<Bits<16>>; 4],
        doubtful: [Dff<Bits<16>>; 4],
        parked: [Dff<Bits<16>>; 4],
        // The held one: whether there is one, its slot, its place there.
        claimed: Dff<bool>,
        claimed_slot: Dff<Bits<4>>,
        claimed_request: Dff<Bits<2>>,
        pointer: Dff<Bits<4>>,
        flying: Dff<Bits<7>>,
        awaited: Dff<Bits<7>>,
        free_request: Signal<Local, Bits<2>>,
        state: Dff<ScoreState>,
        place: Dff<Bits<5>>,
        key_hit: Dff<bool>,
        key_journal: Dff<bool>,
        hit_journal: Dff<bool>,
        tag_hits: Dff<Bits<4>>,
        candidates: Dff<Bits<4>>,
        candidate_number: Dff<Bits<64>>,
        hit_any: Dff<bool>,
        hit_slot: Dff<Bits<4>>,
        hit_request: Dff<Bits<2>>,
        hit_number: Dff<Bits<64>>,
        silent: Dff<bool>,
        recalled: Dff<bool>,
        // The look at all requests: under way, where, and whether the slot's quarantine may be over.
        walking: Dff<bool>,
        walk: Dff<Bits<6>>,
        ripe: Dff<bool>,
        age: Dff<Bits<32>>,
        patience: Dff<Bits<32>>,
        tick_seen: Dff<bool>,
        answer_waited: Dff<bool>,
        busy: Signal<Local, Bits<16>>,
        full: Signal<Local, Bits<16>>,
        at_pointer: Signal<Local, Bits<16>>,
        at_copy: [Signal<Local, Bits<16>>; 4],
        at_compared: [Signal<Local, Bits<16>>; 4],
        at_walk: [Signal<Local, Bits<16>>; 4],
        at_hit: [Signal<Local, Bits<16>>; 4],
        doubt_at_walk: [Signal<Local, Bits<16>>; 4],
        doubt_at_hit: [Signal<Local, Bits<16>>; 4],
        full_at_copy: Signal<Local, Bits<16>>,
        pointer_next: Signal<Local, Bits<4>>,
        admit_slot: Signal<Local, Bits<4>>,
        admit_request: Signal<Local, Bits<2>>,
        admit_bit: Signal<Local, Bits<16>>,
        taking: Signal<Local, bool>,
        sent: Signal<Local, bool>,
        claimed_bit: Signal<Local, Bits<16>>,
        claimed_open: [Signal<Local, Bits<16>>; 4],
        claimed_others: Signal<Local, bool>,
        parked_any: Signal<Local, Bits<16>>,
        parked_at_copy: [Signal<Local, Bits<16>>; 4],
        parked_at_walk: Signal<Local, Bits<16>>,
        parked_at_hit: Signal<Local, Bits<16>>,
        parked_at_claim: Signal<Local, Bits<16>>,
        release_slot: Signal<Local, Bits<4>>,
        release_bit: Signal<Local, Bits<16>>,
        // What else is in the slot of the release.
        release_left: Signal<Local, Bits<16>>,
        release_others: Signal<Local, Bits<16>>,
        release_now: Signal<Local, bool>,
        free_now: Signal<Local, bool>,
        park: Signal<Local, bool>,
        parked_next: [Signal<Local, Bits<16>>; 4],
        change_bit: Signal<Local, Bits<16>>,
        place_next: Signal<Local, Bits<5>>,
        compared: Signal<Local, Bits<5>>,
        decided: Signal<Local, Bits<5>>,
        walk_slot: Signal<Local, Bits<4>>,
        walk_request: Signal<Local, Bits<2>>,
        walk_next: Signal<Local, Bits<6>>,
        walk_to: Signal<Local, Bits<6>>,
        request_address: Signal<Local, Bits<6>>,
        key: Signal<Local, Bits<128>>,
        info: Signal<Local, Bits<50>>,
        slot_key: Signal<Local, Bits<122>>,
        request: Signal<Local, Bits<96>>,
        tag_equal: Signal<Local, Bits<4>>,
        candidate: Signal<Local, Bits<4>>,
        open_here: Signal<Local, bool>,
        doubtful_here: Signal<Local, bool>,
        slot_open: Signal<Local, bool>,
        slot_pending: Signal<Local, bool>,
        others_open: Signal<Local, bool>,
        late: Signal<Local, bool>,
        ripe_now: Signal<Local, bool>,
        advance: Signal<Local, bool>,
        close: Signal<Local, bool>,
        close_request: Signal<Local, Bits<2>>,
        declare: Signal<Local, bool>,
        settled_one: Signal<Local, bool>,
        done: Signal<Local, bool>,
        expired_tag: Signal<Local, Bits<32>>,
        open_next: [Signal<Local, Bits<16>>; 4],
        doubtful_next: [Signal<Local, Bits<16>>; 4],
        flying_now: Signal<Local, Bits<7>>,
        awaited_now: Signal<Local, Bits<7>>,
        updated_status: Fixed<4, { Updated::Updated as u64 }>,
        refused_status: Fixed<4, { Updated::Refused as u64 }>,
        unknown_status: Fixed<4, { Updated::Unknown as u64 }>,
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
        self.requests.read_clock.next = self.clock.val();
        self.requests.write_clock.next = self.clock.val();
        clock!(self, clock, expired, answer_keys, answer_infos);
        dff_setup!(
            self,
            clock,
            claimed,
            claimed_slot,
            claimed_request,
            pointer,
            flying,
            awaited,
            state,
            place,
            key_hit,
            key_journal,
            hit_journal,
            tag_hits,
            candidates,
            candidate_number,
            hit_any,
            hit_slot,
            hit_request,
            hit_number,
            silent,
            recalled,
            walking,
            walk,
            ripe,
            age,
            patience,
            tick_seen,
            answer_waited
        );
        self.place_next.next = self.place.q.val() + 1;
        self.compared.next = self.place.q.val() - 1;
        self.decided.next = self.place.q.val() - 2;
        self.walk_slot.next = self.walk.q.val().get_bits::<4>(2);
        self.walk_request.next = self.walk.q.val().get_bits::<2>(0);
        self.walk_next.next = self.walk.q.val() + 1;

        // What is where in the slots.
        self.busy.next = bits::<16>(0);
        self.full.next = bits::<16>(0xFFFF);
        self.tag_equal.next = bits::<4>(0);
        self.open_here.next = false;
        self.doubtful_here.next = false;
        self.slot_open.next = false;
        self.slot_pending.next = false;
        self.others_open.next = false;
        self.late.next = self.recalled.q.val();
        self.free_request.next = bits::<2>(3);
        for i in 0..4 {
            self.tags[i].read_clock.next = self.clock.val();
            self.tags[i].write_clock.next = self.clock.val();
            self.open[i].clock.next = self.clock.val();
            self.doubtful[i].clock.next = self.clock.val();
            self.busy.next = self.busy.val() | self.open[i].q.val();
            self.full.next = self.full.val() & self.open[i].q.val();
            self.at_copy[i].next = self.open[i].q.val() >> self.copy_slot.val();
            self.at_compared[i].next = self.open[i].q.val() >> self.compared.val();
            self.at_walk[i].next = self.open[i].q.val() >> self.walk_slot.val();
            self.at_hit[i].next = self.open[i].q.val() >> self.hit_slot.q.val();
            self.doubt_at_walk[i].next = self.doubtful[i].q.val() >> self.walk_slot.val();
            self.doubt_at_hit[i].next = self.doubtful[i].q.val() >> self.hit_slot.q.val();
            if self.at_compared[i].val().get_bit(0)
                & (self.tags[i].read_data.val() == self.key.val().get_bits::<32>(48))
            {
                self.tag_equal.next = self.tag_equal.val() | (bits::<4>(1) << i.to_bits::<2>());
            }
            if self.at_walk[i].val().get_bit(0) {
                self.slot_open.next = true;
                if !self.doubt_at_walk[i].val().get_bit(0) {
                    self.slot_pending.next = true;
                }
                if self.walk_request.val() == i.to_bits::<2>() {
                    self.open_here.next = true;
                    self.doubtful_here.next = self.doubt_at_walk[i].val().get_bit(0);
                }
            }
            if self.hit_request.q.val() == i.to_bits::<2>() {
                if self.doubt_at_hit[i].val().get_bit(0) {
                    self.late.next = true;
                }
            } else if self.at_hit[i].val().get_bit(0) {
                self.others_open.next = true;
            }
        }
        if !self.at_copy[2].val().get_bit(0) {
            self.free_request.next = bits::<2>(2);
        }
        if !self.at_copy[1].val().get_bit(0) {
            self.free_request.next = bits::<2>(1);
        }
        if !self.at_copy[0].val().get_bit(0) {
            self.free_request.next = bits::<2>(0);
        }
        self.parked_any.next = bits::<16>(0);
        self.copy_place.next = bit_cast::<6, 4>(self.copy_slot.val()) << 2;
        self.copy_parked.next = false;
        self.release_slot.next = self.release_place.val().get_bits::<4>(2);
        self.release_bit.next = bits::<16>(1) << self.release_slot.val();
        self.release_others.next = bits::<16>(0);
        for i in 0..4 {
            self.parked[i].clock.next = self.clock.val();
            self.parked_any.next = self.parked_any.val() | self.parked[i].q.val();
            self.parked_at_copy[i].next = self.parked[i].q.val() >> self.copy_slot.val();
            if self.parked_at_copy[i].val().get_bit(0) {
                self.copy_parked.next = true;
                self.copy_place.next = (bit_cast::<6, 4>(self.copy_slot.val()) << 2) | i.to_bits::<6>();
            }
            self.release_others.next = self.release_others.val() | self.open[i].q.val();
            if self.release_place.val().get_bits::<2>(0) != i.to_bits::<2>() {
                self.release_others.next = self.release_others.val() | self.parked[i].q.val();
            }
        }
        self.parked_at_walk.next = self.parked_any.val() >> self.walk_slot.val();
        self.parked_at_hit.next = self.parked_any.val() >> self.hit_slot.q.val();
        self.parked_at_claim.next = self.parked_any.val() >> self.claimed_slot.q.val();
        self.busy.next = self.busy.val() | self.parked_any.val();
        if self.parked_at_hit.val().get_bit(0) {
            self.others_open.next = true;
        }
        self.claimed_bit.next = bits::<16>(0);
        if self.claimed.q.val() {
            self.claimed_bit.next = bits::<16>(1) << self.claimed_slot.q.val();
            self.busy.next = self.busy.val() | self.claimed_bit.val();
            if self.claimed_slot.q.val() == self.hit_slot.q.val() {
                self.others_open.next = true;
            }
            if self.claimed_slot.q.val() == self.walk_slot.val() {
                self.slot_pending.next = true;
            }
        }
        self.release_left.next =
            (self.release_others.val() | self.claimed_bit.val()) & self.release_bit.val();
        self.claimed_others.next = self.parked_at_claim.val().get_bit(0);
        for i in 0..4 {
            self.claimed_open[i].next = self.open[i].q.val() >> self.claimed_slot.q.val();
            if self.claimed_open[i].val().get_bit(0) {
                self.claimed_others.next = true;
            }
        }
        self.full_at_copy.next = self.full.val() >> self.copy_slot.val();
        self.copy_room.next = !self.full_at_copy.val().get_bit(0);

        // A free slot: the pointer walks on until it stands on one.
        self.at_pointer.next = self.busy.val() >> self.pointer.q.val();
        self.slot_free.next = !self.at_pointer.val().get_bit(0);
        self.slot.next = self.pointer.q.val();
        self.pointer_next.next = self.pointer.q.val() + 1;
        if self.at_pointer.val().get_bit(0) & (self.busy.val() != 0xFFFF) {
            self.pointer.d.next = self.pointer_next.val();
        }

        // Admission.
        self.admit_slot.next = self.pointer.q.val();
        self.admit_request.next = bits::<2>(0);
        if self.admit_copy.val() {
            self.admit_slot.next = self.copy_slot.val();
            self.admit_request.next = self.free_request.val();
        }
        if self.launch.val() {
            self.admit_slot.next = self.claimed_slot.q.val();
            self.admit_request.next = self.claimed_request.q.val();
        }
        // What takes its slot, and what is forwarded.
        self.taking.next = self.admit.val() | self.claim.val();
        self.sent.next = self.admit.val() | self.launch.val();
        self.keys.write_address.next = self.admit_slot.val();
        self.keys.write_data.next = bit_cast::<122, 48>(self.admit_key.val().get_bits::<48>(0))
            | (bit_cast::<122, 48>(self.admit_key.val().get_bits::<48>(80)) << 48)
            | (bit_cast::<122, 24>(self.admit_address.val()) << 96)
            | (bit_cast::<122, 1>(self.admit_short.val().into()) << 120)
            | (bit_cast::<122, 1>(self.admit_journal.val().into()) << 121);
        self.keys.write_enable.next = self.taking.val() & !self.admit_copy.val();
        if self.claim.val() {
            self.claimed.d.next = true;
            self.claimed_slot.d.next = self.admit_slot.val();
            self.claimed_request.d.next = self.admit_request.val();
        }
        if self.launch.val() | self.abandon.val() {
            self.claimed.d.next = false;
        }
        self.admit_bit.next = bits::<16>(1) << self.admit_slot.val();
        self.requests.write_address.next =
            bit_cast::<6, 2>(self.admit_request.val()) | (bit_cast::<6, 4>(self.admit_slot.val()) << 2);
        self.requests.write_data.next =
            bit_cast::<96, 64>(self.admit_number.val()) | (bit_cast::<96, 32>(self.ticks.val()) << 64);
        self.requests.write_enable.next = self.sent.val();

        // Answers wait.
        self.answer_keys.clear.next = false;
        self.answer_infos.clear.next = false;
        self.answer_keys.data.next = self.answer_key.val();
        self.answer_infos.data.next = bit_cast::<50, 49>(self.answer_info.val())
            | (bit_cast::<50, 1>(self.answer_there.val().into()) << 49);
        self.answer_keys.push.next = self.answer.val();
        self.answer_infos.push.next = self.answer.val();
        self.answers_full.next = self.answer_keys.full.val();
        self.key.next = self.answer_keys.front.val();
        self.info.next = self.answer_infos.front.val();

        // The RAMs are read for what the state is about.
        self.request_address.next = self.walk.q.val();
        self.keys.read_address.next = self.place.q.val().get_bits::<4>(0);
        for i in 0..4 {
            self.tags[i].read_address.next = self.place.q.val().get_bits::<4>(0);
        }
        if self.state.q.val() == ScoreState::Requests {
            self.request_address.next = bit_cast::<6, 2>(self.place.q.val().get_bits::<2>(0))
                | (bit_cast::<6, 4>(self.hit_slot.q.val()) << 2);
        }
        if self.state.q.val() == ScoreState::Expire {
            self.request_address.next = bit_cast::<6, 2>(self.place.q.val().get_bits::<2>(0))
                | (bit_cast::<6, 4>(self.walk_slot.val()) << 2);
            self.keys.read_address.next = self.walk_slot.val();
            for i in 0..4 {
                self.tags[i].read_address.next = self.walk_slot.val();
            }
        }
        self.requests.read_address.next = self.request_address.val();
        self.slot_key.next = self.keys.read_data.val();
        self.request.next = self.requests.read_data.val();
        // The LBA's 28 low bits are 75:48 of a slot's key, 107:80 of an answer's.
        self.key_hit.d.next = (self.slot_key.val().get_bits::<48>(0) == self.key.val().get_bits::<48>(0))
            & (self.slot_key.val().get_bits::<28>(48) == self.key.val().get_bits::<28>(80))
            & (self.slot_key.val().get_bit(120)
                | (self.slot_key.val().get_bits::<20>(76) == self.key.val().get_bits::<20>(108)))
            & (self.slot_key.val().get_bits::<24>(96) == self.info.val().get_bits::<24>(24));
        self.key_journal.d.next = self.slot_key.val().get_bit(121);
        self.tag_hits.d.next = self.tag_equal.val();
        self.candidate_number.d.next = self.request.val().get_bits::<64>(0);
        self.candidate.next = self.candidates.q.val() >> self.decided.val();

        // The look at the times.
        self.patience.d.next = self.unknown.val();
        if self.quarantine.val() < self.unknown.val() {
            self.patience.d.next = self.quarantine.val();
        }
        self.tick_seen.d.next = self.ticks.val().get_bit(0);
        if (self.ticks.val().get_bit(0) != self.tick_seen.q.val()) & (self.busy.val() != 0) {
            self.walking.d.next = true;
        }

        self.walk_to.next = self.walk.q.val();
        self.ripe_now.next = self.ripe.q.val();
        self.advance.next = false;
        self.close.next = false;
        self.close_request.next = self.hit_request.q.val();
        self.declare.next = false;
        self.settled_one.next = false;
        self.done.next = false;
        self.free_now.next = false;
        self.park.next = false;
        self.declared.next = false;
        self.changed_slot.next = self.hit_slot.q.val();
        self.unmatched.next = false;
        self.expired.look_up.next = false;
        self.expired.remember.next = false;
        self.place.d.next = self.place_next.val();
        match self.state.q.val() {
            ScoreState::Idle => {
                self.place.d.next = bits::<5>(0);
                self.silent.d.next = false;
                self.recalled.d.next = false;
                self.hit_any.d.next = false;
                self.answer_waited.d.next = self.answer_infos.filled.val();
                if self.answer_keys.filled.val()
                    & self.answer_infos.filled.val()
                    & (!self.walking.q.val() | self.answer_waited.q.val())
                {
                    self.answer_waited.d.next = false;
                    self.state.d.next = ScoreState::Slots;
                } else if self.walking.q.val() {
                    if self.open_here.val() {
                        self.state.d.next = ScoreState::Age;
                    } else {
                        self.advance.next = true;
                    }
                }
            }
            ScoreState::Slots => {
                if (self.place.q.val() > 1) & self.key_hit.q.val() & (self.tag_hits.q.val() != 0) {
                    self.hit_slot.d.next = self.decided.val().get_bits::<4>(0);
                    self.candidates.d.next = self.tag_hits.q.val();
                    self.hit_journal.d.next = self.key_journal.q.val();
                    self.place.d.next = bits::<5>(0);
                    self.state.d.next = ScoreState::Requests;
                } else if self.place.q.val() == 17 {
                    if self.expired.any.val() {
                        self.state.d.next = ScoreState::Recall;
                    } else {
                        self.unmatched.next = true;
                        self.done.next = true;
                        self.state.d.next = ScoreState::Idle;
                    }
                }
            }
            ScoreState::Requests => {
                if (self.place.q.val() > 1)
                    & self.candidate.val().get_bit(0)
                    & (!self.hit_any.q.val() | (self.candidate_number.q.val() < self.hit_number.q.val()))
                {
                    self.hit_any.d.next = true;
                    self.hit_number.d.next = self.candidate_number.q.val();
                    self.hit_request.d.next = self.decided.val().get_bits::<2>(0);
                }
                if self.place.q.val() == 5 {
                    self.state.d.next = ScoreState::Held;
                }
            }
            ScoreState::Recall => {
                self.expired.look_up.next = true;
                if self.expired.found.val() {
                    self.hit_slot.d.next = self.expired.slot.val();
                    self.hit_number.d.next = self.expired.number.val();
                    self.recalled.d.next = true;
                    self.unmatched.next = true;
                    self.state.d.next = ScoreState::Held;
                } else if self.expired.missed.val() {
                    self.unmatched.next = true;
                    self.done.next = true;
                    self.state.d.next = ScoreState::Idle;
                }
            }
            ScoreState::Held => {
                if self.take.val() {
                    self.state.d.next = ScoreState::Idle;
                    if self.silent.q.val() {
                        self.declare.next = true;
                        self.declared.next = true;
                        self.settled_one.next = true;
                        self.ripe_now.next = self.ripe.q.val() & (self.age.q.val() >= self.quarantine.val());
                        self.advance.next = true;
                    } else {
                        self.done.next = true;
                        if !self.recalled.q.val() {
                            self.close.next = true;
                            self.settled_one.next = !self.late.val();
                            self.park.next = self.hit_journal.q.val() & self.info.val().get_bit(49);
                            self.free_now.next = !self.others_open.val() & !self.park.val();
                        }
                    }
                }
            }
            ScoreState::Age => {
                self.age.d.next = self.ticks.val() - self.request.val().get_bits::<32>(64);
                self.hit_number.d.next = self.request.val().get_bits::<64>(0);
                self.hit_slot.d.next = self.walk_slot.val();
                self.hit_request.d.next = self.walk_request.val();
                self.state.d.next = ScoreState::Decide;
            }
            ScoreState::Decide => {
                self.state.d.next = ScoreState::Idle;
                if self.doubtful_here.val() {
                    self.ripe_now.next = self.ripe.q.val() & (self.age.q.val() >= self.quarantine.val());
                    self.advance.next = true;
                } else if self.age.q.val() >= self.patience.q.val() {
                    self.silent.d.next = true;
                    self.state.d.next = ScoreState::Held;
                } else {
                    self.ripe_now.next = false;
                    self.advance.next = true;
                }
            }
            ScoreState::Expire => {
                // The location was let go of at once; here the requests are put away.
                self.close_request.next = self.compared.val().get_bits::<2>(0);
                self.changed_slot.next = self.walk_slot.val();
                if self.place.q.val() != 0 {
                    for i in 0..4 {
                        if (self.close_request.val() == i.to_bits::<2>()) & self.at_walk[i].val().get_bit(0) {
                            self.close.next = true;
                            self.expired.remember.next = true;
                        }
                    }
                    if self.place.q.val() == 4 {
                        self.walk_to.next = self.walk_next.val();
                        self.state.d.next = ScoreState::Idle;
                    }
                }
            }
        }
        self.ripe.d.next = self.ripe_now.val();
        if self.advance.val() {
            self.walk_to.next = self.walk_next.val();
            if self.walk_request.val() == 3 {
                self.ripe.d.next = true;
                // A copy that was admitted meanwhile is pending, and one that is being admitted counts.
                if self.ripe_now.val()
                    & self.slot_open.val()
                    & !self.slot_pending.val()
                    & !self.taking.val()
                    & !self.abandon.val()
                {
                    // What is parked there keeps the location, until it has left.
                    self.free_now.next = !self.parked_at_walk.val().get_bit(0);
                    self.changed_slot.next = self.walk_slot.val();
                    self.walk_to.next = self.walk.q.val();
                    self.place.d.next = bits::<5>(0);
                    self.state.d.next = ScoreState::Expire;
                }
            }
        }
        if self.abandon.val() & !self.claimed_others.val() {
            self.free_now.next = true;
            self.changed_slot.next = self.claimed_slot.q.val();
        }
        // A release waits until nothing else happens.
        self.release_now.next = self.let_go.val()
            & !self.free_now.val()
            & !self.declared.val()
            & !self.close.val()
            & !self.taking.val()
            & !self.abandon.val();
        self.release_take.next = self.release_now.val();
        self.free.next = self.free_now.val();
        if self.release_now.val() {
            self.changed_slot.next = self.release_slot.val();
            self.free.next = self.release_left.val() == 0;
        }
        self.verdict.next = self.done.val() & self.info.val().get_bit(49);
        self.verdict_hold.next = self.park.val();
        self.verdict_number.next = self.hit_number.q.val();
        self.verdict_place.next =
            (bit_cast::<6, 4>(self.hit_slot.q.val()) << 2) | bit_cast::<6, 2>(self.hit_request.q.val());
        self.walk.d.next = self.walk_to.val();
        if (self.walk.q.val() == 63) & (self.walk_to.val() == 0) {
            self.walking.d.next = false;
        }
        self.answer_keys.pop.next = self.done.val();
        self.answer_infos.pop.next = self.done.val();

        // Requests come and go.
        self.change_bit.next = bits::<16>(1) << self.changed_slot.val();
        self.expired_tag.next = bits::<32>(0);
        for i in 0..4 {
            self.tags[i].write_address.next = self.admit_slot.val();
            self.tags[i].write_data.next = self.admit_key.val().get_bits::<32>(48);
            self.tags[i].write_enable.next = false;
            self.open_next[i].next = self.open[i].q.val();
            self.doubtful_next[i].next = self.doubtful[i].q.val();
            if self.declare.val() & (self.hit_request.q.val() == i.to_bits::<2>()) {
                self.doubtful_next[i].next = self.doubtful[i].q.val() | self.change_bit.val();
            }
            if self.close.val() & (self.close_request.val() == i.to_bits::<2>()) {
                self.open_next[i].next = self.open[i].q.val() & !self.change_bit.val();
                self.doubtful_next[i].next = self.doubtful[i].q.val() & !self.change_bit.val();
            }
            self.parked_next[i].next = self.parked[i].q.val();
            if self.park.val() & (self.hit_request.q.val() == i.to_bits::<2>()) {
                self.parked_next[i].next = self.parked[i].q.val() | self.change_bit.val();
            }
            if self.release_now.val() & (self.release_place.val().get_bits::<2>(0) == i.to_bits::<2>()) {
                self.parked_next[i].next = self.parked[i].q.val() & !self.release_bit.val();
            }
            self.parked[i].d.next = self.parked_next[i].val();
            self.open[i].d.next = self.open_next[i].val();
            self.doubtful[i].d.next = self.doubtful_next[i].val();
            if self.sent.val() & (self.admit_request.val() == i.to_bits::<2>()) {
                self.open[i].d.next = self.open_next[i].val() | self.admit_bit.val();
                self.tags[i].write_enable.next = true;
            }
            if self.close_request.val() == i.to_bits::<2>() {
                self.expired_tag.next = self.tags[i].read_data.val();
            }
        }
        self.flying_now.next = self.flying.q.val();
        if self.close.val() {
            self.flying_now.next = self.flying.q.val() - 1;
        }
        self.awaited_now.next = self.awaited.q.val();
        if self.settled_one.val() {
            self.awaited_now.next = self.awaited.q.val() - 1;
        }
        self.flying.d.next = self.flying_now.val();
        self.awaited.d.next = self.awaited_now.val();
        if self.sent.val() {
            self.flying.d.next = self.flying_now.val() + 1;
            self.awaited.d.next = self.awaited_now.val() + 1;
        }
        self.in_flight.next = self.flying.q.val();
        if self.claimed.q.val() {
            self.in_flight.next = self.flying.q.val() + 1;
        }
        self.reserved.next = self.awaited.q.val();
        self.expired.remember_key.next = self.slot_key.val().get_bits::<121>(0);
        self.expired.remember_tag.next = self.expired_tag.val();
        self.expired.remember_slot.next = self.walk_slot.val();
        self.expired.remember_number.next = self.request.val().get_bits::<64>(0);
        self.expired.answer_key.next = self.key.val();
        self.expired.answer_address.next = self.info.val().get_bits::<24>(24);

        // What the answer says: `engine::answer` has the table with its reasons.
        self.matched.next = self.state.q.val() == ScoreState::Held;
        self.matched_late.next = self.late.val();
        self.matched_slot.next = self.hit_slot.q.val();
        self.matched_number.next = self.hit_number.q.val();
        self.matched_status.next = self.info.val().get_bits::<8>(0);
        self.matched_error.next = self.info.val().get_bits::<8>(8);
        self.matched_aoe.next = self.info.val().get_bit(48);
        self.matched_updated.next = self.unknown_status.val();
        if self.silent.q.val() {
            self.matched_late.next = false;
            self.matched_status.next = bits::<8>(0);
            self.matched_error.next = bits::<8>(0);
            self.matched_aoe.next = false;
        } else if self.info.val().get_bit(48) {
            self.matched_error.next = self.info.val().get_bits::<8>(16);
            if (self.info.val().get_bits::<8>(16) == 1)
                | (self.info.val().get_bits::<8>(16) == self.aoe_argument.val())
                | (self.info.val().get_bits::<8>(16) == 5)
                | (self.info.val().get_bits::<8>(16) == 6)
            {
                self.matched_updated.next = self.refused_status.val();
            }
        } else if (self.info.val().get_bits::<8>(0) & self.failure.val()) == 0 {
            self.matched_updated.next = self.updated_status.val();
        } else if ((self.info.val().get_bits::<8>(0) & self.failure.val()) == self.ata_error.val())
            & (self.info.val().get_bits::<8>(8) == self.not_found.val())
        {
            self.matched_updated.next = self.refused_status.val();
        }
    }
}
