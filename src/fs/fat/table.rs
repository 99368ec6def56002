//! The file allocation table in memory, and the chains in it.

use crate::fs::fat::layout::Width;

/// What an entry of the table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The cluster is free.
    Free,
    /// The chain goes on here.
    Cluster(u32),
    /// The chain ends here.
    End,
    /// The cluster is bad.
    Bad,
    /// Neither a mark nor a cluster of the volume.
    Wrong(u32),
    /// The entry can't be read.
    Unreadable,
}

/// A table in which chains are followed: FAT's, or exFAT's.
pub trait Links {
    /// Data clusters of the volume; they are numbered from 2.
    fn clusters(&self) -> u32;
    /// What the entry of a cluster says.
    fn next(&self, cluster: u32) -> Next;
}

impl Links for Table {
    fn clusters(&self) -> u32 {
        self.clusters
    }
    #[inline]
    fn next(&self, cluster: u32) -> Next {
        Table::next(self, cluster)
    }
}

/// The entries of one table, as its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    bytes: Vec<u8>,
    width: Width,
    clusters: u32,
}

impl Table {
    /// The table of a volume with so many clusters in these bytes. Entries that they don't hold are free.
    pub fn new(bytes: Vec<u8>, width: Width, clusters: u32) -> Self {
        Self { bytes, width, clusters }
    }
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
    /// Data clusters of the volume.
    pub fn clusters(&self) -> u32 {
        self.clusters
    }
    /// The number of every data cluster.
    pub fn numbers(&self) -> std::ops::Range<u32> {
        2..self.clusters.saturating_add(2)
    }
    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.bytes.get(at..)?.first_chunk().copied()
    }
    /// Where a FAT12 entry begins.
    fn at12(n: u32) -> usize {
        let n = n as usize;
        n.saturating_add(n / 2)
    }
    /// The value of an entry; without the four bits of FAT32 that don't count. 0 beyond the end.
    #[inline]
    pub fn get(&self, n: u32) -> u32 {
        let value = match self.width {
            Width::Fat12 => self.array(Self::at12(n)).map(|two| {
                let two = u32::from(u16::from_le_bytes(two));
                if n.is_multiple_of(2) { two & 0xFFF } else { two >> 4 }
            }),
            Width::Fat16 => self.array((n as usize).saturating_mul(2)).map(|two| u16::from_le_bytes(two).into()),
            Width::Fat32 => {
                self.array((n as usize).saturating_mul(4)).map(|four| u32::from_le_bytes(four) & 0x0FFF_FFFF)
            }
        };
        value.unwrap_or(0)
    }
    /// Sets an entry; the four bits of FAT32 that don't count stay. Returns whether the table has such an entry.
    #[inline]
    #[must_use]
    pub fn set(&mut self, n: u32, value: u32) -> bool {
        let value = value & self.width.end();
        let (at, len, value) = match self.width {
            Width::Fat12 => {
                let at = Self::at12(n);
                let Some(old) = self.array(at).map(u16::from_le_bytes) else { return false };
                let (keep, put) = if n.is_multiple_of(2) { (0xF000, value) } else { (0x000F, value << 4) };
                (at, 2, u32::from(old & keep) | put)
            }
            Width::Fat16 => ((n as usize).saturating_mul(2), 2, value),
            Width::Fat32 => {
                let at = (n as usize).saturating_mul(4);
                let Some(old) = self.array(at).map(u32::from_le_bytes) else { return false };
                (at, 4, old & 0xF000_0000 | value)
            }
        };
        let bytes = value.to_le_bytes();
        match (self.bytes.get_mut(at..).and_then(|b| b.get_mut(..len)), bytes.get(..len)) {
            (Some(room), Some(bytes)) => {
                room.copy_from_slice(bytes);
                true
            }
            _ => false,
        }
    }
    /// What an entry says.
    #[inline]
    pub fn next(&self, n: u32) -> Next {
        match self.get(n) {
            0 => Next::Free,
            v if v >= 2 && v.wrapping_sub(2) < self.clusters => Next::Cluster(v),
            v if v > self.width.bad() => Next::End,
            v if v == self.width.bad() => Next::Bad,
            v => Next::Wrong(v),
        }
    }
    /// The number and value of every data cluster's entry, in order.
    pub fn entries(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        // The entries of FAT32 are the ones that are many: these go by without a look at the width for each.
        let wide = if self.width == Width::Fat32 { self.bytes.as_chunks::<4>().0 } else { &[] };
        let wide = wide.get(2..).unwrap_or_default().iter().map(|four| u32::from_le_bytes(*four) & 0x0FFF_FFFF);
        let count = u32::try_from(wide.len()).unwrap_or(u32::MAX).min(self.clusters);
        let rest = self.numbers().skip(count as usize).map(|n| (n, self.get(n)));
        self.numbers().zip(wide).chain(rest)
    }
    /// Whether a value leads nowhere and marks no end: that of a cluster that nothing has.
    pub fn is_unused(&self, value: u32) -> bool {
        value == 0 || value == self.width.bad()
    }
    /// Every cluster that is free, in order.
    pub fn free_clusters(&self) -> impl Iterator<Item = u32> + '_ {
        self.entries().filter(|(_, value)| *value == 0).map(|(n, _)| n)
    }
    /// How many clusters are free.
    pub fn free(&self) -> u32 {
        self.entries().fold(0u32, |free, (_, value)| free.saturating_add((value == 0).into()))
    }
}

