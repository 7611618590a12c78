//! The durable log of dirty regions: where primary may be ahead of the journal. Its bytes: `layout::dirty_log`.
//!
//! A region is marked, durably, before the first write to it reaches primary, and cleared lazily once the journal has durably
//! everything that was written there. After a stop it says too much at worst, never too little:
//!
//! 1. A slot is written durably before any write that it speaks of is let through. A crash in between leaves it torn, and
//!    the other slot, which was whole before, says enough: that write wasn't.
//! 2. A slot that is neither whole nor blank beside a whole one may have been torn, or damaged after it had counted. Nobody
//!    can tell, so everything is taken for dirty.

use journal::Storage;
pub use layout::dirty_log::Position;
use layout::dirty_log::{dirty_flags, Header, Row, BLOCK_BYTES, MAGIC, MOST_REGIONS, SLOT_BYTES};
use layout::journal_file::{Prefix, PREFIX_CRC_OFFSET, VERSION};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use zerocopy::{FromBytes, IntoBytes};

/// Bytes of the file.
pub const FILE_BYTES: u64 = 2 * SLOT_BYTES as u64;
/// Each mark takes twice as many regions along as the one before since the last checkpoint, up to 2 to the power of this: so
/// that new places cost few syncs, whether they come in a row or anywhere. What isn't written to is cleared again.
const MOST_ALONG: u32 = 6;

/// The marks of a volume, as they are in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Marks {
    volume: u16,
    shift: u8,
    regions: u32,
    bits: Vec<u8>,
}

/// What the log said when it was opened.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Why it says nothing certain, so that everything is to be taken for dirty; `None`: it is whole.
    pub uncertain: Option<String>,
    /// The boot that it was written in.
    pub boot_id: [u8; 16],
    /// Primary has to be replayed whatever the boot.
    pub replay: bool,
    /// Did it end in order, the last time that anything was served? If not, that hasn't been made good since. `None`: nobody knows.
    pub clean: Option<bool>,
    /// Which state of the journal it belongs to, if it says so.
    pub position: Option<Position>,
    /// It knows of a state of the journal that the journal doesn't: whatever that says of itself, writes are missing there.
    pub ahead: bool,
    generation: u64,
    marks: Vec<Marks>,
}

impl Found {
    /// Volumes that were served when it was written and did not end in order: each has to be made good before the log is
    /// begun anew.
    pub fn owed(&self) -> impl Iterator<Item = u16> + '_ {
        self.marks.iter().filter(|_| self.clean == Some(false)).map(|marks| marks.volume)
    }

    /// It says nothing certain, for this reason: so everything is to be taken for dirty.
    pub fn doubt(&mut self, why: impl Into<String>) {
        self.uncertain.get_or_insert(why.into());
    }

    /// Was this volume served when it was written, or before, and not made good since?
    pub fn knows(&self, volume: u16) -> bool {
        self.marks.iter().any(|marks| marks.volume == volume)
    }

    /// The dirty regions of a volume, in bytes, rising, neighbours joined; `None`: all of it may be.
    pub fn regions(&self, volume: u16) -> Option<Vec<Range<u64>>> {
        if self.uncertain.is_some() {
            return None;
        }
        let mut regions: Vec<Range<u64>> = Vec::new();
        let Some(marks) = self.marks.iter().find(|marks| marks.volume == volume) else {
            return Some(regions);
        };
        for region in
            (0..marks.regions).filter(|region| marks.bits[*region as usize / 8] >> (region % 8) & 1 == 1)
        {
            let range = u64::from(region) << marks.shift..(u64::from(region) + 1) << marks.shift;
            match regions.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => regions.push(range),
            }
        }
        Some(regions)
    }
}

/// Reads what a log says.
pub fn load(storage: &dyn Storage, journal_id: [u8; 16]) -> io::Result<Found> {
    let mut slots = Vec::new();
    for slot in 0..2 {
        let mut bytes = vec![0; SLOT_BYTES];
        let read = read_up_to(storage, &mut bytes, slot * SLOT_BYTES as u64)?;
        bytes.truncate(read);
        slots.push(bytes);
    }
    let blank = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    let parsed: Vec<Result<Found, String>> = slots.iter().map(|bytes| parse(bytes, journal_id)).collect();
    let uncertain = |why: &str| Found { uncertain: Some(why.to_owned()), ..Found::default() };
    Ok(match (&parsed[0], &parsed[1]) {
        (Ok(first), Ok(second)) => if first.generation > second.generation { first } else { second }.clone(),
        (Ok(found), Err(what)) | (Err(what), Ok(found)) => {
            let other = if parsed[0].is_ok() { &slots[1] } else { &slots[0] };
            let doubt = (!blank(other)).then(|| what.clone());
            Found { uncertain: doubt, ..found.clone() }
        }
        (Err(_), Err(_)) if slots.iter().all(|slot| blank(slot)) => uncertain("it is new"),
        (Err(what), Err(_)) => uncertain(what),
    })
}

