//! Which port's ring is drained, up to where, and when a watermark is asked for.

use super::register_map::{global_word, port_word};
use crate::prelude::*;
use layout::registers::{global, port};
use std::array;

logic_block! {
    /// A drain runs from `ring_tail` to the head as it was when the drain began, which is a record's end:
    /// so what is announced is always whole records, and after a function reset the next session begins
    /// with a header. `ring_tail` moves when the drain has been announced.
    pub struct Schedule<const P: usize, const H: usize> {
        /// Clock.
        pub clock: Signal<In, Clock>,
        /// See `RegisterFile`.
        pub set_write: Signal<In, bool>,
        /// See `RegisterFile`.
        pub set_word: Signal<In, Bits<9>>,
        /// See `RegisterFile`.
        pub set_data: Signal<In, Bits<32>>,
        /// Unit of the flush period (strobe).
        pub tick: Signal<In, bool>,
        /// Strobe.
        pub function_reset: Signal<In, bool>,
        /// Strobe.
        pub card_reset: Signal<In, bool>,
        /// See `Host`.
        pub ring_head: [Signal<In, Bits<H>>; P],
        /// See `Host`.
        pub ring_tail: [Signal<Out, Bits<H>>; P],
        /// See `Host`.
        pub watermark_request: [Signal<Out, bool>; P],
        /// See `Host`.
        pub watermark_done: [Signal<In, bool>; P],
        /// See `Host`.
        pub commit: Signal<In, bool>,
        /// A drain is over (strobe).
        pub announced: Signal<In, bool>,
        /// Of this port.
        pub announced_port: Signal<In, Bits<3>>,
        /// Ports to drain.
        pub active: Signal<Out, Bits<P>>,
        /// The port that the planner looks at.
        pub port: Signal<In, Bits<3>>,
        /// Where its drain ends.
        pub target: Signal<Out, Bits<H>>,
        /// Where it began.
        pub tail: Signal<Out, Bits<H>>,

        enabled: Dff<Bits<P>>,
        // Something was committed since the port's last watermark.
        stale: Dff<Bits<P>>,
        // A watermark shall be asked for; is asked for; is there and wants a drain.
        wanted: Dff<Bits<P>>,
        asking: Dff<Bits<P>>,
        due: Dff<Bits<P>>,
        draining: Dff<Bits<P>>,
        period: Dff<Bits<32>>,
        timer: Dff<Bits<32>>,
        flush_level: [Dff<Bits<H>>; P],
        targets: [Dff<Bits<H>>; P],
        tails: [Dff<Bits<H>>; P],

        timer_next: Signal<Local, Bits<32>>,
        expired: Signal<Local, bool>,
        set_here: Signal<Local, bool>,
        set_low: Signal<Local, bool>,
        level: Signal<Local, Bits<H>>,
        level_limit: Signal<Local, Bits<H>>,
        flush: Signal<Local, bool>,
        enabled_next: Signal<Local, Bits<P>>,
        stale_next: Signal<Local, Bits<P>>,
        wanted_next: Signal<Local, Bits<P>>,
        asking_next: Signal<Local, Bits<P>>,
        due_next: Signal<Local, Bits<P>>,
        draining_next: Signal<Local, Bits<P>>,
        word_period: Constant<Bits<9>>,
        port_word_control: Constant<Bits<4>>,
        port_word_command: Constant<Bits<4>>,
        port_word_flush_level: Constant<Bits<4>>,
        most: Constant<Bits<32>>,
    }
}

