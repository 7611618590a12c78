//! The card as another process has it: a client of vfio-user instead of QEMU, with the driver behind it.

use driver::{BringUp, Card, CardError, Completions, DmaRegion, Driver, Interrupts};
use layout::aoe::Ata;
use layout::entry::{Kind, Updated};
use layout::registers::{control, global, ticks, Counter};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::fs::{memfd_create, MemfdFlags};
use rustix::mm::{mmap, munmap, MapFlags, ProtFlags};
use sim::target::{request, Image, TargetVolume, VbladeModel};
use sim::vfio_user::{Machine, Serving};
use sim::{CardOptions, SimulatedCard, PORTS};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use vfio_user::Client;
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};

const BAR0: u32 = 0;
const CONFIG: u32 = 7;
const MSIX: u32 = 2;
/// `VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER`, and with `DATA_NONE`.
const EVENTFDS: u32 = 1 << 2 | 1 << 5;
const NONE: u32 = 1 | 1 << 5;
const COMMAND: u64 = 0x04;
const DEVICE_CONTROL: u64 = 0x48;
/// The wall clock's time for one of the card's: 125 MHz over some 25,000 cycles/s on a busy machine.
const SLOWNESS: u32 = 5_000;
const SECTORS: u64 = 64;

/// Memory shared with the server, as QEMU's guest memory is.
struct Shared {
    file: File,
    pointer: *mut u8,
    bytes: usize,
}

impl Shared {
    fn new(bytes: usize) -> Self {
        let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd"));
        file.set_len(bytes as u64).expect("its size");
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory there is.
        let pointer = unsafe { mmap(std::ptr::null_mut(), bytes, protection, MapFlags::SHARED, &file, 0) };
        Self { file, pointer: pointer.expect("a mapping").cast(), bytes }
    }

    fn slice(&self) -> &[u8] {
        // SAFETY: the mapping is that long, and the driver looks only at what the card has finished with.
        unsafe { std::slice::from_raw_parts(self.pointer, self.bytes) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: made in `new`, and nobody refers to it any more.
        let _ = unsafe { munmap(self.pointer.cast(), self.bytes) };
    }
}

/// The driver's card behind the protocol.
struct ClientCard {
    client: Client,
    vectors: Vec<EventFd>,
    regions: BTreeMap<u64, Shared>,
    next: u64,
}

impl ClientCard {
    fn connect(path: &Path) -> Self {
        let client = Client::new(path).expect("a server");
        let vectors = (0..PORTS).map(|_| EventFd::new(EFD_NONBLOCK).expect("an eventfd")).collect();
        let mut card = Self { client, vectors, regions: BTreeMap::new(), next: 0x1_0000_0000 };
        card.command(0x6);
        card
    }

    fn command(&mut self, command: u16) {
        self.client.region_write(CONFIG, COMMAND, &command.to_le_bytes()).expect("a write");
    }

    fn config(&mut self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.client.region_read(CONFIG, offset, &mut bytes).expect("a read");
        u32::from_le_bytes(bytes)
    }

    fn enable_vectors(&mut self) {
        let events: Vec<_> = self.vectors.iter().map(|event| event.as_raw_fd()).collect();
        self.client.set_irqs(MSIX, NONE, 0, 0, &[]).expect("disabled");
        self.client.set_irqs(MSIX, EVENTFDS, 0, events.len() as u32, &events).expect("enabled");
    }

    fn function_level_reset(&mut self) {
        let control = self.config(DEVICE_CONTROL) as u16 | 1 << 15;
        self.client.region_write(CONFIG, DEVICE_CONTROL, &control.to_le_bytes()).expect("a write");
        self.command(0x6);
    }
}

impl Card for ClientCard {
    fn read(&mut self, offset: u32) -> Result<u32, CardError> {
        let mut bytes = [0; 4];
        self.client.region_read(BAR0, offset.into(), &mut bytes).expect("a read");
        Ok(u32::from_le_bytes(bytes))
    }

    fn write(&mut self, offset: u32, value: u32) -> Result<(), CardError> {
        self.client.region_write(BAR0, offset.into(), &value.to_le_bytes()).expect("a write");
        Ok(())
    }

    fn map_dma(&mut self, bytes: usize) -> Result<DmaRegion, CardError> {
        let shared = Shared::new(bytes);
        let address = self.next;
        self.next += (bytes.next_multiple_of(4096) + 4096) as u64;
        self.client.dma_map(0, address, bytes as u64, shared.file.as_raw_fd()).expect("mapped");
        self.regions.insert(address, shared);
        Ok(DmaRegion { id: 0, bus_address: address, bytes })
    }

