//! Numbers and byte strings of the journal's sections.

/// Gathers a section.
#[derive(Default)]
pub(super) struct Encoder(Vec<u8>);

impl Encoder {
    /// A number: seven bits a byte, the lowest first, the top bit set on all but the last.
    pub(super) fn num(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.0.push(n.to_le_bytes()[0] | 0x80);
            n >>= 7;
        }
        self.0.push(n.to_le_bytes()[0]);
    }
    /// Bytes whose number the reader knows.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
    /// Bytes after their number.
    pub(super) fn text(&mut self, bytes: &[u8]) {
        self.num(bytes.len() as u64);
        self.raw(bytes);
    }
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Takes a section apart; none wherever it ends too early or holds a number that is too large.
pub(super) struct Decoder<'a>(&'a [u8]);

impl<'a> Decoder<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
    pub(super) fn num(&mut self) -> Option<u64> {
        let mut n = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            let part = u64::from(byte & 0x7f);
            if shift == 63 && part > 1 {
                return None;
            }
            n |= part.wrapping_shl(shift);
            if byte & 0x80 == 0 {
                return Some(n);
            }
        }
        None
    }
    /// A number that is an index or a count of this machine.
    pub(super) fn index(&mut self) -> Option<usize> {
        usize::try_from(self.num()?).ok()
    }
    /// A number of 32 bits.
    pub(super) fn small(&mut self) -> Option<u32> {
        u32::try_from(self.num()?).ok()
    }
    pub(super) fn raw(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }
    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.raw(N)?.try_into().ok()
    }
    pub(super) fn text(&mut self) -> Option<&'a [u8]> {
        let len = self.index()?;
        self.raw(len)
    }
    /// How many items of at least `each` bytes can still follow: what may be allocated for a count that was read.
    pub(super) fn room_for(&self, count: usize, each: usize) -> usize {
        count.min(self.0.len().checked_div(each).unwrap_or_default())
    }
    /// Whether everything was taken.
    pub(super) fn at_end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_and_texts_come_back(numbers: Vec<u64>, text: Vec<u8>) {
            let mut e = Encoder::default();
            for n in &numbers {
                e.num(*n);
            }
            e.text(&text);
            let bytes = e.into_bytes();
            let mut d = Decoder::new(&bytes);
            for n in &numbers {
                prop_assert_eq!(d.num(), Some(*n));
            }
            prop_assert_eq!(d.text(), Some(&text[..]));
            prop_assert_eq!(d.at_end(), Some(()));
        }
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            let mut d = Decoder::new(&bytes);
            while d.num().is_some() {}
            let _ = Decoder::new(&bytes).text();
        }
    }

    #[test]
    fn a_number_of_more_than_64_bits_is_none() {
        let mut bytes = [0xff; 10];
        bytes[9] = 2;
        assert_eq!(Decoder::new(&bytes).num(), None);
        bytes[9] = 1;
        assert_eq!(Decoder::new(&bytes).num(), Some(u64::MAX));
    }
}
