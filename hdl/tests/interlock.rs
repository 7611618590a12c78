//! The interlock against a list of locations, at every cycle: whatever heads come, are admitted or dropped,
//! and whatever is freed or goes into quarantine meanwhile.
//!
//! `CHRONO_SEED` replays one seed.

use hdl::interlock::Interlock;
use hdl::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const PORTS: usize = 3;
const CYCLES: u64 = 60_000;
/// Every port's scan and what made it begin again.
const PATIENCE: u64 = 24 * (PORTS as u64 + 1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Write {
    lba: u64,
    sectors: u64,
    volume: u64,
    source: u64,
    crc: u64,
}

impl Write {
    fn random(random: &mut ChaCha8Rng) -> Self {
        Self {
            lba: random.random_range(0..40),
            sectors: random.random_range(1..=4),
            volume: random.random_range(0..2),
            source: [0, 0, 1, 15][random.random_range(0..4)],
            crc: random.random_range(0..2),
        }
    }
    fn bits(&self) -> Bits<93> {
        Bits::wrap(
            self.lba as u128
                | (self.sectors as u128) << 48
                | (self.volume as u128) << 53
                | (self.source as u128) << 57
                | (self.crc as u128) << 61,
        )
    }
    fn overlaps(&self, other: &Write) -> bool {
        self.volume == other.volume
            && self.lba < other.lba + other.sectors
            && other.lba < self.lba + self.sectors
    }
}

struct Lock {
    port: usize,
    slot: u64,
    write: Write,
    quarantined: bool,
}

/// Clear, copy of which slot, barred.
fn judge(locks: &[Lock], port: usize, head: &Write) -> (bool, Option<u64>, bool) {
    let overlapping = || locks.iter().filter(|lock| lock.write.overlaps(head));
    let equal = |lock: &&Lock| lock.port == port && lock.write == *head && head.source != 15;
    let original = overlapping().find(equal).map(|lock| lock.slot);
    let clear = overlapping().all(|lock| equal(&lock));
    (clear, original, overlapping().any(|lock| lock.quarantined))
}

fn run(seed: u64) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut block = Interlock::<PORTS>::default();
    block.connect_all();
    check_all(&block).unwrap();
    let mut locks: Vec<Lock> = Vec::new();
    let mut heads: [Option<Write>; PORTS] = [None; PORTS];
    let mut quiet_since = 0;
    let (mut admitted, mut copies, mut barred, mut drops) = (0, 0, 0, 0);
    for now in 0..CYCLES {
        let calm = now / 500 % 2 == 0;
        for (port, head) in heads.iter_mut().enumerate() {
            if head.is_none() && random.random_bool(0.05) {
                // Often again what is in flight, so that there are copies.
                *head = Some(match locks.len() {
                    0 => Write::random(&mut random),
                    n if random.random_bool(0.3) => locks[random.random_range(0..n)].write,
                    _ => Write::random(&mut random),
                });
                quiet_since = now;
            }
            block.waiting[port].next = head.is_some();
            if let Some(head) = head {
                block.head[port].next = head.bits();
            }
            block.admit[port].next = false;
            block.head_dropped[port].next = false;
            block.free[port].next = false;
            block.quarantine[port].next = false;
        }
        settle(&mut block);
        let mut one_admitted = false;
        for (port, head) in heads.iter().enumerate() {
            let clear = block.clear[port].val();
            if let Some(head) = *head {
                let (may, original, shut) = judge(&locks, port, &head);
                assert!(!clear || may, "seed {seed}, cycle {now}: port {port} is cleared, but overlaps");
                if clear {
                    assert_eq!(block.copy[port].val(), original.is_some(), "seed {seed}, cycle {now}");
                    if let Some(slot) = original {
                        assert_eq!(block.copy_slot[port].val().to_u64(), slot, "seed {seed}, cycle {now}");
                    }
                }
                if block.barred[port].val() {
                    assert!(shut, "seed {seed}, cycle {now}: port {port} is barred by nothing in quarantine");
                }
                if now - quiet_since > PATIENCE {
                    assert_eq!((clear, block.barred[port].val()), (may, shut), "seed {seed}, cycle {now}");
                    barred += u64::from(shut);
                }
                let free_slot = (0..16).find(|&slot| !locks.iter().any(|l| (l.port, l.slot) == (port, slot)));
                if clear && !one_admitted && random.random_bool(0.1) {
                    if let Some(slot) = original.or(free_slot) {
                        block.admit[port].next = true;
                        block.admit_slot[port].next = bits(slot);
                        one_admitted = true;
                    }
                } else if random.random_bool(if calm { 0.001 } else { 0.02 }) {
                    block.head_dropped[port].next = true;
                }
            }
            let own: Vec<usize> = (0..locks.len()).filter(|&at| locks[at].port == port).collect();
            if !own.is_empty() && random.random_bool(if calm { 0.002 } else { 0.02 }) {
                let lock = &locks[own[random.random_range(0..own.len())]];
                // A copy isn't admitted into a slot that is freed in the same cycle: the port does one
                // thing at a time.
                let copied = block.admit[port].next && block.admit_slot[port].next.to_u64() == lock.slot;
                if !copied {
                    block.changed_slot[port].next = bits(lock.slot);
                    let freed = random.random_bool(0.7);
                    block.free[port].next = freed;
                    block.quarantine[port].next = !freed;
                }
            }
        }
        let freed: Vec<(usize, u64)> = (0..PORTS)
            .filter(|&p| block.free[p].next)
            .map(|p| (p, block.changed_slot[p].next.to_u64()))
            .collect();
        let shut: Vec<(usize, u64)> = (0..PORTS)
            .filter(|&p| block.quarantine[p].next)
            .map(|p| (p, block.changed_slot[p].next.to_u64()))
            .collect();
        let admissions: Vec<(usize, u64)> = (0..PORTS)
            .filter(|&p| block.admit[p].next)
            .map(|p| (p, block.admit_slot[p].next.to_u64()))
            .collect();
        let dropped: Vec<usize> = (0..PORTS).filter(|&p| block.head_dropped[p].next).collect();
        cycle(&mut block, |b| &mut b.clock, |_| ());
        for (port, slot) in &admissions {
            let write = heads[*port].take().unwrap();
            match locks.iter().any(|lock| (lock.port, lock.slot) == (*port, *slot)) {
                true => copies += 1,
                false => locks.push(Lock { port: *port, slot: *slot, write, quarantined: false }),
            }
            admitted += 1;
        }
        for port in &dropped {
            heads[*port] = random.random_bool(0.7).then(|| Write::random(&mut random));
            drops += 1;
        }
        locks.retain(|lock| !freed.contains(&(lock.port, lock.slot)));
        for lock in locks.iter_mut().filter(|lock| shut.contains(&(lock.port, lock.slot))) {
            lock.quarantined = true;
        }
        if !(admissions.is_empty() && dropped.is_empty() && freed.is_empty() && shut.is_empty()) {
            quiet_since = now;
        }
    }
    println!(
        "seed {seed}: {admitted} admitted, {copies} of them copies, {drops} dropped, {barred} cycles barred"
    );
    assert!(admitted > 300 && copies > 20 && drops > 50 && barred > 20);
}

#[test]
fn a_head_is_clear_only_where_nothing_overlaps() {
    match std::env::var("CHRONO_SEED").ok().and_then(|text| text.parse().ok()) {
        Some(seed) => run(seed),
        None => (0..4).for_each(run),
    }
}
