//! Merging against the naive model: moments that the schedule promises are what they were, the others are refused
//! with the nearest that there are, and a crash anywhere in between changes nothing.
//!
//! CHRONO_SEED is the first seed, CHRONO_SEEDS how many there are.

#![allow(clippy::needless_range_loop)]

mod faulty_storage;
mod world;

use journal::merge::MergeOptions;
use journal::{Error, Level, Moment, Schedule};
use layout::entry::Kind;
use rand::Rng;
use world::{each_seed, World, SECTORS};

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
            let expected = world.truth(volume, count);
            world.check(&image, &expected);
        }
        if world.kind != Kind::Before {
            let image = world.open(volume, at, false)?;
            let expected = world.assumed(volume, count);
            world.check(&image, &expected);
            check_doubt(world, &image, volume, count);
        }
    }
    Ok(())
}

fn check_doubt(world: &World, image: &journal::image::Image, volume: usize, count: usize) {
    let doubtful = world.doubtful(volume, count);
    for run in image.runs(0, image.bytes()).unwrap() {
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

#[test]
fn what_was_merged_is_what_the_model_says() {
    each_seed(400_000, 1000, |seed| {
        let mut world = World::new(seed);
        let schedule = schedule(&mut world);
        world.journal().set_schedule(&schedule).unwrap();
        for _ in 0..world.rng.random_range(1..6) {
            for _ in 0..world.rng.random_range(5..60) {
                world.step();
            }
            let before = world.journal().space();
            let merged = world.journal().merge(MergeOptions::default(), &mut |_| {}).unwrap();
            let after = world.journal().space();
            assert_eq!(
                i64::from(before.free) + merged.segments_freed as i64 - merged.segments_written as i64,
                i64::from(after.free)
            );
            let again = world.journal().merge(MergeOptions::default(), &mut |_| {}).unwrap();
            assert_eq!(again.steps, 0, "all that was due was done");
            check_history(&mut world, &schedule);
        }
    });
}
