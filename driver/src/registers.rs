//! Typed access to the card's registers.
//!
//! A [`Word32`] or [`Word64`] is made, at compile time, of an offset in `layout::registers` and is
//! checked there against the map: a register that doesn't exist, or has another width, doesn't build.
//! Of a 64-bit register the high half is written first, because it takes effect with its low half,
//! and the low half is read first, because reading it latches the high one.
//!
//! A card that has fallen off the bus reads as all ones. All ones may be a register's value too, so
//! then the identity is read, which never is.

use crate::card::{Card, CardError};
use layout::registers::{global, port, Register, PORT_BASE, PORT_STRIDE, SOURCES, VOLUMES};

/// What a card that is gone reads as.
pub const ALL_ONES: u32 = u32::MAX;

/// A 32-bit register of the card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word32(u32);

/// A 64-bit register of the card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word64(u32);

/// A 32-bit register that every port has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortWord32(u32);

/// A 64-bit register that every port has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortWord64(u32);

const fn is_in(map: &[Register], offset: u32, bits: u8) -> bool {
    let mut i = 0;
    while i < map.len() {
        if map[i].offset == offset && map[i].bits == bits {
            return true;
        }
        i += 1;
    }
    false
}

macro_rules! words {
    ($map:ident: $($word:ident $bits:literal: $($name:ident)+;)+) => {
        $($(
            #[doc = concat!("`", stringify!($map), "::", stringify!($name), "`; the map says what it is.")]
            pub const $name: $word = {
                assert!(is_in($map::REGISTERS, $map::$name, $bits), "not in the map with this width");
                $word($map::$name)
            };
        )+)+
    };
}

/// Registers of the card as a whole.
pub mod card {
    use super::{global, is_in, Word32, Word64};
    words! { global:
        Word32 32: IDENTITY MAP_VERSION GEOMETRY CONTROL COMMAND STATUS HOLD RETRY UNKNOWN QUARANTINE
            FLUSH_PERIOD INTERRUPT_PERIOD;
        Word64 64: SESSION TIME_SET TIME_NOW STAMP_FLOOR NUMBER_FLOOR LAST_STAMP LAST_NUMBER;
    }
}

/// Registers that every port has.
pub mod ports {
    use super::{is_in, port, PortWord32, PortWord64};
    words! { port:
        PortWord32 32: CONTROL COMMAND STATUS VOLUMES FLUSH_LEVEL RING_SIZE LEAF_PHASE RING_LEVEL;
        PortWord64 64: RING_ADDRESS MAILBOX_ADDRESS CONSUMED PRODUCED DURABLE LEAF_TIME;
    }
}

impl PortWord32 {
    /// The register of `port`.
    pub const fn of(self, port: usize) -> Word32 {
        Word32(PORT_BASE + PORT_STRIDE * port as u32 + self.0)
    }
}

impl PortWord64 {
    /// The register of `port`.
    pub const fn of(self, port: usize) -> Word64 {
        Word64(PORT_BASE + PORT_STRIDE * port as u32 + self.0)
    }
}

/// Word `index` of the volume table.
pub fn volume(index: usize) -> Word32 {
    assert!(index < VOLUMES, "the volume table has {VOLUMES} entries");
    Word32(global::VOLUME_TABLE + 4 * index as u32)
}

/// Counter `index` of `port`.
pub fn counter(port: usize, index: usize) -> Word32 {
    assert!(index < COUNTERS, "a port has {COUNTERS} counters");
    PortWord32(port::COUNTERS + 4 * index as u32).of(port)
}

/// Entry `index` of `port`'s table of sources.
pub fn source(port: usize, index: usize) -> Word64 {
    assert!(index < SOURCES, "a port has {SOURCES} sources");
    PortWord64(port::SOURCE_TABLE + 8 * index as u32).of(port)
}

/// Words of a port's counters.
pub const COUNTERS: usize = 32;

impl Word32 {
    /// Offset in BAR 0.
    pub const fn offset(self) -> u32 {
        self.0
    }

    /// Reads the register.
    pub fn read<C: Card + ?Sized>(self, card: &mut C) -> Result<u32, CardError> {
        let value = card.read(self.0)?;
        check_present(card, self.0, value)?;
        Ok(value)
    }

    /// Writes the register.
    pub fn write<C: Card + ?Sized>(self, card: &mut C, value: u32) -> Result<(), CardError> {
        card.write(self.0, value)
    }
}

impl Word64 {
    /// Offset in BAR 0 of the low half.
    pub const fn offset(self) -> u32 {
        self.0
    }

    /// Reads the register.
    pub fn read<C: Card + ?Sized>(self, card: &mut C) -> Result<u64, CardError> {
        // Nothing in between: the latched half is for the very next read.
        let low = card.read(self.0)?;
        let high = card.read(self.0 + 4)?;
        check_present(card, self.0, low & high)?;
        Ok(u64::from(high) << 32 | u64::from(low))
    }

    /// Writes the register.
    pub fn write<C: Card + ?Sized>(self, card: &mut C, value: u64) -> Result<(), CardError> {
        card.write(self.0 + 4, (value >> 32) as u32)?;
        card.write(self.0, value as u32)
    }
}

/// All ones in `value` may mean that nobody answers; the identity tells.
fn check_present<C: Card + ?Sized>(card: &mut C, offset: u32, value: u32) -> Result<(), CardError> {
    if value == ALL_ONES && card.read(global::IDENTITY)? == ALL_ONES {
        return Err(CardError::Gone(format!("register {offset:#06x} and the card's identity read all ones")));
    }
    Ok(())
}
