//! The audit: the new state, read back by the reader, against what was asked for. It takes nothing from the writer but
//! where copies and new structures went.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::bits::Bits;
use super::census::Census;
use super::dir;
use super::extent_tree::{self, Runs};
use super::file_system::ExtFs;
use super::htree::Hasher;
use super::inode::{Inode, flags};
use super::link::number;
use super::make::{Kept, about, times};
use super::scan::Node;
use super::volume::Ext;
use crate::error::Result;
use crate::extent::{Extent, Map, Offset, ReadAt, Stream, Volume, What};
use crate::fs::asked::{self, Places, cut, not, printable, wrong};
use crate::fs::host::{Content, Job, NewEntry, NewKind};
use crate::fs::{Kind, ObjectId, Xattr};
use crate::txn::Staging;

struct Audit<'a> {
    old: &'a Ext,
    before: &'a Census,
    new: &'a Ext,
    now: &'a Census,
    job: &'a Job<'a>,
    staging: &'a Staging,
}

pub(super) fn audit(old: &ExtFs, after: Arc<dyn ReadAt<Volume>>, job: &Job<'_>, staging: &Staging) -> Result<()> {
    let new = ExtFs::new(super::open_ext(after)?.ok_or_else(|| wrong(1024, "superblock", "an ext volume"))?);
    if let Some(e) = new.ext.problems.first() {
        return Err(wrong(1024, "volume", format!("no damage, but: {e}")));
    }
    let now = new.census()?;
    if let Some(fault) = now.faults.first() {
        return Err(wrong(0, "volume", format!("that it agrees with itself, but: {fault}")));
    }
    let before = old.census()?;
    let old = &old.ext;
    let audit = Audit { old, before, new: &new.ext, now, job, staging };
    audit.superblock()?;
    audit.free_before()?;
    let gone = old.gone(audit.before, job.image)?;
    let images: Vec<&Node> = gone.iter().map(|g| g.node).collect();
    let target = old.target(audit.before, &job.tree.into)?;
    let added = audit.entries()?;
    let changed: Vec<u32> = gone.iter().map(|g| g.parent).chain([target.dir]).collect();
    audit.older(&added, &images, target.dir, target.made.len())?;
    for image in &images {
        audit.image(image)?;
    }
    audit.places(&added, &images, &changed)?;
    audit.indexes(&added, &changed)?;
    asked::slack(job, staging, audit.new.superblock.block.into())
}

