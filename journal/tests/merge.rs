//! Merging against the naive model: moments that the schedule promises are what they were, the others are refused
//! with the nearest that there are, and a crash anywhere in between changes nothing.
//!
//! CHRONO_SEED is the first seed, CHRONO_SEEDS how many there are.

#![allow(clippy::needless_range_loop)]

mod faulty_storage;
mod world;

use faulty_storage::FaultyStorage;
use journal::image::{Backing, Image, Origin};
use journal::merge::MergeOptions;
use journal::rollback::{RollbackOptions, Target};
use journal::verify::{image_on, verify_on};
use journal::{
    CreateOptions, Delivered, Error, Journal, JournalReader, Level, Moment, OwnedRecord, Port, PortKind,
    Schedule, Volume,
};
use layout::entry::{flags, EntryHeader, Journaled, Kind, Updated};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::Path;
use std::sync::Arc;
use world::{each_seed, World, NAMES, SECTORS};

/// The file is sound, by code that shares nothing with its writer.
fn check_sound(world: &World, what: &str) {
    let report = verify_on(&*world.storage, &mut |_, _| {}).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(report.findings.is_empty(), "{what}: {:?}", report.findings);
}

/// A schedule that has something to do in a history of some 100 µs.
fn schedule(world: &mut World) -> Schedule {
    let rng = &mut world.rng;
    let keep = rng.random_range(1..60_000);
    let mut levels = vec![Level { window: 0, keep, least: keep }];
    let (mut window, mut keep) = (1, keep);
    for _ in 0..rng.random_range(1..4) {
        window *= rng.random_range(2..8_000u64);
        keep += rng.random_range(1..60_000);
        levels.push(Level { window, keep, least: keep });
    }
    // The last level keeps everything: nothing is given up here.
    let last = levels.last_mut().unwrap();
    (last.keep, last.least) = (u64::MAX >> 1, u64::MAX >> 1);
    Schedule::new(levels).unwrap()
}

/// What the history over primary, or over the base, says at a moment has to be what the model says.
fn check_moment(world: &mut World, at: Moment, count: usize) -> Result<(), Error> {
    for volume in 0..2 {
        if world.kind != Kind::After {
            let image = world.open(volume, at, true)?;
            // Where a late answer leaves it open what primary had, anything may be.
            let (mut expected, doubt) = world.truth_with_late(volume, count, at);
            if world.late_answers {
                check_late(&image, &doubt, &format!("{at:?} over primary, {volume}: {:?}", world.late));
            }
            if doubt.contains(&true) {
                let mut read = vec![0; expected.len()];
                image.read_at(&mut read, 0)?;
                for sector in (0..doubt.len()).filter(|sector| doubt[*sector]) {
                    let range = sector * 512..(sector + 1) * 512;
                    expected[range.clone()].copy_from_slice(&read[range]);
                }
            }
            world.check(&image, &expected);
        }
        if world.kind != Kind::Before {
            let image = world.open(volume, at, false)?;
            let expected = world.assumed(volume, count);
            world.check(&image, &expected);
            if world.late_answers {
                let has_to = world.doubtful_with_late(volume, count).0;
                check_late(&image, &has_to, &format!("{at:?} over base, {volume}: {:?}", world.late));
            } else if !world.plain {
                // After a crash answers may be lost that the model knows of.
                check_doubt(world, &image, volume, count);
            }
        }
    }
    Ok(())
}

/// What has to be doubtful is. An answer to what was merged away may leave more.
fn check_late(image: &journal::image::Image, has_to: &[bool], what: &str) {
    let mut doubtful = vec![false; has_to.len()];
    for run in image.runs(0, image.bytes()).unwrap() {
        doubtful[run.offset as usize / 512..(run.offset + run.bytes) as usize / 512].fill(run.doubtful);
    }
    let missing = (0..has_to.len()).find(|sector| has_to[*sector] && !doubtful[*sector]);
    assert_eq!(missing, None, "has to be doubtful: {what}");
}

fn check_doubt(world: &World, image: &journal::image::Image, volume: usize, count: usize) {
    let doubtful = world.doubtful(volume, count);
    for run in image.runs(0, image.bytes()).unwrap() {
        // What was rolled into a base is counted there, and no longer told apart.
        if run.origin == Origin::Backing {
            continue;
        }
        for sector in run.offset / 512..(run.offset + run.bytes) / 512 {
            assert_eq!(run.doubtful, doubtful[sector as usize], "sector {sector} of {}", SECTORS[volume]);
        }
    }
}

