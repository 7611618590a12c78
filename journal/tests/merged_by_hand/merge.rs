//! What is in a window, sector by sector.

use super::put::{Put, Touch};
use super::take::{is_entry, take, Found, Taken};
use super::{Merged, Plan};
use layout::entry::{flags, Encoding, EntryHeader, Gap, Kind, Resize, Updated};
use layout::journal_file::{MergedWindow, SUPERBLOCK_OFFSETS, TABLES_OFFSET};
use std::collections::BTreeMap;
use zerocopy::{FromBytes, IntoBytes};

/// A window.
#[derive(Clone, Debug)]
pub struct Window {
    pub portion: usize,
    pub begin: u64,
    pub end: u64,
    pub first_order: u64,
    pub last_order: u64,
    pub first_timestamp: u64,
    pub last_timestamp: u64,
    pub entries: usize,
    /// Ports that are complete.
    pub valid: Vec<u8>,
}

#[derive(Clone, PartialEq)]
struct Sector {
    written: bool,
    before: Option<Vec<u8>>,
    after: Option<Vec<u8>>,
    unknown: bool,
    port: u8,
}

/// Merges. `touch` may change any structure before its CRC is made.
pub fn merge(image: &[u8], plan: &Plan, touch: &mut dyn FnMut(Touch<'_>)) -> Merged {
    let taken = take(image);
    let received_after = plan.levels.first().map_or(0, |(_, cut)| *cut);
    let mut put = Put::new(image.to_vec(), &taken, touch);
    let mut windows = Vec::new();
    // The coarsest levels hold the oldest.
    for (place, (length, until)) in plan.levels.iter().enumerate().rev() {
        let after = plan.levels.get(place + 1).map_or(0, |(_, cut)| *cut);
        let level = Level { plan, taken: &taken, portion: place + 1, length: *length, after, until: *until };
        windows.extend(level.put(&mut put));
    }
    let from_order = first_order_behind(&taken, received_after);
    put.superblock.features_read = 1.into();
    put.superblock.features_write = 1.into();
    put.superblock.generation = (put.superblock.generation.get() + 1).into();
    let received = &mut put.superblock.portions[0];
    (received.from_order, received.after_timestamp) = (from_order.into(), received_after.into());
    let gone = taken.segments.iter().take_while(|segment| segment.last <= received_after).count();
    let gone = gone.min(taken.segments.len() - 1);
    received.first_sequence = (gone as u64 + 1).into();
    put.forget(plan.forget, &mut windows, first_order_behind(&taken, plan.forget));
    for record in taken.records.iter().filter(|r| r.header.flags.get() & flags::RESIZED != 0) {
        if record.header.timestamp.get() <= plan.forget {
            let (resize, _) = Resize::read_from_prefix(&record.payload).unwrap();
            // The table says what the volume has where history begins.
            put.change_volumes(Some(record.header.volume.get()), &|row| row.sectors = resize.after);
        }
    }
    for segment in &taken.segments[gone..] {
        put.used.extend(segment.used.iter().cloned());
    }
    let table_bytes = put.superblock.table_bytes.get();
    for offset in [TABLES_OFFSET, TABLES_OFFSET + table_bytes] {
        put.used.push(offset as usize..offset as usize + taken.tables.len());
    }
    for offset in [SUPERBLOCK_OFFSETS[0], 4096, SUPERBLOCK_OFFSETS[1], 12288] {
        put.used.push(offset as usize..offset as usize + 4096);
    }
    let forgotten = windows.first().map_or(from_order, |window: &Window| window.first_order) - 1;
    let mut rolling = forgotten;
    if forgotten > 0 {
        // What was forgotten is in the base; half of the time the next window is on its way there.
        rolling =
            windows.first().filter(|_| forgotten % 2 == 0).map_or(forgotten, |window| window.last_order);
        let stamp = |order: u64| {
            let entry = taken.records.iter().find(|r| is_entry(r.kind) && r.order == order);
            entry.map_or(0.into(), |entry| entry.header.timestamp)
        };
        put.change_volumes(None, &|row| {
            row.base_id = super::world::base_id(row.index.get());
            (row.base_order, row.base_timestamp) = (forgotten.into(), stamp(forgotten));
            (row.rolling_order, row.rolling_timestamp) = (rolling.into(), stamp(rolling));
        });
    }
    let (image, used) = put.finish();
    Merged { image, windows, from_order, forgotten, rolling, used }
}

fn first_order_behind(taken: &Taken, stamp: u64) -> u64 {
    let entries = || taken.records.iter().filter(|record| is_entry(record.kind));
    let first = entries().find(|record| record.header.timestamp.get() > stamp);
    first.map_or(entries().count() as u64 + 1, |record| record.order)
}

struct Level<'a> {
    plan: &'a Plan,
    taken: &'a Taken,
    portion: usize,
    length: u64,
    after: u64,
    until: u64,
}

