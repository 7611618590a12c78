//! What a client can take of the server, at most.

use std::time::Duration;

/// Largest READ or WRITE: what every client may rely on, so that no client has to ask.
pub const MAXIMUM_REQUEST_BYTES: u32 = layout::nbd::DEFAULT_MAXIMUM_PAYLOAD_BYTES;
/// Options of a handshake. libnbd needs about ten; nbdkit takes 32.
pub const MAXIMUM_OPTIONS: usize = 64;
/// Longest option that is looked at: an export name and a few queries of full length. Longer ones are skipped
/// and refused.
pub const MAXIMUM_OPTION_BYTES: usize = 4 * layout::nbd::MAXIMUM_STRING_BYTES;
/// Bytes of all options of a handshake, skipped ones included; beyond them the connection is closed.
pub const MAXIMUM_OPTIONS_BYTES: usize = 1 << 20;
/// Metadata contexts of a connection, `base:allocation` included.
pub const MAXIMUM_CONTEXTS: usize = 4;
/// Extents of one context in the reply to a BLOCK_STATUS; the client asks again for the rest.
pub const MAXIMUM_DESCRIPTORS: usize = 4096;
/// Threads of one connection that run requests, beside the one that receives them.
pub const MAXIMUM_WORKERS: usize = 16;

/// Chunks of one READ; a range more fragmented than that is sent as data.
pub(crate) const MAXIMUM_READ_CHUNKS: usize = 64;
/// A READ shorter than this doesn't ask for extents: the question would cost more than the bytes.
pub(crate) const SPARSE_READ_BYTES: u32 = 32 << 10;
/// Reply buffers up to this size are kept for the next reply.
pub(crate) const KEPT_BUFFER_BYTES: usize = 1 << 20;
/// How many are kept.
pub(crate) const KEPT_BUFFERS: usize = 16;
/// Bytes received at once: many small requests, or sixteen writes of 4 KiB and more.
pub(crate) const INPUT_BYTES: usize = 128 << 10;
/// The data of a write of so many bytes, or more, are received to where they stay, and aren't copied from the input.
pub(crate) const LARGE_BYTES: usize = 32 << 10;
/// While such come, so much of what follows is received with them: the next header, and little of its data.
pub(crate) const AHEAD_BYTES: usize = 4 << 10;
/// Replies made by the receiving thread are sent when they are this many bytes, at the latest.
pub(crate) const BATCH_BYTES: usize = 64 << 10;
/// A request up to this length may be run by the receiving thread itself.
pub(crate) const INLINE_BYTES: u32 = 128 << 10;
/// A request that takes longer shows that the export has to wait for something.
pub(crate) const SLOW: Duration = Duration::from_micros(100);
/// So many requests go to the workers after a slow one.
pub(crate) const REQUESTS_AFTER_SLOW: u32 = 64;
/// At shutdown: how long clients may take to fetch the last replies.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

/// Limits that depend on where the server stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once; one more is closed at once.
    pub connections: usize,
    /// Time for the whole handshake.
    pub handshake: Duration,
    /// Requests of a connection that are under way; the next one waits in the socket.
    pub requests: usize,
    /// Bytes of their payloads and replies. At least [`MAXIMUM_REQUEST_BYTES`] in effect: one request always goes.
    pub buffer_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            handshake: Duration::from_secs(30),
            requests: 64,
            buffer_bytes: MAXIMUM_REQUEST_BYTES as usize,
        }
    }
}
