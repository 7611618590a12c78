//! A queue of descriptions in BRAM, with its oldest at hand. It never gives one in two cycles in a row, and so
//! nothing that decides whether one is taken reaches further than a single flip-flop.

use crate::prelude::*;

logic_block! {
    /// 2^`A` words of `D` bits, one clock. `front` holds the oldest word while `filled`; `pop` takes it, and in the
    /// next cycle the queue isn't `filled`.
    ///
    /// A word pushed into the empty queue appears at `front` three cycles later. A push while `full` is
    /// ignored: the caller looks first.
    #[derive(Default)]
    pub struct DescriptionQueue<const D: usize, const A: usize> {
        /// Clock.
        pub clock: Signal<In, Clock>,
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
        /// Take the oldest word at this edge, while `filled`.
        pub pop: Signal<In, bool>,
        ram: Ram<D, A>,
        write: Dff<Bits<A>>,
        read: Dff<Bits<A>>,
        fetched: Dff<bool>,
        out: Dff<Bits<D>>,
        out_filled: Dff<bool>,
        write_next: Signal<Local, Bits<A>>,
        read_next: Signal<Local, Bits<A>>,
    }
}

impl<const D: usize, const A: usize> Logic for DescriptionQueue<D, A> {
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
        // The RAM's read register holds the word at `read` while `fetched`. It moves on to the output register only
        // when that is empty, not when it is being emptied.
        self.ram.read_address.next = self.read.q.val();
        self.fetched.d.next = self.read.q.val() != self.write.q.val();
        if self.out_filled.q.val() {
            self.out_filled.d.next = !self.pop.val();
        } else {
            self.out.d.next = self.ram.read_data.val();
            self.out_filled.d.next = self.fetched.q.val();
            if self.fetched.q.val() {
                self.read.d.next = self.read_next.val();
                self.fetched.d.next = false;
            }
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
    fn behaves_as_a_queue_that_rests_after_each_word() {
        let mut queue = DescriptionQueue::<24, 4>::default();
        queue.connect_all();
        check_all(&queue).unwrap();
        assert!(generate_verilog(&queue).contains("module top"));
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        let mut model = VecDeque::new();
        let (mut taken, mut full) = (0, 0);
        let mut popped = false;
        // Cycles since the queue had its oldest word, at most.
        let mut pushed_at = VecDeque::new();
        for step in 0..40_000u64 {
            // Outputs don't depend on the inputs of the same cycle, so the choice can follow them.
            settle(&mut queue);
            full += u64::from(queue.full.val());
            let push = !queue.full.val() && random.random_bool(if step / 1000 % 2 == 0 { 0.7 } else { 0.2 });
            let pop = queue.filled.val() && random.random_bool([0.9, 0.4][(step / 2000 % 2) as usize]);
            assert!(!(popped && queue.filled.val()), "at step {step}: no rest");
            if !queue.filled.val() && !popped {
                // Pushed into the empty queue three cycles ago, or longer: then it is there.
                assert!(pushed_at.front().is_none_or(|&at| step < at + 3), "at step {step}: missing");
            }
            queue.data.next = bits(step);
            queue.push.next = push;
            queue.pop.next = pop;
            let front = cycle(&mut queue, |q| &mut q.clock, |q| q.front.val());
            if pop {
                assert_eq!(Some(front.to_u64()), model.pop_front(), "at step {step}");
                pushed_at.pop_front();
                taken += 1;
            }
            if push {
                model.push_back(step);
                pushed_at.push_back(step);
            }
            popped = pop;
            assert!(model.len() <= 17);
        }
        assert!(taken > 5000, "only {taken} words went through");
        assert!(full > 100, "full in {full} cycles");
    }
}
