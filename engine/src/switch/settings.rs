//! What a switch goes by.

use crate::frame::VolumeTable;
use layout::aoe::MAXIMUM_SECTORS;
use layout::registers::{MAXIMUM_PORTS, SLOTS, VOLUMES};

/// Most slots of a scoreboard: a record's slot is a byte, and a before-image read's tag has eight bits for it.
pub const MAXIMUM_SLOTS: usize = 256;
/// Floors and clocks beyond this are refused or cut: the year 2262. Stamps never run out then.
pub const MAXIMUM_STAMP: u64 = 1 << 63;

/// Which images of a write are journaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Images {
    /// The data after it (claim 20).
    #[default]
    After,
    /// The data before it (claim 21).
    Before,
    /// Both, in one entry.
    Both,
}

impl Images {
    /// Has an entry the data before the write?
    pub fn has_before(self) -> bool {
        self != Self::After
    }

    /// Images in an entry.
    pub fn count(self) -> usize {
        if self == Self::Both {
            2
        } else {
            1
        }
    }
}

/// When a source gets its answer, and with before-images when a write is forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Acknowledge {
    /// As soon as the port has it: the answer when it comes, the write when its entry is in the ring.
    #[default]
    Port,
    /// When the host has reported the entry durable.
    Journal,
}

/// A volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Volume {
    /// AoE shelf.
    pub shelf: u16,
    /// AoE slot.
    pub slot: u8,
    /// What is journaled.
    pub images: Images,
    /// What is waited for.
    pub acknowledge: Acknowledge,
}

impl Volume {
    /// A volume with the policy that belongs to its images: `journal` where there is a before-image,
    /// for that is of no use unless it is durable before the write.
    pub fn new(shelf: u16, slot: u8, images: Images) -> Self {
        let acknowledge = if images.has_before() { Acknowledge::Journal } else { Acknowledge::Port };
        Self { shelf, slot, images, acknowledge }
    }
}

/// A port's lists.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Port {
    /// Bit mask of the volumes that its sources may write.
    pub volumes: u32,
    /// The sources that may be there; `None`: any.
    pub sources: Option<Vec<[u8; 6]>>,
}

/// The four time-outs, ns (DESIGN §3, invariant 8; reasons in `docs/registers.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From a write's arrival to its admission.
    pub hold: u64,
    /// From a before-image read to its repetition.
    pub retry: u64,
    /// From forwarding to the status *unknown*.
    pub unknown: u64,
    /// From the last copy forwarded to the end of the interlock.
    pub quarantine: u64,
}

impl Default for Timeouts {
    /// The reset values of the register map.
    fn default() -> Self {
        const MILLISECOND: u64 = 1_000_000;
        Self {
            hold: 40 * MILLISECOND,
            retry: 10 * MILLISECOND,
            unknown: 1_000 * MILLISECOND,
            quarantine: 10_000 * MILLISECOND,
        }
    }
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The volumes by index.
    pub volumes: Vec<Volume>,
    /// The ports.
    pub ports: Vec<Port>,
    /// Time-outs.
    pub timeouts: Timeouts,
    /// Scoreboard slots of each port.
    pub slots: usize,
    /// Bytes of each port's ring.
    pub ring_bytes: usize,
    /// Bytes of writes that may wait for admission at each port.
    pub hold_bytes: usize,
    /// Stamps are above it, ns.
    pub stamp_floor: u64,
    /// Numbers are above it.
    pub number_floor: u64,
}

/// The smallest ring: two of the largest entries with their completions, and what always has room.
pub const MINIMUM_RING_BYTES: usize = layout::port_ring::needed_bytes(MAXIMUM_SECTORS, 2);

/// Settings that make no switch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SettingsError(String);

impl Settings {
    /// `ports` ports that may write every one of `volumes`, with the card's sizes.
    pub fn new(volumes: Vec<Volume>, ports: usize) -> Self {
        let all = volumes.iter().enumerate().map(|(index, _)| 1u32.wrapping_shl(index as u32)).sum();
        Self {
            volumes,
            ports: vec![Port { volumes: all, sources: None }; ports],
            timeouts: Timeouts::default(),
            slots: SLOTS,
            ring_bytes: 64 * 1024,
            hold_bytes: 16 * 1024,
            stamp_floor: 0,
            number_floor: 0,
        }
    }

    /// That they make a switch; gives the table of volumes.
    pub(super) fn check(&self) -> Result<VolumeTable, SettingsError> {
        let wrong = |text: String| Err(SettingsError(text));
        if self.ports.is_empty() || self.ports.len() > MAXIMUM_PORTS {
            return wrong(format!("{} ports; 1 to {MAXIMUM_PORTS} are possible", self.ports.len()));
        }
        if self.slots == 0 || self.slots > MAXIMUM_SLOTS {
            return wrong(format!("{} scoreboard slots; 1 to {MAXIMUM_SLOTS} are possible", self.slots));
        }
        if self.ring_bytes < MINIMUM_RING_BYTES {
            return wrong(format!("rings of {} bytes; {MINIMUM_RING_BYTES} are the least", self.ring_bytes));
        }
        if self.stamp_floor >= MAXIMUM_STAMP || self.number_floor >= MAXIMUM_STAMP {
            return wrong("a floor at or above 2^63 leaves no stamps or numbers".into());
        }
        let addresses: Vec<_> = self.volumes.iter().map(|volume| (volume.shelf, volume.slot)).collect();
        match VolumeTable::new(&addresses) {
            Some(table) => Ok(table),
            None => wrong(format!("{} volumes; {VOLUMES} are the most", self.volumes.len())),
        }
    }
}
