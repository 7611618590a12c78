//! A card that breaks the rules: the driver says where and what, hands out nothing of it, and never
//! panics.

mod made;

use driver::fake::Step;
use driver::{Defect, Driver, RingError};
use layout::entry::{Kind, Updated};
use made::{changed, data, random, up, Card, RING};
use rand::Rng;

fn defect(driver: &mut Driver<driver::fake::FakeCard>) -> Defect {
    match driver.poll() {
        Err(RingError::Record { defect, .. }) => defect,
        other => panic!("{other:?}"),
    }
}

/// Every single bit of every kind of record: found, at its place, and everything before it kept.
#[test]
fn every_bit_flip_is_found() {
    let mut card = Card::new(1);
    let good = card.watermark(0);
    let victims =
        [card.write(0, 77, &[0x5A; 512]), card.completion(0, 1, Updated::Updated, false), card.watermark(0)];
    let mut sequence = 1;
    for victim in victims {
        // Each victim directly after the good record.
        let victim = changed(&victim, |header| header.sequence = 1.into());
        sequence += 1;
        let mut driver = up(1);
        driver.card_mut().run(Step::Records { port: 0, bytes: [&good[..], &victim].concat() });
        for bit in 0..victim.len() * 8 {
            let position = (good.len() + bit / 8) as u64;
            let flip = Step::Flip { port: 0, position, bit: bit as u32 % 8 };
            driver.card_mut().run(flip.clone());
            let error = driver.poll().unwrap_err();
            assert!(
                matches!(error, RingError::Record { port: 0, offset: 64, position: 64, .. }),
                "bit {bit}: {error:?}"
            );
            assert_eq!(driver.batch(0).len(), 1);
            driver.card_mut().run(flip);
        }
        assert_eq!(driver.poll(), Ok(1), "mended, it is good again");
    }
    assert_eq!(sequence, 4);
}

/// Headers that are whole and say what can't be.
#[test]
fn every_wrong_field_is_named() {
    let mut card = Card::new(1);
    let write = card.write(0, 77, &[0x5A; 1024]);
    let check = |record: Vec<u8>, expected: Defect| {
        let mut driver = up(1);
        driver.card_mut().run(Step::Records { port: 0, bytes: record });
        assert_eq!(defect(&mut driver), expected);
        assert!(driver.batch(0).is_empty());
    };
    check(changed(&write, |h| h.magic = 1.into()), Defect::Magic(1));
    check(changed(&write, |h| h.version = 2), Defect::Version(2));
    check(changed(&write, |h| h.kind = 10), Defect::Kind(10));
    for kind in [Kind::Marker, Kind::Resync, Kind::Merged] {
        let record = changed(&write, |h| {
            h.kind = kind as u8;
            h.status = 0;
        });
        check(record, Defect::ForeignKind(kind));
    }
    check(changed(&write, |h| h.encoding = 2), Defect::Encoding(2));
    check(changed(&write, |h| h.status = 0x00), Defect::Status(0));
    check(changed(&write, |h| h.status = 0x51), Defect::Status(0x51));
    check(changed(&write, |h| h.port = 1), Defect::Port(1));
    check(changed(&write, |h| h.sectors = 0.into()), Defect::Sectors(0));
    check(changed(&write, |h| h.sectors = 18.into()), Defect::Sectors(18));
    check(changed(&write, |h| h.sectors = 3.into()), Defect::PayloadLength { found: 1024, expected: 1536 });
    check(
        changed(&write, |h| h.payload_bytes = u32::MAX.into()),
        Defect::PayloadLength { found: u32::MAX, expected: 1024 },
    );
    check(changed(&write, |h| h.encoding = 1), Defect::PayloadLength { found: 1024, expected: 0 });
    check(changed(&write, |h| h.volume = 16.into()), Defect::Index { volume: 16, source_index: 0 });
    check(changed(&write, |h| h.source = 8.into()), Defect::Index { volume: 0, source_index: 8 });
    check(changed(&write, |h| h.number = 0.into()), Defect::Number { found: 0, last: 0 });
    check(changed(&write, |h| h.timestamp = 0.into()), Defect::Stamp { found: 0, last: 0 });
    check(
        changed(&write, |h| h.sequence = u64::MAX.into()),
        Defect::Sequence { found: u64::MAX, expected: u64::MAX },
    );
    let record = changed(&write, |h| h.sectors = 17.into());
    let record = changed(&record, |h| h.payload_bytes = (17 * 512).into());
    check(record, Defect::BeyondProducer { record: 64 + 17 * 512, announced: 64 + 1024 });
    let completion = card.completion(0, 1, Updated::Updated, false);
    check(changed(&completion, |h| h.status = 0x01), Defect::Status(0x01));
    check(
        changed(&completion, |h| h.payload_bytes = 64.into()),
        Defect::PayloadLength { found: 64, expected: 0 },
    );
    let watermark = card.watermark(0);
    check(changed(&watermark, |h| h.status = 0x11), Defect::Status(0x11));
}

