//! Native value types for kernels: the same names as RustHDL's own `Bits` and `Signed`, and the same
//! Verilog, but backed by `u128` and `i64`.
//!
//! RustHDL's `Bits<N>` above 32 bits is an array of bools; with these the simulation is ten times
//! faster (docs/performance.md). `#[hdl_gen]` goes by names only, so kernels look the same.

use crate::block_ports::leave_number;
use rust_hdl::prelude as stock;
use rust_hdl::prelude::{Synth, TypeDescriptor, TypeKind, VCDValue, VerilogLiteral};

/// An unsigned value of `N` bits, 1 to 128. Arithmetic wraps.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bits<const N: usize>(u128);

/// A signed value of `N` bits, 1 to 64. Arithmetic wraps.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signed<const N: usize>(i64);

impl<const N: usize> std::fmt::Debug for Bits<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{N}'h{:x}", self.0)
    }
}

impl<const N: usize> std::fmt::Debug for Signed<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{N}'sd{}", self.0)
    }
}

impl<const N: usize> Bits<N> {
    const MASK: u128 = if N == 128 { u128::MAX } else { (1 << N) - 1 };

    /// The value of the low `N` bits of `value`.
    #[inline(always)]
    pub const fn wrap(value: u128) -> Self {
        Bits(value & Self::MASK)
    }
    /// As a number.
    #[inline(always)]
    pub const fn to_u128(self) -> u128 {
        self.0
    }
    /// As a number; the value must fit.
    #[inline(always)]
    pub const fn to_u64(self) -> u64 {
        self.0 as u64
    }
    /// As an index in a kernel.
    #[inline(always)]
    pub const fn index(&self) -> usize {
        self.0 as usize
    }
    /// Bit `index`.
    #[inline(always)]
    pub const fn get_bit(&self, index: usize) -> bool {
        self.0 >> index & 1 == 1
    }
    /// `M` bits from bit `index` up.
    #[inline(always)]
    pub const fn get_bits<const M: usize>(&self, index: usize) -> Bits<M> {
        Bits::<M>::wrap(self.0 >> index)
    }
    /// The same with bit `index` set to `value`.
    #[inline(always)]
    pub const fn replace_bit(&self, index: usize, value: bool) -> Self {
        Bits((self.0 & !(1 << index)) | (value as u128) << index)
    }
    /// Is any bit set?
    #[inline(always)]
    pub const fn any(&self) -> bool {
        self.0 != 0
    }
    /// Are all bits set?
    #[inline(always)]
    pub const fn all(&self) -> bool {
        self.0 == Self::MASK
    }
    /// Parity.
    #[inline(always)]
    pub const fn xor(&self) -> bool {
        self.0.count_ones() & 1 == 1
    }
}

impl<const N: usize> Signed<N> {
    /// The value of the low `N` bits of `value`, sign extended.
    #[inline(always)]
    pub const fn wrap(value: i64) -> Self {
        Signed(value << (64 - N) >> (64 - N))
    }
    /// As a number.
    #[inline(always)]
    pub const fn to_i64(self) -> i64 {
        self.0
    }
    /// Bit `index`.
    #[inline(always)]
    pub const fn get_bit(&self, index: usize) -> bool {
        self.0 >> index & 1 == 1
    }
    /// `M` bits from bit `index` up.
    #[inline(always)]
    pub const fn get_bits<const M: usize>(&self, index: usize) -> Signed<M> {
        Signed::<M>::wrap(self.0 >> index)
    }
}

/// A literal of `N` bits. Panics if it doesn't fit: RustHDL's own truncates silently above 32 bits.
#[inline(always)]
pub fn bits<const N: usize>(value: u64) -> Bits<N> {
    assert!(value as u128 <= Bits::<N>::MASK, "{value:#x} doesn't fit {N} bits");
    Bits(value as u128)
}

