//! qcow2: every variant that qemu writes, over chains and with snapshots, against qemu's bytes and its map.

use std::fs;
use std::path::Path;
use std::process::Command;

use unimage::container::{Disk, Role};
use unimage::extent::{Encoding, What};

use crate::common::{Noise, long, ok, scratch};
use crate::folder::{content, open, open_snapshot};
use crate::qemu::{self, text};

const VARIANTS: &[&str] = &[
    "compat=0.10",
    "compat=1.1",
    "compat=0.10,cluster_size=512",
    "cluster_size=512",
    "cluster_size=4096,refcount_bits=1",
    "cluster_size=2M",
    "lazy_refcounts=on",
    "preallocation=metadata",
    "preallocation=falloc",
    "extended_l2=on,cluster_size=16k",
    "extended_l2=on,cluster_size=128k",
    "data_file=data.img",
    "data_file=data.img,data_file_raw=on",
    "data_file=data.img,extended_l2=on,cluster_size=64k",
];

fn plainly(disk: &Disk) {
    assert_eq!((disk.kind, disk.remarks.as_slice()), ("qcow2", [].as_slice()));
}

/// `qemu-img create` in the folder of the image, so that names stay relative.
fn create(path: &Path, options: &str, backing: Option<(&str, &str)>, size: u64) {
    let mut c = Command::new("qemu-img");
    c.current_dir(path.parent().unwrap()).args(["create", "-q", "-f", "qcow2"]);
    if !options.is_empty() {
        // To qemu, a data file's name is relative to where it runs.
        let data = format!("data_file={}", text(&path.with_file_name("data.img")));
        c.args(["-o", &options.replace("data_file=data.img", &data)]);
    }
    if let Some((file, format)) = backing {
        c.args(["-b", file, "-F", format]);
    }
    let out = c.arg(path.file_name().unwrap()).arg(size.to_string()).output().unwrap();
    assert!(out.status.success(), "{options}: {}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn random_writes_by_qemu_io() {
    let mut random = Noise::new(21);
    for options in VARIANTS {
        for round in 0..if long() { 40 } else { 3 } {
            let dir = scratch();
            let path = dir.path().join("d.qcow2");
            let most = if options.contains("=512") { 3 << 20 } else { 24 << 20 };
            let size = (1 + random.below(most) / 512) * 512;
            create(&path, options, None, size);
            if round > 0 {
                qemu::scribble(&path, "qcow2", size, &mut random, 1 + round % 3, true);
            }
            let disk = open(&path).unwrap_or_else(|e| panic!("{options}: {e}"));
            let data = usize::from(options.contains("data_file"));
            // The name of the data file is absolute, and this gate takes names by their last part.
            assert_eq!((disk.kind, disk.parts.len(), disk.remarks.len()), ("qcow2", data, data));
            qemu::same(&disk, &path, "qcow2");
        }
    }
}

#[test]
fn compressed() {
    let mut random = Noise::new(22);
    for options in [
        "compat=0.10",
        "compression_type=zlib",
        "compression_type=zstd",
        "compression_type=zstd,cluster_size=2M",
        "cluster_size=512",
        "compression_type=zstd,extended_l2=on",
    ] {
        for _ in 0..if long() { 20 } else { 2 } {
            let dir = scratch();
            let most = if options.contains("=512") { 2 << 20 } else { 12 << 20 };
            let raw = qemu::raw(dir.path(), (1 + random.below(most) / 512) * 512, &mut random);
            let path = dir.path().join("d.qcow2");
            ok("qemu-img", ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, text(&raw), text(&path)]);
            let disk = open(&path).unwrap();
            plainly(&disk);
            let packed = |d: &Disk| {
                d.image.map().unwrap().extents().iter().any(|e| e.what == What::Encoded(Encoding::ContainerCompressed))
            };
            assert!(packed(&disk), "{options}");
            qemu::same(&disk, &path, "qcow2");
            // Some of it written over, so that both kinds stand side by side.
            qemu::scribble(&path, "qcow2", disk.image.len(), &mut random, 1, true);
            qemu::same(&open(&path).unwrap(), &path, "qcow2");
        }
    }
}

#[test]
fn chains_of_all_sorts() {
    let mut random = Noise::new(23);
    for round in 0..if long() { 100 } else { 8 } {
        let dir = scratch();
        let at = |n: u64| dir.path().join(format!("{n}.img"));
        let depth = 1 + random.below(4);
        let mut format = "raw";
        if random.below(2) == 0 {
            fs::rename(qemu::raw(dir.path(), (1 + random.below(6000)) * 512, &mut random), at(0)).unwrap();
        } else {
            format = ["qcow2", "vdi", "vmdk", "vpc"][random.below(4) as usize];
            let size = (1 + random.below(6000)) * 512;
            qemu::create(&at(0), format, "", size);
            qemu::scribble(&at(0), format, size, &mut random, 1, false);
        }
        for n in 1..=depth {
            let options = VARIANTS[random.below(11) as usize];
            let options = if options.contains("preallocation") { "" } else { options };
            let size = (1 + random.below(if options.contains("=512") { 6000 } else { 16000 })) * 512;
            create(&at(n), options, Some((&format!("{}.img", n - 1), format)), size);
            qemu::scribble(&at(n), "qcow2", size, &mut random, 1 + n % 2, !options.contains("0.10"));
            format = "qcow2";
        }
        let disk = open(&at(depth)).unwrap_or_else(|e| panic!("round {round}: {e}"));
        let roles: Vec<Role> = disk.parts.iter().map(|p| p.role).collect();
        assert_eq!(roles, (1..=depth as usize).map(Role::Parent).collect::<Vec<_>>());
        qemu::same(&disk, &at(depth), "qcow2");
    }
}

