//! Group descriptors.
//!
//! Source: the kernel's "ext4 Data Structures and Algorithms", section "Block Group Descriptors".

use super::superblock::{Superblock, incompat};
use crate::bytes::Fields;
use crate::error::Result;
use crate::extent::{Offset, Volume};

/// The inodes and their bitmap were never written.
pub const INODE_UNINIT: u16 = 1;
/// The block bitmap was never written.
pub const BLOCK_UNINIT: u16 = 2;

/// One group's descriptor, decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Block of the block bitmap.
    pub block_bitmap: u64,
    /// Block of the inode bitmap.
    pub inode_bitmap: u64,
    /// First block of the inode table.
    pub inode_table: u64,
    /// Free clusters.
    pub free_clusters: u32,
    /// Free inodes.
    pub free_inodes: u32,
    /// Directories.
    pub used_dirs: u32,
    /// [`INODE_UNINIT`], [`BLOCK_UNINIT`], 4: the inode table is zeroed.
    pub flags: u16,
    /// Inodes at the end of the table that were never used.
    pub unused_inodes: u32,
    /// Checksum of the block bitmap, 16 bits of it with narrow descriptors.
    pub block_bitmap_sum: u32,
    /// Checksum of the inode bitmap, 16 bits of it with narrow descriptors.
    pub inode_bitmap_sum: u32,
}

impl Group {
    /// Decodes the descriptor of `group` from its bytes at `at`. The second is whether its checksum is right.
    ///
    /// # Errors
    /// [`crate::error::Error::Corrupt`] where what it points at is not in the volume.
    pub fn decode(s: &Superblock, group: u32, at: Offset<Volume>, bytes: &[u8]) -> Result<(Self, bool)> {
        let f = Fields::new("ext group descriptor", at, bytes);
        let wide = s.has(incompat::B64) && s.descriptor >= 64;
        let long = |low: usize, high: usize| -> Result<u64> {
            Ok(u64::from(f.u32(low)?) | if wide { u64::from(f.u32(high)?) << 32 } else { 0 })
        };
        let short = |low: usize, high: usize| -> Result<u32> {
            Ok(u32::from(f.u16(low)?) | if wide { u32::from(f.u16(high)?) << 16 } else { 0 })
        };
        let g = Self {
            block_bitmap: long(0, 0x20)?,
            inode_bitmap: long(4, 0x24)?,
            inode_table: long(8, 0x28)?,
            free_clusters: short(0xc, 0x2c)?,
            free_inodes: short(0xe, 0x2e)?,
            used_dirs: short(0x10, 0x30)?,
            flags: f.u16(0x12)?,
            unused_inodes: short(0x1c, 0x32)?,
            block_bitmap_sum: short(0x18, 0x38)?,
            inode_bitmap_sum: short(0x1a, 0x3a)?,
        };
        let first = u64::from(s.first_data_block);
        let end = g.inode_table.checked_add(Self::table_blocks(s));
        if g.inode_table <= first || end.is_none_or(|end| end > s.blocks) {
            return Err(f.wrong(8, format!("an inode table within the {} blocks", s.blocks)));
        }
        let right = s.descriptor_checksum(group, bytes).is_none_or(|sum| f.u16(0x1e).is_ok_and(|have| have == sum));
        Ok((g, right))
    }
    /// Blocks of a group's inode table.
    pub fn table_blocks(s: &Superblock) -> u64 {
        u64::from(s.inodes_per_group).saturating_mul(u64::from(s.inode_size)).div_ceil(u64::from(s.block).max(1))
    }
}
