//! The command line, and the help that teaches it.

use crate::error::Error;
use crate::{base, bookmark, card, daemon, diff, image, merge, resync, serve, size, status, switch, volume};
use clap::{Args, Parser, Subcommand, ValueEnum};
use engine::switch::Images;
use journal::image::Backing;
use journal::{JournalReader, Moment, When};
use layout::aoe::{SHELF_BROADCAST, SLOT_BROADCAST};
use layout::journal_file::technique;
use std::path::PathBuf;
use std::str::FromStr;

/// Continuous data protection for block storage: every write of the storage network is kept, and any
/// moment can be had back.
#[derive(Debug, Parser)]
#[command(name = "host-agent", bin_name = "host-agent", version, arg_required_else_help = true, subcommand_required = true, after_help = EXAMPLES)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
A round through all of it, with captures of a real initiator (tests/captures/small):
  truncate -s 8M base.img && cp base.img disk.img
  host-agent replay --capture 0=port0.pcap.gz --primary 1.0=disk.img --journal j --create --size 64M
  host-agent log j                     every write, in order
  host-agent verify j                  proves the journal
  host-agent restore j --volume 1.0 --base base.img --at order:99 --to then.img

Exit codes: 0 fine, 1 what was asked failed, 2 misuse.";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Replay captured AoE traffic through the simulated card, or the switch in software, into a journal
    ///
    /// Feeds the frames that sources sent, as captured, into the ports of a simulated Chronoswitch card: the
    /// gateware itself, stepped clock by clock; or into the software engine, which does the same much faster,
    /// and before-images too. A model of vblade answers from the images and updates them.
    /// Frames that targets sent are ignored, idle time is skipped, and a write enters only when the answers
    /// that its source had when it sent the write have come, so that every order that mattered is kept.
    Replay(Replay),
    /// Hold a journal, ingest, and serve the commands that need its owner
    ///
    /// While it runs, `bookmark`, `resync`, `restore --in-place`, `restore --undo` and `replay` work through it,
    /// over a Unix socket; what only reads works beside it, as always.
    Daemon(daemon::Daemon),
    /// Serve files and devices over NBD, every write journaled
    ///
    /// The same as a card, as a program: each client is a source with a partial journal of its own; its writes go on to
    /// primary storage, and every moment of it can be had back. It is the journal's daemon too.
    Serve(serve::Serve),
    /// Switch AoE between network interfaces, every write journaled
    ///
    /// The card's job as a program: frames from sources go to targets and answers back, and every write enters its port's partial
    /// journal on the way. It is the journal's daemon too.
    Switch(switch::Switching),
    /// How a journal is, and what its daemon is doing
    Status(status::StatusOf),
    /// List the entries of a journal
    Log(Log),
    /// Prove a journal: read everything, trust nothing
    ///
    /// Reads every byte in use and checks it against every other that speaks of it, with code of its own.
    /// Says what was checked, or exactly where the journal is broken (then the exit code is 1). A torn tail
    /// is no damage: it was being written when its writer stopped, and was never reported durable.
    Verify(Verify),
    /// Make the image of a volume as it was at a moment
    ///
    /// With --base: the volume's image from before the first write in the journal, and over it the data of
    /// every write up to the moment (after-images). With --primary: what the volume holds now, and over it what
    /// every write behind the moment replaced (before-images); it may be in use meanwhile.
    /// OUT is sparse where it can be.
    Restore(Restore),
    /// Show a volume as it was at a moment as a disk
    #[command(subcommand)]
    Image(image::Image),
    /// List what was written between two moments
    ///
    /// Shows where something was written behind moment A and up to moment B, and through which ports.
    Diff(diff::Diff),
    /// How long the journal lasts, and how large one has to be
    Size(size::Size),
    /// After an unclean stop: journal what primary has and the journal doesn't
    ///
    /// Compares primary with the journal's last state over the base, whole, and journals what differs. Until
    /// then moments from behind the stop are refused, for writes may be missing.
    Resync(resync::Resync),
    /// Name moments
    #[command(subcommand)]
    Bookmark(bookmark::Bookmark),
    /// List volumes, and change the size of one
    #[command(subcommand)]
    Volume(volume::Volume),
    /// Make, take over and look at bases
    #[command(subcommand)]
    Base(base::Base),
    /// Merge what is due, so that its room is free again
    ///
    /// The schedule says how far back every write is kept, in which windows what lies further back, and after how
    /// long it is given up. Of a window of merged writes its end is left as a moment, and what each place held then.
    Merge(merge::Merge),
    /// Find, bind, prove, drain and simulate cards
    #[command(subcommand)]
    Card(card::Card),
}

