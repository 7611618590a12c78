//! A restore that is killed at a random moment goes on where it was, and the image is the same as one made at
//! once; whatever has changed meanwhile, it starts anew.

use journal::{CreateOptions, Delivered, Journal, OwnedRecord, Port, PortKind, Volume};
use layout::entry::{EntryHeader, Journaled, Kind, Updated};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use system_tests::agent::{agent, program};
use system_tests::seed;

const BYTES: usize = 128 << 20;

struct Place {
    folder: tempfile::TempDir,
    rng: ChaCha8Rng,
    /// After the first and the second half of the writes.
    images: [Vec<u8>; 2],
    orders: [u64; 2],
    last: EntryHeader,
}

impl Place {
    fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // What lies on the disk here: a file system whose syncs take their time.
        let folder = tempfile::tempdir().unwrap();
        let mut image = vec![0; BYTES];
        for piece in image.chunks_mut(1 << 20) {
            let filled = if rng.random_bool(0.8) { piece.len() } else { 0 };
            rng.fill(&mut piece[..filled]);
        }
        std::fs::write(folder.path().join("base"), &image).unwrap();
        let options = CreateOptions {
            bytes: Some(32 << 20),
            segment_bytes: None,
            volumes: vec![Volume::aoe(0, 1, 0, BYTES as u64 / 512)],
            ports: vec![Port { port: 0, kind: PortKind::Card, arbiter: 0, name: "0".into() }],
            writer: "restore_resume".into(),
        };
        let mut journal = Journal::create(&folder.path().join("journal"), &options).unwrap();
        let mut images = Vec::new();
        let mut last = EntryHeader::new(Kind::After);
        for number in 1..=2000u64 {
            let sectors = rng.random_range(1..=8);
            let lba = rng.random_range(0..BYTES as u64 / 512 - sectors);
            let mut data = vec![0; sectors as usize * 512];
            rng.fill(&mut data[..]);
            let mut header = EntryHeader::new(Kind::After);
            header.timestamp = (1_700_000_000_000_000_000 + number * 1000).into();
            (header.number, header.sequence) = (number.into(), number.into());
            header.sectors = (sectors as u16).into();
            header.volume = 0.into();
            header.set_lba(lba);
            // To the last one an answer is still to come.
            let updated = if number == 2000 { Updated::Pending } else { Updated::Updated };
            header.set_status(Journaled::Port, updated);
            header.seal(&data);
            let at = lba as usize * 512;
            if number == 2000 {
                images.push(image.clone());
            }
            image[at..at + data.len()].copy_from_slice(&data);
            let record = OwnedRecord { header, payload: data };
            let delivered = [Delivered { port: 0, timestamp: header.timestamp.get() }];
            journal.append(&[record.as_record()], &delivered).unwrap();
            last = header;
        }
        journal.close().unwrap();
        images.push(image);
        let images = images.try_into().expect("two moments");
        Self { folder, rng, images, orders: [1999, 2000], last }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn arguments(&self, order: u64) -> Vec<String> {
        let path = |name: &str| self.path(name).display().to_string();
        let (journal, base, out, at) = (path("journal"), path("base"), path("out"), format!("order:{order}"));
        ["restore", &journal, "--volume", "1.0", "--base", &base, "--at", &at, "--to", &out, "--json"]
            .map(String::from)
            .into()
    }

    /// Kills the restore after `pause`; it may have ended before.
    fn kill(&self, order: u64, pause: Duration) -> bool {
        let mut child = Command::new(program())
            .args(self.arguments(order))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(pause);
        child.kill().unwrap();
        !child.wait().unwrap().success()
    }

    /// Kills until something is there that can be gone on with.
    fn interrupt(&mut self, order: u64, whole: Duration) {
        let _ = std::fs::remove_file(self.path("out"));
        for _ in 0..50 {
            let pause = whole.mul_f64(self.rng.random_range(0.2..0.9));
            if !self.kill(order, pause) {
                std::fs::remove_file(self.path("out")).unwrap();
            }
            if self.path(".out.partial.state").exists() {
                return;
            }
        }
        panic!("no restore was interrupted where it could be gone on with");
    }

    /// Finishes, and says how much was there already.
    fn finish(&self, order: u64, image: &[u8]) -> u64 {
        let done = agent(self.arguments(order)).fine().json();
        assert!(std::fs::read(self.path("out")).unwrap() == image, "order:{order}");
        let names: Vec<_> = std::fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with('.'))
            .collect();
        assert!(names.is_empty(), "{names:?}");
        done["resumed"].as_u64().unwrap()
    }
}

#[test]
fn a_killed_restore_goes_on_and_its_image_is_right() {
    let mut place = Place::new(seed());
    let [first, second] = place.orders;
    let images = place.images.clone();
    // Built by now, if need be: how long one restore takes is what counts.
    program();
    let begun = Instant::now();
    assert_eq!(place.finish(second, &images[1]), 0);
    let whole = begun.elapsed();

    // Killed again and again, until it ends by itself.
    place.interrupt(second, whole);
    for _ in 0..3 {
        let pause = whole.mul_f64(place.rng.random_range(0.0..0.5));
        place.kill(second, pause);
    }
    // The last of the kills may have come too late.
    if !place.path("out").exists() {
        let resumed = place.finish(second, &images[1]);
        println!("went on at {resumed} of {BYTES}");
        assert!(resumed >= 32 << 20);
    }
    assert!(std::fs::read(place.path("out")).unwrap() == images[1]);

    // Another moment starts anew, and so does this one after that.
    place.interrupt(second, whole);
    assert_eq!(place.finish(first, &images[0]), 0);

    // Another base, if only by its time, starts anew.
    place.interrupt(second, whole);
    let base = std::fs::read(place.path("base")).unwrap();
    std::fs::write(place.path("base"), &base).unwrap();
    assert_eq!(place.finish(second, &images[1]), 0);

    // An answer that changes the moment starts anew: the last write was refused after all.
    place.interrupt(second, whole);
    refuse(&place.path("journal"), &place.last);
    assert_eq!(place.finish(second, &images[0]), 0);

    // What was kept is no image to anyone, and --force keeps its meaning.
    place.interrupt(second, whole);
    assert!(!place.path("out").exists());
    std::fs::write(place.path("out"), b"precious").unwrap();
    agent(place.arguments(second)).failed(1, &["out", "exists already", "--force"]);
    let mut forced = place.arguments(second);
    forced.push("--force".into());
    assert!(agent(forced).fine().json()["resumed"].as_u64().unwrap() > 0);
    assert!(std::fs::read(place.path("out")).unwrap() == images[0]);
}

fn refuse(journal: &Path, entry: &EntryHeader) {
    let mut journal = Journal::open(journal, "restore_resume").unwrap();
    let mut header = EntryHeader::new(Kind::Completion);
    header.timestamp = (entry.timestamp.get() + 1000).into();
    header.number = entry.number;
    header.sequence = (entry.sequence.get() + 1).into();
    header.set_status(Journaled::Pending, Updated::Refused);
    header.seal(&[]);
    let record = OwnedRecord { header, payload: Vec::new() };
    let delivered = [Delivered { port: 0, timestamp: header.timestamp.get() }];
    journal.append(&[record.as_record()], &delivered).unwrap();
    journal.close().unwrap();
}
