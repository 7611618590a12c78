//! The way of a write, with threads, files and every kind of images; a journal that stalls or fills; a primary that fails.

mod machine;

use engine::block_port::Reading;
use journal::image::{Backing, Image};
use journal::{Address, CreateOptions, Error, Journal, JournalReader, Moment, Port, PortKind, Volume};
use layout::entry::Updated;
use machine::{Disk, Machine};
use ports::clock::{Clock, HostClock};
use ports::dirty_log::{self, DirtyLog, Found, ToServe};
use ports::export::FIRST_PORT;
use ports::owner::{append_to, Commit, Handed, Outcome, Owner};
use ports::path::{floor, Durability, Images, Settings, SoftwarePorts};
use ports::primary::{Opened, Primary};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const SECTOR: usize = 512;
const VOLUME_BYTES: u64 = 256 << 10;
const ARBITER: u16 = 1;
const PORTS: u8 = 4;

fn seed() -> u64 {
    let seed = std::env::var("CHRONO_SEED").map_or(7, |text| text.parse().expect("a number"));
    println!("CHRONO_SEED={seed}");
    seed
}

/// A journal at hand, whose disk may hang.
struct Keeper {
    journal: Mutex<Option<Journal>>,
    hangs: AtomicBool,
    /// How often something was made durable.
    syncs: AtomicUsize,
    /// And how long that takes, in ms.
    sync_takes: AtomicUsize,
}

impl Owner for Keeper {
    fn append(&self, handed: Handed) -> Outcome {
        while self.hangs.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(5));
        }
        if handed.sync != Commit::No {
            self.syncs.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(self.sync_takes.load(Ordering::Relaxed) as u64));
        }
        let mut journal = self.journal.lock().unwrap();
        match journal.as_mut() {
            Some(journal) => append_to(journal, handed),
            // The test is over.
            None => Outcome {
                taken: Vec::new(),
                rest: handed.records,
                result: Err(Error::Stopped { file: String::new() }),
            },
        }
    }

    fn set_primary_checkpoint(&self, volumes: &[u16], at: (u64, u64)) -> Result<(), Error> {
        self.journal.lock().unwrap().as_mut().unwrap().set_primary_checkpoint(volumes, at)
    }
}

struct Place {
    folder: tempfile::TempDir,
    ports: Arc<SoftwarePorts>,
    keeper: Arc<Keeper>,
}

