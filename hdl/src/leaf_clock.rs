//! The leaf clock of a port: a digital PLL that follows the time base's broadcast (claims 12, 14, 19).
//!
//! A broadcast is seen when its toggle has come through two flops; what it says is then compared with
//! the leaf's own time, and time and frequency are corrected by a part of the difference (a
//! proportional-integral loop). The parts get smaller in four gears, fast to lock, then quiet.
//! `TimeBase` says why a toggle is enough. The parameters are measured ones: docs/decisions/0020.

use crate::prelude::*;
use crate::time_base::TIME_INCREMENT;

/// Nanoseconds a cycle of a 125 MHz port, 8.32 fixed point.
pub const NOMINAL_INCREMENT: u64 = 8 << 32;
/// Centre of the frequency correction, which is stored without a sign: 2^26 of 2^-32 ns a cycle.
const CENTRE: u64 = 1 << 26;
/// Centre of a phase error, which is stored without a sign: 2^27 of 2^-24 ns.
const PHASE_CENTRE: u64 = 1 << 27;

/// The increment of a clock that is nominally 125 MHz and in truth off by `ppm`, as `nominal` of
/// [`LeafClock`] when simulation lets all blocks share one clock.
///
/// A clock that is too fast by 100 ppm and believes in 8 ns a cycle is, seen from its own cycles, the
/// same as an exact clock that believes in 8 ns · (1 + 100 ppm).
pub fn increment_off_by(ppm: f64) -> u64 {
    assert!(ppm.abs() <= 500.0, "the leaf clock takes up to 500 ppm, not {ppm}");
    (NOMINAL_INCREMENT as f64 * (1.0 + ppm / 1e6)).round() as u64
}

logic_block! {
    /// Follows the time base.
    ///
    /// `locked`: |filtered phase error| was below 0.5 ns for 256 broadcasts, and has not reached 2 ns
    /// since. `holdover`: locked, but no broadcasts for 128 cycles, or not yet settled after that: the
    /// frequency is frozen at its mean and `error_bound` grows. While locked, `time_ns` never runs
    /// backwards.
    pub struct LeafClock {
        /// The port's clock.
        pub clock: Signal<In, Clock>,
        /// Broadcast of [`crate::time_base::TimeBase`].
        pub broadcast_toggle: Signal<In, bool>,
        /// Broadcast.
        pub broadcast_time: Signal<In, Bits<96>>,
        /// Broadcast.
        pub broadcast_increment: Signal<In, Bits<40>>,
        /// Broadcast.
        pub broadcast_epoch: Signal<In, Bits<2>>,
        /// Believed period of `clock`, 8.32 ns; constant.
        pub nominal: Signal<In, Bits<40>>,
        /// Time, ns since the Unix epoch, rounded.
        pub time_ns: Signal<Out, Bits<64>>,
        /// The time is good to `error_bound`.
        pub locked: Signal<Out, bool>,
        /// Locked without broadcasts.
        pub holdover: Signal<Out, bool>,
        /// Bound on the error of `time_ns` against the time base: a `layout::entry::ErrorBound`.
        pub error_bound: Signal<Out, Bits<16>>,
        /// Filtered phase error, 2^-16 ns, two's complement; positive: the leaf is late.
        pub phase: Signal<Out, Bits<32>>,
        /// For one cycle: the time has just been taken over in a jump.
        pub jammed: Signal<Out, bool>,
        sync: Dff<Bits<3>>,
        stage: Dff<Bits<2>>,
        now: Dff<Bits<96>>,
        addend: Dff<Bits<96>>,
        difference: Dff<Bits<96>>,
        error: Dff<Bits<28>>,
        far: Dff<bool>,
        far_count: Dff<Bits<2>>,
        correction: Dff<Bits<27>>,
        mean_correction: Dff<Bits<35>>,
        base_increment: Dff<Bits<40>>,
        epoch: Dff<Bits<2>>,
        mean_error: Dff<Bits<34>>,
        gear: Dff<Bits<2>>,
        updates: Dff<Bits<13>>,
        good: Dff<Bits<8>>,
        is_locked: Dff<bool>,
        is_holdover: Dff<bool>,
        quiet: Dff<Bits<10>>,
        deaf: Dff<Bits<30>>,
        bound: Dff<Bits<16>>,
        jam_flag: Dff<bool>,
        detect: Signal<Local, bool>,
        jam: Signal<Local, bool>,
        announced: Signal<Local, bool>,
        near: Signal<Local, bool>,
        increment: Signal<Local, Bits<40>>,
        corrected: Signal<Local, Bits<40>>,
        high: Signal<Local, Bits<61>>,
        shifted: Signal<Local, Bits<40>>,
        phase_step: Signal<Local, Bits<40>>,
        frequency_step: Signal<Local, Bits<40>>,
        slew: Signal<Local, Bits<40>>,
        next_correction: Signal<Local, Bits<40>>,
        next_mean: Signal<Local, Bits<34>>,
        above_half: Signal<Local, Bits<28>>,
        above_two: Signal<Local, Bits<28>>,
        last_update: Signal<Local, Bits<13>>,
        growth: Signal<Local, Bits<30>>,
        unsigned_phase: Signal<Local, Bits<32>>,
    }
}

