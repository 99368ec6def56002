//! VHDX files taken apart, and differencing disks made after \[MS-VHDX\] over a base that qemu wrote.

use std::fs;
use std::path::Path;

use super::ok;

const MIB: usize = 1 << 20;

pub fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// CRC-32C, bit by bit.
pub fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, b| {
        (0..8).fold(crc ^ u32::from(*b), |c, _| if c & 1 == 1 { c >> 1 ^ 0x82F6_3B78 } else { c >> 1 })
    })
}

/// Makes the checksum of a structure right, which is at its byte 4.
pub fn seal(bytes: &mut [u8]) {
    bytes[4..8].fill(0);
    let sum = crc32c(bytes);
    put(bytes, 4, &sum.to_le_bytes());
}

/// Where the region lies whose GUID begins with these bytes.
pub fn region(bytes: &[u8], first: u32) -> usize {
    let table = 192 << 10;
    let entries = u32_at(bytes, table + 8) as usize;
    let at = (0..entries).map(|n| table + 16 + n * 32).find(|at| u32_at(bytes, *at) == first).unwrap();
    u64_at(bytes, at + 16) as usize
}

pub fn bat(bytes: &[u8]) -> usize {
    region(bytes, 0x2DC2_7766)
}

/// The header that counts.
pub fn header(bytes: &[u8]) -> usize {
    [64 << 10, 128 << 10].into_iter().max_by_key(|at| u64_at(bytes, at + 8)).unwrap()
}

/// What a block of a child is.
#[derive(Clone)]
pub enum Block {
    Absent,
    Zero,
    Full(u8),
    /// Every so many sectors are here, with this byte.
    Partly(usize, u8),
    /// These sectors are here: number in the block, and bytes.
    Sectors(Vec<(usize, Vec<u8>)>),
}

/// A child over the VHDX at `base`, in blocks of 2 MiB. `unused` fills what is the parent's in blocks that are partly here.
pub fn child(base: &Path, path: &Path, id: u8, size: u64, blocks: &[Block], unused: u8) {
    const BLOCK: usize = 2 * MIB;
    let name = base.file_name().unwrap().to_str().unwrap();
    let text = path.to_str().unwrap();
    ok("qemu-img", ["create", "-q", "-f", "vhdx", "-o", "block_size=2M", text, &size.to_string()]);
    let parent = fs::read(base).unwrap();
    let linkage = &parent[header(&parent) + 32..header(&parent) + 48];
    let g = |n: std::ops::Range<usize>, turn: bool| {
        let mut part = linkage[n].to_vec();
        if turn {
            part.reverse();
        }
        part.iter().map(|b| format!("{b:02x}")).collect::<String>()
    };
    let linkage =
        format!("{{{}-{}-{}-{}-{}}}", g(0..4, true), g(4..6, true), g(6..8, true), g(8..10, false), g(10..16, false));
    let mut bytes = fs::read(path).unwrap();
    for at in [64 << 10, 128 << 10] {
        bytes[at + 32..at + 48].fill(id);
        seal(&mut bytes[at..at + 4096]);
    }
    // The metadata: that there is a parent, and its locator.
    let meta = region(&bytes, 0x8B7C_A206);
    let count = u32_at(&bytes, meta + 8) >> 16;
    for n in 0..count as usize {
        let entry = meta + 32 + n * 32;
        if u32_at(&bytes, entry) == 0xCAA1_6737 {
            let item = meta + u32_at(&bytes, entry + 16) as usize;
            bytes[item + 4] |= 2;
        }
    }
    let mut locator = vec![0; 20 + 12 * 3];
    put(
        &mut locator,
        0,
        &[0xB7, 0xEF, 0x4A, 0xB0, 0x9E, 0xD1, 0x81, 0x4A, 0xB7, 0x89, 0x25, 0xB8, 0xE9, 0x44, 0x59, 0x13],
    );
    put(&mut locator, 18, &3u16.to_le_bytes());
    let pairs = [
        ("parent_linkage", linkage),
        ("absolute_win32_path", format!("\\\\?\\C:\\gone\\{name}")),
        ("relative_path", format!(".\\{name}")),
    ];
    for (n, (key, value)) in pairs.iter().enumerate() {
        for (m, text) in [*key, value.as_str()].iter().enumerate() {
            let text: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
            let at = locator.len() as u32;
            put(&mut locator, 20 + n * 12 + m * 4, &at.to_le_bytes());
            put(&mut locator, 20 + n * 12 + 8 + m * 2, &(text.len() as u16).to_le_bytes());
            locator.extend(text);
        }
    }
    let (entry, item) = (meta + 32 + count as usize * 32, 512 << 10);
    put(
        &mut bytes,
        entry,
        &[0x2D, 0x5F, 0xD3, 0xA8, 0x0B, 0xB3, 0x4D, 0x45, 0xAB, 0xF7, 0xD3, 0xD8, 0x48, 0x34, 0xAB, 0x0C],
    );
    put(&mut bytes, entry + 16, &(item as u32).to_le_bytes());
    put(&mut bytes, entry + 20, &(locator.len() as u32).to_le_bytes());
    put(&mut bytes, entry + 24, &4u32.to_le_bytes());
    put(&mut bytes, meta + 10, &(count as u16 + 1).to_le_bytes());
    put(&mut bytes, meta + item, &locator);
    // One chunk has 2048 blocks of 2 MiB: entry 2048 is that of the sector bitmap block.
    let bat = bat(&bytes);
    bytes.resize(bytes.len().next_multiple_of(MIB), 0);
    let bits = bytes.len();
    put(&mut bytes, bat + 2048 * 8, &(bits as u64 | 6).to_le_bytes());
    bytes.resize(bits + MIB, 0);
    for (n, block) in blocks.iter().enumerate() {
        let at = bytes.len() as u64;
        let entry = match block {
            Block::Absent => 0,
            Block::Zero => 2,
            Block::Full(byte) => {
                bytes.extend(vec![*byte; BLOCK]);
                at | 6
            }
            Block::Partly(step, byte) => {
                bytes.extend(vec![unused; BLOCK]);
                for sector in (0..4096).step_by(*step) {
                    bytes[bits + n * 512 + sector / 8] |= 1 << (sector % 8);
                    bytes[at as usize + sector * 512..][..512].fill(*byte);
                }
                at | 7
            }
            Block::Sectors(sectors) => {
                bytes.extend(vec![unused; BLOCK]);
                for (sector, data) in sectors {
                    bytes[bits + n * 512 + sector / 8] |= 1 << (sector % 8);
                    bytes[at as usize + sector * 512..][..512].copy_from_slice(data);
                }
                at | 7
            }
        };
        put(&mut bytes, bat + n * 8, &entry.to_le_bytes());
    }
    fs::write(path, bytes).unwrap();
}
