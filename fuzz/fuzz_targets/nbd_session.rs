//! A client's bytes, any: the server answers or closes, and goes on for others.
//!
//! The first byte says how far a good handshake comes before them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

const BYTES: usize = 64 << 10;

struct Disk(Mutex<Vec<u8>>);

impl nbd::Export for Disk {
    fn name(&self) -> &str {
        "disk"
    }

    fn bytes(&self) -> u64 {
        BYTES as u64
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        // A panic here is a request that should have been refused.
        buffer.copy_from_slice(&self.0.lock().unwrap()[offset as usize..offset as usize + buffer.len()]);
        Ok(())
    }

    fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.0.lock().unwrap()[offset as usize..offset as usize + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

fn socket() -> &'static PathBuf {
    static SOCKET: OnceLock<PathBuf> = OnceLock::new();
    SOCKET.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("fuzz-nbd-{}", std::process::id()));
        let listener = nbd::Listener::unix(&path).expect("a socket");
        std::thread::spawn(move || {
            let exports: Vec<Arc<dyn nbd::Export>> = vec![Arc::new(Disk(Mutex::new(vec![0; BYTES])))];
            let shutdown = nbd::Shutdown::new().expect("a shutdown");
            nbd::serve(&listener, &exports, &shutdown).expect("it serves");
        });
        path
    })
}

fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

fuzz_target!(|input: &[u8]| {
    let Some((how, rest)) = input.split_first() else { return };
    let mut bytes = Vec::new();
    if how & 3 > 0 {
        bytes.extend([0, 0, 0, 3]);
    }
    if how & 4 > 0 {
        bytes.extend(option(8, &[]));
    }
    if how & 3 > 1 {
        bytes.extend(option(7, &[&[0, 0, 0, 4][..], b"disk", &[0, 0]].concat()));
    }
    bytes.extend(rest);
    let mut client = UnixStream::connect(socket()).expect("the server takes clients");
    client.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
    let mut reading = client.try_clone().expect("another end");
    let reader = std::thread::spawn(move || {
        let mut answers = Vec::new();
        reading.read_to_end(&mut answers).map_err(|error| error.kind())
    });
    // It may have closed by now.
    let _ = client.write_all(&bytes);
    let _ = client.shutdown(Shutdown::Write);
    let read = reader.join().expect("no panic");
    assert!(!matches!(read, Err(io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)), "the server neither answers nor closes");
});
