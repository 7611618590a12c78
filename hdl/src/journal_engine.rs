//! The journal engine of a port: admits writes, streams each to the uplink and into the port's ring in
//! the same cycles, and writes the records of answers and watermarks.
//!
//! A write with a before-image is held instead ([`HeldWrite`]): the engine claims its slot, sends the read,
//! streams the answer's data into the ring, then (both images) its own, commits the entry, and forwards it
//! when that is allowed. Its frame stays in the buffer and is gone through again for each of these.
//!
//! A record's header is written after its payload, so the first word of a frame leaves at once; the
//! ring's head moves only when the header is in. Room for an entry and its completion is reserved at
//! admission, and the ring always keeps room for a watermark, a gap and a late answer (DESIGN §3.1): each
//! may be taken by one that wasn't drained yet. A late answer without room becomes a gap.

use crate::held_write::HeldWrite;
use crate::prelude::*;
use crate::record_header::RecordHeader;
use crate::ring_room::RingRoom;
use layout::aoe;
use layout::entry::{self, flags, Kind, Updated};
use layout::port_ring;

mod states {
    #![allow(missing_docs)]
    use rust_hdl::prelude::*;

    #[derive(Copy, Clone, PartialEq, Debug, LogicState)]
    pub enum EngineState {
        Idle,
        /// A completion or a watermark waits for its stamp.
        Stamp,
        /// A write streams to the uplink and into the ring.
        Stream,
        /// A write whose hold time is over, or whose location is in quarantine, is thrown away.
        Discard,
        /// The answer to a read goes into the ring.
        Before,
        /// The held write's own data go into the ring.
        Own,
        /// The read, or the held write, goes to the uplink.
        Send,
        /// The payload of a gap goes into the ring.
        Gap,
        /// The record's header goes into the ring.
        Header,
    }
}
pub use states::EngineState;

