//! Takes packets from the host and makes requests of them.

use crate::prelude::*;

/// Bits of a [`Receiver::reply`]: requester id in 15:0, tag in 23:16, lower address in 30:24, byte
/// count in 42:31, traffic class in 45:43, attributes in 47:46.
pub const REPLY_BITS: usize = 48;

logic_block! {
    /// One request at a time, offered until it is taken. Packets that ask for nothing are swallowed.
    #[derive(Default)]
    pub struct Receiver {
        /// Clock.
        pub clock: Signal<In, Clock>,
        /// Beat: DW0 in bits 31:0.
        pub data: Signal<In, Bits<64>>,
        /// 0xFF, or 0x0F in a last beat with one DW.
        pub keep: Signal<In, Bits<8>>,
        /// Last beat.
        pub last: Signal<In, bool>,
        /// A beat is there.
        pub valid: Signal<In, bool>,
        /// It is taken at this edge.
        pub ready: Signal<Out, bool>,
        /// A request is there.
        pub offer: Signal<Out, bool>,
        /// It is taken at this edge.
        pub taken: Signal<In, bool>,
        /// Writes; otherwise it wants an answer.
        pub write: Signal<Out, bool>,
        /// The answer is "unsupported request".
        pub refuse: Signal<Out, bool>,
        /// To be ignored, and noted.
        pub malformed: Signal<Out, bool>,
        /// Byte offset in the BAR, aligned to 4.
        pub address: Signal<Out, Bits<16>>,
        /// Two DWs instead of one.
        pub double: Signal<Out, bool>,
        /// DWs to write, the first in bits 31:0, in register byte order.
        pub words: Signal<Out, Bits<64>>,
        /// What the answer needs ([`REPLY_BITS`]).
        pub reply: Signal<Out, Bits<48>>,
        header: Dff<Bits<64>>,
        second: Dff<Bits<64>>,
        third: Dff<Bits<64>>,
        // Beats stored so far, up to 3; bit 2: the packet is whole.
        beats: Dff<Bits<3>>,
        // The last beat has one DW.
        half: Dff<bool>,
        whole: Signal<Local, bool>,
        four: Signal<Local, bool>,
        length: Signal<Local, Bits<10>>,
        first_enables: Signal<Local, Bits<4>>,
        last_enables: Signal<Local, Bits<4>>,
        end_enables: Signal<Local, Bits<3>>,
        memory: Signal<Local, bool>,
        with_data: Signal<Local, bool>,
        unanswered: Signal<Local, bool>,
        fits: Signal<Local, bool>,
        short: Signal<Local, bool>,
        place: Signal<Local, Bits<14>>,
        held: Signal<Local, Bits<4>>,
        needed: Signal<Local, Bits<4>>,
        lead: Signal<Local, Bits<2>>,
        trail: Signal<Local, Bits<2>>,
        byte_count: Signal<Local, Bits<12>>,
        lower: Signal<Local, Bits<7>>,
        dws: Signal<Local, Bits<64>>,
    }
}

