//! The structures of NTFS 3.x, decoded from slices. Offsets are those of the structure; all numbers little-endian.
//!
//! Format: <https://flatcap.github.io/linux-ntfs/ntfs/> and, for reparse buffers, \[MS-FSCC\] 2.1.2.

use crate::bytes::Fields;
use crate::error::{Error, Result};
use crate::extent::{Offset, Volume};
use crate::fs::{TimeUnit, Timestamp};

/// Fix-ups protect strides of so many bytes, whatever the sectors of the medium.
pub const STRIDE: usize = 512;
/// Number of the record of `$MFT`.
pub const MFT: u64 = 0;
/// Number of the record of `$LogFile`.
pub const LOG_FILE: u64 = 2;
/// Number of the record of `$Volume`.
pub const VOLUME: u64 = 3;
/// Number of the record of the root directory.
pub const ROOT: u64 = 5;
/// Number of the record of `$Bitmap`.
pub const BITMAP: u64 = 6;
/// Number of the record of `$MFTMirr`.
pub const MIRROR: u64 = 1;
/// Number of the record of `$UpCase`.
pub const UP_CASE: u64 = 10;
/// Number of the record of `$Extend`.
pub const EXTEND: u64 = 11;
/// Records below are the file system's own.
pub const FIRST_USER: u64 = 24;

/// The largest `$ATTRIBUTE_LIST`, and more than the largest reparse buffer, in bytes.
pub const MAX_VALUE: u64 = 256 << 10;
/// Bit in the attributes of an object: a directory. Only those that are links have it in a tree.
pub const DIRECTORY_BIT: u32 = 0x10;

/// Types of attributes.
pub mod kind {
    /// `$STANDARD_INFORMATION`.
    pub const STANDARD_INFORMATION: u32 = 0x10;
    /// `$ATTRIBUTE_LIST`.
    pub const ATTRIBUTE_LIST: u32 = 0x20;
    /// `$FILE_NAME`.
    pub const FILE_NAME: u32 = 0x30;
    /// `$OBJECT_ID`.
    pub const OBJECT_ID: u32 = 0x40;
    /// `$SECURITY_DESCRIPTOR`.
    pub const SECURITY_DESCRIPTOR: u32 = 0x50;
    /// `$VOLUME_NAME`.
    pub const VOLUME_NAME: u32 = 0x60;
    /// `$VOLUME_INFORMATION`.
    pub const VOLUME_INFORMATION: u32 = 0x70;
    /// `$DATA`.
    pub const DATA: u32 = 0x80;
    /// `$INDEX_ROOT`.
    pub const INDEX_ROOT: u32 = 0x90;
    /// `$INDEX_ALLOCATION`.
    pub const INDEX_ALLOCATION: u32 = 0xA0;
    /// `$BITMAP`.
    pub const BITMAP: u32 = 0xB0;
    /// `$REPARSE_POINT`.
    pub const REPARSE_POINT: u32 = 0xC0;
    /// `$EA_INFORMATION`.
    pub const EA_INFORMATION: u32 = 0xD0;
    /// `$EA`.
    pub const EA: u32 = 0xE0;
    /// The end of a record's attributes.
    pub const END: u32 = 0xFFFF_FFFF;
}

/// The part of an attribute's flags that names a compression method; 1 is LZNT1.
pub const COMPRESSION_MASK: u16 = 0x00FF;
/// Attribute flag: encrypted.
pub const ENCRYPTED: u16 = 0x4000;
/// Record flag: in use.
pub const IN_USE: u16 = 1;
/// Record flag: a directory.
pub const DIRECTORY: u16 = 2;
/// Namespace of a `$FILE_NAME` that is the short twin of a long one.
pub const DOS: u8 = 2;
/// Namespace of a long `$FILE_NAME` that has a short twin.
pub const WIN32: u8 = 1;

/// A file reference: record number and the sequence number that the record must have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference(pub u64);

