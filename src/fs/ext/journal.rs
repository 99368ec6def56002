//! The structures of the journal (jbd2). All numbers are big-endian.
//!
//! Source: the kernel's "ext4 Data Structures and Algorithms", section "Journal (jbd2)".

use super::checksum::{crc32_be, crc32c};
use crate::bytes::Fields;
use crate::error::{Error, Result};
use crate::extent::{Offset, Volume};

/// The magic number of every block of the journal's own.
pub const MAGIC: u32 = 0xc03b_3998;

/// Features that must be known to replay.
pub mod incompat {
    /// There may be revocations.
    pub const REVOKE: u32 = 0x1;
    /// Block numbers have 64 bits.
    pub const B64: u32 = 0x2;
    /// Commit blocks may reach the disk before what they commit.
    pub const ASYNC_COMMIT: u32 = 0x4;
    /// Checksums of the second kind.
    pub const CSUM_V2: u32 = 0x8;
    /// Checksums of the third kind.
    pub const CSUM_V3: u32 = 0x10;
    /// The end of the journal is for fast commits.
    pub const FAST_COMMIT: u32 = 0x20;
    /// What is known here.
    pub const KNOWN: u32 = REVOKE | B64 | ASYNC_COMMIT | CSUM_V2 | CSUM_V3 | FAST_COMMIT;
}

/// The journal's superblock, its first block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalSuper {
    /// Bytes of a block.
    pub block: u32,
    /// Blocks of the journal.
    pub blocks: u32,
    /// The first block that logs.
    pub first: u32,
    /// The first transaction that the log has.
    pub sequence: u32,
    /// Where it begins; 0 for an empty log.
    pub start: u32,
    /// Features that need not be known; 1: checksums of the first kind.
    pub compat: u32,
    /// [`incompat`].
    pub incompat: u32,
    /// Seed of its checksums.
    pub seed: u32,
    /// Blocks at its end that are for fast commits.
    pub fast: u32,
    /// Whether its checksum is right, or none is kept.
    pub intact: bool,
}

impl JournalSuper {
    /// Decodes it from a block at `at`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where it is none, [`Error::Unsupported`] where it has features that are not known.
    pub fn decode(at: Offset<Volume>, bytes: &[u8]) -> Result<Self> {
        let f = Fields::new("ext journal superblock", at, bytes.get(..1024).unwrap_or(bytes));
        if f.u32_be(0)? != MAGIC {
            return Err(f.wrong(0, "the magic number 0xC03B3998"));
        }
        let version = f.u32_be(4)?;
        if !matches!(version, 3 | 4) {
            return Err(f.wrong(4, "block type 3 or 4"));
        }
        let [compat, incompat] = if version == 4 { [f.u32_be(0x24)?, f.u32_be(0x28)?] } else { [0, 0] };
        let unknown = incompat & !incompat::KNOWN;
        if unknown != 0 {
            return Err(Error::Unsupported(format!("ext journal features that are not known: incompat {unknown:#x}")));
        }
        let summed = incompat & (incompat::CSUM_V2 | incompat::CSUM_V3) != 0;
        let sum = crc32c(crc32c(crc32c(!0, f.slice(0, 0xfc)?), &[0; 4]), f.slice(0x100, 1024 - 0x100)?);
        let fast = match f.u32_be(0x54)? {
            _ if incompat & incompat::FAST_COMMIT == 0 => 0,
            0 => 256,
            n => n,
        };
        let s = Self {
            block: f.u32_be(0xc)?,
            blocks: f.u32_be(0x10)?,
            first: f.u32_be(0x14)?,
            sequence: f.u32_be(0x18)?,
            start: f.u32_be(0x1c)?,
            compat,
            incompat,
            seed: crc32c(!0, f.slice(0x30, 16)?),
            fast,
            intact: !summed || f.u32_be(0xfc)? == sum,
        };
        if s.first == 0 || s.first >= s.end() || s.start != 0 && !(s.first..s.end()).contains(&s.start) {
            return Err(f.wrong(0x10, "a log that begins and starts within its blocks"));
        }
        Ok(s)
    }
    /// One past the last block that logs.
    pub fn end(&self) -> u32 {
        self.blocks.saturating_sub(self.fast)
    }
    /// Whether blocks have checksums at their ends and tags of their contents.
    pub fn summed(&self) -> bool {
        self.incompat & (incompat::CSUM_V2 | incompat::CSUM_V3) != 0
    }
    /// Whether commit blocks have checksums of the first kind.
    pub fn first_kind(&self) -> bool {
        self.compat & 1 != 0 && !self.summed()
    }
}

/// What a block of the log is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogBlock {
    /// Blocks follow, in this order.
    Descriptor(Vec<Tag>),
    /// The transaction is complete. The checksum of the first kind, where it has one.
    Commit(Option<u32>),
    /// Older contents of these blocks must not be replayed.
    Revoke(Vec<u64>),
}

