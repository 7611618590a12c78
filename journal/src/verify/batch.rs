//! One batch: every byte of it.

use super::source::{see, zero, Seen, Source};
use crate::error::Error;
use layout::crc::crc32c;
use layout::entry::{flags, Encoding, EntryHeader, Kind, Resize, Rollback, MAGIC, VERSION};
use layout::journal_file::{
    batch_flags, magic, BatchHeader, MergedWindow, PortState, SessionStart, BATCH_HEADER_BYTES, BLOCK_BYTES,
    CRC_BLOCK_BYTES, MAXIMUM_DESCRIPTORS, MAXIMUM_PAYLOAD_BYTES, MAXIMUM_PORTS, PAYLOAD_ALIGN,
};
use layout::SECTOR_BYTES;
use std::mem::size_of;
use zerocopy::byteorder::little_endian::U32;
use zerocopy::FromBytes;

/// What stands at a place where a batch could begin.
pub(super) enum Place {
    /// A header that is intact and of this segment.
    Header(Box<BatchHeader>),
    /// Something that looks like a header and isn't intact; its sequence as it stands there.
    Broken(String, u64),
    /// Nothing that belongs here.
    Other,
}

/// What a batch has to belong to.
#[derive(Clone, Copy)]
pub(super) struct Owner {
    pub journal_id: [u8; 16],
    pub portion: u8,
    /// Sequence of the segment.
    pub segment: u64,
    /// The session that took the segment into use; what is older is of an earlier use.
    pub since: u64,
}

/// Looks at the start of a block, of which `room` bytes are left for batches.
pub(super) fn look(block: &[u8], owner: Owner, room: u64) -> Place {
    let Some(bytes) = block.get(..BATCH_HEADER_BYTES) else { return Place::Other };
    let Ok(header) = BatchHeader::read_from_bytes(bytes) else { return Place::Other };
    let seen = see(bytes, magic::BATCH);
    match seen {
        Seen::NoMagic => return Place::Other,
        Seen::Intact => {}
        _ => return Place::Broken(seen.fault().unwrap_or_default(), header.sequence.get()),
    }
    let elsewhere = header.segment_sequence.get() != owner.segment || header.portion != owner.portion;
    if header.journal_id != owner.journal_id || elsewhere || header.session.get() < owner.since {
        return Place::Other;
    }
    let (head, all) = (u64::from(header.head_bytes.get()), u64::from(header.batch_bytes.get()));
    let sane = all <= room
        && head <= all
        && head >= BATCH_HEADER_BYTES as u64
        && head % PAYLOAD_ALIGN as u64 == 0
        && all % BLOCK_BYTES as u64 == 0
        && header.descriptors.get() as usize <= MAXIMUM_DESCRIPTORS
        && header.ports.get() as usize <= MAXIMUM_PORTS
        && (1..1 << 62).contains(&header.sequence.get())
        // In a merged portion gaps and markers may stand before the first order.
        && (u64::from(owner.portion == 0)..1 << 62).contains(&header.first_order.get());
    if !sane {
        return Place::Broken("its CRC is right and its sizes make no sense".into(), header.sequence.get());
    }
    Place::Header(Box::new(header))
}

/// Of the payloads that speak of the journal none is longer.
const LARGEST_KEPT: usize = 64;

/// Does it say what was written?
pub(super) fn is_entry(kind: Kind) -> bool {
    matches!(kind, Kind::After | Kind::Before | Kind::Both | Kind::Resync)
}

/// A batch, taken apart.
pub(super) struct Parts {
    pub start: Option<SessionStart>,
    pub ports: Vec<PortState>,
    /// Descriptor, kind, and payload where it is short and speaks of the journal (gaps, markers, windows).
    pub records: Vec<(EntryHeader, Kind, Vec<u8>)>,
    /// Place of each record's payload and descriptor, from the batch's start.
    pub places: Vec<(u64, u64)>,
    /// The first `head_bytes`.
    pub head: Vec<u8>,
    /// What is wrong: place from the batch's start, and what.
    pub faults: Vec<(u64, String)>,
    pub payload_bytes: u64,
}

/// Reads a batch and checks it by itself. `Err(text)`: its head is damaged.
pub(super) fn take_apart(
    source: &Source<'_>,
    offset: u64,
    header: &BatchHeader,
) -> Result<Result<Parts, String>, Error> {
    let bytes = source.read(offset, header.batch_bytes.get() as usize)?;
    Ok(parse(&bytes, header))
}

