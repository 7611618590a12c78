//! What can go wrong, said in one line to the one who has to do something about it.

use std::io;
use std::path::Path;

/// Why a command didn't do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The arguments can't be meant so.
    #[error("{0}")]
    Misuse(String),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] journal::Error),
    /// The journal, and what to do about it.
    #[error("{0}; {1}")]
    JournalHint(journal::Error, &'static str),
    /// The operating system refused something.
    #[error("{file}: {action}: {source}")]
    Io {
        /// The file.
        file: String,
        /// What was being done.
        action: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// A file isn't what it should be.
    #[error("{file}: {what}")]
    File {
        /// The file.
        file: String,
        /// What is wrong, where, and what to do.
        what: String,
    },
    /// The card didn't come up.
    #[error("bringing the card up: {0}")]
    BringUp(#[from] driver::BringUpError),
    /// The card failed.
    #[error("the card: {0}")]
    Card(#[from] driver::CardError),
    /// A port's ring holds what can't be.
    #[error("the card: {0}")]
    Ring(#[from] driver::RingError),
    /// The socket of an NBD server.
    #[error(transparent)]
    Listen(#[from] nbd::ListenError),
    /// Something else on the way from the card to the journal; the text says what.
    #[error("{0}")]
    Failed(String),
    /// Nobody reads standard output any more.
    #[error("standard output is closed")]
    ReaderGone,
}

impl Error {
    /// An I/O error at `path` while doing `action`.
    pub fn io(path: &Path, action: &'static str, source: io::Error) -> Self {
        Error::Io { file: path.display().to_string(), action, source }
    }

    /// An error of writing to standard output.
    pub fn output(source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::BrokenPipe => Error::ReaderGone,
            _ => Error::Io { file: "standard output".into(), action: "writing", source },
        }
    }
}
