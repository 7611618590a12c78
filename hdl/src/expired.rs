//! What a port remembers of writes whose quarantine is over, so that an answer that comes even then
//! becomes a record of its entry (DESIGN §3.4).
//!
//! The oldest makes room: an answer to what is forgotten passes as one that matches nothing.

use crate::prelude::*;

/// Requests that are remembered.
pub const REMEMBERED: usize = 16;

/// Where a write's fields lie in [`Expired::remember_key`] and `Scoreboard`'s keys.
pub mod slot_key {
    /// MAC of the source, 48 bits.
    pub const MAC: usize = 0;
    /// LBA, 48 bits.
    pub const LBA: usize = 48;
    /// Shelf and slot as they stand in the frame, 24 bits.
    pub const ADDRESS: usize = 96;
    /// The command has a 28-bit LBA.
    pub const SHORT: usize = 120;
    /// Bits in all.
    pub const BITS: usize = 121;
}

logic_block! {
    /// 16 requests, compared one after the other, the oldest first.
    #[derive(Default)]
    pub struct Expired {
        /// Clock.
        pub clock: Signal<In, Clock>,
        /// Remember a request (strobe).
        pub remember: Signal<In, bool>,
        /// Its write: [`slot_key`].
        pub remember_key: Signal<In, Bits<121>>,
        /// Its tag as it stands in the frame.
        pub remember_tag: Signal<In, Bits<32>>,
        /// Its scoreboard slot.
        pub remember_slot: Signal<In, Bits<4>>,
        /// Its number.
        pub remember_number: Signal<In, Bits<64>>,
        /// Something is remembered.
        pub any: Signal<Out, bool>,
        /// Look for an answer's request, until `found` or `missed`.
        pub look_up: Signal<In, bool>,
        /// The answer: laid out as `ingress::write_key`.
        pub answer_key: Signal<In, Bits<128>>,
        /// Its shelf and slot.
        pub answer_address: Signal<In, Bits<24>>,
        /// Found (strobe); `slot` and `number` stay until the next look-up.
        pub found: Signal<Out, bool>,
        /// Not found (strobe).
        pub missed: Signal<Out, bool>,
        /// The slot that it had.
        pub slot: Signal<Out, Bits<4>>,
        /// Its number.
        pub number: Signal<Out, Bits<64>>,
        keys: Ram<121, 4>,
        tags: Ram<36, 4>,
        numbers: Ram<64, 4>,
        valid: Dff<Bits<16>>,
        oldest: Dff<Bits<4>>,
        // 0 rests; places are read at 1–16, compared one later, decided two later; 31 tells what was found.
        scan: Dff<Bits<5>>,
        hit: Dff<bool>,
        // Slot, then number, of the place that `hit` is about.
        stage_slot: Dff<Bits<4>>,
        stage_number: Dff<Bits<64>>,
        found_slot: Dff<Bits<4>>,
        found_number: Dff<Bits<64>>,
        scan_next: Signal<Local, Bits<5>>,
        offset: Signal<Local, Bits<5>>,
        place: Signal<Local, Bits<4>>,
        compared: Signal<Local, Bits<4>>,
        decided: Signal<Local, Bits<4>>,
        offset_compared: Signal<Local, Bits<5>>,
        offset_decided: Signal<Local, Bits<5>>,
        valid_here: Signal<Local, Bits<16>>,
        new_bit: Signal<Local, Bits<16>>,
        old_bit: Signal<Local, Bits<16>>,
        oldest_next: Signal<Local, Bits<4>>,
        key: Signal<Local, Bits<121>>,
        tag: Signal<Local, Bits<36>>,
        forget: Signal<Local, bool>,
        told: Fixed<5, 31>,
    }
}

