//! The card behind Linux VFIO: production.
//!
//! | file | job |
//! |---|---|
//! | `open` | group, container, device: what can be missing, and what mends it |
//! | `config` | configuration space and capabilities |
//! | `bar` | registers in BAR 0 |
//! | `memory` | memory for DMA: huge pages where there are, 4 KiB pages where not |
//! | `iova` | where in the card's address space it lies |
//! | `vectors` | MSI-X, and what else the kernel tells by eventfd |
//! | `kernel` | the ioctls that no crate has |
//!
//! A group is open once: a second agent on the same card is refused by the kernel, and told so
//! ([`OpenError::InUse`]).

mod bar;
mod config;
mod iova;
mod kernel;
mod memory;
mod open;
mod vectors;

pub use config::{Configuration, MsixTable};
pub use memory::PageSize;
pub use open::{OpenError, VfioOptions};

use crate::card::{Card, CardError, DmaRegion, Interrupts};
use bar::Bar;
use iova::Space;
use memory::Memory;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;
use vectors::{News, Vectors};
use vfio_ioctls::{VfioContainer, VfioDevice};

/// A card that this process holds through VFIO.
///
/// # Invariants
/// What is in `mapped` is mapped in the container, at the key, for exactly its memory; nothing else is. The
/// memory is unmapped there before it goes.
pub struct VfioCard {
    bar: Bar,
    vectors: Vectors,
    mapped: BTreeMap<u64, Memory>,
    space: Space,
    device: VfioDevice,
    container: Arc<VfioContainer>,
    configuration: Configuration,
    slowness: u32,
    interrupts_need_enabling: bool,
    notes: Vec<String>,
}

impl std::fmt::Debug for VfioCard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("VfioCard");
        debug.field("configuration", &self.configuration).field("mapped", &self.mapped);
        debug.field("slowness", &self.slowness).finish_non_exhaustive()
    }
}

impl VfioCard {
    /// What configuration space said when the card was opened.
    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// What isn't as good as it could be, for the one who runs this; taken once.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Pages of what is mapped for DMA now: those of the smallest, `None` when nothing is.
    pub fn smallest_page(&self) -> Option<PageSize> {
        self.mapped.values().map(Memory::page).min()
    }

    /// Are registers read and written through a mapping of the BAR, and not by system calls?
    pub fn is_bar_mapped(&self) -> bool {
        self.bar.is_mapped()
    }

    /// The host wants the device back (unbind, hot unplug): stop it in order, and let go of it.
    pub fn is_release_requested(&self) -> bool {
        self.vectors.is_release_requested()
    }

    /// Function-level reset through the kernel: DMA, rings and interrupts are over. Stamps, numbers, the
    /// session and what lies in the ports' rings live on.
    pub fn reset(&mut self) -> Result<(), CardError> {
        self.interrupts_need_enabling = true;
        kernel::reset(&self.device).map_err(|error| {
            CardError::Bus(format!(
                "the kernel could not reset the function: {error}; reboot, or reset its slot"
            ))
        })?;
        self.configuration.enable_bus_master(&self.device)?;
        Ok(())
    }

    /// Is anything of this readable: an interrupt, an error, a request? For an event loop, such as tokio's
    /// `AsyncFd`; then [`Card::wait`] with no time-out takes it.
    fn event_fd(&self) -> BorrowedFd<'_> {
        self.vectors.event_fd()
    }

    fn unmap_all(&mut self) {
        for (address, memory) in std::mem::take(&mut self.mapped) {
            match self.container.vfio_dma_unmap(address, memory.bytes()) {
                Ok(()) => self.space.give_back(address),
                // The card may reach it for as long as the container is open: it stays ours until then.
                Err(_) => std::mem::forget(memory),
            }
        }
    }

    fn look(&mut self, news: News) -> Result<Interrupts, CardError> {
        if news.error {
            return Err(CardError::Bus(
                "PCIe reported an uncorrectable error of it (see the kernel's log, AER); stop, and reset the card"
                    .into(),
            ));
        }
        Ok(Interrupts(news.fired))
    }
}

