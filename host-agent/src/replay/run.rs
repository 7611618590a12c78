//! The loop of a replay: offer what may be offered, step the card, take answers and records.

use super::events::{is_write, Event, Events, Request};
use super::flight::Flight;
use super::recorder::{Recorded, Recorder};
use crate::arguments::Replay;
use crate::error::Error;
use crate::output::Output;
use driver::{Card, Counters, Driver, LeafClock};
use indicatif::ProgressBar;
use layout::registers::{Counter, CORE_HZ};
use serde::Serialize;
use sim::SimulatedCard;
use std::time::{Duration, Instant};

/// Cycles between two looks at what came out of the card.
const LOOK_CYCLES: u64 = 256;
/// Cycles without news, beyond the target's own delay, after which the counters are looked at: more
/// than the longest frames of all ports take through the card.
const QUIET_CYCLES: u64 = 12_000;
/// Cycles without news after which the card is taken to be stuck: twice the default hold time.
const STUCK_CYCLES: u64 = 10_000_000;
/// How long the card may take to settle at the end, in its own time.
const STOP_LIMIT: Duration = Duration::from_millis(100);

/// Counted from the captures' side.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Of each port.
    pub ports: Vec<PortTotals>,
    /// Drops for room, hold and closed that have been dealt with, of each port.
    pub dealt_with: Vec<u64>,
}

/// A port's.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct PortTotals {
    /// Frames that sources sent, each once.
    pub frames: u64,
    /// Of those, ATA writes.
    pub writes: u64,
    /// Frames that were offered again.
    pub offered_again: u64,
}

/// What came of a replay.
pub struct Outcome {
    /// From the captures' side.
    pub ports: Vec<PortTotals>,
    /// From the card's side.
    pub counters: Vec<Counters>,
    /// Leaf clocks at the end.
    pub clocks: Vec<LeafClock>,
    /// In the journal.
    pub recorded: Recorded,
    /// Frames of targets, which were not replayed.
    pub ignored: u64,
    /// Core cycles from power-up.
    pub cycles: u64,
    /// Core cycles a second, from the first frame to the last record.
    pub cycles_per_second: f64,
    /// Largest difference of two locked leaf clocks, ns.
    pub worst_skew_ns: f64,
}

/// A replay under way.
pub struct Run<'a> {
    pub flight: Flight,
    pub recorder: Recorder,
    pub events: Events,
    pub arguments: &'a Replay,
    pub bar: ProgressBar,
    pub output: &'a mut Output,
    pub totals: Totals,
}

