//! The way back: whole frames from the uplink go to the port of their destination, or to all ports where
//! that isn't known; answers of targets are shown to the scoreboards on the way. Answers to the switch's own
//! reads go to the port that asked, and no further.

use crate::prelude::*;
use layout::aoe;

/// Bytes 12–13 of AoE as they stand in a little-endian word.
const AOE_RAW: u64 = aoe::ETHERTYPE.swap_bytes() as u64;

logic_block! {
    /// `P` ports, `B`: log2 of the words of the store-and-forward buffer.
    pub struct ReturnPath<const P: usize, const B: usize> {
        /// Clock.
        pub clock: Signal<In, Clock>,
        /// Data, byte 0 in bits 7:0.
        pub rx_data: Signal<In, Bits<64>>,
        /// Valid bytes.
        pub rx_keep: Signal<In, Bits<8>>,
        /// Last word.
        pub rx_last: Signal<In, bool>,
        /// With the last word: the frame is bad.
        pub rx_error: Signal<In, bool>,
        /// A word is there; always taken.
        pub rx_valid: Signal<In, bool>,
        /// To the `MacTable`: look up.
        pub look_up: Signal<Out, bool>,
        /// The address.
        pub look_up_mac: Signal<Out, Bits<48>>,
        /// From the `MacTable`.
        pub found: Signal<In, bool>,
        /// The port.
        pub found_port: Signal<In, Bits<3>>,
        /// Not known.
        pub missed: Signal<In, bool>,
        /// The table changed.
        pub table_changed: Signal<In, bool>,
        /// A port can take no answer: its frame is dropped there.
        pub answers_full: [Signal<In, bool>; P],
        /// Word for the ports: as `FrameBuffer::front`; in the first word of an answer to ATA bits 66:64 are zero.
        pub word: Signal<Out, Bits<68>>,
        /// It is for this port.
        pub valid: [Signal<Out, bool>; P],
        /// The frame is lost for this port, for want of room for its answer (strobe).
        pub lost: [Signal<Out, bool>; P],
        /// An answer for this port (strobe).
        pub answer: [Signal<Out, bool>; P],
        /// Destination, tag, LBA: laid out as `ingress::write_key`.
        pub answer_key: Signal<Out, Bits<128>>,
        /// `scoreboard::answer_info`.
        pub answer_info: Signal<Out, Bits<49>>,
        /// `word` is of an answer to this port's own read; it stays until it is taken.
        pub own: [Signal<Out, bool>; P],
        /// It is taken.
        pub own_take: [Signal<In, bool>; P],
        /// A frame from the uplink was bad or found no room (strobe).
        pub dropped: Signal<Out, bool>,
        buffer: FrameBuffer<B>,
        // For each frame in the buffer: the port that it is an own answer for, whether it is one, and whether it
        // is an answer to ATA. A frame has two words at least, so that there is room for every one of 2^11.
        kinds: Fifo<5, 10>,
        bytes_seen: Dff<Bits<11>>,
        // 0 wait, 1 look up, 2 stream, 3 stream to the port whose own answer it is.
        state: Dff<Bits<2>>,
        mask: Dff<Bits<8>>,
        blocked: Dff<Bits<8>>,
        cached_mac: Dff<Bits<48>>,
        cached: Dff<bool>,
        index: Dff<Bits<3>>,
        destination: Dff<Bits<48>>,
        word1: Dff<Bits<32>>,
        word2: Dff<Bits<64>>,
        word3: Dff<Bits<64>>,
        index_next: Signal<Local, Bits<3>>,
        seen_next: Signal<Local, Bits<11>>,
        // What the input has seen of the frame: it is AoE's answer to ATA, and its tag's upper nibble.
        in_answer: Dff<bool>,
        in_tag: Dff<Bits<4>>,
        in_own: Signal<Local, bool>,
        in_whole: Signal<Local, bool>,
        in_last: Signal<Local, bool>,
        own_pop: Signal<Local, bool>,
        last_byte: Signal<Local, Bits<3>>,
        front: Signal<Local, Bits<68>>,
        stream: Signal<Local, bool>,
        fourth: Signal<Local, bool>,
        full: Signal<Local, Bits<8>>,
        is_answer: Signal<Local, bool>,
        lba_high: Dff<Bits<16>>,
        lba_high_now: Signal<Local, Bits<16>>,
        good: Signal<Local, bool>,
        aoe_raw: Fixed<16, AOE_RAW>,
        longest_words: Fixed<11, { (aoe::MAXIMUM_FRAME_BYTES as u64).div_ceil(8) }>,
    }
}

block_default! {
    ReturnPath<P, B> {
        clock, rx_data, rx_keep, rx_last, rx_error, rx_valid, look_up, look_up_mac, found, found_port, missed,
        table_changed, word, answer_key, answer_info, dropped, buffer, kinds, in_answer, in_tag, in_own, in_whole, in_last, own_pop,
        bytes_seen, state, mask, blocked,
        cached_mac, cached, index, destination, word1, word2, word3, index_next, seen_next, last_byte, front, stream,
        fourth, full, is_answer, lba_high, lba_high_now, good, aoe_raw, longest_words,
    }
    arrays { answers_full, valid, lost, answer, own, own_take }
}

