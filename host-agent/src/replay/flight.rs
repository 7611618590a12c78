//! What has been offered to the engine and isn't settled yet.
//!
//! A write is settled when its answer has come back to its source and its entry has come out of the
//! port's ring; every entry must be that of a write that was offered, byte for byte by its CRC where it holds
//! the written data. What the engine dropped for room or hold shows by having neither: then it is *lost*, and is offered again, in its
//! place, before anything newer.

use super::events::{aoe_header, is_answer, Request};
use ::engine::frame::{classify, Decision, PortRules, Write};
use ::engine::switch::Images;
use driver::Record;
use layout::aoe::{self, Header};
use layout::crc;
use layout::entry::Kind;
use std::collections::VecDeque;

/// Frames of a port that are kept until they're settled.
const MAXIMUM_KEPT: usize = 4096;

/// A volume that the target serves.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    /// AoE shelf.
    pub shelf: u16,
    /// AoE slot.
    pub slot: u8,
    /// Its size in sectors.
    pub sectors: u64,
}

/// How much may be under way at a port.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Writes without an answer.
    pub window: usize,
    /// Bytes that may still lie in the port's buffer. `None`: whatever comes of it.
    pub buffer_bytes: Option<usize>,
}

/// What will come back of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    /// An entry, and an answer.
    Write(Extent),
    /// An answer.
    Answer,
    /// Nothing: it is dropped, or nobody answers it.
    Nothing,
    /// Nothing, after several reads of old data that the target doesn't give: it is dropped later than what
    /// came behind it is decided.
    Unread,
}

/// What a write writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    volume: u16,
    lba: u64,
    sectors: u16,
    payload_crc: u32,
    source: [u8; 6],
}

impl Extent {
    fn overlaps(&self, other: &Extent) -> bool {
        self.volume == other.volume
            && self.lba < other.lba + u64::from(other.sectors)
            && other.lba < self.lba + u64::from(self.sectors)
    }
}

struct Sent {
    request: Request,
    expect: Expect,
    /// Who asked what; of frames that expect an answer.
    header: Option<Header>,
    answered: bool,
    entry: bool,
    lost: bool,
}

impl Sent {
    /// May it still lie in the port's buffer?
    fn is_undecided(&self) -> bool {
        !self.answered && !self.entry && !self.lost
    }

    fn is_write(&self) -> bool {
        matches!(self.expect, Expect::Write(_))
    }

    fn is_open_write(&self) -> bool {
        self.is_write() && !self.answered
    }

    fn is_settled(&self) -> bool {
        match self.expect {
            Expect::Write(_) => self.answered && self.entry,
            Expect::Answer => self.answered,
            Expect::Nothing | Expect::Unread => false,
        }
    }
}

/// Everything under way at all ports.
pub struct Flight {
    ports: Vec<VecDeque<Sent>>,
    offered: Vec<u64>,
    limits: Limits,
    rules: PortRules,
    /// The volumes that the target serves.
    served: Vec<Served>,
    /// What is journaled of a write.
    images: Images,
}

/// What became of what was under way at a port that has come to rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtRest {
    /// Other writes without an entry.
    pub writes: u64,
    /// Other frames whose answer is missing.
    pub others: u64,
    /// Writes without an entry that are equal to an earlier one with an entry: copies, if that one was held when
    /// they came (it took their tags, the last of which has the answer), or lost.
    pub equal: u64,
}

impl Flight {
    /// Nothing is under way.
    pub fn new(ports: usize, limits: Limits, rules: PortRules, served: Vec<Served>, images: Images) -> Self {
        let lanes = (0..ports).map(|_| VecDeque::new()).collect();
        Self { ports: lanes, offered: vec![0; ports], limits, rules, served, images }
    }

    /// May `request` be offered now?
    ///
    /// A write waits for every older one that it overlaps, and a request for every older one that its
    /// answer could be mistaken for. A copy of a write needn't wait for it.
    pub fn may_offer(&self, request: &Request) -> bool {
        let (expect, header) = self.expectation(&request.bytes);
        let lane = &self.ports[request.port];
        if lane.len() >= MAXIMUM_KEPT || !self.has_room(request, expect) {
            return false;
        }
        let older = || self.ports.iter().flatten().filter(|sent| !sent.answered);
        let mistakable = |sent: &Sent| match (&sent.header, &header) {
            (Some(a), Some(b)) => (a.source, a.tag, a.command) == (b.source, b.tag, b.command),
            _ => false,
        };
        if older().any(mistakable) {
            return false;
        }
        let Expect::Write(extent) = expect else { return true };
        !older().any(|sent| match sent.expect {
            Expect::Write(other) => {
                other.overlaps(&extent) && !(other == extent && sent.request.port == request.port)
            }
            _ => false,
        })
    }

