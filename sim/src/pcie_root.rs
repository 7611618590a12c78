//! A host's PCIe root, beat by beat: requests to the card, completions and DMA from it, host memory.
//!
//! It knows nothing of the gateware. Memory is what [`Root::map`] gave; a write anywhere else is an
//! error with its address, as an IOMMU would make it, and a packet that a real root would take for
//! malformed is an error too.

use layout::pcie::{self, completion_status, fmt_type};
use std::collections::{HashMap, VecDeque};

/// One beat of a packet stream, as `layout::pcie` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// DW0 in bits 31:0; the first byte of each DW in bits 31:24 (data).
    pub data: u64,
    /// 0xFF, or 0x0F in a last beat with one DW.
    pub keep: u8,
    /// Last of the packet.
    pub last: bool,
}

/// The beats of a packet.
pub fn beats(dws: &[u32]) -> Vec<Beat> {
    let last = dws.len().div_ceil(2).saturating_sub(1);
    dws.chunks(2)
        .enumerate()
        .map(|(index, pair)| Beat {
            data: pair[0] as u64 | (pair.get(1).copied().unwrap_or(0) as u64) << 32,
            keep: if pair.len() == 2 { 0xFF } else { 0x0F },
            last: index == last,
        })
        .collect()
}

/// Memory that the card may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Index of the mapping.
    pub id: usize,
    /// Bus address, aligned to 4 KiB.
    pub address: u64,
    /// Length in bytes.
    pub bytes: usize,
}

/// What a packet of the card did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Wrote host memory.
    Write {
        /// Bus address.
        address: u64,
        /// Length.
        bytes: usize,
    },
    /// Sent a message, the index of the one configured.
    Message(usize),
    /// Answered a read.
    Completion(Read),
}

/// A read that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Read(u64);

/// A read that the card refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the card refused the read: completion status {status}")]
pub struct Refused {
    /// The completion's status field.
    pub status: u8,
}

/// What a card mustn't do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    /// A write to memory that it wasn't given.
    #[error("the card wrote {bytes} bytes at bus address {address:#x}, outside every mapped region")]
    Fault {
        /// Bus address.
        address: u64,
        /// Length.
        bytes: usize,
    },
    /// A write to the message window that no message was configured for.
    #[error("the card sent the message {data:#x} to {address:#x}, which is no configured vector")]
    Message {
        /// Bus address.
        address: u64,
        /// What it wrote.
        data: u32,
    },
    /// A malformed packet.
    #[error("malformed packet from the card: {reason}; DWs {dws:08x?}")]
    Malformed {
        /// What is wrong.
        reason: String,
        /// The packet as far as it came.
        dws: Vec<u32>,
    },
}

#[derive(Clone, Copy, Debug)]
struct Outstanding {
    read: Read,
    offset: u32,
    dws: u32,
}

#[derive(Clone, Debug)]
enum Request {
    Packet(Vec<u32>),
    Read { read: Read, offset: u32, dws: u32 },
}

/// Requester id of the root's own requests.
pub const REQUESTER: u16 = 0x0008;
/// Reads the root has under way at most; further ones wait, and what is queued behind them.
pub const TAGS: usize = 32;
/// Requests that may wait. More is a test that never steps the card.
pub const QUEUE_LIMIT: usize = 1 << 16;
/// Longest packet taken, in DWs: header and the largest payload there is.
const PACKET_LIMIT: usize = 4 + 1024;
/// Where the messages go, one page.
const MESSAGE_WINDOW: u64 = 0xFEE0_0000;

/// Memory of somebody else's, behind an IOMMU of theirs.
pub trait HostMemory {
    /// Writes `bytes`, whole, if the card may reach all of them; otherwise nothing, and says so. An aligned write of
    /// eight bytes is one store.
    fn write(&mut self, address: u64, bytes: &[u8]) -> bool;
}