fn read_up_to(storage: &dyn Storage, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match storage.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

fn parse(bytes: &[u8], journal_id: [u8; 16]) -> Result<Found, String> {
    let (header, _) = Header::read_from_prefix(bytes).map_err(|_| "a slot is too short".to_owned())?;
    if header.prefix.magic != MAGIC || header.prefix.version.get() != VERSION {
        return Err("a slot doesn't begin with its magic and version".into());
    }
    let used = header.bytes.get() as usize;
    if !(size_of::<Header>()..=bytes.len()).contains(&used) || !used.is_multiple_of(BLOCK_BYTES) {
        return Err(format!("a slot of {used} bytes"));
    }
    if crc_of(&bytes[..used]) != header.prefix.crc.get() {
        return Err("the CRC of a slot is wrong".into());
    }
    if header.journal_id != journal_id {
        return Err("it is another journal's".into());
    }
    let mut rest = &bytes[size_of::<Header>()..used];
    let mut position = None;
    if header.flags.get() & dirty_flags::POSITION != 0 {
        let (read, after) =
            Position::read_from_prefix(rest).map_err(|_| "its position runs over the end".to_owned())?;
        (position, rest) = (Some(read), after);
    }
    let mut marks = Vec::new();
    for _ in 0..header.rows.get() {
        let (row, after) = Row::read_from_prefix(rest).map_err(|_| "a row runs over the end".to_owned())?;
        let regions = row.regions.get();
        let length = bits_bytes(regions);
        if u64::from(regions) > MOST_REGIONS || row.region_shift >= 48 || length > after.len() {
            return Err(format!("a row of {regions} regions of 2^{} bytes", row.region_shift));
        }
        marks.push(Marks {
            volume: row.volume.get(),
            shift: row.region_shift,
            regions,
            bits: after[..length].to_vec(),
        });
        rest = &after[length..];
    }
    Ok(Found {
        uncertain: None,
        boot_id: header.boot_id,
        replay: header.flags.get() & dirty_flags::REPLAY != 0,
        clean: Some(header.flags.get() & dirty_flags::CLEAN != 0),
        position,
        ahead: false,
        generation: header.generation.get(),
        marks,
    })
}

fn crc_of(bytes: &[u8]) -> u32 {
    let crc = layout::crc::crc32c(&bytes[..PREFIX_CRC_OFFSET]);
    let crc = layout::crc::append(crc, &[0; 4]);
    layout::crc::append(crc, &bytes[PREFIX_CRC_OFFSET + 4..])
}

fn bits_bytes(regions: u32) -> usize {
    (regions as usize).div_ceil(8).next_multiple_of(8)
}

/// A volume that is going to be served.
#[derive(Clone, Debug, Default)]
pub struct ToServe {
    /// Its index.
    pub volume: u16,
    /// Its size.
    pub bytes: u64,
    /// Where primary may already have what the journal doesn't, in bytes. Stays marked until the log is begun anew.
    pub doubtful: Vec<Range<u64>>,
}

/// A volume that is served.
#[derive(Debug)]
struct Served {
    volume: u16,
    shift: u8,
    /// A bit a region: it is marked in the file, durably.
    marked: Vec<AtomicU64>,
    /// Of each region: number of the last entry that wrote there; [`DOUBTFUL`] is above them all.
    last: Vec<AtomicU64>,
}

/// Of a region that no entry's durability makes certain.
const DOUBTFUL: u64 = u64::MAX;

/// The log, while volumes are served.
pub struct DirtyLog {
    storage: Arc<dyn Storage>,
    journal_id: [u8; 16],
    boot_id: [u8; 16],
    served: Vec<Served>,
    /// Of the position, if there is one: the session, and what the last clearing went by.
    session: Option<u64>,
    cleared: AtomicU64,
    inner: Mutex<Inner>,
}

struct Inner {
    generation: u64,
    replay: bool,
    clean: bool,
    /// How often something was marked since the last checkpoint.
    marks: u32,
    /// Of volumes that aren't served now.
    others: Vec<Marks>,
    /// A write failed: what the file says is not known, so nothing more may become dirty.
    failed: bool,
    slot: Vec<u8>,
}

impl DirtyLog {
    /// Begins with nothing of `served` dirty but what is said to be: what `found` said of them was dealt with. If `found` is
    /// uncertain nothing of it is kept. Regions have 2 to the power of `shift` bytes, or more in a large volume.
    pub fn begin(
        storage: Arc<dyn Storage>,
        journal_id: [u8; 16],
        boot_id: [u8; 16],
        position: Option<Position>,
        found: &Found,
        served: &[ToServe],
        shift: u8,
    ) -> io::Result<Self> {
        let others =
            found.marks.iter().filter(|marks| served.iter().all(|served| served.volume != marks.volume));
        let inner = Inner {
            generation: found.generation,
            replay: false,
            clean: false,
            marks: 0,
            others: others.filter(|_| found.uncertain.is_none()).cloned().collect(),
            failed: false,
            slot: Vec::new(),
        };
        let log = Self {
            storage,
            journal_id,
            boot_id,
            served: served.iter().map(|served| Served::new(served, shift)).collect(),
            session: position.map(|position| position.session.get()),
            cleared: AtomicU64::new(position.map_or(0, |position| position.number.get())),
            inner: Mutex::new(inner),
        };
        // Both slots: what an earlier one said would count if the first of these were torn.
        for _ in 0..2 {
            log.write(&mut log.inner(), &[])?;
        }
        Ok(log)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An entry with this number writes there. Called before [`DirtyLog::ensure`], where numbers are given.
    pub fn touch(&self, row: usize, bytes: Range<u64>, number: u64) {
        for region in self.regions(row, bytes) {
            self.served[row].last[region].fetch_max(number, Ordering::Relaxed);
        }
    }

    /// Are these bytes marked, durably?
    pub fn is_marked(&self, row: usize, bytes: Range<u64>) -> bool {
        self.regions(row, bytes).all(|region| self.served[row].is_marked(region))
    }

    /// Is this region?
    pub fn is_region_marked(&self, row: usize, region: usize) -> bool {
        self.served[row].is_marked(region)
    }

    /// Marks what isn't marked yet. Durable on return.
    pub fn ensure(&self, row: usize, bytes: Range<u64>) -> io::Result<()> {
        if self.is_marked(row, bytes.clone()) {
            return Ok(());
        }
        let regions: Vec<(usize, usize)> = self.regions(row, bytes).map(|region| (row, region)).collect();
        self.ensure_regions(&regions)
    }

    /// The same of several regions, each with its row, at the price of one sync.
    pub fn ensure_regions(&self, regions: &[(usize, usize)]) -> io::Result<()> {
        let mut inner = self.inner();
        let along = 1 << inner.marks.min(MOST_ALONG);
        let mut new: Vec<(usize, usize)> = Vec::new();
        // Somebody else may just have done it.
        for (row, region) in regions.iter().filter(|(row, region)| !self.served[*row].is_marked(*region)) {
            let served = &self.served[*row];
            let around = region / along * along..(region + 1).next_multiple_of(along).min(served.last.len());
            new.extend(around.filter(|region| !served.is_marked(*region)).map(|region| (*row, region)));
        }
        if new.is_empty() {
            return Ok(());
        }
        self.write(&mut inner, &new)?;
        inner.marks += 1;
        for (row, region) in new {
            self.served[row].marked[region / 64].fetch_or(1 << (region % 64), Ordering::Release);
        }
        Ok(())
    }

    /// The regions that these bytes lie in; past the end of the volume there are none.
    pub fn regions(&self, row: usize, bytes: Range<u64>) -> Range<usize> {
        let (served, most) = (&self.served[row], self.served[row].last.len());
        let regions = served.regions(bytes);
        regions.start.min(most)..regions.end.min(most)
    }

    /// Clears what the journal has durably: regions that no entry above `number` wrote to. Called where numbers are given, so
    /// that nobody is between [`DirtyLog::touch`] and that. Says whether anything was; then [`DirtyLog::save`].
    pub fn clear(&self, number: u64) -> bool {
        // Before the marks: whoever writes them without these has to write this too.
        self.cleared.fetch_max(number, Ordering::Release);
        let mut cleared = false;
        for served in &self.served {
            for (index, word) in served.marked.iter().enumerate() {
                let mut left = word.load(Ordering::Relaxed);
                let mut old = 0;
                while left != 0 {
                    let bit = left.trailing_zeros() as usize;
                    left &= left - 1;
                    if served.last[64 * index + bit].load(Ordering::Relaxed) <= number {
                        old |= 1 << bit;
                    }
                }
                if old != 0 {
                    word.fetch_and(!old, Ordering::AcqRel);
                    cleared = true;
                }
            }
        }
        cleared
    }

    /// Writes the marks as they are, durably.
    pub fn save(&self) -> io::Result<()> {
        let mut inner = self.inner();
        inner.marks = 0;
        self.write(&mut inner, &[])
    }

    /// Everything is made durable, and the session has ended in order.
    pub fn end(&self) -> io::Result<()> {
        let mut inner = self.inner();
        inner.clean = !inner.replay;
        self.write(&mut inner, &[])
    }

    /// Primary can't be trusted to have what was written: at the next start it is replayed from its checkpoint.
    pub fn ask_for_replay(&self) -> io::Result<()> {
        let mut inner = self.inner();
        inner.replay = true;
        self.write(&mut inner, &[])
    }

    /// Regions that are marked.
    pub fn count(&self) -> usize {
        self.served
            .iter()
            .flat_map(|served| &served.marked)
            .map(|word| word.load(Ordering::Relaxed).count_ones() as usize)
            .sum()
    }

    /// Writes the next generation: the marks that there are, and `new` ones.
    fn write(&self, inner: &mut Inner, new: &[(usize, usize)]) -> io::Result<()> {
        if inner.failed {
            return Err(io::Error::other("the dirty-region log failed earlier: nothing more is written"));
        }
        let mut slot = std::mem::take(&mut inner.slot);
        slot.clear();
        slot.resize(size_of::<Header>() + self.session.map_or(0, |_| size_of::<Position>()), 0);
        for (index, served) in self.served.iter().enumerate() {
            let regions = served.last.len() as u32;
            put_row(&mut slot, served.volume, served.shift, regions);
            let begin = slot.len();
            for word in &served.marked {
                slot.extend_from_slice(&word.load(Ordering::Acquire).to_le_bytes());
            }
            assert_eq!(slot.len() - begin, bits_bytes(regions));
            for (_, region) in new.iter().filter(|(row, _)| *row == index) {
                slot[begin + region / 8] |= 1 << (region % 8);
            }
        }
        for marks in &inner.others {
            put_row(&mut slot, marks.volume, marks.shift, marks.regions);
            slot.extend_from_slice(&marks.bits);
        }
        slot.resize(slot.len().next_multiple_of(BLOCK_BYTES), 0);
        if slot.len() > SLOT_BYTES {
            return Err(io::Error::other(format!(
                "the marks take {} bytes, and a slot has {SLOT_BYTES}",
                slot.len()
            )));
        }
        let replay = if inner.replay { dirty_flags::REPLAY } else { 0 };
        let clean = if inner.clean { dirty_flags::CLEAN } else { 0 };
        let header = Header {
            prefix: Prefix { magic: MAGIC, version: VERSION.into(), crc: 0.into() },
            journal_id: self.journal_id,
            generation: (inner.generation + 1).into(),
            boot_id: self.boot_id,
            flags: (replay | clean | self.session.map_or(0, |_| dirty_flags::POSITION)).into(),
            rows: ((self.served.len() + inner.others.len()) as u32).into(),
            bytes: (slot.len() as u32).into(),
            reserved: 0.into(),
        };
        slot[..size_of::<Header>()].copy_from_slice(header.as_bytes());
        if let Some(session) = self.session {
            let number = self.cleared.load(Ordering::Acquire);
            let position = Position { session: session.into(), number: number.into() };
            slot[size_of::<Header>()..][..size_of::<Position>()].copy_from_slice(position.as_bytes());
        }
        let crc = crc_of(&slot);
        slot[PREFIX_CRC_OFFSET..PREFIX_CRC_OFFSET + 4].copy_from_slice(&crc.to_le_bytes());
        let offset = (inner.generation + 1) % 2 * SLOT_BYTES as u64;
        let written = write_durable(&*self.storage, &slot, offset);
        inner.slot = slot;
        match written {
            Ok(()) => inner.generation += 1,
            Err(_) => inner.failed = true,
        }
        written
    }
}

fn put_row(slot: &mut Vec<u8>, volume: u16, shift: u8, regions: u32) {
    let row = Row { volume: volume.into(), region_shift: shift, reserved: 0, regions: regions.into() };
    slot.extend_from_slice(row.as_bytes());
}

fn write_durable(storage: &dyn Storage, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match storage.write_durable_at(&bytes[done..], offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => done += written,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

impl Served {
    fn new(to_serve: &ToServe, mut shift: u8) -> Self {
        let bytes = to_serve.bytes;
        while bytes.div_ceil(1 << shift) > MOST_REGIONS {
            shift += 1;
        }
        let regions = bytes.div_ceil(1 << shift) as usize;
        let zeroes = |count: usize| (0..count).map(|_| AtomicU64::new(0)).collect();
        let mut served = Self {
            volume: to_serve.volume,
            shift,
            marked: zeroes(regions.div_ceil(64)),
            last: zeroes(regions),
        };
        for doubtful in &to_serve.doubtful {
            for region in served.regions(doubtful.start..doubtful.end.min(bytes)) {
                *served.marked[region / 64].get_mut() |= 1 << (region % 64);
                *served.last[region].get_mut() = DOUBTFUL;
            }
        }
        served
    }

    fn regions(&self, bytes: Range<u64>) -> Range<usize> {
        (bytes.start >> self.shift) as usize..(bytes.end.div_ceil(1 << self.shift) as usize)
    }

    fn is_marked(&self, region: usize) -> bool {
        self.marked[region / 64].load(Ordering::Acquire) >> (region % 64) & 1 == 1
    }
}
