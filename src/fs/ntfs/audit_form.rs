//! The form of what was written, beyond what readers need: heads of records, sizes, attribute lists, nodes of indexes. Pure.

use crate::fs::ntfs::layout::{self, STRIDE, kind};
use crate::fs::ntfs::raw::{Raw, RawRecord, stored};
use crate::fs::ntfs::upcase::UpCase;

/// What is not so.
type Wrong = Result<(), &'static str>;

/// Attribute flags: compressed, sparse.
const PACKED: u16 = 0x8001;
/// Bytes of a record's head that change with its attributes: bytes in use, and the next instance.
const COUNTED: [std::ops::Range<usize>; 2] = [0x18..0x1C, 0x28..0x2A];

/// A number of up to 8 bytes; 0 behind the end.
fn le(bytes: &[u8], at: usize, len: usize) -> u64 {
    let all = bytes.get(at..at.saturating_add(len)).unwrap_or_default();
    all.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

fn is(holds: bool, expected: &'static str) -> Wrong {
    if holds { Ok(()) } else { Err(expected) }
}

/// The head of a record agrees with its attributes.
pub(super) fn head(record: &RawRecord) -> Wrong {
    let (b, end) = (record.whole(), record.end());
    let ends = le(b, end, 4) == u64::from(kind::END) && le(b, 0x18, 4) == end.saturating_add(8) as u64;
    is(ends, "bytes in use up to the end of the attributes")?;
    is(le(b, 0x1C, 4) == b.len() as u64, "as many bytes allocated as it has")?;
    let next = le(b, 0x28, 2);
    is(record.attributes.iter().all(|a| le(record.bytes(a), 0x0E, 2) < next), "instances below the next one")?;
    is(record.sequence != 0 && !matches!(record.usn(), 0 | 0xFFFF), "a sequence number and one for its fix-ups")
}

/// The same of a new record, which belongs to this base, or is one.
pub(super) fn new_head(record: &RawRecord, base: Option<u64>) -> Wrong {
    head(record)?;
    let b = record.whole();
    let fix_ups = (b.len() / STRIDE).saturating_add(1);
    let first = 0x30usize.saturating_add(fix_ups.saturating_mul(2)).next_multiple_of(8);
    let places = le(b, 4, 2) == 0x30 && le(b, 6, 2) == fix_ups as u64 && le(b, 0x14, 2) == first as u64;
    is(places, "attributes right behind its fix-ups")?;
    is(le(b, 0x20, 8) == base.unwrap_or(0), "the reference of its base record")?;
    is(base.is_none() || record.links() == 0, "no names counted in what is no base record")
}

/// A record that was changed has all that it had, but for the attributes that are `mine`.
pub(super) fn kept(old: &RawRecord, new: &RawRecord, mine: impl Fn(&RawRecord, &Raw) -> bool) -> Wrong {
    head(new)?;
    let [used, next] = COUNTED;
    let same = |from: usize, to: usize| old.whole().get(from..to) == new.whole().get(from..to);
    is(same(0, used.start) && same(used.end, next.start), "the head that it had")?;
    let others = |r: &RawRecord| -> Vec<Vec<u8>> {
        r.attributes.iter().filter(|a| !mine(r, a)).map(|a| r.bytes(a).to_vec()).collect()
    };
    is(others(old) == others(new), "the other attributes that it had")
}

/// A record that was freed is what it was, but for the number of its use and the flag.
pub(super) fn freed(old: &RawRecord, mut now: Vec<u8>) -> Wrong {
    layout::fix_up(&mut now)?;
    let b = old.whole();
    let fix_ups = le(b, 4, 2) as usize;
    let changes = [0x10..0x12, 0x16..0x18, fix_ups..fix_ups.saturating_add((le(b, 6, 2) as usize).saturating_mul(2))];
    let odd = b.iter().zip(&now).enumerate().any(|(i, (a, b))| a != b && !changes.iter().any(|c| c.contains(&i)));
    let next = old.sequence.checked_add(1).unwrap_or(1);
    let right = le(&now, 0x10, 2) == u64::from(next) && le(&now, 0x16, 2) == u64::from(old.flags & !layout::IN_USE);
    is(b.len() == now.len() && !odd && right, "what it was, no longer in use, with the next sequence number")
}

/// The sizes of every value in clusters are those of its runs, whichever of the records its pieces are in.
pub(super) fn sizes(records: &[RawRecord], cluster: u64) -> Wrong {
    let mut pieces: Vec<(&RawRecord, &Raw)> = Vec::new();
    for r in records {
        pieces.extend(r.attributes.iter().filter(|a| !a.is_resident()).map(|a| (r, a)));
    }
    let lowest = |(r, a): &(&RawRecord, &Raw)| le(r.bytes(a), 0x10, 8);
    pieces.sort_by(|x, y| (x.1.kind, x.0.name(x.1), lowest(x)).cmp(&(y.1.kind, y.0.name(y.1), lowest(y))));
    for value in pieces.chunk_by(|x, y| x.1.kind == y.1.kind && x.0.name(x.1) == y.0.name(y.1)) {
        let Some(((r, first), rest)) = value.split_first() else { continue };
        let mut next = 0u64;
        for (r, a) in value {
            let all: u64 = a.runs.iter().map(|run| run.len).fold(0, u64::saturating_add);
            is(le(r.bytes(a), 0x10, 8) == next, "pieces that follow each other")?;
            next = next.saturating_add(all);
            is(le(r.bytes(a), 0x18, 8) == next.wrapping_sub(1), "the last cluster that its runs have")?;
            is(a.flags == first.flags, "the same flags in all pieces")?;
            is(le(r.bytes(a), 0x24, 4) == 0, "zeros behind the unit")?;
        }
        let b = r.bytes(first);
        let there: u64 = value.iter().flat_map(|v| stored(&v.1.runs)).map(|run| run.len).fold(0, u64::saturating_add);
        let (allocated, size, valid) = (le(b, 0x28, 8), le(b, 0x30, 8), le(b, 0x38, 8));
        is(allocated == next.saturating_mul(cluster), "as many bytes allocated as its runs have")?;
        is(valid <= size && size <= allocated, "a size within what is allocated")?;
        let packed = first.flags & PACKED != 0;
        is(!packed || le(b, 0x40, 8) == there.saturating_mul(cluster), "the bytes that are really there")?;
        is(packed || there == next, "no holes where no flag tells of them")?;
        is(le(b, 0x22, 2) == if packed { 4 } else { 0 }, "units of 16 clusters where they are sparse or compressed")?;
        let zeros = |(r, a): &(&RawRecord, &Raw)| (0x28..0x40).step_by(8).all(|at| le(r.bytes(a), at, 8) == 0);
        is(rest.iter().all(zeros), "sizes in the first piece only")?;
    }
    Ok(())
}

/// The attribute list of the first record names every attribute of all of them but itself, in order.
pub(super) fn list(records: &[RawRecord], list: &[u8], up: &UpCase) -> Wrong {
    let units = |name: &[u8]| -> Vec<u16> { name.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect() };
    let mut meant = Vec::new();
    for r in records {
        for a in r.attributes.iter().filter(|a| a.kind != kind::ATTRIBUTE_LIST) {
            let lowest = if a.is_resident() { 0 } else { le(r.bytes(a), 0x10, 8) };
            let instance = le(r.bytes(a), 0x0E, 2);
            meant.push((u64::from(a.kind), up.fold(&units(r.name(a))), lowest, r.reference(), instance));
        }
    }
    let (mut found, mut rest) = (Vec::new(), list);
    while !rest.is_empty() {
        let (len, count) = (le(rest, 4, 2) as usize, le(rest, 6, 1) as usize);
        let name = 0x1Ausize..0x1Ausize.saturating_add(count.saturating_mul(2));
        let fits = len == name.end.next_multiple_of(8) && le(rest, 7, 1) == name.start as u64;
        let (Some(entry), Some(more)) = (rest.get(..len), rest.get(len..)) else { return Err("whole entries") };
        let text = entry.get(name).filter(|_| fits).ok_or("entries as long as their names")?;
        let key = (le(entry, 0, 4), up.fold(&units(text)), le(entry, 8, 8));
        found.push((key.0, key.1, key.2, le(entry, 0x10, 8), le(entry, 0x18, 2)));
        rest = more;
    }
    is(found.is_sorted_by(|a, b| (a.0, &a.1, a.2) <= (b.0, &b.1, b.2)), "entries in order")?;
    found.sort_unstable();
    meant.sort_unstable();
    is(found == meant, "an entry for each attribute")
}

/// The nodes of an index, which was read already, so that its blocks lead to each other without a circle.
pub(super) fn index(root: &[u8], blocks: &[u8], bitmap: &[u8], cluster: u64) -> Wrong {
    let block = le(root, 8, 4) as usize;
    let unit = if block as u64 >= cluster { cluster } else { STRIDE as u64 };
    is(le(root, 12, 1) == (block as u64).checked_div(unit).unwrap_or(0), "the clusters of a block")?;
    let count = blocks.len().checked_div(block).unwrap_or(0);
    let behind = (count..bitmap.len().saturating_mul(8)).any(|n| bit(bitmap, n));
    is(!behind, "no bits behind the last block")?;
    let mut walk = Walk { block, unit, blocks, leaves: None };
    walk.node(root.get(0x10..).unwrap_or_default(), 0x10, 0)
}

fn bit(bits: &[u8], n: usize) -> bool {
    bits.get(n / 8).is_some_and(|b| b >> (n % 8) & 1 != 0)
}

struct Walk<'b> {
    block: usize,
    unit: u64,
    blocks: &'b [u8],
    /// How deep the leaves are.
    leaves: Option<usize>,
}

