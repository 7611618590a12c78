//! Files that aren't what they should be: one clear line, nothing damaged, nothing half-made left.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use system_tests::agent::{agent, agent_on_a_full_disk, program, Ran};
use system_tests::capture::{write_pcap, Request};

const SECTORS: u64 = 1024;

/// A small journal with its base, made once by a replay.
fn made() -> &'static Path {
    static MADE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = MADE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let frames: Vec<_> = (0..20u32)
            .map(|i| Request::write(i + 1, u64::from(i), 1 + i as u8 % 3, i as u8).frame())
            .collect();
        write_pcap(&folder.path().join("pcap"), &frames);
        image(&folder.path().join("base"), SECTORS);
        image(&folder.path().join("img"), SECTORS);
        agent(replay(folder.path(), &["--create", "--size", "16M"])).fine();
        folder
    });
    folder.path()
}

fn image(path: &Path, sectors: u64) {
    fs::File::create(path).unwrap().set_len(sectors * 512).unwrap();
}

fn replay(folder: &Path, more: &[&str]) -> Vec<String> {
    let path = |name: &str| folder.join(name).display().to_string();
    let (capture, primary) = (format!("0={}", path("pcap")), format!("1.0={}", path("img")));
    let mut arguments: Vec<String> =
        ["replay", "--capture", &capture, "--primary", &primary, "--journal", &path("journal")]
            .map(String::from)
            .into();
    arguments.extend(more.iter().map(|argument| argument.to_string()));
    arguments
}

fn restore(journal: &Path, base: &Path, out: &Path) -> Vec<String> {
    let path = |path: &Path| path.display().to_string();
    let (journal, base, out) = (path(journal), path(base), path(out));
    ["restore", &journal, "--volume", "1.0", "--base", &base, "--at", "end", "--to", &out]
        .map(String::from)
        .into()
}

/// A folder with copies of journal, base, image and capture.
fn copies() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    for name in ["journal", "base", "img", "pcap"] {
        fs::copy(made().join(name), folder.path().join(name)).unwrap();
    }
    let journal = folder.path().join("journal");
    (folder, journal)
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Every command that reads `journal` fails with these words, and leaves everything as it was.
fn all_fail(folder: &Path, journal: &Path, words: &[&str]) {
    let before = fs::read(journal).unwrap();
    let path = journal.display().to_string();
    let words: Vec<_> = words.iter().copied().chain([path.as_str()]).collect();
    agent(["verify", &path]).failed(1, &words);
    agent(["log", &path]).failed(1, &words);
    agent(restore(journal, &folder.join("base"), &folder.join("out"))).failed(1, &words);
    agent(replay(folder, &[])).failed(1, &words);
    assert!(fs::read(journal).unwrap() == before, "the journal is as it was");
    assert_eq!(names(folder), ["base", "img", "journal", "pcap"]);
}

#[test]
fn foreign_files_and_truncated_journals() {
    let (folder, journal) = copies();
    let whole = fs::read(&journal).unwrap();
    fs::write(&journal, b"this is somebody's letter to somebody else").unwrap();
    all_fail(folder.path(), &journal, &[]);
    fs::write(&journal, vec![0; 1 << 20]).unwrap();
    all_fail(folder.path(), &journal, &["not a Chronoswitch journal"]);
    fs::write(&journal, &whole[..whole.len() / 2]).unwrap();
    all_fail(folder.path(), &journal, &["truncated"]);
    fs::write(&journal, &whole[..100_000]).unwrap();
    all_fail(folder.path(), &journal, &["truncated"]);
}

#[test]
fn a_flipped_bit_in_a_payload_is_named_by_its_offset() {
    let (folder, journal) = copies();
    let mut bytes = fs::read(&journal).unwrap();
    // The last write's data, as nothing later covers them.
    let data = [19u8; 512];
    let at = bytes.windows(512).rposition(|window| window == data).unwrap();
    bytes[at + 77] ^= 0x10;
    fs::write(&journal, &bytes).unwrap();
    let (path, out) = (journal.display().to_string(), folder.path().join("out"));
    agent(["verify", &path]).failed(1, &[&path, "offset"]);
    agent(restore(&journal, &folder.path().join("base"), &out)).failed(1, &[&path, "offset"]);
    assert_eq!(names(folder.path()), ["base", "img", "journal", "pcap"]);
    assert!(fs::read(&journal).unwrap() == bytes);
}

#[test]
fn bases_that_do_not_fit() {
    let (folder, journal) = copies();
    let base = folder.path().join("base");
    for sectors in [SECTORS - 1, SECTORS + 1, 0] {
        image(&base, sectors);
        let name = base.display().to_string();
        agent(restore(&journal, &base, &folder.path().join("out"))).failed(1, &[&name, "not its base"]);
    }
    let missing = folder.path().join("missing");
    agent(restore(&journal, &missing, &folder.path().join("out"))).failed(1, &["missing", "No such file"]);
    assert_eq!(names(folder.path()), ["base", "img", "journal", "pcap"]);
}

