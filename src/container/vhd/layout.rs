//! Footer, dynamic header, parent locators: "Virtual Hard Disk Image Format Specification" 1.0. All numbers are
//! big-endian; a sector has 512 bytes.

use crate::bytes::Fields;
use crate::error::Result;
use crate::extent::{Device, Offset};

/// What footers begin with.
const COOKIE: &[u8; 8] = b"conectix";
/// What dynamic headers begin with.
const HEADER_COOKIE: &[u8; 8] = b"cxsparse";
/// Bytes of a footer.
pub(super) const FOOTER: usize = 512;
/// Bytes of an old footer.
pub(super) const OLD_FOOTER: usize = 511;
/// Bytes of a dynamic header.
pub(super) const HEADER: usize = 1024;
/// Bytes of a sector.
pub(super) const SECTOR: u64 = 512;
/// The entry of the block allocation table that says *not here*.
pub(super) const ABSENT: u32 = u32::MAX;
/// Most bytes of a parent's name: what Windows allows for a path, in two-byte characters.
const MAX_NAME: u32 = 65_536;

/// What a footer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Footer {
    /// 2 fixed, 3 dynamic, 4 differencing.
    pub(super) disk_type: u32,
    /// Where the dynamic header lies.
    pub(super) header: u64,
    /// Bytes of the disk.
    pub(super) size: u64,
    /// Bytes that cylinders, heads and sectors give, which Virtual PC goes by.
    pub(super) geometry: u64,
    /// Who made it.
    pub(super) creator: [u8; 4],
    /// The disk's identity.
    pub(super) id: [u8; 16],
    /// Whether its checksum is right.
    pub(super) sound: bool,
}

/// The one's complement of the sum of all bytes but the checksum's own, which lies at `at`.
fn checksum(bytes: &[u8], at: usize) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().fold(0u32, |sum, b| sum.wrapping_add(u32::from(*b)));
    let own = bytes.get(at..).and_then(|rest| rest.get(..4)).unwrap_or_default();
    !sum(bytes).wrapping_sub(sum(own))
}

impl Footer {
    /// Decodes a footer of 511 or 512 bytes; none without the cookie.
    pub(super) fn decode(at: Offset<Device>, bytes: &[u8]) -> Result<Option<Self>> {
        if !bytes.starts_with(COOKIE) {
            return Ok(None);
        }
        let f = Fields::new("VHD footer", at, bytes);
        let sectors = u64::from(f.u16_be(56)?).saturating_mul(u64::from(f.u8(58)?)).saturating_mul(f.u8(59)?.into());
        Ok(Some(Self {
            disk_type: f.u32_be(60)?,
            header: f.u64_be(16)?,
            size: f.u64_be(48)?,
            geometry: sectors.saturating_mul(SECTOR),
            creator: f.array(28)?,
            id: f.array(68)?,
            sound: checksum(bytes, 64) == f.u32_be(64)?,
        }))
    }
}

/// Where a differencing disk says that its parent lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Locator {
    /// `W2ru` relative, `W2ku` absolute, `MacX`, ...
    pub(super) code: [u8; 4],
    /// Where the name lies in the file.
    pub(super) at: u64,
    /// Bytes of the name.
    pub(super) len: u32,
}

/// What a dynamic header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Where the block allocation table lies.
    pub(super) table: u64,
    /// Its entries.
    pub(super) entries: u32,
    /// Bytes of a block's data.
    pub(super) block: u64,
    /// The parent's [`Footer::id`].
    pub(super) parent: [u8; 16],
    /// The parent's file name, without a path.
    pub(super) parent_name: String,
    /// In the order of the table, without the unused ones.
    pub(super) locators: Vec<Locator>,
    /// Whether its checksum is right.
    pub(super) sound: bool,
}

