//! How full a port's ring is, and what still has room in it (DESIGN §3.1).
//!
//! Room for a completion is reserved with its entry. Beside that the ring always keeps room for a
//! watermark, a gap and a late answer: each may be taken by one record until the drain has passed it.

use crate::prelude::*;
use layout::port_ring;

/// 64-byte lines that the ring keeps free beside reservations: a watermark, a gap with its payload, a
/// late answer.
pub const KEPT_LINES: u64 = port_ring::STANDING_LINES as u64;

logic_block! {
    /// `A`: log2 of the ring's 64-bit words; `H` = `A` − 2: bits of a line count, modulo twice the lines.
    pub struct RingRoom<const A: usize, const H: usize> {
        /// Clock.
        pub clock: Signal<In, Clock>,
        /// Lines drained.
        pub tail: Signal<In, Bits<H>>,
        /// Completions that are still to come.
        pub reserved: Signal<In, Bits<7>>,
        /// Lines that a write reserved which has no entry yet.
        pub held: Signal<In, Bits<9>>,
        /// Lines that the next entry and its completion need.
        pub wanted: Signal<In, Bits<9>>,
        /// A record is in the ring (strobe).
        pub commit: Signal<In, bool>,
        /// Its lines.
        pub commit_lines: Signal<In, Bits<9>>,
        /// It is a watermark.
        pub commit_mark: Signal<In, bool>,
        /// It is a gap.
        pub commit_gap: Signal<In, bool>,
        /// It is a late answer.
        pub commit_late: Signal<In, bool>,
        /// Lines committed.
        pub head: Signal<Out, Bits<H>>,
        /// There is room for `wanted`.
        pub room: Signal<Out, bool>,
        /// There is room for a watermark.
        pub mark_room: Signal<Out, bool>,
        /// There is room for a gap.
        pub gap_room: Signal<Out, bool>,
        /// There is room for a late answer.
        pub late_room: Signal<Out, bool>,
        committed: Dff<Bits<H>>,
        // Which of the kept rooms are taken, and where their records end.
        mark_taken: Dff<bool>,
        gap_taken: Dff<bool>,
        late_taken: Dff<bool>,
        mark_end: Dff<Bits<H>>,
        gap_end: Dff<Bits<H>>,
        late_end: Dff<Bits<H>>,
        used: Signal<Local, Bits<H>>,
        lines: Signal<Local, Bits<H>>,
        new_head: Signal<Local, Bits<H>>,
        kept: Signal<Local, Bits<16>>,
        needed: Signal<Local, Bits<16>>,
        past_mark: Signal<Local, Bits<H>>,
        past_gap: Signal<Local, Bits<H>>,
        past_late: Signal<Local, Bits<H>>,
        ring_lines: Constant<Bits<16>>,
        kept_lines: Fixed<16, KEPT_LINES>,
    }
}

block_default! {
    RingRoom<A, H> {
        clock, tail, reserved, held, wanted, commit, commit_lines, commit_mark, commit_gap, commit_late, head,
        room, mark_room, gap_room, late_room, committed, mark_taken, gap_taken, late_taken, mark_end, gap_end,
        late_end, used, lines, new_head, kept, needed, past_mark, past_gap, past_late, kept_lines,
    }
    arrays { }
    with { ring_lines: {
        assert!(H + 2 == A, "a count of lines has A - 2 = {} bits, not {H}", A - 2);
        Constant::new(bits(1 << (A - 3)))
    } }
}

