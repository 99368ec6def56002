//! A FAT volume as the tests see it, apart from the program's own reader: where its units are and which are free. Also
//! places a file on one in a given pattern of fragments, which no real tool does on request; `fsck.fat` judges what it
//! made.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::Noise;

/// The geometry of a volume. Offsets are bytes of the file that it lies in.
#[derive(Clone, Debug)]
pub struct Fat {
    /// Where the volume begins.
    pub base: u64,
    /// Bytes of a sector.
    pub sector: u64,
    /// Bytes of a cluster.
    pub cluster: u64,
    /// 12, 16 or 32.
    pub width: u32,
    /// Number of FATs.
    pub fats: u64,
    /// First FAT.
    pub fat_at: u64,
    /// Bytes of one FAT.
    pub fat_len: u64,
    /// The fixed root directory (FAT12, FAT16).
    pub root_at: u64,
    /// First cluster of the root directory (FAT32).
    pub root_cluster: u32,
    /// Where cluster 2 begins.
    pub data_at: u64,
    /// Number of data clusters.
    pub clusters: u32,
    /// The file system information sector (FAT32), 0 where there is none.
    pub info_at: u64,
    /// End of the volume.
    pub end: u64,
}

fn u16_at(b: &[u8], at: usize) -> u64 {
    u64::from(u16::from_le_bytes([b[at], b[at + 1]]))
}

fn u32_at(b: &[u8], at: usize) -> u64 {
    u64::from(u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]))
}

fn read(file: &File, at: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    file.read_exact_at(&mut bytes, at).unwrap();
    bytes
}

