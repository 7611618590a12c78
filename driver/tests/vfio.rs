//! The VFIO backend, unmodified, against a kernel's VFIO made in this process, with the scripted card behind it.

mod fake_kernel;
mod made;

use driver::fake::Step;
use driver::vfio::{OpenError, VfioCard, VfioOptions};
use driver::{BringUpError, Card as _, CardError, Driver, RingError};
use fake_kernel::{Kernel, RANGES};
use layout::entry::Kind;
use layout::registers::{global, port};
use made::{settings, Card, RING};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

const PORTS: usize = 2;

fn options(kernel: &Kernel) -> VfioOptions {
    VfioOptions { device: kernel.device(), slowness: 1 }
}

fn open(kernel: &Kernel) -> VfioCard {
    VfioCard::open(&options(kernel)).expect("the card opens")
}

fn refusal(kernel: &Kernel) -> OpenError {
    VfioCard::open(&options(kernel)).expect_err("the card doesn't open")
}

fn up(kernel: &Kernel) -> Driver<VfioCard> {
    Driver::bring_up(open(kernel), &settings(PORTS)).expect("bring-up")
}

fn stop(driver: &mut Driver<VfioCard>) {
    let taken = driver.stop(Duration::from_secs(1), |driver| {
        for port in 0..driver.ports() {
            let records = driver.batch(port).len();
            driver.consume(port, records)?;
        }
        Ok::<_, CardError>(())
    });
    taken.expect("a clean stop");
}

#[test]
fn records_come_by_dma_and_interrupt_and_a_clean_stop_leaves_nothing() {
    let kernel = Kernel::boot(PORTS);
    let mut driver = up(&kernel);
    assert_eq!(driver.found().unclean_session, None);
    kernel.with(|world| {
        assert!(world.is_bus_master());
        assert_eq!(world.mapped.len(), PORTS + 1, "two rings and the mailboxes");
        for (address, bytes) in &world.mapped {
            let inside = |(first, last): &(u64, u64)| first <= address && address + bytes - 1 <= *last;
            assert!(RANGES.iter().any(inside), "{address:#x} isn't where the IOMMU translates");
        }
    });
    let mut card = Card::new(PORTS);
    let data = vec![0xA5; 1024];
    kernel.run(Step::Records { port: 1, bytes: card.write(1, 8, &data) });
    let interrupts = driver.wait(Duration::from_secs(60)).expect("a wait");
    assert_eq!(interrupts.0, 0b10, "the vector of port 1, and only once");
    assert_eq!(driver.poll().expect("good records"), 1);
    let record = driver.batch(1).get(0).expect("a record");
    assert_eq!((record.kind, record.header.lba(), record.payload), (Kind::After, 8, &data[..]));
    driver.consume(1, 1).expect("consumed");
    driver.durable(1).expect("durable");
    // The fake card has nothing in flight; its last stamp is what a watermark has to reach.
    let stamp = card.stamp;
    kernel.with(|world| world.card.set64(global::LAST_STAMP, stamp));
    for port in 0..PORTS {
        kernel.run(Step::Records { port, bytes: card.watermark(port) });
    }
    stop(&mut driver);
    kernel.with(|world| {
        assert!(world.mapped.is_empty(), "the card reaches nothing any more");
        assert_eq!(world.card.get64(global::SESSION), 0);
        assert_eq!(world.card.faults, 0);
    });
    drop(driver);
    kernel.with(|world| assert!(!world.is_bus_master(), "no DMA without an agent"));
    assert!(VfioCard::open(&options(&kernel)).is_ok(), "the group is free again");
}

#[test]
fn a_mapped_bar_is_read_and_written_where_the_registers_are() {
    let kernel = Kernel::boot(PORTS);
    kernel.with(|world| world.bar_mappable = true);
    let mut card = open(&kernel);
    assert!(card.is_bar_mapped());
    let bar = kernel.with(|world| world.bar);
    let word = |offset: i64| {
        let mut bytes = [0u8; 4];
        // SAFETY: four bytes of the memory behind the BAR.
        assert_eq!(unsafe { libc::pread64(bar, bytes.as_mut_ptr().cast(), 4, offset) }, 4);
        u32::from_le_bytes(bytes)
    };
    card.write(port::VOLUMES + 0x1400, 0x1234_5678).expect("a write");
    assert_eq!(word(0x140C), 0x1234_5678);
    let value = 0xCAFE_0001u32.to_le_bytes();
    // SAFETY: the same memory.
    assert_eq!(unsafe { libc::pwrite64(bar, value.as_ptr().cast(), 4, 0x48) }, 4);
    assert_eq!(card.read(global::LAST_NUMBER).expect("a read"), 0xCAFE_0001);
    for outside in [0x8000, 0xFFFC, 0x10000, 2] {
        assert!(matches!(card.read(outside), Err(CardError::Register { .. })), "{outside:#x}");
        assert!(matches!(card.write(outside, 0), Err(CardError::Register { .. })), "{outside:#x}");
    }
}

