//! A network of its own for a test: links, a running `vblade`, and what arrives at it.

use ports::interface::{wait, Interface};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Says that this process is in a network namespace of its own.
const INSIDE: &str = "CHRONO_NETWORK";

/// Runs `test`, which is the test of that name in this program, in a network namespace of its own. Where that isn't allowed
/// it says so, and the test is skipped.
#[track_caller]
pub fn in_own_network(name: &str, test: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        // Or the kernel's own frames are among those that are counted. Where there is no IPv6 there are none.
        for which in ["all", "default"] {
            let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1");
        }
        return test();
    }
    let allowed = Command::new("unshare").args(["--net", "true"]).stderr(Stdio::null()).status();
    if !allowed.is_ok_and(|status| status.success()) {
        println!("SKIPPED {name}: a network namespace needs root (unshare --net is not permitted)");
        return;
    }
    let program = std::env::current_exe().expect("this program has a name");
    let status = Command::new("unshare")
        .arg("--net")
        .arg(program)
        .args(["--exact", name, "--nocapture", "--include-ignored"])
        .env(INSIDE, "1")
        .status();
    assert!(status.expect("unshare runs").success(), "{name} failed in its network; see above");
}

/// Runs a program that must succeed.
#[track_caller]
pub fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e} (`make test` installs it)"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A cable: what goes in at one end comes out at the other.
#[track_caller]
pub fn cable(one: &str, other: &str, mtu: usize) {
    run("ip", &["link", "add", one, "type", "veth", "peer", "name", other]);
    for end in [one, other] {
        run("ip", &["link", "set", end, "mtu", &mtu.to_string(), "up"]);
    }
}

/// A running `vblade`.
pub struct Vblade(Child);

impl Vblade {
    /// Serves `file` as shelf.slot at `interface`.
    #[track_caller]
    pub fn start(shelf: u16, slot: u8, interface: &str, file: &Path) -> Self {
        let child = Command::new("/usr/sbin/vblade")
            .args([&shelf.to_string(), &slot.to_string(), interface])
            .arg(file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.expect("vblade starts (`make test` installs it)"))
    }
}

impl Vblade {
    /// Stops it, or lets it go on.
    #[track_caller]
    pub fn pause(&self, pause: bool) {
        run("kill", &[if pause { "-STOP" } else { "-CONT" }, &self.0.id().to_string()]);
    }
}

impl Drop for Vblade {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Takes down every frame that arrives at an interface, in order.
pub struct Recording {
    frames: Arc<Mutex<Vec<Vec<u8>>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Recording {
    /// Of that interface, from now on.
    #[track_caller]
    pub fn start(interface: &str) -> Self {
        let mut interface = Interface::open(interface).expect("the interface is there");
        let (frames, over) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (taken, ended) = (Arc::clone(&frames), Arc::clone(&over));
        let thread = std::thread::spawn(move || {
            let (nobody, _keep) = std::os::unix::net::UnixStream::pair().expect("a pair of sockets");
            let mut last = false;
            while !last {
                last = ended.load(Ordering::Acquire);
                wait(&[&interface], nobody.as_fd(), 20_000_000).expect("it can be waited for");
                let mut taken = taken.lock().expect("nobody panics with it");
                while interface.receive(64, |frame| taken.push(frame.to_vec())) > 0 {}
            }
            let traffic = interface.traffic();
            assert_eq!((traffic.ring_full, traffic.too_long), (0, 0), "the recording has holes");
        });
        Self { frames, over, thread: Some(thread) }
    }

    /// How many so far satisfy `which`.
    pub fn count(&self, which: impl Fn(&[u8]) -> bool) -> usize {
        self.frames.lock().expect("nobody panics with it").iter().filter(|frame| which(frame)).count()
    }

    /// All of them; it ends.
    #[track_caller]
    pub fn end(mut self) -> Vec<Vec<u8>> {
        self.over.store(true, Ordering::Release);
        self.thread.take().expect("it ends once").join().expect("the recording has no holes");
        std::mem::take(&mut self.frames.lock().expect("nobody panics with it"))
    }
}
