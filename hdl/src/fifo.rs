//! A synchronous FIFO of descriptors in BRAM, with its oldest word always at hand.

use crate::prelude::*;

logic_block! {
    /// 2^`A` words of `D` bits, one clock. `front` holds the oldest word while `filled`; `pop` takes it.
    ///
    /// A word pushed into the empty FIFO appears at `front` three cycles later. A push while `full` is
    /// ignored: the caller looks first.
    #[derive(Default)]
    pub struct Fifo<const D: usize, const A: usize> {
        /// Clock.
        pub clock: Signal<In, Clock>,
        /// Empties the FIFO.
        pub clear: Signal<In, bool>,
        /// Word to push.
        pub data: Signal<In, Bits<D>>,
        /// Push at this edge.
        pub push: Signal<In, bool>,
        /// No room.
        pub full: Signal<Out, bool>,
        /// Oldest word.
        pub front: Signal<Out, Bits<D>>,
        /// `front` is valid.
        pub filled: Signal<Out, bool>,
        /// Take the oldest word at this edge.
        pub pop: Signal<In, bool>,
        ram: Ram<D, A>,
        write: Dff<Bits<A>>,
        read: Dff<Bits<A>>,
        fetched: Dff<bool>,
        out: Dff<Bits<D>>,
        out_filled: Dff<bool>,
        write_next: Signal<Local, Bits<A>>,
        read_next: Signal<Local, Bits<A>>,
        out_free: Signal<Local, bool>,
        fetch: Signal<Local, Bits<A>>,
    }
}

impl<const D: usize, const A: usize> Logic for Fifo<D, A> {
    #[hdl_gen]
    fn update(&mut self) {
        self.ram.read_clock.next = self.clock.val();
        self.ram.write_clock.next = self.clock.val();
        dff_setup!(self, clock, write, read, fetched, out, out_filled);
        self.write_next.next = self.write.q.val() + 1;
        self.read_next.next = self.read.q.val() + 1;
        self.full.next = self.write_next.val() == self.read.q.val();
        self.ram.write_address.next = self.write.q.val();
        self.ram.write_data.next = self.data.val();
        self.ram.write_enable.next = false;
        if self.push.val() & (self.write_next.val() != self.read.q.val()) {
            self.ram.write_enable.next = true;
            self.write.d.next = self.write_next.val();
        }
        // Two stages: the RAM's read register, which holds the word at `read` while `fetched`, and the
        // output register. While the second is stuck the same address is read again.
        self.out_free.next = !self.out_filled.q.val() | self.pop.val();
        self.fetch.next = self.read.q.val();
        if self.fetched.q.val() & self.out_free.val() {
            self.fetch.next = self.read_next.val();
        }
        self.read.d.next = self.fetch.val();
        self.ram.read_address.next = self.fetch.val();
        self.fetched.d.next = self.fetch.val() != self.write.q.val();
        if self.out_free.val() {
            self.out.d.next = self.ram.read_data.val();
            self.out_filled.d.next = self.fetched.q.val();
        }
        if self.clear.val() {
            self.write.d.next = bits::<A>(0);
            self.read.d.next = bits::<A>(0);
            self.fetched.d.next = false;
            self.out_filled.d.next = false;
        }
        self.front.next = self.out.q.val();
        self.filled.next = self.out_filled.q.val();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use std::collections::VecDeque;

    #[test]
    fn behaves_as_a_queue_and_is_synthesizable() {
        let mut fifo = Fifo::<24, 4>::default();
        fifo.connect_all();
        check_all(&fifo).unwrap();
        assert!(generate_verilog(&fifo).contains("module top"));
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        let mut model = VecDeque::new();
        let mut taken = 0;
        for step in 0..20_000u64 {
            // Outputs don't depend on the inputs of the same cycle, so the choice can follow them.
            settle(&mut fifo);
            let push = !fifo.full.val() && random.random_bool(if step / 1000 % 2 == 0 { 0.7 } else { 0.3 });
            let pop = fifo.filled.val() && random.random_bool(0.5);
            fifo.data.next = bits(step);
            fifo.push.next = push;
            fifo.pop.next = pop;
            let front = cycle(&mut fifo, |f| &mut f.clock, |f| f.front.val());
            if pop {
                assert_eq!(Some(front.to_u64()), model.pop_front(), "at step {step}");
                taken += 1;
            }
            if push {
                model.push_back(step);
            }
            assert!(model.len() <= 18);
        }
        assert!(taken > 5000, "only {taken} words went through");
    }
}
