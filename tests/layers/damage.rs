//! Partition tables that were damaged or crafted: what can still be told is, and each defect is named.

use unimage::extent::Offset;
use unimage::volume::{Table, probe};

use crate::support::{self, Random, run};

const SECTOR: usize = 512;
/// Sectors of the test disk.
const SECTORS: usize = 4096;

/// A disk of 2 MiB by `sfdisk`.
fn disk(script: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, vec![0; SECTORS * SECTOR]).unwrap();
    run("sfdisk", &["-q", path.to_str().unwrap()], script);
    std::fs::read(path).unwrap()
}

/// Two partitions: p1 of 400 sectors from 100 on, p3 of 600 from 1000 on.
fn gpt() -> Vec<u8> {
    disk("label: gpt\nfirst-lba: 34\n1: start=100, size=400, name=one\n3: start=1000, size=600\n")
}

const GPT: &[(&str, u64, u64)] = &[("p1", 100, 400), ("p3", 1000, 600)];

/// p1, the extended p2 from 1000 on, and three logical partitions in it.
fn mbr() -> Vec<u8> {
    disk(
        "label: dos\n1: start=100, size=400, type=7\n2: start=1000, size=3000, type=5\n\
         5: start=1100, size=200\n6: start=1400, size=200\n7: start=1700, size=200\n",
    )
}

fn probed(bytes: Vec<u8>) -> Table {
    probe(support::bytes(bytes)).unwrap()
}

/// Name, first sector, sectors; checks that the bytes can be read.
fn parts(table: &Table) -> Vec<(String, u64, u64)> {
    table
        .slots
        .iter()
        .map(|s| {
            let map = s.layer.map().unwrap();
            let unimage::extent::What::Stored(place) = map.extents()[0].what else { panic!("stored") };
            s.layer.read_vec(Offset::new(s.layer.len() - 1), 1).unwrap();
            (s.name.clone(), place.offset.get() / table.sector, s.layer.len() / table.sector)
        })
        .collect()
}

