//! Payloads by their place in the file: any part of an image, checked.
//!
//! A pointer to a payload is its place alone. What its bytes have to be stands in the head of its
//! batch, which is found through the segment: batches lie back to back. Both are kept in memory once
//! they have been read.

use crate::batch::{self, block_crc_count, crc_pieces, images, Batch, Found, Use};
use crate::block;
use crate::error::Error;
use crate::geometry::Geometry;
use crate::reader::JournalReader;
use crate::record::StoredRecord;
use crate::storage::{self, Storage};
use crate::walk::Directory;
use layout::crc;
use layout::entry::Kind;
use layout::journal_file::{
    magic, SegmentHeader, BATCH_HEADER_BYTES, BLOCK_BYTES, CRC_BLOCK_BYTES, PAYLOAD_ALIGN,
};
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most bytes of CRCs that are kept: those of about six million blocks of 4 KiB.
const KEPT_BYTES: usize = 64 << 20;

/// See the module.
pub(crate) struct Payloads {
    storage: Arc<dyn Storage>,
    journal_id: [u8; 16],
    geometry: Geometry,
    /// By slot: what the segment is used for, in the eyes of whoever made the pointers.
    known: Mutex<HashMap<u32, Use>>,
    /// By slot: where batches begin, as far as anyone has looked.
    segments: Mutex<HashMap<u32, SegmentBatches>>,
    heads: Mutex<Heads>,
    /// Of the batch whose records were asked for last: a batch of gaps or answers is asked for one after the other.
    records: Mutex<Option<(u64, Arc<Vec<StoredRecord>>)>>,
}

struct SegmentBatches {
    used: Use,
    /// File offsets, rising.
    starts: Vec<u64>,
    /// Where the next one would begin.
    next: u64,
}

#[derive(Default)]
struct Heads {
    by_offset: HashMap<u64, Arc<BatchCrcs>>,
    oldest: VecDeque<u64>,
    bytes: usize,
}

/// What a batch says of its payloads.
struct BatchCrcs {
    /// Payloads with bytes, by place.
    rows: Vec<CrcRow>,
    crcs: Vec<u32>,
}

struct CrcRow {
    /// From the batch's start, in units of [`PAYLOAD_ALIGN`].
    place: u32,
    bytes: u32,
    /// Index of its first CRC.
    first: u32,
    kind: Kind,
}

impl Payloads {
    /// Of what `reader` reads.
    pub fn new(reader: &JournalReader) -> Self {
        let payloads = Self {
            storage: reader.shared_storage(),
            journal_id: reader.head().journal_id(),
            geometry: reader.head().geometry,
            known: Mutex::new(HashMap::new()),
            segments: Mutex::new(HashMap::new()),
            heads: Mutex::new(Heads::default()),
            records: Mutex::new(None),
        };
        payloads.know(reader.directory());
        payloads
    }

    pub fn storage(&self) -> &dyn Storage {
        &*self.storage
    }

    /// Pointers may lead into these segments.
    pub fn know(&self, directory: &Directory) {
        let places = directory.places.iter().chain(directory.merged.iter().flatten());
        let mut known = lock(&self.known);
        for place in places {
            if let Some(header) = &place.header {
                known.insert(place.slot, self.use_of(header));
            }
        }
    }

    fn use_of(&self, header: &SegmentHeader) -> Use {
        Use {
            journal_id: self.journal_id,
            portion: header.portion,
            segment_sequence: header.sequence.get(),
            session: header.session.get(),
        }
    }

    /// The journal that they are of.
    pub fn journal_id(&self) -> [u8; 16] {
        self.journal_id
    }

    /// Reads part of an image: `out.len()` bytes from `skip` on. `place` is the file offset of the
    /// record's payload; `second` chooses the image after the write where there are both.
    pub fn read(&self, place: u64, second: bool, skip: u64, out: &mut [u8]) -> Result<(), Error> {
        let read = self.read_part(place, second, skip, out);
        match read {
            Err(error) if error.is_corruption() && self.is_given_up(place) => {
                Err(Error::Revoked { file: self.storage.name().to_owned() })
            }
            other => other,
        }
    }

    /// Is the segment that a place lies in used for something else by now?
    fn is_given_up(&self, place: u64) -> bool {
        let slot = place.saturating_sub(self.geometry.segments_offset) / self.geometry.segment_bytes;
        let now = u32::try_from(slot).ok().map(|slot| self.enter(slot).map(drop));
        matches!(now, Some(Err(Error::Revoked { .. })))
    }