impl Reference {
    /// The record's number.
    pub fn number(self) -> u64 {
        self.0 & 0xFFFF_FFFF_FFFF
    }
    /// Its sequence number.
    pub fn sequence(self) -> u16 {
        (self.0 >> 48) as u16
    }
}

/// The boot sector: where everything is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boot {
    /// Bytes of a sector.
    pub sector: u64,
    /// Bytes of a cluster.
    pub cluster: u64,
    /// Sectors of the volume, without the backup boot sector behind them.
    pub sectors: u64,
    /// First cluster of `$MFT`.
    pub mft: u64,
    /// First cluster of `$MFTMirr`.
    pub mirror: u64,
    /// Bytes of an MFT record.
    pub record: usize,
    /// Bytes of an index block.
    pub index_block: usize,
    /// Serial number.
    pub serial: u64,
}

impl Boot {
    /// Whether the sector says that it is NTFS.
    pub fn is_ntfs(sector: &[u8]) -> bool {
        sector.get(3..11) == Some(b"NTFS    ")
    }
    /// Whether the sector says that the volume is encrypted by BitLocker.
    pub fn is_bitlocker(sector: &[u8]) -> bool {
        sector.get(3..11) == Some(b"-FVE-FS-")
    }
    /// Decodes a sector that [is NTFS](Self::is_ntfs).
    ///
    /// # Errors
    /// [`Error::Corrupt`] where a size is none that NTFS has.
    pub fn decode(f: Fields<'_, Volume>) -> Result<Self> {
        if !Self::is_ntfs(f.bytes()) {
            return Err(f.wrong(3, "`NTFS    `"));
        }
        let sector = u64::from(f.u16(0x0B)?);
        if !sector.is_power_of_two() || !(256..=4096).contains(&sector) {
            return Err(f.wrong(0x0B, "sectors of 256 to 4096 bytes"));
        }
        let per = f.u8(0x0D)?;
        let per: u64 = match per {
            0..=0x80 => per.into(),
            _ => 1u64.checked_shl(256u32.saturating_sub(per.into())).unwrap_or(0),
        };
        let cluster = sector.saturating_mul(per);
        if !per.is_power_of_two() || cluster > 2 << 20 {
            return Err(f.wrong(0x0D, "clusters of at most 2 MiB"));
        }
        let sectors = f.u64(0x28)?;
        if sectors == 0 || sectors.checked_mul(sector).is_none_or(|n| i64::try_from(n).is_err()) {
            return Err(f.wrong(0x28, "a number of sectors below 2^63 bytes"));
        }
        let block = |at: usize, what: &str| {
            let v = f.u8(at)? as i8;
            let size = match v {
                1.. => cluster.saturating_mul(v.unsigned_abs().into()),
                _ => 1u64.checked_shl(v.unsigned_abs().into()).unwrap_or(0),
            };
            match usize::try_from(size) {
                Ok(n) if n.is_power_of_two() && (STRIDE..=65536).contains(&n) => Ok(n),
                _ => Err(f.wrong(at, format!("{what} of 512 to 65536 bytes"))),
            }
        };
        let boot = Self {
            sector,
            cluster,
            sectors,
            mft: f.u64(0x30)?,
            mirror: f.u64(0x38)?,
            record: block(0x40, "MFT records")?,
            index_block: block(0x44, "index blocks")?,
            serial: f.u64(0x48)?,
        };
        if boot.mft.min(boot.mirror) >= boot.clusters() {
            return Err(f.wrong(0x30, "$MFT or $MFTMirr within the volume"));
        }
        Ok(boot)
    }
    /// Whole clusters of the volume.
    pub fn clusters(&self) -> u64 {
        self.sectors.saturating_mul(self.sector).checked_div(self.cluster).unwrap_or(0)
    }
}

