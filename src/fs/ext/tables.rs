//! From new inodes, bitmaps and counts to the sectors that have to be written, and the superblock's switch.

use std::collections::{BTreeMap, BTreeSet};

use super::bits::Bits;
use super::checksum::crc32c;
use super::group::{BLOCK_UNINIT, Group, INODE_UNINIT};
use super::superblock::{SUPERBLOCK, Superblock, incompat};
use super::volume::Ext;
use crate::bytes::put;
use crate::error::{Error, Result};
use crate::extent::{Offset, Volume};
use crate::txn::{Fresh, Quarantine, SECTOR};

/// Blocks in use that change, by their numbers.
#[derive(Clone, Debug, Default)]
pub struct Blocks(pub BTreeMap<u64, Vec<u8>>);

impl Blocks {
    /// The bytes of a block, read when they are first asked for.
    ///
    /// # Errors
    /// Where it can't be read.
    pub fn edit(&mut self, fs: &Ext, block: u64) -> Result<&mut Vec<u8>> {
        match self.0.entry(block) {
            std::collections::btree_map::Entry::Occupied(e) => Ok(e.into_mut()),
            std::collections::btree_map::Entry::Vacant(e) => {
                let s = &fs.superblock;
                Ok(e.insert(fs.volume.read_vec(s.byte(block), s.block as usize)?))
            }
        }
    }
    /// Puts bytes at a place of the volume, within one block.
    ///
    /// # Errors
    /// Where the block can't be read, or ends before.
    pub fn put(&mut self, fs: &Ext, at: Offset<Volume>, bytes: &[u8]) -> Result<()> {
        let size = u64::from(fs.superblock.block);
        let block = self.edit(fs, at.get().checked_div(size).unwrap_or(0))?;
        let from = usize::try_from(at.get().checked_rem(size).unwrap_or(0)).unwrap_or(usize::MAX);
        if put(block, from, bytes) { Ok(()) } else { Err(Error::corrupt("ext block", at, "room for a structure")) }
    }
    /// The sectors of these blocks that differ from what `before` has: place and contents.
    ///
    /// # Errors
    /// Where a block can't be read.
    pub fn changed(&self, fs: &Ext, before: &Self) -> Result<BTreeMap<u64, Vec<u8>>> {
        let s = &fs.superblock;
        let mut out = BTreeMap::new();
        for (block, bytes) in &self.0 {
            let read;
            let old = match before.0.get(block) {
                Some(old) => old,
                None => {
                    read = fs.volume.read_vec(s.byte(*block), s.block as usize)?;
                    &read
                }
            };
            let size = usize::try_from(SECTOR).unwrap_or(512);
            let mut at = s.byte(*block).get();
            for (a, b) in old.chunks(size).zip(bytes.chunks(size)) {
                if a != b {
                    out.insert(at, b.to_vec());
                }
                at = at.saturating_add(SECTOR);
            }
        }
        Ok(out)
    }
}

/// Sectors by their places as writes, neighbours in one.
pub fn writes(sectors: impl IntoIterator<Item = (u64, Vec<u8>)>) -> Vec<Fresh> {
    let mut out: Vec<Fresh> = Vec::new();
    for (at, bytes) in sectors {
        match out.last_mut() {
            Some(last) if last.at.get().saturating_add(last.bytes.len() as u64) == at => last.bytes.extend(bytes),
            _ => out.push(Fresh { at: Offset::new(at), bytes }),
        }
    }
    out
}

/// The groups of changed sectors of inodes and directories, in the order in which they are written, and what some hold
/// before their final contents.
pub struct Ordered {
    /// New inodes; directories that were there; the image's inode.
    pub groups: [BTreeMap<u64, Vec<u8>>; 3],
    /// Sectors that get the new inodes before the final contents, which come in a later group.
    pub interim: BTreeMap<u64, Vec<u8>>,
}

/// Orders the changes: `new` inodes first, then `dirs` (which has the former too), then `image` (which has all).
///
/// # Errors
/// Where a block can't be read.
pub fn ordered(fs: &Ext, new: &Blocks, dirs: &Blocks, image: &Blocks) -> Result<Ordered> {
    let mut first = new.changed(fs, &Blocks::default())?;
    let mut second = dirs.changed(fs, new)?;
    let third = image.changed(fs, dirs)?;
    let mut interim = BTreeMap::new();
    let late: BTreeSet<u64> = second.keys().chain(third.keys()).copied().collect();
    for at in late {
        if let Some(bytes) = first.remove(&at) {
            interim.insert(at, bytes);
        }
    }
    second.retain(|at, _| !third.contains_key(at));
    Ok(Ordered { groups: [first, second, third], interim })
}

