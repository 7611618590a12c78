//! Store-and-forward: a FIFO of frame words that shows a frame only when it is whole and wanted.

use crate::prelude::*;

/// Bits of a stored word: data, index of the last valid byte, last.
pub const STORED_BITS: usize = 68;

logic_block! {
    /// 2^`A` words of 64 bits. Words are written tentatively; `commit` with the last word makes the frame
    /// visible, `rewind` with the last word forgets it. A frame that finds no room is lost as a whole:
    /// `lost` is high with its last word, and a commit is then taken as a rewind.
    ///
    /// The reader sees `front` while `filled`, and takes it with `pop`. Words that are taken while `hold` is
    /// high keep their room, and `again` goes back to the first of them.
    #[derive(Default)]
    pub struct FrameBuffer<const A: usize> {
        /// Clock.
        pub clock: Signal<In, Clock>,
        /// Data, byte 0 in bits 7:0.
        pub data: Signal<In, Bits<64>>,
        /// Index of the last valid byte of the word.
        pub last_byte: Signal<In, Bits<3>>,
        /// Last word of the frame.
        pub last: Signal<In, bool>,
        /// A word is there.
        pub valid: Signal<In, bool>,
        /// With the last word: show the frame.
        pub commit: Signal<In, bool>,
        /// With the last word: the frame doesn't fit.
        pub lost: Signal<Out, bool>,
        /// Oldest word: data in bits 63:0, end in 66:64, last in 67.
        pub front: Signal<Out, Bits<68>>,
        /// `front` is valid.
        pub filled: Signal<Out, bool>,
        /// Take the word at this edge.
        pub pop: Signal<In, bool>,
        /// What is taken may be wanted again; high from the first word at `front` on.
        pub hold: Signal<In, bool>,
        /// Back to the word that was at `front` when `hold` rose (strobe); it is there three cycles later.
        pub again: Signal<In, bool>,
        ram: Ram<68, A>,
        write: Dff<Bits<A>>,
        committed: Dff<Bits<A>>,
        read: Dff<Bits<A>>,
        fetched: Dff<bool>,
        out: Dff<Bits<68>>,
        out_filled: Dff<bool>,
        overflow: Dff<bool>,
        // Address of the word at `front`, and of the oldest whose room isn't free.
        front_at: Dff<Bits<A>>,
        oldest: Dff<Bits<A>>,
        front_next: Signal<Local, Bits<A>>,
        write_next: Signal<Local, Bits<A>>,
        read_next: Signal<Local, Bits<A>>,
        fetch: Signal<Local, Bits<A>>,
        out_free: Signal<Local, bool>,
        full: Signal<Local, bool>,
    }
}

