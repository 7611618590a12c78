//! The card, stepped, and what is asked of it in between.

use super::function::{Function, Started};
use super::links::Link;
use super::memory::GuestMemory;
use crate::pcie_root::{Read, Refused, RootError};
use crate::simulated_card::{SimulatedCard, PORTS};
use layout::pcie::{fmt_type, BAR0_BYTES, MSIX_CONTROL_MASK, MSIX_ENTRY_BYTES, MSIX_TABLE_OFFSET};
use layout::registers::{command, global, CORE_HZ};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Cycles between two looks at the ports' sockets: 2 µs of card time.
const LINK_CYCLES: u64 = 256;
/// Cycles that a register access may take. More: the card is stuck, and the access is answered as a root does
/// after its completion time-out.
const ACCESS_LIMIT: u64 = 10_000;
/// Posted writes that may be on their way to the card; a bus has so much flow control credit at most.
const MAXIMUM_POSTED: usize = 64;
/// Cycles in which a packet that has begun ends: the longest has some hundred beats.
const PACKET_LIMIT: u64 = 10_000;
/// Cycles in which a function reset is over (`docs/registers.md`: about 520).
const RESET_CYCLES: u64 = 1_000;
/// Faults that are told; further ones are counted.
const MAXIMUM_TOLD: usize = 16;

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Core cycles.
    pub cycles: u64,
    /// Messages that were signalled.
    pub messages: u64,
    /// Writes of the card's that the guest's IOMMU stopped.
    pub faults: u64,
    /// Function-level resets.
    pub resets: u64,
    /// Mappings that the guest's IOMMU has now.
    pub mappings: usize,
}

/// A card in its slot.
pub struct Machine {
    card: SimulatedCard,
    function: Function,
    memory: Rc<RefCell<GuestMemory>>,
    messages: Vec<(u64, u32)>,
    /// Who is told of a vector.
    vectors: [Option<File>; PORTS],
    links: Vec<Link>,
    counts: Counts,
    told: VecDeque<String>,
    began: Instant,
    has_ended: bool,
}

impl Machine {
    /// Puts `card` into a slot, with wires at its ports.
    pub fn new(mut card: SimulatedCard, links: Vec<Link>) -> Self {
        let memory = Rc::new(RefCell::new(GuestMemory::default()));
        card.root_mut().reach(Box::new(memory.clone()));
        let messages = (0..PORTS).map(|_| card.root_mut().add_message()).collect();
        let function = Function::new(PORTS);
        card.configure(&function.configured());
        Self {
            card,
            function,
            memory,
            messages,
            vectors: Default::default(),
            links,
            counts: Counts::default(),
            told: VecDeque::new(),
            began: Instant::now(),
            has_ended: false,
        }
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        Counts { cycles: self.card.cycles(), mappings: self.memory.borrow().mappings(), ..self.counts }
    }

    /// What went wrong since the last look, for the one who runs this.
    pub fn take_told(&mut self) -> Vec<String> {
        self.told.drain(..).collect()
    }

    /// Nobody asks any more.
    pub fn end(&mut self) {
        self.has_ended = true;
    }

    /// Does nobody ask any more?
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// The card.
    pub fn card_mut(&mut self) -> &mut SimulatedCard {
        &mut self.card
    }

    /// Lets a few cycles pass, or waits for the wall clock where the card is ahead of it.
    pub fn pass(&mut self, cycles: u64) {
        let card_time = Duration::from_nanos(self.card.cycles() * (1_000_000_000 / CORE_HZ));
        if let Some(ahead) = card_time.checked_sub(self.began.elapsed()) {
            std::thread::sleep(ahead.min(Duration::from_micros(100)));
            return;
        }
        for _ in 0..cycles {
            self.cycle();
        }
    }