impl Place {
    fn new(settings: Settings, journal_bytes: u64, primary: Option<Arc<dyn Primary>>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["disk", "base"] {
            std::fs::File::create(path(name)).unwrap().set_len(VOLUME_BYTES).unwrap();
        }
        let volume = Volume {
            address: Address::Nbd("disk".into()),
            technique: settings.images.technique(),
            arbiter: ARBITER,
            ..Volume::aoe(0, 0, 0, VOLUME_BYTES / SECTOR as u64)
        };
        let port = |index: u8| Port {
            port: FIRST_PORT + index,
            kind: PortKind::Software,
            arbiter: ARBITER,
            name: format!("nbd {index}"),
        };
        let options = CreateOptions {
            bytes: Some(journal_bytes),
            segment_bytes: Some(settings.segment_bytes),
            volumes: vec![volume],
            ports: (0..PORTS).map(port).collect(),
            writer: "paths".into(),
        };
        let journal = Journal::create(&path("journal"), &options).unwrap();
        let floor = floor(&journal.end(), ARBITER);
        let keeper = Arc::new(Keeper {
            journal: Mutex::new(Some(journal)),
            hangs: AtomicBool::new(false),
            syncs: AtomicUsize::new(0),
            sync_takes: AtomicUsize::new(0),
        });
        let machine = Arc::new(Machine::default());
        let log = Disk::new(&machine, "log", vec![0; dirty_log::FILE_BYTES as usize]);
        let served = [ToServe { bytes: VOLUME_BYTES, ..ToServe::default() }];
        let log = DirtyLog::begin(log, [0; 16], [1; 16], None, &Found::default(), &served, 13).unwrap();
        let primary =
            primary.unwrap_or_else(|| Arc::new(Opened::default().open(&path("disk"), None).unwrap()));
        let volumes = vec![ports::path::Volume { index: 0, name: "disk".into(), primary }];
        let owner: Arc<dyn Owner> = Arc::clone(&keeper) as _;
        let clock: Arc<dyn Clock> = Arc::new(HostClock::default());
        let ports = Arc::new(SoftwarePorts::new(settings, volumes, owner, clock, log, floor));
        (0..PORTS).for_each(|port| ports.open_port(FIRST_PORT + port, u16::from(port)));
        SoftwarePorts::keep_draining(&ports).unwrap();
        Self { folder, ports, keeper }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn image(&self, at: Moment, over: fn(&Path) -> Backing<'_>, name: &str) -> Vec<u8> {
        let reader = JournalReader::open(&self.path("journal")).unwrap();
        let path = self.path(name);
        let image = Image::open(reader, "disk", at, over(&path), false, &mut |_, _| {}).unwrap();
        let mut bytes = vec![0; VOLUME_BYTES as usize];
        image.read_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn end(&self) {
        self.ports.pause(Duration::from_secs(20)).unwrap();
        assert!(self.ports.checkpoint(true).unwrap());
        self.keeper.journal.lock().unwrap().take().unwrap().close().unwrap();
        let report = journal::verify::verify(&self.path("journal"), &mut |_, _| {}).unwrap();
        assert!(report.is_sound(), "{:?}", report.findings);
        assert_eq!(self.ports.bytes(), 0, "all room came back");
    }
}

fn over_primary(path: &Path) -> Backing<'_> {
    Backing::Primary(path)
}

fn over_base(path: &Path) -> Backing<'_> {
    Backing::Base(path)
}

fn settings(images: Images, durability: Durability) -> Settings {
    Settings { period: Duration::from_millis(2), ..Settings::new(images, durability, 128 << 10) }
}

/// Threads write over each other: the journal has the order in which primary saw it, or the two would end up different.
fn journal_order_is_apply_order(
    images: Images,
    durability: Durability,
    over: fn(&Path) -> Backing<'_>,
    name: &str,
) {
    let place = Place::new(settings(images, durability), 64 << 20, None);
    let seed = seed();
    std::thread::scope(|scope| {
        for thread in 0..PORTS {
            let ports = &place.ports;
            scope.spawn(move || {
                let mut random = ChaCha8Rng::seed_from_u64(seed + u64::from(thread));
                for count in 0..400u32 {
                    let sectors = random.random_range(1..=16);
                    let offset = random.random_range(0..=64 - sectors) * SECTOR;
                    let data = vec![random.random(); sectors * SECTOR];
                    match count % 16 {
                        7 => ports.zero(0, FIRST_PORT + thread, offset as u64, data.len() as u64, true),
                        11 => ports.flush(0),
                        13 => ports.checkpoint(false).map(drop),
                        3 | 5 | 9 => {
                            let mut owned = ports.buffer(data.len());
                            owned.copy_from_slice(&data);
                            ports.write_owned(0, FIRST_PORT + thread, owned, offset as u64)
                        }
                        _ => ports.write(0, FIRST_PORT + thread, &data, offset as u64),
                    }
                    .unwrap();
                }
            });
        }
    });
    place.end();
    let primary = std::fs::read(place.path("disk")).unwrap();
    assert!(primary.iter().any(|byte| *byte != 0));
    assert!(place.image(Moment::End, over, name) == primary, "the end is what primary has");
    // And the beginning, over primary, what was there before.
    if images != Images::After {
        assert!(place.image(Moment::Order(0), over_primary, "disk").iter().all(|byte| *byte == 0));
    }
}

#[test]
fn journal_order_is_apply_order_beside_the_journal() {
    journal_order_is_apply_order(Images::After, Durability::Flush, over_base, "base");
}

#[test]
fn journal_order_is_apply_order_ahead_of_primary() {
    journal_order_is_apply_order(Images::After, Durability::Strict, over_base, "base");
    journal_order_is_apply_order(Images::Both, Durability::Flush, over_base, "base");
    journal_order_is_apply_order(Images::Before, Durability::Flush, over_primary, "disk");
}

