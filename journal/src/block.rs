//! Structures that fill one block and carry a CRC over the whole of it.

use layout::crc;
use layout::journal_file::{Prefix, BLOCK_BYTES, PREFIX_CRC_OFFSET, VERSION};
use std::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a block, aligned so that direct I/O takes them.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
pub(crate) struct Block(pub [u8; BLOCK_BYTES]);

impl Block {
    pub const ZERO: Block = Block([0; BLOCK_BYTES]);
}

/// Why a structure is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Magic,
    Version(u32),
    Crc { stored: u32, computed: u32 },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Magic => write!(f, "its magic is not there"),
            Fault::Version(version) => write!(f, "version {version} is unknown"),
            Fault::Crc { stored, computed } => {
                write!(f, "its CRC is {computed:08x} and should be {stored:08x}")
            }
        }
    }
}

/// CRC32C of `bytes` with the prefix's CRC field taken as zero.
pub(crate) fn crc_without_field(bytes: &[u8]) -> u32 {
    let (head, rest) = bytes.split_at(PREFIX_CRC_OFFSET);
    crc::append(crc::append(crc::crc32c(head), &[0; 4]), &rest[4..])
}

/// Checks magic, version and CRC of a structure that begins with a [`Prefix`] and is `bytes` long.
pub(crate) fn check(bytes: &[u8], magic: [u8; 8]) -> Result<(), Fault> {
    let Ok((prefix, _)) = Prefix::ref_from_prefix(bytes) else {
        return Err(Fault::Magic);
    };
    if prefix.magic != magic {
        return Err(Fault::Magic);
    }
    // Long enough: it holds a prefix.
    let (stored, computed) = (prefix.crc.get(), crc_without_field(bytes));
    if stored != computed {
        return Err(Fault::Crc { stored, computed });
    }
    // After the CRC: a flipped version is damage, an intact other one is another program's.
    if prefix.version.get() != VERSION {
        return Err(Fault::Version(prefix.version.get()));
    }
    Ok(())
}

/// A prefix whose CRC is still to come.
pub(crate) fn prefix(magic: [u8; 8]) -> Prefix {
    Prefix { magic, version: VERSION.into(), crc: 0.into() }
}

/// Writes the CRC of `bytes` into their prefix, and returns it.
pub(crate) fn put_crc(bytes: &mut [u8]) -> u32 {
    let sum = crc_without_field(bytes);
    bytes[PREFIX_CRC_OFFSET..PREFIX_CRC_OFFSET + 4].copy_from_slice(&sum.to_le_bytes());
    sum
}

/// The block of a structure: zeroes behind it, CRC filled in.
pub(crate) fn encode<T: IntoBytes + Immutable>(value: &T) -> Box<Block> {
    let mut block = Box::new(Block::ZERO);
    let bytes = value.as_bytes();
    block.0[..bytes.len()].copy_from_slice(bytes);
    put_crc(&mut block.0);
    block
}

/// The structure of a block.
pub(crate) fn decode<T>(block: &Block, magic: [u8; 8]) -> Result<T, Fault>
where
    T: FromBytes + KnownLayout + Immutable + Unaligned + Copy,
{
    check(&block.0, magic)?;
    match T::ref_from_prefix(&block.0) {
        Ok((value, _)) => Ok(*value),
        Err(_) => Err(Fault::Magic),
    }
}

/// Bytes that begin on a block's boundary in memory too, and grow.
#[derive(Default)]
pub(crate) struct AlignedBuffer {
    blocks: Vec<Block>,
    length: usize,
}

impl AlignedBuffer {
    pub fn len(&self) -> usize {
        self.length
    }

    pub fn clear(&mut self) {
        self.length = 0;
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.blocks.as_bytes()[..self.length]
    }

    pub fn as_mut_bytes(&mut self) -> &mut [u8] {
        &mut self.blocks.as_mut_bytes()[..self.length]
    }

    pub fn push(&mut self, bytes: &[u8]) {
        let start = self.length;
        self.set_len(start + bytes.len());
        self.blocks.as_mut_bytes()[start..start + bytes.len()].copy_from_slice(bytes);
    }

    /// Zeroes up to a multiple of `align`.
    pub fn pad_to(&mut self, align: usize) {
        let start = self.length;
        self.set_len(start.next_multiple_of(align));
        self.blocks.as_mut_bytes()[start..self.length].fill(0);
    }

    /// Sets the length; what is new in it is not defined.
    pub fn set_len(&mut self, length: usize) {
        let blocks = length.div_ceil(BLOCK_BYTES);
        if blocks > self.blocks.len() {
            self.blocks.resize(blocks, Block::ZERO);
        }
        self.length = length;
    }
}
