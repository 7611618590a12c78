//! Which segment of the file belongs to which portion.

use super::front::Front;
use super::source::{see, zero, Source};
use super::{seal, Report};
use crate::error::Error;
use layout::journal_file::{
    magic, role, BatchHeader, SegmentHeader, BATCH_HEADER_BYTES, BLOCK_BYTES, PORTIONS,
};
use std::collections::BTreeMap;
use zerocopy::FromBytes;

/// A segment of a portion.
pub(super) struct Segment {
    pub slot: u32,
    /// `None`: damaged; its seal or first batch tell what it is.
    pub header: Option<(SegmentHeader, Vec<u8>)>,
}

/// The segments of a portion by their sequence.
pub(super) type Segments = BTreeMap<u64, Segment>;

/// The segments of each portion. Whatever else is in the file is free.
pub(super) fn find(
    source: &Source<'_>,
    front: &Front,
    report: &mut Report,
) -> Result<[Segments; PORTIONS], Error> {
    let mut portions: [Segments; PORTIONS] = Default::default();
    let mut unknown = Vec::new();
    for slot in 0..front.superblock.segment_count.get() {
        let offset = front.segment_offset(slot);
        let block = source.read(offset, BLOCK_BYTES)?;
        if see(&block, magic::SEGMENT).fault().is_some() {
            unknown.push(slot);
            continue;
        }
        let Ok((header, rest)) = SegmentHeader::read_from_prefix(&block) else { continue };
        let ours = header.journal_id == front.superblock.journal_id && header.slot.get() == slot;
        let (portion, sequence) = (header.portion, header.sequence.get());
        if !ours || !belongs(front, portion, header.role, sequence) {
            continue;
        }
        let sound = zero(rest)
            && header.segment_bytes.get() == front.segment_bytes()
            && header.reserved.get() == 0
            && header.reserved2.get() == 0;
        if !sound {
            report.finding(offset, format!("header of segment {sequence}: it makes no sense"));
        }
        let segments = &mut portions[usize::from(portion)];
        if let Some(other) = segments.insert(sequence, Segment { slot, header: Some((header, block)) }) {
            let of = of_portion(usize::from(portion));
            let what = format!("segment {sequence}{of} is there twice, also in slot {}", other.slot);
            report.finding(offset, what);
        }
    }
    for slot in unknown {
        let Some((portion, sequence)) = told_by_content(source, front, slot)? else { continue };
        let role = if portion == 0 { role::RECEIVED } else { role::MERGED };
        if belongs(front, portion, role, sequence) {
            let segments = &mut portions[usize::from(portion)];
            segments.entry(sequence).or_insert(Segment { slot, header: None });
        }
    }
    Ok(portions)
}

/// For messages: which portion, where it isn't the received one.
pub(super) fn of_portion(index: usize) -> String {
    match index {
        0 => String::new(),
        index => format!(" of portion {index}"),
    }
}

fn belongs(front: &Front, portion: u8, segment_role: u8, sequence: u64) -> bool {
    let Some(known) = front.superblock.portions.get(usize::from(portion)) else { return false };
    let (first, end) = (known.first_sequence.get(), known.end_sequence.get());
    let expected = if portion == 0 { role::RECEIVED } else { role::MERGED };
    known.role == expected
        && segment_role == expected
        && sequence >= first
        // The received portion's end is found by following its chain.
        && (portion == 0 || sequence < end)
}

/// What a slot holds whose header is damaged: portion and sequence.
fn told_by_content(source: &Source<'_>, front: &Front, slot: u32) -> Result<Option<(u8, u64)>, Error> {
    if let Some(seal) = seal::find(source, front, slot)? {
        return Ok(Some((seal.portion, seal.sequence.get())));
    }
    let bytes = source.read(front.segment_offset(slot) + BLOCK_BYTES as u64, BATCH_HEADER_BYTES)?;
    let header =
        BatchHeader::read_from_bytes(&bytes).ok().filter(|_| see(&bytes, magic::BATCH).fault().is_none());
    let ours = header.filter(|header| header.journal_id == front.superblock.journal_id);
    Ok(ours.map(|header| (header.portion, header.segment_sequence.get())))
}
