//! The switch in software, as an engine of a replay: simulated time, wires, and the target behind the uplink.
//!
//! Things happen one after the other, each at its moment of a simulated clock: a frame is whole at its port,
//! an answer comes from the target, a flush period is over. Between them no time passes. The host's clock says
//! when the simulated one begins, and nothing after that, so the same captures give the same journal, but for
//! that beginning. The disk is waited for in no time at all, and only when nothing else can happen: then one
//! commit serves every write that waits.

use super::engine::{Engine, Measured, Rings};
use super::{Beginning, PORTS};
use crate::error::Error;
use ::engine::switch::{Clock, Images, Now, Output, Settings, Switch, Volume};
use driver::{Counters, Record, Stream};
use layout::entry::{flags, ErrorBound, HEADER_BYTES};
use layout::registers::{Counter, CORE_HZ};
use sim::target::{Target, VbladeModel};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

/// Simulated ns from a watermark of all ports to the next.
const FLUSH_PERIOD: u64 = 100_000;
/// A port's records go down when there are so many bytes of them: the card's default.
const FLUSH_BYTES: usize = 128 * HEADER_BYTES;
/// Most bytes of records of a port that the host holds untaken before the port's own ring fills: what the
/// driver gives a card's port.
const HOST_RING_BYTES: usize = 1 << 20;
/// ns of a byte on a port's wire: 8 Gbit/s, as the simulated card's.
const NANOSECONDS_PER_BYTE: u64 = 1;
/// Bytes between two frames: preamble, FCS and inter-frame gap (IEEE 802.3 §4.4.2).
const GAP_BYTES: u64 = 24;
/// ns of a core cycle, which the target's delay is told in.
const CYCLE_NANOSECONDS: u64 = 1_000_000_000 / CORE_HZ;

/// What happens at a moment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A frame is whole at this port.
    Frame(usize, Vec<u8>),
    /// An answer is whole at the uplink.
    Answer(Vec<u8>),
}

/// The switch between its ports' wires and the target.
pub struct SoftwareEngine {
    switch: Switch,
    target: VbladeModel,
    /// Simulated ns since the beginning, and the time of day then.
    elapsed: u64,
    began: u64,
    /// By moment, then in the order in which they came to be.
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    events_made: u64,
    wires: Vec<Wire>,
    streams: Vec<Stream>,
    next_flush: u64,
    /// Every port has delivered up to this stamp.
    flushed: u64,
}

/// A port's wire.
#[derive(Default)]
struct Wire {
    /// The last frame that was offered is whole then.
    busy_until: u64,
    arriving: usize,
    returned: VecDeque<Vec<u8>>,
}

impl SoftwareEngine {
    /// A switch in front of `target` that journals `images` of every write to the volumes in `table` whose bits
    /// are set in `allowed`.
    pub fn new(
        target: VbladeModel,
        images: Images,
        table: &[(u16, u8)],
        allowed: u32,
        beginning: &Beginning,
    ) -> Result<Self, Error> {
        let volumes = table.iter().map(|&(shelf, slot)| Volume::new(shelf, slot, images)).collect();
        let mut settings = Settings::new(volumes, PORTS);
        (settings.stamp_floor, settings.number_floor) = (beginning.stamp_floor, beginning.number_floor);
        // As much as the flight takes a port's buffer for: without a burst nothing is dropped for room.
        settings.hold_bytes = super::PORT_BUFFER_BYTES;
        for port in &mut settings.ports {
            port.volumes = allowed;
        }
        let switch =
            Switch::new(settings).map_err(|e| Error::Failed(format!("making the software engine: {e}")))?;
        let stream = |port| Stream::new(port, beginning.stamp_floor, beginning.number_floor);
        Ok(Self {
            switch,
            target,
            elapsed: 0,
            began: beginning.time,
            events: BinaryHeap::new(),
            events_made: 0,
            wires: (0..PORTS).map(|_| Wire::default()).collect(),
            streams: (0..PORTS).map(stream).collect(),
            next_flush: FLUSH_PERIOD,
            flushed: beginning.stamp_floor,
        })
    }