    fn has_room(&self, request: &Request, expect: Expect) -> bool {
        let lane = &self.ports[request.port];
        let in_flight = lane.iter().filter(|sent| sent.is_open_write() && !sent.lost).count();
        if matches!(expect, Expect::Write(_)) && in_flight >= self.limits.window {
            return false;
        }
        let undecided: usize =
            lane.iter().filter(|sent| sent.is_undecided()).map(|sent| room(&sent.request.bytes)).sum();
        match self.limits.buffer_bytes {
            Some(bytes) => undecided == 0 || undecided + room(&request.bytes) <= bytes,
            // Nobody could tell whether such a frame was dropped for room, so it comes alone.
            None => !matches!(expect, Expect::Nothing | Expect::Unread) || undecided == 0,
        }
    }

    /// `request` has been offered.
    pub fn offered(&mut self, request: Request) {
        let (expect, header) = self.expectation(&request.bytes);
        let port = request.port;
        self.offered[port] += 1;
        let sent = Sent { request, expect, header, answered: false, entry: false, lost: false };
        self.ports[port].push_back(sent);
    }

    /// Takes the next lost frame that has room now: its port and bytes, to be offered again.
    pub fn offer_lost(&mut self) -> Option<(usize, Vec<u8>)> {
        for port in 0..self.ports.len() {
            let Some(at) = self.ports[port].iter().position(|sent| sent.lost) else { continue };
            let sent = &self.ports[port][at];
            if self.has_room(&sent.request, sent.expect) {
                self.offered[port] += 1;
                let sent = &mut self.ports[port][at];
                sent.lost = false;
                return Some((port, sent.request.bytes.clone()));
            }
        }
        None
    }

    /// Are there lost frames?
    pub fn has_lost(&self) -> bool {
        self.ports.iter().flatten().any(|sent| sent.lost)
    }

    /// Has the write `id` no answer yet?
    pub fn is_open(&self, id: u64) -> bool {
        self.ports.iter().flatten().any(|sent| sent.request.id == id && sent.is_open_write())
    }

