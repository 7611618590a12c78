//! The log of dirty regions (`ports::dirty_log`) of a switch: what it says after a stop, and a session's own.
//!
//! It speaks of volumes with after-images alone: elsewhere an entry is durable before its write is let through. It counts only if
//! it belongs to the journal's last session that may have run ahead, else everything may be dirty.

use super::volumes::Volumes;
use super::Switching;
use crate::dirty_log_file;
use crate::error::Error;
use crate::replay::ARBITER;
use journal::{Journal, JournalReader, PreviousEnd, Storage, Volume};
use layout::dirty_log::SMALLEST_REGION_SHIFT;
use layout::entry::GapReason;
use layout::journal_file::technique;
use layout::SECTOR_BYTES;
use ports::dirty_log::{self, DirtyLog, Found, Position, ToServe};
use ports::marking::Marking;
use ports::path::floor;
use ports::recover::boot_id;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use zerocopy::little_endian::U64;

/// The log's name is the journal's with this added. Not that of `serve`, whose volumes are others.
const ENDING: &str = ".dirty-aoe";

/// The log's file.
pub struct DirtyFile {
    path: PathBuf,
    storage: Arc<dyn Storage>,
    journal_id: [u8; 16],
    /// Targets have kept what they had answered, whatever befell this machine.
    targets_stayed_up: bool,
}

/// Where a target may have something else than the journal says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// Nowhere.
    Nowhere,
    /// In these bytes, rising: that is what the log says.
    There(Vec<Range<u64>>),
    /// Anywhere, for this reason.
    Anywhere(String),
}

impl DirtyFile {
    /// Opens it; `None`: no volume needs it.
    pub fn open(arguments: &Switching, volumes: &Volumes, journal: &Journal) -> Result<Option<Self>, Error> {
        if volumes.writes_ahead() {
            return Ok(None);
        }
        let path = dirty_log_file::place(&arguments.journal, arguments.dirty_log.as_deref(), ENDING)?;
        let storage = dirty_log_file::open(&path, arguments.create)?;
        let journal_id = JournalReader::open_on(journal.storage())?.summary().journal_id;
        Ok(Some(Self { path, storage, journal_id, targets_stayed_up: arguments.targets_stayed_up }))
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(io::Error) -> Error + '_ {
        move |error| Error::io(&self.path, action, error)
    }

    /// What it says, held against the journal, whose ports are closed.
    pub fn read(&self, journal: &Journal) -> Result<Found, Error> {
        let mut found =
            dirty_log::load(&*self.storage, self.journal_id).map_err(self.failed("reading it"))?;
        self.hold_against(&mut found, journal)?;
        Ok(found)
    }

    fn hold_against(&self, found: &mut Found, journal: &Journal) -> Result<(), Error> {
        let Some(why) = distrust(found, journal, boot_id(), self.targets_stayed_up) else { return Ok(()) };
        if found.ahead && found.position != Some(AHEAD) {
            // Each attempt to make it good has a session and entries of its own, and in the end the journal would seem to have
            // caught up. So it is said durably before the first.
            let log = Arc::clone(&self.storage);
            DirtyLog::begin(log, self.journal_id, boot_id(), Some(AHEAD), found, &[], SMALLEST_REGION_SHIFT)
                .map_err(self.failed("writing it"))?;
        }
        found.doubt(why);
        Ok(())
    }

    /// The log of a session that has just begun, and before anything is let through; `found` was read before that. Regions that
    /// are in doubt (by index of their volume) stay marked.
    pub fn begin(
        &self,
        found: &Found,
        journal: &Journal,
        volumes: &Volumes,
        in_doubt: &BTreeMap<u16, Doubt>,
    ) -> Result<Marking, Error> {
        let position = Position {
            session: journal.opened().session.into(),
            number: floor(&journal.end(), ARBITER).1.into(),
        };
        let mut served = Vec::new();
        for (row, _) in volumes.each().filter(|(row, _)| row.technique == technique::AFTER) {
            let bytes = bytes_of(journal, row)?;
            let doubtful = in_doubt.get(&row.index).map(|doubt| doubt.regions(bytes)).unwrap_or_default();
            served.push(ToServe { volume: row.index, bytes, doubtful });
        }
        let log = DirtyLog::begin(
            Arc::clone(&self.storage),
            self.journal_id,
            boot_id(),
            Some(position),
            found,
            &served,
            SMALLEST_REGION_SHIFT,
        );
        let indexes: Vec<u16> = served.iter().map(|served| served.volume).collect();
        Ok(Marking::new(log.map_err(self.failed("writing it"))?, &indexes))
    }
}

