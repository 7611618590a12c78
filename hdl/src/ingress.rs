//! Ingress of a port: takes frames as the MAC gives them, decides what becomes of each at its end,
//! and describes the writes.
//!
//! The checks and their order are those of `engine::frame`; the numbers in the kernel are its numbers.
//! Whatever is decided is decided with the frame's last word, one cycle after it came, so that the
//! store-and-forward buffers behind can keep or forget the frame.

use crate::prelude::*;
use layout::aoe;
use layout::registers::Counter;

/// Bytes 12–13 of AoE as they stand in a little-endian word.
const AOE_RAW: u64 = aoe::ETHERTYPE.swap_bytes() as u64;
/// The same of a VLAN tag.
const VLAN_RAW: u64 = aoe::ETHERTYPE_VLAN.swap_bytes() as u64;
/// The same of a provider tag.
const PROVIDER_RAW: u64 = aoe::ETHERTYPE_PROVIDER_VLAN.swap_bytes() as u64;

const _: () = {
    // The kernel takes a volume's mode from bits 26:24 of its word in the table, and bit 31 for valid.
    assert!(layout::registers::VOLUME_VALID == 1 << 31);
    assert!(layout::registers::VOLUME_BEFORE == 1 << 24 && layout::registers::VOLUME_BOTH == 1 << 25);
    assert!(layout::registers::VOLUME_JOURNAL == 1 << 26);
};

/// Where a described write's fields lie in [`Ingress::write_key`].
pub mod write_key {
    /// Source MAC, 48 bits, first byte lowest.
    pub const MAC: usize = 0;
    /// Tag as it stands in the frame, 32 bits.
    pub const TAG: usize = 48;
    /// LBA, 48 bits.
    pub const LBA: usize = 80;
}

/// Where a described write's fields lie in [`Ingress::write_info`].
pub mod write_info {
    /// CRC32C of the payload, 32 bits.
    pub const CRC: usize = 0;
    /// Sectors, 5 bits.
    pub const SECTORS: usize = 32;
    /// Index into the volume table, 4 bits.
    pub const VOLUME: usize = 37;
    /// Index into the source table, 4 bits; all ones: none.
    pub const SOURCE: usize = 41;
    /// The command has a 28-bit LBA.
    pub const SHORT: usize = 45;
    /// Shelf and slot as they stand in the frame, 24 bits.
    pub const ADDRESS: usize = 46;
    /// Tick of arrival, 24 bits.
    pub const ARRIVAL: usize = 70;
    /// The volume's mode, 3 bits: before-images, after-images too, acknowledge policy `journal`.
    pub const MODE: usize = 94;
    /// Bits in all.
    pub const BITS: usize = 97;
}

