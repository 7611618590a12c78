//! One batch as it lies in the file: reading and checking it.

use crate::block::{self, Fault};
use crate::error::Error;
use crate::record::{takes_order, Location, StoredRecord};
use crate::storage::{self, Storage};
use layout::crc;
use layout::entry::{EntryHeader, Kind};
use layout::journal_file::{
    batch_flags, magic, BatchHeader, PortState, SessionStart, BATCH_HEADER_BYTES, BLOCK_BYTES,
    CRC_BLOCK_BYTES, MAXIMUM_DESCRIPTORS, MAXIMUM_PAYLOAD_BYTES, MAXIMUM_PORTS, PAYLOAD_ALIGN,
};
use std::mem::size_of;
use zerocopy::{FromBytes, IntoBytes};

/// Images in a payload: `both` has two.
pub(crate) fn images(kind: Kind) -> usize {
    if kind == Kind::Both {
        2
    } else {
        1
    }
}

/// CRCs that the batch's list holds for a payload: none where the descriptor's covers one block.
pub(crate) fn block_crc_count(kind: Kind, payload_bytes: usize) -> usize {
    let images = images(kind);
    if payload_bytes == 0 || (images == 1 && payload_bytes <= CRC_BLOCK_BYTES) {
        return 0;
    }
    images * (payload_bytes / images).div_ceil(CRC_BLOCK_BYTES)
}

/// The pieces of a payload that have a CRC each: where the images and their blocks begin and end.
pub(crate) fn crc_pieces(kind: Kind, payload_bytes: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let image = payload_bytes / images(kind);
    (0..images(kind)).flat_map(move |which| {
        let start = which * image;
        let end = start + image;
        (start..end).step_by(CRC_BLOCK_BYTES).map(move |at| at..(at + CRC_BLOCK_BYTES).min(end))
    })
}

/// Head of a batch, checked.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    /// Where it lies in the file.
    pub offset: u64,
    pub header: BatchHeader,
    pub start: Option<SessionStart>,
    pub ports: Vec<PortState>,
    pub descriptors: Vec<EntryHeader>,
    pub block_crcs: Vec<u32>,
    /// The head as it stands in the file, for the segment's digest.
    pub head: Vec<u8>,
}

/// What stands where a batch could begin.
#[derive(Debug)]
pub(crate) enum Found {
    /// A header whose own CRC is right, of this journal and segment.
    Header(Box<BatchHeader>),
    /// Something that was meant to be one.
    Damaged(String),
    /// An intact header of another use of this place.
    Stale,
    /// Nothing of the kind.
    Nothing,
}

/// Which use of which place a batch has to be of: places are used again, and what stood there before
/// must not be taken for what stands there now.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Use {
    pub journal_id: [u8; 16],
    pub portion: u8,
    pub segment_sequence: u64,
    /// Session that took the segment into use.
    pub session: u64,
}

/// Looks at the first bytes of a block, from which on the segment has `room`.
pub(crate) fn look(bytes: &[u8], place: &Use, room: u64) -> Found {
    let Some(bytes) = bytes.get(..BATCH_HEADER_BYTES) else {
        return Found::Nothing;
    };
    match block::check(bytes, magic::BATCH) {
        Err(Fault::Magic) => return Found::Nothing,
        Err(fault) => return Found::Damaged(format!("batch header: {fault}")),
        Ok(()) => {}
    }
    let Ok(header) = BatchHeader::read_from_bytes(bytes) else {
        return Found::Nothing;
    };
    let of_this_use = header.journal_id == place.journal_id
        && header.portion == place.portion
        && header.segment_sequence.get() == place.segment_sequence
        && header.session.get() >= place.session;
    if !of_this_use {
        return Found::Stale;
    }
    match header_makes_sense(&header, room) {
        Ok(()) => Found::Header(Box::new(header)),
        Err(what) => Found::Damaged(what),
    }
}

/// Bytes of a head that holds so much, before padding.
pub(crate) fn head_bytes(start: bool, ports: usize, descriptors: usize, block_crcs: usize) -> usize {
    BATCH_HEADER_BYTES
        + if start { size_of::<SessionStart>() } else { 0 }
        + ports * size_of::<PortState>()
        + descriptors * size_of::<EntryHeader>()
        + block_crcs * 4
}

