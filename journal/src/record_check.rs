//! What a record or a table has to be before the journal takes it.

use crate::batch::images;
use crate::error::Error;
use crate::record::{takes_order, Record};
use crate::tables::Volume;
use crate::writer::Journal;
use layout::entry::{Encoding, EntryHeader, Gap, Kind, MAGIC, VERSION};
use layout::SECTOR_BYTES;
use std::mem::size_of;

/// Checks everything about a record but its payload's CRC. What is wrong, if anything.
pub(crate) fn record(record: &Record<'_>, journal: &Journal) -> Result<Kind, String> {
    let header = &record.header;
    let computed = header.computed_crc();
    if header.header_crc.get() != computed {
        return Err(format!(
            "the CRC of its header is {computed:08x} and should be {:08x}",
            header.header_crc
        ));
    }
    if header.magic.get() != MAGIC || header.version != VERSION {
        return Err(format!("magic {:#06x}, version {}", header.magic, header.version));
    }
    let kind = Kind::from_byte(header.kind).map_err(|kind| format!("kind {kind} is unknown"))?;
    let given = record.payload[0].len() + record.payload[1].len();
    if given != header.payload_bytes.get() as usize {
        return Err(format!("{given} bytes of payload, and its header says {}", header.payload_bytes));
    }
    if given > journal.head.geometry.largest_payload() {
        return Err(format!(
            "{given} bytes of payload; this journal takes {}",
            journal.head.geometry.largest_payload()
        ));
    }
    payload_length(header, kind, given)?;
    place_in_time(header, kind, journal)?;
    if takes_order(kind) && journal.head.tables.volume_at(header.volume.get()).is_none() {
        return Err(format!("volume index {} is not in the journal's table", header.volume));
    }
    Ok(kind)
}

fn payload_length(header: &EntryHeader, kind: Kind, given: usize) -> Result<(), String> {
    let encoding = Encoding::from_byte(header.encoding).map_err(|e| format!("encoding {e} is unknown"))?;
    if header.journaled().is_err() || header.updated().is_err() {
        return Err(format!("status {:#04x} is unknown", header.status));
    }
    let expected = match kind {
        Kind::After | Kind::Before | Kind::Both | Kind::Resync => {
            if header.sectors.get() == 0 {
                return Err("a write of no sectors".into());
            }
            match encoding {
                Encoding::Raw => usize::from(header.sectors.get()) * SECTOR_BYTES * images(kind),
                Encoding::Zero => 0,
            }
        }
        Kind::Completion => 0,
        Kind::Gap => size_of::<Gap>(),
        Kind::Marker => return Ok(()),
        Kind::Watermark | Kind::Merged => {
            return Err(format!("a {kind} is no record of the received portion"))
        }
    };
    if given != expected {
        return Err(format!("a {kind} of {} sectors with {given} bytes of payload", header.sectors));
    }
    Ok(())
}

fn place_in_time(header: &EntryHeader, kind: Kind, journal: &Journal) -> Result<(), String> {
    let Some(port) = journal.chain.ports.get(&header.port) else {
        return Err("the port is not in the journal's table".into());
    };
    let stamp = header.timestamp.get();
    if stamp < journal.chain.timestamp {
        return Err(format!("stamp {stamp} after {} had been appended", journal.chain.timestamp));
    }
    // A gap may be stamped with the watermark that it ends at.
    if stamp < port.delivered.get() || (stamp == port.delivered.get() && kind != Kind::Gap) {
        return Err(format!("stamp {stamp} after the port's watermark {}", port.delivered));
    }
    let same_arbiter = journal.chain.ports.values().filter(|other| other.arbiter == port.arbiter);
    let last = same_arbiter.map(|other| other.last_number.get()).max().unwrap_or(0);
    if takes_order(kind) && header.number.get() <= last {
        return Err(format!("number {} after the arbiter's {last}", header.number));
    }
    Ok(())
}

/// Names, indexes and sizes of volumes have to make sense together.
pub(crate) fn volumes(volumes: &[Volume]) -> Result<(), Error> {
    for (index, volume) in volumes.iter().enumerate() {
        let name = volume.name();
        let wrong = |what: &str| Err(Error::Invalid(format!("volume {name}: {what}")));
        if volumes[..index].iter().any(|other| other.index == volume.index) {
            return wrong("its index is another's too");
        }
        if volumes[..index].iter().any(|other| other.name() == name) {
            return wrong("it is named twice");
        }
        if volume.sector_bytes as usize != SECTOR_BYTES {
            return wrong("sectors have 512 bytes");
        }
        if volume.sectors > 1 << 48 {
            return wrong("it has more sectors than 48 bits can address");
        }
        if volume.index == layout::entry::NO_INDEX || name.is_empty() {
            return wrong("it needs an index and a name");
        }
    }
    Ok(())
}
