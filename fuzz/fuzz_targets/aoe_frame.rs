//! One frame of a source: what is let through as something harmless, or taken for a write, must be that.
//!
//! The input's head is what differs from a good write's.
#![no_main]

use engine::answer::Answer;
use engine::frame::{classify, Decision, PortRules, VolumeTable};
use libfuzzer_sys::fuzz_target;

/// A write of one sector to volume 1.0.
const GOOD: [u8; 36] = [
    0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 2, 0, 0, 0, 0, 1, 0x88, 0xA2, 0x10, 0, 0, 1, 0, 0, 0, 0, 0, 9, 0x41, 0, 1, 0x34, 5, 0,
    0, 0, 0, 0, 0, 0,
];

fuzz_target!(|input: &[u8]| {
    let mut frame = input.to_vec();
    frame.iter_mut().zip(GOOD).for_each(|(byte, good)| *byte ^= good);
    let frame = &frame[..];
    let volumes = VolumeTable::new(&[(1, 0), (2, 3)]).expect("two volumes");
    let rules = PortRules { volumes, allowed: 1, writes_open: true };
    let is_aoe = frame.len() >= 14 && frame[12..14] == [0x88, 0xA2];
    match classify(frame, &rules) {
        Decision::Write(write) => {
            assert!(is_aoe && frame[14] == 0x10 | frame[14] & 7 && frame[19] == 0);
            assert!((1..=17).contains(&write.sectors) && [0x30, 0x34].contains(&frame[27]));
            assert_eq!(write.payload, 36..36 + usize::from(write.sectors) * 512);
            assert!(write.payload.end <= frame.len());
            assert_eq!((write.shelf, write.slot, write.volume), (1, 0, 0));
            assert!(write.lba & !write.lba_mask == 0 && write.tag >> 31 == 0);
        }
        // Nothing that vblade would execute as a write.
        Decision::Pass if is_aoe && frame[19] == 0 => {
            assert!([0xEC, 0x20, 0x24, 0xE7, 0xEA].contains(&frame[27]));
        }
        Decision::Pass | Decision::Drop(_) => {}
    }
    let _ = Answer::decode(frame);
});
