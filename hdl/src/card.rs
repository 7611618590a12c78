//! The card: ports, switch, time, host.
//!
//! `P` ports, rings of 2^`A` 64-bit words (`H` = `A` − 2 bits count their lines), buffers of 2^`B` words.

use crate::arbiter::Arbiter;
use crate::host::tick::Ticker;
use crate::host::Host;
use crate::interlock::Interlock;
use crate::mac_table::MacTable;
use crate::port::Port;
use crate::port_clock::PortClock;
use crate::prelude::*;
use crate::return_path::ReturnPath;
use crate::time_base::TimeBase;
use crate::uplink::Uplink;
use layout::aoe::MAXIMUM_SECTORS;
use layout::port_ring;

logic_block! {
    /// The top. Streams as DESIGN §5 has them: 64-bit data with byte 0 in lane 0, keep, last, valid,
    /// ready; what comes from a MAC has an error flag and no ready.
    pub struct Card<const P: usize, const A: usize, const H: usize, const B: usize> {
        /// Core clock, 125 MHz.
        pub clock: Signal<In, Clock>,
        /// Clock of the time base, 125 MHz · 63/64.
        pub time_clock: Signal<In, Clock>,
        /// From the sources.
        pub port_rx_data: [Signal<In, Bits<64>>; P],
        /// Valid bytes.
        pub port_rx_keep: [Signal<In, Bits<8>>; P],
        /// Last word.
        pub port_rx_last: [Signal<In, bool>; P],
        /// With the last word: the frame is bad.
        pub port_rx_error: [Signal<In, bool>; P],
        /// A word is there.
        pub port_rx_valid: [Signal<In, bool>; P],
        /// To the sources.
        pub port_tx_data: [Signal<Out, Bits<64>>; P],
        /// Valid bytes.
        pub port_tx_keep: [Signal<Out, Bits<8>>; P],
        /// Last word.
        pub port_tx_last: [Signal<Out, bool>; P],
        /// A word is there.
        pub port_tx_valid: [Signal<Out, bool>; P],
        /// It is taken.
        pub port_tx_ready: [Signal<In, bool>; P],
        /// From the target.
        pub uplink_rx_data: Signal<In, Bits<64>>,
        /// Valid bytes.
        pub uplink_rx_keep: Signal<In, Bits<8>>,
        /// Last word.
        pub uplink_rx_last: Signal<In, bool>,
        /// With the last word: the frame is bad.
        pub uplink_rx_error: Signal<In, bool>,
        /// A word is there.
        pub uplink_rx_valid: Signal<In, bool>,
        /// To the target.
        pub uplink_tx_data: Signal<Out, Bits<64>>,
        /// Valid bytes.
        pub uplink_tx_keep: Signal<Out, Bits<8>>,
        /// Last word.
        pub uplink_tx_last: Signal<Out, bool>,
        /// A word is there.
        pub uplink_tx_valid: Signal<Out, bool>,
        /// It is taken.
        pub uplink_tx_ready: Signal<In, bool>,
        /// TLPs from the host: `layout::pcie`.
        pub pcie_rx_data: Signal<In, Bits<64>>,
        /// 0xFF, or 0x0F with one DW.
        pub pcie_rx_keep: Signal<In, Bits<8>>,
        /// Last beat.
        pub pcie_rx_last: Signal<In, bool>,
        /// A beat is there.
        pub pcie_rx_valid: Signal<In, bool>,
        /// It is taken.
        pub pcie_rx_ready: Signal<Out, bool>,
        /// TLPs to the host.
        pub pcie_tx_data: Signal<Out, Bits<64>>,
        /// 0xFF, or 0x0F with one DW.
        pub pcie_tx_keep: Signal<Out, Bits<8>>,
        /// Last beat.
        pub pcie_tx_last: Signal<Out, bool>,
        /// A beat is there.
        pub pcie_tx_valid: Signal<Out, bool>,
        /// It is taken.
        pub pcie_tx_ready: Signal<In, bool>,
        /// Bus number.
        pub pci_bus: Signal<In, Bits<8>>,
        /// Device number.
        pub pci_device: Signal<In, Bits<5>>,
        /// Function number.
        pub pci_function: Signal<In, Bits<3>>,
        /// 128 << code bytes.
        pub max_payload: Signal<In, Bits<3>>,
        /// DMA may leave.
        pub bus_master_enable: Signal<In, bool>,
        /// MSI-X is on.
        pub msix_enable: Signal<In, bool>,
        /// All vectors masked.
        pub msix_mask: Signal<In, bool>,
        /// What each leaf clock takes its period for at first, 8.32 ns; a board ties it to 8 ns, a
        /// simulation gives each port its own error.
        pub leaf_nominal: [Signal<In, Bits<40>>; P],
        /// Frames dropped on each port, whatever the reason.
        pub port_drops: [Signal<Out, Bits<32>>; P],
        /// Frames from the uplink that were bad or found no room.
        pub uplink_drops: Signal<Out, Bits<32>>,
        ports: [Port<A, H, B>; P],
        clocks: [PortClock; P],
        time_base: TimeBase,
        interlock: Interlock<P>,
        arbiter: Arbiter<P>,
        uplink: Uplink<P>,
        return_path: ReturnPath<P, B>,
        macs: MacTable<P>,
        host: Host<P, A, H>,
        ticker: Ticker,
        ticks: Dff<Bits<32>>,
        set_toggle: Dff<bool>,
        set_time: Dff<Bits<64>>,
        now_sampled: Dff<Bits<64>>,
        uplink_dropped: Dff<Bits<32>>,
        ticks_next: Signal<Local, Bits<32>>,
        dropped_next: Signal<Local, Bits<32>>,
        rate: Fixed<40, { crate::time_base::TIME_INCREMENT }>,
    }
}

