//! The superblock: 1,024 bytes at byte 1,024 of the volume, with copies at the starts of some groups.
//!
//! Source: the kernel's "ext4 Data Structures and Algorithms", section "Super Block".

use super::checksum::{crc16, crc32c};
use crate::bytes::Fields;
use crate::error::{Error, Result};
use crate::extent::{Offset, Volume};

/// Bytes of a superblock, and the byte of the volume at which the first one lies.
pub const SUPERBLOCK: usize = 1024;
/// The magic number at 0x38.
pub const MAGIC: u16 = 0xef53;

/// Features that need not be known to read or write.
pub mod compat {
    /// There is a journal.
    pub const HAS_JOURNAL: u32 = 0x4;
    /// Directories may have hash indexes.
    pub const DIR_INDEX: u32 = 0x20;
    /// Blocks are kept for the growth of the descriptor table.
    pub const RESIZE_INODE: u32 = 0x10;
    /// Copies of the superblock are in (at most) two groups that the superblock names.
    pub const SPARSE_SUPER2: u32 = 0x200;
    /// The journal may hold fast commits.
    pub const FAST_COMMIT: u32 = 0x400;
    /// A hidden inode lists orphans.
    pub const ORPHAN_FILE: u32 = 0x1000;
}

/// Features that must be known to read.
pub mod incompat {
    /// Files may be compressed (never in the kernel).
    pub const COMPRESSION: u32 = 0x1;
    /// Directory entries tell the type.
    pub const FILETYPE: u32 = 0x2;
    /// The journal is to be replayed.
    pub const RECOVER: u32 = 0x4;
    /// It is a journal for other volumes.
    pub const JOURNAL_DEV: u32 = 0x8;
    /// Descriptor blocks lie in the groups that they describe.
    pub const META_BG: u32 = 0x10;
    /// Files may have extent trees.
    pub const EXTENTS: u32 = 0x40;
    /// Block numbers have 64 bits.
    pub const B64: u32 = 0x80;
    /// Multi-mount protection.
    pub const MMP: u32 = 0x100;
    /// Tables of several groups lie together.
    pub const FLEX_BG: u32 = 0x200;
    /// Values of extended attributes may be inodes.
    pub const EA_INODE: u32 = 0x400;
    /// Directory entries carry data (Lustre).
    pub const DIRDATA: u32 = 0x1000;
    /// The seed of all checksums is in the superblock.
    pub const CSUM_SEED: u32 = 0x2000;
    /// Large directories.
    pub const LARGEDIR: u32 = 0x4000;
    /// Contents may lie in inodes.
    pub const INLINE_DATA: u32 = 0x8000;
    /// Contents and names may be encrypted.
    pub const ENCRYPT: u32 = 0x1_0000;
    /// Directories may ignore case.
    pub const CASEFOLD: u32 = 0x2_0000;
    /// Ours (host-writers 8.1): the volume is between two states.
    pub const QUARANTINE: u32 = 0x4000_0000;
    /// What this reader knows.
    pub const READABLE: u32 = FILETYPE
        | RECOVER
        | META_BG
        | EXTENTS
        | B64
        | MMP
        | FLEX_BG
        | EA_INODE
        | CSUM_SEED
        | LARGEDIR
        | INLINE_DATA
        | ENCRYPT
        | CASEFOLD;
}

/// Features that must be known to write.
pub mod ro_compat {
    /// Copies of the superblock only in groups 0, 1 and powers of 3, 5 and 7.
    pub const SPARSE_SUPER: u32 = 0x1;
    /// A file is larger than 2 GiB.
    pub const LARGE_FILE: u32 = 0x2;
    /// Never used.
    pub const BTREE_DIR: u32 = 0x4;
    /// Inodes may count their blocks in file system blocks.
    pub const HUGE_FILE: u32 = 0x8;
    /// Descriptors have checksums (CRC-16), and groups may be uninitialised.
    pub const GDT_CSUM: u32 = 0x10;
    /// Directories may have more than 65,000 links.
    pub const DIR_NLINK: u32 = 0x20;
    /// Inodes tell how large they are.
    pub const EXTRA_ISIZE: u32 = 0x40;
    /// Quota files are kept.
    pub const QUOTA: u32 = 0x100;
    /// Space is allocated in clusters of blocks.
    pub const BIGALLOC: u32 = 0x200;
    /// All metadata has checksums (CRC-32C).
    pub const METADATA_CSUM: u32 = 0x400;
    /// Must never be written.
    pub const READONLY: u32 = 0x1000;
    /// Project quota.
    pub const PROJECT: u32 = 0x2000;
    /// Blocks may be shared by files.
    pub const SHARED_BLOCKS: u32 = 0x4000;
    /// Files may have verity data behind their ends.
    pub const VERITY: u32 = 0x8000;
    /// The orphan file lists something.
    pub const ORPHAN_PRESENT: u32 = 0x1_0000;
}