/// Every moment from primary alone, and from the base too where there are both images; zeroes and large ones included.
#[test]
fn every_moment_from_before_images() {
    for images in [Images::Before, Images::Both] {
        let place = Place::new(settings(images, Durability::Flush), 64 << 20, None);
        let mut random = ChaCha8Rng::seed_from_u64(seed());
        let mut state = vec![0; VOLUME_BYTES as usize];
        // By order: entries of one write that was cut have their own.
        let mut moments = vec![(0, state.clone())];
        for count in 0..120 {
            let most = if count % 10 == 0 { 400 } else { 12 };
            let sectors = random.random_range(1..=most);
            let offset = random.random_range(0..=VOLUME_BYTES as usize / SECTOR - sectors) * SECTOR;
            let range = offset..offset + sectors * SECTOR;
            if count % 3 == 2 {
                place
                    .ports
                    .zero(0, FIRST_PORT, offset as u64, (sectors * SECTOR) as u64, count % 2 == 0)
                    .unwrap();
                state[range].fill(0);
            } else {
                let data: Vec<u8> = (0..sectors * SECTOR).map(|_| random.random()).collect();
                place.ports.write(0, FIRST_PORT, &data, offset as u64).unwrap();
                state[range].copy_from_slice(&data);
            }
            let order = place.keeper.journal.lock().unwrap().as_ref().unwrap().end().order;
            moments.push((order, state.clone()));
        }
        place.end();
        for (order, state) in &moments {
            let at = Moment::Order(*order);
            assert!(
                place.image(at, over_primary, "disk") == *state,
                "{images:?}, order:{order} over primary"
            );
            if images == Images::Both {
                assert!(place.image(at, over_base, "base") == *state, "order:{order} over the base");
            }
        }
    }
}

/// The journal's disk hangs: clients wait within their memory, reads go on, and then everything does.
#[test]
fn a_journal_that_stalls_is_waited_for_in_bounded_memory() {
    let partial_bytes = 1 << 20;
    let settings =
        Settings { partial_bytes, fill_bytes: 64 << 10, ..settings(Images::After, Durability::Flush) };
    let place = Place::new(settings, 64 << 20, None);
    place.keeper.hangs.store(true, Ordering::Release);
    let written = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (ports, written) = (&place.ports, &written);
        let writers: Vec<_> = (0..PORTS)
            .map(|thread| {
                scope.spawn(move || {
                    for count in 0..1000u64 {
                        let offset = (count * 8 + u64::from(thread) * 128) % 256 * 512;
                        ports.write(0, FIRST_PORT + thread, &[thread + 1; 4096], offset).unwrap();
                    }
                    written.store(true, Ordering::Release);
                })
            })
            .collect();
        let begun = Instant::now();
        let mut most = 0;
        while begun.elapsed() < Duration::from_secs(1) {
            most = most.max(ports.bytes());
            ports.read(0, &mut [0; 4096], 0).unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!written.load(Ordering::Acquire), "they wait");
        assert!(most <= usize::from(PORTS) * partial_bytes && most > partial_bytes, "{most} bytes");
        assert!(!ports.has_room(FIRST_PORT, 128 << 10), "and it shows");
        place.keeper.hangs.store(false, Ordering::Release);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
    });
    place.end();
    let end = place.image(Moment::End, over_base, "base");
    assert!(end == std::fs::read(place.path("disk")).unwrap());
}

