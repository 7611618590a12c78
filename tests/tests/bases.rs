//! `base` as a user has it, and files that are the wrong ones.

use std::path::Path;
use std::process::Command;
use system_tests::agent::{agent, program, Ran};
use system_tests::model::CaptureSet;

#[test]
fn a_base_is_made_taken_over_and_told_from_others() {
    let set = CaptureSet::open("small");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    agent(set.replay_arguments(folder.path(), "64M")).fine();
    let journal = path("journal");
    let (volume, size) = set.volumes().into_iter().next().unwrap();
    let (first, primary) = (path(&format!("{volume}.base")), path(&format!("{volume}.img")));
    let orders = agent(["log", &journal, "--json"]).fine().json_lines().len() as u64;
    let restore = |base: &str, at: &str| {
        let out = path("out");
        agent(["restore", &journal, "--volume", &volume, "--base", base, "--at", at, "--to", &out, "--force"])
    };
    let command = |command: &str, more: &[&str]| {
        let arguments = ["base", command, &journal, "--volume", &volume];
        agent(arguments.iter().chain(more))
    };

    // As it was: any image of the right size.
    assert!(command("info", &["--json"]).fine().json()["base_id"].is_null());
    restore(&first, "order:1").fine();
    let adopted = command("adopt", &["--base", &first, "--json"]).fine().json();
    assert_eq!((&adopted["order"], &adopted["first_order"]), (&0.into(), &0.into()));
    command("adopt", &["--base", &first]).fine();
    restore(&first, "order:1").fine();
    let copy = path("copy");
    std::fs::copy(&first, &copy).unwrap();
    restore(&copy, "order:1").failed(1, &["copy", "wrong base", "copy.chronoswitch"]);

    // A new one, of primary as it is now.
    let made = path("made");
    command("create", &["--primary", &primary, "--to", &made])
        .failed(1, &["has a base already", "order:", "--replace"]);
    command("create", &["--primary", &primary, "--to", &copy, "--replace"])
        .failed(1, &["copy", "exists already"]);
    command("create", &["--primary", &first, "--to", "/dev/null", "--replace"]).failed(1, &["/dev/null"]);
    let text = command("create", &["--primary", &primary, "--to", &made, "--replace"]).fine().stdout;
    assert!(text.contains(&format!("moments from order:{orders} ")) && text.contains("went with"), "{text}");
    assert!(std::fs::read(&made).unwrap() == std::fs::read(&primary).unwrap());
    restore(&made, "end").fine();
    assert!(std::fs::read(path("out")).unwrap() == std::fs::read(&primary).unwrap());
    restore(&made, "order:1").failed(1, &["no such moment: order:1", &format!("order:{orders} ")]);
    restore(&first, "end").failed(1, &["another base of volume"]);
    let told = command("info", &["--base", &made, "--json"]).fine().json();
    assert_eq!((&told["first_order"], &told["order"]), (&orders.into(), &orders.into()));
    let text = command("info", &["--base", &made]).fine().stdout;
    assert!(text.contains("is the base") && text.contains("can be made from it"), "{text}");
    command("info", &["--base", &first]).failed(1, &["wrong base"]);

    // The wrong primary: by its size at once, by its contents when it is looked at.
    let resync = |primary: &str| {
        agent([
            "resync",
            &journal,
            "--volume",
            &volume,
            "--primary",
            primary,
            "--base",
            &made,
            "--dry-run",
            "--json",
        ])
    };
    assert_eq!(resync(&primary).fine().json()["differed"], 0);
    let other: Vec<u8> = std::fs::read(&primary).unwrap().iter().map(|byte| byte ^ 0x55).collect();
    std::fs::write(path("other"), &other).unwrap();
    assert_eq!(resync(&path("other")).fine().json()["differed"], size);
    std::fs::write(path("other"), &other[..other.len() - 512]).unwrap();
    resync(&path("other")).failed(1, &["other", "not its primary"]);
    agent(["verify", &journal]).fine();
}

#[test]
fn paths_that_can_not_be_a_journal_are_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let name = |path: &Path| path.display().to_string();
    for path in [folder.path(), &fifo, Path::new("/dev/null")] {
        for command in
            [vec!["log"], vec!["verify"], vec!["size"], vec!["bookmark", "list"], vec!["base", "info"]]
        {
            let path = name(path);
            agent(command.into_iter().chain([path.as_str()]))
                .failed(1, &[&path, "a journal is a regular file"]);
        }
    }
    // Without permission: root has every one, so somebody else asks.
    let journal = folder.path().join("journal");
    std::fs::write(&journal, b"secret").unwrap();
    let mode = |path: &Path, mode: u32| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(&journal, 0o600);
    mode(folder.path(), 0o755);
    // The program itself has to be within reach of that user.
    let copy = folder.path().join("host-agent");
    std::fs::copy(program(), &copy).unwrap();
    mode(&copy, 0o755);
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"])
        .args([name(&copy), "log".into(), name(&journal)])
        .output();
    match output.map(Ran::from) {
        Ok(ran) if !ran.stderr.contains("setpriv") => {
            ran.failed(1, &[&name(&journal), "opening", "Permission denied"]);
        }
        other => println!("skipped: setpriv gives {other:?}"),
    }
}
