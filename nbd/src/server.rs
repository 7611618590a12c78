//! Accepts clients, each on a thread of its own, until told to stop.

use crate::limits::{Limits, GRACE};
use crate::{connection, Event, Exports, Listener};
use rustix::event::{poll, PollFd, PollFlags};
use socket2::Socket;
use std::collections::HashMap;
use std::io::{self, Write};
use std::net;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long to wait after accept() failed: usually the process has too many files open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Stops a server, from any thread.
#[derive(Clone, Debug)]
pub struct Shutdown {
    /// A byte in it wakes the server and stays.
    wake: Arc<(UnixStream, UnixStream)>,
}

impl Shutdown {
    /// One that hasn't been requested.
    pub fn new() -> io::Result<Self> {
        let pair = UnixStream::pair()?;
        pair.0.set_nonblocking(true)?;
        Ok(Self { wake: Arc::new(pair) })
    }

    /// Lets every server that was given this stop: no more clients, requests received are answered, the rest is
    /// closed. Returns at once.
    pub fn request(&self) {
        // It fails only when the buffer is full of earlier requests.
        let _ = (&self.wake.0).write(&[1]);
    }
}

/// What a server has seen in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Clients accepted.
    pub connections: u64,
    /// Clients turned away because as many as allowed were connected.
    pub refused: u64,
}

/// Serves clients of all `listeners` until `shutdown` is requested, within the default [`Limits`].
///
/// Blocks. Returns when the last connection has ended, at most five seconds after the last call of an export
/// has returned.
pub fn serve(listeners: &[Listener], exports: &dyn Exports, shutdown: &Shutdown) -> io::Result<Served> {
    serve_within(listeners, exports, shutdown, &Limits::default())
}

/// [`serve`] within other limits.
pub fn serve_within(
    listeners: &[Listener],
    exports: &dyn Exports,
    shutdown: &Shutdown,
    limits: &Limits,
) -> io::Result<Served> {
    let open = Open::default();
    thread::scope(|scope| {
        let mut served = Served::default();
        let end = loop {
            let (socket, tls) = match next_client(listeners, shutdown) {
                Ok(Some((socket, listener))) => (socket, listener.tls()),
                Ok(None) => break Ok(()),
                Err(error) if retryable(&error) => {
                    exports.report(Event::AcceptFailed { error: &error });
                    thread::sleep(ACCEPT_PAUSE);
                    continue;
                }
                Err(error) => break Err(error),
            };
            let number = served.connections + 1;
            let Some(entry) = open.enter(number, socket, limits.connections) else {
                served.refused += 1;
                exports.report(Event::Refused { connections: limits.connections });
                continue;
            };
            served.connections = number;
            let thread = thread::Builder::new().name(format!("nbd {number}"));
            let started = thread.spawn_scoped(scope, move || {
                let end = connection::run(&entry.socket, tls, number, exports, limits);
                exports.report(Event::Ended { connection: number, end: &end });
            });
            if let Err(error) = started {
                exports.report(Event::AcceptFailed { error: &error });
            }
        };
        open.close();
        end.map(|()| served)
    })
}

/// The next client and where it came in, or none when shutdown was requested.
fn next_client<'a>(
    listeners: &'a [Listener],
    shutdown: &Shutdown,
) -> io::Result<Option<(Socket, &'a Listener)>> {
    loop {
        let mut ready = vec![PollFd::new(&shutdown.wake.1, PollFlags::IN)];
        ready.extend(listeners.iter().map(|listener| PollFd::new(listener.socket(), PollFlags::IN)));
        match poll(&mut ready, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        if !ready[0].revents().is_empty() {
            return Ok(None);
        }
        let waiting = ready[1..].iter().zip(listeners).filter(|(ready, _)| !ready.revents().is_empty());
        for (_, listener) in waiting {
            match listener.accept() {
                Ok(socket) => return Ok(Some((socket, listener))),
                // The client has gone again.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock
                            | io::ErrorKind::ConnectionAborted
                            | io::ErrorKind::Interrupted
                    ) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether accepting can succeed later: files or memory have run out.
fn retryable(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EPERM)
    )
}

/// The connections that are open, to be counted and to be closed.
#[derive(Default)]
struct Open {
    sockets: Mutex<HashMap<u64, Arc<Socket>>>,
    left: Condvar,
}

/// A connection's place among those open; dropped when it ends, also by a panic.
struct Entry<'a> {
    open: &'a Open,
    number: u64,
    socket: Arc<Socket>,
}

impl Open {
    fn sockets(&self) -> MutexGuard<'_, HashMap<u64, Arc<Socket>>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, number: u64, socket: Socket, limit: usize) -> Option<Entry<'_>> {
        let mut sockets = self.sockets();
        if sockets.len() >= limit {
            return None;
        }
        let socket = Arc::new(socket);
        sockets.insert(number, Arc::clone(&socket));
        Some(Entry { open: self, number, socket })
    }

    /// Nothing more is received; what was received is answered, within a time.
    fn close(&self) {
        let deadline = Instant::now() + GRACE;
        let mut sockets = self.sockets();
        for socket in sockets.values() {
            let _ = socket.shutdown(net::Shutdown::Read);
        }
        while !sockets.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            sockets = self.left.wait_timeout(sockets, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        for socket in sockets.values() {
            let _ = socket.shutdown(net::Shutdown::Both);
        }
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(net::Shutdown::Both);
        self.open.sockets().remove(&self.number);
        self.open.left.notify_all();
    }
}
