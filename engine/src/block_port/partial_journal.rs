//! A port's partial journal: its records, until they are drained.

use layout::entry::EntryHeader;
use std::collections::VecDeque;
use std::sync::Arc;

/// A record that waits to be drained.
#[derive(Debug)]
pub(super) struct Waiting {
    pub header: EntryHeader,
    pub payload: Arc<Vec<u8>>,
    /// It was answered, or needs no answer.
    pub settled: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct PartialJournal {
    pub port: u8,
    pub source: u16,
    pub waiting: VecDeque<Waiting>,
    /// Sequence of the last record.
    sequence: u64,
    /// Room that is taken: what is held, what waits, what was drained and the journal hasn't taken yet.
    pub bytes: usize,
    /// Of that, what waits.
    pub waiting_bytes: usize,
}

impl PartialJournal {
    pub fn new(port: u8, source: u16) -> Self {
        Self { port, source, waiting: VecDeque::new(), sequence: 0, bytes: 0, waiting_bytes: 0 }
    }

    pub fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// The record with that sequence, unless it was drained.
    pub fn still_waiting(&mut self, sequence: u64) -> Option<&mut Waiting> {
        let first = self.waiting.front()?.header.sequence.get();
        let index = usize::try_from(sequence.checked_sub(first)?).ok()?;
        self.waiting.get_mut(index)
    }
}
