//! Merging beside ingest. A step runs on a thread of its own; the journal's thread only begins and finishes it.
//!
//! What is due is looked for every few seconds, at once when room is found to be short, and again while entries have no
//! room. As long as steps do something they follow one another. When room is short, what the schedule allows to shrink
//! then is due too: that is said, in the status and on standard error, and so is what had to stay and why.

use super::desk::{say, Desk};
use super::owner::{Held, Work};
use crate::error::Error;
use crate::status::{MergedStatus, MergingStatus, Room};
use journal::merge::{MergeOptions, MergeOutcome, MergeStep, Merged};
use journal::{Journal, Space};
use std::collections::VecDeque;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::mpsc::{sync_channel, SyncSender};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// After a step that did nothing, what is due is looked for again then.
const PERIOD: Duration = Duration::from_secs(5);
/// And while entries have no room. Looking reads the index of everything that was received.
const NO_ROOM_PERIOD: Duration = Duration::from_millis(200);
/// Looking takes this part of the time at most: a large journal is looked at less often.
const LOOKING_PART: u32 = 20;
/// How often the journal's thread looks whether it is time.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// What was done because room is short is said this often, and at the end.
const SAY_EVERY: Duration = Duration::from_secs(5);
/// As long as the same is held back, that is said again only then.
const SAY_AGAIN: Duration = Duration::from_secs(600);
/// Part of the journal, in segments, that entries leave to merging; and at least and at most so many. In the one
/// segment that a small journal is made with for it, no step frees anything.
const PART_FOR_MERGING: u32 = 8;
const FOR_MERGING: (u32, u32) = (4, 16);
/// Clients that may wait for merging.
const ASKING: usize = super::protocol::CONNECTIONS;

/// Merging that a client asked for.
pub struct Asked {
    options: MergeOptions,
    merged: Merged,
    tell: SyncSender<Result<Merged, Error>>,
}

impl Asked {
    /// To be done with these options until nothing is due; `tell` hears what came of it.
    pub fn new(options: MergeOptions, tell: SyncSender<Result<Merged, Error>>) -> Self {
        Self { options, merged: Merged::default(), tell }
    }

    fn ended(self, result: Result<(), Error>) {
        // Whoever asked may be gone by now.
        drop(self.tell.send(result.map(|()| self.merged)));
    }
}

/// Who a step is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    /// Nobody asked.
    Itself,
    /// The first client.
    Asked,
}

/// See the module.
pub struct Merging {
    steps: SyncSender<MergeStep>,
    bases: Vec<(String, PathBuf)>,
    asked: VecDeque<Asked>,
    /// Of the step that is under way: who it is for, whether room was short, and since when.
    running: Option<(For, bool, Instant)>,
    /// The last step did something, so more may be due.
    goes_on: bool,
    /// The thread is gone.
    dead: bool,
    due: Instant,
    ended: Instant,
    was_low: bool,
    has_schedule: bool,
    /// What came of the steps that follow one another.
    round: Merged,
    earlier: Merged,
    status: MergingStatus,
    /// Done because room is short, and not yet said.
    unsaid: Merged,
    said: Instant,
    held_back: (Vec<String>, Instant),
}

impl Merging {
    /// With bases by the names of their volumes.
    pub fn start(desk: &Arc<Desk>, bases: Vec<(String, PathBuf)>) -> Result<Self, Error> {
        let (steps, take) = sync_channel::<MergeStep>(1);
        let desk = Arc::downgrade(desk);
        let work = move || {
            while let Ok(step) = take.recv() {
                let outcome = catch_unwind(AssertUnwindSafe(|| step.run())).ok();
                let Some(desk) = desk.upgrade() else { return };
                if desk.send(Work::Merged(outcome.map(Box::new))).is_err() {
                    return;
                }
            }
        };
        let started = thread::Builder::new().name("merging".into()).spawn(work);
        started.map_err(|e| Error::Failed(format!("starting to merge: {e}")))?;
        let now = Instant::now();
        Ok(Self {
            steps,
            bases,
            asked: VecDeque::new(),
            running: None,
            goes_on: false,
            dead: false,
            due: now,
            ended: now,
            was_low: false,
            has_schedule: false,
            round: Merged::default(),
            earlier: Merged::default(),
            status: MergingStatus::default(),
            unsaid: Merged::default(),
            said: now,
            held_back: (Vec::new(), now),
        })
    }