impl<const P: usize, const B: usize> Logic for ReturnPath<P, B> {
    #[hdl_gen]
    fn update(&mut self) {
        clock!(self, clock, buffer, kinds);
        dff_setup!(
            self,
            clock,
            bytes_seen,
            in_answer,
            in_tag,
            state,
            mask,
            blocked,
            cached_mac,
            cached,
            index,
            destination,
            word1,
            word2,
            word3,
            lba_high
        );
        // In: whole, good frames only.
        self.last_byte.next = bits::<3>(7);
        if self.rx_keep.val() == 0x7F {
            self.last_byte.next = bits::<3>(6);
        }
        if self.rx_keep.val() == 0x3F {
            self.last_byte.next = bits::<3>(5);
        }
        if self.rx_keep.val() == 0x1F {
            self.last_byte.next = bits::<3>(4);
        }
        if self.rx_keep.val() == 0x0F {
            self.last_byte.next = bits::<3>(3);
        }
        if self.rx_keep.val() == 0x07 {
            self.last_byte.next = bits::<3>(2);
        }
        if self.rx_keep.val() == 0x03 {
            self.last_byte.next = bits::<3>(1);
        }
        if self.rx_keep.val() == 0x01 {
            self.last_byte.next = bits::<3>(0);
        }
        self.buffer.data.next = self.rx_data.val();
        self.buffer.last_byte.next = self.last_byte.val();
        self.buffer.last.next = self.rx_last.val();
        self.buffer.valid.next = self.rx_valid.val();
        self.seen_next.next = self.bytes_seen.q.val() + 1;
        // At least an Ethernet header: two words, six bytes in the second.
        self.good.next = (!self.rx_error.val())
            & (self.bytes_seen.q.val() < self.longest_words.val())
            & ((self.bytes_seen.q.val() > 1) | ((self.bytes_seen.q.val() == 1) & (self.last_byte.val() > 4)));
        self.buffer.commit.next = self.good.val() & !self.kinds.full.val();
        if self.rx_valid.val() {
            if self.bytes_seen.q.val() == 1 {
                self.in_answer.d.next = (self.rx_data.val().get_bits::<16>(32) == self.aoe_raw.val())
                    & (self.rx_data.val().get_bits::<4>(52) == 1)
                    & self.rx_data.val().get_bit(51);
            }
            if self.bytes_seen.q.val() == 2 {
                self.in_tag.d.next = self.rx_data.val().get_bits::<4>(36);
                if self.rx_data.val().get_bits::<8>(24) != 0 {
                    self.in_answer.d.next = false;
                }
            }
        }
        // An answer is whole when 36 bytes of it came.
        self.in_whole.next = self.in_answer.q.val()
            & ((self.bytes_seen.q.val() > 4) | ((self.bytes_seen.q.val() == 4) & (self.last_byte.val() > 2)));
        self.in_own.next = self.in_whole.val() & self.in_tag.q.val().get_bit(3);
        self.in_last.next = self.rx_valid.val() & self.rx_last.val();
        self.kinds.clear.next = false;
        self.kinds.data.next = bit_cast::<5, 3>(self.in_tag.q.val().get_bits::<3>(0))
            | (bit_cast::<5, 1>(self.in_own.val().into()) << 3)
            | (bit_cast::<5, 1>(self.in_whole.val().into()) << 4);
        self.kinds.push.next =
            self.in_last.val() & self.good.val() & !self.buffer.lost.val() & !self.kinds.full.val();
        self.dropped.next = false;
        if self.rx_valid.val() {
            if self.bytes_seen.q.val() != 2047 {
                self.bytes_seen.d.next = self.seen_next.val();
            }
            if self.rx_last.val() {
                self.bytes_seen.d.next = bits::<11>(0);
                self.dropped.next = (!self.good.val()) | self.buffer.lost.val() | self.kinds.full.val();
            }
        }

        // Out: where to, then word by word.
        self.front.next = self.buffer.front.val();
        self.word.next = self.front.val();
        // The first word of an answer to ATA says so where the last one has its length.
        if (self.state.q.val() == 2) & (self.index.q.val() == 0) & self.kinds.front.val().get_bit(4) {
            self.word.next = bit_cast::<68, 64>(self.front.val().get_bits::<64>(0));
        }
        self.full.next = bits::<8>(0);
        for i in 0..P {
            if self.answers_full[i].val() {
                self.full.next = self.full.val() | (bits::<8>(1) << i.to_bits::<3>());
            }
        }
        self.look_up.next = false;
        self.look_up_mac.next = self.front.val().get_bits::<48>(0);
        self.stream.next = false;
        if self.table_changed.val() {
            self.cached.d.next = false;
        }
        // What is for a port that isn't there is thrown away.
        self.own_pop.next = false;
        if (self.state.q.val() == 3) & self.buffer.filled.val() {
            self.own_pop.next = true;
        }
        for i in 0..P {
            self.own[i].next = (self.state.q.val() == 3)
                & self.buffer.filled.val()
                & (self.kinds.front.val().get_bits::<3>(0) == i.to_bits::<3>());
            if (self.kinds.front.val().get_bits::<3>(0) == i.to_bits::<3>()) & !self.own_take[i].val() {
                self.own_pop.next = false;
            }
        }
        self.index_next.next = self.index.q.val() + 1;
        if self.state.q.val() == 0 {
            self.index.d.next = bits::<3>(0);
            if self.buffer.filled.val() & self.kinds.filled.val() {
                self.state.d.next = bits::<2>(1);
                self.blocked.d.next = self.full.val();
                if self.cached.q.val()
                    & (!self.table_changed.val())
                    & (self.front.val().get_bits::<48>(0) == self.cached_mac.q.val())
                {
                    self.state.d.next = bits::<2>(2);
                }
                if self.kinds.front.val().get_bit(3) {
                    self.state.d.next = bits::<2>(3);
                }
            }
        } else if self.state.q.val() == 1 {
            self.look_up.next = true;
            self.cached_mac.d.next = self.front.val().get_bits::<48>(0);
            if self.found.val() {
                self.mask.d.next = bits::<8>(1) << self.found_port.val();
                self.cached.d.next = true;
                self.state.d.next = bits::<2>(2);
            }
            if self.missed.val() {
                self.mask.d.next = bits::<8>(0xFF);
                self.cached.d.next = false;
                self.state.d.next = bits::<2>(2);
            }
        } else if self.state.q.val() == 3 {
            if self.own_pop.val() & self.front.val().get_bit(67) {
                self.state.d.next = bits::<2>(0);
            }
        } else {
            self.stream.next = self.buffer.filled.val();
            if self.stream.val() {
                if self.index.q.val() != 5 {
                    self.index.d.next = self.index_next.val();
                }
                if self.front.val().get_bit(67) {
                    self.state.d.next = bits::<2>(0);
                }
                if self.index.q.val() == 0 {
                    self.destination.d.next = self.front.val().get_bits::<48>(0);
                }
                if self.index.q.val() == 1 {
                    self.word1.d.next = self.front.val().get_bits::<32>(32);
                }
                if self.index.q.val() == 2 {
                    self.word2.d.next = self.front.val().get_bits::<64>(0);
                }
                if self.index.q.val() == 3 {
                    self.word3.d.next = self.front.val().get_bits::<64>(0);
                }
                if self.index.q.val() == 4 {
                    self.lba_high.d.next = self.front.val().get_bits::<16>(0);
                }
            }
        }
        self.buffer.hold.next = false;
        self.buffer.again.next = false;
        self.buffer.pop.next = self.stream.val() | self.own_pop.val();
        self.kinds.pop.next = (self.stream.val() | self.own_pop.val()) & self.front.val().get_bit(67);
        // An answer is whole when 36 bytes of it came.
        self.fourth.next = (self.index.q.val() == 5)
            | ((self.index.q.val() == 4) & (self.front.val().get_bits::<3>(64) > 2));
        self.is_answer.next = self.stream.val()
            & self.front.val().get_bit(67)
            & self.fourth.val()
            & (self.word1.q.val().get_bits::<16>(0) == self.aoe_raw.val())
            & (self.word1.q.val().get_bits::<4>(20) == 1)
            & self.word1.q.val().get_bit(19)
            & (self.word2.q.val().get_bits::<8>(24) == 0);
        self.lba_high_now.next = self.lba_high.q.val();
        if self.index.q.val() == 4 {
            self.lba_high_now.next = self.front.val().get_bits::<16>(0);
        }
        self.answer_key.next = bit_cast::<128, 48>(self.destination.q.val())
            | (bit_cast::<128, 32>(self.word2.q.val().get_bits::<32>(32)) << 48)
            | (bit_cast::<128, 32>(self.word3.q.val().get_bits::<32>(32)) << 80)
            | (bit_cast::<128, 16>(self.lba_high_now.val()) << 112);
        self.answer_info.next = bit_cast::<49, 8>(self.word3.q.val().get_bits::<8>(24))
            | (bit_cast::<49, 8>(self.word3.q.val().get_bits::<8>(8)) << 8)
            | (bit_cast::<49, 8>(self.word1.q.val().get_bits::<8>(24)) << 16)
            | (bit_cast::<49, 24>(self.word2.q.val().get_bits::<24>(0)) << 24)
            | (bit_cast::<49, 1>(self.word1.q.val().get_bits::<1>(18)) << 48);
        for i in 0..P {
            self.valid[i].next =
                self.stream.val() & self.mask.q.val().get_bit(i) & (!self.blocked.q.val().get_bit(i));
            self.answer[i].next =
                self.is_answer.val() & self.mask.q.val().get_bit(i) & (!self.blocked.q.val().get_bit(i));
            self.lost[i].next = self.stream.val()
                & self.front.val().get_bit(67)
                & self.mask.q.val().get_bit(i)
                & self.blocked.q.val().get_bit(i);
        }
    }
}
