//! What is missing before a card can be used, in plain words, and the command that mends it.

use super::system::{Device, LockLimit, System, VFIO_DRIVER};
use crate::error::Error;
use rustix::fs::{access, Access};
use serde::Serialize;
use std::fmt;
use std::io;

/// Memory that the rings of a card take as `card drain` makes them: a huge page a port, and the mailboxes.
pub const DMA_BYTES: u64 = 4 * (2 << 20) + 4096;
/// Huge pages for that.
const HUGE_PAGES: u64 = 4;

/// Something that is missing. The field names are an interface of `--json`: add, don't change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// What.
    pub what: String,
    /// What mends it: a command, or what to do by hand.
    pub mend: String,
    /// Without it the card can't be used at all.
    pub is_needed: bool,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; to mend it: {}", self.what, self.mend)
    }
}

/// Everything that is missing for `card`, what comes first first.
pub fn of(system: &System, card: &Device) -> Result<Vec<Missing>, Error> {
    let mut missing = Vec::new();
    let needed = |what: String, mend: String| Missing { what, mend, is_needed: true };
    let Some(group) = card.group.filter(|_| system.has_iommu()) else {
        missing.push(needed(
            "the kernel uses no IOMMU for it, and without one a card could reach all memory".into(),
            "enable VT-d or AMD-Vi in the firmware, and boot with intel_iommu=on or amd_iommu=on on the kernel's \
             command line"
                .into(),
        ));
        return Ok(missing);
    };
    for (module, name) in [("vfio_pci", "vfio-pci"), ("vfio_iommu_type1", "vfio_iommu_type1")] {
        if !system.has_module(module) {
            missing.push(needed(format!("the module {name} isn't loaded"), format!("modprobe {name}")));
        }
    }
    for other in
        system.group(group)?.iter().filter(|other| other.address != card.address && other.blocks_group())
    {
        let driver = other.driver.as_deref().unwrap_or_default();
        missing.push(needed(
            format!(
                "the card's IOMMU group {group} is not viable: {} ({:04x}:{:04x}) is in it too, bound to {driver}",
                other.address, other.id.0, other.id.1
            ),
            format!(
                "echo {0} > /sys/bus/pci/devices/{0}/driver/unbind, if nothing needs it; or another slot for the card",
                other.address
            ),
        ));
    }
    match card.driver.as_deref() {
        Some(VFIO_DRIVER) => missing.extend(of_group_file(system, group)),
        driver => missing.push(needed(
            match driver {
                None => "it is bound to no driver".to_string(),
                Some(driver) => format!("it is bound to {driver} and not to {VFIO_DRIVER}"),
            },
            format!("host-agent card bind {}", card.address),
        )),
    }
    if let LockLimit::Bytes(bytes) = system.lock_limit() {
        if bytes < DMA_BYTES {
            missing.push(needed(
                format!("this process may lock {bytes} bytes of memory, and the rings take {DMA_BYTES}"),
                "ulimit -l unlimited (in a unit of systemd: LimitMEMLOCK=infinity)".into(),
            ));
        }
    }
    let free = system.free_huge_pages();
    if free < HUGE_PAGES {
        missing.push(Missing {
            what: format!(
                "{free} huge pages are free, {HUGE_PAGES} would hold the rings; 4 KiB pages are used instead"
            ),
            mend: format!("echo {HUGE_PAGES} > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"),
            is_needed: false,
        });
    }
    Ok(missing)
}

/// Only asked for and not opened: a group is open once, and another agent may be about to.
fn of_group_file(system: &System, group: u32) -> Option<Missing> {
    let error: io::Error = access(system.group_file(group), Access::READ_OK | Access::WRITE_OK).err()?.into();
    let what = format!("/dev/vfio/{group} can't be opened: {error}");
    let mend = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("chown $USER /dev/vfio/{group} (as root), or run this as root")
        }
        _ => "modprobe vfio-pci, and bind the card again".into(),
    };
    Some(Missing { what, mend, is_needed: true })
}

#[cfg(test)]
mod tests {
    use super::super::system::fake::Tree;
    use super::*;

    const CARD: &str = "0000:01:00.0";

    fn missing(tree: &Tree) -> Vec<Missing> {
        let system = tree.system();
        of(&system, &system.device(CARD).expect("a card")).expect("a system")
    }

    fn only(tree: &Tree) -> Missing {
        let mut missing = missing(tree);
        assert_eq!(missing.len(), 1, "{missing:?}");
        missing.remove(0)
    }

    #[test]
    fn nothing_is_missing_where_nothing_is() {
        let tree = Tree::new();
        tree.card(CARD, Some("vfio-pci"), Some(7));
        tree.device("0000:00:01.0", (0x8086, 1), 0x060400, Some("pcieport"), Some(7));
        assert_eq!(missing(&tree), []);
    }

    #[test]
    fn without_an_iommu_that_is_all_there_is_to_say() {
        let tree = Tree::new();
        tree.card(CARD, None, None);
        assert!(only(&tree).mend.contains("intel_iommu=on"));
        let tree = Tree::new();
        tree.card(CARD, None, Some(7));
        std::fs::remove_dir_all(tree.path("sys/class/iommu/dmar0")).expect("gone");
        assert!(only(&tree).what.contains("no IOMMU"));
    }

    #[test]
    fn modules_and_drivers_are_named() {
        let tree = Tree::new();
        tree.card(CARD, Some("xdma"), Some(7));
        let bound = only(&tree);
        assert!(bound.is_needed && bound.what.contains("xdma"));
        assert_eq!(bound.mend, "host-agent card bind 0000:01:00.0");
        std::fs::remove_dir(tree.path("sys/module/vfio_pci")).expect("gone");
        let first = missing(&tree).remove(0);
        assert_eq!((first.mend.as_str(), first.is_needed), ("modprobe vfio-pci", true));
    }

    #[test]
    fn who_else_is_in_the_group_is_named_with_what_to_do() {
        let tree = Tree::new();
        tree.card(CARD, Some("vfio-pci"), Some(7));
        tree.device("0000:01:00.1", (0x10EC, 0x8168), 0x020000, Some("r8169"), Some(7));
        let other = only(&tree);
        assert!(other.what.contains("0000:01:00.1") && other.what.contains("r8169"), "{other}");
        assert!(other.mend.contains("echo 0000:01:00.1 > /sys/bus/pci/devices/0000:01:00.1/driver/unbind"));
    }

    #[test]
    fn the_group_file_the_limit_and_huge_pages_are_looked_at() {
        let tree = Tree::new();
        tree.card(CARD, Some("vfio-pci"), Some(7));
        std::fs::remove_file(tree.path("dev/vfio/7")).expect("gone");
        assert!(only(&tree).what.contains("/dev/vfio/7"));
        tree.file("dev/vfio/7", "");
        tree.file(
            "proc/self/limits",
            "Max locked memory         65536                65536                bytes\n",
        );
        assert!(only(&tree).mend.contains("ulimit -l"));
        tree.file("proc/self/limits", "");
        tree.file("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "0\n");
        let huge = only(&tree);
        assert!(!huge.is_needed && huge.mend.contains("nr_hugepages"));
    }
}
