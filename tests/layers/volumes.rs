//! Partition tables that real tools made: every partition is where `sfdisk`, `mmls` and the crates `gpt` and `mbrman` say
//! that it is. And tables that were damaged: whatever can still be told is, and the damage is named.

use std::fs::{self, File};
use std::io::Cursor;
use std::path::Path;

use unimage::extent::What;
use unimage::volume::{Table, probe};

use crate::support::{self, Random, run};

fn disk(dir: &Path, name: &str, mib: u64) -> String {
    let path = dir.join(name);
    File::create(&path).unwrap().set_len(mib << 20).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The table of bytes.
fn table_of(bytes: Vec<u8>) -> Table {
    probe(support::bytes(bytes)).unwrap()
}

fn table(path: &str) -> Table {
    table_of(fs::read(path).unwrap())
}

/// Name, first byte, bytes of each volume.
fn volumes(table: &Table) -> Vec<(String, u64, u64)> {
    table
        .slots
        .iter()
        .map(|s| {
            let map = s.layer.map().unwrap();
            let [one] = map.extents() else { panic!("a partition is one run") };
            let What::Stored(place) = one.what else { panic!("a partition is stored") };
            (s.name.clone(), place.offset.get(), one.len)
        })
        .collect()
}

/// The same as `sfdisk --json` has it, without extended partitions.
fn by_sfdisk(path: &str) -> Vec<(String, u64, u64)> {
    let json: serde_json::Value = serde_json::from_str(&run("sfdisk", &["--json", path], "")).unwrap();
    let table = &json["partitiontable"];
    let sector = table["sectorsize"].as_u64().unwrap();
    let parts = table["partitions"].as_array().unwrap();
    parts
        .iter()
        .filter(|p| !["5", "f", "85"].contains(&p["type"].as_str().unwrap()))
        .map(|p| {
            let node = p["node"].as_str().unwrap().strip_prefix(path).unwrap();
            let number = node.trim_start_matches('p');
            (format!("p{number}"), p["start"].as_u64().unwrap() * sector, p["size"].as_u64().unwrap() * sector)
        })
        .collect()
}

/// First sector and sectors of each partition, as `mmls` has them.
fn by_mmls(path: &str, kind: &str) -> Vec<(u64, u64)> {
    let out = run("mmls", &["-t", kind, path], "");
    let mut parts: Vec<_> = out
        .lines()
        .filter_map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            let slot = words.get(1)?;
            let numbered = slot.len() == 7 && slot.as_bytes()[3] == b':' || slot.parse::<u32>().is_ok();
            let extended = ["(0x05)", "(0x0F)", "(0x85)"].iter().any(|t| line.ends_with(t));
            (numbered && !extended).then(|| (words[2].parse().unwrap(), words[4].parse().unwrap()))
        })
        .collect();
    parts.sort_unstable();
    parts
}

fn ranges(volumes: &[(String, u64, u64)], sector: u64) -> Vec<(u64, u64)> {
    let mut ranges: Vec<_> = volumes.iter().map(|v| (v.1 / sector, v.2 / sector)).collect();
    ranges.sort_unstable();
    ranges
}

fn has(table: &Table, words: &str) -> bool {
    table.problems.iter().any(|p| p.contains(words))
}

/// A loop device with sectors of 4096 bytes over a file; detached when it goes.
struct Loop(String);