logic_block! {
    /// See the module. The stream has no `ready`: behind a MAC a port always takes what comes.
    #[derive(Default)]
    pub struct Ingress {
        /// Clock.
        pub clock: Signal<In, Clock>,
        /// Data, byte 0 in bits 7:0.
        pub rx_data: Signal<In, Bits<64>>,
        /// Valid bytes; contiguous from bit 0, partial only with `rx_last`.
        pub rx_keep: Signal<In, Bits<8>>,
        /// Last word of a frame.
        pub rx_last: Signal<In, bool>,
        /// With the last word: the MAC found the frame bad.
        pub rx_error: Signal<In, bool>,
        /// A word is there.
        pub rx_valid: Signal<In, bool>,
        /// Writes are admitted.
        pub writes_open: Signal<In, bool>,
        /// Volumes that sources of this port may write.
        pub allowed: Signal<In, Bits<16>>,
        /// A word of the volume table is written.
        pub volume_write: Signal<In, bool>,
        /// Its index.
        pub volume_write_index: Signal<In, Bits<4>>,
        /// The word: `layout::registers::global::VOLUME_TABLE`.
        pub volume_write_word: Signal<In, Bits<32>>,
        /// Ticks since power-up, for the hold time.
        pub ticks: Signal<In, Bits<24>>,
        /// Source table: read address.
        pub source_address: Signal<In, Bits<3>>,
        /// Source table: MAC and valid bit, one cycle later.
        pub source_data: Signal<Out, Bits<49>>,
        /// To the buffers: data.
        pub data: Signal<Out, Bits<64>>,
        /// To the buffers: index of the last valid byte.
        pub last_byte: Signal<Out, Bits<3>>,
        /// To the buffers: last word.
        pub last: Signal<Out, bool>,
        /// To the buffers: a word is there.
        pub valid: Signal<Out, bool>,
        /// With the last word: the frame passes unjournaled.
        pub commit_pass: Signal<Out, bool>,
        /// With the last word: the frame is a write.
        pub commit_write: Signal<Out, bool>,
        /// The pass buffer has no room for the frame.
        pub pass_lost: Signal<In, bool>,
        /// The write buffer, or the queue of descriptions, has no room for the frame.
        pub write_lost: Signal<In, bool>,
        /// Description of the write: [`write_key`].
        pub write_key: Signal<Out, Bits<128>>,
        /// Description of the write: [`write_info`].
        pub write_info: Signal<Out, Bits<97>>,
        /// A write is held, and a copy of it gives it its tag.
        pub held: Signal<In, bool>,
        /// It: [`write_key`].
        pub held_key: Signal<In, Bits<128>>,
        /// It: [`write_info`].
        pub held_info: Signal<In, Bits<97>>,
        /// A copy of it came and was dropped; its tag is in `write_key` (strobe).
        pub copied: Signal<Out, bool>,
        /// A frame was dropped.
        pub dropped: Signal<Out, bool>,
        /// Why: a `layout::registers::Counter`.
        pub reason: Signal<Out, Bits<5>>,
        /// A new source address wants to be learned.
        pub learn: Signal<Out, bool>,
        /// The address.
        pub learn_mac: Signal<Out, Bits<48>>,
        /// It has been learned.
        pub learned: Signal<In, bool>,
        crc_step: Crc32cStep,
        volumes: Ram<32, 4>,
        sources: Ram<49, 3>,
        sources_read: Ram<49, 3>,
        word0: Dff<Bits<16>>,
        word1: Dff<Bits<64>>,
        word2: Dff<Bits<64>>,
        word3: Dff<Bits<64>>,
        word4: Dff<Bits<16>>,
        high: Dff<Bits<32>>,
        crc: Dff<Bits<32>>,
        index: Dff<Bits<11>>,
        // Stage behind the input: the word, and 67:64 end, 67 last, 68 error, 79:69 index.
        stage: Dff<Bits<80>>,
        stage_valid: Dff<bool>,
        // Place of the scan of both tables; 17: done.
        scan: Dff<Bits<5>>,
        // Index found, and above it whether.
        volume_hit: Dff<Bits<5>>,
        volume_mode: Dff<Bits<3>>,
        source_hit: Dff<Bits<4>>,
        source_count: Dff<Bits<4>>,
        learning: Dff<bool>,
        learning_mac: Dff<Bits<48>>,
        last_learned: Dff<Bits<48>>,
        payload_last: Signal<Local, Bits<15>>,
        payload_word: Signal<Local, Bits<64>>,
        rx_end: Signal<Local, Bits<3>>,
        scan_before: Signal<Local, Bits<5>>,
        scan_next: Signal<Local, Bits<5>>,
        volume_wanted: Signal<Local, Bits<24>>,
        source_wanted: Signal<Local, Bits<49>>,
        allowed_here: Signal<Local, Bits<16>>,
        mac: Signal<Local, Bits<48>>,
        bytes: Signal<Local, Bits<15>>,
        needed: Signal<Local, Bits<15>>,
        ethertype: Signal<Local, Bits<16>>,
        inner: Signal<Local, Bits<16>>,
        inner2: Signal<Local, Bits<16>>,
        outer_tag: Signal<Local, bool>,
        inner_tag: Signal<Local, bool>,
        inner2_tag: Signal<Local, bool>,
        command: Signal<Local, Bits<8>>,
        count: Signal<Local, Bits<8>>,
        lba: Signal<Local, Bits<48>>,
        is_write: Signal<Local, bool>,
        is_short: Signal<Local, bool>,
        held_equal: Signal<Local, bool>,
        drop: Signal<Local, bool>,
        write: Signal<Local, bool>,
        why: Signal<Local, Bits<5>>,
        source: Signal<Local, Bits<4>>,
        source_count_next: Signal<Local, Bits<4>>,
        source_new: Signal<Local, bool>,
        index_next: Signal<Local, Bits<11>>,
        aoe_raw: Fixed<16, AOE_RAW>,
        vlan_raw: Fixed<16, VLAN_RAW>,
        provider_raw: Fixed<16, PROVIDER_RAW>,
        source_valid: Fixed<49, { 1 << 48 }>,
        all_ones: Fixed<32, 0xFFFF_FFFF>,
        ata_identify: Fixed<8, { aoe::ATA_IDENTIFY as u64 }>,
        ata_read: Fixed<8, { aoe::ATA_READ as u64 }>,
        ata_read_ext: Fixed<8, { aoe::ATA_READ_EXT as u64 }>,
        ata_flush: Fixed<8, { aoe::ATA_FLUSH as u64 }>,
        ata_flush_ext: Fixed<8, { aoe::ATA_FLUSH_EXT as u64 }>,
        ata_write: Fixed<8, { aoe::ATA_WRITE as u64 }>,
        ata_write_ext: Fixed<8, { aoe::ATA_WRITE_EXT as u64 }>,
        most_sectors: Fixed<8, { aoe::MAXIMUM_SECTORS as u64 }>,
        longest: Fixed<15, { aoe::MAXIMUM_FRAME_BYTES as u64 }>,
        header_bytes: Fixed<15, { aoe::WRITE_HEADER_BYTES as u64 }>,
        dropped_bad: Fixed<5, { Counter::DroppedBad as u64 }>,
        dropped_buffer: Fixed<5, { Counter::DroppedBuffer as u64 }>,
        dropped_version: Fixed<5, { Counter::DroppedVersion as u64 }>,
        dropped_broadcast: Fixed<5, { Counter::DroppedBroadcast as u64 }>,
        dropped_vlan: Fixed<5, { Counter::DroppedVlan as u64 }>,
        dropped_command: Fixed<5, { Counter::DroppedCommand as u64 }>,
        dropped_aoe: Fixed<5, { Counter::DroppedAoe as u64 }>,
        dropped_empty: Fixed<5, { Counter::DroppedEmpty as u64 }>,
        dropped_short: Fixed<5, { Counter::DroppedShort as u64 }>,
        dropped_volume: Fixed<5, { Counter::DroppedVolume as u64 }>,
        dropped_response: Fixed<5, { Counter::DroppedResponse as u64 }>,
        dropped_copy: Fixed<5, { Counter::DroppedCopy as u64 }>,
        dropped_closed: Fixed<5, { Counter::DroppedClosed as u64 }>,
    }
}

