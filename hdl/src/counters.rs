//! A port's frame counters, in RAM: one for each `layout::registers::Counter`.

use crate::prelude::*;

logic_block! {
    /// 32 counters of 32 bits that wrap. Events of one cycle are kept in a mask and counted one after the
    /// other, two cycles each: an event that comes again before it is counted is counted once, so a
    /// source of events leaves the others time (frames on a port are at least two words).
    #[derive(Default)]
    pub struct Counters {
        /// Clock.
        pub clock: Signal<In, Clock>,
        /// Bit by bit: count this.
        pub events: Signal<In, Bits<32>>,
        /// Counter to read.
        pub address: Signal<In, Bits<5>>,
        /// Its value, one cycle later.
        pub value: Signal<Out, Bits<32>>,
        counts: Ram<32, 5>,
        shown: Ram<32, 5>,
        pending: Dff<Bits<32>>,
        place: Dff<Bits<5>>,
        adding: Dff<bool>,
        all: Signal<Local, Bits<32>>,
        lowest: Signal<Local, Bits<32>>,
        chosen: Signal<Local, Bits<5>>,
        sum: Signal<Local, Bits<32>>,
        minus_one: Signal<Local, Bits<32>>,
    }
}

impl Logic for Counters {
    #[hdl_gen]
    fn update(&mut self) {
        self.counts.read_clock.next = self.clock.val();
        self.counts.write_clock.next = self.clock.val();
        self.shown.read_clock.next = self.clock.val();
        self.shown.write_clock.next = self.clock.val();
        dff_setup!(self, clock, pending, place, adding);
        self.all.next = self.pending.q.val() | self.events.val();
        self.pending.d.next = self.all.val();
        self.minus_one.next = self.pending.q.val() - 1;
        self.lowest.next = self.pending.q.val() & !self.minus_one.val();
        self.chosen.next = bits::<5>(0);
        self.adding.d.next = false;
        if !self.adding.q.val() & (self.pending.q.val() != 0) {
            for i in 0..32 {
                if self.lowest.val().get_bit(i) {
                    self.chosen.next = i.to_bits::<5>();
                }
            }
            self.adding.d.next = true;
            self.place.d.next = self.chosen.val();
            self.pending.d.next = self.all.val() & (!self.lowest.val() | self.events.val());
        }
        self.counts.read_address.next = self.chosen.val();
        self.sum.next = self.counts.read_data.val() + 1;
        self.counts.write_address.next = self.place.q.val();
        self.counts.write_data.next = self.sum.val();
        self.counts.write_enable.next = self.adding.q.val();
        self.shown.write_address.next = self.place.q.val();
        self.shown.write_data.next = self.sum.val();
        self.shown.write_enable.next = self.adding.q.val();
        self.shown.read_address.next = self.address.val();
        self.value.next = self.shown.read_data.val();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    #[test]
    fn counts_every_event_that_leaves_time() {
        let mut counters = Counters::default();
        counters.connect_all();
        check_all(&counters).unwrap();
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let mut expected = [0u32; 32];
        for step in 0..4000 {
            // At most eight events in sixteen cycles, no counter twice in them.
            let events: u32 = if step % 16 == 0 {
                random.random::<u32>() & random.random::<u32>() & random.random::<u32>()
            } else {
                0
            };
            let events = if events.count_ones() > 8 { 1 } else { events };
            counters.events.next = bits(events as u64);
            (0..32).filter(|b| events >> b & 1 == 1).for_each(|b| expected[b] += 1);
            cycle(&mut counters, |c| &mut c.clock, |_| ());
        }
        counters.events.next = bits(0);
        for (i, &count) in expected.iter().enumerate() {
            counters.address.next = bits(i as u64);
            (0..40).for_each(|_| cycle(&mut counters, |c| &mut c.clock, |_| ()));
            assert_eq!(counters.value.val().to_u64(), count as u64, "counter {i}");
        }
        assert!(expected.iter().sum::<u32>() > 500);
    }
}
