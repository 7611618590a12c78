//! Superblock, durability notes and tables: each copy by itself, and all with each other.

use super::source::{see, zero, Seen, Source};
use super::Report;
use crate::error::Error;
use layout::journal_file::{
    magic, port_kind, role, section, source_kind, volume_kind, BookmarkRow, Note, PortRow, SectionHeader,
    SourceRow, Superblock, TablesHeader, VolumeRow, BLOCK_BYTES, MAXIMUM_SEGMENT_BYTES, MINIMUM_SEGMENTS,
    MINIMUM_SEGMENT_BYTES, NOTE_OFFSETS, SUPERBLOCK_OFFSETS, TABLES_OFFSET,
};
use std::collections::BTreeMap;
use std::mem::size_of;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// What the rest of the verification has to know of the front.
pub(super) struct Front {
    pub superblock: Superblock,
    /// The intact notes.
    pub notes: Vec<Note>,
    pub note_damaged: bool,
    /// Arbiter by port.
    pub ports: BTreeMap<u8, u16>,
    /// Volume indexes.
    pub volumes: Vec<u16>,
}

impl Front {
    pub fn segment_offset(&self, slot: u32) -> u64 {
        self.superblock.segments_offset.get() + u64::from(slot) * self.superblock.segment_bytes.get()
    }

    pub fn segment_bytes(&self) -> u64 {
        self.superblock.segment_bytes.get()
    }

    /// The last batch that a note says was durable.
    pub fn durable_batch(&self) -> u64 {
        self.notes.iter().map(|note| note.batch.get()).max().unwrap_or(0)
    }
}

/// `None`: nothing more can be verified; the findings say why.
pub(super) fn check(source: &Source<'_>, report: &mut Report) -> Result<Option<Front>, Error> {
    let length = source.length()?;
    if length < TABLES_OFFSET {
        let reason = format!("it has {length} bytes, less than a superblock");
        return Err(Error::Foreign { file: source.name().into(), reason });
    }
    let Some(superblock) = superblocks(source, report)? else {
        return Ok(None);
    };
    if let Some(what) = senseless(&superblock) {
        report.finding(SUPERBLOCK_OFFSETS[0], format!("superblock: {what}"));
        return Ok(None);
    }
    if length < superblock.file_bytes.get() {
        return Err(Error::Truncated {
            file: source.name().into(),
            expected: superblock.file_bytes.get(),
            actual: length,
        });
    }
    let damaged_before = report.findings.len();
    let notes = notes(source, &superblock, report)?;
    let note_damaged = report.findings.len() > damaged_before;
    let (ports, volumes) = tables(source, &superblock, report)?;
    Ok(Some(Front { superblock, notes, note_damaged, ports, volumes }))
}

fn superblocks(source: &Source<'_>, report: &mut Report) -> Result<Option<Superblock>, Error> {
    let mut intact: Vec<(u64, Superblock)> = Vec::new();
    let mut seen = Vec::new();
    for offset in SUPERBLOCK_OFFSETS {
        let block = source.read(offset, BLOCK_BYTES)?;
        let what = see(&block, magic::SUPERBLOCK);
        report.bytes_checked += BLOCK_BYTES as u64;
        if let (Seen::Intact, Ok((superblock, rest))) = (&what, Superblock::read_from_prefix(&block)) {
            if !zero(rest) {
                report.finding(offset, "superblock: the rest of its block is not zero");
            }
            intact.push((offset, superblock));
        }
        seen.push((offset, what));
    }
    if intact.is_empty() {
        if seen.iter().all(|(_, what)| *what == Seen::NoMagic) {
            let reason = "neither superblock's magic is there (or its making was interrupted)".into();
            return Err(Error::Foreign { file: source.name().into(), reason });
        }
        for (_, what) in &seen {
            if let Seen::OtherVersion(version) = what {
                let what = format!("journal of version {version}");
                return Err(Error::Version { file: source.name().into(), what });
            }
        }
    }
    for (offset, what) in &seen {
        if let Some(fault) = what.fault() {
            report.finding(*offset, format!("superblock: {fault}"));
        }
    }
    if let [(_, first), (offset, second)] = &intact[..] {
        let (a, b) = (first.generation.get(), second.generation.get());
        // The first copy is written first: it may be one ahead after a crash, and nothing else.
        if a != b && a != b.wrapping_add(1) {
            report.finding(*offset, format!("superblock: generations {a} and {b}"));
        } else if a == b && first != second {
            report.finding(*offset, "superblock: its copies differ");
        }
    }
    let best = intact.into_iter().map(|(_, superblock)| superblock).max_by_key(|s| s.generation.get());
    if let Some(best) = &best {
        if best.features_read.get() != 0 {
            let what = format!("journal with features {:#x}", best.features_read);
            return Err(Error::Version { file: source.name().into(), what });
        }
    }
    Ok(best)
}

