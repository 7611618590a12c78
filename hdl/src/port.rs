//! A port: from the wire to its ring, and back.
//!
//! in → [`Ingress`] → two store-and-forward buffers, one for writes and one for what passes (so that a
//! held write blocks no read) → [`JournalEngine`] → uplink and ring; answers → [`Scoreboard`]; frames
//! from the uplink → output buffer → out, but answers to the port's own reads → [`JournalEngine`].

use crate::answer_gate::AnswerGate;
use crate::counters::Counters;
use crate::description_queue::DescriptionQueue;
use crate::ingress::Ingress;
use crate::journal_engine::JournalEngine;
use crate::prelude::*;
use crate::scoreboard::Scoreboard;
use layout::entry::Updated;
use layout::registers::Counter;

logic_block! {
    /// `A`: log2 of the ring's 64-bit words; `H` = `A` − 2; `B`: log2 of the words of each buffer.
    pub struct Port<const A: usize, const H: usize, const B: usize> {
        /// Core clock.
        pub clock: Signal<In, Clock>,
        /// This port.
        pub port: Signal<In, Bits<8>>,
        /// From the source: data, byte 0 in bits 7:0.
        pub rx_data: Signal<In, Bits<64>>,
        /// Valid bytes.
        pub rx_keep: Signal<In, Bits<8>>,
        /// Last word.
        pub rx_last: Signal<In, bool>,
        /// With the last word: the frame is bad.
        pub rx_error: Signal<In, bool>,
        /// A word is there; always taken.
        pub rx_valid: Signal<In, bool>,
        /// To the source: data.
        pub tx_data: Signal<Out, Bits<64>>,
        /// Valid bytes.
        pub tx_keep: Signal<Out, Bits<8>>,
        /// Last word.
        pub tx_last: Signal<Out, bool>,
        /// A word is there; never withdrawn.
        pub tx_valid: Signal<Out, bool>,
        /// It is taken.
        pub tx_ready: Signal<In, bool>,
        /// Ticks since power-up.
        pub ticks: Signal<In, Bits<32>>,
        /// Hold time, ticks.
        pub hold: Signal<In, Bits<32>>,
        /// Ticks without an answer after which a status is unknown.
        pub unknown: Signal<In, Bits<32>>,
        /// Ticks from the last copy until a location is free without an answer.
        pub quarantine: Signal<In, Bits<32>>,
        /// Ticks before a before-image read is sent again.
        pub retry: Signal<In, Bits<32>>,
        /// The host reports: durable up to this number.
        pub durable: Signal<In, Bits<64>>,
        /// Function reset: nothing may be held any more (strobe).
        pub cancel: Signal<In, bool>,
        /// Writes are admitted.
        pub writes_open: Signal<In, bool>,
        /// Volumes that may be written here.
        pub allowed: Signal<In, Bits<16>>,
        /// A word of the volume table is written (strobe).
        pub volume_write: Signal<In, bool>,
        /// Which.
        pub volume_write_index: Signal<In, Bits<4>>,
        /// The word.
        pub volume_write_word: Signal<In, Bits<32>>,
        /// To the `Interlock`: a write is waiting.
        pub waiting: Signal<Out, bool>,
        /// It: `interlock::head`.
        pub head: Signal<Out, Bits<93>>,
        /// From the `Interlock`.
        pub clear: Signal<In, bool>,
        /// From the `Interlock`.
        pub copy: Signal<In, bool>,
        /// From the `Interlock`.
        pub copy_slot: Signal<In, Bits<4>>,
        /// From the `Interlock`.
        pub barred: Signal<In, bool>,
        /// To the `Interlock`: the slot that an admission takes.
        pub slot: Signal<Out, Bits<4>>,
        /// To the `Interlock`: the head is admitted, be it that it goes or that it is held (strobe).
        pub admit: Signal<Out, bool>,
        /// To the `Interlock`: the head was dropped (strobe).
        pub head_dropped: Signal<Out, bool>,
        /// To the `Interlock`: a slot is free again (strobe).
        pub free: Signal<Out, bool>,
        /// To the `Interlock`: a slot is in quarantine (strobe).
        pub declared: Signal<Out, bool>,
        /// The slot of either.
        pub changed_slot: Signal<Out, Bits<4>>,
        /// To the `Arbiter`.
        pub write_request: Signal<Out, bool>,
        /// To the `Arbiter`.
        pub pass_request: Signal<Out, bool>,
        /// To the `PortClock`: sample the time.
        pub sampling: Signal<Out, bool>,
        /// To the `Arbiter`.
        pub stamp_request: Signal<Out, bool>,
        /// To the `Arbiter`.
        pub stamp_entry: Signal<Out, bool>,
        /// From the `Arbiter` (strobe).
        pub write_grant: Signal<In, bool>,
        /// From the `Arbiter` (strobe).
        pub pass_grant: Signal<In, bool>,
        /// From the `Arbiter` (strobe).
        pub stamp_grant: Signal<In, bool>,
        /// Stamp, ns.
        pub stamp: Signal<In, Bits<64>>,
        /// It is the last + 1.
        pub stamp_logical: Signal<In, bool>,
        /// Number.
        pub number: Signal<In, Bits<64>>,
        /// From the `PortClock`: state with the stamp.
        pub clock_state: Signal<In, Bits<18>>,
        /// To the `Uplink`: word.
        pub word: Signal<Out, Bits<68>>,
        /// It is there.
        pub word_valid: Signal<Out, bool>,
        /// It is taken.
        pub word_take: Signal<In, bool>,
        /// From the `ReturnPath`: word.
        pub back_word: Signal<In, Bits<68>>,
        /// It is for us.
        pub back_valid: Signal<In, bool>,
        /// A frame for us is lost (strobe).
        pub back_lost: Signal<In, bool>,
        /// An answer (strobe).
        pub answer: Signal<In, bool>,
        /// Its key.
        pub answer_key: Signal<In, Bits<128>>,
        /// Its rest.
        pub answer_info: Signal<In, Bits<49>>,
        /// No room for an answer.
        pub answers_full: Signal<Out, bool>,
        /// `back_word` is of an answer to our own read.
        pub own: Signal<In, bool>,
        /// It is taken.
        pub own_take: Signal<Out, bool>,
        /// To the `MacTable`.
        pub learn: Signal<Out, bool>,
        /// The address.
        pub learn_mac: Signal<Out, Bits<48>>,
        /// From the `MacTable` (strobe).
        pub learned: Signal<In, bool>,
        /// From the `Host`.
        pub watermark_request: Signal<In, bool>,
        /// To the `Host` (strobe).
        pub watermark_done: Signal<Out, bool>,
        /// To the `Host`: a record other than a watermark was committed (strobe).
        pub committed: Signal<Out, bool>,
        /// Lines committed.
        pub ring_head: Signal<Out, Bits<H>>,
        /// Lines drained.
        pub ring_tail: Signal<In, Bits<H>>,
        /// Ring: read address.
        pub ring_read_address: Signal<In, Bits<A>>,
        /// Ring: the word, two cycles later.
        pub ring_read_data: Signal<Out, Bits<64>>,
        /// Writes in flight.
        pub in_flight: Signal<Out, Bits<8>>,
        /// Counter to show.
        pub counter_address: Signal<In, Bits<5>>,
        /// It.
        pub counter_data: Signal<Out, Bits<32>>,
        /// Source to show.
        pub source_address: Signal<In, Bits<3>>,
        /// It.
        pub source_data: Signal<Out, Bits<49>>,
        /// Frames dropped, whatever the reason; wraps.
        pub drops: Signal<Out, Bits<32>>,
        ingress: Ingress,
        write_buffer: FrameBuffer<B>,
        pass_buffer: FrameBuffer<B>,
        out_buffer: FrameBuffer<B>,
        gate: AnswerGate,
        keys: DescriptionQueue<128, 5>,
        infos: DescriptionQueue<97, 5>,
        engine: JournalEngine<A, H>,
        scoreboard: Scoreboard,
        counters: Counters,
        passing: Dff<bool>,
        dropped: Dff<Bits<32>>,
        info: Signal<Local, Bits<97>>,
        key: Signal<Local, Bits<128>>,
        events: Signal<Local, Bits<32>>,
        was_dropped: Signal<Local, bool>,
        reason_bit: Signal<Local, Bits<32>>,
        back_lost_now: Signal<Local, bool>,
        unused: Signal<Local, Bits<3>>,
        dropped_next: Signal<Local, Bits<32>>,
        pass_take: Signal<Local, bool>,
        count_passed: Fixed<32, { 1 << Counter::Passed as u64 }>,
        count_journaled: Fixed<32, { 1 << Counter::Journaled as u64 }>,
        count_duplicate: Fixed<32, { 1 << Counter::Duplicate as u64 }>,
        count_updated: Fixed<32, { 1 << Counter::Updated as u64 }>,
        count_refused: Fixed<32, { 1 << Counter::Refused as u64 }>,
        count_unknown: Fixed<32, { 1 << Counter::Unknown as u64 }>,
        count_returned: Fixed<32, { 1 << Counter::Returned as u64 }>,
        count_read: Fixed<32, { 1 << Counter::DroppedRead as u64 }>,
        count_closed: Fixed<32, { 1 << Counter::DroppedClosed as u64 }>,
        count_copy: Fixed<32, { 1 << Counter::DroppedCopy as u64 }>,
        count_quarantine: Fixed<32, { 1 << Counter::DroppedQuarantine as u64 }>,
        count_hold: Fixed<32, { 1 << Counter::DroppedHold as u64 }>,
        count_return: Fixed<32, { 1 << Counter::DroppedReturn as u64 }>,
        count_unmatched: Fixed<32, { 1 << Counter::Unmatched as u64 }>,
        updated: Fixed<4, { Updated::Updated as u64 }>,
        refused: Fixed<4, { Updated::Refused as u64 }>,
    }
}