/// Entries up to a stamp.
fn up_to(world: &World, stamp: u64) -> usize {
    world.writes.partition_point(|write| write.stamp <= stamp)
}

/// Everything that the schedule promises, and everything else at random.
fn check_history(world: &mut World, schedule: &Schedule) {
    let now = world.stamp;
    let begin = world.writes.first().map_or(now, |write| write.stamp);
    let levels = schedule.levels().to_vec();
    // Every write that is kept.
    for _ in 0..6 {
        let count = world.rng.random_range(0..=world.writes.len());
        let promised =
            count == world.writes.len() || world.writes[count].stamp > now.saturating_sub(levels[0].keep);
        match check_moment(world, Moment::Order(count as u64), count) {
            Ok(()) => {}
            Err(Error::Merged { earlier, later, .. }) if !promised => {
                assert!(
                    earlier < count as u64 && (count as u64) < later,
                    "order:{count}: {earlier}, {later}"
                );
                for near in [earlier, later] {
                    check_moment(world, Moment::Order(near), near as usize).unwrap();
                }
            }
            Err(error) => panic!("order:{count}, promised: {promised}: {error}"),
        }
    }
    // The ends of windows.
    for (level, finer) in levels.iter().skip(1).zip(&levels) {
        for _ in 0..4 {
            let oldest = begin.max(now.saturating_sub(level.keep)) / level.window;
            let at = world.rng.random_range(oldest..=now / level.window) * level.window;
            // Longer windows begin where this level ends.
            let kept = at >= begin && at > now.saturating_sub(level.keep) + level.window;
            let count = up_to(world, at);
            match check_moment(world, Moment::Timestamp(at), count) {
                Ok(()) => {}
                Err(error) => assert!(!kept, "{at} of {level} ({finer}), now {now}: {error}"),
            }
        }
    }
    // Any stamp.
    for _ in 0..6 {
        let at = world.rng.random_range(begin..=now);
        let count = up_to(world, at);
        match check_moment(world, Moment::Timestamp(at), count) {
            Ok(()) => {}
            Err(Error::Merged { from, to, .. }) => assert!(from <= at && at < to),
            Err(error) => panic!("{at}: {error}"),
        }
    }
}

/// A name for a moment that is there now.
fn bookmark(world: &mut World, named: &mut Vec<usize>) {
    let count = world.rng.random_range(0..=world.writes.len());
    let stamp = count.checked_sub(1).map_or(0, |last| world.writes[last].stamp);
    let shared: Arc<dyn journal::Storage> = world.storage.clone();
    world.journal().sync().unwrap();
    let there = JournalReader::open_on(shared).unwrap().entry_at(Moment::Order(count as u64));
    if there.is_ok() && world.rng.random_bool(0.5) {
        let name = format!("{}", named.len());
        world.journal().add_bookmark(&name, count as u64, stamp).unwrap();
        named.push(count);
    }
}

#[test]
fn what_was_merged_is_what_the_model_says() {
    each_seed(400_000, 500, |seed| {
        let mut world = World::new(seed);
        world.late_answers = world.rng.random_bool(0.3);
        let schedule = schedule(&mut world);
        world.journal().set_schedule(&schedule).unwrap();
        let mut named = Vec::new();
        for _ in 0..world.rng.random_range(1..6) {
            for _ in 0..world.rng.random_range(5..60) {
                world.step();
            }
            bookmark(&mut world, &mut named);
            let before = world.journal().space();
            let merged = world.journal().merge(&MergeOptions::default(), &mut |_| {}).unwrap();
            let after = world.journal().space();
            assert_eq!(
                i64::from(before.free) + merged.segments_freed as i64 - merged.segments_written as i64,
                i64::from(after.free)
            );
            let again = world.journal().merge(&MergeOptions::default(), &mut |_| {}).unwrap();
            assert_eq!(again.steps, 0, "all that was due was done");
            check_sound(&world, &format!("{schedule}"));
            check_history(&mut world, &schedule);
            let received = world.rng.random_range(0..=world.writes.len()) as u64;
            if check_moment(&mut world, Moment::Order(received), received as usize).is_ok() {
                prove(&mut world, Moment::Order(received));
            }
            for count in named.clone() {
                check_moment(&mut world, Moment::Order(count as u64), count).unwrap();
            }
        }
    });
}

