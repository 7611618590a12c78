//! The reference model against a small card written for this test, in other words than the model's, and
//! against the same card with one thing wrong.

mod made;

use engine::answer::Answer;
use engine::entry::{self, Commit};
use engine::frame::{classify, Decision, PortRules, Write};
use engine::reference::{check, expected, Mismatch, Trace, Uplink};
use layout::entry::{flags, EntryHeader, ErrorBound, HEADER_BYTES};
use layout::registers::Counter;
use made::{answer_frame, aoe_frame, ata_frame, random, rules, write_frame};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use zerocopy::{FromBytes, IntoBytes};

const PORTS: usize = 3;
const NUMBER_FLOOR: u64 = 1000;
const STAMP_FLOOR: u64 = 50_000;

#[derive(Clone, Default)]
struct Run {
    frames: Vec<Vec<Vec<u8>>>,
    uplink: Vec<Uplink>,
    records: Vec<Vec<Vec<u8>>>,
}

impl Run {
    fn check(&self) -> Result<engine::reference::Expected, Mismatch> {
        let rules: [PortRules; PORTS] = std::array::from_fn(|_| rules());
        check(&Trace {
            rules: &rules,
            images: &[],
            number_floor: NUMBER_FLOOR,
            stamp_floor: STAMP_FLOOR,
            frames: &self.frames,
            uplink: &self.uplink,
            records: &self.records,
        })
    }
}

struct InFlight {
    port: usize,
    slot: u8,
    number: u64,
    frame: Vec<u8>,
    write: Write,
}

/// A card that takes its frames at once or drops them, and a target that answers in any order.
struct Card {
    run: Run,
    stamp: u64,
    number: u64,
    in_flight: Vec<InFlight>,
    unsent: [usize; PORTS],
}

impl Card {
    fn new() -> Self {
        let run = Run { frames: vec![vec![]; PORTS], records: vec![vec![]; PORTS], uplink: vec![] };
        Self { run, stamp: STAMP_FLOOR, number: NUMBER_FLOOR, in_flight: vec![], unsent: [0; PORTS] }
    }

    fn commit(&mut self, port: usize, number: u64) -> Commit {
        self.stamp += 8;
        Commit {
            port: port as u8,
            sequence: self.run.records[port].len() as u64,
            timestamp: self.stamp,
            number,
            clock_flags: flags::CLOCK_LOCKED,
            clock_error: ErrorBound(33),
        }
    }

    fn frame(&mut self, port: usize, frame: Vec<u8>) {
        self.run.frames[port].push(frame.clone());
        match classify(&frame, &rules()) {
            Decision::Pass => self.run.uplink.push(Uplink::Forwarded(frame)),
            Decision::Drop(_) => {}
            Decision::Write(write) => self.write(port, frame, write),
        }
    }

    fn write(&mut self, port: usize, frame: Vec<u8>, write: Write) {
        let equal = |f: &&InFlight| {
            f.port == port
                && f.write.source == write.source
                && f.frame[16..19] == frame[16..19]
                && f.frame[26..] == frame[26..]
        };
        let copies = self.in_flight.iter().filter(equal).count();
        let slot = match self.in_flight.iter().find(equal) {
            Some(original) => original.slot,
            None => {
                let taken = |slot: &u8| self.in_flight.iter().any(|f| f.port == port && f.slot == *slot);
                (0..16).find(|slot| !taken(slot)).expect("the test keeps few in flight")
            }
        };
        let last = write.lba + u64::from(write.sectors);
        let overlaps = self.in_flight.iter().filter(|f| !equal(f)).any(|f| {
            f.write.volume == write.volume
                && f.write.lba < last
                && write.lba < f.write.lba + u64::from(f.write.sectors)
        });
        if overlaps || copies >= 4 || self.in_flight.len() > 12 {
            self.unsent[port] += 1;
            return;
        }
        self.number += 1;
        let commit = self.commit(port, self.number);
        let source = u16::from(write.source[5] & 1);
        let record = entry::after(&commit, slot, source, copies > 0, &write, &frame[write.payload.clone()]);
        self.run.records[port].push(record);
        self.run.uplink.push(Uplink::Forwarded(frame.clone()));
        self.in_flight.push(InFlight { port, slot, number: self.number, frame, write });
    }

