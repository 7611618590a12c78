//! The loop of a replay: offer what may be offered, let something happen, take answers and records.

use super::engine::{Engine, Measured, Rings};
use super::events::{is_write, Event, Events, Request};
use super::flight::Flight;
use super::recorder::{Recorded, Recorder};
use crate::arguments::Replay;
use crate::error::Error;
use crate::output::{count, Output};
use driver::Counters;
use indicatif::ProgressBar;
use layout::registers::Counter;
use serde::Serialize;
use std::ops::Range;
use std::time::Instant;

/// Counted from the captures' side.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Of each port.
    pub ports: Vec<PortTotals>,
    /// Drops that have been dealt with, of each port.
    pub dealt_with: Vec<Drops>,
}

/// What an engine dropped though nothing was wrong with it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Drops {
    /// Frames that would have been taken at another time: no room, hold over, closed.
    for_now: u64,
    /// Copies of writes that were held: those have their tags since.
    copies: u64,
}

impl Drops {
    fn of(counters: &Counters) -> Self {
        let for_now = [Counter::DroppedBuffer, Counter::DroppedHold, Counter::DroppedClosed];
        Self {
            for_now: for_now.map(|counter| counters.get(counter)).iter().sum(),
            copies: counters.get(Counter::DroppedCopy),
        }
    }
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
    /// From the engine's side.
    pub counters: Vec<Counters>,
    /// What the engine measured of itself.
    pub measured: Measured,
    /// The engine's time when the first frame was offered, and after the last record.
    pub time: Range<u64>,
    /// In the journal.
    pub recorded: Recorded,
    /// Frames of targets, which were not replayed.
    pub ignored: u64,
    /// The host's time for that.
    pub seconds: f64,
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
    pub fn until_settled<E: Engine>(mut self, mut engine: E) -> Result<Outcome, Error> {
        let ports = engine.rings().ports();
        self.totals =
            Totals { ports: vec![PortTotals::default(); ports], dealt_with: vec![Drops::default(); ports] };
        let (began, at_first) = (Instant::now(), engine.now());
        let mut next = self.events.next()?;
        let mut news = at_first;
        let mut looked = news;
        loop {
            if self.recorder.stop_requested() {
                next = None;
            }
            let mut moved = self.offer(&mut engine, &mut next)?;
            if next.is_none() && self.flight.is_empty() {
                break;
            }
            engine.step()?;
            moved |= self.take_answers(&mut engine);
            // Watermarks come from idle ports too: they are no news.
            self.recorder.take(engine.rings(), &mut self.flight)?;
            if self.recorder.is_due(engine.commit_clock()) {
                self.commit(&mut engine)?;
            }
            check_target(&engine)?;
            if moved {
                (news, looked) = (engine.now(), engine.now());
            } else if engine.is_at_rest(looked) {
                if self.go_on(&mut engine)? {
                    news = engine.now();
                } else if !engine.wait(news)? {
                    if self.recorder.lost() > 0 {
                        return Err(Error::Failed(format!(
                            "the journal has no room for the before-images of {} that wait for them; they were not \
                             let through, and primary doesn't have them",
                            count(self.recorder.lost(), "write", "writes")
                        )));
                    }
                    return Err(Error::Failed(format!(
                        "{} does not move any more; frames are still undecided",
                        E::Rings::NAME
                    )));
                }
                looked = engine.now();
            }
        }
        self.finish(engine, began, at_first)
    }

    /// Nothing comes any more of itself: does what can be done from outside. The disk is first, for writes may
    /// wait for it; only what then is left may have been dropped. Says whether that changed anything.
    fn go_on<E: Engine>(&mut self, engine: &mut E) -> Result<bool, Error> {
        if self.recorder.is_waiting() {
            self.commit(engine)?;
            return Ok(true);
        }
        self.settle_quiet_ports(engine)
    }

