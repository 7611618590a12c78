//! What a replay runs through: the simulated card, or the switch in software. Two traits, by where the data
//! flow: frames through an [`Engine`], records out of its [`Rings`].

use crate::error::Error;
use driver::{Counters, Record};
use std::time::Duration;

/// The ports' rings: checked records, and what the host says of them.
pub trait Rings {
    /// Its name in messages.
    const NAME: &'static str;

    /// How many ports there are.
    fn ports(&self) -> usize;

    /// Checks what has come into the rings.
    fn poll(&mut self) -> Result<(), Error>;

    /// The checked records of `port` that aren't consumed.
    fn records(&self, port: usize) -> impl Iterator<Item = Record<'_>>;

    /// Gives back the first `records` of them.
    fn consume(&mut self, port: usize, records: usize) -> Result<(), Error>;

    /// The MACs of `port`'s sources, by the index that entries carry.
    fn sources(&mut self, port: usize) -> Result<Vec<[u8; 6]>, Error>;

    /// Reports everything up to the arbiter's `number` durable.
    fn durable(&mut self, number: u64) -> Result<(), Error>;
}

/// What frames go through. Its time runs in [`Engine::step`] and [`Engine::wait`] only.
pub trait Engine {
    /// Its rings.
    type Rings: Rings;

    /// Its rings.
    fn rings(&mut self) -> &mut Self::Rings;

    /// A frame arrives at `port`, behind those that were offered before.
    fn offer(&mut self, port: usize, frame: Vec<u8>);

    /// Are frames still on their way into `port`?
    fn is_arriving(&self, port: usize) -> bool;

    /// Lets something happen.
    fn step(&mut self) -> Result<(), Error>;

    /// The next frame that came out of `port`.
    fn returned(&mut self, port: usize) -> Option<Vec<u8>>;

    /// What went wrong inside the target.
    fn target_trouble(&self) -> Option<&str>;

    /// Asks every port for a watermark and a drain.
    fn flush(&mut self) -> Result<(), Error>;

    /// What became of `port`'s frames.
    fn counters(&mut self, port: usize) -> Result<Counters, Error>;

    /// Its own time: the card's in core cycles, the software's in ns.
    fn now(&self) -> u64;

    /// The time that a group commit waits by.
    fn commit_clock(&self) -> Duration;

    /// Nothing has come since `since`, and nothing will before something is done from outside or a time-out
    /// of the engine is over.
    fn is_at_rest(&self, since: u64) -> bool;

    /// At rest, with nothing to be done from outside: lets time pass. `false`: nothing ever comes, after
    /// there was no news since `news`.
    fn wait(&mut self, news: u64) -> Result<bool, Error>;

    /// Ends it in order: no more writes; `take` takes out every record that is left.
    fn stop(&mut self, take: impl FnMut(&mut Self::Rings) -> Result<(), Error>) -> Result<(), Error>;

    /// What it measured of itself.
    fn measured(&mut self) -> Result<Measured, Error>;
}

/// What an engine measured of itself.
#[derive(Clone, Debug, PartialEq)]
pub enum Measured {
    /// The simulated card.
    Card {
        /// Of each port: its leaf clock follows the time base.
        locked: Vec<bool>,
        /// Largest difference of two locked leaf clocks, ns.
        worst_skew_ns: f64,
    },
    /// The switch in software, whose ports all have the one simulated clock.
    Software,
}
