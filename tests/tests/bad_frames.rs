//! Frames that a source shouldn't send, and frames that look like writes: each is journaled, passed or
//! dropped by its reason, by the card and by the switch in software.

use engine::frame::{classify, Decision, PortRules, VolumeTable};
use std::collections::BTreeMap;
use std::path::Path;
use system_tests::agent::agent;
use system_tests::capture::{write_pcap, Request};

const SECTORS: u64 = 1024;
const JOURNALED: &str = "journaled";
const PASSED: &str = "passed";
const ENGINES: [&str; 2] = ["card", "soft"];

/// A frame, and what has to become of it.
type Case = (&'static str, Vec<u8>, &'static str);

fn bent(tag: u32, bend: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut frame = Request::write(tag, 100 + u64::from(tag) * 2, 1, tag as u8).frame();
    bend(&mut frame);
    frame
}

fn tagged(tag: u32, tags: &[u8]) -> Vec<u8> {
    bent(tag, |frame| {
        frame.splice(12..12, tags.iter().copied());
    })
}

fn cases() -> Vec<Case> {
    let request = |tag, command, sectors: u8, data: &[u8]| {
        let base = Request::write(tag, 0, sectors, 0);
        Request { command, flags: 0x40, data: data.to_vec(), ..base }.frame()
    };
    let query = |tag, command| {
        let mut frame = Request::write(tag, 0, 0, 0).frame();
        frame.truncate(32);
        frame[19] = 1;
        frame[24..].copy_from_slice(&[0, 0, 0, 0, 0, command, 0, 0]);
        frame
    };
    let mut cases = vec![
        ("a write", bent(1, |_| {}), JOURNALED),
        ("AFlags clear", bent(2, |f| f[24] = 0), JOURNALED),
        ("AFlags all set", bent(3, |f| f[24] = 0xFF), JOURNALED),
        ("payload beyond the count", bent(4, |f| f.extend_from_slice(&[0xEE; 700])), JOURNALED),
        ("to a foreign MAC", bent(5, |f| f[0..6].fill(0x0A)), JOURNALED),
        (
            "28 bits count, the rest is noise",
            bent(6, |f| (f[27], f[31], f[32]) = (0x30, 0xF0, 0x77)),
            JOURNALED,
        ),
        ("header version 2", bent(10, |f| f[14] = 0x20), "dropped-version"),
        ("header version 0", bent(11, |f| f[14] = 0x00), "dropped-version"),
        ("every shelf", bent(12, |f| f[16..18].fill(0xFF)), "dropped-broadcast-write"),
        ("every slot", bent(13, |f| f[18] = 0xFF), "dropped-broadcast-write"),
        ("802.1Q", tagged(14, &[0x81, 0, 0, 5]), "dropped-vlan"),
        ("802.1ad and 802.1Q", tagged(15, &[0x88, 0xA8, 0, 5, 0x81, 0, 0, 6]), "dropped-vlan"),
        ("a volume nobody named", bent(16, |f| f[18] = 7), "dropped-volume"),
        ("count 0", bent(17, |f| f[26] = 0), "dropped-empty-write"),
        ("count 18", bent(18, |f| f[26] = 18), "dropped-short-write"),
        ("a byte short", bent(19, |f| f.truncate(36 + 511)), "dropped-short-write"),
        ("no data at all", bent(20, |f| f.truncate(36)), "dropped-short-write"),
        ("cut in the ATA header", bent(21, |f| f.truncate(30)), "dropped-short-write"),
        ("cut in the AoE header", bent(22, |f| f.truncate(20)), "dropped-short-write"),
        ("cut in the Ethernet header", bent(23, |f| f.truncate(13)), "dropped-bad-frame"),
        ("longer than any frame", bent(24, |f| f.resize(9100, 0)), "dropped-bad-frame"),
        ("the switch's own tag", bent(25, |f| f[20] = 0x80), "dropped-response"),
        ("edit the MAC mask", bent(26, |f| (f[19], f[25]) = (2, 1)), "dropped-aoe-command"),
        ("set the config string", query(27, 3), "dropped-aoe-command"),
        ("a vendor's AoE command", bent(28, |f| f[19] = 0xF0), "dropped-aoe-command"),
        ("config query", query(40, 0), PASSED),
        ("config query without string", query(41, 1), PASSED),
        ("READ with data: a path probe", request(42, 0x20, 1, &[7; 512]), PASSED),
        ("READ EXT", request(43, 0x24, 2, &[]), PASSED),
        ("IDENTIFY", request(44, 0xEC, 1, &[]), PASSED),
        ("FLUSH", request(45, 0xE7, 0, &[]), PASSED),
        ("IPv4", bent(46, |f| f[12..14].copy_from_slice(&[8, 0])), PASSED),
        ("ARP behind a VLAN tag", tagged_arp(), PASSED),
        ("reserve", bent(47, |f| (f[19], f[24], f[25]) = (3, 0, 0)), PASSED),
    ];
    for (place, command) in [0x35, 0x39, 0x3D, 0x61, 0xCA, 0xC5].into_iter().enumerate() {
        cases.push((
            "another write command",
            bent(60 + place as u32, |f| f[27] = command),
            "dropped-ata-command",
        ));
    }
    cases
}

fn tagged_arp() -> Vec<u8> {
    bent(48, |frame| {
        frame.splice(12..14, [0x81, 0, 0, 5, 8, 6]);
    })
}

fn image(folder: &Path, name: &str) -> String {
    let path = folder.join(name);
    std::fs::File::create(&path).unwrap().set_len(SECTORS * 512).unwrap();
    path.display().to_string()
}

