//! The handshake: the client asks (options), the server answers, until an export is chosen.
//!
//! Bounded in options, bytes and time. Nothing beyond the handshake's last byte is received, so that
//! transmission begins with an empty buffer.

use crate::export::BlockSizes;
use crate::limits::{
    Limits, MAXIMUM_CONTEXTS, MAXIMUM_OPTIONS, MAXIMUM_OPTIONS_BYTES, MAXIMUM_OPTION_BYTES,
    MAXIMUM_REQUEST_BYTES,
};
use crate::reply::limited;
use crate::tls::{Carrier, Tls};
use crate::{End, Export, Exports};
use layout::nbd::{
    client_flags, export_flags, handshake_flags, info, option, option_reply, ExportNameReply, Hello,
    InfoBlockSize, InfoExport, OptionHeader, OptionReplyHeader, BASE_ALLOCATION, EXPORT_NAME_ZEROES,
    HELLO_MAGIC, MAXIMUM_STRING_BYTES, OPTION_MAGIC, OPTION_REPLY_MAGIC,
};
use socket2::Socket;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Instant;
use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// What client and server have agreed on.
pub(crate) struct Negotiated {
    pub export: Arc<dyn Export>,
    pub bytes: u64,
    pub sizes: BlockSizes,
    /// What the client was told that it may do: `layout::nbd::export_flags`.
    pub flags: u16,
    pub structured: bool,
    pub contexts: Vec<Context>,
}

/// A metadata context that was chosen.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub id: u32,
    pub name: String,
}

/// How a handshake ends well.
pub(crate) enum Outcome {
    Transmission(Negotiated, Stream),
    Abort,
}

/// Where a connection goes on.
pub(crate) struct Stream {
    pub socket: Arc<Socket>,
    /// Under TLS.
    carrier: Option<Carrier>,
}

impl Stream {
    /// Ends it. Says how the connection ended: as it did, or because of TLS.
    pub fn end(mut self, end: End) -> End {
        match self.carrier.take().map(Carrier::end) {
            Some(Err(what)) => End::Tls(what),
            _ => end,
        }
    }
}

/// An option refused: kind of answer and text.
type Refusal = (u32, String);

struct Handshake<'a> {
    stream: Stream,
    /// The client has to begin it before anything else.
    tls: Option<&'a Tls>,
    number: u64,
    exports: &'a dyn Exports,
    deadline: Instant,
    /// The client takes answers to options.
    fixed: bool,
    zeroes: bool,
    structured: bool,
    /// Contexts chosen, and the export that they were chosen for.
    contexts: Option<(String, Vec<Context>)>,
    /// The export looked up last: INFO, SET_META_CONTEXT and GO usually name the same, and to find it may be work.
    found: Option<(String, Arc<dyn Export>)>,
}

/// Runs the handshake.
pub(crate) fn run(
    socket: &Arc<Socket>,
    tls: Option<&Tls>,
    number: u64,
    exports: &dyn Exports,
    limits: &Limits,
) -> Result<Outcome, End> {
    let mut handshake = Handshake {
        stream: Stream { socket: Arc::clone(socket), carrier: None },
        tls,
        number,
        exports,
        deadline: Instant::now() + limits.handshake,
        fixed: false,
        zeroes: true,
        structured: false,
        contexts: None,
        found: None,
    };
    let agreed = handshake.run();
    let Handshake { stream, .. } = handshake;
    match agreed {
        Ok(Some(negotiated)) => {
            stream.socket.set_read_timeout(None)?;
            stream.socket.set_write_timeout(None)?;
            Ok(Outcome::Transmission(negotiated, stream))
        }
        Ok(None) => Ok(Outcome::Abort),
        Err(end) => Err(stream.end(end)),
    }
}

/// What an option came to.
enum Done {
    Answered,
    Chosen(Negotiated),
    Abort,
}

impl<'a> Handshake<'a> {
    /// What was agreed on, unless the client has left.
    fn run(&mut self) -> Result<Option<Negotiated>, End> {
        let flags = handshake_flags::FIXED_NEWSTYLE | handshake_flags::NO_ZEROES;
        let hello =
            Hello { magic: HELLO_MAGIC.into(), option_magic: OPTION_MAGIC.into(), flags: flags.into() };
        self.send(hello.as_bytes())?;
        let flags: U32 = self.receive()?;
        if flags.get() & !(client_flags::FIXED_NEWSTYLE | client_flags::NO_ZEROES) != 0 {
            return Err(End::Protocol(format!("unknown client flags {:#x}", flags.get())));
        }
        self.fixed = flags.get() & client_flags::FIXED_NEWSTYLE != 0;
        self.zeroes = flags.get() & client_flags::NO_ZEROES == 0;
        let mut bytes = 0;
        for _ in 0..MAXIMUM_OPTIONS {
            let header: OptionHeader = self.receive()?;
            if header.magic.get() != OPTION_MAGIC {
                return Err(End::Protocol(format!("an option begins with {:#018x}", header.magic.get())));
            }
            let length = header.length.get() as usize;
            bytes += length;
            if bytes > MAXIMUM_OPTIONS_BYTES {
                return Err(End::Protocol(format!("options of more than {MAXIMUM_OPTIONS_BYTES} bytes")));
            }
            match self.option(header.option.get(), length)? {
                Done::Answered => {}
                Done::Chosen(negotiated) => return Ok(Some(negotiated)),
                Done::Abort => return Ok(None),
            }
        }
        Err(End::Protocol(format!("more than {MAXIMUM_OPTIONS} options")))
    }

