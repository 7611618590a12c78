//! Moments by name, and what was written between two of them: `bookmark`, `diff`.

use system_tests::agent::agent;
use system_tests::model::CaptureSet;

#[test]
fn bookmarks_name_moments_and_diff_tells_what_was_written() {
    let set = CaptureSet::open("small");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    agent(set.replay_arguments(folder.path(), "64M")).fine();
    let journal = path("journal");
    let log = agent(["log", &journal, "--json"]).fine().json_lines();
    let (volume, size) = set.volumes().into_iter().next().unwrap();
    let base = path(&format!("{volume}.base"));
    let of_volume = |line: &&serde_json::Value| line["volume"] == volume.as_str();

    let middle = log.len() / 2;
    agent(["bookmark", "add", &journal, "middle", "--at", &format!("order:{middle}")]).fine();
    agent(["bookmark", "add", &journal, "the end"]).fine();
    agent(["bookmark", "add", &journal, "middle"]).failed(1, &["middle", "already"]);
    agent(["bookmark", "add", &journal, "far", "--at", "order:1000000"]).failed(1, &["order:1000000"]);
    let list = agent(["bookmark", "list", &journal, "--json"]).fine().json_lines();
    let named: Vec<_> = list.iter().map(|line| (line["name"].clone(), line["order"].clone())).collect();
    assert_eq!(named, [("middle".into(), middle.into()), ("the end".into(), log.len().into())]);
    agent(["verify", &journal]).fine();

    // A bookmark is the moment that it names.
    for (name, at) in [("bookmark:middle", format!("order:{middle}")), ("bookmark:the end", "end".into())] {
        let (by_name, by_order) = (path("by-name"), path("by-order"));
        for (at, out) in [(name, &by_name), (at.as_str(), &by_order)] {
            agent([
                "restore", &journal, "--volume", &volume, "--base", &base, "--at", at, "--to", out, "--force",
            ])
            .fine();
        }
        assert!(std::fs::read(by_name).unwrap() == std::fs::read(by_order).unwrap(), "{name}");
    }
    agent(["restore", &journal, "--volume", &volume, "--base", &base, "--at", "bookmark:x", "--to", "o"])
        .failed(1, &["no bookmark x", "middle, the end"]);

    // What differs between the two moments lies where diff says that something was written.
    let diff = agent(["diff", &journal, "--volume", &volume, "bookmark:middle", "--json"]).fine().json();
    let mut written = vec![false; size as usize / 512];
    for line in log[middle..].iter().filter(of_volume) {
        let lba = line["lba"].as_u64().unwrap() as usize;
        written[lba..lba + line["sectors"].as_u64().unwrap() as usize].fill(true);
    }
    let mut told = vec![false; written.len()];
    for extent in diff["extents"].as_array().unwrap() {
        let first = extent["offset"].as_u64().unwrap() as usize / 512;
        told[first..first + extent["bytes"].as_u64().unwrap() as usize / 512].fill(true);
    }
    assert!(told == written);
    let writes: u64 =
        diff["ports"].as_array().unwrap().iter().map(|port| port["writes"].as_u64().unwrap()).sum();
    assert_eq!(writes, log[middle..].iter().filter(of_volume).count() as u64);
    let text = agent(["diff", &journal, "--volume", &volume, "bookmark:middle", "end"]).fine().stdout;
    assert!(text.contains(&format!("from order:{middle}")) && text.contains("OFFSET"), "{text}");
    agent(["diff", &journal, "--volume", &volume, "end", "order:1"]).failed(1, &["earlier moment first"]);

    agent(["bookmark", "remove", &journal, "middle"]).fine();
    agent(["bookmark", "remove", &journal, "middle"]).failed(1, &["no bookmark middle"]);
    agent(["verify", &journal]).fine();
}