/// One bit for each cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bits(Vec<u64>);

impl Bits {
    /// None set, for the numbers below `len`.
    pub fn new(len: u32) -> Self {
        Self(vec![0; (len as usize).div_ceil(64)])
    }
    /// Sets one; whether it was not set before. False beyond the end.
    #[inline]
    pub fn set(&mut self, n: u32) -> bool {
        let bit = 1u64 << (n % 64);
        match self.0.get_mut((n / 64) as usize) {
            Some(word) if *word & bit == 0 => {
                *word |= bit;
                true
            }
            _ => false,
        }
    }
    /// Clears one; whether it was set.
    #[inline]
    pub fn clear(&mut self, n: u32) -> bool {
        let bit = 1u64 << (n % 64);
        match self.0.get_mut((n / 64) as usize) {
            Some(word) if *word & bit != 0 => {
                *word &= !bit;
                true
            }
            _ => false,
        }
    }
    /// Whether it is set.
    #[inline]
    pub fn has(&self, n: u32) -> bool {
        self.0.get((n / 64) as usize).is_some_and(|word| word >> (n % 64) & 1 == 1)
    }
}

/// Neighbouring clusters: the first and how many.
pub type Run = (u32, u32);

/// Appends a cluster to runs, merged with the last one where it continues it.
pub fn push_cluster(runs: &mut Vec<Run>, cluster: u32) {
    match runs.last_mut() {
        Some((first, count)) if first.checked_add(*count) == Some(cluster) => *count = count.saturating_add(1),
        _ => runs.push((cluster, 1)),
    }
}

/// Why a chain ends before its end mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The entry leads to no cluster: the value and the cluster whose entry it is (none: the directory entry).
    Leads(Option<u32>, Next),
    /// It comes back to a cluster of its own.
    Loop(u32),
    /// It runs into a cluster of another chain.
    Shared(u32),
    /// It is longer than asked for.
    TooLong,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Leads(from, next) => {
                match next {
                    Next::Free => write!(f, "a cluster that is in use, but its chain leads to a free one")?,
                    Next::Bad => write!(f, "a cluster that is in use, but its chain leads to a bad one")?,
                    Next::Wrong(v) => write!(f, "a cluster of the volume, not number {v}")?,
                    Next::Unreadable => write!(f, "an entry of the table that can be read")?,
                    Next::Cluster(_) | Next::End => write!(f, "a cluster that is in use")?,
                }
                match from {
                    Some(from) => write!(f, " after cluster {from}"),
                    None => Ok(()),
                }
            }
            Self::Loop(n) => write!(f, "an end of the chain, but it comes back to its cluster {n}"),
            Self::Shared(n) => write!(f, "clusters of its own, but cluster {n} is also in another chain"),
            Self::TooLong => write!(f, "an end of the chain"),
        }
    }
}

/// A chain as far as it can be followed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Its clusters in order, neighbours merged.
    pub runs: Vec<Run>,
    /// How many there are.
    pub clusters: u32,
    /// Why it ended, where that was not at an end mark.
    pub fault: Option<Fault>,
}

/// Follows chains, and remembers which clusters have an owner. However the chains of an image cross each other, all of
/// them together cost a small multiple of the volume's clusters.
#[derive(Debug)]
pub struct Claims {
    /// Clusters that some chain has.
    pub owned: Bits,
    /// Clusters of crossing chains that may yet be followed a second time.
    budget: u64,
}

