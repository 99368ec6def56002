//! What a qcow2 image says of its disk: a level 1 table in memory, level 2 tables read where they are asked for.

use std::ops::Range;
use std::sync::Arc;

use super::layout::{self, Cluster, Header, MAX_L1, OFFSET};
use super::{owners, unpack};
use crate::container::table::{Fault, Piece, Pieces, Table};
use crate::error::{Error, Result};
use crate::extent::{Device, Offset, ReadAt};

const L1: &str = "qcow2 L1 entry";
const L2: &str = "qcow2 L2 entry";
/// Parts of a cluster that have a bit of their own each in an extended entry.
const PARTS: u64 = 32;

/// Which state of an image is opened.
pub struct State {
    /// Bytes of the disk.
    pub len: u64,
    /// Its level 1 table: entries and place.
    pub l1: (u32, u64),
    /// Those of all snapshots.
    pub snapshots: Vec<(u32, u64)>,
    /// The file's name, for messages.
    pub name: String,
}

/// One state of an image: that of today, or a snapshot.
pub struct Qcow2 {
    name: String,
    file: Arc<dyn ReadAt<Device>>,
    /// The own file, and the one that guest data are in, which may be the same.
    files: Vec<Arc<dyn ReadAt<Device>>>,
    head: Header,
    len: u64,
    /// Where the level 1 table lies, and its entries.
    l1_at: u64,
    l1: Vec<u64>,
    /// Which of them lead where one before leads, too.
    twice: Vec<bool>,
    /// The level 1 tables of all snapshots.
    snapshots: Vec<(u32, u64)>,
}

/// Reads a level 1 table.
pub fn read_l1(file: &dyn ReadAt<Device>, (entries, at): (u32, u64)) -> Result<Vec<u64>> {
    let bytes = u64::from(entries).saturating_mul(8).min(MAX_L1);
    let table = file.read_vec(Offset::new(at), usize::try_from(bytes).unwrap_or_default())?;
    Ok(table.as_chunks().0.iter().map(|b| u64::from_be_bytes(*b)).collect())
}

