//! Extent trees: the block maps of ext4.
//!
//! Source: the kernel's "ext4 Data Structures and Algorithms", section "Extent Tree".

use super::checksum::crc32c;
use crate::bytes::{Fields, put};
use crate::error::Result;
use crate::extent::{Offset, Volume};

/// The magic number of a node.
pub const MAGIC: u16 = 0xf30a;
/// The deepest tree.
pub const MAX_DEPTH: u16 = 5;
/// The longest extent that is written, in blocks; longer lengths are those of unwritten ones.
pub const MAX_LEN: u16 = 32_768;
/// Bytes of a node's head, and of an entry.
pub const ENTRY: usize = 12;

/// A run of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// The first block of the file.
    pub logical: u64,
    /// Blocks.
    pub len: u64,
    /// The first block of the volume.
    pub physical: u64,
    /// Whether it was written; reads as zeros if not.
    pub written: bool,
}

/// The runs of one inode or node, in order. (Most have one: no allocation for that.)
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Runs {
    /// Nothing.
    #[default]
    None,
    /// One.
    One(Run),
    /// Any number.
    Many(Vec<Run>),
}

impl Runs {
    /// Adds one at the end.
    pub fn push(&mut self, run: Run) {
        match self {
            Self::None => *self = Self::One(run),
            Self::One(first) => *self = Self::Many(vec![*first, run]),
            Self::Many(all) => all.push(run),
        }
    }
}

impl std::ops::Deref for Runs {
    type Target = [Run];
    fn deref(&self) -> &[Run] {
        match self {
            Self::None => &[],
            Self::One(run) => std::slice::from_ref(run),
            Self::Many(all) => all,
        }
    }
}

impl std::ops::DerefMut for Runs {
    fn deref_mut(&mut self) -> &mut [Run] {
        match self {
            Self::None => &mut [],
            Self::One(run) => std::slice::from_mut(run),
            Self::Many(all) => all,
        }
    }
}

/// A pointer to a node one level down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child {
    /// The first block of the file that it may map.
    pub logical: u64,
    /// Its block in the volume.
    pub block: u64,
}

/// A node's entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// At the bottom.
    Leaf(Runs),
    /// Above: the depth of the children, and these.
    Index(u16, Vec<Child>),
}

/// Decodes a node, which lies at `at`: the 60 bytes of an inode or a whole block. `depth` is what its parent's depth
/// says that it must have; none for a root.
///
/// # Errors
/// [`crate::error::Error::Corrupt`] where it is no node, is deeper than it may be, or has more entries than room.
pub fn decode(at: Offset<Volume>, bytes: &[u8], depth: Option<u16>) -> Result<Node> {
    let f = Fields::new("ext extent node", at, bytes);
    if f.u16(0)? != MAGIC {
        return Err(f.wrong(0, "the magic number 0xF30A"));
    }
    let (entries, max, own) = (f.u16(2)?, f.u16(4)?, f.u16(6)?);
    let room = bytes.len().saturating_sub(ENTRY).checked_div(ENTRY).unwrap_or(0);
    if usize::from(max) > room || entries > max {
        return Err(f.wrong(2, format!("at most {room} entries")));
    }
    match depth {
        None if own > MAX_DEPTH => return Err(f.wrong(6, format!("a depth of at most {MAX_DEPTH}"))),
        Some(depth) if own != depth => return Err(f.wrong(6, format!("depth {depth}"))),
        _ => {}
    }
    let places = (1..=usize::from(entries)).map(|n| n.saturating_mul(ENTRY));
    if own == 0 {
        let mut runs = if entries > 1 { Runs::Many(Vec::with_capacity(entries.into())) } else { Runs::None };
        for e in places {
            let len = f.u16(e.saturating_add(4))?;
            let written = len <= MAX_LEN;
            let len = if written { len } else { len.saturating_sub(MAX_LEN) };
            let physical = u64::from(f.u16(e.saturating_add(6))?) << 32 | u64::from(f.u32(e.saturating_add(8))?);
            runs.push(Run { logical: f.u32(e)?.into(), len: len.into(), physical, written });
        }
        return Ok(Node::Leaf(runs));
    }
    let mut children = Vec::with_capacity(entries.into());
    for e in places {
        let block = u64::from(f.u32(e.saturating_add(4))?) | u64::from(f.u16(e.saturating_add(8))?) << 32;
        children.push(Child { logical: f.u32(e)?.into(), block });
    }
    Ok(Node::Index(own.saturating_sub(1), children))
}

/// Encodes a node of `size` bytes: 60 for a root, else a block's, whose checksum follows where there is a `seed`.
/// `entries` are those of [`leaf`] or [`index`]. None where there is no room.
pub fn encode(size: usize, depth: u16, entries: &[[u8; ENTRY]], seed: Option<u32>) -> Option<Vec<u8>> {
    let max = room(size);
    let count = u16::try_from(entries.len()).ok().filter(|_| entries.len() <= max)?;
    let mut out = vec![0; size];
    let mut fits = put(&mut out, 0, &MAGIC.to_le_bytes())
        && put(&mut out, 2, &count.to_le_bytes())
        && put(&mut out, 4, &u16::try_from(max).ok()?.to_le_bytes())
        && put(&mut out, 6, &depth.to_le_bytes());
    for (entry, at) in entries.iter().zip((ENTRY..).step_by(ENTRY)) {
        fits &= put(&mut out, at, entry);
    }
    if let Some(seed) = seed {
        let tail = max.checked_add(1)?.checked_mul(ENTRY)?;
        let sum = crc32c(seed, out.get(..tail)?);
        fits &= put(&mut out, tail, &sum.to_le_bytes());
    }
    fits.then_some(out)
}

/// Entries that a node of `size` bytes has room for.
pub fn room(size: usize) -> usize {
    (size / ENTRY).saturating_sub(1)
}

/// An entry of a leaf; none where a number is too large for it.
pub fn leaf(run: &Run) -> Option<[u8; ENTRY]> {
    let len = u16::try_from(run.len).ok().filter(|len| *len <= MAX_LEN && *len > 0)?;
    let len = if run.written { len } else { len.checked_add(MAX_LEN)? };
    let high = u16::try_from(run.physical >> 32).ok()?;
    let mut out = [0; ENTRY];
    let fits = put(&mut out, 0, &u32::try_from(run.logical).ok()?.to_le_bytes())
        && put(&mut out, 4, &len.to_le_bytes())
        && put(&mut out, 6, &high.to_le_bytes())
        && put(&mut out, 8, &((run.physical & 0xffff_ffff) as u32).to_le_bytes());
    fits.then_some(out)
}

/// An entry of an index; none where a number is too large for it.
pub fn index(child: &Child) -> Option<[u8; ENTRY]> {
    let high = u16::try_from(child.block >> 32).ok()?;
    let mut out = [0; ENTRY];
    let fits = put(&mut out, 0, &u32::try_from(child.logical).ok()?.to_le_bytes())
        && put(&mut out, 4, &((child.block & 0xffff_ffff) as u32).to_le_bytes())
        && put(&mut out, 8, &high.to_le_bytes());
    fits.then_some(out)
}

/// Whether the checksum behind the room for entries of a block is right for the inode's `seed`.
pub fn intact(seed: u32, block: &[u8]) -> bool {
    let max = block.get(4..6).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes);
    let tail = usize::from(max).saturating_add(1).saturating_mul(ENTRY);
    let have = block.get(tail..tail.saturating_add(4)).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    have == block.get(..tail).map(|b| crc32c(seed, b))
}