/// Undoes the fix-ups of a record or index block in its buffer.
///
/// # Errors
/// What is wrong, for a structure that was torn or overwritten; then some strides may have been restored.
pub fn fix_up(block: &mut [u8]) -> Result<(), &'static str> {
    let at16 = |b: &[u8], at: usize| b.get(at..)?.first_chunk::<2>().map(|b| usize::from(u16::from_le_bytes(*b)));
    let (Some(at), Some(count)) = (at16(block, 4), at16(block, 6)) else { return Err("a header") };
    if !at.is_multiple_of(2) || count.checked_sub(1).and_then(|n| n.checked_mul(STRIDE)) != Some(block.len()) {
        return Err("one fix-up for each 512 bytes");
    }
    // The array itself must end before the first place that it protects.
    if at < 8 || at.saturating_add(count.saturating_mul(2)) > STRIDE.saturating_sub(2) {
        return Err("the fix-ups within the first 510 bytes");
    }
    let two = |block: &[u8], at: usize| block.get(at..).and_then(|b| b.first_chunk::<2>().copied());
    let check = two(block, at).ok_or("a fix-up")?;
    let (mut from, mut end) = (at, 0usize);
    for _ in 1..count {
        (from, end) = (from.saturating_add(2), end.saturating_add(STRIDE));
        let saved = two(block, from).ok_or("a fix-up")?;
        let place = block.get_mut(..end).and_then(|b| b.last_chunk_mut::<2>()).ok_or("512 bytes")?;
        if *place != check {
            return Err("fix-ups that agree (the write was torn, or the record overwritten)");
        }
        *place = saved;
    }
    Ok(())
}

/// The head of an MFT record whose fix-ups are undone, and its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    f: Fields<'a, Volume>,
    /// How often the record was used.
    pub sequence: u16,
    /// [`IN_USE`], [`DIRECTORY`].
    pub flags: u16,
    /// The base record, 0 in a base record.
    pub base: Reference,
    first: usize,
    used: usize,
}

impl<'a> Record<'a> {
    /// Decodes a record in use.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where its head contradicts itself or `number`.
    pub fn decode(f: Fields<'a, Volume>, number: u64) -> Result<Self> {
        let used = f.u32(0x18)? as usize;
        let first = usize::from(f.u16(0x14)?);
        if used > f.bytes().len() || first > used || !first.is_multiple_of(8) || first < 0x28 {
            return Err(f.wrong(0x14, "attributes within the bytes in use, and these within the record"));
        }
        // Since NTFS 3.1 a record holds the low half of its number; before, the fix-ups begin there.
        if f.u16(4)? >= 0x30 && f.u32(0x2C)? != number as u32 {
            return Err(f.wrong(0x2C, format!("its own number {number}")));
        }
        Ok(Self { f, sequence: f.u16(0x10)?, flags: f.u16(0x16)?, base: Reference(f.u64(0x20)?), first, used })
    }
    /// Its attributes in order; after an error there are no more.
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes { f: self.f, at: self.first, used: self.used }
    }
    /// The attribute that begins at byte `at`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where none does.
    pub fn attribute(&self, at: usize) -> Result<Attribute<'a>> {
        self.attributes()
            .find(|a| a.as_ref().map_or(true, |a| a.at == at))
            .unwrap_or_else(|| Err(self.f.wrong(at, "an attribute")))
    }
}

/// Iterator over the attributes of a record.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    f: Fields<'a, Volume>,
    at: usize,
    used: usize,
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>>;
    // Called for each attribute of a volume: an attribute that is handed on in memory costs more than finding it.
    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        let at = self.at;
        if at == usize::MAX {
            return None;
        }
        self.at = usize::MAX;
        let kind = match self.f.u32(at) {
            Ok(kind::END) => return None,
            Ok(kind) if at < self.used => kind,
            _ => return Some(Err(self.f.wrong(at, "an end of the attributes"))),
        };
        let found = self.f.u32(at.saturating_add(4)).and_then(|len| {
            let len = len as usize;
            let end = at.saturating_add(len);
            if len < 0x18 || !len.is_multiple_of(8) || end > self.used {
                return Err(self.f.wrong(at.saturating_add(4), "an attribute that ends within the record"));
            }
            self.at = end;
            Attribute::decode(self.f.part("attribute", at, len)?, kind, at)
        });
        Some(found)
    }
}

