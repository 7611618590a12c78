//! Up to where primary storage is durable: what recovery need not replay.

use crate::error::Error;
use crate::writer::Journal;

impl Journal {
    /// A session didn't end in order, and nothing has been appended since: the gap that it left isn't in the journal yet.
    pub fn gap_is_pending(&self) -> bool {
        self.chain.gap_pending
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