impl Loop {
    fn new(path: &str) -> Self {
        Self(run("losetup", &["--show", "-f", "-b", "4096", path], "").trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run("losetup", &["-d", &self.0], "");
    }
}

#[test]
fn gpt_by_sfdisk() {
    let dir = tempfile::tempdir().unwrap();
    let path = disk(dir.path(), "gpt.raw", 64);
    let script = "label: gpt\n1: size=8MiB, name=\"first, of all\"\n2: size=4MiB, type=swap\n7: size=20MiB\n";
    run("sfdisk", &[&path], script);
    let table = table(&path);
    assert_eq!(volumes(&table), by_sfdisk(&path));
    assert_eq!(ranges(&volumes(&table), 512), by_mmls(&path, "gpt"));
    assert_eq!((table.kind, table.sector, &table.problems), ("gpt", 512, &vec![]));
    assert!(table.slots[0].about.starts_with("Linux filesystem \"first, of all\""), "{}", table.slots[0].about);
}

#[test]
fn gpt_by_sgdisk_with_a_hybrid_mbr() {
    let dir = tempfile::tempdir().unwrap();
    let path = disk(dir.path(), "gpt.raw", 64);
    run("sgdisk", &["-n", "1:2048:+8M", "-t", "1:0700", "-c", "1:data", "-n", "3:0:+8M", "-t", "3:a501", &path], "");
    run("sgdisk", &["-h", "1:3", &path], "");
    let table = table(&path);
    assert_eq!(volumes(&table), by_sfdisk(&path));
    assert_eq!(table.kind, "gpt");
    assert!(table.problems.len() == 1 && has(&table, "hybrid MBR with 2 more"), "{:?}", table.problems);
    assert!(table.slots[0].about.starts_with("Microsoft basic data \"data\""), "{}", table.slots[0].about);
    assert!(table.slots[1].about.contains("FreeBsd"), "{}", table.slots[1].about);
}

#[test]
fn mbr_with_logical_partitions() {
    let dir = tempfile::tempdir().unwrap();
    let path = disk(dir.path(), "mbr.raw", 64);
    run(
        "sfdisk",
        &[&path],
        "label: dos\n1: size=8MiB, type=c, bootable\n2: type=5, size=40MiB\n3: size=1MiB, type=ef\n5: size=4MiB\n6: size=6MiB, type=7\n7: size=2MiB\n",
    );
    let table = table(&path);
    assert_eq!(volumes(&table), by_sfdisk(&path));
    assert_eq!(ranges(&volumes(&table), 512), by_mmls(&path, "dos"));
    assert_eq!((table.kind, table.sector, &table.problems), ("mbr", 512, &vec![]));
    assert!(table.slots[0].about.starts_with("FAT32 (0c), active"), "{}", table.slots[0].about);
}

#[test]
fn sectors_of_4096_bytes() {
    let dir = tempfile::tempdir().unwrap();
    for (label, kind) in [("gpt", "gpt"), ("dos", "mbr")] {
        let path = disk(dir.path(), label, 64);
        let device = Loop::new(&path);
        let (extended, p5) = if label == "dos" {
            ("2: size=30MiB, type=f\n", "5: size=20MiB\n")
        } else {
            ("2: size=4MiB\n", "5: size=20MiB\n")
        };
        run("sfdisk", &[&device.0], &format!("label: {label}\n1: size=16MiB\n{extended}{p5}"));
        let want = by_sfdisk(&device.0);
        drop(device);
        let table = table(&path);
        assert_eq!((table.kind, table.sector, &table.problems), (kind, 4096, &vec![]), "{label}");
        assert_eq!(volumes(&table), want);
    }
}

/// An MBR does not tell its sector size: what the partitions begin with does.
#[test]
fn mbr_of_4096_byte_sectors_by_its_file_system() {
    let dir = tempfile::tempdir().unwrap();
    let path = disk(dir.path(), "mbr.raw", 64);
    let device = Loop::new(&path);
    run("sfdisk", &[&device.0], "label: dos\n1: size=40MiB\n");
    let want = by_sfdisk(&device.0);
    drop(device);
    let at = want[0].1 / 1024;
    run("mkfs.ext4", &["-q", "-F", "-E", &format!("offset={}", want[0].1), &path, "40960"], "");
    assert!(at > 0);
    let table = table(&path);
    assert_eq!((volumes(&table), table.sector), (want, 4096));
}

#[test]
fn whole_disk_file_systems_have_no_table() {
    let dir = tempfile::tempdir().unwrap();
    for (program, args) in [
        ("mkfs.fat", vec!["-F", "12"]),
        ("mkfs.fat", vec!["-F", "16"]),
        ("mkfs.fat", vec!["-F", "32", "-s", "1"]),
        ("mkfs.fat", vec!["-S", "4096", "-F", "12"]),
        ("mkfs.ntfs", vec!["-q", "-F"]),
        ("mkfs.exfat", vec![]),
        ("mkfs.ext4", vec!["-q", "-F"]),
    ] {
        let path = disk(dir.path(), "bare.raw", 48);
        let mut all = args.clone();
        all.push(&path);
        run(program, &all, "");
        let table = table(&path);
        assert_eq!((table.kind, &table.problems), ("none", &vec![]), "{program} {args:?}");
        assert_eq!(volumes(&table), [(String::new(), 0, 48 << 20)]);
        fs::remove_file(path).unwrap();
    }
}

/// A disk that had a GPT and was then made one file system: the backup at its end is not the disk's table.
#[test]
fn what_is_left_of_an_older_table_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = disk(dir.path(), "was.raw", 48);
    run("sfdisk", &[&path], "label: gpt\n1: size=8MiB\n");
    run("mkfs.fat", &["-F", "16", &path], "");
    assert_eq!(table(&path).kind, "none");
    let path = disk(dir.path(), "was2.raw", 48);
    run("sfdisk", &[&path], "label: gpt\n1: size=8MiB\n");
    let mut bytes = fs::read(&path).unwrap();
    run("sfdisk", &["--wipe", "never", &path], "label: dos\n1: size=4MiB\n");
    bytes[..512].copy_from_slice(&fs::read(&path).unwrap()[..512]);
    let table = table_of(bytes);
    assert_eq!((table.kind, table.slots.len()), ("mbr", 1));
    assert!(has(&table, "without a protective MBR"), "{:?}", table.problems);
}

