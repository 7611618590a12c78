//! `docs/formats.md` says of every field of the journal file what `layout` says.

use layout::dirty_log::{Header as DirtyHeader, Position as DirtyPosition, Row as DirtyRow};
use layout::journal_file::*;
use std::collections::BTreeMap;

const DOCUMENT: &str = include_str!("../../docs/formats.md");

type Fields = Vec<(usize, usize, String)>;

/// The tables of the document, by the name in the comment before each.
fn documented() -> BTreeMap<String, Fields> {
    let mut tables: BTreeMap<String, Fields> = BTreeMap::new();
    let mut current = None;
    let (_, journal_part) = DOCUMENT.split_once("## The journal file").unwrap();
    for line in journal_part.lines() {
        if let Some(name) = line.strip_prefix("<!-- fields: ").and_then(|rest| rest.strip_suffix(" -->")) {
            tables.insert(name.to_owned(), Fields::new());
            current = Some(name.to_owned());
        } else if let (Some(name), Some(row)) = (&current, line.strip_prefix("| ")) {
            let cells: Vec<&str> = row.split(" | ").collect();
            if let (Ok(offset), Ok(bytes)) = (cells[0].parse(), cells[1].parse()) {
                tables.get_mut(name).unwrap().push((offset, bytes, cells[2].to_owned()));
            }
        } else if line.is_empty() {
            current = None;
        }
    }
    tables
}

fn bytes_of<S, F>(_: fn(&S) -> &F) -> usize {
    size_of::<F>()
}

macro_rules! check {
    ($tables:ident, $name:ident { $($field:ident),+ $(,)? }) => {
        let expected: Fields = vec![$((
            core::mem::offset_of!($name, $field),
            bytes_of::<$name, _>(|s| &s.$field),
            stringify!($field).to_owned(),
        )),+];
        // Nothing of the struct is left out.
        assert_eq!(expected.iter().map(|field| field.1).sum::<usize>(), size_of::<$name>(), stringify!($name));
        assert_eq!($tables.remove(stringify!($name)), Some(expected), stringify!($name));
        assert!(DOCUMENT.contains(&format!("{}: {} bytes.", stringify!($name), size_of::<$name>())));
    };
}

#[test]
fn the_document_has_every_field_where_it_is() {
    let mut tables = documented();
    check!(tables, Prefix { magic, version, crc });
    check!(
        tables,
        Portion { role, level, reserved, window, first_sequence, end_sequence, from_order, after_timestamp }
    );
    check!(
        tables,
        Superblock {
            prefix,
            generation,
            journal_id,
            created,
            features_read,
            features_write,
            file_bytes,
            table_bytes,
            segments_offset,
            segment_bytes,
            segment_count,
            reserved_completions,
            reserved_merge,
            reserved_rollback,
            session,
            table_generation,
            portions,
        }
    );
    check!(
        tables,
        Note {
            prefix,
            journal_id,
            generation,
            session,
            batch,
            batch_offset,
            batch_crc,
            reserved,
            order,
            timestamp,
        }
    );
    check!(tables, TablesHeader { prefix, journal_id, generation, bytes, sections });
    check!(tables, SectionHeader { kind, row_bytes, rows, reserved });
    check!(
        tables,
        VolumeRow {
            name,
            index,
            kind,
            technique,
            shelf,
            slot,
            reserved,
            sector_bytes,
            arbiter,
            reserved2,
            sectors,
            base_id,
            base_order,
            base_timestamp,
            primary_order,
            primary_timestamp,
            rolling_order,
            rolling_timestamp,
            base_doubtful,
            reserved3,
        }
    );
    check!(tables, PortRow { port, kind, arbiter, reserved, name });
    check!(tables, SourceRow { port, kind, index, reserved, identity, since_order, reserved2 });
    check!(tables, BookmarkRow { name, order, timestamp, created, reserved });
    check!(tables, ScheduleRow { window, keep, least, reserved });
    check!(tables, ImageRow { name, volume, reserved, order, timestamp, created });
    check!(tables, MergedWindow { first_order, first_timestamp, last_timestamp, reserved });
    check!(
        tables,
        BaseLabel {
            prefix,
            journal_id,
            base_id,
            volume,
            sectors,
            order,
            timestamp,
            rolling_order,
            rolling_timestamp,
            created,
        }
    );
    check!(
        tables,
        SegmentHeader {
            prefix,
            journal_id,
            slot,
            portion,
            role,
            reserved,
            sequence,
            session,
            segment_bytes,
            first_batch,
            first_order,
            durable_up_to,
            previous_batch_crc,
            reserved2,
            previous_digest,
        }
    );
    check!(
        tables,
        BatchHeader {
            prefix,
            journal_id,
            session,
            sequence,
            segment_sequence,
            durable_up_to,
            first_order,
            first_timestamp,
            last_timestamp,
            written,
            previous_crc,
            flags,
            head_crc,
            head_bytes,
            batch_bytes,
            descriptors,
            entries,
            ports,
            block_crcs,
            portion,
            reserved,
            reserved2,
        }
    );
    check!(
        tables,
        SessionStart {
            opened,
            tai_minus_utc,
            previous_end,
            previous_session,
            continues_after,
            cut_bytes,
            writer,
            reserved,
        }
    );
    check!(
        tables,
        PortState { port, flags, arbiter, reserved, delivered, last_timestamp, last_number, last_sequence }
    );
    check!(
        tables,
        SealHeader {
            prefix,
            journal_id,
            slot,
            portion,
            role,
            reserved,
            sequence,
            session,
            first_batch,
            batches,
            last_batch_crc,
            batches_end,
            first_order,
            entries,
            first_timestamp,
            last_timestamp,
            index_offset,
            index_rows,
            note_rows,
            tables_offset,
            tables_bytes,
            index_crc,
            previous_digest,
            digest,
        }
    );
    check!(
        tables,
        IndexRow { lba, sectors, timestamp, order, payload, volume, flags, kind, status, port, encoding }
    );
    check!(tables, NoteRow { number, timestamp, descriptor, flags, kind, port, status, span });
    check!(tables, DirtyHeader { prefix, journal_id, generation, boot_id, flags, rows, bytes, reserved });
    check!(tables, DirtyPosition { session, number });
    check!(tables, DirtyRow { volume, region_shift, reserved, regions });
    assert!(tables.is_empty(), "the document describes what doesn't exist: {:?}", tables.keys());
}

#[test]
fn the_document_has_the_places_and_magics() {
    for (which, offset) in SUPERBLOCK_OFFSETS.iter().enumerate() {
        let copy = ["first", "second"][which];
        assert!(DOCUMENT.contains(&format!("| {offset} | superblock, {copy} copy | {BLOCK_BYTES} |")));
    }
    for (which, offset) in NOTE_OFFSETS.iter().enumerate() {
        let parity = ["even", "odd"][which];
        assert!(DOCUMENT
            .contains(&format!("| {offset} | durability note, {parity} generations | {BLOCK_BYTES} |")));
    }
    assert!(DOCUMENT.contains(&format!("| {TABLES_OFFSET} | tables, first copy |")));
    for magic in [
        magic::SUPERBLOCK,
        magic::NOTE,
        magic::TABLES,
        magic::SEGMENT,
        magic::BATCH,
        magic::SEAL,
        magic::BASE,
        layout::dirty_log::MAGIC,
    ] {
        let text = String::from_utf8(magic.to_vec()).unwrap();
        assert!(DOCUMENT.contains(&format!("Magic `{text}`")), "{text}");
    }
}
