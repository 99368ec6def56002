//! The walk: everything that is in a volume, as a tree.

use super::bits::Bits;
use super::inode::{ROOT, flags};
use super::names::Names;
use super::resolve::{Mapping, Visited};
use super::scan::{Node, Trouble};
use super::superblock::incompat;
use super::volume::Ext;
use crate::error::{Error, Result};
use crate::extent::{Encoding, Offset, Volume, What};
use crate::fs::{Facts, Form, Kind, NewStream, Object, ObjectId, Tree, TreeBuilder};

/// The most problems that are listed; how many more there are is said.
const PROBLEMS: usize = 10_000;

/// Everything that was gathered about the inodes of a walk.
#[derive(Default)]
pub(super) struct Found {
    pub(super) nodes: Vec<Node>,
    pub(super) maps: Vec<Mapping>,
    pub(super) names: Names,
    pub(super) problems: Vec<Trouble>,
}

impl Ext {
    pub(super) fn gather(&self) -> Found {
        let mut visited = Visited::default();
        let scan = self.scan();
        let mut all = Found { problems: scan.problems, ..Found::default() };
        let mut fresh = scan.nodes;
        // Inodes that were found or at least looked for.
        let there = (self.groups.len() as u64).saturating_mul(self.superblock.inodes_per_group.into());
        let mut known = Bits::new(there.saturating_add(1));
        loop {
            for node in &fresh {
                known.set(node.number.into());
            }
            let maps = self.resolve(&fresh, &mut visited, &mut all.problems);
            let names = self.names(&fresh, &maps, &mut visited, &mut all.problems);
            if all.nodes.is_empty() {
                (all.nodes, all.maps) = (fresh, maps);
            } else {
                all.nodes.append(&mut fresh);
                all.maps.extend(maps);
            }
            // Names that lead to inodes which the bitmaps say are free: an owner would see them all the same.
            let mut missing: Vec<u32> = names.real().map(|n| n.inode).chain([ROOT]).collect();
            missing.retain(|n| known.set(u64::from(*n)));
            all.names.append(names);
            if missing.is_empty() {
                break;
            }
            missing.sort_unstable();
            let more = self.scan_some(&missing);
            all.problems.extend(more.problems);
            fresh = more.nodes;
        }
        if !all.nodes.is_sorted_by_key(|n| n.number) {
            let mut both: Vec<(Node, Mapping)> = all.nodes.into_iter().zip(all.maps).collect();
            both.sort_by_key(|b| b.0.number);
            (all.nodes, all.maps) = both.into_iter().unzip();
        }
        all
    }

