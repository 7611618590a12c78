//! Runs a command against the export and makes the reply.

use crate::handshake::{Context, Negotiated};
use crate::limits::{MAXIMUM_DESCRIPTORS, MAXIMUM_READ_CHUNKS, SPARSE_READ_BYTES};
use crate::reply::Replies;
use crate::request::{Command, Failure};
use crate::Extent;
use layout::nbd::{allocation, chunk, error, BlockDescriptor, Hole, BASE_ALLOCATION};
use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};
use zerocopy::byteorder::big_endian::{U32, U64};

/// A write's data.
pub(crate) enum Payload<'a> {
    /// Where they were received.
    Received(&'a [u8]),
    /// In memory of the export's.
    Owned(Vec<u8>),
}

impl Payload<'_> {
    /// Of what isn't a write.
    pub const NONE: Self = Payload::Received(&[]);

    fn len(&self) -> usize {
        match self {
            Payload::Received(data) => data.len(),
            Payload::Owned(data) => data.len(),
        }
    }
}

/// Appends the reply to `command`, which may have failed before; `payload` is a write's data.
pub(crate) fn execute(
    agreed: &Negotiated,
    cookie: U64,
    command: Result<Command, Failure>,
    payload: Payload<'_>,
    replies: &mut Replies,
) {
    let begin = replies.len();
    let done = command.and_then(|command| {
        // An export that panics fails one request, not the server. Whatever it left in `replies` is cut off.
        catch_unwind(AssertUnwindSafe(|| run(agreed, cookie, command, payload, replies)))
            .unwrap_or_else(|_| Err(Failure::new(error::EIO, "the export has panicked")))
    });
    if let Err(failure) = done {
        replies.truncate(begin);
        replies.failure(agreed.structured, cookie, &failure);
    }
    assert!(replies.len() > begin, "every request has a reply");
}

fn run(
    agreed: &Negotiated,
    cookie: U64,
    command: Command,
    payload: Payload<'_>,
    replies: &mut Replies,
) -> Result<(), Failure> {
    let export = &*agreed.export;
    let mut flush = false;
    match command {
        Command::Read { offset, bytes, one_chunk } if agreed.structured => {
            return read_chunks(agreed, cookie, offset, bytes, one_chunk, replies);
        }
        Command::Read { offset, bytes, .. } => {
            replies.simple(cookie, 0);
            export.read(replies.space(bytes as usize), offset)?;
            return Ok(());
        }
        Command::Status { offset, bytes, one_extent } => {
            return status(agreed, cookie, offset, bytes, one_extent, replies);
        }
        Command::Write { offset, bytes, durable } => {
            assert_eq!(payload.len(), bytes as usize, "the payload is whole");
            match payload {
                Payload::Received(data) => export.write(data, offset)?,
                Payload::Owned(data) => export.write_owned(data, offset)?,
            }
            flush = durable;
        }
        Command::Zero { offset, bytes, punch, fast, durable } => {
            export.zero(offset, bytes.into(), punch, fast).map_err(|failed| match failed.kind() {
                io::ErrorKind::Unsupported if fast => Failure::new(error::ENOTSUP, failed.to_string()),
                _ => failed.into(),
            })?;
            flush = durable;
        }
        Command::Trim { offset, bytes, durable } => {
            export.trim(offset, bytes.into())?;
            flush = durable;
        }
        Command::Flush => flush = true,
        // To read ahead is the page cache's job.
        Command::Cache => {}
    }
    if flush {
        export.flush()?;
    }
    replies.simple(cookie, 0);
    Ok(())
}

