//! A card without hardware or gateware, for tests: registers and rings in memory, and a script that
//! says what happens to them.
//!
//! It keeps the register map's rules as far as a driver can see them (64-bit registers take effect
//! with their low half, function reset clears rings, CONTROL shows in STATUS), and makes records and
//! faults at command. Every [`Card::wait`] runs the next [`Step`] of the script, if there is one.

use crate::card::{Card, CardError, DmaRegion, Interrupts};
use layout::entry::HEADER_BYTES;
use layout::pcie::BAR0_BYTES;
use layout::registers::{
    command, global, port, IDENTITY_VALUE, MAP_VERSION_VALUE, PORT_BASE, PORT_LOCKED, PORT_STRIDE,
};
use std::collections::VecDeque;
use std::time::Duration;
use zerocopy::IntoBytes;

/// Something that a card does, rightly or wrongly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Puts bytes into a port's host ring and announces them, with an interrupt.
    Records {
        /// Port.
        port: usize,
        /// Whole records, back to back.
        bytes: Vec<u8>,
    },
    /// The same, but the interrupt gets lost.
    RecordsWithoutInterrupt {
        /// Port.
        port: usize,
        /// Whole records, back to back.
        bytes: Vec<u8>,
    },
    /// Flips a bit of what lies in a port's host ring.
    Flip {
        /// Port.
        port: usize,
        /// Byte since bring-up.
        position: u64,
        /// Bit of that byte, 0 to 7.
        bit: u32,
    },
    /// Writes anything at all into a port's mailbox.
    Mailbox {
        /// Port.
        port: usize,
        /// The producer index that it tells.
        produced: u64,
    },
    /// Sets a register, as the gateware does from inside.
    Register {
        /// Offset in BAR 0.
        offset: u32,
        /// Its value.
        value: u32,
    },
    /// Falls off the bus: every read gives all ones, writes go nowhere.
    Gone,
    /// Nothing; a wait that times out.
    Quiet,
}

/// The card. Its fields may be set before bring-up.
#[derive(Debug)]
pub struct FakeCard {
    registers: Vec<u32>,
    regions: Vec<Option<HostMemory>>,
    latched_high: u32,
    written_high: u32,
    produced: Vec<u64>,
    interrupts: u64,
    gone: bool,
    /// What the following waits do, one step each.
    pub script: VecDeque<Step>,
    /// Leaf clocks lock after so many waits from enabling the time base.
    pub waits_to_lock: Option<u32>,
    /// Bits of the ports whose leaf clock never locks.
    pub never_locks: u64,
    /// COMMAND is ignored: a reset that never ends.
    pub ignores_reset: bool,
    /// Every register write, in order, the newest [`WRITES_KEPT`].
    pub writes: VecDeque<(u32, u32)>,
    /// Writes to addresses where nothing is mapped. As behind an IOMMU they are lost, and the card doesn't know.
    pub faults: u64,
}

/// Memory that the card may reach.
#[derive(Debug)]
struct HostMemory {
    address: u64,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    /// Made by [`Card::map_dma`].
    Own(Vec<u64>),
    /// Somebody else's ([`FakeCard::map_outside`]).
    Outside(&'static mut [u8]),
}

impl HostMemory {
    fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Own(words) => words.as_bytes(),
            Bytes::Outside(bytes) => bytes,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.bytes {
            Bytes::Own(words) => words.as_mut_bytes(),
            Bytes::Outside(bytes) => bytes,
        }
    }
}

/// Register writes that are kept.
pub const WRITES_KEPT: usize = 4096;
/// Where the fake's DMA addresses begin: above 4 GiB, so that a lost high half shows.
const BUS_BASE: u64 = 0x12_3400_0000;
/// Distance of two regions' addresses: what lies between them is nobody's.
const BUS_STRIDE: u64 = 1 << 32;

impl FakeCard {
    /// A card with `ports` ports, as after card reset.
    pub fn new(ports: usize) -> Self {
        assert!((1..=8).contains(&ports));
        let mut card = Self {
            registers: vec![0; BAR0_BYTES / 4],
            regions: Vec::new(),
            latched_high: 0,
            written_high: 0,
            produced: vec![0; ports],
            interrupts: 0,
            gone: false,
            script: VecDeque::new(),
            waits_to_lock: Some(2),
            never_locks: 0,
            ignores_reset: false,
            writes: VecDeque::new(),
            faults: 0,
        };
        let map = global::REGISTERS.iter().map(|r| (r.offset, r.reset));
        for (offset, reset) in map {
            card.set(offset, reset as u32);
        }
        card.set(global::MAP_VERSION, MAP_VERSION_VALUE);
        card.set(global::IDENTITY, IDENTITY_VALUE);
        card.set(global::GEOMETRY, u32::from_le_bytes([ports as u8, 16, 16, 16]));
        card
    }

    /// Sets a register from inside, whoever may write it from outside.
    pub fn set(&mut self, offset: u32, value: u32) {
        self.registers[offset as usize / 4] = value;
    }

