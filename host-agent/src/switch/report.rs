//! How the switch is, for those who ask: `status`, and who wants to change a volume under its users.

use crate::error::Error;
use crate::output::{grouped, Output};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, PoisonError};

/// Users that are told apart; more than these count as no more.
const MOST_USERS: usize = 1024;

/// What `status --json` prints of a switch. Add, don't change.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SwitchStatus {
    /// Where targets are.
    pub uplink: InterfaceStatus,
    /// Where sources are.
    pub ports: Vec<InterfaceStatus>,
}

/// An interface.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct InterfaceStatus {
    /// Number of the port; `None`: the uplink.
    pub port: Option<u8>,
    /// Its name.
    pub name: String,
    /// `up`, `down` or `gone`.
    pub link: String,
    /// Frames that came in.
    pub received: u64,
    /// Frames that went out.
    pub sent: u64,
    /// What became of frames, by name, as far as there are any: the card's counters, and what never reached the switch.
    pub counters: BTreeMap<String, u64>,
}

impl SwitchStatus {
    /// For people.
    pub fn print(&self, output: &mut Output) -> Result<(), Error> {
        for interface in self.ports.iter().chain([&self.uplink]) {
            let role = interface.port.map_or_else(|| "uplink".to_owned(), |port| format!("port {port}"));
            output.line(format!(
                "  {role:<8} {} {}: {} frames in, {} out",
                interface.name,
                interface.link,
                grouped(interface.received),
                grouped(interface.sent)
            ))?;
            let counts: Vec<String> = interface
                .counters
                .iter()
                .map(|(name, count)| format!("{name} {}", grouped(*count)))
                .collect();
            if !counts.is_empty() {
                output.line(format!("           {}", counts.join(", ")))?;
            }
        }
        Ok(())
    }
}

/// A volume, and a source that has used it.
type User = ((u16, u8), [u8; 6]);

/// See the module.
#[derive(Default)]
pub struct Report {
    status: Mutex<SwitchStatus>,
    users: Mutex<HashSet<User>>,
}

impl Report {
    /// It is so now.
    pub fn show(&self, status: SwitchStatus) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }

    /// How it was a moment ago.
    pub fn status(&self) -> SwitchStatus {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A source has used a volume.
    pub fn note_user(&self, volume: (u16, u8), source: [u8; 6]) {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if users.len() < MOST_USERS {
            users.insert((volume, source));
        }
    }

    /// Sources that have used a volume since the agent began: nobody says good-bye with AoE. If there were more than are
    /// noted, each volume counts as used.
    pub fn users(&self, volume: (u16, u8)) -> usize {
        let users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let of_volume = users.iter().filter(|(used, _)| *used == volume).count();
        if users.len() < MOST_USERS {
            of_volume
        } else {
            of_volume.max(1)
        }
    }
}
