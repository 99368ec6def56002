//! The structures of qcow2, versions 2 and 3. All numbers are big-endian. "QCOW2 image format" (`docs/interop/qcow2.rst` of QEMU).

use crate::bytes::Fields;
use crate::error::{Error, Result};
use crate::extent::Device;

/// What an image begins with.
pub const MAGIC: &[u8; 4] = b"QFI\xfb";
/// Bytes of the header of version 2, and of the part of version 3 that every image has.
const HEADER_V2: usize = 72;
const HEADER_V3: usize = 104;
/// Bytes of a backing file's name, at most.
const MAX_BACKING: u32 = 1023;
/// Bytes of a level 1 table, at most.
pub const MAX_L1: u64 = 32 << 20;
/// Snapshots, and bytes of what stands behind one's fixed fields, at most.
pub const MAX_SNAPSHOTS: u32 = 65_536;
const MAX_SNAPSHOT_EXTRA: u32 = 1024;
/// Bytes of the fixed fields of a snapshot.
pub const SNAPSHOT: usize = 40;

/// Incompatible features.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED: u64 = 1 << 4;
/// A feature that may be lost by who does not know it: the data file is also right by itself.
const RAW_DATA_FILE: u64 = 1 << 1;

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// Deflate without a header.
    Deflate,
    /// Zstandard.
    Zstd,
}

/// What the header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Place and bytes of the backing file's name.
    pub backing: Option<(u64, u32)>,
    /// Clusters have two to this bytes.
    pub cluster_bits: u32,
    /// Bytes of the disk.
    pub size: u64,
    /// 0 none, 1 AES, 2 LUKS.
    pub crypt: u32,
    /// Entries of the level 1 table, and its place.
    pub l1: (u32, u64),
    /// How many snapshots, and where they are listed.
    pub snapshots: (u32, u64),
    /// Whether it was not closed: counts of references may be wrong.
    pub dirty: bool,
    /// Whether it was found to be damaged.
    pub corrupt: bool,
    /// Whether guest data are in another file.
    pub data_file: bool,
    /// Whether that file is the disk by itself.
    pub raw_data_file: bool,
    /// Whether clusters have 32 parts of their own each.
    pub extended: bool,
    /// How clusters are compressed.
    pub codec: Codec,
    /// Where the extensions of the header begin.
    pub end: u64,
}

impl Header {
    /// Bytes of a cluster.
    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }
    /// Bytes of an entry of a level 2 table.
    pub fn entry(&self) -> u64 {
        if self.extended { 16 } else { 8 }
    }
    /// Bytes of the disk that a level 2 table covers.
    pub fn per_l2(&self) -> u64 {
        self.cluster().saturating_mul(self.cluster().checked_div(self.entry()).unwrap_or_default())
    }
    /// Decodes the first bytes of an image, at most a cluster of them.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for numbers that no image can have, [`Error::Unsupported`] for features that are not known.
    pub fn decode(f: Fields<'_, Device>) -> Result<Self> {
        let version = f.u32_be(4)?;
        if !matches!(version, 2 | 3) {
            return Err(Error::Unsupported(format!("a qcow image of version {version}: 2 and 3 can be read")));
        }
        f.slice(0, HEADER_V2)?;
        let cluster_bits = f.u32_be(20)?;
        if !(9..=21).contains(&cluster_bits) {
            return Err(f.wrong(20, format!("9 to 21 bits of a cluster, there are {cluster_bits}")));
        }
        let mut out = Self {
            version,
            backing: None,
            cluster_bits,
            size: f.u64_be(24)?,
            crypt: f.u32_be(32)?,
            l1: (f.u32_be(36)?, f.u64_be(40)?),
            snapshots: (f.u32_be(60)?, f.u64_be(64)?),
            dirty: false,
            corrupt: false,
            data_file: false,
            raw_data_file: false,
            extended: false,
            codec: Codec::Deflate,
            end: HEADER_V2 as u64,
        };
        let (at, len) = (f.u64_be(8)?, f.u32_be(16)?);
        if at != 0 && len > 0 {
            if len > MAX_BACKING || at.saturating_add(len.into()) > out.cluster() {
                return Err(
                    f.wrong(8, format!("a backing file's name of up to {MAX_BACKING} bytes in the first cluster"))
                );
            }
            out.backing = Some((at, len));
        }
        if version == 3 {
            out.features(&f)?;
        }
        // The level 1 table has an entry for all of the disk.
        let need = out.size.div_ceil(out.per_l2());
        if need > u64::from(out.l1.0) || u64::from(out.l1.0).saturating_mul(8) > MAX_L1 {
            return Err(
                f.wrong(36, format!("a level 1 table of {need} to {} entries, it has {}", MAX_L1 / 8, out.l1.0))
            );
        }
        if out.size > i64::MAX.unsigned_abs() {
            return Err(f.wrong(24, "a disk that is not larger than a file can be"));
        }
        Ok(out)
    }
    fn features(&mut self, f: &Fields<'_, Device>) -> Result<()> {
        f.slice(0, HEADER_V3)?;
        let incompatible = f.u64_be(72)?;
        let unknown = incompatible & !(DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED);
        if unknown != 0 {
            return Err(Error::Unsupported(format!(
                "a qcow2 image with incompatible features {unknown:#x} that are not known"
            )));
        }
        let length = f.u32_be(100)?;
        if (length as usize) < HEADER_V3 || u64::from(length) > self.cluster() {
            return Err(f.wrong(100, format!("a header of {HEADER_V3} bytes to a cluster, it has {length}")));
        }
        self.dirty = incompatible & DIRTY != 0;
        self.corrupt = incompatible & CORRUPT != 0;
        self.data_file = incompatible & DATA_FILE != 0;
        self.raw_data_file = self.data_file && f.u64_be(88)? & RAW_DATA_FILE != 0;
        self.extended = incompatible & EXTENDED != 0;
        if self.extended && self.cluster_bits < 14 {
            return Err(f.wrong(20, "clusters of 16384 bytes or more with extended entries"));
        }
        self.end = length.into();
        if incompatible & COMPRESSION != 0 && length as usize > HEADER_V3 {
            self.codec = match f.u8(104)? {
                0 => Codec::Deflate,
                1 => Codec::Zstd,
                other => {
                    return Err(Error::Unsupported(format!(
                        "a qcow2 image with compression type {other}: 0 and 1 are known"
                    )));
                }
            };
        }
        Ok(())
    }
}

