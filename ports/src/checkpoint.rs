//! Now and then primary is made durable, so that recovery has little to replay, and the dirty-region log is cleared.

use crate::path::SoftwarePorts;
use std::io;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// Writes that were in flight when a checkpoint began have so long.
const PATIENCE: Duration = Duration::from_secs(10);

impl SoftwarePorts {
    /// Makes primary durable up to what the journal has, notes that in the journal, and clears what wasn't written to since the
    /// checkpoint before. `all`: nothing is in flight, and everything is cleared. Says whether it was done: a write that isn't
    /// answered for long puts it off.
    pub fn checkpoint(&self, all: bool) -> io::Result<bool> {
        let mut last = self.checkpoint.lock().unwrap_or_else(PoisonError::into_inner);
        let number = self.lock().block.last_number();
        // 1. The journal has everything up to here, durably. A crash behind it replays that.
        self.commit(number, true)?;
        let (number, end) = self.turn.lock().unwrap_or_else(PoisonError::into_inner).appended;
        // 2. Primary has been given it.
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.lock();
        while state.block.answered() < number {
            if Instant::now() > deadline {
                return Ok(false);
            }
            state = self.wait(state, Duration::from_millis(100));
        }
        drop(state);
        // 3. And has it durably. A crash in between replays what it has already.
        for volume in 0..self.volumes.len() {
            self.sync_primary(volume)?;
        }
        // 4. Which is noted.
        if end.0 > 0 {
            let indexes: Vec<u16> = self.volumes.iter().map(|volume| volume.index).collect();
            match self.owner.set_primary_checkpoint(&indexes, end) {
                Ok(()) => {}
                // The older one stays: there is more to replay.
                Err(journal::Error::Full { .. }) => return Ok(false),
                Err(error) => {
                    self.fail(error.to_string());
                    return Err(io::Error::other(error.to_string()));
                }
            }
        }
        // 5. Regions that nobody wrote to since the last time aren't ahead of the journal.
        let state = self.lock();
        let cleared = self.dirty.clear(if all { number } else { *last });
        drop(state);
        if cleared {
            self.dirty.save()?;
        }
        *last = number;
        Ok(true)
    }
}
