use super::*;
use crate::extent::{LayerId, ReadAt};
use std::sync::Arc;

const GUID: Guid = Guid([7; 16]);

/// A file of some sectors, each filled with its number.
struct File(LayerId, u64);

impl ReadAt<Device> for File {
    fn id(&self) -> LayerId {
        self.0
    }
    fn len(&self) -> u64 {
        self.1
    }
    fn read_at(&self, at: Offset<Device>, buf: &mut [u8]) -> Result<()> {
        for (n, b) in (at.get()..).zip(buf) {
            *b = (n / SECTOR as u64) as u8;
        }
        Ok(())
    }
}

fn file() -> Overlay {
    Overlay::new(Arc::new(File(LayerId::fresh(), 16 * SECTOR as u64)))
}

/// What an entry writes: a sector filled with a byte, or zeros over some sectors.
#[derive(Clone, Copy)]
enum Write {
    Fill(u64, u8),
    Zero(u64, u64),
}

/// An entry as the table at the head of this room has it.
fn entry(sequence: u64, tail: u32, writes: &[Write]) -> Vec<u8> {
    let mut all = vec![0; SECTOR];
    let mut data = Vec::new();
    for (n, write) in writes.iter().enumerate() {
        let d = &mut all[HEADER + n * DESCRIPTOR..][..DESCRIPTOR];
        let at = match write {
            Write::Fill(at, byte) => {
                d[..4].copy_from_slice(b"desc");
                d[4..16].fill(*byte);
                let mut sector = vec![*byte; SECTOR];
                sector[..4].copy_from_slice(b"data");
                sector[4..8].copy_from_slice(&((sequence >> 32) as u32).to_le_bytes());
                sector[4092..].copy_from_slice(&(sequence as u32).to_le_bytes());
                data.extend(sector);
                at
            }
            Write::Zero(at, sectors) => {
                d[..4].copy_from_slice(b"zero");
                d[8..16].copy_from_slice(&(sectors * SECTOR as u64).to_le_bytes());
                at
            }
        };
        d[16..24].copy_from_slice(&(at * SECTOR as u64).to_le_bytes());
        d[24..32].copy_from_slice(&sequence.to_le_bytes());
    }
    all.extend(data);
    let len = all.len() as u32;
    all[..4].copy_from_slice(b"loge");
    for (at, value) in [(8, len), (12, tail), (24, writes.len() as u32)] {
        all[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    all[16..24].copy_from_slice(&sequence.to_le_bytes());
    all[32..48].copy_from_slice(&GUID.0);
    all[48..56].copy_from_slice(&(16 * SECTOR as u64).to_le_bytes());
    all[56..64].copy_from_slice(&(20 * SECTOR as u64).to_le_bytes());
    let sum = sum(&all);
    all[4..8].copy_from_slice(&sum.to_le_bytes());
    all
}

/// A ring of so many sectors with entries at their places.
fn ring(sectors: usize, entries: &[(usize, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = vec![0; sectors * SECTOR];
    for (at, entry) in entries {
        for (n, b) in entry.iter().enumerate() {
            let place = (at * SECTOR + n) % bytes.len();
            bytes[place] = *b;
        }
    }
    bytes
}

/// The first byte of each sector after replay.
fn replayed(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut overlay = file();
    replay(0, bytes, GUID, &mut overlay)?;
    let all = overlay.read_vec(Offset::new(0), 16 * SECTOR)?;
    Ok(all.chunks(SECTOR).inspect(|s| assert!(s.iter().all(|b| *b == s[0]))).map(|s| s[0]).collect())
}

fn numbers(changes: &[(usize, u8)]) -> Vec<u8> {
    let mut all: Vec<u8> = (0..16).collect();
    for (at, value) in changes {
        all[*at] = *value;
    }
    all
}

#[test]
fn entries_are_replayed_in_order() {
    use Write::{Fill, Zero};
    let first = entry(5, 0, &[Fill(3, 0xAA), Zero(8, 4)]);
    let second = entry(6, 0, &[Fill(9, 0xBB), Fill(3, 0xCC)]);
    let bytes = ring(8, &[(0, first), (2, second)]);
    assert_eq!(replayed(&bytes).unwrap(), numbers(&[(3, 0xCC), (8, 0), (9, 0xBB), (10, 0), (11, 0)]));
}

#[test]
fn what_lies_before_the_tail_is_not_replayed() {
    let first = entry(5, 0, &[Write::Fill(3, 0xAA)]);
    let second = entry(6, 2 * SECTOR as u32, &[Write::Fill(4, 0xBB)]);
    let bytes = ring(8, &[(0, first), (2, second)]);
    assert_eq!(replayed(&bytes).unwrap(), numbers(&[(4, 0xBB)]));
}

#[test]
fn a_sequence_goes_on_around_the_end() {
    let first = entry(5, 7 * SECTOR as u32, &[Write::Fill(1, 0xAA), Write::Fill(2, 0xAB)]);
    let second = entry(6, 7 * SECTOR as u32, &[Write::Fill(1, 0xBB)]);
    let bytes = ring(8, &[(7, first), (2, second)]);
    assert_eq!(replayed(&bytes).unwrap(), numbers(&[(1, 0xBB), (2, 0xAB)]));
}

#[test]
fn a_torn_entry_ends_the_sequence() {
    let first = entry(5, 0, &[Write::Fill(3, 0xAA)]);
    let mut second = entry(6, 0, &[Write::Fill(4, 0xBB)]);
    second[SECTOR + 100] ^= 1;
    let bytes = ring(8, &[(0, first), (2, second)]);
    assert_eq!(replayed(&bytes).unwrap(), numbers(&[(3, 0xAA)]));
}

#[test]
fn of_two_sequences_the_newer_counts() {
    let old = entry(100, 4 * SECTOR as u32, &[Write::Fill(3, 0xAA)]);
    let new = entry(200, 0, &[Write::Fill(4, 0xBB)]);
    let bytes = ring(8, &[(0, new), (4, old)]);
    assert_eq!(replayed(&bytes).unwrap(), numbers(&[(4, 0xBB)]));
}

#[test]
fn without_a_valid_sequence_it_is_refused() {
    // The last entry needs one that was overwritten.
    let lone = entry(6, 5 * SECTOR as u32, &[Write::Fill(4, 0xBB)]);
    let mut other = entry(7, 0, &[Write::Fill(4, 0xBB)]);
    other[32] ^= 1;
    let mut torn = entry(5, 0, &[Write::Fill(4, 0xBB)]);
    torn[70] ^= 1;
    for bytes in [ring(8, &[(0, lone)]), ring(8, &[(0, torn)])] {
        let error = replayed(&bytes).unwrap_err().to_string();
        assert!(error.contains("VHDX log"), "{error}");
    }
    // Entries of another session, or none, ask for nothing.
    for bytes in [ring(8, &[]), ring(8, &[(0, other)])] {
        assert_eq!(replay(0, &bytes, GUID, &mut file()).unwrap(), None);
    }
}

#[test]
fn a_part_of_another_entry_makes_it_void() {
    let mut bad = entry(5, 0, &[Write::Fill(3, 0xAA)]);
    bad[SECTOR + 4092] ^= 1;
    let sum = sum(&bad);
    bad[4..8].copy_from_slice(&sum.to_le_bytes());
    assert!(replayed(&ring(8, &[(0, bad)])).is_err());
}

#[test]
fn zeros_are_cut_by_what_comes_later() {
    let mut overlay = file();
    overlay.zero(2 * 4096, 6 * 4096);
    overlay.write(4 * 4096, &[9; SECTOR]);
    overlay.zero(3 * 4096, 4096);
    overlay.write(7 * 4096, &[8; SECTOR]);
    overlay.zero(7 * 4096, 4096);
    overlay.extend(18 * 4096);
    let all = overlay.read_vec(Offset::new(0), 18 * SECTOR).unwrap();
    let seen: Vec<u8> = all.chunks(SECTOR).map(|s| s[0]).collect();
    assert_eq!(seen, [0, 1, 0, 0, 9, 0, 0, 0, 8, 9, 10, 11, 12, 13, 14, 15, 0, 0]);
    assert!(overlay.read_vec(Offset::new(0), 18 * SECTOR + 1).is_err());
}

/// Any bytes end in a refusal or a replay, and in no long time.
#[test]
fn crafted_rings() {
    let good =
        ring(8, &[(0, entry(5, 0, &[Write::Fill(3, 1), Write::Zero(8, 4)])), (2, entry(6, 0, &[Write::Fill(4, 2)]))]);
    let mut state = 9u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..3000 {
        let mut bytes = good.clone();
        let mut entries = [0usize, 2];
        for _ in 0..=next() % 4 {
            let at = (next() % 160) as usize + entries[(next() % 2) as usize] * SECTOR;
            bytes[at] = next() as u8;
        }
        entries.reverse();
        // With a checksum that is right again, for half of them.
        for at in entries.map(|e| e * SECTOR) {
            let len = u32::from_le_bytes(bytes[at + 8..at + 12].try_into().unwrap()) as usize;
            if next() % 2 == 0 && len >= 64 && at + len <= bytes.len() {
                let sum = sum(&bytes[at..at + len]);
                bytes[at + 4..at + 8].copy_from_slice(&sum.to_le_bytes());
            }
        }
        let _ = replayed_any(&bytes);
    }
}

fn replayed_any(bytes: &[u8]) -> Result<()> {
    let mut overlay = file();
    replay(0, bytes, GUID, &mut overlay)?;
    overlay.read_vec(Offset::new(0), 16 * SECTOR).map(drop)
}
