//! The allow-list, check by check and in its order.

mod made;

use engine::frame::{classify, Decision, PortRules, Write};
use layout::aoe;
use layout::crc::crc32c;
use layout::registers::Counter::{self, *};
use made::{aoe_frame, ata_frame, random, rules, write_frame, SOURCE};
use rand::Rng;

fn drops(frame: &[u8], counter: Counter) {
    assert_eq!(classify(frame, &rules()), Decision::Drop(counter), "{:02x?}", &frame[..frame.len().min(64)]);
}

fn passes(frame: &[u8]) {
    assert_eq!(classify(frame, &rules()), Decision::Pass, "{:02x?}", &frame[..frame.len().min(64)]);
}

fn write_of(frame: &[u8]) -> Write {
    match classify(frame, &rules()) {
        Decision::Write(write) => write,
        other => panic!("{other:?}"),
    }
}

fn with(frame: &[u8], at: usize, byte: u8) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[at] = byte;
    frame
}

#[test]
fn a_write_is_taken_apart() {
    let data: Vec<u8> = (0..1024).map(|i| i as u8).collect();
    let frame = write_frame(0xABCD_1234_5678, &data, 0x1234_5678);
    let expected = Write {
        source: SOURCE,
        volume: 0,
        shelf: 1,
        slot: 0,
        tag: 0x1234_5678,
        lba: 0xABCD_1234_5678,
        lba_mask: (1 << 48) - 1,
        sectors: 2,
        payload: 36..36 + 1024,
        payload_crc: crc32c(&data),
    };
    assert_eq!(write_of(&frame), expected);
    // What follows the data is padding, not data.
    assert_eq!(write_of(&[&frame[..], &[9; 700]].concat()), expected);
    // AFlags say nothing, whatever they say: not W, not ext48.
    for flags in 0..=255 {
        assert_eq!(write_of(&with(&frame, 24, flags)), expected);
    }
    // Any destination: targets take frames to foreign MACs.
    assert_eq!(write_of(&with(&frame, 0, 0xFF)), expected);
    // The error flag, error byte and feature register of a request mean nothing.
    assert_eq!(write_of(&with(&frame, 14, 0x14)), expected);
    assert_eq!(write_of(&with(&frame, 15, 2)), expected);
    // The short command has 28 bits of address.
    let short = write_of(&with(&frame, 27, aoe::ATA_WRITE));
    assert_eq!((short.lba, short.lba_mask), (0x0234_5678, 0x0FFF_FFFF));
    assert_eq!(write_of(&with(&frame, 18, 1)).volume, 1);
}

#[test]
fn frames_that_are_none_are_dropped() {
    for bytes in [0, 1, 13] {
        drops(&vec![0; bytes], DroppedBad);
    }
    passes(&[0; 14]);
    passes(&[0; 9014]);
    drops(&[0; 9015], DroppedBad);
}

#[test]
fn other_ethertypes_pass() {
    for ethertype in [0x0800u16, 0x0806, 0x86DD, 0x88A3, 0x88A1, 0x05DC, 0x9100] {
        let mut frame = write_frame(5, &[1; 512], 1);
        frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
        passes(&frame);
    }
}

#[test]
fn aoe_behind_a_tag_is_dropped() {
    let write = write_frame(5, &[1; 512], 1);
    let tagged = |types: &[u16]| {
        let mut frame = write[..12].to_vec();
        for ethertype in types {
            frame.extend_from_slice(&ethertype.to_be_bytes());
            frame.extend_from_slice(&[0, 0]);
        }
        frame.extend_from_slice(&write[12..]);
        frame
    };
    for outer in [0x8100, 0x88A8] {
        drops(&tagged(&[outer]), DroppedVlan);
        passes(&with(&tagged(&[outer]), 17, 0xA3));
        for inner in [0x8100, 0x88A8] {
            drops(&tagged(&[outer, inner]), DroppedVlan);
            passes(&with(&tagged(&[outer, inner]), 21, 0xA3));
            for third in [0x8100, 0x88A8] {
                drops(&tagged(&[outer, inner, third]), DroppedVlan);
            }
        }
        // Too short for the types that decide: nothing for a target to execute.
        for bytes in 14..18 {
            passes(&tagged(&[outer])[..bytes]);
        }
        for bytes in 18..22 {
            passes(&tagged(&[outer, 0x8100])[..bytes]);
        }
    }
}