impl Default for LeafClock {
    fn default() -> Self {
        Self {
            clock: Default::default(),
            broadcast_toggle: Default::default(),
            broadcast_time: Default::default(),
            broadcast_increment: Default::default(),
            broadcast_epoch: Default::default(),
            nominal: Default::default(),
            time_ns: Default::default(),
            locked: Default::default(),
            holdover: Default::default(),
            error_bound: Default::default(),
            phase: Default::default(),
            jammed: Default::default(),
            sync: Default::default(),
            stage: Default::default(),
            now: Default::default(),
            addend: Default::default(),
            difference: Default::default(),
            error: Default::default(),
            far: Default::default(),
            far_count: Default::default(),
            correction: Dff::new(bits(CENTRE)),
            mean_correction: Dff::new(bits(CENTRE << 8)),
            base_increment: Dff::new(bits(TIME_INCREMENT)),
            epoch: Default::default(),
            mean_error: Dff::new(bits(PHASE_CENTRE << 6)),
            gear: Default::default(),
            updates: Default::default(),
            good: Default::default(),
            is_locked: Default::default(),
            is_holdover: Default::default(),
            quiet: Default::default(),
            deaf: Default::default(),
            bound: Dff::new(bits(0xFFFF)),
            jam_flag: Default::default(),
            detect: Default::default(),
            jam: Default::default(),
            announced: Default::default(),
            near: Default::default(),
            increment: Default::default(),
            corrected: Default::default(),
            high: Default::default(),
            shifted: Default::default(),
            phase_step: Default::default(),
            frequency_step: Default::default(),
            slew: Default::default(),
            next_correction: Default::default(),
            next_mean: Default::default(),
            above_half: Default::default(),
            above_two: Default::default(),
            last_update: Default::default(),
            growth: Default::default(),
            unsigned_phase: Default::default(),
            settled: Default::default(),
        }
    }
}

impl LeafClock {
    /// The time in units of 2^-32 ns, half a nanosecond ahead as `time_ns` is rounded from it. For tests.
    pub fn exact(&self) -> u128 {
        self.now.q.val().to_u128()
    }
}

