//! Clusters and inodes that are free, for a host's writer: given out in ascending order, groups that were used before
//! first.

use std::ops::Range;

use super::bits::Bits;
use super::group::BLOCK_UNINIT;
use super::volume::Ext;

/// Gives out what was free before, and marks it as used.
#[derive(Debug)]
pub struct Space {
    /// Clusters in use, with those that were given out.
    pub clusters: Bits,
    /// Inodes in use, with those that were given out; inode 1 is bit 0.
    pub inodes: Bits,
    /// Clusters that may still be given out, as ranges in the order in which they are.
    ranges: Vec<Range<u64>>,
    at: usize,
    next_inode: u64,
    last_inode: u64,
}

impl Space {
    /// What is free by these bitmaps; from the group `near` on, then from the first one; groups whose bitmap was never
    /// written last.
    pub fn new(fs: &Ext, clusters: &Bits, inodes: &Bits, near: u32) -> Self {
        let s = &fs.superblock;
        let untouched = |n: &u32| {
            let group = fs.groups.get(*n as usize).copied().flatten();
            s.uninit_groups() && group.is_some_and(|(g, _)| g.flags & BLOCK_UNINIT != 0)
        };
        let all: Vec<u32> = (near..s.groups()).chain(0..near.min(s.groups())).collect();
        let (late, early): (Vec<u32>, Vec<u32>) = all.into_iter().partition(untouched);
        let ranges = early.into_iter().chain(late).map(|n| s.clusters_of(n)).collect();
        Self {
            clusters: clusters.clone(),
            inodes: inodes.clone(),
            ranges,
            at: 0,
            next_inode: u64::from(s.first_inode).saturating_sub(1),
            last_inode: s.inodes.into(),
        }
    }
    /// Takes `count` clusters: first ones and lengths, in the order of their use. None where there are too few; then
    /// those that there were are gone.
    pub fn take(&mut self, count: u64) -> Option<Vec<(u64, u64)>> {
        let mut out: Vec<(u64, u64)> = Vec::new();
        let mut left = count;
        while left > 0 {
            let range = self.ranges.get_mut(self.at)?;
            let Some(n) = self.clusters.first_clear(range.clone()) else {
                self.at = self.at.saturating_add(1);
                continue;
            };
            range.start = n.saturating_add(1);
            self.clusters.set(n);
            left = left.saturating_sub(1);
            match out.last_mut() {
                Some((first, len)) if first.saturating_add(*len) == n => *len = len.saturating_add(1),
                _ => out.push((n, 1)),
            }
        }
        Some(out)
    }
    /// Takes an inode; its number.
    pub fn inode(&mut self) -> Option<u32> {
        let n = self.inodes.first_clear(self.next_inode..self.last_inode)?;
        self.next_inode = n.saturating_add(1);
        self.inodes.set(n);
        u32::try_from(n.saturating_add(1)).ok()
    }
}
