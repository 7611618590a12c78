//! The journal engine of a port: admits writes, streams each to the uplink and into the port's ring in
//! the same cycles, and writes the records of answers and watermarks.
//!
//! A record's header is written after its payload, so the first word of a frame leaves at once; the
//! ring's head moves only when the header is in. Room for an entry and its completion is reserved at
//! admission, and the ring always keeps room for a watermark, a gap and a late answer (DESIGN §3.1): each
//! may be taken by one that wasn't drained yet. A late answer without room becomes a gap.

use crate::prelude::*;
use crate::record_header::RecordHeader;
use crate::ring_room::RingRoom;
use layout::entry::{self, flags, Kind};

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
        pub ticks: Signal<In, Bits<24>>,
        /// Hold time, ticks.
        pub hold: Signal<In, Bits<32>>,
        /// A described write is waiting.
        pub waiting: Signal<In, bool>,
        /// It: `ingress::write_key`.
        pub write_key: Signal<In, Bits<128>>,
        /// It: `ingress::write_info`.
        pub write_info: Signal<In, Bits<94>>,
        /// Take its description.
        pub described: Signal<Out, bool>,
        /// Its frame: `FrameBuffer::front`.
        pub word: Signal<In, Bits<68>>,
        /// A word of it is there.
        pub word_filled: Signal<In, bool>,
        /// Take the word.
        pub word_pop: Signal<Out, bool>,
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
        header: RecordHeader,
        state: Dff<EngineState>,
        kind: Dff<Bits<8>>,
        record_sequence: Dff<Bits<64>>,
        held_stamp: Dff<Bits<64>>,
        held_number: Dff<Bits<64>>,
        // Flags 15:0, clock error 31:16, slot 35:32.
        held_clock: Dff<Bits<36>>,
        held_lba: Dff<Bits<48>>,
        held_info: Dff<Bits<46>>,
        word_index: Dff<Bits<11>>,
        high: Dff<Bits<32>>,
        place: Dff<Bits<A>>,
        step: Dff<Bits<4>>,
        // The leaf's time has been sampled, so the arbiter may take it.
        sampled: Dff<bool>,
        marked: Dff<bool>,
        crc: Dff<Bits<32>>,
        late: Dff<bool>,
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
        sectors: Signal<Local, Bits<5>>,
        sectors_held: Signal<Local, Bits<5>>,
        age: Signal<Local, Bits<24>>,
        expired: Signal<Local, bool>,
        ask: Signal<Local, bool>,
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
        clock, port, ticks, hold, waiting, write_key, write_info, described, word, word_filled, word_pop,
        uplink_take, uplink_valid, clear, copy, copy_room, barred, slot_free, slot, reserved, write_request,
        write_grant, sampling, stamp_request, stamp_grant, stamp, stamp_logical, number, clock_state, matched,
        matched_late, matched_slot, matched_number, matched_updated, matched_status, matched_error, matched_aoe,
        matched_take, watermark_request, watermark_done, committed, journaled, journaled_copy, dropped_hold,
        dropped_quarantine, ring_head, ring_tail, ring_read_address, ring_read_data, ring, ring_out, crc_step,
        room, header, state, kind, record_sequence, held_stamp, held_number, held_clock, held_lba, held_info,
        word_index, high, place, step, sampled, marked, crc, late, lost, lost_stamp, lost_number, told_number,
        payload_crc, start, entry_lines, lines, committing, crc_field, slot_room, shut, record_flags, record_slot,
        gap_word, sectors, sectors_held, age, expired, ask, ask_stamp, flags, payload_last, next_place, next_index,
        next_step, next_sequence, pop, write_word, write_at, write_data, all_ones, after, completion, watermark,
        gap, gap_lost, flag_duplicate, flag_locked, flag_holdover, flag_logical, flag_aoe, flag_late,
    }
    arrays { }
}

