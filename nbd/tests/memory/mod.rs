//! Exports in memory that can be told to fail, wait or panic, and a server that shows them.
#![allow(dead_code)]

use nbd::{BlockSizes, Event, Export, Exports, Extent, Limits, Listener, Served, Shutdown};
use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub const SECTOR: usize = 512;
pub const CHANGED: &str = "chronoswitch:changed";

/// Closed until opened; counts who waits.
#[derive(Default)]
pub struct Gate {
    state: Mutex<(bool, usize)>,
    moved: Condvar,
}

impl Gate {
    pub fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.1 += 1;
        self.moved.notify_all();
        while !state.0 {
            state = self.moved.wait(state).unwrap();
        }
        state.1 -= 1;
    }

    pub fn open(&self) {
        self.state.lock().unwrap().0 = true;
        self.moved.notify_all();
    }

    pub fn waiting(&self) -> usize {
        self.state.lock().unwrap().1
    }
}

/// What happens to a read or write that begins at a certain offset.
#[derive(Clone)]
pub enum Fault {
    Error(fn() -> io::Error),
    Panic,
    Gate(Arc<Gate>),
}

pub struct Memory {
    pub name: String,
    pub read_only: bool,
    pub sizes: BlockSizes,
    pub sparse: bool,
    pub may_wait: bool,
    pub fast_zero: bool,
    pub original: Vec<u8>,
    pub data: RwLock<Vec<u8>>,
    /// What was there at the last flush.
    pub durable: RwLock<Vec<u8>>,
    pub faults: Mutex<HashMap<u64, Fault>>,
    /// Calls of `zero`: offset, bytes, punch, fast.
    pub zeroed: Mutex<Vec<(u64, u64, bool, bool)>>,
    pub reads: Mutex<usize>,
}

impl Memory {
    pub fn new(name: &str, data: Vec<u8>) -> Self {
        Self {
            name: name.into(),
            read_only: false,
            sizes: BlockSizes::default(),
            sparse: false,
            may_wait: false,
            fast_zero: true,
            original: data.clone(),
            durable: RwLock::new(data.clone()),
            data: RwLock::new(data),
            faults: Mutex::default(),
            zeroed: Mutex::default(),
            reads: Mutex::default(),
        }
    }

    pub fn fault(&self, offset: u64, fault: Fault) {
        self.faults.lock().unwrap().insert(offset, fault);
    }

    fn meet(&self, offset: u64) -> io::Result<()> {
        let fault = self.faults.lock().unwrap().get(&offset).cloned();
        match fault {
            None => Ok(()),
            Some(Fault::Error(make)) => Err(make()),
            Some(Fault::Panic) => panic!("told to panic"),
            Some(Fault::Gate(gate)) => {
                gate.pass();
                Ok(())
            }
        }
    }

    fn runs(&self, offset: u64, bytes: u64, flags: impl Fn(&[u8], &[u8]) -> u32) -> Vec<Extent> {
        let data = self.data.read().unwrap();
        let (mut at, end) = (offset as usize, (offset + bytes) as usize);
        let mut extents = Vec::new();
        while at < end {
            let next = ((at / SECTOR + 1) * SECTOR).min(data.len());
            let sector = at / SECTOR * SECTOR..next;
            extents.push(Extent {
                bytes: (next - at) as u64,
                flags: flags(&data[sector.clone()], &self.original[sector]),
            });
            at = next;
        }
        extents
    }
}

impl Export for Memory {
    fn name(&self) -> &str {
        &self.name
    }

    fn description(&self) -> String {
        format!("{} in memory", self.name)
    }

