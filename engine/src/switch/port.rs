//! A port: its partial journal, its writes in flight, those that wait, its lists and counters.

use super::arbiter::Arbiter;
use super::hold_queue::HoldQueue;
use super::ring::{Ring, Standing};
use super::scoreboard::Scoreboard;
use super::settings::Settings;
use super::Now;
use crate::entry;
use crate::frame::{PortRules, VolumeTable};
use layout::entry::{record_bytes, GapReason, NO_INDEX};
use layout::registers::{Counter, SOURCES};
use layout::SECTOR_BYTES;

/// Places of a port's counters, as the card's registers have them.
pub const COUNTERS: usize = 32;
/// Bytes of a completion.
pub(super) const COMPLETION_BYTES: usize = record_bytes(0);

/// A port.
#[derive(Clone, Debug)]
pub struct Port {
    pub(super) index: usize,
    pub(super) rules: PortRules,
    allowed_sources: Option<Vec<[u8; 6]>>,
    pub(super) ring: Ring,
    pub(super) scoreboard: Scoreboard,
    pub(super) queue: HoldQueue,
    sources: Vec<[u8; 6]>,
    counters: [u64; COUNTERS],
    sequence: u64,
    last_stamp: u64,
    last_number: u64,
    /// Late answers found no room: everything after this stamp and number may lack some.
    lost_since: Option<(u64, u64)>,
    /// The host has reported everything up to this number durable.
    pub(super) durable: u64,
}

impl Port {
    pub(super) fn new(index: usize, settings: &Settings, volumes: &VolumeTable) -> Self {
        let of_port = &settings.ports[index];
        Self {
            index,
            rules: PortRules { volumes: volumes.clone(), allowed: of_port.volumes, writes_open: true },
            allowed_sources: of_port.sources.clone(),
            ring: Ring::new(settings.ring_bytes),
            scoreboard: Scoreboard::new(settings.slots),
            queue: HoldQueue::new(settings.hold_bytes),
            sources: Vec::new(),
            counters: [0; COUNTERS],
            sequence: 0,
            last_stamp: settings.stamp_floor,
            last_number: settings.number_floor,
            lost_since: None,
            durable: 0,
        }
    }

    /// What became of the port's frames.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters[counter as usize]
    }

    /// Sources in the order in which their first write was admitted.
    pub fn sources(&self) -> &[[u8; 6]] {
        &self.sources
    }

    /// Bytes of records that wait for the drain.
    pub fn level(&self) -> usize {
        self.ring.level()
    }

    /// Requests that the target may still execute, and writes that wait here.
    pub fn in_flight(&self) -> usize {
        self.scoreboard.used().map(|(_, slot)| slot.requests.len()).sum()
    }

    pub(super) fn count(&mut self, counter: Counter) {
        self.counters[counter as usize] += 1;
    }

    /// May frames of this source come in here?
    pub(super) fn allows(&self, source: [u8; 6]) -> bool {
        self.allowed_sources.as_ref().is_none_or(|list| list.contains(&source))
    }

    /// The index that stands for a source in entries.
    pub(super) fn source_index(&mut self, source: [u8; 6]) -> u16 {
        let known = self.sources.iter().position(|known| *known == source);
        let index = known.unwrap_or_else(|| {
            if self.sources.len() < SOURCES {
                self.sources.push(source);
                return self.sources.len() - 1;
            }
            usize::from(NO_INDEX)
        });
        index as u16
    }

    /// Bytes that an entry takes in the ring.
    pub(super) fn entry_bytes(sectors: u16, images: usize) -> usize {
        record_bytes(images * usize::from(sectors) * SECTOR_BYTES)
    }

    /// Puts a record into reserved room. `make` gets the commit, whose number is a new entry's, or
    /// `number` if there is one. Returns the number.
    pub(super) fn commit(
        &mut self,
        arbiter: &mut Arbiter,
        now: &Now,
        number: Option<u64>,
        make: impl FnOnce(&entry::Commit) -> Vec<u8>,
    ) -> u64 {
        let commit = self.stamped(arbiter, now, number);
        if number.is_none() {
            self.last_number = commit.number;
        }
        self.ring.commit(make(&commit));
        commit.number
    }

    /// A late answer: into the room that is kept for one, or into a gap.
    pub(super) fn commit_late(
        &mut self,
        arbiter: &mut Arbiter,
        now: &Now,
        number: u64,
        make: impl FnOnce(&entry::Commit) -> Vec<u8>,
    ) {
        if self.lost_since.is_none() && self.ring.has_room_for(Standing::Late) {
            let commit = self.stamped(arbiter, now, Some(number));
            self.ring.commit_standing(Standing::Late, make(&commit));
            return;
        }
        self.lost_since.get_or_insert((self.last_stamp, self.last_number));
        self.tell_loss(arbiter, now);
    }

    /// Writes the gap that stands for lost late answers, as soon as there is room for it.
    pub(super) fn tell_loss(&mut self, arbiter: &mut Arbiter, now: &Now) {
        if !self.ring.has_room_for(Standing::Gap) {
            return;
        }
        let Some((from_stamp, from_number)) = self.lost_since.take() else { return };
        let next = arbiter.number() + 1;
        let commit = self.stamped(arbiter, now, Some(next));
        self.last_number = next - 1;
        self.ring
            .commit_standing(Standing::Gap, entry::gap(&commit, from_stamp, from_number, GapReason::Lost));
    }

    /// A watermark, unless one waits for the drain already.
    pub(super) fn watermark(&mut self, arbiter: &mut Arbiter, now: &Now) {
        if self.ring.has_room_for(Standing::Watermark) {
            let number = arbiter.number();
            let commit = self.stamped(arbiter, now, Some(number));
            self.last_number = number;
            self.ring.commit_standing(Standing::Watermark, entry::watermark(&commit));
        }
    }

    fn stamped(&mut self, arbiter: &mut Arbiter, now: &Now, number: Option<u64>) -> entry::Commit {
        let commit = match number {
            None => arbiter.entry(self.index, self.sequence, now),
            Some(number) => arbiter.record(self.index, self.sequence, number, now),
        };
        assert!(commit.timestamp > self.last_stamp);
        self.sequence += 1;
        self.last_stamp = commit.timestamp;
        commit
    }
}
