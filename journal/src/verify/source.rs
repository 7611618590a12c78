//! The bytes that are verified.

use crate::error::Error;
use crate::storage::Storage;
use layout::crc::crc32c;
use layout::journal_file::{Prefix, PREFIX_CRC_OFFSET, VERSION};
use zerocopy::FromBytes;

pub(super) struct Source<'a> {
    storage: &'a dyn Storage,
}

impl<'a> Source<'a> {
    pub fn new(storage: &'a dyn Storage) -> Self {
        Self { storage }
    }

    pub fn name(&self) -> &str {
        self.storage.name()
    }

    pub fn length(&self) -> Result<u64, Error> {
        self.storage.bytes().map_err(|e| Error::io(self.name(), "asking for its size", e))
    }

    /// Exactly `length` bytes from `offset`.
    pub fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; length];
        let mut done = 0;
        while done < length {
            let at = offset + done as u64;
            let more = self.storage.read_at(&mut bytes[done..], at);
            let more = match more {
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                other => other.map_err(|e| Error::io(self.name(), format!("reading at offset {at}"), e))?,
            };
            if more == 0 {
                let expected = offset + length as u64;
                return Err(Error::Truncated { file: self.name().to_owned(), expected, actual: at });
            }
            done += more;
        }
        Ok(bytes)
    }
}

/// What a structure with a prefix turns out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Intact,
    NoMagic,
    OtherVersion(u32),
    WrongCrc(String),
}

impl Seen {
    /// What is wrong with it.
    pub fn fault(&self) -> Option<String> {
        match self {
            Seen::Intact => None,
            Seen::NoMagic => Some("its magic is not there".into()),
            Seen::OtherVersion(version) => Some(format!("version {version} is unknown")),
            Seen::WrongCrc(what) => Some(what.clone()),
        }
    }
}

/// Looks at a structure of which `covered` is what its prefix's CRC covers.
pub(super) fn see(covered: &[u8], magic: [u8; 8]) -> Seen {
    let Ok((prefix, _)) = Prefix::read_from_prefix(covered) else {
        return Seen::NoMagic;
    };
    if prefix.magic != magic {
        return Seen::NoMagic;
    }
    let mut copy = covered.to_vec();
    copy[PREFIX_CRC_OFFSET..PREFIX_CRC_OFFSET + 4].fill(0);
    let computed = crc32c(&copy);
    if computed != prefix.crc.get() {
        return Seen::WrongCrc(format!("its CRC is {computed:08x} and should be {:08x}", prefix.crc));
    }
    if prefix.version.get() != VERSION {
        return Seen::OtherVersion(prefix.version.get());
    }
    Seen::Intact
}

/// Are these bytes all zero?
pub(super) fn zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| *b == 0)
}
