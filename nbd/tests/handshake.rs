//! Every option, asked well and badly.

mod client;
mod memory;

use client::{
    go_data, meta_data, option_bytes, Client, ACK, EINVAL, INVALID, POLICY, READ, STATUS, TOO_BIG, UNKNOWN,
    UNSUPPORTED,
};
use memory::{eventually, Memory, Server, CHANGED};
use nbd::{BlockSizes, Limits};
use std::sync::Arc;
use std::time::Duration;

const BYTES: usize = 64 << 10;
/// HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, CAN_MULTI_CONN, SEND_CACHE, SEND_FAST_ZERO.
const WRITABLE: u16 = 0b1101_0110_1101;
/// HAS_FLAGS, READ_ONLY, CAN_MULTI_CONN, SEND_CACHE.
const READ_ONLY: u16 = 0b0101_0000_0011;
const SEND_DF: u16 = 1 << 7;

fn server() -> Server {
    let disk = Memory::new("disk", vec![7; BYTES]);
    let mut image = Memory::new("image@noon", vec![9; 2 * BYTES]);
    image.read_only = true;
    image.sizes = BlockSizes { minimum: 512, preferred: 8192, maximum: 1 << 30 };
    Server::start(&[&Arc::new(disk), &Arc::new(image)], Limits::default())
}

#[test]
fn go_and_info_tell_of_an_export() {
    let server = server();
    let mut client = Client::hello(&server.path, 3);
    let image = (2 * BYTES as u64).to_be_bytes();
    let export = [&[0, 0][..], &image, &READ_ONLY.to_be_bytes()].concat();
    // The maximum is cut to 32 MiB.
    let sizes = vec![0, 3, 0, 0, 2, 0, 0, 0, 0x20, 0, 2, 0, 0, 0];
    assert_eq!(
        client.option(6, &go_data("image@noon", &[3, 1, 2, 99])),
        [
            (3, export.clone()),
            (3, b"\0\x01image@noon".to_vec()),
            (3, b"\0\x02image@noon in memory".to_vec()),
            (3, sizes.clone()),
            (ACK, vec![])
        ]
    );
    assert_eq!(client.option(7, &go_data("image@noon", &[])), [(3, export), (3, sizes), (ACK, vec![])]);
    assert_eq!(client.error(0, READ, 3, 512, &[]), EINVAL);
    assert_eq!(client.run(0, READ, 512, 512, &[]), client::Outcome::Data(vec![9; 512]));
    // The default is the first; DF is told of with structured replies only.
    assert_eq!(Client::hello(&server.path, 3).go(""), (BYTES as u64, WRITABLE));
    let mut client = Client::hello(&server.path, 3);
    client.option(8, &[]);
    assert_eq!(client.go("disk"), (BYTES as u64, WRITABLE | SEND_DF));
}

#[test]
fn export_name_goes_on_without_a_word() {
    let server = server();
    for (flags, zeroes) in [(3, 0), (1, 124), (0, 124), (2, 0)] {
        let mut client = Client::hello(&server.path, flags);
        client.send(&option_bytes(1, b"disk"));
        let expected =
            [&(BYTES as u64).to_be_bytes()[..], &WRITABLE.to_be_bytes(), &vec![0; zeroes]].concat();
        assert_eq!(client.bytes(expected.len()), expected);
        assert_eq!(client.run(0, READ, 0, 4, &[]), client::Outcome::Data(vec![7; 4]));
    }
    for name in [&b"nobody"[..], &[0xFF; 4], &[b'x'; 5000], &[b'x'; 20_000]] {
        let mut client = Client::hello(&server.path, 3);
        client.send(&option_bytes(1, name));
        client.closed();
    }
}

#[test]
fn exports_are_listed() {
    let server = server();
    let mut client = Client::hello(&server.path, 3);
    assert_eq!(
        client.option(3, &[]),
        [
            (2, b"\0\0\0\x04diskdisk in memory".to_vec()),
            (2, b"\0\0\0\x0Aimage@noonimage@noon in memory".to_vec()),
            (ACK, vec![])
        ]
    );
    assert_eq!(client.refused(3, b"x"), INVALID);
}

