//! Makes packets to the host of completions, messages and planned writes, in this precedence.

use super::planner::DESCRIPTOR_BITS;
use super::register_file::COMPLETION_BITS;
use crate::prelude::*;
use step::Step;

mod step {
    #![allow(missing_docs)]
    use rust_hdl::prelude::*;
    /// The beat that comes next.
    #[derive(LogicState, Copy, Clone, Debug, PartialEq)]
    pub enum Step {
        Start,
        Address,
        Data,
        Rest,
    }
}

const _: () = assert!(COMPLETION_BITS == 115 && DESCRIPTOR_BITS == 70);

logic_block! {
    /// Beats follow each other without a gap, within a packet and from one to the next.
    #[derive(Default)]
    pub struct Transmitter {
        /// Clock.
        pub clock: Signal<In, Clock>,
        /// See `Host`.
        pub data: Signal<Out, Bits<64>>,
        /// See `Host`.
        pub keep: Signal<Out, Bits<8>>,
        /// See `Host`.
        pub last: Signal<Out, bool>,
        /// See `Host`.
        pub valid: Signal<Out, bool>,
        /// See `Host`.
        pub ready: Signal<In, bool>,
        /// Who we are: bus in 15:8, device in 7:3, function in 2:0.
        pub identity: Signal<In, Bits<16>>,
        /// Memory writes may leave.
        pub bus_master_enable: Signal<In, bool>,
        /// No memory write may begin.
        pub stop: Signal<In, bool>,
        /// Nothing is being sent.
        pub quiet: Signal<Out, bool>,
        /// See `RegisterFile`.
        pub completion: Signal<In, Bits<115>>,
        /// See `RegisterFile`.
        pub completion_filled: Signal<In, bool>,
        /// See `RegisterFile`.
        pub completion_pop: Signal<Out, bool>,
        /// See `Msix`.
        pub message: Signal<In, bool>,
        /// See `Msix`.
        pub message_address: Signal<In, Bits<64>>,
        /// See `Msix`.
        pub message_data: Signal<In, Bits<32>>,
        /// See `Msix`.
        pub message_begun: Signal<Out, bool>,
        /// See `Msix`.
        pub message_sent: Signal<Out, bool>,
        /// See `Planner`.
        pub descriptor: Signal<In, Bits<70>>,
        /// See `Planner`.
        pub descriptor_filled: Signal<In, bool>,
        /// See `Planner`.
        pub descriptor_pop: Signal<Out, bool>,
        /// See `Fetch`.
        pub word: Signal<In, Bits<64>>,
        /// See `Fetch`.
        pub word_filled: Signal<In, bool>,
        /// See `Fetch`.
        pub word_pop: Signal<Out, bool>,
        /// A mailbox is written (strobe).
        pub announced: Signal<Out, bool>,
        /// Of this port.
        pub announced_port: Signal<Out, Bits<3>>,
        /// With this.
        pub announced_bytes: Signal<Out, Bits<64>>,

        step: Dff<Step>,
        // Of what the packet is: completion in bit 0, message in bit 1, write in bit 2.
        source: Dff<Bits<3>>,
        // DWs of data to come.
        left: Dff<Bits<7>>,
        // The DW that the beat before had no room for.
        carry: Dff<Bits<32>>,
        beat: Dff<Bits<64>>,
        // Valid, last, and "one DW only".
        flags: Dff<Bits<3>>,

        free: Signal<Local, bool>,
        posted: Signal<Local, bool>,
        choice: Signal<Local, Bits<3>>,
        swap: Signal<Local, Bits<64>>,
        swapped: Signal<Local, Bits<64>>,
        here: Signal<Local, bool>,
        four: Signal<Local, bool>,
        place: Signal<Local, Bits<64>>,
        low: Signal<Local, Bits<32>>,
        length: Signal<Local, Bits<7>>,
        lines: Signal<Local, Bits<3>>,
        dw0: Signal<Local, Bits<32>>,
        dw1: Signal<Local, Bits<32>>,
        reply: Signal<Local, Bits<48>>,
        emit: Signal<Local, bool>,
        at_end: Signal<Local, bool>,
        half: Signal<Local, bool>,
        used: Signal<Local, bool>,
    }
}

