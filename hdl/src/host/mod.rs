//! The PCIe side of the card: registers, drain of the ports' rings into host memory, interrupts.
//!
//! A packet from the host goes [`receiver`] → [`register_file`] → [`transmitter`]. A port's records go the
//! way of [`schedule`] (when, and up to where), [`planner`] (in which writes), [`fetch`] (the words),
//! [`transmitter`]; then the mailbox, then [`msix`].

pub mod controls;
pub mod fetch;
pub mod msix;
pub mod planner;
pub mod receiver;
pub mod register_file;
pub mod register_map;
pub mod schedule;
pub mod tick;
pub mod transmitter;

use crate::prelude::*;
use controls::Controls;
use fetch::Fetch;
use msix::Msix;
use planner::Planner;
use receiver::Receiver;
use register_file::RegisterFile;
use schedule::Schedule;
use std::array;
use transmitter::Transmitter;

logic_block! {
    /// `P` ports, `2^A` 64-bit words in each port's ring, `H` = `A` − 2 bits in a count of its 64-byte
    /// lines (modulo twice the lines, so that full and empty differ).
    pub struct Host<const P: usize, const A: usize, const H: usize> {
        /// Core clock.
        pub clock: Signal<In, Clock>,

        /// Packets from the host (`layout::pcie`): DW0 in bits 31:0.
        pub rx_data: Signal<In, Bits<64>>,
        /// 0xFF, or 0x0F in a last beat with one DW.
        pub rx_keep: Signal<In, Bits<8>>,
        /// Last beat of a packet.
        pub rx_last: Signal<In, bool>,
        /// A beat is there.
        pub rx_valid: Signal<In, bool>,
        /// It is taken at this edge.
        pub rx_ready: Signal<Out, bool>,
        /// Packets to the host.
        pub tx_data: Signal<Out, Bits<64>>,
        /// 0xFF, or 0x0F in a last beat with one DW.
        pub tx_keep: Signal<Out, Bits<8>>,
        /// Last beat of a packet.
        pub tx_last: Signal<Out, bool>,
        /// A beat is there; never withdrawn.
        pub tx_valid: Signal<Out, bool>,
        /// It is taken at this edge.
        pub tx_ready: Signal<In, bool>,
        /// Bus number, captured by the integrated block.
        pub pci_bus: Signal<In, Bits<8>>,
        /// Device number.
        pub pci_device: Signal<In, Bits<5>>,
        /// Function number.
        pub pci_function: Signal<In, Bits<3>>,
        /// Maximum payload: 128 << code bytes.
        pub max_payload: Signal<In, Bits<3>>,
        /// Memory writes may leave.
        pub bus_master_enable: Signal<In, bool>,
        /// MSI-X is on.
        pub msix_enable: Signal<In, bool>,
        /// Every vector is masked.
        pub msix_mask: Signal<In, bool>,

        /// Lines committed to each port's ring, at a record's end.
        pub ring_head: [Signal<In, Bits<H>>; P],
        /// Lines drained: the port may write over them.
        pub ring_tail: [Signal<Out, Bits<H>>; P],
        /// Word address, to every ring.
        pub ring_read_address: Signal<Out, Bits<A>>,
        /// The word, two cycles after its address.
        pub ring_read_data: [Signal<In, Bits<64>>; P],
        /// Asks for a watermark, until `watermark_done`.
        pub watermark_request: [Signal<Out, bool>; P],
        /// The watermark is in the ring, and in `ring_head` (strobe).
        pub watermark_done: [Signal<In, bool>; P],
        /// A record other than a watermark was committed on some port (strobe).
        pub commit: Signal<In, bool>,

        /// Writes are admitted.
        pub writes_open: Signal<Out, bool>,
        /// The time base runs.
        pub time_enable: Signal<Out, bool>,
        /// Time to take over with `time_set`, ns.
        pub time_set_value: Signal<Out, Bits<64>>,
        /// Strobe; only while the time base stands.
        pub time_set: Signal<Out, bool>,
        /// Stamps are above it, ns; with `stamp_floor_set`.
        pub stamp_floor: Signal<Out, Bits<64>>,
        /// Strobe.
        pub stamp_floor_set: Signal<Out, bool>,
        /// Numbers are above it; with `number_floor_set`.
        pub number_floor: Signal<Out, Bits<64>>,
        /// Strobe.
        pub number_floor_set: Signal<Out, bool>,
        /// Hold time, ticks.
        pub hold: Signal<Out, Bits<32>>,
        /// Retry time, ticks.
        pub retry: Signal<Out, Bits<32>>,
        /// Time until a status is unknown, ticks.
        pub unknown: Signal<Out, Bits<32>>,
        /// Quarantine, ticks.
        pub quarantine: Signal<Out, Bits<32>>,
        /// Strobe every `layout::registers::TICK_CYCLES`.
        pub tick: Signal<In, bool>,
        /// Function reset (strobe).
        pub function_reset: Signal<Out, bool>,
        /// Card reset (strobe).
        pub card_reset: Signal<Out, bool>,
        /// A word of the volume table is written (strobe).
        pub volume_write: Signal<Out, bool>,
        /// Which.
        pub volume_write_index: Signal<Out, Bits<4>>,
        /// The word.
        pub volume_write_word: Signal<Out, Bits<32>>,
        /// Volumes that sources on the port may write.
        pub port_volumes: [Signal<Out, Bits<16>>; P],
        /// Durable up to this number, as the host reports.
        pub durable_number: [Signal<Out, Bits<64>>; P],

        /// Time base, ns.
        pub time_now: Signal<In, Bits<64>>,
        /// The last stamp given.
        pub last_stamp: Signal<In, Bits<64>>,
        /// The last number given.
        pub last_number: Signal<In, Bits<64>>,
        /// Leaf clocks, ns.
        pub leaf_time: [Signal<In, Bits<64>>; P],
        /// Their filtered phase errors.
        pub leaf_phase: [Signal<In, Bits<32>>; P],
        /// They are locked.
        pub leaf_locked: [Signal<In, bool>; P],
        /// They are in holdover.
        pub leaf_holdover: [Signal<In, bool>; P],
        /// Writes in flight.
        pub in_flight: [Signal<In, Bits<8>>; P],
        /// Which drop counter to show.
        pub counter_address: Signal<Out, Bits<5>>,
        /// It, two cycles later.
        pub counter_data: [Signal<In, Bits<32>>; P],
        /// Which entry of the source table to show.
        pub source_address: Signal<Out, Bits<3>>,
        /// It, two cycles later: MAC in bits 47:0, valid in bit 48.
        pub source_data: [Signal<In, Bits<49>>; P],

        receiver: Receiver,
        registers: RegisterFile<P, H>,
        controls: Controls<P>,
        schedule: Schedule<P, H>,
        planner: Planner<P, A, H>,
        fetch: Fetch<P, A>,
        msix: Msix<P>,
        transmitter: Transmitter,
    }
}

