//! Every command, asked well and badly, against a naive model: an array.

mod client;
mod memory;

use client::{
    Client, Outcome, CACHE, DF, EINVAL, EIO, ENOSPC, ENOTSUP, EPERM, FAST_ZERO, FLUSH, FUA, NO_HOLE, READ,
    REQ_ONE, STATUS, TRIM, WRITE, ZERO,
};
use memory::{seed, seeds, Fault, Memory, Server, CHANGED, SECTOR};
use nbd::BlockSizes;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::io;
use std::sync::Arc;

const BYTES: usize = 256 << 10;
const BOTH: [&str; 2] = ["base:allocation", CHANGED];

/// Extents as the server should tell them: neighbours that say the same are one.
fn expected(bytes: usize, offset: usize, flag: impl Fn(usize) -> u32) -> Vec<(u32, u32)> {
    let mut extents: Vec<(u32, u32)> = Vec::new();
    for at in offset..offset + bytes {
        let flags = flag(at / SECTOR);
        match extents.last_mut() {
            Some(last) if last.1 == flags => last.0 += 1,
            _ => extents.push((1, flags)),
        }
    }
    extents
}

#[test]
fn random_requests_do_to_the_export_what_they_do_to_an_array() {
    let mut random = ChaCha8Rng::seed_from_u64(seed());
    for round in 0..8 * seeds() {
        let structured = round % 2 == 0;
        let minimum: usize = if random.random() { 1 } else { 512 };
        let original: Vec<u8> = (0..BYTES / SECTOR)
            .flat_map(|sector| vec![if sector / 16 % 3 == 0 { 0 } else { sector as u8 | 1 }; SECTOR])
            .collect();
        let mut memory = Memory::new("disk", original.clone());
        memory.sizes = BlockSizes { minimum: minimum as u32, preferred: 4096, maximum: BYTES as u32 };
        memory.sparse = random.random();
        memory.may_wait = random.random();
        let memory = Arc::new(memory);
        let server = Server::of(&memory);
        let mut client = match structured {
            true => Client::structured(&server.path, "disk", &BOTH),
            false => Client::simple(&server.path, "disk"),
        };
        let mut model = original.clone();
        for step in 0..200 {
            let longest = if random.random_ratio(1, 4) { BYTES } else { 5000.max(minimum) };
            let length = random.random_range(1..=longest / minimum) * minimum;
            let offset = random.random_range(0..=(BYTES - length) / minimum) * minimum;
            let range = offset..offset + length;
            let (at, count) = (offset as u64, length as u32);
            let fua = if random.random_ratio(1, 5) { FUA } else { 0 };
            match random.random_range(0..8) {
                0 | 1 => {
                    let payload: Vec<u8> = (0..length).map(|_| random.random()).collect();
                    assert_eq!(client.run(fua, WRITE, at, count, &payload), Outcome::Done);
                    model[range].copy_from_slice(&payload);
                }
                2 => {
                    let flags = [0, NO_HOLE, FAST_ZERO, NO_HOLE | FAST_ZERO][random.random_range(0..4)];
                    assert_eq!(client.run(flags | fua, ZERO, at, count, &[]), Outcome::Done);
                    model[range].fill(0);
                }
                3 => {
                    assert_eq!(client.run(fua, TRIM, at, count, &[]), Outcome::Done);
                    // What this export does.
                    model[range].fill(0);
                }
                4 => assert_eq!(client.run(fua, CACHE, at, count, &[]), Outcome::Done),
                5 if structured => {
                    let one = random.random();
                    let flags = if one { REQ_ONE } else { 0 };
                    let zero = |sector: usize| {
                        let sector = &model[sector * SECTOR..(sector + 1) * SECTOR];
                        if sector.iter().all(|byte| *byte == 0) {
                            3
                        } else {
                            0
                        }
                    };
                    let changed = |sector: usize| {
                        let sector = sector * SECTOR..(sector + 1) * SECTOR;
                        u32::from(model[sector.clone()] != original[sector])
                    };
                    let mut extents = [expected(length, offset, zero), expected(length, offset, changed)];
                    if one {
                        extents.iter_mut().for_each(|extents| extents.truncate(1));
                    }
                    let Outcome::Status(status) = client.run(flags, STATUS, at, count, &[]) else {
                        panic!("step {step}: no status")
                    };
                    assert_eq!(status.into_iter().map(|(_, extents)| extents).collect::<Vec<_>>(), extents);
                }
                6 => {
                    assert_eq!(client.run(0, FLUSH, 0, 0, &[]), Outcome::Done);
                    assert!(*memory.durable.read().unwrap() == model);
                }
                _ => {
                    let flags = if structured && random.random() { DF } else { 0 };
                    assert!(
                        client.run(flags | fua, READ, at, count, &[]) == Outcome::Data(model[range].to_vec())
                    );
                }
            }
            if fua != 0 {
                let now = client.run(0, READ, 0, BYTES as u32, &[]);
                assert!(now == Outcome::Data(model.clone()), "round {round}, step {step}");
            }
        }
        assert!(*memory.data.read().unwrap() == model);
    }
}

