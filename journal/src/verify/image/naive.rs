//! An image of a moment, made the plain way: the whole journal is read, and each sector remembers which entry
//! it shows.

use super::super::front::{self, Front};
use super::super::source::Source as Bytes;
use super::super::{prove, Report};
use super::backing::Opened;
use super::facts::{Facts, VolumeFacts};
use super::sectors::{Direction, Sectors, Slot};
use crate::error::Error;
use crate::image::Backing;
use crate::moment::Moment;
use crate::storage::Storage;
use layout::SECTOR_BYTES;
use std::collections::BTreeSet;
use std::fmt;

/// Sectors that are held at once: 16 bytes each, 8 GiB of the volume. The journal is read once for each.
const STRIPE_SECTORS: u64 = 1 << 24;

const SECTOR: u64 = SECTOR_BYTES as u64;

/// What a sector is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Primary or base.
    Backing,
    /// An entry with this order, or merged up to it; its data lie at this offset of the journal.
    Entry {
        /// Order.
        order: u64,
        /// File offset.
        offset: u64,
    },
    /// An entry with this order, or merged up to it, that says that it is zero.
    Zero {
        /// Order.
        order: u64,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Backing => write!(f, "the backing"),
            Source::Entry { order, offset } => {
                write!(f, "order:{order} (data at offset {offset} of the journal)")
            }
            Source::Zero { order } => write!(f, "order:{order}, which is zero"),
        }
    }
}

impl From<Slot> for Source {
    fn from(slot: Slot) -> Self {
        match (slot.is_backing(), slot.is_zero()) {
            (true, _) => Source::Backing,
            (_, true) => Source::Zero { order: slot.order },
            _ => Source::Entry { order: slot.order, offset: slot.offset() },
        }
    }
}

struct Stripe {
    from: u64,
    slots: Vec<Slot>,
}

/// See the module.
pub struct Naive<'a> {
    storage: &'a dyn Storage,
    front: Front,
    facts: Facts,
    at: Moment,
    volume: VolumeFacts,
    direction: Direction,
    backing: Opened,
    sectors: u64,
    stripe: Option<Stripe>,
    /// Stripes whose sectors have been counted.
    counted: BTreeSet<u64>,
    entries: u64,
    mapped: u64,
    doubtful: u64,
}

impl<'a> Naive<'a> {
    /// Reads the journal once: what the moment is, and whether it can be made.
    pub fn open(
        storage: &'a dyn Storage,
        volume: &str,
        at: Moment,
        backing: Backing<'_>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, Error> {
        let source = Bytes::new(storage);
        let mut report = Report::default();
        let front = front::check(&source, &mut report)?.filter(|_| report.is_sound());
        let Some(front) = front else { return Err(damaged(storage, &report)) };
        let volume = VolumeFacts::find(&front, volume)?;
        if u64::from(volume.row.sector_bytes.get()) != SECTOR {
            let bytes = volume.row.sector_bytes;
            return Err(Error::Invalid(format!("volume {} has sectors of {bytes} bytes", volume.name)));
        }
        let mut facts = Facts::new(&front, volume.row.index.get(), at);
        let report = prove(storage, progress, &mut |_, header, parts| facts.batch(header, parts))?;
        if !report.is_sound() {
            return Err(damaged(storage, &report));
        }
        facts.check_moment(&front)?;
        let (sectors, primary_sectors) = facts.sizes(&volume.row);
        let entered = facts.size_at(&volume.row, 0);
        let opened = Opened::open(backing, &volume, front.superblock.journal_id, primary_sectors, entered)?;
        facts.check_gaps(backing)?;
        let direction = match backing {
            Backing::Primary(_) => Direction::First,
            Backing::Base(_) => {
                check_position(&facts, &front, &volume, opened.position)?;
                Direction::Last { behind: opened.position.0 }
            }
        };
        Ok(Self {
            storage,
            front,
            facts,
            at,
            volume,
            direction,
            backing: opened,
            sectors,
            stripe: None,
            counted: BTreeSet::new(),
            entries: 0,
            mapped: 0,
            doubtful: 0,
        })
    }

    /// Size of the volume at the moment.
    pub fn bytes(&self) -> u64 {
        self.sectors.saturating_mul(SECTOR)
    }

    /// Order of the last entry at or before the moment.
    pub fn order(&self) -> u64 {
        self.facts.last.0
    }

    /// The moment, by a name that means the same while the journal goes on.
    pub fn fixed(&self) -> Moment {
        self.facts.fixed(&self.volume.row)
    }

    /// Entries of the volume that it is made from; known once something has been read.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Sectors that come from entries, and doubtful ones, of what has been read.
    pub fn sectors_seen(&self) -> (u64, u64) {
        (self.mapped, self.doubtful)
    }

