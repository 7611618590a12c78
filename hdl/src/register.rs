//! The flip-flop: RustHDL's `DFF` with the same Verilog, cheaper to simulate.

use crate::block::Part;
use rust_hdl::prelude::{Block, Clock, In, Logic, Out, Probe, Signal, Synth, TimingInfo, Verilog};

/// A rising-edge register, zero at power-up.
///
/// `d` is looked at only at the edge, so a change of it costs nothing between edges.
#[derive(Clone, Debug, Default)]
pub struct Dff<T: Synth> {
    /// Next value.
    pub d: Signal<In, T>,
    /// Value.
    pub q: Signal<Out, T>,
    /// Clock.
    pub clock: Signal<In, Clock>,
    initial: T,
}

impl<T: Synth> Dff<T> {
    /// A register that holds `initial` at power-up.
    pub fn new(initial: T) -> Self {
        Self { q: Signal::new_with_default(initial), initial, ..Default::default() }
    }
}

impl<T: Synth> Part for Dff<T> {
    #[inline(always)]
    fn idle(&self) -> bool {
        self.d.next == self.q.val()
    }
    #[inline(always)]
    fn step(&mut self) -> bool {
        self.clock.update_all();
        // `q` is compared only at an edge; between edges it can't change.
        if self.clock.pos_edge() {
            self.q.next = self.d.next;
            self.q.update_all();
            return self.q.changed;
        }
        false
    }
    fn refresh(&mut self) {
        self.d.update_all();
    }
}

impl<T: Synth> Logic for Dff<T> {
    fn update(&mut self) {}
    fn connect(&mut self) {
        self.q.connect();
    }
    fn hdl(&self) -> Verilog {
        Verilog::Custom(format!(
            "initial q = {:x};\nalways @(posedge clock) q <= d;\n",
            self.initial.verilog()
        ))
    }
    fn timing(&self) -> Vec<TimingInfo> {
        vec![TimingInfo {
            name: "register".into(),
            clock: "clock".into(),
            inputs: vec!["d".into()],
            outputs: vec!["q".into()],
        }]
    }
}

impl<T: Synth> Block for Dff<T> {
    fn connect_all(&mut self) {
        self.connect();
    }
    fn update_all(&mut self) {
        if !self.step() {
            self.q.changed = false;
        }
    }
    fn has_changed(&self) -> bool {
        self.q.changed
    }
    fn accept(&self, name: &str, probe: &mut dyn Probe) {
        probe.visit_start_scope(name, self);
        self.d.accept("d", probe);
        self.q.accept("q", probe);
        self.clock.accept("clock", probe);
        probe.visit_end_scope(name, self);
    }
}
