//! Which rollback an undo takes back, and what others have written since.

use crate::error::Error;
use crate::history::{self, mark, Found, RollbackMarker, Span, Wanted};
use crate::moment::Moment;
use crate::payloads::Payloads;
use crate::reader::JournalReader;
use layout::entry::Rollback;
use std::ops::Range;

/// A rollback as whoever asked for it knows it: interrupted and begun again it is one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Undone {
    /// Stamp of the marker with which it began.
    pub stamp: u64,
    /// Last order from before it.
    before: u64,
    /// Orders that are its own though no flag says so: what came to a port while it ran there.
    own: Range<u64>,
}

/// The last one. If that is an undo that was interrupted, the one that it undoes: who asks for an undo again wants it
/// finished.
pub(super) fn last_rollback(reader: &JournalReader, volume: &str) -> Result<Undone, Error> {
    let markers = read(reader, volume, Moment::End)?.rollbacks;
    let none = || Error::NoMoment(format!("volume {volume} was never rolled back"));
    choose(&markers).ok_or_else(none)?.map_err(|orders| {
        Error::NoMoment(format!(
            "the last rollback of volume {volume} began in the middle of another, which was not finished: --at order:{} is \
             what was there before both, --at order:{} what was there between them",
            orders.0, orders.1
        ))
    })
}

/// What is undone; if nobody can tell what is meant, orders from before its first attempt and from before its last.
fn choose(markers: &[RollbackMarker]) -> Option<Result<Undone, (u64, u64)>> {
    let unfinished = markers.iter().rev().take_while(|marker| marker.begins() && marker.undo).count();
    let markers = &markers[..markers.len() - unfinished];
    let (begins, end) = match markers {
        [begins @ .., end] if !end.begins() => (begins, Some(end)),
        begins => (begins, None),
    };
    let attempts = begins.len() - begins.iter().rev().take_while(|marker| marker.begins()).count();
    let (first, last) = (begins[attempts..].first()?, begins.last()?);
    let target = |marker: &RollbackMarker| {
        let Rollback { target_order, target_timestamp, .. } = marker.rollback;
        (marker.undo, target_order, target_timestamp)
    };
    let before = |marker: &RollbackMarker| marker.rollback.before_order.get();
    if begins[attempts..].iter().any(|marker| target(marker) != target(last)) {
        return Some(Err((before(first), before(last))));
    }
    let ended = end.filter(|end| end.through_port).map_or(before(last), |end| end.rollback.last_order.get());
    Some(Ok(Undone {
        stamp: first.stamp,
        before: before(first),
        own: before(last).saturating_add(1)..ended.saturating_add(1),
    }))
}

impl Undone {
    /// Writes of others since it began. Of an attempt that was interrupted at a port no mark says which write is whose, and
    /// all of them count; and so does what has been merged, where an order stands for a whole window.
    pub fn written_since(&self, reader: &JournalReader, volume: &str) -> Result<u64, Error> {
        let writes = read(reader, volume, Moment::Order(self.before))?.writes;
        let received = reader.head().history_begins().0;
        let own = |order| self.own.contains(&order) && order > received;
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
        RollbackMarker { stamp: 1000 + before, undo, through_port: true, rollback }
    }

    fn end(of: RollbackMarker, last: u64) -> RollbackMarker {
        RollbackMarker { rollback: Rollback { last_order: last.into(), ..of.rollback }, ..of }
    }

    #[test]
    fn attempts_are_one_and_an_unfinished_undo_is_finished() {
        let chosen = |markers: &[RollbackMarker]| {
            choose(markers).map(|chosen| chosen.map(|undone| (undone.before, undone.own)))
        };
        let is = |before, own| Some(Ok((before, own)));
        let (first, again) = (begin(10, 3, false), begin(12, 3, false));
        let (undo, undo_again) = (begin(20, 10, true), begin(25, 10, true));
        assert_eq!(chosen(&[]), None);
        assert_eq!(chosen(&[undo]), None, "what it undid is given up");
        assert_eq!(chosen(&[first]), is(10, 11..11));
        assert_eq!(chosen(&[first, end(first, 19)]), is(10, 11..20));
        assert_eq!(chosen(&[first, again, end(again, 19)]), is(10, 13..20));
        assert_eq!(chosen(&[first, end(first, 19), undo]), is(10, 11..20), "to be finished");
        assert_eq!(chosen(&[first, again, end(again, 19), undo, undo_again]), is(10, 13..20));
        assert_eq!(chosen(&[first, end(first, 19), undo, undo_again, end(undo_again, 30)]), is(20, 26..31));
        let twice = [first, end(first, 19), begin(21, 3, false), end(begin(21, 3, false), 29)];
        assert_eq!(chosen(&twice), is(21, 22..30), "done twice, and not continued");
        // Another moment, in the middle of the first; or the same again in the middle of its undo.
        assert_eq!(chosen(&[begin(8, 4, false), again, end(again, 19)]), Some(Err((8, 12))));
        let back = begin(28, 3, false);
        assert_eq!(chosen(&[first, end(first, 19), undo, back, end(back, 33)]), Some(Err((20, 28))));
        // In place its entries say whose they are.
        let in_place = RollbackMarker { through_port: false, ..end(first, 19) };
        assert_eq!(chosen(&[first, in_place]), is(10, 11..11));
    }
}
