//! The command line: help that teaches, exit codes.

use system_tests::agent::agent;

#[test]
fn help_is_fine_and_teaches() {
    for command in ["replay", "log", "verify", "restore"] {
        let help = agent([command, "--help"]).fine().stdout;
        assert!(help.contains("Usage: host-agent"), "{help}");
    }
    assert!(agent(["replay", "--help"]).fine().stdout.contains("the gateware itself"));
    let help = agent(["--help"]).fine().stdout;
    assert!(help.contains("Exit codes: 0 fine, 1 what was asked failed, 2 misuse"), "{help}");
    assert!(agent(["restore", "--help"]).fine().stdout.contains("--at order:1234"));
    assert!(agent(["--version"]).fine().stdout.starts_with("host-agent "));
}

#[test]
fn misuse_is_exit_code_2() {
    let replay = ["replay", "--journal", "j", "--primary", "1.0=x"];
    let misuses: [&[&str]; 6] = [
        &["replay", "--capture", "4=x", "--primary", "1.0=y", "--journal", "j"],
        &["replay", "--capture", "0=x", "--primary", "1=y", "--journal", "j"],
        &["replay", "--capture", "0=x", "--primary", "1.0=y", "--journal", "j", "--create", "--size", "5Q"],
        &["log"],
        &["restore", "j", "--volume", "1.0"],
        &["restore", "j", "--volume", "1.0", "--base", "b", "--at", "noon", "--to", "o"],
    ];
    for misuse in misuses {
        agent(misuse).failed(2, &[]);
    }
    agent(replay.iter().chain(&["--capture", "0=x", "--capture", "0=y"])).failed(2, &["port 0 twice"]);
    assert_eq!(agent(["frobnicate"]).code, Some(2));
    assert_eq!(agent::<&str>([]).code, Some(2), "nothing at all shows the help");
}