/// The superblock, decoded. Block numbers count blocks of [`block`](Self::block) bytes from the volume's start.
#[derive(Clone, Debug)]
pub struct Superblock {
    /// Inodes of the volume.
    pub inodes: u32,
    /// Blocks of the volume.
    pub blocks: u64,
    /// Free blocks.
    pub free_blocks: u64,
    /// Free inodes.
    pub free_inodes: u32,
    /// The first block of group 0: 1 with blocks of 1 KiB without bigalloc, else 0.
    pub first_data_block: u32,
    /// Bytes of a block: 1,024 to 65,536.
    pub block: u32,
    /// Blocks of a cluster: 1 without bigalloc.
    pub ratio: u32,
    /// Blocks of a group.
    pub blocks_per_group: u32,
    /// Clusters of a group.
    pub clusters_per_group: u32,
    /// Inodes of a group.
    pub inodes_per_group: u32,
    /// State: 1 clean, 2 errors, 4 orphans being recovered.
    pub state: u16,
    /// The first inode that is a user's.
    pub first_inode: u32,
    /// Bytes of an inode: 128 to the block's size.
    pub inode_size: u16,
    /// The group that this copy lies in.
    pub group: u16,
    /// [`compat`].
    pub compat: u32,
    /// [`incompat`].
    pub incompat: u32,
    /// [`ro_compat`].
    pub ro_compat: u32,
    /// UUID.
    pub uuid: [u8; 16],
    /// Label, without padding.
    pub label: Vec<u8>,
    /// Inode of the journal; 0 for none or one on another device.
    pub journal_inode: u32,
    /// The first of the list of inodes that are deleted or cut when the volume is next mounted.
    pub last_orphan: u32,
    /// Seed of directory hashes.
    pub hash_seed: [u32; 4],
    /// Default version of directory hashes.
    pub hash_version: u8,
    /// Bytes of a group descriptor.
    pub descriptor: u16,
    /// Blocks behind the descriptors, and behind each copy of them, that are kept for their growth.
    pub reserved_descriptors: u16,
    /// With META_BG: the first meta group whose descriptors lie in it.
    pub first_meta_bg: u32,
    /// A copy of the journal inode's block map and its size, where there is one.
    pub journal_backup: Option<[u8; 68]>,
    /// Flags: 1 signed, 2 unsigned directory hash.
    pub flags: u32,
    /// log2 of the groups whose tables lie together.
    pub log_flex: u8,
    /// Inodes that are the file system's though their numbers are a user's: quota files, the orphan file.
    pub hidden: [u32; 4],
    /// The two groups with copies, with SPARSE_SUPER2.
    pub backups: [u32; 2],
    /// Seed of all metadata checksums.
    pub seed: u32,
    /// With MMP: its block.
    pub mmp_block: u64,
    /// When the volume was last written, in seconds.
    pub written: u32,
    /// Times that errors were counted.
    pub errors: u32,
    /// Whether the superblock's own checksum is right, or none is kept.
    pub intact: bool,
}

