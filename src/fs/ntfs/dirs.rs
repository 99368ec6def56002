//! The indexes: of new directories, and those of before that get other entries.

use std::borrow::Cow;
use std::collections::BTreeSet;

use rayon::prelude::*;

use crate::error::{Result, refused};
use crate::fs::asked::printable;
use crate::fs::ntfs::bits::Bits;
use crate::fs::ntfs::encode::{Mapped, file_name, mapped, resident};
use crate::fs::ntfs::index::{self, Built, Form, Key, Keys, NAME};
use crate::fs::ntfs::layout::{MFT, ROOT, Reference, kind};
use crate::fs::ntfs::link::{Build, Draft, Image};
use crate::fs::ntfs::mft_grow::Grown;
use crate::fs::ntfs::old_dir::OldDir;
use crate::fs::ntfs::pack::{self, Body, Value};
use crate::fs::ntfs::reparse;
use crate::fs::ntfs::runs::Run;
use crate::fs::ntfs::wanted::{Dir, Node, Wanted};
use crate::fs::utf16;

/// Bytes of the head and name of an index root as an attribute.
const ROOT_ATTRIBUTE: usize = 0x20;
/// Bytes that the attributes beside the root take, mostly, where an index has blocks.
const BESIDE: usize = 0xC0;
/// The longest bitmap of blocks that stays in the record, in bytes.
const BITMAP_INSIDE: usize = 0x40;
/// Room that an index needs at least, whatever its keys.
pub(super) const LEAST: usize = BESIDE + ROOT_ATTRIBUTE + index::SMALLEST;

/// A new directory's index: in order, with a place, but without references.
#[derive(Debug, Default)]
pub(super) struct NewDir {
    /// Node, which of its names, and the key.
    entries: Vec<(usize, Key)>,
    /// Bytes that the root may have.
    room: usize,
    /// Bytes of the root.
    root: usize,
    blocks: usize,
    runs: Vec<Run>,
    /// Where its bitmap is, if not in the record.
    bitmap: Vec<Run>,
}

impl NewDir {
    /// Its attributes, the root still empty: what counts is how long they are.
    pub(super) fn values(&self, form: Form) -> Vec<Value<'_>> {
        self.with_root(form, vec![0; self.root])
    }
    fn with_root(&self, form: Form, root: Vec<u8>) -> Vec<Value<'_>> {
        let value = |kind, body| Value { kind, name: Cow::Borrowed(&NAME), body };
        let mut out = vec![value(kind::INDEX_ROOT, Body::Resident(root.into(), false))];
        if self.blocks > 0 {
            let size = (self.blocks as u64).saturating_mul(form.block as u64);
            out.push(value(kind::INDEX_ALLOCATION, in_clusters(&self.runs, size)));
            let bits = in_use(self.blocks);
            let size = bits.len() as u64;
            let inside = self.bitmap.is_empty();
            let body = if inside { Body::Resident(bits.into(), false) } else { in_clusters(&self.bitmap, size) };
            out.push(value(kind::BITMAP, body));
        }
        out
    }
}

fn in_clusters(runs: &[Run], size: u64) -> Body<'_> {
    Body::Runs { runs: runs.into(), size, valid: size, packed: false }
}

/// A bitmap of so many blocks, all in use.
fn in_use(blocks: usize) -> Vec<u8> {
    let mut bits = Bits::new(0);
    bits.resize((blocks as u64).div_ceil(64).saturating_mul(8));
    (0..blocks as u64).for_each(|n| _ = bits.put(n, true));
    bits.bytes().to_vec()
}