    fn unmap_dma(&mut self, region: DmaRegion) -> Result<(), CardError> {
        self.client.dma_unmap(region.bus_address, region.bytes as u64).expect("unmapped");
        self.regions.remove(&region.bus_address);
        Ok(())
    }

    fn dma_bytes(&self, region: &DmaRegion) -> &[u8] {
        self.regions[&region.bus_address].slice()
    }

    fn dma_load(&self, region: &DmaRegion, offset: usize) -> u64 {
        let shared = &self.regions[&region.bus_address];
        assert!(offset + 8 <= shared.bytes && offset.is_multiple_of(8));
        // SAFETY: inside the mapping and aligned.
        unsafe { AtomicU64::from_ptr(shared.pointer.add(offset).cast()) }.load(Ordering::Acquire)
    }

    fn msix_message(&mut self, vector: usize) -> Option<(u64, u32)> {
        if vector == 0 {
            self.enable_vectors();
        }
        None
    }

    fn wait(&mut self, timeout: Duration) -> Result<Interrupts, CardError> {
        let until = Instant::now() + timeout * SLOWNESS;
        loop {
            let fired = |(vector, event): (usize, &EventFd)| u64::from(event.read().is_ok()) << vector;
            let fired = self.vectors.iter().enumerate().map(fired).sum();
            let left = until.saturating_duration_since(Instant::now());
            if fired != 0 || left.is_zero() {
                return Ok(Interrupts(fired));
            }
            // SAFETY: the eventfds are open for as long as `self` is.
            let borrow = |event: &EventFd| unsafe { std::os::fd::BorrowedFd::borrow_raw(event.as_raw_fd()) };
            let borrowed: Vec<_> = self.vectors.iter().map(borrow).collect();
            let mut events: Vec<_> = borrowed.iter().map(|event| PollFd::new(event, PollFlags::IN)).collect();
            let left = Timespec::try_from(left).expect("a time-out");
            poll(&mut events, Some(&left)).expect("a wait");
        }
    }

    fn function_was_reset(&mut self) {
        for (address, shared) in std::mem::take(&mut self.regions) {
            self.client.dma_unmap(address, shared.bytes as u64).expect("unmapped");
        }
    }
}

struct Bench {
    serving: Serving,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(links: impl FnOnce(&Path) -> Vec<sim::vfio_user::Link>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let links = links(folder.path());
        let make = move || {
            let image = Image::Memory(vec![0; SECTORS as usize * 512]);
            let target = VbladeModel::new(vec![TargetVolume::new(1, 0, SECTORS, image)]);
            let card = SimulatedCard::new(CardOptions::default(), Box::new(target))?;
            Ok(Machine::new(card, links))
        };
        let serving = Serving::start(&folder.path().join("card"), make, |what| println!("card: {what}"));
        Self { serving: serving.expect("a card"), folder }
    }

