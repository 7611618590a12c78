//! Writes through `host-agent serve`, every one journaled, against nbdkit serving a file without protection, with fio, in turns;
//! the first write to each place also against qemu-storage-daemon's copy-before-write, which keeps one point in time.
//!
//! `cargo run --release -p host-agent --example serve_speed -- DIRECTORY [TURNS] [SECONDS] [LOAD=…] [WAY=…] [AGAINST=PROGRAM]`;
//! needs nbdkit, fio and qemu-utils, and `host-agent` built beside it. Only the loads and ways whose names contain those texts are run. With
//! `AGAINST` another build of `host-agent` runs in the same turns. Each run of ours has a new journal, so it pays for the first
//! write to each of its blocks.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Of the volume: fits the page cache.
const FILE_BYTES: usize = 256 << 20;
/// Room for what a run writes.
const JOURNAL: &str = "8G";

struct Load {
    name: &'static str,
    /// What is run beside ours; ratios are to the first.
    peers: &'static [Peer],
    arguments: &'static [&'static str],
}

/// Whose server.
#[derive(Clone, Copy)]
enum Peer {
    /// nbdkit's file plugin: no protection.
    Nbdkit,
    /// QEMU's copy-before-write into a qcow2 image, past the page cache or through it.
    CopyBeforeWrite { direct: bool },
}

impl Peer {
    fn name(self) -> &'static str {
        match self {
            Peer::Nbdkit => "nbdkit, none",
            Peer::CopyBeforeWrite { direct: true } => "qemu cbw, direct",
            Peer::CopyBeforeWrite { direct: false } => "qemu cbw, cached",
        }
    }
}

const NBDKIT: &[Peer] = &[Peer::Nbdkit];
const QEMU: &[Peer] =
    &[Peer::CopyBeforeWrite { direct: true }, Peer::CopyBeforeWrite { direct: false }, Peer::Nbdkit];
/// Each place once, in any order: copy-before-write copies 64 KiB at a time.
const FIRST_TOUCH: &[&str] =
    &["--rw=randwrite", "--bs=4k", "--blockalign=64k", "--iodepth=16", "--number_ios=4096"];

const LOADS: [Load; 5] = [
    Load { name: "4k random QD16", peers: NBDKIT, arguments: &["--rw=randwrite", "--bs=4k", "--iodepth=16"] },
    Load { name: "4k random QD1", peers: NBDKIT, arguments: &["--rw=randwrite", "--bs=4k", "--iodepth=1"] },
    Load {
        name: "4k, a flush each",
        peers: NBDKIT,
        arguments: &["--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"],
    },
    Load {
        name: "64k sequential QD16",
        peers: NBDKIT,
        arguments: &["--rw=write", "--bs=64k", "--iodepth=16"],
    },
    Load { name: "4k first touch QD16", peers: QEMU, arguments: FIRST_TOUCH },
];

/// How ours is run.
const WAYS: [(&str, &[&str]); 4] = [
    ("after, flush", &["--images", "after"]),
    ("after, strict", &["--images", "after", "--durability", "strict"]),
    ("before, flush", &["--images", "before"]),
    ("both, flush", &["--images", "both"]),
];

/// What a run of fio gave.
#[derive(Clone, Copy)]
struct Run {
    a_second: f64,
    p99_us: f64,
    /// Server's CPU seconds per GiB.
    cpu: f64,
}

/// A way, and the program that runs it.
struct Ours {
    name: String,
    program: PathBuf,
    arguments: &'static [&'static str],
}

