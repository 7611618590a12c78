//! What the driver needs of a card, whatever carries it.

use std::time::Duration;

/// Memory that the card may reach. Made by [`Card::map_dma`]; zeroed at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaRegion {
    /// The backend's own name for the region.
    pub id: usize,
    /// Address by which the card reaches it, aligned to 4 KiB.
    pub bus_address: u64,
    /// Length in bytes.
    pub bytes: usize,
}

/// One bit a vector that fired since the last wait. Empty after a time-out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Interrupts(pub u64);

/// What can go wrong between the driver and a card.
#[derive(Debug, thiserror::Error)]
pub enum CardError {
    /// The card doesn't answer any more: reads return all ones, or the backend says so.
    #[error("the card is gone: {0}")]
    Gone(String),
    /// A register access was not answered or not accepted.
    #[error("register {offset:#06x}: {reason}")]
    Register {
        /// Offset in BAR 0.
        offset: u32,
        /// What happened.
        reason: String,
    },
    /// The bus, or the kernel on the way to it, failed.
    #[error("{0}")]
    Bus(String),
    /// Its function was reset while it was up: by the kernel, by another program, by a fault.
    #[error(
        "the card was reset while it was in use (CONTROL reads {control:#x}): what it had delivered and was not \
         taken is lost; bring it up again"
    )]
    WasReset {
        /// What CONTROL reads.
        control: u32,
    },
    /// Memory could not be mapped for DMA.
    #[error("mapping {bytes} bytes for DMA: {reason}")]
    Map {
        /// Bytes asked for.
        bytes: usize,
        /// What happened.
        reason: String,
    },
    /// The card reached for memory that it was not given.
    #[error("the card wrote {bytes} bytes at bus address {address:#x}, outside every mapped region")]
    Fault {
        /// Bus address of the access.
        address: u64,
        /// Its length.
        bytes: usize,
    },
}

/// A card: registers, DMA memory, interrupts.
pub trait Card {
    /// Reads the 32-bit register at `offset` of BAR 0.
    fn read(&mut self, offset: u32) -> Result<u32, CardError>;

    /// Writes the 32-bit register at `offset` of BAR 0. Posted: a later read pushes it.
    fn write(&mut self, offset: u32, value: u32) -> Result<(), CardError>;

    /// Maps `bytes` (a multiple of 4 KiB) of zeroed memory for the card.
    fn map_dma(&mut self, bytes: usize) -> Result<DmaRegion, CardError>;

    /// Takes the memory back; the card can't reach it afterwards.
    fn unmap_dma(&mut self, region: DmaRegion) -> Result<(), CardError>;

    /// The region's bytes. The caller looks only at what the card has announced and the host hasn't
    /// given back, which nobody writes meanwhile.
    fn dma_bytes(&self, region: &DmaRegion) -> &[u8];

    /// Loads an aligned little-endian u64 that the card may write at any time; what the card wrote
    /// before it is visible afterwards (acquire).
    fn dma_load(&self, region: &DmaRegion, offset: usize) -> u64;

    /// Message address and data for an MSI-X `vector`, which bring-up writes into the card's table.
    /// `None` where somebody else fills it in: under VFIO the kernel and QEMU own the table.
    fn msix_message(&mut self, vector: usize) -> Option<(u64, u32)> {
        let _ = vector;
        None
    }

    /// Bring-up has reset the card's function by its register. Vectors that were set up are no more, wherever
    /// somebody else than the driver thinks that they are; memory that is still mapped is of a session that is
    /// over, and nothing reaches for it any more.
    fn function_was_reset(&mut self) {}

    /// Waits until a vector fires, `timeout` at most, and returns and clears what fired. For a
    /// simulated card this is where its clock runs, and `timeout` is time of the card.
    fn wait(&mut self, timeout: Duration) -> Result<Interrupts, CardError>;
}
