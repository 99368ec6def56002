//! Inodes.
//!
//! Source: the kernel's "ext4 Data Structures and Algorithms", section "Index Nodes".

use super::checksum::crc32c;
use super::superblock::{Superblock, incompat, ro_compat};
use crate::bytes::{Fields, put};
use crate::error::Result;
use crate::extent::{Offset, Volume};
use crate::fs::{Kind, TimeUnit, Times, Timestamp};

/// The root directory's inode.
pub const ROOT: u32 = 2;

/// The inode that owns the blocks kept for the growth of the descriptor table.
pub const RESIZE: u32 = 7;

/// Inode flags.
pub mod flags {
    /// Can't be changed.
    pub const IMMUTABLE: u32 = 0x10;
    /// Can only be appended to.
    pub const APPEND: u32 = 0x20;
    /// Compressed (by a patch that the kernel never had).
    pub const COMPRESSED: u32 = 0x4;
    /// Encrypted.
    pub const ENCRYPT: u32 = 0x800;
    /// The directory has a hash index.
    pub const INDEX: u32 = 0x1000;
    /// The block count is in file system blocks.
    pub const HUGE_FILE: u32 = 0x4_0000;
    /// The block map is an extent tree.
    pub const EXTENTS: u32 = 0x8_0000;
    /// Has verity data behind its end.
    pub const VERITY: u32 = 0x10_0000;
    /// Holds a value of an extended attribute.
    pub const EA_INODE: u32 = 0x20_0000;
    /// The directory ignores case.
    pub const CASEFOLD: u32 = 0x4000_0000;
    /// The contents lie in the inode.
    pub const INLINE_DATA: u32 = 0x1000_0000;
}

/// One inode, decoded: all but what lies behind its fixed fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Type and permissions.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of contents.
    pub size: u64,
    /// Names that lead to it.
    pub links: u16,
    /// When it was deleted; the next orphan while it is one.
    pub deleted: u32,
    /// Room taken, in 512-byte units, or blocks with [`flags::HUGE_FILE`].
    pub blocks: u64,
    /// [`flags`].
    pub flags: u32,
    /// The block map, the extent tree's root, a short link's target, or the start of inline contents.
    pub block: [u8; 60],
    /// Generation.
    pub generation: u32,
    /// Block of extended attributes; 0 for none.
    pub xattr_block: u64,
    /// Bytes beyond the first 128 that have fixed fields.
    pub extra: u16,
    /// Times.
    pub times: Times,
    /// Whether its checksum is right, or none is kept.
    pub intact: bool,
}

fn time(f: &Fields<'_, Volume>, at: usize, more: Option<usize>) -> Result<Timestamp> {
    let secs = i64::from(f.u32(at)?.cast_signed());
    Ok(match more {
        None => Timestamp { secs, nanos: 0, unit: TimeUnit::Second },
        Some(more) => {
            let extra = f.u32(more)?;
            let secs = secs.saturating_add(i64::from(extra & 3) << 32);
            Timestamp { secs, nanos: (extra >> 2).min(999_999_999), unit: TimeUnit::Nano }
        }
    })
}

/// A time's seconds, and its fraction with the seconds' two upper bits.
fn stamp(t: Option<Timestamp>) -> [[u8; 4]; 2] {
    let t = t.unwrap_or_default();
    let low = (t.secs & 0xffff_ffff) as u32;
    // The upper bits say how far the time is from what the lower 32, as a signed number, say.
    let epoch = (t.secs.saturating_sub(low.cast_signed().into()) >> 32) & 3;
    [low.to_le_bytes(), (t.nanos << 2 | epoch as u32).to_le_bytes()]
}