#[test]
fn what_is_refused_leaves_the_handshake_going() {
    let server = server();
    let mut client = Client::hello(&server.path, 3);
    for option in [0, 4, 5, 11, 12, 0xFFFF_FFFF] {
        assert_eq!(client.refused(option, b"some data"), UNSUPPORTED, "option {option}");
    }
    assert_eq!(client.refused(8, b"x"), INVALID);
    assert_eq!(client.refused(7, &go_data("nobody", &[])), UNKNOWN);
    assert_eq!(client.refused(6, &go_data("nobody", &[])), UNKNOWN);
    let locked = client.option(7, &go_data("locked", &[]));
    assert_eq!(locked, [(POLICY, b"that moment lies before the journal's first".to_vec())]);
    let whole = go_data("disk", &[0, 3]);
    for end in 0..whole.len() {
        assert_eq!(client.refused(7, &whole[..end]), INVALID, "cut at {end}");
    }
    assert_eq!(client.refused(7, &[&whole[..], b"x"].concat()), INVALID);
    assert_eq!(client.refused(7, &[0, 0, 0, 1, 0xFF, 0, 0]), INVALID);
    assert_eq!(client.refused(7, &go_data(&"n".repeat(4097), &[])), TOO_BIG);
    assert_eq!(client.refused(7, &vec![0; 20_000]), TOO_BIG);
    assert_eq!(client.go("disk").0, BYTES as u64);
}

#[test]
fn contexts_are_listed_and_chosen() {
    let server = server();
    let mut client = Client::hello(&server.path, 3);
    assert_eq!(client.refused(9, &meta_data("disk", &[])), INVALID);
    assert_eq!(client.refused(10, &meta_data("disk", &["base:allocation"])), INVALID);
    assert_eq!(client.option(8, &[]), [(ACK, vec![])]);
    let named = |id: u32, name: &str| (4, [&id.to_be_bytes()[..], name.as_bytes()].concat());
    let base = "base:allocation";
    let both = vec![named(0, base), named(0, CHANGED), (ACK, vec![])];
    assert_eq!(client.option(9, &meta_data("disk", &[])), both);
    assert_eq!(client.option(9, &meta_data("disk", &["chronoswitch:", "base:", "base:"])), both);
    assert_eq!(client.option(9, &meta_data("disk", &["base:"])), [named(0, base), (ACK, vec![])]);
    assert_eq!(client.option(9, &meta_data("disk", &["qemu:", "base", "base:alloc"])), [(ACK, vec![])]);
    assert_eq!(client.refused(9, &meta_data("nobody", &[])), UNKNOWN);
    let whole = meta_data("disk", &[base]);
    for end in 0..whole.len() {
        assert_eq!(client.refused(10, &whole[..end]), INVALID, "cut at {end}");
    }
    // More queries than data.
    assert_eq!(client.refused(10, &[&meta_data("disk", &[])[..8], &[0xFF; 4]].concat()), INVALID);
    assert_eq!(client.option(10, &meta_data("disk", &["base:", "x:y"])), [(ACK, vec![])]);
    let chosen = client.option(10, &meta_data("disk", &[CHANGED, "x:y"]));
    assert_eq!(chosen.len(), 2);
    assert_eq!(chosen[0].1[4..], *CHANGED.as_bytes());
    let id = u32::from_be_bytes(chosen[0].1[..4].try_into().unwrap());
    client.structured = true;
    client.go("disk");
    let status = client.run(0, STATUS, 0, 512, &[]);
    assert_eq!(status, client::Outcome::Status(vec![(id, vec![(512, 0)])]));
}

