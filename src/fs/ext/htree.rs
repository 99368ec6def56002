//! Hash indexes of directories: the hashes of names, and blocks of an index built in bulk.
//!
//! Source: the kernel's "ext4 Data Structures and Algorithms", section "Hash Tree Directories".

use super::checksum::crc32c;
use super::dir;
use super::superblock::Superblock;
use crate::bytes::put;

/// Which function, and whether names' bytes count as signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hasher {
    /// 0 legacy, 1 half MD4, 2 TEA: the version that the root of an index has.
    pub version: u8,
    /// Whether bytes above 0x7F are taken for negative numbers.
    pub signed: bool,
    /// The volume's seed.
    pub seed: [u32; 4],
}

/// The highest hash; it marks the end.
const END: u32 = 0x7fff_ffff << 1;

impl Hasher {
    /// The volume's default; none where it is one that is not known.
    pub fn of(s: &Superblock) -> Option<Self> {
        // Without a flag the bytes are as on x86, where char is signed.
        (s.hash_version <= 2).then_some(Self { version: s.hash_version, signed: s.flags & 2 == 0, seed: s.hash_seed })
    }
    /// The hash of a name.
    pub fn hash(&self, name: &[u8]) -> u32 {
        let mut buf = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
        if self.seed.iter().any(|w| *w != 0) {
            buf = self.seed;
        }
        let hash = match self.version {
            1 => {
                let mut rest = name;
                while !rest.is_empty() {
                    half_md4(&mut buf, &self.words::<8>(rest));
                    rest = rest.get(32..).unwrap_or_default();
                }
                buf[1]
            }
            2 => {
                let mut rest = name;
                while !rest.is_empty() {
                    tea(&mut buf, &self.words::<4>(rest));
                    rest = rest.get(16..).unwrap_or_default();
                }
                buf[0]
            }
            _ => self.legacy(name),
        } & !1;
        if hash == END { (0x7fff_ffff - 1) << 1 } else { hash }
    }
    fn byte(&self, b: u8) -> u32 {
        if self.signed { i32::from(b.cast_signed()).cast_unsigned() } else { b.into() }
    }
    /// The first `4 * N` bytes of a name as words, most significant byte first, padded with its length.
    fn words<const N: usize>(&self, name: &[u8]) -> [u32; N] {
        let len = u32::try_from(name.len()).unwrap_or(0);
        let pad = len | len << 8;
        let pad = pad | pad << 16;
        let mut out = [pad; N];
        for (word, bytes) in out.iter_mut().zip(name.chunks(4)) {
            *word = bytes.iter().fold(pad, |w, b| (w << 8).wrapping_add(self.byte(*b)));
        }
        out
    }
    fn legacy(&self, name: &[u8]) -> u32 {
        let (mut a, mut b) = (0x12a3_fe2du32, 0x37ab_e8f9u32);
        for byte in name {
            let mut hash = b.wrapping_add(a ^ self.byte(*byte).wrapping_mul(7_152_373));
            if hash & 0x8000_0000 != 0 {
                hash = hash.wrapping_sub(0x7fff_ffff);
            }
            b = a;
            a = hash;
        }
        a << 1
    }
}

/// The compression function of MD4 cut to three rounds of eight steps.
fn half_md4(buf: &mut [u32; 4], x: &[u32; 8]) {
    const ROUNDS: [(u32, [usize; 8], [u32; 4]); 3] = [
        (0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]),
        (0x5a82_7999, [1, 3, 5, 7, 0, 2, 4, 6], [3, 5, 9, 13]),
        (0x6ed9_eba1, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]),
    ];
    let [mut a, mut b, mut c, mut d] = *buf;
    for (round, (key, order, shifts)) in ROUNDS.iter().enumerate() {
        for (at, shift) in order.iter().zip(shifts.iter().cycle()) {
            let f = match round {
                0 => d ^ (b & (c ^ d)),
                1 => (b & c).wrapping_add((b ^ c) & d),
                _ => b ^ c ^ d,
            };
            let word = x.get(*at).copied().unwrap_or_default();
            let sum = a.wrapping_add(f).wrapping_add(word).wrapping_add(*key);
            (a, d, c, b) = (d, c, b, sum.rotate_left(*shift));
        }
    }
    for (slot, value) in buf.iter_mut().zip([a, b, c, d]) {
        *slot = slot.wrapping_add(value);
    }
}

/// Sixteen rounds of the Tiny Encryption Algorithm.
fn tea(buf: &mut [u32; 4], key: &[u32; 4]) {
    let [mut x, mut y, ..] = *buf;
    let [a, b, c, d] = *key;
    let mut sum = 0u32;
    for _ in 0..16 {
        sum = sum.wrapping_add(0x9e37_79b9);
        x = x.wrapping_add((y << 4).wrapping_add(a) ^ y.wrapping_add(sum) ^ (y >> 5).wrapping_add(b));
        y = y.wrapping_add((x << 4).wrapping_add(c) ^ x.wrapping_add(sum) ^ (x >> 5).wrapping_add(d));
    }
    buf[0] = buf[0].wrapping_add(x);
    buf[1] = buf[1].wrapping_add(y);
}

/// Where a directory's blocks belong, and how they are sealed.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Bytes of a block.
    pub block: usize,
    /// Seed of the directory's checksums; none where none are kept.
    pub seed: Option<u32>,
    /// Whether indexes may have three levels.
    pub large: bool,
}

