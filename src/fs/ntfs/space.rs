//! Where new structures and copies go: clusters that were free before.

use crate::fs::ntfs::bits::Bits;
use crate::fs::ntfs::runs::Run;

/// Free clusters, handed out from the largest stretches on, so that what is written is in few pieces.
#[derive(Debug, Default)]
pub struct Space {
    /// What is left, the shortest first.
    free: Vec<Run>,
}

impl Space {
    /// All that `bitmap` has free below `clusters`.
    pub fn new(bitmap: &Bits, clusters: u64) -> Self {
        let mut free = bitmap.clear_runs(clusters);
        free.sort_by_key(|r| (r.len, std::cmp::Reverse(r.lcn)));
        Self { free }
    }
    /// So many clusters in as few pieces as there are; each piece but for the last a multiple of `step`. None where
    /// fewer are left.
    pub fn take(&mut self, count: u64, step: u64) -> Option<Vec<Run>> {
        let mut out = Vec::new();
        let mut need = count;
        // One of the last two stretches is the largest: enough to keep a value together where that can be.
        if let [.., next, last] = self.free.as_mut_slice()
            && last.len < need
            && next.len > last.len
        {
            std::mem::swap(next, last);
        }
        let mut short = Vec::new();
        while need > 0 {
            let Some(mut run) = self.free.pop() else {
                self.free.extend(short);
                return None;
            };
            let part = run.len.min(need);
            let part = if part < need { part.saturating_sub(part.checked_rem(step).unwrap_or(0)) } else { part };
            if part > 0 {
                out.push(Run { len: part, lcn: run.lcn });
                need = need.saturating_sub(part);
            }
            run = run.skip(part);
            if run.len > 0 {
                if need == 0 { self.free.push(run) } else { short.push(run) }
            }
        }
        self.free.splice(0..0, short);
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_first_and_whole_records() {
        let mut bits = Bits::new(64);
        for n in [10, 31] {
            bits.put(n, true);
        }
        let mut space = Space::new(&bits, 64);
        assert_eq!(space.take(30, 1), Some(vec![Run { len: 30, lcn: 32 }]));
        assert_eq!(space.take(24, 4), Some(vec![Run { len: 20, lcn: 11 }, Run { len: 4, lcn: 0 }]));
        assert_eq!(space.take(9, 1), None);
    }
}