impl<const P: usize, const A: usize, const H: usize> Host<P, A, H> {
    /// The PCIe side of a card.
    ///
    /// Panics unless `H` = `A` − 2, there are 1 to 8 ports, and a ring fits the smallest host ring.
    pub fn new() -> Self {
        assert!(H + 2 == A, "a count of lines has A - 2 = {} bits, not {H}", A - 2);
        assert!((1..=layout::registers::MAXIMUM_PORTS).contains(&P), "{P} ports");
        assert!(8 << A <= layout::ring::MINIMUM_RING_BYTES, "a drain must fit the smallest host ring");
        Self {
            clock: Default::default(),
            rx_data: Default::default(),
            rx_keep: Default::default(),
            rx_last: Default::default(),
            rx_valid: Default::default(),
            rx_ready: Default::default(),
            tx_data: Default::default(),
            tx_keep: Default::default(),
            tx_last: Default::default(),
            tx_valid: Default::default(),
            tx_ready: Default::default(),
            pci_bus: Default::default(),
            pci_device: Default::default(),
            pci_function: Default::default(),
            max_payload: Default::default(),
            bus_master_enable: Default::default(),
            msix_enable: Default::default(),
            msix_mask: Default::default(),
            ring_head: array::from_fn(|_| Signal::default()),
            ring_tail: array::from_fn(|_| Signal::default()),
            ring_read_address: Default::default(),
            ring_read_data: array::from_fn(|_| Signal::default()),
            watermark_request: array::from_fn(|_| Signal::default()),
            watermark_done: array::from_fn(|_| Signal::default()),
            commit: Default::default(),
            writes_open: Default::default(),
            time_enable: Default::default(),
            time_set_value: Default::default(),
            time_set: Default::default(),
            stamp_floor: Default::default(),
            stamp_floor_set: Default::default(),
            number_floor: Default::default(),
            number_floor_set: Default::default(),
            hold: Default::default(),
            retry: Default::default(),
            unknown: Default::default(),
            quarantine: Default::default(),
            tick: Default::default(),
            function_reset: Default::default(),
            card_reset: Default::default(),
            volume_write: Default::default(),
            volume_write_index: Default::default(),
            volume_write_word: Default::default(),
            port_volumes: array::from_fn(|_| Signal::default()),
            durable_number: array::from_fn(|_| Signal::default()),
            time_now: Default::default(),
            last_stamp: Default::default(),
            last_number: Default::default(),
            leaf_time: array::from_fn(|_| Signal::default()),
            leaf_phase: array::from_fn(|_| Signal::default()),
            leaf_locked: array::from_fn(|_| Signal::default()),
            leaf_holdover: array::from_fn(|_| Signal::default()),
            in_flight: array::from_fn(|_| Signal::default()),
            counter_address: Default::default(),
            counter_data: array::from_fn(|_| Signal::default()),
            source_address: Default::default(),
            source_data: array::from_fn(|_| Signal::default()),
            receiver: Default::default(),
            registers: Default::default(),
            controls: Default::default(),
            schedule: Default::default(),
            planner: Default::default(),
            fetch: Default::default(),
            msix: Default::default(),
            transmitter: Default::default(),
            settled: Default::default(),
        }
    }
}

