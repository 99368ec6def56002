//! The [`FileSystem`]: opening, facts, the walk, streams.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::census::Census;
use super::group::Group;
use super::inode::{ROOT, flags};
use super::names::Name;
use super::replay::Replay;
use super::resolve::{Mapping, Visited};
use super::scan::{Node, Trouble};
use super::superblock::{Superblock, incompat};
use crate::error::{Error, Result};
use crate::extent::{Encoding, Extent, Layer, LayerId, Map, MapLayer, Offset, ReadAt, Stream, Volume, What};
use crate::fs::host::Host;
use crate::fs::{Facts, FileSystem, Form, Kind, NewStream, Object, ObjectId, StreamId, Tree, TreeBuilder};

/// The most problems that are listed; how many more there are is said.
const PROBLEMS: usize = 10_000;

/// An ext2, ext3 or ext4 file system.
pub struct Ext {
    /// The volume as it is.
    pub raw: Arc<dyn ReadAt<Volume>>,
    /// The volume as it would be once the journal was replayed.
    pub volume: Arc<dyn ReadAt<Volume>>,
    /// What the journal replaces.
    pub replay: Option<Replay>,
    /// Its superblock.
    pub superblock: Superblock,
    /// Its groups, and whether the descriptor can be relied on; none for one that can't be read.
    pub groups: Vec<Option<(Group, bool)>>,
    /// What was damaged at opening.
    pub problems: Vec<Error>,
    /// For the facts.
    pub remarks: Vec<String>,
    /// Who owns what, once somebody asked.
    pub(super) census: OnceLock<std::result::Result<Census, String>>,
}

impl Ext {
    /// Reads the group descriptors, and takes copies for those that are damaged.
    pub fn read_groups(
        s: &Superblock,
        volume: &dyn ReadAt<Volume>,
        problems: &mut Vec<Error>,
    ) -> Vec<Option<(Group, bool)>> {
        let mut groups = Vec::new();
        let per = s.descriptors_per_block();
        let size = usize::from(s.descriptor);
        for index in 0..s.groups().div_ceil(per) {
            let (block, copy) = s.descriptor_block(index);
            if s.byte(block).get() >= volume.len() {
                problems.push(Error::past_end(s.byte(block), s.block.into(), volume.len()));
                break;
            }
            let table = volume.read_vec(s.byte(block), s.block as usize);
            let mut second: Option<Result<Vec<u8>>> = None;
            let first = index.saturating_mul(per);
            for (n, group) in (0usize..).zip(first..first.saturating_add(per).min(s.groups())) {
                let from = n.saturating_mul(size);
                let one = |block: u64, table: &Result<Vec<u8>>| -> Result<(Group, bool)> {
                    let at = s.byte(block).saturating_add(from as u64);
                    let bytes = table.as_ref().ok().and_then(|t| t.get(from..from.saturating_add(size)));
                    Group::decode(s, group, at, bytes.ok_or_else(|| Error::past_end(at, size as u64, volume.len()))?)
                };
                let found = match one(block, &table) {
                    Ok((g, true)) => Some((g, true)),
                    bad => {
                        problems.push(match &bad {
                            Err(_) => Error::corrupt(
                                format!("descriptor of ext group {group}"),
                                s.byte(block).saturating_add(from as u64),
                                "places of its tables within the volume",
                            ),
                            Ok(_) => Error::corrupt(
                                format!("descriptor of ext group {group}"),
                                s.byte(block).saturating_add(from as u64),
                                "a checksum that is right",
                            ),
                        });
                        // A copy tells where tables are, but its counts and flags are of long ago.
                        let other = copy.and_then(|copy| {
                            let table = second.get_or_insert_with(|| volume.read_vec(s.byte(copy), s.block as usize));
                            one(copy, table).ok().filter(|c| c.1)
                        });
                        other.or(bad.ok()).map(|(g, _)| (g, false))
                    }
                };
                groups.push(found);
            }
        }
        groups
    }

    /// Whether an inode is the file system's own.
    pub(super) fn hidden(&self, node: &Node) -> bool {
        let s = &self.superblock;
        let n = node.number;
        n != ROOT && n < s.first_inode
            || s.hidden.contains(&n)
            || n == s.journal_inode
            || node.inode.has(flags::EA_INODE)
    }
}

/// Everything that was gathered about the inodes of a walk.
#[derive(Default)]
pub(super) struct Found {
    pub(super) nodes: Vec<Node>,
    pub(super) maps: Vec<Mapping>,
    pub(super) names: Vec<Name>,
    pub(super) problems: Vec<Trouble>,
}