/// The root port and the memory behind it.
pub struct Root {
    bar: u64,
    card: u16,
    max_payload: usize,
    outside: Option<Box<dyn HostMemory>>,
    regions: Vec<Option<(Region, Vec<u8>)>>,
    low: u64,
    high: u64,
    messages: Vec<(u64, u32)>,
    fired: Vec<usize>,
    queue: VecDeque<Request>,
    sending: VecDeque<Beat>,
    tags: [Option<Outstanding>; TAGS],
    next_read: u64,
    done: HashMap<Read, Result<u64, Refused>>,
    incoming: Vec<u32>,
}

impl Root {
    /// A root with the card's BAR 0 at `bar`, the card's id `card` (bus, device, function) and its
    /// maximum payload as configured, `128 << code` bytes.
    ///
    /// Panics if `bar` isn't aligned to the BAR's size.
    pub fn new(bar: u64, card: u16, max_payload_code: u8) -> Self {
        assert!(bar.is_multiple_of(pcie::BAR0_BYTES as u64), "BAR 0 at {bar:#x} isn't aligned");
        Self {
            bar,
            card,
            max_payload: pcie::maximum_payload_bytes(max_payload_code),
            outside: None,
            regions: Vec::new(),
            low: 0x1000_0000,
            high: 0x12_3400_0000,
            messages: Vec::new(),
            fired: Vec::new(),
            queue: VecDeque::new(),
            sending: VecDeque::new(),
            tags: [None; TAGS],
            next_read: 0,
            done: HashMap::new(),
            incoming: Vec::new(),
        }
    }

    /// The card is configured for payloads of at most `128 << code` bytes from now on.
    pub fn set_max_payload(&mut self, code: u8) {
        self.max_payload = pcie::maximum_payload_bytes(code);
    }

    /// Lets the card reach `memory` too, where no region of the root's own is.
    pub fn reach(&mut self, memory: Box<dyn HostMemory>) {
        self.outside = Some(memory);
    }

    /// Requests that wait to be sent.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Has the card sent every packet whole that it began?
    pub fn is_between_packets(&self) -> bool {
        self.incoming.is_empty()
    }

    /// Maps zeroed memory for the card, by turns below and above 4 GiB, with a gap after it.
    pub fn map(&mut self, bytes: usize) -> Region {
        if self.regions.len().is_multiple_of(2) {
            self.map_low(bytes)
        } else {
            self.map_high(bytes)
        }
    }

    /// Maps memory below 4 GiB.
    ///
    /// Panics when there is no more room there.
    pub fn map_low(&mut self, bytes: usize) -> Region {
        let address = self.low;
        self.low += (bytes.next_multiple_of(4096) + 4096) as u64;
        assert!(self.low <= 0xC000_0000, "no more room below 4 GiB");
        self.add(address, bytes)
    }

    /// Maps memory above 4 GiB.
    pub fn map_high(&mut self, bytes: usize) -> Region {
        let address = self.high;
        self.high += (bytes.next_multiple_of(4096) + 4096) as u64;
        self.add(address, bytes)
    }

    fn add(&mut self, address: u64, bytes: usize) -> Region {
        let region = Region { id: self.regions.len(), address, bytes };
        self.regions.push(Some((region, vec![0; bytes])));
        region
    }

    /// Takes the memory back. False if it wasn't mapped.
    pub fn unmap(&mut self, region: Region) -> bool {
        match self.regions.get_mut(region.id) {
            Some(slot) if slot.as_ref().is_some_and(|(mapped, _)| *mapped == region) => {
                *slot = None;
                true
            }
            _ => false,
        }
    }

    /// The region's bytes; none if it isn't mapped.
    pub fn memory(&self, region: &Region) -> &[u8] {
        match self.regions.get(region.id) {
            Some(Some((mapped, bytes))) if mapped == region => bytes,
            _ => &[],
        }
    }

    /// Loads the little-endian u64 at `offset` of the region, if it is there.
    pub fn load(&self, region: &Region, offset: usize) -> Option<u64> {
        let bytes = self.memory(region).get(offset..offset.checked_add(8)?)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }

