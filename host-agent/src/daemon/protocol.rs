//! What goes over the control socket: one request, a line of JSON, and lines of JSON back. `docs/operations.md`
//! describes it for others.

use crate::error::Error;
use crate::status::MergedStatus;
use crate::volume::Fitted;
use journal::base::{Based, Position};
use journal::merge::{Merged, RolledBase};
use journal::resize::Resized;
use journal::resync::Resynced;
use journal::rollback::RolledBack;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// The version of the protocol. Fields and responses may be added within it; a client skips what it doesn't know.
pub const VERSION: u64 = 1;
/// Longest request, in bytes. A replay's arguments are the longest there are.
pub const REQUEST_BYTES: usize = 64 * 1024;
/// Longest response, in bytes.
pub const RESPONSE_BYTES: usize = 1024 * 1024;
/// Within this the request has to have come, whole.
pub const REQUEST_WITHIN: Duration = Duration::from_secs(5);
/// Within this a client has to take what is sent to it.
pub const TAKEN_WITHIN: Duration = Duration::from_secs(5);
/// While there is nothing else to say, progress is told this often.
pub const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// A daemon that says nothing for so long is stuck.
pub const SILENCE: Duration = Duration::from_secs(30);
/// Clients at once.
pub const CONNECTIONS: usize = 16;

/// A request.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`].
    pub version: u64,
    /// Identity of the journal that is meant, in hexadecimal; any, if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<String>,
    /// Wait until nothing else runs that excludes this.
    #[serde(default)]
    pub wait: bool,
    /// What is asked for.
    #[serde(flatten)]
    pub command: Command,
}

/// What can be asked for. Names of files are absolute.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Command {
    /// How the journal is.
    Status,
    /// Names a moment.
    BookmarkAdd {
        /// The name.
        name: String,
        /// `end`, `order:N`, ns since 1970, or RFC 3339.
        at: String,
    },
    /// Forgets a bookmark.
    BookmarkRemove {
        /// The name.
        name: String,
    },
    /// Journals what primary has and the journal doesn't.
    Resync {
        /// Name of the volume.
        volume: String,
        /// Its primary storage.
        primary: PathBuf,
        /// Its base. With `unknown` none is needed.
        #[serde(default)]
        base: Option<PathBuf>,
        /// `primary` is this host's device of the volume, behind a port of the card that is drained.
        #[serde(default)]
        through_card: bool,
        /// Only what nobody knows, because the target gave no answer; through the card.
        #[serde(default)]
        unknown: bool,
    },
    /// Brings primary back in place.
    RollBack {
        /// Name of the volume.
        volume: String,
        /// Its primary storage.
        primary: PathBuf,
        /// Its base, where images are made from one.
        #[serde(default)]
        base: Option<PathBuf>,
        /// The moment; left out: what was before the last rollback.
        #[serde(default)]
        at: Option<String>,
        /// Writes that came after that rollback may be discarded.
        #[serde(default)]
        discard: bool,
        /// Gaps may be crossed.
        #[serde(default)]
        allow_gaps: bool,
        /// As of a resync.
        #[serde(default)]
        through_card: bool,
    },
    /// Merges what is due.
    Merge {
        /// The schedule from now on; left out: it stays.
        #[serde(default)]
        schedule: Option<String>,
        /// What the schedule allows to shrink when room is short is due.
        #[serde(default)]
        short: bool,
        /// Also where no room becomes free by it.
        #[serde(default)]
        all: bool,
        /// Bases by their volumes' names, besides those that the daemon was given.
        #[serde(default)]
        bases: BTreeMap<String, PathBuf>,
    },
    /// Names an image.
    ImageCreate {
        /// The name.
        name: String,
        /// Name of the volume.
        volume: String,
        /// `end`, `order:N`, ns since 1970, or RFC 3339.
        at: String,
    },
    /// Forgets a named image.
    ImageRemove {
        /// The name.
        name: String,
    },
    /// Takes over an image as a volume's base.
    BaseAdopt {
        /// Name of the volume.
        volume: String,
        /// The image.
        base: PathBuf,
        /// The volume has another base already, and loses it.
        #[serde(default)]
        replace: bool,
    },
    /// Makes a base from primary.
    BaseCreate {
        /// Name of the volume.
        volume: String,
        /// Its primary storage.
        primary: PathBuf,
        /// The base to make.
        base: PathBuf,
        /// The volume has another base already, and loses it.
        #[serde(default)]
        replace: bool,
    },
    /// Journals that a volume has another size, and fits primary.
    VolumeResize {
        /// Name of the volume.
        volume: String,
        /// Its new size.
        sectors: u64,
        /// Its primary storage.
        #[serde(default)]
        primary: Option<PathBuf>,
    },
    /// Replays captures into the journal.
    Replay {
        /// The command line behind `host-agent`: `replay --capture …`.
        arguments: Vec<String>,
        /// What relative names of files in it begin at.
        folder: PathBuf,
    },
}

