//! The card as a host sees it: registers, DMA rings, interrupts.
//!
//! Three backends stand behind the one small trait [`Card`]: [`vfio`] for production, the simulated card
//! (`sim`), and the scripted [`fake`] for tests.
//!
//! [`Driver::bring_up`] makes a card ready and opens it for writes. Then, over and over:
//!
//! 1. [`Driver::wait`] until something is announced (or a while has passed: lost interrupts do no
//!    harm, because nothing but the mailboxes says what there is);
//! 2. [`Driver::poll`] checks every new record, byte by byte;
//! 3. [`Driver::batch`] shows a port's checked records, where they lie in the ring. Batches of all
//!    ports can be looked at together, so a merge over ports needs no copy;
//! 4. [`Driver::consume`] gives their room back, [`Driver::durable`] reports what is safe on disk.
//!
//! [`Driver::stop`] ends it cleanly. [`Completions`] joins entries with the answers that come later.
//! Where a program takes the card's place, [`Stream`] checks what it journals in the same way.

mod bring_up;
mod card;
mod completions;
mod drain;
pub mod fake;
mod patience;
mod record;
pub mod registers;
mod statistics;
mod stop;
mod stream;
pub mod vfio;

pub use bring_up::{identify, BringUp, BringUpError, Found, Geometry, PortSettings, Timeouts};
pub use card::{Card, CardError, DmaRegion, Interrupts};
pub use completions::{Completions, CompletionsError, Joined, MAXIMUM_UNANSWERED};
pub use drain::{Delivered, Driver, PortBatch, RingError, MAXIMUM_HELD_RECORDS};
pub use record::{Defect, Record, MAXIMUM_PAYLOAD_BYTES};
pub use statistics::{Counters, LeafClock};
pub use stop::StopError;
pub use stream::{Stream, StreamError};
