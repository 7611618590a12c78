//! A restore that is not finished: the image under a temporary name, and how far of it is durable.
//!
//! `.OUT.partial` is the image, `.OUT.partial.state` says of what and how far. An interrupted restore leaves both;
//! the same restore goes on from there, any other starts anew. *The same* means that every byte before that
//! place would come out the same: same journal, volume and moment, same map of pointers (so no answer has come in
//! since that changes it), and a base that nobody has touched. Over a primary that goes on changing it can't be
//! told, so there is no state, and nothing is kept.

use crate::error::Error;
use crate::open::sync_directory;
use layout::crc;
use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How far is noted after this many bytes at the earliest, if so much time has passed; each time the image is
/// made durable up to there.
const NOTE_BYTES: u64 = 32 << 20;
const NOTE_EVERY: Duration = Duration::from_millis(100);
/// And after this many bytes in any case: what lies in the page cache alone takes long to become durable.
const NOTE_BYTES_AT_MOST: u64 = 64 << 20;
/// Longest state that is read.
const STATE_BYTES: u64 = 4096;
const FIRST_LINE: &str = "chronoswitch restore 1";

/// See the module.
pub struct Unfinished {
    pub file: File,
    pub name: String,
    /// Bytes of the image, from the front, that are there already.
    pub done: u64,
    path: PathBuf,
    state: PathBuf,
    /// What is being made; `None`: nothing can be gone on with.
    what: Option<String>,
    noted: Instant,
    /// Keep what is there if this is dropped.
    keep: bool,
}

impl Unfinished {
    /// Takes up what an interrupted restore of the same has left, or begins. `what` names what is made, down to
    /// the last bit of it; `bytes` is its size.
    pub fn open(out: &Path, what: Option<String>, bytes: u64) -> Result<Self, Error> {
        let name = out.display().to_string();
        let last = out.file_name().ok_or_else(|| Error::Invalid(format!("{name}: not a file's name")))?;
        let named = |suffix: &str| {
            let mut text = OsString::from(".");
            text.push(last);
            text.push(suffix);
            out.with_file_name(text)
        };
        let (path, state) = (named(".partial"), named(".partial.state"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
            .open(&path)
            .map_err(|e| Error::io(&name, "creating it (under a temporary name)", e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Invalid(format!("{name}: another restore is making it")));
            }
            Err(TryLockError::Error(e)) => return Err(Error::io(&name, "locking it", e)),
        }
        let metadata = file.metadata().map_err(|e| Error::io(&name, "looking at it", e))?;
        // Between opening and locking another restore may have finished: then this file is the image that it made.
        let named = std::fs::symlink_metadata(&path);
        if !named.is_ok_and(|named| (named.dev(), named.ino()) == (metadata.dev(), metadata.ino())) {
            return Err(Error::Invalid(format!("{name}: another restore has just made it")));
        }
        if !metadata.is_file() {
            return Err(Error::Invalid(format!("{}: is no regular file; remove it", path.display())));
        }
        // Which file it is belongs to what it is: a state never goes with another file.
        let what = what.map(|what| format!("{what}\nfile {} {}", metadata.dev(), metadata.ino()));
        let done = match (&what, read(&state)) {
            (Some(what), Some((found, done))) if found == *what => done,
            _ => 0,
        };
        let done = if done <= bytes && done <= metadata.len() { done } else { 0 };
        let mut unfinished =
            Self { file, name, done, path, state, what, noted: Instant::now(), keep: done > 0 };
        unfinished.clear_behind(bytes)?;
        Ok(unfinished)
    }

    /// Behind what is durable there is one hole.
    fn clear_behind(&mut self, bytes: u64) -> Result<(), Error> {
        if self.done == 0 {
            // The state first, durably: it must not be taken for one of what is written now.
            match std::fs::remove_file(&self.state) {
                Ok(()) => sync_directory(&self.state)?,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io(&self.state.display().to_string(), "removing it", e)),
            }
        }
        let failed = |e| Error::io(&self.name, format!("giving it {bytes} bytes"), e);
        self.file.set_len(self.done).map_err(failed)?;
        self.file.set_len(bytes).map_err(failed)
    }

    /// Everything before `done` has been written. Now and then that is made durable and noted.
    pub fn note(&mut self, done: u64) -> Result<(), Error> {
        let Some(what) = &self.what else { return Ok(()) };
        let news = done - self.done;
        let soon = news < NOTE_BYTES || self.noted.elapsed() < NOTE_EVERY;
        if soon && news < NOTE_BYTES_AT_MOST {
            return Ok(());
        }
        // 1. The data. A crash before 2 leaves a state that says less.
        self.file.sync_data().map_err(|e| Error::io(&self.name, "making it durable (fdatasync)", e))?;
        // 2. That they are there.
        write(&self.state, what, done)?;
        (self.done, self.noted, self.keep) = (done, Instant::now(), true);
        Ok(())
    }

