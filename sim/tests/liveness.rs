//! Nothing hangs: a target that loses a part of everything, then is gone for a while, then a host that takes
//! nothing, so that every ring is full. Sources send again as initiators do. Afterwards every write has its
//! answer and every entry its status; while only the host stands still, reads go on.
//!
//! So with each technique and acknowledge policy. Where the volume waits for the disk no source has its answer
//! before the host has reported the entry durable, and no write with a before-image leaves before that.
//!
//! It prints how long the worst write waited. `CHRONO_SEED` replays one seed.

use driver::{BringUp, Driver};
use layout::aoe::{self, Ata};
use layout::entry::{flags, EntryHeader, Kind, Updated};
use layout::registers::{self, Counter};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sim::target::{request, Image, Target, TargetVolume, VbladeModel};
use sim::{CardOptions, SimulatedCard, UplinkFrame, PORTS};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const SECTORS: u64 = 1 << 14;
/// Where sources write at random.
const CROWDED: u64 = 256;
const SHELF: (u16, u8) = (1, 0);
/// Cycles of the phases, one after the other: loss, no target, no host.
const LOSS_UNTIL: u64 = 150_000;
const OUTAGE_UNTIL: u64 = 250_000;
const FULL_UNTIL: u64 = 380_000;
/// Nothing new is sent from here on.
const SEND_UNTIL: u64 = 420_000;
/// Another host takes over.
const NEW_SESSION_AT: u64 = 90_000;
/// The sources' patience. Above the hold time.
const RESEND: u64 = 6_000;
const HOLD: u64 = 30 * 128;
const QUARANTINE: u64 = 200 * 128;
/// Writes that a port's source has under way; with before-images, of which a port holds one at a time, fewer.
const WINDOW: usize = 12;
const WINDOW_HELD: usize = 4;
/// Cycles in which a read is answered while the target is there.
const READ_LIMIT: u64 = 3_000;

struct Faulty {
    model: VbladeModel,
    random: ChaCha8Rng,
}

impl Target for Faulty {
    fn frame(&mut self, frame: &[u8], cycle: u64, answers: &mut Vec<(u64, Vec<u8>)>) {
        let read = frame[27] == aoe::ATA_READ_EXT;
        let loss = cycle < LOSS_UNTIL && !read && self.random.random_bool(0.15);
        let lost = loss || (LOSS_UNTIL..OUTAGE_UNTIL).contains(&cycle);
        if lost {
            return;
        }
        self.model.frame(frame, cycle, answers);
        if cycle < LOSS_UNTIL && !read {
            answers.retain(|_| self.random.random_bool(0.85));
        }
    }
}

struct Pending {
    lba: u64,
    data: Vec<u8>,
    tag: u32,
    first: u64,
    last: u64,
}

/// The headers of what the host's rings hold.
fn take_records(driver: &mut Driver<SimulatedCard>) -> Vec<EntryHeader> {
    driver.poll().unwrap();
    let mut headers = Vec::new();
    for port in 0..PORTS {
        let batch = driver.batch(port);
        let count = batch.len();
        headers.extend(batch.records().map(|record| *record.header));
        driver.consume(port, count).unwrap();
    }
    headers
}

fn ata(command: u8, lba: u64, sectors: u8) -> Ata {
    let lba = lba.to_le_bytes()[..6].try_into().unwrap();
    Ata { flags: 0x41, error_feature: 0, sectors, command_status: command, lba, reserved: [0; 2] }
}

/// How a volume is journaled and answered, and at most how long a write may wait beyond what was out of order.
#[derive(Clone, Copy, Debug)]
struct Mode {
    name: &'static str,
    word: u32,
}

const MODES: [Mode; 4] = [
    Mode { name: "after, port", word: 0 },
    Mode { name: "after, journal", word: registers::VOLUME_JOURNAL },
    Mode { name: "before, journal", word: registers::VOLUME_BEFORE | registers::VOLUME_JOURNAL },
    Mode { name: "both, port", word: registers::VOLUME_BEFORE | registers::VOLUME_BOTH },
];