impl Header {
    /// Decodes the 1024 bytes of a dynamic header.
    pub(super) fn decode(at: Offset<Device>, bytes: &[u8]) -> Result<Self> {
        let f = Fields::new("VHD dynamic header", at, bytes);
        if f.slice(0, 8)? != HEADER_COOKIE {
            return Err(f.wrong(0, "the word cxsparse"));
        }
        let block = u64::from(f.u32_be(32)?);
        if !block.is_power_of_two() || block < SECTOR {
            return Err(f.wrong(32, format!("blocks of a power of two of at least 512 bytes, they have {block}")));
        }
        let mut locators = Vec::new();
        for n in 0..8usize {
            let entry = f.part("VHD parent locator", n.saturating_mul(24).saturating_add(576), 24)?;
            let (code, len) = (entry.array(0)?, entry.u32_be(8)?);
            if code != [0; 4] && len > 0 && len <= MAX_NAME {
                locators.push(Locator { code, at: entry.u64_be(16)?, len });
            }
        }
        let name = f.slice(64, 512)?.as_chunks::<2>().0.iter().map(|c| u16::from_be_bytes(*c)).take_while(|c| *c != 0);
        Ok(Self {
            table: f.u64_be(16)?,
            entries: f.u32_be(28)?,
            block,
            parent: f.array(40)?,
            parent_name: char::decode_utf16(name).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect(),
            locators,
            sound: checksum(bytes, 36) == f.u32_be(36)?,
        })
    }

    /// Bytes of the sector bitmap before each block: a bit for each sector, in whole sectors.
    pub(super) fn bitmap(&self) -> u64 {
        (self.block / SECTOR).div_ceil(8).next_multiple_of(SECTOR)
    }
}

/// The name that a locator's bytes hold: two-byte characters of Windows (little-endian), or a file URL of Mac OS X.
pub(super) fn locator_name(code: [u8; 4], bytes: &[u8]) -> Option<String> {
    match &code {
        b"W2ru" | b"W2ku" => {
            let units = bytes.as_chunks::<2>().0.iter().map(|c| u16::from_le_bytes(*c)).take_while(|c| *c != 0);
            Some(char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect())
        }
        b"Wi2r" | b"Wi2k" | b"MacX" => {
            let text = bytes.split(|b| *b == 0).next().unwrap_or_default();
            let text = String::from_utf8_lossy(text).into_owned();
            Some(text.strip_prefix("file://localhost").or_else(|| text.strip_prefix("file://")).unwrap_or(&text).into())
        }
        _ => None,
    }
}

/// Runs of equal bits of a sector bitmap, the most significant bit of each byte first: sectors, and whether they are
/// set. `first` and `count` are in sectors; bits past the bitmap's end are not set.
pub(super) fn bit_runs(bitmap: &[u8], first: u64, count: u64) -> impl Iterator<Item = (u64, bool)> + '_ {
    super::super::blocks::runs(first, count, move |n| {
        let byte = usize::try_from(n / 8).ok().and_then(|at| bitmap.get(at)).copied().unwrap_or_default();
        let shift = u32::try_from(n % 8).unwrap_or_default();
        byte.wrapping_shl(shift) & 0x80 != 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_the_specification() {
        let mut bytes = [0u8; FOOTER];
        bytes[..8].copy_from_slice(COOKIE);
        bytes[60..64].copy_from_slice(&2u32.to_be_bytes());
        bytes[48..56].copy_from_slice(&4096u64.to_be_bytes());
        let sum: u32 = bytes.iter().map(|b| u32::from(*b)).sum();
        bytes[64..68].copy_from_slice(&(!sum).to_be_bytes());
        let footer = Footer::decode(Offset::new(0), &bytes).unwrap().unwrap();
        assert_eq!((footer.disk_type, footer.size, footer.sound), (2, 4096, true));
        bytes[100] = 1;
        assert!(!Footer::decode(Offset::new(0), &bytes).unwrap().unwrap().sound);
    }

    #[test]
    fn bits_are_counted_from_the_most_significant() {
        let runs: Vec<_> = bit_runs(&[0b1100_0001, 0b1000_0000], 0, 16).collect();
        assert_eq!(runs, [(2, true), (5, false), (2, true), (7, false)]);
        let runs: Vec<_> = bit_runs(&[0b1100_0001], 1, 9).collect();
        assert_eq!(runs, [(1, true), (5, false), (1, true), (2, false)]);
    }
}
