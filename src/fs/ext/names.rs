//! The names: all blocks of all directories, in the order in which they lie.

use super::dir;
use super::extent_tree::Run;
use super::inode::flags;
use super::resolve::{Mapping, Visited};
use super::scan::{Node, Trouble};
use super::sweep::sweep;
use super::volume::Ext;
use crate::error::Error;
use crate::extent::{Offset, Volume};

/// A name in a directory.
#[derive(Clone, Copy, Debug)]
pub struct Name {
    /// The directory's inode.
    pub parent: u32,
    /// The inode that it leads to.
    pub inode: u32,
    /// Where its bytes are in [`Names`].
    at: usize,
    len: u8,
    /// The type that it is said to have; 0 where that is not kept.
    pub kind: u8,
    /// Whether it is the `.` or `..` with which a directory begins, which lead to the directory itself and to the one
    /// above.
    pub dots: Option<Dots>,
}

/// The two names with which a directory begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dots {
    /// `.`
    One,
    /// `..`
    Two,
}

/// Names of many directories. (Each in an allocation of its own would take longer than reading them.)
#[derive(Debug, Default)]
pub struct Names {
    /// In no order that means anything.
    pub list: Vec<Name>,
    text: Vec<u8>,
}

impl Names {
    /// The bytes of a name.
    pub fn text(&self, name: &Name) -> &[u8] {
        self.text.get(name.at..name.at.saturating_add(name.len.into())).unwrap_or_default()
    }
    /// All but those with which directories begin.
    pub fn real(&self) -> impl Iterator<Item = &Name> {
        self.list.iter().filter(|n| n.dots.is_none())
    }
    fn push(&mut self, parent: u32, inode: u32, kind: u8, text: &[u8]) {
        let (at, len) = (self.text.len(), u8::try_from(text.len()).unwrap_or(u8::MAX));
        self.text.extend_from_slice(text);
        self.list.push(Name { parent, inode, at, len, kind, dots: None });
    }
    fn push_dots(&mut self, parent: u32, inode: u32, kind: u8, dots: Dots) {
        self.list.push(Name { parent, inode, at: 0, len: 0, kind, dots: Some(dots) });
    }
    /// Adds the names of others.
    pub fn append(&mut self, other: Self) {
        if self.list.is_empty() {
            *self = other;
            return;
        }
        let base = self.text.len();
        self.text.extend_from_slice(&other.text);
        self.list.extend(other.list.into_iter().map(|n| Name { at: n.at.saturating_add(base), ..n }));
    }
}

/// One block of a directory.
struct DirBlock {
    physical: u64,
    logical: u64,
    owner: usize,
}

impl Ext {
    /// The names in the directories among `nodes`, whose mappings are `maps`.
    pub fn names(&self, nodes: &[Node], maps: &[Mapping], visited: &mut Visited, problems: &mut Vec<Trouble>) -> Names {
        let mut out = Names::default();
        let mut blocks = Vec::new();
        for (owner, (node, map)) in nodes.iter().zip(maps).enumerate() {
            if node.inode.mode & 0xf000 != 0x4000 || node.inode.links == 0 {
                continue;
            }
            if node.inode.has(flags::INLINE_DATA) {
                self.inline_names(node, &mut out, problems);
            } else {
                self.dir_blocks(owner, node, map, visited, &mut blocks, problems);
            }
        }
        blocks.sort_unstable_by_key(|b| b.physical);
        let places: Vec<u64> = blocks.iter().map(|b| b.physical).collect();
        let found = sweep(&*self.volume, self.superblock.block, &places, |n, bytes| {
            let (mut names, mut problems) = (Names::default(), Vec::new());
            let Some((b, node)) = blocks.get(n).and_then(|b| Some((b, nodes.get(b.owner)?))) else {
                return (names, problems);
            };
            match bytes {
                Ok(bytes) => self.block_names(node, b, bytes, &mut names, &mut problems),
                Err(e) => problems.push((node.number, e)),
            }
            (names, problems)
        });
        out.list.reserve(found.iter().map(|f| f.0.list.len()).sum());
        out.text.reserve(found.iter().map(|f| f.0.text.len()).sum());
        for (names, more) in found {
            out.append(names);
            problems.extend(more);
        }
        out
    }

