//! `replay --engine soft`: the switch in software makes after-images as the card does, and before-images as it does.

use journal::Moment;
use serde_json::Value;
use std::path::Path;
use system_tests::agent::agent;
use system_tests::capture::{write, write_pcap, Request, Write};
use system_tests::images::{self, Over};
use system_tests::model::{CaptureSet, Volume};

/// The small capture with these images: everything is counted as by the card, every entry holds what it has
/// to, and every moment can be had back over whatever the images allow.
fn small_capture_with(engine: &str, images: &str, overs: &[Over]) {
    let set = CaptureSet::open("small");
    let folder = tempfile::tempdir().unwrap();
    let mut arguments = set.replay_arguments(folder.path(), "64M");
    arguments.extend(["--engine", engine, "--images", images, "--json"].map(String::from));
    let replay = agent(&arguments).fine().json();
    println!("{replay}");
    assert_eq!((&replay["entries"], &replay["engine"]), (&set.count().into(), &engine.into()));
    assert_eq!(set.count(), 489);
    for capture in set.moments["captures"].as_array().unwrap() {
        let port = &replay["ports"][capture["port"].as_u64().unwrap() as usize];
        assert_eq!(port["frames"], capture["requests"], "{port}");
        assert_eq!(port["writes"], capture["writes"][capture["volume"].as_str().unwrap()], "{port}");
        for fate in ["journaled", "updated"] {
            assert_eq!(port[fate], port["writes"], "{fate}: {port}");
        }
        assert_eq!(port["dropped"], serde_json::json!({}), "{port}");
    }
    let journal = folder.path().join("journal").display().to_string();
    let log = agent(["log", &journal, "--json"]).fine().json_lines();
    let ordered = set.in_order_by_place(&log);
    assert_eq!(ordered.len(), set.count());
    for pair in log.windows(2) {
        assert!(pair[0]["timestamp"].as_u64() < pair[1]["timestamp"].as_u64(), "stamps rise: {}", pair[1]);
    }
    for line in &log {
        assert_eq!((&line["kind"], &line["status"]), (&images.into(), &"updated".into()), "{line}");
        assert_eq!(line["durable"], true, "{line}");
    }
    every_entry_holds_what_it_has_to(&set, images, &log);
    agent(["verify", &journal]).fine();
    images::primaries_equal_the_last_moment(&set, folder.path());
    for &over in overs {
        // Which engine made an entry is nothing to those who read it, and nearly a thousand images take their time.
        if engine == "soft" {
            images::every_order_equals_the_naive_model(&set, folder.path(), over, &ordered);
        }
        images::moments_equal_the_targets_images(&set, folder.path(), over, &log);
    }
    // What the entries don't hold can't be made up.
    for over in [Over::Base, Over::Primary].into_iter().filter(|over| !overs.contains(over)) {
        let (volume, _) = set.volumes().remove(0);
        let (file, out) = (over.file(folder.path(), &volume), folder.path().join("out"));
        let backing = if over == Over::Base { "--base" } else { "--primary" };
        let [file, out] = [file, out].map(|path| path.display().to_string());
        let arguments = ["--volume", &volume, backing, &file, "--at", "order:200", "--to", &out];
        agent(["restore", &journal].iter().chain(&arguments)).failed(1, &["image"]);
    }
}

/// By the CRC that the entry has of its data.
fn every_entry_holds_what_it_has_to(set: &CaptureSet, images: &str, log: &[Value]) {
    let mut volumes: Vec<_> = set.volumes().iter().map(|(name, size)| Volume::new(name, *size)).collect();
    for (line, write) in log.iter().zip(set.in_order_by_place(log)) {
        let volume = volumes.iter_mut().find(|volume| volume.name == write.volume).unwrap();
        let before = volume.at(write).to_vec();
        let holds = match images {
            "after" => write.data.clone(),
            "before" => before,
            _ => [before, write.data.clone()].concat(),
        };
        assert_eq!(line["crc32c"], layout::crc::crc32c(&holds), "{line}");
        volume.apply(write);
    }
}

#[test]
fn after_images_are_the_cards() {
    small_capture_with("soft", "after", &[Over::Base]);
}

#[test]
fn with_before_images_every_moment_can_be_had_back_from_primary_alone() {
    small_capture_with("soft", "before", &[Over::Primary]);
}

#[test]
fn with_both_every_moment_can_be_had_back_either_way() {
    small_capture_with("soft", "both", &[Over::Base, Over::Primary]);
}

#[test]
#[ignore = "half a minute; CI has the gateware's before-images in sim/tests/differential.rs. make differential"]
fn the_card_makes_both_images_too() {
    small_capture_with("card", "both", &[Over::Base, Over::Primary]);
}

#[test]
#[ignore = "half a minute: make differential"]
fn the_card_makes_before_images_too() {
    small_capture_with("card", "before", &[Over::Primary]);
}

