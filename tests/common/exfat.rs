//! An exFAT volume as the tests see it, apart from the program's own reader: where its units are and which are free,
//! entry sets found and sealed. Also places a file on one in a given pattern of fragments, which no real tool does on
//! request; `fsck.exfat` judges what it made.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::Noise;
use super::fat::data_ranges;

/// The geometry of a volume. Offsets are bytes of the file that it lies in.
#[derive(Clone, Debug)]
pub struct ExFat {
    /// Where the volume begins.
    pub base: u64,
    /// Bytes of a cluster.
    pub cluster: u64,
    /// The table.
    pub fat_at: u64,
    /// Where cluster 2 begins.
    pub heap_at: u64,
    /// Number of clusters.
    pub clusters: u32,
    /// First cluster of the root directory.
    pub root: u32,
    /// The bitmap, which lies in one piece.
    pub bitmap_at: u64,
    /// End of the volume.
    pub end: u64,
}

/// A 32-bit number in bytes.
pub fn u32_in(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().unwrap())
}

fn read(file: &File, at: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    file.read_exact_at(&mut bytes, at).unwrap();
    bytes
}

/// The checksum of an entry set (section 6.3.3 of the specification).
pub fn set_checksum(set: &[u8]) -> u16 {
    let mut sum = 0u16;
    for (i, b) in set.iter().enumerate() {
        if i != 2 && i != 3 {
            sum = (if sum & 1 != 0 { 0x8000u16 } else { 0 }).wrapping_add(sum >> 1).wrapping_add(u16::from(*b));
        }
    }
    sum
}

/// The hash of a name of ASCII (section 7.6.4).
pub fn ascii_hash(name: &str) -> u16 {
    let mut hash = 0u16;
    for b in name.to_ascii_uppercase().encode_utf16().flat_map(u16::to_le_bytes) {
        hash = (if hash & 1 != 0 { 0x8000u16 } else { 0 }).wrapping_add(hash >> 1).wrapping_add(u16::from(b));
    }
    hash
}

/// Writes the checksum of the set that begins at `at`.
pub fn seal(bytes: &mut [u8], at: usize) {
    let len = (usize::from(bytes[at + 1]) + 1) * 32;
    let sum = set_checksum(&bytes[at..at + len]);
    bytes[at + 2..at + 4].copy_from_slice(&sum.to_le_bytes());
}

/// Where the entry set of the file with this name begins.
#[track_caller]
pub fn find_set(bytes: &[u8], name: &str) -> usize {
    let units: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let all = (0..bytes.len() - 96).step_by(32).filter(|at| bytes[*at] == 0x85 && bytes[at + 32] == 0xC0);
    let mut found = all.filter(|at| {
        let count = usize::from(bytes[at + 1]);
        let behind = bytes.get(at + 64..at + (count + 1) * 32).unwrap_or_default();
        let text: Vec<u8> = behind.chunks(32).filter(|e| e[0] == 0xC1).flat_map(|e| e[2..].to_vec()).collect();
        text.starts_with(&units) && usize::from(bytes[at + 35]) * 2 == units.len()
    });
    found.next().unwrap_or_else(|| panic!("no entry set of {name}"))
}

