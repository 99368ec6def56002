//! Bytes that are the same in each run, and different at each place.

/// A deterministic stream of numbers and bytes: xorshift64*, so that no two files of a corpus are alike. The state is never 0.
pub struct Noise(pub u64);

impl Noise {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }
    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }
    /// `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut all = Vec::with_capacity(len + 8);
        while all.len() < len {
            all.extend(self.next().to_le_bytes());
        }
        all.truncate(len);
        all
    }
    /// `len` bytes that compress well.
    pub fn text(&mut self, len: usize) -> Vec<u8> {
        let mut all = Vec::with_capacity(len + 32);
        while all.len() < len {
            let word = ["responder ", "volume ", "cluster ", "journal ", "extent ", "\n"][self.below(6) as usize];
            all.extend(word.as_bytes());
        }
        all.truncate(len);
        all
    }
}

/// Bytes that are different at each place and for each seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    Noise::new(seed).bytes(len)
}
