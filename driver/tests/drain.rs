//! What comes out of the rings of a card that does its job.

mod made;

use driver::fake::Step;
use driver::{CardError, Completions, Joined};
use layout::entry::{Gap, GapReason, Kind, Updated};
use made::{data, random, up, Card, RING};
use rand::Rng;
use std::collections::VecDeque;
use std::time::Duration;
use zerocopy::FromBytes;

/// Writes, completions and watermarks of four ports, announced and consumed in random portions, many
/// times around the rings: every byte comes out once and in order, and where it lies contiguous, it is
/// not copied.
#[test]
fn everything_comes_out_once_and_in_order() {
    let mut random = random();
    let (mut driver, mut card) = (up(4), Card::new(4));
    let mut expected: Vec<VecDeque<Vec<u8>>> = vec![VecDeque::new(); 4];
    let (mut copied, mut in_place, mut positions) = (0, 0, [0u64; 4]);
    for _ in 0..4000 {
        let port = random.random_range(0..4);
        for _ in 0..random.random_range(0..4) {
            let record = match random.random_range(0..4) {
                0 => card.watermark(port),
                1 if card.number > 0 => card.completion(port, card.number, Updated::Updated, false),
                _ => {
                    let sectors = random.random_range(1..=17);
                    let bytes = data(&mut random, sectors);
                    card.write(port, random.random_range(0..1 << 48), &bytes)
                }
            };
            if record.len() > driver.card().room(port) {
                // A card doesn't make a record without room; take this one back.
                card.sequences[port] -= 1;
                break;
            }
            driver.card_mut().run(Step::Records { port, bytes: record.clone() });
            expected[port].push_back(record);
        }
        driver.poll().unwrap();
        let port = random.random_range(0..4);
        let batch = driver.batch(port);
        assert_eq!(batch.len(), expected[port].len());
        let take = random.random_range(0..=batch.len());
        for (record, expected) in batch.records().zip(&expected[port]).take(take) {
            use zerocopy::IntoBytes;
            assert_eq!(record.header.as_bytes(), &expected[..64]);
            assert_eq!(record.payload, &expected[64..]);
            if !record.payload.is_empty() {
                let start = (positions[port] as usize + 64) % RING;
                match start + record.payload.len() > RING {
                    true => copied += 1,
                    false => in_place += 1,
                }
            }
            positions[port] += expected.len() as u64;
        }
        let ring = driver.batch(port).ring_bytes().as_ptr_range();
        let outside = |p: &&[u8]| !p.is_empty() && !ring.contains(&p.as_ptr());
        let copies = driver.batch(port).records().filter(|r| outside(&r.payload)).count();
        assert!(copies <= 1, "only the record over the ring's end is copied");
        driver.consume(port, take).unwrap();
        expected[port].drain(..take);
    }
    assert!(copied > 50 && in_place > 1000, "{copied} {in_place}");
}

/// The watermarks are the port's last stamp and the last number told, consumed or not.
#[test]
fn delivered_follows_the_last_record() {
    let (mut driver, mut card) = (up(2), Card::new(2));
    assert_eq!(driver.batch(0).delivered(), None);
    let bytes = [card.write(0, 9, &[1; 512]), card.write(1, 3, &[2; 512])];
    let [a, b] = bytes;
    driver.card_mut().run(Step::Records { port: 0, bytes: a });
    driver.card_mut().run(Step::Records { port: 1, bytes: b });
    let watermark = card.watermark(0);
    driver.card_mut().run(Step::Records { port: 0, bytes: watermark });
    assert_eq!(driver.poll(), Ok(3));
    let delivered = driver.batch(0).delivered().unwrap();
    assert_eq!((delivered.stamp, delivered.number), (card.stamp, 2));
    driver.consume(0, 2).unwrap();
    assert_eq!(driver.batch(0).delivered(), Some(delivered));
    assert_eq!(driver.batch(1).delivered().unwrap().number, 2);
}

