//! The card's ports as Unix datagram sockets, a frame each: what QEMU's `-netdev dgram` speaks, without root and
//! without a TAP.

use crate::simulated_card::SimulatedCard;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

/// Frames of a port that wait at the card's wire. What is more waits in the socket, and then with its sender.
const MAXIMUM_QUEUED: usize = 16;
/// Longest frame: 9000 bytes of MTU and the header.
const MAXIMUM_FRAME: usize = 9216;
/// Shortest frame that is one: a header.
const MINIMUM_FRAME: usize = 14;

/// A port's wire.
pub struct Link {
    port: usize,
    socket: UnixDatagram,
    peer: PathBuf,
    /// One frame in so many gets lost each way; 0: none.
    lose_every: u64,
    frames: [u64; 2],
}

/// The ways of a wire.
const TO_CARD: usize = 0;
const FROM_CARD: usize = 1;

impl Link {
    /// Frames for `port` come to `local`, which is made; those out of it go to `peer`, which may come and go.
    pub fn new(port: usize, local: &std::path::Path, peer: PathBuf) -> io::Result<Self> {
        let socket = UnixDatagram::bind(local)?;
        socket.set_nonblocking(true)?;
        Ok(Self { port, socket, peer, lose_every: 0, frames: [0; 2] })
    }

    /// A wire that loses one frame in `every` each way.
    pub fn losing(mut self, every: u64) -> Self {
        self.lose_every = every;
        self
    }

    fn gets_lost(&mut self, way: usize) -> bool {
        self.frames[way] += 1;
        self.lose_every > 0 && self.frames[way].is_multiple_of(self.lose_every)
    }

    /// Moves frames both ways, as many as can be.
    pub fn exchange(&mut self, card: &mut SimulatedCard) -> io::Result<()> {
        while let Some(frame) = card.returned(self.port) {
            if !self.gets_lost(FROM_CARD) {
                // With nobody at its end, or with one who doesn't listen, the frame is lost, as on any wire.
                let _ = self.socket.send_to(&frame, &self.peer);
            }
        }
        let mut frame = [0; MAXIMUM_FRAME];
        while card.queued(self.port) < MAXIMUM_QUEUED {
            match self.socket.recv(&mut frame) {
                Ok(bytes) if bytes >= MINIMUM_FRAME && !self.gets_lost(TO_CARD) => {
                    card.offer(self.port, frame[..bytes].to_vec());
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
