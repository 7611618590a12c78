//! Standard output: data for people or, with `--json`, for programs.

use crate::error::Error;
use serde::Serialize;
use std::io::{BufWriter, Write};

/// Standard output, buffered, and the notes that go beside it. Call [`Output::finish`] at the end: an error there
/// counts.
pub struct Output {
    lines: BufWriter<Box<dyn Write>>,
    notes: Box<dyn FnMut(&str)>,
}

impl Output {
    /// Standard output, and notes to standard error.
    pub fn new() -> Self {
        Self::to(std::io::stdout(), |note| eprintln!("{note}"))
    }

    /// Somewhere else: a daemon works for a command that runs elsewhere.
    pub fn to(lines: impl Write + 'static, notes: impl FnMut(&str) + 'static) -> Self {
        Self { lines: BufWriter::new(Box::new(lines)), notes: Box::new(notes) }
    }

    /// Writes a line.
    pub fn line(&mut self, line: impl std::fmt::Display) -> Result<(), Error> {
        writeln!(self.lines, "{line}").map_err(Error::output)
    }

    /// Says something that isn't what was asked for.
    pub fn note(&mut self, note: impl std::fmt::Display) {
        (self.notes)(&note.to_string());
    }

    /// Writes one JSON object on a line of its own.
    pub fn json(&mut self, value: &impl Serialize) -> Result<(), Error> {
        let text = serde_json::to_string(value)
            .map_err(|e| Error::Failed(format!("putting the output into JSON: {e}")))?;
        self.line(text)
    }

    /// Writes what is buffered.
    pub fn finish(mut self) -> Result<(), Error> {
        self.flush()
    }

    /// Writes what is buffered, so that a reader sees it now.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.lines.flush().map_err(Error::output)
    }
}

/// A count with its noun: `1 entry`, `2 entries`.
pub fn count(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", grouped(number), if number == 1 { one } else { many })
}

/// A number with its thousands apart: `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes as people say them: `8.00 MiB`.
pub fn bytes(number: u64) -> String {
    indicatif::BinaryBytes(number).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!([0, 999, 1000, 1234567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(count(1, "entry", "entries"), "1 entry");
        assert_eq!(count(1000, "entry", "entries"), "1,000 entries");
    }
}
