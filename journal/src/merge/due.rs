//! What the schedule has due: from which portion into which, and up to when.

use crate::reader::JournalReader;
use crate::schedule::Schedule;

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
    let mut all = Vec::new();
    let mut older_is_left = false;
    let portions: Vec<_> = reader.head().portions().collect();
    for (at, (source, portion)) in portions.iter().enumerate() {
        let source = *source;
        // A portion has everything up to where the next finer one begins.
        let whole = portions.get(at + 1).map_or(settled, |(_, finer)| finer.after_timestamp.get());
        let level = &levels[source.min(top)];
        let kept = now.saturating_sub(if short { level.least } else { level.keep });
        let target = (source < top).then_some(source + 1);
        let window = target.map_or(level.window, |target| levels[target].window).max(1);
        let until = kept.min(whole) / window * window;
        // What is given up is the oldest that there is.
        let in_turn = target.is_some() || !older_is_left;
        if until > portion.after_timestamp.get() && in_turn {
            all.push(Due { source, target, window, until });
        }
        older_is_left |= source > 0 && portion.first_sequence < portion.end_sequence;
    }
    all
}
