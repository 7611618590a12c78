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
}
