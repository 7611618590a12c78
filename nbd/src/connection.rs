//! One client, from its first byte to its last.

use crate::handshake::{self, Outcome};
use crate::limits::Limits;
use crate::tls::Tls;
use crate::transmission;
use crate::{Event, Exports};
use socket2::Socket;
use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum End {
    /// The client said goodbye (DISC or ABORT).
    #[error("the client has disconnected")]
    Goodbye,
    /// The client closed, or the server is stopping.
    #[error("the connection was closed")]
    Closed,
    /// The client doesn't speak the protocol, or asks for more than it may.
    #[error("protocol violated: {0}")]
    Protocol(String),
    /// The handshake took too long.
    #[error("the handshake was not done in time")]
    TimedOut,
    /// TLS failed: no certificate that is taken, or something that isn't TLS.
    #[error("TLS: {0}")]
    Tls(String),
    /// The exports' own code has panicked outside of a request, or the server's.
    #[error("a thread of this connection has panicked")]
    Panicked,
    /// The socket failed.
    #[error("socket failed: {0}")]
    Socket(#[from] io::Error),
}

/// Serves a client until it ends; with `tls` nothing is done without it. A panic ends this connection and no other.
pub(crate) fn run(
    socket: &Arc<Socket>,
    tls: Option<&Tls>,
    number: u64,
    exports: &dyn Exports,
    limits: &Limits,
) -> End {
    catch_unwind(AssertUnwindSafe(|| serve(socket, tls, number, exports, limits))).unwrap_or(End::Panicked)
}

fn serve(
    socket: &Arc<Socket>,
    tls: Option<&Tls>,
    number: u64,
    exports: &dyn Exports,
    limits: &Limits,
) -> End {
    let (negotiated, stream) = match handshake::run(socket, tls, number, exports, limits) {
        Ok(Outcome::Transmission(negotiated, stream)) => (negotiated, stream),
        Ok(Outcome::Abort) => return End::Goodbye,
        Err(end) => return end,
    };
    exports.report(Event::Chosen { connection: number, export: negotiated.export.name() });
    let end = transmission::run(&stream.socket, &negotiated, limits);
    stream.end(end)
}