/// Bases by name, adopted where the volumes need them.
fn adopt(world: &mut World) -> MergeOptions {
    let mut bases = Vec::new();
    if world.kind != Kind::Before {
        for (name, base) in NAMES.iter().zip(world.base_files.clone()) {
            world.journal().adopt_base(name, &base, false).unwrap();
            bases.push(((*name).to_owned(), base));
        }
    }
    MergeOptions { bases, ..MergeOptions::default() }
}

/// What the schedule keeps no longer is rolled into the bases and given up: what it keeps is what it was.
#[test]
fn what_expires_is_rolled_into_the_bases_and_given_up() {
    let given_up = std::cell::Cell::new(0);
    each_seed(600_000, 150, |seed| {
        let mut world = World::new(seed);
        let options = adopt(&mut world);
        let mut levels = schedule(&mut world).levels().to_vec();
        let before = levels.iter().rev().nth(1).map_or(0, |level| level.keep);
        let keep = before + world.rng.random_range(1..60_000);
        if let Some(last) = levels.last_mut() {
            (last.keep, last.least) = (keep, keep);
        }
        // Now and then every write is kept, and then nothing at all.
        levels.truncate(world.rng.random_range(1..=levels.len()));
        let keep = levels.last().unwrap().keep;
        let schedule = Schedule::new(levels).unwrap();
        world.journal().set_schedule(&schedule).unwrap();
        for _ in 0..world.rng.random_range(2..7) {
            for _ in 0..world.rng.random_range(5..60) {
                world.step();
            }
            let merged = world.journal().merge(&options, &mut |_| {}).unwrap();
            given_up.set(given_up.get() + merged.given_up);
            assert_eq!(merged.held_back, [""; 0]);
            check_sound(&world, &format!("{schedule}"));
            for _ in 0..8 {
                let count = world.rng.random_range(0..=world.writes.len());
                let kept = count == world.writes.len()
                    || world.writes[count].stamp
                        > world.stamp.saturating_sub(keep.min(schedule.levels()[0].keep));
                match check_moment(&mut world, Moment::Order(count as u64), count) {
                    Ok(()) => {}
                    Err(Error::Merged { .. } | Error::NoMoment(_)) if !kept => {}
                    Err(error) => panic!("order:{count}, kept: {kept}, {schedule}: {error}"),
                }
            }
            // What lies before the history is nowhere, and nobody makes it up.
            let end = world.writes.len() as u64;
            prove(&mut world, Moment::Order(end));
        }
    });
    if std::env::var("CHRONO_SEED").is_err() {
        assert!(given_up.get() > 100, "{} orders were given up", given_up.get());
    }
}

/// The image as the verifier makes it, from every batch and without any of the reader's code, is the same.
fn prove(world: &mut World, at: Moment) {
    let shared: Arc<dyn journal::Storage> = world.storage.clone();
    world.journal().sync().unwrap();
    for volume in 0..2 {
        let backings = [
            (world.kind != Kind::After).then_some(Backing::Primary(&world.files[volume].0)),
            (world.kind != Kind::Before).then_some(Backing::Base(&world.base_files[volume])),
        ];
        for backing in backings.into_iter().flatten() {
            let report = image_on(shared.clone(), NAMES[volume], at, backing, &mut |_, _| {}).unwrap();
            assert!(report.is_sound(), "{at}: {:?} {:?}", report.journal.findings, report.findings);
        }
    }
}

/// One run of ingest and merging; it ends where the storage crashes. Every answer is *updated*, so that what is not
/// durable changes nothing about what is.
/// A small run: writes, merging between them, and a rollback in place at the end.
struct Run {
    world: World,
    /// Entries that were promised durable.
    durable: usize,
    /// Entries that primary of the first volume was being rolled back to.
    rolled: Option<usize>,
    /// Nothing crashed.
    whole: bool,
}