block_default! {
    Port<A, H, B> {
        clock, port, rx_data, rx_keep, rx_last, rx_error, rx_valid, tx_data, tx_keep, tx_last, tx_valid,
        tx_ready, ticks, hold, unknown, quarantine, retry, durable, cancel, writes_open, allowed, volume_write,
        volume_write_index, volume_write_word, waiting, head, clear, copy, copy_slot, barred, slot, admit,
        head_dropped, free, declared, changed_slot, write_request, pass_request, sampling, stamp_request,
        stamp_entry, write_grant, pass_grant, stamp_grant, stamp, stamp_logical, number, clock_state, word,
        word_valid, word_take, back_word, back_valid, back_lost, answer, answer_key, answer_info, answers_full,
        own, own_take, learn, learn_mac, learned, watermark_request, watermark_done, committed, ring_head,
        ring_tail, ring_read_address, ring_read_data, in_flight, counter_address, counter_data, source_address,
        source_data, drops, ingress, write_buffer, pass_buffer, out_buffer, gate, keys, infos, engine, scoreboard,
        counters, passing, dropped, info, key, events, was_dropped, reason_bit, back_lost_now,
        unused, dropped_next, pass_take, count_passed, count_journaled, count_duplicate, count_updated,
        count_refused, count_unknown, count_returned, count_read, count_closed, count_copy, count_quarantine, count_hold,
        count_return, count_unmatched, updated, refused,
    }
    arrays { }
}

