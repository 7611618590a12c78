//! The gateware of the Chronoswitch card, in RustHDL.
//!
//! Values: `value`. How blocks are simulated: `block`. Registers, RAM, CRC: `register`, `ram`,
//! `crc32c`. The rest follows the data (DESIGN §5).

pub mod block;
pub mod crc32c;
pub mod fifo;
pub mod prelude;
pub mod ram;
pub mod register;
pub mod value;
