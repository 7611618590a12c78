//! What a journal tells of its merging: levels, windows, what is due; and moments that get a name while a step runs.

use journal::image::{Backing, Image};
use journal::merge::{preview, MergeOptions};
use journal::verify::verify;
use journal::{
    CreateOptions, Delivered, Error, Journal, JournalReader, Moment, OwnedRecord, Port, PortKind, Volume,
};
use layout::entry::{flags, EntryHeader, Gap, GapReason, Journaled, Kind, Updated};
use layout::journal_file::technique;
use std::path::{Path, PathBuf};
use zerocopy::IntoBytes;

const BEGIN: u64 = 1_700_000_000_000_000_000;
const SECTORS: u64 = 64;

/// Writes of eight sectors, 1 µs apart, each full of its order.
fn append(journal: &mut Journal, count: u64) {
    for _ in 0..count {
        let order = journal.end().order + 1;
        let mut header = EntryHeader::new(Kind::After);
        header.timestamp = (BEGIN + order * 1000).into();
        header.number = order.into();
        header.sequence = order.into();
        header.flags = flags::CLOCK_LOCKED.into();
        header.set_lba(order * 8 % SECTORS);
        header.sectors = 8.into();
        header.volume = 0.into();
        header.set_status(Journaled::Port, Updated::Updated);
        let payload: Vec<u8> = order.to_le_bytes().repeat(512);
        header.seal(&payload);
        let delivered = Delivered { port: 0, timestamp: header.timestamp.get() };
        journal.append(&[OwnedRecord { header, payload }.as_record()], &[delivered]).unwrap();
    }
    journal.sync().unwrap();
}

fn at_order(order: u64) -> Vec<u8> {
    let mut image = vec![0; SECTORS as usize * 512];
    for order in 1..=order {
        let at = (order * 8 % SECTORS) as usize * 512;
        image[at..at + 4096].copy_from_slice(&order.to_le_bytes().repeat(512));
    }
    image
}

fn make(directory: &Path) -> (Journal, PathBuf, PathBuf) {
    let options = CreateOptions {
        bytes: Some(4 << 20),
        segment_bytes: Some(64 * 1024),
        volumes: vec![Volume::aoe(0, 1, 0, SECTORS)],
        ports: vec![Port { port: 0, kind: PortKind::Card, arbiter: 0, name: "port 0".into() }],
        writer: "facts".into(),
    };
    let (path, base) = (directory.join("journal"), directory.join("base"));
    let journal = Journal::create(&path, &options).unwrap();
    std::fs::write(&base, vec![0; SECTORS as usize * 512]).unwrap();
    (journal, path, base)
}

#[test]
fn levels_windows_and_what_is_due_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let (mut journal, path, _) = make(directory.path());
    append(&mut journal, 200);
    let all = MergeOptions::default();
    let due = |options: &MergeOptions| {
        let reader = JournalReader::open(&path).unwrap();
        preview(&reader, &reader.tables().schedule, options).unwrap()
    };
    assert_eq!(due(&all), [], "without a schedule nothing is ever due");
    journal.set_schedule(&"all:20us,50us:1h".parse().unwrap()).unwrap();
    let before = due(&all);
    assert_eq!(before.len(), 1);
    assert_eq!((before[0].source, before[0].window), (0, Some(50_000)));
    assert!(before[0].frees_room() && before[0].entries >= 150, "{before:?}");

    let merged = journal.merge(&all, &mut |_| {}).unwrap();
    assert_eq!((merged.windows, merged.entries_in), (before[0].windows, before[0].entries));
    assert!(merged.segments_written <= before[0].writes && merged.segments_freed == before[0].frees);
    let reader = JournalReader::open(&path).unwrap();
    let windows: Vec<_> = reader.windows().unwrap().map(Result::unwrap).collect();
    assert_eq!(windows.len() as u64, merged.windows);
    let mut next = 1;
    for window in &windows {
        assert_eq!((window.level, window.length, window.first_order), (1, 50_000, next));
        assert!(window.to % 50_000 == 0 && window.from < window.first_timestamp);
        assert_eq!(window.last_timestamp, BEGIN + window.last_order * 1000);
        assert_eq!(window.ports, [(0, true)]);
        next = window.last_order + 1;
    }
    assert_eq!(windows.iter().map(|window| window.entries).sum::<u64>(), merged.entries_out);
    let levels = reader.levels().unwrap();
    assert_eq!(levels.iter().map(|level| level.window).collect::<Vec<_>>(), [0, 50_000]);
    assert_eq!(levels[1].windows, merged.windows);
    assert_eq!(levels[0].from, levels[1].to);
    assert_eq!(levels.iter().map(|level| level.writes).sum::<u64>(), 200);
    // Eight places were written again and again.
    let (then, now) = reader.overlap(50_000, 1000).unwrap();
    assert!(then > 0 && then < now, "{then} of {now}");
}

