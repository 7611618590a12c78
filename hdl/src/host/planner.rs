//! Cuts drains into memory writes.

use super::register_map::port_word;
use crate::fifo::Fifo;
use crate::prelude::*;
use layout::registers::port;
use step::Step;

mod step {
    #![allow(missing_docs)]
    use rust_hdl::prelude::*;
    /// What the planner does.
    #[derive(LogicState, Copy, Clone, Debug, PartialEq)]
    pub enum Step {
        Pick,
        Size,
        Space,
        Base,
        Free,
        Cut,
        Emit,
        Close,
        Mailbox,
        Clear,
    }
}

/// Bits of a write to send: address in 63:0, lines in 66:64 (0: one word, the mailbox), port in 69:67.
pub const DESCRIPTOR_BITS: usize = 70;

logic_block! {
    /// One write at a time of each port in turn. A write never crosses 4 KiB, which is also why it never
    /// crosses the end of the host's ring: ring and mailbox are aligned.
    pub struct Planner<const P: usize, const A: usize, const H: usize> {
        /// Clock.
        pub clock: Signal<In, Clock>,
        /// See `RegisterFile`.
        pub set_write: Signal<In, bool>,
        /// See `RegisterFile`.
        pub set_word: Signal<In, Bits<9>>,
        /// See `RegisterFile`.
        pub set_data: Signal<In, Bits<32>>,
        /// See `RegisterFile`.
        pub set_high: Signal<In, Bits<32>>,
        /// Function or card reset (strobe).
        pub reset: Signal<In, bool>,
        /// Being reset: nothing that was planned may start any more.
        pub resetting: Signal<Out, bool>,
        /// The transmitter sends nothing.
        pub quiet: Signal<In, bool>,
        /// Maximum payload: 128 << code.
        pub max_payload: Signal<In, Bits<3>>,
        /// Ports to drain.
        pub active: Signal<In, Bits<P>>,
        /// The port looked at.
        pub port: Signal<Out, Bits<3>>,
        /// Where its drain ends.
        pub target: Signal<In, Bits<H>>,
        /// Where it began.
        pub tail: Signal<In, Bits<H>>,
        /// A mailbox was written (strobe).
        pub announced: Signal<In, bool>,
        /// Of this port.
        pub announced_port: Signal<In, Bits<3>>,
        /// See `Fetch`.
        pub fetch_clear: Signal<Out, bool>,
        /// See `Fetch`.
        pub fetch_start: Signal<Out, bool>,
        /// See `Fetch`.
        pub fetch_address: Signal<Out, Bits<A>>,
        /// See `Fetch`.
        pub fetch_lines: Signal<Out, Bits<3>>,
        /// See `Fetch`.
        pub fetch_insert: Signal<Out, bool>,
        /// See `Fetch`.
        pub fetch_insert_word: Signal<Out, Bits<64>>,
        /// See `Fetch`.
        pub fetch_idle: Signal<In, bool>,
        /// See `Fetch`.
        pub fetch_empty: Signal<In, bool>,
        /// Oldest write planned ([`DESCRIPTOR_BITS`]).
        pub descriptor: Signal<Out, Bits<70>>,
        /// It is there.
        pub descriptor_filled: Signal<Out, bool>,
        /// It was sent.
        pub descriptor_pop: Signal<In, bool>,

        planned: Fifo<70, 2>,
        // The ports' registers by port and word.
        parameters: Ram<64, 7>,
        // Each port's bytes planned since reset, and the place in its own ring.
        progress: Ram<64, 3>,
        places: Ram<H, 3>,
        step: Dff<Step>,
        chosen: Dff<Bits<3>>,
        // The chosen port's registers changed since it was chosen.
        touched: Dff<bool>,
        // The host's ring is full; the mailbox is on its way.
        blocked: Dff<Bits<P>>,
        closed: Dff<Bits<P>>,
        clearing: Dff<bool>,
        size_log: Dff<Bits<5>>,
        size_valid: Dff<bool>,
        used: Dff<Bits<32>>,
        offset: Dff<Bits<32>>,
        free: Dff<Bits<32>>,
        place: Dff<Bits<64>>,
        lines: Dff<Bits<3>>,

        candidates: Signal<Local, Bits<P>>,
        after: Signal<Local, bool>,
        found: Signal<Local, bool>,
        found_after: Signal<Local, bool>,
        pick: Signal<Local, Bits<3>>,
        touch: Signal<Local, bool>,
        set_port: Signal<Local, bool>,
        blocked_next: Signal<Local, Bits<P>>,
        closed_next: Signal<Local, Bits<P>>,
        block: Signal<Local, bool>,
        close: Signal<Local, bool>,
        wanted: Signal<Local, Bits<4>>,
        size: Signal<Local, Bits<32>>,
        size_mask: Signal<Local, Bits<32>>,
        pointer: Signal<Local, Bits<H>>,
        pointer_next: Signal<Local, Bits<H>>,
        bytes: Signal<Local, Bits<64>>,
        bytes_next: Signal<Local, Bits<64>>,
        remaining: Signal<Local, Bits<H>>,
        to_boundary: Signal<Local, Bits<6>>,
        cut: Signal<Local, Bits<3>>,
        one: Constant<Bits<32>>,
        word_size: Constant<Bits<4>>,
        word_consumed: Constant<Bits<4>>,
        word_address: Constant<Bits<4>>,
        word_mailbox: Constant<Bits<4>>,
    }
}

