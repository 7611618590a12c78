//! The card, Verilated: the same ports as RustHDL's, with Verilator's model of the generated Verilog inside.
//!
//! Whoever drives a [`StandardCard`] sets its inputs and reads its outputs as ever. In place of RustHDL's
//! `settle`, [`VerilatedCard::settle`] hands the model the inputs that changed, and
//! [`VerilatedCard::show`] hands back the outputs: so there is one simulated machine, and it doesn't know
//! who steps the gateware in it.

use crate::co_check::CoCheck;
use crate::simulated_card::PORTS;
use crate::verilator::{ports_of, Model, Port, Probe, VerilatorError, Wrapping};
use hdl::block_ports::Direction;
use hdl::card::StandardCard;
use hdl::prelude::{Bits, Block, Clock, In, Out, Signal, Synth};
use std::path::Path;

/// A value of a port of the card.
trait Number: Synth {
    fn number(self) -> u64;
    fn of(number: u64) -> Self;
}

impl Number for bool {
    #[inline(always)]
    fn number(self) -> u64 {
        self as u64
    }
    #[inline(always)]
    fn of(number: u64) -> Self {
        number != 0
    }
}

impl Number for Clock {
    #[inline(always)]
    fn number(self) -> u64 {
        self.clk as u64
    }
    #[inline(always)]
    fn of(number: u64) -> Self {
        Clock { clk: number != 0 }
    }
}

impl<const N: usize> Number for Bits<N> {
    #[inline(always)]
    fn number(self) -> u64 {
        const { assert!(N <= 64, "a port of the card has up to 64 bits") };
        self.to_u64()
    }
    #[inline(always)]
    fn of(number: u64) -> Self {
        Bits::wrap(number as u128)
    }
}

/// A port, or an array of them, in the order in which [`Model`] numbers them.
trait Wire {
    /// Gives `model` the values that changed; `port` is the number of the first, and then of the next wire.
    fn give(&mut self, port: &mut usize, model: &mut Model);
    /// Takes the values of outputs; `word` is the place of the first, and then of the next wire's.
    fn take(&mut self, word: &mut usize, words: &[u64]);
}

impl<T: Number> Wire for Signal<In, T> {
    #[inline(always)]
    fn give(&mut self, port: &mut usize, model: &mut Model) {
        if self.next != self.val() {
            model.put(*port, self.next.number());
            self.update_all();
        }
        *port += 1;
    }
    #[inline(always)]
    fn take(&mut self, _: &mut usize, _: &[u64]) {}
}

impl<T: Number> Wire for Signal<Out, T> {
    #[inline(always)]
    fn give(&mut self, port: &mut usize, _: &mut Model) {
        *port += 1;
    }
    #[inline(always)]
    fn take(&mut self, word: &mut usize, words: &[u64]) {
        self.next = T::of(words[*word]);
        self.update_all();
        *word += 1;
    }
}

impl<W: Wire, const N: usize> Wire for [W; N] {
    #[inline(always)]
    fn give(&mut self, port: &mut usize, model: &mut Model) {
        self.iter_mut().for_each(|wire| wire.give(port, model));
    }
    #[inline(always)]
    fn take(&mut self, word: &mut usize, words: &[u64]) {
        self.iter_mut().for_each(|wire| wire.take(word, words));
    }
}

/// Writes the functions that go through all ports of the card. The list is checked against the card itself
/// when a Verilated card is made.
macro_rules! wires {
    ($($name:ident),+ $(,)?) => {
        /// Names of the ports listed, without numbers.
        const LISTED: &[&str] = &[$(stringify!($name)),+];

        fn give(card: &mut StandardCard, model: &mut Model) {
            let mut port = 0;
            $(card.$name.give(&mut port, model);)+
        }

        fn take(card: &mut StandardCard, words: &[u64]) {
            let mut word = 0;
            $(card.$name.take(&mut word, words);)+
        }
    };
}

wires! {
    clock, time_clock, port_rx_data, port_rx_keep, port_rx_last, port_rx_error, port_rx_valid, port_tx_data,
    port_tx_keep, port_tx_last, port_tx_valid, port_tx_ready, uplink_rx_data, uplink_rx_keep, uplink_rx_last,
    uplink_rx_error, uplink_rx_valid, uplink_tx_data, uplink_tx_keep, uplink_tx_last, uplink_tx_valid,
    uplink_tx_ready, pcie_rx_data, pcie_rx_keep, pcie_rx_last, pcie_rx_valid, pcie_rx_ready, pcie_tx_data,
    pcie_tx_keep, pcie_tx_last, pcie_tx_valid, pcie_tx_ready, pci_bus, pci_device, pci_function, max_payload,
    bus_master_enable, msix_enable, msix_mask, leaf_nominal, port_drops, uplink_drops,
}

