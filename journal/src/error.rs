//! What can go wrong with a journal, said to the one who has to do something about it.

use std::io;

/// An error of the journal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused something.
    #[error("{file}: {action}: {source}{}", advice(source))]
    Io {
        /// The file.
        file: String,
        /// What was being done, with offset and length where there are any.
        action: String,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// The file is no journal.
    #[error("{file}: not a Chronoswitch journal: {reason}")]
    Foreign {
        /// The file.
        file: String,
        /// How that shows.
        reason: String,
    },
    /// The file is of a version, or has features, that this program doesn't know.
    #[error("{file}: {what}; this program reads version {}", layout::journal_file::VERSION)]
    Version {
        /// The file.
        file: String,
        /// Version or feature that was found.
        what: String,
    },
    /// The file is shorter than its superblock says, or than it was when it was opened.
    #[error("{file}: truncated: it has {actual} bytes, and {expected} or more belong to it; put back what is missing, from the original or a copy")]
    Truncated {
        /// The file.
        file: String,
        /// Bytes that the superblock says, or up to where something was to be read.
        expected: u64,
        /// Bytes that are there.
        actual: u64,
    },
    /// Something that had been written is not what is there now.
    #[error("{file}: corrupt at offset {offset}: {what}")]
    Corrupt {
        /// The file.
        file: String,
        /// Byte offset of the damaged structure.
        offset: u64,
        /// What is damaged, and how that shows.
        what: String,
    },
    /// Somebody else has the journal open for writing.
    #[error("{file}: in use by another agent{}; stop it, or read beside it with log, verify or restore", .owner.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    Locked {
        /// The file.
        file: String,
        /// The other's process, where the system tells.
        owner: Option<u32>,
    },
    /// There is something under the name already.
    #[error("{file}: exists already")]
    Exists {
        /// The file.
        file: String,
    },
    /// The journal has no room. Nothing was damaged; the journal goes on once there is room.
    #[error("{file}: the journal is full: {free} of {total} segments free, {reserved} of them reserved")]
    Full {
        /// The file.
        file: String,
        /// Free segments.
        free: u32,
        /// Segments in all.
        total: u32,
        /// Free segments that entries may not take.
        reserved: u32,
        /// Records of the call that were taken, from the front.
        appended: usize,
    },
    /// Merging found no room for what it makes. Nothing was changed.
    #[error("{file}: no room to merge: {segments} free segments are not enough for one window")]
    MergeRoom {
        /// The file.
        file: String,
        /// Segments that could be had.
        segments: usize,
    },
    /// A record that was handed in is not what it should be. Nothing of the call was taken.
    #[error("record {index} of port {port} refused: {what}")]
    BadRecord {
        /// Place in the call.
        index: usize,
        /// The port it names.
        port: u8,
        /// What is wrong with it.
        what: String,
    },
    /// A write or sync failed earlier: nobody knows what reached the disk, so nothing more is
    /// written. Open the journal again.
    #[error("{file}: stopped after an earlier I/O error; open the journal again to go on")]
    Stopped {
        /// The file.
        file: String,
    },
    /// Something that was asked for can't be.
    #[error("{0}")]
    Invalid(String),
    /// The journal has no such volume.
    #[error("the journal has no volume {name}; it has {known}")]
    NoVolume {
        /// Name that was asked for.
        name: String,
        /// Names that there are.
        known: String,
    },
    /// A moment was asked for that the journal knows nothing of.
    #[error("no such moment: {0}")]
    NoMoment(String),
    /// What was being read has been given up for room.
    #[error("{file}: the image was revoked: the schedule had given up what it needs, and writes needed the room. Open it again, or a later moment")]
    Revoked {
        /// The journal.
        file: String,
    },
    /// A moment was asked for that lies inside a window that has been merged.
    #[error("no such moment: {asked} lies inside a window that was merged, from {} to {}; the nearest moments are order:{earlier} and order:{later}", crate::moment::rfc3339(*from), crate::moment::rfc3339(*to))]
    Merged {
        /// The moment as it was asked for.
        asked: String,
        /// Stamp behind which the window begins, ns.
        from: u64,
        /// Stamp of its end, ns.
        to: u64,
        /// The nearest order before that is a moment.
        earlier: u64,
        /// The nearest one behind.
        later: u64,
    },
    /// The image would be made across a gap in the journal.
    #[error("entries of port {port} between {from} and {to} are missing ({reason}); {}", good(*earlier, *from, *to))]
    Gap {
        /// Port whose entries are missing.
        port: u8,
        /// Last stamp that is complete, ns.
        from: u64,
        /// Stamp from which on it is complete again, ns.
        to: u64,
        /// Why.
        reason: String,
        /// It spoils earlier moments (made from primary), not later ones (made from a base).
        earlier: bool,
    },
    /// Undoing a rollback would discard writes.
    #[error("volume {volume}: {writes} writes came after the rollback, and undoing it would discard them")]
    Discards {
        /// Name of the volume.
        volume: String,
        /// How many.
        writes: u64,
    },
    /// A restore failed, and what it had made is kept.
    #[error("{error}; {bytes} bytes of the image are kept in {file}: the same command goes on from there, and removing it forgets them")]
    Unfinished {
        /// Why it failed.
        #[source]
        error: Box<Error>,
        /// Where the unfinished image lies.
        file: String,
        /// Bytes of it, from the front, that are durable.
        bytes: u64,
    },
    /// The owner rolled a base on, or made it the base, between two looks of a reader. Open the journal anew.
    #[error("{file}: the base went on, or became the base, while it was being opened; try again")]
    BaseMoved {
        /// The image.
        file: String,
    },
    /// The base image doesn't fit the volume.
    #[error("{file}: {what}")]
    Base {
        /// The image.
        file: String,
        /// What is wrong.
        what: String,
    },
}

impl Error {
    /// An I/O error at `file` while doing `action`.
    pub(crate) fn io(file: &str, action: impl Into<String>, source: io::Error) -> Self {
        Error::Io { file: file.to_owned(), action: action.into(), source }
    }

    /// Damage at `offset` of `file`.
    pub(crate) fn corrupt(file: &str, offset: u64, what: impl Into<String>) -> Self {
        Error::Corrupt { file: file.to_owned(), offset, what: what.into() }
    }

    /// Is it about damage in the file, rather than about what was asked?
    pub fn is_corruption(&self) -> bool {
        match self {
            Error::Unfinished { error, .. } => error.is_corruption(),
            _ => matches!(self, Error::Corrupt { .. } | Error::Truncated { .. }),
        }
    }
}

/// What to do about an error of the operating system, where that isn't plain.
fn advice(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EIO | libc::ENODATA | libc::EILSEQ) => {
            "; the device failed: the kernel's log says more (dmesg), and a copy of what can be read is due"
        }
        Some(libc::ENOSPC | libc::EDQUOT) => "; make room there, or take another place",
        Some(libc::EFBIG) => "; it may not grow so large there (ulimit -f, or the file system's limit)",
        Some(libc::EROFS) => "; it is mounted read-only, by choice or after an error (dmesg)",
        Some(libc::EPERM | libc::EACCES) => "; see to its permissions, and whether it has become read-only",
        _ => "",
    }
}

/// Which moments a gap leaves as good as ever.
fn good(earlier: bool, from: u64, to: u64) -> String {
    match earlier {
        true => format!("an image from before may be wrong. Ask for a moment from {to} on, or allow gaps"),
        false => format!("an image after that may be wrong. Ask for a moment up to {from}, or allow gaps"),
    }
}