fn replay(folder: &Path, engine: &str, frames: &[Vec<u8>]) -> serde_json::Value {
    let capture = folder.join("bad.pcap");
    write_pcap(&capture, frames);
    let journal = folder.join("journal").display().to_string();
    let (capture, primary) = (format!("2={}", capture.display()), format!("1.0={}", image(folder, "img")));
    let arguments = ["--capture", &capture, "--primary", &primary, "--journal", &journal, "--size", "16M"];
    agent(["replay", "--create", "--json", "--engine", engine].iter().chain(&arguments)).fine().json()
}

#[test]
fn each_frame_meets_the_fate_that_its_kind_has() {
    for engine in ENGINES {
        each_frame_meets_its_fate_in(engine);
    }
}

fn each_frame_meets_its_fate_in(engine: &str) {
    let folder = tempfile::tempdir().unwrap();
    let cases = cases();
    let frames: Vec<_> = cases.iter().map(|(_, frame, _)| frame.clone()).collect();
    let replay = replay(folder.path(), engine, &frames);
    let port = &replay["ports"][2];
    println!("{port}");
    let mut expected: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, frame, fate) in &cases {
        *expected.entry(fate).or_default() += 1;
        assert_eq!(&engines_word(frame), fate, "the software engine on: {name}");
    }
    for (fate, count) in &expected {
        let found = if fate.starts_with("dropped-") { &port["dropped"][fate] } else { &port[fate] };
        assert_eq!(found, count, "{fate}: {port}");
    }
    let dropped = port["dropped"].as_object().unwrap();
    assert!(dropped.keys().all(|reason| expected.contains_key(reason.as_str())), "{port}");
    assert_eq!(port["frames"], cases.len());
    assert_eq!(replay["entries"], expected[JOURNALED]);
    what_was_journaled_is_what_was_written(folder.path());
}

fn engines_word(frame: &[u8]) -> &'static str {
    let volumes = VolumeTable::new(&[(1, 0)]).unwrap();
    match classify(frame, &PortRules { volumes, allowed: 1, writes_open: true }) {
        Decision::Write(_) => JOURNALED,
        Decision::Pass => PASSED,
        Decision::Drop(counter) => counter.name(),
    }
}

fn what_was_journaled_is_what_was_written(folder: &Path) {
    let journal = folder.join("journal").display().to_string();
    let log = agent(["log", &journal, "--json"]).fine().json_lines();
    let image = std::fs::read(folder.join("img")).unwrap();
    let mut written = vec![0u8; image.len()];
    for (line, tag) in log.iter().zip(1u8..) {
        let lba = 100 + u64::from(tag) * 2;
        assert_eq!((&line["lba"], &line["sectors"]), (&lba.into(), &1.into()), "{line}");
        assert_eq!(line["crc32c"], layout::crc::crc32c(&[tag; 512]), "{line}");
        written[lba as usize * 512..][..512].fill(tag);
    }
    assert!(image == written, "the target has executed the journaled writes and nothing else");
    agent(["verify", &journal]).fine();
}

#[test]
fn a_write_past_the_end_is_an_entry_that_ends_as_refused() {
    for engine in ENGINES {
        past_the_end_in(engine);
    }
}

fn past_the_end_in(engine: &str) {
    let folder = tempfile::tempdir().unwrap();
    let at_the_end = Request::write(2, SECTORS - 1, 2, 2).frame();
    let far = Request::write(3, (1 << 40) + 5, 1, 3).frame();
    let replay = replay(folder.path(), engine, &[Request::write(1, 0, 1, 1).frame(), at_the_end, far]);
    let port = &replay["ports"][2];
    assert_eq!([&port["journaled"], &port["updated"], &port["refused"]], [&3, &1, &2], "{port}");
    let journal = folder.path().join("journal").display().to_string();
    let log = agent(["log", &journal, "--json"]).fine().json_lines();
    let statuses: Vec<_> = log.iter().map(|line| line["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["updated", "refused", "refused"]);
    assert_eq!(log[2]["lba"], (1u64 << 40) + 5);
    assert_eq!(log[1]["answer"], serde_json::json!({ "status": 0x41, "error": 0x10, "aoe_error": false }));
    let (base, out) = (image(folder.path(), "base"), folder.path().join("out").display().to_string());
    agent(["restore", &journal, "--volume", "1.0", "--base", &base, "--at", "end", "--to", &out]).fine();
    assert!(std::fs::read(out).unwrap() == std::fs::read(folder.path().join("img")).unwrap());
}

#[test]
fn what_a_target_sent_is_not_replayed() {
    let write = Request::write(1, 5, 1, 1).frame();
    // The answer carries the written data, and so looks like a write but for one bit.
    let mut answer = write[..60].to_vec();
    answer[14] = 0x18;
    answer[0..6].copy_from_slice(&[2, 0, 0, 0, 0, 0x51]);
    answer[6..12].copy_from_slice(&[2, 0xC5, 9, 9, 9, 9]);
    let mut from_target = Request::write(9, 9, 1, 9).frame();
    from_target[6..12].copy_from_slice(&[2, 0xC5, 9, 9, 9, 9]);
    for engine in ENGINES {
        let folder = tempfile::tempdir().unwrap();
        let replay = replay(folder.path(), engine, &[write.clone(), answer.clone(), from_target.clone()]);
        assert_eq!([&replay["ignored"], &replay["entries"], &replay["ports"][2]["frames"]], [&2, &1, &1]);
    }
}
