//! From inodes to the runs of their contents: block maps and extent trees of all inodes at once, level by level, so that
//! their blocks are read in the order in which they lie.

use std::collections::HashSet;

use rayon::prelude::*;

use super::block_map;
use super::extent_tree::{self, Child, Node as TreeNode, Run, Runs};
use super::inode::flags;
use super::scan::{Node, Trouble};
use super::sweep::sweep;
use super::volume::Ext;
use crate::error::Error;
use crate::extent::{Encoding, Offset, Place, Volume, What};

/// Where an inode's contents are.
#[derive(Clone, Debug, Default)]
pub struct Mapping {
    /// Runs by logical block; not overlapping once [`Ext::resolve`] is through.
    pub runs: Runs,
    more: Option<Box<More>>,
}

/// What most mappings don't have.
#[derive(Clone, Debug, Default)]
struct More {
    lost: Vec<(u64, u64)>,
    nodes: Vec<u64>,
}

impl Mapping {
    /// Logical blocks of which nothing is known, as the map is damaged there: from, to.
    pub fn lost(&self) -> &[(u64, u64)] {
        self.more.as_ref().map_or(&[], |m| &m.lost)
    }
    /// Blocks that the map itself takes.
    pub fn nodes(&self) -> &[u64] {
        self.more.as_ref().map_or(&[], |m| &m.nodes)
    }
    fn more(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }
    fn lose(&mut self, range: (u64, u64)) {
        self.more().lost.push(range);
    }
}

/// A block of a map that is still to be read.
#[derive(Clone, Copy, Debug)]
struct Pending {
    block: u64,
    /// Position of the inode.
    owner: usize,
    /// What the block must be.
    level: Level,
    /// The blocks of the file that it may map: from, to.
    range: (u64, u64),
}

#[derive(Clone, Copy, Debug)]
enum Level {
    /// An extent node of this depth.
    Extents(u16),
    /// Pointers of this level.
    Pointers(u16),
}

/// Blocks of metadata that were visited. In a sound volume each has one owner; a crafted one could have the same block
/// read any number of times.
pub type Visited = HashSet<u64>;

impl Ext {
    /// The runs of the contents of `nodes`. Inline contents and short links have none.
    pub fn resolve(&self, nodes: &[Node], visited: &mut Visited, problems: &mut Vec<Trouble>) -> Vec<Mapping> {
        const PART: usize = 2048;
        let roots = |(part, nodes): (usize, &[Node])| {
            let mut maps = Vec::with_capacity(nodes.len());
            let (mut pending, mut problems) = (Vec::new(), Vec::new());
            for (owner, node) in (part.saturating_mul(PART)..).zip(nodes) {
                let mut map = Mapping::default();
                self.root(owner, node, &mut map, &mut pending, &mut problems);
                maps.push(map);
            }
            (maps, pending, problems)
        };
        let parts: Vec<_> = nodes.par_chunks(PART).enumerate().map(roots).collect();
        let mut maps = Vec::with_capacity(nodes.len());
        let mut pending = Vec::new();
        for (some, further, wrong) in parts {
            maps.extend(some);
            pending.extend(further);
            problems.extend(wrong);
        }
        // Depth falls by one at each round, so this ends.
        while !pending.is_empty() {
            pending = self.level(nodes, pending, &mut maps, visited, problems);
        }
        for (node, map) in nodes.iter().zip(&mut maps) {
            self.order(node, map, problems);
        }
        maps
    }

    fn root(
        &self,
        owner: usize,
        node: &Node,
        map: &mut Mapping,
        pending: &mut Vec<Pending>,
        problems: &mut Vec<Trouble>,
    ) {
        let inode = &node.inode;
        let kind = inode.mode & 0xf000;
        if !matches!(kind, 0x4000 | 0x8000 | 0xa000)
            || inode.has(flags::INLINE_DATA)
            || inode.fast_link(&self.superblock)
        {
            return;
        }
        let all = (0, u64::MAX);
        if inode.has(flags::EXTENTS) {
            match extent_tree::decode(node.at.saturating_add(0x28), &inode.block, None) {
                Ok(found) => self.descend(owner, node, found, all, map, pending, problems),
                Err(e) => {
                    map.lose(all);
                    problems.push((node.number, e));
                }
            }
            return;
        }
        let per = u64::from(self.superblock.block) >> 2;
        let (runs, children) = block_map::root(&inode.block, per);
        self.take(node, runs, all, map, problems);
        for (level, child) in children {
            let end = child.logical.saturating_add(block_map::span(per, level.saturating_add(1)));
            pending.push(Pending {
                block: child.block,
                owner,
                level: Level::Pointers(level),
                range: (child.logical, end),
            });
        }
    }

