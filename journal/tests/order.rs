//! Records of several ports come out in stamp order, as soon as it is certain and no sooner.

mod workload;

use journal::order::{Order, OrderError};
use journal::OwnedRecord;
use layout::entry::{EntryHeader, Kind};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, VecDeque};

fn record(port: u8, sequence: u64, stamp: u64, kind: Kind) -> OwnedRecord {
    let mut header = EntryHeader::new(kind);
    header.port = port;
    header.sequence = sequence.into();
    header.timestamp = stamp.into();
    header.seal(&[]);
    OwnedRecord { header, payload: Vec::new() }
}

#[test]
fn any_interleaving_of_the_ports_gives_the_same_order() {
    let first = workload::seed(31);
    for seed in first..first + 200 {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let ports = rng.random_range(1..6u8);
        let mut rings: BTreeMap<u8, VecDeque<OwnedRecord>> =
            (0..ports).map(|port| (port, VecDeque::new())).collect();
        let mut sequences = BTreeMap::new();
        let mut expected = Vec::new();
        for stamp in 1..300u64 {
            let port = rng.random_range(0..ports);
            let kind =
                *[Kind::After, Kind::After, Kind::Completion, Kind::Watermark].choose(&mut rng).unwrap();
            let sequence = sequences.entry(port).or_insert(0u64);
            let record = record(port, *sequence, stamp * 10, kind);
            *sequence += 1;
            if kind != Kind::Watermark {
                expected.push(record.clone());
            }
            rings.get_mut(&port).unwrap().push_back(record);
        }
        // An idle port has its watermark at last.
        for (port, ring) in &mut rings {
            let sequence = sequences.get(port).copied().unwrap_or(0);
            ring.push_back(record(*port, sequence, 1_000_000, Kind::Watermark));
        }
        let mut order = Order::new(0..ports, 64 * 1000);
        let mut given = Vec::new();
        while let Some(port) = rings
            .iter()
            .filter(|(_, ring)| !ring.is_empty())
            .map(|(p, _)| *p)
            .collect::<Vec<_>>()
            .choose(&mut rng)
        {
            let ring = rings.get_mut(port).unwrap();
            for _ in 0..rng.random_range(1..10) {
                let Some(record) = ring.pop_front() else { break };
                order.push(record).unwrap();
            }
            if rng.random_bool(0.5) {
                given.extend(order.drain_ready());
                let promised = order.delivered().iter().map(|delivered| delivered.timestamp).min().unwrap();
                assert_eq!(promised, order.bound(), "seed {seed}");
                // Nothing at or below what is promised comes later.
                assert!(
                    rings.values().flatten().all(
                        |r| r.header.timestamp.get() > promised || r.header.kind == Kind::Watermark as u8
                    ),
                    "seed {seed}"
                );
            }
        }
        given.extend(order.drain_ready());
        assert_eq!(given, expected, "seed {seed}");
    }
}

#[test]
fn a_port_that_is_silent_holds_the_others_back_until_its_watermark() {
    let mut order = Order::new([0, 1], 1 << 20);
    order.push(record(0, 0, 10, Kind::After)).unwrap();
    order.push(record(0, 1, 20, Kind::After)).unwrap();
    assert!(order.pop().is_none());
    order.push(record(1, 0, 15, Kind::Watermark)).unwrap();
    assert_eq!(order.drain_ready().len(), 1);
    assert_eq!(order.delivered().iter().map(|d| d.timestamp).collect::<Vec<_>>(), [15, 15]);
    // A completion delivers just as well as an entry.
    order.push(record(1, 1, 30, Kind::Completion)).unwrap();
    assert_eq!(order.drain_ready().iter().map(|r| r.header.timestamp.get()).collect::<Vec<_>>(), [20]);
    assert_eq!(order.bound(), 20);
}

#[test]
fn the_buffer_is_bounded_and_a_refused_record_comes_back() {
    let mut order = Order::new([0, 1], 256);
    for sequence in 0..4 {
        order.push(record(0, sequence, 10 + sequence, Kind::After)).unwrap();
    }
    let refused = record(0, 4, 20, Kind::After);
    let (back, error) = order.push(refused.clone()).unwrap_err();
    assert_eq!((back, error), (refused.clone(), OrderError::Full { port: 0, bytes: 256 }));
    // The other port is not concerned, and its watermark makes room.
    order.push(record(1, 0, 12, Kind::Watermark)).unwrap();
    assert_eq!(order.drain_ready().len(), 3);
    assert_eq!(order.waiting_bytes(0), 64);
    order.push(refused).unwrap();
}

#[test]
fn holes_and_falling_stamps_are_refused() {
    let mut order = Order::new([0], 1 << 20);
    order.push(record(0, 7, 10, Kind::After)).unwrap();
    let (_, error) = order.push(record(0, 9, 20, Kind::After)).unwrap_err();
    assert_eq!(error, OrderError::Hole { port: 0, last: 7, found: 9 });
    assert!(error.to_string().contains("1 records are missing"), "{error}");
    let (_, error) = order.push(record(0, 8, 10, Kind::After)).unwrap_err();
    assert_eq!(error, OrderError::StampFell { port: 0, stamp: 10, delivered: 10 });
    let (_, error) = order.push(record(3, 0, 10, Kind::After)).unwrap_err();
    assert_eq!(error, OrderError::UnknownPort(3));
    order.resume_after_gap(0);
    order.push(record(0, 9, 20, Kind::After)).unwrap();
}
