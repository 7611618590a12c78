//! Configuration space: who the card is, and what it can do.
//!
//! `pci-driver`'s typed registers lie over a copy of configuration space, because its backends are its own and the
//! device is `vfio-ioctls`'s. What is written goes to the device by system call.

use super::bar::borrowed;
use crate::card::CardError;
use layout::pcie::{self, BAR0_BYTES};
use pci_driver::config::caps::{MsiXCapability, PciExpressCapability};
use pci_driver::config::PciConfig;
use pci_driver::regions::structured::PciRegisterRo;
use pci_driver::regions::{AsPciSubregion, BackedByPciSubregion, PciMemoryRegion};
use pci_driver::{pci_bit_field, pci_struct};
use std::io;
use std::os::unix::fs::FileExt;
use vfio_bindings::bindings::vfio::VFIO_PCI_CONFIG_REGION_INDEX;
use vfio_ioctls::VfioDevice;

/// Bytes of conventional configuration space, where all capabilities are that this driver looks at.
pub const CONFIGURATION_BYTES: usize = 256;
/// The command register (PCIe Base 3.1 §7.5.1.1), and its bits for memory accesses and for DMA.
const COMMAND: u64 = 0x04;
const MEMORY_SPACE: u16 = 1 << 1;
const BUS_MASTER: u16 = 1 << 2;

pci_struct! {
    /// What `pci-driver` 0.1.4 has no fields for (PCIe Base 3.1 §7.8.4, §7.8.8).
    struct ExpressLink<'a> : 0x3c {
        device_control @ 0x08 : ExpressDeviceControl<'a>,
        link_status    @ 0x12 : ExpressLinkStatus<'a>,
    }

    /// MSI-X (PCI 3.0 §6.8.2).
    struct Msix<'a> : 0x0c {
        control @ 0x02 : MsixControl<'a>,
        table   @ 0x04 : PciRegisterRo<'a, u32>,
        pending @ 0x08 : PciRegisterRo<'a, u32>,
    }
}

pci_bit_field! {
    struct ExpressDeviceControl<'a> : RO u16 {
        error_reporting       @   0--3 : RO u8,
        relaxed_ordering      @      4 : RO,
        max_payload_size      @   5--7 : RO u8,
        extended_tag          @      8 : RO,
        phantom_functions     @      9 : RO,
        aux_power             @     10 : RO,
        no_snoop              @     11 : RO,
        max_read_request_size @ 12--14 : RO u8,
        function_level_reset  @     15 : RO,
    }

    struct ExpressLinkStatus<'a> : RO u16 {
        speed @   0--3 : RO u8,
        width @   4--9 : RO u8,
        __    @ 10--15 : RsvdP,
    }

    struct MsixControl<'a> : RO u16 {
        last_vector   @  0--10 : RO u16,
        __            @ 11--13 : RsvdP,
        function_mask @     14 : RO,
        enable        @     15 : RO,
    }
}

/// Where the table of vectors is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixTable {
    /// Vectors.
    pub vectors: usize,
    /// The BAR it is in, and where.
    pub bar: u8,
    /// Offset in that BAR.
    pub offset: u32,
}

/// What configuration space says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Largest payload of a packet that the card can make and that it was configured for, bytes.
    pub payload_bytes: (usize, usize),
    /// Link speed (1: 2.5 GT/s, 2: 5 GT/s, …) and lanes.
    pub link: (u8, u8),
    /// It can reset its function by itself.
    pub has_function_level_reset: bool,
    /// Its vectors.
    pub msix: MsixTable,
    /// Offset of configuration space in the device's file.
    offset: u64,
}

/// What is wrong with a configuration space.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// It can't be read.
    #[error("reading configuration space: {0}")]
    Read(#[from] io::Error),
    /// Nobody answers.
    #[error("configuration space reads all ones: the card doesn't answer; is it powered, and its FPGA configured?")]
    Gone,
    /// Another device.
    #[error(
        "it is device {vendor:04x}:{device:04x}, a Chronoswitch card is {:04x}:{:04x}",
        pcie::VENDOR_ID,
        pcie::DEVICE_ID
    )]
    Identity {
        /// Vendor id.
        vendor: u16,
        /// Device id.
        device: u16,
    },
    /// A capability that every card has.
    #[error("configuration space has no {0} capability: the gateware and the driver don't belong together")]
    Missing(&'static str),
}

impl Configuration {
    /// Reads it from `device`.
    pub fn of(device: &VfioDevice) -> Result<Self, ConfigurationError> {
        let offset = device.get_region_offset(VFIO_PCI_CONFIG_REGION_INDEX);
        let mut bytes = vec![0; CONFIGURATION_BYTES];
        borrowed(device).read_exact_at(&mut bytes, offset)?;
        Self::parse(&bytes, offset)
    }

