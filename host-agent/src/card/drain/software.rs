//! Software ports in the card's session: what they write goes into one order with what the card delivers.
//!
//! Their clock is the card's. The card's thread takes their records up to the stamp that all of the card's ports have delivered
//! to, so they never hold the card back; while somebody waits for theirs, it asks the card for watermarks.

use crate::daemon::{say, Desk};
use crate::replay::Beside;
use journal::{Delivered, End, OwnedRecord, Volume};
use layout::entry::{EntryHeader, Kind};
use ports::clock::{CardClock, Clock};
use ports::export::FIRST_PORT;
use ports::line::Wanted;
use ports::path::{floor, SoftwarePorts};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::Arc;

/// Whether anything more comes of the software ports.
const GOES_ON: u8 = 0;
const WHOLE: u8 = 1;
const NOT_WHOLE: u8 = 2;

/// See the module.
pub struct Software {
    desk: Arc<Desk>,
    ports: Arc<SoftwarePorts>,
    clock: Arc<CardClock>,
    arbiter: u16,
    /// As the journal has them.
    volumes: Vec<Volume>,
    /// Something of theirs was appended that isn't durable.
    undurable: AtomicBool,
    ended: AtomicU8,
}

impl Software {
    /// Those ports, which are stamped by that clock and numbered by that arbiter.
    pub fn new(
        desk: &Arc<Desk>,
        ports: Arc<SoftwarePorts>,
        clock: Arc<CardClock>,
        arbiter: u16,
        volumes: &[Volume],
    ) -> Self {
        let served = |volume: &&Volume| ports.volumes().iter().any(|served| served.index == volume.index);
        let volumes = volumes.iter().filter(served).cloned().collect();
        let (undurable, ended) = (AtomicBool::new(false), AtomicU8::new(GOES_ON));
        Self { desk: Arc::clone(desk), ports, clock, arbiter, volumes, undurable, ended }
    }

    /// The ports' volumes.
    pub fn volumes(&self) -> &[Volume] {
        &self.volumes
    }

    /// The ports' clock.
    pub fn clock(&self) -> &CardClock {
        &self.clock
    }

    /// What somebody waits for.
    pub fn wanted(&self) -> Wanted {
        self.ports.wanted()
    }

    /// Something waits to be made durable, and somebody for that.
    pub fn waits_for_commit(&self, wanted: &Wanted) -> bool {
        wanted.durable.is_some() && self.undurable.load(Ordering::Relaxed)
    }

    /// The last stamp that was given or promised, or would be by now.
    pub fn last_stamp(&self) -> u64 {
        self.ports.last_stamp().max(self.clock.read().nanoseconds)
    }

    /// A session has begun, behind that end of the journal: writes are let in.
    pub fn begin(&self, end: &End) {
        self.ports.resume(floor(end, self.arbiter));
    }

    /// The card's thread takes nothing more.
    pub fn give_up(&self, why: &str) {
        self.ports.give_up(why.to_owned());
    }

    /// No more clients. `whole`: what they wrote is in the journal, and primary has it.
    pub fn end(&self, whole: bool) {
        self.ended.store(if whole { WHOLE } else { NOT_WHOLE }, Ordering::Release);
    }

    /// `None`: it goes on. Else whether the journal has everything.
    pub fn ended(&self) -> Option<bool> {
        match self.ended.load(Ordering::Acquire) {
            GOES_ON => None,
            ended => Some(ended == WHOLE && self.ports.failure().is_none()),
        }
    }

    /// The session has ended in order, and all of it is in the journal.
    pub fn ended_in_order(&self) {
        if self.ended() != Some(true) {
            return;
        }
        if let Err(error) = self.ports.ended() {
            let name = self.desk.name.display();
            say(format_args!(
                "{name}: the log of dirty regions: {error}; the next start looks at everything"
            ));
        }
    }
}

impl Beside for Software {
    fn take_to(&self, bound: u64) -> Vec<OwnedRecord> {
        let taken = self.ports.take_to(bound).into_iter();
        // Who still writes it to primary keeps it: then it is copied.
        taken
            .map(|record| OwnedRecord {
                header: record.header,
                payload: Arc::unwrap_or_clone(record.payload),
            })
            .collect()
    }

    fn delivered(&self, bound: u64) -> Vec<Delivered> {
        self.ports.delivered(bound)
    }

    fn appended(&self, records: &[EntryHeader], up_to: u64, end: &End) {
        let own: Vec<EntryHeader> = records
            .iter()
            .filter(|header| header.port >= FIRST_PORT && header.kind != Kind::Gap as u8)
            .copied()
            .collect();
        let entries = own.iter().filter(|header| header.kind != Kind::Completion as u8);
        let number = entries.map(|header| header.number.get()).max();
        if !own.is_empty() {
            self.undurable.store(true, Ordering::Relaxed);
        }
        self.ports.appended(&own, number, up_to, (end.order, end.timestamp));
    }

    fn durable(&self) {
        self.undurable.store(false, Ordering::Relaxed);
        self.ports.made_durable();
    }

    fn lost(&self) {
        if self.ports.failure().is_some() {
            return;
        }
        let why = "ended while the journal was full: what it has no room for is a gap; the next start makes journal and primary even";
        say(format_args!("{}: {why}", self.desk.name.display()));
        self.ports.give_up(why.into());
    }
}
