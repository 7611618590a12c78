//! What can't be done is refused in one clear line, and leaves everything as it was.

mod faulty_storage;
mod workload;

use journal::image::Backing;
use journal::restore::{restore, RestoreOptions, Restored};
use journal::verify::verify;
use journal::{Delivered, Error, Journal, JournalReader, Moment, OwnedRecord, PreviousEnd, Record};
use layout::entry::{Gap, GapReason, Kind, Updated};
use layout::journal_file::SUPERBLOCK_OFFSETS;
use std::path::{Path, PathBuf};
use workload::{borrowed, options, seed, Workload, SECTORS};
use zerocopy::FromBytes;

struct Place {
    directory: tempfile::TempDir,
    workload: Workload,
}

impl Place {
    /// A closed journal of some records.
    fn new(seed: u64) -> Self {
        let place = Self { directory: tempfile::tempdir().unwrap(), workload: Workload::new(seed) };
        std::fs::write(place.base(), vec![0u8; SECTORS as usize * 512]).unwrap();
        place
    }
    fn journal(&self) -> PathBuf {
        self.directory.path().join("journal")
    }
    fn base(&self) -> PathBuf {
        self.directory.path().join("base")
    }
    fn out(&self) -> PathBuf {
        self.directory.path().join("out")
    }
    fn create(&mut self, records: usize) -> Journal {
        let mut journal = Journal::create(&self.journal(), &options(2 << 20)).unwrap();
        let some: Vec<OwnedRecord> = (0..records).map(|_| self.workload.next()).collect();
        journal.append(&borrowed(&some), &self.workload.delivered()).unwrap();
        journal.sync().unwrap();
        journal
    }
    fn restore(&self, at: Moment, change: impl Fn(&mut RestoreOptions<'_>)) -> Result<Restored, Error> {
        let reader = JournalReader::open(&self.journal())?;
        let (base, out) = (self.base(), self.out());
        let mut options = RestoreOptions {
            volume: "7.1",
            backing: Backing::Base(&base),
            at,
            out: &out,
            force: false,
            allow_gaps: false,
        };
        change(&mut options);
        restore(reader, &options, &mut |_| {})
    }
    fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn message<T>(result: Result<T, Error>) -> String {
    result.err().expect("it is refused").to_string()
}

#[test]
fn a_restore_that_fails_leaves_nothing() {
    let mut place = Place::new(seed(41));
    place.create(40).close().unwrap();
    let before = place.files();
    let text = message(place.restore(Moment::End, |options| options.volume = "9.9"));
    assert!(text.contains("no volume 9.9") && text.contains("7.1, 7.2"), "{text}");
    std::fs::write(place.base(), vec![0u8; 1000]).unwrap();
    let text = message(place.restore(Moment::End, |_| {}));
    assert!(text.contains("base") && text.contains("1000 bytes") && text.contains("131072"), "{text}");
    std::fs::write(place.base(), vec![0u8; SECTORS as usize * 512]).unwrap();
    let text = message(place.restore(Moment::Order(1000), |_| {}));
    assert!(text.contains("order:1000"), "{text}");
    let text = message(place.restore(Moment::Timestamp(u64::MAX / 2), |_| {}));
    assert!(text.contains("knows of nothing after"), "{text}");
    let text = message(place.restore(Moment::End, |options| options.out = Path::new("/nowhere/out")));
    assert!(text.contains("/nowhere/out"), "{text}");
    // A damaged payload.
    let reader = JournalReader::open(&place.journal()).unwrap();
    let entry = reader
        .entries()
        .unwrap()
        .map(Result::unwrap)
        .find(|entry| {
            let header = &entry.record.header;
            header.volume.get() == 0 && header.payload_bytes.get() > 0 && entry.updated == Updated::Updated
        })
        .unwrap();
    let sound = std::fs::read(place.journal()).unwrap();
    let mut damaged = sound.clone();
    damaged[entry.record.location.payload as usize + 5] ^= 1;
    std::fs::write(place.journal(), &damaged).unwrap();
    let text = message(place.restore(Moment::Order(entry.order), |_| {}));
    assert!(
        text.contains("journal") && text.contains(&format!("offset {}", entry.record.location.payload)),
        "{text}"
    );
    std::fs::write(place.journal(), &sound).unwrap();
    assert_eq!(place.files(), before);

    place.restore(Moment::Order(0), |_| {}).unwrap();
    let text = message(place.restore(Moment::End, |_| {}));
    assert!(text.contains("out: exists"), "{text}");
    assert_eq!(std::fs::read(place.out()).unwrap(), std::fs::read(place.base()).unwrap(), "it is as it was");
    place.restore(Moment::End, |options| options.force = true).unwrap();
    assert!(std::fs::read(place.out()).unwrap() != std::fs::read(place.base()).unwrap());
    let base: &'static Path = Box::leak(place.base().into_boxed_path());
    let text = message(place.restore(Moment::End, |options| {
        options.force = true;
        options.out = base;
    }));
    assert!(text.contains("is the base itself"), "{text}");
    assert_eq!(place.files(), ["base", "journal", "out"]);
}

#[test]
fn an_unclean_stop_is_a_gap_and_images_do_not_cross_it_unasked() {
    let mut place = Place::new(seed(42));
    drop(place.create(30));
    let before = place.workload.writes.len() as u64;
    assert!(!JournalReader::open(&place.journal()).unwrap().summary().ended);
    // A session without records doesn't make the gap forgotten.
    let journal = Journal::open(&place.journal(), "idle").unwrap();
    assert_eq!(journal.opened().previous, PreviousEnd::Unclean);
    journal.close().unwrap();
    let mut journal = Journal::open(&place.journal(), "next").unwrap();
    assert_eq!(journal.opened().previous, PreviousEnd::Clean);
    let last = place.workload.stamp;
    place.workload.stamp += 1_000_000;
    let more: Vec<OwnedRecord> = (0..10).map(|_| place.workload.next()).collect();
    journal.append(&borrowed(&more), &place.workload.delivered()).unwrap();
    journal.close().unwrap();

    let reader = JournalReader::open(&place.journal()).unwrap();
    let gaps: Vec<_> =
        reader.records().map(Result::unwrap).filter(|record| record.kind == Kind::Gap).collect();
    assert_eq!(gaps.iter().map(|gap| gap.header.port).collect::<Vec<_>>(), [0, 1, 2]);
    for record in &gaps {
        let payload = reader.payload(record).unwrap();
        let gap = Gap::read_from_bytes(&payload).unwrap();
        assert_eq!(gap.from_timestamp.get(), last);
        assert_eq!(gap.reason.get(), GapReason::UncleanStop as u32);
        assert_eq!(record.header.timestamp.get(), more[0].header.timestamp.get() - 1);
    }
    let report = verify(&place.journal(), &mut |_, _| {}).unwrap();
    assert_eq!((report.findings.len(), report.gaps, report.unclean_sessions), (0, 3, 1));
    // Up to the gap every moment is as good as ever; behind it one has to ask.
    place.restore(Moment::Order(before), |_| {}).unwrap();
    let text = message(place.restore(Moment::Order(before + 1), |options| options.force = true));
    assert!(text.contains("port 0") && text.contains("without ending its session"), "{text}");
    let restored = place
        .restore(Moment::End, |options| {
            options.force = true;
            options.allow_gaps = true;
        })
        .unwrap();
    assert_eq!(restored.gaps.iter().map(|gap| gap.port).collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn files_that_are_no_journal_or_not_whole_say_so() {
    let mut place = Place::new(seed(43));
    place.create(40).close().unwrap();
    let sound = std::fs::read(place.journal()).unwrap();
    let try_with = |bytes: &[u8], words: &[&str]| {
        std::fs::write(place.journal(), bytes).unwrap();
        let texts = [
            message(verify(&place.journal(), &mut |_, _| {})),
            message(JournalReader::open(&place.journal())),
            message(Journal::open(&place.journal(), "test")),
        ];
        for text in texts {
            assert!(words.iter().all(|word| text.contains(word)) && text.contains("journal: "), "{text}");
        }
        assert_eq!(std::fs::read(place.journal()).unwrap(), bytes, "nothing was changed");
    };
    try_with(&[], &["not a Chronoswitch journal", "0 bytes"]);
    try_with(&vec![0x55; 1 << 20], &["not a Chronoswitch journal", "magic"]);
    try_with(&sound[..sound.len() / 2], &["truncated", &sound.len().to_string()]);
    let mut newer = sound.clone();
    for offset in SUPERBLOCK_OFFSETS {
        let at = offset as usize;
        newer[at + 8] = 9;
        newer[at + 12..at + 16].fill(0);
        let sum = layout::crc::crc32c(&newer[at..at + 4096]);
        newer[at + 12..at + 16].copy_from_slice(&sum.to_le_bytes());
    }
    try_with(&newer, &["version 9", "reads version 1"]);
    let text = message(JournalReader::open(Path::new("/nowhere/journal")));
    assert!(text.starts_with("/nowhere/journal: opening"), "{text}");
    let text = message(Journal::create(Path::new("/nowhere/journal"), &options(2 << 20)));
    assert!(text.starts_with("/nowhere/journal: "), "{text}");
    let text = message(Journal::create(&place.directory.path().join("small"), &options(10_000)));
    assert!(text.contains("too small"), "{text}");
    assert_eq!(place.files(), ["base", "journal"]);
}

#[test]
fn records_that_are_not_what_they_should_be_are_refused() {
    let mut place = Place::new(seed(44));
    let mut journal = place.create(10);
    let order = journal.end().order;
    let sound = loop {
        let record = place.workload.next();
        if record.header.payload_bytes.get() > 0 {
            break record;
        }
    };
    let mut refuse = |words: &str, change: &dyn Fn(&mut OwnedRecord)| {
        let mut record = sound.clone();
        change(&mut record);
        let text = message(journal.append(&[record.as_record()], &[]));
        assert!(text.contains(words) && text.starts_with("record 0 of port"), "{words}: {text}");
        assert_eq!(journal.end().order, order);
    };
    refuse("CRC of its header", &|r| r.header.lba[0] ^= 1);
    refuse("CRC of its payload", &|r| r.payload[3] ^= 1);
    refuse("bytes of payload", &|r| r.payload.truncate(100));
    let resealed = |change: fn(&mut OwnedRecord)| {
        move |record: &mut OwnedRecord| {
            change(record);
            let payload = record.payload.clone();
            record.header.seal(&payload);
        }
    };
    refuse("kind 77 is unknown", &resealed(|r| r.header.kind = 77));
    refuse("encoding 9 is unknown", &resealed(|r| r.header.encoding = 9));
    refuse("volume index 5", &resealed(|r| r.header.volume = 5.into()));
    refuse("port is not in", &resealed(|r| r.header.port = 9));
    refuse("stamp 5 after", &resealed(|r| r.header.timestamp = 5.into()));
    refuse("number 0 after", &resealed(|r| r.header.number = 0.into()));
    refuse("sectors", &resealed(|r| r.header.sectors = 0.into()));
    refuse("watermark", &resealed(|r| r.header.kind = Kind::Watermark as u8));
    // A record that lies in two parts, as at a ring's end.
    let (front, back) = sound.payload.split_at(100);
    let record = Record { header: sound.header, payload: [front, back] };
    let delivered = Delivered { port: sound.header.port, timestamp: sound.header.timestamp.get() };
    journal.append(&[record], &[delivered]).unwrap();
    journal.close().unwrap();
    let reader = JournalReader::open(&place.journal()).unwrap();
    let last = reader.records().map(Result::unwrap).last().unwrap();
    assert_eq!(reader.payload(&last).unwrap(), sound.payload);
    assert!(verify(&place.journal(), &mut |_, _| {}).unwrap().is_sound());
}

#[test]
fn a_file_that_lost_its_last_byte_is_not_whole_whatever_its_size_was() {
    for bytes in [1u64 << 21, 3 << 20, (1 << 24) + 12_345, 64 << 20] {
        let place = Place::new(1);
        Journal::create(&place.journal(), &options(bytes)).unwrap().close().unwrap();
        let length = std::fs::metadata(place.journal()).unwrap().len();
        assert!(length <= bytes && JournalReader::open(&place.journal()).is_ok());
        let file = std::fs::OpenOptions::new().write(true).open(place.journal()).unwrap();
        file.set_len(length - 1).unwrap();
        assert!(JournalReader::open(&place.journal()).is_err(), "{bytes} bytes asked for, {length} made");
    }
}
