//! The thread that switches frames: interfaces on one side, the switch between them, records handed over for the journal.
//!
//! It never waits for anything but frames, time-outs and what it is told. While no session is open the switch lets reads pass
//! and drops writes.

use super::clock::SwitchClock;
use super::handover::{Bell, Handover};
use super::report::{InterfaceStatus, Report, SwitchStatus};
use crate::daemon::say;
use engine::switch::{Now, Output, Switch};
use layout::aoe::{AtaFrame, COMMAND_ATA, ETHERTYPE};
use layout::entry::HEADER_BYTES;
use layout::registers::Counter;
use ports::interface::{wait, Interface, Link};
use ports::marking::Marking;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::Arc;
use zerocopy::FromBytes;

/// Frames that are taken from an interface before the others have their turn.
const BATCH: usize = 64;
/// ns from watermarks of all ports to the next, while entries come and nobody waits for the disk.
const FLUSH_PERIOD: u64 = 1_000_000;
/// A port's records go down when there are so many bytes of them.
const FLUSH_BYTES: usize = 1024 * HEADER_BYTES;
/// ns from one look at the interfaces to the next.
const LOOK_PERIOD: u64 = 200_000_000;
/// ns from one clearing of dirty regions to the next. What was written to since the last stays marked.
const CLEAR_PERIOD: u64 = 30_000_000_000;

/// What the thread is told.
pub enum Command {
    /// A session is open: writes go on, through this switch; and the regions that they dirty.
    Open(Box<Switch>, Arc<Handover>, Option<Arc<Marking>>),
    /// No more writes. Answered when everything that was under way is final and handed over.
    Close(SyncSender<()>),
    /// They go on after all.
    Reopen,
    /// The session is gone: nothing is handed over any more.
    Abandon,
    /// The thread ends.
    End,
}

/// An interface, and what became of its frames before they reached the switch.
struct Wire {
    interface: Interface,
    link: Link,
    /// Left because the uplink was down.
    uplink_down: u64,
    /// Left because they don't fit the uplink.
    too_long_for_uplink: u64,
}

impl Wire {
    fn new(interface: Interface) -> Self {
        Self { interface, link: Link::Up, uplink_down: 0, too_long_for_uplink: 0 }
    }

    /// Looks at the interface, and says what is new.
    fn look(&mut self) {
        let name = self.interface.name().to_owned();
        let mut link = self.interface.link();
        if link == Link::Gone && self.interface.open_again().is_ok() {
            link = self.interface.link();
        }
        if std::mem::replace(&mut self.link, link) == link {
            return;
        }
        say(match link {
            Link::Up => format!("interface {name}: up"),
            Link::Down => format!("warning: interface {name}: down; frames go on when it is up again"),
            Link::Gone => format!("warning: interface {name}: gone; frames go on when it is back"),
        });
    }
}

/// See the module.
pub struct Traffic {
    ports: Vec<Wire>,
    uplink: Wire,
    switch: Switch,
    session: Option<Arc<Handover>>,
    marking: Option<Arc<Marking>>,
    /// When regions were cleared last, what the journal had and targets had answered: up to this number.
    settled: u64,
    next_clear: u64,
    closing: Option<SyncSender<()>>,
    clock: SwitchClock,
    /// Somebody waits for the disk: nothing is kept back.
    hurries: bool,
    commands: Receiver<Command>,
    bell: Arc<Bell>,
    report: Arc<Report>,
    /// Every port has handed over up to this stamp.
    flushed: u64,
    next_flush: u64,
    next_look: u64,
    /// Told to the switch.
    durable: u64,
    /// Of switches of earlier sessions, by port.
    counted: Vec<Vec<u64>>,
    scratch: Vec<u8>,
}

impl Traffic {
    /// Between `ports` and `uplink`, with a switch whose writes are closed.
    pub fn new(
        ports: Vec<Interface>,
        uplink: Interface,
        mut switch: Switch,
        hurries: bool,
        commands: Receiver<Command>,
        bell: &Arc<Bell>,
        report: &Arc<Report>,
    ) -> Self {
        switch.set_writes_open(false);
        Self {
            counted: vec![vec![0; Counter::ALL.len()]; ports.len()],
            ports: ports.into_iter().map(Wire::new).collect(),
            uplink: Wire::new(uplink),
            switch,
            session: None,
            marking: None,
            settled: 0,
            next_clear: 0,
            closing: None,
            clock: SwitchClock::default(),
            hurries,
            commands,
            bell: Arc::clone(bell),
            report: Arc::clone(report),
            flushed: 0,
            next_flush: 0,
            next_look: 0,
            durable: 0,
            scratch: Vec::new(),
        }
    }

    fn now(&self) -> Now {
        self.clock.now(self.switch.last_stamp())
    }

