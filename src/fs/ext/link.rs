//! ext4 as host: new inodes and directories that lead to blocks where the data already is (host-writers 5).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::bits::Bits;
use super::census::Census;
use super::dir;
use super::extent_tree::Run;
use super::htree::{Hasher, Shape};
use super::inode::{Inode, flags};
use super::make::{Body, Kept, Maker, about, linked, needs_large_file, place, printable, refused};
use super::read::Ext;
use super::resolve::Mapping;
use super::scan::Node;
use super::space::Space;
use super::superblock::{compat, incompat, ro_compat};
use super::tables::{Blocks, Tables, ordered, writes};
use crate::error::{Error, Result};
use crate::extent::{Offset, ReadAt, Volume};
use crate::fs::host::{Content, Estimate, Host, HostImage, HostName, Job, NameRules, NewEntry, NewKind, Rules};
use crate::fs::{Kind, ObjectId};
use crate::txn::{Copy, Group, SECTOR, Staging};

/// An entry of a directory that is being written: inode, type, name.
type Item = (u32, u8, Vec<u8>);

/// The most links that are counted.
const LINKS: u32 = 65_000;

/// Where new entries go.
pub(super) struct Target {
    /// The directory that is there: its inode.
    pub(super) dir: u32,
    /// Directories that are made, each in the one before.
    pub(super) made: Vec<HostName>,
}

/// A new directory while it fills.
#[derive(Default)]
struct NewDir {
    number: u32,
    parent: u32,
    items: Vec<Item>,
}

/// The new state while it is put together.
struct Build<'a> {
    fs: &'a Ext,
    census: &'a Census,
    job: &'a Job<'a>,
    maker: Maker<'a>,
    staging: Staging,
    image: &'a Node,
    /// Clusters of the image that no new file has taken yet.
    unclaimed: Bits,
    /// New inodes, in the blocks of their tables.
    tables: Blocks,
    /// Directories that a group has more.
    dirs: BTreeMap<u32, i64>,
    large_file: bool,
}

/// The type that an entry of a directory has for a mode.
fn type_of(mode: u16) -> u8 {
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

impl Ext {
    /// The directory that `into` leads to, as far as it is there.
    pub(super) fn target(&self, census: &Census, into: &[HostName]) -> Result<Target> {
        let tree = &census.tree;
        let mut at = tree.root();
        for (n, name) in into.iter().enumerate() {
            let Some(entry) = tree.child(at, name) else {
                return Ok(Target { dir: number(census, at), made: into.get(n..).unwrap_or_default().to_vec() });
            };
            at = tree.entry(entry).object;
            if tree.object(at).kind != Kind::Dir {
                return Err(refused(format!("{} is no directory", printable(&tree.path(entry)))));
            }
        }
        Ok(Target { dir: number(census, at), made: Vec::new() })
    }
    /// The image's inode, and the directory that has its only name.
    pub(super) fn image_node<'c>(&self, census: &'c Census, image: &HostImage) -> Result<(&'c Node, &'c Mapping, u32)> {
        let gone = || refused("the image is not where it was planned from: plan again");
        let found = census.tree.order().find(|(e, _)| *e == image.entry).ok_or_else(gone)?;
        let entry = census.tree.entry(found.0);
        if entry.object != image.object {
            return Err(gone());
        }
        let (node, map) = census.node(number(census, image.object)).ok_or_else(gone)?;
        Ok((node, map, number(census, entry.parent)))
    }
    fn build_staging(&self, job: &Job<'_>) -> Result<Staging> {
        let census = self.census()?;
        let target = self.target(census, &job.tree.into)?;
        let (image, map, parent) = self.image_node(census, job.image)?;
        let per = self.superblock.inodes_per_group;
        let near = target.dir.saturating_sub(1).checked_div(per).unwrap_or(0);
        let space = Space::new(self, &census.clusters, &census.inodes, near);
        let mut build = Build {
            fs: self,
            census,
            job,
            maker: Maker::new(self, space),
            staging: Staging::default(),
            image,
            unclaimed: Bits::new(census.clusters.len()),
            tables: Blocks::default(),
            dirs: BTreeMap::new(),
            large_file: false,
        };
        build.own_clusters(map);
        build.all(&target, parent)?;
        Ok(build.staging)
    }
}

