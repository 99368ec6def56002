//! ext4 as host: new inodes and directories that lead to blocks where the data already is (host-writers 5).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::bits::Bits;
use super::census::{Census, type_of};
use super::extent_tree::Run;
use super::file_system::ExtFs;
use super::grow::LINKS;
use super::inode::Inode;
use super::make::{Body, Kept, Maker, about, linked, needs_large_file, place};
use super::resolve::Mapping;
use super::scan::Node;
use super::space::Space;
use super::tables::Blocks;
use super::volume::Ext;
use crate::error::Result;
use crate::error::refused;
use crate::extent::{Offset, ReadAt, Volume};
use crate::fs::asked::printable;
use crate::fs::host::{
    Content, Estimate, Host, HostFile, HostImage, HostName, Job, NameRules, NewEntry, NewKind, Rules,
};
use crate::fs::{Kind, ObjectId};
use crate::txn::reuse::{Layout, Range, Reuse};
use crate::txn::{Copy, Staging};

/// An entry of a directory that is being written: inode, type, name.
pub(super) type Item = (u32, u8, Vec<u8>);

/// Where new entries go.
pub(super) struct Target {
    /// The directory that is there: its inode.
    pub(super) dir: u32,
    /// Directories that are made, each in the one before.
    pub(super) made: Vec<HostName>,
}

/// A new directory while it fills.
#[derive(Default)]
pub(super) struct NewDir {
    pub(super) number: u32,
    pub(super) parent: u32,
    pub(super) items: Vec<Item>,
}

/// The new state while it is put together.
pub(super) struct Build<'a> {
    pub(super) fs: &'a Ext,
    pub(super) census: &'a Census,
    pub(super) job: &'a Job<'a>,
    pub(super) maker: Maker<'a>,
    pub(super) staging: Staging,
    /// The inode of the file that the address names.
    pub(super) image: &'a Node,
    /// All files of the image.
    pub(super) gone: Vec<Gone<'a>>,
    /// Clusters of the image's data that no new file has taken yet.
    pub(super) claimable: Bits,
    /// Clusters of the image, also of its extent tree, that no new file has taken yet.
    pub(super) unclaimed: Bits,
    /// New inodes, in the blocks of their tables.
    pub(super) tables: Blocks,
    /// Directories that a group has more.
    pub(super) dirs: BTreeMap<u32, i64>,
    pub(super) large_file: bool,
    /// Where copies go, where clusters of the image are filled: by their positions.
    pub(super) given: HashMap<usize, Vec<Range>>,
}

/// First clusters and how many from there.
type Clusters = Vec<(u64, u64)>;

