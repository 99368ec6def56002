//! Indexes of directories (`$I30`) and of reparse points (`$R`): read as they are, and built in bulk. A B-tree, not a B+ tree: an entry between two blocks
//! stands above them and nowhere else.

use std::cmp::Ordering;

use crate::bytes::Fields;
use crate::error::{Error, Result};
use crate::extent::{Offset, ReadAt, Stream, Volume};
use crate::fs::ntfs::bits::Bits;
use crate::fs::ntfs::encode::{Out, protect};
use crate::fs::ntfs::layout::{self, FileName, Reference, STRIDE};
use crate::fs::ntfs::upcase::UpCase;

/// `$I30`.
pub const NAME: [u16; 4] = [0x24, 0x49, 0x33, 0x30];
/// Bytes of a key of `$R`: the tag, and the reference of the file.
pub const REPARSE_KEY: usize = 12;
/// What stands in an entry of `$R` in place of a reference: its data would begin behind the key, and there is none.
pub const NO_DATA: u64 = 0x1C;
/// Entry flag: has a child. Header flag: has children.
const CHILD: u16 = 1;
/// Entry flag: the end.
const END: u16 = 2;
/// Bytes of an entry before its key, and of an end entry.
const ENTRY: usize = 0x10;
/// Bytes of a child pointer.
const POINTER: usize = 8;
/// Bytes of an index root before its entries.
pub const ROOT_HEAD: usize = 0x20;
/// Depth that no honest index has.
const MAX_DEPTH: usize = 24;

/// An entry of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// What it leads to; in `$R`, [`NO_DATA`].
    pub reference: Reference,
    /// The `$FILE_NAME`; in `$R`, tag and reference.
    pub value: Vec<u8>,
}

impl Key {
    /// The name.
    pub fn name(&self) -> Vec<u16> {
        let name = self.value.get(0x42..).unwrap_or_default();
        name.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect()
    }
    /// Bytes of its entry, without a child.
    pub fn len(&self) -> usize {
        ENTRY.saturating_add(self.value.len()).next_multiple_of(8)
    }
}

/// What is indexed, and how it is ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// Names.
    Names,
    /// Reparse points: 32 bits by 32 bits.
    Reparse,
}

impl Keys {
    /// Type of the indexed attribute, and collation.
    fn head(self) -> (u32, u32) {
        match self {
            Self::Names => (0x30, 1),
            Self::Reparse => (0, 0x13),
        }
    }
    fn fits(self, value: &[u8]) -> bool {
        match self {
            Self::Names => FileName::decode(value)
                .is_some_and(|n| !n.name.is_empty() && n.name.len().saturating_add(0x42) == value.len()),
            Self::Reparse => value.len() == REPARSE_KEY,
        }
    }
}

/// What the head of an `$INDEX_ROOT` says of the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// What its keys are.
    pub keys: Keys,
    /// Bytes of a block.
    pub block: usize,
    /// Clusters, or sectors of 512 bytes, of a block.
    pub per_block: u8,
}

impl Form {
    /// Of an index root's value.
    pub fn of(root: &[u8]) -> Option<Self> {
        let u32_at = |at: usize| root.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b));
        let block = usize::try_from(u32_at(8)?).ok()?;
        let head = (u32_at(0)?, u32_at(4)?);
        let keys = [Keys::Names, Keys::Reparse].into_iter().find(|k| k.head() == head)?;
        let fits = block.is_power_of_two() && (1024..=65536).contains(&block);
        fits.then_some(Self { keys, block, per_block: *root.get(0x0C)? })
    }
    /// VCNs that a block takes.
    fn step(self, cluster: u64) -> u64 {
        let unit = if self.block as u64 >= cluster { cluster } else { STRIDE as u64 };
        (self.block as u64).checked_div(unit).unwrap_or(1).max(1)
    }
    /// Where the entries of a block begin.
    fn entries_at(self) -> usize {
        0x28usize.saturating_add((self.block / STRIDE).saturating_add(1).saturating_mul(2)).next_multiple_of(8)
    }
    /// Bytes of a block for entries and the end entry.
    fn room(self) -> usize {
        self.block.saturating_sub(self.entries_at())
    }
}

