//! Volumes, ports and sources: what doesn't fit an entry's header and is named there by index.

use crate::error::Error;
use crate::schedule::{Level, Schedule};
use layout::crc;
use layout::journal_file::{
    magic, port_kind, section, source_kind, volume_kind, BookmarkRow, ImageRow, PortRow, Prefix, ScheduleRow,
    SectionHeader, SourceRow, TablesHeader, VolumeRow, BLOCK_BYTES, BOOKMARK_NAME_BYTES, NAME_BYTES,
    PREFIX_CRC_OFFSET, VERSION,
};
use std::mem::size_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// How a volume is addressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// AoE shelf and slot.
    Aoe {
        /// Shelf.
        shelf: u16,
        /// Slot.
        slot: u8,
    },
    /// Name of an NBD export.
    Nbd(String),
}

impl Address {
    /// As it is printed: `shelf.slot`, or the export's name.
    pub fn name(&self) -> String {
        match self {
            Address::Aoe { shelf, slot } => format!("{shelf}.{slot}"),
            Address::Nbd(name) => name.clone(),
        }
    }
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Index in entries.
    pub index: u16,
    /// How it is addressed.
    pub address: Address,
    /// Its size in sectors.
    pub sectors: u64,
    /// Bytes of a sector: 512 with AoE.
    pub sector_bytes: u32,
    /// Bits of [`layout::journal_file::technique`].
    pub technique: u8,
    /// The arbiter that admits its writes.
    pub arbiter: u16,
    /// Identity of the base; zero: none is known.
    pub base_id: [u8; 16],
    /// The base holds every entry up to this order, stamped so; zero: it is from before the first.
    pub base: (u64, u64),
    /// The base may hold entries up to this order, stamped so: moments before it can't be made from it.
    pub rolling: (u64, u64),
    /// Entries that were rolled into the base though nobody knows whether the target executed them.
    pub base_doubtful: u64,
    /// Primary was made durable up to this order, stamped so.
    pub primary: (u64, u64),
}

impl Volume {
    /// An AoE volume with after-images, whose base is from before the first write.
    pub fn aoe(index: u16, shelf: u16, slot: u8, sectors: u64) -> Self {
        Self {
            index,
            address: Address::Aoe { shelf, slot },
            sectors,
            sector_bytes: layout::SECTOR_BYTES as u32,
            technique: layout::journal_file::technique::AFTER,
            arbiter: 0,
            base_id: [0; 16],
            base: (0, 0),
            rolling: (0, 0),
            base_doubtful: 0,
            primary: (0, 0),
        }
    }

    /// As it is printed and asked for.
    pub fn name(&self) -> String {
        self.address.name()
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.sectors.saturating_mul(u64::from(self.sector_bytes))
    }
}

/// What makes a port's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// A port of a card.
    Card,
    /// A software port.
    Software,
}

/// A port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Index in entries.
    pub port: u8,
    /// What makes its entries.
    pub kind: PortKind,
    /// The arbiter that numbers its entries.
    pub arbiter: u16,
    /// A name for people, up to 56 bytes.
    pub name: String,
}

/// Who a source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceIdentity {
    /// A MAC address.
    Mac([u8; 6]),
    /// A number given by a software port.
    Number(u64),
}

/// A source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Port.
    pub port: u8,
    /// Index in the port's entries.
    pub index: u16,
    /// Who it is.
    pub identity: SourceIdentity,
    /// First order number that can be this source's; [`crate::Journal::note_source`] sets it.
    pub since_order: u64,
}

/// A named moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bookmark {
    /// Name, up to 64 bytes.
    pub name: String,
    /// The moment is just after the entry with this order; 0: before the first.
    pub order: u64,
    /// Stamp of that entry, ns.
    pub timestamp: u64,
    /// When it was made, by the host's clock, ns since the Unix epoch.
    pub created: u64,
}

/// A named image: a moment of a volume that merging keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedImage {
    /// Name, up to 64 bytes.
    pub name: String,
    /// Index of the volume.
    pub volume: u16,
    /// The moment is just after the entry with this order; 0: before the first.
    pub order: u64,
    /// Stamp of that entry, ns.
    pub timestamp: u64,
    /// When it was made, by the host's clock, ns since the Unix epoch.
    pub created: u64,
}

