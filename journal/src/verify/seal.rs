//! The seal of a segment: index, copy of the tables, digest.

use super::batch::{is_entry, Parts};
use super::front::Front;
use super::source::{see, zero, Source};
use super::{tables, Report};
use crate::error::Error;
use layout::crc::crc32c;
use layout::entry::{flags, EntryHeader, Kind, Updated};
use layout::journal_file::{
    magic, role, BatchHeader, IndexRow, NoteRow, SealHeader, SegmentHeader, BLOCK_BYTES, PAYLOAD_ALIGN,
};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use zerocopy::{FromBytes, IntoBytes};

/// What a segment's seal has to say, gathered from its batches.
pub(super) struct Expected {
    header: SegmentHeader,
    hasher: Sha256,
    rows: Vec<(IndexRow, u64)>,
    by_number: HashMap<(u16, u64), usize>,
    notes: Vec<NoteRow>,
    /// Number and place of each entry, for those that end unsettled.
    entry_places: Vec<(EntryHeader, u64)>,
    batches: u64,
    entries: u64,
    last_crc: u32,
    stamps: Option<(u64, u64)>,
    /// A batch of it is damaged: index and digest can't be held against it.
    pub incomplete: bool,
}

impl Expected {
    pub fn new(header: SegmentHeader, header_block: &[u8]) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(header.previous_digest);
        hasher.update(header_block);
        Self {
            header,
            hasher,
            rows: Vec::new(),
            by_number: HashMap::new(),
            notes: Vec::new(),
            entry_places: Vec::new(),
            batches: 0,
            entries: 0,
            last_crc: header.previous_batch_crc.get(),
            stamps: None,
            incomplete: false,
        }
    }

    /// Adds a batch that begins `at` bytes from the segment's start.
    pub fn batch(&mut self, at: u64, header: &BatchHeader, parts: &Parts, front: &Front) {
        self.hasher.update(&parts.head);
        self.batches += 1;
        self.last_crc = header.prefix.crc.get();
        let mut order = header.first_order.get();
        for ((record, kind, _), (payload, descriptor)) in parts.records.iter().zip(&parts.places) {
            let arbiter = front.tables.ports.get(&record.port).copied().unwrap_or(0);
            let stamp = record.timestamp.get();
            self.stamps = Some(self.stamps.map_or((stamp, stamp), |(a, b)| (a.min(stamp), b.max(stamp))));
            if !is_entry(*kind) {
                self.note(record, *kind, at + descriptor, arbiter);
                continue;
            }
            self.entry(record, order, at + payload, arbiter);
            self.entry_places.push((*record, at + descriptor));
            // Entries of a merged portion take no order of their own.
            order += u64::from(header.portion == 0);
        }
    }

    fn entry(&mut self, d: &EntryHeader, order: u64, payload: u64, arbiter: u16) {
        let updated = d.updated().map_or(0, |updated| updated as u8);
        let kept = if self.is_merged() { flags::NO_IMAGE } else { flags::DUPLICATE | flags::ROLLBACK };
        let row = IndexRow {
            lba: d.lba,
            sectors: d.sectors,
            timestamp: d.timestamp,
            order: (order.wrapping_sub(self.header.first_order.get()) as u32).into(),
            payload: ((payload / PAYLOAD_ALIGN as u64) as u32).into(),
            volume: d.volume,
            flags: (d.flags.get() & kept).into(),
            kind: d.kind,
            status: 2 | updated << 4,
            port: d.port,
            encoding: d.encoding,
        };
        self.by_number.insert((arbiter, d.number.get()), self.rows.len());
        self.rows.push((row, order));
        self.entries += 1;
    }

    fn is_merged(&self) -> bool {
        self.header.role == role::MERGED
    }

    fn note(&mut self, d: &EntryHeader, kind: Kind, place: u64, arbiter: u16) {
        // In a merged portion nothing is named by its number.
        let answer = kind == Kind::Completion && !self.is_merged();
        let here = self.by_number.get(&(arbiter, d.number.get())).filter(|_| answer);
        if let Some((row, _)) = here.and_then(|index| self.rows.get_mut(*index)) {
            if d.flags.get() & flags::LATE != 0 {
                row.flags = (row.flags.get() | flags::LATE).into();
            } else {
                row.status = 2 | (d.updated().unwrap_or(Updated::Unknown) as u8) << 4;
            }
            return;
        }
        self.notes.push(NoteRow {
            number: d.number,
            timestamp: d.timestamp,
            descriptor: (place as u32).into(),
            flags: d.flags,
            kind: d.kind,
            port: d.port,
            status: d.status,
            span: span(d, kind),
        });
    }

    /// The notes, those of entries without a settled answer among them, in journal order.
    fn all_notes(&self) -> Vec<NoteRow> {
        let mut notes = self.notes.clone();
        for ((row, _), (header, place)) in self.rows.iter().zip(&self.entry_places) {
            let open = matches!(Updated::from_byte(row.status >> 4), Ok(Updated::Pending | Updated::Unknown));
            // In a merged portion no answer is still to come.
            if open && row.kind != Kind::Resync as u8 && !self.is_merged() {
                notes.push(NoteRow {
                    number: header.number,
                    timestamp: header.timestamp,
                    descriptor: (*place as u32).into(),
                    flags: header.flags,
                    kind: header.kind,
                    port: header.port,
                    status: row.status,
                    span: [0; 7],
                });
            }
        }
        notes.sort_by_key(|note| note.descriptor.get());
        notes
    }

    fn index(&mut self) -> Vec<u8> {
        // Before the rows are sorted: they go with `entry_places` by position.
        let notes = self.all_notes();
        self.rows.sort_by_key(|(row, order)| {
            let mut lba = [0; 8];
            lba[..6].copy_from_slice(&row.lba);
            (row.volume.get(), u64::from_le_bytes(lba), *order)
        });
        let mut bytes: Vec<u8> = self.rows.iter().flat_map(|(row, _)| row.as_bytes().to_vec()).collect();
        bytes.extend(notes.iter().flat_map(|row| row.as_bytes().to_vec()));
        bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        bytes
    }
}

