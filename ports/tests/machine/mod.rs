//! A machine with disks in memory, whose power can fail: at the chosen write or sync, on all disks at once. What was not synced
//! by then may be there or not, sector by sector.
#![allow(dead_code)]

use journal::Storage;
use ports::primary::Primary;
use rand::Rng;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

const SECTOR: usize = 512;

/// What the disks of a machine share.
#[derive(Default)]
pub struct Machine {
    operations: AtomicUsize,
    crash_at: Mutex<Option<usize>>,
    crashed: AtomicBool,
}

impl Machine {
    pub fn crash_at(&self, operation: usize) {
        *self.crash_at.lock().unwrap() = Some(operation);
    }

    pub fn operations(&self) -> usize {
        self.operations.load(Ordering::SeqCst)
    }

    pub fn has_crashed(&self) -> bool {
        self.crashed.load(Ordering::SeqCst)
    }

    /// Counts an operation. True: the machine crashes in it.
    fn step(&self) -> io::Result<bool> {
        if self.has_crashed() {
            return Err(io::Error::other("the machine has crashed"));
        }
        let now = self.operations.fetch_add(1, Ordering::SeqCst);
        let crashes = self.crash_at.lock().unwrap().is_some_and(|at| now >= at);
        if crashes {
            self.crashed.store(true, Ordering::SeqCst);
        }
        Ok(crashes)
    }
}

#[derive(Default)]
struct Content {
    durable: Vec<u8>,
    current: Vec<u8>,
    /// Written and not synced, in order.
    unsynced: Vec<(usize, Vec<u8>)>,
    /// Writes here fail.
    bad: Option<std::ops::Range<usize>>,
    sync_fails: bool,
}

pub struct Disk {
    machine: Arc<Machine>,
    name: String,
    content: Mutex<Content>,
}

fn crashed() -> io::Error {
    io::Error::other("the machine crashes in this operation")
}

impl Disk {
    pub fn new(machine: &Arc<Machine>, name: &str, image: Vec<u8>) -> Arc<Self> {
        let content = Content { durable: image.clone(), current: image, ..Content::default() };
        Arc::new(Self { machine: Arc::clone(machine), name: name.to_owned(), content: Mutex::new(content) })
    }

    /// What a process sees that comes after this one, on a machine that went on.
    pub fn current(&self) -> Vec<u8> {
        self.content.lock().unwrap().current.clone()
    }

    /// What the disk holds after the power failed.
    pub fn after_power_cut(&self, random: &mut impl Rng) -> Vec<u8> {
        let content = self.content.lock().unwrap();
        let mut image = content.durable.clone();
        let mood = random.random_range(0..4);
        for (offset, bytes) in &content.unsynced {
            let luck: f64 = match (mood, random.random_range(0..4)) {
                (0, _) => 0.0,
                (1, _) => 1.0,
                (_, 0) => 0.0,
                (_, 1) => 1.0,
                _ => 0.5,
            };
            for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                if random.random_bool(luck) {
                    let at = offset + index * SECTOR;
                    image[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        image
    }

    pub fn bad(&self, range: Option<std::ops::Range<usize>>) {
        self.content.lock().unwrap().bad = range;
    }

    /// From now on syncs fail, and what they should have made durable is lost.
    pub fn sync_fails(&self) {
        self.content.lock().unwrap().sync_fails = true;
    }

    fn put(&self, bytes: &[u8], offset: usize, durable: bool) -> io::Result<()> {
        let mut content = self.content.lock().unwrap();
        let crashes = self.machine.step()?;
        if content.bad.as_ref().is_some_and(|bad| bad.start < offset + bytes.len() && offset < bad.end) {
            return Err(io::Error::from_raw_os_error(5));
        }
        content.current[offset..offset + bytes.len()].copy_from_slice(bytes);
        if durable && !crashes {
            // Of writes before it nothing comes over it any more.
            for (at, earlier) in &mut content.unsynced {
                let (from, to) = (offset.max(*at), (offset + bytes.len()).min(*at + earlier.len()));
                if from < to {
                    earlier[from - *at..to - *at].copy_from_slice(&bytes[from - offset..to - offset]);
                }
            }
            content.durable[offset..offset + bytes.len()].copy_from_slice(bytes);
        } else {
            content.unsynced.push((offset, bytes.to_vec()));
        }
        if crashes {
            return Err(crashed());
        }
        Ok(())
    }

    fn make_durable(&self) -> io::Result<()> {
        let mut content = self.content.lock().unwrap();
        if self.machine.step()? {
            return Err(crashed());
        }
        let unsynced = std::mem::take(&mut content.unsynced);
        if content.sync_fails {
            return Err(io::Error::from_raw_os_error(5));
        }
        for (offset, bytes) in unsynced {
            content.durable[offset..offset + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(())
    }

    fn get(&self, buffer: &mut [u8], offset: usize) -> usize {
        let content = self.content.lock().unwrap();
        let from = content.current.get(offset..).unwrap_or(&[]);
        let length = buffer.len().min(from.len());
        buffer[..length].copy_from_slice(&from[..length]);
        length
    }
}

/// As the journal and the dirty-region log see a disk.
impl Storage for Disk {
    fn name(&self) -> &str {
        &self.name
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.content.lock().unwrap().current.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        Ok(self.get(buffer, offset as usize))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.put(bytes, offset as usize, false).map(|()| bytes.len())
    }

    fn sync(&self) -> io::Result<()> {
        self.make_durable()
    }

    fn write_durable_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.put(bytes, offset as usize, true).map(|()| bytes.len())
    }
}

/// As software ports see a disk.
impl Primary for Disk {
    fn name(&self) -> &str {
        &self.name
    }

    fn bytes(&self) -> u64 {
        self.content.lock().unwrap().current.len() as u64
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        assert_eq!(self.get(buffer, offset as usize), buffer.len(), "reads are within the disk");
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.put(data, offset as usize, false)
    }

    fn zero_at(&self, offset: u64, bytes: u64, _punch: bool) -> io::Result<()> {
        self.put(&vec![0; bytes as usize], offset as usize, false)
    }

    fn sync(&self) -> io::Result<()> {
        self.make_durable()
    }
}