    /// Configures a further message and returns address and data to program. Its index is what
    /// [`Root::take_messages`] gives.
    pub fn add_message(&mut self) -> (u64, u32) {
        let index = self.messages.len() as u64;
        assert!(index < 256, "a page of messages");
        let message = (MESSAGE_WINDOW + index * 16, 0x4000 + index as u32);
        self.messages.push(message);
        message
    }

    /// The messages that came since the last call.
    pub fn take_messages(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.fired)
    }

    fn push(&mut self, request: Request) {
        assert!(self.queue.len() < QUEUE_LIMIT, "{QUEUE_LIMIT} requests wait for a card that isn't stepped");
        self.queue.push_back(request);
    }

    /// Queues a read of the 32-bit register at `offset`.
    pub fn queue_read(&mut self, offset: u32) -> Read {
        self.queue_reads(offset, 1)
    }

    /// Queues a read of `dws` DWs from `offset`.
    pub fn queue_reads(&mut self, offset: u32, dws: u32) -> Read {
        let read = Read(self.next_read);
        self.next_read += 1;
        self.push(Request::Read { read, offset, dws });
        read
    }

    /// Queues a write of the 32-bit register at `offset`.
    pub fn queue_write(&mut self, offset: u32, value: u32) {
        let packet = self.request(fmt_type::MEMORY_WRITE_32, offset, 0, 0x0F, &[value]);
        self.push(Request::Packet(packet));
    }

    /// Queues one write of two registers, or of one of 64 bits.
    pub fn queue_write_double(&mut self, offset: u32, value: u64) {
        let packet =
            self.request(fmt_type::MEMORY_WRITE_32, offset, 0, 0xFF, &[value as u32, (value >> 32) as u32]);
        self.push(Request::Packet(packet));
    }

    /// Queues any packet.
    pub fn queue_packet(&mut self, dws: Vec<u32>) {
        self.push(Request::Packet(dws));
    }

    /// A memory request to `offset` of the BAR: with `data` as register values if it is a write,
    /// with three or four DWs of header as the BAR's place asks for. `kind` is the 32-bit form.
    pub fn request(&self, kind: u8, offset: u32, tag: u8, enables: u8, data: &[u32]) -> Vec<u32> {
        let address = self.bar + offset as u64;
        let four = address >> 32 != 0;
        let kind = if four { kind | 0x20 } else { kind };
        let mut dws = vec![
            (kind as u32) << 24 | data.len() as u32 & 0x3FF,
            (REQUESTER as u32) << 16 | (tag as u32) << 8 | enables as u32,
        ];
        if four {
            dws.push((address >> 32) as u32);
        }
        dws.push(address as u32 & !3);
        if kind & 0x40 != 0 {
            dws.extend(data.iter().map(|value| value.swap_bytes()));
        }
        dws
    }

    /// Is everything sent and every read answered?
    pub fn is_quiet(&self) -> bool {
        self.queue.is_empty() && self.sending.is_empty() && self.tags.iter().all(Option::is_none)
    }

    /// The result of a read of one DW, once.
    pub fn completion(&mut self, read: Read) -> Option<Result<u32, Refused>> {
        Some(self.completion_double(read)?.map(|value| value as u32))
    }

    /// The result of a read of up to two DWs, once.
    pub fn completion_double(&mut self, read: Read) -> Option<Result<u64, Refused>> {
        self.done.remove(&read)
    }

    /// The beat to show to the card in this cycle. It stays until [`Root::rx_taken`].
    pub fn rx_beat(&mut self) -> Option<Beat> {
        if self.sending.is_empty() {
            let packet = match self.queue.front()? {
                Request::Packet(dws) => dws.clone(),
                Request::Read { read, offset, dws } => {
                    let tag = self.tags.iter().position(Option::is_none)?;
                    self.tags[tag] = Some(Outstanding { read: *read, offset: *offset, dws: *dws });
                    let enables = if *dws == 1 { 0x0F } else { 0xFF };
                    let mut packet = self.request(fmt_type::MEMORY_READ_32, *offset, tag as u8, enables, &[]);
                    packet[0] |= *dws & 0x3FF;
                    packet
                }
            };
            self.queue.pop_front();
            self.sending.extend(beats(&packet));
        }
        self.sending.front().copied()
    }

    /// The card took the beat.
    pub fn rx_taken(&mut self) {
        self.sending.pop_front();
    }

    /// Takes a beat from the card. Returns what the packet did that ends with it.
    pub fn take_tx(&mut self, beat: Beat) -> Result<Option<Event>, RootError> {
        self.incoming.push(beat.data as u32);
        match (beat.keep, beat.last) {
            (0xFF, _) => self.incoming.push((beat.data >> 32) as u32),
            (0x0F, true) => {}
            _ => return Err(self.malformed(format!("keep {:#04x} with last {}", beat.keep, beat.last))),
        }
        if self.incoming.len() > PACKET_LIMIT {
            return Err(self.malformed("longer than any packet".into()));
        }
        if !beat.last {
            return Ok(None);
        }
        let dws = std::mem::take(&mut self.incoming);
        let kind = (dws[0] >> 24) as u8;
        let event = match kind {
            fmt_type::MEMORY_WRITE_32 | fmt_type::MEMORY_WRITE_64 => self.memory_write(&dws),
            fmt_type::COMPLETION | fmt_type::COMPLETION_DATA => self.complete(&dws),
            _ => Err(Refusal::Reason(format!("format and type {kind:#04x}"))),
        };
        event.map(Some).map_err(|refusal| match refusal {
            Refusal::Reason(reason) => RootError::Malformed { reason, dws },
            Refusal::Error(error) => error,
        })
    }

    fn malformed(&mut self, reason: String) -> RootError {
        RootError::Malformed { reason, dws: std::mem::take(&mut self.incoming) }
    }

    fn memory_write(&mut self, dws: &[u32]) -> Result<Event, Refusal> {
        let four = (dws[0] >> 24) as u8 == fmt_type::MEMORY_WRITE_64;
        let header = if four { 4 } else { 3 };
        let length = dws[0] as usize & 0x3FF;
        check(dws[0] & 0x00FF_FC00 == 0, || "traffic class, attributes or reserved bits are set".into())?;
        check(length != 0 && dws.len() == header + length, || {
            format!(
                "{} DWs behind the header, and its length field is {length}",
                dws.len() as isize - header as isize
            )
        })?;
        let enables = dws[1] as u8;
        let wanted = if length == 1 { 0x0F } else { 0xFF };
        check(enables == wanted, || format!("byte enables {enables:#04x} for {length} DWs"))?;
        check((dws[1] >> 16) as u16 == self.card, || format!("requester id {:#06x}", dws[1] >> 16))?;
        let address = if four { (dws[2] as u64) << 32 | dws[3] as u64 } else { dws[2] as u64 };
        check(address.is_multiple_of(4), || format!("address {address:#x} isn't aligned"))?;
        check(!four || address >> 32 != 0, || format!("a header of four DWs for address {address:#x}"))?;
        let bytes = length * 4;
        check(bytes <= self.max_payload, || {
            format!("{bytes} bytes of payload, {} allowed", self.max_payload)
        })?;
        let boundary = pcie::BOUNDARY_BYTES as u64;
        check(address / boundary == (address + bytes as u64 - 1) / boundary, || {
            format!("{bytes} bytes at {address:#x} cross 4 KiB")
        })?;

        if address & !0xFFF == MESSAGE_WINDOW {
            let data = dws[header].swap_bytes();
            let index = self.messages.iter().position(|message| *message == (address, data) && length == 1);
            let index = index.ok_or(Refusal::Error(RootError::Message { address, data }))?;
            self.fired.push(index);
            return Ok(Event::Message(index));
        }
        let region = self.regions.iter_mut().flatten().find(|(region, _)| {
            region.address <= address && address + bytes as u64 <= region.address + region.bytes as u64
        });
        let payload = dws[header..].iter().map(|dw| dw.to_be_bytes());
        if let Some((region, memory)) = region {
            let start = (address - region.address) as usize;
            for (place, bytes) in memory[start..start + bytes].chunks_mut(4).zip(payload) {
                place.copy_from_slice(&bytes);
            }
            return Ok(Event::Write { address, bytes });
        }
        let payload: Vec<u8> = payload.flatten().collect();
        match self.outside.as_mut().is_some_and(|memory| memory.write(address, &payload)) {
            true => Ok(Event::Write { address, bytes }),
            false => Err(Refusal::Error(RootError::Fault { address, bytes })),
        }
    }

    fn complete(&mut self, dws: &[u32]) -> Result<Event, Refusal> {
        let with_data = (dws[0] >> 24) as u8 == fmt_type::COMPLETION_DATA;
        let length = dws[0] as usize & 0x3FF;
        check(dws.len() >= 3, || "a completion header has three DWs".into())?;
        check(dws[0] & 0x00FF_FC00 == 0, || "traffic class, attributes or reserved bits are set".into())?;
        check((dws[1] >> 16) as u16 == self.card, || format!("completer id {:#06x}", dws[1] >> 16))?;
        check((dws[2] >> 16) as u16 == REQUESTER, || format!("requester id {:#06x}", dws[2] >> 16))?;
        let tag = (dws[2] >> 8) as u8 as usize;
        let outstanding = self.tags.get_mut(tag).and_then(Option::take);
        let outstanding = outstanding.ok_or(Refusal::Reason(format!("tag {tag} isn't outstanding")))?;
        let (bytes, status) = (dws[1] & 0xFFF, (dws[1] >> 13) as u8 & 7);
        let wanted = (outstanding.dws * 4) & 0xFFF;
        check(bytes == wanted, || format!("byte count {bytes}, the read was of {wanted}"))?;
        let low = outstanding.offset & 0x7C;
        check(dws[2] & 0xFF == low, || {
            format!("lower address {:#x}, the read was at {low:#x}", dws[2] & 0xFF)
        })?;
        check(dws[1] & 1 << 12 == 0, || "the BCM bit is for PCI-X bridges".into())?;
        let result = if status == completion_status::SUCCESSFUL {
            check(with_data && length == outstanding.dws as usize && dws.len() == 3 + length, || {
                format!("{} DWs, {length} in the length field, {} wanted", dws.len() - 3, outstanding.dws)
            })?;
            let high = dws.get(4).map_or(0, |dw| dw.swap_bytes() as u64);
            Ok(dws[3].swap_bytes() as u64 | high << 32)
        } else {
            check(!with_data && dws.len() == 3 && length == 0, || "a refusal with data".into())?;
            Err(Refused { status })
        };
        self.done.insert(outstanding.read, result);
        Ok(Event::Completion(outstanding.read))
    }
}

