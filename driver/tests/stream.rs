//! Records of a switch in software: what a ring's check finds is found here, too.

mod made;

use driver::{Counters, Defect, Stream};
use layout::entry::{Kind, Updated};
use layout::registers::Counter;
use made::{changed, Card};

fn stream(card: &Card) -> Stream {
    Stream::new(1, card.stamp, card.number)
}

#[test]
fn records_are_held_in_order_until_they_are_consumed() {
    let mut card = Card::new(2);
    let mut stream = stream(&card);
    let records =
        [card.write(1, 7, &[1; 1024]), card.watermark(1), card.completion(1, 1, Updated::Updated, false)];
    stream.take(&records[0]).unwrap();
    stream.take(&records[1..].concat()).unwrap();
    let kinds: Vec<_> = stream.records().map(|record| record.kind).collect();
    assert_eq!(kinds, [Kind::After, Kind::Watermark, Kind::Completion]);
    assert_eq!(stream.records().next().unwrap().payload, [1; 1024]);
    assert_eq!(stream.held_bytes(), records.concat().len());
    stream.consume(2);
    assert_eq!((stream.records().len(), stream.held_bytes()), (1, records[2].len()));
}

#[test]
fn every_bit_flip_is_found() {
    let mut card = Card::new(2);
    let floors = (card.stamp, card.number);
    let good = card.watermark(1);
    let victims = [card.write(1, 77, &[0x5A; 512]), card.completion(1, 1, Updated::Updated, false)];
    for victim in victims.map(|victim| changed(&victim, |header| header.sequence = 1.into())) {
        for bit in 0..victim.len() * 8 {
            let mut bytes = [&good[..], &victim].concat();
            bytes[good.len() + bit / 8] ^= 1 << (bit % 8);
            let mut stream = Stream::new(1, floors.0, floors.1);
            let error = stream.take(&bytes).unwrap_err();
            assert_eq!(
                (error.port, error.position, stream.records().len()),
                (1, 64, 1),
                "bit {bit}: {error}"
            );
        }
        Stream::new(1, floors.0, floors.1).take(&[good.clone(), victim].concat()).unwrap();
    }
}

#[test]
fn floors_hold_and_a_hole_becomes_a_gap() {
    let mut card = Card::new(2);
    let (stamp, number) = (card.stamp, card.number);
    let write = card.write(1, 7, &[1; 512]);
    let defect = |stamp, number, bytes: &[u8]| Stream::new(1, stamp, number).take(bytes).unwrap_err().defect;
    assert_eq!(defect(stamp, number + 1, &write), Defect::Number { found: 1, last: 1 });
    assert_eq!(defect(card.stamp, number, &write), Defect::Stamp { found: card.stamp, last: card.stamp });
    assert!(matches!(defect(stamp, number, &write[..64]), Defect::BeyondProducer { .. }));
    assert!(matches!(defect(stamp, number, &write[..63]), Defect::BeyondProducer { .. }));
    let again = changed(&write, |header| header.port = 0);
    assert_eq!(defect(stamp, number, &again), Defect::Port(0));

    card.lose(1, 3);
    let later = card.write(1, 9, &[2; 512]);
    let mut stream = Stream::new(1, stamp, number);
    stream.take(&[write, later].concat()).unwrap();
    let found: Vec<_> = stream.records().map(|record| (record.kind, record.made_by_driver)).collect();
    assert_eq!(found, [(Kind::After, false), (Kind::Gap, true), (Kind::After, false)]);
}

#[test]
fn counters_can_be_put_together() {
    let counters: Counters = [(Counter::Journaled, 5), (Counter::Passed, 2)].into_iter().collect();
    assert_eq!([Counter::Journaled, Counter::Passed, Counter::Updated].map(|c| counters.get(c)), [5, 2, 0]);
}
