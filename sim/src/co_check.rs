//! Checks that RustHDL's simulation of a block and its generated Verilog do the same, at every event.
//!
//! A [`Recorder`] takes down a RustHDL run: after each event, that is whenever clock or inputs were
//! changed and the block has settled, what changed at its ports. [`replay`] drives a Verilated
//! [`Model`] by the inputs and compares every output after every event. [`CoCheck`] does both as the
//! run goes on.

use crate::verilator::{ports_of, Model, Port, VerilatorError};
use hdl::block_ports::{Direction, PortVisitor, Ports};
use hdl::prelude::Block;
use std::path::Path;
use std::time::Instant;

/// The two simulations differ.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "RustHDL and Verilator differ at event {event} (rising edge {edge} of {clock}): \
     {port} is {expected:#x} in RustHDL and {found:#x} in Verilator"
)]
pub struct Mismatch {
    /// Number of the event, from 0.
    pub event: u64,
    /// Rising edges of the first clock until then.
    pub edge: u64,
    /// The first clock.
    pub clock: String,
    /// The output that differs.
    pub port: String,
    /// Its value in RustHDL.
    pub expected: u128,
    /// Its value in Verilator.
    pub found: u128,
}

/// What happened at a block's ports, event by event.
///
/// An event is a u16 count, then so often a port's u16 number and its new value, little-endian in as
/// few bytes as its width needs. Numbers are those of [`ports_of`].
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// The ports.
    pub ports: Vec<Port>,
    /// The events.
    pub bytes: Vec<u8>,
    /// How many there are.
    pub events: u64,
}

impl Trace {
    /// Where another run of the same block parts from this one, if it does: the first event and port.
    pub fn first_difference(&self, other: &Trace) -> Option<Difference> {
        assert_eq!(self.ports, other.ports, "traces of different blocks");
        let mut traces = [self, other].map(|trace| (trace.bytes.as_slice(), vec![0u128; trace.ports.len()]));
        for event in 0..self.events.min(other.events) {
            for (rest, values) in &mut traces {
                let count = take(rest, 2) as u16;
                for _ in 0..count {
                    let number = take(rest, 2) as usize;
                    values[number] = take(rest, self.ports[number].bits.div_ceil(8));
                }
            }
            let [(_, first), (_, second)] = &traces;
            if let Some(number) = (0..first.len()).find(|&number| first[number] != second[number]) {
                let port = self.ports[number].name.clone();
                return Some(Difference { event, port, values: [first[number], second[number]] });
            }
        }
        (self.events != other.events).then(|| Difference {
            event: self.events.min(other.events),
            port: "the number of events".into(),
            values: [self.events as u128, other.events as u128],
        })
    }
}

/// Where two traces part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Number of the event, from 0.
    pub event: u64,
    /// The port.
    pub port: String,
    /// Its value in either.
    pub values: [u128; 2],
}

/// Takes down a run.
#[derive(Debug)]
pub struct Recorder {
    trace: Trace,
    last: Vec<Option<u128>>,
}

/// One look at all ports, appended to a trace.
struct Look<'a> {
    bytes: &'a mut Vec<u8>,
    last: &'a mut [Option<u128>],
    number: usize,
    changes: u16,
}

impl PortVisitor for Look<'_> {
    fn port(&mut self, _: &str, _: Option<usize>, _: Direction, bits: usize, value: u128) {
        let last = &mut self.last[self.number];
        if *last != Some(value) {
            *last = Some(value);
            self.bytes.extend_from_slice(&(self.number as u16).to_le_bytes());
            self.bytes.extend_from_slice(&value.to_le_bytes()[..bits.div_ceil(8)]);
            self.changes += 1;
        }
        self.number += 1;
    }
}

impl Recorder {
    /// A recorder for blocks like this one.
    pub fn new<B: Ports>(block: &B) -> Self {
        let ports = ports_of(block);
        assert!(ports.len() <= u16::MAX as usize, "{} ports", ports.len());
        Self { last: vec![None; ports.len()], trace: Trace { ports, ..Default::default() } }
    }

    /// Takes down an event; the block must have settled.
    pub fn event<B: Ports>(&mut self, block: &B) {
        let count_at = self.trace.bytes.len();
        self.trace.bytes.extend_from_slice(&[0; 2]);
        let mut look = Look { bytes: &mut self.trace.bytes, last: &mut self.last, number: 0, changes: 0 };
        block.visit_ports(&mut look);
        assert_eq!(look.number, self.trace.ports.len(), "another block than the one recorded before");
        let count = look.changes.to_le_bytes();
        self.trace.bytes[count_at..count_at + 2].copy_from_slice(&count);
        self.trace.events += 1;
    }

    /// What was recorded.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Forgets the events; the next one is taken down against the last.
    pub fn clear(&mut self) {
        self.trace.bytes.clear();
        self.trace.events = 0;
    }
}