logic_block! {
    /// `A`: log2 of the ring's 64-bit words; `H` = `A` − 2: bits of a line count.
    pub struct JournalEngine<const A: usize, const H: usize> {
        /// Clock.
        pub clock: Signal<In, Clock>,
        /// This port.
        pub port: Signal<In, Bits<8>>,
        /// Ticks since power-up.
        pub ticks: Signal<In, Bits<32>>,
        /// Hold time, ticks.
        pub hold: Signal<In, Bits<32>>,
        /// Ticks before a read is sent again.
        pub retry: Signal<In, Bits<32>>,
        /// Writes are admitted; otherwise those that wait are dropped.
        pub writes_open: Signal<In, bool>,
        /// The host reports: durable up to this number.
        pub durable: Signal<In, Bits<64>>,
        /// The host is gone: nothing may be held any more (strobe).
        pub cancel: Signal<In, bool>,
        /// A described write is waiting.
        pub waiting: Signal<In, bool>,
        /// It: `ingress::write_key`.
        pub write_key: Signal<In, Bits<128>>,
        /// It: `ingress::write_info`.
        pub write_info: Signal<In, Bits<97>>,
        /// Take its description.
        pub described: Signal<Out, bool>,
        /// Its frame: `FrameBuffer::front`.
        pub word: Signal<In, Bits<68>>,
        /// A word of it is there.
        pub word_filled: Signal<In, bool>,
        /// Take the word.
        pub word_pop: Signal<Out, bool>,
        /// To the buffer: words that are taken are wanted again.
        pub word_hold: Signal<Out, bool>,
        /// To the buffer: back to the first of them.
        pub word_again: Signal<Out, bool>,
        /// A word of an answer to our read: as `FrameBuffer::front`.
        pub before_word: Signal<In, Bits<68>>,
        /// It is there.
        pub before_valid: Signal<In, bool>,
        /// It is taken.
        pub before_take: Signal<Out, bool>,
        /// A copy of the held write was dropped (strobe).
        pub copied: Signal<In, bool>,
        /// Its tag.
        pub copied_tag: Signal<In, Bits<32>>,
        /// A write is held.
        pub held_busy: Signal<Out, bool>,
        /// It: `ingress::write_key`.
        pub held_key: Signal<Out, Bits<128>>,
        /// It: `ingress::write_info`.
        pub held_info: Signal<Out, Bits<97>>,
        /// Its number.
        pub held_number: Signal<Out, Bits<64>>,
        /// A write is admitted and held (strobe).
        pub claim: Signal<Out, bool>,
        /// The held one is forwarded (strobe).
        pub launch: Signal<Out, bool>,
        /// The held one is dropped (strobe).
        pub abandon: Signal<Out, bool>,
        /// Asks for the uplink, for a read or the held write.
        pub frame_request: Signal<Out, bool>,
        /// Here it is (strobe).
        pub frame_grant: Signal<In, bool>,
        /// Word for the uplink.
        pub uplink_word: Signal<Out, Bits<68>>,
        /// The uplink takes a word of ours at this edge.
        pub uplink_take: Signal<In, bool>,
        /// A word for the uplink is there.
        pub uplink_valid: Signal<Out, bool>,
        /// The write overlaps nothing in flight.
        pub clear: Signal<In, bool>,
        /// The write is a copy of one in flight.
        pub copy: Signal<In, bool>,
        /// The slot of that one has room for a copy.
        pub copy_room: Signal<In, bool>,
        /// An answer to that one, or to a copy of it, waits for the disk.
        pub copy_parked: Signal<In, bool>,
        /// The head is a copy of what waits so, and dropped; its tag is in `write_key` (strobe).
        pub retag: Signal<Out, bool>,
        /// What the write overlaps is in quarantine.
        pub barred: Signal<In, bool>,
        /// A scoreboard slot is free.
        pub slot_free: Signal<In, bool>,
        /// The slot that an admission takes.
        pub slot: Signal<In, Bits<4>>,
        /// Completions that are still to come.
        pub reserved: Signal<In, Bits<7>>,
        /// Asks the arbiter to admit the write.
        pub write_request: Signal<Out, bool>,
        /// It is admitted (strobe), with stamp and number.
        pub write_grant: Signal<In, bool>,
        /// A request comes with the next cycle: the leaf's time is to be sampled from now on.
        pub sampling: Signal<Out, bool>,
        /// Asks the arbiter for a stamp.
        pub stamp_request: Signal<Out, bool>,
        /// With it: it is for an entry.
        pub stamp_entry: Signal<Out, bool>,
        /// Here it is (strobe).
        pub stamp_grant: Signal<In, bool>,
        /// Stamp given, ns.
        pub stamp: Signal<In, Bits<64>>,
        /// It is the last + 1.
        pub stamp_logical: Signal<In, bool>,
        /// Number given, or the last one.
        pub number: Signal<In, Bits<64>>,
        /// The leaf clock as the stamp was taken from it: locked, holdover, error bound from bit 2 up.
        pub clock_state: Signal<In, Bits<18>>,
        /// There is a status to be journaled: an answer to a write of ours, or that there was none.
        pub matched: Signal<In, bool>,
        /// The status had been declared unknown before.
        pub matched_late: Signal<In, bool>,
        /// Its slot.
        pub matched_slot: Signal<In, Bits<4>>,
        /// Its number.
        pub matched_number: Signal<In, Bits<64>>,
        /// Its meaning.
        pub matched_updated: Signal<In, Bits<4>>,
        /// ATA status.
        pub matched_status: Signal<In, Bits<8>>,
        /// ATA error or AoE code.
        pub matched_error: Signal<In, Bits<8>>,
        /// It is an AoE code.
        pub matched_aoe: Signal<In, bool>,
        /// It has been seen to: the completion is in the ring or, for a late one without room, will be
        /// covered by a gap (strobe).
        pub matched_take: Signal<Out, bool>,
        /// A watermark is wanted.
        pub watermark_request: Signal<In, bool>,
        /// It is in the ring (strobe).
        pub watermark_done: Signal<Out, bool>,
        /// A record other than a watermark was committed (strobe).
        pub committed: Signal<Out, bool>,
        /// An entry was committed (strobe).
        pub journaled: Signal<Out, bool>,
        /// It was a copy.
        pub journaled_copy: Signal<Out, bool>,
        /// A write was dropped for its hold time (strobe).
        pub dropped_hold: Signal<Out, bool>,
        /// A write was dropped because its location is in quarantine (strobe).
        pub dropped_quarantine: Signal<Out, bool>,
        /// A write was dropped because nobody gave its old data (strobe).
        pub dropped_read: Signal<Out, bool>,
        /// A write was dropped because writes are closed (strobe).
        pub dropped_closed: Signal<Out, bool>,
        /// Lines committed.
        pub ring_head: Signal<Out, Bits<H>>,
        /// Lines drained.
        pub ring_tail: Signal<In, Bits<H>>,
        /// Ring: read address.
        pub ring_read_address: Signal<In, Bits<A>>,
        /// Ring: the word, two cycles later.
        pub ring_read_data: Signal<Out, Bits<64>>,
        ring: Ram<64, A>,
        ring_out: Dff<Bits<64>>,
        crc_step: Crc32cStep,
        room: RingRoom<A, H>,
        held: HeldWrite,
        header: RecordHeader,
        state: Dff<EngineState>,
        kind: Dff<Bits<8>>,
        record_sequence: Dff<Bits<64>>,
        record_stamp: Dff<Bits<64>>,
        record_number: Dff<Bits<64>>,
        // Flags 15:0, clock error 31:16, slot 35:32.
        record_clock: Dff<Bits<36>>,
        record_lba: Dff<Bits<48>>,
        record_info: Dff<Bits<46>>,
        word_index: Dff<Bits<11>>,
        high: Dff<Bits<32>>,
        place: Dff<Bits<A>>,
        step: Dff<Bits<4>>,
        // The leaf's time has been sampled, so the arbiter may take it.
        sampled: Dff<bool>,
        // Everything that is looked at for an admission was fine in the cycle before: whether to ask is decided then,
        // and only what another port's admission or an answer may have changed is looked at again with the request.
        asked: Dff<bool>,
        claim_asked: Dff<bool>,
        // What was at the head is there for so long at least, and nothing has taken room for so long.
        seen: Dff<bool>,
        seen_longer: Dff<bool>,
        quiet: Dff<bool>,
        quiet_longer: Dff<bool>,
        overdue: Dff<bool>,
        marked: Dff<bool>,
        crc: Dff<Bits<32>>,
        late: Dff<bool>,
        // The answer that comes in is to our read, so far.
        good: Dff<bool>,
        // Times that the held write's own data still go into the ring.
        own_left: Dff<Bits<2>>,
        sending_read: Dff<bool>,
        launching: Dff<bool>,
        cancelled: Dff<bool>,
        // Lines that the held write has reserved.
        held_lines: Dff<Bits<9>>,
        // Late answers were lost after this stamp and number.
        lost: Dff<bool>,
        lost_stamp: Dff<Bits<64>>,
        lost_number: Dff<Bits<64>>,
        // The last number that this port's records tell.
        told_number: Dff<Bits<64>>,
        payload_crc: Dff<Bits<32>>,
        start: Signal<Local, Bits<A>>,
        entry_lines: Signal<Local, Bits<9>>,
        lines: Signal<Local, Bits<9>>,
        committing: Signal<Local, bool>,
        crc_field: Signal<Local, Bits<32>>,
        slot_room: Signal<Local, bool>,
        shut: Signal<Local, bool>,
        record_flags: Signal<Local, Bits<16>>,
        record_slot: Signal<Local, Bits<4>>,
        gap_word: Signal<Local, Bits<64>>,
        claiming: Signal<Local, bool>,
        frame: Signal<Local, bool>,
        ended: Signal<Local, bool>,
        again: Signal<Local, bool>,
        payload: Signal<Local, bool>,
        payload_word: Signal<Local, Bits<64>>,
        source_word: Signal<Local, Bits<68>>,
        short_lba: Signal<Local, bool>,
        uplink_data: Signal<Local, Bits<68>>,
        has_before: Signal<Local, bool>,
        both_here: Signal<Local, bool>,
        sectors: Signal<Local, Bits<5>>,
        sectors_held: Signal<Local, Bits<5>>,
        age: Signal<Local, Bits<24>>,
        expired: Signal<Local, bool>,
        ask: Signal<Local, bool>,
        mark_fits: Signal<Local, bool>,
        entry_fits: Signal<Local, bool>,
        still_clear: Signal<Local, bool>,
        ask_stamp: Signal<Local, bool>,
        flags: Signal<Local, Bits<16>>,
        payload_last: Signal<Local, Bits<15>>,
        next_place: Signal<Local, Bits<A>>,
        next_index: Signal<Local, Bits<11>>,
        next_step: Signal<Local, Bits<4>>,
        next_sequence: Signal<Local, Bits<64>>,
        pop: Signal<Local, bool>,
        write_word: Signal<Local, bool>,
        write_at: Signal<Local, Bits<A>>,
        write_data: Signal<Local, Bits<64>>,
        all_ones: Fixed<32, 0xFFFF_FFFF>,
        after: Fixed<8, { Kind::After as u64 }>,
        before_kind: Fixed<8, { Kind::Before as u64 }>,
        both_kind: Fixed<8, { Kind::Both as u64 }>,
        cancelled_status: Fixed<4, { Updated::Cancelled as u64 }>,
        // Error, device fault, busy.
        failure: Fixed<8, 0xA1>,
        read_short: Fixed<64, { (aoe::ATA_READ as u64) << 24 }>,
        // AFlags: 48-bit address.
        read_long: Fixed<64, { (aoe::ATA_READ_EXT as u64) << 24 | 0x40 }>,
        completion: Fixed<8, { Kind::Completion as u64 }>,
        watermark: Fixed<8, { Kind::Watermark as u64 }>,
        gap: Fixed<8, { Kind::Gap as u64 }>,
        gap_lost: Fixed<64, { entry::GapReason::Lost as u64 }>,
        flag_duplicate: Fixed<16, { flags::DUPLICATE as u64 }>,
        flag_locked: Fixed<16, { flags::CLOCK_LOCKED as u64 }>,
        flag_holdover: Fixed<16, { flags::CLOCK_HOLDOVER as u64 }>,
        flag_logical: Fixed<16, { flags::STAMP_LOGICAL as u64 }>,
        flag_aoe: Fixed<16, { flags::AOE_ERROR as u64 }>,
        flag_late: Fixed<16, { flags::LATE as u64 }>,
    }
}

