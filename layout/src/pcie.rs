//! Transaction layer packets as the 7-series integrated block's 64-bit AXI4-Stream carries them:
//! DW0 in bits 31:0; the first byte on the link of each DW in bits 31:24 (PCIe Base 3.1 §2.2).

/// Fmt and Type of a packet: bits 31:24 of DW0.
pub mod fmt_type {
    /// Memory read, 32-bit address.
    pub const MEMORY_READ_32: u8 = 0x00;
    /// Memory read, 64-bit address.
    pub const MEMORY_READ_64: u8 = 0x20;
    /// Memory write, 32-bit address.
    pub const MEMORY_WRITE_32: u8 = 0x40;
    /// Memory write, 64-bit address.
    pub const MEMORY_WRITE_64: u8 = 0x60;
    /// Completion without data.
    pub const COMPLETION: u8 = 0x0A;
    /// Completion with data.
    pub const COMPLETION_DATA: u8 = 0x4A;
}

/// Completion status (DW1 bits 15:13).
pub mod completion_status {
    /// Successful completion.
    pub const SUCCESSFUL: u8 = 0;
    /// Unsupported request.
    pub const UNSUPPORTED_REQUEST: u8 = 1;
}

/// Lowest bit of the length field in DW0, in DWs, 10 bits, 0 = 1024.
pub const DW0_LENGTH_BIT: u32 = 0;
/// No packet crosses an address multiple of this (§2.2.7).
pub const BOUNDARY_BYTES: usize = 4096;
/// Maximum payload in bytes for the encoding in `max_payload[2:0]`: 128 << code.
pub const fn maximum_payload_bytes(code: u8) -> usize {
    128 << code
}

/// Vendor id in configuration space. 0x1234 is what emulators use for devices without a vendor.
pub const VENDOR_ID: u16 = 0x1234;
/// Device id in configuration space: `CS`.
pub const DEVICE_ID: u16 = 0x4353;
/// Size of BAR 0.
pub const BAR0_BYTES: usize = 64 * 1024;
/// Where the MSI-X table begins in BAR 0.
pub const MSIX_TABLE_OFFSET: usize = 0x8000;
/// Where the MSI-X pending bits begin in BAR 0.
pub const MSIX_PENDING_OFFSET: usize = 0x9000;
/// Bytes of a vector's table entry: address low, address high, data, control (PCI 3.0 §6.8.2).
pub const MSIX_ENTRY_BYTES: usize = 16;
/// Vector control bit: the vector is masked.
pub const MSIX_CONTROL_MASK: u32 = 1;
