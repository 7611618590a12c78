//! A network interface as a port of a switch: whole Ethernet frames in and out, past the host's own network.
//!
//! | file | job |
//! |---|---|
//! | `kernel` | the calls to the kernel that have no safe form elsewhere |
//! | `ring` | frames that came in, in memory shared with the kernel |
//!
//! Frames come as they were on the wire: a VLAN tag that the kernel took off is put back, frames that this host sends are not
//! among them. What the kernel had no room for is counted. Why AF_PACKET, and this ring: `docs/decisions/0045-*`.

mod kernel;
mod ring;

use kernel::Socket;
use ring::{Ring, Slot};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

/// Memory for frames that came in and weren't taken yet, bytes.
pub const RING_BYTES: usize = 8 << 20;
/// Largest MTU that is used: an AoE frame has nothing beyond.
pub const MOST_MTU: usize = 9000;
/// How long a frame waits for room in the interface's queue before it counts as lost, ns.
const SEND_PATIENCE: i64 = 2_000_000;
const ETHERNET_HEADER_BYTES: usize = 14;
const VLAN_TAG_BYTES: usize = 4;
/// Where a VLAN tag stands: behind the two addresses.
const VLAN_TAG_AT: usize = 12;

/// Why an interface can't be used.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    /// The right is missing.
    #[error(
        "interface {0}: raw frames need CAP_NET_RAW: run as root, or `setcap cap_net_raw+ep` on the program"
    )]
    NotAllowed(String),
    /// There is none of that name.
    #[error("interface {0}: there is none of that name here (`ip link` lists them)")]
    Missing(String),
    /// Its frames go another way as well.
    #[error("interface {0}: it belongs to a bridge or bond, by which writes would pass unjournaled: `ip link set {0} nomaster`")]
    Enslaved(String),
    /// It carries something else than Ethernet.
    #[error("interface {0}: not an Ethernet interface")]
    NotEthernet(String),
    /// The system refused something.
    #[error("interface {name}: {action}: {source}")]
    System {
        /// The interface.
        name: String,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Whether frames go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// They do.
    Up,
    /// It is switched off, or has no carrier.
    Down,
    /// The interface isn't there any more.
    Gone,
}

/// What became of frames outside of the switch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Came in.
    pub received: u64,
    /// Went out.
    pub sent: u64,
    /// The kernel had no room for them in the ring.
    pub ring_full: u64,
    /// Came in longer than the interface's MTU (put together by the kernel or the card), and were left.
    pub too_long: u64,
    /// Came in with a checksum that was left to hardware, as from a virtual machine, and were left.
    pub unfinished: u64,
    /// Could not be sent.
    pub unsent: u64,
}

/// An interface, open.
#[derive(Debug)]
pub struct Interface {
    name: String,
    index: i32,
    mac: [u8; 6],
    mtu: usize,
    socket: Socket,
    ring: Ring,
    traffic: Traffic,
    tagged: Vec<u8>,
}

impl Interface {
    /// Opens the interface `name`: every frame on it, whoever it is for.
    pub fn open(name: &str) -> Result<Self, InterfaceError> {
        let failed = |action: &'static str| move |source: io::Error| system_error(name, action, source);
        let socket = Socket::packet().map_err(failed("opening a socket for raw frames"))?;
        let index = socket.index(name).map_err(failed("looking for it"))?;
        if !socket.is_ethernet(name).map_err(failed("asking for its kind"))? {
            return Err(InterfaceError::NotEthernet(name.to_owned()));
        }
        if is_enslaved(name, index) {
            return Err(InterfaceError::Enslaved(name.to_owned()));
        }
        let mac = socket.mac(name).map_err(failed("asking for its address"))?;
        let mtu = socket.mtu(name).map_err(failed("asking for its MTU"))?.min(MOST_MTU);
        let slot_bytes = ETHERNET_HEADER_BYTES + VLAN_TAG_BYTES + mtu;
        let ring = Ring::new(&socket, slot_bytes, RING_BYTES).map_err(failed("making a ring of frames"))?;
        socket.ignore_outgoing().map_err(failed("leaving out what this host sends"))?;
        socket.bind(index).map_err(failed("listening on it"))?;
        socket.promiscuous(index).map_err(failed("taking frames for others (promiscuous mode)"))?;
        let tagged = Vec::with_capacity(slot_bytes);
        Ok(Self { name: name.to_owned(), index, mac, mtu, socket, ring, traffic: Traffic::default(), tagged })
    }