impl ExFat {
    /// Reads the boot sector at `base`.
    #[track_caller]
    pub fn open(path: &Path, base: u64) -> Self {
        let file = File::open(path).unwrap();
        let b = read(&file, base, 512);
        assert_eq!(&b[3..11], b"EXFAT   ", "{}: not an exFAT boot sector at {base}", path.display());
        let sector = 1u64 << b[0x6C];
        let cluster = sector << b[0x6D];
        let heap_at = base + u64::from(u32_in(&b, 0x58)) * sector;
        let root = u32_in(&b, 0x60);
        let at = |n: u32| heap_at + u64::from(n - 2) * cluster;
        let entries = read(&file, at(root), cluster);
        let bitmap = entries.chunks(32).find(|e| e[0] == 0x81).expect("a bitmap in the root");
        Self {
            base,
            cluster,
            fat_at: base + u64::from(u32_in(&b, 0x50)) * sector,
            heap_at,
            clusters: u32_in(&b, 0x5C),
            root,
            bitmap_at: at(u32_in(bitmap, 0x14)),
            end: base + u64::from_le_bytes(b[0x48..0x50].try_into().unwrap()) * sector,
        }
    }
    /// Where a cluster begins.
    pub fn at(&self, cluster: u32) -> u64 {
        self.heap_at + u64::from(cluster - 2) * self.cluster
    }
    /// The bitmap.
    pub fn bitmap(&self, path: &Path) -> Vec<u8> {
        read(&File::open(path).unwrap(), self.bitmap_at, u64::from(self.clusters).div_ceil(8))
    }
    /// Clusters that are free.
    pub fn free(&self, path: &Path) -> Vec<u32> {
        let bitmap = self.bitmap(path);
        (2..self.clusters + 2).filter(|n| bitmap[(n - 2) as usize / 8] >> ((n - 2) % 8) & 1 == 0).collect()
    }
    /// Ranges of the file that belong to the volume and whose bytes matter: everything but the free clusters.
    pub fn in_use(&self, path: &Path) -> Vec<(u64, u64)> {
        let bitmap = self.bitmap(path);
        let mut ranges = vec![(self.base, self.heap_at - self.base)];
        for n in (2..self.clusters + 2).filter(|n| bitmap[(n - 2) as usize / 8] >> ((n - 2) % 8) & 1 == 1) {
            match ranges.last_mut() {
                Some((from, len)) if *from + *len == self.at(n) => *len += self.cluster,
                _ => ranges.push((self.at(n), self.cluster)),
            }
        }
        let last = self.heap_at + u64::from(self.clusters) * self.cluster;
        if last < self.end {
            ranges.push((last, self.end - last));
        }
        ranges
    }
    /// Puts the file `from` into the root directory as `name` (ASCII, at most 15 characters), in about `fragments` runs, in an
    /// order of their own; with 1 in one piece and without a chain. Holes of `from` stay holes of the host's file.
    #[track_caller]
    pub fn place(&self, path: &Path, from: &Path, name: &str, fragments: u64) {
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let source = File::open(from).unwrap();
        let size = source.metadata().unwrap().len();
        let need = usize::try_from(size.div_ceil(self.cluster)).unwrap();
        let free = self.free(path);
        assert!(free.len() > need + fragments as usize, "the host is too small for the test's image");
        let run = need.div_ceil(fragments as usize).max(1);
        let whole =
            |i: &usize| free.get(i + need - 1).is_some_and(|last| *last as usize == free[*i] as usize + need - 1);
        let mut i = if fragments == 1 { (0..free.len()).find(whole).expect("room in one piece") } else { 0 };
        let (mut runs, mut left) = (Vec::new(), need);
        while left > 0 {
            let n = run.min(left);
            runs.push(free[i..i + n].to_vec());
            i += n + usize::from(fragments > 1);
            left -= n;
        }
        let mut noise = Noise::new(fragments);
        for i in (1..runs.len()).rev().filter(|_| fragments > 1) {
            runs.swap(i, noise.below(i as u64 + 1) as usize);
        }
        let chain = runs.concat();
        let mut bitmap = self.bitmap(path);
        for n in &chain {
            bitmap[(n - 2) as usize / 8] |= 1 << ((n - 2) % 8);
        }
        file.write_all_at(&bitmap, self.bitmap_at).unwrap();
        for (i, n) in chain.iter().enumerate().filter(|_| fragments > 1) {
            let next = chain.get(i + 1).copied().unwrap_or(u32::MAX);
            file.write_all_at(&next.to_le_bytes(), self.fat_at + u64::from(*n) * 4).unwrap();
        }
        for (at, len) in data_ranges(&source, 0, size) {
            let mut pos = at / self.cluster * self.cluster;
            while pos < at + len {
                let n = self.cluster.min(size - pos);
                file.write_all_at(&read(&source, pos, n), self.at(chain[(pos / self.cluster) as usize])).unwrap();
                pos += self.cluster;
            }
        }
        let mut set = [0u8; 96];
        let stamp = (46u32 << 25 | 3 << 21 | 14 << 16 | 12 << 11).to_le_bytes();
        (set[0], set[1], set[4]) = (0x85, 2, 0x20);
        for at in [8, 12, 16] {
            set[at..at + 4].copy_from_slice(&stamp);
        }
        set[22..25].fill(0x80);
        (set[32], set[33], set[35]) = (0xC0, if fragments == 1 { 3 } else { 1 }, name.len() as u8);
        set[36..38].copy_from_slice(&ascii_hash(name).to_le_bytes());
        set[40..48].copy_from_slice(&size.to_le_bytes());
        set[52..56].copy_from_slice(&chain[0].to_le_bytes());
        set[56..64].copy_from_slice(&size.to_le_bytes());
        set[64] = 0xC1;
        for (i, unit) in name.encode_utf16().enumerate() {
            set[66 + 2 * i..68 + 2 * i].copy_from_slice(&unit.to_le_bytes());
        }
        seal(&mut set, 0);
        // Into entries of the root directory that are free.
        let mut places = Vec::new();
        let mut n = self.root;
        while n != u32::MAX {
            places.extend((0..self.cluster / 32).map(|i| self.at(n) + i * 32));
            n = u32_in(&read(&file, self.fat_at + u64::from(n) * 4, 4), 0);
        }
        let free = |at: &u64| read(&file, *at, 1)[0] & 0x80 == 0;
        let slots = places.windows(3).find(|w| w.iter().all(free)).expect("free entries in the root directory");
        for (at, entry) in slots.iter().zip(set.chunks(32)) {
            file.write_all_at(entry, *at).unwrap();
        }
        // The part in use.
        let used: u64 = bitmap.iter().map(|b| u64::from(b.count_ones())).sum();
        file.write_all_at(&[(used * 100 / u64::from(self.clusters)) as u8], self.base + 0x70).unwrap();
    }
}
