//! The segment that is being filled: its index, its digest, and its seal.

use crate::batch::{block_crc_count, head_bytes};
use crate::block::{self, Block};
use crate::record::takes_order;
use crate::walk::Place;
use layout::crc;
use layout::entry::{flags, EntryHeader, Journaled, Kind, Updated};
use layout::journal_file::{
    magic, BatchHeader, IndexRow, NoteRow, SealHeader, SegmentHeader, BLOCK_BYTES, CRC_BLOCK_BYTES,
    PAYLOAD_ALIGN,
};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::mem::size_of;
use zerocopy::IntoBytes;

/// Flags of an entry that its index row keeps: of a received one, of a merged one.
const INDEXED_FLAGS: [u16; 2] = [flags::DUPLICATE | flags::ROLLBACK, flags::NO_IMAGE];

/// A batch as the index needs it.
pub(crate) struct Indexed<'a> {
    /// From the segment's start.
    pub offset: u64,
    pub header: &'a BatchHeader,
    /// The first `head_bytes` of the batch.
    pub head: &'a [u8],
    pub starts_session: bool,
    pub descriptors: &'a [EntryHeader],
}

/// See the module.
pub(crate) struct OpenSegment {
    pub place: Place,
    header: SegmentHeader,
    /// Where the next batch goes, from the segment's start.
    pub next: u64,
    batches: u64,
    entries: u64,
    last_batch_crc: u32,
    first_timestamp: u64,
    pub last_timestamp: u64,
    rows: Vec<IndexRow>,
    notes: Vec<NoteRow>,
    /// Entries that nobody has an answer for yet, or whose answer settled nothing, by their row.
    unsettled: BTreeMap<u32, NoteRow>,
    /// Entries of this segment by arbiter and number: their index row.
    by_number: HashMap<(u16, u64), u32>,
    digest: Sha256,
}

/// A seal and what lies before it.
pub(crate) struct Seal {
    /// Index and tables, to be written where the batches end.
    pub body: Vec<u8>,
    /// For the segment's last block.
    pub block: Box<Block>,
    /// The segment's digest.
    pub digest: [u8; 32],
}

/// The header block of a new segment.
pub(crate) fn header_block(header: &SegmentHeader) -> Box<Block> {
    block::encode(header)
}

impl OpenSegment {
    /// A segment with this header and nothing in it.
    pub fn new(place: Place, header: SegmentHeader) -> Self {
        let mut digest = Sha256::new();
        digest.update(header.previous_digest);
        digest.update(header_block(&header).0);
        Self {
            place,
            header,
            next: BLOCK_BYTES as u64,
            batches: 0,
            entries: 0,
            last_batch_crc: header.previous_batch_crc.get(),
            first_timestamp: u64::MAX,
            last_timestamp: 0,
            rows: Vec::new(),
            notes: Vec::new(),
            unsettled: BTreeMap::new(),
            by_number: HashMap::new(),
            digest,
        }
    }

    pub fn first_order(&self) -> u64 {
        self.header.first_order.get()
    }

    fn is_merged(&self) -> bool {
        self.header.portion != 0
    }

    pub fn sequence(&self) -> u64 {
        self.place.sequence
    }

    /// Bytes that a seal takes, with `more` descriptors to come, its own block aside.
    pub fn seal_body_bytes(&self, more: usize, table_bytes: usize) -> u64 {
        // An entry takes a row, and a note while it is unsettled; any other record a note at most.
        let rows =
            (self.rows.len() + self.notes.len() + self.unsettled.len() + 2 * more) * size_of::<IndexRow>();
        (rows.next_multiple_of(BLOCK_BYTES) + table_bytes) as u64
    }