#[test]
fn a_moment_that_gets_its_name_while_a_step_runs_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let (mut journal, path, base) = make(directory.path());
    append(&mut journal, 200);
    journal.set_schedule(&"all:20us,50us:1h".parse().unwrap()).unwrap();
    let all = MergeOptions::default();
    let step = journal.begin_merge(&all, 20).unwrap();
    let outcome = step.run();
    // Both lie inside windows that the step has made already.
    journal.add_bookmark("late", 77, BEGIN + 77_000).unwrap();
    journal.add_image("later", "1.0", 91, BEGIN + 91_000).unwrap();
    let free = journal.space().free;
    let undone = journal.finish_merge(outcome).unwrap();
    assert_eq!((undone.steps, undone.windows), (1, 0), "{undone:?}");
    // What the step had is back: it was counted as free all along.
    assert_eq!(journal.space().free, free);
    assert!(journal.merge(&all, &mut |_| {}).unwrap().windows > 3);
    let open = |order| {
        let reader = JournalReader::open(&path).unwrap();
        let image =
            Image::open(reader, "1.0", Moment::Order(order), Backing::Base(&base), false, &mut |_, _| {})?;
        let mut read = vec![0; SECTORS as usize * 512];
        image.read_at(&mut read, 0)?;
        assert!(read == at_order(order), "order:{order}");
        image.is_current()
    };
    assert!(open(77).unwrap() && open(91).unwrap());
    assert!(matches!(open(78), Err(Error::Merged { .. })), "what has no name is gone");
    assert!(verify(&path, &mut |_, _| {}).unwrap().findings.is_empty());
    for refused in [
        journal.add_bookmark("inside", 78, BEGIN + 78_000),
        journal.add_image("inside", "1.0", 78, BEGIN + 78_000),
    ] {
        assert!(matches!(refused, Err(Error::Merged { .. })), "{refused:?}");
    }
    journal.add_bookmark("an end", 91, BEGIN + 91_000).unwrap();
    // A name that goes leaves the journal sound.
    journal.remove_image("later").unwrap();
    journal.remove_bookmark("late").unwrap();
    journal.remove_image("later").unwrap_err();
    append(&mut journal, 5);
    let report = verify(&path, &mut |_, _| {}).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

/// Three windows are reckoned to fit two segments, and don't: half of the input does.
#[test]
fn a_step_that_has_no_room_is_tried_with_less() {
    let directory = tempfile::tempdir().unwrap();
    let (mut journal, path, base) = make(directory.path());
    append(&mut journal, 200);
    journal.set_schedule(&"all:20us,8us:1h".parse().unwrap()).unwrap();
    let all = MergeOptions::default();
    let (mut windows, mut again) = (0, 0);
    loop {
        let outcome = journal.begin_merge(&all, 2).unwrap().run();
        let step = journal.finish_merge(outcome).unwrap();
        if step.steps == 0 {
            break;
        }
        windows += step.windows;
        again += u64::from(step.windows == 0);
    }
    assert!(again > 0 && windows > 20, "{again} of {windows}");
    let reader = JournalReader::open(&path).unwrap();
    let ends: Vec<u64> = reader.windows().unwrap().map(|window| window.unwrap().last_order).collect();
    assert_eq!((ends.len() as u64, reader.merged().0), (windows, ends[ends.len() - 1]));
    for order in ends.into_iter().step_by(5) {
        let reader = JournalReader::open(&path).unwrap();
        let at = Moment::Order(order);
        let image = Image::open(reader, "1.0", at, Backing::Base(&base), false, &mut |_, _| {}).unwrap();
        let mut read = vec![0; SECTORS as usize * 512];
        image.read_at(&mut read, 0).unwrap();
        assert!(read == at_order(order), "order:{order}");
    }
    assert!(verify(&path, &mut |_, _| {}).unwrap().findings.is_empty());
}

