//! NBD (network block device) as it stands on the wire: the fixed newstyle handshake and transmission with
//! simple and structured replies. Big-endian. Names follow the protocol's document (`doc/proto.md` of the
//! NetworkBlockDevice project) without its `NBD_`.

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of a connection, from the server: `NBDMAGIC`.
pub const HELLO_MAGIC: u64 = 0x4E42_444D_4147_4943;
/// Second bytes of a newstyle connection, and first of every option: `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454F_5054;
/// First bytes of the answer to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_E889_0455_65A9;
/// First bytes of a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First bytes of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First bytes of a chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668E_33EF;

/// Longest string (name, query, message) that either side must take.
pub const MAXIMUM_STRING_BYTES: usize = 4096;
/// Largest payload that a client may rely on where no other size was told.
pub const DEFAULT_MAXIMUM_PAYLOAD_BYTES: u32 = 32 << 20;
/// Largest minimum block size.
pub const LARGEST_MINIMUM_BLOCK_BYTES: u32 = 64 << 10;
/// Smallest preferred block size.
pub const SMALLEST_PREFERRED_BLOCK_BYTES: u32 = 512;
/// Zeroes that end the answer to `EXPORT_NAME`, unless both sides set `NO_ZEROES`.
pub const EXPORT_NAME_ZEROES: usize = 124;
/// The metadata context that says what is allocated and what reads as zeroes.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// Flags of the server's [`Hello`].
pub mod handshake_flags {
    /// Options are answered.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// The zeroes after `EXPORT_NAME` can be left out.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// The client's answer to [`Hello`]: 32 bits of flags.
pub mod client_flags {
    /// The client takes answers to options.
    pub const FIXED_NEWSTYLE: u32 = 1 << 0;
    /// No zeroes after `EXPORT_NAME`.
    pub const NO_ZEROES: u32 = 1 << 1;
}

/// Options of the handshake.
pub mod option {
    /// Choose an export and begin transmission; cannot be refused but by closing.
    pub const EXPORT_NAME: u32 = 1;
    /// End the connection.
    pub const ABORT: u32 = 2;
    /// Name the exports.
    pub const LIST: u32 = 3;
    /// Go on under TLS.
    pub const STARTTLS: u32 = 5;
    /// Tell about an export.
    pub const INFO: u32 = 6;
    /// Choose an export and begin transmission.
    pub const GO: u32 = 7;
    /// Structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Name the metadata contexts of an export.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Kinds of answers to an option.
pub mod option_reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// One export of a list.
    pub const SERVER: u32 = 2;
    /// One piece of information: see [`info`](super::info).
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// Option unknown.
    pub const ERROR_UNSUPPORTED: u32 = (1 << 31) + 1;
    /// Forbidden here.
    pub const ERROR_POLICY: u32 = (1 << 31) + 2;
    /// Malformed.
    pub const ERROR_INVALID: u32 = (1 << 31) + 3;
    /// Not before TLS has begun.
    pub const ERROR_TLS_REQUIRED: u32 = (1 << 31) + 5;
    /// No such export.
    pub const ERROR_UNKNOWN: u32 = (1 << 31) + 6;
    /// The server is stopping.
    pub const ERROR_SHUTDOWN: u32 = (1 << 31) + 7;
    /// The option is too long.
    pub const ERROR_TOO_BIG: u32 = (1 << 31) + 9;
}

/// Kinds of information about an export.
pub mod info {
    /// Size and flags: [`InfoExport`](super::InfoExport). Always told.
    pub const EXPORT: u16 = 0;
    /// The export's own name.
    pub const NAME: u16 = 1;
    /// A description for people.
    pub const DESCRIPTION: u16 = 2;
    /// [`InfoBlockSize`](super::InfoBlockSize).
    pub const BLOCK_SIZE: u16 = 3;
}

/// What an export can do (transmission flags).
pub mod export_flags {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Nothing can be written.
    pub const READ_ONLY: u16 = 1 << 1;
    /// `FLUSH` is known.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// Flag `FUA` is known.
    pub const SEND_FUA: u16 = 1 << 3;
    /// `TRIM` is known.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `WRITE_ZEROES` is known.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// Flag `DF` is known.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush covers what other connections have written.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// `CACHE` is known.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// Flag `FAST_ZERO` is known.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Commands of a request.
pub mod command {
    /// Read.
    pub const READ: u16 = 0;
    /// Write the payload that follows.
    pub const WRITE: u16 = 1;
    /// End the connection after what is under way.
    pub const DISC: u16 = 2;
    /// Make durable what has been answered.
    pub const FLUSH: u16 = 3;
    /// Not needed any more; a hint.
    pub const TRIM: u16 = 4;
    /// Will be read soon; a hint.
    pub const CACHE: u16 = 5;
    /// Write zeroes.
    pub const WRITE_ZEROES: u16 = 6;
    /// Tell extents of the metadata contexts chosen.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of a request.
pub mod command_flags {
    /// Answer only when durable.
    pub const FUA: u16 = 1 << 0;
    /// `WRITE_ZEROES`: allocate.
    pub const NO_HOLE: u16 = 1 << 1;
    /// `READ`: one content chunk.
    pub const DF: u16 = 1 << 2;
    /// `BLOCK_STATUS`: one extent.
    pub const REQ_ONE: u16 = 1 << 3;
    /// `WRITE_ZEROES`: fail at once unless it is faster than writing.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Kinds of chunks of a structured reply.
pub mod chunk {
    /// Nothing; ends a reply.
    pub const NONE: u16 = 0;
    /// Offset (64 bits) and data.
    pub const OFFSET_DATA: u16 = 1;
    /// [`Hole`](super::Hole): reads as zeroes.
    pub const OFFSET_HOLE: u16 = 2;
    /// Context id (32 bits) and [`BlockDescriptor`](super::BlockDescriptor)s.
    pub const BLOCK_STATUS: u16 = 5;
    /// [`ChunkError`](super::ChunkError) and a message.
    pub const ERROR: u16 = (1 << 15) + 1;
}

/// Flag of a chunk: the last of its reply.
pub const CHUNK_FLAG_DONE: u16 = 1 << 0;

/// Errors of a reply.
pub mod error {
    /// Not permitted; read-only.
    pub const EPERM: u32 = 1;
    /// Input or output failed.
    pub const EIO: u32 = 5;
    /// Out of memory.
    pub const ENOMEM: u32 = 12;
    /// Malformed, or beyond the end.
    pub const EINVAL: u32 = 22;
    /// No room, or a write beyond the end.
    pub const ENOSPC: u32 = 28;
    /// Not supported; in answer to `FAST_ZERO` only.
    pub const ENOTSUP: u32 = 95;
    /// The server is stopping.
    pub const ESHUTDOWN: u32 = 108;
}

/// Flags of an extent in [`BASE_ALLOCATION`].
pub mod allocation {
    /// Not allocated.
    pub const HOLE: u32 = 1 << 0;
    /// Reads as zeroes.
    pub const ZERO: u32 = 1 << 1;
}

/// What the server begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Hello {
    /// [`HELLO_MAGIC`].
    pub magic: U64,
    /// [`OPTION_MAGIC`].
    pub option_magic: U64,
    /// [`handshake_flags`].
    pub flags: U16,
}

/// Head of an option; `length` bytes follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct OptionHeader {
    /// [`OPTION_MAGIC`].
    pub magic: U64,
    /// [`option`].
    pub option: U32,
    /// Bytes that follow.
    pub length: U32,
}

/// Head of an answer to an option; `length` bytes follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct OptionReplyHeader {
    /// [`OPTION_REPLY_MAGIC`].
    pub magic: U64,
    /// The option that is answered.
    pub option: U32,
    /// [`option_reply`].
    pub kind: U32,
    /// Bytes that follow.
    pub length: U32,
}

/// Answer to `EXPORT_NAME`; [`EXPORT_NAME_ZEROES`] may follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ExportNameReply {
    /// Size of the export.
    pub bytes: U64,
    /// [`export_flags`].
    pub flags: U16,
}

