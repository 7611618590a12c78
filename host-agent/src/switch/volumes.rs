//! Which volumes are switched, and what is journaled of them: named, or those that the journal has, or whoever is behind the
//! uplink.

use super::target::Target;
use super::Switching;
use crate::arguments::{address, ImagesKind, Size};
use crate::error::Error;
use crate::output::Output;
use crate::replay::ARBITER;
use clap::ValueEnum;
use engine::switch::{Acknowledge, Images, Volume as Switched};
use journal::{Address, JournalReader, Tables, Volume};
use layout::aoe::{SHELF_BROADCAST, SLOT_BROADCAST};
use layout::journal_file::technique;
use layout::registers::VOLUMES;
use layout::SECTOR_BYTES;
use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

/// `--acknowledge`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AcknowledgeKind {
    /// The target's answer passes when it comes
    Port,
    /// An answer waits until the write's entry is durable in the journal
    Journal,
}

/// `SHELF.SLOT[=SIZE][,after|before|both][,port|journal]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeOf {
    /// Shelf and slot.
    pub address: (u16, u8),
    /// Its size in sectors.
    pub sectors: Option<u64>,
    /// What is journaled.
    pub images: Option<ImagesKind>,
    /// When its sources get their answers.
    pub acknowledge: Option<AcknowledgeKind>,
}

impl FromStr for VolumeOf {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}': give SHELF.SLOT, such as 1.0 or 1.0=2T,both");
        let mut words = text.split(',');
        let first = words.next().unwrap_or_default();
        let (name, size) = first.split_once('=').map_or((first, None), |(name, size)| (name, Some(size)));
        let bytes = size.map(|size| size.parse::<Size>().map(|size| size.0)).transpose()?;
        if bytes.is_some_and(|bytes| bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES as u64)) {
            return Err(format!(
                "'{text}': a volume has whole sectors of {SECTOR_BYTES} bytes, and at least one"
            ));
        }
        let mut volume = Self {
            address: address(name).ok_or_else(wrong)?,
            sectors: bytes.map(|bytes| bytes / SECTOR_BYTES as u64),
            images: None,
            acknowledge: None,
        };
        for word in words {
            match (ImagesKind::from_str(word, false), AcknowledgeKind::from_str(word, false)) {
                (Ok(images), _) => volume.images = Some(images),
                (_, Ok(acknowledge)) => volume.acknowledge = Some(acknowledge),
                _ => return Err(format!("'{word}': after, before or both; port or journal")),
            }
        }
        Ok(volume)
    }
}

/// The volumes of a session.
pub struct Volumes {
    /// All of the journal's, with those that are new.
    pub rows: Vec<Volume>,
    /// Those that are switched, by index.
    pub switched: BTreeSet<u16>,
    /// All by index, as the switch has them; those that aren't switched can't be addressed.
    pub table: Vec<Switched>,
}

impl Volumes {
    /// Those rows that are switched, with their addresses.
    pub fn each(&self) -> impl Iterator<Item = (&Volume, (u16, u8))> {
        let switched = self.rows.iter().filter(|row| self.switched.contains(&row.index));
        switched.filter_map(|row| match row.address {
            Address::Aoe { shelf, slot } => Some((row, (shelf, slot))),
            Address::Nbd(_) => None,
        })
    }

    /// Every entry is durable before its write is let through.
    pub fn writes_ahead(&self) -> bool {
        self.each().all(|(row, _)| row.technique & technique::BEFORE != 0)
    }

    /// Somebody waits for the disk.
    pub fn waits_for_disk(&self) -> bool {
        self.table.iter().any(|volume| volume.acknowledge == Acknowledge::Journal)
    }
}