/// A line that comes back. The last is a result or an error.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// How far it is; told all the while, also when nothing moves.
    Progress {
        /// Bytes, or frames of a replay.
        done: u64,
        /// Of so many.
        total: u64,
    },
    /// A line for standard error.
    Note(String),
    /// A line for standard output.
    Data(String),
    /// It is done, with this.
    Result(serde_json::Value),
    /// It isn't.
    Error {
        /// Why, and what to do.
        message: String,
        /// The request can't be meant so.
        misuse: bool,
    },
}

impl From<Error> for Response {
    fn from(error: Error) -> Self {
        Response::Error { message: error.to_string(), misuse: matches!(error, Error::Misuse(_)) }
    }
}

/// A moment that has a name now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bookmarked {
    /// Last order before it.
    pub order: u64,
    /// That entry's stamp, ns.
    pub timestamp: u64,
}

/// [`Resynced`], over the socket.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Resynced")]
struct ResyncedFields {
    compared: u64,
    differed: u64,
    entries: u64,
    closed: u64,
}

/// [`RolledBack`], over the socket.
#[derive(Serialize, Deserialize)]
#[serde(remote = "RolledBack")]
struct RolledBackFields {
    target: (u64, u64),
    before: u64,
    last: u64,
    compared: u64,
    written: u64,
    entries: u64,
    discarded: u64,
    resized: Option<(u64, u64)>,
}

/// What a resync found.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub struct ResyncResult(#[serde(with = "ResyncedFields")] pub Resynced);

/// What a rollback did.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub struct RollBackResult(#[serde(with = "RolledBackFields")] pub RolledBack);

/// What merging did, as the one who asked for it tells.
#[derive(Serialize, Deserialize)]
pub struct MergeResult {
    #[serde(flatten)]
    done: MergedStatus,
    #[serde(default)]
    rolled: Vec<RolledFields>,
}

/// [`RolledBase`], over the socket.
#[derive(Serialize, Deserialize)]
struct RolledFields {
    volume: String,
    to: (u64, u64),
    bytes: u64,
}

impl From<&Merged> for MergeResult {
    fn from(merged: &Merged) -> Self {
        let rolled = merged.rolled.iter().map(|base| RolledFields {
            volume: base.volume.clone(),
            to: base.to,
            bytes: base.bytes,
        });
        Self { done: merged.into(), rolled: rolled.collect() }
    }
}

impl From<MergeResult> for Merged {
    fn from(MergeResult { done, rolled }: MergeResult) -> Self {
        let rolled =
            rolled.into_iter().map(|RolledFields { volume, to, bytes }| RolledBase { volume, to, bytes });
        Self {
            steps: done.steps,
            windows: done.windows,
            entries_in: done.entries_in,
            bytes_in: done.bytes_in,
            entries_out: done.entries_out,
            bytes_out: done.bytes_out,
            segments_freed: done.segments_freed,
            segments_written: done.segments_written,
            given_up: done.given_up,
            bytes_rolled: done.bytes_rolled,
            rolled: rolled.collect(),
            held_back: done.held_back,
        }
    }
}

/// [`Based`], over the socket.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Based")]
struct BasedFields {
    #[serde(with = "identity")]
    base_id: [u8; 16],
    #[serde(with = "PositionFields")]
    position: Position,
    #[serde(with = "some_position")]
    replaced: Option<Position>,
    known: bool,
}

/// [`Position`], over the socket.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Position")]
struct PositionFields {
    order: (u64, u64),
    rolling: (u64, u64),
}

/// In hexadecimal.
mod identity {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(id: &[u8; 16], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::super::hexadecimal(id))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 16], D::Error> {
        let text = String::deserialize(deserializer)?;
        match u128::from_str_radix(&text, 16) {
            Ok(id) if text.len() == 32 => Ok(id.to_be_bytes()),
            _ => Err(serde::de::Error::custom("no identity of 32 hexadecimal digits")),
        }
    }
}