/// Where an index is read from.
pub struct Source<'a> {
    /// The value of `$INDEX_ROOT`.
    pub root: &'a [u8],
    /// `$INDEX_ALLOCATION`, where there is one.
    pub blocks: Option<&'a dyn ReadAt<Stream>>,
    /// Its bitmap.
    pub bitmap: Bits,
    /// Bytes of a cluster.
    pub cluster: u64,
}

struct Reading<'a> {
    source: &'a Source<'a>,
    form: Form,
    seen: Bits,
    count: u64,
    out: Vec<Key>,
}

fn fields<'a>(name: &'static str, at: u64, bytes: &'a [u8]) -> Fields<'a, Volume> {
    Fields::new(name, Offset::new(at), bytes)
}

/// All entries, in order. Every block in use is met once.
///
/// # Errors
/// [`Error::Corrupt`] where a block or entry is damaged, where a block is met twice, is not in the bitmap, or is in it but
/// in no way reached.
pub fn read(source: &Source<'_>) -> Result<(Form, Vec<Key>)> {
    let f = fields("$INDEX_ROOT", 0, source.root);
    let form = Form::of(source.root)
        .ok_or_else(|| f.wrong(0, "an index of names or reparse points with blocks of 1 to 64 KiB"))?;
    let blocks = source.blocks.map_or(0, ReadAt::len).checked_div(form.block as u64).unwrap_or(0);
    let mut reading = Reading { source, form, seen: Bits::new(blocks), count: 0, out: Vec::new() };
    reading.node(f.part("$INDEX_ROOT entries", 0x10, source.root.len().saturating_sub(0x10))?, 0)?;
    let marked = (0..blocks).filter(|n| source.bitmap.get(*n)).count() as u64;
    if marked != reading.count {
        let what = format!("{marked} blocks that lead to each other, as its bitmap has them, not {}", reading.count);
        return Err(f.wrong(0, what));
    }
    Ok((form, reading.out))
}

impl Reading<'_> {
    fn node(&mut self, f: Fields<'_, Volume>, depth: usize) -> Result<()> {
        let (first, used) = (f.u32(0)? as usize, f.u32(4)? as usize);
        let mut at = first;
        loop {
            let (len, key, flags) = (
                usize::from(f.u16(at.saturating_add(8))?),
                f.u16(at.saturating_add(10))?,
                f.u16(at.saturating_add(12))?,
            );
            let end = at.saturating_add(len);
            if len < ENTRY || !len.is_multiple_of(8) || end > used {
                return Err(f.wrong(at, "an index entry within the bytes in use"));
            }
            if flags & CHILD != 0 {
                let vcn = f.u64(end.saturating_sub(POINTER))?;
                self.block(vcn, depth.saturating_add(1))?;
            }
            if flags & END != 0 {
                return Ok(());
            }
            let value = f.slice(at.saturating_add(ENTRY), key.into())?;
            if !self.form.keys.fits(value) {
                return Err(f.wrong(at, "a $FILE_NAME, or a reparse tag and a reference, as the key"));
            }
            self.out.push(Key { reference: Reference(f.u64(at)?), value: value.to_vec() });
            at = end;
        }
    }
    fn block(&mut self, vcn: u64, depth: usize) -> Result<()> {
        let step = self.form.step(self.source.cluster);
        let n = vcn.checked_div(step).unwrap_or(0);
        let at = n.saturating_mul(self.form.block as u64);
        let wrong = |what: &str| Error::corrupt(format!("index block of VCN {vcn}"), Offset::<Stream>::new(at), what);
        let blocks = self.source.blocks.filter(|_| depth < MAX_DEPTH && vcn.checked_rem(step) == Some(0));
        let blocks = blocks.ok_or_else(|| wrong("a block within the index, not deeper than 24"))?;
        if !self.source.bitmap.get(n) || !self.seen.put(n, true) {
            return Err(wrong("a block in use that is met once"));
        }
        self.count = self.count.saturating_add(1);
        let mut bytes = blocks.read_vec(Offset::new(at), self.form.block)?;
        if !bytes.starts_with(b"INDX") {
            return Err(wrong("the signature `INDX`"));
        }
        layout::fix_up(&mut bytes).map_err(wrong)?;
        let f = fields("index block", at, &bytes);
        if f.u64(0x10)? != vcn {
            return Err(wrong("its own VCN"));
        }
        self.node(f.part("index block entries", 0x18, bytes.len().saturating_sub(0x18))?, depth)
    }
}

