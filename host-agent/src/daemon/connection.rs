//! One client: a request, what it says meanwhile, and a result or an error.

use super::activity::{NoTurn, Turn};
use super::desk::Desk;
use super::ingest::{self, Listener};
use super::merging::Asked;
use super::owner::{Held, Work};
use super::protocol::{
    BasedResult, Command, MergeResult, Request, ResizeResult, Response, ResyncResult, RollBackResult,
    PROGRESS_EVERY, REQUEST_BYTES, REQUEST_WITHIN, TAKEN_WITHIN,
};
use crate::arguments::{Arguments, Replay};
use crate::error::Error;
use crate::image::named;
use crate::output::count;
use crate::through_card::{BlockDevice, Through, Way};
use crate::{base, bookmark, volume};
use clap::Parser;
use indicatif::ProgressBar;
use journal::base::{BaseOptions, Based};
use journal::merge::MergeOptions;
use journal::rollback::{RollbackOptions, Target};
use journal::{Journal, Moment, Schedule};
use serde::Serialize;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{sync_channel, Receiver, RecvTimeoutError};
use std::sync::Arc;
use std::time::Instant;

/// Lines of a replay that may wait for a client to take them; more are dropped.
const WAITING_LINES: usize = 1024;

/// Why what journals something of its own excludes the others.
const STAMPS: &str =
    "open ports still deliver records from before what it would journal, and primary must be written \
                      by one at a time";
/// Why a copy of primary does.
const WRITES: &str = "writes that are under way may be in the copy before they are in the journal";

/// Serves it to its end, and gives it back to be closed.
pub fn serve(stream: UnixStream, desk: &Arc<Desk>) -> UnixStream {
    let mut client = Client { stream, gone: false };
    let last = match client.request().and_then(|request| answer(request, &mut client, desk)) {
        Ok(value) => Response::Result(value),
        Err(error) => error.into(),
    };
    client.send(&last);
    client.stream
}

/// Says why, and ends it.
pub fn refuse(stream: UnixStream, why: &str) {
    // A new socket has room for a line; whoever has filled it is not waited for.
    if stream.set_nonblocking(true).is_ok() {
        let refusal = Response::Error { message: why.to_owned(), misuse: false };
        let mut line = serde_json::to_vec(&refusal).unwrap_or_default();
        line.push(b'\n');
        let _ = (&stream).write_all(&line);
    }
}

struct Client {
    stream: UnixStream,
    /// It doesn't listen any more.
    gone: bool,
}

impl Client {
    /// The request, which has to come within its time and length.
    fn request(&mut self) -> Result<Request, Error> {
        let wrong = |what: String| Error::Misuse(format!("control socket: {what}"));
        let until = Instant::now() + REQUEST_WITHIN;
        let mut line = Vec::new();
        let mut piece = [0; 4096];
        let end = loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(wrong(format!("no request within {} seconds", REQUEST_WITHIN.as_secs())));
            }
            let set = self.stream.set_read_timeout(Some(left));
            match set.and_then(|()| self.stream.read(&mut piece)) {
                Ok(0) => return Err(wrong("it was closed before the end of a line".into())),
                Ok(read) => line.extend_from_slice(&piece[..read]),
                Err(e)
                    if [ErrorKind::WouldBlock, ErrorKind::TimedOut, ErrorKind::Interrupted]
                        .contains(&e.kind()) => {}
                Err(e) => return Err(wrong(format!("reading the request: {e}"))),
            }
            if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
                break end;
            }
            if line.len() > REQUEST_BYTES {
                return Err(wrong(format!("a request has at most {REQUEST_BYTES} bytes")));
            }
        };
        line.truncate(end);
        Request::parse(&line).map_err(wrong)
    }

    fn send(&mut self, response: &Response) {
        if self.gone {
            return;
        }
        let Ok(mut line) = serde_json::to_vec(response) else { return };
        line.push(b'\n');
        let set = self.stream.set_write_timeout(Some(TAKEN_WITHIN));
        self.gone = set.and_then(|()| self.stream.write_all(&line)).is_err();
    }

    fn progress(&mut self, bar: &ProgressBar) {
        let total = bar.length().unwrap_or(0);
        self.send(&Response::Progress { done: bar.position().min(total), total });
    }

    /// Waits for work that is under way, and tells how far it is.
    fn wait_for<T>(&mut self, work: &Receiver<T>, bar: &ProgressBar) -> Result<T, Error> {
        loop {
            match work.recv_timeout(PROGRESS_EVERY) {
                Ok(done) => return Ok(done),
                Err(RecvTimeoutError::Timeout) => self.progress(bar),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::Failed("the daemon ended before the work did".into()))
                }
            }
        }
    }
}

