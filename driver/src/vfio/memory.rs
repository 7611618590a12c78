//! Memory for DMA.

use rustix::mm::{madvise, mmap_anonymous, munmap, Advice, MapFlags, ProtFlags};
use std::ffi::c_void;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a huge page of x86 and of ARM with 4 KiB pages.
const HUGE: usize = 2 << 20;
/// Bytes of a page.
const PAGE: usize = 4096;
/// What is smaller isn't worth a huge page: the mailboxes are a page.
const WORTH_A_HUGE_PAGE: usize = 64 * 1024;

/// Size of the pages that memory consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PageSize {
    /// 4 KiB.
    Small,
    /// 2 MiB.
    Huge,
}

impl PageSize {
    /// In bytes.
    pub fn bytes(self) -> u64 {
        match self {
            PageSize::Small => PAGE as u64,
            PageSize::Huge => HUGE as u64,
        }
    }
}

/// Zeroed memory of this process, whole pages.
///
/// # Invariants
/// `pointer` is the beginning of a private anonymous mapping of `bytes` bytes that nobody else unmaps.
#[derive(Debug)]
pub struct Memory {
    pointer: NonNull<u8>,
    bytes: usize,
    page: PageSize,
}

// SAFETY: the mapping belongs to the value and to no thread.
unsafe impl Send for Memory {}
// SAFETY: through a shared reference it is only read.
unsafe impl Sync for Memory {}

impl Memory {
    /// At least `bytes` bytes: in huge pages if it is worth it and there are any, and otherwise what to do so
    /// that there are, for the one who runs this. The rest of the last page is unused.
    pub fn allocate(bytes: usize) -> io::Result<(Self, Option<String>)> {
        if bytes < WORTH_A_HUGE_PAGE {
            return Ok((Self::map(bytes, PageSize::Small)?, None));
        }
        match Self::map(bytes, PageSize::Huge) {
            Ok(memory) => Ok((memory, None)),
            Err(error) => {
                let pages = 4 * bytes.div_ceil(HUGE);
                let note = format!(
                    "no huge pages ({error}): 4 KiB pages are used, which cost the IOMMU more. For a card's rings: \
                     echo {pages} > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
                );
                Ok((Self::map(bytes, PageSize::Small)?, Some(note)))
            }
        }
    }

    fn map(bytes: usize, page: PageSize) -> io::Result<Self> {
        let bytes = bytes.next_multiple_of(page.bytes() as usize);
        // MAP_POPULATE: a page that isn't there must fail here and not as a SIGBUS in the middle of a drain.
        let flags = MapFlags::PRIVATE | MapFlags::POPULATE;
        let flags = match page {
            PageSize::Small => flags,
            PageSize::Huge => flags | MapFlags::HUGETLB | MapFlags::HUGE_2MB,
        };
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory there is.
        let pointer = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, protection, flags) }?;
        let pointer = NonNull::new(pointer.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        let memory = Self { pointer, bytes, page };
        // After a fork the child must not get these pages, or a write of the parent's would move the parent to
        // copies, which the card doesn't know.
        // SAFETY: the range is the mapping just made.
        unsafe { madvise(memory.pointer.as_ptr().cast(), bytes, Advice::LinuxDontFork) }?;
        Ok(memory)
    }

    /// Where it begins.
    pub fn pointer(&self) -> *mut u8 {
        self.pointer.as_ptr()
    }

    /// Its length, whole pages.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its pages.
    pub fn page(&self) -> PageSize {
        self.page
    }

    /// Its first `bytes` bytes; all of it if it has fewer. The caller looks only at what the card doesn't write
    /// meanwhile (`Card::dma_bytes`).
    pub fn bytes_of(&self, bytes: usize) -> &[u8] {
        // SAFETY: the mapping is that long at least and lives as long as `self`; it was zeroed, so every byte is
        // initialised.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), bytes.min(self.bytes)) }
    }

    /// Loads the aligned little-endian u64 at `offset`, if there is one.
    pub fn load(&self, offset: usize) -> Option<u64> {
        if !offset.is_multiple_of(8) || offset.checked_add(8)? > self.bytes {
            return None;
        }
        // SAFETY: aligned, inside the mapping, and accessed by this process through atomics only.
        let word = unsafe { AtomicU64::from_ptr(self.pointer.as_ptr().add(offset).cast()) };
        Some(u64::from_le(word.load(Ordering::Acquire)))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let pointer: *mut c_void = self.pointer.as_ptr().cast();
        // SAFETY: it is the mapping made in `map`, and nobody refers to it any more.
        let unmapped = unsafe { munmap(pointer, self.bytes) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zeroed_whole_and_read_in_bounds() {
        let (memory, note) = Memory::allocate(5000).expect("memory");
        assert_eq!((memory.bytes(), memory.page(), note), (8192, PageSize::Small, None));
        assert!(memory.bytes_of(8192).iter().all(|byte| *byte == 0));
        assert_eq!(memory.bytes_of(1 << 20).len(), 8192);
        // SAFETY: inside the mapping.
        unsafe { memory.pointer().add(8184).write(0x5A) };
        assert_eq!(memory.load(8184), Some(0x5A));
        assert_eq!([memory.load(8192), memory.load(4), memory.load(usize::MAX - 7)], [None; 3]);
    }

    #[test]
    fn without_huge_pages_it_says_what_to_do() {
        let (memory, note) = Memory::allocate(1 << 20).expect("memory");
        match memory.page() {
            PageSize::Huge => assert_eq!((memory.bytes(), note), (HUGE, None)),
            PageSize::Small => {
                assert_eq!(memory.bytes(), 1 << 20);
                assert!(note.expect("a note").contains("nr_hugepages"));
            }
        }
    }
}