block_default! {
    JournalEngine<A, H> {
        clock, port, ticks, hold, retry, writes_open, durable, cancel, waiting, write_key, write_info,
        described, word, word_filled, word_pop, word_hold, word_again, before_word, before_valid, before_take,
        copied, copied_tag, held_busy, held_key, held_info, held_number, claim, launch, abandon, frame_request,
        frame_grant, uplink_word, uplink_take, uplink_valid, clear, copy, copy_room, copy_parked, retag, barred, slot_free, slot,
        reserved, write_request, write_grant, sampling, stamp_request, stamp_entry, stamp_grant, stamp,
        stamp_logical, number, clock_state, matched, matched_late, matched_slot, matched_number,
        matched_updated, matched_status, matched_error, matched_aoe, matched_take, watermark_request,
        watermark_done, committed, journaled, journaled_copy, dropped_hold, dropped_quarantine, dropped_read,
        dropped_closed, ring_head, ring_tail, ring_read_address, ring_read_data, ring_out, crc_step,
        room, held, header, state, kind, record_sequence, record_stamp, record_number, record_clock,
        record_lba, record_info, word_index, high, place, step, sampled, asked, claim_asked, seen,
        seen_longer, quiet, quiet_longer, overdue, marked, crc, late, good, own_left,
        sending_read, launching, cancelled, held_lines, lost, lost_stamp, lost_number, told_number,
        payload_crc, start, entry_lines, lines, committing, crc_field, slot_room, shut, record_flags,
        record_slot, gap_word, claiming, frame, ended, again, payload, payload_word, source_word, short_lba,
        uplink_data, has_before, both_here, sectors, sectors_held, age, expired, ask, mark_fits,
        entry_fits, still_clear, ask_stamp, flags, payload_last, next_place, next_index, next_step, next_sequence, pop, write_word, write_at, write_data,
        all_ones, after, before_kind, both_kind, cancelled_status, failure, read_short, read_long, completion,
        watermark, gap, gap_lost, flag_duplicate, flag_locked, flag_holdover, flag_logical, flag_aoe,
        flag_late,
    }
    arrays { }
    with { ring: {
        // Where volumes have both images the host sees to it that the ring is larger (`driver`).
        if let Err(error) = port_ring::check(8 << A, aoe::MAXIMUM_SECTORS, 1) {
            panic!("{error}");
        }
        Ram::default()
    } }
}

