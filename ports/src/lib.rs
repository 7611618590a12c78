//! Software ports: block devices for NBD clients, every write journaled on its way to primary storage.
//!
//! A write goes through the modules so:
//!
//! | module | job |
//! |---|---|
//! | [`export`] | a client's connection: a source, and a port with a partial journal of its own |
//! | [`path`] | interlock, entry, primary, answer: `engine::block_port`, with locks and I/O around it |
//! | [`dirty_log`] | where primary may be ahead of the journal, durable before it is |
//! | [`marking`] | the same for AoE ports: whose frames don't wait for a disk |
//! | [`primary`] | the device, file, or part of one |
//! | `drain` | partial journals to the journal's owner, in order; what a FLUSH waits for |
//! | [`line`] | the same where a card's ports share the session: its thread takes the records |
//! | [`owner`] | the journal's owner, as it is seen from here |
//! | [`checkpoint`] | primary is made durable now and then, and the log cleared |
//! | [`recover`] | after an unclean stop: replay onto primary, resync from primary |
//! | [`clock`] | the host's clock and how wrong it may be; a card's, followed |
//! | [`interface`] | a network interface, for frames instead of requests: AoE ports |
//!
//! Why it is so: `docs/decisions/0070-*` and following.

pub mod checkpoint;
pub mod clock;
pub mod dirty_log;
mod drain;
pub mod export;
pub mod interface;
pub mod line;
pub mod marking;
pub mod owner;
pub mod path;
pub mod primary;
pub mod recover;