fn parse(bytes: &[u8], header: &BatchHeader) -> Result<Parts, String> {
    let (head, payloads) = bytes.split_at(header.head_bytes.get() as usize);
    let body = &head[BATCH_HEADER_BYTES..];
    let sum = crc32c(body);
    if sum != header.head_crc.get() {
        return Err(format!("the CRC of its descriptors is {sum:08x} and should be {:08x}", header.head_crc));
    }
    let short = "its head is too short for what it says it holds".to_owned();
    let mut rest = body;
    let mut start = None;
    if header.flags.get() & batch_flags::SESSION_START != 0 {
        let (found, after) = SessionStart::read_from_prefix(rest).map_err(|_| short.clone())?;
        (start, rest) = (Some(found), after);
    }
    let mut ports = Vec::new();
    for _ in 0..header.ports.get() {
        let (state, after) = PortState::read_from_prefix(rest).map_err(|_| short.clone())?;
        ports.push(state);
        rest = after;
    }
    let mut descriptors = Vec::new();
    for _ in 0..header.descriptors.get() {
        let at = (head.len() - rest.len()) as u64;
        let (descriptor, after) = EntryHeader::read_from_prefix(rest).map_err(|_| short.clone())?;
        descriptors.push((at, descriptor));
        rest = after;
    }
    let mut sums = Vec::new();
    for _ in 0..header.block_crcs.get() {
        let (sum, after) = U32::read_from_prefix(rest).map_err(|_| short.clone())?;
        sums.push(sum.get());
        rest = after;
    }
    let mut parts = Parts {
        start,
        ports,
        records: Vec::new(),
        places: Vec::new(),
        head: head.to_vec(),
        faults: Vec::new(),
        payload_bytes: 0,
    };
    if !zero(rest) {
        parts.faults.push((BATCH_HEADER_BYTES as u64, "the padding of its head is not zero".into()));
    }
    let known = batch_flags::SESSION_START
        | batch_flags::SESSION_END
        | batch_flags::GAP_PENDING
        | batch_flags::PORTS_CLOSED;
    if !zero(&header.reserved2) || header.reserved != [0; 3] || header.flags.get() & !known != 0 {
        parts.faults.push((0, "unknown flags or reserved bytes in its header".into()));
    }
    if header.durable_up_to.get() >= header.sequence.get() {
        parts.faults.push((0, format!("it knows batch {} to be durable", header.durable_up_to)));
    }
    parts.payloads(&descriptors, &sums, payloads, header)?;
    Ok(parts)
}

impl Parts {
    fn payloads(
        &mut self,
        descriptors: &[(u64, EntryHeader)],
        sums: &[u32],
        payloads: &[u8],
        header: &BatchHeader,
    ) -> Result<(), String> {
        let base = u64::from(header.head_bytes.get());
        let (mut at, mut sums, mut entries) = (0usize, sums.iter(), 0);
        for (place, descriptor) in descriptors {
            let kind = descriptor_kind(descriptor, header.portion)
                .map_err(|what| format!("descriptor at byte {place}: {what}"))?;
            let length = descriptor.payload_bytes.get() as usize;
            let padded = length.next_multiple_of(PAYLOAD_ALIGN);
            let piece = payloads.get(at..at + padded).ok_or("its payloads run over its end")?;
            let (payload, padding) = piece.split_at(length);
            if !zero(padding) {
                self.faults
                    .push((base + (at + length) as u64, "the padding after a payload is not zero".into()));
            }
            check_payload(descriptor, kind, payload, &mut sums, base + at as u64, &mut self.faults);
            entries += u32::from(is_entry(kind));
            let kept = match kind {
                Kind::Gap | Kind::Marker | Kind::Merged if length <= LARGEST_KEPT => payload.to_vec(),
                _ => Vec::new(),
            };
            self.records.push((*descriptor, kind, kept));
            self.places.push((base + at as u64, *place));
            self.payload_bytes += length as u64;
            at += padded;
        }
        if !zero(&payloads[at..]) || payloads.len() - at >= BLOCK_BYTES {
            self.faults.push((base + at as u64, "the padding at its end is not zero, or too long".into()));
        }
        if sums.next().is_some() || entries != header.entries.get() {
            self.faults.push((0, "its counts are not those of its descriptors".into()));
        }
        Ok(())
    }
}