/// A window that a named moment ends before its time has what is stamped behind it too.
#[test]
fn a_gap_behind_a_named_moment_is_not_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let (mut journal, path, base) = make(directory.path());
    append(&mut journal, 49);
    lose(&mut journal, 49_100, 49_500);
    (51..150).for_each(|micros| write_both(&mut journal, micros, 40, Updated::Updated));
    journal.sync().unwrap();
    let refused = || {
        let reader = JournalReader::open(&path).unwrap();
        let at = Moment::Timestamp(BEGIN + 140_000);
        let image = Image::open(reader, "1.0", at, Backing::Base(&base), false, &mut |_, _| {});
        matches!(image, Err(Error::Gap { from, .. }) if from == BEGIN + 49_100)
    };
    assert!(refused());
    let all = MergeOptions::default();
    journal.set_schedule(&"all:5us,10us:1h".parse().unwrap()).unwrap();
    assert!(journal.merge(&all, &mut |_| {}).unwrap().windows >= 5);
    assert!(refused());
    // The last order of the window up to 50 µs, whose entry is a microsecond older.
    journal.add_bookmark("name", 49, BEGIN + 49_000).unwrap();
    journal.set_schedule(&"all:5us,10us:90us,50us:1h".parse().unwrap()).unwrap();
    let merged = journal.merge(&all, &mut |_| {}).unwrap();
    assert_eq!(merged.windows, 1);
    assert!(refused(), "entries are missing, and nothing says so any more");
    let report = verify(&path, &mut |_, _| {}).unwrap();
    assert_eq!(report.findings, []);
}

/// What was kept behind the last window goes with it, or nothing finer would ever be given up.
#[test]
fn what_is_behind_the_last_window_is_given_up_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let options = CreateOptions {
        bytes: Some(4 << 20),
        segment_bytes: Some(64 * 1024),
        // Nothing has to be rolled into a base.
        volumes: vec![Volume { technique: technique::BEFORE, ..Volume::aoe(0, 1, 0, SECTORS) }],
        ports: vec![Port { port: 0, kind: PortKind::Card, arbiter: 0, name: "port 0".into() }],
        writer: "facts".into(),
    };
    let path = directory.path().join("journal");
    let mut journal = Journal::create(&path, &options).unwrap();
    let write =
        |journal: &mut Journal, micros| write_kind(journal, Kind::Before, micros, 40, Updated::Updated);
    (1..50).for_each(|micros| write(&mut journal, micros));
    lose(&mut journal, 49_100, 49_500);
    (51..150).for_each(|micros| write(&mut journal, micros));
    journal.sync().unwrap();
    let all = MergeOptions::default();
    let mut merge = |schedule: &str| {
        journal.set_schedule(&schedule.parse().unwrap()).unwrap();
        let merged = journal.merge(&all, &mut |_| {}).unwrap();
        assert_eq!(verify(&path, &mut |_, _| {}).unwrap().findings, [], "{schedule}");
        if journal.tables().bookmarks.is_empty() {
            journal.add_bookmark("name", 49, BEGIN + 49_000).unwrap();
        }
        merged
    };
    merge("all:5us,10us:1h");
    assert_eq!(merge("all:5us,10us:90us,50us:1h").windows, 1);
    let merged = merge("all:5us,10us:90us,50us:95us");
    assert_eq!((merged.given_up, merged.segments_freed), (49, 1));
    let merged = merge("all:5us,10us:20us");
    assert!(merged.given_up >= 50 && merged.segments_freed > 0, "{merged:?}");
}

/// Entries of port 0 are missing.
fn lose(journal: &mut Journal, from: u64, to: u64) {
    let number = journal.end().order + 1;
    let contents = Gap {
        from_timestamp: (BEGIN + from).into(),
        from_number: (number - 1).into(),
        reason: (GapReason::Lost as u32).into(),
        reserved: 0.into(),
    };
    let mut header = EntryHeader::new(Kind::Gap);
    header.timestamp = (BEGIN + to).into();
    header.number = number.into();
    header.seal(contents.as_bytes());
    let gap = OwnedRecord { header, payload: contents.as_bytes().to_vec() };
    journal.append(&[gap.as_record()], &[Delivered { port: 0, timestamp: BEGIN + to }]).unwrap();
}

/// Writes as [`append`] makes them, with both images.
fn write_both(journal: &mut Journal, micros: u64, lba: u64, status: Updated) {
    write_kind(journal, Kind::Both, micros, lba, status);
}