/// `value` cut or zero-extended to `M` bits.
#[inline(always)]
pub fn bit_cast<const M: usize, const N: usize>(value: Bits<N>) -> Bits<M> {
    Bits::<M>::wrap(value.0)
}

/// A signed literal.
#[inline(always)]
pub fn signed<const N: usize>(value: i64) -> Signed<N> {
    let wrapped = Signed::<N>::wrap(value);
    assert!(wrapped.0 == value, "{value} doesn't fit {N} signed bits");
    wrapped
}

/// The same bits, taken as signed.
#[inline(always)]
pub fn signed_cast<const N: usize>(value: Bits<N>) -> Signed<N> {
    Signed::<N>::wrap(value.0 as i64)
}

/// `value` cut or sign-extended to `M` bits. Give it a plain signal: in a nested expression the
/// generated Verilog loses the sign extension.
#[inline(always)]
pub fn signed_bit_cast<const M: usize, const N: usize>(value: Signed<N>) -> Signed<M> {
    Signed::<M>::wrap(value.0)
}

/// The same bits, taken as unsigned.
#[inline(always)]
pub fn unsigned_cast<const N: usize>(value: Signed<N>) -> Bits<N> {
    Bits::<N>::wrap(value.0 as u128)
}

/// Loop variables as values.
pub trait ToBits {
    /// The value in `N` bits.
    fn to_bits<const N: usize>(self) -> Bits<N>;
}

impl ToBits for usize {
    #[inline(always)]
    fn to_bits<const N: usize>(self) -> Bits<N> {
        bits(self as u64)
    }
}

impl<const N: usize> From<u64> for Bits<N> {
    #[inline(always)]
    fn from(value: u64) -> Self {
        bits(value)
    }
}

impl From<bool> for Bits<1> {
    #[inline(always)]
    fn from(value: bool) -> Self {
        Bits(value as u128)
    }
}

impl From<Bits<1>> for bool {
    #[inline(always)]
    fn from(value: Bits<1>) -> Self {
        value.0 == 1
    }
}

impl<const N: usize> PartialEq<u64> for Bits<N> {
    #[inline(always)]
    fn eq(&self, other: &u64) -> bool {
        self.0 == *other as u128
    }
}

impl<const N: usize> PartialOrd<u64> for Bits<N> {
    #[inline(always)]
    fn partial_cmp(&self, other: &u64) -> Option<std::cmp::Ordering> {
        self.0.partial_cmp(&(*other as u128))
    }
}

macro_rules! operators {
    ($($trait:ident $method:ident |$a:ident, $b:ident| $result:expr;)+) => {$(
        impl<const N: usize> std::ops::$trait for Bits<N> {
            type Output = Bits<N>;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                let ($a, $b) = (self.0, other.0);
                Self::wrap($result)
            }
        }
        impl<const N: usize> std::ops::$trait<u64> for Bits<N> {
            type Output = Bits<N>;
            #[inline(always)]
            fn $method(self, other: u64) -> Self {
                let ($a, $b) = (self.0, other as u128);
                Self::wrap($result)
            }
        }
    )+};
}
operators! {
    Add add |a, b| a.wrapping_add(b);
    Sub sub |a, b| a.wrapping_sub(b);
    BitAnd bitand |a, b| a & b;
    BitOr bitor |a, b| a | b;
    BitXor bitxor |a, b| a ^ b;
}

impl<const N: usize> std::ops::Shl<u64> for Bits<N> {
    type Output = Bits<N>;
    #[inline(always)]
    fn shl(self, by: u64) -> Self {
        if by >= 128 {
            Bits(0)
        } else {
            Self::wrap(self.0 << by)
        }
    }
}

impl<const N: usize> std::ops::Shr<u64> for Bits<N> {
    type Output = Bits<N>;
    #[inline(always)]
    fn shr(self, by: u64) -> Self {
        if by >= 128 {
            Bits(0)
        } else {
            Bits(self.0 >> by)
        }
    }
}

