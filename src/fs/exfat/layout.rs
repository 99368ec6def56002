//! The boot sector, its flags and checksums.
//!
//! Source: Microsoft, "exFAT file system specification", revision 1.00, sections 3 and 4.

use crate::bytes::{Fields, put};
use crate::error::Result;
use crate::extent::{Offset, Volume};

/// Bytes of the boot sector that have a meaning, whatever the sector's size.
pub const HEAD: usize = 512;
/// Sectors of a boot region whose bytes the checksum in the one after them covers.
pub const SUMMED_SECTORS: usize = 11;
/// Sector at which the backup of the boot region begins.
pub const BACKUP_SECTOR: u64 = 12;
/// Byte of the boot sector where the name of the file system stands.
pub const NAME_AT: usize = 3;
/// Byte of the boot sector where the flags stand.
pub const FLAGS_AT: usize = 0x6A;
/// Byte of the boot sector where the part in use stands, in percent.
pub const PERCENT_AT: usize = 0x70;
/// Flag: the second table and the second bitmap are the ones in use (TexFAT).
pub const SECOND: u16 = 1;
/// Flag: the volume was not closed.
pub const DIRTY: u16 = 2;
/// Flag: the medium had errors.
pub const MEDIA_FAILURE: u16 = 4;

const NAME: &[u8; 8] = b"EXFAT   ";
/// What stands there while a relink is under way: no driver and no repair tool takes the volume for exFAT.
const CLOSED_NAME: &[u8; 8] = b"UNIMAGE\0";
/// The most clusters that a volume may have: 2^32 - 11.
const MOST_CLUSTERS: u64 = 0xFFFF_FFF5;

/// What the boot sector says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// A sector has 2 to the power of this bytes: 9 to 12.
    pub sector_shift: u32,
    /// A cluster has 2 to the power of this sectors.
    pub cluster_shift: u32,
    /// Sectors of the volume.
    pub sectors: u64,
    /// First sector of the first table.
    pub fat_sector: u32,
    /// Sectors of one table.
    pub fat_sectors: u32,
    /// Tables: 1, or 2 (TexFAT).
    pub fats: u32,
    /// Sector at which cluster 2 begins.
    pub heap_sector: u32,
    /// Clusters; they are numbered from 2.
    pub clusters: u32,
    /// First cluster of the root directory.
    pub root: u32,
    /// Serial number.
    pub serial: u32,
    /// Revision: major in the high byte, minor in the low one.
    pub revision: u16,
    /// [`SECOND`], [`DIRTY`], [`MEDIA_FAILURE`].
    pub flags: u16,
    /// Percent of the clusters in use, 0xFF for unknown.
    pub percent: u8,
}

