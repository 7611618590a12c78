//! `volume list` and `volume resize`, and what other commands say of a primary of another size.

use system_tests::agent::agent;
use system_tests::model::CaptureSet;

#[test]
fn a_volume_gets_another_size_and_earlier_moments_stay() {
    let set = CaptureSet::open("small");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let mut replay = set.replay_arguments(folder.path(), "64M");
    replay.extend(["--engine".to_owned(), "soft".to_owned()]);
    agent(replay).fine();
    let journal = path("journal");
    let (volume, bytes) = set.volumes().into_iter().next().unwrap();
    let (primary, base) = (path(&format!("{volume}.img")), path(&format!("{volume}.base")));
    let sectors = bytes / 512;
    let size_of = |line: &serde_json::Value| line["sectors"].as_u64();
    let listed = |journal: &str| {
        let lines = agent(["volume", "list", journal, "--json"]).fine().json_lines();
        lines.iter().find(|line| line["volume"] == volume.as_str()).and_then(size_of)
    };
    assert_eq!(listed(&journal), Some(sectors));
    let restore = |at: &str, out: &str| {
        let arguments = ["restore", &journal, "--volume", &volume, "--base", &base, "--at", at, "--to", out];
        agent(arguments.into_iter().chain(["--force"])).fine();
        std::fs::read(out).unwrap()
    };
    let before = restore("end", &path("before"));

    // Primary is cut by hand, too early: said to whoever goes on, and to the resize.
    let resize = |sectors: u64, more: &[&str]| {
        let sectors = sectors.to_string();
        let arguments = ["volume", "resize", &journal, "--volume", &volume, "--sectors", &sectors];
        agent(arguments.into_iter().chain(more.iter().copied()).map(str::to_owned).collect::<Vec<_>>())
    };
    let half = sectors / 2;
    let whole = std::fs::read(&primary).unwrap();
    let mut again = set.replay_arguments(folder.path(), "64M");
    again.retain(|argument| argument.as_str() != "--create");
    if let Some(at) = again.iter().position(|argument| argument.as_str() == "--size") {
        again.drain(at..at + 2);
    }
    std::fs::write(&primary, &whole[..half as usize * 512]).unwrap();
    agent(again).failed(1, &["not its image", "host-agent volume resize"]);
    std::fs::write(&primary, &whole).unwrap();

    resize(0, &[]).failed(1, &["not 0"]);
    let done = resize(half, &["--primary", &primary, "--json"]).fine().json_lines();
    assert_eq!((size_of(&done[0]), &done[0]["primary_fitted"]), (Some(half), &true.into()));
    assert_eq!(std::fs::metadata(&primary).unwrap().len(), half * 512);
    assert_eq!(listed(&journal), Some(half));
    assert!(restore("end", &path("half")) == before[..half as usize * 512]);
    resize(sectors, &["--primary", &primary]).fine();
    let mut zeroed = before.clone();
    zeroed[half as usize * 512..].fill(0);
    assert!(restore("end", &path("again")) == zeroed, "gained sectors hold zeroes");
    let log = agent(["log", &journal, "--json"]).fine().json_lines();
    let written = log.iter().filter_map(|line| line["order"].as_u64()).max().unwrap()
        - done[0]["entries"].as_u64().unwrap();
    assert!(restore(&format!("order:{written}"), &path("then")) == before, "earlier moments stay");
    agent(["verify", &journal]).fine();
}
