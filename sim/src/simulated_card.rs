//! The card, simulated: the gateware stepped by RustHDL's kernel or by Verilator, frames on its ports, a target
//! behind its uplink, a PCIe root in front of it. It stands behind the driver's [`Card`] trait.
//!
//! Time is the card's: it runs while the driver waits or accesses a register, and stands still otherwise.
//! The same calls give the same cycles, so a run repeats exactly.

use crate::co_check::{CoCheck, Mismatch, Recorder, Trace};
use crate::pcie_root::{Beat, Event, Region, Root, RootError};
use crate::target::Target;
use crate::verilated_card::{self, VerilatedCard};
use crate::verilator::{Model, VerilatorError};
use crate::waveform::Waveform;
use crate::wire::{Outgoing, Receiver, Sender, Word};
use driver::{Card, CardError, DmaRegion, Interrupts};
use hdl::card::StandardCard;
use hdl::leaf_clock::increment_off_by;
use hdl::prelude::{bits, settle, Block};
use layout::registers::CORE_HZ;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Ports of the simulated card: the standard configuration.
pub const PORTS: usize = 4;
/// Half a core period, femtoseconds.
const HALF_CORE_FS: u64 = 500_000_000_000_000 / (CORE_HZ / 1000) / 1000;
/// Period of the time base's clock: 64/63 of the core's.
const TIME_FS: u64 = 2 * HALF_CORE_FS * 64 / 63;
/// Cycles that a register read may take before the card counts as gone.
const READ_LIMIT: u64 = 10_000;
/// Cycles between two looks whether a target elsewhere has answered.
const POLL_INTERVAL: u64 = 256;
/// Cycles between two looks at the leaf clocks' skew.
const SKEW_INTERVAL: u64 = 1024;

/// Where the card's BAR 0 lies.
const BAR0_ADDRESS: u64 = 0xD000_0000;
/// Bus 1, device 0, function 0: behind a root port.
const CARD_ID: u16 = 0x0100;
/// 256 bytes, what the drain is made for.
const MAX_PAYLOAD_CODE: u8 = 1;

/// Who steps the gateware. The card does the same in every cycle.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Simulator {
    /// RustHDL's kernel: there without further tools, and it can show every signal.
    #[default]
    RustHdl,
    /// Verilator's model of the generated Verilog: several times as fast once it is compiled.
    Verilator {
        /// Folder where the compiled model is kept.
        cache: PathBuf,
    },
}

/// How a simulated card is made.
#[derive(Clone, Debug)]
pub struct CardOptions {
    /// Error of each port's nominal frequency, ppm, within ±200.
    pub leaf_errors_ppm: [f64; PORTS],
    /// Core cycles per word on the ports' wires: 1 is 8 Gbit/s, 8 is 1 Gbit/s. The uplink takes and gives
    /// a word every cycle.
    pub cycles_per_word: u64,
    /// Who steps the gateware. A waveform or a check wants RustHDL's kernel.
    pub simulator: Simulator,
    /// Write a waveform of everything here. Slow, and large.
    pub vcd: Option<PathBuf>,
    /// Check every event against the Verilated card, compiled and kept in this folder.
    pub co_check: Option<PathBuf>,
    /// Record what happens at the card's ports, for replay on another simulator. Grows with every event.
    pub record: bool,
}

impl Default for CardOptions {
    fn default() -> Self {
        Self {
            leaf_errors_ppm: [97.0, -61.0, 13.0, -100.0],
            cycles_per_word: 1,
            simulator: Simulator::RustHdl,
            vcd: None,
            co_check: None,
            record: false,
        }
    }
}

/// What configuration space tells the gateware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Configured {
    /// DMA and messages may leave.
    pub bus_master: bool,
    /// MSI-X is on.
    pub msix_enable: bool,
    /// All vectors are masked.
    pub msix_mask: bool,
    /// Largest payload: 128 << code bytes.
    pub max_payload_code: u8,
}

/// A frame at the uplink, as a log of the wire holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UplinkFrame {
    /// Left the card; its place in the log is where its first word left.
    Left(Vec<u8>),
    /// Came from the target; its place in the log is where its last word came.
    Came(Vec<u8>),
}

/// A packet that the card sent to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Core cycle of its first beat.
    pub first: u64,
    /// Core cycle of its last beat.
    pub last: u64,
    /// What it did.
    pub event: Event,
}

/// An answer on its way back from the target.
type Flying = Reverse<(u64, u64, Vec<u8>)>;