    /// Switches until it is told to end.
    pub fn run(mut self) {
        loop {
            let elapsed = self.clock.elapsed();
            let limit = self.next_event(elapsed).saturating_sub(elapsed);
            let interfaces: Vec<&Interface> =
                std::iter::once(&self.uplink).chain(&self.ports).map(|wire| &wire.interface).collect();
            if let Err(error) = wait(&interfaces, self.bell.as_fd(), limit) {
                say(format_args!("waiting for frames: {error}"));
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            self.bell.hush();
            while let Ok(command) = self.commands.try_recv() {
                if self.obey(command) {
                    return self.show();
                }
            }
            self.hear_durable();
            self.hear_marked();
            self.take_frames();
            let elapsed = self.clock.elapsed();
            if self.switch.deadline().is_some_and(|deadline| deadline <= elapsed) {
                let now = self.now();
                self.switch.tick(&now);
                self.forward();
            }
            self.hand_over();
            self.end_closing();
            if self.next_look <= elapsed {
                self.next_look = elapsed + LOOK_PERIOD;
                std::iter::once(&mut self.uplink).chain(&mut self.ports).for_each(Wire::look);
                self.show();
            }
            self.clear_regions(elapsed);
        }
    }

    /// When there is something to do though nothing comes, in elapsed ns.
    fn next_event(&self, elapsed: u64) -> u64 {
        let mut next = self.switch.deadline().unwrap_or(u64::MAX).min(self.next_look);
        let Some(handover) = &self.session else { return next };
        // A hungry journal is given what there is; one that isn't rings when it is.
        if handover.is_hungry() && self.is_undelivered() {
            next = next.min(if self.hurries { elapsed } else { self.next_flush });
        }
        next
    }

    /// Says whether that was the end.
    fn obey(&mut self, command: Command) -> bool {
        match command {
            Command::Open(switch, handover, marking) => {
                self.keep_counts();
                (self.flushed, self.durable) = (switch.last_stamp(), switch.last_number());
                self.settled = switch.last_number();
                self.next_clear = self.clock.elapsed() + CLEAR_PERIOD;
                (self.switch, self.session, self.marking) = (*switch, Some(handover), marking);
            }
            Command::Close(answer) => {
                self.switch.set_writes_open(false);
                self.closing = Some(answer);
            }
            Command::Reopen => {
                self.closing = None;
                self.switch.set_writes_open(self.session.is_some());
            }
            Command::Abandon => {
                self.switch.set_writes_open(false);
                (self.session, self.marking, self.closing) = (None, None, None);
            }
            Command::End => return true,
        }
        false
    }

    /// The switch is about to be replaced by one that counts from 0.
    fn keep_counts(&mut self) {
        for (port, counted) in self.switch.ports().iter().zip(&mut self.counted) {
            for (counter, counted) in Counter::ALL.iter().zip(counted) {
                *counted += port.counter(*counter);
            }
        }
    }

    fn hear_durable(&mut self) {
        let Some(durable) = self.session.as_ref().map(|handover| handover.durable()) else { return };
        if durable > self.durable {
            self.durable = durable;
            let now = self.now();
            for port in 0..self.ports.len() {
                self.switch.durable(port, durable, &now);
            }
            self.forward();
        }
    }

    /// Writes may have waited for it.
    fn hear_marked(&mut self) {
        if self.marking.as_ref().is_some_and(|marking| marking.has_news()) {
            let now = self.now();
            self.switch.go_on(&now);
            self.forward();
        }
    }

    /// Now and then regions that nobody writes to any more are cleared. Here, where writes are admitted: none can come in between.
    fn clear_regions(&mut self, elapsed: u64) {
        let (Some(marking), Some(handover)) = (&self.marking, &self.session) else { return };
        if self.next_clear <= elapsed {
            self.next_clear = elapsed + CLEAR_PERIOD;
            marking.clear(self.settled);
            self.settled = self.switch.settled().min(handover.durable());
        }
    }

    fn take_frames(&mut self) {
        // Answers first: they make room.
        let (switch, clock) = (&mut self.switch, &self.clock);
        self.uplink.interface.receive(BATCH, |frame| switch.uplink(frame, &clock.now(switch.last_stamp())));
        self.forward();
        for port in 0..self.ports.len() {
            let (switch, clock, report, uplink) = (&mut self.switch, &self.clock, &self.report, &self.uplink);
            let Wire { interface, uplink_down, too_long_for_uplink, .. } = &mut self.ports[port];
            interface.receive(BATCH, |frame| {
                // Nothing is journaled that is known not to get through.
                if uplink.link != Link::Up {
                    *uplink_down += 1;
                } else if !uplink.interface.fits(frame) {
                    *too_long_for_uplink += 1;
                } else {
                    note_user(report, frame);
                    switch.frame(port, frame, &clock.now(switch.last_stamp()));
                }
            });
            self.forward();
        }
    }

    /// Sends what leaves the switch.
    fn forward(&mut self) {
        if let Some(handover) = &self.session {
            handover.set_last_number(self.switch.last_number());
        }
        while let Some(output) = self.switch.output() {
            match output {
                Output::Uplink(frame) => self.uplink.interface.send(&frame),
                Output::Port(port, frame) => self.ports[port].interface.send(&frame),
            };
        }
    }

    /// Something was stamped since every port told how far it has delivered, or isn't handed over.
    fn is_undelivered(&self) -> bool {
        self.switch.last_stamp() > self.flushed || self.switch.ports().iter().any(|port| port.level() > 0)
    }

    /// Hands over what is due.
    fn hand_over(&mut self) {
        // Mostly there is nothing, and then no lock is taken for it.
        if !self.is_undelivered() {
            return;
        }
        let Some(handover) = self.session.clone() else { return };
        let (now, ring) = (self.now(), self.switch.settings().ring_bytes);
        let asked = self.hurries || self.closing.is_some() || handover.is_waited_for();
        let room: Vec<bool> = (0..self.ports.len()).map(|port| handover.has_room(port, ring)).collect();
        let all = room.iter().all(|room| *room);
        // What fills a port's handover may wait for the watermark of one that has nothing to say.
        let due = (self.closing.is_some() || handover.is_hungry() || !all)
            && ((asked && all) || self.next_flush <= now.elapsed);
        if due {
            // One that stayed in the ring would keep the next from being put there.
            for port in (0..self.ports.len()).filter(|port| room[*port]) {
                self.switch.watermark(port, &now);
            }
            // Draining may let a write in, which is stamped above the watermarks.
            if all {
                self.flushed = self.switch.last_stamp();
            }
            self.next_flush = now.elapsed + FLUSH_PERIOD;
        }
        for (port, room) in room.into_iter().enumerate() {
            let level = self.switch.ports()[port].level();
            if level > 0 && (due || level >= FLUSH_BYTES) && room {
                self.scratch.clear();
                self.switch.drain(port, usize::MAX, &now, &mut self.scratch);
                handover.give(port, &self.scratch, self.switch.ports()[port].sources());
            }
        }
        self.forward();
    }

    /// Nothing is under way any more: the session may end.
    fn end_closing(&mut self) {
        if self.closing.is_none() || !self.switch.is_idle() || self.is_undelivered() {
            return;
        }
        self.marking = None;
        if let Some(handover) = self.session.take() {
            handover.end();
        }
        if let Some(answer) = self.closing.take() {
            // Whoever asked may have lost patience.
            let _ = answer.try_send(());
        }
    }

    /// For whoever asks how it goes.
    fn show(&mut self) {
        let uplink = status(&mut self.uplink, None, Vec::new());
        let counts: Vec<Vec<(&'static str, u64)>> = self
            .switch
            .ports()
            .iter()
            .zip(&self.counted)
            .map(|(port, counted)| {
                let counts = Counter::ALL.iter().zip(counted);
                counts.map(|(counter, before)| (counter.name(), before + port.counter(*counter))).collect()
            })
            .collect();
        let ports = self.ports.iter_mut().zip(counts).enumerate();
        let ports = ports.map(|(port, (wire, counts))| status(wire, Some(port as u8), counts)).collect();
        self.report.show(SwitchStatus { uplink, ports });
    }
}

fn status(wire: &mut Wire, port: Option<u8>, counts: Vec<(&'static str, u64)>) -> InterfaceStatus {
    let traffic = wire.interface.traffic();
    let outside = [
        ("dropped-ring-full", traffic.ring_full),
        ("dropped-longer-than-mtu", traffic.too_long),
        ("dropped-checksum-unfinished", traffic.unfinished),
        ("dropped-uplink-down", wire.uplink_down),
        ("dropped-too-long-for-uplink", wire.too_long_for_uplink),
        ("unsent", traffic.unsent),
    ];
    InterfaceStatus {
        port,
        name: wire.interface.name().to_owned(),
        link: format!("{:?}", wire.link).to_lowercase(),
        received: traffic.received,
        sent: traffic.sent,
        counters: counts
            .into_iter()
            .chain(outside)
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| (name.to_owned(), count))
            .collect(),
    }
}

/// Who uses a volume is known by its ATA requests.
fn note_user(report: &Report, frame: &[u8]) {
    let Ok((request, _)) = AtaFrame::ref_from_prefix(frame) else { return };
    let header = &request.header;
    if header.ethertype.get() == ETHERTYPE && header.command == COMMAND_ATA {
        report.note_user((header.shelf.get(), header.slot), header.source);
    }
}
