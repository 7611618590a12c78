//! The register map of the card, BAR 0. `docs/registers.md` is generated from it.
//!
//! Registers are 32 or 64 bits wide and are accessed in whole, aligned 32-bit words. A 64-bit
//! register takes effect with the write of its low half: write the high half first. Reading the low
//! half of a 64-bit register latches the high half of the same register for the next read.

/// Who may write, and what a write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read only.
    Ro,
    /// Read and write.
    Rw,
    /// Bits written as one start something; reads as zero.
    Start,
}

/// One register.
#[derive(Clone, Copy, Debug)]
pub struct Register {
    /// Name in the documents and in `host-agent card registers`.
    pub name: &'static str,
    /// Byte offset in BAR 0, or in the port's block.
    pub offset: u32,
    /// 32 or 64.
    pub bits: u8,
    /// Access.
    pub access: Access,
    /// Value after card reset.
    pub reset: u64,
    /// What it is, with units.
    pub doc: &'static str,
}

macro_rules! registers {
    ($(#[$tdoc:meta])* $table:ident { $($name:ident @ $offset:literal, $bits:literal, $access:ident, $reset:expr, $doc:literal;)+ }) => {
        $(#[doc = $doc] pub const $name: u32 = $offset;)+
        $(#[$tdoc])*
        pub const $table: &[Register] = &[$(Register {
            name: stringify!($name), offset: $offset, bits: $bits, access: Access::$access, reset: $reset, doc: $doc,
        }),+];
    };
}

/// What [`global::IDENTITY`] reads: `CSW1`.
pub const IDENTITY_VALUE: u32 = u32::from_le_bytes(*b"CSW1");
/// Version of this map, what [`global::MAP_VERSION`] reads.
pub const MAP_VERSION_VALUE: u32 = 1;
/// Core cycles in a tick, the unit of every time-out and period (1.024 µs at 125 MHz).
pub const TICK_CYCLES: u32 = 128;
/// Core clock in Hz.
pub const CORE_HZ: u64 = 125_000_000;
/// First port's block.
pub const PORT_BASE: u32 = 0x1000;
/// Distance of the ports' blocks.
pub const PORT_STRIDE: u32 = 0x400;
/// Most ports a map has place for.
pub const MAXIMUM_PORTS: usize = 8;
/// Entries of the volume table.
pub const VOLUMES: usize = 16;
/// Entries of each port's source table.
pub const SOURCES: usize = 8;
/// Writes that a port can have in flight.
pub const SLOTS: usize = 16;

/// Ticks of a duration in microseconds, rounded up.
pub const fn ticks(microseconds: u64) -> u32 {
    (microseconds * (CORE_HZ / 1_000_000)).div_ceil(TICK_CYCLES as u64) as u32
}

/// Registers of the whole card.
pub mod global {
    use super::{ticks, Access, Register, IDENTITY_VALUE, MAP_VERSION_VALUE};
    registers! {
        /// Every register of the card as a whole.
        REGISTERS {
            IDENTITY @ 0x000, 32, Ro, IDENTITY_VALUE as u64, "Reads `CSW1`. All ones: the card is gone.";
            MAP_VERSION @ 0x004, 32, Ro, MAP_VERSION_VALUE as u64, "Version of this map.";
            GEOMETRY @ 0x008, 32, Ro, 0, "Bits 7:0 ports, 15:8 scoreboard slots a port, 23:16 log2 of a port ring's bytes, 31:24 volumes.";
            CONTROL @ 0x00C, 32, Rw, 0, "Bit 0 writes open: writes are admitted; closed, they are dropped and counted, reads pass. Bit 1 time base enabled.";
            COMMAND @ 0x010, 32, Start, 0, "Bit 0 function reset: DMA, rings, MSI-X. Bit 1 card reset: everything on the host side; ports and switch are not yet connected to it.";
            STATUS @ 0x014, 32, Ro, 0, "Bit 0 writes open. Bit 1 time base enabled. Bit 2 a register access was malformed (partial byte enables, wrong length) and ignored.";
            SESSION @ 0x018, 64, Rw, 0, "Session number, the host's; survives function reset, zero after card reset. The host writes it at bring-up and zero at a clean stop: any other value found is an unclean stop.";
            TIME_SET @ 0x020, 64, Rw, 0, "Time base in ns since the Unix epoch (UTC); taken over when written while CONTROL bit 1 is clear.";
            TIME_NOW @ 0x028, 64, Ro, 0, "Time base now, ns.";
            STAMP_FLOOR @ 0x030, 64, Rw, 0, "Stamps given from now on are above it, ns. The host sets it from the journal's end at bring-up.";
            NUMBER_FLOOR @ 0x038, 64, Rw, 0, "Numbers given from now on are above it.";
            LAST_STAMP @ 0x040, 64, Ro, 0, "The last stamp given, ns.";
            LAST_NUMBER @ 0x048, 64, Ro, 0, "The last number given to an entry.";
            HOLD @ 0x050, 32, Rw, ticks(40_000) as u64, "Ticks a write may wait for admission before it is dropped unforwarded. Below the shortest resend of the initiators (Linux: 84 ms seen), or an old copy could overtake newer data.";
            RETRY @ 0x054, 32, Rw, ticks(10_000) as u64, "Ticks before a before-image read is sent again; after the fourth the write is dropped unforwarded and counted. Beyond a disk's usual answer, well below HOLD times four.";
            UNKNOWN @ 0x058, 32, Rw, ticks(1_000_000) as u64, "Ticks without an answer after which a write's status is declared unknown; from then on writes that overlap it are dropped. Beyond what a target that lives takes. Not above QUARANTINE: then that counts.";
            QUARANTINE @ 0x05C, 32, Rw, ticks(10_000_000) as u64, "Ticks from the last copy forwarded until the interlock of an unanswered write ends. Beyond the time for which the network or the target may still keep a frame. Every tick each request is looked at once, between answers.";
            FLUSH_PERIOD @ 0x060, 32, Rw, ticks(1_000) as u64, "Ticks between periodic drains with watermarks; 0: never.";
            INTERRUPT_PERIOD @ 0x064, 32, Rw, ticks(50) as u64, "Least ticks between two interrupts of one vector.";
            VOLUME_TABLE @ 0x100, 32, Rw, 0, "16 words, one a volume: bits 15:0 shelf, 23:16 slot, 24 the data before are journaled instead of those after, 25 with bit 24 both are, 26 acknowledge policy `journal` (answers, and writes with before-images, wait for DURABLE; otherwise policy `port`), 31 valid. Both need larger rings (below). A port holds one write at a time for its before-image.";
        }
    }
}

/// Bits of [`global::CONTROL`].
pub mod control {
    /// Writes are admitted.
    pub const WRITES_OPEN: u32 = 1 << 0;
    /// The time base runs.
    pub const TIME_ENABLED: u32 = 1 << 1;
}

/// Bits of [`global::COMMAND`].
pub mod command {
    /// Function reset.
    pub const FUNCTION_RESET: u32 = 1 << 0;
    /// Card reset.
    pub const CARD_RESET: u32 = 1 << 1;
}

/// Bit of a [`global::VOLUME_TABLE`] word: the entry is valid.
pub const VOLUME_VALID: u32 = 1 << 31;
/// Bit of a [`global::VOLUME_TABLE`] word: what was there before is journaled.
pub const VOLUME_BEFORE: u32 = 1 << 24;
/// With [`VOLUME_BEFORE`]: what is written is journaled too, in one entry with it.
pub const VOLUME_BOTH: u32 = 1 << 25;
/// Bit of a [`global::VOLUME_TABLE`] word: acknowledge policy `journal`.
pub const VOLUME_JOURNAL: u32 = 1 << 26;

/// Registers of one port, at [`PORT_BASE`] + port · [`PORT_STRIDE`].
pub mod port {
    use super::{Access, Register};
    registers! {
        /// Every register of a port, by its offset in the port's block.
        REGISTERS {
            CONTROL @ 0x000, 32, Rw, 0, "Bit 0 drain enabled: the port's ring is drained into the host's.";
            COMMAND @ 0x004, 32, Start, 0, "Bit 0 flush: a watermark and a drain now.";
            STATUS @ 0x008, 32, Ro, 0, "Bit 0 leaf clock locked. Bit 1 holdover. Bit 2 ring overflow (never: a defect if set). Bits 23:16 writes in flight.";
            VOLUMES @ 0x00C, 32, Rw, 0, "Bit mask of the volumes that sources on this port may write; writes to others are dropped and counted.";
            FLUSH_LEVEL @ 0x010, 32, Rw, 128, "Drain starts when the port's ring holds at least this many 64-byte lines.";
            RING_SIZE @ 0x014, 32, Rw, 0, "Host ring: log2 of its bytes.";
            RING_ADDRESS @ 0x018, 64, Rw, 0, "Host ring: bus address, aligned to 4 KiB.";
            MAILBOX_ADDRESS @ 0x020, 64, Rw, 0, "Mailbox: bus address, aligned to 64 bytes.";
            CONSUMED @ 0x028, 64, Rw, 0, "Bytes of the host ring that the host has taken. The card never writes beyond consumed + size.";
            PRODUCED @ 0x030, 64, Ro, 0, "Bytes that the card has written into the host ring.";
            DURABLE @ 0x038, 64, Rw, 0, "The host reports: everything up to this number is durable in the primary journal. Answers and writes of volumes with policy `journal` go on when their number is reached; a function reset drops those that wait, and cancels the entries of such writes.";
            LEAF_TIME @ 0x040, 64, Ro, 0, "Leaf clock now, ns.";
            LEAF_PHASE @ 0x048, 32, Ro, 0, "Leaf clock: filtered phase error in 2^-16 ns, signed.";
            RING_LEVEL @ 0x04C, 32, Ro, 0, "64-byte lines in the port's ring.";
            COUNTERS @ 0x080, 32, Ro, 0, "32 words: frames by what became of them, in the order of `layout::registers::Counter`. They wrap.";
            SOURCE_TABLE @ 0x100, 64, Ro, 0, "8 entries: MAC addresses of the sources, first byte in bits 7:0, in the order in which the port first saw a write of theirs; bit 48: valid.";
        }
    }
}

/// Registers of a port that function reset takes to their reset values, as [`port::PRODUCED`]. Of the
/// card's it closes writes; the rest stays.
pub const FUNCTION_RESET_PORT: &[u32] = &[
    port::CONTROL,
    port::FLUSH_LEVEL,
    port::RING_SIZE,
    port::RING_ADDRESS,
    port::MAILBOX_ADDRESS,
    port::CONSUMED,
    port::DURABLE,
];

/// Bit of [`port::CONTROL`]: drain enabled.
pub const PORT_DRAIN: u32 = 1 << 0;
/// Bit of [`port::COMMAND`]: flush.
pub const PORT_FLUSH: u32 = 1 << 0;
/// Bit of [`port::STATUS`]: leaf clock locked.
pub const PORT_LOCKED: u32 = 1 << 0;
/// Bit of [`port::STATUS`]: leaf clock in holdover.
pub const PORT_HOLDOVER: u32 = 1 << 1;

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $value:literal $text:literal,)+) => {
        /// What became of a frame: the index of its counter in a port's [`port::COUNTERS`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Counter { $($(#[$doc])* $variant = $value),+ }
        impl Counter {
            /// Every counter in order.
            pub const ALL: &'static [Counter] = &[$(Counter::$variant),+];
            /// As it is printed.
            pub const fn name(self) -> &'static str { match self { $(Counter::$variant => $text),+ } }
        }
    };
}