/// Bounds everything in a header by what can be, and by the `room` that the segment has.
fn header_makes_sense(h: &BatchHeader, room: u64) -> Result<(), String> {
    let (head, batch) = (h.head_bytes.get() as usize, h.batch_bytes.get() as usize);
    let (ports, descriptors) = (h.ports.get() as usize, h.descriptors.get() as usize);
    let crcs = h.block_crcs.get() as usize;
    let count = |n: u64| n > 0 && n < 1 << 62;
    // Of a merged portion gaps and markers may come before the first entry of all: that batch names order 0.
    let order = count(h.first_order.get()) || (h.portion > 0 && h.first_order.get() == 0);
    let sane = count(h.sequence.get())
        && order
        && ports <= MAXIMUM_PORTS
        && descriptors <= MAXIMUM_DESCRIPTORS
        && h.entries.get() as usize <= descriptors
        && batch as u64 <= room
        && crcs <= batch / PAYLOAD_ALIGN
        && head <= batch
        && head.is_multiple_of(PAYLOAD_ALIGN)
        && batch.is_multiple_of(BLOCK_BYTES)
        && head_bytes(has_start(h), ports, descriptors, crcs) <= head;
    if sane {
        Ok(())
    } else {
        Err(format!("batch header: its CRC is right and its sizes make no sense ({room} bytes are left in the segment): {h:?}"))
    }
}

fn has_start(header: &BatchHeader) -> bool {
    header.flags.get() & batch_flags::SESSION_START != 0
}

impl Batch {
    /// Reads the rest of a head, whose header is known to be intact. The inner error says what is damaged.
    pub fn read(
        storage: &dyn Storage,
        offset: u64,
        header: &BatchHeader,
    ) -> Result<Result<Self, String>, Error> {
        let mut head = vec![0; header.head_bytes.get() as usize];
        storage::read_exact(storage, &mut head, offset)?;
        Ok(Self::parse(head, offset, header))
    }

    fn parse(head: Vec<u8>, offset: u64, header: &BatchHeader) -> Result<Self, String> {
        let too_short = |_| "batch: its head is too short".to_owned();
        if head[..BATCH_HEADER_BYTES] != *header.as_bytes() {
            return Err("batch header: it changed while it was read".into());
        }
        let body = &head[BATCH_HEADER_BYTES..];
        let computed = crc::crc32c(body);
        if computed != header.head_crc.get() {
            return Err(format!(
                "batch {}: the CRC of its descriptors is {computed:08x} and should be {:08x}",
                header.sequence, header.head_crc
            ));
        }
        let mut rest = body;
        let mut start = None;
        if has_start(header) {
            let (found, after) =
                SessionStart::read_from_prefix(rest).map_err(|e| too_short(e.to_string()))?;
            (start, rest) = (Some(found), after);
        }
        let (ports, rest) = <[PortState]>::ref_from_prefix_with_elems(rest, header.ports.get() as usize)
            .map_err(|e| too_short(e.to_string()))?;
        let (descriptors, rest) =
            <[EntryHeader]>::ref_from_prefix_with_elems(rest, header.descriptors.get() as usize)
                .map_err(|e| too_short(e.to_string()))?;
        let (crcs, padding) = <[zerocopy::byteorder::little_endian::U32]>::ref_from_prefix_with_elems(
            rest,
            header.block_crcs.get() as usize,
        )
        .map_err(|e| too_short(e.to_string()))?;
        if padding.iter().any(|b| *b != 0) {
            return Err(format!("batch {}: the padding of its head is not zero", header.sequence));
        }
        let batch = Self {
            offset,
            header: *header,
            start,
            ports: ports.to_vec(),
            descriptors: descriptors.to_vec(),
            block_crcs: crcs.iter().map(|crc| crc.get()).collect(),
            head: Vec::new(),
        };
        batch.check_descriptors()?;
        Ok(Self { head, ..batch })
    }

    /// The descriptors have to fit each other, the header's counts and the batch's length.
    fn check_descriptors(&self) -> Result<(), String> {
        let sequence = self.header.sequence;
        let mut payload = self.header.head_bytes.get() as u64;
        let (mut entries, mut crcs) = (0, 0);
        for (index, descriptor) in self.descriptors.iter().enumerate() {
            let wrong = |what: String| format!("batch {sequence}, descriptor {index}: {what}");
            if descriptor.header_crc.get() != descriptor.computed_crc() {
                return Err(wrong("its CRC is wrong".into()));
            }
            if descriptor.version != layout::entry::VERSION {
                return Err(wrong(format!("version {} is unknown", descriptor.version)));
            }
            let kind =
                Kind::from_byte(descriptor.kind).map_err(|kind| wrong(format!("kind {kind} is unknown")))?;
            let bytes = descriptor.payload_bytes.get() as usize;
            if bytes > MAXIMUM_PAYLOAD_BYTES || !bytes.is_multiple_of(images(kind)) {
                return Err(wrong(format!("a payload of {bytes} bytes")));
            }
            entries += u32::from(takes_order(kind));
            crcs += block_crc_count(kind, bytes);
            payload += bytes.next_multiple_of(PAYLOAD_ALIGN) as u64;
        }
        let batch_bytes = u64::from(self.header.batch_bytes.get());
        if entries != self.header.entries.get()
            || crcs != self.block_crcs.len()
            || payload.next_multiple_of(BLOCK_BYTES as u64) != batch_bytes
        {
            return Err(format!("batch {sequence}: its descriptors don't fit its header"));
        }
        Ok(())
    }