impl<const P: usize, const H: usize> Schedule<P, H> {
    /// For rings of `2^H` · 32 bytes.
    pub fn new() -> Self {
        let port_word = |offset| Constant::new(bits(port_word(offset) as u64 % 16));
        Self {
            clock: Default::default(),
            set_write: Default::default(),
            set_word: Default::default(),
            set_data: Default::default(),
            tick: Default::default(),
            function_reset: Default::default(),
            card_reset: Default::default(),
            ring_head: array::from_fn(|_| Default::default()),
            ring_tail: array::from_fn(|_| Default::default()),
            watermark_request: array::from_fn(|_| Default::default()),
            watermark_done: array::from_fn(|_| Default::default()),
            commit: Default::default(),
            announced: Default::default(),
            announced_port: Default::default(),
            active: Default::default(),
            port: Default::default(),
            target: Default::default(),
            tail: Default::default(),
            enabled: Default::default(),
            stale: Default::default(),
            wanted: Default::default(),
            asking: Default::default(),
            due: Default::default(),
            draining: Default::default(),
            period: Default::default(),
            timer: Default::default(),
            flush_level: array::from_fn(|_| Default::default()),
            targets: array::from_fn(|_| Default::default()),
            tails: array::from_fn(|_| Default::default()),
            timer_next: Default::default(),
            expired: Default::default(),
            set_here: Default::default(),
            set_low: Default::default(),
            level: Default::default(),
            level_limit: Default::default(),
            flush: Default::default(),
            enabled_next: Default::default(),
            stale_next: Default::default(),
            wanted_next: Default::default(),
            asking_next: Default::default(),
            due_next: Default::default(),
            draining_next: Default::default(),
            word_period: Constant::new(bits(global_word(global::FLUSH_PERIOD) as u64)),
            port_word_control: port_word(port::CONTROL),
            port_word_command: port_word(port::COMMAND),
            port_word_flush_level: port_word(port::FLUSH_LEVEL),
            // No ring gets that full: a level from here on never starts a drain.
            most: Constant::new(bits((1 << H) - 1)),
            settled: Default::default(),
        }
    }
}