/// What can't be in a superblock.
fn senseless(s: &Superblock) -> Option<String> {
    let (segment, count, table) = (s.segment_bytes.get(), s.segment_count.get(), s.table_bytes.get());
    let received = &s.portions[0];
    let rules = [
        (segment.is_power_of_two(), "segments are no power of two"),
        ((MINIMUM_SEGMENT_BYTES..=MAXIMUM_SEGMENT_BYTES).contains(&segment), "size of a segment"),
        (count >= MINIMUM_SEGMENTS, "too few segments"),
        (
            table >= BLOCK_BYTES as u64 && table % BLOCK_BYTES as u64 == 0 && table <= segment / 4,
            "size of the tables",
        ),
        (s.segments_offset.get() == TABLES_OFFSET + 2 * table.min(1 << 40), "place of the segments"),
        (
            u128::from(s.file_bytes.get())
                == u128::from(s.segments_offset.get()) + u128::from(segment) * u128::from(count),
            "size of the file",
        ),
        (received.role == role::RECEIVED && received.first_sequence.get() > 0, "received portion"),
        (s.journal_id != [0; 16], "identity"),
    ];
    rules
        .iter()
        .find(|(holds, _)| !holds)
        .map(|(_, what)| format!("its CRC is right and this makes no sense: {what}"))
}

fn notes(source: &Source<'_>, superblock: &Superblock, report: &mut Report) -> Result<Vec<Note>, Error> {
    let mut intact: Vec<Note> = Vec::new();
    for (place, offset) in NOTE_OFFSETS.into_iter().enumerate() {
        let block = source.read(offset, BLOCK_BYTES)?;
        report.bytes_checked += BLOCK_BYTES as u64;
        if let Some(fault) = see(&block, magic::NOTE).fault() {
            report.finding(offset, format!("durability note: {fault}"));
            continue;
        }
        let Ok((note, rest)) = Note::read_from_prefix(&block) else { continue };
        if !zero(rest) || note.reserved.get() != 0 {
            report.finding(offset, "durability note: the rest of its block is not zero");
        }
        if note.journal_id != superblock.journal_id {
            report.finding(offset, "durability note: of another journal");
        } else if note.generation.get() % 2 != place as u64 {
            report.finding(offset, "durability note: in the other's place");
        } else {
            intact.push(note);
        }
    }
    if let [a, b] = &intact[..] {
        let (older, newer) = if a.generation.get() < b.generation.get() { (a, b) } else { (b, a) };
        if newer.generation.get() - older.generation.get() != 1 || newer.batch.get() < older.batch.get() {
            report.finding(NOTE_OFFSETS[1], "durability notes: one doesn't follow the other");
        }
    }
    Ok(intact)
}

type PortsAndVolumes = (BTreeMap<u8, u16>, Vec<u16>);

fn tables(
    source: &Source<'_>,
    superblock: &Superblock,
    report: &mut Report,
) -> Result<PortsAndVolumes, Error> {
    let mut best: Option<(u64, PortsAndVolumes)> = None;
    let mut contents: Vec<Vec<u8>> = Vec::new();
    for copy in 0..2 {
        let offset = TABLES_OFFSET + copy * superblock.table_bytes.get();
        let first = source.read(offset, BLOCK_BYTES)?;
        let bytes = match TablesHeader::read_from_prefix(&first) {
            Ok((header, _)) => u64::from(header.bytes.get()),
            Err(_) => 0,
        };
        if bytes == 0 || bytes % BLOCK_BYTES as u64 != 0 || bytes > superblock.table_bytes.get() {
            report.finding(offset, format!("tables: they say they have {bytes} bytes"));
            continue;
        }
        let all = source.read(offset, bytes as usize)?;
        report.bytes_checked += bytes;
        match check_tables(&all, superblock.journal_id) {
            Err(what) => report.finding(offset, format!("tables: {what}")),
            Ok((generation, parsed)) => {
                if best.as_ref().is_none_or(|(known, _)| generation > *known) {
                    best = Some((generation, parsed));
                }
                contents.push(all);
            }
        }
    }
    if let [a, b] = &contents[..] {
        let generation =
            |bytes: &[u8]| TablesHeader::read_from_prefix(bytes).map_or(0, |(h, _)| h.generation.get());
        let (x, y) = (generation(a), generation(b));
        if (x != y && x != y.wrapping_add(1)) || (x == y && a != b) {
            report.finding(TABLES_OFFSET, format!("tables: their copies differ (generations {x} and {y})"));
        }
    }
    let (generation, parsed) = best.unwrap_or_default();
    if generation < superblock.table_generation.get() {
        let known = superblock.table_generation;
        report.finding(
            TABLES_OFFSET,
            format!("tables: of generation {generation}, and the superblock knows {known}"),
        );
    }
    Ok(parsed)
}