    /// All ports have the one simulated clock, which is the time base: nothing is nearer to it.
    fn clock(&self) -> Now {
        let nanoseconds = self.began.saturating_add(self.elapsed);
        let clock = Clock { nanoseconds, flags: flags::CLOCK_LOCKED, error: ErrorBound::from_sixteenths(0) };
        Now { elapsed: self.elapsed, clock }
    }

    fn happens(&mut self, at: u64, event: Event) {
        self.events.push(Reverse((at, self.events_made, event)));
        self.events_made += 1;
    }

    /// Time only goes on.
    fn advance(&mut self, to: u64) {
        self.elapsed = self.elapsed.max(to);
    }

    /// Forwards what the switch gives out, and drains what is due.
    fn take_outputs(&mut self) -> Result<(), Error> {
        loop {
            while let Some(output) = self.switch.output() {
                match output {
                    Output::Port(port, frame) => self.wires[port].returned.push_back(frame),
                    Output::Uplink(frame) => {
                        let mut answers = Vec::new();
                        self.target.frame(&frame, self.elapsed / CYCLE_NANOSECONDS, &mut answers);
                        for (cycles, answer) in answers {
                            let delay = cycles.saturating_mul(CYCLE_NANOSECONDS);
                            self.happens(self.elapsed.saturating_add(delay), Event::Answer(answer));
                        }
                    }
                }
            }
            let due =
                |port: &usize| self.switch.ports()[*port].level() >= FLUSH_BYTES && self.has_room(*port);
            let Some(port) = (0..PORTS).find(due) else { return Ok(()) };
            self.drain(port)?;
        }
    }

    /// Has the host room for all that the port's ring can hold?
    fn has_room(&self, port: usize) -> bool {
        self.streams[port].held_bytes() + self.switch.settings().ring_bytes <= HOST_RING_BYTES
    }

    /// Takes what `port`'s ring holds, checks it, and holds it for the host. The room may let writes in.
    fn drain(&mut self, port: usize) -> Result<(), Error> {
        let now = self.clock();
        let mut bytes = Vec::new();
        self.switch.drain(port, usize::MAX, &now, &mut bytes);
        self.streams[port].take(&bytes).map_err(|e| Error::Failed(format!("the software engine: {e}")))
    }

    /// A watermark of every port, also of the idle ones, and everything goes down.
    fn flush_ports(&mut self) -> Result<(), Error> {
        let now = self.clock();
        for port in 0..PORTS {
            self.switch.watermark(port, &now);
        }
        // Draining may let a write in, which is stamped above the watermarks.
        self.flushed = self.switch.last_stamp();
        self.next_flush = self.elapsed.saturating_add(FLUSH_PERIOD);
        for port in 0..PORTS {
            if self.has_room(port) {
                self.drain(port)?;
            }
        }
        self.take_outputs()
    }

    /// What is due at `self.elapsed` by the switch's time-outs.
    fn tick(&mut self) -> Result<(), Error> {
        let now = self.clock();
        self.switch.tick(&now);
        self.take_outputs()
    }

    /// Something was stamped since every port told how far it has delivered, or isn't taken.
    fn is_undelivered(&self) -> bool {
        self.switch.last_stamp() > self.flushed
            || self.streams.iter().any(|stream| stream.held_bytes() > 0)
            || self.switch.ports().iter().any(|port| port.level() > 0)
    }
}

impl Rings for SoftwareEngine {
    const NAME: &'static str = "the software engine";

    fn ports(&self) -> usize {
        PORTS
    }

    /// What is drained is checked already.
    fn poll(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn records(&self, port: usize) -> impl Iterator<Item = Record<'_>> {
        self.streams[port].records()
    }

    fn consume(&mut self, port: usize, records: usize) -> Result<(), Error> {
        self.streams[port].consume(records);
        Ok(())
    }

