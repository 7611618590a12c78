//! NBD clients: each connection is a source, with a port and a partial journal of its own.

use crate::path::SoftwarePorts;
use layout::nbd::allocation;
use nbd::{BlockSizes, Event, Export, Exports, Extent};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// First port of software ports; those of cards come before.
pub const FIRST_PORT: u8 = 128;
/// Software ports: as many clients can write at once.
pub const PORTS: u8 = 64;

/// A write that has room goes into memory and into the page cache: longer than this it takes only if primary's device is
/// behind. Less would be the scheduler's doing on a busy host, and other threads wouldn't be faster.
const PATIENCE: Duration = Duration::from_millis(10);

/// Lets a client's port be known before its first write.
pub trait Doorkeeper: Send + Sync {
    /// Makes `port` known to the journal, durably, and that `source` writes there from now on. Returns the source's index.
    fn enter(&self, port: u8, source: u64) -> io::Result<u16>;
    /// A line for the log.
    fn say(&self, line: &str);
}

/// All volumes, as a server shows them.
pub struct Devices {
    ports: Arc<SoftwarePorts>,
    door: Arc<dyn Doorkeeper>,
    free: Arc<Mutex<Vec<bool>>>,
    /// Of each volume.
    clients: Arc<Vec<AtomicUsize>>,
    /// Makes sources of different sessions differ: in the upper half of their numbers.
    session: u64,
    said: Mutex<Said>,
}

/// What bad clients do is said this often at most, or they would fill the log.
const SAY_EVERY: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Said {
    last: Option<Instant>,
    unsaid: u64,
}

impl Devices {
    /// The volumes of `ports`; sources are numbered under `session`.
    pub fn new(ports: Arc<SoftwarePorts>, door: Arc<dyn Doorkeeper>, session: u64) -> Self {
        let free = Arc::new(Mutex::new(vec![true; usize::from(PORTS)]));
        let clients = Arc::new(ports.volumes().iter().map(|_| AtomicUsize::new(0)).collect());
        Self { ports, door, free, clients, session, said: Mutex::default() }
    }

    /// A line for the log, unless there has just been one; then it is counted.
    fn say_seldom(&self, line: &str) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.last.is_some_and(|last| last.elapsed() < SAY_EVERY) {
            said.unsaid += 1;
            return;
        }
        said.last = Some(Instant::now());
        match std::mem::take(&mut said.unsaid) {
            0 => self.door.say(line),
            unsaid => self.door.say(&format!("{line} (and {unsaid} more of the kind, not said)")),
        }
    }

    /// Clients that are connected to a volume.
    pub fn clients(&self, volume: &str) -> usize {
        let volumes = self.ports.volumes().iter().zip(&*self.clients);
        volumes
            .filter(|(known, _)| known.name == volume)
            .map(|(_, count)| count.load(Ordering::Relaxed))
            .sum()
    }

    fn client(&self, volume: usize, connection: u64) -> Arc<dyn Export> {
        // Nobody is connected for a list.
        let counted = (connection > 0).then(|| Counted::new(&self.clients, volume));
        Arc::new(Client {
            _counted: counted,
            ports: Arc::clone(&self.ports),
            door: Arc::clone(&self.door),
            free: Arc::clone(&self.free),
            volume,
            source: self.session << 32 | (connection & u64::from(u32::MAX)),
            port: OnceLock::new(),
            entering: Mutex::default(),
        })
    }
}

impl Exports for Devices {
    fn list(&self) -> Vec<Arc<dyn Export>> {
        (0..self.ports.volumes().len()).map(|volume| self.client(volume, 0)).collect()
    }

    fn find(&self, name: &str, connection: u64) -> io::Result<Arc<dyn Export>> {
        // The first is the default.
        let volumes = self.ports.volumes();
        let found = volumes.iter().position(|volume| volume.name == name).or(name.is_empty().then_some(0));
        match found {
            Some(volume) => Ok(self.client(volume, connection)),
            None => Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no export {name:?}"))),
        }
    }

    fn report(&self, event: Event<'_>) {
        match event {
            Event::Refused { connections } => {
                self.say_seldom(&format!(
                    "a client was turned away: {connections} are connected, as many as may be"
                ));
            }
            Event::Ended { connection, end: end @ nbd::End::Panicked } => {
                self.door.say(&format!("client {connection}: {end}"));
            }
            Event::Ended { connection, end: end @ (nbd::End::Protocol(_) | nbd::End::Tls(_)) } => {
                self.say_seldom(&format!("client {connection}: {end}"));
            }
            Event::AcceptFailed { error } => self.door.say(&format!("no client can be taken in: {error}")),
            _ => {}
        }
    }
}

