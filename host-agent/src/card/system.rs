//! What sysfs, procfs and /dev say, below a root that tests may choose.

use crate::error::Error;
use layout::pcie::{DEVICE_ID, VENDOR_ID};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The driver that a card has to be bound to.
pub const VFIO_DRIVER: &str = "vfio-pci";
/// Capability to lock memory beyond the limit (capabilities(7)).
const CAP_IPC_LOCK: u64 = 1 << 14;

/// The machine, as its files tell.
#[derive(Clone, Debug)]
pub struct System {
    root: PathBuf,
}

/// A PCI device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Domain, bus, device and function: `0000:01:00.0`.
    pub address: String,
    /// In sysfs.
    pub path: PathBuf,
    /// Vendor and device.
    pub id: (u16, u16),
    /// Its class code.
    pub class: u32,
    /// The driver that it is bound to.
    pub driver: Option<String>,
    /// Its IOMMU group.
    pub group: Option<u32>,
}

/// Bytes of memory that this process may lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockLimit {
    /// As many as there are.
    None,
    /// So many.
    Bytes(u64),
}

impl System {
    /// Below `root`, which is `/` but in tests.
    pub fn new(root: &Path) -> Self {
        Self { root: root.into() }
    }

    /// The file of that absolute name.
    pub fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    /// Every Chronoswitch card, in the order of the addresses.
    pub fn cards(&self) -> Result<Vec<Device>, Error> {
        let folder = self.path("/sys/bus/pci/devices");
        let mut cards = Vec::new();
        for name in names(&folder)? {
            let device = self.device(&name)?;
            if device.id == (VENDOR_ID, DEVICE_ID) {
                cards.push(device);
            }
        }
        Ok(cards)
    }

    /// The device with that address.
    pub fn device(&self, address: &str) -> Result<Device, Error> {
        let path = self.path("/sys/bus/pci/devices").join(address);
        let id = |name: &str| Ok::<_, Error>(hexadecimal(&path.join(name))? as u16);
        Ok(Device {
            address: address.into(),
            id: (id("vendor")?, id("device")?),
            class: hexadecimal(&path.join("class"))?,
            driver: target(&path.join("driver")),
            group: target(&path.join("iommu_group")).and_then(|group| group.parse().ok()),
            path,
        })
    }

    /// The devices of an IOMMU group.
    pub fn group(&self, group: u32) -> Result<Vec<Device>, Error> {
        let folder = self.path("/sys/kernel/iommu_groups").join(group.to_string()).join("devices");
        names(&folder)?.iter().map(|name| self.device(name)).collect()
    }

    /// Does the kernel use an IOMMU?
    pub fn has_iommu(&self) -> bool {
        let folder = self.path("/sys/class/iommu");
        names(&folder).is_ok_and(|names| !names.is_empty())
    }

    /// Is the module loaded, or built in?
    pub fn has_module(&self, name: &str) -> bool {
        self.path("/sys/module").join(name).exists()
    }

    /// The group's file, by which it is opened.
    pub fn group_file(&self, group: u32) -> PathBuf {
        self.path("/dev/vfio").join(group.to_string())
    }

    /// Huge pages of 2 MiB that are free; none where the kernel has no such.
    pub fn free_huge_pages(&self) -> u64 {
        let file = self.path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
        fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    /// How much memory this process may lock. What can't be read is taken for no limit: the kernel tells in time.
    pub fn lock_limit(&self) -> LockLimit {
        let status = fs::read_to_string(self.path("/proc/self/status")).unwrap_or_default();
        let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let capabilities = capabilities.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
        if capabilities.is_some_and(|capabilities| capabilities & CAP_IPC_LOCK != 0) {
            return LockLimit::None;
        }
        let limits = fs::read_to_string(self.path("/proc/self/limits")).unwrap_or_default();
        let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
        let soft = line.and_then(|line| line.split_whitespace().next());
        soft.and_then(|soft| soft.parse().ok()).map_or(LockLimit::None, LockLimit::Bytes)
    }

    /// Writes `text` into a file of sysfs.
    pub fn write(&self, file: &Path, text: &str) -> Result<(), Error> {
        fs::write(file, text).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => {
                Error::Failed(format!("{}: {error}: run this as root", file.display()))
            }
            _ => Error::io(file, "writing", error),
        })
    }
}

impl Device {
    /// A bridge: it is in its group because of what is behind it.
    pub fn is_bridge(&self) -> bool {
        self.class >> 16 == 0x06
    }

    /// Does its driver keep the rest of its group from VFIO? Those that leave DMA to VFIO's user don't.
    pub fn blocks_group(&self) -> bool {
        let Some(driver) = &self.driver else { return false };
        !self.is_bridge() && ![VFIO_DRIVER, "pci-stub", "pcieport"].contains(&driver.as_str())
    }
}

/// The names in a folder, sorted.
fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let failed = |error| Error::io(folder, "listing it", error);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// The last name of what a link points to.
fn target(link: &Path) -> Option<String> {
    Some(fs::read_link(link).ok()?.file_name()?.to_string_lossy().into_owned())
}

