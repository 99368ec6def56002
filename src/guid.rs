//! Identities of 16 bytes, as GPT, VHDX and VDI store them: the first three fields little-endian.

use std::fmt;

/// A GUID in its stored order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub(crate) struct Guid(pub(crate) [u8; 16]);

/// Where the digits of the text lie in the stored bytes.
const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];

impl Guid {
    /// Whether all bits are zero, which formats take for *none*.
    pub(crate) fn is_nil(&self) -> bool {
        self.0 == [0; 16]
    }

    /// Reads `{xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx}`, with or without braces.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let text = text.strip_prefix('{').map_or(Some(text), |t| t.strip_suffix('}'))?;
        let digits: Vec<u8> = text.bytes().filter(|b| *b != b'-').collect();
        if digits.len() != 32 || text.len() != 36 {
            return None;
        }
        let mut stored = [0; 16];
        for (pair, at) in digits.as_chunks::<2>().0.iter().zip(ORDER) {
            let byte = std::str::from_utf8(pair).ok().and_then(|p| u8::from_str_radix(p, 16).ok())?;
            *stored.get_mut(at)? = byte;
        }
        Some(Self(stored))
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, at) in ORDER.into_iter().enumerate() {
            if matches!(n, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{:02x}", self.0.get(at).copied().unwrap_or_default())?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The GUID of a VHDX block allocation table: text and stored bytes as MS-VHDX 2.2.3.2 has them.
    #[test]
    fn text_and_stored_order() {
        let text = "2dc27766-f623-4200-9d64-115e9bfd4a08";
        let guid = Guid::parse(text).unwrap();
        assert_eq!(
            guid.0,
            [0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42, 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08]
        );
        assert_eq!(guid.to_string(), text);
        assert_eq!(Guid::parse(&format!("{{{}}}", text.to_uppercase())), Some(guid));
        for wrong in ["", "{", "{}", "2dc27766-f623-4200-9d64-115e9bfd4a0", "2dc27766-f623-4200-9d64-115e9bfd4aé8"] {
            assert_eq!(Guid::parse(wrong), None, "{wrong}");
        }
    }
}
