//! Who owns every cluster and every inode: what a host must agree with before it is written, and what the audit of a new
//! state counts again.

use std::collections::HashMap;
use std::ops::Range;

use super::bits::Bits;
use super::checksum::crc32c;
use super::group::{BLOCK_UNINIT, Group, INODE_UNINIT};
use super::inode::{RESIZE, ROOT};
use super::names::Dots;
use super::read::Found;
use super::resolve::Mapping;
use super::scan::Node;
use super::superblock::{Superblock, incompat};
use super::sweep::sweep;
use super::volume::Ext;
use crate::error::Result;
use crate::fs::Tree;

/// Everything that a walk found, and the volume's own tables beside it.
#[derive(Debug)]
pub struct Census {
    /// The walk.
    pub tree: Tree,
    /// Inodes in use, ascending.
    pub nodes: Vec<Node>,
    /// Where their contents are.
    pub maps: Vec<Mapping>,
    /// Clusters that the tables say are in use. Those behind the volume's end are, too.
    pub clusters: Bits,
    /// Inodes that the tables say are in use, from inode 1 on.
    pub inodes: Bits,
    /// What does not agree, one sentence each, the first of each kind.
    pub faults: Vec<String>,
}

impl Superblock {
    /// The cluster that a block is in, counted from the first one.
    pub fn cluster_of(&self, block: u64) -> u64 {
        block.saturating_sub(self.first_data_block.into()).checked_div(self.ratio.into()).unwrap_or(0)
    }
    /// The first block of a cluster.
    pub fn cluster_block(&self, cluster: u64) -> u64 {
        cluster.saturating_mul(self.ratio.into()).saturating_add(self.first_data_block.into())
    }
    /// The clusters of a group.
    pub fn clusters_of(&self, group: u32) -> Range<u64> {
        let per = u64::from(self.clusters_per_group);
        let start = per.saturating_mul(group.into());
        start..start.saturating_add(per)
    }
    /// The inodes of a group, from 0 on.
    pub fn inodes_of(&self, group: u32) -> Range<u64> {
        let per = u64::from(self.inodes_per_group);
        let start = per.saturating_mul(group.into());
        start..start.saturating_add(per)
    }
    /// Clusters of the volume.
    pub fn cluster_count(&self) -> u64 {
        self.blocks.saturating_sub(self.first_data_block.into()).div_ceil(u64::from(self.ratio).max(1))
    }
}

impl Census {
    /// Free clusters.
    pub fn free(&self) -> u64 {
        self.clusters.len().saturating_sub(self.clusters.count(0..self.clusters.len()))
    }
    /// The inode of a number, with its map.
    pub fn node(&self, number: u32) -> Option<(&Node, &Mapping)> {
        let at = self.nodes.binary_search_by_key(&number, |n| n.number).ok()?;
        Some((self.nodes.get(at)?, self.maps.get(at)?))
    }
}

/// The type that an entry of a directory has for a mode.
pub(super) fn type_of(mode: u16) -> u8 {
    match mode >> 12 {
        8 => 1,
        4 => 2,
        2 => 3,
        6 => 4,
        1 => 5,
        12 => 6,
        10 => 7,
        _ => 0,
    }
}

