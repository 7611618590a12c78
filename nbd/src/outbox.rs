//! Replies on their way to the client, and what they and their requests may take of memory meanwhile.
//!
//! Whoever has a reply ready puts it in. If nobody is sending, it sends, and goes on until nothing is left: what
//! others put in meanwhile goes out with the next call of the system.

use crate::limits::{Limits, KEPT_BUFFERS, KEPT_BUFFER_BYTES};
use crate::reply::Replies;
use socket2::Socket;
use std::io::{self, IoSlice};
use std::mem;
use std::net;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Buffers in one call; Linux takes 1024.
const BUFFERS_A_CALL: usize = 64;

/// What requests take until their replies are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Charge {
    pub requests: usize,
    pub bytes: usize,
}

impl Charge {
    pub fn one(bytes: usize) -> Self {
        Self { requests: 1, bytes }
    }

    pub fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.bytes += other.bytes;
    }

    fn subtract(&mut self, other: Self) {
        self.requests = self.requests.checked_sub(other.requests).expect("released what was charged");
        self.bytes = self.bytes.checked_sub(other.bytes).expect("released what was charged");
    }
}

pub(crate) struct Outbox<'a> {
    socket: &'a Socket,
    limit: Charge,
    state: Mutex<State>,
    /// Something was released, or the client is gone.
    room: Condvar,
}

#[derive(Default)]
struct State {
    charged: Charge,
    waiting: Vec<(Replies, Charge)>,
    sending: bool,
    /// Threads that wait for room: without any, telling them is a call of the system for nothing, with each reply.
    wait_for_room: usize,
    /// The client is gone: replies are thrown away.
    broken: bool,
    /// Buffers to be used again.
    kept: Vec<Replies>,
}

impl<'a> Outbox<'a> {
    pub fn new(socket: &'a Socket, limits: &Limits) -> Self {
        let limit = Charge { requests: limits.requests, bytes: limits.buffer_bytes };
        Self { socket, limit, state: Mutex::default(), room: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fits(&self, state: &State, charge: Charge) -> bool {
        let charged = state.charged;
        charged.requests == 0
            || (charged.requests + charge.requests <= self.limit.requests
                && charged.bytes + charge.bytes <= self.limit.bytes)
    }

    /// Charges a request if there is room at once.
    pub fn try_charge(&self, charge: Charge) -> bool {
        let mut state = self.state();
        let fits = self.fits(&state, charge);
        if fits {
            state.charged.add(charge);
        }
        fits
    }

    /// Charges a request when there is room. False: the client is gone.
    pub fn charge(&self, charge: Charge) -> bool {
        let mut state = self.state();
        while !state.broken && !self.fits(&state, charge) {
            state.wait_for_room += 1;
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.wait_for_room -= 1;
        }
        state.charged.add(charge);
        !state.broken
    }

    /// Requests that are charged.
    pub fn requests(&self) -> usize {
        self.state().charged.requests
    }

    /// An empty buffer.
    pub fn buffer(&self) -> Replies {
        self.state().kept.pop().unwrap_or_default()
    }

    /// Sends replies, or leaves them to whoever is sending.
    pub fn put(&self, replies: Replies, charge: Charge) {
        let mut state = self.state();
        state.waiting.push((replies, charge));
        if state.sending {
            return;
        }
        state.sending = true;
        while !state.waiting.is_empty() {
            let batch = mem::take(&mut state.waiting);
            let broken = state.broken;
            drop(state);
            let sent = if broken { Ok(()) } else { send(self.socket, &batch) };
            state = self.state();
            if sent.is_err() {
                state.broken = true;
                // The thread that receives has to notice, too.
                let _ = self.socket.shutdown(net::Shutdown::Both);
            }
            for (mut replies, charge) in batch {
                state.charged.subtract(charge);
                if replies.capacity() <= KEPT_BUFFER_BYTES && state.kept.len() < KEPT_BUFFERS {
                    replies.truncate(0);
                    state.kept.push(replies);
                }
            }
            if state.wait_for_room > 0 {
                self.room.notify_all();
            }
        }
        state.sending = false;
    }
}

fn send(socket: &Socket, batch: &[(Replies, Charge)]) -> io::Result<()> {
    for part in batch.chunks(BUFFERS_A_CALL) {
        let mut slices: Vec<IoSlice<'_>> =
            part.iter().map(|(replies, _)| IoSlice::new(replies.bytes())).collect();
        let mut slices = slices.as_mut_slice();
        while !slices.is_empty() {
            match socket.send_vectored_with_flags(slices, libc::MSG_NOSIGNAL) {
                Ok(bytes) => IoSlice::advance_slices(&mut slices, bytes),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}
