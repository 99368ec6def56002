//! Guests of every kind in every kind of container, and images in images, on file systems that share blocks.

use std::fs;
use std::path::{Path, PathBuf};

use super::share::check;
use super::support::{Volume, extract, shared_bytes};
use crate::common::{self, guest, sha256_file};
use crate::ext_support as ext;

/// A folder of large and small files.
fn fill(root: &Path) {
    let mut noise = common::Noise::new(21);
    fs::create_dir_all(root.join("folder/below")).unwrap();
    for i in 0..3 {
        fs::write(root.join(format!("folder/large {i}")), noise.bytes((3 << 20) + 5001 * i)).unwrap();
    }
    for i in 0..40 {
        fs::write(root.join(format!("folder/below/small {i:02}.dat")), noise.bytes(i * 613)).unwrap();
    }
}

/// A disk and what an address has behind its name.
struct Disk {
    what: &'static str,
    raw: PathBuf,
    volume: &'static str,
}

fn disks(dir: &Path, source: &Path) -> Vec<Disk> {
    let new = |name: &str, mib: u64| {
        let raw = dir.join(name);
        fs::File::create(&raw).unwrap().set_len(mib << 20).unwrap();
        raw
    };
    let ext4 = dir.join("ext4.disk");
    ext::make(&ext4, 60, "-t ext4 -b 4096");
    fill(ext::Mount::new(&ext4, "rw").path());
    let ntfs = dir.join("ntfs.disk");
    guest::ntfs(&ntfs, 60 << 20, fill);
    let fat = new("fat.disk", 300);
    let name = fat.to_str().unwrap();
    common::ok("mkfs.fat", ["-F", "32", "-s", "8", name]);
    common::ok("mcopy", ["-s", "-Q", "-i", name, source.join("folder").to_str().unwrap(), "::/"]);
    let exfat = new("exfat.disk", 60);
    common::ok("mkfs.exfat", ["-c", "4K", exfat.to_str().unwrap()]);
    {
        let mount = common::Mount::exfat(&exfat, 0, 0, "rw");
        fill(&mount.dir);
    }
    vec![
        Disk { what: "ext4", raw: ext4, volume: "" },
        Disk { what: "NTFS", raw: ntfs, volume: "//p1" },
        Disk { what: "FAT32", raw: fat, volume: "" },
        Disk { what: "exFAT", raw: exfat, volume: "" },
    ]
}

/// Extracts `address`, whose bytes are in `image`: every file is right, large ones share their blocks, the image stays as it is.
#[track_caller]
fn shared(volume: &Volume, image: &Path, address: &str, want: &common::Seens, what: &str) {
    let before = sha256_file(image);
    let out = volume.dir.join("out");
    let (said, rows) = extract(address, &out, &["--hash", "sha256"]);
    assert_eq!(said.code, 0, "{what}: {said}");
    common::ok("sync", ["-f", volume.dir.to_str().unwrap()]);
    let got = common::tree(&out);
    assert!(want.keys().eq(got.keys()), "{what}: {:?}", got.keys());
    for (path, seen) in want {
        assert_eq!(got[path].sha, seen.sha, "{what}: {path}");
        assert_eq!(rows[path]["sha256"], seen.sha.as_str(), "{what}: {path}");
        if seen.size > 1 << 20 {
            let (shared, all) = shared_bytes(&out.join(path));
            assert!(all >= seen.size && shared * 100 >= all * 95, "{what}: {path}: {shared} of {all} are shared");
            assert_eq!(rows[path]["method"], "reflink", "{what}: {}", rows[path]);
        }
    }
    assert_eq!(sha256_file(image), before, "{what}: the image");
    fs::remove_dir_all(&out).unwrap();
}

fn every_container(volume: &Volume) {
    let dir = common::scratch();
    let source = dir.path().join("source");
    fill(&source);
    let want = common::tree(&source);
    for disk in disks(dir.path(), &source) {
        for format in ["raw", "qcow2", "vmdk", "vhdx"] {
            let image = volume.dir.join(format!("guest.{format}"));
            let (from, to) = (disk.raw.to_str().unwrap(), image.to_str().unwrap());
            common::ok("qemu-img", ["convert", "-f", "raw", "-O", format, from, to]);
            let address = format!("{to}{}", disk.volume);
            shared(volume, &image, &address, &want, &format!("{} in {format}", disk.what));
            fs::remove_file(&image).unwrap();
        }
    }
    check(volume);
}

#[test]
fn on_xfs() {
    every_container(&Volume::xfs(600));
}

#[test]
fn on_btrfs() {
    every_container(&Volume::btrfs(900));
}

#[test]
fn an_image_in_an_image() {
    let volume = Volume::xfs(900);
    let dir = common::scratch();
    let source = dir.path().join("source");
    fill(&source);
    let want = common::tree(&source);
    let inner = dir.path().join("inner.raw");
    ext::make(&inner, 60, "-t ext4 -b 4096");
    fill(ext::Mount::new(&inner, "rw").path());
    let host = volume.dir.join("host.raw");
    ext::make(&host, 300, "-t ext4 -b 4096");
    {
        let mount = ext::Mount::new(&host, "rw");
        fs::create_dir(mount.path().join("vm")).unwrap();
        for format in ["raw", "qcow2"] {
            let to = mount.path().join(format!("vm/inner.{format}"));
            common::ok("qemu-img", ["convert", "-O", format, inner.to_str().unwrap(), to.to_str().unwrap()]);
        }
    }
    for format in ["raw", "qcow2"] {
        let address = format!("{}//vm/inner.{format}//", host.display());
        let address = address.trim_end_matches('/');
        // The image's own contents, not the file that it is.
        shared(&volume, &host, &format!("{address}//"), &want, format);
    }
    check(&volume);
}
