//! The inode tables, swept in disk order.

use rayon::prelude::*;

use super::checksum::crc32c;
use super::group::{Group, INODE_UNINIT};
use super::inode::{Inode, ROOT, flags};
use super::superblock::Superblock;
use super::sweep::sweep;
use super::volume::Ext;
use crate::bytes::put;
use crate::error::{Error, Result};
use crate::extent::{Offset, Volume};

/// Bytes of an inode table that are read at once: few enough to be still in a core's cache when they are decoded.
const CHUNK: u64 = 128 << 10;

/// An inode in use, with the bytes behind its fixed fields where these hold attributes.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its number.
    pub number: u32,
    /// Where it lies.
    pub at: Offset<Volume>,
    /// Its fields.
    pub inode: Inode,
    /// The area of attributes and inline contents, and its byte in the inode.
    pub area: Option<(u64, Box<[u8]>)>,
}

/// A problem with the inode that it belongs to; 0 for none.
pub type Trouble = (u32, Error);

/// What became of a scan.
#[derive(Debug, Default)]
pub struct Scan {
    /// The inodes, ascending.
    pub nodes: Vec<Node>,
    /// What was damaged.
    pub problems: Vec<Trouble>,
}

/// A stretch of a group's inode table.
struct Stretch<'a> {
    /// The group's first inode.
    first: u32,
    /// The group's table.
    table: Offset<Volume>,
    /// The group's bitmap; none where it can't be relied on.
    bits: Option<&'a Vec<u8>>,
    /// Which inodes of the group.
    range: std::ops::Range<u32>,
}

impl Stretch<'_> {
    fn used(&self, index: u32) -> bool {
        self.bits.is_none_or(|b| b.get((index >> 3) as usize).is_some_and(|byte| byte >> (index & 7) & 1 == 1))
    }
    /// How many inodes it has in use, at most.
    fn count(&self) -> usize {
        self.range.clone().filter(|i| self.used(*i)).count()
    }
    fn at(&self, index: u32, size: u64) -> Offset<Volume> {
        self.table.saturating_add(u64::from(index).saturating_mul(size))
    }
}

impl Node {
    /// The journal's inode from the copy of its map (60 bytes, then the size's halves) in the superblock.
    pub fn journal(s: &Superblock, copy: &[u8; 68]) -> Self {
        let mut bytes = [0u8; 128];
        let extents = copy.starts_with(&super::extent_tree::MAGIC.to_le_bytes());
        let flags = if extents { flags::EXTENTS } else { 0 };
        let part = |from: usize, to: usize| copy.get(from..to).unwrap_or_default();
        let fields: [(usize, &[u8]); 5] = [
            (0, &0x8180u16.to_le_bytes()),
            (4, part(64, 68)),
            (0x1a, &[1, 0]),
            (0x20, &flags.to_le_bytes()),
            (0x28, part(0, 60)),
        ];
        for (at, value) in fields {
            let _fits = put(&mut bytes, at, value);
        }
        let at = Offset::new(1024);
        // 128 bytes are always enough.
        let inode = Inode::decode(s, s.journal_inode, at, &bytes).unwrap_or_else(|_| Inode::empty());
        Self { number: s.journal_inode, at, inode, area: None }
    }
    /// Decodes the inode `number` in `bytes` at `at`; none where it is not in use.
    fn decode(fs: &Ext, number: u32, at: Offset<Volume>, bytes: &[u8], problems: &mut Vec<Trouble>) -> Option<Self> {
        let half = |at: usize| bytes.get(at..at.saturating_add(2)).is_some_and(|b| b != [0, 0]);
        // Neither links nor a mode: never used, or deleted. Most of a table is that.
        if !half(0x1a) && !half(0) {
            return None;
        }
        let inode = Inode::decode(&fs.superblock, number, at, bytes).ok()?;
        // Deleted: what its map says belongs to others by now.
        if inode.links == 0 && number >= fs.superblock.first_inode {
            return None;
        }
        if !inode.intact {
            problems.push((number, Error::corrupt(format!("ext inode {number}"), at, "a checksum that is right")));
        }
        let behind = usize::from(inode.extra).saturating_add(128);
        let area = bytes.get(behind..).filter(|a| a.starts_with(&super::xattr::MAGIC.to_le_bytes()));
        Some(Self { number, at, inode, area: area.map(|a| (behind as u64, a.into())) })
    }
}

