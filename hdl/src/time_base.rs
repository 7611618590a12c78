//! The time base: the stable clock that all leaf clocks follow.
//!
//! It runs on its own clock, detuned from the ports' by 63/64, and broadcasts its time at intervals
//! of 24 or 25 cycles by a random bit. Both keep a leaf's sampling of the broadcast from standing
//! still against its own clock, which would turn the quantisation of up to 8 ns into a lasting error;
//! so a plain toggle synchroniser is enough in every port.

use crate::prelude::*;

/// Frequency of the time clock in Hz: 125 MHz · 63/64.
pub const TIME_CLOCK_HZ: f64 = 125e6 * 63.0 / 64.0;
/// Nanoseconds a cycle of the time clock at its nominal frequency, 8.32 fixed point.
pub const TIME_INCREMENT: u64 = (8 << 32) * 64 / 63;
/// What a broadcast is ahead of the time at which its toggle changes, in half nanoseconds.
///
/// 12 ns is what a leaf needs on the average to see the toggle: half a cycle until its first flop, a
/// cycle to the second. The half nanosecond turns a leaf's cut to whole nanoseconds into rounding.
pub const BROADCAST_LEAD_HALVES: u64 = 25;

/// Bits of the fraction of a nanosecond.
pub const FRACTION_BITS: usize = 32;

logic_block! {
    /// Keeps the time and broadcasts it.
    ///
    /// `set_toggle` and `enable` come from the core clock through synchronisers; `set_time` must be stable from
    /// the cycle in which `set_toggle` changes until three time clocks later, and `set_toggle` must change only while
    /// `enable` is clear. Everything that is broadcast changes in the cycle in which `broadcast_toggle` does, and
    /// is stable for at least 23 cycles after it.
    pub struct TimeBase {
        /// Time clock, 123.046875 MHz.
        pub clock: Signal<In, Clock>,
        /// The time runs and is broadcast.
        pub enable: Signal<In, bool>,
        /// Each change takes over `set_time` and announces the step by a new `broadcast_epoch`.
        pub set_toggle: Signal<In, bool>,
        /// Time to set, ns since the Unix epoch.
        pub set_time: Signal<In, Bits<64>>,
        /// Increment a cycle, 8.32 ns; nominally [`TIME_INCREMENT`]. Of this clock domain.
        pub rate: Signal<In, Bits<40>>,
        /// Changes with each broadcast.
        pub broadcast_toggle: Signal<Out, bool>,
        /// Broadcast: time in 64.32 ns, [`BROADCAST_LEAD_HALVES`] ahead.
        pub broadcast_time: Signal<Out, Bits<96>>,
        /// Broadcast: increment of this clock, 8.32 ns.
        pub broadcast_increment: Signal<Out, Bits<40>>,
        /// Broadcast: changes when the time was set.
        pub broadcast_epoch: Signal<Out, Bits<2>>,
        /// Time now, ns, in the time clock's domain.
        pub now_ns: Signal<Out, Bits<64>>,
        enable_sync: Dff<Bits<3>>,
        set_sync: Dff<Bits<3>>,
        clock_time: Dff<Bits<96>>,
        count: Dff<Bits<5>>,
        random: Dff<Bits<16>>,
        sent_toggle: Dff<bool>,
        sent_time: Dff<Bits<96>>,
        sent_increment: Dff<Bits<40>>,
        set_epoch: Dff<Bits<2>>,
        sent_epoch: Dff<Bits<2>>,
        lead: Constant<Bits<96>>,
        feedback: Signal<Local, bool>,
    }
}

impl Default for TimeBase {
    fn default() -> Self {
        // The broadcast is registered, so it is one cycle late against the time that it is made from.
        let lead = (BROADCAST_LEAD_HALVES << (FRACTION_BITS - 1)) + TIME_INCREMENT;
        Self {
            clock: Default::default(),
            enable: Default::default(),
            set_toggle: Default::default(),
            set_time: Default::default(),
            rate: Default::default(),
            broadcast_toggle: Default::default(),
            broadcast_time: Default::default(),
            broadcast_increment: Default::default(),
            broadcast_epoch: Default::default(),
            now_ns: Default::default(),
            enable_sync: Default::default(),
            set_sync: Default::default(),
            clock_time: Default::default(),
            count: Default::default(),
            random: Dff::new(bits(1)),
            sent_toggle: Default::default(),
            sent_time: Default::default(),
            sent_increment: Dff::new(bits(TIME_INCREMENT)),
            set_epoch: Default::default(),
            sent_epoch: Default::default(),
            lead: Constant::new(bits(lead)),
            feedback: Default::default(),
            settled: Default::default(),
        }
    }
}

impl Logic for TimeBase {
    #[hdl_gen]
    fn update(&mut self) {
        dff_setup!(
            self,
            clock,
            enable_sync,
            set_sync,
            clock_time,
            count,
            random,
            sent_toggle,
            sent_time,
            sent_increment,
            set_epoch,
            sent_epoch
        );
        self.enable_sync.d.next =
            (self.enable_sync.q.val() << 1) | bit_cast::<3, 1>(self.enable.val().into());
        self.set_sync.d.next = (self.set_sync.q.val() << 1) | bit_cast::<3, 1>(self.set_toggle.val().into());
        self.feedback.next = self.random.q.val().get_bit(0)
            ^ self.random.q.val().get_bit(2)
            ^ self.random.q.val().get_bit(3)
            ^ self.random.q.val().get_bit(5);
        if self.enable_sync.q.val().get_bit(2) {
            self.clock_time.d.next = self.clock_time.q.val() + bit_cast::<96, 40>(self.rate.val());
            self.count.d.next = self.count.q.val() - 1;
            if self.count.q.val() == 0 {
                self.count.d.next = bits::<5>(23);
                if self.random.q.val().get_bit(0) {
                    self.count.d.next = bits::<5>(24);
                }
                self.random.d.next =
                    (self.random.q.val() >> 1) | (bit_cast::<16, 1>(self.feedback.val().into()) << 15);
                self.sent_toggle.d.next = !self.sent_toggle.q.val();
                self.sent_time.d.next = self.clock_time.q.val() + self.lead.val();
                self.sent_increment.d.next = self.rate.val();
                self.sent_epoch.d.next = self.set_epoch.q.val();
            }
        }
        // One stage earlier than `enable`, so that a set just before the enabling is never late.
        if self.set_sync.q.val().get_bit(1) != self.set_sync.q.val().get_bit(2) {
            self.clock_time.d.next = bit_cast::<96, 64>(self.set_time.val()) << 32;
            self.set_epoch.d.next = self.set_epoch.q.val() + 1;
        }
        self.broadcast_toggle.next = self.sent_toggle.q.val();
        self.broadcast_time.next = self.sent_time.q.val();
        self.broadcast_increment.next = self.sent_increment.q.val();
        self.broadcast_epoch.next = self.sent_epoch.q.val();
        self.now_ns.next = self.clock_time.q.val().get_bits::<64>(32);
    }
}