    /// What `bytes`, a copy of configuration space, say.
    fn parse(bytes: &[u8], offset: u64) -> Result<Self, ConfigurationError> {
        let region = PciMemoryRegion::new(bytes);
        let config = PciConfig::backed_by(&region as &dyn pci_driver::regions::PciRegion);
        let (vendor, device) = (config.vendor_id().read()?, config.device_id().read()?);
        if (vendor, device) == (u16::MAX, u16::MAX) {
            return Err(ConfigurationError::Gone);
        }
        if (vendor, device) != (pcie::VENDOR_ID, pcie::DEVICE_ID) {
            return Err(ConfigurationError::Identity { vendor, device });
        }
        let capabilities = config.capabilities()?;
        let express = capabilities.of_type::<PciExpressCapability>()?.next();
        let express = express.ok_or(ConfigurationError::Missing("PCI Express"))?;
        let link = ExpressLink::backed_by(express.as_subregion());
        let msix = capabilities.of_type::<MsiXCapability>()?.next();
        let msix = Msix::backed_by(msix.ok_or(ConfigurationError::Missing("MSI-X"))?.as_subregion());
        let table = msix.table().read()?;
        let can = express.device_capabilities();
        let payload = |code: u8| pcie::maximum_payload_bytes(code & 7);
        Ok(Self {
            vendor,
            device,
            revision: config.revision_id().read()?,
            payload_bytes: (
                payload(can.max_payload_size_supported().read()?),
                payload(link.device_control().max_payload_size().read()?),
            ),
            link: (link.link_status().speed().read()?, link.link_status().width().read()?),
            has_function_level_reset: can.function_level_reset_capability().read()?,
            msix: MsixTable {
                vectors: usize::from(msix.control().last_vector().read()?) + 1,
                bar: (table & 7) as u8,
                offset: table & !7,
            },
            offset,
        })
    }

    /// Lets the card write host memory. Without it DMA and interrupts stay in the card.
    pub fn enable_bus_master(&self, device: &VfioDevice) -> Result<(), CardError> {
        let command = self.change_command(device, |command| command | MEMORY_SPACE | BUS_MASTER)?;
        if command & BUS_MASTER == 0 {
            return Err(CardError::Bus(format!(
                "bus mastering can't be enabled: the command register reads {command:#06x}"
            )));
        }
        Ok(())
    }

    /// Takes that away.
    pub fn disable_bus_master(&self, device: &VfioDevice) -> Result<(), CardError> {
        self.change_command(device, |command| command & !BUS_MASTER).map(|_| ())
    }

    fn change_command(&self, device: &VfioDevice, change: impl FnOnce(u16) -> u16) -> Result<u16, CardError> {
        let failed = |error: io::Error| CardError::Bus(format!("the command register: {error}"));
        let (file, at) = (borrowed(device), self.offset + COMMAND);
        let mut command = [0; 2];
        file.read_exact_at(&mut command, at).map_err(failed)?;
        let changed = change(u16::from_le_bytes(command));
        file.write_all_at(&changed.to_le_bytes(), at).map_err(failed)?;
        file.read_exact_at(&mut command, at).map_err(failed)?;
        Ok(u16::from_le_bytes(command))
    }

    /// Does the table of vectors lie where the driver keeps its hands off?
    pub fn is_msix_in_place(&self) -> bool {
        self.msix.bar == 0
            && self.msix.offset as usize >= pcie::MSIX_TABLE_OFFSET
            && (self.msix.offset as usize) < BAR0_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Configuration space with the capabilities at 0x40 and 0x80.
    fn space() -> Vec<u8> {
        let mut bytes = vec![0; CONFIGURATION_BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0x00, &[0x34, 0x12, 0x53, 0x43]);
        put(0x06, &[0x10, 0x00]);
        put(0x08, &[7]);
        put(0x34, &[0x40]);
        put(0x40, &[0x10, 0x80, 0x02, 0x00]);
        put(0x44, &(1u32 << 28 | 2).to_le_bytes());
        put(0x48, &(1u16 << 5).to_le_bytes());
        put(0x52, &(4u16 << 4 | 2).to_le_bytes());
        put(0x80, &[0x11, 0x00, 0x03, 0x80]);
        put(0x84, &0x8000u32.to_le_bytes());
        put(0x88, &0x9000u32.to_le_bytes());
        bytes
    }

    #[test]
    fn a_card_is_read() {
        let found = Configuration::parse(&space(), 0).expect("a card");
        assert_eq!((found.vendor, found.device, found.revision), (0x1234, 0x4353, 7));
        assert_eq!(found.payload_bytes, (512, 256));
        assert_eq!(found.link, (2, 4));
        assert!(found.has_function_level_reset && found.is_msix_in_place());
        assert_eq!(found.msix, MsixTable { vectors: 4, bar: 0, offset: 0x8000 });
    }

    #[test]
    fn what_is_no_card_is_named() {
        let error = |bytes: &[u8]| Configuration::parse(bytes, 0).expect_err("no card").to_string();
        assert!(error(&[0xFF; CONFIGURATION_BYTES]).contains("all ones"));
        let mut other = space();
        other[2] = 0;
        assert!(error(&other).contains("1234:4300"));
        let mut without = space();
        without[0x41] = 0;
        assert!(error(&without).contains("no MSI-X"));
        // A list of capabilities that never ends.
        let mut cycle = space();
        cycle[0x81] = 0x40;
        assert!(error(&cycle).contains("cycle"));
        assert!(error(&space()[..128]).contains("0x80 bytes"));
    }
}
