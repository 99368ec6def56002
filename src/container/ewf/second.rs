//! The structures of EWF version 2 (Ex01), decoded. "Expert Witness Compression Format version 2 specification", J. Metz.
//!
//! A section's descriptor lies behind its contents and points back; the last one ends the file.

use super::section::{Kind, Section, adler32};
use crate::bytes::Fields;
use crate::error::Result;
use crate::extent::Device;

/// What a segment file begins with.
pub const SIGNATURE: &[u8; 8] = b"EVF2\x0d\x0a\x81\x00";
/// The same of a file of the logical evidence format.
pub const LOGICAL: &[u8; 8] = b"LEF2\x0d\x0a\x81\x00";
/// Bytes of a segment file's header.
pub const HEADER: usize = 32;
/// Bytes of a section's descriptor.
pub const DESCRIPTOR: usize = 64;
/// Bytes of a table's header.
pub const TABLE_HEADER: usize = 32;
/// Bytes of a table's entry.
pub const ENTRY: usize = 16;

/// How chunks and texts are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// By zlib.
    Zlib,
    /// By bzip2.
    Bzip2,
}

/// A segment file's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// How it compresses.
    pub codec: Codec,
    /// Its number, from 1 on.
    pub number: u32,
    /// Identity of the set of segment files.
    pub set: [u8; 16],
}

impl Header {
    /// Decodes it.
    pub fn decode(f: Fields<'_, Device>) -> Result<Self> {
        if !f.bytes().starts_with(SIGNATURE) {
            return Err(f.wrong(0, "the signature of an Ex01 segment file"));
        }
        let codec = match f.u16(10)? {
            1 => Codec::Zlib,
            2 => Codec::Bzip2,
            other => return Err(f.wrong(10, format!("compression by zlib (1) or bzip2 (2), it is {other}"))),
        };
        Ok(Self { codec, number: f.u32(12)?, set: f.array(16)? })
    }
}

/// Decodes a section's descriptor. [`Section::next`] is the place of the descriptor before it, 0 for the first one.
pub fn section(f: Fields<'_, Device>) -> Result<Section> {
    if f.u32(60)? != adler32(f.slice(0, 60)?) {
        return Err(f.wrong(60, "the checksum of the section's descriptor"));
    }
    let at = f.at().get();
    let (len, padding) = (f.u64(16)?, u64::from(f.u32(28)?));
    let body = len.checked_add(padding).and_then(|all| at.checked_sub(all));
    let body = body.ok_or_else(|| f.wrong(16, "contents that lie before their descriptor"))?;
    if f.u32(4)? & 2 != 0 {
        return Err(f.wrong(4, "a section that is not encrypted"));
    }
    let kind = match f.u32(0)? {
        0x01 => Kind::Device,
        0x02 => Kind::Case,
        0x03 => Kind::Sectors,
        0x04 => Kind::Table,
        0x05 => Kind::Errors,
        0x08 => Kind::Hash,
        0x09 => Kind::Sha1,
        0x0D => Kind::Next,
        0x0F => Kind::Done,
        _ => Kind::Other,
    };
    Ok(Section { kind, body, end: body.saturating_add(len), next: f.u64(8)? })
}

/// A table's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableHeader {
    /// The first chunk that it tells of.
    pub first: u64,
    /// Entries.
    pub count: u32,
}

impl TableHeader {
    /// Decodes it.
    pub fn decode(f: Fields<'_, Device>) -> Result<Self> {
        if f.u32(16)? != adler32(f.slice(0, 16)?) {
            return Err(f.wrong(16, "the checksum of the table's header"));
        }
        Ok(Self { first: f.u64(0)?, count: f.u32(8)? })
    }
}

/// Where a chunk is: a table's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Byte of the segment file; for a chunk that repeats a pattern, the pattern.
    pub at: u64,
    /// Bytes there.
    pub len: u32,
    /// Whether it is compressed.
    pub packed: bool,
    /// Whether a checksum lies behind it.
    pub sum: bool,
    /// Whether it is nothing but a pattern of 8 bytes.
    pub pattern: bool,
}

impl Entry {
    /// Decodes it.
    pub fn decode(bytes: &[u8; ENTRY]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, flags, ..] = *bytes;
        Self {
            at: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            len: u32::from_le_bytes([i, j, k, l]),
            packed: flags & 1 != 0,
            sum: flags & 2 != 0,
            pattern: flags & 4 != 0,
        }
    }
}