impl Inode {
    /// One of no type, without contents.
    pub fn empty() -> Self {
        Self {
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            links: 0,
            deleted: 0,
            blocks: 0,
            flags: 0,
            block: [0; 60],
            generation: 0,
            xattr_block: 0,
            extra: 0,
            times: Times::default(),
            intact: true,
        }
    }
    /// Decodes inode `number` from its bytes at `at`.
    ///
    /// # Errors
    /// [`crate::error::Error::Corrupt`] where the bytes are too few.
    pub fn decode(s: &Superblock, number: u32, at: Offset<Volume>, bytes: &[u8]) -> Result<Self> {
        let f = Fields::new("ext inode", at, bytes);
        let room = bytes.len().saturating_sub(128);
        let claimed = if bytes.len() > 128 { f.u16(0x80)? } else { 0 };
        // A size that can't be is taken for none, so that no field is read out of what may be attributes.
        let extra = if usize::from(claimed) <= room && claimed.is_multiple_of(4) { claimed } else { 0 };
        let has = |at: usize| at.saturating_add(4) <= usize::from(extra).saturating_add(128);
        let more = |at: usize| has(at).then_some(at);
        let mode = f.u16(0)?;
        let mut size = u64::from(f.u32(4)?);
        let regular = mode & 0xf000 == 0x8000;
        if regular || s.has(incompat::LARGEDIR) && mode & 0xf000 == 0x4000 {
            size |= u64::from(f.u32(0x6c)?) << 32;
        }
        let mut blocks = u64::from(f.u32(0x1c)?);
        if s.has_ro(ro_compat::HUGE_FILE) {
            blocks |= u64::from(f.u16(0x74)?) << 32;
        }
        let intact = !s.metadata_csum() || Self::sum_in(bytes, extra) == Some(Self::checksum(s, number, bytes, extra));
        Ok(Self {
            mode,
            uid: u32::from(f.u16(2)?) | u32::from(f.u16(0x78)?) << 16,
            gid: u32::from(f.u16(0x18)?) | u32::from(f.u16(0x7a)?) << 16,
            size,
            links: f.u16(0x1a)?,
            deleted: f.u32(0x14)?,
            blocks,
            flags: f.u32(0x20)?,
            block: f.array(0x28)?,
            generation: f.u32(0x64)?,
            xattr_block: u64::from(f.u32(0x68)?) | if s.has(incompat::B64) { u64::from(f.u16(0x76)?) << 32 } else { 0 },
            extra,
            times: Times {
                modified: Some(time(&f, 0x10, more(0x88))?),
                accessed: Some(time(&f, 0x8, more(0x8c))?),
                changed: Some(time(&f, 0xc, more(0x84))?),
                created: if has(0x90) { Some(time(&f, 0x90, more(0x94))?) } else { None },
            },
            intact,
        })
    }
    /// The seed of the checksums of an inode and of its blocks.
    pub fn seed(s: &Superblock, number: u32, generation: u32) -> u32 {
        let both = u64::from(number) | u64::from(generation) << 32;
        crc32c(s.seed, &both.to_le_bytes())
    }
    /// The seed of this inode's blocks.
    pub fn own_seed(&self, s: &Superblock, number: u32) -> u32 {
        Self::seed(s, number, self.generation)
    }
    /// The checksum of an inode's bytes with the two fields of it as zeros; 16 bits of it where there is no room for more.
    pub fn checksum(s: &Superblock, number: u32, bytes: &[u8], extra: u16) -> u32 {
        let generation = bytes.get(0x64..0x68).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
        let seed = Self::seed(s, number, generation);
        let wide = bytes.len() > 128 && extra >= 4;
        // In one piece, with zeros for the sum itself, as far as inodes usually reach.
        let (head, rest) = bytes.split_at(bytes.len().min(256));
        let mut copy = [0u8; 256];
        let _fits =
            put(&mut copy, 0, head) && put(&mut copy, 0x7c, &[0; 2]) && (!wide || put(&mut copy, 0x82, &[0; 2]));
        let sum = crc32c(crc32c(seed, copy.get(..head.len()).unwrap_or_default()), rest);
        if wide { sum } else { sum & 0xffff }
    }
    fn sum_in(bytes: &[u8], extra: u16) -> Option<u32> {
        let half = |at: usize| -> Option<u32> {
            Some(u16::from_le_bytes(bytes.get(at..at.saturating_add(2))?.try_into().ok()?).into())
        };
        Some(half(0x7c)? | if extra >= 4 && bytes.len() > 128 { half(0x82)? << 16 } else { 0 })
    }
    /// Writes the checksum into an inode's bytes. Returns whether there was room.
    #[must_use]
    pub fn seal(s: &Superblock, number: u32, bytes: &mut [u8], extra: u16) -> bool {
        if !s.metadata_csum() {
            return true;
        }
        let [a, b, c, d] = Self::checksum(s, number, bytes, extra).to_le_bytes();
        let low = put(bytes, 0x7c, &[a, b]);
        low && (extra < 4 || bytes.len() <= 128 || put(bytes, 0x82, &[c, d]))
    }
    /// Encodes it into the bytes of an inode, without what lies behind its fixed fields and without a checksum; `extra`
    /// and `generation` are its own. None where the inode's size has no room for it.
    pub fn encode(&self, s: &Superblock) -> Option<Vec<u8>> {
        let mut out = vec![0; s.inode_size.into()];
        let [a0, a1] = stamp(self.times.accessed);
        let [c0, c1] = stamp(self.times.changed);
        let [m0, m1] = stamp(self.times.modified);
        let [b0, b1] = stamp(self.times.created);
        let high = |n: u64, shift: u32| ((n >> shift) & 0xffff) as u16;
        let low = |n: u64| ((n & 0xffff_ffff) as u32).to_le_bytes();
        let mut fits = true;
        for (at, word) in [
            (4usize, low(self.size)),
            (8, a0),
            (0xc, c0),
            (0x10, m0),
            (0x14, self.deleted.to_le_bytes()),
            (0x1c, low(self.blocks)),
            (0x20, self.flags.to_le_bytes()),
            (0x64, self.generation.to_le_bytes()),
            (0x68, low(self.xattr_block)),
            (0x6c, low(self.size >> 32)),
        ] {
            fits &= put(&mut out, at, &word);
        }
        for (at, half) in [
            (0usize, self.mode),
            (2, high(self.uid.into(), 0)),
            (0x18, high(self.gid.into(), 0)),
            (0x1a, self.links),
            (0x74, high(self.blocks, 32)),
            (0x76, high(self.xattr_block, 32)),
            (0x78, high(self.uid.into(), 16)),
            (0x7a, high(self.gid.into(), 16)),
        ] {
            fits &= put(&mut out, at, &half.to_le_bytes());
        }
        fits &= put(&mut out, 0x28, &self.block);
        if s.inode_size > 128 {
            fits &= put(&mut out, 0x80, &self.extra.to_le_bytes());
            for (at, word) in [(0x84usize, c1), (0x88, m1), (0x8c, a1), (0x90, b0), (0x94, b1)] {
                if at.saturating_add(4) <= usize::from(self.extra).saturating_add(128) {
                    fits &= put(&mut out, at, &word);
                }
            }
        }
        fits.then_some(out)
    }
    /// A time as an inode of this volume keeps it: within the seconds that it has bits for, with or without a fraction.
    pub fn kept(s: &Superblock, t: Timestamp) -> Timestamp {
        let low = i64::from(i32::MIN);
        if s.inode_size > 128 {
            return Timestamp {
                secs: t.secs.clamp(low, low.saturating_add((1 << 34) - 1)),
                nanos: t.nanos,
                unit: TimeUnit::Nano,
            };
        }
        Timestamp { secs: t.secs.clamp(low, i32::MAX.into()), nanos: 0, unit: TimeUnit::Second }
    }
    /// The 60 bytes for a device's numbers: the old form where they fit into it.
    pub fn device(major: u32, minor: u32) -> [u8; 60] {
        let mut out = [0; 60];
        let old = major < 256 && minor < 256;
        let word = if old { major << 8 | minor } else { minor & 0xff | major << 8 | (minor & !0xff) << 12 };
        let _fits = put(&mut out, if old { 0 } else { 4 }, &word.to_le_bytes());
        out
    }
    /// What it is; none for a type that does not exist.
    pub fn kind(&self) -> Option<Kind> {
        let word = |at: usize| -> u32 {
            let bytes = self.block.get(at..at.saturating_add(4)).and_then(|b| b.try_into().ok());
            bytes.map_or(0, u32::from_le_bytes)
        };
        // Device numbers: the old form of 16 bits in the first word, else the new one in the second.
        let (old, new) = (word(0), word(4));
        let (major, minor) = if old != 0 {
            (old >> 8 & 0xff, old & 0xff)
        } else {
            (new >> 8 & 0xfff, new & 0xff | new >> 12 & 0xf_ff00)
        };
        Some(match self.mode & 0xf000 {
            0x1000 => Kind::Fifo,
            0x2000 => Kind::CharDevice(major, minor),
            0x4000 => Kind::Dir,
            0x6000 => Kind::BlockDevice(major, minor),
            0x8000 => Kind::File,
            0xa000 => Kind::Symlink,
            0xc000 => Kind::Socket,
            _ => return None,
        })
    }
    /// Whether a flag of [`flags`] is set.
    pub fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
    /// Whether it is a link whose target is in [`block`](Self::block).
    pub fn fast_link(&self, s: &Superblock) -> bool {
        if self.mode & 0xf000 != 0xa000 || self.has(flags::INLINE_DATA) || self.size >= 60 {
            return false;
        }
        if s.has(incompat::EA_INODE) {
            return self.size > 0;
        }
        let own = if self.xattr_block == 0 { 0 } else { u64::from(s.block).saturating_mul(s.ratio.into()) >> 9 };
        self.blocks.saturating_sub(own) == 0 || self.has(flags::HUGE_FILE)
    }
}