/// One of a volume's clients; no longer when it is dropped.
struct Counted {
    clients: Arc<Vec<AtomicUsize>>,
    volume: usize,
}

impl Counted {
    fn new(clients: &Arc<Vec<AtomicUsize>>, volume: usize) -> Self {
        clients[volume].fetch_add(1, Ordering::Relaxed);
        Self { clients: Arc::clone(clients), volume }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.clients[self.volume].fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection.
struct Client {
    _counted: Option<Counted>,
    ports: Arc<SoftwarePorts>,
    door: Arc<dyn Doorkeeper>,
    free: Arc<Mutex<Vec<bool>>>,
    volume: usize,
    source: u64,
    /// From the first write on.
    port: OnceLock<u8>,
    entering: Mutex<()>,
}

impl Client {
    fn port(&self) -> io::Result<u8> {
        if let Some(port) = self.port.get() {
            return Ok(*port);
        }
        let _turn = self.entering.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(port) = self.port.get() {
            return Ok(*port);
        }
        let place = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let place = free.iter().position(|free| *free);
            let place = place.ok_or_else(|| io::Error::other("as many clients write as there are ports"))?;
            free[place] = false;
            place
        };
        let port = FIRST_PORT + place as u8;
        // What the port's source before has written is its own: it goes down before the port changes hands.
        let entered = self.ports.drain().and_then(|()| self.door.enter(port, self.source));
        match entered {
            Ok(source) => {
                self.ports.open_port(port, source);
                let _ = self.port.set(port);
                Ok(port)
            }
            Err(error) => {
                self.free.lock().unwrap_or_else(PoisonError::into_inner)[place] = true;
                Err(error)
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(port) = self.port.get() {
            self.free.lock().unwrap_or_else(PoisonError::into_inner)[usize::from(port - FIRST_PORT)] = true;
        }
    }
}

impl Export for Client {
    fn name(&self) -> &str {
        &self.ports.volumes()[self.volume].name
    }

    fn description(&self) -> String {
        format!("every write is journaled; data: {}", self.ports.volumes()[self.volume].primary.name())
    }

    fn bytes(&self) -> u64 {
        self.ports.volumes()[self.volume].primary.bytes()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn block_sizes(&self) -> BlockSizes {
        BlockSizes { minimum: layout::SECTOR_BYTES as u32, ..BlockSizes::default() }
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.ports.read(self.volume, buffer, offset)
    }

    fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.ports.write(self.volume, self.port()?, data, offset)
    }

    fn buffer(&self, bytes: usize) -> Vec<u8> {
        self.ports.buffer(bytes)
    }

    fn write_owned(&self, data: Vec<u8>, offset: u64) -> io::Result<()> {
        self.ports.write_owned(self.volume, self.port()?, data, offset)
    }

    fn zero(&self, offset: u64, bytes: u64, punch: bool, fast: bool) -> io::Result<()> {
        if fast && !self.ports.volumes()[self.volume].primary.zeroes_fast() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.ports.zero(self.volume, self.port()?, offset, bytes, punch)
    }

    fn trim(&self, offset: u64, bytes: u64) -> io::Result<()> {
        // Zeroes, so that a moment is the same whenever it is looked at.
        self.ports.zero(self.volume, self.port()?, offset, bytes, true)
    }

    fn flush(&self) -> io::Result<()> {
        self.ports.flush(self.volume)
    }

    fn may_wait(&self) -> bool {
        self.ports.settings.writes_ahead()
    }

    fn write_waits(&self, bytes: u32) -> bool {
        // The first write takes the port, which waits for the journal.
        self.port.get().is_none_or(|port| !self.ports.has_room(*port, bytes as usize))
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }

    fn flush_waits(&self) -> bool {
        !self.ports.flushes_at_once()
    }

    fn extents(&self, offset: u64, bytes: u64) -> io::Result<Vec<Extent>> {
        let runs = self.ports.volumes()[self.volume].primary.extents(offset, bytes)?;
        let flags = |hole| if hole { allocation::HOLE | allocation::ZERO } else { 0 };
        Ok(runs.into_iter().map(|(bytes, hole)| Extent { bytes, flags: flags(hole) }).collect())
    }
}