fn main() -> Result<(), Box<dyn Error>> {
    let (named, plain): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|argument| argument.contains('='));
    let named = |name: &str| named.iter().find_map(|argument| argument.strip_prefix(name)).unwrap_or("");
    let (load_text, way_text, against) = (named("LOAD="), named("WAY="), named("AGAINST="));
    let mut arguments = plain.into_iter();
    let directory = std::fs::canonicalize(arguments.next().unwrap_or_else(|| ".".into()))?;
    let turns: usize = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let seconds: u32 = arguments.next().map_or(Ok(3), |text| text.parse())?;
    let folder = directory.join("serve_speed");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    let content: Vec<u8> =
        (0..FILE_BYTES as u32 / 4).flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let primaries = ["theirs.img", "ours.img"].map(|name| folder.join(name));
    for primary in &primaries {
        std::fs::write(primary, &content)?;
    }
    println!(
        "medians of {turns} turns of {seconds} s each; ratios are medians of each turn's ratio to nbdkit's"
    );
    println!(
        "load                 way                  writes/s   ratio    p99 us   ratio   CPU s/GiB   ratio"
    );
    let ways = ways(way_text, against)?;
    for load in LOADS.iter().filter(|load| load.name.contains(load_text)) {
        let mut theirs: Vec<Vec<Run>> = vec![Vec::new(); load.peers.len()];
        let mut ours: Vec<Vec<Run>> = vec![Vec::new(); ways.len()];
        for _ in 0..turns {
            for (peer, runs) in load.peers.iter().zip(&mut theirs) {
                runs.push(run_theirs(&folder, &primaries[0], *peer, load, seconds)?);
            }
            for (way, runs) in ways.iter().zip(&mut ours) {
                runs.push(run_ours(&folder, &primaries[1], way, load, seconds)?);
            }
        }
        for (peer, runs) in load.peers.iter().zip(&theirs) {
            print(load.name, peer.name(), runs, &theirs[0]);
        }
        for (way, runs) in ways.iter().zip(&ours) {
            print(load.name, &way.name, runs, &theirs[0]);
        }
    }
    std::fs::remove_dir_all(folder)?;
    Ok(())
}

/// The ways whose names contain that text, each with the program beside this one and with `against`.
fn ways(text: &str, against: &str) -> Result<Vec<Ours>, Box<dyn Error>> {
    // An example lies in `examples`, beside which the programs lie.
    let here = std::env::current_exe()?;
    let program = here.parent().and_then(Path::parent).ok_or("no folder of programs")?.join("host-agent");
    let mut ways = Vec::new();
    for (name, arguments) in WAYS.iter().filter(|(name, _)| name.contains(text)) {
        ways.push(Ours { name: (*name).into(), program: program.clone(), arguments });
        if !against.is_empty() {
            ways.push(Ours { name: format!("{name}, other"), program: against.into(), arguments });
        }
    }
    Ok(ways)
}

