//! Which port a MAC address was last seen on.

use crate::prelude::*;

logic_block! {
    /// 32 addresses, the oldest entry replaced first; `P` ports. A look-up takes at most 35 cycles.
    pub struct MacTable<const P: usize> {
        /// Clock.
        pub clock: Signal<In, Clock>,
        /// A port wants an address learned, until `learned`.
        pub learn: [Signal<In, bool>; P],
        /// The address.
        pub learn_mac: [Signal<In, Bits<48>>; P],
        /// Strobe.
        pub learned: [Signal<Out, bool>; P],
        /// An address is to be looked up, until `found` or `missed`.
        pub look_up: Signal<In, bool>,
        /// The address.
        pub look_up_mac: Signal<In, Bits<48>>,
        /// It is on `found_port` (strobe).
        pub found: Signal<Out, bool>,
        /// The port.
        pub found_port: Signal<Out, Bits<3>>,
        /// It isn't in the table (strobe).
        pub missed: Signal<Out, bool>,
        /// The table has changed: what was looked up before may not hold (strobe).
        pub changed: Signal<Out, bool>,
        // Bits 47:0 address, 50:48 port, 51 valid.
        addresses: Ram<52, 5>,
        // Place of the scan: 0 idle; entries are read at 1–32 and compared one later.
        scan: Dff<Bits<6>>,
        // The look-up is for learning.
        learning: Dff<bool>,
        learner: Dff<Bits<3>>,
        wanted: Dff<Bits<48>>,
        victim: Dff<Bits<5>>,
        scan_next: Signal<Local, Bits<6>>,
        read_place: Signal<Local, Bits<6>>,
        hit_place: Signal<Local, Bits<6>>,
        victim_next: Signal<Local, Bits<5>>,
        entry: Signal<Local, Bits<52>>,
        hit: Signal<Local, bool>,
        done: Signal<Local, bool>,
        asked: Signal<Local, bool>,
        asker: Signal<Local, Bits<3>>,
        asker_mac: Signal<Local, Bits<48>>,
    }
}

block_default! {
    MacTable<P> {
        clock, look_up, look_up_mac, found, found_port, missed, changed, addresses, scan, learning, learner, wanted,
        victim, scan_next, read_place, hit_place, victim_next, entry, hit, done, asked, asker, asker_mac,
    }
    arrays { learn, learn_mac, learned }
}

impl<const P: usize> Logic for MacTable<P> {
    #[hdl_gen]
    fn update(&mut self) {
        self.addresses.read_clock.next = self.clock.val();
        self.addresses.write_clock.next = self.clock.val();
        dff_setup!(self, clock, scan, learning, learner, wanted, victim);
        self.scan_next.next = self.scan.q.val() + 1;
        self.read_place.next = self.scan.q.val() - 1;
        self.hit_place.next = self.scan.q.val() - 2;
        self.victim_next.next = self.victim.q.val() + 1;
        self.addresses.read_address.next = self.read_place.val().get_bits::<5>(0);
        self.entry.next = self.addresses.read_data.val();
        self.hit.next = (self.scan.q.val() > 1)
            & self.entry.val().get_bit(51)
            & (self.entry.val().get_bits::<48>(0) == self.wanted.q.val());
        self.asked.next = false;
        self.asker.next = bits::<3>(0);
        self.asker_mac.next = bits::<48>(0);
        for i in 0..P {
            self.learned[i].next = false;
            if self.learn[i].val() {
                self.asked.next = true;
                self.asker.next = i.to_bits::<3>();
                self.asker_mac.next = self.learn_mac[i].val();
            }
        }
        self.found.next = false;
        self.missed.next = false;
        self.changed.next = false;
        self.done.next = false;
        self.addresses.write_enable.next = false;
        self.addresses.write_address.next = self.victim.q.val();
        self.addresses.write_data.next = bit_cast::<52, 48>(self.wanted.q.val())
            | (bit_cast::<52, 3>(self.learner.q.val()) << 48)
            | (bits::<52>(1) << 51);
        if self.scan.q.val() == 0 {
            if self.look_up.val() {
                self.scan.d.next = bits::<6>(1);
                self.learning.d.next = false;
                self.wanted.d.next = self.look_up_mac.val();
            } else if self.asked.val() {
                self.scan.d.next = bits::<6>(1);
                self.learning.d.next = true;
                self.learner.d.next = self.asker.val();
                self.wanted.d.next = self.asker_mac.val();
            }
        } else {
            self.scan.d.next = self.scan_next.val();
            if self.hit.val() | (self.scan.q.val() == 33) {
                self.done.next = true;
                // A cycle of rest, in which the one that asked takes its request back.
                self.scan.d.next = bits::<6>(63);
            }
            if self.scan.q.val() == 63 {
                self.scan.d.next = bits::<6>(0);
                self.done.next = false;
            }
        }
        if self.done.val() {
            if self.learning.q.val() {
                self.addresses.write_enable.next = true;
                self.changed.next = true;
                if self.hit.val() {
                    self.addresses.write_address.next = self.hit_place.val().get_bits::<5>(0);
                } else {
                    self.victim.d.next = self.victim_next.val();
                }
                for i in 0..P {
                    if self.learner.q.val() == i.to_bits::<3>() {
                        self.learned[i].next = true;
                    }
                }
            } else {
                self.found.next = self.hit.val();
                self.missed.next = !self.hit.val();
            }
        }
        self.found_port.next = self.entry.val().get_bits::<3>(48);
    }
}
