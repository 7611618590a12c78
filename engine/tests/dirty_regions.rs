//! Writes wait until the region that they go to is marked in a log outside; and nothing else does.

mod made;

use engine::switch::{Clock, DirtyRegions, Images, Now, Output, Settings, Switch, Volume};
use layout::entry::{flags, ErrorBound};
use layout::registers::Counter;
use made::{answer_frame, ata_frame, write_frame};
use std::ops::Range;
use std::sync::{Arc, Mutex};

const MILLISECOND: u64 = 1_000_000;
const REGION: u64 = 1 << 20;

/// Regions of volume 0; what was asked for, and what was written where.
#[derive(Debug, Default)]
struct Log {
    marked: Mutex<Vec<u64>>,
    asked: Mutex<Vec<u64>>,
    touched: Mutex<Vec<(u64, u64)>>,
}

impl DirtyRegions for Log {
    fn are_marked(&self, volume: u16, bytes: Range<u64>) -> bool {
        let regions = bytes.start / REGION..bytes.end.div_ceil(REGION);
        let marked = self.marked.lock().unwrap();
        let unmarked: Vec<u64> = regions.filter(|region| !marked.contains(region)).collect();
        self.asked.lock().unwrap().extend(&unmarked);
        volume != 0 || unmarked.is_empty()
    }

    fn touch(&self, _: u16, bytes: Range<u64>, number: u64) {
        self.touched.lock().unwrap().push((bytes.start, number));
    }
}

impl Log {
    fn mark(&self, region: u64) {
        self.marked.lock().unwrap().push(region);
    }
}

fn at(elapsed: u64) -> Now {
    let clock = Clock { nanoseconds: 1_000_000 + elapsed, flags: flags::CLOCK_LOCKED, error: ErrorBound(33) };
    Now { elapsed, clock }
}

fn switch(images: Images, hold_bytes: usize) -> (Switch, Arc<Log>) {
    let volumes = vec![Volume::new(1, 0, images), Volume::new(1, 1, Images::After)];
    let mut switch = Switch::new(Settings { hold_bytes, ..Settings::new(volumes, 2) }).unwrap();
    let log = Arc::new(Log::default());
    switch.mark_in(Arc::clone(&log) as Arc<_>);
    (switch, log)
}

/// Tags of the writes that were forwarded.
fn forwarded(switch: &mut Switch) -> Vec<u32> {
    let tag = |frame: Vec<u8>| u32::from_be_bytes([frame[20], frame[21], frame[22], frame[23]]);
    std::iter::from_fn(|| switch.output())
        .filter_map(|output| match output {
            Output::Uplink(frame) => Some(tag(frame)),
            Output::Port(..) => None,
        })
        .collect()
}

#[test]
fn a_write_waits_for_its_region_and_others_do_not() {
    let (mut switch, log) = switch(Images::After, 16 << 10);
    log.mark(0);
    let far = 3 * REGION / 512;
    switch.frame(0, &write_frame(far, &[1; 512], 1), &at(0));
    assert_eq!((forwarded(&mut switch), switch.last_number()), (vec![], 0), "no entry of what waits");
    // Behind it at the same port: a write to a region that is marked, one of another volume, a read.
    switch.frame(0, &write_frame(5, &[2; 512], 2), &at(1));
    let mut other = write_frame(far, &[3; 512], 3);
    other[18] = 1;
    switch.frame(0, &other, &at(2));
    switch.frame(0, &ata_frame(0x24, far, 1, &[]), &at(3));
    assert_eq!(forwarded(&mut switch), [2, 3, 0x1234_5678]);
    // Two that overlap keep their order, and a copy of what waits only gives it its tag.
    switch.frame(0, &write_frame(far, &[4; 1024], 4), &at(4));
    switch.frame(0, &write_frame(far, &[1; 512], 5), &at(5));
    assert_eq!(forwarded(&mut switch), []);
    assert_eq!(switch.ports()[0].counter(Counter::DroppedCopy), 1);
    log.mark(3);
    assert_eq!(forwarded(&mut switch), [], "until it is told");
    switch.go_on(&at(6));
    assert_eq!(forwarded(&mut switch), [5]);
    switch.uplink(&answer_frame(&write_frame(far, &[1; 512], 5), 0x40, 0), &at(7));
    assert_eq!(forwarded(&mut switch), [4]);
    assert!(log.asked.lock().unwrap().iter().all(|region| *region == 3));
    // Noted before they left, in the order of their numbers; of the other volume too.
    assert_eq!(*log.touched.lock().unwrap(), [(5 * 512, 1), (far * 512, 2), (far * 512, 3), (far * 512, 4)]);
}

