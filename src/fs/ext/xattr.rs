//! Extended attributes: in the inode behind its fixed fields, in a block, and values that are inodes of their own.
//!
//! Source: the kernel's "ext4 Data Structures and Algorithms", section "Extended Attributes".

use super::checksum::crc32c;
use crate::bytes::{Fields, put};
use crate::error::{Error, Result};
use crate::extent::{Offset, Volume};

/// The magic number of a block, and of the area in an inode.
pub const MAGIC: u32 = 0xea02_0000;
/// Bytes of a block's head.
pub const BLOCK_HEAD: usize = 32;
/// The most bytes that a value may have.
pub const MAX_VALUE: u32 = 65_536;
/// The name index of `system.`: inline contents are `system.data`.
pub const SYSTEM: u8 = 7;

/// Where a value is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Here.
    Here(Vec<u8>),
    /// The contents of this inode, so many bytes.
    Inode(u32, u32),
}

/// One attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribute {
    /// What stands for the name's prefix.
    pub index: u8,
    /// The rest of the name.
    pub name: Vec<u8>,
    /// The value.
    pub value: Value,
}

impl Attribute {
    /// The whole name.
    pub fn full_name(&self) -> Vec<u8> {
        let prefix: &[u8] = match self.index {
            1 => b"user.",
            // These two are whole names; nothing follows.
            2 => b"system.posix_acl_access",
            3 => b"system.posix_acl_default",
            4 => b"trusted.",
            6 => b"security.",
            7 => b"system.",
            8 => b"system.richacl",
            9 => b"encryption.",
            10 => b"hurd.",
            _ => b"",
        };
        [prefix, &self.name].concat()
    }
    /// Whether it is the file system's own use of attributes and no user's: inline contents, the encryption context.
    pub fn internal(&self) -> bool {
        self.index == SYSTEM && self.name == b"data" || self.index == 9
    }
}

/// The attributes of a list that begins at `first` of `bytes`; value offsets count from `base`. Goes on behind a value
/// that is out of bounds, which is a problem; stops at an entry that is.
fn list(f: &Fields<'_, Volume>, first: usize, base: usize, problems: &mut Vec<Error>) -> Vec<Attribute> {
    let mut out = Vec::new();
    let mut at = first;
    // Values don't overlap: without this, a crafted block could say that each of its entries has all of it.
    let mut room = f.bytes().len();
    // The list ends with four zero bytes, or where there is no room for these.
    while f.u32(at).is_ok_and(|w| w != 0) {
        let mut entry = || -> Result<(usize, Attribute)> {
            let len = usize::from(f.u8(at)?);
            let name = f.slice(at.saturating_add(16), len)?.to_vec();
            let inode = f.u32(at.saturating_add(4))?;
            let size = f.u32(at.saturating_add(8))?;
            let next = at.saturating_add(16).saturating_add(len).next_multiple_of(4);
            let value = if inode != 0 {
                if size > MAX_VALUE {
                    return Err(f.wrong(at.saturating_add(8), format!("a value of at most {MAX_VALUE} bytes")));
                }
                Value::Inode(inode, size)
            } else {
                let offset = base.saturating_add(f.u16(at.saturating_add(2))?.into());
                room = room
                    .checked_sub(size as usize)
                    .ok_or_else(|| f.wrong(at.saturating_add(8), "values that don't overlap"))?;
                Value::Here(f.slice(offset, size as usize)?.to_vec())
            };
            Ok((next, Attribute { index: f.u8(at.saturating_add(1))?, name, value }))
        };
        match entry() {
            Ok((next, attribute)) => {
                out.push(attribute);
                at = next;
            }
            Err(e) => {
                problems.push(e);
                break;
            }
        }
    }
    out
}

/// The attributes in an inode, given the bytes behind its fixed fields.
pub fn in_inode(at: Offset<Volume>, bytes: &[u8], problems: &mut Vec<Error>) -> Vec<Attribute> {
    let f = Fields::new("ext attributes in an inode", at, bytes);
    if f.u32(0).ok() != Some(MAGIC) {
        return Vec::new();
    }
    list(&f, 4, 4, problems)
}

/// The attributes in a block.
///
/// # Errors
/// [`Error::Corrupt`] where it is no such block.
pub fn in_block(at: Offset<Volume>, bytes: &[u8], problems: &mut Vec<Error>) -> Result<Vec<Attribute>> {
    let f = Fields::new("ext attribute block", at, bytes);
    if f.u32(0)? != MAGIC {
        return Err(f.wrong(0, "the magic number 0xEA020000"));
    }
    if f.u32(8)? != 1 {
        return Err(f.wrong(8, "one block"));
    }
    Ok(list(&f, BLOCK_HEAD, 0, problems))
}

