//! Many clients, and bad ones: slow, greedy, vanishing; none of them disturbs another.

mod client;
mod memory;

use client::{Client, Outcome, DISC, READ, WRITE};
use memory::{eventually, seed, seeds, Fault, Gate, Memory, Server};
use nbd::Limits;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;
use std::time::{Duration, Instant};

const BYTES: usize = 4 << 20;

fn gated(offsets: u64) -> (Memory, Arc<Gate>) {
    let memory = Memory::new("disk", vec![1; BYTES]);
    let gate = Arc::new(Gate::default());
    for at in 0..offsets {
        memory.fault(at * 4096, Fault::Gate(Arc::clone(&gate)));
    }
    (memory, gate)
}

#[test]
fn requests_that_wait_hold_up_no_others() {
    let (mut memory, gate) = gated(10);
    memory.may_wait = true;
    let server = Server::of(&Arc::new(memory));
    let mut client = Client::simple(&server.path, "disk");
    for at in 0..10 {
        client.request(0, READ, at, at * 4096, 4096);
    }
    eventually("ten wait", || gate.waiting() == 10);
    assert_eq!(client.run(0, READ, 1 << 20, 1, &[]), Outcome::Data(vec![1]));
    gate.open();
    let mut cookies: Vec<u64> = (0..10)
        .map(|_| match client.reply() {
            client::Reply::Simple { cookie, error: 0 } => {
                client.bytes(4096);
                cookie
            }
            other => panic!("{other:?}"),
        })
        .collect();
    cookies.sort();
    assert_eq!(cookies, (0..10).collect::<Vec<_>>());
}

#[test]
fn after_one_that_waited_the_next_run_at_once() {
    let (memory, first) = gated(1);
    let second = Arc::new(Gate::default());
    for at in 1..=10 {
        memory.fault(at * 4096, Fault::Gate(Arc::clone(&second)));
    }
    let server = Server::of(&Arc::new(memory));
    let mut client = Client::simple(&server.path, "disk");
    for at in 0..=10 {
        client.request(0, READ, at, at * 4096, 1);
    }
    eventually("the first waits", || first.waiting() == 1);
    std::thread::sleep(Duration::from_millis(5));
    first.open();
    eventually("the others wait together", || second.waiting() == 10);
    second.open();
    for _ in 0..=10 {
        assert!(matches!(client.reply(), client::Reply::Simple { error: 0, .. }));
        client.bytes(1);
    }
}

#[test]
fn a_client_that_fetches_nothing_is_bounded_and_alone() {
    let memory = Arc::new(Memory::new("disk", vec![1; BYTES]));
    let server = Server::of(&memory);
    let greedy = Client::simple(&server.path, "disk");
    let requests: Vec<u8> =
        (0..1000).flat_map(|cookie| client::request_bytes(0, READ, cookie, 0, BYTES as u32)).collect();
    let mut sender = greedy.stream.try_clone().unwrap();
    std::io::Write::write_all(&mut sender, &requests).unwrap();
    let reads = || *memory.reads.lock().unwrap();
    eventually("it has begun", || reads() > 1);
    // As many as fit into the buffers' limit, and no more as time goes by; others are served meanwhile.
    let most = Limits::default().buffer_bytes / BYTES;
    let mut other = Client::simple(&server.path, "disk");
    for step in 1..=50 {
        assert_eq!(other.run(0, READ, 0, 1, &[]), Outcome::Data(vec![1]));
        assert!(reads() <= most + 1 + step, "{} reads", reads());
        std::thread::sleep(Duration::from_millis(2));
    }
    drop((greedy, sender));
    eventually("it is gone", || server.ended("closed") == 1);
    assert_eq!(other.run(0, READ, 0, 1, &[]), Outcome::Data(vec![1]));
}

#[test]
fn requests_at_once_are_limited() {
    let (mut memory, gate) = gated(100);
    memory.may_wait = true;
    let memory = Arc::new(memory);
    let limits = Limits { requests: 8, ..Limits::default() };
    let server = Server::start(&[&memory], limits);
    let mut client = Client::simple(&server.path, "disk");
    for at in 0..100 {
        client.request(0, READ, at, at * 4096, 1);
    }
    eventually("eight wait", || gate.waiting() == 8);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(*memory.reads.lock().unwrap(), 8);
    gate.open();
    for _ in 0..100 {
        assert!(matches!(client.reply(), client::Reply::Simple { error: 0, .. }));
        client.bytes(1);
    }
}

#[test]
fn a_panic_in_the_handshake_costs_one_connection() {
    let mut server = Server::of(&Arc::new(Memory::new("disk", vec![1; BYTES])));
    let mut steady = Client::simple(&server.path, "disk");
    let mut client = Client::hello(&server.path, 3);
    client.send(&client::option_bytes(7, &client::go_data("panic", &[])));
    client.closed();
    eventually("it is reported", || server.ended("panicked") == 1);
    assert_eq!(steady.run(0, READ, 0, 1, &[]), Outcome::Data(vec![1]));
    Client::simple(&server.path, "disk");
    assert_eq!(server.stop().connections, 3);
}

