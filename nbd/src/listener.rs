//! Where clients connect: a Unix socket, whose file appears, belongs to the user alone, and goes away again; or a TCP port,
//! this machine's own or with TLS.

use crate::tls::Tls;
use rustix::fs::{flock, FlockOperation};
use socket2::{Domain, SockAddr, Socket, Type};
use std::fs;
use std::io;
use std::net::SocketAddr;
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
    /// Others could read and write what is served.
    #[error("{address}: other machines reach this address, and everything would go unencrypted; give certificates for TLS, or listen on 127.0.0.1 or [::1]")]
    NeedsTls {
        /// Where.
        address: SocketAddr,
    },
    /// The system refused.
    #[error("{address}: cannot {action}: {source}")]
    Port {
        /// Where.
        address: SocketAddr,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
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

/// A listening socket. A Unix socket's file is removed when this is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Unix {
        path: PathBuf,
        /// Device and inode of the file: another server's isn't removed.
        identity: (u64, u64),
    },
    Tcp {
        address: SocketAddr,
        tls: Option<Tls>,
    },
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
            Ok(identity) => Ok(Self { socket, place: Place::Unix { path: path.to_owned(), identity } }),
            Err(source) => {
                let _ = fs::remove_file(path);
                Err(failed("listen")(source))
            }
        }
    }

    /// Listens at a TCP address; port 0: one that is free. With `tls` every client has to begin it. Without, only addresses
    /// of this machine alone are taken.
    pub fn tcp(address: SocketAddr, tls: Option<Tls>) -> Result<Self, ListenError> {
        if tls.is_none() && !address.ip().is_loopback() {
            return Err(ListenError::NeedsTls { address });
        }
        let failed = |action| move |source| ListenError::Port { address, action, source };
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::STREAM, None).map_err(failed("make a socket"))?;
        // Connections of a server before this one may still be ending.
        socket.set_reuse_address(true).map_err(failed("make a socket"))?;
        socket.set_nonblocking(true).map_err(failed("make a socket"))?;
        socket.bind(&address.into()).map_err(failed("bind"))?;
        socket.listen(BACKLOG).map_err(failed("listen"))?;
        let bound = socket.local_addr().map_err(failed("ask for the port"))?.as_socket();
        Ok(Self { socket, place: Place::Tcp { address: bound.unwrap_or(address), tls } })
    }

    /// The TCP address, with its port.
    pub fn address(&self) -> Option<SocketAddr> {
        match self.place {
            Place::Tcp { address, .. } => Some(address),
            Place::Unix { .. } => None,
        }
    }

    /// The Unix socket's file.
    pub fn path(&self) -> Option<&Path> {
        match &self.place {
            Place::Unix { path, .. } => Some(path),
            Place::Tcp { .. } => None,
        }
    }

    /// How a client names an export here.
    pub fn uri(&self, export: &str) -> String {
        match &self.place {
            Place::Unix { path, .. } => format!("nbd+unix:///{export}?socket={}", path.display()),
            Place::Tcp { address, tls: None } => format!("nbd://{address}/{export}"),
            Place::Tcp { address, tls: Some(_) } => format!("nbds://{address}/{export}"),
        }
    }

    pub(crate) fn tls(&self) -> Option<&Tls> {
        match &self.place {
            Place::Tcp { tls, .. } => tls.as_ref(),
            Place::Unix { .. } => None,
        }
    }

    pub(crate) fn accept(&self) -> io::Result<Socket> {
        let (socket, _) = self.socket.accept()?;
        if matches!(self.place, Place::Tcp { .. }) {
            // Replies are sent together where that is possible; none waits for more.
            socket.set_tcp_nodelay(true)?;
            // A client whose machine is gone would keep its connection for ever.
            socket.set_keepalive(true)?;
        }
        Ok(socket)
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
        let Place::Unix { path, identity } = &self.place else { return };
        let ours =
            fs::symlink_metadata(path).is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == *identity);
        if ours {
            let _ = fs::remove_file(path);
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