impl<const P: usize, const A: usize, const H: usize> Planner<P, A, H> {
    /// Nothing planned.
    pub fn new() -> Self {
        let word = |offset| Constant::new(bits(port_word(offset) as u64 % 16));
        Self {
            clock: Default::default(),
            set_write: Default::default(),
            set_word: Default::default(),
            set_data: Default::default(),
            set_high: Default::default(),
            reset: Default::default(),
            resetting: Default::default(),
            quiet: Default::default(),
            max_payload: Default::default(),
            active: Default::default(),
            port: Default::default(),
            target: Default::default(),
            tail: Default::default(),
            announced: Default::default(),
            announced_port: Default::default(),
            fetch_clear: Default::default(),
            fetch_start: Default::default(),
            fetch_address: Default::default(),
            fetch_lines: Default::default(),
            fetch_insert: Default::default(),
            fetch_insert_word: Default::default(),
            fetch_idle: Default::default(),
            fetch_empty: Default::default(),
            descriptor: Default::default(),
            descriptor_filled: Default::default(),
            descriptor_pop: Default::default(),
            planned: Default::default(),
            parameters: Default::default(),
            progress: Default::default(),
            places: Default::default(),
            step: Default::default(),
            chosen: Default::default(),
            touched: Default::default(),
            blocked: Default::default(),
            closed: Default::default(),
            clearing: Default::default(),
            size_log: Default::default(),
            size_valid: Default::default(),
            used: Default::default(),
            offset: Default::default(),
            free: Default::default(),
            place: Default::default(),
            lines: Default::default(),
            candidates: Default::default(),
            after: Default::default(),
            found: Default::default(),
            found_after: Default::default(),
            pick: Default::default(),
            touch: Default::default(),
            set_port: Default::default(),
            blocked_next: Default::default(),
            closed_next: Default::default(),
            block: Default::default(),
            close: Default::default(),
            wanted: Default::default(),
            size: Default::default(),
            size_mask: Default::default(),
            pointer: Default::default(),
            pointer_next: Default::default(),
            bytes: Default::default(),
            bytes_next: Default::default(),
            remaining: Default::default(),
            to_boundary: Default::default(),
            cut: Default::default(),
            one: Constant::new(bits(1)),
            word_size: word(port::RING_SIZE),
            word_consumed: word(port::CONSUMED),
            word_address: word(port::RING_ADDRESS),
            word_mailbox: word(port::MAILBOX_ADDRESS),
            settled: Default::default(),
        }
    }
}

