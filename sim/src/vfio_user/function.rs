//! The card's PCI function: configuration space.
//!
//! Only what a guest can change is kept; everything else is what it was made.

use crate::simulated_card::Configured;
use layout::pcie::{BAR0_BYTES, DEVICE_ID, MSIX_PENDING_OFFSET, MSIX_TABLE_OFFSET, VENDOR_ID};

/// Bytes of configuration space, the extended one included.
pub const CONFIGURATION_BYTES: usize = 4096;

/// Header (PCI 3.0 §6.1).
mod header {
    pub const COMMAND: usize = 0x04;
    pub const STATUS: usize = 0x06;
    pub const REVISION: usize = 0x08;
    pub const CLASS: usize = 0x09;
    pub const BAR0: usize = 0x10;
    pub const SUBSYSTEM: usize = 0x2C;
    pub const CAPABILITIES: usize = 0x34;
    /// Status: there is a list of capabilities.
    pub const HAS_CAPABILITIES: u8 = 1 << 4;
}

/// Bits of the command register.
mod command {
    pub const MEMORY_SPACE: u16 = 1 << 1;
    pub const BUS_MASTER: u16 = 1 << 2;
    pub const INTX_DISABLE: u16 = 1 << 10;
}

/// PCI Express capability (PCIe Base 3.1 §7.8), and where it lies here.
mod express {
    pub const AT: usize = 0x40;
    pub const ID: u8 = 0x10;
    /// Version 2, an endpoint.
    pub const FLAGS: u16 = 2;
    pub const DEVICE_CAPABILITIES: usize = AT + 0x04;
    pub const DEVICE_CONTROL: usize = AT + 0x08;
    pub const LINK_CAPABILITIES: usize = AT + 0x0C;
    pub const LINK_STATUS: usize = AT + 0x12;
    pub const ROLE_BASED_ERRORS: u32 = 1 << 15;
    pub const FUNCTION_LEVEL_RESET: u32 = 1 << 28;
    /// Payloads up to 128 << 1 bytes: what the drain is made for.
    pub const PAYLOAD_CODE: u32 = 1;
    /// Device control: starts a function-level reset, reads as zero.
    pub const START_RESET: u16 = 1 << 15;
    /// Device control: error reporting, relaxed ordering, payload, tags, no-snoop, read request.
    pub const CONTROL_WRITABLE: u16 = 0x79FF & !(1 << 9);
    pub const PAYLOAD_SHIFT: u32 = 5;
    /// After reset: relaxed ordering, no-snoop, 128 bytes of payload, read requests of 512.
    pub const CONTROL_RESET: u16 = 0x2810;
    /// 2.5 GT/s, one lane.
    pub const LINK: u32 = 1 | 1 << 4;
}

/// MSI-X capability (PCI 3.0 §6.8.2), and where it lies here.
mod msix {
    pub const AT: usize = 0x80;
    pub const ID: u8 = 0x11;
    pub const CONTROL: usize = AT + 2;
    pub const ENABLE: u16 = 1 << 15;
    pub const MASK: u16 = 1 << 14;
}

/// What a write to configuration space started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    /// Nothing beyond what [`Function::configured`] says.
    Nothing,
    /// A function-level reset.
    Reset,
}

/// Configuration space of a card.
#[derive(Clone)]
pub struct Function {
    bytes: Box<[u8; CONFIGURATION_BYTES]>,
    writable: Box<[u8; CONFIGURATION_BYTES]>,
}

impl Function {
    /// As after power-up, with one vector for each of `ports` ports.
    pub fn new(ports: usize) -> Self {
        let mut function =
            Self { bytes: Box::new([0; CONFIGURATION_BYTES]), writable: Box::new([0; CONFIGURATION_BYTES]) };
        function.put(0, &VENDOR_ID.to_le_bytes());
        function.put(2, &DEVICE_ID.to_le_bytes());
        function.put(header::STATUS, &[header::HAS_CAPABILITIES]);
        function.put(header::REVISION, &[1]);
        // Mass storage, of no further kind.
        function.put(header::CLASS, &[0x00, 0x80, 0x01]);
        function.put(header::SUBSYSTEM, &VENDOR_ID.to_le_bytes());
        function.put(header::SUBSYSTEM + 2, &DEVICE_ID.to_le_bytes());
        function.put(header::CAPABILITIES, &[express::AT as u8]);
        function.put(express::AT, &[express::ID, msix::AT as u8]);
        function.put(express::AT + 2, &express::FLAGS.to_le_bytes());
        let can = express::ROLE_BASED_ERRORS | express::FUNCTION_LEVEL_RESET | express::PAYLOAD_CODE;
        function.put(express::DEVICE_CAPABILITIES, &can.to_le_bytes());
        function.put(express::LINK_CAPABILITIES, &express::LINK.to_le_bytes());
        function.put(express::LINK_STATUS, &(express::LINK as u16).to_le_bytes());
        function.put(msix::AT, &[msix::ID, 0]);
        function.put(msix::AT + 4, &(MSIX_TABLE_OFFSET as u32).to_le_bytes());
        function.put(msix::AT + 8, &(MSIX_PENDING_OFFSET as u32).to_le_bytes());
        function.put(msix::CONTROL, &(ports as u16 - 1).to_le_bytes());
        let command = command::MEMORY_SPACE | command::BUS_MASTER | command::INTX_DISABLE;
        function.let_write(header::COMMAND, &command.to_le_bytes());
        // Only the bits above the BAR's size: reading back all ones written tells it.
        function.let_write(header::BAR0, &(!(BAR0_BYTES as u32 - 1)).to_le_bytes());
        function.let_write(express::DEVICE_CONTROL, &express::CONTROL_WRITABLE.to_le_bytes());
        function.let_write(msix::CONTROL, &(msix::ENABLE | msix::MASK).to_le_bytes());
        function.reset();
        function
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn let_write(&mut self, at: usize, bits: &[u8]) {
        self.writable[at..at + bits.len()].copy_from_slice(bits);
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    /// What a reset of the function makes of it. The BAR stays, as who resets it puts it back.
    pub fn reset(&mut self) {
        let control = self.word(msix::CONTROL) & !(msix::ENABLE | msix::MASK);
        self.put(header::COMMAND, &[0, 0]);
        self.put(express::DEVICE_CONTROL, &express::CONTROL_RESET.to_le_bytes());
        self.put(msix::CONTROL, &control.to_le_bytes());
    }

    /// Reads; beyond its end all ones.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) {
        let at = usize::try_from(offset).unwrap_or(CONFIGURATION_BYTES);
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = self.bytes.get(at.saturating_add(index)).copied().unwrap_or(0xFF);
        }
    }

