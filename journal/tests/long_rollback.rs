//! A rollback of more than is made durable at once: journaling, syncing and writing primary go on beside each other, and
//! any of them may fail while the others are under way.
//!
//! CHRONO_SEED is the seed, CHRONO_SEEDS how many failures are tried.

mod faulty_storage;

use faulty_storage::FaultyStorage;
use journal::rollback::{RollbackOptions, Target};
use journal::verify::verify_on;
use journal::{CreateOptions, Delivered, Error, Journal, Moment, Port, PortKind, Record, Volume};
use layout::entry::{flags, EntryHeader, Journaled, Kind, Updated};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;

const MIB: usize = 80;
const ENTRY_BYTES: usize = 64 * 1024;

fn number(name: &str, or: u64) -> u64 {
    std::env::var(name).map_or(or, |text| text.parse().unwrap())
}

/// A journal of a volume whose every block was written once; base and primary.
fn made(rng: &mut ChaCha8Rng) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let (mut base, mut primary) = (vec![0; MIB << 20], vec![0; MIB << 20]);
    rng.fill(&mut base[..]);
    rng.fill(&mut primary[..]);
    let bytes = (MIB << 20) * 9 / 2 + (32 << 20);
    let storage = Arc::new(FaultyStorage::new(bytes));
    let options = CreateOptions {
        bytes: Some(bytes as u64),
        segment_bytes: None,
        volumes: vec![Volume::aoe(0, 1, 1, (MIB as u64) << 11)],
        ports: vec![Port { port: 0, kind: PortKind::Card, arbiter: 0, name: "port 0".into() }],
        writer: "long rollback".into(),
    };
    let shared: Arc<dyn journal::Storage> = storage.clone();
    let mut journal = Journal::create_on(shared, &options).unwrap();
    let mut stamp = 1_700_000_000_000_000_000;
    for (index, payload) in primary.chunks(ENTRY_BYTES).enumerate() {
        stamp += 1000;
        let mut header = EntryHeader::new(Kind::After);
        header.timestamp = stamp.into();
        header.number = (index as u64 + 1).into();
        header.flags = flags::CLOCK_LOCKED.into();
        header.volume = 0.into();
        header.sectors = ((ENTRY_BYTES / 512) as u16).into();
        header.set_lba((index * ENTRY_BYTES / 512) as u64);
        header.set_status(Journaled::Port, Updated::Updated);
        header.seal(payload);
        journal.append(&[Record::new(header, payload)], &[Delivered { port: 0, timestamp: stamp }]).unwrap();
    }
    journal.close().unwrap();
    (storage.image(), base, primary)
}

#[test]
fn what_fails_beside_stops_the_owner_and_can_be_finished() {
    let seed = number("CHRONO_SEED", 900_000);
    println!("CHRONO_SEED={seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (image, base, primary) = made(&mut rng);
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let (base_path, primary_path) = (directory.path().join("base"), directory.path().join("primary"));
    std::fs::write(&base_path, &base).unwrap();
    let options = |to| RollbackOptions {
        volume: "1.1",
        primary: &primary_path,
        base: Some(&base_path),
        to,
        allow_gaps: false,
    };
    let open = |storage: &Arc<FaultyStorage>| {
        let shared: Arc<dyn journal::Storage> = storage.clone();
        Journal::open_ports_closed_on(shared, "long rollback").unwrap()
    };
    // How many writes and syncs there are.
    std::fs::write(&primary_path, &primary).unwrap();
    let storage = Arc::new(FaultyStorage::from_image(image.clone()));
    let mut journal = open(&storage);
    let before = storage.operations();
    journal.roll_back(&options(Target::Moment(Moment::Order(0))), &mut |_, _| {}).unwrap();
    let operations = storage.operations() - before;
    assert!(std::fs::read(&primary_path).unwrap() == base, "rolled back");
    drop((journal, storage));
    for _ in 0..number("CHRONO_SEEDS", 2) {
        std::fs::write(&primary_path, &primary).unwrap();
        let mut storage = Arc::new(FaultyStorage::from_image(image.clone()));
        let mut journal = open(&storage);
        let fail = rng.random_range(0..operations);
        storage.fail_at(storage.operations() + fail, 5);
        match journal.roll_back(&options(Target::Moment(Moment::Order(0))), &mut |_, _| {}) {
            // What runs beside comes in another order each time.
            Ok(_) => {
                assert!(std::fs::read(&primary_path).unwrap() == base, "operation {fail} of {operations}")
            }
            Err(error) => {
                assert!(matches!(error, Error::Io { .. }), "operation {fail} of {operations}: {error}");
                assert!(journal.sync().is_err(), "what a failed sync lost is never reported durable");
                drop(journal);
                storage = Arc::new(FaultyStorage::from_image(storage.image_after_power_failure(&mut rng)));
                journal = open(&storage);
            }
        }
        for (to, expected) in [(0, &base), ((MIB << 20) / ENTRY_BYTES, &primary)] {
            journal.roll_back(&options(Target::Moment(Moment::Order(to as u64))), &mut |_, _| {}).unwrap();
            let what = format!("operation {fail} of {operations}, order:{to}");
            assert!(&std::fs::read(&primary_path).unwrap() == expected, "{what}");
        }
        journal.close().unwrap();
        let report = verify_on(&*storage, &mut |_, _| {}).unwrap();
        assert!(report.findings.is_empty(), "operation {fail} of {operations}: {:?}", report.findings);
    }
}
