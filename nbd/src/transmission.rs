//! Transmission: requests in, replies out.
//!
//! One thread receives. As long as the export answers at once it also runs short reads and writes itself, and
//! sends the replies to all that came in together with one call: nothing crosses threads. As soon as one takes
//! long, the next go to the workers, so that the export sees many at once, and their replies go out as they are
//! done. Reads and writes are told apart: writes that wait for a disk don't slow reads that don't.

use crate::execute::{execute, Payload};
use crate::handshake::Negotiated;
use crate::input::Input;
use crate::limits::{
    Limits, BATCH_BYTES, INLINE_BYTES, LARGE_BYTES, MAXIMUM_DESCRIPTORS, REQUESTS_AFTER_SLOW,
};
use crate::outbox::{Charge, Outbox};
use crate::reply::Replies;
use crate::request::{understand, Command, Failure};
use crate::workers::Workers;
use crate::End;
use layout::nbd::{command, BlockDescriptor, RequestHeader, REQUEST_MAGIC};
use socket2::Socket;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};
use zerocopy::byteorder::big_endian::U64;

/// A request for the workers.
struct Job {
    cookie: U64,
    command: Result<Command, Failure>,
    payload: Payload<'static>,
    charge: Charge,
}

/// Whether requests of a kind are answered at once.
#[derive(Default)]
struct Pace {
    /// So many requests still go to the workers. Only a hint, hence relaxed.
    wary: AtomicU32,
}

impl Pace {
    fn is_quick(&self) -> bool {
        self.wary.load(Ordering::Relaxed) == 0
    }

    fn one_to_workers(&self) {
        let _ = self.wary.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
    }

    fn took(&self, begin: Instant, patience: Duration) {
        if begin.elapsed() > patience {
            self.wary.store(REQUESTS_AFTER_SLOW, Ordering::Relaxed);
        }
    }
}

struct Transmission<'a> {
    agreed: &'a Negotiated,
    /// See [`Export::may_wait`](crate::Export::may_wait).
    may_wait: bool,
    /// See [`Export::patience`](crate::Export::patience).
    patience: Duration,
    outbox: Outbox<'a>,
    workers: Workers<Job>,
    reads: Pace,
    writes: Pace,
}

/// Serves requests until the connection ends; returns when all replies are sent.
pub(crate) fn run(socket: &Socket, agreed: &Negotiated, limits: &Limits) -> End {
    let transmission = Transmission {
        agreed,
        may_wait: agreed.export.may_wait(),
        patience: agreed.export.patience(),
        outbox: Outbox::new(socket, limits),
        workers: Workers::new(),
        reads: Pace::default(),
        writes: Pace::default(),
    };
    thread::scope(|scope| {
        let mut receiver = Receiver {
            transmission: &transmission,
            input: Input::new(socket),
            batch: Replies::default(),
            batch_charge: Charge::default(),
        };
        let end = loop {
            if let Err(end) = receiver.next(scope) {
                break end;
            }
        };
        receiver.send_batch();
        transmission.workers.close();
        end
    })
}

impl Transmission<'_> {
    /// The pace that a command goes by, if it is one that may be run by the receiver at all.
    fn pace(&self, command: &Command) -> Option<&Pace> {
        match *command {
            _ if self.may_wait => None,
            Command::Read { bytes, .. } if bytes <= INLINE_BYTES => Some(&self.reads),
            Command::Write { bytes, durable: false, .. } if bytes <= INLINE_BYTES => Some(&self.writes),
            _ => None,
        }
    }

    fn charge(&self, command: &Command) -> Charge {
        Charge::one(match *command {
            Command::Read { bytes, .. } | Command::Write { bytes, .. } => bytes as usize,
            Command::Status { .. } => {
                self.agreed.contexts.len() * MAXIMUM_DESCRIPTORS * size_of::<BlockDescriptor>()
            }
            Command::Flush | Command::Trim { .. } | Command::Cache | Command::Zero { .. } => 0,
        })
    }

    /// What a worker does.
    fn work(&self, job: Job) {
        let mut replies = self.outbox.buffer();
        let pace = job.command.as_ref().ok().and_then(|command| self.pace(command));
        let begin = Instant::now();
        execute(self.agreed, job.cookie, job.command, job.payload, &mut replies);
        if let Some(pace) = pace {
            pace.took(begin, self.patience);
        }
        self.outbox.put(replies, job.charge);
    }
}

/// The thread that receives.
struct Receiver<'a> {
    transmission: &'a Transmission<'a>,
    input: Input<'a>,
    /// Replies that it has made itself and not sent yet.
    batch: Replies,
    batch_charge: Charge,
}

