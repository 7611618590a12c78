//! One owner: a daemon that holds the journal while it ingests, and every command through it or beside it.

use journal::{CreateOptions, Journal, PreviousEnd};
use serde_json::{json, Value};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use system_tests::agent::{agent, program, Ran};
use system_tests::capture::{write_pcap, Request};
use system_tests::daemon::Daemon;
use system_tests::model::{CaptureSet, Volume};
use system_tests::served::{client, Served};

/// Size of the volume 1.0 that the crafted captures write to.
const VOLUME_BYTES: u64 = 1 << 20;

/// A folder with a journal's name, and a volume.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        for name in ["disk", "base"] {
            std::fs::File::create(place.path(name)).unwrap().set_len(VOLUME_BYTES).unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A capture of `writes` writes all over the volume, and the arguments that replay it.
    fn capture(&self, writes: u32, sectors: u8) -> Vec<String> {
        let frames: Vec<_> = (1..=writes).map(|tag| write(tag, sectors).frame()).collect();
        let file = self.path(&format!("{writes}.pcap"));
        write_pcap(&file, &frames);
        let disk = self.text("disk");
        vec!["--capture".into(), format!("0={}", file.display()), "--primary".into(), format!("1.0={disk}")]
    }

    /// Arguments of a daemon that makes its journal and replays that.
    fn create(&self, size: &str, replay: Vec<String>) -> Vec<String> {
        [vec!["--create".into(), "--size".into(), size.into()], replay].concat()
    }

    fn log(&self) -> Vec<Value> {
        agent(["log", &self.text("journal"), "--json"]).fine().json_lines()
    }

    /// The volume at a moment is what primary has.
    #[track_caller]
    fn primary_is(&self, at: &str) {
        let out = self.path("restored");
        self.restore(at, &["--to", &out.display().to_string(), "--force"]).fine();
        assert!(
            std::fs::read(out).unwrap() == std::fs::read(self.path("disk")).unwrap(),
            "{at} is not primary"
        );
    }

    fn restore(&self, at: &str, more: &[&str]) -> Ran {
        let (journal, base) = (self.text("journal"), self.text("base"));
        let restore = ["restore", &journal, "--volume", "1.0", "--base", &base, "--at", at];
        agent(restore.iter().chain(more))
    }

    fn resync(&self, more: &[&str]) -> Ran {
        let (journal, base, disk) = (self.text("journal"), self.text("base"), self.text("disk"));
        let resync = ["resync", &journal, "--volume", "1.0", "--primary", &disk, "--base", &base, "--json"];
        agent(resync.iter().chain(more))
    }

    #[track_caller]
    fn sound(&self) -> Value {
        agent(["verify", &self.text("journal"), "--json"]).fine().json()
    }

    /// How the last session ended, as the next owner sees it.
    fn last_end(&self) -> PreviousEnd {
        let journal = Journal::open_ports_closed(&self.path("journal"), "system-tests").unwrap();
        let previous = journal.opened().previous;
        journal.close().unwrap();
        previous
    }
}

/// A write of a crafted capture.
fn write(tag: u32, sectors: u8) -> Request {
    let places = VOLUME_BYTES / 512 / u64::from(sectors);
    let lba = u64::from(tag) * 7 % places * u64::from(sectors);
    Request::write(tag, lba, sectors, (tag % 251) as u8 + 1)
}

fn is_ingesting(status: &Value) -> bool {
    status["doing"]["done"].as_u64().is_some_and(|done| done > 0) && status["order"].as_u64() > Some(20)
}

fn rests(status: &Value) -> bool {
    status["doing"].is_null()
}

#[track_caller]
fn rising(log: &[Value]) {
    for (place, line) in log.iter().enumerate() {
        assert_eq!(line["order"], place as u64 + 1, "order has no holes");
        assert_eq!((&line["status"], &line["durable"]), (&json!("updated"), &json!(true)), "{line}");
    }
    let stamp = |line: &Value| line["timestamp"].as_u64().unwrap();
    assert!(log.windows(2).all(|pair| stamp(&pair[0]) < stamp(&pair[1])), "stamps rise");
}

