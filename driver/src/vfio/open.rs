//! Opening a card, and what can be missing.

use super::bar::{Bar, BarError};
use super::config::{Configuration, ConfigurationError};
use super::iova::Space;
use super::kernel;
use super::vectors::Vectors;
use super::VfioCard;
use crate::card::CardError;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vfio_ioctls::{VfioContainer, VfioDevice, VfioError};

/// How a card is opened.
#[derive(Clone, Debug)]
pub struct VfioOptions {
    /// The device in sysfs, such as `/sys/bus/pci/devices/0000:01:00.0`. It is bound to vfio-pci.
    pub device: PathBuf,
    /// How much slower than this machine's the card's clock is: 1, or for a simulated card more. Every wait is as
    /// much longer, for time-outs are time of the card.
    pub slowness: u32,
}

/// Why a card can't be opened, and what mends it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// VFIO isn't there.
    #[error("/dev/vfio/vfio: {0}: {1}")]
    NoVfio(io::Error, &'static str),
    /// The group can't be opened.
    #[error("/dev/vfio/{group}: {error}: {hint}")]
    Group {
        /// IOMMU group.
        group: String,
        /// What the system said.
        error: io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// Another process has it.
    #[error("another process has the card (IOMMU group {0} is in use): one agent at a time drains it; look for it with: fuser -v /dev/vfio/{0}")]
    InUse(String),
    /// Others are in its group.
    #[error("the card's IOMMU group is not viable: another device in it is bound to a driver of the kernel's. `host-agent card info` names it: unbind that one, or move the card to another slot")]
    NotViable,
    /// Something else of VFIO's.
    #[error("VFIO: {0}")]
    Vfio(VfioError),
    /// Configuration space.
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
    /// Its vectors are where registers should be.
    #[error("the MSI-X table is in BAR {bar} at {offset:#x}, among the registers: the gateware and the driver don't belong together")]
    MsixTable {
        /// BAR.
        bar: u8,
        /// Offset.
        offset: u32,
    },
    /// BAR 0.
    #[error(transparent)]
    Bar(#[from] BarError),
    /// The card itself.
    #[error(transparent)]
    Card(#[from] CardError),
    /// Anything that the system refused.
    #[error("{0}: {1}")]
    System(&'static str, io::Error),
}

impl VfioCard {
    /// Opens the card, with nothing mapped and no vector enabled. The kernel has reset its function.
    pub fn open(options: &VfioOptions) -> Result<Self, OpenError> {
        let group = group_of(&options.device);
        let container = VfioContainer::new(None).map_err(|error| explain(error, &group))?;
        let container = Arc::new(container);
        let device = VfioDevice::new(&options.device, container.clone(), false);
        let device = device.map_err(|error| explain(error, &group))?;
        let configuration = Configuration::of(&device)?;
        if !configuration.is_msix_in_place() {
            let table = configuration.msix;
            return Err(OpenError::MsixTable { bar: table.bar, offset: table.offset });
        }
        let bar = Bar::of(&device)?;
        let vectors = Vectors::of(&device, configuration.msix.vectors);
        let vectors = vectors.map_err(|error| OpenError::System("the eventfds of its interrupts", error))?;
        let iommu = kernel::iommu_info(&*container);
        let iommu = iommu.map_err(|error| OpenError::System("what the IOMMU can map", error))?;
        configuration.enable_bus_master(&device)?;
        let mut notes = Vec::new();
        if !bar.is_mapped() {
            notes
                .push("the kernel doesn't let BAR 0 be mapped: each register access is a system call".into());
        }
        Ok(Self {
            bar,
            vectors,
            mapped: BTreeMap::new(),
            space: Space::new(&iommu.ranges, iommu.page_sizes),
            device,
            container,
            configuration,
            slowness: options.slowness.max(1),
            interrupts_need_enabling: true,
            notes,
        })
    }
}

/// The number of the device's IOMMU group.
fn group_of(device: &Path) -> String {
    let group = std::fs::read_link(device.join("iommu_group"));
    let name = group.ok().and_then(|group| Some(group.file_name()?.to_string_lossy().into_owned()));
    name.unwrap_or_else(|| "?".into())
}

fn explain(error: VfioError, group: &str) -> OpenError {
    match error {
        VfioError::OpenContainer(error) if error.kind() == io::ErrorKind::NotFound => {
            OpenError::NoVfio(error, "load the module: modprobe vfio-pci")
        }
        VfioError::OpenContainer(error) => OpenError::NoVfio(error, "run this as root"),
        VfioError::OpenGroup(error, group) => match error.kind() {
            io::ErrorKind::ResourceBusy => OpenError::InUse(group),
            io::ErrorKind::NotFound => OpenError::Group {
                group,
                error,
                hint: "the card isn't bound to vfio-pci: host-agent card bind",
            },
            _ => OpenError::Group {
                group,
                error,
                hint: "run this as root, or give the user the group's file with chown",
            },
        },
        VfioError::GroupViable => OpenError::NotViable,
        VfioError::InvalidPath => OpenError::Group {
            group: group.into(),
            error: io::Error::from(io::ErrorKind::NotFound),
            hint: "the device has no IOMMU group: enable the IOMMU in the firmware and with the kernel's \
                   intel_iommu=on, or amd_iommu=on",
        },
        VfioError::GroupGetDeviceFD(error) if error.errno() == libc::EBUSY => OpenError::InUse(group.into()),
        other => OpenError::Vfio(other),
    }
}

/// Why the kernel doesn't map memory for DMA.
pub fn explain_map(error: &VfioError, bytes: usize) -> String {
    let VfioError::IommuDmaMap(errno) = error else { return error.to_string() };
    match errno.errno() {
        libc::ENOMEM => format!(
            "{errno}: the limit on locked memory is too low; raise it with: ulimit -l unlimited (or \
             LimitMEMLOCK=infinity in a unit of systemd)"
        ),
        libc::EEXIST => format!("{errno}: something is mapped there already"),
        libc::EINVAL => format!("{errno}: the IOMMU can't map {bytes} bytes there"),
        libc::ENOSPC => format!("{errno}: too many mappings; raise vfio_iommu_type1's dma_entry_limit"),
        _ => errno.to_string(),
    }
}
