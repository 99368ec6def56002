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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A boot sector as the specification lays it out.
    fn encode(width: Width, sector: u16, cluster_sectors: u8, clusters: u32, serial: u32, state: u8) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        let wide = width == Width::Fat32;
        let root_entries: u16 = if wide { 0 } else { 512 };
        let fat = width.bytes_for(u64::from(clusters) + 2).div_ceil(sector.into()) as u32;
        let root = (u32::from(root_entries) * 32).div_ceil(sector.into());
        let sectors = 8 + 2 * fat + root + clusters * u32::from(cluster_sectors);
        let mut field = |at: usize, bytes: &[u8]| assert!(put(&mut head, at, bytes));
        field(0x0B, &sector.to_le_bytes());
        field(0x0D, &[cluster_sectors, 8, 0, 2]);
        field(0x11, &root_entries.to_le_bytes());
        field(0x15, &[0xF8]);
        match u16::try_from(sectors) {
            Ok(small) if !wide => field(0x13, &small.to_le_bytes()),
            _ => field(0x20, &sectors.to_le_bytes()),
        }
        if wide {
            field(0x24, &fat.to_le_bytes());
            field(0x2C, &2u32.to_le_bytes());
            field(0x30, &[1, 0, 6, 0]);
        } else {
            field(0x16, &(fat as u16).to_le_bytes());
        }
        let at = if wide { 0x41 } else { 0x25 };
        field(at, &[state, 0x29]);
        field(at + 2, &serial.to_le_bytes());
        head
    }

    #[test]
    fn the_width_follows_from_the_number_of_clusters() {
        let all = [(4084, Width::Fat12), (4085, Width::Fat16), (65_524, Width::Fat16), (65_525, Width::Fat32)];
        assert!(all.iter().all(|(clusters, width)| Width::of(*clusters) == *width));
    }

    #[test]
    fn fields_that_no_volume_can_have() {
        let good = encode(Width::Fat16, 512, 4, 5000, 1, 0);
        assert!(Boot::decode(fields("boot", 0, &good)).is_ok());
        for (at, bytes) in [
            (0x0B, &[0, 0][..]),
            (0x0B, &[1, 2]),
            (0x0B, &[0, 0x20]),
            (0x0D, &[0]),
            (0x0D, &[3]),
            (0x0E, &[0, 0]),
            (0x10, &[0]),
            (0x10, &[9]),
            (0x15, &[0xF1]),
            (0x13, &[9, 0]),
            (0x16, &[0, 0]),
            (0x11, &[0, 0]),
        ] {
            let mut bad = good.clone();
            assert!(put(&mut bad, at, bytes));
            let why = Boot::decode(fields("boot", 0, &bad)).map_err(|e| e.to_string());
            assert!(why.as_ref().is_err_and(|why| why.contains("boot at volume offset")), "{at:#x}: {why:?}");
        }
        assert!(Boot::decode(fields("boot", 0, &good[..20])).is_err());
    }

    proptest! {
        #[test]
        fn a_boot_sector_comes_back(form in 0usize..3, n in 0u32..3_000_000, sector in 0u16..4, cluster in 0u32..8, serial: u32, state: u8) {
            let (width, from, to) = [(Width::Fat12, 1, 4085), (Width::Fat16, 4085, 65_525), (Width::Fat32, 65_525, 3_000_000)][form];
            let (clusters, sector) = (from + n % (to - from), 512 << sector);
            let bytes = encode(width, sector, 1 << cluster, clusters, serial, state);
            let boot = Boot::decode(fields("boot", 0, &bytes)).unwrap();
            prop_assert_eq!((boot.width, boot.clusters, boot.sector, boot.cluster_sectors), (width, clusters, sector.into(), 1 << cluster));
            prop_assert_eq!((boot.serial, boot.state, boot.short_table), (Some(serial), state, false));
            prop_assert_eq!(boot.end(), boot.sector_at(boot.sectors));
            let dirty = boot.with_state(bytes.clone(), true);
            prop_assert_eq!(Boot::decode(fields("boot", 0, &dirty)).unwrap().state, state | STATE_DIRTY);
            prop_assert!(Boot::decode(fields("boot", 0, &closed(bytes))).is_err());
            for n in [2, clusters / 2 + 2, clusters + 1] {
                prop_assert_eq!(boot.cluster_of(boot.cluster_at(n)), Some(n));
                prop_assert_eq!(boot.cluster_of(boot.cluster_at(n) + 1), None);
            }
            prop_assert_eq!(boot.cluster_of(boot.end()), None);
        }
        #[test]
        fn any_bytes_can_be_a_boot_sector(mut bytes in proptest::collection::vec(any::<u8>(), 512), sector in 0u16..5, cluster in 0u32..8) {
            bytes[0x0B..0x0D].copy_from_slice(&(256u16 << sector).to_le_bytes());
            bytes[0x0D] = 1 << cluster;
            bytes[0x15] = 0xF8;
            bytes[0x10] &= 3;
            if let Ok(boot) = Boot::decode(fields("boot", 0, &bytes)) {
                prop_assert!(boot.clusters > 0 && boot.has(2) && !boot.has(boot.clusters + 2));
                prop_assert!(u64::from(boot.clusters) + 2 <= boot.width.entries_in(boot.fat_bytes()));
            }
        }
        #[test]
        fn fsinfo_comes_back(free: u32, next: u32, mut sector in proptest::collection::vec(any::<u8>(), 512)) {
            sector[..4].copy_from_slice(b"RRaA");
            sector[0x1E4..0x1E8].copy_from_slice(b"rrAa");
            sector[0x1FC..].copy_from_slice(&[0, 0, 0x55, 0xAA]);
            let new = FsInfo { free, next };
            let encoded = new.encode(sector.clone());
            prop_assert_eq!(FsInfo::decode(fields("FSInfo", 0, &encoded)).unwrap(), new);
            prop_assert_eq!((&encoded[..0x1E8], &encoded[0x1F0..]), (&sector[..0x1E8], &sector[0x1F0..]));
            for at in [0, 0x1E4, 0x1FE] {
                let mut bad = sector.clone();
                bad[at] ^= 1;
                prop_assert!(FsInfo::decode(fields("FSInfo", 0, &bad)).is_err());
            }
        }
    }
}
