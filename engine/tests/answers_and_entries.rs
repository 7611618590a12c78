//! Answers, stamps, and the bytes of records.

mod made;

use engine::answer::Answer;
use engine::entry::{self, Commit};
use engine::frame::{classify, Decision};
use engine::hybrid_clock::HybridClock;
use layout::aoe;
use layout::crc::crc32c;
use layout::entry::{flags, ErrorBound, GapReason, Updated, NO_INDEX};
use made::{answer_frame, aoe_frame, random, rules, write_frame, SOURCE};
use rand::Rng;

fn status(ata_status: u8, ata_error: u8) -> Updated {
    let request = write_frame(5, &[1; 512], 7);
    Answer::decode(&answer_frame(&request, ata_status, ata_error)).expect("an answer").updated()
}

/// The table of `engine::answer`, every status and error register.
#[test]
fn every_ata_answer_has_its_status() {
    for ata_status in 0..=255u8 {
        for ata_error in 0..=255u8 {
            let expected = match (ata_status & 0xA1, ata_error) {
                (0, _) => Updated::Updated,
                (1, 0x10) => Updated::Refused,
                _ => Updated::Unknown,
            };
            assert_eq!(status(ata_status, ata_error), expected, "{ata_status:#x} {ata_error:#x}");
        }
    }
    // vblade: success; past the end; a write that failed or stopped half-way.
    assert_eq!(status(0x40, 0), Updated::Updated);
    assert_eq!(status(0x41, 0x10), Updated::Refused);
    assert_eq!(status(0x41, 0x04), Updated::Unknown);
}

#[test]
fn every_aoe_error_has_its_status() {
    let request = write_frame(5, &[1; 512], 7);
    for error in 0..=255 {
        let mut frame = answer_frame(&request, 0x34, 0);
        frame[14] |= aoe::FLAG_ERROR;
        frame[15] = error;
        let answer = Answer::decode(&frame).unwrap();
        let expected = match error {
            1 | 2 | 5 | 6 => Updated::Refused,
            _ => Updated::Unknown,
        };
        assert_eq!((answer.updated(), answer.error, answer.aoe_error), (expected, error, true));
    }
}

#[test]
fn only_answers_are_answers() {
    let request = write_frame(0x0102_0304_0506, &[1; 512], 7);
    let frame = answer_frame(&request, 0x40, 0);
    let answer = Answer::decode(&frame).unwrap();
    assert_eq!(answer.destination, SOURCE);
    assert_eq!((answer.shelf, answer.slot, answer.tag, answer.lba), (1, 0, 7, 0x0102_0304_0506));
    assert_eq!(Answer::decode(&request), None, "a request");
    assert_eq!(Answer::decode(&frame[..35]), None, "cut off");
    assert_eq!(Answer::decode(&[]), None);
    let mut config = aoe_frame(aoe::COMMAND_CONFIG, &[0; 36]);
    config[14] |= aoe::FLAG_RESPONSE;
    assert_eq!(Answer::decode(&config), None);
    for (at, byte) in [(12, 0x08), (14, 0x28)] {
        let mut other = frame.clone();
        other[at] = byte;
        assert_eq!(Answer::decode(&other), None, "byte {at}");
    }
}

/// Stamps strictly increase along any leaf times, are the leaf's wherever that is later, and keep
/// above any floor.
#[test]
fn stamps_strictly_increase() {
    let mut random = random();
    for _ in 0..200 {
        let floor = random.random_range(0..1 << 40);
        let mut clock = HybridClock::new(floor);
        let mut last = floor;
        let mut leaf = random.random_range(0..1 << 41);
        for _ in 0..500 {
            leaf = match random.random_range(0..10) {
                0 => random.random_range(0..1 << 41),
                1..=3 => leaf,
                _ => leaf + random.random_range(0..3),
            };
            if random.random_bool(0.05) {
                let floor = random.random_range(0..1 << 41);
                clock.raise_floor(floor);
                last = last.max(floor);
            }
            let stamp = clock.stamp(leaf).unwrap();
            assert!(stamp.nanoseconds > last);
            assert_eq!(stamp.logical, leaf <= last);
            let expected = if leaf > last { leaf } else { last + 1 };
            assert_eq!(stamp.nanoseconds, expected);
            last = stamp.nanoseconds;
            assert_eq!(clock.last(), last);
        }
    }
}

