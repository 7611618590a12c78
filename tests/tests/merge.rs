//! Merging from outside: `merge`, `log --merged`, named images, and images that stay what they are meanwhile.

use serde_json::Value;
use std::path::{Path, PathBuf};
use system_tests::agent::{agent, Ran};
use system_tests::capture::Write;
use system_tests::images::Over;
use system_tests::model::{CaptureSet, Volume};

/// The small capture in a journal of small segments, made by the software engine.
struct Captured {
    set: CaptureSet,
    folder: tempfile::TempDir,
    log: Vec<Value>,
}

impl Captured {
    fn new(images: &str, size: &str) -> Self {
        let set = CaptureSet::open("small");
        let folder = tempfile::tempdir().unwrap();
        let mut arguments = set.replay_arguments(folder.path(), size);
        arguments.extend(["--engine", "soft", "--images", images].map(String::from));
        agent(arguments).fine();
        let mut captured = Self { set, folder, log: Vec::new() };
        captured.log = agent(["log", &captured.journal(), "--json"]).fine().json_lines();
        captured
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn journal(&self) -> String {
        self.text("journal")
    }

    fn merge(&self, more: &[&str]) -> Ran {
        agent([&["merge", &self.journal()], more].concat())
    }

    fn restore(&self, over: Over, volume: &str, at: &str) -> Ran {
        let file = over.file(self.folder.path(), volume).display().to_string();
        let backing = if over == Over::Base { "--base" } else { "--primary" };
        let (journal, out) = (self.journal(), self.text("out"));
        let arguments = ["--volume", volume, backing, &file, "--at", at, "--to", &out, "--force"];
        agent([&["restore", &journal], &arguments[..]].concat())
    }

    /// A volume as the naive model has it just after an order.
    fn model(&self, volume: &str, order: u64) -> Vec<u8> {
        let size = self.set.volumes().into_iter().find(|(name, _)| name == volume).unwrap().1;
        let mut model = Volume::new(volume, size);
        self.ordered()[..order as usize].iter().for_each(|write| model.apply(write));
        model.bytes
    }

    fn ordered(&self) -> Vec<&Write> {
        self.set.in_order_by_place(&self.log)
    }

    #[track_caller]
    fn check(&self, over: Over, volume: &str, at: &str, order: u64) {
        self.restore(over, volume, at).fine();
        let read = std::fs::read(self.path("out")).unwrap();
        assert!(read == self.model(volume, order), "volume {volume} at {at} over {over:?}");
    }

    /// A level that keeps every write of the newest part of the capture, and windows behind it.
    fn schedule(&self, newest: f64, windows: u64, then: &str) -> String {
        let span = self.stamp(self.log.len() - 1) - self.stamp(0);
        let keep = (span as f64 * newest) as u64;
        format!("all:{keep}ns,{}ns:{then}", span / windows)
    }

    fn stamp(&self, index: usize) -> u64 {
        self.log[index]["timestamp"].as_u64().unwrap()
    }
}

fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("{name}: {value}"))
}

const BOTH: [Over; 2] = [Over::Base, Over::Primary];