    /// Durable first, then the name: whoever sees the name sees the whole image.
    pub fn publish(mut self, out: &Path, force: bool) -> Result<(), Error> {
        use rustix::fs::{renameat_with, RenameFlags, CWD};
        self.file.sync_all().map_err(|e| Error::io(&self.name, "making it durable", e))?;
        let flags = if force { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        match renameat_with(CWD, &self.path, CWD, out, flags) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => return Err(Error::Exists { file: self.name.clone() }),
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) if !force => {
                std::fs::hard_link(&self.path, out)
                    .map_err(|e| Error::io(&self.name, "giving it its name", e))?;
            }
            Err(e) => return Err(Error::io(&self.name, "giving it its name", e.into())),
        }
        // Nothing has our name any more: what may be under it from now on is another's.
        self.keep = true;
        // A state without its file is worth nothing; a crash before it is gone does no harm.
        match std::fs::remove_file(&self.state) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(&self.state.display().to_string(), "removing it", e)),
        }
        sync_directory(out)
    }

    /// What is kept if it goes no further: its name, and how far it is.
    pub fn kept(&self) -> Option<(String, u64)> {
        self.keep.then(|| (self.path.display().to_string(), self.done))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        let _ = std::fs::remove_file(&self.state);
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What the state says, if it is whole. Whatever is wrong with it: then nothing can be gone on with.
fn read(path: &Path) -> Option<(String, u64)> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
    let mut text = String::new();
    file.take(STATE_BYTES).read_to_string(&mut text).ok()?;
    let (body, sum) = text.strip_suffix('\n')?.rsplit_once("\ncrc ")?;
    if u32::from_str_radix(sum, 16).ok()? != crc::crc32c(body.as_bytes()) {
        return None;
    }
    let body = body.strip_prefix(FIRST_LINE)?.strip_prefix('\n')?;
    let (what, done) = body.rsplit_once("\ndone ")?;
    Some((what.to_owned(), done.parse().ok()?))
}

/// Replaces the state, durably.
fn write(path: &Path, what: &str, done: u64) -> Result<(), Error> {
    let name = path.display().to_string();
    let body = format!("{FIRST_LINE}\n{what}\ndone {done}");
    let text = format!("{body}\ncrc {:08x}\n", crc::crc32c(body.as_bytes()));
    if text.len() as u64 > STATE_BYTES {
        return Err(Error::Invalid(format!("{name}: would be longer than {STATE_BYTES} bytes")));
    }
    let mut temporary = OsString::from(path.as_os_str());
    temporary.push(".new");
    let written = (|| {
        let mut file = File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    })();
    if let Err(e) = written {
        let _ = std::fs::remove_file(&temporary);
        return Err(Error::io(&name, "noting how far the image is", e));
    }
    sync_directory(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    const BYTES: u64 = 100 << 20;

    fn interrupted(out: &Path, what: &str) -> Unfinished {
        let mut unfinished = Unfinished::open(out, Some(what.to_owned()), BYTES).unwrap();
        assert_eq!(unfinished.done, 0);
        unfinished.file.write_all_at(&[7; 4096], 0).unwrap();
        unfinished.file.write_all_at(&[8; 4096], 90 << 20).unwrap();
        unfinished.noted -= NOTE_EVERY;
        unfinished.note(NOTE_BYTES).unwrap();
        assert_eq!(unfinished.kept().map(|(_, done)| done), Some(NOTE_BYTES));
        unfinished
    }

    fn byte(unfinished: &Unfinished, at: u64) -> u8 {
        let mut byte = [0];
        unfinished.file.read_exact_at(&mut byte, at).unwrap();
        byte[0]
    }

    #[test]
    fn the_same_goes_on_and_anything_else_starts_anew() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        drop(interrupted(&out, "a"));
        let again = Unfinished::open(&out, Some("a".into()), BYTES).unwrap();
        assert_eq!((again.done, byte(&again, 0), byte(&again, 90 << 20)), (NOTE_BYTES, 7, 0));
        // Two at once are not one.
        assert!(Unfinished::open(&out, Some("a".into()), BYTES)
            .err()
            .unwrap()
            .to_string()
            .contains("another restore"));
        drop(again);
        for (what, bytes) in [(Some("b"), BYTES), (None, BYTES), (Some("a"), NOTE_BYTES - 1)] {
            let other = Unfinished::open(&out, what.map(String::from), bytes).unwrap();
            assert_eq!((other.done, byte(&other, 0)), (0, 0));
            drop(other);
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing of it is kept");
            drop(interrupted(&out, "a"));
        }
        // A state that isn't whole, and a file that isn't the one, or was cut.
        let (state, partial) = (folder.path().join(".out.partial.state"), folder.path().join(".out.partial"));
        let whole = std::fs::read(&state).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&state, &bytes).unwrap();
            assert!(read(&state).is_none(), "byte {at}");
        }
        std::fs::write(&state, &whole).unwrap();
        assert!(read(&state).is_some());
        std::fs::copy(&partial, folder.path().join("copy")).unwrap();
        std::fs::rename(folder.path().join("copy"), &partial).unwrap();
        assert_eq!(Unfinished::open(&out, Some("a".into()), BYTES).unwrap().done, 0);
        drop(interrupted(&out, "a"));
        File::options().write(true).open(&partial).unwrap().set_len(NOTE_BYTES - 1).unwrap();
        assert_eq!(Unfinished::open(&out, Some("a".into()), BYTES).unwrap().done, 0);
        drop(interrupted(&out, "a"));
        let last = Unfinished::open(&out, Some("a".into()), BYTES).unwrap();
        assert_eq!(last.done, NOTE_BYTES);
        last.publish(&out, false).unwrap();
        let names: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["out"]);
    }
}
