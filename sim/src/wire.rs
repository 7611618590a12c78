//! Frames as words on a 64-bit stream, and back.

use std::collections::VecDeque;

/// One word of a stream: byte 0 in bits 7:0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Word {
    /// Data; invalid bytes are zero.
    pub data: u64,
    /// Valid bytes, contiguous from bit 0.
    pub keep: u8,
    /// Last word of the frame.
    pub last: bool,
    /// With the last word: the frame is bad.
    pub error: bool,
}

/// Bytes in a word.
pub const WORD_BYTES: usize = 8;

/// A frame to be sent: bytes, and whether the MAC will call it bad.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// The frame without preamble and FCS.
    pub bytes: Vec<u8>,
    /// End it with an error.
    pub error: bool,
}

/// Word times between two frames at least: 24 bytes of preamble, FCS and inter-frame gap (IEEE 802.3 §4.4.2).
const GAP_WORDS: u64 = 3;

/// Sends queued frames word by word, as fast as a wire of its speed brings them.
///
/// Frames follow each other with the smallest gap that Ethernet has, to the byte: at 1 Gbit/s (8 cycles a word) a
/// frame of 60 bytes and its gap are 84 cycles. The gap is never shorter than three words.
#[derive(Debug)]
pub struct Sender {
    queue: VecDeque<Outgoing>,
    sent: usize,
    cycles_per_word: u64,
    /// When the next word is due, in eighths of a cycle: a byte takes as many as a word takes cycles.
    due: u64,
}

impl Sender {
    /// A sender on a wire that takes `cycles_per_word` cycles for eight bytes.
    pub fn new(cycles_per_word: u64) -> Self {
        assert!(cycles_per_word > 0, "a word takes at least a cycle");
        Self { queue: VecDeque::new(), sent: 0, cycles_per_word, due: 0 }
    }

    /// Queues a frame of at least one byte.
    pub fn push(&mut self, frame: Outgoing) {
        assert!(!frame.bytes.is_empty(), "a frame without bytes is nothing on a wire");
        self.queue.push_back(frame);
    }

    /// Frames not wholly sent.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// The word that comes in this cycle, if any. To be asked once a cycle.
    #[inline]
    pub fn next_word(&mut self, cycle: u64) -> Option<Word> {
        let frame = self.queue.front()?;
        if self.due > 8 * cycle {
            return None;
        }
        let rest = &frame.bytes[self.sent..];
        let valid = rest.len().min(WORD_BYTES);
        let mut bytes = [0; WORD_BYTES];
        bytes[..valid].copy_from_slice(&rest[..valid]);
        let last = rest.len() <= WORD_BYTES;
        let word = Word {
            data: u64::from_le_bytes(bytes),
            keep: (0xFFu16 >> (WORD_BYTES - valid)) as u8,
            last,
            error: last && frame.error,
        };
        // A word that comes late because cycles are coarse doesn't make the next one late; one that comes
        // after a pause does.
        if 8 * cycle - self.due >= 8 {
            self.due = 8 * cycle;
        }
        self.due += valid as u64 * self.cycles_per_word;
        self.sent += valid;
        if last {
            let gap = GAP_WORDS * WORD_BYTES as u64 * self.cycles_per_word;
            self.due = (self.due + gap).max(8 * (cycle + 1 + GAP_WORDS));
            self.queue.pop_front();
            self.sent = 0;
        }
        Some(word)
    }
}

/// Collects words into frames.
#[derive(Debug, Default)]
pub struct Receiver {
    bytes: Vec<u8>,
}

impl Receiver {
    /// Takes a word; gives the frame that it ends.
    pub fn word(&mut self, word: Word) -> Option<Vec<u8>> {
        let valid = word.keep.count_ones() as usize;
        assert!(
            word.keep as u16 == (1u16 << valid) - 1 && valid > 0,
            "keep {:#x} isn't contiguous",
            word.keep
        );
        assert!(word.last || valid == WORD_BYTES, "a partial word inside a frame");
        self.bytes.extend_from_slice(&word.data.to_le_bytes()[..valid]);
        word.last.then(|| std::mem::take(&mut self.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_every_length_come_back_whole() {
        for length in 1..200usize {
            let frame: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let mut sender = Sender::new(1);
            let mut receiver = Receiver::default();
            sender.push(Outgoing { bytes: frame.clone(), error: length % 2 == 0 });
            let mut words = 0;
            loop {
                let word = sender.next_word(words).unwrap();
                words += 1;
                if let Some(back) = receiver.word(word) {
                    assert_eq!(back, frame);
                    assert_eq!(word.error, length % 2 == 0);
                    break;
                }
            }
            assert_eq!(words, length.div_ceil(WORD_BYTES) as u64);
            assert_eq!(sender.queued(), 0);
        }
    }

    /// The cycles in which frames of these lengths begin, queued together in cycle 0.
    fn beginnings(cycles_per_word: u64, lengths: &[usize]) -> Vec<u64> {
        let mut sender = Sender::new(cycles_per_word);
        for &length in lengths {
            sender.push(Outgoing { bytes: vec![0; length], error: false });
        }
        let mut begins = true;
        let mut found = Vec::new();
        for cycle in 0..100_000 {
            if let Some(word) = sender.next_word(cycle) {
                if begins {
                    found.push(cycle);
                }
                begins = word.last;
            }
        }
        assert_eq!(sender.queued(), 0);
        found
    }

    #[test]
    fn a_wire_at_one_gigabit_carries_a_byte_a_cycle() {
        assert_eq!(beginnings(8, &[60, 548, 61, 1060, 60]), [0, 84, 656, 741, 1825]);
    }

    #[test]
    fn at_eight_gigabits_there_are_three_words_between_frames() {
        assert_eq!(beginnings(1, &[64, 61, 57, 64]), [0, 11, 22, 33]);
    }

    #[test]
    fn a_pause_is_not_caught_up() {
        let mut sender = Sender::new(8);
        let frame = Outgoing { bytes: vec![0; 16], error: false };
        sender.push(frame.clone());
        let words: Vec<u64> = (0..100).filter(|&cycle| sender.next_word(cycle).is_some()).collect();
        assert_eq!(words, [0, 8]);
        sender.push(frame);
        let words: Vec<u64> = (100..200).filter(|&cycle| sender.next_word(cycle).is_some()).collect();
        assert_eq!(words, [100, 108]);
    }
}
