//! What the production image gives is held against one made by hand, byte for byte.
//!
//! CHRONO_SEED is the first seed, CHRONO_SEEDS how many there are.

// A volume's number is the index of several arrays at once.
#![allow(clippy::needless_range_loop)]

mod faulty_storage;
mod merged_by_hand;

use faulty_storage::FaultyStorage;
use journal::image::{Backing, Image};
use journal::verify::{compare, image_on, Naive};
use journal::{Error, JournalReader, Moment};
use layout::entry::Kind;
use merged_by_hand::world::{base_id, Beside, World, NAMES};
use merged_by_hand::{merge, Plan};
use rand::Rng;
use sha2::{Digest, Sha256};
use std::sync::Arc;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn images_of_random_journals_are_proved() {
    let first = number("CHRONO_SEED", 700_001);
    let count = if std::env::var("CHRONO_SEED").is_ok() { 1 } else { number("CHRONO_SEEDS", 80) };
    println!("CHRONO_SEED={first}, {count} seeds");
    for seed in first..first + count {
        let mut world = World::new(seed, 4 << 20, Beside { resyncs: true, ..Beside::default() });
        let steps = world.rng.random_range(10..150);
        world.run(steps);
        let storage: Arc<dyn journal::Storage> = world.storage.clone();
        for (volume, _) in NAMES.iter().enumerate() {
            let (base, primary) = world.files(volume);
            for _ in 0..3 {
                let count = world.rng.random_range(0..=world.writes.len());
                let at = match world.rng.random_range(0..3) {
                    0 => Moment::Order(count as u64),
                    1 if count > 0 => Moment::Timestamp(world.writes[count - 1].stamp),
                    _ => Moment::End,
                };
                let count = if at == Moment::End { world.writes.len() } else { count };
                let prove = |backing, expected: Vec<u8>| {
                    let report = image_on(storage.clone(), NAMES[volume], at, backing, &mut |_, _| {});
                    let report =
                        report.unwrap_or_else(|e| panic!("CHRONO_SEED={seed} {at:?} {backing:?}: {e}"));
                    assert!(report.is_sound(), "CHRONO_SEED={seed} {at:?}: {:?}", report.findings);
                    assert_eq!((report.order, report.bytes), (count as u64, expected.len() as u64));
                    let sha256: [u8; 32] = Sha256::digest(&expected).into();
                    assert_eq!(report.sha256, sha256, "CHRONO_SEED={seed} {at:?}");
                    report
                };
                if world.kind != Kind::Before {
                    prove(Backing::Base(&base), world.assumed(volume, count));
                }
                if world.kind != Kind::After {
                    let report = prove(Backing::Primary(&primary), world.truth(volume, count));
                    assert_eq!(report.doubtful_sectors, 0, "primary has what it has");
                }
            }
        }
    }
}

fn some_world() -> World {
    for seed in 11.. {
        let mut world = World::new(seed, 4 << 20, Beside::default());
        if world.kind == Kind::Both {
            world.run(200);
            return world;
        }
    }
    unreachable!("some world has both images")
}

#[test]
fn another_image_differs_with_offset_and_origins() {
    let world = some_world();
    let (base, _) = world.files(0);
    let storage: Arc<dyn journal::Storage> = world.storage.clone();
    let end = world.writes.len();
    let reader = JournalReader::open_on(storage.clone()).unwrap();
    let backing = Backing::Base(&base);
    let image =
        Image::open(reader, NAMES[0], Moment::Order(end as u64), backing, false, &mut |_, _| {}).unwrap();
    let half = Moment::Order(end as u64 / 2);
    let mut naive = Naive::open(&*world.storage, NAMES[0], half, backing, &mut |_, _| {}).unwrap();
    let report = compare(&mut naive, &image, &mut |_, _| {}).unwrap();
    let (own, theirs) = (world.assumed(0, end / 2), world.assumed(0, end));
    let first = (0..own.len()).find(|byte| own[*byte] != theirs[*byte]).unwrap() as u64;
    assert!(report.findings.iter().any(|f| f.offset == 0 && f.what.contains("just after order:")));
    let finding = report.findings.iter().find(|f| f.offset == first).unwrap();
    assert!(
        finding.what.contains("in the image, by an entry") && finding.what.contains("by "),
        "{finding:?}"
    );
    assert!(!report.is_sound());
}

