//! The boot sector with its BIOS parameter block (BPB) and the FSInfo sector.
//!
//! Source: Microsoft, "FAT: General Overview of On-Disk Format", version 1.03; the state byte is Windows NT's.

use crate::bytes::{Fields, put};
use crate::error::Result;
use crate::extent::{Offset, Volume};

/// Bytes of the boot sector and of FSInfo that have a meaning, whatever the sector's size.
pub const HEAD: usize = 512;
/// Byte of the boot sector where bytes/sector stands: 0 there keeps everybody out (the quarantine).
pub const BYTES_PER_SECTOR_AT: usize = 0x0B;
/// Bit of the state byte: the volume was not closed.
pub const STATE_DIRTY: u8 = 1;
/// Bit of the state byte: the medium had errors, a surface test is due.
pub const STATE_ERRORS: u8 = 2;

/// Bits of an entry of the table. It follows from the number of clusters and from nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// Below 4,085 clusters.
    Fat12,
    /// Below 65,525 clusters.
    Fat16,
    /// More; 28 bits of 32 count.
    Fat32,
}

impl Width {
    /// The width for so many data clusters.
    pub fn of(clusters: u64) -> Self {
        match clusters {
            0..4085 => Self::Fat12,
            4085..65_525 => Self::Fat16,
            _ => Self::Fat32,
        }
    }
    /// `fat12`, `fat16`, `fat32`.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Fat12 => "fat12",
            Self::Fat16 => "fat16",
            Self::Fat32 => "fat32",
        }
    }
    /// The mark of a chain's end that is written: all ones.
    pub fn end(self) -> u32 {
        match self {
            Self::Fat12 => 0xFFF,
            Self::Fat16 => 0xFFFF,
            Self::Fat32 => 0x0FFF_FFFF,
        }
    }
    /// The mark of a bad cluster.
    pub fn bad(self) -> u32 {
        self.end() & !8
    }
    /// Bytes that the entries `0..entries` take.
    pub fn bytes_for(self, entries: u64) -> u64 {
        match self {
            Self::Fat12 => entries.saturating_mul(3).div_ceil(2),
            Self::Fat16 => entries.saturating_mul(2),
            Self::Fat32 => entries.saturating_mul(4),
        }
    }
    /// Whole entries in so many bytes.
    pub fn entries_in(self, bytes: u64) -> u64 {
        match self {
            Self::Fat12 => bytes.saturating_mul(2) / 3,
            Self::Fat16 => bytes / 2,
            Self::Fat32 => bytes / 4,
        }
    }
    /// The bits of entry 1 that say "closed cleanly" and "no errors", 0 where the width has none.
    pub fn good_bits(self) -> (u32, u32) {
        match self {
            Self::Fat12 => (0, 0),
            Self::Fat16 => (1 << 15, 1 << 14),
            Self::Fat32 => (1 << 27, 1 << 26),
        }
    }
}

/// What the boot sector says, in bytes and clusters where that is what is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// Bytes of a sector.
    pub sector: u32,
    /// Sectors of a cluster.
    pub cluster_sectors: u32,
    /// Sectors before the first table.
    pub reserved: u32,
    /// Tables.
    pub fats: u32,
    /// Slots of the fixed root directory; 0 on FAT32.
    pub root_entries: u32,
    /// Sectors of the volume.
    pub sectors: u32,
    /// Media descriptor, also the low byte of the table's entry 0.
    pub media: u8,
    /// Sectors of one table.
    pub fat_sectors: u32,
    /// Bits of an entry.
    pub width: Width,
    /// Data clusters; they are numbered from 2.
    pub clusters: u32,
    /// Whether the table is too small for all clusters of the volume; `clusters` is what it has room for.
    pub short_table: bool,
    /// FAT32: bit 7 no mirroring, bits 0 to 3 the active table then.
    pub ext_flags: u16,
    /// FAT32: must be 0.
    pub version: u16,
    /// FAT32: first cluster of the root directory; 0 otherwise.
    pub root_cluster: u32,
    /// FAT32: sector of FSInfo, where there is one.
    pub fsinfo: Option<u32>,
    /// FAT32: sector of the boot sector's copy, where there is one.
    pub backup: Option<u32>,
    /// State byte: [`STATE_DIRTY`], [`STATE_ERRORS`].
    pub state: u8,
    /// Serial number, where the boot sector has one.
    pub serial: Option<u32>,
    /// Label, where the boot sector has one.
    pub label: Option<[u8; 11]>,
}

