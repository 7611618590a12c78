//! The verifier proves merged portions, finds every byte of them that changes, and makes the images of their
//! moments. They are written by hand: `merged_by_hand`.
//!
//! CHRONO_SEED is the first seed, CHRONO_SEEDS how many there are.

// A volume's number is the index of several arrays at once.
#![allow(clippy::needless_range_loop)]

mod faulty_storage;
mod merged_by_hand;

use faulty_storage::FaultyStorage;
use journal::image::{Backing, Image};
use journal::verify::{verify_on, Naive, Report};
use journal::{Error, JournalReader, Moment};
use layout::entry::{EntryHeader, Kind};
use layout::journal_file::{
    BatchHeader, ImageRow, IndexRow, MergedWindow, NoteRow, PortState, ScheduleRow, SealHeader,
    SectionHeader, SegmentHeader, Superblock, TablesHeader, TABLES_OFFSET,
};
use merged_by_hand::world::{Beside, World, NAMES};
use merged_by_hand::{merge, Merged, Plan, Touch, Window};
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::sync::Arc;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

const WINDOW: u64 = 20_000;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn each_seed(offset: u64, count: u64, test: impl Fn(u64)) {
    let first = number("CHRONO_SEED", 1 + offset);
    let count = if std::env::var("CHRONO_SEED").is_ok() { 1 } else { number("CHRONO_SEEDS", count) };
    println!("CHRONO_SEED={first}, {count} seeds");
    for seed in first..first + count {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(seed)));
        if let Err(panic) = result {
            println!("failed with CHRONO_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

fn check(image: Vec<u8>) -> Report {
    verify_on(&FaultyStorage::from_image(image), &mut |_, _| {}).unwrap()
}

/// A world, and what became of it when some of it was merged.
fn merged(seed: u64, beside: Beside) -> (World, Merged, Plan) {
    let mut world = World::new(seed, 4 << 20, beside);
    let steps = world.rng.random_range(30..250);
    world.run(steps);
    let plan = random_plan(&mut world);
    let merged = merge(&world.storage.image(), &plan, &mut |_| {});
    (world, merged, plan)
}

fn random_plan(world: &mut World) -> Plan {
    let windows = (world.stamp - world.first_stamp) / WINDOW;
    let grid = world.first_stamp.next_multiple_of(WINDOW);
    let cut = grid + world.rng.random_range(0..=windows) * WINDOW;
    // Not beyond what every port has delivered.
    let cut = cut.min(world.stamp / WINDOW * WINDOW).max(grid);
    let coarse = 4 * WINDOW;
    let mut levels = vec![(WINDOW, cut)];
    let second = world.rng.random_range(0..=cut - world.first_stamp) + world.first_stamp;
    if world.rng.random_bool(0.5) && second / coarse * coarse > world.first_stamp {
        levels.push((coarse, second / coarse * coarse));
    }
    let most = (world.rng.random_range(2..40), world.rng.random_range(1..20));
    let mut plan = Plan { levels, named: world.named.clone(), forget: 0, most };
    if world.rng.random_bool(0.4) {
        let windows = merge(&world.storage.image(), &plan, &mut |_| {}).windows;
        let oldest: Vec<&Window> =
            windows.iter().filter(|window| window.portion == windows[0].portion).collect();
        if oldest.len() > 1 {
            plan.forget = oldest[world.rng.random_range(0..oldest.len() - 1)].end;
        }
    }
    plan
}

#[test]
fn merged_journals_are_proved_and_counted() {
    let beside = Beside { resyncs: true, resize: true, gaps: true, bookmarks: true };
    each_seed(400_000, 80, |seed| {
        let (world, merged, plan) = merged(seed, beside);
        let report = check(merged.image);
        assert_eq!(report.findings, [], "{plan:?}");
        assert_eq!(report.windows, merged.windows.len() as u64);
        assert_eq!(report.merged_entries, merged.windows.iter().map(|w| w.entries as u64).sum::<u64>());
        assert_eq!(report.first_order, merged.from_order);
        assert_eq!(report.order, world.writes.len() as u64);
        assert_eq!(report.entries, report.order + 1 - merged.from_order);
        assert_eq!(report.history_from, plan.forget);
    });
}

/// What is known of a moment: the entries before it; `None`: it is gone.
fn moments(world: &mut World, merged: &Merged, forget: u64) -> Vec<(Moment, Option<usize>)> {
    let mut moments = vec![(Moment::End, Some(world.writes.len()))];
    for order in 0..=world.writes.len() {
        if order < 8
            || world.rng.random_bool(0.1)
            || merged.windows.iter().any(|w| w.last_order == order as u64)
        {
            let gone = merged.is_gone(order as u64);
            moments.push((Moment::Order(order as u64), (!gone).then_some(order)));
        }
    }
    for _ in 0..10 {
        let stamp = world.rng.random_range(world.first_stamp..=world.stamp);
        let count = world.writes.iter().filter(|write| write.stamp <= stamp).count();
        let gone = merged.is_gone(count as u64) || stamp < forget;
        moments.push((Moment::Timestamp(stamp), (!gone).then_some(count)));
    }
    moments
}

#[test]
fn every_moment_of_merged_journals_is_the_models() {
    let beside = Beside { resyncs: true, resize: true, gaps: false, bookmarks: true };
    each_seed(500_000, 50, |seed| {
        let (mut world, merged, plan) = merged(seed, beside);
        let storage = FaultyStorage::from_image(merged.image.clone());
        let moments = moments(&mut world, &merged, plan.forget);
        for volume in 0..2 {
            let (mut base, primary) = world.files(volume);
            if merged.forgotten > 0 {
                let journal_id = merged.image[24..40].try_into().unwrap();
                let (count, rolling) = (merged.forgotten as usize, merged.rolling as usize);
                base = world.base_at(volume, journal_id, count, rolling);
            }
            for (at, count) in &moments {
                if world.kind != Kind::Before {
                    let backing = Backing::Base(&base);
                    let count = count.filter(|count| *count as u64 >= merged.rolling);
                    let expected = count.map(|count| world.assumed(volume, count));
                    one(&storage, volume, *at, backing, expected, count, &plan);
                }
                if world.kind != Kind::After {
                    let backing = Backing::Primary(&primary);
                    let expected = count.map(|count| world.truth(volume, count));
                    one(&storage, volume, *at, backing, expected, *count, &plan);
                }
            }
        }
    });
}

fn one(
    storage: &FaultyStorage,
    volume: usize,
    at: Moment,
    backing: Backing<'_>,
    expected: Option<Vec<u8>>,
    count: Option<usize>,
    plan: &Plan,
) {
    let naive = Naive::open(storage, NAMES[volume], at, backing, &mut |_, _| {});
    let (Some(expected), Some(count)) = (expected, count) else {
        assert!(matches!(naive, Err(Error::NoMoment(_))), "{at:?} of {plan:?}: {:?}", naive.err());
        return;
    };
    let mut naive = naive.unwrap_or_else(|error| panic!("{at:?} {backing:?} of {plan:?}: {error}"));
    assert_eq!(naive.order(), count as u64, "{at:?}");
    let mut image = vec![0xEE; naive.bytes() as usize];
    naive.read_at(&mut image, 0).unwrap();
    // Where the volume grew between this entry and the next, it may have either size.
    let length = image.len().min(expected.len());
    assert!(expected[length..].iter().chain(&image[length..]).all(|byte| *byte == 0), "{at:?}: its size");
    if let Some(byte) = (0..length).find(|byte| image[*byte] != expected[*byte]) {
        let source = naive.source(byte as u64 / 512).unwrap();
        panic!("{at:?} {backing:?} volume {volume}: sector {} is from {source}; {plan:?}", byte / 512);
    }
}

/// What was merged by hand, from the format page alone, the production reader takes for what it is.
#[test]
fn production_reads_what_was_merged_by_hand() {
    let beside = Beside { resyncs: true, resize: false, gaps: false, bookmarks: true };
    each_seed(550_000, 40, |seed| {
        let (mut world, merged, plan) = merged(seed, beside);
        let storage: Arc<dyn journal::Storage> = Arc::new(FaultyStorage::from_image(merged.image.clone()));
        let moments = moments(&mut world, &merged, plan.forget);
        for volume in 0..2 {
            let (mut base, primary) = world.files(volume);
            if merged.forgotten > 0 {
                let journal_id = merged.image[24..40].try_into().unwrap();
                let (count, rolling) = (merged.forgotten as usize, merged.rolling as usize);
                base = world.base_at(volume, journal_id, count, rolling);
            }
            for (at, count) in &moments {
                let over_base = count.filter(|count| *count as u64 >= merged.rolling);
                let ways = [
                    (world.kind != Kind::Before)
                        .then(|| (Backing::Base(&base), over_base.map(|count| world.assumed(volume, count)))),
                    (world.kind != Kind::After)
                        .then(|| (Backing::Primary(&primary), count.map(|count| world.truth(volume, count)))),
                ];
                for (backing, expected) in ways.into_iter().flatten() {
                    let reader = JournalReader::open_on(storage.clone()).unwrap();
                    let image = Image::open(reader, NAMES[volume], *at, backing, false, &mut |_, _| {});
                    let Some(expected) = expected else {
                        let error = image.err();
                        let gone = matches!(error, Some(Error::Merged { .. } | Error::NoMoment(_)));
                        assert!(gone, "{at:?} of {plan:?}: {error:?}");
                        continue;
                    };
                    let image =
                        image.unwrap_or_else(|error| panic!("{at:?} {backing:?} of {plan:?}: {error}"));
                    let mut read = vec![0xEE; image.bytes() as usize];
                    image.read_at(&mut read, 0).unwrap();
                    let differs = (0..read.len()).find(|byte| read[*byte] != expected[*byte]);
                    assert_eq!(differs, None, "{at:?} {backing:?} volume {volume} of {plan:?}");
                }
            }
        }
    });
}

#[test]
fn every_byte_of_a_merged_journal_is_checked() {
    let beside = Beside { resyncs: true, resize: true, gaps: true, bookmarks: true };
    let mut world = World::new(number("CHRONO_SEED", 7), 1 << 20, beside);
    world.run(60);
    let window = WINDOW / 4;
    let cut = world.stamp / window * window - 2 * window;
    let levels = vec![(window, cut), (2 * window, cut / (2 * window) * 2 * window - 4 * window)];
    let plan = Plan { levels, named: world.named.clone(), forget: 0, most: (3, 4) };
    let merged = merge(&world.storage.image(), &plan, &mut |_| {});
    let image = merged.image;
    let report = check(image.clone());
    assert_eq!(report.findings, []);
    assert!(report.windows > 4 && report.segments > report.sealed, "{report:?}");
    let in_use: BTreeSet<usize> = merged.used.into_iter().flatten().collect();
    // All of them take some minutes: CHRONO_EVERY=1. CHRONO_PHASE chooses which.
    let every = number("CHRONO_EVERY", 48) as usize;
    println!("{} bytes in use, every {every}th is changed, {} windows", in_use.len(), report.windows);
    let mut frozen = Frozen(image);
    let phase = number("CHRONO_PHASE", 5) as usize % every;
    for at in in_use.into_iter().filter(|at| at % every == phase) {
        let bit = 1 << world.rng.random_range(0..8);
        frozen.0[at] ^= bit;
        let report = verify_on(&frozen, &mut |_, _| {}).unwrap_or_else(|error| panic!("byte {at}: {error}"));
        let near = report.findings.iter().any(|f| f.offset as usize <= at && at < f.offset as usize + 16384);
        assert!(near, "byte {at}, bit {bit:#x}: {:?} {:?}", report.findings, report.torn_tail);
        frozen.0[at] ^= bit;
    }
}

/// An image that is only read.
struct Frozen(Vec<u8>);

impl journal::Storage for Frozen {
    fn name(&self) -> &str {
        "memory"
    }
    fn bytes(&self) -> std::io::Result<u64> {
        Ok(self.0.len() as u64)
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let from = self.0.get(offset as usize..).unwrap_or(&[]);
        let length = buffer.len().min(from.len());
        buffer[..length].copy_from_slice(&from[..length]);
        Ok(length)
    }
    fn write_at(&self, _bytes: &[u8], _offset: u64) -> std::io::Result<usize> {
        panic!("a verifier writes nothing")
    }
    fn sync(&self) -> std::io::Result<()> {
        panic!("a verifier writes nothing")
    }
}

/// A journal in which every kind of structure of a merged portion is there.
fn rich() -> (World, Plan) {
    let beside = Beside { resyncs: true, resize: true, gaps: true, bookmarks: true };
    for seed in 9.. {
        let mut world = World::new(seed, 4 << 20, beside);
        if world.kind != Kind::Both {
            continue;
        }
        world.run(250);
        let cut = world.stamp / WINDOW * WINDOW - WINDOW;
        let coarse = 2 * WINDOW;
        let levels = vec![(WINDOW, cut), (coarse, (world.first_stamp + 4 * WINDOW).next_multiple_of(coarse))];
        let plan = Plan { levels, named: world.named.clone(), forget: 0, most: (3, 4) };
        let report = check(merge(&world.storage.image(), &plan, &mut |_| {}).image);
        assert_eq!(report.findings, []);
        if report.windows > 8 && report.gaps > 0 && report.sealed > 3 {
            return (world, plan);
        }
    }
    unreachable!("some world is rich")
}

type Break = (&'static str, &'static str, fn(Touch<'_>));

/// What is broken, a part of what has to be found, and how.
const BREAKS: &[Break] = &[
    ("level", "role or level", |t| superblock(t, |s| s.portions[1].level = 2)),
    ("reserved", "reserved", |t| superblock(t, |s| s.portions[2].reserved[3] = 1)),
    ("free row", "is free", |t| superblock(t, |s| s.portions[4].window = 5.into())),
    ("no segments", "its segments", |t| superblock(t, |s| s.portions[1].first_sequence = 0.into())),
    ("endless", "its segments", |t| superblock(t, |s| s.portions[1].end_sequence = u64::MAX.into())),
    ("end too far", "missing", |t| superblock(t, |s| bump(&mut s.portions[1].end_sequence, 1))),
    ("window", "multiple", |t| superblock(t, |s| bump(&mut s.portions[2].window, 1))),
    ("windows' ends", "neither at a multiple", |t| superblock(t, |s| s.portions[1].window = 1600.into())),
    ("bit in one word", "features", |t| superblock(t, |s| s.features_write = 0.into())),
    ("no bit", "feature bit", |t| {
        superblock(t, |s| (s.features_read, s.features_write) = (0.into(), 0.into()))
    }),
    ("received level", "received portion", |t| superblock(t, |s| s.portions[0].level = 1)),
    ("received end", "received portion", |t| superblock(t, |s| s.portions[0].end_sequence = 9.into())),
    ("coarse begins later", "behind the finer", |t| {
        superblock(t, |s| s.portions[2].after_timestamp = u64::MAX.into())
    }),
    ("orders begin later", "behind the finer", |t| {
        superblock(t, |s| s.portions[2].from_order = 90_000.into())
    }),
    ("from_order", "order", |t| superblock(t, |s| bump(&mut s.portions[0].from_order, 1))),
    ("after_timestamp", "reaches up to", |t| {
        superblock(t, |s| {
            s.portions[1].after_timestamp = (s.portions[1].after_timestamp.get() - 40_000).into()
        })
    }),
    ("portion begins in a window", "begins in it", |t| {
        superblock(t, |s| bump(&mut s.portions[1].after_timestamp, 20_001))
    }),
    ("window's number", "order", |t| window(t, |r, _| bump(&mut r.number, 1))),
    ("window's begin", "has ended", |t| window(t, |r, _| r.sequence = (r.sequence.get() - 60_000).into())),
    ("window is empty", "ends before it begins", |t| window(t, |r, _| r.sequence = r.timestamp)),
    ("window's end", "stamp", |t| window(t, |r, _| bump(&mut r.timestamp, 1))),
    ("window's flags", "should be zero", |t| window(t, |r, _| r.flags = 2.into())),
    ("window's volume", "should be zero", |t| window(t, |r, _| r.volume = 0.into())),
    ("window's port", "should be zero", |t| window(t, |r, _| r.port = 1)),
    ("window's status", "should be zero", |t| window(t, |r, _| r.status = 0x12)),
    ("window's encoding", "should be zero", |t| window(t, |r, _| r.encoding = 1)),
    ("window's reserved", "should be zero", |t| window(t, |_, w| w.reserved = 1.into())),
    ("window's first order", "don't follow", |t| window(t, |_, w| bump(&mut w.first_order, 1))),
    ("window's orders", "its orders", |t| window(t, |_, w| w.first_order = 80_000.into())),
    ("window's first stamp", "not stamped in it", |t| window(t, |r, w| w.first_timestamp = r.sequence)),
    ("window's last stamp", "not stamped in it", |t| {
        window(t, |r, w| w.last_timestamp = (r.timestamp.get() + 1).into())
    }),
    ("window's stamps", "not stamped in it", |t| {
        window(t, |_, w| std::mem::swap(&mut w.first_timestamp, &mut w.last_timestamp))
    }),
    ("entry's stamp", "not the window's end", |t| entry(t, |e| e.timestamp = (e.timestamp.get() - 1).into())),
    ("entry's number", "last order", |t| entry(t, |e| e.number = (e.number.get() - 1).into())),
    ("entry's sequence", "should be zero", |t| entry(t, |e| e.sequence = 1.into())),
    ("entry's slot", "should be zero", |t| entry(t, |e| e.slot = 1)),
    ("entry's clock error", "should be zero", |t| entry(t, |e| e.clock_error = 1.into())),
    ("entry's answer", "should be zero", |t| entry(t, |e| e.answer_error = 1)),
    ("entry's source", "should be zero", |t| entry(t, |e| e.source = 0.into())),
    ("entry's flags", "flags", |t| entry(t, |e| e.flags = 2.into())),
    ("entry's no-image", "without an image", |t| entry(t, |e| e.flags = 0x800.into())),
    ("entry's status", "neither updated", |t| entry(t, |e| e.status = 0x02)),
    ("entry refused", "neither updated", |t| entry(t, |e| e.status = 0x22)),
    ("entry's journaled", "neither updated", |t| entry(t, |e| e.status = 0x11)),
    ("entry's place", "behind the one before", |t| entry(t, |e| e.set_lba(0))),
    ("entry's volume", "not in the table", |t| entry(t, |e| e.volume = 9.into())),
    ("entry's port", "not in the table", |t| entry(t, |e| e.port = 9)),
    ("entry's kind", "in a merged portion", |t| entry(t, |e| e.kind = Kind::Watermark as u8)),
    ("entry an answer", "a completion of", |t| entry(t, |e| e.kind = Kind::Completion as u8)),
    ("marker's payload", "marker", |t| {
        other(t, |e| {
            if e.kind == 7 {
                e.flags = 0x200.into()
            }
        })
    }),
    ("marker of two things", "two things", |t| {
        other(t, |e| {
            if e.kind == 7 {
                e.flags = 0x600.into()
            }
        })
    }),
    ("gap's port", "not in the table", |t| other(t, |e| e.port = 77)),
    ("gap's stamp", "after", |t| other(t, |e| e.timestamp = 5.into())),
    ("a gap in a complete window", "touches it", |t| port(t, |p| p.flags = 1)),
    ("port's flags", "state of port", |t| port(t, |p| p.flags |= 2)),
    ("port's last stamp", "state of port", |t| port(t, |p| p.last_timestamp = 1.into())),
    ("port's last number", "state of port", |t| port(t, |p| p.last_number = 1.into())),
    ("port's last sequence", "state of port", |t| port(t, |p| p.last_sequence = 1.into())),
    ("port's arbiter", "state of port", |t| port(t, |p| p.arbiter = 7.into())),
    ("port's reserved", "state of port", |t| port(t, |p| p.reserved = 7.into())),
    ("a complete port that hadn't delivered", "had delivered", |t| {
        port(t, |p| (p.delivered, p.flags) = (5.into(), 1))
    }),
    ("batch's flags", "flags", |t| batch(t, |b| b.flags = 2.into())),
    ("batch's session", "session", |t| batch(t, |b| bump(&mut b.session, 9))),
    ("batch's order", "names order", |t| batch(t, |b| bump(&mut b.first_order, 1))),
    ("batch's sequence", "follow", |t| batch(t, |b| bump(&mut b.sequence, 1))),
    ("batch's previous", "follow", |t| batch(t, |b| bump32(&mut b.previous_crc))),
    ("batch's stamps", "stamps", |t| batch(t, |b| bump(&mut b.first_timestamp, 1))),
    ("batch's portion", "no batch", |t| batch(t, |b| b.portion ^= 1)),
    ("batch's entries", "counts", |t| batch(t, |b| bump32(&mut b.entries))),
    ("batch's durable", "durable", |t| batch(t, |b| b.durable_up_to = b.sequence)),
    ("batch's reserved", "reserved", |t| batch(t, |b| b.reserved2[7] = 1)),
    ("segment's first batch", "comes next", |t| segment(t, |s| bump(&mut s.first_batch, 1))),
    ("segment's first order", "names order", |t| {
        segment(t, |s| s.first_order = (s.first_order.get() - 1).into())
    }),
    ("segment's previous", "batch before", |t| segment(t, |s| bump32(&mut s.previous_batch_crc))),
    ("segment's digest", "seal before", |t| segment(t, |s| s.previous_digest[1] ^= 1)),
    ("segment's session", "never was", |t| segment(t, |s| bump(&mut s.session, 9))),
    ("segment's durable", "came later", |t| segment(t, |s| s.durable_up_to = 90_000.into())),
    ("segment's role", "missing", |t| segment(t, |s| s.role = 1)),
    ("segment's sequence", "missing", |t| segment(t, |s| bump(&mut s.sequence, 70))),
    ("row's stamp", "index is not that", |t| row(t, |r| bump(&mut r.timestamp, 1))),
    ("row's order", "index is not that", |t| row(t, |r| bump32(&mut r.order))),
    ("row's flags", "index is not that", |t| row(t, |r| r.flags = 1.into())),
    ("row's payload", "index is not that", |t| row(t, |r| bump32(&mut r.payload))),
    ("note's span", "index is not that", |t| note(t, |n| n.span[0] ^= 1)),
    ("note's number", "index is not that", |t| note(t, |n| bump(&mut n.number, 1))),
    ("seal's role", "doesn't fit", |t| seal(t, |s| s.role = 1)),
    ("seal's portion", "damaged or missing", |t| seal(t, |s| s.portion = 0)),
    ("seal's entries", "counts", |t| seal(t, |s| bump(&mut s.entries, 1))),
    ("seal's stamps", "counts", |t| seal(t, |s| bump(&mut s.last_timestamp, 1))),
    ("seal's batches end", "", |t| seal(t, |s| s.batches_end = 8192.into())),
    ("seal's digest", "digest", |t| seal(t, |s| s.digest[0] ^= 1)),
    ("seal's first order", "doesn't fit", |t| seal(t, |s| bump(&mut s.first_order, 1))),
];

fn bump(field: &mut U64, by: u64) {
    *field = (field.get() + by).into();
}

fn bump32(field: &mut U32) {
    *field = (field.get() ^ 1).into();
}

fn superblock(touch: Touch<'_>, change: impl Fn(&mut Superblock)) {
    if let Touch::Superblock(superblock) = touch {
        change(superblock);
    }
}

fn window(touch: Touch<'_>, change: impl Fn(&mut EntryHeader, &mut MergedWindow)) {
    if let Touch::Window(4, record, window) = touch {
        change(record, window);
    }
}

fn entry(touch: Touch<'_>, change: impl Fn(&mut EntryHeader)) {
    // One that is not the first of its window, and holds data.
    if let Touch::Entry(9, entry) = touch {
        change(entry);
    }
}

fn other(touch: Touch<'_>, change: impl Fn(&mut EntryHeader)) {
    if let Touch::Other(_, record) = touch {
        change(record);
    }
}

fn port(touch: Touch<'_>, change: impl Fn(&mut PortState)) {
    if let Touch::Port(_, state) = touch {
        change(state);
    }
}

fn batch(touch: Touch<'_>, change: impl Fn(&mut BatchHeader)) {
    if let Touch::Batch(7, header) = touch {
        change(header);
    }
}

fn segment(touch: Touch<'_>, change: impl Fn(&mut SegmentHeader)) {
    if let Touch::Segment(1, header) = touch {
        change(header);
    }
}

fn row(touch: Touch<'_>, change: impl Fn(&mut IndexRow)) {
    if let Touch::Row(5, row) = touch {
        change(row);
    }
}

fn note(touch: Touch<'_>, change: impl Fn(&mut NoteRow)) {
    if let Touch::Note(2, note) = touch {
        change(note);
    }
}

fn seal(touch: Touch<'_>, change: impl Fn(&mut SealHeader)) {
    if let Touch::Seal(1, seal) = touch {
        change(seal);
    }
}

#[test]
fn every_rule_that_is_broken_is_found() {
    let (world, plan) = rich();
    let image = world.storage.image();
    let mut missed = Vec::new();
    for (what, word, change) in BREAKS {
        let broken = merge(&image, &plan, &mut |touch| change(touch));
        let report = check(broken.image);
        if !report.findings.iter().any(|finding| finding.what.contains(word)) {
            missed.push(format!("{what}: '{word}' is not in {:?}", report.findings));
        }
    }
    assert!(missed.is_empty(), "{} missed:\n{}", missed.len(), missed.join("\n"));
}

/// The journal with more sections in both copies of its tables.
fn with_sections(image: &[u8], sections: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let mut image = image.to_vec();
    let superblock = Superblock::read_from_prefix(&image).unwrap().0;
    let first = TABLES_OFFSET as usize;
    let (mut header, _) = TablesHeader::read_from_prefix(&image[first..]).unwrap();
    let mut tables = image[first..first + header.bytes.get() as usize].to_vec();
    // Behind the sections that are there.
    let mut end = size_of::<TablesHeader>();
    for _ in 0..header.sections.get() {
        let (section, _) = SectionHeader::read_from_prefix(&tables[end..]).unwrap();
        end += size_of::<SectionHeader>() + (section.rows.get() * section.row_bytes.get()) as usize;
    }
    tables.truncate(end);
    for (kind, bytes) in sections {
        let row_bytes = if *kind == 5 { 32 } else { 96u32 };
        let rows = bytes.len() as u32 / row_bytes;
        let head = SectionHeader {
            kind: (*kind).into(),
            row_bytes: row_bytes.into(),
            rows: rows.into(),
            reserved: 0.into(),
        };
        tables.extend_from_slice(head.as_bytes());
        tables.extend_from_slice(bytes);
    }
    tables.resize(tables.len().next_multiple_of(4096), 0);
    header.sections = (header.sections.get() + sections.len() as u32).into();
    header.bytes = (tables.len() as u32).into();
    header.prefix.crc = 0.into();
    tables[..size_of::<TablesHeader>()].copy_from_slice(header.as_bytes());
    let sum = layout::crc::crc32c(&tables);
    tables[12..16].copy_from_slice(&sum.to_le_bytes());
    for copy in [first, first + superblock.table_bytes.get() as usize] {
        image[copy..copy + tables.len()].copy_from_slice(&tables);
    }
    image
}

fn schedule(rows: &[(u64, u64, u64)]) -> (u32, Vec<u8>) {
    let row = |(window, keep, least): &(u64, u64, u64)| {
        let (window, keep, least) = ((*window).into(), (*keep).into(), (*least).into());
        ScheduleRow { window, keep, least, reserved: 0.into() }.as_bytes().to_vec()
    };
    (5, rows.iter().flat_map(row).collect())
}

fn images(rows: &[(&str, u16)]) -> (u32, Vec<u8>) {
    let row = |(name, volume): &(&str, u16)| {
        let mut row = ImageRow::new_zeroed();
        row.name[..name.len()].copy_from_slice(name.as_bytes());
        row.volume = (*volume).into();
        row.as_bytes().to_vec()
    };
    (6, rows.iter().flat_map(row).collect())
}

#[test]
fn schedules_and_named_images_are_checked() {
    let mut world = World::new(3, 1 << 20, Beside::default());
    world.run(20);
    let image = world.storage.image();
    let sound = [schedule(&[(0, 10, 5), (60, 20, 5), (120, 30, 30)]), images(&[("a", 0), ("b", 1)])];
    assert_eq!(check(with_sections(&image, &sound)).findings, []);
    // Images may stand before the volumes that they name, and a later version may add sections.
    assert_eq!(check(with_sections(&image, &[(99, vec![1; 96])])).findings, []);
    let broken = [
        schedule(&[(1, 10, 5)]),
        schedule(&[(0, 10, 11)]),
        schedule(&[(0, 10, 5), (60, 10, 5)]),
        schedule(&[(0, 10, 5), (60, 20, 4)]),
        schedule(&[(0, 10, 5), (60, 20, 5), (90, 30, 5)]),
        schedule(&[(0, 10, 5), (60, 20, 5), (60, 30, 5)]),
        schedule(&[(0, 10, 5), (1 << 56, 20, 5)]),
        schedule(&[0, 1, 2, 4, 8, 16, 32, 64, 128].map(|w| (w, 10 + w, 5))),
        images(&[("a", 0), ("a", 1)]),
        images(&[("", 0)]),
        images(&[("a", 9)]),
        images(&[("a\0b", 0)]),
    ];
    for section in broken {
        let report = check(with_sections(&image, std::slice::from_ref(&section)));
        assert!(report.findings.iter().any(|f| f.what.starts_with("tables: ")), "{section:?}: {report:?}");
    }
    let mut reserved = schedule(&[(0, 10, 5)]);
    reserved.1[31] = 1;
    assert!(!check(with_sections(&image, &[reserved])).is_sound());
}

/// Structures of any content, with the right CRCs: nothing panics, nothing takes for ever.
#[test]
fn any_bytes_with_right_crcs_never_panic() {
    each_seed(600_000, 100, |seed| {
        let (mut world, _, plan) = merged(seed % 10 + 600_000, Beside { resyncs: true, ..Beside::default() });
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let image = merge(&world.storage.image(), &plan, &mut |touch| scribble(&mut rng, touch)).image;
        let storage = FaultyStorage::from_image(image);
        let (base, primary) = world.files(0);
        let at = Moment::Order(world.rng.random_range(0..=world.writes.len() as u64));
        for backing in [Backing::Base(&base), Backing::Primary(&primary)] {
            let naive = Naive::open(&storage, NAMES[0], at, backing, &mut |_, _| {});
            let _ = naive.map(|mut naive| {
                let bytes = naive.bytes().min(1 << 20) as usize;
                naive.read_at(&mut vec![0; bytes], 0).map_err(|error| error.to_string())
            });
        }
        let _ = verify_on(&storage, &mut |_, _| {});
    });
}

fn scribble(rng: &mut impl Rng, touch: Touch<'_>) {
    let bytes: &mut [u8] = match touch {
        Touch::Window(_, record, window) => match rng.random_bool(0.5) {
            true => record.as_mut_bytes(),
            false => window.as_mut_bytes(),
        },
        Touch::Entry(_, header) | Touch::Other(_, header) => header.as_mut_bytes(),
        Touch::Port(_, state) => state.as_mut_bytes(),
        Touch::Batch(_, header) => header.as_mut_bytes(),
        Touch::Segment(_, header) => header.as_mut_bytes(),
        Touch::Row(_, row) => row.as_mut_bytes(),
        Touch::Note(_, note) => note.as_mut_bytes(),
        Touch::Seal(_, seal) => seal.as_mut_bytes(),
        Touch::Superblock(superblock) => superblock.as_mut_bytes(),
    };
    if !rng.random_bool(0.02) {
        return;
    }
    for _ in 0..rng.random_range(1..4) {
        let at = rng.random_range(0..bytes.len());
        bytes[at] = match rng.random_range(0..3) {
            0 => 0,
            1 => 0xFF,
            _ => rng.random(),
        };
    }
}