impl Logic for Receiver {
    #[hdl_gen]
    fn update(&mut self) {
        dff_setup!(self, clock, header, second, third, beats, half);
        self.whole.next = self.beats.q.val().get_bit(2);
        self.ready.next = !self.whole.val();
        if self.valid.val() & !self.whole.val() {
            self.beats.d.next = self.beats.q.val() + 1;
            if self.beats.q.val() == 0 {
                self.header.d.next = self.data.val();
            }
            if self.beats.q.val() == 1 {
                self.second.d.next = self.data.val();
            }
            if self.beats.q.val() == 2 {
                self.third.d.next = self.data.val();
            }
            if self.beats.q.val() == 3 {
                self.beats.d.next = bits::<3>(3);
            }
            if self.last.val() {
                self.half.d.next = self.keep.val() != 0xFF;
                self.beats.d.next = bits::<3>(4) | self.beats.q.val();
            }
        }

        self.offer.next = false;
        self.write.next = false;
        self.refuse.next = false;
        self.malformed.next = false;
        self.address.next = bits::<16>(0);
        self.double.next = false;
        self.words.next = bits::<64>(0);
        self.reply.next = bits::<48>(0);
        self.four.next = false;
        self.length.next = bits::<10>(0);
        self.first_enables.next = bits::<4>(0);
        self.last_enables.next = bits::<4>(0);
        self.end_enables.next = bits::<3>(0);
        self.memory.next = false;
        self.with_data.next = false;
        self.unanswered.next = false;
        self.fits.next = false;
        self.short.next = false;
        self.place.next = bits::<14>(0);
        self.held.next = bits::<4>(0);
        self.needed.next = bits::<4>(0);
        self.lead.next = bits::<2>(0);
        self.trail.next = bits::<2>(0);
        self.byte_count.next = bits::<12>(0);
        self.lower.next = bits::<7>(0);
        self.dws.next = bits::<64>(0);
        if self.whole.val() {
            // Bits 31:24 of DW0: format (0x20: four DWs of header, 0x40: data) and type.
            self.four.next = self.header.q.val().get_bit(29);
            self.with_data.next = self.header.q.val().get_bit(30);
            self.memory.next =
                !self.header.q.val().get_bit(31) & (self.header.q.val().get_bits::<5>(24) == 0);
            // Prefixes, messages and completions get no answer.
            self.unanswered.next = self.header.q.val().get_bit(31)
                | (self.header.q.val().get_bits::<2>(27) == 2)
                | (self.header.q.val().get_bits::<4>(25) == 5);
            self.length.next = self.header.q.val().get_bits::<10>(0);
            self.first_enables.next = self.header.q.val().get_bits::<4>(32);
            self.last_enables.next = self.header.q.val().get_bits::<4>(36);
            if self.four.val() {
                self.place.next = self.second.q.val().get_bits::<14>(34);
                self.dws.next = self.third.q.val();
            } else {
                self.place.next = self.second.q.val().get_bits::<14>(2);
                self.dws.next = bit_cast::<64, 32>(self.second.q.val().get_bits::<32>(32))
                    | (bit_cast::<64, 32>(self.third.q.val().get_bits::<32>(0)) << 32);
            }
            self.double.next = self.length.val() == 2;
            // DWs that came (`beats` counts from zero: its low bits are the index of the last beat), and
            // those that header and data of a request need.
            self.held.next = (bit_cast::<4, 2>(self.beats.q.val().get_bits::<2>(0)) << 1) + 2;
            if self.half.q.val() {
                self.held.next = self.held.val() - 1;
            }
            self.needed.next = bits::<4>(3);
            if self.four.val() {
                self.needed.next = bits::<4>(4);
            }
            if self.with_data.val() & self.double.val() {
                self.needed.next = self.needed.val() + 2;
            } else if self.with_data.val() {
                self.needed.next = self.needed.val() + 1;
            }
            self.short.next = self.held.val() < self.needed.val();
            self.fits.next = (self.length.val() == 1) | (self.double.val() & (self.place.val() != 0x3FFF));
            self.address.next = bit_cast::<16, 14>(self.place.val()) << 2;

            // Bytes that a read leaves out before and after, by its byte enables (PCIe 2.3.1.1).
            self.end_enables.next = self.last_enables.val().get_bits::<3>(1);
            if self.length.val() == 1 {
                self.end_enables.next = self.first_enables.val().get_bits::<3>(1);
            }
            if self.first_enables.val().get_bits::<1>(0) == 0 {
                if self.first_enables.val().get_bit(1) {
                    self.lead.next = bits::<2>(1);
                } else if self.first_enables.val().get_bit(2) {
                    self.lead.next = bits::<2>(2);
                } else if self.first_enables.val().get_bit(3) {
                    self.lead.next = bits::<2>(3);
                }
            }
            if self.end_enables.val().get_bits::<1>(2) == 0 {
                if self.end_enables.val().get_bit(1) {
                    self.trail.next = bits::<2>(1);
                } else if self.end_enables.val().get_bit(0) {
                    self.trail.next = bits::<2>(2);
                } else {
                    self.trail.next = bits::<2>(3);
                }
            }
            self.byte_count.next = bits::<12>(4);
            if self.memory.val() {
                self.byte_count.next = bit_cast::<12, 10>(self.length.val()) << 2;
                self.byte_count.next = self.byte_count.val()
                    - bit_cast::<12, 2>(self.lead.val())
                    - bit_cast::<12, 2>(self.trail.val());
                self.lower.next = (bit_cast::<7, 5>(self.place.val().get_bits::<5>(0)) << 2)
                    | bit_cast::<7, 2>(self.lead.val());
            }
            self.reply.next = bit_cast::<48, 16>(self.header.q.val().get_bits::<16>(48))
                | (bit_cast::<48, 8>(self.header.q.val().get_bits::<8>(40)) << 16)
                | (bit_cast::<48, 7>(self.lower.val()) << 24)
                | (bit_cast::<48, 12>(self.byte_count.val()) << 31)
                | (bit_cast::<48, 3>(self.header.q.val().get_bits::<3>(20)) << 43)
                | (bit_cast::<48, 2>(self.header.q.val().get_bits::<2>(12)) << 46);
            // On the link byte 0 comes first, in bits 31:24.
            self.words.next = bit_cast::<64, 8>(self.dws.val().get_bits::<8>(24))
                | (bit_cast::<64, 8>(self.dws.val().get_bits::<8>(16)) << 8)
                | (bit_cast::<64, 8>(self.dws.val().get_bits::<8>(8)) << 16)
                | (bit_cast::<64, 8>(self.dws.val().get_bits::<8>(0)) << 24)
                | (bit_cast::<64, 8>(self.dws.val().get_bits::<8>(56)) << 32)
                | (bit_cast::<64, 8>(self.dws.val().get_bits::<8>(48)) << 40)
                | (bit_cast::<64, 8>(self.dws.val().get_bits::<8>(40)) << 48)
                | (bit_cast::<64, 8>(self.dws.val().get_bits::<8>(32)) << 56);

            self.offer.next = true;
            if self.memory.val() & self.with_data.val() {
                self.write.next = true;
                // Bit 14: the sender marks the data as poisoned.
                if !self.fits.val()
                    | self.short.val()
                    | self.header.q.val().get_bit(14)
                    | (self.first_enables.val() != 0xF)
                    | ((self.length.val() == 1) & (self.last_enables.val() != 0))
                    | (self.double.val() & (self.last_enables.val() != 0xF))
                {
                    self.malformed.next = true;
                }
            } else if self.unanswered.val() {
                self.offer.next = false;
                self.beats.d.next = bits::<3>(0);
            } else if self.short.val() {
                self.malformed.next = true;
            } else if !self.memory.val() | !self.fits.val() {
                self.refuse.next = true;
            }
            if self.taken.val() {
                self.beats.d.next = bits::<3>(0);
            }
        }
    }
}
