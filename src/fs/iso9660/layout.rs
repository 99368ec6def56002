//! The structures of ISO 9660, decoded. Numbers are stored in both byte orders; the little-endian one is read.

use time::{Date, Month, PrimitiveDateTime, Time};

use crate::bytes::Fields;
use crate::error::{Error, Result};
use crate::extent::{Offset, Volume};
use crate::fs::{TimeUnit, Timestamp};

/// Bytes of a sector, in which descriptors are counted.
pub const SECTOR: u64 = 2048;
/// Byte of the first volume descriptor.
pub const FIRST: u64 = 16 * SECTOR;
/// Byte of the signature of the first volume descriptor, and of any other one.
pub const PRIMARY_AT: u64 = FIRST + 1;
/// The signature.
pub const SIGNATURE: &[u8; 5] = b"CD001";
/// Bytes of a directory record without its name.
pub const RECORD: usize = 33;

/// What a volume descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The volume, with names of few letters.
    Primary,
    /// The same with names of Joliet: UTF-16, big-endian.
    Joliet,
    /// Any other.
    Other,
    /// The last one.
    Terminator,
}

/// A volume descriptor.
#[derive(Clone, Debug)]
pub struct Descriptor {
    /// What it is.
    pub kind: Kind,
    /// Bytes of a logical block.
    pub block: u64,
    /// Blocks of the volume.
    pub blocks: u64,
    /// The volume's name.
    pub label: String,
    /// When it was made, as the descriptor has it: 16 digits.
    pub created: String,
    /// The root's record.
    pub root: Record,
}

impl Descriptor {
    /// Decodes a descriptor; none for what does not have the signature.
    pub fn decode(f: Fields<'_, Volume>) -> Result<Option<Self>> {
        if f.slice(1, 5)? != SIGNATURE {
            return Ok(None);
        }
        let escape = f.slice(88, 3)?;
        let kind = match f.u8(0)? {
            1 => Kind::Primary,
            2 if matches!(escape, b"%/@" | b"%/C" | b"%/E") => Kind::Joliet,
            255 => Kind::Terminator,
            _ => Kind::Other,
        };
        let block = u64::from(f.u16(128)?);
        let label = match kind {
            Kind::Joliet => utf16_be(f.slice(40, 32)?),
            _ => f.slice(40, 32)?.to_vec(),
        };
        let label = String::from_utf8_lossy(&label).trim_end_matches([' ', '\0']).to_owned();
        let created = String::from_utf8_lossy(f.slice(813, 16)?).trim_end_matches('\0').to_owned();
        let (root, _) = Record::decode(f.part("root directory record", 156, 34)?)?;
        Ok(Some(Self { kind, block, blocks: f.u32(80)?.into(), label, created, root }))
    }
}

/// Big-endian UTF-16 as WTF-8.
pub fn utf16_be(bytes: &[u8]) -> Vec<u8> {
    let swapped: Vec<u8> = bytes.as_chunks::<2>().0.iter().flat_map(|[high, low]| [*low, *high]).collect();
    crate::fs::utf16::to_wtf8(&swapped)
}

/// The bits of a record's flags.
pub mod flag {
    /// Not shown to users.
    pub const HIDDEN: u8 = 1;
    /// A directory.
    pub const DIRECTORY: u8 = 2;
    /// The resource fork of the file of the same name.
    pub const ASSOCIATED: u8 = 4;
    /// The next record has more of the same file.
    pub const MORE: u8 = 0x80;
}

/// A directory record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// First block.
    pub block: u64,
    /// Bytes.
    pub len: u64,
    /// When it was recorded.
    pub time: Option<Timestamp>,
    /// See [`flag`].
    pub flags: u8,
    /// Whether its blocks are spread between those of other files.
    pub interleaved: bool,
    /// Its name as it is stored.
    pub name: Vec<u8>,
}

impl Record {
    /// Decodes a record, and says where its system use area begins.
    pub fn decode(f: Fields<'_, Volume>) -> Result<(Self, usize)> {
        let name_len = usize::from(f.u8(32)?);
        let name = f.slice(RECORD, name_len)?.to_vec();
        // Extended attributes lie before the contents.
        let block = u64::from(f.u32(2)?).saturating_add(f.u8(1)?.into());
        let record = Self {
            block,
            len: f.u32(10)?.into(),
            time: short_time(&f.array(18)?),
            flags: f.u8(25)?,
            interleaved: f.u8(26)? != 0,
            name,
        };
        // The name ends on an even byte.
        let end = RECORD.saturating_add(name_len);
        Ok((record, end.saturating_add(end % 2)))
    }
    /// Whether it leads to a directory.
    pub fn is_dir(&self) -> bool {
        self.flags & flag::DIRECTORY != 0
    }
    /// Whether it is the directory itself or its parent.
    pub fn is_dot(&self) -> bool {
        matches!(self.name.as_slice(), [0] | [1])
    }
}