    /// Reads whole sectors; the range has to lie in the image.
    pub fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.bytes());
        if end.is_none() || !offset.is_multiple_of(SECTOR) || !buffer.len().is_multiple_of(SECTOR_BYTES) {
            let (length, bytes) = (buffer.len(), self.bytes());
            return Err(Error::Invalid(format!("{length} bytes at offset {offset} of an image of {bytes}")));
        }
        let mut at = offset / SECTOR;
        let mut rest = buffer;
        while !rest.is_empty() {
            let slots = self.slots(at)?;
            let first = slots.first().copied().unwrap_or_default();
            let wanted = rest.len() / SECTOR_BYTES;
            // Sectors that lie together where they come from.
            let together = |(index, slot): &(usize, &Slot)| {
                let moved = first.offset() + *index as u64 * SECTOR;
                slot.is_backing() == first.is_backing()
                    && slot.is_zero() == first.is_zero()
                    && (first.is_backing() || first.is_zero() || slot.offset() == moved)
            };
            let count = slots.iter().take(wanted).enumerate().take_while(together).count().max(1);
            let (part, after) = rest.split_at_mut(count * SECTOR_BYTES);
            match (first.is_backing(), first.is_zero()) {
                (true, _) => self.backing.read(part, at * SECTOR)?,
                (_, true) => part.fill(0),
                // Its CRCs were checked when the journal was read.
                _ => {
                    let bytes = Bytes::new(self.storage).read(first.offset(), part.len())?;
                    part.copy_from_slice(&bytes);
                }
            }
            at += count as u64;
            rest = after;
        }
        Ok(())
    }

    /// What a sector is made from.
    pub fn source(&mut self, sector: u64) -> Result<Source, Error> {
        Ok(self.slots(sector)?.first().copied().unwrap_or_default().into())
    }

    /// Is a sector doubtful?
    pub fn is_doubtful(&mut self, sector: u64) -> Result<bool, Error> {
        Ok(self.slots(sector)?.first().is_some_and(Slot::is_doubtful))
    }

    /// The slots of a stripe from a sector on, which lies in the image.
    fn slots(&mut self, sector: u64) -> Result<&[Slot], Error> {
        let from = sector / STRIPE_SECTORS * STRIPE_SECTORS;
        let stripe = match self.stripe.take().filter(|stripe| stripe.from == from) {
            Some(stripe) => stripe,
            None => self.load(from)?,
        };
        let stripe = self.stripe.insert(stripe);
        Ok(stripe.slots.get((sector - from) as usize..).unwrap_or_default())
    }

    fn load(&mut self, from: u64) -> Result<Stripe, Error> {
        let count = STRIPE_SECTORS.min(self.sectors.saturating_sub(from)) as usize;
        let volume = self.volume.row;
        let mut sectors = Sectors::new(&self.facts, self.at, volume, self.direction, from, count);
        let report = prove(self.storage, &mut |_, _| {}, &mut |offset, header, parts| {
            sectors.batch(offset, header, parts);
        })?;
        if !report.is_sound() {
            return Err(damaged(self.storage, &report));
        }
        let Sectors { slots, entries, .. } = sectors;
        self.check_portions()?;
        if let Some(slot) = slots.iter().find(|slot| slot.lacks_image()) {
            return Err(self.without_image(slot.order));
        }
        self.entries = entries;
        if self.counted.insert(from) {
            self.mapped += slots.iter().filter(|slot| !slot.is_backing()).count() as u64;
            self.doubtful += slots.iter().filter(|slot| slot.is_doubtful()).count() as u64;
        }
        Ok(Stripe { from, slots })
    }

    fn without_image(&self, order: u64) -> Error {
        Error::Invalid(match self.direction {
            Direction::First => format!(
                "order:{order} holds no before-image: this moment is made from a base, not from primary (--base)"
            ),
            Direction::Last { .. } => format!(
                "order:{order} holds no after-image: this moment is made from primary, not from a base (--primary)"
            ),
        })
    }

    /// Every reading has to find the same history.
    fn check_portions(&self) -> Result<(), Error> {
        let now = front::check(&Bytes::new(self.storage), &mut Report::default())?;
        match now.is_some_and(|now| now.superblock.portions == self.front.superblock.portions) {
            true => Ok(()),
            false => {
                Err(Error::Invalid("the journal was merged meanwhile: nothing is proved; try again".into()))
            }
        }
    }

    /// Over primary nothing may have been written since.
    pub fn check_still(&self) -> Result<(), Error> {
        self.check_portions()?;
        let now = front::check(&Bytes::new(self.storage), &mut Report::default())?;
        let went_on = now.is_some_and(|now| now.durable_batch() != self.front.durable_batch());
        match self.direction {
            Direction::First if went_on => Err(Error::Invalid(
                "the journal went on while the image was compared: nothing is proved; over primary nobody may write meanwhile".into(),
            )),
            _ => Ok(()),
        }
    }
}

/// Can the moment be made from a base at this position?
fn check_position(
    facts: &Facts,
    front: &Front,
    volume: &VolumeFacts,
    (order, rolling): (u64, u64),
) -> Result<(), Error> {
    let name = &volume.name;
    let from = super::super::portions::oldest(&front.superblock).from_order.get().max(1);
    if facts.last.0 < rolling {
        return Err(Error::NoMoment(format!(
            "the base of volume {name} may hold entries up to order:{rolling}, from behind the moment"
        )));
    }
    if order + 1 < from {
        return Err(Error::NoMoment(format!(
            "the base of volume {name} holds entries up to order:{order}, and those before order:{from} are gone"
        )));
    }
    Ok(())
}

/// The first finding as an error.
fn damaged(storage: &dyn Storage, report: &Report) -> Error {
    let (offset, what) = match report.findings.first() {
        Some(first) => (first.offset, first.what.clone()),
        None => (0, "damaged".to_owned()),
    };
    Error::Corrupt { file: storage.name().to_owned(), offset, what }
}