impl Ext {
    pub(super) fn gather(&self) -> Found {
        let mut visited = Visited::default();
        let scan = self.scan();
        let mut all = Found { problems: scan.problems, ..Found::default() };
        let mut fresh = scan.nodes;
        // Inodes that were found or at least looked for.
        let mut known: HashSet<u32> = HashSet::new();
        loop {
            known.extend(fresh.iter().map(|n| n.number));
            let maps = self.resolve(&fresh, &mut visited, &mut all.problems);
            let names = self.names(&fresh, &maps, &mut visited, &mut all.problems);
            all.nodes.append(&mut fresh);
            all.maps.extend(maps);
            // Names that lead to inodes which the bitmaps say are free: an owner would see them all the same.
            let mut missing: Vec<u32> = names.iter().filter(|n| !n.is_dots()).map(|n| n.inode).chain([ROOT]).collect();
            missing.retain(|n| known.insert(*n));
            all.names.extend(names);
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

    pub(super) fn build(&self, found: &mut Found) -> Result<Tree> {
        let attributes = self.attributes(&found.nodes, &found.maps, &mut found.problems);
        let mut b = TreeBuilder::new();
        let mut ids: Vec<Option<ObjectId>> = Vec::with_capacity(found.nodes.len());
        for ((node, map), (xattrs, target)) in
            found.nodes.iter().zip(&found.maps).zip(attributes.of.into_iter().zip(attributes.targets))
        {
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
            for (name, value) in xattrs {
                b.xattr(id, name, value);
            }
            if let Some(target) = target {
                b.target(id, target);
            }
            let encrypted = inode.has(flags::ENCRYPT);
            if kind == Some(Kind::File) || kind == Some(Kind::Symlink) && encrypted {
                self.stream(&mut b, id, node, map, encrypted, &mut found.problems);
            }
        }
        let find = |number: u32| -> Option<ObjectId> {
            let at = found.nodes.binary_search_by_key(&number, |n| n.number).ok()?;
            ids.get(at).copied().flatten()
        };
        let root = find(ROOT).filter(|id| b.object_mut(*id).is_some_and(|o| o.kind == Kind::Dir)).ok_or_else(|| {
            Error::corrupt("ext inode 2", self.inode_at(ROOT).unwrap_or_default(), "the root directory")
        })?;
        let mut named = vec![false; ids.len()];
        for name in found.names.iter().filter(|n| !n.is_dots()) {
            match (find(name.parent), find(name.inode)) {
                (Some(parent), Some(object)) => {
                    b.entry(parent, &name.name, object);
                    if let Some(slot) = named.get_mut(object.index()) {
                        *slot = true;
                    }
                }
                (Some(_), None) => {
                    let what = format!("entry `{}` of ext directory {}", name.name.escape_ascii(), name.parent);
                    let at = self.inode_at(name.inode).unwrap_or_default();
                    found
                        .problems
                        .push((name.parent, Error::corrupt(what, at, format!("inode {} in use", name.inode))));
                }
                (None, _) => {}
            }
        }
        for (id, node) in ids.iter().zip(&found.nodes) {
            if let Some(id) = id
                && *id != root
                && named.get(id.index()) == Some(&false)
            {
                let e = Error::corrupt(format!("ext inode {}", node.number), node.at, "a name that leads to it");
                found.problems.push((node.number, e));
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
        node: &Node,
        map: &Mapping,
        encrypted: bool,
        problems: &mut Vec<Trouble>,
    ) {
        let size = node.inode.size;
        let mut form = if encrypted { Form::Encrypted } else { Form::Plain };
        let pieces = if node.inode.has(flags::INLINE_DATA) || node.inode.fast_link(&self.superblock) {
            let (head, rest) = self.inline_parts(node, problems);
            let len = node.inode.inline_bytes(head, &rest).len() as u64;
            let what = if encrypted { Encoding::FsEncrypted } else { Encoding::Inline };
            if !encrypted && size != 0 {
                form = Form::Inline;
            }
            vec![(len, What::Encoded(what))]
        } else {
            self.pieces(map, size, encrypted)
        };
        let new = NewStream { name: None, size, valid: size, form, locator: node.number.into() };
        b.stream(id, new, pieces);
    }
}

impl FileSystem for Ext {
    fn facts(&self) -> Facts {
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
    fn walk(&self) -> Result<Tree> {
        self.build(&mut self.gather())
    }
    fn as_host(&self) -> Option<&dyn Host> {
        Some(self)
    }
    fn open(&self, tree: &Tree, stream: StreamId) -> Result<Arc<dyn Layer<Stream>>> {
        let info = tree.stream(stream);
        let map = tree.map(stream);
        let decoded = map.extents().iter().any(|e| e.what == What::Encoded(Encoding::Inline));
        if info.form == Form::Encrypted {
            return Err(Error::Unsupported(format!("ext inode {} is encrypted", info.locator)));
        }
        if !decoded {
            return Ok(Arc::new(MapLayer::new(map, vec![Arc::clone(&self.raw)])?));
        }
        let number = u32::try_from(info.locator).unwrap_or(0);
        let node = self.node(number)?;
        let pieces = if info.form == Form::Inline {
            let (head, rest) = self.inline_parts(&node, &mut Vec::new());
            BTreeMap::from([(0, node.inode.inline_bytes(head, &rest))])
        } else {
            self.escaped(&node, &map)?
        };
        let plain = map.extents().iter().map(|e| match e.what {
            // Filled in from the pieces.
            What::Encoded(Encoding::Inline) => (e.len, What::Zero),
            what => (e.len, what),
        });
        let plain = MapLayer::new(plain.collect(), vec![Arc::clone(&self.raw)])?;
        Ok(Arc::new(Decoded { plain, map, pieces }))
    }
}

impl Ext {
    /// The blocks of a file that the journal holds in another form than the file has them, by their bytes in the file.
    fn escaped(&self, node: &Node, map: &Map<Stream>) -> Result<BTreeMap<u64, Vec<u8>>> {
        let block = u64::from(self.superblock.block);
        let maps = self.resolve(std::slice::from_ref(node), &mut Visited::default(), &mut Vec::new());
        let runs = maps.first().map(|m| m.runs.as_slice()).unwrap_or_default();
        let mut out = BTreeMap::new();
        for e in map.extents().iter().filter(|e| e.what == What::Encoded(Encoding::Inline)) {
            let mut at = e.start.get();
            while at < e.end().get() {
                let logical = at.checked_div(block).unwrap_or(0);
                let run = runs.get(runs.partition_point(|r| r.logical.saturating_add(r.len) <= logical));
                let physical = run.and_then(|r| r.physical.checked_add(logical.checked_sub(r.logical)?));
                let physical = physical.ok_or_else(|| {
                    Error::corrupt(format!("ext inode {}", node.number), node.at, "the blocks of its walk")
                })?;
                let len = block.min(e.end().since(Offset::new(at)));
                let bytes = self.volume.read_vec(self.superblock.byte(physical), usize::try_from(len).unwrap_or(0))?;
                out.insert(at, bytes);
                at = at.saturating_add(block);
            }
        }
        Ok(out)
    }
}

/// A stream some of whose bytes had to be decoded, which was done when it was opened.
struct Decoded {
    /// Zeros where they are.
    plain: MapLayer<Stream>,
    map: Map<Stream>,
    pieces: BTreeMap<u64, Vec<u8>>,
}

impl ReadAt<Stream> for Decoded {
    fn id(&self) -> LayerId {
        self.plain.id()
    }
    fn len(&self) -> u64 {
        self.plain.len()
    }
    fn read_at(&self, at: Offset<Stream>, buf: &mut [u8]) -> Result<()> {
        self.plain.read_at(at, buf)?;
        let end = at.get().saturating_add(buf.len() as u64);
        let before = self.pieces.range(..=at.get()).next_back();
        let within = self.pieces.range(at.get().saturating_add(1)..end.max(at.get().saturating_add(1)));
        for (start, bytes) in before.into_iter().chain(within) {
            let from = at.get().max(*start);
            let to = end.min(start.saturating_add(bytes.len() as u64));
            if from >= to {
                continue;
            }
            let cut = |base: u64| -> Option<Range<usize>> {
                Some(usize::try_from(from.checked_sub(base)?).ok()?..usize::try_from(to.checked_sub(base)?).ok()?)
            };
            if let Some(room) = cut(at.get()).and_then(|r| buf.get_mut(r))
                && let Some(part) = cut(*start).and_then(|r| bytes.get(r))
            {
                room.copy_from_slice(part);
            }
        }
        Ok(())
    }
}

impl Layer<Stream> for Decoded {
    fn extents(&self, range: Range<Offset<Stream>>) -> Result<Vec<Extent<Stream>>> {
        Ok(self.map.slice(range).collect())
    }
}
