//! `host-agent switch`: AoE between network interfaces, every write journaled: the card's job in software.
//!
//! | file | job |
//! |---|---|
//! | `volumes` | which volumes, and what is journaled of them |
//! | `target` | what the agent itself asks targets, before the ports are opened |
//! | `recovery` | what a stop that wasn't in order left |
//! | `dirty` | the log of where targets may be ahead of the journal |
//! | `traffic` | frames between the interfaces, through `engine::switch` |
//! | `clock` | the time of an event |
//! | `handover` | records to the thread that writes the journal; "durable" back |
//! | `session` | a session with its ports open: begins, steps aside, ends |
//! | `report` | how it is, for those who ask |
//!
//! It is the journal's daemon too (`daemon`): what needs the owner works beside it. Why it is so:
//! `docs/decisions/0045-aoe-ports-in-software.md`.

mod clock;
mod dirty;
mod handover;
mod recovery;
mod report;
mod session;
mod target;
mod traffic;
mod volumes;

pub use report::SwitchStatus;

use crate::arguments::{address, ImagesKind, Size, VolumeFile};
use crate::daemon::{self, Holding};
use crate::error::Error;
use crate::output::Output;
use clap::Args;
use engine::switch::{Settings, Timeouts};
use handover::Bell;
use layout::registers::MAXIMUM_PORTS;
use ports::interface::Interface;
use session::Interfaces;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use target::Target;
use volumes::{AcknowledgeKind, VolumeOf, Volumes};

/// Writes of a port in flight: as many as a Linux initiator has with four targets of 32 buffers.
const SLOTS: usize = 128;
/// A port's partial journal in memory, bytes.
const RING_BYTES: usize = 1 << 20;
/// Writes that wait for admission at a port, bytes.
const HOLD_BYTES: usize = 256 << 10;
const NANOSECONDS_PER_MILLISECOND: u64 = 1_000_000;

/// `switch`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Switching {
    /// The journal; an existing one is continued
    #[arg(long, value_name = "FILE")]
    pub journal: PathBuf,
    /// Make the journal; it must not exist
    #[arg(long)]
    pub create: bool,
    /// Size of the journal that is made, all of it allocated at once: 8G, 1T
    #[arg(long, value_name = "SIZE", default_value = "1G", requires = "create")]
    pub size: Size,
    /// An interface where sources (initiators) are; with a list, they may write these volumes only
    #[arg(long, value_name = "INTERFACE[=VOLUME,…]", required = true)]
    pub port: Vec<PortOf>,
    /// The interface where targets are
    #[arg(long, value_name = "INTERFACE")]
    pub uplink: String,
    /// A source that may be at a port; with none of these any may
    #[arg(long, value_name = "INTERFACE=MAC")]
    pub source: Vec<SourceOf>,
    /// A volume (shelf.slot) behind the uplink. Not given: those that the journal has, or else everything that answers there.
    /// Its size is asked of its target unless it is given
    #[arg(long, value_name = "VOLUME[=SIZE][,IMAGES][,ACKNOWLEDGE]")]
    pub volume: Vec<VolumeOf>,
    /// What is journaled of a write, where the volume doesn't say: the data after it (the default), before it, or both
    #[arg(long, value_enum, value_name = "IMAGES")]
    pub images: Option<ImagesKind>,
    /// When a source gets its answer, where the volume doesn't say. With before-images always `journal`, and a write goes to
    /// its target only when its entry is durable
    #[arg(long, value_enum, value_name = "WHEN")]
    pub acknowledge: Option<AcknowledgeKind>,
    /// A volume's base: what the schedule keeps no longer is rolled into it, and a resync takes it for known
    #[arg(long, value_name = "VOLUME=FILE")]
    pub base: Vec<VolumeFile>,
    /// A volume's primary storage, if it can be read here: a resync reads it instead of asking the target
    #[arg(long, value_name = "VOLUME=FILE")]
    pub primary: Vec<VolumeFile>,
    /// The log of where targets may be ahead of the journal. JOURNAL.dirty-aoe if not given
    #[arg(long, value_name = "FILE")]
    pub dirty_log: Option<PathBuf>,
    /// This machine went down, and no target did: they have what they had answered. Then only what the log marks is compared,
    /// as after a kill
    #[arg(long)]
    pub targets_stayed_up: bool,
    /// After a stop that was not in order: begin at once behind the gap, and compare later (host-agent resync)
    #[arg(long)]
    pub no_resync: bool,
    /// A write that isn't admitted within this time is dropped, ms: below the shortest resend of any source
    #[arg(long, value_name = "MS", default_value_t = of_timeout(|t| t.hold), value_parser = milliseconds())]
    pub hold: u64,
    /// A read of the data before a write is sent again after this time, ms
    #[arg(long, value_name = "MS", default_value_t = of_timeout(|t| t.retry), value_parser = milliseconds())]
    pub retry: u64,
    /// A write that its target hasn't answered after this time has status unknown, ms
    #[arg(long, value_name = "MS", default_value_t = of_timeout(|t| t.unknown), value_parser = milliseconds())]
    pub unknown: u64,
    /// So long after it was last let through nothing may overlap such a write, ms
    #[arg(long, value_name = "MS", default_value_t = of_timeout(|t| t.quarantine), value_parser = milliseconds())]
    pub quarantine: u64,
    /// The Unix socket for commands that need the journal's owner; only this user and root may. JOURNAL.sock if not given
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,
}

