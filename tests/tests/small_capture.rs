//! A real initiator's capture, from the wire to images of every moment.

use std::path::Path;
use system_tests::agent::agent;
use system_tests::images::{self, Over};
use system_tests::model::CaptureSet;

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn every_write_is_journaled_once_and_every_moment_can_be_had_back() {
    let set = CaptureSet::open("small");
    let folder = tempfile::tempdir().unwrap();
    let mut arguments = set.replay_arguments(folder.path(), "64M");
    arguments.push("--json".into());
    let replay = agent(&arguments).fine().json();
    println!("{replay}");
    assert_eq!(replay["entries"], set.count());
    for capture in set.moments["captures"].as_array().unwrap() {
        let port = &replay["ports"][capture["port"].as_u64().unwrap() as usize];
        assert_eq!(port["frames"], capture["requests"], "{port}");
        assert_eq!(port["writes"], capture["writes"][capture["volume"].as_str().unwrap()], "{port}");
        assert_eq!(port["journaled"], port["writes"], "{port}");
        assert_eq!(port["updated"], port["writes"], "{port}");
        assert_eq!(port["locked"], true, "{port}");
    }
    let journal = text(&folder.path().join("journal"));
    let log = agent(["log", &journal, "--json"]).fine().json_lines();
    let ordered = set.in_journal_order(&log);
    assert_eq!(ordered.len(), set.count());
    for pair in log.windows(2) {
        assert!(pair[0]["timestamp"].as_u64() < pair[1]["timestamp"].as_u64(), "stamps rise: {}", pair[1]);
    }
    for line in &log {
        assert_eq!(line["status"], "updated", "{line}");
        assert_eq!(line["durable"], true, "{line}");
        assert!(line["flags"].as_array().unwrap().iter().any(|flag| flag == "locked"), "{line}");
        assert!(line["clock_error_ns"].as_f64().is_some_and(|error| error < 1000.0), "{line}");
    }
    agent(["verify", &journal]).fine();

    images::every_order_equals_the_naive_model(&set, folder.path(), Over::Base, &ordered);
    images::moments_equal_the_targets_images(&set, folder.path(), Over::Base, &log);
    images::primaries_equal_the_last_moment(&set, folder.path());
    for (volume, _) in set.volumes() {
        let end = folder.path().join("end");
        images::restore(folder.path(), Over::Base, &volume, "end", &end);
        let image = Over::Primary.file(folder.path(), &volume);
        assert!(
            std::fs::read(end).unwrap() == std::fs::read(image).unwrap(),
            "the end is what primary holds"
        );
    }
}

/// The journal of either simulator is the same, clock and all: stamps are compared from the first one on, for the
/// time base is set to the time of day.
#[test]
fn the_verilated_card_makes_the_same_journal() {
    let set = CaptureSet::open("small");
    let replayed = ["card", "verilated"].map(|engine| {
        let folder = tempfile::tempdir().unwrap();
        let mut arguments = set.replay_arguments(folder.path(), "64M");
        arguments.extend(["--engine", engine, "--json"].map(String::from));
        let replay = agent(&arguments).fine().json();
        println!("{engine}: {} cycles, {} a second", replay["cycles"], replay["cycles_per_second"]);
        assert_eq!(replay["engine"], engine);
        let journal = text(&folder.path().join("journal"));
        agent(["verify", &journal]).fine();
        let mut log = agent(["log", &journal, "--json"]).fine().json_lines();
        let first = log[0]["timestamp"].as_u64().unwrap();
        for line in &mut log {
            let stamp = line["timestamp"].as_u64().unwrap();
            let line = line.as_object_mut().unwrap();
            line.insert("timestamp".into(), (stamp - first).into());
            // The same moment for people.
            line.remove("time");
        }
        images::primaries_equal_the_last_moment(&set, folder.path());
        (log, replay["cycles"].clone(), replay["worst_skew_ns"].clone())
    });
    let [card, verilated] = replayed;
    assert_eq!(card.0.len(), set.count());
    for (card, verilated) in card.0.iter().zip(&verilated.0) {
        assert_eq!(card, verilated);
    }
    assert_eq!(card, verilated);
}

#[test]
fn a_burst_drops_frames_for_room_and_offers_them_again() {
    let set = CaptureSet::open("small");
    let folder = tempfile::tempdir().unwrap();
    let mut arguments = set.replay_arguments(folder.path(), "64M");
    arguments.extend(["--burst", "--window", "32", "--json"].map(String::from));
    let replay = agent(&arguments).fine().json();
    println!("{replay}");
    let again: u64 = (0..2).map(|port| replay["ports"][port]["offered_again"].as_u64().unwrap()).sum();
    assert!(again > 0, "32 writes of up to 8.7 kB don't fit a buffer of 16 KiB: {replay}");
    for port in 0..2usize {
        let port = &replay["ports"][port];
        assert_eq!(port["journaled"], port["writes"], "{port}");
        let dropped = port["dropped"]["dropped-buffer-full"].as_u64().unwrap_or(0)
            + port["dropped"]["dropped-hold"].as_u64().unwrap_or(0);
        assert_eq!(port["offered_again"], dropped, "{port}");
    }
    // Which write came when is another matter now; each is there once, and the end is the same.
    let journal = text(&folder.path().join("journal"));
    let log = agent(["log", &journal, "--json"]).fine().json_lines();
    let key = |volume: &str, lba: u64, crc: u32| format!("{volume} {lba} {crc}");
    let mut found: Vec<_> = log
        .iter()
        .map(|line| {
            let crc = line["crc32c"].as_u64().unwrap() as u32;
            key(line["volume"].as_str().unwrap(), line["lba"].as_u64().unwrap(), crc)
        })
        .collect();
    let writes = set.writes.values().flatten();
    let mut sent: Vec<_> =
        writes.map(|write| key(&write.volume, write.lba, layout::crc::crc32c(&write.data))).collect();
    found.sort();
    sent.sort();
    assert_eq!(found, sent);
    images::primaries_equal_the_last_moment(&set, folder.path());
    agent(["verify", &journal]).fine();
}
