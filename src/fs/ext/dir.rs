//! Directory blocks: lists of entries, and hash indexes that look like empty ones.
//!
//! Source: the kernel's "ext4 Data Structures and Algorithms", section "Directory Entries".

use super::checksum::crc32c;
use crate::bytes::{Fields, put};
use crate::error::Error;
use crate::extent::{Offset, Volume};

/// Bytes of an entry before its name.
pub const HEAD: usize = 8;
/// Bytes of the checksum's entry at a block's end.
pub const TAIL: usize = 12;
/// The type that the checksum's entry has.
pub const TAIL_TYPE: u8 = 0xde;

/// One name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// The inode that it leads to.
    pub inode: u32,
    /// What it is said to be: 1 file, 2 directory, 3 and 4 devices, 5 pipe, 6 socket, 7 link; 0 where that is not kept.
    pub kind: u8,
    /// The name.
    pub name: &'a [u8],
    /// Its byte in the block.
    pub at: usize,
}

/// The length of an entry as its 16 bits have it, in a block of `block` bytes.
pub fn length(raw: u16, block: usize) -> usize {
    if block < 65_536 {
        return raw.into();
    }
    match raw {
        0 | 0xffff => 65_536,
        raw => usize::from(raw & 0xfffc) | usize::from(raw & 3) << 16,
    }
}

/// The 16 bits of an entry's length.
pub fn rec_len(len: usize) -> u16 {
    if len >= 65_536 {
        return u16::MAX;
    }
    (len & 0xfffc | len >> 16 & 3) as u16
}

/// Bytes of an entry with a name of so many bytes.
pub fn entry_len(name: usize) -> usize {
    name.saturating_add(HEAD).next_multiple_of(4)
}

/// Encodes a block from as many of `entries` (inode, type, name) as fit; how many that were. The last entry reaches to
/// the end, or to the checksum where there is a `seed`. A block without an entry has an empty one.
pub fn encode<'a>(
    block: usize,
    seed: Option<u32>,
    entries: impl IntoIterator<Item = (u32, u8, &'a [u8])>,
) -> (Vec<u8>, usize) {
    let end = block.saturating_sub(if seed.is_some() { TAIL } else { 0 });
    let mut out = vec![0; block];
    let (mut at, mut last, mut count) = (0usize, 0usize, 0usize);
    for (inode, kind, name) in entries {
        let next = at.saturating_add(entry_len(name.len()));
        let Ok(len) = u8::try_from(name.len()) else { break };
        if next > end {
            break;
        }
        let _fits = put(&mut out, at, &inode.to_le_bytes())
            && put(&mut out, at.saturating_add(4), &rec_len(next.saturating_sub(at)).to_le_bytes())
            && put(&mut out, at.saturating_add(6), &[len, kind])
            && put(&mut out, at.saturating_add(HEAD), name);
        (last, at) = (at, next);
        count = count.saturating_add(1);
    }
    let _fits = put(&mut out, last.saturating_add(4), &rec_len(end.saturating_sub(last)).to_le_bytes());
    seal(&mut out, seed);
    (out, count)
}

/// Writes the checksum's entry to the end of a block of entries, where there is a seed.
pub fn seal(block: &mut [u8], seed: Option<u32>) {
    let (Some(seed), Some(tail)) = (seed, block.len().checked_sub(TAIL)) else { return };
    let sum = crc32c(seed, block.get(..tail).unwrap_or_default());
    let _fits =
        put(block, tail, &[0, 0, 0, 0, 12, 0, 0, TAIL_TYPE]) && put(block, tail.saturating_add(8), &sum.to_le_bytes());
}

/// The entries in `bytes` (a block, or inline contents) at `at` of a volume with blocks of `block` bytes, in their order
/// there, up to the first that makes no sense, which is the error. Empty ones are left out.
pub fn entries(at: Offset<Volume>, bytes: &[u8], block: usize) -> (Vec<DirEntry<'_>>, Option<Error>) {
    let f = Fields::new("ext directory block", at, bytes);
    let mut out = Vec::new();
    let mut pos = 0usize;
    while pos < bytes.len() {
        let Ok((inode, raw, len)) =
            f.u32(pos).and_then(|i| Ok((i, f.u16(pos.saturating_add(4))?, f.u8(pos.saturating_add(6))?)))
        else {
            return (out, Some(f.wrong(pos, "an entry of at least 8 bytes")));
        };
        let step = length(raw, block);
        let wanted = HEAD.saturating_add(if inode == 0 { 0 } else { len.into() });
        if step < wanted || step < HEAD || !step.is_multiple_of(4) || step > bytes.len().saturating_sub(pos) {
            return (out, Some(f.wrong(pos.saturating_add(4), "an entry that holds its name and ends in its block")));
        }
        if inode != 0
            && let Ok(name) = f.slice(pos.saturating_add(HEAD), len.into())
        {
            if name.is_empty() {
                return (out, Some(f.wrong(pos.saturating_add(6), "a name that is not empty")));
            }
            let kind = f.u8(pos.saturating_add(7)).unwrap_or(0);
            out.push(DirEntry { inode, kind, name, at: pos });
        }
        pos = pos.saturating_add(step);
    }
    (out, None)
}

/// Where the index of a block begins, if it has one: the root in the first block of an indexed directory, a node in
/// others.
pub fn index_at(bytes: &[u8]) -> Option<usize> {
    let half = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at.saturating_add(2))?.try_into().ok()?));
    let inode = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at.saturating_add(4))?.try_into().ok()?));
    let block = bytes.len();
    if inode(0)? == 0 && length(half(4)?, block) == block {
        return Some(8);
    }
    (half(4)? == 12 && length(half(16)?, block) == block.saturating_sub(12)).then_some(32)
}

/// Whether the checksum of a directory block is right. `indexed`: the directory has a hash index.
pub fn intact(seed: u32, bytes: &[u8], indexed: bool) -> bool {
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?));
    let half = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?));
    if indexed && let Some(table) = index_at(bytes) {
        let sum = || -> Option<bool> {
            let (limit, count) = (usize::from(half(table)?), usize::from(half(table.checked_add(2)?)?));
            if count > limit {
                return Some(false);
            }
            let tail = table.checked_add(limit.checked_mul(8)?)?;
            let used = table.checked_add(count.checked_mul(8)?)?;
            let sum = crc32c(seed, bytes.get(..used)?);
            let sum = crc32c(crc32c(sum, bytes.get(tail..tail.checked_add(4)?)?), &[0; 4]);
            Some(word(tail.checked_add(4)?)? == sum)
        };
        return sum().unwrap_or(false);
    }
    let Some(tail) = bytes.len().checked_sub(TAIL) else { return false };
    bytes.get(tail..tail.saturating_add(8)) == Some(&[0, 0, 0, 0, 12, 0, 0, TAIL_TYPE])
        && word(tail.saturating_add(8)) == bytes.get(..tail).map(|b| crc32c(seed, b))
}
