//! Relinks on hosts that are full, so that copies go to units of the image, on a simulated machine whose power is cut everywhere: at every
//! write and sync of the commit, and each of them fails once; on an exFAT host whose image is in one piece also at every write and sync of
//! every recovery that this leads to. With `tests/run.sh --long` these recoveries are cut on all of the hosts, and the recoveries after
//! them: up to half an hour.

mod common;
#[path = "common/crash.rs"]
mod crash;
mod exfat_support;
#[path = "common/machine.rs"]
mod machine;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Mount, Noise, fsck_exfat, fsck_fat, guest, host, ok, scratch};

#[test]
fn exfat() {
    for (fragments, leave) in [(1, 3), (7, 2)] {
        let dir = scratch();
        let image = dir.path().join("guest");
        guest::tight(&image, 72 << 10, 5 << 10);
        let shape = exfat_support::host::Shape { unit: "1K", len: 512 << 10, fragments, partition: false };
        let mut host = exfat_support::host::Host::with(shape, &image, &["-b", "64K"]);
        host.fill_up(leave);
        let bench = crash::Bench {
            file: host.file.clone(),
            image: host.path("DISK.raw"),
            base: host.base,
            len: host.len,
            in_use: host.exfat.in_use(&host.before),
            reuse: true,
            probe: host.dir.path().join("probe.img"),
            check: Box::new(move |file| fsck_exfat(file, 0, shape.len)),
        };
        crash::run(bench, common::long() || fragments == 1);
    }
}

#[test]
fn fat() {
    for (fragments, leave) in [(2, 4), (6, 2)] {
        let dir = scratch();
        let image = dir.path().join("guest");
        guest::tight(&image, 72 << 10, 5 << 10);
        let (width, place) = (12, host::Place::Bare);
        let shape = host::Shape { width, cluster_sectors: 2, len: 180 << 10, place, fragments };
        let mut host = host::Host::new(shape, &image);
        host.fill_up(leave);
        let bench = crash::Bench {
            file: host.file.clone(),
            image: host.image(),
            base: host.base,
            len: host.len,
            in_use: host.fat.in_use(&host.before),
            reuse: true,
            probe: host.dir.path().join("probe.img"),
            check: Box::new(move |file| fsck_fat(file, 0, shape.len)),
        };
        crash::run(bench, common::long());
    }
}

/// The output of a program, whatever it says.
fn said(program: &str, args: &[&str], file: &Path) -> String {
    let out = Command::new(program).args(args).arg(file).stdin(Stdio::null()).output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// What e2fsck says too much.
fn e2fsck(volume: &Path) -> Vec<String> {
    let all = said("e2fsck", &["-fn"], volume);
    let usual = |l: &&str| l.starts_with("Pass ") || l.starts_with("e2fsck ") || l.contains(" files (");
    all.lines().filter(|l| !usual(l)).map(str::to_owned).collect()
}

/// Ranges of an ext volume that are free.
fn free_blocks(volume: &Path, block: u64) -> Vec<(u64, u64)> {
    let all = said("dumpe2fs", &[], volume);
    let lists = all.lines().filter_map(|l| l.trim().strip_prefix("Free blocks: "));
    let ranges = lists.flat_map(|l| l.split(", ").map(str::to_owned).collect::<Vec<_>>()).filter(|r| !r.is_empty());
    let range = |r: String| {
        let (first, last) = r.split_once('-').unwrap_or((&r, &r));
        let (first, last): (u64, u64) = (first.trim().parse().unwrap(), last.trim().parse().unwrap());
        (first * block, (last + 1 - first) * block)
    };
    ranges.map(range).collect()
}

/// All but these ranges.
fn others(free: &[(u64, u64)], len: u64) -> Vec<(u64, u64)> {
    let mut free = free.to_vec();
    free.sort_unstable();
    let (mut at, mut out) = (0, Vec::new());
    for (start, count) in free {
        out.push((at, start - at));
        at = start + count;
    }
    out.push((at, len - at));
    out
}

#[test]
fn ext() {
    let dir = scratch();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("older")).unwrap();
    guest::tight(&root.join("disk.raw"), 96 << 10, 14 << 10);
    let mut noise = Noise::new(3);
    for i in 0..6 {
        fs::write(root.join(format!("older/{i}")), noise.bytes(300 * i)).unwrap();
    }
    let volume = dir.path().join("host.raw");
    let len = 512 << 10;
    fs::File::create(&volume).unwrap().set_len(len).unwrap();
    let source = root.to_str().unwrap();
    let fixed = ["-q", "-b", "1024", "-O", "^has_journal", "-m", "0", "-N", "64", "-d", source];
    ok("mkfs.ext4", [&fixed[..], &[volume.to_str().unwrap()]].concat());
    let free: u64 = free_blocks(&volume, 1024).iter().map(|(_, len)| len / 1024).sum();
    let filler = dir.path().join("filler");
    fs::write(&filler, noise.bytes((free as usize - 3) * 1024)).unwrap();
    ok("debugfs", ["-w", "-R", &format!("write {} filler", filler.display()), volume.to_str().unwrap()]);
    assert_eq!(e2fsck(&volume), Vec::<String>::new(), "the host that the test made");
    let free = free_blocks(&volume, 1024);
    assert!(free.iter().map(|(_, len)| len / 1024).sum::<u64>() < 5, "{free:?}");
    let bench = crash::Bench {
        image: format!("{}//disk.raw", volume.display()),
        file: volume,
        base: 0,
        len,
        in_use: others(&free, len),
        reuse: true,
        probe: dir.path().join("probe.img"),
        check: Box::new(e2fsck),
    };
    crash::run(bench, common::long());
}