type Answer = Result<serde_json::Value, Error>;

fn answer(request: Request, client: &mut Client, desk: &Arc<Desk>) -> Answer {
    if request.journal.as_ref().is_some_and(|journal| *journal != desk.journal_id) {
        let what = format!("this daemon holds another journal, {}", desk.name.display());
        return Err(Error::Failed(what));
    }
    let wait = request.wait;
    match request.command {
        Command::Status => value(&desk.status()),
        Command::BookmarkAdd { name, at } => {
            let moment: Moment = at.parse()?;
            // What can't be named is refused without the journal's thread. Then it is looked up once more where nothing
            // is merged meanwhile.
            desk.drain_served(None)?;
            bookmark::place(&desk.name, moment)?;
            let file = desk.name.clone();
            let added = desk.ask_between(move |held| {
                on(held, |journal| bookmark::add_to(journal, &name, bookmark::place(&file, moment)?))
            })?;
            value(&client.wait_for(&added, &ProgressBar::hidden())??)
        }
        Command::BookmarkRemove { name } => {
            let removed = desk.ask(move |held| on(held, |journal| bookmark::remove_from(journal, &name)))?;
            value(&client.wait_for(&removed, &ProgressBar::hidden())??)
        }
        Command::ImageCreate { name, volume, at } => {
            let moment: Moment = at.parse()?;
            desk.drain_served(None)?;
            bookmark::place(&desk.name, moment)?;
            let file = desk.name.clone();
            let added = desk.ask_between(move |held| {
                on(held, |journal| named::add_to(journal, &name, &volume, bookmark::place(&file, moment)?))
            })?;
            value(&client.wait_for(&added, &ProgressBar::hidden())??)
        }
        Command::ImageRemove { name } => {
            let removed = desk.ask(move |held| on(held, |journal| Ok(journal.remove_image(&name)?)))?;
            value(&client.wait_for(&removed, &ProgressBar::hidden())??)
        }
        Command::Resync { volume, primary, base, through_card: true, unknown } => {
            let what = match unknown {
                true => format!("a read-back of volume {volume}"),
                false => format!("a resync of volume {volume}"),
            };
            let turn = turn_beside(client, desk, &what, STAMPS, wait)?;
            let resynced =
                through_card(client, desk, turn, "resync", primary, false, move |desk, way, device, bar| {
                    let mut through = Through::new(desk, way, &volume, device, bar)?;
                    match base {
                        _ if unknown => through.read_back(),
                        Some(base) => through.resync(&base),
                        None => Err(Error::Misuse("a resync needs the volume's base".into())),
                    }
                })?;
            value(&ResyncResult(resynced))
        }
        Command::Resync { unknown: true, .. } => {
            Err(Error::Misuse("what nobody knows is read back through the card only".into()))
        }
        Command::Resync { volume, primary, base, .. } => {
            let base = base.ok_or_else(|| Error::Misuse("a resync needs the volume's base".into()))?;
            let turn = turn(client, desk, &format!("a resync of volume {volume}"), STAMPS, wait)?;
            let bar = turn.bar.clone();
            let resynced = desk.ask_between(move |held| {
                let mut progress = shown_on(&turn.bar);
                let done = on(held, |journal| Ok(journal.resync(&volume, &primary, &base, &mut progress)?));
                drop(turn);
                done
            })?;
            value(&ResyncResult(client.wait_for(&resynced, &bar)??))
        }
        Command::RollBack { volume, primary, base, at, discard, allow_gaps, through_card: through } => {
            let to = match at {
                Some(at) => Target::Moment(at.parse()?),
                None => Target::Undo { discard },
            };
            if through {
                let Some(base) = base else {
                    return Err(Error::Misuse("a rollback through the card needs the volume's base".into()));
                };
                let turn =
                    turn_beside(client, desk, &format!("a rollback of volume {volume}"), STAMPS, wait)?;
                let rolled = through_card(
                    client,
                    desk,
                    turn,
                    "rollback",
                    primary,
                    true,
                    move |desk, way, device, bar| {
                        Through::new(desk, way, &volume, device, bar)?.roll_back(&base, to, allow_gaps)
                    },
                )?;
                return value(&RollBackResult(rolled));
            }
            let turn = turn(client, desk, &format!("a rollback of volume {volume}"), STAMPS, wait)?;
            nobody_uses(desk, &volume)?;
            let bar = turn.bar.clone();
            let rolled = desk.ask_between(move |held| {
                let mut progress = shown_on(&turn.bar);
                let base = base.as_deref();
                let options = RollbackOptions { volume: &volume, primary: &primary, base, to, allow_gaps };
                let done = on(held, |journal| {
                    journal.roll_back(&options, &mut progress).map_err(crate::restore::explained)
                });
                drop(turn);
                done
            })?;
            value(&RollBackResult(client.wait_for(&rolled, &bar)??))
        }
        Command::Merge { schedule, short, all, bases } => {
            bases.values().try_for_each(|base| whole(base, "base"))?;
            if let Some(schedule) = schedule {
                let schedule: Schedule = schedule.parse().map_err(Error::Misuse)?;
                let set =
                    desk.ask_between(move |held| on(held, |journal| Ok(journal.set_schedule(&schedule)?)))?;
                client.wait_for(&set, &ProgressBar::hidden())??;
            }
            let (tell, told) = sync_channel(1);
            let bases = bases.into_iter().collect();
            desk.send(Work::Merge(Asked::new(MergeOptions { short, freeing_only: !all, bases }, tell)))?;
            value(&MergeResult::from(&client.wait_for(&told, &ProgressBar::hidden())??))
        }
        Command::BaseAdopt { volume, base, replace } => {
            whole(&base, "base")?;
            // What was copied there a moment ago takes long to be durable, and nothing need wait for that. Should it
            // fail, it does so again below, and is said there.
            let (tell, told) = sync_channel(1);
            let desk = Arc::clone(desk);
            beside("base", move || {
                drop(std::fs::File::open(&base).and_then(|file| file.sync_all()));
                let adopted = desk.call_between(move |held| {
                    on(held, |journal| Ok(journal.adopt_base(&volume, &base, replace)?))
                });
                drop(tell.send(adopted.flatten()));
            })?;
            value(&BasedResult(client.wait_for(&told, &ProgressBar::hidden())??))
        }
        Command::BaseCreate { volume, primary, base, replace } => {
            whole(&primary, "primary storage")?;
            whole(&base, "base")?;
            // What is served goes on meanwhile: it knows the last number that its arbiter gave.
            let turn = turn_beside(client, desk, &format!("a base of volume {volume}"), WRITES, wait)?;
            let bar = turn.bar.clone();
            let (tell, told) = sync_channel(1);
            let desk = Arc::clone(desk);
            beside("base", move || {
                let made = create_base(&desk, &turn, volume, primary, base, replace);
                drop(turn);
                drop(tell.send(made));
            })?;
            value(&BasedResult(client.wait_for(&told, &bar)??))
        }
        Command::VolumeResize { volume, sectors, primary } => {
            primary.iter().try_for_each(|primary| whole(primary, "primary storage"))?;
            if desk.activity.lodger().is_some_and(|lodger| lodger.serves(&volume)) {
                let what =
                    format!("volume {volume} is being served with the size that it has: stop that first");
                return Err(Error::Failed(what));
            }
            let turn = turn(client, desk, &format!("a resize of volume {volume}"), STAMPS, wait)?;
            let bar = turn.bar.clone();
            let file = desk.name.clone();
            let resized = desk.ask_between(move |held| {
                let done = resize(held, &file, &volume, sectors, primary.as_deref());
                drop(turn);
                done
            })?;
            value(&client.wait_for(&resized, &bar)??)
        }
        Command::Replay { arguments, folder } => {
            let replay = parse_replay(arguments, &folder)?;
            if desk.activity.lodger().is_some() {
                let what = format!(
                    "{}: volumes are being served; a replay needs the journal's ports",
                    desk.name.display()
                );
                return Err(Error::Failed(what));
            }
            let turn = turn(client, desk, &replaying(&replay), STAMPS, wait)?;
            let bar = turn.bar.clone();
            let (tell, told) = sync_channel(WAITING_LINES);
            ingest::start(desk, turn, replay, Listener::Client(tell))?;
            loop {
                match client.wait_for(&told, &bar)? {
                    Response::Result(value) => return Ok(value),
                    Response::Error { message, misuse: true } => return Err(Error::Misuse(message)),
                    Response::Error { message, misuse: false } => return Err(Error::Failed(message)),
                    line => client.send(&line),
                }
            }
        }
    }
}

