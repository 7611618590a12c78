//! Which rollback an undo takes back, and what others have written since.

use crate::error::Error;
use crate::history::{self, mark, Found, RollbackMarker, Span, Wanted};
use crate::moment::Moment;
use crate::payloads::Payloads;
use crate::reader::JournalReader;
use layout::entry::Rollback;

/// A rollback as whoever asked for it knows it: interrupted and begun again it is one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Undone {
    /// Stamp of the marker with which it began.
    pub stamp: u64,
    /// Last order from before it began for the first time, and for the last.
    before: (u64, u64),
    /// Its last order; if it was interrupted, `before`.
    last: u64,
}

/// The last one. If that is an undo that was interrupted, the one that it undoes: who asks for an undo again wants it
/// finished.
pub(super) fn last_rollback(reader: &JournalReader, volume: &str) -> Result<Undone, Error> {
    let markers = read(reader, volume, Moment::End)?.rollbacks;
    choose(&markers).ok_or_else(|| Error::NoMoment(format!("volume {volume} was never rolled back")))
}

fn choose(markers: &[RollbackMarker]) -> Option<Undone> {
    let unfinished = markers.iter().rev().take_while(|marker| marker.begins() && marker.undo).count();
    let markers = &markers[..markers.len() - unfinished];
    let (begins, end) = match markers {
        [begins @ .., end] if !end.begins() => (begins, Some(end)),
        begins => (begins, None),
    };
    let last = begins.last()?;
    let target = |marker: &RollbackMarker| {
        let Rollback { target_order, target_timestamp, .. } = marker.rollback;
        (marker.begins(), marker.undo, target_order, target_timestamp)
    };
    let attempts = begins.iter().rev().take_while(|marker| target(marker) == target(last));
    let first = attempts.last().filter(|first| first.begins())?;
    let before = (first.rollback.before_order.get(), last.rollback.before_order.get());
    Some(Undone {
        stamp: first.stamp,
        before,
        last: end.map_or(before.1, |end| end.rollback.last_order.get()),
    })
}

impl Undone {
    /// Writes of others since it began. What came to a port while it ran there is its own; of an attempt that was
    /// interrupted there, no mark says which is whose, and all of it counts.
    pub fn written_since(&self, reader: &JournalReader, volume: &str) -> Result<u64, Error> {
        let writes = read(reader, volume, Moment::Order(self.before.0))?.writes;
        let own = |order| self.before.1 < order && order <= self.last;
        let others = writes.iter().filter(|write| write.marks() & mark::ROLLBACK == 0 && !own(write.order()));
        Ok(others.count() as u64)
    }
}

fn read(reader: &JournalReader, volume: &str, after: Moment) -> Result<Found, Error> {
    let volume = reader.tables().volume(volume)?.clone();
    let span = Span { after: Some(after), until: Moment::End, wanted: Wanted::Any };
    history::read(reader, &Payloads::new(reader), &volume, span, &mut |_, _| {})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(before: u64, target: u64, undo: bool) -> RollbackMarker {
        let rollback = Rollback {
            target_order: target.into(),
            target_timestamp: target.into(),
            before_order: before.into(),
            last_order: 0.into(),
        };
        RollbackMarker { stamp: 1000 + before, undo, rollback }
    }

    fn end(of: RollbackMarker, last: u64) -> RollbackMarker {
        RollbackMarker { rollback: Rollback { last_order: last.into(), ..of.rollback }, ..of }
    }

    #[test]
    fn attempts_are_one_and_an_unfinished_undo_is_finished() {
        let chosen = |markers: &[RollbackMarker]| {
            choose(markers).map(|undone| (undone.before.0, undone.before.1, undone.last))
        };
        let (first, again) = (begin(10, 3, false), begin(12, 3, false));
        let (undo, undo_again) = (begin(20, 10, true), begin(25, 10, true));
        assert_eq!(chosen(&[]), None);
        assert_eq!(chosen(&[first]), Some((10, 10, 10)));
        assert_eq!(chosen(&[first, end(first, 19)]), Some((10, 10, 19)));
        assert_eq!(chosen(&[first, again, end(again, 19)]), Some((10, 12, 19)));
        assert_eq!(
            chosen(&[begin(8, 4, false), again, end(again, 19)]),
            Some((12, 12, 19)),
            "another moment"
        );
        assert_eq!(chosen(&[first, end(first, 19), undo]), Some((10, 10, 19)), "to be finished");
        assert_eq!(chosen(&[first, again, end(again, 19), undo, undo_again]), Some((10, 12, 19)));
        assert_eq!(
            chosen(&[first, end(first, 19), undo, undo_again, end(undo_again, 30)]),
            Some((20, 25, 30))
        );
        let twice = [first, end(first, 19), begin(21, 3, false), end(begin(21, 3, false), 29)];
        assert_eq!(chosen(&twice), Some((21, 21, 29)), "done twice, and not continued");
    }
}