/// One attribute of a record.
#[derive(Clone, Copy, Debug)]
pub struct Attribute<'a> {
    /// Where it begins in its record.
    pub at: usize,
    /// What it is, see [`kind`].
    pub kind: u32,
    /// Its name in UTF-16, empty where it has none.
    pub name: &'a [u8],
    /// [`COMPRESSION_MASK`], [`ENCRYPTED`], 0x8000 sparse.
    pub flags: u16,
    /// Its value, or where that is.
    pub body: Body<'a>,
}

/// The value of an attribute.
#[derive(Clone, Copy, Debug)]
pub enum Body<'a> {
    /// In the record.
    Resident(&'a [u8]),
    /// In clusters.
    NonResident {
        /// First VCN of this piece.
        lowest: u64,
        /// One past its last VCN.
        end: u64,
        /// The mapping pairs.
        pairs: &'a [u8],
        /// A compression unit is 2^this clusters, 0 where there is none.
        unit: u8,
        /// Length and initialized length in bytes; 0 but in the first piece.
        size: u64,
        /// See `size`.
        valid: u64,
    },
}

impl<'a> Attribute<'a> {
    #[inline(always)]
    fn decode(f: Fields<'a, Volume>, kind: u32, at: usize) -> Result<Self> {
        let name = f.slice(f.u16(0x0A)?.into(), usize::from(f.u8(9)?).saturating_mul(2))?;
        let body = match f.u8(8)? {
            0 => Body::Resident(f.slice(f.u16(0x14)?.into(), f.u32(0x10)? as usize)?),
            1 => {
                let (lowest, highest) = (f.u64(0x10)?, f.u64(0x18)?);
                // The highest VCN of an empty value is -1.
                let end = highest.wrapping_add(1);
                if end < lowest || i64::try_from(end).is_err() {
                    return Err(f.wrong(0x18, "a last VCN that is not before the first"));
                }
                let (size, valid) = if lowest == 0 { (f.u64(0x30)?, f.u64(0x38)?) } else { (0, 0) };
                if i64::try_from(size).is_err() || i64::try_from(valid).is_err() {
                    return Err(f.wrong(0x30, "a size below 2^63"));
                }
                let pairs = usize::from(f.u16(0x20)?);
                if pairs < 0x28 {
                    return Err(f.wrong(0x20, "mapping pairs behind the head"));
                }
                let pairs = f.slice(pairs, f.bytes().len().saturating_sub(pairs))?;
                Body::NonResident { lowest, end, pairs, unit: f.u8(0x22)?, size, valid }
            }
            _ => return Err(f.wrong(8, "resident or non-resident")),
        };
        Ok(Self { at, kind, name, flags: f.u16(0x0C)?, body })
    }
}

/// `$STANDARD_INFORMATION`: times made, contents changed, record changed, read, in 100 ns since 1601; and attributes.
pub fn standard_information(value: &[u8]) -> Option<([i64; 4], u32)> {
    let time = |at: usize| value.get(at..)?.first_chunk::<8>().map(|b| i64::from_le_bytes(*b));
    let attributes = u32::from_le_bytes(*value.get(0x20..)?.first_chunk()?);
    Some(([time(0)?, time(8)?, time(16)?, time(24)?], attributes))
}

/// `$FILE_NAME`, as far as it is the truth: sizes and times in it are stale copies.
#[derive(Clone, Copy, Debug)]
pub struct FileName<'a> {
    /// The directory.
    pub parent: Reference,
    /// Size of the data when the name was last changed.
    pub size: u64,
    /// [`DOS`], [`WIN32`], or 0 or 3 for one that stands alone.
    pub space: u8,
    /// The name in UTF-16.
    pub name: &'a [u8],
}

