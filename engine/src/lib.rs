//! The port engine in software, frame by frame as the gateware does it.
//!
//! A frame from a source is decoded ([`frame`]); an admitted write becomes a record ([`entry`]) with a
//! stamp ([`hybrid_clock`]); the target's answer becomes a status ([`answer`]). [`mod@reference`] puts
//! these together: given what the card saw, it says what the card must have written and forwarded.
//! [`switch`] does the same of its own accord: frames in, frames and records out.
//! [`block_port`] is the same engine for writes that come as an offset and data, as over NBD.
//! Everything here is a function of its arguments: time and input come in from outside.

pub mod answer;
pub mod block_port;
pub mod entry;
pub mod frame;
pub mod hybrid_clock;
pub mod reference;
pub mod switch;