/// Signals of each port's leaf clock that the skew is told from: whether it is locked, and its time.
fn probes() -> Vec<Probe> {
    let of_port = |port| {
        [("locked", 1), ("now$q", 96)]
            .map(|(signal, bits)| Probe { path: format!("clocks${port}.leaf.{signal}"), bits })
    };
    (0..PORTS).flat_map(of_port).collect()
}

/// The names of the card's ports in order, without numbers, each once.
fn names(card: &StandardCard) -> Vec<String> {
    let mut names: Vec<String> = ports_of(card)
        .iter()
        .map(|port| port.name.split('$').next().unwrap_or_default().to_owned())
        .collect();
    names.dedup();
    names
}

/// Inputs that change together: those of each wire; and what is as good as constant.
fn groups(ports: &[Port]) -> Vec<Vec<usize>> {
    let mut groups = vec![Vec::new(); PORTS + 3];
    for (number, Port { name, direction, .. }) in ports.iter().enumerate() {
        if *direction == Direction::Out || name.contains("clock") {
            continue;
        }
        let group = match name.split_once('$') {
            Some((wire, port)) if wire.starts_with("port_rx") => port.parse().expect("the number of a port"),
            None if name.starts_with("uplink_rx") => PORTS,
            None if name.starts_with("pcie_rx") => PORTS + 1,
            _ => PORTS + 2,
        };
        groups[group].push(number);
    }
    groups
}

/// The model of `card`, which must be connected, with the probes that a [`VerilatedCard`] looks at. Everyone
/// who wants a Verilated card takes this one, so that it is compiled once.
pub fn model(card: &StandardCard, cache: &Path) -> Result<Model, VerilatorError> {
    Model::wrapped(card, &Wrapping { probes: probes(), groups: groups(&ports_of(card)) }, cache)
}

/// A check of `card`, which must be connected and as at power-up, by that model.
pub fn co_check(card: &StandardCard, cache: &Path) -> Result<CoCheck, VerilatorError> {
    Ok(CoCheck::with_model(card, model(card, cache)?))
}

/// Verilator's model, stepped in a card's place.
pub struct VerilatedCard {
    model: Model,
    words: Vec<u64>,
    uplink_drops: usize,
    first_probe: usize,
}

impl VerilatedCard {
    /// The model of `card`, which must be connected; nobody else may settle the card from then on. It is built
    /// if `cache` doesn't have it.
    pub fn new(card: &StandardCard, cache: &Path) -> Result<Self, VerilatorError> {
        assert_eq!(names(card), LISTED, "the list of the card's ports in {} is another", file!());
        let model = model(card, cache)?;
        let uplink_drops = model.port("uplink_drops").expect("it is in the list");
        let words = vec![0; model.output_words()];
        Ok(Self { first_probe: ports_of(card).len(), uplink_drops, words, model })
    }

    /// Lets everything settle that follows from the inputs as they are set. Inputs other than clocks may not change
    /// together with a rising clock.
    #[inline(always)]
    pub fn settle(&mut self, card: &mut StandardCard) {
        give(card, &mut self.model);
        self.model.eval();
    }

    /// Makes the outputs those of the card.
    #[inline(always)]
    pub fn show(&mut self, card: &mut StandardCard) {
        self.model.outputs(&mut self.words);
        take(card, &self.words);
    }

    /// What `uplink_drops` is now, whether shown or not.
    pub fn uplink_drops(&self) -> u64 {
        self.model.get(self.uplink_drops) as u64
    }

    /// [`hdl::card::Card::leaf_exact`].
    pub fn leaf_exact(&self, port: usize) -> Option<u128> {
        let locked = self.first_probe + 2 * port;
        debug_assert_eq!(self.model.ports()[locked].direction, Direction::Out);
        (self.model.get(locked) == 1).then(|| self.model.get(locked + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_of_the_card_is_listed() {
        assert_eq!(names(&StandardCard::default()), LISTED);
    }
}