impl Ext {
    /// Whether an inode is the file system's own.
    pub(super) fn hidden(&self, node: &Node) -> bool {
        let s = &self.superblock;
        let n = node.number;
        n != ROOT && n < s.first_inode
            || s.hidden.contains(&n)
            || n == s.journal_inode
            || node.inode.has(flags::EA_INODE)
    }
    /// One inode.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where there is no such inode or it is not in use; and whatever reading meets.
    pub fn node(&self, number: u32) -> Result<Node> {
        let at = self.inode_at(number)?;
        let bytes = self.volume.read_vec(at, self.superblock.inode_size.into())?;
        let mut problems = Vec::new();
        Node::decode(self, number, at, &bytes, &mut problems)
            .ok_or_else(|| Error::corrupt(format!("ext inode {number}"), at, "an inode in use"))
    }
    /// The inodes of these numbers (ascending), wherever the bitmaps say that they are not in use.
    pub fn scan_some(&self, numbers: &[u32]) -> Scan {
        let mut scan = Scan::default();
        let size = u64::from(self.superblock.block);
        let mut places: Vec<(u64, u32, Offset<Volume>)> = Vec::new();
        for n in numbers {
            match self.inode_at(*n) {
                Ok(at) => places.push((at.get().checked_div(size).unwrap_or(0), *n, at)),
                Err(e) => scan.problems.push((*n, e)),
            }
        }
        places.sort_unstable();
        let mut blocks: Vec<u64> = places.iter().map(|p| p.0).collect();
        blocks.dedup();
        let found = sweep(&*self.volume, self.superblock.block, &blocks, |n, bytes| {
            let (mut nodes, mut problems) = (Vec::new(), Vec::new());
            let block = blocks.get(n).copied().unwrap_or_default();
            let first = places.partition_point(|p| p.0 < block);
            for (_, number, at) in places.iter().skip(first).take_while(|p| p.0 == block) {
                let Ok(bytes) = &bytes else {
                    problems.push((
                        *number,
                        Error::corrupt(format!("ext inode {number}"), *at, "a block that can be read"),
                    ));
                    continue;
                };
                let from = usize::try_from(at.get().checked_rem(size).unwrap_or(0)).unwrap_or(usize::MAX);
                let part = bytes.get(from..from.saturating_add(self.superblock.inode_size.into()));
                nodes.extend(Node::decode(self, *number, *at, part.unwrap_or_default(), &mut problems));
            }
            (nodes, problems)
        });
        for (nodes, problems) in found {
            scan.nodes.extend(nodes);
            scan.problems.extend(problems);
        }
        scan.nodes.sort_unstable_by_key(|n| n.number);
        scan
    }
    /// All inodes in use.
    pub fn scan(&self) -> Scan {
        let mut scan = Scan::default();
        let bitmaps = self.inode_bitmaps(&mut scan.problems);
        let groups: Vec<(u32, &Group, Option<&Vec<u8>>)> = (0u32..)
            .zip(&self.groups)
            .zip(&bitmaps)
            .filter_map(|((n, g), bits)| g.as_ref().map(|(g, _)| (n, g, bits.as_ref())))
            .collect();
        // Tables that overlap would be read again and again.
        let mut order: Vec<usize> = (0..groups.len()).collect();
        let table = |i: usize| groups.get(i).map_or(0, |g| g.1.inode_table);
        order.sort_by_key(|i| table(*i));
        let mut end = 0;
        let mut good = vec![false; groups.len()];
        for i in order {
            if table(i) >= end {
                end = table(i).saturating_add(Group::table_blocks(&self.superblock));
                if let Some(slot) = good.get_mut(i) {
                    *slot = true;
                }
            } else if let Some((n, ..)) = groups.get(i) {
                let at = self.superblock.byte(table(i));
                scan.problems.push((0, Error::corrupt(format!("ext group {n}"), at, "an inode table of its own")));
            }
        }
        let mut stretches = Vec::new();
        for ((n, g, bits), _) in groups.into_iter().zip(good).filter(|g| g.1) {
            self.stretches(n, g, bits, &mut stretches);
        }
        // Each stretch fills its own part of one list: lists of their own would be held twice while they are joined.
        let counts: Vec<usize> = stretches.iter().map(Stretch::count).collect();
        let mut nodes: Vec<Option<Node>> = Vec::new();
        nodes.resize_with(counts.iter().sum(), || None);
        let mut rooms = Vec::with_capacity(stretches.len());
        let mut rest = nodes.as_mut_slice();
        for (stretch, count) in stretches.iter().zip(counts) {
            let (room, more) = rest.split_at_mut(count.min(rest.len()));
            rooms.push((stretch, room));
            rest = more;
        }
        let problems: Vec<Vec<Trouble>> = rooms
            .into_par_iter()
            .map_init(Vec::new, |buffer, (stretch, room)| self.scan_stretch(stretch, room, buffer))
            .collect();
        scan.problems.extend(problems.into_iter().flatten());
        scan.nodes = nodes.into_iter().flatten().collect();
        scan
    }
    /// The inode bitmaps of the groups that have one whose checksum is right.
    fn inode_bitmaps(&self, problems: &mut Vec<Trouble>) -> Vec<Option<Vec<u8>>> {
        let s = &self.superblock;
        let width = s.inodes_per_group.div_ceil(8) as usize;
        let mut wanted: Vec<(u64, usize)> = Vec::new();
        for (n, g) in self.groups.iter().enumerate() {
            if let Some((g, true)) = g
                && !(s.uninit_groups() && g.flags & INODE_UNINIT != 0)
            {
                wanted.push((g.inode_bitmap, n));
            }
        }
        wanted.sort_unstable();
        wanted.dedup_by_key(|w| w.0);
        let blocks: Vec<u64> = wanted.iter().map(|w| w.0).collect();
        let read = sweep(&*self.volume, s.block, &blocks, |_, bytes| {
            let bits = bytes?.get(..width).unwrap_or_default().to_vec();
            let sum = crc32c(s.seed, &bits);
            Ok::<_, Error>((bits, sum))
        });
        let mut out = vec![None; self.groups.len()];
        for ((block, n), bits) in wanted.into_iter().zip(read) {
            let have = self.groups.get(n).and_then(Option::as_ref).map_or(0, |g| g.0.inode_bitmap_sum);
            let mask = if s.descriptor >= 64 { u32::MAX } else { 0xffff };
            match bits {
                Ok((_, sum)) if s.metadata_csum() && sum & mask != have & mask => {
                    let what = format!("inode bitmap of ext group {n}");
                    problems.push((0, Error::corrupt(what, s.byte(block), "a checksum that is right")));
                }
                Ok((bits, _)) => {
                    if let Some(slot) = out.get_mut(n) {
                        *slot = Some(bits);
                    }
                }
                Err(e) => problems.push((0, e)),
            }
        }
        out
    }
    /// The stretches of a group's table that are to be read. Without a bitmap that can be relied on, that is all of it.
    fn stretches<'a>(&self, group: u32, g: &Group, bits: Option<&'a Vec<u8>>, out: &mut Vec<Stretch<'a>>) {
        let s = &self.superblock;
        let relied = self.groups.get(group as usize).and_then(Option::as_ref).is_some_and(|g| g.1);
        let per = s.inodes_per_group;
        let first = group.saturating_mul(per).saturating_add(1);
        let mut count = per.min(s.inodes.saturating_sub(first.saturating_sub(1)));
        if relied && s.uninit_groups() {
            if g.flags & INODE_UNINIT != 0 {
                return;
            }
            if bits.is_some() {
                count = count.min(per.saturating_sub(g.unused_inodes));
            }
        }
        let step = u32::try_from(CHUNK.checked_div(s.inode_size.into()).unwrap_or(1)).unwrap_or(1).max(1);
        let table = s.byte(g.inode_table);
        for from in (0..count).step_by(step as usize) {
            let to = from.saturating_add(step).min(count);
            let mut stretch = Stretch { first, table, bits, range: from..to };
            // Only from the first to the last one in use.
            if let Some(a) = (from..to).find(|i| stretch.used(*i)) {
                let b = (a..to).rev().find(|i| stretch.used(*i)).unwrap_or(a).saturating_add(1);
                stretch.range = a..b;
                out.push(stretch);
            }
        }
    }
    /// The inodes of a stretch, into `room`, which has a place for each that is in use; `buffer` is room that is used again and again.
    fn scan_stretch(&self, stretch: &Stretch<'_>, room: &mut [Option<Node>], buffer: &mut Vec<u8>) -> Vec<Trouble> {
        let size = u64::from(self.superblock.inode_size);
        let mut problems = Vec::new();
        let at = stretch.at(stretch.range.start, size);
        let len = (stretch.range.len() as u64).saturating_mul(size);
        buffer.resize(usize::try_from(len).unwrap_or(0), 0);
        if let Err(e) = self.volume.read_at(at, buffer) {
            self.scan_slowly(stretch, room, &mut problems);
            problems.push((0, e));
            return problems;
        }
        let in_use = |(index, _): &(u32, &[u8])| stretch.used(*index);
        let all = stretch.range.clone().zip(buffer.chunks_exact(usize::from(self.superblock.inode_size)));
        for ((index, one), place) in all.filter(in_use).zip(room) {
            let number = stretch.first.saturating_add(index);
            *place = Node::decode(self, number, stretch.at(index, size), one, &mut problems);
        }
        problems
    }
    /// A stretch of a table that can't be read at once: inode by inode.
    fn scan_slowly(&self, stretch: &Stretch<'_>, room: &mut [Option<Node>], problems: &mut Vec<Trouble>) {
        let size = u64::from(self.superblock.inode_size);
        for (index, place) in stretch.range.clone().filter(|i| stretch.used(*i)).zip(room) {
            let at = stretch.at(index, size);
            if at.get() >= self.volume.len() {
                break;
            }
            let number = stretch.first.saturating_add(index);
            match self.volume.read_vec(at, usize::from(self.superblock.inode_size)) {
                Ok(bytes) => *place = Node::decode(self, number, at, &bytes, problems),
                Err(e) => problems.push((number, e)),
            }
        }
    }
}