    fn connect(&self) -> ClientCard {
        ClientCard::connect(&self.folder.path().join("card"))
    }
}

fn settings(session: u64, next_sequence: Option<u64>) -> BringUp {
    let mut settings = BringUp::new(session, 1_800_000_000_000_000_000 + session, PORTS);
    settings.volumes = vec![Some((1, 0))];
    settings.timeouts.flush_period = ticks(200);
    settings.lock_limit = Duration::from_millis(20);
    for port in &mut settings.ports {
        port.ring_bytes = 64 * 1024;
        port.volumes = 1;
    }
    settings.ports[0].next_sequence = next_sequence;
    settings
}

fn write_frame(tag: u32) -> Vec<u8> {
    let lba = u64::from(tag) % SECTORS;
    let mut bytes = [0; 6];
    bytes.copy_from_slice(&lba.to_le_bytes()[..6]);
    let ata =
        Ata { flags: 0x41, error_feature: 0, sectors: 1, command_status: 0x34, lba: bytes, reserved: [0; 2] };
    request([2, 0, 0, 0, 0, 1], (1, 0), tag, ata, &[tag as u8; 512])
}

/// What came out of port 0.
#[derive(Default)]
struct Taken {
    numbers: Vec<u64>,
    updated: usize,
    gaps: usize,
    next_sequence: u64,
}

fn take(driver: &mut Driver<ClientCard>, taken: &mut Taken, completions: &mut Completions) {
    driver.poll().expect("good records");
    for port in 0..driver.ports() {
        let batch = driver.batch(port);
        for record in batch.records() {
            assert_eq!(usize::from(record.header.port), port);
            completions.take(&record).expect("few open");
            match record.kind {
                Kind::After => {
                    assert_eq!(record.payload.len(), 512);
                    let tag = record.payload[0];
                    assert!(record.payload.iter().all(|byte| *byte == tag));
                    assert_eq!(record.header.lba(), u64::from(tag) % SECTORS);
                    taken.numbers.push(record.header.number.get());
                }
                Kind::Completion => taken.updated += usize::from(record.updated == Updated::Updated),
                Kind::Gap => taken.gaps += 1,
                _ => {}
            }
            if port == 0 {
                taken.next_sequence = record.header.sequence.get() + 1;
            }
        }
        let records = batch.len();
        driver.consume(port, records).expect("consumed");
    }
}

/// A host's whole life with a card: configuration, bring-up, traffic, a reset in the middle of it, bus mastering off
/// and on, memory that goes away, a client that dies.
#[test]
fn a_card_behind_vfio_user() {
    let bench = Bench::new(|_| Vec::new());
    let mut card = bench.connect();
    let began = Instant::now();
    let said = |what: &str| println!("{:6.2} s  {what}", began.elapsed().as_secs_f64());

    // Nobody answers in the BAR before memory space is enabled.
    card.command(0);
    assert_eq!(card.read(global::IDENTITY).expect("a read"), u32::MAX);
    card.command(6);
    let mut driver = Driver::bring_up(card, &settings(1, None)).expect("bring-up");
    assert_eq!(driver.found().unclean_session, None);
    said("up");

    // Registers of every access that a bus makes.
    let card = driver.card_mut();
    let mut bytes = [0; 8];
    card.client.region_read(BAR0, global::SESSION.into(), &mut bytes).expect("eight bytes");
    assert_eq!(u64::from_le_bytes(bytes), 1);
    card.client.region_read(BAR0, 2, &mut bytes[..2]).expect("two bytes");
    assert_eq!(bytes[..2], layout::registers::IDENTITY_VALUE.to_le_bytes()[2..]);
    card.client.region_write(BAR0, global::NUMBER_FLOOR.into(), &5u64.to_le_bytes()).expect("eight bytes");
    assert_eq!(card.read(global::NUMBER_FLOOR).expect("a read"), 5);
    card.client.region_read(BAR0, 0xFFFC, &mut bytes).expect("beyond the end");
    assert_eq!(bytes, [0xFF; 8]);

    // Traffic, by DMA and interrupts.
    let (mut taken, mut completions) = (Taken::default(), Completions::new(PORTS));
    let offer = |tags: std::ops::Range<u32>| {
        let offered = bench.serving.with(move |machine| {
            tags.for_each(|tag| machine.card_mut().offer(0, write_frame(tag)));
        });
        offered.expect("a card");
    };
    offer(0..8);
    let mut interrupts = 0;
    while taken.updated < 8 {
        interrupts |= driver.wait(Duration::from_millis(2)).expect("a card").0;
        take(&mut driver, &mut taken, &mut completions);
    }
    assert_eq!(taken.numbers, (6..14).collect::<Vec<u64>>(), "above the floor, each once");
    assert_eq!(interrupts & 1, 1);
    let counts = bench.serving.counts().expect("a card");
    assert!(counts.messages > 0 && counts.faults == 0 && counts.mappings == PORTS + 1, "{counts:?}");
    said("eight writes drained");

    // Without bus mastering nothing leaves the card; nothing is lost in it.
    driver.card_mut().command(2);
    let before = bench.serving.counts().expect("a card");
    offer(8..12);
    while driver.counters(0).expect("a card").get(Counter::Journaled) < 12 {}
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(driver.poll().expect("good records"), 0);
    assert_eq!(bench.serving.counts().expect("a card").messages, before.messages);
    driver.card_mut().command(6);
    while taken.updated < 12 {
        driver.wait(Duration::from_millis(1)).expect("a card");
        take(&mut driver, &mut taken, &mut completions);
    }
    assert_eq!((taken.numbers.len(), taken.gaps), (12, 0));
    said("bus mastering off and on");

    // A function-level reset in the middle of traffic: writes are closed, what was being drained is a gap at most,
    // what was not yet drained comes in the next session, and no number comes twice or with other data.
    offer(12..28);
    while driver.batch(0).len() < 2 {
        driver.wait(Duration::from_millis(1)).expect("a card");
        driver.poll().expect("good records");
    }
    let mut card = driver.into_card();
    card.function_level_reset();
    assert_eq!(bench.serving.counts().expect("a card").resets, 1);
    assert_eq!(card.read(global::STATUS).expect("a read") & control::WRITES_OPEN, 0);
    let mut driver = Driver::bring_up(card, &settings(2, Some(taken.next_sequence))).expect("bring-up");
    assert_eq!(driver.found().unclean_session, Some(1), "told apart from a clean stop");
    let last = driver.last_number().expect("a card");
    assert!(last >= *taken.numbers.last().expect("some"));
    offer(40..44);
    let mut stopped = Driver::stop(&mut driver, Duration::from_millis(20), |driver| {
        take(driver, &mut taken, &mut completions);
        Ok::<_, CardError>(())
    });
    // Frames that came while writes were closed are dropped, so the last four may be too.
    if stopped.is_err() {
        stopped = driver.stop(Duration::from_millis(20), |driver| {
            take(driver, &mut taken, &mut completions);
            Ok::<_, CardError>(())
        });
    }
    stopped.expect("a clean stop");
    let mut numbers = taken.numbers.clone();
    numbers.dedup();
    assert_eq!(numbers, taken.numbers, "no number twice");
    assert!(numbers.is_sorted());
    let lost = (last - 5) as usize - numbers.iter().filter(|number| **number <= last).count();
    println!("lost by the reset: {lost} entries, {} gaps", taken.gaps);
    assert_eq!(lost > 0, taken.gaps > 0, "what is lost is a gap, and nothing else is");
    assert_eq!(bench.serving.counts().expect("a card").mappings, 0, "all unmapped");
    said("reset under traffic");

    // Memory that is unmapped while the card writes there: faults, and not a byte after it was unmapped.
    let mut driver = Driver::bring_up(driver.into_card(), &settings(3, None)).expect("bring-up");
    assert_eq!(driver.found().unclean_session, None);
    let mut gone: Vec<Shared> = Vec::new();
    let card = driver.card_mut();
    offer(44..60);
    for address in card.regions.keys().copied().collect::<Vec<_>>() {
        let bytes = card.regions[&address].bytes as u64;
        card.client.dma_unmap(address, bytes).expect("unmapped");
        gone.extend(card.regions.remove(&address));
    }
    let at_once: Vec<Vec<u8>> = gone.iter().map(|shared| shared.slice().to_vec()).collect();
    while bench.serving.counts().expect("a card").faults == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(100));
    assert!(gone.iter().zip(&at_once).all(|(shared, before)| shared.slice() == before));
    said("unmapped under DMA");

