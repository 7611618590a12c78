//! From a card in any state to one that is open for writes, and back.

mod made;

use driver::fake::{FakeCard, Step};
use driver::{BringUpError, Card as _, CardError, Driver, StopError};
use layout::pcie::MSIX_TABLE_OFFSET;
use layout::registers::{global, port, Counter, PORT_LOCKED, VOLUME_BEFORE, VOLUME_BOTH, VOLUME_JOURNAL};
use made::{settings, up, Card, RING};
use std::time::Duration;

const LIMIT: Duration = Duration::from_millis(1);

fn error(card: FakeCard, ports: usize) -> BringUpError {
    Driver::bring_up(card, &settings(ports)).map(|_| ()).expect_err("bring-up must fail")
}

#[test]
fn a_fresh_card_is_told_everything() {
    let mut settings = settings(3);
    settings.stamp_floor = 0x1111_2222_3333_4444;
    settings.number_floor = 0x5555_6666_7777_8888;
    settings.timeouts.hold = 17;
    settings.ports[2].volumes = 0b10;
    settings.ports[1].flush_level = 9;
    let driver = Driver::bring_up(FakeCard::new(3), &settings).unwrap();
    assert_eq!(driver.found().unclean_session, None);
    let card = driver.card();
    assert_eq!(card.get(global::CONTROL), 3);
    assert_eq!(card.get64(global::SESSION), 7);
    assert_eq!(card.get64(global::TIME_SET), settings.time);
    assert_eq!(card.get64(global::STAMP_FLOOR), settings.stamp_floor);
    assert_eq!(card.get64(global::NUMBER_FLOOR), settings.number_floor);
    assert_eq!(card.get(global::VOLUME_TABLE), 0x8000_0001);
    assert_eq!(card.get(global::VOLUME_TABLE + 4), 0x8001_0001);
    assert_eq!(card.get(global::VOLUME_TABLE + 8), 0);
    assert_eq!(card.get(global::HOLD), 17);
    for of in 0..3 {
        let get64 = |offset| card.get64(FakeCard::of_port(of, offset));
        let get = |offset| card.get(FakeCard::of_port(of, offset));
        assert_eq!(1 << get(port::RING_SIZE), RING);
        assert_ne!(get64(port::RING_ADDRESS) >> 32, 0, "both halves arrive");
        assert_eq!(get64(port::MAILBOX_ADDRESS) % 64, 0);
        assert_eq!(get(port::CONTROL), 1);
        assert_eq!(get(port::VOLUMES), if of == 2 { 0b10 } else { 0b11 });
        assert_eq!(get(port::FLUSH_LEVEL), if of == 1 { 9 } else { 128 });
        let entry = (MSIX_TABLE_OFFSET + of * 16) as u32;
        assert_eq!([0, 4, 8, 12].map(|word| card.get(entry + word)), [0xFEE0_0000, 0, of as u32, 0]);
    }
}

/// What must not be true before something else is: drain and writes come last, and time, floors and
/// session stand before time runs.
#[test]
fn the_order_is_safe() {
    let driver = up(2);
    let writes = &driver.card().writes;
    let at = |offset: u32, value: u32| {
        let found = writes.iter().rposition(|&write| write == (offset, value));
        found.unwrap_or_else(|| panic!("{value:#x} was never written to {offset:#x}"))
    };
    let last = |offset: u32| writes.iter().rposition(|write| write.0 == offset).unwrap();
    let reset = at(global::COMMAND, 1);
    let enabled = at(global::CONTROL, 2);
    let opened = at(global::CONTROL, 3);
    assert!(reset < last(global::SESSION));
    for before in [global::SESSION, global::TIME_SET, global::STAMP_FLOOR, global::NUMBER_FLOOR] {
        assert!(last(before) < enabled);
        assert!(last(before + 4) < last(before), "the high half is written first");
    }
    for of in 0..2 {
        let drain = last(FakeCard::of_port(of, port::CONTROL));
        for before in [port::RING_ADDRESS, port::RING_SIZE, port::MAILBOX_ADDRESS, port::CONSUMED] {
            assert!(last(FakeCard::of_port(of, before)) < drain);
        }
        assert!(drain < opened);
    }
    assert_eq!(opened, writes.len() - 1, "writes are opened last");
}

#[test]
fn an_unclean_stop_is_told() {
    let mut card = FakeCard::new(1);
    card.set64(global::SESSION, 0x0123_4567_89AB_CDEF);
    card.set64(global::LAST_STAMP, 5_000);
    card.set64(global::LAST_NUMBER, 40);
    let driver = Driver::bring_up(card, &settings(1)).unwrap();
    assert_eq!(driver.found().unclean_session, Some(0x0123_4567_89AB_CDEF));
    assert_eq!((driver.found().last_stamp, driver.found().last_number), (5_000, 40));
    // The journal ends before the card: neither runs backwards.
    assert_eq!(driver.card().get64(global::STAMP_FLOOR), 5_000);
    assert_eq!(driver.card().get64(global::NUMBER_FLOOR), 40);
}