/// A burst: writes meet full queues, and equal ones meet each other while they are held.
#[test]
fn in_a_burst_every_write_is_journaled_or_is_a_copy() {
    let set = CaptureSet::open("small");
    let folder = tempfile::tempdir().unwrap();
    let mut arguments = set.replay_arguments(folder.path(), "64M");
    arguments.extend(BOTH.map(String::from));
    arguments.extend(["--burst", "--window", "64", "--json"].map(String::from));
    let replay = agent(&arguments).fine().json();
    let mut copies = 0;
    for port in &replay["ports"].as_array().unwrap()[..2] {
        println!("{port}");
        let number = |name: &str| port[name].as_u64().unwrap();
        let dropped = |reason: &str| port["dropped"][reason].as_u64().unwrap_or(0);
        assert_eq!(number("journaled") + dropped("dropped-copy"), number("writes"), "{port}");
        assert_eq!(
            number("offered_again"),
            dropped("dropped-buffer-full") + dropped("dropped-hold"),
            "{port}"
        );
        assert!(number("offered_again") > 0, "64 writes of up to 8.7 kB don't fit 16 KiB: {port}");
        copies += dropped("dropped-copy");
    }
    assert!(copies > 0, "the capture writes the same data again: {replay}");
    agent(["verify", &folder.path().join("journal").display().to_string()]).fine();
    images::primaries_equal_the_last_moment(&set, folder.path());
    // Undone to the very beginning there is nothing again.
    for (volume, size) in set.volumes() {
        let out = folder.path().join("out");
        images::restore(folder.path(), Over::Primary, &volume, "order:0", &out);
        assert!(std::fs::read(&out).unwrap() == vec![0; size as usize], "volume {volume}");
    }
}

const SECTORS: u64 = 256;

/// A replay of `frames` at port 1 by the software engine into `folder`, continuing the journal there.
fn replay(folder: &Path, frames: &[Vec<u8>], more: &[&str]) -> Vec<String> {
    let [capture, primary, journal] = ["frames.pcap", "img", "journal"].map(|name| folder.join(name));
    write_pcap(&capture, frames);
    if !primary.exists() {
        std::fs::File::create(&primary).unwrap().set_len(SECTORS * 512).unwrap();
    }
    let mut arguments = vec!["replay".to_owned()];
    arguments.extend(["--capture".into(), format!("1={}", capture.display())]);
    arguments.extend(["--primary".into(), format!("1.0={}", primary.display())]);
    arguments.extend(["--journal".into(), journal.display().to_string(), "--json".into()]);
    if !journal.exists() {
        arguments.extend(["--create", "--size", "16M"].map(String::from));
    }
    arguments.extend(more.iter().map(|word| word.to_string()));
    arguments
}

const BOTH: [&str; 4] = ["--engine", "soft", "--images", "both"];

/// Some hundred writes that overlap, are sent twice, or lie past the end.
fn overlapping() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for tag in 1..=150u32 {
        let lba = u64::from(tag * tag * 7 % 200);
        let frame = Request::write(tag, lba, 1 + (tag % 17) as u8, tag as u8).frame();
        frames.push(frame.clone());
        if tag % 10 == 0 {
            // Nothing had come back: the source sends it again, with another tag.
            let mut again = frame;
            again[20..24].copy_from_slice(&(1000 + tag).to_be_bytes());
            frames.push(again);
        }
        if tag % 50 == 25 {
            frames.push(Request::write(2000 + tag, SECTORS - 1, 2, 9).frame());
            // It overlaps the one before, of which nobody says that it has ended.
            frames.push(Request::write(200 + tag, SECTORS - 1, 1, tag as u8).frame());
        }
    }
    frames
}

/// The log without what the beginning of the simulated clock decides.
fn from_the_beginning(mut log: Vec<Value>) -> Vec<Value> {
    let begin = log[0]["timestamp"].as_u64().unwrap();
    for line in &mut log {
        let fields = line.as_object_mut().unwrap();
        fields.remove("time");
        let stamp = fields["timestamp"].as_u64().unwrap();
        fields.insert("timestamp".into(), (stamp - begin).into());
    }
    log
}

