//! The machine fails at every write and every sync; nothing acknowledged is lost, nothing is made up,
//! and what was cut off stays away.

mod faulty_storage;
mod workload;

use faulty_storage::FaultyStorage;
use journal::verify::verify_on;
use journal::{Error, Journal, JournalReader, OwnedRecord, PreviousEnd, SourceIdentity};
use layout::entry::{EntryHeader, Kind};
use rand::Rng;
use std::collections::BTreeSet;
use std::sync::Arc;
use workload::{borrowed, options, seed, Workload};

const BYTES: usize = 3 << 19;

/// What an ingest appended, and how much of it had been acknowledged when it stopped.
#[derive(Default)]
struct Ingest {
    appended: Vec<OwnedRecord>,
    acknowledged: usize,
}

/// Makes a journal and appends until the storage fails: small and large batches, several segments,
/// changes of the tables, syncs now and then, and a second session.
fn ingest(storage: Arc<FaultyStorage>, workload: &mut Workload) -> (Ingest, Result<(), Error>) {
    let mut ingest = Ingest::default();
    let outcome = run(storage, workload, &mut ingest);
    (ingest, outcome)
}

fn run(storage: Arc<FaultyStorage>, workload: &mut Workload, ingest: &mut Ingest) -> Result<(), Error> {
    let mut journal = Journal::create_on(storage.clone(), &options(BYTES as u64))?;
    for step in 0..26 {
        if step == 13 {
            journal.close()?;
            ingest.acknowledged = ingest.appended.len();
            journal = Journal::open_on(storage.clone(), "second")?;
        }
        let some: Vec<_> = (0..workload.rng.random_range(1..14)).map(|_| workload.next()).collect();
        // Records that a failing append took part of may or may not get there.
        ingest.appended.extend(some.iter().cloned());
        journal.append(&borrowed(&some), &workload.delivered())?;
        match step % 5 {
            1 => journal.flush()?,
            3 => {
                let identity = SourceIdentity::Number(step);
                journal.note_source(journal::Source { port: 0, index: 0, identity, since_order: 0 })?;
            }
            4 => {
                journal.sync()?;
                ingest.acknowledged = ingest.appended.len();
            }
            _ => {}
        }
    }
    journal.close()?;
    ingest.acknowledged = ingest.appended.len();
    Ok(())
}

/// Headers in the journal, the journal's own gaps aside.
fn headers(storage: &Arc<FaultyStorage>) -> Vec<EntryHeader> {
    let reader = JournalReader::open_on(storage.clone()).unwrap();
    let records: Vec<_> = reader.records().map(|record| record.unwrap()).collect();
    for record in &records {
        reader.payload(record).unwrap();
    }
    records.iter().filter(|record| record.kind != Kind::Gap).map(|record| record.header).collect()
}

fn assert_sound(storage: &FaultyStorage, what: &str) {
    let report = verify_on(storage, &mut |_, _| {}).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(report.findings, [], "{what}");
}

/// Opens what a crash left, twice, appending in between.
fn recover(image: Vec<u8>, ingest: &Ingest, seed: u64, what: &str) {
    let storage = Arc::new(FaultyStorage::from_image(image));
    // The verifier, too, takes what a crash leaves for what it is. Only a copy of the tables that the
    // crash fell into looks like a damaged one; the other is whole. (A journal that is being made is
    // nobody's yet.)
    for finding in verify_on(&*storage, &mut |_, _| {}).iter().flat_map(|report| &report.findings) {
        let unfinished = ingest.appended.is_empty() && finding.what.starts_with("superblock: ");
        assert!(unfinished || finding.what.starts_with("tables: "), "{what}: {finding:?}");
    }
    let journal = match Journal::open_on(storage.clone(), "recovery") {
        Ok(journal) => journal,
        // The journal was not complete yet: nobody had been told that there is one.
        Err(Error::Foreign { .. }) if ingest.appended.is_empty() => return,
        Err(error) => panic!("{what}: {error}"),
    };
    assert_sound(&storage, what);
    let kept = headers(&storage);
    assert!(kept.len() >= ingest.acknowledged, "{what}: {} kept of {}", kept.len(), ingest.acknowledged);
    let appended: Vec<_> = ingest.appended.iter().map(|record| record.header).collect();
    assert!(kept.len() <= appended.len() && kept == appended[..kept.len()], "{what}: not what was appended");
    let entries = kept.iter().filter(|header| header.kind == Kind::After as u8).count() as u64;
    assert_eq!(journal.end().order, entries, "{what}");
    drop(journal);

    // Something else takes the place of what was cut; two more openings find that and only that.
    let mut journal = Journal::open_on(storage.clone(), "after").unwrap();
    assert_eq!(journal.opened().previous, PreviousEnd::Unclean);
    let mut other = Workload::new(seed ^ 0xABCD);
    other.stamp = journal.end().arbiters[0].timestamp + 1_000_000;
    other.number = journal.end().arbiters[0].number + 1000;
    let mut expected = kept;
    let more: Vec<_> = (0..3).map(|_| other.next()).collect();
    journal.append(&borrowed(&more), &other.delivered()).unwrap();
    journal.sync().unwrap();
    expected.extend(more.iter().map(|record| record.header));
    drop(journal);
    for _ in 0..2 {
        drop(Journal::open_on(storage.clone(), "again").unwrap());
        assert_sound(&storage, what);
        assert_eq!(headers(&storage), expected, "{what}: what was cut came back, or more was lost");
    }
}

