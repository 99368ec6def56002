//! Headers, region table, metadata: \[MS-VHDX\] 2.2 and 2.6. All numbers are little-endian.
//!
//! ```text
//! 0        "vhdxfile"
//! 64 KiB   header 1        128 KiB  header 2: the valid one with the higher sequence number counts
//! 192 KiB  region table 1  256 KiB  region table 2
//! ```

use crate::bytes::Fields;
use crate::error::{Error, Result};
use crate::extent::{Device, Offset};
use crate::fs::ext::checksum::crc32c;
use crate::guid::Guid;

/// What a file begins with.
pub(super) const SIGN: &[u8; 8] = b"vhdxfile";
const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;
/// Where the headers lie.
pub(super) const HEADERS: [u64; 2] = [64 * KIB, 128 * KIB];
/// Bytes of a header.
pub(super) const HEADER: usize = 4096;
/// Where the region tables lie.
pub(super) const REGIONS: [u64; 2] = [192 * KIB, 256 * KIB];
/// Bytes of a region table, and of the table of the metadata region.
pub(super) const TABLE: usize = 64 << 10;
/// Entries that a region table or metadata table may have.
const MAX_ENTRIES: u32 = 2047;

/// GUIDs in their stored order.
const fn guid(a: u32, b: u16, c: u16, d: [u8; 8]) -> Guid {
    let ([a0, a1, a2, a3], [b0, b1], [c0, c1]) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
    let [d0, d1, d2, d3, d4, d5, d6, d7] = d;
    Guid([a0, a1, a2, a3, b0, b1, c0, c1, d0, d1, d2, d3, d4, d5, d6, d7])
}
const BAT: Guid = guid(0x2DC2_7766, 0xF623, 0x4200, [0x9D, 0x64, 0x11, 0x5E, 0x9B, 0xFD, 0x4A, 0x08]);
const METADATA: Guid = guid(0x8B7C_A206, 0x4790, 0x4B9A, [0xB8, 0xFE, 0x57, 0x5F, 0x05, 0x0F, 0x88, 0x6E]);
const FILE_PARAMETERS: Guid = guid(0xCAA1_6737, 0xFA36, 0x4D43, [0xB3, 0xB6, 0x33, 0xF0, 0xAA, 0x44, 0xE7, 0x6B]);
const DISK_SIZE: Guid = guid(0x2FA5_4224, 0xCD1B, 0x4876, [0xB2, 0x11, 0x5D, 0xBE, 0xD8, 0x3B, 0xF4, 0xB8]);
const DISK_ID: Guid = guid(0xBECA_12AB, 0xB2E6, 0x4523, [0x93, 0xEF, 0xC3, 0x09, 0xE0, 0x00, 0xC7, 0x46]);
const LOGICAL_SECTOR: Guid = guid(0x8141_BF1D, 0xA96F, 0x4709, [0xBA, 0x47, 0xF2, 0x33, 0xA8, 0xFA, 0xAB, 0x5F]);
const PHYSICAL_SECTOR: Guid = guid(0xCDA3_48C7, 0x445D, 0x4471, [0x9C, 0xC9, 0xE9, 0x88, 0x52, 0x51, 0xC5, 0x56]);
const PARENT_LOCATOR: Guid = guid(0xA8D3_5F2D, 0xB30B, 0x454D, [0xAB, 0xF7, 0xD3, 0xD8, 0x48, 0x34, 0xAB, 0x0C]);
const LOCATOR_TYPE: Guid = guid(0xB04A_EFB7, 0xD19E, 0x4A81, [0xB7, 0x89, 0x25, 0xB8, 0xE9, 0x44, 0x59, 0x13]);

/// The checksum of a structure of which the four bytes at 4 hold it.
pub(super) fn sum(bytes: &[u8]) -> u32 {
    let (start, rest) = bytes.split_at_checked(4).unwrap_or((bytes, &[]));
    let rest = rest.get(4..).unwrap_or_default();
    !crc32c(crc32c(crc32c(!0, start), &[0; 4]), rest)
}

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) sequence: u64,
    /// Changes with the first write of data in each session: what children know a parent by.
    pub(super) data_write: Guid,
    /// Whose entries of the log are to be replayed; nil for none.
    pub(super) log: Guid,
    pub(super) log_at: u64,
    pub(super) log_len: u32,
}

impl Header {
    /// Decodes a header; an error for one that is not valid.
    pub(super) fn decode(at: u64, bytes: &[u8]) -> Result<Self> {
        let f = Fields::<Device>::new("VHDX header", Offset::new(at), bytes);
        if f.slice(0, 4)? != b"head" {
            return Err(f.wrong(0, "the word head"));
        }
        if f.u32(4)? != sum(bytes) {
            return Err(f.wrong(4, format!("the checksum {:#010x}", sum(bytes))));
        }
        if f.u16(66)? != 1 {
            return Err(Error::Unsupported(format!("a VHDX of version {}: expected 1", f.u16(66)?)));
        }
        let log = Guid(f.array(48)?);
        if !log.is_nil() && f.u16(64)? != 0 {
            return Err(Error::Unsupported(format!("a VHDX with a log of version {}: expected 0", f.u16(64)?)));
        }
        Ok(Self { sequence: f.u64(8)?, data_write: Guid(f.array(32)?), log, log_at: f.u64(72)?, log_len: f.u32(68)? })
    }
}