/// The position of a log that is known to be ahead of its journal.
const AHEAD: Position = Position { session: U64::from_bytes([0xFF; 8]), number: U64::from_bytes([0xFF; 8]) };

/// Why the log says nothing of the journal as it is.
fn distrust(found: &mut Found, journal: &Journal, boot: [u8; 16], targets_stayed_up: bool) -> Option<String> {
    if found.uncertain.is_some() {
        return None;
    }
    let Some(position) = found.position else { return Some("it is that of NBD exports".into()) };
    found.ahead = journal.opened().session <= position.session.get()
        || floor(&journal.end(), ARBITER).1 < position.number.get();
    if found.ahead {
        return Some("it is newer than the journal, which was put back from a copy".into());
    }
    if journal.opened().with_ports != Some(position.session.get()) {
        return Some(format!(
            "it belongs to session {}, and the journal was written to without it since",
            position.session
        ));
    }
    let same_boot = boot == found.boot_id && boot != [0; 16];
    if !same_boot && !targets_stayed_up {
        return Some(
            "this machine has been started anew since, and a target that lost power with it may lack what it had answered; if none \
             did, --targets-stayed-up says so"
                .into(),
        );
    }
    None
}

impl Doubt {
    /// Of a volume that the journal has. Its ports are closed. `unanswered`: there are writes without an answer, for which it is
    /// compared in any case; and what is compared closes every gap of the volume.
    pub fn of(found: &Found, journal: &Journal, row: &Volume, unanswered: bool) -> Result<Self, Error> {
        let previous = journal.opened().previous;
        let stopped = previous == PreviousEnd::Unclean || journal.gap_is_pending();
        let gaps = journal.open_gaps(row.index)?;
        let stop_stands = gaps.contains(&GapReason::UncleanStop);
        let owes = stopped || unanswered || stop_stands || found.ahead;
        let anywhere = |why: &str| Ok(if owes { Self::Anywhere(why.to_owned()) } else { Self::Nowhere });
        if let Some(why) = &found.uncertain {
            return anywhere(why);
        }
        if !found.knows(row.index) {
            return anywhere("the volume wasn't switched in the session that it speaks of");
        }
        let marked = found.regions(row.index).unwrap_or_default();
        if !owes && found.clean == Some(true) && marked.is_empty() {
            return Ok(Self::Nowhere);
        }
        // What is put off after a stop stays marked.
        if found.clean == Some(true) && (stopped || stop_stands && marked.is_empty()) {
            return anywhere("it says that the session ended in order, and the journal that it did not");
        }
        // The log knows of stops only.
        if gaps.iter().any(|reason| *reason != GapReason::UncleanStop) {
            return Ok(Self::Anywhere("the journal has a gap that is not of a stop".into()));
        }
        Ok(Self::There(marked))
    }

    /// The same as regions of a volume of so many bytes.
    pub fn regions(&self, bytes: u64) -> Vec<Range<u64>> {
        match self {
            Self::Nowhere => Vec::new(),
            Self::There(regions) => regions.clone(),
            Self::Anywhere(_) => std::iter::once(0..bytes).collect(),
        }
    }
}

