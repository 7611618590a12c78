//! A constant whose value stands in its type, so that a block keeps its `Default`.

use crate::block::Part;
use crate::value::Bits;
use rust_hdl::prelude::{
    Atom, AtomKind, Block, Logic, PinConstraint, Probe, Synth, TypeDescriptor, VCDValue, VerilogLiteral,
};

/// `VALUE` in `N` bits: a `localparam` in Verilog. `N` bits must hold it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fixed<const N: usize, const VALUE: u64>;

impl<const N: usize, const VALUE: u64> Fixed<N, VALUE> {
    const BITS: Bits<N> = {
        assert!(N >= 64 || VALUE >> N == 0, "the constant doesn't fit its width");
        Bits::wrap(VALUE as u128)
    };

    /// The value, for kernels.
    #[inline(always)]
    pub fn val(&self) -> Bits<N> {
        Self::BITS
    }
}

impl<const N: usize, const VALUE: u64> Part for Fixed<N, VALUE> {
    #[inline(always)]
    fn idle(&self) -> bool {
        true
    }
}

impl<const N: usize, const VALUE: u64> Logic for Fixed<N, VALUE> {
    fn update(&mut self) {}
}

impl<const N: usize, const VALUE: u64> Atom for Fixed<N, VALUE> {
    fn bits(&self) -> usize {
        N
    }
    fn connected(&self) -> bool {
        true
    }
    fn changed(&self) -> bool {
        false
    }
    fn kind(&self) -> AtomKind {
        AtomKind::Constant
    }
    fn descriptor(&self) -> TypeDescriptor {
        Bits::<N>::descriptor()
    }
    fn vcd(&self) -> VCDValue {
        Self::BITS.vcd()
    }
    fn id(&self) -> usize {
        // A waveform tells signals apart by their ids; equal constants may share one. Signals count from 1.
        usize::MAX - (VALUE as usize).wrapping_mul(129).wrapping_add(N) % (usize::MAX / 2)
    }
    fn verilog(&self) -> VerilogLiteral {
        Self::BITS.verilog()
    }
    fn constraints(&self) -> Vec<PinConstraint> {
        vec![]
    }
}

impl<const N: usize, const VALUE: u64> Block for Fixed<N, VALUE> {
    fn connect_all(&mut self) {}
    fn update_all(&mut self) {}
    fn has_changed(&self) -> bool {
        false
    }
    fn accept(&self, name: &str, probe: &mut dyn Probe) {
        probe.visit_atom(name, self);
    }
}
