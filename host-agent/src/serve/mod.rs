//! `host-agent serve`: files and devices over NBD, every write journaled.
//!
//! | file | job |
//! |---|---|
//! | `exports` | what is served: NAME=PRIMARY, and the volumes that this makes |
//! | `owner` | the journal's thread, as the ports see it |
//! | `serving` | a session with its ports open: begins, steps aside for who needs it, ends |
//!
//! It is the journal's daemon too (`daemon`): what needs the owner works beside it.

mod exports;
mod owner;
mod serving;

use crate::arguments::{ImagesKind, Size};
use crate::daemon::{self, Holding};
use crate::dirty_log_file;
use crate::error::Error;
use crate::network::NetworkArguments;
use clap::{Args, ValueEnum};
use exports::Export;
pub use exports::{check_not_behind, BaseOf, ExportOf};
use ports::path::{Durability, Images};
pub use serving::{begin_with_card, OfCard, Serving};
use std::path::{Path, PathBuf};

/// `serve`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Serve {
    /// The journal; an existing one is continued
    #[arg(long, value_name = "FILE")]
    pub journal: PathBuf,
    /// Make the journal; it must not exist
    #[arg(long)]
    pub create: bool,
    /// Size of the journal that is made, all of it allocated at once: 8G, 1T
    #[arg(long, value_name = "SIZE", default_value = "1G", requires = "create")]
    pub size: Size,
    /// A volume and its primary storage: a file, a block device, or LENGTH bytes of one from OFFSET on. All volumes of a
    /// journal share one time line
    #[arg(long, value_name = "NAME=PRIMARY[:OFFSET+LENGTH]", required = true)]
    pub export: Vec<ExportOf>,
    #[command(flatten)]
    pub network: NetworkArguments,
    #[command(flatten)]
    pub journaling: Journaling,
    /// A volume's base: what the schedule keeps no longer is rolled into it
    #[arg(long, value_name = "NAME=FILE")]
    pub base: Vec<BaseOf>,
    /// The Unix socket for commands that need the journal's owner; only this user and root may. JOURNAL.sock if not given
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,
}

/// How writes to exports are journaled.
#[derive(Clone, Debug, Args)]
pub struct Journaling {
    /// What is journaled of a write: the data after it, before it, or both. With `before` and `both` any moment can be had
    /// back from primary alone, and a write waits until its entry is durable
    #[arg(long, requires = "export", value_enum, value_name = "IMAGES", default_value_t = ImagesKind::After)]
    pub images: ImagesKind,
    /// What an answer promises
    #[arg(long, requires = "export", value_enum, value_name = "WHAT", default_value_t = DurabilityKind::Flush)]
    pub durability: DurabilityKind,
    /// Memory for each client's writes that the journal hasn't taken yet; a client that has filled it waits
    #[arg(long, requires = "export", value_name = "SIZE", default_value = "8M")]
    pub memory: Size,
    /// The log of where primary may be ahead of the journal. JOURNAL.dirty if not given
    #[arg(long, requires = "export", value_name = "FILE")]
    pub dirty_log: Option<PathBuf>,
}

impl Journaling {
    fn check(&self) -> Result<(), Error> {
        match self.memory.0 < LEAST_MEMORY {
            true => Err(Error::Misuse(format!("--memory: {LEAST_MEMORY} bytes at least"))),
            false => Ok(()),
        }
    }
}

/// What is exported of which journal.
#[derive(Clone, Copy)]
pub struct What<'a> {
    /// The journal.
    pub journal: &'a Path,
    /// It is made.
    pub create: bool,
    /// Bases of exports.
    pub base: &'a [BaseOf],
    /// How writes are journaled.
    pub journaling: &'a Journaling,
    /// Where clients come in.
    pub network: &'a NetworkArguments,
}

/// What is exported, all of it open and nobody else's.
pub struct Opened {
    exports: Vec<Export>,
    dirty_log: PathBuf,
    listeners: Vec<nbd::Listener>,
}

impl Opened {
    /// Before the journal is touched: another server's socket is left alone.
    pub fn open(what: What<'_>, exports: &[ExportOf]) -> Result<Self, Error> {
        what.journaling.check()?;
        Ok(Self {
            exports: exports::open(exports)?,
            dirty_log: dirty_log_file::place(what.journal, what.journaling.dirty_log.as_deref(), ".dirty")?,
            listeners: what.network.listen()?,
        })
    }
}

/// `--durability`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DurabilityKind {
    /// A write is answered when its entry is durable in the journal
    Strict,
    /// As of a disk: a FLUSH (or FUA) is answered when everything answered before it is durable
    Flush,
    /// A FLUSH doesn't wait: what is answered is durable some moments later
    Relaxed,
}

impl From<DurabilityKind> for Durability {
    fn from(kind: DurabilityKind) -> Self {
        match kind {
            DurabilityKind::Strict => Durability::Strict,
            DurabilityKind::Flush => Durability::Flush,
            DurabilityKind::Relaxed => Durability::Relaxed,
        }
    }
}

impl From<ImagesKind> for Images {
    fn from(kind: ImagesKind) -> Self {
        match kind {
            ImagesKind::After => Images::After,
            ImagesKind::Before => Images::Before,
            ImagesKind::Both => Images::Both,
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  cp --sparse=always disk.img base.img                     the base of every restore: from before the first write
  host-agent serve --journal j --create --size 8G --export disk=disk.img --socket /run/disk.sock
  nbd-client -unix /run/disk.sock /dev/nbd0                or qemu: -drive file=nbd+unix:///disk?socket=/run/disk.sock
  host-agent serve --journal j --export disk=disk.img --listen 0.0.0.0:10809 --tls-certificates /etc/pki/nbd
  host-agent image serve j --volume disk --base base.img --at -15m --socket /run/then.sock
  host-agent bookmark add j before-upgrade                 everything works beside it

It ends at SIGINT or SIGTERM: everything is durable, and the session ends in order. After a kill or a power cut the same
command without --create goes on: it makes journal and primary even first, and says what it did.";

/// Smallest partial journal: a batch, so that handing over keeps up.
const LEAST_MEMORY: u64 = 1 << 20;

/// Runs the command.
pub fn run(arguments: &Serve) -> Result<(), Error> {
    let what = What {
        journal: &arguments.journal,
        create: arguments.create,
        base: &arguments.base,
        journaling: &arguments.journaling,
        network: &arguments.network,
    };
    let opened = Opened::open(what, &arguments.export)?;
    exports::check_bases(&arguments.base, &opened.exports)?;
    let holding = Holding {
        journal: &arguments.journal,
        control: arguments.control.as_deref(),
        create: arguments.create.then_some(arguments.size.0),
        bases: arguments.base.iter().map(|base| (base.name.clone(), base.file.clone())).collect(),
        recovers: true,
    };
    daemon::hold(&holding, |desk, held, output| serving::begin(what, opened, desk, held, output))
}
