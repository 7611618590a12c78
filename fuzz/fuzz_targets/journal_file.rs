//! A journal with any damage: reading, verifying and opening it say so or go on; nobody panics, hangs or takes memory without
//! bound.
//!
//! The input is a list of changes to a small good journal. The first byte says whether the CRCs of the structures at the front
//! are made good again, so that what stands behind them is reached.
#![no_main]

use journal::{CreateOptions, Delivered, Journal, JournalReader, Port, PortKind, Record, Storage, Volume};
use layout::crc;
use layout::entry::{EntryHeader, Journaled, Kind, Updated};
use layout::journal_file::{BLOCK_BYTES, PREFIX_CRC_OFFSET};
use libfuzzer_sys::fuzz_target;
use std::io;
use std::sync::{Arc, Mutex, OnceLock};

struct Memory(Mutex<Vec<u8>>);

impl Storage for Memory {
    fn name(&self) -> &str {
        "memory"
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = self.0.lock().unwrap();
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let count = buffer.len().min(bytes.len() - from);
        buffer[..count].copy_from_slice(&bytes[from..from + count]);
        Ok(count)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        let mut bytes = self.0.lock().unwrap();
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let count = data.len().min(bytes.len() - from);
        if count == 0 && !data.is_empty() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        bytes[from..from + count].copy_from_slice(&data[..count]);
        Ok(count)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

fn good() -> &'static Vec<u8> {
    static GOOD: OnceLock<Vec<u8>> = OnceLock::new();
    GOOD.get_or_init(|| {
        let storage = Arc::new(Memory(Mutex::new(vec![0; 2 << 20])));
        let options = CreateOptions {
            bytes: None,
            segment_bytes: Some(64 << 10),
            volumes: vec![Volume::aoe(0, 1, 0, 64)],
            ports: vec![Port { port: 0, kind: PortKind::Software, arbiter: 0, name: "port".into() }],
            writer: "fuzz".into(),
        };
        let mut journal = Journal::create_on(storage.clone(), &options).expect("a journal");
        for number in 1..=90u64 {
            let data = vec![number as u8; 512 * (1 + number as usize % 3)];
            let mut header = EntryHeader::new(Kind::After);
            header.timestamp = (number * 1000).into();
            header.volume = 0.into();
            header.number = number.into();
            header.sequence = number.into();
            header.set_lba(number % 60);
            header.sectors = ((data.len() / 512) as u16).into();
            header.set_status(Journaled::Port, if number % 7 == 0 { Updated::Pending } else { Updated::Updated });
            header.seal(&data);
            let delivered = [Delivered { port: 0, timestamp: number * 1000 }];
            journal.append(&[Record::new(header, &data)], &delivered).expect("appended");
            if number % 9 == 0 {
                journal.sync().expect("synced");
            }
        }
        drop(journal);
        let bytes = storage.0.lock().unwrap().clone();
        bytes
    })
}

/// Of a structure that fills a block.
fn make_good(block: &mut [u8]) {
    block[PREFIX_CRC_OFFSET..PREFIX_CRC_OFFSET + 4].fill(0);
    let crc = crc::crc32c(block);
    block[PREFIX_CRC_OFFSET..PREFIX_CRC_OFFSET + 4].copy_from_slice(&crc.to_le_bytes());
}

fn read(storage: &Arc<Memory>) {
    let Ok(reader) = JournalReader::open_on(storage.clone()) else { return };
    let _ = reader.sectors_now();
    let Ok(entries) = reader.entries() else { return };
    for entry in entries.take(1000).flatten() {
        let _ = reader.payload(&entry.record);
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((how, changes)) = input.split_first() else { return };
    let mut bytes = good().clone();
    for change in changes.chunks_exact(5).take(64) {
        let at = u32::from_le_bytes([change[0], change[1], change[2], 0]) as usize % bytes.len();
        match how & 2 {
            0 => bytes[at] ^= change[3],
            _ => bytes[at] = change[3],
        }
        if change[4] & 0xF0 == 0xF0 {
            let end = (at + (usize::from(change[4]) & 15) * 512).min(bytes.len());
            bytes[at..end].fill(change[3]);
        }
        if how & 1 > 0 {
            // Whatever begins with this block, if it has such a CRC.
            let block = at / BLOCK_BYTES * BLOCK_BYTES;
            let end = (block + BLOCK_BYTES).min(bytes.len());
            make_good(&mut bytes[block..end]);
        }
    }
    if how & 4 > 0 {
        let length = bytes.len() / 256 * usize::from(*how);
        bytes.truncate(length);
    }
    let storage = Arc::new(Memory(Mutex::new(bytes)));
    read(&storage);
    let _ = journal::verify::verify_on(&*storage, &mut |_, _| {});
    let Ok(journal) = Journal::open_on(storage.clone(), "fuzz") else { return };
    let _ = journal.close();
    read(&storage);
});
