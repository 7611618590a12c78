//! The dirty-region log for frames of AoE ports, whose thread can't wait for a disk: it asks, another thread marks, and
//! whatever waits for that is held by the switch meanwhile.
//!
//! Regions are cleared by the thread that asks, so that none is cleared between a look at it and the write that goes there.

use crate::dirty_log::DirtyLog;
use engine::switch::DirtyRegions;
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// See the module.
pub struct Marking {
    log: DirtyLog,
    /// Rows of the log by the index of their volume; `None`: its writes wait for nothing.
    rows: Vec<Option<usize>>,
    asked: Mutex<Asked>,
    changed: Condvar,
    /// Regions were marked, and who asked hasn't heard of it.
    news: AtomicBool,
}

#[derive(Default)]
struct Asked {
    /// Rows and regions that are to be marked, or are being.
    regions: BTreeSet<(usize, usize)>,
    /// Something was cleared, which the file doesn't say yet.
    save: bool,
    over: bool,
}

impl fmt::Debug for Marking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Marking").field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl Marking {
    /// In `log`, whose rows are those of these volumes (by index), in order.
    pub fn new(log: DirtyLog, volumes: &[u16]) -> Self {
        let mut rows = Vec::new();
        for (row, volume) in volumes.iter().enumerate() {
            rows.resize(rows.len().max(usize::from(*volume) + 1), None);
            rows[usize::from(*volume)] = Some(row);
        }
        Self { log, rows, asked: Mutex::default(), changed: Condvar::new(), news: AtomicBool::new(false) }
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn row(&self, volume: u16) -> Option<usize> {
        self.rows.get(usize::from(volume)).copied().flatten()
    }

    /// Clears regions to which no entry above `number` wrote: the journal has the entries up to there durably, and targets execute
    /// nothing of them any more. Called where writes are admitted.
    pub fn clear(&self, number: u64) {
        if self.log.clear(number) {
            self.asked().save = true;
            self.changed.notify_all();
        }
    }

    /// Waits until something is asked for, `limit` at most, and does it. Says whether regions were marked.
    pub fn work(&self, limit: Duration) -> io::Result<bool> {
        let asked = self.asked();
        let nothing = |asked: &mut Asked| asked.regions.is_empty() && !asked.save && !asked.over;
        let waited = self.changed.wait_timeout_while(asked, limit, nothing);
        let (mut asked, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let save = std::mem::take(&mut asked.save);
        let regions: Vec<(usize, usize)> = asked.regions.iter().copied().collect();
        drop(asked);
        // First what writes wait for.
        if !regions.is_empty() {
            self.log.ensure_regions(&regions)?;
            let mut asked = self.asked();
            for region in &regions {
                asked.regions.remove(region);
            }
            drop(asked);
            self.news.store(true, Ordering::Release);
        }
        if save {
            self.log.save()?;
        }
        Ok(!regions.is_empty())
    }

    /// Has something been marked since this was asked last?
    pub fn has_news(&self) -> bool {
        self.news.load(Ordering::Relaxed) && self.news.swap(false, Ordering::Acquire)
    }

    /// Marks from now on, on a thread of its own, until [`Marking::stop`]. `marked` is called whenever something was; the error
    /// with which it ends is the log's, and nothing is marked behind it.
    pub fn keep_marking(
        marking: &Arc<Self>,
        marked: impl Fn() + Send + 'static,
        failed: impl FnOnce(io::Error) + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let marking = Arc::clone(marking);
        let work = move || {
            while !marking.asked().over {
                match marking.work(Duration::from_secs(1)) {
                    Ok(true) => marked(),
                    Ok(false) => {}
                    Err(error) => return failed(error),
                }
            }
        };
        thread::Builder::new().name("dirty regions".into()).spawn(work)
    }

    /// Nothing is marked any more.
    pub fn stop(&self) {
        self.asked().over = true;
        self.changed.notify_all();
    }

    /// The session has ended in order, and the journal has everything that was let through, up to the entry with this number, durably.
    pub fn end(&self, number: u64) -> io::Result<()> {
        self.log.clear(number);
        self.log.end()
    }

    /// Regions that are marked.
    pub fn count(&self) -> usize {
        self.log.count()
    }
}

impl DirtyRegions for Marking {
    fn are_marked(&self, volume: u16, bytes: Range<u64>) -> bool {
        let Some(row) = self.row(volume) else { return true };
        let regions = self.log.regions(row, bytes);
        if regions.clone().all(|region| self.log.is_region_marked(row, region)) {
            return true;
        }
        let mut asked = self.asked();
        let before = asked.regions.len();
        asked.regions.extend(regions.map(|region| (row, region)));
        if asked.regions.len() > before {
            self.changed.notify_all();
        }
        false
    }

    fn touch(&self, volume: u16, bytes: Range<u64>, number: u64) {
        if let Some(row) = self.row(volume) {
            self.log.touch(row, bytes, number);
        }
    }
}