/// A four-port card in a simulated machine.
pub struct SimulatedCard {
    /// The gateware; with Verilator only its ports.
    card: Box<StandardCard>,
    verilated: Option<VerilatedCard>,
    root: Root,
    messages: Vec<(u64, u32)>,
    target: Box<dyn Target>,
    senders: [Sender; PORTS],
    receivers: [Receiver; PORTS],
    returned: [VecDeque<Vec<u8>>; PORTS],
    uplink_sender: Sender,
    uplink_receiver: Receiver,
    uplink_incoming: Receiver,
    uplink_log: Option<Vec<UplinkFrame>>,
    uplink_left_at: Option<usize>,
    packets: Option<Vec<Packet>>,
    packet_began: Option<u64>,
    answers: BinaryHeap<Flying>,
    answers_made: u64,
    cycles: u64,
    next_time_edge: u64,
    worst_skew_ns: f64,
    waveform: Option<Waveform>,
    co_check: Option<CoCheck>,
    mismatch: Option<Mismatch>,
    recorder: Option<Recorder>,
    fault: Option<RootError>,
    fired: u64,
}

impl SimulatedCard {
    /// Ports of the card.
    pub const PORTS: usize = PORTS;

    /// A card after power-up, with `target` behind its uplink. Fails where the waveform can't be written or the
    /// Verilated card can't be had.
    pub fn new(options: CardOptions, target: Box<dyn Target>) -> io::Result<Self> {
        let mut card = Box::new(StandardCard::default());
        card.connect_all();
        for (nominal, ppm) in card.leaf_nominal.iter_mut().zip(options.leaf_errors_ppm) {
            nominal.next = bits(increment_off_by(ppm));
        }
        card.uplink_tx_ready.next = true;
        card.pcie_tx_ready.next = true;
        card.bus_master_enable.next = true;
        card.msix_enable.next = true;
        card.pci_bus.next = bits(CARD_ID as u64 >> 8);
        card.max_payload.next = bits(MAX_PAYLOAD_CODE as u64);
        for ready in card.port_tx_ready.iter_mut() {
            ready.next = true;
        }
        let verilated = match &options.simulator {
            Simulator::RustHdl => None,
            Simulator::Verilator { .. } if options.vcd.is_some() || options.co_check.is_some() => {
                let reason = "waveforms and checks of the card are made with RustHDL's kernel";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
            }
            Simulator::Verilator { cache } => {
                Some(VerilatedCard::new(&card, cache).map_err(io::Error::other)?)
            }
        };
        let waveform = options.vcd.as_deref().map(|path| Waveform::create(path, &*card)).transpose()?;
        let co_check = match &options.co_check {
            Some(cache) => Some(verilated_card::co_check(&card, cache).map_err(io::Error::other)?),
            None => None,
        };
        let recorder = options.record.then(|| Recorder::new(&*card));
        Ok(Self {
            card,
            verilated,
            root: Root::new(BAR0_ADDRESS, CARD_ID, MAX_PAYLOAD_CODE),
            messages: Vec::new(),
            target,
            senders: std::array::from_fn(|_| Sender::new(options.cycles_per_word)),
            receivers: Default::default(),
            returned: Default::default(),
            // A word every cycle.
            uplink_sender: Sender::new(1),
            uplink_receiver: Receiver::default(),
            uplink_incoming: Receiver::default(),
            uplink_log: None,
            uplink_left_at: None,
            packets: None,
            packet_began: None,
            answers: BinaryHeap::new(),
            answers_made: 0,
            cycles: 0,
            next_time_edge: TIME_FS,
            worst_skew_ns: 0.0,
            waveform,
            co_check,
            mismatch: None,
            recorder,
            fault: None,
            fired: 0,
        })
    }

    /// Queues a frame at `port`; frames follow each other with the gap that Ethernet has.
    pub fn offer(&mut self, port: usize, frame: Vec<u8>) {
        self.senders[port].push(Outgoing { bytes: frame, error: false });
    }

    /// Queues a frame that the MAC will call bad at its end.
    pub fn offer_bad(&mut self, port: usize, frame: Vec<u8>) {
        self.senders[port].push(Outgoing { bytes: frame, error: true });
    }

    /// Frames queued at `port` that aren't wholly on the wire.
    pub fn queued(&self, port: usize) -> usize {
        self.senders[port].queued()
    }

