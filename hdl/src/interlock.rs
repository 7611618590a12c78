//! The overlap interlock: no write is admitted that overlaps one not yet answered, whichever port it
//! came from (DESIGN §3.2).
//!
//! Each port shows the write at the head of its queue. A head is *clear* after a scan of all ports'
//! slots found no overlap; an admission takes everybody else's clearance back, and an answer lets the
//! blocked ones try again. A copy of a write of the same port may overlap that write, up to four.

use crate::prelude::*;

/// Where the fields of a write lie in [`Interlock::head`].
pub mod head {
    /// LBA, 48 bits.
    pub const LBA: usize = 0;
    /// Sectors, 5 bits.
    pub const SECTORS: usize = 48;
    /// Volume, 4 bits.
    pub const VOLUME: usize = 53;
    /// Source, 4 bits; all ones: none, such a write is never taken for a copy.
    pub const SOURCE: usize = 57;
    /// CRC32C of the payload, 32 bits.
    pub const CRC: usize = 61;
    /// Bits in all.
    pub const BITS: usize = 93;
}

logic_block! {
    /// `P` ports of 16 slots.
    pub struct Interlock<const P: usize> {
        /// Clock.
        pub clock: Signal<In, Clock>,
        /// A write is at the head of the port's queue.
        pub waiting: [Signal<In, bool>; P],
        /// It: [`head`].
        pub head: [Signal<In, Bits<93>>; P],
        /// It overlaps nothing in flight.
        pub clear: [Signal<Out, bool>; P],
        /// It is a copy of a write in flight.
        pub copy: [Signal<Out, bool>; P],
        /// The head of this port is admitted (strobe, at most one a cycle).
        pub admit: [Signal<In, bool>; P],
        /// Into this slot.
        pub admit_slot: [Signal<In, Bits<4>>; P],
        /// The head of this port was thrown away, its hold time being over: what is known of it doesn't hold for
        /// the one behind it (strobe).
        pub gone: [Signal<In, bool>; P],
        /// A slot of the port is free again (strobe).
        pub free: [Signal<In, bool>; P],
        /// The slot.
        pub free_slot: [Signal<In, Bits<4>>; P],
        slots: [Ram<93, 4>; P],
        busy: [Dff<Bits<16>>; P],
        known: Dff<Bits<8>>,
        cleared: Dff<Bits<8>>,
        copied: Dff<Bits<8>>,
        turn: Dff<Bits<3>>,
        // Place of the scan: 0 idle; slots are read at 1–16 and compared one later; 18 the result.
        scan: Dff<Bits<5>>,
        wanted: Dff<Bits<93>>,
        blocked: Dff<bool>,
        copies: Dff<Bits<3>>,
        stale: Dff<bool>,
        turn_next: Signal<Local, Bits<3>>,
        turn_bit: Signal<Local, Bits<8>>,
        scan_next: Signal<Local, Bits<5>>,
        scan_slot: Signal<Local, Bits<5>>,
        read_slot: Signal<Local, Bits<5>>,
        turn_plus: Signal<Local, Bits<3>>,
        known_here: Signal<Local, Bits<8>>,
        waiting_here: Signal<Local, bool>,
        head_here: Signal<Local, Bits<93>>,
        slot_bit: [Signal<Local, Bits<16>>; P],
        free_bit: [Signal<Local, Bits<16>>; P],
        busy_here: [Signal<Local, Bits<16>>; P],
        slot_data: [Signal<Local, Bits<93>>; P],
        slot_sectors: [Signal<Local, Bits<48>>; P],
        above: [Signal<Local, Bits<48>>; P],
        below: [Signal<Local, Bits<48>>; P],
        overlaps: [Signal<Local, bool>; P],
        equal: [Signal<Local, bool>; P],
        wanted_sectors: Signal<Local, Bits<48>>,
        conflict: Signal<Local, bool>,
        copy_here: Signal<Local, bool>,
        copies_next: Signal<Local, Bits<3>>,
        admitted: Signal<Local, bool>,
        released: Signal<Local, bool>,
        known_now: Signal<Local, Bits<8>>,
        known_left: Signal<Local, Bits<8>>,
        cleared_now: Signal<Local, Bits<8>>,
        copied_now: Signal<Local, Bits<8>>,
        no_source: Fixed<4, 15>,
        most_copies: Fixed<3, 4>,
    }
}

