//! Where targets may be ahead of the journal: a write goes on only where a durable log, kept outside, says so
//! (DESIGN §3, invariant 6).

use super::scoreboard::Request;
use super::{Now, Switch};
use crate::frame::Write;
use layout::SECTOR_BYTES;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

/// The log, as the switch sees it. No call waits.
pub trait DirtyRegions: Debug + Send + Sync {
    /// Does the log say, durably, that the target may be ahead in these bytes of a volume? If it doesn't, it is
    /// about to; whoever keeps it calls [`Switch::go_on`] when it does.
    fn are_marked(&self, volume: u16, bytes: Range<u64>) -> bool;
    /// The entry with this number writes there. Called before the write is forwarded.
    fn touch(&self, volume: u16, bytes: Range<u64>, number: u64);
}

impl Switch {
    /// From now on writes wait, as for their admission, until the regions that they write to are marked.
    pub fn mark_in(&mut self, regions: Arc<dyn DirtyRegions>) {
        self.regions = Some(regions);
    }

    /// Something that writes may wait for has happened outside.
    pub fn go_on(&mut self, now: &Now) {
        self.admit_waiting(now);
    }

    /// Targets execute nothing any more of what entries up to this number wrote: they have answered, or their
    /// quarantine is over.
    pub fn settled(&self) -> u64 {
        let requests =
            self.ports.iter().flat_map(|port| port.scoreboard.used()).flat_map(|(_, s)| &s.requests);
        // One whose old data are being read has no number yet: it gets a later one.
        let open = requests.filter(|request| request.is_open() && request.number > 0);
        open.map(|request: &Request| request.number - 1).min().unwrap_or_else(|| self.last_number())
    }

    /// May the target be ahead where this write goes?
    pub(super) fn is_marked(&self, write: &Write) -> bool {
        self.regions.as_ref().is_none_or(|regions| regions.are_marked(write.volume, bytes(write)))
    }

    pub(super) fn touch(&self, write: &Write, number: u64) {
        if let Some(regions) = &self.regions {
            regions.touch(write.volume, bytes(write), number);
        }
    }
}

fn bytes(write: &Write) -> Range<u64> {
    let from = write.lba * SECTOR_BYTES as u64;
    from..from + u64::from(write.sectors) * SECTOR_BYTES as u64
}
