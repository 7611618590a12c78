//! The overlap interlock: no write is admitted that overlaps one not yet answered, whichever port it
//! came from (DESIGN §3.2).
//!
//! Each port shows the write at the head of its queue. A head is *clear* after a scan of all ports'
//! slots found no overlap; an admission takes everybody else's clearance back, and an answer lets the
//! blocked ones try again. A copy of a write of the same port may overlap that write: it goes into its
//! slot, and whether there is room is the scoreboard's to say.

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
        /// It overlaps nothing in flight but what it is a copy of.
        pub clear: [Signal<Out, bool>; P],
        /// It is a copy of a write in flight.
        pub copy: [Signal<Out, bool>; P],
        /// With `copy`: the slot of that write.
        pub copy_slot: [Signal<Out, Bits<4>>; P],
        /// What it overlaps is in quarantine.
        pub barred: [Signal<Out, bool>; P],
        /// The head of this port is admitted (strobe, at most one a cycle).
        pub admit: [Signal<In, bool>; P],
        /// Into this slot.
        pub admit_slot: [Signal<In, Bits<4>>; P],
        /// The head of this port is dropped: another one comes, if any (strobe).
        pub head_dropped: [Signal<In, bool>; P],
        /// A slot of the port is free again (strobe).
        pub free: [Signal<In, bool>; P],
        /// A slot of the port is in quarantine from now on (strobe).
        pub quarantine: [Signal<In, bool>; P],
        /// The slot of `free` or `quarantine`.
        pub changed_slot: [Signal<In, Bits<4>>; P],
        slots: [Ram<93, 4>; P],
        busy: [Dff<Bits<16>>; P],
        quarantined: [Dff<Bits<16>>; P],
        original: [Dff<Bits<4>>; P],
        known: Dff<Bits<8>>,
        cleared: Dff<Bits<8>>,
        copied: Dff<Bits<8>>,
        turn: Dff<Bits<3>>,
        // Place of the scan: 0 idle; slots are read at 1–16 and compared one later; 18 the result.
        scan: Dff<Bits<5>>,
        wanted: Dff<Bits<93>>,
        barring: Dff<Bits<8>>,
        blocked: Dff<bool>,
        shut: Dff<bool>,
        copied_here: Dff<bool>,
        copied_from: Dff<Bits<4>>,
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
        changed_bit: [Signal<Local, Bits<16>>; P],
        fresh: [Signal<Local, bool>; P],
        busy_now: [Signal<Local, Bits<16>>; P],
        quarantined_now: [Signal<Local, Bits<16>>; P],
        quarantined_here: [Signal<Local, Bits<16>>; P],
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
        barred_here: Signal<Local, bool>,
        admitted: Signal<Local, bool>,
        released: Signal<Local, bool>,
        dropped: Signal<Local, Bits<8>>,
        known_now: Signal<Local, Bits<8>>,
        cleared_now: Signal<Local, Bits<8>>,
        copied_now: Signal<Local, Bits<8>>,
        barring_now: Signal<Local, Bits<8>>,
        no_source: Fixed<4, 15>,
    }
}

block_default! {
    Interlock<P> {
        clock, known, cleared, copied, turn, scan, wanted, barring, blocked, shut, copied_here, copied_from, stale,
        turn_next, turn_bit, turn_plus, scan_next, scan_slot, read_slot, known_here, waiting_here, head_here,
        wanted_sectors, conflict, copy_here, barred_here, admitted, released, dropped, known_now, cleared_now, copied_now,
        barring_now, no_source,
    }
    arrays {
        waiting, head, clear, copy, copy_slot, barred, admit, admit_slot, head_dropped, free, quarantine, changed_slot, slots, busy,
        quarantined, original, slot_bit, changed_bit, fresh, busy_now, quarantined_now, quarantined_here, busy_here,
        slot_data, slot_sectors, above, below, overlaps, equal,
    }
}