/// The tables of a journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Volumes, by index.
    pub volumes: Vec<Volume>,
    /// Ports.
    pub ports: Vec<Port>,
    /// Sources, in the order in which they were noted.
    pub sources: Vec<Source>,
    /// Bookmarks, in the order in which they were made.
    pub bookmarks: Vec<Bookmark>,
    /// When what is merged.
    pub schedule: Schedule,
    /// Named images, in the order in which they were made.
    pub images: Vec<NamedImage>,
}

impl Tables {
    /// The bookmark of that name.
    pub fn bookmark(&self, name: &str) -> Result<&Bookmark, Error> {
        let known = self.bookmarks.iter().map(|bookmark| bookmark.name.as_str());
        self.bookmarks
            .iter()
            .find(|bookmark| bookmark.name == name)
            .ok_or_else(|| unnamed("bookmark", name, known))
    }

    /// The named image of that name.
    pub fn image(&self, name: &str) -> Result<&NamedImage, Error> {
        let known = self.images.iter().map(|image| image.name.as_str());
        self.images.iter().find(|image| image.name == name).ok_or_else(|| unnamed("image", name, known))
    }

    /// The volume of that name.
    pub fn volume(&self, name: &str) -> Result<&Volume, Error> {
        self.volumes.iter().find(|volume| volume.name() == name).ok_or_else(|| Error::NoVolume {
            name: name.to_owned(),
            known: match self.volumes.len() {
                0 => "none".to_owned(),
                _ => self.volumes.iter().map(Volume::name).collect::<Vec<_>>().join(", "),
            },
        })
    }

    /// The volume that an entry names.
    pub fn volume_at(&self, index: u16) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.index == index)
    }

    /// The source that an entry with this order number names.
    pub fn source_at(&self, port: u8, index: u16, order: u64) -> Option<&Source> {
        self.sources
            .iter()
            .filter(|source| source.port == port && source.index == index && source.since_order <= order)
            .max_by_key(|source| source.since_order)
    }

    /// The tables as they stand in the file: a multiple of [`BLOCK_BYTES`].
    pub(crate) fn encode(&self, journal_id: [u8; 16], generation: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; size_of::<TablesHeader>()];
        let volumes = self.volumes.iter().map(volume_row).collect::<Result<Vec<_>, _>>()?;
        let ports = self.ports.iter().map(port_row).collect::<Result<Vec<_>, _>>()?;
        let sources: Vec<_> = self.sources.iter().map(source_row).collect();
        push_section(&mut bytes, section::VOLUMES, &volumes);
        push_section(&mut bytes, section::PORTS, &ports);
        push_section(&mut bytes, section::SOURCES, &sources);
        let bookmarks = self.bookmarks.iter().map(bookmark_row).collect::<Result<Vec<_>, _>>()?;
        push_section(&mut bytes, section::BOOKMARKS, &bookmarks);
        let levels: Vec<_> = self.schedule.levels().iter().map(level_row).collect();
        push_section(&mut bytes, section::SCHEDULE, &levels);
        let images = self.images.iter().map(image_row).collect::<Result<Vec<_>, _>>()?;
        push_section(&mut bytes, section::IMAGES, &images);
        bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        let header = TablesHeader {
            prefix: Prefix { magic: magic::TABLES, version: VERSION.into(), crc: 0.into() },
            journal_id,
            generation: generation.into(),
            bytes: (bytes.len() as u32).into(),
            sections: 6.into(),
        };
        bytes[..size_of::<TablesHeader>()].copy_from_slice(header.as_bytes());
        let sum = crc::crc32c(&bytes);
        bytes[PREFIX_CRC_OFFSET..PREFIX_CRC_OFFSET + 4].copy_from_slice(&sum.to_le_bytes());
        Ok(bytes)
    }

    /// Reads tables; the CRC has to be checked before. What is wrong, if they make no sense.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let (header, mut rest) =
            TablesHeader::ref_from_prefix(bytes).map_err(|_| "shorter than a header".to_owned())?;
        let mut tables = Tables::default();
        for _ in 0..header.sections.get() {
            let (head, after) =
                SectionHeader::ref_from_prefix(rest).map_err(|_| "a section runs over the end".to_owned())?;
            let length = u64::from(head.row_bytes.get()) * u64::from(head.rows.get());
            let length = usize::try_from(length).ok().filter(|length| *length <= after.len());
            let (rows, next) = after.split_at(length.ok_or("a section runs over the end")?);
            match head.kind.get() {
                section::VOLUMES => tables.volumes = decode_rows(rows, head, volume_of)?,
                section::PORTS => tables.ports = decode_rows(rows, head, port_of)?,
                section::SOURCES => tables.sources = decode_rows(rows, head, source_of)?,
                section::BOOKMARKS => tables.bookmarks = decode_rows(rows, head, bookmark_of)?,
                section::SCHEDULE => {
                    let levels = decode_rows(rows, head, |row: &ScheduleRow| Ok(level_of(row)))?;
                    tables.schedule = Schedule::new(levels)?;
                }
                section::IMAGES => tables.images = decode_rows(rows, head, image_of)?,
                // A later version's section: what this version knows is whole without it.
                _ => {}
            }
            rest = next;
        }
        Ok(tables)
    }
}

