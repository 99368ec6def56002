//! FAT as host: what is refused, and that the audit finds what a defect of the writer would do.

mod fat_support;

use std::sync::Arc;

use fat_support::host::*;
use fat_support::*;
use unimage::error::Error;
use unimage::extent::Offset;
use unimage::fs::host::{Job, NewTree};
use unimage::txn::{Fresh, Staging};

/// Where things are, by the boot sector.
struct Places {
    boot: Vec<u8>,
}

impl Places {
    fn u16(&self, at: usize) -> usize {
        usize::from(self.boot[at]) | usize::from(self.boot[at + 1]) << 8
    }
    fn fat(&self, n: usize) -> usize {
        let sectors = if self.u16(0x16) == 0 { self.u16(0x24) } else { self.u16(0x16) };
        (self.u16(0x0E) + n * sectors) * self.u16(0x0B)
    }
    /// Sets an entry in these tables.
    fn set(&self, width: &str, bytes: &mut [u8], fats: &[usize], n: usize, value: u32) {
        for fat in fats {
            let fat = self.fat(*fat);
            match width {
                "12" => {
                    let at = fat + n + n / 2;
                    let old = u32::from(bytes[at]) | u32::from(bytes[at + 1]) << 8;
                    let even = n.is_multiple_of(2);
                    let new = if even { old & 0xF000 | value & 0xFFF } else { old & 0xF | (value & 0xFFF) << 4 };
                    bytes[at..at + 2].copy_from_slice(&(new as u16).to_le_bytes());
                }
                "16" => bytes[fat + 2 * n..][..2].copy_from_slice(&(value as u16).to_le_bytes()),
                _ => bytes[fat + 4 * n..][..4].copy_from_slice(&value.to_le_bytes()),
            }
        }
    }
}

#[test]
fn hosts_that_must_not_be_written_are_refused() {
    for shape in [SHAPES[0], SHAPES[2], SHAPES[5]] {
        let case = HostCase::new(shape, 30);
        let at = Places { boot: case.volume.bytes[..512].to_vec() };
        let data = at.fat(2) + at.u16(0x11) * 32;
        let number = |place: u64| (place as usize - data) / case.unit as usize + 2;
        let set = |bytes: &mut [u8], fats: &[usize], n, value| at.set(shape.fat, bytes, fats, n, value);
        let state = if shape.fat == "32" { 0x41 } else { 0x25 };
        let free = number(case.volume.bytes.len() as u64) - 4;
        let image: Vec<usize> = case.clusters.iter().map(|p| number(*p)).collect();
        let slot = case.volume.bytes.windows(11).position(|w| w == b"DISKIM~1RAW").unwrap();
        let size = (case.unit * 28) as u32;
        type Fault<'a> = (&'a str, Box<dyn Fn(&mut Vec<u8>) + 'a>);
        let mut faults: Vec<Fault<'_>> = vec![
            ("dirty", Box::new(|b| b[state] |= 1)),
            ("errors", Box::new(|b| b[state] |= 2)),
            ("differ", Box::new(|b| set(b, &[1], free, 0xFFFF_FFFF))),
            ("belong to no file", Box::new(|b| set(b, &[0, 1], free, 0x0FFF_FFFF))),
            ("damaged in", Box::new(|b| set(b, &[0, 1], image[10], image[3] as u32))),
            ("damaged in", Box::new(|b| set(b, &[0, 1], image[10], 0))),
            ("read-only", Box::new(|b| b[slot + 11] |= 1)),
            ("system", Box::new(|b| b[slot + 11] |= 4)),
            // Two clusters fewer by its size than by its chain.
            ("chain has", Box::new(|b| b[slot + 28..slot + 32].copy_from_slice(&size.to_le_bytes()))),
            ("plan again", Box::new(|b| b[slot + 28] ^= 3)),
            ("ends at byte", Box::new(|b| b.truncate(b.len() - 4096))),
            ("recover", Box::new(|b| b[0x0B..0x0D].fill(0))),
        ];
        if shape.fat != "12" {
            let (dirty, error) = if shape.fat == "16" { (0x7FFF, 0xBFFF) } else { (0x07FF_FFFF, 0x0BFF_FFFF) };
            faults.push(("dirty", Box::new(move |b| set(b, &[0, 1], 1, dirty))));
            faults.push(("errors", Box::new(move |b| set(b, &[0, 1], 1, error))));
        }
        if shape.fat == "32" {
            faults.push(("version", Box::new(|b| b[0x2A] = 1)));
            faults.push(("mirror", Box::new(|b| b[0x28] = 0x80)));
        }
        for (word, fault) in faults {
            let mut bytes = case.volume.bytes.to_vec();
            fault(&mut bytes);
            // Without its boot sector only FAT32 is still known as FAT.
            if word == "recover" && shape.fat != "32" {
                let volume = Arc::new(case.volume.with(bytes));
                assert!(unimage::fs::fat::open(volume, Default::default()).unwrap().is_none());
                continue;
            }
            let fs = open_volume(&case.volume.with(bytes));
            let why = fs.as_host().unwrap().refusals(&case.image).unwrap();
            assert!(why.iter().any(|w| w.contains(word)), "{shape:?} {word}: {why:?}");
            assert!(why.iter().all(|w| !w.contains('\n')), "{why:?}");
            let tree = NewTree::default();
            let job = Job { tree: &tree, image: &case.image, zero_slack: true };
            assert!(matches!(fs.as_host().unwrap().link(&job), Err(Error::Refused(_))), "{word}");
        }
    }
}