/// The time of a record: years since 1900, month, day, hour, minute, second, quarters of an hour east of UTC.
pub fn short_time(bytes: &[u8; 7]) -> Option<Timestamp> {
    let [year, month, day, hour, minute, second, zone] = *bytes;
    let year = i32::from(year).checked_add(1900)?;
    point(year, month, day, [hour, minute, second], zone, 0, TimeUnit::Second)
}

/// The time of a descriptor or of Rock Ridge's long form: 16 digits, and quarters of an hour east of UTC.
pub fn long_time(bytes: &[u8; 17]) -> Option<Timestamp> {
    let (digits, zone) = bytes.split_at_checked(16)?;
    let number =
        |at: usize, len: usize| std::str::from_utf8(digits.get(at..at.checked_add(len)?)?).ok()?.parse::<u16>().ok();
    let small = |at| number(at, 2).and_then(|n| u8::try_from(n).ok());
    let year = number(0, 4).filter(|y| *y > 0)?;
    let clock = [small(8)?, small(10)?, small(12)?];
    let nanos = u32::from(small(14)?).checked_mul(10_000_000)?;
    point(year.into(), small(4)?, small(6)?, clock, *zone.first()?, nanos, TimeUnit::Hundredth)
}

fn point(year: i32, month: u8, day: u8, clock: [u8; 3], zone: u8, nanos: u32, unit: TimeUnit) -> Option<Timestamp> {
    let [hour, minute, second] = clock;
    let day = Date::from_calendar_date(year, Month::try_from(month).ok()?, day).ok()?;
    let clock = Time::from_hms(hour, minute, second).ok()?;
    let local = PrimitiveDateTime::new(day, clock).assume_utc().unix_timestamp();
    let east = i64::from(zone.cast_signed()).checked_mul(900)?;
    Some(Timestamp { secs: local.checked_sub(east)?, nanos, unit })
}

/// A record of a directory: the byte at which it begins, the record, its system use area.
pub type Listed<'b> = (u64, Record, &'b [u8]);

/// The records of a directory, with the byte at which each begins. A record never crosses a sector; what can't be one ends
/// its sector, and is told.
pub fn records(bytes: &[u8], at: u64) -> (Vec<Listed<'_>>, Vec<Error>) {
    let (mut out, mut faults) = (Vec::new(), Vec::new());
    for (number, sector) in bytes.chunks(SECTOR as usize).enumerate() {
        let start = at.saturating_add((number as u64).saturating_mul(SECTOR));
        let mut pos = 0usize;
        while let Some(len) = sector.get(pos).map(|b| usize::from(*b)).filter(|len| *len > 0) {
            let place = Offset::<Volume>::new(start.saturating_add(pos as u64));
            let record = sector.get(pos..pos.saturating_add(len));
            let f = Fields::new("directory record", place, record.unwrap_or_default());
            match Record::decode(f) {
                Ok((record, system_use)) => {
                    let rest = f.bytes().get(system_use..).unwrap_or_default();
                    out.push((place.get(), record, rest));
                }
                Err(e) => {
                    faults.push(e);
                    break;
                }
            }
            pos = pos.saturating_add(len);
        }
    }
    (out, faults)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times() {
        // 2001-02-03 04:05:06 at two hours east, by `date -ud`.
        let at = Timestamp { secs: 981_165_906, nanos: 0, unit: TimeUnit::Second };
        assert_eq!(short_time(&[101, 2, 3, 4, 5, 6, 8]), Some(at));
        let long = Timestamp { nanos: 70_000_000, unit: TimeUnit::Hundredth, ..at };
        assert_eq!(long_time(b"2001020304050607\x08"), Some(long));
        assert_eq!(long_time(b"0000000000000000\x00"), None);
        assert_eq!(short_time(&[0; 7]), None);
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let (found, _) = records(&bytes, 0);
            prop_assert!(found.iter().all(|(at, r, _)| *at + 33 + r.name.len() as u64 <= bytes.len() as u64));
            let _ = Descriptor::decode(Fields::new("volume descriptor", Offset::new(0), &bytes));
        }
    }
}
