//! Undoing what was interrupted: what others wrote meanwhile is asked about, and an undo that is asked for again is finished.

#[path = "faulty_storage/mod.rs"]
mod faulty_storage;

use faulty_storage::FaultyStorage;
use journal::rollback::{RollbackOptions, RolledBack, Target};
use journal::{
    CreateOptions, Delivered, Error, Journal, JournalReader, Moment, Port, PortKind, Record, Volume,
};
use layout::entry::{flags, EntryHeader, Journaled, Kind, Rollback, Updated};
use std::path::PathBuf;
use std::sync::Arc;
use zerocopy::FromBytes;

const SECTORS: u64 = 64;
const UNDO: Target = Target::Undo { discard: false };

/// A volume with after-images, its primary and its base.
struct Machine {
    folder: tempfile::TempDir,
    storage: Arc<FaultyStorage>,
    writes: u64,
}

impl Machine {
    /// Every second sector was written.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let storage = Arc::new(FaultyStorage::new(8 << 20));
        let options = CreateOptions {
            bytes: None,
            segment_bytes: None,
            volumes: vec![Volume::aoe(0, 1, 1, SECTORS)],
            ports: vec![Port { port: 0, kind: PortKind::Software, arbiter: 0, name: "port".into() }],
            writer: "undo".into(),
        };
        let shared: Arc<dyn journal::Storage> = storage.clone();
        let journal = Journal::create_on(shared, &options).unwrap();
        let mut machine = Self { folder, storage, writes: 0 };
        for name in ["base", "primary"] {
            std::fs::write(machine.at(name), vec![0; SECTORS as usize * 512]).unwrap();
        }
        machine.write(journal, (0..SECTORS).step_by(2));
        machine
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn primary(&self) -> Vec<u8> {
        std::fs::read(self.at("primary")).unwrap()
    }

    /// A session of the port.
    fn write(&mut self, mut journal: Journal, places: impl Iterator<Item = u64>) {
        let mut primary = self.primary();
        for lba in places {
            self.writes += 1;
            let end = journal.end();
            let payload = [self.writes as u8; 512];
            let mut header = EntryHeader::new(Kind::After);
            header.timestamp = (end.timestamp.max(1_700_000_000_000_000_000) + 1000).into();
            header.number = (end.arbiters.first().map_or(0, |arbiter| arbiter.number) + 1).into();
            header.flags = flags::CLOCK_LOCKED.into();
            header.volume = 0.into();
            header.source = 0.into();
            header.sectors = 1.into();
            header.set_lba(lba);
            header.set_status(Journaled::Port, Updated::Updated);
            header.seal(&payload);
            let delivered = [Delivered { port: 0, timestamp: header.timestamp.get() }];
            journal.append(&[Record::new(header, &payload)], &delivered).unwrap();
            primary[lba as usize * 512..][..512].copy_from_slice(&payload);
        }
        std::fs::write(self.at("primary"), primary).unwrap();
        journal.close().unwrap();
    }

    fn others_write(&mut self, lba: u64) {
        let shared: Arc<dyn journal::Storage> = self.storage.clone();
        self.write(Journal::open_on(shared, "others").unwrap(), lba..=lba);
    }

    fn roll_back(&self, to: Target) -> Result<RolledBack, Error> {
        let shared: Arc<dyn journal::Storage> = self.storage.clone();
        let mut journal = Journal::open_ports_closed_on(shared, "rollback")?;
        let (base, primary) = (self.at("base"), self.at("primary"));
        let options =
            RollbackOptions { volume: "1.1", primary: &primary, base: Some(&base), to, allow_gaps: false };
        let done = journal.roll_back(&options, &mut |_, _| {})?;
        journal.close()?;
        Ok(done)
    }

    /// A rollback has begun, and not ended.
    fn is_unfinished(&self) -> bool {
        let shared: Arc<dyn journal::Storage> = self.storage.clone();
        let reader = JournalReader::open_on(shared).unwrap();
        let records = reader.records().map(Result::unwrap);
        let last = records.filter(|record| record.header.kind == Kind::Marker as u8).last();
        let payload = last.map(|marker| reader.payload(&marker).unwrap());
        payload.is_some_and(|payload| Rollback::read_from_bytes(&payload).unwrap().last_order.get() == 0)
    }

    /// One that fails at its write or sync of that number. Whether it failed, and is not finished for that.
    fn interrupted(&mut self, to: Target, operation: usize) -> bool {
        self.storage.fail_at(self.storage.operations() + operation, 5);
        let failed = self.roll_back(to).is_err();
        self.storage = Arc::new(FaultyStorage::from_image(self.storage.image()));
        failed && self.is_unfinished()
    }
}

#[test]
fn what_others_wrote_since_it_was_interrupted_is_asked_about() {
    let mut asked = 0;
    for operation in 0..40 {
        let mut machine = Machine::new();
        let now = machine.primary();
        if !machine.interrupted(Target::Moment(Moment::Order(0)), operation) {
            continue;
        }
        machine.others_write(7);
        let there = machine.primary();
        match machine.roll_back(UNDO) {
            Err(Error::Discards { writes, .. }) => assert_eq!(writes, 1, "operation {operation}"),
            other => panic!("operation {operation}: {other:?}"),
        }
        assert!(machine.primary() == there, "operation {operation}: nothing was touched");
        assert_eq!(machine.roll_back(Target::Undo { discard: true }).unwrap().discarded, 1);
        assert!(machine.primary() == now, "operation {operation}");
        asked += 1;
    }
    assert!(asked > 0, "it was interrupted between its first write of primary and its end");
}

#[test]
fn an_undo_that_was_interrupted_is_finished() {
    let mut finished = 0;
    for (first, second) in (0..40).flat_map(|first| [(first, None), (first, Some(first / 2))]) {
        let mut machine = Machine::new();
        let now = machine.primary();
        machine.roll_back(Target::Moment(Moment::Order(0))).unwrap();
        let then = machine.primary();
        if !machine.interrupted(UNDO, first) {
            continue;
        }
        if second.is_some_and(|second| !machine.interrupted(UNDO, second)) {
            continue;
        }
        machine.roll_back(UNDO).unwrap();
        assert!(machine.primary() == now, "interrupted in {first}, {second:?}");
        machine.roll_back(UNDO).unwrap();
        assert!(machine.primary() == then, "interrupted in {first}, {second:?}: the undo undone");
        finished += 1;
    }
    assert!(finished > 0, "it was interrupted between its first write of primary and its end");
}
