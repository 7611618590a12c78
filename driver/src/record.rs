//! One record of a ring: what is checked before anything of it is used.

use layout::aoe::MAXIMUM_SECTORS;
use layout::entry::{
    Encoding, EntryHeader, Gap, GapReason, Journaled, Kind, Updated, MAGIC, NO_INDEX, VERSION,
};
use layout::registers::{SOURCES, VOLUMES};
use layout::{crc, SECTOR_BYTES};
use std::mem::size_of;
use zerocopy::FromBytes;

/// Longest payload of a record that a card writes: both images of the longest write.
pub const MAXIMUM_PAYLOAD_BYTES: usize = 2 * MAXIMUM_SECTORS * SECTOR_BYTES;

/// A checked record. Its header is a copy that nobody can change any more; its payload lies where the
/// card put it, wherever that is possible.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The header as the card wrote it. Fields named below are its fields, decoded.
    pub header: &'a EntryHeader,
    /// What the record is.
    pub kind: Kind,
    /// How the payload stands in it.
    pub encoding: Encoding,
    /// What is known of the storage.
    pub updated: Updated,
    /// The payload, without padding.
    pub payload: &'a [u8],
    /// The driver wrote this record, a gap, because the card's sequence has a hole here.
    pub made_by_driver: bool,
}

/// What is wrong with bytes that should be a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Defect {
    /// It doesn't begin with the mark of a record.
    #[error("no record begins here: its first bytes are {0:#06x}")]
    Magic(u16),
    /// A layout that this driver doesn't know.
    #[error("record version {0}, but this driver knows version {VERSION}")]
    Version(u8),
    /// The header is damaged.
    #[error("the header's CRC is {found:#010x}, but its bytes give {computed:#010x}")]
    HeaderCrc {
        /// As it stands in the header.
        found: u32,
        /// As it should be.
        computed: u32,
    },
    /// A kind without a name.
    #[error("unknown kind of record: {0}")]
    Kind(u8),
    /// A kind that only a journal has.
    #[error("a card doesn't write records of kind \"{0}\"")]
    ForeignKind(Kind),
    /// An encoding without a name.
    #[error("unknown encoding of the payload: {0}")]
    Encoding(u8),
    /// A status without a name, or one that the kind can't have.
    #[error("status byte {0:#04x} means nothing in this kind of record")]
    Status(u8),
    /// The payload isn't as long as kind, encoding and sectors demand.
    #[error("{found} bytes of payload where {expected} belong")]
    PayloadLength {
        /// As it stands in the header.
        found: u32,
        /// By kind, encoding and sectors.
        expected: usize,
    },
    /// A write of no or too many sectors.
    #[error("a write of {0} sectors; 1 to {MAXIMUM_SECTORS} are possible")]
    Sectors(u16),
    /// An index outside the card's tables.
    #[error(
        "volume index {volume}, source index {source_index}: the tables have {VOLUMES} and {SOURCES} entries"
    )]
    Index {
        /// Volume.
        volume: u16,
        /// Source.
        source_index: u16,
    },
    /// A reason without a name in a gap.
    #[error("unknown reason of a gap: {0}")]
    GapReason(u32),
    /// The record belongs to another port.
    #[error("the record says that it is of port {0}")]
    Port(u8),
    /// It ends beyond what the card announced.
    #[error("a record of {record} bytes, but only {announced} more are announced")]
    BeyondProducer {
        /// Bytes of the record.
        record: usize,
        /// Bytes up to the producer index.
        announced: usize,
    },
    /// The payload is damaged.
    #[error("the payload's CRC is {computed:#010x}, but the header says {found:#010x}")]
    PayloadCrc {
        /// As it stands in the header.
        found: u32,
        /// What the payload gives.
        computed: u32,
    },
    /// The sequence goes back.
    #[error("sequence {found} where {expected} was next: the ring goes backwards")]
    Sequence {
        /// As it stands in the header.
        found: u64,
        /// What was next.
        expected: u64,
    },
    /// A hole in the sequence that can't be one: every missing record had a stamp of its own.
    #[error("{records} records are missing, but only {stamps} stamps lie between their neighbours")]
    Hole {
        /// Records missing by the sequence.
        records: u64,
        /// Stamps that they could have had.
        stamps: u64,
    },
    /// The stamp isn't above the one before.
    #[error("stamp {found} ns is not above {last} ns, the one before")]
    Stamp {
        /// As it stands in the header.
        found: u64,
        /// Of the record before.
        last: u64,
    },
    /// The arbiter's number isn't above the one before.
    #[error("number {found}, but {last} was given before")]
    Number {
        /// As it stands in the header.
        found: u64,
        /// The last of an entry, or that a watermark told.
        last: u64,
    },
}

/// What a header means once it is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decoded {
    pub kind: Kind,
    pub encoding: Encoding,
    pub updated: Updated,
}

/// Checks everything that a header says by itself. The CRC comes before anything it protects.
pub(crate) fn check_header(header: &EntryHeader, port: usize) -> Result<Decoded, Defect> {
    if header.magic.get() != MAGIC {
        return Err(Defect::Magic(header.magic.get()));
    }
    if header.version != VERSION {
        return Err(Defect::Version(header.version));
    }
    let (found, computed) = (header.header_crc.get(), header.computed_crc());
    if found != computed {
        return Err(Defect::HeaderCrc { found, computed });
    }
    let kind = Kind::from_byte(header.kind).map_err(Defect::Kind)?;
    let encoding = Encoding::from_byte(header.encoding).map_err(Defect::Encoding)?;
    if usize::from(header.port) != port {
        return Err(Defect::Port(header.port));
    }
    let updated = check_status(header, kind)?;
    let expected = payload_bytes(header, kind, encoding)?;
    if header.payload_bytes.get() as usize != expected {
        return Err(Defect::PayloadLength { found: header.payload_bytes.get(), expected });
    }
    Ok(Decoded { kind, encoding, updated })
}