/// A number as sysfs prints it: `0x1234`.
fn hexadecimal(file: &Path) -> Result<u32, Error> {
    let text = fs::read_to_string(file).map_err(|error| Error::io(file, "reading", error))?;
    let digits = text.trim().trim_start_matches("0x");
    u32::from_str_radix(digits, 16).map_err(|_| Error::File {
        file: file.display().to_string(),
        what: format!("'{}' is no number", text.trim()),
    })
}

/// A sysfs for tests.
#[cfg(test)]
pub mod fake {
    use super::*;
    use std::os::unix::fs::symlink;

    /// The files of a machine.
    pub struct Tree {
        /// Holds them.
        pub folder: tempfile::TempDir,
    }

    impl Tree {
        /// A machine with an IOMMU, the modules loaded, huge pages and no limit, and nothing on the bus.
        pub fn new() -> Self {
            let tree = Self { folder: tempfile::tempdir().expect("a folder") };
            tree.file("sys/class/iommu/dmar0/name", "");
            for name in [
                "sys/bus/pci/devices",
                "sys/bus/pci/drivers/vfio-pci",
                "sys/module/vfio_pci",
                "sys/module/vfio_iommu_type1",
            ] {
                fs::create_dir_all(tree.path(name)).expect("a folder");
            }
            tree.file("sys/bus/pci/drivers_probe", "");
            tree.file("dev/vfio/vfio", "");
            tree.file("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "64\n");
            tree.file("proc/self/status", "Name:\tx\nCapEff:\t0000000000000000\n");
            tree.file(
                "proc/self/limits",
                "Limit   Soft Limit  Hard Limit  Units\nMax locked memory   unlimited   unlimited   bytes\n",
            );
            tree
        }

        /// The system that it is.
        pub fn system(&self) -> System {
            System::new(self.folder.path())
        }

        /// A name in it.
        pub fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        /// Makes a file.
        pub fn file(&self, name: &str, text: &str) {
            let path = self.path(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(path, text).expect("a file");
        }

        /// What a file holds.
        pub fn read(&self, name: &str) -> String {
            fs::read_to_string(self.path(name)).expect("a file")
        }

        /// Puts a device on the bus.
        pub fn device(
            &self,
            address: &str,
            id: (u16, u16),
            class: u32,
            driver: Option<&str>,
            group: Option<u32>,
        ) {
            let at = format!("sys/bus/pci/devices/{address}");
            self.file(&format!("{at}/vendor"), &format!("{:#06x}\n", id.0));
            self.file(&format!("{at}/device"), &format!("{:#06x}\n", id.1));
            self.file(&format!("{at}/class"), &format!("{class:#08x}\n"));
            self.file(&format!("{at}/driver_override"), "(null)\n");
            if let Some(driver) = driver {
                self.file(&format!("sys/bus/pci/drivers/{driver}/unbind"), "");
                symlink(format!("../../../../bus/pci/drivers/{driver}"), self.path(&format!("{at}/driver")))
                    .expect("a link");
            }
            if let Some(group) = group {
                symlink(
                    format!("../../../kernel/iommu_groups/{group}"),
                    self.path(&format!("{at}/iommu_group")),
                )
                .expect("a link");
                self.file(&format!("sys/kernel/iommu_groups/{group}/devices/{address}"), "");
                self.file(&format!("dev/vfio/{group}"), "");
            }
        }

        /// Puts a card on the bus.
        pub fn card(&self, address: &str, driver: Option<&str>, group: Option<u32>) {
            self.device(address, (VENDOR_ID, DEVICE_ID), 0x018000, driver, group);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_found_among_other_devices() {
        let tree = fake::Tree::new();
        tree.device("0000:00:1f.2", (0x8086, 0x2922), 0x010601, Some("ahci"), Some(3));
        tree.card("0000:02:00.0", None, None);
        tree.card("0000:01:00.0", Some("vfio-pci"), Some(7));
        let cards = tree.system().cards().expect("a bus");
        let found: Vec<_> =
            cards.iter().map(|card| (card.address.as_str(), card.driver.as_deref(), card.group)).collect();
        assert_eq!(found, [("0000:01:00.0", Some("vfio-pci"), Some(7)), ("0000:02:00.0", None, None)]);
    }

    #[test]
    fn limits_are_those_of_the_process() {
        let tree = fake::Tree::new();
        assert_eq!(tree.system().lock_limit(), LockLimit::None);
        tree.file(
            "proc/self/limits",
            "Max locked memory         65536                65536                bytes\n",
        );
        assert_eq!(tree.system().lock_limit(), LockLimit::Bytes(65536));
        tree.file("proc/self/status", "CapEff:\t000001ffffffffff\n");
        assert_eq!(tree.system().lock_limit(), LockLimit::None, "CAP_IPC_LOCK knows no limit");
    }

    #[test]
    fn a_sysfs_that_makes_no_sense_is_an_error_with_its_file() {
        let tree = fake::Tree::new();
        tree.card("0000:01:00.0", None, None);
        tree.file("sys/bus/pci/devices/0000:01:00.0/vendor", "what\n");
        let error = tree.system().cards().expect_err("no number").to_string();
        assert!(error.contains("0000:01:00.0/vendor") && error.contains("what"), "{error}");
    }
}
