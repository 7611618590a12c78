//! Frames from everywhere, in any order, at any time: what leaves as a write has an entry that came before it, and what the
//! ports' rings hold passes the driver's checks.
//!
//! The input is a list of steps: what, how much time passes, and what is changed in a good frame.
#![no_main]

use driver::Stream;
use engine::frame::{classify, Decision, PortRules, VolumeTable};
use engine::switch::{Acknowledge, Clock, Images, Now, Output, Settings, Switch, Timeouts, Volume};
use layout::entry::{flags, ErrorBound, Kind};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;

const PORTS: usize = 2;

fn write(source: u8, volume: u8, tag: u8, lba: u8, sectors: u8, fill: u8) -> Vec<u8> {
    let mut frame = vec![0; 36];
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, source]);
    frame[12..14].copy_from_slice(&[0x88, 0xA2]);
    frame[14] = 0x10;
    frame[17] = 1;
    frame[18] = volume;
    frame[23] = tag;
    frame[24] = 0x41;
    frame[26] = sectors;
    frame[27] = 0x34;
    frame[28] = lba;
    frame.resize(36 + usize::from(sectors) * 512, fill);
    frame
}

/// Takes the answer's part: as vblade gives it, with the data that a read asks for.
fn answer(mut frame: Vec<u8>) -> Vec<u8> {
    let reads = frame[27] == 0x24 || frame[27] == 0x20;
    let (to, sectors) = (frame[6..12].to_vec(), usize::from(frame[26]));
    frame[..6].copy_from_slice(&to);
    frame[14] |= 8;
    frame[27] = 0x40;
    frame.truncate(36);
    frame.resize(if reads { 36 + sectors * 512 } else { 60 }, 0x5A);
    frame
}

struct World {
    switch: Switch,
    streams: Vec<Stream>,
    /// Frames that the target has got and not answered.
    target: Vec<Vec<u8>>,
    elapsed: u64,
    /// Entries that were handed over, less writes that have left, by place.
    balance: BTreeMap<(u8, u64, u16), i64>,
    last: u64,
}

impl World {
    fn now(&self) -> Now {
        let error = ErrorBound::from_sixteenths(16);
        Now { elapsed: self.elapsed, clock: Clock { nanoseconds: self.elapsed, flags: flags::CLOCK_LOCKED, error } }
    }

    fn take(&mut self) {
        while let Some(output) = self.switch.output() {
            if let Output::Uplink(frame) = output {
                let volumes = VolumeTable::new(&[(1, 0), (1, 1), (1, 2)]).expect("three volumes");
                let rules = PortRules { volumes, allowed: 7, writes_open: true };
                if let Decision::Write(write) = classify(&frame, &rules) {
                    *self.balance.entry((write.slot, write.lba, write.sectors)).or_default() -= 1;
                }
                if frame.len() >= 36 && frame[12..14] == [0x88, 0xA2] && frame[19] == 0 && self.target.len() < 64 {
                    self.target.push(frame);
                }
            }
        }
    }

    fn drain(&mut self) {
        let now = self.now();
        for port in 0..PORTS {
            self.switch.watermark(port, &now);
        }
        for port in 0..PORTS {
            let mut bytes = Vec::new();
            self.switch.drain(port, usize::MAX, &now, &mut bytes);
            self.streams[port].take(&bytes).expect("what the switch writes is right");
            let stream = &mut self.streams[port];
            let mut records = 0;
            for record in stream.records() {
                records += 1;
                self.last = self.last.max(record.header.number.get());
                if matches!(record.kind, Kind::After | Kind::Before | Kind::Both) {
                    let header = record.header;
                    let place = (header.volume.get() as u8, header.lba(), header.sectors.get());
                    *self.balance.entry(place).or_default() += 1;
                }
            }
            stream.consume(records);
        }
        self.take();
    }
}

fuzz_target!(|input: &[u8]| {
    let volume = |slot, images, acknowledge| Volume { shelf: 1, slot, images, acknowledge };
    let volumes = vec![
        volume(0, Images::After, Acknowledge::Port),
        volume(1, Images::Both, Acknowledge::Journal),
        volume(2, Images::After, Acknowledge::Journal),
    ];
    let mut settings = Settings::new(volumes, PORTS);
    settings.timeouts = Timeouts { hold: 40_000, retry: 10_000, unknown: 100_000, quarantine: 200_000 };
    settings.slots = 4;
    let mut world = World {
        switch: Switch::new(settings).expect("good settings"),
        streams: (0..PORTS).map(|port| Stream::new(port, 0, 0)).collect(),
        target: Vec::new(),
        elapsed: 1,
        balance: BTreeMap::new(),
        last: 0,
    };
    for step in input.chunks_exact(8).take(400) {
        let [what, time, a, b, c, d, at, to] = [0, 1, 2, 3, 4, 5, 6, 7].map(|place| step[place]);
        world.elapsed += u64::from(time) * if what & 0x80 != 0 { 2_000 } else { 20 };
        let now = world.now();
        // Most frames are left as they are.
        let change = |frame: &mut Vec<u8>| {
            if d & 0xC0 == 0xC0 && !frame.is_empty() {
                let length = frame.len();
                frame[usize::from(at) % length.min(64)] = to;
            }
        };
        match what & 7 {
            0..=2 => {
                let mut frame = write(a & 3, b & 3, c, d & 15, 1 + (b >> 6), to & 1);
                change(&mut frame);
                world.switch.frame(usize::from(what >> 3 & 1), &frame, &now);
            }
            3 | 4 if !world.target.is_empty() => {
                let place = usize::from(a) % world.target.len();
                let asked = match what & 8 {
                    0 => world.target.remove(place),
                    _ => world.target[place].clone(),
                };
                let mut frame = answer(asked);
                change(&mut frame);
                world.switch.uplink(&frame, &now);
            }
            5 => {
                world.drain();
                let last = world.last;
                (0..PORTS).for_each(|port| world.switch.durable(port, last, &now));
            }
            6 => world.switch.tick(&now),
            _ => world.switch.uplink(&input[..input.len().min(usize::from(a))], &now),
        }
        world.take();
    }
    // Draining lets writes in that waited for room.
    for _ in 0..100 {
        world.drain();
        if world.switch.ports().iter().all(|port| port.level() == 0) {
            break;
        }
    }
    for (place, balance) in &world.balance {
        assert!(*balance >= 0, "{place:?}: more writes left than were journaled");
    }
});
