//! What is appended in large calls is written from where it lies, and the journal is the same as of small ones.

mod workload;

use journal::{verify, Error, Journal, JournalReader, OwnedRecord};
use rand::Rng;
use workload::{borrowed, options, seed, Workload};

#[test]
fn large_calls_and_small_ones_are_all_there() {
    let mut workload = Workload::new(seed(17));
    workload.largest = 120;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let options = journal::CreateOptions { segment_bytes: Some(1 << 20), ..options(64 << 20) };
    let mut journal = Journal::create(&path, &options).unwrap();
    let mut all: Vec<OwnedRecord> = Vec::new();
    for round in 0..30 {
        let count = if round % 3 == 1 { 5 } else { workload.rng.random_range(1..120) };
        let some: Vec<OwnedRecord> = (0..count).map(|_| workload.next()).collect();
        // Damaged on the way, in the middle of a call: those before it are taken.
        let bad = (0..count).rfind(|index| !some[*index].payload.is_empty());
        if let (0, Some(bad)) = (round % 4, bad) {
            let mut damaged = some.clone();
            damaged[bad].payload[77] ^= 4;
            match journal.append(&borrowed(&damaged), &[]) {
                Err(Error::BadRecord { index, what, .. }) => {
                    assert_eq!(index, bad);
                    assert!(what.contains("payload"), "{what}");
                }
                other => panic!("{other:?}"),
            }
            journal.append(&borrowed(&some[bad..]), &workload.delivered()).unwrap();
        } else {
            journal.append(&borrowed(&some), &workload.delivered()).unwrap();
        }
        all.extend(some);
        match round % 5 {
            2 => drop(journal.sync().unwrap()),
            4 => drop(journal.sync_batches().unwrap()),
            _ => {}
        }
    }
    journal.close().unwrap();
    let report = verify::verify(&path, &mut |_, _| {}).unwrap();
    assert!(report.is_sound(), "{:?}", report.findings);
    let reader = JournalReader::open(&path).unwrap();
    let stored: Vec<_> = reader.records().collect::<Result<_, _>>().unwrap();
    assert_eq!(stored.len(), all.len());
    for (stored, record) in stored.iter().zip(&all) {
        assert_eq!(stored.header, record.header);
        assert!(reader.payload(stored).unwrap() == record.payload, "order {:?}", stored.order);
    }
}
