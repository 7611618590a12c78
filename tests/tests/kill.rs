//! SIGKILL at random moments of a replay: what had been reported durable is there, in order and without
//! a hole, and nothing that wasn't sent.
//!
//! `CHRONO_KILLS` kills (8 unless set).

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use system_tests::agent::{agent, program};
use system_tests::images::{self, Over};
use system_tests::model::{CaptureSet, Volume};
use system_tests::{samples, seed};

/// Runs the replay, kills it `pause` after its `lines`th word of durability, and returns the last order
/// that it had reported by then.
fn run_and_kill(arguments: &[String], lines: usize, pause: Duration) -> u64 {
    let mut child = Command::new(program())
        .args(arguments)
        .arg("--progress-durable")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut reports = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut last = 0;
    let mut take = |line: String| {
        if let Some(rest) = line.strip_prefix("durable order:") {
            last = rest.split(' ').next().unwrap().parse().unwrap();
        }
    };
    reports.by_ref().take(lines).for_each(&mut take);
    std::thread::sleep(pause);
    child.kill().unwrap();
    // What it said before it died counts too.
    reports.for_each(&mut take);
    child.wait().unwrap();
    last
}

#[test]
fn what_was_reported_durable_survives_a_kill() {
    let mut random = ChaCha8Rng::seed_from_u64(seed());
    let set = CaptureSet::open("small");
    let mut interrupted = 0;
    let kills = samples("CHRONO_KILLS", 8);
    for kill in 0..kills {
        let folder = tempfile::tempdir().unwrap();
        let arguments = set.replay_arguments(folder.path(), "16M");
        let (lines, pause) =
            (random.random_range(1..25), Duration::from_micros(random.random_range(0..30_000)));
        let durable = run_and_kill(&arguments, lines, pause);
        let entries = check(&set, folder.path(), durable);
        println!(
            "kill {kill}: after {lines} reports and {pause:?}: {durable} durable, {entries} in the journal"
        );
        interrupted += usize::from(entries < set.count() as u64);
        reopen(&set, folder.path(), entries);
    }
    // A replay has some 36 reports, about 2 ms apart on a fast machine: nearly all of these come in the middle.
    assert!(interrupted * 4 >= kills, "kills must come in the middle, or this proves little");
}

/// Returns how many entries there are.
fn check(set: &CaptureSet, folder: &Path, durable: u64) -> u64 {
    let journal = folder.join("journal").display().to_string();
    agent(["verify", &journal]).fine();
    let log = agent(["log", &journal, "--json"]).fine().json_lines();
    assert!(log.len() as u64 >= durable, "{durable} were durable, {} are there", log.len());
    let ordered = set.in_journal_order(&log);
    for (volume, size) in set.volumes() {
        let mut model = Volume::new(&volume, size);
        ordered[..durable as usize].iter().for_each(|write| model.apply(write));
        let (base, out) = (folder.join(format!("{volume}.base")), folder.join("out"));
        let (base, out) = (base.display().to_string(), out.display().to_string());
        let at = format!("order:{durable}");
        let arguments = ["--volume", &volume, "--base", &base, "--at", &at, "--to", &out, "--force"];
        agent(["restore", &journal].iter().chain(&arguments)).fine();
        assert!(std::fs::read(&out).unwrap() == model.bytes, "volume {volume}, {at}");
    }
    log.len() as u64
}

/// The next owner finds the same, and goes on after it.
fn reopen(set: &CaptureSet, folder: &Path, entries: u64) {
    let path = folder.join("journal");
    let reopened = journal::Journal::open(&path, "system-tests").unwrap();
    assert_eq!(reopened.end().order, entries);
    reopened.close().unwrap();
    let journal = path.display().to_string();
    agent(["verify", &journal]).fine();
    let log = agent(["log", &journal, "--json"]).fine().json_lines();
    assert_eq!(set.in_journal_order(&log).len() as u64, entries);
}