impl Boot {
    /// The boot sector in `head`, its first 512 bytes.
    ///
    /// # Errors
    /// [`crate::error::Error::Corrupt`] with the first field that no exFAT volume can have.
    pub fn decode(head: Fields<'_, Volume>) -> Result<Self> {
        if head.slice(NAME_AT, NAME.len())? != NAME {
            return Err(head.wrong(NAME_AT, "the name EXFAT"));
        }
        let sector_shift = u32::from(head.u8(0x6C)?);
        if !(9..=12).contains(&sector_shift) {
            return Err(head.wrong(0x6C, "sectors of 512 to 4096 bytes"));
        }
        let cluster_shift = u32::from(head.u8(0x6D)?);
        if cluster_shift > 25_u32.saturating_sub(sector_shift) {
            return Err(head.wrong(0x6D, "clusters of at most 32 MiB"));
        }
        let fats = u32::from(head.u8(0x6E)?);
        if !(1..=2).contains(&fats) {
            return Err(head.wrong(0x6E, "1 or 2 tables"));
        }
        let (fat_sector, fat_sectors) = (head.u32(0x50)?, head.u32(0x54)?);
        if fat_sector == 0 || fat_sectors == 0 {
            return Err(head.wrong(0x50, "sectors of a table"));
        }
        let heap_sector = head.u32(0x58)?;
        let sectors = head.u64(0x48)?;
        let clusters = head.u32(0x5C)?;
        let tables_end = u64::from(fat_sectors).saturating_mul(fats.into()).saturating_add(fat_sector.into());
        if tables_end > heap_sector.into() {
            return Err(head.wrong(0x58, format!("the clusters behind the tables, which end at sector {tables_end}")));
        }
        let room = u64::from(fat_sectors).checked_shl(sector_shift.saturating_sub(2)).unwrap_or(0).saturating_sub(2);
        let most = sectors.saturating_sub(heap_sector.into()).checked_shr(cluster_shift).unwrap_or(0);
        let most = most.min(room).min(MOST_CLUSTERS);
        if clusters == 0 || u64::from(clusters) > most {
            return Err(head.wrong(0x5C, format!("1 to {most} clusters, not {clusters}")));
        }
        Ok(Self {
            sector_shift,
            cluster_shift,
            sectors,
            fat_sector,
            fat_sectors,
            fats,
            heap_sector,
            clusters,
            root: head.u32(0x60)?,
            serial: head.u32(0x64)?,
            revision: head.u16(0x68)?,
            flags: head.u16(FLAGS_AT)?,
            percent: head.u8(PERCENT_AT)?,
        })
    }
    /// Bytes of a sector.
    pub fn sector_bytes(&self) -> u64 {
        1_u64.checked_shl(self.sector_shift).unwrap_or(512)
    }
    /// Bytes of a cluster.
    pub fn cluster_bytes(&self) -> u64 {
        self.sector_bytes().checked_shl(self.cluster_shift).unwrap_or(512)
    }
    /// The table and bitmap in use: 0, or 1 where TexFAT says so.
    pub fn active(&self) -> u32 {
        u32::from(self.fats == 2 && self.flags & SECOND != 0)
    }
    /// The volume's byte at which the table of this number begins.
    pub fn fat_at(&self, fat: u32) -> u64 {
        let sector = u64::from(self.fat_sectors).saturating_mul(fat.into()).saturating_add(self.fat_sector.into());
        sector.saturating_mul(self.sector_bytes())
    }
    /// Bytes of one table.
    pub fn fat_bytes(&self) -> u64 {
        u64::from(self.fat_sectors).saturating_mul(self.sector_bytes())
    }
    /// The volume's byte at which cluster 2 begins.
    pub fn heap_at(&self) -> u64 {
        u64::from(self.heap_sector).saturating_mul(self.sector_bytes())
    }
    /// Whether a number is that of a cluster.
    pub fn has(&self, cluster: u32) -> bool {
        cluster >= 2 && cluster.wrapping_sub(2) < self.clusters
    }
    /// The volume's byte at which a cluster begins.
    pub fn cluster_at(&self, cluster: u32) -> u64 {
        let index = u64::from(cluster.saturating_sub(2));
        self.heap_at().saturating_add(index.saturating_mul(self.cluster_bytes()))
    }
    /// The cluster that begins at this byte of the volume; none where none does.
    pub fn cluster_of(&self, at: u64) -> Option<u32> {
        let index = at.checked_sub(self.heap_at())?;
        if index.checked_rem(self.cluster_bytes())? != 0 {
            return None;
        }
        let cluster = u32::try_from(index.checked_div(self.cluster_bytes())?).ok()?.checked_add(2)?;
        self.has(cluster).then_some(cluster)
    }
    /// Clusters that so many bytes need; as many as there can be where more.
    pub fn clusters_for(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(self.cluster_bytes().max(1))).unwrap_or(u32::MAX)
    }
    /// Bytes of the volume up to its end, as the boot sector has it.
    pub fn end(&self) -> u64 {
        self.sectors.saturating_mul(self.sector_bytes())
    }
    /// Bytes of a bitmap with a bit for each cluster.
    pub fn bitmap_bytes(&self) -> u64 {
        u64::from(self.clusters).div_ceil(8)
    }
}

/// The boot sector's 512 bytes under another name and marked dirty: nobody takes it for an exFAT volume.
pub fn closed(boot: Vec<u8>) -> Vec<u8> {
    let mut boot = with_flag(boot, DIRTY);
    // A boot sector is longer than this; a shorter one could not have been decoded.
    let _fits = put(&mut boot, NAME_AT, CLOSED_NAME);
    boot
}

fn with_flag(mut boot: Vec<u8>, flag: u16) -> Vec<u8> {
    if let Some(low) = boot.get_mut(FLAGS_AT) {
        *low |= flag.to_le_bytes()[0];
    }
    boot
}