impl<const N: usize, const M: usize> std::ops::Shl<Bits<M>> for Bits<N> {
    type Output = Bits<N>;
    #[inline(always)]
    fn shl(self, by: Bits<M>) -> Self {
        self << by.to_u64()
    }
}

impl<const N: usize, const M: usize> std::ops::Shr<Bits<M>> for Bits<N> {
    type Output = Bits<N>;
    #[inline(always)]
    fn shr(self, by: Bits<M>) -> Self {
        self >> by.to_u64()
    }
}

impl<const N: usize> std::ops::Not for Bits<N> {
    type Output = Bits<N>;
    #[inline(always)]
    fn not(self) -> Self {
        Self::wrap(!self.0)
    }
}

impl<const N: usize> std::ops::Add for Signed<N> {
    type Output = Signed<N>;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self::wrap(self.0.wrapping_add(other.0))
    }
}

impl<const N: usize> std::ops::Sub for Signed<N> {
    type Output = Signed<N>;
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self::wrap(self.0.wrapping_sub(other.0))
    }
}

impl<const N: usize> std::ops::Neg for Signed<N> {
    type Output = Signed<N>;
    #[inline(always)]
    fn neg(self) -> Self {
        Self::wrap(self.0.wrapping_neg())
    }
}

/// RustHDL's own value of the same bits; its literals and VCD values are made from that.
fn to_stock<const N: usize>(value: u128) -> stock::Bits<N> {
    let mut all = stock::Bits::<N>::default();
    for i in 0..N {
        all = all.replace_bit(i, value >> i & 1 == 1);
    }
    all
}

impl<const N: usize> Synth for Bits<N> {
    const BITS: usize = N;
    fn descriptor() -> TypeDescriptor {
        TypeDescriptor { name: format!("Bits::<{N}>"), kind: TypeKind::Bits(N) }
    }
    fn vcd(self) -> VCDValue {
        to_stock::<N>(self.0).into()
    }
    fn verilog(self) -> VerilogLiteral {
        if leave_number(self.0) {
            return false.into();
        }
        to_stock::<N>(self.0).into()
    }
}

impl<const N: usize> Synth for Signed<N> {
    const BITS: usize = N;
    fn descriptor() -> TypeDescriptor {
        TypeDescriptor { name: format!("Signed::<{N}>"), kind: TypeKind::Signed(N) }
    }
    fn vcd(self) -> VCDValue {
        to_stock::<N>(unsigned_cast(self).0).into()
    }
    fn verilog(self) -> VerilogLiteral {
        if leave_number(unsigned_cast(self).0) {
            return false.into();
        }
        // Two's complement: a literal with a minus sign in it is no Verilog.
        to_stock::<N>(unsigned_cast(self).0).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_wraps_at_the_width() {
        assert_eq!(bits::<5>(31) + 1, bits::<5>(0));
        assert_eq!(bits::<5>(0) - 1, bits::<5>(31));
        assert_eq!(!bits::<3>(2), bits::<3>(5));
        assert_eq!(bit_cast::<16, 8>(bits::<8>(0xFF)) << 4, bits::<16>(0xFF0));
        assert_eq!(signed::<8>(127) + signed::<8>(1), signed::<8>(-128));
        assert_eq!(signed_cast(bits::<4>(0xF)), signed::<4>(-1));
        assert_eq!(unsigned_cast(signed::<12>(-2)), bits::<12>(0xFFE));
        assert_eq!(bits::<8>(0xA5).get_bits::<4>(4), bits::<4>(0xA));
    }

    #[test]
    fn literals_are_those_of_rust_hdl() {
        assert_eq!(bits::<12>(0xABC).verilog().to_string(), stock::bits::<12>(0xABC).verilog().to_string());
        assert_eq!(signed::<12>(-5).verilog().to_string(), stock::signed::<12>(-5).verilog().to_string());
    }
}
