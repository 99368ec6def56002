//! The end of a change for a host's writer: the image's inode is deleted, what nobody took of it is free, and all tables
//! say so.

use std::collections::BTreeMap;

use super::inode::Inode;
use super::link::Build;
use super::make::place;
use super::scan::Node;
use super::tables::{Blocks, Tables, ordered, writes};
use crate::error::refused;
use crate::error::{Error, Result};
use crate::txn::{Group, merged};

impl Build<'_> {
    /// Writes an inode that is there with other contents of its fixed fields; what lies behind them stays.
    pub(super) fn rewrite(&self, node: &Node, inode: &Inode, tables: &mut Blocks) -> Result<()> {
        let s = &self.fs.superblock;
        let mut bytes = self.fs.volume.read_vec(node.at, s.inode_size.into())?;
        let wrong = || Error::corrupt(format!("ext inode {}", node.number), node.at, "room for its fields");
        let new = inode.encode(s).ok_or_else(wrong)?;
        // Fields that are not decoded (versions, fragments, the project) stay as they are.
        for (from, to) in [(0usize, 0x24usize), (0x28, 0x64), (0x6c, 0x70), (0x74, 0x76)] {
            let part = new.get(from..to).ok_or_else(wrong)?;
            if !crate::bytes::put(&mut bytes, from, part) {
                return Err(wrong());
            }
        }
        if !Inode::seal(s, node.number, &mut bytes, inode.extra) {
            return Err(wrong());
        }
        place(self.fs, tables, node.number, &bytes)
    }

    pub(super) fn release(&mut self, block: u64, len: u64) {
        let s = &self.fs.superblock;
        let last = s.cluster_of(block.saturating_add(len).saturating_sub(1));
        for n in s.cluster_of(block)..last.saturating_add(1) {
            self.maker.space.clusters.clear(n);
        }
    }

    /// The inode of a file of the image is deleted.
    pub(super) fn clear_inode(&mut self, node: &Node, tables: &mut Blocks) -> Result<()> {
        let s = &self.fs.superblock;
        let (root, _) = self.maker.tree(None, &[])?;
        // A time of deletion that can't be taken for the number of an orphan.
        let deleted = s.written.max(s.inodes.saturating_add(1));
        let inode = Inode { links: 0, deleted, size: 0, blocks: 0, block: root, xattr_block: 0, ..node.inode.clone() };
        let mut bytes = self.fs.volume.read_vec(node.at, s.inode_size.into())?;
        let new = inode.encode(s).ok_or_else(|| refused("the image's inode can't be written"))?;
        let mut fits = true;
        for (from, to) in [(0usize, 0x24usize), (0x28, 0x64), (0x68, 0x70), (0x74, 0x78)] {
            fits &= crate::bytes::put(&mut bytes, from, new.get(from..to).unwrap_or_default());
        }
        if !fits || !Inode::seal(s, node.number, &mut bytes, inode.extra) {
            return Err(refused("the image's inode can't be written"));
        }
        place(self.fs, tables, node.number, &bytes)?;
        self.maker.space.inodes.clear(u64::from(node.number).saturating_sub(1));
        Ok(())
    }

    /// What nobody took of the image is free.
    pub(super) fn free_rest(&mut self, tables: &mut Blocks) -> Result<()> {
        for range in std::mem::take(&mut self.maker.filled) {
            let (first, count) = self.clusters_in(range);
            (first..first.saturating_add(count)).for_each(|n| _ = self.unclaimed.clear(n));
            self.maker.filled.push(range);
        }
        let rest: Vec<u64> = (0..self.unclaimed.len()).filter(|n| self.unclaimed.has(*n)).collect();
        for n in rest {
            self.maker.space.clusters.clear(n);
        }
        self.release_attributes(tables)
    }

    /// The blocks of attributes of the image's files: so many users fewer, or free.
    fn release_attributes(&mut self, tables: &mut Blocks) -> Result<()> {
        let s = &self.fs.superblock;
        let mut fewer: BTreeMap<u64, usize> = BTreeMap::new();
        for block in self.gone.iter().map(|g| g.node.inode.xattr_block).filter(|b| *b != 0) {
            let n = fewer.entry(block).or_default();
            *n = n.saturating_add(1);
        }
        for (block, gone) in fewer {
            let users = self.census.nodes.iter().filter(|n| n.inode.xattr_block == block).count();
            let left = users.saturating_sub(gone);
            if left == 0 {
                self.release(block, 1);
                continue;
            }
            let left = u32::try_from(left).unwrap_or(u32::MAX);
            let bytes = tables.edit(self.fs, block)?;
            super::xattr::seal_block(bytes, block, left, s.metadata_csum().then_some(s.seed));
        }
        Ok(())
    }

    /// Everything that is left to say of the new state.
    pub(super) fn finish(&mut self, after_dirs: &Blocks, after_image: &Blocks) -> Result<()> {
        let fs = self.fs;
        let s = &fs.superblock;
        let order = ordered(fs, &self.tables, after_dirs, after_image)?;
        let new = fs.new_tables(&Tables {
            clusters: (&self.census.clusters, &self.maker.space.clusters),
            inodes: (&self.census.inodes, &self.maker.space.inodes),
            dirs: &self.dirs,
        })?;
        let empty = Blocks::default();
        let bitmaps = new.bitmaps.changed(fs, &empty)?;
        // Only what the union changes needs to be written before.
        let union: BTreeMap<u64, Vec<u8>> =
            new.union.changed(fs, &empty)?.into_iter().filter(|(at, _)| bitmaps.contains_key(at)).collect();
        let descriptors = new.descriptors.changed(fs, &empty)?;
        let interim = writes(union).into_iter().chain(writes(order.interim)).map(|w| (0usize, w));
        self.staging.interim = interim.collect();
        let [inodes, dirs, image] = order.groups;
        let groups = [
            ("new inodes", inodes),
            ("directories", dirs),
            ("image inode", image),
            ("bitmaps", bitmaps),
            ("descriptors", descriptors),
        ];
        self.staging.groups =
            groups.into_iter().map(|(name, sectors)| Group { name, writes: writes(sectors) }).collect();
        self.staging.groups.retain(|g| !g.writes.is_empty());
        self.staging.quarantine = fs.switch(new.free, self.large_file)?;
        self.staging.slack.sort_unstable();
        self.staging.fresh = std::mem::take(&mut self.maker.fresh);
        self.staging.fresh.sort_by_key(|f| f.at);
        self.staging.filled = merged(std::mem::take(&mut self.maker.filled));
        // Whoever writes to the volume changes a bitmap or a descriptor.
        let mut witnesses: Vec<(u64, u64)> = Vec::new();
        let size = u64::from(s.block);
        for (g, _) in fs.groups.iter().flatten() {
            witnesses.extend([g.block_bitmap, g.inode_bitmap].map(|b| (s.byte(b).get(), size)));
        }
        for index in 0..s.groups().div_ceil(s.descriptors_per_block()) {
            witnesses.push((s.byte(s.descriptor_block(index).0).get(), size));
        }
        self.staging.witness(witnesses);
        Ok(())
    }
}