#[test]
fn what_is_missing_is_said_with_what_mends_it() {
    let kernel = Kernel::boot(PORTS);
    let refuse = |path: &'static str, errno: i32| {
        kernel.with(|world| world.refuse.insert(path, errno));
        let said = refusal(&kernel).to_string();
        kernel.with(|world| world.refuse.clear());
        said
    };
    assert!(refuse("/dev/vfio/vfio", libc::ENOENT).contains("modprobe vfio-pci"));
    assert!(refuse("/dev/vfio/vfio", libc::EACCES).contains("root"));
    assert!(refuse("/dev/vfio/7", libc::ENOENT).contains("host-agent card bind"));
    assert!(refuse("/dev/vfio/7", libc::EACCES).contains("chown"));
    kernel.with(|world| world.viable = false);
    assert!(matches!(refusal(&kernel), OpenError::NotViable));
    kernel.with(|world| (world.viable, world.bar_bytes) = (true, 4096));
    assert!(refusal(&kernel).to_string().contains("4096 bytes"));
    kernel.with(|world| (world.bar_bytes, world.config[0x84]) = (64 * 1024, 0x01));
    assert!(matches!(refusal(&kernel), OpenError::MsixTable { bar: 1, offset: 0x8000 }));
    kernel.with(|world| world.config = [0xFF; 256]);
    assert!(refusal(&kernel).to_string().contains("doesn't answer"));
    std::fs::remove_file(kernel.device().join("iommu_group")).expect("the link");
    assert!(refusal(&kernel).to_string().contains("intel_iommu=on"));
}

#[test]
fn a_second_agent_is_locked_out_until_the_first_is_gone() {
    let kernel = Kernel::boot(PORTS);
    let first = open(&kernel);
    let second = refusal(&kernel);
    assert!(matches!(&second, OpenError::InUse(group) if group == "7"), "{second}");
    assert!(second.to_string().contains("fuser -v /dev/vfio/7"));
    drop(first);
    open(&kernel);
}

#[test]
fn a_limit_on_locked_memory_is_named() {
    let kernel = Kernel::boot(PORTS);
    kernel.with(|world| world.memlock = 8192);
    let error = Driver::bring_up(open(&kernel), &settings(PORTS)).expect_err("no memory");
    assert!(error.to_string().contains("ulimit -l"), "{error}");
    kernel.with(|world| assert!(world.mapped.is_empty(), "what was mapped before is unmapped"));
}

#[test]
fn a_kernel_that_does_not_say_what_the_iommu_translates_gets_addresses_beside_the_message_window() {
    let kernel = Kernel::boot(PORTS);
    kernel.with(|world| world.says_ranges = false);
    let _driver = up(&kernel);
    kernel.with(|world| {
        for (address, bytes) in &world.mapped {
            assert!(*address >= 1 << 20 && address + bytes <= 0xFEE0_0000, "{address:#x}");
        }
    });
}

#[test]
fn an_unclean_stop_is_told_from_a_clean_one_by_the_session() {
    let kernel = Kernel::boot(PORTS);
    drop(up(&kernel));
    kernel.with(|world| assert_eq!(world.card.get64(global::SESSION), 7, "it was never taken away"));
    let mut settings = settings(PORTS);
    settings.session = 8;
    let driver = Driver::bring_up(open(&kernel), &settings).expect("bring-up");
    assert_eq!(driver.found().unclean_session, Some(7));
}

/// Bring-up resets the function, which clears the table of vectors that the kernel had written: without enabling
/// them again no interrupt would ever come.
#[test]
fn vectors_work_after_the_function_was_reset() {
    let kernel = Kernel::boot(PORTS);
    let mut driver = up(&kernel);
    kernel.with(|world| assert!(world.table_written));
    driver.card_mut().reset().expect("a function-level reset");
    kernel.with(|world| {
        assert_eq!(world.resets, 1);
        assert!(world.is_bus_master(), "the reset takes it away, the driver gives it back");
        assert!(!world.table_written);
    });
    let driver = Driver::bring_up(driver.into_card(), &settings(PORTS)).expect("bring-up");
    kernel.with(|world| {
        assert!(world.table_written, "enabled anew, behind the reset that cleared it");
        assert_eq!(world.mapped.len(), PORTS + 1, "what the session before had mapped is gone");
    });
    drop(driver);
}

