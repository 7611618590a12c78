//! Devices and files that fail: the error says which file, where, and what was being done; nothing durable is
//! lost, nothing is made up, nothing panics.

mod faulty_storage;
mod workload;

use faulty_storage::FaultyStorage;
use journal::base::BaseOptions;
use journal::image::{Backing, Image};
use journal::restore::{restore, RestoreOptions};
use journal::verify::verify_on;
use journal::{Error, Io, Journal, JournalReader, Moment};
use layout::entry::{EntryHeader, Kind};
use rand::Rng;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use workload::{borrowed, options, seed, Workload, SECTORS};

const BYTES: usize = 1 << 20;
const EIO: i32 = 5;

fn message<T>(result: Result<T, Error>) -> String {
    let text = result.err().expect("it fails").to_string();
    println!("  {text}");
    text
}

/// A journal with sealed segments, closed in order, or left by a kill.
fn made(workload: &mut Workload, close: bool) -> (Arc<FaultyStorage>, Vec<EntryHeader>) {
    let storage = Arc::new(FaultyStorage::new(BYTES));
    let mut journal = Journal::create_on(storage.clone(), &options(BYTES as u64)).unwrap();
    let mut all = Vec::new();
    for _ in 0..12 {
        let some: Vec<_> = (0..8).map(|_| workload.next()).collect();
        journal.append(&borrowed(&some), &workload.delivered()).unwrap();
        journal.sync().unwrap();
        all.extend(some.iter().map(|record| record.header));
    }
    let rest = workload.settle();
    journal.append(&borrowed(&rest), &workload.delivered()).unwrap();
    journal.sync().unwrap();
    all.extend(rest.iter().map(|record| record.header));
    if close {
        journal.close().unwrap();
    }
    (storage, all)
}

fn headers(storage: &Arc<FaultyStorage>) -> Vec<EntryHeader> {
    let reader = JournalReader::open_on(storage.clone()).unwrap();
    let records = reader.records().map(Result::unwrap);
    records.filter(|record| record.kind != Kind::Gap).map(|record| record.header).collect()
}

/// The error is about that read, in one line, with offset and length.
fn names_the_read(error: &Error, what: &str) {
    let text = error.to_string();
    assert!(
        text.starts_with("memory: reading ")
            && text.contains(" bytes at offset ")
            && text.contains("os error"),
        "{what}: {text}"
    );
}

#[test]
fn a_block_that_can_not_be_read_costs_nothing_else() {
    let seed = seed(51);
    for close in [true, false] {
        let (storage, all) = made(&mut Workload::new(seed), close);
        let image = storage.image();
        let written = storage.written();
        let mut served = 0;
        for block in 0..BYTES / 4096 {
            let range = block * 4096..(block + 1) * 4096;
            if !written.iter().any(|part| part.start < range.end && range.start < part.end) {
                continue;
            }
            let what = format!("seed {seed}, block at {}", range.start);
            let fresh = || Arc::new(FaultyStorage::from_image(image.clone()));
            // A reader: what it gives is right, and what it can't give it names.
            let storage = fresh();
            storage.unreadable(range.clone(), EIO);
            match JournalReader::open_on(storage.clone()) {
                Err(error) => names_the_read(&error, &what),
                Ok(reader) => {
                    for record in reader.records() {
                        match record {
                            Ok(record) if record.kind == Kind::Gap => {}
                            Ok(record) => {
                                assert!(all.contains(&record.header), "{what}: made up");
                                if let Err(error) = reader.payload(&record) {
                                    names_the_read(&error, &what);
                                }
                            }
                            Err(error) => names_the_read(&error, &what),
                        }
                    }
                }
            }
            drop(verify_on(&*storage, &mut |_, _| {}));
            // An owner: it opens or says why not, and cuts nothing off.
            let storage = fresh();
            storage.unreadable(range.clone(), EIO);
            match Journal::open_on(storage.clone(), "owner") {
                Ok(journal) => {
                    served += usize::from(!journal.opened().repaired.is_empty());
                    drop(journal);
                }
                Err(error) => names_the_read(&error, &what),
            }
            storage.readable();
            let report = verify_on(&*storage, &mut |_, _| {}).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(report.findings, [], "{what}");
            assert_eq!(headers(&storage), all, "{what}: something was cut off");
            drop(Journal::open_on(storage.clone(), "afterwards").unwrap());
            assert_eq!(headers(&storage), all, "{what}");
        }
        assert_eq!(served, 6, "superblocks, notes and tables are there twice");
    }
}

