//! The checksums of ext4 and of its journal.
//!
//! ext4 and jbd2 use CRC-32C (Castagnoli, reflected) without the final inversion, so that the checksum of one piece is
//! the seed of the next. Volumes with `uninit_bg` but without `metadata_csum` use CRC-16 (ANSI, reflected) for their
//! group descriptors, and journals of the first kind CRC-32 most significant bit first.

/// The tables by which eight bytes are taken in one step.
const fn tables(reflected: u32) -> [[u32; 256]; 8] {
    let mut tables = [[0u32; 256]; 8];
    let mut byte = 0;
    #[expect(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "computed while compiling: a mistake does not compile"
    )]
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ reflected } else { crc >> 1 };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut byte = 0;
    #[expect(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "computed while compiling: a mistake does not compile"
    )]
    while byte < 256 {
        let mut n = 1;
        while n < 8 {
            let last = tables[n - 1][byte];
            tables[n][byte] = last >> 8 ^ tables[0][(last & 0xff) as usize];
            n += 1;
        }
        byte += 1;
    }
    tables
}

static CASTAGNOLI: [[u32; 256]; 8] = tables(0x82f6_3b78);

/// CRC-32C of `bytes`, continued from `seed`; not inverted at the end.
#[expect(clippy::indexing_slicing, reason = "a table has 256 entries, a byte has 256 values")]
pub fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    let t = &CASTAGNOLI;
    let (chunks, rest) = bytes.as_chunks::<8>();
    let mut crc = seed;
    for &[a, b, c, d, e, f, g, h] in chunks {
        let [a, b, c, d] = (u32::from_le_bytes([a, b, c, d]) ^ crc).to_le_bytes();
        crc = t[7][usize::from(a)]
            ^ t[6][usize::from(b)]
            ^ t[5][usize::from(c)]
            ^ t[4][usize::from(d)]
            ^ t[3][usize::from(e)]
            ^ t[2][usize::from(f)]
            ^ t[1][usize::from(g)]
            ^ t[0][usize::from(h)];
    }
    for byte in rest {
        let [low, ..] = crc.to_le_bytes();
        crc = crc >> 8 ^ t[0][usize::from(low ^ byte)];
    }
    crc
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