/// The size of a volume now.
pub fn bytes_of(journal: &Journal, row: &Volume) -> Result<u64, Error> {
    let sectors = JournalReader::open_on(journal.storage())?.sectors_now()?;
    Ok(sectors.get(&row.index).copied().unwrap_or(row.sectors) * SECTOR_BYTES as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::WRITER;
    use journal::{CreateOptions, FileStorage, OwnedRecord, Port, PortKind};
    use layout::entry::{EntryHeader, Gap, Kind};
    use zerocopy::IntoBytes;

    const VOLUME_BYTES: u64 = 32 << 20;
    const BOOT: [u8; 16] = [3; 16];

    struct World {
        folder: tempfile::TempDir,
        log: Arc<dyn Storage>,
    }

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let port = Port { port: 0, kind: PortKind::Software, arbiter: ARBITER, name: "port 0".into() };
            let options = CreateOptions {
                bytes: Some(16 << 20),
                segment_bytes: None,
                volumes: vec![Volume::aoe(0, 1, 0, VOLUME_BYTES / 512)],
                ports: vec![port],
                writer: "test".into(),
            };
            Journal::create(&folder.path().join("j"), &options).unwrap().close().unwrap();
            std::fs::write(folder.path().join("log"), vec![0; dirty_log::FILE_BYTES as usize]).unwrap();
            let log = Arc::new(FileStorage::open_owned(&folder.path().join("log")).unwrap());
            Self { folder, log }
        }

        fn open(&self) -> Journal {
            Journal::open(&self.folder.path().join("j"), WRITER).unwrap()
        }

        fn rest(&self) -> Journal {
            Journal::open_ports_closed(&self.folder.path().join("j"), WRITER).unwrap()
        }

        /// A session of the journal and its log, in which the region at 8 MiB is written to.
        fn session(&self, doubtful: Vec<Range<u64>>) -> (Journal, Marking) {
            let (journal, log) = self.begin(doubtful);
            let number = floor(&journal.end(), ARBITER).1;
            log.touch(0, 8 << 20..9 << 20, number + 1);
            log.ensure(0, 8 << 20..9 << 20).unwrap();
            (journal, Marking::new(log, &[0]))
        }

        fn begin(&self, doubtful: Vec<Range<u64>>) -> (Journal, DirtyLog) {
            let journal = self.open();
            let (session, number) = (journal.opened().session, floor(&journal.end(), ARBITER).1);
            let position = Position { session: session.into(), number: number.into() };
            let served = [ToServe { volume: 0, bytes: VOLUME_BYTES, doubtful }];
            let log = Arc::clone(&self.log);
            let found = Found::default();
            let log =
                DirtyLog::begin(log, [0; 16], BOOT, Some(position), &found, &served, SMALLEST_REGION_SHIFT);
            (journal, log.unwrap())
        }

        fn found(&self, journal: &Journal, boot: [u8; 16], targets_stayed_up: bool) -> Found {
            let mut found = dirty_log::load(&*self.log, [0; 16]).unwrap();
            if let Some(why) = distrust(&mut found, journal, boot, targets_stayed_up) {
                found.doubt(why);
            }
            found
        }

        fn doubt(&self, journal: &Journal, boot: [u8; 16], targets_stayed_up: bool) -> Doubt {
            let found = self.found(journal, boot, targets_stayed_up);
            Doubt::of(&found, journal, &journal.tables().volumes[0], false).unwrap()
        }
    }

    fn marked() -> Doubt {
        Doubt::There(std::iter::once(8 << 20..12 << 20).collect())
    }

    fn is_anywhere(doubt: Doubt, why: &str) {
        assert!(matches!(&doubt, Doubt::Anywhere(said) if said.contains(why)), "{doubt:?}, not {why}");
    }

    /// Something of port 0 is missing.
    fn gap(journal: &mut Journal, reason: GapReason) {
        let (from, stamp) = (1.into(), journal.end().timestamp + 10);
        let gap = Gap {
            from_timestamp: from,
            from_number: 0.into(),
            reason: (reason as u32).into(),
            reserved: 0.into(),
        };
        let mut header = EntryHeader::new(Kind::Gap);
        header.timestamp = stamp.into();
        header.number = 1.into();
        header.seal(gap.as_bytes());
        let record = OwnedRecord { header, payload: gap.as_bytes().to_vec() };
        journal.append(&[record.as_record()], &[]).unwrap();
    }

    #[test]
    fn after_a_stop_what_is_marked_is_in_doubt() {
        let world = World::new();
        let (journal, marking) = world.session(Vec::new());
        drop((journal, marking));
        let journal = world.rest();
        assert_eq!(world.doubt(&journal, BOOT, false), marked());
        // In another boot nobody knows, unless somebody says so.
        is_anywhere(world.doubt(&journal, [4; 16], false), "started anew");
        is_anywhere(world.doubt(&journal, [0; 16], false), "started anew");
        assert_eq!(world.doubt(&journal, [4; 16], true), marked());
        // Sessions with closed ports change nothing, one with open ports does.
        drop(journal);
        world.rest().close().unwrap();
        assert_eq!(world.doubt(&world.rest(), BOOT, false), marked());
        drop(world.open());
        is_anywhere(world.doubt(&world.rest(), BOOT, false), "belongs to session");
    }

    #[test]
    fn after_an_end_in_order_nothing_is_in_doubt_but_what_was_put_off() {
        let world = World::new();
        let (journal, marking) = world.session(Vec::new());
        journal.close().unwrap();
        // Stopped before the log could say that all ended in order.
        assert_eq!(world.doubt(&world.rest(), BOOT, false), marked());
        marking.end(0).unwrap();
        let put_off = std::iter::once(0..4 << 20).collect::<Vec<_>>();
        let (journal, marking) = world.session(put_off.clone());
        journal.close().unwrap();
        marking.end(0).unwrap();
        assert_eq!(
            world.doubt(&world.rest(), BOOT, false),
            Doubt::There(std::iter::once(0..4 << 20).chain(std::iter::once(8 << 20..12 << 20)).collect()),
            "nothing that was written is durable in the journal"
        );
    }

    #[test]
    fn a_journal_that_was_put_back_is_not_the_logs() {
        let world = World::new();
        let (journal, marking) = world.session(Vec::new());
        marking.clear(500);
        assert!(!marking.work(std::time::Duration::ZERO).unwrap() && marking.count() == 0);
        drop(journal);
        is_anywhere(world.doubt(&world.rest(), BOOT, false), "put back from a copy");
    }

    /// Also one that was copied when it had ended in order, and however often it is tried to make it good.
    #[test]
    fn what_a_journal_that_was_put_back_lacks_is_not_forgotten() {
        let world = World::new();
        let path = world.folder.path().join("j");
        let copy = std::fs::read(&path).unwrap();
        let (journal, marking) = world.session(Vec::new());
        journal.close().unwrap();
        marking.end(0).unwrap();
        std::fs::write(&path, copy).unwrap();
        let file = DirtyFile {
            path: world.folder.path().join("log"),
            storage: Arc::clone(&world.log),
            journal_id: [0; 16],
            targets_stayed_up: false,
        };
        for _ in 0..4 {
            let journal = world.rest();
            let mut found = dirty_log::load(&*world.log, [0; 16]).unwrap();
            file.hold_against(&mut found, &journal).unwrap();
            let doubt = Doubt::of(&found, &journal, &journal.tables().volumes[0], false).unwrap();
            is_anywhere(doubt, "put back from a copy");
            // Interrupted before a session began.
            journal.close().unwrap();
        }
    }

    /// The start that was to make it good ended in order, and made nothing good.
    #[test]
    fn a_log_that_knows_of_no_stop_is_not_believed_later_either() {
        let world = World::new();
        let (journal, log) = world.begin(Vec::new());
        Marking::new(log, &[0]).end(0).unwrap();
        drop(journal);
        for _ in 0..3 {
            let journal = world.rest();
            is_anywhere(world.doubt(&journal, BOOT, false), "ended in order");
            journal.close().unwrap();
        }
    }

    #[test]
    fn where_the_journal_lacks_something_else_marks_do_not_do() {
        let world = World::new();
        let (mut journal, marking) = world.session(Vec::new());
        gap(&mut journal, GapReason::Lost);
        journal.sync().unwrap();
        drop((journal, marking));
        let mut journal = world.rest();
        is_anywhere(world.doubt(&journal, BOOT, false), "not of a stop");
        // Compared, it has no gap any more.
        let mut read = |buffer: &mut [u8], _| {
            buffer.fill(0);
            Ok(())
        };
        journal.resync_regions("1.0", &[], None, &mut read).unwrap();
        assert!(journal.open_gaps(0).unwrap().is_empty());
        assert_eq!(journal.open_gaps(7).unwrap().len(), 2, "another volume isn't compared by that");
    }
    #[test]
    fn a_comparison_for_what_is_unanswered_closes_no_gap_that_it_does_not_look_into() {
        let world = World::new();
        let (mut journal, log) = world.begin(Vec::new());
        gap(&mut journal, GapReason::Lost);
        journal.close().unwrap();
        Marking::new(log, &[0]).end(0).unwrap();
        let journal = world.rest();
        let found = world.found(&journal, BOOT, false);
        assert_eq!(found.uncertain, None);
        let of = |unanswered| Doubt::of(&found, &journal, &journal.tables().volumes[0], unanswered).unwrap();
        assert_eq!(of(false), Doubt::Nowhere);
        is_anywhere(of(true), "not of a stop");
    }
}