/// What of the tables changes, and how.
pub struct Tables<'a> {
    /// Clusters in use, before and after.
    pub clusters: (&'a Bits, &'a Bits),
    /// Inodes in use, before and after.
    pub inodes: (&'a Bits, &'a Bits),
    /// Directories that a group gets more than it loses.
    pub dirs: &'a BTreeMap<u32, i64>,
}

/// The new tables.
pub struct NewTables {
    /// Bitmaps as they will be.
    pub bitmaps: Blocks,
    /// Bitmaps with everything that is in use before or after.
    pub union: Blocks,
    /// Descriptors as they will be.
    pub descriptors: Blocks,
    /// Free blocks and inodes of the volume.
    pub free: (u64, u32),
}

impl Ext {
    /// Bitmaps, descriptors and sums of the new state.
    ///
    /// # Errors
    /// Where a block can't be read.
    pub fn new_tables(&self, t: &Tables<'_>) -> Result<NewTables> {
        let s = &self.superblock;
        let mut out = NewTables {
            bitmaps: Blocks::default(),
            union: Blocks::default(),
            descriptors: Blocks::default(),
            free: (0, 0),
        };
        for (n, group) in (0u32..).zip(&self.groups) {
            let Some((g, _)) = group else { continue };
            let (clusters, inodes) = (s.clusters_of(n), s.inodes_of(n));
            let free = |bits: &Bits, range: &std::ops::Range<u64>| {
                range.end.saturating_sub(range.start).saturating_sub(bits.count(range.clone()))
            };
            let mut new = *g;
            let free_clusters = free(t.clusters.1, &clusters);
            let free_inodes = free(t.inodes.1, &inodes);
            out.free.0 = out.free.0.saturating_add(free_clusters.saturating_mul(s.ratio.into()));
            out.free.1 = out.free.1.saturating_add(u32::try_from(free_inodes).unwrap_or(0));
            new.free_clusters = u32::try_from(free_clusters).unwrap_or(u32::MAX);
            new.free_inodes = u32::try_from(free_inodes).unwrap_or(u32::MAX);
            let more = t.dirs.get(&n).copied().unwrap_or(0);
            new.used_dirs = u32::try_from(i64::from(g.used_dirs).saturating_add(more)).unwrap_or(0);
            for (old, bits, range, block, flag) in [
                (t.clusters.0, t.clusters.1, &clusters, g.block_bitmap, BLOCK_UNINIT),
                (t.inodes.0, t.inodes.1, &inodes, g.inode_bitmap, INODE_UNINIT),
            ] {
                let (was, is) = (old.slice(range.clone()), bits.slice(range.clone()));
                if was == is {
                    continue;
                }
                let unwritten = s.uninit_groups() && g.flags & flag != 0;
                let mut end = self.volume.read_vec(s.byte(block), s.block as usize)?;
                if unwritten {
                    // Bits that stand for nothing are set.
                    end.fill(0xff);
                }
                let mut both = end.clone();
                let union: Vec<u8> = was.iter().zip(is).map(|(a, b)| a | b).collect();
                let _fits = put(&mut end, 0, is) && put(&mut both, 0, &union);
                new.flags &= !if unwritten { flag } else { 0 };
                if s.metadata_csum() {
                    let sum = crc32c(s.seed, is);
                    let kept = if s.descriptor >= 64 { sum } else { sum & 0xffff };
                    match flag {
                        BLOCK_UNINIT => new.block_bitmap_sum = kept,
                        _ => new.inode_bitmap_sum = kept,
                    }
                }
                out.union.0.insert(block, both);
                out.bitmaps.0.insert(block, end);
            }
            if t.inodes.0.slice(inodes.clone()) != t.inodes.1.slice(inodes.clone()) && s.uninit_groups() {
                let last =
                    inodes.clone().rev().find(|i| t.inodes.1.has(*i)).map_or(inodes.start, |i| i.saturating_add(1));
                let tail = u32::try_from(inodes.end.saturating_sub(last)).unwrap_or(0);
                new.unused_inodes = g.unused_inodes.min(tail);
            }
            if new != *g {
                let per = s.descriptors_per_block();
                let (block, _) = s.descriptor_block(n.checked_div(per).unwrap_or(0));
                let within = n.checked_rem(per).unwrap_or(0).saturating_mul(s.descriptor.into()) as usize;
                let bytes = out.descriptors.edit(self, block)?;
                let end = within.saturating_add(s.descriptor.into());
                let part = bytes.get_mut(within..end).unwrap_or_default();
                new.encode(s, n, part);
            }
        }
        Ok(out)
    }

