//! New inodes: their extent trees, attributes and bytes, for a host's writer.

use std::collections::HashMap;

use super::attrs::disk_acl;
use super::extent_tree::{self, Child, ENTRY, MAX_LEN, Run};
use super::inode::{Inode, flags};
use super::space::Space;
use super::superblock::ro_compat;
use super::tables::Blocks;
use super::volume::Ext;
use super::xattr;
use crate::error::{Result, refused};
use crate::extent::{Extent, Offset, Stream, Volume, What};
use crate::fs::host::NewEntry;
use crate::fs::{Kind, Times, Xattr};
use crate::txn::Fresh;

/// What a new inode gets from outside of it.
#[derive(Clone, Debug, Default)]
pub struct Body {
    /// Runs of its data.
    pub runs: Vec<Run>,
    /// Its contents in bytes.
    pub size: u64,
    /// The 60 bytes of what has no runs: a short link's target, a device's numbers.
    pub block: Option<[u8; 60]>,
    /// More flags.
    pub flags: u32,
}

/// Makes what belongs to new inodes, out of free clusters.
pub struct Maker<'a> {
    pub fs: &'a Ext,
    pub space: Space,
    /// New structures in free clusters.
    pub fresh: Vec<Fresh>,
    /// Clusters that were taken: place and bytes.
    pub filled: Vec<(u64, u64)>,
    /// Blocks of attributes by their contents: the block, the position in `fresh`, and how many inodes use it.
    shared: HashMap<Vec<u8>, (u64, usize, u32)>,
}

/// The most inodes that share a block of attributes.
const SHARERS: u32 = 1024;