impl Level<'_> {
    fn put(&self, put: &mut Put<'_>) -> Vec<Window> {
        let records: Vec<&Found> = self
            .taken
            .records
            .iter()
            .filter(|r| (self.after + 1..=self.until).contains(&r.header.timestamp.get()))
            .collect();
        let mut windows = Vec::new();
        let (mut at, mut begin) = (0, self.after);
        let mut others: Vec<&Found> = Vec::new();
        let last_order = first_order_behind(self.taken, self.after) - 1;
        put.begin(self.portion, self.length, last_order, self.after);
        while at < records.len() {
            let stamp = records[at].header.timestamp.get();
            let next = stamp.next_multiple_of(self.length);
            // The nearest boundary before.
            begin = begin.max(next - self.length);
            let named = self.plan.named.iter().copied();
            begin =
                named.clone().filter(|named| *named < stamp).max().map_or(begin, |named| begin.max(named));
            let end = named.filter(|named| *named >= stamp).min().map_or(next, |named| named.min(next));
            let count = records[at..].iter().take_while(|r| r.header.timestamp.get() <= end).count();
            let (entries, outside): (Vec<_>, Vec<_>) = records[at..at + count]
                .iter()
                .filter(|r| r.kind != Kind::Completion)
                .partition(|r| is_entry(r.kind));
            others.extend(outside);
            if !entries.is_empty() {
                put.outside(&std::mem::take(&mut others), self.taken);
                windows.push(self.window(&entries, begin, end, put));
            }
            (at, begin) = (at + count, end);
        }
        put.outside(&others, self.taken);
        put.end(self.until, first_order_behind(self.taken, self.after));
        windows
    }

    fn window(&self, entries: &[&&Found], begin: u64, end: u64, put: &mut Put<'_>) -> Window {
        let (first, last) = (entries[0], entries[entries.len() - 1]);
        let stamps = MergedWindow {
            first_order: first.order.into(),
            first_timestamp: first.header.timestamp,
            last_timestamp: last.header.timestamp,
            reserved: 0.into(),
        };
        let mut record = EntryHeader::new(Kind::Merged);
        record.timestamp = end.into();
        record.number = last.order.into();
        record.sequence = begin.into();
        let merged = self.entries(entries, end, last.order);
        let valid: Vec<u8> = self
            .taken
            .ports
            .keys()
            .copied()
            .filter(|port| self.is_valid(*port, begin, end, entries))
            .collect();
        let count = merged.len();
        put.window(record, stamps, merged, &valid, self.plan.most.0, self.taken);
        Window {
            portion: self.portion,
            begin,
            end,
            first_order: first.order,
            last_order: last.order,
            first_timestamp: first.header.timestamp.get(),
            last_timestamp: last.header.timestamp.get(),
            entries: count,
            valid,
        }
    }

    fn is_valid(&self, port: u8, begin: u64, end: u64, entries: &[&&Found]) -> bool {
        let gap = |r: &&Found| {
            let from = Gap::read_from_prefix(&r.payload).map_or(0, |(gap, _)| gap.from_timestamp.get());
            r.kind == Kind::Gap && r.header.port == port && from < end && r.header.timestamp.get() > begin
        };
        let clock = flags::CLOCK_LOCKED | flags::CLOCK_HOLDOVER;
        let unlocked = |r: &&&Found| r.header.port == port && r.header.flags.get() & clock == 0;
        self.taken.delivered.get(&port).is_some_and(|delivered| *delivered >= end)
            && !self.taken.records.iter().any(|record| gap(&record))
            && !entries.iter().any(unlocked)
    }

    fn entries(&self, entries: &[&&Found], end: u64, last_order: u64) -> Vec<(EntryHeader, Vec<u8>)> {
        let mut sectors: BTreeMap<(u16, u64), Sector> = BTreeMap::new();
        for entry in entries {
            if matches!(entry.updated, Updated::Refused | Updated::Cancelled) {
                continue;
            }
            for index in 0..usize::from(entry.header.sectors.get()) {
                let place = (entry.header.volume.get(), entry.header.lba() + index as u64);
                add(&mut sectors, place, entry, index);
            }
        }
        let all: Vec<_> = sectors.into_iter().collect();
        let alike = |a: &((u16, u64), Sector), b: &((u16, u64), Sector)| {
            let shape = |s: &Sector| (s.written, s.before.is_some(), s.after.is_some(), s.unknown, s.port);
            a.0 .0 == b.0 .0 && a.0 .1 + 1 == b.0 .1 && shape(&a.1) == shape(&b.1)
        };
        let mut merged = Vec::new();
        for run in all.chunk_by(alike) {
            for run in run.chunks(self.plan.most.1 as usize) {
                merged.push(one(run, end, last_order));
            }
        }
        merged
    }
}

