//! The structures of EWF segment files, decoded: of E01 and S01 here, of Ex01 in [`super::second`]. "Expert Witness Compression
//! Format specification" and "... version 2", J. Metz. All numbers are little-endian; checksums are Adler-32.

use crate::bytes::Fields;
use crate::error::Result;
use crate::extent::Device;

/// What a segment file begins with.
pub const SIGNATURE: &[u8; 8] = b"EVF\x09\x0d\x0a\xff\x00";
/// The same of a file of the logical evidence format.
pub const LOGICAL: &[u8; 8] = b"LVF\x09\x0d\x0a\xff\x00";
/// Bytes of a segment file's header.
pub const HEADER: usize = 13;
/// Bytes of a section's descriptor.
pub const DESCRIPTOR: usize = 76;
/// Bytes of a table's header, behind the descriptor.
pub const TABLE_HEADER: usize = 24;

/// Adler-32 of `bytes` (RFC 1950, section 8.2).
pub fn adler32(bytes: &[u8]) -> u32 {
    simd_adler32::adler32(&bytes)
}

/// The number of a segment file, from 1 on.
pub fn segment(f: Fields<'_, Device>) -> Result<u16> {
    if !f.bytes().starts_with(SIGNATURE) {
        return Err(f.wrong(0, "the signature of an EWF segment file"));
    }
    f.u16(9)
}

/// What a section is of, by its type's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The shape of the disk: `volume`, `disk` or `data`.
    Volume,
    /// `sectors`: chunks one after the other.
    Sectors,
    /// `table`: where chunks are. In old files the chunks lie behind the entries.
    Table,
    /// `table2`: the copy of a table.
    Table2,
    /// `hash`: MD5 of the disk.
    Hash,
    /// `digest`: MD5 and SHA-1 of the disk.
    Digest,
    /// SHA-1 of the disk, of Ex01.
    Sha1,
    /// The description of the device, of Ex01.
    Device,
    /// What the examiner noted, of Ex01.
    Case,
    /// `error2`: sectors that could not be read when the disk was acquired.
    Errors,
    /// `header` or `header2`: what the examiner noted.
    Notes,
    /// `next`: another segment file follows.
    Next,
    /// `done`: this is the last segment file.
    Done,
    /// Anything else.
    Other,
}

/// A section's descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// What it is of.
    pub kind: Kind,
    /// Byte of the file at which its contents begin.
    pub body: u64,
    /// One past their last byte.
    pub end: u64,
    /// Byte of the descriptor that is followed from here.
    pub next: u64,
}

impl Section {
    /// Decodes a descriptor. A `next` or `done` section says 0, or no more than its descriptor, for its size.
    pub fn decode(f: Fields<'_, Device>) -> Result<Self> {
        let at = f.at().get();
        if f.u32(72)? != adler32(f.slice(0, 72)?) {
            return Err(f.wrong(72, "the checksum of the section's descriptor"));
        }
        let name = f.slice(0, 16)?;
        let name = name.split(|b| *b == 0).next().unwrap_or_default();
        let kind = match name {
            b"volume" | b"disk" | b"data" => Kind::Volume,
            b"sectors" => Kind::Sectors,
            b"table" => Kind::Table,
            b"table2" => Kind::Table2,
            b"hash" => Kind::Hash,
            b"digest" => Kind::Digest,
            b"error2" => Kind::Errors,
            b"header" | b"header2" => Kind::Notes,
            b"next" => Kind::Next,
            b"done" => Kind::Done,
            _ => Kind::Other,
        };
        let next = f.u64(16)?;
        let body = at.saturating_add(DESCRIPTOR as u64);
        // What a size leaves out, the place of the next section tells.
        let end = match at.checked_add(f.u64(24)?) {
            Some(end) if end >= body => end,
            _ => next.max(body),
        };
        Ok(Self { kind, body, end, next })
    }
}

/// The shape of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Chunks that the tables tell of.
    pub chunks: u32,
    /// Bytes of a chunk.
    pub chunk: u32,
    /// Bytes of the disk.
    pub len: u64,
    /// Identity of the set of segment files; zeros where there is none.
    pub set: [u8; 16],
}

/// The largest chunk that is taken: 32,768 sectors of 4096 bytes.
pub const MAX_CHUNK: u32 = 128 << 20;
/// Bytes of a volume section of EWF-S01.
pub const SMART: usize = 94;
/// Bytes of a volume section of EWF-E01.
pub const VOLUME: usize = 1052;

impl Shape {
    /// Decodes the contents of a `volume`, `disk` or `data` section.
    pub fn decode(f: Fields<'_, Device>) -> Result<Self> {
        let smart = f.bytes().len() <= SMART;
        let (chunks, per_chunk, sector) = (f.u32(4)?, f.u32(8)?, f.u32(12)?);
        let sectors = if smart { u64::from(f.u32(16)?) } else { f.u64(16)? };
        let sum = if smart { 90 } else { 1048 };
        if f.u32(sum)? != adler32(f.slice(0, sum)?) {
            return Err(f.wrong(sum, "the checksum of the volume section"));
        }
        let chunk = per_chunk.checked_mul(sector).filter(|c| (512..=MAX_CHUNK).contains(c));
        let chunk = chunk.ok_or_else(|| {
            f.wrong(8, format!("chunks of 512 bytes to 128 MiB; they have {per_chunk} sectors of {sector} bytes"))
        })?;
        let len = sectors.checked_mul(sector.into()).ok_or_else(|| f.wrong(16, "a disk of fewer than 2^64 bytes"))?;
        let set = if smart { [0; 16] } else { f.array(64)? };
        Ok(Self { chunks, chunk, len, set })
    }
}

/// A table's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableHeader {
    /// Entries.
    pub count: u32,
    /// What every entry's offset counts from.
    pub base: u64,
}

impl TableHeader {
    /// Decodes the header of a table.
    pub fn decode(f: Fields<'_, Device>) -> Result<Self> {
        if f.u32(20)? != adler32(f.slice(0, 20)?) {
            return Err(f.wrong(20, "the checksum of the table's header"));
        }
        Ok(Self { count: f.u32(0)?, base: f.u64(8)? })
    }
}

/// The highest bit of a table's entry: the chunk is deflated.
pub const DEFLATED: u32 = 1 << 31;

/// The first entry from which on all 32 bits are the offset and no chunk is deflated; none in nearly every table. An offset
/// has 31 bits, but EnCase 6.7 wrote tables of more than 2 GiB, and told the chunks behind that border so.
pub fn past_border(entries: &[u32]) -> usize {
    let far = entries.windows(2).position(|pair| match pair {
        [last, next] => next & DEFLATED != 0 && next & !DEFLATED < last & !DEFLATED && last & DEFLATED == 0,
        _ => false,
    });
    far.map_or(entries.len(), |at| at.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_beyond_two_gibibytes() {
        assert_eq!(past_border(&[0x10, 0x8000_0020, 0x30]), 3);
        assert_eq!(past_border(&[0x8000_0010, 0x8000_0020]), 2);
        // The second passes the border: what looks like a deflated chunk far back is none.
        assert_eq!(past_border(&[0x7FFF_8000, 0x8000_0004, 0x8000_8008]), 1);
        assert_eq!(past_border(&[]), 0);
    }
}