mod some_position {
    use super::{Position, PositionFields};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct One(#[serde(with = "PositionFields")] Position);

    pub fn serialize<S: Serializer>(value: &Option<Position>, serializer: S) -> Result<S::Ok, S::Error> {
        value.map(One).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Position>, D::Error> {
        Ok(Option::<One>::deserialize(deserializer)?.map(|One(position)| position))
    }
}

/// [`Resized`], over the socket.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Resized")]
struct ResizedFields {
    before: u64,
    after: u64,
    entries: u64,
}

/// A base that was made or taken over.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub struct BasedResult(#[serde(with = "BasedFields")] pub Based);

/// What a resize did.
#[derive(Serialize, Deserialize)]
pub struct ResizeResult {
    /// To the journal.
    #[serde(flatten, with = "ResizedFields")]
    pub resized: Resized,
    /// To primary.
    pub primary: Fitted,
}

impl Request {
    /// The request in a line, or what is wrong with it.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        let value: serde_json::Value =
            serde_json::from_slice(line).map_err(|e| format!("the request is no JSON: {e}"))?;
        match value.get("version").and_then(serde_json::Value::as_u64) {
            Some(VERSION) => {}
            Some(other) => {
                return Err(format!(
                    "the request is of version {other}; this daemon speaks version {VERSION}"
                ))
            }
            None => {
                return Err(format!("the request names no version; this daemon speaks version {VERSION}"))
            }
        }
        serde_json::from_value(value).map_err(|e| format!("the request makes no sense: {e}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_what_the_documentation_says() {
        let line = br#"{"version":1,"command":"bookmark-add","name":"x","at":"order:7"}"#;
        let command = Command::BookmarkAdd { name: "x".into(), at: "order:7".into() };
        assert_eq!(Request::parse(line), Ok(Request { version: 1, journal: None, wait: false, command }));
        let line = br#"{"version":1,"wait":true,"command":"roll-back","volume":"1.0","primary":"/p"}"#;
        let request = Request::parse(line).unwrap();
        assert!(request.wait && matches!(request.command, Command::RollBack { at: None, base: None, .. }));
        let again = serde_json::to_vec(&request).unwrap();
        assert_eq!(Request::parse(&again), Ok(request));
    }

    #[test]
    fn what_is_no_request_is_refused_with_a_reason() {
        for (line, reason) in [
            (&b""[..], "no JSON"),
            (b"\xff\xfe\0", "no JSON"),
            (b"status", "no JSON"),
            (b"[1]", "no version"),
            (b"{\"command\":\"status\"}", "no version"),
            (b"{\"version\":2,\"command\":\"status\"}", "version 2"),
            (b"{\"version\":-1,\"command\":\"status\"}", "no version"),
            (b"{\"version\":1}", "makes no sense"),
            (b"{\"version\":1,\"command\":\"format\"}", "format"),
            (b"{\"version\":1,\"command\":\"bookmark-add\",\"name\":7,\"at\":\"end\"}", "makes no sense"),
            (b"{\"version\":1,\"command\":\"status\"} {}", "no JSON"),
        ] {
            let refused = Request::parse(line).unwrap_err();
            assert!(refused.contains(reason), "{refused}");
        }
        // JSON that is nested deeper than any stack.
        Request::parse(&[b'['; REQUEST_BYTES]).unwrap_err();
    }

    #[test]
    fn results_come_back_as_they_were() {
        let done = RolledBack {
            target: (3, 4),
            before: 5,
            last: 6,
            compared: 7,
            written: 8,
            entries: 9,
            discarded: 1,
            resized: Some((8, 9)),
        };
        let text = serde_json::to_string(&RollBackResult(done)).unwrap();
        assert_eq!(serde_json::from_str::<RollBackResult>(&text).unwrap().0, done);
        let done = Merged {
            steps: 1,
            windows: 2,
            entries_in: 3,
            bytes_in: 4,
            entries_out: 5,
            bytes_out: 6,
            segments_freed: 7,
            segments_written: 8,
            given_up: 9,
            bytes_rolled: 10,
            rolled: vec![RolledBase { volume: "1.0".into(), to: (11, 12), bytes: 13 }],
            held_back: vec!["x".into()],
        };
        let text = serde_json::to_string(&MergeResult::from(&done)).unwrap();
        assert_eq!(Merged::from(serde_json::from_str::<MergeResult>(&text).unwrap()), done);
        let position = Position { order: (1, 2), rolling: (3, 4) };
        for replaced in [None, Some(position)] {
            let done = Based { base_id: [0x0a; 16], position, replaced, known: true };
            let text = serde_json::to_string(&BasedResult(done)).unwrap();
            assert_eq!(serde_json::from_str::<BasedResult>(&text).unwrap().0, done);
        }
        let resized = Resized { before: 1, after: 2, entries: 3 };
        let text = serde_json::to_string(&ResizeResult { resized, primary: Fitted::ByHand }).unwrap();
        assert_eq!(text, r#"{"before":1,"after":2,"entries":3,"primary":"by-hand"}"#);
        assert_eq!(serde_json::from_str::<ResizeResult>(&text).unwrap().resized, resized);
        let done = Resynced { compared: 1, differed: 2, entries: 3, closed: 4 };
        let text = serde_json::to_string(&ResyncResult(done)).unwrap();
        assert_eq!(serde_json::from_str::<ResyncResult>(&text).unwrap().0, done);
    }
}
