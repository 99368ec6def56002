//! Partition tables: the volumes of a virtual disk.
//!
//! The readers are tolerant: each defect is listed in [`Table::problems`], and the volumes that can still be told are
//! there. Which table a disk has:
//!
//! 1. a GPT, where its first sector is a protective (or hybrid) MBR, or is none at all, or neither an MBR with a
//!    partition nor a file system's boot sector, and a GPT header is found at the second sector or the last;
//! 2. an MBR, where at least one of its entries can be a partition, and none can't;
//! 3. else none: the disk is one volume.
//!
//! An optical disk that can be booted from other media too has a table over its file system, which begins at sector 0 of the
//! disk: where a partition has the bytes of an ISO 9660 descriptor, the disk is one volume.

use std::sync::Arc;

use crate::error::Result;
use crate::extent::{Image, Layer, MapLayer, Offset, ReadAt, Volume};

mod gpt;
mod mbr;
mod types;

/// One volume of a disk.
pub struct Slot {
    /// Its part of a path: `p1`, `p2`, ... by partition number; empty for a disk without a table.
    pub name: String,
    /// What the table says it is: type name, label, identity.
    pub about: String,
    /// Its bytes.
    pub layer: Arc<dyn Layer<Volume>>,
}

/// The volumes of a disk, and what was found about its table.
pub struct Table {
    /// `gpt`, `mbr`, or `none` for a disk that is one volume.
    pub kind: &'static str,
    /// Bytes of a sector by which the table counts.
    pub sector: u64,
    /// The volumes in order of their partition numbers.
    pub slots: Vec<Slot>,
    /// Defects, one sentence each: a bad checksum, a partition beyond the end, an overlap.
    pub problems: Vec<String>,
}

/// The sector sizes that disks have, in the order in which they are tried.
const SECTORS: [u64; 2] = [512, 4096];

/// Bytes from the start of a disk that tell what is there: both sectors 0, and an ext superblock.
const HEAD: usize = 8192;

/// Reads the table of `image`. Without one, the whole disk is one volume whose name is empty.
///
/// # Errors
/// None so far: a sector that can't be read is a problem, and the volumes that the others tell are there.
pub fn probe(image: Arc<dyn ReadAt<Image>>) -> Result<Table> {
    let mut problems = Vec::new();
    let head = head(image.as_ref(), &mut problems);
    let first = mbr::Sector::decode(&head);
    let bare = bare(&head);
    let protective = first.as_ref().is_some_and(mbr::Sector::is_protective);
    let partitioned = first.as_ref().is_some_and(|m| m.is_table(image.len()));
    if protective || (!partitioned && bare.is_none()) {
        if let Some(table) = gpt::read(&image, first.as_ref())? {
            return decided(table, &image, problems);
        }
        if protective {
            problems.push("the first sector is a protective MBR, but no GPT header was found".to_owned());
        }
    } else if SECTORS.iter().any(|s| gpt::signed(&head, *s)) {
        problems.push(match bare {
            Some(fs) if !partitioned => {
                format!("a GPT header without a protective MBR was passed over: the disk begins with {fs}")
            }
            _ => "a GPT header without a protective MBR was passed over for the MBR".to_owned(),
        });
    }
    if let Some(first) = first.filter(|m| m.is_table(image.len())) {
        if let Some(fs) = bare {
            problems.push(format!("the first sector is an MBR, but could be {fs} as well"));
        }
        return decided(mbr::read(&image, &first)?, &image, problems);
    }
    whole(image, problems)
}

/// A disk that is one volume.
fn whole(image: Arc<dyn ReadAt<Image>>, problems: Vec<String>) -> Result<Table> {
    let slot = Slot { name: String::new(), about: String::new(), layer: Arc::new(MapLayer::whole(image)?) };
    Ok(Table { kind: "none", sector: 512, slots: vec![slot], problems })
}

/// A table that was found, unless the disk is an optical one beneath it.
fn decided(found: Found, image: &Arc<dyn ReadAt<Image>>, mut problems: Vec<String>) -> Result<Table> {
    /// Byte of the first volume descriptor of ISO 9660, and its signature behind the first byte.
    const OPTICAL: (u64, &[u8; 5]) = (32_768, b"CD001");
    let mut signature = [0; 5];
    let (at, expected) = OPTICAL;
    if image.read_at(Offset::new(at.saturating_add(1)), &mut signature).is_ok() && signature == *expected {
        let covers = |p: &Part| {
            let end = p.start.zip(p.len).and_then(|(start, len)| start.checked_add(len));
            p.start.is_some_and(|start| start <= at) && end.is_none_or(|end| end > at)
        };
        if found.parts.iter().any(covers) {
            problems.push(format!("a {} table was passed over: the disk is an optical one", found.kind));
            return whole(Arc::clone(image), problems);
        }
        problems.push("an ISO 9660 descriptor that no partition has was passed over for the table".to_owned());
    }
    found.into_table(image, problems)
}