impl Claims {
    /// Nothing claimed yet.
    pub fn new(table: &impl Links) -> Self {
        let clusters = table.clusters().saturating_add(2);
        Self { owned: Bits::new(clusters), budget: u64::from(clusters).saturating_mul(4) }
    }
    /// Follows the chain from `first` on, `limit` clusters at most, and claims what is free of an owner. With `share` it goes on
    /// in clusters of other chains, which the fault then says; else it ends before them.
    pub fn follow(&mut self, table: &impl Links, first: u32, limit: u32, share: bool) -> Chain {
        let mut chain = Chain::default();
        let mut own: Option<std::collections::HashSet<u32>> = None;
        let mut next = match first {
            n if n >= 2 && n.wrapping_sub(2) < table.clusters() => Next::Cluster(n),
            n => Next::Wrong(n),
        };
        let mut from = None;
        loop {
            let cluster = match next {
                Next::Cluster(n) => n,
                Next::End => return chain,
                wrong => {
                    chain.fault = Some(Fault::Leads(from, wrong));
                    return chain;
                }
            };
            if chain.clusters >= limit {
                chain.fault.get_or_insert(Fault::TooLong);
                return chain;
            }
            let then = table.next(cluster);
            if matches!(then, Next::Free | Next::Bad) {
                chain.fault = Some(Fault::Leads(from, then));
                return chain;
            }
            if !self.owned.set(cluster) {
                let own = own.get_or_insert_with(|| {
                    chain.runs.iter().flat_map(|(first, count)| *first..first.saturating_add(*count)).collect()
                });
                if own.contains(&cluster) {
                    chain.fault = Some(Fault::Loop(cluster));
                    return chain;
                }
                chain.fault.get_or_insert(Fault::Shared(cluster));
                if !share || self.budget == 0 {
                    return chain;
                }
                self.budget = self.budget.saturating_sub(1);
            }
            if let Some(own) = &mut own {
                own.insert(cluster);
            }
            push_cluster(&mut chain.runs, cluster);
            chain.clusters = chain.clusters.saturating_add(1);
            from = Some(cluster);
            next = then;
        }
    }
    /// Claims `count` neighbouring clusters from `first` on, as exFAT has them for what has no chain. What is beyond the volume is
    /// left out. With `share` clusters of others belong to it too, which the fault then says; else it ends before them.
    pub fn neighbours(&mut self, table: &impl Links, first: u32, count: u32, share: bool) -> Chain {
        let mut chain = Chain::default();
        let end = table.clusters().saturating_add(2);
        if first < 2 || first >= end {
            chain.fault = Some(Fault::Leads(None, Next::Wrong(first)));
            return chain;
        }
        let there = count.min(end.saturating_sub(first));
        let mut have = there;
        for n in first..first.saturating_add(there) {
            if !self.owned.set(n) {
                chain.fault = Some(Fault::Shared(n));
                have = if share { there } else { n.saturating_sub(first) };
                break;
            }
        }
        if there < count {
            chain.fault.get_or_insert(Fault::Leads(Some(end.saturating_sub(1)), Next::Wrong(end)));
        }
        if have > 0 {
            chain.runs.push((first, have));
        }
        chain.clusters = have;
        chain
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn width() -> impl Strategy<Value = Width> {
        prop_oneof![Just(Width::Fat12), Just(Width::Fat16), Just(Width::Fat32)]
    }

    fn empty(width: Width, clusters: u32) -> Table {
        Table::new(vec![0; width.bytes_for(u64::from(clusters) + 2) as usize], width, clusters)
    }

    #[test]
    fn twelve_bits_are_packed_as_documented() {
        // 0xFF0, 0xFFF, then 003 -> 004 -> end.
        let table = Table::new(vec![0xF0, 0xFF, 0xFF, 0x03, 0x40, 0x00, 0xFF, 0x0F, 0x00], Width::Fat12, 4);
        assert_eq!((0..5).map(|n| table.get(n)).collect::<Vec<_>>(), [0xFF0, 0xFFF, 3, 4, 0xFFF]);
        assert_eq!([2, 3, 4, 5].map(|n| table.next(n)), [Next::Cluster(3), Next::Cluster(4), Next::End, Next::Free]);
    }

    #[test]
    fn the_upper_four_bits_of_fat32_stay() {
        let mut table = empty(Width::Fat32, 10);
        table.bytes[8 + 3] = 0xA0;
        assert!(table.set(2, 0xFFFF_FFFF));
        assert_eq!(table.bytes[8..12], [0xFF, 0xFF, 0xFF, 0xAF]);
        assert_eq!(table.next(2), Next::End);
        assert!(table.set(2, 0));
        assert_eq!((table.bytes[11], table.next(2)), (0xA0, Next::Free));
    }

    #[test]
    fn marks() {
        for (width, bad) in [(Width::Fat12, 0xFF7), (Width::Fat16, 0xFFF7), (Width::Fat32, 0x0FFF_FFF7)] {
            let mut table = empty(width, 20);
            for (value, next) in [
                (bad, Next::Bad),
                (bad + 1, Next::End),
                (bad - 1, Next::Wrong(bad - 1)),
                (1, Next::Wrong(1)),
                (22, Next::Wrong(22)),
            ] {
                assert!(table.set(5, value));
                assert_eq!(table.next(5), next);
            }
        }
    }

    #[test]
    fn chains_that_go_wrong_say_so() {
        let mut table = empty(Width::Fat16, 100);
        for (n, v) in
            [(2, 3), (3, 4), (4, 0xFFFF), (10, 11), (11, 3), (20, 21), (21, 20), (30, 0), (40, 41), (41, 0xFFF7)]
        {
            assert!(table.set(n, v));
        }
        let mut claims = Claims::new(&table);
        let good = claims.follow(&table, 2, 10, true);
        assert_eq!(good, Chain { runs: vec![(2, 3)], clusters: 3, fault: None });
        let crossing = claims.follow(&table, 10, 10, true);
        assert_eq!((crossing.runs, crossing.fault), (vec![(10, 2), (3, 2)], Some(Fault::Shared(3))));
        let alone = Claims::new(&table).follow(&table, 20, 10, true);
        assert_eq!((alone.clusters, alone.fault), (2, Some(Fault::Loop(20))));
        let free = claims.follow(&table, 30, 10, true);
        assert_eq!((free.clusters, free.fault), (0, Some(Fault::Leads(None, Next::Free))));
        let bad = claims.follow(&table, 40, 10, true);
        assert_eq!((bad.clusters, bad.fault), (1, Some(Fault::Leads(Some(40), Next::Bad))));
        for none in [0, 1, 102, u32::MAX] {
            assert_eq!(claims.follow(&table, none, 10, true).fault, Some(Fault::Leads(None, Next::Wrong(none))));
        }
        assert_eq!(Claims::new(&table).follow(&table, 2, 2, true).fault, Some(Fault::TooLong));
        assert_eq!(claims.follow(&table, 10, 10, false).clusters, 0);
    }

    #[test]
    fn chains_that_all_cross_cost_no_more_than_the_volume() {
        // One chain of all clusters; each cluster is also the start of a file.
        let clusters = 60_000;
        let mut table = empty(Width::Fat16, clusters);
        for n in table.numbers() {
            assert!(table.set(n, if n == clusters + 1 { 0xFFFF } else { n + 1 }));
        }
        let mut claims = Claims::new(&table);
        let steps: u64 = table.numbers().map(|n| u64::from(claims.follow(&table, n, u32::MAX, true).clusters)).sum();
        assert!(steps <= 6 * u64::from(clusters), "{steps}");
    }

    proptest! {
        #[test]
        fn entries_are_those_that_are_got_one_by_one(
            width in width(), bytes in proptest::collection::vec(any::<u8>(), 0..300), clusters in 0u32..100) {
            let table = Table::new(bytes, width, clusters);
            let one_by_one: Vec<_> = table.numbers().map(|n| (n, table.get(n))).collect();
            prop_assert_eq!(table.entries().collect::<Vec<_>>(), one_by_one);
            let used = |(n, value): (u32, u32)| {
                table.is_unused(value) == matches!(table.next(n), Next::Free | Next::Bad)
            };
            prop_assert!(table.entries().all(used));
        }

        #[test]
        fn entries_come_back_and_leave_others_alone(
            width in width(),
            sets in proptest::collection::vec((0u32..52, any::<u32>()), 0..60),
        ) {
            let mut table = empty(width, 50);
            let mut model = [0u32; 52];
            for (n, value) in sets {
                prop_assert!(table.set(n, value));
                model[n as usize] = value & width.end();
            }
            for (n, value) in model.iter().enumerate() {
                prop_assert_eq!(table.get(n as u32), *value);
            }
            prop_assert!(!table.set(60, 1));
            prop_assert_eq!(u64::from(table.free()), model[2..].iter().filter(|v| **v == 0).count() as u64);
        }
        #[test]
        fn any_table_can_be_followed(width in width(), bytes in proptest::collection::vec(any::<u8>(), 0..200), clusters in 0u32..60) {
            let table = Table::new(bytes, width, clusters);
            let mut claims = Claims::new(&table);
            for n in 0..clusters + 4 {
                let chain = claims.follow(&table, n, 70, true);
                prop_assert_eq!(chain.runs.iter().map(|r| r.1).sum::<u32>(), chain.clusters);
            }
        }
    }
}
