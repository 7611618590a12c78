//! What excludes each other: an ingest, a resync, a rollback. One runs at a time.
//!
//! Records of the owner's own (resync, rollback) are stamped behind everything that the journal has; ports that are
//! open would still deliver records stamped before those, and the journal would have to refuse them. And a rollback
//! writes primary, which nobody else may write meanwhile. So whoever wants to run takes the turn.

use crate::error::Error;
use crate::switch::SwitchStatus;
use crate::through_card::Way;
use indicatif::ProgressBar;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Software ports that are served, or a card that is drained, as long as the daemon runs. They have the ports open whenever nothing else has the turn.
pub trait Lodger: Send + Sync {
    /// Lets no more writes in, and ends the session in order. Called by who has the turn.
    fn step_aside(&self) -> Result<(), Error>;
    /// The turn is over: writes may go on. Doesn't wait for that.
    fn come_back(&self);
    /// Hands what has been answered to the journal. The last number that the arbiter gave, of that volume if there are several.
    fn drain(&self, volume: Option<&str>) -> Result<u64, Error>;
    /// Clients that are connected to a volume.
    fn clients(&self, volume: &str) -> usize;
    /// Is this volume served?
    fn serves(&self, volume: &str) -> bool;
    /// The way to primary as a source on a port, if there is one.
    fn way(&self) -> Option<&dyn Way> {
        None
    }
    /// How its interfaces are, if it switches frames.
    fn switch(&self) -> Option<SwitchStatus> {
        None
    }
}

/// What runs.
#[derive(Clone, Debug)]
pub struct Running {
    /// As a sentence goes on: "a replay of …".
    pub what: String,
    /// How far it is.
    pub bar: ProgressBar,
    /// It waits for room in the journal.
    pub waits_for_room: bool,
}

/// See the module.
#[derive(Clone, Default)]
pub struct Activity(Arc<Inside>);

#[derive(Default)]
struct Inside {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    running: Option<Running>,
    ending: bool,
    lodger: Option<Arc<dyn Lodger>>,
}

/// Why there is no turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoTurn {
    /// This runs.
    Busy(String),
    /// The daemon has been told to end.
    Ending,
}

impl Activity {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the turn, if nothing runs.
    pub fn begin(&self, what: &str, ended: impl FnOnce() + Send + 'static) -> Result<Turn, NoTurn> {
        let mut state = self.state();
        if state.ending {
            return Err(NoTurn::Ending);
        }
        if let Some(running) = &state.running {
            return Err(NoTurn::Busy(running.what.clone()));
        }
        let bar = ProgressBar::hidden();
        state.running = Some(Running { what: what.to_owned(), bar: bar.clone(), waits_for_room: false });
        Ok(Turn { activity: self.clone(), bar, ending: None, ended: Some(Box::new(ended)) })
    }

    /// Waits until something has ended, or the daemon is told to end; `limit` at most.
    pub fn wait(&self, limit: Duration) {
        let state = self.state();
        let busy = |state: &mut State| state.running.is_some() && !state.ending;
        drop(self.0.changed.wait_timeout_while(state, limit, busy));
    }

    /// What runs.
    pub fn running(&self) -> Option<Running> {
        self.state().running.clone()
    }

    /// What runs waits for room, or does so no longer.
    pub fn set_waits_for_room(&self, waits: bool) {
        if let Some(running) = &mut self.state().running {
            running.waits_for_room = waits;
        }
    }

    /// Nothing more is begun. Says whether that is new.
    pub fn end(&self) -> bool {
        let new = !std::mem::replace(&mut self.state().ending, true);
        self.0.changed.notify_all();
        new
    }

    /// Has the daemon been told to end?
    pub fn is_ending(&self) -> bool {
        self.state().ending
    }

    /// It has, and nothing runs any more.
    pub fn is_over(&self) -> bool {
        let state = self.state();
        state.ending && state.running.is_none() && state.lodger.is_none()
    }

    /// What is served; as long as there is something, nothing is over.
    pub fn set_lodger(&self, lodger: Option<Arc<dyn Lodger>>) {
        self.state().lodger = lodger;
    }

    /// What is served.
    pub fn lodger(&self) -> Option<Arc<dyn Lodger>> {
        self.state().lodger.clone()
    }

    /// Wakes who waits here.
    pub fn notify(&self) {
        let _state = self.state();
        self.0.changed.notify_all();
    }

    /// Waits until the daemon is told to end, or something changes; `limit` at most.
    pub fn wait_for_end(&self, limit: Duration) {
        let state = self.state();
        if !state.ending {
            drop(self.0.changed.wait_timeout(state, limit));
        }
    }

    /// Waits until `done`, of which [`Activity::notify`] tells; `limit` at most.
    pub fn wait_for(&self, done: &AtomicBool, limit: Duration) {
        let state = self.state();
        if !done.load(Ordering::Acquire) {
            drop(self.0.changed.wait_timeout(state, limit));
        }
    }
}

/// Held by what runs.
pub struct Turn {
    activity: Activity,
    /// How far it is.
    pub bar: ProgressBar,
    ending: Option<Box<dyn FnOnce() + Send>>,
    ended: Option<Box<dyn FnOnce() + Send>>,
}

impl Turn {
    /// Has this done when it is over, and before anything else can have the turn.
    pub fn before_the_next(mut self, ending: impl FnOnce() + Send + 'static) -> Self {
        self.ending = Some(Box::new(ending));
        self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // What stepped aside is called back first: later it would open its ports in somebody else's turn.
        if let Some(before) = self.ending.take() {
            before();
        }
        self.activity.state().running = None;
        self.activity.0.changed.notify_all();
        if let Some(ended) = self.ended.take() {
            ended();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;
    use std::time::Instant;

    #[test]
    fn one_runs_at_a_time_and_who_waits_is_woken() {
        let activity = Activity::default();
        let ended = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&ended);
        let turn = activity
            .begin("a replay", move || {
                count.fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
        assert_eq!(activity.begin("a resync", || ()).err(), Some(NoTurn::Busy("a replay".into())));
        let other = activity.clone();
        let waiting = std::thread::spawn(move || {
            let begun = Instant::now();
            other.wait(Duration::from_secs(60));
            (begun.elapsed(), other.begin("a resync", || ()).is_ok())
        });
        drop(turn);
        let (waited, got) = waiting.join().unwrap();
        assert!(waited < Duration::from_secs(30) && got);
        assert_eq!(ended.load(Ordering::Relaxed), 1);
        assert!(activity.end() && !activity.end() && activity.is_over());
        assert_eq!(activity.begin("a replay", || ()).err(), Some(NoTurn::Ending));
    }

    #[test]
    fn who_stepped_aside_is_called_back_before_anybody_else_has_the_turn() {
        let activity = Activity::default();
        let (looker, seen) = (activity.clone(), Arc::new(AtomicU32::new(0)));
        let (called, count) = (activity.begin("a rollback", || ()).unwrap(), Arc::clone(&seen));
        drop(called.before_the_next(move || {
            assert_eq!(looker.begin("a resize", || ()).err(), Some(NoTurn::Busy("a rollback".into())));
            count.fetch_add(1, Ordering::Relaxed);
        }));
        assert_eq!(seen.load(Ordering::Relaxed), 1);
        assert!(activity.begin("a resize", || ()).is_ok());
    }
}