/// Checks a copy of the tables. Its generation, and what the entries refer to.
pub(super) fn check_tables(bytes: &[u8], journal_id: [u8; 16]) -> Result<(u64, PortsAndVolumes), String> {
    if let Some(fault) = see(bytes, magic::TABLES).fault() {
        return Err(fault);
    }
    let (header, mut rest) = TablesHeader::read_from_prefix(bytes).map_err(|_| "too short".to_owned())?;
    if header.journal_id != journal_id {
        return Err("of another journal".into());
    }
    if header.bytes.get() as usize != bytes.len() {
        return Err(format!("they say they have {} bytes", header.bytes));
    }
    let mut parsed = PortsAndVolumes::default();
    for _ in 0..header.sections.get() {
        let (head, after) =
            SectionHeader::read_from_prefix(rest).map_err(|_| "a section runs over the end".to_owned())?;
        let size = head.row_bytes.get() as usize;
        let end = size.checked_mul(head.rows.get() as usize).filter(|end| *end <= after.len());
        let (rows, next) = after.split_at(end.ok_or("a section runs over the end")?);
        check_section(&head, rows, &mut parsed)?;
        rest = next;
    }
    if !zero(rest) {
        return Err("their padding is not zero".into());
    }
    Ok((header.generation.get(), parsed))
}

fn rows<R: FromBytes + KnownLayout + Immutable + Unaligned>(
    head: &SectionHeader,
    bytes: &[u8],
) -> Result<Vec<R>, String> {
    let size = head.row_bytes.get() as usize;
    if size < size_of::<R>() {
        return Err(format!("rows of section {} have {size} bytes", head.kind));
    }
    let parse =
        |row| R::read_from_prefix(row).map(|(row, _)| row).map_err(|_| "a row is too short".to_owned());
    bytes.chunks_exact(size).map(parse).collect()
}

fn check_section(head: &SectionHeader, bytes: &[u8], parsed: &mut PortsAndVolumes) -> Result<(), String> {
    match head.kind.get() {
        section::VOLUMES => {
            for row in rows::<VolumeRow>(head, bytes)? {
                if ![volume_kind::AOE, volume_kind::NBD].contains(&row.kind)
                    || parsed.1.contains(&row.index.get())
                {
                    return Err(format!("volume {}: unknown kind, or there twice", row.index));
                }
                parsed.1.push(row.index.get());
            }
        }
        section::PORTS => {
            for row in rows::<PortRow>(head, bytes)? {
                let known = [port_kind::CARD, port_kind::SOFTWARE].contains(&row.kind);
                if !known || parsed.0.insert(row.port, row.arbiter.get()).is_some() {
                    return Err(format!("port {}: unknown kind, or there twice", row.port));
                }
            }
        }
        section::SOURCES => {
            for row in rows::<SourceRow>(head, bytes)? {
                if ![source_kind::MAC, source_kind::NUMBER].contains(&row.kind) {
                    return Err(format!("source {} of port {}: unknown kind", row.index, row.port));
                }
            }
        }
        section::BOOKMARKS => {
            let mut names = Vec::new();
            for row in rows::<BookmarkRow>(head, bytes)? {
                let end = row.name.iter().position(|byte| *byte == 0).unwrap_or(row.name.len());
                let sound =
                    end > 0 && zero(&row.name[end..]) && std::str::from_utf8(&row.name[..end]).is_ok();
                if !sound || names.contains(&row.name) {
                    return Err("a bookmark's name is no text, or there twice".into());
                }
                names.push(row.name);
            }
        }
        _ => {}
    }
    Ok(())
}
