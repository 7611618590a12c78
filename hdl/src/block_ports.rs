//! A block's ports by name and number: for recorders and for other simulators of the same block.

use rust_hdl::prelude::Synth;
use std::cell::Cell;

/// Which way a port goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Into the block.
    In,
    /// Out of the block.
    Out,
}

/// Looks at ports.
pub trait PortVisitor {
    /// A port, or one port of an array, with its width and value. An input's value is what has been set,
    /// whether the block has looked at it or not.
    fn port(&mut self, name: &str, index: Option<usize>, direction: Direction, bits: usize, value: u128);
}

/// A block that shows its ports, always in the same order. `logic_block!` implements it.
pub trait Ports {
    /// Shows every port to `visitor`.
    fn visit_ports(&self, visitor: &mut dyn PortVisitor);
}

thread_local! {
    static WANTED: Cell<bool> = const { Cell::new(false) };
    static NUMBER: Cell<Option<u128>> = const { Cell::new(None) };
}

/// The bits of any value of a signal, up to 128.
///
/// RustHDL shows a value of unknown type only as a Verilog literal, which takes microseconds to make
/// and more to read. So our own types leave their number here instead while it is asked for.
pub fn number_of<T: Synth>(value: T) -> u128 {
    assert!(T::BITS <= 128, "signals have up to 128 bits, not {}", T::BITS);
    WANTED.set(true);
    let literal = value.verilog();
    WANTED.set(false);
    NUMBER.take().unwrap_or_else(|| literal.as_usize() as u128)
}

/// Takes `number` if a caller of [`number_of`] waits for it.
pub(crate) fn leave_number(number: u128) -> bool {
    let wanted = WANTED.get();
    if wanted {
        NUMBER.set(Some(number));
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prelude::*;

    #[test]
    fn every_kind_of_value_has_its_number() {
        assert_eq!(number_of(true), 1);
        assert_eq!(number_of(Clock::from(true)), 1);
        assert_eq!(number_of(Bits::<128>::wrap(u128::MAX)), u128::MAX);
        assert_eq!(number_of(signed::<12>(-2)), 0xFFE);
        assert_eq!(number_of(bits::<8>(0)), 0);
        assert_eq!(bits::<8>(5).verilog().to_string(), "8'h5");
    }
}
