//! Extended attributes: in the inode behind its fixed fields, in a block, and values that are inodes of their own.
//!
//! Source: the kernel's "ext4 Data Structures and Algorithms", section "Extended Attributes".

use super::checksum::crc32c;
use crate::bytes::Fields;
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

/// Whether the checksum of a block of attributes, which is block `number`, is right.
pub fn intact(seed: u32, number: u64, bytes: &[u8]) -> bool {
    let part = |from: usize, to: usize| bytes.get(from..to).unwrap_or_default();
    let sum = crc32c(crc32c(seed, &number.to_le_bytes()), part(0, 16));
    let sum = crc32c(crc32c(sum, &[0; 4]), part(20, bytes.len()));
    part(16, 20) == sum.to_le_bytes()
}
