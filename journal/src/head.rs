//! The front of the file: superblock, tables and durability notes, and how they change.
//!
//! Superblock and tables lie there twice and always say the same: a change writes one copy, makes it
//! durable, writes the other, makes that durable. So an intact copy never says less than what was
//! confirmed, whichever of them a crash or damage took.

use crate::block::{self, Block, Fault};
use crate::error::Error;
use crate::geometry::Geometry;
use crate::storage::{self, Storage};
use crate::tables::Tables;
use layout::journal_file::{
    features, magic, role, Note, Portion, Superblock, TablesHeader, BLOCK_BYTES, MAXIMUM_SEGMENT_BYTES,
    MINIMUM_SEGMENTS, MINIMUM_SEGMENT_BYTES, NOTE_OFFSETS, SUPERBLOCK_OFFSETS, TABLES_OFFSET,
};
use zerocopy::FromBytes;

/// Features that this program can read and write.
pub(crate) const FEATURES: u64 = features::MERGED;

/// What the front of a file says.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub superblock: Superblock,
    pub geometry: Geometry,
    pub tables: Tables,
    pub table_generation: u64,
    /// The newest durability note.
    pub note: Note,
    /// A note that is damaged: what it said is not known.
    pub note_damaged: Option<(u64, String)>,
    /// Damaged copies of superblock and tables.
    pub damaged_copies: Vec<String>,
    /// A copy is behind or damaged and has to be written anew by the owner.
    pub superblock_uneven: bool,
    pub tables_uneven: bool,
}

impl Head {
    pub fn journal_id(&self) -> [u8; 16] {
        self.superblock.journal_id
    }

    /// The received portion's oldest segment.
    pub fn first_sequence(&self) -> u64 {
        self.superblock.portions[0].first_sequence.get()
    }

    /// Is the segment with that sequence one of a merged portion?
    pub fn is_merged(&self, portion: usize, sequence: u64) -> bool {
        self.superblock.portions.get(portion).is_some_and(|p| {
            p.role == role::MERGED && (p.first_sequence.get()..p.end_sequence.get()).contains(&sequence)
        })
    }

    /// The portions that are in use, the oldest part of the history first, each with its index.
    pub fn portions(&self) -> impl Iterator<Item = (usize, &Portion)> {
        self.superblock.portions.iter().enumerate().rev().filter(|(_, portion)| portion.role != role::FREE)
    }

    /// Where the history begins: order and stamp of the last entry that is no longer part of it; zeroes: it is whole.
    pub fn history_begins(&self) -> (u64, u64) {
        self.portions().next().map_or((0, 0), |(_, oldest)| {
            (oldest.from_order.get().saturating_sub(1), oldest.after_timestamp.get())
        })
    }

    /// First order of the received portion; lower ones have been merged.
    pub fn history_begins_received(&self) -> u64 {
        self.superblock.portions[0].from_order.get()
    }

    /// Reads and checks the front of a file.
    pub fn load(storage: &dyn Storage) -> Result<Self, Error> {
        let actual = storage.bytes().map_err(|e| Error::io(storage.name(), "asking for its size", e))?;
        if actual < TABLES_OFFSET {
            return Err(Error::Foreign {
                file: storage.name().to_owned(),
                reason: format!("it has {actual} bytes, less than a superblock"),
            });
        }
        let (superblock, mut damaged, superblock_uneven) = load_superblock(storage)?;
        let geometry = check_superblock(storage.name(), &superblock, actual)?;
        let (note, note_damaged) = load_notes(storage, &superblock)?;
        let (tables, table_generation, tables_uneven) = load_tables(storage, &superblock, &mut damaged)?;
        Ok(Self {
            superblock,
            geometry,
            tables,
            table_generation,
            note,
            note_damaged,
            damaged_copies: damaged,
            superblock_uneven,
            tables_uneven,
        })
    }

    /// Does the file still have the superblock that this was read from?
    pub fn is_current(&self, storage: &dyn Storage) -> Result<bool, Error> {
        let (now, _, _) = load_superblock(storage)?;
        Ok(now.generation == self.superblock.generation)
    }

    /// Changes the superblock, durably.
    pub fn write_superblock(&mut self, storage: &dyn Storage) -> Result<(), Error> {
        self.superblock.generation = (self.superblock.generation.get() + 1).into();
        write_both(storage, SUPERBLOCK_OFFSETS, &block::encode(&self.superblock).0)
    }

