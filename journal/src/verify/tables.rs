//! A copy of the tables: every section and row by itself, and with each other.

use super::source::{see, zero};
use layout::journal_file::{
    magic, port_kind, section, source_kind, technique, volume_kind, BookmarkRow, ImageRow, PortRow,
    ScheduleRow, SectionHeader, SourceRow, TablesHeader, VolumeRow, PORTIONS,
};
use std::collections::BTreeMap;
use std::mem::size_of;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// What the rest of the verification has to know of the tables.
#[derive(Clone, Default)]
pub(super) struct Tables {
    /// Arbiter by port.
    pub ports: BTreeMap<u8, u16>,
    /// By index in entries.
    pub volumes: BTreeMap<u16, VolumeRow>,
    /// Lengths of windows in the schedule of merging, by level; the first is zero.
    pub windows: Vec<u64>,
    /// Stamps of moments that have a name: windows may end there.
    pub named: Vec<u64>,
    /// Volumes that images name.
    image_volumes: Vec<u16>,
}

/// Checks a copy of the tables. Its generation, and what is in it.
pub(super) fn check(bytes: &[u8], journal_id: [u8; 16]) -> Result<(u64, Tables), String> {
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
    let mut tables = Tables::default();
    for _ in 0..header.sections.get() {
        let (head, after) =
            SectionHeader::read_from_prefix(rest).map_err(|_| "a section runs over the end".to_owned())?;
        let size = head.row_bytes.get() as usize;
        let end = size.checked_mul(head.rows.get() as usize).filter(|end| *end <= after.len());
        let (bytes, next) = after.split_at(end.ok_or("a section runs over the end")?);
        tables.section(&head, bytes)?;
        rest = next;
    }
    if !zero(rest) {
        return Err("their padding is not zero".into());
    }
    // Only now: sections may come in any order.
    if let Some(volume) = tables.image_volumes.iter().find(|volume| !tables.volumes.contains_key(volume)) {
        return Err(format!("an image of volume {volume}, which is not in the table"));
    }
    Ok((header.generation.get(), tables))
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

/// Is it text, padded with zeroes?
fn is_text(name: &[u8], may_be_empty: bool) -> bool {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    (end > 0 || may_be_empty) && zero(&name[end..]) && std::str::from_utf8(&name[..end]).is_ok()
}

impl Tables {
    fn section(&mut self, head: &SectionHeader, bytes: &[u8]) -> Result<(), String> {
        if head.reserved.get() != 0 {
            return Err(format!("the head of section {} has reserved bytes that are not zero", head.kind));
        }
        match head.kind.get() {
            section::VOLUMES => rows::<VolumeRow>(head, bytes)?.into_iter().try_for_each(|r| self.volume(r)),
            section::PORTS => rows::<PortRow>(head, bytes)?.into_iter().try_for_each(|row| {
                let known = [port_kind::CARD, port_kind::SOFTWARE].contains(&row.kind);
                match !known || self.ports.insert(row.port, row.arbiter.get()).is_some() {
                    true => Err(format!("port {}: unknown kind, or there twice", row.port)),
                    false => Ok(()),
                }
            }),
            section::SOURCES => rows::<SourceRow>(head, bytes)?.into_iter().try_for_each(|row| {
                match [source_kind::MAC, source_kind::NUMBER].contains(&row.kind) {
                    true => Ok(()),
                    false => Err(format!("source {} of port {}: unknown kind", row.index, row.port)),
                }
            }),
            section::BOOKMARKS => self.bookmarks(rows(head, bytes)?),
            section::SCHEDULE => self.schedule(&rows::<ScheduleRow>(head, bytes)?),
            section::IMAGES => self.images(rows(head, bytes)?),
            _ => Ok(()),
        }
    }

    fn volume(&mut self, row: VolumeRow) -> Result<(), String> {
        let index = row.index.get();
        if ![volume_kind::AOE, volume_kind::NBD].contains(&row.kind) || self.volumes.contains_key(&index) {
            return Err(format!("volume {index}: unknown kind, or there twice"));
        }
        let rules = [
            (
                row.reserved == 0 && row.reserved2.get() == 0 && zero(&row.reserved3),
                "reserved bytes that are not zero",
            ),
            (row.technique & !(technique::AFTER | technique::BEFORE) == 0, "an unknown technique"),
            // A volume that is addressed otherwise needs no name.
            (is_text(&row.name, true), "a name that is no text"),
            (
                row.rolling_order.get() >= row.base_order.get()
                    && row.rolling_timestamp.get() >= row.base_timestamp.get(),
                "a base that holds more than it may hold",
            ),
        ];
        if let Some((_, what)) = rules.iter().find(|(holds, _)| !holds) {
            return Err(format!("volume {index}: {what}"));
        }
        self.volumes.insert(index, row);
        Ok(())
    }

    fn bookmarks(&mut self, rows: Vec<BookmarkRow>) -> Result<(), String> {
        let mut names = Vec::new();
        for row in rows {
            if !is_text(&row.name, false) || names.contains(&row.name) || row.reserved.get() != 0 {
                return Err("a bookmark's name is no text, or there twice".into());
            }
            names.push(row.name);
            self.named.push(row.timestamp.get());
        }
        Ok(())
    }

    fn schedule(&mut self, rows: &[ScheduleRow]) -> Result<(), String> {
        let mut before: Option<&ScheduleRow> = None;
        for row in rows {
            let (window, keep, least) = (row.window.get(), row.keep.get(), row.least.get());
            let follows = before.map_or(window == 0, |finer| {
                window > finer.window.get()
                    && (finer.window.get() == 0 || window.is_multiple_of(finer.window.get()))
                    && keep > finer.keep.get()
                    && least >= finer.least.get()
            });
            // An index has seven bytes for a window's length.
            if !follows || least > keep || window >= 1 << 56 || row.reserved.get() != 0 {
                return Err(format!(
                    "the schedule of merging: its row of windows of {window} ns makes no sense"
                ));
            }
            before = Some(row);
        }
        if rows.len() > PORTIONS {
            return Err(format!("the schedule of merging has {} rows", rows.len()));
        }
        self.windows = rows.iter().map(|row| row.window.get()).collect();
        Ok(())
    }

    fn images(&mut self, rows: Vec<ImageRow>) -> Result<(), String> {
        let mut names = Vec::new();
        for row in rows {
            if !is_text(&row.name, false) || names.contains(&row.name) || row.reserved != [0; 6] {
                return Err("an image's name is no text, or there twice".into());
            }
            names.push(row.name);
            self.named.push(row.timestamp.get());
            self.image_volumes.push(row.volume.get());
        }
        Ok(())
    }
}
