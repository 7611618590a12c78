//! Volumes that get other sizes, against the naive model: any moment over base and over primary, merged and not, crashes
//! at every write, rolling back and undoing.
//!
//! CHRONO_SEED is the first seed, CHRONO_SEEDS how many there are.

// A volume's number is the index of several arrays at once.
#![allow(clippy::needless_range_loop)]

mod faulty_storage;
mod world;

use faulty_storage::FaultyStorage;
use journal::image::{Backing, Image};
use journal::merge::MergeOptions;
use journal::rollback::{RollbackOptions, Target};
use journal::verify::{image_on, verify_on};
use journal::{Error, Journal, JournalReader, Level, Moment, Schedule};
use layout::entry::Kind;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use world::{each_seed, World, NAMES, SECTORS};

fn shared(world: &World) -> Arc<dyn journal::Storage> {
    world.storage.clone()
}

fn check_sound(world: &World, what: &str) {
    let report = verify_on(&*world.storage, &mut |_, _| {}).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(report.findings.is_empty(), "{what}: {:?}", report.findings);
}

/// The images of both volumes at a moment, in both directions, are the model's; now and then the verifier says so too.
fn check_moment(world: &mut World, at: Moment, count: usize) -> Result<(), Error> {
    for volume in 0..2 {
        for over_primary in [true, false] {
            let lacks = if over_primary { Kind::After } else { Kind::Before };
            if world.kind == lacks {
                continue;
            }
            let image = world.open(volume, at, over_primary)?;
            let expected = match over_primary {
                true => world.truth_at(volume, count, at),
                false => world.assumed_at(volume, count, at),
            };
            world.check(&image, &expected);
            if !over_primary && !world.plain {
                let doubtful = world.doubtful_at(volume, count, at);
                for run in image.runs(0, image.bytes()).unwrap() {
                    for sector in run.offset / 512..(run.offset + run.bytes) / 512 {
                        assert_eq!(run.doubtful, doubtful[sector as usize], "sector {sector} at {at:?}");
                    }
                }
            }
            if world.rng.random_bool(0.1) {
                let backing = match over_primary {
                    true => Backing::Primary(&world.files[volume].0),
                    false => Backing::Base(&world.base_files[volume]),
                };
                let report = image_on(shared(world), NAMES[volume], at, backing, &mut |_, _| {})?;
                assert!(report.is_sound(), "{at:?}: {:?} {:?}", report.findings, report.journal.findings);
                let sha256: [u8; 32] = Sha256::digest(&expected).into();
                assert_eq!((report.sha256, report.bytes), (sha256, expected.len() as u64), "{at:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn any_moment_has_the_size_that_the_volume_had() {
    each_seed(800_000, 30, |seed| {
        let mut world = World::resizing(seed);
        for _ in 0..world.rng.random_range(10..120) {
            world.step();
        }
        world.journal().sync().unwrap();
        check_sound(&world, "resized");
        let mut counts: Vec<usize> = (0..5).map(|_| world.rng.random_range(0..=world.writes.len())).collect();
        counts.extend([0, world.writes.len()]);
        // Around resizes.
        counts.extend(world.resizes.iter().map(|resize| resize.count));
        for count in counts {
            let at = world.moment(count);
            check_moment(&mut world, at, count).unwrap();
        }
        for resize in world.resizes.clone() {
            for stamp in [resize.stamp - 1, resize.stamp] {
                let count = world.writes.partition_point(|write| write.stamp <= stamp);
                check_moment(&mut world, Moment::Timestamp(stamp), count).unwrap();
            }
        }
        let count = world.writes.len();
        check_moment(&mut world, Moment::End, count).unwrap();
    });
}

/// An image over primary stays what it is while primary is cut and extended under it.
#[test]
fn an_image_over_primary_stays_while_primary_is_resized() {
    each_seed(810_000, 25, |seed| {
        let mut world = World::resizing(seed);
        if world.kind == Kind::After {
            return;
        }
        let mut images: Vec<(Image, usize, usize)> = Vec::new();
        for _ in 0..120 {
            world.step();
            if images.len() < 4 && world.rng.random_bool(0.1) {
                let (volume, count) =
                    (world.rng.random_range(0..2), world.rng.random_range(0..=world.writes.len()));
                world.journal().flush().unwrap();
                images.push((world.open(volume, Moment::Order(count as u64), true).unwrap(), volume, count));
            }
            if !images.is_empty() && world.rng.random_bool(0.4) {
                let index = world.rng.random_range(0..images.len());
                let (image, volume, count) = images.swap_remove(index);
                let expected = world.truth(volume, count);
                world.check(&image, &expected);
                images.push((image, volume, count));
            }
        }
        for (image, volume, count) in images {
            let expected = world.truth(volume, count);
            world.check(&image, &expected);
        }
    });
}

/// A schedule that has something to do in a history of some 100 µs; `all`: nothing is given up.
fn schedule(world: &mut World, all: bool) -> Schedule {
    let rng = &mut world.rng;
    let keep = rng.random_range(1..40_000);
    let mut levels = vec![Level { window: 0, keep, least: keep }];
    let (mut window, mut keep) = (1, keep);
    for _ in 0..rng.random_range(1..4) {
        window *= rng.random_range(2..8_000u64);
        keep += rng.random_range(1..40_000);
        levels.push(Level { window, keep, least: keep });
    }
    let last = levels.last_mut().unwrap();
    if all {
        (last.keep, last.least) = (u64::MAX >> 1, u64::MAX >> 1);
    }
    Schedule::new(levels).unwrap()
}

/// Windows that reach over resizes: what is still a moment is what it was.
#[test]
fn merged_windows_may_reach_over_a_resize() {
    each_seed(820_000, 25, |seed| {
        let mut world = World::resizing(seed);
        let schedule = schedule(&mut world, true);
        world.journal().set_schedule(&schedule).unwrap();
        for _ in 0..world.rng.random_range(1..5) {
            for _ in 0..world.rng.random_range(5..60) {
                world.step();
            }
            world.journal().sync().unwrap();
            world.journal().merge(&MergeOptions::default(), &mut |_| {}).unwrap();
            check_sound(&world, &format!("{schedule}"));
            let end = world.writes.len();
            check_moment(&mut world, Moment::End, end).unwrap();
            let mut moments: Vec<Moment> =
                (0..8).map(|_| Moment::Order(world.rng.random_range(0..=end) as u64)).collect();
            let begin = world.writes.first().map_or(world.stamp, |write| write.stamp);
            moments.extend((0..8).map(|_| Moment::Timestamp(world.rng.random_range(begin..=world.stamp))));
            moments.extend(world.resizes.iter().map(|resize| Moment::Timestamp(resize.stamp)));
            let (mut merged, mut nearest) = (0, Vec::new());
            for at in moments {
                let count = count_at(&world, at);
                match check_moment(&mut world, at, count) {
                    Ok(()) => {}
                    Err(Error::Merged { earlier, later, .. }) => {
                        merged += 1;
                        nearest.extend([earlier, later]);
                    }
                    Err(error) => panic!("{at:?}: {error}"),
                }
            }
            assert!(merged > 0 || nearest.is_empty());
            for order in nearest {
                check_moment(&mut world, Moment::Order(order), order as usize).unwrap();
            }
        }
    });
}

/// Entries up to a moment.
fn count_at(world: &World, at: Moment) -> usize {
    match at {
        Moment::End => world.writes.len(),
        Moment::Order(order) => order as usize,
        Moment::Timestamp(stamp) => world.writes.partition_point(|write| write.stamp <= stamp),
    }
}

/// What expires is rolled into bases over resizes, and markers that are given up leave their size in the row.
#[test]
fn bases_are_rolled_on_over_resizes() {
    each_seed(830_000, 16, |seed| {
        let mut world = World::resizing(seed);
        // What was rolled into a base is no longer called doubtful.
        world.certain = true;
        let schedule = schedule(&mut world, false);
        world.journal().set_schedule(&schedule).unwrap();
        let bases: Vec<_> =
            (0..2).map(|volume| (NAMES[volume].to_owned(), world.base_files[volume].clone())).collect();
        if world.kind != Kind::Before {
            for (name, base) in &bases {
                world.journal().adopt_base(name, base, false).unwrap();
            }
        }
        let options = MergeOptions { bases, ..MergeOptions::default() };
        for _ in 0..world.rng.random_range(2..6) {
            for _ in 0..world.rng.random_range(5..60) {
                world.step();
            }
            world.journal().sync().unwrap();
            let merged = world.journal().merge(&options, &mut |_| {}).unwrap();
            assert!(merged.held_back.is_empty(), "{merged:?}");
            check_sound(&world, &format!("{schedule}"));
            let end = world.writes.len();
            let at = [Moment::End, Moment::Order(end as u64)];
            let at =
                at.into_iter().chain((0..6).map(|_| Moment::Order(world.rng.random_range(0..=end) as u64)));
            for at in at.collect::<Vec<_>>() {
                let count = count_at(&world, at);
                match check_moment(&mut world, at, count) {
                    Ok(()) => {}
                    // Where history begins just after that entry its own size may be gone.
                    Err(Error::Merged { .. } | Error::NoMoment(_)) if at != Moment::End => {}
                    Err(error) => panic!("{at:?} of {end}: {error}"),
                }
            }
        }
    });
}

fn open_closed(storage: &Arc<FaultyStorage>) -> Journal {
    let shared: Arc<dyn journal::Storage> = storage.clone();
    Journal::open_ports_closed_on(shared, "resize").unwrap()
}

/// Whatever a crash leaves of a resize: every moment is what it was, the volume has one size or the other, primary is
/// cut only if it is the new one, and the same resize again finishes it.
#[test]
fn a_crash_at_any_write_of_a_resize() {
    let seed = world::number("CHRONO_SEED", 840_001);
    println!("CHRONO_SEED={seed}");
    for kind in [Kind::After, Kind::Before, Kind::Both] {
        for grow in [false, true] {
            let mut world = World::of_kind(ChaCha8Rng::seed_from_u64(seed), kind);
            (world.stamp, world.certain, world.resizing) = (4_000_000_000_000_000_000, true, false);
            for _ in 0..20 {
                world.step();
            }
            while !world.unanswered.is_empty() {
                world.answer();
            }
            world.journal.take().unwrap().close().unwrap();
            let (image, primary, entries) =
                (world.storage.image(), world.primary[0].clone(), world.writes.len());
            let sectors = if grow { SECTORS[0] + 40 } else { 24 };
            let (mut crash, mut unfinished, mut finished) = (0, 0, 0);
            let mut luck = ChaCha8Rng::seed_from_u64(seed);
            loop {
                world.storage = Arc::new(FaultyStorage::from_image(image.clone()));
                std::fs::write(&world.files[0].0, &primary).unwrap();
                let mut journal = open_closed(&world.storage);
                world.storage.crash_at(world.storage.operations() + crash);
                let done = journal.resize(NAMES[0], sectors, Some(&world.files[0].0));
                drop(journal);
                let mut left =
                    vec![world.storage.image(), world.storage.image_after_power_failure(&mut luck)];
                left.push(world.storage.image_after_power_failure(&mut luck));
                left.extend(world.storage.image_torn(luck.random_range(0..9)));
                for left in left {
                    world.writes.truncate(entries);
                    world.resizes.clear();
                    world.primary[0].clone_from(&primary);
                    std::fs::write(&world.files[0].0, &primary).unwrap();
                    world.storage = Arc::new(FaultyStorage::from_image(left));
                    for turn in 0..2 {
                        world.journal = Some(open_closed(&world.storage));
                        if turn == 1 {
                            let primary = world.files[0].0.clone();
                            world.journal().resize(NAMES[0], sectors, Some(&primary)).unwrap();
                            let reader = JournalReader::open_on(shared(&world)).unwrap();
                            let open = reader.entries().unwrap().filter(|entry| {
                                entry.as_ref().unwrap().updated == layout::entry::Updated::Pending
                            });
                            assert_eq!(open.count(), 0, "nothing holds merging back");
                        }
                        world.take_up_resize(0, sectors).unwrap();
                        let reader = JournalReader::open_on(shared(&world)).unwrap();
                        let now = reader.sectors_now().unwrap()[&0];
                        assert!(now == sectors || (turn == 0 && now == SECTORS[0] && done.is_err()));
                        journal::resize::fit_primary(&reader, NAMES[0], &world.files[0].0).unwrap();
                        assert_eq!(std::fs::metadata(&world.files[0].0).unwrap().len(), now * 512);
                        if turn == 0 && now == sectors {
                            finished += 1;
                        }
                        unfinished += u32::from(now != sectors);
                        check_sound(&world, &format!("{kind}, crash {crash}"));
                        for count in 0..=world.writes.len() {
                            check_moment(&mut world, Moment::Order(count as u64), count).unwrap();
                        }
                        let count = world.writes.len();
                        check_moment(&mut world, Moment::End, count).unwrap();
                        drop(world.journal.take());
                    }
                }
                if done.is_ok() {
                    break;
                }
                crash += 1;
            }
            assert!(unfinished > 0 && finished > 0 && crash >= 3, "{crash}: {unfinished}, {finished}");
        }
    }
}

/// A rollback to a moment at which the volume had another size gives primary that size, can be interrupted anywhere,
/// and be undone.
#[test]
fn a_rollback_over_a_resize() {
    each_seed(850_000, 30, |seed| {
        let mut world = World::resizing(seed);
        world.certain = true;
        for _ in 0..world.rng.random_range(20..80) {
            world.step();
        }
        while !world.unanswered.is_empty() {
            world.answer();
        }
        world.journal.take().unwrap().close().unwrap();
        let volume = world.resizes.first().map_or(0, |resize| resize.volume);
        let entries = world.writes.len();
        let count = world.rng.random_range(0..=entries);
        let over_base = world.kind == Kind::After || (world.kind == Kind::Both && world.rng.random_bool(0.5));
        let (primary, base) = (world.files[volume].0.clone(), world.base_files[volume].clone());
        let options = |to| RollbackOptions {
            volume: NAMES[volume],
            primary: &primary,
            base: over_base.then_some(base.as_path()),
            to,
            allow_gaps: false,
        };
        let (to, undo) = (Target::Moment(Moment::Order(count as u64)), Target::Undo { discard: false });
        let (then, now) = (world.truth(volume, count), world.primary[volume].clone());
        let has = |expected: &[u8], what: &str| {
            let there = std::fs::read(&primary).unwrap();
            assert!(there == expected, "{what}: {} bytes, expected {}", there.len(), expected.len());
        };
        let interruptions = world.rng.random_range(0..3);
        for _ in 0..interruptions {
            let mut journal = open_closed(&world.storage);
            world.storage.fail_at(world.storage.operations() + world.rng.random_range(0..25), 5);
            let target = if world.rng.random_bool(0.7) { to } else { undo };
            match journal.roll_back(&options(target), &mut |_, _| {}) {
                Ok(_) | Err(Error::Io { .. }) => {}
                Err(Error::NoMoment(what)) => {
                    let said = what.contains("never rolled back") || what.contains("not finished");
                    assert!(said, "{what}");
                }
                Err(error) => panic!("{error}"),
            }
            drop(journal);
            let left = match world.rng.random_bool(0.5) {
                true => world.storage.image(),
                false => world.storage.image_after_power_failure(&mut world.rng.clone()),
            };
            world.storage = Arc::new(FaultyStorage::from_image(left));
        }
        let mut journal = open_closed(&world.storage);
        let done = journal.roll_back(&options(to), &mut |_, _| {}).unwrap();
        assert_eq!(done.target.0, count as u64);
        has(&then, "rolled back");
        let again = journal.roll_back(&options(to), &mut |_, _| {}).unwrap();
        assert_eq!(
            (again.entries, again.written, again.resized),
            (0, 0, None),
            "there is nothing left to do"
        );
        if interruptions == 0 {
            journal.roll_back(&options(undo), &mut |_, _| {}).unwrap();
            has(&then, "the rollback that did nothing undone");
            let before = Target::Moment(Moment::Order(done.before));
            journal.roll_back(&options(before), &mut |_, _| {}).unwrap();
            has(&world.truth(volume, entries), "back to the order from before");
        }
        let end = Target::Moment(Moment::Order(entries as u64));
        journal.roll_back(&options(end), &mut |_, _| {}).unwrap();
        has(&world.truth(volume, entries), "brought back by its order");
        journal.close().unwrap();
        check_sound(&world, "rolled back");

        if interruptions == 0 {
            // Once more: the undo brings back the size that a marker behind the last entry gave.
            std::fs::write(&primary, &now).unwrap();
        }
        for _ in 0..3 {
            let count = world.rng.random_range(0..=entries);
            let image = match world.open(volume, Moment::Order(count as u64), !over_base) {
                Ok(image) => image,
                Err(Error::Base { .. }) => return,
                Err(error) => panic!("{error}"),
            };
            let expected = world.truth(volume, count);
            world.check(&image, &expected);
        }
    });
}

/// An undo brings back the size, even where nothing but a marker had given it.
#[test]
fn an_undo_brings_the_size_back() {
    for kind in [Kind::After, Kind::Before, Kind::Both] {
        let mut world = World::of_kind(ChaCha8Rng::seed_from_u64(7), kind);
        (world.stamp, world.certain) = (4_000_000_000_000_000_000, true);
        for _ in 0..30 {
            world.step();
        }
        world.try_resize_to(0, 40).unwrap();
        world.try_resize_to(0, 120).unwrap();
        world.journal.take().unwrap().close().unwrap();
        let (primary, base) = (world.files[0].0.clone(), world.base_files[0].clone());
        let count = world.resizes[0].count as u64 / 2;
        let options = |to| RollbackOptions {
            volume: NAMES[0],
            primary: &primary,
            base: (kind == Kind::After).then_some(base.as_path()),
            to,
            allow_gaps: false,
        };
        let mut journal = open_closed(&world.storage);
        let done = journal.roll_back(&options(Target::Moment(Moment::Order(count))), &mut |_, _| {}).unwrap();
        assert_eq!(done.resized, Some((120, SECTORS[0])));
        assert!(std::fs::read(&primary).unwrap() == world.truth(0, count as usize));
        let done = journal.roll_back(&options(Target::Undo { discard: false }), &mut |_, _| {}).unwrap();
        assert_eq!(done.resized, Some((SECTORS[0], 120)));
        assert!(std::fs::read(&primary).unwrap() == world.primary[0]);
    }
}

#[test]
fn what_is_lost_is_journaled_in_few_entries() {
    for kind in [Kind::After, Kind::Before] {
        let mut world = World::of_kind(ChaCha8Rng::seed_from_u64(3), kind);
        for _ in 0..10 {
            world.step();
        }
        while !world.unanswered.is_empty() {
            world.answer();
        }
        let primary = world.files[0].0.clone();
        let large = 300_000;
        world.journal().resize(NAMES[0], large, None).unwrap();
        let reader = JournalReader::open_on(shared(&world)).unwrap();
        assert!(journal::resize::fit_primary(&reader, NAMES[0], &primary).unwrap());
        let data = [7; 512];
        std::os::unix::fs::FileExt::write_all_at(&world.files[0].1, &data, 200_000 * 512).unwrap();
        let before = world.journal().end().order;
        let done = world.journal().resize(NAMES[0], 96, Some(&primary)).unwrap();
        // 65,535 sectors at most in each; the one with data stands alone, or with its neighbours in a piece.
        let most = if kind == Kind::After { 5 } else { 8 };
        assert!((5..=most).contains(&done.entries), "{done:?}");
        assert_eq!(world.journal().end().order, before + done.entries);
        if kind == Kind::Before {
            let reader = JournalReader::open_on(shared(&world)).unwrap();
            journal::resize::fit_primary(&reader, NAMES[0], &primary).unwrap();
            let image = world.open(0, Moment::Order(before), true).unwrap();
            // Just after that entry the volume had not been extended yet.
            assert_eq!(image.bytes(), 96 * 512);
            let at = Moment::Order(before + 1);
            let image = world.open(0, at, true).unwrap();
            assert_eq!(image.bytes(), large * 512);
            let mut read = [0; 1536];
            image.read_at(&mut read, 199_999 * 512).unwrap();
            assert!(read[..512] == [0; 512] && read[512..1024] == data && read[1024..] == [0; 512]);
        }
    }
}

#[test]
fn what_can_not_be_resized_is_refused() {
    let mut world = World::of_kind(ChaCha8Rng::seed_from_u64(5), Kind::Both);
    let message = |result: Result<journal::resize::Resized, Error>| result.unwrap_err().to_string();
    // Nothing of it is there yet: it may be entered anew.
    let row = world.journal().tables().volume(NAMES[0]).unwrap().clone();
    let other = journal::Volume { sectors: 77, ..row.clone() };
    world.journal().set_volumes(std::slice::from_ref(&other)).unwrap();
    world.journal().set_volumes(std::slice::from_ref(&row)).unwrap();
    for _ in 0..40 {
        world.step();
    }
    while !world.unanswered.is_empty() {
        world.answer();
    }
    let text = world.journal().set_volumes(&[other]).unwrap_err().to_string();
    assert!(text.contains("volume resize"), "{text}");
    assert!(message(world.journal().resize(NAMES[0], 50, None)).contains("--primary"));
    assert!(message(world.journal().resize(NAMES[0], 0, None)).contains("not 0"));
    assert!(message(world.journal().resize(NAMES[0], 1 << 49, None)).contains("sectors"));
    assert!(matches!(world.journal().resize("9.9", 50, None), Err(Error::NoVolume { .. })));
    let (primary, end) = (world.files[0].0.clone(), world.journal().end());
    let whole = std::fs::read(&primary).unwrap();
    std::fs::write(&primary, &whole[..50 * 512]).unwrap();
    let text = message(world.journal().resize(NAMES[0], 50, Some(&primary)));
    assert!(text.contains("96 sectors") && text.contains("cut it afterwards"), "{text}");
    assert_eq!(world.journal().end(), end, "nothing was journaled");
    // Cut before the journal knew of it: it is not the volume's primary.
    let text = world.open(0, Moment::End, true).err().unwrap().to_string();
    assert!(text.contains("volume resize"), "{text}");
    let reader = JournalReader::open_on(shared(&world)).unwrap();
    let text = journal::resize::fit_primary(&reader, NAMES[0], &primary).unwrap_err().to_string();
    assert!(text.contains("give primary that size"), "{text}");
    std::fs::write(&primary, &whole).unwrap();
    assert_eq!(world.journal().resize(NAMES[0], 96, None).unwrap().entries, 0, "it has that size");
    assert_eq!(world.journal().end(), end);
}
