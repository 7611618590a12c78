//! TLS under a connection, begun by STARTTLS.
//!
//! A thread of its own sits between the client's socket, where everything is encrypted, and one end of a socket pair; the
//! connection goes on at the pair's other end and knows of nothing. Why: `docs/decisions/0073-nbd-over-tcp-and-tls.md`.

use crate::limits::GRACE;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use socket2::{Domain, Socket, Type};
use std::io::{self, Read, Write};
use std::net;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Bytes in clear that wait for either side, at most; a record has 16 KiB.
const PIECE_BYTES: usize = 64 << 10;

/// Why certificates can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {what}", path.display())]
pub struct TlsError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub what: String,
}

/// A server's certificate, and whose clients it takes.
#[derive(Clone, Debug)]
pub struct Tls {
    config: Arc<ServerConfig>,
}

impl Tls {
    /// Reads `server-cert.pem` and `server-key.pem` from a folder, as nbdkit and QEMU have them. `verify_peer`: only clients
    /// with a certificate of `ca-cert.pem` are taken.
    pub fn from_folder(folder: &Path, verify_peer: bool) -> Result<Self, TlsError> {
        let (certificate, key, authority) =
            (folder.join("server-cert.pem"), folder.join("server-key.pem"), folder.join("ca-cert.pem"));
        let chain = certificates(&certificate)?;
        let private = PrivateKeyDer::from_pem_file(&key).map_err(|error| wrong(&key, error))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(folder, error))?;
        let builder = match verify_peer {
            false => builder.with_no_client_auth(),
            true => {
                let mut roots = RootCertStore::empty();
                for root in certificates(&authority)? {
                    roots.add(root).map_err(|error| wrong(&authority, error))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().map_err(|error| wrong(&authority, error))?)
            }
        };
        let config = builder
            .with_single_cert(chain, private)
            .map_err(|error| wrong(&certificate, format!("{error}, with the key of {}", key.display())))?;
        Ok(Self { config: Arc::new(config) })
    }

    /// Puts TLS under a connection whose client begins it now. Returns where it goes on in clear, and what carries it.
    pub(crate) fn begin(&self, outer: Arc<Socket>) -> io::Result<(Arc<Socket>, Carrier)> {
        let session = ServerConnection::new(Arc::clone(&self.config)).map_err(io::Error::other)?;
        let (here, there) = Socket::pair(Domain::UNIX, Type::STREAM, None)?;
        there.set_nonblocking(true)?;
        let here = Arc::new(here);
        let tunnel = Tunnel { session, outer: Arc::clone(&outer), inner: there };
        outer.set_nonblocking(true)?;
        let thread = thread::Builder::new().name("nbd tls".into()).spawn(move || tunnel.run())?;
        Ok((Arc::clone(&here), Carrier { inner: here, thread: Some(thread) }))
    }
}

fn wrong(path: &Path, what: impl std::fmt::Display) -> TlsError {
    TlsError { path: path.to_owned(), what: what.to_string() }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.map_err(|error| wrong(path, error))?;
    match found.is_empty() {
        true => Err(wrong(path, "there is no certificate in it")),
        false => Ok(found),
    }
}

/// What carries a connection's bytes through TLS. When it is dropped, what is on its way is sent, within a time.
pub(crate) struct Carrier {
    inner: Arc<Socket>,
    thread: Option<JoinHandle<Result<(), String>>>,
}

impl Carrier {
    /// Ends, and says what was wrong with TLS, if anything was.
    pub fn end(mut self) -> Result<(), String> {
        self.join()
    }

    fn join(&mut self) -> Result<(), String> {
        let _ = self.inner.shutdown(net::Shutdown::Both);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|_| Err("the thread that carries it has panicked".into()))
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        let _ = self.join();
    }
}

struct Tunnel {
    session: ServerConnection,
    outer: Arc<Socket>,
    inner: Socket,
}

