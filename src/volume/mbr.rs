//! The MBR and its chain of extended boot records.
//!
//! Sector 0 holds four entries of 16 bytes at 0x1BE and the signature 55 AA at 0x1FE. An entry of type 05, 0F or 85
//! holds a chain of sectors of the same form, each with a logical partition relative to itself and a link relative
//! to the start of the extended partition. Entries count logical sectors, of a size that the MBR does not tell.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Found, Part, SECTORS, types};
use crate::error::Result;
use crate::extent::{Image, Offset, ReadAt};

/// Records of an extended partition's chain that are followed.
const MAX_HOPS: usize = 1024;
/// Bytes of a table sector that matter, whatever the disk's sectors.
const SIZE: usize = 512;

/// One of the four entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// 00 or 80 (active).
    flag: u8,
    /// The partition's type.
    kind: u8,
    /// First sector.
    start: u32,
    /// Sectors.
    len: u32,
}

impl Entry {
    fn is_used(self) -> bool {
        self.kind != 0 && self.len != 0
    }
    fn is_extended(self) -> bool {
        matches!(self.kind, 0x05 | 0x0F | 0x85)
    }
}

/// A sector with a table: the MBR or an extended boot record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sector {
    entries: [Entry; 4],
    /// The disk's signature at 0x1B8 (of the MBR only).
    disk: u32,
}

impl Sector {
    /// Decodes the first 512 bytes, none without the signature 55 AA.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; SIZE] = bytes.first_chunk()?;
        let (body, sign) = bytes.split_last_chunk::<2>()?;
        if sign != &[0x55, 0xAA] {
            return None;
        }
        let (body, table) = body.split_last_chunk::<64>()?;
        let mut entries = [Entry { flag: 0, kind: 0, start: 0, len: 0 }; 4];
        for (entry, raw) in entries.iter_mut().zip(table.as_chunks::<16>().0) {
            let [flag, _, _, _, kind, _, _, _, s0, s1, s2, s3, l0, l1, l2, l3] = *raw;
            *entry = Entry {
                flag,
                kind,
                start: u32::from_le_bytes([s0, s1, s2, s3]),
                len: u32::from_le_bytes([l0, l1, l2, l3]),
            };
        }
        let disk = body.get(0x1B8..).and_then(|b| b.first_chunk()).copied().unwrap_or_default();
        Some(Self { entries, disk: u32::from_le_bytes(disk) })
    }
    /// Whether one entry says that the disk has a GPT.
    pub(super) fn is_protective(&self) -> bool {
        self.entries.iter().any(|e| e.kind == 0xEE && e.flag & 0x7F == 0)
    }
    /// Partitions beside the protective entry: of a hybrid MBR.
    pub(super) fn others(&self) -> usize {
        self.entries.iter().filter(|e| e.is_used() && e.kind != 0xEE).count()
    }
    /// Whether this can be a table rather than a boot sector's code: each flag is 00 or 80, and at least one entry is
    /// a partition that begins behind the table and on the disk.
    pub(super) fn is_table(&self, disk: u64) -> bool {
        let on_disk = |e: &Entry| e.start != 0 && u64::from(e.start).saturating_mul(512) < disk;
        self.entries.iter().all(|e| e.flag & 0x7F == 0) && self.entries.iter().any(|e| e.is_used() && on_disk(e))
    }
}

/// The partitions of the MBR `first` of `image`.
pub(super) fn read(image: &Arc<dyn ReadAt<Image>>, first: &Sector) -> Result<Found> {
    let sector = sector_size(image, first)?;
    let mut found = Found { kind: "mbr", sector, parts: Vec::new(), problems: Vec::new() };
    let mut logical = 5;
    for (number, entry) in (1..).zip(first.entries) {
        if entry.is_used() && !entry.is_extended() {
            found.parts.push(part(number, &entry, Some(u64::from(entry.start)), sector, first.disk));
        }
    }
    for entry in first.entries.iter().filter(|e| e.is_used() && e.is_extended()) {
        chain(image, entry, &mut logical, first.disk, &mut found)?;
    }
    Ok(found)
}

/// Follows the records of the extended partition `outer`. A record that is broken ends it; what was found before stays.
fn chain(image: &Arc<dyn ReadAt<Image>>, outer: &Entry, logical: &mut u32, disk: u32, found: &mut Found) -> Result<()> {
    let base = u64::from(outer.start);
    let mut at = base;
    let mut seen = BTreeSet::new();
    for _ in 0..MAX_HOPS {
        if !seen.insert(at) {
            found
                .problems
                .push(format!("extended boot record at sector {at}: the chain comes back to it, ended there"));
            return Ok(());
        }
        let record = match record(image, at, found.sector) {
            Ok(Some(record)) => record,
            Ok(None) => {
                found.problems.push(format!(
                    "extended boot record at sector {at}: expected the signature 55 AA on the disk, logical partitions from p{logical} on are not known"
                ));
                return Ok(());
            }
            Err(e) => {
                found.problems.push(format!("extended boot record at sector {at}: {e}"));
                return Ok(());
            }
        };
        for entry in record.entries.iter().filter(|e| e.is_used() && !e.is_extended()) {
            let start = at.checked_add(entry.start.into());
            found.parts.push(part(*logical, entry, start, found.sector, disk));
            *logical = logical.saturating_add(1);
        }
        let Some(next) = record.entries.iter().find(|e| e.is_used() && e.is_extended()) else { return Ok(()) };
        at = base.saturating_add(next.start.into());
    }
    found
        .problems
        .push(format!("extended partition at sector {base}: more than {MAX_HOPS} records, the rest is left out"));
    Ok(())
}

/// The record at sector `at`; none where it is beyond the disk or has no signature.
fn record(image: &Arc<dyn ReadAt<Image>>, at: u64, sector: u64) -> Result<Option<Sector>> {
    let Some(byte) = at.checked_mul(sector).filter(|b| b.saturating_add(SIZE as u64) <= image.len()) else {
        return Ok(None);
    };
    Ok(Sector::decode(&image.read_vec(Offset::new(byte), SIZE)?))
}

fn part(number: u32, entry: &Entry, start: Option<u64>, sector: u64, disk: u32) -> Part {
    let active = if entry.flag == 0x80 { ", active" } else { "" };
    Part {
        number,
        about: format!("{} ({:02x}){active}, {disk:08x}-{number:02x}", types::mbr(entry.kind), entry.kind),
        start: start.and_then(|s| s.checked_mul(sector)),
        len: u64::from(entry.len).checked_mul(sector),
    }
}

/// The sector size under which more of the partitions begin with something that a partition begins with; 512 when in
/// doubt.
fn sector_size(image: &Arc<dyn ReadAt<Image>>, first: &Sector) -> Result<u64> {
    let mut best = (0usize, 512);
    for sector in SECTORS {
        let mut known = 0usize;
        for entry in first.entries.iter().filter(|e| e.is_used()) {
            let begin = u64::from(entry.start).saturating_mul(sector);
            if begin.saturating_add(2048) > image.len() {
                continue;
            }
            // A bad sector there is no reason to give up the table.
            let Ok(head) = image.read_vec(Offset::new(begin), 2048) else { continue };
            let likely =
                if entry.is_extended() { Sector::decode(&head).is_some() } else { super::bare(&head).is_some() };
            known = known.saturating_add(usize::from(likely));
        }
        if known > best.0 {
            best = (known, sector);
        }
    }
    Ok(best.1)
}
