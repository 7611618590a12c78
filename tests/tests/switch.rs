//! AoE ports in software: the switch between virtual links, a running `vblade` behind it, initiators before it. What the journal
//! says is compared with what arrived at the target.

use journal::image::{Backing, Image};
use journal::{JournalReader, Moment};
use layout::crc::crc32c;
use layout::dirty_log::{Header as DirtyHeader, SLOT_BYTES};
use layout::journal_file::PREFIX_CRC_OFFSET;
use ports::interface::wait;
use rand::Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use system_tests::agent::{agent, program, Ran};
use system_tests::initiator::{initiate, write_frame, written, Plan};
use system_tests::network::{cable, in_own_network, run, Recording, Vblade};
use system_tests::serving::Serving;
use system_tests::{samples, seed};
use zerocopy::FromBytes;

const VOLUME: (u16, u8) = (1, 0);
const BYTES: usize = 256 << 10;
/// Of a large volume: its size, and a place far behind those that initiators write to.
const LARGE: u64 = 64 << 20;
const FAR: u64 = 40 << 20;
const FAR_BYTES: usize = 64 << 10;
/// Time-outs that a test can wait for: a target that was asleep may have lost all copies of a write.
const PATIENT: [&str; 4] = ["--unknown", "1000", "--quarantine", "1500"];
const QUICK: [&str; 4] = ["--unknown", "400", "--quarantine", "700"];
/// A pause of the target, in which sources send again.
const PAUSE: Duration = Duration::from_millis(250);
const CREATE: [&str; 3] = ["--create", "--size", "64M"];

/// A write that arrived at the target: first sector, and the data.
type Arrived = (u64, Vec<u8>);

/// Links, target and files of a test.
struct World {
    folder: tempfile::TempDir,
    target: Option<Vblade>,
    arrived: Recording,
}

impl World {
    fn new(mtu: usize) -> Self {
        Self::with_volume(mtu, BYTES as u64)
    }

