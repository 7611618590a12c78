//! AF_PACKET sockets and the questions about interfaces: what `rustix` and `socket2` have no safe form for.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const ARPHRD_ETHER: u16 = 1;

/// A socket for raw frames.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

impl Socket {
    /// One that isn't bound: it takes nothing yet.
    pub fn packet() -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: takes integers only; a descriptor that it returns is nobody else's.
        let fd =
            unsafe { checked(libc::socket(libc::AF_PACKET, kind, 0)).map(|fd| OwnedFd::from_raw_fd(fd)) };
        fd.map(Self)
    }

    fn set<T>(&self, option: libc::c_int, value: &T) -> io::Result<()> {
        // SAFETY: pointer and length are those of `value`, which lives until the call returns; the kernel only reads it.
        let result = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                option,
                std::ptr::from_ref(value).cast(),
                size_of::<T>() as libc::socklen_t,
            )
        };
        checked(result).map(drop)
    }

    /// A ring for received frames, and which form its headers have.
    pub fn ring(&self, version: libc::c_int, request: &libc::tpacket_req) -> io::Result<()> {
        self.set(libc::PACKET_VERSION, &version)?;
        self.set(libc::PACKET_RX_RING, request)
    }

    /// What this host sends isn't received.
    pub fn ignore_outgoing(&self) -> io::Result<()> {
        self.set(libc::PACKET_IGNORE_OUTGOING, &1i32)
    }

    /// Frames for others are received too, until the socket is closed.
    pub fn promiscuous(&self, index: i32) -> io::Result<()> {
        let request = libc::packet_mreq {
            mr_ifindex: index,
            mr_type: libc::PACKET_MR_PROMISC as libc::c_ushort,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        self.set(libc::PACKET_ADD_MEMBERSHIP, &request)
    }

    /// From now on frames of this interface are received, of every protocol.
    pub fn bind(&self, index: i32) -> io::Result<()> {
        // SAFETY: all of `sockaddr_ll` is integers, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as libc::c_ushort;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index;
        // SAFETY: pointer and length are those of `address`, which lives until the call returns; the kernel only reads it.
        let result = unsafe {
            libc::bind(
                self.0.as_raw_fd(),
                std::ptr::from_ref(&address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        checked(result).map(drop)
    }

    /// Sends a frame on the interface that it is bound to.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: pointer and length are those of `frame`; the kernel only reads it.
        let sent =
            unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), libc::MSG_DONTWAIT) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Frames for which there was no room since this was last asked.
    pub fn dropped(&self) -> u64 {
        let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: the kernel writes `length` bytes at most to `statistics`, which is all integers and lives until the call
        // returns.
        let result = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                std::ptr::from_mut(&mut statistics).cast(),
                &mut length,
            )
        };
        if result < 0 {
            return 0;
        }
        statistics.tp_drops.into()
    }

    /// Takes the error that waits.
    pub fn take_error(&self) {
        let _ = rustix::net::sockopt::socket_error(&self.0);
    }

    fn ask(&self, name: &str, question: libc::c_ulong) -> io::Result<libc::ifreq> {
        // SAFETY: all of `ifreq` is integers and unions of integers and a pointer, for which zero is a value.
        let mut request: libc::ifreq = unsafe { zeroed() };
        // The last byte stays zero.
        if name.is_empty() || name.len() >= request.ifr_name.len() {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        // SAFETY: the questions asked here read and write an `ifreq`, which `request` is, and it lives until the call returns.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), question as _, &mut request) };
        checked(result).map(|_| request)
    }

    /// Its number.
    pub fn index(&self, name: &str) -> io::Result<i32> {
        let answer = self.ask(name, libc::SIOCGIFINDEX)?;
        // SAFETY: SIOCGIFINDEX has set this field of the union.
        Ok(unsafe { answer.ifr_ifru.ifru_ifindex })
    }

    /// Its MTU.
    pub fn mtu(&self, name: &str) -> io::Result<usize> {
        let answer = self.ask(name, libc::SIOCGIFMTU)?;
        // SAFETY: SIOCGIFMTU has set this field of the union.
        Ok(usize::try_from(unsafe { answer.ifr_ifru.ifru_mtu }).unwrap_or(0))
    }

    fn hardware_address(&self, name: &str) -> io::Result<libc::sockaddr> {
        let answer = self.ask(name, libc::SIOCGIFHWADDR)?;
        // SAFETY: SIOCGIFHWADDR has set this field of the union.
        Ok(unsafe { answer.ifr_ifru.ifru_hwaddr })
    }

    /// Does it carry Ethernet?
    pub fn is_ethernet(&self, name: &str) -> io::Result<bool> {
        Ok(self.hardware_address(name)?.sa_family == ARPHRD_ETHER)
    }

    /// Its address.
    pub fn mac(&self, name: &str) -> io::Result<[u8; 6]> {
        let address = self.hardware_address(name)?.sa_data;
        Ok(std::array::from_fn(|place| address[place] as u8))
    }

    /// Is it switched on, with a carrier?
    pub fn is_running(&self, name: &str) -> io::Result<bool> {
        let answer = self.ask(name, libc::SIOCGIFFLAGS)?;
        // SAFETY: SIOCGIFFLAGS has set this field of the union.
        let flags = libc::c_int::from(unsafe { answer.ifr_ifru.ifru_flags });
        let wanted = libc::IFF_UP | libc::IFF_RUNNING;
        Ok(flags & wanted == wanted)
    }
}