/// Records that are missing become one gap that says what is known on both sides.
#[test]
fn a_hole_in_the_sequence_becomes_a_gap() {
    let (mut driver, mut card) = (up(1), Card::new(1));
    let before = card.write(0, 1, &[1; 512]);
    let from = (card.stamp, card.number);
    card.lose(0, 5);
    let after = card.write(0, 2, &[2; 512]);
    driver.card_mut().run(Step::Records { port: 0, bytes: [before, after].concat() });
    assert_eq!(driver.poll(), Ok(3));
    let records: Vec<_> = driver.batch(0).records().collect();
    let gap = records[1];
    assert_eq!(gap.kind, Kind::Gap);
    assert!(gap.made_by_driver && !records[0].made_by_driver && !records[2].made_by_driver);
    assert_eq!(gap.header.sequence.get(), 1, "the first that is missing");
    assert_eq!(gap.header.timestamp.get(), card.stamp - 1);
    assert_eq!(gap.header.number.get(), card.number, "the first after it");
    assert_eq!(gap.header.header_crc.get(), gap.header.computed_crc());
    let content = Gap::read_from_bytes(gap.payload).unwrap();
    assert_eq!((content.from_timestamp.get(), content.from_number.get()), from);
    assert_eq!(GapReason::from_word(content.reason.get()), Ok(GapReason::Lost));
    // Taking the record before doesn't take the gap along.
    driver.consume(0, 1).unwrap();
    assert!(driver.batch(0).get(0).unwrap().made_by_driver);
    driver.consume(0, 1).unwrap();
    assert_eq!(driver.batch(0).get(0).unwrap().header.lba(), 2);
}

/// What the caller knows from the journal makes a loss at the very beginning show.
#[test]
fn a_loss_before_the_first_record_shows_if_the_sequence_was_known() {
    let mut settings = made::settings(1);
    settings.ports[0].next_sequence = Some(100);
    let mut driver = driver::Driver::bring_up(driver::fake::FakeCard::new(1), &settings).unwrap();
    let mut card = Card::new(1);
    card.sequences[0] = 103;
    let bytes = card.watermark(0);
    driver.card_mut().run(Step::Records { port: 0, bytes });
    assert_eq!(driver.poll(), Ok(2));
    assert_eq!(driver.batch(0).get(0).unwrap().kind, Kind::Gap);
}

/// Nothing but the mailbox says what there is.
#[test]
fn a_lost_interrupt_loses_nothing() {
    let (mut driver, mut card) = (up(1), Card::new(1));
    let bytes = card.write(0, 1, &[1; 512]);
    driver.card_mut().script.push_back(Step::RecordsWithoutInterrupt { port: 0, bytes });
    let bytes = card.watermark(0);
    driver.card_mut().script.push_back(Step::Records { port: 0, bytes });
    assert_eq!(driver.wait(Duration::from_millis(1)).unwrap().0, 0);
    assert_eq!(driver.poll(), Ok(1));
    assert_eq!(driver.wait(Duration::from_millis(1)).unwrap().0, 1);
    assert_eq!(driver.poll(), Ok(1));
}

/// A card that is gone shows at the next time-out, and nothing of it is taken for a value.
#[test]
fn a_card_that_is_gone_is_noticed() {
    let mut driver = up(2);
    driver.card_mut().script.push_back(Step::Gone);
    assert!(matches!(driver.wait(Duration::from_millis(1)), Err(CardError::Gone(_))));
    assert!(matches!(driver.counters(0), Err(CardError::Gone(_))));
    assert!(matches!(driver.time_now(), Err(CardError::Gone(_))));
    assert!(matches!(driver.sources(1), Err(CardError::Gone(_))));
    assert_eq!(driver.poll(), Ok(0), "memory is still ours to read");
}