    /// A client's request.
    pub fn ask(&mut self, asked: Asked) {
        match self.asked.len() < ASKING {
            true => self.asked.push_back(asked),
            false => {
                asked.ended(Err(Error::Failed("too many wait for merging already; try again later".into())))
            }
        }
    }

    /// Something waits until no step is under way. Where nothing could be begun because there is no room, it waits
    /// for the room that merging makes, too.
    pub fn is_waited_for(&mut self, held: &Held) {
        self.goes_on |= self.has_schedule && held.is_full() && self.ended.elapsed() > NO_ROOM_PERIOD;
    }

    /// What had to wait can be done.
    pub fn lets_others(&self, held: &Held) -> bool {
        self.rests() && !(self.goes_on && held.is_full())
    }

    /// No step is under way.
    pub fn rests(&self) -> bool {
        self.running.is_none()
    }

    /// How long the journal's thread may wait for work.
    pub fn look_again(&self) -> Option<Duration> {
        let waits = self.rests() && (self.has_schedule || self.unsaid != Merged::default());
        waits.then_some(LOOK_AGAIN)
    }

    /// Begins a step, if it is time.
    pub fn go_on(&mut self, held: &mut Held, desk: &Desk) {
        let no_room = std::mem::take(&mut held.no_room);
        if self.unsaid != Merged::default() && self.said.elapsed() >= SAY_EVERY {
            self.say_what_was_done(desk);
        }
        if self.running.is_some() {
            return;
        }
        let Ok(journal) = held.journal() else { return self.refuse() };
        if self.dead || desk.activity.is_ending() {
            return self.refuse();
        }
        let schedule = &journal.tables().schedule;
        self.has_schedule = !schedule.is_empty();
        self.status.schedule = schedule.to_string();
        desk.set_merging(&self.status);
        // Without a schedule nothing would ever use it.
        journal.keep_for_merging(if self.has_schedule { for_merging(&journal.space()) } else { 0 });
        let space = journal.space();
        let low = Room::of(&space).is_low();
        let (options, whose) = match self.asked.front() {
            Some(asked) => {
                let mut options = asked.options.clone();
                options.bases.extend(self.bases.iter().cloned());
                (options, For::Asked)
            }
            None if !self.is_time(low, no_room) => return,
            None => {
                let bases = self.bases.clone();
                (MergeOptions { short: low, freeing_only: true, bases }, For::Itself)
            }
        };
        self.was_low = low;
        self.running = Some((whose, options.short, Instant::now()));
        self.begin(held, desk, &options, &space);
    }

    fn is_time(&self, low: bool, no_room: bool) -> bool {
        let pressed = no_room && self.ended.elapsed() >= NO_ROOM_PERIOD;
        self.has_schedule && (self.goes_on || pressed || (low && !self.was_low) || Instant::now() >= self.due)
    }

    fn begin(&mut self, held: &mut Held, desk: &Desk, options: &MergeOptions, space: &Space) {
        let begun = held.journal().and_then(|journal| {
            // What isn't durable isn't merged; and nobody else makes it so while it rests.
            journal.sync()?;
            Ok(journal.begin_merge(options, most(space))?)
        });
        match begun {
            Ok(step) => match self.steps.send(step) {
                Ok(()) => {
                    self.status.running = true;
                    desk.set_merging(&self.status);
                }
                Err(_) => self.has_died(desk),
            },
            Err(error) => {
                held.check();
                self.step_ended(desk, Err(error));
            }
        }
    }

    /// A step has been done: makes it count.
    pub fn finish(&mut self, held: &mut Held, desk: &Desk, outcome: Option<Box<MergeOutcome>>) {
        let Some(outcome) = outcome else { return self.has_died(desk) };
        let finished = held.journal().and_then(|journal: &mut Journal| Ok(journal.finish_merge(*outcome)?));
        if finished.is_err() {
            held.check();
        }
        self.step_ended(desk, finished);
    }