    fn cycle(&mut self) {
        self.card.run(1);
        if self.card.cycles().is_multiple_of(LINK_CYCLES) {
            for link in &mut self.links {
                if let Err(error) = link.exchange(&mut self.card) {
                    tell(&mut self.told, format!("a port's socket: {error}"));
                }
            }
        }
        self.look();
    }

    /// Signals what the card's messages say, and notes what it mustn't have done.
    fn look(&mut self) {
        let fired = self.card.take_fired();
        for vector in (0..PORTS).filter(|vector| fired >> vector & 1 == 1) {
            self.signal(vector);
        }
        match self.card.take_fault() {
            None => {}
            Some(fault @ RootError::Fault { .. }) => {
                self.counts.faults += 1;
                tell(&mut self.told, format!("the guest's IOMMU stopped it: {fault}"));
            }
            Some(other) => tell(&mut self.told, other.to_string()),
        }
    }

    fn signal(&mut self, vector: usize) {
        self.counts.messages += 1;
        if let Some(event) = &mut self.vectors[vector] {
            // An eventfd that is full is signalled already.
            let _ = event.write(&1u64.to_ne_bytes());
        }
    }

    /// Reads the BAR; all ones where nobody answers.
    pub fn read(&mut self, offset: u64, bytes: &mut [u8]) {
        bytes.fill(0xFF);
        let end = offset.checked_add(bytes.len() as u64);
        if !self.function.is_memory_enabled() || end.is_none_or(|end| end > BAR0_BYTES as u64) {
            return;
        }
        let (offset, length) = (offset as usize, bytes.len());
        // A root reads whole words and takes from them what was asked for.
        let first = offset & !3;
        let mut words = Vec::new();
        let count = (offset + length).div_ceil(4) - first / 4;
        let mut index = 0;
        while index < count {
            let wide = usize::from(count - index >= 2) + 1;
            let read = self.card.root_mut().queue_reads((first + 4 * index) as u32, wide as u32);
            let value = match self.complete(read) {
                Some(Ok(value)) => value,
                _ => u64::MAX,
            };
            words.extend_from_slice(&value.to_le_bytes()[..4 * wide]);
            index += wide;
        }
        bytes.copy_from_slice(&words[offset - first..offset - first + length]);
    }

    fn complete(&mut self, read: Read) -> Option<Result<u64, Refused>> {
        for _ in 0..ACCESS_LIMIT {
            self.cycle();
            if let Some(answer) = self.card.root_mut().completion_double(read) {
                return Some(answer);
            }
        }
        tell(&mut self.told, format!("no completion of a read in {ACCESS_LIMIT} cycles"));
        None
    }