#[test]
fn a_clock_at_the_end_of_time_says_so() {
    let mut clock = HybridClock::new(u64::MAX - 1);
    assert_eq!(clock.stamp(5).unwrap().nanoseconds, u64::MAX);
    assert_eq!(clock.stamp(5).unwrap_err().last, u64::MAX);
    assert_eq!(HybridClock::new(0).stamp(u64::MAX).unwrap().nanoseconds, u64::MAX);
}

fn commit() -> Commit {
    Commit {
        port: 2,
        sequence: 0x1112_1314_1516_1718,
        timestamp: 0x2122_2324_2526_2728,
        number: 0x3132_3334_3536_3738,
        clock_flags: flags::CLOCK_LOCKED | flags::STAMP_LOGICAL,
        clock_error: ErrorBound(0x4142),
    }
}

/// The first 44 bytes of each kind, written out by hand from DESIGN §4 and the header's field order.
#[test]
fn records_stand_byte_for_byte() {
    let common = |kind: u8, flags: [u8; 2], status: u8| {
        let mut bytes = vec![b'C', b'J', 1, kind, flags[0], flags[1], 0, status];
        bytes.extend(0x2122_2324_2526_2728u64.to_le_bytes());
        bytes.extend(0x3132_3334_3536_3738u64.to_le_bytes());
        bytes.extend(0x1112_1314_1516_1718u64.to_le_bytes());
        bytes
    };
    let tail = |record: &[u8], payload: &[u8]| {
        assert_eq!(record.len() % 64, 0);
        assert_eq!(record[52..56], (payload.len() as u32).to_le_bytes());
        assert_eq!(record[56..60], crc32c(payload).to_le_bytes());
        let mut header = record[..64].to_vec();
        header[60..].fill(0);
        assert_eq!(record[60..64], crc32c(&header).to_le_bytes());
        assert_eq!(&record[64..64 + payload.len()], payload);
        assert!(record[64 + payload.len()..].iter().all(|&byte| byte == 0));
    };
    let data = [0xA5; 1024];
    let frame = write_frame(0x5152_5354_5556, &data, 7);
    let Decision::Write(write) = classify(&frame, &rules()) else { panic!() };

    let record = entry::after(&commit(), 9, 3, true, &write, &data);
    let mut expected = common(1, [0b1011, 0], 0x01);
    expected.extend([0x56, 0x55, 0x54, 0x53, 0x52, 0x51, 2, 0, 2, 9, 0x42, 0x41, 0, 0, 0, 0, 3, 0, 0, 0]);
    assert_eq!(record[..52], expected);
    tail(&record, &data);
    let record = entry::after(&commit(), 9, NO_INDEX, false, &write, &data);
    assert_eq!((record[4], &record[48..50]), (0b1010, &[0xFF, 0xFF][..]));

    let mut refused = answer_frame(&frame, 0x41, 0x10);
    let record = entry::completion(&commit(), 9, &Answer::decode(&refused).unwrap(), false);
    let mut expected = common(4, [0b1010, 0], 0x21);
    expected.extend([0, 0, 0, 0, 0, 0, 0, 0, 2, 9, 0x42, 0x41, 0x41, 0x10, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]);
    assert_eq!(record[..52], expected);
    tail(&record, &[]);
    refused[14] |= aoe::FLAG_ERROR;
    refused[15] = 3;
    let record = entry::completion(&commit(), 9, &Answer::decode(&refused).unwrap(), true);
    assert_eq!((record[4], record[7], record[45]), (0b11_1010, 0x41, 3));

    let record = entry::unanswered(&commit(), 9);
    assert_eq!((record[3], record[7], record[44], record[45]), (4, 0x41, 0, 0));
    tail(&record, &[]);

    let record = entry::watermark(&commit());
    let mut expected = common(5, [0b1010, 0], 0);
    expected.extend([0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0x42, 0x41, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]);
    assert_eq!(record[..52], expected);
    tail(&record, &[]);

    let record = entry::gap(&commit(), 5, 6, GapReason::ClockUnlocked);
    assert_eq!((record[3], record[7]), (6, 0));
    let payload = [5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0];
    tail(&record, &payload);
}