    /// Takes what an extent node holds.
    #[expect(clippy::too_many_arguments, reason = "what belongs to one inode, and two lists that all share")]
    fn descend(
        &self,
        owner: usize,
        node: &Node,
        found: TreeNode,
        range: (u64, u64),
        map: &mut Mapping,
        pending: &mut Vec<Pending>,
        problems: &mut Vec<Trouble>,
    ) {
        match found {
            TreeNode::Leaf(runs) => self.take(node, runs, range, map, problems),
            TreeNode::Index(depth, children) => {
                let ends = children.iter().skip(1).map(|c| c.logical).chain([range.1]);
                for (Child { logical, block }, end) in children.iter().zip(ends) {
                    if *logical < range.0 || *logical >= end {
                        map.lose(range);
                        problems.push((
                            node.number,
                            Error::corrupt(
                                format!("ext inode {}", node.number),
                                node.at,
                                "extent indexes in ascending order",
                            ),
                        ));
                        return;
                    }
                    let range = (*logical, end);
                    pending.push(Pending { block: *block, owner, level: Level::Extents(depth), range });
                }
            }
        }
    }

    /// Takes runs of data. One that lies beyond the volume, or outside of what its node may map, is lost.
    fn take(&self, node: &Node, runs: Runs, range: (u64, u64), map: &mut Mapping, problems: &mut Vec<Trouble>) {
        let first = u64::from(self.superblock.first_data_block);
        let placed = |run: &Run| {
            run.physical >= first
                && run.physical.checked_add(run.len).is_some_and(|end| end <= self.superblock.blocks)
                && run.len != 0
                && run.logical >= range.0
                && run.logical.saturating_add(run.len) <= range.1
        };
        if map.runs.is_empty() && runs.iter().all(placed) {
            map.runs = runs;
            return;
        }
        for run in runs.iter() {
            if placed(run) {
                map.runs.push(*run);
                continue;
            }
            let end = run.logical.saturating_add(run.len).max(run.logical.saturating_add(1));
            map.lose((run.logical, end));
            problems.push((
                node.number,
                Error::corrupt(
                    format!("ext inode {}, extent of {} blocks at {}", node.number, run.len, run.physical),
                    node.at,
                    format!("blocks within the {} of the volume, in order", self.superblock.blocks),
                ),
            ));
        }
    }

    /// Reads one level of all maps; gives the next one.
    fn level(
        &self,
        nodes: &[Node],
        mut pending: Vec<Pending>,
        maps: &mut [Mapping],
        visited: &mut Visited,
        problems: &mut Vec<Trouble>,
    ) -> Vec<Pending> {
        let first = u64::from(self.superblock.first_data_block);
        pending.sort_by_key(|p| (p.block, p.owner));
        let mut lose = |p: &Pending, maps: &mut [Mapping], e: Error| {
            if let (Some(map), Some(node)) = (maps.get_mut(p.owner), nodes.get(p.owner)) {
                map.lose(p.range);
                problems.push((node.number, e));
            }
        };
        pending.retain(|p| {
            let fits = p.block >= first && p.block < self.superblock.blocks;
            let own = fits && visited.insert(p.block);
            if !own {
                let what = if fits { "a block of its own" } else { "a block within the volume" };
                lose(p, maps, Error::corrupt("ext block map", self.superblock.byte(p.block), what));
            }
            own
        });
        let blocks: Vec<u64> = pending.iter().map(|p| p.block).collect();
        let per = u64::from(self.superblock.block) >> 2;
        let read = sweep(&*self.volume, self.superblock.block, &blocks, |n, bytes| {
            let bytes = bytes?;
            let Some(p) = pending.get(n) else { return Err(Error::past_end(Offset::<Volume>::new(0), 0, 0)) };
            Ok(match p.level {
                Level::Extents(depth) => {
                    let at = self.superblock.byte(p.block);
                    let seed = nodes.get(p.owner).map_or(0, |n| n.inode.own_seed(&self.superblock, n.number));
                    let intact = !self.superblock.metadata_csum() || extent_tree::intact(seed, bytes);
                    (extent_tree::decode(at, bytes, Some(depth))?, Vec::new(), intact)
                }
                Level::Pointers(level) => {
                    let (runs, children) = block_map::decode(bytes, level, p.range.0);
                    (TreeNode::Leaf(runs), children, true)
                }
            })
        });
        let mut next = Vec::new();
        for (p, found) in pending.iter().zip(read) {
            let (found, children, intact) = match found {
                Ok(found) => found,
                Err(e) => {
                    if let (Some(map), Some(node)) = (maps.get_mut(p.owner), nodes.get(p.owner)) {
                        map.lose(p.range);
                        problems.push((node.number, e));
                    }
                    continue;
                }
            };
            let (Some(node), Some(map)) = (nodes.get(p.owner), maps.get_mut(p.owner)) else { continue };
            map.more().nodes.push(p.block);
            if !intact {
                let at = self.superblock.byte(p.block);
                problems.push((node.number, Error::corrupt("ext extent node", at, "a checksum that is right")));
            }
            self.descend(p.owner, node, found, p.range, map, &mut next, problems);
            if let Level::Pointers(level) = p.level {
                let below = level.saturating_sub(1);
                let width = block_map::span(per, level);
                next.extend(children.into_iter().map(|c| Pending {
                    block: c.block,
                    owner: p.owner,
                    level: Level::Pointers(below),
                    range: (c.logical, c.logical.saturating_add(width)),
                }));
            }
        }
        next
    }