impl Walk<'_> {
    fn node(&mut self, b: &[u8], head: usize, depth: usize) -> Wrong {
        let (used, children) = (le(b, 4, 4) as usize, le(b, 12, 1) & 1 != 0);
        is(le(b, 0, 4) == head as u64 && le(b, 8, 4) == b.len() as u64, "a node that fills its place")?;
        is(used <= b.len(), "entries within their node")?;
        let mut at = head;
        loop {
            let (len, key, flags) = (
                le(b, at.saturating_add(8), 2) as usize,
                le(b, at.saturating_add(10), 2),
                le(b, at.saturating_add(12), 2),
            );
            let last = flags & 2 != 0;
            let value = 0x10usize.saturating_add(if last { 0 } else { key as usize }).next_multiple_of(8);
            let end = at.saturating_add(len);
            let meant = value.saturating_add(if children { 8 } else { 0 });
            let right = len == meant && end <= used && flags < 4 && (flags & 1 != 0) == children;
            is(right, "entries as long as their keys, all with children or none")?;
            if children {
                self.below(le(b, end.saturating_sub(8), 8), depth.saturating_add(1))?;
            }
            if last {
                break is(end == used, "the end at the end of the bytes in use")?;
            }
            at = end;
        }
        let empty = at == head;
        is(children || !empty || depth == 0, "no empty leaf")?;
        is(children || *self.leaves.get_or_insert(depth) == depth, "leaves that are all as deep")
    }
    fn below(&mut self, vcn: u64, depth: usize) -> Wrong {
        let at = usize::try_from(vcn.saturating_mul(self.unit)).unwrap_or(usize::MAX);
        let mut bytes = self.blocks.get(at..at.saturating_add(self.block)).ok_or("a block within the index")?.to_vec();
        let number = crate::fs::ntfs::encode::usn(&bytes);
        layout::fix_up(&mut bytes)?;
        is(le(&bytes, 4, 2) == 0x28 && !matches!(number, 0 | 0xFFFF), "a block with a number for its fix-ups")?;
        let fix_ups = (self.block / STRIDE).saturating_add(1).saturating_mul(2);
        let head = 0x28usize.saturating_add(fix_ups).next_multiple_of(8).saturating_sub(0x18);
        self.node(bytes.get(0x18..).unwrap_or_default(), head, depth)
    }
}