    /// Changes the tables, durably, and only then what is kept in memory.
    pub fn write_tables(&mut self, storage: &dyn Storage, tables: Tables) -> Result<(), Error> {
        let generation = self.table_generation + 1;
        let bytes = self.encode_tables(&tables, generation)?;
        write_both(storage, self.table_offsets(), &bytes)?;
        self.tables = tables;
        self.table_generation = generation;
        Ok(())
    }

    /// Makes copies alike that a crash or damage left uneven: the newest intact one's content,
    /// generation included, so that copies never differ by more than the change under way.
    pub fn even_out(&mut self, storage: &dyn Storage) -> Result<(), Error> {
        if self.superblock_uneven {
            write_both(storage, SUPERBLOCK_OFFSETS, &block::encode(&self.superblock).0)?;
            self.superblock_uneven = false;
        }
        if self.tables_uneven {
            let bytes = self.encode_tables(&self.tables, self.table_generation)?;
            write_both(storage, self.table_offsets(), &bytes)?;
            self.tables_uneven = false;
        }
        Ok(())
    }

    fn table_offsets(&self) -> [u64; 2] {
        [TABLES_OFFSET, TABLES_OFFSET + self.geometry.table_bytes]
    }

    /// The tables' bytes, if they fit.
    pub fn encode_tables(&self, tables: &Tables, generation: u64) -> Result<Vec<u8>, Error> {
        let bytes = tables.encode(self.journal_id(), generation)?;
        if bytes.len() as u64 > self.geometry.table_bytes {
            return Err(Error::Invalid(format!(
                "volumes, ports and sources take {} bytes, and the journal has room for {}",
                bytes.len(),
                self.geometry.table_bytes
            )));
        }
        Ok(bytes)
    }
}

fn write_both(storage: &dyn Storage, offsets: [u64; 2], bytes: &[u8]) -> Result<(), Error> {
    for offset in offsets {
        // A crash here leaves one copy old or torn, and the other whole.
        storage::write_all(storage, bytes, offset)?;
        storage::sync(storage)?;
    }
    Ok(())
}

/// Is it the device that can't read what is there? Of what lies in the file twice the other copy serves then,
/// and the owner writes this one anew, which lets the device put it elsewhere.
fn is_bad_sector(error: &Error) -> bool {
    let errno = |source: &std::io::Error| source.raw_os_error();
    matches!(error, Error::Io { source, .. } if matches!(errno(source), Some(libc::EIO | libc::ENODATA | libc::EILSEQ)))
}

fn read_block(storage: &dyn Storage, offset: u64) -> Result<Box<Block>, Error> {
    let mut block = Box::new(Block::ZERO);
    storage::read_exact(storage, &mut block.0, offset)?;
    Ok(block)
}

/// Rises with every change of the superblock.
pub(crate) fn generation(storage: &dyn Storage) -> Result<u64, Error> {
    load_superblock(storage).map(|(superblock, _, _)| superblock.generation.get())
}

/// Sequence of the oldest segment of the received portion.
pub(crate) fn first_sequence(storage: &dyn Storage) -> Result<u64, Error> {
    load_superblock(storage).map(|(superblock, _, _)| superblock.portions[0].first_sequence.get())
}

fn load_superblock(storage: &dyn Storage) -> Result<(Superblock, Vec<String>, bool), Error> {
    let mut best: Option<Superblock> = None;
    let mut damaged = Vec::new();
    let mut faults = Vec::new();
    let mut generations = Vec::new();
    let mut unreadable = None;
    for offset in SUPERBLOCK_OFFSETS {
        let block = match read_block(storage, offset) {
            Ok(block) => block,
            Err(error) if is_bad_sector(&error) => {
                damaged.push(format!("superblock at offset {offset}: {error}"));
                unreadable = Some(error);
                continue;
            }
            Err(error) => return Err(error),
        };
        match block::decode::<Superblock>(&block, magic::SUPERBLOCK) {
            Ok(found) => {
                generations.push(found.generation.get());
                if best.is_none_or(|best| found.generation.get() > best.generation.get()) {
                    best = Some(found);
                }
            }
            Err(fault) => {
                damaged.push(format!("superblock at offset {offset}: {fault}"));
                faults.push((offset, fault));
            }
        }
    }
    let file = || storage.name().to_owned();
    if let (None, Some(error)) = (&best, unreadable) {
        return Err(error);
    }
    match best {
        Some(best) => {
            let uneven = generations.len() < 2 || generations[0] != generations[1];
            Ok((best, damaged, uneven))
        }
        None if faults.iter().all(|(_, fault)| *fault == Fault::Magic) => Err(Error::Foreign {
            file: file(),
            reason: "neither superblock's magic is there (or its making was interrupted)".into(),
        }),
        None => {
            for (_, fault) in &faults {
                if let Fault::Version(version) = fault {
                    return Err(Error::Version {
                        file: file(),
                        what: format!("journal of version {version}"),
                    });
                }
            }
            let (offset, fault) = faults.swap_remove(usize::from(faults[0].1 == Fault::Magic));
            Err(Error::corrupt(
                storage.name(),
                offset,
                format!("superblock: {fault}; the other copy is damaged too"),
            ))
        }
    }
}