#[test]
fn what_is_not_our_card_is_left_alone() {
    let mut card = FakeCard::new(1);
    card.set(global::IDENTITY, 0x1234_5678);
    assert!(matches!(error(card, 1), BringUpError::Identity(0x1234_5678)));
    let mut card = FakeCard::new(1);
    card.set(global::MAP_VERSION, 2);
    assert!(matches!(error(card, 1), BringUpError::MapVersion(2)));
    let mut card = FakeCard::new(1);
    card.run(Step::Gone);
    assert!(matches!(error(card, 1), BringUpError::Card(CardError::Gone(_))));
    for geometry in
        [[0, 16, 15, 16], [9, 16, 15, 16], [1, 0, 15, 16], [1, 16, 14, 16], [1, 16, 40, 16], [1, 16, 15, 17]]
    {
        let mut card = FakeCard::new(1);
        card.set(global::GEOMETRY, u32::from_le_bytes(geometry));
        assert!(matches!(error(card, 1), BringUpError::Geometry { .. }), "{geometry:?}");
    }
}

#[test]
fn settings_that_cannot_be_are_named() {
    type Change = fn(&mut driver::BringUp);
    let cases: [(Change, &str); 8] = [
        (|s| s.session = 0, "session 0"),
        (|s| s.ports.truncate(1), "settings for 1 ports, but the card has 2"),
        (|s| s.volumes = (0..17).map(|slot| Some((1, slot))).collect(), "17 volumes"),
        (|s| s.volumes = vec![Some((1, 0)), Some((1, 0))], "volume 1.0 is named twice"),
        (|s| s.ports[1].volumes = 0b100, "port 1: volume mask 0x4"),
        (|s| s.ports[0].ring_bytes = 4096, "port 0: a ring of 4096 bytes"),
        (|s| s.ports[0].ring_bytes = 3 << 20, "port 0: a ring of 3145728 bytes"),
        (|s| s.ports[0].ring_bytes = 2 << 30, "port 0: a ring of 2147483648 bytes"),
    ];
    for (change, text) in cases {
        let mut settings = settings(2);
        change(&mut settings);
        let mut card = FakeCard::new(2);
        card.set64(global::SESSION, 99);
        let error = Driver::bring_up(card, &settings).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
}

/// Rings of 32 KiB hold two of the largest entries with one image, not with two.
#[test]
fn both_images_are_refused_where_rings_are_too_small_for_them() {
    let with = |ring_log2, mode| {
        let mut card = FakeCard::new(2);
        card.set(global::GEOMETRY, u32::from_le_bytes([2, 16, ring_log2, 16]));
        let mut settings = settings(2);
        settings.volume_modes = vec![0, mode];
        Driver::bring_up(card, &settings).map(|_| ()).map_err(|error| error.to_string())
    };
    let error = with(15, VOLUME_BEFORE | VOLUME_BOTH).unwrap_err();
    for text in ["volume 1.1", "rings of 32768 bytes", "17 sectors", "35328 bytes", "64 KiB", "choose one"] {
        assert!(error.contains(text), "{text}: {error}");
    }
    for mode in [0, VOLUME_BEFORE, VOLUME_BEFORE | VOLUME_JOURNAL] {
        assert_eq!(with(15, mode), Ok(()), "{mode:#x}");
    }
    assert_eq!(with(16, VOLUME_BEFORE | VOLUME_BOTH | VOLUME_JOURNAL), Ok(()));
}

#[test]
fn clocks_that_do_not_lock_are_named() {
    let mut card = FakeCard::new(4);
    card.never_locks = 0b1010;
    let error = error(card, 4);
    assert!(matches!(&error, BringUpError::Unlocked { ports, .. } if ports == &[1, 3]), "{error}");
}

#[test]
fn a_reset_that_does_not_end_is_given_up() {
    let mut card = FakeCard::new(1);
    card.ignores_reset = true;
    card.set(FakeCard::of_port(0, port::CONTROL), 1);
    assert!(matches!(error(card, 1), BringUpError::Reset));
}

/// A register that doesn't take its value, and one that is lost on the way up.
#[test]
fn a_card_that_goes_during_bring_up_is_noticed() {
    let mut card = FakeCard::new(1);
    card.waits_to_lock = None;
    card.script.push_back(Step::Quiet);
    card.script.push_back(Step::Gone);
    assert!(matches!(error(card, 1), BringUpError::Card(CardError::Gone(_))));
}

/// The last records are taken, the memory is given back, and the next session finds nothing amiss.
#[test]
fn a_clean_stop_leaves_no_trace() {
    let (mut driver, mut card) = (up(2), Card::new(2));
    let status = FakeCard::of_port(0, port::STATUS);
    driver.card_mut().set(status, PORT_LOCKED | 2 << 16);
    let level = FakeCard::of_port(1, port::RING_LEVEL);
    driver.card_mut().set(level, 3);
    let bytes = card.write(0, 1, &[1; 512]);
    let mut script = vec![
        Step::Records { port: 0, bytes },
        Step::Register { offset: status, value: PORT_LOCKED | 1 << 16 },
        Step::Register { offset: status, value: PORT_LOCKED },
        Step::Quiet,
    ];
    // The last watermarks: port 1 must end as late as port 0.
    let watermarks = [card.watermark(0), card.watermark(1)];
    driver.card_mut().set64(global::LAST_STAMP, card.stamp - 1000);
    for (port, bytes) in watermarks.into_iter().enumerate() {
        script.push(Step::Records { port, bytes });
    }
    script.push(Step::Register { offset: level, value: 0 });
    driver.card_mut().script.extend(script);
    let mut taken = [0; 2];
    driver
        .stop(LIMIT, |driver| {
            assert_eq!(driver.card().get(global::CONTROL) & 1, 0, "writes are closed first");
            for (port, taken) in taken.iter_mut().enumerate() {
                let records = driver.batch(port).len();
                *taken += records;
                driver.consume(port, records)?;
            }
            Ok::<_, CardError>(())
        })
        .unwrap();
    assert_eq!(taken, [2, 1]);
    driver.stop(LIMIT, |_| Ok::<_, CardError>(())).expect("stopping twice is no harm");
    let mut card = driver.into_card();
    assert_eq!(card.mapped(), 0);
    assert_eq!(card.read(global::SESSION).unwrap(), 0);
    assert_eq!(card.get(FakeCard::of_port(0, port::CONTROL)), 0, "no drain into memory that is gone");
    let driver = Driver::bring_up(card, &settings(2)).unwrap();
    assert_eq!(driver.found().unclean_session, None);
}

/// Something is left behind: the stop isn't clean, says why, and the session stays.
#[test]
fn a_stop_that_leaves_something_is_unclean() {
    let take_nothing = |_: &mut Driver<FakeCard>| Ok::<_, CardError>(());
    let mut driver = up(2);
    driver.card_mut().set(FakeCard::of_port(1, port::STATUS), PORT_LOCKED | 5 << 16);
    let error = driver.stop(LIMIT, take_nothing).unwrap_err();
    assert!(matches!(error, StopError::Unsettled { port: 1, in_flight: 5, .. }), "{error}");
    assert_eq!(driver.card().get64(global::SESSION), 7);

    let (mut driver, mut card) = (up(1), Card::new(1));
    let bytes = card.write(0, 1, &[1; 512]);
    driver.card_mut().run(Step::Records { port: 0, bytes });
    let error = driver.stop(LIMIT, take_nothing).unwrap_err();
    assert!(matches!(error, StopError::Unsettled { port: 0, undrained: 576, .. }), "{error}");
    assert_eq!(driver.card().get64(global::SESSION), 7);
    let unclean = Driver::bring_up(driver.into_card(), &settings(1)).unwrap();
    assert_eq!(unclean.found().unclean_session, Some(7));

    let mut driver = up(1);
    driver.card_mut().run(Step::Mailbox { port: 0, produced: 1 });
    assert!(matches!(driver.stop(LIMIT, take_nothing), Err(StopError::Ring(_))));
    let mut driver = up(1);
    assert!(matches!(driver.stop(LIMIT, |_| Err("disk full")), Err(StopError::Take("disk full"))));
}

#[test]
fn counters_clocks_and_sources_are_read() {
    let mut fresh = FakeCard::new(2);
    let counter = FakeCard::of_port(1, port::COUNTERS) + 4 * Counter::Journaled as u32;
    fresh.set(counter, u32::MAX - 1);
    let mut driver = Driver::bring_up(fresh, &settings(2)).unwrap();
    assert_eq!(driver.counters(1).unwrap().get(Counter::Journaled), 0, "counted from bring-up");
    for value in [u32::MAX, 0, 5] {
        driver.card_mut().set(counter, value);
        driver.counters(1).unwrap();
    }
    let counters = driver.counters(1).unwrap();
    assert_eq!(counters.get(Counter::Journaled), 7, "over the wrap");
    assert_eq!(counters.iter().map(|(_, count)| count).sum::<u64>(), 7);
    let set = |driver: &mut Driver<FakeCard>, offset, value| {
        driver.card_mut().set64(FakeCard::of_port(1, offset), value);
    };
    set(&mut driver, port::SOURCE_TABLE, 0x0001_0605_0403_0201);
    set(&mut driver, port::LEAF_TIME, 0x0102_0304_0506_0708);
    driver.card_mut().set(FakeCard::of_port(1, port::LEAF_PHASE), -65536i32 as u32);
    assert_eq!(driver.sources(1).unwrap(), [[1, 2, 3, 4, 5, 6]]);
    assert_eq!(driver.sources(0).unwrap(), [[0; 6]; 0]);
    let clock = driver.leaf_clock(1).unwrap();
    assert_eq!((clock.nanoseconds, clock.phase), (0x0102_0304_0506_0708, -1.0));
    assert!(clock.locked && !clock.holdover);
    // A register that is all ones is one on a card that is still there.
    set(&mut driver, port::LEAF_TIME, u64::MAX);
    assert_eq!(driver.leaf_clock(1).unwrap().nanoseconds, u64::MAX);
}