fn roll_back(world: &World, journal: &mut Journal, count: usize) -> Result<(), Error> {
    let options = RollbackOptions {
        volume: NAMES[0],
        primary: &world.files[0].0,
        base: (world.kind == Kind::After).then_some(world.base_files[0].as_path()),
        to: Target::Moment(Moment::Order(count as u64)),
        allow_gaps: false,
    };
    journal.roll_back(&options, &mut |_, _| {}).map(drop)
}

fn run(seed: u64, kind: Kind, schedule: &str, crash: Option<usize>) -> Run {
    let mut world = World::of_kind(ChaCha8Rng::seed_from_u64(seed), kind);
    world.certain = true;
    world.plain = true;
    let options = adopt(&mut world);
    if let Some(crash) = crash {
        world.storage.crash_at(world.storage.operations() + crash);
    }
    let (mut durable, mut rolled) = (0, None);
    let mut run = || -> Result<(), Error> {
        world.journal().set_schedule(&schedule.parse().unwrap())?;
        for round in 0..4 {
            for _ in 0..12 {
                world.try_step()?;
            }
            world.journal().sync()?;
            durable = world.writes.len();
            if round == 1 {
                let stamp = world.writes[durable - 1].stamp;
                world.journal().add_bookmark("here", durable as u64, stamp)?;
            }
            world.journal().merge(&options, &mut |_| {})?;
        }
        let target = world.writes.len();
        for _ in 0..12 {
            world.try_step()?;
        }
        world.journal.take().unwrap().close()?;
        durable = world.writes.len();
        let shared: Arc<dyn journal::Storage> = world.storage.clone();
        let mut journal = Journal::open_ports_closed_on(shared, "rollback")?;
        rolled = Some(target);
        roll_back(&world, &mut journal, target)?;
        journal.close()?;
        Ok(())
    };
    let ended = run();
    if crash.is_none() {
        ended.as_ref().unwrap();
    }
    let whole = ended.is_ok();
    Run { world, durable, rolled, whole }
}

/// Once a rollback has said of anything that primary has it, primary was made durable.
fn is_settled(image: &[u8]) -> bool {
    let storage = Arc::new(FaultyStorage::from_image(image.to_vec()));
    let reader = JournalReader::open_on(storage).unwrap();
    let records = reader.records().map(Result::unwrap);
    let is_marker =
        |header: &EntryHeader| header.kind == Kind::Marker as u8 && header.flags.get() & flags::ROLLBACK != 0;
    let mut later = records.map(|record| record.header).skip_while(|header| !is_marker(header));
    later.any(|header| header.kind == Kind::Completion as u8)
}

/// Primary of the first volume when the power failed, too: of what a rollback wrote and hadn't made durable, any sector may
/// be there or not.
fn after_power_failure(
    killed: &[u8],
    rolled: Option<usize>,
    image: &[u8],
    before: &[u8],
    luck: &mut ChaCha8Rng,
) -> Vec<u8> {
    if rolled.is_none() || is_settled(image) {
        return killed.to_vec();
    }
    let sectors = killed.chunks(512).zip(before.chunks(512));
    sectors.flat_map(|(new, old)| if luck.random_bool(0.5) { new } else { old }).copied().collect()
}

/// Whatever was left of it: primary can be brought to where it was being brought, and back.
fn finish_the_rollback(world: &World, target: usize, what: &str) {
    let shared: Arc<dyn journal::Storage> = world.storage.clone();
    let mut journal = Journal::open_ports_closed_on(shared, "finishing").unwrap();
    for count in [target, world.writes.len()] {
        roll_back(world, &mut journal, count)
            .unwrap_or_else(|error| panic!("{what}: order:{count}: {error}"));
        let has = std::fs::read(&world.files[0].0).unwrap();
        assert!(has == world.truth(0, count), "{what}: primary isn't what it was just after order:{count}");
    }
    journal.close().unwrap();
    check_sound(world, what);
}

/// Is the moment older than what the crash test's schedule keeps for certain?
fn gives_up(world: &World, end: u64, count: usize) -> bool {
    world.writes.get(count).is_some_and(|next| next.stamp + 9_000 < end.max(world.stamp))
}

fn open_all(world: &World, what: &str) -> Journal {
    let shared: Arc<dyn journal::Storage> = world.storage.clone();
    Journal::open_on(shared, "recovery").unwrap_or_else(|error| panic!("{what}: {error}"))
}