#[test]
fn many_at_once_each_with_its_own_answer() {
    let mut random = ChaCha8Rng::seed_from_u64(seed());
    for may_wait in [false, true] {
        let mut memory = Memory::new("disk", vec![0; BYTES]);
        memory.may_wait = may_wait;
        let memory = Arc::new(memory);
        let server = Server::of(&memory);
        let mut client = Client::structured(&server.path, "disk", &[]);
        let mut model = vec![0; BYTES];
        for _ in 0..20 {
            // Each block once, so that the order doesn't matter: written, or read as it was.
            let mut bytes = Vec::new();
            let before = model.clone();
            let mut written = [false; BYTES / 4096];
            for (block, write) in written.iter_mut().enumerate() {
                *write = random.random();
                let command = if *write { WRITE } else { READ };
                let at = block * 4096;
                bytes.extend(client::request_bytes(0, command, block as u64, at as u64, 4096));
                if *write {
                    let data: Vec<u8> = vec![random.random(); 4096];
                    model[at..at + 4096].copy_from_slice(&data);
                    bytes.extend(data);
                }
            }
            let mut sender = client.stream.try_clone().unwrap();
            let sender = std::thread::spawn(move || io::Write::write_all(&mut sender, &bytes).unwrap());
            let mut seen = [false; BYTES / 4096];
            for _ in 0..written.len() {
                let (block, content) = match client.reply() {
                    client::Reply::Simple { cookie, error } => {
                        assert_eq!(error, 0);
                        (cookie as usize, None)
                    }
                    client::Reply::Chunk { cookie, flags, kind, data } => {
                        assert_eq!((flags, kind), (1, 1));
                        assert_eq!(data[..8], (cookie * 4096).to_be_bytes());
                        (cookie as usize, Some(data[8..].to_vec()))
                    }
                };
                assert!(!std::mem::replace(&mut seen[block], true), "two answers to {block}");
                assert_eq!(content.is_none(), written[block]);
                assert!(content.is_none_or(|data| data == before[block * 4096..(block + 1) * 4096]));
            }
            sender.join().unwrap();
        }
        assert!(*memory.data.read().unwrap() == model);
    }
}

#[test]
fn what_is_refused_is_refused_by_the_right_error_and_changes_nothing() {
    let (end, most) = (BYTES as u64, 64 << 10);
    let sizes = BlockSizes { minimum: 512, preferred: 4096, maximum: most };
    for structured in [false, true] {
        for read_only in [false, true] {
            let mut memory = Memory::new("disk", vec![5; BYTES]);
            (memory.sizes, memory.read_only) = (sizes, read_only);
            let memory = Arc::new(memory);
            let server = Server::of(&memory);
            let mut client = match structured {
                true => Client::structured(&server.path, "disk", &[]),
                false => Client::simple(&server.path, "disk"),
            };
            let mut check = |flags, command, offset, length: u32, error| {
                let payload = if command == WRITE { vec![1; length as usize] } else { vec![] };
                let found = client.error(flags, command, offset, length, &payload);
                assert_eq!(found, error, "flags {flags} command {command} offset {offset} length {length}");
                // The connection goes on where the next request begins.
                assert_eq!(client.run(0, READ, 512, 512, &[]), Outcome::Data(vec![5; 512]));
            };
            let beyond = if read_only { EPERM } else { ENOSPC };
            let modified = if read_only { EPERM } else { EINVAL };
            for command in [READ, STATUS, CACHE] {
                check(0, command, end, 512, EINVAL);
                check(0, command, end - 512, 1024, EINVAL);
                check(0, command, u64::MAX - 511, 512, EINVAL);
                check(0, command, u64::MAX - 511, 1024, EINVAL);
                check(0, command, 0, 0, EINVAL);
                check(0, command, 1, 512, EINVAL);
                check(0, command, 0, 511, EINVAL);
                check(NO_HOLE, command, 0, 512, EINVAL);
                check(FAST_ZERO, command, 0, 512, EINVAL);
                check(1 << 15, command, 0, 512, EINVAL);
            }
            for command in [WRITE, TRIM, ZERO] {
                check(0, command, end, 512, beyond);
                check(0, command, end - 512, 1024, beyond);
                check(0, command, u64::MAX - 511, 1024, beyond);
                check(0, command, 0, 0, modified);
                check(0, command, 1, 512, modified);
                check(0, command, 0, 513, modified);
                check(DF, command, 0, 512, modified);
                check(REQ_ONE, command, 0, 512, modified);
            }
            check(0, READ, 0, most + 512, EINVAL);
            check(0, WRITE, 0, most + 512, modified);
            check(NO_HOLE, WRITE, 0, 512, modified);
            check(NO_HOLE, TRIM, 0, 512, modified);
            check(0, FLUSH, 0, 512, EINVAL);
            check(0, FLUSH, 512, 0, EINVAL);
            check(NO_HOLE, FLUSH, 0, 0, EINVAL);
            check(0, STATUS, 0, 512, EINVAL);
            check(0, 8, 0, 512, EINVAL);
            check(0, 0xFFFF, 0, 0, EINVAL);
            if !structured {
                check(DF, READ, 0, 512, EINVAL);
            }
            if read_only {
                check(FUA, READ, 0, 512, EINVAL);
                check(0, FLUSH, 0, 0, EINVAL);
                check(0, WRITE, 0, 512, EPERM);
                check(0, TRIM, 0, 512, EPERM);
                check(0, ZERO, 0, 512, EPERM);
            }
            assert!(memory.data.read().unwrap().iter().all(|byte| *byte == 5));
        }
    }
}

