//! A client that speaks bytes. The numbers are those of the protocol's document, written again: a wrong one in
//! `layout` doesn't fit them.
#![allow(dead_code)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const CACHE: u16 = 5;
pub const ZERO: u16 = 6;
pub const STATUS: u16 = 7;

pub const FUA: u16 = 1;
pub const NO_HOLE: u16 = 2;
pub const DF: u16 = 4;
pub const REQ_ONE: u16 = 8;
pub const FAST_ZERO: u16 = 16;

pub const ACK: u32 = 1;
pub const UNSUPPORTED: u32 = 0x8000_0001;
pub const POLICY: u32 = 0x8000_0002;
pub const INVALID: u32 = 0x8000_0003;
pub const UNKNOWN: u32 = 0x8000_0006;
pub const TOO_BIG: u32 = 0x8000_0009;

pub const EPERM: u32 = 1;
pub const EIO: u32 = 5;
pub const EINVAL: u32 = 22;
pub const ENOSPC: u32 = 28;
pub const ENOTSUP: u32 = 95;

/// Longer than anything takes; a test that reaches it has failed.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Client {
    pub stream: UnixStream,
    pub structured: bool,
}

/// One answer of the server to a request, as it stands on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Simple { cookie: u64, error: u32 },
    Chunk { cookie: u64, flags: u16, kind: u16, data: Vec<u8> },
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Data(Vec<u8>),
    /// Per context: id, and extents (length, flags).
    Status(Vec<(u32, Vec<(u32, u32)>)>),
    Error(u32, String),
}

pub fn go_data(name: &str, kinds: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((kinds.len() as u16).to_be_bytes());
    kinds.iter().for_each(|kind| data.extend(kind.to_be_bytes()));
    data
}

pub fn meta_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend((query.len() as u32).to_be_bytes());
        data.extend(query.as_bytes());
    }
    data
}

