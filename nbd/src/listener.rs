//! The Unix socket that clients connect to: its file appears, belongs to the user alone, and goes away again.

use rustix::fs::{flock, FlockOperation};
use socket2::{Domain, SockAddr, Socket, Type};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// Two servers that begin at once take turns; each needs a moment only.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Why there is no listening socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another server answers there.
    #[error("{}: another server is listening on this socket; stop it or choose another path", path.display())]
    InUse {
        /// The socket's file.
        path: PathBuf,
    },
    /// The path is taken by something that isn't ours to remove.
    #[error("{}: exists and is not a socket; remove it or choose another path", path.display())]
    NotASocket {
        /// What is there.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    System {
        /// The file or directory concerned.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A listening Unix socket. Its file is removed when this is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    path: PathBuf,
    /// Device and inode of the file: another server's isn't removed.
    identity: (u64, u64),
}

impl Listener {
    /// Listens at `path`, for this user only (mode 0600). The file of a dead server is replaced; a live one, or
    /// any other file, is left alone and is an error.
    pub fn unix(path: &Path) -> Result<Self, ListenError> {
        let failed = |action| move |source| ListenError::System { path: path.to_owned(), action, source };
        let address = SockAddr::unix(path).map_err(failed("use the path (107 bytes at most)"))?;
        let _turn = lock_directory(path)?;
        remove_stale(path, &address)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed("make a socket"))?;
        socket.bind(&address).map_err(failed("bind"))?;
        // Nobody can connect before listen(), so the mode is in time.
        let prepare = || {
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
            // A client can vanish between poll() and accept().
            socket.set_nonblocking(true)?;
            socket.listen(BACKLOG)?;
            let metadata = fs::symlink_metadata(path)?;
            Ok((metadata.dev(), metadata.ino()))
        };
        match prepare() {
            Ok(identity) => Ok(Self { socket, path: path.to_owned(), identity }),
            Err(source) => {
                let _ = fs::remove_file(path);
                Err(failed("listen")(source))
            }
        }
    }

    /// The socket's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Held while the file is looked at and replaced: of two servers that begin at once, the second would remove
/// the socket that the first has just bound.
fn lock_directory(path: &Path) -> Result<fs::File, ListenError> {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let failed =
        |source| ListenError::System { path: directory.to_owned(), action: "lock the directory", source };
    let file = fs::File::open(directory).map_err(failed)?;
    let begin = Instant::now();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if begin.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => return Err(failed(error.into())),
        }
    }
}

/// Removes the file of a server that is dead; leaves everything else and says what it is.
fn remove_stale(path: &Path, address: &SockAddr) -> Result<(), ListenError> {
    let failed = |action| move |source| ListenError::System { path: path.to_owned(), action, source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at the file")(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed("make a socket"))?;
    // A server whose backlog is full would let a blocking probe wait.
    probe.set_nonblocking(true).map_err(failed("make a socket"))?;
    match probe.connect(address) {
        Ok(()) => Err(ListenError::InUse { path: path.to_owned() }),
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock => Err(ListenError::InUse { path: path.to_owned() }),
            io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(failed("remove the socket of a dead server"))
            }
            _ => Err(failed("see whether a server is listening")(error)),
        },
    }
}
