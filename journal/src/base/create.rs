//! Makes a base from primary, which may be in use, or takes one over that is there.
//!
//! A copy of a primary in use is *fuzzy*: each sector is as it was at some time while it was copied. Two orders
//! say what that means. Up to its *order* everything had been settled when the copy began: the copy holds it,
//! and only later entries count over it. Behind its *rolling order* nothing had been written yet when the copy
//! ended: from there on every moment can be made, because whatever the copy may hold of later writes is
//! overwritten by their entries.

use super::check::{check, stranger, Position};
use super::{at, label, refuse_special};
use crate::backing;
use crate::error::Error;
use crate::image::{next_data, open_backing, open_base, Backing};
use crate::moment::Moment;
use crate::open::sync_directory;
use crate::reader::JournalReader;
use crate::record::takes_order;
use crate::sizes::Sizes;
use crate::sparse::SparseImage;
use crate::tables::Volume;
use crate::writer::Journal;
use layout::entry::{Kind, Updated};
use layout::journal_file::{role, technique, Portion, Superblock};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes that are copied at a time.
const PIECE_BYTES: u64 = 1 << 20;

/// What a base is made from.
#[derive(Clone, Copy, Debug)]
pub struct BaseOptions<'a> {
    /// Name of the volume.
    pub volume: &'a str,
    /// Its primary storage, in use or not; only read.
    pub primary: &'a Path,
    /// The base to make. Nothing may be there.
    pub base: &'a Path,
    /// The volume has a base already, and loses it.
    pub replace: bool,
}

/// A base that was made or taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Based {
    /// Its identity.
    pub base_id: [u8; 16],
    /// Where it stands.
    pub position: Position,
    /// Where the base that it replaces stood: moments from its `rolling` to that of `position` are lost.
    pub replaced: Option<Position>,
    /// It had been taken over before: nothing was changed.
    pub known: bool,
}

impl Journal {
    /// Makes a base of primary, whole. Nothing writes through the journal meanwhile: it was opened with its
    /// ports closed. With open ports: [`Journal::begin_base`].
    pub fn create_base(
        &mut self,
        options: &BaseOptions<'_>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Based, Error> {
        if !self.ports_closed {
            return Err(Error::Invalid(
                "ports are open, and writes may be under way: begin a base, copy, and finish it".into(),
            ));
        }
        let copied = self.begin_base(options)?.copy(progress)?;
        self.finish_base(copied, 0)
    }

    /// Begins a base while ports may be open. Three steps: this; [`BaseCopy::copy`], which takes long and
    /// doesn't need the journal; [`Journal::finish_base`].
    pub fn begin_base(&mut self, options: &BaseOptions<'_>) -> Result<BaseCopy, Error> {
        let volume = self.tables().volume(options.volume)?.clone();
        self.may_have_base(&volume, options.replace)?;
        let name = options.base.display().to_string();
        match std::fs::symlink_metadata(options.base) {
            Ok(metadata) => {
                refuse_special(options.base, &metadata)?;
                return Err(Error::Exists { file: name });
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(&name, "looking for it", e)),
        }
        // What isn't in the file yet the reader wouldn't see; that would be safe, but needlessly early.
        self.sync()?;
        let reader = JournalReader::open_on(Arc::clone(&self.storage))?;
        let sectors = sizes_of(&reader, &volume)?.now();
        let (primary_name, primary) = open_backing(Backing::Primary(options.primary), &volume, sectors)?;
        let volume = Volume { sectors, ..volume };
        // Of a session that didn't end in order no answer comes any more, and its gap may not be written yet.
        let ended_before = if self.chain.gap_pending { self.opened.session } else { 0 };
        let unfinished = Unfinished::new(options.base)?;
        let settled = Settled::Read { reader: Box::new(reader), ended_before };
        Ok(BaseCopy { volume, settled, primary, primary_name, unfinished })
    }

