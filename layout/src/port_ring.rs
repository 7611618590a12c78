//! How large a port's own ring must be, in the card and in software.
//!
//! A write is admitted when its port's ring has room for its entry and completion. Two of the largest must fit, so
//! that one can be written while the other is drained, beside what always has room.

use crate::entry::{record_bytes, Gap, HEADER_BYTES};
use crate::SECTOR_BYTES;
use core::fmt;
use core::mem::size_of;

/// Bytes that are kept beside entries and completions: a watermark, a gap, a late answer.
pub const STANDING_BYTES: usize = 2 * record_bytes(0) + record_bytes(size_of::<Gap>());

/// Bytes of a ring that takes writes of `sectors` sectors with `images` images each: 1, or 2 where what was there
/// before is journaled with what is written.
pub const fn needed_bytes(sectors: usize, images: usize) -> usize {
    2 * (record_bytes(images * sectors * SECTOR_BYTES) + record_bytes(0)) + STANDING_BYTES
}

/// A ring that doesn't hold two of the largest entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooSmall {
    /// Its bytes.
    pub bytes: usize,
    /// Sectors of the largest write.
    pub sectors: usize,
    /// Images of each in its entry.
    pub images: usize,
}

impl fmt::Display for TooSmall {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { bytes, sectors, images } = *self;
        let needed = needed_bytes(sectors, images);
        let of_both = if images == 1 { "" } else { " with before- and after-image" };
        write!(
            f,
            "port rings of {bytes} bytes don't hold two entries of {sectors} sectors{of_both}, with their completions \
             and what always has room: {needed} bytes are needed, so rings of {} KiB",
            needed.next_power_of_two() / 1024
        )
    }
}

/// That a ring of `bytes` bytes takes writes of `sectors` sectors with `images` images each.
pub const fn check(bytes: usize, sectors: usize, images: usize) -> Result<(), TooSmall> {
    if bytes < needed_bytes(sectors, images) {
        return Err(TooSmall { bytes, sectors, images });
    }
    Ok(())
}

/// The gateware counts a ring in lines of a header's size.
pub const STANDING_LINES: usize = STANDING_BYTES / HEADER_BYTES;
const _: () = assert!(STANDING_BYTES.is_multiple_of(HEADER_BYTES));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aoe::MAXIMUM_SECTORS;
    use std::string::ToString;

    #[test]
    fn two_of_the_largest_and_what_always_has_room() {
        // Lines: header and payload, completion; twice; watermark, late answer, gap with its payload.
        assert_eq!(needed_bytes(1, 1), (2 * (9 + 1) + 4) * 64);
        assert_eq!(needed_bytes(MAXIMUM_SECTORS, 1), (2 * (137 + 1) + 4) * 64);
        assert_eq!(needed_bytes(MAXIMUM_SECTORS, 2), (2 * (273 + 1) + 4) * 64);
        assert_eq!(check(64 << 10, MAXIMUM_SECTORS, 2), Ok(()));
        assert_eq!(check(needed_bytes(2, 1), 2, 1), Ok(()));
        assert!(check(needed_bytes(2, 1) - 1, 2, 1).is_err());
        let error = check(32 << 10, MAXIMUM_SECTORS, 2).unwrap_err();
        assert!(error.to_string().contains("35328 bytes are needed, so rings of 64 KiB"), "{error}");
    }
}
