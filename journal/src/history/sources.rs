//! Which segments hold the history.

use super::part::{is_of_this_use, PartSource};
use super::reached;
use crate::error::Error;
use crate::moment::Moment;
use crate::reader::JournalReader;
use crate::walk::Place;
use crate::{walk, windows};
use layout::entry::Kind;
use layout::journal_file::{Portion, SealHeader};

/// What a segment of the received portion took in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentSpan {
    /// Bytes that it takes of the journal.
    pub bytes: u64,
    /// Entries.
    pub entries: u64,
    /// Stamps of its first and last entry, ns; zeroes without any.
    pub first_timestamp: u64,
    /// See `first_timestamp`.
    pub last_timestamp: u64,
}

impl JournalReader {
    /// What the segments in use took in, oldest first: how fast the journal grows.
    pub fn growth(&self) -> Result<Vec<SegmentSpan>, Error> {
        let mut spans = Vec::new();
        for source in self.sources()?.iter().filter(|source| source.portion == 0) {
            let part = source.load(self)?;
            let stamps = || part.rows.iter().map(|row| row.timestamp.get());
            spans.push(SegmentSpan {
                bytes: self.segment_bytes(),
                entries: part.rows.len() as u64,
                first_timestamp: stamps().min().unwrap_or(0),
                last_timestamp: stamps().max().unwrap_or(0),
            });
        }
        // The last one is still being filled.
        if let Some(last) = spans.last_mut() {
            last.bytes = self.end_position().offset.saturating_sub(self.last_segment_offset());
        }
        Ok(spans)
    }

    /// Order and stamp of the last entry, of any volume, at or before a moment; zeroes: none.
    pub fn entry_at(&self, moment: Moment) -> Result<(u64, u64), Error> {
        let moment = windows::locate(self, moment)?;
        // From the back: the first segment that has any such entry has the last one.
        for source in self.sources()?.iter().rev() {
            let part = source.load(self)?;
            let entries = part
                .rows
                .iter()
                .map(|row| (part.first_order + u64::from(row.order.get()), row.timestamp.get()));
            let windows = part.notes.iter().filter(|note| note.kind == Kind::Merged as u8);
            let all = entries.chain(windows.map(|note| (note.number.get(), note.timestamp.get())));
            if let Some(last) = all.filter(|(order, stamp)| reached(moment, *order, *stamp)).max() {
                return Ok(last);
            }
        }
        Ok(self.head().history_begins())
    }

    /// The segments that hold the history, its oldest part first, without a hole.
    pub(crate) fn sources(&self) -> Result<Vec<PartSource>, Error> {
        let mut sources = Vec::new();
        for (index, portion) in self.head().portions() {
            let bounds = (portion.from_order.get(), portion.after_timestamp.get());
            let places = match index {
                0 => self.places()?,
                merged => self.merged_places(merged, portion)?,
            };
            sources.extend(places.into_iter().map(|(at, place)| PartSource {
                portion: index,
                index: at,
                place,
                from_order: bounds.0,
                after_timestamp: bounds.1,
            }));
        }
        Ok(sources)
    }

    fn merged_places(&self, index: usize, portion: &Portion) -> Result<Vec<(usize, Place)>, Error> {
        let places = &self.directory().merged[index];
        for sequence in portion.first_sequence.get()..portion.end_sequence.get() {
            if places.iter().all(|place| place.sequence != sequence) {
                let what = format!("segment {sequence} of merged portion {index} is missing");
                return Err(Error::corrupt(&self.file_name(), self.head().geometry.segments_offset, what));
            }
        }
        Ok(places.iter().cloned().enumerate().collect())
    }

    /// The segments of the received portion up to the journal's end, with their index in the directory, without
    /// a hole.
    fn places(&self) -> Result<Vec<(usize, Place)>, Error> {
        let mut places: Vec<(usize, Place)> = Vec::new();
        for (index, place) in self.directory().places.iter().enumerate() {
            // Its owner may have been taking it into use, and its header half written.
            if self.is_behind_end(u64::MAX) && index > self.end_position().at {
                break;
            }
            let first = match (&place.header, walk::read_seal(self.storage(), self.head(), place.slot)?) {
                (Some(header), _) => header.first_batch.get(),
                (None, Some(seal)) => seal.first_batch.get(),
                (None, None) => 0,
            };
            if self.is_behind_end(first) {
                break;
            }
            let expected = self.head().first_sequence() + places.len() as u64;
            if place.sequence != expected {
                let what = format!("segment {expected} is missing");
                return Err(Error::corrupt(&self.file_name(), self.segment_offset(place.slot), what));
            }
            places.push((index, place.clone()));
        }
        Ok(places)
    }

    /// The seal of a segment, if everything that it speaks of belongs to the journal.
    pub(super) fn seal_of(&self, place: &Place) -> Result<Option<SealHeader>, Error> {
        let seal = walk::read_seal(self.storage(), self.head(), place.slot)?;
        Ok(seal.filter(|seal| {
            let last = (seal.first_batch.get() + seal.batches.get()).saturating_sub(1);
            is_of_this_use(seal, place) && !self.is_behind_end(last)
        }))
    }
}