impl<const P: usize> Logic for Interlock<P> {
    #[hdl_gen]
    fn update(&mut self) {
        dff_setup!(
            self,
            clock,
            known,
            cleared,
            copied,
            turn,
            scan,
            wanted,
            barring,
            blocked,
            shut,
            copied_here,
            copied_from,
            stale
        );
        self.scan_next.next = self.scan.q.val() + 1;
        self.scan_slot.next = self.scan.q.val() - 2;
        self.turn_plus.next = self.turn.q.val() + 1;
        self.turn_next.next = bits::<3>(0);
        self.read_slot.next = self.scan.q.val() - 1;
        self.wanted_sectors.next = (self.wanted.q.val().get_bits::<48>(45) >> 3) & bits::<48>(0x1F);
        self.admitted.next = false;
        self.released.next = false;
        self.dropped.next = bits::<8>(0);
        self.conflict.next = false;
        self.copy_here.next = false;
        self.barred_here.next = false;
        self.head_here.next = self.head[0].val();
        self.waiting_here.next = self.waiting[0].val();
        self.known_now.next = self.known.q.val();
        self.cleared_now.next = self.cleared.q.val();
        self.copied_now.next = self.copied.q.val();
        self.barring_now.next = self.barring.q.val();
        for i in 0..P {
            self.busy[i].clock.next = self.clock.val();
            self.quarantined[i].clock.next = self.clock.val();
            self.original[i].clock.next = self.clock.val();
            self.original[i].d.next = self.original[i].q.val();
            // A copy goes into a slot that is taken.
            self.fresh[i].next = self.admit[i].val() & !self.copied.q.val().get_bit(i);
            self.slots[i].read_clock.next = self.clock.val();
            self.slots[i].write_clock.next = self.clock.val();
            self.slots[i].write_address.next = self.admit_slot[i].val();
            self.slots[i].write_data.next = self.head[i].val();
            self.slots[i].write_enable.next = self.fresh[i].val();
            self.slots[i].read_address.next = self.read_slot.val().get_bits::<4>(0);
            self.slot_bit[i].next = bits::<16>(1) << self.admit_slot[i].val();
            self.changed_bit[i].next = bits::<16>(1) << self.changed_slot[i].val();
            self.busy_now[i].next = self.busy[i].q.val();
            self.quarantined_now[i].next = self.quarantined[i].q.val();
            if self.quarantine[i].val() {
                self.quarantined_now[i].next = self.quarantined[i].q.val() | self.changed_bit[i].val();
            }
            if self.free[i].val() {
                self.busy_now[i].next = self.busy[i].q.val() & !self.changed_bit[i].val();
                self.quarantined_now[i].next = self.quarantined[i].q.val() & !self.changed_bit[i].val();
            }
            self.busy[i].d.next = self.busy_now[i].val();
            if self.fresh[i].val() {
                self.busy[i].d.next = self.busy_now[i].val() | self.slot_bit[i].val();
            }
            self.quarantined[i].d.next = self.quarantined_now[i].val();
            if self.admit[i].val() {
                self.admitted.next = true;
            }
            if self.head_dropped[i].val() {
                self.dropped.next = self.dropped.val() | (bits::<8>(1) << i.to_bits::<3>());
            }
            if self.free[i].val() | self.quarantine[i].val() {
                self.released.next = true;
            }
            if self.turn.q.val() == i.to_bits::<3>() {
                self.head_here.next = self.head[i].val();
                self.waiting_here.next = self.waiting[i].val();
            }
            self.busy_here[i].next = self.busy[i].q.val() >> self.scan_slot.val();
            self.quarantined_here[i].next = self.quarantined[i].q.val() >> self.scan_slot.val();
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
            if self.overlaps[i].val() & self.quarantined_here[i].val().get_bit(0) {
                self.barred_here.next = true;
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
        if self.scan.q.val() == 0 {
            if self.waiting_here.val() & (self.known_here.val() == 0) {
                self.scan.d.next = bits::<5>(1);
                self.wanted.d.next = self.head_here.val();
                self.blocked.d.next = false;
                self.shut.d.next = false;
                self.copied_here.d.next = false;
                self.stale.d.next = self.dropped.val() != 0;
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
                    self.copied_here.d.next = true;
                    self.copied_from.d.next = self.scan_slot.val().get_bits::<4>(0);
                }
                if self.barred_here.val() {
                    self.shut.d.next = true;
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
                    if self.copied_here.q.val() {
                        self.copied_now.next = self.copied.q.val() | self.turn_bit.val();
                    }
                    self.barring_now.next = self.barring.q.val() & !self.turn_bit.val();
                    if self.shut.q.val() {
                        self.barring_now.next = self.barring.q.val() | self.turn_bit.val();
                    }
                    for i in 0..P {
                        if self.turn.q.val() == i.to_bits::<3>() {
                            self.original[i].d.next = self.copied_from.q.val();
                        }
                    }
                }
            }
            if self.admitted.val() | self.released.val() | (self.dropped.val() != 0) {
                self.stale.d.next = true;
            }
        }
        self.known.d.next = self.known_now.val() & !self.dropped.val();
        self.cleared.d.next = self.cleared_now.val();
        self.copied.d.next = self.copied_now.val();
        self.barring.d.next = self.barring_now.val();
        if self.released.val() {
            // The clear ones stay clear; the blocked ones try again, and the copies too, whose original may
            // be what was answered or went into quarantine.
            self.known.d.next =
                self.known_now.val() & self.cleared_now.val() & !self.copied_now.val() & !self.dropped.val();
        }
        if self.admitted.val() {
            self.known.d.next = bits::<8>(0);
            self.cleared.d.next = bits::<8>(0);
        }
        for i in 0..P {
            self.clear[i].next = self.cleared.q.val().get_bit(i) & self.known.q.val().get_bit(i);
            self.copy[i].next = self.copied.q.val().get_bit(i);
            self.copy_slot[i].next = self.original[i].q.val();
            self.barred[i].next = self.barring.q.val().get_bit(i) & self.known.q.val().get_bit(i);
        }
    }
}
