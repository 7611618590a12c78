//! What a request asks for, checked against what was agreed on: an export never sees anything else.

use crate::handshake::Negotiated;
use layout::nbd::{command, command_flags, error, export_flags, RequestHeader};
use std::io;

/// A command that an export can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Read { offset: u64, bytes: u32, one_chunk: bool },
    Write { offset: u64, bytes: u32, durable: bool },
    Flush,
    Trim { offset: u64, bytes: u32, durable: bool },
    Cache,
    Zero { offset: u64, bytes: u32, punch: bool, fast: bool, durable: bool },
    Status { offset: u64, bytes: u32, one_extent: bool },
}

/// A request that failed: an error of the protocol, and text for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub error: u32,
    pub text: String,
}

impl Failure {
    pub fn new(error: u32, text: impl Into<String>) -> Self {
        Self { error, text: text.into() }
    }
}

impl From<io::Error> for Failure {
    fn from(failed: io::Error) -> Self {
        let number = match failed.raw_os_error() {
            Some(libc::EPERM | libc::EACCES | libc::EROFS) => error::EPERM,
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => error::ENOSPC,
            Some(libc::EINVAL) => error::EINVAL,
            Some(libc::ENOMEM) => error::ENOMEM,
            Some(libc::ESHUTDOWN) => error::ESHUTDOWN,
            _ => match failed.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => error::EPERM,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                    error::ENOSPC
                }
                // ENOTSUP is for FAST_ZERO only.
                io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported => error::EINVAL,
                io::ErrorKind::OutOfMemory => error::ENOMEM,
                _ => error::EIO,
            },
        };
        Self::new(number, failed.to_string())
    }
}

/// Flags that a command may have, where the client was told so.
fn known_flags(command: u16, told: u16) -> u16 {
    let mut flags = match command {
        command::READ if told & export_flags::SEND_DF != 0 => command_flags::DF,
        command::WRITE_ZEROES => command_flags::NO_HOLE | command_flags::FAST_ZERO,
        command::BLOCK_STATUS => command_flags::REQ_ONE,
        _ => 0,
    };
    if told & export_flags::SEND_FUA != 0 {
        // On every command; there are clients that set it on reads.
        flags |= command_flags::FUA;
    }
    flags
}

/// What the header asks for. The magic has been checked, DISC been dealt with.
pub(crate) fn understand(header: &RequestHeader, agreed: &Negotiated) -> Result<Command, Failure> {
    let invalid = |text: String| Err(Failure::new(error::EINVAL, text));
    let (number, flags) = (header.command.get(), header.flags.get());
    let (offset, bytes) = (header.offset.get(), header.length.get());
    let modifies = matches!(number, command::WRITE | command::TRIM | command::WRITE_ZEROES);
    if number > command::BLOCK_STATUS || number == command::DISC {
        return invalid(format!("command {number} is not known"));
    }
    if modifies && agreed.flags & export_flags::READ_ONLY != 0 {
        return Err(Failure::new(error::EPERM, "the export is read-only"));
    }
    let unknown = flags & !known_flags(number, agreed.flags);
    if unknown != 0 {
        return invalid(format!("flags {unknown:#x} are not known for command {number}"));
    }
    let durable = flags & command_flags::FUA != 0;
    if number == command::FLUSH {
        if agreed.flags & export_flags::SEND_FLUSH == 0 {
            return invalid("flush of a read-only export".into());
        }
        if offset != 0 || bytes != 0 {
            return invalid("flush with an offset or a length".into());
        }
        return Ok(Command::Flush);
    }
    if bytes == 0 {
        return invalid("a request for no bytes".into());
    }
    if offset.checked_add(bytes.into()).is_none_or(|end| end > agreed.bytes) {
        let error = if modifies { error::ENOSPC } else { error::EINVAL };
        return Err(Failure::new(
            error,
            format!("{bytes} bytes at {offset} reach beyond the end, {}", agreed.bytes),
        ));
    }
    let minimum = agreed.sizes.minimum;
    if !offset.is_multiple_of(minimum.into()) || !bytes.is_multiple_of(minimum) {
        return invalid(format!("{bytes} bytes at {offset} are not multiples of {minimum}"));
    }
    let maximum = agreed.sizes.maximum;
    if matches!(number, command::READ | command::WRITE) && bytes > maximum {
        return invalid(format!("{bytes} bytes in one request; at most {maximum} are taken"));
    }
    Ok(match number {
        command::READ => Command::Read { offset, bytes, one_chunk: flags & command_flags::DF != 0 },
        command::WRITE => Command::Write { offset, bytes, durable },
        command::TRIM => Command::Trim { offset, bytes, durable },
        command::CACHE => Command::Cache,
        command::WRITE_ZEROES => Command::Zero {
            offset,
            bytes,
            punch: flags & command_flags::NO_HOLE == 0,
            fast: flags & command_flags::FAST_ZERO != 0,
            durable,
        },
        _ if agreed.contexts.is_empty() => return invalid("no metadata context was chosen".into()),
        _ => Command::Status { offset, bytes, one_extent: flags & command_flags::REQ_ONE != 0 },
    })
}
