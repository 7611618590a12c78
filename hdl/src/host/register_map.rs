//! Which word is what: `layout::registers` as a ROM.
//!
//! The register file keeps what the host can write in one RAM of 32-bit words. Word addresses:
//! 0..128 the card's registers, 128..256 sixteen words of each port, 256..288 the MSI-X table. The
//! upper half of a written 64-bit register waits for the lower one at its word address | 0x140 (card)
//! or | 0x100 (port).

use crate::block::Part;
use crate::value::Bits;
use layout::registers::{global, port, Access, Register, MAXIMUM_PORTS, VOLUMES};
use rust_hdl::prelude::{Block, Clock, In, Logic, Out, Probe, Signal, Synth, TimingInfo, Verilog};

/// Words.
pub const WORDS: usize = 512;
/// First word of the ports.
pub const PORT_WORDS: usize = 128;
/// First word of the MSI-X table.
pub const TABLE_WORDS: usize = 256;
/// A word that is no register's and never will be.
pub const NOTHING: usize = 319;
/// First word where upper halves wait.
pub const WAITING_WORDS: usize = 320;
/// Bit: the RAM holds the word. Its value after reset is in bits 31:0.
pub const STORED: u32 = 32;
/// Bit: the host may write it.
pub const WRITABLE: u32 = 33;
/// Bit: lower half of a 64-bit register.
pub const LOW: u32 = 34;
/// Bit: upper half of one.
pub const HIGH: u32 = 35;
/// Bit: function reset resets it.
pub const FUNCTION: u32 = 36;

/// Word address of a register of the card.
pub const fn global_word(offset: u32) -> usize {
    (offset / 4) as usize
}

/// Word address of a register of port 0.
pub const fn port_word(offset: u32) -> usize {
    PORT_WORDS + (offset / 4) as usize
}

/// Does function reset take this register of a port to its reset value?
fn function_resets(offset: u32) -> bool {
    layout::registers::FUNCTION_RESET_PORT.contains(&offset)
}

fn place(words: &mut [u64], word: usize, register: &Register, reset: u64, function: bool) {
    let flags = match register.access {
        Access::Ro => 1 << STORED,
        Access::Rw => 1 << STORED | 1 << WRITABLE,
        Access::Start => 1 << WRITABLE,
    } | (function as u64) << FUNCTION;
    if register.bits == 64 {
        words[word] = flags | 1 << LOW | reset & 0xFFFF_FFFF;
        words[word + 1] = flags | 1 << HIGH | reset >> 32;
    } else {
        words[word] = flags | reset;
    }
}

/// The ROM's words for `ports` ports with rings of `2^ring_log2` bytes.
pub fn contents(ports: usize, ring_log2: usize) -> Vec<u64> {
    let mut words = vec![0; WORDS];
    for register in global::REGISTERS {
        let word = global_word(register.offset);
        match register.offset {
            // What changes by itself isn't stored.
            global::STATUS | global::TIME_NOW | global::LAST_STAMP | global::LAST_NUMBER => {}
            global::GEOMETRY => {
                let slots = layout::registers::SLOTS as u64;
                let geometry = ports as u64 | slots << 8 | (ring_log2 as u64) << 16 | (VOLUMES as u64) << 24;
                place(&mut words, word, register, geometry, false);
            }
            global::VOLUME_TABLE => {
                for volume in 0..VOLUMES {
                    place(&mut words, word + volume, register, register.reset, false);
                }
            }
            // Its write half is special: see the register file.
            global::CONTROL => place(&mut words, word, register, register.reset, true),
            _ => place(&mut words, word, register, register.reset, false),
        }
    }
    for index in 0..ports {
        let first = PORT_WORDS + index * 16;
        for register in port::REGISTERS {
            let live = matches!(register.offset, port::STATUS | port::PRODUCED);
            if register.offset < 0x40 && !live {
                let function = function_resets(register.offset);
                place(&mut words, first + (register.offset / 4) as usize, register, register.reset, function);
            }
        }
        for word in 0..4 {
            let mask = if word == 3 { layout::pcie::MSIX_CONTROL_MASK as u64 } else { 0 };
            words[TABLE_WORDS + index * 4 + word] = 1 << STORED | 1 << WRITABLE | 1 << FUNCTION | mask;
        }
    }
    for word in &mut words[WAITING_WORDS..] {
        *word = 1 << STORED | 1 << FUNCTION;
    }
    for (word, content) in words[..PORT_WORDS].iter().enumerate() {
        assert!(content >> HIGH & 1 == 0 || word < 32, "an upper half at word {word} has no place to wait");
    }
    assert!(words[NOTHING] == 0);
    words
}

/// The ROM; the word appears one clock after its address.
#[derive(Debug)]
pub struct RegisterMap {
    /// Word address.
    pub address: Signal<In, Bits<9>>,
    /// Clock.
    pub clock: Signal<In, Clock>,
    /// Reset value in bits 31:0, then [`STORED`], [`WRITABLE`], [`LOW`], [`HIGH`], [`FUNCTION`].
    pub word: Signal<Out, Bits<37>>,
    words: Vec<u64>,
}

impl RegisterMap {
    /// For `ports` ports with rings of `2^ring_log2` bytes.
    pub fn new(ports: usize, ring_log2: usize) -> Self {
        assert!(ports <= MAXIMUM_PORTS);
        Self {
            address: Signal::default(),
            clock: Signal::default(),
            word: Signal::default(),
            words: contents(ports, ring_log2),
        }
    }
}

impl Part for RegisterMap {
    #[inline(always)]
    fn idle(&self) -> bool {
        self.words[self.address.next.index()] as u128 == self.word.val().to_u128()
    }
    #[inline(always)]
    fn step(&mut self) -> bool {
        self.clock.update_all();
        if self.clock.pos_edge() {
            self.word.next = Bits::wrap(self.words[self.address.next.index()] as u128);
            self.word.update_all();
            return self.word.changed;
        }
        false
    }
    fn refresh(&mut self) {
        self.address.update_all();
    }
}

impl Logic for RegisterMap {
    fn update(&mut self) {}
    fn connect(&mut self) {
        self.word.connect();
    }
    fn hdl(&self) -> Verilog {
        let mut code = format!(
            "reg [36:0] words[{last}:0];\ninteger i;\ninitial begin\n   word = 0;\n   \
             for (i = 0; i <= {last}; i = i + 1) words[i] = 0;\n",
            last = WORDS - 1
        );
        for (index, word) in self.words.iter().enumerate().filter(|(_, word)| **word != 0) {
            code += &format!("   words[{index}] = {};\n", Bits::<37>::wrap(*word as u128).verilog());
        }
        Verilog::Custom(code + "end\nalways @(posedge clock) word <= words[address];\n")
    }
    fn timing(&self) -> Vec<TimingInfo> {
        vec![TimingInfo {
            name: "read".into(),
            clock: "clock".into(),
            inputs: vec!["address".into()],
            outputs: vec!["word".into()],
        }]
    }
}

impl Block for RegisterMap {
    fn connect_all(&mut self) {
        self.connect();
    }
    fn update_all(&mut self) {
        if !self.step() {
            self.word.changed = false;
        }
    }
    fn has_changed(&self) -> bool {
        self.word.changed
    }
    fn accept(&self, name: &str, probe: &mut dyn Probe) {
        probe.visit_start_scope(name, self);
        self.address.accept("address", probe);
        self.clock.accept("clock", probe);
        self.word.accept("word", probe);
        probe.visit_end_scope(name, self);
    }
}