    /// The next frame that came out of `port`.
    pub fn returned(&mut self, port: usize) -> Option<Vec<u8>> {
        self.returned[port].pop_front()
    }

    /// Tells the gateware what its function was configured for.
    pub fn configure(&mut self, configured: &Configured) {
        let card = &mut self.card;
        card.bus_master_enable.next = configured.bus_master;
        card.msix_enable.next = configured.msix_enable;
        card.msix_mask.next = configured.msix_mask;
        card.max_payload.next = bits(u64::from(configured.max_payload_code));
        self.root.set_max_payload(configured.max_payload_code);
    }

    /// The root in front of the card.
    pub fn root_mut(&mut self) -> &mut Root {
        &mut self.root
    }

    /// What the card did that it mustn't, the first of it since the last look.
    pub fn take_fault(&mut self) -> Option<RootError> {
        self.fault.take()
    }

    /// One bit a vector whose message came since the last look.
    pub fn take_fired(&mut self) -> u64 {
        std::mem::take(&mut self.fired)
    }

    /// Core cycles since power-up.
    pub fn cycles(&self) -> u64 {
        self.cycles
    }

    /// The target.
    pub fn target(&self) -> &dyn Target {
        &*self.target
    }

    /// The target.
    pub fn target_mut(&mut self) -> &mut dyn Target {
        &mut *self.target
    }

    /// The largest difference between two locked leaf clocks that was seen, ns.
    pub fn worst_skew_ns(&self) -> f64 {
        self.worst_skew_ns
    }

    /// Frames that the card dropped on the way from the uplink because they were bad or found no room.
    pub fn uplink_drops(&self) -> u64 {
        match &self.verilated {
            Some(verilated) => verilated.uplink_drops(),
            None => self.card.uplink_drops.val().to_u64(),
        }
    }

    /// Keeps a log of the uplink from now on. It grows with every frame: for tests.
    pub fn log_uplink(&mut self) {
        self.uplink_log.get_or_insert_with(Vec::new);
    }

    /// The log of the uplink, empty unless asked for.
    pub fn uplink_log(&self) -> &[UplinkFrame] {
        self.uplink_log.as_deref().unwrap_or_default()
    }

    /// Keeps a log of the packets that the card sends to the host from now on. It grows: for tests.
    pub fn log_packets(&mut self) {
        self.packets.get_or_insert_with(Vec::new);
    }

    /// The log of packets, empty unless asked for.
    pub fn packets(&self) -> &[Packet] {
        self.packets.as_deref().unwrap_or_default()
    }

    /// Whether the card may write host memory (PCI command register, bus master enable); it may at power-up.
    pub fn set_bus_master(&mut self, enabled: bool) {
        self.card.bus_master_enable.next = enabled;
    }

    /// Lets `cycles` core cycles pass.
    pub fn run(&mut self, cycles: u64) {
        for _ in 0..cycles {
            self.cycle();
        }
    }

    /// One core cycle: inputs with the clock low, a look at the outputs, the edge.
    fn cycle(&mut self) {
        self.card.clock.next = false.into();
        self.card.time_clock.next = false.into();
        self.set_inputs();
        self.settle();
        self.sample_outputs();
        let edge = (2 * self.cycles + 1) * HALF_CORE_FS;
        // The time base's edges fall between the core's; where both would coincide the core's is first.
        if self.next_time_edge < edge {
            self.card.time_clock.next = true.into();
            self.settle();
            self.next_time_edge += TIME_FS;
        }
        self.card.clock.next = true.into();
        self.settle();
        self.cycles += 1;
        if self.cycles.is_multiple_of(SKEW_INTERVAL) {
            self.look_at_skew();
        }
        if let Some(waveform) = &mut self.waveform {
            if let Err(error) = waveform.change(self.cycles * 2 * HALF_CORE_FS / 1000, &mut *self.card) {
                eprintln!("the waveform ends at cycle {}: {error}", self.cycles);
                self.waveform = None;
            }
        }
    }

    /// Settles the card; that is an event, also for the Verilated one.
    fn settle(&mut self) {
        match &mut self.verilated {
            Some(verilated) => {
                verilated.settle(&mut self.card);
                // Otherwise outputs are shown only where they are looked at.
                if self.recorder.is_some() {
                    verilated.show(&mut self.card);
                }
            }
            None => settle(&mut *self.card),
        }
        if let Some(co_check) = &mut self.co_check {
            if let Err(mismatch) = co_check.event(&*self.card) {
                self.mismatch.get_or_insert(mismatch);
            }
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.event(&*self.card);
        }
    }