    /// Nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.ports.iter().all(VecDeque::is_empty)
    }

    /// Something at `port` may still be in its buffer or with the target.
    pub fn is_waiting(&self, port: usize) -> bool {
        self.ports[port].iter().any(|sent| !sent.answered && !sent.lost)
    }

    /// Frames offered at `port`, those offered again included.
    pub fn count(&self, port: usize) -> u64 {
        self.offered[port]
    }

    /// A frame came out of a port. Says whether it was an answer that was waited for.
    pub fn answer(&mut self, frame: &[u8]) -> bool {
        let Some(answer) = aoe_header(frame).filter(is_answer) else { return false };
        for lane in &mut self.ports {
            let answers = |sent: &Sent| !sent.answered && is_answer_to(&answer, sent);
            let Some(at) = lane.iter().position(answers) else { continue };
            lane[at].answered = true;
            // A port decides in the order of arrival: what came before this frame has been decided.
            let mut place = 0;
            lane.retain(|sent| {
                place += 1;
                place > at || sent.expect != Expect::Nothing
            });
            lane.retain(|sent| !sent.is_settled());
            return true;
        }
        false
    }

    /// An entry came out of a port's ring. Says whether a write that was offered there is its origin: the
    /// oldest of that place, for overlapping writes are journaled in the order in which they came.
    pub fn entry(&mut self, record: &Record<'_>) -> bool {
        let (header, written) = (record.header, written_crc(record));
        let Some(lane) = self.ports.get_mut(usize::from(header.port)) else { return false };
        let is_origin = |sent: &Sent| match sent.expect {
            Expect::Write(extent) => {
                let Extent { volume, lba, sectors, payload_crc, source: _ } = extent;
                !sent.entry
                    && (volume, lba, sectors) == (header.volume.get(), header.lba(), header.sectors.get())
                    && written.is_none_or(|crc| crc == payload_crc)
            }
            _ => false,
        };
        let Some(at) = lane.iter().position(is_origin) else { return false };
        lane[at].entry = true;
        lane.retain(|sent| !sent.is_settled());
        true
    }

    /// `port` has come to rest: everything is decided and answered. What is missing?
    pub fn at_rest(&self, port: usize) -> AtRest {
        let lane = &self.ports[port];
        let mut rest = AtRest { writes: 0, others: 0, equal: 0 };
        for (place, sent) in lane.iter().enumerate() {
            match sent.expect {
                // Known as that already, and not offered again yet.
                _ if sent.lost => {}
                Expect::Write(_) if sent.entry => {}
                Expect::Write(_) if self.is_equal_to_earlier(port, place) => rest.equal += 1,
                Expect::Write(_) => rest.writes += 1,
                Expect::Answer => rest.others += u64::from(!sent.answered),
                Expect::Nothing | Expect::Unread => {}
            }
        }
        rest
    }

    /// Is what stands at `place` equal to an earlier write that has an entry?
    fn is_equal_to_earlier(&self, port: usize, place: usize) -> bool {
        let lane = &self.ports[port];
        lane.iter().take(place).any(|earlier| earlier.entry && earlier.expect == lane[place].expect)
    }

    /// `port` has come to rest: forgets what nothing will come back of, and marks as lost the writes
    /// without an entry; with `others`, other unanswered frames too. Of the equal ones `copies` were dropped
    /// because the write was held that they are equal to, and the rest are lost. Which is which doesn't matter:
    /// they write the same, and nothing that overlaps them came between.
    pub fn settle(&mut self, port: usize, others: bool, copies: u64) {
        let mut copies = copies;
        // An answered one is the likelier copy.
        for answered in [true, false] {
            for place in 0..self.ports[port].len() {
                let is_equal = self.is_equal_to_earlier(port, place);
                let sent = &mut self.ports[port][place];
                if sent.is_write() && sent.answered == answered && !sent.entry && !sent.lost {
                    let is_copy = is_equal && copies > 0;
                    copies -= u64::from(is_copy);
                    sent.lost = !is_copy;
                }
            }
        }
        for sent in &mut self.ports[port] {
            match sent.expect {
                Expect::Answer => sent.lost = others && !sent.answered,
                // It is to be answered when it is offered again.
                Expect::Write(_) if sent.lost => sent.answered = false,
                _ => {}
            }
        }
        // Whatever became of a write's answer: its entry, or that of its equal, is there, and it is final.
        self.ports[port].retain(|sent| sent.lost);
    }

    /// The first write at `port` that has neither entry nor answer: which record of the capture it is.
    pub fn first_missing(&self, port: usize) -> Option<u64> {
        let mut lane = self.ports[port].iter();
        lane.find(|sent| sent.is_open_write() && !sent.entry).map(|sent| sent.request.record)
    }

    fn expectation(&self, frame: &[u8]) -> (Expect, Option<Header>) {
        let header = aoe_header(frame);
        match (classify(frame, &self.rules), header) {
            (Decision::Write(write), _) if self.is_unreadable(&write) => (Expect::Unread, None),
            (Decision::Write(write), Some(header)) => {
                let extent = Extent {
                    volume: write.volume,
                    lba: write.lba,
                    sectors: write.sectors,
                    payload_crc: crc::crc32c(&frame[write.payload]),
                    source: write.source,
                };
                (Expect::Write(extent), Some(header))
            }
            (Decision::Pass, Some(header)) if self.is_served(&header, frame) => {
                (Expect::Answer, Some(header))
            }
            _ => (Expect::Nothing, None),
        }
    }

    /// Is it a write whose old data the target can't give, for they lie past the volume's end? It is dropped
    /// then, and its source never hears of it.
    fn is_unreadable(&self, write: &Write) -> bool {
        let address = (write.shelf, write.slot);
        let volume = self.served.iter().find(|volume| (volume.shelf, volume.slot) == address);
        self.images.has_before()
            && volume.is_none_or(|volume| write.lba + u64::from(write.sectors) > volume.sectors)
    }

    /// Does the target answer it?
    fn is_served(&self, header: &Header, frame: &[u8]) -> bool {
        let (shelf, slot) = (header.shelf.get(), header.slot);
        let addressed = self.served.iter().any(|volume| {
            [volume.shelf, aoe::SHELF_BROADCAST].contains(&shelf)
                && [volume.slot, aoe::SLOT_BROADCAST].contains(&slot)
        });
        let query_of_what_is_set = header.command == aoe::COMMAND_CONFIG
            && frame.get(::engine::frame::CONFIG_COMMAND_BYTE).is_some_and(|byte| byte & 0x0F != 0);
        addressed && !query_of_what_is_set
    }
}

/// CRC of the written data that an entry holds; a before-image has none.
fn written_crc(record: &Record<'_>) -> Option<u32> {
    match record.kind {
        Kind::Before => None,
        Kind::Both => Some(crc::crc32c(&record.payload[record.payload.len() / 2..])),
        _ => Some(record.header.payload_crc.get()),
    }
}