    /// Makes what was copied the volume's base. Everything is durable on return.
    ///
    /// `number` is the last that the volume's arbiter had given when the copy had ended: what the copy may hold
    /// of writes has to be in the journal before anyone can say up to where that is. While that isn't so, it is
    /// refused, and the copy is lost: wait for it ([`Journal::end`]) first.
    pub fn finish_base(&mut self, copied: Copied, number: u64) -> Result<Based, Error> {
        let Copied { volume, order, unfinished } = copied;
        let has =
            self.end().arbiters.iter().find(|end| end.arbiter == volume.arbiter).map_or(0, |e| e.number);
        if has < number {
            return Err(Error::Invalid(format!(
                "the journal has entries up to number {has} of arbiter {}, and the copy may hold writes up to number {number}",
                volume.arbiter
            )));
        }
        let row = self.tables().volume(&volume.name())?.clone();
        // 1. Everything that the copy may hold is durable: no crash can cut off what its label speaks of.
        self.sync()?;
        let reader = JournalReader::open_on(Arc::clone(&self.storage))?;
        if row.base_id != volume.base_id || sizes_of(&reader, &row)?.now() != volume.sectors {
            let what = format!("volume {} got another base or size while it was copied", volume.name());
            return Err(Error::Invalid(what));
        }
        // Merging may have gone on meanwhile: what was given up and isn't in the copy would be missing.
        let first = first_order(&self.head.superblock);
        if order.0 + 1 < first {
            let what = format!(
                "history before order:{first} was given up while volume {} was copied, and the copy holds only what \
                 was written up to {}; make it again",
                volume.name(),
                at(order)
            );
            return Err(Error::Invalid(what));
        }
        let rolling = entry_at(&reader, Moment::End)?;
        let rolling = rolling.max(order);
        let base_id = random_id(self.storage.name())?;
        let position = Position { order, rolling };
        // 2. The label, before the base has its name: an image without a label could be taken for one from
        //    before the first write. A crash here leaves a label of nothing, which the next base replaces.
        let written = label::new(self.head.journal_id(), base_id, &volume, order, rolling)?;
        label::write(&label::path_of(&unfinished.base)?, &written)?;
        // 3. The base. A crash here leaves a base that the journal doesn't know of, and the old one as it was.
        unfinished.publish()?;
        // 4. The row, from which on the new base counts and the old one doesn't.
        self.set_base(&row, base_id, position)?;
        Ok(Based { base_id, position, replaced: position_of(&row), known: false })
    }

    /// Takes over an image that is there: one from before the first write, or one that says by its label where
    /// it stands (making it was interrupted before the journal knew of it). Everything is durable on return.
    pub fn adopt_base(&mut self, volume: &str, base: &Path, replace: bool) -> Result<Based, Error> {
        let row = self.tables().volume(volume)?.clone();
        let name = base.display().to_string();
        let metadata = std::fs::metadata(base).map_err(|e| Error::io(&name, "looking at it", e))?;
        refuse_special(base, &metadata)?;
        self.sync()?;
        let reader = JournalReader::open_on(Arc::clone(&self.storage))?;
        // What holds nothing of the journal has the size that the volume was entered with.
        let (_, file, sectors) = open_base(base, &row, sizes_of(&reader, &row)?.first())?;
        let path = label::path_of(base)?;
        let found = label::read(&path)?.map(|(found, _)| found);
        if found.as_ref().is_some_and(|found| found.base_id == row.base_id) {
            let (position, _) = check(self.head.journal_id(), &row, base)?;
            return Ok(Based { base_id: row.base_id, position, replaced: None, known: true });
        }
        self.may_have_base(&row, replace)?;
        let wrong = |what: String| Error::Base { file: name.clone(), what };
        let first = first_order(&self.head.superblock);
        let (base_id, position) = match &found {
            Some(found) => {
                if let Some(what) = stranger(found, self.head.journal_id(), &row) {
                    return Err(wrong(what));
                }
                let position = Position { order: label::order(found), rolling: label::rolling(found) };
                self.sync()?;
                if position.rolling.0 > self.durable().order {
                    return Err(wrong(format!(
                        "advanced: by its label it may hold writes up to {}, and the journal ends at order:{}: an older copy of it",
                        at(position.rolling),
                        self.durable().order
                    )));
                }
                (found.base_id, position)
            }
            None => (random_id(self.storage.name())?, Position::default()),
        };
        if position.order.0 + 1 < first {
            return Err(wrong(format!(
                "left behind: it stands {}, and the journal's history begins at order:{first}; make a new one (base create)",
                at(position.order)
            )));
        }
        // 1. The image. It may have been copied here a moment ago.
        file.sync_all().map_err(|e| Error::io(&name, "making it durable", e))?;
        // 2. The label. A crash here leaves one that the journal doesn't know of: adopting goes on with it.
        if found.is_none() {
            let of = Volume { sectors, ..row.clone() };
            let written = label::new(self.head.journal_id(), base_id, &of, position.order, position.rolling)?;
            label::write(&path, &written)?;
        }
        // 3. The row.
        self.set_base(&row, base_id, position)?;
        Ok(Based { base_id, position, replaced: position_of(&row), known: false })
    }