    fn step_ended(&mut self, desk: &Desk, finished: Result<Merged, Error>) {
        let Some((whose, short, began)) = self.running.take() else { return };
        let now = Instant::now();
        self.ended = now;
        self.status.running = false;
        self.goes_on = finished.as_ref().is_ok_and(|step| step.steps > 0);
        if !self.goes_on {
            self.due = now + PERIOD.max((now - began) * LOOKING_PART);
        }
        match &finished {
            Ok(step) => {
                self.status.trouble = None;
                self.count(step, short);
                self.hold_back(desk, &step.held_back, short);
            }
            Err(error) => {
                let trouble = Some(format!("merging: {error}"));
                if trouble != self.status.trouble {
                    say(format_args!("warning: {}: merging: {error}", desk.name.display()));
                }
                self.status.trouble = trouble;
            }
        }
        if !self.goes_on {
            self.round = Merged::default();
        }
        desk.set_merging(&self.status);
        if whose == For::Asked {
            self.tell(finished);
        }
    }

    fn count(&mut self, step: &Merged, short: bool) {
        if step.steps == 0 {
            return;
        }
        self.round.add(step);
        self.status.last = MergedStatus::from(&self.round);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
        self.status.last_ended = Some(now);
        if short {
            self.earlier.add(step);
            self.status.earlier = MergedStatus::from(&self.earlier);
            self.unsaid.add(step);
        }
    }

    /// What is held back when room is short ends in a full journal: that is said as soon as it is known.
    fn hold_back(&mut self, desk: &Desk, held_back: &[String], short: bool) {
        self.status.held_back = held_back.to_vec();
        let gist: Vec<String> = held_back.iter().map(|line| gist(line)).collect();
        let (said, when) = &mut self.held_back;
        if short && !gist.is_empty() && (*said != gist || when.elapsed() >= SAY_AGAIN) {
            for line in held_back {
                say(format_args!("warning: {}: room is short, and {line}", desk.name.display()));
            }
            self.held_back = (gist, Instant::now());
        }
    }

    fn tell(&mut self, finished: Result<Merged, Error>) {
        let Some(mut asked) = self.asked.pop_front() else { return };
        match finished {
            Ok(step) if step.steps > 0 => {
                asked.merged.add(&step);
                self.asked.push_front(asked);
            }
            Ok(step) => {
                asked.merged.held_back = step.held_back;
                asked.ended(Ok(()));
            }
            Err(error) => asked.ended(Err(error)),
        }
    }

    fn say_what_was_done(&mut self, desk: &Desk) {
        let done = MergedStatus::from(&std::mem::take(&mut self.unsaid));
        self.said = Instant::now();
        say(format_args!("{}: room is short, so earlier than otherwise: {done}", desk.name.display()));
    }

    /// An error in the program itself. What it had of the journal stays unused until the next session, and is
    /// cleared by it.
    fn has_died(&mut self, desk: &Desk) {
        self.dead = true;
        let what = "an error in the program itself; standard error says where. Nothing is merged until the next start";
        self.step_ended(desk, Err(Error::Failed(what.into())));
        self.refuse();
    }

    fn refuse(&mut self) {
        self.goes_on = false;
        for asked in self.asked.drain(..) {
            asked.ended(Err(Error::Failed("the daemon doesn't merge any more".into())));
        }
    }

    /// Nothing more is merged.
    pub fn end(&mut self, desk: &Desk) {
        self.refuse();
        if self.unsaid != Merged::default() {
            self.say_what_was_done(desk);
        }
    }
}

/// Segments that entries leave to merging.
fn for_merging(space: &Space) -> u32 {
    (space.segments / PART_FOR_MERGING).clamp(FOR_MERGING.0, FOR_MERGING.1).min(space.segments / 3)
}

/// Segments that a step may write: ingest has as many left.
fn most(space: &Space) -> usize {
    (space.free.saturating_sub(space.reserved) / 2).max(space.for_merging) as usize
}

/// What is held back and why, without the time, which goes on.
fn gist(line: &str) -> String {
    let (before, rest) = line.split_once("history before ").unwrap_or((line, ""));
    let (_, after) = rest.split_once(" is kept").unwrap_or(("", rest));
    format!("{before}{after}")
}
