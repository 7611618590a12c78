//! The write of a port that is held: while what it will overwrite is read, and until its entry is durable
//! (DESIGN §3.5). A port holds one write at a time; what comes behind it waits, reads don't.

use crate::prelude::*;

/// Reads that are sent for one write before it is dropped.
pub const TRIES: u64 = 4;

mod states {
    #![allow(missing_docs)]
    use rust_hdl::prelude::*;

    #[derive(Copy, Clone, PartialEq, Debug, LogicState)]
    pub enum HeldStage {
        None,
        /// A copy of a write that was forwarded: what it overwrites is what it writes.
        Journal,
        /// A read is to be sent.
        Read,
        /// A read was sent.
        Reading,
        /// The entry is in the ring, but not durable.
        Undurable,
        /// It may go.
        Forward,
    }
}
pub use states::HeldStage;

logic_block! {
    /// What the journal engine does with it, it tells by strobes.
    #[derive(Default)]
    pub struct HeldWrite {
        /// Clock.
        pub clock: Signal<In, Clock>,
        /// This port.
        pub port: Signal<In, Bits<8>>,
        /// Ticks since power-up.
        pub ticks: Signal<In, Bits<32>>,
        /// Ticks before a read is sent again.
        pub retry: Signal<In, Bits<32>>,
        /// Durable up to this number.
        pub durable: Signal<In, Bits<64>>,
        /// Whoever is waited for is gone: nothing may be held any more (strobe).
        pub cancel: Signal<In, bool>,
        /// A write is held from now on (strobe).
        pub load: Signal<In, bool>,
        /// It: `ingress::write_key`.
        pub load_key: Signal<In, Bits<128>>,
        /// It: `ingress::write_info`.
        pub load_info: Signal<In, Bits<97>>,
        /// Its scoreboard slot.
        pub load_slot: Signal<In, Bits<4>>,
        /// It is a copy of the one in that slot.
        pub load_copy: Signal<In, bool>,
        /// A copy of it was dropped (strobe).
        pub copied: Signal<In, bool>,
        /// The copy's tag, which it has from now on.
        pub copied_tag: Signal<In, Bits<32>>,
        /// The read leaves (strobe).
        pub sent: Signal<In, bool>,
        /// Its entry is in the ring (strobe).
        pub journaled: Signal<In, bool>,
        /// The entry's number.
        pub journaled_number: Signal<In, Bits<64>>,
        /// It leaves, or is dropped (strobe).
        pub ended: Signal<In, bool>,
        /// A write is held.
        pub busy: Signal<Out, bool>,
        /// It, with its latest tag: `ingress::write_key`.
        pub key: Signal<Out, Bits<128>>,
        /// It: `ingress::write_info`.
        pub info: Signal<Out, Bits<97>>,
        /// Its slot.
        pub slot: Signal<Out, Bits<4>>,
        /// It is a copy.
        pub copy: Signal<Out, bool>,
        /// Its number, once it is journaled.
        pub number: Signal<Out, Bits<64>>,
        /// Tag of its read, as it stands in a frame.
        pub read_tag: Signal<Out, Bits<32>>,
        /// An answer to its read is waited for.
        pub reading: Signal<Out, bool>,
        /// Its own data are to be journaled.
        pub wants_journal: Signal<Out, bool>,
        /// A read is to be sent.
        pub wants_read: Signal<Out, bool>,
        /// It is to be forwarded.
        pub wants_forward: Signal<Out, bool>,
        /// It is to be dropped: nobody gives its old data.
        pub wants_drop: Signal<Out, bool>,
        /// It is to be dropped for want of a host; it has no entry.
        pub wants_close: Signal<Out, bool>,
        /// It is to be dropped for want of a host; its entry is to be cancelled.
        pub wants_cancel: Signal<Out, bool>,
        stage: Dff<HeldStage>,
        held_key: Dff<Bits<128>>,
        held_info: Dff<Bits<97>>,
        held_slot: Dff<Bits<4>>,
        held_copy: Dff<bool>,
        held_number: Dff<Bits<64>>,
        generation: Dff<Bits<20>>,
        tries: Dff<Bits<3>>,
        sent_at: Dff<Bits<32>>,
        patience_over: Dff<bool>,
        is_durable: Dff<bool>,
        cancelling: Dff<bool>,
        age: Signal<Local, Bits<32>>,
        generation_next: Signal<Local, Bits<20>>,
        tries_next: Signal<Local, Bits<3>>,
        own_tag: Signal<Local, Bits<32>>,
        without_entry: Signal<Local, bool>,
        most_tries: Fixed<3, TRIES>,
        switch_own: Fixed<32, { layout::aoe::TAG_SWITCH_OWN as u64 }>,
    }
}