#[test]
fn a_replay_goes_on_where_a_killed_one_ended() {
    let set = CaptureSet::open("small");
    let folder = tempfile::tempdir().unwrap();
    let arguments = set.replay_arguments(folder.path(), "16M");
    run_and_kill(&arguments, 5, Duration::ZERO);
    let journal = folder.path().join("journal").display().to_string();
    let before = agent(["log", &journal, "--json"]).fine().json_lines();
    let create = arguments.iter().position(|argument| argument == "--create").unwrap();
    let again = agent(&arguments[..create]).fine();
    assert!(again.stderr.contains("did not end in order"), "{}", again.stderr);
    let log = agent(["log", &journal, "--json"]).fine().json_lines();
    assert_eq!(log.len(), before.len() + set.count(), "all of it, once more");
    let stamp = |line: &serde_json::Value| line["timestamp"].as_u64().unwrap();
    assert!(
        log.windows(2).all(|pair| stamp(&pair[0]) < stamp(&pair[1])),
        "stamps and numbers rise over sessions"
    );
    agent(["verify", &journal]).fine();
    // What lies behind the kill is not known to be complete: an image of it must be asked for twice.
    let (base, out) = (folder.path().join("1.0.base"), folder.path().join("out"));
    let (base, out) = (base.display().to_string(), out.display().to_string());
    let restore = ["restore", &journal, "--volume", "1.0", "--base", &base, "--at", "end", "--to", &out];
    agent(restore).failed(1, &["missing", "--allow-gaps"]);
    agent(restore.iter().chain(&["--allow-gaps"])).fine();
    // A resync closes the gap for its volume, and for that one alone.
    let primary = folder.path().join("1.0.img").display().to_string();
    let resync = ["resync", &journal, "--volume", "1.0", "--primary", &primary, "--base", &base, "--json"];
    let dry = agent(resync.iter().chain(&["--dry-run"])).fine().json();
    assert_eq!((&dry["entries"], &dry["dry_run"]), (&0.into(), &true.into()), "{dry}");
    let done = agent(resync).fine().json();
    assert_eq!(done["differed"], dry["differed"]);
    assert_eq!(done["gaps"], 4, "one for each port of the card: {done}");
    agent(restore.iter().chain(&["--force"])).fine();
    assert!(std::fs::read(&out).unwrap() == std::fs::read(&primary).unwrap(), "the end is what primary has");
    let other = folder.path().join("1.1.base").display().to_string();
    agent(["restore", &journal, "--volume", "1.1", "--base", &other, "--at", "end", "--to", &out, "--force"])
        .failed(1, &["missing"]);
    agent(["verify", &journal]).fine();
}

/// With before-images a write is forwarded only when its entry is durable, so whenever the replay is killed
/// the journal undoes everything that primary has.
#[test]
fn primary_is_never_ahead_of_its_before_images() {
    let mut random = ChaCha8Rng::seed_from_u64(seed());
    let set = CaptureSet::open("small");
    let mut interrupted = 0;
    let kills = samples("CHRONO_KILLS", 8);
    for kill in 0..kills {
        let folder = tempfile::tempdir().unwrap();
        let mut arguments = set.replay_arguments(folder.path(), "16M");
        arguments.extend(["--engine", "soft", "--images", "before"].map(String::from));
        let (lines, pause) =
            (random.random_range(1..300), Duration::from_micros(random.random_range(0..3_000)));
        let durable = run_and_kill(&arguments, lines, pause);
        let journal = folder.path().join("journal").display().to_string();
        agent(["verify", &journal]).fine();
        let log = agent(["log", &journal, "--json"]).fine().json_lines();
        let ordered = set.in_order_by_place(&log);
        assert!(ordered.len() as u64 >= durable, "{durable} were durable, {} are there", ordered.len());
        // Up to the first one without an answer primary has certainly executed everything.
        let executed = log.iter().take_while(|line| line["status"] == "updated").count();
        println!(
            "kill {kill}: after {lines} reports and {pause:?}: {durable} durable, {executed} of {} executed",
            log.len()
        );
        interrupted += usize::from(ordered.len() < set.count());
        for order in [0, random.random_range(0..=executed), executed] {
            for (volume, size) in set.volumes() {
                let mut model = Volume::new(&volume, size);
                ordered[..order].iter().for_each(|write| model.apply(write));
                let out = folder.path().join("out");
                images::restore(folder.path(), Over::Primary, &volume, &format!("order:{order}"), &out);
                assert!(std::fs::read(&out).unwrap() == model.bytes, "volume {volume}, order:{order}");
            }
        }
    }
    // A replay has some 360 reports.
    assert!(interrupted * 4 >= kills, "kills must come in the middle, or this proves little");
}