#[test]
fn the_largest_request_goes_and_a_larger_one_does_not() {
    let most = nbd::MAXIMUM_REQUEST_BYTES;
    let memory = Arc::new(Memory::new("disk", vec![0; most as usize + 1]));
    let server = Server::of(&memory);
    for structured in [false, true] {
        let mut client = match structured {
            true => Client::structured(&server.path, "disk", &[]),
            false => Client::simple(&server.path, "disk"),
        };
        let payload: Vec<u8> = (0..=most).map(|at| (at >> 9) as u8 ^ at as u8).collect();
        assert_eq!(client.error(0, WRITE, 0, most + 1, &payload), EINVAL);
        assert_eq!(client.run(0, WRITE, 1, most, &payload[1..]), Outcome::Done);
        assert_eq!(client.error(0, READ, 0, most + 1, &[]), EINVAL);
        assert!(client.run(0, READ, 1, most, &[]) == Outcome::Data(payload[1..].to_vec()));
        // These have no payload, so they may be larger.
        assert_eq!(client.run(0, ZERO, 0, most + 1, &[]), Outcome::Done);
    }
}

#[test]
fn an_exports_failures_reach_the_client_with_their_text() {
    let memory = Arc::new(Memory::new("disk", vec![3; BYTES]));
    let server = Server::of(&memory);
    let faults: [(fn() -> io::Error, u32); 9] = [
        (|| io::Error::from_raw_os_error(5), EIO),
        (|| io::Error::from_raw_os_error(1), EPERM),
        (|| io::Error::from_raw_os_error(13), EPERM),
        (|| io::Error::from_raw_os_error(22), EINVAL),
        (|| io::Error::from_raw_os_error(28), ENOSPC),
        (|| io::Error::from_raw_os_error(122), ENOSPC),
        (|| io::Error::from_raw_os_error(110), EIO),
        (|| io::Error::new(io::ErrorKind::StorageFull, "the journal is full"), ENOSPC),
        (|| io::Error::other("batch 17 at offset 4096 is damaged"), EIO),
    ];
    for may_wait in [false, true] {
        for (make, error) in faults {
            memory.fault(8192, Fault::Error(make));
            let mut client = Client::structured(&server.path, "disk", &[]);
            let failed = Outcome::Error(error, make().to_string());
            assert_eq!(client.run(0, READ, 8192, 100, &[]), failed);
            assert_eq!(client.run(0, WRITE, 8192, 3, b"abc"), failed);
            // Also where it goes to a worker.
            assert_eq!(client.run(0, READ, 8192, 200 << 10, &[]), failed);
            assert_eq!(client.run(0, READ, 8193, 1, &[]), Outcome::Data(vec![3]));
            let mut client = Client::simple(&server.path, "disk");
            assert_eq!(client.error(0, READ, 8192, 100, &[]), error);
            assert_eq!(client.run(0, READ, 8193, 1, &[]), Outcome::Data(vec![3]), "may_wait {may_wait}");
        }
    }
    memory.fault(8192, Fault::Error(|| io::Error::other("ü".repeat(5000))));
    let mut client = Client::structured(&server.path, "disk", &[]);
    assert_eq!(client.run(0, READ, 8192, 1, &[]), Outcome::Error(EIO, "ü".repeat(2048)));
}

