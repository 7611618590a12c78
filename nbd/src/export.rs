//! What the server shows: an [`Export`] made elsewhere, and where a name leads.

use crate::End;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// A block device to be shown.
///
/// Calls may block and come from several threads at once, overlapping ranges included. They come only within
/// `bytes()`, aligned to the minimum block size, never empty; WRITE, ZERO and TRIM never to a read-only export.
/// An error reaches the client as the nearest NBD error with the error's text: permission → EPERM, no room →
/// ENOSPC, invalid input → EINVAL, all else → EIO. A panic is EIO.
pub trait Export: Send + Sync {
    /// What a client asks for. At most 4096 bytes.
    fn name(&self) -> &str;

    /// For people; may be empty.
    fn description(&self) -> String {
        String::new()
    }

    /// Size in bytes; a multiple of the minimum block size. Asked once a connection.
    fn bytes(&self) -> u64;

    /// Whether writes are refused. Asked once a connection.
    fn read_only(&self) -> bool {
        true
    }

    /// See [`BlockSizes`]. Asked once a connection.
    fn block_sizes(&self) -> BlockSizes {
        BlockSizes::default()
    }

    /// Fills the whole buffer, or fails. What the buffer holds before is undefined.
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `data`. It needn't be durable: a client that needs that has [`Export::flush`] called.
    fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let _ = (data, offset);
        Err(io::ErrorKind::PermissionDenied.into())
    }

    /// Memory of `bytes` bytes that the data of a large write are received into; what it holds before is undefined.
    fn buffer(&self, bytes: usize) -> Vec<u8> {
        vec![0; bytes]
    }

    /// [`Export::write`] of data in memory from [`Export::buffer`], which is the export's again.
    fn write_owned(&self, data: Vec<u8>, offset: u64) -> io::Result<()> {
        self.write(&data, offset)
    }

    /// Makes `bytes` bytes read as zeroes. `punch`: may leave them unallocated. `fast`: fails at once with
    /// [`io::ErrorKind::Unsupported`], nothing done, unless it is faster than writing them.
    fn zero(&self, offset: u64, bytes: u64, punch: bool, fast: bool) -> io::Result<()> {
        const PIECE: u64 = 1 << 20;
        let _ = punch;
        if fast {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let zeroes = vec![0; bytes.min(PIECE) as usize];
        let mut done = 0;
        while done < bytes {
            let piece = (bytes - done).min(PIECE);
            self.write(&zeroes[..piece as usize], offset + done)?;
            done += piece;
        }
        Ok(())
    }

    /// The content isn't needed any more; a hint, which may be ignored.
    fn trim(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let _ = (offset, bytes);
        Ok(())
    }

    /// Makes durable whatever `write`, `zero` and `trim` have returned from, on any connection.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// Whether reads and writes usually wait for something: then each is run beside the others from the start.
    /// Without it, requests of a connection run one after another until one takes long (a tenth of a
    /// millisecond), and only then beside each other for a while; that is faster where nothing waits. In that
    /// case one request that waits for long holds up those behind it, once.
    fn may_wait(&self) -> bool {
        false
    }

    /// A read or write that takes longer shows that the export has to wait: the next go to the workers. Asked once a
    /// connection.
    fn patience(&self) -> Duration {
        crate::limits::SLOW
    }

    /// Whether a write of so many bytes would have to wait for something now, for long perhaps: then it is run beside the
    /// others, so that reads don't wait behind it. Asked for each write that would be run at once, so it has to be quick.
    fn write_waits(&self, bytes: u32) -> bool {
        let _ = bytes;
        false
    }

    /// Whether a flush may take longer than a client with nothing else under way would mind if its next request came
    /// meanwhile. Otherwise such a client's flush is run at once, without another thread.
    fn flush_waits(&self) -> bool {
        true
    }

    /// Whether [`Export::extents`] is cheap and knows zeroes: then long reads ask it first, and what reads as
    /// zeroes is neither read nor sent.
    fn sparse(&self) -> bool {
        false
    }

    /// Extents from `offset` on, one after another, of the context `base:allocation` (flags:
    /// `layout::nbd::allocation`). At least one; the last may be cut short or reach beyond. Boundaries are multiples of the
    /// minimum block size.
    fn extents(&self, offset: u64, bytes: u64) -> io::Result<Vec<Extent>> {
        let _ = offset;
        Ok(vec![Extent { bytes, flags: 0 }])
    }

    /// Names of further metadata contexts, `namespace:leaf`. At most [`MAXIMUM_CONTEXTS`](crate::MAXIMUM_CONTEXTS)
    /// − 1 are shown.
    fn contexts(&self) -> &[&str] {
        &[]
    }

    /// Like [`Export::extents`], of one of [`Export::contexts`]; the flags are its own.
    fn context_extents(&self, context: &str, offset: u64, bytes: u64) -> io::Result<Vec<Extent>> {
        let _ = (context, offset);
        Ok(vec![Extent { bytes, flags: 0 }])
    }
}

