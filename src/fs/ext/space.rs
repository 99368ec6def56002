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
    /// Clusters of the image that are given out when no others are left; the next ones last.
    image: Vec<Range<u64>>,
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
            image: Vec::new(),
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
            let n = self.free().or_else(|| self.of_image())?;
            self.clusters.set(n);
            left = left.saturating_sub(1);
            match out.last_mut() {
                Some((first, len)) if first.saturating_add(*len) == n => *len = len.saturating_add(1),
                _ => out.push((n, 1)),
            }
        }
        Some(out)
    }
    fn free(&mut self) -> Option<u64> {
        loop {
            let range = self.ranges.get_mut(self.at)?;
            if let Some(n) = self.clusters.first_clear(range.clone()) {
                range.start = n.saturating_add(1);
                return Some(n);
            }
            self.at = self.at.saturating_add(1);
        }
    }
    fn of_image(&mut self) -> Option<u64> {
        let range = self.image.last_mut()?;
        let n = range.start;
        range.start = n.saturating_add(1);
        if range.start >= range.end {
            self.image.pop();
        }
        Some(n)
    }
    /// All clusters that are free, as first ones and lengths, in order.
    pub fn all_free(&self) -> Vec<(u64, u64)> {
        let mut ranges = self.ranges.clone();
        ranges.sort_by_key(|r| r.start);
        let mut out: Vec<(u64, u64)> = Vec::new();
        for range in ranges {
            let mut at = range.start;
            while let Some(n) = self.clusters.first_clear(at..range.end) {
                match out.last_mut() {
                    Some((first, len)) if first.saturating_add(*len) == n => *len = len.saturating_add(1),
                    _ => out.push((n, 1)),
                }
                at = n.saturating_add(1);
            }
        }
        out
    }
    /// Clusters of the image that may be given out when no others are left: first ones and lengths.
    pub fn with_image(&mut self, clusters: &[(u64, u64)]) {
        self.image = clusters.iter().rev().map(|(first, len)| *first..first.saturating_add(*len)).collect();
    }
    /// Takes an inode; its number.
    pub fn inode(&mut self) -> Option<u32> {
        let n = self.inodes.first_clear(self.next_inode..self.last_inode)?;
        self.next_inode = n.saturating_add(1);
        self.inodes.set(n);
        u32::try_from(n.saturating_add(1)).ok()
    }
}
