//! The image at any moment, over primary and over a base, against a naive model: a list of writes.
//!
//! CHRONO_SEED is the first seed, CHRONO_SEEDS how many there are.

// A volume's number is the index of several arrays at once.
#![allow(clippy::needless_range_loop)]

mod faulty_storage;
mod world;

use faulty_storage::FaultyStorage;
use journal::image::{Image, Origin};
use journal::rollback::{RollbackOptions, Target};
use journal::verify::verify_on;
use journal::{Error, Journal, Moment};
use layout::entry::{Kind, Updated};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use world::{each_seed, World, Write, NAMES, SECTORS};

#[test]
fn any_moment_of_random_journals_is_the_models() {
    each_seed(0, 1000, |seed| {
        let mut world = World::new(seed);
        let steps = world.rng.random_range(10..150);
        (0..steps).for_each(|_| world.step());
        if world.rng.random_bool(0.5) {
            world.journal.take().unwrap().close().unwrap();
        } else {
            world.journal().flush().unwrap();
        }
        let report = verify_on(&*world.storage, &mut |_, _| {}).unwrap();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        let mut counts: Vec<usize> = (0..6).map(|_| world.rng.random_range(0..=world.writes.len())).collect();
        counts.extend([0, world.writes.len()]);
        for count in counts {
            for volume in 0..2 {
                let at = world.moment(count);
                if world.kind != Kind::After {
                    let image = world.open(volume, at, true).unwrap();
                    assert_eq!(image.facts().order, count as u64, "{at:?}");
                    world.check(&image, &world.truth(volume, count));
                } else if world.writes[count..].iter().any(|write| write.volume == volume && write.executed) {
                    assert!(
                        matches!(world.open(volume, at, true), Err(Error::Invalid(_))),
                        "no before-images"
                    );
                }
                if world.kind != Kind::Before {
                    let image = world.open(volume, at, false).unwrap();
                    assert_eq!(image.facts().order, count as u64, "{at:?}");
                    world.check(&image, &world.assumed(volume, count));
                    check_runs(&world, &image, volume, count);
                }
            }
        }
    });
}

fn check_runs(world: &World, image: &Image, volume: usize, count: usize) {
    let doubtful = world.doubtful(volume, count);
    let mut at = 0;
    for run in image.runs(0, image.bytes()).unwrap() {
        assert_eq!(run.offset, at);
        at += run.bytes;
        for sector in run.offset / 512..at / 512 {
            assert_eq!(run.doubtful, doubtful[sector as usize], "sector {sector}");
            let written = world.writes[..count].iter().any(|write| {
                let sectors = write.lba..write.lba + write.data.len() as u64 / 512;
                let dropped = matches!(write.status, Updated::Refused | Updated::Cancelled);
                write.volume == volume && !dropped && sectors.contains(&sector)
            });
            assert_eq!(run.origin != Origin::Backing, written, "sector {sector}");
        }
    }
    assert_eq!(at, image.bytes());
}

/// Late answers: whatever the target may have executed until one is doubtful, in either direction, and nothing else.
#[test]
fn a_late_answer_leaves_doubt_where_it_has_to() {
    each_seed(350_000, 200, |seed| {
        let mut world = World::new(seed);
        world.late_answers = true;
        let steps = world.rng.random_range(10..200);
        (0..steps).for_each(|_| world.step());
        world.journal().flush().unwrap();
        let mut counts: Vec<usize> = (0..6).map(|_| world.rng.random_range(0..=world.writes.len())).collect();
        counts.extend([0, world.writes.len()]);
        for count in counts {
            for volume in 0..2 {
                let at = world.moment(count);
                if world.kind != Kind::After {
                    let image = world.open(volume, at, true).unwrap();
                    let (mut expected, has_to) = world.truth_with_late(volume, count, at);
                    let may = world.doubtful_with_late(volume, count).1;
                    let doubtful = check_doubt(
                        &image,
                        &has_to,
                        &may,
                        &format!("{at:?} over primary {:?} {volume} {:?}", world.kind, world.late),
                    );
                    let mut read = vec![0xEE; expected.len()];
                    image.read_at(&mut read, 0).unwrap();
                    for sector in (0..doubtful.len()).filter(|sector| doubtful[*sector]) {
                        let range = sector * 512..(sector + 1) * 512;
                        expected[range.clone()].copy_from_slice(&read[range]);
                    }
                    world.check(&image, &expected);
                }
                if world.kind != Kind::Before {
                    let image = world.open(volume, at, false).unwrap();
                    world.check(&image, &world.assumed(volume, count));
                    let (has_to, may) = world.doubtful_with_late(volume, count);
                    check_doubt(
                        &image,
                        &has_to,
                        &may,
                        &format!("{at:?} over base {:?} {volume} {:?}", world.kind, world.late),
                    );
                }
            }
        }
    });
}