impl<const P: usize, const H: usize> Default for Schedule<P, H> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const P: usize, const H: usize> Logic for Schedule<P, H> {
    #[hdl_gen]
    fn update(&mut self) {
        dff_setup!(self, clock, enabled, stale, wanted, asking, due, draining, period, timer);
        self.enabled_next.next = self.enabled.q.val();
        self.stale_next.next = self.stale.q.val();
        self.wanted_next.next = self.wanted.q.val();
        self.asking_next.next = self.asking.q.val();
        self.due_next.next = self.due.q.val();
        self.draining_next.next = self.draining.q.val();
        self.active.next = self.draining.q.val() & self.enabled.q.val();
        self.target.next = bits::<H>(0);
        self.tail.next = bits::<H>(0);

        self.timer_next.next = self.timer.q.val() + 1;
        self.expired.next = false;
        if self.tick.val() {
            self.timer.d.next = self.timer_next.val();
            if self.timer_next.val() >= self.period.q.val() {
                self.timer.d.next = bits::<32>(0);
                self.expired.next = self.period.q.val() != 0;
            }
        }
        if self.set_write.val() & (self.set_word.val() == self.word_period.val()) {
            self.period.d.next = self.set_data.val();
        }
        self.set_low.next = self.set_data.val().get_bit(0);
        self.level_limit.next = self.set_data.val().get_bits::<H>(0);
        if self.set_data.val() > self.most.val() {
            self.level_limit.next = self.most.val().get_bits::<H>(0);
        }

        for i in 0..P {
            self.flush_level[i].clock.next = self.clock.val();
            self.flush_level[i].d.next = self.flush_level[i].q.val();
            self.targets[i].clock.next = self.clock.val();
            self.targets[i].d.next = self.targets[i].q.val();
            self.tails[i].clock.next = self.clock.val();
            self.tails[i].d.next = self.tails[i].q.val();
            self.ring_tail[i].next = self.tails[i].q.val();
            self.watermark_request[i].next = self.asking.q.val().get_bit(i);
            if self.port.val() == i.to_bits::<3>() {
                self.target.next = self.targets[i].q.val();
                self.tail.next = self.tails[i].q.val();
            }

            self.set_here.next = false;
            self.flush.next = false;
            if self.set_write.val() {
                self.set_here.next = (self.set_word.val().get_bits::<2>(7) == 1)
                    & (self.set_word.val().get_bits::<3>(4) == i.to_bits::<3>());
            }
            if self.set_here.val() {
                if self.set_word.val().get_bits::<4>(0) == self.port_word_control.val() {
                    self.enabled_next.next = self.enabled_next.val().replace_bit(i, self.set_low.val());
                }
                if self.set_word.val().get_bits::<4>(0) == self.port_word_flush_level.val() {
                    self.flush_level[i].d.next = self.level_limit.val();
                }
                self.flush.next = self.set_low.val()
                    & (self.set_word.val().get_bits::<4>(0) == self.port_word_command.val());
            }

            // Drain.
            self.level.next = self.ring_head[i].val() - self.tails[i].q.val();
            if self.enabled.q.val().get_bit(i) {
                if !self.draining.q.val().get_bit(i)
                    & (self.due.q.val().get_bit(i) | (self.level.val() >= self.flush_level[i].q.val()))
                {
                    self.due_next.next = self.due_next.val().replace_bit(i, false);
                    if self.level.val() != 0 {
                        self.draining_next.next = self.draining_next.val().replace_bit(i, true);
                        self.targets[i].d.next = self.ring_head[i].val();
                    }
                }
            } else {
                // Once enabled, what a session left in the ring goes down at once: a watermark among it
                // would keep the next one waiting.
                self.due_next.next = self.due_next.val().replace_bit(i, self.enabled_next.val().get_bit(i));
            }
            if self.announced.val() & (self.announced_port.val() == i.to_bits::<3>()) {
                self.draining_next.next = self.draining_next.val().replace_bit(i, false);
                self.tails[i].d.next = self.targets[i].q.val();
            }

            // Watermarks.
            if self.wanted.q.val().get_bit(i) & !self.asking.q.val().get_bit(i) {
                self.wanted_next.next = self.wanted_next.val().replace_bit(i, false);
                self.stale_next.next = self.stale_next.val().replace_bit(i, false);
                self.asking_next.next = self.asking_next.val().replace_bit(i, true);
            }
            if self.watermark_done[i].val() {
                self.asking_next.next = self.asking_next.val().replace_bit(i, false);
                self.due_next.next = self.due_next.val().replace_bit(i, true);
            }
            if self.enabled.q.val().get_bit(i)
                & (self.flush.val() | (self.expired.val() & self.stale.q.val().get_bit(i)))
            {
                self.wanted_next.next = self.wanted_next.val().replace_bit(i, true);
            }
            if self.commit.val() {
                self.stale_next.next = self.stale_next.val().replace_bit(i, true);
            }

            if self.function_reset.val() | self.card_reset.val() {
                // What lies undrained in the ring wants a watermark in the next session.
                self.stale_next.next = self.stale_next.val().replace_bit(i, true);
                if self.card_reset.val() {
                    self.stale_next.next = self.stale_next.val().replace_bit(i, false);
                    self.asking_next.next = self.asking_next.val().replace_bit(i, false);
                    self.targets[i].d.next = bits::<H>(0);
                    self.tails[i].d.next = bits::<H>(0);
                }
            }
        }

        self.enabled.d.next = self.enabled_next.val();
        self.stale.d.next = self.stale_next.val();
        self.wanted.d.next = self.wanted_next.val();
        self.asking.d.next = self.asking_next.val();
        self.due.d.next = self.due_next.val();
        self.draining.d.next = self.draining_next.val();
        if self.function_reset.val() | self.card_reset.val() {
            self.enabled.d.next = bits::<P>(0);
            self.wanted.d.next = bits::<P>(0);
            self.due.d.next = bits::<P>(0);
            self.draining.d.next = bits::<P>(0);
            self.timer.d.next = bits::<32>(0);
        }
    }
}
