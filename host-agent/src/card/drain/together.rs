//! A card that is drained and exports that are served in one session, as the daemon's lodger.

use super::session::Draining;
use crate::daemon::Lodger;
use crate::error::Error;
use crate::serve::Serving;
use crate::through_card::Way;
use std::sync::Arc;

/// See the module.
pub struct Together {
    serving: Arc<Serving>,
    card: Arc<Draining>,
}

impl Together {
    /// Those two.
    pub fn new(serving: Arc<Serving>, card: Arc<Draining>) -> Self {
        Self { serving, card }
    }
}

impl Lodger for Together {
    /// The exports first: the card's thread takes what they wrote.
    fn step_aside(&self) -> Result<(), Error> {
        self.serving.step_aside()?;
        self.card.step_aside().inspect_err(|_| self.serving.go_on())
    }

    fn come_back(&self) {
        self.serving.come_back();
        self.card.come_back();
    }

    fn drain(&self, volume: Option<&str>) -> Result<u64, Error> {
        let served = self.serving.drain(volume)?;
        let card = self.card.drain(volume)?;
        Ok(if volume.is_some_and(|volume| self.serving.serves(volume)) { served } else { card })
    }

    fn clients(&self, volume: &str) -> usize {
        self.serving.clients(volume)
    }

    fn serves(&self, volume: &str) -> bool {
        self.serving.serves(volume) || self.card.serves(volume)
    }

    fn way(&self) -> Option<&dyn Way> {
        self.card.way()
    }
}