/// A run of bytes with the same status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// How many bytes.
    pub bytes: u64,
    /// Meaning given by the context.
    pub flags: u32,
}

/// Sizes of requests in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Power of two up to 64 KiB; offset and length of every request are multiples of it.
    pub minimum: u32,
    /// Power of two, at least 512 and the minimum: smaller requests are slower than they need be.
    pub preferred: u32,
    /// Largest READ and WRITE; a multiple of the minimum, at least the preferred size. At most
    /// [`MAXIMUM_REQUEST_BYTES`](crate::MAXIMUM_REQUEST_BYTES) in effect.
    pub maximum: u32,
}

impl Default for BlockSizes {
    fn default() -> Self {
        Self { minimum: 1, preferred: 4096, maximum: crate::MAXIMUM_REQUEST_BYTES }
    }
}

impl BlockSizes {
    /// Whether these are sizes that the protocol allows, for an export of `bytes` bytes.
    pub(crate) fn check(self, bytes: u64) -> Result<(), String> {
        let Self { minimum, preferred, maximum } = self;
        if !minimum.is_power_of_two() || minimum > layout::nbd::LARGEST_MINIMUM_BLOCK_BYTES {
            return Err(format!("minimum block size {minimum} is not a power of two up to 64 KiB"));
        }
        let smallest = minimum.max(layout::nbd::SMALLEST_PREFERRED_BLOCK_BYTES);
        if !preferred.is_power_of_two() || preferred < smallest {
            return Err(format!("preferred block size {preferred} is not a power of two from {smallest} on"));
        }
        if maximum < preferred || !maximum.is_multiple_of(minimum) {
            return Err(format!(
                "maximum block size {maximum} is below {preferred} or no multiple of {minimum}"
            ));
        }
        if !bytes.is_multiple_of(u64::from(minimum)) {
            return Err(format!("size {bytes} is no multiple of the minimum block size {minimum}"));
        }
        Ok(())
    }
}

/// Where names lead, and who hears what happens.
pub trait Exports: Send + Sync {
    /// All that a client may see in a list.
    fn list(&self) -> Vec<Arc<dyn Export>>;

    /// The export of a name; the empty name asks for a default. The error's text reaches the client;
    /// [`io::ErrorKind::NotFound`] means that there is none. `connection` numbers connections from 1 on, so that
    /// an export can tell its clients apart.
    fn find(&self, name: &str, connection: u64) -> io::Result<Arc<dyn Export>>;

    /// Told of what happens; for a log.
    fn report(&self, event: Event<'_>) {
        let _ = event;
    }
}

/// The first export is the default, unless one has the empty name.
impl Exports for Vec<Arc<dyn Export>> {
    fn list(&self) -> Vec<Arc<dyn Export>> {
        self.clone()
    }

    fn find(&self, name: &str, _connection: u64) -> io::Result<Arc<dyn Export>> {
        let named = self.iter().find(|export| export.name() == name);
        let default = self.first().filter(|_| name.is_empty());
        named
            .or(default)
            .cloned()
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no export {name:?}")))
    }
}

/// What happens on a server.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A client was turned away: as many as allowed are connected.
    Refused {
        /// Connections at that moment.
        connections: usize,
    },
    /// A client has chosen an export.
    Chosen {
        /// The connection's number.
        connection: u64,
        /// The export's name.
        export: &'a str,
    },
    /// A connection has ended.
    Ended {
        /// Its number.
        connection: u64,
        /// Why.
        end: &'a End,
    },
    /// No connection could be accepted; it is tried again.
    AcceptFailed {
        /// What the system said.
        error: &'a io::Error,
    },
}