#[test]
fn an_image_names_what_can_not_be_read() {
    let mut workload = Workload::new(seed(52));
    let (storage, _) = made(&mut workload, true);
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    std::fs::write(&base, vec![0; SECTORS as usize * 512]).unwrap();
    let expected = workload.image(&vec![0; SECTORS as usize * 512], 0, workload.writes.len());
    let mut failed = 0;
    for block in 0..BYTES / 4096 {
        storage.unreadable(block * 4096..(block + 1) * 4096, EIO);
        let opened = JournalReader::open_on(storage.clone()).and_then(|reader| {
            Image::open(reader, "7.1", Moment::End, Backing::Base(&base), false, &mut |_, _| {})
        });
        match opened {
            Err(error) => names_the_read(&error, "opening"),
            Ok(image) => {
                for at in (0..expected.len()).step_by(4096) {
                    let mut part = vec![0; 4096];
                    match image.read_at(&mut part, at as u64) {
                        Ok(()) => assert!(part == expected[at..at + 4096]),
                        Err(error) => {
                            names_the_read(&error, "reading");
                            failed += 1;
                        }
                    }
                }
            }
        }
        storage.readable();
    }
    assert!(failed > 20, "payloads were hit: {failed}");
}

#[test]
fn short_reads_make_no_difference() {
    let mut workload = Workload::new(seed(53));
    let (storage, all) = made(&mut workload, true);
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    std::fs::write(&base, vec![0; SECTORS as usize * 512]).unwrap();
    let expected = workload.image(&vec![0; SECTORS as usize * 512], 0, workload.writes.len());
    for _ in 0..20 {
        storage.at_most(workload.rng.random_range(1..5000));
        assert_eq!(headers(&storage), all);
        let reader = JournalReader::open_on(storage.clone()).unwrap();
        let image =
            Image::open(reader, "7.1", Moment::End, Backing::Base(&base), false, &mut |_, _| {}).unwrap();
        let mut read = vec![0; expected.len()];
        image.read_at(&mut read, 0).unwrap();
        assert!(read == expected);
    }
}

/// A journal in a file, and a base beside it.
struct Files {
    folder: tempfile::TempDir,
    workload: Workload,
}

impl Files {
    fn new(seed: u64) -> Self {
        let files = Self { folder: tempfile::tempdir().unwrap(), workload: Workload::new(seed) };
        std::fs::write(files.path("base"), vec![7; SECTORS as usize * 512]).unwrap();
        files
    }
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
    fn fill(&mut self, journal: &mut Journal, records: usize) -> Result<u64, Error> {
        let some: Vec<_> = (0..records).map(|_| self.workload.next()).collect();
        journal.append(&borrowed(&some), &self.workload.delivered())
    }
    fn create(&mut self, io: Io) -> Journal {
        let mut journal = Journal::create_with(&self.path("journal"), &options(2 << 20), io).unwrap();
        self.fill(&mut journal, 80).unwrap();
        journal.sync().unwrap();
        journal
    }
}

fn cut(path: &Path, bytes: u64) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(bytes).unwrap();
}