#[test]
fn a_reset_behind_the_drivers_back_is_noticed() {
    let kernel = Kernel::boot(PORTS);
    let mut driver = up(&kernel);
    assert_eq!(driver.wait(Duration::from_millis(1)).expect("all is well").0, 0);
    kernel.run(Step::Register { offset: global::CONTROL, value: 2 });
    let error = driver.wait(Duration::from_millis(1)).expect_err("a reset");
    assert!(matches!(error, CardError::WasReset { control: 2 }), "{error}");
    let driver = Driver::bring_up(driver.into_card(), &settings(PORTS)).expect("bring-up");
    assert_eq!(driver.found().unclean_session, Some(7));
}

/// A card without traffic wakes its host only to be looked at.
#[test]
fn an_idle_card_takes_no_time() {
    let kernel = Kernel::boot(PORTS);
    kernel.with(|world| world.bar_mappable = true);
    let mut card = open(&kernel);
    let used = || {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: it writes one timespec.
        assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) }, 0);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    let (began, before) = (Instant::now(), used());
    for _ in 0..25 {
        assert_eq!(card.wait(Duration::from_millis(20)).expect("a wait").0, 0);
        card.read(global::CONTROL).expect("a read");
    }
    let (wall, cpu) = (began.elapsed(), used() - before);
    println!("{cpu:?} of {wall:?}: {:.2} % of a core", 100.0 * cpu.as_secs_f64() / wall.as_secs_f64());
    assert!(cpu * 100 < wall, "{cpu:?} of {wall:?}");
}

#[test]
fn lost_interrupts_do_no_harm() {
    let kernel = Kernel::boot(PORTS);
    let mut driver = up(&kernel);
    kernel.with(|world| world.lose_interrupts = true);
    let mut card = Card::new(PORTS);
    kernel.run(Step::Records { port: 0, bytes: card.write(0, 0, &[1; 512]) });
    assert_eq!(driver.wait(Duration::from_millis(5)).expect("a wait").0, 0);
    assert_eq!(driver.poll().expect("good records"), 1);
}

#[test]
fn a_storm_of_interrupts_ends_no_wait_early_twice_and_no_stop_late() {
    let kernel = Kernel::boot(PORTS);
    let mut driver = up(&kernel);
    for _ in 0..1000 {
        kernel.with(|world| world.interrupt(2, 0));
    }
    assert_eq!(driver.wait(Duration::from_secs(60)).expect("a wait").0, 1);
    assert_eq!(driver.poll().expect("no records"), 0);
    let began = Instant::now();
    assert_eq!(driver.wait(Duration::from_millis(20)).expect("a wait").0, 0, "a thousand are one");
    assert!(began.elapsed() >= Duration::from_millis(20));
    // It never ends while something is waited for that doesn't come: a write without an answer.
    let status = 0x1000 + port::STATUS;
    kernel.with(|world| {
        let locked = world.card.get(status);
        world.card.set(status, locked | 1 << 16);
        world.card.script =
            std::iter::repeat_n(Step::Records { port: 0, bytes: Vec::new() }, 100_000).collect();
    });
    let stopped = driver.stop(Duration::from_millis(20), |_| Ok::<_, CardError>(()));
    assert!(stopped.expect_err("it can't settle").to_string().contains("1 writes without an answer"));
}

#[test]
fn a_card_that_is_gone_is_noticed_while_waiting() {
    let kernel = Kernel::boot(PORTS);
    let mut driver = up(&kernel);
    kernel.run(Step::Gone);
    let error = driver.wait(Duration::from_millis(1)).expect_err("gone");
    assert!(matches!(error, CardError::Gone(_)), "{error}");
    assert!(matches!(driver.durable(1), Ok(())), "posted writes tell nothing");
    let error = Driver::bring_up(driver.into_card(), &settings(PORTS)).expect_err("gone");
    assert!(matches!(error, BringUpError::Card(CardError::Gone(_))), "{error}");
}

#[test]
fn an_error_of_the_bus_and_a_request_of_the_host_are_told_apart() {
    let kernel = Kernel::boot(PORTS);
    let mut driver = up(&kernel);
    kernel.with(|world| world.interrupt(4, 0));
    let began = Instant::now();
    assert_eq!(driver.wait(Duration::from_secs(600)).expect("no error").0, 0);
    assert!(began.elapsed() < Duration::from_secs(300), "the request ends the wait");
    assert!(driver.card().is_release_requested());
    kernel.with(|world| world.interrupt(3, 0));
    let error = driver.wait(Duration::from_secs(60)).expect_err("an error of the bus");
    assert!(matches!(&error, CardError::Bus(said) if said.contains("AER")), "{error}");
}