#[test]
fn contexts_of_another_export_or_of_a_failed_choice_dont_count() {
    let server = server();
    for (last, go) in [("disk", "image@noon"), ("nobody", "disk")] {
        let mut client = Client::hello(&server.path, 3);
        client.option(8, &[]);
        client.structured = true;
        client.option(10, &meta_data("disk", &["base:allocation"]));
        client.option(10, &meta_data(last, &["base:allocation"]));
        client.go(go);
        assert_eq!(client.error(0, STATUS, 0, 512, &[]), EINVAL);
    }
}

#[test]
fn abort_is_acknowledged() {
    let server = server();
    let mut client = Client::hello(&server.path, 3);
    assert_eq!(client.option(2, &[]), [(ACK, vec![])]);
    client.closed();
    eventually("it is reported", || server.ended("the client has disconnected") == 1);
}

#[test]
fn who_does_not_speak_the_protocol_is_cut_off() {
    let server = server();
    Client::hello(&server.path, 4).closed();
    Client::hello(&server.path, 0x8000_0003).closed();
    // Options other than EXPORT_NAME need the fixed newstyle.
    let mut client = Client::hello(&server.path, 0);
    client.send(&option_bytes(7, &go_data("disk", &[])));
    client.closed();
    let mut client = Client::hello(&server.path, 3);
    client.send(b"GET / HTTP/1.1\r\n");
    client.closed();
    let mut client = Client::hello(&server.path, 3);
    client.send(&[&b"IHAVEOPT"[..], &[0, 0, 0, 7, 0xFF, 0xFF, 0xFF, 0xFF]].concat());
    client.closed();
    eventually("all are reported", || server.ended("protocol violated") == 5);
    Client::simple(&server.path, "disk");
}

#[test]
fn haggling_has_limits() {
    let limits = Limits { handshake: Duration::from_millis(300), ..Limits::default() };
    let server = Server::start(&[&Arc::new(Memory::new("disk", vec![0; BYTES]))], limits);
    let mut client = Client::hello(&server.path, 3);
    for _ in 0..nbd::MAXIMUM_OPTIONS {
        client.option(3, &[]);
    }
    client.closed();
    let mut client = Client::hello(&server.path, 3);
    let large = vec![0; nbd::MAXIMUM_OPTIONS_BYTES / 4];
    for _ in 0..4 {
        assert_eq!(client.refused(99, &large), TOO_BIG);
    }
    client.send(&option_bytes(99, b"x"));
    client.closed();
    // Nothing at all, and a byte now and then.
    let silent = Client::connect(&server.path);
    let mut slow = Client::hello(&server.path, 3);
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while server.ended("not done in time") < 2 {
        assert!(std::time::Instant::now() < end, "slow clients are still there");
        let _ = std::io::Write::write(&mut slow.stream, b"I");
        std::thread::sleep(Duration::from_millis(50));
    }
    drop((silent, slow));
    // Time counts in the handshake only.
    let mut client = Client::simple(&server.path, "disk");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(client.run(0, READ, 0, 1, &[]), client::Outcome::Data(vec![0]));
}

#[test]
fn an_export_with_impossible_sizes_is_refused() {
    for (minimum, preferred, maximum, bytes) in [
        (3, 4096, 65536, BYTES),
        (0, 4096, 65536, BYTES),
        (1 << 17, 1 << 17, 1 << 20, 1 << 20),
        (1, 256, 65536, BYTES),
        (4096, 512, 65536, BYTES),
        (512, 4096, 2048, BYTES),
        (512, 4096, 4097, BYTES),
        (512, 4096, 65536, 513),
    ] {
        let mut memory = Memory::new("disk", vec![0; bytes]);
        memory.sizes = BlockSizes { minimum, preferred, maximum };
        let server = Server::of(&Arc::new(memory));
        let mut client = Client::hello(&server.path, 3);
        assert_eq!(
            client.refused(7, &go_data("disk", &[])),
            POLICY,
            "{minimum} {preferred} {maximum} {bytes}"
        );
    }
}
