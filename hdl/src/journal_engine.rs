//! The journal engine of a port: admits writes, streams each to the uplink and into the port's ring in
//! the same cycles, and writes the records of answers and watermarks.
//!
//! A record's header is written after its payload, so the first word of a frame leaves at once; the
//! ring's head moves only when the header is in. Room for an entry and its completion is reserved at
//! admission, and the ring always keeps room for a watermark, a gap and a late answer (DESIGN §3.1).

use crate::prelude::*;
use layout::entry::{self, flags, Journaled, Kind};

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
        /// A write whose hold time is over is thrown away.
        Discard,
        /// The record's header goes into the ring.
        Header,
    }
}
pub use states::EngineState;

/// Word 0 of every header: magic and version; kind, flags, encoding and status are added.
const HEADER_START: u64 = entry::MAGIC as u64 | (entry::VERSION as u64) << 16;
/// `volume` and `source` of a record that has none, as they stand in words 5 and 6.
const NO_VOLUME: u64 = (entry::NO_INDEX as u64) << 48;
/// 64-byte lines that the ring keeps free beside reservations: a watermark, a gap with its payload, a
/// late answer.
pub const KEPT_LINES: u64 = 4;

const _: () = {
    // The kernel below writes the header word by word; these are the places it writes to.
    assert!(layout::entry_bit!(kind).1 == 24 && layout::entry_bit!(flags).1 == 32);
    assert!(layout::entry_bit!(status).1 == 56 && layout::entry_bit!(timestamp).0 == 1);
    assert!(layout::entry_bit!(number).0 == 2 && layout::entry_bit!(sequence).0 == 3);
    assert!(layout::entry_bit!(lba).0 == 4 && layout::entry_bit!(sectors).1 == 48);
    assert!(layout::entry_bit!(port).0 == 5 && layout::entry_bit!(slot).1 == 8);
    assert!(layout::entry_bit!(clock_error).1 == 16 && layout::entry_bit!(answer_status).1 == 32);
    assert!(layout::entry_bit!(answer_error).1 == 40 && layout::entry_bit!(volume).1 == 48);
    assert!(layout::entry_bit!(source).0 == 6 && layout::entry_bit!(payload_bytes).1 == 32);
    assert!(layout::entry_bit!(payload_crc).0 == 7 && layout::entry_bit!(header_crc).1 == 32);
};

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
        /// A scoreboard slot is free.
        pub slot_free: Signal<In, bool>,
        /// The slot.
        pub slot: Signal<In, Bits<4>>,
        /// Writes in flight.
        pub in_flight: Signal<In, Bits<5>>,
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
        /// An answer matched a write of ours.
        pub matched: Signal<In, bool>,
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
        /// The completion is in the ring (strobe).
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
        state: Dff<EngineState>,
        kind: Dff<Bits<8>>,
        head: Dff<Bits<H>>,
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
        start: Signal<Local, Bits<A>>,
        used: Signal<Local, Bits<H>>,
        needed: Signal<Local, Bits<16>>,
        kept: Signal<Local, Bits<16>>,
        room: Signal<Local, bool>,
        room_for_mark: Signal<Local, bool>,
        sectors: Signal<Local, Bits<5>>,
        sectors_held: Signal<Local, Bits<5>>,
        lines: Signal<Local, Bits<H>>,
        age: Signal<Local, Bits<24>>,
        expired: Signal<Local, bool>,
        ask: Signal<Local, bool>,
        ask_stamp: Signal<Local, bool>,
        flags: Signal<Local, Bits<16>>,
        payload_last: Signal<Local, Bits<15>>,
        is_entry: Signal<Local, bool>,
        header: Signal<Local, Bits<64>>,
        next_place: Signal<Local, Bits<A>>,
        next_index: Signal<Local, Bits<11>>,
        next_step: Signal<Local, Bits<4>>,
        next_sequence: Signal<Local, Bits<64>>,
        pop: Signal<Local, bool>,
        source: Signal<Local, Bits<16>>,
        write_word: Signal<Local, bool>,
        write_at: Signal<Local, Bits<A>>,
        write_data: Signal<Local, Bits<64>>,
        ring_lines: Constant<Bits<16>>,
        header_start: Fixed<64, HEADER_START>,
        no_volume: Fixed<64, NO_VOLUME>,
        no_index: Fixed<16, { entry::NO_INDEX as u64 }>,
        all_ones: Fixed<32, 0xFFFF_FFFF>,
        after: Fixed<8, { Kind::After as u64 }>,
        completion: Fixed<8, { Kind::Completion as u64 }>,
        watermark: Fixed<8, { Kind::Watermark as u64 }>,
        journaled_port: Fixed<64, { Journaled::Port as u64 }>,
        flag_duplicate: Fixed<16, { flags::DUPLICATE as u64 }>,
        flag_locked: Fixed<16, { flags::CLOCK_LOCKED as u64 }>,
        flag_holdover: Fixed<16, { flags::CLOCK_HOLDOVER as u64 }>,
        flag_logical: Fixed<16, { flags::STAMP_LOGICAL as u64 }>,
        flag_aoe: Fixed<16, { flags::AOE_ERROR as u64 }>,
        kept_lines: Fixed<16, KEPT_LINES>,
    }
}

