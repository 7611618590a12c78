//! Threads of a connection that run requests which may have to wait.

use crate::limits::MAXIMUM_WORKERS;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope};

/// A queue of jobs, and up to [`MAXIMUM_WORKERS`] threads, made when they are first needed.
pub(crate) struct Workers<J> {
    queue: Mutex<Queue<J>>,
    wake: Condvar,
}

struct Queue<J> {
    jobs: VecDeque<J>,
    threads: usize,
    idle: usize,
    closed: bool,
}

impl<J: Send> Workers<J> {
    pub fn new() -> Self {
        let queue = Queue { jobs: VecDeque::new(), threads: 0, idle: 0, closed: false };
        Self { queue: Mutex::new(queue), wake: Condvar::new() }
    }

    fn queue(&self) -> MutexGuard<'_, Queue<J>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a job run by a thread; here and now where the system has no thread left.
    pub fn run<'scope, F>(&'scope self, scope: &'scope Scope<'scope, '_>, job: J, run: F)
    where
        F: Fn(J) + Copy + Send + 'scope,
        J: 'scope,
    {
        let mut queue = self.queue();
        queue.jobs.push_back(job);
        if queue.jobs.len() <= queue.idle {
            drop(queue);
            self.wake.notify_one();
            return;
        }
        if queue.threads == MAXIMUM_WORKERS {
            return;
        }
        queue.threads += 1;
        drop(queue);
        let thread = thread::Builder::new().name("nbd worker".into());
        if thread.spawn_scoped(scope, move || self.work(run)).is_err() {
            let mut queue = self.queue();
            queue.threads -= 1;
            let job = if queue.threads == 0 { queue.jobs.pop_front() } else { None };
            drop(queue);
            if let Some(job) = job {
                run(job);
            }
        }
    }

    fn work(&self, run: impl Fn(J)) {
        let mut queue = self.queue();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                run(job);
                queue = self.queue();
            } else if queue.closed {
                return;
            } else {
                queue.idle += 1;
                queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
                queue.idle -= 1;
            }
        }
    }

    /// The threads end when the queue is empty.
    pub fn close(&self) {
        self.queue().closed = true;
        self.wake.notify_all();
    }
}