impl<const A: usize, const H: usize> Logic for RingRoom<A, H> {
    #[hdl_gen]
    fn update(&mut self) {
        dff_setup!(self, clock, committed, mark_taken, gap_taken, late_taken, mark_end, gap_end, late_end);
        self.head.next = self.committed.q.val();
        self.used.next = self.committed.q.val() - self.tail.val();
        self.kept.next = bit_cast::<16, H>(self.used.val())
            + bit_cast::<16, 7>(self.reserved.val())
            + bit_cast::<16, 9>(self.held.val())
            + self.kept_lines.val();
        self.needed.next = self.kept.val() + bit_cast::<16, 9>(self.wanted.val());
        self.room.next = self.needed.val() <= self.ring_lines.val();
        // A watermark may also lie where an entry could.
        self.mark_room.next = !self.mark_taken.q.val() | (self.kept.val() < self.ring_lines.val());
        self.gap_room.next = !self.gap_taken.q.val();
        self.late_room.next = !self.late_taken.q.val();

        self.past_mark.next = self.committed.q.val() - self.mark_end.q.val();
        self.past_gap.next = self.committed.q.val() - self.gap_end.q.val();
        self.past_late.next = self.committed.q.val() - self.late_end.q.val();
        self.mark_taken.d.next = self.mark_taken.q.val() & (self.past_mark.val() < self.used.val());
        self.gap_taken.d.next = self.gap_taken.q.val() & (self.past_gap.val() < self.used.val());
        self.late_taken.d.next = self.late_taken.q.val() & (self.past_late.val() < self.used.val());
        self.lines.next = bit_cast::<H, 9>(self.commit_lines.val());
        self.new_head.next = self.committed.q.val() + self.lines.val();
        if self.commit.val() {
            self.committed.d.next = self.new_head.val();
            if self.commit_mark.val() {
                self.mark_taken.d.next = true;
                self.mark_end.d.next = self.new_head.val();
            }
            if self.commit_gap.val() {
                self.gap_taken.d.next = true;
                self.gap_end.d.next = self.new_head.val();
            }
            if self.commit_late.val() {
                self.late_taken.d.next = true;
                self.late_end.d.next = self.new_head.val();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use std::collections::VecDeque;

    /// Random records and drains: the ring never holds more than it has, and every reservation and every
    /// kept room that is promised is there.
    #[test]
    fn what_is_promised_has_room() {
        let mut block = RingRoom::<10, 8>::default();
        block.connect_all();
        check_all(&block).unwrap();
        assert!(generate_verilog(&block).contains("module top"));
        const LINES: u64 = 128;
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(9);
        // Records with their lines, and the kept room that they took.
        let mut ring: VecDeque<(u64, usize)> = VecDeque::new();
        let (mut tail, mut reserved) = (0u64, 0u64);
        let mut counts = [0; 4];
        for step in 0..40_000 {
            block.commit.next = false;
            block.wanted.next = bits(random.random_range(1..=17) * 8 + 2);
            block.reserved.next = bits(reserved);
            block.tail.next = bits(tail % 256);
            settle(&mut block);
            let used: u64 = ring.iter().map(|(lines, _)| lines).sum();
            let taken = |kind: usize| ring.iter().any(|&(_, taken)| taken == kind);
            // What must still fit, should all of it come before the next drain.
            let owed =
                reserved + [1, 2, 1].iter().zip(1..).filter(|(_, k)| !taken(*k)).map(|(n, _)| n).sum::<u64>();
            assert!(used + owed <= LINES, "step {step}: {used} lines used and {owed} promised");
            assert!(block.head.val().to_u64() == (tail + used) % 256);
            if step > 0 && random.random_bool(0.5) {
                let kind = random.random_range(0..5);
                let (room, lines) = match kind {
                    0 => (block.room.val(), block.wanted.next.to_u64() - 1),
                    1 => (block.mark_room.val(), 1),
                    2 => (block.gap_room.val(), 2),
                    3 => (block.late_room.val(), 1),
                    _ => (reserved > 0, 1),
                };
                if room {
                    block.commit.next = true;
                    block.commit_lines.next = bits(lines);
                    block.commit_mark.next = kind == 1;
                    block.commit_gap.next = kind == 2;
                    block.commit_late.next = kind == 3;
                    // A watermark beside one that took the room lies where an entry could.
                    let takes = match kind {
                        1 if taken(1) => 0,
                        1..=3 => kind,
                        _ => 0,
                    };
                    cycle(&mut block, |b| &mut b.clock, |_| ());
                    match kind {
                        0 => reserved += 1,
                        4 => reserved -= 1,
                        _ => {}
                    }
                    if kind < 4 {
                        counts[kind] += 1;
                    }
                    ring.push_back((lines, takes));
                    continue;
                }
            }
            cycle(&mut block, |b| &mut b.clock, |_| ());
            // A drain ends at a record's end.
            if random.random_bool(if step / 2000 % 2 == 0 { 0.1 } else { 0.01 }) {
                let records = random.random_range(0..=ring.len());
                tail += ring.drain(..records).map(|(lines, _)| lines).sum::<u64>();
            }
        }
        println!("{counts:?} entries, watermarks, gaps, late answers");
        assert!(counts.iter().all(|&count| count > 100), "{counts:?}");
    }
}
