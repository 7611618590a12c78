//! The card as a host sees it: registers, DMA rings, interrupts.
//!
//! Three backends stand behind the one small trait [`Card`]: VFIO (production; the place for it is
//! `vfio.rs`), the simulated card (`sim`), and the scripted fake for tests.

mod card;

pub use card::{Card, CardError, DmaRegion, Interrupts};