#[test]
fn a_journal_that_shrinks_under_a_reader_or_an_owner() {
    for io in [Io::Buffered, Io::Direct] {
        let mut files = Files::new(seed(54));
        let path = files.path("journal");
        let mut journal = files.create(io);
        let whole = std::fs::read(&path).unwrap();
        let reader = JournalReader::open(&path).unwrap();
        let records: Vec<_> = reader.records().map(Result::unwrap).collect();
        let image = Image::open(
            JournalReader::open(&path).unwrap(),
            "7.1",
            Moment::End,
            Backing::Base(&files.path("base")),
            false,
            &mut |_, _| {},
        )
        .unwrap();
        cut(&path, 200_000);
        // A reader.
        let texts: Vec<_> = reader.records().filter_map(Result::err).map(|error| error.to_string()).collect();
        assert!(
            texts.iter().all(|text| text.contains("journal: truncated: it has 200000 bytes")),
            "{texts:?}"
        );
        assert!(!texts.is_empty());
        let last = records.iter().rfind(|record| record.header.payload_bytes.get() > 0).unwrap();
        assert!(message(reader.payload(last)).contains("journal: truncated"));
        let mut bytes = vec![0; image.bytes() as usize];
        assert!(message(image.read_at(&mut bytes, 0)).contains("journal: truncated"));
        assert!(message(JournalReader::open(&path)).contains("journal: truncated: it has 200000 bytes"));
        // The owner acknowledges nothing more, though its writes make the file longer again.
        files.fill(&mut journal, 10).unwrap();
        let text = message(journal.sync());
        assert!(
            text.contains("journal: making it durable") && text.contains("the file was cut from"),
            "{text}"
        );
        assert!(matches!(journal.sync(), Err(Error::Stopped { .. })));
        drop(journal);
        assert!(Journal::open(&path, "again").is_err());
        // Put back as it was, it goes on.
        std::fs::write(&path, &whole).unwrap();
        let journal = Journal::open(&path, "again").unwrap();
        assert_eq!(journal.end().order, reader.summary().order);
    }
}

#[test]
fn a_base_or_primary_that_is_cut_under_an_open_image() {
    let mut files = Files::new(seed(55));
    let (path, base) = (files.path("journal"), files.path("base"));
    files.create(Io::default()).close().unwrap();
    let open = || {
        let reader = JournalReader::open(&path).unwrap();
        Image::open(reader, "7.1", Moment::Order(1), Backing::Base(&base), false, &mut |_, _| {}).unwrap()
    };
    let image = open();
    let mut bytes = vec![0; image.bytes() as usize];
    image.read_at(&mut bytes, 0).unwrap();
    cut(&base, 4096);
    let text = message(image.read_at(&mut bytes, 0));
    assert!(
        text.contains("base: reading ") && text.contains("ends at 4096") && text.contains("cut short"),
        "{text}"
    );
    image.read_at(&mut bytes[..512], 0).unwrap();
    assert!(message(JournalReader::open(&path).and_then(|reader| {
        Image::open(reader, "7.1", Moment::End, Backing::Base(&base), false, &mut |_, _| {})
    }))
    .contains("it has 4096 bytes"));
    std::fs::write(&base, vec![7; SECTORS as usize * 512]).unwrap();
    image.read_at(&mut bytes, 0).unwrap();

    // What is cut while an image is written from it is no hole.
    let out = files.path("out");
    let options = RestoreOptions {
        volume: "7.1",
        backing: Backing::Base(&base),
        at: Moment::Order(0),
        out: &out,
        force: false,
        allow_gaps: false,
    };
    let text = message(restore(JournalReader::open(&path).unwrap(), &options, &mut |progress| {
        if progress.stage == journal::restore::Stage::Reading {
            cut(&base, 8192);
        }
    }));
    // It is looked at once the map is there, which says how large it has to be.
    assert!(text.contains("base: ") && text.contains("it has 8192 bytes"), "{text}");
    assert!(!out.exists());
    // And a primary, while a base is made of it.
    std::fs::write(&base, vec![7; SECTORS as usize * 512]).unwrap();
    let mut owner = Journal::open_ports_closed(&path, "base").unwrap();
    let made = files.path("made");
    let options = BaseOptions { volume: "7.1", primary: &base, base: &made, replace: false };
    let copy = owner.begin_base(&options).unwrap();
    cut(&base, 4096);
    let text = message(copy.copy(&mut |_, _| {}));
    assert!(text.contains("base: ") && text.contains("cut short"), "{text}");
    assert!(!made.exists());
}

