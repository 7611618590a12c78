//! A card and exports in one journal: the gateware in this process, an initiator before it, and a client of an export, in turns.
//!
//! `CHRONO_SEED` names the seed.

use super::wired::{data, Initiator, Knobs, Wired, LIMIT, SHELF_SLOT, SLOWER};
use super::{together, DrainSettings, Together};
use crate::arguments::{ImagesKind, Size};
use crate::daemon::{hold, Desk, Holding, Lodger};
use crate::error::Error;
use crate::network::NetworkArguments;
use crate::serve::{self, DurabilityKind, ExportOf, Journaling, OfCard, Opened, Serving, What};
use journal::image::{Backing, Image};
use journal::{JournalReader, Moment, Volume};
use layout::SECTOR_BYTES;
use nbd::Export;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::fs::{copy, create_dir, read, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const SECTORS: u64 = 96;
const BYTES: usize = SECTORS as usize * SECTOR_BYTES;
/// Where the initiator is.
const PORT: usize = 0;
/// The time of the card that is followed goes faster than it, surely, whatever the machine does.
const FOLLOWED: u32 = SLOWER / 3;
/// The volumes, and their primaries.
const VOLUMES: [(&str, &str); 2] = [("1.0", "primary"), ("disk", "disk")];

struct World {
    folder: PathBuf,
    desk: Arc<Desk>,
    serving: Arc<Serving>,
    lodger: Arc<Together>,
    daemon: JoinHandle<Result<(), Error>>,
    knobs: Knobs,
    initiator: Initiator,
    client: Arc<dyn Export>,
}

impl World {
    fn new(folder: &Path, images: ImagesKind) -> Self {
        for name in ["primary", "base", "disk"] {
            File::create(folder.join(name)).and_then(|file| file.set_len(BYTES as u64)).expect("an image");
        }
        Self::begin(folder, images, true)
    }

    fn begin(folder: &Path, images: ImagesKind, create: bool) -> Self {
        let (knobs, root, (tell, told)) = (Knobs::default(), folder.to_owned(), channel());
        let of_card = knobs.clone();
        let daemon = thread::spawn(move || {
            let journal = root.join("j");
            let journaling = Journaling {
                images,
                durability: DurabilityKind::Flush,
                memory: Size(1 << 20),
                dirty_log: None,
            };
            let network = NetworkArguments {
                socket: Some(root.join("nbd.sock")),
                listen: None,
                tls_certificates: None,
                tls_verify_peer: false,
            };
            let bases = [serve::BaseOf { name: "disk".into(), file: root.join("base") }];
            let what =
                What { journal: &journal, create, base: &bases, journaling: &journaling, network: &network };
            let exports = [ExportOf { name: "disk".into(), file: root.join("disk"), part: None }];
            let opened = Opened::open(what, &exports)?;
            let holding = Holding {
                journal: &journal,
                control: None,
                create: create.then_some(16 << 20),
                bases: Vec::new(),
                recovers: true,
            };
            hold(&holding, |desk, held, output| {
                let known = vec![Volume::aoe(0, SHELF_SLOT.0, SHELF_SLOT.1, SECTORS)];
                let behind_gap = held.journal()?.opened().previous == journal::PreviousEnd::Unclean;
                let settings = DrainSettings {
                    volumes: Vec::new(),
                    host_port: None,
                    flush_period: 100,
                    unknown_after: 200,
                    quarantine: 400,
                    slower: SLOWER,
                    progress_durable: false,
                    behind_gap,
                    stalled_for: Duration::from_secs(2),
                };
                let primary = root.join("primary");
                let folder = root.clone();
                let make = move || Ok(Wired::new(&folder, &primary, SECTORS, &[PORT], of_card));
                let run = |serving: &Arc<Serving>, software: &Arc<super::Software>, volumes| {
                    let both =
                        together(desk, DrainSettings { volumes, ..settings }, serving, software, make)?;
                    tell.send((Arc::clone(desk), Arc::clone(serving), both)).expect("somebody waits");
                    Ok(())
                };
                let behind = OfCard { volumes: &known, slower: FOLLOWED };
                serve::begin_with_card(what, opened, behind, desk, held, output, run)
            })
        });
        let (desk, serving, lodger) = told.recv().expect("it holds the journal");
        wait_until("no card", || folder.join(format!("port{PORT}")).exists());
        let (mut initiator, client) = (Initiator::new(folder, PORT), serving.client("disk", 1));
        // The tests count entries: where a busy machine takes its time, no write is sent twice. None is lost once it is up.
        initiator.resend = LIMIT;
        lodger.drain(None).expect("it is up");
        Self { folder: folder.to_owned(), desk, serving, lodger, daemon, knobs, initiator, client }
    }

    fn end(self) {
        drop(self.client);
        self.desk.end();
        self.daemon.join().expect("it ends").expect("in order");
    }

    fn image(&self, volume: &str, at: Moment) -> Result<Vec<u8>, journal::Error> {
        image(&self.folder, volume, at)
    }

    /// The journal has everything, durably.
    fn settle(&self) -> u64 {
        self.lodger.drain(None).expect("drained");
        let synced = self.desk.call(|held| held.journal().and_then(|journal| Ok(journal.sync()?)));
        synced.expect("a journal").expect("durable").order
    }

    /// What the journal holds durably of the exports' arbiter.
    fn durable_number(&self) -> u64 {
        let durable = self.desk.call(|held| held.journal().map(|journal| journal.durable().clone()));
        let durable = durable.expect("a journal").expect("durable");
        durable.numbers.iter().filter(|(port, _)| *port >= 128).map(|(_, number)| *number).max().unwrap_or(0)
    }
}

fn image(folder: &Path, volume: &str, at: Moment) -> Result<Vec<u8>, journal::Error> {
    let (reader, base) = (JournalReader::open(&folder.join("j"))?, folder.join("base"));
    let image = Image::open(reader, volume, at, Backing::Base(&base), false, &mut |_, _| {})?;
    let mut bytes = vec![0; BYTES];
    image.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < LIMIT, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn verified(folder: &Path) {
    let verified = journal::verify::verify(&folder.join("j"), &mut |_, _| {}).expect("a journal");
    assert!(verified.findings.is_empty(), "{:?}", verified.findings);
}

/// What was written, in the order in which it was asked for: the volume, where, what; and whether the client waited for a flush
/// behind it.
#[derive(Default)]
struct Writes(Vec<(usize, u64, Vec<u8>, bool)>);

impl Writes {
    /// Writes at random on both sides, one after the other.
    fn some(&mut self, world: &mut World, count: usize, random: &mut ChaCha8Rng) {
        for _ in 0..count {
            let (side, sectors) = (random.random_range(0..2), random.random_range(1..=4));
            let lba = random.random_range(0..SECTORS - 4);
            let data = data(sectors, random.random());
            let mut flushed = side == 0;
            match side {
                0 => world.initiator.write(lba, &data),
                _ => {
                    world.client.write(&data, lba * SECTOR_BYTES as u64).expect("written");
                    flushed = random.random_bool(0.6);
                    if flushed {
                        world.client.flush().expect("flushed");
                        let writes = self.0.iter().filter(|(side, ..)| *side == 1).count() as u64 + 1;
                        assert!(world.durable_number() >= writes, "a flush that isn't durable was answered");
                    }
                }
            }
            self.0.push((side, lba, data, flushed));
        }
    }

    /// The image of a volume behind its first so many writes.
    fn image(&self, volume: usize, writes: usize) -> Vec<u8> {
        let mut image = vec![0; BYTES];
        for (_, lba, data, _) in self.0.iter().filter(|(side, ..)| *side == volume).take(writes) {
            let at = *lba as usize * SECTOR_BYTES;
            image[at..at + data.len()].copy_from_slice(data);
        }
        image
    }
}

/// Each moment of the journal shows both volumes as they were, and what was answered before something was asked for comes
/// before it.
fn each_moment(folder: &Path, writes: &Writes) {
    let reader = JournalReader::open(&folder.join("j")).expect("a journal");
    let entries: Vec<_> = reader.entries().expect("entries").map(|entry| entry.expect("whole")).collect();
    let of = |index: u16| usize::from(index >= 16);
    let (mut done, mut stamp) = ([0, 0], 0);
    let mut orders = [Vec::new(), Vec::new()];
    for entry in &entries {
        let header = &entry.record.header;
        assert!(header.timestamp.get() >= stamp, "order:{}: stamps fall", entry.order);
        stamp = header.timestamp.get();
        let side = of(header.volume.get());
        done[side] += 1;
        orders[side].push(entry.order);
        for (volume, (name, _)) in VOLUMES.iter().enumerate() {
            let image = image(folder, name, Moment::Order(entry.order)).expect("certain");
            assert!(image == writes.image(volume, done[volume]), "{name} at order:{}", entry.order);
        }
    }
    assert_eq!(entries.len(), writes.0.len());
    // Of each write its order; what came later in time and order doesn't come before what was answered for good.
    let mut next = [0, 0];
    let mut certain = 0;
    for (side, _, _, flushed) in &writes.0 {
        let order = orders[*side][next[*side]];
        next[*side] += 1;
        assert!(
            order > certain,
            "order:{order} of {} was asked for behind order:{certain}",
            VOLUMES[*side].0
        );
        if *flushed {
            certain = certain.max(order);
        }
    }
}

fn seed() -> u64 {
    std::env::var("CHRONO_SEED").map_or(41, |text| text.parse().expect("a number"))
}

#[test]
fn a_card_and_exports_share_one_time_line() {
    let seed = seed();
    println!("CHRONO_SEED={seed}");
    let (mut random, mut writes) = (ChaCha8Rng::seed_from_u64(seed), Writes::default());
    let folder = tempfile::tempdir().expect("a folder");
    let mut world = World::new(folder.path(), ImagesKind::After);
    writes.some(&mut world, 24, &mut random);

    // Somebody needs the ports closed for a while; a write waits meanwhile.
    world.lodger.step_aside().expect("aside");
    let client = Arc::clone(&world.client);
    let late = data(1, 77);
    let waiting = thread::spawn({
        let late = late.clone();
        move || client.write(&late, 0)
    });
    thread::sleep(Duration::from_millis(100));
    assert!(!waiting.is_finished(), "the ports are closed");
    world.lodger.come_back();
    waiting.join().expect("it waited").expect("written");
    writes.0.push((1, 0, late, false));
    writes.some(&mut world, 8, &mut random);
    world.settle();
    each_moment(folder.path(), &writes);
    for (volume, (name, primary)) in VOLUMES.iter().enumerate() {
        let then = read(folder.path().join(primary)).expect("primary");
        assert!(
            then == world.image(name, Moment::End).expect("certain")
                && then == writes.image(volume, usize::MAX)
        );
    }

    // The card is reset behind the agent's back: a gap of its ports. What is exported lacks nothing and goes on.
    let before = world.desk.status().session;
    world.knobs.reset.store(true, Ordering::SeqCst);
    wait_until("no reset", || !world.knobs.reset.load(Ordering::SeqCst));
    let more = data(2, 78);
    world.client.write(&more, 40 * SECTOR_BYTES as u64).expect("written");
    world.client.flush().expect("flushed: the card is up again");
    writes.0.push((1, 40, more, true));
    writes.some(&mut world, 4, &mut random);
    let order = world.settle();
    assert_eq!(world.desk.status().session, before, "the journal's session went on");
    wait_until("no mark", || {
        world.settle();
        world.image("disk", Moment::End).is_ok()
    });
    assert!(world.image("disk", Moment::End).expect("certain") == writes.image(1, usize::MAX));
    let gap = world.image("1.0", Moment::Order(order)).expect_err("nobody knows what the card lost");
    assert!(gap.to_string().contains("lost"), "{gap}");

    // The card delivers nothing more. What is written now is in primary, and not in the journal. A copy of everything is what
    // a kill leaves.
    world.settle();
    world.knobs.stuck.store(true, Ordering::SeqCst);
    let unjournaled = data(3, 79);
    world.client.write(&unjournaled, 60 * SECTOR_BYTES as u64).expect("written");
    writes.0.push((1, 60, unjournaled, false));
    let killed = folder.path().join("killed");
    create_dir(&killed).expect("a folder");
    for name in ["j", "j.dirty", "primary", "disk", "base"] {
        copy(folder.path().join(name), killed.join(name)).expect("a copy");
    }
    let began = Instant::now();
    world.client.flush().expect_err("it can't be durable");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    let World { client, serving, lodger, daemon, .. } = world;
    drop((client, serving, lodger));
    let why = daemon.join().expect("it ends").expect_err("not in order").to_string();
    assert!(why.contains("delivered nothing"), "{why}");
    verified(folder.path());

    // Killed, and started again.
    let mut world = World::begin(&killed, ImagesKind::After, false);
    world.settle();
    let disk = read(killed.join("disk")).expect("primary");
    assert!(
        disk == writes.image(1, usize::MAX) && disk == world.image("disk", Moment::End).expect("certain")
    );
    world.image("1.0", Moment::End).expect_err("a gap until it is resynced");
    writes.some(&mut world, 6, &mut random);
    world.settle();
    assert!(world.image("disk", Moment::End).expect("certain") == writes.image(1, usize::MAX));
    world.end();
    verified(&killed);
}

#[test]
fn with_both_images_a_write_waits_for_its_entry_in_the_common_order() {
    let seed = seed().wrapping_add(1);
    println!("CHRONO_SEED={}", seed.wrapping_sub(1));
    let (mut random, mut writes) = (ChaCha8Rng::seed_from_u64(seed), Writes::default());
    let folder = tempfile::tempdir().expect("a folder");
    let mut world = World::new(folder.path(), ImagesKind::Both);
    writes.some(&mut world, 8, &mut random);
    // It was durable before primary had it, flush or not.
    let mut done = writes.0.iter().filter(|(side, ..)| *side == 1).count() as u64;
    for lba in 0..3 {
        let data = data(1, lba);
        world.client.write(&data, lba * SECTOR_BYTES as u64).expect("written");
        done += 1;
        assert!(world.durable_number() >= done, "in primary before it is in the journal");
        writes.0.push((1, lba, data, true));
    }
    world.settle();
    each_moment(folder.path(), &writes);
    world.end();
    verified(folder.path());
}
