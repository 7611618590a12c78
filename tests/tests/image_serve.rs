//! An image as a disk, as libnbd's and QEMU's clients see it.

use sha2::{Digest, Sha256};
use std::path::Path;
use system_tests::agent::agent;
use system_tests::model::{CaptureSet, Volume};
use system_tests::served::{client, Served};

fn digest(path: &Path) -> Vec<u8> {
    Sha256::digest(std::fs::read(path).unwrap()).to_vec()
}

#[test]
fn an_image_is_a_disk_and_what_is_written_on_it_touches_nothing_else() {
    let set = CaptureSet::open("small");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let text = |name: &str| path(name).display().to_string();
    agent(set.replay_arguments(folder.path(), "64M")).fine();
    let journal = text("journal");
    let log = agent(["log", &journal, "--json"]).fine().json_lines();
    let ordered = set.in_journal_order(&log);
    let (name, size) = set.volumes().into_iter().next().unwrap();
    let base = text(&format!("{name}.base"));
    let before = [digest(&path("journal")), digest(Path::new(&base))];

    let order = ordered.len() * 2 / 3;
    let mut model = Volume::new(&name, size);
    ordered[..order].iter().for_each(|write| model.apply(write));
    let at = format!("order:{order}");
    let arguments = ["--volume", &name, "--base", &base, "--at", &at];
    let served = Served::start(&[&[journal.as_str()], &arguments[..]].concat(), &path("socket"));
    assert!(served.greeting.contains(&format!("just after order:{order}")), "{}", served.greeting);
    let uri = served.uri.clone();
    // As libnbd and QEMU read it.
    client(&["nbdcopy", &uri, &text("copied")]);
    assert!(std::fs::read(path("copied")).unwrap() == model.bytes);
    client(&["qemu-img", "convert", "-f", "raw", "-O", "raw", &uri, &text("converted")]);
    assert!(std::fs::read(path("converted")).unwrap() == model.bytes);
    let info: serde_json::Value = serde_json::from_str(&client(&["nbdinfo", "--json", &uri])).unwrap();
    let export = &info["exports"][0];
    assert_eq!((&export["export-size"], &export["is_read_only"]), (&size.into(), &true.into()), "{info}");
    // Where the image differs from the base is told.
    let map = client(&["nbdinfo", "--map=chronoswitch:changed", "--json", &uri]);
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let base_bytes = std::fs::read(&base).unwrap();
    let mut end = 0;
    for extent in map.as_array().unwrap() {
        let (offset, bytes) = (extent["offset"].as_u64().unwrap(), extent["length"].as_u64().unwrap());
        assert_eq!(offset, end);
        end = offset + bytes;
        let range = offset as usize..end as usize;
        if extent["type"] == 0 {
            assert!(model.bytes[range.clone()] == base_bytes[range], "{extent} is the same as in the base");
        }
    }
    assert_eq!(end, size);
    assert!(map.as_array().unwrap().iter().any(|extent| extent["type"] == 1), "{map}");
    // A second server leaves the first alone.
    let socket = text("socket");
    agent([&["image", "serve", &journal], &arguments[..], &["--socket", &socket]].concat())
        .failed(1, &["socket", "another server"]);
    assert_eq!(served.stop(), Some(0));
    assert!(!path("socket").exists(), "the socket goes with the server");

    let here = text("");
    let writable = [&[journal.as_str()], &arguments[..], &["--writable", "--scratch", &here]].concat();
    let served = Served::start(&writable, &path("socket"));
    client(&["qemu-io", "-f", "raw", "-c", "write -P 7 1000 70000", "-c", "flush", &uri]);
    client(&["nbdcopy", &uri, &text("copied")]);
    model.bytes[1000..71_000].fill(7);
    assert!(std::fs::read(path("copied")).unwrap() == model.bytes, "what was written is read");
    assert_eq!(served.stop(), Some(0));
    assert!(
        [digest(&path("journal")), digest(Path::new(&base))] == before,
        "journal and base are as they were"
    );
    agent(["verify", &journal]).fine();
}

#[test]
fn what_cannot_be_served_is_refused_in_one_line() {
    let set = CaptureSet::open("small");
    let folder = tempfile::tempdir().unwrap();
    let text = |name: &str| folder.path().join(name).display().to_string();
    agent(set.replay_arguments(folder.path(), "64M")).fine();
    let (journal, base, image, socket) = (text("journal"), text("1.0.base"), text("1.0.img"), text("socket"));
    let serve = |more: &[&str]| agent([&["image", "serve", &journal, "--socket", &socket], more].concat());
    serve(&["--volume", "9.9", "--base", &base, "--at", "end"]).failed(1, &["no volume 9.9", "1.0, 1.1"]);
    serve(&["--volume", "1.0", "--base", &base, "--at", "order:99999"]).failed(1, &["order:99999"]);
    serve(&["--volume", "1.0", "--base", &text("none"), "--at", "end"]).failed(1, &["none", "No such file"]);
    // After-images alone can't be undone; at the end there is nothing to undo.
    serve(&["--volume", "1.0", "--primary", &image, "--at", "order:1"])
        .failed(1, &["no before-image", "--base"]);
    serve(&["--volume", "1.0", "--at", "end"]).failed(2, &[]);
    std::fs::write(folder.path().join("socket"), b"not a socket").unwrap();
    serve(&["--volume", "1.0", "--base", &base, "--at", "end"]).failed(1, &["not a socket"]);
    assert_eq!(std::fs::read(folder.path().join("socket")).unwrap(), b"not a socket");
}