/// On a thread of its own: what takes long, and goes on when the client has gone.
fn beside(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    started.map(drop).map_err(|e| Error::Failed(format!("starting a thread: {e}")))
}

/// On a thread of its own, which reaches primary by way of the card.
fn through_card<T: Send + 'static>(
    client: &mut Client,
    desk: &Arc<Desk>,
    turn: Turn,
    name: &str,
    primary: PathBuf,
    writes: bool,
    work: impl FnOnce(&Arc<Desk>, &dyn Way, &mut BlockDevice, &ProgressBar) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    whole(&primary, "primary storage")?;
    let Some(lodger) = desk.activity.lodger().filter(|lodger| lodger.way().is_some()) else {
        return Err(Error::Misuse(format!(
            "{}: no card is being drained into it, so there is no way through one",
            desk.name.display()
        )));
    };
    let bar = turn.bar.clone();
    let (tell, told) = sync_channel(1);
    let desk = Arc::clone(desk);
    beside(name, move || {
        let done = BlockDevice::open(&primary, writes).and_then(|mut device| match lodger.way() {
            Some(way) => work(&desk, way, &mut device, &turn.bar),
            None => Err(Error::Failed("the card is gone".into())),
        });
        drop(turn);
        drop(tell.send(done));
    })?;
    client.wait_for(&told, &bar)?
}

