//! Reads lines out of a port's ring ahead of the transmitter.

use crate::fifo::Fifo;
use crate::prelude::*;
use std::array;

logic_block! {
    /// Words of `P` rings with `A` address bits, in the order asked for.
    pub struct Fetch<const P: usize, const A: usize> {
        /// Clock.
        pub clock: Signal<In, Clock>,
        /// Forgets everything.
        pub clear: Signal<In, bool>,
        /// Begin (strobe, while `idle`).
        pub start: Signal<In, bool>,
        /// At this word.
        pub start_address: Signal<In, Bits<A>>,
        /// So many lines of eight words.
        pub start_lines: Signal<In, Bits<3>>,
        /// Of this port.
        pub start_port: Signal<In, Bits<3>>,
        /// A word that isn't the ring's comes next (strobe, while `empty`).
        pub insert: Signal<In, bool>,
        /// It.
        pub insert_word: Signal<In, Bits<64>>,
        /// Nothing left to read.
        pub idle: Signal<Out, bool>,
        /// Nor on its way.
        pub empty: Signal<Out, bool>,
        /// See `Host`.
        pub ring_read_address: Signal<Out, Bits<A>>,
        /// See `Host`.
        pub ring_read_data: [Signal<In, Bits<64>>; P],
        /// Oldest word.
        pub word: Signal<Out, Bits<64>>,
        /// It is there.
        pub filled: Signal<Out, bool>,
        /// It is taken.
        pub pop: Signal<In, bool>,

        words: Fifo<64, 5>,
        address: Dff<Bits<A>>,
        left: Dff<Bits<6>>,
        port: Dff<Bits<3>>,
        // Reads on their way: valid in bit 3, port in bits 2:0; then the same a cycle later.
        flight: Dff<Bits<8>>,
        arrived: Dff<Bits<64>>,
        arrived_valid: Dff<bool>,
        // Words asked for and not yet taken: never more than the FIFO holds, so it is never full.
        credits: Dff<Bits<6>>,
        ask: Signal<Local, bool>,
        flying: Signal<Local, Bits<4>>,
        from: Signal<Local, Bits<3>>,
        credits_next: Signal<Local, Bits<6>>,
    }
}

impl<const P: usize, const A: usize> Fetch<P, A> {
    /// Nothing asked for.
    pub fn new() -> Self {
        Self {
            clock: Default::default(),
            clear: Default::default(),
            start: Default::default(),
            start_address: Default::default(),
            start_lines: Default::default(),
            start_port: Default::default(),
            insert: Default::default(),
            insert_word: Default::default(),
            idle: Default::default(),
            empty: Default::default(),
            ring_read_address: Default::default(),
            ring_read_data: array::from_fn(|_| Default::default()),
            word: Default::default(),
            filled: Default::default(),
            pop: Default::default(),
            words: Default::default(),
            address: Default::default(),
            left: Default::default(),
            port: Default::default(),
            flight: Default::default(),
            arrived: Default::default(),
            arrived_valid: Default::default(),
            credits: Default::default(),
            ask: Default::default(),
            flying: Default::default(),
            from: Default::default(),
            credits_next: Default::default(),
            settled: Default::default(),
        }
    }
}

impl<const P: usize, const A: usize> Default for Fetch<P, A> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const P: usize, const A: usize> Logic for Fetch<P, A> {
    #[hdl_gen]
    fn update(&mut self) {
        dff_setup!(self, clock, address, left, port, flight, arrived, arrived_valid, credits);
        self.words.clock.next = self.clock.val();
        self.words.clear.next = self.clear.val();
        self.words.pop.next = self.pop.val();
        self.words.data.next = self.arrived.q.val();
        self.words.push.next = self.arrived_valid.q.val();
        self.word.next = self.words.front.val();
        self.filled.next = self.words.filled.val();
        self.ring_read_address.next = self.address.q.val();
        self.idle.next = self.left.q.val() == 0;
        self.empty.next = (self.left.q.val() == 0) & (self.flight.q.val() == 0) & !self.arrived_valid.q.val();

        self.ask.next = (self.left.q.val() != 0) & (self.credits.q.val() < 28) & !self.words.full.val();
        self.flying.next = bits::<4>(0);
        self.credits_next.next = self.credits.q.val();
        if self.ask.val() {
            self.flying.next = bit_cast::<4, 3>(self.port.q.val()) | 8;
            self.address.d.next = self.address.q.val() + 1;
            self.left.d.next = self.left.q.val() - 1;
            self.credits_next.next = self.credits_next.val() + 1;
        }
        if self.start.val() {
            self.address.d.next = self.start_address.val();
            self.left.d.next = bit_cast::<6, 3>(self.start_lines.val()) << 3;
            self.port.d.next = self.start_port.val();
        }
        self.flight.d.next = bit_cast::<8, 4>(self.flying.val())
            | (bit_cast::<8, 4>(self.flight.q.val().get_bits::<4>(0)) << 4);
        self.arrived_valid.d.next = self.flight.q.val().get_bit(7);
        self.from.next = self.flight.q.val().get_bits::<3>(4);
        if self.flight.q.val().get_bit(7) {
            for i in 0..P {
                if self.from.val() == i.to_bits::<3>() {
                    self.arrived.d.next = self.ring_read_data[i].val();
                }
            }
        }
        if self.insert.val() {
            self.arrived_valid.d.next = true;
            self.arrived.d.next = self.insert_word.val();
            self.credits_next.next = self.credits_next.val() + 1;
        }
        if self.pop.val() {
            self.credits_next.next = self.credits_next.val() - 1;
        }
        self.credits.d.next = self.credits_next.val();
        if self.clear.val() {
            self.left.d.next = bits::<6>(0);
            self.flight.d.next = bits::<8>(0);
            self.arrived_valid.d.next = false;
            self.credits.d.next = bits::<6>(0);
        }
    }
}