#[test]
fn windows_keep_their_ends_and_what_has_a_name() {
    let captured = Captured::new("both", "8M");
    let (journal, writes) = (captured.journal(), captured.log.len() as u64);
    let file = || std::fs::read(captured.path("journal")).unwrap();
    let untouched = file();
    let none = captured.merge(&[]).fine();
    assert!(none.stdout.contains("without a schedule nothing is merged"), "{}", none.stdout);
    let schedule = captured.schedule(0.2, 20, "1h");
    let dry = captured.merge(&["--schedule", &schedule, "--dry-run", "--json"]).fine().json();
    assert_eq!((&dry["dry_run"], &dry["windows"]), (&true.into(), &0.into()), "{dry}");
    let due = &dry["due"][0];
    assert!(number(due, "entries") > writes / 2 && number(due, "frees") > number(due, "writes"), "{dry}");
    let text = captured.merge(&["--schedule", &schedule, "--dry-run"]).fine().stdout;
    assert!(text.contains("due: ") && text.contains("the first step frees"), "{text}");
    assert!(file() == untouched, "a dry run changes nothing");

    // Two moments get a name, well inside the first windows.
    agent(["bookmark", "add", &journal, "here", "--at", "order:77"]).fine();
    agent(["image", "create", &journal, "there", "--volume", "1.0", "--at", "order:101"]).fine();
    agent(["image", "create", &journal, "there", "--volume", "1.0"]).failed(1, &["there", "already"]);
    agent(["image", "create", &journal, "x", "--volume", "9.9"]).failed(1, &["no volume 9.9"]);
    agent(["image", "create", &journal, "again", "--volume", "1.1", "--at", "image:there"]).fine();

    let merged = captured.merge(&["--schedule", &schedule, "--json"]).fine().json();
    println!("{merged}");
    assert!(number(&merged, "segments_freed") > number(&merged, "segments_written"), "{merged}");
    assert!(number(&merged, "bytes_out") < number(&merged, "bytes_in"), "{merged}");
    assert_eq!(number(&merged, "entries_in"), number(due, "entries"));
    assert_eq!(merged["held_back"], serde_json::json!([]), "{merged}");
    let levels = merged["levels"].as_array().unwrap();
    assert_eq!(levels.iter().map(|level| number(level, "writes")).sum::<u64>(), writes);
    let settled = file();
    let again = captured.merge(&[]).fine().stdout;
    assert!(again.contains("nothing is due") && again.contains("LEVEL"), "{again}");
    assert!(file() == settled, "nothing to do leaves no session");

    let windows = agent(["log", &journal, "--merged", "--json"]).fine().json_lines();
    assert_eq!(windows.len() as u64, number(&merged, "windows"));
    let mut next = 1;
    for window in &windows {
        assert_eq!(number(window, "first_order"), next);
        next = number(window, "last_order") + 1;
        assert_eq!(number(window, "last_timestamp"), captured.stamp(next as usize - 2));
        for port in window["ports"].as_array().unwrap() {
            assert_eq!(port["complete"], true, "{window}");
        }
        assert_eq!(window["ports"].as_array().unwrap().len(), 4, "claim 15: by port of the switch");
    }
    let heading = agent(["log", &journal, "--merged", "--to", "order:50"]).fine().stdout;
    assert!(heading.contains("COMPLETE") && heading.lines().count() < windows.len(), "{heading}");
    assert!(agent(["log", &journal]).fine().stderr.contains("--merged lists"));

    // Every end of a window, over base and over primary.
    for (index, window) in windows.iter().enumerate() {
        let order = number(window, "last_order");
        let volume = ["1.0", "1.1"][index % 2];
        for over in BOTH {
            captured.check(over, volume, &format!("order:{order}"), order);
        }
    }
    for (name, order) in [("bookmark:here", 77), ("image:there", 101), ("image:again", 101)] {
        for over in BOTH {
            captured.check(over, "1.0", name, order);
        }
        assert!(windows.iter().any(|window| window["last_order"] == order), "{name} ends a window");
    }
    for order in [next - 1, writes - 1, writes] {
        captured.check(Over::Primary, "1.1", &format!("order:{order}"), order);
    }
    // What lies inside one is refused with the nearest moments, however it is asked for.
    let inside =
        windows.iter().find(|window| number(window, "last_order") > number(window, "first_order") + 2);
    let inside = inside.expect("a window of several writes");
    let order = number(inside, "first_order") + 1;
    let stamp = captured.stamp(order as usize - 1);
    let near =
        [number(inside, "first_order") - 1, number(inside, "last_order")].map(|n| format!("order:{n}"));
    for at in [format!("order:{order}"), stamp.to_string(), journal::rfc3339(stamp)] {
        let words = ["inside a window that was merged", "nearest moments are", &near[0], &near[1]];
        captured.restore(Over::Base, "1.0", &at).failed(1, &words);
    }
    for near in &near {
        captured.restore(Over::Base, "1.0", near).fine();
    }

    for what in [near[1].as_str(), "image:there", "end"] {
        for over in BOTH {
            let file = over.file(captured.folder.path(), "1.0").display().to_string();
            let backing = if over == Over::Base { "--base" } else { "--primary" };
            agent(["verify", &journal, "--image", what, "--volume", "1.0", backing, &file]).fine();
        }
    }
    let list = agent(["image", "list", &journal, "--json"]).fine().json_lines();
    assert_eq!(
        (&list[0]["name"], &list[0]["volume"], &list[0]["order"]),
        (&"there".into(), &"1.0".into(), &101.into())
    );
    assert_eq!((list.len(), &list[1]["there"]), (2, &true.into()));
    agent(["image", "remove", &journal, "there"]).fine();
    agent(["image", "remove", &journal, "there"]).failed(1, &["no image there", "again"]);
    agent(["verify", &journal]).fine();

    captured.merge(&["--schedule", "none"]).fine();
    let none = captured.merge(&[]).fine().stdout;
    assert!(none.contains("without a schedule"), "{none}");
    agent(["verify", &journal]).fine();
}

