//! One client, from its first byte to its last.

use crate::handshake::{self, Outcome};
use crate::limits::Limits;
use crate::transmission;
use crate::{Event, Exports};
use socket2::Socket;
use std::io;

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
    /// The socket failed.
    #[error("socket failed: {0}")]
    Socket(#[from] io::Error),
}

/// Serves a client until it ends.
pub(crate) fn run(socket: &Socket, number: u64, exports: &dyn Exports, limits: &Limits) -> End {
    let negotiated = match handshake::run(socket, number, exports, limits) {
        Ok(Outcome::Transmission(negotiated)) => negotiated,
        Ok(Outcome::Abort) => return End::Goodbye,
        Err(end) => return end,
    };
    exports.report(Event::Chosen { connection: number, export: negotiated.export.name() });
    transmission::run(socket, &negotiated, limits)
}
