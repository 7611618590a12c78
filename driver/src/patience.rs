//! Waiting with an end.

use crate::card::{Card, CardError};
use std::time::Duration;

/// How often something is looked at that is waited for, in time of the card.
const LOOK_EVERY: Duration = Duration::from_micros(50);

/// A bounded wait in the card's own time. A wait that an interrupt cuts short counts for a part of
/// itself, so that a storm of them can't make it endless.
pub(crate) struct Patience {
    left: Duration,
}

impl Patience {
    pub fn new(limit: Duration) -> Self {
        Self { left: limit }
    }

    pub fn is_over(&self) -> bool {
        self.left.is_zero()
    }

    pub fn wait<C: Card>(&mut self, card: &mut C) -> Result<(), CardError> {
        let interrupts = card.wait(LOOK_EVERY)?;
        let share = if interrupts.0 == 0 { 1 } else { 64 };
        self.left = self.left.saturating_sub(LOOK_EVERY / share);
        Ok(())
    }
}