fn check_superblock(file: &str, s: &Superblock, actual: u64) -> Result<Geometry, Error> {
    let unknown = s.features_read.get() & !FEATURES;
    if unknown != 0 {
        return Err(Error::Version {
            file: file.into(),
            what: format!("journal with features {unknown:#x}"),
        });
    }
    let g = Geometry {
        file_bytes: s.file_bytes.get(),
        table_bytes: s.table_bytes.get(),
        segments_offset: s.segments_offset.get(),
        segment_bytes: s.segment_bytes.get(),
        segment_count: s.segment_count.get(),
        reserved_completions: s.reserved_completions.get(),
        reserved_merge: s.reserved_merge.get(),
        reserved_rollback: s.reserved_rollback.get(),
    };
    let block = BLOCK_BYTES as u64;
    let end = u64::from(g.segment_count)
        .checked_mul(g.segment_bytes)
        .and_then(|bytes| bytes.checked_add(g.segments_offset));
    let sane = g.segment_bytes.is_power_of_two()
        && (MINIMUM_SEGMENT_BYTES..=MAXIMUM_SEGMENT_BYTES).contains(&g.segment_bytes)
        && g.segment_count >= MINIMUM_SEGMENTS
        && g.table_bytes.is_multiple_of(block)
        && (block..=g.segment_bytes / 4).contains(&g.table_bytes)
        && g.segments_offset == TABLES_OFFSET + 2 * g.table_bytes
        && end == Some(g.file_bytes)
        && s.portions[0].role == role::RECEIVED
        && s.portions[0].first_sequence.get() > 0
        && s.portions[1..].iter().enumerate().all(|(index, portion)| match portion.role {
            role::FREE => true,
            role::MERGED => {
                usize::from(portion.level) == index + 1
                    && portion.first_sequence.get() > 0
                    && portion.first_sequence <= portion.end_sequence
            }
            _ => false,
        });
    if !sane {
        return Err(Error::corrupt(
            file,
            0,
            format!("the superblock's CRC is right and its sizes make no sense: {g:?}"),
        ));
    }
    if actual < g.file_bytes {
        return Err(Error::Truncated { file: file.into(), expected: g.file_bytes, actual });
    }
    Ok(g)
}

/// The newest durability note, and what is wrong with the other if it is damaged.
pub(crate) fn load_notes(
    storage: &dyn Storage,
    superblock: &Superblock,
) -> Result<(Note, Option<(u64, String)>), Error> {
    let mut best: Option<Note> = None;
    let mut damaged = None;
    let mut unreadable = None;
    for (which, offset) in NOTE_OFFSETS.into_iter().enumerate() {
        let block = match read_block(storage, offset) {
            Ok(block) => block,
            Err(error) if is_bad_sector(&error) => {
                damaged = Some((offset, format!("durability note: {error}")));
                unreadable = Some(error);
                continue;
            }
            Err(error) => return Err(error),
        };
        match block::decode::<Note>(&block, magic::NOTE) {
            Ok(note) if note.journal_id != superblock.journal_id => {
                damaged = Some((offset, "durability note of another journal".to_owned()));
            }
            Ok(note) if note.generation.get() % 2 != which as u64 => {
                damaged = Some((offset, "durability note in the other's place".to_owned()));
            }
            Ok(note) => {
                if best.is_none_or(|best| note.generation.get() > best.generation.get()) {
                    best = Some(note);
                }
            }
            Err(Fault::Version(version)) => {
                return Err(Error::Version {
                    file: storage.name().into(),
                    what: format!("durability note of version {version}"),
                });
            }
            Err(fault) => damaged = Some((offset, format!("durability note: {fault}"))),
        }
    }
    match (best, damaged) {
        (Some(best), damaged) => Ok((best, damaged)),
        (None, damaged) => {
            if let Some(error) = unreadable {
                return Err(error);
            }
            let (offset, what) = damaged.unwrap_or((NOTE_OFFSETS[0], "durability note".into()));
            Err(Error::corrupt(storage.name(), offset, format!("{what}; the other note is damaged too")))
        }
    }
}