impl Logic for Transmitter {
    #[hdl_gen]
    fn update(&mut self) {
        dff_setup!(self, clock, step, source, left, carry, beat, flags);
        self.data.next = self.beat.q.val();
        self.valid.next = self.flags.q.val().get_bit(0);
        self.last.next = self.flags.q.val().get_bit(1);
        self.keep.next = bits::<8>(0xFF);
        if self.flags.q.val().get_bit(2) {
            self.keep.next = bits::<8>(0x0F);
        }
        self.free.next = !self.flags.q.val().get_bit(0) | self.ready.val();
        self.quiet.next = (self.step.q.val() == Step::Start) & !self.flags.q.val().get_bit(0);

        // What to send.
        self.posted.next = self.bus_master_enable.val() & !self.stop.val();
        self.choice.next = self.source.q.val();
        if self.step.q.val() == Step::Start {
            self.choice.next = bits::<3>(0);
            if self.completion_filled.val() {
                self.choice.next = bits::<3>(1);
            } else if self.posted.val() & self.message.val() {
                self.choice.next = bits::<3>(2);
            } else if self.posted.val() & self.descriptor_filled.val() {
                self.choice.next = bits::<3>(4);
            }
        }
        self.completion_pop.next = false;
        self.message_begun.next = false;
        self.message_sent.next = false;
        self.descriptor_pop.next = false;
        self.word_pop.next = false;
        self.announced.next = false;
        self.announced_port.next = bits::<3>(0);
        self.announced_bytes.next = bits::<64>(0);
        self.swap.next = bits::<64>(0);
        self.swapped.next = bits::<64>(0);
        self.here.next = true;
        self.four.next = false;
        self.place.next = bits::<64>(0);
        self.low.next = bits::<32>(0);
        self.length.next = bits::<7>(0);
        self.lines.next = bits::<3>(0);
        self.dw0.next = bits::<32>(0);
        self.dw1.next = bits::<32>(0);
        self.reply.next = bits::<48>(0);
        self.emit.next = false;
        self.at_end.next = false;
        self.half.next = false;
        self.used.next = false;
        if self.free.val() {
            self.flags.d.next = bits::<3>(0);
        }
        if self.free.val() & self.choice.val().any() {
            if self.choice.val().get_bit(0) {
                self.swap.next = self.completion.val().get_bits::<64>(0);
                self.reply.next = self.completion.val().get_bits::<48>(64);
                self.length.next = bit_cast::<7, 2>(self.completion.val().get_bits::<2>(112));
                // Traffic class and attributes are those of the request.
                self.dw0.next = (bit_cast::<32, 3>(self.reply.val().get_bits::<3>(43)) << 20)
                    | (bit_cast::<32, 2>(self.reply.val().get_bits::<2>(46)) << 12)
                    | bit_cast::<32, 7>(self.length.val())
                    | 0x4A00_0000;
                self.dw1.next = (bit_cast::<32, 16>(self.identity.val()) << 16)
                    | bit_cast::<32, 12>(self.reply.val().get_bits::<12>(31));
                if self.completion.val().get_bit(114) {
                    self.dw0.next = (bit_cast::<32, 3>(self.reply.val().get_bits::<3>(43)) << 20)
                        | (bit_cast::<32, 2>(self.reply.val().get_bits::<2>(46)) << 12)
                        | 0x0A00_0000;
                    self.dw1.next = (bit_cast::<32, 16>(self.identity.val()) << 16)
                        | bit_cast::<32, 12>(self.reply.val().get_bits::<12>(31))
                        | 0x2000;
                }
                self.low.next = (bit_cast::<32, 16>(self.reply.val().get_bits::<16>(0)) << 16)
                    | (bit_cast::<32, 8>(self.reply.val().get_bits::<8>(16)) << 8)
                    | bit_cast::<32, 7>(self.reply.val().get_bits::<7>(24));
            } else {
                if self.choice.val().get_bit(1) {
                    self.swap.next = bit_cast::<64, 32>(self.message_data.val());
                    self.place.next = self.message_address.val();
                    self.length.next = bits::<7>(1);
                } else {
                    self.swap.next = self.word.val();
                    self.here.next = self.word_filled.val();
                    self.place.next = self.descriptor.val().get_bits::<64>(0);
                    self.lines.next = self.descriptor.val().get_bits::<3>(64);
                    self.length.next = bit_cast::<7, 3>(self.lines.val()) << 4;
                    if self.lines.val() == 0 {
                        self.length.next = bits::<7>(2);
                    }
                }
                self.low.next = self.place.val().get_bits::<32>(0);
                // All byte enables; of one DW the last ones are zero.
                self.dw1.next = (bit_cast::<32, 16>(self.identity.val()) << 16) | 0xFF;
                if self.choice.val().get_bit(1) {
                    self.dw1.next = (bit_cast::<32, 16>(self.identity.val()) << 16) | 0x0F;
                }
                self.dw0.next = bit_cast::<32, 7>(self.length.val()) | 0x4000_0000;
                if self.place.val().get_bits::<32>(32) != 0 {
                    self.four.next = true;
                    self.dw0.next = bit_cast::<32, 7>(self.length.val()) | 0x6000_0000;
                }
            }
            // On the link byte 0 comes first, in bits 31:24.
            self.swapped.next = bit_cast::<64, 8>(self.swap.val().get_bits::<8>(24))
                | (bit_cast::<64, 8>(self.swap.val().get_bits::<8>(16)) << 8)
                | (bit_cast::<64, 8>(self.swap.val().get_bits::<8>(8)) << 16)
                | (bit_cast::<64, 8>(self.swap.val().get_bits::<8>(0)) << 24)
                | (bit_cast::<64, 8>(self.swap.val().get_bits::<8>(56)) << 32)
                | (bit_cast::<64, 8>(self.swap.val().get_bits::<8>(48)) << 40)
                | (bit_cast::<64, 8>(self.swap.val().get_bits::<8>(40)) << 48)
                | (bit_cast::<64, 8>(self.swap.val().get_bits::<8>(32)) << 56);

            match self.step.q.val() {
                Step::Start => {
                    self.emit.next = true;
                    self.beat.d.next =
                        bit_cast::<64, 32>(self.dw0.val()) | (bit_cast::<64, 32>(self.dw1.val()) << 32);
                    self.source.d.next = self.choice.val();
                    self.left.d.next = self.length.val();
                    self.message_begun.next = self.choice.val().get_bit(1);
                    self.step.d.next = Step::Address;
                }
                Step::Address => {
                    if self.four.val() {
                        self.emit.next = true;
                        self.beat.d.next = bit_cast::<64, 32>(self.place.val().get_bits::<32>(32))
                            | (bit_cast::<64, 32>(self.low.val()) << 32);
                        self.step.d.next = Step::Data;
                    } else if self.left.q.val() == 0 {
                        self.emit.next = true;
                        self.beat.d.next = bit_cast::<64, 32>(self.low.val());
                        self.half.next = true;
                        self.at_end.next = true;
                    } else if self.here.val() {
                        self.emit.next = true;
                        self.beat.d.next = bit_cast::<64, 32>(self.low.val())
                            | (bit_cast::<64, 32>(self.swapped.val().get_bits::<32>(0)) << 32);
                        self.carry.d.next = self.swapped.val().get_bits::<32>(32);
                        self.used.next = true;
                        self.left.d.next = self.left.q.val() - 1;
                        self.at_end.next = self.left.q.val() == 1;
                        self.step.d.next = Step::Rest;
                    }
                }
                Step::Data => {
                    // A header of four DWs: data come in whole beats.
                    if self.here.val() {
                        self.emit.next = true;
                        self.beat.d.next = self.swapped.val();
                        self.used.next = true;
                        self.left.d.next = self.left.q.val() - 2;
                        self.half.next = self.left.q.val() == 1;
                        self.at_end.next = self.left.q.val() <= 2;
                    }
                }
                Step::Rest => {
                    // A header of three DWs: each beat takes up the DW that the one before left.
                    if self.left.q.val() == 1 {
                        self.emit.next = true;
                        self.beat.d.next = bit_cast::<64, 32>(self.carry.q.val());
                        self.half.next = true;
                        self.at_end.next = true;
                    } else if self.here.val() {
                        self.emit.next = true;
                        self.beat.d.next = bit_cast::<64, 32>(self.carry.q.val())
                            | (bit_cast::<64, 32>(self.swapped.val().get_bits::<32>(0)) << 32);
                        self.carry.d.next = self.swapped.val().get_bits::<32>(32);
                        self.used.next = true;
                        self.left.d.next = self.left.q.val() - 2;
                    }
                }
            }
            if self.emit.val() {
                self.flags.d.next = bit_cast::<3, 1>(self.emit.val().into())
                    | (bit_cast::<3, 1>(self.at_end.val().into()) << 1)
                    | (bit_cast::<3, 1>(self.half.val().into()) << 2);
            }
            if self.at_end.val() {
                self.step.d.next = Step::Start;
                self.completion_pop.next = self.choice.val().get_bit(0);
                self.message_sent.next = self.choice.val().get_bit(1);
                self.descriptor_pop.next = self.choice.val().get_bit(2);
            }
            if self.used.val() & self.choice.val().get_bit(2) {
                self.word_pop.next = true;
                if self.lines.val() == 0 {
                    self.announced.next = true;
                    self.announced_port.next = self.descriptor.val().get_bits::<3>(67);
                    self.announced_bytes.next = self.word.val();
                }
            }
        }
    }
}