#[test]
fn primary_is_rolled_back_in_place_and_that_is_undone() {
    let set = CaptureSet::open("small");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    agent(set.replay_arguments(folder.path(), "64M")).fine();
    let journal = path("journal");
    let (volume, _) = set.volumes().into_iter().next().unwrap();
    let (base, primary, out) = (path(&format!("{volume}.base")), path(&format!("{volume}.img")), path("out"));
    let orders = agent(["log", &journal, "--json"]).fine().json_lines().len() as u64;
    let at = format!("order:{}", orders / 3);
    let restore = |more: &[&str]| {
        let arguments = ["restore", &journal, "--volume", &volume, "--base", &base];
        agent(arguments.iter().chain(more))
    };
    let in_place = ["--primary", &primary, "--in-place", "--json", "--at", &at];
    let undo = ["--primary", &primary, "--undo", "--json"];
    let now = std::fs::read(&primary).unwrap();
    restore(&["--at", &at, "--to", &out]).fine();
    let then = std::fs::read(&out).unwrap();
    assert!(now != then);

    restore(&undo).failed(1, &["never rolled back"]);
    let done = restore(&in_place).fine().json();
    assert_eq!(
        (&done["target_order"], &done["before_order"]),
        (&(orders / 3).into(), &orders.into()),
        "{done}"
    );
    assert!(done["written"].as_u64().unwrap() < now.len() as u64 / 2, "only what differs is written: {done}");
    assert!(std::fs::read(&primary).unwrap() == then, "primary is what it was");
    // The end of the journal is what primary has, and the moment before the rollback what it had.
    for (at, expected) in [("end".to_owned(), &then), (format!("order:{orders}"), &now)] {
        restore(&["--at", &at, "--to", &out, "--force"]).fine();
        assert!(&std::fs::read(&out).unwrap() == expected, "{at}");
    }
    assert_eq!(restore(&in_place).fine().json()["written"], 0, "nothing is left to do");
    restore(&undo).fine();
    restore(&undo).fine();
    assert!(std::fs::read(&primary).unwrap() == then, "undone twice: an undo is undone too");
    restore(&["--primary", &primary, "--in-place", "--at", &format!("order:{orders}")]).fine();
    assert!(std::fs::read(&primary).unwrap() == now, "brought back by its order");
    agent(["verify", &journal]).fine();
    restore(&["--primary", &primary, "--undo", "--in-place"]).failed(2, &[]);
    restore(&["--in-place", "--at", "end"]).failed(2, &[]);
}

#[test]
fn size_tells_what_a_retention_needs() {
    let set = CaptureSet::open("small");
    let folder = tempfile::tempdir().unwrap();
    agent(set.replay_arguments(folder.path(), "64M")).fine();
    let journal = folder.path().join("journal").display().to_string();
    let log = agent(["log", &journal, "--json"]).fine().json_lines();
    let stamp = |index: usize| log[index]["timestamp"].as_u64().unwrap();
    let seconds = (stamp(log.len() - 1) - stamp(0)) as f64 / 1e9;
    let size = agent(["size", &journal, "--keep", "1h", "--json"]).fine().json();
    let number = |name: &str| size[name].as_f64().unwrap_or_else(|| panic!("{name}: {size}"));
    let payload = log.iter().map(|line| line["sectors"].as_f64().unwrap() * 512.0).sum::<f64>();
    assert!(number("used") > payload && number("used") < 2.0 * payload + 1e6, "{size}");
    assert!((number("bytes_per_second") - number("used") / seconds).abs() < 1.0, "{size}");
    assert!(number("needed") > number("bytes_per_second") * 3600.0, "{size}");
    assert!(number("needed") < number("bytes_per_second") * 3600.0 + number("bytes"), "{size}");
    let lasts = number("free") / number("bytes_per_second");
    assert!((number("lasts_seconds") - lasts).abs() < 1.0, "{size}");
    let text = agent(["size", &journal, "--keep", "1d"]).fine().stdout;
    assert!(text.contains("free for entries") && text.contains("of every write need"), "{text}");
    agent(["size", &journal, "--keep", "soon"]).failed(2, &[]);
}