    fn set_base(&mut self, row: &Volume, base_id: [u8; 16], position: Position) -> Result<(), Error> {
        let Position { order, rolling } = position;
        self.set_volumes(&[Volume { base_id, base: order, rolling, base_doubtful: 0, ..row.clone() }])
    }

    /// Does the volume need a base, and is it free for one?
    fn may_have_base(&self, volume: &Volume, replace: bool) -> Result<(), Error> {
        let name = volume.name();
        if volume.technique & technique::AFTER == 0 {
            return Err(Error::Invalid(format!(
                "volume {name} needs no base: it is journaled with before-images, and its moments are made from primary"
            )));
        }
        let Some(position) = position_of(volume).filter(|_| !replace) else { return Ok(()) };
        let end = self.end().order;
        Err(Error::Invalid(format!(
            "volume {name} has a base already, from which moments from {} on can be made; with a new one those before \
             the end of its copy (order:{end} at least) are lost. --replace does it",
            at(position.rolling)
        )))
    }
}

fn sizes_of(reader: &JournalReader, volume: &Volume) -> Result<Sizes, Error> {
    Ok(reader.sizes()?.remove(&volume.index).unwrap_or_else(|| Sizes::of(volume.sectors)))
}

/// Where the volume's base stands by its row.
fn position_of(volume: &Volume) -> Option<Position> {
    (volume.base_id != [0; 16]).then_some(Position { order: volume.base, rolling: volume.rolling })
}

/// The first order that the journal still has, or will have.
fn first_order(superblock: &Superblock) -> u64 {
    oldest(superblock).from_order.get().max(1)
}

/// The portion with which history begins.
fn oldest(superblock: &Superblock) -> &Portion {
    let portions = &superblock.portions;
    let merged = portions.iter().skip(1).rev().find(|portion| portion.role == role::MERGED);
    merged.unwrap_or(&portions[0])
}

fn random_id(name: &str) -> Result<[u8; 16], Error> {
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(|e| Error::Invalid(format!("{name}: no random number for the base's identity: {e}")))?;
    Ok(id)
}

/// See [`Journal::begin_base`].
pub struct BaseCopy {
    volume: Volume,
    settled: Settled,
    primary: File,
    primary_name: String,
    unfinished: Unfinished,
}

/// Up to where everything had been settled before the first read.
enum Settled {
    /// It has to be read from the journal.
    Read {
        reader: Box<JournalReader>,
        ended_before: u64,
    },
    Known((u64, u64)),
}

/// A copy that is durable under a temporary name. Dropped, it is gone.
pub struct Copied {
    volume: Volume,
    order: (u64, u64),
    unfinished: Unfinished,
}

impl BaseCopy {
    /// Reads from the journal what the copy needs of it; [`BaseCopy::copy`] does it, unless it has been done. The
    /// owner's own reader holds nothing of the journal: where its owner merges during the copy, this comes first.
    pub fn settle(&mut self) -> Result<(), Error> {
        if let Settled::Read { reader, ended_before } = &self.settled {
            self.settled = Settled::Known(settled(reader, &self.volume, *ended_before)?);
        }
        Ok(())
    }