fn write_kind(journal: &mut Journal, kind: Kind, micros: u64, lba: u64, status: Updated) {
    let order = journal.end().order + 1;
    let mut header = EntryHeader::new(kind);
    header.timestamp = (BEGIN + micros * 1000).into();
    header.number = order.into();
    header.flags = flags::CLOCK_LOCKED.into();
    header.set_lba(lba);
    header.sectors = 8.into();
    header.volume = 0.into();
    header.set_status(Journaled::Port, status);
    let payload: Vec<u8> = order.to_le_bytes().repeat(if kind == Kind::Both { 1024 } else { 512 });
    header.seal(&payload);
    let delivered = Delivered { port: 0, timestamp: header.timestamp.get() };
    journal.append(&[OwnedRecord { header, payload }.as_record()], &[delivered]).unwrap();
}

fn answer(journal: &mut Journal, micros: u64, number: u64, status: Updated, also: u16) {
    let mut header = EntryHeader::new(Kind::Completion);
    header.timestamp = (BEGIN + micros * 1000).into();
    header.number = number.into();
    header.flags = (flags::CLOCK_LOCKED | also).into();
    header.set_status(Journaled::Pending, status);
    header.seal(&[]);
    let delivered = Delivered { port: 0, timestamp: header.timestamp.get() };
    journal.append(&[OwnedRecord { header, payload: Vec::new() }.as_record()], &[delivered]).unwrap();
}

/// Between a write and its late answer nobody knows what the target had there; merged, this is said still, and of nothing else.
#[test]
fn merged_windows_say_what_a_late_answer_leaves_doubtful() {
    let directory = tempfile::tempdir().unwrap();
    let (mut journal, path, base) = make(directory.path());
    write_both(&mut journal, 1, 0, Updated::Pending);
    answer(&mut journal, 2, 1, Updated::Unknown, 0);
    // So many that the answer lies in another segment: an index says no more than that one came.
    (3..=30).for_each(|micros| write_both(&mut journal, micros, 16, Updated::Updated));
    answer(&mut journal, 31, 1, Updated::Updated, flags::LATE);
    write_both(&mut journal, 35, 24, Updated::Updated);
    write_both(&mut journal, 45, 0, Updated::Updated);
    (50..200).for_each(|micros| write_both(&mut journal, micros, 40, Updated::Updated));
    journal.sync().unwrap();
    let first_doubtful = |at: Moment, backing: Backing<'_>| {
        let image =
            Image::open(JournalReader::open(&path).unwrap(), "1.0", at, backing, false, &mut |_, _| {});
        let image = image.unwrap_or_else(|error| panic!("{at:?}: {error}"));
        let runs = image.runs(0, SECTORS * 512).unwrap();
        let doubtful: Vec<_> =
            runs.iter().filter(|run| run.doubtful).map(|run| (run.offset, run.bytes)).collect();
        assert!(doubtful.is_empty() || doubtful == [(0, 4096)], "{at:?}: {doubtful:?}");
        doubtful.len() == 1
    };
    let check = |every: u64| {
        for micros in (0..=80).step_by(every as usize) {
            let at = Moment::Timestamp(BEGIN + micros * 1000);
            assert_eq!(first_doubtful(at, Backing::Primary(&base)), (1..31).contains(&micros), "{at:?}");
            assert_eq!(first_doubtful(at, Backing::Base(&base)), (1..45).contains(&micros), "{at:?}");
        }
        // Of the windows up to 10, 20, 30, 40 and 50 µs.
        let orders = [9, 19, 29, 30, 32].into_iter().skip(every as usize / 20).step_by(every as usize / 10);
        for order in orders.chain([0]) {
            let at = Moment::Order(order);
            assert_eq!(first_doubtful(at, Backing::Primary(&base)), (1..30).contains(&order), "{at:?}");
            assert_eq!(first_doubtful(at, Backing::Base(&base)), (1..31).contains(&order), "{at:?}");
        }
        let report = verify(&path, &mut |_, _| {}).unwrap();
        assert_eq!(report.findings, []);
    };
    let all = MergeOptions::default();
    for (schedule, every) in [("all:20us,10us:1h", 10), ("all:20us,10us:40us,20us:1h", 20)] {
        journal.set_schedule(&schedule.parse().unwrap()).unwrap();
        assert!(journal.merge(&all, &mut |_| {}).unwrap().windows >= 5, "{schedule}");
        check(every);
    }
}