/// In three steps: the copy takes long, and bookmarks, say, go on meanwhile. Nothing is ingested: the turn is taken.
fn create_base(
    desk: &Desk,
    turn: &Turn,
    volume: String,
    primary: PathBuf,
    to: PathBuf,
    replace: bool,
) -> Result<Based, Error> {
    let name = volume.clone();
    let copy = desk.call_between(move |held| {
        on(held, |journal| {
            let options = BaseOptions { volume: &volume, primary: &primary, base: &to, replace };
            let mut copy = journal.begin_base(&options).map_err(base::explained)?;
            // Merging goes on during the copy.
            copy.settle()?;
            Ok(copy)
        })
    })??;
    let copied = copy.copy(&mut shown_on(&turn.bar))?;
    // If nothing is served the ports are closed: the journal has everything that the copy may hold. Else it has it as
    // soon as it has this number.
    let number = desk.drain_served(Some(&name))?;
    desk.call_between(move |held| {
        on(held, |journal| journal.finish_base(copied, number).map_err(base::explained))
    })?
}

fn resize(
    held: &mut Held,
    file: &Path,
    volume: &str,
    sectors: u64,
    primary: Option<&Path>,
) -> Result<ResizeResult, Error> {
    let before = held.journal()?.end().order;
    let resized = match on(held, |journal| Ok(journal.resize(volume, sectors, primary)?)) {
        Ok(resized) => resized,
        Err(error) => {
            held.give_up_own(before);
            return Err(error);
        }
    };
    Ok(ResizeResult { resized, primary: volume::fit(file, volume, primary)? })
}