/// What is to be switched. Nothing is changed yet.
pub fn find(arguments: &Switching, target: &mut Target<'_>, output: &mut Output) -> Result<Volumes, Error> {
    let (tables, sectors) = match arguments.create {
        true => (Tables::default(), BTreeMap::new()),
        false => known(arguments)?,
    };
    let asking = |e| Error::Failed(format!("{}: asking targets: {e}", arguments.uplink));
    let mut wanted = arguments.volume.clone();
    if wanted.is_empty() {
        let of_journal = tables.volumes.iter().filter(|row| row.arbiter == ARBITER);
        wanted = of_journal.filter_map(|row| of_address(&row.address)).collect();
    }
    if wanted.is_empty() {
        let found = target.discover().map_err(asking)?;
        wanted.extend(found.iter().map(|(shelf, slot)| plain((*shelf, *slot))));
        if wanted.is_empty() {
            return Err(Error::Failed(format!(
                "{}: no target answers there: start it, or name volumes with their sizes (--volume 1.0=2T)",
                arguments.uplink
            )));
        }
    }
    let mut rows = tables.volumes.clone();
    let mut switched = BTreeMap::new();
    for volume in &wanted {
        let name = format!("{}.{}", volume.address.0, volume.address.1);
        let row = tables.volumes.iter().find(|row| row.address == aoe(volume.address));
        let now = row.map(|row| sectors.get(&row.index).copied().unwrap_or(row.sectors));
        let has = match volume.sectors {
            Some(sectors) => Some(sectors),
            None => target.sectors(volume.address).map_err(asking)?,
        };
        let has = has.or(now).ok_or_else(|| {
            Error::Failed(format!(
                "volume {name}: no target behind {} answers for it: start it, or give its size (--volume {name}=2T)",
                arguments.uplink
            ))
        })?;
        if let Some(now) = now.filter(|now| *now != has) {
            return Err(Error::Failed(format!(
                "volume {name} has {has} sectors, and {now} in the journal. If it was given another size, the journal has \
                 to know first: host-agent volume resize {} --volume {name} --sectors {has}",
                arguments.journal.display()
            )));
        }
        let images = images(volume, row, arguments, &name)?;
        let acknowledge = match volume.acknowledge.or(arguments.acknowledge) {
            Some(AcknowledgeKind::Port) if images.has_before() => {
                return Err(Error::Misuse(format!(
                    "volume {name}: a before-image is of no use unless it is durable before the write: leave out port"
                )))
            }
            Some(AcknowledgeKind::Port) => Acknowledge::Port,
            Some(AcknowledgeKind::Journal) => Acknowledge::Journal,
            None => Switched::new(0, 0, images).acknowledge,
        };
        let index =
            row.map_or_else(|| rows.iter().map(|row| row.index + 1).max().unwrap_or(0), |row| row.index);
        let (shelf, slot) = volume.address;
        if switched.insert(index, Switched { shelf, slot, images, acknowledge }).is_some() {
            return Err(Error::Misuse(format!("--volume names {name} twice")));
        }
        if row.is_none() {
            output.note(format!("volume {name}: {has} sectors, new in the journal"));
            rows.push(Volume { technique: technique_of(images), ..Volume::aoe(index, shelf, slot, has) });
        }
    }
    let nobody = Switched {
        shelf: SHELF_BROADCAST,
        slot: SLOT_BROADCAST,
        images: Images::After,
        acknowledge: Acknowledge::Port,
    };
    let places = switched.keys().max().map_or(0, |last| usize::from(*last) + 1);
    if places > VOLUMES {
        return Err(Error::Failed(format!(
            "only the journal's first {VOLUMES} volumes can be switched: use another journal"
        )));
    }
    let table = (0..places).map(|place| switched.get(&(place as u16)).copied().unwrap_or(nobody)).collect();
    Ok(Volumes { rows, switched: switched.into_keys().collect(), table })
}

fn known(arguments: &Switching) -> Result<(Tables, BTreeMap<u16, u64>), Error> {
    let reader = JournalReader::open(&arguments.journal).map_err(|error| match error {
        error if !arguments.journal.exists() => Error::JournalHint(error, "--create makes it"),
        error => error.into(),
    })?;
    Ok((reader.tables().clone(), reader.sectors_now()?))
}

fn aoe((shelf, slot): (u16, u8)) -> Address {
    Address::Aoe { shelf, slot }
}

fn of_address(address: &Address) -> Option<VolumeOf> {
    match address {
        Address::Aoe { shelf, slot } => Some(plain((*shelf, *slot))),
        Address::Nbd(_) => None,
    }
}

fn plain(address: (u16, u8)) -> VolumeOf {
    VolumeOf { address, sectors: None, images: None, acknowledge: None }
}

/// What is journaled of a volume: every entry of it has the same.
fn images(
    volume: &VolumeOf,
    row: Option<&Volume>,
    arguments: &Switching,
    name: &str,
) -> Result<Images, Error> {
    let asked = volume.images.or(arguments.images).map(Images::from);
    let Some(row) = row else { return Ok(asked.unwrap_or(Images::After)) };
    let has = match row.technique {
        technique::AFTER => Images::After,
        technique::BEFORE => Images::Before,
        _ => Images::Both,
    };
    match asked {
        Some(asked) if asked != has => Err(Error::Failed(format!(
            "the journal has other images of volume {name}, and every entry of a volume has the same: use {}, or another \
             journal",
            format!("{has:?}").to_lowercase()
        ))),
        _ => Ok(has),
    }
}

fn technique_of(images: Images) -> u8 {
    match images {
        Images::After => technique::AFTER,
        Images::Before => technique::BEFORE,
        Images::Both => technique::AFTER | technique::BEFORE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_as_they_are_given() {
        let parse = |text: &str| text.parse::<VolumeOf>().unwrap();
        assert_eq!(parse("1.0"), plain((1, 0)));
        assert_eq!(parse("1.0=8M"), VolumeOf { sectors: Some(16384), ..plain((1, 0)) });
        let full = VolumeOf {
            sectors: Some(2048),
            images: Some(ImagesKind::Both),
            acknowledge: Some(AcknowledgeKind::Journal),
            ..plain((7, 3))
        };
        assert_eq!(parse("7.3=1M,both,journal"), full);
        for wrong in ["", "1", "1.", "x.0", "1.0=", "1.0=0", "1.0=100", "1.0,all", "65535.0", "1.255"] {
            assert!(wrong.parse::<VolumeOf>().is_err(), "{wrong}");
        }
    }
}
