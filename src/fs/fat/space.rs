//! Where new directories and copies go: clusters that were free before.

use crate::fs::fat::table::{Run, push_cluster};
use crate::txn::reuse::{Layout, Range, Reuse};

/// Free clusters that were chosen, handed out in the order of the disk.
#[derive(Debug, Default)]
pub struct Space {
    /// What is left, the next ones last.
    runs: Vec<Run>,
}

impl Space {
    /// The largest free runs that together have `need` clusters, so that what is written is in few pieces. None where so
    /// many are not free.
    /// `all`: every cluster that is free, in order.
    pub fn choose(all: impl IntoIterator<Item = u32>, need: u64) -> Option<Self> {
        if need == 0 {
            return Some(Self::default());
        }
        let mut free: Vec<Run> = Vec::new();
        for n in all {
            push_cluster(&mut free, n);
        }
        free.sort_by_key(|(first, count)| (std::cmp::Reverse(*count), *first));
        let mut have = 0u64;
        let enough = free.iter().position(|(_, count)| {
            have = have.saturating_add(u64::from(*count));
            have >= need
        })?;
        free.truncate(enough.saturating_add(1));
        free.sort_by_key(|(first, _)| std::cmp::Reverse(*first));
        Some(Self { runs: free })
    }
    /// Where directories and copies go when clusters of the image may be filled: so many clusters for directories, and the rest by
    /// `reuse`. `all`: every cluster that is free, in order. None where there are too few.
    pub fn with_image(
        reuse: &Reuse,
        all: impl IntoIterator<Item = u32>,
        dirs: u64,
        boot: (impl Fn(u32) -> u64, impl Fn(u64) -> Option<u32>),
    ) -> Option<(Self, Layout)> {
        let (mut own, mut rest): (Vec<Run>, Vec<Run>) = (Vec::new(), Vec::new());
        let mut need = dirs;
        for n in all {
            push_cluster(if need > 0 { &mut own } else { &mut rest }, n);
            need = need.saturating_sub(1);
        }
        let (place, cluster) = boot;
        let rest: Vec<Range> =
            rest.iter().map(|(first, count)| (place(*first), u64::from(*count).saturating_mul(reuse.unit))).collect();
        let layout = reuse.lay_out(&rest)?;
        for (first, count) in runs_of(&layout.rest, reuse.unit, cluster)? {
            let part = need.min(count.into());
            let count = u32::try_from(part).ok()?;
            if count > 0 {
                own.push((first, count));
            }
            need = need.saturating_sub(part);
        }
        own.reverse();
        (need == 0).then_some((Self { runs: own }, layout))
    }
    /// The next `count` clusters; none where fewer are left.
    pub fn take(&mut self, count: u32) -> Option<Vec<Run>> {
        let mut out = Vec::new();
        let mut need = count;
        while need > 0 {
            let (first, have) = self.runs.pop()?;
            let part = have.min(need);
            out.push((first, part));
            need = need.saturating_sub(part);
            if part < have {
                self.runs.push((first.saturating_add(part), have.saturating_sub(part)));
            }
        }
        Some(out)
    }
}

/// The clusters of these ranges, neighbours together; none where one is no cluster. `cluster`: the one that begins at a byte.
pub fn runs_of(ranges: &[Range], unit: u64, cluster: impl Fn(u64) -> Option<u32>) -> Option<Vec<Run>> {
    let mut out: Vec<Run> = Vec::new();
    for (at, len) in ranges {
        let (first, count) = (cluster(*at)?, u32::try_from(len.checked_div(unit)?).ok()?);
        match out.last_mut() {
            Some((before, have)) if before.checked_add(*have) == Some(first) => *have = have.checked_add(count)?,
            _ => out.push((first, count)),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::fat::layout::Width;
    use crate::fs::fat::table::Table;

    #[test]
    fn the_largest_runs_in_the_order_of_the_disk() {
        let mut table = Table::new(vec![0; 204], Width::Fat16, 100);
        for n in [12, 20, 21, 50, 90] {
            assert!(table.set(n, 0xFFFF));
        }
        // Free: 2-11 (10), 13-19 (7), 22-49 (28), 51-89 (39), 91-101 (11).
        let mut space = Space::choose(table.free_clusters(), 60).unwrap();
        assert_eq!(space.take(30).unwrap(), [(22, 28), (51, 2)]);
        assert_eq!(space.take(30).unwrap(), [(53, 30)]);
        assert!(Space::choose(table.free_clusters(), 95).is_some());
        assert!(Space::choose(table.free_clusters(), 96).is_none());
        assert_eq!(Space::choose(table.free_clusters(), 0).unwrap().take(0), Some(vec![]));
        assert_eq!(Space::choose(table.free_clusters(), 1).unwrap().take(40), None);
    }
}
