//! The VFIO ioctls that `vfio-ioctls` hides or doesn't have.

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_INFO_PGSIZES, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_TYPE,
};
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ptr};
use vmm_sys_util::ioctl_io_nr;

ioctl_io_nr!(VFIO_DEVICE_RESET, VFIO_TYPE as u32, VFIO_BASE + 11);
ioctl_io_nr!(VFIO_IOMMU_GET_INFO, VFIO_TYPE as u32, VFIO_BASE + 12);

/// Most that the kernel may have to say of an IOMMU. It has had some hundred bytes so far.
const INFO_LIMIT: usize = 64 * 1024;
/// Of `struct vfio_iommu_type1_info`: argsz, flags, iova_pgsizes, cap_offset, padding.
const INFO_BYTES: usize = 24;

/// What an IOMMU can map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IommuInfo {
    /// One bit a page size; 0: the kernel doesn't say.
    pub page_sizes: u64,
    /// Addresses that it translates, with the reserved ones left out; empty: the kernel doesn't say.
    pub ranges: Vec<RangeInclusive<u64>>,
}

/// Function-level reset. Fails where the device has none.
pub fn reset(device: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: the ioctl takes no argument.
    match unsafe { ioctl(device, VFIO_DEVICE_RESET()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What the container's IOMMU can map.
pub fn iommu_info(container: &impl AsRawFd) -> io::Result<IommuInfo> {
    let mut info = vec![0u64; INFO_BYTES / 8];
    loop {
        let bytes = info.len() * 8;
        info[0] = bytes as u64;
        // SAFETY: the kernel writes at most `argsz` bytes, the first u32, which is the length of `info`.
        let done = unsafe { ioctl_with_mut_ptr(container, VFIO_IOMMU_GET_INFO(), info.as_mut_ptr()) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        let wanted = info[0] as u32 as usize;
        if wanted <= bytes {
            break;
        }
        if wanted > INFO_LIMIT {
            return Err(io::Error::other(format!("the kernel has {wanted} bytes to say of the IOMMU")));
        }
        info = vec![0; wanted.div_ceil(8)];
    }
    let bytes: Vec<u8> = info.iter().flat_map(|word| word.to_ne_bytes()).collect();
    parse(&bytes).ok_or_else(|| io::Error::other("what the kernel says of the IOMMU makes no sense"))
}

/// `struct vfio_iommu_type1_info`, and its chain of capabilities, each at an offset beyond the one before.
fn parse(bytes: &[u8]) -> Option<IommuInfo> {
    let u32_at = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?));
    let flags = u32_at(4)?;
    let page_sizes = if flags & VFIO_IOMMU_INFO_PGSIZES != 0 { u64_at(8)? } else { 0 };
    let mut ranges = Vec::new();
    let mut at = if flags & VFIO_IOMMU_INFO_CAPS != 0 { u32_at(16)? as usize } else { 0 };
    while at != 0 {
        let (id, next) = (u32_at(at)? & 0xFFFF, u32_at(at + 4)? as usize);
        if id == VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE {
            for range in 0..u32_at(at + 8)? as usize {
                let first = at + 16 + range * 16;
                ranges.push(u64_at(first)?..=u64_at(first + 8)?);
            }
        }
        if next != 0 && next <= at {
            return None;
        }
        at = next;
    }
    Some(IommuInfo { page_sizes, ranges })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(capabilities: &[(u16, u32, &[u64])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [0u32, 3] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(0x4020_1000u64.to_ne_bytes());
        for word in [INFO_BYTES as u32, 0] {
            bytes.extend(word.to_ne_bytes());
        }
        for (id, next, words) in capabilities {
            bytes.extend(id.to_ne_bytes());
            bytes.extend(1u16.to_ne_bytes());
            bytes.extend(next.to_ne_bytes());
            bytes.extend((words.len() as u32 / 2).to_ne_bytes());
            bytes.extend(0u32.to_ne_bytes());
            words.iter().for_each(|word| bytes.extend(word.to_ne_bytes()));
        }
        bytes
    }

    #[test]
    fn ranges_are_found_behind_other_capabilities() {
        let bytes = info(&[(2, 40, &[]), (1, 0, &[0, 0xFEDF_FFFF, 0xFEF0_0000, (1 << 39) - 1])]);
        let expected = vec![0..=0xFEDF_FFFF, 0xFEF0_0000..=(1 << 39) - 1];
        assert_eq!(parse(&bytes), Some(IommuInfo { page_sizes: 0x4020_1000, ranges: expected }));
    }

    #[test]
    fn what_points_back_or_beyond_is_refused() {
        assert_eq!(parse(&info(&[(2, INFO_BYTES as u32, &[])])), None);
        assert_eq!(parse(&info(&[(2, 4096, &[])])), None);
        let mut cut = info(&[(1, 0, &[0, 1])]);
        cut.truncate(cut.len() - 1);
        assert_eq!(parse(&cut), None);
        assert_eq!(parse(&[]), None);
    }
}
