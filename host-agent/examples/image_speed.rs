//! Reading an image over NBD, against nbdkit serving the restored file, with fio, in turns; and how long it takes
//! from the command to the first byte.
//!
//! `cargo run --release -p host-agent --example image_speed -- DIRECTORY [TURNS]`; needs nbdkit, nbdcopy and fio,
//! and `host-agent` built beside it.

use journal::image::Backing;
use journal::restore::{restore, RestoreOptions};
use journal::{CreateOptions, Delivered, Journal, JournalReader, Moment, Port, PortKind, Record, Volume};
use layout::entry::{EntryHeader, Journaled, Kind, Updated};
use std::error::Error;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Of the volume: fits the page cache.
const IMAGE_BYTES: u64 = 256 << 20;
const SECONDS: &str = "3";

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = std::fs::canonicalize(arguments.next().unwrap_or_else(|| ".".into()))?;
    let turns: usize = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let folder = directory.join("image_speed");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    random_reads(&folder, turns)?;
    first_byte(&folder, turns)?;
    std::fs::remove_dir_all(folder)?;
    Ok(())
}

/// As many writes of 4 KiB as the volume has blocks: 63 % of the image come from the journal.
fn random_reads(folder: &Path, turns: usize) -> Result<(), Box<dyn Error>> {
    let (path, base, out) = (folder.join("journal"), folder.join("base"), folder.join("restored"));
    let content: Vec<u8> =
        (0..IMAGE_BYTES as u32 / 4).flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    std::fs::write(&base, content)?;
    fill(&path, IMAGE_BYTES / 4096, 8)?;
    let options = RestoreOptions {
        volume: "1.1",
        backing: Backing::Base(&base),
        at: Moment::End,
        out: &out,
        force: true,
        allow_gaps: false,
    };
    let restored = restore(JournalReader::open(&path)?, &options, &mut |_| {})?;
    println!("image of {} MiB, {} MiB of it from the journal", IMAGE_BYTES >> 20, restored.bytes >> 20);
    let sockets = [folder.join("ours.socket"), folder.join("nbdkit.socket")];
    let ours = Server::start(&mut serve(&path, &base, &sockets[0])?, &sockets[0])?;
    let mut nbdkit = Command::new("nbdkit");
    nbdkit.args(["-f", "-r", "-U"]).arg(&sockets[1]).arg("file").arg(&out);
    let nbdkit = Server::start(&mut nbdkit, &sockets[1])?;
    let mut ratios = Vec::new();
    for turn in 0..turns {
        let rates = [fio(&sockets[0])?, fio(&sockets[1])?];
        println!(
            "turn {turn}: image {:.0}/s, nbdkit {:.0}/s, ratio {:.2}",
            rates[0],
            rates[1],
            rates[0] / rates[1]
        );
        ratios.push(rates[0] / rates[1]);
    }
    ratios.sort_by(f64::total_cmp);
    println!("random 4 KiB reads, QD16: median {:.2} of nbdkit's", ratios[turns / 2]);
    drop((ours, nbdkit));
    Ok(())
}

/// A million entries of one sector.
fn first_byte(folder: &Path, turns: usize) -> Result<(), Box<dyn Error>> {
    let (path, base, socket) = (folder.join("million"), folder.join("base"), folder.join("first.socket"));
    fill(&path, 1_000_000, 1)?;
    let mut times = Vec::new();
    for _ in 0..turns {
        let begin = Instant::now();
        let server = Server::start(&mut serve(&path, &base, &socket)?, &socket)?;
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        // The smallest client there is: it connects, asks for the size, and goes.
        let served = begin.elapsed();
        let asked = Command::new("nbdinfo").args(["--size", &uri]).stdout(Stdio::null()).status()?;
        if !asked.success() {
            return Err("nbdinfo failed".into());
        }
        times.push((served, begin.elapsed()));
        drop(server);
    }
    times.sort();
    let (served, asked) = times[turns / 2];
    println!(
        "a million entries: {:.0} ms from the command until clients may come, {:.0} ms until nbdinfo had its answer",
        served.as_secs_f64() * 1e3,
        asked.as_secs_f64() * 1e3
    );
    Ok(())
}

fn serve(journal: &Path, base: &Path, socket: &Path) -> Result<Command, Box<dyn Error>> {
    // An example lies in `examples`, beside which the programs lie.
    let here = std::env::current_exe()?;
    let program = here.parent().and_then(Path::parent).ok_or("no folder of programs")?.join("host-agent");
    let mut command = Command::new(program);
    command.args(["image", "serve", "--volume", "1.1", "--at", "end", "--base"]).arg(base);
    command.arg("--socket").arg(socket).arg(journal).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command)
}

fn fill(path: &Path, entries: u64, sectors: u16) -> Result<(), Box<dyn Error>> {
    let bytes = usize::from(sectors) * 512;
    let options = CreateOptions {
        bytes: Some(entries * (bytes as u64 + 256) + (256 << 20)),
        segment_bytes: None,
        volumes: vec![Volume::aoe(0, 1, 1, IMAGE_BYTES / 512)],
        ports: vec![Port { port: 0, kind: PortKind::Software, arbiter: 0, name: "bench".into() }],
        writer: "image_speed".into(),
    };
    let mut journal = Journal::create(path, &options)?;
    let mut state = 1u64;
    let mut data = vec![0; bytes];
    for number in 1..=entries {
        // Any sequence without a pattern will do: Knuth's MMIX generator.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        data[..8].copy_from_slice(&state.to_le_bytes());
        let places = IMAGE_BYTES / bytes as u64;
        let mut header = EntryHeader::new(Kind::After);
        header.timestamp = (1_700_000_000_000_000_000 + number * 1000).into();
        header.number = number.into();
        header.sequence = number.into();
        header.volume = 0.into();
        header.source = 0.into();
        header.set_lba((state >> 16) % places * u64::from(sectors));
        header.sectors = sectors.into();
        header.set_status(Journaled::Port, Updated::Updated);
        header.seal(&data);
        let delivered = [Delivered { port: 0, timestamp: header.timestamp.get() }];
        journal.append(&[Record::new(header, &data)], &delivered)?;
    }
    journal.close()?;
    Ok(())
}

struct Server(Child);

impl Server {
    fn start(command: &mut Command, socket: &Path) -> Result<Self, Box<dyn Error>> {
        let _ = std::fs::remove_file(socket);
        let mut child = command.spawn()?;
        let begin = Instant::now();
        while std::os::unix::net::UnixStream::connect(socket).is_err() {
            if child.try_wait()?.is_some() || begin.elapsed() > Duration::from_secs(20) {
                return Err(format!("{command:?} doesn't listen").into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(Self(child))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Requests a second.
fn fio(socket: &Path) -> Result<f64, Box<dyn Error>> {
    let uri = format!("--uri=nbd+unix:///?socket={}", socket.display());
    let output = Command::new("fio")
        .args(["--name=image", "--ioengine=nbd", "--rw=randread", "--bs=4k", "--iodepth=16", "--time_based"])
        .args(["--output-format=json", "--randrepeat=0", &format!("--runtime={SECONDS}"), &uri])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let json: serde_json::Value = serde_json::from_str(&text[text.find('{').ok_or("fio said nothing")?..])?;
    json["jobs"][0]["read"]["iops"].as_f64().ok_or_else(|| "fio gave no figure".into())
}