#[test]
fn a_crash_at_any_write_or_sync_loses_nothing_acknowledged() {
    let seed = seed(21);
    let whole = Arc::new(FaultyStorage::new(BYTES));
    let (done, outcome) = ingest(whole.clone(), &mut Workload::new(seed));
    outcome.unwrap();
    assert_sound(&whole, "whole");
    assert_eq!(headers(&whole).len(), done.appended.len());
    let operations = whole.operations();
    println!("{operations} writes and syncs, {} records", done.appended.len());
    for crash in 0..operations {
        let storage = Arc::new(FaultyStorage::new(BYTES));
        storage.crash_at(crash);
        let (ingest, outcome) = ingest(storage.clone(), &mut Workload::new(seed));
        assert!(outcome.is_err(), "operation {crash}");
        // The process was killed: everything written is there.
        recover(storage.image(), &ingest, seed, &format!("seed {seed}, killed in operation {crash}"));
        // The power failed: of what was not synced any part is there.
        let mut luck = Workload::new(seed + crash as u64).rng;
        for turn in 0..6 {
            let what = format!("seed {seed}, power failed in operation {crash}, turn {turn}");
            recover(storage.image_after_power_failure(&mut luck), &ingest, seed, &what);
        }
    }
}

/// A crash while recovering from a crash, at each of its writes and syncs.
#[test]
fn a_crash_during_recovery_loses_nothing_either() {
    let first = seed(22);
    let mut tried = BTreeSet::new();
    for seed in first..first + 12 {
        let mut luck = Workload::new(seed).rng;
        let whole = Arc::new(FaultyStorage::new(BYTES));
        ingest(whole.clone(), &mut Workload::new(seed)).1.unwrap();
        let crash = luck.random_range(40..whole.operations());
        let storage = Arc::new(FaultyStorage::new(BYTES));
        storage.crash_at(crash);
        let (ingest, _) = ingest(storage.clone(), &mut Workload::new(seed));
        let image = storage.image_after_power_failure(&mut luck);
        for second in 0.. {
            let storage = Arc::new(FaultyStorage::from_image(image.clone()));
            storage.crash_at(second);
            let opened = Journal::open_on(storage.clone(), "recovery").is_ok();
            tried.insert(second);
            let what = format!("seed {seed}, crashes in operation {crash} and then {second}");
            recover(storage.image(), &ingest, seed, &what);
            recover(storage.image_after_power_failure(&mut luck), &ingest, seed, &what);
            if opened {
                break;
            }
        }
    }
    assert!(tried.len() > 8, "recovery takes more writes and syncs than that: {tried:?}");
}

/// EIO, ENOSPC: the owner stops, says where, and nothing acknowledged is lost.
#[test]
fn a_failing_write_or_sync_stops_the_owner() {
    let seed = seed(23);
    let whole = Arc::new(FaultyStorage::new(BYTES));
    ingest(whole.clone(), &mut Workload::new(seed)).1.unwrap();
    for (at, errno) in (0..whole.operations()).flat_map(|at| [(at, 5), (at, 28)]) {
        let storage = Arc::new(FaultyStorage::new(BYTES));
        storage.fail_at(at, errno);
        let (ingest, outcome) = ingest(storage.clone(), &mut Workload::new(seed));
        let error = outcome.expect_err("the error is not swallowed");
        assert!(
            matches!(&error, Error::Io { source, .. } if source.raw_os_error() == Some(errno)),
            "{error}"
        );
        assert!(error.to_string().starts_with("memory: "), "{error}");
        recover(storage.image(), &ingest, seed, &format!("seed {seed}, errno {errno} in operation {at}"));
    }
    let storage = Arc::new(FaultyStorage::new(BYTES));
    let mut journal = Journal::create_on(storage.clone(), &options(BYTES as u64)).unwrap();
    let mut workload = Workload::new(seed);
    storage.fail_at(storage.operations() + 1, 5);
    journal.append(&borrowed(&[workload.next()]), &[]).unwrap();
    assert!(matches!(journal.sync(), Err(Error::Io { .. })));
    // The kernel may report the next sync as good though the pages are gone: it is not asked.
    assert!(matches!(journal.sync(), Err(Error::Stopped { .. })));
    assert!(matches!(journal.append(&borrowed(&[workload.next()]), &[]), Err(Error::Stopped { .. })));
    assert!(matches!(journal.close(), Err(Error::Stopped { .. })));
}

