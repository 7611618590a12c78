//! One record of a partial journal: a 64-byte header, then payload, the whole padded to 64 bytes.
//!
//! Records lie back to back in a port's ring, in the order in which the arbiter committed them.
//! Stamps of one arbiter strictly increase over all its records of any kind (DESIGN §3.2).

use crate::crc;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First two bytes of every record: `CJ`.
pub const MAGIC: u16 = u16::from_le_bytes(*b"CJ");
/// Version of the header's layout.
pub const VERSION: u8 = 1;
/// Bytes of the header, and the granule that records are padded to.
pub const HEADER_BYTES: usize = 64;
/// `volume` or `source`: no index (the table was full, or the record has none).
pub const NO_INDEX: u16 = 0xFFFF;

/// Header of a record.
///
/// A field that a kind doesn't use is zero (`volume` and `source`: [`NO_INDEX`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct EntryHeader {
    /// [`MAGIC`].
    pub magic: U16,
    /// [`VERSION`].
    pub version: u8,
    /// A [`Kind`].
    pub kind: u8,
    /// Bits of [`flags`].
    pub flags: U16,
    /// An [`Encoding`] of the payload.
    pub encoding: u8,
    /// Low nibble: [`Journaled`]; high nibble: [`Updated`].
    pub status: u8,
    /// Nanoseconds since the Unix epoch, from the arbiter's hybrid logical clock.
    pub timestamp: U64,
    /// The arbiter's number of the entry; for a completion the number of its entry; for a watermark
    /// the last number the arbiter has given; for a gap the first number after it.
    pub number: U64,
    /// Counts the records of this port, of any kind: a hole is a loss.
    pub sequence: U64,
    /// First sector, 48 bits.
    pub lba: [u8; 6],
    /// Sectors.
    pub sectors: U16,
    /// Port.
    pub port: u8,
    /// Scoreboard slot.
    pub slot: u8,
    /// [`ErrorBound`] of the stamp.
    pub clock_error: U16,
    /// The target's answer in a completion: ATA status register.
    pub answer_status: u8,
    /// The target's answer in a completion: ATA error register, or AoE error code with
    /// [`flags::AOE_ERROR`].
    pub answer_error: u8,
    /// Index into the volume table.
    pub volume: U16,
    /// Index into the port's source table.
    pub source: U16,
    /// Zero.
    pub reserved: U16,
    /// Bytes of payload that follow the header, before padding.
    pub payload_bytes: U32,
    /// CRC32C of the payload, zero-length included.
    pub payload_crc: U32,
    /// CRC32C of the header with this field zero.
    pub header_crc: U32,
}

const _: () = assert!(core::mem::size_of::<EntryHeader>() == HEADER_BYTES);

macro_rules! byte_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $value:literal $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$vdoc])* $variant = $value),+ }
        impl $name {
            /// Every value.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];
            /// The value of a byte, or the byte if it is none.
            pub const fn from_byte(byte: u8) -> Result<Self, u8> {
                match byte { $($value => Ok($name::$variant),)+ other => Err(other) }
            }
            /// As it is printed.
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $text),+ }
            }
        }
        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result { f.pad(self.name()) }
        }
    };
}

byte_enum! {
    /// What a record is.
    Kind {
        /// A write; the payload is the data after it.
        After = 1 "after",
        /// A write; the payload is the data before it.
        Before = 2 "before",
        /// A write; the payload is the data before it, then the data after it.
        Both = 3 "both",
        /// The target's answer to an earlier entry.
        Completion = 4 "completion",
        /// Nothing of this port at or below this stamp is still to come.
        Watermark = 5 "watermark",
        /// Entries of this port are missing up to this stamp; the payload is a [`Gap`].
        Gap = 6 "gap",
        /// A named moment.
        Marker = 7 "marker",
        /// Data as read back from primary.
        Resync = 8 "resync",
        /// A window of a merged portion begins; what was merged in it follows as entries.
        Merged = 9 "merged",
    }
}

byte_enum! {
    /// How the payload stands in the record.
    Encoding {
        /// As it is.
        Raw = 0 "raw",
        /// All zeroes; the payload is empty.
        Zero = 1 "zero",
    }
}

byte_enum! {
    /// Has the entry been journaled? (claim 17)
    Journaled {
        /// Not yet.
        Pending = 0 "pending",
        /// Whole in the partial journal.
        Port = 1 "port",
        /// Durable in the primary journal.
        Durable = 2 "durable",
    }
}

byte_enum! {
    /// Has primary storage been updated? (claim 17)
    Updated {
        /// No answer yet.
        Pending = 0 "pending",
        /// The target said so.
        Updated = 1 "updated",
        /// The target refused in a way that guarantees that nothing was executed.
        Refused = 2 "refused",
        /// Journaled and never forwarded.
        Cancelled = 3 "cancelled",
        /// Nobody knows.
        Unknown = 4 "unknown",
    }
}

