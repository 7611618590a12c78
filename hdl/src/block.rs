//! How our blocks take part in RustHDL's simulation.
//!
//! RustHDL's own `#[derive(LogicBlock)]` runs a block's `update` before its inputs are taken over, so
//! every level of hierarchy costs a pass over the whole design, and every pass visits everything.
//! [`logic_block!`] implements the same `Block` trait so that a block takes its inputs first, settles
//! by itself, and is left alone while nothing that it reads has changed. A kernel is a pure function
//! of what it reads, so the result is the same; the Verilator co-check proves it cycle by cycle.
//!
//! A block is *idle* when the next clock edge would change nothing in it: every register would take
//! the value that it has, no RAM would be written. An idle block isn't told that its clock fell, and
//! so sees no edge when it rises again: a quiet port costs a comparison. (The fall is what may be
//! kept from it. Were it the rise, data that change while the clock is high would make a late edge.)

use crate::block_ports::{number_of, Direction, PortVisitor};
use rust_hdl::prelude::{Block, Clock, Constant, In, Local, Out, Signal, Synth};
use std::any::TypeId;

/// What is new at a block's inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Nothing.
    None,
    /// Only clocks that fell.
    Fall,
    /// A clock rose, or data are new.
    Work,
}

/// How a field of a block takes part in a pass.
pub trait Part {
    /// Is there something new to take?
    fn pending(&self) -> Change {
        Change::None
    }
    /// Would a clock edge change nothing? Asked when everything is settled.
    fn idle(&self) -> bool {
        false
    }
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
    /// Shows itself, if it is a port.
    fn show_port(&self, _name: &str, _index: Option<usize>, _visitor: &mut dyn PortVisitor) {}
}

impl<T: Synth + 'static> Part for Signal<In, T> {
    #[inline(always)]
    fn pending(&self) -> Change {
        if self.next == self.val() {
            Change::None
        } else if TypeId::of::<T>() == TypeId::of::<Clock>() && self.next == T::default() {
            Change::Fall
        } else {
            Change::Work
        }
    }
    #[inline(always)]
    fn idle(&self) -> bool {
        true
    }
    #[inline(always)]
    fn take(&mut self) -> bool {
        self.update_all();
        self.changed
    }
    fn show_port(&self, name: &str, index: Option<usize>, visitor: &mut dyn PortVisitor) {
        visitor.port(name, index, Direction::In, T::BITS, number_of(self.next));
    }
}

impl<T: Synth> Part for Signal<Out, T> {
    #[inline(always)]
    fn idle(&self) -> bool {
        true
    }
    #[inline(always)]
    fn publish(&mut self) -> bool {
        self.update_all();
        self.changed
    }
    fn show_port(&self, name: &str, index: Option<usize>, visitor: &mut dyn PortVisitor) {
        visitor.port(name, index, Direction::Out, T::BITS, number_of(self.val()));
    }
}

impl<T: Synth> Part for Signal<Local, T> {
    #[inline(always)]
    fn idle(&self) -> bool {
        true
    }
    fn refresh(&mut self) {
        self.update_all();
    }
}

impl<T: Synth> Part for Constant<T> {
    #[inline(always)]
    fn idle(&self) -> bool {
        true
    }
}

impl<P: Part, const N: usize> Part for [P; N] {
    #[inline(always)]
    fn pending(&self) -> Change {
        self.iter().fold(Change::None, |change, part| change.max(part.pending()))
    }
    #[inline(always)]
    fn idle(&self) -> bool {
        self.iter().all(Part::idle)
    }
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
    fn show_port(&self, name: &str, _index: Option<usize>, visitor: &mut dyn PortVisitor) {
        for (index, part) in self.iter().enumerate() {
            part.show_port(name, Some(index), visitor);
        }
    }
}

/// Whether a block has settled since it was made, and whether its outputs changed in the last pass.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settled {
    /// The block has been evaluated at least once.
    pub once: bool,
    /// An output changed in the last pass.
    pub changed: bool,
    /// A clock edge would change nothing.
    pub idle: bool,
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
            fn idle(&self) -> bool {
                self.settled.idle
            }
            fn step(&mut self) -> bool {
                #[allow(unused_imports)]
                use $crate::block::{Change, Part};
                use rust_hdl::prelude::Logic;
                let change = Change::None $(.max(self.$field.pending()))+;
                if self.settled.once
                    && (change == Change::None || (change == Change::Fall && self.settled.idle))
                {
                    self.settled.changed = false;
                    return false;
                }
                self.settled.once = true;
                $(self.$field.take();)+
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
                self.settled.idle = $(self.$field.idle())&&+;
                self.settled.changed
            }
            fn refresh(&mut self) {
                $(self.$field.refresh();)+
            }
        }

        impl $(< $(const $generic: usize),+ >)? $crate::block_ports::Ports for $name $(< $($generic),+ >)? {
            fn visit_ports(&self, visitor: &mut dyn $crate::block_ports::PortVisitor) {
                $($crate::block::Part::show_port(&self.$field, stringify!($field), None, visitor);)+
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

/// Writes `Default` for a block that has arrays over its number of ports, for which it can't be derived.
#[macro_export]
macro_rules! block_default {
    (
        $name:ident < $($generic:ident),+ > { $($field:ident),+ $(,)? }
        arrays { $($array:ident),* $(,)? }
        $(with { $($special:ident : $value:expr),+ $(,)? })?
    ) => {
        impl< $(const $generic: usize),+ > Default for $name< $($generic),+ > {
            fn default() -> Self {
                Self {
                    $($field: Default::default(),)+
                    $($array: std::array::from_fn(|_| Default::default()),)*
                    $($($special: $value,)+)?
                    settled: Default::default(),
                }
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