#[test]
fn short_reads_and_writes_make_no_difference() {
    let seed = seed(24);
    let storage = Arc::new(FaultyStorage::new(BYTES));
    storage.at_most(777);
    let (done, outcome) = ingest(storage.clone(), &mut Workload::new(seed));
    outcome.unwrap();
    assert_sound(&storage, "short");
    assert_eq!(headers(&storage), done.appended.iter().map(|record| record.header).collect::<Vec<_>>());
}

#[test]
fn a_full_journal_takes_nothing_more_and_stays_whole() {
    let mut workload = Workload::new(seed(25));
    let storage = Arc::new(FaultyStorage::new(BYTES));
    let mut journal = Journal::create_on(storage.clone(), &options(BYTES as u64)).unwrap();
    let mut taken = Vec::new();
    let refused = loop {
        let some: Vec<_> = (0..7).map(|_| workload.next()).collect();
        match journal.append(&borrowed(&some), &[]) {
            Ok(_) => taken.extend(some),
            Err(Error::Full { appended, free, reserved, .. }) => {
                assert!(free <= reserved);
                taken.extend_from_slice(&some[..appended]);
                break some[appended].clone();
            }
            Err(error) => panic!("{error}"),
        }
    };
    // An entry is what doesn't fit; answers to those that are there still do.
    assert_eq!(refused.header.kind, Kind::After as u8);
    assert!(matches!(journal.append(&[refused.as_record()], &[]), Err(Error::Full { appended: 0, .. })));
    assert_eq!(journal.sync().unwrap().order, journal.end().order);
    journal.close().unwrap();
    assert_sound(&storage, "full");
    assert_eq!(headers(&storage), taken.iter().map(|record| record.header).collect::<Vec<_>>());
}

/// Answers, names and sessions live from what is kept for them, and entries don't take it away.
#[test]
fn a_full_journal_can_be_opened_and_ended_again_and_again() {
    let mut workload = Workload::new(seed(26));
    let storage = Arc::new(FaultyStorage::new(BYTES));
    let mut journal = Journal::create_on(storage.clone(), &options(BYTES as u64)).unwrap();
    let mut refused = None;
    let mut fill = |journal: &mut Journal, at_least: usize| -> usize {
        let mut entries = 0;
        loop {
            let next = refused.take().unwrap_or_else(|| workload.next());
            let is_entry = next.header.kind == Kind::After as u8;
            match journal.append(&[next.as_record()], &[]) {
                Ok(_) => entries += usize::from(is_entry),
                Err(Error::Full { .. }) if is_entry => {
                    refused = Some(next);
                    break;
                }
                Err(error) => panic!("{error}, after {entries} entries"),
            }
        }
        assert!(entries >= at_least);
        entries
    };
    fill(&mut journal, 10);
    journal.close().unwrap();
    // As soon as the segment is full that was open, a session takes one that is kept, and no entry goes on there.
    let (mut sessions, mut more) = (0, 0);
    let error = loop {
        match Journal::open_on(storage.clone(), "again") {
            Ok(mut journal) => {
                let name = format!("bookmark {sessions}");
                let end = journal.end();
                // The tables grow too, and their copy in the seal with them.
                if sessions < 5 {
                    journal.add_bookmark(&name, end.order, end.timestamp).unwrap();
                }
                more += fill(&mut journal, 0);
                journal.close().unwrap();
                sessions += 1;
            }
            Err(error) => break error,
        }
        assert!(sessions < 1000);
    };
    println!("{sessions} sessions on a full journal, {more} entries in them");
    assert!(matches!(error, Error::Full { .. }), "{error}");
    assert!(sessions >= 8 && more < 10, "{sessions} sessions, {more} entries");
    // Refused before anything was begun: what was last ended in order still is.
    assert_sound(&storage, "after many sessions");
    assert!(JournalReader::open_on(storage).unwrap().summary().ended);
}