#[test]
fn snapshots() {
    let mut random = Noise::new(24);
    for options in ["compat=0.10", "", "extended_l2=on,cluster_size=16k", "cluster_size=512"] {
        let dir = scratch();
        let path = dir.path().join("d.qcow2");
        let mut size = 4 << 20;
        create(&path, options, None, size);
        for n in 0..4 {
            qemu::scribble(&path, "qcow2", size, &mut random, 1, true);
            ok("qemu-img", ["snapshot", "-c", &format!("state {n}"), text(&path)]);
            if n == 1 && !options.contains("0.10") {
                size = 6 << 20;
                ok("qemu-img", ["resize", "-q", "-f", "qcow2", text(&path), &size.to_string()]);
            }
        }
        ok("qemu-img", ["snapshot", "-d", "state 2", text(&path)]);
        qemu::scribble(&path, "qcow2", size, &mut random, 1, true);
        qemu::same(&open(&path).unwrap(), &path, "qcow2");
        let listed = open(&path).unwrap().snapshots;
        let names: Vec<_> = listed.iter().map(|s| (s.id.as_str(), s.name.as_str())).collect();
        assert_eq!(names, [("1", "state 0"), ("2", "state 1"), ("4", "state 3")], "{options}");
        let json = ok("qemu-img", ["info", "--output=json", text(&path)]);
        let info: serde_json::Value = serde_json::from_str(&json).unwrap();
        for (ours, theirs) in listed.iter().zip(info["snapshots"].as_array().unwrap()) {
            assert_eq!(ours.id, theirs["id"].as_str().unwrap());
            let made = ours.made.unwrap();
            assert_eq!(
                (Some(made.0), Some(made.1.into())),
                (theirs["date-sec"].as_i64(), theirs["date-nsec"].as_u64())
            );
            assert_eq!(Some(ours.memory), theirs["vm-state-size"].as_u64());
        }
        assert_eq!(listed.iter().map(|s| s.len >> 20).collect::<Vec<_>>(), [4, 4, size >> 20]);
        for (id, name) in names {
            let raw = dir.path().join("raw");
            let which = format!("snapshot.id={id}");
            ok("qemu-img", ["convert", "-l", &which, "-f", "qcow2", "-O", "raw", text(&path), text(&raw)]);
            let want = fs::read(&raw).unwrap();
            for by in [id, name] {
                let disk = open_snapshot(&path, by).unwrap();
                // qemu gives a snapshot the length of today when it converts one.
                let got = content(&disk);
                let (before, after) = want.split_at(got.len());
                let differs = (0..got.len()).find(|at| got[*at] != before[*at]);
                assert_eq!(differs, None, "{options} {by}");
                assert!(after.iter().all(|b| *b == 0), "{options} {by}");
            }
        }
        let gone = open_snapshot(&path, "state 2").unwrap_err();
        assert!(gone.exit_code() == 3 && gone.to_string().contains("state 3"), "{gone}");
    }
}

/// What a snapshot has alone is what its removal would free.
#[test]
fn bytes_that_are_a_snapshots_alone() {
    let mut random = Noise::new(25);
    for options in ["", "cluster_size=4096", "extended_l2=on"] {
        let dir = scratch();
        let path = dir.path().join("d.qcow2");
        create(&path, options, None, 4 << 20);
        for n in 0..4 {
            qemu::scribble(&path, "qcow2", 4 << 20, &mut random, 1, true);
            ok("qemu-img", ["snapshot", "-c", &format!("s{n}"), text(&path)]);
        }
        qemu::scribble(&path, "qcow2", 4 << 20, &mut random, 1, true);
        let disk = open(&path).unwrap();
        let alone = disk.tables[0].alone().unwrap();
        assert_eq!(alone.len(), 4);
        let json = ok("qemu-img", ["info", "--output=json", text(&path)]);
        let info: serde_json::Value = serde_json::from_str(&json).unwrap();
        let cluster = info["cluster-size"].as_u64().unwrap();
        // Counts of references before and after: what is freed. The snapshot's own level 1 table and list are none of the disk's.
        let used = |path: &Path| {
            let bytes = fs::read(path).unwrap();
            let be = |at: usize, n: usize| bytes[at..at + n].iter().fold(0u64, |sum, b| sum << 8 | u64::from(*b));
            let (table, clusters) = (be(48, 8) as usize, be(56, 4));
            let mut used = 0;
            for i in 0..(clusters * cluster / 8) as usize {
                let block = be(table + i * 8, 8) as usize;
                if block != 0 {
                    used += (0..cluster as usize / 2).filter(|n| be(block + n * 2, 2) != 0).count() as u64;
                }
            }
            used * cluster
        };
        for (n, snapshot) in disk.snapshots.iter().enumerate() {
            let other = dir.path().join("other.qcow2");
            fs::copy(&path, &other).unwrap();
            ok("qemu-img", ["snapshot", "-d", &snapshot.name, text(&other)]);
            // One cluster is its level 1 table; the list may shrink by one.
            let freed = used(&path) - used(&other);
            assert!(
                (freed - cluster..=freed).contains(&alone[n]) && alone[n].is_multiple_of(cluster),
                "{options} {n}: {} of {freed}",
                alone[n]
            );
        }
    }
}

