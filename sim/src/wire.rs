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

/// Sends queued frames word by word, with a gap between two frames.
#[derive(Debug)]
pub struct Sender {
    queue: VecDeque<Outgoing>,
    sent: usize,
    gap_words: u32,
    gap_left: u32,
}

impl Sender {
    /// A sender that leaves `gap_words` word times between frames (Ethernet: preamble, FCS and
    /// inter-frame gap are 24 bytes, IEEE 802.3 §4.4.2).
    pub fn new(gap_words: u32) -> Self {
        Self { queue: VecDeque::new(), sent: 0, gap_words, gap_left: 0 }
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

    /// The word of this word time, if any.
    pub fn next_word(&mut self) -> Option<Word> {
        if self.gap_left > 0 {
            self.gap_left -= 1;
            return None;
        }
        let frame = self.queue.front()?;
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
        self.sent += valid;
        if last {
            self.queue.pop_front();
            self.sent = 0;
            self.gap_left = self.gap_words;
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
            let mut sender = Sender::new(3);
            let mut receiver = Receiver::default();
            sender.push(Outgoing { bytes: frame.clone(), error: length % 2 == 0 });
            let mut words = 0;
            loop {
                let word = sender.next_word().unwrap();
                words += 1;
                if let Some(back) = receiver.word(word) {
                    assert_eq!(back, frame);
                    assert_eq!(word.error, length % 2 == 0);
                    break;
                }
            }
            assert_eq!(words, length.div_ceil(WORD_BYTES));
            assert_eq!(sender.queued(), 0);
        }
    }
}