    // A client that dies takes its memory along; the next one finds an unclean session and can use the card.
    drop(driver);
    let mut card = bench.connect();
    assert_eq!(bench.serving.counts().expect("a card").mappings, 0);
    card.client.reset().expect("a reset by message");
    card.command(6);
    let driver = Driver::bring_up(card, &settings(4, None)).expect("bring-up");
    assert_eq!(driver.found().unclean_session, Some(3));
    said("the next client");
}

/// Frames come and go by datagrams, without a driver: what isn't a write passes.
#[test]
fn a_port_is_a_socket() {
    let bench = Bench::new(|folder| {
        vec![sim::vfio_user::Link::new(2, &folder.join("port2"), folder.join("peer2")).expect("a link")]
    });
    let peer = UnixDatagram::bind(bench.folder.path().join("peer2")).expect("a socket");
    peer.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
    let ata = Ata {
        flags: 0x40,
        error_feature: 0,
        sectors: 2,
        command_status: 0x24,
        lba: [3, 0, 0, 0, 0, 0],
        reserved: [0; 2],
    };
    let read = request([2, 0, 0, 0, 0, 9], (1, 0), 77, ata, &[]);
    for _ in 0..3 {
        peer.send_to(&read, bench.folder.path().join("port2")).expect("sent");
        let mut answer = [0; 2048];
        let bytes = peer.recv(&mut answer).expect("an answer");
        assert_eq!((bytes, &answer[20..24]), (36 + 1024, &77u32.to_be_bytes()[..]));
    }
    // What is no frame does no harm.
    peer.send_to(&[1; 5], bench.folder.path().join("port2")).expect("sent");
    peer.send_to(&read, bench.folder.path().join("port2")).expect("sent");
    assert!(peer.recv(&mut [0; 2048]).is_ok());
}