impl Superblock {
    /// Decodes the superblock in `bytes`, which lie at `at`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where a field makes no sense, so that nothing can be read by it. A wrong checksum is none:
    /// see [`intact`](Self::intact).
    pub fn decode(at: Offset<Volume>, bytes: &[u8]) -> Result<Self> {
        let f = Fields::new("ext superblock", at, bytes.get(..SUPERBLOCK).unwrap_or(bytes));
        if f.u16(0x38)? != MAGIC {
            return Err(f.wrong(0x38, "the magic number 0xEF53"));
        }
        let log = f.u32(0x18)?;
        if log > 6 {
            return Err(f.wrong(0x18, "blocks of 1 KiB to 64 KiB"));
        }
        let block = 1024u32 << log;
        let revision = f.u32(0x4c)?;
        let dynamic = revision >= 1;
        let [compat, incompat, ro_compat] =
            if dynamic { [f.u32(0x5c)?, f.u32(0x60)?, f.u32(0x64)?] } else { [0, 0, 0] };
        let bigalloc = ro_compat & ro_compat::BIGALLOC != 0;
        let log_cluster = f.u32(0x1c)?;
        let ratio = if !bigalloc {
            1
        } else {
            let more = log_cluster.checked_sub(log).filter(|more| *more <= 20);
            1u32 << more.ok_or_else(|| f.wrong(0x1c, "clusters of 1 to 2^20 blocks"))?
        };
        let b64 = incompat & incompat::B64 != 0;
        let high = |at: usize| -> Result<u64> { Ok(if b64 { u64::from(f.u32(at)?) << 32 } else { 0 }) };
        let blocks = u64::from(f.u32(0x4)?) | high(0x150)?;
        let inode_size = if dynamic { f.u16(0x58)? } else { 128 };
        let descriptor = if b64 { f.u16(0xfe)? } else { 32 };
        let uuid = f.array::<16>(0x68)?;
        let metadata_csum = ro_compat & ro_compat::METADATA_CSUM != 0;
        let sum = crc32c(!0, f.slice(0, 0x3fc)?);
        let s = Self {
            inodes: f.u32(0)?,
            blocks,
            free_blocks: u64::from(f.u32(0xc)?) | high(0x158)?,
            free_inodes: f.u32(0x10)?,
            first_data_block: f.u32(0x14)?,
            block,
            ratio,
            blocks_per_group: f.u32(0x20)?,
            clusters_per_group: if bigalloc { f.u32(0x24)? } else { f.u32(0x20)? },
            inodes_per_group: f.u32(0x28)?,
            state: f.u16(0x3a)?,
            first_inode: if dynamic { f.u32(0x54)? } else { 11 },
            inode_size,
            group: f.u16(0x5a)?,
            compat,
            incompat,
            ro_compat,
            uuid,
            label: f.slice(0x78, 16)?.split(|b| *b == 0).next().unwrap_or_default().to_vec(),
            journal_inode: if compat & compat::HAS_JOURNAL != 0 { f.u32(0xe0)? } else { 0 },
            last_orphan: f.u32(0xe8)?,
            hash_seed: [f.u32(0xec)?, f.u32(0xf0)?, f.u32(0xf4)?, f.u32(0xf8)?],
            hash_version: f.u8(0xfc)?,
            descriptor,
            reserved_descriptors: f.u16(0xce)?,
            first_meta_bg: f.u32(0x104)?,
            journal_backup: if f.u8(0xfd)? == 1 { Some(f.array(0x10c)?) } else { None },
            flags: f.u32(0x160)?,
            log_flex: f.u8(0x174)?,
            hidden: [f.u32(0x240)?, f.u32(0x244)?, f.u32(0x26c)?, f.u32(0x280)?],
            backups: [f.u32(0x24c)?, f.u32(0x250)?],
            seed: if incompat & incompat::CSUM_SEED != 0 { f.u32(0x270)? } else { crc32c(!0, &uuid) },
            mmp_block: f.u64(0x168)?,
            written: f.u32(0x30)?,
            errors: f.u32(0x194)?,
            intact: !metadata_csum || sum == f.u32(0x3fc)?,
        };
        s.check(&f)?;
        Ok(s)
    }

