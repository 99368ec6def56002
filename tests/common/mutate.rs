//! Mutations of bytes: bits, bytes, fields with values that are worth trying, copies, cuts.

use super::Noise;

/// Places that hold something: most of a small volume is empty, and a mutation there says nothing.
pub fn busy(bytes: &[u8]) -> Vec<usize> {
    bytes.chunks(512).enumerate().filter(|(_, c)| c.iter().any(|b| *b != 0)).map(|(i, _)| i * 512).collect()
}

/// One to eight changes of bits, bytes, fields, or a cut.
pub fn mutate(bytes: &mut Vec<u8>, busy: &[usize], noise: &mut Noise) {
    const WORTH: [u64; 10] = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, i64::MAX as u64, u64::MAX];
    for _ in 0..=noise.below(7) {
        let at = busy[noise.below(busy.len() as u64) as usize] + noise.below(512) as usize;
        let Some(room) = bytes.len().checked_sub(at + 8) else { continue };
        match noise.below(8) {
            0..3 => bytes[at] ^= 1 << noise.below(8),
            3 | 4 => bytes[at] = noise.next() as u8,
            5 | 6 => {
                let len = [2, 4, 8][noise.below(3) as usize];
                let word = WORTH[noise.below(10) as usize].to_le_bytes();
                bytes[at..at + len].copy_from_slice(&word[..len]);
            }
            // Rarely: else only the first sectors would be tried.
            _ if noise.below(10) == 0 => bytes.truncate(at + noise.below(room as u64 + 1) as usize),
            _ => {
                let from = busy[noise.below(busy.len() as u64) as usize];
                let block: Vec<u8> = bytes.iter().skip(from).take(64).copied().collect();
                let end = (at + block.len()).min(bytes.len());
                bytes[at..end].copy_from_slice(&block[..end - at]);
            }
        }
        if bytes.len() < 4096 {
            return;
        }
    }
}
