//! CRC32C (Castagnoli), the checksum of every header, payload and block in the system.
//!
//! RFC 3720 §12.1: polynomial 0x1EDC6F41, reflected in and out, starting value and final XOR all ones.

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

/// What [`append_block`] appends.
pub const APPENDED_BLOCK_BYTES: usize = 4096;

/// CRC32C of what `crc` was computed over, followed by a block of [`APPENDED_BLOCK_BYTES`] whose own CRC is `block`: without
/// looking at its bytes again.
#[inline]
pub fn append_block(crc: u32, block: u32) -> u32 {
    let [a, b, c, d] = crc.to_le_bytes().map(usize::from);
    BEHIND_BLOCK[0][a] ^ BEHIND_BLOCK[1][b] ^ BEHIND_BLOCK[2][c] ^ BEHIND_BLOCK[3][d] ^ block
}

/// What each byte of a register becomes behind a block of zeroes: the register is linear, and the inversions at both ends
/// cancel out between the two sums.
static BEHIND_BLOCK: [[u32; 256]; 4] = {
    // Bits of a register behind one byte, then behind twice as many each time.
    let mut columns = [0; 32];
    let mut bit = 0;
    while bit < 32 {
        columns[bit] = shift_register(1 << bit, &[0]);
        bit += 1;
    }
    let mut bytes = 1;
    while bytes < APPENDED_BLOCK_BYTES {
        let mut twice = [0; 32];
        bit = 0;
        while bit < 32 {
            twice[bit] = linear(&columns, columns[bit]);
            bit += 1;
        }
        columns = twice;
        bytes *= 2;
    }
    let mut table = [[0; 256]; 4];
    let mut place = 0;
    while place < 4 {
        let mut byte = 0;
        while byte < 256 {
            table[place][byte] = linear(&columns, (byte as u32) << (8 * place));
            byte += 1;
        }
        place += 1;
    }
    table
};

const fn linear(columns: &[u32; 32], register: u32) -> u32 {
    let (mut sum, mut bit) = (0, 0);
    while bit < 32 {
        if register >> bit & 1 == 1 {
            sum ^= columns[bit];
        }
        bit += 1;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_appended_by_its_sum() {
        let bytes: [u8; 3 + 2 * APPENDED_BLOCK_BYTES] = core::array::from_fn(|i| (i * i >> 3) as u8);
        for front in [0, 3] {
            let (front, rest) = bytes[..front + 2 * APPENDED_BLOCK_BYTES].split_at(front);
            let (one, two) = rest.split_at(APPENDED_BLOCK_BYTES);
            let sum = append_block(append_block(crc32c(front), crc32c(one)), crc32c(two));
            assert_eq!(sum, crc32c(&bytes[..front.len() + rest.len()]));
        }
    }

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
}
