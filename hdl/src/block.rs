//! How our blocks take part in RustHDL's simulation.
//!
//! RustHDL's own `#[derive(LogicBlock)]` runs a block's `update` before its inputs are taken over, so
//! every level of hierarchy costs a pass over the whole design, and every pass visits everything.
//! [`logic_block!`] implements the same `Block` trait so that a block takes its inputs first, settles
//! by itself, and is left alone while nothing that it reads has changed. A kernel is a pure function
//! of what it reads, so the result is the same; the Verilator co-check proves it cycle by cycle.

use rust_hdl::prelude::{Block, Clock, Constant, In, Local, Out, Signal, Synth};

/// How a field of a block takes part in a pass.
pub trait Part {
    /// Takes over a new input; tells whether it changed.
    fn take(&mut self) -> bool {
        false
    }
    /// Steps a part with an inside; tells whether an output of it changed.
    fn step(&mut self) -> bool {
        false
    }
    /// Makes a new output visible; tells whether it changed.
    fn publish(&mut self) -> bool {
        false
    }
    /// Makes values visible that only a waveform shows.
    fn refresh(&mut self) {}
}

impl<T: Synth> Part for Signal<In, T> {
    #[inline(always)]
    fn take(&mut self) -> bool {
        self.update_all();
        self.changed
    }
}

impl<T: Synth> Part for Signal<Out, T> {
    #[inline(always)]
    fn publish(&mut self) -> bool {
        self.update_all();
        self.changed
    }
}

impl<T: Synth> Part for Signal<Local, T> {
    fn refresh(&mut self) {
        self.update_all();
    }
}

impl<T: Synth> Part for Constant<T> {}

impl<P: Part, const N: usize> Part for [P; N] {
    #[inline(always)]
    fn take(&mut self) -> bool {
        self.iter_mut().fold(false, |changed, part| part.take() | changed)
    }
    #[inline(always)]
    fn step(&mut self) -> bool {
        self.iter_mut().fold(false, |changed, part| part.step() | changed)
    }
    #[inline(always)]
    fn publish(&mut self) -> bool {
        self.iter_mut().fold(false, |changed, part| part.publish() | changed)
    }
    fn refresh(&mut self) {
        self.iter_mut().for_each(Part::refresh);
    }
}

/// Whether a block has settled since it was made, and whether its outputs changed in the last pass.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settled {
    /// The block has been evaluated at least once.
    pub once: bool,
    /// An output changed in the last pass.
    pub changed: bool,
}

/// Passes after which a block that still changes is a combinational loop.
pub const PASS_LIMIT: usize = 64;

/// Defines a block: its struct, and RustHDL's `Block` for it. Ports first, then parts.
///
/// A field `settled` is added; a block with constants, which have no default, writes its own `new`
/// and gives that field `Default::default()`.
#[macro_export]
macro_rules! logic_block {
    (
        $(#[$meta:meta])*
        pub struct $name:ident $(< $(const $generic:ident : usize),+ $(,)? >)? {
            $($(#[$fmeta:meta])* $vis:vis $field:ident : $type:ty,)+
        }
    ) => {
        $(#[$meta])*
        pub struct $name $(< $(const $generic: usize),+ >)? {
            $($(#[$fmeta])* $vis $field: $type,)+
            settled: $crate::block::Settled,
        }

        impl $(< $(const $generic: usize),+ >)? $crate::block::Part for $name $(< $($generic),+ >)? {
            fn step(&mut self) -> bool {
                use $crate::block::Part;
                use rust_hdl::prelude::Logic;
                let changed = $(self.$field.take())|+;
                if !changed && self.settled.once {
                    self.settled.changed = false;
                    return false;
                }
                self.settled.once = true;
                let mut passes = 0;
                loop {
                    self.update();
                    let active = $(self.$field.step())|+;
                    if !active {
                        break;
                    }
                    passes += 1;
                    assert!(passes < $crate::block::PASS_LIMIT, "{} doesn't settle", stringify!($name));
                }
                self.settled.changed = $(self.$field.publish())|+;
                self.settled.changed
            }
            fn refresh(&mut self) {
                $(self.$field.refresh();)+
            }
        }

        impl $(< $(const $generic: usize),+ >)? rust_hdl::prelude::Block for $name $(< $($generic),+ >)? {
            fn connect_all(&mut self) {
                rust_hdl::prelude::Logic::connect(self);
                $(rust_hdl::prelude::Block::connect_all(&mut self.$field);)+
            }
            fn update_all(&mut self) {
                $crate::block::Part::step(self);
            }
            fn has_changed(&self) -> bool {
                self.settled.changed
            }
            fn accept(&self, name: &str, probe: &mut dyn rust_hdl::prelude::Probe) {
                probe.visit_start_scope(name, self);
                $(rust_hdl::prelude::Block::accept(&self.$field, stringify!($field), probe);)+
                probe.visit_end_scope(name, self);
            }
        }
    };
}

/// Settles `block` with its inputs as they are.
pub fn settle<B: Block>(block: &mut B) {
    for _ in 0..PASS_LIMIT {
        block.update_all();
        if !block.has_changed() {
            return;
        }
    }
    panic!("the block doesn't settle");
}

/// One clock cycle of a block whose other inputs are set: settles with the clock low, lets `sample`
/// look at the outputs just before the edge, then raises the clock.
pub fn cycle<B: Block, R>(
    block: &mut B,
    clock: impl Fn(&mut B) -> &mut Signal<In, Clock>,
    sample: impl FnOnce(&B) -> R,
) -> R {
    clock(block).next = false.into();
    settle(block);
    let seen = sample(block);
    clock(block).next = true.into();
    settle(block);
    seen
}
