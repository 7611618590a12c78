//! Registers in BAR 0: mapped, or by system calls where the kernel doesn't let it be mapped.

use crate::card::CardError;
use layout::pcie::{BAR0_BYTES, MSIX_TABLE_OFFSET};
use layout::registers::{MAXIMUM_PORTS, PORT_BASE, PORT_STRIDE};
use rustix::mm::{mmap, munmap, MapFlags, ProtFlags};
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_READ,
    VFIO_REGION_INFO_FLAG_WRITE,
};
use vfio_ioctls::{VfioDevice, VfioRegionInfoCap};
use volatile_register::RW;

/// Registers end here (`layout::registers`).
const REGISTER_BYTES: usize = PORT_BASE as usize + MAXIMUM_PORTS * PORT_STRIDE as usize;
/// What is mapped: everything below the MSI-X table, which is the kernel's.
const MAPPED_BYTES: usize = MSIX_TABLE_OFFSET;
const _: () = assert!(REGISTER_BYTES <= MAPPED_BYTES && MAPPED_BYTES <= BAR0_BYTES);

/// The words of the BAR below the MSI-X table, as they lie there. Their names and widths are in
/// `layout::registers`, and only there.
#[repr(C)]
struct Registers {
    words: [RW<u32>; MAPPED_BYTES / 4],
}

/// BAR 0.
pub enum Bar {
    /// In this process's memory.
    Mapped(Mapping),
    /// By `pread` and `pwrite`, some microseconds each.
    Called {
        /// The device; it is `VfioDevice`'s, which outlives this.
        device: ManuallyDrop<File>,
        /// Where the BAR begins in it.
        offset: u64,
    },
}

/// # Invariants
/// `registers` is the beginning of a shared mapping of [`MAPPED_BYTES`] bytes of BAR 0 that nobody else unmaps.
pub struct Mapping {
    registers: NonNull<Registers>,
}

// SAFETY: the mapping belongs to the value and to no thread.
unsafe impl Send for Mapping {}

/// Why a BAR can't be used.
#[derive(Debug, thiserror::Error)]
pub enum BarError {
    /// It isn't this card's.
    #[error("BAR 0 has {found} bytes, a Chronoswitch card's has {BAR0_BYTES}: this gateware and this driver don't belong together")]
    Size {
        /// Its size.
        found: u64,
    },
    /// The kernel doesn't give access to it.
    #[error("the kernel lets BAR 0 be neither mapped nor read and written (flags {0:#x})")]
    Inaccessible(u32),
    /// Mapping it failed.
    #[error("mapping BAR 0: {0}")]
    Map(io::Error),
}

impl Bar {
    /// Maps the registers of `device`.
    pub fn of(device: &VfioDevice) -> Result<Self, BarError> {
        let index = VFIO_PCI_BAR0_REGION_INDEX;
        let (flags, size) = (device.get_region_flags(index), device.get_region_size(index));
        if size != BAR0_BYTES as u64 {
            return Err(BarError::Size { found: size });
        }
        let offset = device.get_region_offset(index);
        if flags & VFIO_REGION_INFO_FLAG_MMAP != 0 && is_mappable(&device.get_region_caps(index)) {
            return Mapping::of(device, offset).map(Bar::Mapped).map_err(BarError::Map);
        }
        let access = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
        if flags & access != access {
            return Err(BarError::Inaccessible(flags));
        }
        Ok(Bar::Called { device: borrowed(device), offset })
    }

    /// Is it mapped?
    pub fn is_mapped(&self) -> bool {
        matches!(self, Bar::Mapped(_))
    }

    /// Reads the register at `offset`.
    pub fn read(&self, offset: u32) -> Result<u32, CardError> {
        let index = word(offset)?;
        match self {
            Bar::Mapped(mapping) => Ok(u32::from_le(mapping.registers().words[index].read())),
            Bar::Called { device, offset: bar } => {
                let mut bytes = [0; 4];
                let read = device.read_exact_at(&mut bytes, bar + u64::from(offset));
                read.map_err(|error| called(offset, "reading it", &error))?;
                Ok(u32::from_le_bytes(bytes))
            }
        }
    }

    /// Writes the register at `offset`.
    pub fn write(&self, offset: u32, value: u32) -> Result<(), CardError> {
        let index = word(offset)?;
        match self {
            Bar::Mapped(mapping) => {
                // SAFETY: a register of the card's, aligned and inside the mapping; what a write does is the
                // driver's business.
                unsafe { mapping.registers().words[index].write(value.to_le()) };
                Ok(())
            }
            Bar::Called { device, offset: bar } => {
                let written = device.write_all_at(&value.to_le_bytes(), bar + u64::from(offset));
                written.map_err(|error| called(offset, "writing it", &error))
            }
        }
    }
}

/// May what we map be mapped? Without a list of areas all of it may; the MSI-X table isn't among it.
fn is_mappable(capabilities: &[VfioRegionInfoCap]) -> bool {
    capabilities.iter().all(|capability| match capability {
        VfioRegionInfoCap::SparseMmap(sparse) => {
            sparse.areas.iter().any(|area| area.offset == 0 && area.size >= MAPPED_BYTES as u64)
        }
        _ => true,
    })
}

fn word(offset: u32) -> Result<usize, CardError> {
    match offset as usize {
        bytes if bytes < MAPPED_BYTES && bytes.is_multiple_of(4) => Ok(bytes / 4),
        _ => Err(CardError::Register { offset, reason: "not a register of the card".into() }),
    }
}

fn called(offset: u32, action: &str, error: &io::Error) -> CardError {
    CardError::Register { offset, reason: format!("{action} through the kernel: {error}") }
}

/// The device's file, which stays `device`'s.
pub fn borrowed(device: &VfioDevice) -> ManuallyDrop<File> {
    // SAFETY: never closed here, being in `ManuallyDrop`; who uses it holds `device` too.
    ManuallyDrop::new(unsafe { File::from_raw_fd(device.as_raw_fd()) })
}

impl Mapping {
    fn of(device: &VfioDevice, offset: u64) -> io::Result<Self> {
        // SAFETY: the descriptor is open for as long as `device` is borrowed.
        let file = unsafe { BorrowedFd::borrow_raw(device.as_raw_fd()) };
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory there is.
        let pointer =
            unsafe { mmap(std::ptr::null_mut(), MAPPED_BYTES, protection, MapFlags::SHARED, file, offset) }?;
        let registers =
            NonNull::new(pointer.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { registers })
    }

    fn registers(&self) -> &Registers {
        // SAFETY: the mapping is as long as `Registers`, page aligned, and lives as long as `self`; every word is
        // a volatile cell, which the device may change.
        unsafe { self.registers.as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it is the mapping made in `of`, and nobody refers to it any more.
        let unmapped = unsafe { munmap(self.registers.as_ptr().cast(), MAPPED_BYTES) };
        debug_assert!(unmapped.is_ok());
    }
}
