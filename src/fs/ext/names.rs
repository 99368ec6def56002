//! The names: all blocks of all directories, in the order in which they lie.

use super::dir;
use super::extent_tree::Run;
use super::inode::{Inode, flags};
use super::read::Ext;
use super::resolve::{Mapping, Visited};
use super::scan::{Node, Trouble};
use super::sweep::sweep;
use super::xattr::{Attribute, SYSTEM, Value};
use crate::error::Error;
use crate::extent::{Offset, Volume};

/// A name in a directory.
#[derive(Clone, Debug)]
pub struct Name {
    /// The directory's inode.
    pub parent: u32,
    /// The inode that it leads to.
    pub inode: u32,
    /// The type that it is said to have; 0 where that is not kept.
    pub kind: u8,
    /// The name; `.` and `..` where a directory begins with them.
    pub name: Box<[u8]>,
}

impl Name {
    /// Whether it is one of the two that lead to the directory itself and to the one above.
    pub fn is_dots(&self) -> bool {
        matches!(&*self.name, b"." | b"..")
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
    pub fn names(
        &self,
        nodes: &[Node],
        maps: &[Mapping],
        visited: &mut Visited,
        problems: &mut Vec<Trouble>,
    ) -> Vec<Name> {
        let mut out = Vec::new();
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
            let (mut names, mut problems) = (Vec::new(), Vec::new());
            let Some((b, node)) = blocks.get(n).and_then(|b| Some((b, nodes.get(b.owner)?))) else {
                return (names, problems);
            };
            match bytes {
                Ok(bytes) => self.block_names(node, b, bytes, &mut names, &mut problems),
                Err(e) => problems.push((node.number, e)),
            }
            (names, problems)
        });
        for (names, more) in found {
            out.extend(names);
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
        for Run { logical, len, physical, written } in &map.runs {
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

    fn block_names(&self, node: &Node, b: &DirBlock, bytes: &[u8], names: &mut Vec<Name>, problems: &mut Vec<Trouble>) {
        let s = &self.superblock;
        let at = s.byte(b.physical);
        if s.metadata_csum() && !dir::intact(node.inode.own_seed(s, node.number), bytes, node.inode.has(flags::INDEX)) {
            problems.push((node.number, Error::corrupt("ext directory block", at, "a checksum that is right")));
        }
        let (entries, wrong) = dir::entries(at, bytes, s.block as usize);
        problems.extend(wrong.map(|e| (node.number, e)));
        for (n, e) in entries.iter().enumerate() {
            if b.logical == 0 && (n == 0 && e.name == b"." || n == 1 && e.name == b"..") {
                names.push(Name { parent: node.number, inode: e.inode, kind: e.kind, name: e.name.into() });
            } else {
                self.add(node, at, e, names, problems);
            }
        }
    }

    /// The names in a directory whose entries lie in its inode: the parent's number, entries in what is left of the block
    /// map, and entries in the attribute `system.data`.
    fn inline_names(&self, node: &Node, names: &mut Vec<Name>, problems: &mut Vec<Trouble>) {
        let at = node.at.saturating_add(0x28);
        let (head, rest) = self.inline_parts(node, problems);
        let above = head.first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
        for (name, inode) in [(&b"."[..], node.number), (b"..", above)] {
            names.push(Name { parent: node.number, inode, kind: 2, name: name.into() });
        }
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
        names: &mut Vec<Name>,
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
        names.push(Name { parent: node.number, inode: e.inode, kind: e.kind, name: e.name.into() });
    }

    /// Inline contents: the 60 bytes of the block map, and what is in the attribute `system.data`.
    pub fn inline_parts<'a>(&self, node: &'a Node, problems: &mut Vec<Trouble>) -> (&'a [u8; 60], Vec<u8>) {
        let mut wrong = Vec::new();
        let rest = self.inode_attributes(node, &mut wrong).into_iter().find_map(|a| match a {
            Attribute { index: SYSTEM, name, value: Value::Here(value) } if name == b"data" => Some(value),
            _ => None,
        });
        problems.extend(wrong.into_iter().map(|e| (node.number, e)));
        (&node.inode.block, rest.unwrap_or_default())
    }
}

impl Inode {
    /// The bytes of a file whose contents lie in its inode. Where its size is more, zeros follow.
    pub fn inline_bytes(&self, head: &[u8; 60], rest: &[u8]) -> Vec<u8> {
        let mut all = [head, rest].concat();
        all.truncate(usize::try_from(self.size).unwrap_or(usize::MAX));
        all
    }
}
