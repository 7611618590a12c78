//! Records of the owner's own while ports are open (DESIGN §3.6): what a source on a port read from primary, and the marks
//! of a rollback whose writes come back through the ports.
//!
//! Ports have delivered everything up to a watermark, and what comes later is stamped behind it. So what the owner adds is
//! stamped up to that watermark, and behind everything there is: few stamps, of which each record takes one. It stands under a
//! port and an arbiter of its own, or a number of a card's would be taken that the card is still to give.

use crate::error::Error;
use crate::record::{Delivered, OwnedRecord};
use crate::tables::{Port, PortKind, Volume};
use crate::writer::Journal;
use layout::entry::{flags, EntryHeader, Journaled, Kind, Rollback, Updated};
use layout::SECTOR_BYTES;
use zerocopy::IntoBytes;

/// The port of the owner's records beside open ports: between those of cards and those of software.
pub const HOST_PORT: u8 = 127;
/// Its arbiter; 0 is a card's, 1 that of software ports.
const HOST_ARBITER: u16 = 2;
/// Its watermark is so far behind the others', ns: the stamps in between are free.
const HOST_LAG: u64 = 1 << 16;

/// Stamps that the owner's records may take.
#[derive(Debug)]
pub struct Stamps {
    next: u64,
    last: u64,
}

impl Stamps {
    /// How many there are.
    pub fn left(&self) -> u64 {
        (self.last + 1).saturating_sub(self.next)
    }

    fn take(&mut self) -> Result<u64, Error> {
        if self.left() == 0 {
            return Err(Error::Invalid("no stamp is free up to the ports' watermark".into()));
        }
        self.next += 1;
        Ok(self.next - 1)
    }
}

/// The ports' watermarks, and the owner's port's.
pub(crate) fn with_host(delivered: &[Delivered]) -> Vec<Delivered> {
    let mut delivered = delivered.to_vec();
    if let Some(least) = delivered.iter().map(|port| port.timestamp).min() {
        delivered.push(Delivered { port: HOST_PORT, timestamp: least.saturating_sub(HOST_LAG) });
    }
    delivered
}

impl Journal {
    /// The stamps behind `after` and everything appended, up to `bound`. The caller knows that every port has delivered up
    /// to `bound`, and appends nothing of theirs before it is done with these.
    pub fn stamps_beside(&mut self, after: u64, bound: u64) -> Result<Stamps, Error> {
        if self.tables().ports.iter().all(|port| port.port != HOST_PORT) {
            let (kind, name) = (PortKind::Software, "the host, by way of a port".to_owned());
            self.set_ports(&[Port { port: HOST_PORT, kind, arbiter: HOST_ARBITER, name }])?;
        }
        let own = self.chain.ports.get(&HOST_PORT).map_or(0, |state| state.delivered.get());
        Ok(Stamps { next: after.max(self.chain.timestamp).max(own) + 1, last: bound })
    }

    /// Journals what primary has at `offset`: it was read after everything that the journal has of the place had been
    /// answered, and nothing was written there since.
    pub fn resync_beside(
        &mut self,
        stamps: &mut Stamps,
        volume: &Volume,
        offset: u64,
        data: Vec<u8>,
    ) -> Result<(), Error> {
        let mut header = self.header_beside(Kind::Resync, volume, stamps.take()?);
        header.set_lba(offset / SECTOR_BYTES as u64);
        header.sectors = ((data.len() / SECTOR_BYTES) as u16).into();
        header.set_status(Journaled::Port, Updated::Updated);
        header.seal(&data);
        self.append_beside(OwnedRecord { header, payload: data })
    }

    /// Says that primary has what the journal says: gaps up to here are closed for the volume.
    pub fn resynced_beside(&mut self, stamps: &mut Stamps, volume: &Volume) -> Result<(), Error> {
        let mut header = self.header_beside(Kind::Marker, volume, stamps.take()?);
        header.flags = flags::RESYNCED.into();
        header.seal(&[]);
        self.append_beside(OwnedRecord { header, payload: Vec::new() })
    }

    /// Where a rollback, or with `undo` an undo of one, begins (`last`: 0) and where it ends.
    pub fn rollback_beside(
        &mut self,
        stamps: &mut Stamps,
        volume: &Volume,
        undo: bool,
        target: (u64, u64),
        before: u64,
        last: u64,
    ) -> Result<(), Error> {
        let payload = Rollback {
            target_order: target.0.into(),
            target_timestamp: target.1.into(),
            before_order: before.into(),
            last_order: last.into(),
        };
        let mut header = self.header_beside(Kind::Marker, volume, stamps.take()?);
        header.flags = (flags::ROLLBACK | if undo { flags::UNDO } else { 0 }).into();
        header.seal(payload.as_bytes());
        self.append_beside(OwnedRecord { header, payload: payload.as_bytes().to_vec() })
    }

    fn header_beside(&self, kind: Kind, volume: &Volume, stamp: u64) -> EntryHeader {
        let state = self.chain.ports.get(&HOST_PORT);
        let mut header = EntryHeader::new(kind);
        header.port = HOST_PORT;
        header.volume = volume.index.into();
        header.timestamp = stamp.into();
        header.number = (state.map_or(0, |state| state.last_number.get()) + 1).into();
        header.sequence = state.map_or(0, |state| state.last_sequence.get()).into();
        header
    }

    fn append_beside(&mut self, record: OwnedRecord) -> Result<(), Error> {
        self.append_any(&[record.as_record()], &[]).map(drop)
    }
}
