//! Sessions with random damage: the server answers or closes, always, and others notice nothing.
//!
//! One test a file: it counts the process's threads and open files.

mod client;
mod memory;

use client::{go_data, meta_data, option_bytes, request_bytes, Client, Outcome, READ};
use memory::{eventually, seed, seeds, Memory, Server, CHANGED};
use nbd::Limits;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Arc;

const BYTES: usize = 256 << 10;

/// A session that has everything in it.
fn session(random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 3];
    bytes.extend(option_bytes(3, &[]));
    if random.random() {
        bytes.extend(option_bytes(8, &[]));
    }
    bytes.extend(option_bytes(9, &meta_data("disk", &["base:"])));
    bytes.extend(option_bytes(10, &meta_data("disk", &["base:allocation", CHANGED])));
    bytes.extend(option_bytes(6, &go_data("disk", &[0, 1, 2, 3])));
    match random.random() {
        true => bytes.extend(option_bytes(7, &go_data("disk", &[3]))),
        false => bytes.extend(option_bytes(1, b"disk")),
    }
    for cookie in 0..20 {
        let (command, length) = (random.random_range(0..9), random.random_range(0..9000));
        bytes.extend(request_bytes(
            random.random_range(0..32),
            command,
            cookie,
            random.random_range(0..BYTES as u64),
            length,
        ));
        if command == 1 {
            bytes.extend(vec![cookie as u8; length as usize]);
        }
    }
    bytes
}

fn damage(bytes: &mut Vec<u8>, random: &mut ChaCha8Rng) {
    for _ in 0..random.random_range(0..6) {
        if bytes.is_empty() {
            return;
        }
        // The head of a session is short, and most of the protocol is in it.
        let end = if random.random() { bytes.len().min(300) } else { bytes.len() };
        let at = random.random_range(0..end);
        match random.random_range(0..6) {
            0 => bytes[at] = random.random(),
            1 => bytes[at] ^= 1 << random.random_range(0..8),
            2 => bytes.truncate(at + 1),
            3 => drop(bytes.drain(at..(at + random.random_range(1..40)).min(bytes.len()))),
            4 => {
                let inserted: Vec<u8> = (0..random.random_range(1..40)).map(|_| random.random()).collect();
                bytes.splice(at..at, inserted);
            }
            _ => {
                let value = [0, 1, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF_u32][random.random_range(0..5)];
                let end = (at + 4).min(bytes.len());
                bytes[at..end].copy_from_slice(&value.to_be_bytes()[..end - at]);
            }
        }
    }
}

fn entries(directory: &str) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

#[test]
fn damaged_sessions_end_and_disturb_nobody() {
    let seed = seed();
    let untouched = Arc::new(Memory::new("untouched", vec![1; BYTES]));
    let disk = Arc::new(Memory::new("disk", vec![1; BYTES]));
    let server = Server::start(&[&disk, &untouched], Limits::default());
    let mut steady = Client::structured(&server.path, "untouched", &["base:allocation"]);
    steady.run(0, READ, 0, 200_000, &[]);
    let before = (entries("/proc/self/task"), entries("/proc/self/fd"));
    let count = 3000 * seeds();
    for number in 0..count {
        // Each has its own seed, so that it can be looked at alone.
        let mut random = ChaCha8Rng::seed_from_u64(seed.wrapping_add(number));
        let mut bytes = session(&mut random);
        damage(&mut bytes, &mut random);
        let client = Client::connect(&server.path);
        let mut sender = client.stream.try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            // It fails where the server has closed before all was sent.
            let _ = sender.write_all(&bytes);
            let _ = sender.shutdown(Shutdown::Write);
        });
        let mut answers = Vec::new();
        if let Err(error) = (&client.stream).read_to_end(&mut answers) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "session {number}: {error}");
        }
        sender.join().unwrap();
        assert!(answers.starts_with(b"NBDMAGICIHAVEOPT\x00\x03"), "session {number}");
        if number % 10 == 0 {
            assert_eq!(steady.run(0, READ, 77, 1, &[]), Outcome::Data(vec![1]), "session {number}");
        }
    }
    eventually("all have ended", || server.ended("") as u64 == count);
    eventually("nothing is left behind", || (entries("/proc/self/task"), entries("/proc/self/fd")) == before);
    assert!(untouched.data.read().unwrap().iter().all(|byte| *byte == 1));
    // The damage reached both phases, or this test shows nothing.
    let events = server.shown.events.lock().unwrap();
    let having = |text: &str| events.iter().filter(|event| event.contains(text)).count() as u64;
    println!(
        "{count} sessions: {} chose an export, {} violated the protocol, {} said goodbye",
        having("Chosen"),
        having("violated"),
        having("disconnected")
    );
    assert!(having("Chosen") > count / 4 && having("violated") > count / 20);
}
