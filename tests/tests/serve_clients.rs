//! `host-agent serve` with the clients that people have. `make nbd-clients` installs them and runs this.

use std::path::Path;
use system_tests::agent::agent;
use system_tests::served::client;
use system_tests::serving::Serving;

const BYTES: usize = 64 << 20;

/// Data, a hole, data; no two blocks alike.
fn content() -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (0..BYTES as u32 / 4).flat_map(|word| word.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    bytes[16 << 20..48 << 20].fill(0);
    bytes
}

fn place() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["disk.img", "base.img"] {
        std::fs::File::create(folder.path().join(name)).unwrap().set_len(BYTES as u64).unwrap();
    }
    std::fs::write(folder.path().join("source"), content()).unwrap();
    folder
}

fn start(folder: &Path, more: &[&str]) -> Serving {
    let create: Vec<&str> = ["--create", "--size", "1G"].iter().chain(more).copied().collect();
    Serving::start(folder, &["disk=disk.img"], &create)
}

#[track_caller]
fn end_is_primary(folder: &Path) {
    let text = |name: &str| folder.join(name).display().to_string();
    agent(["verify", &text("j")]).fine();
    let (journal, base, out) = (text("j"), text("base.img"), text("out"));
    agent(["restore", &journal, "--volume", "disk", "--base", &base, "--at", "end", "--to", &out, "--force"])
        .fine();
    assert!(std::fs::read(&out).unwrap() == std::fs::read(folder.join("disk.img")).unwrap());
}

#[test]
#[ignore = "needs libnbd-bin: make nbd-clients"]
fn nbdcopy_in_and_out() {
    let folder = place();
    let serving = start(folder.path(), &[]);
    let text = |name: &str| folder.path().join(name).display().to_string();
    // Four connections, each with its port; zeroes are sent as such.
    client(&["nbdcopy", "--connections=4", "--flush", &text("source"), &serving.uri("disk")]);
    client(&["nbdcopy", "--connections=4", &serving.uri("disk"), &text("copy")]);
    assert!(std::fs::read(text("copy")).unwrap() == content());
    let log = agent(["log", &text("j"), "--json"]).fine().json_lines();
    assert!(log.iter().any(|line| line["encoding"] == "zero") || log.len() < 4096, "zeroes are zero entries");
    serving.end("-TERM");
    end_is_primary(folder.path());
}

#[test]
#[ignore = "needs qemu-utils: make nbd-clients"]
fn qemu_img_converts_compares_and_checks() {
    let folder = place();
    let serving = start(folder.path(), &[]);
    let text = |name: &str| folder.path().join(name).display().to_string();
    client(&["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", &text("source"), &serving.uri("disk")]);
    client(&["qemu-img", "compare", "-f", "raw", "-F", "raw", &text("source"), &serving.uri("disk")]);
    serving.end("-TERM");
    end_is_primary(folder.path());
}

#[test]
#[ignore = "needs fio: make nbd-clients"]
fn fio_verifies_what_it_wrote() {
    for more in [&["--images", "after"][..], &["--durability", "strict"], &["--images", "both"]] {
        let folder = place();
        let serving = start(folder.path(), more);
        let uri = format!("--uri={}", serving.uri("disk"));
        client(&[
            "fio",
            "--name=v",
            "--ioengine=nbd",
            &uri,
            "--rw=randwrite",
            "--bsrange=512-64k",
            "--iodepth=16",
            "--size=32m",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--fsync=64",
            "--randrepeat=0",
        ]);
        serving.end("-TERM");
        end_is_primary(folder.path());
    }
}