/// The new state without what is copied, and without checks.
fn apply_unchecked(before: &[u8], staging: &Staging) -> Vec<u8> {
    let mut bytes = before.to_vec();
    for write in staging.fresh.iter().chain(staging.groups.iter().flat_map(|g| &g.writes)) {
        bytes[write.at.get() as usize..][..write.bytes.len()].copy_from_slice(&write.bytes);
    }
    for (at, len) in &staging.slack {
        bytes[at.get() as usize..][..*len as usize].fill(0);
    }
    bytes
}

#[test]
fn the_audit_finds_what_is_wrong() {
    let case = HostCase::new(SHAPES[5], 60);
    let mut wanted = Wanted::new(&case, &["vm"], 3);
    wanted.fill(60);
    let job = case.job(&wanted.tree);
    let good = case.host().link(&job).unwrap();
    let audit = |staging: &Staging| {
        let after = apply_unchecked(&case.volume.bytes, staging);
        case.host().audit(Arc::new(case.volume.with(after)), &job, staging)
    };
    audit(&good).unwrap();
    assert!(good.copies.len() > 2 && good.slack.len() > 2 && good.groups.len() == 4);
    type Fault<'a> = (&'a str, Box<dyn Fn(&mut Staging) + 'a>);
    let mut faults: Vec<Fault<'_>> = vec![
        ("a copy is lost", Box::new(|s| _ = s.copies.pop())),
        (
            "two copies are exchanged",
            Box::new(|s| {
                let to = s.copies[0].to.clone();
                s.copies[0].to = s.copies[1].to.clone();
                s.copies[1].to = to;
            }),
        ),
        ("a tail is left", Box::new(|s| _ = s.slack.pop())),
        ("a tail is longer", Box::new(|s| s.slack[0].1 += 1)),
        ("a byte that counts is zeroed", Box::new(|s| s.slack[1].0 = Offset::new(s.slack[1].0.get() - 1))),
        ("a filled range is not told", Box::new(|s| _ = s.filled.pop())),
        ("a used range is filled", Box::new(|s| s.filled.push((Offset::new(case.clusters[0]), case.unit)))),
        ("a new directory is not written", Box::new(|s| _ = s.fresh.pop())),
        (
            "a sector of data is changed",
            Box::new(|s| s.groups[0].writes.push(Fresh { at: Offset::new(case.clusters[0]), bytes: vec![0; 512] })),
        ),
    ];
    for i in 0..good.groups.len() {
        faults.push(("a group is lost", Box::new(move |s| _ = s.groups.remove(i))));
        faults.push(("a write is lost", Box::new(move |s| _ = s.groups[i].writes.remove(0))));
    }
    for (what, fault) in faults {
        let mut staging = good.clone();
        fault(&mut staging);
        let found = audit(&staging);
        assert!(matches!(found, Err(Error::Corrupt { .. })), "{what}: {found:?}");
    }
    // A bit anywhere: the audit finds it, or fsck.fat and every reader find nothing.
    let mut missed = 0;
    let mut random = 88_172_645_463_325_252u64;
    for round in 0..400 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let mut staging = good.clone();
        let mut all: Vec<&mut Vec<u8>> = staging.fresh.iter_mut().map(|f| &mut f.bytes).collect();
        all.extend(staging.groups.iter_mut().flat_map(|g| &mut g.writes).map(|w| &mut w.bytes));
        let n = all.len();
        let bytes = &mut all[round % n];
        // Most of a sector are zeros: rather hit what is there.
        let used: Vec<usize> = (0..bytes.len()).filter(|i| bytes[*i] != 0 || random >> 60 == 0).collect();
        let i = used[(random >> 20) as usize % used.len()];
        bytes[i] ^= 1 << (random >> 8 & 7);
        if audit(&staging).is_ok() {
            missed += 1;
            let after = apply(&case.volume.bytes, &staging, &wanted.sources);
            assert_eq!(fsck(&after), case.checked, "round {round}, byte {i}");
            let fs = open(after);
            let mut meant = wanted.files.clone();
            meant.extend(case.older.clone());
            assert_same(&hashes(&*fs, &fs.walk().unwrap()), &meant);
        }
    }
    // Left: bytes of slots that are free, of the hints in FSInfo, and of its copy.
    assert!(missed < 100, "{missed}");
    println!("{missed} of 400 were harmless");
}