impl Qcow2 {
    /// One state of the image in `file`, whose guest data are in `data`, if not in the same file.
    ///
    /// # Errors
    /// Where that table can't be read.
    pub fn open(
        file: Arc<dyn ReadAt<Device>>,
        data: Option<Arc<dyn ReadAt<Device>>>,
        head: Header,
        state: State,
    ) -> Result<Self> {
        let State { len, l1, snapshots, name } = state;
        let l1_at = l1.1;
        // Of a table that is longer than the disk, the rest is nobody's.
        let need = u32::try_from(len.div_ceil(head.per_l2())).unwrap_or(u32::MAX);
        let l1 = read_l1(&*file, (l1.0.min(need), l1_at))?;
        let mut order: Vec<(u64, usize)> = l1.iter().enumerate().map(|(i, e)| (e & OFFSET, i)).collect();
        order.sort_unstable();
        let mut twice = vec![false; l1.len()];
        for pair in order.windows(2) {
            if let [a, b] = pair
                && a.0 == b.0
                && a.0 != 0
                && let Some(slot) = twice.get_mut(b.1)
            {
                *slot = true;
            }
        }
        let files = match data {
            Some(data) => vec![Arc::clone(&file), data],
            None => vec![Arc::clone(&file)],
        };
        Ok(Self { name, file, files, head, len, l1_at, l1, twice, snapshots })
    }
    /// The pieces of what one level 2 table covers, as far as `range` goes.
    fn covered(&self, number: usize, range: Range<u64>, out: &mut Pieces) {
        let len = range.end.saturating_sub(range.start);
        let place = self.l1_at.saturating_add((number as u64).saturating_mul(8));
        let Some(entry) = self.l1.get(number) else {
            return out.unreadable(len, Fault::new(L1, place, "an entry for all of the disk"));
        };
        let (at, cluster) = (entry & OFFSET, self.head.cluster());
        let bad = if at == 0 {
            return out.parent(len);
        } else if at & cluster.wrapping_sub(1) != 0 {
            Some("an offset of a whole cluster")
        } else if at.saturating_add(cluster) > self.file.len() {
            Some("a table before the end of the file")
        } else if self.twice.get(number) == Some(&true) {
            Some("a table that no other entry has")
        } else {
            None
        };
        if let Some(expected) = bad {
            return out.unreadable(len, Fault::new(L1, place, expected));
        }
        let base = (number as u64).saturating_mul(self.head.per_l2());
        let index = |at: u64| at.saturating_sub(base) >> self.head.cluster_bits;
        let (first, last) = (index(range.start), index(range.end.saturating_sub(1)));
        let size = self.head.entry();
        let from = at.saturating_add(first.saturating_mul(size));
        let want = last.saturating_sub(first).saturating_add(1).saturating_mul(size);
        match self.file.read_vec(Offset::new(from), usize::try_from(want).unwrap_or_default()) {
            Ok(table) => {
                let start = base.saturating_add(first << self.head.cluster_bits);
                self.entries(&table, from, start, range, out);
            }
            Err(e) => out.unreadable(len, Fault::failed("qcow2 L2 table", from, &e)),
        }
    }
    /// The pieces of some entries of a level 2 table: `place` is where they lie, `start` the first byte of the disk.
    fn entries(&self, table: &[u8], place: u64, start: u64, range: Range<u64>, out: &mut Pieces) {
        let size = self.head.entry();
        let step = usize::try_from(size).unwrap_or(8);
        let count = table.len().checked_div(step).unwrap_or_default();
        let mut number = 0;
        while number < count {
            let rest = table.get(number.saturating_mul(step)..).unwrap_or_default();
            let at = start.saturating_add((number as u64) << self.head.cluster_bits);
            // Most tables are long runs of clusters that are stored in a row, or one by one in any order.
            if let Some((host, run)) = self.row(rest) {
                let end = at.saturating_add((run as u64) << self.head.cluster_bits).min(range.end);
                let from = at.max(range.start);
                self.stored(host.saturating_add(from.saturating_sub(at)), end.saturating_sub(from), out);
                number = number.saturating_add(run);
                continue;
            }
            let place = place.saturating_add((number as u64).saturating_mul(size));
            self.entry(rest, place, at, &range, out);
            number = number.saturating_add(1);
        }
    }
    /// The clusters that the first entries have stored as they are and in a row: place of the first, and how many. None where
    /// the first entry is of another kind.
    #[inline]
    fn row(&self, table: &[u8]) -> Option<(u64, usize)> {
        if self.head.extended {
            return None;
        }
        let words = table.as_chunks().0;
        let first = u64::from_be_bytes(*words.first()?);
        let host = layout::ordinary(first, &self.head)?;
        let cluster = self.head.cluster();
        let mut next = layout::bare(first);
        let follows = |word: &&[u8; 8]| {
            next = next.wrapping_add(cluster);
            layout::bare(u64::from_be_bytes(**word)) == next
        };
        Some((host, words.iter().skip(1).take_while(follows).count().saturating_add(1)))
    }
    /// The pieces of the first entry of `table`, which lies at `place` and has the cluster from `at` on.
    fn entry(&self, table: &[u8], place: u64, at: u64, range: &Range<u64>, out: &mut Pieces) {
        let word = |at: usize| table.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u64::from_be_bytes(*b));
        let (from, next) = (at.max(range.start), at.saturating_add(self.head.cluster()));
        let len = next.min(range.end).saturating_sub(from);
        let skip = from.saturating_sub(at);
        let bad = match layout::cluster(word(0), &self.head) {
            Cluster::Packed(at, _) if self.head.data_file || at >= self.file.len() => {
                Some("a compressed cluster before the end of its own file")
            }
            Cluster::Packed(..) => {
                out.packed(len, word(0) & !(3 << 62), u32::try_from(skip).unwrap_or(u32::MAX));
                None
            }
            Cluster::Zero if self.head.version < 3 => Some("no cluster of zeros, in version 2"),
            Cluster::Zero => {
                out.zero(len);
                None
            }
            Cluster::At(host) if host & self.head.cluster().wrapping_sub(1) != 0 => {
                Some("an offset of a whole cluster")
            }
            found if self.head.extended => self.parts(found, word(8), skip, len, out),
            Cluster::Unallocated => {
                out.parent(len);
                None
            }
            Cluster::At(host) => {
                self.stored(host.saturating_add(skip), len, out);
                None
            }
        };
        if let Some(expected) = bad {
            out.unreadable(len, Fault::new(L2, place, expected));
        }
    }
    fn stored(&self, host: u64, len: u64, out: &mut Pieces) {
        match (self.head.crypt, self.files.last()) {
            (0, Some(data)) => out.stored(len, data.id(), host),
            _ => out.push(len, Piece::Encrypted),
        }
    }
    /// The pieces of a cluster with 32 parts: `bits` has what is stored in the lower half, what is zero in the upper.
    fn parts(&self, found: Cluster, bits: u64, skip: u64, len: u64, out: &mut Pieces) -> Option<&'static str> {
        let (stored, zero) = (bits & 0xffff_ffff, bits >> 32);
        let host = match found {
            Cluster::At(host) => Some(host),
            _ => None,
        };
        if stored & zero != 0 {
            return Some("no part of a cluster that is both stored and zero");
        }
        if host.is_none() && stored != 0 {
            return Some("a cluster for the parts that are stored");
        }
        let part = self.head.cluster() / PARTS;
        let end = skip.saturating_add(len);
        let mut at = skip;
        while at < end {
            let n = at.checked_div(part).unwrap_or_default();
            let next = n.saturating_add(1).saturating_mul(part).min(end);
            let here = next.saturating_sub(at);
            match host {
                Some(host) if stored >> n & 1 != 0 => self.stored(host.saturating_add(at), here, out),
                _ if zero >> n & 1 != 0 => out.zero(here),
                _ => out.parent(here),
            }
            at = next;
        }
        None
    }
}