impl AsFd for VfioCard {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event_fd()
    }
}

impl Card for VfioCard {
    fn read(&mut self, offset: u32) -> Result<u32, CardError> {
        self.bar.read(offset)
    }

    fn write(&mut self, offset: u32, value: u32) -> Result<(), CardError> {
        self.bar.write(offset, value)
    }

    fn map_dma(&mut self, bytes: usize) -> Result<DmaRegion, CardError> {
        let failed = |reason: String| CardError::Map { bytes, reason };
        let (memory, note) = Memory::allocate(bytes).map_err(|error| failed(error.to_string()))?;
        self.notes.extend(note.filter(|note| !self.notes.contains(note)));
        let alignment = memory.page().bytes().max(self.space.granule());
        let Some(address) = self.space.take(memory.bytes() as u64, alignment) else {
            return Err(failed("the IOMMU's address ranges have no room for it".into()));
        };
        // SAFETY: `memory` stays until it was unmapped here (`unmap_dma`, `Drop`), and is only ever looked at
        // through atomic loads and through slices of what the card has finished with (`Card::dma_bytes`).
        let mapped = unsafe { self.container.vfio_dma_map(address, memory.bytes(), memory.pointer()) };
        if let Err(error) = mapped {
            self.space.give_back(address);
            return Err(failed(open::explain_map(&error, memory.bytes())));
        }
        self.mapped.insert(address, memory);
        Ok(DmaRegion { id: 0, bus_address: address, bytes })
    }

    fn unmap_dma(&mut self, region: DmaRegion) -> Result<(), CardError> {
        let failed = |reason: String| CardError::Map { bytes: region.bytes, reason };
        let Some(memory) = self.mapped.get(&region.bus_address) else {
            return Err(failed("the region isn't mapped".into()));
        };
        let unmapped = self.container.vfio_dma_unmap(region.bus_address, memory.bytes());
        unmapped.map_err(|error| failed(format!("unmapping it: {error}")))?;
        self.mapped.remove(&region.bus_address);
        self.space.give_back(region.bus_address);
        Ok(())
    }

    fn dma_bytes(&self, region: &DmaRegion) -> &[u8] {
        let memory = self.mapped.get(&region.bus_address);
        memory.map_or(&[], |memory| memory.bytes_of(region.bytes))
    }

    fn dma_load(&self, region: &DmaRegion, offset: usize) -> u64 {
        // All ones is what a card that is gone reads as; the driver looks for it.
        let memory = self.mapped.get(&region.bus_address);
        memory.and_then(|memory| memory.load(offset)).unwrap_or(u64::MAX)
    }

    /// The kernel owns the table and has its messages in it; but the function reset of bring-up has cleared the
    /// table behind the kernel's back. So the vectors are enabled anew: then the kernel writes the table again.
    fn msix_message(&mut self, _vector: usize) -> Option<(u64, u32)> {
        if std::mem::take(&mut self.interrupts_need_enabling) {
            if let Err(error) = self.vectors.enable(&self.device) {
                self.notes.push(format!(
                    "interrupts could not be enabled ({error}): the rings are looked at from time to time instead"
                ));
            }
        }
        None
    }

    fn function_was_reset(&mut self) {
        self.interrupts_need_enabling = true;
        self.unmap_all();
    }

    fn wait(&mut self, timeout: Duration) -> Result<Interrupts, CardError> {
        let news = self.vectors.wait(timeout.saturating_mul(self.slowness));
        let news = news.map_err(|error| CardError::Bus(format!("waiting for an interrupt: {error}")))?;
        self.look(news)
    }
}

impl Drop for VfioCard {
    fn drop(&mut self) {
        // No DMA is begun any more, whatever state the card is in. Best effort: it may be gone.
        let _ = self.configuration.disable_bus_master(&self.device);
        self.vectors.disable(&self.device);
        self.unmap_all();
    }
}
