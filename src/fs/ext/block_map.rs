//! Block maps of ext2 and ext3: 12 direct pointers, then a block of pointers, one of blocks of pointers, and one more.
//!
//! Source: the kernel's "ext4 Data Structures and Algorithms", section "Direct/Indirect Block Addressing".

use super::extent_tree::{Child, Run, Runs};

/// Pointers in an inode that lead to data.
pub const DIRECT: u64 = 12;

/// Pointers, little-endian.
fn pointers(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.as_chunks::<4>().0.iter().map(|p| u64::from(u32::from_le_bytes(*p)))
}

/// Blocks of the file that one pointer of a block at `level` maps: 1 for level 1, which points at data.
pub fn span(per: u64, level: u16) -> u64 {
    (1..level).fold(1, |n: u64, _| n.saturating_mul(per))
}

/// What an inode's map leads to: runs of data, and blocks of pointers with their levels (1, 2, 3). `per` is the pointers
/// that a block has.
pub fn root(map: &[u8; 60], per: u64) -> (Runs, Vec<(u16, Child)>) {
    let mut runs = Runs::None;
    let mut children = Vec::new();
    let mut logical = DIRECT;
    let mut level = 1u16;
    for (n, block) in (0u64..).zip(pointers(map)) {
        if n < DIRECT {
            add(&mut runs, n, block);
            continue;
        }
        if block != 0 {
            children.push((level, Child { logical, block }));
        }
        level = level.saturating_add(1);
        logical = logical.saturating_add(span(per, level));
    }
    (runs, children)
}

/// What a block of pointers leads to whose first pointer maps block `logical` of the file: runs of data at level 1, else
/// blocks of the level below.
pub fn decode(bytes: &[u8], level: u16, logical: u64) -> (Runs, Vec<Child>) {
    let mut runs = Runs::None;
    let mut children = Vec::new();
    let step = span(bytes.len().checked_div(4).unwrap_or(0) as u64, level);
    for (n, block) in (0u64..).zip(pointers(bytes)) {
        let logical = logical.saturating_add(n.saturating_mul(step));
        if level <= 1 {
            add(&mut runs, logical, block);
        } else if block != 0 {
            children.push(Child { logical, block });
        }
    }
    (runs, children)
}

/// Adds one block, joined with the run before where it continues it. Block 0 is a hole.
fn add(runs: &mut Runs, logical: u64, physical: u64) {
    if physical == 0 {
        return;
    }
    if let Some(last) = runs.last_mut()
        && last.logical.checked_add(last.len) == Some(logical)
        && last.physical.checked_add(last.len) == Some(physical)
    {
        last.len = last.len.saturating_add(1);
        return;
    }
    runs.push(Run { logical, len: 1, physical, written: true });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first block that each indirection maps, for 4 KiB blocks: 12, 12 + 1024, 12 + 1024 + 1024².
    #[test]
    fn indirections_begin_where_the_last_one_ends() {
        let mut map = [0u8; 60];
        for (n, at) in [(48usize, 100u32), (52, 200), (56, 300)] {
            map[n..n + 4].copy_from_slice(&at.to_le_bytes());
        }
        let (runs, children) = root(&map, 1024);
        assert!(runs.is_empty());
        let firsts: Vec<_> = children.iter().map(|(l, c)| (*l, c.logical, c.block)).collect();
        assert_eq!(firsts, [(1, 12, 100), (2, 12 + 1024, 200), (3, 12 + 1024 + 1024 * 1024, 300)]);
    }

    #[test]
    fn neighbours_are_one_run_and_zero_is_a_hole() {
        let block: Vec<u8> = [5u32, 6, 0, 8, 7].iter().flat_map(|p| p.to_le_bytes()).collect();
        let (runs, _) = decode(&block, 1, 12);
        let at = |logical, len, physical| Run { logical, len, physical, written: true };
        assert_eq!(*runs, [at(12, 2, 5), at(15, 1, 8), at(16, 1, 7)]);
    }
}
