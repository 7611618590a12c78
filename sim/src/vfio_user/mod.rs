//! The simulated card as a PCI device of another process: QEMU connects by the vfio-user protocol, and a guest's
//! kernel and driver find the card there.
//!
//! | file | job |
//! |---|---|
//! | `function` | configuration space: what a guest may write, and what that tells the gateware |
//! | `memory` | the guest's memory, as far as its IOMMU lets the card reach it |
//! | `links` | the card's ports as Unix datagram sockets |
//! | `machine` | the card, stepped, and what is asked of it in between |
//! | `server` | the protocol |
//!
//! **Time.** The card has a thread of its own, which steps it for as long as the server lives. Card time is counted
//! in core cycles and goes as fast as they can be stepped, but never faster than the wall clock. Between two cycles
//! the thread does what was asked: so the same requests at the same cycles give the same run. Of time-outs of the
//! guest's the driver's `slowness` takes care (`driver::vfio::VfioOptions`), of QEMU's `x-msg-timeout`.
//!
//! **Order.** What the card wrote is in the guest's memory when its message is signalled, and unmapping answers
//! between two packets of the card's: afterwards nothing of it reaches that memory.

mod function;
mod links;
mod machine;
mod memory;
mod server;

pub use function::{Function, CONFIGURATION_BYTES};
pub use links::Link;
pub use machine::{Counts, Machine};
pub use memory::GuestMemory;
pub use server::Serving;