    /// The tree of what was gathered. `keep`: inodes and maps are needed afterwards; otherwise they go as soon as may be, as they
    /// take more memory than the tree.
    pub(super) fn build(&self, found: &mut Found, keep: bool) -> Result<Tree> {
        let attributes = self.attributes(&found.nodes, &found.maps, &mut found.problems);
        let mut b = TreeBuilder::new();
        b.reserve(found.nodes.len());
        let numbers: Vec<u32> = found.nodes.iter().map(|n| n.number).collect();
        let mut ids: Vec<Option<ObjectId>> = Vec::with_capacity(found.nodes.len());
        let (mut xattrs, mut targets) =
            (attributes.of.into_iter().peekable(), attributes.targets.into_iter().peekable());
        let mut pieces = Vec::new();
        for (position, (node, map)) in found.nodes.iter().zip(&found.maps).enumerate() {
            let xattrs = xattrs.next_if(|x| x.0 == position);
            let target = targets.next_if(|t| t.0 == position);
            let inode = &node.inode;
            let kind = inode.kind();
            if inode.links == 0 || self.hidden(node) || kind.is_none() {
                if kind.is_none() && inode.links != 0 && !self.hidden(node) {
                    let e = Error::corrupt(format!("ext inode {}", node.number), node.at, "a type that there is");
                    found.problems.push((node.number, e));
                }
                ids.push(None);
                continue;
            }
            let id = b.object(Object {
                kind: kind.unwrap_or(Kind::File),
                number: node.number.into(),
                times: inode.times,
                attributes: 0,
                mode: Some(inode.mode & 0o7777),
                owner: Some((inode.uid, inode.gid)),
                system: false,
            });
            ids.push(Some(id));
            for (name, value) in xattrs.into_iter().flat_map(|x| x.1) {
                b.xattr(id, name, value);
            }
            if let Some((_, target)) = target {
                b.target(id, target);
            }
            let encrypted = inode.has(flags::ENCRYPT);
            if kind == Some(Kind::File) || kind == Some(Kind::Symlink) && encrypted {
                self.stream(&mut b, id, (node, map), encrypted, &mut pieces, &mut found.problems);
            }
        }
        if !keep {
            (found.nodes, found.maps) = Default::default();
        }
        // Names that follow each other mostly lead to inodes that do.
        let place = |number: u32, near: usize| -> Option<usize> {
            let guess = [near, near.saturating_add(1)].into_iter().find(|at| numbers.get(*at) == Some(&number));
            guess.or_else(|| numbers.binary_search(&number).ok())
        };
        let find = |number: u32| place(number, 0).and_then(|at| ids.get(at).copied().flatten());
        let root = find(ROOT).filter(|id| b.object_mut(*id).is_some_and(|o| o.kind == Kind::Dir)).ok_or_else(|| {
            Error::corrupt("ext inode 2", self.inode_at(ROOT).unwrap_or_default(), "the root directory")
        })?;
        let mut named = vec![false; ids.len()];
        let (mut dir, mut last) = (0, 0);
        for name in found.names.real() {
            let text = found.names.text(name);
            let by = |number: u32, near: &mut usize| {
                let at = place(number, *near)?;
                *near = at;
                ids.get(at).copied().flatten()
            };
            match (by(name.parent, &mut dir), by(name.inode, &mut last)) {
                (Some(parent), Some(object)) => {
                    b.entry(parent, text, object);
                    if let Some(slot) = named.get_mut(object.index()) {
                        *slot = true;
                    }
                }
                (Some(_), None) => {
                    let what = format!("entry `{}` of ext directory {}", text.escape_ascii(), name.parent);
                    let at = self.inode_at(name.inode).unwrap_or_default();
                    found
                        .problems
                        .push((name.parent, Error::corrupt(what, at, format!("inode {} in use", name.inode))));
                }
                (None, _) => {}
            }
        }
        for (id, number) in ids.iter().zip(&numbers) {
            if let Some(id) = id
                && *id != root
                && named.get(id.index()) == Some(&false)
            {
                let at = self.inode_at(*number).unwrap_or_default();
                let e = Error::corrupt(format!("ext inode {number}"), at, "a name that leads to it");
                found.problems.push((*number, e));
            }
        }
        for e in &self.problems {
            b.problem(None, e);
        }
        for (number, e) in found.problems.iter().take(PROBLEMS) {
            b.problem(find(*number), e);
        }
        if let Some(more) = found.problems.len().checked_sub(PROBLEMS).filter(|more| *more > 0) {
            let e =
                Error::corrupt("ext volume", Offset::<Volume>::new(0), format!("less damage: {more} more problems"));
            b.problem(None, &e);
        }
        Ok(b.finish(root))
    }

    fn stream(
        &self,
        b: &mut TreeBuilder,
        id: ObjectId,
        (node, map): (&Node, &Mapping),
        encrypted: bool,
        pieces: &mut Vec<(u64, What<Volume>)>,
        problems: &mut Vec<Trouble>,
    ) {
        let size = node.inode.size;
        let mut form = if encrypted { Form::Encrypted } else { Form::Plain };
        pieces.clear();
        if node.inode.has(flags::INLINE_DATA) || node.inode.fast_link(&self.superblock) {
            let (head, rest) = self.inline_parts(node, problems);
            let len = node.inode.inline_bytes(head, &rest).len() as u64;
            let what = if encrypted { Encoding::FsEncrypted } else { Encoding::Inline };
            if !encrypted && size != 0 {
                form = Form::Inline;
            }
            pieces.push((len, What::Encoded(what)));
        } else {
            self.pieces(map, size, encrypted, pieces);
        }
        let new = NewStream { name: None, size, valid: size, form, locator: node.number.into() };
        b.stream(id, new, pieces.drain(..));
    }
}

impl Ext {
    /// What there is to say of the volume.
    pub(super) fn facts(&self) -> Facts {
        let s = &self.superblock;
        let hex: String = s.uuid.iter().map(|b| format!("{b:02x}")).collect();
        let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
        let ratio = u64::from(s.ratio);
        Facts {
            kind: s.kind(),
            label: String::from_utf8_lossy(&s.label).into_owned(),
            serial: [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-"),
            unit: u64::from(s.block).saturating_mul(ratio),
            units: s.blocks.saturating_sub(s.first_data_block.into()).div_ceil(ratio.max(1)),
            free_units: Some(s.free_blocks.checked_div(ratio).unwrap_or(0)),
            clean: Some(s.state == 1 && !s.has(incompat::RECOVER)),
            remarks: self.remarks.clone(),
        }
    }
    /// Everything that is in it.
    ///
    /// # Errors
    /// Where there is no root directory.
    pub(super) fn walk(&self) -> Result<Tree> {
        self.build(&mut self.gather(), false)
    }
}
