//! The arbiter of the uplink: gives the uplink to one frame at a time, and stamp and number to every
//! record, by a hybrid logical clock: the port's leaf time, or the last stamp + 1 where that isn't
//! later (DESIGN §3.2).
//!
//! A grant takes three cycles: choose, compare, grant. A request that is gone by then costs nothing.

use crate::prelude::*;

logic_block! {
    /// `P` ports.
    pub struct Arbiter<const P: usize> {
        /// Clock.
        pub clock: Signal<In, Clock>,
        /// A write that may go.
        pub write_request: [Signal<In, bool>; P],
        /// A frame that passes unjournaled.
        pub pass_request: [Signal<In, bool>; P],
        /// A record that needs a stamp only.
        pub stamp_request: [Signal<In, bool>; P],
        /// With `stamp_request`: it is an entry, and gets a number.
        pub stamp_entry: [Signal<In, bool>; P],
        /// The port's leaf time, ns.
        pub leaf_time: [Signal<In, Bits<64>>; P],
        /// The last word of the frame that has the uplink was taken (strobe).
        pub frame_done: Signal<In, bool>,
        /// Strobes.
        pub write_grant: [Signal<Out, bool>; P],
        /// Strobes.
        pub pass_grant: [Signal<Out, bool>; P],
        /// Strobes.
        pub stamp_grant: [Signal<Out, bool>; P],
        /// The stamp granted, ns.
        pub stamp: Signal<Out, Bits<64>>,
        /// It is the last + 1.
        pub logical: Signal<Out, bool>,
        /// The number granted; with a grant of a stamp only, the last one.
        pub number: Signal<Out, Bits<64>>,
        /// The port that has the uplink.
        pub owner: Signal<Out, Bits<3>>,
        /// The uplink is taken.
        pub busy: Signal<Out, bool>,
        /// Stamps from now on are above this.
        pub stamp_floor: Signal<In, Bits<64>>,
        /// Strobe.
        pub stamp_floor_set: Signal<In, bool>,
        /// Numbers from now on are above this.
        pub number_floor: Signal<In, Bits<64>>,
        /// Strobe.
        pub number_floor_set: Signal<In, bool>,
        /// The last stamp given.
        pub last_stamp: Signal<Out, Bits<64>>,
        /// The last number given.
        pub last_number: Signal<Out, Bits<64>>,
        // 0 choose, 1 compare, 2 grant.
        phase: Dff<Bits<2>>,
        // 0 stamp, 1 write, 2 pass.
        chosen_class: Dff<Bits<2>>,
        chosen: Dff<Bits<3>>,
        candidate: Dff<Bits<64>>,
        next_is_logical: Dff<bool>,
        last: Dff<Bits<64>>,
        last_given: Dff<Bits<64>>,
        taken: Dff<bool>,
        holder: Dff<Bits<3>>,
        // The class that went last, so that reads and writes of one port take turns.
        pass_last: Dff<bool>,
        found: Signal<Local, bool>,
        pick: Signal<Local, Bits<3>>,
        pick_class: Signal<Local, Bits<2>>,
        pick_time: Signal<Local, Bits<64>>,
        last_plus: Signal<Local, Bits<64>>,
        number_plus: Signal<Local, Bits<64>>,
        still: Signal<Local, bool>,
        numbered: Signal<Local, bool>,
    }
}

block_default! {
    Arbiter<P> {
        clock, frame_done, stamp, logical, number, owner, busy, stamp_floor, stamp_floor_set, number_floor,
        number_floor_set, last_stamp, last_number, phase, chosen_class, chosen, candidate, next_is_logical, last,
        last_given, taken, holder, pass_last, found, pick, pick_class, pick_time, last_plus, number_plus,
        still, numbered,
    }
    arrays { write_request, pass_request, stamp_request, stamp_entry, leaf_time, write_grant, pass_grant, stamp_grant }
}

