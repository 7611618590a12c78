//! Requests a second of our server and of nbdkit, with fio, both serving the same file, in turns.
//!
//! `cargo run --release -p nbd --example request_speed -- DIRECTORY [TURNS] [wait]`; needs nbdkit and fio, and
//! `serve_file` built beside it, which gets the last word.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const FILE_BYTES: usize = 256 << 20;
const SECONDS: u32 = 3;

struct Load {
    pattern: &'static str,
    block: &'static str,
    depth: &'static str,
}

const LOADS: [Load; 6] = [
    Load { pattern: "randread", block: "4k", depth: "16" },
    Load { pattern: "randwrite", block: "4k", depth: "16" },
    Load { pattern: "randread", block: "4k", depth: "1" },
    Load { pattern: "randwrite", block: "4k", depth: "1" },
    Load { pattern: "read", block: "64k", depth: "16" },
    Load { pattern: "write", block: "64k", depth: "16" },
];

struct Server {
    child: Child,
    socket: PathBuf,
}

/// What a run of fio gave.
#[derive(Clone, Copy)]
struct Run {
    a_second: f64,
    p99_us: f64,
    /// Server's CPU seconds per GiB.
    cpu: f64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = std::fs::canonicalize(arguments.next().unwrap_or_else(|| ".".into()))?;
    let turns: usize = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let word = arguments.next();
    let file = directory.join("request_speed.disk");
    let content: Vec<u8> =
        (0..FILE_BYTES as u32 / 4).flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    std::fs::write(&file, content)?;
    let ours = std::env::current_exe()?.with_file_name("serve_file");
    let sockets = [directory.join("ours.socket"), directory.join("nbdkit.socket")];
    let _ = std::fs::remove_file(&sockets[1]);
    let servers = [
        Server::start(Command::new(ours).arg(&file).arg(&sockets[0]).args(word), &sockets[0])?,
        Server::start(
            Command::new("nbdkit").args(["-f", "-U"]).arg(&sockets[1]).arg("file").arg(&file),
            &sockets[1],
        )?,
    ];
    println!("load              requests/s: ours, nbdkit, ratio    p99 us: ours, nbdkit    CPU s/GiB: ours, nbdkit");
    println!("(medians of {turns} turns of {SECONDS} s each)");
    for load in &LOADS {
        let mut runs: [Vec<Run>; 2] = Default::default();
        for _ in 0..turns {
            for (server, runs) in servers.iter().zip(&mut runs) {
                runs.push(server.load(load)?);
            }
        }
        let ratios = runs[0].iter().zip(&runs[1]).map(|(ours, theirs)| ours.a_second / theirs.a_second);
        let of = |server: usize, value: fn(&Run) -> f64| median(runs[server].iter().map(value));
        println!(
            "{:9} {:3} QD{:2}    {:8.0} {:8.0} {:6.2}    {:8.0} {:8.0}    {:8.3} {:8.3}",
            load.pattern,
            load.block,
            load.depth,
            of(0, |run| run.a_second),
            of(1, |run| run.a_second),
            median(ratios),
            of(0, |run| run.p99_us),
            of(1, |run| run.p99_us),
            of(0, |run| run.cpu),
            of(1, |run| run.cpu),
        );
    }
    drop(servers);
    for path in [&file, &sockets[0], &sockets[1]] {
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

impl Server {
    fn start(command: &mut Command, socket: &Path) -> Result<Self, Box<dyn Error>> {
        let child = command.spawn().map_err(|error| format!("{command:?}: {error}"))?;
        let server = Self { child, socket: socket.to_owned() };
        let begin = Instant::now();
        while !socket.exists() {
            if begin.elapsed() > Duration::from_secs(5) {
                return Err(format!("{command:?} doesn't listen").into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    fn load(&self, load: &Load) -> Result<Run, Box<dyn Error>> {
        let before = self.cpu_seconds()?;
        let output = Command::new("fio")
            .args(["--name=load", "--ioengine=nbd", "--time_based", "--output-format=json"])
            .arg(format!("--uri=nbd+unix:///?socket={}", self.socket.display()))
            .args([format!("--rw={}", load.pattern), format!("--bs={}", load.block)])
            .args([format!("--iodepth={}", load.depth), format!("--runtime={SECONDS}")])
            .arg(format!("--size={FILE_BYTES}"))
            .stderr(Stdio::inherit())
            .output()?;
        let cpu = self.cpu_seconds()? - before;
        let text = String::from_utf8(output.stdout)?;
        // The engine prints a line before the report.
        let begin = text.find('{').ok_or_else(|| format!("fio: {text}"))?;
        let report: serde_json::Value = serde_json::from_str(&text[begin..])?;
        let kind = if load.pattern.ends_with("read") { "read" } else { "write" };
        let part = &report["jobs"][0][kind];
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