impl Run<'_> {
    /// Replays everything, until every write is final and durable.
    pub fn until_settled(mut self, mut driver: Driver<SimulatedCard>) -> Result<Outcome, Error> {
        let ports = driver.ports();
        self.totals = Totals { ports: vec![PortTotals::default(); ports], dealt_with: vec![0; ports] };
        let (began, first_cycle) = (Instant::now(), driver.card().cycles());
        let mut next = self.events.next()?;
        let mut news = first_cycle;
        let mut looked = first_cycle;
        loop {
            if self.recorder.stop_requested() {
                next = None;
            }
            let mut moved = self.offer(&mut driver, &mut next)?;
            if next.is_none() && self.flight.is_empty() {
                break;
            }
            step(&mut driver)?;
            moved |= self.take_answers(&mut driver);
            // Watermarks come from idle ports too: they are no news.
            self.recorder.take(&mut driver, &mut self.flight)?;
            self.commit(&mut driver, false)?;
            check_target(&driver)?;
            let cycle = driver.card().cycles();
            if moved {
                (news, looked) = (cycle, cycle);
            } else if cycle - looked > QUIET_CYCLES + self.arguments.answer_after {
                if self.settle_quiet_ports(&mut driver)? {
                    news = driver.card().cycles();
                }
                looked = driver.card().cycles();
            }
            if driver.card().cycles() - news > STUCK_CYCLES {
                return Err(Error::Failed(format!(
                    "the card has not moved for {STUCK_CYCLES} cycles; frames are still undecided"
                )));
            }
        }
        self.finish(driver, began, first_cycle)
    }

    /// Offers lost frames first, then new ones, as far as there is room. Says whether it offered any.
    fn offer(&mut self, driver: &mut Driver<SimulatedCard>, next: &mut Option<Event>) -> Result<bool, Error> {
        let mut offered = false;
        while let Some((port, bytes)) = self.flight.offer_lost() {
            driver.card_mut().offer(port, bytes);
            self.totals.ports[port].offered_again += 1;
            offered = true;
        }
        while !self.flight.has_lost() {
            match next {
                None => break,
                // In a burst nobody waits for what the sources had waited for.
                Some(Event::Answered(id)) if !self.arguments.burst && self.flight.is_open(*id) => break,
                Some(Event::Answered(_)) => {}
                Some(Event::Sent(request)) if !self.flight.may_offer(request) => break,
                Some(Event::Sent(request)) => {
                    self.count(request);
                    driver.card_mut().offer(request.port, request.bytes.clone());
                    self.flight.offered(request.clone());
                    offered = true;
                }
            }
            self.bar.inc(1);
            *next = self.events.next()?;
        }
        Ok(offered)
    }

    fn count(&mut self, request: &Request) {
        let totals = &mut self.totals.ports[request.port];
        totals.frames += 1;
        totals.writes += u64::from(is_write(&request.bytes));
    }

    /// Says whether an answer came that was waited for.
    fn take_answers(&mut self, driver: &mut Driver<SimulatedCard>) -> bool {
        let mut news = false;
        for port in 0..SimulatedCard::PORTS {
            while let Some(frame) = driver.card_mut().returned(port) {
                news |= self.flight.answer(&frame);
            }
        }
        news
    }

    /// Makes durable what is due and, if asked for, says so at once.
    fn commit(&mut self, driver: &mut Driver<SimulatedCard>, now: bool) -> Result<(), Error> {
        let Some(durable) = self.recorder.commit(driver, now)? else { return Ok(()) };
        if !self.arguments.progress_durable {
            return Ok(());
        }
        let (order, entries) = (durable.order, durable.entries);
        match self.arguments.json {
            true => {
                self.output.json(&serde_json::json!({ "durable": { "order": order, "entries": entries } }))?
            }
            false => self.output.line(format!("durable order:{order} entries:{entries}"))?,
        }
        self.output.flush()
    }

    /// Nothing has come for a while: looks at each port whether it has decided everything, and what
    /// got lost. Says whether that changed anything.
    fn settle_quiet_ports(&mut self, driver: &mut Driver<SimulatedCard>) -> Result<bool, Error> {
        let mut changed = false;
        for port in 0..SimulatedCard::PORTS {
            if self.flight.is_waiting(port) {
                changed |= self.settle_port(driver, port)?;
            }
        }
        Ok(changed)
    }

    /// Every frame that was offered is counted once by the card, whatever became of it. When the counts
    /// are complete and no write is in flight, what has neither answer nor entry was dropped.
    fn settle_port(&mut self, driver: &mut Driver<SimulatedCard>, port: usize) -> Result<bool, Error> {
        let counters = driver.counters(port)?;
        if decided(&counters) < self.flight.count(port) || driver.card().queued(port) > 0 {
            return Ok(false);
        }
        // Answers that are on their way arrive, and entries that are still in the port's ring.
        driver.flush()?;
        for _ in 0..(QUIET_CYCLES + self.arguments.answer_after) / LOOK_CYCLES + 1 {
            step(driver)?;
            self.take_answers(driver);
            self.recorder.take(driver, &mut self.flight)?;
        }
        let counters = driver.counters(port)?;
        let in_all = dropped_for_now(&counters);
        let dropped = in_all - self.totals.dealt_with[port];
        self.totals.dealt_with[port] = in_all;
        let rest = self.flight.at_rest(port);
        if rest.writes > dropped {
            let record = self.flight.first_missing(port).unwrap_or_default();
            let file = self.events.file(port);
            return Err(Error::Failed(format!(
                "port {port}: frame {record} of {file} is a write that the card neither journaled nor dropped for \
                 room or hold: the card and the software engine disagree about it"
            )));
        }
        // More were dropped than writes are missing: then it was others that nobody answered.
        self.flight.settle(port, dropped > rest.writes);
        Ok(true)
    }

    fn finish(
        mut self,
        mut driver: Driver<SimulatedCard>,
        began: Instant,
        first_cycle: u64,
    ) -> Result<Outcome, Error> {
        let ports = driver.ports();
        let (recorder, flight) = (&mut self.recorder, &mut self.flight);
        driver
            .stop(STOP_LIMIT, |driver| recorder.take(driver, flight).map(|_| ()))
            .map_err(|error| Error::Failed(format!("stopping the card: {error}")))?;
        self.commit(&mut driver, true)?;
        let seconds = began.elapsed().as_secs_f64();
        let cycles = driver.card().cycles();
        let open = self.recorder.open(ports);
        if open > 0 {
            return Err(Error::Failed(format!(
                "{open} entries have no answer, and the target gave all it had"
            )));
        }
        let mut counters = Vec::new();
        let mut clocks = Vec::new();
        for port in 0..SimulatedCard::PORTS {
            counters.push(driver.counters(port)?);
            clocks.push(driver.leaf_clock(port)?);
        }
        self.bar.finish_and_clear();
        let outcome = Outcome {
            ports: self.totals.ports,
            counters,
            clocks,
            recorded: self.recorder.close()?,
            ignored: self.events.ignored(),
            cycles,
            cycles_per_second: (cycles - first_cycle) as f64 / seconds,
            worst_skew_ns: driver.card().worst_skew_ns(),
        };
        check_counts(&outcome)?;
        Ok(outcome)
    }
}