impl<'a> Receiver<'a> {
    fn next(&mut self, scope: &'a Scope<'a, '_>) -> Result<(), End> {
        let Some(header) = self.input.header() else {
            // Nobody may wait for a reply while this waits for a request.
            self.send_batch();
            return self.input.receive();
        };
        if header.magic.get() != REQUEST_MAGIC {
            return Err(End::Protocol(format!("a request begins with {:#010x}", header.magic.get())));
        }
        if header.command.get() == command::DISC {
            return Err(End::Goodbye);
        }
        match understand(&header, self.transmission.agreed) {
            Ok(command) => self.request(scope, &header, command),
            Err(failure) => self.refuse(&header, failure),
        }
    }

    /// Answers a request that can't be run. Its payload, if it has one, is received and forgotten: the next
    /// request is behind it.
    fn refuse(&mut self, header: &RequestHeader, failure: Failure) -> Result<(), End> {
        let charge = Charge::one(0);
        self.charge(charge)?;
        if header.command.get() == command::WRITE {
            self.send_batch();
            self.input.skip(header.length.get() as usize)?;
        }
        execute(self.transmission.agreed, header.cookie, Err(failure), Payload::NONE, &mut self.batch);
        self.batch_charge.add(charge);
        Ok(())
    }

    fn request(
        &mut self,
        scope: &'a Scope<'a, '_>,
        header: &RequestHeader,
        command: Command,
    ) -> Result<(), End> {
        let transmission = self.transmission;
        let charge = transmission.charge(&command);
        self.charge(charge)?;
        let length = if matches!(command, Command::Write { .. }) { header.length.get() as usize } else { 0 };
        if matches!(command, Command::Flush) && self.is_alone() && !transmission.agreed.export.flush_waits() {
            self.send_batch();
            execute(transmission.agreed, header.cookie, Ok(command), Payload::NONE, &mut self.batch);
            self.batch_charge.add(charge);
            return Ok(());
        }
        let pace = transmission.pace(&command);
        let waits = match command {
            Command::Write { bytes, .. } => pace.is_some() && transmission.agreed.export.write_waits(bytes),
            _ => false,
        };
        if let Some(pace) = pace.filter(|pace| pace.is_quick() && !waits) {
            let large = length >= LARGE_BYTES;
            let owned = if large { Some(self.receive_owned(length)?) } else { None };
            while !large && !self.input.has(length) {
                self.send_batch();
                self.input.receive()?;
            }
            let begin = Instant::now();
            let payload = match owned {
                Some(data) => Payload::Owned(data),
                None => Payload::Received(self.input.take(length)),
            };
            execute(transmission.agreed, header.cookie, Ok(command), payload, &mut self.batch);
            pace.took(begin, transmission.patience);
            self.batch_charge.add(charge);
            if self.batch.len() >= BATCH_BYTES || !pace.is_quick() {
                self.send_batch();
            }
            return Ok(());
        }
        if let Some(pace) = pace {
            pace.one_to_workers();
        }
        let payload = match length {
            0 => Payload::NONE,
            length => Payload::Owned(self.receive_owned(length)?),
        };
        let job = Job { cookie: header.cookie, command: Ok(command), payload, charge };
        transmission.workers.run(scope, job, |job| transmission.work(job));
        Ok(())
    }

    /// A write's data, in memory of the export's.
    fn receive_owned(&mut self, length: usize) -> Result<Vec<u8>, End> {
        if !self.input.has(length) {
            // Nobody may wait for a reply while this waits for data.
            self.send_batch();
        }
        let mut data = self.transmission.agreed.export.buffer(length);
        assert_eq!(data.len(), length, "an export gives as much memory as it was asked for");
        self.input.fill(&mut data)?;
        Ok(data)
    }

    /// Nothing else of this client is under way, and nothing more has come.
    fn is_alone(&self) -> bool {
        !self.input.has(1) && self.transmission.outbox.requests() <= self.batch_charge.requests + 1
    }

    fn charge(&mut self, charge: Charge) -> Result<(), End> {
        let outbox = &self.transmission.outbox;
        if outbox.try_charge(charge) {
            return Ok(());
        }
        // The room may be taken by what is in the batch.
        self.send_batch();
        if outbox.charge(charge) {
            Ok(())
        } else {
            Err(End::Closed)
        }
    }

    fn send_batch(&mut self) {
        if self.batch.len() == 0 {
            assert_eq!(self.batch_charge, Charge::default());
            return;
        }
        let outbox = &self.transmission.outbox;
        let batch = std::mem::replace(&mut self.batch, outbox.buffer());
        outbox.put(batch, std::mem::take(&mut self.batch_charge));
    }
}