impl Logic for Ingress {
    #[hdl_gen]
    fn update(&mut self) {
        self.volumes.read_clock.next = self.clock.val();
        self.volumes.write_clock.next = self.clock.val();
        self.sources.read_clock.next = self.clock.val();
        self.sources.write_clock.next = self.clock.val();
        self.sources_read.read_clock.next = self.clock.val();
        self.sources_read.write_clock.next = self.clock.val();
        dff_setup!(
            self,
            clock,
            word0,
            word1,
            word2,
            word3,
            word4,
            high,
            crc,
            index,
            stage,
            stage_valid,
            scan,
            volume_hit,
            volume_mode,
            source_hit,
            source_count,
            learning,
            learning_mac,
            last_learned
        );

        // The input: header words are kept, the payload goes through the CRC.
        self.rx_end.next = bits::<3>(7);
        if self.rx_keep.val() == 0x7F {
            self.rx_end.next = bits::<3>(6);
        }
        if self.rx_keep.val() == 0x3F {
            self.rx_end.next = bits::<3>(5);
        }
        if self.rx_keep.val() == 0x1F {
            self.rx_end.next = bits::<3>(4);
        }
        if self.rx_keep.val() == 0x0F {
            self.rx_end.next = bits::<3>(3);
        }
        if self.rx_keep.val() == 0x07 {
            self.rx_end.next = bits::<3>(2);
        }
        if self.rx_keep.val() == 0x03 {
            self.rx_end.next = bits::<3>(1);
        }
        if self.rx_keep.val() == 0x01 {
            self.rx_end.next = bits::<3>(0);
        }
        self.stage_valid.d.next = self.rx_valid.val();
        self.count.next = self.word3.q.val().get_bits::<8>(16);
        // The payload begins in the upper half of word 4 and ends in the lower half of this word.
        self.payload_last.next = (bit_cast::<15, 8>(self.count.val()) << 6) + 4;
        self.payload_word.next = bit_cast::<64, 32>(self.high.q.val())
            | (bit_cast::<64, 32>(self.rx_data.val().get_bits::<32>(0)) << 32);
        self.crc_step.state.next = self.crc.q.val();
        self.crc_step.word.next = bits::<64>(0);
        self.index_next.next = self.index.q.val() + 1;
        if self.rx_valid.val() {
            self.stage.d.next = bit_cast::<80, 64>(self.rx_data.val())
                | (bit_cast::<80, 3>(self.rx_end.val()) << 64)
                | (bit_cast::<80, 1>(self.rx_last.val().into()) << 67)
                | (bit_cast::<80, 1>(self.rx_error.val().into()) << 68)
                | (bit_cast::<80, 11>(self.index.q.val()) << 69);
            self.high.d.next = self.rx_data.val().get_bits::<32>(32);
            if self.index.q.val() == 0 {
                self.word0.d.next = self.rx_data.val().get_bits::<16>(48);
            }
            if self.index.q.val() == 1 {
                self.word1.d.next = self.rx_data.val();
            }
            if self.index.q.val() == 2 {
                self.word2.d.next = self.rx_data.val();
            }
            if self.index.q.val() == 3 {
                self.word3.d.next = self.rx_data.val();
            }
            if self.index.q.val() == 4 {
                self.word4.d.next = self.rx_data.val().get_bits::<16>(0);
                self.crc.d.next = self.all_ones.val();
            }
            if (self.index.q.val() > 4) & (bit_cast::<15, 11>(self.index.q.val()) <= self.payload_last.val())
            {
                self.crc_step.word.next = self.payload_word.val();
                self.crc.d.next = self.crc_step.result.val();
            }
            if self.index.q.val() != 2047 {
                self.index.d.next = self.index_next.val();
            }
            if self.rx_last.val() {
                self.index.d.next = bits::<11>(0);
            }
        }

        // Volume and source are looked up while the payload comes in: 17 cycles of at least 64.
        self.mac.next = bit_cast::<48, 16>(self.word0.q.val())
            | (bit_cast::<48, 32>(self.word1.q.val().get_bits::<32>(0)) << 16);
        self.scan_before.next = self.scan.q.val() - 1;
        self.scan_next.next = self.scan.q.val() + 1;
        self.volumes.read_address.next = self.scan.q.val().get_bits::<4>(0);
        self.sources.read_address.next = self.scan.q.val().get_bits::<3>(0);
        self.volume_wanted.next = (bit_cast::<24, 8>(self.word2.q.val().get_bits::<8>(16)) << 16)
            | (bit_cast::<24, 8>(self.word2.q.val().get_bits::<8>(0)) << 8)
            | bit_cast::<24, 8>(self.word2.q.val().get_bits::<8>(8));
        self.source_wanted.next = bit_cast::<49, 48>(self.mac.val()) | self.source_valid.val();
        self.allowed_here.next = self.allowed.val() >> self.scan_before.val();
        if self.scan.q.val() != 17 {
            self.scan.d.next = self.scan_next.val();
            if self.scan.q.val() != 0 {
                if (!self.volume_hit.q.val().get_bit(4))
                    & (self.volumes.read_data.val().get_bits::<24>(0) == self.volume_wanted.val())
                    & self.volumes.read_data.val().get_bit(31)
                    & self.allowed_here.val().get_bit(0)
                {
                    self.volume_hit.d.next = self.scan_before.val() | bits::<5>(0x10);
                    self.volume_mode.d.next = self.volumes.read_data.val().get_bits::<3>(24);
                }
                if (self.scan.q.val() <= 8) & (self.sources.read_data.val() == self.source_wanted.val()) {
                    self.source_hit.d.next =
                        bit_cast::<4, 3>(self.scan_before.val().get_bits::<3>(0)) | bits::<4>(8);
                }
            }
        }
        if self.rx_valid.val() & (self.index.q.val() == 2) {
            self.scan.d.next = bits::<5>(0);
            self.volume_hit.d.next = bits::<5>(0);
            self.source_hit.d.next = bits::<4>(0);
        }

        // The decision, with the last word in the stage.
        self.data.next = self.stage.q.val().get_bits::<64>(0);
        self.last_byte.next = self.stage.q.val().get_bits::<3>(64);
        self.last.next = self.stage.q.val().get_bit(67);
        self.valid.next = self.stage_valid.q.val();
        self.bytes.next = (bit_cast::<15, 11>(self.stage.q.val().get_bits::<11>(69)) << 3)
            + bit_cast::<15, 3>(self.stage.q.val().get_bits::<3>(64))
            + 1;
        self.needed.next = (bit_cast::<15, 8>(self.count.val()) << 9) + self.header_bytes.val();
        self.ethertype.next = self.word1.q.val().get_bits::<16>(32);
        self.inner.next = self.word2.q.val().get_bits::<16>(0);
        self.inner2.next = self.word2.q.val().get_bits::<16>(32);
        self.outer_tag.next =
            (self.ethertype.val() == self.vlan_raw.val()) | (self.ethertype.val() == self.provider_raw.val());
        self.inner_tag.next =
            (self.inner.val() == self.vlan_raw.val()) | (self.inner.val() == self.provider_raw.val());
        self.inner2_tag.next =
            (self.inner2.val() == self.vlan_raw.val()) | (self.inner2.val() == self.provider_raw.val());
        self.command.next = self.word3.q.val().get_bits::<8>(24);
        self.is_short.next = self.command.val() == self.ata_write.val();
        self.is_write.next = self.is_short.val() | (self.command.val() == self.ata_write_ext.val());
        self.lba.next = bit_cast::<48, 32>(self.word3.q.val().get_bits::<32>(32))
            | (bit_cast::<48, 16>(self.word4.q.val()) << 32);
        if self.is_short.val() {
            self.lba.next = bit_cast::<48, 28>(self.word3.q.val().get_bits::<28>(32));
        }
        // A copy has the source, volume, location, length and CRC of the write that is held; not its tag.
        self.held_equal.next = self.held.val()
            & (self.held_key.val().get_bits::<48>(0) == self.mac.val())
            & (self.held_key.val().get_bits::<48>(80) == self.lba.val())
            & (self.held_info.val().get_bits::<32>(0) == (self.crc.q.val() ^ self.all_ones.val()))
            & (self.held_info.val().get_bits::<5>(32) == self.word3.q.val().get_bits::<5>(16))
            & (self.held_info.val().get_bits::<4>(37) == self.volume_hit.q.val().get_bits::<4>(0));
        self.drop.next = false;
        self.write.next = false;
        self.why.next = self.dropped_bad.val();
        if self.stage.q.val().get_bit(68) | (self.bytes.val() < 14) | (self.bytes.val() > self.longest.val())
        {
            self.drop.next = true;
        } else if self.outer_tag.val() {
            self.why.next = self.dropped_vlan.val();
            self.drop.next = ((self.bytes.val() >= 18) & (self.inner.val() == self.aoe_raw.val()))
                | ((self.bytes.val() >= 22)
                    & self.inner_tag.val()
                    & ((self.inner2.val() == self.aoe_raw.val()) | self.inner2_tag.val()));
        } else if self.ethertype.val() == self.aoe_raw.val() {
            if self.bytes.val() < 24 {
                self.drop.next = true;
                self.why.next = self.dropped_short.val();
            } else if self.word1.q.val().get_bit(51) {
                self.drop.next = true;
                self.why.next = self.dropped_response.val();
            } else if self.word1.q.val().get_bits::<4>(52) != 1 {
                self.drop.next = true;
                self.why.next = self.dropped_version.val();
            } else if self.word2.q.val().get_bit(39) {
                self.drop.next = true;
                self.why.next = self.dropped_response.val();
            } else if self.word2.q.val().get_bits::<8>(24) == 1 {
                self.why.next = self.dropped_aoe.val();
                self.drop.next = self.word3.q.val().get_bits::<4>(40) > 2;
                if self.bytes.val() < 32 {
                    self.drop.next = true;
                    self.why.next = self.dropped_short.val();
                }
            } else if self.word2.q.val().get_bits::<8>(24) == 3 {
                self.why.next = self.dropped_short.val();
                self.drop.next = self.bytes.val() < 26;
            } else if self.word2.q.val().get_bits::<8>(24) != 0 {
                self.drop.next = true;
                self.why.next = self.dropped_aoe.val();
            } else if self.bytes.val() < self.header_bytes.val() {
                self.drop.next = true;
                self.why.next = self.dropped_short.val();
            } else if self.is_write.val() {
                self.drop.next = true;
                if self.count.val() == 0 {
                    self.why.next = self.dropped_empty.val();
                } else if (self.count.val() > self.most_sectors.val())
                    | (self.bytes.val() < self.needed.val())
                {
                    self.why.next = self.dropped_short.val();
                } else if (self.word2.q.val().get_bits::<16>(0) == 0xFFFF)
                    | (self.word2.q.val().get_bits::<8>(16) == 0xFF)
                {
                    self.why.next = self.dropped_broadcast.val();
                } else if !self.volume_hit.q.val().get_bit(4) {
                    self.why.next = self.dropped_volume.val();
                } else if !self.writes_open.val() {
                    self.why.next = self.dropped_closed.val();
                } else if self.held_equal.val() {
                    self.why.next = self.dropped_copy.val();
                } else {
                    self.drop.next = false;
                    self.write.next = true;
                }
            } else if (self.command.val() != self.ata_identify.val())
                & (self.command.val() != self.ata_read.val())
                & (self.command.val() != self.ata_read_ext.val())
                & (self.command.val() != self.ata_flush.val())
                & (self.command.val() != self.ata_flush_ext.val())
            {
                self.drop.next = true;
                self.why.next = self.dropped_command.val();
            }
        }
        self.commit_pass.next = false;
        self.commit_write.next = false;
        self.dropped.next = false;
        self.copied.next = false;
        self.reason.next = self.why.val();
        self.sources.write_address.next = self.source_count.q.val().get_bits::<3>(0);
        self.sources.write_data.next = self.source_wanted.val();
        self.source_new.next = false;
        self.source_count_next.next = self.source_count.q.val() + 1;
        self.source.next = bits::<4>(15);
        if self.source_hit.q.val().get_bit(3) {
            self.source.next = bit_cast::<4, 3>(self.source_hit.q.val().get_bits::<3>(0));
        } else if !self.source_count.q.val().get_bit(3) {
            self.source.next = self.source_count.q.val();
        }
        if self.stage_valid.q.val() & self.last.val() {
            self.commit_pass.next = (!self.drop.val()) & (!self.write.val());
            self.commit_write.next = self.write.val() & (!self.write_lost.val());
            self.dropped.next = self.drop.val();
            self.copied.next = self.drop.val() & (self.why.val() == self.dropped_copy.val());
            if (self.write.val() & self.write_lost.val())
                | ((!self.drop.val()) & (!self.write.val()) & self.pass_lost.val())
            {
                self.dropped.next = true;
                self.reason.next = self.dropped_buffer.val();
            } else if self.write.val()
                & (!self.source_hit.q.val().get_bit(3))
                & (!self.source_count.q.val().get_bit(3))
            {
                self.source_new.next = true;
                self.source_count.d.next = self.source_count_next.val();
            }
            if (!self.drop.val()) & (!self.learning.q.val()) & (self.mac.val() != self.last_learned.q.val()) {
                self.learning.d.next = true;
                self.learning_mac.d.next = self.mac.val();
            }
        }
        if self.learning.q.val() & self.learned.val() {
            self.learning.d.next = false;
            self.last_learned.d.next = self.learning_mac.q.val();
        }
        self.learn.next = self.learning.q.val();
        self.learn_mac.next = self.learning_mac.q.val();
        self.write_key.next = bit_cast::<128, 48>(self.mac.val())
            | (bit_cast::<128, 32>(self.word2.q.val().get_bits::<32>(32)) << 48)
            | (bit_cast::<128, 48>(self.lba.val()) << 80);
        self.write_info.next = bit_cast::<97, 32>(self.crc.q.val() ^ self.all_ones.val())
            | (bit_cast::<97, 5>(self.word3.q.val().get_bits::<5>(16)) << 32)
            | (bit_cast::<97, 4>(self.volume_hit.q.val().get_bits::<4>(0)) << 37)
            | (bit_cast::<97, 4>(self.source.val()) << 41)
            | (bit_cast::<97, 1>(self.is_short.val().into()) << 45)
            | (bit_cast::<97, 24>(self.word2.q.val().get_bits::<24>(0)) << 46)
            | (bit_cast::<97, 24>(self.ticks.val()) << 70)
            | (bit_cast::<97, 3>(self.volume_mode.q.val()) << 94);

        // The tables: volumes as the host writes them; sources once more for the host to read.
        self.volumes.write_address.next = self.volume_write_index.val();
        self.volumes.write_data.next = self.volume_write_word.val();
        self.volumes.write_enable.next = self.volume_write.val();
        self.sources_read.write_address.next = self.source_count.q.val().get_bits::<3>(0);
        self.sources_read.write_data.next = self.source_wanted.val();
        self.sources.write_enable.next = self.source_new.val();
        self.sources_read.write_enable.next = self.source_new.val();
        self.sources_read.read_address.next = self.source_address.val();
        self.source_data.next = self.sources_read.read_data.val();
    }
}
