//! The simulated card behind its driver, as an engine of a replay.

use super::engine::{Engine, Measured, Rings};
use super::Beginning;
use crate::arguments::{EngineKind, Replay};
use crate::error::Error;
use ::engine::switch::Images;
use driver::{BringUp, Card, Counters, Driver, Record};
use layout::registers::{ticks, CORE_HZ, VOLUME_BEFORE, VOLUME_BOTH, VOLUME_JOURNAL};
use sim::target::VbladeModel;
use sim::verilator::user_cache;
use sim::{CardOptions, SimulatedCard, Simulator};
use std::time::{Duration, Instant};

/// Cycles between two looks at what came out of the card.
const LOOK_CYCLES: u64 = 256;
/// Cycles without news, beyond the target's own delay, after which the counters are looked at: more
/// than the longest frames of all ports take through the card.
const QUIET_CYCLES: u64 = 12_000;
/// Cycles without news after which the card is taken to be stuck: twice the default hold time.
const STUCK_CYCLES: u64 = 10_000_000;
/// How long the card may take to settle at the end, in its own time.
const STOP_LIMIT: Duration = Duration::from_millis(100);
/// Period of the card's watermarks. Short, for every cycle between two of them is simulated.
const FLUSH_MICROSECONDS: u64 = 100;
/// The same where each write waits for its entry's way to the disk.
const FLUSH_MICROSECONDS_HELD: u64 = 10;

/// A card that has been brought up.
pub struct CardEngine {
    driver: Driver<SimulatedCard>,
    answer_after: u64,
    began: Instant,
}

impl CardEngine {
    /// Makes a card with `target` behind its uplink, and brings it up to journal `images` of every write; sources
    /// may write the volumes in `table` whose bits are set in `allowed`.
    pub fn bring_up(
        arguments: &Replay,
        target: VbladeModel,
        images: Images,
        table: &[(u16, u8)],
        allowed: u32,
        beginning: &Beginning,
    ) -> Result<Self, Error> {
        let simulator = match arguments.engine {
            EngineKind::Verilated => Simulator::Verilator { cache: user_cache() },
            _ => Simulator::RustHdl,
        };
        let options = CardOptions { simulator, vcd: arguments.vcd.clone(), ..CardOptions::default() };
        let card = SimulatedCard::new(options, Box::new(target)).map_err(|e| match &arguments.vcd {
            Some(path) => Error::io(path, "writing the waveform", e),
            None => Error::Failed(format!("making the simulated card: {e}")),
        })?;
        let mut settings = BringUp::new(beginning.session, beginning.time, SimulatedCard::PORTS);
        settings.stamp_floor = beginning.stamp_floor;
        settings.number_floor = beginning.number_floor;
        settings.volumes = table.iter().copied().map(Some).collect();
        settings.volume_modes = vec![volume_mode(images); table.len()];
        settings.timeouts.flush_period =
            ticks(if images.has_before() { FLUSH_MICROSECONDS_HELD } else { FLUSH_MICROSECONDS });
        settings.lock_limit = Duration::from_millis(20);
        for port in &mut settings.ports {
            port.volumes = allowed;
        }
        let driver = Driver::bring_up(card, &settings)?;
        Ok(Self { driver, answer_after: arguments.answer_after, began: Instant::now() })
    }
}

/// Its bits in the volume table, with the policy that the switch in software has for it (`engine::switch::Volume::new`).
fn volume_mode(images: Images) -> u32 {
    match images {
        Images::After => 0,
        Images::Before => VOLUME_BEFORE | VOLUME_JOURNAL,
        Images::Both => VOLUME_BEFORE | VOLUME_BOTH | VOLUME_JOURNAL,
    }
}

impl<C: Card> Rings for Driver<C> {
    const NAME: &'static str = "the card";

    fn ports(&self) -> usize {
        self.ports()
    }

    fn poll(&mut self) -> Result<(), Error> {
        self.poll()?;
        Ok(())
    }

    fn records(&self, port: usize) -> impl Iterator<Item = Record<'_>> {
        self.batch(port).records()
    }

    fn consume(&mut self, port: usize, records: usize) -> Result<(), Error> {
        Ok(self.consume(port, records)?)
    }

    fn sources(&mut self, port: usize) -> Result<Vec<[u8; 6]>, Error> {
        Ok(self.sources(port)?)
    }

    fn durable(&mut self, number: u64) -> Result<(), Error> {
        Ok(self.durable(number)?)
    }
}

impl Engine for CardEngine {
    type Rings = Driver<SimulatedCard>;

    fn rings(&mut self) -> &mut Self::Rings {
        &mut self.driver
    }

    fn offer(&mut self, port: usize, frame: Vec<u8>) {
        self.driver.card_mut().offer(port, frame);
    }

    fn is_arriving(&self, port: usize) -> bool {
        self.driver.card().queued(port) > 0
    }

    /// Not [`Driver::wait`]: that reads a register after every time-out, and here the card's time is the
    /// scarce thing.
    fn step(&mut self) -> Result<(), Error> {
        let time = Duration::from_nanos(LOOK_CYCLES * 1_000_000_000 / CORE_HZ);
        self.driver.card_mut().wait(time)?;
        Ok(())
    }

    fn returned(&mut self, port: usize) -> Option<Vec<u8>> {
        self.driver.card_mut().returned(port)
    }

    fn target_trouble(&self) -> Option<&str> {
        self.driver.card().target().trouble()
    }

    fn flush(&mut self) -> Result<(), Error> {
        Ok(self.driver.flush()?)
    }

    fn counters(&mut self, port: usize) -> Result<Counters, Error> {
        Ok(self.driver.counters(port)?)
    }

    /// Core cycles from power-up.
    fn now(&self) -> u64 {
        self.driver.card().cycles()
    }

    /// The host's: a simulated card takes its time, and what waits in it for the disk waits by the host's clock too.
    fn commit_clock(&self) -> Duration {
        self.began.elapsed()
    }

    fn is_at_rest(&self, since: u64) -> bool {
        self.now() - since > QUIET_CYCLES + self.answer_after
    }

    /// Its time-outs run while it is stepped.
    fn wait(&mut self, news: u64) -> Result<bool, Error> {
        Ok(self.now() - news <= STUCK_CYCLES)
    }

    fn stop(&mut self, take: impl FnMut(&mut Self::Rings) -> Result<(), Error>) -> Result<(), Error> {
        let stopped = self.driver.stop(STOP_LIMIT, take);
        stopped.map_err(|error| Error::Failed(format!("stopping the card: {error}")))
    }

    fn measured(&mut self) -> Result<Measured, Error> {
        let mut locked = Vec::new();
        for port in 0..SimulatedCard::PORTS {
            locked.push(self.driver.leaf_clock(port)?.locked);
        }
        let card = self.driver.card();
        Ok(Measured::Card { locked, worst_skew_ns: card.worst_skew_ns() })
    }
}