/// `replay`.
#[derive(Debug, Args)]
#[command(after_long_help = REPLAY_EXAMPLES)]
pub struct Replay {
    /// A capture (pcap or pcapng, may be gzipped) and the port that its sources are attached to; once a port
    #[arg(long, value_name = "PORT=FILE", required = true)]
    pub capture: Vec<PortFile>,
    /// A volume (shelf.slot) and the image that is its primary storage; it is read and written
    #[arg(long, value_name = "VOLUME=IMG", required = true)]
    pub primary: Vec<VolumeFile>,
    /// The journal; an existing one is continued
    #[arg(long, value_name = "FILE")]
    pub journal: PathBuf,
    /// Make the journal; it must not exist
    #[arg(long)]
    pub create: bool,
    /// Size of the journal that is made, all of it allocated at once: 64M, 1G
    #[arg(long, value_name = "SIZE", default_value = "256M", requires = "create")]
    pub size: Size,
    /// What the frames go through
    #[arg(long, value_enum, value_name = "ENGINE", default_value_t = EngineKind::Card)]
    pub engine: EngineKind,
    /// What is journaled of a write: the data after it, before it, or both. With `before` and `both` any moment
    /// can be had back from primary alone; a write waits until its entry is durable
    #[arg(long, value_enum, value_name = "IMAGES", default_value_t = ImagesKind::After)]
    pub images: ImagesKind,
    /// Most writes that a port has in flight
    #[arg(long, value_name = "WRITES", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub window: u16,
    /// Don't wait for the answers that sources had, nor for room in the port's buffer: frames come as
    /// fast as the window allows, and those dropped for room are offered again
    #[arg(long)]
    pub burst: bool,
    /// Core cycles (of 8 ns, with either engine) from a request to the target's answer. Real targets take about 6250
    #[arg(long, value_name = "CYCLES", default_value_t = sim::target::DEFAULT_ANSWER_CYCLES,
          value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub answer_after: u64,
    /// Print a line whenever more has become durable in the journal
    #[arg(long)]
    pub progress_durable: bool,
    /// Write the gateware's signals to a VCD file (slow, and large; only with --engine card)
    #[arg(long, value_name = "FILE")]
    pub vcd: Option<PathBuf>,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub owner: OwnerArguments,
}

/// How a daemon that holds the journal is asked; without one a command opens the journal itself.
#[derive(Clone, Debug, Default, Args)]
pub struct OwnerArguments {
    /// Control socket of the daemon that holds the journal; JOURNAL.sock if not given
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,
    /// Wait until what the daemon is doing has ended, where this can't be done beside it
    #[arg(long)]
    pub wait: bool,
}

impl OwnerArguments {
    /// For what is done beside whatever the daemon does, and never waits.
    pub fn at(control: Option<&PathBuf>) -> Self {
        Self { control: control.cloned(), wait: false }
    }
}

const REPLAY_EXAMPLES: &str = "\
Examples:
  Two ports, two volumes, a new journal:
    host-agent replay --capture 0=port0.pcap.gz --capture 1=port1.pcap.gz \\
        --primary 1.0=a.img --primary 1.1=b.img --journal j --create --size 256M
  More traffic into the same journal:
    host-agent replay --capture 0=later.pcap --primary 1.0=a.img --primary 1.1=b.img --journal j
  Before-images, so that every moment can be had back without a copy of the volume:
    host-agent replay --engine soft --images before --capture 0=port0.pcap.gz --primary 1.0=a.img \\
        --journal j --create
    host-agent restore j --volume 1.0 --primary a.img --at order:99 --to then.img

With after-images keep a copy of each image from before the first write: it is the base of every restore.
A write to a volume that no --primary names is dropped and counted.";

/// What the frames of a replay go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineKind {
    /// The gateware, simulated clock by clock
    Card,
    /// The same, simulated by Verilator: faster once it is compiled; wants verilator, make and a C++ compiler
    Verilated,
    /// The switch in software
    Soft,
}

/// What is journaled of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ImagesKind {
    /// The data after it
    After,
    /// The data before it
    Before,
    /// Both, in one entry
    Both,
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

/// `log`.
#[derive(Debug, Args)]
#[command(after_long_help = LOG_EXAMPLES)]
pub struct Log {
    /// The journal
    #[arg(value_name = "JOURNAL")]
    pub journal: PathBuf,
    /// Only entries of this port
    #[arg(long, value_name = "PORT")]
    pub port: Option<u8>,
    /// Only entries from this moment on: order:N, RFC 3339, -15m, bookmark:NAME, image:NAME, ns since 1970, end
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub from: Option<When>,
    /// Only entries up to this moment, itself included
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub to: Option<When>,
    /// List the windows that have been merged instead, and which ports are complete in them
    #[arg(long, conflicts_with = "port")]
    pub merged: bool,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
}