pub(super) fn number(census: &Census, object: ObjectId) -> u32 {
    u32::try_from(census.tree.object(object).number).unwrap_or(0)
}

impl Build<'_> {
    /// The clusters that are the image's: its data, its extent tree, its attributes where no other inode has them too.
    fn own_clusters(&mut self, map: &Mapping) {
        let s = &self.fs.superblock;
        let runs = map.runs.iter().map(|r| (r.physical, r.len)).chain(map.nodes.iter().map(|n| (*n, 1)));
        for (block, len) in runs {
            let last = s.cluster_of(block.saturating_add(len).saturating_sub(1));
            for n in s.cluster_of(block)..last.saturating_add(1) {
                self.unclaimed.set(n);
            }
        }
    }

    fn all(&mut self, target: &Target, image_parent: u32) -> Result<()> {
        let numbers = self.numbers(target)?;
        let mut dirs = self.new_dirs(target, &numbers)?;
        let links = self.links();
        for (position, entry) in self.job.tree.entries.iter().enumerate() {
            let Some(own) = numbers.of.get(position).copied() else { continue };
            let dir = match entry.parent {
                Some(p) => numbers.dir_of.get(&p).copied(),
                None => Some(0),
            };
            let dir = dir.and_then(|d| dirs.get_mut(d)).ok_or_else(|| refused("a new entry without a directory"))?;
            let inode = about(self.fs, entry, &self.image.inode);
            let kind = match &entry.kind {
                NewKind::HardLink(first) => {
                    self.job.tree.entries.get(*first).map_or(0, |e| type_of(about(self.fs, e, &self.image.inode).mode))
                }
                _ => type_of(inode.mode),
            };
            dir.items.push((own, kind, entry.name.clone()));
            if let NewKind::HardLink(_) | NewKind::Dir = entry.kind {
                continue;
            }
            let count = links.get(&position).copied().unwrap_or(0).saturating_add(1);
            let links = u16::try_from(count).ok().filter(|_| count <= LINKS);
            let links =
                links.ok_or_else(|| refused(format!("{} has more than {LINKS} names", printable(&entry.name))))?;
            let body = self.body(entry)?;
            let bytes = self.maker.inode(own, Inode { links, ..inode }, &body, &entry.xattrs)?;
            place(self.fs, &mut self.tables, own, &bytes)?;
        }
        self.directories(target, &numbers, &mut dirs)?;
        // What is there already gains entries, and loses the image.
        let top = std::mem::take(dirs.first_mut().ok_or_else(|| refused("no directory to write into"))?);
        let added = if target.made.is_empty() { top.items } else { self.first_made(target, &numbers)? };
        let mut after_dirs = self.tables.clone();
        let subdirs = added.iter().filter(|i| i.1 == 2).count();
        self.rebuild(target.dir, image_parent, added, subdirs, &mut after_dirs)?;
        if target.dir != image_parent {
            self.remove_image(image_parent, &mut after_dirs)?;
        }
        let mut after_image = after_dirs.clone();
        self.clear_image(&mut after_image)?;
        self.finish(&after_dirs, &after_image)
    }

    /// The entry that leads to the first directory of `--into` that is made.
    fn first_made(&self, target: &Target, numbers: &Numbers) -> Result<Vec<Item>> {
        let name = target.made.first().cloned().unwrap_or_default();
        let own = numbers.made.first().copied().ok_or_else(|| refused("no directory to write into"))?;
        Ok(vec![(own, 2, name)])
    }

    /// Inodes for everything new: directories of `--into`, then the entries.
    fn numbers(&mut self, target: &Target) -> Result<Numbers> {
        let mut out = Numbers::default();
        let mut next = || {
            let found = self.maker.space.inode();
            found.ok_or_else(|| refused("too few free inodes on the host: it can't hold so many files"))
        };
        for _ in &target.made {
            out.made.push(next()?);
        }
        for (position, entry) in self.job.tree.entries.iter().enumerate() {
            let own = match &entry.kind {
                NewKind::HardLink(first) => *out
                    .of
                    .get(*first)
                    .filter(|_| *first < position)
                    .ok_or_else(|| refused("a further name before the first one"))?,
                _ => next()?,
            };
            out.of.push(own);
            if matches!(entry.kind, NewKind::Dir) {
                // The first is what `--into` leads to.
                out.dir_of.insert(position, out.dir_of.len().saturating_add(1));
            }
        }
        Ok(out)
    }

    /// How many further names each entry has.
    fn links(&self) -> HashMap<usize, u32> {
        let mut out: HashMap<usize, u32> = HashMap::new();
        for entry in &self.job.tree.entries {
            if let NewKind::HardLink(first) = entry.kind {
                let count = out.entry(first).or_default();
                *count = count.saturating_add(1);
            }
        }
        out
    }

    /// Empty directories for all that are written into: what `--into` leads to first, then the new ones in their order.
    fn new_dirs(&self, target: &Target, numbers: &Numbers) -> Result<Vec<NewDir>> {
        let into = numbers.made.last().copied().unwrap_or(target.dir);
        let mut dirs = vec![NewDir { number: into, ..NewDir::default() }];
        for (position, entry) in self.job.tree.entries.iter().enumerate() {
            if !matches!(entry.kind, NewKind::Dir) {
                continue;
            }
            let parent = match entry.parent {
                None => into,
                Some(p) => *numbers
                    .of
                    .get(p)
                    .filter(|_| p < position && numbers.dir_of.contains_key(&p))
                    .ok_or_else(|| refused("a new entry before its directory"))?,
            };
            let number = numbers.of.get(position).copied().unwrap_or(0);
            dirs.push(NewDir { number, parent, items: Vec::new() });
        }
        Ok(dirs)
    }

    /// What a new file, link or device holds.
    fn body(&mut self, entry: &NewEntry) -> Result<Body> {
        let block = u64::from(self.fs.superblock.block);
        let name = || printable(&entry.name);
        Ok(match &entry.kind {
            NewKind::File { size, content } => {
                let size = *size;
                self.large_file |= needs_large_file(self.fs, size);
                if size > self.fs.max_file() {
                    return Err(refused(format!("{}: {size} bytes are too many for a file of the host", name())));
                }
                let runs = match content {
                    Content::Linked(extents) if size > 0 => {
                        let runs = linked(self.fs, extents, size)
                            .ok_or_else(|| refused(format!("{}: its extents are no units of the host", name())))?;
                        self.claim(&runs).map_err(|b| {
                            refused(format!("{}: block {b} is not the image's, or another file's too", name()))
                        })?;
                        self.slack(&runs, size);
                        runs
                    }
                    Content::Copied if size > 0 => {
                        let origin =
                            entry.origin.ok_or_else(|| refused(format!("{} is to be copied from nowhere", name())))?;
                        let taken = self.maker.take(size)?;
                        let s = &self.fs.superblock;
                        let unit = block.saturating_mul(s.ratio.into());
                        let to = taken
                            .iter()
                            .map(|(first, len)| (s.byte(s.cluster_block(*first)), len.saturating_mul(unit)));
                        self.staging.copies.push(Copy { origin, size, to: to.collect() });
                        self.maker.runs(&taken, size)
                    }
                    _ => Vec::new(),
                };
                Body { runs, size, ..Body::default() }
            }
            NewKind::Symlink(target) => {
                let size = target.len() as u64;
                if target.is_empty() || size >= block || target.contains(&0) {
                    return Err(refused(format!("{}: the host can't hold a link to {size} bytes", name())));
                }
                let mut short = [0u8; 60];
                if target.len() < 60 {
                    let _fits = crate::bytes::put(&mut short, 0, target);
                    return Ok(Body { size, block: Some(short), ..Body::default() });
                }
                let mut bytes = target.clone();
                bytes.resize(usize::try_from(block).unwrap_or(0), 0);
                Body { runs: self.maker.store(&[bytes])?, size, ..Body::default() }
            }
            NewKind::Special(Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor)) => {
                if *major > 0xfff || *minor > 0xf_ffff {
                    return Err(refused(format!("{}: the host can't hold device {major}:{minor}", name())));
                }
                Body { block: Some(Inode::device(*major, *minor)), ..Body::default() }
            }
            _ => Body { block: Some([0; 60]), ..Body::default() },
        })
    }

    /// Takes clusters out of the image; the block of the first one that it can't give is the error.
    fn claim(&mut self, runs: &[Run]) -> Result<(), u64> {
        let s = &self.fs.superblock;
        for run in runs {
            let last = s.cluster_of(run.physical.saturating_add(run.len).saturating_sub(1));
            for n in s.cluster_of(run.physical)..last.saturating_add(1) {
                if !self.unclaimed.clear(n) {
                    return Err(s.cluster_block(n));
                }
            }
        }
        Ok(())
    }

    fn slack(&mut self, runs: &[Run], size: u64) {
        let s = &self.fs.superblock;
        let used = size.checked_rem(s.block.into()).unwrap_or(0);
        let last = runs.last().filter(|r| r.logical.saturating_add(r.len) == size.div_ceil(s.block.into()));
        if let (true, Some(run), 1..) = (self.job.zero_slack, last, used) {
            let block = run.physical.saturating_add(run.len).saturating_sub(1);
            let len = u32::try_from(u64::from(s.block).saturating_sub(used)).unwrap_or(0);
            self.staging.slack.push((s.byte(block).saturating_add(used), len));
        }
    }

    fn shape(&self, seed: Option<u32>) -> Shape {
        let s = &self.fs.superblock;
        Shape { block: s.block as usize, seed, large: s.has(incompat::LARGEDIR) }
    }

    /// The blocks of a directory, and whether they have an index.
    fn blocks(&self, own: u32, parent: u32, seed: Option<u32>, mut items: Vec<Item>) -> Result<(Vec<Vec<u8>>, bool)> {
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
    fn directories(&mut self, target: &Target, numbers: &Numbers, dirs: &mut [NewDir]) -> Result<()> {
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

    fn directory(&mut self, dir: &NewDir, mut inode: Inode, xattrs: &[crate::fs::Xattr]) -> Result<()> {
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

    fn count_dir(&mut self, number: u32, more: i64) {
        let group = number.saturating_sub(1).checked_div(self.fs.superblock.inodes_per_group).unwrap_or(0);
        let count = self.dirs.entry(group).or_default();
        *count = count.saturating_add(more);
    }

    /// Links of a directory that had so many and gets so many directories more.
    fn dir_links(&self, before: u16, more: usize) -> Result<u16> {
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
    fn listed(&self, node: &Node, map: &Mapping) -> Result<(Vec<Item>, u32)> {
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
    fn rebuild(
        &mut self,
        number: u32,
        image_parent: u32,
        added: Vec<Item>,
        subdirs: usize,
        tables: &mut Blocks,
    ) -> Result<()> {
        let s = &self.fs.superblock;
        let (node, map) = self.census.node(number).ok_or_else(|| refused("the directory to write into is gone"))?;
        if let Some(why) = super::refuse::of_a_directory(node.inode.flags) {
            return Err(refused(format!("the directory to write into can't be changed: {why}")));
        }
        let (mut items, parent) = self.listed(node, map)?;
        if number == image_parent {
            let name = self.census.tree.name(self.job.image.entry).to_vec();
            items.retain(|i| !(i.0 == self.image.number && i.2 == name));
        }
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
        let old = map.runs.iter().map(|r| (r.physical, r.len)).chain(map.nodes.iter().map(|n| (*n, 1)));
        let old: Vec<(u64, u64)> = old.collect();
        for (block, len) in old {
            self.release(block, len);
        }
        Ok(())
    }

    /// Writes an inode that is there with other contents of its fixed fields; what lies behind them stays.
    fn rewrite(&self, node: &Node, inode: &Inode, tables: &mut Blocks) -> Result<()> {
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

    fn release(&mut self, block: u64, len: u64) {
        let s = &self.fs.superblock;
        let last = s.cluster_of(block.saturating_add(len).saturating_sub(1));
        for n in s.cluster_of(block)..last.saturating_add(1) {
            self.maker.space.clusters.clear(n);
        }
    }

    /// Takes the image's name out of a directory that stays where it is: the entry before it reaches over it.
    fn remove_image(&mut self, number: u32, tables: &mut Blocks) -> Result<()> {
        let s = &self.fs.superblock;
        let (node, map) = self.census.node(number).ok_or_else(|| refused("the image's directory is gone"))?;
        let wanted = self.census.tree.name(self.job.image.entry);
        let end = node.inode.size.div_ceil(s.block.into());
        for run in map.runs.iter().filter(|r| r.written) {
            for n in (0..run.len).take_while(|n| run.logical.saturating_add(*n) < end) {
                let block = run.physical.saturating_add(n);
                let at = s.byte(block);
                let bytes = self.fs.volume.read_vec(at, s.block as usize)?;
                let (entries, _) = dir::entries(at, &bytes, s.block as usize);
                let Some(found) = entries.iter().find(|e| e.inode == self.image.number && e.name == wanted) else {
                    continue;
                };
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

    /// The image's inode is deleted, and what nobody took of it is free.
    fn clear_image(&mut self, tables: &mut Blocks) -> Result<()> {
        let s = &self.fs.superblock;
        let node = self.image;
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
        let rest: Vec<u64> = (0..self.unclaimed.len()).filter(|n| self.unclaimed.has(*n)).collect();
        for n in rest {
            self.maker.space.clusters.clear(n);
        }
        self.release_attributes(tables)
    }

    /// The image's block of attributes: one user fewer, or free.
    fn release_attributes(&mut self, tables: &mut Blocks) -> Result<()> {
        let s = &self.fs.superblock;
        let block = self.image.inode.xattr_block;
        if block == 0 {
            return Ok(());
        }
        let users = self.census.nodes.iter().filter(|n| n.inode.xattr_block == block).count();
        if users <= 1 {
            self.release(block, 1);
            return Ok(());
        }
        let left = u32::try_from(users).unwrap_or(u32::MAX).saturating_sub(1);
        let bytes = tables.edit(self.fs, block)?;
        super::xattr::seal_block(bytes, block, left, s.metadata_csum().then_some(s.seed));
        Ok(())
    }

    /// Everything that is left to say of the new state.
    fn finish(&mut self, after_dirs: &Blocks, after_image: &Blocks) -> Result<()> {
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
        let mut filled = std::mem::take(&mut self.maker.filled);
        self.staging.filled = merged(&mut filled);
        // Whoever writes to the volume changes a bitmap or a descriptor.
        let mut witnesses: Vec<(u64, u64)> =
            self.staging.fresh.iter().map(|f| (f.at.get(), f.bytes.len() as u64)).collect();
        let size = u64::from(s.block);
        for (g, _) in fs.groups.iter().flatten() {
            witnesses.extend([g.block_bitmap, g.inode_bitmap].map(|b| (s.byte(b).get(), size)));
        }
        for index in 0..s.groups().div_ceil(s.descriptors_per_block()) {
            witnesses.push((s.byte(s.descriptor_block(index).0).get(), size));
        }
        self.staging.witnesses = merged(&mut witnesses);
        Ok(())
    }
}

/// The inodes of everything new.
#[derive(Default)]
struct Numbers {
    /// Of the directories of `--into` that are made.
    made: Vec<u32>,
    /// Of each entry; a further name has that of the first.
    of: Vec<u32>,
    /// Of entries that are directories, which of the new directories they are, from 1 on.
    dir_of: HashMap<usize, usize>,
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

/// Places in order, neighbours and what overlaps together.
fn merged(places: &mut [(u64, u64)]) -> Vec<(Offset<Volume>, u64)> {
    places.sort_unstable();
    let mut out: Vec<(Offset<Volume>, u64)> = Vec::new();
    for (at, len) in places {
        let end = at.saturating_add(*len);
        match out.last_mut() {
            Some((start, len)) if start.get().saturating_add(*len) >= *at => {
                *len = end.max(start.get().saturating_add(*len)).saturating_sub(start.get());
            }
            _ => out.push((Offset::new(*at), *len)),
        }
    }
    out
}

impl Ext {
    /// The largest file in bytes.
    fn max_file(&self) -> u64 {
        u64::from(u32::MAX).saturating_mul(self.superblock.block.into())
    }
    fn unit(&self) -> u64 {
        u64::from(self.superblock.block).saturating_mul(self.superblock.ratio.into())
    }
}

impl Host for Ext {
    fn rules(&self) -> Rules {
        let s = &self.superblock;
        Rules {
            unit: self.unit(),
            units_at: s.byte(s.first_data_block.into()).get(),
            max_file: self.max_file(),
            holes: true,
            streams: false,
            hard_links: true,
            symlinks: true,
            special: true,
            xattrs: true,
            slack_shows: true,
            names: NameRules::Posix,
        }
    }
    fn refusals(&self, image: &HostImage) -> Result<Vec<String>> {
        super::refuse::refusals(self, image)
    }
    fn fold(&self, name: &[u8]) -> Vec<u8> {
        name.to_vec()
    }
    fn names_in(&self, dir: &[HostName]) -> Result<Option<Vec<HostName>>> {
        let census = self.census()?;
        let target = self.target(census, dir)?;
        if !target.made.is_empty() {
            return Ok(None);
        }
        let tree = &census.tree;
        let Some(at) = tree.lookup(dir.iter().map(Vec::as_slice)) else { return Ok(None) };
        Ok(Some(tree.children(at).iter().map(|e| tree.name(*e).to_vec()).collect()))
    }
    fn free_units(&self) -> u64 {
        self.census().map_or(0, Census::free)
    }
    fn estimate(&self, job: &Job<'_>) -> Estimate {
        let unit = self.unit().max(1);
        let copied = |e: &NewEntry| match &e.kind {
            NewKind::File { size, content: Content::Copied } => size.div_ceil(unit),
            _ => 0,
        };
        let copy_units = job.tree.entries.iter().map(copied).fold(0, u64::saturating_add);
        let Ok(staging) = self.build_staging(job) else {
            // What there is too little space for has at least these.
            return Estimate { copy_units, ..Estimate::default() };
        };
        let filled: u64 = staging.filled.iter().map(|(_, len)| *len).sum();
        let metadata_units = filled.checked_div(unit).unwrap_or(0).saturating_sub(copy_units);
        let changed = staging.groups.iter().flat_map(|g| &g.writes).chain(staging.interim.iter().map(|i| &i.1));
        let changed: u64 = changed.map(|w| w.bytes.len() as u64).sum();
        let kept: u64 = staging.slack.iter().map(|(_, len)| u64::from(*len).saturating_add(64)).sum();
        let records = changed / SECTOR;
        Estimate {
            metadata_units,
            copy_units,
            metadata_bytes: metadata_units.saturating_mul(unit).saturating_add(changed),
            journal_bytes: changed
                .saturating_mul(2)
                .saturating_add(records.saturating_mul(64))
                .saturating_add(kept)
                .saturating_add(metadata_units.saturating_add(copy_units).saturating_mul(32))
                .saturating_add(64 << 10),
        }
    }
    fn left_out(&self, job: &Job<'_>) -> Vec<(usize, Vec<u8>)> {
        let all = job.tree.entries.iter().enumerate();
        all.flat_map(|(n, e)| Kept::of(self, &e.xattrs).left_out.into_iter().map(move |name| (n, name))).collect()
    }
    fn link(&self, job: &Job<'_>) -> Result<Staging> {
        let reasons = self.refusals(job.image)?;
        if !reasons.is_empty() {
            return Err(refused(reasons.join("; ")));
        }
        self.build_staging(job)
    }
    fn audit(&self, after: Arc<dyn ReadAt<Volume>>, job: &Job<'_>, staging: &Staging) -> Result<()> {
        super::audit::audit(self, after, job, staging)
    }
}
