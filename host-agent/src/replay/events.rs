//! Captures as one stream of events: what sources sent, and which of their writes had been answered.
//!
//! Frames of all captures are taken in the order of their stamps; within a file the order of the records
//! counts, whatever their stamps say. A target's frames are not replayed, but the moment of its answer
//! is: what a source sent after an answer may depend on it.

use crate::arguments::PortFile;
use crate::capture::{Capture, Captured};
use crate::error::Error;
use layout::aoe::{self, AtaFrame, Header};
use std::collections::{HashSet, VecDeque};
use std::path::PathBuf;
use zerocopy::FromBytes;

/// Writes of which the answer in the capture is still looked for. Far more than are ever in flight; one
/// that drops out of here is not waited for.
const MAXIMUM_OPEN: usize = 4096;

/// A frame that a source sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Counts the requests of all captures, from 0.
    pub id: u64,
    /// Port at which it enters.
    pub port: usize,
    /// Which record of its capture it is, from 1.
    pub record: u64,
    /// The frame.
    pub bytes: Vec<u8>,
}

/// What happens next in the captures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A source sent a frame.
    Sent(Request),
    /// The target had answered this write.
    Answered(u64),
}

/// What a look through all captures found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// MACs that answer as targets.
    pub targets: HashSet<[u8; 6]>,
    /// Frames in each capture, in the order of the arguments.
    pub frames: Vec<u64>,
}

/// Reads all captures to the end: they are whole, and it is known who the targets are.
pub fn survey(files: &[PortFile], mut progress: impl FnMut(u64)) -> Result<Survey, Error> {
    let mut survey = Survey::default();
    for file in files {
        let mut capture = Capture::open(&file.file)?;
        let mut frames = 0;
        while let Some(captured) = capture.next()? {
            frames += 1;
            if frames % 1024 == 0 {
                progress(1024);
            }
            if let Some(header) = aoe_header(&captured.bytes).filter(is_answer) {
                survey.targets.insert(header.source);
            }
        }
        survey.frames.push(frames);
    }
    Ok(survey)
}

/// The stream.
pub struct Events {
    lanes: Vec<Lane>,
    targets: HashSet<[u8; 6]>,
    /// Writes without an answer so far.
    open: VecDeque<(Key, u64)>,
    sent: u64,
    ignored: u64,
}

struct Lane {
    file: PathBuf,
    port: usize,
    capture: Capture,
    next: Option<Captured>,
    /// The latest stamp so far: a frame stamped before its predecessor comes right after it.
    time: u64,
}

/// What an answer echoes of its request.
type Key = ([u8; 6], u16, u8, u32);

impl Events {
    /// Begins at the start of every file.
    pub fn new(files: &[PortFile], survey: &Survey) -> Result<Self, Error> {
        let mut lanes = Vec::new();
        for file in files {
            let capture = Capture::open(&file.file)?;
            let mut lane = Lane { file: file.file.clone(), port: file.port, capture, next: None, time: 0 };
            lane.advance()?;
            lanes.push(lane);
        }
        Ok(Self { lanes, targets: survey.targets.clone(), open: VecDeque::new(), sent: 0, ignored: 0 })
    }

    /// The next event; `None` at the end of all captures.
    pub fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            let waiting = self.lanes.iter_mut().filter(|lane| lane.next.is_some());
            let Some(lane) = waiting.min_by_key(|lane| lane.time) else { return Ok(None) };
            let (port, taken) = (lane.port, lane.next.take());
            lane.advance()?;
            let Some(captured) = taken else { continue };
            let source: Option<[u8; 6]> = captured.bytes.get(6..12).and_then(|mac| mac.try_into().ok());
            if source.is_some_and(|source| self.targets.contains(&source)) || captured.bytes.is_empty() {
                self.ignored += 1;
                match self.answered(&captured.bytes) {
                    Some(id) => return Ok(Some(Event::Answered(id))),
                    None => continue,
                }
            }
            return Ok(Some(Event::Sent(self.request(port, captured))));
        }
    }

    /// Frames that were not replayed, because a target had sent them.
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    /// The file of a port.
    pub fn file(&self, port: usize) -> String {
        let lane = self.lanes.iter().find(|lane| lane.port == port);
        lane.map_or_else(String::new, |lane| lane.file.display().to_string())
    }

    fn request(&mut self, port: usize, captured: Captured) -> Request {
        let id = self.sent;
        self.sent += 1;
        if is_write(&captured.bytes) {
            if let Some(header) = aoe_header(&captured.bytes) {
                if self.open.len() == MAXIMUM_OPEN {
                    self.open.pop_front();
                }
                self.open.push_back((key(&header, header.source), id));
            }
        }
        Request { id, port, record: captured.record, bytes: captured.bytes }
    }

    fn answered(&mut self, frame: &[u8]) -> Option<u64> {
        let header = aoe_header(frame).filter(is_answer)?;
        let key = key(&header, header.destination);
        let place = self.open.iter().position(|(open, _)| *open == key)?;
        self.open.remove(place).map(|(_, id)| id)
    }
}

impl Lane {
    fn advance(&mut self) -> Result<(), Error> {
        self.next = self.capture.next()?;
        if let Some(captured) = &self.next {
            self.time = self.time.max(captured.time);
        }
        Ok(())
    }
}

fn key(header: &Header, initiator: [u8; 6]) -> Key {
    (initiator, header.shelf.get(), header.slot, header.tag.get())
}

/// The AoE header of a frame that has one.
pub fn aoe_header(frame: &[u8]) -> Option<Header> {
    let (header, _) = Header::read_from_prefix(frame).ok()?;
    (header.ethertype.get() == aoe::ETHERTYPE).then_some(header)
}

/// Is it an answer?
pub fn is_answer(header: &Header) -> bool {
    header.version_flags & aoe::FLAG_RESPONSE != 0
}

/// Is it an ATA write, by its command?
pub fn is_write(frame: &[u8]) -> bool {
    let Ok((request, _)) = AtaFrame::read_from_prefix(frame) else { return false };
    request.header.ethertype.get() == aoe::ETHERTYPE
        && !is_answer(&request.header)
        && request.header.command == aoe::COMMAND_ATA
        && matches!(request.ata.command_status, aoe::ATA_WRITE | aoe::ATA_WRITE_EXT)
}