    fn answer(&mut self, index: usize, ata_status: u8, ata_error: u8) {
        let InFlight { port, slot, number, frame, .. } = self.in_flight.remove(index);
        let answer = answer_frame(&frame, ata_status, ata_error);
        let commit = self.commit(port, number);
        let record = entry::completion(&commit, slot, &Answer::decode(&answer).expect("an answer"), false);
        self.run.records[port].push(record);
        self.run.uplink.push(Uplink::Answer(answer));
    }

    fn watermark(&mut self, port: usize) {
        let commit = self.commit(port, self.number);
        self.run.records[port].push(entry::watermark(&commit));
    }
}

fn random_frame(random: &mut ChaCha8Rng, sent: &[Vec<u8>], tag: u32) -> Vec<u8> {
    match random.random_range(0..10) {
        0 => aoe_frame(1, &[0; 8]),
        1 => ata_frame(0x24, random.random_range(0..50), 2, &[3; 1024]),
        2 => ata_frame(0x35, 7, 1, &[3; 512]),
        3 if !sent.is_empty() => {
            // A resend: everything as before, with another tag.
            let mut frame = sent[random.random_range(0..sent.len())].clone();
            if frame.len() >= 24 {
                frame[20..24].copy_from_slice(&tag.to_be_bytes());
            }
            frame
        }
        _ => {
            let data = vec![random.random(); 512 * random.random_range(1..=3)];
            let mut frame = write_frame(random.random_range(0..200), &data, tag);
            frame[18] = random.random_range(0..2);
            if random.random_bool(0.2) {
                frame[27] = 0x30;
                frame[32] = 0x77; // above 28 bits, so not of the address
            }
            frame
        }
    }
}

/// A card that does everything right, and how many writes it left unsent.
fn good_run(random: &mut ChaCha8Rng, steps: u32) -> Card {
    let mut card = Card::new();
    for tag in 1..=steps {
        let port = random.random_range(0..PORTS);
        match random.random_range(0..5) {
            0 => card.watermark(port),
            1 | 2 if !card.in_flight.is_empty() => {
                let index = random.random_range(0..card.in_flight.len());
                let answers = [(0x40, 0), (0x40, 0), (0x41, 0x10), (0x41, 4)];
                let (status, error) = answers[random.random_range(0..answers.len())];
                card.answer(index, status, error);
            }
            _ => {
                let mut frame = random_frame(random, &card.run.frames[port], tag);
                // Two sources a port.
                let source = u8::from(card.run.frames[port].len().is_multiple_of(7));
                frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, source]);
                card.frame(port, frame);
            }
        }
    }
    card
}

#[test]
fn a_right_card_agrees() {
    let mut random = random();
    let (mut entries, mut copies, mut unsent) = (0, 0, 0);
    for _ in 0..200 {
        let card = good_run(&mut random, 300);
        let expected = card.run.check().unwrap_or_else(|mismatch| panic!("{mismatch}"));
        assert_eq!(expected.records, card.run.records);
        assert_eq!(expected.unadmitted, card.unsent);
        assert_eq!(expected.unpassed, [0; PORTS]);
        let dropped = |c: Counter| expected.counters.iter().map(|of| of.get(&c).copied().unwrap_or(0)).sum();
        let count =
            |command| card.run.frames.iter().flatten().filter(|f| f[19] == 0 && f[27] == command).count();
        assert_eq!(count(0x35) as u64, dropped(Counter::DroppedCommand));
        entries += (card.number - NUMBER_FLOOR) as usize;
        let is_copy = |r: &&Vec<u8>| r[3] == 1 && r[4] & 1 == 1;
        copies += card.run.records.iter().flatten().filter(is_copy).count();
        unsent += card.unsent.iter().sum::<usize>();
    }
    assert!(entries > 5000 && copies > 50 && unsent > 100, "{entries} {copies} {unsent}");
}