    /// Answers one option.
    fn option(&mut self, option: u32, length: usize) -> Result<Done, End> {
        if !self.fixed && option != option::EXPORT_NAME {
            return Err(End::Protocol(format!("option {option} without the fixed newstyle handshake")));
        }
        if length > MAXIMUM_OPTION_BYTES {
            self.skip(length)?;
            if option == option::EXPORT_NAME {
                return Err(End::Protocol(format!("an export name of {length} bytes")));
            }
            let text = format!("option of {length} bytes; at most {MAXIMUM_OPTION_BYTES} are taken");
            self.answer(option, option_reply::ERROR_TOO_BIG, text.as_bytes())?;
            return Ok(Done::Answered);
        }
        let mut data = vec![0; length];
        self.fill(&mut data)?;
        if self.needs_tls() && !matches!(option, option::STARTTLS | option::ABORT) {
            let text = "this server wants TLS first: use nbds:// with tls-certificates";
            if option == option::EXPORT_NAME {
                return Err(End::Protocol("an export was asked for without TLS".into()));
            }
            self.answer(option, option_reply::ERROR_TLS_REQUIRED, text.as_bytes())?;
            return Ok(Done::Answered);
        }
        let done = match option {
            option::EXPORT_NAME => return self.export_name(&data).map(Done::Chosen),
            option::ABORT => {
                // The client needn't wait for it.
                let _ = self.answer(option, option_reply::ACK, &[]);
                return Ok(Done::Abort);
            }
            option::STARTTLS if self.tls.is_some() => match self.may_start_tls(&data) {
                Ok(tls) => return self.start_tls(tls).map(|()| Done::Answered),
                Err(refusal) => Err(refusal),
            },
            option::GO | option::INFO => match self.info(option, &data)? {
                Ok(negotiated) if option == option::GO => {
                    self.answer(option, option_reply::ACK, &[])?;
                    return Ok(Done::Chosen(negotiated));
                }
                other => other.map(|_| ()),
            },
            option::LIST => self.list(&data)?,
            option::STRUCTURED_REPLY => no_data(&data).map(|()| self.structured = true),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.meta_context(option, &data)?,
            _ => Err((option_reply::ERROR_UNSUPPORTED, format!("option {option} is not supported"))),
        };
        match done {
            Ok(()) => self.answer(option, option_reply::ACK, &[])?,
            Err((kind, text)) => self.answer(option, kind, limited(&text).as_bytes())?,
        }
        Ok(Done::Answered)
    }

    fn needs_tls(&self) -> bool {
        self.tls.is_some() && self.stream.carrier.is_none()
    }