#[test]
fn outputs_that_cannot_be() {
    let (folder, journal) = copies();
    let base = folder.path().join("base");
    let out = folder.path().join("no/such/folder");
    agent(restore(&journal, &base, &out)).failed(1, &["no/such/folder"]);
    let out = folder.path().join("out");
    fs::write(&out, b"precious").unwrap();
    agent(restore(&journal, &base, &out)).failed(1, &["out", "exists already", "--force"]);
    assert_eq!(fs::read(&out).unwrap(), b"precious");
    let onto_itself = restore(&journal, &base, &base);
    agent(onto_itself.iter().map(String::as_str).chain(["--force"])).failed(1, &["is the base itself"]);
    let forced = restore(&journal, &base, &out);
    agent(forced.iter().map(String::as_str).chain(["--force"])).fine();
    assert_eq!(fs::read(&out).unwrap().len() as u64, SECTORS * 512);
    agent(restore(&journal, &base, Path::new("/proc/out"))).failed(1, &["/proc/out"]);
    assert_eq!(names(folder.path()), ["base", "img", "journal", "out", "pcap"]);
}

#[test]
fn a_full_disk() {
    let (folder, journal) = copies();
    let before = fs::read(&journal).unwrap();
    // Sector 10 of the image is written, and the disk ends at sector 4.
    let out = folder.path().join("out");
    agent_on_a_full_disk(4, &restore(&journal, &folder.path().join("base"), &out)).failed(1, &["out"]);
    assert_eq!(names(folder.path()), ["base", "img", "journal", "pcap"], "no half-made image");
    assert!(fs::read(&journal).unwrap() == before);

    fs::remove_file(&journal).unwrap();
    let create = replay(folder.path(), &["--create", "--size", "16M"]);
    agent_on_a_full_disk(1024, &create).failed(1, &["journal"]);
    assert_eq!(names(folder.path()), ["base", "img", "pcap"], "no half-made journal");
}

#[test]
fn a_primary_that_fails_while_it_is_written() {
    let (folder, journal) = copies();
    // The journal's tables can be written below this, its batches can't.
    let more = replay(folder.path(), &[]);
    let failed = agent_on_a_full_disk(8, &more);
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert!(!failed.stderr.contains("panicked"), "{failed:?}");
    agent(["verify", &journal.display().to_string()]).fine();
    // With room again it goes on.
    agent(&more).fine();
    agent(["verify", &journal.display().to_string()]).fine();
}

#[test]
fn a_journal_without_room_says_so_and_stays_whole() {
    let folder = tempfile::tempdir().unwrap();
    let frames: Vec<_> =
        (0..400u32).map(|i| Request::write(i + 1, u64::from(i), 17, i as u8).frame()).collect();
    write_pcap(&folder.path().join("pcap"), &frames);
    image(&folder.path().join("img"), SECTORS);
    agent(replay(folder.path(), &["--create", "--size", "2M"])).failed(1, &["journal", "full"]);
    agent(["verify", &folder.path().join("journal").display().to_string()]).fine();
}

#[test]
fn images_and_captures_that_do_not_fit() {
    let (folder, journal) = copies();
    let before = fs::read(&journal).unwrap();
    image(&folder.path().join("img"), SECTORS * 2);
    agent(replay(folder.path(), &[])).failed(1, &["img", "not its image"]);
    fs::write(folder.path().join("img"), [0; 700]).unwrap();
    agent(replay(folder.path(), &[])).failed(1, &["img", "700 bytes"]);
    image(&folder.path().join("img"), SECTORS);
    agent(replay(folder.path(), &["--create"])).failed(1, &["journal", "exists already", "--create"]);
    let pcap = fs::read(folder.path().join("pcap")).unwrap();
    fs::write(folder.path().join("pcap"), &pcap[..pcap.len() - 3]).unwrap();
    agent(replay(folder.path(), &[])).failed(1, &["pcap", "offset", "the file ends"]);
    fs::write(folder.path().join("pcap"), b"no capture, this").unwrap();
    agent(replay(folder.path(), &[])).failed(1, &["pcap", "not a capture"]);
    fs::remove_file(folder.path().join("pcap")).unwrap();
    agent(replay(folder.path(), &[])).failed(1, &["pcap", "No such file"]);
    assert!(
        fs::read(&journal).unwrap() == before
            || agent(["verify", &journal.display().to_string()]).code == Some(0)
    );
}

#[test]
fn moments_and_volumes_that_are_not_there() {
    let (folder, journal) = copies();
    let with = |at: &str, volume: &str| {
        let mut arguments = restore(&journal, &folder.path().join("base"), &folder.path().join("out"));
        let places: Vec<_> =
            ["--at", "--volume"].map(|name| arguments.iter().position(|a| a == name).unwrap()).into();
        arguments[places[0] + 1] = at.into();
        arguments[places[1] + 1] = volume.into();
        agent(arguments)
    };
    with("order:21", "1.0").failed(1, &["order:21", "order:20"]);
    with("2200-01-01T00:00:00Z", "1.0").failed(1, &["2200-01-01"]);
    with("end", "4.2").failed(1, &["4.2", "1.0"]);
    with("yesterday", "1.0").failed(2, &["yesterday"]);
    with("order:0", "1.0").fine();
    assert!(fs::read(folder.path().join("out")).unwrap() == fs::read(folder.path().join("base")).unwrap());
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = Command::new(program())
        .args(["log".as_ref(), made().join("journal").as_os_str(), "--json".as_ref()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
}