    /// Copies primary, sparsely. `progress` hears of bytes done, and of how many there are.
    pub fn copy(self, progress: &mut dyn FnMut(u64, u64)) -> Result<Copied, Error> {
        // Before the first read: what is settled now every read sees.
        let order = match &self.settled {
            Settled::Known(order) => *order,
            Settled::Read { reader, ended_before } => settled(reader, &self.volume, *ended_before)?,
        };
        let total = self.volume.bytes();
        let unfinished = self.unfinished;
        let mut out = SparseImage::new(&unfinished.file, &unfinished.name, total)?;
        let mut buffer = vec![0; PIECE_BYTES.min(total) as usize];
        let mut at = 0;
        while at < total {
            // A hole that is written behind our back is written by an entry that counts.
            let (from, to) = next_data(&self.primary, at, total).map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => {
                    backing::cut_short(&self.primary, &self.primary_name, "looking for data")
                }
                _ => Error::io(&self.primary_name, "looking for data", e),
            })?;
            let mut from = from;
            while from < to {
                let piece = &mut buffer[..PIECE_BYTES.min(to - from) as usize];
                backing::read(&self.primary, &self.primary_name, piece, from)?;
                out.fill(piece, from)?;
                from += piece.len() as u64;
                progress(from, total);
            }
            at = to;
        }
        // Where there were holes nothing was read.
        backing::check_size(&self.primary, &self.primary_name, total)?;
        let durable = unfinished.file.sync_all();
        durable.map_err(|e| Error::io(&unfinished.name, "making it durable", e))?;
        progress(total, total);
        Ok(Copied { volume: self.volume, order, unfinished })
    }
}

/// The last order up to which every entry of the volume was settled, with its stamp. No answer comes any more
/// to an entry with a later gap of its port, or from a session before `ended_before`. One that was declared
/// unknown is settled: primary has what it has.
fn settled(reader: &JournalReader, volume: &Volume, ended_before: u64) -> Result<(u64, u64), Error> {
    // Bounded by what ports may have unanswered.
    let mut pending: HashMap<(u16, u64), (u64, u8)> = HashMap::new();
    for record in reader.records() {
        let record = record?;
        let (port, number) = (record.header.port, record.header.number.get());
        let key = (reader.arbiter(port), number);
        match (record.kind, record.order) {
            (Kind::Completion, _) => drop(pending.remove(&key)),
            (Kind::Gap, _) => pending.retain(|_, (_, of)| *of != port),
            // What was read back from primary is what primary has.
            (Kind::Resync, _) => {}
            (kind, Some(order)) if takes_order(kind) => {
                let open = matches!(record.header.updated(), Ok(Updated::Pending));
                if open && record.header.volume.get() == volume.index && record.session >= ended_before {
                    pending.insert(key, (order, port));
                }
            }
            _ => {}
        }
    }
    entry_at(
        reader,
        match pending.values().map(|(order, _)| *order).min() {
            Some(first) => Moment::Order(first - 1),
            None => Moment::End,
        },
    )
}

/// The last entry at or before a moment; where the journal has given that up, the last one that it gave up.
fn entry_at(reader: &JournalReader, moment: Moment) -> Result<(u64, u64), Error> {
    let oldest = oldest(&reader.head().superblock);
    let gone = (oldest.from_order.get().saturating_sub(1), oldest.after_timestamp.get());
    let found = reader.entry_at(moment)?;
    Ok(if gone.0 > 0 { found.max(gone) } else { found })
}

/// The base under a temporary name in the same directory, removed unless it is published.
struct Unfinished {
    file: File,
    path: PathBuf,
    base: PathBuf,
    name: String,
}

impl Unfinished {
    fn new(base: &Path) -> Result<Self, Error> {
        let name = base.display().to_string();
        let last = base.file_name().ok_or_else(|| Error::Invalid(format!("{name}: not a file's name")))?;
        let path = base.with_file_name(format!(".{}.new-{}", last.to_string_lossy(), std::process::id()));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|e| Error::io(&name, "creating it (under a temporary name)", e))?;
        Ok(Self { file, path, base: base.to_owned(), name })
    }

    fn publish(self) -> Result<(), Error> {
        use rustix::fs::{renameat_with, RenameFlags, CWD};
        match renameat_with(CWD, &self.path, CWD, &self.base, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => return Err(Error::Exists { file: self.name.clone() }),
            // File systems without it: the link fails where the name is taken.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                std::fs::hard_link(&self.path, &self.base)
                    .map_err(|e| Error::io(&self.name, "giving it its name", e))?;
            }
            Err(e) => return Err(Error::io(&self.name, "giving it its name", e.into())),
        }
        sync_directory(&self.base)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Gone already if it was renamed.
        let _ = std::fs::remove_file(&self.path);
    }
}
