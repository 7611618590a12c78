//! Stopping a card cleanly.

use crate::card::{Card, CardError};
use crate::drain::{Driver, RingError};
use crate::patience::Patience;
use crate::registers::{card, ports};
use layout::registers::{control, PORT_FLUSH};
use std::time::Duration;

/// Why a card could not be stopped cleanly. It keeps its session: the next bring-up finds an unclean
/// stop.
#[derive(Debug, thiserror::Error)]
pub enum StopError<E> {
    /// The card itself failed.
    #[error(transparent)]
    Card(#[from] CardError),
    /// A ring holds what can't be.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The caller could not take the last records.
    #[error("taking the last records: {0}")]
    Take(E),
    /// Something is still on its way.
    #[error(
        "after {limit:?}, port {port} still has {in_flight} writes without an answer and {undrained} bytes \
         that were not taken"
    )]
    Unsettled {
        /// How long it had.
        limit: Duration,
        /// The first such port.
        port: usize,
        /// Its writes in flight.
        in_flight: u32,
        /// Bytes in the port's ring and in the host's.
        undrained: u64,
    },
}

impl<C: Card> Driver<C> {
    /// Closes writes: from now on they are dropped, and counted; reads pass.
    pub fn close_writes(&mut self) -> Result<(), CardError> {
        self.set_control(control::TIME_ENABLED)
    }

    /// Goes on after a [`Driver::stop`] that failed because something was still on its way.
    pub fn go_on(&mut self, flush_period: u32) -> Result<(), CardError> {
        card::FLUSH_PERIOD.write(&mut self.card, flush_period)?;
        self.set_control(control::TIME_ENABLED | control::WRITES_OPEN)
    }

    /// The volumes, a bit each, that sources on `port` may write from now on.
    pub fn allow(&mut self, port: usize, volumes: u32) -> Result<(), CardError> {
        ports::VOLUMES.of(port).write(&mut self.card, volumes)
    }

    /// Writes of `port` that have no answer, or whose interlock hasn't ended.
    pub fn in_flight(&mut self, port: usize) -> Result<u32, CardError> {
        in_flight(&mut self.card, port)
    }

    /// Asks every port for a watermark and a drain now.
    pub fn flush(&mut self) -> Result<(), CardError> {
        (0..self.ports()).try_for_each(|port| ports::COMMAND.of(port).write(&mut self.card, PORT_FLUSH))
    }

    /// Stops the card cleanly: closes writes, waits until every write has its answer and every record
    /// is taken, and only then takes the session away.
    ///
    /// `take` is called whenever there may be records; it must consume them all in the end. What it
    /// consumes counts as safe: a clean stop promises that the journal lacks nothing. `limit` is
    /// time of the card. After an error this may be called again; after success the driver has no ports.
    pub fn stop<E>(
        &mut self,
        limit: Duration,
        mut take: impl FnMut(&mut Self) -> Result<(), E>,
    ) -> Result<(), StopError<E>> {
        if self.is_stopped() {
            return Ok(());
        }
        self.close_writes()?;
        self.settle(limit, &mut take, |driver, port| Ok(in_flight(&mut driver.card, port)? == 0))?;
        // No port may end below what another has: a merge over ports waits for the last watermark.
        let last_stamp = card::LAST_STAMP.read(&mut self.card)?;
        // Periodic watermarks would keep the rings from ever running empty.
        card::FLUSH_PERIOD.write(&mut self.card, 0)?;
        self.flush()?;
        self.settle(limit, &mut take, |driver, port| {
            // A write that waited for its admission may have come after all.
            if in_flight(&mut driver.card, port)? != 0 {
                return Ok(false);
            }
            let level = ports::RING_LEVEL.of(port).read(&mut driver.card)?;
            let produced = ports::PRODUCED.of(port).read(&mut driver.card)?;
            let ring = &driver.rings[port];
            let delivered = ring.progress.stamp >= last_stamp;
            Ok(level == 0 && ring.is_empty() && ring.consumed == produced && delivered)
        })?;
        for port in 0..self.ports() {
            ports::CONTROL.of(port).write(&mut self.card, 0)?;
        }
        card::SESSION.write(&mut self.card, 0)?;
        self.set_control(0)?;
        // Reading pushes what was posted: the memory goes only when the card knows.
        card::STATUS.read(&mut self.card)?;
        for ring in &self.rings {
            self.card.unmap_dma(ring.region)?;
        }
        self.rings.clear();
        self.card.unmap_dma(self.mailboxes)?;
        Ok(())
    }

    fn is_stopped(&self) -> bool {
        self.rings.is_empty()
    }

    /// Drains until `settled` says so of every port.
    fn settle<E>(
        &mut self,
        limit: Duration,
        take: &mut impl FnMut(&mut Self) -> Result<(), E>,
        settled: impl Fn(&mut Self, usize) -> Result<bool, CardError>,
    ) -> Result<(), StopError<E>> {
        let mut patience = Patience::new(limit);
        loop {
            self.poll()?;
            take(self).map_err(StopError::Take)?;
            let mut unsettled = None;
            for port in 0..self.ports() {
                if !settled(self, port)? {
                    unsettled = unsettled.or(Some(port));
                }
            }
            let Some(port) = unsettled else { return Ok(()) };
            if patience.is_over() {
                let in_flight = in_flight(&mut self.card, port)?;
                let level = ports::RING_LEVEL.of(port).read(&mut self.card)?;
                let produced = ports::PRODUCED.of(port).read(&mut self.card)?;
                let undrained = u64::from(level) * 64 + produced.saturating_sub(self.rings[port].consumed);
                return Err(StopError::Unsettled { limit, port, in_flight, undrained });
            }
            patience.wait(&mut self.card)?;
        }
    }
}

fn in_flight<C: Card>(card: &mut C, port: usize) -> Result<u32, CardError> {
    Ok(ports::STATUS.of(port).read(card)? >> 16 & 0xFF)
}
