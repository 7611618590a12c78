//! Replies as bytes.

use crate::request::Failure;
use layout::nbd::{
    chunk, ChunkError, ChunkHeader, SimpleReply, CHUNK_FLAG_DONE, CHUNK_MAGIC, MAXIMUM_STRING_BYTES,
    SIMPLE_REPLY_MAGIC,
};
use zerocopy::byteorder::big_endian::U64;
use zerocopy::{Immutable, IntoBytes};

/// Replies, one behind another. Its memory is used again and again, and filled with zeroes only once.
#[derive(Debug, Default)]
pub(crate) struct Replies {
    /// All initialised; the first `used` bytes are replies.
    memory: Vec<u8>,
    used: usize,
}

impl Replies {
    pub fn bytes(&self) -> &[u8] {
        &self.memory[..self.used]
    }

    pub fn len(&self) -> usize {
        self.used
    }

    pub fn capacity(&self) -> usize {
        self.memory.len()
    }

    /// Back to an earlier length.
    pub fn truncate(&mut self, used: usize) {
        assert!(used <= self.used, "{used} of {}", self.used);
        self.used = used;
    }

    /// Room for `bytes` more, to be filled whole.
    pub fn space(&mut self, bytes: usize) -> &mut [u8] {
        let begin = self.used;
        let end = begin + bytes;
        if end > self.memory.len() {
            if begin == 0 {
                // Fresh zeroed memory costs nothing before it is touched.
                self.memory = vec![0; end];
            } else {
                self.memory.resize(end, 0);
            }
        }
        self.used = end;
        &mut self.memory[begin..end]
    }

    pub fn append(&mut self, value: &(impl IntoBytes + Immutable + ?Sized)) {
        let bytes = value.as_bytes();
        self.space(bytes.len()).copy_from_slice(bytes);
    }

    pub fn simple(&mut self, cookie: U64, error: u32) {
        self.append(&SimpleReply { magic: SIMPLE_REPLY_MAGIC.into(), error: error.into(), cookie });
    }

    /// Head of a chunk with `length` bytes.
    pub fn chunk(&mut self, cookie: U64, kind: u16, done: bool, length: usize) {
        let flags = if done { CHUNK_FLAG_DONE } else { 0 };
        let length = u32::try_from(length).expect("a chunk is bounded by the largest request");
        self.append(&ChunkHeader {
            magic: CHUNK_MAGIC.into(),
            flags: flags.into(),
            kind: kind.into(),
            cookie,
            length: length.into(),
        });
    }

    pub fn failure(&mut self, structured: bool, cookie: U64, failure: &Failure) {
        if !structured {
            self.simple(cookie, failure.error);
            return;
        }
        let text = limited(&failure.text);
        self.chunk(cookie, chunk::ERROR, true, size_of::<ChunkError>() + text.len());
        self.append(&ChunkError { error: failure.error.into(), message_length: (text.len() as u16).into() });
        self.append(text.as_bytes());
    }
}

/// The text, cut to what the protocol allows.
pub(crate) fn limited(text: &str) -> &str {
    let mut end = text.len().min(MAXIMUM_STRING_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