/// A READ as chunks: one of data, or data and holes where the export knows them.
fn read_chunks(
    agreed: &Negotiated,
    cookie: U64,
    offset: u64,
    bytes: u32,
    one_chunk: bool,
    replies: &mut Replies,
) -> Result<(), Failure> {
    let export = &*agreed.export;
    let sparse = !one_chunk && bytes >= SPARSE_READ_BYTES && export.sparse();
    let pieces = if sparse { pieces(agreed, offset, bytes) } else { vec![(bytes, false)] };
    assert_eq!(pieces.iter().map(|(piece, _)| u64::from(*piece)).sum::<u64>(), bytes.into());
    let mut at = offset;
    for (index, &(piece, zero)) in pieces.iter().enumerate() {
        let done = index + 1 == pieces.len();
        if zero {
            replies.chunk(cookie, chunk::OFFSET_HOLE, done, size_of::<Hole>());
            replies.append(&Hole { offset: at.into(), bytes: piece.into() });
        } else {
            replies.chunk(cookie, chunk::OFFSET_DATA, done, size_of::<U64>() + piece as usize);
            replies.append(&U64::new(at));
            export.read(replies.space(piece as usize), at)?;
        }
        at += u64::from(piece);
    }
    Ok(())
}

/// The range in pieces: bytes, and whether they are known to be zero. All data where that isn't worth it, or the
/// export can't say: reading will tell.
fn pieces(agreed: &Negotiated, offset: u64, bytes: u32) -> Vec<(u32, bool)> {
    let whole = vec![(bytes, false)];
    let Ok(extents) = agreed.export.extents(offset, bytes.into()) else { return whole };
    let mut pieces: Vec<(u32, bool)> = Vec::new();
    let mut left = bytes;
    let known = extents.into_iter().map(|extent| (extent.bytes, extent.flags & allocation::ZERO != 0));
    for (length, zero) in known.chain([(u64::from(bytes), false)]) {
        let length = length.min(left.into()) as u32;
        if length == 0 {
            continue;
        }
        left -= length;
        match pieces.last_mut() {
            Some(last) if last.1 == zero => last.0 += length,
            _ => pieces.push((length, zero)),
        }
    }
    if pieces.len() > MAXIMUM_READ_CHUNKS {
        return whole;
    }
    pieces
}

fn status(
    agreed: &Negotiated,
    cookie: U64,
    offset: u64,
    bytes: u32,
    one_extent: bool,
    replies: &mut Replies,
) -> Result<(), Failure> {
    let limit = if one_extent { 1 } else { MAXIMUM_DESCRIPTORS };
    for (index, context) in agreed.contexts.iter().enumerate() {
        let extents = extents(agreed, context, offset, bytes.into())?;
        let descriptors = descriptors(&extents, bytes, limit);
        if descriptors.is_empty() {
            return Err(Failure::new(error::EIO, format!("the export has no extents of {}", context.name)));
        }
        let length = size_of::<U32>() + size_of_val(descriptors.as_slice());
        replies.chunk(cookie, chunk::BLOCK_STATUS, index + 1 == agreed.contexts.len(), length);
        replies.append(&U32::new(context.id));
        replies.append(descriptors.as_slice());
    }
    Ok(())
}

fn extents(agreed: &Negotiated, context: &Context, offset: u64, bytes: u64) -> io::Result<Vec<Extent>> {
    if context.name == BASE_ALLOCATION {
        return agreed.export.extents(offset, bytes);
    }
    agreed.export.context_extents(&context.name, offset, bytes)
}

/// At most `limit` descriptors within `bytes`; neighbours that say the same are one.
fn descriptors(extents: &[Extent], bytes: u32, limit: usize) -> Vec<BlockDescriptor> {
    let mut descriptors: Vec<BlockDescriptor> = Vec::new();
    let mut left = bytes;
    for extent in extents {
        let length = extent.bytes.min(left.into()) as u32;
        if length == 0 {
            continue;
        }
        let full = descriptors.len() == limit;
        match descriptors.last_mut() {
            Some(last) if last.flags.get() == extent.flags => last.length += length,
            _ if full => break,
            _ => descriptors.push(BlockDescriptor { length: length.into(), flags: extent.flags.into() }),
        }
        left -= length;
    }
    descriptors
}