impl Logic for Expired {
    #[hdl_gen]
    fn update(&mut self) {
        self.keys.read_clock.next = self.clock.val();
        self.keys.write_clock.next = self.clock.val();
        self.tags.read_clock.next = self.clock.val();
        self.tags.write_clock.next = self.clock.val();
        self.numbers.read_clock.next = self.clock.val();
        self.numbers.write_clock.next = self.clock.val();
        dff_setup!(self, clock, valid, oldest, scan, hit, stage_slot, stage_number, found_slot, found_number);
        self.any.next = self.valid.q.val() != 0;
        self.keys.write_address.next = self.oldest.q.val();
        self.keys.write_data.next = self.remember_key.val();
        self.keys.write_enable.next = self.remember.val();
        self.tags.write_address.next = self.oldest.q.val();
        self.tags.write_data.next =
            bit_cast::<36, 32>(self.remember_tag.val()) | (bit_cast::<36, 4>(self.remember_slot.val()) << 32);
        self.tags.write_enable.next = self.remember.val();
        self.numbers.write_address.next = self.oldest.q.val();
        self.numbers.write_data.next = self.remember_number.val();
        self.numbers.write_enable.next = self.remember.val();
        self.oldest_next.next = self.oldest.q.val() + 1;

        self.scan_next.next = self.scan.q.val() + 1;
        self.offset.next = self.scan.q.val() - 1;
        self.offset_compared.next = self.scan.q.val() - 2;
        self.offset_decided.next = self.scan.q.val() - 3;
        self.place.next = self.oldest.q.val() + self.offset.val().get_bits::<4>(0);
        self.compared.next = self.oldest.q.val() + self.offset_compared.val().get_bits::<4>(0);
        self.decided.next = self.oldest.q.val() + self.offset_decided.val().get_bits::<4>(0);
        self.keys.read_address.next = self.place.val();
        self.tags.read_address.next = self.place.val();
        self.numbers.read_address.next = self.place.val();
        self.key.next = self.keys.read_data.val();
        self.tag.next = self.tags.read_data.val();
        self.valid_here.next = self.valid.q.val() >> self.compared.val();
        self.hit.d.next = self.valid_here.val().get_bit(0)
            & (self.tag.val().get_bits::<32>(0) == self.answer_key.val().get_bits::<32>(48))
            & (self.key.val().get_bits::<48>(0) == self.answer_key.val().get_bits::<48>(0))
            & (self.key.val().get_bits::<28>(48) == self.answer_key.val().get_bits::<28>(80))
            & (self.key.val().get_bit(120)
                | (self.key.val().get_bits::<20>(76) == self.answer_key.val().get_bits::<20>(108)))
            & (self.key.val().get_bits::<24>(96) == self.answer_address.val());
        self.stage_slot.d.next = self.tag.val().get_bits::<4>(32);
        self.stage_number.d.next = self.numbers.read_data.val();

        self.found.next = false;
        self.missed.next = false;
        self.forget.next = false;
        if self.scan.q.val() == 0 {
            if self.look_up.val() {
                self.scan.d.next = bits::<5>(1);
            }
        } else if self.scan.q.val() == self.told.val() {
            self.found.next = true;
            self.scan.d.next = bits::<5>(0);
        } else {
            self.scan.d.next = self.scan_next.val();
            if (self.scan.q.val() > 2) & self.hit.q.val() {
                self.found_slot.d.next = self.stage_slot.q.val();
                self.found_number.d.next = self.stage_number.q.val();
                self.forget.next = true;
                self.scan.d.next = self.told.val();
            } else if self.scan.q.val() == 18 {
                self.missed.next = true;
                self.scan.d.next = bits::<5>(0);
            }
        }
        // Nothing is remembered while something is looked for: the scoreboard does one at a time.
        self.new_bit.next = bits::<16>(1) << self.oldest.q.val();
        self.old_bit.next = bits::<16>(1) << self.decided.val();
        if self.remember.val() {
            self.valid.d.next = self.valid.q.val() | self.new_bit.val();
            self.oldest.d.next = self.oldest_next.val();
        } else if self.forget.val() {
            self.valid.d.next = self.valid.q.val() & !self.old_bit.val();
        }
        self.slot.next = self.found_slot.q.val();
        self.number.next = self.found_number.q.val();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    /// Random requests remembered and looked for, against a list.
    #[test]
    fn the_oldest_that_matches_is_found_once() {
        let mut block = Expired::default();
        block.connect_all();
        check_all(&block).unwrap();
        assert!(generate_verilog(&block).contains("module top"));
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(5);
        // MAC, LBA, short, tag, slot, number.
        let mut model: Vec<(u64, u64, bool, u64, u64, u64)> = Vec::new();
        let (mut found, mut missed) = (0, 0);
        for number in 0..3000u64 {
            let mac = random.random_range(0..2);
            let lba = random.random_range(0..3u64) << 28 | random.random_range(0..2);
            let (short, tag, slot) = (random.random(), random.random_range(0..3), random.random_range(0..16));
            if random.random_bool(0.4) {
                let lba = if short { lba & 0xFFF_FFFF } else { lba };
                block.remember.next = true;
                block.remember_key.next =
                    Bits::wrap(mac as u128 | (lba as u128) << 48 | 7 << 96 | (short as u128) << 120);
                block.remember_tag.next = bits(tag);
                block.remember_slot.next = bits(slot);
                block.remember_number.next = bits(number);
                cycle(&mut block, |b| &mut b.clock, |_| ());
                block.remember.next = false;
                model.push((mac, lba, short, tag, slot, number));
                continue;
            }
            block.look_up.next = true;
            block.answer_key.next = Bits::wrap(mac as u128 | (tag as u128) << 48 | (lba as u128) << 80);
            block.answer_address.next = bits(7);
            let mut result = None;
            for _ in 0..24 {
                let (hit, miss, slot, number) = cycle(
                    &mut block,
                    |b| &mut b.clock,
                    |b| (b.found.val(), b.missed.val(), b.slot.val().to_u64(), b.number.val().to_u64()),
                );
                if hit || miss {
                    result = Some(hit.then_some((slot, number)));
                    break;
                }
            }
            block.look_up.next = false;
            cycle(&mut block, |b| &mut b.clock, |_| ());
            // The last sixteen remembered, whether they were found since or not.
            let kept = model.len().saturating_sub(REMEMBERED);
            let matching = model[kept..].iter().position(|old| {
                let mask = if old.2 { 0xFFF_FFFF } else { u64::MAX };
                old.5 != u64::MAX && (old.0, old.1, old.3) == (mac, lba & mask, tag)
            });
            let expected = matching.map(|at| {
                let old = &mut model[kept + at];
                let answer = (old.4, old.5);
                old.5 = u64::MAX;
                answer
            });
            assert_eq!(result, Some(expected), "step {number}");
            match expected {
                Some(_) => found += 1,
                None => missed += 1,
            }
        }
        assert!(found > 300 && missed > 300, "{found} found, {missed} missed");
    }
}