fn print(load: &str, way: &str, runs: &[Run], theirs: &[Run]) {
    let of = |value: fn(&Run) -> f64| median(runs.iter().map(value));
    let ratio = |value: fn(&Run) -> f64| median(runs.iter().zip(theirs).map(|(a, b)| value(a) / value(b)));
    println!(
        "{load:20} {way:18} {:10.0}   {:5.2}  {:8.0}   {:5.2}   {:9.3}   {:5.2}",
        of(|run| run.a_second),
        ratio(|run| run.a_second),
        of(|run| run.p99_us),
        ratio(|run| run.p99_us),
        of(|run| run.cpu),
        ratio(|run| run.cpu),
    );
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn run_theirs(
    folder: &Path,
    primary: &Path,
    peer: Peer,
    load: &Load,
    seconds: u32,
) -> Result<Run, Box<dyn Error>> {
    let socket = folder.join("theirs.socket");
    let target = folder.join("theirs.qcow2");
    let command = match peer {
        Peer::Nbdkit => {
            let mut command = Command::new("nbdkit");
            command.args(["-f", "-U"]).arg(&socket).arg("file").arg(primary);
            // It says that whoever only looks whether it listens has gone.
            command.stderr(Stdio::null());
            command
        }
        Peer::CopyBeforeWrite { direct } => {
            let mut make = Command::new("qemu-img");
            make.args(["create", "-q", "-f", "qcow2"]).arg(&target).arg(FILE_BYTES.to_string());
            if !make.status()?.success() {
                return Err(format!("{make:?} failed").into());
            }
            let direct = if direct { "on" } else { "off" };
            let file = |name: &str, path: &Path| {
                format!("driver=file,node-name={name},filename={},cache.direct={direct}", path.display())
            };
            let mut command = Command::new("qemu-storage-daemon");
            for node in [
                file("primary", primary),
                file("target-file", &target),
                "driver=qcow2,node-name=target,file=target-file".into(),
                "driver=copy-before-write,node-name=cbw,file=primary,target=target".into(),
            ] {
                command.args(["--blockdev", &node]);
            }
            command.arg("--nbd-server").arg(format!("addr.type=unix,addr.path={}", socket.display()));
            command.args(["--export", "type=nbd,id=export,node-name=cbw,name=disk,writable=on"]);
            command
        }
    };
    let run = Server::start(command, &socket)?.load(load, seconds);
    let _ = std::fs::remove_file(target);
    run
}

fn run_ours(
    folder: &Path,
    primary: &Path,
    way: &Ours,
    load: &Load,
    seconds: u32,
) -> Result<Run, Box<dyn Error>> {
    let (socket, journal) = (folder.join("ours.socket"), folder.join("journal"));
    let mut command = Command::new(&way.program);
    command
        .arg("serve")
        .arg("--journal")
        .arg(&journal)
        .args(["--create", "--size", JOURNAL])
        .args(way.arguments);
    command.arg("--export").arg(format!("disk={}", primary.display())).arg("--socket").arg(&socket);
    command.stdout(Stdio::null());
    let server = Server::start(command, &socket)?;
    let run = server.load(load, seconds);
    drop(server);
    for name in ["journal", "journal.dirty", "journal.sock"] {
        let _ = std::fs::remove_file(folder.join(name));
    }
    run
}

struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    fn start(mut command: Command, socket: &Path) -> Result<Self, Box<dyn Error>> {
        let _ = std::fs::remove_file(socket);
        let child = command.spawn().map_err(|error| format!("{command:?}: {error}"))?;
        let mut server = Self { child, socket: socket.to_owned() };
        let begin = Instant::now();
        while std::os::unix::net::UnixStream::connect(socket).is_err() {
            if server.child.try_wait()?.is_some() || begin.elapsed() > Duration::from_secs(20) {
                return Err(format!("{command:?} doesn't listen").into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        // It has its socket before it serves.
        std::thread::sleep(Duration::from_millis(200));
        Ok(server)
    }

    fn load(&self, load: &Load, seconds: u32) -> Result<Run, Box<dyn Error>> {
        let before = self.cpu_seconds()?;
        let output = Command::new("fio")
            .args(["--name=load", "--ioengine=nbd", "--output-format=json", "--randrepeat=0"])
            .arg(format!("--uri=nbd+unix:///disk?socket={}", self.socket.display()))
            .args(load.arguments)
            .args(match load.arguments == FIRST_TOUCH {
                true => Vec::new(),
                false => vec!["--time_based".into(), "--norandommap".into(), format!("--runtime={seconds}")],
            })
            .arg(format!("--size={FILE_BYTES}"))
            .stderr(Stdio::inherit())
            .output()?;
        let cpu = self.cpu_seconds()? - before;
        let text = String::from_utf8(output.stdout)?;
        // The engine prints a line before the report.
        let begin = text.find('{').ok_or_else(|| format!("fio: {text}"))?;
        let report: serde_json::Value = serde_json::from_str(&text[begin..])?;
        let part = &report["jobs"][0]["write"];
        let number = |value: &serde_json::Value| value.as_f64().ok_or("fio's report has no such number");
        Ok(Run {
            a_second: number(&part["iops"])?,
            p99_us: number(&part["clat_ns"]["percentile"]["99.000000"])? / 1000.0,
            cpu: cpu / (number(&part["io_bytes"])? / f64::from(1 << 30)),
        })
    }

    /// User and system time so far: fields 14 and 15 of `stat`, in ticks of 10 ms.
    fn cpu_seconds(&self) -> Result<f64, Box<dyn Error>> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let (_, fields) = stat.rsplit_once(')').ok_or("an odd stat file")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        Ok(ticks / 100.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