const LOG_EXAMPLES: &str = "\
Examples:
  host-agent log j --port 0 --from order:100 --to order:120
  host-agent log j --from 2026-11-23T10:00:00Z
  host-agent log j --json | jq 'select(.status != \"updated\")'
  host-agent log j --merged

What stands in a line:
  ORDER   place in the journal's order; restore --at order:N is the moment just after it
  STATUS  updated, refused (nothing was executed), cancelled, unknown, pending (no answer yet)
  ±NS     bound on the error of the time stamp, ns
  FLAGS   locked: the port's clock followed the time base; logical: the stamp is the last one + 1;
          duplicate: a copy of a write that had no answer yet";

/// `verify`.
#[derive(Debug, Args)]
#[command(after_long_help = VERIFY_EXAMPLES)]
pub struct Verify {
    /// The journal
    #[arg(value_name = "JOURNAL")]
    pub journal: PathBuf,
    /// Prove an image too: of this moment, made once more by code of its own from everything in the journal, and
    /// compared byte for byte with what restore and image give. WHEN: order:N, RFC 3339, -15m, bookmark:NAME, image:NAME, end
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true, requires = "volume")]
    pub image: Option<When>,
    /// The volume of the image, shelf.slot
    #[arg(long, value_name = "VOLUME", requires = "image")]
    pub volume: Option<String>,
    /// The base that the image is made over; it is only read
    #[arg(long, value_name = "IMG", requires = "image", conflicts_with = "primary")]
    pub base: Option<PathBuf>,
    /// The primary storage that the image is made over; it is only read, and nobody may write meanwhile
    #[arg(long, value_name = "IMG", requires = "image")]
    pub primary: Option<PathBuf>,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
}

const VERIFY_EXAMPLES: &str = "\
Examples:
  host-agent verify j
  host-agent verify j --image order:1234 --volume 1.0 --base base.img
  host-agent verify j --image bookmark:monday --volume 1.0 --primary disk.img --json

Exit code 1: the journal is damaged, or the image is not what it should be; where, is printed.";

/// `restore`.
#[derive(Debug, Args)]
#[command(after_long_help = RESTORE_EXAMPLES)]
pub struct Restore {
    /// The journal
    #[arg(value_name = "JOURNAL")]
    pub journal: PathBuf,
    /// The volume, shelf.slot
    #[arg(long, value_name = "VOLUME")]
    pub volume: String,
    #[command(flatten)]
    pub backing: BackingArguments,
    /// The moment: order:N (just after that entry), RFC 3339, -15m, bookmark:NAME, image:NAME, ns since 1970, end
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true, required_unless_present = "undo")]
    pub at: Option<When>,
    /// The image to make. It appears under its name only when it is complete; a device is written in place
    #[arg(long, value_name = "OUT", required_unless_present_any = ["in_place", "undo"])]
    pub to: Option<PathBuf>,
    /// Bring primary itself back, writing only what differs. Nothing else may write it meanwhile. It is
    /// journaled like any write: --undo takes it back
    #[arg(long, requires = "primary", conflicts_with = "to")]
    pub in_place: bool,
    /// Bring primary back to what it was before the last rollback
    #[arg(long, requires = "primary", conflicts_with_all = ["to", "at", "in_place"])]
    pub undo: bool,
    /// With --in-place and --undo: primary is this host's device of the volume (/dev/etherd/e1.0), behind a port of the card
    /// that `card drain` drains into the journal. The card journals what is written, and lets nobody else write the volume
    /// meanwhile
    #[arg(long, requires = "primary", conflicts_with = "to")]
    pub through_card: bool,
    /// Replace OUT if it exists; with --undo: even if writes came after the rollback
    #[arg(long)]
    pub force: bool,
    /// Go on across gaps in the journal, though the image may be wrong
    #[arg(long, alias = "allow-gap")]
    pub allow_gaps: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub owner: OwnerArguments,
}

/// What a volume's image is made from.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct BackingArguments {
    /// The volume's base (base create, base adopt), or its image from before the first write; it is only read.
    /// Needed unless the journal has before-images
    #[arg(long, value_name = "IMG")]
    pub base: Option<PathBuf>,
    /// The volume's primary storage, in use or not; it is only read, but for --in-place and --undo
    #[arg(long, value_name = "IMG")]
    pub primary: Option<PathBuf>,
}