    /// The superblock's first sector while the volume is between two states, and afterwards. All that changes is in that
    /// sector, and so is what keeps the checksum, which is in the second one, right: see `settle`.
    ///
    /// # Errors
    /// Where it can't be read.
    pub fn switch(&self, free: (u64, u32), large_file: bool) -> Result<Quarantine> {
        let s = &self.superblock;
        let at = Offset::new(1024);
        let old = self.volume.read_vec(at, SUPERBLOCK)?;
        let mut open = old.clone();
        let word = |n: u64| ((n & 0xffff_ffff) as u32).to_le_bytes();
        let mut fits = put(&mut open, 0xc, &word(free.0)) && put(&mut open, 0x10, &free.1.to_le_bytes());
        if s.has(incompat::B64) {
            fits &= put(&mut open, 0x158, &word(free.0 >> 32));
        }
        if large_file {
            fits &= put(&mut open, 0x64, &(s.ro_compat | super::superblock::ro_compat::LARGE_FILE).to_le_bytes());
        }
        let mut closed = old;
        fits &= put(&mut closed, 0x60, &(s.incompat | incompat::QUARANTINE).to_le_bytes());
        if s.metadata_csum() {
            fits &= settle(&mut open) && settle(&mut closed);
        }
        let size = usize::try_from(SECTOR).unwrap_or(512);
        open.truncate(size);
        closed.truncate(size);
        if !fits || open == closed {
            return Err(Error::corrupt("ext superblock", at, "room for its fields"));
        }
        Ok(Quarantine { at, closed, open, also: Vec::new() })
    }
}

/// Where the word lies by which [`settle`] keeps a checksum as it is: the ID of an active snapshot, which no released
/// program ever used.
const SETTLED: usize = 0x184;

/// Changes one unused word of a superblock's first sector so that the checksum in its second sector, which stays as it is,
/// is right. The switch is then one sector, which a disk writes as a whole or not at all. Returns whether it could.
#[must_use]
fn settle(superblock: &mut [u8]) -> bool {
    let Some((body, sum)) = superblock.split_at_mut_checked(0x3fc) else { return false };
    let Some(wanted) = sum.get(..4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes) else { return false };
    if !put(body, SETTLED, &[0; 4]) {
        return false;
    }
    // A checksum is linear: what each bit of the word changes in it, alone, with zeros behind.
    let behind = vec![0; 0x3fc - SETTLED - 4];
    let mut rows: Vec<(u32, u32)> =
        (0..32).map(|bit| (crc32c(crc32c(0, &(1u32 << bit).to_le_bytes()), &behind), 1u32 << bit)).collect();
    let mut missing = crc32c(!0, body) ^ wanted;
    let mut word = 0u32;
    for bit in 0..32 {
        let mask = 1u32 << bit;
        let Some(at) = rows.iter().position(|(effect, _)| effect & mask != 0) else {
            if missing & mask != 0 {
                return false;
            }
            continue;
        };
        let (effect, bits) = rows.swap_remove(at);
        for row in &mut rows {
            if row.0 & mask != 0 {
                row.0 ^= effect;
                row.1 ^= bits;
            }
        }
        if missing & mask != 0 {
            missing ^= effect;
            word ^= bits;
        }
    }
    missing == 0 && put(body, SETTLED, &word.to_le_bytes())
}

impl Group {
    /// Writes the counts, flags and checksums into the bytes of this group's descriptor; places stay.
    pub fn encode(&self, s: &Superblock, number: u32, bytes: &mut [u8]) {
        let wide = s.has(incompat::B64) && s.descriptor >= 64;
        let mut set = |low: usize, high: Option<usize>, value: u32| {
            let [a, b, c, d] = value.to_le_bytes();
            let _fits = put(bytes, low, &[a, b]);
            if let Some(high) = high.filter(|_| wide) {
                let _fits = put(bytes, high, &[c, d]);
            }
        };
        set(0xc, Some(0x2c), self.free_clusters);
        set(0xe, Some(0x2e), self.free_inodes);
        set(0x10, Some(0x30), self.used_dirs);
        set(0x12, None, self.flags.into());
        set(0x18, Some(0x38), self.block_bitmap_sum);
        set(0x1a, Some(0x3a), self.inode_bitmap_sum);
        set(0x1c, Some(0x32), self.unused_inodes);
        if let Some(sum) = s.descriptor_checksum(number, bytes) {
            let _fits = put(bytes, 0x1e, &sum.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever changes, the checksum stays right by one word.
    #[test]
    fn the_checksum_stays_as_it_was() {
        let mut block: Vec<u8> = (0..1024u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let sum = crc32c(!0, &block[..0x3fc]);
        block[0x3fc..].copy_from_slice(&sum.to_le_bytes());
        for (at, value) in [(0x60, 0x40), (0xc, 1), (0x1ff, 0xff), (0x158, 9)] {
            block[at] ^= value;
            assert!(settle(&mut block));
            assert_eq!(crc32c(!0, &block[..0x3fc]), sum);
        }
    }
}
