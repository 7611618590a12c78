//! `host-agent card drain`: the card's partial journals → the primary journal.
//!
//! | file | job |
//! |---|---|
//! | `session` | the thread that has the card |
//! | `written` | where writes are under way |
//! | `software` | exports that share its session: one time line |
//! | `together` | both, as the daemon's lodger |
//!
//! It is the journal's daemon too (`daemon`): what needs the owner works beside it, and what wants to reach primary by way of
//! a port of the card (`through_card`).

#[cfg(test)]
mod one_time_line;
mod session;
mod software;
mod together;
#[cfg(test)]
pub mod wired;
mod written;

use super::{Pace, Which};
use crate::arguments::{ImagesKind, Size};
use crate::daemon::{self, Desk, Holding, Lodger};
use crate::error::Error;
use crate::network::NetworkArguments;
use crate::serve::{self, BaseOf, ExportOf, Journaling};
use clap::Args;
use journal::{PreviousEnd, Volume};
use layout::registers::VOLUMES;
use layout::SECTOR_BYTES;
use session::{behind_card, Settings, STALLED_FOR};
#[cfg(test)]
pub use session::{start, Draining, Settings as DrainSettings};
pub use software::Software;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
pub use together::Together;

pub const EXAMPLES: &str = "\
Examples:
  host-agent card drain --journal j --create --size 64G --volume 1.0=2T
  host-agent card drain 01:00.0 --journal j

Volumes that the journal has needn't be named again. Sources may write those alone; other writes are dropped and
counted. An unclean stop of the card or of the journal is a gap: moments from there on are refused until resync.

Everything works beside it as beside a daemon. With this host's initiator behind port 3 of the card:
  host-agent card drain --journal j --host-port 3
  host-agent resync j --volume 1.0 --base base.img --primary /dev/etherd/e1.0 --through-card
  host-agent restore j --volume 1.0 --base base.img --primary /dev/etherd/e1.0 --in-place --at -15m --through-card

Volumes behind the card and files or devices of this host in one consistency group: every moment shows both as they were:
  host-agent card drain --journal j --volume 1.0=2T --export disk=/dev/sdb --socket /run/disk.sock";

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
    pub base: Vec<BaseOf>,
    /// Served over NBD beside the card, as by `serve`: a name and its primary storage. It shares the time line of the card's
    /// volumes
    #[arg(long, value_name = "NAME=PRIMARY[:OFFSET+LENGTH]")]
    pub export: Vec<ExportOf>,
    #[command(flatten)]
    pub network: NetworkArguments,
    #[command(flatten)]
    pub journaling: Journaling,
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
    let exported = drain.exported()?;
    let holding = Holding {
        journal: &drain.journal,
        control: drain.control.as_deref(),
        create: drain.create.then_some(drain.size.0),
        bases: drain.base.iter().map(|base| (base.name.clone(), base.file.clone())).collect(),
        recovers: exported.is_some(),
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
            stalled_for: STALLED_FOR,
        };
        let make = move || super::open(&system, &device, slower);
        let Some(opened) = exported else { return session::start(desk, settings, make).map(drop) };
        serve::check_not_behind(&drain.export, &settings.volumes)?;
        let known = settings.volumes.clone();
        let card = serve::OfCard { volumes: &known, slower };
        serve::begin_with_card(
            drain.what(),
            opened,
            card,
            desk,
            held,
            output,
            |serving, software, volumes| {
                together(desk, Settings { volumes, ..settings }, serving, software, make).map(drop)
            },
        )
    })
}

/// Drains the card into one session with what is served.
pub fn together<C: session::Backend>(
    desk: &Arc<Desk>,
    settings: Settings,
    serving: &Arc<serve::Serving>,
    software: &Arc<Software>,
    make: impl FnOnce() -> Result<C, Error> + Send + 'static,
) -> Result<Arc<Together>, Error> {
    let mut made = None;
    let lodger = |card: &Arc<session::Draining>| -> Arc<dyn Lodger> {
        Arc::clone(made.insert(Arc::new(Together::new(Arc::clone(serving), Arc::clone(card)))))
            as Arc<dyn Lodger>
    };
    session::start_with(desk, settings, Some(Arc::clone(software)), lodger, make)?;
    made.ok_or_else(|| Error::Failed("nobody drains the card".into()))
}

impl Drain {
    fn what(&self) -> serve::What<'_> {
        serve::What {
            journal: &self.journal,
            create: self.create,
            base: &self.base,
            journaling: &self.journaling,
            network: &self.network,
        }
    }

    /// What is exported, opened before the journal is touched.
    fn exported(&self) -> Result<Option<serve::Opened>, Error> {
        match self.export.is_empty() {
            true if self.network.is_given() => {
                Err(Error::Misuse("--socket and --listen are for clients of an --export".into()))
            }
            true => Ok(None),
            false if self.journaling.images == ImagesKind::Before => Err(Error::Misuse(
                "--images before: what the card lost is a gap of the journal, and before-images alone lead to no moment \
                 before one; use both, or after"
                    .into(),
            )),
            false => serve::Opened::open(self.what(), &self.export).map(Some),
        }
    }
}

/// The volumes that the journal has, and new ones behind them.
fn volumes(known: &[Volume], named: &[VolumeSize]) -> Result<Vec<Volume>, Error> {
    let mut volumes = known.to_vec();
    for VolumeSize { shelf, slot, sectors } in named {
        // The index is the volume's place in the card, which has few; exports take those behind.
        let used = |index: &u16| volumes.iter().any(|volume| volume.index == *index);
        let index = (0..VOLUMES as u16).find(|index| !used(index));
        let new = Volume::aoe(index.unwrap_or(0), *shelf, *slot, *sectors);
        // One that is known may have another size by now: `volume resize` journals that, and this doesn't.
        if !volumes.iter().any(|volume| volume.name() == new.name()) {
            index.ok_or_else(|| Error::Misuse(format!("the card has place for {VOLUMES} volumes")))?;
            volumes.push(new);
        }
    }
    if behind_card(&volumes).next().is_none() {
        return Err(Error::Misuse(
            "the journal has no volumes behind a card yet: name them with --volume".into(),
        ));
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
        // Exports that were there first leave holes.
        let export = Volume { address: journal::Address::Nbd("disk".into()), ..Volume::aoe(0, 0, 0, 8) };
        let named: Vec<VolumeSize> = (0..16).map(|slot| VolumeSize { shelf: 1, slot, sectors: 8 }).collect();
        let mixed = volumes(std::slice::from_ref(&export), &named[..15]).expect("room for 15");
        assert_eq!(mixed.iter().map(|volume| volume.index).collect::<Vec<_>>(), (0..16).collect::<Vec<_>>());
        assert!(volumes(&[export], &named).is_err());
    }
}