/// Bytes that a frame takes in a port's buffer: whole words, and one that describes it.
fn room(frame: &[u8]) -> usize {
    frame.len().next_multiple_of(8) + 8
}

fn is_answer_to(answer: &Header, sent: &Sent) -> bool {
    let Some(request) = &sent.header else { return false };
    (answer.destination, answer.tag, answer.command) == (request.source, request.tag, request.command)
        && [answer.shelf.get(), aoe::SHELF_BROADCAST].contains(&request.shelf.get())
        && [answer.slot, aoe::SLOT_BROADCAST].contains(&request.slot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::engine::frame::VolumeTable;
    use layout::aoe::Ata;
    use layout::entry::{Encoding, EntryHeader, Updated};
    use sim::target::{request as frame, Target, TargetVolume, VbladeModel};

    const SOURCE: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn flight(limits: Limits) -> Flight {
        let volumes = VolumeTable::new(&[(1, 0)]).unwrap();
        let rules = PortRules { volumes, allowed: 1, writes_open: true };
        Flight::new(2, limits, rules, vec![Served { shelf: 1, slot: 0, sectors: 128 }], Images::After)
    }

    const NORMAL: Limits = Limits { window: 2, buffer_bytes: Some(4096) };
    const BURST: Limits = Limits { window: 2, buffer_bytes: None };

    fn write(id: u64, port: usize, lba: u8, byte: u8) -> Request {
        let ata = Ata {
            flags: 0x41,
            error_feature: 0,
            sectors: 1,
            command_status: aoe::ATA_WRITE_EXT,
            lba: [lba, 0, 0, 0, 0, 0],
            reserved: [0; 2],
        };
        let bytes = frame(SOURCE, (1, 0), id as u32, ata, &[byte; 512]);
        Request { id, port, record: id + 1, bytes }
    }

    fn answer(request: &Request) -> Vec<u8> {
        let image = sim::target::Image::Memory(vec![0; 256 * 512]);
        let mut answers = Vec::new();
        VbladeModel::new(vec![TargetVolume::new(1, 0, 256, image)]).frame(&request.bytes, 0, &mut answers);
        answers.remove(0).1
    }

    /// An entry came whose write wrote `byte`s over zeroes. Is it one of those offered?
    fn came(flight: &mut Flight, kind: Kind, port: u8, lba: u64, byte: u8) -> bool {
        let (before, after) = ([0; 512], [byte; 512]);
        let payload = match kind {
            Kind::Before => before.to_vec(),
            Kind::Both => [before, after].concat(),
            _ => after.to_vec(),
        };
        let mut header = EntryHeader::new(kind);
        header.port = port;
        header.volume = 0.into();
        header.sectors = 1.into();
        header.set_lba(lba);
        header.seal(&payload);
        let (encoding, updated) = (Encoding::Raw, Updated::Pending);
        let (header, payload) = (&header, &payload[..]);
        flight.entry(&Record { header, kind, encoding, updated, payload, made_by_driver: false })
    }

    fn entry(flight: &mut Flight, port: u8, lba: u64, byte: u8) -> bool {
        came(flight, Kind::After, port, lba, byte)
    }

    #[test]
    fn the_window_the_buffer_and_overlaps_hold_writes_back() {
        let mut flight = flight(NORMAL);
        let (a, b, c) = (write(0, 0, 0, 1), write(1, 0, 1, 2), write(2, 0, 2, 3));
        flight.offered(a.clone());
        assert!(!flight.may_offer(&write(9, 0, 0, 9)), "overlaps");
        assert!(!flight.may_offer(&write(9, 1, 0, 9)), "overlaps, from another port");
        assert!(flight.may_offer(&write(9, 0, 0, 1)), "a copy");
        assert!(!flight.may_offer(&write(0, 0, 7, 9)), "the same tag");
        flight.offered(b.clone());
        assert!(!flight.may_offer(&c), "window");
        assert!(flight.may_offer(&write(9, 1, 7, 1)), "another port's window");
        assert!(flight.answer(&answer(&a)) && !flight.answer(&answer(&a)));
        assert!(flight.may_offer(&c) && !flight.is_open(0) && flight.is_open(1));
        assert!(entry(&mut flight, 0, 0, 1) && !entry(&mut flight, 0, 0, 1));
        assert!(!entry(&mut flight, 0, 1, 9) && !entry(&mut flight, 1, 1, 2), "nobody wrote that there");
        assert!(entry(&mut flight, 0, 1, 2) && flight.answer(&answer(&b)));
        assert!(flight.is_empty());
    }

    #[test]
    fn lost_frames_are_offered_again_in_their_place() {
        let mut flight = flight(BURST);
        let (a, b) = (write(0, 0, 0, 1), write(1, 0, 1, 2));
        flight.offered(a.clone());
        flight.offered(b.clone());
        assert!(entry(&mut flight, 0, 1, 2) && flight.answer(&answer(&b)));
        assert_eq!(flight.at_rest(0), AtRest { writes: 1, others: 0, equal: 0 });
        flight.settle(0, false, 0);
        assert!(flight.has_lost() && !flight.may_offer(&write(9, 1, 0, 9)), "a lost write is still to come");
        assert_eq!(flight.offer_lost(), Some((0, a.bytes.clone())));
        assert_eq!((flight.has_lost(), flight.count(0), flight.is_empty()), (false, 3, false));
        assert!(flight.answer(&answer(&a)) && entry(&mut flight, 0, 0, 1) && flight.is_empty());
    }

    #[test]
    fn an_answer_that_got_lost_is_no_lost_write() {
        let mut flight = flight(NORMAL);
        flight.offered(write(0, 0, 0, 1));
        assert!(entry(&mut flight, 0, 0, 1));
        assert_eq!(flight.at_rest(0), AtRest { writes: 0, others: 0, equal: 0 });
        flight.settle(0, false, 0);
        assert!(flight.is_empty());
    }

    #[test]
    fn entries_are_known_by_what_their_images_tell() {
        let mut flight = flight(NORMAL);
        let (a, b) = (write(0, 0, 0, 1), write(1, 0, 1, 2));
        flight.offered(a.clone());
        flight.offered(b.clone());
        assert!(!came(&mut flight, Kind::Both, 0, 0, 2), "it wrote something else");
        assert!(came(&mut flight, Kind::Both, 0, 0, 1) && flight.answer(&answer(&a)));
        assert!(!came(&mut flight, Kind::Before, 0, 0, 2), "nobody else wrote there");
        assert!(came(&mut flight, Kind::Before, 0, 1, 2) && flight.answer(&answer(&b)) && flight.is_empty());
    }

    #[test]
    fn a_copy_of_a_held_write_has_its_answer_and_no_entry() {
        let mut flight = flight(NORMAL);
        let [original, copy, another] = [0, 1, 2].map(|id| write(id, 0, 0, 1));
        for request in [&original, &copy, &another] {
            flight.offered(request.clone());
        }
        assert!(came(&mut flight, Kind::Before, 0, 0, 1) && flight.answer(&answer(&another)));
        assert_eq!(flight.at_rest(0), AtRest { writes: 0, others: 0, equal: 2 });
        flight.settle(0, false, 2);
        assert!(flight.is_empty());
    }

    #[test]
    fn of_equal_writes_as_many_are_lost_as_were_dropped_for_room() {
        let mut flight = flight(NORMAL);
        let requests = [0, 1, 2, 3].map(|id| write(id, 0, 0, 1));
        for request in &requests {
            flight.offered(request.clone());
        }
        assert!(came(&mut flight, Kind::Both, 0, 0, 1) && flight.answer(&answer(&requests[1])));
        assert_eq!(flight.at_rest(0), AtRest { writes: 0, others: 0, equal: 3 });
        // The second has the answer, one of the others was dropped as a copy too, and one found no room.
        flight.settle(0, false, 2);
        assert_eq!(flight.offer_lost(), Some((0, requests[3].bytes.clone())));
        assert!(flight.answer(&answer(&requests[3])) && came(&mut flight, Kind::Both, 0, 0, 1));
        assert!(flight.is_empty());
    }

    #[test]
    fn a_write_past_the_end_has_no_old_data_and_ends_with_nothing() {
        let mut flight = flight(NORMAL);
        flight.images = Images::Both;
        let (past, good) = (write(0, 0, 128, 1), write(1, 0, 5, 1));
        flight.offered(past);
        flight.offered(good.clone());
        assert!(!flight.is_open(0) && flight.is_open(1));
        assert!(flight.answer(&answer(&good)) && came(&mut flight, Kind::Both, 0, 5, 1));
        assert!(flight.is_waiting(0), "an answer behind it doesn't say that it is decided");
        assert_eq!(flight.at_rest(0), AtRest { writes: 0, others: 0, equal: 0 });
        flight.settle(0, false, 0);
        assert!(flight.is_empty());
    }
}
