//! The hybrid logical clock of an arbiter: its stamps strictly increase, whatever the leaf clocks do
//! (DESIGN §3, invariant 2).

/// A stamp, and whether it is the clock's or the counter's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Nanoseconds since the Unix epoch.
    pub nanoseconds: u64,
    /// The leaf's time was not later than the last stamp, so this is last + 1.
    pub logical: bool,
}

/// No stamp above the last one exists: the floor or a clock was near the end of a u64 (the year 2554).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no time stamp is left above {last} ns: a clock or the stamp floor was set absurdly high")]
pub struct Exhausted {
    /// The last stamp.
    pub last: u64,
}

/// Gives the stamps of one arbiter: the port's leaf time, or last + 1 where that is not later.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HybridClock {
    last: u64,
}

impl HybridClock {
    /// A clock whose stamps are all above `floor`.
    pub fn new(floor: u64) -> Self {
        Self { last: floor }
    }

    /// From now on stamps are above `floor`; a floor below the last stamp changes nothing.
    pub fn raise_floor(&mut self, floor: u64) {
        self.last = self.last.max(floor);
    }

    /// The last stamp given, or the floor.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The next stamp, for something that happened at `leaf` nanoseconds of its port's leaf clock.
    pub fn stamp(&mut self, leaf: u64) -> Result<Stamp, Exhausted> {
        let next = self.last.checked_add(1).ok_or(Exhausted { last: self.last })?;
        let nanoseconds = leaf.max(next);
        assert!(nanoseconds > self.last);
        self.last = nanoseconds;
        Ok(Stamp { nanoseconds, logical: leaf < next })
    }
}
