//! `host-agent card bind` and `unbind`.

use super::system::{Device, System, VFIO_DRIVER};
use super::{missing, Which};
use crate::error::Error;
use crate::output::Output;
use clap::Args;

/// `card bind`.
#[derive(Debug, Args)]
pub struct Bind {
    #[command(flatten)]
    pub which: Which,
}

/// `card unbind`.
#[derive(Debug, Args)]
pub struct Unbind {
    #[command(flatten)]
    pub which: Which,
}

/// Runs `card bind`.
pub fn bind(bind: &Bind) -> Result<(), Error> {
    let (system, card) = bind.which.find()?;
    let mut output = Output::new();
    if card.driver.as_deref() == Some(VFIO_DRIVER) {
        output.line(format!("{}: bound to {VFIO_DRIVER} already", card.address))?;
        return output.finish();
    }
    // What binding doesn't mend comes first: without it binding would do no good.
    let bound = Device { driver: Some(VFIO_DRIVER.into()), ..card.clone() };
    let found = missing::of(&system, &bound)?;
    let before = found.iter().find(|missing| missing.is_needed && !missing.what.contains("/dev/vfio/"));
    if let Some(missing) = before {
        return Err(Error::Failed(format!("{}: {missing}", card.address)));
    }
    system.write(&card.path.join("driver_override"), VFIO_DRIVER)?;
    release(&system, &card)?;
    system.write(&system.path("/sys/bus/pci/drivers_probe"), &card.address)?;
    let now = system.device(&card.address)?;
    if now.driver.as_deref() != Some(VFIO_DRIVER) {
        return Err(Error::Failed(format!(
            "{}: the kernel did not bind it to {VFIO_DRIVER}; it says why in its log: dmesg | tail",
            card.address
        )));
    }
    output.line(format!("{}: bound to {VFIO_DRIVER}", card.address))?;
    output.finish()
}

/// Runs `card unbind`.
pub fn unbind(unbind: &Unbind) -> Result<(), Error> {
    let (system, card) = unbind.which.find()?;
    let mut output = Output::new();
    if card.driver.as_deref() != Some(VFIO_DRIVER) {
        let driver = card.driver.as_deref().unwrap_or("no driver");
        output.line(format!("{}: not bound to {VFIO_DRIVER} but to {driver}", card.address))?;
        return output.finish();
    }
    // An empty line takes the override away.
    system.write(&card.path.join("driver_override"), "\n")?;
    release(&system, &card)?;
    output.line(format!("{}: unbound from {VFIO_DRIVER}", card.address))?;
    output.finish()
}

fn release(system: &System, card: &Device) -> Result<(), Error> {
    match &card.driver {
        Some(driver) => {
            let file = system.path("/sys/bus/pci/drivers").join(driver).join("unbind");
            system.write(&file, &card.address)
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::system::fake::Tree;
    use super::super::Place;
    use super::*;

    const CARD: &str = "0000:01:00.0";

    fn which(tree: &Tree) -> Which {
        Which { card: Some("01:00.0".into()), at: Place { root: tree.folder.path().into() } }
    }

    /// A tree has no kernel that would bind anything; what it is told can be seen.
    #[test]
    fn binding_tells_the_kernel_and_looks_whether_it_did() {
        let tree = Tree::new();
        tree.card(CARD, Some("xdma"), Some(7));
        let error = bind(&Bind { which: which(&tree) }).expect_err("no kernel").to_string();
        assert!(error.contains("dmesg"), "{error}");
        assert_eq!(tree.read("sys/bus/pci/devices/0000:01:00.0/driver_override"), VFIO_DRIVER);
        assert_eq!(tree.read("sys/bus/pci/drivers/xdma/unbind"), CARD);
        assert_eq!(tree.read("sys/bus/pci/drivers_probe"), CARD);
    }

    #[test]
    fn what_binding_does_not_mend_is_said_before_anything_is_changed() {
        let tree = Tree::new();
        tree.card(CARD, None, None);
        let error = bind(&Bind { which: which(&tree) }).expect_err("no IOMMU").to_string();
        assert!(error.contains("IOMMU"), "{error}");
        assert_eq!(tree.read("sys/bus/pci/devices/0000:01:00.0/driver_override"), "(null)\n");
    }

    #[test]
    fn unbinding_takes_the_override_away() {
        let tree = Tree::new();
        tree.card(CARD, Some(VFIO_DRIVER), Some(7));
        assert!(bind(&Bind { which: which(&tree) }).is_ok(), "bound already");
        unbind(&Unbind { which: which(&tree) }).expect("unbound");
        assert_eq!(tree.read("sys/bus/pci/devices/0000:01:00.0/driver_override"), "\n");
        assert_eq!(tree.read("sys/bus/pci/drivers/vfio-pci/unbind"), CARD);
    }

    #[test]
    fn the_one_card_needs_no_name_and_several_do() {
        let tree = Tree::new();
        let any = Which { card: None, at: Place { root: tree.folder.path().into() } };
        assert!(any.find().expect_err("none").to_string().contains("1234:4353"));
        tree.card(CARD, None, None);
        assert_eq!(any.find().expect("the one").1.address, CARD);
        tree.card("0000:02:00.0", None, None);
        assert!(any.find().expect_err("two").to_string().contains("0000:02:00.0"));
        let other = Which { card: Some("03:00.0".into()), ..any };
        assert!(other.find().expect_err("not there").to_string().contains("03:00.0"));
    }
}