/// Whatever the crash left: it opens, all that was promised durable is there, and merging goes on.
fn recover(world: &mut World, image: Vec<u8>, durable: usize, rolled: Option<usize>, what: &str) {
    world.storage = Arc::new(FaultyStorage::from_image(image));
    world.journal = None;
    let mut journal = open_all(world, what);
    let end = journal.end().order as usize;
    assert!(end >= durable, "{what}: {end} of {durable}");
    for turn in 0..2 {
        check_sound(world, what);
        let stamp = journal.end().timestamp;
        // Behind them are a rollback's own.
        for count in 0..=end.min(world.writes.len()) {
            match check_moment(world, Moment::Order(count as u64), count) {
                Ok(()) => {}
                Err(Error::Merged { earlier, later, .. }) => {
                    assert!(earlier < count as u64 && (count as u64) < later, "{what}");
                    for near in [earlier, later] {
                        match check_moment(world, Moment::Order(near), near as usize) {
                            Ok(()) => {}
                            Err(Error::NoMoment(_)) if gives_up(world, stamp, near as usize) => {}
                            Err(error) => panic!("{what}: order:{near}: {error}"),
                        }
                    }
                }
                // The oldest may have been given up; what the schedule keeps is there.
                Err(Error::NoMoment(_)) if gives_up(world, stamp, count) => {}
                Err(error) => panic!("{what}: order:{count}: {error}"),
            }
        }
        if turn == 0 {
            if let Some(target) = rolled {
                journal.close().unwrap();
                finish_the_rollback(world, target, what);
                journal = open_all(world, what);
            }
            let all = journal.space().free;
            journal
                .merge(&MergeOptions::default(), &mut |_| {})
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(journal.space().free + 8 > all, "{what}: segments were lost");
        }
    }
}

#[test]
fn a_crash_at_any_write_of_ingest_merging_and_rollback_loses_nothing() {
    let seed = world::number("CHRONO_SEED", 77);
    // All of them: every write torn at every sector, every power failure.
    let every = world::number("CHRONO_EVERY", 0) > 0;
    let all = [Kind::After, Kind::Before, Kind::Both].map(|kind| (kind, "all:4us,2us:9us,8us:1h"));
    // The same with something given up and rolled into the bases.
    let shrinking = [Kind::After, Kind::Before, Kind::Both].map(|kind| (kind, "all:4us,2us:9us"));
    for (which, (kind, schedule)) in all.into_iter().chain(shrinking).enumerate() {
        let Run { world: whole, rolled, .. } = run(seed, kind, schedule, None);
        finish_the_rollback(&whole, rolled.unwrap(), "whole");
        let operations = whole.storage.operations();
        println!("{kind}: CHRONO_SEED={seed}, {operations} writes and syncs");
        let mut luck = ChaCha8Rng::seed_from_u64(seed);
        let first = if every { 0 } else { luck.random_range(0..9) };
        for crash in (first..operations).step_by(if every { 1 } else { 9 }) {
            let Run { mut world, durable, rolled, whole } = run(seed, kind, schedule, Some(crash));
            if whole {
                break;
            }
            let crashed = world.storage.clone();
            let (killed, before) = (std::fs::read(&world.files[0].0).unwrap(), world.primary[0].clone());
            let mut check = |image: Vec<u8>, primary: &[u8], what: &str| {
                std::fs::write(&world.files[0].0, primary).unwrap();
                recover(&mut world, image, durable, rolled, what);
            };
            let what = format!("seed {seed}, {kind}, killed in operation {crash}");
            check(crashed.image(), &killed, &what);
            let what = format!("seed {seed}, {kind}, power failed in operation {crash}");
            let image = crashed.image_after_power_failure(&mut luck);
            check(image.clone(), &after_power_failure(&killed, rolled, &image, &before, &mut luck), &what);
            let mut sectors = if every { 0 } else { which };
            while let Some(torn) = crashed.image_torn(sectors) {
                let what = format!("seed {seed}, {kind}, write {crash} torn after {sectors} sectors");
                check(torn, &killed, &what);
                sectors += if every { 1 } else { 40 };
            }
        }
    }
}