/// What stands for a name's prefix, and the rest of the name; none for a name that ext has no prefix for.
pub fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    match name {
        b"system.posix_acl_access" => return Some((2, b"")),
        b"system.posix_acl_default" => return Some((3, b"")),
        _ => {}
    }
    let prefixes: [(u8, &[u8]); 3] = [(1, b"user."), (4, b"trusted."), (6, b"security.")];
    prefixes.iter().find_map(|(index, prefix)| Some((*index, name.strip_prefix(*prefix)?)))
}

/// Bytes that an attribute takes: its entry, and its value's.
pub fn room(name: &[u8], value: &[u8]) -> usize {
    let entry = name.len().saturating_add(16).next_multiple_of(4);
    entry.saturating_add(value.len().next_multiple_of(4))
}

/// An attribute to be written: prefix, rest of the name, value as it is on the disk.
pub type NewAttribute<'a> = (u8, &'a [u8], &'a [u8]);

/// Writes attributes into `area`, whose list begins at `first` and whose value offsets count from `base`; with hashes,
/// which a block has and an inode need not. Returns whether there was room.
#[must_use]
fn write(area: &mut [u8], first: usize, base: usize, all: &[NewAttribute<'_>], hashes: bool) -> bool {
    let (mut at, mut end) = (first, area.len());
    let mut whole = 0u32;
    for (index, name, value) in all {
        let (Ok(len), Ok(size)) = (u8::try_from(name.len()), u32::try_from(value.len())) else { return false };
        let Some(place) = end.checked_sub(value.len().next_multiple_of(4)) else { return false };
        // An attribute without a value has no place.
        let offset =
            if value.is_empty() { Some(0) } else { place.checked_sub(base).and_then(|o| u16::try_from(o).ok()) };
        let Some(offset) = offset else { return false };
        let next = at.saturating_add(name.len().saturating_add(16).next_multiple_of(4));
        // Four zero bytes end the list.
        if next.saturating_add(4) > place {
            return false;
        }
        let hash = if hashes { entry_hash(name, value) } else { 0 };
        whole = whole.rotate_left(16) ^ hash;
        let fits = put(area, at, &[len, *index])
            && put(area, at.saturating_add(2), &offset.to_le_bytes())
            && put(area, at.saturating_add(8), &size.to_le_bytes())
            && put(area, at.saturating_add(12), &hash.to_le_bytes())
            && put(area, at.saturating_add(16), name)
            && put(area, place, value);
        if !fits {
            return false;
        }
        (at, end) = (next, place);
    }
    !hashes || put(area, 12, &whole.to_le_bytes())
}

/// The hash of an attribute, over its name and its value.
fn entry_hash(name: &[u8], value: &[u8]) -> u32 {
    let hash = name.iter().fold(0u32, |h, b| h.rotate_left(5) ^ u32::from(*b));
    value.chunks(4).fold(hash, |h, word| {
        let mut bytes = [0; 4];
        let _fits = put(&mut bytes, 0, word);
        h.rotate_left(16) ^ u32::from_le_bytes(bytes)
    })
}

/// The area of `size` bytes behind an inode's fixed fields with these attributes; none where they don't fit.
pub fn encode_area(size: usize, all: &[NewAttribute<'_>]) -> Option<Vec<u8>> {
    let mut out = vec![0; size];
    (put(&mut out, 0, &MAGIC.to_le_bytes()) && write(&mut out, 4, 4, all, false)).then_some(out)
}

/// A block of `size` bytes with these attributes, for one inode, not sealed yet; none where they don't fit. They are in
/// the order in which the kernel looks for them.
pub fn encode_block(size: usize, all: &[NewAttribute<'_>]) -> Option<Vec<u8>> {
    let mut sorted = all.to_vec();
    sorted.sort_by_key(|(index, name, _)| (*index, name.len(), *name));
    let mut out = vec![0; size];
    let head = put(&mut out, 0, &MAGIC.to_le_bytes())
        && put(&mut out, 4, &1u32.to_le_bytes())
        && put(&mut out, 8, &1u32.to_le_bytes());
    (head && write(&mut out, BLOCK_HEAD, 0, &sorted, true)).then_some(out)
}

/// Says how many inodes a block of attributes, which is block `number`, is for, and seals it where there is a seed.
pub fn seal_block(block: &mut [u8], number: u64, inodes: u32, seed: Option<u32>) {
    let _fits = put(block, 4, &inodes.to_le_bytes()) && put(block, 16, &[0; 4]);
    if let Some(seed) = seed {
        let sum = crc32c(crc32c(seed, &number.to_le_bytes()), block);
        let _fits = put(block, 16, &sum.to_le_bytes());
    }
}

/// Whether the checksum of a block of attributes, which is block `number`, is right.
pub fn intact(seed: u32, number: u64, bytes: &[u8]) -> bool {
    let part = |from: usize, to: usize| bytes.get(from..to).unwrap_or_default();
    let sum = crc32c(crc32c(seed, &number.to_le_bytes()), part(0, 16));
    let sum = crc32c(crc32c(sum, &[0; 4]), part(20, bytes.len()));
    part(16, 20) == sum.to_le_bytes()
}