/// Records that are good alone and wrong after the one before.
#[test]
fn every_wrong_order_is_named() {
    let mut card = Card::new(1);
    let first = card.write(0, 1, &[1; 512]);
    let first_stamp = card.stamp;
    let second = card.write(0, 2, &[2; 512]);
    let watermark = card.watermark(0);
    let check = |records: [&[u8]; 2], expected: Defect| {
        let mut driver = up(1);
        driver.card_mut().run(Step::Records { port: 0, bytes: records.concat() });
        assert_eq!(defect(&mut driver), expected);
        assert_eq!(driver.batch(0).len(), 1);
    };
    check([&first, &first], Defect::Sequence { found: 0, expected: 1 });
    check([&second, &first], Defect::Sequence { found: 0, expected: 2 });
    let same = changed(&second, |h| h.timestamp = first_stamp.into());
    check([&first, &same], Defect::Stamp { found: first_stamp, last: first_stamp });
    check([&first, &changed(&second, |h| h.number = 1.into())], Defect::Number { found: 1, last: 1 });
    let back = changed(&watermark, |h| {
        h.sequence = 1.into();
        h.number = 0.into();
    });
    check([&first, &back], Defect::Number { found: 0, last: 1 });
    // More records missing than there were stamps for.
    let narrow = changed(&second, |h| {
        h.timestamp = (first_stamp + 2).into();
        h.sequence = 3.into();
    });
    check([&first, &narrow], Defect::Hole { records: 2, stamps: 1 });
}

/// Producer indexes that can't be.
#[test]
fn every_wrong_producer_index_is_refused() {
    let ring = RING as u64;
    for produced in [u64::MAX, ring + 64, ring + (1 << 40), 1, 63, 65, 1 << 63] {
        let mut driver = up(2);
        driver.card_mut().run(Step::Mailbox { port: 1, produced });
        let error = driver.poll().unwrap_err();
        assert!(matches!(error, RingError::Producer { port: 1, .. }), "{produced:#x}: {error}");
        assert!(error.to_string().contains("port 1"), "{error}");
    }
    // Back, after some were taken.
    let (mut driver, mut card) = (up(1), Card::new(1));
    let bytes = [card.watermark(0), card.watermark(0)].concat();
    driver.card_mut().run(Step::Records { port: 0, bytes });
    driver.poll().unwrap();
    driver.consume(0, 2).unwrap();
    driver.card_mut().run(Step::Mailbox { port: 0, produced: 64 });
    assert!(matches!(driver.poll(), Err(RingError::Producer { before: 128, .. })));
}

/// A port in error doesn't hold up the others, and stays in error.
#[test]
fn one_bad_port_leaves_the_others_alone() {
    let (mut driver, mut card) = (up(3), Card::new(3));
    driver.card_mut().run(Step::Mailbox { port: 0, produced: 3 });
    for _ in 0..5 {
        for port in 1..3 {
            let bytes = card.write(port, 1, &[1; 512]);
            driver.card_mut().run(Step::Records { port, bytes });
        }
        assert!(driver.poll().is_err());
        for port in 1..3 {
            assert_eq!(driver.batch(port).len(), 1);
            driver.consume(port, 1).unwrap();
        }
    }
}

/// Anything at all in ring and mailbox: an error or good records, never a panic, never a record that
/// the card didn't make.
#[test]
fn rubbish_never_panics_and_never_passes() {
    let mut random = random();
    let mut errors = 0;
    for _ in 0..200 {
        let (mut driver, mut card) = (up(1), Card::new(1));
        let mut records = Vec::new();
        for _ in 0..random.random_range(1..12) {
            let sectors = random.random_range(1..=3);
            let bytes = data(&mut random, sectors);
            records.push(card.write(0, random.random_range(0..1000), &bytes));
        }
        let all = records.concat();
        driver.card_mut().run(Step::Records { port: 0, bytes: all.clone() });
        for _ in 0..random.random_range(0..20) {
            let position = random.random_range(0..all.len() as u64);
            driver.card_mut().run(Step::Flip { port: 0, position, bit: random.random_range(0..8) });
        }
        if random.random_bool(0.3) {
            let produced = match random.random_range(0..3) {
                0 => random.random(),
                1 => random.random_range(0..2 * RING as u64),
                _ => random.random_range(0..RING as u64 / 64) * 64,
            };
            driver.card_mut().run(Step::Mailbox { port: 0, produced });
        }
        errors += usize::from(driver.poll().is_err());
        let batch = driver.batch(0);
        assert!(batch.len() <= records.len());
        for (record, made) in batch.records().zip(&records) {
            assert_eq!(record.payload, &made[64..]);
        }
    }
    assert!(errors > 50, "{errors}");
}