fn change(record: &mut [u8], change: impl FnOnce(&mut EntryHeader)) {
    let mut header = EntryHeader::read_from_bytes(&record[..HEADER_BYTES]).expect("a header");
    change(&mut header);
    header.header_crc = header.computed_crc().into();
    record[..HEADER_BYTES].copy_from_slice(header.as_bytes());
}

/// Every field of every record: a card that writes it wrong, with a right CRC, is found out, unless the
/// field is one of the card's choices.
#[test]
fn a_wrong_bit_in_any_record_is_found() {
    let mut random = random();
    let card = good_run(&mut random, 60);
    for port in 0..PORTS {
        for index in 0..card.run.records[port].len().min(40) {
            for bit in 0..60 * 8 {
                // Stamp, slot, clock error; flags that come with the stamp; which free source index.
                let is_choice = matches!(bit / 8, 8..16 | 41..44) || matches!(bit, 33..36 | 384..387);
                if is_choice {
                    continue;
                }
                let mut run = card.run.clone();
                let record = &mut run.records[port][index];
                record[bit / 8] ^= 1 << (bit % 8);
                change(record, |_| ());
                assert!(run.check().is_err(), "port {port}, record {index}, bit {bit}");
            }
        }
    }
}

/// One thing wrong with a right run, and it shows.
#[test]
fn every_broken_rule_is_found() {
    let mut random = random();
    let card = good_run(&mut random, 100);
    let entry = |run: &Run| {
        let of =
            |records: &Vec<Vec<u8>>| records.iter().position(|record| record[3] == 1 && record[4] & 1 == 0);
        let port = (0..PORTS).find(|&port| of(&run.records[port]).is_some()).expect("entries");
        (port, of(&run.records[port]).expect("an entry"))
    };
    let broken = |name: &str, text: &str, break_it: &dyn Fn(&mut Run)| {
        let mut run = card.run.clone();
        break_it(&mut run);
        let mismatch = run.check().err().unwrap_or_else(|| panic!("{name} was not found")).to_string();
        assert!(mismatch.contains(text), "{name}: {mismatch}");
    };
    let (port, index) = entry(&card.run);
    broken("data", "byte 64", &|run| run.records[port][index][64] ^= 1);
    broken("header CRC", "byte 60", &|run| run.records[port][index][60] ^= 1);
    broken("lost record", "", &|run| drop(run.records[port].remove(index)));
    broken("doubled record", "is not above", &|run| {
        let record = run.records[port][index].clone();
        run.records[port].insert(index, record);
    });
    broken("stamp below the floor", "is not above 50000", &|run| {
        change(&mut run.records[port][index], |h| h.timestamp = STAMP_FLOOR.into());
    });
    broken("duplicate without original", "no equal write is unanswered", &|run| {
        change(&mut run.records[port][index], |h| h.flags = (h.flags.get() | flags::DUPLICATE).into());
    });
    broken("source without index", "no source index", &|run| {
        change(&mut run.records[port][index], |h| h.source = u16::MAX.into());
    });
    broken("source outside the table", "outside the table", &|run| {
        change(&mut run.records[port][index], |h| h.source = 8.into());
    });
    broken("a frame from nowhere", "no frame that may pass", &|run| {
        run.uplink.push(Uplink::Forwarded(aoe_frame(1, &[9; 8])));
    });
    broken("a dropped frame forwarded", "no frame that may pass", &|run| {
        let bad = ata_frame(0x35, 7, 1, &[3; 512]);
        run.frames[0].push(bad.clone());
        run.uplink.push(Uplink::Forwarded(bad));
    });
    broken("forwarded twice", "or it left before", &|run| {
        let pass = ata_frame(0x24, 4321, 2, &[]);
        run.frames[0].push(pass.clone());
        run.uplink.extend([Uplink::Forwarded(pass.clone()), Uplink::Forwarded(pass)]);
    });
    broken("forwarded without an entry", "without an entry", &|run| {
        let write = write_frame(99_999, &[1; 512], 5);
        run.frames[0].push(write.clone());
        run.uplink.push(Uplink::Forwarded(write));
    });
}