#[test]
fn what_is_given_up_is_in_the_base() {
    let captured = Captured::new("after", "4M");
    let journal = captured.journal();
    let schedule = {
        let span = captured.stamp(captured.log.len() - 1) - captured.stamp(0);
        format!("all:{}ns,{}ns:{}ns", span / 5, span / 20, span / 2)
    };
    // Nobody said which base takes what is given up.
    let held = captured.merge(&["--schedule", &schedule, "--json"]).fine().json();
    assert!(held["held_back"][0].as_str().unwrap().contains("base adopt"), "{held}");
    let mut options = Vec::new();
    for (volume, _) in captured.set.volumes() {
        let base = Over::Base.file(captured.folder.path(), &volume).display().to_string();
        agent(["base", "adopt", &journal, "--volume", &volume, "--base", &base]).fine();
        options.extend(["--base".to_owned(), format!("{volume}={base}")]);
    }
    let held = captured.merge(&["--all"]).fine();
    assert!(
        held.stderr.contains("warning: volume 1.0: history before")
            && held.stderr.contains("--base 1.0=FILE")
    );
    captured.merge(&["--base", "9.9=x"]).failed(1, &["no volume 9.9"]);
    captured.merge(&["--base", "x"]).failed(2, &[]);
    let options: Vec<&str> =
        [&["--all", "--json"][..], &options.iter().map(String::as_str).collect::<Vec<_>>()].concat();
    let gone = captured.merge(&options).fine().json();
    println!("{gone}");
    let given_up = number(&gone, "given_up");
    assert!(given_up > captured.log.len() as u64 / 5, "{gone}");
    assert_eq!(gone["rolled"].as_array().unwrap().len(), 2, "{gone}");
    assert_eq!(gone["rolled"][0]["order"], given_up, "{gone}");
    for (volume, _) in captured.set.volumes() {
        let end = captured.log.len() as u64;
        for order in [given_up, end - 1, end] {
            captured.check(Over::Base, &volume, &format!("order:{order}"), order);
        }
        captured
            .restore(Over::Base, &volume, &format!("order:{}", given_up - 1))
            .failed(1, &["no such moment", &format!("begins just after order:{given_up}")]);
    }
    agent(["verify", &journal]).fine();
}