#[track_caller]
fn expect(bytes: Vec<u8>, kind: &str, want: &[(&str, u64, u64)], problems: &[&str]) {
    let table = probed(bytes);
    let want: Vec<_> = want.iter().map(|(n, s, l)| ((*n).to_owned(), *s, *l)).collect();
    assert_eq!((table.kind, parts(&table)), (kind, want), "{:?}", table.problems);
    for words in problems {
        assert!(table.problems.iter().any(|p| p.contains(words)), "expected `{words}` in {:?}", table.problems);
    }
    if problems.is_empty() {
        assert!(table.problems.is_empty(), "{:?}", table.problems);
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn word(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

/// Makes the checksums of the header in sector `lba`, and of its array, right.
fn seal(bytes: &mut [u8], lba: usize) {
    let at = lba * SECTOR;
    let array = word(bytes, at + 72) * SECTOR;
    let len = word(bytes, at + 80).saturating_mul(word(bytes, at + 84));
    if let Some(array) = bytes.get(array..array.saturating_add(len)) {
        let crc = crc32fast::hash(array);
        put(bytes, at + 88, &crc.to_le_bytes());
    }
    let size = word(bytes, at + 12);
    put(bytes, at + 16, &[0; 4]);
    let crc = crc32fast::hash(&bytes[at..at + size]);
    put(bytes, at + 16, &crc.to_le_bytes());
}

const LAST: usize = SECTORS - 1;

#[test]
fn good_tables() {
    expect(gpt(), "gpt", GPT, &[]);
    expect(mbr(), "mbr", &[("p1", 100, 400), ("p5", 1100, 200), ("p6", 1400, 200), ("p7", 1700, 200)], &[]);
    let mut bytes = gpt();
    seal(&mut bytes, 1);
    seal(&mut bytes, LAST);
    assert_eq!(bytes, gpt_with_ids_of(&bytes), "the checksums of this test are those of sfdisk");
}

/// The same bytes: sfdisk gives random identities, so its own disk is compared with itself after sealing.
fn gpt_with_ids_of(bytes: &[u8]) -> Vec<u8> {
    let mut copy = bytes.to_vec();
    seal(&mut copy, 1);
    copy
}

#[test]
fn a_primary_header_that_is_gone_or_wrong() {
    let mut bytes = gpt();
    put(&mut bytes, SECTOR, &[0; 512]);
    expect(bytes, "gpt", GPT, &["primary GPT: expected the signature", "those of the backup"]);

    let mut bytes = gpt();
    bytes[SECTOR + 40] ^= 1;
    expect(bytes, "gpt", GPT, &["primary GPT: the header's checksum", "those of the backup"]);
}

#[test]
fn a_primary_array_that_is_wrong() {
    let mut bytes = gpt();
    bytes[2 * SECTOR + 32] ^= 1;
    expect(bytes, "gpt", GPT, &["primary GPT: the checksum of the entries", "those of the backup"]);
}

#[test]
fn a_backup_that_is_gone() {
    let mut bytes = gpt();
    put(&mut bytes, LAST * SECTOR, &[0; 512]);
    expect(bytes, "gpt", GPT, &["backup GPT: expected the signature"]);

    let mut bytes = gpt();
    bytes.truncate(3000 * SECTOR);
    expect(bytes, "gpt", GPT, &["backup GPT"]);

    // Cut within p3.
    let mut bytes = gpt();
    bytes.truncate(1200 * SECTOR);
    expect(bytes, "gpt", &[("p1", 100, 400), ("p3", 1000, 200)], &["p3: ends 204800 bytes beyond"]);
}

#[test]
fn a_backup_that_is_not_at_the_end() {
    let mut bytes = gpt();
    bytes.resize(bytes.len() + 100 * SECTOR, 0);
    expect(bytes.clone(), "gpt", GPT, &["expected in the last sector"]);
    put(&mut bytes, SECTOR + 16, &[0; 4]);
    expect(bytes, "gpt", GPT, &["primary GPT: the header's checksum"]);
}

#[test]
fn all_four_parts_wrong_in_their_checksums() {
    let mut bytes = gpt();
    for lba in [1, LAST] {
        bytes[lba * SECTOR + 88] ^= 1;
    }
    expect(bytes, "gpt", GPT, &["primary GPT: the header's", "backup GPT: the header's", "checksum of the entries"]);
}

#[test]
fn no_protective_mbr() {
    let mut bytes = gpt();
    put(&mut bytes, 0, &[0; 512]);
    expect(bytes.clone(), "gpt", GPT, &["no protective MBR"]);
    put(&mut bytes, SECTOR, &[0; 512]);
    expect(bytes, "gpt", GPT, &["no protective MBR", "those of the backup"]);
}

#[test]
fn entries_of_other_sizes() {
    for size in [256usize, 512, 4096] {
        let mut bytes = gpt();
        for (lba, array) in [(1usize, 2usize), (LAST, LAST - 32)] {
            let old = bytes[array * SECTOR..(array + 1) * SECTOR].to_vec();
            put(&mut bytes, array * SECTOR, &[0; 32 * 512]);
            let entries = 32 * 512 / size;
            for (i, entry) in old.chunks(128).take(entries).enumerate() {
                put(&mut bytes, array * SECTOR + i * size, entry);
            }
            put(&mut bytes, lba * SECTOR + 80, &(entries as u32).to_le_bytes());
            put(&mut bytes, lba * SECTOR + 84, &(size as u32).to_le_bytes());
            seal(&mut bytes, lba);
        }
        expect(bytes, "gpt", GPT, &[]);
    }
    for size in [0u32, 1, 64, 127, 129, 192, 8192, u32::MAX] {
        let mut bytes = gpt();
        put(&mut bytes, SECTOR + 84, &size.to_le_bytes());
        seal(&mut bytes, 1);
        expect(bytes, "gpt", GPT, &["primary GPT: expected entries of 128 to 4096 bytes"]);
    }
}

#[test]
fn too_many_entries() {
    let mut bytes = gpt();
    put(&mut bytes, SECTOR + 80, &u32::MAX.to_le_bytes());
    seal(&mut bytes, 1);
    // Behind the array is no entry, though these bytes could pass for some.
    put(&mut bytes, 34 * SECTOR, &[0x11; 20 * SECTOR]);
    expect(bytes.clone(), "gpt", GPT, &["those of the backup"]);
    put(&mut bytes, LAST * SECTOR, &[0; 512]);
    expect(bytes, "gpt", GPT, &["primary GPT: the checksum of the entries", "4294967295 entries"]);
}

#[test]
fn headers_that_point_anywhere() {
    for (field, value) in [(72, u64::MAX), (72, 1 << 55), (72, SECTORS as u64), (24, 7), (32, u64::MAX), (32, 0)] {
        let mut bytes = gpt();
        put(&mut bytes, SECTOR + field, &value.to_le_bytes());
        seal(&mut bytes, 1);
        let table = probed(bytes);
        assert_eq!((table.kind, parts(&table).len()), ("gpt", 2), "{field} {value}: {:?}", table.problems);
        assert!(!table.problems.is_empty());
    }
    for size in [0u32, 91, 513, 4096, u32::MAX] {
        let mut bytes = gpt();
        put(&mut bytes, SECTOR + 12, &size.to_le_bytes());
        expect(bytes, "gpt", GPT, &["primary GPT: the header's checksum"]);
    }
}

#[test]
fn partitions_that_are_not_on_the_disk() {
    for (first, last, words) in [
        (5000u64, 6000, "p1: no byte of it is on the disk"),
        (u64::MAX, u64::MAX, "p1: no byte"),
        (1 << 60, (1 << 60) + 5, "p1: no byte"),
        (500, 100, "p1: ends at sector 100 before it begins"),
        (1100, 1200, "overlap"),
        (0, 10, "p1: outside of the sectors"),
    ] {
        let mut bytes = gpt();
        for (lba, array) in [(1, 2), (LAST, LAST - 32)] {
            put(&mut bytes, array * SECTOR + 32, &first.to_le_bytes());
            put(&mut bytes, array * SECTOR + 40, &last.to_le_bytes());
            seal(&mut bytes, lba);
        }
        let table = probed(bytes);
        assert!(parts(&table).contains(&("p3".to_owned(), 1000, 600)));
        assert!(table.problems.iter().any(|p| p.contains(words)), "{words}: {:?}", table.problems);
    }
}

/// Sector of the record of p5, p6, p7.
fn records(bytes: &[u8]) -> [usize; 3] {
    let base = word(bytes, 446 + 16 + 8);
    let next = |at: usize| base + word(bytes, at * SECTOR + 446 + 16 + 8);
    let six = next(base);
    [base, six, next(six)]
}

#[test]
fn a_broken_extended_record_keeps_the_rest() {
    let all = [("p1", 100, 400), ("p5", 1100, 200), ("p6", 1400, 200), ("p7", 1700, 200)];
    let [_, six, seven] = records(&mbr());
    for (lba, left) in [(seven, 3), (six, 2), (1000, 1)] {
        let mut bytes = mbr();
        put(&mut bytes, lba * SECTOR, &[0; 512]);
        expect(bytes, "mbr", &all[..left], &["expected the signature 55 AA"]);
    }
    // A link back to the first record, and to itself.
    for to in [0, seven - 1000] {
        let mut bytes = mbr();
        put(&mut bytes, seven * SECTOR + 446 + 16, &[0, 0, 0, 0, 5, 0, 0, 0]);
        put(&mut bytes, seven * SECTOR + 446 + 16 + 8, &(to as u32).to_le_bytes());
        put(&mut bytes, seven * SECTOR + 446 + 16 + 12, &1u32.to_le_bytes());
        expect(bytes, "mbr", &all, &["comes back to it"]);
    }
    // A link far away.
    let mut bytes = mbr();
    put(&mut bytes, six * SECTOR + 446 + 16 + 8, &u32::MAX.to_le_bytes());
    expect(bytes, "mbr", &all[..3], &["extended boot record at sector 4294968295"]);
    // A logical partition whose start passes 32 bits.
    let mut bytes = mbr();
    put(&mut bytes, six * SECTOR + 446 + 8, &u32::MAX.to_le_bytes());
    expect(bytes, "mbr", &[all[0], all[1], all[3]], &["p6: no byte of it is on the disk"]);
}

#[test]
fn an_endless_chain_ends() {
    let mut bytes = mbr();
    for lba in 1000..4000usize {
        let at = lba * SECTOR;
        put(&mut bytes, at + 446, &[0; 64]);
        put(&mut bytes, at + 446 + 16 + 4, &[5]);
        put(&mut bytes, at + 446 + 16 + 8, &((lba - 1000 + 1) as u32).to_le_bytes());
        put(&mut bytes, at + 446 + 16 + 12, &1u32.to_le_bytes());
        put(&mut bytes, at + 510, &[0x55, 0xAA]);
    }
    expect(bytes, "mbr", &[("p1", 100, 400)], &["more than 1024 records"]);
}

#[test]
fn two_extended_partitions() {
    let mut bytes = mbr();
    let second = 3000usize;
    put(&mut bytes, 446 + 32, &[0, 0, 0, 0, 0x0F, 0, 0, 0]);
    put(&mut bytes, 446 + 32 + 8, &(second as u32).to_le_bytes());
    put(&mut bytes, 446 + 32 + 12, &500u32.to_le_bytes());
    put(&mut bytes, second * SECTOR + 446, &[0, 0, 0, 0, 0x83, 0, 0, 0, 10, 0, 0, 0, 20, 0, 0, 0]);
    put(&mut bytes, second * SECTOR + 510, &[0x55, 0xAA]);
    let table = probed(bytes);
    assert_eq!(parts(&table).last().unwrap(), &("p8".to_owned(), 3010, 20));
}

#[test]
fn mbr_partitions_that_are_not_on_the_disk() {
    let mut bytes = mbr();
    put(&mut bytes, 446 + 12, &u32::MAX.to_le_bytes());
    let table = probed(bytes);
    assert_eq!(parts(&table)[0], ("p1".to_owned(), 100, 3996));
    assert!(table.problems.iter().any(|p| p.contains("beyond the disk's end")), "{:?}", table.problems);
    assert!(table.problems.iter().any(|p| p.contains("overlap")), "{:?}", table.problems);
}

#[test]
fn a_bad_sector_in_one_copy_leaves_the_other() {
    let bad = |at: usize| (at * SECTOR) as u64..((at + 1) * SECTOR) as u64;
    let read = |bytes: Vec<u8>, at| probe(support::failing(bytes, bad(at))).unwrap();
    let table = read(gpt(), LAST);
    assert_eq!(parts(&table).len(), 2);
    assert!(table.problems.iter().any(|p| p.contains("backup GPT: reading")), "{:?}", table.problems);
    // Behind the first 8 KiB, which are read as one.
    let table = read(gpt(), 20);
    assert_eq!(parts(&table).len(), 2);
    assert!(table.problems.iter().any(|p| p.contains("primary GPT: reading")), "{:?}", table.problems);
    let [_, six, _] = records(&mbr());
    let table = read(mbr(), six);
    assert_eq!(parts(&table).len(), 2);
    assert!(table.problems.iter().any(|p| p.contains("extended boot record")), "{:?}", table.problems);
    // A sector right behind the first one.
    let table = read(gpt(), 1);
    assert_eq!(parts(&table).len(), 2);
    let table = read(gpt(), 9);
    assert_eq!(parts(&table).len(), 2);
    let table = read(gpt(), 0);
    assert_eq!(parts(&table).len(), 2);
    assert!(table.problems[0].contains("reading 512 bytes at image offset 0x0"), "{:?}", table.problems);
    let table = probe(support::failing(gpt(), 0..u64::MAX)).unwrap();
    assert_eq!((table.kind, table.slots.len()), ("none", 1));
    assert!(!table.problems.is_empty());
}

/// No panic, no hang, no slot beyond the disk, whatever the table says.
#[test]
fn mutations() {
    let mut random = Random(99);
    for good in [gpt(), mbr()] {
        let hot: Vec<std::ops::Range<usize>> =
            vec![0..512, 512..1024, 1024..1536, LAST * SECTOR..(LAST + 1) * SECTOR, 1000 * SECTOR..1001 * SECTOR];
        for _ in 0..1500 {
            let mut bytes = good.clone();
            for _ in 0..=random.below(8) {
                let range = &hot[random.below(hot.len() as u64) as usize];
                let at = range.start + random.below(range.len() as u64) as usize;
                bytes[at] = match random.below(3) {
                    0 => random.next() as u8,
                    1 => bytes[at] ^ (1 << random.below(8)),
                    _ => [0, 0xFF, 0x7F, 0x80][random.below(4) as usize],
                };
            }
            if random.below(4) == 0 {
                seal_where_it_can_be(&mut bytes);
            }
            if random.below(8) == 0 {
                bytes.truncate(random.below(bytes.len() as u64) as usize);
            }
            let len = bytes.len() as u64;
            let table = probed(bytes);
            for slot in &table.slots {
                assert!(slot.layer.len() <= len);
            }
        }
    }
}

fn seal_where_it_can_be(bytes: &mut [u8]) {
    let size = word(bytes, SECTOR + 12);
    let array = word(bytes, SECTOR + 72);
    if (92..=SECTOR).contains(&size) && array < SECTORS {
        seal(bytes, 1);
    }
}
