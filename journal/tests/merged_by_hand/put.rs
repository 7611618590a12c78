//! Puts batches, seals and the superblock into a file.

use super::merge::{window_bytes, Window};
use super::take::{is_entry, read, segment_offset, Found, Taken};
use layout::crc::crc32c;
use layout::entry::{EntryHeader, Kind};
use layout::journal_file::{
    magic, BatchHeader, IndexRow, MergedWindow, NoteRow, PortState, SealHeader, SectionHeader, SegmentHeader,
    Superblock, TablesHeader, VolumeRow, BLOCK_BYTES, SUPERBLOCK_OFFSETS, TABLES_OFFSET,
};
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::ops::Range;
use zerocopy::{FromZeros, IntoBytes};

/// A structure that may be changed before its CRC is made; the number counts those of its kind.
pub enum Touch<'a> {
    Window(usize, &'a mut EntryHeader, &'a mut MergedWindow),
    Entry(usize, &'a mut EntryHeader),
    /// A gap or marker.
    Other(usize, &'a mut EntryHeader),
    Port(usize, &'a mut PortState),
    Batch(usize, &'a mut BatchHeader),
    Segment(usize, &'a mut SegmentHeader),
    Row(usize, &'a mut IndexRow),
    Note(usize, &'a mut NoteRow),
    Seal(usize, &'a mut SealHeader),
    Superblock(&'a mut Superblock),
}

/// A segment that is being filled.
struct Open {
    header: SegmentHeader,
    start: usize,
    at: usize,
    hasher: Sha256,
    rows: Vec<(u64, IndexRow)>,
    notes: Vec<NoteRow>,
    stamps: Vec<u64>,
    batches: u64,
    first_of_batch: u64,
}

pub struct Put<'a> {
    pub image: Vec<u8>,
    pub superblock: Superblock,
    pub used: Vec<Range<usize>>,
    touch: &'a mut dyn FnMut(Touch<'_>),
    tables: Vec<u8>,
    free: VecDeque<usize>,
    portion: usize,
    open: Option<Open>,
    sequence: u64,
    batch: u64,
    crc: u32,
    digest: [u8; 32],
    /// The last order that was named.
    named: u64,
    counts: [usize; 9],
    /// Of each segment: portion, largest stamp, where it lies.
    segments: Vec<(usize, u64, Range<usize>)>,
}

/// Bytes of payload, if it is more than one record's.
const LARGEST_BATCH: usize = 16 * 1024;

fn put_crc(bytes: &mut [u8]) -> u32 {
    bytes[12..16].fill(0);
    let sum = crc32c(bytes);
    bytes[12..16].copy_from_slice(&sum.to_le_bytes());
    sum
}

impl<'a> Put<'a> {
    pub fn new(image: Vec<u8>, taken: &Taken, touch: &'a mut dyn FnMut(Touch<'_>)) -> Self {
        Self {
            image,
            superblock: taken.superblock,
            used: Vec::new(),
            touch,
            tables: taken.tables.clone(),
            free: taken.free.iter().copied().collect(),
            portion: 0,
            open: None,
            sequence: 0,
            batch: 0,
            crc: 0,
            digest: [0; 32],
            named: 0,
            counts: [0; 9],
            segments: Vec::new(),
        }
    }

    fn count(&mut self, kind: usize) -> usize {
        self.counts[kind] += 1;
        self.counts[kind] - 1
    }

    /// A portion begins.
    pub fn begin(&mut self, portion: usize, window: u64, named: u64, after: u64) {
        (self.portion, self.sequence, self.batch, self.crc, self.digest) = (portion, 0, 0, 0, [0; 32]);
        self.named = named;
        let row = &mut self.superblock.portions[portion];
        (row.role, row.level, row.window) = (2, portion as u8, window.into());
        (row.first_sequence, row.after_timestamp) = (1.into(), after.into());
    }

    /// It ends.
    pub fn end(&mut self, _until: u64, from_order: u64) {
        self.seal();
        let row = &mut self.superblock.portions[self.portion];
        row.end_sequence = (self.sequence + 1).into();
        row.from_order = from_order.into();
    }

    fn ports(&self, taken: &Taken, valid: &[u8]) -> Vec<PortState> {
        let state = |(port, arbiter): (&u8, &u16)| {
            let mut state = PortState::new_zeroed();
            (state.port, state.arbiter) = (*port, (*arbiter).into());
            state.flags = u8::from(valid.contains(port));
            state.delivered = taken.delivered.get(port).copied().unwrap_or(0).into();
            state
        };
        taken.ports.iter().map(state).collect()
    }

    /// Gaps and markers, as they were.
    pub fn outside(&mut self, records: &[&Found], taken: &Taken) {
        for some in records.chunks(3) {
            let mut records: Vec<_> = some.iter().map(|r| (r.header, r.payload.clone())).collect();
            for (header, payload) in &mut records {
                let number = self.count(2);
                (self.touch)(Touch::Other(number, header));
                header.seal(payload);
            }
            self.batch(&records, &self.ports(taken, &[]), self.named);
        }
    }

    pub fn window(
        &mut self,
        mut record: EntryHeader,
        mut window: MergedWindow,
        entries: Vec<(EntryHeader, Vec<u8>)>,
        valid: &[u8],
        most: usize,
        taken: &Taken,
    ) {
        self.named = record.number.get();
        let number = self.count(0);
        (self.touch)(Touch::Window(number, &mut record, &mut window));
        let payload = window_bytes(&window);
        record.seal(&payload);
        let mut all = vec![(record, payload)];
        for (mut header, payload) in entries {
            let number = self.count(1);
            (self.touch)(Touch::Entry(number, &mut header));
            header.seal(&payload);
            all.push((header, payload));
        }
        let mut ports = self.ports(taken, valid);
        for state in &mut ports {
            let number = self.count(3);
            (self.touch)(Touch::Port(number, state));
        }
        let named = self.named;
        let mut all = &all[..];
        while !all.is_empty() {
            // A batch has to fit a segment.
            let mut bytes = 0;
            let fits = all.iter().take_while(|(_, payload)| {
                bytes += payload.len();
                bytes <= LARGEST_BATCH
            });
            let (some, rest) = all.split_at(fits.count().clamp(1, most));
            self.batch(some, &ports, named);
            all = rest;
        }
    }

    fn batch(&mut self, records: &[(EntryHeader, Vec<u8>)], ports: &[PortState], named: u64) {
        let mut sums = Vec::new();
        let mut payloads = Vec::new();
        let mut places = Vec::new();
        for (header, payload) in records {
            let images = if header.kind == Kind::Both as u8 { 2 } else { 1 };
            if (images == 2 || payload.len() > 4096) && !payload.is_empty() {
                for image in payload.chunks(payload.len() / images) {
                    sums.extend(image.chunks(4096).map(crc32c));
                }
            }
            places.push(payloads.len());
            payloads.extend_from_slice(payload);
            payloads.resize(payloads.len().next_multiple_of(512), 0);
        }
        let mut head = vec![0; 256];
        ports.iter().for_each(|state| head.extend_from_slice(state.as_bytes()));
        let descriptors = head.len();
        records.iter().for_each(|(header, _)| head.extend_from_slice(header.as_bytes()));
        sums.iter().for_each(|sum: &u32| head.extend_from_slice(&sum.to_le_bytes()));
        head.resize(head.len().next_multiple_of(512), 0);
        let bytes = (head.len() + payloads.len()).next_multiple_of(BLOCK_BYTES);
        self.make_room(bytes, records.len(), named);

        let stamps: Vec<u64> = records.iter().map(|(header, _)| header.timestamp.get()).collect();
        let entry = |header: &EntryHeader| Kind::from_byte(header.kind).is_ok_and(is_entry);
        let mut header = BatchHeader::new_zeroed();
        header.prefix.magic = magic::BATCH;
        header.prefix.version = 1.into();
        header.journal_id = self.superblock.journal_id;
        header.session = self.superblock.session;
        header.sequence = (self.batch + 1).into();
        header.segment_sequence = self.sequence.into();
        header.durable_up_to = self.batch.into();
        header.first_order = named.into();
        header.first_timestamp = (*stamps.iter().min().unwrap()).into();
        header.last_timestamp = (*stamps.iter().max().unwrap()).into();
        header.previous_crc = self.crc.into();
        header.head_crc = crc32c(&head[256..]).into();
        header.head_bytes = (head.len() as u32).into();
        header.batch_bytes = (bytes as u32).into();
        header.descriptors = (records.len() as u32).into();
        header.entries = (records.iter().filter(|(h, _)| entry(h)).count() as u32).into();
        header.ports = (ports.len() as u32).into();
        header.block_crcs = (sums.len() as u32).into();
        header.portion = self.portion as u8;
        let number = self.count(4);
        (self.touch)(Touch::Batch(number, &mut header));
        self.crc = put_crc(header.as_mut_bytes());
        head[..256].copy_from_slice(header.as_bytes());
        self.batch += 1;

        let open = self.open.as_mut().unwrap();
        open.hasher.update(&head);
        open.batches += 1;
        open.stamps.extend(&stamps);
        let payload_start = open.at - open.start + head.len();
        for (index, (record, _)) in records.iter().enumerate() {
            let descriptor = open.at - open.start + descriptors + 64 * index;
            if entry(record) {
                open.rows.push((
                    named,
                    IndexRow {
                        lba: record.lba,
                        sectors: record.sectors,
                        timestamp: record.timestamp,
                        order: (named.wrapping_sub(open.header.first_order.get()) as u32).into(),
                        payload: (((payload_start + places[index]) / 512) as u32).into(),
                        volume: record.volume,
                        flags: (record.flags.get() & layout::entry::flags::NO_IMAGE).into(),
                        kind: record.kind,
                        status: record.status,
                        port: record.port,
                        encoding: record.encoding,
                    },
                ));
                continue;
            }
            let mut span = [0; 7];
            if record.kind == Kind::Merged as u8 {
                let length = record.timestamp.get().wrapping_sub(record.sequence.get());
                span.copy_from_slice(&length.to_le_bytes()[..7]);
            }
            open.notes.push(NoteRow {
                number: record.number,
                timestamp: record.timestamp,
                descriptor: (descriptor as u32).into(),
                flags: record.flags,
                kind: record.kind,
                port: record.port,
                status: record.status,
                span,
            });
        }
        let at = open.at;
        open.at += bytes;
        self.image[at..at + bytes].fill(0);
        self.image[at..at + head.len()].copy_from_slice(&head);
        self.image[at + head.len()..at + head.len() + payloads.len()].copy_from_slice(&payloads);
        self.used.push(at..at + bytes);
    }

    /// A segment in which there is room for such a batch, its index, the tables and the seal.
    fn make_room(&mut self, bytes: usize, records: usize, named: u64) {
        let segment_bytes = self.superblock.segment_bytes.get() as usize;
        if let Some(open) = &self.open {
            let index = (32 * (open.rows.len() + open.notes.len() + records)).next_multiple_of(BLOCK_BYTES);
            let end = open.at - open.start + bytes + index + self.tables.len() + BLOCK_BYTES;
            if end <= segment_bytes {
                return;
            }
            self.seal();
        }
        let slot = self.free.pop_front().expect("no segment is free");
        let start = segment_offset(&self.superblock, slot);
        self.sequence += 1;
        let mut header = SegmentHeader::new_zeroed();
        header.prefix.magic = magic::SEGMENT;
        header.prefix.version = 1.into();
        header.journal_id = self.superblock.journal_id;
        header.slot = (slot as u32).into();
        (header.portion, header.role) = (self.portion as u8, 2);
        header.sequence = self.sequence.into();
        header.session = self.superblock.session;
        header.segment_bytes = self.superblock.segment_bytes;
        header.first_batch = (self.batch + 1).into();
        header.first_order = named.into();
        header.durable_up_to = self.batch.into();
        header.previous_batch_crc = self.crc.into();
        header.previous_digest = self.digest;
        let number = self.count(5);
        (self.touch)(Touch::Segment(number, &mut header));
        self.image[start..start + segment_bytes].fill(0);
        self.image[start..start + size_of::<SegmentHeader>()].copy_from_slice(header.as_bytes());
        put_crc(&mut self.image[start..start + BLOCK_BYTES]);
        let mut hasher = Sha256::new();
        hasher.update(header.previous_digest);
        hasher.update(&self.image[start..start + BLOCK_BYTES]);
        self.used.push(start..start + BLOCK_BYTES);
        self.open = Some(Open {
            header,
            start,
            at: start + BLOCK_BYTES,
            hasher,
            rows: Vec::new(),
            notes: Vec::new(),
            stamps: Vec::new(),
            batches: 0,
            first_of_batch: self.batch + 1,
        });
    }

    fn seal(&mut self) {
        let Some(mut open) = self.open.take() else { return };
        open.rows.sort_by_key(|(order, row)| {
            let mut lba = [0; 8];
            lba[..6].copy_from_slice(&row.lba);
            (row.volume.get(), u64::from_le_bytes(lba), *order)
        });
        let mut index = Vec::new();
        for (_, row) in &mut open.rows {
            let number = self.count(6);
            (self.touch)(Touch::Row(number, row));
            index.extend_from_slice(row.as_bytes());
        }
        for note in &mut open.notes {
            let number = self.count(7);
            (self.touch)(Touch::Note(number, note));
            index.extend_from_slice(note.as_bytes());
        }
        index.resize(index.len().next_multiple_of(BLOCK_BYTES), 0);
        let mut seal = SealHeader::new_zeroed();
        seal.prefix.magic = magic::SEAL;
        seal.prefix.version = 1.into();
        seal.journal_id = self.superblock.journal_id;
        seal.slot = open.header.slot;
        (seal.portion, seal.role) = (self.portion as u8, 2);
        seal.sequence = open.header.sequence;
        seal.session = self.superblock.session;
        seal.first_batch = open.first_of_batch.into();
        seal.batches = open.batches.into();
        seal.last_batch_crc = self.crc.into();
        let end = open.at - open.start;
        seal.batches_end = (end as u32).into();
        seal.first_order = open.header.first_order;
        seal.entries = (open.rows.len() as u64).into();
        seal.first_timestamp = (*open.stamps.iter().min().unwrap()).into();
        seal.last_timestamp = (*open.stamps.iter().max().unwrap()).into();
        seal.index_offset = (end as u32).into();
        seal.index_rows = (open.rows.len() as u32).into();
        seal.note_rows = (open.notes.len() as u32).into();
        seal.tables_offset = ((end + index.len()) as u32).into();
        seal.tables_bytes = (self.tables.len() as u32).into();
        seal.index_crc = crc32c(&index).into();
        seal.previous_digest = open.header.previous_digest;
        open.hasher.update(&index);
        open.hasher.update(&self.tables);
        seal.digest = open.hasher.finalize().into();
        let number = self.count(8);
        (self.touch)(Touch::Seal(number, &mut seal));
        self.digest = seal.digest;
        let tables = open.at + index.len();
        self.image[open.at..tables].copy_from_slice(&index);
        self.image[tables..tables + self.tables.len()].copy_from_slice(&self.tables);
        let segment = open.start..open.start + self.superblock.segment_bytes.get() as usize;
        self.segments.push((self.portion, *open.stamps.iter().max().unwrap(), segment));
        let place = open.start + self.superblock.segment_bytes.get() as usize - BLOCK_BYTES;
        self.image[place..place + size_of::<SealHeader>()].copy_from_slice(seal.as_bytes());
        put_crc(&mut self.image[place..place + BLOCK_BYTES]);
        self.used.push(open.at..tables + self.tables.len());
        self.used.push(place..place + BLOCK_BYTES);
    }

    /// Gives up the windows of the oldest portion that end at or below a stamp.
    pub fn forget(&mut self, stamp: u64, windows: &mut Vec<Window>, from_order: u64) {
        let Some(oldest) = windows.first().map(|window| window.portion).filter(|_| stamp > 0) else { return };
        windows.retain(|window| window.end > stamp);
        let row = &mut self.superblock.portions[oldest];
        (row.after_timestamp, row.from_order) = (stamp.into(), from_order.into());
        let gone = |(portion, last, _): &&(usize, u64, Range<usize>)| *portion == oldest && *last <= stamp;
        for (_, _, segment) in self.segments.iter().filter(gone) {
            row.first_sequence = (row.first_sequence.get() + 1).into();
            self.used.retain(|used| !segment.contains(&used.start));
        }
    }

    /// Changes the row of a volume, or of each, in both copies of the tables.
    pub fn change_volumes(&mut self, volume: Option<u16>, change: &dyn Fn(&mut VolumeRow)) {
        let header = size_of::<TablesHeader>() + size_of::<SectionHeader>();
        let copies = [TABLES_OFFSET, TABLES_OFFSET + self.superblock.table_bytes.get()];
        for copy in copies.map(|offset| offset as usize) {
            let bytes = &mut self.image[copy..copy + self.tables.len()];
            let section: SectionHeader = read(bytes, size_of::<TablesHeader>());
            assert_eq!(section.kind.get(), 1, "volumes come first");
            for index in 0..section.rows.get() as usize {
                let at = header + index * section.row_bytes.get() as usize;
                let mut row: VolumeRow = read(bytes, at);
                if volume.is_none_or(|volume| row.index.get() == volume) {
                    change(&mut row);
                    bytes[at..at + size_of::<VolumeRow>()].copy_from_slice(row.as_bytes());
                }
            }
            put_crc(bytes);
        }
    }

    /// Writes the superblock.
    pub fn finish(mut self) -> (Vec<u8>, Vec<Range<usize>>) {
        (self.touch)(Touch::Superblock(&mut self.superblock));
        for offset in SUPERBLOCK_OFFSETS {
            let block = &mut self.image[offset as usize..offset as usize + BLOCK_BYTES];
            block[..size_of::<Superblock>()].copy_from_slice(self.superblock.as_bytes());
            put_crc(block);
        }
        (self.image, self.used)
    }
}
