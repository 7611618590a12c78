//! `host-agent serve` from outside: what clients write can be had back at any write, beside whom it may, after whatever happens
//! to the server.
//!
//! `CHRONO_KILLS` kills (6 unless set).

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use system_tests::agent::agent;
use system_tests::nbd_client::Client;
use system_tests::serving::Serving;
use system_tests::{samples, seed};

const BYTES: usize = 8 << 20;

struct Place(tempfile::TempDir);

impl Place {
    /// With disks and their bases, full of zeroes.
    fn new(disks: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for disk in disks {
            for kind in ["img", "base"] {
                let file = std::fs::File::create(folder.path().join(format!("{disk}.{kind}"))).unwrap();
                file.set_len(BYTES as u64).unwrap();
            }
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// The moment of a volume, over its base.
    #[track_caller]
    fn restore(&self, disk: &str, at: &str) -> Vec<u8> {
        let (journal, base, out) = (self.text("j"), self.text(&format!("{disk}.base")), self.text("out"));
        let arguments = ["--volume", disk, "--base", &base, "--at", at, "--to", &out, "--force"];
        agent(["restore", &journal].iter().chain(&arguments)).fine();
        self.read("out")
    }

    fn entries(&self) -> u64 {
        agent(["status", &self.text("j"), "--json"]).fine().json()["order"].as_u64().unwrap()
    }

    #[track_caller]
    fn sound(&self) {
        agent(["verify", &self.text("j")]).fine();
    }
}

fn start(place: &Place, exports: &[&str], more: &[&str]) -> Serving {
    Serving::start(place.0.path(), exports, more)
}

const CREATE: [&str; 3] = ["--create", "--size", "64M"];

#[test]
fn every_moment_of_two_clients_and_two_volumes() {
    let place = Place::new(&["one", "two"]);
    let serving = start(&place, &["one=one.img", "two=two.img"], &CREATE);
    let mut random = ChaCha8Rng::seed_from_u64(seed());
    let mut clients = [("one", 0), ("two", 1), ("one", 0)]
        .map(|(name, disk)| (Client::connect(serving.socket(), name).unwrap(), disk));
    let mut states = vec![[vec![0; BYTES], vec![0; BYTES]]];
    for count in 0..60 {
        let (client, disk) = &mut clients[random.random_range(0..3)];
        let length = random.random_range(1..=64) * 512;
        let offset = random.random_range(0..=(BYTES - length) / 512) * 512;
        let mut state = states.last().unwrap().clone();
        if count % 10 == 9 {
            client.trim(offset as u64, length as u32).unwrap();
            state[*disk][offset..offset + length].fill(0);
        } else {
            let data: Vec<u8> = (0..length).map(|_| random.random()).collect();
            client.write(offset as u64, &data).unwrap();
            state[*disk][offset..offset + length].copy_from_slice(&data);
            let mut there = vec![0; length];
            client.read(offset as u64, &mut there).unwrap();
            assert!(there == data);
        }
        states.push(state);
    }
    clients[0].0.flush().unwrap();
    // Beside the server, while it has the journal.
    assert_eq!(place.entries(), 60);
    let bookmark = agent(["bookmark", "add", &place.text("j"), "half", "--at", "order:30"]).fine();
    assert!(bookmark.stdout.contains("half"), "{}", bookmark.stdout);
    for order in [0, 1, 17, 30, 59, 60] {
        for (disk, name) in ["one", "two"].iter().enumerate() {
            let at = format!("order:{order}");
            assert!(place.restore(name, &at) == states[order][disk], "{name} at {at}");
        }
    }
    assert!(place.restore("one", "bookmark:half") == states[30][0]);
    let log = agent(["log", &place.text("j"), "--json"]).fine().json_lines();
    let ports: std::collections::BTreeSet<u64> =
        log.iter().map(|line| line["port"].as_u64().unwrap()).collect();
    assert_eq!(ports.len(), 3, "a port for each client");
    drop(clients);
    let (code, said) = serving.end("-TERM");
    assert!(code == Some(0) && said.contains("ended in order"), "{said}");
    place.sound();
    assert!(place.read("one.img") == states[60][0] && place.read("two.img") == states[60][1]);
    // And on with it; nothing had to be made good.
    let serving = start(&place, &["one=one.img", "two=two.img"], &[]);
    assert!(!serving.said().contains("not ended in order"), "{}", serving.said());
    let mut client = Client::connect(serving.socket(), "two").unwrap();
    client.write_through(512, &[9; 512]).unwrap();
    assert_eq!(place.entries(), 61);
    serving.end("-TERM");
    place.sound();
}

#[test]
fn what_needs_the_owner_works_beside_it() {
    let place = Place::new(&["one", "two"]);
    let serving = start(&place, &["one=one.img", "two=two.img"], &CREATE);
    let journal = place.text("j");
    let mut client = Client::connect(serving.socket(), "one").unwrap();
    let mut other = Client::connect(serving.socket(), "two").unwrap();
    (0..50u64).for_each(|n| client.write(n * 4096, &[n as u8 + 1; 4096]).unwrap());
    // What was answered is in a moment's name, flushed or not.
    agent(["bookmark", "add", &journal, "fifty"]).fine();
    assert!(agent(["bookmark", "list", &journal]).fine().stdout.contains("order:50"));
    let before = place.read("one.img");
    // A copy of what goes on being written.
    let (primary, base) = (place.text("one.img"), place.text("new.base"));
    agent(["base", "create", &journal, "--volume", "one", "--primary", &primary, "--to", &base]).fine();
    other.write(0, &[7; 4096]).unwrap();
    (0..50u64).for_each(|n| client.write(n * 4096, &[n as u8 + 101; 4096]).unwrap());
    client.flush().unwrap();
    let rollback = ["restore", &journal, "--volume", "one", "--primary", &primary, "--base", &base];
    let rollback: Vec<&str> = rollback.into_iter().chain(["--at", "bookmark:fifty", "--in-place"]).collect();
    agent(&rollback).failed(1, &["in use by 1 client", "disconnect"]);
    agent(["volume", "resize", &journal, "--volume", "one", "--size", "16M", "--primary", &primary])
        .failed(1, &["being served"]);
    drop(client);
    // The server lets go of a client that has gone in its own time.
    let mut ran = agent(&rollback);
    for _ in 0..100 {
        if ran.code == Some(0) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        ran = agent(&rollback);
    }
    ran.fine();
    assert!(place.read("one.img") == before, "primary is back, under the server");
    // And it goes on.
    other.write(4096, &[8; 4096]).unwrap();
    let mut client = Client::connect(serving.socket(), "one").unwrap();
    let mut there = vec![0; 4096];
    client.read(0, &mut there).unwrap();
    assert!(there == before[..4096]);
    client.write(0, &[200; 4096]).unwrap();
    client.flush().unwrap();
    agent(["merge", &journal, "--schedule", "all:1h,1m:7d"]).fine();
    serving.end("-TERM");
    place.sound();
    let out = place.text("out");
    let end = ["restore", &journal, "--volume", "one", "--base", &base, "--at", "end", "--to", &out];
    agent(end).fine();
    assert!(place.read("out") == place.read("one.img"));
}

/// Images at any moment beside a server that was killed at random, several times: what was answered is there, what was flushed
/// for certain, and the gap ends at the next start.
#[test]
fn a_killed_server_goes_on_with_all_that_was_answered() {
    let mut random = ChaCha8Rng::seed_from_u64(seed());
    let place = Place::new(&["one"]);
    let mut state = vec![0; BYTES];
    for kill in 0..samples("CHRONO_KILLS", 6) {
        let images = if kill == 0 { &CREATE[..] } else { &[] };
        let serving = start(&place, &["one=one.img"], images);
        assert_eq!(serving.said().contains("not ended in order"), kill > 0, "{}", serving.said());
        let mut client = Client::connect(serving.socket(), "one").unwrap();
        let mut there = vec![0; BYTES];
        client.read(0, &mut there).unwrap();
        assert!(there == state, "kill {kill}: what was answered is there");
        assert!(place.restore("one", "end") == state, "kill {kill}: and the journal knows it");
        for _ in 0..random.random_range(1..400) {
            let length = random.random_range(1..=16) * 512;
            let offset = random.random_range(0..=(BYTES - length) / 512) * 512;
            let data: Vec<u8> = (0..length).map(|_| random.random()).collect();
            client.write(offset as u64, &data).unwrap();
            state[offset..offset + length].copy_from_slice(&data);
            if random.random_ratio(1, 40) {
                client.flush().unwrap();
            }
        }
        serving.end("-KILL");
        place.sound();
    }
}

/// With before-images primary is never ahead, so a kill costs no moment at all.
#[test]
fn before_images_survive_kills_without_a_gap() {
    let mut random = ChaCha8Rng::seed_from_u64(seed());
    for images in ["before", "both"] {
        let place = Place::new(&["one"]);
        let mut states = vec![vec![0; BYTES]];
        for kill in 0..2 {
            let create = if kill == 0 { &CREATE[..] } else { &[] };
            let more: Vec<&str> = create.iter().copied().chain(["--images", images]).collect();
            let serving = start(&place, &["one=one.img"], &more);
            let mut client = Client::connect(serving.socket(), "one").unwrap();
            for _ in 0..random.random_range(5..25) {
                let length = random.random_range(1..=16) * 512;
                let offset = random.random_range(0..=(BYTES - length) / 512) * 512;
                let data: Vec<u8> = (0..length).map(|_| random.random()).collect();
                client.write(offset as u64, &data).unwrap();
                let mut state = states.last().unwrap().clone();
                state[offset..offset + length].copy_from_slice(&data);
                states.push(state);
            }
            serving.end("-KILL");
        }
        let serving = start(&place, &["one=one.img"], &["--images", images]);
        place.sound();
        for order in [0, 1, states.len() / 2, states.len() - 1] {
            let (journal, primary, out) = (place.text("j"), place.text("one.img"), place.text("out"));
            let at = format!("order:{order}");
            let arguments = ["--volume", "one", "--primary", &primary, "--at", &at, "--to", &out, "--force"];
            agent(["restore", &journal].iter().chain(&arguments)).fine();
            assert!(place.read("out") == states[order], "{images}, {at}");
        }
        serving.end("-TERM");
    }
}

/// Whoever was served when it stopped has to be made good before anything else goes on.
#[test]
fn a_killed_volume_is_not_forgotten() {
    let place = Place::new(&["one", "two"]);
    let serving = start(&place, &["one=one.img", "two=two.img"], &CREATE);
    let mut client = Client::connect(serving.socket(), "two").unwrap();
    client.write(0, &[5; 4096]).unwrap();
    serving.end("-KILL");
    let (journal, socket, one) = (place.text("j"), place.text("s"), format!("one={}", place.text("one.img")));
    agent(["serve", "--journal", &journal, "--socket", &socket, "--export", &one])
        .failed(1, &["volume two", "--export"]);
    let serving = start(&place, &["one=one.img", "two=two.img"], &[]);
    assert!(place.restore("two", "end") == place.read("two.img"));
    assert!(place.read("two.img")[..4096] == [5; 4096]);
    serving.end("-TERM");
    // Ended in order, nobody is owed anything.
    start(&place, &["one=one.img"], &[]).end("-TERM");
    // Without the log everything is compared.
    let serving = start(&place, &["one=one.img"], &[]);
    let mut client = Client::connect(serving.socket(), "one").unwrap();
    client.write(0, &[6; 4096]).unwrap();
    serving.end("-KILL");
    std::fs::remove_file(place.path("j.dirty")).unwrap();
    let serving = start(&place, &["one=one.img"], &[]);
    assert!(serving.said().contains("everything was compared"), "{}", serving.said());
    assert!(place.restore("one", "end")[..4096] == [6; 4096]);
    serving.end("-TERM");
    place.sound();
}

#[test]
fn hostile_and_vanishing_clients_disturb_nobody() {
    let place = Place::new(&["one"]);
    let serving = start(&place, &["one=one.img"], &CREATE);
    let mut random = ChaCha8Rng::seed_from_u64(seed());
    let mut good = Client::connect(serving.socket(), "one").unwrap();
    for round in 0..120u64 {
        // More than may connect at once, some of them with a write under way, some with rubbish.
        if let Ok(mut bad) = Client::connect(serving.socket(), "one") {
            match round % 3 {
                0 => drop(bad.send_write(4096 * (round % 16), &[3; 4096])),
                1 => drop(bad.send(&(0..200).map(|_| random.random()).collect::<Vec<u8>>())),
                _ => drop(bad.write(0, &[1; 100])),
            }
        }
        good.write(1 << 20, &[round as u8; 4096]).unwrap();
    }
    good.flush().unwrap();
    let mut there = vec![0; 4096];
    good.read(1 << 20, &mut there).unwrap();
    assert!(there == [119; 4096]);
    assert!(serving.memory() < 512 << 20);
    serving.end("-TERM");
    place.sound();
    assert!(place.restore("one", "end") == place.read("one.img"));
}

#[test]
fn a_thousand_connections_are_bounded_and_said() {
    let place = Place::new(&["one"]);
    let serving = start(&place, &["one=one.img"], &CREATE);
    let mut good = Client::connect(serving.socket(), "one").unwrap();
    let mut crowd = Vec::new();
    for count in 0..1000u32 {
        crowd.push(UnixStream::connect(serving.socket()).unwrap());
        if count % 50 == 0 {
            good.write(1 << 20, &count.to_be_bytes().repeat(1024)).unwrap();
        }
    }
    // Places are taken in order, and who has none is closed at once, without a byte.
    let greeted = |client: &mut UnixStream| {
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client.read_exact(&mut [0; 18]).is_ok()
    };
    let places: Vec<bool> = crowd.iter_mut().map(greeted).collect();
    assert_eq!(places.iter().filter(|has| **has).count(), 63, "64 may be connected");
    assert!(places[..63].iter().all(|has| *has));
    good.flush().unwrap();
    // All that the others cost; and a place is free again as soon as somebody goes.
    assert!(serving.memory() < 512 << 20, "{}", serving.memory());
    drop(crowd);
    let begun = Instant::now();
    let mut late = loop {
        match Client::connect(serving.socket(), "one") {
            Ok(client) => break client,
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(20), "{error}"),
        }
    };
    let mut there = vec![0; 4096];
    late.read(1 << 20, &mut there).unwrap();
    assert!(there == 950u32.to_be_bytes().repeat(1024));
    let (_, said) = serving.end("-TERM");
    let lines = said.lines().filter(|line| line.contains("turned away")).count();
    assert!((1..=60).contains(&lines), "{lines} lines of the log for 937 clients");
    place.sound();
}

#[test]
fn what_can_not_be_meant_is_refused() {
    let place = Place::new(&["one"]);
    let folder: &Path = place.0.path();
    let serve = |arguments: &[&str]| {
        let journal = place.text("j");
        let socket = place.text("s");
        agent(["serve", "--journal", &journal, "--socket", &socket].iter().chain(arguments))
    };
    let one = format!("one={}", place.text("one.img"));
    serve(&["--export", &one]).failed(1, &["--create"]);
    serve(&["--create", "--size", "16M", "--export", "one=/nonexistent"]).failed(1, &["one", "/nonexistent"]);
    let part = format!("{one}:0+100");
    serve(&["--create", "--size", "16M", "--export", &part]).failed(1, &["whole sectors"]);
    let parts = [format!("a={}:0+1M", place.text("one.img")), format!("b={}:512K+1M", place.text("one.img"))];
    serve(&["--create", "--size", "16M", "--export", &parts[0], "--export", &parts[1]])
        .failed(1, &["another export's"]);
    serve(&["--create", "--size", "16M", "--export", &one, "--export", &one]).failed(2, &["given twice"]);
    assert!(!folder.join("j").exists(), "nothing was made");
    let serving = start(&place, &["one=one.img"], &CREATE);
    // Its primary is its own, and so is its journal.
    let other = place.text("k");
    agent([
        "serve",
        "--journal",
        &other,
        "--create",
        "--size",
        "16M",
        "--socket",
        &place.text("s"),
        "--export",
        &one,
    ])
    .failed(1, &["another process"]);
    serving.end("-TERM");
    serve(&["--export", &one, "--images", "before"]).failed(1, &["after-images", "--images after"]);
    std::fs::File::options().write(true).open(place.path("one.img")).unwrap().set_len(4 << 20).unwrap();
    serve(&["--export", &one]).failed(1, &["sectors", "volume resize"]);
}