#[test]
fn a_write_over_two_regions_waits_for_both() {
    let (mut switch, log) = switch(Images::After, 16 << 10);
    log.mark(0);
    switch.frame(1, &write_frame(REGION / 512 - 1, &[1; 1024], 1), &at(0));
    assert_eq!(forwarded(&mut switch), []);
    log.mark(1);
    switch.go_on(&at(1));
    assert_eq!(forwarded(&mut switch), [1]);
}

#[test]
fn what_waits_is_bounded_in_time_and_bytes_and_counted() {
    let (mut switch, log) = switch(Images::After, 2000);
    for tag in 1..=5 {
        switch.frame(0, &write_frame(u64::from(tag), &[1; 512], tag), &at(0));
    }
    let count = |switch: &Switch, counter| switch.ports()[0].counter(counter);
    assert_eq!(count(&switch, Counter::DroppedBuffer), 2);
    assert_eq!(switch.deadline(), Some(40 * MILLISECOND));
    switch.tick(&at(40 * MILLISECOND));
    assert_eq!(count(&switch, Counter::DroppedHold), 3);
    // Too late for those: none of them was journaled, none goes out.
    log.mark(0);
    switch.go_on(&at(41 * MILLISECOND));
    assert_eq!((forwarded(&mut switch), switch.last_number(), switch.is_idle()), (vec![], 0, true));
    switch.frame(0, &write_frame(1, &[1; 512], 6), &at(50 * MILLISECOND));
    assert_eq!(forwarded(&mut switch), [6]);
}

#[test]
fn old_data_are_read_only_when_the_region_is_marked() {
    let (mut switch, log) = switch(Images::Both, 16 << 10);
    switch.frame(0, &write_frame(7, &[1; 512], 1), &at(0));
    assert_eq!(forwarded(&mut switch), []);
    log.mark(0);
    switch.go_on(&at(1));
    let read = forwarded(&mut switch);
    assert!(read.len() == 1 && read[0] >> 31 == 1, "{read:x?}");
}

#[test]
fn nothing_is_settled_before_its_answer_or_the_end_of_its_quarantine() {
    let (mut switch, log) = switch(Images::After, 16 << 10);
    log.mark(0);
    for tag in 1..=3 {
        switch.frame(0, &write_frame(10 * u64::from(tag), &[1; 512], tag), &at(0));
    }
    assert_eq!(switch.settled(), 0);
    let answer = |tag: u32| answer_frame(&write_frame(10 * u64::from(tag), &[1; 512], tag), 0x40, 0);
    switch.uplink(&answer(2), &at(1));
    assert_eq!(switch.settled(), 0);
    switch.uplink(&answer(1), &at(2));
    assert_eq!(switch.settled(), 2);
    // Unknown is no answer: the target may execute it still. A copy is a request of its own.
    switch.frame(0, &write_frame(30, &[1; 512], 4), &at(500 * MILLISECOND));
    switch.tick(&at(1_500 * MILLISECOND));
    assert_eq!(switch.ports()[0].counter(Counter::Unknown), 2);
    switch.uplink(&answer(3), &at(9_000 * MILLISECOND));
    assert_eq!(switch.settled(), 3, "its copy has no answer");
    switch.tick(&at(10_499 * MILLISECOND));
    assert_eq!(switch.settled(), 3);
    switch.tick(&at(10_500 * MILLISECOND));
    assert_eq!((switch.settled(), switch.last_number()), (4, 4));
}