fn unnamed<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a str>) -> Error {
    let mut known: Vec<&str> = known.collect();
    if known.is_empty() {
        known.push("none");
    }
    Error::NoMoment(format!("the journal has no {what} {name}; it has {}", known.join(", ")))
}

fn push_section<R: IntoBytes + Immutable>(bytes: &mut Vec<u8>, kind: u32, rows: &[R]) {
    let head = SectionHeader {
        kind: kind.into(),
        row_bytes: (size_of::<R>() as u32).into(),
        rows: (rows.len() as u32).into(),
        reserved: 0.into(),
    };
    bytes.extend_from_slice(head.as_bytes());
    bytes.extend_from_slice(rows.as_bytes());
}

fn decode_rows<R, T>(
    bytes: &[u8],
    head: &SectionHeader,
    decode: impl Fn(&R) -> Result<T, String>,
) -> Result<Vec<T>, String>
where
    R: FromBytes + KnownLayout + Immutable + Unaligned,
{
    // Rows may grow at their end in a later version.
    let row_bytes = head.row_bytes.get() as usize;
    if row_bytes < size_of::<R>() {
        return Err(format!("rows of section {} have {row_bytes} bytes", head.kind));
    }
    bytes
        .chunks_exact(row_bytes)
        .map(|row| {
            let (row, _) = R::ref_from_prefix(row).map_err(|_| "a row is too short".to_owned())?;
            decode(row)
        })
        .collect()
}

fn padded<const N: usize>(what: &str, name: &str) -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    if name.len() > N || name.contains('\0') {
        return Err(Error::Invalid(format!("{what} '{name}' is longer than {N} bytes, or has a NUL in it")));
    }
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    Ok(bytes)
}

fn unpadded(bytes: &[u8]) -> Result<String, String> {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    match std::str::from_utf8(&bytes[..end]) {
        Ok(name) if bytes[end..].iter().all(|b| *b == 0) => Ok(name.to_owned()),
        _ => Err("a name is not UTF-8 padded with zeroes".into()),
    }
}

fn volume_row(volume: &Volume) -> Result<VolumeRow, Error> {
    let (kind, shelf, slot) = match &volume.address {
        Address::Aoe { shelf, slot } => (volume_kind::AOE, *shelf, *slot),
        Address::Nbd(_) => (volume_kind::NBD, 0, 0),
    };
    Ok(VolumeRow {
        name: padded::<NAME_BYTES>("the volume's name", &volume.name())?,
        index: volume.index.into(),
        kind,
        technique: volume.technique,
        shelf: shelf.into(),
        slot,
        reserved: 0,
        sector_bytes: volume.sector_bytes.into(),
        arbiter: volume.arbiter.into(),
        reserved2: 0.into(),
        sectors: volume.sectors.into(),
        base_id: volume.base_id,
        base_order: volume.base.0.into(),
        base_timestamp: volume.base.1.into(),
        primary_order: volume.primary.0.into(),
        primary_timestamp: volume.primary.1.into(),
        rolling_order: volume.rolling.0.into(),
        rolling_timestamp: volume.rolling.1.into(),
        base_doubtful: volume.base_doubtful.into(),
        reserved3: [0; 32],
    })
}