/// A journal without room holds up writes and corrupts nothing; whoever ends it then is told.
#[test]
fn a_full_journal_holds_up_writes_and_not_reads() {
    let settings = Settings { partial_bytes: 256 << 10, ..settings(Images::After, Durability::Flush) };
    let place = Place::new(settings, 2 << 20, None);
    std::thread::scope(|scope| {
        let ports = &place.ports;
        let writer = scope.spawn(move || {
            (0..2000u64).try_for_each(|n| ports.write(0, FIRST_PORT, &[1; 4096], n % 64 * 4096))
        });
        std::thread::sleep(Duration::from_millis(500));
        assert!(!writer.is_finished(), "it waits");
        ports.read(0, &mut [0; 4096], 0).unwrap();
        ports.stop_waiting();
        assert!(writer.join().unwrap().is_err());
        let begun = Instant::now();
        while ports.failure().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(20), "who waits for room hears that it is over");
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let report = journal::verify::verify(&place.path("journal"), &mut |_, _| {}).unwrap();
    assert!(report.is_sound(), "{:?}", report.findings);
}

/// An error of primary is the client's, and the entry says that nobody knows.
#[test]
fn a_failing_primary_is_told_and_journaled() {
    let machine = Arc::new(Machine::default());
    let disk = Disk::new(&machine, "primary", vec![0; VOLUME_BYTES as usize]);
    let place = Place::new(settings(Images::After, Durability::Flush), 8 << 20, Some(disk.clone()));
    place.ports.write(0, FIRST_PORT, &[1; 4096], 0).unwrap();
    disk.bad(Some(8192..12288));
    assert_eq!(place.ports.write(0, FIRST_PORT, &[2; 4096], 8192).unwrap_err().raw_os_error(), Some(5));
    place.ports.write(0, FIRST_PORT, &[3; 4096], 0).unwrap();
    place.ports.flush(0).unwrap();
    let reader = JournalReader::open(&place.path("journal")).unwrap();
    let statuses: Vec<Updated> = reader.entries().unwrap().map(|entry| entry.unwrap().updated).collect();
    assert_eq!(statuses, [Updated::Updated, Updated::Unknown, Updated::Updated]);
    // A sync that fails: nobody knows what is there, so nothing goes on, and the log asks for a replay.
    disk.bad(None);
    disk.sync_fails();
    assert!(place.ports.checkpoint(false).is_err());
    assert!(place.ports.write(0, FIRST_PORT, &[4; 4096], 0).is_err());
    assert!(place.ports.flush(0).is_err());
}

/// While another command has the journal with its ports closed, what was handed over is still noted as durable.
#[test]
fn a_journal_whose_ports_are_closed_is_still_synced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let options = CreateOptions {
        bytes: Some(2 << 20),
        segment_bytes: None,
        volumes: Vec::new(),
        ports: Vec::new(),
        writer: "paths".into(),
    };
    Journal::create(&path, &options).unwrap().close().unwrap();
    let mut journal = Journal::open_ports_closed(&path, "paths").unwrap();
    for sync in [Commit::No, Commit::Batches, Commit::Whole] {
        let outcome = append_to(&mut journal, Handed { sync, ..Handed::default() });
        assert!(outcome.result.is_ok(), "{sync:?}: {:?}", outcome.result);
    }
}

#[test]
fn the_hosts_clock_goes_on_and_says_what_it_knows() {
    let clock = HostClock::default();
    let readings: Vec<Reading> = (0..1000).map(|_| clock.read()).collect();
    assert!(readings[0].nanoseconds > 1_600_000_000_000_000_000);
    assert!(readings.iter().all(|reading| reading.error.is_none_or(|error| error >= 500_000)));
}

#[test]
fn writers_that_wait_share_a_sync() {
    for (images, durability) in [(Images::After, Durability::Strict), (Images::Before, Durability::Flush)] {
        let place = Place::new(settings(images, durability), 64 << 20, None);
        place.keeper.sync_takes.store(3, Ordering::Relaxed);
        std::thread::scope(|scope| {
            for thread in 0..16u64 {
                let ports = &place.ports;
                scope.spawn(move || {
                    let port = FIRST_PORT + (thread % u64::from(PORTS)) as u8;
                    for count in 0..20u8 {
                        ports.write(0, port, &[count; 4096], thread * 8192).unwrap();
                    }
                });
            }
        });
        // One leads and up to fifteen go along, who wait meanwhile; one each was 320.
        let syncs = place.keeper.syncs.load(Ordering::Relaxed);
        assert!((20..160).contains(&syncs), "{syncs} syncs for 320 writes");
        place.end();
    }
}