impl<const A: usize, const H: usize> Logic for JournalEngine<A, H> {
    #[hdl_gen]
    fn update(&mut self) {
        self.ring.read_clock.next = self.clock.val();
        self.ring.write_clock.next = self.clock.val();
        clock!(self, clock, room, held);
        dff_setup!(
            self,
            clock,
            ring_out,
            state,
            kind,
            record_sequence,
            record_stamp,
            record_number,
            record_clock,
            record_lba,
            record_info,
            word_index,
            high,
            place,
            step,
            sampled,
            asked,
            claim_asked,
            seen,
            seen_longer,
            quiet,
            quiet_longer,
            overdue,
            marked,
            crc,
            late,
            good,
            own_left,
            sending_read,
            launching,
            cancelled,
            held_lines,
            lost,
            lost_stamp,
            lost_number,
            told_number,
            payload_crc
        );
        self.ring.read_address.next = self.ring_read_address.val();
        self.ring_out.d.next = self.ring.read_data.val();
        self.ring_read_data.next = self.ring_out.q.val();
        self.ring_head.next = self.room.head.val();
        self.start.next = bit_cast::<A, H>(self.room.head.val()) << 3;

        // Room: what the entry and its completion take.
        self.sectors.next = self.write_info.val().get_bits::<5>(32);
        self.has_before.next = self.write_info.val().get_bit(94);
        self.entry_lines.next = (bit_cast::<9, 5>(self.sectors.val()) << 3) + 2;
        if self.has_before.val() & self.write_info.val().get_bit(95) {
            self.entry_lines.next = (bit_cast::<9, 5>(self.sectors.val()) << 4) + 2;
        }
        self.room.tail.next = self.ring_tail.val();
        self.room.reserved.next = self.reserved.val();
        self.room.held.next = self.held_lines.q.val();
        self.room.wanted.next = self.entry_lines.val();
        self.slot_room.next = self.slot_free.val();
        if self.copy.val() {
            self.slot_room.next = self.copy_room.val();
        }
        self.shut.next = self.barred.val() & (!self.clear.val() | (self.copy.val() & !self.copy_room.val()));
        self.age.next = self.ticks.val().get_bits::<24>(0) - self.write_info.val().get_bits::<24>(70);
        self.expired.next = bit_cast::<32, 24>(self.age.val()) > self.hold.val();
        // The queue rests a cycle after what was taken, so two cycles in which a write waits see the same one.
        self.overdue.d.next = self.waiting.val() & self.expired.val();
        self.seen.d.next = self.waiting.val();
        self.seen_longer.d.next = self.waiting.val() & self.seen.q.val();
        // `ring_room::LOOK_CYCLES`.
        self.mark_fits.next =
            self.room.mark_room.val() | (self.room.line_room.val() & self.quiet_longer.q.val());
        self.entry_fits.next = self.room.room.val() & self.quiet_longer.q.val() & self.seen_longer.q.val();
        // A request is granted in its own cycle or not at all, so it must be right then.
        self.still_clear.next =
            self.waiting.val() & self.clear.val() & !(self.copy.val() & self.copy_parked.val());

        // Flags that come with the stamp.
        self.flags.next = bits::<16>(0);
        if self.clock_state.val().get_bit(0) {
            self.flags.next = self.flags.val() | self.flag_locked.val();
        }
        if self.clock_state.val().get_bit(1) {
            self.flags.next = self.flags.val() | self.flag_holdover.val();
        }
        if self.stamp_logical.val() {
            self.flags.next = self.flags.val() | self.flag_logical.val();
        }

        self.record_flags.next = bits::<16>(0);
        self.record_slot.next = bits::<4>(0);
        self.described.next = false;
        self.uplink_valid.next = false;
        self.pop.next = false;
        self.matched_take.next = false;
        // The cycle after the last word: then the ring's head includes it.
        self.marked.d.next = false;
        self.watermark_done.next = self.marked.q.val();
        self.committed.next = false;
        self.journaled.next = false;
        self.journaled_copy.next = self.record_clock.q.val().get_bit(0);
        self.dropped_hold.next = false;
        self.dropped_quarantine.next = false;
        self.retag.next = false;
        self.dropped_read.next = false;
        self.dropped_closed.next = false;
        self.write_word.next = false;
        self.write_at.next = self.place.q.val();
        self.write_data.next = bits::<64>(0);
        self.ask.next = false;
        self.ask_stamp.next = false;
        self.sectors_held.next = self.record_info.q.val().get_bits::<5>(32);
        self.payload_last.next = (bit_cast::<15, 5>(self.sectors_held.val()) << 6) + 4;
        self.lines.next = bits::<9>(1);
        if self.header.is_entry.val() {
            self.lines.next = (bit_cast::<9, 5>(self.sectors_held.val()) << 3) + 1;
        }
        if self.kind.q.val() == self.both_kind.val() {
            self.lines.next = (bit_cast::<9, 5>(self.sectors_held.val()) << 4) + 1;
        }
        if self.kind.q.val() == self.gap.val() {
            self.lines.next = bits::<9>(2);
        }
        self.committing.next = false;
        self.gap_word.next = bits::<64>(0);
        if self.step.q.val() == 0 {
            self.gap_word.next = self.lost_stamp.q.val();
        }
        if self.step.q.val() == 1 {
            self.gap_word.next = self.lost_number.q.val();
        }
        if self.step.q.val() == 2 {
            self.gap_word.next = self.gap_lost.val();
        }
        self.next_place.next = self.place.q.val() + 1;
        self.next_index.next = self.word_index.q.val() + 1;
        self.next_step.next = self.step.q.val() + 1;
        self.next_sequence.next = self.record_sequence.q.val() + 1;

        // The header: words 0–6 and, with its own CRC, the last.
        self.crc_field.next = self.payload_crc.q.val();
        if self.kind.q.val() == self.after.val() {
            self.crc_field.next = self.record_info.q.val().get_bits::<32>(0);
        }
        self.header.step.next = self.step.q.val();
        self.header.kind.next = self.kind.q.val();
        self.header.flags.next = self.record_clock.q.val().get_bits::<16>(0);
        self.header.clock_error.next = self.record_clock.q.val().get_bits::<16>(16);
        self.header.stamp.next = self.record_stamp.q.val();
        self.header.number.next = self.record_number.q.val();
        self.header.record_sequence.next = self.record_sequence.q.val();
        self.header.port.next = self.port.val();
        self.header.slot.next = self.record_clock.q.val().get_bits::<4>(32);
        self.header.lba.next = self.record_lba.q.val();
        self.header.sectors.next = self.sectors_held.val();
        self.header.volume.next = self.record_info.q.val().get_bits::<4>(37);
        self.header.source.next = self.record_info.q.val().get_bits::<4>(41);
        self.header.payload_crc.next = self.crc_field.val();
        self.header.updated.next = self.matched_updated.val();
        self.header.answer_status.next = self.matched_status.val();
        self.header.answer_error.next = self.matched_error.val();
        if self.cancelled.q.val() {
            self.header.updated.next = self.cancelled_status.val();
            self.header.answer_status.next = bits::<8>(0);
            self.header.answer_error.next = bits::<8>(0);
        }
        self.crc_step.state.next = self.crc.q.val();
        self.crc_step.word.next = self.header.word.val();
        if self.state.q.val() == EngineState::Gap {
            self.crc_step.word.next = self.gap_word.val();
        }
        // The payload begins in the upper half of a frame's word 4, also in an answer.
        self.source_word.next = self.word.val();
        if self.state.q.val() == EngineState::Before {
            self.source_word.next = self.before_word.val();
        }
        self.payload_word.next = bit_cast::<64, 32>(self.high.q.val())
            | (bit_cast::<64, 32>(self.source_word.val().get_bits::<32>(0)) << 32);
        self.payload.next = (self.word_index.q.val() > 4)
            & (bit_cast::<15, 11>(self.word_index.q.val()) <= self.payload_last.val());
        if (self.state.q.val() == EngineState::Before) | (self.state.q.val() == EngineState::Own) {
            self.crc_step.word.next = self.payload_word.val();
        }

        // The held write.
        self.held.port.next = self.port.val();
        self.held.ticks.next = self.ticks.val();
        self.held.retry.next = self.retry.val();
        self.held.durable.next = self.durable.val();
        self.held.cancel.next = self.cancel.val();
        self.held.load_key.next = self.write_key.val();
        self.held.load_info.next = self.write_info.val();
        self.held.load_slot.next = self.slot.val();
        self.held.load_copy.next = self.copy.val();
        self.held.copied.next = self.copied.val();
        self.held.copied_tag.next = self.copied_tag.val();
        self.held.journaled.next = false;
        self.held.journaled_number.next = self.record_number.q.val();
        self.held.sent.next = false;
        self.held_busy.next = self.held.busy.val();
        self.held_key.next = self.held.key.val();
        self.held_info.next = self.held.info.val();
        self.held_number.next = self.held.number.val();
        self.both_here.next = self.held.info.val().get_bit(95);
        self.short_lba.next = self.held.info.val().get_bit(45);
        // A cycle after the grant, when its tag can't change any more.
        self.launching.d.next = false;
        self.launch.next = self.launching.q.val();
        self.claiming.next = false;
        self.claim.next = false;
        self.abandon.next = false;
        self.ended.next = false;
        self.frame.next = false;
        self.again.next = false;
        self.before_take.next = false;
        self.cancelled.d.next = self.cancelled.q.val();
        if self.launching.q.val() {
            // The completion's line is the scoreboard's to reserve from now on.
            self.held_lines.d.next = bits::<9>(0);
        }

        // To the uplink: the frame as it is, or with the tag that it has now, or the read that asks for what
        // it overwrites.
        self.uplink_data.next = self.word.val();
        if self.state.q.val() == EngineState::Send {
            if self.word_index.q.val() == 2 {
                self.uplink_data.next = bit_cast::<68, 32>(self.word.val().get_bits::<32>(0))
                    | (bit_cast::<68, 32>(self.held.key.val().get_bits::<32>(48)) << 32)
                    | (bit_cast::<68, 4>(self.word.val().get_bits::<4>(64)) << 64);
            }
            if self.sending_read.q.val() {
                if self.word_index.q.val() == 2 {
                    self.uplink_data.next = bit_cast::<68, 32>(self.word.val().get_bits::<32>(0))
                        | (bit_cast::<68, 32>(self.held.read_tag.val()) << 32);
                }
                if self.word_index.q.val() == 3 {
                    self.uplink_data.next = bit_cast::<68, 64>(self.read_long.val());
                    if self.short_lba.val() {
                        self.uplink_data.next = bit_cast::<68, 64>(self.read_short.val());
                    }
                    self.uplink_data.next = self.uplink_data.val()
                        | (bit_cast::<68, 5>(self.held.info.val().get_bits::<5>(32)) << 16)
                        | (bit_cast::<68, 32>(self.held.key.val().get_bits::<32>(80)) << 32);
                }
                if self.word_index.q.val() == 4 {
                    self.uplink_data.next = bit_cast::<68, 16>(self.held.key.val().get_bits::<16>(112));
                }
                if self.word_index.q.val() > 4 {
                    self.uplink_data.next = bits::<68>(0);
                }
                if self.word_index.q.val() == 7 {
                    // 60 bytes: four of the last word.
                    self.uplink_data.next = bits::<68>(0xB) << 64;
                } else if self.word_index.q.val() > 1 {
                    self.uplink_data.next = self.uplink_data.val() | (bits::<68>(7) << 64);
                }
            }
        }
        self.uplink_word.next = self.uplink_data.val();

        match self.state.q.val() {
            EngineState::Idle => {
                self.step.d.next = bits::<4>(0);
                self.crc.d.next = self.all_ones.val();
                self.word_index.d.next = bits::<11>(0);
                self.place.d.next = self.start.val() + 8;
                self.late.d.next = false;
                self.cancelled.d.next = false;
                if self.write_grant.val() {
                    self.described.next = true;
                    self.kind.d.next = self.after.val();
                    self.record_stamp.d.next = self.stamp.val();
                    self.record_number.d.next = self.number.val();
                    self.record_lba.d.next = self.write_key.val().get_bits::<48>(80);
                    self.record_info.d.next = self.write_info.val().get_bits::<46>(0);
                    self.told_number.d.next = self.number.val();
                    self.record_slot.next = self.slot.val();
                    if self.copy.val() {
                        self.record_flags.next = self.flag_duplicate.val();
                    }
                    self.state.d.next = EngineState::Stream;
                } else if self.stamp_grant.val() {
                    // The stamp is not used; the grant is what keeps two claims apart.
                    self.described.next = true;
                    self.claim.next = true;
                    self.record_lba.d.next = self.write_key.val().get_bits::<48>(80);
                    self.record_info.d.next = self.write_info.val().get_bits::<46>(0);
                    self.held_lines.d.next = self.entry_lines.val();
                } else if self.lost.q.val() & self.room.gap_room.val() {
                    self.kind.d.next = self.gap.val();
                    self.state.d.next = EngineState::Stamp;
                } else if self.matched.val()
                    & self.matched_late.val()
                    & (!self.room.late_room.val() | self.lost.q.val())
                {
                    // The second late answer before the drain: everything from the last record on may lack some.
                    self.matched_take.next = true;
                    if !self.lost.q.val() {
                        self.lost.d.next = true;
                        self.lost_stamp.d.next = self.record_stamp.q.val();
                        self.lost_number.d.next = self.told_number.q.val();
                    }
                } else if self.matched.val() {
                    self.kind.d.next = self.completion.val();
                    self.late.d.next = self.matched_late.val();
                    self.state.d.next = EngineState::Stamp;
                } else if self.watermark_request.val() & (!self.marked.q.val()) & self.mark_fits.val() {
                    self.kind.d.next = self.watermark.val();
                    self.state.d.next = EngineState::Stamp;
                } else if self.before_valid.val() {
                    self.good.d.next = self.held.reading.val();
                    self.state.d.next = EngineState::Before;
                } else if self.held.wants_cancel.val() {
                    self.kind.d.next = self.completion.val();
                    self.cancelled.d.next = true;
                    self.state.d.next = EngineState::Stamp;
                } else if self.held.wants_close.val() | self.held.wants_drop.val() {
                    self.dropped_closed.next = self.held.wants_close.val();
                    self.dropped_read.next = !self.held.wants_close.val();
                    self.abandon.next = true;
                    self.ended.next = true;
                    self.held_lines.d.next = bits::<9>(0);
                    self.state.d.next = EngineState::Discard;
                } else if self.held.wants_journal.val() {
                    self.kind.d.next = self.before_kind.val();
                    self.own_left.d.next = bits::<2>(1);
                    if self.both_here.val() {
                        self.kind.d.next = self.both_kind.val();
                        self.own_left.d.next = bits::<2>(2);
                    }
                    self.state.d.next = EngineState::Own;
                } else if self.held.wants_read.val() | self.held.wants_forward.val() {
                    self.frame.next = self.word_filled.val();
                    if self.frame_grant.val() {
                        self.sending_read.d.next = self.held.wants_read.val();
                        self.held.sent.next = self.held.wants_read.val();
                        self.launching.d.next = self.held.wants_forward.val();
                        self.ended.next = self.held.wants_forward.val();
                        self.state.d.next = EngineState::Send;
                    }
                } else if self.held.busy.val() {
                    self.state.d.next = EngineState::Idle;
                } else if self.waiting.val() & !self.writes_open.val() {
                    self.described.next = true;
                    self.dropped_closed.next = true;
                    self.state.d.next = EngineState::Discard;
                } else if self.waiting.val() & self.overdue.q.val() {
                    self.described.next = true;
                    self.dropped_hold.next = true;
                    self.state.d.next = EngineState::Discard;
                } else if self.waiting.val() & self.clear.val() & self.copy.val() & self.copy_parked.val() {
                    self.described.next = true;
                    self.retag.next = true;
                    self.state.d.next = EngineState::Discard;
                } else if self.waiting.val() & self.shut.val() {
                    self.described.next = true;
                    self.dropped_quarantine.next = true;
                    self.state.d.next = EngineState::Discard;
                } else if self.waiting.val() & self.word_filled.val() & self.has_before.val() {
                    self.claiming.next = self.clear.val() & self.slot_room.val() & self.entry_fits.val();
                } else if self.waiting.val() & self.word_filled.val() {
                    self.ask.next = self.clear.val() & self.slot_room.val() & self.entry_fits.val();
                }
            }
            EngineState::Stamp => {
                self.ask_stamp.next = true;
                if self.stamp_grant.val() {
                    self.record_stamp.d.next = self.stamp.val();
                    self.record_number.d.next = self.number.val();
                    if self.cancelled.q.val() {
                        self.record_number.d.next = self.held.number.val();
                        self.record_slot.next = self.held.slot.val();
                    } else if self.header.is_entry.val() {
                        self.told_number.d.next = self.number.val();
                        self.record_slot.next = self.held.slot.val();
                        if self.held.copy.val() {
                            self.record_flags.next = self.flag_duplicate.val();
                        }
                        self.payload_crc.d.next = self.crc.q.val() ^ self.all_ones.val();
                        self.crc.d.next = self.all_ones.val();
                    } else if self.kind.q.val() == self.completion.val() {
                        self.record_number.d.next = self.matched_number.val();
                        self.record_slot.next = self.matched_slot.val();
                        if self.matched_aoe.val() {
                            self.record_flags.next = self.record_flags.val() | self.flag_aoe.val();
                        }
                        if self.late.q.val() {
                            self.record_flags.next = self.record_flags.val() | self.flag_late.val();
                        }
                    } else {
                        self.told_number.d.next = self.number.val();
                    }
                    self.place.d.next = self.start.val();
                    self.state.d.next = EngineState::Header;
                    if self.kind.q.val() == self.gap.val() {
                        // The first number that comes after it.
                        self.record_number.d.next = self.number.val() + 1;
                        self.place.d.next = self.start.val() + 8;
                        self.state.d.next = EngineState::Gap;
                    }
                }
            }
            EngineState::Before => {
                self.before_take.next = self.before_valid.val();
                if self.before_valid.val() {
                    self.high.d.next = self.before_word.val().get_bits::<32>(32);
                    self.word_index.d.next = self.next_index.val();
                    if self.word_index.q.val() == 0 {
                        self.good.d.next = self.good.q.val()
                            & (self.before_word.val().get_bits::<48>(0)
                                == self.held.key.val().get_bits::<48>(0));
                    }
                    if self.word_index.q.val() == 1 {
                        // The error flag; that it is an answer the return path has seen.
                        self.good.d.next = self.good.q.val() & !self.before_word.val().get_bit(50);
                    }
                    if self.word_index.q.val() == 2 {
                        self.good.d.next = self.good.q.val()
                            & (self.before_word.val().get_bits::<24>(0)
                                == self.held.info.val().get_bits::<24>(46))
                            & (self.before_word.val().get_bits::<32>(32) == self.held.read_tag.val());
                    }
                    if self.word_index.q.val() == 3 {
                        // The count may be as it was, or counted down.
                        self.good.d.next = self.good.q.val()
                            & ((self.before_word.val().get_bits::<8>(24) & self.failure.val()) == 0)
                            & ((self.before_word.val().get_bits::<8>(16) == 0)
                                | (self.before_word.val().get_bits::<8>(16)
                                    == bit_cast::<8, 5>(self.sectors_held.val())))
                            & (self.before_word.val().get_bits::<28>(32)
                                == self.held.key.val().get_bits::<28>(80))
                            & (self.short_lba.val()
                                | (self.before_word.val().get_bits::<4>(60)
                                    == self.held.key.val().get_bits::<4>(108)));
                    }
                    if self.word_index.q.val() == 4 {
                        self.good.d.next = self.good.q.val()
                            & (self.short_lba.val()
                                | (self.before_word.val().get_bits::<16>(0)
                                    == self.held.key.val().get_bits::<16>(112)));
                    }
                    if self.payload.val() & self.good.q.val() {
                        self.write_word.next = true;
                        self.write_data.next = self.payload_word.val();
                        self.place.d.next = self.next_place.val();
                        self.crc.d.next = self.crc_step.result.val();
                    }
                    if self.before_word.val().get_bit(67) {
                        self.word_index.d.next = bits::<11>(0);
                        self.state.d.next = EngineState::Idle;
                        // Exactly the sectors that were asked for.
                        if self.good.q.val()
                            & (bit_cast::<15, 11>(self.word_index.q.val()) == self.payload_last.val())
                            & (self.before_word.val().get_bits::<3>(64) == 3)
                        {
                            self.kind.d.next = self.before_kind.val();
                            self.state.d.next = EngineState::Stamp;
                            if self.both_here.val() {
                                self.kind.d.next = self.both_kind.val();
                                self.own_left.d.next = bits::<2>(1);
                                self.state.d.next = EngineState::Own;
                            }
                        }
                    }
                }
            }
            EngineState::Own => {
                self.pop.next = self.word_filled.val();
                if self.word_filled.val() {
                    self.high.d.next = self.word.val().get_bits::<32>(32);
                    self.word_index.d.next = self.next_index.val();
                    if self.payload.val() {
                        self.write_word.next = true;
                        self.write_data.next = self.payload_word.val();
                        self.place.d.next = self.next_place.val();
                        self.crc.d.next = self.crc_step.result.val();
                    }
                    if self.word.val().get_bit(67) {
                        self.again.next = true;
                        self.word_index.d.next = bits::<11>(0);
                        self.own_left.d.next = bits::<2>(1);
                        if self.own_left.q.val() == 1 {
                            self.state.d.next = EngineState::Stamp;
                        }
                    }
                }
            }
            EngineState::Send => {
                self.uplink_valid.next =
                    self.word_filled.val() | (self.sending_read.q.val() & (self.word_index.q.val() > 4));
                if self.uplink_take.val() {
                    self.word_index.d.next = self.next_index.val();
                    self.pop.next = !(self.sending_read.q.val() & (self.word_index.q.val() > 4));
                    if self.uplink_data.val().get_bit(67) {
                        self.again.next = self.sending_read.q.val();
                        self.state.d.next = EngineState::Idle;
                    }
                }
            }
            EngineState::Gap => {
                self.write_word.next = true;
                self.write_data.next = self.gap_word.val();
                self.place.d.next = self.next_place.val();
                self.step.d.next = self.next_step.val();
                if self.step.q.val() < 3 {
                    self.crc.d.next = self.crc_step.result.val();
                }
                if self.step.q.val() == 7 {
                    self.payload_crc.d.next = self.crc.q.val() ^ self.all_ones.val();
                    self.crc.d.next = self.all_ones.val();
                    self.lost.d.next = false;
                    self.place.d.next = self.start.val();
                    self.step.d.next = bits::<4>(0);
                    self.state.d.next = EngineState::Header;
                }
            }
            EngineState::Stream => {
                self.uplink_valid.next = self.word_filled.val();
                self.pop.next = self.word_filled.val() & self.uplink_take.val();
                if self.pop.val() {
                    self.high.d.next = self.word.val().get_bits::<32>(32);
                    self.word_index.d.next = self.next_index.val();
                    if self.payload.val() {
                        self.write_word.next = true;
                        self.write_data.next = self.payload_word.val();
                        self.place.d.next = self.next_place.val();
                    }
                    if self.word.val().get_bit(67) {
                        self.place.d.next = self.start.val();
                        self.state.d.next = EngineState::Header;
                    }
                }
            }
            EngineState::Discard => {
                self.pop.next = self.word_filled.val();
                if self.word_filled.val() & self.word.val().get_bit(67) {
                    self.state.d.next = EngineState::Idle;
                }
            }
            EngineState::Header => {
                self.step.d.next = self.next_step.val();
                self.crc.d.next = self.crc_step.result.val();
                if self.step.q.val() < 7 {
                    self.write_word.next = true;
                    self.write_data.next = self.header.word.val();
                    self.place.d.next = self.next_place.val();
                }
                if self.step.q.val() == 8 {
                    self.write_word.next = true;
                    self.write_data.next = self.header.word.val()
                        | (bit_cast::<64, 32>(self.crc.q.val() ^ self.all_ones.val()) << 32);
                    self.committing.next = true;
                    self.record_sequence.d.next = self.next_sequence.val();
                    self.state.d.next = EngineState::Idle;
                    if self.kind.q.val() == self.watermark.val() {
                        self.marked.d.next = true;
                    } else {
                        self.committed.next = true;
                    }
                    self.journaled.next = self.header.is_entry.val();
                    self.matched_take.next =
                        (self.kind.q.val() == self.completion.val()) & !self.cancelled.q.val();
                    if self.header.is_entry.val() & (self.kind.q.val() != self.after.val()) {
                        self.held.journaled.next = true;
                        self.held_lines.d.next = bits::<9>(1);
                    }
                    if self.cancelled.q.val() {
                        self.abandon.next = true;
                        self.ended.next = true;
                        self.held_lines.d.next = bits::<9>(0);
                        self.state.d.next = EngineState::Discard;
                    }
                }
            }
        }
        self.room.commit.next = self.committing.val();
        self.room.commit_lines.next = self.lines.val();
        self.room.commit_mark.next = self.kind.q.val() == self.watermark.val();
        self.room.commit_gap.next = self.kind.q.val() == self.gap.val();
        self.room.commit_late.next = self.late.q.val();
        // With a grant: what the record's header says beside the payload.
        if self.write_grant.val() | self.stamp_grant.val() {
            self.record_clock.d.next = bit_cast::<36, 16>(self.flags.val())
                | bit_cast::<36, 16>(self.record_flags.val())
                | (bit_cast::<36, 16>(self.clock_state.val().get_bits::<16>(2)) << 16)
                | (bit_cast::<36, 4>(self.record_slot.val()) << 32);
        }
        self.held.load.next = self.claim.val();
        self.held.ended.next = self.ended.val();
        self.frame_request.next = self.frame.val();
        self.word_pop.next = self.pop.val();
        self.word_hold.next = self.held.busy.val();
        self.word_again.next = self.again.val();
        self.sampling.next = self.ask.val() | self.ask_stamp.val() | self.claiming.val();
        self.sampled.d.next = self.ask.val() | self.ask_stamp.val() | self.claiming.val();
        self.quiet.d.next = (self.state.q.val() == EngineState::Idle) & !self.claim.val();
        self.quiet_longer.d.next =
            (self.state.q.val() == EngineState::Idle) & !self.claim.val() & self.quiet.q.val();
        self.asked.d.next = self.ask.val();
        self.claim_asked.d.next = self.claiming.val();
        self.write_request.next = self.asked.q.val()
            & (self.state.q.val() == EngineState::Idle)
            & self.writes_open.val()
            & self.still_clear.val();
        self.stamp_request.next = (self.ask_stamp.val() & self.sampled.q.val())
            | (self.claim_asked.q.val()
                & (self.state.q.val() == EngineState::Idle)
                & self.writes_open.val()
                & self.still_clear.val());
        self.stamp_entry.next = self.ask_stamp.val() & self.header.is_entry.val();
        self.ring.write_enable.next = self.write_word.val();
        self.ring.write_address.next = self.write_at.val();
        self.ring.write_data.next = self.write_data.val();
    }
}