impl<const A: usize, const H: usize> Logic for JournalEngine<A, H> {
    #[hdl_gen]
    fn update(&mut self) {
        self.ring.read_clock.next = self.clock.val();
        self.ring.write_clock.next = self.clock.val();
        clock!(self, clock, room);
        dff_setup!(
            self,
            clock,
            ring_out,
            state,
            kind,
            record_sequence,
            held_stamp,
            held_number,
            held_clock,
            held_lba,
            held_info,
            word_index,
            high,
            place,
            step,
            sampled,
            marked,
            crc,
            late,
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
        self.entry_lines.next = (bit_cast::<9, 5>(self.sectors.val()) << 3) + 2;
        self.room.tail.next = self.ring_tail.val();
        self.room.reserved.next = self.reserved.val();
        self.room.held.next = bits::<9>(0);
        self.room.wanted.next = self.entry_lines.val();
        self.slot_room.next = self.slot_free.val();
        if self.copy.val() {
            self.slot_room.next = self.copy_room.val();
        }
        self.shut.next = self.barred.val() & (!self.clear.val() | (self.copy.val() & !self.copy_room.val()));
        self.age.next = self.ticks.val() - self.write_info.val().get_bits::<24>(70);
        self.expired.next = bit_cast::<32, 24>(self.age.val()) > self.hold.val();

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
        self.journaled_copy.next = self.held_clock.q.val().get_bit(0);
        self.dropped_hold.next = false;
        self.dropped_quarantine.next = false;
        self.write_word.next = false;
        self.write_at.next = self.place.q.val();
        self.write_data.next = bits::<64>(0);
        self.ask.next = false;
        self.ask_stamp.next = false;
        self.sectors_held.next = self.held_info.q.val().get_bits::<5>(32);
        self.payload_last.next = (bit_cast::<15, 5>(self.sectors_held.val()) << 6) + 4;
        self.lines.next = bits::<9>(1);
        if self.header.is_entry.val() {
            self.lines.next = (bit_cast::<9, 5>(self.sectors_held.val()) << 3) + 1;
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
        self.crc_field.next = self.held_info.q.val().get_bits::<32>(0);
        if self.kind.q.val() == self.gap.val() {
            self.crc_field.next = self.payload_crc.q.val();
        }
        self.header.step.next = self.step.q.val();
        self.header.kind.next = self.kind.q.val();
        self.header.flags.next = self.held_clock.q.val().get_bits::<16>(0);
        self.header.clock_error.next = self.held_clock.q.val().get_bits::<16>(16);
        self.header.stamp.next = self.held_stamp.q.val();
        self.header.number.next = self.held_number.q.val();
        self.header.record_sequence.next = self.record_sequence.q.val();
        self.header.port.next = self.port.val();
        self.header.slot.next = self.held_clock.q.val().get_bits::<4>(32);
        self.header.lba.next = self.held_lba.q.val();
        self.header.sectors.next = self.sectors_held.val();
        self.header.volume.next = self.held_info.q.val().get_bits::<4>(37);
        self.header.source.next = self.held_info.q.val().get_bits::<4>(41);
        self.header.payload_crc.next = self.crc_field.val();
        self.header.updated.next = self.matched_updated.val();
        self.header.answer_status.next = self.matched_status.val();
        self.header.answer_error.next = self.matched_error.val();
        self.crc_step.state.next = self.crc.q.val();
        self.crc_step.word.next = self.header.word.val();
        if self.state.q.val() == EngineState::Gap {
            self.crc_step.word.next = self.gap_word.val();
        }

        match self.state.q.val() {
            EngineState::Idle => {
                self.step.d.next = bits::<4>(0);
                self.crc.d.next = self.all_ones.val();
                self.word_index.d.next = bits::<11>(0);
                self.place.d.next = self.start.val() + 8;
                self.late.d.next = false;
                if self.lost.q.val() & self.room.gap_room.val() {
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
                        self.lost_stamp.d.next = self.held_stamp.q.val();
                        self.lost_number.d.next = self.told_number.q.val();
                    }
                } else if self.matched.val() {
                    self.kind.d.next = self.completion.val();
                    self.late.d.next = self.matched_late.val();
                    self.state.d.next = EngineState::Stamp;
                } else if self.watermark_request.val() & (!self.marked.q.val()) & self.room.mark_room.val() {
                    self.kind.d.next = self.watermark.val();
                    self.state.d.next = EngineState::Stamp;
                } else if self.waiting.val() & self.expired.val() {
                    self.described.next = true;
                    self.dropped_hold.next = true;
                    self.state.d.next = EngineState::Discard;
                } else if self.waiting.val() & self.shut.val() {
                    self.described.next = true;
                    self.dropped_quarantine.next = true;
                    self.state.d.next = EngineState::Discard;
                } else if self.waiting.val() & self.word_filled.val() {
                    self.ask.next = self.clear.val() & self.slot_room.val() & self.room.room.val();
                    if self.write_grant.val() {
                        self.described.next = true;
                        self.kind.d.next = self.after.val();
                        self.held_stamp.d.next = self.stamp.val();
                        self.held_number.d.next = self.number.val();
                        self.held_lba.d.next = self.write_key.val().get_bits::<48>(80);
                        self.held_info.d.next = self.write_info.val().get_bits::<46>(0);
                        self.told_number.d.next = self.number.val();
                        self.record_slot.next = self.slot.val();
                        if self.copy.val() {
                            self.record_flags.next = self.flag_duplicate.val();
                        }
                        self.state.d.next = EngineState::Stream;
                    }
                }
            }
            EngineState::Stamp => {
                self.ask_stamp.next = true;
                if self.stamp_grant.val() {
                    self.held_stamp.d.next = self.stamp.val();
                    self.held_number.d.next = self.number.val();
                    if self.kind.q.val() == self.completion.val() {
                        self.held_number.d.next = self.matched_number.val();
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
                        self.held_number.d.next = self.number.val() + 1;
                        self.place.d.next = self.start.val() + 8;
                        self.state.d.next = EngineState::Gap;
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
                    if (self.word_index.q.val() > 4)
                        & (bit_cast::<15, 11>(self.word_index.q.val()) <= self.payload_last.val())
                    {
                        self.write_word.next = true;
                        self.write_data.next = bit_cast::<64, 32>(self.high.q.val())
                            | (bit_cast::<64, 32>(self.word.val().get_bits::<32>(0)) << 32);
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
                    self.matched_take.next = self.kind.q.val() == self.completion.val();
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
            self.held_clock.d.next = bit_cast::<36, 16>(self.flags.val())
                | bit_cast::<36, 16>(self.record_flags.val())
                | (bit_cast::<36, 16>(self.clock_state.val().get_bits::<16>(2)) << 16)
                | (bit_cast::<36, 4>(self.record_slot.val()) << 32);
        }
        self.word_pop.next = self.pop.val();
        self.sampling.next = self.ask.val() | self.ask_stamp.val();
        self.sampled.d.next = self.ask.val() | self.ask_stamp.val();
        self.write_request.next = self.ask.val() & self.sampled.q.val();
        self.stamp_request.next = self.ask_stamp.val() & self.sampled.q.val();
        self.ring.write_enable.next = self.write_word.val();
        self.ring.write_address.next = self.write_at.val();
        self.ring.write_data.next = self.write_data.val();
    }
}
