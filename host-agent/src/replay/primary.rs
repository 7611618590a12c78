//! The images that `--primary` names, and their volumes in the journal.

use crate::arguments::VolumeFile;
use crate::error::Error;
use ::engine::switch::Images;
use journal::{Address, Tables, Volume};
use layout::journal_file::technique;
use layout::registers::VOLUMES;
use layout::SECTOR_BYTES;
use sim::target::{Image, TargetVolume};
use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// An image, open.
pub struct Primary {
    /// AoE shelf.
    pub shelf: u16,
    /// AoE slot.
    pub slot: u8,
    /// Size in sectors.
    pub sectors: u64,
    /// The image.
    pub file: File,
    /// Its name, for messages.
    pub name: String,
}

impl Primary {
    /// As it is printed.
    pub fn volume(&self) -> String {
        format!("{}.{}", self.shelf, self.slot)
    }

    /// What the target serves.
    pub fn served(&self) -> Result<TargetVolume, Error> {
        let file = self.file.try_clone();
        let file = file.map_err(|e| Error::io(self.name.as_ref(), "opening it twice", e))?;
        Ok(TargetVolume::new(self.shelf, self.slot, self.sectors, Image::File(file)))
    }
}

/// Opens every image.
pub fn open(arguments: &[VolumeFile]) -> Result<Vec<Primary>, Error> {
    let mut names = HashMap::new();
    let mut files = HashMap::new();
    let mut primaries = Vec::new();
    for VolumeFile { shelf, slot, file: path } in arguments {
        let (shelf, slot) = (*shelf, *slot);
        if names.insert((shelf, slot), ()).is_some() {
            return Err(Error::Misuse(format!("--primary names volume {shelf}.{slot} twice")));
        }
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.map_err(|e| Error::io(path, "opening the image for reading and writing", e))?;
        let metadata = file.metadata().map_err(|e| Error::io(path, "looking at the image", e))?;
        if files.insert((metadata.dev(), metadata.ino()), ()).is_some() {
            return Err(Error::Misuse(format!("{}: two volumes can't share an image", path.display())));
        }
        let wrong = |what: String| Error::File { file: path.display().to_string(), what };
        if !metadata.is_file() {
            return Err(wrong("not a regular file: images are files here".into()));
        }
        let bytes = metadata.len();
        if bytes == 0 || bytes % SECTOR_BYTES as u64 != 0 {
            return Err(wrong(format!("an image has whole sectors of 512 bytes, this has {bytes} bytes")));
        }
        let (sectors, name) = (bytes / SECTOR_BYTES as u64, path.display().to_string());
        primaries.push(Primary { shelf, slot, sectors, file, name });
    }
    if primaries.len() > VOLUMES {
        return Err(Error::Misuse(format!("the card has place for {VOLUMES} volumes")));
    }
    Ok(primaries)
}

/// The journal's volumes for these primaries, with `images` of every write: those it has, which must fit, and
/// new ones at the end. `sectors` is what each has now.
///
/// A volume keeps its technique, for it says what *every* entry of the volume holds: whoever chooses between a
/// base and primary goes by it (`docs/decisions/0044-replay-in-software.md`).
pub fn volumes(
    primaries: &[Primary],
    tables: &Tables,
    sectors: &BTreeMap<u16, u64>,
    journal: &Path,
    images: Images,
) -> Result<Vec<Volume>, Error> {
    let technique = technique_of(images);
    let mut volumes = tables.volumes.clone();
    for primary in primaries {
        let known = volumes.iter().find(|volume| volume.name() == primary.volume());
        let Some(known) = known else {
            let index = volumes.iter().map(|volume| volume.index + 1).max().unwrap_or(0);
            let volume = Volume::aoe(index, primary.shelf, primary.slot, primary.sectors);
            volumes.push(Volume { technique, ..volume });
            continue;
        };
        if known.technique != technique {
            return Err(Error::Failed(format!(
                "the journal has {} of volume {}, and this replay would add {}: every entry of a volume has the \
                 same; use --images {}, or another journal",
                images_name(known.technique),
                known.name(),
                images_name(technique),
                images_argument(known.technique),
            )));
        }
        let now = sectors.get(&known.index).copied().unwrap_or(known.sectors);
        if now != primary.sectors {
            let what = format!(
                "it has {} sectors, and the journal's volume {name} has {now}: not its image. If the volume was given \
                 another size, the journal has to know first: host-agent volume resize {} --volume {name} --sectors {}",
                primary.sectors,
                journal.display(),
                primary.sectors,
                name = known.name(),
            );
            return Err(Error::File { file: primary.name.clone(), what });
        }
    }
    Ok(volumes)
}

fn technique_of(images: Images) -> u8 {
    match images {
        Images::After => technique::AFTER,
        Images::Before => technique::BEFORE,
        Images::Both => technique::AFTER | technique::BEFORE,
    }
}

fn images_name(technique: u8) -> &'static str {
    match technique {
        technique::AFTER => "after-images",
        technique::BEFORE => "before-images",
        _ => "before- and after-images",
    }
}

fn images_argument(technique: u8) -> &'static str {
    match technique {
        technique::AFTER => "after",
        technique::BEFORE => "before",
        _ => "both",
    }
}

/// Shelf and slot by index, as the card's table wants them.
pub fn card_table(volumes: &[Volume]) -> Result<Vec<(u16, u8)>, Error> {
    let wrong = |what: &str| Err(Error::Failed(format!("the journal's volumes don't fit the card: {what}")));
    let mut table = Vec::new();
    for (place, volume) in volumes.iter().enumerate() {
        match volume.address {
            _ if usize::from(volume.index) != place => return wrong("their indexes have holes"),
            Address::Aoe { shelf, slot } => table.push((shelf, slot)),
            Address::Nbd(_) => return wrong("there is an NBD export among them"),
        }
    }
    if table.len() > VOLUMES {
        return wrong("there are more than 16");
    }
    Ok(table)
}

/// Bit mask of the table's entries that `primaries` name.
pub fn mask(primaries: &[Primary], table: &[(u16, u8)]) -> u32 {
    let named = |volume: &(u16, u8)| primaries.iter().any(|p| (p.shelf, p.slot) == *volume);
    table.iter().enumerate().filter(|(_, volume)| named(volume)).map(|(index, _)| 1 << index).sum()
}