    /// Adds a batch that has been, or is about to be, written at [`OpenSegment::next`].
    pub fn add(&mut self, batch: &Indexed<'_>, arbiter_of: impl Fn(u8) -> u16) {
        assert_eq!(batch.offset, self.next, "batches lie back to back");
        assert_eq!(batch.head.len(), batch.header.head_bytes.get() as usize);
        self.digest.update(batch.head);
        let ports = batch.header.ports.get() as usize;
        let mut descriptor_at = batch.offset + head_bytes(batch.starts_session, ports, 0, 0) as u64;
        let mut payload_at = batch.offset + u64::from(batch.header.head_bytes.get());
        let mut order = batch.header.first_order.get();
        for descriptor in batch.descriptors {
            let Ok(kind) = Kind::from_byte(descriptor.kind) else { continue };
            if takes_order(kind) {
                self.add_entry(descriptor, order, (payload_at, descriptor_at), arbiter_of(descriptor.port));
                // What was merged in a window has the window's last order, all of it.
                order += u64::from(!self.is_merged());
            } else {
                self.add_note(descriptor, kind, descriptor_at, arbiter_of(descriptor.port));
            }
            descriptor_at += size_of::<EntryHeader>() as u64;
            payload_at += (descriptor.payload_bytes.get() as usize).next_multiple_of(PAYLOAD_ALIGN) as u64;
        }
        if !batch.descriptors.is_empty() {
            self.first_timestamp = self.first_timestamp.min(batch.header.first_timestamp.get());
            self.last_timestamp = self.last_timestamp.max(batch.header.last_timestamp.get());
        }
        self.batches += 1;
        self.entries += u64::from(batch.header.entries.get());
        self.last_batch_crc = batch.header.prefix.crc.get();
        self.next += u64::from(batch.header.batch_bytes.get());
    }

    fn add_entry(&mut self, descriptor: &EntryHeader, order: u64, at: (u64, u64), arbiter: u16) {
        let (payload_at, descriptor_at) = at;
        let updated = descriptor.updated().unwrap_or(Updated::Unknown);
        let index = self.rows.len() as u32;
        let row = IndexRow {
            lba: descriptor.lba,
            sectors: descriptor.sectors,
            timestamp: descriptor.timestamp,
            order: (order.wrapping_sub(self.header.first_order.get()) as u32).into(),
            payload: ((payload_at / PAYLOAD_ALIGN as u64) as u32).into(),
            volume: descriptor.volume,
            flags: (descriptor.flags.get() & INDEXED_FLAGS[usize::from(self.is_merged())]).into(),
            kind: descriptor.kind,
            status: status_byte(updated),
            port: descriptor.port,
            encoding: descriptor.encoding,
        };
        if self.is_merged() {
            // No answer is awaited, and nothing speaks of it by its number.
            self.rows.push(row);
            return;
        }
        // What was read back from primary awaits no answer.
        if is_unsettled(updated) && descriptor.kind != Kind::Resync as u8 {
            let status = status_byte(updated);
            self.unsettled.insert(index, NoteRow { status, ..note_row(descriptor, descriptor_at) });
        }
        self.by_number.insert((arbiter, descriptor.number.get()), index);
        self.rows.push(row);
    }

    /// Entries so far, as the index of the seal would have them, and the other records.
    pub fn into_index(mut self) -> (Vec<IndexRow>, Vec<NoteRow>) {
        self.sort();
        (self.rows, self.notes)
    }

    /// Claim 26's question is "what happened to this location since": location first, then order.
    /// Notes stay in journal order.
    fn sort(&mut self) {
        self.rows.sort_unstable_by_key(|row| (row.volume.get(), lba(row), row.order.get()));
        self.notes.extend(std::mem::take(&mut self.unsettled).into_values());
        self.notes.sort_by_key(|note| note.descriptor.get());
    }

    fn add_note(&mut self, descriptor: &EntryHeader, kind: Kind, descriptor_at: u64, arbiter: u16) {
        if kind == Kind::Completion {
            let index = self.by_number.get(&(arbiter, descriptor.number.get())).copied();
            if let Some((index, row)) = index.and_then(|i| Some((i, self.rows.get_mut(i as usize)?))) {
                // A late answer leaves the location doubtful: only the flag says that it came.
                if descriptor.flags.get() & flags::LATE != 0 {
                    row.flags = (row.flags.get() | flags::LATE).into();
                } else {
                    let updated = descriptor.updated().unwrap_or(Updated::Unknown);
                    row.status = status_byte(updated);
                    match self.unsettled.get_mut(&index) {
                        Some(note) if is_unsettled(updated) => note.status = row.status,
                        _ => drop(self.unsettled.remove(&index)),
                    }
                }
                return;
            }
        }
        let mut note = note_row(descriptor, descriptor_at);
        if kind == Kind::Merged {
            let span = descriptor.timestamp.get().saturating_sub(descriptor.sequence.get());
            note.span.copy_from_slice(&span.to_le_bytes()[..7]);
        }
        self.notes.push(note);
    }