impl<const A: usize> Logic for FrameBuffer<A> {
    #[hdl_gen]
    fn update(&mut self) {
        self.ram.read_clock.next = self.clock.val();
        self.ram.write_clock.next = self.clock.val();
        dff_setup!(self, clock, write, committed, read, fetched, out, out_filled, overflow, front_at, oldest);
        self.write_next.next = self.write.q.val() + 1;
        self.read_next.next = self.read.q.val() + 1;
        self.full.next = self.overflow.q.val() | (self.write_next.val() == self.oldest.q.val());
        self.lost.next = self.full.val();
        self.ram.write_address.next = self.write.q.val();
        self.ram.write_data.next = bit_cast::<68, 64>(self.data.val())
            | (bit_cast::<68, 3>(self.last_byte.val()) << 64)
            | (bit_cast::<68, 1>(self.last.val().into()) << 67);
        self.ram.write_enable.next = self.valid.val();
        if self.valid.val() {
            if self.full.val() {
                self.ram.write_enable.next = false;
                self.overflow.d.next = true;
            } else {
                self.write.d.next = self.write_next.val();
            }
            if self.last.val() {
                self.overflow.d.next = false;
                if self.commit.val() & !self.full.val() {
                    self.committed.d.next = self.write_next.val();
                } else {
                    self.write.d.next = self.committed.q.val();
                }
            }
        }
        // As in `fifo`: the RAM's read register holds the word at `read` while `fetched`.
        self.out_free.next = !self.out_filled.q.val() | self.pop.val();
        self.fetch.next = self.read.q.val();
        if self.fetched.q.val() & self.out_free.val() {
            self.fetch.next = self.read_next.val();
        }
        self.read.d.next = self.fetch.val();
        self.ram.read_address.next = self.fetch.val();
        self.fetched.d.next = self.fetch.val() != self.committed.q.val();
        self.front_next.next = self.front_at.q.val();
        if self.out_free.val() {
            self.out.d.next = self.ram.read_data.val();
            self.out_filled.d.next = self.fetched.q.val();
            self.front_next.next = self.read.q.val();
        }
        self.front_at.d.next = self.front_next.val();
        if !self.hold.val() {
            self.oldest.d.next = self.front_next.val();
        }
        if self.again.val() {
            self.read.d.next = self.oldest.q.val();
            self.fetched.d.next = false;
            self.out_filled.d.next = false;
            self.front_at.d.next = self.oldest.q.val();
        }
        self.front.next = self.out.q.val();
        self.filled.next = self.out_filled.q.val();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use std::collections::VecDeque;

    /// Random frames, wanted or not, against a queue of the wanted ones that fitted.
    #[test]
    fn shows_whole_wanted_frames_in_order() {
        let mut buffer = FrameBuffer::<6>::default();
        buffer.connect_all();
        check_all(&buffer).unwrap();
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(11);
        let mut model: VecDeque<(u64, bool)> = VecDeque::new();
        let (mut frame, mut left, mut lost, mut taken) = (Vec::new(), 0, 0, 0);
        // Words that were taken and may be wanted again.
        let mut held: Vec<(u64, bool)> = Vec::new();
        let mut repeats = 0;
        for step in 0..60_000u64 {
            let valid = random.random_bool(0.8);
            if valid && left == 0 {
                left = random.random_range(1..24);
                frame.clear();
            }
            let last = valid && left == 1;
            let wanted = last && random.random_bool(0.7);
            buffer.data.next = bits(step);
            buffer.last_byte.next = bits(step & 7);
            buffer.last.next = last;
            buffer.valid.next = valid;
            buffer.commit.next = wanted;
            settle(&mut buffer);
            let pop = buffer.filled.val() && random.random_bool(if step / 500 % 2 == 0 { 0.9 } else { 0.2 });
            buffer.pop.next = pop;
            buffer.again.next = false;
            if buffer.hold.next {
                match random.random_range(0..60) {
                    0 => {
                        buffer.hold.next = false;
                        held.clear();
                    }
                    1 | 2 => {
                        buffer.again.next = true;
                        buffer.pop.next = false;
                    }
                    _ => {}
                }
            } else if buffer.filled.val() && random.random_bool(0.02) {
                buffer.hold.next = true;
            }
            let pop = buffer.pop.next;
            let (front, overflow) = cycle(&mut buffer, |b| &mut b.clock, |b| (b.front.val(), b.lost.val()));
            if pop {
                let (data, last) = model.pop_front().expect("a word that nobody committed");
                if buffer.hold.next {
                    held.push((data, last));
                }
                assert_eq!(front.get_bits::<64>(0).to_u64(), data);
                assert_eq!(front.get_bits::<3>(64).to_u64(), data & 7);
                assert_eq!(front.get_bit(67), last);
                taken += 1;
            }
            if buffer.again.next {
                held.drain(..).rev().for_each(|word| model.push_front(word));
                repeats += 1;
            }
            if valid {
                frame.push((step, last));
                left -= 1;
                if last && wanted {
                    if overflow {
                        lost += 1
                    } else {
                        model.extend(frame.drain(..))
                    }
                }
            }
        }
        assert!(taken > 10_000 && lost > 50, "{taken} words taken, {lost} frames lost");
        assert!(repeats > 100, "{repeats} times again");
    }
}