/// Bits of [`EntryHeader::flags`].
pub mod flags {
    /// A copy (retransmission) of a write that is still unanswered.
    pub const DUPLICATE: u16 = 1 << 0;
    /// The leaf clock was locked.
    pub const CLOCK_LOCKED: u16 = 1 << 1;
    /// The leaf clock was in holdover.
    pub const CLOCK_HOLDOVER: u16 = 1 << 2;
    /// The stamp is the arbiter's last + 1, because the leaf's time was not later.
    pub const STAMP_LOGICAL: u16 = 1 << 3;
    /// `answer_error` is an AoE error code, not an ATA error register.
    pub const AOE_ERROR: u16 = 1 << 4;
    /// The completion came after its status had been declared unknown.
    pub const LATE: u16 = 1 << 5;
    /// Of a marker: its volume was compared with primary in full, and what differed stands before it
    /// as resync entries. Gaps up to here are closed for that volume.
    pub const RESYNCED: u16 = 1 << 8;
    /// Of a marker: a rollback of its volume begins or ends here; the payload is a [`super::Rollback`]. Of an entry: a
    /// rollback wrote or read back what it holds, and nobody who uses the volume wrote it.
    pub const ROLLBACK: u16 = 1 << 9;
    /// Of a marker: its volume has another size from here on; the payload is a [`super::Resize`].
    pub const RESIZED: u16 = 1 << 10;
    /// Of a merged entry: something was written here, and neither what it was nor what had been there before
    /// is known.
    pub const NO_IMAGE: u16 = 1 << 11;
    /// Of a marker flagged *rollback*: it undoes the rollback before it.
    pub const UNDO: u16 = 1 << 12;
    /// Every flag with the name that is printed.
    pub const NAMES: &[(u16, &str)] = &[
        (DUPLICATE, "duplicate"),
        (CLOCK_LOCKED, "locked"),
        (CLOCK_HOLDOVER, "holdover"),
        (STAMP_LOGICAL, "logical"),
        (AOE_ERROR, "aoe-error"),
        (LATE, "late"),
        (RESYNCED, "resynced"),
        (ROLLBACK, "rollback"),
        (RESIZED, "resized"),
        (NO_IMAGE, "no-image"),
        (UNDO, "undo"),
    ];
}

/// A bound on the error of a stamp, in 16 bits: `mantissa << exponent` sixteenths of a nanosecond.
///
/// Mantissa in bits 10:0, exponent in bits 15:11, so it says 0.1 ns and 16 s alike. All ones: no bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorBound(pub u16);

impl ErrorBound {
    /// No bound is known: the clock is unlocked.
    pub const UNBOUNDED: ErrorBound = ErrorBound(0xFFFF);
    /// Bits of the mantissa.
    pub const MANTISSA_BITS: u32 = 11;

    /// The smallest bound that is not below `sixteenths` of a nanosecond.
    pub const fn from_sixteenths(sixteenths: u64) -> Self {
        let mut mantissa = sixteenths;
        let mut exponent = 0u16;
        while mantissa > 0x7FF {
            mantissa = mantissa.div_ceil(2);
            exponent += 1;
            // 2^11 − 1 at exponent 31 is the all-ones pattern, which has a meaning of its own.
            if exponent > 30 {
                return Self::UNBOUNDED;
            }
        }
        ErrorBound((exponent << Self::MANTISSA_BITS) | mantissa as u16)
    }

    /// In nanoseconds; `None` without a bound.
    pub fn nanoseconds(self) -> Option<f64> {
        if self == Self::UNBOUNDED {
            return None;
        }
        let mantissa = (self.0 & 0x7FF) as u64;
        let exponent = self.0 >> Self::MANTISSA_BITS;
        Some((mantissa << exponent) as f64 / 16.0)
    }
}

/// Why entries are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum GapReason {
    /// The host's ring or the card lost records.
    Lost = 1,
    /// The writer stopped without saying so.
    UncleanStop = 2,
    /// The port's clock was unlocked.
    ClockUnlocked = 3,
    /// The time base jumped.
    TimeJump = 4,
    /// No entry is missing, but primary lost writes that had not been flushed, and before-images can't give them back:
    /// moments inside are not known, those before and behind are.
    WritesLost = 5,
}

impl GapReason {
    /// The value of a word, or the word if it is none.
    pub const fn from_word(word: u32) -> Result<Self, u32> {
        match word {
            1 => Ok(Self::Lost),
            2 => Ok(Self::UncleanStop),
            3 => Ok(Self::ClockUnlocked),
            4 => Ok(Self::TimeJump),
            5 => Ok(Self::WritesLost),
            other => Err(other),
        }
    }
}

/// Payload of a [`Kind::Gap`] record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Gap {
    /// Stamp up to which (inclusive) everything is there.
    pub from_timestamp: U64,
    /// Last number known before the gap.
    pub from_number: U64,
    /// A [`GapReason`].
    pub reason: U32,
    /// Zero.
    pub reserved: U32,
}

