//! The batch that is being gathered in memory.

use crate::batch::{block_crc_count, head_bytes};
use crate::block::{self, AlignedBuffer};
use crate::error::Error;
use crate::record::{takes_order, Record};
use crate::segment::payload_crcs;
use crate::storage::{self, Storage};
use layout::crc;
use layout::entry::{EntryHeader, Kind};
use layout::journal_file::{
    BatchHeader, PortState, SessionStart, BATCH_HEADER_BYTES, BLOCK_BYTES, MAXIMUM_DESCRIPTORS, PAYLOAD_ALIGN,
};
use zerocopy::IntoBytes;

/// A batch is written when it has this much payload: large enough that head and padding don't
/// matter, small enough to stay in a core's cache between gathering and writing.
const PAYLOAD_WANTED: usize = 1 << 20;
/// Up to this much payload is copied behind the head, so that one write does; more is written from
/// where it was gathered.
const COPIED_PAYLOAD: usize = 64 * 1024;

/// See the module.
#[derive(Default)]
pub(crate) struct Gather {
    payloads: AlignedBuffer,
    descriptors: Vec<EntryHeader>,
    block_crcs: Vec<u32>,
    entries: u32,
    timestamps: Option<(u64, u64)>,
    /// Head, or head and payloads, while writing.
    out: AlignedBuffer,
}

/// What a batch says of itself beyond its records.
pub(crate) struct Frame<'a> {
    /// Everything that doesn't come from the records.
    pub header: BatchHeader,
    pub start: Option<SessionStart>,
    pub ports: &'a [PortState],
}

impl Gather {
    pub fn is_empty(&self) -> bool {
        self.descriptors.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.payloads.len() >= PAYLOAD_WANTED || self.descriptors.len() >= MAXIMUM_DESCRIPTORS
    }

    pub fn descriptors(&self) -> &[EntryHeader] {
        &self.descriptors
    }

    /// Bytes of the batch with a record of that kind and payload added, at most.
    pub fn bytes_with(&self, kind: Kind, payload_bytes: usize, ports: usize) -> u64 {
        let crcs = self.block_crcs.len() + block_crc_count(kind, payload_bytes);
        let head = head_bytes(true, ports, self.descriptors.len() + 1, crcs);
        let payloads = self.payloads.len() + payload_bytes.next_multiple_of(PAYLOAD_ALIGN);
        (head.next_multiple_of(BLOCK_BYTES) + payloads).next_multiple_of(BLOCK_BYTES) as u64
    }

    /// Copies a record in and checks its payload on the way; on a wrong CRC nothing is taken.
    pub fn push(&mut self, record: &Record<'_>, kind: Kind) -> Result<(), String> {
        let (start, crcs) = (self.payloads.len(), self.block_crcs.len());
        for part in record.payload {
            self.payloads.push(part);
        }
        let sum = payload_crcs(kind, &self.payloads.as_bytes()[start..], &mut self.block_crcs);
        if sum != record.header.payload_crc.get() {
            self.payloads.set_len(start);
            self.block_crcs.truncate(crcs);
            return Err(format!(
                "the CRC of its payload is {sum:08x} and should be {:08x}",
                record.header.payload_crc
            ));
        }
        self.payloads.pad_to(PAYLOAD_ALIGN);
        self.entries += u32::from(takes_order(kind));
        let stamp = record.header.timestamp.get();
        let first = self.timestamps.map_or(stamp, |(first, _)| first);
        self.timestamps = Some((first, stamp));
        self.descriptors.push(record.header);
        Ok(())
    }

    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// Writes the batch at `offset`. Returns its header and length of its head; see [`Gather::head`].
    pub fn write(
        &mut self,
        storage: &dyn Storage,
        offset: u64,
        frame: &Frame<'_>,
    ) -> Result<BatchHeader, Error> {
        let used = head_bytes(
            frame.start.is_some(),
            frame.ports.len(),
            self.descriptors.len(),
            self.block_crcs.len(),
        );
        let copied = self.payloads.len() <= COPIED_PAYLOAD;
        let head = used.next_multiple_of(if copied { PAYLOAD_ALIGN } else { BLOCK_BYTES });
        let total = (head + self.payloads.len()).next_multiple_of(BLOCK_BYTES);
        let header = self.header(frame, head, total);
        self.fill_head(frame, &header, head);
        let header = self.sum_head(header);
        // A crash between or within these writes leaves a batch whose CRCs don't fit: a torn tail.
        if copied {
            self.out.push(self.payloads.as_bytes());
            self.out.pad_to(BLOCK_BYTES);
            storage::write_all(storage, self.out.as_bytes(), offset)?;
        } else {
            self.payloads.pad_to(BLOCK_BYTES);
            storage::write_all(storage, self.out.as_bytes(), offset)?;
            storage::write_all(storage, self.payloads.as_bytes(), offset + head as u64)?;
            // The device works on this batch while the next is gathered.
            storage.start_writeback(offset, total as u64);
        }
        Ok(header)
    }

    /// The first `head_bytes` of the batch that was written last.
    pub fn head(&self, header: &BatchHeader) -> &[u8] {
        &self.out.as_bytes()[..header.head_bytes.get() as usize]
    }

    pub fn clear(&mut self) {
        self.payloads.clear();
        self.descriptors.clear();
        self.block_crcs.clear();
        self.entries = 0;
        self.timestamps = None;
    }

    fn header(&self, frame: &Frame<'_>, head: usize, total: usize) -> BatchHeader {
        let mut header = frame.header;
        if let Some((first, last)) = self.timestamps {
            header.first_timestamp = first.into();
            header.last_timestamp = last.into();
        }
        header.head_bytes = (head as u32).into();
        header.batch_bytes = (total as u32).into();
        header.descriptors = (self.descriptors.len() as u32).into();
        header.entries = self.entries.into();
        header.ports = (frame.ports.len() as u32).into();
        header.block_crcs = (self.block_crcs.len() as u32).into();
        header
    }

    fn fill_head(&mut self, frame: &Frame<'_>, header: &BatchHeader, head: usize) {
        self.out.clear();
        self.out.push(header.as_bytes());
        if let Some(start) = &frame.start {
            self.out.push(start.as_bytes());
        }
        self.out.push(frame.ports.as_bytes());
        self.out.push(self.descriptors.as_bytes());
        for sum in &self.block_crcs {
            self.out.push(&sum.to_le_bytes());
        }
        self.out.pad_to(PAYLOAD_ALIGN);
        if head > self.out.len() {
            self.out.pad_to(BLOCK_BYTES);
        }
        assert_eq!(self.out.len(), head);
    }

    fn sum_head(&mut self, mut header: BatchHeader) -> BatchHeader {
        header.head_crc = crc::crc32c(&self.out.as_bytes()[BATCH_HEADER_BYTES..]).into();
        let bytes = header.as_mut_bytes();
        let sum = block::put_crc(bytes);
        assert_eq!(header.prefix.crc.get(), sum);
        self.out.as_mut_bytes()[..BATCH_HEADER_BYTES].copy_from_slice(header.as_bytes());
        header
    }
}