impl<const A: usize, const H: usize, const B: usize> Logic for Port<A, H, B> {
    #[hdl_gen]
    fn update(&mut self) {
        clock!(self, clock, ingress, write_buffer, pass_buffer, out_buffer, keys, infos);
        clock!(self, clock, engine, scoreboard, counters, gate);
        dff_setup!(self, clock, passing, dropped);

        // In.
        self.ingress.rx_data.next = self.rx_data.val();
        self.ingress.rx_keep.next = self.rx_keep.val();
        self.ingress.rx_last.next = self.rx_last.val();
        self.ingress.rx_error.next = self.rx_error.val();
        self.ingress.rx_valid.next = self.rx_valid.val();
        self.ingress.writes_open.next = self.writes_open.val();
        self.ingress.allowed.next = self.allowed.val();
        self.ingress.volume_write.next = self.volume_write.val();
        self.ingress.volume_write_index.next = self.volume_write_index.val();
        self.ingress.volume_write_word.next = self.volume_write_word.val();
        self.ingress.ticks.next = self.ticks.val().get_bits::<24>(0);
        self.ingress.source_address.next = self.source_address.val();
        self.source_data.next = self.ingress.source_data.val();
        self.ingress.pass_lost.next = self.pass_buffer.lost.val();
        self.ingress.write_lost.next = self.write_buffer.lost.val() | self.keys.full.val();
        self.ingress.learned.next = self.learned.val();
        self.learn.next = self.ingress.learn.val();
        self.learn_mac.next = self.ingress.learn_mac.val();
        self.write_buffer.data.next = self.ingress.data.val();
        self.write_buffer.last_byte.next = self.ingress.last_byte.val();
        self.write_buffer.last.next = self.ingress.last.val();
        self.write_buffer.valid.next = self.ingress.valid.val();
        self.write_buffer.commit.next = self.ingress.commit_write.val();
        self.pass_buffer.data.next = self.ingress.data.val();
        self.pass_buffer.last_byte.next = self.ingress.last_byte.val();
        self.pass_buffer.last.next = self.ingress.last.val();
        self.pass_buffer.valid.next = self.ingress.valid.val();
        self.pass_buffer.commit.next = self.ingress.commit_pass.val();
        self.keys.data.next = self.ingress.write_key.val();
        self.keys.push.next = self.ingress.commit_write.val();
        self.keys.pop.next = self.engine.described.val();
        self.infos.data.next = self.ingress.write_info.val();
        self.infos.push.next = self.ingress.commit_write.val();
        self.infos.pop.next = self.engine.described.val();

        // The write at the head of the queue.
        self.key.next = self.keys.front.val();
        self.info.next = self.infos.front.val();
        self.waiting.next = self.keys.filled.val() & self.infos.filled.val();
        self.head.next = bit_cast::<93, 48>(self.key.val().get_bits::<48>(80))
            | (bit_cast::<93, 5>(self.info.val().get_bits::<5>(32)) << 48)
            | (bit_cast::<93, 4>(self.info.val().get_bits::<4>(37)) << 53)
            | (bit_cast::<93, 4>(self.info.val().get_bits::<4>(41)) << 57)
            | (bit_cast::<93, 32>(self.info.val().get_bits::<32>(0)) << 61);

        // Journal.
        self.engine.port.next = self.port.val();
        self.engine.ticks.next = self.ticks.val();
        self.engine.retry.next = self.retry.val();
        self.engine.durable.next = self.durable.val();
        self.engine.cancel.next = self.cancel.val();
        self.engine.writes_open.next = self.writes_open.val();
        self.engine.before_word.next = self.back_word.val();
        self.engine.before_valid.next = self.own.val();
        self.own_take.next = self.engine.before_take.val();
        self.engine.copied.next = self.ingress.copied.val();
        self.engine.copied_tag.next = self.ingress.write_key.val().get_bits::<32>(48);
        self.ingress.held.next = self.engine.held_busy.val();
        self.ingress.held_key.next = self.engine.held_key.val();
        self.ingress.held_info.next = self.engine.held_info.val();
        self.engine.hold.next = self.hold.val();
        self.engine.waiting.next = self.keys.filled.val() & self.infos.filled.val();
        self.engine.write_key.next = self.key.val();
        self.engine.write_info.next = self.info.val();
        self.engine.word.next = self.write_buffer.front.val();
        self.engine.word_filled.next = self.write_buffer.filled.val();
        self.write_buffer.hold.next = self.engine.word_hold.val();
        self.write_buffer.again.next = self.engine.word_again.val();
        self.write_buffer.pop.next = self.engine.word_pop.val();
        self.engine.clear.next = self.clear.val();
        self.engine.copy.next = self.copy.val();
        self.engine.copy_room.next = self.scoreboard.copy_room.val();
        self.engine.barred.next = self.barred.val();
        self.engine.slot_free.next = self.scoreboard.slot_free.val();
        self.engine.slot.next = self.scoreboard.slot.val();
        if self.copy.val() {
            self.engine.slot.next = self.copy_slot.val();
        }
        self.engine.reserved.next = self.scoreboard.reserved.val();
        self.engine.write_grant.next = self.write_grant.val();
        self.engine.stamp_grant.next = self.stamp_grant.val();
        self.engine.stamp.next = self.stamp.val();
        self.engine.stamp_logical.next = self.stamp_logical.val();
        self.engine.number.next = self.number.val();
        self.engine.clock_state.next = self.clock_state.val();
        self.engine.matched.next = self.scoreboard.matched.val();
        self.engine.matched_late.next = self.scoreboard.matched_late.val();
        self.engine.matched_slot.next = self.scoreboard.matched_slot.val();
        self.engine.matched_number.next = self.scoreboard.matched_number.val();
        self.engine.matched_updated.next = self.scoreboard.matched_updated.val();
        self.engine.matched_status.next = self.scoreboard.matched_status.val();
        self.engine.matched_error.next = self.scoreboard.matched_error.val();
        self.engine.matched_aoe.next = self.scoreboard.matched_aoe.val();
        self.engine.watermark_request.next = self.watermark_request.val();
        self.watermark_done.next = self.engine.watermark_done.val();
        self.committed.next = self.engine.committed.val();
        self.engine.ring_tail.next = self.ring_tail.val();
        self.ring_head.next = self.engine.ring_head.val();
        self.engine.ring_read_address.next = self.ring_read_address.val();
        self.ring_read_data.next = self.engine.ring_read_data.val();
        self.write_request.next = self.engine.write_request.val();
        self.sampling.next = self.engine.sampling.val();
        self.stamp_request.next = self.engine.stamp_request.val();
        self.stamp_entry.next = self.engine.stamp_entry.val();

        // Scoreboard.
        self.scoreboard.ticks.next = self.ticks.val();
        self.scoreboard.unknown.next = self.unknown.val();
        self.scoreboard.quarantine.next = self.quarantine.val();
        self.scoreboard.copy_slot.next = self.copy_slot.val();
        self.scoreboard.admit_copy.next = self.copy.val();
        self.admit.next = self.write_grant.val() | self.engine.claim.val();
        self.scoreboard.admit.next = self.write_grant.val();
        self.scoreboard.claim.next = self.engine.claim.val();
        self.scoreboard.launch.next = self.engine.launch.val();
        self.scoreboard.abandon.next = self.engine.abandon.val();
        self.scoreboard.admit_key.next = self.key.val();
        self.scoreboard.admit_address.next = self.info.val().get_bits::<24>(46);
        self.scoreboard.admit_short.next = self.info.val().get_bit(45);
        self.scoreboard.admit_journal.next = self.info.val().get_bit(96);
        self.scoreboard.admit_number.next = self.number.val();
        if self.engine.launch.val() {
            self.scoreboard.admit_key.next = self.engine.held_key.val();
            self.scoreboard.admit_number.next = self.engine.held_number.val();
        }
        self.scoreboard.answer.next = self.answer.val();
        self.scoreboard.answer_key.next = self.answer_key.val();
        self.scoreboard.answer_info.next = self.answer_info.val();
        self.answers_full.next = self.scoreboard.answers_full.val();
        self.scoreboard.take.next = self.engine.matched_take.val();
        self.slot.next = self.scoreboard.slot.val();
        self.head_dropped.next = self.engine.described.val() & !self.admit.val();
        self.free.next = self.scoreboard.free.val();
        self.declared.next = self.scoreboard.declared.val();
        self.changed_slot.next = self.scoreboard.changed_slot.val();
        self.in_flight.next = bit_cast::<8, 7>(self.scoreboard.in_flight.val());

        // To the uplink: the write that streams, or the frame that passes.
        self.pass_request.next =
            (self.pass_buffer.filled.val() | self.engine.frame_request.val()) & (!self.passing.q.val());
        // What the engine sends goes first: each such frame is followed by a wait.
        self.engine.frame_grant.next = self.pass_grant.val() & self.engine.frame_request.val();
        if self.pass_grant.val() & !self.engine.frame_request.val() {
            self.passing.d.next = true;
        }
        self.word.next = self.engine.uplink_word.val();
        self.word_valid.next = self.engine.uplink_valid.val();
        self.engine.uplink_take.next = self.word_take.val();
        self.pass_take.next = false;
        if self.passing.q.val() {
            self.word.next = self.pass_buffer.front.val();
            self.word_valid.next = self.pass_buffer.filled.val();
            self.engine.uplink_take.next = false;
            self.pass_take.next = self.word_take.val();
            if self.word_take.val() & self.pass_buffer.front.val().get_bit(67) {
                self.passing.d.next = false;
            }
        }
        self.pass_buffer.hold.next = false;
        self.pass_buffer.again.next = false;
        self.pass_buffer.pop.next = self.pass_take.val();

        // Out.
        self.out_buffer.data.next = self.back_word.val().get_bits::<64>(0);
        self.out_buffer.last_byte.next = self.back_word.val().get_bits::<3>(64);
        self.out_buffer.last.next = self.back_word.val().get_bit(67);
        self.out_buffer.valid.next = self.back_valid.val();
        self.out_buffer.commit.next = true;
        self.out_buffer.hold.next = false;
        self.out_buffer.again.next = false;
        self.out_buffer.pop.next = self.gate.pop.val();
        self.gate.durable.next = self.durable.val();
        self.gate.cancel.next = self.cancel.val();
        self.gate.front.next = self.out_buffer.front.val();
        self.gate.filled.next = self.out_buffer.filled.val();
        self.gate.verdict.next = self.scoreboard.verdict.val();
        self.gate.verdict_hold.next = self.scoreboard.verdict_hold.val();
        self.gate.verdict_number.next = self.scoreboard.verdict_number.val();
        self.gate.verdict_place.next = self.scoreboard.verdict_place.val();
        self.gate.retag.next = self.engine.retag.val();
        self.gate.retag_place.next = self.scoreboard.copy_place.val();
        self.gate.retag_tag.next = self.key.val().get_bits::<32>(48);
        self.scoreboard.let_go.next = self.gate.let_go.val();
        self.scoreboard.release_place.next = self.gate.release_place.val();
        self.gate.release_take.next = self.scoreboard.release_take.val();
        self.scoreboard.answer_there.next = !self.out_buffer.lost.val();
        self.engine.copy_parked.next = self.scoreboard.copy_parked.val();
        self.gate.out_ready.next = self.tx_ready.val();
        self.tx_data.next = self.gate.out.val().get_bits::<64>(0);
        self.tx_last.next = self.gate.out.val().get_bit(67);
        self.tx_valid.next = self.gate.out_valid.val();
        // Only a frame's last word says how many bytes it has.
        self.unused.next = !self.gate.out.val().get_bits::<3>(64);
        self.tx_keep.next = bits::<8>(0xFF);
        if self.gate.out.val().get_bit(67) {
            self.tx_keep.next = bits::<8>(0xFF) >> self.unused.val();
        }

        // Counted.
        self.back_lost_now.next = self.back_lost.val()
            | self.gate.lost.val()
            | (self.back_valid.val() & self.back_word.val().get_bit(67) & self.out_buffer.lost.val());
        self.events.next = bits::<32>(0);
        self.reason_bit.next = bits::<32>(1) << self.ingress.reason.val();
        self.was_dropped.next = self.ingress.dropped.val()
            | self.engine.dropped_hold.val()
            | self.engine.dropped_quarantine.val()
            | self.engine.dropped_read.val()
            | self.engine.dropped_closed.val()
            | self.engine.retag.val();
        if self.ingress.dropped.val() {
            self.events.next = self.events.val() | self.reason_bit.val();
        }
        if self.engine.dropped_hold.val() {
            self.events.next = self.events.val() | self.count_hold.val();
        }
        if self.engine.retag.val() {
            self.events.next = self.events.val() | self.count_copy.val();
        }
        if self.engine.dropped_read.val() {
            self.events.next = self.events.val() | self.count_read.val();
        }
        if self.engine.dropped_closed.val() {
            self.events.next = self.events.val() | self.count_closed.val();
        }
        if self.engine.dropped_quarantine.val() {
            self.events.next = self.events.val() | self.count_quarantine.val();
        }
        if self.pass_take.val() & self.pass_buffer.front.val().get_bit(67) {
            self.events.next = self.events.val() | self.count_passed.val();
        }
        if self.engine.journaled.val() {
            self.events.next = self.events.val() | self.count_journaled.val();
            if self.engine.journaled_copy.val() {
                self.events.next = self.events.val() | self.count_duplicate.val();
            }
        }
        if self.engine.matched_take.val() & (!self.scoreboard.matched_late.val()) {
            if self.scoreboard.matched_updated.val() == self.updated.val() {
                self.events.next = self.events.val() | self.count_updated.val();
            } else if self.scoreboard.matched_updated.val() == self.refused.val() {
                self.events.next = self.events.val() | self.count_refused.val();
            } else {
                self.events.next = self.events.val() | self.count_unknown.val();
            }
        }
        if self.scoreboard.unmatched.val() {
            self.events.next = self.events.val() | self.count_unmatched.val();
        }
        if self.back_lost_now.val() {
            self.events.next = self.events.val() | self.count_return.val();
            self.was_dropped.next = true;
        }
        // A frame counts as returned when its last word leaves.
        if self.gate.out_valid.val() & self.tx_ready.val() & self.gate.out.val().get_bit(67) {
            self.events.next = self.events.val() | self.count_returned.val();
        }
        self.counters.events.next = self.events.val();
        self.counters.address.next = self.counter_address.val();
        self.counter_data.next = self.counters.value.val();
        self.dropped_next.next = self.dropped.q.val() + 1;
        if self.was_dropped.val() {
            self.dropped.d.next = self.dropped_next.val();
        }
        self.drops.next = self.dropped.q.val();
    }
}