impl BackingArguments {
    /// What to make the image of a moment from. With both, over a base the entries up to the moment count and
    /// over primary those behind it: the fewer.
    pub fn backing(&self, reader: &JournalReader, volume: &str, at: Moment) -> Result<Backing<'_>, Error> {
        match (&self.base, &self.primary) {
            (None, Some(primary)) => Ok(Backing::Primary(primary)),
            (Some(base), None) => Ok(Backing::Base(base)),
            (Some(base), Some(primary)) => {
                let (order, _) = reader.entry_at(at)?;
                let row = reader.tables().volume(volume)?;
                let can_undo = row.technique & technique::BEFORE != 0;
                let behind = reader.summary().order - order;
                let before_the_base = order < row.rolling.0;
                // What the base has already needn't be read from the journal.
                let fewer_behind = behind < order.saturating_sub(row.base.0);
                Ok(if can_undo && (fewer_behind || before_the_base) {
                    Backing::Primary(primary)
                } else {
                    Backing::Base(base)
                })
            }
            (None, None) => Err(Error::Misuse("give --base or --primary".into())),
        }
    }
}

const RESTORE_EXAMPLES: &str = "\
Examples:
  host-agent restore j --volume 1.0 --base base.img --at order:1234 --to then.img
  host-agent restore j --volume 1.0 --base base.img --at 2026-11-23T10:00:00.5+01:00 --to then.img
  host-agent restore j --volume 1.0 --base base.img --at end --to now.img --force
  host-agent restore j --volume 1.0 --primary disk.img --at -15m --to then.img
  host-agent restore j --volume 1.0 --primary disk.img --base base.img --at order:1234 --in-place
  host-agent restore j --volume 1.0 --primary disk.img --base base.img --undo";

/// `PORT=FILE`.
#[derive(Clone, Debug)]
pub struct PortFile {
    /// Port of the card.
    pub port: usize,
    /// Capture.
    pub file: PathBuf,
}

impl FromStr for PortFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (port, file) = split(text, "PORT=FILE, such as 0=port0.pcap.gz")?;
        let ports = sim::simulated_card::SimulatedCard::PORTS;
        let port: usize = port.parse().map_err(|e| format!("'{port}' is no port: {e}"))?;
        if port >= ports {
            return Err(format!("there is no port {port}: the simulated card has ports 0 to {}", ports - 1));
        }
        Ok(Self { port, file: file.into() })
    }
}

/// `SHELF.SLOT=FILE`.
#[derive(Clone, Debug)]
pub struct VolumeFile {
    /// AoE shelf.
    pub shelf: u16,
    /// AoE slot.
    pub slot: u8,
    /// Image.
    pub file: PathBuf,
}

impl FromStr for VolumeFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (volume, file) = split(text, "VOLUME=IMG, such as 1.0=disk.img")?;
        let wrong =
            || format!("'{volume}' is no volume: give shelf.slot, such as 1.0 (shelf to 65534, slot to 254)");
        let (shelf, slot) = address(volume).ok_or_else(wrong)?;
        Ok(Self { shelf, slot, file: file.into() })
    }
}

/// Shelf and slot of one volume.
pub fn address(text: &str) -> Option<(u16, u8)> {
    let (shelf, slot) = text.split_once('.')?;
    let address: (u16, u8) = (shelf.parse().ok()?, slot.parse().ok()?);
    (address.0 != SHELF_BROADCAST && address.1 != SLOT_BROADCAST).then_some(address)
}

fn split<'a>(text: &'a str, form: &str) -> Result<(&'a str, &'a str), String> {
    match text.split_once('=') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() => Ok((left, right)),
        _ => Err(format!("give {form}")),
    }
}

/// A size in bytes; K, M, G and T are powers of 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is no size: give bytes, or K, M, G, T of them, such as 256M");
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
            "" => 0,
            "K" | "KIB" => 10,
            "M" | "MIB" => 20,
            "G" | "GIB" => 30,
            "T" | "TIB" => 40,
            _ => return Err(wrong()),
        };
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        number.checked_mul(1 << shift).map(Size).ok_or_else(wrong)
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn sizes_volumes_and_ports_parse_or_say_how() {
        assert_eq!("256M".parse(), Ok(Size(256 << 20)));
        assert_eq!("1GiB".parse(), Ok(Size(1 << 30)));
        assert_eq!("512".parse(), Ok(Size(512)));
        for bad in ["", "M", "1X", "-1", "1.5G", "99999999999T"] {
            assert!(bad.parse::<Size>().unwrap_err().contains("256M"), "{bad}");
        }
        for bad in ["1.0", "=x", "1=x", "65535.0=x", "1.255=x", "1.0="] {
            assert!(bad.parse::<VolumeFile>().is_err(), "{bad}");
        }
        let volume: VolumeFile = "3.4=a=b".parse().unwrap();
        assert_eq!((volume.shelf, volume.slot, volume.file.to_str()), (3, 4, Some("a=b")));
        assert!("4=x".parse::<PortFile>().unwrap_err().contains("0 to 3"));
    }
}
