//! Takes a received portion apart.

use layout::entry::{flags, EntryHeader, Kind, Updated};
use layout::journal_file::{
    BatchHeader, PortRow, PortState, SectionHeader, SegmentHeader, SessionStart, Superblock, TablesHeader,
    BATCH_HEADER_BYTES, BLOCK_BYTES, PAYLOAD_ALIGN, TABLES_OFFSET,
};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use zerocopy::FromBytes;

/// A record.
#[derive(Clone)]
pub struct Found {
    pub header: EntryHeader,
    pub kind: Kind,
    /// Of entries.
    pub order: u64,
    pub payload: Vec<u8>,
    /// Joined with the completions.
    pub updated: Updated,
}

/// A segment of the received portion.
pub struct Segment {
    pub slot: usize,
    pub sequence: u64,
    /// Largest stamp in it.
    pub last: u64,
    pub used: Vec<Range<usize>>,
}

pub struct Taken {
    pub superblock: Superblock,
    pub tables: Vec<u8>,
    /// Arbiter by port.
    pub ports: BTreeMap<u8, u16>,
    /// Delivered watermarks at the end.
    pub delivered: BTreeMap<u8, u64>,
    pub records: Vec<Found>,
    pub segments: Vec<Segment>,
    pub free: Vec<usize>,
}

pub fn read<T: FromBytes>(image: &[u8], at: usize) -> T {
    T::read_from_bytes(&image[at..at + size_of::<T>()]).unwrap_or_else(|_| panic!("sized"))
}

pub fn segment_offset(superblock: &Superblock, slot: usize) -> usize {
    (superblock.segments_offset.get() + slot as u64 * superblock.segment_bytes.get()) as usize
}

pub fn is_entry(kind: Kind) -> bool {
    matches!(kind, Kind::After | Kind::Before | Kind::Both | Kind::Resync)
}

pub fn take(image: &[u8]) -> Taken {
    let superblock: Superblock = read(image, 0);
    let header: TablesHeader = read(image, TABLES_OFFSET as usize);
    let tables = image[TABLES_OFFSET as usize..][..header.bytes.get() as usize].to_vec();
    let mut taken = Taken {
        superblock,
        ports: ports(&tables),
        tables,
        delivered: BTreeMap::new(),
        records: Vec::new(),
        segments: Vec::new(),
        free: Vec::new(),
    };
    let mut by_sequence = BTreeMap::new();
    for slot in 0..superblock.segment_count.get() as usize {
        let header: SegmentHeader = read(image, segment_offset(&superblock, slot));
        match header.role {
            1 => drop(by_sequence.insert(header.sequence.get(), slot)),
            _ => taken.free.push(slot),
        }
    }
    let mut next = 1;
    for (sequence, slot) in by_sequence {
        let start = segment_offset(&superblock, slot);
        let header = start..start + BLOCK_BYTES;
        let mut segment = Segment { slot, sequence, last: 0, used: Vec::from([header]) };
        let mut at = start + BLOCK_BYTES;
        loop {
            let header: BatchHeader = read(image, at);
            let ours = &header.prefix.magic == b"CSW-BTCH" && header.segment_sequence == sequence;
            if !ours || header.sequence.get() != next {
                break;
            }
            let bytes = header.batch_bytes.get() as usize;
            taken.batch(&image[at..at + bytes], &header);
            segment.last = header.last_timestamp.get();
            segment.used.push(at..at + bytes);
            (at, next) = (at + bytes, next + 1);
        }
        let end = start + superblock.segment_bytes.get() as usize;
        let seal: layout::journal_file::SealHeader = read(image, end - BLOCK_BYTES);
        if seal.prefix.magic == layout::journal_file::magic::SEAL && seal.sequence == sequence {
            let tables_end = (seal.tables_offset.get() + seal.tables_bytes.get()) as usize;
            segment.used.push(start + seal.index_offset.get() as usize..start + tables_end);
            segment.used.push(end - BLOCK_BYTES..end);
        }
        taken.segments.push(segment);
    }
    taken.join();
    taken
}

fn ports(tables: &[u8]) -> BTreeMap<u8, u16> {
    let header: TablesHeader = read(tables, 0);
    let mut at = size_of::<TablesHeader>();
    let mut ports = BTreeMap::new();
    for _ in 0..header.sections.get() {
        let section: SectionHeader = read(tables, at);
        at += size_of::<SectionHeader>();
        for _ in 0..section.rows.get() {
            if section.kind.get() == 2 {
                let row: PortRow = read(tables, at);
                ports.insert(row.port, row.arbiter.get());
            }
            at += section.row_bytes.get() as usize;
        }
    }
    ports
}

impl Taken {
    fn batch(&mut self, bytes: &[u8], header: &BatchHeader) {
        let mut at = BATCH_HEADER_BYTES;
        if header.flags.get() & 1 != 0 {
            at += size_of::<SessionStart>();
        }
        for _ in 0..header.ports.get() {
            let state: PortState = read(bytes, at);
            self.delivered.insert(state.port, state.delivered.get());
            at += size_of::<PortState>();
        }
        let mut payload = header.head_bytes.get() as usize;
        let mut order = header.first_order.get();
        for _ in 0..header.descriptors.get() {
            let record: EntryHeader = read(bytes, at);
            at += size_of::<EntryHeader>();
            let length = record.payload_bytes.get() as usize;
            let kind = Kind::from_byte(record.kind).unwrap();
            self.records.push(Found {
                header: record,
                kind,
                order,
                payload: bytes[payload..payload + length].to_vec(),
                updated: record.updated().unwrap(),
            });
            order += u64::from(is_entry(kind));
            payload += length.next_multiple_of(PAYLOAD_ALIGN);
        }
    }

    fn join(&mut self) {
        let mut open: HashMap<(u16, u64), usize> = HashMap::new();
        for index in 0..self.records.len() {
            let record = &self.records[index];
            let key = (self.ports[&record.header.port], record.header.number.get());
            let (kind, updated) = (record.kind, record.updated);
            let late = record.header.flags.get() & flags::LATE != 0;
            if is_entry(kind) {
                open.insert(key, index);
            } else if let (Kind::Completion, Some(entry)) = (kind, open.get(&key)) {
                self.records[*entry].updated = if late { Updated::Unknown } else { updated };
            }
        }
    }
}
