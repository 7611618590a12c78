//! The simulated machine around the gateware: wires, target, PCIe root; RustHDL's kernel or Verilator.

pub mod co_check;
pub mod pcie_root;
pub mod simulated_card;
pub mod target;
pub mod verilated_card;
pub mod verilator;
pub mod waveform;
pub mod wire;

pub use simulated_card::{CardOptions, Packet, SimulatedCard, Simulator, UplinkFrame, PORTS};
