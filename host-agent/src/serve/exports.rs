//! What is served: names, primaries, and the volumes that they are in the journal.

use crate::arguments::Size;
use crate::error::Error;
use journal::{Address, Volume};
use layout::journal_file::{technique, NAME_BYTES};
use layout::SECTOR_BYTES;
use ports::path::Images;
use ports::primary::{FilePrimary, Opened, Primary};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// The arbiter of software ports; 0 is a card's.
pub const ARBITER: u16 = 1;

/// NAME=PRIMARY, or NAME=PRIMARY:OFFSET+LENGTH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportOf {
    /// Of the export, and of the volume.
    pub name: String,
    /// Primary storage.
    pub file: PathBuf,
    /// First byte and bytes, if it is a part.
    pub part: Option<(u64, u64)>,
}

impl FromStr for ExportOf {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = named(text, "NAME=PRIMARY, such as disk=disk.img or boot=/dev/sdb:0+512M")?;
        let part = rest.rsplit_once(':').and_then(|(file, part)| {
            let (offset, length) = part.split_once('+')?;
            Some((file, offset.parse::<Size>().ok()?.0, length.parse::<Size>().ok()?.0))
        });
        Ok(match part {
            Some((file, offset, length)) => Self { name, file: file.into(), part: Some((offset, length)) },
            None => Self { name, file: rest.into(), part: None },
        })
    }
}

/// NAME=FILE of a base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseOf {
    /// Of the volume.
    pub name: String,
    /// The base.
    pub file: PathBuf,
}

impl FromStr for BaseOf {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, file) = named(text, "NAME=FILE, such as disk=base.img")?;
        Ok(Self { name, file: file.into() })
    }
}

fn named<'a>(text: &'a str, form: &str) -> Result<(String, &'a str), String> {
    let Some((name, rest)) = text.split_once('=').filter(|(name, rest)| !name.is_empty() && !rest.is_empty())
    else {
        return Err(format!("give {form}"));
    };
    if name.len() > NAME_BYTES || name.chars().any(char::is_control) {
        return Err(format!("a name is a line of text of at most {NAME_BYTES} bytes"));
    }
    Ok((name.to_owned(), rest))
}

/// An export whose primary is open, and nobody else's.
pub struct Export {
    /// Its name.
    pub name: String,
    /// Its data.
    pub primary: Arc<FilePrimary>,
}

/// Opens all primaries.
pub fn open(exports: &[ExportOf]) -> Result<Vec<Export>, Error> {
    let mut opened = Opened::default();
    let mut open: Vec<Export> = Vec::new();
    for export in exports {
        if open.iter().any(|other| other.name == export.name) {
            return Err(Error::Misuse(format!("--export: {} is given twice", export.name)));
        }
        let primary = opened.open(&export.file, export.part);
        let primary = primary.map_err(|error| Error::Failed(format!("export {}: {error}", export.name)))?;
        open.push(Export { name: export.name.clone(), primary: Arc::new(primary) });
    }
    Ok(open)
}

/// What lies behind a card is written by way of the card alone: with an export of it, two would number its writes. `volumes`:
/// the card's.
pub fn check_not_behind(exports: &[ExportOf], volumes: &[Volume]) -> Result<(), Error> {
    for export in exports {
        let file = export.file.canonicalize().unwrap_or_else(|_| export.file.clone());
        // As Linux's initiator names its devices, and parts of them.
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let device = file.parent().is_some_and(|folder| folder.ends_with("etherd")).then_some(name);
        let behind = device.as_deref().and_then(|name| name.strip_prefix('e')).and_then(|name| {
            volumes.iter().map(Volume::name).find(|volume| {
                name.strip_prefix(volume.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('p'))
            })
        });
        if let Some(volume) = behind {
            return Err(Error::Failed(format!(
                "export {}: {} is volume {volume}, which is behind the card and journaled there: it can't be exported too",
                export.name,
                export.file.display()
            )));
        }
    }
    Ok(())
}

/// Bases have to be of what is served.
pub fn check_bases(bases: &[super::BaseOf], exports: &[Export]) -> Result<(), Error> {
    for base in bases {
        if exports.iter().all(|export| export.name != base.name) {
            return Err(Error::Misuse(format!("--base: there is no export {}", base.name)));
        }
    }
    Ok(())
}