    /// Writes the BAR, posted: it is on its way when this returns.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset.checked_add(bytes.len() as u64);
        if !self.function.is_memory_enabled() || end.is_none_or(|end| end > BAR0_BYTES as u64) {
            return;
        }
        self.post();
        let root = self.card.root_mut();
        if let (0, Ok(word)) = (offset % 8, <[u8; 8]>::try_from(bytes)) {
            root.queue_write_double(offset as u32, u64::from_le_bytes(word));
            return;
        }
        let mut at = offset as usize;
        for piece in (Pieces { offset: at, rest: bytes }) {
            let mut word = [0; 4];
            let into = at % 4;
            word[into..into + piece.len()].copy_from_slice(piece);
            let enables = ((1u8 << piece.len()) - 1) << into;
            let word_at = (at - into) as u32;
            let packet =
                root.request(fmt_type::MEMORY_WRITE_32, word_at, 0, enables, &[u32::from_le_bytes(word)]);
            root.queue_packet(packet);
            at += piece.len();
        }
    }

    /// Waits until the card takes what was posted. One that takes nothing loses what more there is.
    fn post(&mut self) {
        for _ in 0..ACCESS_LIMIT {
            if self.card.root_mut().waiting() < MAXIMUM_POSTED {
                return;
            }
            self.cycle();
        }
        tell(&mut self.told, format!("the card takes no write in {ACCESS_LIMIT} cycles"));
    }

    /// Reads configuration space.
    pub fn read_configuration(&mut self, offset: u64, bytes: &mut [u8]) {
        self.function.read(offset, bytes);
    }

    /// Writes configuration space, with what that does.
    pub fn write_configuration(&mut self, offset: u64, bytes: &[u8]) {
        match self.function.write(offset, bytes) {
            Started::Reset => self.reset(),
            Started::Nothing => self.configure(),
        }
    }

    /// The MSI-X capability's enable bit follows who is told of vectors, as with VFIO, where the kernel owns it.
    fn configure(&mut self) {
        let mut configured = self.function.configured();
        configured.msix_enable |= self.vectors.iter().any(Option::is_some);
        self.card.configure(&configured);
    }

    /// Function-level reset. Afterwards vectors go where they went before: who resets a device through VFIO gets
    /// its interrupts back from the kernel.
    pub fn reset(&mut self) {
        self.counts.resets += 1;
        self.card.root_mut().queue_write(global::COMMAND, command::FUNCTION_RESET);
        self.run(RESET_CYCLES);
        self.function.reset();
        self.configure();
        (0..PORTS).for_each(|vector| self.write_vector(vector));
    }

    /// Lets the card reach memory.
    pub fn map(
        &mut self,
        address: u64,
        bytes: u64,
        writable: bool,
        file: Option<(File, u64)>,
    ) -> io::Result<()> {
        let file = file.as_ref().map(|(file, offset)| (file, *offset));
        self.memory.borrow_mut().map(address, bytes, writable, file)
    }

    /// Takes memory away, between two packets of the card's.
    pub fn unmap(&mut self, address: u64, bytes: u64) -> io::Result<()> {
        self.end_packet();
        self.memory.borrow_mut().unmap(address, bytes)
    }

    /// Takes away all memory, and tells nobody of anything any more: the one behind the card is gone.
    pub fn unplug(&mut self) {
        self.end_packet();
        self.memory.borrow_mut().unmap_all();
        self.vectors = Default::default();
        self.function.reset();
        self.configure();
    }

    fn end_packet(&mut self) {
        for _ in 0..PACKET_LIMIT {
            if self.card.root_mut().is_between_packets() {
                return;
            }
            self.cycle();
        }
        tell(&mut self.told, format!("a packet of the card's has no end in {PACKET_LIMIT} cycles"));
    }

    /// Tells `event` of `vector` from now on, or nobody; the gateware's table says where its message goes.
    pub fn set_vector(&mut self, vector: usize, event: Option<File>) {
        self.vectors[vector] = event;
        self.write_vector(vector);
        self.configure();
    }

    fn write_vector(&mut self, vector: usize) {
        let (address, data) = self.messages[vector];
        let masked = if self.vectors[vector].is_some() { 0 } else { MSIX_CONTROL_MASK };
        let entry = (MSIX_TABLE_OFFSET + vector * MSIX_ENTRY_BYTES) as u32;
        let root = self.card.root_mut();
        // The control word last, when the rest stands.
        for (word, value) in [address as u32, (address >> 32) as u32, data, masked].into_iter().enumerate() {
            root.queue_write(entry + 4 * word as u32, value);
        }
    }

    /// Signals `vector` as if its message had come.
    pub fn trigger(&mut self, vector: usize) {
        self.signal(vector);
    }

    fn run(&mut self, cycles: u64) {
        (0..cycles).for_each(|_| self.cycle());
    }
}

/// Bytes from `offset` on, cut at words.
struct Pieces<'a> {
    offset: usize,
    rest: &'a [u8],
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let length = self.rest.len().min(4 - self.offset % 4);
        let (piece, rest) = self.rest.split_at(length);
        (self.offset, self.rest) = (self.offset + length, rest);
        (length > 0).then_some(piece)
    }
}

fn tell(told: &mut VecDeque<String>, what: String) {
    if told.len() < MAXIMUM_TOLD {
        told.push_back(what);
    }
}
