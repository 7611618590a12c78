//! Primary is brought back by a source on a port: what it writes comes back through the card, and is journaled as
//! everyone's writes are.

use super::{Extents, Through, Way, PIECE_BYTES};
use crate::error::Error;
use crate::output::count;
use journal::diff::diff;
use journal::rollback::{Plan, RollbackOptions, RolledBack, Target};
use journal::Moment;
use layout::SECTOR_BYTES;
use std::path::Path;

/// As long as it lives, only this host's port may write the volume.
struct Fence<'a> {
    way: &'a dyn Way,
    volume: u16,
}

impl Drop for Fence<'_> {
    fn drop(&mut self) {
        // If that fails the card is gone; the next bring-up lets everyone write.
        let _ = self.way.fence(self.volume, false);
    }
}

impl Through<'_> {
    /// Brings the volume back. Durable in the journal on return.
    pub fn roll_back(&mut self, base: &Path, to: Target, allow_gaps: bool) -> Result<RolledBack, Error> {
        let Some(port) = self.way.port() else {
            return Err(Error::Misuse(
                "others must not write meanwhile: tell card drain, with --host-port, which port is this host's".into(),
            ));
        };
        let (way, index, name) = (self.way, self.volume.index, self.volume.name());
        // Before it is there: if it fails at one port, the others may have it.
        let _fence = Fence { way, volume: index };
        way.fence(index, true)?;
        self.wait_for_answers()?;
        // The moment before has to be certain, or an undo would bring back something else.
        self.read_back()?;
        let device = self.device.name();
        let options =
            RollbackOptions { volume: &name, primary: Path::new(&device), base: Some(base), to, allow_gaps };
        way.watch(index)?;
        self.reader()?;
        let file = self.desk.name.clone();
        let plan = Plan::new(|| journal::JournalReader::open(&file), &options);
        let plan = plan.map_err(crate::restore::explained)?;
        let facts = plan.image().facts();
        let mut done = RolledBack {
            target: (facts.order, facts.timestamp),
            discarded: plan.discarded(),
            ..RolledBack::default()
        };
        let undo = matches!(to, Target::Undo { .. });
        done.before = self.mark(done, undo, plan.extents().to_vec())?;
        self.write_back(&plan, &mut done)?;
        self.wait_for_answers()?;
        self.check(port, &mut done)?;
        self.mark(done, undo, Vec::new())?;
        Ok(done)
    }

    /// Marks the beginning, or with `last` the end. Where the journal ended.
    fn mark(&self, done: RolledBack, undo: bool, extents: Vec<(u64, u64)>) -> Result<u64, Error> {
        let (volume, epoch) = (self.volume.clone(), self.epoch);
        self.settled(move |settled| {
            settled.check(epoch)?;
            // What was written since the plan was made isn't in it. At the end `check` knows what was.
            if done.last == 0 && !settled.written.as_ref().is_some_and(Extents::is_empty) {
                return Err(Error::Failed(
                    "somebody wrote the volume while the rollback was being prepared; nothing was changed. See that nobody \
                     uses it, and try again"
                        .into(),
                ));
            }
            settled.with(move |journal, stamps| {
                journal.check_room_for_rollback(&volume, &extents)?;
                let before = if done.last == 0 { journal.end().order } else { done.before };
                journal.rollback_beside(stamps, &volume, undo, done.target, before, done.last)?;
                journal.sync()?;
                Ok(before)
            })
        })
    }

    fn write_back(&mut self, plan: &Plan, done: &mut RolledBack) -> Result<(), Error> {
        self.bar.set_length(plan.extents().iter().map(|(_, bytes)| bytes).sum());
        for (offset, bytes) in plan.extents() {
            let mut at = *offset;
            while at < offset + bytes {
                let length = PIECE_BYTES.min(offset + bytes - at) as usize;
                let (mut wanted, mut there) = (vec![0; length], vec![0; length]);
                plan.image().read_at(&mut wanted, at)?;
                self.read(&mut there, at)?;
                let differs: Vec<bool> = wanted
                    .chunks(SECTOR_BYTES)
                    .zip(there.chunks(SECTOR_BYTES))
                    .map(|(a, b)| a != b)
                    .collect();
                let mut sector = 0;
                for run in differs.chunk_by(|a, b| a == b) {
                    let range = sector * SECTOR_BYTES..(sector + run.len()) * SECTOR_BYTES;
                    sector += run.len();
                    if run[0] {
                        self.write(&wanted[range.clone()], at + range.start as u64)?;
                        done.written += range.len() as u64;
                    }
                }
                at += length as u64;
                done.compared += length as u64;
                self.bar.set_position(done.compared);
            }
        }
        let synced = self.device.sync();
        synced.map_err(|e| Error::Failed(format!("{}: making it durable: {e}", self.device.name())))
    }

    fn write(&mut self, data: &[u8], offset: u64) -> Result<(), Error> {
        self.device.write(data, offset).map_err(|e| {
            Error::Failed(format!(
                "{}: writing {} bytes at offset {offset}: {e}; primary may be brought back in part: the same command \
                 again finishes it, --undo takes it back",
                self.device.name(),
                data.len()
            ))
        })
    }

    /// What came back through the card is what was written, and nobody else's.
    fn check(&self, port: u8, done: &mut RolledBack) -> Result<(), Error> {
        let reader = self.reader()?;
        let last = reader.summary().order;
        let name = self.volume.name();
        if last > done.before {
            let since =
                diff(&reader, &name, Moment::Order(done.before), Moment::Order(last), &mut |_, _| {})?;
            if let Some((other, _)) = since.ports.iter().find(|(other, _)| **other != port) {
                return Err(Error::Failed(format!(
                    "volume {name}: port {other} wrote it meanwhile, and this host's is port {port} (card drain \
                     --host-port); the rollback isn't complete"
                )));
            }
            if !since.gaps.is_empty() {
                return Err(Error::Failed(format!(
                    "volume {name}: the card was brought up anew meanwhile, and others may have written; resync, then the \
                     same command again finishes it, --undo takes it back"
                )));
            }
            if since.skipped > 0 {
                return Err(Error::Failed(format!(
                    "volume {name}: the target refused {}; the same command again finishes it, --undo takes it back",
                    count(since.skipped, "write", "writes")
                )));
            }
            done.entries = since.ports.values().map(|port| port.writes).sum();
            let journaled: u64 = since.ports.values().map(|port| port.bytes_written).sum();
            if journaled < done.written {
                return Err(Error::Failed(format!(
                    "volume {name}: {} bytes were written and the card journaled {journaled}: {} doesn't go through it",
                    done.written,
                    self.device.name()
                )));
            }
        } else if done.written > 0 {
            return Err(Error::Failed(format!(
                "volume {name}: {} bytes were written, and the card journaled none: {} doesn't go through it",
                done.written,
                self.device.name()
            )));
        }
        done.last = last.max(1);
        Ok(())
    }
}