/// The boot sector's 512 bytes with this part in use.
pub fn with_percent(mut boot: Vec<u8>, percent: u8) -> Vec<u8> {
    let _fits = put(&mut boot, PERCENT_AT, &[percent]);
    boot
}

/// Percent of `clusters` that `used` are, rounded down.
pub fn percent(used: u64, clusters: u32) -> u8 {
    let part = used.saturating_mul(100).checked_div(clusters.into()).unwrap_or(0);
    u8::try_from(part.min(100)).unwrap_or(100)
}

/// The checksum of a boot region: of its first 11 sectors, without the flags and the part in use.
pub fn boot_checksum(region: &[u8]) -> u32 {
    region
        .iter()
        .enumerate()
        .filter(|(i, _)| !matches!(*i, FLAGS_AT | 0x6B | PERCENT_AT))
        .fold(0, |sum, (_, byte)| add32(sum, *byte))
}

/// The checksum of an up-case table as it lies on the disk.
pub fn table_checksum(table: &[u8]) -> u32 {
    table.iter().fold(0, |sum, byte| add32(sum, *byte))
}

fn add32(sum: u32, byte: u8) -> u32 {
    sum.rotate_right(1).wrapping_add(byte.into())
}

/// Adds a byte to the checksum of an entry set or to the hash of a name.
#[inline]
pub fn add16(sum: u16, byte: u8) -> u16 {
    sum.rotate_right(1).wrapping_add(byte.into())
}

/// The bytes of a structure that lie at a byte of the volume.
pub fn fields<'a>(name: &'static str, at: u64, bytes: &'a [u8]) -> Fields<'a, Volume> {
    Fields::new(name, Offset::new(at), bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot() -> Vec<u8> {
        let mut b = vec![0; 512];
        b[3..11].copy_from_slice(b"EXFAT   ");
        b[0x48..0x50].copy_from_slice(&8192u64.to_le_bytes());
        for (at, value) in [(0x50, 24u32), (0x54, 8), (0x58, 128), (0x5C, 1008), (0x60, 5), (0x64, 0x1234_ABCD)] {
            b[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        b[0x69] = 1;
        b[0x6C] = 9;
        b[0x6D] = 3;
        b[0x6E] = 1;
        b
    }

    #[test]
    fn places() {
        let b = boot();
        let boot = Boot::decode(fields("boot", 0, &b)).unwrap();
        assert_eq!((boot.cluster_bytes(), boot.heap_at(), boot.fat_at(0), boot.revision), (4096, 65_536, 12_288, 256));
        assert_eq!((boot.cluster_at(3), boot.cluster_of(69_632), boot.cluster_of(69_633)), (69_632, Some(3), None));
        assert_eq!((boot.cluster_of(65_536 - 4096), boot.cluster_of(boot.end())), (None, None));
        assert_eq!((boot.has(1), boot.has(2), boot.has(1009), boot.has(1010)), (false, true, true, false));
    }

    #[test]
    fn what_no_volume_can_have() {
        for (at, value, word) in [
            (3, b'x', "EXFAT"),
            (0x6C, 8, "sectors of"),
            (0x6C, 13, "sectors of"),
            (0x6D, 17, "32 MiB"),
            (0x6E, 0, "tables"),
            (0x6E, 3, "tables"),
            (0x5C, 0xF1, "1 to 1008 clusters"),
            (0x54, 0, "of a table"),
            (0x54, 120, "behind the tables"),
        ] {
            let mut b = boot();
            b[at] = value;
            let error = Boot::decode(fields("boot", 0, &b)).unwrap_err().to_string();
            assert!(error.contains(word), "{at:#x}: {error}");
        }
    }

    #[test]
    fn flags_and_percent_do_not_count_for_the_checksum() {
        let mut region = vec![7; 512 * SUMMED_SECTORS];
        let sum = boot_checksum(&region);
        for at in [FLAGS_AT, FLAGS_AT + 1, PERCENT_AT] {
            region[at] = 0;
        }
        assert_eq!(boot_checksum(&region), sum);
        region[PERCENT_AT + 1] = 0;
        assert_ne!(boot_checksum(&region), sum);
        assert_eq!([percent(0, 3), percent(1, 3), percent(2, 3), percent(3, 3)], [0, 33, 66, 100]);
    }
}