fn of_timeout(which: impl Fn(&Timeouts) -> u64) -> u64 {
    which(&Timeouts::default()) / NANOSECONDS_PER_MILLISECOND
}

fn milliseconds() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(1..=3_600_000)
}

const EXAMPLES: &str = "\
Examples:
  host-agent switch --journal j --create --size 8G --port eth1 --port eth2 --uplink eth3
  host-agent switch --journal j --port eth1=1.0 --port eth2=1.0,1.1 --uplink eth3 --volume 1.0=2T --volume 1.1,both
  host-agent status j                  ports, and what became of their frames

The interfaces need CAP_NET_RAW, no address, and no bridge; receive offloads that put frames together (`ethtool -K eth1 gro
off lro off`) must be off where other traffic than AoE passes. It ends at SIGINT or SIGTERM: what is under way is settled,
everything is durable, and the session ends in order. After a kill or a power cut the same command without --create goes on:
first it journals what targets have and the journal doesn't.";

/// `INTERFACE[=VOLUME,…]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortOf {
    /// The interface.
    pub interface: String,
    /// The volumes that its sources may write; `None`: all.
    pub volumes: Option<Vec<(u16, u8)>>,
}

impl FromStr for PortOf {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (interface, list) = text.split_once('=').map_or((text, None), |(name, list)| (name, Some(list)));
        if interface.is_empty() {
            return Err("give INTERFACE, such as eth1, or eth1=1.0,1.1".into());
        }
        let volume = |text: &str| address(text).ok_or(format!("'{text}': a volume is SHELF.SLOT"));
        let volumes = list.map(|list| list.split(',').map(volume).collect()).transpose()?;
        Ok(Self { interface: interface.to_owned(), volumes })
    }
}

/// `INTERFACE=MAC`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceOf {
    /// The interface.
    pub interface: String,
    /// The source's address.
    pub mac: [u8; 6],
}

impl FromStr for SourceOf {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}': give INTERFACE=MAC, such as eth1=02:00:00:00:00:01");
        let (interface, mac) = text.split_once('=').ok_or_else(wrong)?;
        let bytes: Result<Vec<u8>, _> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
        let mac = bytes.ok().and_then(|bytes| bytes.try_into().ok()).ok_or_else(wrong)?;
        Ok(Self { interface: interface.to_owned(), mac })
    }
}

/// Runs the command.
pub fn run(arguments: &Switching) -> Result<(), Error> {
    check(arguments)?;
    let mut output = Output::new();
    // Before the journal is touched.
    let mut interfaces = open(arguments)?;
    let mut target = Target::new(&mut interfaces.uplink, &interfaces.bell);
    let volumes = volumes::find(arguments, &mut target, &mut output)?;
    let settings = settings(arguments, &volumes)?;
    let bases = arguments
        .base
        .iter()
        .map(|base| (format!("{}.{}", base.shelf, base.slot), base.file.clone()))
        .collect();
    let holding = Holding {
        journal: &arguments.journal,
        control: arguments.control.as_deref(),
        create: arguments.create.then_some(arguments.size.0),
        bases,
        recovers: !arguments.no_resync,
    };
    daemon::hold(&holding, |desk, held, output| {
        session::begin(arguments, volumes, settings, interfaces, desk, held, output)
    })
}