impl<const P: usize, const A: usize, const H: usize> Default for Host<P, A, H> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const P: usize, const A: usize, const H: usize> Logic for Host<P, A, H> {
    #[hdl_gen]
    fn update(&mut self) {
        self.receiver.clock.next = self.clock.val();
        self.controls.clock.next = self.clock.val();
        self.registers.clock.next = self.clock.val();
        self.schedule.clock.next = self.clock.val();
        self.planner.clock.next = self.clock.val();
        self.fetch.clock.next = self.clock.val();
        self.msix.clock.next = self.clock.val();
        self.transmitter.clock.next = self.clock.val();

        // Packets from the host to the registers.
        self.receiver.data.next = self.rx_data.val();
        self.receiver.keep.next = self.rx_keep.val();
        self.receiver.last.next = self.rx_last.val();
        self.receiver.valid.next = self.rx_valid.val();
        self.rx_ready.next = self.receiver.ready.val();
        self.registers.offer.next = self.receiver.offer.val();
        self.registers.write.next = self.receiver.write.val();
        self.registers.refuse.next = self.receiver.refuse.val();
        self.registers.malformed.next = self.receiver.malformed.val();
        self.registers.address.next = self.receiver.address.val();
        self.registers.double.next = self.receiver.double.val();
        self.registers.words.next = self.receiver.words.val();
        self.registers.reply.next = self.receiver.reply.val();
        self.receiver.taken.next = self.registers.taken.val();

        // Registers to the card.
        self.controls.set_write.next = self.registers.set_write.val();
        self.controls.set_word.next = self.registers.set_word.val();
        self.controls.set_data.next = self.registers.set_data.val();
        self.controls.set_high.next = self.registers.set_high.val();
        self.controls.set_by_host.next = self.registers.set_by_host.val();
        self.registers.control.next = self.controls.control.val();
        self.writes_open.next = self.controls.control.val().get_bit(0);
        self.time_enable.next = self.controls.control.val().get_bit(1);
        self.time_set_value.next = self.controls.value.val();
        self.time_set.next = self.controls.time_set.val();
        self.stamp_floor.next = self.controls.value.val();
        self.stamp_floor_set.next = self.controls.stamp_floor_set.val();
        self.number_floor.next = self.controls.value.val();
        self.number_floor_set.next = self.controls.number_floor_set.val();
        self.hold.next = self.controls.hold.val();
        self.retry.next = self.controls.retry.val();
        self.unknown.next = self.controls.unknown.val();
        self.quarantine.next = self.controls.quarantine.val();
        self.function_reset.next = self.registers.function_reset.val();
        self.card_reset.next = self.registers.card_reset.val();
        self.volume_write.next = self.controls.volume_write.val();
        self.volume_write_index.next = self.controls.volume_write_index.val();
        self.volume_write_word.next = self.controls.value.val().get_bits::<32>(0);
        self.counter_address.next = self.registers.counter_address.val();
        self.source_address.next = self.registers.source_address.val();

        // The card to the registers; what changes by itself only while it is looked at, so that the
        // register file lies still otherwise.
        self.registers.time_now.next = bits::<64>(0);
        self.registers.last_stamp.next = bits::<64>(0);
        self.registers.last_number.next = bits::<64>(0);
        if self.registers.gathering.val() {
            self.registers.time_now.next = self.time_now.val();
            self.registers.last_stamp.next = self.last_stamp.val();
            self.registers.last_number.next = self.last_number.val();
        }
        for i in 0..P {
            self.port_volumes[i].next = self.controls.port_volumes[i].val();
            self.durable_number[i].next = self.controls.durable_number[i].val();
            self.registers.ring_head[i].next = bits::<H>(0);
            self.registers.ring_tail[i].next = bits::<H>(0);
            self.registers.leaf_time[i].next = bits::<64>(0);
            self.registers.leaf_phase[i].next = bits::<32>(0);
            self.registers.leaf_locked[i].next = false;
            self.registers.leaf_holdover[i].next = false;
            self.registers.in_flight[i].next = bits::<8>(0);
            self.registers.counter_data[i].next = bits::<32>(0);
            self.registers.source_data[i].next = bits::<49>(0);
            if self.registers.gathering.val() {
                self.registers.ring_head[i].next = self.ring_head[i].val();
                self.registers.ring_tail[i].next = self.schedule.ring_tail[i].val();
                self.registers.leaf_time[i].next = self.leaf_time[i].val();
                self.registers.leaf_phase[i].next = self.leaf_phase[i].val();
                self.registers.leaf_locked[i].next = self.leaf_locked[i].val();
                self.registers.leaf_holdover[i].next = self.leaf_holdover[i].val();
                self.registers.in_flight[i].next = self.in_flight[i].val();
                self.registers.counter_data[i].next = self.counter_data[i].val();
                self.registers.source_data[i].next = self.source_data[i].val();
            }
            self.schedule.ring_head[i].next = self.ring_head[i].val();
            self.schedule.watermark_done[i].next = self.watermark_done[i].val();
            self.ring_tail[i].next = self.schedule.ring_tail[i].val();
            self.watermark_request[i].next = self.schedule.watermark_request[i].val();
            self.fetch.ring_read_data[i].next = self.ring_read_data[i].val();
        }
        self.registers.busy.next = self.planner.resetting.val();
        self.registers.pending.next = self.msix.pending.val();
        self.registers.announced.next = self.transmitter.announced.val();
        self.registers.announced_port.next = self.transmitter.announced_port.val();
        self.registers.announced_bytes.next = self.transmitter.announced_bytes.val();

        // Drain.
        self.schedule.set_write.next = self.registers.set_write.val();
        self.schedule.set_word.next = self.registers.set_word.val();
        self.schedule.set_data.next = self.registers.set_data.val();
        self.schedule.tick.next = self.tick.val();
        self.schedule.function_reset.next = self.registers.function_reset.val();
        self.schedule.card_reset.next = self.registers.card_reset.val();
        self.schedule.commit.next = self.commit.val();
        self.schedule.announced.next = self.transmitter.announced.val();
        self.schedule.announced_port.next = self.transmitter.announced_port.val();
        self.schedule.port.next = self.planner.port.val();
        self.planner.set_write.next = self.registers.set_write.val();
        self.planner.set_word.next = self.registers.set_word.val();
        self.planner.set_data.next = self.registers.set_data.val();
        self.planner.set_high.next = self.registers.set_high.val();
        self.planner.reset.next = self.registers.function_reset.val() | self.registers.card_reset.val();
        self.planner.quiet.next = self.transmitter.quiet.val();
        self.planner.max_payload.next = self.max_payload.val();
        self.planner.active.next = self.schedule.active.val();
        self.planner.target.next = self.schedule.target.val();
        self.planner.tail.next = self.schedule.tail.val();
        self.planner.announced.next = self.transmitter.announced.val();
        self.planner.announced_port.next = self.transmitter.announced_port.val();
        self.planner.fetch_idle.next = self.fetch.idle.val();
        self.planner.fetch_empty.next = self.fetch.empty.val();
        self.planner.descriptor_pop.next = self.transmitter.descriptor_pop.val();
        self.fetch.clear.next = self.planner.fetch_clear.val();
        self.fetch.start.next = self.planner.fetch_start.val();
        self.fetch.start_address.next = self.planner.fetch_address.val();
        self.fetch.start_lines.next = self.planner.fetch_lines.val();
        self.fetch.start_port.next = self.planner.port.val();
        self.fetch.insert.next = self.planner.fetch_insert.val();
        self.fetch.insert_word.next = self.planner.fetch_insert_word.val();
        self.fetch.pop.next = self.transmitter.word_pop.val();
        self.ring_read_address.next = self.fetch.ring_read_address.val();

        // Interrupts.
        self.msix.set_write.next = self.registers.set_write.val();
        self.msix.set_word.next = self.registers.set_word.val();
        self.msix.set_data.next = self.registers.set_data.val();
        self.msix.tick.next = self.tick.val();
        self.msix.clear.next = self.registers.resetting.val();
        self.msix.enable.next = self.msix_enable.val();
        self.msix.mask.next = self.msix_mask.val();
        self.msix.announced.next = self.transmitter.announced.val();
        self.msix.announced_port.next = self.transmitter.announced_port.val();
        self.msix.acknowledged.next = self.registers.acknowledged.val();
        self.msix.acknowledged_port.next = self.registers.acknowledged_port.val();
        self.msix.begun.next = self.transmitter.message_begun.val();
        self.msix.sent.next = self.transmitter.message_sent.val();

        // Packets to the host.
        self.transmitter.identity.next = (bit_cast::<16, 8>(self.pci_bus.val()) << 8)
            | (bit_cast::<16, 5>(self.pci_device.val()) << 3)
            | bit_cast::<16, 3>(self.pci_function.val());
        self.transmitter.bus_master_enable.next = self.bus_master_enable.val();
        self.transmitter.stop.next = self.planner.resetting.val();
        self.transmitter.completion.next = self.registers.completion.val();
        self.transmitter.completion_filled.next = self.registers.completion_filled.val();
        self.registers.completion_pop.next = self.transmitter.completion_pop.val();
        self.transmitter.message.next = self.msix.message.val();
        self.transmitter.message_address.next = self.msix.message_address.val();
        self.transmitter.message_data.next = self.msix.message_data.val();
        self.transmitter.descriptor.next = self.planner.descriptor.val();
        self.transmitter.descriptor_filled.next = self.planner.descriptor_filled.val();
        self.transmitter.word.next = self.fetch.word.val();
        self.transmitter.word_filled.next = self.fetch.filled.val();
        self.transmitter.ready.next = self.tx_ready.val();
        self.tx_data.next = self.transmitter.data.val();
        self.tx_keep.next = self.transmitter.keep.val();
        self.tx_last.next = self.transmitter.last.val();
        self.tx_valid.next = self.transmitter.valid.val();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_connected_and_synthesizable() {
        let mut host = Host::<4, 12, 10>::new();
        host.connect_all();
        check_all(&host).unwrap();
        assert!(generate_verilog(&host).contains("module top"));
        let mut host = Host::<1, 9, 7>::new();
        host.connect_all();
        check_all(&host).unwrap();
    }
}