/// Information [`info::EXPORT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct InfoExport {
    /// [`info::EXPORT`].
    pub kind: U16,
    /// Size of the export.
    pub bytes: U64,
    /// [`export_flags`].
    pub flags: U16,
}

/// Information [`info::BLOCK_SIZE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct InfoBlockSize {
    /// [`info::BLOCK_SIZE`].
    pub kind: U16,
    /// Offsets and lengths are multiples of this power of two.
    pub minimum: U32,
    /// Fast from here on.
    pub preferred: U32,
    /// Largest payload of a request or reply.
    pub maximum: U32,
}

/// Head of a request; with `WRITE`, `length` bytes follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RequestHeader {
    /// [`REQUEST_MAGIC`].
    pub magic: U32,
    /// [`command_flags`].
    pub flags: U16,
    /// [`command`].
    pub command: U16,
    /// Chosen by the client, returned in the reply.
    pub cookie: U64,
    /// First byte concerned.
    pub offset: U64,
    /// Bytes concerned.
    pub length: U32,
}

/// A simple reply; with a successful `READ`, the data follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SimpleReply {
    /// [`SIMPLE_REPLY_MAGIC`].
    pub magic: U32,
    /// 0, or one of [`error`].
    pub error: U32,
    /// That of the request.
    pub cookie: U64,
}

/// Head of a chunk of a structured reply; `length` bytes follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ChunkHeader {
    /// [`CHUNK_MAGIC`].
    pub magic: U32,
    /// [`CHUNK_FLAG_DONE`] or 0.
    pub flags: U16,
    /// [`chunk`].
    pub kind: U16,
    /// That of the request.
    pub cookie: U64,
    /// Bytes that follow.
    pub length: U32,
}

/// Content of a chunk [`chunk::OFFSET_HOLE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Hole {
    /// Where it begins in the export.
    pub offset: U64,
    /// Bytes that read as zeroes.
    pub bytes: U32,
}

/// Begins a chunk [`chunk::ERROR`]; the message follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ChunkError {
    /// One of [`error`].
    pub error: U32,
    /// Bytes of the message.
    pub message_length: U16,
}

/// An extent in a chunk [`chunk::BLOCK_STATUS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockDescriptor {
    /// Bytes of the extent.
    pub length: U32,
    /// Meaning given by the context: [`allocation`] for [`BASE_ALLOCATION`].
    pub flags: U32,
}

const _: () = {
    assert!(core::mem::size_of::<Hello>() == 18);
    assert!(core::mem::size_of::<OptionHeader>() == 16);
    assert!(core::mem::size_of::<OptionReplyHeader>() == 20);
    assert!(core::mem::size_of::<ExportNameReply>() == 10);
    assert!(core::mem::size_of::<InfoExport>() == 12);
    assert!(core::mem::size_of::<InfoBlockSize>() == 14);
    assert!(core::mem::size_of::<RequestHeader>() == 28);
    assert!(core::mem::size_of::<SimpleReply>() == 16);
    assert!(core::mem::size_of::<ChunkHeader>() == 20);
    assert!(core::mem::size_of::<Hole>() == 12);
    assert!(core::mem::size_of::<ChunkError>() == 6);
    assert!(core::mem::size_of::<BlockDescriptor>() == 8);
};
