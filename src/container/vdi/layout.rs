//! The header of a VDI. All numbers are little-endian.
//!
//! ```text
//!   0  text, 64 bytes        64  BEDA107F          68  version: 1.1 is 00010001
//!  72  bytes of header       76  type              80  flags            84  comment, 256 bytes
//! 340  place of block map   344  place of data    360  sector bytes    368  disk bytes u64
//! 376  block bytes          380  extra bytes      384  blocks          388  blocks allocated
//! 392  identity             408  last change      424  parent          440  parent's last change
//! ```

use crate::bytes::Fields;
use crate::error::{Error, Result};
use crate::extent::{Device, Offset};
use crate::guid::Guid;

/// Where the signature lies.
pub(super) const SIGN_AT: usize = 64;
/// The signature.
pub(super) const SIGN: [u8; 4] = 0xBEDA_107F_u32.to_le_bytes();
/// Bytes from the start that hold all fields.
pub(super) const HEADER: usize = 512;

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// 1 dynamic, 2 static, 3 undo, 4 differencing.
    pub(super) kind: u32,
    /// Where the block map lies: numbers of 32 bits.
    pub(super) map: u64,
    /// Where block 0 lies.
    pub(super) data: u64,
    /// Bytes of the disk.
    pub(super) size: u64,
    /// Bytes of a block's data.
    pub(super) block: u64,
    /// Bytes in front of each block's data.
    pub(super) extra: u64,
    /// Entries of the block map.
    pub(super) blocks: u32,
    /// The disk's identity.
    pub(super) id: Guid,
    /// Changes with each writer's session.
    pub(super) change: Guid,
    /// The parent's [`id`](Self::id); nil without one.
    pub(super) parent: Guid,
    /// The parent's [`change`](Self::change) when this was made.
    pub(super) parent_change: Guid,
}

/// What an entry of the block map says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// Never written: the parent's, or zeros.
    Absent,
    /// Discarded: zeros.
    Zero,
    /// The block of this number.
    At(u32),
}

impl Block {
    pub(super) fn decode(entry: u32) -> Self {
        match entry {
            0xFFFF_FFFF => Self::Absent,
            0xFFFF_FFFE => Self::Zero,
            at => Self::At(at),
        }
    }
}

impl Header {
    /// Decodes the first bytes of a file.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        let f = Fields::<Device>::new("VDI header", Offset::new(0), bytes);
        if f.array(SIGN_AT)? != SIGN {
            return Err(f.wrong(SIGN_AT, "the signature BEDA107F"));
        }
        let version = f.u32(68)?;
        if version >> 16 != 1 {
            return Err(Error::Unsupported(format!(
                "a VDI of version {}.{}: expected 1.x",
                version >> 16,
                version & 0xFFFF
            )));
        }
        let header = Self {
            kind: f.u32(76)?,
            map: f.u32(340)?.into(),
            data: f.u32(344)?.into(),
            size: f.u64(368)?,
            block: f.u32(376)?.into(),
            extra: f.u32(380)?.into(),
            blocks: f.u32(384)?,
            id: Guid(f.array(392)?),
            change: Guid(f.array(408)?),
            parent: Guid(f.array(424)?),
            parent_change: Guid(f.array(440)?),
        };
        if !(1..=4).contains(&header.kind) {
            return Err(f.wrong(76, format!("type 1, 2, 3 or 4, it is {}", header.kind)));
        }
        if !header.block.is_power_of_two() || header.block < 512 {
            return Err(
                f.wrong(376, format!("blocks of a power of two of at least 512 bytes, they have {}", header.block))
            );
        }
        let need = header.size.div_ceil(header.block);
        if u64::from(header.blocks) < need {
            return Err(f.wrong(
                384,
                format!("{need} blocks for a disk of {} bytes, there are {}", header.size, header.blocks),
            ));
        }
        Ok(header)
    }

    /// Where the data of the block of number `at` lies.
    pub(super) fn place(&self, at: u32) -> u64 {
        let step = self.block.saturating_add(self.extra);
        u64::from(at).saturating_mul(step).saturating_add(self.data).saturating_add(self.extra)
    }

    /// Whether blocks that were never written are another file's.
    pub(super) fn has_parent(&self) -> bool {
        matches!(self.kind, 3 | 4) || !self.parent.is_nil()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header as the table of fields above has it.
    fn header() -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes[64..68].copy_from_slice(&SIGN);
        for (at, value) in
            [(68, 0x10001u32), (72, 400), (76, 1), (340, 512), (344, 4096), (360, 512), (376, 1 << 20), (384, 3)]
        {
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        bytes[368..376].copy_from_slice(&(5u64 << 19).to_le_bytes());
        bytes
    }

    #[test]
    fn fields() {
        let got = Header::decode(&header()).unwrap();
        assert_eq!((got.kind, got.map, got.data, got.size, got.block, got.blocks), (1, 512, 4096, 5 << 19, 1 << 20, 3));
        assert_eq!(got.place(2), (2 << 20) + 4096);
        assert!(!got.has_parent());
        assert!(Header::decode(&[0; 512]).unwrap_err().to_string().contains("signature"));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (at, value, word) in
            [(76, 9u32, "type"), (376, 1000, "power of two"), (376, 0, "power"), (384, 2, "3 blocks")]
        {
            let mut bytes = header();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            let error = Header::decode(&bytes).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("VDI header"), "{error}");
        }
    }

    #[test]
    fn entries() {
        assert_eq!(Block::decode(u32::MAX), Block::Absent);
        assert_eq!(Block::decode(u32::MAX - 1), Block::Zero);
        assert_eq!(Block::decode(7), Block::At(7));
    }
}