/// Sectors that are doubtful: all that have to be, and none that mayn't.
fn check_doubt(image: &Image, has_to: &[bool], may: &[bool], what: &str) -> Vec<bool> {
    let mut doubtful = vec![false; has_to.len()];
    for run in image.runs(0, image.bytes()).unwrap() {
        doubtful[run.offset as usize / 512..(run.offset + run.bytes) as usize / 512].fill(run.doubtful);
    }
    for (sector, doubtful) in doubtful.iter().enumerate() {
        assert!(*doubtful || !has_to[sector], "{what}: sector {sector} has to be doubtful");
        assert!(!*doubtful || may[sector], "{what}: sector {sector} isn't doubtful");
    }
    assert_eq!(image.facts().doubtful > 0, doubtful.contains(&true));
    doubtful
}

/// Images over primary stay what they are while primary goes on changing.
#[test]
fn an_image_over_primary_stays_while_primary_changes() {
    each_seed(100_000, 200, |seed| {
        let kind = if seed % 2 == 0 { Kind::Before } else { Kind::Both };
        let mut world = World::of_kind(ChaCha8Rng::seed_from_u64(seed), kind);
        let mut images: Vec<(Image, usize, usize)> = Vec::new();
        for _ in 0..world.rng.random_range(40..160) {
            world.step();
            if images.len() < 4 && world.rng.random_bool(0.1) {
                let (volume, count) =
                    (world.rng.random_range(0..2), world.rng.random_range(0..=world.writes.len()));
                // What is appended and not yet written the reader doesn't know of.
                world.journal().flush().unwrap();
                images.push((world.open(volume, Moment::Order(count as u64), true).unwrap(), volume, count));
            }
            if !images.is_empty() && world.rng.random_bool(0.3) {
                let index = world.rng.random_range(0..images.len());
                let (image, volume, count) = images.swap_remove(index);
                // A write from before the moment that was unanswered at it belongs to it once it is executed.
                world.check(&image, &world.truth(volume, count));
                images.push((image, volume, count));
            }
        }
        for (image, volume, count) in images {
            world.check(&image, &world.truth(volume, count));
        }
    });
}

/// After an unclean stop primary has what the journal doesn't. A resync journals it; before that, moments
/// behind the stop are refused, after it they are as good as any.
#[test]
fn a_resync_closes_the_gap_of_an_unclean_stop() {
    each_seed(200_000, 200, |seed| {
        let kind = if seed % 2 == 0 { Kind::After } else { Kind::Both };
        let mut world = World::of_kind(ChaCha8Rng::seed_from_u64(seed), kind);
        for _ in 0..world.rng.random_range(5..60) {
            world.step();
        }
        world.journal().flush().unwrap();
        drop(world.journal.take());
        let before = world.writes.len();
        // Answers that nobody journaled any more, and writes that nobody journaled at all.
        for (_, _, index) in std::mem::take(&mut world.unanswered) {
            if world.rng.random_bool(0.5) {
                world.execute(index);
            }
        }
        for volume in 0..2 {
            let sectors = world.rng.random_range(0..20u64);
            let at = (world.rng.random_range(0..SECTORS[volume] - sectors) * 512) as usize;
            let mut data = vec![0; sectors as usize * 512];
            world.rng.fill(&mut data[..]);
            world.files[volume].1.write_all_at(&data, at as u64).unwrap();
            world.primary[volume][at..at + data.len()].copy_from_slice(&data);
        }
        let shared: Arc<dyn journal::Storage> = world.storage.clone();
        let mut journal = Journal::open_on(shared, "after").unwrap();
        let both = world.rng.random_bool(0.8);
        for volume in 0..if both { 2 } else { 1 } {
            let (primary, base) = (world.files[volume].0.clone(), world.base_files[volume].clone());
            journal.resync(NAMES[volume], &primary, &base, &mut |_, _| {}).unwrap();
            let again = journal.resync(NAMES[volume], &primary, &base, &mut |_, _| {}).unwrap();
            assert_eq!((again.differed, again.entries), (0, 0), "all of it was taken the first time");
        }
        let end = journal.end();
        world.journal = Some(journal);
        world.take_up_end();
        let resynced = end.order as usize;
        // The model takes over what primary had.
        let at_resync = world.primary.clone();
        let stamp = world.stamp;
        for _ in before..resynced {
            let (volume, data) = (0, Vec::new());
            let (status, executed) = (Updated::Updated, true);
            world.writes.push(Write { volume, lba: 0, data, stamp, status, executed });
        }
        for _ in 0..world.rng.random_range(5..60) {
            world.step();
        }
        world.journal().flush().unwrap();
        let report = verify_on(&*world.storage, &mut |_, _| {}).unwrap();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        let total = world.writes.len();
        for volume in 0..2 {
            for count in [before, world.rng.random_range(0..=before)] {
                let image = world.open(volume, Moment::Order(count as u64), false).unwrap();
                world.check(&image, &world.assumed(volume, count));
            }
            if volume == 1 && !both {
                if total > before {
                    assert!(matches!(world.open(1, Moment::End, false), Err(Error::Gap { .. })));
                }
                continue;
            }
            for count in [resynced, world.rng.random_range(resynced..=total), total] {
                let mut expected = at_resync[volume].clone();
                let dropped = |write: &&Write| matches!(write.status, Updated::Refused | Updated::Cancelled);
                for write in
                    world.writes[resynced..count].iter().filter(|w| w.volume == volume && !dropped(w))
                {
                    let at = write.lba as usize * 512;
                    expected[at..at + write.data.len()].copy_from_slice(&write.data);
                }
                let image = world.open(volume, Moment::Order(count as u64), false).unwrap();
                world.check(&image, &expected);
            }
        }
    });
}