/// Two writes to one sector on the wire together.
#[test]
fn a_broken_interlock_is_found() {
    let mut card = Card::new();
    card.frame(0, write_frame(10, &[1; 1024], 1));
    let right = card.run.clone();
    right.check().expect("nothing wrong yet");
    // An overlapping write of another port leaves before the first has its answer.
    let mut run = right.clone();
    let overlapping = write_frame(11, &[2; 512], 2);
    run.frames[1].push(overlapping.clone());
    run.uplink.push(Uplink::Forwarded(overlapping.clone()));
    let mismatch = run.check().unwrap_err().to_string();
    assert!(mismatch.contains("overlaps uplink frame 0"), "{mismatch}");
    // After the answer it is fine, and so is a neighbour before.
    card.frame(1, write_frame(12, &[2; 512], 2));
    card.answer(0, 0x40, 0);
    card.frame(1, overlapping);
    card.run.check().unwrap();
    // A copy that isn't flagged.
    let mut card = Card::new();
    card.frame(0, write_frame(10, &[1; 1024], 1));
    card.frame(0, write_frame(10, &[1; 1024], 2));
    card.run.check().unwrap();
    change(&mut card.run.records[0][1], |h| h.flags = (h.flags.get() & !flags::DUPLICATE).into());
    let mismatch = card.run.check().unwrap_err().to_string();
    assert!(mismatch.contains("isn't flagged duplicate"), "{mismatch}");
    // Two writes in one slot.
    let mut card = Card::new();
    card.frame(0, write_frame(10, &[1; 512], 1));
    card.frame(0, write_frame(20, &[1; 512], 2));
    card.run.check().unwrap();
    change(&mut card.run.records[0][1], |h| h.slot = 0);
    let mismatch = card.run.check().unwrap_err().to_string();
    assert!(mismatch.contains("slot 0 is taken"), "{mismatch}");
}

/// A status declared unknown, the late answer, and nothing made up after that.
#[test]
fn late_answers_are_records_of_their_own() {
    let mut card = Card::new();
    card.frame(0, write_frame(10, &[1; 512], 1));
    let commit = card.commit(0, NUMBER_FLOOR + 1);
    card.run.records[0].push(entry::unanswered(&commit, 0));
    card.run.check().unwrap();
    let answer = answer_frame(&write_frame(10, &[1; 512], 1), 0x40, 0);
    let late =
        entry::completion(&card.commit(0, NUMBER_FLOOR + 1), 0, &Answer::decode(&answer).unwrap(), true);
    card.run.records[0].push(late);
    let mismatch = card.run.check().unwrap_err().to_string();
    assert!(mismatch.contains("again without an answer"), "{mismatch}");
    card.run.uplink.push(Uplink::Answer(answer));
    card.run.check().unwrap();
}

#[test]
fn a_trace_that_is_none_says_so() {
    let rules = [rules()];
    let trace = Trace {
        rules: &rules,
        images: &[],
        number_floor: 0,
        stamp_floor: 0,
        frames: &[],
        uplink: &[],
        records: &[],
    };
    assert!(matches!(expected(&trace), Err(Mismatch::Trace(_))));
    let (frames, records) = ([vec![]], [vec![vec![1, 2, 3]]]);
    let trace = Trace { frames: &frames, records: &records, ..trace };
    assert!(matches!(expected(&trace), Err(Mismatch::Trace(_))));
}
