//! `host-agent card drain`: the card's partial journals → the primary journal.
//!
//! | file | job |
//! |---|---|
//! | `session` | the thread that has the card |
//! | `written` | where writes are under way |
//!
//! It is the journal's daemon too (`daemon`): what needs the owner works beside it, and what wants to reach primary by way of
//! a port of the card (`through_card`).

mod session;
mod written;

use super::{Pace, Which};
use crate::arguments::{Size, VolumeFile};
use crate::daemon::{self, Holding};
use crate::error::Error;
use clap::Args;
use journal::{PreviousEnd, Volume};
use layout::registers::VOLUMES;
use layout::SECTOR_BYTES;
use session::Settings;
#[cfg(test)]
pub use session::{start, Backend, Draining, Settings as DrainSettings};
use std::path::PathBuf;
use std::str::FromStr;

pub const EXAMPLES: &str = "\
Examples:
  host-agent card drain --journal j --create --size 64G --volume 1.0=2T
  host-agent card drain 01:00.0 --journal j

Volumes that the journal has needn't be named again. Sources may write those alone; other writes are dropped and
counted. An unclean stop of the card or of the journal is a gap: moments from there on are refused until resync.

Everything works beside it as beside a daemon. With this host's initiator behind port 3 of the card:
  host-agent card drain --journal j --host-port 3
  host-agent resync j --volume 1.0 --base base.img --primary /dev/etherd/e1.0 --through-card
  host-agent restore j --volume 1.0 --base base.img --primary /dev/etherd/e1.0 --in-place --at -15m --through-card";

/// `card drain`.
#[derive(Debug, Args)]
pub struct Drain {
    #[command(flatten)]
    pub which: Which,
    /// The journal; an existing one is continued
    #[arg(long, value_name = "FILE")]
    pub journal: PathBuf,
    /// Make the journal; it must not exist
    #[arg(long)]
    pub create: bool,
    /// Size of the journal that is made, all of it allocated at once: 64M, 1G
    #[arg(long, value_name = "SIZE", default_value = "256M", requires = "create")]
    pub size: Size,
    /// A volume (shelf.slot) behind the card's uplink, and its size
    #[arg(long, value_name = "VOLUME=SIZE")]
    pub volume: Vec<VolumeSize>,
    /// Print a line whenever more has become durable in the journal
    #[arg(long)]
    pub progress_durable: bool,
    /// Period of watermarks, µs of the card's time: how long an entry waits at most for the ports that are idle.
    /// Each wakes the host; at the default of 10 ms four ports do so 400 times a second
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(100..=1_000_000))]
    pub flush_period: u64,
    /// The port behind which this host's own initiator is: while a volume is rolled back through the card (restore
    /// --in-place --through-card) only that port may write it
    #[arg(long, value_name = "PORT")]
    pub host_port: Option<u8>,
    /// A write without an answer for so long has an unknown status, µs of the card's time
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(100..=100_000_000))]
    pub unknown_after: u64,
    /// So long after the last copy of it such a write may still be executed, µs of the card's time; what overlaps it is
    /// dropped until then
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(100..=1_000_000_000))]
    pub quarantine: u64,
    /// A volume's base: what the schedule keeps no longer is rolled into it
    #[arg(long, value_name = "VOLUME=FILE")]
    pub base: Vec<VolumeFile>,
    /// The Unix socket for commands that need the journal's owner; only this user and root may. JOURNAL.sock if not given
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,
    #[command(flatten)]
    pub pace: Pace,
}

/// `SHELF.SLOT=SIZE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSize {
    /// AoE shelf.
    pub shelf: u16,
    /// AoE slot.
    pub slot: u8,
    /// Its size in sectors.
    pub sectors: u64,
}

impl FromStr for VolumeSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let volume: crate::arguments::VolumeFile =
            text.parse().map_err(|_| format!("'{text}': give VOLUME=SIZE, such as 1.0=2T"))?;
        let size: Size = volume.file.to_string_lossy().parse()?;
        if size.0 == 0 || !size.0.is_multiple_of(SECTOR_BYTES as u64) {
            return Err(format!(
                "'{text}': a volume has whole sectors of {SECTOR_BYTES} bytes, and at least one"
            ));
        }
        Ok(Self { shelf: volume.shelf, slot: volume.slot, sectors: size.0 / SECTOR_BYTES as u64 })
    }
}

/// Runs the command.
pub fn run(drain: &Drain) -> Result<(), Error> {
    // What is missing is said before a journal is made.
    let (system, device) = drain.which.ready()?;
    let bases = drain.base.iter().map(|base| (format!("{}.{}", base.shelf, base.slot), base.file.clone()));
    let holding = Holding {
        journal: &drain.journal,
        control: drain.control.as_deref(),
        create: drain.create.then_some(drain.size.0),
        bases: bases.collect(),
        recovers: false,
    };
    let slower = drain.pace.slower;
    daemon::hold(&holding, |desk, held, output| {
        output.flush()?;
        let journal = held.journal()?;
        let settings = Settings {
            volumes: volumes(&journal.tables().volumes, &drain.volume)?,
            host_port: drain.host_port,
            flush_period: drain.flush_period,
            unknown_after: drain.unknown_after,
            quarantine: drain.quarantine,
            slower,
            progress_durable: drain.progress_durable,
            behind_gap: journal.opened().previous == PreviousEnd::Unclean,
        };
        session::start(desk, settings, move || super::open(&system, &device, slower)).map(drop)
    })
}

/// The volumes that the journal has, and new ones behind them.
fn volumes(known: &[Volume], named: &[VolumeSize]) -> Result<Vec<Volume>, Error> {
    let mut volumes = known.to_vec();
    for VolumeSize { shelf, slot, sectors } in named {
        let index = volumes.iter().map(|volume| volume.index + 1).max().unwrap_or(0);
        let new = Volume::aoe(index, *shelf, *slot, *sectors);
        // One that is known may have another size by now: `volume resize` journals that, and this doesn't.
        if !volumes.iter().any(|volume| volume.name() == new.name()) {
            volumes.push(new);
        }
    }
    if volumes.is_empty() {
        return Err(Error::Misuse(
            "the journal has no volumes yet: name those behind the card with --volume".into(),
        ));
    }
    if volumes.len() > VOLUMES {
        return Err(Error::Misuse(format!("the card has place for {VOLUMES} volumes")));
    }
    Ok(volumes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_named_with_their_size() {
        let expected = VolumeSize { shelf: 1, slot: 0, sectors: 16384 };
        assert_eq!("1.0=8M".parse(), Ok(expected.clone()));
        for bad in ["1.0", "1.0=", "1.0=100", "1.0=0", "x=8M", "1.0=8X"] {
            assert!(bad.parse::<VolumeSize>().is_err(), "{bad}");
        }
        let known = volumes(&[], std::slice::from_ref(&expected)).expect("a volume");
        let more = volumes(&known, &[expected, "2.1=1M".parse().expect("a volume")]).expect("volumes");
        assert_eq!(
            more.iter().map(|volume| (volume.index, volume.name())).collect::<Vec<_>>(),
            [(0, "1.0".to_string()), (1, "2.1".to_string())]
        );
        assert!(volumes(&[], &[]).is_err());
    }
}