    /// The seal, with `tables` as they stand now.
    pub fn seal(&mut self, session: u64, tables: &[u8]) -> Seal {
        self.sort();
        let mut body = self.rows.as_bytes().to_vec();
        body.extend_from_slice(self.notes.as_bytes());
        body.resize(body.len().next_multiple_of(BLOCK_BYTES), 0);
        let index_crc = crc::crc32c(&body);
        let tables_offset = self.next + body.len() as u64;
        body.extend_from_slice(tables);
        let mut hasher = self.digest.clone();
        hasher.update(&body);
        let digest: [u8; 32] = hasher.finalize().into();
        let empty = self.first_timestamp > self.last_timestamp;
        let seal = SealHeader {
            prefix: block::prefix(magic::SEAL),
            journal_id: self.header.journal_id,
            slot: self.header.slot,
            portion: self.header.portion,
            role: self.header.role,
            reserved: 0.into(),
            sequence: self.header.sequence,
            session: session.into(),
            first_batch: self.header.first_batch,
            batches: self.batches.into(),
            last_batch_crc: self.last_batch_crc.into(),
            batches_end: (self.next as u32).into(),
            first_order: self.header.first_order,
            entries: self.entries.into(),
            first_timestamp: if empty { 0 } else { self.first_timestamp }.into(),
            last_timestamp: self.last_timestamp.into(),
            index_offset: (self.next as u32).into(),
            index_rows: (self.rows.len() as u32).into(),
            note_rows: (self.notes.len() as u32).into(),
            tables_offset: (tables_offset as u32).into(),
            tables_bytes: (tables.len() as u32).into(),
            index_crc: index_crc.into(),
            previous_digest: self.header.previous_digest,
            digest,
        };
        Seal { body, block: block::encode(&seal), digest }
    }
}

/// First sector of a row.
pub(crate) fn lba(row: &IndexRow) -> u64 {
    let b = row.lba;
    u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], 0, 0])
}

/// Length of a window's note, ns.
pub(crate) fn span(note: &NoteRow) -> u64 {
    let b = note.span;
    u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], 0])
}

/// May an answer still change what is known of it?
pub(crate) fn is_unsettled(updated: Updated) -> bool {
    matches!(updated, Updated::Pending | Updated::Unknown)
}

fn note_row(descriptor: &EntryHeader, descriptor_at: u64) -> NoteRow {
    NoteRow {
        number: descriptor.number,
        timestamp: descriptor.timestamp,
        descriptor: (descriptor_at as u32).into(),
        flags: descriptor.flags,
        kind: descriptor.kind,
        port: descriptor.port,
        status: descriptor.status,
        span: [0; 7],
    }
}

fn status_byte(updated: Updated) -> u8 {
    Journaled::Durable as u8 | (updated as u8) << 4
}

/// CRCs of a payload for a batch's list, and the CRC of the whole. Whole blocks, which are nearly all, are summed once; what
/// is shorter twice, while it is in the cache: that takes a fraction of what combining two CRCs of any length does.
pub(crate) fn payload_crcs(kind: Kind, payload: &[u8], list: &mut Vec<u32>) -> u32 {
    if block_crc_count(kind, payload.len()) == 0 {
        return crc::crc32c(payload);
    }
    let mut whole = 0;
    for piece in crate::batch::crc_pieces(kind, payload.len()) {
        let bytes = &payload[piece];
        let sum = crc::crc32c(bytes);
        list.push(sum);
        whole = match bytes.len() == CRC_BLOCK_BYTES {
            true => crc::append_block(whole, sum),
            false => crc::append(whole, bytes),
        };
    }
    whole
}
