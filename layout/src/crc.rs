//! CRC32C (Castagnoli), the checksum of every header, payload and block in the system.
//!
//! RFC 3720 §12.1: polynomial 0x1EDC6F41, reflected in and out, starting value and final XOR all ones.

use crate::journal_file::CRC_BLOCK_BYTES;

/// The polynomial, bit-reversed, as a right-shifting implementation uses it.
pub const POLYNOMIAL_REFLECTED: u32 = 0x82F6_3B78;

/// One table step: the CRC register after shifting in one byte that is already XORed into it.
pub const TABLE: [u32; 256] = {
    let mut table = [0u32; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut register = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            register = if register & 1 == 1 { (register >> 1) ^ POLYNOMIAL_REFLECTED } else { register >> 1 };
            bit += 1;
        }
        table[byte] = register;
        byte += 1;
    }
    table
};

/// The raw shift register (no inversions) after taking `bytes`. The gateware's register is this one.
pub const fn shift_register(mut register: u32, bytes: &[u8]) -> u32 {
    let mut i = 0;
    while i < bytes.len() {
        register = TABLE[((register ^ bytes[i] as u32) & 0xFF) as usize] ^ (register >> 8);
        i += 1;
    }
    register
}

/// CRC32C of `bytes`.
#[inline]
pub fn crc32c(bytes: &[u8]) -> u32 {
    append(0, bytes)
}

/// CRC32C of what `crc` was computed over, followed by `bytes`.
#[inline]
pub fn append(crc: u32, bytes: &[u8]) -> u32 {
    #[cfg(feature = "std")]
    {
        crc32c::crc32c_append(crc, bytes)
    }
    #[cfg(not(feature = "std"))]
    {
        !shift_register(!crc, bytes)
    }
}

/// What the shift register becomes by [`CRC_BLOCK_BYTES`] of zeroes, for each value of each of its four bytes.
static BLOCK_SHIFT: [[u32; 256]; 4] = {
    // Shifting is linear: a matrix, a column a bit. One zero bit, then its square as often as it takes.
    let mut matrix = [0u32; 32];
    let mut bit = 0;
    while bit < 32 {
        matrix[bit] = if bit == 0 { POLYNOMIAL_REFLECTED } else { 1 << (bit - 1) };
        bit += 1;
    }
    let mut bits = 1;
    while bits < 8 * CRC_BLOCK_BYTES {
        let mut square = [0u32; 32];
        let mut column = 0;
        while column < 32 {
            square[column] = times(&matrix, matrix[column]);
            column += 1;
        }
        matrix = square;
        bits *= 2;
    }
    assert!(bits == 8 * CRC_BLOCK_BYTES);
    let mut table = [[0u32; 256]; 4];
    let mut byte = 0;
    while byte < 4 {
        let mut value = 0;
        while value < 256 {
            table[byte][value] = times(&matrix, (value as u32) << (8 * byte));
            value += 1;
        }
        byte += 1;
    }
    table
};

const fn times(matrix: &[u32; 32], vector: u32) -> u32 {
    let (mut sum, mut bit) = (0, 0);
    while bit < 32 {
        if vector >> bit & 1 == 1 {
            sum ^= matrix[bit];
        }
        bit += 1;
    }
    sum
}

/// CRC32C of what `crc` was computed over, followed by the [`CRC_BLOCK_BYTES`] bytes whose CRC32C is `block`.
#[inline]
pub fn append_block(crc: u32, block: u32) -> u32 {
    let [a, b, c, d] = crc.to_le_bytes().map(usize::from);
    BLOCK_SHIFT[0][a] ^ BLOCK_SHIFT[1][b] ^ BLOCK_SHIFT[2][c] ^ BLOCK_SHIFT[3][d] ^ block
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720 §B.4 gives these sums.
    #[test]
    fn known_sums() {
        assert_eq!(crc32c(&[0u8; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(&[0xFFu8; 32]), 0x62A8_AB43);
        let rising: [u8; 32] = core::array::from_fn(|i| i as u8);
        assert_eq!(crc32c(&rising), 0x46DD_794E);
        assert_eq!(!shift_register(!0, &rising), 0x46DD_794E);
        assert_eq!(append(crc32c(&rising[..11]), &rising[11..]), 0x46DD_794E);
    }

    #[test]
    fn a_block_is_appended_by_its_crc() {
        let bytes: [u8; 3 * CRC_BLOCK_BYTES] = core::array::from_fn(|i| (i * i / 7) as u8);
        for before in [0, 1, 511, CRC_BLOCK_BYTES, 2 * CRC_BLOCK_BYTES - 1] {
            let (first, block) = bytes[..before + CRC_BLOCK_BYTES].split_at(before);
            assert_eq!(
                append_block(crc32c(first), crc32c(block)),
                crc32c(&bytes[..before + CRC_BLOCK_BYTES])
            );
        }
    }
}