/// What the extensions of a header say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// The format of the backing file.
    pub backing_format: Option<Vec<u8>>,
    /// The name of the data file.
    pub data_file: Option<Vec<u8>>,
    /// Whether there are bitmaps of changed blocks.
    pub bitmaps: bool,
}

impl Extensions {
    /// Decodes the bytes between the header and the backing file's name.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where one goes on beyond the end.
    pub fn decode(f: Fields<'_, Device>) -> Result<Self> {
        let mut out = Self::default();
        let mut at = 0usize;
        while let Some(body) = at.checked_add(8).filter(|body| *body <= f.bytes().len()) {
            let (kind, len) = (f.u32_be(at)?, f.u32_be(at.saturating_add(4))? as usize);
            let bytes = || f.slice(body, len).map(<[u8]>::to_vec);
            match kind {
                0 => break,
                0xE279_2ACA => out.backing_format = Some(bytes()?),
                0x4441_5441 => out.data_file = Some(bytes()?),
                0x2385_2875 => out.bitmaps = true,
                _ => {}
            }
            f.slice(body, len)?;
            at = body.saturating_add(len.next_multiple_of(8));
        }
        Ok(out)
    }
}

/// The fixed fields of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotHead {
    /// Its level 1 table: entries and place.
    pub l1: (u32, u64),
    /// When it was made, seconds and nanoseconds.
    pub made: (u32, u32),
    /// Bytes of the machine's state, by the field of 32 bits.
    pub memory: u32,
    /// Bytes of what follows: extra fields, identity, name.
    pub follow: [usize; 3],
}

impl SnapshotHead {
    /// Decodes the fixed fields.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for more that follows than there may be.
    pub fn decode(f: &Fields<'_, Device>) -> Result<Self> {
        let extra = f.u32_be(36)?;
        if extra > MAX_SNAPSHOT_EXTRA {
            return Err(f.wrong(36, format!("up to {MAX_SNAPSHOT_EXTRA} bytes more, there are {extra}")));
        }
        let u16_be = |at: usize| f.array::<2>(at).map(|b| usize::from(u16::from_be_bytes(b)));
        Ok(Self {
            l1: (f.u32_be(8)?, f.u64_be(0)?),
            made: (f.u32_be(16)?, f.u32_be(20)?),
            memory: f.u32_be(32)?,
            follow: [extra as usize, u16_be(12)?, u16_be(14)?],
        })
    }
    /// Bytes of all of it, to the next one.
    pub fn bytes(&self) -> u64 {
        let sum = self.follow.iter().fold(SNAPSHOT, |sum, n| sum.saturating_add(*n));
        sum.next_multiple_of(8) as u64
    }
}