/// Bytes on their way to one side.
#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    sent: usize,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.sent == self.bytes.len()
    }

    fn send(&mut self, socket: &Socket) -> io::Result<()> {
        while !self.is_empty() {
            match Quiet(socket).write(&self.bytes[self.sent..]) {
                Ok(sent) => self.sent += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.bytes.clear();
        self.sent = 0;
        Ok(())
    }
}

impl Tunnel {
    /// Until both sides have ended, or one is gone.
    fn run(mut self) -> Result<(), String> {
        let carried = self.carry();
        // Both sides hear of it.
        let _ = self.inner.shutdown(net::Shutdown::Both);
        let _ = self.outer.shutdown(net::Shutdown::Both);
        match carried {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(error.to_string()),
            // As without TLS: a client that has gone.
            _ => Ok(()),
        }
    }

    fn carry(&mut self) -> io::Result<()> {
        // What waits for the client is bounded by what is taken of the connection.
        self.session.set_buffer_limit(None);
        let mut clear = Pending::default();
        let mut scratch = vec![0; PIECE_BYTES];
        // Neither side sends any more: the client; the connection.
        let (mut client_ended, mut connection_ended, mut told) = (false, false, false);
        let mut deadline: Option<Instant> = None;
        loop {
            // What the client sent is given on before more is received.
            loop {
                if clear.send(&self.inner).is_err() {
                    // The connection has ended and takes nothing more; its last replies still go out.
                    clear = Pending::default();
                    client_ended = true;
                }
                if client_ended || !clear.is_empty() || !self.decrypt(&mut clear, &mut client_ended)? {
                    break;
                }
            }
            if client_ended && clear.is_empty() && !std::mem::replace(&mut told, true) {
                let _ = self.inner.shutdown(net::Shutdown::Write);
            }
            while self.session.wants_write() {
                match self.session.write_tls(&mut Quiet(&self.outer)) {
                    Ok(_) => {}
                    Err(error) if is_nothing(&error) => break,
                    Err(error) => return Err(error),
                }
            }
            if connection_ended && !self.session.wants_write() {
                return Ok(());
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let wanted = Wanted {
                from_client: !client_ended && clear.is_empty() && self.session.wants_read(),
                to_client: self.session.wants_write(),
                from_connection: !connection_ended
                    && !self.session.wants_write()
                    && !self.session.is_handshaking(),
                to_connection: !clear.is_empty(),
            };
            let ready = self.wait(&wanted, connection_ended, left)?;
            if ready.connection_gone && self.session.is_handshaking() {
                // It has been given up while TLS hasn't even begun.
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            if ready.connection_gone && deadline.is_none() {
                deadline = Some(Instant::now() + GRACE);
            }
            if ready.from_client {
                self.receive(&mut client_ended)?;
            }
            if ready.from_connection {
                match (&self.inner).read(&mut scratch) {
                    Ok(0) => {
                        connection_ended = true;
                        deadline.get_or_insert(Instant::now() + GRACE);
                        self.session.send_close_notify();
                    }
                    Ok(read) => self.session.writer().write_all(&scratch[..read])?,
                    Err(error) if is_nothing(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// What has come in clear, if anything has.
    fn decrypt(&mut self, clear: &mut Pending, client_ended: &mut bool) -> io::Result<bool> {
        clear.bytes.resize(PIECE_BYTES, 0);
        let read = match self.session.reader().read(&mut clear.bytes) {
            Ok(read) => {
                *client_ended |= read == 0;
                read
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            // It has gone without a word, as clients do.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                *client_ended = true;
                0
            }
            Err(error) => return Err(error),
        };
        clear.bytes.truncate(read);
        clear.sent = 0;
        Ok(read > 0)
    }

    fn receive(&mut self, client_ended: &mut bool) -> io::Result<()> {
        match self.session.read_tls(&mut &*self.outer) {
            Ok(0) => *client_ended = true,
            Ok(_) => {}
            Err(error) if is_nothing(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
        self.session.process_new_packets().map(drop).map_err(|error| {
            // The client hears why.
            let _ = self.session.write_tls(&mut Quiet(&self.outer));
            io::Error::new(io::ErrorKind::InvalidData, error.to_string())
        })
    }

    /// Waits until one of the sockets can go on.
    fn wait(&self, wanted: &Wanted, connection_ended: bool, left: Option<Duration>) -> io::Result<Ready> {
        let flag = |wanted: bool, flag: PollFlags| if wanted { flag } else { PollFlags::empty() };
        let client = flag(wanted.from_client, PollFlags::IN) | flag(wanted.to_client, PollFlags::OUT);
        let connection =
            flag(wanted.from_connection, PollFlags::IN) | flag(wanted.to_connection, PollFlags::OUT);
        let mut sockets = vec![PollFd::new(&*self.outer, client)];
        // Once it has hung up that would be told without end.
        if !connection.is_empty() || !connection_ended && left.is_none() {
            sockets.push(PollFd::new(&self.inner, connection));
        }
        let timeout =
            left.map(|left| Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ });
        match poll(&mut sockets, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Ready::default()),
            Err(error) => return Err(error.into()),
        }
        let client = sockets[0].revents();
        let connection = sockets.get(1).map_or(PollFlags::empty(), PollFd::revents);
        let gone = PollFlags::HUP | PollFlags::ERR;
        if client.contains(PollFlags::ERR) || (client.contains(PollFlags::HUP) && !wanted.from_client) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(Ready {
            from_client: wanted.from_client && client.intersects(PollFlags::IN | PollFlags::HUP),
            from_connection: wanted.from_connection && connection.intersects(PollFlags::IN | gone),
            connection_gone: connection.intersects(gone),
        })
    }
}

/// What a tunnel waits for.
struct Wanted {
    from_client: bool,
    to_client: bool,
    from_connection: bool,
    to_connection: bool,
}

/// What has come of it.
#[derive(Default)]
struct Ready {
    from_client: bool,
    from_connection: bool,
    connection_gone: bool,
}

/// Writes without the signal that writing to nobody is answered with.
struct Quiet<'a>(&'a Socket);

impl Write for Quiet<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send_with_flags(bytes, libc::MSG_NOSIGNAL)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn is_nothing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
