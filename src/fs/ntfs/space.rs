//! Where new structures and copies go: clusters that were free before.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use crate::fs::ntfs::bits::Bits;
use crate::fs::ntfs::runs::Run;

/// Free stretches: length, and first cluster, of which the lowest is the last.
type Stretches = BTreeSet<(u64, Reverse<u64>)>;

/// Free clusters, handed out from the largest stretches on, so that what is written is in few pieces.
#[derive(Clone, Debug, Default)]
pub struct Space {
    free: Stretches,
    /// Kept back for metadata, which must be in few pieces.
    kept: Stretches,
    /// Clusters of the image, for when no others are left.
    image: Stretches,
}

impl Space {
    /// All that `bitmap` has free below `clusters`.
    pub fn new(bitmap: &Bits, clusters: u64) -> Self {
        let free = bitmap.clear_runs(clusters).iter().map(|r| (r.len, Reverse(r.lcn))).collect();
        Self { free, kept: Stretches::new(), image: Stretches::new() }
    }
    /// Keeps so many clusters of the largest stretches back from [`take_for_data`](Self::take_for_data) while it finds others.
    pub fn keep(&mut self, count: u64) {
        let mut need = count;
        while need > 0 {
            let Some((len, Reverse(lcn))) = self.free.pop_last() else { return };
            let part = len.min(need);
            self.kept.insert((part, Reverse(lcn)));
            if len > part {
                self.free.insert((len.saturating_sub(part), Reverse(lcn.saturating_add(part))));
            }
            need = need.saturating_sub(part);
        }
    }
    /// So many clusters in as few pieces as there are; each piece but for the last a multiple of `step`. None where
    /// fewer are left.
    pub fn take(&mut self, count: u64, step: u64) -> Option<Vec<Run>> {
        let mut out = Vec::new();
        let need = draw(&mut self.kept, count, step, &mut out);
        let need = draw(&mut self.free, need, step, &mut out);
        let need = draw(&mut self.image, need, step, &mut out);
        self.given(need, out)
    }
    /// The same for contents of files.
    pub fn take_for_data(&mut self, count: u64) -> Option<Vec<Run>> {
        let mut out = Vec::new();
        let need = draw(&mut self.free, count, 1, &mut out);
        let need = draw(&mut self.image, need, 1, &mut out);
        let need = draw(&mut self.kept, need, 1, &mut out);
        self.given(need, out)
    }
    /// Hands out all that is free and not kept back, in order: who takes it gives back what is left.
    pub fn all_free(&mut self) -> Vec<Run> {
        let mut all: Vec<Run> =
            std::mem::take(&mut self.free).into_iter().map(|(len, Reverse(lcn))| Run { len, lcn }).collect();
        all.sort_by_key(|r| r.lcn);
        all
    }
    /// Gives back what is left of the free ones, and adds clusters of the image.
    pub fn with_image(&mut self, free: impl Iterator<Item = Run>, image: impl Iterator<Item = Run>) {
        self.free.extend(free.map(|r| (r.len, Reverse(r.lcn))));
        self.image.extend(image.map(|r| (r.len, Reverse(r.lcn))));
    }
    /// What was drawn, or, where it is not all, nothing.
    fn given(&mut self, missing: u64, out: Vec<Run>) -> Option<Vec<Run>> {
        if missing == 0 {
            return Some(out);
        }
        self.free.extend(out.iter().map(|r| (r.len, Reverse(r.lcn))));
        None
    }
}

/// Draws up to `count` clusters, of each stretch but for the last a multiple of `step`; gives how many are missing.
fn draw(from: &mut Stretches, count: u64, step: u64, out: &mut Vec<Run>) -> u64 {
    let mut need = count;
    let mut rest = Stretches::new();
    while need > 0 {
        let Some((len, Reverse(lcn))) = from.pop_last() else { break };
        let part = len.min(need);
        let part = if part < need { part.saturating_sub(part.checked_rem(step).unwrap_or(0)) } else { part };
        if part > 0 {
            out.push(Run { len: part, lcn });
            need = need.saturating_sub(part);
        }
        if len > part {
            rest.insert((len.saturating_sub(part), Reverse(lcn.saturating_add(part))));
        }
    }
    from.append(&mut rest);
    need
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> Space {
        let mut bits = Bits::new(64);
        for n in [10, 31] {
            bits.put(n, true);
        }
        Space::new(&bits, 64)
    }

    #[test]
    fn the_largest_first_and_whole_records() {
        let mut space = space();
        assert_eq!(space.take(30, 1), Some(vec![Run { len: 30, lcn: 32 }]));
        assert_eq!(space.take(24, 4), Some(vec![Run { len: 20, lcn: 11 }, Run { len: 4, lcn: 0 }]));
        assert_eq!(space.take(9, 1), None);
        // What is refused is not lost.
        assert_eq!(space.take(8, 1), Some(vec![Run { len: 6, lcn: 4 }, Run { len: 2, lcn: 62 }]));
    }

    #[test]
    fn data_leave_the_large_stretches_to_metadata() {
        let mut space = space();
        space.keep(25);
        assert_eq!(space.take_for_data(20), Some(vec![Run { len: 20, lcn: 11 }]));
        assert_eq!(space.take(26, 1), Some(vec![Run { len: 25, lcn: 32 }, Run { len: 1, lcn: 0 }]));
        assert_eq!(space.take_for_data(16), Some(vec![Run { len: 9, lcn: 1 }, Run { len: 7, lcn: 57 }]));
    }
}