impl<'a> Maker<'a> {
    pub fn new(fs: &'a Ext, space: Space) -> Self {
        Self { fs, space, fresh: Vec::new(), filled: Vec::new(), shared: HashMap::new() }
    }
    fn seed(&self, number: u32) -> Option<u32> {
        let s = &self.fs.superblock;
        s.metadata_csum().then(|| Inode::seed(s, number, generation(number)))
    }
    /// The checksum seed of a new inode's blocks; none where none are kept.
    pub fn own_seed(&self, number: u32) -> Option<u32> {
        self.seed(number)
    }
    /// Takes clusters for so many bytes: first clusters and lengths.
    ///
    /// # Errors
    /// [`Error::Refused`] where too few are free.
    pub fn take(&mut self, bytes: u64) -> Result<Vec<(u64, u64)>> {
        let s = &self.fs.superblock;
        let unit = u64::from(s.block).saturating_mul(s.ratio.into()).max(1);
        let count = bytes.div_ceil(unit);
        let taken = self.space.take(count).ok_or_else(|| {
            refused("too little space: the host has too few free blocks for directories, extent trees and copies")
        })?;
        for (first, len) in &taken {
            self.filled.push((s.byte(s.cluster_block(*first)).get(), len.saturating_mul(unit)));
        }
        Ok(taken)
    }
    /// Runs over clusters that were taken for so many bytes.
    pub fn runs(&self, taken: &[(u64, u64)], bytes: u64) -> Vec<Run> {
        let s = &self.fs.superblock;
        let mut left = bytes.div_ceil(s.block.into());
        let mut logical = 0u64;
        let mut out = Vec::with_capacity(taken.len());
        for (first, count) in taken {
            let len = count.saturating_mul(s.ratio.into()).min(left);
            out.push(Run { logical, len, physical: s.cluster_block(*first), written: true });
            logical = logical.saturating_add(len);
            left = left.saturating_sub(len);
        }
        out
    }
    /// Writes whole blocks into clusters that are taken for them; their runs.
    ///
    /// # Errors
    /// [`Error::Refused`] where too little is free.
    pub fn store(&mut self, blocks: &[Vec<u8>]) -> Result<Vec<Run>> {
        let s = &self.fs.superblock;
        let bytes = (blocks.len() as u64).saturating_mul(s.block.into());
        let taken = self.take(bytes)?;
        let runs = self.runs(&taken, bytes);
        let mut rest = blocks;
        for run in &runs {
            let (now, later) = rest.split_at_checked(usize::try_from(run.len).unwrap_or(0)).unwrap_or((rest, &[]));
            rest = later;
            self.fresh.push(Fresh { at: s.byte(run.physical), bytes: now.concat() });
        }
        Ok(runs)
    }
    /// The root of an extent tree over runs (in order), whose further nodes are stored; and the clusters that those take.
    ///
    /// # Errors
    /// [`Error::Refused`] where a number is too large for the tree, or too little is free.
    pub fn tree(&mut self, seed: Option<u32>, runs: &[Run]) -> Result<([u8; 60], u64)> {
        let wrong = || refused("a file is too large for an extent tree");
        let mut entries: Vec<(u64, [u8; ENTRY])> = Vec::with_capacity(runs.len());
        for run in joined(runs) {
            let mut at = 0;
            while at < run.len {
                let piece = Run {
                    logical: run.logical.saturating_add(at),
                    len: run.len.saturating_sub(at).min(u64::from(MAX_LEN)),
                    physical: run.physical.saturating_add(at),
                    written: true,
                };
                entries.push((piece.logical, extent_tree::leaf(&piece).ok_or_else(wrong)?));
                at = at.saturating_add(piece.len);
            }
        }
        let block = self.fs.superblock.block as usize;
        let mut depth = 0u16;
        let mut taken = 0u64;
        while entries.len() > extent_tree::room(60) {
            let mut above = Vec::new();
            for chunk in entries.chunks(extent_tree::room(block).max(1)) {
                let cluster = self.take(block as u64)?.first().map(|t| t.0).ok_or_else(wrong)?;
                let number = self.fs.superblock.cluster_block(cluster);
                let own: Vec<[u8; ENTRY]> = chunk.iter().map(|e| e.1).collect();
                let bytes = extent_tree::encode(block, depth, &own, seed).ok_or_else(wrong)?;
                self.fresh.push(Fresh { at: self.fs.superblock.byte(number), bytes });
                let logical = chunk.first().map_or(0, |e| e.0);
                above.push((logical, extent_tree::index(&Child { logical, block: number }).ok_or_else(wrong)?));
                taken = taken.saturating_add(1);
            }
            entries = above;
            depth = depth.saturating_add(1);
        }
        let own: Vec<[u8; ENTRY]> = entries.iter().map(|e| e.1).collect();
        let root = extent_tree::encode(60, depth, &own, None).filter(|_| depth <= extent_tree::MAX_DEPTH);
        let root = root.and_then(|r| <[u8; 60]>::try_from(r).ok()).ok_or_else(wrong)?;
        Ok((root, taken))
    }
    /// The bytes of a new inode, sealed. What its map and its attributes need beyond it is stored.
    ///
    /// # Errors
    /// [`Error::Refused`] where too little is free.
    pub fn inode(&mut self, number: u32, mut inode: Inode, body: &Body, xattrs: &[Xattr]) -> Result<Vec<u8>> {
        let s = &self.fs.superblock;
        inode.generation = generation(number);
        inode.extra = extra(self.fs);
        inode.size = body.size;
        inode.flags = body.flags;
        let mut clusters = 0u64;
        if let Some(block) = body.block {
            inode.block = block;
        } else {
            let (root, nodes) = self.tree(self.seed(number), &body.runs)?;
            inode.block = root;
            inode.flags |= flags::EXTENTS;
            clusters = clusters.saturating_add(nodes).saturating_add(self.clusters_of(&body.runs));
        }
        let kept = Kept::of(self.fs, xattrs);
        let wrong = || refused(format!("inode {number} can't be written: the host's inodes are too small for it"));
        let area = match kept.inode.as_slice() {
            [] => Vec::new(),
            all => xattr::encode_area(area_size(self.fs), &borrowed(all)).ok_or_else(wrong)?,
        };
        if !kept.block.is_empty() {
            inode.xattr_block = self.attributes(&kept)?;
            clusters = clusters.saturating_add(1);
        }
        inode.blocks = clusters.saturating_mul(s.ratio.into()).saturating_mul(u64::from(s.block) >> 9);
        let mut bytes = inode.encode(s).ok_or_else(wrong)?;
        let behind = usize::from(inode.extra).saturating_add(128);
        if !area.is_empty() && !crate::bytes::put(&mut bytes, behind, &area) {
            return Err(wrong());
        }
        if !Inode::seal(s, number, &mut bytes, inode.extra) {
            return Err(wrong());
        }
        Ok(bytes)
    }
    /// Clusters that runs are in.
    pub fn clusters_of(&self, runs: &[Run]) -> u64 {
        let s = &self.fs.superblock;
        let mut count = 0u64;
        let mut next = None;
        for run in runs {
            let (first, last) =
                (s.cluster_of(run.physical), s.cluster_of(run.physical.saturating_add(run.len).saturating_sub(1)));
            let twice = u64::from(next == Some(first));
            count = count.saturating_add(last.saturating_sub(first)).saturating_add(1).saturating_sub(twice);
            next = Some(last);
        }
        count
    }
    /// The block of attributes with these; one that is there already where it may be.
    fn attributes(&mut self, kept: &Kept) -> Result<u64> {
        let s = &self.fs.superblock;
        let wrong = || refused("attributes that don't fit into a block");
        let mut bytes = xattr::encode_block(s.block as usize, &borrowed(&kept.block)).ok_or_else(wrong)?;
        let seed = s.metadata_csum().then_some(s.seed);
        if let Some((block, at, users)) = self.shared.get_mut(&bytes).filter(|f| f.2 < SHARERS) {
            *users = users.saturating_add(1);
            if let Some(fresh) = self.fresh.get_mut(*at) {
                xattr::seal_block(&mut fresh.bytes, *block, *users, seed);
            }
            return Ok(*block);
        }
        let cluster = self.take(s.block.into())?.first().map(|t| t.0).ok_or_else(wrong)?;
        let block = self.fs.superblock.cluster_block(cluster);
        let key = bytes.clone();
        xattr::seal_block(&mut bytes, block, 1, seed);
        self.shared.insert(key, (block, self.fresh.len(), 1));
        self.fresh.push(Fresh { at: self.fs.superblock.byte(block), bytes });
        Ok(block)
    }
}