    fn bytes(&self) -> u64 {
        self.original.len() as u64
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn block_sizes(&self) -> BlockSizes {
        self.sizes
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        *self.reads.lock().unwrap() += 1;
        self.meet(offset)?;
        let begin = offset as usize;
        buffer.copy_from_slice(&self.data.read().unwrap()[begin..begin + buffer.len()]);
        Ok(())
    }

    fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        assert!(!self.read_only);
        self.meet(offset)?;
        let begin = offset as usize;
        self.data.write().unwrap()[begin..begin + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn zero(&self, offset: u64, bytes: u64, punch: bool, fast: bool) -> io::Result<()> {
        assert!(!self.read_only);
        self.zeroed.lock().unwrap().push((offset, bytes, punch, fast));
        if fast && !self.fast_zero {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.data.write().unwrap()[offset as usize..(offset + bytes) as usize].fill(0);
        Ok(())
    }

    fn trim(&self, offset: u64, bytes: u64) -> io::Result<()> {
        assert!(!self.read_only);
        self.data.write().unwrap()[offset as usize..(offset + bytes) as usize].fill(0);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let data = self.data.read().unwrap().clone();
        *self.durable.write().unwrap() = data;
        Ok(())
    }

    fn sparse(&self) -> bool {
        self.sparse
    }

    fn may_wait(&self) -> bool {
        self.may_wait
    }

    fn extents(&self, offset: u64, bytes: u64) -> io::Result<Vec<Extent>> {
        Ok(self.runs(offset, bytes, |now, _| if now.iter().all(|byte| *byte == 0) { 3 } else { 0 }))
    }

    fn contexts(&self) -> &[&str] {
        &[CHANGED]
    }

    fn context_extents(&self, context: &str, offset: u64, bytes: u64) -> io::Result<Vec<Extent>> {
        assert_eq!(context, CHANGED);
        Ok(self.runs(offset, bytes, |now, before| u32::from(now != before)))
    }
}

/// The exports, a name that is refused, and what was reported.
pub struct Shown {
    exports: Vec<Arc<dyn Export>>,
    pub events: Mutex<Vec<String>>,
}

impl Exports for Shown {
    fn list(&self) -> Vec<Arc<dyn Export>> {
        self.exports.clone()
    }

    fn find(&self, name: &str, connection: u64) -> io::Result<Arc<dyn Export>> {
        if name == "locked" {
            return Err(io::Error::other("that moment lies before the journal's first"));
        }
        assert_ne!(name, "panic", "told to panic");
        self.exports.find(name, connection)
    }

    fn report(&self, event: Event<'_>) {
        let text = match event {
            Event::Ended { end, .. } => format!("ended: {end}"),
            Event::Refused { connections } => format!("refused at {connections}"),
            other => format!("{other:?}"),
        };
        self.events.lock().unwrap().push(text);
    }
}

pub struct Server {
    pub path: PathBuf,
    pub shutdown: Shutdown,
    pub shown: Arc<Shown>,
    thread: Option<JoinHandle<io::Result<Served>>>,
    _directory: tempfile::TempDir,
}

impl Server {
    pub fn start(exports: &[&Arc<Memory>], limits: Limits) -> Self {
        Self::start_beside(exports, limits, None)
    }

    /// With a TCP port, too.
    pub fn start_beside(exports: &[&Arc<Memory>], limits: Limits, port: Option<Listener>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let mut listeners = vec![Listener::unix(&path).unwrap()];
        listeners.extend(port);
        let shutdown = Shutdown::new().unwrap();
        let exports = exports.iter().map(|export| Arc::clone(export) as Arc<dyn Export>).collect();
        let shown = Arc::new(Shown { exports, events: Mutex::default() });
        let thread = std::thread::spawn({
            let (shutdown, shown) = (shutdown.clone(), Arc::clone(&shown));
            move || nbd::serve_within(&listeners, &*shown, &shutdown, &limits)
        });
        Self { path, shutdown, shown, thread: Some(thread), _directory: directory }
    }

    pub fn of(export: &Arc<Memory>) -> Self {
        Self::start(&[export], Limits::default())
    }

    /// Stops and returns what it has served.
    pub fn stop(&mut self) -> Served {
        self.shutdown.request();
        self.thread.take().unwrap().join().unwrap().unwrap()
    }

    pub fn ended(&self, containing: &str) -> usize {
        let events = self.shown.events.lock().unwrap();
        events.iter().filter(|event| event.starts_with("ended") && event.contains(containing)).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.request();
        if let Some(thread) = self.thread.take() {
            if let Err(panic) = thread.join() {
                if !std::thread::panicking() {
                    std::panic::resume_unwind(panic);
                }
            }
        }
    }
}

/// Waits until it is so.
pub fn eventually(what: &str, so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !so() {
        assert!(begin.elapsed() < Duration::from_secs(20), "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The seed of a test: CHRONO_SEED, or a new one. It is printed.
pub fn seed() -> u64 {
    let given = std::env::var("CHRONO_SEED").ok().map(|text| text.parse().expect("CHRONO_SEED is a number"));
    let seed = given.unwrap_or_else(rand::random);
    println!("CHRONO_SEED={seed}");
    seed
}

/// How much more than usual: CHRONO_SEEDS.
pub fn seeds() -> u64 {
    std::env::var("CHRONO_SEEDS").ok().map_or(1, |text| text.parse().expect("CHRONO_SEEDS is a number"))
}
