//! An image that is pointed anew while the journal is merged under it.
//!
//! An open image pins the segments that its map leads to, and what merging gives up there can't be used again. So the
//! same moment is opened anew when the journal has changed, and takes the old one's place: its pointers lead to what
//! the merged entries hold, the bytes are the same. Requests under way end on the old one; then its pins go.

use crate::error::Error;
use journal::image::{Backing, Image};
use journal::{JournalReader, Moment};
use std::collections::HashSet;
use std::mem::{discriminant, Discriminant};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// How often the journal is looked at: two reads of a block.
const LOOK: Duration = Duration::from_secs(1);
/// Opening takes at most such a part of the time.
const SHARE: u32 = 20;

/// What it was opened with.
pub struct Opened {
    /// The journal.
    pub journal: PathBuf,
    /// Name of the volume.
    pub volume: String,
    /// What it is made over: primary, or else a base.
    pub over_primary: bool,
    /// The file of that.
    pub backing: PathBuf,
    /// Gaps are crossed.
    pub allow_gaps: bool,
}

/// See the module.
pub struct Pointed {
    opened: Opened,
    now: RwLock<Arc<Image>>,
    turn: Mutex<Turn>,
}

/// Whoever opens the image anew, one at a time.
struct Turn {
    /// Not before: it took its time.
    not_before: Instant,
    /// The moment is gone for good: it is never tried again.
    is_last: bool,
    /// What has been said on standard error, once.
    said: HashSet<Discriminant<journal::Error>>,
}

impl Pointed {
    /// `image` is what was opened so.
    pub fn new(opened: Opened, image: Image) -> Self {
        let turn = Turn { not_before: Instant::now(), is_last: false, said: HashSet::new() };
        Self { opened, now: RwLock::new(Arc::new(image)), turn: Mutex::new(turn) }
    }

    /// The image as it is pointed now. Whoever holds it keeps what it pins.
    pub fn image(&self) -> Arc<Image> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads, from the image as it is pointed now.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), journal::Error> {
        let image = self.image();
        match image.read_at(buffer, offset) {
            Err(journal::Error::Revoked { .. }) if self.replaces(&image) => {
                self.image().read_at(buffer, offset).inspect_err(|error| self.say(error))
            }
            other => other.inspect_err(|error| self.say(error)),
        }
    }

    /// Looks at the journal, and points the image anew if it has changed.
    pub fn look(&self) {
        let image = self.image();
        let turn = self.turn();
        if turn.is_last || Instant::now() < turn.not_before {
            return;
        }
        drop(turn);
        // A journal that can't be read is told of where it is read.
        if matches!(image.is_current(), Ok(false)) {
            self.replaces(&image);
        }
    }

    /// Looks again and again, in a thread of its own, until the image is gone.
    pub fn keep_looking(this: &Arc<Self>) -> Result<(), Error> {
        let pointed = Arc::downgrade(this);
        let work = move || loop {
            std::thread::sleep(LOOK);
            match pointed.upgrade() {
                Some(pointed) => pointed.look(),
                None => return,
            }
        };
        let failed = |e| Error::Failed(format!("starting the thread that looks at the journal: {e}"));
        std::thread::Builder::new().name("re-pointing".into()).spawn(work).map(drop).map_err(failed)
    }

    /// Points the image anew. Is there another in place of `old`?
    fn replaces(&self, old: &Arc<Image>) -> bool {
        let mut turn = self.turn();
        if !Arc::ptr_eq(old, &self.image()) {
            // Another one has done it meanwhile.
            return true;
        }
        if turn.is_last {
            return false;
        }
        let begun = Instant::now();
        let opened = self.open(old);
        turn.not_before = Instant::now() + begun.elapsed() * SHARE;
        match opened {
            Ok(image) => {
                *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(image);
                // What is said about it later is news.
                turn.said.clear();
                true
            }
            Err(error) => {
                // Inside a window, or given up: that doesn't change any more.
                turn.is_last = matches!(error, journal::Error::Merged { .. } | journal::Error::NoMoment(_));
                if turn.said.insert(discriminant(&error)) {
                    eprintln!(
                        "note: the image of volume {} goes on from what it has open, which keeps room in the journal from being used again, and may be revoked when that runs short: {error}",
                        self.opened.volume
                    );
                }
                false
            }
        }
    }

    fn open(&self, old: &Image) -> Result<Image, journal::Error> {
        let Opened { journal, volume, over_primary, backing, allow_gaps } = &self.opened;
        let backing = match over_primary {
            true => Backing::Primary(backing),
            false => Backing::Base(backing),
        };
        let at = Moment::Order(old.facts().order);
        let reader = JournalReader::open(journal)?;
        let image = Image::open(reader, volume, at, backing, *allow_gaps, &mut |_, _| {})?;
        if image.facts().order != old.facts().order || image.bytes() != old.bytes() {
            return Err(journal::Error::Invalid(format!(
                "opened anew it would be another image, just after order:{}",
                image.facts().order
            )));
        }
        Ok(image)
    }

    /// Clients see an I/O error; what it was stands here, once of each kind.
    fn say(&self, error: &journal::Error) {
        if self.turn().said.insert(discriminant(error)) {
            eprintln!("error: volume {}: clients get I/O errors: {error}", self.opened.volume);
        }
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
