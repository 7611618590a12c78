//! Primary reached as a source on a port of the card that is being drained (DESIGN §6), while other sources go on writing.
//!
//! | file | job |
//! |---|---|
//! | `device` | the volume as this host has it behind its port |
//! | `extents` | sets of sectors |
//! | `resync` | what primary has and the journal doesn't know of; what nobody knows |
//! | `rollback` | primary is brought back; the card journals it |
//!
//! What is read says what primary had at some moment of the read. It may be journaled only where nothing else was under way:
//! no entry without an answer when the read began, and none delivered since, up to everything that the arbiter had given when
//! the read ended. The rest is read again. [`Way`] is what the thread that has the card does for this.

mod device;
mod extents;
mod resync;
mod rollback;
#[cfg(test)]
mod tests;

pub use device::{BlockDevice, Device};
pub use extents::Extents;

use crate::daemon::Desk;
use crate::error::Error;
use indicatif::ProgressBar;
use journal::beside::Stamps;
use journal::{Journal, JournalReader, Volume};
use layout::SECTOR_BYTES;
use std::sync::mpsc::sync_channel;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes that are read at once.
const PIECE_BYTES: u64 = 1 << 20;
/// Pieces that are read before it is waited for what was under way meanwhile.
const BATCH: usize = 16;
/// How long nothing may come to rest, beyond the quarantine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The journal has everything that the arbiter had given when it was asked for; nothing is appended while this is there.
pub struct Settled<'a> {
    /// The journal's thread.
    pub desk: &'a Desk,
    /// The last stamp that the arbiter had given.
    pub after: u64,
    /// Up to here every port has delivered.
    pub bound: u64,
    /// Where the watched volume was written since [`Way::watch`]. `None`: the card was brought up anew since, and nobody can say.
    pub written: Option<Extents>,
    /// The drain's session, and the gaps that came in it: while it stays, nothing got lost.
    pub epoch: (u64, u64),
}

impl Settled<'_> {
    /// Nothing got lost since `epoch`, or what was compared since then may be another by now.
    fn check(&self, epoch: Option<(u64, u64)>) -> Result<(), Error> {
        match epoch == Some(self.epoch) {
            true => Ok(()),
            false => Err(Error::Failed(
                "the card was brought up anew meanwhile, or lost entries, and what was written then isn't known; try again".into(),
            )),
        }
    }

    /// Does something with the journal, and with the stamps that are free in it.
    fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Journal, &mut Stamps) -> Result<T, journal::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (after, bound) = (self.after, self.bound);
        self.desk.call(move |held| {
            let journal = held.journal()?;
            let done = journal.stamps_beside(after, bound).and_then(|mut stamps| work(journal, &mut stamps));
            done.map_err(|error| {
                held.check();
                error.into()
            })
        })?
    }
}

/// Done when everything is settled.
pub type Work = Box<dyn FnOnce(&Settled<'_>) + Send>;

/// What the thread that has the card does for who reaches primary through it.
pub trait Way: Send + Sync {
    /// From now on it is noted where the volume is written. Where it was since the last call, and the target has executed it.
    fn watch(&self, volume: u16) -> Result<Extents, Error>;
    /// Where writes of the volume have no answer, or may still be executed though they are unknown.
    fn unsettled(&self, volume: u16) -> Result<Extents, Error>;
    /// Has something done as soon as the journal has all that the arbiter has given by now.
    fn settle(&self, work: Work) -> Result<(), Error>;
    /// Only this host's port may write the volume, or all may again.
    fn fence(&self, volume: u16, fenced: bool) -> Result<(), Error>;
    /// This host's port of the card.
    fn port(&self) -> Option<u8>;
    /// How long an unknown write may still be executed.
    fn quarantine(&self) -> Duration;
}

/// Primary of one volume, through the card.
pub struct Through<'a> {
    desk: &'a Arc<Desk>,
    way: &'a dyn Way,
    device: &'a mut dyn Device,
    bar: ProgressBar,
    volume: Volume,
    /// When it was begun to look.
    epoch: Option<(u64, u64)>,
}

impl<'a> Through<'a> {
    /// `device` is the volume's.
    pub fn new(
        desk: &'a Arc<Desk>,
        way: &'a dyn Way,
        volume: &str,
        device: &'a mut dyn Device,
        bar: &ProgressBar,
    ) -> Result<Self, Error> {
        let reader = JournalReader::open(&desk.name)?;
        let mut volume = reader.tables().volume(volume)?.clone();
        volume.sectors = reader.sectors_now()?.get(&volume.index).copied().unwrap_or(volume.sectors);
        if volume.bytes() != device.bytes() {
            let (file, has) = (device.name(), device.bytes());
            let what = format!("it has {has} bytes, and volume {} has {}", volume.name(), volume.bytes());
            return Err(Error::File { file, what });
        }
        Ok(Self { desk, way, device, bar: bar.clone(), volume, epoch: None })
    }

    /// The journal as it is, all of it durable.
    fn reader(&self) -> Result<JournalReader, Error> {
        self.desk.call(|held| held.journal().and_then(|journal| Ok(journal.sync()?)))??;
        Ok(JournalReader::open(&self.desk.name)?)
    }

    /// Has something done when everything is settled, and waits for it.
    fn settled<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Settled<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (tell, told) = sync_channel(1);
        self.way.settle(Box::new(move |settled| drop(tell.send(work(settled)))))?;
        told.recv().map_err(|_| closed())?
    }

    fn read(&mut self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        self.device.read(buffer, offset).map_err(|e| {
            Error::Failed(format!(
                "{}: reading {} bytes at offset {offset}: {e}",
                self.device.name(),
                buffer.len()
            ))
        })
    }

    /// Waits until no write of the volume is under way any more.
    fn wait_for_answers(&self) -> Result<(), Error> {
        let mut patience = Patience::new(self.way);
        loop {
            self.settled(|_| Ok(()))?;
            let unsettled = self.way.unsettled(self.volume.index)?;
            if unsettled.is_empty() {
                return Ok(());
            }
            patience.wait(&self.volume, &unsettled)?;
        }
    }
}

/// Waits for what doesn't come to rest, but not for ever.
struct Patience {
    since: Instant,
    limit: Duration,
    least: u64,
}

impl Patience {
    fn new(way: &dyn Way) -> Self {
        Self { since: Instant::now(), limit: PATIENCE + way.quarantine(), least: u64::MAX }
    }

    fn wait(&mut self, volume: &Volume, left: &Extents) -> Result<(), Error> {
        if left.sectors() < self.least {
            (self.since, self.least) = (Instant::now(), left.sectors());
        }
        if self.since.elapsed() > self.limit {
            let first = left.iter().next().map_or(0, |range| range.start);
            return Err(Error::Failed(format!(
                "volume {}: {} sectors, the first {first}, don't come to rest: writes there have no answer. Look after \
                 the target, and try again",
                volume.name(),
                left.sectors()
            )));
        }
        std::thread::sleep(LOOK_AGAIN);
        Ok(())
    }
}

fn closed() -> Error {
    Error::Failed("the card isn't drained any more, or not just now; host-agent status tells".into())
}

fn bytes_of(sectors: &std::ops::Range<u64>) -> std::ops::Range<u64> {
    sectors.start * SECTOR_BYTES as u64..sectors.end * SECTOR_BYTES as u64
}