impl Table for Qcow2 {
    fn len(&self) -> u64 {
        self.len
    }
    fn span(&self) -> u64 {
        self.head.per_l2()
    }
    fn pieces(&self, range: Range<u64>, out: &mut Pieces) -> Result<()> {
        let per = self.head.per_l2().max(1);
        let mut at = range.start;
        while at < range.end {
            let number = at.checked_div(per).unwrap_or_default();
            let next = number.saturating_add(1).saturating_mul(per).min(range.end);
            self.covered(usize::try_from(number).unwrap_or(usize::MAX), at..next, out);
            at = next;
        }
        Ok(())
    }
    fn unpack(&self, unit: u64, out: &mut Vec<u8>) -> Result<()> {
        let (at, len) = layout::packed(unit, self.head.cluster_bits);
        let len = len.min(self.file.len().saturating_sub(at));
        let packed = self.file.read_vec(Offset::new(at), usize::try_from(len).unwrap_or_default())?;
        let cluster = usize::try_from(self.head.cluster()).unwrap_or_default();
        unpack::unpack(self.head.codec, &packed, cluster, out)
            .map_err(|expected| Error::corrupt("qcow2 compressed cluster", Offset::<Device>::new(at), expected))
    }
    fn files(&self) -> &[Arc<dyn ReadAt<Device>>] {
        &self.files
    }
    fn name(&self) -> &str {
        &self.name
    }
    fn alone(&self) -> Result<Vec<u64>> {
        let mut tables = vec![self.head.l1];
        tables.extend(&self.snapshots);
        owners::alone(&*self.file, &self.head, &tables)
    }
}