/// The journal's volumes for these exports: those that are `known`, which must fit, and new ones at the end, with indexes from
/// `first` on. Returns all of them, and the index of each export's.
pub fn volumes(
    exports: &[Export],
    images: Images,
    known: &[Volume],
    first: u16,
    sectors: &BTreeMap<u16, u64>,
    journal: &Path,
) -> Result<(Vec<Volume>, Vec<u16>), Error> {
    let mut volumes = known.to_vec();
    let mut indexes = Vec::new();
    for export in exports {
        let has = export.primary.bytes() / SECTOR_BYTES as u64;
        let Some(known) = volumes.iter().find(|volume| volume.name() == export.name) else {
            let index = volumes.iter().map(|volume| volume.index + 1).max().unwrap_or(0).max(first);
            volumes.push(Volume {
                address: Address::Nbd(export.name.clone()),
                technique: images.technique(),
                arbiter: ARBITER,
                ..Volume::aoe(index, 0, 0, has)
            });
            indexes.push(index);
            continue;
        };
        check(known, images, has, sectors, export, journal)?;
        indexes.push(known.index);
    }
    Ok((volumes, indexes))
}

fn check(
    known: &Volume,
    images: Images,
    has: u64,
    sectors: &BTreeMap<u16, u64>,
    export: &Export,
    journal: &Path,
) -> Result<(), Error> {
    let name = &export.name;
    if !matches!(known.address, Address::Nbd(_)) || known.arbiter != ARBITER {
        return Err(Error::Failed(format!(
            "{name} is an AoE volume in this journal, written by way of the switch alone: it can't be exported too (give the \
             export of anything else another name)"
        )));
    }
    if known.technique != images.technique() {
        return Err(Error::Failed(format!(
            "the journal has {} of volume {name}: every entry of a volume has the same; use --images {}, or another \
             journal",
            of(known.technique).0,
            of(known.technique).1
        )));
    }
    let now = sectors.get(&known.index).copied().unwrap_or(known.sectors);
    if now != has {
        let what = format!(
            "it has {has} sectors, and the journal's volume {name} has {now}: not its primary. If it was given another \
             size, the journal has to know first: host-agent volume resize {} --volume {name} --sectors {has}",
            journal.display()
        );
        return Err(Error::File { file: export.primary.name().to_owned(), what });
    }
    Ok(())
}

/// What it is called, and the argument that gives it.
fn of(technique: u8) -> (&'static str, &'static str) {
    match technique {
        technique::AFTER => ("after-images", "after"),
        technique::BEFORE => ("before-images", "before"),
        _ => ("before- and after-images", "both"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_behind_the_card_is_not_exported_too() {
        let volumes = [Volume::aoe(0, 1, 1, 8)];
        let check = |file: &str| {
            check_not_behind(&[ExportOf { name: "x".into(), file: file.into(), part: None }], &volumes)
        };
        for behind in ["/dev/etherd/e1.1", "/dev/etherd/e1.1p2"] {
            assert!(check(behind).unwrap_err().to_string().contains("volume 1.1"), "{behind}");
        }
        for other in ["/dev/etherd/e1.10", "/dev/etherd/e1.2", "/dev/sdb", "e1.1", "etherd"] {
            assert!(check(other).is_ok(), "{other}");
        }
    }

    #[test]
    fn exports_as_they_are_given() {
        let parse = |text: &str| text.parse::<ExportOf>().unwrap();
        let whole = |name: &str, file: &str| ExportOf { name: name.into(), file: file.into(), part: None };
        assert_eq!(parse("disk=/dev/sdb"), whole("disk", "/dev/sdb"));
        assert_eq!(parse("a=b=c"), whole("a", "b=c"));
        // No part: a name may have colons.
        assert_eq!(parse("a=disk:0"), whole("a", "disk:0"));
        let part = ExportOf { part: Some((1 << 20, 512 << 20)), ..whole("a", "/dev/sdb") };
        assert_eq!(parse("a=/dev/sdb:1M+512M"), part);
        for wrong in ["", "disk", "=disk", "disk=", "a\nb=c"] {
            assert!(wrong.parse::<ExportOf>().is_err(), "{wrong:?}");
        }
    }
}
