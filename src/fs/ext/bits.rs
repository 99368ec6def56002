//! Bitmaps of all groups behind each other: clusters or inodes of the volume, by their numbers from 0 on.

use std::ops::Range;

/// One bit for each of so many things.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bits {
    bytes: Vec<u8>,
}

impl Bits {
    /// All clear; room for a multiple of eight.
    pub fn new(count: u64) -> Self {
        Self { bytes: vec![0; usize::try_from(count.div_ceil(8)).unwrap_or(0)] }
    }
    /// As bytes, lowest bit first.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
    /// As bytes, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
    /// How many there are.
    pub fn len(&self) -> u64 {
        (self.bytes.len() as u64).saturating_mul(8)
    }
    fn place(n: u64) -> (usize, u8) {
        (usize::try_from(n >> 3).unwrap_or(usize::MAX), 1 << (n & 7))
    }
    /// Whether bit `n` is set; false beyond the end.
    pub fn has(&self, n: u64) -> bool {
        let (at, bit) = Self::place(n);
        self.bytes.get(at).is_some_and(|b| b & bit != 0)
    }
    /// Sets bit `n`; whether it was clear.
    pub fn set(&mut self, n: u64) -> bool {
        let (at, bit) = Self::place(n);
        let Some(byte) = self.bytes.get_mut(at) else { return false };
        let was = *byte & bit;
        *byte |= bit;
        was == 0
    }
    /// Clears bit `n`; whether it was set.
    pub fn clear(&mut self, n: u64) -> bool {
        let (at, bit) = Self::place(n);
        let Some(byte) = self.bytes.get_mut(at) else { return false };
        let was = *byte & bit;
        *byte &= !bit;
        was != 0
    }
    /// The first clear bit of a range.
    pub fn first_clear(&self, range: Range<u64>) -> Option<u64> {
        let mut n = range.start;
        while n < range.end {
            // Whole bytes that are full are passed at once.
            if n & 7 == 0 && self.bytes.get(Self::place(n).0) == Some(&0xff) {
                n = n.saturating_add(8);
                continue;
            }
            if !self.has(n) {
                return (n < range.end.min(self.len())).then_some(n);
            }
            n = n.saturating_add(1);
        }
        None
    }
    /// Bits that are set in a range whose ends are multiples of eight.
    pub fn count(&self, range: Range<u64>) -> u64 {
        self.slice(range).iter().map(|b| u64::from(b.count_ones())).sum()
    }
    /// The bytes of a range whose ends are multiples of eight.
    pub fn slice(&self, range: Range<u64>) -> &[u8] {
        self.bytes.get(Self::place(range.start).0..Self::place(range.end).0).unwrap_or_default()
    }
    /// The bytes of a range whose ends are multiples of eight, to be changed.
    pub fn slice_mut(&mut self, range: Range<u64>) -> &mut [u8] {
        self.bytes.get_mut(Self::place(range.start).0..Self::place(range.end).0).unwrap_or_default()
    }
    /// The first bit that differs from `other`.
    pub fn first_difference(&self, other: &Self) -> Option<u64> {
        let at = self.bytes.iter().zip(&other.bytes).position(|(a, b)| a != b)?;
        let differing = self.bytes.get(at)? ^ other.bytes.get(at)?;
        (at as u64).checked_mul(8)?.checked_add(differing.trailing_zeros().into())
    }
    /// How many bits differ from `other`.
    pub fn differences(&self, other: &Self) -> u64 {
        self.bytes.iter().zip(&other.bytes).map(|(a, b)| u64::from((a ^ b).count_ones())).sum()
    }
}