/// Consumed and durable arrive at the card as 64-bit values.
#[test]
fn consumed_and_durable_reach_the_registers() {
    use driver::fake::FakeCard;
    use layout::registers::port;
    let (mut driver, mut card) = (up(2), Card::new(2));
    let bytes = [card.write(1, 1, &[1; 1024]), card.watermark(1)].concat();
    driver.card_mut().run(Step::Records { port: 1, bytes });
    driver.poll().unwrap();
    driver.consume(1, 1).unwrap();
    driver.durable(0x0123_4567_89AB_CDEF).unwrap();
    let fake = driver.card();
    assert_eq!(fake.get64(FakeCard::of_port(1, port::CONSUMED)), 64 + 1024);
    assert_eq!(fake.get64(FakeCard::of_port(0, port::CONSUMED)), 0);
    for of in 0..2 {
        assert_eq!(fake.get64(FakeCard::of_port(of, port::DURABLE)), 0x0123_4567_89AB_CDEF);
    }
}

/// A caller that takes nothing makes the driver stop looking, not grow.
#[test]
fn what_is_held_is_bounded() {
    let mut settings = made::settings(1);
    settings.ports[0].ring_bytes = 4 << 20;
    let mut driver = driver::Driver::bring_up(driver::fake::FakeCard::new(1), &settings).unwrap();
    let mut card = Card::new(1);
    let records = 4 * driver::MAXIMUM_HELD_RECORDS;
    assert_eq!(records * 64, 4 << 20);
    for _ in 0..records {
        let bytes = card.watermark(0);
        driver.card_mut().run(Step::Records { port: 0, bytes });
    }
    let mut taken = 0;
    while taken < records {
        driver.poll().unwrap();
        let held = driver.batch(0).len();
        assert!(held > 0 && held <= driver::MAXIMUM_HELD_RECORDS);
        driver.consume(0, held).unwrap();
        taken += held;
    }
    assert_eq!(taken, records);
}

/// Entry and answer meet by number; the final watermark waits for the oldest unanswered entry, and
/// only for that.
#[test]
fn completions_are_joined() {
    let (mut driver, mut card) = (up(1), Card::new(1));
    let mut completions = Completions::new(1);
    let mut feed = |bytes: Vec<u8>| {
        driver.card_mut().run(Step::Records { port: 0, bytes });
        driver.poll().unwrap();
        let joined: Vec<_> =
            driver.batch(0).records().map(|record| completions.take(&record).unwrap()).collect();
        driver.consume(0, joined.len()).unwrap();
        (joined, completions.final_stamp(0), completions.open(0))
    };
    let stamps = [card.stamp + 1000, card.stamp + 2000];
    let (joined, last, open) = feed([card.write(0, 1, &[1; 512]), card.write(0, 2, &[2; 512])].concat());
    assert_eq!(joined, [Joined::Open { number: 1 }, Joined::Open { number: 2 }]);
    assert_eq!((last, open), (Some(stamps[0] - 1), 2));
    let (joined, last, _) = feed(card.completion(0, 2, Updated::Refused, false));
    assert_eq!(joined, [Joined::Settled { number: 2, updated: Updated::Refused }]);
    assert_eq!(last, Some(stamps[0] - 1), "the older one is still open");
    let (joined, last, open) = feed(card.completion(0, 1, Updated::Unknown, false));
    assert_eq!(joined, [Joined::Settled { number: 1, updated: Updated::Unknown }]);
    assert_eq!((last, open), (Some(card.stamp), 0));
    let (joined, _, _) = feed(card.completion(0, 1, Updated::Updated, true));
    assert_eq!(joined, [Joined::Late { number: 1, updated: Updated::Updated }]);
    let (joined, _, _) = feed(card.completion(0, 1, Updated::Updated, false));
    assert_eq!(joined, [Joined::Orphan { number: 1, updated: Updated::Updated }]);
    // What a gap swallowed may have been an answer.
    feed(card.write(0, 3, &[3; 512]));
    card.lose(0, 1);
    let (joined, last, _) = feed(card.watermark(0));
    assert_eq!(joined, [Joined::Gap { unknown: vec![3] }, Joined::Watermark]);
    assert_eq!(last, Some(card.stamp));
}