#[test]
fn copies_and_writes_past_the_end_leave_the_history_whole() {
    let folder = tempfile::tempdir().unwrap();
    let frames = overlapping();
    let run = agent(replay(folder.path(), &frames, &BOTH)).fine().json();
    let port = &run["ports"][1];
    println!("{port}");
    // A copy gave its tag to the write that was held; past the end there is nothing to read.
    assert_eq!([&port["frames"], &port["writes"]], [&171, &171], "{port}");
    assert_eq!([&port["journaled"], &port["updated"], &port["refused"]], [&153, &153, &0], "{port}");
    let dropped = |reason: &str| port["dropped"][reason].as_u64().unwrap_or(0);
    assert_eq!((dropped("dropped-copy"), dropped("dropped-before-read")), (15, 3), "{port}");
    assert_eq!(dropped("dropped-hold"), port["offered_again"].as_u64().unwrap(), "{port}");
    // Four reads of old data, 10 ms apart, were waited for in simulated time only.
    assert!(run["simulated_ns"].as_u64().unwrap() >= 40_000_000, "{run}");

    let journal = folder.path().join("journal");
    agent(["verify", &journal.display().to_string()]).fine();
    let log = agent(["log", &journal.display().to_string(), "--json"]).fine().json_lines();
    let mut model = Volume::new("1.0", SECTORS * 512);
    let mut sent: Vec<_> =
        frames.iter().filter(|f| f[22..24] < [3, 0xE8][..]).filter_map(|f| write(f)).collect();
    assert_eq!((sent.len(), log.len()), (153, 153));
    // Writes of one place keep their order; others may have been overtaken while they were held.
    let writes: Vec<_> = log
        .iter()
        .map(|line| {
            let place = |w: &Write| line["lba"] == w.lba && line["sectors"] == w.sectors;
            sent.remove(sent.iter().position(place).unwrap_or_else(|| panic!("nobody wrote that: {line}")))
        })
        .collect();
    let primary = folder.path().join("img");
    let mut bytes = vec![0; model.bytes.len()];
    for order in 0..=writes.len() {
        if order > 0 {
            model.apply(&writes[order - 1]);
        }
        let reader = journal::JournalReader::open(&journal).unwrap();
        let (at, backing) = (Moment::Order(order as u64), journal::image::Backing::Primary(&primary));
        let image = journal::image::Image::open(reader, "1.0", at, backing, false, &mut |_, _| {}).unwrap();
        image.read_at(&mut bytes, 0).unwrap();
        assert!(bytes == model.bytes, "order:{order}");
    }
}

#[test]
fn the_same_captures_give_the_same_journal_but_for_its_beginning() {
    let frames = overlapping();
    let journaled = [1, 2].map(|_| {
        let folder = tempfile::tempdir().unwrap();
        agent(replay(folder.path(), &frames, &BOTH)).fine();
        let journal = folder.path().join("journal").display().to_string();
        from_the_beginning(agent(["log", &journal, "--json"]).fine().json_lines())
    });
    assert_eq!(journaled[0].len(), 153);
    assert!(journaled[0] == journaled[1]);
}

#[test]
fn a_journal_goes_on_with_the_other_engine() {
    let folder = tempfile::tempdir().unwrap();
    let frames = |first: u32| -> Vec<_> {
        (first..first + 5).map(|tag| Request::write(tag, u64::from(tag) * 3, 2, tag as u8).frame()).collect()
    };
    let engines = ["soft", "card", "soft"];
    for (run, engine) in engines.iter().enumerate() {
        let done =
            agent(replay(folder.path(), &frames(1 + 5 * run as u32), &["--engine", engine])).fine().json();
        assert_eq!((&done["entries"], &done["first_order"]), (&5.into(), &(1 + 5 * run).into()), "{engine}");
    }
    let journal = folder.path().join("journal").display().to_string();
    let log = agent(["log", &journal, "--json"]).fine().json_lines();
    let column = |name: &str| log.iter().map(|line| line[name].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(column("lba"), (1..=15).map(|tag| tag * 3).collect::<Vec<_>>());
    assert!(column("timestamp").is_sorted_by(|a, b| a < b) && column("number").is_sorted_by(|a, b| a < b));
    let verify = agent(["verify", &journal, "--json"]).fine().json();
    let clean = [&verify["sessions"], &verify["unclean_sessions"], &verify["gaps"]];
    assert_eq!(clean, [&3, &0, &0], "{verify}");
}

#[test]
fn what_cant_be_meant_is_told_and_nothing_is_touched() {
    let folder = tempfile::tempdir().unwrap();
    let frames = [Request::write(1, 5, 1, 7).frame()];
    agent(replay(folder.path(), &frames, &["--engine", "soft", "--vcd", "x"]))
        .failed(2, &["--vcd", "--engine card"]);
    agent(replay(folder.path(), &frames, &["--engine", "verilated", "--vcd", "x"]))
        .failed(2, &["--vcd", "--engine card"]);
    assert!(!folder.path().join("journal").exists());
    for (option, value, possible) in
        [("--engine", "fpga", "card, verilated, soft"), ("--images", "all", "after, before, both")]
    {
        let misuse = agent(replay(folder.path(), &frames, &[option, value]));
        assert!(misuse.stderr.contains(possible), "{}", misuse.stderr);
        misuse.failed(2, &[value]);
    }

    agent(replay(folder.path(), &frames, &["--engine", "soft", "--images", "before"])).fine();
    let journal = folder.path().join("journal");
    let before = std::fs::read(&journal).unwrap();
    for (more, asked) in [
        (&["--engine", "soft"][..], "after-images"),
        (&BOTH, "before- and after-images"),
        (&[], "after-images"),
    ] {
        let words = ["has before-images of volume 1.0", &format!("would add {asked}"), "--images before"];
        agent(replay(folder.path(), &frames, more)).failed(1, &words);
    }
    assert!(std::fs::read(&journal).unwrap() == before, "a refused replay has not even opened a session");
    agent(replay(
        folder.path(),
        &[Request::write(2, 5, 1, 8).frame()],
        &["--engine", "soft", "--images", "before"],
    ))
    .fine();
}