impl<const P: usize, const A: usize, const H: usize> Default for Planner<P, A, H> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const P: usize, const A: usize, const H: usize> Logic for Planner<P, A, H> {
    #[hdl_gen]
    fn update(&mut self) {
        dff_setup!(
            self, clock, step, chosen, touched, blocked, closed, clearing, size_log, size_valid, used,
            offset, free, place, lines
        );
        self.planned.clock.next = self.clock.val();
        self.planned.clear.next = false;
        self.planned.push.next = false;
        self.planned.data.next = bits::<70>(0);
        self.planned.pop.next = self.descriptor_pop.val();
        self.descriptor.next = self.planned.front.val();
        self.descriptor_filled.next = self.planned.filled.val();
        self.parameters.read_clock.next = self.clock.val();
        self.parameters.write_clock.next = self.clock.val();
        self.parameters.write_enable.next = false;
        self.parameters.write_address.next = bits::<7>(0);
        self.parameters.write_data.next = bits::<64>(0);
        self.wanted.next = bits::<4>(0);
        self.progress.read_clock.next = self.clock.val();
        self.progress.write_clock.next = self.clock.val();
        self.progress.read_address.next = self.chosen.q.val();
        self.progress.write_address.next = self.chosen.q.val();
        self.progress.write_enable.next = false;
        self.progress.write_data.next = bits::<64>(0);
        self.places.read_clock.next = self.clock.val();
        self.places.write_clock.next = self.clock.val();
        self.places.read_address.next = self.chosen.q.val();
        self.places.write_address.next = self.chosen.q.val();
        self.places.write_enable.next = false;
        self.places.write_data.next = bits::<H>(0);
        self.port.next = self.chosen.q.val();
        self.resetting.next = self.clearing.q.val();
        self.fetch_clear.next = false;
        self.fetch_start.next = false;
        self.fetch_address.next = bits::<A>(0);
        self.fetch_lines.next = bits::<3>(0);
        self.fetch_insert.next = false;
        self.fetch_insert_word.next = bits::<64>(0);

        self.touch.next = false;
        self.set_port.next = false;
        if self.set_write.val() & (self.set_word.val().get_bits::<2>(7) == 1) {
            self.set_port.next = true;
            self.parameters.write_enable.next = true;
            self.parameters.write_address.next = self.set_word.val().get_bits::<7>(0);
            self.parameters.write_data.next =
                bit_cast::<64, 32>(self.set_data.val()) | (bit_cast::<64, 32>(self.set_high.val()) << 32);
            self.touch.next = self.set_word.val().get_bits::<3>(4) == self.chosen.q.val();
        }
        if self.touch.val() {
            self.touched.d.next = true;
        }

        self.candidates.next = bits::<P>(0);
        self.after.next = false;
        self.found.next = false;
        self.found_after.next = false;
        self.pick.next = bits::<3>(0);
        self.block.next = false;
        self.close.next = false;
        self.size.next = bits::<32>(0);
        self.size_mask.next = bits::<32>(0);
        self.pointer.next = self.places.read_data.val();
        self.pointer_next.next = self.pointer.val() + bit_cast::<H, 3>(self.lines.q.val());
        self.bytes.next = self.progress.read_data.val();
        self.bytes_next.next = self.bytes.val() + (bit_cast::<64, 3>(self.lines.q.val()) << 6);
        self.remaining.next = bits::<H>(0);
        self.to_boundary.next = bits::<6>(0);
        self.cut.next = bits::<3>(0);
        match self.step.q.val() {
            Step::Pick => {
                self.touched.d.next = false;
                self.candidates.next = self.active.val() & !self.blocked.q.val() & !self.closed.q.val();
                if self.candidates.val().any() {
                    // The first after the last one chosen, or else the first.
                    for i in 0..P {
                        if self.candidates.val().get_bit(i) {
                            if !self.found.val() | (self.after.val() & !self.found_after.val()) {
                                self.pick.next = i.to_bits::<3>();
                            }
                            self.found.next = true;
                            self.found_after.next = self.found_after.val() | self.after.val();
                        }
                        if self.chosen.q.val() == i.to_bits::<3>() {
                            self.after.next = true;
                        }
                    }
                    self.chosen.d.next = self.pick.val();
                    self.step.d.next = Step::Size;
                }
            }
            Step::Size => {
                self.wanted.next = self.word_size.val();
                self.step.d.next = Step::Space;
            }
            Step::Space => {
                self.wanted.next = self.word_consumed.val();
                self.size_log.d.next = self.parameters.read_data.val().get_bits::<5>(0);
                // 64 KiB to 1 GiB.
                self.size_valid.d.next = (self.parameters.read_data.val().get_bits::<28>(4) == 1)
                    & (self.parameters.read_data.val().get_bits::<4>(0) != 15);
                self.step.d.next = Step::Base;
            }
            Step::Base => {
                self.wanted.next = self.word_address.val();
                self.size.next = self.one.val() << self.size_log.q.val();
                self.size_mask.next = self.size.val() - 1;
                self.used.d.next =
                    self.bytes.val().get_bits::<32>(0) - self.parameters.read_data.val().get_bits::<32>(0);
                self.offset.d.next = self.bytes.val().get_bits::<32>(0) & self.size_mask.val();
                self.step.d.next = Step::Free;
            }
            Step::Free => {
                self.size.next = self.one.val() << self.size_log.q.val();
                self.free.d.next = self.size.val() - self.used.q.val();
                if (self.used.q.val() > self.size.val()) | !self.size_valid.q.val() {
                    self.free.d.next = bits::<32>(0);
                }
                self.place.d.next = (bit_cast::<64, 52>(self.parameters.read_data.val().get_bits::<52>(12))
                    << 12)
                    + bit_cast::<64, 32>(self.offset.q.val());
                self.step.d.next = Step::Cut;
            }
            Step::Cut => {
                self.remaining.next = self.target.val() - self.pointer.val();
                // Lines up to the next 4 KiB, less one.
                self.to_boundary.next = !self.bytes.val().get_bits::<6>(6);
                self.cut.next = bits::<3>(2);
                if self.max_payload.val() != 0 {
                    self.cut.next = bits::<3>(4);
                }
                if self.to_boundary.val() < bit_cast::<6, 3>(self.cut.val()) {
                    self.cut.next = self.to_boundary.val().get_bits::<3>(0) + 1;
                }
                if self.remaining.val() < bit_cast::<H, 3>(self.cut.val()) {
                    self.cut.next = bit_cast::<3, H>(self.remaining.val());
                }
                if self.free.q.val().get_bits::<26>(6) < bit_cast::<26, 3>(self.cut.val()) {
                    self.cut.next = self.free.q.val().get_bits::<3>(6);
                }
                self.lines.d.next = self.cut.val();
                self.step.d.next = Step::Emit;
                if self.remaining.val() == 0 {
                    self.step.d.next = Step::Close;
                }
            }
            Step::Emit => {
                self.remaining.next = self.target.val() - self.pointer.val();
                if self.lines.q.val() == 0 {
                    // A register written meanwhile may have made room.
                    self.block.next = !self.touched.q.val() & !self.touch.val();
                    self.step.d.next = Step::Pick;
                } else if self.fetch_idle.val() & !self.planned.full.val() {
                    self.planned.push.next = true;
                    self.planned.data.next = bit_cast::<70, 64>(self.place.q.val())
                        | (bit_cast::<70, 3>(self.lines.q.val()) << 64)
                        | (bit_cast::<70, 3>(self.chosen.q.val()) << 67);
                    self.fetch_start.next = true;
                    self.fetch_address.next = bit_cast::<A, H>(self.pointer.val()) << 3;
                    self.fetch_lines.next = self.lines.q.val();
                    self.progress.write_enable.next = true;
                    self.progress.write_data.next = self.bytes_next.val();
                    self.places.write_enable.next = true;
                    self.places.write_data.next = self.pointer_next.val();
                    self.step.d.next = Step::Pick;
                    if self.remaining.val() == bit_cast::<H, 3>(self.lines.q.val()) {
                        self.step.d.next = Step::Close;
                    }
                }
            }
            Step::Close => {
                self.wanted.next = self.word_mailbox.val();
                self.step.d.next = Step::Mailbox;
            }
            Step::Mailbox => {
                self.wanted.next = self.word_mailbox.val();
                // The word comes after those of the ring.
                if self.fetch_empty.val() & !self.planned.full.val() {
                    self.planned.push.next = true;
                    self.planned.data.next =
                        (bit_cast::<70, 61>(self.parameters.read_data.val().get_bits::<61>(3)) << 3)
                            | (bit_cast::<70, 3>(self.chosen.q.val()) << 67);
                    self.fetch_insert.next = true;
                    self.fetch_insert_word.next = self.bytes.val();
                    self.close.next = true;
                    self.step.d.next = Step::Pick;
                }
            }
            Step::Clear => {
                self.fetch_clear.next = true;
                self.planned.clear.next = true;
                self.progress.write_enable.next = true;
                self.places.write_enable.next = true;
                self.places.write_data.next = self.tail.val();
                self.chosen.d.next = self.chosen.q.val() + 1;
                if self.chosen.q.val() == 7 {
                    self.clearing.d.next = false;
                    self.step.d.next = Step::Pick;
                }
            }
        }
        self.parameters.read_address.next =
            (bit_cast::<7, 3>(self.chosen.q.val()) << 4) | bit_cast::<7, 4>(self.wanted.val());

        self.blocked_next.next = self.blocked.q.val();
        self.closed_next.next = self.closed.q.val();
        for i in 0..P {
            if self.chosen.q.val() == i.to_bits::<3>() {
                if self.block.val() {
                    self.blocked_next.next = self.blocked_next.val().replace_bit(i, true);
                }
                if self.close.val() {
                    self.closed_next.next = self.closed_next.val().replace_bit(i, true);
                }
            }
            if self.set_port.val() & (self.set_word.val().get_bits::<3>(4) == i.to_bits::<3>()) {
                self.blocked_next.next = self.blocked_next.val().replace_bit(i, false);
            }
            if self.announced.val() & (self.announced_port.val() == i.to_bits::<3>()) {
                self.closed_next.next = self.closed_next.val().replace_bit(i, false);
            }
        }
        self.blocked.d.next = self.blocked_next.val();
        self.closed.d.next = self.closed_next.val();

        if self.reset.val() {
            self.clearing.d.next = true;
        }
        if self.clearing.q.val() {
            self.blocked.d.next = bits::<P>(0);
            self.closed.d.next = bits::<P>(0);
            if !self.fetch_clear.val() {
                // Nothing new; what the packet now being sent still needs is fetched.
                self.planned.push.next = false;
                self.fetch_start.next = false;
                self.fetch_insert.next = false;
                self.progress.write_enable.next = false;
                self.places.write_enable.next = false;
                self.chosen.d.next = bits::<3>(0);
                self.step.d.next = Step::Pick;
                if self.quiet.val() {
                    self.step.d.next = Step::Clear;
                }
            }
        }
    }
}
