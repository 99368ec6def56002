//! Directories for a host's writer: new ones, and those that were there and change.

use std::collections::HashMap;

use super::dir;
use super::htree::{Hasher, Shape};
use super::inode::{Inode, flags};
use super::link::{Build, Gone, Item, NewDir, Numbers, Target};
use super::make::{Body, about, place};
use super::resolve::Mapping;
use super::scan::Node;
use super::superblock::{compat, incompat, ro_compat};
use super::tables::Blocks;
use crate::error::Result;
use crate::error::refused;
use crate::fs::asked::printable;
use crate::fs::host::{NewEntry, NewKind};

/// The most links that are counted.
pub(super) const LINKS: u32 = 65_000;

impl Build<'_> {
    pub(super) fn shape(&self, seed: Option<u32>) -> Shape {
        let s = &self.fs.superblock;
        Shape { block: s.block as usize, seed, large: s.has(incompat::LARGEDIR) }
    }

    /// The blocks of a directory, and whether they have an index.
    pub(super) fn blocks(
        &self,
        own: u32,
        parent: u32,
        seed: Option<u32>,
        mut items: Vec<Item>,
    ) -> Result<(Vec<Vec<u8>>, bool)> {
        let s = &self.fs.superblock;
        let shape = self.shape(seed);
        let types = s.has(incompat::FILETYPE);
        let as_entry = |i: &'_ Item| -> (u32, u8) { (i.0, if types { i.1 } else { 0 }) };
        let dots = [(own, 2, b".".to_vec()), (parent, 2, b"..".to_vec())];
        let too_long = || refused("a name of more than 255 bytes");
        let encode = |all: &[Item]| -> Result<Vec<Vec<u8>>> {
            let mut out = Vec::new();
            let mut rest = all;
            loop {
                let entries = rest.iter().map(|i| (as_entry(i).0, as_entry(i).1, i.2.as_slice()));
                let (bytes, count) = dir::encode(shape.block, seed, entries);
                out.push(bytes);
                rest = rest.get(count..).unwrap_or_default();
                if rest.is_empty() {
                    return Ok(out);
                }
                if count == 0 {
                    return Err(too_long());
                }
            }
        };
        let room = shape.block.saturating_sub(if seed.is_some() { dir::TAIL } else { 0 });
        let need: usize = items.iter().chain(&dots).map(|i| dir::entry_len(i.2.len())).sum();
        let hasher = Hasher::of(s).filter(|_| s.has_compat(compat::DIR_INDEX) && need > room);
        if let Some(hasher) = hasher {
            let mut hashed: Vec<(u32, Item)> = items.into_iter().map(|i| (hasher.hash(&i.2), i)).collect();
            hashed.sort_unstable();
            let mut leaves = Vec::new();
            let mut firsts = Vec::new();
            let mut rest = hashed.as_slice();
            let mut before = None;
            while let Some((hash, _)) = rest.first() {
                let entries = rest.iter().map(|(_, i)| (as_entry(i).0, as_entry(i).1, i.2.as_slice()));
                let (bytes, count) = dir::encode(shape.block, seed, entries);
                if count == 0 {
                    return Err(too_long());
                }
                leaves.push(bytes);
                // Names of one hash that go on from the leaf before: said by the lowest bit.
                firsts.push(if before == Some(*hash) { hash | 1 } else { *hash });
                let (now, later) = rest.split_at_checked(count).unwrap_or((rest, &[]));
                before = now.last().map(|l| l.0);
                rest = later;
            }
            if let Some(mut all) = shape.index(&hasher, own, parent, &firsts) {
                all.extend(leaves);
                return Ok((all, true));
            }
            items = hashed.into_iter().map(|h| h.1).collect();
        }
        let mut all = dots.to_vec();
        all.extend(items);
        Ok((encode(&all)?, false))
    }

    /// Writes all new directories.
    pub(super) fn directories(&mut self, target: &Target, numbers: &Numbers, dirs: &mut [NewDir]) -> Result<()> {
        let entry_of: HashMap<usize, &NewEntry> = numbers
            .dir_of
            .iter()
            .filter_map(|(position, at)| Some((*at, self.job.tree.entries.get(*position)?)))
            .collect();
        for at in 1..dirs.len() {
            let Some(dir) = dirs.get_mut(at).map(std::mem::take) else { continue };
            let Some(entry) = entry_of.get(&at) else { continue };
            let inode = about(self.fs, entry, &self.image.inode);
            self.directory(&dir, inode, &entry.xattrs)?;
        }
        // The chain that leads to them.
        let plain = NewEntry {
            parent: None,
            name: Vec::new(),
            kind: NewKind::Dir,
            times: crate::fs::Times::default(),
            attributes: 0,
            posix: None,
            xattrs: Vec::new(),
            security: None,
            origin: None,
        };
        for (n, own) in numbers.made.iter().enumerate() {
            let parent = n.checked_sub(1).and_then(|p| numbers.made.get(p)).copied().unwrap_or(target.dir);
            let items = match (numbers.made.get(n.saturating_add(1)), target.made.get(n.saturating_add(1))) {
                (Some(next), Some(name)) => vec![(*next, 2, name.clone())],
                _ => dirs.first_mut().map(|d| std::mem::take(&mut d.items)).unwrap_or_default(),
            };
            let inode = about(self.fs, &plain, &self.image.inode);
            self.directory(&NewDir { number: *own, parent, items }, inode, &[])?;
        }
        Ok(())
    }

    pub(super) fn directory(&mut self, dir: &NewDir, mut inode: Inode, xattrs: &[crate::fs::Xattr]) -> Result<()> {
        unique(&dir.items)?;
        inode.links = self.dir_links(2, dir.items.iter().filter(|i| i.1 == 2).count())?;
        let seed = self.maker.own_seed(dir.number);
        let (blocks, indexed) = self.blocks(dir.number, dir.parent, seed, dir.items.clone())?;
        let size = (blocks.len() as u64).saturating_mul(self.fs.superblock.block.into());
        let runs = self.maker.store(&blocks)?;
        let body = Body { runs, size, block: None, flags: if indexed { flags::INDEX } else { 0 } };
        let bytes = self.maker.inode(dir.number, inode, &body, xattrs)?;
        place(self.fs, &mut self.tables, dir.number, &bytes)?;
        self.count_dir(dir.number, 1);
        Ok(())
    }

    pub(super) fn count_dir(&mut self, number: u32, more: i64) {
        let group = number.saturating_sub(1).checked_div(self.fs.superblock.inodes_per_group).unwrap_or(0);
        let count = self.dirs.entry(group).or_default();
        *count = count.saturating_add(more);
    }

    /// Links of a directory that had so many and gets so many directories more.
    pub(super) fn dir_links(&self, before: u16, more: usize) -> Result<u16> {
        if before == 1 {
            return Ok(1);
        }
        let links = u32::try_from(more).unwrap_or(u32::MAX).saturating_add(before.into());
        if links < LINKS {
            return Ok(u16::try_from(links).unwrap_or(1));
        }
        if self.fs.superblock.has_ro(ro_compat::DIR_NLINK) {
            return Ok(1);
        }
        Err(refused(format!("a directory of the host can't have {links} links")))
    }

    /// What is in a directory that is there, and what its `..` leads to.
    pub(super) fn listed(&self, node: &Node, map: &Mapping) -> Result<(Vec<Item>, u32)> {
        let s = &self.fs.superblock;
        let mut items = Vec::new();
        let mut parent = 0;
        let end = node.inode.size.div_ceil(s.block.into());
        for run in map.runs.iter().filter(|r| r.written) {
            for n in (0..run.len).take_while(|n| run.logical.saturating_add(*n) < end) {
                let at = s.byte(run.physical.saturating_add(n));
                let bytes = self.fs.volume.read_vec(at, s.block as usize)?;
                let (entries, wrong) = dir::entries(at, &bytes, s.block as usize);
                if let Some(e) = wrong {
                    return Err(e);
                }
                for e in entries {
                    match e.name {
                        b"." => {}
                        b".." => parent = e.inode,
                        name => items.push((e.inode, e.kind, name.to_vec())),
                    }
                }
            }
        }
        Ok((items, parent))
    }

    /// Writes the directory `number` anew, with `added` and without the image where that is in it, and switches to it.
    pub(super) fn rebuild(&mut self, number: u32, added: Vec<Item>, subdirs: usize, tables: &mut Blocks) -> Result<()> {
        let s = &self.fs.superblock;
        let (node, map) = self.census.node(number).ok_or_else(|| refused("the directory to write into is gone"))?;
        if let Some(why) = super::refuse::of_a_directory(node.inode.flags) {
            return Err(refused(format!("the directory to write into can't be changed: {why}")));
        }
        let (mut items, parent) = self.listed(node, map)?;
        let here: Vec<(u32, &[u8])> =
            self.gone.iter().filter(|g| g.parent == number).map(|g| (g.node.number, g.name)).collect();
        items.retain(|i| !here.contains(&(i.0, i.2.as_slice())));
        items.extend(added);
        unique(&items)?;
        let seed = s.metadata_csum().then(|| node.inode.own_seed(s, number));
        let (blocks, indexed) = self.blocks(number, parent, seed, items)?;
        let size = (blocks.len() as u64).saturating_mul(s.block.into());
        let runs = self.maker.store(&blocks)?;
        let (root, nodes) = self.maker.tree(seed, &runs)?;
        let clusters =
            nodes.saturating_add(self.maker.clusters_of(&runs)).saturating_add(u64::from(node.inode.xattr_block != 0));
        let inode = Inode {
            block: root,
            size,
            blocks: clusters.saturating_mul(s.ratio.into()).saturating_mul(u64::from(s.block) >> 9),
            links: self.dir_links(node.inode.links, subdirs)?,
            flags: node.inode.flags & !flags::INDEX | flags::EXTENTS | if indexed { flags::INDEX } else { 0 },
            ..node.inode.clone()
        };
        self.rewrite(node, &inode, tables)?;
        // What it was in before is free.
        let old = map.runs.iter().map(|r| (r.physical, r.len)).chain(map.nodes().iter().map(|n| (*n, 1)));
        let old: Vec<(u64, u64)> = old.collect();
        for (block, len) in old {
            self.release(block, len);
        }
        Ok(())
    }

    /// Takes the name of a file of the image out of a directory that stays where it is: the entry before it reaches over it.
    pub(super) fn remove_name(&mut self, file: &Gone<'_>, tables: &mut Blocks) -> Result<()> {
        let s = &self.fs.superblock;
        let number = file.parent;
        let (node, map) = self.census.node(number).ok_or_else(|| refused("the image's directory is gone"))?;
        let wanted = |e: &dir::DirEntry<'_>| e.inode == file.node.number && e.name == file.name;
        let end = node.inode.size.div_ceil(s.block.into());
        for run in map.runs.iter().filter(|r| r.written) {
            for n in (0..run.len).take_while(|n| run.logical.saturating_add(*n) < end) {
                let block = run.physical.saturating_add(n);
                let at = s.byte(block);
                let bytes = self.fs.volume.read_vec(at, s.block as usize)?;
                let (entries, _) = dir::entries(at, &bytes, s.block as usize);
                if !entries.iter().any(&wanted) {
                    continue;
                }
                // As it is by now: another file of the image may have stood beside.
                let bytes = tables.edit(self.fs, block)?.to_vec();
                let (entries, _) = dir::entries(at, &bytes, s.block as usize);
                let Some(found) = entries.iter().find(|e| wanted(e)) else { break };
                let place = found.at;
                let half = |at: usize| bytes.get(at..at.saturating_add(2)).and_then(|b| b.try_into().ok());
                let len = |at: usize| {
                    let raw = half(at.saturating_add(4)).map_or(0, u16::from_le_bytes);
                    dir::length(raw, s.block as usize)
                };
                // The entry before it, also an empty one.
                let mut before = None;
                let mut pos = 0usize;
                while pos < place {
                    before = Some(pos);
                    pos = pos.saturating_add(len(pos).max(dir::HEAD));
                }
                let own = len(place);
                let bytes = tables.edit(self.fs, block)?;
                let fits = match before {
                    Some(at) => {
                        let both = dir::rec_len(len(at).saturating_add(own));
                        crate::bytes::put(bytes, at.saturating_add(4), &both.to_le_bytes())
                    }
                    None => crate::bytes::put(bytes, place, &[0; 4]),
                };
                let seed = s.metadata_csum().then(|| node.inode.own_seed(s, number));
                if !fits {
                    break;
                }
                dir::seal(bytes, seed);
                return Ok(());
            }
        }
        Err(refused("the image's name is not in its directory"))
    }
}

/// Refuses names that a directory can't have, or has twice.
fn unique(items: &[Item]) -> Result<()> {
    let mut names: Vec<&[u8]> = items.iter().map(|i| i.2.as_slice()).collect();
    names.sort_unstable();
    for name in &names {
        let bad = name.is_empty() || name.len() > 255 || name.iter().any(|b| matches!(b, 0 | b'/'));
        if bad || matches!(*name, b"." | b"..") {
            return Err(refused(format!("{} is no name that ext can have", printable(name))));
        }
    }
    match names.windows(2).find(|w| matches!(w, [a, b] if a == b)) {
        Some(w) => Err(refused(format!("the name {} would be there twice", printable(w.first().unwrap_or(&&b""[..]))))),
        None => Ok(()),
    }
}