/// One block that a descriptor announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// The block of the volume that it is to be written to.
    pub block: u64,
    /// Whether its first four bytes, which were the magic number, were set to zeros.
    pub escaped: bool,
    /// Checksum of its contents; 16 bits of it with the second kind.
    pub sum: u32,
}

/// The type and the transaction of a block of the log; none for what is no such block.
pub fn head(bytes: &[u8]) -> Option<(u32, u32)> {
    let word = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?));
    (word(0)? == MAGIC).then_some((word(4)?, word(8)?))
}

/// Decodes a block of the log, which lies at `at`.
///
/// # Errors
/// [`Error::Corrupt`] where it is none, or its checksum is wrong.
pub fn decode(s: &JournalSuper, at: Offset<Volume>, bytes: &[u8]) -> Result<LogBlock> {
    let f = Fields::new("ext journal block", at, bytes);
    let end = bytes.len().saturating_sub(if s.summed() { 4 } else { 0 });
    let sealed = || -> Result<()> {
        if s.summed() {
            let sum = crc32c(crc32c(s.seed, f.slice(0, end)?), &[0; 4]);
            if f.u32_be(end)? != sum {
                return Err(f.wrong(end, "a checksum that is right"));
            }
        }
        Ok(())
    };
    match f.u32_be(4)? {
        1 => {
            sealed()?;
            tags(s, &f, end).map(LogBlock::Descriptor)
        }
        2 => {
            if s.summed() {
                let sum = crc32c(
                    crc32c(crc32c(s.seed, f.slice(0, 16)?), &[0; 4]),
                    f.slice(20, bytes.len().saturating_sub(20))?,
                );
                if f.u32_be(16)? != sum {
                    return Err(f.wrong(16, "a checksum that is right"));
                }
            }
            // Type 1 of 4 bytes: CRC-32 of all that is committed.
            let first = s.first_kind() && f.u8(12)? == 1 && f.u8(13)? == 4;
            Ok(LogBlock::Commit(if first { Some(f.u32_be(16)?) } else { None }))
        }
        5 => {
            sealed()?;
            let used = f.u32_be(12)? as usize;
            if used > end {
                return Err(f.wrong(12, format!("at most {end} bytes")));
            }
            let wide = s.incompat & incompat::B64 != 0;
            let step = if wide { 8 } else { 4 };
            let mut blocks = Vec::new();
            let mut pos = 16usize;
            while pos.saturating_add(step) <= used {
                blocks.push(if wide { f.u64_be(pos)? } else { f.u32_be(pos)?.into() });
                pos = pos.saturating_add(step);
            }
            Ok(LogBlock::Revoke(blocks))
        }
        _ => Err(f.wrong(4, "a descriptor, a commit or a revocation")),
    }
}

fn tags(s: &JournalSuper, f: &Fields<'_, Volume>, end: usize) -> Result<Vec<Tag>> {
    let wide = s.incompat & incompat::B64 != 0;
    let third = s.incompat & incompat::CSUM_V3 != 0;
    let second = s.incompat & incompat::CSUM_V2 != 0;
    // As the kernel counts them: the second kind has two bytes more that it does not use.
    let size = match (third, second, wide) {
        (true, ..) => 16usize,
        (_, true, true) => 14,
        (_, true, false) => 10,
        (_, false, true) => 12,
        (_, false, false) => 8,
    };
    let mut out = Vec::new();
    let mut at = 12usize;
    while at.saturating_add(size) <= end {
        let low = u64::from(f.u32_be(at)?);
        let (flags, sum) = if third {
            (f.u32_be(at.saturating_add(4))?, f.u32_be(at.saturating_add(12))?)
        } else {
            (f.u16_be(at.saturating_add(6))?.into(), f.u16_be(at.saturating_add(4))?.into())
        };
        let high = if wide { u64::from(f.u32_be(at.saturating_add(8))?) << 32 } else { 0 };
        out.push(Tag { block: low | high, escaped: flags & 1 != 0, sum });
        at = at.saturating_add(size);
        if flags & 2 == 0 {
            at = at.saturating_add(16);
        }
        if flags & 8 != 0 {
            break;
        }
    }
    Ok(out)
}

/// Whether the contents of a block that `tag` announces in transaction `sequence` are those that were meant.
pub fn tag_intact(s: &JournalSuper, tag: &Tag, sequence: u32, bytes: &[u8]) -> bool {
    if !s.summed() {
        return true;
    }
    let sum = crc32c(crc32c(s.seed, &sequence.to_be_bytes()), bytes);
    if s.incompat & incompat::CSUM_V3 != 0 { sum == tag.sum } else { sum & 0xffff == tag.sum & 0xffff }
}

/// Continues the checksum of the first kind over a block.
pub fn first_kind_sum(seed: u32, bytes: &[u8]) -> u32 {
    crc32_be(seed, bytes)
}
