//! A target elsewhere: the uplink as a Unix datagram socket, a frame each.

use crate::target::Target;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

/// Longest frame: 9000 bytes of MTU and the header.
const MAXIMUM_FRAME: usize = 9216;
/// Frames that are taken at once; more wait in the socket.
const MAXIMUM_AT_ONCE: usize = 16;

/// What is at the other end of the uplink's wire.
pub struct SocketTarget {
    socket: UnixDatagram,
    peer: PathBuf,
    trouble: Option<String>,
}

impl SocketTarget {
    /// Frames out of the uplink go to `peer`; those for it come to `local`, which is made.
    pub fn new(local: &Path, peer: PathBuf) -> io::Result<Self> {
        let socket = UnixDatagram::bind(local)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, peer, trouble: None })
    }
}

impl Target for SocketTarget {
    fn frame(&mut self, frame: &[u8], _cycle: u64, _answers: &mut Vec<(u64, Vec<u8>)>) {
        // With nobody at its end, or with one who doesn't listen, the frame is lost, as on any wire.
        let _ = self.socket.send_to(frame, &self.peer);
    }

    fn poll(&mut self, _cycle: u64, answers: &mut Vec<(u64, Vec<u8>)>) {
        let mut frame = [0; MAXIMUM_FRAME];
        for _ in 0..MAXIMUM_AT_ONCE {
            match self.socket.recv(&mut frame) {
                Ok(0) => {}
                Ok(bytes) => answers.push((0, frame[..bytes].to_vec())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    self.trouble.get_or_insert_with(|| format!("the uplink's socket: {error}"));
                    return;
                }
            }
        }
    }

    fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_go_both_ways_and_one_that_nobody_takes_is_lost() {
        let folder = tempfile::tempdir().expect("a folder");
        let (ours, theirs) = (folder.path().join("ours"), folder.path().join("theirs"));
        let mut target = SocketTarget::new(&ours, theirs.clone()).expect("a socket");
        let mut answers = Vec::new();
        target.frame(&[1; 60], 0, &mut answers);
        target.poll(0, &mut answers);
        assert_eq!(answers, []);
        let peer = UnixDatagram::bind(&theirs).expect("a socket");
        target.frame(&[2; 60], 0, &mut answers);
        let mut frame = [0; 100];
        assert_eq!((peer.recv(&mut frame).expect("a frame"), frame[0]), (60, 2));
        peer.send_to(&[3; 64], &ours).expect("sent");
        target.poll(0, &mut answers);
        assert_eq!(answers, [(0, vec![3; 64])]);
        assert_eq!(target.trouble(), None);
    }
}