impl<const P: usize> Logic for Arbiter<P> {
    #[hdl_gen]
    fn update(&mut self) {
        dff_setup!(
            self,
            clock,
            phase,
            chosen_class,
            chosen,
            candidate,
            next_is_logical,
            last,
            last_given,
            taken,
            holder,
            pass_last
        );
        self.last_plus.next = self.last.q.val() + 1;
        self.number_plus.next = self.last_given.q.val() + 1;
        self.found.next = false;
        self.pick.next = bits::<3>(0);
        self.pick_class.next = bits::<2>(0);
        self.pick_time.next = bits::<64>(0);
        // Later assignments win: first the ports up to the last chosen, then those after it.
        for i in 0..P {
            if !self.taken.q.val() & self.write_request[i].val() & (i.to_bits::<3>() <= self.chosen.q.val()) {
                self.found.next = true;
                self.pick.next = i.to_bits::<3>();
                self.pick_class.next = bits::<2>(1);
            }
        }
        for i in 0..P {
            if !self.taken.q.val() & self.write_request[i].val() & (i.to_bits::<3>() > self.chosen.q.val()) {
                self.found.next = true;
                self.pick.next = i.to_bits::<3>();
                self.pick_class.next = bits::<2>(1);
            }
        }
        if !self.found.val() | !self.pass_last.q.val() {
            for i in 0..P {
                if !self.taken.q.val()
                    & self.pass_request[i].val()
                    & (i.to_bits::<3>() <= self.chosen.q.val())
                {
                    self.found.next = true;
                    self.pick.next = i.to_bits::<3>();
                    self.pick_class.next = bits::<2>(2);
                }
            }
            for i in 0..P {
                if !self.taken.q.val() & self.pass_request[i].val() & (i.to_bits::<3>() > self.chosen.q.val())
                {
                    self.found.next = true;
                    self.pick.next = i.to_bits::<3>();
                    self.pick_class.next = bits::<2>(2);
                }
            }
        }
        // A record that needs only a stamp doesn't wait for the uplink.
        for i in 0..P {
            if self.stamp_request[i].val() & (i.to_bits::<3>() <= self.chosen.q.val()) {
                self.found.next = true;
                self.pick.next = i.to_bits::<3>();
                self.pick_class.next = bits::<2>(0);
            }
        }
        for i in 0..P {
            if self.stamp_request[i].val() & (i.to_bits::<3>() > self.chosen.q.val()) {
                self.found.next = true;
                self.pick.next = i.to_bits::<3>();
                self.pick_class.next = bits::<2>(0);
            }
        }
        for i in 0..P {
            if self.pick.val() == i.to_bits::<3>() {
                self.pick_time.next = self.leaf_time[i].val();
            }
        }

        self.still.next = false;
        self.numbered.next = self.chosen_class.q.val() == 1;
        for i in 0..P {
            self.write_grant[i].next = false;
            self.pass_grant[i].next = false;
            self.stamp_grant[i].next = false;
        }
        if self.phase.q.val() == 0 {
            if self.found.val() {
                self.chosen.d.next = self.pick.val();
                self.chosen_class.d.next = self.pick_class.val();
                self.candidate.d.next = self.pick_time.val();
                self.phase.d.next = bits::<2>(1);
            }
        } else if self.phase.q.val() == 1 {
            self.next_is_logical.d.next = false;
            if self.candidate.q.val() <= self.last.q.val() {
                self.candidate.d.next = self.last_plus.val();
                self.next_is_logical.d.next = true;
            }
            self.phase.d.next = bits::<2>(2);
        } else {
            self.phase.d.next = bits::<2>(0);
            for i in 0..P {
                if self.chosen.q.val() == i.to_bits::<3>() {
                    if self.chosen_class.q.val() == 0 {
                        self.stamp_grant[i].next = self.stamp_request[i].val();
                        self.still.next = self.stamp_request[i].val();
                        self.numbered.next = self.stamp_entry[i].val();
                    }
                    if self.chosen_class.q.val() == 1 {
                        self.write_grant[i].next = self.write_request[i].val();
                        self.still.next = self.write_request[i].val();
                    }
                    if self.chosen_class.q.val() == 2 {
                        self.pass_grant[i].next = self.pass_request[i].val();
                        self.still.next = self.pass_request[i].val();
                    }
                }
            }
            if self.still.val() {
                if self.chosen_class.q.val() != 2 {
                    self.last.d.next = self.candidate.q.val();
                }
                if self.numbered.val() {
                    self.last_given.d.next = self.number_plus.val();
                }
                if self.chosen_class.q.val() != 0 {
                    self.taken.d.next = true;
                    self.holder.d.next = self.chosen.q.val();
                    self.pass_last.d.next = self.chosen_class.q.val() == 2;
                }
            }
        }
        if self.frame_done.val() {
            self.taken.d.next = false;
        }
        // The host sets the floors before it opens writes; a comparison under way starts again.
        if self.stamp_floor_set.val() & (self.stamp_floor.val() > self.last.q.val()) {
            self.last.d.next = self.stamp_floor.val();
        }
        if self.number_floor_set.val() & (self.number_floor.val() > self.last_given.q.val()) {
            self.last_given.d.next = self.number_floor.val();
        }
        if self.stamp_floor_set.val() | self.number_floor_set.val() {
            self.phase.d.next = bits::<2>(0);
            for i in 0..P {
                self.write_grant[i].next = false;
                self.pass_grant[i].next = false;
                self.stamp_grant[i].next = false;
            }
            self.taken.d.next = self.taken.q.val() & !self.frame_done.val();
        }
        self.stamp.next = self.candidate.q.val();
        self.logical.next = self.next_is_logical.q.val();
        self.number.next = self.last_given.q.val();
        if self.numbered.val() {
            self.number.next = self.number_plus.val();
        }
        self.owner.next = self.holder.q.val();
        self.busy.next = self.taken.q.val();
        self.last_stamp.next = self.last.q.val();
        self.last_number.next = self.last_given.q.val();
    }
}