block_default! {
    JournalEngine<A, H> {
        clock, port, ticks, hold, waiting, write_key, write_info, described, word, word_filled, word_pop,
        uplink_take, uplink_valid, clear, copy, slot_free, slot, in_flight, write_request, write_grant,
        sampling, stamp_request, stamp_grant, stamp, stamp_logical, number, clock_state, matched, matched_slot,
        matched_number, matched_updated, matched_status, matched_error, matched_aoe, matched_take,
        watermark_request, watermark_done, committed, journaled, journaled_copy, dropped_hold, ring_head,
        ring_tail, ring_read_address, ring_read_data, ring, ring_out, crc_step, state, kind, head, record_sequence,
        held_stamp, held_number, held_clock, held_lba, held_info, word_index, high, place, step, sampled, marked, crc, start,
        used, needed, kept, room, room_for_mark, sectors, sectors_held, lines, age, expired, ask, ask_stamp, flags,
        payload_last, is_entry, header, next_place, next_index, next_step, next_sequence, pop, source,
        write_word, write_at, write_data, header_start, no_volume, no_index, all_ones, after, completion,
        watermark, journaled_port, flag_duplicate, flag_locked, flag_holdover, flag_logical, flag_aoe,
        kept_lines,
    }
    arrays { }
    with { ring_lines: {
        assert!(A >= 10 && H == A - 2, "a ring of 2^{A} words can't hold two of the largest entries");
        Constant::new(bits(1 << (A - 3)))
    } }
}