/// The images of one sector of an entry.
fn images(entry: &Found, index: usize) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
    let sectors = usize::from(entry.header.sectors.get());
    let of = |image: usize| match entry.header.encoding {
        0 => entry.payload[(image * sectors + index) * 512..][..512].to_vec(),
        _ => vec![0; 512],
    };
    match entry.kind {
        Kind::Before => (Some(of(0)), None),
        Kind::Both => (Some(of(0)), Some(of(1))),
        _ => (None, Some(of(0))),
    }
}

fn add(sectors: &mut BTreeMap<(u16, u64), Sector>, place: (u16, u64), entry: &Found, index: usize) {
    let (before, after) = images(entry, index);
    let write = entry.kind != Kind::Resync;
    let unknown = matches!(entry.updated, Updated::Pending | Updated::Unknown) && write;
    let port = entry.header.port;
    match sectors.get_mut(&place) {
        None => drop(sectors.insert(place, Sector { written: write, before, after, unknown, port })),
        Some(known) => {
            // The first write gives what was before.
            if write && !known.written {
                known.before = before;
            }
            known.written |= write;
            (known.after, known.unknown, known.port) = (after, unknown, port);
        }
    }
}

fn one(run: &[((u16, u64), Sector)], end: u64, last_order: u64) -> (EntryHeader, Vec<u8>) {
    let ((volume, lba), first) = &run[0];
    let kind = match (first.written, first.before.is_some(), first.after.is_some()) {
        (false, ..) => Kind::Resync,
        (_, true, true) => Kind::Both,
        (_, true, false) => Kind::Before,
        _ => Kind::After,
    };
    let befores = run.iter().filter_map(|(_, sector)| sector.before.as_ref());
    let afters = run.iter().filter_map(|(_, sector)| sector.after.as_ref());
    let payload: Vec<u8> = befores.chain(afters).flatten().copied().collect();
    let mut header = EntryHeader::new(kind);
    header.timestamp = end.into();
    header.number = last_order.into();
    header.volume = (*volume).into();
    header.set_lba(*lba);
    header.sectors = (run.len() as u16).into();
    header.port = first.port;
    header.status = 2 | if first.unknown { 4 } else { 1 } << 4;
    if payload.is_empty() {
        header.flags = flags::NO_IMAGE.into();
    }
    let zero = payload.iter().all(|byte| *byte == 0);
    if zero {
        header.encoding = Encoding::Zero as u8;
    }
    (header, if zero { Vec::new() } else { payload })
}

/// Bytes of a window's payload.
pub fn window_bytes(window: &MergedWindow) -> Vec<u8> {
    window.as_bytes().to_vec()
}