    fn read_part(&self, place: u64, second: bool, skip: u64, out: &mut [u8]) -> Result<(), Error> {
        let batch_at = self.batch_before(place)?;
        let crcs = self.crcs_of(batch_at, place)?;
        let wrong = |what: String| Error::corrupt(self.storage.name(), place, what);
        let unit = ((place - batch_at) / PAYLOAD_ALIGN as u64) as u32;
        let row = crcs
            .rows
            .binary_search_by_key(&unit, |row| row.place)
            .map(|index| &crcs.rows[index])
            .map_err(|_| wrong("no payload begins here".into()))?;
        let image = row.bytes as usize / images(row.kind);
        let start = if second && row.kind == Kind::Both { image } else { 0 };
        let skip = skip as usize;
        if skip + out.len() > image {
            return Err(wrong(format!("{} bytes from {skip} on of an image of {image}", out.len())));
        }
        self.read_checked(place, row, &crcs.crcs, start + skip..start + skip + out.len(), out)
    }

    /// Reads `wanted` of a payload, and every block that it touches whole, for its CRC.
    fn read_checked(
        &self,
        place: u64,
        row: &CrcRow,
        crcs: &[u32],
        wanted: Range<usize>,
        out: &mut [u8],
    ) -> Result<(), Error> {
        let touched: Vec<(Range<usize>, u32)> = crc_pieces(row.kind, row.bytes as usize)
            .zip(&crcs[row.first as usize..])
            .filter(|(piece, _)| piece.start < wanted.end && piece.end > wanted.start)
            .map(|(piece, crc)| (piece, *crc))
            .collect();
        let (Some(first), Some(last)) = (touched.first(), touched.last()) else {
            return Ok(());
        };
        let whole = first.0.start..last.0.end;
        let check = |bytes: &[u8]| {
            for (piece, expected) in &touched {
                let computed = crc::crc32c(&bytes[piece.start - whole.start..piece.end - whole.start]);
                if computed != *expected {
                    let what = format!(
                        "payload of {} bytes: the CRC of bytes {} to {} is {computed:08x} and should be {expected:08x}",
                        row.bytes, piece.start, piece.end
                    );
                    return Err(Error::corrupt(self.storage.name(), place, what));
                }
            }
            Ok(())
        };
        if whole == wanted {
            storage::read_exact(&*self.storage, out, place + whole.start as u64)?;
            return check(out);
        }
        let mut bytes = vec![0; whole.len()];
        storage::read_exact(&*self.storage, &mut bytes, place + whole.start as u64)?;
        check(&bytes)?;
        out.copy_from_slice(&bytes[wanted.start - whole.start..wanted.end - whole.start]);
        Ok(())
    }

    /// The record whose descriptor lies `descriptor` bytes from the start of the segment in `slot`.
    pub fn record(&self, slot: u32, descriptor: u64) -> Result<StoredRecord, Error> {
        let at = self.geometry.segment_offset(slot) + descriptor;
        let begins = self.batch_before(at)?;
        let kept = lock(&self.records).clone().filter(|(batch, _)| *batch == begins);
        let records = match kept {
            Some((_, records)) => records,
            None => {
                let records = Arc::new(self.load(begins, at)?.records());
                *lock(&self.records) = Some((begins, Arc::clone(&records)));
                records
            }
        };
        let found = records.binary_search_by_key(&at, |record| record.location.descriptor);
        found
            .map(|index| records[index])
            .map_err(|_| Error::corrupt(self.storage.name(), at, "no record's descriptor is here"))
    }

    /// A whole payload, checked.
    pub fn whole(&self, record: &StoredRecord) -> Result<Vec<u8>, Error> {
        let mut payload = vec![0; record.header.payload_bytes.get() as usize];
        storage::read_exact(&*self.storage, &mut payload, record.location.payload)?;
        match crc::crc32c(&payload) == record.header.payload_crc.get() {
            true => Ok(payload),
            false => Err(Error::corrupt(
                self.storage.name(),
                record.location.payload,
                format!("the CRC of the payload of a {} is wrong", record.kind),
            )),
        }
    }

