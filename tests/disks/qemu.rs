//! What qemu makes, writes, and says of a disk.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use unimage::container::Disk;
use unimage::extent::{Encoding, What};

use crate::common::{Noise, ok};
use crate::folder::content;

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// `qemu-img create`.
#[track_caller]
pub fn create(path: &Path, format: &str, options: &str, size: u64) {
    let mut args = vec!["create", "-q", "-f", format];
    if !options.is_empty() {
        args.extend(["-o", options]);
    }
    let size = size.to_string();
    args.extend([text(path), &size]);
    ok("qemu-img", args);
}

/// `qemu-img convert` of a raw file.
#[track_caller]
pub fn convert(raw: &Path, format: &str, options: &str, to: &Path) {
    let mut args = vec!["convert", "-f", "raw", "-O", format];
    if !options.is_empty() {
        args.extend(["-o", options]);
    }
    args.extend([text(raw), text(to)]);
    ok("qemu-img", args);
}

/// The bytes that qemu reads.
#[track_caller]
pub fn bytes(path: &Path, format: &str) -> Vec<u8> {
    let raw = path.with_extension("converted-by-qemu");
    ok("qemu-img", ["convert", "-f", format, "-O", "raw", text(path), text(&raw)]);
    let bytes = fs::read(&raw).unwrap();
    fs::remove_file(raw).unwrap();
    bytes
}

/// Random writes by `qemu-io`: patterns, zeros, discards, some across blocks, in several sessions.
#[track_caller]
pub fn scribble(path: &Path, format: &str, size: u64, random: &mut Noise, sessions: u64, zeros: bool) {
    for _ in 0..sessions {
        let mut args = vec!["-f".to_owned(), format.to_owned(), "-d".into(), "unmap".into()];
        for _ in 0..=random.below(12) {
            let at = random.below(size / 512) * 512;
            let most = if random.below(4) == 0 { 3 << 20 } else { 100 << 10 };
            let len = ((1 + random.below(most) / 512) * 512).min(size - at);
            let command = match random.below(6) {
                0 if zeros => format!("write -z {at} {len}"),
                1 if zeros => format!("write -z -u {at} {len}"),
                2 if zeros => format!("discard {at} {len}"),
                _ => format!("write -P {} {at} {len}", 1 + random.below(255)),
            };
            args.extend(["-c".into(), command]);
        }
        args.push(text(path).to_owned());
        ok("qemu-io", args);
    }
}

/// Compares bytes, and extents range by range, with what qemu has. `files` are the files that qemu's offsets are in, for
/// disks of several files.
#[track_caller]
pub fn same(disk: &Disk, path: &Path, format: &str) {
    let want = bytes(path, format);
    let got = content(disk);
    assert_eq!(got.len(), want.len(), "{}", path.display());
    if let Some(at) = (0..got.len()).find(|at| got[*at] != want[*at]) {
        panic!("{}: the bytes differ from {at:#x} on", path.display());
    }
    stored_there(disk, &want);
    same_extents(disk, path, format);
}

/// What an extent says is stored somewhere is there: the file's bytes at that place are those that qemu reads of the disk.
#[track_caller]
fn stored_there(disk: &Disk, want: &[u8]) {
    for e in disk.image.map().unwrap().extents() {
        let at = e.start.get() as usize;
        let want = &want[at..at + e.len as usize];
        match e.what {
            What::Stored(place) => {
                let file = disk.tables.iter().flat_map(|t| t.files()).find(|f| f.id() == place.layer).unwrap();
                assert!(file.read_vec(place.offset, want.len()).unwrap() == want, "{e:?}");
            }
            What::Zero => assert!(want.iter().all(|b| *b == 0), "{e:?}"),
            What::Encoded(_) => {}
        }
    }
}

/// Compares the extents only. For VHDX, qemu says of everything that it is data somewhere: there only the bytes can be
/// compared, and that zeros are zeros.
#[track_caller]
pub fn same_extents(disk: &Disk, path: &Path, format: &str) {
    if format == "vhdx" {
        let here: u64 =
            disk.image.map().unwrap().extents().iter().map(|e| u64::from(e.what != What::Zero) * e.len).sum();
        assert!(here <= fs::metadata(path).unwrap().len());
        return;
    }
    let json = ok("qemu-img", ["map", "-f", format, "--output=json", text(path)]);
    let ranges: Vec<Value> = serde_json::from_str(&json).unwrap();
    let map = disk.image.map().unwrap();
    let mut end = 0;
    for range in &ranges {
        let number = |key: &str| range[key].as_u64();
        let (start, len) = (number("start").unwrap(), number("length").unwrap());
        assert_eq!(start, end, "qemu's ranges are gapless");
        end = start + len;
        let flag = |key: &str| range[key].as_bool().unwrap_or(false);
        let mut at = start;
        for e in map.slice(unimage::extent::Offset::new(start)..unimage::extent::Offset::new(end)) {
            assert_eq!(e.start.get(), at);
            match e.what {
                What::Stored(place) => {
                    assert_eq!(Some(place.offset.get()), number("offset").map(|o| o + (at - start)), "{e:?} {range}");
                }
                // Where a cluster of zeros keeps its place, qemu has that, too.
                What::Zero => assert!(flag("zero") && !flag("data"), "{e:?} {range}"),
                What::Encoded(Encoding::ContainerCompressed) => assert!(flag("compressed"), "{e:?} {range}"),
                What::Encoded(_) => panic!("{e:?} {range}"),
            }
            at += e.len;
        }
        assert_eq!(at, end, "{range}");
    }
    assert_eq!(end, disk.image.len());
}

/// A raw file with data, holes, and what compresses well.
pub fn raw(dir: &Path, size: u64, random: &mut Noise) -> PathBuf {
    let path = dir.join("source.raw");
    let file = fs::File::create(&path).unwrap();
    file.set_len(size).unwrap();
    for _ in 0..12 {
        let len = (1 + random.below(300)) * 1024;
        let at = random.below(size / 512) * 512;
        let len = usize::try_from(len.min(size - at)).unwrap();
        let mut bytes = random.bytes(len);
        if random.below(2) == 0 {
            bytes.fill(random.below(250) as u8 + 1);
        }
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, at).unwrap();
    }
    path
}
