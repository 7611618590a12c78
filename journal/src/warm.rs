//! What the journal wrote last stays in the page cache; what lies further back leaves it.
//!
//! A journal is written once and seldom read, and without this takes all of the host's memory from what is read. New pages
//! cost, too: a virtual machine gets memory that it hasn't used for long from its host page by page, at several microseconds
//! each, and the pages that were forgotten are the next ones given out.

use crate::storage::Storage;
use std::collections::VecDeque;
use std::ops::Range;

/// So much stays: what images of the last moments read, and what the device may still be busy with.
const KEPT: u64 = 16 << 20;
/// And goes in pieces of this much.
const PIECE: u64 = 4 << 20;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Warm {
    /// In the order of writing; neighbours are joined.
    ranges: VecDeque<Range<u64>>,
    bytes: u64,
}

impl Warm {
    /// These bytes of the file were written.
    pub fn written(&mut self, storage: &dyn Storage, range: Range<u64>) {
        self.bytes += range.end - range.start;
        match self.ranges.back_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.ranges.push_back(range),
        }
        while self.bytes >= KEPT + PIECE {
            self.forget_piece(storage);
        }
    }

    fn forget_piece(&mut self, storage: &dyn Storage) {
        let mut left = PIECE;
        while let Some(first) = self.ranges.front_mut().filter(|_| left > 0) {
            let begin = first.start;
            let end = first.end.min(begin + left);
            first.start = end;
            if first.is_empty() {
                self.ranges.pop_front();
            }
            left -= end - begin;
            self.bytes -= end - begin;
            storage.forget(begin, end - begin);
        }
    }
}
