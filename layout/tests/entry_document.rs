//! `docs/formats.md` says of every field, kind and flag of an entry what `layout` says.

use layout::entry::{flags, EntryHeader, Gap, Kind, Resize, Rollback};
use std::mem::{offset_of, size_of};

const DOCUMENT: &str = include_str!("../../docs/formats.md");

/// The cells of the table's rows after `mark`, up to the empty line.
fn rows(mark: &str) -> Vec<Vec<&'static str>> {
    let (_, after) = DOCUMENT.split_once(mark).unwrap_or_else(|| panic!("no {mark:?} in the document"));
    after
        .lines()
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .skip(1 + usize::from(mark.starts_with('<')))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

fn bytes_of<S, F>(_: fn(&S) -> &F) -> usize {
    size_of::<F>()
}

macro_rules! check {
    ($name:ident { $($field:ident),+ $(,)? }) => {
        let expected = vec![$([
            offset_of!($name, $field).to_string(),
            bytes_of::<$name, _>(|s| &s.$field).to_string(),
            stringify!($field).to_owned(),
        ]),+];
        let found: Vec<_> = rows(concat!("<!-- fields: ", stringify!($name), " -->"))
            .iter()
            .map(|row| [row[0], row[1], row[2]].map(str::to_owned))
            .collect();
        assert_eq!(found, expected, stringify!($name));
        assert!(DOCUMENT.contains(&format!("{}: {} bytes.", stringify!($name), size_of::<$name>())));
    };
}

#[test]
fn the_document_has_every_field_kind_and_flag() {
    check!(EntryHeader {
        magic,
        version,
        kind,
        flags,
        encoding,
        status,
        timestamp,
        number,
        sequence,
        lba,
        sectors,
        port,
        slot,
        clock_error,
        answer_status,
        answer_error,
        volume,
        source,
        reserved,
        payload_bytes,
        payload_crc,
        header_crc,
    });
    check!(Gap { from_timestamp, from_number, reason, reserved });
    check!(Resize { before, after });
    check!(Rollback { target_order, target_timestamp, before_order, last_order });
    let kinds: Vec<_> =
        rows("| kind | name | payload |").iter().map(|row| (row[0].to_owned(), row[1])).collect();
    let expected: Vec<_> = Kind::ALL.iter().map(|kind| ((*kind as u8).to_string(), kind.name())).collect();
    assert_eq!(kinds, expected);
    let found: Vec<_> =
        rows("| flag | name | meaning |").iter().map(|row| (row[0].to_owned(), row[1])).collect();
    let expected: Vec<_> = flags::NAMES.iter().map(|(bit, name)| (format!("{bit:#06x}"), *name)).collect();
    assert_eq!(found, expected);
}