/// The generation that a new inode gets. It is part of every checksum of the inode, and must be the same whenever the
/// same change is computed.
pub fn generation(number: u32) -> u32 {
    number.wrapping_mul(0x9e37_79b1) ^ 0x756e_696d
}

/// Bytes of the fixed fields beyond the first 128 of a new inode.
pub fn extra(fs: &Ext) -> u16 {
    let room = fs.superblock.inode_size.saturating_sub(128);
    room.min(32)
}

/// Bytes behind a new inode's fixed fields.
fn area_size(fs: &Ext) -> usize {
    usize::from(fs.superblock.inode_size.saturating_sub(128).saturating_sub(extra(fs)))
}

/// Runs in order, with neighbours that continue each other in one.
fn joined(runs: &[Run]) -> Vec<Run> {
    let mut out: Vec<Run> = Vec::with_capacity(runs.len());
    for run in runs {
        if let Some(last) = out.last_mut()
            && last.logical.saturating_add(last.len) == run.logical
            && last.physical.saturating_add(last.len) == run.physical
        {
            last.len = last.len.saturating_add(run.len);
        } else {
            out.push(*run);
        }
    }
    out
}

/// Prefix, rest of the name, value as on the disk.
type Owned = (u8, Vec<u8>, Vec<u8>);

/// Which attributes are kept, and where.
#[derive(Default)]
pub struct Kept {
    /// Those in the inode.
    inode: Vec<Owned>,
    /// Those in a block.
    block: Vec<Owned>,
    /// Names of those that the host can't hold.
    pub left_out: Vec<Vec<u8>>,
}

impl Kept {
    /// All in the inode where they fit there, else in a block, else in both; what then does not fit is left out.
    pub fn of(fs: &Ext, xattrs: &[Xattr]) -> Self {
        let mut known: Vec<(Owned, &[u8])> = Vec::with_capacity(xattrs.len());
        let mut unknown = Vec::new();
        for (name, value) in xattrs {
            let split = xattr::split(name).filter(|(_, rest)| rest.len() <= 255);
            let value = match split {
                Some((2 | 3, _)) => disk_acl(value),
                _ => Some(value.clone()),
            };
            match (split, value) {
                (Some((index, rest)), Some(value)) => known.push(((index, rest.to_vec(), value), name)),
                _ => unknown.push(name.clone()),
            }
        }
        // The area's magic number or the block's head, and four zero bytes behind the list.
        let area = area_size(fs).saturating_sub(8);
        let block = (fs.superblock.block as usize).saturating_sub(xattr::BLOCK_HEAD).saturating_sub(4);
        let size = |o: &Owned| xattr::room(&o.1, &o.2);
        let fill = |order: &[(Owned, &[u8])], mut area: usize, mut block: usize| {
            let mut out = Self::default();
            for (one, name) in order {
                let need = size(one);
                if let Some(left) = block.checked_sub(need) {
                    block = left;
                    out.block.push(one.clone());
                } else if let Some(left) = area.checked_sub(need) {
                    area = left;
                    out.inode.push(one.clone());
                } else {
                    out.left_out.push(name.to_vec());
                }
            }
            out
        };
        let total: usize = known.iter().map(|k| size(&k.0)).sum();
        // The largest first packs best; where that leaves something out, the smallest first leaves out the least.
        known.sort_by_key(|k| (std::cmp::Reverse(size(&k.0)), k.1));
        let mut out = if total <= area {
            Self { inode: known.into_iter().map(|k| k.0).collect(), ..Self::default() }
        } else {
            let best = fill(&known, area, block);
            if best.left_out.is_empty() {
                best
            } else {
                known.reverse();
                fill(&known, area, block)
            }
        };
        out.left_out.append(&mut unknown);
        out
    }
}