impl Logic for LeafClock {
    #[hdl_gen]
    fn update(&mut self) {
        dff_setup!(
            self,
            clock,
            sync,
            stage,
            now,
            addend,
            difference,
            error,
            far,
            far_count,
            correction,
            mean_correction,
            base_increment,
            epoch,
            mean_error,
            gear,
            updates,
            good,
            is_locked,
            is_holdover,
            quiet,
            deaf,
            bound,
            jam_flag
        );
        // Two flops against metastability, the third to see the change.
        self.sync.d.next = (self.sync.q.val() << 1) | bit_cast::<3, 1>(self.broadcast_toggle.val().into());
        self.detect.next = self.sync.q.val().get_bit(1) != self.sync.q.val().get_bit(2);
        self.stage.d.next = (self.stage.q.val() << 1) | bit_cast::<2, 1>(self.detect.val().into());
        // What is added is prepared a cycle ahead, so that the long adder stands alone.
        self.increment.next =
            (self.nominal.val() + bit_cast::<40, 27>(self.correction.q.val())) - bits::<40>(0x0400_0000);
        self.addend.d.next = bit_cast::<96, 40>(self.increment.val());
        self.now.d.next = self.now.q.val() + self.addend.q.val();
        self.jam_flag.d.next = false;
        // What belongs to a broadcast is evaluated only then; simulation is three times faster so.
        self.jam.next = false;
        self.announced.next = false;
        self.near.next = false;
        self.corrected.next = bits::<40>(0);
        self.high.next = bits::<61>(0);
        self.shifted.next = bits::<40>(0);
        self.phase_step.next = bits::<40>(0);
        self.frequency_step.next = bits::<40>(0);
        self.slew.next = bits::<40>(0);
        self.next_correction.next = bits::<40>(0);
        self.next_mean.next = bits::<34>(0);
        self.above_half.next = bits::<28>(0);
        self.above_two.next = bits::<28>(0);
        self.last_update.next = bits::<13>(0);
        self.growth.next = bits::<30>(0);

        // Broadcast seen: measure. Its words are stable for twenty cycles more.
        if self.detect.val() {
            self.difference.d.next = self.broadcast_time.val() - self.now.q.val();
        }
        // Next cycle: clip to ±8 ns; ±16 ns and more is far.
        if self.stage.q.val().get_bit(0) {
            self.high.next = self.difference.q.val().get_bits::<61>(35);
            self.far.d.next =
                self.high.val().get_bits::<60>(1).any() & !self.high.val().get_bits::<60>(1).all();
            self.error.d.next = self.difference.q.val().get_bits::<28>(8) ^ bits::<28>(0x800_0000);
            if self.high.val().any() & !self.high.val().all() {
                self.error.d.next = bits::<28>(0xFFF_FFFF);
                if self.high.val().get_bit(60) {
                    self.error.d.next = bits::<28>(0);
                }
            }
        }
        // Next cycle: correct. Errors carry their sign as an offset: a right shift of them is then an
        // arithmetic one once the shifted offset is taken off.
        if self.stage.q.val().get_bit(1) {
            self.announced.next = self.broadcast_epoch.val() != self.epoch.q.val();
            self.jam.next = self.announced.val() | (self.far.q.val() & self.far_count.q.val().all());
            self.epoch.d.next = self.broadcast_epoch.val();
            self.base_increment.d.next = self.broadcast_increment.val();
            self.slew.next = self.broadcast_increment.val() - self.base_increment.q.val();
            self.shifted.next = bit_cast::<40, 28>(self.error.q.val()) << 8;
            if self.gear.q.val() == 0 {
                self.phase_step.next = (self.shifted.val() >> 4) - bits::<40>(0x8000_0000u64);
                self.frequency_step.next = (self.shifted.val() >> 15) - bits::<40>(0x10_0000);
                self.last_update.next = bits::<13>(255);
            } else if self.gear.q.val() == 1 {
                self.phase_step.next = (self.shifted.val() >> 6) - bits::<40>(0x2000_0000);
                self.frequency_step.next = (self.shifted.val() >> 18) - bits::<40>(0x2_0000);
                self.last_update.next = bits::<13>(767);
            } else if self.gear.q.val() == 2 {
                self.phase_step.next = (self.shifted.val() >> 8) - bits::<40>(0x800_0000);
                self.frequency_step.next = (self.shifted.val() >> 22) - bits::<40>(0x2000);
                self.last_update.next = bits::<13>(2047);
            } else {
                self.phase_step.next = (self.shifted.val() >> 8) - bits::<40>(0x800_0000);
                self.frequency_step.next = (self.shifted.val() >> 24) - bits::<40>(0x800);
                self.last_update.next = bits::<13>(4096);
            }
            if self.far.q.val() {
                // Not an error to correct little by little: four of them running are a jump.
                self.far_count.d.next = self.far_count.q.val() + 1;
            } else {
                self.far_count.d.next = bits::<2>(0);
                self.corrected.next = self.increment.val() + self.phase_step.val();
                self.addend.d.next = bit_cast::<96, 40>(self.corrected.val());
                self.next_correction.next = (bit_cast::<40, 27>(self.correction.q.val())
                    + self.frequency_step.val())
                    + self.slew.val();
                // Beyond ±1950 ppm it stays as it is.
                if !self.next_correction.val().get_bits::<13>(27).any() {
                    self.correction.d.next = self.next_correction.val().get_bits::<27>(0);
                }
                self.mean_correction.d.next = ((self.mean_correction.q.val()
                    + bit_cast::<35, 27>(self.correction.q.val()))
                    - (self.mean_correction.q.val() >> 8))
                    + (self.slew.val().get_bits::<35>(0) << 8);
            }
            self.next_mean.next = (self.mean_error.q.val() + bit_cast::<34, 28>(self.error.q.val()))
                - (self.mean_error.q.val() >> 6);
            self.mean_error.d.next = self.next_mean.val();
            // Errors are compared from the lower limit up: ±0.5 ns is 2^24 wide, ±2 ns 2^26.
            self.above_half.next = self.next_mean.val().get_bits::<28>(6) - bits::<28>(0x780_0000);
            self.above_two.next = self.next_mean.val().get_bits::<28>(6) - bits::<28>(0x600_0000);
            self.near.next = self.above_half.val() < bits::<28>(0x100_0000);

            if self.updates.q.val() != self.last_update.val() {
                self.updates.d.next = self.updates.q.val() + 1;
            } else if !self.gear.q.val().all() {
                self.gear.d.next = self.gear.q.val() + 1;
                self.updates.d.next = bits::<13>(0);
            }
            self.good.d.next = bits::<8>(0);
            if self.near.val() & self.gear.q.val().any() {
                self.good.d.next = self.good.q.val() + 1;
                if self.good.q.val().all() {
                    self.good.d.next = self.good.q.val();
                    self.is_locked.d.next = true;
                    self.is_holdover.d.next = false;
                }
            }
            // Just out of holdover the error may be larger, inside its bound, without a loss of lock.
            if (self.above_two.val() >= bits::<28>(0x400_0000))
                & self.is_locked.q.val()
                & !self.is_holdover.q.val()
            {
                self.is_locked.d.next = false;
                self.gear.d.next = bits::<2>(0);
                self.updates.d.next = bits::<13>(0);
            }
            if self.jam.val() {
                self.addend.d.next = bit_cast::<96, 40>(self.increment.val()) + self.difference.q.val();
                self.jam_flag.d.next = true;
                self.far_count.d.next = bits::<2>(0);
                self.mean_error.d.next = bits::<34>(0x2_0000_0000u64);
                self.good.d.next = bits::<8>(0);
                self.updates.d.next = bits::<13>(0);
                self.is_locked.d.next = false;
                self.is_holdover.d.next = false;
                // An announced step says nothing against the frequency, if that has settled.
                if self.announced.val() & self.gear.q.val().all() {
                    self.gear.d.next = bits::<2>(1);
                } else {
                    self.gear.d.next = bits::<2>(0);
                }
            }
        }

        if self.detect.val() {
            self.quiet.d.next = bits::<10>(0);
        } else if self.quiet.q.val().all() {
            // Eight microseconds: enough for an error that the filter doesn't know of yet.
            self.good.d.next = bits::<8>(0);
        } else {
            self.quiet.d.next = self.quiet.q.val() + 1;
        }
        if (self.quiet.q.val() == 127) & self.is_locked.q.val() & !self.is_holdover.q.val() {
            self.is_holdover.d.next = true;
            self.deaf.d.next = bits::<30>(128);
            self.correction.d.next = self.mean_correction.q.val().get_bits::<27>(8);
        }
        if self.is_holdover.q.val() {
            self.deaf.d.next = self.deaf.q.val() + 1;
            // Four seconds: what the oscillator does then is not known any more.
            if self.deaf.q.val().get_bit(29) {
                self.is_holdover.d.next = false;
                self.is_locked.d.next = false;
            }
        }
        // Sixteenths of a nanosecond, rounding to a whole one included: 1 ns in the last gear, 2 ns before.
        // In holdover 2^-16, 2^-19 or 2^-21 of the time come on top for the frequency, by how long it had
        // settled, and 2^-22 for the oscillator's drift.
        self.bound.d.next = bits::<16>(0xFFFF);
        if self.is_locked.q.val() {
            self.bound.d.next = bits::<16>(32);
            if self.gear.q.val().all() {
                self.bound.d.next = bits::<16>(16);
            }
            if self.is_holdover.q.val() {
                self.growth.next = ((self.deaf.q.val() >> 9) + (self.deaf.q.val() >> 15)) + 16;
                if self.gear.q.val().all() {
                    self.growth.next = (self.deaf.q.val() >> 12) + (self.deaf.q.val() >> 15);
                    if self.updates.q.val().get_bit(12) {
                        self.growth.next = (self.deaf.q.val() >> 14) + (self.deaf.q.val() >> 15);
                    }
                }
                // A small float, rounded up: exponent 0, 4, 8 or 12 in bits 15:11.
                if !self.growth.val().get_bits::<20>(10).any() {
                    self.bound.d.next = self.growth.val().get_bits::<16>(0) + 18;
                } else if !self.growth.val().get_bits::<16>(14).any() {
                    self.bound.d.next =
                        (bit_cast::<16, 10>(self.growth.val().get_bits::<10>(4)) + 4) | bits::<16>(0x2000);
                } else if !self.growth.val().get_bits::<12>(18).any() {
                    self.bound.d.next =
                        (bit_cast::<16, 10>(self.growth.val().get_bits::<10>(8)) + 4) | bits::<16>(0x4000);
                } else {
                    self.bound.d.next =
                        (bit_cast::<16, 10>(self.growth.val().get_bits::<10>(12)) + 4) | bits::<16>(0x6000);
                }
            }
        }

        self.unsigned_phase.next = bit_cast::<32, 20>(self.mean_error.q.val().get_bits::<20>(14));
        self.phase.next = self.unsigned_phase.val() - bits::<32>(0x8_0000);
        self.time_ns.next = self.now.q.val().get_bits::<64>(32);
        self.locked.next = self.is_locked.q.val();
        self.holdover.next = self.is_holdover.q.val();
        self.error_bound.next = self.bound.q.val();
        self.jammed.next = self.jam_flag.q.val();
    }
}