    /// Offers lost frames first, then new ones, as far as there is room. Says whether it offered any.
    fn offer<E: Engine>(&mut self, engine: &mut E, next: &mut Option<Event>) -> Result<bool, Error> {
        let mut offered = false;
        while let Some((port, bytes)) = self.flight.offer_lost() {
            engine.offer(port, bytes);
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
                    engine.offer(request.port, request.bytes.clone());
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
    fn take_answers<E: Engine>(&mut self, engine: &mut E) -> bool {
        let mut news = false;
        for port in 0..engine.rings().ports() {
            while let Some(frame) = engine.returned(port) {
                news |= self.flight.answer(&frame);
            }
        }
        news
    }

    /// Makes durable what was appended and, if asked for, says so at once.
    fn commit<E: Engine>(&mut self, engine: &mut E) -> Result<(), Error> {
        let Some(durable) = self.recorder.commit(engine.rings())? else { return Ok(()) };
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

    /// Looks at each port whether it has decided everything, and what got lost. Says whether that changed
    /// anything.
    fn settle_quiet_ports<E: Engine>(&mut self, engine: &mut E) -> Result<bool, Error> {
        let mut changed = false;
        for port in 0..engine.rings().ports() {
            if self.flight.is_waiting(port) {
                changed |= self.settle_port(engine, port)?;
            }
        }
        Ok(changed)
    }

    /// Every frame that was offered is counted once by the engine, whatever became of it. When the counts
    /// are complete and no write is in flight, what has neither answer nor entry was dropped.
    fn settle_port<E: Engine>(&mut self, engine: &mut E, port: usize) -> Result<bool, Error> {
        let counters = engine.counters(port)?;
        if decided(&counters) < self.flight.count(port) || engine.is_arriving(port) {
            return Ok(false);
        }
        // Answers that are on their way arrive, and entries that are still in the port's ring.
        engine.flush()?;
        let flushed = engine.now();
        loop {
            engine.step()?;
            self.take_answers(engine);
            self.recorder.take(engine.rings(), &mut self.flight)?;
            if engine.is_at_rest(flushed) {
                break;
            }
        }
        let counters = engine.counters(port)?;
        let in_all = Drops::of(&counters);
        let dealt_with = std::mem::replace(&mut self.totals.dealt_with[port], in_all);
        let dropped = in_all.for_now - dealt_with.for_now;
        let copies = in_all.copies - dealt_with.copies;
        let rest = self.flight.at_rest(port);
        if rest.writes > dropped || rest.writes + rest.equal > dropped + copies {
            let record = self.flight.first_missing(port).unwrap_or_default();
            let (file, name) = (self.events.file(port), E::Rings::NAME);
            return Err(Error::Failed(format!(
                "port {port}: frame {record} of {file} is a write that {name} neither journaled nor dropped for \
                 room or hold: it should have done one of them"
            )));
        }
        // More were dropped than writes are missing: then it was others that nobody answered.
        let others = dropped + copies > rest.writes + rest.equal;
        self.flight.settle(port, others, copies);
        Ok(true)
    }

    fn finish<E: Engine>(mut self, mut engine: E, began: Instant, at_first: u64) -> Result<Outcome, Error> {
        let ports = engine.rings().ports();
        let (recorder, flight) = (&mut self.recorder, &mut self.flight);
        engine.stop(|rings| recorder.take(rings, flight))?;
        self.commit(&mut engine)?;
        let (seconds, time) = (began.elapsed().as_secs_f64(), at_first..engine.now());
        let open = self.recorder.open(ports);
        if open > 0 {
            return Err(Error::Failed(format!(
                "{open} entries have no answer, and the target gave all it had"
            )));
        }
        let counters = (0..ports).map(|port| engine.counters(port)).collect::<Result<_, _>>()?;
        self.bar.finish_and_clear();
        let outcome = Outcome {
            ports: self.totals.ports,
            counters,
            measured: engine.measured()?,
            time,
            recorded: self.recorder.close()?,
            ignored: self.events.ignored(),
            seconds,
        };
        check_counts(&outcome, E::Rings::NAME)?;
        Ok(outcome)
    }
}

fn check_target<E: Engine>(engine: &E) -> Result<(), Error> {
    match engine.target_trouble() {
        None => Ok(()),
        Some(trouble) => Err(Error::Failed(format!("the target: {trouble}"))),
    }
}

/// Frames from the port's sources of which the engine has decided what becomes of them.
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

/// What the captures, the engine and the journal say must agree.
fn check_counts(outcome: &Outcome, name: &str) -> Result<(), Error> {
    let mut journaled = 0;
    for (port, (totals, counters)) in outcome.ports.iter().zip(&outcome.counters).enumerate() {
        let (offered, decided) = (totals.frames + totals.offered_again, decided(counters));
        if offered != decided {
            return Err(Error::Failed(format!(
                "port {port}: {offered} frames were offered, and {name} counted {decided}"
            )));
        }
        journaled += counters.get(Counter::Journaled);
    }
    let Recorded { entries, lost, .. } = outcome.recorded;
    if journaled != entries + lost {
        return Err(Error::Failed(format!(
            "{name} journaled {journaled} writes, and {entries} reached the journal"
        )));
    }
    Ok(())
}
