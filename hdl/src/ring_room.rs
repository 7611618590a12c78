//! How full a port's ring is, and what still has room in it (DESIGN §3.1).
//!
//! The answer about entries is worked out in two cycles, so it is that of two cycles ago: it understates what drains
//! have freed since, and who asks has to leave alone for [`LOOK_CYCLES`] what takes room.
//!
//! Room for a completion is reserved with its entry. Beside that the ring always keeps room for a
//! watermark, a gap and a late answer: each may be taken by one record until the drain has passed it.

use crate::prelude::*;
use layout::port_ring;

/// 64-byte lines that the ring keeps free beside reservations: a watermark, a gap with its payload, a
/// late answer.
pub const KEPT_LINES: u64 = port_ring::STANDING_LINES as u64;

/// For so many cycles before [`RingRoom::room`] or [`RingRoom::line_room`] is believed nothing may have been committed
/// or reserved, nor `wanted` have changed.
pub const LOOK_CYCLES: u64 = 2;

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
        /// There was room for `wanted` [`LOOK_CYCLES`] ago.
        pub room: Signal<Out, bool>,
        /// There was room for one more line where an entry could lie [`LOOK_CYCLES`] ago.
        pub line_room: Signal<Out, bool>,
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
        // The first of the two cycles: what is in the ring, and what else is to have room; then the answers.
        lying: Dff<Bits<H>>,
        promised: Dff<Bits<16>>,
        asked: Dff<Bits<16>>,
        fits: Dff<bool>,
        spare: Dff<bool>,
        used: Signal<Local, Bits<H>>,
        lines: Signal<Local, Bits<H>>,
        new_head: Signal<Local, Bits<H>>,
        promise: Signal<Local, Bits<16>>,
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
        room, line_room, mark_room, gap_room, late_room, committed, mark_taken, gap_taken, late_taken, mark_end, gap_end,
        late_end, lying, promised, asked, fits, spare, used, lines, new_head, promise, kept, needed, past_mark, past_gap, past_late, kept_lines,
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
        dff_setup!(
            self, clock, committed, mark_taken, gap_taken, late_taken, mark_end, gap_end, late_end, lying,
            promised, asked, fits, spare
        );
        self.head.next = self.committed.q.val();
        self.used.next = self.committed.q.val() - self.tail.val();
        self.promise.next = bit_cast::<16, 7>(self.reserved.val())
            + bit_cast::<16, 9>(self.held.val())
            + self.kept_lines.val();
        self.lying.d.next = self.used.val();
        self.promised.d.next = self.promise.val();
        self.asked.d.next = self.promise.val() + bit_cast::<16, 9>(self.wanted.val());
        self.kept.next = bit_cast::<16, H>(self.lying.q.val()) + self.promised.q.val();
        self.needed.next = bit_cast::<16, H>(self.lying.q.val()) + self.asked.q.val();
        self.fits.d.next = self.needed.val() <= self.ring_lines.val();
        self.spare.d.next = self.kept.val() < self.ring_lines.val();
        self.room.next = self.fits.q.val();
        self.line_room.next = self.spare.q.val();
        self.mark_room.next = !self.mark_taken.q.val();
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
        let mut block = RingRoom::<12, 10>::default();
        block.connect_all();
        check_all(&block).unwrap();
        assert!(generate_verilog(&block).contains("module top"));
        const LINES: u64 = 512;
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(9);
        // Records with their lines, and the kept room that they took.
        let mut ring: VecDeque<(u64, usize)> = VecDeque::new();
        let (mut tail, mut reserved) = (0u64, 0u64);
        let mut counts = [0; 4];
        let (mut refused, mut freed) = (0, 0);
        for step in 0..40_000 {
            let used = |ring: &VecDeque<(u64, usize)>| ring.iter().map(|(lines, _)| lines).sum::<u64>();
            let taken = |ring: &VecDeque<(u64, usize)>, kind| ring.iter().any(|&(_, taken)| taken == kind);
            let kept = |ring: &VecDeque<(u64, usize)>| {
                [1, 2, 1].iter().zip(1..).filter(|(_, kind)| !taken(ring, *kind)).map(|(n, _)| n).sum::<u64>()
            };
            block.commit.next = false;
            let wanted = random.random_range(1..=34) * 8 + 2;
            block.wanted.next = bits(wanted);
            block.reserved.next = bits(reserved);
            block.tail.next = bits(tail % 1024);
            settle(&mut block);
            // What must still fit, should all of it come before the next drain.
            assert!(
                used(&ring) + reserved + kept(&ring) <= LINES,
                "step {step}: more promised than there is"
            );
            assert!(block.head.val().to_u64() == (tail + used(&ring)) % 1024);
            let before = used(&ring);
            for _ in 0..LOOK_CYCLES {
                cycle(&mut block, |b| &mut b.clock, |_| ());
                // A drain ends at a record's end; it may come while the room is looked at, or be seen at once.
                if random.random_bool(if step / 2000 % 2 == 0 { 0.1 } else { 0.005 }) {
                    let records = random.random_range(0..=ring.len());
                    tail += ring.drain(..records).map(|(lines, _)| lines).sum::<u64>();
                    block.tail.next = bits(tail % 1024);
                    settle(&mut block);
                }
            }
            let drained = used(&ring) != before;
            freed += u64::from(drained);
            if !drained {
                assert_eq!(block.room.val(), before + reserved + 4 + wanted <= LINES, "step {step}");
                assert_eq!(block.line_room.val(), before + reserved + 4 < LINES, "step {step}");
            }
            refused += u64::from(!block.room.val());
            let kind = random.random_range(0..6);
            let (room, lines, takes) = match kind {
                0 => (block.room.val(), wanted - 1, 0),
                1 => (block.mark_room.val() || block.line_room.val(), 1, 0),
                2 => (block.gap_room.val(), 2, 2),
                3 => (block.late_room.val(), 1, 3),
                4 => (reserved > 0, 1, 0),
                _ => continue,
            };
            if !room {
                continue;
            }
            block.commit.next = true;
            block.commit_lines.next = bits(lines);
            block.commit_mark.next = kind == 1;
            block.commit_gap.next = kind == 2;
            block.commit_late.next = kind == 3;
            cycle(&mut block, |b| &mut b.clock, |_| ());
            match kind {
                0 => reserved += 1,
                4 => reserved -= 1,
                _ => {}
            }
            if kind < 4 {
                counts[kind] += 1;
            }
            // A watermark beside one that took the room lies where an entry could.
            let takes = if kind == 1 && !taken(&ring, 1) { 1 } else { takes };
            ring.push_back((lines, takes));
        }
        println!("{counts:?} entries, watermarks, gaps, late answers; {refused} times none, {freed} drains");
        assert!(counts.iter().all(|&count| count > 100), "{counts:?}");
        assert!(refused > 1000 && freed > 100);
    }
}