    /// Opens it again, after it had gone; counts go on.
    pub fn open_again(&mut self) -> Result<(), InterfaceError> {
        let opened = Self::open(&self.name)?;
        let traffic = self.traffic();
        *self = Self { traffic, ..opened };
        Ok(())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Most bytes of a frame behind the Ethernet header; at most [`MOST_MTU`].
    pub fn mtu(&self) -> usize {
        self.mtu
    }

    /// Does a frame fit, with or without a VLAN tag?
    pub fn fits(&self, frame: &[u8]) -> bool {
        let is_tagged = frame
            .get(VLAN_TAG_AT..VLAN_TAG_AT + 2)
            .is_some_and(|kind| matches!(u16::from_be_bytes([kind[0], kind[1]]), 0x8100 | 0x88A8));
        frame.len() <= ETHERNET_HEADER_BYTES + self.mtu + if is_tagged { VLAN_TAG_BYTES } else { 0 }
    }

    /// Looks whether it is there, the one that was opened, and up.
    pub fn link(&self) -> Link {
        match self.socket.index(&self.name) {
            Ok(index) if index == self.index => match self.socket.is_running(&self.name) {
                Ok(true) => Link::Up,
                _ => Link::Down,
            },
            _ => Link::Gone,
        }
    }

    /// Gives up to `most` frames that came in to `take`. How many there were.
    pub fn receive(&mut self, most: usize, mut take: impl FnMut(&[u8])) -> usize {
        let mut taken = 0;
        while taken < most {
            let Some(slot) = self.ring.next() else { break };
            taken += 1;
            self.traffic.received += 1;
            match slot {
                Slot::Cut => self.traffic.too_long += 1,
                Slot::Unfinished => self.traffic.unfinished += 1,
                Slot::Frame { bytes, tag: None } => take(bytes),
                Slot::Frame { bytes, tag: Some(tag) } if bytes.len() >= VLAN_TAG_AT => {
                    self.tagged.clear();
                    self.tagged.extend_from_slice(&bytes[..VLAN_TAG_AT]);
                    self.tagged.extend_from_slice(&tag);
                    self.tagged.extend_from_slice(&bytes[VLAN_TAG_AT..]);
                    take(&self.tagged);
                }
                Slot::Frame { .. } => self.traffic.too_long += 1,
            }
            self.ring.give_back();
        }
        taken
    }

    /// Sends a frame. `false`: it could not be, and is counted.
    pub fn send(&mut self, frame: &[u8]) -> bool {
        let mut sent = self.socket.send(frame);
        let is_full = |error: &io::Error| matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS));
        if sent.as_ref().is_err_and(is_full) {
            let patience = Timespec { tv_sec: 0, tv_nsec: SEND_PATIENCE };
            let _ = poll(&mut [PollFd::new(&self.socket, PollFlags::OUT)], Some(&patience));
            sent = self.socket.send(frame);
        }
        match sent {
            Ok(()) => self.traffic.sent += 1,
            Err(_) => self.traffic.unsent += 1,
        }
        sent.is_ok()
    }

    /// What became of frames so far.
    pub fn traffic(&mut self) -> Traffic {
        // Asking sets the kernel's count back.
        self.traffic.ring_full += self.socket.dropped();
        self.traffic
    }

    /// Takes the error that waits on the socket, such as that the interface went down: until then it is always ready.
    pub fn take_error(&self) {
        self.socket.take_error();
    }
}

impl AsFd for Interface {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn system_error(name: &str, action: &'static str, source: io::Error) -> InterfaceError {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => InterfaceError::NotAllowed(name.to_owned()),
        Some(libc::ENODEV | libc::ENXIO) => InterfaceError::Missing(name.to_owned()),
        _ => InterfaceError::System { name: name.to_owned(), action, source },
    }
}

/// Its frames go through a bridge or bond as well. What sysfs says counts only where it speaks of the same interface: another
/// network namespace has its own.
fn is_enslaved(name: &str, index: i32) -> bool {
    if name.contains('/') {
        return false;
    }
    let folder = Path::new("/sys/class/net").join(name);
    let same = std::fs::read_to_string(folder.join("ifindex"));
    same.is_ok_and(|text| text.trim() == index.to_string()) && folder.join("master").exists()
}

/// Ready for reading, or in error: by interface, in the order given; then whether `wake` is. Waits for `limit` ns at most.
pub fn wait(interfaces: &[&Interface], wake: BorrowedFd<'_>, limit: u64) -> io::Result<()> {
    let mut fds: Vec<PollFd<'_>> =
        interfaces.iter().map(|interface| PollFd::new(*interface, PollFlags::IN)).collect();
    fds.push(PollFd::from_borrowed_fd(wake, PollFlags::IN));
    let limit = Timespec { tv_sec: (limit / 1_000_000_000) as i64, tv_nsec: (limit % 1_000_000_000) as i64 };
    match poll(&mut fds, Some(&limit)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    for (fd, interface) in fds.iter().zip(interfaces) {
        if fd.revents().intersects(PollFlags::ERR) {
            interface.take_error();
        }
    }
    Ok(())
}