/// Where the two regions lie: place and bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Regions {
    pub(super) bat: (u64, u64),
    pub(super) metadata: (u64, u64),
}

impl Regions {
    /// Decodes a region table; an error for one that is not valid.
    pub(super) fn decode(at: u64, bytes: &[u8]) -> Result<Self> {
        let f = Fields::<Device>::new("VHDX region table", Offset::new(at), bytes);
        if f.slice(0, 4)? != b"regi" {
            return Err(f.wrong(0, "the word regi"));
        }
        if f.u32(4)? != sum(bytes) {
            return Err(f.wrong(4, format!("the checksum {:#010x}", sum(bytes))));
        }
        let count = f.u32(8)?;
        if count > MAX_ENTRIES {
            return Err(f.wrong(8, format!("at most {MAX_ENTRIES} entries, there are {count}")));
        }
        let (mut bat, mut metadata) = (None, None);
        for n in 0..count as usize {
            let entry = f.part("VHDX region", n.saturating_mul(32).saturating_add(16), 32)?;
            let place = (entry.u64(16)?, u64::from(entry.u32(24)?));
            match Guid(entry.array(0)?) {
                BAT => bat = Some(place),
                METADATA => metadata = Some(place),
                other if entry.u32(28)? & 1 != 0 => {
                    return Err(Error::Unsupported(format!("a VHDX with a region {other} that is required")));
                }
                _ => {}
            }
        }
        let missing = |what| move || f.wrong(16, format!("a region with the {what}"));
        Ok(Self {
            bat: bat.ok_or_else(missing("block allocation table"))?,
            metadata: metadata.ok_or_else(missing("metadata"))?,
        })
    }
}

/// What the metadata say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Metadata {
    /// Bytes of a payload block.
    pub(super) block: u64,
    /// Bytes of the disk.
    pub(super) size: u64,
    /// Bytes of a logical sector: 512 or 4096.
    pub(super) sector: u64,
    /// Keys and values of the parent locator; none without a parent.
    pub(super) parent: Option<Vec<(String, String)>>,
}

impl Metadata {
    /// Decodes the metadata region at `at`; an item that lies within another's bytes is read as it stands there.
    pub(super) fn decode(at: u64, bytes: &[u8]) -> Result<Self> {
        let f = Fields::<Device>::new("VHDX metadata table", Offset::new(at), bytes);
        if f.slice(0, 8)? != b"metadata" {
            return Err(f.wrong(0, "the word metadata"));
        }
        let count = f.u16(10)?;
        if u32::from(count) > MAX_ENTRIES {
            return Err(f.wrong(10, format!("at most {MAX_ENTRIES} entries, there are {count}")));
        }
        let (mut parameters, mut size, mut sector, mut locator) = (None, None, None, None);
        for n in 0..usize::from(count) {
            let entry = f.part("VHDX metadata entry", n.saturating_mul(32).saturating_add(32), 32)?;
            let (offset, len) = (entry.u32(16)? as usize, entry.u32(20)? as usize);
            let item = || f.part("VHDX metadata item", offset, len);
            match Guid(entry.array(0)?) {
                FILE_PARAMETERS => parameters = Some((item()?.u32(0)?, item()?.u32(4)?)),
                DISK_SIZE => size = Some(item()?.u64(0)?),
                LOGICAL_SECTOR => sector = Some(u64::from(item()?.u32(0)?)),
                PARENT_LOCATOR => locator = Some(item()?),
                DISK_ID | PHYSICAL_SECTOR => {}
                other if entry.u32(24)? & 4 != 0 => {
                    return Err(Error::Unsupported(format!("a VHDX with metadata {other} that are required")));
                }
                _ => {}
            }
        }
        let missing = |what| move || f.wrong(32, format!("an entry with the {what}"));
        let (block, flags) = parameters.ok_or_else(missing("file parameters"))?;
        let block = u64::from(block);
        if !block.is_power_of_two() || !(MIB..=256 * MIB).contains(&block) {
            return Err(f.wrong(0, format!("blocks of a power of two from 1 to 256 MiB, they have {block} bytes")));
        }
        let sector = sector.ok_or_else(missing("logical sector size"))?;
        if sector != 512 && sector != 4096 {
            return Err(f.wrong(0, format!("sectors of 512 or 4096 bytes, they have {sector}")));
        }
        let size = size.ok_or_else(missing("disk size"))?;
        // 64 TiB is what the specification allows.
        if size > 64 << 40 {
            return Err(f.wrong(0, format!("a disk of at most 64 TiB, it has {size} bytes")));
        }
        let parent = match flags & 2 != 0 {
            true => Some(locate(locator.ok_or_else(missing("parent locator"))?)?),
            false => None,
        };
        Ok(Self { block, size, sector, parent })
    }

