//! The way out: the frame that has the uplink, word by word, through one register.

use crate::prelude::*;

logic_block! {
    /// `P` ports.
    pub struct Uplink<const P: usize> {
        /// Clock.
        pub clock: Signal<In, Clock>,
        /// The port that has the uplink.
        pub owner: Signal<In, Bits<3>>,
        /// It is taken.
        pub busy: Signal<In, bool>,
        /// Each port's word: `FrameBuffer::front`.
        pub word: [Signal<In, Bits<68>>; P],
        /// It is there.
        pub valid: [Signal<In, bool>; P],
        /// It is taken at this edge.
        pub take: [Signal<Out, bool>; P],
        /// The last word of the frame is taken (strobe).
        pub frame_done: Signal<Out, bool>,
        /// Data, byte 0 in bits 7:0.
        pub tx_data: Signal<Out, Bits<64>>,
        /// Valid bytes.
        pub tx_keep: Signal<Out, Bits<8>>,
        /// Last word.
        pub tx_last: Signal<Out, bool>,
        /// A word is there; never withdrawn.
        pub tx_valid: Signal<Out, bool>,
        /// It is taken.
        pub tx_ready: Signal<In, bool>,
        held: Dff<Bits<68>>,
        held_valid: Dff<bool>,
        free: Signal<Local, bool>,
        chosen: Signal<Local, Bits<68>>,
        chosen_valid: Signal<Local, bool>,
        unused: Signal<Local, Bits<3>>,
    }
}

block_default! {
    Uplink<P> {
        clock, owner, busy, frame_done, tx_data, tx_keep, tx_last, tx_valid, tx_ready, held, held_valid,
        free, chosen, chosen_valid, unused,
    }
    arrays { word, valid, take }
}

impl<const P: usize> Logic for Uplink<P> {
    #[hdl_gen]
    fn update(&mut self) {
        dff_setup!(self, clock, held, held_valid);
        self.free.next = !self.held_valid.q.val() | self.tx_ready.val();
        self.chosen.next = bits::<68>(0);
        self.chosen_valid.next = false;
        for i in 0..P {
            self.take[i].next = false;
            if self.busy.val() & (self.owner.val() == i.to_bits::<3>()) {
                self.chosen.next = self.word[i].val();
                self.chosen_valid.next = self.valid[i].val();
                self.take[i].next = self.free.val() & self.valid[i].val();
            }
        }
        self.frame_done.next = self.free.val() & self.chosen_valid.val() & self.chosen.val().get_bit(67);
        if self.free.val() {
            self.held_valid.d.next = self.chosen_valid.val();
            if self.chosen_valid.val() {
                self.held.d.next = self.chosen.val();
            }
        }
        self.tx_data.next = self.held.q.val().get_bits::<64>(0);
        self.tx_last.next = self.held.q.val().get_bit(67);
        self.tx_valid.next = self.held_valid.q.val();
        self.unused.next = !self.held.q.val().get_bits::<3>(64);
        self.tx_keep.next = bits::<8>(0xFF) >> self.unused.val();
    }
}
