//! The up-case table: which names are the same.

/// Of each UTF-16 unit, its upper case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpCase(Vec<u16>);

/// Units that there are.
const UNITS: usize = 1 << 16;
/// Marks a run of units that are their own upper case; the next number says how many.
const RUN: u16 = 0xFFFF;

impl UpCase {
    /// The table in the form in which it lies on the disk, compressed or not. Units that it does not reach are their own
    /// upper case.
    pub fn decode(bytes: &[u8]) -> Self {
        let mut table: Vec<u16> = Vec::with_capacity(UNITS);
        let mut units = bytes.as_chunks::<2>().0.iter().map(|two| u16::from_le_bytes(*two));
        let next = |table: &Vec<u16>| u16::try_from(table.len()).ok();
        while let Some(own) = next(&table) {
            match units.next() {
                None => table.push(own),
                // At its own place it can't mark a run: no unit is left for one.
                Some(RUN) if own != RUN => {
                    for _ in 0..units.next().unwrap_or(0) {
                        let Some(own) = next(&table) else { break };
                        table.push(own);
                    }
                }
                Some(upper) => table.push(upper),
            }
        }
        Self(table)
    }
    /// The table that the specification asks for at least: Latin letters of ASCII.
    pub fn ascii() -> Self {
        let upper = |unit: u16| if (0x61..=0x7A).contains(&unit) { unit.saturating_sub(0x20) } else { unit };
        Self((0..=u16::MAX).map(upper).collect())
    }
    /// The upper case of a unit.
    #[inline]
    pub fn upper(&self, unit: u16) -> u16 {
        self.0.get(usize::from(unit)).copied().unwrap_or(unit)
    }
    /// The hash of a name, over the bytes of its upper case.
    pub fn hash(&self, units: impl IntoIterator<Item = u16>) -> u16 {
        let bytes = units.into_iter().flat_map(|unit| self.upper(unit).to_le_bytes());
        bytes.fold(0, super::layout::add16)
    }
    /// The name as this volume compares it. The same as given where it is no WTF-8.
    pub fn fold(&self, name: &[u8]) -> Vec<u8> {
        let Some(units) = crate::fs::utf16::from_wtf8(name) else { return name.to_vec() };
        let upper: Vec<u8> = units.iter().flat_map(|unit| self.upper(*unit).to_le_bytes()).collect();
        crate::fs::utf16::to_wtf8(&upper)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(units: &[u16]) -> Vec<u8> {
        units.iter().flat_map(|u| u.to_le_bytes()).collect()
    }

    #[test]
    fn runs_are_their_own_upper_case() {
        let up = UpCase::decode(&bytes(&[0xFFFF, 0x61, 0x41, 0x42, 0xFFFF, 3, 0x47]));
        assert_eq!(
            [0x60, 0x61, 0x62, 0x63, 0x65, 0x66, 0x67].map(|u| up.upper(u)),
            [0x60, 0x41, 0x42, 0x63, 0x65, 0x47, 0x67]
        );
        assert_eq!(up.upper(0xFFFF), 0xFFFF);
    }

    #[test]
    fn any_table_has_all_units() {
        for bytes in [vec![], vec![1], vec![0xFF; 7], vec![0xFF; 1 << 18], vec![0; 1 << 18]] {
            assert_eq!(UpCase::decode(&bytes).0.len(), UNITS);
        }
        let whole: Vec<u16> = (0..=u16::MAX).collect();
        assert_eq!(UpCase::decode(&bytes(&whole)).0, whole);
    }

    #[test]
    fn hash_and_fold() {
        let up = UpCase::ascii();
        assert_eq!(up.hash("abC".encode_utf16()), up.hash("ABC".encode_utf16()));
        assert_ne!(up.hash("ab".encode_utf16()), up.hash("ba".encode_utf16()));
        assert_eq!(up.fold("größe".as_bytes()), "GRößE".as_bytes());
        assert_eq!(up.fold(b"\xFF"), b"\xFF");
    }
}