impl Shape {
    fn tail(&self) -> usize {
        if self.seed.is_some() { 8 } else { 0 }
    }
    /// Entries that an index block can have: the root, whose table begins at 32, or a node, whose at 8.
    pub fn limit(&self, table: usize) -> usize {
        self.block.saturating_sub(table).saturating_sub(self.tail()) / 8
    }
    /// Writes the table of an index block: where each child begins by hash (of the first it is not stored), and its
    /// block of the directory; then its checksum. Returns whether there was room.
    #[must_use]
    fn table(&self, block: &mut [u8], table: usize, children: &[(u32, u32)]) -> bool {
        let limit = self.limit(table);
        let (Ok(count), Ok(most)) = (u16::try_from(children.len()), u16::try_from(limit)) else { return false };
        let mut fits = count <= most;
        for (n, (hash, child)) in children.iter().enumerate() {
            let at = table.saturating_add(n.saturating_mul(8));
            fits &= put(block, at, &hash.to_le_bytes()) && put(block, at.saturating_add(4), &child.to_le_bytes());
        }
        fits &= put(block, table, &most.to_le_bytes()) && put(block, table.saturating_add(2), &count.to_le_bytes());
        if let Some(seed) = self.seed {
            let used = table.saturating_add(children.len().saturating_mul(8));
            let tail = table.saturating_add(limit.saturating_mul(8));
            let sum = crc32c(crc32c(seed, block.get(..used).unwrap_or_default()), &[0; 8]);
            fits &= put(block, tail, &[0; 4]) && put(block, tail.saturating_add(4), &sum.to_le_bytes());
        }
        fits
    }

    /// The blocks of an index over leaves that begin with these hashes, which are the directory's last blocks, in order.
    /// The root comes first, then the levels below it, each in order. None where the leaves are too many for an index.
    pub fn index(&self, hasher: &Hasher, own: u32, parent: u32, leaves: &[u32]) -> Option<Vec<Vec<u8>>> {
        // Nodes of each level, from the leaves' parents upwards, until the root has room for the rest.
        let (root, node) = (self.limit(32), self.limit(8));
        let mut levels: Vec<usize> = Vec::new();
        let mut width = leaves.len();
        while width > root {
            width = width.div_ceil(node);
            levels.push(width);
        }
        let deepest = if self.large { 2 } else { 1 };
        if levels.len() > deepest {
            return None;
        }
        let nodes: usize = levels.iter().sum();
        let first_leaf = nodes.checked_add(1)?;
        // The blocks of the level at hand, and of the one above it.
        let mut children: Vec<(u32, u32)> = Vec::with_capacity(leaves.len());
        for (n, hash) in leaves.iter().enumerate() {
            children.push((*hash, u32::try_from(first_leaf.checked_add(n)?).ok()?));
        }
        let mut out: Vec<Vec<u8>> = vec![Vec::new(); first_leaf];
        let mut end = first_leaf;
        for width in &levels {
            end = end.checked_sub(*width)?;
            let mut above = Vec::with_capacity(*width);
            // As even as can be, so that no node is nearly empty.
            let (each, more) = (children.len().checked_div(*width)?, children.len().checked_rem(*width)?);
            let mut rest = children.as_slice();
            for n in 0..*width {
                let (now, later) = rest.split_at_checked(each.checked_add(usize::from(n < more))?)?;
                rest = later;
                let at = end.checked_add(n)?;
                let mut block = vec![0; self.block];
                // What looks like one empty entry as long as the block.
                let fits =
                    put(&mut block, 4, &dir::rec_len(self.block).to_le_bytes()) && self.table(&mut block, 8, now);
                above.push((now.first()?.0, u32::try_from(at).ok()?));
                *out.get_mut(at)? = fits.then_some(block)?;
            }
            children = above;
        }
        let mut block = vec![0; self.block];
        let rest = self.block.checked_sub(12)?;
        let levels = u8::try_from(levels.len()).ok()?;
        let fits = put(&mut block, 0, &own.to_le_bytes())
            && put(&mut block, 4, &[12, 0, 1, 2, b'.'])
            && put(&mut block, 12, &parent.to_le_bytes())
            && put(&mut block, 16, &dir::rec_len(rest).to_le_bytes())
            && put(&mut block, 18, &[2, 2, b'.', b'.'])
            && put(&mut block, 0x18, &[0, 0, 0, 0, hasher.version, 8, levels, 0])
            && self.table(&mut block, 32, &children);
        *out.first_mut()? = fits.then_some(block)?;
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// `debugfs -R "dx_hash"` is the judge.
    #[test]
    fn hashes_are_those_of_debugfs() {
        let seed = [0x1234_5678, 0x9abc_def0, 0x0fed_cba9, 0x8765_4321];
        let uuid = "78563412-f0de-bc9a-a9cb-ed0f21436587";
        let names =
            ["a", "abc", "a rather long name that has more than thirty-two bytes", "exactly sixteen!", "größe 🦀"];
        for (version, word) in [(0, "legacy"), (1, "half_md4"), (2, "tea")] {
            for name in names {
                for (seed, uuid) in [(seed, Some(uuid)), ([0; 4], None)] {
                    let mut args = format!("dx_hash -h {word}");
                    if let Some(uuid) = uuid {
                        args += &format!(" -s {uuid}");
                    }
                    let said = Command::new("debugfs").args(["-R", &format!("{args} \"{name}\"")]).output().unwrap();
                    let said = String::from_utf8_lossy(&said.stdout).into_owned();
                    let theirs = said.split("0x").nth(1).unwrap_or_else(|| panic!("{said}"));
                    let theirs = theirs.split(|c: char| !c.is_ascii_hexdigit()).next().unwrap();
                    let theirs = u32::from_str_radix(theirs, 16).unwrap();
                    let hash = |signed| Hasher { version, signed, seed }.hash(name.as_bytes());
                    // debugfs takes bytes as its own platform does.
                    assert!([hash(true), hash(false)].contains(&theirs), "{word} {name}: {theirs:#x}");
                    assert!(!name.is_ascii() || hash(true) == hash(false));
                }
            }
        }
    }
}
