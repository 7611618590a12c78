//! The error bound of a stamp: the leaf clock's own, and the way from its sample to the arbiter's grant.

use crate::prelude::*;
use layout::entry::ErrorBound;

/// Core cycles from the sample to the grant: sample, choose, compare, grant.
pub const CROSSING_CYCLES: u64 = 4;
/// The same in sixteenths of a nanosecond, 8 ns a cycle.
const CROSSING: u64 = CROSSING_CYCLES * 8 * 16;

logic_block! {
    /// Combinational. Both are `layout::entry::ErrorBound`s; the sum is rounded up.
    #[derive(Default)]
    pub struct CrossingBound {
        /// Of the leaf's time.
        pub bound: Signal<In, Bits<16>>,
        /// Of a stamp taken from it.
        pub with_crossing: Signal<Out, Bits<16>>,
        mantissa: Signal<Local, Bits<12>>,
        halved: Signal<Local, Bits<12>>,
        exponent: Signal<Local, Bits<5>>,
        exponent_plus: Signal<Local, Bits<5>>,
        // An `ErrorBound` counts sixteenths without an exponent, and eighths or more with one.
        crossing: Fixed<12, CROSSING>,
        crossing_scaled: Fixed<12, { CROSSING / 2 }>,
        unbounded: Fixed<16, { ErrorBound::UNBOUNDED.0 as u64 }>,
    }
}

impl Logic for CrossingBound {
    #[hdl_gen]
    fn update(&mut self) {
        self.exponent.next = self.bound.val().get_bits::<5>(11);
        self.exponent_plus.next = self.exponent.val() + 1;
        self.mantissa.next =
            bit_cast::<12, 11>(self.bound.val().get_bits::<11>(0)) + self.crossing_scaled.val();
        if self.exponent.val() == 0 {
            self.mantissa.next = bit_cast::<12, 11>(self.bound.val().get_bits::<11>(0)) + self.crossing.val();
        }
        self.halved.next = (self.mantissa.val() >> 1) + 1;
        self.with_crossing.next =
            bit_cast::<16, 12>(self.mantissa.val()) | (bit_cast::<16, 5>(self.exponent.val()) << 11);
        if self.mantissa.val().get_bit(11) {
            self.with_crossing.next =
                bit_cast::<16, 12>(self.halved.val()) | (bit_cast::<16, 5>(self.exponent_plus.val()) << 11);
        }
        // With the two largest exponents the sum might not fit.
        if self.bound.val().get_bits::<4>(12) == 15 {
            self.with_crossing.next = self.unbounded.val();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_never_below_the_true_one_and_hardly_above() {
        let mut block = CrossingBound::default();
        block.connect_all();
        check_all(&block).unwrap();
        for raw in 0..=u16::MAX {
            block.bound.next = bits(raw as u64);
            settle(&mut block);
            let sum = ErrorBound(block.with_crossing.val().to_u64() as u16).nanoseconds();
            match (ErrorBound(raw).nanoseconds(), sum) {
                (Some(leaf), Some(sum)) => {
                    let crossing = (CROSSING_CYCLES * 8) as f64;
                    assert!(sum >= leaf + crossing, "{raw:#x}: {leaf} and {crossing} make {sum}");
                    // With an exponent the crossing is counted at its scale; that is close only where the
                    // mantissa is, as every bound made by `from_sixteenths` has it.
                    let close = raw >> 11 == 0 || raw & 0x400 != 0;
                    assert!(
                        !close || sum <= (leaf + crossing) * 1.51 + 0.2,
                        "{raw:#x}: {leaf} and {crossing} make {sum}"
                    );
                }
                (None, Some(sum)) => panic!("{raw:#x}: no bound became {sum}"),
                (Some(leaf), None) => {
                    assert!(leaf > 1e9 || raw & 0x400 == 0, "{raw:#x}: {leaf} became no bound")
                }
                (None, None) => {}
            }
        }
    }
}