enum Refusal {
    Reason(String),
    Error(RootError),
}

fn check(holds: bool, reason: impl FnOnce() -> String) -> Result<(), Refusal> {
    if holds {
        Ok(())
    } else {
        Err(Refusal::Reason(reason()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARD: u16 = 0x0300;

    fn root() -> Root {
        Root::new(0xE000_0000, CARD, 1)
    }

    fn send(root: &mut Root, dws: &[u32]) -> Result<Option<Event>, RootError> {
        let mut result = Ok(None);
        for beat in beats(dws) {
            result = root.take_tx(beat);
            if result.is_err() {
                break;
            }
        }
        result
    }

    fn write(address: u64, payload: &[u32]) -> Vec<u32> {
        let four = address >> 32 != 0;
        let kind = if four { 0x60u32 } else { 0x40 };
        let enables = if payload.len() == 1 { 0x0F } else { 0xFF };
        let mut dws = vec![kind << 24 | payload.len() as u32, (CARD as u32) << 16 | enables];
        if four {
            dws.push((address >> 32) as u32);
        }
        dws.push(address as u32);
        dws.extend(payload);
        dws
    }

    fn reason(result: Result<Option<Event>, RootError>) -> String {
        match result {
            Err(RootError::Malformed { reason, .. }) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_write_lands_in_memory_byte_for_byte() {
        let mut root = root();
        for region in [root.map(8192), root.map(8192)] {
            let event = send(&mut root, &write(region.address + 8, &[0x01020304, 0x05060708])).unwrap();
            assert_eq!(event, Some(Event::Write { address: region.address + 8, bytes: 8 }));
            assert_eq!(root.memory(&region)[8..16], [1, 2, 3, 4, 5, 6, 7, 8]);
            assert_eq!(root.load(&region, 8), Some(0x0807_0605_0403_0201));
            assert!(root.unmap(region));
            let fault = send(&mut root, &write(region.address + 8, &[0]));
            assert_eq!(fault, Err(RootError::Fault { address: region.address + 8, bytes: 4 }));
        }
    }

    #[test]
    fn memory_beside_a_region_is_out_of_reach() {
        let mut root = root();
        let region = root.map(4096);
        let end = region.address + 4096;
        assert_eq!(send(&mut root, &write(end, &[0])), Err(RootError::Fault { address: end, bytes: 4 }));
        let before = region.address - 4;
        assert_eq!(
            send(&mut root, &write(before, &[0])),
            Err(RootError::Fault { address: before, bytes: 4 })
        );
    }

    #[test]
    fn malformed_writes_are_named() {
        let mut root = root();
        let region = root.map(65536);
        let at = region.address;
        assert!(reason(send(&mut root, &write(at + 4092, &[0, 0]))).contains("cross 4 KiB"));
        assert!(reason(send(&mut root, &write(at, &[0; 65]))).contains("payload"));
        let mut long = write(at, &[0; 4]);
        long[0] += 1;
        assert!(reason(send(&mut root, &long)).contains("length field"));
        let mut enables = write(at, &[0; 4]);
        enables[1] ^= 1;
        assert!(reason(send(&mut root, &enables)).contains("byte enables"));
        let mut stranger = write(at, &[0; 4]);
        stranger[1] ^= 1 << 20;
        assert!(reason(send(&mut root, &stranger)).contains("requester id"));
        let four = vec![0x6000_0001, (CARD as u32) << 16 | 0x0F, 0, at as u32, 0];
        assert!(reason(send(&mut root, &four)).contains("header of four"));
        assert!(reason(root.take_tx(Beat { data: 0, keep: 0x0F, last: false })).contains("keep"));
        assert!(send(&mut root, &write(at, &[0; 64])).is_ok());
    }

    #[test]
    fn reads_are_matched_by_tag_in_any_order() {
        let mut root = root();
        let first = root.queue_read(0x104);
        let second = root.queue_reads(0x28, 2);
        let mut dws = Vec::new();
        while let Some(beat) = root.rx_beat() {
            dws.push(beat.data as u32);
            dws.push((beat.data >> 32) as u32);
            root.rx_taken();
        }
        assert_eq!(dws, [0x0000_0001, 0x0008_000F, 0xE000_0104, 0, 0x0000_0002, 0x0008_01FF, 0xE000_0028, 0]);
        let id = (CARD as u32) << 16;
        let answer = [0x4A00_0002, id | 8, 0x0008_0128, 0x01000000, 0x02000000];
        assert_eq!(send(&mut root, &answer).unwrap(), Some(Event::Completion(second)));
        assert_eq!(root.completion_double(second), Some(Ok(0x2_0000_0001)));
        assert!(!root.is_quiet());
        let refusal = [0x0A00_0000, id | 1 << 13 | 4, 0x0008_0004];
        send(&mut root, &refusal).unwrap();
        assert_eq!(root.completion(first), Some(Err(Refused { status: 1 })));
        assert!(root.is_quiet());
        assert!(reason(send(&mut root, &refusal)).contains("outstanding"));
    }

    #[test]
    fn messages_are_those_configured() {
        let mut root = root();
        root.add_message();
        let (address, data) = root.add_message();
        assert_eq!(send(&mut root, &write(address, &[data.swap_bytes()])).unwrap(), Some(Event::Message(1)));
        assert_eq!(root.take_messages(), [1]);
        assert!(root.take_messages().is_empty());
        let wrong = send(&mut root, &write(address, &[(data + 1).swap_bytes()]));
        assert_eq!(wrong, Err(RootError::Message { address, data: data + 1 }));
    }
}