#[test]
fn what_keeps_an_image_from_being_made_is_said() {
    let world = some_world();
    let (base, primary) = world.files(0);
    let storage: Arc<dyn journal::Storage> = world.storage.clone();
    let fails = |volume: &str, at, backing| {
        image_on(storage.clone(), volume, at, backing, &mut |_, _| {}).unwrap_err()
    };
    let (base, primary) = (Backing::Base(&base), Backing::Primary(&primary));
    assert!(matches!(fails("9.9", Moment::End, base), Error::NoVolume { .. }));
    assert!(matches!(fails(NAMES[0], Moment::Order(99_999), base), Error::NoMoment(_)));
    assert!(matches!(fails(NAMES[0], Moment::Timestamp(u64::MAX), primary), Error::NoMoment(_)));
    let short = world.directory.path().join("short");
    std::fs::write(&short, [0; 512]).unwrap();
    assert!(matches!(fails(NAMES[0], Moment::End, Backing::Base(&short)), Error::Base { .. }));
    let none = world.directory.path().join("none");
    assert!(matches!(fails(NAMES[0], Moment::End, Backing::Base(&none)), Error::Io { .. }));

    let mut gapped = World::new(5, 4 << 20, Beside { gaps: true, ..Beside::default() });
    gapped.run(150);
    let (base, primary) = gapped.files(0);
    let backing = if gapped.kind == Kind::Before { Backing::Primary(&primary) } else { Backing::Base(&base) };
    let at = if gapped.kind == Kind::Before { Moment::Order(0) } else { Moment::End };
    let error = image_on(gapped.storage.clone(), NAMES[0], at, backing, &mut |_, _| {}).unwrap_err();
    assert!(matches!(error, Error::Gap { .. }), "{error}");
}

/// The label of a base says whose it is, and how far it goes.
#[test]
fn a_base_that_is_not_the_right_one_is_refused() {
    let world = some_world();
    let window = 20_000;
    let cut = world.stamp / window * window;
    let mut plan = Plan { levels: vec![(window, cut)], most: (9, 9), ..Plan::default() };
    plan.forget = merge(&world.storage.image(), &plan, &mut |_| {}).windows[2].end;
    let merged = merge(&world.storage.image(), &plan, &mut |_| {});
    let storage = FaultyStorage::from_image(merged.image.clone());
    let journal_id = merged.image[24..40].try_into().unwrap();
    let (count, rolling) = (merged.forgotten as usize, merged.rolling as usize);
    let base = world.base_at(0, journal_id, count, rolling);
    let open =
        || Naive::open(&storage, NAMES[0], Moment::End, Backing::Base(&base), &mut |_, _| {}).map(drop);
    open().unwrap();
    let label = world.directory.path().join("base0.chronoswitch");
    let sound = std::fs::read(&label).unwrap();
    let broken: &[(usize, &str)] = &[
        (16, "another journal"),
        (32, "another base"),
        (48, "not a base of volume"),
        (176, "sectors"),
        (185, "further"),
        (201, "further"),
        (4000, "not zero"),
    ];
    for (at, word) in broken {
        let mut block = sound.clone();
        block[*at] ^= 0x40;
        block[12..16].fill(0);
        let sum = layout::crc::crc32c(&block);
        block[12..16].copy_from_slice(&sum.to_le_bytes());
        std::fs::write(&label, block).unwrap();
        let error = open().unwrap_err().to_string();
        assert!(error.contains(word), "byte {at}: {error}");
    }
    for (bytes, word) in
        [(sound[..4000].to_vec(), "has 4096 bytes"), ([&sound[..9], &[7], &sound[10..]].concat(), "label: ")]
    {
        std::fs::write(&label, bytes).unwrap();
        let error = open().unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    world.base_at(0, journal_id, count - 1, count - 1);
    assert!(open().unwrap_err().to_string().contains("left behind"));
    std::fs::remove_file(&label).unwrap();
    assert!(open().unwrap_err().to_string().contains("no label"));
    assert_ne!(base_id(0), [0; 16]);
}
