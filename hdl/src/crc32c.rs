//! One step of CRC32C over a 64-bit word, combinational.
//!
//! CRC is linear over GF(2), so each bit of the next register is the parity of some bits of the
//! register and the word. The equations are computed from `layout::crc`, the only place where the
//! polynomial stands; the simulation uses the table of the same place.

use crate::block::Part;
use crate::value::Bits;
use rust_hdl::prelude::{Block, In, Logic, Out, Probe, Signal, Verilog};

/// `result` = the CRC shift register `state` after the eight bytes of `word`, byte 0 in bits 7:0.
///
/// The register is the raw one: all ones before the first word, inverted after the last.
#[derive(Clone, Debug, Default)]
pub struct Crc32cStep {
    /// Register before.
    pub state: Signal<In, Bits<32>>,
    /// Data.
    pub word: Signal<In, Bits<64>>,
    /// Register after.
    pub result: Signal<Out, Bits<32>>,
    last: (u32, u64),
    last_result: u32,
}

fn step(state: u32, word: u64) -> u32 {
    layout::crc::shift_register(state, &word.to_le_bytes())
}

impl Part for Crc32cStep {
    #[inline(always)]
    fn idle(&self) -> bool {
        // Combinational: what it will say at the edge it says already.
        true
    }
    #[inline(always)]
    fn step(&mut self) -> bool {
        let inputs = (self.state.next.to_u64() as u32, self.word.next.to_u64());
        if inputs != self.last {
            self.last = inputs;
            self.last_result = step(inputs.0, inputs.1);
            self.result.next = Bits::wrap(self.last_result as u128);
        }
        self.result.update_all();
        self.result.changed
    }
    fn refresh(&mut self) {
        self.state.update_all();
        self.word.update_all();
    }
}

impl Logic for Crc32cStep {
    fn update(&mut self) {}
    fn connect(&mut self) {
        self.result.connect();
    }
    fn hdl(&self) -> Verilog {
        let mut code = String::from("always @(*) begin\n");
        for out in 0..32 {
            let mut terms = Vec::new();
            for bit in 0..32 {
                if step(1 << bit, 0) >> out & 1 == 1 {
                    terms.push(format!("state[{bit}]"));
                }
            }
            for bit in 0..64 {
                if step(0, 1 << bit) >> out & 1 == 1 {
                    terms.push(format!("word[{bit}]"));
                }
            }
            code += &format!("   result[{out}] = {};\n", terms.join(" ^ "));
        }
        Verilog::Custom(code + "end\n")
    }
}

impl Block for Crc32cStep {
    fn connect_all(&mut self) {
        self.connect();
    }
    fn update_all(&mut self) {
        self.step();
    }
    fn has_changed(&self) -> bool {
        self.result.changed
    }
    fn accept(&self, name: &str, probe: &mut dyn Probe) {
        probe.visit_start_scope(name, self);
        self.state.accept("state", probe);
        self.word.accept("word", probe);
        self.result.accept("result", probe);
        probe.visit_end_scope(name, self);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_step_is_linear_so_the_equations_hold() {
        for i in 0..1000u64 {
            let word = i.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let state = (word >> 13) as u32;
            let mut sum = 0;
            for bit in (0..32).filter(|b| state >> b & 1 == 1) {
                sum ^= super::step(1 << bit, 0);
            }
            for bit in (0..64).filter(|b| word >> b & 1 == 1) {
                sum ^= super::step(0, 1 << bit);
            }
            assert_eq!(sum, super::step(state, word));
        }
    }
}