    /// What was recorded so far, if that was asked for.
    pub fn trace(&self) -> Option<&Trace> {
        self.recorder.as_ref().map(Recorder::trace)
    }

    /// The Verilated twin of the card, compiled and kept in `cache`, as at power-up.
    pub fn verilated(cache: &Path) -> Result<Model, VerilatorError> {
        let mut card = Box::new(StandardCard::default());
        card.connect_all();
        verilated_card::model(&card, cache)
    }

    /// Ends the check against the Verilated card: events and clock edges compared, or where they part.
    pub fn finish_co_check(&mut self) -> Option<Result<(u64, u64), Mismatch>> {
        let finished = self.co_check.take()?.finish();
        Some(self.mismatch.take().map_or(finished, Err))
    }

    fn set_inputs(&mut self) {
        for (port, sender) in self.senders.iter_mut().enumerate() {
            let word = sender.next_word(self.cycles);
            let card = &mut self.card;
            card.port_rx_valid[port].next = word.is_some();
            if let Some(word) = word {
                card.port_rx_data[port].next = bits(word.data);
                card.port_rx_keep[port].next = bits(word.keep as u64);
                card.port_rx_last[port].next = word.last;
                card.port_rx_error[port].next = word.error;
            }
        }
        if self.cycles.is_multiple_of(POLL_INTERVAL) {
            let mut answers = Vec::new();
            self.target.poll(self.cycles, &mut answers);
            let first = self.answers_made;
            self.answers_made += answers.len() as u64;
            self.answers.extend(flying(answers, self.cycles, first));
        }
        while self.answers.peek().is_some_and(|Reverse((due, _, _))| *due <= self.cycles) {
            if let Some(Reverse((_, _, bytes))) = self.answers.pop() {
                self.uplink_sender.push(Outgoing { bytes, error: false });
            }
        }
        let word = self.uplink_sender.next_word(self.cycles);
        self.card.uplink_rx_valid.next = word.is_some();
        if let Some(word) = word {
            if let Some(log) = &mut self.uplink_log {
                log.extend(self.uplink_incoming.word(word).map(UplinkFrame::Came));
            }
            self.card.uplink_rx_data.next = bits(word.data);
            self.card.uplink_rx_keep.next = bits(word.keep as u64);
            self.card.uplink_rx_last.next = word.last;
            self.card.uplink_rx_error.next = word.error;
        }
        let beat = self.root.rx_beat();
        self.card.pcie_rx_valid.next = beat.is_some();
        if let Some(beat) = beat {
            self.card.pcie_rx_data.next = bits(beat.data);
            self.card.pcie_rx_keep.next = bits(beat.keep as u64);
            self.card.pcie_rx_last.next = beat.last;
        }
    }