fn is_write(kind: Kind) -> bool {
    matches!(kind, Kind::After | Kind::Before | Kind::Both)
}

fn check_status(header: &EntryHeader, kind: Kind) -> Result<Updated, Defect> {
    let bad = Defect::Status(header.status);
    let journaled = header.journaled().map_err(|_| bad)?;
    let updated = header.updated().map_err(|_| bad)?;
    // What has come out of a port's ring is journaled in the port and no further.
    let possible = match kind {
        Kind::After | Kind::Before | Kind::Both => journaled == Journaled::Port,
        Kind::Completion => journaled == Journaled::Port && updated != Updated::Pending,
        _ => header.status == 0,
    };
    possible.then_some(updated).ok_or(bad)
}

/// The length that the payload must have.
fn payload_bytes(header: &EntryHeader, kind: Kind, encoding: Encoding) -> Result<usize, Defect> {
    let images = match kind {
        Kind::After | Kind::Before => 1,
        Kind::Both => 2,
        Kind::Completion | Kind::Watermark => return Ok(0),
        Kind::Gap => return Ok(size_of::<Gap>()),
        Kind::Marker | Kind::Resync | Kind::Merged => return Err(Defect::ForeignKind(kind)),
    };
    let sectors = header.sectors.get();
    if sectors == 0 || usize::from(sectors) > MAXIMUM_SECTORS {
        return Err(Defect::Sectors(sectors));
    }
    let (volume, source_index) = (header.volume.get(), header.source.get());
    let known_source = usize::from(source_index) < SOURCES || source_index == NO_INDEX;
    if usize::from(volume) >= VOLUMES || !known_source {
        return Err(Defect::Index { volume, source_index });
    }
    let bytes = match encoding {
        Encoding::Raw => images * usize::from(sectors) * SECTOR_BYTES,
        Encoding::Zero => 0,
    };
    assert!(bytes <= MAXIMUM_PAYLOAD_BYTES);
    Ok(bytes)
}

/// Checks a payload against its header; in two parts where it runs over the ring's end.
pub(crate) fn check_payload(header: &EntryHeader, kind: Kind, parts: [&[u8]; 2]) -> Result<(), Defect> {
    let (found, computed) = (header.payload_crc.get(), crc::append(crc::crc32c(parts[0]), parts[1]));
    if found != computed {
        return Err(Defect::PayloadCrc { found, computed });
    }
    if kind == Kind::Gap {
        let bytes = [parts[0], parts[1]].concat();
        if let Ok(gap) = Gap::read_from_bytes(&bytes) {
            GapReason::from_word(gap.reason.get()).map_err(Defect::GapReason)?;
        }
    }
    Ok(())
}

/// What the records of a port say one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The sequence that comes next; not known before a session's first record unless the caller
    /// knew it from the journal.
    pub next_sequence: Option<u64>,
    /// Stamp of the last record.
    pub stamp: u64,
    /// The last number that was given, as far as this port has heard.
    pub number: u64,
}

impl Progress {
    /// The progress after a record with `header`; and whether records are missing before it.
    pub fn after(&self, header: &EntryHeader, kind: Kind) -> Result<(Self, bool), Defect> {
        let found = header.sequence.get();
        let expected = self.next_sequence.unwrap_or(found);
        if found < expected {
            return Err(Defect::Sequence { found, expected });
        }
        let stamp = header.timestamp.get();
        if stamp <= self.stamp {
            return Err(Defect::Stamp { found: stamp, last: self.stamp });
        }
        let (records, stamps) = (found - expected, stamp - self.stamp - 1);
        if records > stamps {
            return Err(Defect::Hole { records, stamps });
        }
        let number = header.number.get();
        let last = self.number;
        // A completion looks back, a watermark repeats; an entry's and a gap's number are new.
        let number = match kind {
            Kind::Completion => last,
            Kind::Watermark if number >= last => number,
            Kind::Gap if number > last => number - 1,
            _ if is_write(kind) && number > last => number,
            _ => return Err(Defect::Number { found: number, last }),
        };
        let next = found.checked_add(1).ok_or(Defect::Sequence { found, expected })?;
        Ok((Self { next_sequence: Some(next), stamp, number }, records > 0))
    }
}

/// The gap that stands for the records missing between `before` and the record with `header`.
///
/// Its stamp is the last that a missing record can have; its number is the first that is known to come
/// after it, or the next one where the record doesn't tell.
pub(crate) fn missing(before: &Progress, header: &EntryHeader, kind: Kind) -> (EntryHeader, Gap) {
    let payload = Gap {
        from_timestamp: before.stamp.into(),
        from_number: before.number.into(),
        reason: (GapReason::Lost as u32).into(),
        reserved: 0.into(),
    };
    let number = match kind {
        Kind::Completion => before.number,
        Kind::Watermark => header.number.get(),
        _ => header.number.get() - 1,
    };
    let mut gap = EntryHeader::new(Kind::Gap);
    gap.port = header.port;
    gap.sequence = before.next_sequence.unwrap_or_default().into();
    gap.timestamp = (header.timestamp.get() - 1).into();
    gap.number = number.saturating_add(1).into();
    gap.seal(zerocopy::IntoBytes::as_bytes(&payload));
    (gap, payload)
}
