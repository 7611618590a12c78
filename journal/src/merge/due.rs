//! What the schedule has due: from which portion into which, and up to when.

use crate::reader::JournalReader;
use crate::schedule::{Level, Schedule};

/// A part of the history that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    /// Index of the portion that it is in.
    pub source: usize,
    /// The portion that it is merged into; `None`: it is given up.
    pub target: Option<usize>,
    /// Length of the target's windows, ns; of what is given up, the source's.
    pub window: u64,
    /// Everything stamped at or below this.
    pub until: u64,
}

/// What is due, the oldest first. `short`: room is, and the schedule says how far it may shrink.
///
/// Time is the journal's: what its newest stamp says, not what the host's clock says, so that a clock that jumps
/// gives nothing up before its time.
pub(super) fn due(reader: &JournalReader, schedule: &Schedule, short: bool, settled: u64) -> Vec<Due> {
    let levels = schedule.levels();
    let Some(top) = levels.len().checked_sub(1) else { return Vec::new() };
    let now = reader.summary().delivered.max(reader.summary().timestamp);
    let kept = |level: &Level| now.saturating_sub(if short { level.least } else { level.keep });
    let mut all = Vec::new();
    let mut older_is_left = false;
    let portions: Vec<_> = reader.head().portions().collect();
    for (at, (source, portion)) in portions.iter().enumerate() {
        let (source, begins) = (*source, portion.after_timestamp.get());
        // A portion has everything up to where the next finer one begins.
        let whole = portions.get(at + 1).map_or(settled, |(_, finer)| finer.after_timestamp.get());
        // What is given up is the oldest that there is, whole windows of it; and it may never have been merged, where
        // that would have gained nothing.
        let window = levels[source.min(top)].window.max(1);
        let until = kept(&levels[top]).min(whole) / window * window;
        if until > begins && !older_is_left {
            all.push(Due { source, target: None, window, until });
        }
        if source < top {
            let window = levels[source + 1].window;
            let until = kept(&levels[source]).min(whole) / window * window;
            if until > begins {
                all.push(Due { source, target: Some(source + 1), window, until });
            }
        }
        older_is_left |= source > 0 && portion.first_sequence < portion.end_sequence;
    }
    all
}
