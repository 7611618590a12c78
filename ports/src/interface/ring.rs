//! Frames that came in, in memory that is shared with the kernel: TPACKET_V2, `Documentation/networking/packet_mmap.rst`.
//!
//! A slot belongs to the kernel or to us, as its status word says; whoever has it gives it over by a store to that word.

use super::kernel::Socket;
use std::io;
use std::os::fd::AsFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use libc::{
    tpacket2_hdr, tpacket_req, TPACKET2_HDRLEN, TPACKET_ALIGNMENT, TP_STATUS_CSUMNOTREADY, TP_STATUS_KERNEL,
    TP_STATUS_USER, TP_STATUS_VLAN_TPID_VALID, TP_STATUS_VLAN_VALID,
};

/// Bytes that the kernel allocates in one piece.
const BLOCK_BYTES: usize = 64 << 10;
/// Bytes that the kernel leaves between a slot's header and the frame at most, so that what follows Ethernet is aligned.
const ALIGNMENT_BYTES: usize = 2 * TPACKET_ALIGNMENT;
/// The tag protocol where the kernel doesn't tell it.
const PLAIN_VLAN: u16 = 0x8100;

/// A frame that came in.
pub enum Slot<'a> {
    /// Whole.
    Frame {
        /// Its bytes, without a VLAN tag.
        bytes: &'a [u8],
        /// The tag that the kernel took off.
        tag: Option<[u8; 4]>,
    },
    /// Longer than a slot.
    Cut,
    /// Its checksum isn't in it yet.
    Unfinished,
}

/// The ring.
#[derive(Debug)]
pub struct Ring {
    memory: NonNull<u8>,
    bytes: usize,
    slot_bytes: usize,
    slots_a_block: usize,
    slots: usize,
    at: usize,
}

// SAFETY: the memory is the ring's own until it is dropped, from whatever thread.
unsafe impl Send for Ring {}

impl Ring {
    /// A ring of the socket, for frames of `frame_bytes` at most, with `bytes` of memory or a little less.
    pub fn new(socket: &Socket, frame_bytes: usize, bytes: usize) -> io::Result<Self> {
        let slot_bytes =
            (TPACKET2_HDRLEN + ALIGNMENT_BYTES + frame_bytes).next_multiple_of(TPACKET_ALIGNMENT);
        let slots_a_block = BLOCK_BYTES / slot_bytes;
        let blocks = bytes / BLOCK_BYTES;
        let slots = slots_a_block * blocks;
        if slots == 0 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let request = tpacket_req {
            tp_block_size: BLOCK_BYTES as u32,
            tp_block_nr: blocks as u32,
            tp_frame_size: slot_bytes as u32,
            tp_frame_nr: slots as u32,
        };
        socket.ring(libc::tpacket_versions::TPACKET_V2 as libc::c_int, &request)?;
        let bytes = blocks * BLOCK_BYTES;
        let (protection, flags) = {
            use rustix::mm::{MapFlags, ProtFlags};
            (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::POPULATE)
        };
        // SAFETY: the kernel chooses the place, so nothing that is mapped already is touched.
        let memory =
            unsafe { rustix::mm::mmap(ptr::null_mut(), bytes, protection, flags, socket.as_fd(), 0)? };
        let memory = NonNull::new(memory.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Self { memory, bytes, slot_bytes, slots_a_block, slots, at: 0 })
    }

    fn slot(&self) -> NonNull<u8> {
        let offset =
            self.at / self.slots_a_block * BLOCK_BYTES + self.at % self.slots_a_block * self.slot_bytes;
        assert!(offset + self.slot_bytes <= self.bytes);
        // SAFETY: within the mapping, as was just checked.
        unsafe { self.memory.add(offset) }
    }

    fn status(&self) -> &AtomicU32 {
        // SAFETY: a slot begins with its status, at an offset that 16 divides, in memory that is mapped as long as `self` is;
        // the kernel too writes it as one word.
        unsafe { AtomicU32::from_ptr(self.slot().cast().as_ptr()) }
    }

    /// The oldest frame that came in, if there is one. Stays until [`Ring::give_back`].
    pub fn next(&mut self) -> Option<Slot<'_>> {
        // What the kernel wrote before it gave the slot over is seen after this.
        let status = self.status().load(Ordering::Acquire);
        if status & TP_STATUS_USER == 0 {
            return None;
        }
        let slot = self.slot();
        // SAFETY: the slot is ours, and begins with this header, which is all integers; nobody writes it before it is given
        // back, which takes `&mut self`.
        let header: tpacket2_hdr = unsafe { slot.cast::<tpacket2_hdr>().read() };
        let (at, length) = (usize::from(header.tp_mac), header.tp_snaplen as usize);
        if header.tp_len != header.tp_snaplen || at + length > self.slot_bytes {
            return Some(Slot::Cut);
        }
        if status & TP_STATUS_CSUMNOTREADY != 0 {
            return Some(Slot::Unfinished);
        }
        // SAFETY: within the slot, as was just checked, which is ours and written by nobody until it is given back; that takes
        // `&mut self`, which the result borrows.
        let bytes = unsafe { std::slice::from_raw_parts(slot.add(at).as_ptr(), length) };
        let tag = (status & TP_STATUS_VLAN_VALID != 0).then(|| {
            let told = status & TP_STATUS_VLAN_TPID_VALID != 0;
            let [a, b] = (if told { header.tp_vlan_tpid } else { PLAIN_VLAN }).to_be_bytes();
            let [c, d] = header.tp_vlan_tci.to_be_bytes();
            [a, b, c, d]
        });
        Some(Slot::Frame { bytes, tag })
    }

    /// The kernel may use the slot again.
    pub fn give_back(&mut self) {
        // What was read from the slot is read before this.
        self.status().store(TP_STATUS_KERNEL, Ordering::Release);
        self.at = (self.at + 1) % self.slots;
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nothing borrows of it any more.
        let _ = unsafe { rustix::mm::munmap(self.memory.as_ptr().cast(), self.bytes) };
    }
}