/// Each check beats every later one: frames that are wrong in two ways are counted by the earlier.
#[test]
fn the_order_of_the_checks_holds() {
    // Everything is wrong with this frame; the corrections take the faults away in the list's order.
    let mut frame = ata_frame(aoe::ATA_WRITE, 5, 0, &[]);
    frame[14] = 0x28; // version 2, response
    frame[16] = 0xFF;
    frame[17] = 0xFF; // broadcast shelf
    frame[18] = 0xFF;
    frame[19] = 2; // MAC mask
    frame[20] = 0x80; // tag bit 31
    frame[27] = 0x35; // DMA write
    let mut closed = PortRules { writes_open: false, ..rules() };
    let check = |frame: &[u8], counter| {
        assert_eq!(classify(frame, &closed), Decision::Drop(counter), "{frame:02x?}");
    };
    check(&frame[..23], DroppedShort);
    check(&frame, DroppedResponse);
    frame[14] = 0x20;
    check(&frame, DroppedVersion);
    frame[14] = 0x10;
    check(&frame, DroppedResponse);
    frame[20] = 0;
    check(&frame, DroppedAoe);
    frame[19] = 0;
    check(&frame[..35], DroppedShort);
    check(&frame, DroppedCommand);
    frame[27] = 0x30;
    check(&frame, DroppedEmpty);
    frame[26] = 18;
    check(&[&frame[..], &[0; 18 * 512]].concat()[..9014], DroppedShort);
    frame[26] = 1;
    check(&frame, DroppedShort);
    frame.resize(36 + 511, 0);
    check(&frame, DroppedShort);
    frame.push(0);
    check(&frame, DroppedBroadcast);
    frame[18] = 0;
    check(&frame, DroppedBroadcast);
    frame[16..18].copy_from_slice(&[0, 3]);
    check(&frame, DroppedVolume);
    frame[16..18].copy_from_slice(&[0, 2]);
    check(&frame, DroppedVolume);
    frame[16..18].copy_from_slice(&[0, 1]);
    check(&frame, DroppedClosed);
    closed.writes_open = true;
    assert!(matches!(classify(&frame, &closed), Decision::Write(_)));
}

/// Every AoE command and every ATA command, against the allow-list written out.
#[test]
fn every_command_is_decided() {
    for command in 0..=255 {
        let frame = aoe_frame(command, &[0; 36]);
        match command {
            0 => drops(&frame, DroppedCommand),
            1 | 3 => passes(&frame),
            _ => drops(&frame, DroppedAoe),
        }
    }
    for command in 0..=255 {
        let frame = ata_frame(command, 5, 1, &[1; 512]);
        match command {
            0xEC | 0x20 | 0x24 | 0xE7 | 0xEA => passes(&frame),
            0x30 | 0x34 => assert_eq!(write_of(&frame).lba, 5),
            _ => drops(&frame, DroppedCommand),
        }
    }
    for config in 0..=255 {
        let frame = with(&aoe_frame(1, &[0; 8]), 29, config);
        match config & 0x0F {
            0..=2 => passes(&frame),
            _ => drops(&frame, DroppedAoe),
        }
    }
}