    /// Sets a 64-bit register from inside.
    pub fn set64(&mut self, offset: u32, value: u64) {
        self.set(offset, value as u32);
        self.set(offset + 4, (value >> 32) as u32);
    }

    /// A register, seen from inside.
    pub fn get(&self, offset: u32) -> u32 {
        self.registers[offset as usize / 4]
    }

    /// A 64-bit register, seen from inside.
    pub fn get64(&self, offset: u32) -> u64 {
        u64::from(self.get(offset + 4)) << 32 | u64::from(self.get(offset))
    }

    /// Offset in BAR 0 of a register of `port`.
    pub fn of_port(port: usize, offset: u32) -> u32 {
        PORT_BASE + PORT_STRIDE * port as u32 + offset
    }

    /// Regions that are mapped now.
    pub fn mapped(&self) -> usize {
        self.regions.iter().flatten().count()
    }

    /// Makes a step happen now.
    pub fn run(&mut self, step: Step) {
        match step {
            Step::Records { port, bytes } => {
                self.push(port, &bytes);
                self.interrupts |= 1 << port;
            }
            Step::RecordsWithoutInterrupt { port, bytes } => self.push(port, &bytes),
            Step::Flip { port, position, bit } => {
                let (address, size) = self.ring(port);
                let offset = position % size as u64;
                self.dma(address + offset, |byte| byte[0] ^= 1 << bit, 1);
            }
            Step::Mailbox { port, produced } => self.announce(port, produced),
            Step::Register { offset, value } => self.set(offset, value),
            Step::Gone => self.gone = true,
            Step::Quiet => {}
        }
    }

    /// Room in `port`'s host ring for more records, in bytes.
    pub fn room(&self, port: usize) -> usize {
        let consumed = self.get64(Self::of_port(port, port::CONSUMED));
        let (_, size) = self.ring(port);
        size - (self.produced[port] - consumed) as usize
    }

    /// Bytes that `port` has produced since bring-up.
    pub fn produced(&self, port: usize) -> u64 {
        self.produced[port]
    }

    /// Writes records and announces them. Like a card, it never writes over what isn't consumed.
    fn push(&mut self, port: usize, bytes: &[u8]) {
        assert_eq!(bytes.len() % HEADER_BYTES, 0, "records are padded");
        assert!(bytes.len() <= self.room(port), "no room in the ring of port {port}");
        let (ring, size) = self.ring(port);
        let start = self.produced[port] % size as u64;
        let (first, rest) = bytes.split_at(bytes.len().min(size - start as usize));
        self.dma(ring + start, |memory| memory.copy_from_slice(first), first.len());
        self.dma(ring, |memory| memory.copy_from_slice(rest), rest.len());
        self.produced[port] += bytes.len() as u64;
        let produced = self.produced[port];
        self.set64(Self::of_port(port, port::PRODUCED), produced);
        self.announce(port, produced);
    }

    fn announce(&mut self, port: usize, produced: u64) {
        let address = self.get64(Self::of_port(port, port::MAILBOX_ADDRESS));
        self.dma(address, |memory| memory.copy_from_slice(&produced.to_le_bytes()), 8);
    }

    /// Address and size of `port`'s host ring.
    fn ring(&self, port: usize) -> (u64, usize) {
        let size = 1usize << self.get(Self::of_port(port, port::RING_SIZE));
        (self.get64(Self::of_port(port, port::RING_ADDRESS)), size)
    }

    /// Reaches for `bytes` bytes of host memory; a fault where they aren't mapped.
    fn dma(&mut self, address: u64, access: impl FnOnce(&mut [u8]), bytes: usize) {
        let place = self.regions.iter_mut().flatten().find_map(|memory| {
            let offset = usize::try_from(address.checked_sub(memory.address)?).ok()?;
            memory.bytes_mut().get_mut(offset..offset.checked_add(bytes)?)
        });
        match place {
            Some(memory) => access(memory),
            None => self.faults += 1,
        }
    }

    /// Lets the card reach memory that is somebody else's, at a bus address of their choice.
    ///
    /// # Safety
    /// Until [`FakeCard::unmap_outside`] nobody else writes there, and it is there.
    pub unsafe fn map_outside(&mut self, address: u64, pointer: *mut u8, bytes: usize) {
        // SAFETY: by contract.
        let memory = unsafe { std::slice::from_raw_parts_mut(pointer, bytes) };
        self.regions.push(Some(HostMemory { address, bytes: Bytes::Outside(memory) }));
    }

    /// Takes away what was mapped at `address`; says how many bytes that were.
    pub fn unmap_outside(&mut self, address: u64) -> usize {
        let is_it = |memory: &Option<HostMemory>| memory.as_ref().is_some_and(|m| m.address == address);
        let memory = self.regions.iter_mut().find(|memory| is_it(memory)).and_then(Option::take);
        memory.map_or(0, |memory| memory.bytes().len())
    }

