//! The leaf clock of a port, and its time as the core side takes it.
//!
//! This is the place of the crossing from the port's clock domain to the core's: while the engine asks
//! for a stamp, the leaf's time is sampled every cycle, otherwise it stands still, and the registers
//! show it once a tick.

use crate::crossing_bound::CrossingBound;
use crate::leaf_clock::LeafClock;
use crate::prelude::*;

logic_block! {
    /// See the module.
    #[derive(Default)]
    pub struct PortClock {
        /// The port's clock.
        pub clock: Signal<In, Clock>,
        /// Broadcast of the time base.
        pub broadcast_toggle: Signal<In, bool>,
        /// Broadcast of the time base.
        pub broadcast_time: Signal<In, Bits<96>>,
        /// Broadcast of the time base.
        pub broadcast_increment: Signal<In, Bits<40>>,
        /// Broadcast of the time base.
        pub broadcast_epoch: Signal<In, Bits<2>>,
        /// The leaf's increment before it has learned anything.
        pub nominal: Signal<In, Bits<40>>,
        /// Sample now.
        pub sample: Signal<In, bool>,
        /// Time at the last sample, ns.
        pub sampled_time: Signal<Out, Bits<64>>,
        /// With it: locked, holdover, and from bit 2 up the error bound, crossing included.
        pub sampled_state: Signal<Out, Bits<18>>,
        /// Once a tick.
        pub tick: Signal<In, bool>,
        /// Time at the last tick, ns.
        pub shown_time: Signal<Out, Bits<64>>,
        /// Phase at the last tick, 2^-16 ns.
        pub shown_phase: Signal<Out, Bits<32>>,
        /// Locked, at the last tick.
        pub shown_locked: Signal<Out, bool>,
        /// Holdover, at the last tick.
        pub shown_holdover: Signal<Out, bool>,
        leaf: LeafClock,
        crossing: CrossingBound,
        sampled: Dff<Bits<64>>,
        state: Dff<Bits<18>>,
        shown: Dff<Bits<64>>,
        phase: Dff<Bits<32>>,
        flags: Dff<Bits<2>>,
        state_now: Signal<Local, Bits<18>>,
    }
}

impl Logic for PortClock {
    #[hdl_gen]
    fn update(&mut self) {
        clock!(self, clock, leaf);
        dff_setup!(self, clock, sampled, state, shown, phase, flags);
        self.leaf.broadcast_toggle.next = self.broadcast_toggle.val();
        self.leaf.broadcast_time.next = self.broadcast_time.val();
        self.leaf.broadcast_increment.next = self.broadcast_increment.val();
        self.leaf.broadcast_epoch.next = self.broadcast_epoch.val();
        self.leaf.nominal.next = self.nominal.val();
        self.crossing.bound.next = self.leaf.error_bound.val();
        self.state_now.next = bit_cast::<18, 1>(self.leaf.locked.val().into())
            | (bit_cast::<18, 1>(self.leaf.holdover.val().into()) << 1)
            | (bit_cast::<18, 16>(self.crossing.with_crossing.val()) << 2);
        if self.sample.val() {
            self.sampled.d.next = self.leaf.time_ns.val();
            self.state.d.next = self.state_now.val();
        }
        if self.tick.val() {
            self.shown.d.next = self.leaf.time_ns.val();
            self.phase.d.next = self.leaf.phase.val();
            self.flags.d.next = self.state_now.val().get_bits::<2>(0);
        }
        self.sampled_time.next = self.sampled.q.val();
        self.sampled_state.next = self.state.q.val();
        self.shown_time.next = self.shown.q.val();
        self.shown_phase.next = self.phase.q.val();
        self.shown_locked.next = self.flags.q.val().get_bit(0);
        self.shown_holdover.next = self.flags.q.val().get_bit(1);
    }
}

impl PortClock {
    /// The leaf's time in units of 2^-32 ns, while it is locked. For tests and displays.
    pub fn exact(&self) -> Option<u128> {
        self.leaf.locked.val().then(|| self.leaf.exact())
    }
}
