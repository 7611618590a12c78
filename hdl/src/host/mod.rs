//! The PCIe side of the card: registers, drain of the ports' rings into host memory, interrupts.
//!
//! A packet from the host goes [`receiver`] → [`register_file`] → [`transmitter`]; a port's records go
//! [`drain`] → [`transmitter`], then the mailbox, then [`msix`].

use crate::prelude::*;
use std::array;

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
        pub tick: Signal<Out, bool>,
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
            settled: Default::default(),
        }
    }
}

impl<const P: usize, const A: usize, const H: usize> Logic for Host<P, A, H> {
    #[hdl_gen]
    fn update(&mut self) {
        self.rx_ready.next = false;
        self.tx_data.next = bits::<64>(0);
        self.tx_keep.next = bits::<8>(0);
        self.tx_last.next = false;
        self.tx_valid.next = false;
        for i in 0..P {
            self.ring_tail[i].next = bits::<H>(0);
        }
        self.ring_read_address.next = bits::<A>(0);
        for i in 0..P {
            self.watermark_request[i].next = false;
        }
        self.writes_open.next = false;
        self.time_enable.next = false;
        self.time_set_value.next = bits::<64>(0);
        self.time_set.next = false;
        self.stamp_floor.next = bits::<64>(0);
        self.stamp_floor_set.next = false;
        self.number_floor.next = bits::<64>(0);
        self.number_floor_set.next = false;
        self.hold.next = bits::<32>(0);
        self.retry.next = bits::<32>(0);
        self.unknown.next = bits::<32>(0);
        self.quarantine.next = bits::<32>(0);
        self.tick.next = false;
        self.function_reset.next = false;
        self.card_reset.next = false;
        self.volume_write.next = false;
        self.volume_write_index.next = bits::<4>(0);
        self.volume_write_word.next = bits::<32>(0);
        for i in 0..P {
            self.port_volumes[i].next = bits::<16>(0);
        }
        for i in 0..P {
            self.durable_number[i].next = bits::<64>(0);
        }
        self.counter_address.next = bits::<5>(0);
        self.source_address.next = bits::<3>(0);
    }
}