/// Reads one copy of the tables: what is wrong, if it is.
fn load_table_copy(
    storage: &dyn Storage,
    offset: u64,
    superblock: &Superblock,
) -> Result<Result<(Tables, u64), String>, Error> {
    let first = read_block(storage, offset)?;
    let Ok((header, _)) = TablesHeader::ref_from_prefix(&first.0) else {
        return Ok(Err("too short".into()));
    };
    let bytes = u64::from(header.bytes.get());
    if header.prefix.magic != magic::TABLES {
        return Ok(Err(Fault::Magic.to_string()));
    }
    if bytes > superblock.table_bytes.get()
        || bytes < BLOCK_BYTES as u64
        || !bytes.is_multiple_of(BLOCK_BYTES as u64)
    {
        return Ok(Err(format!("it says it has {bytes} bytes")));
    }
    let mut all = vec![0; bytes as usize];
    storage::read_exact(storage, &mut all, offset)?;
    if let Err(fault) = block::check(&all, magic::TABLES) {
        return Ok(Err(fault.to_string()));
    }
    if header.journal_id != superblock.journal_id {
        return Ok(Err("it is of another journal".into()));
    }
    Ok(Tables::decode(&all).map(|tables| (tables, header.generation.get())))
}

fn load_tables(
    storage: &dyn Storage,
    superblock: &Superblock,
    damaged: &mut Vec<String>,
) -> Result<(Tables, u64, bool), Error> {
    let mut best: Option<(Tables, u64)> = None;
    let mut last = (TABLES_OFFSET, String::new());
    let mut generations = Vec::new();
    let mut unreadable = None;
    for copy in 0..2 {
        let offset = TABLES_OFFSET + copy * superblock.table_bytes.get();
        let loaded = match load_table_copy(storage, offset, superblock) {
            Err(error) if is_bad_sector(&error) => {
                let what = error.to_string();
                unreadable = Some(error);
                Err(what)
            }
            loaded => loaded?,
        };
        match loaded {
            Ok((tables, generation)) => {
                generations.push(generation);
                if best.as_ref().is_none_or(|best| generation > best.1) {
                    best = Some((tables, generation));
                }
            }
            Err(what) => {
                damaged.push(format!("tables at offset {offset}: {what}"));
                last = (offset, what);
            }
        }
    }
    let Some((tables, generation)) = best else {
        if let Some(error) = unreadable {
            return Err(error);
        }
        let what = format!("tables of volumes and ports: {}; the other copy is damaged too", last.1);
        return Err(Error::corrupt(storage.name(), last.0, what));
    };
    if generation < superblock.table_generation.get() {
        let what = format!(
            "the tables are of generation {generation}, and the superblock knows {}",
            superblock.table_generation
        );
        return Err(Error::corrupt(storage.name(), TABLES_OFFSET, what));
    }
    let uneven = generations.len() < 2 || generations[0] != generations[1];
    Ok((tables, generation, uneven))
}

/// Writes the next durability note, durably.
pub(crate) fn write_note(storage: &dyn Storage, note: &Note) -> Result<(), Error> {
    let block = block::encode(note);
    let place = (note.generation.get() % 2) as usize;
    storage::write_all_durable(storage, &block.0, NOTE_OFFSETS[place])
}

/// The same without waiting until it is durable: the next sync makes it so.
pub(crate) fn write_note_soon(storage: &dyn Storage, note: &Note) -> Result<(), Error> {
    let block = block::encode(note);
    let place = (note.generation.get() % 2) as usize;
    storage::write_all(storage, &block.0, NOTE_OFFSETS[place])
}
