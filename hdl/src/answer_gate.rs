//! What goes out of a port, in its order, but for answers that must wait: with the acknowledge policy
//! `journal` an answer is put aside until the host has reported its entry durable (DESIGN §5).
//!
//! Every frame that is an answer to ATA waits for the scoreboard's verdict. What is put aside keeps the
//! order of its coming; nothing else waits behind it.

use crate::prelude::*;

mod states {
    #![allow(missing_docs)]
    use rust_hdl::prelude::*;

    #[derive(Copy, Clone, PartialEq, Debug, LogicState)]
    pub enum GateState {
        Idle,
        /// A frame goes out.
        Send,
        /// An answer is put aside.
        Store,
        /// An answer that was put aside goes out, or is dropped.
        Release,
    }
}
pub use states::GateState;

logic_block! {
    /// Frames in, frames out; a *place* is a scoreboard slot and which of its four requests.
    #[derive(Default)]
    pub struct AnswerGate {
        /// Clock.
        pub clock: Signal<In, Clock>,
        /// Durable up to this number.
        pub durable: Signal<In, Bits<64>>,
        /// The host is gone: what was put aside is dropped (strobe).
        pub cancel: Signal<In, bool>,
        /// Word to go out: as `FrameBuffer::front`; in a frame's first word bits 66:64 are zero when it is an
        /// answer to ATA.
        pub front: Signal<In, Bits<68>>,
        /// It is there.
        pub filled: Signal<In, bool>,
        /// It is taken.
        pub pop: Signal<Out, bool>,
        /// The scoreboard has seen the next answer (strobe).
        pub verdict: Signal<In, bool>,
        /// Its write has policy `journal`.
        pub verdict_hold: Signal<In, bool>,
        /// Number of its entry.
        pub verdict_number: Signal<In, Bits<64>>,
        /// Its place.
        pub verdict_place: Signal<In, Bits<6>>,
        /// A copy of what waits at a place was dropped (strobe).
        pub retag: Signal<In, bool>,
        /// The place.
        pub retag_place: Signal<In, Bits<6>>,
        /// The copy's tag, which the answer has from now on.
        pub retag_tag: Signal<In, Bits<32>>,
        /// The place needn't be kept any longer; until `release_take`.
        pub let_go: Signal<Out, bool>,
        /// The place.
        pub release_place: Signal<Out, Bits<6>>,
        /// Seen.
        pub release_take: Signal<In, bool>,
        /// An answer found no room (strobe).
        pub lost: Signal<Out, bool>,
        /// Word that goes out.
        pub out: Signal<Out, Bits<68>>,
        /// It is there; never withdrawn.
        pub out_valid: Signal<Out, bool>,
        /// It is taken.
        pub out_ready: Signal<In, bool>,
        aside: FrameBuffer<9>,
        // Place, number, hold.
        verdicts: Fifo<71, 5>,
        // Place, number of what is aside.
        waiting: Fifo<70, 6>,
        tags: Ram<32, 6>,
        retagged: Dff<Bits<64>>,
        state: Dff<GateState>,
        index: Dff<Bits<2>>,
        dropping: Dff<bool>,
        cancelling: Dff<bool>,
        // A place that is to be released.
        leaving: Dff<bool>,
        leaving_place: Dff<Bits<6>>,
        sent_retagged: Dff<bool>,
        kept_place: Dff<Bits<6>>,
        kept_number: Dff<Bits<64>>,
        place_bit: Signal<Local, Bits<64>>,
        retag_bit: Signal<Local, Bits<64>>,
        waiting_bits: Signal<Local, Bits<64>>,
        front_answer: Signal<Local, bool>,
        held: Signal<Local, bool>,
        index_next: Signal<Local, Bits<2>>,
        word: Signal<Local, Bits<68>>,
        take: Signal<Local, bool>,
    }
}