impl<'a> FileName<'a> {
    /// Decodes the value.
    pub fn decode(value: &'a [u8]) -> Option<Self> {
        let u64_at = |at: usize| value.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b));
        let len = usize::from(*value.get(0x40)?).saturating_mul(2);
        Some(Self {
            parent: Reference(u64_at(0)?),
            size: u64_at(0x30)?,
            space: *value.get(0x41)?,
            name: value.get(0x42..)?.get(..len)?,
        })
    }
}

/// One entry of an `$ATTRIBUTE_LIST`.
#[derive(Clone, Copy, Debug)]
pub struct ListEntry {
    /// Type of the attribute.
    pub kind: u32,
    /// Whether it has a name.
    pub named: bool,
    /// First VCN of this piece.
    pub lowest: u64,
    /// The record that it is in.
    pub record: Reference,
}

/// The entries of an `$ATTRIBUTE_LIST`; the last is none where the list is damaged there.
pub fn attribute_list(mut list: &[u8]) -> impl Iterator<Item = Option<ListEntry>> + '_ {
    std::iter::from_fn(move || {
        if list.is_empty() {
            return None;
        }
        let one = || {
            let len = usize::from(u16::from_le_bytes(*list.get(4..)?.first_chunk()?));
            let rest = list.get(len..).filter(|_| len >= 0x1A)?;
            let entry = ListEntry {
                kind: u32::from_le_bytes(*list.first_chunk()?),
                named: *list.get(6)? != 0,
                lowest: u64::from_le_bytes(*list.get(8..)?.first_chunk()?),
                record: Reference(u64::from_le_bytes(*list.get(16..)?.first_chunk()?)),
            };
            Some((entry, rest))
        };
        match one() {
            Some((entry, rest)) => {
                list = rest;
                Some(Some(entry))
            }
            None => {
                list = &[];
                Some(None)
            }
        }
    })
}

/// `$VOLUME_INFORMATION`: major and minor version, and flags (0 for a volume in order, 1 dirty).
pub fn volume_information(value: &[u8]) -> Option<(u8, u8, u16)> {
    Some((*value.get(8)?, *value.get(9)?, u16::from_le_bytes(*value.get(10..)?.first_chunk()?)))
}

/// Whether `$LogFile` leaves nothing to be replayed: it is empty, or the newer of its two restart pages says that no
/// client is in it or that the volume was clean. `head` is its first 8 KiB. None where there is no valid page.
pub fn log_is_clean(head: &[u8]) -> Option<bool> {
    if !head.is_empty() && head.iter().all(|b| *b == 0xFF) {
        return Some(true);
    }
    let page = |bytes: &[u8]| {
        let mut page = bytes.get(..4096)?.to_vec();
        page.starts_with(b"RSTR").then_some(())?;
        fix_up(&mut page).ok()?;
        let area = usize::from(u16::from_le_bytes(*page.get(0x18..)?.first_chunk()?));
        let area = page.get(area..)?;
        let lsn = u64::from_le_bytes(*area.first_chunk()?);
        let clients = u16::from_le_bytes(*area.get(0x0C..)?.first_chunk()?);
        let flags = u16::from_le_bytes(*area.get(0x0E..)?.first_chunk()?);
        Some((lsn, clients == 0xFFFF || flags & 2 != 0))
    };
    let second = head.get(4096..).and_then(page);
    page(head).into_iter().chain(second).max_by_key(|p| p.0).map(|p| p.1)
}

/// A time in 100 ns since 1601-01-01.
pub fn timestamp(filetime: i64) -> Timestamp {
    const TICKS: i64 = 10_000_000;
    const UNIX_EPOCH: i64 = 11_644_473_600;
    let nanos = u32::try_from(filetime.rem_euclid(TICKS)).unwrap_or(0).saturating_mul(100);
    Timestamp { secs: filetime.div_euclid(TICKS).saturating_sub(UNIX_EPOCH), nanos, unit: TimeUnit::Tick }
}

/// A structure of the volume that could not be decoded, as an error.
pub fn wrong(structure: impl Into<String>, at: u64, expected: impl Into<String>) -> Error {
    Error::corrupt(structure, Offset::<Volume>::new(at), expected)
}