block_default! {
    Interlock<P> {
        clock, known, cleared, copied, turn, scan, wanted, blocked, copies, stale, turn_next, turn_bit,
        turn_plus, scan_next, scan_slot, read_slot, known_here, waiting_here, head_here, wanted_sectors, conflict, copy_here,
        copies_next, admitted, released, known_now, known_left, cleared_now, copied_now, no_source, most_copies,
    }
    arrays {
        waiting, head, clear, copy, admit, admit_slot, gone, free, free_slot, slots, busy, slot_bit,
        free_bit, busy_here, slot_data, slot_sectors, above, below, overlaps, equal,
    }
}

impl<const P: usize> Logic for Interlock<P> {
    #[hdl_gen]
    fn update(&mut self) {
        dff_setup!(self, clock, known, cleared, copied, turn, scan, wanted, blocked, copies, stale);
        self.scan_next.next = self.scan.q.val() + 1;
        self.scan_slot.next = self.scan.q.val() - 2;
        self.turn_plus.next = self.turn.q.val() + 1;
        self.turn_next.next = bits::<3>(0);
        self.read_slot.next = self.scan.q.val() - 1;
        self.wanted_sectors.next = (self.wanted.q.val().get_bits::<48>(45) >> 3) & bits::<48>(0x1F);
        self.admitted.next = false;
        self.released.next = false;
        self.conflict.next = false;
        self.copy_here.next = false;
        self.head_here.next = self.head[0].val();
        self.waiting_here.next = self.waiting[0].val();
        self.known_now.next = self.known.q.val();
        self.cleared_now.next = self.cleared.q.val();
        self.copied_now.next = self.copied.q.val();
        for i in 0..P {
            self.busy[i].clock.next = self.clock.val();
            self.busy[i].d.next = self.busy[i].q.val();
            self.slots[i].read_clock.next = self.clock.val();
            self.slots[i].write_clock.next = self.clock.val();
            self.slots[i].write_address.next = self.admit_slot[i].val();
            self.slots[i].write_data.next = self.head[i].val();
            self.slots[i].write_enable.next = self.admit[i].val();
            self.slots[i].read_address.next = self.read_slot.val().get_bits::<4>(0);
            self.slot_bit[i].next = bits::<16>(1) << self.admit_slot[i].val();
            self.free_bit[i].next = bits::<16>(1) << self.free_slot[i].val();
            if self.admit[i].val() & !self.free[i].val() {
                self.busy[i].d.next = self.busy[i].q.val() | self.slot_bit[i].val();
            }
            if self.admit[i].val() & self.free[i].val() {
                self.busy[i].d.next =
                    (self.busy[i].q.val() | self.slot_bit[i].val()) & !self.free_bit[i].val();
            }
            if self.free[i].val() & !self.admit[i].val() {
                self.busy[i].d.next = self.busy[i].q.val() & !self.free_bit[i].val();
            }
            if self.admit[i].val() {
                self.admitted.next = true;
            }
            if self.free[i].val() {
                self.released.next = true;
            }
            if self.turn.q.val() == i.to_bits::<3>() {
                self.head_here.next = self.head[i].val();
                self.waiting_here.next = self.waiting[i].val();
            }
            self.busy_here[i].next = self.busy[i].q.val() >> self.scan_slot.val();
            self.slot_data[i].next = self.slots[i].read_data.val();
            self.slot_sectors[i].next = (self.slot_data[i].val().get_bits::<48>(45) >> 3) & bits::<48>(0x1F);
            // Two writes overlap when either begins within the other; counts are at most 17, and the
            // difference wraps only between addresses that no volume has together.
            self.above[i].next =
                self.wanted.q.val().get_bits::<48>(0) - self.slot_data[i].val().get_bits::<48>(0);
            self.below[i].next =
                self.slot_data[i].val().get_bits::<48>(0) - self.wanted.q.val().get_bits::<48>(0);
            self.overlaps[i].next = self.busy_here[i].val().get_bit(0)
                & (self.slot_data[i].val().get_bits::<4>(53) == self.wanted.q.val().get_bits::<4>(53))
                & ((self.above[i].val() < self.slot_sectors[i].val())
                    | (self.below[i].val() < self.wanted_sectors.val()));
            self.equal[i].next = (self.turn.q.val() == i.to_bits::<3>())
                & (self.slot_data[i].val() == self.wanted.q.val())
                & (self.wanted.q.val().get_bits::<4>(57) != self.no_source.val());
            if self.overlaps[i].val() & !self.equal[i].val() {
                self.conflict.next = true;
            }
            if self.overlaps[i].val() & self.equal[i].val() {
                self.copy_here.next = true;
            }
        }

        // One head after the other.
        for i in 1..P {
            if self.turn_plus.val() == i.to_bits::<3>() {
                self.turn_next.next = self.turn_plus.val();
            }
        }
        self.turn_bit.next = bits::<8>(1) << self.turn.q.val();
        self.known_here.next = self.known.q.val() & self.turn_bit.val();
        self.copies_next.next = self.copies.q.val() + 1;
        if self.scan.q.val() == 0 {
            if self.waiting_here.val() & (self.known_here.val() == 0) {
                self.scan.d.next = bits::<5>(1);
                self.wanted.d.next = self.head_here.val();
                self.blocked.d.next = false;
                self.copies.d.next = bits::<3>(0);
                self.stale.d.next = false;
            } else {
                self.turn.d.next = self.turn_next.val();
            }
        } else {
            self.scan.d.next = self.scan_next.val();
            if self.scan.q.val() > 1 {
                if self.conflict.val() {
                    self.blocked.d.next = true;
                }
                if self.copy_here.val() {
                    self.copies.d.next = self.copies_next.val();
                    if self.copies.q.val() == self.most_copies.val() {
                        self.copies.d.next = self.copies.q.val();
                        self.blocked.d.next = true;
                    }
                }
            }
            if self.scan.q.val() == 18 {
                self.scan.d.next = bits::<5>(0);
                self.turn.d.next = self.turn_next.val();
                // What changed during the scan may have been missed: then the result isn't kept.
                if !self.stale.q.val() {
                    self.known_now.next = self.known.q.val() | self.turn_bit.val();
                    self.cleared_now.next = self.cleared.q.val() & !self.turn_bit.val();
                    if !self.blocked.q.val() {
                        self.cleared_now.next = self.cleared.q.val() | self.turn_bit.val();
                    }
                    self.copied_now.next = self.copied.q.val() & !self.turn_bit.val();
                    if self.copies.q.val() != 0 {
                        self.copied_now.next = self.copied.q.val() | self.turn_bit.val();
                    }
                }
            }
            if self.admitted.val() | self.released.val() {
                self.stale.d.next = true;
            }
        }
        self.known_left.next = self.known_now.val();
        self.cleared.d.next = self.cleared_now.val();
        self.copied.d.next = self.copied_now.val();
        if self.released.val() {
            // The clear ones stay clear; the blocked ones try again, and the copies too, whose original may
            // be what was answered.
            self.known_left.next = self.known_now.val() & self.cleared_now.val() & !self.copied_now.val();
        }
        for i in 0..P {
            if self.gone[i].val() {
                self.known_left.next = self.known_left.val().replace_bit(i, false);
                if self.turn.q.val() == i.to_bits::<3>() {
                    self.stale.d.next = true;
                }
            }
        }
        self.known.d.next = self.known_left.val();
        if self.admitted.val() {
            self.known.d.next = bits::<8>(0);
            self.cleared.d.next = bits::<8>(0);
        }
        for i in 0..P {
            self.clear[i].next = self.cleared.q.val().get_bit(i) & self.known.q.val().get_bit(i);
            self.copy[i].next = self.copied.q.val().get_bit(i);
        }
    }
}
