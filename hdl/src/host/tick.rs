//! The unit of every time-out: a strobe each [`layout::registers::TICK_CYCLES`] cycles.

use crate::prelude::*;

const _: () = assert!(layout::registers::TICK_CYCLES == 1 << 7);

logic_block! {
    /// A counter of its own, so that what it drives is left alone between ticks.
    #[derive(Default)]
    pub struct Ticker {
        /// Clock.
        pub clock: Signal<In, Clock>,
        /// Strobe.
        pub tick: Signal<Out, bool>,
        count: Dff<Bits<7>>,
    }
}

impl Logic for Ticker {
    #[hdl_gen]
    fn update(&mut self) {
        dff_setup!(self, clock, count);
        self.count.d.next = self.count.q.val() + 1;
        self.tick.next = self.count.q.val() == 127;
    }
}