#[test]
fn size_says_what_the_schedule_needs() {
    let captured = Captured::new("after", "4M");
    let journal = captured.journal();
    let size = || agent(["size", &journal, "--json"]).fine().json();
    assert_eq!((&size()["schedule"], &size()["schedule_needs"]), (&"none".into(), &Value::Null));
    let schedule = captured.schedule(0.2, 20, "1h");
    // Only set, and not yet followed: nothing is that old.
    captured.merge(&["--schedule", "all:1h,2h:1d"]).fine();
    let before = size();
    let levels = before["schedule_needs"]["levels"].as_array().unwrap();
    assert_eq!((&levels[0]["measured"], &levels[1]["measured"]), (&"received".into(), &"overlap".into()));
    assert!(levels[1]["ratio"].as_f64().unwrap() < 1.0, "{before}");
    assert_eq!(before["schedule_needs"]["fits"], false, "{before}");
    let (lasts, forever) =
        (before["schedule_needs"]["lasts_seconds"].as_f64(), before["lasts_seconds"].as_f64());
    assert!(
        (lasts.unwrap() / forever.unwrap() - 1.0).abs() < 0.5,
        "less than an hour, and then nothing is merged: {before}"
    );
    // Windows of a write each would free nothing: that is said, and the journal stays as it is.
    let tiny = captured.schedule(0.2, 5000, "1h");
    let left = captured.merge(&["--schedule", &tiny]).fine().stdout;
    assert!(left.contains("due: ") && left.contains("would free nothing yet: --all"), "{left}");
    let file = std::fs::read(&journal).unwrap();
    captured.merge(&[]).fine();
    assert!(std::fs::read(&journal).unwrap() == file, "not even a session is left in it");
    captured.merge(&["--schedule", &schedule, "--all"]).fine();
    let after = size();
    let levels = after["schedule_needs"]["levels"].as_array().unwrap();
    assert_eq!(levels[1]["measured"], "merged", "{after}");
    assert!(number(&after, "merged") > 0);
    let text = agent(["size", &journal]).fine().stdout;
    assert!(text.contains("the schedule") && text.contains("as its windows show"), "{text}");
    // A journal that is nearly full says so.
    let small = Captured::new("after", "1300K");
    let text = agent(["size", &small.journal()]).fine().stdout;
    assert!(text.contains("warning: less than a fifth"), "{text}");
}

/// What `nbdcopy` makes of a served image; `None`: it failed.
fn copy(uri: &str, out: &Path) -> Option<Vec<u8>> {
    let _ = std::fs::remove_file(out);
    let done = std::process::Command::new("nbdcopy").arg(uri).arg(out).output().expect("nbdcopy runs");
    done.status.success().then(|| std::fs::read(out).unwrap())
}

mod served {
    use super::*;
    use journal::merge::MergeOptions;
    use journal::Journal;
    use std::time::{Duration, Instant};
    use system_tests::served::Served;

    fn owner(captured: &Captured) -> Journal {
        Journal::open_ports_closed(&captured.path("journal"), "test").unwrap()
    }

    /// Segments that nobody uses, once what can be freed is.
    fn free(journal: &mut Journal) -> u32 {
        journal.merge(&MergeOptions { freeing_only: true, ..MergeOptions::default() }, &mut |_| {}).unwrap();
        journal.space().free
    }

