//! The simulated machine around the gateware: wires, target, PCIe root; RustHDL's kernel or Verilator.

pub mod co_check;
pub mod hesitant_target;
pub mod pcie_root;
pub mod simulated_card;
pub mod socket_target;
pub mod target;
pub mod uplink_capture;
pub mod verilated_card;
pub mod verilator;
pub mod vfio_user;
pub mod waveform;
pub mod wire;

pub use simulated_card::{CardOptions, Configured, Packet, SimulatedCard, Simulator, UplinkFrame, PORTS};