impl Boot {
    /// The boot sector in `head`, its first 512 bytes.
    ///
    /// # Errors
    /// [`crate::error::Error::Corrupt`] with the first field that no FAT volume can have.
    pub fn decode(head: Fields<'_, Volume>) -> Result<Self> {
        let sector = u32::from(head.u16(BYTES_PER_SECTOR_AT)?);
        if !sector.is_power_of_two() || !(512..=4096).contains(&sector) {
            return Err(head.wrong(BYTES_PER_SECTOR_AT, "512, 1024, 2048 or 4096 bytes per sector"));
        }
        let cluster_sectors = u32::from(head.u8(0x0D)?);
        if !cluster_sectors.is_power_of_two() {
            return Err(head.wrong(0x0D, "a power of two of sectors per cluster"));
        }
        let reserved = u32::from(head.u16(0x0E)?);
        if reserved == 0 {
            return Err(head.wrong(0x0E, "reserved sectors"));
        }
        let fats = u32::from(head.u8(0x10)?);
        if !(1..=4).contains(&fats) {
            return Err(head.wrong(0x10, "1 to 4 tables"));
        }
        let root_entries = u32::from(head.u16(0x11)?);
        let media = head.u8(0x15)?;
        if media < 0xF8 && media != 0xF0 {
            return Err(head.wrong(0x15, "a media descriptor of 0xF0 or from 0xF8 on"));
        }
        let sectors = match u32::from(head.u16(0x13)?) {
            0 => head.u32(0x20)?,
            small => small,
        };
        let small_fat = u32::from(head.u16(0x16)?);
        let fat_sectors = if small_fat == 0 { head.u32(0x24)? } else { small_fat };
        if fat_sectors == 0 {
            return Err(head.wrong(0x24, "sectors of a table"));
        }
        let root_bytes = u64::from(root_entries).saturating_mul(super::dirent::SLOT_BYTES);
        let before_data = u64::from(fats)
            .saturating_mul(fat_sectors.into())
            .saturating_add(reserved.into())
            .saturating_add(root_bytes.div_ceil(sector.into()));
        let data =
            u64::from(sectors).checked_sub(before_data).and_then(|left| left.checked_div(cluster_sectors.into()));
        let Some(clusters) = data.filter(|clusters| *clusters > 0) else {
            return Err(head.wrong(0x20, format!("more sectors than the {before_data} before the first cluster")));
        };
        // A boot sector in the form of FAT32 can be nothing else, even with fewer clusters than Windows asks for.
        let width = if small_fat == 0 && root_entries == 0 { Width::Fat32 } else { Width::of(clusters) };
        if (small_fat == 0 || root_entries == 0) && width != Width::Fat32 || small_fat != 0 && width == Width::Fat32 {
            return Err(head.wrong(0x16, format!("the form of {} for {clusters} clusters", width.kind())));
        }
        let room = width.entries_in(u64::from(fat_sectors).saturating_mul(sector.into())).saturating_sub(2);
        // Numbers from the bad mark on are marks.
        let most = u64::from(width.bad()).saturating_sub(2);
        let usable = u32::try_from(clusters.min(room).min(most)).unwrap_or(0);
        if usable == 0 {
            return Err(head.wrong(0x24, "a table with room for a cluster"));
        }
        let fat32 = width == Width::Fat32;
        let (state_at, ext_at) = if fat32 { (0x41, 0x42) } else { (0x25, 0x26) };
        let extended = head.u8(ext_at)?;
        let sector_number = |at| -> Result<Option<u32>> {
            let n = u32::from(head.u16(at)?);
            Ok((fat32 && n != 0 && n != 0xFFFF && n < reserved).then_some(n))
        };
        Ok(Self {
            sector,
            cluster_sectors,
            reserved,
            fats,
            root_entries,
            sectors,
            media,
            fat_sectors,
            width,
            clusters: usable,
            short_table: u64::from(usable) < clusters,
            ext_flags: if fat32 { head.u16(0x28)? } else { 0 },
            version: if fat32 { head.u16(0x2A)? } else { 0 },
            root_cluster: if fat32 { head.u32(0x2C)? } else { 0 },
            fsinfo: sector_number(0x30)?,
            backup: sector_number(0x32)?,
            state: head.u8(state_at)?,
            serial: matches!(extended, 0x28 | 0x29).then(|| head.u32(ext_at.saturating_add(1))).transpose()?,
            label: (extended == 0x29).then(|| head.array(ext_at.saturating_add(5))).transpose()?,
        })
    }
    /// Byte of the boot sector where the state stands.
    pub fn state_at(&self) -> usize {
        if self.width == Width::Fat32 { 0x41 } else { 0x25 }
    }
    /// The volume's byte at which a sector begins.
    pub fn sector_at(&self, sector: u32) -> u64 {
        u64::from(sector).saturating_mul(self.sector.into())
    }
    /// Bytes of a cluster.
    pub fn cluster_bytes(&self) -> u64 {
        u64::from(self.cluster_sectors).saturating_mul(self.sector.into())
    }
    /// Bytes of one table, as the boot sector gives it; entries may take fewer.
    pub fn fat_bytes(&self) -> u64 {
        self.sector_at(self.fat_sectors)
    }
    /// The volume's byte at which the table of this number begins.
    pub fn fat_at(&self, fat: u32) -> u64 {
        self.sector_at(self.reserved).saturating_add(self.fat_bytes().saturating_mul(fat.into()))
    }
    /// The table that counts: the first, but on FAT32 without mirroring.
    pub fn active_fat(&self) -> u32 {
        let given = u32::from(self.ext_flags & 0xF);
        if self.mirrored() || given >= self.fats { 0 } else { given }
    }
    /// Whether all tables are kept equal.
    pub fn mirrored(&self) -> bool {
        self.ext_flags & 0x80 == 0
    }
    /// The volume's byte at which the fixed root directory begins, which is where the data begins on FAT32.
    pub fn root_at(&self) -> u64 {
        self.fat_at(self.fats)
    }
    /// Bytes of the fixed root directory; 0 on FAT32.
    pub fn root_bytes(&self) -> u64 {
        u64::from(self.root_entries).saturating_mul(super::dirent::SLOT_BYTES)
    }
    /// The volume's byte at which cluster 2 begins.
    pub fn data_at(&self) -> u64 {
        let root = self.root_bytes().div_ceil(self.sector.into()).saturating_mul(self.sector.into());
        self.root_at().saturating_add(root)
    }
    /// Whether a number is that of a data cluster.
    pub fn has(&self, cluster: u32) -> bool {
        cluster >= 2 && cluster.wrapping_sub(2) < self.clusters
    }
    /// The volume's byte at which a cluster begins.
    pub fn cluster_at(&self, cluster: u32) -> u64 {
        let index = u64::from(cluster.saturating_sub(2));
        self.data_at().saturating_add(index.saturating_mul(self.cluster_bytes()))
    }
    /// The cluster that begins at this byte of the volume; none where none does.
    pub fn cluster_of(&self, at: u64) -> Option<u32> {
        let index = at.checked_sub(self.data_at())?;
        if index.checked_rem(self.cluster_bytes())? != 0 {
            return None;
        }
        let cluster = u32::try_from(index.checked_div(self.cluster_bytes())?).ok()?.checked_add(2)?;
        self.has(cluster).then_some(cluster)
    }
    /// Bytes of the volume up to the end of its last cluster.
    pub fn end(&self) -> u64 {
        self.cluster_at(self.clusters.saturating_add(2))
    }
    /// The sector of the medium (512 bytes) of `boot` with the dirty bit of the state byte set or cleared.
    pub fn with_state(&self, mut boot: Vec<u8>, dirty: bool) -> Vec<u8> {
        if let Some(state) = boot.get_mut(self.state_at()) {
            *state = if dirty { *state | STATE_DIRTY } else { *state & !STATE_DIRTY };
        }
        boot
    }
}