    /// Where the batch begins that a place lies in.
    fn batch_before(&self, place: u64) -> Result<u64, Error> {
        let g = &self.geometry;
        let slot = place.saturating_sub(g.segments_offset) / g.segment_bytes;
        let slot = u32::try_from(slot).ok().filter(|slot| *slot < g.segment_count).ok_or_else(|| {
            Error::corrupt(self.storage.name(), place, "a pointer leads outside the segments")
        })?;
        let mut segments = lock(&self.segments);
        let batches = match segments.entry(slot) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(new) => new.insert(self.enter(slot)?),
        };
        while batches.next <= place {
            let mut bytes = [0; BATCH_HEADER_BYTES];
            storage::read_exact(&*self.storage, &mut bytes, batches.next)?;
            let room = g.seal_offset(slot).saturating_sub(batches.next);
            match batch::look(&bytes, &batches.used, room) {
                Found::Header(header) => {
                    batches.starts.push(batches.next);
                    batches.next += u64::from(header.batch_bytes.get());
                }
                Found::Damaged(what) => {
                    return Err(Error::corrupt(self.storage.name(), batches.next, what));
                }
                Found::Stale | Found::Nothing => {
                    let what = format!("no batch is here, and a pointer leads to offset {place}");
                    return Err(Error::corrupt(self.storage.name(), batches.next, what));
                }
            }
        }
        let index = batches.starts.partition_point(|start| *start <= place);
        index.checked_sub(1).map(|index| batches.starts[index]).ok_or_else(|| {
            Error::corrupt(self.storage.name(), place, "a pointer leads before the segment's first batch")
        })
    }

    fn enter(&self, slot: u32) -> Result<SegmentBatches, Error> {
        let offset = self.geometry.segment_offset(slot);
        let mut first = block::Block::ZERO;
        storage::read_exact(&*self.storage, &mut first.0, offset)?;
        let header = block::decode::<SegmentHeader>(&first, magic::SEGMENT).map_err(|fault| {
            Error::corrupt(self.storage.name(), offset, format!("header of the segment: {fault}"))
        })?;
        let used = self.use_of(&header);
        // Where something else stands by now, a pointer would lead to other data, and their CRCs would be right.
        if lock(&self.known).get(&slot) != Some(&used) {
            return Err(Error::Revoked { file: self.storage.name().to_owned() });
        }
        Ok(SegmentBatches { used, starts: Vec::new(), next: offset + BLOCK_BYTES as u64 })
    }

    /// The head of the batch at `offset`, for the sake of what lies at `place`.
    fn load(&self, offset: u64, place: u64) -> Result<Batch, Error> {
        let mut bytes = [0; BATCH_HEADER_BYTES];
        storage::read_exact(&*self.storage, &mut bytes, offset)?;
        let slot = ((place - self.geometry.segments_offset) / self.geometry.segment_bytes) as u32;
        let used = lock(&self.segments).get(&slot).map(|batches| batches.used);
        let room = self.geometry.seal_offset(slot).saturating_sub(offset);
        let wrong = |what: &str| Error::corrupt(self.storage.name(), offset, what);
        let used = used.ok_or_else(|| wrong("the segment is not known"))?;
        match batch::look(&bytes, &used, room) {
            Found::Header(header) => {
                Batch::read(&*self.storage, offset, &header)?.map_err(|what| wrong(&what))
            }
            Found::Damaged(what) => Err(wrong(&what)),
            Found::Stale | Found::Nothing => Err(wrong("the batch that was here is gone")),
        }
    }

    fn crcs_of(&self, offset: u64, place: u64) -> Result<Arc<BatchCrcs>, Error> {
        if let Some(known) = lock(&self.heads).by_offset.get(&offset) {
            return Ok(Arc::clone(known));
        }
        // Read without the lock: others go on. Two may read the same head; both find the same.
        let crcs = Arc::new(BatchCrcs::of(&self.load(offset, place)?));
        let mut heads = lock(&self.heads);
        if heads.by_offset.insert(offset, Arc::clone(&crcs)).is_none() {
            heads.oldest.push_back(offset);
            heads.bytes += crcs.bytes();
        }
        while heads.bytes > KEPT_BYTES && heads.oldest.len() > 1 {
            let oldest = heads.oldest.pop_front().and_then(|offset| heads.by_offset.remove(&offset));
            heads.bytes -= oldest.map_or(0, |oldest| oldest.bytes());
        }
        Ok(crcs)
    }
}

impl BatchCrcs {
    fn of(batch: &Batch) -> Self {
        let mut list = batch.block_crcs.iter();
        let mut found = Self { rows: Vec::with_capacity(batch.descriptors.len()), crcs: Vec::new() };
        for record in batch.records() {
            let bytes = record.header.payload_bytes.get();
            if bytes == 0 {
                continue;
            }
            let first = found.crcs.len() as u32;
            match block_crc_count(record.kind, bytes as usize) {
                0 => found.crcs.push(record.header.payload_crc.get()),
                count => found.crcs.extend(list.by_ref().take(count)),
            }
            let place = ((record.location.payload - batch.offset) / PAYLOAD_ALIGN as u64) as u32;
            found.rows.push(CrcRow { place, bytes, first, kind: record.kind });
        }
        debug_assert!(CRC_BLOCK_BYTES.is_multiple_of(PAYLOAD_ALIGN));
        found
    }

    fn bytes(&self) -> usize {
        self.rows.len() * size_of::<CrcRow>() + self.crcs.len() * 4
    }
}

/// A panic elsewhere leaves nothing half-done in what these locks guard: it is only ever added to.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