/// Collects sentences: the first of each kind, and how many more there are.
#[derive(Default)]
struct Faults(Vec<(&'static str, String, u64)>);

impl Faults {
    fn add(&mut self, kind: &'static str, what: impl FnOnce() -> String) {
        match self.0.iter_mut().find(|f| f.0 == kind) {
            Some(found) => found.2 = found.2.saturating_add(1),
            None => self.0.push((kind, what(), 0)),
        }
    }
    fn sentences(self) -> Vec<String> {
        let one = |(_, what, more): (_, String, u64)| match more {
            0 => what,
            more => format!("{what}, and {more} more of the kind"),
        };
        self.0.into_iter().map(one).collect()
    }
}

impl Ext {
    /// Counts who owns what.
    ///
    /// # Errors
    /// What the walk meets.
    pub(super) fn census(&self) -> Result<Census> {
        let s = &self.superblock;
        let mut found = self.gather();
        let tree = self.build(&mut found, true)?;
        let mut faults = Faults::default();
        for p in tree.problems() {
            faults.add("damage", || format!("damage: {}", p.what));
        }
        if !s.clusters_per_group.is_multiple_of(8) || !s.inodes_per_group.is_multiple_of(8) {
            faults.add("groups", || "groups of whole bytes in the bitmaps were expected".into());
        }
        let metadata = self.metadata();
        let (clusters, inodes) = self.tables(&metadata, &mut faults);
        let owned = self.owned(&found, &metadata, &clusters, &mut faults);
        if let Some(n) = clusters.first_difference(&owned) {
            faults.add("clusters", || {
                let block = s.cluster_block(n);
                let is = if owned.has(n) { "in use but free by" } else { "nobody's but in use by" };
                format!(
                    "block {block} is {is} the block bitmaps, which differ in {} clusters",
                    clusters.differences(&owned)
                )
            });
        }
        self.inodes_agree(&found.nodes, &inodes, &mut faults);
        self.counts_agree(&found, &clusters, &inodes, &mut faults);
        self.links_agree(&found, &mut faults);
        let Found { nodes, maps, .. } = found;
        Ok(Census { tree, nodes, maps, clusters, inodes, faults: faults.sentences() })
    }

    /// Clusters of the file system's own tables, and what lies behind the volume's end.
    fn metadata(&self) -> Bits {
        let s = &self.superblock;
        let groups = u64::from(s.groups());
        let mut bits = Bits::new(groups.saturating_mul(s.clusters_per_group.into()));
        let mut mark = |first: u64, count: u64| {
            for block in first..first.saturating_add(count) {
                bits.set(s.cluster_of(block));
            }
        };
        let table = Group::table_blocks(s);
        for (n, group) in (0u32..).zip(&self.groups) {
            if s.group_has_super(n) {
                // The superblock of group 0 is where byte 1,024 is.
                mark(if n == 0 { 1024u64.checked_div(s.block.into()).unwrap_or(0) } else { s.group_start(n) }, 1);
            }
            if let Some((g, _)) = group {
                mark(g.block_bitmap, 1);
                mark(g.inode_bitmap, 1);
                mark(g.inode_table, table);
            }
        }
        for (first, count) in self.descriptor_blocks() {
            mark(first, count);
        }
        if s.has(incompat::MMP) {
            mark(s.mmp_block, 1);
        }
        // With clusters and blocks of 1 KiB, the boot block is in the first cluster; without, it is before it.
        if s.first_data_block == 0 {
            mark(0, 1);
        }
        for n in s.cluster_count()..bits.len() {
            bits.set(n);
        }
        bits
    }

    /// Where descriptors and their copies lie: first block, count.
    fn descriptor_blocks(&self) -> Vec<(u64, u64)> {
        let s = &self.superblock;
        let per = s.descriptors_per_block();
        let count = s.groups().div_ceil(per);
        let meta = s.has(incompat::META_BG);
        let old = if meta { count.min(s.first_meta_bg) } else { count };
        let mut out = Vec::new();
        if old > 0 {
            let after = |g: u32| {
                let start = if g == 0 { 1024u64.checked_div(s.block.into()).unwrap_or(0) } else { s.group_start(g) };
                (start.saturating_add(1), u64::from(old))
            };
            out.extend((0..s.groups()).filter(|g| s.group_has_super(*g)).map(after));
        }
        for index in old..count {
            let first = index.saturating_mul(per);
            let last = first.saturating_add(per.saturating_sub(1));
            for group in [first, first.saturating_add(1), last] {
                if group < s.groups() {
                    out.push((s.meta_descriptors(group), 1));
                }
            }
        }
        out
    }

    /// Every cluster that has an owner. `used`: those that the bitmaps have.
    fn owned(&self, found: &Found, metadata: &Bits, used: &Bits, faults: &mut Faults) -> Bits {
        let s = &self.superblock;
        let mut bits = metadata.clone();
        let mut shared: HashMap<u64, u32> = HashMap::new();
        for (node, map) in found.nodes.iter().zip(&found.maps) {
            let mut own: Vec<(u64, u64)> = map
                .runs
                .iter()
                .map(|r| (r.physical, r.len))
                .chain(map.nodes().iter().map(|n| (*n, 1)))
                .map(|(block, len)| (s.cluster_of(block), s.cluster_of(block.saturating_add(len).saturating_sub(1))))
                .collect();
            own.sort_unstable();
            let mut next = 0;
            for (first, last) in own {
                // Blocks of one cluster may be in several extents of one file.
                let first = if s.ratio > 1 { first.max(next) } else { first };
                // What is kept for descriptors lies in one cluster with descriptors; with blocks of 1 KiB mke2fs counts
                // one block too many into it, which no bitmap has.
                let kept = s.ratio > 1 && node.number == RESIZE;
                for n in (first..last.saturating_add(1)).filter(|n| !kept || used.has(*n)) {
                    if !bits.set(n) && !kept {
                        faults.add("owners", || {
                            format!("block {} of inode {} has another owner too", s.cluster_block(n), node.number)
                        });
                    }
                }
                next = last.saturating_add(1).max(next);
            }
            if node.inode.xattr_block != 0 {
                let users = shared.entry(node.inode.xattr_block).or_default();
                *users = users.saturating_add(1);
                if *users == 1 && !bits.set(s.cluster_of(node.inode.xattr_block)) {
                    faults.add("attributes", || {
                        format!("the attributes of inode {} are in another's block", node.number)
                    });
                }
            }
        }
        bits
    }

    /// The bitmaps of all groups, as they are on the disk or, where they were never written, as they would be.
    fn tables(&self, metadata: &Bits, faults: &mut Faults) -> (Bits, Bits) {
        let s = &self.superblock;
        let groups = u64::from(s.groups());
        let mut clusters = Bits::new(groups.saturating_mul(s.clusters_per_group.into()));
        let mut inodes = Bits::new(groups.saturating_mul(s.inodes_per_group.into()));
        // Block, whether of inodes, group.
        let mut wanted: Vec<(u64, bool, u32)> = Vec::new();
        for (n, group) in (0u32..).zip(&self.groups) {
            let Some((g, true)) = group else {
                faults.add("descriptors", || format!("the descriptor of group {n} is damaged"));
                continue;
            };
            let lazy = s.uninit_groups();
            if lazy && g.flags & BLOCK_UNINIT != 0 {
                let range = s.clusters_of(n);
                clusters.slice_mut(range.clone()).copy_from_slice(metadata.slice(range));
                if s.group_has_super(n) && !s.has(incompat::META_BG) {
                    let first = s.group_start(n).saturating_add(1);
                    let kept = u64::from(s.groups().div_ceil(s.descriptors_per_block()));
                    for block in 0..kept.saturating_add(s.reserved_descriptors.into()) {
                        clusters.set(s.cluster_of(first.saturating_add(block)));
                    }
                }
            } else {
                wanted.push((g.block_bitmap, false, n));
            }
            if !(lazy && g.flags & INODE_UNINIT != 0) {
                wanted.push((g.inode_bitmap, true, n));
            }
        }
        wanted.sort_unstable();
        if wanted.windows(2).any(|w| matches!(w, [a, b] if a.0 == b.0)) {
            faults.add("bitmaps", || "two bitmaps are in one block".into());
            wanted.dedup_by_key(|w| w.0);
        }
        let blocks: Vec<u64> = wanted.iter().map(|w| w.0).collect();
        let widths = [s.clusters_per_group / 8, s.inodes_per_group / 8].map(|w| w as usize);
        let read = sweep(&*self.volume, s.block, &blocks, |at, bytes| {
            let of_inodes = wanted.get(at).is_some_and(|w| w.1);
            let bits = bytes.ok()?.get(..if of_inodes { widths[1] } else { widths[0] })?.to_vec();
            let sum = crc32c(s.seed, &bits);
            Some((bits, sum))
        });
        let mask = if s.descriptor >= 64 { u32::MAX } else { 0xffff };
        for ((block, of_inodes, n), bits) in wanted.into_iter().zip(read) {
            let Some((bits, sum)) = bits else {
                faults.add("unreadable", || format!("the bitmap in block {block} can't be read"));
                continue;
            };
            let group = self.groups.get(n as usize).copied().flatten().map(|g| g.0).unwrap_or_default();
            let have = if of_inodes { group.inode_bitmap_sum } else { group.block_bitmap_sum };
            if s.metadata_csum() && (have ^ sum) & mask != 0 {
                faults.add("bitmap", || format!("the checksum of the bitmap in block {block} is wrong"));
            }
            let (table, range) =
                if of_inodes { (&mut inodes, s.inodes_of(n)) } else { (&mut clusters, s.clusters_of(n)) };
            let room = table.slice_mut(range);
            if room.len() == bits.len() {
                room.copy_from_slice(&bits);
            }
        }
        for n in s.cluster_count()..clusters.len() {
            clusters.set(n);
        }
        (clusters, inodes)
    }

    fn inodes_agree(&self, nodes: &[Node], inodes: &Bits, faults: &mut Faults) {
        let s = &self.superblock;
        let mut own = Bits::new(inodes.len());
        for n in 0..u64::from(s.first_inode.saturating_sub(1)) {
            own.set(n);
        }
        for node in nodes {
            own.set(u64::from(node.number).saturating_sub(1));
        }
        // Behind the last inode, and in groups whose bitmap was never written.
        for n in u64::from(s.inodes)..inodes.len() {
            if inodes.has(n) {
                own.set(n);
            }
        }
        if let Some(n) = own.first_difference(inodes) {
            faults.add("inodes", || {
                let is = if own.has(n) { "in use but free by" } else { "not in use but used by" };
                format!("inode {} is {is} the inode bitmaps", n.saturating_add(1))
            });
        }
    }

    /// What descriptors count.
    fn counts_agree(&self, found: &Found, clusters: &Bits, inodes: &Bits, faults: &mut Faults) {
        let s = &self.superblock;
        let mut dirs = vec![0u32; self.groups.len()];
        for node in found.nodes.iter().filter(|n| n.inode.mode & 0xf000 == 0x4000) {
            let group = node.number.saturating_sub(1).checked_div(s.inodes_per_group).unwrap_or(0);
            if let Some(slot) = dirs.get_mut(group as usize) {
                *slot = slot.saturating_add(1);
            }
        }
        let free =
            |bits: &Bits, range: Range<u64>| range.end.saturating_sub(range.start).saturating_sub(bits.count(range));
        for ((n, group), dirs) in (0u32..).zip(&self.groups).zip(dirs) {
            let Some((g, _)) = group else { continue };
            let counted = (free(clusters, s.clusters_of(n)), free(inodes, s.inodes_of(n)), dirs);
            let said = (u64::from(g.free_clusters), u64::from(g.free_inodes), g.used_dirs);
            if counted != said {
                faults.add("counts", || {
                    format!(
                        "group {n} counts {said:?} free clusters, free inodes and directories instead of {counted:?}"
                    )
                });
            }
            let unused = u64::from(g.unused_inodes);
            let range = s.inodes_of(n);
            let tail = range.end.saturating_sub(unused.min(u64::from(s.inodes_per_group)));
            if s.uninit_groups() && (tail..range.end).any(|i| inodes.has(i)) {
                faults.add("unused", || format!("group {n} has inodes in use among those that were never used"));
            }
        }
    }

    /// Names that lead to each inode, against its links.
    fn links_agree(&self, found: &Found, faults: &mut Faults) {
        let mut names: HashMap<u32, u32> = HashMap::new();
        let mut subdirs: HashMap<u32, u32> = HashMap::new();
        let kind = |n: u32| {
            let at = found.nodes.binary_search_by_key(&n, |node| node.number).ok()?;
            found.nodes.get(at).map(|node| node.inode.mode & 0xf000)
        };
        let types = self.superblock.has(incompat::FILETYPE);
        let mut above: HashMap<u32, u32> = HashMap::from([(ROOT, ROOT)]);
        for name in &found.names.list {
            let mode = kind(name.inode);
            if types && mode.is_some_and(|m| type_of(m) != name.kind) {
                faults.add("types", || {
                    format!("a name in directory {} has another type than its inode {}", name.parent, name.inode)
                });
            }
            if name.dots.is_some() {
                continue;
            }
            let count = names.entry(name.inode).or_default();
            *count = count.saturating_add(1);
            if mode == Some(0x4000) {
                let count = subdirs.entry(name.parent).or_default();
                *count = count.saturating_add(1);
                above.insert(name.inode, name.parent);
            }
        }
        let mut dots: HashMap<u32, u32> = HashMap::new();
        for name in &found.names.list {
            let meant = match name.dots {
                Some(Dots::One) => Some(name.parent),
                Some(Dots::Two) => above.get(&name.parent).copied(),
                None => continue,
            };
            let count = dots.entry(name.parent).or_default();
            *count = count.saturating_add(1);
            if meant != Some(name.inode) {
                faults.add("dots", || format!("`.` or `..` of directory {} leads elsewhere", name.parent));
            }
        }
        for node in &found.nodes {
            if self.hidden(node) {
                continue;
            }
            let links = u32::from(node.inode.links);
            if node.inode.mode & 0xf000 == 0x4000 && dots.get(&node.number) != Some(&2) {
                faults.add("no dots", || format!("directory {} does not begin with `.` and `..`", node.number));
            }
            let right = if node.inode.mode & 0xf000 == 0x4000 {
                let below = subdirs.get(&node.number).copied().unwrap_or(0);
                // One for its name, one for its own `.`; the root has no name but itself. 1: more than can be counted.
                links == below.saturating_add(2) || links == 1 && below > 64_990
            } else {
                names.get(&node.number).copied().unwrap_or(0) == links
            };
            if !right {
                faults.add("links", || {
                    format!("inode {} has another number of names than its {links} links", node.number)
                });
            }
        }
        if names.contains_key(&ROOT) {
            faults.add("root", || "a name leads to the root directory".into());
        }
    }
}