fn borrowed(all: &[Owned]) -> Vec<xattr::NewAttribute<'_>> {
    all.iter().map(|(index, name, value)| (*index, name.as_slice(), value.as_slice())).collect()
}

/// Owner, permissions and times of a new entry: the guest's own, or those of the image where the guest has none.
pub fn about(fs: &Ext, entry: &NewEntry, image: &Inode) -> Inode {
    let kind: u16 = match &entry.kind {
        crate::fs::host::NewKind::Dir => 0x4000,
        crate::fs::host::NewKind::Symlink(_) => 0xa000,
        crate::fs::host::NewKind::Special(Kind::Fifo) => 0x1000,
        crate::fs::host::NewKind::Special(Kind::CharDevice(..)) => 0x2000,
        crate::fs::host::NewKind::Special(Kind::BlockDevice(..)) => 0x6000,
        crate::fs::host::NewKind::Special(_) => 0xc000,
        _ => 0x8000,
    };
    // Who may read the image may enter its directories.
    let files = image.mode & 0o666;
    let (mode, uid, gid) = entry.posix.unwrap_or(match kind {
        0x4000 => (files | files >> 2 & 0o111, image.uid, image.gid),
        0xa000 => (0o777, image.uid, image.gid),
        _ => (files, image.uid, image.gid),
    });
    Inode {
        mode: kind | mode & 0o7777,
        uid,
        gid,
        links: 1,
        times: times(fs, entry.times, image.times),
        ..Inode::empty()
    }
}

/// All four times, as the host's inodes keep them; those that the guest has not are its others, or the image's.
pub fn times(fs: &Ext, guest: Times, image: Times) -> Times {
    let kept = |t| Some(Inode::kept(&fs.superblock, t));
    let modified = guest.modified.or(guest.created).or(image.modified).unwrap_or_default();
    Times {
        modified: kept(modified),
        accessed: kept(guest.accessed.unwrap_or(modified)),
        changed: kept(guest.changed.unwrap_or(modified)),
        created: kept(guest.created.unwrap_or(modified)).filter(|_| extra(fs) >= 24),
    }
}

/// The runs of a file that is linked to these extents of the host; none where they are no whole clusters.
pub fn linked(fs: &Ext, extents: &[Extent<Stream, Volume>], size: u64) -> Option<Vec<Run>> {
    let s = &fs.superblock;
    let block = u64::from(s.block);
    let unit = block.checked_mul(s.ratio.into())?;
    let base = s.byte(s.first_data_block.into()).get();
    let mut out = Vec::with_capacity(extents.len());
    let mut done = 0u64;
    for e in extents {
        if e.start.get() != done {
            return None;
        }
        done = done.checked_add(e.len)?;
        let place = match e.what {
            What::Stored(place) => place,
            What::Zero => continue,
            What::Encoded(_) => return None,
        };
        let whole = e.len.checked_rem(unit)? == 0 || done >= size;
        let at = place.offset.get();
        if place.layer != fs.raw.id() || !whole || e.start.get().checked_rem(unit)? != 0 {
            return None;
        }
        if at.checked_sub(base)?.checked_rem(unit)? != 0 {
            return None;
        }
        let len = e.len.div_ceil(block);
        let physical = at.checked_div(block)?;
        if physical.checked_add(len)? > s.blocks {
            return None;
        }
        out.push(Run { logical: e.start.get().checked_div(block)?, len, physical, written: true });
    }
    (done >= size).then_some(out)
}

/// Puts an inode's new bytes into the tables.
///
/// # Errors
/// Where the table can't be read.
pub fn place(fs: &Ext, blocks: &mut Blocks, number: u32, bytes: &[u8]) -> Result<()> {
    let at: Offset<Volume> = fs.inode_at(number)?;
    blocks.put(fs, at, bytes)
}

/// Whether a file of this size needs the feature that says so.
pub fn needs_large_file(fs: &Ext, size: u64) -> bool {
    size > 0x7fff_ffff && !fs.superblock.has_ro(ro_compat::LARGE_FILE)
}
