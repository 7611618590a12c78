//! Merged portions, written by hand from `docs/formats.md` alone: a journal that the production writer made is
//! rewritten as if windows of it had been merged. As plain as can be, and sharing no code with anything but
//! `layout`, so that writer and readers can be held against it.
#![allow(dead_code)]

mod merge;
mod put;
mod take;
pub mod world;

pub use merge::{merge, Window};
#[allow(unused_imports)]
pub use put::Touch;
use std::ops::Range;

/// What is to be merged. Levels are portions: the first is portion 1, the finest.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Length of the windows, and the stamp up to which what is older is merged in them; the coarser the older.
    pub levels: Vec<(u64, u64)>,
    /// Stamps at which windows end beside; they have to have a name in the tables.
    pub named: Vec<u64>,
    /// Windows that end at or below this are given up.
    pub forget: u64,
    /// Most entries in a batch, and most sectors in an entry.
    pub most: (usize, u64),
}

/// What became of the journal.
pub struct Merged {
    pub image: Vec<u8>,
    /// Every window that is kept, the oldest first.
    pub windows: Vec<Window>,
    /// First order that is kept as an entry.
    pub from_order: u64,
    /// Last order of what was forgotten.
    pub forgotten: u64,
    /// Last order that the base may hold.
    pub rolling: u64,
    /// Where bytes are in use.
    pub used: Vec<Range<usize>>,
}

impl Merged {
    /// Is the state behind this order gone?
    pub fn is_gone(&self, order: u64) -> bool {
        order < self.forgotten || self.windows.iter().any(|w| w.first_order <= order && order < w.last_order)
    }
}