impl Logic for AnswerGate {
    #[hdl_gen]
    fn update(&mut self) {
        clock!(self, clock, aside, verdicts, waiting);
        self.tags.read_clock.next = self.clock.val();
        self.tags.write_clock.next = self.clock.val();
        dff_setup!(
            self,
            clock,
            retagged,
            state,
            index,
            dropping,
            cancelling,
            leaving,
            leaving_place,
            sent_retagged,
            kept_place,
            kept_number
        );
        self.verdicts.clear.next = false;
        self.verdicts.data.next = bit_cast::<71, 64>(self.verdict_number.val())
            | (bit_cast::<71, 6>(self.verdict_place.val()) << 64)
            | (bit_cast::<71, 1>(self.verdict_hold.val().into()) << 70);
        self.verdicts.push.next = self.verdict.val();
        self.verdicts.pop.next = false;
        self.waiting.clear.next = false;
        self.waiting.data.next =
            bit_cast::<70, 64>(self.kept_number.q.val()) | (bit_cast::<70, 6>(self.kept_place.q.val()) << 64);
        self.waiting.push.next = false;
        self.waiting.pop.next = false;
        self.aside.data.next = self.front.val().get_bits::<64>(0);
        self.aside.last_byte.next = self.front.val().get_bits::<3>(64);
        self.aside.last.next = self.front.val().get_bit(67);
        self.aside.valid.next = false;
        self.aside.commit.next = true;
        self.aside.hold.next = false;
        self.aside.again.next = false;
        self.aside.pop.next = false;

        // Tags that copies left: a new answer at a place has none.
        self.tags.write_address.next = self.retag_place.val();
        self.tags.write_data.next = self.retag_tag.val();
        self.tags.write_enable.next = self.retag.val();
        self.tags.read_address.next = self.waiting.front.val().get_bits::<6>(64);
        self.place_bit.next = bits::<64>(0);
        if self.verdict.val() & self.verdict_hold.val() {
            self.place_bit.next = bits::<64>(1) << self.verdict_place.val();
        }
        self.retag_bit.next = bits::<64>(0);
        if self.retag.val() {
            self.retag_bit.next = bits::<64>(1) << self.retag_place.val();
        }
        self.retagged.d.next = (self.retagged.q.val() & !self.place_bit.val()) | self.retag_bit.val();

        if self.cancel.val() {
            self.cancelling.d.next = true;
        }
        if self.leaving.q.val() & self.release_take.val() {
            self.leaving.d.next = false;
        }
        self.let_go.next = self.leaving.q.val();
        self.release_place.next = self.leaving_place.q.val();
        self.waiting_bits.next = self.retagged.q.val() >> self.waiting.front.val().get_bits::<6>(64);
        self.front_answer.next = self.front.val().get_bits::<3>(64) == 0;
        self.held.next = self.verdicts.front.val().get_bit(70);
        self.index_next.next = self.index.q.val() + 1;
        self.pop.next = false;
        self.lost.next = false;
        self.out_valid.next = false;
        self.word.next = self.front.val();
        self.take.next = false;
        match self.state.q.val() {
            GateState::Idle => {
                self.index.d.next = bits::<2>(0);
                if self.leaving.q.val() {
                    // One place after the other.
                    self.state.d.next = GateState::Idle;
                } else if self.waiting.filled.val()
                    & self.aside.filled.val()
                    & ((self.waiting.front.val().get_bits::<64>(0) <= self.durable.val())
                        | self.cancelling.q.val())
                {
                    self.dropping.d.next = self.cancelling.q.val();
                    self.sent_retagged.d.next = self.waiting_bits.val().get_bit(0);
                    self.leaving.d.next = true;
                    self.leaving_place.d.next = self.waiting.front.val().get_bits::<6>(64);
                    self.state.d.next = GateState::Release;
                } else {
                    if !self.waiting.filled.val() {
                        self.cancelling.d.next = self.cancel.val();
                    }
                    if self.filled.val() & !self.front_answer.val() {
                        self.state.d.next = GateState::Send;
                    } else if self.filled.val() & self.verdicts.filled.val() {
                        self.verdicts.pop.next = true;
                        self.state.d.next = GateState::Send;
                        if self.held.val() {
                            self.kept_number.d.next = self.verdicts.front.val().get_bits::<64>(0);
                            self.kept_place.d.next = self.verdicts.front.val().get_bits::<6>(64);
                            if self.verdicts.front.val().get_bits::<64>(0) > self.durable.val() {
                                self.state.d.next = GateState::Store;
                            } else {
                                self.leaving.d.next = true;
                                self.leaving_place.d.next = self.verdicts.front.val().get_bits::<6>(64);
                            }
                        }
                    }
                }
            }
            GateState::Send => {
                self.out_valid.next = self.filled.val();
                self.take.next = self.filled.val() & self.out_ready.val();
                self.pop.next = self.take.val();
                if self.take.val() & self.front.val().get_bit(67) {
                    self.state.d.next = GateState::Idle;
                }
            }
            GateState::Store => {
                self.aside.valid.next = self.filled.val();
                self.pop.next = self.filled.val();
                if self.filled.val() & self.front.val().get_bit(67) {
                    self.state.d.next = GateState::Idle;
                    if self.aside.lost.val() | self.waiting.full.val() {
                        self.aside.commit.next = false;
                        self.lost.next = true;
                        self.leaving.d.next = true;
                        self.leaving_place.d.next = self.kept_place.q.val();
                    } else {
                        self.waiting.push.next = true;
                    }
                }
            }
            GateState::Release => {
                self.word.next = self.aside.front.val();
                if (self.index.q.val() == 2) & self.sent_retagged.q.val() {
                    self.word.next = bit_cast::<68, 32>(self.aside.front.val().get_bits::<32>(0))
                        | (bit_cast::<68, 32>(self.tags.read_data.val()) << 32)
                        | (bit_cast::<68, 4>(self.aside.front.val().get_bits::<4>(64)) << 64);
                }
                self.out_valid.next = self.aside.filled.val() & !self.dropping.q.val();
                self.take.next = self.aside.filled.val() & (self.out_ready.val() | self.dropping.q.val());
                self.aside.pop.next = self.take.val();
                if self.take.val() {
                    if self.index.q.val() != 3 {
                        self.index.d.next = self.index_next.val();
                    }
                    if self.aside.front.val().get_bit(67) {
                        self.waiting.pop.next = true;
                        self.state.d.next = GateState::Idle;
                    }
                }
            }
        }
        self.out.next = self.word.val();
    }
}