impl Fat {
    /// Reads the boot sector at `base`.
    #[track_caller]
    pub fn open(path: &Path, base: u64) -> Self {
        let file = File::open(path).unwrap();
        let b = read(&file, base, 512);
        let sector = u16_at(&b, 11);
        assert!(matches!(sector, 512..=4096), "{}: not a FAT boot sector at {base}", path.display());
        let (reserved, fats, root_entries) = (u16_at(&b, 14), u64::from(b[16]), u16_at(&b, 17));
        let pick = |small: u64, large: u64| if small != 0 { small } else { large };
        let fat_sectors = pick(u16_at(&b, 22), u32_at(&b, 36));
        let total = pick(u16_at(&b, 19), u32_at(&b, 32));
        let root_sectors = (root_entries * 32).div_ceil(sector);
        let data_sector = reserved + fats * fat_sectors + root_sectors;
        let clusters = (total - data_sector) / u64::from(b[13]);
        let width = match clusters {
            0..4085 => 12,
            4085..65525 => 16,
            _ => 32,
        };
        Self {
            base,
            sector,
            cluster: sector * u64::from(b[13]),
            width,
            fats,
            fat_at: base + reserved * sector,
            fat_len: fat_sectors * sector,
            root_at: base + (reserved + fats * fat_sectors) * sector,
            root_cluster: if width == 32 { u32_at(&b, 44) as u32 } else { 0 },
            data_at: base + data_sector * sector,
            clusters: u32::try_from(clusters).unwrap(),
            info_at: if width == 32 { base + u16_at(&b, 48) * sector } else { 0 },
            end: base + total * sector,
        }
    }
    /// Where a cluster begins.
    pub fn at(&self, cluster: u32) -> u64 {
        self.data_at + u64::from(cluster - 2) * self.cluster
    }
    /// The entries of a FAT, without the top four bits of FAT32.
    pub fn table(&self, path: &Path, which: u64) -> Vec<u32> {
        let b = read(&File::open(path).unwrap(), self.fat_at + which * self.fat_len, self.fat_len);
        (0..self.clusters as usize + 2)
            .map(|i| match self.width {
                12 => {
                    let pair = u16_at(&b, i + i / 2) as u32;
                    if i % 2 == 0 { pair & 0xFFF } else { pair >> 4 }
                }
                16 => u16_at(&b, i * 2) as u32,
                _ => u32_at(&b, i * 4) as u32 & 0x0FFF_FFFF,
            })
            .collect()
    }
    /// Ranges of the file that belong to the volume and whose bytes matter: everything but the free clusters.
    pub fn in_use(&self, path: &Path) -> Vec<(u64, u64)> {
        let mut ranges = vec![(self.base, self.data_at - self.base)];
        for (i, &entry) in self.table(path, 0).iter().enumerate().skip(2) {
            if entry != 0 {
                let at = self.at(i as u32);
                match ranges.last_mut() {
                    Some((from, len)) if *from + *len == at => *len += self.cluster,
                    _ => ranges.push((at, self.cluster)),
                }
            }
        }
        let last = self.data_at + u64::from(self.clusters) * self.cluster;
        if last < self.end {
            ranges.push((last, self.end - last));
        }
        ranges
    }
    /// Number of free clusters by the first FAT.
    pub fn free(&self, path: &Path) -> u32 {
        self.table(path, 0).iter().skip(2).filter(|e| **e == 0).count() as u32
    }
    fn store(&self, file: &File, table: &[u32]) {
        for which in 0..self.fats {
            let at = self.fat_at + which * self.fat_len;
            let mut b = read(file, at, self.fat_len);
            for (i, &entry) in table.iter().enumerate() {
                match self.width {
                    12 => {
                        let (p, old) = (i + i / 2, u16_at(&b, i + i / 2) as u16);
                        let new =
                            if i % 2 == 0 { old & 0xF000 | entry as u16 } else { old & 0x000F | (entry as u16) << 4 };
                        b[p..p + 2].copy_from_slice(&new.to_le_bytes());
                    }
                    16 => b[i * 2..i * 2 + 2].copy_from_slice(&(entry as u16).to_le_bytes()),
                    _ => {
                        let new = u32_at(&b, i * 4) as u32 & 0xF000_0000 | entry;
                        b[i * 4..i * 4 + 4].copy_from_slice(&new.to_le_bytes());
                    }
                }
            }
            file.write_all_at(&b, at).unwrap();
        }
        if self.info_at != 0 {
            let free = table.iter().skip(2).filter(|e| **e == 0).count() as u32;
            file.write_all_at(&free.to_le_bytes(), self.info_at + 0x1E8).unwrap();
        }
    }
    /// Puts the file `from` into the root directory as `name` (8.3, upper case), in about `fragments` runs, in an order
    /// of their own (in one piece, when 1). Holes of `from` stay holes of the host's file. Gives the first cluster.
    #[track_caller]
    pub fn place(&self, path: &Path, from: &Path, name: &str, fragments: u64) -> u32 {
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let source = File::open(from).unwrap();
        let size = source.metadata().unwrap().len();
        let need = size.div_ceil(self.cluster);
        let mut table = self.table(path, 0);
        let free: Vec<u32> = (2..table.len() as u32).filter(|i| table[*i as usize] == 0).collect();
        assert!(free.len() as u64 > need + fragments, "the host is too small for the test's image");
        // Runs of about equal length with a free cluster between them, in shuffled order.
        let mut noise = Noise::new(fragments);
        let run = need.div_ceil(fragments).max(1) as usize;
        let mut runs: Vec<Vec<u32>> = Vec::new();
        let whole =
            |i: &usize| free.get(i + need as usize - 1).is_some_and(|last| *last as u64 == free[*i] as u64 + need - 1);
        let first = if fragments == 1 { (0..free.len()).find(whole).expect("room in one piece") } else { 0 };
        let (mut left, mut i) = (need as usize, first);
        while left > 0 {
            let n = run.min(left);
            runs.push(free[i..i + n].to_vec());
            i += n + usize::from(fragments > 1);
            left -= n;
        }
        if fragments > 1 {
            for i in (1..runs.len()).rev() {
                runs.swap(i, noise.below(i as u64 + 1) as usize);
            }
        }
        let chain: Vec<u32> = runs.concat();
        let end = if self.width == 32 { 0x0FFF_FFFF } else { (1 << self.width) - 1 };
        for (i, &c) in chain.iter().enumerate() {
            table[c as usize] = chain.get(i + 1).copied().unwrap_or(end);
        }
        self.store(&file, &table);
        for (at, len) in data_ranges(&source, 0, size) {
            let mut pos = at / self.cluster * self.cluster;
            while pos < at + len {
                let n = self.cluster.min(size - pos);
                file.write_all_at(&read(&source, pos, n), self.at(chain[(pos / self.cluster) as usize])).unwrap();
                pos += self.cluster;
            }
        }
        // A plain 8.3 entry in the first free slot of the root directory.
        let (stem, extension) = name.split_once('.').unwrap_or((name, ""));
        let mut entry = [0_u8; 32];
        entry[..11].copy_from_slice(format!("{stem:<8}{extension:<3}").as_bytes());
        entry[11] = 0x20;
        let date = 46_u16 << 9 | 3 << 5 | 14;
        for at in [16, 18, 24] {
            entry[at..at + 2].copy_from_slice(&date.to_le_bytes());
        }
        let first = chain.first().copied().unwrap_or(0);
        entry[20..22].copy_from_slice(&((first >> 16) as u16).to_le_bytes());
        entry[26..28].copy_from_slice(&(first as u16).to_le_bytes());
        entry[28..32].copy_from_slice(&u32::try_from(size).expect("a FAT file has less than 4 GiB").to_le_bytes());
        let (root, len) = match self.width {
            32 => (self.at(self.root_cluster), self.cluster),
            _ => (self.root_at, self.data_at - self.root_at),
        };
        let slots = read(&file, root, len);
        let slot = slots.chunks(32).position(|s| s[0] == 0).expect("a free slot in the root directory") as u64;
        file.write_all_at(&entry, root + slot * 32).unwrap();
        first
    }
}

/// The ranges of `file` from `at` on that may hold anything but zeros.
pub fn data_ranges(file: &File, at: u64, len: u64) -> Vec<(u64, u64)> {
    use rustix::fs::{SeekFrom, seek};
    let (mut ranges, mut pos, end) = (Vec::new(), at, at + len);
    while pos < end {
        let Ok(from) = seek(file, SeekFrom::Data(pos)) else { break };
        if from >= end {
            break;
        }
        let to = seek(file, SeekFrom::Hole(from)).unwrap().min(end);
        ranges.push((from, to - from));
        pos = to;
    }
    ranges
}

/// The first byte of `ranges` in which two files differ. Where both have holes nothing is read.
pub fn first_difference(a: &Path, b: &Path, ranges: &[(u64, u64)]) -> Option<u64> {
    let (a, b) = (File::open(a).unwrap(), File::open(b).unwrap());
    for &(at, len) in ranges {
        for (from, n) in data_ranges(&a, at, len).into_iter().chain(data_ranges(&b, at, len)) {
            let mut pos = from;
            while pos < from + n {
                let step = (from + n - pos).min(1 << 20);
                let (x, y) = (read(&a, pos, step), read(&b, pos, step));
                if x != y {
                    return Some(pos + x.iter().zip(&y).position(|(x, y)| x != y).unwrap() as u64);
                }
                pos += step;
            }
        }
    }
    None
}
