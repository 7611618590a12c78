//! Buffers that are used again: what the pieces of a rollback take anew costs more than filling it, in pages that the
//! kernel zeroes and takes away again while other threads run.

use std::sync::{Mutex, PoisonError};

/// As many as were in use at once; what waits for the disks is bounded, and so are they.
pub(super) struct Buffers {
    /// What each has room for.
    bytes: usize,
    free: Mutex<Vec<Vec<u8>>>,
}

impl Buffers {
    pub fn new(bytes: usize) -> Self {
        Self { bytes, free: Mutex::default() }
    }

    /// One of so many bytes, with anything in it.
    pub fn take(&self, bytes: usize) -> Vec<u8> {
        assert!(bytes <= self.bytes, "no piece is larger");
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut buffer = free.unwrap_or_else(|| Vec::with_capacity(self.bytes));
        buffer.resize(bytes, 0);
        buffer
    }

    /// Smaller ones, which weren't taken here, aren't kept.
    pub fn give_back(&self, buffer: Vec<u8>) {
        if buffer.capacity() >= self.bytes {
            self.free.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
        }
    }
}
