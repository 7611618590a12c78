//! The other end of the control socket: commands that need a journal's owner ask its daemon, if it has one.

use super::protocol::{Command, Request, Response, RESPONSE_BYTES, SILENCE, TAKEN_WITHIN, VERSION};
use crate::arguments::{OwnerArguments, Replay};
use crate::error::Error;
use crate::output::Output;
use crate::progress::{bar, Unit};
use crate::status::Status;
use indicatif::ProgressBar;
use journal::{FileStorage, Journal, JournalReader};
use serde::de::DeserializeOwned;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{absolute, Path, PathBuf};

/// Who does what a command needs a journal's owner for.
pub enum Reached {
    /// The command itself.
    Own(Box<Journal>),
    /// A daemon.
    Daemon(Asking),
}

/// Opens the journal; if it is in use, finds its daemon.
pub fn reach(journal: &Path, owner: &OwnerArguments, writer: &str) -> Result<Reached, Error> {
    match Journal::open_ports_closed(journal, writer) {
        Ok(journal) => Ok(Reached::Own(Box::new(journal))),
        Err(locked @ journal::Error::Locked { .. }) => {
            Asking::of_holder(journal, owner, locked).map(Reached::Daemon)
        }
        Err(error) => Err(error.into()),
    }
}

/// The daemon of a journal, if it is in use by one.
pub fn daemon_of(journal: &Path, owner: &OwnerArguments) -> Result<Option<Asking>, Error> {
    match FileStorage::open_read_only(journal)?.lock_owner() {
        Some(_) => Asking::connect(journal, owner.control.as_deref()),
        None => Ok(None),
    }
}

/// Where a journal's daemon listens, unless told otherwise.
pub fn default_socket(journal: &Path) -> PathBuf {
    // By whatever name the journal goes, its daemon is found under its own.
    let mut name = journal.canonicalize().unwrap_or_else(|_| journal.to_owned()).into_os_string();
    name.push(".sock");
    name.into()
}

/// How a journal is, by its daemon; `None`: it has none.
pub fn status(journal: &Path, control: Option<&Path>) -> Result<Option<Status>, Error> {
    let Some(mut asking) = Asking::connect(journal, control)? else { return Ok(None) };
    asking.ask(Command::Status, &ProgressBar::hidden()).map(Some)
}

/// Replays through the daemon that holds the journal.
pub fn replay(arguments: &Replay, locked: journal::Error) -> Result<(), Error> {
    let mut asking = Asking::of_holder(&arguments.journal, &arguments.owner, locked)?;
    let folder = std::env::current_dir()
        .map_err(|e| Error::Failed(format!("asking for the folder that names of files begin at: {e}")))?;
    let text = |argument: std::ffi::OsString| {
        let what = |argument: std::ffi::OsString| {
            Error::Misuse(format!("{}: only names in UTF-8 can be given to a daemon", argument.display()))
        };
        argument.into_string().map_err(what)
    };
    let arguments = std::env::args_os().skip(1).map(text).collect::<Result<_, _>>()?;
    let bar = bar("replaying", Unit::Of("frames"));
    asking.ask::<()>(Command::Replay { arguments, folder }, &bar)
}

/// A daemon that is asked.
pub struct Asking {
    stream: UnixStream,
    socket: PathBuf,
    journal: Option<String>,
    wait: bool,
}

impl Asking {
    /// The daemon of a journal that is in use.
    fn of_holder(journal: &Path, owner: &OwnerArguments, locked: journal::Error) -> Result<Self, Error> {
        let Some(mut asking) = Self::connect(journal, owner.control.as_deref())? else {
            return Err(Error::JournalHint(
                locked,
                "or, if it is a daemon's, name its socket with --control",
            ));
        };
        asking.wait = owner.wait;
        Ok(asking)
    }

