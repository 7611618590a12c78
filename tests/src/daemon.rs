//! `host-agent daemon` in the background.

use crate::agent::{agent, program};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// No wait here takes that long, unless what is waited for never comes.
const PATIENCE: Duration = Duration::from_secs(120);

/// A daemon that runs until it is stopped.
pub struct Daemon {
    child: Child,
    journal: PathBuf,
    said: Arc<Mutex<Vec<String>>>,
    listening: Vec<JoinHandle<()>>,
}

/// What became of a daemon.
pub struct Ended {
    /// Exit code; `None`: killed by a signal.
    pub code: Option<i32>,
    /// Every line that it said, of standard output and standard error.
    pub said: String,
}

impl Daemon {
    /// Starts `host-agent daemon JOURNAL` with more arguments, and waits until it holds the journal.
    #[track_caller]
    pub fn start<S: AsRef<std::ffi::OsStr>>(journal: &Path, more: impl IntoIterator<Item = S>) -> Self {
        let mut child = Command::new(program())
            .arg("daemon")
            .arg(journal)
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("host-agent starts");
        let said = Arc::new(Mutex::new(Vec::new()));
        let (out, err) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
        let listening = vec![listen(out, &said), listen(err, &said)];
        let mut daemon = Self { child, journal: journal.to_owned(), said, listening };
        daemon.wait_for("holding");
        daemon
    }

    /// Waits until it says a line that contains `words`.
    #[track_caller]
    pub fn wait_for(&mut self, words: &str) {
        let begun = Instant::now();
        loop {
            let said = self.said.lock().expect("nobody panics with it").join("\n");
            if said.contains(words) {
                return;
            }
            let ended = self.child.try_wait().expect("it can be asked");
            assert!(ended.is_none() && begun.elapsed() < PATIENCE, "'{words}' was never said: {said}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What `host-agent status` tells.
    #[track_caller]
    pub fn status(&self) -> Value {
        let journal = self.journal.as_os_str();
        agent(["status".as_ref(), journal, "--json".as_ref()]).fine().json()
    }

    /// Waits until the status is as wanted; returns it.
    #[track_caller]
    pub fn wait_until(&self, mut wanted: impl FnMut(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let status = self.status();
            if wanted(&status) {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "it never came to be so: {status}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        let mut name = self.journal.clone().into_os_string();
        name.push(".sock");
        name.into()
    }

    /// Sends bytes to its socket, and nothing more. What comes back until it hangs up.
    #[track_caller]
    pub fn send(&self, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.socket()).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out can be set");
        // It may have heard enough before the end.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = String::new();
        let mut lines = BufReader::new(stream);
        // A reset behind the answer tells that it didn't read everything.
        while lines.read_line(&mut answer).is_ok_and(|read| read > 0) {}
        answer
    }

    /// Asks it to end, as a service manager does, and waits until it has.
    #[track_caller]
    pub fn stop(self) -> Ended {
        self.signal("-TERM");
        self.ended()
    }

    /// kill -9.
    #[track_caller]
    pub fn kill(self) -> Ended {
        self.signal("-KILL");
        self.ended()
    }

    /// Sends it a signal.
    #[track_caller]
    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().expect("kill runs").success());
    }

    #[track_caller]
    fn ended(mut self) -> Ended {
        let code = self.child.wait().expect("it ends").code();
        for thread in self.listening.drain(..) {
            thread.join().expect("it has listened to the end");
        }
        let said = self.said.lock().expect("nobody panics with it").join("\n");
        println!("--- the daemon said:\n{said}\n---");
        assert!(!said.contains("panicked"), "{said}");
        Ended { code, said }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // After a failed test; gone already if it was stopped.
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