/// A file of the image.
#[derive(Clone)]
pub(super) struct Gone<'a> {
    pub(super) node: &'a Node,
    pub(super) map: &'a Mapping,
    /// The directory that has its only name.
    pub(super) parent: u32,
    pub(super) name: &'a [u8],
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
    /// The inodes of the image's files, the named one first.
    pub(super) fn gone<'c>(&self, census: &'c Census, image: &HostImage) -> Result<Vec<Gone<'c>>> {
        image.files().map(|file| self.gone_file(census, file)).collect()
    }
    /// The inode of a file of the image, and the directory that has its only name.
    pub(super) fn gone_file<'c>(&self, census: &'c Census, image: &HostFile) -> Result<Gone<'c>> {
        let gone = || refused("the image is not where it was planned from: plan again");
        let found = census.tree.order().find(|(e, _)| *e == image.entry).ok_or_else(gone)?;
        let entry = census.tree.entry(found.0);
        if entry.object != image.object {
            return Err(gone());
        }
        let (node, map) = census.node(number(census, image.object)).ok_or_else(gone)?;
        Ok(Gone { node, map, parent: number(census, entry.parent), name: census.tree.name(image.entry) })
    }
    fn staging(&self, census: &Census, job: &Job<'_>) -> Result<Staging> {
        let target = self.target(census, &job.tree.into)?;
        let gone = self.gone(census, job.image)?;
        let image = gone.first().ok_or_else(|| refused("the image is no file"))?.node;
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
            gone: gone.clone(),
            claimable: Bits::new(census.clusters.len()),
            unclaimed: Bits::new(census.clusters.len()),
            tables: Blocks::default(),
            dirs: BTreeMap::new(),
            large_file: false,
            given: HashMap::new(),
        };
        for file in &gone {
            build.own_clusters(file.map);
        }
        if let Some(reuse) = &job.tree.reuse {
            build.lay_out(reuse)?;
        }
        build.all(&target)?;
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
        let runs = map.runs.iter().map(|r| (r.physical, r.len, r.written));
        for (block, len, data) in runs.chain(map.nodes().iter().map(|n| (*n, 1, false))) {
            let last = s.cluster_of(block.saturating_add(len).saturating_sub(1));
            for n in s.cluster_of(block)..last.saturating_add(1) {
                self.unclaimed.set(n);
                if data {
                    self.claimable.set(n);
                }
            }
        }
    }

    /// First cluster and number of clusters of a range of the volume.
    pub(super) fn clusters_in(&self, (at, len): Range) -> (u64, u64) {
        let s = &self.fs.superblock;
        let unit = self.fs.unit().max(1);
        let base = s.byte(s.first_data_block.into()).get();
        (at.saturating_sub(base).checked_div(unit).unwrap_or(0), len.checked_div(unit).unwrap_or(0))
    }

    /// Copies get clusters of the image where the free ones are too few; what is left of both is for all else.
    fn lay_out(&mut self, reuse: &Reuse) -> Result<()> {
        let s = &self.fs.superblock;
        let unit = self.fs.unit();
        let place = |(first, len): (u64, u64)| (s.byte(s.cluster_block(first)).get(), len.saturating_mul(unit));
        let free: Vec<Range> = self.maker.space.all_free().into_iter().map(place).collect();
        let layout = reuse.lay_out(&free);
        let Layout { copies, moves, rest, .. } =
            layout.ok_or_else(|| refused("too little space: the host and the image have too few blocks for copies"))?;
        for range in copies.iter().flat_map(|(_, to)| to) {
            let (first, count) = self.clusters_in(*range);
            for n in first..first.saturating_add(count) {
                let own = self.maker.space.clusters.set(n) || (self.claimable.clear(n) && self.unclaimed.clear(n));
                if !own {
                    return Err(refused(format!("block {} is not free, nor the image's alone", s.cluster_block(n))));
                }
            }
        }
        let rest: Vec<(u64, u64)> = rest.iter().map(|range| self.clusters_in(*range)).collect();
        self.maker.space.with_image(&rest);
        self.staging.moves = moves;
        self.given = copies.into_iter().collect();
        Ok(())
    }

    /// Clusters for a copy: first ones and lengths, and where they are.
    fn for_copy(&mut self, position: usize, size: u64) -> Result<(Clusters, Vec<Range>)> {
        let unit = self.fs.unit();
        if self.job.tree.reuse.is_none() {
            let taken = self.maker.take(size)?;
            let s = &self.fs.superblock;
            let place = |(first, len): &(u64, u64)| (s.byte(s.cluster_block(*first)).get(), len.saturating_mul(unit));
            let to = taken.iter().map(place).collect();
            return Ok((taken, to));
        }
        let to = self.given.remove(&position).ok_or_else(|| refused("a copy without a place"))?;
        let mut taken: Vec<(u64, u64)> = Vec::new();
        for range in &to {
            let (first, count) = self.clusters_in(*range);
            match taken.last_mut() {
                Some((before, have)) if before.saturating_add(*have) == first => *have = have.saturating_add(count),
                _ => taken.push((first, count)),
            }
        }
        self.maker.filled.extend_from_slice(&to);
        Ok((taken, to))
    }

    fn all(&mut self, target: &Target) -> Result<()> {
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
            let body = self.body(position, entry)?;
            let bytes = self.maker.inode(own, Inode { links, ..inode }, &body, &entry.xattrs)?;
            place(self.fs, &mut self.tables, own, &bytes)?;
        }
        self.directories(target, &numbers, &mut dirs)?;
        // What is there already gains entries, and loses the image.
        let top = std::mem::take(dirs.first_mut().ok_or_else(|| refused("no directory to write into"))?);
        let added = if target.made.is_empty() { top.items } else { self.first_made(target, &numbers)? };
        let mut after_dirs = self.tables.clone();
        let subdirs = added.iter().filter(|i| i.1 == 2).count();
        self.rebuild(target.dir, added, subdirs, &mut after_dirs)?;
        let gone = self.gone.clone();
        for file in gone.iter().filter(|file| file.parent != target.dir) {
            self.remove_name(file, &mut after_dirs)?;
        }
        let mut after_image = after_dirs.clone();
        for file in &gone {
            self.clear_inode(file.node, &mut after_image)?;
        }
        self.free_rest(&mut after_image)?;
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
    fn body(&mut self, position: usize, entry: &NewEntry) -> Result<Body> {
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
                        let (taken, to) = self.for_copy(position, size)?;
                        let to = to.into_iter().map(|(at, len)| (Offset::new(at), len)).collect();
                        self.staging.copies.push(Copy { entry: position, size, to });
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
                if !self.claimable.clear(n) || !self.unclaimed.clear(n) {
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
}

/// The inodes of everything new.
#[derive(Default)]
pub(super) struct Numbers {
    /// Of the directories of `--into` that are made.
    pub(super) made: Vec<u32>,
    /// Of each entry; a further name has that of the first.
    pub(super) of: Vec<u32>,
    /// Of entries that are directories, which of the new directories they are, from 1 on.
    pub(super) dir_of: HashMap<usize, usize>,
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

impl ExtFs {
    fn build_staging(&self, job: &Job<'_>) -> Result<Staging> {
        self.ext.staging(self.census()?, job)
    }
}

impl Host for ExtFs {
    fn rules(&self) -> Rules {
        let s = &self.ext.superblock;
        let at = s.byte(s.first_data_block.into()).get();
        Rules {
            holes: true,
            hard_links: true,
            symlinks: true,
            special: true,
            xattrs: true,
            names: NameRules::Posix,
            ..Rules::plain(self.ext.unit(), at, self.ext.max_file())
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
        let target = self.ext.target(census, dir)?;
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
    fn needs(&self, job: &Job<'_>, staging: Option<&Staging>) -> Estimate {
        let unit = self.ext.unit().max(1);
        let copied = |e: &NewEntry| match &e.kind {
            NewKind::File { size, content: Content::Copied } => size.div_ceil(unit),
            _ => 0,
        };
        let copy_units = job.tree.entries.iter().map(copied).fold(0, u64::saturating_add);
        let Some(staging) = staging else {
            // What there is too little space for has at least these.
            return Estimate { copy_units, ..Estimate::default() };
        };
        let filled: u64 = staging.filled.iter().map(|(_, len)| *len).sum();
        let metadata_units = filled.checked_div(unit).unwrap_or(0).saturating_sub(copy_units);
        let changed = staging.groups.iter().flat_map(|g| &g.writes).chain(staging.interim.iter().map(|i| &i.1));
        let changed: u64 = changed.map(|w| w.bytes.len() as u64).sum();
        Estimate::of(unit, metadata_units, copy_units, changed, &staging.slack)
    }
    fn left_out(&self, job: &Job<'_>) -> Vec<(usize, Vec<u8>)> {
        let all = job.tree.entries.iter().enumerate();
        all.flat_map(|(n, e)| Kept::of(&self.ext, &e.xattrs).left_out.into_iter().map(move |name| (n, name))).collect()
    }
    fn new_state(&self, job: &Job<'_>) -> Result<Staging> {
        self.build_staging(job)
    }
    fn audit(&self, after: Arc<dyn ReadAt<Volume>>, job: &Job<'_>, staging: &Staging) -> Result<()> {
        super::audit::audit(self, after, job, staging)
    }
}