    /// `None`: nobody listens.
    fn connect(journal: &Path, control: Option<&Path>) -> Result<Option<Self>, Error> {
        let socket = control.map_or_else(|| default_socket(journal), Path::to_owned);
        let stream = match UnixStream::connect(&socket) {
            Ok(stream) => stream,
            // A name that is too long is nobody's either, unless it was given; and who may only read can do that.
            Err(e)
                if control.is_none()
                    && [ErrorKind::InvalidInput, ErrorKind::PermissionDenied].contains(&e.kind()) =>
            {
                return Ok(None)
            }
            Err(e) if [ErrorKind::NotFound, ErrorKind::ConnectionRefused].contains(&e.kind()) => {
                return match control {
                    Some(_) => Err(Error::io(&socket, "asking the daemon there", e)),
                    None => Ok(None),
                };
            }
            Err(e) => return Err(Error::io(&socket, "asking the daemon there", e)),
        };
        // It has to be this journal's: a socket's name proves nothing.
        let id = JournalReader::open(journal)?.summary().journal_id;
        Ok(Some(Self { stream, socket, journal: Some(super::hexadecimal(&id)), wait: false }))
    }

    /// Asks, shows what is said meanwhile, and returns the result.
    pub fn ask<T: DeserializeOwned>(&mut self, command: Command, bar: &ProgressBar) -> Result<T, Error> {
        let request = Request { version: VERSION, journal: self.journal.take(), wait: self.wait, command };
        let mut line = serde_json::to_vec(&request)
            .map_err(|e| Error::Misuse(format!("this can't be asked of a daemon: {e}")))?;
        line.push(b'\n');
        let sent = self
            .stream
            .set_write_timeout(Some(TAKEN_WITHIN))
            .and_then(|()| self.stream.set_read_timeout(Some(SILENCE)))
            .and_then(|()| self.stream.write_all(&line));
        // A daemon that has no place for us says so before it has heard us.
        let refused = sent.err().map(|e| Error::io(&self.socket, "asking the daemon there", e));
        let mut lines = BufReader::new(&self.stream);
        let mut output = Output::new();
        loop {
            let response = match next_response(&mut lines, &self.socket) {
                Ok(response) => response,
                Err(error) => return Err(refused.unwrap_or(error)),
            };
            match response {
                Response::Progress { done, total } => {
                    bar.set_length(total);
                    bar.set_position(done);
                }
                Response::Note(line) => bar.suspend(|| output.note(line)),
                Response::Data(line) => {
                    bar.suspend(|| output.line(line))?;
                    output.flush()?;
                }
                Response::Result(value) => {
                    bar.finish_and_clear();
                    output.finish()?;
                    return serde_json::from_value(value).map_err(|e| {
                        Error::Failed(format!(
                            "{}: the daemon answers something else: {e}",
                            self.socket.display()
                        ))
                    });
                }
                Response::Error { message, misuse } => {
                    bar.finish_and_clear();
                    output.finish()?;
                    return Err(if misuse { Error::Misuse(message) } else { Error::Failed(message) });
                }
            }
        }
    }
}

/// The next line that is understood.
fn next_response(lines: &mut impl BufRead, socket: &Path) -> Result<Response, Error> {
    let failed = |e| Error::io(socket, "listening to the daemon there", e);
    let mut line = Vec::new();
    loop {
        line.clear();
        let limit = RESPONSE_BYTES as u64;
        lines.by_ref().take(limit).read_until(b'\n', &mut line).map_err(failed)?;
        if line.pop() != Some(b'\n') {
            let what = if line.is_empty() {
                "the daemon hung up"
            } else {
                "the daemon hung up in the middle of a line"
            };
            return Err(Error::Failed(format!(
                "{}: {what}; host-agent status tells how the journal is",
                socket.display()
            )));
        }
        let value: serde_json::Value = serde_json::from_slice(&line).map_err(|e| failed(e.into()))?;
        // A later daemon may say more than we know.
        if let Ok(response) = serde_json::from_value(value) {
            return Ok(response);
        }
    }
}

/// A name that means the same to a daemon, which is in another folder.
pub fn absolute_name(path: &Path) -> Result<PathBuf, Error> {
    absolute(path).map_err(|e| Error::io(path, "finding out its whole name", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_daemon_says_is_bounded_and_what_is_new_is_skipped() {
        let socket = Path::new("s");
        let mut said = &b"{\"heartbeat\":1}\n{\"note\":\"x\"}\n"[..];
        assert!(matches!(next_response(&mut said, socket), Ok(Response::Note(text)) if text == "x"));
        for bad in [&b""[..], b"{\"note\":", b"noise\n"] {
            let mut bad = bad;
            assert!(next_response(&mut bad, socket).is_err());
        }
        let endless = vec![b' '; 2 * RESPONSE_BYTES];
        assert!(next_response(&mut &endless[..], socket).is_err());
    }
}
