//! Every byte in use is checked, and damage is told from a torn tail.

mod faulty_storage;
mod workload;

use faulty_storage::FaultyStorage;
use journal::verify::{verify_on, Report};
use journal::{Error, Journal, JournalReader, OwnedRecord, PreviousEnd, Storage};
use rand::Rng;
use std::collections::BTreeSet;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use workload::{borrowed, options, seed, Workload};

const BYTES: usize = 1 << 20;

/// A small journal with a sealed segment, two sessions, and a batch per `per_batch` records.
fn small(
    workload: &mut Workload,
    records: usize,
    per_batch: usize,
) -> (Arc<FaultyStorage>, Vec<OwnedRecord>) {
    let storage = Arc::new(FaultyStorage::new(BYTES));
    let mut journal = Journal::create_on(storage.clone(), &options(BYTES as u64)).unwrap();
    let mut all = Vec::new();
    while all.len() < records {
        if all.len() == records / 2 {
            journal.close().unwrap();
            journal = Journal::open_on(storage.clone(), "test").unwrap();
        }
        let some: Vec<_> = (0..per_batch).map(|_| workload.next()).collect();
        journal.append(&borrowed(&some), &workload.delivered()).unwrap();
        journal.sync().unwrap();
        all.extend(some);
    }
    journal.close().unwrap();
    (storage, all)
}

/// An image that is only read.
struct Frozen<'a>(&'a [u8]);

impl Storage for Frozen<'_> {
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

fn check(image: &[u8]) -> Result<Report, Error> {
    verify_on(&Frozen(image), &mut |_, _| {})
}

#[test]
fn a_sound_journal_is_proved_and_counted() {
    let mut workload = Workload::new(seed(11));
    let (storage, all) = small(&mut workload, 200, 10);
    let report = check(&storage.image()).unwrap();
    assert_eq!(report.findings, []);
    assert_eq!(report.order, workload.writes.len() as u64);
    assert_eq!(report.entries + report.completions, all.len() as u64);
    assert_eq!((report.sessions, report.unclean_sessions, report.ended), (2, 0, true));
    assert_eq!(report.payload_bytes, all.iter().map(|record| record.payload.len() as u64).sum::<u64>());
    assert!(report.sealed > 3 && report.torn_tail.is_none(), "{report:?}");
    assert_eq!(report.durable_order, report.order);
}

#[test]
fn every_byte_in_use_is_checked() {
    let mut workload = Workload::new(seed(12));
    workload.largest = 2;
    let (storage, all) = small(&mut workload, 32, 2);
    let mut image = storage.image();
    assert_eq!(check(&image).unwrap().findings, []);
    assert!(check(&image).unwrap().sealed >= 1);
    let in_use: BTreeSet<usize> = storage.written().into_iter().flatten().collect();
    println!("{} bytes in use", in_use.len());
    for at in in_use {
        let bit = 1 << workload.rng.random_range(0..8);
        image[at] ^= bit;
        let report = check(&image).unwrap_or_else(|error| panic!("byte {at}: {error}"));
        let near = report.findings.iter().any(|f| f.offset as usize <= at && at < f.offset as usize + 16384);
        assert!(near, "byte {at}, bit {bit:#x}: {:?} {:?}", report.findings, report.torn_tail);
        if at % 13 == 0 {
            read_around(&image, at, &all);
        }
        image[at] ^= bit;
    }
}

/// Everything that doesn't depend on the byte is there.
fn read_around(image: &[u8], at: usize, all: &[OwnedRecord]) {
    let storage = Arc::new(FaultyStorage::from_image(image.to_vec()));
    let reader = JournalReader::open_on(storage).unwrap_or_else(|error| panic!("byte {at}: {error}"));
    let mut whole = 0;
    for record in reader.records().flatten() {
        let original = all.iter().find(|r| r.header == record.header);
        let original = original.unwrap_or_else(|| panic!("byte {at}: a record that nobody appended"));
        if let Ok(payload) = reader.payload(&record) {
            assert!(payload == original.payload, "byte {at}: a wrong payload");
            whole += 1;
        }
    }
    // A batch holds two records.
    assert!(whole + 2 >= all.len(), "byte {at}: only {whole} of {} records can be read", all.len());
}

