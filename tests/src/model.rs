//! What a volume must hold: an array that writes are copied into, in order.

use crate::capture::{writes, Write};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A set of captures with its moments.
pub struct CaptureSet {
    /// Where it lies.
    pub folder: PathBuf,
    /// Its `moments.json`.
    pub moments: Value,
    /// The writes of each port, in record order.
    pub writes: BTreeMap<u8, Vec<Write>>,
}

impl CaptureSet {
    /// `small` or `large`.
    pub fn open(name: &str) -> Self {
        let folder = crate::agent::workspace().join("tests/captures").join(name);
        let text = std::fs::read_to_string(folder.join("moments.json")).expect("moments.json");
        let moments: Value = serde_json::from_str(&text).expect("moments.json is JSON");
        let captures = moments["captures"].as_array().expect("captures").iter();
        let writes = captures
            .map(|capture| {
                let port = capture["port"].as_u64().expect("a port") as u8;
                (port, writes(&folder.join(capture["file"].as_str().expect("a file"))))
            })
            .collect();
        Self { folder, moments, writes }
    }

    /// The volumes with their sizes in bytes.
    pub fn volumes(&self) -> Vec<(String, u64)> {
        let captures = self.moments["captures"].as_array().expect("captures").iter();
        captures
            .map(|capture| {
                let volume = capture["volume"].as_str().expect("a volume").to_owned();
                (volume, capture["size"].as_u64().expect("a size"))
            })
            .collect()
    }

    /// Writes in all.
    pub fn count(&self) -> usize {
        self.writes.values().map(Vec::len).sum()
    }

    /// The arguments of a replay of the whole set into `folder`: images `V.img` (made here, all zeroes),
    /// bases `V.base`, and the journal `journal`.
    pub fn replay_arguments(&self, folder: &Path, size: &str) -> Vec<String> {
        let mut arguments = vec!["replay".to_owned()];
        for capture in self.moments["captures"].as_array().expect("captures") {
            let file = self.folder.join(capture["file"].as_str().expect("a file"));
            arguments.extend(["--capture".into(), format!("{}={}", capture["port"], file.display())]);
        }
        for (volume, size) in self.volumes() {
            for kind in ["img", "base"] {
                let path = folder.join(format!("{volume}.{kind}"));
                std::fs::File::create(path).and_then(|file| file.set_len(size)).expect("an image");
            }
            let image = folder.join(format!("{volume}.img"));
            arguments.extend(["--primary".into(), format!("{volume}={}", image.display())]);
        }
        let journal = folder.join("journal").display().to_string();
        arguments.extend(["--journal", &journal, "--create", "--size", size].map(String::from));
        arguments
    }

    /// The writes in the order of the journal: its entries, as `log --json` gives them, must be, port by
    /// port, the captures' writes in their order, each once, with the data after them.
    #[track_caller]
    pub fn in_journal_order(&self, log: &[Value]) -> Vec<&Write> {
        let ordered = self.in_order_by_place(log);
        for (line, write) in log.iter().zip(&ordered) {
            assert_eq!(line["crc32c"], layout::crc::crc32c(&write.data), "{line}");
        }
        ordered
    }

    /// The same, whatever the entries hold.
    #[track_caller]
    pub fn in_order_by_place(&self, log: &[Value]) -> Vec<&Write> {
        let mut next: BTreeMap<u8, usize> = BTreeMap::new();
        let mut ordered = Vec::new();
        for (place, line) in log.iter().enumerate() {
            assert_eq!(line["order"], place as u64 + 1, "order has no holes");
            let port = line["port"].as_u64().expect("a port") as u8;
            let number = next.entry(port).or_default();
            let write = self.writes[&port]
                .get(*number)
                .unwrap_or_else(|| panic!("port {port} wrote less than that: {line}"));
            check_place(line, write);
            *number += 1;
            ordered.push(write);
        }
        ordered
    }
}

/// A line of the log must be of that write's place.
#[track_caller]
fn check_place(line: &Value, write: &Write) {
    assert_eq!(line["volume"], write.volume.as_str(), "{line}");
    assert_eq!(line["lba"], write.lba, "{line}");
    assert_eq!(line["sectors"], write.sectors, "{line}");
}

/// A volume.
pub struct Volume {
    /// `shelf.slot`.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Volume {
    /// All zeroes.
    pub fn new(name: &str, bytes: u64) -> Self {
        Self { name: name.to_owned(), bytes: vec![0; bytes as usize] }
    }

    /// Applies a write, if it is one of this volume's.
    pub fn apply(&mut self, write: &Write) {
        if write.volume == self.name {
            let at = write.lba as usize * 512;
            self.bytes[at..at + write.data.len()].copy_from_slice(&write.data);
        }
    }

    /// What lies where a write of this volume goes.
    pub fn at(&self, write: &Write) -> &[u8] {
        let at = write.lba as usize * 512;
        &self.bytes[at..at + write.data.len()]
    }

    /// SHA-256, in hexadecimal.
    pub fn sha256(&self) -> String {
        Sha256::digest(&self.bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