#[test]
fn what_is_no_file_is_refused_and_not_waited_for() {
    let mut files = Files::new(seed(56));
    let path = files.path("journal");
    files.create(Io::default()).close().unwrap();
    let fifo = files.path("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let folder = files.folder.path().to_owned();
    for (not, words) in [
        (fifo.as_path(), "a pipe, socket or character device"),
        (Path::new("/dev/null"), "a pipe, socket or character device"),
        (folder.as_path(), "directory"),
    ] {
        let name = not.display().to_string();
        for text in [
            message(JournalReader::open(not)),
            message(Journal::open(not, "test")),
            message(Journal::open_ports_closed(not, "test")),
            message(JournalReader::open(&path).and_then(|reader| {
                Image::open(reader, "7.1", Moment::End, Backing::Base(not), false, &mut |_, _| {})
            })),
            message(JournalReader::open(&path).and_then(|reader| {
                Image::open(reader, "7.1", Moment::End, Backing::Primary(not), false, &mut |_, _| {})
            })),
        ] {
            assert!(text.starts_with(&name) && text.to_lowercase().contains(words), "{text}");
        }
        assert!(message(Journal::create(not, &options(2 << 20))).contains("exists already"));
    }
    // A label that is a FIFO isn't waited for either.
    let base = files.path("base");
    std::fs::rename(&fifo, files.path("base.chronoswitch")).unwrap();
    let text = message(JournalReader::open(&path).and_then(|reader| {
        Image::open(reader, "7.1", Moment::End, Backing::Base(&base), false, &mut |_, _| {})
    }));
    assert!(text.contains("base.chronoswitch: corrupt at offset 0"), "{text}");
}

#[test]
fn a_second_owner_is_told_who_the_first_is() {
    let mut files = Files::new(seed(57));
    let journal = files.create(Io::default());
    let text = message(Journal::open(&files.path("journal"), "second"));
    let process = format!("in use by another agent (process {})", std::process::id());
    assert!(text.contains(&process) && text.contains("read beside it"), "{text}");
    drop(journal);
    Journal::open(&files.path("journal"), "second").unwrap();
}

/// A small file system of its own, if the test may mount one.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn tmpfs(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted =
            run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "none", &text(folder.path())]);
        if !mounted {
            println!("skipped: this user may not mount a tmpfs");
        }
        mounted.then_some(Self(folder))
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run("umount", &["--lazy", &text(self.0.path())]);
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn run(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_full_disk_leaves_nothing_half_made() {
    let Some(disk) = Mounted::tmpfs("600k") else { return };
    let mut files = Files::new(seed(58));
    // Everything is allocated at once: a journal that doesn't fit is refused before anything depends on it.
    let text = message(Journal::create(&disk.path("journal"), &options(2 << 20)));
    assert!(text.contains("journal: allocating ") && text.contains("No space left"), "{text}");
    assert_eq!(names(disk.0.path()), [""; 0]);
    let path = files.path("journal");
    files.create(Io::default()).close().unwrap();
    std::fs::write(disk.path("ballast"), vec![1; 520 * 1024]).unwrap();
    let (base, out) = (files.path("base"), disk.path("out"));
    let options = RestoreOptions {
        volume: "7.1",
        backing: Backing::Base(&base),
        at: Moment::End,
        out: &out,
        force: false,
        allow_gaps: false,
    };
    let text = message(restore(JournalReader::open(&path).unwrap(), &options, &mut |_| {}));
    assert!(
        text.contains("out: writing ") && text.contains("at offset") && text.contains("No space left"),
        "{text}"
    );
    let mut owner = Journal::open_ports_closed(&path, "base").unwrap();
    let made = BaseOptions { volume: "7.1", primary: &base, base: &out, replace: false };
    let text = message(owner.create_base(&made, &mut |_, _| {}));
    assert!(text.contains("out: writing ") && text.contains("No space left"), "{text}");
    assert_eq!(names(disk.0.path()), ["ballast"]);
    // The journal is as it was, and takes a base elsewhere.
    let elsewhere = files.path("elsewhere");
    owner.create_base(&BaseOptions { base: &elsewhere, ..made }, &mut |_, _| {}).unwrap();
}

#[test]
fn a_file_system_without_direct_io_is_written_through_the_page_cache() {
    // tmpfs took O_DIRECT never, or of late always: both have to do.
    let Some(disk) = Mounted::tmpfs("8m") else { return };
    let mut workload = Workload::new(seed(59));
    let path = disk.path("journal");
    let mut journal = Journal::create_with(&path, &options(2 << 20), Io::Direct).unwrap();
    let some: Vec<_> = (0..40).map(|_| workload.next()).collect();
    journal.append(&borrowed(&some), &workload.delivered()).unwrap();
    journal.sync().unwrap();
    drop(journal);
    let journal = Journal::open_with_io(&path, "again", Io::Direct).unwrap();
    assert_eq!(journal.end().order, workload.writes.len() as u64);
}

#[test]
fn a_file_system_that_is_read_only() {
    let Some(disk) = Mounted::tmpfs("8m") else { return };
    let mut workload = Workload::new(seed(60));
    let path = disk.path("journal");
    let mut journal = Journal::create(&path, &options(2 << 20)).unwrap();
    let some: Vec<_> = (0..40).map(|_| workload.next()).collect();
    journal.append(&borrowed(&some), &workload.delivered()).unwrap();
    journal.close().unwrap();
    assert!(run("mount", &["-o", "remount,ro", &text(disk.0.path())]));
    let text = message(Journal::open(&path, "owner"));
    assert!(text.contains("journal: opening for writing: Read-only file system"), "{text}");
    let text = message(Journal::create(&disk.path("other"), &options(2 << 20)));
    assert!(text.contains("other: creating it: Read-only file system"), "{text}");
    // Reading goes on.
    let reader = JournalReader::open(&path).unwrap();
    assert_eq!(reader.summary().order, workload.writes.len() as u64);
}

/// A block device over a file, if the test may make one.
struct Loop(String);

impl Loop {
    fn over(file: &Path) -> Option<Self> {
        let output = Command::new("losetup").args(["--find", "--show", &text(file)]).output().ok()?;
        let device = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() || device.is_empty() {
            println!("skipped: no loop device to be had");
            return None;
        }
        // Whoever had it last may have left it read-only.
        run("blockdev", &["--setrw", &device]);
        Some(Self(device))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run("blockdev", &["--setrw", &self.0]);
        run("losetup", &["--detach", &self.0]);
    }
}

/// Opens a journal that nobody owns. A process that another test starts has this one's descriptors, and with them the
/// lock, for the moment between its fork and its exec.
fn open_unowned(path: &Path) -> Journal {
    for _ in 0..100 {
        match Journal::open(path, "again") {
            Err(Error::Locked { .. }) => std::thread::sleep(std::time::Duration::from_millis(10)),
            other => return other.unwrap(),
        }
    }
    panic!("{}: somebody has it open", path.display())
}

#[test]
fn a_device_that_goes_read_only_under_its_owner() {
    for io in [Io::Buffered, Io::Direct] {
        let mut files = Files::new(seed(61));
        std::fs::write(files.path("disk"), vec![0; 4 << 20]).unwrap();
        let Some(device) = Loop::over(&files.path("disk")) else { return };
        let path = PathBuf::from(&device.0);
        let mut journal =
            Journal::create_with(&path, &journal::CreateOptions { bytes: None, ..options(0) }, io).unwrap();
        files.fill(&mut journal, 60).unwrap();
        let durable = journal.sync().unwrap();
        assert!(run("blockdev", &["--setro", &device.0]));
        let failed = files.fill(&mut journal, 10).and_then(|_| journal.sync());
        if failed.is_ok() {
            println!("skipped: this kernel lets whoever has the device open write on");
            return;
        }
        let text = message(failed);
        assert!(
            text.starts_with(&device.0) && (text.contains("writing ") || text.contains("durable")),
            "{text}"
        );
        assert!(matches!(journal.sync(), Err(Error::Stopped { .. })));
        drop(journal);
        let text = message(Journal::open(&path, "again"));
        assert!(text.starts_with(&device.0), "{text}");
        let reader = JournalReader::open(&path).unwrap();
        assert!(reader.summary().order >= durable.order);
        assert!(run("blockdev", &["--setrw", &device.0]));
        let journal = open_unowned(&path);
        assert!(journal.end().order >= durable.order);
        journal.close().unwrap();
        // A device is no base yet: its label would have no place.
        let mut owner = Journal::open_ports_closed(&path, "base").unwrap();
        let options =
            BaseOptions { volume: "7.1", primary: &files.path("base"), base: &path, replace: false };
        let text = message(owner.create_base(&options, &mut |_, _| {}));
        assert!(text.contains("block device") && text.contains("regular file for now"), "{text}");
        assert!(message(owner.adopt_base("7.1", &path, false)).contains("block device"));
    }
}