    /// The relations between fields on which every later computation rests.
    fn check(&self, f: &Fields<'_, Volume>) -> Result<()> {
        let bits = self.block.saturating_mul(8);
        let inode = u32::from(self.inode_size);
        if !inode.is_power_of_two() || inode < 128 || inode > self.block {
            return Err(f.wrong(0x58, "an inode size of a power of two from 128 to the block's"));
        }
        if self.inodes_per_group == 0 || self.inodes_per_group > bits {
            return Err(f.wrong(0x28, format!("1 to {bits} inodes in a group")));
        }
        if self.clusters_per_group == 0 || self.clusters_per_group > bits {
            return Err(f.wrong(0x20, format!("1 to {bits} blocks or clusters in a group")));
        }
        if self.clusters_per_group.checked_mul(self.ratio) != Some(self.blocks_per_group) {
            return Err(f.wrong(0x20, "a group of as many blocks as it has clusters of blocks"));
        }
        if self.blocks <= u64::from(self.first_data_block) || self.first_data_block > 1 {
            return Err(f.wrong(0x14, "a first data block of 0 or 1, within the blocks"));
        }
        if self.blocks.checked_mul(u64::from(self.block)).is_none() {
            return Err(f.wrong(0x4, "blocks that 64 bits can count the bytes of"));
        }
        let wide = u32::from(self.descriptor);
        if wide < 32 || !wide.is_power_of_two() || wide > self.block {
            return Err(f.wrong(0xfe, "a descriptor size of a power of two, at least 32"));
        }
        let groups = self.groups_wide();
        if groups > u64::from(u32::MAX) {
            return Err(f.wrong(0x4, "fewer than 2^32 groups"));
        }
        if groups.saturating_mul(u64::from(self.inodes_per_group)) < u64::from(self.inodes) {
            return Err(f.wrong(0, "no more inodes than the groups have"));
        }
        Ok(())
    }
    fn groups_wide(&self) -> u64 {
        self.blocks.saturating_sub(u64::from(self.first_data_block)).div_ceil(u64::from(self.blocks_per_group).max(1))
    }
    /// How many groups there are.
    pub fn groups(&self) -> u32 {
        u32::try_from(self.groups_wide()).unwrap_or(u32::MAX)
    }
    /// The first block of a group.
    pub fn group_start(&self, group: u32) -> u64 {
        u64::from(group)
            .saturating_mul(u64::from(self.blocks_per_group))
            .saturating_add(u64::from(self.first_data_block))
    }
    /// The group that a block is in, and its cluster there.
    pub fn locate(&self, block: u64) -> (u32, u32) {
        let rest = block.saturating_sub(u64::from(self.first_data_block));
        let per = u64::from(self.blocks_per_group).max(1);
        let cluster = rest.checked_rem(per).unwrap_or(0).checked_div(u64::from(self.ratio)).unwrap_or(0);
        (
            u32::try_from(rest.checked_div(per).unwrap_or(0)).unwrap_or(u32::MAX),
            u32::try_from(cluster).unwrap_or(u32::MAX),
        )
    }
    /// The clusters of a group: fewer in the last one.
    pub fn clusters_in(&self, group: u32) -> u32 {
        let blocks = self.blocks.saturating_sub(self.group_start(group)).min(u64::from(self.blocks_per_group));
        u32::try_from(blocks.div_ceil(u64::from(self.ratio).max(1))).unwrap_or(u32::MAX)
    }
    /// Whether a feature of [`incompat`] is set.
    pub fn has(&self, incompat: u32) -> bool {
        self.incompat & incompat != 0
    }
    /// Whether a feature of [`compat`] is set.
    pub fn has_compat(&self, compat: u32) -> bool {
        self.compat & compat != 0
    }
    /// Whether a feature of [`ro_compat`] is set.
    pub fn has_ro(&self, ro_compat: u32) -> bool {
        self.ro_compat & ro_compat != 0
    }
    /// Whether all metadata has checksums.
    pub fn metadata_csum(&self) -> bool {
        self.has_ro(ro_compat::METADATA_CSUM)
    }
    /// Whether groups may be uninitialised: their descriptors have checksums.
    pub fn uninit_groups(&self) -> bool {
        self.has_ro(ro_compat::METADATA_CSUM | ro_compat::GDT_CSUM)
    }
    /// The volume's byte at which a block begins.
    pub fn byte(&self, block: u64) -> Offset<Volume> {
        Offset::new(block.saturating_mul(u64::from(self.block)))
    }
    /// Bytes of the whole file system.
    pub fn bytes(&self) -> u64 {
        self.blocks.saturating_mul(u64::from(self.block))
    }
    /// Whether a group begins with a copy of the superblock (and, without META_BG, of the descriptors).
    pub fn group_has_super(&self, group: u32) -> bool {
        if group == 0 {
            return true;
        }
        if self.has_compat(compat::SPARSE_SUPER2) {
            return self.backups.contains(&group);
        }
        if group == 1 || !self.has_ro(ro_compat::SPARSE_SUPER) {
            return true;
        }
        [3u32, 5, 7].iter().any(|base| {
            let mut power = *base;
            while power < group {
                power = power.saturating_mul(*base);
            }
            power == group
        })
    }
    /// Group descriptors in a block.
    pub fn descriptors_per_block(&self) -> u32 {
        self.block.checked_div(u32::from(self.descriptor)).unwrap_or(1).max(1)
    }
    /// The block that holds block number `index` of the descriptor table, and the one that holds a copy of it, where there is one.
    pub fn descriptor_block(&self, index: u32) -> (u64, Option<u64>) {
        let per = self.descriptors_per_block();
        if !self.has(incompat::META_BG) || index < self.first_meta_bg {
            // The superblock is the block that holds byte 1,024, which is not the first data block with bigalloc and
            // blocks of 1 KiB.
            let first = if self.block == 1024 { 2 } else { 1 };
            let copy = (1..self.groups()).find(|g| self.group_has_super(*g));
            let from = |start: u64| start.saturating_add(1).saturating_add(u64::from(index));
            return (u64::from(index).saturating_add(first), copy.map(|g| from(self.group_start(g))));
        }
        let group = index.saturating_mul(per);
        let next = group.saturating_add(1);
        (self.meta_descriptors(group), (next < self.groups()).then(|| self.meta_descriptors(next)))
    }
    /// With META_BG: the block of a group in which descriptors lie, if they lie in it.
    pub fn meta_descriptors(&self, group: u32) -> u64 {
        let skip = if group == 0 && self.block == 1024 && self.first_data_block == 0 {
            2
        } else {
            u64::from(self.group_has_super(group))
        };
        self.group_start(group).saturating_add(skip)
    }
    /// The checksum of a descriptor with its field at 0x1E as zeros; none where none is kept.
    pub fn descriptor_checksum(&self, group: u32, bytes: &[u8]) -> Option<u16> {
        let (head, tail) = (bytes.get(..0x1e)?, bytes.get(0x20..).unwrap_or_default());
        if self.metadata_csum() {
            let sum = crc32c(crc32c(self.seed, &group.to_le_bytes()), head);
            let sum = crc32c(crc32c(sum, &[0, 0]), tail);
            return Some((sum & 0xffff) as u16);
        }
        if self.has_ro(ro_compat::GDT_CSUM) {
            let sum = crc16(crc16(crc16(!0, &self.uuid), &group.to_le_bytes()), head);
            let tail = if self.has(incompat::B64) { tail } else { &[] };
            return Some(crc16(sum, tail));
        }
        None
    }
    /// `ext2`, `ext3` or `ext4`, by the features as `blkid` tells them apart.
    pub fn kind(&self) -> &'static str {
        let ext3_incompat = incompat::FILETYPE | incompat::RECOVER | incompat::META_BG;
        let ext3_ro = ro_compat::SPARSE_SUPER | ro_compat::LARGE_FILE | 0x4;
        if self.incompat & !ext3_incompat != 0 || self.ro_compat & !ext3_ro != 0 {
            "ext4"
        } else if self.has_compat(compat::HAS_JOURNAL) {
            "ext3"
        } else {
            "ext2"
        }
    }
    /// Refuses what can't be read rightly.
    ///
    /// # Errors
    /// [`Error::Unsupported`] that names the features.
    pub fn readable(&self) -> Result<()> {
        if self.has(incompat::QUARANTINE) {
            return Err(Error::Unsupported(
                "this ext volume is between two states of an interrupted relink: run `unimage recover` with its journal"
                    .into(),
            ));
        }
        if self.has(incompat::JOURNAL_DEV) {
            return Err(Error::Unsupported("an ext journal device holds no files".into()));
        }
        let unknown = self.incompat & !incompat::READABLE;
        if unknown != 0 {
            return Err(Error::Unsupported(format!(
                "ext features that this program can't read: incompat {unknown:#x}"
            )));
        }
        Ok(())
    }
}