/// The kind of a descriptor that is sound by itself.
fn descriptor_kind(d: &EntryHeader, portion: u8) -> Result<Kind, String> {
    let sum = d.computed_crc();
    if sum != d.header_crc.get() {
        return Err(format!("its CRC is {sum:08x} and should be {:08x}", d.header_crc));
    }
    if d.magic.get() != MAGIC || d.version != VERSION || d.reserved.get() != 0 {
        return Err(format!("magic {:#x}, version {}, reserved {:#x}", d.magic, d.version, d.reserved));
    }
    let kind = Kind::from_byte(d.kind).map_err(|kind| format!("kind {kind} is unknown"))?;
    let encoding = Encoding::from_byte(d.encoding).map_err(|e| format!("encoding {e} is unknown"))?;
    if d.journaled().is_err() || d.updated().is_err() {
        return Err(format!("status {:#04x} is unknown", d.status));
    }
    let (length, sectors) = (d.payload_bytes.get() as usize, usize::from(d.sectors.get()));
    let has = |flag: u16| d.flags.get() & flag != 0;
    let expected = match (kind, encoding) {
        (Kind::Watermark | Kind::Merged, _) if portion == 0 => {
            return Err(format!("a {kind} in the received portion"))
        }
        (Kind::Watermark, _) if portion != 0 => return Err("a watermark in a merged portion".into()),
        (Kind::After | Kind::Before | Kind::Both | Kind::Resync, _)
            if portion == 0 && has(flags::NO_IMAGE) =>
        {
            return Err(format!("a {kind} without an image in the received portion"))
        }
        (Kind::After | Kind::Before | Kind::Both | Kind::Resync, Encoding::Zero) => 0,
        (Kind::Both, Encoding::Raw) => 2 * sectors * SECTOR_BYTES,
        (Kind::After | Kind::Before | Kind::Resync, Encoding::Raw) => sectors * SECTOR_BYTES,
        (Kind::Completion | Kind::Watermark, _) => 0,
        (Kind::Gap, _) => size_of::<layout::entry::Gap>(),
        (Kind::Merged, _) => size_of::<MergedWindow>(),
        (Kind::Marker, _) if has(flags::UNDO) && !has(flags::ROLLBACK) => {
            return Err("a marker of an undo, and of no rollback".into())
        }
        (Kind::Marker, _) => match (has(flags::ROLLBACK), has(flags::RESIZED)) {
            (true, true) => return Err("a marker of two things at once".into()),
            (true, false) => size_of::<Rollback>(),
            (false, true) => size_of::<Resize>(),
            (false, false) => length,
        },
    };
    if length != expected || length > MAXIMUM_PAYLOAD_BYTES {
        return Err(format!("a {kind} of {sectors} sectors with {length} bytes"));
    }
    Ok(kind)
}

fn check_payload<'a>(
    descriptor: &EntryHeader,
    kind: Kind,
    payload: &[u8],
    sums: &mut impl Iterator<Item = &'a u32>,
    at: u64,
    faults: &mut Vec<(u64, String)>,
) {
    let sum = crc32c(payload);
    let whole = sum == descriptor.payload_crc.get();
    let images = if kind == Kind::Both { 2 } else { 1 };
    let listed = images == 2 || payload.len() > CRC_BLOCK_BYTES;
    let mut located = false;
    if listed && !payload.is_empty() {
        for (index, image) in payload.chunks(payload.len() / images).enumerate() {
            for (block, bytes) in image.chunks(CRC_BLOCK_BYTES).enumerate() {
                let found = crc32c(bytes);
                let expected = sums.next().copied();
                if expected != Some(found) {
                    let place = at + (index * image.len() + block * CRC_BLOCK_BYTES) as u64;
                    faults.push((
                        place,
                        format!(
                            "the CRC of a block of the payload is {found:08x} and should be {expected:08x?}"
                        ),
                    ));
                    located = true;
                }
            }
        }
    }
    if !whole && !located {
        faults.push((
            at,
            format!("the CRC of the payload is {sum:08x} and should be {:08x}", descriptor.payload_crc),
        ));
    }
}