#[test]
fn encrypted_is_recognised() {
    let dir = scratch();
    for (format, word) in [("luks", "LUKS"), ("aes", "AES")] {
        let path = dir.path().join(format);
        let options = format!("encrypt.format={format},encrypt.key-secret=s");
        let secret = "secret,id=s,data=abc";
        ok("qemu-img", ["create", "-q", "--object", secret, "-f", "qcow2", "-o", &options, text(&path), "1M"]);
        let image = format!("driver=qcow2,encrypt.key-secret=s,file.filename={}", text(&path));
        ok("qemu-io", ["--object", secret, "--image-opts", "-c", "write -P 7 64k 64k", &image]);
        let disk = open(&path).unwrap();
        assert!(disk.remarks[0].contains(word), "{:?}", disk.remarks);
        let map = disk.image.map().unwrap();
        assert!(map.extents().iter().any(|e| e.len == 65536 && e.what == What::Encoded(Encoding::ContainerEncrypted)));
        assert!(disk.image.read_vec(unimage::extent::Offset::new(65536), 16).is_err());
        assert_eq!(disk.image.read_vec(unimage::extent::Offset::new(0), 16).unwrap(), [0; 16]);
    }
}

/// A writer that was killed leaves references uncounted, but what it flushed is there.
#[test]
fn not_closed() {
    let dir = scratch();
    let path = dir.path().join("d.qcow2");
    create(&path, "lazy_refcounts=on", None, 4 << 20);
    let out = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write -P 9 100k 900k", "-c", "flush", "-c", "abort", text(&path)])
        .output()
        .unwrap();
    assert!(!out.status.success());
    let disk = open(&path).unwrap();
    assert!(disk.remarks[0].contains("not closed"), "{:?}", disk.remarks);
    let got = content(&disk);
    assert!(got[100 << 10..1000 << 10].iter().all(|b| *b == 9) && got[1000 << 10..].iter().all(|b| *b == 0));
    // As its owner has it, which repairs it first.
    let want = qemu::bytes(&path, "qcow2");
    assert!(got == want);
}

/// Two entries that lead to one cluster, and one that leads to a table of the image itself: read as qemu reads them.
#[test]
fn entries_that_overlap() {
    let dir = scratch();
    let path = dir.path().join("d.qcow2");
    create(&path, "", None, 1 << 20);
    ok("qemu-io", ["-f", "qcow2", "-c", "write -P 5 0 64k", "-c", "write -P 6 64k 128k", path.to_str().unwrap()]);
    let mut bytes = fs::read(&path).unwrap();
    let number = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let l1 = number(&bytes, 40) as usize;
    let l2 = (number(&bytes, l1) & 0x00ff_ffff_ffff_fe00) as usize;
    let first = bytes[l2..l2 + 8].to_vec();
    bytes[l2 + 8..l2 + 16].copy_from_slice(&first);
    bytes[l2 + 24..l2 + 32].copy_from_slice(&(1u64 << 63 | l2 as u64).to_be_bytes());
    fs::write(&path, &bytes).unwrap();
    let disk = open(&path).unwrap();
    let want = crate::qemu::bytes(&path, "qcow2");
    assert!(content(&disk) == want && want[65_536..131_072] == want[..65_536] && want[196_608..] != [0; 851_968]);
    crate::qemu::same_extents(&disk, &path, "qcow2");
}

#[test]
fn large_and_sparse() {
    let mut random = Noise::new(26);
    for (options, size) in
        [("", 1u64 << 40), ("cluster_size=2M", 1 << 50), ("extended_l2=on", 1 << 40), ("cluster_size=512", 1 << 36)]
    {
        let dir = scratch();
        let path = dir.path().join("d.qcow2");
        create(&path, options, None, size);
        qemu::scribble(&path, "qcow2", size, &mut random, 2, false);
        qemu::same_extents(&open(&path).unwrap(), &path, "qcow2");
    }
}
