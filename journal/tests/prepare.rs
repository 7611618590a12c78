//! Where small batches are synced one by one, each lies where the file was got ready for it, once.

mod workload;

use journal::{FileStorage, Journal, Storage};
use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use workload::{borrowed, options, seed, Workload};

#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Prepared(Range<u64>),
    Batch(Range<u64>),
}

struct Watched {
    file: FileStorage,
    seen: Mutex<Vec<Seen>>,
}

impl Storage for Watched {
    fn name(&self) -> &str {
        self.file.name()
    }
    fn bytes(&self) -> io::Result<u64> {
        self.file.bytes()
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        if bytes.starts_with(b"CSW-BTCH") {
            self.seen.lock().unwrap().push(Seen::Batch(offset..offset + bytes.len() as u64));
        }
        self.file.write_at(bytes, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
    fn prepare(&self, offset: u64, bytes: u64) {
        self.seen.lock().unwrap().push(Seen::Prepared(offset..offset + bytes));
        self.file.prepare(offset, bytes);
    }
}

#[test]
fn every_small_batch_lies_where_the_file_was_got_ready() {
    let mut workload = Workload::new(seed(29));
    let folder = tempfile::tempdir().unwrap();
    let options = journal::CreateOptions { segment_bytes: Some(16 << 20), ..options(256 << 20) };
    let path = folder.path().join("journal");
    std::fs::File::create(&path).unwrap().set_len(256 << 20).unwrap();
    let file = FileStorage::open_owned(&path).unwrap();
    let watched = Arc::new(Watched { file, seen: Mutex::default() });
    let mut journal = Journal::create_on(Arc::clone(&watched) as Arc<dyn Storage>, &options).unwrap();
    watched.seen.lock().unwrap().clear();
    // Some segments, in batches of one write.
    let mut bytes = 0;
    while bytes < 40 << 20 {
        let record = workload.next();
        bytes += record.payload.len().next_multiple_of(4096) + 4096;
        journal.append(&borrowed(&[record]), &workload.delivered()).unwrap();
        journal.sync_batches().unwrap();
    }
    let space = journal.space();
    let segments = (space.segments - space.free) as usize;
    // Each block that was got ready, so that a batch may lie in two ranges.
    let blocks = |range: &Range<u64>| range.start / 4096..range.end / 4096;
    let (mut ready, mut batches, mut outside, mut calls) = (HashSet::new(), 0, 0, 0);
    for seen in watched.seen.lock().unwrap().iter() {
        match seen {
            Seen::Prepared(range) => {
                assert!(blocks(range).all(|block| ready.insert(block)), "{range:?} twice");
                calls += 1;
            }
            Seen::Batch(range) => {
                batches += 1;
                outside += usize::from(!blocks(range).all(|block| ready.contains(&block)));
            }
        }
    }
    println!("{batches} batches in {calls} places, {outside} elsewhere");
    assert!(calls < batches / 50, "{calls} for {batches}");
    assert!(outside <= segments, "{outside}: more than the first batch of each of {segments} segments");
    journal.close().unwrap();
}