/// Whether all keys are in order, each once. The first that is not, by its position.
pub fn out_of_order(keys: &[Key], up: &UpCase) -> Option<usize> {
    let names: Vec<Vec<u16>> = keys.iter().map(Key::name).collect();
    names.windows(2).position(|p| matches!(p, [a, b] if up.compare(a, b) != Ordering::Less))
}

/// Sorts keys as the index has them.
pub fn sort(keys: Vec<Key>, up: &UpCase) -> Vec<Key> {
    let mut all: Vec<(Vec<u16>, Vec<u16>, Key)> = keys
        .into_iter()
        .map(|k| {
            let name = k.name();
            (up.fold(&name), name, k)
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
    all.into_iter().map(|(_, _, k)| k).collect()
}

/// A new index.
#[derive(Debug, Default)]
pub struct Built {
    /// The value of `$INDEX_ROOT`.
    pub root: Vec<u8>,
    /// Its blocks in order of VCN, fix-ups applied.
    pub blocks: Vec<u8>,
}

/// A key on its way up, with the block of smaller ones.
struct Item<'k> {
    key: &'k Key,
    child: Option<u64>,
}

impl Item<'_> {
    fn len(&self) -> usize {
        self.key.len().saturating_add(if self.child.is_some() { POINTER } else { 0 })
    }
}

fn end_len(child: Option<u64>) -> usize {
    ENTRY.saturating_add(if child.is_some() { POINTER } else { 0 })
}

