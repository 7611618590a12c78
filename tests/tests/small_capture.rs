//! A real initiator's capture, from the wire to images of every moment.

use journal::image::{Backing, Image};
use std::path::Path;
use system_tests::agent::{agent, Ran};
use system_tests::model::{CaptureSet, Volume};

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn restore(folder: &Path, volume: &str, at: &str, out: &Path) -> Ran {
    let (journal, base) = (text(&folder.join("journal")), text(&folder.join(format!("{volume}.base"))));
    let out = text(out);
    agent(["restore", &journal, "--volume", volume, "--base", &base, "--at", at, "--to", &out, "--force"])
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

    every_order_equals_the_naive_model(&set, folder.path(), &ordered);
    moments_equal_the_targets_images(&set, folder.path(), &log);
    for (volume, _) in set.volumes() {
        restore(folder.path(), &volume, "end", &folder.path().join("end")).fine();
        let (end, image) = (folder.path().join("end"), folder.path().join(format!("{volume}.img")));
        assert!(
            std::fs::read(end).unwrap() == std::fs::read(image).unwrap(),
            "the end is what primary holds"
        );
    }
}

/// The journal crate restores here, for that is quicker than starting a program a thousand times; the
/// program is what the moments below are restored by.
fn every_order_equals_the_naive_model(
    set: &CaptureSet,
    folder: &Path,
    ordered: &[&system_tests::capture::Write],
) {
    for (name, size) in set.volumes() {
        let mut model = Volume::new(&name, size);
        let base = folder.join(format!("{name}.base"));
        let mut bytes = vec![0; size as usize];
        for order in 0..=ordered.len() {
            if order > 0 {
                model.apply(ordered[order - 1]);
            }
            let reader = journal::JournalReader::open(&folder.join("journal")).unwrap();
            let at = journal::Moment::Order(order as u64);
            let image = Image::open(reader, &name, at, Backing::Base(&base), false, &mut |_, _| {}).unwrap();
            assert_eq!(image.facts().order, order as u64);
            image.read_at(&mut bytes, 0).unwrap();
            assert!(bytes == model.bytes, "volume {name}, order:{order}");
        }
    }
}

/// At each moment of the capture everything was quiet: the image is the one that vblade had, and one
/// `order:N` is the moment of all volumes.
fn moments_equal_the_targets_images(set: &CaptureSet, folder: &Path, log: &[serde_json::Value]) {
    let out = folder.join("moment");
    for moment in set.moments["moments"].as_array().unwrap() {
        let name = &moment["name"];
        let mut orders = Vec::new();
        let mut writes = 0;
        for (volume, at_moment) in moment["volumes"].as_object().unwrap() {
            let count = at_moment["writes"].as_u64().unwrap() as usize;
            let mut of_volume = log.iter().filter(|line| line["volume"] == volume.as_str());
            let last = count.checked_sub(1).and_then(|skipped| of_volume.nth(skipped));
            orders.push(last.map_or(0, |line| line["order"].as_u64().unwrap()));
            writes += count as u64;
        }
        let order = orders.iter().copied().max().unwrap();
        assert_eq!(order, writes, "moment {name}: nothing later comes before it on any port");
        for (volume, at_moment) in moment["volumes"].as_object().unwrap() {
            restore(folder, volume, &format!("order:{order}"), &out).fine();
            let bytes = std::fs::read(&out).unwrap();
            let image = Volume { name: volume.clone(), bytes };
            assert_eq!(at_moment["sha256"], image.sha256().as_str(), "moment {name}, volume {volume}");
        }
    }
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
    let last = set.moments["moments"].as_array().unwrap().last().unwrap();
    for (volume, at_moment) in last["volumes"].as_object().unwrap() {
        let bytes = std::fs::read(folder.path().join(format!("{volume}.img"))).unwrap();
        assert_eq!(at_moment["sha256"], Volume { name: volume.clone(), bytes }.sha256().as_str());
    }
    agent(["verify", &journal]).fine();
}
