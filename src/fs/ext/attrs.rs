//! Extended attributes and the targets of links, gathered for many inodes at once.

use super::inode::{Inode, flags};
use super::resolve::Mapping;
use super::scan::{Node, Trouble};
use super::sweep::sweep;
use super::volume::Ext;
use super::xattr::{self, Attribute, SYSTEM, Value};
use crate::bytes::Fields;
use crate::error::{Error, Result};
use crate::extent::{Offset, Volume};
use crate::fs::Xattr;

/// Attributes as their owner sees them, and targets of links, each with the position of the inode, ascending.
#[derive(Debug, Default)]
pub struct Attributes {
    /// Whole names and values.
    pub of: Vec<(usize, Vec<Xattr>)>,
    /// Targets.
    pub targets: Vec<(usize, Vec<u8>)>,
}

impl Ext {
    /// The attributes that lie in an inode.
    pub fn inode_attributes(&self, node: &Node, problems: &mut Vec<Error>) -> Vec<Attribute> {
        let Some((offset, area)) = &node.area else { return Vec::new() };
        xattr::in_inode(node.at.saturating_add(*offset), area, problems)
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

    /// The attributes of `nodes`, and the targets of the links among them. Their problems are none of the contents'.
    pub fn attributes(&self, nodes: &[Node], maps: &[Mapping], problems: &mut Vec<Trouble>) -> Attributes {
        let mut wrong = Vec::new();
        let out = self.all_attributes(nodes, maps, &mut wrong);
        problems.extend(wrong.into_iter().map(|(number, e)| match e {
            Error::Corrupt { structure, at, expected } => {
                (0, Error::Corrupt { structure: format!("{structure} of inode {number}"), at, expected })
            }
            e => (0, e),
        }));
        out
    }

    fn all_attributes(&self, nodes: &[Node], maps: &[Mapping], problems: &mut Vec<Trouble>) -> Attributes {
        // What one block holds may be every inode's: a crafted volume must not fill the memory by that.
        let mut budget = Budget(self.raw.len().saturating_add(256 << 20));
        let mut out = Attributes { of: Vec::new(), targets: self.targets(nodes, maps, &mut budget, problems) };
        let shared = self.attribute_blocks(nodes, problems);
        let with = |n: &(usize, &Node)| n.1.area.is_some() || n.1.inode.xattr_block != 0;
        for (position, node) in nodes.iter().enumerate().filter(with) {
            let mut own: Vec<Xattr> = Vec::new();
            let mut wrong = Vec::new();
            let mut all = self.inode_attributes(node, &mut wrong);
            problems.extend(wrong.into_iter().map(|e| (node.number, e)));
            if node.inode.xattr_block != 0
                && let Ok(at) = shared.binary_search_by_key(&node.inode.xattr_block, |b| b.0)
                && let Some((_, attributes)) = shared.get(at)
            {
                all.extend_from_slice(attributes);
            }
            for a in all.into_iter().filter(|a| !a.internal()) {
                let name = a.full_name();
                let value = match &a.value {
                    Value::Here(value) => Ok(value.clone()),
                    Value::Inode(number, size) => self.inode_value(nodes, maps, *number, *size),
                };
                match value.and_then(|v| budget.take(node, v)) {
                    Ok(value) => {
                        own.push((name, if matches!(a.index, 2 | 3) { acl(&value).unwrap_or(value) } else { value }))
                    }
                    Err(e) => problems.push((node.number, e)),
                }
            }
            own.sort();
            out.of.push((position, own));
        }
        out
    }

    /// The blocks of attributes of `nodes`, each once, by their numbers.
    fn attribute_blocks(&self, nodes: &[Node], problems: &mut Vec<Trouble>) -> Vec<(u64, Vec<Attribute>)> {
        let s = &self.superblock;
        let mut wanted: Vec<(u64, u32)> =
            nodes.iter().filter(|n| n.inode.xattr_block != 0).map(|n| (n.inode.xattr_block, n.number)).collect();
        wanted.sort_unstable();
        wanted.dedup_by_key(|w| w.0);
        let blocks: Vec<u64> = wanted.iter().map(|w| w.0).collect();
        let read = sweep(&*self.volume, s.block, &blocks, |n, bytes| {
            let number = blocks.get(n).copied().unwrap_or_default();
            let at = s.byte(number);
            let mut wrong = Vec::new();
            let found = bytes.and_then(|bytes| {
                if s.metadata_csum() && !xattr::intact(s.seed, number, bytes) {
                    wrong.push(Error::corrupt("ext attribute block", at, "a checksum that is right"));
                }
                xattr::in_block(at, bytes, &mut wrong)
            });
            let found = found.unwrap_or_else(|e| {
                wrong.push(e);
                Vec::new()
            });
            (found, wrong)
        });
        let mut out = Vec::with_capacity(wanted.len());
        for ((block, number), (found, wrong)) in wanted.into_iter().zip(read) {
            problems.extend(wrong.into_iter().map(|e| (number, e)));
            out.push((block, found));
        }
        out
    }

    /// A value that is the contents of inode `number`.
    fn inode_value(&self, nodes: &[Node], maps: &[Mapping], number: u32, size: u32) -> Result<Vec<u8>> {
        let found = nodes.binary_search_by_key(&number, |n| n.number).ok();
        let pair = found.and_then(|i| Some((nodes.get(i)?, maps.get(i)?)));
        let wrong = |what: &str| {
            Error::corrupt(format!("ext attribute value in inode {number}"), Offset::<Volume>::new(0), what)
        };
        let (node, map) = pair.ok_or_else(|| wrong("an inode in use"))?;
        if !node.inode.has(flags::EA_INODE) || node.inode.size != u64::from(size) {
            return Err(wrong("an inode for attribute values of the same size"));
        }
        self.contents(node, map, size as usize)
    }

    /// The first `len` bytes of an inode's blocks, which must be few.
    pub fn contents(&self, node: &Node, map: &Mapping, len: usize) -> Result<Vec<u8>> {
        let block = u64::from(self.superblock.block);
        let mut out = vec![0u8; len];
        let end = len as u64;
        for (from, _) in map.lost() {
            if from.saturating_mul(block) < end {
                return Err(Error::corrupt(format!("ext inode {}", node.number), node.at, "a map of its blocks"));
            }
        }
        for run in map.runs.iter().filter(|r| r.written) {
            let start = run.logical.saturating_mul(block);
            let stop = start.saturating_add(run.len.saturating_mul(block)).min(end);
            if let (Ok(a), Ok(b)) = (usize::try_from(start), usize::try_from(stop))
                && let Some(part) = out.get_mut(a..b)
            {
                self.volume.read_at(self.superblock.byte(run.physical), part)?;
            }
        }
        Ok(out)
    }

    fn targets(
        &self,
        nodes: &[Node],
        maps: &[Mapping],
        budget: &mut Budget,
        problems: &mut Vec<Trouble>,
    ) -> Vec<(usize, Vec<u8>)> {
        let mut out = Vec::new();
        // Targets in blocks of their own: block, position of the inode.
        let mut slow: Vec<(u64, usize)> = Vec::new();
        for (n, (node, map)) in nodes.iter().zip(maps).enumerate() {
            let inode = &node.inode;
            if inode.mode & 0xf000 != 0xa000 || inode.links == 0 || inode.has(flags::ENCRYPT) {
                continue;
            }
            let mut short = None;
            if inode.fast_link(&self.superblock) {
                short = Some(inode.inline_bytes(&inode.block, &[]));
            } else if inode.has(flags::INLINE_DATA) {
                let (head, rest) = self.inline_parts(node, problems);
                short = Some(inode.inline_bytes(head, &rest));
            } else if inode.size <= u64::from(self.superblock.block)
                && let Some(run) = map.runs.first().filter(|r| r.logical == 0 && r.written)
            {
                slow.push((run.physical, n));
                continue;
            }
            match short {
                Some(target) if target.len() as u64 == inode.size && !target.is_empty() => out.push((n, target)),
                _ => problems.push((node.number, no_target(node))),
            }
        }
        slow.sort_unstable();
        let mut blocks: Vec<u64> = slow.iter().map(|s| s.0).collect();
        blocks.dedup();
        let read = sweep(&*self.volume, self.superblock.block, &blocks, |_, bytes| bytes.map(<[u8]>::to_vec));
        let mut rest = slow.iter().peekable();
        for (block, bytes) in blocks.iter().zip(read) {
            while let Some((_, n)) = rest.next_if(|s| s.0 == *block) {
                let Some(node) = nodes.get(*n) else { continue };
                let target = bytes.as_ref().ok().and_then(|b| b.get(..usize::try_from(node.inode.size).ok()?));
                match target.ok_or_else(|| no_target(node)).and_then(|t| budget.take(node, t.to_vec())) {
                    Ok(target) => out.push((*n, target)),
                    Err(e) => problems.push((node.number, e)),
                }
            }
        }
        out.sort_unstable_by_key(|t| t.0);
        out
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

fn no_target(node: &Node) -> Error {
    Error::corrupt(format!("ext inode {}", node.number), node.at, "a link's target of a length that there is")
}

/// Bytes that may still be copied.
struct Budget(u64);

impl Budget {
    fn take(&mut self, node: &Node, bytes: Vec<u8>) -> Result<Vec<u8>> {
        match self.0.checked_sub(bytes.len() as u64) {
            Some(rest) => {
                self.0 = rest;
                Ok(bytes)
            }
            None => Err(Error::corrupt(
                format!("ext inode {}", node.number),
                node.at,
                "attributes and targets of less than the volume's bytes in all",
            )),
        }
    }
}

/// An access control list as it is on the disk, from the form that `getxattr` gives; none where it is none.
pub fn disk_acl(value: &[u8]) -> Option<Vec<u8>> {
    let f = Fields::new("access control list", Offset::<Volume>::new(0), value);
    if f.u32(0).ok()? != 2 || value.len() % 8 != 4 {
        return None;
    }
    let mut out = 1u32.to_le_bytes().to_vec();
    for at in (4..value.len()).step_by(8) {
        let long = matches!(f.u16(at).ok()?, 2 | 8);
        out.extend_from_slice(f.slice(at, if long { 8 } else { 4 }).ok()?);
    }
    Some(out)
}

/// An access control list as `getxattr` gives it (version 2, entries of 8 bytes), from the form that it has on the disk
/// (version 1, entries of 4 bytes but for named users and groups).
fn acl(disk: &[u8]) -> Option<Vec<u8>> {
    let f = Fields::new("ext access control list", Offset::<Volume>::new(0), disk);
    if f.u32(0).ok()? != 1 {
        return None;
    }
    let mut out = 2u32.to_le_bytes().to_vec();
    let mut at = 4usize;
    while at < disk.len() {
        let tag = f.u16(at).ok()?;
        out.extend_from_slice(f.slice(at, 4).ok()?);
        at = at.saturating_add(4);
        if matches!(tag, 2 | 8) {
            out.extend_from_slice(f.slice(at, 4).ok()?);
            at = at.saturating_add(4);
        } else {
            out.extend_from_slice(&[0xff; 4]);
        }
    }
    Some(out)
}
