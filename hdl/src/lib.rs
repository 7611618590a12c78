//! The gateware of the Chronoswitch card, in RustHDL.
//!
//! Values: `value`. How blocks are simulated: `block`. Registers, RAM, CRC: `register`, `ram`,
//! `crc32c`. The rest follows the data (DESIGN §5).

pub mod answer_gate;
pub mod arbiter;
pub mod block;
pub mod block_ports;
pub mod card;
pub mod counters;
pub mod crc32c;
pub mod crossing_bound;
pub mod description_queue;
pub mod expired;
pub mod fifo;
pub mod fixed;
pub mod frame_buffer;
pub mod held_write;
pub mod host;
pub mod ingress;
pub mod interlock;
pub mod journal_engine;
pub mod leaf_clock;
pub mod mac_table;
pub mod port;
pub mod port_clock;
pub mod prelude;
pub mod ram;
pub mod record_header;
pub mod register;
pub mod return_path;
pub mod ring_room;
pub mod scoreboard;
pub mod time_base;
pub mod uplink;
pub mod value;