/// EIO and ENOSPC at every write and sync of merging: the owner says so, and nothing is lost.
#[test]
fn a_failing_write_of_merging_loses_nothing() {
    let seed = world::number("CHRONO_SEED", 78);
    for at in 0..400 {
        let mut world = World::of_kind(ChaCha8Rng::seed_from_u64(seed), Kind::Both);
        (world.certain, world.plain) = (true, true);
        world.journal().set_schedule(&"all:4us,2us:1h".parse().unwrap()).unwrap();
        for _ in 0..40 {
            world.step();
        }
        let durable = world.journal().sync().unwrap().order as usize;
        let errno = if at % 2 == 0 { 5 } else { 28 };
        world.storage.fail_at(world.storage.operations() + at, errno);
        let merged = world.journal().merge(&MergeOptions::default(), &mut |_| {});
        let Err(error) = merged else {
            assert!(at > 8, "merging writes more than that");
            return;
        };
        assert!(
            matches!(&error, Error::Io { source, .. } if source.raw_os_error() == Some(errno)),
            "{error}"
        );
        let image = world.storage.image();
        recover(&mut world, image, durable, None, &format!("errno {errno} in operation {at} of merging"));
    }
}

/// The owner goes on appending while a step runs beside it.
#[test]
fn merging_runs_beside_ingest() {
    each_seed(500_000, 60, |seed| {
        let mut world = World::new(seed);
        let schedule = schedule(&mut world);
        world.journal().set_schedule(&schedule).unwrap();
        for _ in 0..4 {
            for _ in 0..world.rng.random_range(10..80) {
                world.step();
            }
            world.journal().sync().unwrap();
            let step = world.journal().begin_merge(&MergeOptions::default(), 12).unwrap();
            let outcome = std::thread::scope(|scope| {
                let running = scope.spawn(|| step.run());
                for _ in 0..40 {
                    world.step();
                }
                running.join().unwrap()
            });
            world.step();
            match world.journal().finish_merge(outcome) {
                // One window may be larger than what the step was given.
                Ok(_) | Err(Error::MergeRoom { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            world.journal().sync().unwrap();
            check_sound(&world, "beside ingest");
            let now = world.stamp;
            for _ in 0..6 {
                let count = world.rng.random_range(0..=world.writes.len());
                match check_moment(&mut world, Moment::Order(count as u64), count) {
                    Ok(()) | Err(Error::Merged { .. }) => {}
                    Err(error) => panic!("order:{count}, now {now}: {error}"),
                }
            }
        }
    });
}

const FREEING: MergeOptions = MergeOptions { short: false, freeing_only: true, bases: Vec::new() };
const VOLUME_SECTORS: u64 = 64;

/// Appends writes of eight sectors, each full of its order.
fn append(journal: &mut Journal, count: u64) -> Result<(), Error> {
    for _ in 0..count {
        let end = journal.end();
        let order = end.order + 1;
        let mut header = EntryHeader::new(Kind::After);
        header.timestamp = (1_700_000_000_000_000_000 + order * 1000).into();
        header.number = order.into();
        header.sequence = order.into();
        header.flags = flags::CLOCK_LOCKED.into();
        header.set_lba(order * 8 % VOLUME_SECTORS);
        header.sectors = 8.into();
        header.volume = 0.into();
        header.set_status(Journaled::Port, Updated::Updated);
        let payload: Vec<u8> = order.to_le_bytes().repeat(512);
        header.seal(&payload);
        let delivered = Delivered { port: 0, timestamp: header.timestamp.get() };
        journal.append(&[OwnedRecord { header, payload }.as_record()], &[delivered])?;
    }
    journal.sync().map(drop)
}

/// What the volume holds just after an order.
fn at_order(order: u64) -> Vec<u8> {
    let mut image = vec![0; VOLUME_SECTORS as usize * 512];
    for order in 1..=order {
        let at = (order * 8 % VOLUME_SECTORS) as usize * 512;
        image[at..at + 4096].copy_from_slice(&order.to_le_bytes().repeat(512));
    }
    image
}

fn make(directory: &Path, bytes: u64) -> (Journal, std::path::PathBuf) {
    let options = CreateOptions {
        bytes: Some(bytes),
        segment_bytes: Some(64 * 1024),
        volumes: vec![Volume::aoe(0, 1, 0, VOLUME_SECTORS)],
        ports: vec![Port { port: 0, kind: PortKind::Card, arbiter: 0, name: "port 0".into() }],
        writer: "merge".into(),
    };
    let mut journal = Journal::create(&directory.join("journal"), &options).unwrap();
    journal.set_schedule(&"all:20us,64us:1h".parse().unwrap()).unwrap();
    let base = directory.join("base");
    std::fs::write(&base, vec![0; VOLUME_SECTORS as usize * 512]).unwrap();
    (journal, base)
}

/// An image that is open while its writes are merged away goes on being what it is: the segments are pinned. Only
/// when writes would have to stop it is revoked, and then it says so and never shows anything else.
#[test]
fn open_images_are_pinned_and_revoked_before_writes_stop() {
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let (mut journal, base) = make(directory.path(), 2 << 20);
    append(&mut journal, 150).unwrap();
    let path = directory.path().join("journal");
    let open = |order| {
        let reader = JournalReader::open(&path).unwrap();
        Image::open(reader, "1.0", Moment::Order(order), Backing::Base(&base), false, &mut |_, _| {})
    };
    let orders = [17, 65, 101, 102];
    let images: Vec<Image> = orders.iter().map(|order| open(*order).unwrap()).collect();
    let merged = journal.merge(&MergeOptions::default(), &mut |_| {}).unwrap();
    assert!(merged.segments_freed > 4, "{merged:?}");
    let gone = orders.iter().find(|order| open(**order).is_err());
    assert!(gone.is_some(), "at least one of them lies inside a window");
    let free = journal.space().free;
    let check = |image: &Image, order: u64| -> Result<(), Error> {
        let mut read = vec![0; VOLUME_SECTORS as usize * 512];
        image.read_at(&mut read, 0)?;
        assert!(read == at_order(order), "order:{order}");
        Ok(())
    };
    // Until there is no other room they are what they were, whatever is written and merged meanwhile.
    let (mut revoked, mut rounds) = (0, 0);
    while revoked < images.len() && rounds < 400 {
        rounds += 1;
        append(&mut journal, 5).unwrap();
        if rounds % 8 == 0 {
            journal.merge(&FREEING, &mut |_| {}).unwrap();
        }
        revoked = 0;
        for (image, order) in images.iter().zip(orders) {
            match check(image, order) {
                Ok(()) => {}
                Err(Error::Revoked { .. }) => revoked += 1,
                Err(error) => panic!("{error}"),
            }
        }
        if rounds < 4 {
            assert_eq!(revoked, 0, "there is room: {free} segments were free");
        }
        if rounds == 4 {
            // What nobody reads is free at once.
            assert!(journal.space().free > 0);
        }
    }
    assert_eq!(revoked, images.len(), "writes went on for {rounds} rounds, and the images had to go");
    drop(images);
    // The pins went with them.
    append(&mut journal, 5).unwrap();
    let end = journal.end().order;
    let image = open(end).unwrap();
    check(&image, end).unwrap();
}

/// A reader that opens while the owner merges and writes finds a whole journal, whichever moment it hits.
#[test]
fn readers_open_while_the_owner_merges() {
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let (mut journal, base) = make(directory.path(), 8 << 20);
    append(&mut journal, 40).unwrap();
    let path = directory.path().join("journal");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let opened = std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut opened = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let reader = JournalReader::open(&path).unwrap();
                assert_eq!(reader.summary().damage, None);
                let order = reader.summary().order;
                let image = Image::open(
                    reader,
                    "1.0",
                    Moment::Order(order),
                    Backing::Base(&base),
                    false,
                    &mut |_, _| {},
                )
                .unwrap();
                let mut read = vec![0; VOLUME_SECTORS as usize * 512];
                image.read_at(&mut read, 0).unwrap();
                assert!(read == at_order(order), "order:{order}");
                opened += 1;
            }
            opened
        });
        let mut write = || {
            for _ in 0..300 {
                append(&mut journal, 7)?;
                journal.merge(&FREEING, &mut |_| {})?;
            }
            Ok::<(), Error>(())
        };
        let written = write();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let opened = reading.join().unwrap();
        written.unwrap();
        opened
    });
    assert!(opened > 20, "{opened}");
}