    fn sources(&mut self, port: usize) -> Result<Vec<[u8; 6]>, Error> {
        Ok(self.switch.ports()[port].sources().to_vec())
    }

    fn durable(&mut self, number: u64) -> Result<(), Error> {
        let now = self.clock();
        for port in 0..PORTS {
            self.switch.durable(port, number, &now);
        }
        self.take_outputs()
    }
}

impl Engine for SoftwareEngine {
    type Rings = Self;

    fn rings(&mut self) -> &mut Self {
        self
    }

    fn offer(&mut self, port: usize, frame: Vec<u8>) {
        let wire = &mut self.wires[port];
        let bytes = frame.len() as u64 + GAP_BYTES;
        wire.busy_until = wire.busy_until.max(self.elapsed).saturating_add(bytes * NANOSECONDS_PER_BYTE);
        wire.arriving += 1;
        let at = wire.busy_until;
        self.happens(at, Event::Frame(port, frame));
    }

    fn is_arriving(&self, port: usize) -> bool {
        self.wires[port].arriving > 0
    }

    /// The next event, time-out or flush period. When there is no event, what is journaled goes down, and
    /// time stands still.
    fn step(&mut self) -> Result<(), Error> {
        let Some(Reverse((at, ..))) = self.events.peek() else {
            return if self.is_undelivered() { self.flush_ports() } else { Ok(()) };
        };
        let (at, deadline) = (*at, self.switch.deadline().unwrap_or(u64::MAX));
        self.advance(at.min(deadline).min(self.next_flush));
        if deadline <= self.elapsed {
            return self.tick();
        }
        if self.next_flush <= self.elapsed {
            return self.flush_ports();
        }
        let (now, event) = (self.clock(), self.events.pop());
        match event {
            Some(Reverse((_, _, Event::Frame(port, frame)))) => {
                self.wires[port].arriving -= 1;
                self.switch.frame(port, &frame, &now);
            }
            Some(Reverse((_, _, Event::Answer(frame)))) => self.switch.uplink(&frame, &now),
            None => {}
        }
        self.take_outputs()
    }

    fn returned(&mut self, port: usize) -> Option<Vec<u8>> {
        self.wires[port].returned.pop_front()
    }

    fn target_trouble(&self) -> Option<&str> {
        self.target.trouble()
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.flush_ports()
    }

    fn counters(&mut self, port: usize) -> Result<Counters, Error> {
        let port = &self.switch.ports()[port];
        Ok(Counter::ALL.iter().map(|&counter| (counter, port.counter(counter))).collect())
    }

    /// Simulated ns.
    fn now(&self) -> u64 {
        self.elapsed
    }

    /// The simulated one: by the host's, when the disk is waited for would be another time in every run, and
    /// with it what writes wait for.
    fn commit_clock(&self) -> Duration {
        Duration::from_nanos(self.elapsed)
    }

    fn is_at_rest(&self, _since: u64) -> bool {
        self.events.is_empty()
            && !self.is_undelivered()
            && self.wires.iter().all(|wire| wire.returned.is_empty())
    }

    /// To the switch's next time-out.
    fn wait(&mut self, _news: u64) -> Result<bool, Error> {
        let Some(deadline) = self.switch.deadline() else { return Ok(false) };
        self.advance(deadline);
        self.tick()?;
        Ok(true)
    }

    fn stop(&mut self, mut take: impl FnMut(&mut Self) -> Result<(), Error>) -> Result<(), Error> {
        self.switch.set_writes_open(false);
        while !self.is_at_rest(0) {
            self.step()?;
            take(self)?;
            self.wires.iter_mut().for_each(|wire| wire.returned.clear());
        }
        match self.switch.is_idle() {
            true => Ok(()),
            false => {
                let open: usize = self.switch.ports().iter().map(|port| port.in_flight()).sum();
                Err(Error::Failed(format!("stopping the software engine: {open} writes are still in flight")))
            }
        }
    }

