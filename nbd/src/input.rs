//! What a client sends, received in large pieces.

use crate::limits::{AHEAD_BYTES, INPUT_BYTES, LARGE_BYTES};
use crate::End;
use layout::nbd::RequestHeader;
use socket2::Socket;
use std::io::{self, IoSliceMut, Read};
use zerocopy::FromBytes;

pub(crate) struct Input<'a> {
    socket: &'a Socket,
    memory: Box<[u8]>,
    /// Received and not yet taken: `memory[begin..end]`.
    begin: usize,
    end: usize,
    /// The last data were received to elsewhere: see [`AHEAD_BYTES`].
    large: bool,
}

impl<'a> Input<'a> {
    pub fn new(socket: &'a Socket) -> Self {
        Self { socket, memory: vec![0; INPUT_BYTES].into(), begin: 0, end: 0, large: false }
    }

    /// The next request's header, if it has been received whole.
    pub fn header(&mut self) -> Option<RequestHeader> {
        let (header, _) = RequestHeader::read_from_prefix(&self.memory[self.begin..self.end]).ok()?;
        self.begin += size_of::<RequestHeader>();
        Some(header)
    }

    /// Whether so many bytes have been received.
    pub fn has(&self, bytes: usize) -> bool {
        self.end - self.begin >= bytes
    }

    /// Takes bytes that have been received: see [`Input::has`].
    pub fn take(&mut self, bytes: usize) -> &[u8] {
        assert!(self.has(bytes), "{bytes} of {}", self.end - self.begin);
        self.begin += bytes;
        self.large = false;
        &self.memory[self.begin - bytes..self.begin]
    }

    /// Waits for at least one byte more.
    pub fn receive(&mut self) -> Result<(), End> {
        if self.begin > 0 {
            self.memory.copy_within(self.begin..self.end, 0);
            self.end -= self.begin;
            self.begin = 0;
        }
        assert!(self.end < self.memory.len(), "whoever waits for more has taken what was whole");
        let most = if self.large { self.memory.len().min(self.end + AHEAD_BYTES) } else { self.memory.len() };
        self.end += receive(self.socket, &mut self.memory[self.end..most])?;
        Ok(())
    }

    /// Fills the buffer, from what was received and then from the socket.
    pub fn fill(&mut self, buffer: &mut [u8]) -> Result<(), End> {
        let here = buffer.len().min(self.end - self.begin);
        buffer[..here].copy_from_slice(self.take(here));
        self.large = buffer.len() >= LARGE_BYTES;
        let mut filled = here;
        while filled < buffer.len() {
            // All that had been received is in the buffer.
            (self.begin, self.end) = (0, 0);
            let (rest, ahead) = (&mut buffer[filled..], &mut self.memory[..AHEAD_BYTES]);
            let wanted = rest.len();
            let received =
                receive_vectored(self.socket, &mut [IoSliceMut::new(rest), IoSliceMut::new(ahead)])?;
            filled += received.min(wanted);
            self.end = received.saturating_sub(wanted);
        }
        Ok(())
    }

    /// Receives bytes and forgets them.
    pub fn skip(&mut self, bytes: usize) -> Result<(), End> {
        let mut left = bytes;
        loop {
            let here = left.min(self.end - self.begin);
            self.begin += here;
            left -= here;
            if left == 0 {
                return Ok(());
            }
            self.receive()?;
        }
    }
}

/// At least one byte.
fn receive(socket: &Socket, buffer: &mut [u8]) -> Result<usize, End> {
    receive_vectored(socket, &mut [IoSliceMut::new(buffer)])
}

fn receive_vectored(mut socket: &Socket, buffers: &mut [IoSliceMut<'_>]) -> Result<usize, End> {
    loop {
        match socket.read_vectored(buffers) {
            Ok(0) => return Err(End::Closed),
            Ok(bytes) => return Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(End::Closed),
            Err(error) => return Err(End::Socket(error)),
        }
    }
}