    fn with_volume(mtu: usize, bytes: u64) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["disk", "base"] {
            std::fs::File::create(folder.path().join(name)).and_then(|f| f.set_len(bytes)).expect("a file");
        }
        for (one, other) in [("source0", "port0"), ("source1", "port1"), ("uplink", "target")] {
            cable(one, other, mtu);
        }
        let target = Some(Vblade::start(VOLUME.0, VOLUME.1, "target", &folder.path().join("disk")));
        Self { arrived: Recording::start("target"), target, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn arguments(&self, more: &[&str]) -> Vec<String> {
        let fixed = [
            "switch",
            "--journal",
            &self.text("j"),
            "--port",
            "port0",
            "--port",
            "port1",
            "--uplink",
            "uplink",
        ];
        fixed.iter().chain(more).map(|word| word.to_string()).collect()
    }

    fn switch(&self, more: &[&str]) -> Serving {
        let mut command = Command::new(program());
        command.args(self.arguments(more));
        Serving::run(command, "switching ")
    }

    fn status(&self) -> Value {
        // What is shown is a moment old.
        std::thread::sleep(Duration::from_millis(500));
        agent(["status", &self.text("j"), "--json"]).fine().json()
    }

    /// Both initiators at once, at overlapping places.
    fn traffic(&self, writes: usize, most: u8, random: &mut ChaCha8Rng) -> usize {
        let plan = Plan { volume: VOLUME, sectors: 128, most, writes, lose: 40 };
        let seeds = [random.random(), random.random()];
        std::thread::scope(|scope| {
            let sources = ["source0", "source1"].into_iter().zip(seeds).map(|(interface, seed)| {
                scope.spawn(move || initiate(interface, plan, &mut ChaCha8Rng::seed_from_u64(seed)))
            });
            sources
                .collect::<Vec<_>>()
                .into_iter()
                .map(|source| source.join().expect("it wrote everything"))
                .sum()
        })
    }

    /// What `log` lists.
    fn log(&self) -> Vec<Value> {
        agent(["log", &self.text("j"), "--json"]).fine().json_lines()
    }

    /// What arrived at the target, and what it holds; then the target has ended.
    fn end(mut self) -> (Vec<Arrived>, Vec<u8>, tempfile::TempDir) {
        drop(self.target.take());
        let frames = self.arrived.end();
        let writes = frames.iter().filter_map(|frame| written(frame)).map(|(lba, data)| (lba, data.to_vec()));
        let file = std::fs::File::open(self.folder.path().join("disk")).expect("the target's file");
        let far = if file.metadata().expect("its size").len() == LARGE { FAR_BYTES } else { 0 };
        let mut disk = vec![0; BYTES + far];
        areas(&mut disk, |offset, area| file.read_exact_at(area, offset).expect("the target's file"));
        (writes.collect(), disk, self.folder)
    }
}

/// The parts of a volume that models have: its beginning, and of a large one what is far behind.
fn areas(model: &mut [u8], mut each: impl FnMut(u64, &mut [u8])) {
    let (first, far) = model.split_at_mut(BYTES);
    each(0, first);
    if !far.is_empty() {
        each(FAR, far);
    }
}

fn apply(model: &mut [u8], (lba, data): &Arrived) {
    let at = *lba * 512;
    let at = if at >= FAR { BYTES as u64 + at - FAR } else { at } as usize;
    model[at..at + data.len()].copy_from_slice(data);
}

/// The image of an order must be `model`.
#[track_caller]
fn image_is(folder: &tempfile::TempDir, order: u64, primary: bool, model: &[u8]) {
    let reader = JournalReader::open(&folder.path().join("j")).expect("the journal");
    let file = folder.path().join(if primary { "disk" } else { "base" });
    let backing = if primary { Backing::Primary(&file) } else { Backing::Base(&file) };
    let image = Image::open(reader, "1.0", Moment::Order(order), backing, false, &mut |_, _| {});
    let image = image.unwrap_or_else(|e| panic!("order:{order}, over primary: {primary}: {e}"));
    let mut bytes = vec![0; model.len()];
    areas(&mut bytes, |offset, area| image.read_at(area, offset).expect("the image can be read"));
    assert!(bytes == model, "order:{order}, over primary: {primary}");
}

fn place(line: &Value) -> (u64, usize) {
    (line["lba"].as_u64().expect("a place"), line["sectors"].as_u64().expect("a length") as usize * 512)
}

/// Puts what arrived into the order of the journal. Where nothing waits for the disk it is the same order; elsewhere writes that
/// don't overlap may have changed places.
#[track_caller]
fn in_journal_order(log: &[Value], mut arrived: Vec<Arrived>, strictly: bool) -> Vec<Arrived> {
    assert_eq!(log.len(), arrived.len(), "entries, and writes that arrived");
    let mut ordered = Vec::new();
    for line in log {
        let (lba, bytes) = place(line);
        let found = arrived.iter().position(|(at, data)| (*at, data.len()) == (lba, bytes));
        let found = found.unwrap_or_else(|| panic!("nothing like that arrived: {line}"));
        assert!(!strictly || found == 0, "another write arrived first: {line}");
        ordered.push(arrived.remove(found));
    }
    ordered
}

fn every_moment(images: &str, mtu: usize, writes: usize) {
    let mut random = ChaCha8Rng::seed_from_u64(seed());
    let world = World::new(mtu);
    let more: Vec<&str> = CREATE.into_iter().chain(PATIENT).chain(["--images", images]).collect();
    let switch = world.switch(&more);
    let resent = std::thread::scope(|scope| {
        let (inside, seed) = (&world, random.random());
        let most = if mtu > 1500 { 17 } else { 2 };
        let traffic = scope.spawn(move || inside.traffic(writes, most, &mut ChaCha8Rng::seed_from_u64(seed)));
        // What is sent again while the target sleeps is let through as a copy.
        while !traffic.is_finished() {
            let target = world.target.as_ref().expect("it runs");
            target.pause(true);
            std::thread::sleep(PAUSE);
            target.pause(false);
            std::thread::sleep(PAUSE);
        }
        traffic.join().expect("it wrote everything")
    });
    let status = world.status();
    let (code, said) = switch.end("-TERM");
    assert!(code == Some(0) && said.contains("ended in order"), "{said}");
    agent(["verify", &world.text("j")]).fine();
    let log = world.log();
    let (arrived, disk, folder) = world.end();
    println!("{images}, MTU {mtu}: {} writes arrived, {resent} sent again", arrived.len());
    let duplicates = log.iter().filter(|line| line["flags"].to_string().contains("duplicate")).count();
    println!("{duplicates} of them copies");
    // With before-images a write waits for the sleeping target unforwarded.
    assert!(duplicates > 0 || images != "after", "nothing was let through as a copy");
    let updated = log.iter().filter(|line| line["status"] == "updated").count();
    assert!(arrived.len() >= 2 * writes && updated >= 2 * writes, "{updated} of {} were answered", log.len());
    for port in 0..2 {
        let journaled = log.iter().filter(|line| line["port"] == port).count();
        let counted = &status["switch"]["ports"][port]["counters"];
        assert!(journaled > 0 && counted["journaled"] == journaled as u64, "port {port}: {counted}");
        assert!(counted["dropped-ring-full"].is_null());
    }
    let ordered = in_journal_order(&log, arrived, images == "after");
    let mut model = vec![0; BYTES];
    for (order, write) in ordered.iter().enumerate() {
        if images == "after" {
            assert_eq!(log[order]["crc32c"], crc32c(&write.1));
        }
        if images != "before" {
            image_is(&folder, order as u64, false, &model);
        }
        if images != "after" {
            image_is(&folder, order as u64, true, &model);
        }
        apply(&mut model, write);
    }
    assert!(model == disk, "the target holds what arrived");
    image_is(&folder, log.len() as u64, images == "before", &disk);
}

#[test]
fn every_moment_with_after_images() {
    in_own_network("every_moment_with_after_images", || {
        every_moment("after", 1500, samples("CHRONO_WRITES", 150));
    });
}

#[test]
fn every_moment_with_both_images() {
    in_own_network("every_moment_with_both_images", || {
        every_moment("both", 9000, samples("CHRONO_WRITES", 80));
    });
}

#[test]
fn every_moment_with_before_images() {
    in_own_network("every_moment_with_before_images", || {
        every_moment("before", 1500, samples("CHRONO_WRITES", 80));
    });
}

/// Killed in the middle, and started again while its sources go on: what the target had got and the journal had not is journaled
/// first, and from there on every moment is right again.
fn killed(images: &str, large: bool) {
    let mut random = ChaCha8Rng::seed_from_u64(seed());
    let world = World::with_volume(1500, if large { LARGE } else { BYTES as u64 });
    let more: Vec<&str> = CREATE.into_iter().chain(QUICK).chain(["--images", images]).collect();
    let switch = world.switch(&more);
    let is_write = |frame: &[u8]| written(frame).is_some();
    let writes = samples("CHRONO_WRITES", 200);
    let kill_at = random.random_range(20..writes / 2);
    if large {
        write_once("source0", FAR / 512 + 8, &[9; 1024]);
    }
    let before = std::thread::scope(|scope| {
        let (inside, seed) = (&world, random.random());
        let traffic = scope.spawn(move || inside.traffic(writes, 2, &mut ChaCha8Rng::seed_from_u64(seed)));
        let begun = Instant::now();
        while world.arrived.count(is_write) < kill_at {
            assert!(begun.elapsed() < Duration::from_secs(30), "writes don't arrive");
            std::thread::sleep(Duration::from_millis(1));
        }
        let (code, _) = switch.end("-KILL");
        assert_eq!(code, None);
        std::thread::sleep(Duration::from_millis(50));
        let before = world.arrived.count(is_write);
        let base = format!("1.0={}", world.text("base"));
        let more: Vec<&str> = QUICK.into_iter().chain(["--base", &base]).collect();
        let switch = world.switch(if large { &more } else { &QUICK });
        if large {
            // Its region, and that of the others with the one that the second mark takes along.
            let said = switch.said();
            assert!(said.contains(" 12.00 MiB of 64.00 MiB compared"), "{said}");
            assert!(!said.contains("everything"), "{said}");
        }
        // With before-images an entry is durable before its write goes on: where all were answered just then, nothing is
        // missing, and it says nothing.
        assert!(images != "after" || switch.said().contains("did not end in order"), "{}", switch.said());
        traffic.join().expect("it wrote everything");
        let (code, said) = switch.end("-TERM");
        assert!(code == Some(0) && said.contains("ended in order"), "{said}");
        before
    });
    agent(["verify", &world.text("j")]).fine();
    let log = world.log();
    let (arrived, disk, folder) = world.end();
    let resync: Vec<usize> = (0..log.len()).filter(|at| log[*at]["kind"] == "resync").collect();
    let first_after = resync.last().map_or_else(|| log.len() - (arrived.len() - before), |last| last + 1);
    let durable = resync.first().copied().unwrap_or(first_after);
    println!(
        "{images}: killed after {before} writes, of which the journal had {durable}; {} resync entries; {} writes later",
        resync.len(),
        arrived.len() - before
    );
    assert_eq!(
        log.len() - first_after,
        arrived.len() - before,
        "entries behind the resync, and writes behind the kill"
    );
    let nothing = vec![0; BYTES + if large { FAR_BYTES } else { 0 }];
    let mut model = nothing.clone();
    let strictly = images == "after";
    if strictly {
        // Up to the kill: a beginning of what arrived.
        for (order, write) in arrived[..durable].iter().enumerate() {
            image_is(&folder, order as u64, false, &model);
            assert_eq!(
                (place(&log[order]), log[order]["crc32c"].as_u64()),
                ((write.0, write.1.len()), Some(crc32c(&write.1).into()))
            );
            apply(&mut model, write);
        }
        image_is(&folder, durable as u64, false, &model);
    }
    let mut model = nothing;
    arrived[..before].iter().for_each(|write| apply(&mut model, write));
    let later = in_journal_order(&log[first_after..], arrived[before..].to_vec(), strictly);
    for (count, write) in later.iter().enumerate() {
        image_is(&folder, (first_after + count) as u64, false, &model);
        if !strictly {
            image_is(&folder, (first_after + count) as u64, true, &model);
        }
        apply(&mut model, write);
    }
    assert!(model == disk, "the target holds what arrived");
    image_is(&folder, log.len() as u64, false, &disk);
}

#[test]
fn a_killed_switch_goes_on() {
    in_own_network("a_killed_switch_goes_on", || killed("after", false));
}

#[test]
fn a_switch_killed_with_both_images_goes_on() {
    in_own_network("a_switch_killed_with_both_images_goes_on", || killed("both", false));
}

#[test]
fn after_a_kill_only_what_the_log_marks_is_compared() {
    in_own_network("after_a_kill_only_what_the_log_marks_is_compared", || killed("after", true));
}

/// Writes, again and again until it is answered: the region may have to be marked first.
#[track_caller]
fn write_once(source: &str, lba: u64, data: &[u8]) {
    let mut interface = ports::interface::Interface::open(source).expect("it is there");
    let (own, begun) = (interface.mac(), Instant::now());
    let (nobody, _keep) = UnixStream::pair().expect("a pair of sockets");
    let (mut answered, mut tag) = (false, 1 << 20);
    while !answered {
        assert!(begun.elapsed() < Duration::from_secs(20), "no answer to a write of sector {lba}");
        tag += 1;
        assert!(interface.send(&write_frame(own, VOLUME, tag, lba, data)));
        let sent = Instant::now();
        while !answered && sent.elapsed() < Duration::from_millis(200) {
            wait(&[&interface], nobody.as_fd(), 5_000_000).expect("it can be waited for");
            interface.receive(64, |frame| {
                answered |= frame[..6] == own && frame.get(20..24) == Some(&tag.to_be_bytes());
            });
        }
    }
}

/// As if the log had been written before the machine was started anew.
fn in_another_boot(log: &Path) {
    let mut bytes = std::fs::read(log).expect("the log");
    for slot in bytes.chunks_mut(SLOT_BYTES) {
        let used = DirtyHeader::read_from_prefix(slot).expect("a header").0.bytes.get() as usize;
        slot[std::mem::offset_of!(DirtyHeader, boot_id)] ^= 1;
        slot[PREFIX_CRC_OFFSET..][..4].fill(0);
        let crc = crc32c(&slot[..used]);
        slot[PREFIX_CRC_OFFSET..][..4].copy_from_slice(&crc.to_le_bytes());
    }
    std::fs::write(log, bytes).expect("the log");
}

/// Whenever the log can't be that of the journal's last session, everything is compared, and why is said; what was put off stays marked.
#[test]
fn a_log_that_can_not_tell_makes_everything_dirty() {
    in_own_network("a_log_that_can_not_tell_makes_everything_dirty", || {
        let world = World::with_volume(1500, 32 << 20);
        let base = format!("1.0={}", world.text("base"));
        let quick = ["--unknown", "200", "--quarantine", "250"];
        let with_base: Vec<&str> = quick.into_iter().chain(["--base", &base]).collect();
        let log = world.path("j.dirty-aoe");
        let killed = |switch: Serving, lba: u64| {
            write_once("source0", lba, &[(lba >> 13) as u8; 512]);
            assert_eq!(switch.end("-KILL").0, None);
        };
        let region = |index: u64| index * (4 << 20) / 512;
        let switch = world.switch(&CREATE.into_iter().chain(quick).collect::<Vec<_>>());
        killed(switch, region(3));
        let first = std::fs::read(&log).expect("the log");
        let some = |said: &str, mib: u32| {
            assert!(said.contains(&format!(" {mib}.00 MiB of 32.00 MiB compared")), "{said}");
            assert!(!said.contains("everything"), "{said}");
        };
        let all = |said: &str, why: &str| {
            assert!(said.contains(why) && said.contains("everything is compared"), "{said}");
            assert!(said.contains(" 32.00 MiB of 32.00 MiB compared"), "{said}");
        };
        let switch = world.switch(&with_base);
        some(&switch.said(), 4);
        killed(switch, region(5));
        // That of the session before; then none; then a damaged one.
        std::fs::write(&log, first).expect("the log");
        let switch = world.switch(&with_base);
        all(&switch.said(), "belongs to session");
        killed(switch, region(7));
        std::fs::remove_file(&log).expect("the log");
        let switch = world.switch(&with_base);
        all(&switch.said(), "it is new");
        killed(switch, region(1));
        let mut damaged = std::fs::read(&log).expect("the log");
        damaged[100] ^= 1;
        std::fs::write(&log, damaged).expect("the log");
        let switch = world.switch(&with_base);
        all(&switch.said(), "CRC");
        // The machine went down: nobody knows of targets, or somebody does.
        killed(switch, region(2));
        in_another_boot(&log);
        let switch = world.switch(&with_base);
        all(&switch.said(), "started anew");
        killed(switch, region(4));
        in_another_boot(&log);
        let switch =
            world.switch(&with_base.iter().copied().chain(["--targets-stayed-up"]).collect::<Vec<_>>());
        some(&switch.said(), 4);
        killed(switch, region(6));
        // Put off: what was marked stays so beside what comes, and through an end in order.
        let switch = world.switch(&with_base.iter().copied().chain(["--no-resync"]).collect::<Vec<_>>());
        assert!(!switch.said().contains("compared"), "{}", switch.said());
        write_once("source0", region(0), &[20; 512]);
        assert_eq!(switch.end("-TERM").0, Some(0));
        let switch = world.switch(&with_base);
        some(&switch.said(), 4);
        assert_eq!(switch.end("-TERM").0, Some(0));
        // Nothing is left to do; and where the journal has nothing open, a log isn't missed.
        let switch = world.switch(&with_base);
        assert!(!switch.said().contains("compared"), "{}", switch.said());
        assert_eq!(switch.end("-TERM").0, Some(0));
        std::fs::remove_file(&log).expect("the log");
        let switch = world.switch(&with_base);
        assert!(!switch.said().contains("compared"), "{}", switch.said());
        // Whoever wrote to the journal meanwhile without the ports changes nothing.
        killed(switch, region(5));
        agent(["bookmark", "add", &world.text("j"), "then"]).fine();
        let switch = world.switch(&with_base);
        some(&switch.said(), 4);
        assert_eq!(switch.end("-TERM").0, Some(0));
        agent(["verify", &world.text("j")]).fine();
        let orders = world.log().len() as u64;
        let (arrived, _, folder) = world.end();
        let mut model = vec![0; 32 << 20];
        arrived.iter().for_each(|(lba, data)| {
            model[*lba as usize * 512..][..data.len()].copy_from_slice(data);
        });
        let reader = JournalReader::open(&folder.path().join("j")).expect("the journal");
        let base = folder.path().join("base");
        let at = Moment::Order(orders);
        let image = Image::open(reader, "1.0", at, Backing::Base(&base), false, &mut |_, _| {});
        let mut bytes = vec![0; model.len()];
        image.expect("no gap is left").read_at(&mut bytes, 0).expect("the image can be read");
        assert!(bytes == model, "the newest moment is what arrived");
    });
}

/// What isn't to get through doesn't, and is counted; links come and go.
#[test]
fn what_is_dropped_and_what_goes_away() {
    in_own_network("what_is_dropped_and_what_goes_away", || {
        let world = World::new(1500);
        let arguments = |more: &[&str]| world.arguments(more);
        // What can't be meant, and what isn't allowed, before there is a journal.
        agent(arguments(&["--create", "--port", "nowhere"])).failed(1, &["nowhere", "ip link"]);
        agent(arguments(&["--create", "--port", "port0"])).failed(2, &["port0", "twice"]);
        agent(arguments(&["--create", "--volume", "9.9"])).failed(1, &["9.9", "--volume 9.9=2T"]);
        let mut without = Command::new("setpriv");
        without.args(["--inh-caps=-net_raw", "--bounding-set=-net_raw"]).arg(program());
        let unable = without.args(arguments(&["--create"])).output().expect("setpriv starts");
        Ran::from(unable).failed(1, &["CAP_NET_RAW", "root"]);
        assert!(!world.path("j").exists());

        let list = ["--volume", "1.0", "--volume", "2.0=1M", "--source", "port1=02:00:00:00:00:01"];
        let more: Vec<&str> = CREATE.into_iter().chain(QUICK).chain(list).collect();
        let switch = world.switch(&more);
        let mut source = ports::interface::Interface::open("source0").expect("it is there");
        let mut other = ports::interface::Interface::open("source1").expect("it is there");
        let own = [2, 0, 0, 0, 0, 7];
        let data = [7; 512];
        let good = write_frame(own, VOLUME, 1, 5, &data);
        let mut version = good.clone();
        version[14] = 0x20;
        let mut response = good.clone();
        response[14] = 0x18;
        let mut mask = good[..60].to_vec();
        mask[19] = 2;
        let mut tagged = good.clone();
        tagged.splice(12..12, [0x81, 0, 0, 5]);
        let broadcast = write_frame(own, (0xFFFF, 0), 2, 5, &data);
        let unknown = write_frame(own, (3, 0), 3, 5, &data);
        let long = write_frame(own, VOLUME, 4, 5, &[1; 1024]);
        for frame in [&version, &response, &mask, &tagged, &broadcast, &unknown, &long[..1000].to_vec()] {
            assert!(source.send(frame));
        }
        assert!(other.send(&good));
        let mut pass = vec![0xFF; 60];
        pass[6..12].copy_from_slice(&own);
        pass[12..14].copy_from_slice(&[0x08, 0x06]);
        assert!(source.send(&pass));
        let counters = |status: &Value, port: usize| status["switch"]["ports"][port]["counters"].clone();
        let status = world.status();
        let counted = counters(&status, 0);
        for name in ["version", "response", "aoe-command", "vlan", "broadcast-write", "volume", "short-write"]
        {
            assert_eq!(counted[format!("dropped-{name}")], 1, "{name}: {counted}");
        }
        assert_eq!(counters(&status, 1)["dropped-source"], 1, "{status}");
        let is_write = |frame: &[u8]| written(frame).is_some();
        assert_eq!(world.arrived.count(is_write), 0, "nothing of that got through");
        assert_eq!(world.arrived.count(|frame| frame == pass), 1, "other traffic does");

        // The uplink is down: nothing is journaled that can't get through.
        run("ip", &["link", "set", "uplink", "down"]);
        assert_eq!(world.status()["switch"]["uplink"]["link"], "down");
        assert!(source.send(&good));
        assert_eq!(counters(&world.status(), 0)["dropped-uplink-down"], 1);
        run("ip", &["link", "set", "uplink", "up"]);
        assert_eq!(world.status()["switch"]["uplink"]["link"], "up");
        // A port vanishes, and comes back.
        drop(source);
        run("ip", &["link", "del", "port0"]);
        assert_eq!(world.status()["switch"]["ports"][0]["link"], "gone");
        cable("source0", "port0", 1500);
        assert_eq!(world.status()["switch"]["ports"][0]["link"], "up");
        let mut source = ports::interface::Interface::open("source0").expect("it is there");
        assert!(source.send(&good));
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(world.arrived.count(is_write), 1);
        // What needs the owner works beside it; what would change a volume under its users is refused.
        let journal = world.text("j");
        agent(["bookmark", "add", &journal, "now"]).fine();
        assert!(agent(["bookmark", "list", &journal]).fine().stdout.contains("order:1"));
        let resync = [
            "resync",
            &journal,
            "--volume",
            "1.0",
            "--primary",
            &world.text("disk"),
            "--base",
            &world.text("base"),
        ];
        let resynced = agent(resync).fine().stdout;
        assert!(resynced.contains("0 B of primary differ"), "{resynced}");
        // It steps aside for that, and comes back.
        let begun = Instant::now();
        let mut tag = 100;
        while world.arrived.count(is_write) < 2 {
            assert!(begun.elapsed() < Duration::from_secs(20), "writes don't go on: {}", switch.said());
            assert!(source.send(&write_frame(own, VOLUME, tag, 9, &data)));
            tag += 1;
            std::thread::sleep(Duration::from_millis(100));
        }
        let (code, said) = switch.end("-TERM");
        assert!(code == Some(0) && said.contains("ended in order"), "{said}");
        assert!(said.contains("interface port0: gone") && said.contains("interface uplink: down"), "{said}");
        agent(["verify", &journal]).fine();
        let log = world.log();
        assert_eq!(
            log.iter().map(|line| place(line).0).collect::<std::collections::BTreeSet<_>>(),
            [5, 9].into()
        );
    });
}
