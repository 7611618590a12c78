//! The smallest NBD client: one export, one request at a time. The numbers are those of the protocol's document.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;

/// A client.
pub struct Client {
    stream: UnixStream,
    cookie: u64,
}

impl Client {
    /// Connects and chooses an export.
    pub fn connect(socket: &Path, export: &str) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        // Fixed newstyle, without zeroes behind.
        stream.write_all(&3u32.to_be_bytes())?;
        // EXPORT_NAME: no answer but the size and the flags.
        stream.write_all(b"IHAVEOPT")?;
        stream.write_all(&1u32.to_be_bytes())?;
        stream.write_all(&(export.len() as u32).to_be_bytes())?;
        stream.write_all(export.as_bytes())?;
        let mut chosen = [0; 10];
        stream.read_exact(&mut chosen)?;
        Ok(Self { stream, cookie: 0 })
    }

    fn request(&mut self, command: u16, flags: u16, offset: u64, bytes: u32, data: &[u8]) -> io::Result<()> {
        self.cookie += 1;
        let mut request = Vec::with_capacity(28 + data.len());
        request.extend_from_slice(&REQUEST.to_be_bytes());
        request.extend_from_slice(&flags.to_be_bytes());
        request.extend_from_slice(&command.to_be_bytes());
        request.extend_from_slice(&self.cookie.to_be_bytes());
        request.extend_from_slice(&offset.to_be_bytes());
        request.extend_from_slice(&bytes.to_be_bytes());
        request.extend_from_slice(data);
        self.stream.write_all(&request)
    }

    fn reply(&mut self, into: &mut [u8]) -> io::Result<()> {
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply)?;
        assert_eq!(reply[..4], REPLY.to_be_bytes());
        assert_eq!(reply[8..], self.cookie.to_be_bytes());
        let error = u32::from_be_bytes([reply[4], reply[5], reply[6], reply[7]]);
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error as i32));
        }
        self.stream.read_exact(into)
    }

    /// Reads.
    pub fn read(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.request(0, 0, offset, into.len() as u32, &[])?;
        self.reply(into)
    }

    /// Writes.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.request(1, 0, offset, data.len() as u32, data)?;
        self.reply(&mut [])
    }

    /// Writes, durably (FUA).
    pub fn write_through(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.request(1, 1, offset, data.len() as u32, data)?;
        self.reply(&mut [])
    }

    /// Sends a write, and doesn't wait for its answer.
    pub fn send_write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.request(1, 0, offset, data.len() as u32, data)
    }

    /// Makes what was written durable.
    pub fn flush(&mut self) -> io::Result<()> {
        self.request(3, 0, 0, 0, &[])?;
        self.reply(&mut [])
    }

    /// Trims.
    pub fn trim(&mut self, offset: u64, bytes: u32) -> io::Result<()> {
        self.request(4, 0, offset, bytes, &[])?;
        self.reply(&mut [])
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }
}