fn volume_of(row: &VolumeRow) -> Result<Volume, String> {
    let address = match row.kind {
        volume_kind::AOE => Address::Aoe { shelf: row.shelf.get(), slot: row.slot },
        volume_kind::NBD => Address::Nbd(unpadded(&row.name)?),
        other => return Err(format!("volume {} is of unknown kind {other}", row.index)),
    };
    if row.sector_bytes.get() != layout::SECTOR_BYTES as u32 {
        return Err(format!("volume {} has sectors of {} bytes", row.index, row.sector_bytes));
    }
    Ok(Volume {
        index: row.index.get(),
        address,
        sectors: row.sectors.get(),
        sector_bytes: row.sector_bytes.get(),
        technique: row.technique,
        arbiter: row.arbiter.get(),
        base_id: row.base_id,
        base: (row.base_order.get(), row.base_timestamp.get()),
        rolling: (row.rolling_order.get(), row.rolling_timestamp.get()),
        base_doubtful: row.base_doubtful.get(),
        primary: (row.primary_order.get(), row.primary_timestamp.get()),
    })
}

fn port_row(port: &Port) -> Result<PortRow, Error> {
    Ok(PortRow {
        port: port.port,
        kind: match port.kind {
            PortKind::Card => port_kind::CARD,
            PortKind::Software => port_kind::SOFTWARE,
        },
        arbiter: port.arbiter.into(),
        reserved: [0; 4],
        name: padded::<56>("the port's name", &port.name)?,
    })
}

fn port_of(row: &PortRow) -> Result<Port, String> {
    Ok(Port {
        port: row.port,
        kind: match row.kind {
            port_kind::CARD => PortKind::Card,
            port_kind::SOFTWARE => PortKind::Software,
            other => return Err(format!("port {} is of unknown kind {other}", row.port)),
        },
        arbiter: row.arbiter.get(),
        name: unpadded(&row.name)?,
    })
}

fn source_row(source: &Source) -> SourceRow {
    let (kind, identity) = match source.identity {
        SourceIdentity::Mac(m) => {
            (source_kind::MAC, u64::from_le_bytes([m[0], m[1], m[2], m[3], m[4], m[5], 0, 0]))
        }
        SourceIdentity::Number(number) => (source_kind::NUMBER, number),
    };
    SourceRow {
        port: source.port,
        kind,
        index: source.index.into(),
        reserved: 0.into(),
        identity: identity.into(),
        since_order: source.since_order.into(),
        reserved2: 0.into(),
    }
}

fn source_of(row: &SourceRow) -> Result<Source, String> {
    let identity = match row.kind {
        source_kind::MAC => {
            let b = row.identity.get().to_le_bytes();
            SourceIdentity::Mac([b[0], b[1], b[2], b[3], b[4], b[5]])
        }
        source_kind::NUMBER => SourceIdentity::Number(row.identity.get()),
        other => return Err(format!("source {} of port {} is of unknown kind {other}", row.index, row.port)),
    };
    Ok(Source { port: row.port, index: row.index.get(), identity, since_order: row.since_order.get() })
}

fn bookmark_row(bookmark: &Bookmark) -> Result<BookmarkRow, Error> {
    Ok(BookmarkRow {
        name: padded::<BOOKMARK_NAME_BYTES>("the bookmark's name", &bookmark.name)?,
        order: bookmark.order.into(),
        timestamp: bookmark.timestamp.into(),
        created: bookmark.created.into(),
        reserved: 0.into(),
    })
}

fn bookmark_of(row: &BookmarkRow) -> Result<Bookmark, String> {
    Ok(Bookmark {
        name: unpadded(&row.name)?,
        order: row.order.get(),
        timestamp: row.timestamp.get(),
        created: row.created.get(),
    })
}

fn level_row(level: &Level) -> ScheduleRow {
    ScheduleRow {
        window: level.window.into(),
        keep: level.keep.into(),
        least: level.least.into(),
        reserved: 0.into(),
    }
}

fn level_of(row: &ScheduleRow) -> Level {
    Level { window: row.window.get(), keep: row.keep.get(), least: row.least.get() }
}

fn image_row(image: &NamedImage) -> Result<ImageRow, Error> {
    Ok(ImageRow {
        name: padded::<BOOKMARK_NAME_BYTES>("the image's name", &image.name)?,
        volume: image.volume.into(),
        reserved: [0; 6],
        order: image.order.into(),
        timestamp: image.timestamp.into(),
        created: image.created.into(),
    })
}

fn image_of(row: &ImageRow) -> Result<NamedImage, String> {
    Ok(NamedImage {
        name: unpadded(&row.name)?,
        volume: row.volume.get(),
        order: row.order.get(),
        timestamp: row.timestamp.get(),
        created: row.created.get(),
    })
}
