//! `host-agent serve`, or another server of it, in the background.

use crate::agent::program;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);

/// A server that runs until it is stopped.
pub struct Serving {
    child: Child,
    socket: PathBuf,
    said: Arc<Mutex<Vec<String>>>,
    listening: Vec<JoinHandle<()>>,
}

impl Serving {
    /// Serves `exports` (NAME=PRIMARY) with the journal `j` of a folder; with more arguments. Waits until clients may come.
    #[track_caller]
    pub fn start(folder: &Path, exports: &[&str], more: &[&str]) -> Self {
        let socket = folder.join("nbd.sock");
        let mut command = Command::new(program());
        command.current_dir(folder).args(["serve", "--journal", "j", "--socket"]).arg(&socket);
        for export in exports {
            command.args(["--export", export]);
        }
        command.args(more);
        let mut serving = Self::run(command, "serving ");
        serving.socket = socket;
        serving
    }

    /// Runs a command, and waits until it says `words`.
    #[track_caller]
    pub fn run(mut command: Command, words: &str) -> Self {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.expect("host-agent starts");
        let said = Arc::new(Mutex::new(Vec::new()));
        let (out, err) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
        let listening = vec![listen(out, &said), listen(err, &said)];
        let mut serving = Self { child, socket: PathBuf::new(), said, listening };
        serving.wait_for(words);
        serving
    }

    #[track_caller]
    fn wait_for(&mut self, words: &str) {
        let begun = Instant::now();
        while !self.said().contains(words) {
            let ended = self.child.try_wait().expect("it can be asked");
            assert!(
                ended.is_none() && begun.elapsed() < PATIENCE,
                "'{words}' was never said: {}",
                self.said()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Every line that it said so far.
    pub fn said(&self) -> String {
        self.said.lock().expect("nobody panics with it").join("\n")
    }

    /// The socket of its clients.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Where an export is.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    /// Its memory now, in bytes (VmRSS).
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("there is such a line");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") << 10
    }

    /// Sends it a signal, and waits until it has ended. Exit code, and every line that it said.
    #[track_caller]
    pub fn end(mut self, signal: &str) -> (Option<i32>, String) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().expect("kill runs").success());
        let code = self.child.wait().expect("it ends").code();
        for thread in self.listening.drain(..) {
            thread.join().expect("it has listened to the end");
        }
        let said = self.said();
        println!("--- the server said:\n{said}\n---");
        assert!(!said.contains("panicked"), "{said}");
        (code, said)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // After a failed test; gone already if it was stopped.
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) || std::thread::panicking() {
            println!("--- the server said:\n{}\n---", self.said());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn listen(stream: impl Read + Send + 'static, said: &Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    let said = Arc::clone(said);
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            said.lock().expect("nobody panics with it").push(line);
        }
    })
}
