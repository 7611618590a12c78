//! The scoreboard against a list of requests: answers in any order, copies, silence, quarantine and answers
//! after it, at random cycles.
//!
//! `CHRONO_SEED` replays one seed.

use hdl::expired::REMEMBERED;
use hdl::prelude::*;
use hdl::scoreboard::{Scoreboard, COPIES, SLOTS};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::VecDeque;

const CYCLES: u64 = 150_000;
const TICK: u64 = 128;
const UNKNOWN: u64 = 12;
const QUARANTINE: u64 = 40;
/// Ticks by which a look may be late: 64 requests, an answer of up to 50 cycles between two of them.
const LATENESS: u64 = 64 * 60 / TICK + 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    mac: u64,
    lba: u64,
    short: bool,
}

#[derive(Clone, Debug)]
struct Request {
    slot: u64,
    /// Which of the slot's four.
    index: u64,
    place: Place,
    tag: u64,
    number: u64,
    forwarded: u64,
    doubtful: bool,
}

#[derive(Clone, Copy, Debug)]
struct Answer {
    mac: u64,
    lba: u64,
    tag: u64,
    failed: bool,
}

impl Answer {
    fn answers(&self, request: &Request) -> bool {
        let mask = if request.place.short { (1 << 28) - 1 } else { u64::MAX };
        (self.mac, self.lba & mask, self.tag) == (request.place.mac, request.place.lba, request.tag)
    }
}

fn key(mac: u64, tag: u64, lba: u64) -> Bits<128> {
    Bits::wrap(mac as u128 | (tag as u128) << 48 | (lba as u128) << 80)
}

#[derive(Debug, PartialEq, Eq)]
struct Match {
    slot: u64,
    number: u64,
    updated: u64,
    status: u64,
    late: bool,
}

