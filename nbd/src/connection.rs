//! One client, from its first byte to its last.

use crate::handshake::{self, Outcome};
use crate::limits::Limits;
use crate::transmission;
use crate::{Event, Exports};
use socket2::Socket;
use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};

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
    /// The exports' own code has panicked outside of a request, or the server's.
    #[error("a thread of this connection has panicked")]
    Panicked,
    /// The socket failed.
    #[error("socket failed: {0}")]
    Socket(#[from] io::Error),
}

/// Serves a client until it ends. A panic ends this connection and no other.
pub(crate) fn run(socket: &Socket, number: u64, exports: &dyn Exports, limits: &Limits) -> End {
    catch_unwind(AssertUnwindSafe(|| serve(socket, number, exports, limits))).unwrap_or(End::Panicked)
}

fn serve(socket: &Socket, number: u64, exports: &dyn Exports, limits: &Limits) -> End {
    let negotiated = match handshake::run(socket, number, exports, limits) {
        Ok(Outcome::Transmission(negotiated)) => negotiated,
        Ok(Outcome::Abort) => return End::Goodbye,
        Err(end) => return end,
    };
    exports.report(Event::Chosen { connection: number, export: negotiated.export.name() });
    transmission::run(socket, &negotiated, limits)
}
