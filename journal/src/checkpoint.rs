//! Up to where primary storage is durable: what recovery need not replay.

use crate::error::Error;
use crate::record::{OwnedRecord, StoredRecord};
use crate::writer::Journal;
use layout::entry::{Gap, GapReason, Journaled, Kind, Updated, NO_INDEX};
use zerocopy::IntoBytes;

impl Journal {
    /// A session didn't end in order, and nothing has been appended since: the gap that it left isn't in the journal yet.
    pub fn gap_is_pending(&self) -> bool {
        self.chain.gap_pending
    }

    /// Notes that primary of a volume with before-images alone lost writes that were journaled after `from`, ns: moments between
    /// then and now aren't known.
    pub fn note_lost_writes(&mut self, volume: &str, from: u64) -> Result<(), Error> {
        let volume = self.tables().volume(volume)?.clone();
        let mut header = self.next_header(Kind::Gap, self.own_port(&volume)?, NO_INDEX);
        let gap = Gap {
            from_timestamp: from.into(),
            from_number: (header.number.get() - 1).into(),
            reason: (GapReason::WritesLost as u32).into(),
            reserved: 0.into(),
        };
        header.seal(gap.as_bytes());
        self.append_own(&OwnedRecord { header, payload: gap.as_bytes().to_vec() })
    }

    /// Settles an entry whose port is gone: what became of it is known otherwise, or never will be.
    pub fn settle(&mut self, entry: &StoredRecord, updated: Updated) -> Result<(), Error> {
        let mut header = self.next_header(Kind::Completion, entry.header.port, entry.header.volume.get());
        header.number = entry.header.number;
        header.source = entry.header.source;
        header.set_status(Journaled::Port, updated);
        header.seal(&[]);
        self.append_own(&OwnedRecord { header, payload: Vec::new() })
    }

    /// Notes, durably, that primary storage of these volumes (by index) is durable up to the entry `at`, order and stamp.
    /// A later note stays. The entries themselves are made durable first: primary must not be ahead of them unnoticed.
    pub fn set_primary_checkpoint(&mut self, volumes: &[u16], at: (u64, u64)) -> Result<(), Error> {
        if at.0 > self.end().order {
            return Err(Error::NoMoment(format!(
                "order:{}; the journal ends at order:{}",
                at.0,
                self.end().order
            )));
        }
        self.sync()?;
        let mut tables = self.tables().clone();
        for volume in &mut tables.volumes {
            if volumes.contains(&volume.index) {
                volume.primary = volume.primary.max(at);
            }
        }
        self.change_tables(tables)
    }
}