/// Appends a header, whose entries begin `at` bytes behind it and which is in a place of `allocated` bytes, and entries.
fn node(out: &mut Out, items: &[Item<'_>], last: Option<u64>, at: usize, allocated: Option<usize>) {
    let len = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let used = items.iter().map(Item::len).fold(at.saturating_add(end_len(last)), usize::saturating_add);
    // In a root the flag says that there are blocks, in a block that it has children: the same at this place.
    let start = out.0.len();
    out.u32(len(at)).u32(len(used)).u32(len(allocated.unwrap_or(used))).u32(last.is_some().into());
    out.to(start.saturating_add(at));
    for item in items {
        let flags = if item.child.is_some() { CHILD } else { 0 };
        let key = u16::try_from(item.key.value.len()).unwrap_or(u16::MAX);
        let start = out.0.len();
        out.u64(item.key.reference.0).u16(u16::try_from(item.len()).unwrap_or(u16::MAX)).u16(key).u16(flags).u16(0);
        out.bytes(&item.key.value).to(start.saturating_add(item.key.len()));
        if let Some(child) = item.child {
            out.u64(child);
        }
    }
    let flags = END | if last.is_some() { CHILD } else { 0 };
    out.u64(0).u16(u16::try_from(end_len(last)).unwrap_or(0)).u16(0).u16(flags).u16(0);
    if let Some(child) = last {
        out.u64(child);
    }
}

/// Appends a block.
fn block(out: &mut Out, form: Form, vcn: u64, items: &[Item<'_>], last: Option<u64>) -> Option<()> {
    let fixes = u16::try_from((form.block / STRIDE).saturating_add(1)).ok()?;
    let start = out.0.len();
    let end = start.checked_add(form.block)?;
    out.bytes(b"INDX").u16(0x28).u16(fixes).u64(0).u64(vcn);
    let head = form.entries_at().saturating_sub(0x18);
    node(out, items, last, head, Some(form.block.saturating_sub(0x18)));
    out.to(end);
    (out.0.len() == end && protect(out.0.get_mut(start..)?, 1)).then_some(())
}

fn root(form: Form, items: &[Item<'_>], last: Option<u64>) -> Vec<u8> {
    let mut out = Out::default();
    let (kind, collation) = form.keys.head();
    out.u32(kind).u32(collation).u32(u32::try_from(form.block).unwrap_or(0)).u8(form.per_block).to(0x10);
    node(&mut out, items, last, 0x10, None);
    out.0
}

/// Bytes that a root with all of these keys takes.
pub fn small(keys: impl Iterator<Item = usize>) -> usize {
    keys.fold(ROOT_HEAD.saturating_add(ENTRY), usize::saturating_add)
}

/// Bytes that the smallest root with blocks takes.
pub const SMALLEST: usize = ROOT_HEAD + ENTRY + POINTER;

/// A key of reparse points as 32-bit words, by which they are ordered.
pub fn words(key: &Key) -> Vec<u32> {
    key.value.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
}

/// The index of these keys, which are in order: a root of at most `room` bytes, blocks filled to four fifths. None where
/// the room is too small even for a root without a key.
pub fn build(keys: &[&Key], form: Form, cluster: u64, room: usize) -> Option<Built> {
    let mut built = Built::default();
    let mut blocks = Out::default();
    arranged(keys, form, cluster, room, &mut |part, items, last| match part {
        Part::Root => {
            built.root = root(form, items, last);
            Some(())
        }
        Part::Block(vcn) => block(&mut blocks, form, vcn, items, last),
    })?;
    Some(Built { blocks: blocks.0, ..built })
}

/// Bytes of the root and number of blocks of the same index.
pub fn measure(keys: &[&Key], form: Form, cluster: u64, room: usize) -> Option<(usize, usize)> {
    let (mut root, mut blocks) = (0, 0usize);
    arranged(keys, form, cluster, room, &mut |part, items, last| {
        match part {
            Part::Root => {
                root = items.iter().map(Item::len).fold(ROOT_HEAD.saturating_add(end_len(last)), usize::saturating_add);
            }
            Part::Block(_) => blocks = blocks.saturating_add(1),
        }
        Some(())
    })?;
    Some((root, blocks))
}

/// What [`arranged`] tells of.
enum Part {
    /// The root: it comes last.
    Root,
    /// The block of this VCN.
    Block(u64),
}

/// Is told of a part: its entries, and the child of its end.
type Told<'t> = dyn FnMut(Part, &[Item<'_>], Option<u64>) -> Option<()> + 't;

/// Tells `part` of each block in order of VCN, and of the root: its entries, and the child of its end.
fn arranged(keys: &[&Key], form: Form, cluster: u64, room: usize, part: &mut Told<'_>) -> Option<()> {
    let mut blocks = 0u64;
    let mut level: Vec<Item<'_>> = keys.iter().map(|key| Item { key, child: None }).collect();
    let mut last: Option<u64> = None;
    let step = form.step(cluster);
    let fill = (form.room() / 5).saturating_mul(4);
    for _ in 0..MAX_DEPTH {
        let all = level.iter().map(Item::len).fold(ROOT_HEAD.saturating_add(end_len(last)), usize::saturating_add);
        if all <= room {
            return part(Part::Root, &level, last);
        }
        let mut above: Vec<Item<'_>> = Vec::new();
        let mut rest = level.as_slice();
        let end = end_len(last);
        loop {
            let mut used = end;
            let mut count = 0usize;
            for item in rest {
                let more = used.saturating_add(item.len());
                // At least one, whatever it takes; there is room for three of the longest.
                if more > fill && count > 0 {
                    break;
                }
                used = more;
                count = count.saturating_add(1);
            }
            // One that is left over would have to stand above an empty block: it comes in here, or its neighbour goes up.
            if rest.len() == count.saturating_add(1) {
                let more = rest.get(count).map_or(usize::MAX, |i| used.saturating_add(i.len()));
                count = if more <= form.room() { rest.len() } else { count.saturating_sub(1) };
            }
            let (mine, behind) = rest.split_at_checked(count)?;
            let vcn = blocks.saturating_mul(step);
            blocks = blocks.saturating_add(1);
            let Some((separator, behind)) = behind.split_first() else {
                part(Part::Block(vcn), mine, last)?;
                last = Some(vcn);
                break;
            };
            if mine.is_empty() {
                return None;
            }
            part(Part::Block(vcn), mine, separator.child)?;
            above.push(Item { key: separator.key, child: Some(vcn) });
            rest = behind;
        }
        level = above;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::ntfs::encode::{Duplicated, file_name};
    use crate::fs::ntfs::stream::Resident;

    fn keys(count: u64, len: usize) -> Vec<Key> {
        let name = |i: u64| {
            let mut name = format!("{i:06}{}", "x".repeat(i as usize * 7 % (len + 1)));
            name.truncate(255);
            name.encode_utf16().collect::<Vec<u16>>()
        };
        let value = |i| file_name(5, &Duplicated::default(), &name(i));
        (0..count).map(|i| Key { reference: Reference(i), value: value(i) }).collect()
    }

    #[test]
    fn what_is_built_is_read_back() {
        for (block, cluster) in [(4096, 4096), (4096, 512), (4096, 65536), (2048, 512), (8192, 8192)] {
            let per_block = if block as u64 >= cluster { block as u64 / cluster } else { 8 } as u8;
            let form = Form { keys: Keys::Names, block, per_block };
            for (count, len, room) in [
                (0, 0, 300),
                (1, 0, 300),
                (3, 240, 300),
                (3, 240, 56),
                (40, 20, 400),
                (41, 249, 56),
                (5000, 30, 300),
                (3000, 249, 60),
            ] {
                let keys = keys(count, len);
                let built = build(&keys.iter().collect::<Vec<_>>(), form, cluster, room).unwrap();
                assert!(built.root.len() <= room);
                let count = built.blocks.len() / block;
                assert_eq!(
                    measure(&keys.iter().collect::<Vec<_>>(), form, cluster, room),
                    Some((built.root.len(), count))
                );
                let mut bitmap = Bits::new(count as u64);
                (0..count).for_each(|n| _ = bitmap.put(n as u64, true));
                let blocks = Resident::new(built.blocks);
                let source = Source { root: &built.root, blocks: Some(&blocks), bitmap, cluster };
                assert_eq!(read(&source).unwrap(), (form, keys));
            }
        }
        assert!(
            build(
                &keys(3, 0).iter().collect::<Vec<_>>(),
                Form { keys: Keys::Names, block: 4096, per_block: 1 },
                4096,
                SMALLEST - 1
            )
            .is_none()
        );
    }

    #[test]
    fn damage_is_found() {
        let form = Form { keys: Keys::Names, block: 4096, per_block: 1 };
        let built = build(&keys(400, 30).iter().collect::<Vec<_>>(), form, 4096, 300).unwrap();
        let full = || Bits::of(vec![0xFF; built.blocks.len() / 4096 / 8 + 1]);
        let reads = |root: &[u8], blocks: Vec<u8>, bitmap| {
            let blocks = Resident::new(blocks);
            read(&Source { root, blocks: Some(&blocks), bitmap, cluster: 4096 }).is_ok()
        };
        let all = built.blocks.clone();
        assert!(reads(&built.root, all.clone(), full()));
        let mut fewer = full();
        fewer.put(3, false);
        assert!(!reads(&built.root, all.clone(), fewer));
        for at in [0, 0x10, 510, 4096 + 0x18, 2 * 4096 + 1022] {
            let mut bad = all.clone();
            bad[at] ^= 1;
            assert!(!reads(&built.root, bad, full()), "{at:#x}");
        }
        // Any damage: no panic, no end without an end.
        let mut random = 1u64;
        for _ in 0..3000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (mut root, mut bad) = (built.root.clone(), all.clone());
            let (len, at) = (root.len(), (random >> 20) as usize);
            root[at % len] ^= (random >> 12) as u8;
            let at = at % bad.len();
            bad[at & !511 | at & 127] ^= (random >> 50) as u8;
            reads(&root, bad, full());
        }
    }
}
