//! The primary journal file.
