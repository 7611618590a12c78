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
use std::io::IoSlice;
use zerocopy::IntoBytes;

/// A batch is written when it has this much payload: large enough that head and padding don't
/// matter, small enough to stay in a core's cache between gathering and writing.
const PAYLOAD_WANTED: usize = 1 << 20;
/// So much in one call is written from where it lies.
pub(crate) const STRAIGHT_PAYLOAD: usize = 256 * 1024;
/// Up to this much payload is copied behind the head, so that one write does; more is written from
/// where it was gathered.
const COPIED_PAYLOAD: usize = 64 * 1024;

/// See the module.
#[derive(Default)]
pub(crate) struct Gather {
    payloads: AlignedBuffer,
    descriptors: Vec<EntryHeader>,
    block_crcs: Vec<u32>,
    /// Bytes of payloads that weren't copied in.
    outside: usize,
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
    /// The payloads, where they weren't copied in ([`Gather::push_outside`]).
    pub outside: &'a [&'a [u8]],
}

/// Behind the last payload, up to a block.
static PADDING: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

impl Gather {
    pub fn is_empty(&self) -> bool {
        self.descriptors.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.payload_bytes() >= PAYLOAD_WANTED || self.descriptors.len() >= MAXIMUM_DESCRIPTORS
    }

    fn payload_bytes(&self) -> usize {
        self.payloads.len() + self.outside
    }

    pub fn descriptors(&self) -> &[EntryHeader] {
        &self.descriptors
    }

    /// Bytes of the batch with a record of that kind and payload added, at most.
    pub fn bytes_with(&self, kind: Kind, payload_bytes: usize, ports: usize) -> u64 {
        let crcs = self.block_crcs.len() + block_crc_count(kind, payload_bytes);
        let head = head_bytes(true, ports, self.descriptors.len() + 1, crcs);
        let payloads = self.payload_bytes() + payload_bytes.next_multiple_of(PAYLOAD_ALIGN);
        (head.next_multiple_of(BLOCK_BYTES) + payloads).next_multiple_of(BLOCK_BYTES) as u64
    }

    /// Takes a record whose payload stays where it is until the batch is written, and checks it; on a wrong CRC nothing is
    /// taken. It lies in one piece that needs no padding, and so do all others of the batch.
    pub fn push_outside(&mut self, record: &Record<'_>, kind: Kind) -> Result<(), String> {
        let [payload, rest] = record.payload;
        assert!(rest.is_empty() && payload.len().is_multiple_of(PAYLOAD_ALIGN) && self.payloads.len() == 0);
        let crcs = self.block_crcs.len();
        let sum = payload_crcs(kind, payload, &mut self.block_crcs);
        if sum != record.header.payload_crc.get() {
            self.block_crcs.truncate(crcs);
            return Err(wrong_sum(record, sum));
        }
        self.outside += payload.len();
        self.describe(record, kind);
        Ok(())
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
            return Err(wrong_sum(record, sum));
        }
        self.payloads.pad_to(PAYLOAD_ALIGN);
        self.describe(record, kind);
        Ok(())
    }

    fn describe(&mut self, record: &Record<'_>, kind: Kind) {
        self.entries += u32::from(takes_order(kind));
        let stamp = record.header.timestamp.get();
        let first = self.timestamps.map_or(stamp, |(first, _)| first);
        self.timestamps = Some((first, stamp));
        self.descriptors.push(record.header);
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
        let outside = frame.outside.iter().map(|payload| payload.len()).sum::<usize>();
        assert_eq!(self.outside, outside, "whoever leaves payloads outside has them when they are written");
        let copied = self.payload_bytes() <= COPIED_PAYLOAD;
        let head = used.next_multiple_of(if copied { PAYLOAD_ALIGN } else { BLOCK_BYTES });
        let used = head + self.payload_bytes();
        let total = used.next_multiple_of(BLOCK_BYTES);
        let header = self.header(frame, head, total);
        self.fill_head(frame, &header, head);
        let header = self.sum_head(header);
        // A crash between or within these writes leaves a batch whose CRCs don't fit: a torn tail.
        if copied {
            self.out.push(self.payloads.as_bytes());
            frame.outside.iter().for_each(|payload| self.out.push(payload));
            self.out.pad_to(BLOCK_BYTES);
            storage::write_all(storage, self.out.as_bytes(), offset)?;
        } else if self.outside > 0 {
            let mut pieces = Vec::with_capacity(frame.outside.len() + 2);
            pieces.push(IoSlice::new(self.out.as_bytes()));
            pieces.extend(frame.outside.iter().map(|payload| IoSlice::new(payload)));
            pieces.push(IoSlice::new(&PADDING[..total - used]));
            storage::write_all_vectored(storage, &mut pieces, offset)?;
            storage.start_writeback(offset, total as u64);
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
        self.outside = 0;
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

fn wrong_sum(record: &Record<'_>, sum: u32) -> String {
    format!("the CRC of its payload is {sum:08x} and should be {:08x}", record.header.payload_crc)
}