    /// Where the next batch begins.
    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.header.batch_bytes.get())
    }

    /// The records, with their orders and places.
    pub fn records(&self) -> Vec<StoredRecord> {
        let fixed = head_bytes(self.start.is_some(), self.ports.len(), 0, 0) as u64;
        let mut descriptor_at = self.offset + fixed;
        let mut crcs_at = descriptor_at + (self.descriptors.len() * size_of::<EntryHeader>()) as u64;
        let mut payload_at = self.offset + u64::from(self.header.head_bytes.get());
        let mut order = self.header.first_order.get();
        let mut records = Vec::with_capacity(self.descriptors.len());
        for header in &self.descriptors {
            // `parse` let no unknown kind through.
            let Ok(kind) = Kind::from_byte(header.kind) else { continue };
            let bytes = header.payload_bytes.get() as usize;
            let crcs = block_crc_count(kind, bytes);
            records.push(StoredRecord {
                header: *header,
                kind,
                order: takes_order(kind).then_some(order),
                session: self.header.session.get(),
                location: Location {
                    batch: self.offset,
                    descriptor: descriptor_at,
                    payload: payload_at,
                    block_crcs: if crcs > 0 { crcs_at } else { 0 },
                },
            });
            // What was merged in a window has the window's last order, all of it.
            order += u64::from(takes_order(kind) && self.header.portion == 0);
            descriptor_at += size_of::<EntryHeader>() as u64;
            crcs_at += 4 * crcs as u64;
            payload_at += bytes.next_multiple_of(PAYLOAD_ALIGN) as u64;
        }
        records
    }

    /// Reads every payload and checks it, paddings included. The inner error says where and what is damaged.
    pub fn check_payloads(&self, storage: &dyn Storage) -> Result<Result<(), (u64, String)>, Error> {
        let head = u64::from(self.header.head_bytes.get());
        let mut bytes = vec![0; (u64::from(self.header.batch_bytes.get()) - head) as usize];
        storage::read_exact(storage, &mut bytes, self.offset + head)?;
        let mut at = 0;
        let mut crcs = self.block_crcs.iter();
        for record in self.records() {
            let length = record.header.payload_bytes.get() as usize;
            let padded = length.next_multiple_of(PAYLOAD_ALIGN);
            let Some(payload) = bytes.get(at..at + padded) else {
                return Ok(Err((self.offset, "a payload runs over the batch's end".into())));
            };
            let count = block_crc_count(record.kind, length);
            let list: Vec<u32> = crcs.by_ref().take(count).copied().collect();
            if let Err(what) = check_payload(&record, &payload[..length], &list) {
                return Ok(Err((record.location.payload, what)));
            }
            if payload[length..].iter().any(|b| *b != 0) {
                return Ok(Err((record.location.payload, "the padding after a payload is not zero".into())));
            }
            at += padded;
        }
        if bytes[at..].iter().any(|b| *b != 0) {
            return Ok(Err((self.offset + head + at as u64, "the padding of the batch is not zero".into())));
        }
        Ok(Ok(()))
    }
}

/// Checks a payload by the descriptor's CRC, and by the list's where it has one.
pub(crate) fn check_payload(record: &StoredRecord, payload: &[u8], list: &[u32]) -> Result<(), String> {
    let describe = || match record.order {
        Some(order) => format!("payload of {} order:{order}", record.kind),
        None => format!("payload of a {} of port {}", record.kind, record.header.port),
    };
    for (piece, expected) in crc_pieces(record.kind, payload.len()).zip(list) {
        let computed = crc::crc32c(&payload[piece.clone()]);
        if computed != *expected {
            return Err(format!(
                "{}: the CRC of bytes {} to {} is {computed:08x} and should be {expected:08x}",
                describe(),
                piece.start,
                piece.end
            ));
        }
    }
    let computed = crc::crc32c(payload);
    if computed != record.header.payload_crc.get() {
        return Err(format!(
            "{}: its CRC is {computed:08x} and should be {:08x}",
            describe(),
            record.header.payload_crc
        ));
    }
    Ok(())
}
