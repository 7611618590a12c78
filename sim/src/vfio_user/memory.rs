//! A guest's memory, as far as its IOMMU lets the card reach it.

use crate::pcie_root::HostMemory;
use rustix::fs::fstat;
use rustix::mm::{mmap, munmap, MapFlags, ProtFlags};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Mappings that there may be: 64 MiB of rings in 4 KiB pages are 16384.
const MAXIMUM_MAPPINGS: usize = 1 << 20;

/// What is mapped, by bus address.
#[derive(Default)]
pub struct GuestMemory {
    mappings: BTreeMap<u64, Mapping>,
}

struct Mapping {
    bytes: u64,
    /// Where in the file; `None`: it is memory that this process can't reach, or mustn't write.
    place: Option<(Rc<SharedFile>, u64)>,
}

/// A file of a guest's memory, mapped once however often pieces of it are.
///
/// # Invariants
/// `pointer` is the beginning of a shared mapping of `bytes` bytes that nobody else unmaps.
struct SharedFile {
    identity: (u64, u64),
    pointer: NonNull<u8>,
    bytes: u64,
}

impl SharedFile {
    fn map(file: &File) -> io::Result<Self> {
        let about = fstat(file)?;
        let bytes = u64::try_from(about.st_size).unwrap_or(0);
        let length = usize::try_from(bytes).map_err(io::Error::other)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory there is.
        let pointer = unsafe { mmap(std::ptr::null_mut(), length, protection, MapFlags::SHARED, file, 0) }?;
        let pointer = NonNull::new(pointer.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { identity: (about.st_dev, about.st_ino), pointer, bytes })
    }

    /// Writes where a guest may read and write at any time.
    fn write(&self, offset: u64, bytes: &[u8]) {
        assert!(offset.checked_add(bytes.len() as u64).is_some_and(|end| end <= self.bytes));
        // SAFETY: inside the mapping.
        let place = unsafe { self.pointer.as_ptr().add(offset as usize) };
        match <[u8; 8]>::try_from(bytes) {
            Ok(word) if offset.is_multiple_of(8) => {
                // SAFETY: inside the mapping and aligned, for the mapping begins at a page; what else reads it is
                // another process.
                let word_there = unsafe { AtomicU64::from_ptr(place.cast()) };
                word_there.store(u64::from_ne_bytes(word), Ordering::Release);
            }
            _ => {
                for (index, byte) in bytes.iter().enumerate() {
                    // SAFETY: inside the mapping; volatile, since another process may look at it any time.
                    unsafe { place.add(index).write_volatile(*byte) };
                }
            }
        }
    }
}

impl Drop for SharedFile {
    fn drop(&mut self) {
        // SAFETY: it is the mapping made in `map`, and nobody refers to it any more.
        let unmapped = unsafe { munmap(self.pointer.as_ptr().cast(), self.bytes as usize) };
        debug_assert!(unmapped.is_ok());
    }
}

impl GuestMemory {
    /// The card reaches `bytes` bytes at bus `address`: those at `offset` of `file`. Without a file, or where it
    /// may not write, an access is a fault.
    pub fn map(
        &mut self,
        address: u64,
        bytes: u64,
        writable: bool,
        file: Option<(&File, u64)>,
    ) -> io::Result<()> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_string());
        let end = address.checked_add(bytes).filter(|_| bytes > 0);
        let end = end.ok_or_else(|| invalid("a mapping of no bytes, or beyond the end of all addresses"))?;
        if self.mappings.range(..end).next_back().is_some_and(|(other, it)| other + it.bytes > address) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it overlaps what is mapped"));
        }
        if self.mappings.len() >= MAXIMUM_MAPPINGS {
            return Err(io::Error::other("too many mappings"));
        }
        let place = match file.filter(|_| writable) {
            None => None,
            Some((file, offset)) => {
                let shared = self.shared(file)?;
                if offset.checked_add(bytes).is_none_or(|end| end > shared.bytes) {
                    return Err(invalid("it reaches beyond the end of its file"));
                }
                Some((shared, offset))
            }
        };
        self.mappings.insert(address, Mapping { bytes, place });
        Ok(())
    }

    fn shared(&self, file: &File) -> io::Result<Rc<SharedFile>> {
        let about = fstat(file)?;
        let identity = (about.st_dev, about.st_ino);
        let known = self.mappings.values().filter_map(|mapping| mapping.place.as_ref());
        match known.map(|(shared, _)| shared).find(|shared| shared.identity == identity) {
            Some(shared) => Ok(shared.clone()),
            None => Ok(Rc::new(SharedFile::map(file)?)),
        }
    }

    /// Takes away every mapping inside `bytes` bytes at `address`; one that is only partly inside stays, and that
    /// is an error.
    pub fn unmap(&mut self, address: u64, bytes: u64) -> io::Result<()> {
        let end = address.saturating_add(bytes);
        let inside: Vec<u64> = self.mappings.range(address..end).map(|(address, _)| *address).collect();
        let is_cut = |(other, mapping): (&u64, &Mapping)| other + mapping.bytes > end;
        if self.mappings.range(address..end).any(is_cut) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a mapping is only partly inside"));
        }
        inside.iter().for_each(|address| drop(self.mappings.remove(address)));
        Ok(())
    }

    /// Takes away everything.
    pub fn unmap_all(&mut self) {
        self.mappings.clear();
    }

    /// How many mappings there are.
    pub fn mappings(&self) -> usize {
        self.mappings.len()
    }

    /// The piece of a mapping that holds `address`: file, offset, and how many bytes there are from there on.
    fn at(&self, address: u64) -> Option<(&SharedFile, u64, u64)> {
        let (first, mapping) = self.mappings.range(..=address).next_back()?;
        let into = address - first;
        let (shared, offset) = mapping.place.as_ref()?;
        (into < mapping.bytes).then(|| (&**shared, offset + into, mapping.bytes - into))
    }
}