/// The boot sector with bytes/sector 0: no driver and no repair tool takes it for a FAT volume.
pub fn closed(mut boot: Vec<u8>) -> Vec<u8> {
    // A boot sector is longer than this; a shorter one could not have been decoded.
    let _fits = put(&mut boot, BYTES_PER_SECTOR_AT, &[0, 0]);
    boot
}

/// What the FSInfo sector of FAT32 says; both are hints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FsInfo {
    /// Free clusters; all ones for unknown.
    pub free: u32,
    /// Where to look for a free cluster first; all ones for unknown.
    pub next: u32,
}

impl FsInfo {
    const FREE_AT: usize = 0x1E8;
    const NEXT_AT: usize = 0x1EC;

    /// The FSInfo in its sector.
    ///
    /// # Errors
    /// [`crate::error::Error::Corrupt`] where its signatures are not there.
    pub fn decode(sector: Fields<'_, Volume>) -> Result<Self> {
        if &sector.array::<4>(0)? != b"RRaA" {
            return Err(sector.wrong(0, "the signature RRaA"));
        }
        if &sector.array::<4>(0x1E4)? != b"rrAa" {
            return Err(sector.wrong(0x1E4, "the signature rrAa"));
        }
        if sector.u32(0x1FC)? != 0xAA55_0000 {
            return Err(sector.wrong(0x1FC, "the signature 00 00 55 AA"));
        }
        Ok(Self { free: sector.u32(Self::FREE_AT)?, next: sector.u32(Self::NEXT_AT)? })
    }
    /// Its sector with these values in it; whatever else it holds stays.
    pub fn encode(self, mut sector: Vec<u8>) -> Vec<u8> {
        // Sectors have at least 512 bytes.
        let _fits = put(&mut sector, Self::FREE_AT, &self.free.to_le_bytes())
            && put(&mut sector, Self::NEXT_AT, &self.next.to_le_bytes());
        sector
    }
}

/// `bytes` of the structure called `name` at byte `at` of the volume.
pub fn fields<'a>(name: &'static str, at: u64, bytes: &'a [u8]) -> Fields<'a, Volume> {
    Fields::new(name, Offset::new(at), bytes)
}
