//! An NBD server: shows an [`Export`], a block device that we make, to whoever speaks the protocol (the Linux
//! kernel, QEMU, libnbd).
//!
//! A connection goes through two files in turn: `handshake` (options, ends with an export chosen) and
//! `transmission` (requests, until it ends). Bytes and numbers of the protocol stand in `layout::nbd`; the limits
//! in [`Limits`] and in `limits`. Calls of an [`Export`] block; why there are threads and no async runtime is in
//! `docs/decisions/0050-nbd-server.md`.
//!
//! ```no_run
//! use std::{io, sync::Arc};
//! struct Blank;
//! impl nbd::Export for Blank {
//!     fn name(&self) -> &str {
//!         "blank"
//!     }
//!     fn bytes(&self) -> u64 {
//!         1 << 30
//!     }
//!     fn read(&self, buffer: &mut [u8], _offset: u64) -> io::Result<()> {
//!         buffer.fill(0);
//!         Ok(())
//!     }
//! }
//! let listener = nbd::Listener::unix("/run/blank.socket".as_ref())?;
//! let shutdown = nbd::Shutdown::new()?;
//! let exports: Vec<Arc<dyn nbd::Export>> = vec![Arc::new(Blank)];
//! nbd::serve(&[listener], &exports, &shutdown)?; // until someone calls `shutdown.request()`
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod connection;
mod execute;
mod export;
mod handshake;
mod input;
mod limits;
mod listener;
mod outbox;
mod reply;
mod request;
mod server;
mod tls;
mod transmission;
mod workers;

pub use connection::End;
pub use export::{BlockSizes, Event, Export, Exports, Extent};
pub use limits::{
    Limits, MAXIMUM_CONTEXTS, MAXIMUM_DESCRIPTORS, MAXIMUM_OPTIONS, MAXIMUM_OPTIONS_BYTES,
    MAXIMUM_OPTION_BYTES, MAXIMUM_REQUEST_BYTES, MAXIMUM_WORKERS,
};
pub use listener::{ListenError, Listener};
pub use server::{serve, serve_within, Served, Shutdown};
pub use tls::{Tls, TlsError};