    /// Writes what can be written.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Started {
        let at = usize::try_from(offset).unwrap_or(CONFIGURATION_BYTES);
        let mut started = Started::Nothing;
        for (index, byte) in bytes.iter().enumerate() {
            let place = at.saturating_add(index);
            let Some(writable) = self.writable.get(place).copied() else { break };
            self.bytes[place] = self.bytes[place] & !writable | byte & writable;
            let resets = (express::START_RESET >> 8) as u8;
            if place == express::DEVICE_CONTROL + 1 && byte & resets != 0 {
                started = Started::Reset;
            }
        }
        started
    }

    /// What it tells the gateware.
    pub fn configured(&self) -> Configured {
        let command = self.word(header::COMMAND);
        let control = self.word(msix::CONTROL);
        let payload = self.word(express::DEVICE_CONTROL) >> express::PAYLOAD_SHIFT & 7;
        Configured {
            bus_master: command & command::BUS_MASTER != 0,
            msix_enable: control & msix::ENABLE != 0,
            msix_mask: control & msix::MASK != 0,
            // More than it can is what a system mustn't set; then it does what it can.
            max_payload_code: payload.min(express::PAYLOAD_CODE as u16) as u8,
        }
    }

    /// Does it answer in its BAR?
    pub fn is_memory_enabled(&self) -> bool {
        self.word(header::COMMAND) & command::MEMORY_SPACE != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(function: &Function, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        function.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn a_system_finds_its_way() {
        let mut function = Function::new(4);
        assert_eq!(read(&function, 0), u32::from(DEVICE_ID) << 16 | u32::from(VENDOR_ID));
        // The BAR's size as a system asks for it, and what it can't write.
        function.write(0x10, &u32::MAX.to_le_bytes());
        assert_eq!(read(&function, 0x10), !(BAR0_BYTES as u32 - 1), "memory, 32 bit, not prefetchable");
        function.write(0x00, &[0; 4]);
        function.write(0x84, &[0; 4]);
        function.write(0x100, &[0xFF; 4]);
        assert_eq!([read(&function, 0) as u16, read(&function, 0x84) as u16], [VENDOR_ID, 0x8000]);
        assert_eq!([read(&function, 0x100), read(&function, 4096)], [0, u32::MAX]);
        assert_eq!(read(&function, 4094), 0xFFFF_0000, "half beyond the end");
        // Every capability, from the list.
        let (mut at, mut found) = (read(&function, 0x34) as u64 & 0xFC, Vec::new());
        while at != 0 {
            let word = read(&function, at);
            found.push(word as u8);
            at = u64::from(word >> 8) & 0xFC;
        }
        assert_eq!(found, [express::ID, msix::ID]);
        assert_eq!(read(&function, 0x80) >> 16 & 0x7FF, 3, "four vectors");
    }

    #[test]
    fn the_gateware_is_told_and_a_reset_takes_it_back() {
        let mut function = Function::new(4);
        let after_reset =
            Configured { bus_master: false, msix_enable: false, msix_mask: false, max_payload_code: 0 };
        assert_eq!(function.configured(), after_reset);
        assert_eq!(function.write(0x04, &0x0006u16.to_le_bytes()), Started::Nothing);
        assert_eq!(function.write(0x82, &0xC000u16.to_le_bytes()), Started::Nothing);
        assert_eq!(function.write(0x48, &(7u16 << 5).to_le_bytes()), Started::Nothing);
        let configured =
            Configured { bus_master: true, msix_enable: true, msix_mask: true, max_payload_code: 1 };
        assert_eq!(function.configured(), configured);
        assert!(function.is_memory_enabled());
        assert_eq!(function.write(0x48, &0x8000u16.to_le_bytes()), Started::Reset);
        assert_eq!(read(&function, 0x48) & 0x8000, 0, "it reads as zero");
        function.reset();
        assert_eq!(function.configured(), after_reset);
        // A byte at a time starts it too.
        assert_eq!(function.write(0x49, &[0x80]), Started::Reset);
        assert_eq!(function.write(0x48, &[0x80]), Started::Nothing);
    }
}