impl Audit<'_> {
    /// Counts are those of the bitmaps; all else is as before.
    fn superblock(&self) -> Result<()> {
        let (a, b) = (&self.old.superblock, &self.new.superblock);
        let free = self.now.free().saturating_mul(b.ratio.into());
        let inodes = u64::from(b.inodes);
        let used: u64 = (0..inodes).map(|n| u64::from(self.now.inodes.has(n))).sum();
        if b.free_blocks != free || u64::from(b.free_inodes) != inodes.saturating_sub(used) {
            return Err(wrong(1024, "superblock", format!("{free} free blocks and the free inodes")));
        }
        let large = super::superblock::ro_compat::LARGE_FILE;
        let same = a.uuid == b.uuid
            && a.blocks == b.blocks
            && a.inodes == b.inodes
            && a.compat == b.compat
            && a.incompat == b.incompat
            && a.ro_compat | large == b.ro_compat | large
            && b.ro_compat & large >= a.ro_compat & large
            && a.state == b.state
            && a.seed == b.seed;
        if same { Ok(()) } else { Err(wrong(1024, "superblock", "only counts to change")) }
    }

    /// What is filled was free, and is all that newly belongs to somebody.
    fn free_before(&self) -> Result<()> {
        let s = &self.new.superblock;
        let unit = u64::from(s.block).saturating_mul(s.ratio.into()).max(1);
        let base = s.byte(s.first_data_block.into()).get();
        let mut filled = Bits::new(self.now.clusters.len());
        for (at, len) in &self.staging.filled {
            let from = at.get().saturating_sub(base);
            if from.checked_rem(unit) != Some(0) || len.checked_rem(unit) != Some(0) {
                return Err(wrong(at.get(), "filled range", "whole clusters"));
            }
            let first = from.checked_div(unit).unwrap_or(0);
            for n in first..first.saturating_add(len.checked_div(unit).unwrap_or(0)) {
                if self.before.clusters.has(n) || !filled.set(n) {
                    return Err(wrong(at.get(), "filled range", "clusters that were free"));
                }
            }
        }
        let (old, new) = (&self.before.clusters, &self.now.clusters);
        for ((a, b), f) in old.bytes().iter().zip(new.bytes()).zip(filled.bytes()) {
            if !a & b != *f {
                return Err(wrong(0, "filled ranges", "exactly the clusters that were free and no longer are"));
            }
        }
        Ok(())
    }

    /// Each new entry is there, and is what was asked for. The inodes that are new.
    fn entries(&self) -> Result<HashSet<u32>> {
        let tree = &self.now.tree;
        let mut added = HashSet::new();
        let top = asked::target(
            tree,
            self.job,
            |top, name| tree.child(top, name),
            |dir| {
                if self.before.node(number(self.now, dir)).is_none() {
                    added.insert(number(self.now, dir));
                }
            },
        )?;
        asked::each_entry(tree, top, self.job, self.staging, |entry, object, objects, copied| {
            if let NewKind::HardLink(first) = entry.kind {
                let same = objects.get(first).copied().flatten() == Some(object);
                return if same { Ok(()) } else { Err(not(entry, "the file of its first name")) };
            }
            let own = number(self.now, object);
            let of_image = || self.job.image.files().any(|f| own == number(self.before, f.object));
            if self.before.node(own).is_some() && !of_image() || !added.insert(own) {
                return Err(not(entry, "an inode of its own"));
            }
            self.entry(entry, object, copied)
        })?;
        Ok(added)
    }

    fn image_number(&self) -> u32 {
        number(self.before, self.job.image.named.object)
    }

    fn entry(&self, entry: &NewEntry, object: ObjectId, copied: Option<Places>) -> Result<()> {
        let tree = &self.now.tree;
        let (image, _) = self.before.node(self.image_number()).ok_or_else(|| not(entry, "the image of before"))?;
        let meant = about(self.old, entry, &image.inode);
        let found = tree.object(object);
        let (node, map) = self.now.node(number(self.now, object)).ok_or_else(|| not(entry, "an inode"))?;
        let inode = &node.inode;
        if (inode.mode, inode.uid, inode.gid) != (meant.mode, meant.uid, meant.gid) {
            return Err(not(entry, "mode and owner as planned"));
        }
        if found.times != times(self.old, entry.times, image.inode.times) {
            return Err(not(entry, "times as planned"));
        }
        let mut xattrs: Vec<Xattr> = entry.xattrs.clone();
        let left_out = Kept::of(self.old, &xattrs).left_out;
        xattrs.retain(|x| !left_out.contains(&x.0));
        xattrs.sort();
        if tree.xattrs(object) != xattrs {
            return Err(not(entry, "extended attributes as planned"));
        }
        // What it takes, counted anew.
        let s = &self.new.superblock;
        let mut clusters: Vec<u64> = map
            .runs
            .iter()
            .flat_map(|r| {
                s.cluster_of(r.physical)
                    ..s.cluster_of(r.physical.saturating_add(r.len).saturating_sub(1)).saturating_add(1)
            })
            .chain(map.nodes().iter().map(|n| s.cluster_of(*n)))
            .chain((inode.xattr_block != 0).then(|| s.cluster_of(inode.xattr_block)))
            .collect();
        clusters.sort_unstable();
        clusters.dedup();
        let blocks = (clusters.len() as u64).saturating_mul(s.ratio.into()).saturating_mul(u64::from(s.block) >> 9);
        if inode.blocks != blocks {
            return Err(not(entry, "the number of its blocks"));
        }
        match &entry.kind {
            NewKind::Dir if found.kind == Kind::Dir => Ok(()),
            NewKind::Symlink(target) if tree.target(object) == Some(target) => Ok(()),
            NewKind::Special(kind) if found.kind == *kind => Ok(()),
            NewKind::File { size, content } if found.kind == Kind::File => {
                self.content(entry, object, *size, content, copied)
            }
            _ => Err(not(entry, "the planned kind")),
        }
    }

    fn content(
        &self,
        entry: &NewEntry,
        object: ObjectId,
        size: u64,
        content: &Content,
        copied: Option<Places>,
    ) -> Result<()> {
        let tree = &self.now.tree;
        let stream = tree.data(object).ok_or_else(|| not(entry, "data"))?;
        if tree.stream(stream).size != size {
            return Err(not(entry, "the planned size"));
        }
        let have = tree.extents(stream);
        let right = match content {
            _ if size == 0 => have.is_empty(),
            Content::Empty | Content::Packed { .. } | Content::Bytes(_) => false,
            Content::Linked(extents) => {
                let planned: Map<Stream, Volume> = extents.iter().map(|e: &Extent<_, _>| (e.len, e.what)).collect();
                have == planned.resized(size).extents()
            }
            Content::Copied => {
                let stored = have.iter().map(|e| match e.what {
                    What::Stored(place) => Some((place.offset.get(), e.len)),
                    _ => None,
                });
                let stored = stored.collect::<Option<Vec<_>>>().ok_or_else(|| not(entry, "stored bytes"))?;
                let at = cut(stored, size);
                copied == Some(at)
            }
        };
        if right { Ok(()) } else { Err(not(entry, "the planned extents")) }
    }

    /// All older inodes and entries are as they were, the image is gone, and there is nothing else.
    fn older(&self, added: &HashSet<u32>, images: &[&Node], target: u32, made: usize) -> Result<()> {
        let same = |a: &Node, b: &Node| {
            if a.number != target {
                return a.inode == b.inode && a.area == b.area;
            }
            // The directory that is written into has other blocks and links.
            let mut inode = b.inode.clone();
            inode.block = a.inode.block;
            inode.blocks = a.inode.blocks;
            inode.size = a.inode.size;
            inode.links = a.inode.links;
            inode.flags = inode.flags & !flags::INDEX | a.inode.flags & (flags::INDEX | flags::EXTENTS);
            if a.inode.flags & flags::EXTENTS == 0 {
                inode.flags &= !flags::EXTENTS;
            }
            inode == a.inode && a.area == b.area
        };
        for a in self.before.nodes.iter().filter(|n| images.iter().all(|i| i.number != n.number)) {
            let found = self.now.node(a.number);
            if found.is_none_or(|(b, _)| !same(a, b)) {
                return Err(wrong(a.at.get(), "older inode", format!("inode {} as it was", a.number)));
            }
        }
        let (old, new) = (&self.before.tree, &self.now.tree);
        let mut left: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
        for (e, _) in new.order() {
            let own = number(self.now, new.entry(e).object);
            if !added.contains(&own) {
                left.insert(new.path(e), own);
            }
        }
        for (e, _) in old.order().filter(|(e, _)| !self.job.image.has_entry(*e)) {
            let object = old.entry(e).object;
            let path = old.path(e);
            if left.remove(&path) != Some(number(self.before, object)) {
                return Err(wrong(0, "older entry", format!("{} as it was", printable(&path))));
            }
            let extents = old.data(object).map(|s| old.extents(s));
            let now = new.lookup(path.split(|b| *b == b'/')).and_then(|o| new.data(o)).map(|s| new.extents(s));
            if extents != now {
                return Err(wrong(0, "older file", format!("{} where it was", printable(&path))));
            }
        }
        if let Some((path, _)) = left.into_iter().next() {
            return Err(wrong(0, "older entry", format!("no {}", printable(&path))));
        }
        let wanted = old
            .order()
            .len()
            .saturating_sub(images.len())
            .saturating_add(made)
            .saturating_add(self.job.tree.entries.len());
        if new.order().len() != wanted {
            return Err(wrong(0, "directory entries", format!("{wanted} of them, not {}", new.order().len())));
        }
        Ok(())
    }

    /// The image's inode is deleted, and holds nothing.
    fn image(&self, image: &Node) -> Result<()> {
        let s = &self.new.superblock;
        let bytes = self.new.volume.read_vec(image.at, s.inode_size.into())?;
        let inode = Inode::decode(s, image.number, image.at, &bytes)?;
        let root = extent_tree::decode(image.at, &inode.block, None)?;
        let empty = root == extent_tree::Node::Leaf(Runs::None) && inode.size == 0 && inode.blocks == 0;
        if inode.links != 0 || inode.deleted <= s.inodes || inode.xattr_block != 0 || !empty || !inode.intact {
            return Err(wrong(image.at.get(), "image inode", "one that is deleted and empty"));
        }
        Ok(())
    }

    /// Blocks in use change only where they have to: the inodes of new files, of the directories and of the image, the
    /// bitmaps and descriptors, and the directories themselves.
    fn places(&self, added: &HashSet<u32>, images: &[&Node], changed: &[u32]) -> Result<()> {
        let s = &self.old.superblock;
        let size = u64::from(s.block);
        let mut tables: Vec<(u64, u64, u32)> = Vec::new();
        let mut whole: BTreeMap<u64, usize> = BTreeMap::new();
        for (n, (g, _)) in (0u32..).zip(self.old.groups.iter().flatten()) {
            let table = s.byte(g.inode_table).get();
            let len = u64::from(s.inodes_per_group).saturating_mul(s.inode_size.into());
            tables.push((table, table.saturating_add(len), n));
            whole.insert(g.block_bitmap, s.clusters_per_group.div_ceil(8) as usize);
            whole.insert(g.inode_bitmap, s.inodes_per_group.div_ceil(8) as usize);
        }
        tables.sort_unstable();
        let all = s.block as usize;
        for index in 0..s.groups().div_ceil(s.descriptors_per_block()) {
            whole.insert(s.descriptor_block(index).0, all);
        }
        whole.extend(images.iter().map(|i| i.inode.xattr_block).filter(|b| *b != 0).map(|b| (b, all)));
        for run in changed.iter().filter_map(|n| self.before.node(*n)).flat_map(|(_, map)| map.runs.iter()) {
            whole.extend((run.physical..run.physical.saturating_add(run.len)).map(|b| (b, all)));
        }
        for write in self.staging.groups.iter().flat_map(|g| &g.writes) {
            let old = self.old.volume.read_vec(write.at, write.bytes.len())?;
            // Up to there all may change.
            let mut free_to = 0u64;
            for (i, (a, b)) in old.iter().zip(&write.bytes).enumerate().filter(|(_, (a, b))| a != b) {
                let at = write.at.get().saturating_add(i as u64);
                if at < free_to {
                    continue;
                }
                let within = usize::try_from(at.checked_rem(size).unwrap_or(0)).unwrap_or(0);
                let right = match whole.get(&at.checked_div(size).unwrap_or(0)) {
                    // Behind a bitmap's bits there are set ones, once it is written.
                    Some(end) => within < *end || *b == 0xff || a == b,
                    None => {
                        let after = tables.partition_point(|t| t.0 <= at);
                        let table = after.checked_sub(1).and_then(|n| tables.get(n)).filter(|t| at < t.1);
                        table.is_some_and(|(start, _, group)| {
                            let index = at.saturating_sub(*start).checked_div(s.inode_size.into()).unwrap_or(0);
                            let number = s.inodes_of(*group).start.saturating_add(index).saturating_add(1);
                            let number = u32::try_from(number).unwrap_or(0);
                            let end = index.saturating_add(1).saturating_mul(s.inode_size.into());
                            free_to = start.saturating_add(end);
                            added.contains(&number)
                                || images.iter().any(|i| i.number == number)
                                || changed.contains(&number)
                        })
                    }
                };
                if !right {
                    return Err(wrong(
                        at,
                        "changed byte",
                        "one of an inode, bitmap, descriptor or directory that changes",
                    ));
                }
            }
        }
        Ok(())
    }

    /// Each name in an indexed directory is in the leaf where its hash is looked for.
    fn indexes(&self, added: &HashSet<u32>, changed: &[u32]) -> Result<()> {
        let s = &self.new.superblock;
        let Some(hasher) = Hasher::of(s) else { return Ok(()) };
        for (node, map) in self.now.nodes.iter().zip(&self.now.maps) {
            let touched = added.contains(&node.number) || changed.contains(&node.number);
            if !touched || node.inode.mode & 0xf000 != 0x4000 || !node.inode.has(flags::INDEX) {
                continue;
            }
            let fault =
                || wrong(node.at.get(), "directory index", format!("each name of inode {} by its hash", node.number));
            let read = |logical: u32| -> Result<Vec<u8>> {
                let n = u64::from(logical);
                let run = map.runs.iter().find(|r| (r.logical..r.logical.saturating_add(r.len)).contains(&n));
                let run = run.ok_or_else(fault)?;
                let block = run.physical.saturating_add(n.saturating_sub(run.logical));
                self.new.volume.read_vec(s.byte(block), s.block as usize)
            };
            let root = read(0)?;
            let hasher = Hasher { version: root.get(0x1c).copied().unwrap_or(0), ..hasher };
            let levels = root.get(0x1e).copied().unwrap_or(0);
            if levels > 2 {
                return Err(fault());
            }
            // Hashes that a block may have: from, to; and its block.
            let mut level = children(&root, 32, 0, u32::MAX);
            for _ in 0..levels {
                let mut below = Vec::new();
                for (from, to, block) in level {
                    below.extend(children(&read(block)?, 8, from, to));
                }
                level = below;
            }
            let mut names = 0usize;
            for (from, to, block) in level {
                let bytes = read(block)?;
                let (entries, bad) = dir::entries(Offset::<Volume>::new(0), &bytes, s.block as usize);
                for e in &entries {
                    let hash = hasher.hash(e.name);
                    // The lowest bit of a key says that its hash began in the leaf before.
                    if hash < from & !1 || hash > to & !1 || hash == to && to & 1 == 0 && to != u32::MAX {
                        return Err(fault());
                    }
                }
                if bad.is_some() {
                    return Err(fault());
                }
                names = names.saturating_add(entries.len());
            }
            let tree = &self.now.tree;
            let listed =
                tree.objects().find(|(_, o)| o.number == u64::from(node.number)).map(|(id, _)| tree.children(id).len());
            if listed != Some(names) {
                return Err(fault());
            }
        }
        Ok(())
    }
}

/// The children of an index block whose table begins at `table` and which is for hashes `from` to `to`.
fn children(bytes: &[u8], table: usize, from: u32, to: u32) -> Vec<(u32, u32, u32)> {
    let half =
        |at: usize| bytes.get(at..at.saturating_add(2)).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes);
    let word =
        |at: usize| bytes.get(at..at.saturating_add(4)).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
    let count = usize::from(half(table.saturating_add(2)));
    let mut out: Vec<(u32, u32, u32)> = Vec::with_capacity(count);
    for n in 0..count {
        let at = table.saturating_add(n.saturating_mul(8));
        let first = if n == 0 { from } else { word(at) };
        if let Some(last) = out.last_mut() {
            last.1 = first;
        }
        out.push((first, to, word(at.saturating_add(4))));
    }
    out
}
