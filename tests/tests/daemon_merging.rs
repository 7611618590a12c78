//! The daemon merges beside ingest: more is written than the journal has room for, and it all gets through.

use journal::image::{Backing, Image};
use journal::{CreateOptions, Error, Journal, JournalReader, Moment, PreviousEnd, Volume};
use serde_json::{json, Value};
use std::path::PathBuf;
use system_tests::agent::{agent, Ran};
use system_tests::capture::{write_pcap, Request};
use system_tests::daemon::Daemon;
use system_tests::images::Over;

const VOLUME_BYTES: usize = 1 << 20;
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(180);
/// Of a write: 8 KiB.
const SECTORS: u8 = 16;
/// 9 MiB of data through a journal of 4 MiB.
const WRITES: u32 = 1200;

struct Place {
    folder: tempfile::TempDir,
    /// So many places of the volume are written, over and over.
    places: u32,
}

impl Place {
    fn new(places: u32) -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap(), places };
        for name in ["1.0.img", "1.0.base"] {
            std::fs::File::create(place.path(name)).unwrap().set_len(VOLUME_BYTES as u64).unwrap();
        }
        let frames: Vec<_> = (1..=WRITES).map(|tag| place.write(tag).frame()).collect();
        write_pcap(&place.path("capture.pcap"), &frames);
        place
    }

    fn write(&self, tag: u32) -> Request {
        let lba = tag * 7 % self.places * u32::from(SECTORS);
        Request::write(tag, lba.into(), SECTORS, (tag % 251) as u8 + 1)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A journal that knows the volume's base.
    fn journal_with_base(&self) {
        let options = CreateOptions {
            bytes: Some(4 << 20),
            segment_bytes: None,
            volumes: vec![Volume::aoe(0, 1, 0, (VOLUME_BYTES / 512) as u64)],
            ports: Vec::new(),
            writer: "system-tests".into(),
        };
        Journal::create(&self.path("journal"), &options).unwrap().close().unwrap();
        let (journal, base) = (self.text("journal"), self.text("1.0.base"));
        agent(["base", "adopt", &journal, "--volume", "1.0", "--base", &base]).fine();
    }

    /// Replays everything, through the daemon, on a thread of its own.
    fn replay(&self, images: &str) -> std::thread::JoinHandle<Ran> {
        let (journal, capture) = (self.text("journal"), format!("0={}", self.text("capture.pcap")));
        let (primary, images) = (format!("1.0={}", self.text("1.0.img")), images.to_owned());
        std::thread::spawn(move || {
            let replay = ["replay", "--engine", "soft", "--images", &images, "--journal", &journal, "--json"];
            agent(replay.iter().chain(&["--capture", &capture, "--primary", &primary]))
        })
    }

    fn image(&self, over: Over, order: u64) -> Result<Vec<u8>, Error> {
        let reader = JournalReader::open(&self.path("journal"))?;
        let file = over.file(self.folder.path(), "1.0");
        let backing = match over {
            Over::Base => Backing::Base(&file),
            Over::Primary => Backing::Primary(&file),
        };
        let image = Image::open(reader, "1.0", Moment::Order(order), backing, false, &mut |_, _| {})?;
        let mut bytes = vec![0; VOLUME_BYTES];
        image.read_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Each moment is right or refused, and those that the schedule promises are there: every write of the last
    /// `promised` ns.
    #[track_caller]
    fn moments_are_right(&self, over: Over, promised: u64) {
        let log = agent(["log", &self.text("journal"), "--json", "--from", "order:1"]).stdout;
        let stamps: Vec<(u64, u64)> = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter_map(|line| Some((line["order"].as_u64()?, line["timestamp"].as_u64()?)))
            .collect();
        let now = stamps.last().unwrap().1;
        let (mut model, mut right, mut refused) = (vec![0; VOLUME_BYTES], 0, 0);
        for order in 0..=u64::from(WRITES) {
            if order > 0 {
                let write = self.write(order as u32);
                model[write.lba as usize * 512..][..write.data.len()].copy_from_slice(&write.data);
            }
            // Of those far back, which are refused or windows, some.
            if order % 5 != 0 && order + 300 < u64::from(WRITES) {
                continue;
            }
            match self.image(over, order) {
                Ok(image) => {
                    assert!(image == model, "order:{order} over {over:?}");
                    right += 1;
                }
                Err(Error::Merged { .. } | Error::NoMoment(_) | Error::Base { .. }) => {
                    let stamp = stamps.iter().find(|(known, _)| *known == order).map(|(_, stamp)| *stamp);
                    assert!(
                        stamp.is_none_or(|stamp| stamp + promised < now),
                        "order:{order} is promised, {} ns before the end",
                        now - stamp.unwrap_or(now)
                    );
                    refused += 1;
                }
                Err(error) => panic!("order:{order}: {error:?} {error}"),
            }
        }
        println!(
            "{right} moments right, {refused} refused; the last {promised} ns are {stamps}",
            stamps = stamps.len()
        );
        assert!(right > 40 && refused > 0, "{right} moments, {refused} refused");
        assert!(std::fs::read(self.path("1.0.img")).unwrap() == model, "primary");
    }

    #[track_caller]
    fn ended_in_order(&self) {
        let sound = agent(["verify", &self.text("journal"), "--json"]).fine().json();
        assert_eq!(sound["gaps"], 0, "{sound}");
        let journal = Journal::open_ports_closed(&self.path("journal"), "system-tests").unwrap();
        assert_eq!(journal.opened().previous, PreviousEnd::Clean);
        journal.close().unwrap();
    }
}

/// Should room never be made, it waits for ever.
#[track_caller]
fn finished(replay: std::thread::JoinHandle<Ran>) -> Ran {
    let begun = std::time::Instant::now();
    while !replay.is_finished() {
        assert!(begun.elapsed() < PATIENCE, "it waits for room");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    replay.join().unwrap()
}

fn merge(daemon: &Daemon, more: &str) -> Value {
    let answer = daemon.send(format!("{{\"version\":1,\"command\":\"merge\"{more}}}\n").as_bytes());
    serde_json::from_str(answer.lines().last().unwrap_or_default())
        .unwrap_or_else(|e| panic!("{answer}: {e}"))
}

/// Stamps of the replay are of simulated time, tens of µs apart.
const SCHEDULE: &str = ",\"schedule\":\"all:2ms/1ms,500us:40ms/2ms\"";
const PROMISED: u64 = 1_000_000;

#[test]
fn more_than_fits_gets_through_because_history_is_rolled_into_the_base() {
    let place = Place::new(128);
    place.journal_with_base();
    let base = format!("1.0={}", place.text("1.0.base"));
    let daemon = Daemon::start(&place.path("journal"), ["--base", &base]);
    let set = merge(&daemon, SCHEDULE);
    assert_eq!(set["result"]["steps"], 0, "{set}");
    let replayed = finished(place.replay("after")).fine().json();
    assert_eq!((&replayed["entries"], &replayed["lost"]), (&json!(WRITES), &json!(0)), "{replayed}");
    let status = daemon.status();
    let merging = &status["merging"];
    assert!(merging["earlier"]["given_up"].as_u64() > Some(500), "{status}");
    assert!(
        merging["earlier"]["bytes_rolled"].as_u64() > Some(0) && merging["trouble"].is_null(),
        "{status}"
    );
    let said = agent(["status", &place.text("journal")]).fine().stdout;
    assert!(said.contains("earlier") && said.contains("500"), "{said}");
    let ended = daemon.stop();
    assert_eq!(ended.code, Some(0));
    assert!(ended.said.contains("room is short, so earlier than otherwise"), "{}", ended.said);
    place.ended_in_order();
    place.moments_are_right(Over::Base, PROMISED);
}

#[test]
fn with_before_images_the_oldest_are_given_up_beside_ingest() {
    // Each is written several times in a window.
    let place = Place::new(16);
    let daemon = Daemon::start(&place.path("journal"), ["--create", "--size", "4M"]);
    merge(&daemon, ",\"schedule\":\"all:1ms/500us,500us:60ms/2ms\"");
    let replayed = finished(place.replay("before")).fine().json();
    assert_eq!((&replayed["entries"], &replayed["lost"]), (&json!(WRITES), &json!(0)), "{replayed}");
    let status = daemon.status();
    let earlier = &status["merging"]["earlier"];
    assert!(earlier["given_up"].as_u64() > Some(0), "{status}");
    assert_eq!(earlier["bytes_rolled"], 0, "there is no base: {status}");
    let ended = daemon.stop();
    assert_eq!(ended.code, Some(0));
    assert!(ended.said.contains("room is short, so earlier than otherwise"), "{}", ended.said);
    place.ended_in_order();
    place.moments_are_right(Over::Primary, 500_000);
}

#[test]
fn what_may_not_go_stays_and_that_is_said() {
    let place = Place::new(128);
    place.journal_with_base();
    // It isn't told where the base is.
    let mut daemon = Daemon::start(&place.path("journal"), [""; 0]);
    for (wrong, why) in
        [(",\"schedule\":\"all\"", "all:24h"), (",\"bases\":{\"1.0\":\"base\"}", "not absolute")]
    {
        let refused = merge(&daemon, wrong);
        let error = &refused["error"];
        assert!(error["misuse"] == true && error["message"].as_str().unwrap().contains(why), "{refused}");
    }
    merge(&daemon, SCHEDULE);
    let replay = place.replay("after");
    let waits = |status: &Value| status["doing"]["waits_for_room"] == true;
    let full = daemon.wait_until(|status| waits(status) && status["merging"]["held_back"] != json!([]));
    daemon.wait_for("takes no more");
    let hint = "until it can be rolled into the base: --base 1.0=FILE";
    daemon.wait_for(hint);
    assert!(full["warnings"].to_string().contains(hint), "{full}");
    assert_eq!(full["merging"]["last"]["given_up"], 0, "{full}");
    // Names are given meanwhile, and it stays sound.
    agent(["bookmark", "add", &place.text("journal"), "full"]).fine();
    agent(["verify", &place.text("journal")]).fine();
    let later = daemon.status();
    assert!(waits(&later) && later["order"] == full["order"], "{later}");
    // A client knows it.
    let bases = format!(",\"short\":true,\"bases\":{{\"1.0\":{:?}}}", place.path("1.0.base"));
    let mut given_up = 0;
    let begun = std::time::Instant::now();
    while !replay.is_finished() {
        assert!(begun.elapsed() < PATIENCE, "{}", daemon.status());
        let merged = merge(&daemon, &bases);
        given_up += merged["result"]["given_up"].as_u64().unwrap_or_else(|| panic!("{merged}"));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(replay.join().unwrap().fine().json()["entries"], WRITES);
    assert!(given_up > 300, "{given_up}");
    let ended = daemon.stop();
    assert_eq!(ended.code, Some(0));
    let said =
        ended.said.lines().filter(|line| line.contains(hint) && line.contains("room is short, and")).count();
    assert!((1..20).contains(&said), "said, but not again and again: {said}");
    place.ended_in_order();
    place.moments_are_right(Over::Base, PROMISED);
}
