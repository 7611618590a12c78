//! `host-agent serve` for long: fio writes and verifies, another client writes what a model knows, moments are named and
//! restored beside it, merging runs, and the server is killed again and again.
//!
//! `cargo run --release -p system-tests --example soak -- MINUTES [KILLS]`; needs fio. The seed is printed (CHRONO_SEED).

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::VecDeque;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use system_tests::agent::agent;
use system_tests::nbd_client::Client;
use system_tests::seed;
use system_tests::serving::Serving;

const BYTES: usize = 16 << 20;
const FIO_BYTES: u64 = 256 << 20;
/// Its writes a second: with entries' overhead some 7 MiB.
const FIO_RATE: u32 = 1500;
/// What it and the model write in all the time that is kept, twice.
const JOURNAL: &str = "6G";
const SCHEDULE: &str = "all:60s/5s,1s:5m";
/// Named moments that are kept to be looked at.
const MOMENTS: usize = 12;

fn fio(serving: &Serving, seconds: u64) -> Child {
    Command::new("fio")
        .args(["--name=v", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--iodepth=16", "--randrepeat=0"])
        .args(["--verify=crc32c", "--verify_backlog=4096", "--verify_fatal=1", "--fsync=128", "--time_based"])
        .args(["--verify_state_save=0"])
        .arg(format!("--uri={}", serving.uri("fio")))
        // What the schedule keeps has to fit the journal, however fast the machine is: a full one stops writes.
        .args([
            format!("--size={FIO_BYTES}"),
            format!("--runtime={seconds}"),
            format!("--rate_iops={FIO_RATE}"),
        ])
        .stdout(Stdio::null())
        .spawn()
        .expect("fio starts")
}

/// A moment, and what it has to be.
struct Named {
    name: String,
    state: Vec<u8>,
}

fn check(folder: &Path, named: &Named) {
    let text = |name: &str| folder.join(name).display().to_string();
    let (journal, base, out, at) =
        (text("j"), text("model.base"), text("out"), format!("bookmark:{}", named.name));
    let arguments = ["--volume", "model", "--base", &base, "--at", &at, "--to", &out, "--force"];
    agent(["restore", &journal].iter().chain(&arguments)).fine();
    assert!(std::fs::read(&out).unwrap() == named.state, "{at}");
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let minutes: f64 = arguments.next().map_or(5.0, |text| text.parse().expect("minutes"));
    let kills: u32 = arguments.next().map_or(20, |text| text.parse().expect("kills"));
    let mut random = ChaCha8Rng::seed_from_u64(seed());
    let folder = tempfile::tempdir_in(".").expect("a folder");
    let path = folder.path();
    for (name, bytes) in [("model", BYTES as u64), ("fio", FIO_BYTES)] {
        for kind in ["img", "base"] {
            std::fs::File::create(path.join(format!("{name}.{kind}"))).unwrap().set_len(bytes).unwrap();
        }
    }
    let journal = path.join("j").display().to_string();
    let exports = ["model=model.img", "fio=fio.img"];
    let mut state = vec![0; BYTES];
    let mut moments: VecDeque<Named> = VecDeque::new();
    let (mut writes, mut checked, mut names) = (0u64, 0u64, 0u64);
    for round in 0..=kills {
        let create: &[&str] = if round == 0 {
            &["--create", "--size", JOURNAL]
        } else {
            &["--base", "model=model.base", "--base", "fio=fio.base"]
        };
        let serving = Serving::start(path, &exports, create);
        if round == 0 {
            for name in ["model", "fio"] {
                let base = path.join(format!("{name}.base")).display().to_string();
                agent(["base", "adopt", &journal, "--volume", name, "--base", &base]).fine();
            }
            agent(["merge", &journal, "--schedule", SCHEDULE]).fine();
        }
        let length = Duration::from_secs_f64(minutes * 60.0 / f64::from(kills + 1));
        let mut load = fio(&serving, length.as_secs().max(2) - 1);
        let mut client = Client::connect(serving.socket(), "model").unwrap();
        let mut there = vec![0; BYTES];
        client.read(0, &mut there).unwrap();
        assert!(there == state, "round {round}: what was answered is there");
        let begun = Instant::now();
        while begun.elapsed() < length {
            for _ in 0..random.random_range(1..50) {
                let bytes = random.random_range(1..=32) * 512;
                let offset = random.random_range(0..=(BYTES - bytes) / 512) * 512;
                let data: Vec<u8> = (0..bytes).map(|_| random.random()).collect();
                client.write(offset as u64, &data).unwrap();
                state[offset..offset + bytes].copy_from_slice(&data);
                writes += 1;
            }
            client.flush().unwrap();
            if random.random_ratio(1, 8) {
                names += 1;
                let name = format!("moment-{names}");
                agent(["bookmark", "add", &journal, &name]).fine();
                moments.push_back(Named { name, state: state.clone() });
                let chosen = random.random_range(0..moments.len());
                check(path, &moments[chosen]);
                checked += 1;
                if moments.len() > MOMENTS {
                    let gone = moments.pop_front().expect("just counted");
                    agent(["bookmark", "remove", &journal, &gone.name]).fine();
                }
            }
        }
        if round < kills && random.random_bool(0.8) {
            serving.end("-KILL");
            let _ = load.kill();
            let _ = load.wait();
        } else {
            assert!(load.wait().expect("fio ends").success(), "fio found what it had not written");
            drop(client);
            assert_eq!(serving.end("-TERM").0, Some(0));
        }
        agent(["verify", &journal]).fine();
        println!("round {round}: {writes} writes of the model, {checked} moments checked, 0 errors");
    }
    let serving = Serving::start(path, &exports, &[]);
    moments.iter().for_each(|named| check(path, named));
    serving.end("-TERM");
    println!(
        "{kills} ends, {writes} writes of the model, {} moments checked, 0 errors",
        checked + moments.len() as u64
    );
}
