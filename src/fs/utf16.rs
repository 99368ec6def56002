//! UTF-16 names as WTF-8, and back: what FAT, exFAT and NTFS keep on disk against what a [`super::Tree`] holds.
//!
//! WTF-8 is UTF-8 but that a surrogate without its other half is written as the three bytes its number would have: every
//! sequence of 16-bit units has exactly one form, so that the way back is exact. See
//! <https://simonsapin.github.io/wtf-8/>.

/// Appends little-endian UTF-16 units as WTF-8. A last odd byte is left out.
pub fn push_wtf8(out: &mut Vec<u8>, utf16: &[u8]) {
    let pairs = || utf16.chunks_exact(2).map(|u| (u.first().copied().unwrap_or(0), u.last().copied().unwrap_or(0)));
    if pairs().fold(true, |plain, (low, high)| plain & (high == 0) & low.is_ascii()) {
        out.extend(pairs().map(|(low, _)| low));
        return;
    }
    let units = utf16.chunks_exact(2).map(|u| u.try_into().map_or(0, u16::from_le_bytes));
    for c in char::decode_utf16(units) {
        match c {
            Ok(c) if c.is_ascii() => out.push(c as u8),
            Ok(c) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            Err(lone) => out.extend_from_slice(&three_bytes(lone.unpaired_surrogate())),
        }
    }
}

/// Little-endian UTF-16 units as WTF-8.
pub fn to_wtf8(utf16: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(utf16.len());
    push_wtf8(&mut out, utf16);
    out
}

/// The UTF-16 units of WTF-8; none where the bytes are neither UTF-8 nor lone surrogates in their three-byte form.
pub fn from_wtf8(wtf8: &[u8]) -> Option<Vec<u16>> {
    let mut out = Vec::with_capacity(wtf8.len());
    let mut rest = wtf8;
    loop {
        let good = match std::str::from_utf8(rest) {
            Ok(s) => {
                out.extend(s.encode_utf16());
                return Some(out);
            }
            Err(e) => e.valid_up_to(),
        };
        let (head, tail) = rest.split_at_checked(good)?;
        out.extend(std::str::from_utf8(head).ok()?.encode_utf16());
        let (&[0xED, b @ 0xA0..=0xBF, c @ 0x80..=0xBF], after) = tail.split_first_chunk::<3>()? else { return None };
        out.push(0xD000 | u16::from(b & 0x3F) << 6 | u16::from(c & 0x3F));
        rest = after;
    }
}

fn three_bytes(unit: u16) -> [u8; 3] {
    let low6 = |n: u16| 0x80 | (n & 0x3F) as u8;
    [0xE0 | (unit >> 12) as u8, low6(unit >> 6), low6(unit)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(units: &[u16]) -> Vec<u8> {
        units.iter().flat_map(|u| u.to_le_bytes()).collect()
    }

    #[test]
    fn what_is_utf8_stays_utf8() {
        for s in ["", "plain", "Größe", "日本", "🦀 and 🌍"] {
            let units: Vec<u16> = s.encode_utf16().collect();
            assert_eq!(to_wtf8(&bytes(&units)), s.as_bytes());
        }
    }

    #[test]
    fn lone_surrogates_have_three_bytes() {
        assert_eq!(to_wtf8(&bytes(&[0x61, 0xD83D, 0x62, 0xDE00])), b"a\xED\xA0\xBDb\xED\xB8\x80");
        assert_eq!(from_wtf8(b"a\xED\xA0\xBDb\xED\xB8\x80"), Some(vec![0x61, 0xD83D, 0x62, 0xDE00]));
        assert_eq!(from_wtf8(b"\xFF"), None);
        assert_eq!(from_wtf8(b"ok\xED\xA0"), None);
    }

    proptest! {
        #[test]
        fn every_sequence_of_units_comes_back(units in proptest::collection::vec(
            prop_oneof![any::<u16>(), 0xD7F0u16..0xE010, 0x20u16..0x7F], 0..40)) {
            prop_assert_eq!(from_wtf8(&to_wtf8(&bytes(&units))), Some(units));
        }
        #[test]
        fn any_bytes_are_taken(wtf8 in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = from_wtf8(&wtf8);
        }
    }
}