#[test]
fn short_frames_of_virtual_links_are_legal() {
    passes(&aoe_frame(1, &[0; 8]));
    drops(&aoe_frame(1, &[0; 7]), DroppedShort);
    passes(&aoe_frame(3, &[0; 2]));
    drops(&aoe_frame(3, &[0; 1]), DroppedShort);
    passes(&ata_frame(0x24, 0, 2, &[]));
    passes(&ata_frame(0x20, 0, 1, &[7; 512]));
    drops(&ata_frame(0x24, 0, 2, &[])[..35], DroppedShort);
    drops(&aoe_frame(0, &[])[..23], DroppedShort);
    drops(&aoe_frame(2, &[]), DroppedAoe);
}

#[test]
fn reads_and_queries_pass_when_writes_are_closed() {
    let rules = PortRules { writes_open: false, allowed: 0, ..rules() };
    for frame in [ata_frame(0x24, 0, 2, &[]), ata_frame(0xEC, 0, 1, &[]), aoe_frame(1, &[0; 8])] {
        assert_eq!(classify(&frame, &rules), Decision::Pass);
    }
}

#[test]
fn counts_up_to_seventeen_sectors_are_writes() {
    for sectors in 1..=17u8 {
        let data = vec![sectors; usize::from(sectors) * 512];
        let frame = ata_frame(0x34, 9, sectors, &data);
        assert_eq!(usize::from(write_of(&frame).sectors) * 512, data.len());
        drops(&frame[..frame.len() - 1], DroppedShort);
    }
    for sectors in 18..=255 {
        drops(&ata_frame(0x34, 9, sectors, &[0; 9014 - 36]), DroppedShort);
    }
}

/// The safety property by itself, in other words than the code's: whatever passes unjournaled can't be
/// executed as a write by a target that looks for AoE behind any tags and goes by the command alone.
#[test]
fn nothing_that_a_target_could_execute_as_a_write_passes() {
    let mut random = random();
    let (mut writes, mut passed) = (0, 0);
    for _ in 0..300_000 {
        let mut frame = match random.random_range(0..4) {
            0 => write_frame(random.random_range(0..99), &[1; 512], random.random()),
            1 => ata_frame(random.random(), 5, random.random_range(0..4), &[1; 1024]),
            2 => aoe_frame(random.random_range(0..5), &[0; 40]),
            _ => {
                let mut bytes = vec![0u8; random.random_range(0..100)];
                random.fill(&mut bytes[..]);
                bytes
            }
        };
        for _ in 0..random.random_range(0..4) {
            if frame.len() >= 36 {
                frame[random.random_range(12..36)] = random.random();
            }
        }
        if random.random_bool(0.3) && frame.len() >= 14 {
            for _ in 0..random.random_range(1..5) {
                let tag = [[0x81, 0, 0, 0], [0x88, 0xA8, 0, 0]][random.random_range(0..2)];
                frame.splice(12..12, tag);
            }
        }
        if random.random_bool(0.2) {
            frame.truncate(random.random_range(0..=frame.len()));
        }
        match classify(&frame, &rules()) {
            Decision::Drop(_) => {}
            Decision::Pass => {
                passed += 1;
                assert!(!a_target_would_write(&frame), "{frame:02x?}");
            }
            Decision::Write(write) => {
                writes += 1;
                assert_eq!(write.payload.len(), usize::from(write.sectors) * 512);
                assert_eq!(write.payload_crc, crc32c(&frame[write.payload]));
            }
        }
    }
    assert!(writes > 1000 && passed > 1000, "{writes} {passed}");
}

/// The most gullible target: strips every tag, takes every version, address and length.
fn a_target_would_write(frame: &[u8]) -> bool {
    let mut at = 12;
    while matches!(frame.get(at..at + 2), Some([0x81, 0x00] | [0x88, 0xA8])) {
        at += 4;
    }
    let is_aoe = frame.get(at..at + 2) == Some(&[0x88, 0xA2]);
    let is_ata = frame.get(at + 7) == Some(&0);
    let writes = [0x30, 0x34, 0x35, 0x39, 0x3D, 0x61, 0xCA];
    is_aoe && is_ata && frame.get(at + 15).is_some_and(|command| writes.contains(command))
}
