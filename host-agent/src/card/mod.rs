//! `host-agent card`: the card itself.
//!
//! | file | job |
//! |---|---|
//! | `system` | what sysfs says of cards, IOMMU groups and memory |
//! | `missing` | what is missing before a card can be used, and the command that mends it |
//! | `list`, `bind`, `info`, `registers` | the commands of those names |
//! | `selftest` | proves registers, DMA, interrupts and clocks |
//! | `drain` | the card's partial journals → the primary journal |
//! | `simulate` | the simulated card as a device for QEMU |

mod bind;
pub mod drain;
mod info;
mod list;
mod missing;
mod registers;
mod selftest;
mod simulate;
mod system;

use crate::error::Error;
use clap::{Args, Subcommand};
use driver::vfio::{VfioCard, VfioOptions};
use std::path::PathBuf;
use system::{Device, System};

/// `card`.
#[derive(Debug, Subcommand)]
pub enum Card {
    /// List the cards in this machine, and what is missing before they can be used
    List(list::List),
    /// Give a card to vfio-pci, from whatever driver has it
    Bind(bind::Bind),
    /// Take a card away from vfio-pci
    Unbind(bind::Unbind),
    /// Say everything about a card: its slot, its group, how it is built, what it holds
    ///
    /// Opening a card resets its function: it must not be in use. What lies in its ports' rings and its session
    /// live on.
    Info(info::Info),
    /// Prove a card: registers, DMA, interrupts, clocks
    ///
    /// Writes stay closed meanwhile: sources that write are not answered, and send again. A card that holds
    /// records, or whose last session didn't end in order, is left alone unless told otherwise.
    Selftest(selftest::Selftest),
    /// Print every register of a card
    Registers(registers::Registers),
    /// Drain a card into a journal until SIGINT or SIGTERM
    ///
    /// Opens the card for writes, puts what its ports journal into one order, appends it, makes it durable and
    /// tells the card so. At the end it closes writes, waits until every write has its answer, and stops the card
    /// and the journal in order.
    #[command(after_long_help = drain::EXAMPLES)]
    Drain(drain::Drain),
    /// Serve the simulated card as a PCI device for QEMU's vfio-user-pci (10.1 and later)
    #[command(after_long_help = simulate::EXAMPLES)]
    Simulate(simulate::Simulate),
}

/// Which card, and where to look for it.
#[derive(Clone, Debug, Args)]
pub struct Which {
    /// PCI address, such as 0000:01:00.0 or 01:00.0; may be left out where there is one card
    #[arg(value_name = "CARD")]
    pub card: Option<String>,
    #[command(flatten)]
    pub at: Place,
}

/// Where sysfs is.
#[derive(Clone, Debug, Args)]
pub struct Place {
    /// Folder that has sys, dev and proc; for tests
    #[arg(long, value_name = "DIR", default_value = "/", hide = true)]
    pub root: PathBuf,
}

/// How fast the card is.
#[derive(Clone, Copy, Debug, Args)]
pub struct Pace {
    /// How much slower than a real card's its clock is: for a simulated card, whose time-outs take so much longer
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub slower: u32,
}

/// Runs the command.
pub fn run(card: &Card) -> Result<(), Error> {
    match card {
        Card::List(list) => list::run(list),
        Card::Bind(bind) => bind::bind(bind),
        Card::Unbind(unbind) => bind::unbind(unbind),
        Card::Info(info) => info::run(info),
        Card::Selftest(selftest) => selftest::run(selftest),
        Card::Registers(registers) => registers::run(registers),
        Card::Drain(drain) => drain::run(drain),
        Card::Simulate(simulate) => simulate::run(simulate),
    }
}

impl Which {
    /// The card that is meant.
    pub fn find(&self) -> Result<(System, Device), Error> {
        let system = System::new(&self.at.root);
        let mut cards = system.cards()?;
        let Some(wanted) = &self.card else {
            return match cards.len() {
                0 => Err(Error::Failed(no_card())),
                1 => Ok((system, cards.remove(0))),
                _ => {
                    let names: Vec<&str> = cards.iter().map(|card| card.address.as_str()).collect();
                    Err(Error::Misuse(format!("which card? There are {}", names.join(", "))))
                }
            };
        };
        let found = cards
            .into_iter()
            .find(|card| card.address == *wanted || card.address == format!("0000:{wanted}"));
        found.map(|card| (system, card)).ok_or_else(|| {
            Error::Failed(format!(
                "there is no Chronoswitch card at {wanted}; host-agent card list names those there are"
            ))
        })
    }

    /// The card that is meant, if nothing is missing to open it.
    pub fn ready(&self) -> Result<(System, Device), Error> {
        let (system, device) = self.find()?;
        check(&system, &device)?;
        Ok((system, device))
    }

    /// Opens it, if nothing is missing for that.
    pub fn open(&self, slower: u32) -> Result<VfioCard, Error> {
        let (system, device) = self.find()?;
        open(&system, &device, slower)
    }
}

/// Opens a card, if nothing is missing for that.
pub fn open(system: &System, device: &Device, slower: u32) -> Result<VfioCard, Error> {
    check(system, device)?;
    let options = VfioOptions { device: device.path.clone(), slowness: slower };
    VfioCard::open(&options).map_err(|error| Error::Failed(format!("{}: {error}", device.address)))
}

fn check(system: &System, device: &Device) -> Result<(), Error> {
    let missing = missing::of(system, device)?;
    match missing.iter().find(|missing| missing.is_needed) {
        Some(first) => Err(Error::Failed(format!("{}: {first}", device.address))),
        None => Ok(()),
    }
}

fn no_card() -> String {
    use layout::pcie::{DEVICE_ID, VENDOR_ID};
    format!(
        "there is no Chronoswitch card (PCI {VENDOR_ID:04x}:{DEVICE_ID:04x}) on the bus. Is its FPGA configured? Then: \
         echo 1 > /sys/bus/pci/rescan"
    )
}