/// A rollback brings primary to what it was, an undo brings it back, and both can be interrupted at any write
/// and sync, then finished or undone. All moments from before stay what they were.
#[test]
fn a_rollback_can_be_interrupted_finished_and_undone() {
    each_seed(300_000, 300, |seed| {
        let mut world = World::new(seed);
        world.certain = true;
        for _ in 0..world.rng.random_range(5..60) {
            world.step();
        }
        while !world.unanswered.is_empty() {
            world.answer();
        }
        world.journal.take().unwrap().close().unwrap();
        let entries = world.writes.len();
        let volume = world.rng.random_range(0..2);
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
        let to_moment = Target::Moment(Moment::Order(count as u64));
        let undo = Target::Undo { discard: false };
        let open = |storage: &Arc<FaultyStorage>| {
            let shared: Arc<dyn journal::Storage> = storage.clone();
            Journal::open_ports_closed_on(shared, "rollback").unwrap()
        };
        let then = world.truth(volume, count);
        let now = world.primary[volume].clone();
        let has = |expected: &[u8], what: &str| {
            assert!(std::fs::read(&primary).unwrap() == expected, "{what}: primary is not what it should be");
        };

        // Interrupted some times, each time by a failing write or sync, some of them by a loss of power.
        for _ in 0..world.rng.random_range(0..4) {
            let mut journal = open(&world.storage);
            let target = if world.rng.random_bool(0.7) { to_moment } else { undo };
            let fail = world.storage.operations() + world.rng.random_range(0..40);
            world.storage.fail_at(fail, 5);
            match journal.roll_back(&options(target), &mut |_, _| {}) {
                Ok(_) if target == to_moment => has(&then, "not interrupted"),
                Ok(_) => {}
                Err(Error::NoMoment(what)) => {
                    let said = what.contains("never rolled back") || what.contains("not finished");
                    assert!(said, "{what}");
                }
                Err(error) => {
                    assert!(matches!(error, Error::Io { .. }), "{error}");
                    assert!(
                        journal.sync().is_err(),
                        "what a failed write or sync lost is never reported durable"
                    );
                }
            }
            drop(journal);
            let image = match world.rng.random_bool(0.5) {
                true => world.storage.image(),
                false => {
                    let mut rng = world.rng.clone();
                    world.storage.image_after_power_failure(&mut rng)
                }
            };
            world.storage = Arc::new(FaultyStorage::from_image(image));
        }
        let mut journal = open(&world.storage);
        let done = journal.roll_back(&options(to_moment), &mut |_, _| {}).unwrap();
        assert_eq!(done.target.0, count as u64);
        has(&then, "rolled back");
        let again = journal.roll_back(&options(to_moment), &mut |_, _| {}).unwrap();
        assert_eq!((again.entries, again.written), (0, 0), "there is nothing left to do");
        has(&then, "rolled back again");
        journal.close().unwrap();

        // What was before it is still there: the moment before each of them.
        let mut journal = open(&world.storage);
        let to_before = Target::Moment(Moment::Order(entries as u64));
        journal.roll_back(&options(to_before), &mut |_, _| {}).unwrap();
        has(&now, "brought back by its order");
        journal.roll_back(&options(undo), &mut |_, _| {}).unwrap();
        has(&then, "and that undone");
        journal.roll_back(&options(undo), &mut |_, _| {}).unwrap();
        has(&now, "and the undo undone");
        journal.close().unwrap();
        let report = verify_on(&*world.storage, &mut |_, _| {}).unwrap();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        assert_eq!(report.gaps, 0, "no port was open: nothing is missing");
        for _ in 0..3 {
            let count = world.rng.random_range(0..=entries);
            let image = world.open(volume, Moment::Order(count as u64), !over_base).unwrap();
            let expected = world.truth(volume, count);
            world.check(&image, &expected);
        }
    });
}
