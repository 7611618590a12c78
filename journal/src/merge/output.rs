//! Writes a merged portion: batches of windows into segments of the pool, each sealed.
//!
//! Nothing of it counts until the superblock says so: a crash leaves free segments.

use crate::block;
use crate::error::Error;
use crate::gather::{Frame, Gather};
use crate::geometry::Geometry;
use crate::record::Record;
use crate::segment::{self, Indexed, OpenSegment};
use crate::storage::{self, Storage};
use crate::walk::Place;
use crate::writer::now;
use layout::entry::Kind;
use layout::journal_file::{magic, role, BatchHeader, PortState, SegmentHeader, BLOCK_BYTES, DIGEST_BYTES};
use std::collections::VecDeque;
use zerocopy::FromZeros;

/// Where the chain of a merged portion ends.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ChainEnd {
    /// Sequence of the next segment.
    pub next_segment: u64,
    /// Sequence of the last batch.
    pub batch: u64,
    pub batch_crc: u32,
    pub digest: [u8; DIGEST_BYTES],
}

/// What the segments of a portion have to say of themselves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    pub journal_id: [u8; 16],
    pub geometry: Geometry,
    pub portion: u8,
    pub session: u64,
}

/// See the module.
pub(super) struct Output<'a> {
    storage: &'a dyn Storage,
    identity: Identity,
    /// Copy of the tables, for the seals.
    tables: Vec<u8>,
    /// Free segments that may be taken.
    slots: VecDeque<u32>,
    taken: Vec<u32>,
    end: ChainEnd,
    /// The last batch that was durable before.
    durable: u64,
    segment: Option<OpenSegment>,
    gather: Gather,
    /// Of the window that is being written.
    ports: Vec<PortState>,
    order: u64,
}

/// What was written.
pub(super) struct Written {
    pub end: ChainEnd,
    pub taken: Vec<u32>,
    /// Segments that were not needed.
    pub spare: Vec<u32>,
}

impl<'a> Output<'a> {
    pub fn new(
        storage: &'a dyn Storage,
        identity: Identity,
        tables: Vec<u8>,
        slots: Vec<u32>,
        end: ChainEnd,
    ) -> Self {
        Self {
            storage,
            identity,
            tables,
            slots: slots.into(),
            taken: Vec::new(),
            end,
            durable: end.batch,
            segment: None,
            gather: Gather::default(),
            ports: Vec::new(),
            order: 0,
        }
    }

    /// What comes next belongs to a window with this last order, whose ports are so; or, between windows, the
    /// last order is that of the window before.
    pub fn begin(&mut self, order: u64, ports: Vec<PortState>) -> Result<(), Error> {
        self.flush()?;
        // An index row has 32 bits for the order, counted from the segment's first.
        let first = self.segment.as_ref().map_or(order, OpenSegment::first_order);
        if u32::try_from(order - first.min(order)).is_err() {
            self.seal()?;
        }
        (self.order, self.ports) = (order, ports);
        Ok(())
    }

    /// Adds a record; its CRCs are checked on the way.
    pub fn push(&mut self, record: &Record<'_>, kind: Kind) -> Result<(), Error> {
        self.make_room(kind, record.header.payload_bytes.get() as usize)?;
        self.gather
            .push(record, kind)
            .map_err(|what| Error::corrupt(self.storage.name(), 0, format!("merging a {kind}: {what}")))?;
        if self.gather.is_full() {
            self.flush()?;
        }
        Ok(())
    }

    fn make_room(&mut self, kind: Kind, payload_bytes: usize) -> Result<(), Error> {
        if self.fits(kind, payload_bytes) {
            return Ok(());
        }
        self.flush()?;
        if self.fits(kind, payload_bytes) {
            return Ok(());
        }
        self.seal()?;
        self.take_segment()?;
        assert!(self.fits(kind, payload_bytes), "an empty segment takes any record");
        Ok(())
    }

    fn fits(&self, kind: Kind, payload_bytes: usize) -> bool {
        let Some(segment) = &self.segment else { return false };
        let bytes = self.gather.bytes_with(kind, payload_bytes, self.ports.len());
        let rows = self.gather.descriptors().len() + 1;
        let seal = segment.seal_body_bytes(rows, self.tables.len()) + BLOCK_BYTES as u64;
        segment.next + bytes + seal <= self.identity.geometry.segment_bytes
    }

    fn take_segment(&mut self) -> Result<(), Error> {
        let Identity { journal_id, geometry, portion, session } = self.identity;
        let Some(slot) = self.slots.pop_front() else {
            return Err(Error::MergeRoom {
                file: self.storage.name().to_owned(),
                segments: self.taken.len(),
            });
        };
        let sequence = self.end.next_segment;
        let header = SegmentHeader {
            prefix: block::prefix(magic::SEGMENT),
            journal_id,
            slot: slot.into(),
            portion,
            role: role::MERGED,
            reserved: 0.into(),
            sequence: sequence.into(),
            session: session.into(),
            segment_bytes: geometry.segment_bytes.into(),
            first_batch: (self.end.batch + 1).into(),
            first_order: self.order.into(),
            durable_up_to: self.durable.into(),
            previous_batch_crc: self.end.batch_crc.into(),
            reserved2: 0.into(),
            previous_digest: self.end.digest,
        };
        self.taken.push(slot);
        storage::write_all(self.storage, &segment::header_block(&header).0, geometry.segment_offset(slot))?;
        self.segment = Some(OpenSegment::new(Place { slot, sequence, header: Some(header) }, header));
        self.end.next_segment += 1;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        let Some(segment) = self.segment.as_mut().filter(|_| !self.gather.is_empty()) else { return Ok(()) };
        let header = BatchHeader {
            prefix: block::prefix(magic::BATCH),
            journal_id: self.identity.journal_id,
            session: self.identity.session.into(),
            sequence: (self.end.batch + 1).into(),
            segment_sequence: segment.sequence().into(),
            durable_up_to: self.durable.into(),
            first_order: self.order.into(),
            written: now().into(),
            previous_crc: self.end.batch_crc.into(),
            portion: self.identity.portion,
            ..BatchHeader::new_zeroed()
        };
        let offset = self.identity.geometry.segment_offset(segment.place.slot) + segment.next;
        let frame = Frame { header, start: None, ports: &self.ports, outside: &[] };
        let header = self.gather.write(self.storage, offset, &frame)?;
        let indexed = Indexed {
            offset: segment.next,
            header: &header,
            head: self.gather.head(&header),
            starts_session: false,
            descriptors: self.gather.descriptors(),
        };
        segment.add(&indexed, |_| 0);
        self.gather.clear();
        self.end.batch = header.sequence.get();
        self.end.batch_crc = header.prefix.crc.get();
        Ok(())
    }

    fn seal(&mut self) -> Result<(), Error> {
        let Some(mut segment) = self.segment.take() else { return Ok(()) };
        let geometry = &self.identity.geometry;
        let seal = segment.seal(self.identity.session, &self.tables);
        let body = geometry.segment_offset(segment.place.slot) + segment.next;
        let place = geometry.seal_offset(segment.place.slot);
        assert!(body + seal.body.len() as u64 <= place, "room was kept for the seal");
        storage::write_all(self.storage, &seal.body, body)?;
        storage::write_all(self.storage, &seal.block.0, place)?;
        self.end.digest = seal.digest;
        Ok(())
    }

    /// Seals what is open. Durable on return.
    pub fn finish(mut self) -> Result<Written, Error> {
        self.flush()?;
        self.seal()?;
        storage::sync(self.storage)?;
        Ok(Written { end: self.end, taken: self.taken, spare: self.slots.into() })
    }
}
