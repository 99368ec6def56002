//! A real relink on a small NTFS host, on a simulated machine whose power is cut everywhere.

mod common;
#[path = "common/crash.rs"]
mod crash;
#[path = "common/machine.rs"]
mod machine;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Mount, Noise, guest, ok, scratch};

const IMAGE: &str = "disk.raw";

/// Bytes of a sector and of a cluster, MiB.
struct Shape {
    sector: u64,
    cluster: u64,
    mib: u64,
}

/// Ranges of a volume that are in use, by its bitmap as The Sleuth Kit reads it; what lies behind the last cluster too.
fn in_use(volume: &Path, cluster: u64) -> Vec<(u64, u64)> {
    let len = fs::metadata(volume).unwrap().len();
    let out = Command::new("icat").args(["-f", "ntfs"]).arg(volume).arg("6").output().unwrap();
    assert!(out.status.success());
    let bits = out.stdout;
    let clusters = (len - 512) / cluster;
    let used = |n: &u64| bits[(n / 8) as usize] >> (n % 8) & 1 != 0;
    let mut all: Vec<_> = (0..clusters).filter(used).map(|n| (n * cluster, cluster)).collect();
    all.push((clusters * cluster, len - clusters * cluster));
    all
}

/// What ntfsresize and ntfsfix say too much.
fn check(volume: &Path) -> Vec<String> {
    let mut odd = Vec::new();
    for args in [&["ntfsresize", "-i", "-f"][..], &["ntfsfix", "-n"]] {
        let out = Command::new(args[0]).args(&args[1..]).arg(volume).stdin(Stdio::null()).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        if !out.status.success() || ["ERROR", "WARN", "FAILED"].iter().any(|w| text.contains(w)) {
            odd.push(text);
        }
    }
    odd
}

/// A host with an image in so many pieces, in a partition or not. The recoveries are cut too with `tests/run.sh --long`.
fn run(shape: Shape, pieces: u64, partition: bool) {
    let dir = scratch();
    let guest = dir.path().join("guest");
    guest::fat(&guest, 256 << 10, 12, (shape.cluster / 512) as u32);
    let bytes = fs::read(&guest).unwrap();
    let volume = dir.path().join("made.raw");
    fs::File::create(&volume).unwrap().set_len(shape.mib << 20).unwrap();
    let (sector, cluster) = (shape.sector.to_string(), shape.cluster.to_string());
    let fixed = ["-q", "-F", "-Q", "-p", "0", "-H", "16", "-S", "63", "-s", &sector, "-c", &cluster];
    ok("mkntfs", [&fixed[..], &[volume.to_str().unwrap()]].concat());
    let mount = Mount::ntfs(&volume, 0, 0, "rw,noatime");
    let mut noise = Noise::new(3);
    for i in 0..6 {
        fs::write(mount.dir.join(format!("older {i}")), noise.bytes(300 * i)).unwrap();
    }
    let file = fs::File::create(mount.dir.join(IMAGE)).unwrap();
    let part = (bytes.len() as u64 / pieces).next_multiple_of(4096);
    for i in 0..pieces {
        let from = ((i * 7 % pieces) * part).min(bytes.len() as u64);
        let to = (from + part).min(bytes.len() as u64);
        file.write_all_at(&bytes[from as usize..to as usize], from).unwrap();
    }
    drop(file);
    assert!(fs::read(mount.dir.join(IMAGE)).unwrap() == bytes);
    drop(mount);
    assert_eq!(check(&volume), Vec::<String>::new(), "the host that the test made");
    let (base, len) = (if partition { 1 << 20 } else { 0 }, shape.mib << 20);
    let disk = dir.path().join("host.raw");
    fs::write(&disk, [&vec![0; base as usize], &fs::read(&volume).unwrap()[..], &vec![0; base as usize]].concat())
        .unwrap();
    if partition {
        let table = dir.path().join("table");
        fs::write(&table, format!("label: dos\nstart=2048, size={}, type=7\n", len / 512)).unwrap();
        let stdin = fs::File::open(&table).unwrap();
        assert!(Command::new("sfdisk").arg("-q").arg(&disk).stdin(stdin).status().unwrap().success());
    }
    let apart = dir.path().join("volume.raw");
    let bench = crash::Bench {
        image: format!("{}//{}{IMAGE}", disk.display(), if partition { "p1/" } else { "" }),
        file: disk,
        base,
        len,
        in_use: in_use(&volume, shape.cluster).into_iter().map(|(at, n)| (at + base, n)).collect(),
        probe: dir.path().join("probe.raw"),
        check: Box::new(move |file| {
            let bytes = fs::read(file).unwrap();
            fs::write(&apart, &bytes[base as usize..(base + len) as usize]).unwrap();
            check(&apart)
        }),
    };
    crash::run(bench, common::long());
}

#[test]
fn small_clusters_and_many_pieces() {
    run(Shape { sector: 512, cluster: 512, mib: 3 }, 20, false);
}

#[test]
fn in_a_partition() {
    run(Shape { sector: 512, cluster: 4096, mib: 4 }, 3, true);
}

#[test]
fn records_of_4_kib() {
    run(Shape { sector: 4096, cluster: 4096, mib: 6 }, 1, false);
}
