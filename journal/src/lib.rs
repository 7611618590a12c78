//! See DESIGN: journal.