#[test]
fn commands_work_through_a_daemon_that_ingests_and_beside_it() {
    let set = CaptureSet::open("small");
    let folder = tempfile::tempdir().unwrap();
    let text = |name: &str| folder.path().join(name).display().to_string();
    let (journal, out) = (text("journal"), text("out"));
    let mut arguments = set.replay_arguments(folder.path(), "64M");
    // Of a replay's arguments the daemon knows its journal itself.
    let replay: Vec<String> = arguments.drain(1..arguments.len() - 5).collect();
    let created = ["--create".to_owned(), "--size".into(), "64M".into()];
    let mut daemon = Daemon::start(Path::new(&journal), created.iter().chain(&replay));
    let mode = std::fs::metadata(daemon.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let status = daemon.wait_until(is_ingesting);
    assert!(status["doing"]["what"].as_str().unwrap().contains("port0.pcap"), "{status}");
    assert_eq!(status["ports"].as_array().unwrap().len(), 4, "{status}");
    let pid = status["owner"]["pid"].to_string();
    agent(["daemon", &journal]).failed(1, &["in use by another agent", &pid]);
    // Through it.
    let begun = Instant::now();
    let said = agent(["bookmark", "add", &journal, "early"]).fine().stdout;
    let took = begun.elapsed();
    println!("a bookmark while it ingests: {took:?}");
    assert!(took < Duration::from_secs(2), "a bookmark doesn't wait for the ingest: {took:?}");
    agent(["bookmark", "add", &journal, "first", "--at", "order:1"]).fine();
    agent(["bookmark", "add", &journal, "first"]).failed(1, &["first", "already"]);
    agent(["bookmark", "add", &journal, "far", "--at", "order:1000000"]).failed(1, &["order:1000000"]);
    agent(["bookmark", "remove", &journal, "first"]).fine();
    // Beside it.
    let marks = agent(["bookmark", "list", &journal, "--json"]).fine().json_lines();
    assert_eq!(marks.len(), 1);
    let early = marks[0]["order"].as_u64().unwrap();
    assert!(said.contains(&format!("just after order:{early} ")), "{said}");
    agent(["verify", &journal]).fine();
    let log = agent(["log", &journal, "--json"]).fine().json_lines();
    assert!(log.len() as u64 >= early);
    assert_eq!(
        agent(["diff", &journal, "--volume", "1.0", "order:0", "bookmark:early", "--json"]).fine().json()
            ["to_order"],
        early
    );
    agent(["size", &journal]).fine();
    for (volume, size) in set.volumes() {
        let base = text(&format!("{volume}.base"));
        let restore = ["restore", &journal, "--volume", &volume, "--base", &base, "--at", "bookmark:early"];
        agent(restore.iter().chain(&["--to", &out, "--force"])).fine();
        let mut model = Volume::new(&volume, size);
        set.in_journal_order(&log)[..early as usize].iter().for_each(|write| model.apply(write));
        assert!(std::fs::read(&out).unwrap() == model.bytes, "volume {volume} at the bookmark");
        let at = ["--volume", &volume, "--base", &base, "--at", "bookmark:early"];
        let served = Served::start(&[&[journal.as_str()], &at[..]].concat(), &folder.path().join("nbd"));
        client(&["qemu-img", "convert", "-f", "raw", "-O", "raw", &served.uri, &out]);
        assert!(std::fs::read(&out).unwrap() == model.bytes, "volume {volume} as a disk");
        assert_eq!(served.stop(), Some(0));
    }
    // What excludes an ingest is refused, and says why and what to do.
    let (base, image) = (text("1.0.base"), text("1.0.img"));
    let of_volume = ["--volume", "1.0", "--base", &base, "--primary", &image];
    let refusal = ["port0.pcap", "under way", "--wait"];
    agent(["resync", &journal].iter().chain(&of_volume)).failed(1, &refusal);
    let at = format!("order:{early}");
    let in_place = ["--in-place", "--at", &at, "--json"];
    agent(["restore", &journal].iter().chain(&of_volume).chain(&in_place)).failed(1, &refusal);
    agent(
        ["replay", "--journal", &journal]
            .iter()
            .chain(&replay.iter().map(String::as_str).collect::<Vec<_>>()),
    )
    .failed(1, &refusal);
    agent(["base", "create", &journal, "--volume", "1.0", "--primary", &image, "--to", &out])
        .failed(1, &refusal);
    agent(["volume", "resize", &journal, "--volume", "1.0", "--size", "1G"]).failed(1, &refusal);
    // And what doesn't is done.
    agent(["image", "create", &journal, "there", "--volume", "1.0", "--at", "bookmark:early"]).fine();
    agent(["base", "adopt", &journal, "--volume", "1.0", "--base", &base]).fine();
    agent(["merge", &journal, "--schedule", "all:24h"]).fine();
    assert!(is_ingesting(&daemon.status()), "all of this was while it ingests, or this proves nothing");

    // Or it waits.
    let waited = agent(["restore", &journal].iter().chain(&of_volume).chain(&in_place).chain(&["--wait"]))
        .fine()
        .json();
    assert_eq!(
        (&waited["target_order"], &waited["before_order"]),
        (&json!(early), &json!(set.count())),
        "{waited}"
    );
    daemon.wait_for("489 writes journaled, every one final and durable");
    agent(["restore", &journal, "--volume", "1.0", "--base", &base, "--at", &at, "--to", &out, "--force"])
        .fine();
    assert!(std::fs::read(&out).unwrap() == std::fs::read(&image).unwrap(), "primary is what it was");
    let undone =
        agent(["restore", &journal].iter().chain(&of_volume).chain(&["--undo", "--json"])).fine().json();
    assert_eq!(undone["target_order"], set.count(), "{undone}");
    let resynced = agent(["resync", &journal].iter().chain(&of_volume).chain(&["--json"])).fine().json();
    assert_eq!((&resynced["differed"], &resynced["gaps"]), (&json!(0), &json!(0)), "{resynced}");

    let ended = daemon.stop();
    assert_eq!(ended.code, Some(0));
    assert!(ended.said.contains("ended in order") && !Path::new(&format!("{journal}.sock")).exists());
    let log = agent(["log", &journal, "--json"]).fine().json_lines();
    rising(&log);
    assert_eq!(set.in_journal_order(&log[..set.count()]).len(), set.count());
    agent(["verify", &journal]).fine();
    let owned = Journal::open(Path::new(&journal), "system-tests").unwrap();
    assert_eq!(owned.opened().previous, PreviousEnd::Clean);
}

#[test]
fn a_replay_runs_in_the_daemon_and_prints_where_it_was_asked_for() {
    let place = Place::new();
    place.capture(60, 2);
    let journal = place.text("journal");
    let socket = place.text("control");
    let daemon = Daemon::start(&place.path("journal"), ["--create", "--size", "16M", "--control", &socket]);
    assert!(!daemon.socket().exists() && Path::new(&socket).exists());
    // Names of files are those of the client's folder.
    let run = |more: &[&str]| -> Ran {
        let capture = place.path("60.pcap");
        let capture = format!("0={}", Path::new(capture.file_name().unwrap()).display());
        let words = ["replay", "--capture", &capture, "--primary", "1.0=disk", "--journal", "journal"];
        let ran = Command::new(program()).current_dir(place.folder.path()).args(words).args(more).output();
        ran.unwrap().into()
    };
    run(&[]).failed(1, &["in use by another agent", "--control"]);
    run(&["--control", "nowhere"]).failed(1, &["nowhere", "No such file"]);
    run(&["--control", &socket, "--create"]).failed(1, &["exists already"]);
    let told = run(&["--control", &socket]).fine().stdout;
    assert!(told.contains("60 writes journaled, every one final and durable in journal;"), "{told}");
    let lines = run(&["--control", &socket, "--json", "--progress-durable"]).fine().json_lines();
    assert!(lines.len() > 1 && lines[0]["durable"]["entries"].as_u64() > Some(0), "{lines:?}");
    let last = lines.last().unwrap();
    assert_eq!((&last["entries"], &last["first_order"], &last["lost"]), (&json!(60), &json!(61), &json!(0)));
    // What is wrong with it is said here too, and the daemon goes on.
    std::fs::write(place.path("60.pcap"), b"no capture").unwrap();
    run(&["--control", &socket]).failed(1, &["60.pcap"]);
    // Another journal's daemon is not taken for this one's.
    let options = CreateOptions {
        bytes: Some(1 << 20),
        segment_bytes: None,
        volumes: Vec::new(),
        ports: Vec::new(),
        writer: "system-tests".into(),
    };
    Journal::create(&place.path("other"), &options).unwrap().close().unwrap();
    agent(["status", &place.text("other"), "--control", &socket]).failed(1, &["another journal"]);
    let status = agent(["status", &journal, "--control", &socket, "--json"]).fine().json();
    assert_eq!((&status["order"], &status["durable_order"]), (&json!(120), &json!(120)), "{status}");
    let beside = agent(["status", &journal, "--json"]).fine().json();
    assert_eq!(beside["owner"]["pid"], status["owner"]["pid"], "without its socket: {beside}");
    assert_eq!(daemon.stop().code, Some(0));
    rising(&place.log());
    place.primary_is("end");
    assert_eq!(place.last_end(), PreviousEnd::Clean);
    place.sound();
}

#[test]
fn what_needs_the_owner_goes_through_a_daemon_at_rest() {
    let place = Place::new();
    let (journal, base, disk, new) =
        (place.text("journal"), place.text("base"), place.text("disk"), place.text("new"));
    let daemon = Daemon::start(&place.path("journal"), ["--create", "--size", "4M"]);
    let mut replay =
        vec!["replay".into(), "--engine".into(), "soft".into(), "--journal".into(), journal.clone()];
    replay.extend(place.capture(300, 2));
    agent(&replay).fine();
    let at = |order: u32| {
        let mut model = vec![0; VOLUME_BYTES as usize];
        for write in (1..=order).map(|tag| write(tag, 2)) {
            model[write.lba as usize * 512..][..write.data.len()].copy_from_slice(&write.data);
        }
        model
    };
    let restored = |moment: &str| {
        place.restore(moment, &["--to", &place.text("restored"), "--force"]).fine();
        std::fs::read(place.path("restored")).unwrap()
    };
    // Relative names are the client's.
    let run = |words: &[&str]| -> Ran {
        Command::new(program()).current_dir(place.folder.path()).args(words).output().unwrap().into()
    };

    let adopt = ["base", "adopt", "journal", "--volume", "1.0", "--base"];
    let adopted = run(&[&adopt[..], &["base", "--json"]].concat()).fine().json();
    assert_eq!((&adopted["order"], &adopted["first_order"]), (&json!(0), &json!(0)), "{adopted}");
    let told = run(&[&adopt[..], &["base"]].concat()).fine().stdout;
    assert!(told.contains("base: is the base of volume 1.0") && told.contains("every moment"), "{told}");
    std::fs::copy(&base, place.path("copy")).unwrap();
    run(&[&adopt[..], &["copy"]].concat()).failed(1, &["has a base already", "--replace"]);
    let info = agent(["base", "info", &journal, "--json"]).fine().json();
    assert_eq!(info["base_id"], adopted["base_id"]);
    assert!(restored("order:100") == at(100));

    let told =
        agent(["image", "create", &journal, "there", "--volume", "1.0", "--at", "order:77"]).fine().stdout;
    assert!(told.starts_with("there: volume 1.0 just after order:77 ("), "{told}");
    let told = agent(["image", "create", &journal, "last", "--volume", "1.0"]).fine().stdout;
    assert!(told.contains("order:300 "), "{told}");
    agent(["image", "create", &journal, "last", "--volume", "1.0"]).failed(1, &["last", "already"]);
    agent(["image", "create", &journal, "x", "--volume", "1.0", "--at", "order:301"])
        .failed(1, &["order:301"]);
    agent(["image", "remove", &journal, "last"]).fine();
    agent(["image", "remove", &journal, "last"]).failed(1, &["no image last"]);
    let images = agent(["image", "list", &journal, "--json"]).fine().json_lines();
    assert_eq!((images.len(), &images[0]["name"]), (1, &json!("there")));

    // Windows, and what is older than those goes into the base.
    let log = place.log();
    let stamp = |order: usize| log[order - 1]["timestamp"].as_u64().unwrap();
    let ago = |order: usize| stamp(300) - stamp(order);
    let windows = format!("all:{}ns,{}ns:1h", ago(200), ago(200) / 10);
    let merge = |more: &[&str]| run(&[&["merge", "journal", "--json", "--all"], more].concat());
    let dry = merge(&["--dry-run", "--schedule", &windows]).fine().json();
    assert!(dry["windows"] == 0 && dry["due"][0]["entries"].as_u64() > Some(100), "{dry}");
    assert_eq!(place.log().len(), 300, "nothing was merged");
    let merged = merge(&["--schedule", &windows]).fine().json();
    assert!(merged["windows"].as_u64() > Some(3) && merged["schedule"] == dry["schedule"], "{merged}");
    assert_eq!((&merged["entries_in"], &merged["given_up"]), (&dry["due"][0]["entries"], &json!(0)));
    assert!(restored("image:there") == at(77) && restored("order:290") == at(290));
    // Where windows end depends on the time of day.
    let windows = agent(["log", &journal, "--merged", "--json"]).fine().json_lines();
    let orders = |window: &serde_json::Value| (window["first_order"].as_u64(), window["last_order"].as_u64());
    let inside = windows.iter().map(orders).find(|(first, last)| first < last).and_then(|(first, _)| first);
    let inside = format!("order:{}", inside.unwrap());
    place.restore(&inside, &["--to", &place.text("restored"), "--force"]).failed(1, &["was merged"]);
    let keep = format!("all:{}ns", ago(200));
    let kept = merge(&["--schedule", &keep]).fine().json();
    assert!(kept["given_up"] == 0 && kept["held_back"].to_string().contains("--base 1.0=FILE"), "{kept}");
    merge(&["--base", "9.9=base"]).failed(1, &["no volume 9.9"]);
    let merged = merge(&["--base", "1.0=base"]).fine().json();
    let rolled = &merged["rolled"][0];
    assert!(merged["given_up"].as_u64() > Some(100) && rolled["volume"] == "1.0", "{merged}");
    assert!(rolled["order"].as_u64() > Some(100) && rolled["bytes"].as_u64() > Some(0), "{merged}");
    assert!(restored("order:290") == at(290));
    // A daemon may know the base that the command line doesn't name.
    assert_eq!(daemon.stop().code, Some(0));
    let kept = merge(&["--schedule", &format!("all:{}ns", ago(250))]).fine().json();
    assert!(kept["held_back"].to_string().contains("--base 1.0=FILE"), "{kept}");
    let daemon = Daemon::start(&place.path("journal"), ["--base", &format!("1.0={base}")]);
    let merged = merge(&[]).fine().json();
    assert_eq!(merged["held_back"], json!([]), "{merged}");
    assert!(daemon.status()["merging"]["last"]["given_up"].as_u64() > Some(0), "{merged}");
    assert!(restored("order:290") == at(290));
    let told = run(&["merge", "journal", "--schedule", "none"]).fine().stdout;
    assert!(told.contains("schedule none"), "{told}");

    let resize = ["volume", "resize", "journal", "--volume", "1.0", "--primary", "disk", "--sectors"];
    let told = run(&[&resize[..], &["4096"]].concat()).fine().stdout;
    assert!(
        told.contains("4096 sectors (2.00 MiB) from now on") && told.contains("has that size now"),
        "{told}"
    );
    assert_eq!(std::fs::metadata(&disk).unwrap().len(), 2 << 20);
    run(&[&resize[..], &["0"]].concat()).failed(1, &["sectors, not 0"]);
    let small = run(&[&resize[..], &["1024", "--json"]].concat()).fine().json();
    assert_eq!((&small["sectors_before"], &small["sectors"]), (&json!(4096), &json!(1024)), "{small}");
    assert!(small["primary_fitted"] == true && small["entries"].as_u64() > Some(0), "{small}");
    let listed = agent(["volume", "list", &journal, "--json"]).fine().json();
    assert_eq!(listed["sectors"], 1024);
    place.primary_is("end");
    assert!(restored("order:290") == at(290));

    let create = ["base", "create", "journal", "--volume", "1.0", "--primary", "disk", "--to", "new"];
    run(&create).failed(1, &["has a base already", "--replace"]);
    let create = [&create[..], &["--replace"]].concat();
    let made = run(&[&create[..], &["--json"]].concat()).fine().json();
    assert_eq!(made["file"], "new");
    run(&create).failed(1, &["new", "give --to another name"]);
    assert_eq!(std::fs::read(&new).unwrap(), std::fs::read(&disk).unwrap());
    place.restore("end", &["--to", &place.text("restored"), "--force"]).failed(1, &["wrong base"]);
    for file in ["base", "base.chronoswitch"] {
        std::fs::rename(place.path(&file.replace("base", "new")), place.path(file)).unwrap();
    }
    place.primary_is("end");
    place.restore("order:290", &["--to", &place.text("restored"), "--force"]).failed(1, &["order:290"]);
    assert_eq!(place.sound()["gaps"], 0);

    let status = daemon.status();
    assert!(rests(&status) && status["warnings"] == json!([]), "{status}");
    // Without its socket there is nobody to ask.
    let elsewhere = ["--control", "nowhere"];
    for words in [&["merge", "journal", "--schedule", "all:1h"][..], &["image", "remove", "journal", "there"]]
    {
        run(&[words, &elsewhere].concat()).failed(1, &["nowhere", "No such file"]);
    }
    assert_eq!(daemon.stop().code, Some(0));
    assert_eq!(place.last_end(), PreviousEnd::Clean);
    assert_eq!(place.sound()["gaps"], 0);
    place.primary_is("end");
    // Nobody holds it: as ever.
    agent(["image", "remove", &journal, "there"]).fine();
}

#[test]
fn a_stop_in_the_middle_settles_what_is_under_way() {
    let place = Place::new();
    let replay = place.capture(2000, 2);
    let daemon = Daemon::start(&place.path("journal"), place.create("16M", replay));
    daemon.wait_until(is_ingesting);
    let ended = daemon.stop();
    assert_eq!(ended.code, Some(0));
    assert!(ended.said.contains("ending; first") && ended.said.contains("every one final and durable"));
    let log = place.log();
    assert!(log.len() > 20 && log.len() < 2000, "it came in the middle: {}", log.len());
    rising(&log);
    place.primary_is("end");
    assert_eq!(place.sound()["gaps"], 0);
    assert_eq!(place.last_end(), PreviousEnd::Clean);
}

#[test]
fn after_a_kill_a_new_daemon_takes_over_the_socket() {
    let place = Place::new();
    let replay = place.capture(2000, 2);
    let journal = place.text("journal");
    let daemon = Daemon::start(&place.path("journal"), place.create("16M", replay));
    let socket = daemon.socket();
    let durable = daemon.wait_until(is_ingesting)["durable_order"].as_u64().unwrap();
    assert_eq!(daemon.kill().code, None);
    assert!(socket.exists(), "nobody was there to remove it");
    let status = agent(["status", &journal, "--json"]).fine().json();
    assert!(status["owner"].is_null() && status["durable_order"].as_u64() >= Some(durable), "{status}");
    assert!(status["warnings"][0].as_str().unwrap().contains("resync"), "{status}");

    let daemon = Daemon::start(&place.path("journal"), [""; 0]);
    let status = daemon.status();
    assert!(rests(&status) && status["owner"]["pid"].is_u64(), "{status}");
    assert!(status["warnings"][0].as_str().unwrap().contains("resync"), "{status}");
    agent(["bookmark", "add", &journal, "after"]).fine();
    place.resync(&[]).fine();
    assert_eq!(daemon.status()["warnings"], json!([]));
    place.primary_is("end");
    assert_eq!(daemon.kill().code, None);
    // While it rests no port is open, so nothing can be missing.
    assert_eq!(place.last_end(), PreviousEnd::Clean);
    place.primary_is("end");
    assert_eq!(place.sound()["gaps"], 4, "the one unclean stop, a gap for each port of the card");
}

#[test]
fn whatever_comes_over_the_socket_is_answered_and_leaves_the_daemon_alive() {
    let place = Place::new();
    let daemon = Daemon::start(&place.path("journal"), ["--create", "--size", "1M"]);
    let long = [b"{\"version\":1,\"command\":\"".as_slice(), &vec![b'x'; 70_000], b"\"}\n"].concat();
    let deep = [vec![b'['; 60_000], b"\n".to_vec()].concat();
    let every_byte: Vec<u8> = (0..=255).cycle().take(4096).collect();
    let asked = |command: &str| format!("{{\"version\":1,{command}}}\n").into_bytes();
    let volume = "\"volume\":\"9.9\",\"primary\":\"/nowhere\",\"base\":\"/nowhere\"";
    for (bytes, word) in [
        (b"\n".to_vec(), "no JSON"),
        (b"status\n".to_vec(), "no JSON"),
        (b"{\"version\":1".to_vec(), "before the end of a line"),
        (b"".to_vec(), "before the end of a line"),
        (every_byte, "no JSON"),
        (deep, "no JSON"),
        (long, "at most"),
        (b"{\"version\":9,\"command\":\"status\"}\n".to_vec(), "version 9"),
        (asked("\"command\":\"format\""), "format"),
        (asked("\"command\":\"bookmark-add\",\"name\":\"x\",\"at\":\"noon\""), "noon"),
        (asked("\"command\":\"bookmark-add\",\"name\":\"\\u0000\",\"at\":\"end\""), "line of text"),
        (asked("\"command\":\"bookmark-remove\",\"name\":\"none\""), "no bookmark none"),
        (asked(&format!("\"command\":\"resync\",{volume}")), "no volume 9.9"),
        (asked(&format!("\"command\":\"roll-back\",{volume},\"at\":\"end\"")), "no volume 9.9"),
        (asked(&format!("\"command\":\"base-create\",{volume}")), "no volume 9.9"),
        (asked(&format!("\"command\":\"base-adopt\",{volume}")), "no volume 9.9"),
        (asked(&format!("\"command\":\"volume-resize\",{volume},\"sectors\":9")), "no volume 9.9"),
        (asked("\"command\":\"volume-resize\",\"volume\":\"9.9\",\"sectors\":-1"), "makes no sense"),
        (asked("\"command\":\"base-adopt\",\"volume\":\"9.9\",\"base\":\"here\""), "not absolute"),
        (
            asked("\"command\":\"image-create\",\"name\":\"x\",\"volume\":\"9.9\",\"at\":\"end\""),
            "no volume 9.9",
        ),
        (asked("\"command\":\"image-remove\",\"name\":\"none\""), "no image none"),
        (asked("\"command\":\"replay\",\"arguments\":[\"replay\"],\"folder\":\"/\""), "--capture"),
        (asked("\"command\":\"replay\",\"arguments\":[\"log\",\"j\"],\"folder\":\"/\""), "replay"),
        (asked("\"command\":\"replay\",\"arguments\":[\"replay\"],\"folder\":\"here\""), "not absolute"),
        (asked("\"journal\":\"00\",\"command\":\"status\""), "another journal"),
    ] {
        let answer = daemon.send(&bytes);
        let last: Value = serde_json::from_str(answer.lines().last().unwrap_or("")).expect(&answer);
        let message = last["error"]["message"].as_str().unwrap_or_else(|| panic!("{answer}"));
        assert!(message.contains(word), "'{word}' is missing in {message}");
    }
    let fine: Value = serde_json::from_str(&daemon.send(&asked("\"command\":\"status\""))).unwrap();
    assert_eq!(fine["result"]["order"], 0, "{fine}");

    // As many as may come, and none of them says anything.
    let connect = || UnixStream::connect(daemon.socket()).unwrap();
    let silent: Vec<UnixStream> = (0..16).map(|_| connect()).collect();
    let refused = daemon.send(&asked("\"command\":\"status\""));
    assert!(refused.contains("16 clients"), "{refused}");
    agent(["status", &place.text("journal")]).failed(1, &["16 clients"]);
    let begun = Instant::now();
    for stream in silent {
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        assert!(line.contains("no request within 5 seconds"), "{line}");
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "they ran out together: {:?}", begun.elapsed());
    daemon.wait_until(rests);
    assert_eq!(daemon.stop().code, Some(0));
    place.sound();
}

#[test]
fn a_full_journal_holds_ingest_up_and_loses_nothing_unsaid() {
    let place = Place::new();
    // A quarter more than there is room for.
    let replay = place.capture(120, 16);
    let journal = place.text("journal");
    let mut daemon = Daemon::start(&place.path("journal"), place.create("1M", replay));
    daemon.wait_for("warning: ");
    let waits = |status: &Value| status["doing"]["waits_for_room"] == true;
    // What it has taken it makes durable before it waits.
    let full = daemon.wait_until(|status| waits(status) && status["order"] == status["durable_order"]);
    assert_eq!(full["free_segments"], 0, "{full}");
    let warnings = full["warnings"].to_string();
    assert!(warnings.contains("room is short") && warnings.contains("the journal is full"), "{full}");
    // It stands still, and serves.
    daemon.wait_for("ingest takes no more");
    let later = daemon.status();
    for field in ["order", "doing", "durable_order"] {
        assert_eq!(later[field], full[field], "nothing more is taken");
    }
    place.sound();
    let ended = daemon.stop();
    assert_eq!(ended.code, Some(0));
    assert_eq!(ended.said.matches("room is short").count(), 1, "said once");
    assert_eq!(ended.said.matches("the journal is full: ").count(), 1, "said once");
    assert!(ended.said.contains("primary has them: a gap"), "{}", ended.said);
    let (sound, log) = (place.sound(), place.log());
    assert!(sound["gaps"].as_u64() > Some(0), "{sound}");
    rising(&log);
    // What primary has and the journal doesn't is not papered over.
    assert!(place.resync(&["--dry-run"]).fine().json()["differed"].as_u64() > Some(0));
    place.restore(&format!("order:{}", full["order"]), &["--to", &place.text("restored")]).fine();
    place.restore("end", &["--to", &place.text("restored"), "--force"]).failed(1, &["missing"]);
    assert_eq!(place.last_end(), PreviousEnd::Clean);
    // Nothing more is begun until there is room, and whoever asks hears why.
    let daemon = Daemon::start(&place.path("journal"), [""; 0]);
    let more = place.capture(5, 16);
    agent(["replay".into(), "--journal".into(), journal].into_iter().chain(more))
        .failed(1, &["journal is full"]);
    assert_eq!(daemon.stop().code, Some(0));
    place.sound();
}

#[test]
fn what_a_daemon_cannot_begin_is_refused_and_leaves_nothing_behind() {
    let place = Place::new();
    let journal = place.text("journal");
    agent(["daemon", &journal]).failed(1, &["--create makes it"]);
    agent(["daemon", &journal, "--create", "--capture", "0=x"]).failed(2, &[]);
    agent(["daemon", &journal, "--create", "--size", "1M", "--capture", "0=x", "--primary", "1.0=y"])
        .failed(1, &["x", "No such file"]);
    assert!(!place.path("journal.sock").exists());
    assert_eq!(place.last_end(), PreviousEnd::Clean);
    std::fs::write(place.path("journal.sock"), b"mine").unwrap();
    agent(["daemon", &journal]).failed(1, &["journal.sock", "not a socket"]);
    assert_eq!(std::fs::read(place.path("journal.sock")).unwrap(), b"mine");
    // Nobody need listen to it.
    let mut child = Command::new(program())
        .args(["daemon", &journal, "--control", &place.text("control")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut greeting = [0; 8];
    child.stdout.take().unwrap().read_exact(&mut greeting).unwrap();
    drop(child.stderr.take());
    agent(["bookmark", "add", &journal, "x", "--control", &place.text("control")]).fine();
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(place.last_end(), PreviousEnd::Clean);
}