    fn may_start_tls(&self, data: &[u8]) -> Result<&'a Tls, Refusal> {
        no_data(data)?;
        match self.tls {
            Some(_) if self.stream.carrier.is_some() => Err(invalid("TLS has begun")),
            Some(tls) => Ok(tls),
            None => Err((option_reply::ERROR_UNSUPPORTED, "there is no TLS here".into())),
        }
    }

    /// The client goes on under TLS, as if it had said nothing before. What it sent without waiting for the answer is no
    /// beginning of TLS, and ends the connection.
    fn start_tls(&mut self, tls: &Tls) -> Result<(), End> {
        self.answer(option::STARTTLS, option_reply::ACK, &[])?;
        let (socket, carrier) = tls.begin(Arc::clone(&self.stream.socket))?;
        self.stream = Stream { socket, carrier: Some(carrier) };
        (self.structured, self.contexts, self.found) = (false, None, None);
        Ok(())
    }

    fn export_name(&mut self, data: &[u8]) -> Result<Negotiated, End> {
        let refused = |(_, text)| End::Protocol(text);
        let negotiated = text(data).and_then(|name| self.negotiate(name)).map_err(refused)?;
        let reply = ExportNameReply { bytes: negotiated.bytes.into(), flags: negotiated.flags.into() };
        let mut bytes = reply.as_bytes().to_vec();
        if self.zeroes {
            bytes.resize(bytes.len() + EXPORT_NAME_ZEROES, 0);
        }
        self.send(&bytes)?;
        Ok(negotiated)
    }

    /// INFO and GO: a name, and kinds of information that the client would like.
    fn info(&mut self, option: u32, data: &[u8]) -> Result<Result<Negotiated, Refusal>, End> {
        let parse = || {
            let mut fields = Fields(data);
            let name = fields.string()?;
            let count = fields.u16()?;
            let kinds = (0..count).map(|_| fields.u16()).collect::<Result<Vec<_>, _>>()?;
            fields.end()?;
            Ok((name, kinds))
        };
        let (name, kinds) = match parse() {
            Ok(parsed) => parsed,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let negotiated = match self.negotiate(name) {
            Ok(negotiated) => negotiated,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let export = InfoExport {
            kind: info::EXPORT.into(),
            bytes: negotiated.bytes.into(),
            flags: negotiated.flags.into(),
        };
        self.answer(option, option_reply::INFO, export.as_bytes())?;
        for (kind, value) in [
            (info::NAME, negotiated.export.name().to_owned()),
            (info::DESCRIPTION, negotiated.export.description()),
        ] {
            if kinds.contains(&kind) {
                let bytes = [U16::new(kind).as_bytes(), limited(&value).as_bytes()].concat();
                self.answer(option, option_reply::INFO, &bytes)?;
            }
        }
        // Unasked too: a client that doesn't ask may still look.
        let sizes = InfoBlockSize {
            kind: info::BLOCK_SIZE.into(),
            minimum: negotiated.sizes.minimum.into(),
            preferred: negotiated.sizes.preferred.into(),
            maximum: negotiated.sizes.maximum.into(),
        };
        self.answer(option, option_reply::INFO, sizes.as_bytes())?;
        Ok(Ok(negotiated))
    }

    fn list(&mut self, data: &[u8]) -> Result<Result<(), Refusal>, End> {
        if let Err(refusal) = no_data(data) {
            return Ok(Err(refusal));
        }
        for export in self.exports.list() {
            let name = limited(export.name());
            let description = export.description();
            let bytes =
                [U32::new(name.len() as u32).as_bytes(), name.as_bytes(), limited(&description).as_bytes()]
                    .concat();
            self.answer(option::LIST, option_reply::SERVER, &bytes)?;
        }
        Ok(Ok(()))
    }

    fn meta_context(&mut self, option: u32, data: &[u8]) -> Result<Result<(), Refusal>, End> {
        let set = option == option::SET_META_CONTEXT;
        if set {
            // Also when it fails.
            self.contexts = None;
        }
        let matched = self.matching_contexts(set, data);
        let (name, contexts) = match matched {
            Ok(matched) => matched,
            Err(refusal) => return Ok(Err(refusal)),
        };
        for context in &contexts {
            let id = if set { context.id } else { 0 };
            let bytes = [U32::new(id).as_bytes(), context.name.as_bytes()].concat();
            self.answer(option, option_reply::META_CONTEXT, &bytes)?;
        }
        if set {
            self.contexts = Some((name, contexts));
        }
        Ok(Ok(()))
    }

    /// The contexts that a client's queries name: whole names, and for a list also `namespace:` and, without
    /// any query, all.
    fn matching_contexts(&mut self, set: bool, data: &[u8]) -> Result<(String, Vec<Context>), Refusal> {
        if !self.structured {
            return Err(invalid("metadata contexts need structured replies, which come first"));
        }
        let mut fields = Fields(data);
        let name = fields.string()?;
        let count = fields.u32()?;
        let mut queries = Vec::new();
        for _ in 0..count {
            // Each takes four bytes at least, so this ends with the data.
            queries.push(fields.string()?);
        }
        fields.end()?;
        let export = self.find(name)?;
        let further = export.contexts().iter().copied().take(MAXIMUM_CONTEXTS - 1);
        let known = std::iter::once(BASE_ALLOCATION).chain(further);
        let asked = |context: &str| {
            (!set && queries.is_empty())
                || queries.iter().any(|query| {
                    *query == context || (!set && query.ends_with(':') && context.starts_with(query))
                })
        };
        let contexts = known
            .zip(1..)
            .filter(|(context, _)| asked(context))
            .map(|(context, id)| Context { id, name: limited(context).to_owned() })
            .collect();
        Ok((name.to_owned(), contexts))
    }

    fn find(&mut self, name: &str) -> Result<Arc<dyn Export>, Refusal> {
        if let Some((found, export)) = &self.found {
            if found == name {
                return Ok(Arc::clone(export));
            }
        }
        let export = self.exports.find(name, self.number).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => (option_reply::ERROR_UNKNOWN, error.to_string()),
            _ => (option_reply::ERROR_POLICY, error.to_string()),
        })?;
        self.found = Some((name.to_owned(), Arc::clone(&export)));
        Ok(export)
    }

    fn negotiate(&mut self, name: &str) -> Result<Negotiated, Refusal> {
        let export = self.find(name)?;
        let bytes = export.bytes();
        let mut sizes = export.block_sizes();
        sizes.maximum = sizes.maximum.min(MAXIMUM_REQUEST_BYTES);
        sizes
            .check(bytes)
            .map_err(|text| (option_reply::ERROR_POLICY, format!("export {name:?}: {text}")))?;
        let mut flags = export_flags::HAS_FLAGS | export_flags::CAN_MULTI_CONN | export_flags::SEND_CACHE;
        if export.read_only() {
            flags |= export_flags::READ_ONLY;
        } else {
            flags |= export_flags::SEND_FLUSH
                | export_flags::SEND_FUA
                | export_flags::SEND_TRIM
                | export_flags::SEND_WRITE_ZEROES
                | export_flags::SEND_FAST_ZERO;
        }
        if self.structured {
            flags |= export_flags::SEND_DF;
        }
        // Contexts were chosen for one export; another one's ids would mean something else.
        let contexts = match &self.contexts {
            Some((of, contexts)) if of == name => contexts.clone(),
            _ => Vec::new(),
        };
        Ok(Negotiated { export, bytes, sizes, flags, structured: self.structured, contexts })
    }

    fn answer(&self, option: u32, kind: u32, data: &[u8]) -> Result<(), End> {
        let header = OptionReplyHeader {
            magic: OPTION_REPLY_MAGIC.into(),
            option: option.into(),
            kind: kind.into(),
            length: (data.len() as u32).into(),
        };
        self.send(&[header.as_bytes(), data].concat())
    }

    fn receive<T: FromBytes + IntoBytes + FromZeros>(&self) -> Result<T, End> {
        let mut value = T::new_zeroed();
        self.fill(value.as_mut_bytes())?;
        Ok(value)
    }

    fn skip(&self, mut bytes: usize) -> Result<(), End> {
        let mut scratch = [0; 4096];
        while bytes > 0 {
            let piece = bytes.min(scratch.len());
            self.fill(&mut scratch[..piece])?;
            bytes -= piece;
        }
        Ok(())
    }

    fn fill(&self, mut buffer: &mut [u8]) -> Result<(), End> {
        while !buffer.is_empty() {
            self.stream.socket.set_read_timeout(Some(self.left()?))?;
            let mut socket = &*self.stream.socket;
            match socket.read(buffer) {
                Ok(0) => return Err(End::Closed),
                Ok(bytes) => buffer = &mut buffer[bytes..],
                Err(error) => pass_interrupted(error)?,
            }
        }
        Ok(())
    }

    fn send(&self, mut data: &[u8]) -> Result<(), End> {
        while !data.is_empty() {
            self.stream.socket.set_write_timeout(Some(self.left()?))?;
            match self.stream.socket.send_with_flags(data, libc::MSG_NOSIGNAL) {
                Ok(bytes) => data = &data[bytes..],
                Err(error) => pass_interrupted(error)?,
            }
        }
        Ok(())
    }

    fn left(&self) -> Result<std::time::Duration, End> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        // Zero would mean: for ever.
        if left.is_zero() {
            return Err(End::TimedOut);
        }
        Ok(left)
    }
}