#[test]
fn connections_are_limited_and_places_become_free() {
    let limits = Limits { connections: 20, ..Limits::default() };
    let mut server = Server::start(&[&Arc::new(Memory::new("disk", vec![1; BYTES]))], limits);
    let mut clients: Vec<Client> = (0..20).map(|_| Client::simple(&server.path, "disk")).collect();
    for _ in 0..5 {
        Client::connect(&server.path).closed();
    }
    for client in &mut clients {
        assert_eq!(client.run(0, READ, 0, 1, &[]), Outcome::Data(vec![1]));
    }
    clients.pop();
    eventually("a place is free", || server.ended("") == 1);
    let mut late = Client::simple(&server.path, "disk");
    assert_eq!(late.run(0, READ, 0, 1, &[]), Outcome::Data(vec![1]));
    let served = server.stop();
    assert_eq!((served.connections, served.refused), (21, 5));
}

#[test]
fn a_thousand_clients_come_and_go() {
    let limits = Limits { connections: 16, ..Limits::default() };
    let mut server = Server::start(&[&Arc::new(Memory::new("disk", vec![1; BYTES]))], limits);
    let mut steady = Client::simple(&server.path, "disk");
    for _ in 0..1000 {
        // Whether it was let in or not, it says something and goes.
        let mut client = Client::connect(&server.path);
        let _ = std::io::Write::write(&mut client.stream, &[0, 0, 0, 3]);
    }
    assert_eq!(steady.run(0, READ, 0, 1, &[]), Outcome::Data(vec![1]));
    drop(steady);
    // Before it stops: whoever hasn't been accepted by then never is.
    let refused =
        || server.shown.events.lock().unwrap().iter().filter(|event| event.starts_with("refused")).count();
    eventually("all have been and gone", || server.ended("") + refused() == 1001);
    let served = server.stop();
    assert_eq!(served.connections + served.refused, 1001);
    assert_eq!(server.ended("") as u64, served.connections);
}

#[test]
fn clients_that_vanish_leave_nothing_behind() {
    let mut random = ChaCha8Rng::seed_from_u64(seed());
    let memory = Arc::new(Memory::new("disk", vec![1; BYTES]));
    let mut server = Server::of(&memory);
    let mut steady = Client::structured(&server.path, "disk", &[]);
    let mut session = vec![0, 0, 0, 3];
    session.extend(client::option_bytes(8, &[]));
    session.extend(client::option_bytes(10, &client::meta_data("disk", &["base:allocation"])));
    session.extend(client::option_bytes(7, &client::go_data("disk", &[])));
    for cookie in 0..40 {
        session.extend(client::request_bytes(0, READ, cookie, 0, 100_000));
        session.extend(client::request_bytes(0, client::STATUS, cookie, 0, 100_000));
        session.extend(client::request_bytes(0, WRITE, cookie, 2 << 20, 10_000));
        session.extend([1; 10_000]);
    }
    let count = 200 * seeds();
    for _ in 0..count {
        let mut client = Client::connect(&server.path);
        let end = random.random_range(0..=session.len());
        // Sent without waiting for an answer; it may fail once the server waits for room.
        client.stream.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
        let _ = std::io::Write::write_all(&mut client.stream, &session[..end]);
        if random.random() {
            client.bytes(18);
        }
        drop(client);
        assert_eq!(steady.run(0, READ, 5, 2, &[]), Outcome::Data(vec![1, 1]));
    }
    eventually("all have ended", || server.ended("") as u64 == count);
    drop(steady);
    assert_eq!(server.stop().connections, count + 1);
    assert!(memory.data.read().unwrap().iter().all(|byte| *byte == 1));
}

#[test]
fn goodbye_comes_after_what_is_under_way() {
    let (mut memory, gate) = gated(1);
    memory.may_wait = true;
    let server = Server::of(&Arc::new(memory));
    let mut client = Client::simple(&server.path, "disk");
    client.request(0, READ, 7, 0, 1);
    client.request(0, DISC, 8, 0, 0);
    eventually("it waits", || gate.waiting() == 1);
    gate.open();
    assert_eq!(client.reply(), client::Reply::Simple { cookie: 7, error: 0 });
    client.bytes(1);
    client.closed();
    eventually("it is reported", || server.ended("the client has disconnected") == 1);
}

#[test]
fn at_shutdown_what_was_received_is_answered_and_the_file_goes() {
    let (mut memory, gate) = gated(4);
    memory.may_wait = true;
    let mut server = Server::of(&Arc::new(memory));
    let mut busy = Client::simple(&server.path, "disk");
    for at in 0..4 {
        busy.request(0, READ, at, at * 4096, 1);
    }
    let idle = Client::simple(&server.path, "disk");
    let haggling = Client::hello(&server.path, 3);
    eventually("four wait", || gate.waiting() == 4);
    assert!(server.path.exists());
    server.shutdown.request();
    idle.closed();
    haggling.closed();
    gate.open();
    for _ in 0..4 {
        assert!(matches!(busy.reply(), client::Reply::Simple { error: 0, .. }));
        busy.bytes(1);
    }
    busy.closed();
    assert_eq!(server.stop().connections, 3);
    assert!(!server.path.exists());
}

#[test]
fn shutdown_does_not_wait_for_ever_for_a_client_that_fetches_nothing() {
    let memory = Arc::new(Memory::new("disk", vec![1; BYTES]));
    let mut server = Server::of(&memory);
    let mut greedy = Client::simple(&server.path, "disk");
    for cookie in 0..4 {
        greedy.request(0, READ, cookie, 0, BYTES as u32);
    }
    eventually("it is served", || *memory.reads.lock().unwrap() > 0);
    let begin = Instant::now();
    server.stop();
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}