impl Build<'_> {
    /// Orders the entries of all new directories and takes clusters for their indexes.
    pub(super) fn new_dirs(&mut self, wanted: &Wanted) -> Result<Vec<NewDir>> {
        let one = |dir: &Dir| match dir.node.and_then(|n| wanted.nodes.get(n)) {
            Some(node) => self.ordered(wanted, node, dir),
            None => Ok(NewDir::default()),
        };
        let mut dirs = wanted.dirs.par_iter().map(one).collect::<Result<Vec<_>>>()?;
        for new in dirs.iter_mut().filter(|new| new.blocks > 0) {
            new.runs = self.take((new.blocks as u64).saturating_mul(self.form.block as u64))?;
            let bits = in_use(new.blocks).len();
            if bits > BITMAP_INSIDE {
                new.bitmap = self.take(bits as u64)?;
            }
        }
        Ok(dirs)
    }
    /// Orders the entries of a new directory; how large its index will be.
    fn ordered(&self, wanted: &Wanted, node: &Node, dir: &Dir) -> Result<NewDir> {
        let cluster = self.cluster();
        let mut named: Vec<(Vec<u16>, &[u16], usize)> = Vec::with_capacity(dir.entries.len());
        for (n, name) in &dir.entries {
            if let Some((_, name)) = wanted.nodes.get(*n).and_then(|node| node.names.get(*name)) {
                named.push((self.state.up.fold(name), name, *n));
            }
        }
        named.sort_unstable();
        for pair in named.windows(2) {
            if let [a, b] = pair
                && a.0 == b.0
            {
                return Err(same_name(b.1));
            }
        }
        let key = |(_, name, n): (Vec<u16>, &[u16], usize)| {
            let about = wanted.nodes.get(n).map(|node| node.duplicated(cluster)).unwrap_or_default();
            (n, Key { reference: Reference(0), value: file_name(0, &about, name) })
        };
        let mut new = NewDir { entries: named.into_iter().map(key).collect(), ..NewDir::default() };
        let beside = node.sum(pack::least).saturating_add(ROOT_ATTRIBUTE);
        let keys = || new.entries.iter().map(|(_, k)| k.len());
        let here = self.capacity().saturating_sub(beside);
        let small = index::small(keys());
        new.room = if small <= here {
            small
        } else if here >= LEAST {
            here.saturating_sub(BESIDE)
        } else {
            // The index goes into a record of its own.
            self.capacity().saturating_sub(ROOT_ATTRIBUTE).saturating_sub(BESIDE)
        };
        let keys: Vec<&Key> = new.entries.iter().map(|(_, key)| key).collect();
        let measured = index::measure(&keys, self.names(), cluster, new.room);
        (new.root, new.blocks) = measured.ok_or_else(no_room)?;
        Ok(new)
    }
    fn names(&self) -> Form {
        Form { keys: Keys::Names, ..self.form }
    }
    /// Writes the indexes and records of all new directories.
    pub(super) fn directories(&mut self, wanted: &Wanted, dirs: Vec<NewDir>, drafts: &[Draft]) -> Result<()> {
        let form = self.names();
        let one = |(at, (dir, mut new)): (usize, (&Dir, NewDir))| {
            let Some((node, draft)) = dir.node.and_then(|n| Some((wanted.nodes.get(n)?, drafts.get(n)?))) else {
                return Ok(None);
            };
            let own = self.dir_refs.get(at).copied().unwrap_or(0).to_le_bytes();
            for (n, key) in &mut new.entries {
                key.reference = Reference(drafts.get(*n).map_or(0, Draft::base));
                let _ = crate::bytes::put(&mut key.value, 0, &own);
            }
            let keys: Vec<&Key> = new.entries.iter().map(|(_, key)| key).collect();
            let Built { root, blocks } = index::build(&keys, form, self.cluster(), new.room).ok_or_else(no_room)?;
            drop(keys);
            let packed = self.pack(node, &new.with_root(form, root))?;
            new.entries = Vec::new();
            Ok(Some((node, draft, packed, new, blocks)))
        };
        let all = wanted.dirs.par_iter().zip(dirs).enumerate().map(one).collect::<Result<Vec<_>>>()?;
        for (node, draft, packed, new, blocks) in all.into_iter().flatten() {
            self.fill(&new.runs, blocks);
            if !new.bitmap.is_empty() {
                self.fill(&new.bitmap, in_use(new.blocks));
            }
            self.write(node, draft, packed)?;
        }
        Ok(())
    }
    /// Rebuilds the directories that lose the image or get new entries, and the index of reparse points.
    pub(super) fn old_indexes(
        &mut self,
        wanted: &Wanted,
        parent: OldDir,
        image: &Image,
        grown: &Grown,
        drafts: &[Draft],
    ) -> Result<()> {
        let gone: BTreeSet<u64> = image.records.iter().map(|r| r.number).collect();
        let mut old: BTreeSet<u64> = image.parents.clone();
        let into = parent.record.number;
        if !wanted.dirs.first().is_some_and(|d| d.entries.is_empty()) {
            old.insert(into);
        }
        for number in old {
            let dir = OldDir::read(&self.ntfs.reader, number)?;
            self.trusted(&dir)?;
            let new = if number == into { self.keys(wanted, drafts, 0) } else { Vec::new() };
            let mut kept: Vec<Key> =
                dir.keys.iter().filter(|k| !gone.contains(&k.reference.number())).cloned().collect();
            if number == ROOT {
                sized_mft(&mut kept, grown);
            }
            let keys = self.sorted(kept, new)?;
            self.rebuild(&dir, &keys)?;
        }
        let points: Vec<(u32, u64)> = wanted
            .nodes
            .iter()
            .zip(drafts)
            .filter_map(|(n, d)| Some((n.extras.reparse.as_deref().and_then(reparse::tag)?, d.base())))
            .collect();
        if !points.is_empty()
            && let Some(number) = self.state.reparse_index()
        {
            let index = OldDir::read_reparse(&self.ntfs.reader, number)?;
            let mut keys = index.keys.clone();
            keys.extend(points.iter().map(|(tag, reference)| Key {
                reference: Reference(index::NO_DATA),
                value: [&tag.to_le_bytes()[..], &reference.to_le_bytes()].concat(),
            }));
            keys.sort_by_cached_key(index::words);
            self.rebuild(&index, &keys)?;
        }
        Ok(())
    }
    /// Writes an index anew into clusters that were free; its record is the switch.
    fn rebuild(&mut self, dir: &OldDir, keys: &[Key]) -> Result<()> {
        for run in dir.clusters() {
            self.bitmap.put_run(run, false).map_err(|n| refused(format!("cluster {n} of a directory is free")))?;
        }
        let keys: Vec<&Key> = keys.iter().collect();
        let (room, cluster) = (dir.room(), self.cluster());
        let small = index::small(keys.iter().map(|k| k.len())).saturating_add(ROOT_ATTRIBUTE) <= room;
        // More and more room for the runs of its blocks.
        let tries = if small { vec![0] } else { (1..8usize).map(|n| n.saturating_mul(BESIDE)).collect() };
        for beside in tries {
            let left = room.checked_sub(beside).and_then(|r| r.checked_sub(ROOT_ATTRIBUTE));
            let Some(built) = left.and_then(|room| index::build(&keys, dir.form, cluster, room)) else { break };
            let mut attributes = vec![(kind::INDEX_ROOT, resident(kind::INDEX_ROOT, dir.name(), &built.root, false))];
            let mut fill = Vec::new();
            let space = self.space.clone();
            if !built.blocks.is_empty() {
                let bits = in_use(built.blocks.len().checked_div(dir.form.block).unwrap_or(0));
                let runs = self.take(built.blocks.len() as u64)?;
                let inside = resident(kind::BITMAP, dir.name(), &bits, false);
                let of_bits = if inside.len() > BITMAP_INSIDE { self.take(bits.len() as u64)? } else { Vec::new() };
                let blocks = built.blocks;
                let allocation = self.mapped(kind::INDEX_ALLOCATION, dir.name(), &runs, blocks.len() as u64);
                let bitmap = match of_bits.is_empty() {
                    true => Some(inside),
                    false => self.mapped(kind::BITMAP, dir.name(), &of_bits, bits.len() as u64),
                };
                let (Some(allocation), Some(bitmap)) = (allocation, bitmap) else { break };
                if allocation.len().saturating_add(bitmap.len()) > beside {
                    self.space = space;
                    continue;
                }
                attributes.push((kind::INDEX_ALLOCATION, allocation));
                attributes.push((kind::BITMAP, bitmap));
                fill = vec![(runs, blocks), (of_bits, bits)];
            }
            let Some(record) = dir.with(attributes) else { break };
            fill.into_iter().filter(|(runs, _)| !runs.is_empty()).for_each(|(runs, bytes)| self.fill(&runs, bytes));
            self.changed.insert(dir.record.number, record);
            return Ok(());
        }
        Err(refused(format!(
            "the directory of MFT record {} has no room for its new index: the free space is in too small pieces",
            dir.record.number
        )))
    }
    fn mapped(&self, kind: u32, name: &[u16], runs: &[Run], size: u64) -> Option<Vec<u8>> {
        let all: u64 = runs.iter().map(|r| r.len).sum();
        let m = Mapped { flags: 0, unit: 0, sizes: [all.saturating_mul(self.cluster()), size, size, 0] };
        let (bytes, used) = mapped(kind, name, &m, 0, runs, usize::from(u16::MAX))?;
        (used == runs.len()).then_some(bytes)
    }
    /// Keys of the new entries of a directory.
    fn keys(&self, wanted: &Wanted, drafts: &[Draft], at: usize) -> Vec<Key> {
        let parent = self.dir_refs.get(at).copied().unwrap_or(0);
        let entries = wanted.dirs.get(at).map(|d| d.entries.as_slice()).unwrap_or_default();
        let key = |(node, name): &(usize, usize)| {
            let n = wanted.nodes.get(*node)?;
            let value = file_name(parent, &n.duplicated(self.cluster()), &n.names.get(*name)?.1);
            Some(Key { reference: Reference(drafts.get(*node)?.base()), value })
        };
        entries.iter().filter_map(key).collect()
    }
    /// In order, no two of which the later is new the same.
    fn sorted(&self, old: Vec<Key>, new: Vec<Key>) -> Result<Vec<Key>> {
        let added: BTreeSet<u64> = new.iter().map(|k| k.reference.0).collect();
        let all = index::sort(old.into_iter().chain(new).collect(), &self.state.up);
        for pair in all.windows(2) {
            if let [a, b] = pair
                && (added.contains(&a.reference.0) || added.contains(&b.reference.0))
                && self.state.up.fold(&a.name()) == self.state.up.fold(&b.name())
            {
                return Err(same_name(&b.name()));
            }
        }
        Ok(all)
    }
    /// Refuses a directory whose index is not what the records say.
    fn trusted(&self, dir: &OldDir) -> Result<()> {
        let bad = |what: &str| {
            Err(refused(format!(
                "the index of the directory of MFT record {} {what}: check the host first",
                dir.record.number
            )))
        };
        if index::out_of_order(&dir.keys, &self.state.up).is_some() {
            return bad("is out of order");
        }
        let census = &self.state.census;
        let live = |k: &Key| {
            let n = k.reference.number();
            let sequence = usize::try_from(n).ok().and_then(|n| census.slots.get(n)).map(|s| s.0);
            census.in_use.get(n) && sequence == Some(k.reference.sequence())
        };
        if !dir.keys.iter().all(live) {
            return bad("has entries that lead to no file");
        }
        let object = self.state.tree.objects().find(|(_, o)| o.number == dir.record.number).map(|o| o.0);
        let names: BTreeSet<Vec<u8>> =
            dir.keys.iter().map(|k| utf16::to_wtf8(k.value.get(0x42..).unwrap_or_default())).collect();
        let missing = object
            .is_none_or(|o| self.state.tree.children(o).iter().any(|e| !names.contains(self.state.tree.name(*e))));
        if missing { bad("lacks entries") } else { Ok(()) }
    }
}

fn no_room() -> crate::error::Error {
    refused("a directory's record has no room for an index")
}

fn same_name(name: &[u16]) -> crate::error::Error {
    let name = String::from_utf16_lossy(name);
    refused(format!("two entries of one directory would have the name {}", printable(name.as_bytes())))
}

/// Sets the sizes in the entry of `$MFT` itself.
fn sized_mft(keys: &mut [Key], grown: &Grown) {
    let sizes = [grown.places.len(), grown.places.len()].map(u64::to_le_bytes).concat();
    for key in keys.iter_mut().filter(|k| k.reference.number() == MFT) {
        let _ = crate::bytes::put(&mut key.value, 0x28, &sizes);
    }
}