/// The state of a replay: what RustHDL had at the ports, and how far it is.
#[derive(Clone, Debug)]
pub struct Replay {
    expected: Vec<u128>,
    outputs: Vec<usize>,
    clock: Option<usize>,
    event: u64,
    edge: u64,
}

impl Replay {
    /// From power-up.
    pub fn new(ports: &[Port]) -> Self {
        let outputs = (0..ports.len()).filter(|&p| ports[p].direction == Direction::Out).collect();
        let is_clock = |p: &Port| p.direction == Direction::In && p.bits == 1 && p.name.contains("clock");
        Self {
            expected: vec![0; ports.len()],
            outputs,
            clock: ports.iter().position(is_clock),
            event: 0,
            edge: 0,
        }
    }

    /// Rising edges of the first clock so far.
    pub fn edges(&self) -> u64 {
        self.edge
    }

    /// Goes through a trace that continues the one before. Compares the outputs if told so.
    fn run(&mut self, trace: &Trace, model: &mut Model, compare: bool) -> Result<(), Mismatch> {
        let mut rest = trace.bytes.as_slice();
        for _ in 0..trace.events {
            let count = take(&mut rest, 2) as u16;
            for _ in 0..count {
                let number = take(&mut rest, 2) as usize;
                let port = &trace.ports[number];
                let value = take(&mut rest, port.bits.div_ceil(8));
                self.expected[number] = value;
                if port.direction == Direction::In {
                    self.edge += (Some(number) == self.clock && value == 1) as u64;
                    model.set(number, value);
                }
            }
            model.eval();
            if compare {
                self.compare(trace, model)?;
            }
            self.event += 1;
        }
        assert!(rest.is_empty(), "the trace has {} bytes more than events", rest.len());
        Ok(())
    }

    fn compare(&self, trace: &Trace, model: &Model) -> Result<(), Mismatch> {
        for &number in &self.outputs {
            let found = model.get(number);
            if found != self.expected[number] {
                return Err(Mismatch {
                    event: self.event,
                    edge: self.edge,
                    clock: self.clock.map_or_else(|| "no clock".to_owned(), |c| trace.ports[c].name.clone()),
                    port: trace.ports[number].name.clone(),
                    expected: self.expected[number],
                    found,
                });
            }
        }
        Ok(())
    }
}

/// The next `bytes` of our own trace as a number.
fn take(rest: &mut &[u8], bytes: usize) -> u128 {
    let (head, tail) = rest.split_at(bytes);
    *rest = tail;
    let mut value = [0; 16];
    value[..bytes].copy_from_slice(head);
    u128::from_le_bytes(value)
}

/// Drives `model`, at power-up, by the trace's inputs and compares every output after every event.
/// Gives the number of rising edges of the first clock.
pub fn replay(trace: &Trace, model: &mut Model) -> Result<u64, Mismatch> {
    let mut replay = Replay::new(&trace.ports);
    replay.run(trace, model, true)?;
    Ok(replay.edges())
}

/// Cycles per second of a model on the trace's inputs, without comparing.
pub fn speed(trace: &Trace, model: &mut Model) -> f64 {
    let mut replay = Replay::new(&trace.ports);
    let start = Instant::now();
    replay.run(trace, model, false).expect("nothing is compared");
    replay.edges() as f64 / start.elapsed().as_secs_f64()
}

/// Runs a block's Verilated twin along with it.
pub struct CoCheck {
    recorder: Recorder,
    replay: Replay,
    model: Model,
    chunk: usize,
}

impl CoCheck {
    /// A twin of `block`, which must be connected and as at power-up. `cache` keeps the compiled model.
    pub fn new<B: Block + Ports>(block: &B, cache: &Path) -> Result<Self, VerilatorError> {
        Ok(Self::with_model(block, Model::of(block, cache)?))
    }

    /// The same with a model that is there, as at power-up; it may have further ports behind the block's.
    pub fn with_model<B: Ports>(block: &B, model: Model) -> Self {
        let recorder = Recorder::new(block);
        assert!(model.ports().starts_with(&recorder.trace.ports), "the model is another block's");
        let replay = Replay::new(&recorder.trace.ports);
        Self { recorder, replay, model, chunk: 1 << 20 }
    }

    /// The block has settled after a change of clock or inputs. A mismatch may be reported some events
    /// late, with the number of the event where it was.
    pub fn event<B: Ports>(&mut self, block: &B) -> Result<(), Mismatch> {
        self.recorder.event(block);
        if self.recorder.trace.bytes.len() >= self.chunk {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Mismatch> {
        let result = self.replay.run(&self.recorder.trace, &mut self.model, true);
        self.recorder.clear();
        result
    }

    /// Compares what is left; gives the events and the rising edges of the first clock compared.
    pub fn finish(mut self) -> Result<(u64, u64), Mismatch> {
        self.flush()?;
        Ok((self.replay.event, self.replay.edge))
    }
}