/// A name means something only in a folder, and the daemon's is another than the client's.
fn whole(file: &Path, what: &str) -> Result<(), Error> {
    match file.is_absolute() {
        true => Ok(()),
        false => Err(Error::Misuse(format!("{}: the {what}'s name is not absolute", file.display()))),
    }
}

/// Does something with the journal.
fn on<T>(held: &mut Held, work: impl FnOnce(&mut Journal) -> Result<T, Error>) -> Result<T, Error> {
    let done = work(held.journal()?);
    done.inspect_err(|_| held.check())
}

fn shown_on(bar: &ProgressBar) -> impl FnMut(u64, u64) + use<> {
    let bar = bar.clone();
    move |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    }
}

/// A file system on a volume that is rolled back under it would not notice.
fn nobody_uses(desk: &Desk, volume: &str) -> Result<(), Error> {
    let clients = desk.activity.lodger().map_or(0, |lodger| lodger.clients(volume));
    match clients {
        0 => Ok(()),
        _ => Err(Error::Failed(format!(
            "volume {volume} is in use by {}: disconnect first, for whoever uses it would not notice that it changes",
            count(clients as u64, "client", "clients")
        ))),
    }
}

/// The turn, with the journal's ports closed: what is served steps aside.
fn turn(client: &mut Client, desk: &Arc<Desk>, what: &str, why: &str, wait: bool) -> Result<Turn, Error> {
    let turn = turn_beside(client, desk, what, why, wait)?;
    if let Some(lodger) = desk.activity.lodger() {
        lodger.step_aside()?;
    }
    Ok(turn)
}

/// The turn, at once or, if that was asked for, when what runs has ended.
fn turn_beside(
    client: &mut Client,
    desk: &Arc<Desk>,
    what: &str,
    why: &str,
    wait: bool,
) -> Result<Turn, Error> {
    loop {
        let running = match desk.begin(what) {
            Ok(turn) => return Ok(turn),
            Err(NoTurn::Ending) => return Err(Error::Failed("the daemon is ending".into())),
            Err(NoTurn::Busy(running)) => running,
        };
        if !wait {
            return Err(Error::Failed(format!(
                "{}: {running} is under way in the daemon, and {what} can't run beside it: {why}. Try again when it \
                 has ended, or wait for that with --wait",
                desk.name.display()
            )));
        }
        if client.gone {
            return Err(Error::ReaderGone);
        }
        // Told also so that a client that has gone shows.
        client.send(&Response::Progress { done: 0, total: 0 });
        desk.activity.wait(PROGRESS_EVERY);
    }
}

/// As a sentence goes on.
pub fn replaying(replay: &Replay) -> String {
    let files: Vec<String> = replay.capture.iter().map(|c| c.file.display().to_string()).collect();
    format!("a replay of {}", files.join(", "))
}

fn parse_replay(arguments: Vec<String>, folder: &Path) -> Result<Replay, Error> {
    if !folder.is_absolute() {
        return Err(Error::Misuse(format!("{}: the folder's name is not absolute", folder.display())));
    }
    let name = "host-agent".to_owned();
    let parsed = Arguments::try_parse_from(std::iter::once(name).chain(arguments));
    let mut replay = match parsed.map_err(|e| Error::Misuse(e.to_string()))?.command {
        crate::arguments::Command::Replay(replay) => replay,
        _ => return Err(Error::Misuse("the command line of a replay begins with 'replay'".into())),
    };
    if replay.create {
        return Err(Error::Misuse("the daemon holds its journal: leave out --create".into()));
    }
    let files = replay.capture.iter_mut().map(|capture| &mut capture.file);
    let files = files.chain(replay.primary.iter_mut().map(|primary| &mut primary.file));
    let resolve = |file: &mut PathBuf| *file = folder.join(&*file);
    files.chain(replay.vcd.as_mut()).for_each(resolve);
    Ok(replay)
}

fn value(result: &impl Serialize) -> Answer {
    serde_json::to_value(result).map_err(|e| Error::Failed(format!("putting the result into JSON: {e}")))
}