impl<const A: usize, const H: usize> Logic for JournalEngine<A, H> {
    #[hdl_gen]
    fn update(&mut self) {
        self.ring.read_clock.next = self.clock.val();
        self.ring.write_clock.next = self.clock.val();
        dff_setup!(
            self,
            clock,
            ring_out,
            state,
            kind,
            head,
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
            crc
        );
        self.ring.read_address.next = self.ring_read_address.val();
        self.ring_out.d.next = self.ring.read_data.val();
        self.ring_read_data.next = self.ring_out.q.val();
        self.ring_head.next = self.head.q.val();
        self.start.next = bit_cast::<A, H>(self.head.q.val()) << 3;

        // Room: what the entry and its completion take, beside everything reserved.
        self.used.next = self.head.q.val() - self.ring_tail.val();
        self.kept.next = bit_cast::<16, H>(self.used.val())
            + bit_cast::<16, 5>(self.in_flight.val())
            + self.kept_lines.val();
        self.sectors.next = self.write_info.val().get_bits::<5>(32);
        self.needed.next = self.kept.val() + (bit_cast::<16, 5>(self.sectors.val()) << 3) + 2;
        self.room.next = self.needed.val() <= self.ring_lines.val();
        self.room_for_mark.next = self.kept.val() <= self.ring_lines.val();
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
        self.write_word.next = false;
        self.write_at.next = self.place.q.val();
        self.write_data.next = bits::<64>(0);
        self.ask.next = false;
        self.ask_stamp.next = false;
        self.sectors_held.next = self.held_info.q.val().get_bits::<5>(32);
        self.payload_last.next = (bit_cast::<15, 5>(self.sectors_held.val()) << 6) + 4;
        self.is_entry.next = self.kind.q.val() == self.after.val();
        self.lines.next = bits::<H>(1);
        if self.is_entry.val() {
            self.lines.next = (bit_cast::<H, 5>(self.sectors_held.val()) << 3) + 1;
        }
        self.next_place.next = self.place.q.val() + 1;
        self.next_index.next = self.word_index.q.val() + 1;
        self.next_step.next = self.step.q.val() + 1;
        self.next_sequence.next = self.record_sequence.q.val() + 1;
        self.source.next = self.no_index.val();
        if self.held_info.q.val().get_bits::<4>(41) != 15 {
            self.source.next = bit_cast::<16, 4>(self.held_info.q.val().get_bits::<4>(41));
        }

        // The header, word by word; steps 0–6 and, with the CRC, 8.
        self.header.next = bits::<64>(0);
        if self.step.q.val() == 0 {
            self.header.next = self.header_start.val()
                | (bit_cast::<64, 8>(self.kind.q.val()) << 24)
                | (bit_cast::<64, 16>(self.held_clock.q.val().get_bits::<16>(0)) << 32);
            if self.is_entry.val() {
                self.header.next = self.header.val() | (self.journaled_port.val() << 56);
            }
            if self.kind.q.val() == self.completion.val() {
                self.header.next = self.header.val()
                    | (self.journaled_port.val() << 56)
                    | (bit_cast::<64, 4>(self.matched_updated.val()) << 60);
            }
        }
        if self.step.q.val() == 1 {
            self.header.next = self.held_stamp.q.val();
        }
        if self.step.q.val() == 2 {
            self.header.next = self.held_number.q.val();
        }
        if self.step.q.val() == 3 {
            self.header.next = self.record_sequence.q.val();
        }
        if (self.step.q.val() == 4) & self.is_entry.val() {
            self.header.next = bit_cast::<64, 48>(self.held_lba.q.val())
                | (bit_cast::<64, 5>(self.sectors_held.val()) << 48);
        }
        if self.step.q.val() == 5 {
            self.header.next = bit_cast::<64, 8>(self.port.val())
                | (bit_cast::<64, 4>(self.held_clock.q.val().get_bits::<4>(32)) << 8)
                | (bit_cast::<64, 16>(self.held_clock.q.val().get_bits::<16>(16)) << 16);
            if self.is_entry.val() {
                self.header.next =
                    self.header.val() | (bit_cast::<64, 4>(self.held_info.q.val().get_bits::<4>(37)) << 48);
            } else {
                self.header.next = self.header.val() | self.no_volume.val();
            }
            if self.kind.q.val() == self.completion.val() {
                self.header.next = self.header.val()
                    | (bit_cast::<64, 8>(self.matched_status.val()) << 32)
                    | (bit_cast::<64, 8>(self.matched_error.val()) << 40);
            }
        }
        if self.step.q.val() == 6 {
            self.header.next = bit_cast::<64, 16>(self.no_index.val());
            if self.is_entry.val() {
                self.header.next = bit_cast::<64, 16>(self.source.val())
                    | (bit_cast::<64, 5>(self.sectors_held.val()) << 41);
            }
        }
        if (self.step.q.val() > 6) & self.is_entry.val() {
            self.header.next = bit_cast::<64, 32>(self.held_info.q.val().get_bits::<32>(0));
        }
        self.crc_step.state.next = self.crc.q.val();
        self.crc_step.word.next = self.header.val();

        match self.state.q.val() {
            EngineState::Idle => {
                self.step.d.next = bits::<4>(0);
                self.crc.d.next = self.all_ones.val();
                self.word_index.d.next = bits::<11>(0);
                self.place.d.next = self.start.val() + 8;
                if self.matched.val() {
                    self.kind.d.next = self.completion.val();
                    self.state.d.next = EngineState::Stamp;
                } else if self.watermark_request.val() & (!self.marked.q.val()) & self.room_for_mark.val() {
                    self.kind.d.next = self.watermark.val();
                    self.state.d.next = EngineState::Stamp;
                } else if self.waiting.val() & self.expired.val() {
                    self.described.next = true;
                    self.dropped_hold.next = true;
                    self.state.d.next = EngineState::Discard;
                } else if self.waiting.val() & self.word_filled.val() {
                    self.ask.next = self.clear.val() & self.slot_free.val() & self.room.val();
                    if self.write_grant.val() {
                        self.described.next = true;
                        self.kind.d.next = self.after.val();
                        self.held_stamp.d.next = self.stamp.val();
                        self.held_number.d.next = self.number.val();
                        self.held_lba.d.next = self.write_key.val().get_bits::<48>(80);
                        self.held_info.d.next = self.write_info.val().get_bits::<46>(0);
                        self.held_clock.d.next = bit_cast::<36, 16>(self.flags.val())
                            | (bit_cast::<36, 16>(self.clock_state.val().get_bits::<16>(2)) << 16)
                            | (bit_cast::<36, 4>(self.slot.val()) << 32);
                        if self.copy.val() {
                            self.held_clock.d.next = bit_cast::<36, 16>(self.flags.val())
                                | bit_cast::<36, 16>(self.flag_duplicate.val())
                                | (bit_cast::<36, 16>(self.clock_state.val().get_bits::<16>(2)) << 16)
                                | (bit_cast::<36, 4>(self.slot.val()) << 32);
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
                    self.held_clock.d.next = bit_cast::<36, 16>(self.flags.val())
                        | (bit_cast::<36, 16>(self.clock_state.val().get_bits::<16>(2)) << 16);
                    if self.kind.q.val() == self.completion.val() {
                        self.held_number.d.next = self.matched_number.val();
                        self.held_clock.d.next = bit_cast::<36, 16>(self.flags.val())
                            | (bit_cast::<36, 16>(self.clock_state.val().get_bits::<16>(2)) << 16)
                            | (bit_cast::<36, 4>(self.matched_slot.val()) << 32);
                        if self.matched_aoe.val() {
                            self.held_clock.d.next = bit_cast::<36, 16>(self.flags.val())
                                | bit_cast::<36, 16>(self.flag_aoe.val())
                                | (bit_cast::<36, 16>(self.clock_state.val().get_bits::<16>(2)) << 16)
                                | (bit_cast::<36, 4>(self.matched_slot.val()) << 32);
                        }
                    }
                    self.place.d.next = self.start.val();
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
                    self.write_data.next = self.header.val();
                    self.place.d.next = self.next_place.val();
                }
                if self.step.q.val() == 8 {
                    self.write_word.next = true;
                    self.write_data.next = self.header.val()
                        | (bit_cast::<64, 32>(self.crc.q.val() ^ self.all_ones.val()) << 32);
                    self.head.d.next = self.head.q.val() + self.lines.val();
                    self.record_sequence.d.next = self.next_sequence.val();
                    self.state.d.next = EngineState::Idle;
                    if self.kind.q.val() == self.watermark.val() {
                        self.marked.d.next = true;
                    } else {
                        self.committed.next = true;
                    }
                    self.journaled.next = self.is_entry.val();
                    self.matched_take.next = self.kind.q.val() == self.completion.val();
                }
            }
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
