//! Whether a volume is FAT: its boot sector, or where that is damaged the copy that FAT32 keeps.

use crate::bytes::Fields;
use crate::error::Result;
use crate::extent::{Offset, ReadAt, Volume};
use crate::fs::fat::layout::{Boot, HEAD, Width, fields};

/// A boot sector, and where it was found.
pub struct Probed {
    /// What it says.
    pub boot: Boot,
    /// The volume's byte at which it stands: 0, or where the copy is.
    pub at: u64,
}

const NAME: &str = "FAT boot sector";

/// Finds the boot sector; none where the volume is no FAT volume.
///
/// # Errors
/// None for a sector that can't be read: then its copy is tried.
pub fn probe(volume: &dyn ReadAt<Volume>) -> Result<Option<Probed>> {
    if volume.len() < HEAD as u64 {
        return Ok(None);
    }
    let first = volume.read_vec(Offset::new(0), HEAD);
    if let Ok(head) = &first {
        if let Some(boot) = primary(volume, fields(NAME, 0, head)) {
            return Ok(Some(Probed { boot, at: 0 }));
        }
        if belongs_to_another(volume, head) {
            return Ok(None);
        }
    }
    // The copy is in sector 6, whatever the sector's size.
    for sector in [512u64, 4096, 1024, 2048] {
        let at = sector.saturating_mul(6);
        let Ok(head) = volume.read_vec(Offset::new(at), HEAD) else { continue };
        let head = fields("copy of the FAT boot sector", at, &head);
        if let Ok(boot) = Boot::decode(head)
            && u64::from(boot.sector) == sector
            && boot.width == Width::Fat32
            && boot.backup == Some(6)
            && signed(head)
            && table_begins(volume, &boot)
        {
            return Ok(Some(Probed { boot, at }));
        }
    }
    Ok(None)
}

/// The boot sector at the volume's start, where it is one.
fn primary(volume: &dyn ReadAt<Volume>, head: Fields<'_, Volume>) -> Option<Boot> {
    let jumps = matches!(head.bytes(), [0xEB, _, 0x90, ..] | [0xE9, ..] | [0xEB, ..]);
    if foreign(head.bytes()) || !(signed(head) || jumps) {
        return None;
    }
    let boot = Boot::decode(head).ok()?;
    let names_itself = [0x36, 0x52].iter().any(|at| head.slice(*at, 3).is_ok_and(|name| name == b"FAT"));
    // A table that begins as it must is proof; where it is damaged or can't be read, the boot sector's own word is.
    (table_begins(volume, &boot) || (names_itself && signed(head) && jumps)).then_some(boot)
}

fn signed(head: Fields<'_, Volume>) -> bool {
    head.u16(0x1FE).is_ok_and(|signature| signature == 0xAA55)
}

/// Names of file systems whose boot sectors look much like FAT's.
fn foreign(head: &[u8]) -> bool {
    let name = head.get(3..11).unwrap_or_default();
    [&b"NTFS    "[..], b"EXFAT   ", b"ReFS\0\0\0\0", b"-FVE-FS-"].contains(&name)
}

/// Whether entry 0 of one of the tables is the media descriptor with all other bits set.
fn table_begins(volume: &dyn ReadAt<Volume>, boot: &Boot) -> bool {
    let upper = boot.width.end() & !0xFF;
    (0..boot.fats).any(|fat| {
        let Ok(bytes) = volume.read_vec(Offset::new(boot.fat_at(fat)), 8) else { return false };
        let entry = super::table::Table::new(bytes, boot.width, 1).get(0);
        // Some formatters write another descriptor here than there.
        entry & upper == upper && (entry & 0xFF == u32::from(boot.media) || entry & 0xF0 == 0xF0)
    })
}

/// Whether the first sector is of a kind beneath which an old copy of a FAT boot sector may have survived: another file
/// system's, or one with a table of partitions.
pub(in crate::fs) fn belongs_to_another(volume: &dyn ReadAt<Volume>, head: &[u8]) -> bool {
    if foreign(head) || head.starts_with(b"XFSB") {
        return true;
    }
    let word = |at: u64| volume.read_vec(Offset::new(at), 2).is_ok_and(|magic| magic == [0x53, 0xEF]);
    if word(1024 + 56) {
        return true;
    }
    let (records, _) = head.get(0x1BE..0x1FE).unwrap_or_default().as_chunks::<16>();
    let partition = |record: &[u8; 16]| {
        let [status, _, _, _, kind, .., l0, l1, l2, l3] = *record;
        matches!(status, 0 | 0x80) && kind != 0 && u32::from_le_bytes([l0, l1, l2, l3]) != 0
    };
    head.ends_with(&[0x55, 0xAA])
        && records.iter().any(partition)
        && records.iter().all(|record| partition(record) || record.iter().all(|b| *b == 0))
}