pub fn option_bytes(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

pub fn request_bytes(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = vec![0x25, 0x60, 0x95, 0x13];
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

fn u16_at(data: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(data[at..at + 2].try_into().unwrap())
}

fn u32_at(data: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(data[at..at + 4].try_into().unwrap())
}

fn u64_at(data: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(data[at..at + 8].try_into().unwrap())
}

impl Client {
    /// Connects and has said nothing yet.
    pub fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream, structured: false }
    }

    /// Connects and has exchanged the first bytes.
    pub fn hello(path: &Path, flags: u32) -> Self {
        let mut client = Self::connect(path);
        assert_eq!(client.bytes(18), b"NBDMAGICIHAVEOPT\x00\x03");
        client.send(&flags.to_be_bytes());
        client
    }

    /// Connects to an export for simple replies.
    pub fn simple(path: &Path, export: &str) -> Self {
        let mut client = Self::hello(path, 3);
        client.go(export);
        client
    }

    /// Connects to an export for structured replies, with metadata contexts.
    pub fn structured(path: &Path, export: &str, contexts: &[&str]) -> Self {
        let mut client = Self::hello(path, 3);
        assert_eq!(client.option(8, &[]), [(ACK, vec![])]);
        client.structured = true;
        if !contexts.is_empty() {
            let replies = client.option(10, &meta_data(export, contexts));
            assert_eq!(replies.len(), contexts.len() + 1, "{replies:x?}");
        }
        client.go(export);
        client
    }

    /// GO: size and flags.
    pub fn go(&mut self, export: &str) -> (u64, u16) {
        let replies = self.option(7, &go_data(export, &[]));
        assert_eq!(replies.last(), Some(&(ACK, vec![])), "{replies:x?}");
        let info = &replies.iter().find(|(kind, data)| *kind == 3 && data.starts_with(&[0, 0])).unwrap().1;
        assert_eq!(info.len(), 12);
        (u64_at(info, 2), u16_at(info, 10))
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Asserts that the server closes, having sent nothing more.
    pub fn closed(mut self) {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => assert_eq!(rest, []),
            // What we sent was never received.
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
        }
    }

    /// Sends an option and fetches all answers, the last being ACK or an error.
    pub fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.send(&option_bytes(option, data));
        let mut replies = Vec::new();
        loop {
            let head = self.bytes(20);
            assert_eq!(head[..8], [0x00, 0x03, 0xE8, 0x89, 0x04, 0x55, 0x65, 0xA9]);
            assert_eq!(u32_at(&head, 8), option);
            let kind = u32_at(&head, 12);
            replies.push((kind, self.bytes(u32_at(&head, 16) as usize)));
            if kind == ACK || kind >> 31 == 1 {
                return replies;
            }
        }
    }

    /// The one answer to an option that is refused: its kind. It must have a text.
    pub fn refused(&mut self, option: u32, data: &[u8]) -> u32 {
        let replies = self.option(option, data);
        assert_eq!(replies.len(), 1, "{replies:x?}");
        assert!(!std::str::from_utf8(&replies[0].1).unwrap().is_empty());
        replies[0].0
    }

    pub fn request(&mut self, flags: u16, command: u16, cookie: u64, offset: u64, length: u32) {
        self.send(&request_bytes(flags, command, cookie, offset, length));
    }

    pub fn reply(&mut self) -> Reply {
        let magic = self.bytes(4);
        match u32_at(&magic, 0) {
            0x6744_6698 => {
                let rest = self.bytes(12);
                Reply::Simple { cookie: u64_at(&rest, 4), error: u32_at(&rest, 0) }
            }
            0x668E_33EF => {
                assert!(self.structured, "a chunk without structured replies");
                let rest = self.bytes(16);
                let data = self.bytes(u32_at(&rest, 12) as usize);
                Reply::Chunk {
                    cookie: u64_at(&rest, 4),
                    flags: u16_at(&rest, 0),
                    kind: u16_at(&rest, 2),
                    data,
                }
            }
            other => panic!("a reply begins with {other:#x}"),
        }
    }

    /// One request and what comes of it, by itself on the connection.
    pub fn run(&mut self, flags: u16, command: u16, offset: u64, length: u32, payload: &[u8]) -> Outcome {
        let cookie = 0xC00C_1E00_0000_0000 | offset ^ u64::from(length);
        let mut bytes = request_bytes(flags, command, cookie, offset, length);
        bytes.extend(payload);
        self.send(&bytes);
        self.outcome(command, cookie, offset, length)
    }

    /// What comes of the request with this cookie, of which all replies follow now.
    pub fn outcome(&mut self, command: u16, of: u64, offset: u64, length: u32) -> Outcome {
        let mut read = vec![None; if command == READ { length as usize } else { 0 }];
        let mut status = Vec::new();
        let mut failed = None;
        loop {
            match self.reply() {
                Reply::Simple { cookie, error } => {
                    assert_eq!(cookie, of);
                    if error != 0 {
                        return Outcome::Error(error, String::new());
                    }
                    if command != READ {
                        return Outcome::Done;
                    }
                    assert!(!self.structured, "a simple reply to a read");
                    return Outcome::Data(self.bytes(length as usize));
                }
                Reply::Chunk { cookie, flags, kind, data } => {
                    assert_eq!(cookie, of);
                    match kind {
                        0 => assert!(data.is_empty() && flags == 1),
                        1 | 2 => {
                            let begin = (u64_at(&data, 0) - offset) as usize;
                            let bytes = match kind {
                                1 => data[8..].to_vec(),
                                _ => vec![0; u32_at(&data, 8) as usize],
                            };
                            assert!(!bytes.is_empty());
                            for (place, byte) in read[begin..begin + bytes.len()].iter_mut().zip(bytes) {
                                assert_eq!(place.replace(byte), None, "chunks overlap");
                            }
                        }
                        5 => {
                            let extents: Vec<(u32, u32)> =
                                data[4..].chunks(8).map(|item| (u32_at(item, 0), u32_at(item, 4))).collect();
                            assert!(!extents.is_empty() && extents.iter().all(|(length, _)| *length > 0));
                            assert!(
                                extents.iter().map(|(length, _)| u64::from(*length)).sum::<u64>()
                                    <= length.into()
                            );
                            status.push((u32_at(&data, 0), extents));
                        }
                        0x8001 => {
                            assert_eq!(data.len(), 6 + usize::from(u16_at(&data, 4)));
                            failed = Some((u32_at(&data, 0), String::from_utf8(data[6..].to_vec()).unwrap()));
                        }
                        other => panic!("chunk {other:#x}"),
                    }
                    if flags & 1 == 0 {
                        continue;
                    }
                    if let Some((error, text)) = failed {
                        assert_ne!(error, 0);
                        return Outcome::Error(error, text);
                    }
                    return match command {
                        READ => Outcome::Data(
                            read.into_iter().map(|byte| byte.expect("all is covered")).collect(),
                        ),
                        STATUS => Outcome::Status(status),
                        _ => Outcome::Done,
                    };
                }
            }
        }
    }

    pub fn error(&mut self, flags: u16, command: u16, offset: u64, length: u32, payload: &[u8]) -> u32 {
        match self.run(flags, command, offset, length, payload) {
            Outcome::Error(error, text) => {
                assert!(text.is_empty() != self.structured, "text {text:?}");
                error
            }
            other => panic!("not refused: {other:?}"),
        }
    }
}