impl Logic for HeldWrite {
    #[hdl_gen]
    fn update(&mut self) {
        dff_setup!(
            self,
            clock,
            stage,
            held_key,
            held_info,
            held_slot,
            held_copy,
            held_number,
            generation,
            tries,
            sent_at,
            patience_over,
            is_durable,
            cancelling
        );
        self.busy.next = self.stage.q.val() != HeldStage::None;
        self.key.next = self.held_key.q.val();
        self.info.next = self.held_info.q.val();
        self.slot.next = self.held_slot.q.val();
        self.copy.next = self.held_copy.q.val();
        self.number.next = self.held_number.q.val();
        // Bit 31, port, slot, generation; the frame has the highest byte first.
        self.own_tag.next = self.switch_own.val()
            | (bit_cast::<32, 3>(self.port.val().get_bits::<3>(0)) << 28)
            | (bit_cast::<32, 4>(self.held_slot.q.val()) << 20)
            | bit_cast::<32, 20>(self.generation.q.val());
        self.read_tag.next = bit_cast::<32, 8>(self.own_tag.val().get_bits::<8>(24))
            | (bit_cast::<32, 8>(self.own_tag.val().get_bits::<8>(16)) << 8)
            | (bit_cast::<32, 8>(self.own_tag.val().get_bits::<8>(8)) << 16)
            | (bit_cast::<32, 8>(self.own_tag.val().get_bits::<8>(0)) << 24);
        self.generation_next.next = self.generation.q.val() + 1;
        self.tries_next.next = self.tries.q.val() + 1;
        self.age.next = self.ticks.val() - self.sent_at.q.val();
        self.patience_over.d.next =
            (self.stage.q.val() == HeldStage::Reading) & (self.age.val() >= self.retry.val());
        self.is_durable.d.next =
            (self.stage.q.val() == HeldStage::Undurable) & (self.held_number.q.val() <= self.durable.val());

        self.reading.next = (self.stage.q.val() == HeldStage::Reading)
            | ((self.stage.q.val() == HeldStage::Read) & (self.tries.q.val() != 0));
        self.wants_journal.next = (self.stage.q.val() == HeldStage::Journal) & !self.cancelling.q.val();
        self.wants_read.next = (self.stage.q.val() == HeldStage::Read) & !self.cancelling.q.val();
        self.wants_forward.next = self.stage.q.val() == HeldStage::Forward;
        self.wants_drop.next = false;
        self.without_entry.next = (self.stage.q.val() == HeldStage::Journal)
            | (self.stage.q.val() == HeldStage::Read)
            | (self.stage.q.val() == HeldStage::Reading);
        self.wants_close.next = self.cancelling.q.val() & self.without_entry.val();
        self.wants_cancel.next = self.cancelling.q.val() & (self.stage.q.val() == HeldStage::Undurable);
        if self.cancel.val() & (self.stage.q.val() != HeldStage::None) {
            self.cancelling.d.next = true;
        }

        match self.stage.q.val() {
            HeldStage::None => {
                self.cancelling.d.next = false;
                if self.load.val() {
                    self.held_key.d.next = self.load_key.val();
                    self.held_info.d.next = self.load_info.val();
                    self.held_slot.d.next = self.load_slot.val();
                    self.held_copy.d.next = self.load_copy.val();
                    self.tries.d.next = bits::<3>(0);
                    if self.load_copy.val() {
                        self.stage.d.next = HeldStage::Journal;
                    } else {
                        self.generation.d.next = self.generation_next.val();
                        self.stage.d.next = HeldStage::Read;
                    }
                }
            }
            HeldStage::Journal => {}
            HeldStage::Read => {
                if self.sent.val() {
                    self.sent_at.d.next = self.ticks.val();
                    self.tries.d.next = self.tries_next.val();
                    self.stage.d.next = HeldStage::Reading;
                }
            }
            HeldStage::Reading => {
                if self.patience_over.q.val() {
                    if self.tries.q.val() == self.most_tries.val() {
                        self.wants_drop.next = true;
                    } else {
                        self.stage.d.next = HeldStage::Read;
                    }
                }
            }
            HeldStage::Undurable => {
                if self.is_durable.q.val() & !self.cancelling.q.val() {
                    self.stage.d.next = HeldStage::Forward;
                }
            }
            HeldStage::Forward => {}
        }
        if self.copied.val() {
            self.held_key.d.next = bit_cast::<128, 48>(self.held_key.q.val().get_bits::<48>(0))
                | (bit_cast::<128, 32>(self.copied_tag.val()) << 48)
                | (bit_cast::<128, 48>(self.held_key.q.val().get_bits::<48>(80)) << 80);
        }
        if self.journaled.val() {
            self.held_number.d.next = self.journaled_number.val();
            self.stage.d.next = HeldStage::Forward;
            // Acknowledge policy `journal`.
            if self.held_info.q.val().get_bit(96) {
                self.stage.d.next = HeldStage::Undurable;
            }
        }
        if self.ended.val() {
            self.stage.d.next = HeldStage::None;
        }
    }
}
