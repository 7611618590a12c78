//! The clients that people have. `make nbd-clients` installs them and runs this; without them these tests fail.

mod certificates;
mod memory;

use memory::{Memory, Server, CHANGED};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

const BYTES: usize = 64 << 20;

/// Data, a hole, data; no two blocks alike.
fn content() -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (0..BYTES as u32 / 4).flat_map(|word| word.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    bytes[16 << 20..48 << 20].fill(0);
    bytes
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; `make nbd-clients` installs it"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{text}\n{errors}", output.status);
    text
}

fn uri(server: &Server, export: &str) -> String {
    format!("nbd+unix:///{export}?socket={}", server.path.display())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
#[ignore = "needs libnbd-bin: make nbd-clients"]
fn nbdinfo_sees_all() {
    let mut memory = Memory::new("disk", content());
    memory.sizes.minimum = 512;
    let disk = Arc::new(memory);
    let mut memory = Memory::new("image", vec![0; 1 << 20]);
    memory.read_only = true;
    let server = Server::start(&[&disk, &Arc::new(memory)], nbd::Limits::default());
    let info: serde_json::Value =
        serde_json::from_str(&run("nbdinfo", &["--json", "--list", &uri(&server, "")])).unwrap();
    assert_eq!(info["structured"], true);
    let exports = info["exports"].as_array().unwrap();
    assert_eq!(exports.len(), 2);
    let first = &exports[0];
    assert_eq!(first["export-name"], "disk");
    assert_eq!(first["description"], "disk in memory");
    assert_eq!(first["export-size"], BYTES);
    assert_eq!(first["contexts"], serde_json::json!(["base:allocation", CHANGED]));
    for can in [
        "can_cache",
        "can_df",
        "can_fast_zero",
        "can_flush",
        "can_fua",
        "can_multi_conn",
        "can_trim",
        "can_zero",
    ] {
        assert_eq!(first[can], true, "{can}");
    }
    assert_eq!(first["block_size_minimum"], 512);
    assert_eq!(exports[1]["is_read_only"], true);
    disk.data.write().unwrap()[1 << 20] ^= 1;
    let map = |context: &str| -> Vec<(u64, u64, u64)> {
        let map = run("nbdinfo", &["--json", &format!("--map={context}"), &uri(&server, "disk")]);
        let map: serde_json::Value = serde_json::from_str(&map).unwrap();
        let number = |item: &serde_json::Value, name: &str| item[name].as_u64().unwrap();
        map.as_array()
            .unwrap()
            .iter()
            .map(|item| (number(item, "offset"), number(item, "length"), number(item, "type")))
            .collect()
    };
    let mib = 1 << 20;
    assert_eq!(map("base:allocation"), [(0, 16 * mib, 0), (16 * mib, 32 * mib, 3), (48 * mib, 16 * mib, 0)]);
    assert_eq!(map(CHANGED), [(0, mib, 0), (mib, 512, 1), (mib + 512, 63 * mib - 512, 0)]);
}

#[test]
#[ignore = "needs libnbd-bin: make nbd-clients"]
fn nbdcopy_copies_out_and_in() {
    let directory = tempfile::tempdir().unwrap();
    let (out, content) = (directory.path().join("out"), content());
    let mut memory = Memory::new("disk", content.clone());
    memory.sparse = true;
    let source = Arc::new(memory);
    let target = Arc::new(Memory::new("copy", vec![0xEE; BYTES]));
    let server = Server::start(&[&source, &target], nbd::Limits::default());
    run("nbdcopy", &[&uri(&server, "disk"), text(&out)]);
    assert!(std::fs::read(&out).unwrap() == content);
    run("nbdcopy", &["--flush", "--connections=4", "--requests=64", text(&out), &uri(&server, "copy")]);
    assert!(*target.durable.read().unwrap() == content);
}

#[test]
#[ignore = "needs qemu-utils: make nbd-clients"]
fn qemu_converts_compares_and_discards() {
    let directory = tempfile::tempdir().unwrap();
    let (raw, content) = (directory.path().join("raw"), content());
    let disk = Arc::new(Memory::new("disk", content.clone()));
    let copy = Arc::new(Memory::new("copy", vec![0; BYTES]));
    let server = Server::start(&[&disk, &copy], nbd::Limits::default());
    let (disk_uri, copy_uri) = (uri(&server, "disk"), uri(&server, "copy"));
    run("qemu-img", &["convert", "-f", "raw", "-O", "raw", &disk_uri, text(&raw)]);
    assert!(std::fs::read(&raw).unwrap() == content);
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", text(&raw), &copy_uri]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &disk_uri, &copy_uri]);
    assert!(*copy.data.read().unwrap() == content);
    let mut expected = content;
    for (begin, bytes, byte) in [(4096, 8192, 0xAB_u8), (1 << 20, 3 << 20, 0xCD)] {
        expected[begin..begin + bytes].fill(byte);
    }
    expected[8192..8192 + 512].fill(0);
    expected[8 << 20..9 << 20].fill(0);
    expected[9 << 20..10 << 20].fill(0);
    let script = [
        "write -P 0xab 4096 8192",
        "aio_write -P 0xcd 1M 3M",
        "aio_flush",
        "write -z 8192 512",
        "write -z -u 8M 1M",
        "discard 9M 1M",
        "write -f -P 0xab 4096 4096",
        "flush",
        "read -P 0xcd 1M 3M",
    ];
    let mut arguments = vec!["-f", "raw", &copy_uri];
    script.iter().for_each(|line| arguments.extend(["-c", line]));
    let said = run("qemu-io", &arguments);
    assert!(!said.contains("failed"), "{said}");
    assert!(*copy.durable.read().unwrap() == expected);
}

#[test]
#[ignore = "needs fio: make nbd-clients"]
fn fio_finds_what_it_wrote() {
    for may_wait in [false, true] {
        let mut memory = Memory::new("disk", vec![0; BYTES]);
        memory.may_wait = may_wait;
        let server = Server::of(&Arc::new(memory));
        // fio keeps a state file where it runs unless told not to.
        let said = run(
            "fio",
            &[
                "--name=verify",
                "--ioengine=nbd",
                &format!("--uri={}", uri(&server, "disk")),
                "--rw=randwrite",
                "--bsrange=512-64k",
                "--size=64M",
                "--iodepth=16",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--verify_state_save=0",
                "--fsync=100",
            ],
        );
        assert!(said.contains("err= 0"), "{said}");
    }
}

#[test]
#[ignore = "needs libnbd-bin: make nbd-clients"]
fn libnbd_goes_through_tls() {
    let folder = tempfile::tempdir().unwrap();
    certificates::Authority::new("authority").fill(folder.path());
    let tls = nbd::Tls::from_folder(folder.path(), true).unwrap();
    let listener = nbd::Listener::tcp("127.0.0.1:0".parse().unwrap(), Some(tls)).unwrap();
    let port = listener.address().unwrap().port();
    let disk = Arc::new(Memory::new("disk", content()));
    let server = Server::start_beside(&[&disk], nbd::Limits::default(), Some(listener));
    let uri = format!("nbds://localhost:{port}/disk?tls-certificates={}", folder.path().display());
    let info: serde_json::Value = serde_json::from_str(&run("nbdinfo", &["--json", &uri])).unwrap();
    assert_eq!(info["TLS"], true, "{info}");
    assert_eq!(info["exports"][0]["export-size"], BYTES);
    let copy = folder.path().join("copy");
    run("nbdcopy", &[&uri, text(&copy)]);
    assert!(std::fs::read(&copy).unwrap() == content());
    let other: Vec<u8> = content().iter().map(|byte| byte ^ 0x5A).collect();
    std::fs::write(&copy, &other).unwrap();
    run("nbdcopy", &[text(&copy), &uri]);
    assert!(*disk.data.read().unwrap() == other);
    // In clear, and without a certificate: nothing.
    let plain = format!("nbd://localhost:{port}/disk");
    let stranger = tempfile::tempdir().unwrap();
    std::fs::copy(folder.path().join("ca-cert.pem"), stranger.path().join("ca-cert.pem")).unwrap();
    let unknown = format!("nbds://localhost:{port}/disk?tls-certificates={}", stranger.path().display());
    for uri in [plain, unknown] {
        let output = Command::new("nbdinfo").args(["--size", &uri]).output().unwrap();
        assert!(!output.status.success(), "{uri}: {output:?}");
    }
    drop(server);
}
