//! A storage in memory that crashes and fails on demand.
#![allow(dead_code)]

use journal::Storage;
use rand::Rng;
use std::io;
use std::ops::Range;
use std::sync::Mutex;

/// What a device may tear a write at.
const SECTOR: usize = 512;

#[derive(Clone, Default)]
struct State {
    /// What is on the device for certain.
    durable: Vec<u8>,
    /// What reads see.
    current: Vec<u8>,
    /// Written and not yet synced.
    unsynced: Vec<(usize, Vec<u8>)>,
    /// Every range that was ever written.
    written: Vec<Range<usize>>,
    operations: usize,
    /// From this operation on nothing reaches the storage.
    crash_at: Option<usize>,
    /// This operation fails with this error, once.
    fail_at: Option<(usize, i32)>,
    /// Reads and writes do at most this much at once.
    at_most: Option<usize>,
    /// Reads that touch this range fail with this error.
    unreadable: Option<(Range<usize>, i32)>,
    /// Did one?
    met: bool,
}

pub struct FaultyStorage(Mutex<State>);

impl FaultyStorage {
    pub fn new(bytes: usize) -> Self {
        Self::from_image(vec![0; bytes])
    }

    pub fn from_image(image: Vec<u8>) -> Self {
        Self(Mutex::new(State { durable: image.clone(), current: image, ..State::default() }))
    }

    pub fn crash_at(&self, operation: usize) {
        self.0.lock().unwrap().crash_at = Some(operation);
    }

    pub fn fail_at(&self, operation: usize, errno: i32) {
        self.0.lock().unwrap().fail_at = Some((operation, errno));
    }

    pub fn at_most(&self, bytes: usize) {
        self.0.lock().unwrap().at_most = Some(bytes);
    }

    /// Reads that touch these bytes fail from now on, until they are written.
    pub fn unreadable(&self, range: Range<usize>, errno: i32) {
        let mut state = self.0.lock().unwrap();
        (state.unreadable, state.met) = (Some((range, errno)), false);
    }

    /// Everything can be read again. Did a read fail?
    pub fn readable(&self) -> bool {
        let mut state = self.0.lock().unwrap();
        state.unreadable = None;
        state.met
    }

    /// Writes and syncs so far.
    pub fn operations(&self) -> usize {
        self.0.lock().unwrap().operations
    }

    /// What a process sees that comes after this one, on a machine that went on.
    pub fn image(&self) -> Vec<u8> {
        self.0.lock().unwrap().current.clone()
    }

    pub fn written(&self) -> Vec<Range<usize>> {
        self.0.lock().unwrap().written.clone()
    }

    /// What a process sees when the last write stopped after so many of its sectors; `None`: it has fewer.
    pub fn image_torn(&self, sectors: usize) -> Option<Vec<u8>> {
        let state = self.0.lock().unwrap();
        let (last, earlier) = state.unsynced.split_last()?;
        let kept = sectors * SECTOR;
        if kept >= last.1.len() {
            return None;
        }
        let mut image = state.durable.clone();
        for (offset, bytes) in earlier {
            image[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        image[last.0..last.0 + kept].copy_from_slice(&last.1[..kept]);
        Some(image)
    }

    /// What the device holds after the power failed: of the writes that were not synced any may be
    /// there or not, and any of their sectors.
    pub fn image_after_power_failure(&self, rng: &mut impl Rng) -> Vec<u8> {
        let state = self.0.lock().unwrap();
        let mut image = state.durable.clone();
        for (offset, bytes) in &state.unsynced {
            let luck: f64 = match rng.random_range(0..4) {
                0 => 0.0,
                1 => 1.0,
                _ => 0.5,
            };
            for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                if rng.random_bool(luck) {
                    let at = offset + index * SECTOR;
                    image[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        image
    }
}

impl State {
    /// Counts an operation; the error it has to fail with, if it has to.
    fn operation(&mut self) -> io::Result<()> {
        let now = self.operations;
        self.operations += 1;
        if self.crash_at.is_some_and(|at| now > at) {
            return Err(io::Error::other("the machine has crashed"));
        }
        match self.fail_at {
            Some((at, errno)) if at == now => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(()),
        }
    }
}

impl Storage for FaultyStorage {
    fn name(&self) -> &str {
        "memory"
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().current.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.0.lock().unwrap();
        if let Some((bad, errno)) = &state.unreadable {
            if bad.start < offset as usize + buffer.len() && (offset as usize) < bad.end {
                let errno = *errno;
                state.met = true;
                return Err(io::Error::from_raw_os_error(errno));
            }
        }
        let from = state.current.get(offset as usize..).unwrap_or(&[]);
        let length = buffer.len().min(from.len()).min(state.at_most.unwrap_or(usize::MAX));
        buffer[..length].copy_from_slice(&from[..length]);
        Ok(length)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let mut state = self.0.lock().unwrap();
        let crashing = state.crash_at == Some(state.operations);
        state.operation()?;
        let length = bytes.len().min(state.at_most.unwrap_or(usize::MAX));
        let at = offset as usize;
        assert!(at + length <= state.current.len(), "nothing is written past the end");
        assert!(at.is_multiple_of(SECTOR) || state.at_most.is_some(), "writes are aligned");
        state.current[at..at + length].copy_from_slice(&bytes[..length]);
        if state.unreadable.as_ref().is_some_and(|(bad, _)| at <= bad.start && bad.end <= at + length) {
            // As a device does: what is written can be read.
            state.unreadable = None;
        }
        state.unsynced.push((at, bytes[..length].to_vec()));
        state.written.push(at..at + length);
        if crashing {
            return Err(io::Error::other("the machine crashes in this write"));
        }
        Ok(length)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        // A sync that the crash falls into has not promised anything.
        let crashing = state.crash_at == Some(state.operations);
        state.operation()?;
        if crashing {
            return Err(io::Error::other("the machine crashes in this sync"));
        }
        // What was written since the last sync, and nothing else, tells the two apart.
        for (at, bytes) in std::mem::take(&mut state.unsynced) {
            state.durable[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(())
    }

    /// Durable by itself; says nothing of the writes before it.
    fn write_durable_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let length = self.write_at(bytes, offset)?;
        let mut state = self.0.lock().unwrap();
        let written = state.unsynced.pop();
        if let Some((at, bytes)) = written {
            state.durable[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(length)
    }
}
