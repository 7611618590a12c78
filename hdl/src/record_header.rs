//! The header of a record, word by word: `layout::entry::EntryHeader`.

use crate::prelude::*;
use layout::entry::{self, Journaled, Kind};

/// Word 0 of every header: magic and version; kind, flags, encoding and status are added.
const HEADER_START: u64 = entry::MAGIC as u64 | (entry::VERSION as u64) << 16;
/// `volume` of a record that has none, as it stands in word 5.
const NO_VOLUME: u64 = (entry::NO_INDEX as u64) << 48;
/// Bytes of a gap's payload, where they stand in word 6.
const GAP_BYTES: u64 = (size_of::<entry::Gap>() as u64) << 32;

const _: () = {
    // The kernel below writes the header word by word; these are the places it writes to.
    assert!(layout::entry_bit!(kind).1 == 24 && layout::entry_bit!(flags).1 == 32);
    assert!(layout::entry_bit!(status).1 == 56 && layout::entry_bit!(timestamp).0 == 1);
    assert!(layout::entry_bit!(number).0 == 2 && layout::entry_bit!(sequence).0 == 3);
    assert!(layout::entry_bit!(lba).0 == 4 && layout::entry_bit!(sectors).1 == 48);
    assert!(layout::entry_bit!(port).0 == 5 && layout::entry_bit!(slot).1 == 8);
    assert!(layout::entry_bit!(clock_error).1 == 16 && layout::entry_bit!(answer_status).1 == 32);
    assert!(layout::entry_bit!(answer_error).1 == 40 && layout::entry_bit!(volume).1 == 48);
    assert!(layout::entry_bit!(source).0 == 6 && layout::entry_bit!(payload_bytes).1 == 32);
    assert!(layout::entry_bit!(payload_crc).0 == 7 && layout::entry_bit!(header_crc).1 == 32);
    assert!(Kind::After as u8 == 1 && Kind::Before as u8 == 2 && Kind::Both as u8 == 3);
};

logic_block! {
    /// Combinational.
    #[derive(Default)]
    pub struct RecordHeader {
        /// Which word: 0 to 6; from 7 on the last one, whose upper half is the header's CRC.
        pub step: Signal<In, Bits<4>>,
        /// Kind.
        pub kind: Signal<In, Bits<8>>,
        /// Flags.
        pub flags: Signal<In, Bits<16>>,
        /// Error bound of the stamp.
        pub clock_error: Signal<In, Bits<16>>,
        /// Stamp, ns.
        pub stamp: Signal<In, Bits<64>>,
        /// Number.
        pub number: Signal<In, Bits<64>>,
        /// Count of the port's records.
        pub record_sequence: Signal<In, Bits<64>>,
        /// Port.
        pub port: Signal<In, Bits<8>>,
        /// Scoreboard slot.
        pub slot: Signal<In, Bits<4>>,
        /// Of an entry: first sector.
        pub lba: Signal<In, Bits<48>>,
        /// Of an entry: sectors.
        pub sectors: Signal<In, Bits<5>>,
        /// Of an entry: index of the volume.
        pub volume: Signal<In, Bits<4>>,
        /// Of an entry: index of the source; all ones: none.
        pub source: Signal<In, Bits<4>>,
        /// CRC32C of the payload.
        pub payload_crc: Signal<In, Bits<32>>,
        /// Of a completion: a `layout::entry::Updated`.
        pub updated: Signal<In, Bits<4>>,
        /// Of a completion: ATA status register.
        pub answer_status: Signal<In, Bits<8>>,
        /// Of a completion: ATA error register or AoE code.
        pub answer_error: Signal<In, Bits<8>>,
        /// The word.
        pub word: Signal<Out, Bits<64>>,
        /// The record is an entry.
        pub is_entry: Signal<Out, bool>,
        entry_here: Signal<Local, bool>,
        completion_here: Signal<Local, bool>,
        source_field: Signal<Local, Bits<16>>,
        bytes_field: Signal<Local, Bits<64>>,
        header_start: Fixed<64, HEADER_START>,
        no_volume: Fixed<64, NO_VOLUME>,
        no_index: Fixed<16, { entry::NO_INDEX as u64 }>,
        gap_bytes: Fixed<64, GAP_BYTES>,
        both: Fixed<8, { Kind::Both as u64 }>,
        completion: Fixed<8, { Kind::Completion as u64 }>,
        gap: Fixed<8, { Kind::Gap as u64 }>,
        journaled_port: Fixed<64, { Journaled::Port as u64 }>,
    }
}

impl Logic for RecordHeader {
    #[hdl_gen]
    fn update(&mut self) {
        self.entry_here.next = (self.kind.val() <= self.both.val()) & (self.kind.val() != 0);
        self.completion_here.next = self.kind.val() == self.completion.val();
        self.is_entry.next = self.entry_here.val();
        self.source_field.next = self.no_index.val();
        if self.source.val() != 15 {
            self.source_field.next = bit_cast::<16, 4>(self.source.val());
        }
        // 512 bytes a sector and image.
        self.bytes_field.next = bit_cast::<64, 5>(self.sectors.val()) << 41;
        if self.kind.val() == self.both.val() {
            self.bytes_field.next = bit_cast::<64, 5>(self.sectors.val()) << 42;
        }
        self.word.next = bits::<64>(0);
        if self.step.val() == 0 {
            self.word.next = self.header_start.val()
                | (bit_cast::<64, 8>(self.kind.val()) << 24)
                | (bit_cast::<64, 16>(self.flags.val()) << 32);
            if self.entry_here.val() {
                self.word.next = self.word.val() | (self.journaled_port.val() << 56);
            }
            if self.completion_here.val() {
                self.word.next = self.word.val()
                    | (self.journaled_port.val() << 56)
                    | (bit_cast::<64, 4>(self.updated.val()) << 60);
            }
        }
        if self.step.val() == 1 {
            self.word.next = self.stamp.val();
        }
        if self.step.val() == 2 {
            self.word.next = self.number.val();
        }
        if self.step.val() == 3 {
            self.word.next = self.record_sequence.val();
        }
        if (self.step.val() == 4) & self.entry_here.val() {
            self.word.next =
                bit_cast::<64, 48>(self.lba.val()) | (bit_cast::<64, 5>(self.sectors.val()) << 48);
        }
        if self.step.val() == 5 {
            self.word.next = bit_cast::<64, 8>(self.port.val())
                | (bit_cast::<64, 4>(self.slot.val()) << 8)
                | (bit_cast::<64, 16>(self.clock_error.val()) << 16);
            if self.entry_here.val() {
                self.word.next = self.word.val() | (bit_cast::<64, 4>(self.volume.val()) << 48);
            } else {
                self.word.next = self.word.val() | self.no_volume.val();
            }
            if self.completion_here.val() {
                self.word.next = self.word.val()
                    | (bit_cast::<64, 8>(self.answer_status.val()) << 32)
                    | (bit_cast::<64, 8>(self.answer_error.val()) << 40);
            }
        }
        if self.step.val() == 6 {
            self.word.next = bit_cast::<64, 16>(self.no_index.val());
            if self.entry_here.val() {
                self.word.next = bit_cast::<64, 16>(self.source_field.val()) | self.bytes_field.val();
            }
            if self.kind.val() == self.gap.val() {
                self.word.next = bit_cast::<64, 16>(self.no_index.val()) | self.gap_bytes.val();
            }
        }
        if (self.step.val() > 6) & (self.entry_here.val() | (self.kind.val() == self.gap.val())) {
            self.word.next = bit_cast::<64, 32>(self.payload_crc.val());
        }
    }
}