    fn measured(&mut self) -> Result<Measured, Error> {
        Ok(Measured::Software)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use layout::aoe::{Ata, ATA_WRITE_EXT};
    use layout::entry::Kind;
    use sim::target::{request, Image, TargetVolume};

    const BEGINNING: Beginning = Beginning { session: 1, time: 1_000, stamp_floor: 2_000, number_floor: 77 };
    const SECTORS: u64 = 16;

    fn engine(images: Images) -> SoftwareEngine {
        let image = Image::Memory(vec![0; SECTORS as usize * 512]);
        let target = VbladeModel::new(vec![TargetVolume::new(1, 0, SECTORS, image)]);
        SoftwareEngine::new(target, images, &[(1, 0)], 1, &BEGINNING).unwrap()
    }

    fn write(tag: u32, lba: u8) -> Vec<u8> {
        let (sectors, command_status, lba) = (1, ATA_WRITE_EXT, [lba, 0, 0, 0, 0, 0]);
        let ata = Ata { flags: 0x41, error_feature: 0, sectors, command_status, lba, reserved: [0; 2] };
        request([2, 0, 0, 0, 0, 1], (1, 0), tag, ata, &[tag as u8; 512])
    }

    /// Steps until nothing comes of itself; the kinds and numbers of the entries and completions that came.
    fn rest(engine: &mut SoftwareEngine) -> Vec<(Kind, u64)> {
        let mut came = Vec::new();
        while !engine.is_at_rest(0) {
            engine.step().unwrap();
            for port in 0..PORTS {
                let records: Vec<_> = engine.records(port).map(|r| (r.kind, *r.header)).collect();
                assert!(records.iter().all(|(_, header)| header.timestamp.get() > BEGINNING.stamp_floor));
                engine.consume(port, records.len()).unwrap();
                let numbered = records.iter().filter(|(kind, _)| *kind != Kind::Watermark);
                came.extend(numbered.map(|(kind, header)| (*kind, header.number.get())));
                engine.wires[port].returned.clear();
            }
        }
        came
    }

    fn executed(engine: &SoftwareEngine) -> u64 {
        engine.target.volumes()[0].executed()
    }

    #[test]
    fn with_before_images_a_write_is_forwarded_when_its_entry_is_durable() {
        let mut engine = engine(Images::Before);
        for tag in 1..=3 {
            engine.offer(0, write(tag, tag as u8));
        }
        assert!(engine.is_arriving(0));
        assert_eq!(rest(&mut engine), [78, 79, 80].map(|number| (Kind::Before, number)));
        assert_eq!((executed(&engine), engine.is_arriving(0)), (0, false));
        engine.durable(79).unwrap();
        assert_eq!(rest(&mut engine), [78, 79].map(|number| (Kind::Completion, number)));
        assert_eq!(executed(&engine), 2);
        assert!(engine.stop(|_| Ok(())).is_err(), "a write waits for the disk");
        engine.durable(80).unwrap();
        assert_eq!(rest(&mut engine), [(Kind::Completion, 80)]);
        assert_eq!(executed(&engine), 3);
        engine.stop(|_| Ok(())).unwrap();
    }

    #[test]
    fn with_after_images_nothing_waits_for_the_disk() {
        let mut engine = engine(Images::After);
        engine.offer(3, write(1, 1));
        assert_eq!(rest(&mut engine), [(Kind::After, 78), (Kind::Completion, 78)]);
        assert_eq!((executed(&engine), engine.wait(0).unwrap()), (1, false));
    }

    #[test]
    fn time_outs_run_when_nothing_else_comes() {
        let mut engine = engine(Images::Both);
        engine.offer(0, write(1, SECTORS as u8));
        assert_eq!(rest(&mut engine), []);
        let mut waits = 0;
        while engine.wait(0).unwrap() {
            rest(&mut engine);
            waits += 1;
        }
        assert_eq!(engine.counters(0).unwrap().get(Counter::DroppedRead), 1);
        assert!(waits >= 4 && engine.now() >= 40_000_000 && executed(&engine) == 0);
        engine.stop(|_| Ok(())).unwrap();
    }
}