fn check(arguments: &Switching) -> Result<(), Error> {
    let mut names: Vec<&str> = arguments.port.iter().map(|port| port.interface.as_str()).collect();
    if names.len() > MAXIMUM_PORTS {
        return Err(Error::Misuse(format!("--port: {MAXIMUM_PORTS} are the most")));
    }
    if let Some(source) = arguments.source.iter().find(|source| !names.contains(&source.interface.as_str())) {
        return Err(Error::Misuse(format!("--source: {} is no port", source.interface)));
    }
    names.push(&arguments.uplink);
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Error::Misuse(format!("interface {} is given twice", pair[0]))),
        None => Ok(()),
    }
}

fn open(arguments: &Switching) -> Result<Interfaces, Error> {
    let failed = |e: ports::interface::InterfaceError| Error::Failed(e.to_string());
    let uplink = Interface::open(&arguments.uplink).map_err(failed)?;
    let opened = arguments.port.iter().map(|port| Interface::open(&port.interface).map_err(failed));
    let ports = opened.collect::<Result<Vec<_>, _>>()?;
    if let Some(port) = ports.iter().find(|port| port.mtu() > uplink.mtu()) {
        return Err(Error::Failed(format!(
            "interface {} has an MTU of {}, and {} one of {}: larger frames would not get through; make them equal (`ip link \
             set dev {} mtu {}`)",
            port.name(),
            port.mtu(),
            uplink.name(),
            uplink.mtu(),
            port.name(),
            uplink.mtu()
        )));
    }
    let bell = Bell::new().map_err(|e| Error::Failed(format!("starting to switch: {e}")))?;
    Ok(Interfaces { ports, uplink, bell: Arc::new(bell) })
}

fn settings(arguments: &Switching, volumes: &Volumes) -> Result<Settings, Error> {
    let mut settings = Settings::new(volumes.table.clone(), arguments.port.len());
    settings.timeouts = Timeouts {
        hold: arguments.hold * NANOSECONDS_PER_MILLISECOND,
        retry: arguments.retry * NANOSECONDS_PER_MILLISECOND,
        unknown: arguments.unknown * NANOSECONDS_PER_MILLISECOND,
        quarantine: arguments.quarantine * NANOSECONDS_PER_MILLISECOND,
    };
    (settings.slots, settings.ring_bytes, settings.hold_bytes) = (SLOTS, RING_BYTES, HOLD_BYTES);
    for (port, of_port) in arguments.port.iter().zip(&mut settings.ports) {
        let of_port: &mut engine::switch::PortSettings = of_port;
        of_port.volumes = 0;
        for (row, address) in volumes.each() {
            let listed = port.volumes.as_ref().is_none_or(|list| list.contains(&address));
            of_port.volumes |= u32::from(listed) << row.index;
        }
        let listed = port.volumes.iter().flatten();
        if let Some((shelf, slot)) =
            listed.into_iter().find(|address| volumes.each().all(|(_, known)| known != **address))
        {
            return Err(Error::Misuse(format!(
                "--port {}: volume {shelf}.{slot} isn't switched",
                port.interface
            )));
        }
        let sources = arguments.source.iter().filter(|source| source.interface == port.interface);
        let sources: Vec<[u8; 6]> = sources.map(|source| source.mac).collect();
        of_port.sources = (!sources.is_empty()).then_some(sources);
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_sources_as_they_are_given() {
        let plain = PortOf { interface: "eth1".into(), volumes: None };
        assert_eq!("eth1".parse(), Ok(plain.clone()));
        assert_eq!("eth1=1.0,2.3".parse(), Ok(PortOf { volumes: Some(vec![(1, 0), (2, 3)]), ..plain }));
        for wrong in ["", "=1.0", "eth1=", "eth1=1", "eth1=1.0,"] {
            assert!(wrong.parse::<PortOf>().is_err(), "{wrong}");
        }
        let source = SourceOf { interface: "eth1".into(), mac: [2, 0, 0, 0, 0, 0xAB] };
        assert_eq!("eth1=02:00:00:00:00:ab".parse(), Ok(source));
        for wrong in ["eth1", "eth1=02:00", "eth1=02:00:00:00:00:0g", "eth1=02:00:00:00:00:00:00"] {
            assert!(wrong.parse::<SourceOf>().is_err(), "{wrong}");
        }
    }
}