    /// Brings runs into order. Where two overlap, which one is right can't be told: then all is lost.
    fn order(&self, node: &Node, map: &mut Mapping, problems: &mut Vec<Trouble>) {
        if map.runs.len() > 1 {
            map.runs.sort_unstable();
        }
        if let Some(more) = &mut map.more {
            more.lost.sort_unstable();
        }
        let mut end = 0;
        for run in map.runs.iter() {
            if run.logical < end {
                let what = format!("ext inode {}, block {} of the file", node.number, run.logical);
                problems.push((node.number, Error::corrupt(what, node.at, "extents that don't overlap")));
                map.more().lost = vec![(0, u64::MAX)];
                map.runs = Runs::None;
                return;
            }
            end = run.logical.saturating_add(run.len);
        }
    }

    /// The pieces of a stream of `size` bytes, added to `out`: what is stored, with blocks that the journal replaces where
    /// they are in the journal, zeros, and what can't be had.
    pub fn pieces(&self, map: &Mapping, size: u64, encrypted: bool, out: &mut Vec<(u64, What<Volume>)>) {
        let block = u64::from(self.superblock.block);
        let end = size.div_ceil(block);
        // By rank: a known run before damage at the same place.
        let known = map.runs.iter().map(|r| (r.logical, r.logical.saturating_add(r.len), Some(*r)));
        if map.lost().is_empty() {
            return self.laid_out(known, end, encrypted, out);
        }
        let mut parts: Vec<_> = known.chain(map.lost().iter().map(|(from, to)| (*from, *to, None))).collect();
        parts.sort_by_key(|p| (p.0, p.2.is_none()));
        self.laid_out(parts, end, encrypted, out);
    }

    /// Runs (none for damage) by their blocks in the file, from and to, as pieces up to the block `end`.
    fn laid_out(
        &self,
        parts: impl IntoIterator<Item = (u64, u64, Option<Run>)>,
        end: u64,
        encrypted: bool,
        out: &mut Vec<(u64, What<Volume>)>,
    ) {
        let block = u64::from(self.superblock.block);
        let mut pos = 0u64;
        // How far nothing is known, of the stretches of damage that began so far.
        let mut lost = 0u64;
        let bytes = |blocks: u64| blocks.saturating_mul(block);
        let gap = |pos: u64, to: u64, lost: u64, out: &mut Vec<(u64, What<Volume>)>| {
            let known = lost.clamp(pos, to.max(pos));
            out.push((bytes(known.saturating_sub(pos)), What::Encoded(Encoding::Unreadable)));
            out.push((bytes(to.saturating_sub(known)), What::Zero));
        };
        for (from, to, run) in parts {
            let from = from.min(end);
            if from > pos {
                gap(pos, from, lost, out);
                pos = from;
            }
            let Some(run) = run else {
                lost = lost.max(to);
                continue;
            };
            let len = to.min(end).saturating_sub(from);
            match (run.written, encrypted) {
                (false, _) => out.push((bytes(len), What::Zero)),
                (true, true) => out.push((bytes(len), What::Encoded(Encoding::FsEncrypted))),
                (true, false) => self.stored(run.physical, len, out),
            }
            pos = pos.max(from.saturating_add(len));
        }
        gap(pos, end, lost, out);
    }

    /// Blocks as they are to be read: in place, or from the journal.
    fn stored(&self, physical: u64, len: u64, out: &mut Vec<(u64, What<Volume>)>) {
        let block = u64::from(self.superblock.block);
        let layer = self.raw.id();
        let place = |from: u64| What::Stored(Place { layer, offset: self.superblock.byte(from) });
        let mut at = physical;
        let end = physical.saturating_add(len);
        if let Some(replay) = &self.replay {
            for (target, source) in replay.blocks.range(physical..end) {
                out.push((target.saturating_sub(at).saturating_mul(block), place(at)));
                at = target.saturating_add(1);
                // An escaped block has other first bytes in the journal than in the file.
                out.push((block, if source.escaped { What::Encoded(Encoding::Inline) } else { place(source.block) }));
            }
        }
        out.push((end.saturating_sub(at).saturating_mul(block), place(at)));
    }
}