#[test]
fn unknown_bytes_are_one_volume() {
    for bytes in [vec![], vec![0; 100], vec![0; 512], vec![0; 1 << 20], support::pattern(1 << 20)] {
        let len = bytes.len() as u64;
        let table = table_of(bytes);
        assert_eq!((table.kind, table.slots.len(), table.slots[0].layer.len()), ("none", 1, len));
    }
}

/// Random layouts, read by everybody.
#[test]
fn random_layouts_as_others_read_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(2026);
    for round in 0..6 {
        let path = disk(dir.path(), &format!("g{round}"), 32);
        let mut script = "label: gpt\nfirst-lba: 34\n".to_owned();
        let mut at = 40;
        while at < 60_000 {
            let number = random.below(100) + 1;
            let size = random.below(9000) + 1;
            if !script.contains(&format!("\n{number}:")) {
                script.push_str(&format!("{number}: start={at}, size={size}\n"));
            }
            at += size + random.below(3) * 100;
        }
        // Those that would not fit any more are refused by sfdisk: keep below its end.
        let script: String =
            script.lines().filter(|l| !l.contains("start=5") || l.len() < 22).map(|l| format!("{l}\n")).collect();
        run("sfdisk", &["-q", &path], &script);
        let table = table(&path);
        let ours = volumes(&table);
        assert_eq!((ours.clone(), &table.problems), (by_sfdisk(&path), &vec![]));
        assert_eq!(ranges(&ours, 512), by_mmls(&path, "gpt"));
        let config = gpt::GptConfig::new().writable(false).logical_block_size(gpt::disk::LogicalBlockSize::Lb512);
        let theirs = config.open_from_device(Cursor::new(fs::read(&path).unwrap())).unwrap();
        let theirs: Vec<_> = theirs
            .partitions()
            .iter()
            .map(|(n, p)| (format!("p{n}"), p.first_lba * 512, (p.last_lba - p.first_lba + 1) * 512))
            .collect();
        assert_eq!(ours, theirs);
    }
    for round in 0..6 {
        let path = disk(dir.path(), &format!("m{round}"), 32);
        let mut script = "label: dos\n1: start=63, size=1000, type=6\n".to_owned();
        let extended = random.below(3) + 2;
        script.push_str(&format!("{extended}: start=1100, size=60000, type=5\n"));
        let mut at = 1200;
        for number in 5..5 + random.below(12) {
            let size = random.below(4000) + 1;
            script.push_str(&format!("{number}: start={at}, size={size}, type={:x}\n", random.below(0xE0) + 0x10));
            at += size + 63 + random.below(100);
        }
        let script = script.replace("type=85", "type=83").replace("type=ee", "type=83");
        run("sfdisk", &["-q", &path], &script);
        let table = table(&path);
        let ours = volumes(&table);
        assert_eq!((ours.clone(), &table.problems), (by_sfdisk(&path), &vec![]), "{script}");
        assert_eq!(ranges(&ours, 512), by_mmls(&path, "dos"));
        let theirs = mbrman::MBR::read_from(&mut File::open(&path).unwrap(), 512).unwrap();
        let theirs: Vec<_> = theirs
            .iter()
            // It takes more types for extended partitions than others do, hidden ones among logical partitions too.
            .filter(|(n, p)| p.is_used() && (*n > 4 || !p.is_extended()))
            .map(|(n, p)| (format!("p{n}"), u64::from(p.starting_lba) * 512, u64::from(p.sectors) * 512))
            .collect();
        assert_eq!(ours, theirs);
    }
}
