//! The block port engine against a naive model, with writes from many ports in any order, a clock that jumps, and a
//! journal that takes what it wants when it wants.
//!
//! `CHRONO_SEED` names a seed, `CHRONO_SEEDS` how many are tried.

use engine::block_port::{BlockPorts, Content, Drained, Hold, NotNow, Place, Reading, Ticket};
use layout::crc::crc32c;
use layout::entry::{record_bytes, Encoding, Kind, Updated};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

const PORTS: u8 = 4;
const LIMIT: usize = 16 << 10;

fn number_of(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// What the model knows of a write.
struct Known {
    port: u8,
    place: Place,
    data: Vec<u8>,
    answered: Option<Updated>,
    /// It went down pending.
    pending: bool,
    completed: bool,
}

struct World {
    ports: BlockPorts,
    random: ChaCha8Rng,
    now: u64,
    held: Vec<(Hold, u8, Place)>,
    flying: Vec<Ticket>,
    known: BTreeMap<u64, Known>,
    /// Drained and not yet taken.
    away: Vec<Drained>,
    last_stamp: u64,
    last_number: u64,
    delivered: u64,
    refused: [u64; 2],
}

impl World {
    fn new(seed: u64) -> Self {
        let mut ports = BlockPorts::new(1000, 50, LIMIT);
        (0..PORTS).for_each(|port| ports.open_port(port, u16::from(port)));
        Self {
            ports,
            random: ChaCha8Rng::seed_from_u64(seed),
            now: 2000,
            held: Vec::new(),
            flying: Vec::new(),
            known: BTreeMap::new(),
            away: Vec::new(),
            last_stamp: 1000,
            last_number: 50,
            delivered: 1000,
            refused: [0; 2],
        }
    }

    fn reading(&mut self) -> Reading {
        // Now and then the clock jumps, either way.
        self.now = match self.random.random_range(0..20) {
            0 => self.now.saturating_sub(500),
            1 => self.now + 5000,
            _ => self.now + self.random.random_range(0..3),
        };
        Reading { nanoseconds: self.now, error: self.random.random_bool(0.8).then_some(10) }
    }

    fn overlaps(&self, place: Place) -> bool {
        let flying = self.flying.iter().map(|ticket| self.known[&ticket.number].place);
        let range = |p: Place| p.lba..p.lba + u64::from(p.sectors);
        flying.chain(self.held.iter().map(|(_, _, place)| *place)).any(|other| {
            let (a, b) = (range(place), range(other));
            other.volume == place.volume && a.start < b.end && b.start < a.end
        })
    }

    fn hold(&mut self) {
        let port = self.random.random_range(0..PORTS);
        let place = Place {
            volume: self.random.random_range(0..2),
            lba: self.random.random_range(0..40),
            sectors: self.random.random_range(1..9),
        };
        let bytes = usize::from(place.sectors) * 512;
        let before = self.ports.bytes();
        match self.ports.hold(port, place, bytes) {
            Ok(hold) => {
                assert!(!self.overlaps(place), "{place:?} overlaps something in flight");
                self.held.push((hold, port, place));
            }
            Err(why) => {
                assert_eq!(self.ports.bytes(), before, "a refusal changes nothing");
                match why {
                    NotNow::InFlight => assert!(self.overlaps(place), "{place:?} overlaps nothing"),
                    NotNow::Room => {}
                    NotNow::Closed => panic!("nobody closed it"),
                }
                self.refused[usize::from(why == NotNow::Room)] += 1;
            }
        }
        assert!(self.ports.bytes() <= usize::from(PORTS) * LIMIT, "memory is bounded");
    }

    fn commit(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let index = self.random.random_range(0..self.held.len());
        let (hold, port, place) = self.held.swap_remove(index);
        if self.random.random_bool(0.1) {
            return self.ports.give_up(hold);
        }
        let zero = self.random.random_bool(0.2);
        let fill = self.random.random();
        let data = if zero { Vec::new() } else { vec![fill; usize::from(place.sectors) * 512] };
        let reading = self.reading();
        let content = Content {
            kind: Kind::After,
            encoding: if zero { Encoding::Zero } else { Encoding::Raw },
            payload: data.clone().into(),
            crc: crc32c(&data),
        };
        let ticket = self.ports.commit(hold, reading, content).unwrap();
        assert_eq!(ticket.number, self.ports.last_number());
        let known = Known { port, place, data, answered: None, pending: false, completed: false };
        assert!(self.known.insert(ticket.number, known).is_none());
        self.flying.push(ticket);
    }

    fn answer(&mut self) {
        if self.flying.is_empty() {
            return;
        }
        let index = self.random.random_range(0..self.flying.len());
        let ticket = self.flying.swap_remove(index);
        let updated = if self.random.random_bool(0.9) { Updated::Updated } else { Updated::Unknown };
        self.known.get_mut(&ticket.number).unwrap().answered = Some(updated);
        let reading = self.reading();
        self.ports.answer(ticket, updated, || reading).unwrap();
    }

    fn drain(&mut self, needed: u64, most: usize) -> bool {
        let batch = self.ports.drain(needed, most);
        for mut drained in batch.records {
            drained.seal();
            self.check(&drained);
            self.away.push(drained);
        }
        assert!(batch.delivered >= self.last_stamp && batch.delivered >= self.delivered);
        assert_eq!(batch.number, self.last_number);
        if !batch.more {
            assert!(self.last_number >= needed, "what was needed came");
            let next = self.known.range(self.last_number + 1..).next();
            assert!(
                next.is_none_or(|(_, known)| known.answered.is_none()),
                "no more than was not answered stays"
            );
        }
        self.delivered = batch.delivered;
        batch.more
    }

    /// As for who has others' records up to a stamp.
    fn drain_to(&mut self) {
        let last = self.ports.last_stamp();
        let bound = self.random.random_range(self.delivered..=last.max(self.delivered) + 10);
        let batch = self.ports.drain_to(bound);
        for mut drained in batch.records {
            drained.seal();
            assert!(drained.header.timestamp.get() <= bound);
            self.check(&drained);
            self.away.push(drained);
        }
        assert_eq!((batch.delivered, batch.number), (bound, self.last_number));
        // Nothing that comes later is stamped so.
        self.delivered = bound;
        if bound >= last {
            assert_eq!(self.ports.fill(), 0, "all of it came");
        }
    }

    fn check(&mut self, drained: &Drained) {
        let header = &drained.header;
        assert_eq!(header.computed_crc(), header.header_crc.get());
        let stamp = header.timestamp.get();
        assert!(stamp > self.last_stamp && stamp > self.delivered, "stamps rise, behind every watermark");
        self.last_stamp = stamp;
        let number = header.number.get();
        let known = self.known.get_mut(&number).unwrap();
        assert_eq!(header.port, known.port);
        if header.kind == Kind::Completion as u8 {
            assert!(known.pending && !known.completed, "one completion, of an entry that went down pending");
            known.completed = true;
            assert_eq!(header.updated().ok(), known.answered);
            return;
        }
        assert_eq!(
            number,
            self.last_number + 1,
            "entries come in the order of their numbers, without a hole"
        );
        self.last_number = number;
        assert_eq!((header.lba(), header.sectors.get()), (known.place.lba, known.place.sectors));
        assert_eq!(*drained.payload, known.data);
        assert_eq!(header.payload_crc.get(), crc32c(&known.data));
        known.pending = known.answered.is_none();
        assert_eq!(header.updated().ok(), Some(known.answered.unwrap_or(Updated::Pending)));
    }

    fn take(&mut self) {
        let count = self.random.random_range(0..=self.away.len());
        let taken: Vec<Drained> = self.away.drain(..count).collect();
        self.ports.taken(&taken);
    }

    fn step(&mut self) {
        match self.random.random_range(0..10) {
            0..4 => self.hold(),
            4..6 => self.commit(),
            6..8 => self.answer(),
            8 => {
                let needed = match self.random.random_bool(0.3) {
                    true => self.ports.last_number(),
                    false => 0,
                };
                let most = self.random.random_range(1..20_000);
                match self.random.random_bool(0.3) {
                    true => self.drain_to(),
                    false => drop(self.drain(needed, most)),
                }
            }
            _ => self.take(),
        }
    }

    fn end(mut self) -> [u64; 2] {
        self.ports.close();
        let place = Place { volume: 9, lba: 0, sectors: 1 };
        assert_eq!(self.ports.hold(0, place, 512).unwrap_err(), NotNow::Closed);
        while !self.held.is_empty() {
            self.commit();
        }
        while !self.flying.is_empty() {
            self.answer();
        }
        assert!(self.ports.is_idle());
        while self.drain(self.ports.last_number(), usize::MAX) {}
        assert_eq!(self.last_number, self.ports.last_number());
        assert!(self.known.values().all(|known| known.pending == known.completed));
        let taken = std::mem::take(&mut self.away);
        self.ports.taken(&taken);
        assert_eq!(self.ports.bytes(), 0, "all room came back");
        self.refused
    }
}

#[test]
fn records_are_what_was_written_in_the_order_in_which_it_was() {
    let (first, seeds) = (number_of("CHRONO_SEED", 1), number_of("CHRONO_SEEDS", 200));
    let mut refused = [0; 2];
    for seed in first..first + seeds {
        println!("CHRONO_SEED={seed}");
        let mut world = World::new(seed);
        (0..2000).for_each(|_| world.step());
        let of = world.end();
        refused = [refused[0] + of[0], refused[1] + of[1]];
    }
    assert!(refused.iter().all(|count| *count > 0), "both reasons to wait were met: {refused:?}");
}

#[test]
fn a_stamp_that_is_later_than_the_clock_says_how_wrong_it_may_be() {
    let mut ports = BlockPorts::new(5_000_000, 0, LIMIT);
    ports.open_port(7, 3);
    let place = Place { volume: 0, lba: 0, sectors: 1 };
    let hold = ports.hold(7, place, 0).unwrap();
    let reading = Reading { nanoseconds: 1_000_000, error: Some(100) };
    let content = Content {
        kind: Kind::After,
        encoding: Encoding::Zero,
        payload: Default::default(),
        crc: crc32c(&[]),
    };
    let ticket = ports.commit(hold, reading, content).unwrap();
    ports.answer(ticket, Updated::Updated, || reading).unwrap();
    let batch = ports.drain(0, usize::MAX);
    let header = batch.records[0].header;
    assert_eq!(header.timestamp.get(), 5_000_001);
    let bound = layout::entry::ErrorBound(header.clock_error.get()).nanoseconds().unwrap();
    assert!((4_000_101.0..4_010_000.0).contains(&bound), "{bound}");
    assert_eq!(header.source.get(), 3);
}

#[test]
fn one_write_always_has_room_and_a_port_takes_none_of_anothers() {
    let mut ports = BlockPorts::new(0, 0, 4096);
    ports.open_port(0, 0);
    ports.open_port(1, 1);
    let at = |lba| Place { volume: 0, lba, sectors: 64 };
    let large = ports.hold(0, at(0), 64 * 512).unwrap();
    assert!(ports.bytes() > record_bytes(64 * 512));
    assert_eq!(ports.hold(0, at(100), 512).unwrap_err(), NotNow::Room);
    let other = ports.hold(1, at(200), 512).unwrap();
    ports.give_up(large);
    ports.give_up(other);
    assert_eq!(ports.bytes(), 0);
}
