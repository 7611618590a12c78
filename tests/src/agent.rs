//! Runs `host-agent` as a user does.

use serde_json::Value;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The release build of `host-agent`, built now if need be: a debug build steps the gateware too slowly.
/// `HOST_AGENT` in the environment names another.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(named) = std::env::var_os("HOST_AGENT") {
            return named.into();
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["build", "--release", "--package", "host-agent", "--message-format", "json"])
            .current_dir(workspace())
            .output()
            .expect("cargo runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let messages = String::from_utf8_lossy(&output.stdout).into_owned();
        let built = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let executable = built
            .filter(|message| message["target"]["name"] == "host-agent")
            .find_map(|message| message["executable"].as_str().map(PathBuf::from));
        executable.expect("cargo says where it put host-agent")
    })
}

/// The root of the repository.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("tests/ lies in the repository").to_owned()
}

/// What a run of `host-agent` gave.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; `None`: killed by a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ran {
    /// It must have succeeded.
    #[track_caller]
    pub fn fine(self) -> Self {
        assert_eq!(self.code, Some(0), "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// It must have failed with `code` and one line on standard error that contains every one of `words`.
    #[track_caller]
    pub fn failed(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{}\n{}", self.stdout, self.stderr);
        let errors: Vec<_> = self.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "one line says what is wrong:\n{}", self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        for word in words {
            assert!(errors[0].contains(word), "'{word}' is missing in: {}", errors[0]);
        }
        self
    }

    /// Standard output, one JSON value a line.
    #[track_caller]
    pub fn json_lines(&self) -> Vec<Value> {
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        self.stdout.lines().map(parse).collect()
    }

    /// Standard output's last line as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        self.json_lines().pop().expect("there is a line of JSON")
    }
}

/// Runs `host-agent` with these arguments. Verilated cards are kept where other tests keep theirs.
pub fn agent<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Ran {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    Command::new(program())
        .env("CHRONO_VERILATED", target.join("verilated"))
        .args(arguments)
        .output()
        .expect("host-agent starts")
        .into()
}

/// Runs `host-agent` in a shell that may write no file beyond `blocks` of 512 bytes: a disk that is full.
pub fn agent_on_a_full_disk(blocks: u64, arguments: &[String]) -> Ran {
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    Command::new("sh")
        .args(["-c", &script])
        .arg(program())
        .args(arguments)
        .output()
        .expect("sh starts")
        .into()
}