fn run(seed: u64) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut block = Scoreboard::default();
    block.connect_all();
    check_all(&block).unwrap();
    block.unknown.next = bits(UNKNOWN);
    block.quarantine.next = bits(QUARANTINE);
    let mut open: Vec<Request> = Vec::new();
    let mut past: VecDeque<Option<Request>> = VecDeque::new();
    let mut answers: VecDeque<Answer> = VecDeque::new();
    let (mut number, mut expiring) = (1 << 40, 0u64);
    // The interlock's scans keep admissions apart.
    let mut copy_since = 0u64;
    let mut counts = [0u64; 6];
    // The tick at the last edge: what a request that is admitted now was forwarded at.
    for now in 0..CYCLES {
        let tick = now / TICK;
        // Quiet spells, so that quarantines end and slots are free.
        let busy = tick / 60 % 3 != 2;
        block.ticks.next = bits(tick);
        block.admit.next = false;
        block.answer.next = false;
        block.take.next = false;
        settle(&mut block);

        // Admission.
        let used = |slot: u64| open.iter().filter(|r| r.slot == slot).count();
        if busy && random.random_bool(0.02) {
            let place = Place {
                mac: random.random_range(0..2),
                lba: random.random_range(0..12u64) << 26 | random.random_range(0..2u64) << 30,
                short: random.random_bool(0.3),
            };
            let place = if place.short { Place { lba: place.lba & 0xFFF_FFFF, ..place } } else { place };
            let tag = random.random_range(0..4);
            let copy_slot = block.copy_slot.val().to_u64();
            let original = open.iter().find(|r| r.slot == copy_slot).map(|r| r.place);
            let awaited = |place: Place| answers.iter().any(|a| a.lba & 0xFFF_FFFF == place.lba & 0xFFF_FFFF);
            let free = block.slot_free.val();
            match original.filter(|_| random.random_bool(0.5) && now - copy_since > 4) {
                Some(place) if !awaited(place) => {
                    assert_eq!(block.copy_room.val(), used(copy_slot) < COPIES, "seed {seed}, cycle {now}");
                    if block.copy_room.val() && expiring != copy_slot + 1 {
                        number += 1;
                        block.admit.next = true;
                        block.admit_copy.next = true;
                        block.admit_key.next = key(place.mac, tag, place.lba);
                        block.admit_number.next = bits(number);
                        counts[0] += 1;
                        copy_since = now;
                    }
                }
                _ => {
                    let taken = open.iter().any(|r| r.place.lba & 0xFFF_FFFF == place.lba & 0xFFF_FFFF);
                    if free && !taken && !awaited(place) {
                        assert_eq!(used(block.slot.val().to_u64()), 0, "seed {seed}, cycle {now}");
                        number += 1;
                        block.admit.next = true;
                        block.admit_copy.next = false;
                        block.admit_key.next = key(place.mac, tag, place.lba);
                        block.admit_short.next = place.short;
                        block.admit_address.next = bits(5);
                        block.admit_number.next = bits(number);
                        counts[1] += 1;
                    }
                }
            }
        } else if random.random_bool(0.05) && !open.is_empty() {
            let slot = open[random.random_range(0..open.len())].slot;
            block.copy_slot.next = bits(slot);
            copy_since = now;
        }

        // Answers: to what is open, to what is past, to nothing.
        let chance = if (tick / 100).is_multiple_of(2) { 0.0004 } else { 0.02 };
        if !block.answers_full.val() && random.random_bool(chance) {
            let known = open.iter().chain(past.iter().flatten());
            let known: Vec<Answer> = known
                .map(|r| {
                    // What a 28-bit command's LBA has above doesn't count.
                    let above = if r.place.short { (r.number & 3) << 28 } else { 0 };
                    Answer { mac: r.place.mac, lba: r.place.lba | above, tag: r.tag, failed: false }
                })
                .collect();
            let mut answer = match known.len() {
                n if n > 0 && random.random_bool(0.8) => known[random.random_range(0..n)],
                _ => Answer { mac: 1, lba: 0xF000_0000_0000, tag: 2, failed: false },
            };
            answer.failed = random.random_bool(0.2);
            block.answer.next = true;
            block.answer_key.next = key(answer.mac, answer.tag, answer.lba);
            let status = if answer.failed { 0x41 | 0x10 << 8 } else { 0x40 };
            block.answer_info.next = bits(status | 5 << 24);
            answers.push_back(answer);
        }
        // The port does one thing at a time.
        block.take.next = block.matched.val() && !block.admit.next && random.random_bool(0.3);
        settle(&mut block);

        let seen = Match {
            slot: block.matched_slot.val().to_u64(),
            number: block.matched_number.val().to_u64(),
            updated: block.matched_updated.val().to_u64(),
            status: block.matched_status.val().to_u64(),
            late: block.matched_late.val(),
        };
        let (take, unmatched) = (block.take.next, block.unmatched.val());
        let (freed, declared) = (block.free.val(), block.declared.val());
        let changed = block.changed_slot.val().to_u64();
        let admitted = block.admit.next.then(|| {
            let copy = block.admit_copy.next;
            let slot = if copy { block.copy_slot.val() } else { block.slot.val() }.to_u64();
            let key = block.admit_key.next;
            let place = match open.iter().find(|r| copy && r.slot == slot) {
                Some(original) => original.place,
                None => Place {
                    mac: key.get_bits::<48>(0).to_u64(),
                    lba: key.get_bits::<48>(80).to_u64(),
                    short: block.admit_short.next,
                },
            };
            let tag = key.get_bits::<32>(48).to_u64();
            let taken = |index: &u64| open.iter().any(|r| (r.slot, r.index) == (slot, *index));
            let index = (0..COPIES as u64).find(|index| !taken(index)).expect("a copy had room");
            Request { index, slot, place, tag, number, forwarded: tick, doubtful: false }
        });
        cycle(&mut block, |b| &mut b.clock, |_| ());

        let context = format!("seed {seed}, cycle {now}");
        let mut let_go = None;
        if take && seen.status == 0 {
            let request = open.iter_mut().find(|r| r.number == seen.number).expect(&context);
            assert!(!request.doubtful && tick - request.forwarded >= UNKNOWN.min(QUARANTINE), "{context}");
            assert_eq!((seen.slot, seen.updated, seen.late), (request.slot, 4, false), "{context}");
            assert!(declared && changed == request.slot, "{context}");
            request.doubtful = true;
            counts[2] += 1;
        } else if take {
            let answer = answers.pop_front().expect(&context);
            let matching = open.iter().enumerate().filter(|(_, r)| answer.answers(r));
            let at = matching.min_by_key(|(_, r)| r.number).map(|(at, _)| at);
            let updated = if answer.failed { 2 } else { 1 };
            let request = match at {
                Some(at) => open.remove(at),
                None => {
                    let old = past.iter_mut().find(|old| old.as_ref().is_some_and(|r| answer.answers(r)));
                    counts[4] += 1;
                    old.and_then(Option::take).expect(&context)
                }
            };
            let status = if answer.failed { 0x41 } else { 0x40 };
            let expected =
                Match { slot: request.slot, number: request.number, updated, status, late: request.doubtful };
            assert_eq!(seen, expected, "{context}");
            let last = at.is_some() && !open.iter().any(|r| r.slot == request.slot);
            let_go = last.then_some(request.slot);
            counts[3] += u64::from(at.is_some());
        } else if unmatched && !block.matched.val() {
            let answer = answers.pop_front().expect(&context);
            assert!(!open.iter().any(|r| answer.answers(r)), "{context}");
            assert!(!past.iter().flatten().any(|r| answer.answers(r)), "{context}");
        }
        if freed && let_go.is_none() {
            // The end of a quarantine.
            let mut ended: Vec<Request> = open.iter().filter(|r| r.slot == changed).cloned().collect();
            assert!(!ended.is_empty() && ended.iter().all(|r| r.doubtful), "{context}");
            let last = ended.iter().map(|r| r.forwarded).max().unwrap_or(0);
            assert!(tick - last >= QUARANTINE, "{context}");
            open.retain(|r| r.slot != changed);
            ended.sort_by_key(|r| r.index);
            counts[5] += 1;
            past.extend(ended.into_iter().map(Some));
            while past.len() > REMEMBERED {
                past.pop_front();
            }
            expiring = changed + 1;
        } else if let Some(slot) = let_go {
            assert!(freed && changed == slot, "{context}: the last answer frees the slot");
        } else {
            assert!(!freed, "{context}");
        }
        open.extend(admitted);
        settle(&mut block);
        let reserved = open.iter().filter(|r| !r.doubtful).count() as u64;
        assert_eq!(block.reserved.val().to_u64(), reserved, "{context}");
        assert!(block.in_flight.val().to_u64() >= open.len() as u64, "{context}");
        for request in &open {
            let limit = if request.doubtful { u64::MAX } else { UNKNOWN + LATENESS };
            assert!(tick - request.forwarded <= limit, "{context}: {request:?} is overlooked");
        }
        assert!(open.iter().all(|r| r.slot < SLOTS as u64));
    }
    let [copies, fresh, silent, answered, recalled, ended] = counts;
    println!(
        "seed {seed}: {fresh} writes and {copies} copies, {answered} answered, {silent} declared unknown, {ended} \
         quarantines ended, {recalled} answered after that"
    );
    assert!(counts.iter().all(|&count| count > 15), "{counts:?}");
}

#[test]
fn every_request_gets_its_status() {
    match std::env::var("CHRONO_SEED").ok().and_then(|text| text.parse().ok()) {
        Some(seed) => run(seed),
        None => (0..4).for_each(run),
    }
}