/// Of a window: its length. A window that ends before it begins is told elsewhere.
fn span(d: &EntryHeader, kind: Kind) -> [u8; 7] {
    let mut span = [0; 7];
    if kind == Kind::Merged {
        let length = d.timestamp.get().saturating_sub(d.sequence.get());
        span.copy_from_slice(&length.to_le_bytes()[..7]);
    }
    span
}

/// The copy of the tables that lies before a seal, if it is whole.
pub(super) fn tables_copy(
    source: &Source<'_>,
    front: &Front,
    seal: &SealHeader,
) -> Result<Option<tables::Tables>, Error> {
    let (from, bytes) = (u64::from(seal.tables_offset.get()), u64::from(seal.tables_bytes.get()));
    if from + bytes > front.segment_bytes() || bytes > front.superblock.table_bytes.get() {
        return Ok(None);
    }
    let copy = source.read(front.segment_offset(seal.slot.get()) + from, bytes as usize)?;
    Ok(tables::check(&copy, front.superblock.journal_id).ok().map(|(_, tables)| tables))
}

/// The intact seal of a segment, if there is one.
pub(super) fn find(source: &Source<'_>, front: &Front, slot: u32) -> Result<Option<SealHeader>, Error> {
    let block =
        source.read(front.segment_offset(slot) + front.segment_bytes() - BLOCK_BYTES as u64, BLOCK_BYTES)?;
    if see(&block, magic::SEAL).fault().is_some() {
        return Ok(None);
    }
    let seal = SealHeader::read_from_prefix(&block).ok().filter(|(_, rest)| zero(rest)).map(|(seal, _)| seal);
    Ok(seal.filter(|seal| seal.journal_id == front.superblock.journal_id && seal.slot.get() == slot))
}

/// Do the index and the copy of the tables that lie before a seal belong to it?
pub(super) fn is_whole(source: &Source<'_>, front: &Front, seal: &SealHeader) -> Result<bool, Error> {
    let (index, tables) = (u64::from(seal.index_offset.get()), u64::from(seal.tables_offset.get()));
    let end = tables + u64::from(seal.tables_bytes.get());
    if index > tables || end > front.segment_bytes() {
        return Ok(false);
    }
    let body = source.read(front.segment_offset(seal.slot.get()) + index, (end - index) as usize)?;
    let (index, copy) = body.split_at((tables - index) as usize);
    Ok(crc32c(index) == seal.index_crc.get() && tables::check(copy, front.superblock.journal_id).is_ok())
}

/// Checks a seal and what lies before it. `end`: from the segment's start to the end of its batches.
pub(super) fn check(
    source: &Source<'_>,
    front: &Front,
    seal: &SealHeader,
    expected: &mut Expected,
    end: u64,
    report: &mut Report,
) -> Result<(), Error> {
    let segment = front.segment_offset(seal.slot.get());
    let place = segment + front.segment_bytes() - BLOCK_BYTES as u64;
    let mut wrong =
        |at: u64, what: &str| report.finding(at, format!("seal of segment {}: {what}", seal.sequence));
    let (index, tables) = (u64::from(seal.index_offset.get()), u64::from(seal.tables_offset.get()));
    let tables_bytes = u64::from(seal.tables_bytes.get());
    let limit = front.segment_bytes() - BLOCK_BYTES as u64;
    if index > tables || tables + tables_bytes > limit || tables_bytes > front.superblock.table_bytes.get() {
        wrong(place, "its places make no sense");
        return Ok(());
    }
    let body = source.read(segment + index, (tables + tables_bytes - index) as usize)?;
    let (index_bytes, tables_copy) = body.split_at((tables - index) as usize);
    if crc32c(index_bytes) != seal.index_crc.get() {
        wrong(segment + index, "the CRC of the index is wrong");
    }
    if let Err(what) = tables::check(tables_copy, front.superblock.journal_id) {
        wrong(segment + tables, &format!("copy of the tables: {what}"));
    }
    let header = &expected.header;
    let fixed = seal.portion == header.portion
        && seal.role == header.role
        && seal.reserved.get() == 0
        && seal.sequence == header.sequence
        && seal.first_batch == header.first_batch
        && seal.first_order == header.first_order
        && seal.previous_digest == header.previous_digest
        && seal.session.get() >= header.session.get()
        && u64::from(seal.batches_end.get()) == end
        && index == end;
    if !fixed {
        wrong(place, "it doesn't fit the segment's header or batches");
    }
    if !expected.incomplete {
        let stamps = expected.stamps.unwrap_or((0, 0));
        let counts = seal.batches.get() == expected.batches
            && seal.entries.get() == expected.entries
            && seal.last_batch_crc.get() == expected.last_crc
            && seal.index_rows.get() as usize == expected.rows.len()
            && seal.note_rows.get() as usize == expected.all_notes().len()
            && (seal.first_timestamp.get(), seal.last_timestamp.get()) == stamps;
        if !counts {
            wrong(place, "its counts are not those of the batches");
        }
        if expected.index() != index_bytes {
            wrong(segment + index, "the index is not that of the batches");
        }
        expected.hasher.update(&body);
        let digest: [u8; 32] = expected.hasher.clone().finalize().into();
        if digest != seal.digest {
            wrong(place, "its digest is wrong");
        }
    }
    report.bytes_checked += body.len() as u64 + BLOCK_BYTES as u64;
    Ok(())
}
