//! Block RAM: RustHDL's `RAM` with the same ports and Verilog, simulated on a `Vec`.

use crate::block::Part;
use crate::value::Bits;
use rust_hdl::prelude::{Block, Clock, In, Logic, Out, Probe, Signal, TimingInfo, Verilog};

/// A dual-clock RAM of 2^`A` words of `D` bits, one write port and one read port, zero at power-up.
///
/// The read is synchronous: data appear one read clock after the address. Read and write of one
/// address at one edge give the old word.
#[derive(Debug)]
pub struct Ram<const D: usize, const A: usize> {
    /// Read address.
    pub read_address: Signal<In, Bits<A>>,
    /// Read clock.
    pub read_clock: Signal<In, Clock>,
    /// Word at the address of the last read edge.
    pub read_data: Signal<Out, Bits<D>>,
    /// Write address.
    pub write_address: Signal<In, Bits<A>>,
    /// Write clock.
    pub write_clock: Signal<In, Clock>,
    /// Word to write.
    pub write_data: Signal<In, Bits<D>>,
    /// Write at this edge.
    pub write_enable: Signal<In, bool>,
    words: Vec<Bits<D>>,
}

impl<const D: usize, const A: usize> Default for Ram<D, A> {
    fn default() -> Self {
        Self {
            read_address: Default::default(),
            read_clock: Default::default(),
            read_data: Default::default(),
            write_address: Default::default(),
            write_clock: Default::default(),
            write_data: Default::default(),
            write_enable: Default::default(),
            words: vec![Bits::default(); 1 << A],
        }
    }
}

impl<const D: usize, const A: usize> Part for Ram<D, A> {
    #[inline(always)]
    fn idle(&self) -> bool {
        !self.write_enable.next && self.words[self.read_address.next.index()] == self.read_data.val()
    }
    #[inline(always)]
    fn step(&mut self) -> bool {
        self.read_clock.update_all();
        self.write_clock.update_all();
        let mut changed = false;
        // Reading before writing gives the old word, as the Verilog's non-blocking assignments do.
        if self.read_clock.pos_edge() {
            self.read_data.next = self.words[self.read_address.next.index()];
            self.read_data.update_all();
            changed = self.read_data.changed;
        }
        if self.write_clock.pos_edge() && self.write_enable.next {
            self.words[self.write_address.next.index()] = self.write_data.next;
        }
        changed
    }
    fn refresh(&mut self) {
        self.read_address.update_all();
        self.write_address.update_all();
        self.write_data.update_all();
        self.write_enable.update_all();
    }
}

impl<const D: usize, const A: usize> Logic for Ram<D, A> {
    fn update(&mut self) {}
    fn connect(&mut self) {
        self.read_data.connect();
    }
    fn hdl(&self) -> Verilog {
        // The loop gives the words their power-up value for simulators that start with X. Block RAM has
        // it anyway, and Yosys unrolls the loop, which took three quarters of the time of a synthesis.
        Verilog::Custom(format!(
            "reg [{top}:0] mem[{last}:0];\n\
             initial read_data = 0;\n\
             `ifndef SYNTHESIS\n\
             integer i;\n\
             initial for (i = 0; i <= {last}; i = i + 1) mem[i] = 0;\n\
             `endif\n\
             always @(posedge read_clock) read_data <= mem[read_address];\n\
             always @(posedge write_clock) if (write_enable) mem[write_address] <= write_data;\n",
            top = D - 1,
            last = (1usize << A) - 1,
        ))
    }
    fn timing(&self) -> Vec<TimingInfo> {
        vec![
            TimingInfo {
                name: "read".into(),
                clock: "read_clock".into(),
                inputs: vec!["read_address".into()],
                outputs: vec!["read_data".into()],
            },
            TimingInfo {
                name: "write".into(),
                clock: "write_clock".into(),
                inputs: vec!["write_address".into(), "write_data".into(), "write_enable".into()],
                outputs: vec![],
            },
        ]
    }
}

impl<const D: usize, const A: usize> Block for Ram<D, A> {
    fn connect_all(&mut self) {
        self.connect();
    }
    fn update_all(&mut self) {
        if !self.step() {
            self.read_data.changed = false;
        }
    }
    fn has_changed(&self) -> bool {
        self.read_data.changed
    }
    fn accept(&self, name: &str, probe: &mut dyn Probe) {
        probe.visit_start_scope(name, self);
        self.read_address.accept("read_address", probe);
        self.read_clock.accept("read_clock", probe);
        self.read_data.accept("read_data", probe);
        self.write_address.accept("write_address", probe);
        self.write_clock.accept("write_clock", probe);
        self.write_data.accept("write_data", probe);
        self.write_enable.accept("write_enable", probe);
        probe.visit_end_scope(name, self);
    }
}