    /// Payload blocks that share one sector bitmap block.
    pub(super) fn ratio(&self) -> u64 {
        self.sector.saturating_mul(1 << 23).checked_div(self.block).unwrap_or(1).max(1)
    }

    /// The number of a payload block's entry in the block allocation table.
    pub(super) fn entry(&self, block: u64) -> u64 {
        block.saturating_add(block.checked_div(self.ratio()).unwrap_or_default())
    }

    /// The number of the entry of the sector bitmap block that a payload block belongs to.
    pub(super) fn bitmap_entry(&self, block: u64) -> u64 {
        let chunk = block.checked_div(self.ratio()).unwrap_or_default();
        chunk.saturating_add(1).saturating_mul(self.ratio().saturating_add(1)).saturating_sub(1)
    }
}

/// The keys and values of a parent locator.
fn locate(f: Fields<'_, Device>) -> Result<Vec<(String, String)>> {
    let kind = Guid(f.array(0)?);
    if kind != LOCATOR_TYPE {
        return Err(Error::Unsupported(format!("a VHDX with a parent locator of type {kind}")));
    }
    let text = |at: usize, len: usize| -> Result<String> {
        let units = f.slice(at, len)?.as_chunks::<2>().0.iter().map(|c| u16::from_le_bytes(*c));
        Ok(char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect())
    };
    let mut all = Vec::new();
    for n in 0..usize::from(f.u16(18)?) {
        let entry = f.part("VHDX parent locator entry", n.saturating_mul(12).saturating_add(20), 12)?;
        let (key, value) = (entry.u32(0)? as usize, entry.u32(4)? as usize);
        all.push((text(key, entry.u16(8)?.into())?, text(value, entry.u16(10)?.into())?));
    }
    Ok(all)
}

/// What an entry of the block allocation table says of a payload block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Payload {
    /// The parent's, or zeros.
    Absent,
    /// Zeros, undefined or unmapped: whatever the parent has, it is not read.
    Zero,
    /// All of it is here, at this byte.
    Here(u64),
    /// The sector bitmap says what is here, at this byte, and what is the parent's.
    Partly(u64),
    /// A state that there is not.
    Unknown(u64),
}

impl Payload {
    pub(super) fn decode(entry: u64) -> Self {
        let at = entry & !(MIB.saturating_sub(1));
        match entry & 7 {
            0 => Self::Absent,
            // 5 was written by versions of the format before 1.0.
            1..=3 | 5 => Self::Zero,
            6 => Self::Here(at),
            7 => Self::Partly(at),
            other => Self::Unknown(other),
        }
    }
}

/// Where an entry says that a sector bitmap block is; none where there is none.
pub(super) fn bitmap(entry: u64) -> Option<u64> {
    (entry & 7 == 6).then_some(entry & !(MIB.saturating_sub(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_entries() {
        let mut m = Metadata { block: 32 * MIB, size: 1 << 40, sector: 512, parent: None };
        assert_eq!(m.ratio(), 128);
        assert_eq!((m.entry(0), m.entry(127), m.entry(128)), (0, 127, 129));
        assert_eq!((m.bitmap_entry(0), m.bitmap_entry(127), m.bitmap_entry(128)), (128, 128, 257));
        m.sector = 4096;
        assert_eq!(m.ratio(), 1024);
    }

    #[test]
    fn states() {
        assert_eq!(Payload::decode(5 << 20 | 6), Payload::Here(5 << 20));
        assert_eq!(Payload::decode(5 << 20 | 7), Payload::Partly(5 << 20));
        assert_eq!(Payload::decode(0), Payload::Absent);
        assert!((1..4).all(|s| Payload::decode(s) == Payload::Zero));
        assert_eq!(Payload::decode(4), Payload::Unknown(4));
        assert_eq!((bitmap(7 << 20 | 6), bitmap(7 << 20)), (Some(7 << 20), None));
    }

    #[test]
    fn guids_are_those_of_the_specification() {
        assert_eq!(BAT.to_string(), "2dc27766-f623-4200-9d64-115e9bfd4a08");
        assert_eq!(PARENT_LOCATOR.to_string(), "a8d35f2d-b30b-454d-abf7-d3d84834ab0c");
    }

    #[test]
    fn the_checksum_leaves_itself_out() {
        let mut bytes = vec![7; 100];
        let want = sum(&bytes);
        bytes[4..8].copy_from_slice(&want.to_le_bytes());
        assert_eq!(sum(&bytes), want);
    }
}