/// What is in flight when memory is unmapped meets the IOMMU: it is lost, and never lands in memory that belongs
/// to someone else by then.
#[test]
fn dma_after_unmapping_hits_nothing() {
    let kernel = Kernel::boot(PORTS);
    let mut card = open(&kernel);
    let region = card.map_dma(RING).expect("memory");
    kernel.with(|world| world.card.set64(0x1000 + port::MAILBOX_ADDRESS, region.bus_address));
    kernel.run(Step::Mailbox { port: 0, produced: 64 });
    assert_eq!(card.dma_load(&region, 0), 64);
    card.unmap_dma(region).expect("unmapped");
    assert_eq!(card.dma_bytes(&region).len(), 0);
    assert_eq!(card.dma_load(&region, 0), u64::MAX);
    let next = card.map_dma(RING).expect("memory");
    let expected = if next.bus_address == region.bus_address { 128 } else { 0 };
    kernel.run(Step::Mailbox { port: 0, produced: 128 });
    assert_eq!(card.dma_load(&next, 0), expected);
    assert!(card.unmap_dma(next).is_ok() && card.unmap_dma(next).is_err());
    kernel.run(Step::Mailbox { port: 0, produced: 192 });
    kernel.with(|world| assert!(world.card.faults >= 1));
}

#[test]
fn a_mailbox_out_of_range_and_a_flipped_bit_are_named_and_nothing_of_them_is_handed_out() {
    let kernel = Kernel::boot(PORTS);
    let mut driver = up(&kernel);
    let mut card = Card::new(PORTS);
    let bytes = card.write(0, 0, &[7; 512]);
    kernel.run(Step::Records { port: 0, bytes: bytes.clone() });
    kernel.run(Step::Flip { port: 0, position: 100, bit: 3 });
    let error = driver.poll().expect_err("a damaged record");
    assert!(matches!(error, RingError::Record { port: 0, position: 0, .. }), "{error}");
    assert_eq!(driver.batch(0).len(), 0);
    // The other port goes on.
    kernel.run(Step::Records { port: 1, bytes: card.write(1, 0, &[8; 512]) });
    assert!(driver.poll().is_err());
    assert_eq!(driver.batch(1).len(), 1);
    for produced in [64, RING as u64 * 2, 577, u64::MAX] {
        let kernel_says = driver.poll().expect_err("still damaged");
        assert!(matches!(kernel_says, RingError::Record { .. } | RingError::Producer { .. }));
        kernel.run(Step::Mailbox { port: 1, produced });
        let error = driver.poll().expect_err("impossible");
        assert!(matches!(error, RingError::Record { port: 0, .. }), "the first error comes first: {error}");
        assert_eq!(driver.batch(1).len(), 1, "what was good stays");
    }
}

#[test]
fn an_event_loop_waits_for_it() {
    let kernel = Kernel::boot(PORTS);
    let driver = up(&kernel);
    let mut card = Card::new(PORTS);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let event = driver.card().as_fd().try_clone_to_owned().expect("a descriptor");
        // SAFETY: an owned descriptor stays open and the same for as long as it is registered.
        let readable = unsafe { tokio::io::unix::AsyncFd::register(event) }.expect("in the loop");
        let quiet = tokio::time::timeout(Duration::from_millis(20), readable.readable()).await;
        assert!(quiet.is_err(), "nothing has come");
        kernel.run(Step::Records { port: 0, bytes: card.watermark(0) });
        let mut guard = tokio::time::timeout(Duration::from_secs(60), readable.readable())
            .await
            .expect("in time")
            .expect("readable");
        guard.clear_ready();
    });
    let mut driver = driver;
    assert_eq!(driver.card_mut().wait(Duration::ZERO).expect("no error").0, 1);
    assert_eq!(driver.poll().expect("good records"), 1);
}

/// Interrupts are off until the driver asks: the notes say so if it can't have them.
#[test]
fn huge_pages_are_used_or_asked_for() {
    let kernel = Kernel::boot(PORTS);
    let mut driver = up(&kernel);
    let page = driver.card().smallest_page().expect("something is mapped");
    let notes = driver.card_mut().take_notes();
    let asked = notes.iter().filter(|note| note.contains("nr_hugepages")).count();
    kernel.with(|world| {
        let ring = world.mapped.values().max().copied();
        match asked {
            0 => assert_eq!(ring, Some(2 << 20)),
            _ => assert_eq!((asked, ring), (1, Some(RING as u64)), "once, not for each ring"),
        }
    });
    assert_eq!(page, driver::vfio::PageSize::Small, "the mailboxes are a small page");
}