/// Payload of a marker flagged [`flags::ROLLBACK`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Rollback {
    /// The volume goes back to what it was just after the entry with this order.
    pub target_order: U64,
    /// Stamp of that entry.
    pub target_timestamp: U64,
    /// Last order from before the rollback: going back there undoes it.
    pub before_order: U64,
    /// Last order of the rollback; zero: it begins here.
    pub last_order: U64,
}

/// Payload of a marker flagged [`flags::RESIZED`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Resize {
    /// Sectors before.
    pub before: U64,
    /// Sectors from here on.
    pub after: U64,
}

impl EntryHeader {
    /// A header of `kind` with everything else zero, `volume` and `source` at [`NO_INDEX`].
    pub fn new(kind: Kind) -> Self {
        Self {
            magic: MAGIC.into(),
            version: VERSION,
            kind: kind as u8,
            flags: 0.into(),
            encoding: Encoding::Raw as u8,
            status: 0,
            timestamp: 0.into(),
            number: 0.into(),
            sequence: 0.into(),
            lba: [0; 6],
            sectors: 0.into(),
            port: 0,
            slot: 0,
            clock_error: 0.into(),
            answer_status: 0,
            answer_error: 0,
            volume: NO_INDEX.into(),
            source: NO_INDEX.into(),
            reserved: 0.into(),
            payload_bytes: 0.into(),
            payload_crc: 0.into(),
            header_crc: 0.into(),
        }
    }

    /// First sector.
    pub fn lba(&self) -> u64 {
        let b = self.lba;
        u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], 0, 0])
    }

    /// Sets the first sector; `lba` must fit 48 bits.
    pub fn set_lba(&mut self, lba: u64) {
        assert!(lba < 1 << 48, "LBA {lba} doesn't fit 48 bits");
        self.lba.copy_from_slice(&lba.to_le_bytes()[..6]);
    }

    /// Sets both status fields.
    pub fn set_status(&mut self, journaled: Journaled, updated: Updated) {
        self.status = journaled as u8 | (updated as u8) << 4;
    }

    /// The status byte's low field, or its bits if they mean nothing.
    pub const fn journaled(&self) -> Result<Journaled, u8> {
        Journaled::from_byte(self.status & 0x0F)
    }

    /// The status byte's high field, or its bits if they mean nothing.
    pub const fn updated(&self) -> Result<Updated, u8> {
        Updated::from_byte(self.status >> 4)
    }

    /// What the header's CRC must be.
    pub fn computed_crc(&self) -> u32 {
        let mut zeroed = *self;
        zeroed.header_crc = 0.into();
        crc::crc32c(zeroed.as_bytes())
    }

    /// Fills in payload length, payload CRC and header CRC.
    pub fn seal(&mut self, payload: &[u8]) {
        self.payload_bytes = (payload.len() as u32).into();
        self.payload_crc = crc::crc32c(payload).into();
        self.header_crc = self.computed_crc().into();
    }

    /// Bytes that the record takes in a ring: header and payload, padded.
    pub fn record_bytes(&self) -> usize {
        record_bytes(self.payload_bytes.get() as usize)
    }
}

/// Bytes that a record with `payload` bytes takes: header and payload, padded to [`HEADER_BYTES`].
pub const fn record_bytes(payload: usize) -> usize {
    HEADER_BYTES + payload.next_multiple_of(HEADER_BYTES)
}

/// Where `field` of [`EntryHeader`] lies: the 64-bit word and the bit in it. For the gateware.
#[macro_export]
macro_rules! entry_bit {
    ($field:ident) => {
        (
            core::mem::offset_of!($crate::entry::EntryHeader, $field) / 8,
            core::mem::offset_of!($crate::entry::EntryHeader, $field) % 8 * 8,
        )
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_bound_says_a_tenth_of_a_nanosecond_and_sixteen_seconds() {
        assert_eq!(ErrorBound::from_sixteenths(2).nanoseconds(), Some(0.125));
        let long = ErrorBound::from_sixteenths(16_000_000_000 * 16).nanoseconds().unwrap();
        assert!((16e9..16.02e9).contains(&long), "{long}");
        for sixteenths in (0..70_000).chain([1 << 35, (1 << 40) - 1]) {
            let bound = ErrorBound::from_sixteenths(sixteenths).nanoseconds().unwrap();
            assert!(bound >= sixteenths as f64 / 16.0);
            assert!(bound <= sixteenths as f64 / 16.0 * 1.001 + 0.001);
        }
        assert_eq!(ErrorBound::from_sixteenths(u64::MAX), ErrorBound::UNBOUNDED);
    }

    #[test]
    fn a_sealed_header_checks_and_any_flip_shows() {
        let mut header = EntryHeader::new(Kind::After);
        header.set_lba(0x1234_5678_9ABC);
        header.seal(&[7; 512]);
        assert_eq!(header.computed_crc(), header.header_crc.get());
        for bit in 0..512 {
            let mut bytes: [u8; 64] = header.as_bytes().try_into().unwrap();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let flipped = EntryHeader::read_from_bytes(&bytes).unwrap();
            assert_ne!(flipped.computed_crc(), flipped.header_crc.get());
        }
    }
}
