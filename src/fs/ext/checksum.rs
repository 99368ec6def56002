//! The checksums of ext4 and of its journal.
//!
//! ext4 and jbd2 use CRC-32C (Castagnoli, reflected) without the final inversion, so that the checksum of one piece is
//! the seed of the next. Volumes with `uninit_bg` but without `metadata_csum` use CRC-16 (ANSI, reflected) for their
//! group descriptors, and journals of the first kind CRC-32 most significant bit first.

/// CRC-32C of `bytes`, continued from `seed`; not inverted at the end.
pub fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// CRC-16 (polynomial 0x8005, reflected) of `bytes`, continued from `seed`.
pub fn crc16(seed: u16, bytes: &[u8]) -> u16 {
    let mut crc = seed;
    for byte in bytes {
        crc ^= u16::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xa001 } else { crc >> 1 };
        }
    }
    crc
}

/// CRC-32 (polynomial 0x04C11DB7, most significant bit first, not inverted) of `bytes`, continued from `seed`.
pub fn crc32_be(seed: u32, bytes: &[u8]) -> u32 {
    let mut crc = seed;
    for byte in bytes {
        crc ^= u32::from(*byte) << 24;
        for _ in 0..8 {
            crc = if crc >> 31 == 1 { crc << 1 ^ 0x04c1_1db7 } else { crc << 1 };
        }
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check values of the catalogue of parametrised CRC algorithms for `123456789`.
    #[test]
    fn check_values() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
        assert_eq!(crc16(0, b"123456789"), 0xbb3d);
        assert_eq!(!crc32_be(!0, b"123456789"), 0xfc89_1918);
    }

    /// The pieces of one structure give what the whole gives.
    #[test]
    fn pieces_continue() {
        let bytes: Vec<u8> = (0..100u8).collect();
        for cut in 0..bytes.len() {
            let (a, b) = bytes.split_at(cut);
            assert_eq!(crc32c(crc32c(7, a), b), crc32c(7, &bytes));
        }
    }
}