    fn sample_outputs(&mut self) {
        if let Some(verilated) = &mut self.verilated {
            verilated.show(&mut self.card);
        }
        let card = &self.card;
        for port in 0..PORTS {
            if card.port_tx_valid[port].val() {
                let word = Word {
                    data: card.port_tx_data[port].val().to_u64(),
                    keep: card.port_tx_keep[port].val().to_u64() as u8,
                    last: card.port_tx_last[port].val(),
                    error: false,
                };
                if let Some(frame) = self.receivers[port].word(word) {
                    self.returned[port].push_back(frame);
                }
            }
        }
        if card.uplink_tx_valid.val() {
            let word = Word {
                data: card.uplink_tx_data.val().to_u64(),
                keep: card.uplink_tx_keep.val().to_u64() as u8,
                last: card.uplink_tx_last.val(),
                error: false,
            };
            let logged = self.uplink_log.as_ref().map(Vec::len);
            let began_at = *self.uplink_left_at.get_or_insert(logged.unwrap_or(0));
            if let Some(frame) = self.uplink_receiver.word(word) {
                self.uplink_left_at = None;
                if let Some(log) = &mut self.uplink_log {
                    log.insert(began_at, UplinkFrame::Left(frame.clone()));
                }
                let mut answers = Vec::new();
                self.target.frame(&frame, self.cycles, &mut answers);
                let first = self.answers_made;
                self.answers_made += answers.len() as u64;
                self.answers.extend(flying(answers, self.cycles, first));
            }
        }
        if card.pcie_rx_valid.val() && card.pcie_rx_ready.val() {
            self.root.rx_taken();
        }
        if card.pcie_tx_valid.val() {
            let beat = Beat {
                data: card.pcie_tx_data.val().to_u64(),
                keep: card.pcie_tx_keep.val().to_u64() as u8,
                last: card.pcie_tx_last.val(),
            };
            let first = *self.packet_began.get_or_insert(self.cycles);
            let taken = self.root.take_tx(beat);
            if beat.last {
                self.packet_began = None;
            }
            if let (Some(packets), Ok(Some(event))) = (&mut self.packets, &taken) {
                packets.push(Packet { first, last: self.cycles, event: *event });
            }
            // The first fault is what matters; what comes after it may be its consequence.
            match taken {
                Ok(Some(Event::Message(_))) => {
                    for vector in self.root.take_messages() {
                        self.fired |= 1 << vector;
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    self.fault.get_or_insert(error);
                }
            }
        }
    }

    fn look_at_skew(&mut self) {
        let time = |port| match &self.verilated {
            Some(verilated) => verilated.leaf_exact(port),
            None => self.card.leaf_exact(port),
        };
        let times: Vec<u128> = (0..PORTS).filter_map(time).collect();
        if let (Some(least), Some(most)) = (times.iter().min(), times.iter().max()) {
            // Fractions of 2^-32 ns.
            let skew = (most - least) as f64 / 4_294_967_296.0;
            self.worst_skew_ns = self.worst_skew_ns.max(skew);
        }
    }

    fn check_fault(&mut self) -> Result<(), CardError> {
        match self.fault.take() {
            None => Ok(()),
            Some(RootError::Fault { address, bytes }) => Err(CardError::Fault { address, bytes }),
            Some(other) => Err(CardError::Gone(other.to_string())),
        }
    }
}

/// A target's answers on their way back, from cycle `now` on; `first` is the number of the first of them.
fn flying(answers: Vec<(u64, Vec<u8>)>, now: u64, first: u64) -> impl Iterator<Item = Flying> {
    (first..).zip(answers).map(move |(number, (delay, answer))| Reverse((now + delay, number, answer)))
}

fn root_region(region: &DmaRegion) -> Region {
    Region { id: region.id, address: region.bus_address, bytes: region.bytes }
}

impl Card for SimulatedCard {
    fn read(&mut self, offset: u32) -> Result<u32, CardError> {
        let tag = self.root.queue_read(offset);
        for _ in 0..READ_LIMIT {
            self.cycle();
            if let Some(answer) = self.root.completion(tag) {
                self.check_fault()?;
                return answer.map_err(|reason| CardError::Register { offset, reason: reason.to_string() });
            }
        }
        Err(CardError::Gone(format!("no completion of a read at {offset:#06x} in {READ_LIMIT} cycles")))
    }

    fn write(&mut self, offset: u32, value: u32) -> Result<(), CardError> {
        self.root.queue_write(offset, value);
        self.check_fault()
    }

    fn map_dma(&mut self, bytes: usize) -> Result<DmaRegion, CardError> {
        let region = self.root.map(bytes);
        Ok(DmaRegion { id: region.id, bus_address: region.address, bytes: region.bytes })
    }

    fn unmap_dma(&mut self, region: DmaRegion) -> Result<(), CardError> {
        if self.root.unmap(root_region(&region)) {
            return Ok(());
        }
        Err(CardError::Map { bytes: region.bytes, reason: "the region isn't mapped".into() })
    }

    fn dma_bytes(&self, region: &DmaRegion) -> &[u8] {
        self.root.memory(&root_region(region))
    }

    fn dma_load(&self, region: &DmaRegion, offset: usize) -> u64 {
        // All ones is what a card that is gone reads as; the driver looks for it.
        self.root.load(&root_region(region), offset).unwrap_or(u64::MAX)
    }

    fn msix_message(&mut self, vector: usize) -> Option<(u64, u32)> {
        while self.messages.len() <= vector && vector < PORTS {
            self.messages.push(self.root.add_message());
        }
        self.messages.get(vector).copied()
    }

    fn wait(&mut self, timeout: Duration) -> Result<Interrupts, CardError> {
        let limit = (timeout.as_nanos() * CORE_HZ as u128 / 1_000_000_000).max(1) as u64;
        for _ in 0..limit {
            if self.fired != 0 {
                break;
            }
            self.cycle();
        }
        self.check_fault()?;
        Ok(Interrupts(std::mem::take(&mut self.fired)))
    }
}