block_default! {
    Card<P, A, H, B> {
        clock, time_clock, uplink_rx_data, uplink_rx_keep, uplink_rx_last, uplink_rx_error, uplink_rx_valid,
        uplink_tx_data, uplink_tx_keep, uplink_tx_last, uplink_tx_valid, uplink_tx_ready, pcie_rx_data,
        pcie_rx_keep, pcie_rx_last, pcie_rx_valid, pcie_rx_ready, pcie_tx_data, pcie_tx_keep, pcie_tx_last,
        pcie_tx_valid, pcie_tx_ready, pci_bus, pci_device, pci_function, max_payload, bus_master_enable,
        msix_enable, msix_mask, uplink_drops, time_base, interlock, arbiter, uplink, return_path, macs,
        ticker,
        ticks, set_toggle, set_time, now_sampled, uplink_dropped, ticks_next, dropped_next, rate,
    }
    arrays {
        port_rx_data, port_rx_keep, port_rx_last, port_rx_error, port_rx_valid, port_tx_data, port_tx_keep,
        port_tx_last, port_tx_valid, port_tx_ready, leaf_nominal, port_drops, ports, clocks,
    }
    with { host: Host::new() }
}

impl<const P: usize, const A: usize, const H: usize, const B: usize> Logic for Card<P, A, H, B> {
    #[hdl_gen]
    fn update(&mut self) {
        clock!(self, clock, interlock, arbiter, uplink, return_path, macs, host, ticker);
        dff_setup!(self, clock, ticks, set_toggle, set_time, now_sampled, uplink_dropped);

        // Time.
        self.time_base.clock.next = self.time_clock.val();
        self.time_base.enable.next = self.host.time_enable.val();
        self.time_base.rate.next = self.rate.val();
        self.time_base.set_toggle.next = self.set_toggle.q.val();
        self.time_base.set_time.next = self.set_time.q.val();
        if self.host.time_set.val() {
            self.set_toggle.d.next = !self.set_toggle.q.val();
            self.set_time.d.next = self.host.time_set_value.val();
        }
        self.ticks_next.next = self.ticks.q.val() + 1;
        if self.ticker.tick.val() {
            self.ticks.d.next = self.ticks_next.val();
            // For display only, so that a torn value may be seen: the host reads it twice.
            self.now_sampled.d.next = self.time_base.now_ns.val();
        }
        self.host.time_now.next = self.now_sampled.q.val();

        // PCIe.
        self.host.rx_data.next = self.pcie_rx_data.val();
        self.host.rx_keep.next = self.pcie_rx_keep.val();
        self.host.rx_last.next = self.pcie_rx_last.val();
        self.host.rx_valid.next = self.pcie_rx_valid.val();
        self.pcie_rx_ready.next = self.host.rx_ready.val();
        self.pcie_tx_data.next = self.host.tx_data.val();
        self.pcie_tx_keep.next = self.host.tx_keep.val();
        self.pcie_tx_last.next = self.host.tx_last.val();
        self.pcie_tx_valid.next = self.host.tx_valid.val();
        self.host.tx_ready.next = self.pcie_tx_ready.val();
        self.host.pci_bus.next = self.pci_bus.val();
        self.host.pci_device.next = self.pci_device.val();
        self.host.pci_function.next = self.pci_function.val();
        self.host.max_payload.next = self.max_payload.val();
        self.host.bus_master_enable.next = self.bus_master_enable.val();
        self.host.msix_enable.next = self.msix_enable.val();
        self.host.msix_mask.next = self.msix_mask.val();
        self.host.last_stamp.next = self.arbiter.last_stamp.val();
        self.host.last_number.next = self.arbiter.last_number.val();
        self.host.commit.next = false;
        self.host.tick.next = self.ticker.tick.val();

        // Switch.
        self.arbiter.frame_done.next = self.uplink.frame_done.val();
        self.arbiter.stamp_floor.next = self.host.stamp_floor.val();
        self.arbiter.stamp_floor_set.next = self.host.stamp_floor_set.val();
        self.arbiter.number_floor.next = self.host.number_floor.val();
        self.arbiter.number_floor_set.next = self.host.number_floor_set.val();
        self.uplink.owner.next = self.arbiter.owner.val();
        self.uplink.busy.next = self.arbiter.busy.val();
        self.uplink_tx_data.next = self.uplink.tx_data.val();
        self.uplink_tx_keep.next = self.uplink.tx_keep.val();
        self.uplink_tx_last.next = self.uplink.tx_last.val();
        self.uplink_tx_valid.next = self.uplink.tx_valid.val();
        self.uplink.tx_ready.next = self.uplink_tx_ready.val();
        self.return_path.rx_data.next = self.uplink_rx_data.val();
        self.return_path.rx_keep.next = self.uplink_rx_keep.val();
        self.return_path.rx_last.next = self.uplink_rx_last.val();
        self.return_path.rx_error.next = self.uplink_rx_error.val();
        self.return_path.rx_valid.next = self.uplink_rx_valid.val();
        self.macs.look_up.next = self.return_path.look_up.val();
        self.macs.look_up_mac.next = self.return_path.look_up_mac.val();
        self.return_path.found.next = self.macs.found.val();
        self.return_path.found_port.next = self.macs.found_port.val();
        self.return_path.missed.next = self.macs.missed.val();
        self.return_path.table_changed.next = self.macs.changed.val();
        self.dropped_next.next = self.uplink_dropped.q.val() + 1;
        if self.return_path.dropped.val() {
            self.uplink_dropped.d.next = self.dropped_next.val();
        }
        self.uplink_drops.next = self.uplink_dropped.q.val();

        // Ports.
        for i in 0..P {
            self.clocks[i].clock.next = self.clock.val();
            self.clocks[i].broadcast_toggle.next = self.time_base.broadcast_toggle.val();
            self.clocks[i].broadcast_time.next = self.time_base.broadcast_time.val();
            self.clocks[i].broadcast_increment.next = self.time_base.broadcast_increment.val();
            self.clocks[i].broadcast_epoch.next = self.time_base.broadcast_epoch.val();
            self.clocks[i].nominal.next = self.leaf_nominal[i].val();
            self.clocks[i].tick.next = self.ticker.tick.val();
            self.clocks[i].sample.next = self.ports[i].sampling.val();
            self.host.leaf_time[i].next = self.clocks[i].shown_time.val();
            self.host.leaf_phase[i].next = self.clocks[i].shown_phase.val();
            self.host.leaf_locked[i].next = self.clocks[i].shown_locked.val();
            self.host.leaf_holdover[i].next = self.clocks[i].shown_holdover.val();

            self.ports[i].clock.next = self.clock.val();
            self.ports[i].port.next = i.to_bits::<8>();
            self.ports[i].rx_data.next = self.port_rx_data[i].val();
            self.ports[i].rx_keep.next = self.port_rx_keep[i].val();
            self.ports[i].rx_last.next = self.port_rx_last[i].val();
            self.ports[i].rx_error.next = self.port_rx_error[i].val();
            self.ports[i].rx_valid.next = self.port_rx_valid[i].val();
            self.port_tx_data[i].next = self.ports[i].tx_data.val();
            self.port_tx_keep[i].next = self.ports[i].tx_keep.val();
            self.port_tx_last[i].next = self.ports[i].tx_last.val();
            self.port_tx_valid[i].next = self.ports[i].tx_valid.val();
            self.ports[i].tx_ready.next = self.port_tx_ready[i].val();
            self.port_drops[i].next = self.ports[i].drops.val();
            self.ports[i].ticks.next = self.ticks.q.val();
            self.ports[i].hold.next = self.host.hold.val();
            self.ports[i].unknown.next = self.host.unknown.val();
            self.ports[i].retry.next = self.host.retry.val();
            self.ports[i].durable.next = self.host.durable_number[i].val();
            self.ports[i].cancel.next = self.host.function_reset.val();
            self.ports[i].quarantine.next = self.host.quarantine.val();
            self.ports[i].writes_open.next = self.host.writes_open.val();
            self.ports[i].allowed.next = self.host.port_volumes[i].val();
            self.ports[i].volume_write.next = self.host.volume_write.val();
            self.ports[i].volume_write_index.next = self.host.volume_write_index.val();
            self.ports[i].volume_write_word.next = self.host.volume_write_word.val();

            self.interlock.waiting[i].next = self.ports[i].waiting.val();
            self.interlock.head[i].next = self.ports[i].head.val();
            self.ports[i].clear.next = self.interlock.clear[i].val();
            self.ports[i].copy.next = self.interlock.copy[i].val();
            self.ports[i].copy_slot.next = self.interlock.copy_slot[i].val();
            self.ports[i].barred.next = self.interlock.barred[i].val();
            self.interlock.head_dropped[i].next = self.ports[i].head_dropped.val();
            self.interlock.admit[i].next = self.ports[i].admit.val();
            self.interlock.admit_slot[i].next = self.ports[i].slot.val();
            self.interlock.free[i].next = self.ports[i].free.val();
            self.interlock.quarantine[i].next = self.ports[i].declared.val();
            self.interlock.changed_slot[i].next = self.ports[i].changed_slot.val();

            self.arbiter.write_request[i].next = self.ports[i].write_request.val();
            self.arbiter.pass_request[i].next = self.ports[i].pass_request.val();
            self.arbiter.stamp_request[i].next = self.ports[i].stamp_request.val();
            self.arbiter.stamp_entry[i].next = self.ports[i].stamp_entry.val();
            self.arbiter.leaf_time[i].next = self.clocks[i].sampled_time.val();
            self.ports[i].write_grant.next = self.arbiter.write_grant[i].val();
            self.ports[i].pass_grant.next = self.arbiter.pass_grant[i].val();
            self.ports[i].stamp_grant.next = self.arbiter.stamp_grant[i].val();
            self.ports[i].stamp.next = self.arbiter.stamp.val();
            self.ports[i].stamp_logical.next = self.arbiter.logical.val();
            self.ports[i].number.next = self.arbiter.number.val();
            self.ports[i].clock_state.next = self.clocks[i].sampled_state.val();

            self.uplink.word[i].next = self.ports[i].word.val();
            self.uplink.valid[i].next = self.ports[i].word_valid.val();
            self.ports[i].word_take.next = self.uplink.take[i].val();
            self.ports[i].back_word.next = self.return_path.word.val();
            self.ports[i].back_valid.next = self.return_path.valid[i].val();
            self.ports[i].back_lost.next = self.return_path.lost[i].val();
            self.ports[i].answer.next = self.return_path.answer[i].val();
            self.ports[i].answer_key.next = self.return_path.answer_key.val();
            self.ports[i].answer_info.next = self.return_path.answer_info.val();
            self.ports[i].own.next = self.return_path.own[i].val();
            self.return_path.own_take[i].next = self.ports[i].own_take.val();
            self.return_path.answers_full[i].next = self.ports[i].answers_full.val();
            self.macs.learn[i].next = self.ports[i].learn.val();
            self.macs.learn_mac[i].next = self.ports[i].learn_mac.val();
            self.ports[i].learned.next = self.macs.learned[i].val();

            self.ports[i].watermark_request.next = self.host.watermark_request[i].val();
            self.host.watermark_done[i].next = self.ports[i].watermark_done.val();
            if self.ports[i].committed.val() {
                self.host.commit.next = true;
            }
            self.host.ring_head[i].next = self.ports[i].ring_head.val();
            self.ports[i].ring_tail.next = self.host.ring_tail[i].val();
            self.ports[i].ring_read_address.next = self.host.ring_read_address.val();
            self.host.ring_read_data[i].next = self.ports[i].ring_read_data.val();
            self.host.in_flight[i].next = self.ports[i].in_flight.val();
            self.ports[i].counter_address.next = self.host.counter_address.val();
            self.host.counter_data[i].next = self.ports[i].counter_data.val();
            self.ports[i].source_address.next = self.host.source_address.val();
            self.host.source_data[i].next = self.ports[i].source_data.val();
        }
    }
}

impl<const P: usize, const A: usize, const H: usize, const B: usize> Card<P, A, H, B> {
    /// The leaf clock of `port` in units of 2^-32 ns, while it is locked. For tests and displays.
    pub fn leaf_exact(&self, port: usize) -> Option<u128> {
        self.clocks[port].exact()
    }
}

/// The standard configuration: four ports, rings of 64 KiB, which both images of a write need, buffers of 16 KiB.
pub type StandardCard = Card<4, 13, 11, 11>;
const _: () = assert!(port_ring::check(8 << 13, MAXIMUM_SECTORS, 2).is_ok());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_synthesizable() {
        let mut card = StandardCard::default();
        card.connect_all();
        check_all(&card).unwrap();
        let verilog = generate_verilog(&card);
        assert!(verilog.contains("module top(") || verilog.contains("module top "));
    }

    #[test]
    fn a_ring_without_room_for_two_of_the_largest_entries_makes_no_card() {
        let refused = std::panic::catch_unwind(Card::<1, 11, 9, 11>::default).map(|_| ()).unwrap_err();
        let text = refused.downcast_ref::<String>().expect("a reason");
        assert!(text.contains("rings of 16384 bytes") && text.contains("so rings of 32 KiB"), "{text}");
    }
}
