//! See DESIGN: sim.

pub mod co_check;
pub mod target;
pub mod verilator;
