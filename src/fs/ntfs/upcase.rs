//! `$UpCase`: which names are the same, how an index is ordered, and which names Win32 can use.

use std::cmp::Ordering;

use crate::error::{Error, Result};
use crate::extent::Offset;
use crate::fs::ntfs::layout::{UP_CASE, kind};
use crate::fs::ntfs::reader::Reader;

/// The volume's table: of each UTF-16 unit, its upper case.
pub struct UpCase {
    table: Vec<u16>,
}

impl UpCase {
    /// Reads the table.
    ///
    /// # Errors
    /// Where it can't be read, or does not have 65,536 entries.
    pub fn load(reader: &Reader) -> Result<Self> {
        let layer = reader.open_value(UP_CASE, kind::DATA, b"")?;
        if layer.len() != 1 << 17 {
            return Err(Error::corrupt("$UpCase", reader.place(UP_CASE), "65,536 entries of 2 bytes"));
        }
        let bytes = layer.read_vec(Offset::new(0), 1 << 17)?;
        Ok(Self { table: bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect() })
    }
    fn up(&self, unit: u16) -> u16 {
        self.table.get(usize::from(unit)).copied().unwrap_or(unit)
    }
    /// The name in upper case.
    pub fn fold(&self, name: &[u16]) -> Vec<u16> {
        name.iter().map(|u| self.up(*u)).collect()
    }
    /// Order of an index of names (`COLLATION_FILE_NAME`): in upper case, then by the units themselves.
    pub fn compare(&self, a: &[u16], b: &[u16]) -> Ordering {
        let upper = a.iter().map(|u| self.up(*u)).cmp(b.iter().map(|u| self.up(*u)));
        upper.then_with(|| a.cmp(b))
    }
}

/// Whether a name can be used through Win32: see [`crate::fs::host::NameRules::Win32`].
pub fn legal(name: &[u16]) -> bool {
    let bad = |u: &u16| *u < 0x20 || u8::try_from(*u).is_ok_and(|b| br#""*/:<>?\|"#.contains(&b));
    (1..=255).contains(&name.len())
        && !name.iter().any(bad)
        && !matches!(name.last(), Some(0x20 | 0x2E))
        && char::decode_utf16(name.iter().copied()).all(|c| c.is_ok())
        && !device(name)
}

/// Whether a name is one of a device, whatever stands behind its first dot.
fn device(name: &[u16]) -> bool {
    let base = name.split(|u| *u == 0x2E).next().unwrap_or_default();
    let space = |u: &u16| char::from_u32((*u).into()).is_some_and(char::is_whitespace);
    let base = base.get(..base.iter().rposition(|u| !space(u)).map_or(0, |n| n.saturating_add(1))).unwrap_or_default();
    // `CONOUT$` is the longest.
    if !(3..=7).contains(&base.len()) {
        return false;
    }
    let base = String::from_utf16_lossy(base).to_uppercase();
    let port = ["COM", "LPT"].iter().any(|p| {
        base.strip_prefix(p).is_some_and(|n| {
            matches!(n, "1" | "2" | "3" | "4" | "5" | "6" | "7" | "8" | "9" | "\u{b9}" | "\u{b2}" | "\u{b3}")
        })
    });
    port || matches!(base.as_str(), "CON" | "PRN" | "AUX" | "NUL" | "CONIN$" | "CONOUT$")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wide(s: &str) -> Vec<u16> {
        s.encode_utf16().collect()
    }

    #[test]
    fn order_of_an_index() {
        let table = (0..=u16::MAX).map(|u| if (0x61..0x7B).contains(&u) { u - 32 } else { u }).collect();
        let up = UpCase { table };
        let sorted = ["$MFT", "A", "a", "AA", "ab", "AC", "B", "_", "z\u{e9}"];
        for pair in sorted.windows(2) {
            let last = pair[1] == "z\u{e9}";
            let want = if last { Ordering::Greater } else { Ordering::Less };
            assert_eq!(up.compare(&wide(pair[0]), &wide(pair[1])), want, "{pair:?}");
        }
    }

    #[test]
    fn names_of_win32() {
        for name in ["a", "console", ".hidden", "a b", "\u{1F980}", "com0", "lpt10", "conout$x"] {
            assert!(legal(&wide(name)), "{name}");
        }
        for name in [
            "",
            "a.",
            "a ",
            "con",
            "Con.txt",
            "nul  \u{a0}.y",
            "ConOut$.z",
            "COM1",
            "lpt\u{b3}.x",
            "a:b",
            "a/b",
            "tab\t",
            &"x".repeat(256),
        ] {
            assert!(!legal(&wide(name)), "{name}");
        }
        assert!(!legal(&[0x61, 0xD800]));
    }
}