    #[test]
    fn an_image_is_pointed_anew_and_lets_go_of_what_was_merged() {
        let captured = Captured::new("both", "8M");
        let (name, base) = ("1.0", captured.text("1.0.base"));
        let journal_path = captured.journal();
        agent(["image", "create", &journal_path, "kept", "--volume", name, "--at", "order:203"]).fine();
        let expected = captured.model(name, 203);
        let primary = captured.text("1.0.img");
        let arguments = |backing, file| vec![journal_path.as_str(), "--image", "kept", backing, file];
        let scratch = captured.text("");
        let over_base = Served::start(&arguments("--base", &base), &captured.path("base.sock"));
        let writable = [arguments("--primary", &primary), vec!["--writable", "--scratch", &scratch]].concat();
        let over_primary = Served::start(&writable, &captured.path("primary.sock"));
        let mut written = expected.clone();
        written[4096..8192].fill(9);
        system_tests::served::client(&[
            "qemu-io",
            "-f",
            "raw",
            "-c",
            "write -P 9 4096 4096",
            "-c",
            "flush",
            &over_primary.uri,
        ]);

        let schedule = captured.schedule(0.1, 20, "1h").parse().unwrap();
        let mut journal = owner(&captured);
        journal.set_schedule(&schedule).unwrap();
        let before = journal.space().free;
        let merged = journal
            .merge(&MergeOptions { freeing_only: true, ..MergeOptions::default() }, &mut |_| {})
            .unwrap();
        let pinned = journal.space().free;
        let wanted = before + (merged.segments_freed - merged.segments_written) as u32;
        assert!(merged.segments_freed > merged.segments_written && pinned < wanted, "{merged:?}");
        let begun = Instant::now();
        while free(&mut journal) < wanted {
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "the pins never went: {} of {wanted}",
                free(&mut journal)
            );
            for (served, expected) in [(&over_base, &expected), (&over_primary, &written)] {
                assert!(copy(&served.uri, &captured.path("copy")).as_ref() == Some(expected));
            }
        }
        println!("the room came back after {:?}", begun.elapsed());
        for (served, expected) in [(&over_base, &expected), (&over_primary, &written)] {
            assert!(copy(&served.uri, &captured.path("copy")).as_ref() == Some(expected));
        }
        assert_eq!((over_base.stop(), over_primary.stop()), (Some(0), Some(0)));
        journal.close().unwrap();
    }

    #[test]
    fn an_image_that_is_merged_away_is_kept_until_writes_need_the_room() {
        let captured = Captured::new("after", "4M");
        let (journal_path, base) = (captured.journal(), captured.text("1.0.base"));
        let order = 103;
        let expected = captured.model("1.0", order);
        let at = format!("order:{order}");
        let arguments = [journal_path.as_str(), "--volume", "1.0", "--base", &base, "--at", &at];
        let errors = captured.path("errors");
        let served = Served::start_with(&arguments, &captured.path("socket"), &errors);
        let schedule = captured.schedule(0.05, 4, "1h");
        let merged = captured.merge(&["--schedule", &schedule, "--json"]).fine().json();
        assert!(number(&merged, "segments_freed") > 2, "{merged}");
        captured.restore(Over::Base, "1.0", &at).failed(1, &["inside a window"]);
        let said = |what: &str| {
            let begun = Instant::now();
            while !std::fs::read_to_string(&errors).unwrap().contains(what) {
                assert!(begun.elapsed() < Duration::from_secs(20), "it never says '{what}'");
                std::thread::sleep(Duration::from_millis(50));
            }
        };
        said("note: the image of volume 1.0 goes on from what it has open");
        let text = std::fs::read_to_string(&errors).unwrap();
        assert!(text.contains("inside a window that was merged"), "{text}");
        assert!(copy(&served.uri, &captured.path("copy")) == Some(expected.clone()), "it is pinned");

        // More and more writes come.
        let mut revoked = false;
        for _ in 0..12 {
            let mut replay = captured.set.replay_arguments(captured.folder.path(), "4M");
            replay.retain(|word| !["--create", "--size", "4M"].contains(&word.as_str()));
            replay.extend(["--engine", "soft"].map(String::from));
            let full = agent(replay).code != Some(0);
            match copy(&served.uri, &captured.path("copy")) {
                Some(bytes) => assert!(bytes == expected, "never wrong data"),
                None => revoked = true,
            }
            if revoked || full {
                break;
            }
        }
        assert!(revoked, "writes needed the room");
        said("was revoked");
        assert_eq!(served.stop(), Some(0));
        let text = std::fs::read_to_string(&errors).unwrap();
        assert_eq!(text.lines().filter(|line| line.contains("revoked:")).count(), 1, "once: {text}");
        agent(["verify", &captured.journal()]).fine();
    }
}
