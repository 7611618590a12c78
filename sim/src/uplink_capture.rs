//! A target, and a capture of the wire between it and the card's uplink.

use crate::target::Target;
use layout::registers::CORE_HZ;
use std::io::{self, Write};

/// Magic of a pcap whose stamps count ns (pcap-savefile(5)).
const MAGIC: u32 = 0xA1B2_3C4D;
/// Longest record that the file announces.
const SNAPLEN: u32 = 262_144;
/// LINKTYPE_ETHERNET.
const ETHERNET: u32 = 1;

/// Hands every frame on to a target, and writes it and its answers into a pcap. Stamps are card time from power-up:
/// of a request when it left the uplink, of an answer when it was made.
pub struct UplinkCapture<T, W> {
    target: T,
    out: W,
    trouble: Option<String>,
}

impl<T: Target, W: Write> UplinkCapture<T, W> {
    /// Captures what `target` hears and says into `out`.
    pub fn new(target: T, mut out: W) -> io::Result<Self> {
        out.write_all(&MAGIC.to_le_bytes())?;
        for version in [2u16, 4] {
            out.write_all(&version.to_le_bytes())?;
        }
        for word in [0, 0, SNAPLEN, ETHERNET] {
            out.write_all(&word.to_le_bytes())?;
        }
        out.flush()?;
        Ok(Self { target, out, trouble: None })
    }

    fn record_all<'a>(&mut self, mut frames: impl Iterator<Item = &'a [u8]>, cycle: u64) {
        let written = frames.try_for_each(|frame| self.record(frame, cycle));
        // Whole frames only: who reads along never sees half of one.
        if let Err(error) = written.and_then(|()| self.out.flush()) {
            self.trouble.get_or_insert_with(|| format!("the capture of the uplink: {error}"));
        }
    }

    fn record(&mut self, frame: &[u8], cycle: u64) -> io::Result<()> {
        let nanoseconds = cycle * (1_000_000_000 / CORE_HZ);
        let length = frame.len() as u32;
        let seconds = (nanoseconds / 1_000_000_000) as u32;
        for word in [seconds, (nanoseconds % 1_000_000_000) as u32, length, length] {
            self.out.write_all(&word.to_le_bytes())?;
        }
        self.out.write_all(frame)
    }
}

impl<T: Target, W: Write> Target for UplinkCapture<T, W> {
    fn frame(&mut self, frame: &[u8], cycle: u64, answers: &mut Vec<(u64, Vec<u8>)>) {
        let before = answers.len();
        self.target.frame(frame, cycle, answers);
        self.record_all(
            std::iter::once(frame).chain(answers[before..].iter().map(|(_, bytes)| &bytes[..])),
            cycle,
        );
    }

    fn poll(&mut self, cycle: u64, answers: &mut Vec<(u64, Vec<u8>)>) {
        let before = answers.len();
        self.target.poll(cycle, answers);
        self.record_all(answers[before..].iter().map(|(_, bytes)| &bytes[..]), cycle);
    }

    fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref().or_else(|| self.target.trouble())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;

    impl Target for Echo {
        fn frame(&mut self, frame: &[u8], _cycle: u64, answers: &mut Vec<(u64, Vec<u8>)>) {
            answers.push((5, frame.iter().rev().copied().collect()));
        }
    }

    #[test]
    fn a_capture_holds_what_was_heard_and_said() {
        let mut file = Vec::new();
        let mut target = UplinkCapture::new(Echo, &mut file).expect("a capture");
        let mut answers = Vec::new();
        target.frame(&[1, 2, 3], 250_000_000, &mut answers);
        assert_eq!(answers, [(5, vec![3, 2, 1])]);
        assert_eq!(target.trouble(), None);
        assert_eq!(file.len(), 24 + 2 * (16 + 3));
        assert_eq!(
            file[24..40],
            [2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0],
            "two seconds of card time"
        );
        assert_eq!((&file[40..43], &file[59..62]), (&[1u8, 2, 3][..], &[3u8, 2, 1][..]));
    }
}