fn pass_interrupted(error: io::Error) -> Result<(), End> {
    match error.kind() {
        io::ErrorKind::Interrupted => Ok(()),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Err(End::TimedOut),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Err(End::Closed),
        _ => Err(End::Socket(error)),
    }
}

fn invalid(text: &str) -> Refusal {
    (option_reply::ERROR_INVALID, text.to_owned())
}

fn no_data(data: &[u8]) -> Result<(), Refusal> {
    if data.is_empty() {
        return Ok(());
    }
    Err((option_reply::ERROR_INVALID, format!("the option takes no data, and has {} bytes", data.len())))
}

fn text(bytes: &[u8]) -> Result<&str, Refusal> {
    if bytes.len() > MAXIMUM_STRING_BYTES {
        return Err((option_reply::ERROR_TOO_BIG, format!("a string of {} bytes", bytes.len())));
    }
    std::str::from_utf8(bytes).map_err(|_| invalid("a string is not UTF-8"))
}

/// An option's data, taken from the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], Refusal> {
        let (front, rest) = self
            .0
            .split_at_checked(bytes)
            .ok_or_else(|| invalid("the option is shorter than what it says"))?;
        self.0 = rest;
        Ok(front)
    }

    fn u16(&mut self) -> Result<u16, Refusal> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&mut self) -> Result<u32, Refusal> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn string(&mut self) -> Result<&'a str, Refusal> {
        let length = self.u32()?;
        text(self.take(length as usize)?)
    }

    fn end(&self) -> Result<(), Refusal> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err(invalid("the option is longer than what it says"))
    }
}