/// The first bytes of a disk. Zeros stand where they can't be read.
fn head(image: &dyn ReadAt<Image>, problems: &mut Vec<String>) -> Vec<u8> {
    let have = usize::try_from(image.len()).map_or(HEAD, |n| n.min(HEAD));
    let mut head = vec![0; have];
    if image.read_at(Offset::new(0), &mut head).is_err() {
        let mut at = Offset::new(0);
        for sector in head.chunks_mut(512) {
            if let Err(e) = image.read_at(at, sector) {
                problems.push(e.to_string());
                sector.fill(0);
            }
            at = at.saturating_add(sector.len() as u64);
        }
    }
    head
}

/// A partition as its table has it, before it is held against the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    number: u32,
    about: String,
    /// First byte, none where the multiplication by the sector size overflows.
    start: Option<u64>,
    /// Bytes.
    len: Option<u64>,
}

/// What a table's reader found.
#[derive(Debug)]
struct Found {
    kind: &'static str,
    sector: u64,
    parts: Vec<Part>,
    problems: Vec<String>,
}

impl Found {
    /// Makes layers of the parts. What passes the end of the disk is cut there and noted, so are overlaps.
    fn into_table(self, image: &Arc<dyn ReadAt<Image>>, mut problems: Vec<String>) -> Result<Table> {
        problems.extend(self.problems);
        let mut parts = self.parts;
        parts.sort_by_key(|p| p.number);
        let mut slots = Vec::with_capacity(parts.len());
        let mut ranges: Vec<(u64, u64, u32)> = Vec::with_capacity(parts.len());
        for part in parts {
            let start = part.start.unwrap_or(u64::MAX);
            let end = part.len.and_then(|len| start.checked_add(len)).unwrap_or(u64::MAX);
            let cut = end.min(image.len());
            if end > image.len() {
                problems.push(format!(
                    "p{}: ends {} bytes beyond the disk's end",
                    part.number,
                    end.saturating_sub(image.len())
                ));
            }
            if start >= cut {
                problems.push(format!("p{}: no byte of it is on the disk, left out", part.number));
                continue;
            }
            ranges.push((start, cut, part.number));
            slots.push(Slot {
                name: format!("p{}", part.number),
                about: part.about,
                layer: Arc::new(MapLayer::window(Arc::clone(image), start, cut.saturating_sub(start))?),
            });
        }
        ranges.sort_unstable();
        let mut reach = (0, 0);
        for (start, end, number) in ranges {
            if start < reach.0 {
                problems.push(format!("p{} and p{number} overlap", reach.1));
            }
            reach = reach.max((end, number));
        }
        Ok(Table { kind: self.kind, sector: self.sector, slots, problems })
    }
}

/// The file system that a disk without a table begins with, by signatures that no table has.
fn bare(head: &[u8]) -> Option<&'static str> {
    let at = |at: usize, sign: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(sign));
    if at(3, b"NTFS    ") {
        return Some("an NTFS boot sector");
    }
    if at(3, b"EXFAT   ") {
        return Some("an exFAT boot sector");
    }
    if at(0, b"XFSB") {
        return Some("an XFS superblock");
    }
    if fat_boot(head) {
        return Some("a FAT boot sector");
    }
    (at(0x438, &[0x53, 0xEF])).then_some("an ext superblock")
}

/// Whether a sector has the BIOS parameter block of a FAT volume, with every field that a driver divides by.
fn fat_boot(head: &[u8]) -> bool {
    let byte = |i: usize| head.get(i).copied().unwrap_or_default();
    let word = |i: usize| u16::from_le_bytes([byte(i), byte(i.saturating_add(1))]);
    let jump = byte(0) == 0xEB || byte(0) == 0xE9;
    let sector = word(11);
    jump && sector.is_power_of_two()
        && (512..=4096).contains(&sector)
        && byte(13).is_power_of_two()
        && word(14) != 0
        && matches!(byte(16), 1..=4)
        && (byte(21) == 0xF0 || byte(21) >= 0xF8)
}
