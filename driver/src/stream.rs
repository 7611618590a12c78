//! Records that no card made: those of a switch in software, in memory one after the other. They are checked
//! as a ring's are, for a program may be wrong too.

use crate::record::{check_header, check_payload, missing, Decoded, Defect, Progress, Record};
use layout::entry::{EntryHeader, HEADER_BYTES};
use std::collections::VecDeque;
use zerocopy::{FromBytes, IntoBytes};

/// The records of one port, from their bytes to checked ones.
#[derive(Debug)]
pub struct Stream {
    port: usize,
    progress: Progress,
    held: VecDeque<Held>,
    held_bytes: usize,
    /// Bytes taken since the beginning.
    position: u64,
}

#[derive(Debug)]
struct Held {
    header: EntryHeader,
    decoded: Decoded,
    payload: Vec<u8>,
    made_by_driver: bool,
}

/// Bytes that can't be what a port's journal holds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("port {port}, byte {position} of its records: {defect}")]
pub struct StreamError {
    /// Port.
    pub port: usize,
    /// Where the record begins, from the first on.
    pub position: u64,
    /// What is wrong with it.
    pub defect: Defect,
}

impl Stream {
    /// The records of `port` from its first on, which has sequence 0; stamps and numbers are above the floors.
    pub fn new(port: usize, stamp_floor: u64, number_floor: u64) -> Self {
        let progress = Progress { next_sequence: Some(0), stamp: stamp_floor, number: number_floor };
        Self { port, progress, held: VecDeque::new(), held_bytes: 0, position: 0 }
    }

    /// Checks whole records and holds them. Where records are missing a gap is held in their place. On an
    /// error what came before the bad record is held.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<(), StreamError> {
        while !bytes.is_empty() {
            let record = self.take_record(bytes).map_err(|defect| StreamError {
                port: self.port,
                position: self.position,
                defect,
            })?;
            self.position += record as u64;
            bytes = &bytes[record..];
        }
        Ok(())
    }

    /// Takes the record that `bytes` begin with; its length.
    fn take_record(&mut self, bytes: &[u8]) -> Result<usize, Defect> {
        let beyond = |record| Defect::BeyondProducer { record, announced: bytes.len() };
        let (header, rest) = EntryHeader::read_from_prefix(bytes).map_err(|_| beyond(HEADER_BYTES))?;
        let decoded = check_header(&header, self.port)?;
        let record = header.record_bytes();
        if record > bytes.len() {
            return Err(beyond(record));
        }
        let payload = &rest[..header.payload_bytes.get() as usize];
        check_payload(&header, decoded.kind, [payload, &[]])?;
        let (progress, hole) = self.progress.after(&header, decoded.kind)?;
        if hole {
            let (gap, payload) = missing(&self.progress, &header, decoded.kind);
            let decoded = check_header(&gap, self.port)?;
            self.hold(gap, decoded, payload.as_bytes().to_vec(), true);
        }
        self.hold(header, decoded, payload.to_vec(), false);
        self.progress = progress;
        Ok(record)
    }

    fn hold(&mut self, header: EntryHeader, decoded: Decoded, payload: Vec<u8>, made_by_driver: bool) {
        self.held_bytes += header.record_bytes();
        self.held.push_back(Held { header, decoded, payload, made_by_driver });
    }

    /// The checked records that aren't consumed yet.
    pub fn records(&self) -> impl ExactSizeIterator<Item = Record<'_>> {
        self.held.iter().map(|held| Record {
            header: &held.header,
            kind: held.decoded.kind,
            encoding: held.decoded.encoding,
            updated: held.decoded.updated,
            payload: &held.payload,
            made_by_driver: held.made_by_driver,
        })
    }

    /// Bytes of those.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Forgets the first `records` of them.
    ///
    /// # Panics
    /// There are fewer.
    pub fn consume(&mut self, records: usize) {
        assert!(records <= self.held.len(), "{records} records of {}", self.held.len());
        let gone = self.held.drain(..records).map(|held| held.header.record_bytes());
        self.held_bytes -= gone.sum::<usize>();
    }
}