/// What an entry of a level 2 table says of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cluster {
    /// Nothing.
    Unallocated,
    /// Zeros.
    Zero,
    /// It is stored here.
    At(u64),
    /// It is compressed: place and bytes.
    Packed(u64, u64),
}

/// The offset in an entry of either table.
pub const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const PACKED: u64 = 1 << 62;
const ZERO: u64 = 1;

/// Decodes the first 64 bits of an entry of a level 2 table. An extended one has its zeros in its bitmap.
pub fn cluster(entry: u64, h: &Header) -> Cluster {
    if entry & PACKED != 0 {
        let (at, len) = packed(entry, h.cluster_bits);
        return Cluster::Packed(at, len);
    }
    if entry & ZERO != 0 && !h.extended {
        return Cluster::Zero;
    }
    match entry & OFFSET {
        // In a data file, the first cluster is one like the others.
        0 if !(h.data_file && entry & COPIED != 0) => Cluster::Unallocated,
        at => Cluster::At(at),
    }
}

/// An entry without the bit that says whether its cluster may be written in place.
#[inline]
pub fn bare(entry: u64) -> u64 {
    entry & !COPIED
}

/// Where the cluster of an entry of 64 bits lies that is the most common kind: stored, and no bit of any meaning beside that.
/// None for all others, which [`cluster`] tells apart.
#[inline]
pub fn ordinary(entry: u64, h: &Header) -> Option<u64> {
    let odd = !(COPIED | OFFSET) | h.cluster().wrapping_sub(1);
    (entry & odd == 0 && entry & OFFSET != 0).then_some(entry & OFFSET)
}

/// Place and bytes of a compressed cluster, both as the entry has them: it may end before.
pub fn packed(entry: u64, cluster_bits: u32) -> (u64, u64) {
    let bits = 70u32.saturating_sub(cluster_bits).min(61);
    let at = entry & (1u64 << bits).wrapping_sub(1);
    let sectors = (entry & (PACKED - 1)) >> bits;
    (at, sectors.saturating_add(1).saturating_mul(512).saturating_sub(at & 511))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::Offset;
    use proptest::prelude::*;

    fn header(version: u32) -> Vec<u8> {
        let mut bytes = vec![0; 512];
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4..8].copy_from_slice(&version.to_be_bytes());
        bytes[20..24].copy_from_slice(&16u32.to_be_bytes());
        bytes[24..32].copy_from_slice(&(1u64 << 30).to_be_bytes());
        bytes[36..40].copy_from_slice(&2u32.to_be_bytes());
        bytes[100..104].copy_from_slice(&112u32.to_be_bytes());
        bytes
    }
    fn decode(bytes: &[u8]) -> Result<Header> {
        Header::decode(Fields::new("qcow2 header", Offset::new(0), bytes))
    }

    #[test]
    fn versions_and_limits() {
        assert_eq!(decode(&header(2)).unwrap().end, 72);
        assert_eq!(decode(&header(3)).unwrap().end, 112);
        assert!(matches!(decode(&header(1)), Err(Error::Unsupported(_))));
        for (at, value) in [(20, 8u32), (20, 22), (36, 1), (36, 1 << 23), (100, 103), (100, 1 << 17)] {
            let mut bytes = header(3);
            bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
            assert!(matches!(decode(&bytes), Err(Error::Corrupt { .. })), "{at} {value}");
        }
        let mut bytes = header(3);
        bytes[79] = 0x20;
        assert!(matches!(decode(&bytes), Err(Error::Unsupported(_))));
    }

    #[test]
    fn compressed_entries_of_the_specification() {
        // 64 KiB clusters: 54 bits of offset, 8 of sectors.
        assert_eq!(packed(PACKED | 3 << 54 | 0x5_0010, 16), (0x5_0010, 4 * 512 - 0x10));
        assert_eq!(packed(PACKED | 0x200, 9), (0x200, 512));
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..600), entry in any::<u64>(), bits in 9u32..22) {
            let mut head = header(3);
            head.truncate(bytes.len());
            head.iter_mut().zip(&bytes).skip(8).for_each(|(a, b)| *a ^= b & b.rotate_left(3) & b.rotate_left(5));
            let _ = decode(&head);
            let _ = Extensions::decode(Fields::new("qcow2 header extension", Offset::new(0), &bytes));
            let _ = SnapshotHead::decode(&Fields::new("qcow2 snapshot", Offset::new(0), &bytes));
            packed(entry, bits);
        }
    }
}