#[test]
fn a_panic_costs_one_request() {
    let memory = Arc::new(Memory::new("disk", vec![3; BYTES]));
    memory.fault(4096, Fault::Panic);
    let server = Server::of(&memory);
    let mut client = Client::structured(&server.path, "disk", &[]);
    for length in [1, 200 << 10] {
        assert_eq!(client.error(0, READ, 4096, length, &[]), EIO);
        assert_eq!(client.run(0, READ, 0, 1, &[]), Outcome::Data(vec![3]));
    }
}

#[test]
fn fua_is_durable_when_answered() {
    let memory = Arc::new(Memory::new("disk", vec![1; BYTES]));
    let server = Server::of(&memory);
    let mut client = Client::simple(&server.path, "disk");
    let durable = |at: usize| memory.durable.read().unwrap()[at];
    assert_eq!(client.run(0, WRITE, 0, 1, &[2]), Outcome::Done);
    assert_eq!(durable(0), 1);
    assert_eq!(client.run(FUA, WRITE, 10, 1, &[2]), Outcome::Done);
    assert_eq!((durable(0), durable(10)), (2, 2));
    assert_eq!(client.run(FUA, ZERO, 20, 1, &[]), Outcome::Done);
    assert_eq!(durable(20), 0);
    assert_eq!(client.run(FUA, TRIM, 30, 1, &[]), Outcome::Done);
    assert_eq!(durable(30), 0);
    // What one connection wrote, another one flushes.
    assert_eq!(client.run(0, WRITE, 40, 1, &[2]), Outcome::Done);
    assert_eq!(Client::simple(&server.path, "disk").run(0, FLUSH, 0, 0, &[]), Outcome::Done);
    assert_eq!(durable(40), 2);
}

#[test]
fn zeroes_come_with_their_flags_and_fast_ones_can_be_refused() {
    let mut memory = Memory::new("disk", vec![1; BYTES]);
    memory.fast_zero = false;
    let memory = Arc::new(memory);
    let server = Server::of(&memory);
    let mut client = Client::structured(&server.path, "disk", &[]);
    assert_eq!(client.run(0, ZERO, 0, 10, &[]), Outcome::Done);
    assert_eq!(client.run(NO_HOLE, ZERO, 10, 10, &[]), Outcome::Done);
    assert_eq!(client.error(FAST_ZERO, ZERO, 20, 10, &[]), ENOTSUP);
    assert_eq!(client.error(FAST_ZERO | NO_HOLE, ZERO, 30, 10, &[]), ENOTSUP);
    let calls = [(0, 10, true, false), (10, 10, false, false), (20, 10, true, true), (30, 10, false, true)];
    assert_eq!(*memory.zeroed.lock().unwrap(), calls);
    assert_eq!(memory.data.read().unwrap()[..21], [&[0; 20][..], &[1]].concat());
}

#[test]
fn holes_are_neither_read_nor_sent() {
    let mut data = vec![1; BYTES];
    data[64 << 10..192 << 10].fill(0);
    let mut memory = Memory::new("disk", data.clone());
    memory.sparse = true;
    let memory = Arc::new(memory);
    let server = Server::of(&memory);
    let mut client = Client::structured(&server.path, "disk", &[]);
    client.request(0, READ, 1, 0, BYTES as u32);
    let lengths: Vec<_> = (0..3)
        .map(|_| match client.reply() {
            client::Reply::Chunk { kind, data, flags, .. } => (kind, data.len(), flags),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(lengths, [(1, (64 << 10) + 8, 0), (2, 12, 0), (1, (64 << 10) + 8, 1)]);
    assert_eq!(*memory.reads.lock().unwrap(), 2);
    client.request(DF, READ, 2, 0, BYTES as u32);
    match client.reply() {
        client::Reply::Chunk { kind: 1, flags: 1, data: sent, .. } => assert!(sent[8..] == data),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_status_is_bounded() {
    let sectors = nbd::MAXIMUM_DESCRIPTORS + 100;
    let data: Vec<u8> = (0..sectors * SECTOR).map(|at| (at / SECTOR % 2) as u8).collect();
    let server = Server::of(&Arc::new(Memory::new("disk", data)));
    let mut client = Client::structured(&server.path, "disk", &BOTH);
    let Outcome::Status(status) = client.run(0, STATUS, 0, (sectors * SECTOR) as u32, &[]) else { panic!() };
    assert_eq!(status[0].1.len(), nbd::MAXIMUM_DESCRIPTORS);
    assert!(status[0]
        .1
        .iter()
        .enumerate()
        .all(|(at, extent)| *extent == (512, if at % 2 == 0 { 3 } else { 0 })));
    assert_eq!(status[1].1, [((sectors * SECTOR) as u32, 0)]);
}