/// Steps the card. Not [`Driver::wait`]: that reads a register after every time-out, and here the
/// card's time is the scarce thing.
fn step(driver: &mut Driver<SimulatedCard>) -> Result<(), Error> {
    let time = Duration::from_nanos(LOOK_CYCLES * 1_000_000_000 / CORE_HZ);
    driver.card_mut().wait(time)?;
    Ok(())
}

fn check_target(driver: &Driver<SimulatedCard>) -> Result<(), Error> {
    match driver.card().target().trouble() {
        None => Ok(()),
        Some(trouble) => Err(Error::Failed(format!("the target: {trouble}"))),
    }
}

/// Frames from the port's sources of which the card has decided what becomes of them.
fn decided(counters: &Counters) -> u64 {
    let not_a_fate = [
        Counter::Duplicate,
        Counter::Updated,
        Counter::Refused,
        Counter::Unknown,
        Counter::Returned,
        Counter::DroppedReturn,
        Counter::Unmatched,
    ];
    counters.iter().filter(|(counter, _)| !not_a_fate.contains(counter)).map(|(_, count)| count).sum()
}

/// Frames that would have been taken at another time.
fn dropped_for_now(counters: &Counters) -> u64 {
    [Counter::DroppedBuffer, Counter::DroppedHold, Counter::DroppedClosed]
        .map(|counter| counters.get(counter))
        .iter()
        .sum()
}

/// What the captures, the card and the journal say must agree.
fn check_counts(outcome: &Outcome) -> Result<(), Error> {
    let mut journaled = 0;
    for (port, (totals, counters)) in outcome.ports.iter().zip(&outcome.counters).enumerate() {
        let (offered, decided) = (totals.frames + totals.offered_again, decided(counters));
        if offered != decided {
            return Err(Error::Failed(format!(
                "port {port}: {offered} frames were offered, and the card counted {decided}"
            )));
        }
        journaled += counters.get(Counter::Journaled);
    }
    let Recorded { entries, lost, .. } = outcome.recorded;
    if journaled != entries + lost {
        return Err(Error::Failed(format!(
            "the card journaled {journaled} writes, and {entries} reached the journal"
        )));
    }
    Ok(())
}
