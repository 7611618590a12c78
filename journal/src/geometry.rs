//! How a journal of a given size is divided.

use crate::error::Error;
use layout::journal_file::{
    BLOCK_BYTES, MAXIMUM_PAYLOAD_BYTES, MAXIMUM_SEGMENT_BYTES, MINIMUM_SEGMENTS, MINIMUM_SEGMENT_BYTES,
    TABLES_OFFSET,
};

/// Segments are chosen so that a journal has about this many: enough that the one being filled and
/// the reserved ones are a small part of it.
const SEGMENTS_WANTED: u64 = 64;
/// A larger segment gains nothing more, and the last one is read whole when the journal is opened.
const LARGEST_DEFAULT_SEGMENT: u64 = 64 << 20;

/// Places in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub file_bytes: u64,
    pub table_bytes: u64,
    pub segments_offset: u64,
    pub segment_bytes: u64,
    pub segment_count: u32,
    pub reserved_completions: u32,
    pub reserved_merge: u32,
    pub reserved_rollback: u32,
}

impl Geometry {
    /// Divides `bytes`.
    pub fn divide(bytes: u64, segment_bytes: Option<u64>) -> Result<Self, Error> {
        let segment_bytes = segment_bytes.unwrap_or_else(|| {
            let wanted = (bytes / SEGMENTS_WANTED).max(1);
            (1 << wanted.ilog2()).clamp(MINIMUM_SEGMENT_BYTES, LARGEST_DEFAULT_SEGMENT)
        });
        if !segment_bytes.is_power_of_two()
            || !(MINIMUM_SEGMENT_BYTES..=MAXIMUM_SEGMENT_BYTES).contains(&segment_bytes)
        {
            return Err(Error::Invalid(format!(
                "a segment of {segment_bytes} bytes: it has to be a power of two between {MINIMUM_SEGMENT_BYTES} and {MAXIMUM_SEGMENT_BYTES}"
            )));
        }
        // The tables are copied into every seal: a quarter of a segment is the most they may take.
        let table_bytes = (segment_bytes / 4).min(256 * 1024);
        let segments_offset = TABLES_OFFSET + 2 * table_bytes;
        let count = bytes.saturating_sub(segments_offset) / segment_bytes;
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        if count < MINIMUM_SEGMENTS {
            let least = segments_offset + u64::from(MINIMUM_SEGMENTS) * segment_bytes;
            return Err(Error::Invalid(format!(
                "a journal of {bytes} bytes is too small: with segments of {segment_bytes} bytes it needs {least} or more"
            )));
        }
        let reserve = (count / 64).clamp(1, 16);
        Ok(Self {
            file_bytes: segments_offset + u64::from(count) * segment_bytes,
            table_bytes,
            segments_offset,
            segment_bytes,
            segment_count: count,
            reserved_completions: reserve,
            reserved_merge: reserve,
            reserved_rollback: reserve,
        })
    }

    /// Where a segment begins.
    pub fn segment_offset(&self, slot: u32) -> u64 {
        self.segments_offset + u64::from(slot) * self.segment_bytes
    }

    /// Where a segment's seal lies.
    pub fn seal_offset(&self, slot: u32) -> u64 {
        self.segment_offset(slot) + self.segment_bytes - BLOCK_BYTES as u64
    }

    /// Largest payload of a record: it has to fit an empty segment with tables and index.
    pub fn largest_payload(&self) -> usize {
        MAXIMUM_PAYLOAD_BYTES.min(self.segment_bytes as usize / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_divide() {
        for bytes in [1 << 20, 3 << 20, 256 << 20, 1 << 30, 1 << 40, (1 << 34) + 12345] {
            let g = Geometry::divide(bytes, None).unwrap();
            assert!(g.file_bytes <= bytes && g.segment_count >= MINIMUM_SEGMENTS, "{g:?}");
            assert_eq!(g.segments_offset % BLOCK_BYTES as u64, 0);
            assert!(g.reserved_completions + g.reserved_merge + g.reserved_rollback < g.segment_count / 2);
        }
        assert_eq!(Geometry::divide(256 << 20, None).unwrap().segment_bytes, 4 << 20);
        assert!(Geometry::divide(100_000, None).unwrap_err().to_string().contains("too small"));
        assert!(Geometry::divide(1 << 30, Some(100_000)).is_err());
    }
}