    fn ports(&self) -> usize {
        self.produced.len()
    }

    /// What a write does beyond being stored.
    fn takes_effect(&mut self, offset: u32, value: u32) {
        match offset {
            global::CONTROL => self.set(global::STATUS, value & 3),
            global::COMMAND => {
                self.set(global::COMMAND, 0);
                if value & command::FUNCTION_RESET != 0 && !self.ignores_reset {
                    self.function_reset();
                }
            }
            _ => {}
        }
    }

    fn function_reset(&mut self) {
        let closed = self.get(global::CONTROL) & !1;
        self.set(global::CONTROL, closed);
        self.set(global::STATUS, closed);
        self.interrupts = 0;
        for port in 0..self.ports() {
            self.produced[port] = 0;
            for offset in [port::CONTROL, port::RING_SIZE] {
                self.set(Self::of_port(port, offset), 0);
            }
            for offset in [port::RING_ADDRESS, port::MAILBOX_ADDRESS, port::CONSUMED, port::PRODUCED] {
                self.set64(Self::of_port(port, offset), 0);
            }
        }
    }

    fn lock_clocks(&mut self) {
        match &mut self.waits_to_lock {
            Some(0) => {}
            Some(waits) => {
                *waits -= 1;
                return;
            }
            None => return,
        }
        for port in 0..self.ports() {
            if self.never_locks >> port & 1 == 1 {
                continue;
            }
            let status = Self::of_port(port, port::STATUS);
            let locked = self.get(status) | PORT_LOCKED;
            self.set(status, locked);
        }
    }
}

/// Offsets that latch, or are the halves of, a 64-bit register.
fn is_wide(offset: u32) -> bool {
    let in_port = offset.checked_sub(PORT_BASE).map(|offset| offset % PORT_STRIDE);
    let wide =
        |map: &[layout::registers::Register], offset| map.iter().any(|r| r.bits == 64 && r.offset == offset);
    match in_port {
        None => wide(global::REGISTERS, offset),
        Some(offset) => wide(port::REGISTERS, offset) || offset >= port::SOURCE_TABLE && offset % 8 == 0,
    }
}

impl Card for FakeCard {
    fn read(&mut self, offset: u32) -> Result<u32, CardError> {
        assert!(offset.is_multiple_of(4) && (offset as usize) < BAR0_BYTES, "read at {offset:#x}");
        if self.gone {
            return Ok(u32::MAX);
        }
        if is_wide(offset) {
            self.latched_high = self.get(offset + 4);
            return Ok(self.get(offset));
        }
        if offset >= 4 && is_wide(offset - 4) {
            return Ok(self.latched_high);
        }
        Ok(self.get(offset))
    }

    fn write(&mut self, offset: u32, value: u32) -> Result<(), CardError> {
        assert!(offset.is_multiple_of(4) && (offset as usize) < BAR0_BYTES, "write at {offset:#x}");
        if self.gone {
            return Ok(());
        }
        if self.writes.len() == WRITES_KEPT {
            self.writes.pop_front();
        }
        self.writes.push_back((offset, value));
        if offset >= 4 && is_wide(offset - 4) {
            self.written_high = value;
            return Ok(());
        }
        self.set(offset, value);
        if is_wide(offset) {
            let high = self.written_high;
            self.set(offset + 4, high);
        }
        self.takes_effect(offset, value);
        Ok(())
    }

    fn map_dma(&mut self, bytes: usize) -> Result<DmaRegion, CardError> {
        let id = self.regions.len();
        let address = BUS_BASE + id as u64 * BUS_STRIDE;
        self.regions.push(Some(HostMemory { address, bytes: Bytes::Own(vec![0; bytes / 8]) }));
        Ok(DmaRegion { id, bus_address: address, bytes })
    }

    fn unmap_dma(&mut self, region: DmaRegion) -> Result<(), CardError> {
        let mapped = self.regions.get_mut(region.id).and_then(Option::take);
        assert!(mapped.is_some(), "region {} is not mapped", region.id);
        Ok(())
    }

    fn dma_bytes(&self, region: &DmaRegion) -> &[u8] {
        self.regions[region.id].as_ref().expect("a mapped region").bytes()
    }

    fn dma_load(&self, region: &DmaRegion, offset: usize) -> u64 {
        assert_eq!(offset % 8, 0);
        let bytes = &self.dma_bytes(region)[offset..offset + 8];
        u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
    }

    fn msix_message(&mut self, vector: usize) -> Option<(u64, u32)> {
        Some((0xFEE0_0000, vector as u32))
    }

    fn wait(&mut self, _timeout: Duration) -> Result<Interrupts, CardError> {
        if self.get(global::CONTROL) & layout::registers::control::TIME_ENABLED != 0 {
            self.lock_clocks();
        }
        if let Some(step) = self.script.pop_front() {
            self.run(step);
        }
        Ok(Interrupts(std::mem::take(&mut self.interrupts)))
    }
}