impl HostMemory for Rc<RefCell<GuestMemory>> {
    fn write(&mut self, address: u64, bytes: &[u8]) -> bool {
        let memory = self.borrow();
        // A packet may reach over several mappings: whole or not at all.
        let mut pieces = Vec::new();
        let (mut at, mut rest) = (address, bytes);
        while !rest.is_empty() {
            let Some((shared, offset, left)) = memory.at(at) else { return false };
            let (piece, behind) = rest.split_at(rest.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
            pieces.push((shared, offset, piece));
            (at, rest) = (at + piece.len() as u64, behind);
        }
        pieces.iter().for_each(|(shared, offset, piece)| shared.write(*offset, piece));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn file(bytes: u64) -> File {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(bytes).expect("its size");
        file
    }

    fn read(file: &File, offset: u64, bytes: usize) -> Vec<u8> {
        let mut found = vec![0; bytes];
        file.read_exact_at(&mut found, offset).expect("a read");
        found
    }

    #[test]
    fn writes_land_where_the_guest_mapped_them_and_nowhere_else() {
        let ram = file(64 * 1024);
        let memory = Rc::new(RefCell::new(GuestMemory::default()));
        let mut card = memory.clone();
        memory.borrow_mut().map(0x1_0000_0000, 4096, true, Some((&ram, 8192))).expect("mapped");
        memory.borrow_mut().map(0x1_0000_1000, 4096, true, Some((&ram, 0))).expect("mapped");
        assert!(card.write(0x1_0000_0FFC, &[1, 2, 3, 4, 5, 6, 7, 8]), "over two pages that lie apart");
        assert_eq!((read(&ram, 12284, 4), read(&ram, 0, 4)), (vec![1, 2, 3, 4], vec![5, 6, 7, 8]));
        assert!(card.write(0x1_0000_0008, &7u64.to_ne_bytes()));
        assert_eq!(read(&ram, 8200, 8), 7u64.to_ne_bytes());
        let before = read(&ram, 0, 64 * 1024);
        assert!(!card.write(0x1_0000_1FFC, &[9; 8]), "half of it isn't mapped");
        assert!(!card.write(0xFFFF_FFFC, &[9; 8]));
        assert!(!card.write(u64::MAX - 3, &[9; 4]));
        assert_eq!(read(&ram, 0, 64 * 1024), before, "a fault writes nothing");
        memory.borrow_mut().unmap(0x1_0000_0000, 4096).expect("unmapped");
        assert!(!card.write(0x1_0000_0000, &[9; 4]));
        assert!(card.write(0x1_0000_1000, &[9; 4]));
        memory.borrow_mut().unmap_all();
        assert!(!card.write(0x1_0000_1000, &[9; 4]));
    }

    #[test]
    fn what_may_not_be_written_or_is_not_there_is_a_fault() {
        let ram = file(8192);
        let memory = Rc::new(RefCell::new(GuestMemory::default()));
        let mut card = memory.clone();
        memory.borrow_mut().map(0, 4096, false, Some((&ram, 0))).expect("read-only");
        memory.borrow_mut().map(4096, 4096, true, None).expect("no file");
        assert!(!card.write(0, &[1; 4]) && !card.write(4096, &[1; 4]));
        let mut memory = memory.borrow_mut();
        assert!(memory.map(2048, 4096, true, None).is_err(), "overlaps");
        assert!(memory.map(8192, 0, true, None).is_err(), "nothing");
        assert!(memory.map(u64::MAX, 2, true, None).is_err(), "beyond the end");
        assert!(memory.map(8192, 8192, true, Some((&ram, 4096))).is_err(), "beyond its file");
        assert!(memory.unmap(0, 2048).is_err(), "a part of one");
        assert!(memory.unmap(0, u64::MAX).is_ok());
        assert_eq!(memory.mappings(), 0);
    }
}
