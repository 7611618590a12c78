//! Superblock, durability notes and tables: each copy by itself, and all with each other.

use super::source::{see, zero, Seen, Source};
use super::tables::{self, Tables};
use super::{portions, Report};
use crate::error::Error;
use layout::journal_file::{
    features, magic, Note, Superblock, TablesHeader, BLOCK_BYTES, MAXIMUM_SEGMENT_BYTES, MINIMUM_SEGMENTS,
    MINIMUM_SEGMENT_BYTES, NOTE_OFFSETS, SUPERBLOCK_OFFSETS, TABLES_OFFSET,
};
use zerocopy::FromBytes;

/// What the rest of the verification has to know of the front.
pub(super) struct Front {
    pub superblock: Superblock,
    /// The intact notes.
    pub notes: Vec<Note>,
    pub note_damaged: bool,
    pub tables: Tables,
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
    let tables = both_tables(source, &superblock, report)?;
    Ok(Some(Front { superblock, notes, note_damaged, tables }))
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
        let unknown = best.features_read.get() & !features::MERGED;
        if unknown != 0 {
            let what = format!("journal with features {unknown:#x}");
            return Err(Error::Version { file: source.name().into(), what });
        }
    }
    Ok(best)
}

/// What can't be in a superblock.
fn senseless(s: &Superblock) -> Option<String> {
    let (segment, count, table) = (s.segment_bytes.get(), s.segment_count.get(), s.table_bytes.get());
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
        (s.journal_id != [0; 16], "identity"),
    ];
    rules
        .iter()
        .find(|(holds, _)| !holds)
        .map(|(_, what)| (*what).to_owned())
        .or_else(|| portions::senseless(s))
        .map(|what| format!("its CRC is right and this makes no sense: {what}"))
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

fn both_tables(source: &Source<'_>, superblock: &Superblock, report: &mut Report) -> Result<Tables, Error> {
    let mut best: Option<(u64, Tables)> = None;
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
        match tables::check(&all, superblock.journal_id) {
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
