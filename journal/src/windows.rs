//! The windows that were merged: which moments there are no more, and the nearest that there are.

use crate::error::Error;
use crate::moment::{rfc3339, Moment};
use crate::payloads::Payloads;
use crate::reader::JournalReader;
use crate::segment::span;
use layout::entry::Kind;
use layout::journal_file::MergedWindow;
use zerocopy::FromBytes;

/// A merged window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// Stamp behind which it begins, ns.
    pub from: u64,
    /// Stamp of its end.
    pub to: u64,
    /// Its last order.
    pub last_order: u64,
    /// Segment, and where the descriptor of its record lies in it.
    record: (u32, u64),
}

/// Every window, in order. Reads the indexes of the merged portions.
fn all(reader: &JournalReader) -> Result<Vec<Window>, Error> {
    those_of(reader, |portion| portion > 0)
}

/// Those of one merged portion, in order.
pub(crate) fn of_portion(reader: &JournalReader, portion: usize) -> Result<Vec<Window>, Error> {
    those_of(reader, |index| index == portion)
}

fn those_of(reader: &JournalReader, wanted: impl Fn(usize) -> bool) -> Result<Vec<Window>, Error> {
    let mut windows = Vec::new();
    for source in reader.sources()?.iter().filter(|source| wanted(source.portion)) {
        let part = source.load(reader)?;
        windows.extend(part.notes.iter().filter(|note| note.kind == Kind::Merged as u8).map(|note| {
            let to = note.timestamp.get();
            Window {
                from: to.saturating_sub(span(note)),
                to,
                last_order: note.number.get(),
                record: (part.slot, u64::from(note.descriptor.get())),
            }
        }));
    }
    Ok(windows)
}

impl Window {
    /// First order, stamps of first and last entry.
    fn contents(&self, reader: &JournalReader) -> Result<MergedWindow, Error> {
        let payloads = Payloads::new(reader);
        let record = payloads.record(self.record.0, self.record.1)?;
        let payload = payloads.whole(&record)?;
        MergedWindow::read_from_prefix(&payload).map(|(window, _)| window).map_err(|_| {
            let what = "the record of a merged window is too short";
            Error::corrupt(&reader.file_name(), record.location.payload, what)
        })
    }
}

/// Does the journal know of the moment, and is it still there? What is the same moment, so that whatever lies
/// before it can be told by order or stamp alone.
pub(crate) fn locate(reader: &JournalReader, at: Moment) -> Result<Moment, Error> {
    let summary = reader.summary();
    let known = summary.delivered.max(summary.timestamp);
    let (first_order, begins) = reader.head().history_begins();
    match at {
        Moment::Order(order) if order > summary.order => {
            return Err(Error::NoMoment(format!(
                "order:{order}; the journal's last entry is order:{}",
                summary.order
            )))
        }
        Moment::Timestamp(stamp) if stamp > known => {
            return Err(Error::NoMoment(format!(
                "{at}; the journal knows of nothing after {}; `end` is its last state",
                rfc3339(known)
            )))
        }
        Moment::Order(order) if order < first_order => return Err(given_up(at, first_order, begins)),
        Moment::Timestamp(stamp) if stamp < begins => return Err(given_up(at, first_order, begins)),
        _ => {}
    }
    // Only what lies before the received portion can be in a window.
    let received = reader.head().superblock.portions[0];
    let merged = match at {
        Moment::End => false,
        Moment::Order(order) => order < received.from_order.get(),
        Moment::Timestamp(stamp) => stamp <= received.after_timestamp.get(),
    };
    if !merged {
        return Ok(at);
    }
    in_window(reader, at)
}

fn given_up(at: Moment, order: u64, stamp: u64) -> Error {
    Error::NoMoment(format!(
        "{at}; the schedule gave up what lies before {}: history begins just after order:{order}",
        rfc3339(stamp)
    ))
}

fn in_window(reader: &JournalReader, at: Moment) -> Result<Moment, Error> {
    let windows = all(reader)?;
    let index = match at {
        Moment::End => return Ok(at),
        Moment::Order(order) => windows.partition_point(|window| window.last_order < order),
        Moment::Timestamp(stamp) => windows.partition_point(|window| window.to <= stamp),
    };
    let Some(window) = windows.get(index) else { return Ok(at) };
    let before = match at {
        Moment::Order(order) if order == window.last_order => return Ok(at),
        Moment::Timestamp(stamp) if stamp < window.from => return Ok(at),
        _ => window.contents(reader)?,
    };
    let earlier = before.first_order.get().saturating_sub(1);
    match at {
        // Between two windows: the state at the end of the one before.
        Moment::Order(order) if order == earlier => return Ok(at),
        Moment::Timestamp(stamp) if stamp < before.first_timestamp.get() => {
            return Ok(Moment::Order(earlier))
        }
        Moment::Timestamp(stamp) if stamp >= before.last_timestamp.get() => {
            return Ok(Moment::Order(window.last_order))
        }
        _ => {}
    }
    Err(Error::Merged {
        asked: at.to_string(),
        from: window.from,
        to: window.to,
        earlier,
        later: window.last_order,
    })
}