#[test]
fn random_damage_never_panics_and_is_never_cut() {
    let first = seed(13);
    for seed in first..first + 300 {
        let mut workload = Workload::new(seed);
        let (storage, all) = small(&mut workload, 60, 5);
        let mut image = storage.image();
        let written = storage.written();
        let hits = workload.rng.random_range(1..4);
        for _ in 0..hits {
            let range = written[workload.rng.random_range(0..written.len())].clone();
            let start = workload.rng.random_range(range.clone());
            let end = (start + workload.rng.random_range(1..5000)).min(image.len());
            match workload.rng.random_range(0..3) {
                0 => image[start..end].fill(0),
                1 => workload.rng.fill(&mut image[start..end]),
                _ => {
                    let to = end.min(image.len() - range.len());
                    image.copy_within(range, to);
                }
            }
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let report = check(&image);
            let storage = Arc::new(FaultyStorage::from_image(image.clone()));
            if let Ok(reader) = JournalReader::open_on(storage.clone()) {
                for record in reader.records().flatten() {
                    let _ = reader.payload(&record);
                }
                let _ = reader.entries().map(|entries| entries.count());
            }
            (
                report,
                Journal::open_on(storage, "test").map(|journal| (journal.opened().clone(), journal.end())),
            )
        }));
        let (report, opened) = outcome.unwrap_or_else(|_| panic!("seed {seed}"));
        let Ok((opened, end)) = opened else { continue };
        // If the owner goes on, nothing acknowledged is gone. (Two hits may take both the last batch
        // and the note that tells of it.)
        if hits > 1 {
            continue;
        }
        assert_eq!(end.order, workload.writes.len() as u64, "seed {seed}: {opened:?}");
        assert_eq!(opened.previous, PreviousEnd::Clean, "seed {seed}: {opened:?}");
        drop((report, all));
    }
}

/// The last batch that was acknowledged has nothing after it but the note.
#[test]
fn a_damaged_last_acknowledged_batch_is_corruption_and_an_unacknowledged_one_is_a_torn_tail() {
    let mut workload = Workload::new(seed(14));
    for acknowledged in [true, false] {
        let storage = Arc::new(FaultyStorage::new(BYTES));
        let mut journal = Journal::create_on(storage.clone(), &options(BYTES as u64)).unwrap();
        let some: Vec<_> = (0..20).map(|_| workload.next()).collect();
        journal.append(&borrowed(&some), &workload.delivered()).unwrap();
        journal.sync().unwrap();
        let more: Vec<_> = (0..5).map(|_| workload.next()).collect();
        journal.append(&borrowed(&more), &workload.delivered()).unwrap();
        journal.flush().unwrap();
        let batch = storage.written().last().unwrap().clone();
        if acknowledged {
            journal.sync().unwrap();
        }
        drop(journal);
        for at in batch.clone().step_by(97) {
            let mut image = storage.image();
            image[at] ^= 0x10;
            let report = check(&image).unwrap();
            let opened = Journal::open_on(Arc::new(FaultyStorage::from_image(image)), "test");
            if acknowledged {
                assert!(!report.is_sound() && report.torn_tail.is_none(), "byte {at}: {report:?}");
                let error = opened.err().unwrap();
                assert!(
                    matches!(error, Error::Corrupt { offset, .. } if batch.contains(&(offset as usize))),
                    "{error}"
                );
            } else {
                assert!(report.is_sound(), "byte {at}: {:?}", report.findings);
                let opened = opened.unwrap().opened().clone();
                assert_eq!(opened.previous, PreviousEnd::Unclean);
                // Where not even the sequence can be read nothing says that a batch was meant to be there.
                if at >= batch.start + 64 {
                    assert!(opened.cut.is_some() && report.torn_tail.is_some(), "byte {at}: {report:?}");
                }
            }
        }
        workload = Workload::new(workload.rng.random());
    }
}
