//! What is appended is what is read, and every moment is the naive model's.

mod workload;

use journal::image::Backing;
use journal::restore::{restore, RestoreOptions};
use journal::{Error, Journal, JournalReader, Moment, OwnedRecord, PreviousEnd};
use layout::entry::Kind;
use rand::Rng;
use std::path::Path;
use workload::{borrowed, options, seed, Workload, SECTORS};

fn fill(path: &Path, workload: &mut Workload, count: usize) -> Vec<OwnedRecord> {
    let mut journal = Journal::create(path, &options(8 << 20)).unwrap();
    assert_eq!(journal.opened().previous, PreviousEnd::First);
    let mut all = Vec::new();
    while all.len() < count {
        let some: Vec<_> = (0..workload.rng.random_range(1..40)).map(|_| workload.next()).collect();
        journal.append(&borrowed(&some), &workload.delivered()).unwrap();
        all.extend(some);
        if workload.rng.random_bool(0.3) {
            let durable = journal.sync().unwrap();
            assert_eq!(durable.order, workload.writes.len() as u64);
        }
    }
    let last = workload.settle();
    journal.append(&borrowed(&last), &workload.delivered()).unwrap();
    all.extend(last);
    let end = journal.end();
    assert_eq!(end.order, workload.writes.len() as u64);
    assert_eq!((end.arbiters[0].number, end.arbiters[0].timestamp), (workload.number, workload.stamp));
    journal.close().unwrap();
    all
}

#[test]
fn what_is_appended_is_read_back_over_many_segments() {
    let mut workload = Workload::new(seed(1));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let all = fill(&path, &mut workload, 1500);
    let reader = JournalReader::open(&path).unwrap();
    let summary = reader.summary();
    assert!(summary.ended && summary.torn.is_none() && summary.damage.is_none(), "{summary:?}");
    assert!(summary.segments_used > 20, "{summary:?}");
    let read: Vec<_> = reader.records().map(|record| record.unwrap()).collect();
    assert_eq!(read.len(), all.len());
    let mut order = 0;
    for (read, appended) in read.iter().zip(&all) {
        assert_eq!(read.header, appended.header);
        assert_eq!(reader.payload(read).unwrap(), appended.payload);
        order += u64::from(read.kind == Kind::After);
        assert_eq!(read.order, (read.kind == Kind::After).then_some(order));
    }
    for entry in reader.entries().unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.updated, workload.writes[entry.order as usize - 1].status, "order {}", entry.order);
    }
}

#[test]
fn every_moment_is_the_models() {
    let seed = seed(2);
    for seed in seed..seed + 4 {
        let mut workload = Workload::new(seed);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let all = fill(&path, &mut workload, 120);
        let reader = || JournalReader::open(&path).unwrap();
        for (index, name) in [(0u16, "7.1"), (1, "7.2")] {
            let mut base = vec![0u8; (SECTORS as usize >> index) * 512];
            let half = base.len() / 2;
            workload.rng.fill(&mut base[..half]);
            let base_path = directory.path().join("base");
            std::fs::write(&base_path, &base).unwrap();
            let out = directory.path().join("out");
            let at = |at| RestoreOptions {
                volume: name,
                backing: Backing::Base(&base_path),
                at,
                out: &out,
                force: true,
                allow_gaps: false,
            };
            for count in 0..=workload.writes.len() {
                let done = restore(reader(), &at(Moment::Order(count as u64)), &mut |_| {}).unwrap();
                assert_eq!(done.order, count as u64);
                let image = std::fs::read(&out).unwrap();
                assert!(
                    image == workload.image(&base, index, count),
                    "seed {seed}, volume {name}, order {count}"
                );
            }
            restore(reader(), &at(Moment::End), &mut |_| {}).unwrap();
            assert!(std::fs::read(&out).unwrap() == workload.image(&base, index, workload.writes.len()));
            let third = all.iter().filter(|record| record.header.kind == Kind::After as u8).nth(2).unwrap();
            restore(reader(), &at(Moment::Timestamp(third.header.timestamp.get())), &mut |_| {}).unwrap();
            assert!(std::fs::read(&out).unwrap() == workload.image(&base, index, 3));
            restore(reader(), &at(Moment::Timestamp(third.header.timestamp.get() - 1)), &mut |_| {}).unwrap();
            assert!(std::fs::read(&out).unwrap() == workload.image(&base, index, 2));
            let beyond = restore(reader(), &at(Moment::Order(workload.writes.len() as u64 + 1)), &mut |_| {});
            assert!(matches!(beyond, Err(Error::NoMoment(_))));
        }
    }
}

#[test]
fn a_second_session_goes_on_where_the_first_ended() {
    let mut workload = Workload::new(seed(3));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let mut all = fill(&path, &mut workload, 50);
    let mut journal = Journal::open(&path, "test").unwrap();
    assert_eq!((journal.opened().previous, journal.opened().session), (PreviousEnd::Clean, 2));
    assert_eq!(journal.end().order, workload.writes.len() as u64);
    assert!(
        matches!(Journal::open(&path, "test"), Err(Error::Locked { owner: Some(pid), .. }) if pid == std::process::id())
    );
    let more: Vec<_> = (0..20).map(|_| workload.next()).collect();
    journal.append(&borrowed(&more), &workload.delivered()).unwrap();
    all.extend(more);
    journal.close().unwrap();
    let reader = JournalReader::open(&path).unwrap();
    let read: Vec<_> = reader.records().map(|record| record.unwrap().header).collect();
    assert_eq!(read, all.iter().map(|record| record.header).collect::<Vec<_>>());
    assert!(matches!(Journal::create(&path, &options(8 << 20)), Err(Error::Exists { .. })));
}
