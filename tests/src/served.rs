//! `host-agent image serve` in the background, and the clients that others wrote.

use crate::agent::program;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A server that runs until it is stopped.
pub struct Served {
    child: Child,
    /// `nbd+unix:///?socket=…`
    pub uri: String,
    /// The line that it began with.
    pub greeting: String,
}

impl Served {
    /// Starts `host-agent image serve` with these arguments and `--socket`, and waits until clients may come.
    #[track_caller]
    pub fn start(arguments: &[&str], socket: &Path) -> Self {
        Self::spawn(arguments, socket, Stdio::inherit())
    }

    /// The same, with standard error in a file.
    #[track_caller]
    pub fn start_with(arguments: &[&str], socket: &Path, errors: &Path) -> Self {
        Self::spawn(arguments, socket, std::fs::File::create(errors).expect("a file").into())
    }

    #[track_caller]
    fn spawn(arguments: &[&str], socket: &Path, errors: Stdio) -> Self {
        let mut child = Command::new(program())
            .args(["image", "serve"])
            .args(arguments)
            .arg("--socket")
            .arg(socket)
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .expect("host-agent starts");
        let mut greeting = String::new();
        let output = child.stdout.take().expect("it is piped");
        BufReader::new(output).read_line(&mut greeting).expect("it says something");
        assert!(greeting.starts_with("serving"), "{greeting}");
        Self { child, uri: format!("nbd+unix:///?socket={}", socket.display()), greeting }
    }

    /// Ends it as a service manager does. Its exit code.
    pub fn stop(mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(pid).status().expect("kill runs").success());
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // After a failed test; gone already if it was stopped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a client that must succeed. What it printed.
#[track_caller]
pub fn client(words: &[&str]) -> String {
    let output = Command::new(words[0]).args(&words[1..]).output();
    let output = output.unwrap_or_else(|e| panic!("{}: {e} (`make test` installs it)", words[0]));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{words:?}\n{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}
