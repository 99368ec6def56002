//! Containers that real tools made: read as these tools read them, or refused by their names.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use unimage::container::{Disk, OpenWith, probe};
use unimage::error::{Error, Result};
use unimage::extent::Offset;
use unimage::source::{self, SourceOptions};

use crate::support::{self, pattern, run};

fn opened(path: &Path) -> Result<Disk> {
    probe(source::open(path, SourceOptions::default()).unwrap(), &OpenWith::alone())
}

fn content(disk: &Disk) -> Vec<u8> {
    disk.image.read_vec(Offset::new(0), usize::try_from(disk.image.len()).unwrap()).unwrap()
}

fn convert(from: &Path, options: &[&str], to: &Path) {
    let mut args = vec!["convert"];
    args.extend(options);
    args.extend([from.to_str().unwrap(), to.to_str().unwrap()]);
    run("qemu-img", &args, "");
}

/// A raw disk of some MiB, and a fixed VHD of it by `qemu-img`.
fn fixed(dir: &Path) -> (Vec<u8>, std::path::PathBuf) {
    let (raw, vhd, back) = (dir.join("d.raw"), dir.join("d.vhd"), dir.join("back.raw"));
    fs::write(&raw, pattern(3 << 20)).unwrap();
    convert(&raw, &["-f", "raw", "-O", "vpc", "-o", "subformat=fixed,force_size=on"], &vhd);
    convert(&vhd, &["-f", "vpc", "-O", "raw"], &back);
    (fs::read(back).unwrap(), vhd)
}

#[test]
fn a_fixed_vhd_reads_as_qemu_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let (want, vhd) = fixed(dir.path());
    assert_eq!(fs::metadata(&vhd).unwrap().len(), want.len() as u64 + 512);
    let disk = opened(&vhd).unwrap();
    assert_eq!((disk.kind, &disk.remarks), ("vhd", &vec![]));
    assert!(content(&disk) == want);
    let map = disk.image.map().unwrap();
    assert_eq!((map.extents().len(), map.len()), (1, want.len() as u64));
}

#[test]
fn an_old_footer_has_511_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (want, vhd) = fixed(dir.path());
    let file = OpenOptions::new().write(true).open(&vhd).unwrap();
    file.set_len(want.len() as u64 + 511).unwrap();
    let disk = opened(&vhd).unwrap();
    assert_eq!((disk.kind, disk.remarks.len()), ("vhd", 0), "{:?}", disk.remarks);
    assert!(content(&disk) == want);
}

#[test]
fn a_damaged_footer_is_remarked_and_the_disk_still_read() {
    let dir = tempfile::tempdir().unwrap();
    let (want, vhd) = fixed(dir.path());
    let good = fs::read(&vhd).unwrap();
    let footer = want.len();

    let mut bytes = good.clone();
    bytes[footer + 70] ^= 1;
    fs::write(&vhd, &bytes).unwrap();
    let disk = opened(&vhd).unwrap();
    assert!(disk.remarks.iter().any(|r| r.contains("checksum")), "{:?}", disk.remarks);
    assert!(content(&disk) == want);

    let mut bytes = good.clone();
    bytes[footer + 48] = 0xFF;
    fs::write(&vhd, &bytes).unwrap();
    let disk = opened(&vhd).unwrap();
    assert!(disk.remarks.iter().any(|r| r.contains("it was cut")), "{:?}", disk.remarks);
    assert!(content(&disk) == want);

    let mut bytes = good;
    bytes[footer + 63] = 9;
    fs::write(&vhd, &bytes).unwrap();
    let error = opened(&vhd).unwrap_err();
    assert!(matches!(&error, Error::Corrupt { .. }) && error.to_string().contains("VHD footer"), "{error}");
}

#[test]
fn other_containers_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("d.raw");
    fs::write(&raw, pattern(1 << 20)).unwrap();
    for (format, options, word) in
        [("qed", "cluster_size=65536", "QED"), ("parallels", "cluster_size=1048576", "Parallels")]
    {
        let made = dir.path().join(format!("d.{format}"));
        convert(&raw, &["-f", "raw", "-O", format, "-o", options], &made);
        let error = opened(&made).unwrap_err();
        assert!(matches!(&error, Error::Unsupported(why) if why.contains(word)), "{format} {options}: {error}");
    }
}

#[test]
fn whatever_else_is_raw() {
    let dir = tempfile::tempdir().unwrap();
    for bytes in [Vec::new(), vec![7], vec![0; 511], vec![0; 512], pattern(100_000)] {
        let path = dir.path().join("x");
        fs::File::create(&path).unwrap().write_all(&bytes).unwrap();
        let disk = opened(&path).unwrap();
        assert_eq!((disk.kind, content(&disk)), ("raw", bytes));
    }
}

#[test]
fn a_bad_sector_where_a_signature_could_be_is_remarked() {
    let bytes = pattern(10_000);
    for bad in [0..512, 9_900..9_901] {
        let disk = probe(support::failing(bytes.clone(), bad), &OpenWith::alone()).unwrap();
        assert_eq!(disk.kind, "raw");
        assert!(disk.remarks.iter().any(|r| r.contains("device offset")), "{:?}", disk.remarks);
        assert_eq!(disk.image.read_vec(Offset::new(600), 1000).unwrap(), &bytes[600..1600]);
    }
}

#[test]
fn mutated_footers_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    let (_, vhd) = fixed(dir.path());
    let good = fs::read(&vhd).unwrap();
    let tail = &good[good.len() - 2048..];
    let mut random = support::Random(7);
    for _ in 0..4000 {
        let mut bytes = tail.to_vec();
        for _ in 0..=random.below(6) {
            let at = bytes.len() - 1 - random.below(512) as usize;
            bytes[at] = random.next() as u8;
        }
        bytes.truncate(bytes.len() - random.below(3) as usize);
        if let Ok(disk) = probe(support::bytes(bytes), &OpenWith::alone()) {
            assert!(disk.image.len() <= 2048);
            let _ = content(&disk);
        }
    }
}
