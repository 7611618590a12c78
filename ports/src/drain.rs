//! Partial journals to the journal's owner: one at a time drains, so that what is handed over is in order.
//!
//! Whoever needs something durable drains it himself, and everybody who came meanwhile with it (group commit). Beside that
//! a thread drains periodically, and as soon as a partial journal is filled to a level.

use crate::owner::{Commit, Handed};
use crate::path::{SoftwarePorts, BATCH_BYTES};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// An owner who takes longer is waited for elsewhere than where a client's requests come in.
const SLOW: Duration = Duration::from_millis(50);
/// A full journal is tried again so often.
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// Who holds it drains.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    /// What the journal has: up to this number, and where that is, order and stamp.
    pub appended: (u64, (u64, u64)),
    /// The journal's note of what is durable isn't durable itself.
    note_behind: bool,
    /// How often something was made durable.
    commits: u64,
}

/// Of him who makes entries durable for others; when it is dropped, the next one may.
struct Lead<'a>(&'a SoftwarePorts);

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        *self.0.leading.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.0.led.notify_all();
    }
}

impl SoftwarePorts {
    /// Hands everything over up to the entry with this number, and what is ready behind it. With `sync` it is durable on
    /// return.
    pub(crate) fn commit(&self, number: u64, sync: bool) -> io::Result<()> {
        self.commit_unless(number, sync, || sync && self.durable.load(Ordering::Acquire) >= number)
    }

    /// Makes the entry with this number durable, together with all that others wait for: one of them does it for everybody
    /// who came while the one before was at it, and they all go on at once.
    pub(crate) fn commit_with_others(&self, number: u64) -> io::Result<()> {
        if let Some(done) = self.wait_in_line(true) {
            return done;
        }
        let is_durable = || self.durable.load(Ordering::Acquire) >= number;
        let mut leading = self.leading.lock().unwrap_or_else(PoisonError::into_inner);
        while *leading && !is_durable() {
            leading = self.led.wait(leading).unwrap_or_else(PoisonError::into_inner);
        }
        if is_durable() {
            return Ok(());
        }
        *leading = true;
        drop(leading);
        let _lead = Lead(self);
        // None of them is answered before it is durable, so nothing is gained by waiting for statuses.
        let last = self.lock().block.last_number();
        self.commit(last, true)
    }

    /// Hands over everything that there is, completions behind the last entry too, and makes it durable.
    pub(crate) fn commit_all(&self) -> io::Result<()> {
        let number = self.lock().block.last_number();
        self.commit_unless(number, true, || false)
    }

    fn commit_unless(&self, number: u64, sync: bool, is_done: impl Fn() -> bool) -> io::Result<()> {
        if let Some(done) = self.wait_in_line(sync) {
            return done;
        }
        if is_done() {
            return Ok(());
        }
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if is_done() {
            // Whoever had the turn took it along.
            return Ok(());
        }
        loop {
            self.check()?;
            let (mut batch, delivered) = {
                let mut state = self.lock();
                let batch = state.block.drain(number, BATCH_BYTES);
                let delivered = state.delivered(batch.delivered);
                (batch, delivered)
            };
            batch.records.iter_mut().for_each(|record| record.seal());
            let handed = Handed {
                records: batch.records,
                delivered,
                sync: if sync && !batch.more { Commit::Batches } else { Commit::No },
            };
            self.hand_over(&mut turn, batch.number, handed)?;
            if !batch.more {
                return Ok(());
            }
        }
    }

    fn hand_over(&self, turn: &mut Turn, number: u64, mut handed: Handed) -> io::Result<()> {
        let mut full: Option<Instant> = None;
        loop {
            let (sync, delivered) = (handed.sync, handed.delivered.clone());
            let begun = Instant::now();
            let outcome = self.owner.append(handed);
            let full_now = matches!(outcome.result, Err(journal::Error::Full { .. }));
            self.slow.store(full_now || begun.elapsed() > SLOW, Ordering::Relaxed);
            let mut state = self.lock();
            state.block.taken(&outcome.taken);
            self.tell(&state);
            drop(state);
            self.keep(outcome.taken.into_iter().map(|record| record.payload));
            let error = match outcome.result {
                Ok(end) => {
                    turn.appended = (number, end);
                    if sync != Commit::No {
                        self.durable.store(number, Ordering::Release);
                        turn.note_behind = sync == Commit::Batches;
                        turn.commits += 1;
                    }
                    if full.is_some() {
                        self.owner.full(None);
                    }
                    return Ok(());
                }
                Err(error) => error,
            };
            if !matches!(error, journal::Error::Full { .. }) || self.stopping.load(Ordering::Acquire) {
                self.fail(error.to_string());
                self.lock().block.taken(&outcome.rest);
                return Err(io::Error::other(error.to_string()));
            }
            self.owner.full(Some(full.get_or_insert_with(Instant::now).elapsed()));
            thread::sleep(TRY_AGAIN);
            handed = Handed { records: outcome.rest, delivered, sync };
        }
    }

    /// If nothing has been made durable since `commits`, what was is noted durably. How often something has.
    fn settle(&self, commits: u64) -> io::Result<u64> {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if turn.note_behind && turn.commits == commits {
            let number = turn.appended.0;
            self.hand_over(&mut turn, number, Handed { sync: Commit::Whole, ..Handed::default() })?;
        }
        Ok(turn.commits)
    }

    /// Hands over what has been answered so far.
    pub fn drain(&self) -> io::Result<()> {
        let number = self.lock().block.last_number();
        self.commit(number, false)
    }

    /// Drains from now on, on a thread of its own, until nobody else has the ports any more or they failed.
    pub fn keep_draining(ports: &Arc<Self>) -> io::Result<JoinHandle<()>> {
        let (weak, period) = (Arc::downgrade(ports), ports.settings.period);
        let work = move || {
            // What was there a period ago goes down even if it isn't answered.
            let (mut old, mut commits) = (0, 0);
            while let Some(ports) = weak.upgrade() {
                let state = ports.lock();
                let wait = ports.to_drain.wait_timeout_while(state, period, |state| !state.woken);
                let (mut state, waited) = wait.unwrap_or_else(PoisonError::into_inner);
                state.woken = false;
                let (fill, last) = (state.block.fill(), state.block.last_number());
                drop(state);
                if ports.failure().is_some() {
                    return;
                }
                if fill > 0 {
                    // It says so itself if it fails, by what writes get.
                    let _ = ports.commit(old, false);
                }
                if waited.timed_out() {
                    old = last;
                    commits = ports.settle(commits).unwrap_or(commits);
                }
            }
        };
        thread::Builder::new().name("drain".into()).spawn(work)
    }
}