    /// The blocks of a directory that are to be read.
    fn dir_blocks(
        &self,
        owner: usize,
        node: &Node,
        map: &Mapping,
        visited: &mut Visited,
        blocks: &mut Vec<DirBlock>,
        problems: &mut Vec<Trouble>,
    ) {
        let end = node.inode.size.div_ceil(u64::from(self.superblock.block));
        let mut have = 0u64;
        for Run { logical, len, physical, written } in map.runs.iter() {
            if !written || *logical >= end {
                continue;
            }
            for n in 0..(*len).min(end.saturating_sub(*logical)) {
                let block = physical.saturating_add(n);
                if !visited.insert(block) {
                    // The rest of such a run is not looked at: a crafted one could have the same blocks any number of times.
                    let at = self.superblock.byte(block);
                    problems.push((node.number, Error::corrupt("ext directory block", at, "a block of its own")));
                    break;
                }
                blocks.push(DirBlock { physical: block, logical: logical.saturating_add(n), owner });
                have = have.saturating_add(1);
            }
        }
        if have < end {
            problems.push((
                node.number,
                Error::corrupt(
                    format!("ext directory {}", node.number),
                    node.at,
                    format!("{end} blocks that can be read, not {have}"),
                ),
            ));
        }
    }

    fn block_names(&self, node: &Node, b: &DirBlock, bytes: &[u8], names: &mut Names, problems: &mut Vec<Trouble>) {
        let s = &self.superblock;
        let at = s.byte(b.physical);
        if s.metadata_csum() && !dir::intact(node.inode.own_seed(s, node.number), bytes, node.inode.has(flags::INDEX)) {
            problems.push((node.number, Error::corrupt("ext directory block", at, "a checksum that is right")));
        }
        let (entries, wrong) = dir::entries(at, bytes, s.block as usize);
        problems.extend(wrong.map(|e| (node.number, e)));
        for (n, e) in entries.iter().enumerate() {
            let dots = match (b.logical, n, e.name) {
                (0, 0, b".") => Some(Dots::One),
                (0, 1, b"..") => Some(Dots::Two),
                _ => None,
            };
            if let Some(dots) = dots {
                names.push_dots(node.number, e.inode, e.kind, dots);
            } else {
                self.add(node, at, e, names, problems);
            }
        }
    }

    /// The names in a directory whose entries lie in its inode: the parent's number, entries in what is left of the block
    /// map, and entries in the attribute `system.data`.
    fn inline_names(&self, node: &Node, names: &mut Names, problems: &mut Vec<Trouble>) {
        let at = node.at.saturating_add(0x28);
        let (head, rest) = self.inline_parts(node, problems);
        let above = head.first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
        names.push_dots(node.number, node.number, 2, Dots::One);
        names.push_dots(node.number, above, 2, Dots::Two);
        for (at, bytes) in [(at.saturating_add(4), head.get(4..).unwrap_or_default()), (node.at, &rest)] {
            let (entries, wrong) = dir::entries(at, bytes, self.superblock.block as usize);
            problems.extend(wrong.map(|e| (node.number, e)));
            for e in &entries {
                self.add(node, at, e, names, problems);
            }
        }
    }

    fn add(
        &self,
        node: &Node,
        at: Offset<Volume>,
        e: &dir::DirEntry<'_>,
        names: &mut Names,
        problems: &mut Vec<Trouble>,
    ) {
        if e.name == b"." || e.name == b".." {
            let at = at.saturating_add(e.at as u64);
            problems.push((node.number, Error::corrupt("ext directory entry", at, "no second `.` or `..`")));
            return;
        }
        // Ciphertext may have any byte.
        if !node.inode.has(flags::ENCRYPT) && e.name.iter().any(|b| matches!(b, 0 | b'/')) {
            let at = at.saturating_add(e.at as u64);
            problems.push((node.number, Error::corrupt("ext directory entry", at, "a name without `/` and NUL")));
        }
        names.push(node.number, e.inode, e.kind, e.name);
    }
}