fn run(seed: u64, mode: Mode) {
    let window = if mode.word & registers::VOLUME_BEFORE != 0 { WINDOW_HELD } else { WINDOW };
    let waits = mode.word & registers::VOLUME_JOURNAL != 0;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let image = Image::Memory(vec![0; SECTORS as usize * 512]);
    let model = VbladeModel::new(vec![TargetVolume::new(SHELF.0, SHELF.1, SECTORS, image)]);
    let target = Faulty { model, random: ChaCha8Rng::seed_from_u64(!seed) };
    let card = SimulatedCard::new(CardOptions::default(), Box::new(target)).unwrap();
    let mut settings = BringUp::new(1, 1_790_000_000_000_000_000, PORTS);
    settings.volumes = vec![Some(SHELF)];
    settings.timeouts.hold = (HOLD / 128) as u32;
    settings.timeouts.unknown = 100;
    settings.timeouts.quarantine = (QUARANTINE / 128) as u32;
    settings.timeouts.retry = 20;
    settings.timeouts.flush_period = layout::registers::ticks(40);
    for port in &mut settings.ports {
        port.volumes = 1;
        port.ring_bytes = layout::ring::MINIMUM_RING_BYTES;
    }
    settings.volume_modes = vec![mode.word];
    let mut driver = Driver::bring_up(card, &settings).unwrap();
    driver.card_mut().log_uplink();

    let mac = |port: usize| [2, 0, 0, 0, 0, port as u8];
    let mut writes: Vec<Vec<Pending>> = (0..PORTS).map(|_| Vec::new()).collect();
    let mut reads: Vec<Option<(u32, u64)>> = vec![None; PORTS];
    let (mut tag, mut sent, mut worst, mut worst_read) = (0u32, 0u64, 0u64, 0u64);
    let mut statuses: BTreeMap<u64, u64> = BTreeMap::new();
    let (mut late, mut gaps, mut quiet_since) = (0, 0, 0);
    // Where the disk is waited for every write has its own place, so that its entry is known by that.
    let mut fresh = 0;
    let mut numbers: BTreeMap<u64, u64> = BTreeMap::new();
    let (mut received, mut durable, mut looked_at) = (BTreeSet::new(), 0, 0);
    let mut taken: Vec<EntryHeader> = Vec::new();
    let (mut next_session, mut cancelled) = (NEW_SESSION_AT, 0);
    loop {
        let now = driver.card().cycles();
        if now > next_session {
            // Another host takes over, with all that happens going on. What the first one was told of it has taken.
            next_session = u64::MAX;
            for port in 0..PORTS {
                let control = registers::PORT_BASE + registers::PORT_STRIDE * port as u32;
                driver::Card::write(driver.card_mut(), control + registers::port::CONTROL, 0).unwrap();
            }
            driver.card_mut().run(3000);
            taken.extend(take_records(&mut driver));
            settings.session += 1;
            driver = Driver::bring_up(driver.into_card(), &settings).unwrap();
            driver.durable(durable).unwrap();
            continue;
        }
        for port in 0..PORTS {
            while let Some(frame) = driver.card_mut().returned(port) {
                let answered = u32::from_be_bytes(frame[20..24].try_into().unwrap());
                if frame[..6] != mac(port) {
                    continue;
                }
                if let Some((_, since)) = reads[port].take_if(|(tag, _)| *tag == answered) {
                    worst_read = worst_read.max(now - since);
                }
                // A source knows a write by its latest tag only.
                if let Some(at) = writes[port].iter().position(|write| write.tag == answered) {
                    let write = writes[port].remove(at);
                    worst = worst.max(now - write.first);
                    if waits {
                        let number = numbers.get(&write.lba).copied().unwrap_or(u64::MAX);
                        assert!(
                            number <= durable,
                            "seed {seed}: LBA {} is answered, but not durable",
                            write.lba
                        );
                    }
                }
            }
            let there = !(LOSS_UNTIL..OUTAGE_UNTIL).contains(&now);
            match reads[port] {
                Some((_, since)) if there => {
                    // Sent before the target was gone: it never comes, and is given up.
                    if (LOSS_UNTIL.saturating_sub(READ_LIMIT)..OUTAGE_UNTIL).contains(&since) {
                        reads[port] = None;
                    } else {
                        assert!(now - since < READ_LIMIT, "seed {seed}: port {port}, a read waits at {now}");
                    }
                }
                None if there && now < SEND_UNTIL => {
                    tag += 1;
                    reads[port] = Some((tag, now));
                    let frame = request(mac(port), SHELF, tag, ata(aoe::ATA_READ_EXT, 3, 1), &[]);
                    driver.card_mut().offer(port, frame);
                }
                _ => {}
            }
            while now < SEND_UNTIL && writes[port].len() < window {
                let sectors = random.random_range(1..=2);
                // A source doesn't write where it waits for an answer.
                let mut lba = random.random_range(0..CROWDED - 2);
                if waits {
                    fresh += 2;
                    lba = CROWDED + fresh;
                }
                let overlaps = |w: &Pending| lba < w.lba + 2 && w.lba < lba + 2;
                if writes[port].iter().any(overlaps) {
                    continue;
                }
                let mut data = vec![0; sectors as usize * 512];
                random.fill(&mut data[..]);
                tag += 1;
                sent += 1;
                writes[port].push(Pending { lba, data, tag, first: now, last: 0 });
            }
            for write in writes[port].iter_mut().filter(|w| w.last == 0 || now - w.last > RESEND) {
                if write.last != 0 {
                    tag += 1;
                    write.tag = tag;
                }
                write.last = now;
                let sectors = (write.data.len() / 512) as u8;
                let ata = ata(aoe::ATA_WRITE_EXT, write.lba, sectors);
                driver.card_mut().offer(port, request(mac(port), SHELF, write.tag, ata, &write.data));
            }
        }
        driver.wait(Duration::from_micros(2)).unwrap();
        let host_stands = (OUTAGE_UNTIL..FULL_UNTIL).contains(&now);
        if !host_stands {
            taken.extend(take_records(&mut driver));
            for header in taken.drain(..) {
                let number = header.number.get();
                match Kind::from_byte(header.kind) {
                    Ok(Kind::After | Kind::Before | Kind::Both) => {
                        statuses.insert(number, 0);
                        received.insert(number);
                        let first = numbers.entry(header.lba()).or_insert(number);
                        *first = number.min(*first);
                    }
                    Ok(Kind::Completion) => {
                        late += u64::from(header.flags.get() & flags::LATE != 0);
                        cancelled += u64::from(header.updated() == Ok(Updated::Cancelled));
                        *statuses.get_mut(&number).expect("a completion without its entry") += 1;
                    }
                    Ok(Kind::Gap) => gaps += 1,
                    _ => continue,
                }
                quiet_since = now;
            }
            // The disk is slow: it syncs now and then.
            while random.random_bool(0.05) && received.contains(&(durable + 1)) {
                while received.remove(&(durable + 1)) {
                    durable += 1;
                }
                driver.durable(durable).unwrap();
            }
        }
        if mode.word == registers::VOLUME_BEFORE | registers::VOLUME_JOURNAL {
            for frame in &driver.card().uplink_log()[looked_at..] {
                let UplinkFrame::Left(bytes) = frame else { continue };
                if bytes[27] == aoe::ATA_WRITE_EXT {
                    let lba = u64::from_le_bytes([bytes[28], bytes[29], bytes[30], bytes[31], 0, 0, 0, 0]);
                    let number = numbers.get(&lba).copied().unwrap_or(u64::MAX);
                    assert!(
                        number <= durable,
                        "seed {seed}: LBA {lba} leaves, but what it held isn't durable"
                    );
                }
            }
            looked_at = driver.card().uplink_log().len();
        }
        if writes.iter().all(Vec::is_empty) && now > SEND_UNTIL && now - quiet_since > 2 * QUARANTINE {
            break;
        }
        assert!(now < 1_500_000, "seed {seed}: writes wait forever");
    }
    let open = statuses.values().filter(|&&count| count == 0).count();
    assert_eq!(open, 0, "seed {seed}: entries without a status");
    let mut dropped = [0; 5];
    for port in 0..PORTS {
        let counters = driver.counters(port).unwrap();
        let of = [
            Counter::DroppedHold,
            Counter::DroppedQuarantine,
            Counter::DroppedBuffer,
            Counter::DroppedRead,
            Counter::DroppedCopy,
        ];
        dropped.iter_mut().zip(of).for_each(|(sum, counter)| *sum += counters.get(counter));
        let status =
            driver::Card::read(driver.card_mut(), layout::registers::PORT_BASE + 0x400 * port as u32 + 8);
        assert_eq!(status.unwrap() >> 16 & 0xFF, 0, "seed {seed}: port {port} has writes in flight");
    }
    println!(
        "{}: seed {seed}: {sent} writes, {} entries, {late} late answers, {gaps} gaps, {cancelled} cancelled; dropped {dropped:?} (hold, \
         quarantine, buffer, read, copy); the worst write waited {worst} cycles, the worst read {worst_read}; {now} \
         cycles",
        mode.name,
        statuses.len(),
        now = driver.card().cycles()
    );
    // No target and no host for so long, a quarantine begun at the end of it, and resends that meet others.
    // With before-images there is no such bound: a port holds one write, what waits behind it longer than the hold
    // time is dropped, and which one is there when it goes is chance. It ends all the same.
    let limit = FULL_UNTIL - LOSS_UNTIL + 2 * QUARANTINE + 20 * RESEND;
    let held = mode.word & registers::VOLUME_BEFORE != 0;
    assert!(held || worst < limit, "seed {seed}: a write waited {worst} cycles, more than {limit}");
    assert!(dropped[0] > 0, "seed {seed}: nothing was full");
}

fn seed() -> Option<u64> {
    std::env::var("CHRONO_SEED").ok().and_then(|text| text.parse().ok())
}

#[test]
fn nothing_hangs() {
    run(seed().unwrap_or(1), MODES[1]);
}

/// `make liveness`.
#[test]
#[ignore = "a minute; the other one is a fair sample"]
fn nothing_hangs_in_any_mode() {
    MODES.iter().zip(0..).for_each(|(mode, index)| run(seed().unwrap_or(index), *mode));
}