counters! {
    /// Passed to the uplink without being journaled.
    Passed = 0 "passed",
    /// Writes committed to the port's ring and forwarded.
    Journaled = 1 "journaled",
    /// Of those, copies of a write that was still unanswered.
    Duplicate = 2 "duplicates",
    /// Writes that the target said it executed.
    Updated = 3 "updated",
    /// Writes that the target refused without executing anything.
    Refused = 4 "refused",
    /// Writes whose answer leaves open what was executed, or that were never answered.
    Unknown = 5 "unknown",
    /// Frames from the uplink sent out of this port.
    Returned = 6 "returned",
    /// Dropped: the MAC reported an error, or the frame is too short or too long.
    DroppedBad = 7 "dropped-bad-frame",
    /// Dropped: the store-and-forward buffer was full.
    DroppedBuffer = 8 "dropped-buffer-full",
    /// Dropped: a write not admitted within the hold time.
    DroppedHold = 9 "dropped-hold",
    /// Dropped: AoE header version other than 1.
    DroppedVersion = 10 "dropped-version",
    /// Dropped: shelf or slot is broadcast in an ATA write.
    DroppedBroadcast = 11 "dropped-broadcast-write",
    /// Dropped: AoE behind a VLAN tag.
    DroppedVlan = 12 "dropped-vlan",
    /// Dropped: an ATA command that is not on the allow-list.
    DroppedCommand = 13 "dropped-ata-command",
    /// Dropped: an AoE command that is not on the allow-list, MAC-mask edits included.
    DroppedAoe = 14 "dropped-aoe-command",
    /// Dropped: a write of no sectors.
    DroppedEmpty = 15 "dropped-empty-write",
    /// Dropped: the payload is shorter than the sector count says, or the count is above 17.
    DroppedShort = 16 "dropped-short-write",
    /// Dropped: a write to a volume that is not in the table, or not allowed on this port.
    DroppedVolume = 17 "dropped-volume",
    /// Dropped: an AoE answer that came from a source, or a tag with bit 31 set.
    DroppedResponse = 18 "dropped-response",
    /// Dropped: a write while writes are closed.
    DroppedClosed = 19 "dropped-closed",
    /// Dropped on its way to this port: the output buffer was full.
    DroppedReturn = 20 "dropped-return-full",
    /// Answers that matched no write of this port; passed on.
    Unmatched = 21 "unmatched-answers",
    /// Dropped: a copy of a write that is held, or whose answer is; that one goes on with the copy's tag.
    DroppedCopy = 22 "dropped-copy",
    /// Dropped: a write whose before-image the target didn't give.
    DroppedRead = 23 "dropped-before-read",
    /// Dropped: a write that overlaps one whose status is unknown and whose quarantine isn't over.
    DroppedQuarantine = 24 "dropped-quarantine",
    /// Dropped: a frame from a source that the port's list doesn't have.
    DroppedSource = 25 "dropped-source",
}

const _: () = assert!(Counter::ALL.len() <= 32);