/// What ntfsresize and ntfsfix say too much.
fn ntfsfix(volume: &Path) -> Vec<String> {
    let all = [said("ntfsresize", &["-i", "-f"], volume), said("ntfsfix", &["-n"], volume)];
    all.into_iter().filter(|text| ["ERROR", "WARN", "FAILED"].iter().any(|w| text.contains(w))).collect()
}

#[test]
fn ntfs() {
    let dir = scratch();
    let guest = dir.path().join("guest");
    guest::tight(&guest, 256 << 10, 84 << 10);
    let volume = dir.path().join("host.raw");
    let (len, cluster) = (3 << 20, 1024);
    fs::File::create(&volume).unwrap().set_len(len).unwrap();
    let fixed = ["-q", "-F", "-Q", "-p", "0", "-H", "16", "-S", "63", "-s", "512", "-c", "1024"];
    ok("mkntfs", [&fixed[..], &[volume.to_str().unwrap()]].concat());
    {
        let mount = Mount::ntfs(&volume, 0, 0, "rw,noatime");
        let mut noise = Noise::new(3);
        for i in 0..6 {
            fs::write(mount.dir.join(format!("older {i}")), noise.bytes(300 * i)).unwrap();
        }
        fs::copy(&guest, mount.dir.join("disk.raw")).unwrap();
        // Its record is made before what is free is counted.
        let filler = mount.dir.join("filler");
        fs::write(&filler, [0; 2000]).unwrap();
        let free = rustix::fs::statvfs(&mount.dir).unwrap().f_bfree;
        fs::write(&filler, noise.bytes((free as usize - 3) * 1024)).unwrap();
    }
    assert_eq!(ntfsfix(&volume), Vec::<String>::new(), "the host that the test made");
    let bits = Command::new("icat").args(["-f", "ntfs"]).arg(&volume).arg("6").output().unwrap().stdout;
    let free = |n: &u64| bits[(n / 8) as usize] >> (n % 8) & 1 == 0;
    let free: Vec<_> = (0..(len - 512) / cluster).filter(free).map(|n| (n * cluster, cluster)).collect();
    assert!(free.len() < 9, "{free:?}");
    let bench = crash::Bench {
        image: format!("{}//disk.raw", volume.display()),
        file: volume,
        base: 0,
        len,
        in_use: others(&free, len),
        reuse: true,
        probe: dir.path().join("probe.img"),
        check: Box::new(ntfsfix),
    };
    crash::run(bench, common::long());
}
