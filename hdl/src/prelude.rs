//! What every kernel uses: RustHDL's block and signal types with our values, register and RAM.

pub use crate::block::{cycle, settle, Part, Settled};
pub use crate::crc32c::Crc32cStep;
pub use crate::fifo::Fifo;
pub use crate::fixed::Fixed;
pub use crate::frame_buffer::FrameBuffer;
pub use crate::ram::Ram;
pub use crate::register::Dff;
pub use crate::value::{
    bit_cast, bits, signed, signed_bit_cast, signed_cast, unsigned_cast, Bits, Signed, ToBits,
};
pub use crate::{block_default, logic_block};
pub use rust_hdl::prelude::{
    ast, check_all, clock, dff_setup, generate_verilog, hdl_gen, logic, Block, Clock, Constant, In, Local,
    Logic, LogicJoin, LogicLink, Out, Probe, Signal, Synth, TopWrap, Verilog, VerilogLiteral,
};
